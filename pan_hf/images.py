"""Pictures in whatever layout they come become uint8 `(height, width, 3)` colours, or uint16 `(height, width, 1)`
where their numbers are no colours, such as depth. What is neither is said before anything is recorded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

# An array is taken for a picture from this many pixels a side, unless it is uint8 with channels.
_LEAST_SIDE = 8
# What floats of a picture may lie within, so that it is known how bright they are.
_FLOAT_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
DEEP_BITS = 16
DEEP_HIGH = 2**DEEP_BITS - 1

# Formats that are opened at all. Pillow knows some that run other programs (EPS starts Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MOST_PIXELS = 2**26
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

# A picture that is lit has numbers beyond these; the symbols of grid worlds are numbered from 0 (MiniGrid has 11).
_MOST_SYMBOLS = 31
WIDEST_GRID = 32  # cells
_SPACE, _LAST_LETTER = 32, 126  # of ASCII, what is printed


@dataclass(frozen=True)
class Layout:
    """How an array holds a picture.

    Args:
        axes: `"HWC"`, `"CHW"` or `"HW"`.
        low, high: what is black and what is white, of colours.
        is_deep: whether its numbers are no colours.
    """

    axes: str
    low: float = 0.0
    high: float = 255.0
    is_deep: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether its numbers are the colours that are kept, of 0 to 255."""
        return (self.low, self.high) == (0, 255)

    def size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of an array of that shape."""
        return shape[self.axes.index("H")], shape[self.axes.index("W")]


def picture_layout(shape: tuple[int, ...], dtype: np.dtype, low: float, high: float) -> Layout | None:
    """How an array holds a picture, or None where it holds none.

    Args:
        shape, dtype: of the array.
        low, high: what its numbers lie within, as far as is known: bytes from 0 to 1 are black and white, those to
            another number than 255 no colours.

    Raises:
        ValueError: it has the shape of a picture, and it is not known what its numbers mean.
    """
    is_bytes, is_big = dtype == np.uint8, sorted(shape)[-2:-1] >= [_LEAST_SIDE]  # the shorter side, without channels
    if len(shape) == 2 and is_big and dtype in (np.uint8, np.uint16):
        return _of_bytes("HW", shape, high) if is_bytes else Layout("HW", is_deep=True)
    if len(shape) != 3 or not (is_bytes or is_big):
        return None
    axes = "HWC" if shape[2] in (1, 3) else "CHW" if shape[0] in (1, 3) else None
    if is_bytes:
        if axes is None:
            raise ValueError(f"an image has 1 or 3 channels, first or last, got shape {shape}")
        return _of_bytes(axes, shape, high)
    num_channels = min(shape[0], shape[2])
    if axes is None or min(Layout(axes).size(shape)) < _LEAST_SIDE:
        return None
    if dtype.kind == "f" and (low, high) in _FLOAT_RANGES or dtype.kind in "iu" and (low, high) == (0, 255):
        return Layout(axes, low, high)
    if num_channels == 1:
        return Layout(axes, is_deep=True)
    raise ValueError(
        f"{dtype} from {low:g} to {high:g} of shape {shape} looks like a picture, and it is not known which numbers "
        "are black and white. Make it uint8, or floats within 0..1, -1..1 or 0..255, by a wrapper (of gymnasium: "
        "gymnasium.wrappers:RescaleObservation?min_obs=0&max_obs=1) or in the data"
    )


def _of_bytes(axes: str, shape: tuple[int, ...], high: float) -> Layout:
    """A layout of uint8. Args: high, the largest number that is declared."""
    if high not in (1, 255):
        raise ValueError(
            f"uint8 of shape {shape} that is declared from 0 to {high:g} holds symbols, not colours, which go to 255. "
            "Draw them as colours, or name the observation in symbols (--symbols NAME); if they are grey levels or "
            f"colours, {_as_floats(shape)}"
        )
    return Layout(axes, high=high)


def _as_floats(shape: tuple[int, ...]) -> str:
    """How bytes are declared to be colours: nobody keeps symbols or letters as floats from 0 to 1."""
    if sorted(shape)[-2] < _LEAST_SIDE:
        return (
            f"make them {_LEAST_SIDE} pixels high and wide or larger, and floats within 0..1, by a wrapper of your own"
        )
    wrappers = ["DtypeObservation?dtype=float32", "RescaleObservation?min_obs=0&max_obs=1"]
    if len(shape) == 2:  # floats without channels are a matrix
        wrappers.append(f"ReshapeObservation?shape=({shape[0]},{shape[1]},1)")
    options = " ".join(f"--wrapper 'gymnasium.wrappers:{wrapper}'" for wrapper in wrappers)
    return f"make them floats within 0..1: {options}, a wrapper of your own, or in the data"


def _channels_last(value: np.ndarray, layout: Layout) -> np.ndarray:
    value = value.transpose({"HWC": (0, 1, 2), "CHW": (1, 2, 0), "HW": (0, 1)}[layout.axes])
    return value.reshape(*value.shape[:2], -1)


def as_rgb(value: np.ndarray, layout: Layout) -> np.ndarray:
    """A picture of that layout as contiguous uint8 `(height, width, 3)`.

    Raises:
        ValueError: numbers outside what the layout says, or NaN.
    """
    if value.dtype != np.uint8 or not layout.is_plain:
        if not (np.all(value >= layout.low) and np.all(value <= layout.high)):  # NaN fails this too
            raise ValueError(
                f"expected an image in [{layout.low:g}, {layout.high:g}], got NaN or values outside it: "
                f"{np.min(value):g} to {np.max(value):g}"
            )
        value = np.round((value - layout.low) * (255 / (layout.high - layout.low))).astype(np.uint8)
    value = _channels_last(value, layout)
    return np.ascontiguousarray(np.broadcast_to(value, (*value.shape[:2], 3)))


def as_deep(value: np.ndarray, layout: Layout, scale: float | None) -> np.ndarray:
    """Depth and the like as contiguous uint16 `(height, width, 1)`.

    Args:
        scale: what numbers are multiplied with to be whole; whole numbers need none.

    Raises:
        ValueError: floats without a scale, NaN, or numbers outside 16 bits.
    """
    if scale is None and value.dtype.kind == "f":
        raise ValueError(
            f"floats from {np.min(value):g} to {np.max(value):g} in a picture of one channel, such as depth, are kept "
            "as whole numbers: say what to multiply them with, as depth_scale=1000, depth_unit='mm' for metres "
            "(--depth-scale 1000 --depth-unit mm)"
        )
    whole = value if scale is None else np.round(value * scale)
    if not (np.all(whole >= 0) and np.all(whole <= DEEP_HIGH)):  # NaN fails this too
        raise ValueError(
            f"expected numbers in 0..{DEEP_HIGH} of a picture such as depth, got {np.min(whole):g} to "
            f"{np.max(whole):g}; choose another depth_scale, and give what was not measured a number"
        )
    return np.ascontiguousarray(_channels_last(whole, layout).astype(np.uint16))


def are_symbols(value: np.ndarray) -> bool:
    """Whether whole numbers in the shape of a picture are a grid of symbols, such as MiniGrid's `image`, whose space
    says 0 to 255, as those of colours do: it is small, and its numbers are those of nothing that is lit."""
    if (
        value.ndim not in (2, 3)
        or value.dtype.kind not in "iu"
        or not 0 < value.size
        or max(value.shape) > WIDEST_GRID
    ):
        return False
    return len(np.unique(value)) > 1 and value.min() >= 0 and value.max() <= _MOST_SYMBOLS


def has_picture_shape(shape: tuple[int, ...]) -> bool:
    """Whether bytes of this shape are a picture, as far as that tells."""
    return (
        len(shape) == 3 and (shape[2] in (1, 3) or shape[0] in (1, 3)) or len(shape) == 2 and min(shape) >= _LEAST_SIDE
    )


def taken_as_symbols(value: np.ndarray) -> str:
    """What is said of such a grid; what else can be done goes on behind it."""
    shape = "x".join(map(str, value.shape))
    return f"{shape} whole numbers up to {value.max()} are taken as symbols, not as colours;"


def check_colours(image: np.ndarray) -> None:
    """Raises ValueError for a grid of symbols or of letters (NetHack's `chars`), whose spaces say 0 to 255: a model
    would take neighbouring numbers for similar colours."""
    if are_symbols(image):
        raise ValueError(
            f"{image.shape} with numbers up to {image.max()} is a grid of symbols, not of colours. Name the "
            f"observation in symbols (--symbols NAME). If they are dark colours, {_as_floats(image.shape)}"
        )
    is_printed = image.ndim == 2 and image.min() >= _SPACE and image.max() <= _LAST_LETTER
    if is_printed and 0.5 < np.mean(image == _SPACE) < 1:
        raise ValueError(
            f"{image.shape} with numbers from {image.min()} to {image.max()}, most of them {_SPACE}, is a grid of "
            f"letters, not of colours. Draw them as colours, or name the observation in symbols (--symbols NAME). If "
            f"they are grey levels, {_as_floats(image.shape)}"
        )


def fit(image: np.ndarray, size: int | None, crop: bool = False) -> np.ndarray:
    """A picture `(H, W, C)`, cut to its middle square where `crop` says so, brought to `(size, size, C)`; untouched
    when it has that size or no size is asked for. Colours are averaged over areas; of depth the nearest is taken,
    since the mean of two distances is none that was measured."""
    if crop:
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        image = np.ascontiguousarray(image[top : top + side, left : left + side])
    if size is None or image.shape[:2] == (size, size):
        return image
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
    rows, columns = ((np.arange(size) + 0.5) * side / size for side in image.shape[:2])
    return np.ascontiguousarray(image[rows.astype(int)][:, columns.astype(int)])


def fitted_shape(height: int, width: int, size: int | None, crop: bool = False) -> tuple[int, int]:
    """Height and width that `fit` gives a picture."""
    side = min(height, width) if crop else None
    return size or side or height, size or side or width


def read_picture(
    source: bytes | Path, formats: tuple[str, ...] = FORMATS, size: tuple[int, int] | None = None
) -> np.ndarray:
    """A picture's pixels; its format and its size are looked at before they are read.

    Args:
        source: of a file, or the file.
        formats: that are opened.
        size: height and width that it must have.

    Returns:
        uint8 `(height, width, 3)`; `(height, width, 1)` of a picture of more than 8 bits, such as depth.

    Raises:
        OSError: it is of no such format, or damaged. ValueError: its size, or transparent pixels.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise ValueError(f"the picture is too large: {error}") from error
    with image:
        if size is not None and (image.height, image.width) != size:
            raise ValueError(f"a picture of {image.height}x{image.width} pixels, expected {size[0]}x{size[1]}")
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"a picture of {image.height}x{image.width} pixels, expected at most {MOST_PIXELS}")
        return pixels(image)


def pixels(image: Image.Image) -> np.ndarray:
    """A PIL picture as an array, see `read_picture`."""
    if image.mode == "RGB":
        return np.asarray(image)
    if image.mode.startswith(("I", "F")):  # Pillow's modes of more than 8 bits; as colours they would all be white
        return np.asarray(image)[..., None]
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError(
            f"the picture (mode {image.mode}) is transparent in places, which RGB cannot say; paste it onto a "
            "background first (PIL.Image.alpha_composite)"
        )
    return np.asarray(image.convert("RGB"))


def encode_png(image: np.ndarray) -> bytes:
    """A uint8 `(H, W, 3)` or uint16 `(H, W, 1)` image as PNG, packed for speed rather than size."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.dtype == np.uint16 else image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def to_rgb(frames: Tensor) -> np.ndarray:
    """Frames of a model `(T, channels, H, W)` -> RGB `(T, H, W, 3)`; one channel is repeated, those past three left
    out."""
    rgb = frames.expand(-1, 3, -1, -1) if frames.shape[1] == 1 else frames[:, :3]
    return rgb.permute(0, 2, 3, 1).cpu().numpy()
