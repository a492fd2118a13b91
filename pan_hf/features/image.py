"""Images: uint8 RGB frames, or pictures such as depth in 16 bits, kept as PNG, one a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pan_hf.features.base import Feature, Form, Measures, View, register_feature
from pan_hf.images import (
    DEEP_BITS,
    DEEP_HIGH,
    WIDEST_GRID,
    Layout,
    as_deep,
    as_rgb,
    check_colours,
    encode_png,
    fit,
    fitted_shape,
    picture_layout,
    read_picture,
    to_rgb,
)

if TYPE_CHECKING:
    from gymnasium import spaces
    from torch import Tensor


@register_feature
class ImageFeature(Feature):
    """`{"kind": "image", "shape": [height, width, 3], "unit": "uint8 RGB"}`.

    Of pictures such as depth the numbers are no colours: `{"kind": "image", "shape": [height, width, 1], "bits": 16,
    "low": L, "high": H, "unit": "mm"}`. The bounds are those of what was recorded, None until that is known.
    """

    kind = "image"
    bare_name = "camera"
    is_picture = True
    card_fields = ("height", "width", "channels", "bits", "low")

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> ImageFeature:
        """The feature of colours `(height, width, 3)`."""
        return cls({"kind": cls.kind, "shape": list(shape), "unit": "uint8 RGB"})

    @classmethod
    def describe(cls, part: Any) -> dict[str, Any]:
        described = cls.of_shape((part.height, part.width, part.channels)).description
        if getattr(part, "bits", 8) == 8:
            return described
        low, high = part.value_range
        return described | {"bits": part.bits, "low": low, "high": high, "unit": part.unit or ""}

    @property
    def is_deep(self) -> bool:
        """Whether its numbers are no colours, and may have more than 8 bits."""
        return self.description.get("bits", 8) > 8

    # ---- From an environment or a table

    @classmethod
    def from_space(cls, space: spaces.Space, view: View) -> Form | None:
        from gymnasium.spaces import Box

        if not isinstance(space, Box):
            return None
        try:
            layout = picture_layout(space.shape, space.dtype, float(space.low.min()), float(space.high.max()))
        except ValueError as error:
            raise ValueError(
                f"{space}: {error}; choose or merge channels with a wrapper, or leave the sense out with keep"
            ) from error
        return None if layout is None else cls._form(space.shape, space.dtype, layout, view)

    @classmethod
    def from_value(cls, value: Any, view: View) -> Form | None:
        if isinstance(value, str) or not value.size:
            return None
        # what bytes lie within is not told by the first ones
        low, high = (0.0, 255.0) if value.dtype == np.uint8 else (float(value.min()), float(value.max()))
        if value.dtype.kind == "f" and value.ndim == 3:  # what the first one lies in says what all do
            is_deep = view.depth_scale is not None and 1 in (value.shape[0], value.shape[2])
            low, high = (0.0, 1.0) if low >= 0 and high <= 1 and not is_deep else (low, high)
        try:
            layout = picture_layout(value.shape, value.dtype, low, high)
            if layout is None:
                return None
            form = cls._form(value.shape, value.dtype, layout, view)
            form.convert(value)  # what is no picture is said before anything is imported
            form.check(value)
        except ValueError as error:
            raise ValueError(f"{error}; or leave the column out with map COLUMN=") from error
        return form

    @classmethod
    def _form(cls, shape: tuple[int, ...], dtype: np.dtype, layout: Layout, view: View) -> Form:
        """Converts pictures of one layout: of one size, too, where none is asked for.

        Args:
            shape, dtype: as was declared, or as the first one has.
        """

        def convert(value: Any) -> np.ndarray:
            value = np.asarray(value)
            is_resized = view.image_size is not None and value.ndim == len(shape)
            if value.dtype != dtype and not (dtype.kind == value.dtype.kind == "f"):
                raise ValueError(f"expected a picture of {dtype}, got {value.dtype}")
            if value.shape != shape and not is_resized:
                raise ValueError(
                    f"expected a picture like the first, {dtype} of shape {shape}, got {value.dtype} of "
                    f"{value.shape}; bring pictures to one size with image_size (--image-size)"
                )
            picture = as_deep(value, layout, view.depth_scale) if layout.is_deep else as_rgb(value, layout)
            return fit(picture, view.image_size, view.crop)

        size = fitted_shape(*layout.size(shape), view.image_size, view.crop)
        described = cls.of_shape((*size, 3)).description
        if layout.is_deep:
            described = {"kind": cls.kind, "shape": [*size, 1], "unit": view.depth_unit}
            described |= {"bits": DEEP_BITS, "low": None, "high": None}
            return Form(described, convert)
        # nobody declares symbols as floats, or as two colours; and whoever was asked has said that these are none
        if not layout.is_plain or view.symbols is False:
            return Form(described, convert)
        # of the first one only: a world may well turn dark
        is_small = max(shape) <= WIDEST_GRID
        return Form(described, convert, lambda value: check_colours(np.asarray(value)), may_be_symbols=is_small)

    def space(self) -> spaces.Space:
        from gymnasium.spaces import Box

        high, dtype = (DEEP_HIGH, np.uint16) if self.is_deep else (255, np.uint8)
        return Box(0, high, tuple(self.description["shape"]), dtype)

    # ---- To and from parquet

    def column_type(self) -> Any:
        import datasets

        return datasets.Image()

    def stored(self, value: Any) -> Any:
        return {"bytes": encode_png(value), "path": None}

    def blank(self) -> np.ndarray:
        low = self.description.get("low") or 0
        return np.full(self.description["shape"], low, self.row_dtype)

    def num_bytes(self, value: Any) -> int:
        return len(encode_png(value))

    def read(self, column: pa.ChunkedArray) -> list[bytes]:
        self._check_type(column, pa.types.is_struct(column.type))
        return pc.struct_field(column, "bytes").to_pylist()

    @property
    def row_shape(self) -> tuple[int, ...]:
        height, width, channels = self.description["shape"]
        return channels, height, width

    @property
    def row_dtype(self) -> type:
        return np.uint16 if self.is_deep else np.uint8

    def decode(self, cell: Any) -> np.ndarray:
        height, width, channels = self.description["shape"]
        picture = read_picture(cell, ("PNG",), (height, width))  # what a recording holds is not ours alone to write
        if picture.shape[2] != channels:
            raise ValueError(f"expected {channels} channels, got {picture.shape[2]}")
        return picture.transpose(2, 0, 1)

    def recorded(self, rows: Any) -> list:
        return list(rows.transpose(0, 2, 3, 1))

    # ---- What a recording says of a column as a whole

    @property
    def is_measured(self) -> bool:
        return not self.is_deep or self.description["low"] is not None

    def summary(self, values: Sequence) -> list | None:
        """Smallest and largest number, where they are no colours."""
        return [int(np.min(values)), int(np.max(values))] if self.is_deep else None

    def joined(self, summaries: Sequence[list]) -> list:
        lowest, highest = zip(*summaries, strict=True)
        return [min(lowest), max(highest)]

    def bounded(self, name: str, summary: list) -> dict[str, Any]:
        """With the bounds of what was recorded: at least two numbers, for there to be a range."""
        low = min(summary[0], DEEP_HIGH - 1)
        return self.description | {"low": low, "high": max(summary[1], low + 1)}

    @property
    def common(self) -> dict[str, Any]:
        return {key: value for key, value in self.description.items() if key not in ("low", "high")}

    # ---- To a model

    def make_sense(self, name: str, values: np.ndarray, episode: np.ndarray, tokenizer: Any, options: dict) -> Any:
        from pan_hf.modeling import ImageSense

        channels, height, width = values.shape[1:]
        fields = {"height": height, "width": width, "channels": channels}
        if self.is_deep:
            fields |= {key: self.description[key] for key in ("bits", "low", "high")}
            fields["unit"] = self.description["unit"] or None
        patches = {} if "patch_size" in options else _patches(name, height, width)
        return ImageSense(**(fields | patches | options))

    def to_processor(self, values: np.ndarray) -> np.ndarray:
        return np.moveaxis(values, -3, -1)

    def check_sense(self, name: str, sense: Any, values: np.ndarray, processor: Any) -> None:
        shape, expected = tuple(values.shape[1:]), (sense.channels, sense.height, sense.width)
        if shape != expected:
            _, height, width = expected
            raise ValueError(
                f"Sense {name!r}: the recording has images of {shape}, the model sees {expected} (channels, "
                f"height, width); record with `--image-size {height}`"
                f"{'' if height == width else f' ({height}x{width})'}."
            )
        if self.is_deep:
            low, high = sense.value_range
            bounds = self.description["low"], self.description["high"]
            if bounds[0] < low or bounds[1] > high or (sense.unit or "") != self.description["unit"]:
                raise ValueError(
                    f"Sense {name!r}: the recording holds {bounds[0]} to {bounds[1]} {self.description['unit']}, the "
                    f"model sees {low} to {high} {sense.unit or ''}; record in the same unit and range."
                )

    # ---- Compared

    def _grey(self, frames: Tensor) -> Tensor:
        """Frames whose numbers are no colours as grey levels in [0, 255], float; others as they are."""
        if not self.is_deep:
            return frames
        low, high = self.description["low"], self.description["high"]
        return ((frames.float() - low) * (255 / (high - low))).clamp(0, 255)

    def reference(self, sense: Any, values: np.ndarray, pad_token_id: int) -> int:
        """Side of the patches in which pixels count as moving together."""
        return sense.patch_size

    def measures(self, predicted: Tensor, true: Tensor, last_seen: Tensor, reference: int) -> Measures:
        from pan_hf import metrics

        grey, true_grey = self._grey(predicted), self._grey(true)
        psnr = metrics.psnr(grey, true_grey)
        measures: dict[str, tuple[str, Tensor] | None] = {"psnr": psnr, "ssim": metrics.ssim(grey, true_grey)}
        measures["psnr_moving"] = "psnr", self.moving_error(predicted, true, last_seen, reference)
        exact = metrics.exact_frames(grey, true_grey)
        measures["exact_frame"] = metrics.mean_of(exact)
        measures["psnr_inexact"] = metrics.only_where(psnr, ~exact)
        if self.is_deep:  # in the unit of the recording
            measures["rmse"] = metrics.rmse(predicted.flatten(1).float(), true.flatten(1).float())
        return {key: value for key, value in measures.items() if value is not None}

    def moving_error(self, predicted: Tensor, true: Tensor, last_seen: Tensor, reference: int) -> Tensor:
        from pan_hf import metrics

        moving = metrics.changed_pixels(last_seen, true, reference)
        return metrics.moving_error(self._grey(predicted), self._grey(true), moving)

    def reconstruction(self, rebuilt: Tensor, true: Tensor) -> Measures:
        from pan_hf import metrics

        rebuilt, true = self._grey(rebuilt), self._grey(true)
        return {
            "reconstruction_psnr": metrics.psnr(rebuilt, true),
            "reconstruction_exact_frame": metrics.mean_of(metrics.exact_frames(rebuilt, true)),
        }

    def error(self, predicted: Tensor, true: Tensor) -> Tensor:
        from pan_hf import metrics

        return metrics.psnr(self._grey(predicted), self._grey(true))[1][:, 0]

    # ---- Shown

    def to_frames(self, values: Tensor) -> np.ndarray:
        return to_rgb(self._grey(values).byte() if self.is_deep else values)

    def words(self) -> str:
        size = "{}x{}x{} image".format(*self.description["shape"])
        if not self.is_deep:
            return f"{size}, uint8"
        low, high, unit = (self.description[key] for key in ("low", "high", "unit"))
        return f"{size}, {low} to {high} {unit}".rstrip()

    @classmethod
    def sense_words(cls, config: Mapping[str, Any]) -> str:
        return "{height}x{width} image".format(**config)

    @classmethod
    def blank_sense(cls, config: Mapping[str, Any]) -> str:
        if config.get("bits", 8) > 8:
            return "np.full(({height}, {width}, 1), {low}, np.uint16)".format(**{"low": 0, **config})
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
