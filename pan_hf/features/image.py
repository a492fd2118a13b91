"""Images: uint8 RGB frames, kept as PNG, one a step."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pan_hf.features.base import Feature, Form, Measures, View, register_feature
from pan_hf.images import as_rgb, encode_png, fit, fitted_shape, picture_layout, to_rgb

if TYPE_CHECKING:
    from gymnasium import spaces
    from torch import Tensor


@register_feature
class ImageFeature(Feature):
    """`{"kind": "image", "shape": [height, width, 3], "unit": "uint8 RGB"}`."""

    kind = "image"
    bare_name = "camera"
    is_picture = True
    card_fields = ("height", "width", "channels")

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> ImageFeature:
        """The feature of frames `(height, width, 3)`."""
        return cls({"kind": cls.kind, "shape": list(shape), "unit": "uint8 RGB"})

    @classmethod
    def describe(cls, part: Any) -> dict[str, Any]:
        return cls.of_shape((part.height, part.width, part.channels)).description

    # ---- From an environment or a table

    @classmethod
    def from_space(cls, space: spaces.Space, view: View) -> Form | None:
        from gymnasium.spaces import Box

        if not isinstance(space, Box):
            return None
        is_unit = bool(np.all(space.low == 0) and np.all(space.high == 1))
        try:
            layout = picture_layout(space.shape, space.dtype, is_unit)
        except ValueError as error:
            raise ValueError(
                f"{space}: {error}; choose or merge channels with a wrapper, or leave the sense out with keep"
            ) from error
        return None if layout is None else cls._form_of_box(space, layout, view)

    @classmethod
    def _form_of_box(cls, space: spaces.Box, layout: str, view: View) -> Form:
        height, width = (space.shape[layout.index(axis)] for axis in "HW")
        is_float = np.issubdtype(space.dtype, np.floating)

        def convert(value: Any) -> np.ndarray:
            value = np.asarray(value)
            if value.shape != space.shape or (not is_float and value.dtype != np.uint8):
                raise ValueError(f"expected {space.dtype} of shape {space.shape}, got {value.dtype} of {value.shape}")
            return fit(as_rgb(value, layout), view.image_size, view.crop)

        shape = fitted_shape(height, width, view.image_size, view.crop)
        return Form(cls.of_shape(shape).description, convert)

    @classmethod
    def from_value(cls, value: Any, view: View) -> Form | None:
        if isinstance(value, str):
            return None
        is_unit = bool(value.size and value.dtype.kind == "f" and value.min() >= 0 and value.max() <= 1)
        layout = picture_layout(value.shape, value.dtype, is_unit)
        if layout is None:
            return None

        def convert(image: Any) -> np.ndarray:
            if image.shape != value.shape or image.dtype != value.dtype:
                raise ValueError(
                    f"expected a picture like the first, {value.dtype} of shape {value.shape}, got {image.dtype} of "
                    f"{image.shape}; bring them to one shape"
                )
            return fit(as_rgb(image, layout), view.image_size, view.crop)

        return Form(cls.of_shape(convert(value).shape).description, convert)

    def space(self) -> spaces.Space:
        from gymnasium.spaces import Box

        return Box(0, 255, tuple(self.description["shape"]), np.uint8)

    # ---- To and from parquet

    def column_type(self) -> Any:
        import datasets

        return datasets.Image()

    def stored(self, value: Any) -> Any:
        return {"bytes": encode_png(value), "path": None}

    def blank(self) -> np.ndarray:
        return np.zeros(self.description["shape"], np.uint8)

    def num_bytes(self, value: Any) -> int:
        return len(encode_png(value))

    def read(self, column: pa.ChunkedArray) -> list[bytes]:
        self._check_type(column, pa.types.is_struct(column.type))
        return pc.struct_field(column, "bytes").to_pylist()

    @property
    def row_shape(self) -> tuple[int, ...]:
        height, width, channels = self.description["shape"]
        return channels, height, width

    def decode(self, cell: Any) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(cell))).transpose(2, 0, 1)

    def recorded(self, rows: Any) -> list:
        return list(rows.transpose(0, 2, 3, 1))

    # ---- To a model

    def make_sense(self, name: str, values: np.ndarray, episode: np.ndarray, tokenizer: Any, options: dict) -> Any:
        from pan_hf.modeling import ImageSense

        channels, height, width = values.shape[1:]
        shape = {"height": height, "width": width, "channels": channels}
        patches = {} if "patch_size" in options else _patches(name, height, width)
        return ImageSense(**(shape | patches | options))

    def to_processor(self, values: np.ndarray) -> np.ndarray:
        return np.moveaxis(values, -3, -1)

    def check_sense(self, name: str, sense: Any, values: np.ndarray, processor: Any) -> None:
        found, expected = tuple(values.shape[1:]), (sense.channels, sense.height, sense.width)
        if found != expected:
            _, height, width = expected
            raise ValueError(
                f"Sense {name!r}: the recording has images of {found}, the model sees {expected} (channels, "
                f"height, width); record with `--image-size {height}`"
                f"{'' if height == width else f' ({height}x{width})'}."
            )

    # ---- Compared

    def reference(self, sense: Any, values: np.ndarray, pad_token_id: int) -> int:
        """Side of the patches in which pixels count as moving together."""
        return sense.patch_size

    def measures(self, predicted: Tensor, true: Tensor, last_seen: Tensor, reference: int) -> Measures:
        from pan_hf import metrics

        measures = {"psnr": metrics.psnr(predicted, true), "ssim": metrics.ssim(predicted, true)}
        measures["psnr_moving"] = "psnr", self.moving_error(predicted, true, last_seen, reference)
        measures["exact_frame"] = metrics.mean_of(metrics.exact_frames(predicted, true))
        return {key: value for key, value in measures.items() if value is not None}

    def moving_error(self, predicted: Tensor, true: Tensor, last_seen: Tensor, reference: int) -> Tensor:
        from pan_hf import metrics

        return metrics.moving_error(predicted, true, metrics.changed_pixels(last_seen, true, reference))

    def reconstruction(self, rebuilt: Tensor, true: Tensor) -> Measures:
        from pan_hf import metrics

        return {
            "reconstruction_psnr": metrics.psnr(rebuilt, true),
            "reconstruction_exact_frame": metrics.mean_of(metrics.exact_frames(rebuilt, true)),
        }

    def error(self, predicted: Tensor, true: Tensor) -> Tensor:
        from pan_hf import metrics

        return metrics.psnr(predicted, true)[1][:, 0]

    # ---- Shown

    def to_frames(self, values: Tensor) -> np.ndarray:
        return to_rgb(values)

    def words(self) -> str:
        return "{}x{}x{} image, uint8".format(*self.description["shape"])

    @classmethod
    def sense_words(cls, config: Mapping[str, Any]) -> str:
        return "{height}x{width} image".format(**config)

    @classmethod
    def blank_sense(cls, config: Mapping[str, Any]) -> str:
        return "np.zeros(({height}, {width}, {channels}), np.uint8)".format(**config)

    # ---- Mirrored

    def needs_mirror_rule(self, has_swaps: bool) -> bool:
        return False

    def check_mirror(self, name: str, flips: Sequence[str]) -> None:
        height, width, _ = self.description["shape"]
        if "diagonal" in flips and height != width:
            shape = self.description["shape"]
            raise ValueError(f"{name} is {shape}, and only squares have a diagonal flip; leave it out")

    def mirrored(self, values: list, flips: Sequence[str], rule: Any) -> list:
        return [_flipped(value, flips) for value in values]


def _flipped(picture: np.ndarray, flips: Sequence[str]) -> np.ndarray:
    """`(H, W, C)`."""
    flipped = picture[:: -1 if "vertical" in flips else 1, :: -1 if "horizontal" in flips else 1]
    return np.ascontiguousarray(flipped.swapaxes(0, 1) if "diagonal" in flips else flipped)


def _patches(name: str, height: int, width: int) -> dict[str, int]:
    """A patch size that tiles the picture with about 64 cells, four of them a patch token; where only odd patches do,
    tiles of 8 pixels if these fit, as in grid worlds, or a cell a patch token."""

    def fitting(merge: int, most: int) -> list[tuple[bool, int, int]]:
        sizes = (
            size
            for size in range(2, min(height, width) + 1)
            if not (height % (merge * size) or width % (merge * size))
        )
        cells = {size: (height // size) * (width // size) for size in sizes}
        return [(size % 8 != 0, abs(number - 64), size) for size, number in cells.items() if 16 <= number <= most]

    fours = fitting(2, 256)
    best = min((each[1:] for each in fours), default=None)
    if best is not None and best[1] % 2 == 0:
        return {"patch_size": best[1]}
    singles = fitting(1, 400)
    if not singles:
        raise ValueError(
            f"Sense {name!r}: no patch size tiles {height}x{width} pixels in 16 to 400 cells; record with "
            "`--image-size 64` (or any multiple of 16)."
        )
    is_other, _, size = min(singles)
    if best is not None and is_other:
        return {"patch_size": best[1]}
    return {"patch_size": size, "spatial_merge_size": 1}
