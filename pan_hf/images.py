"""Pictures in whatever layout they come become uint8 `(height, width, 3)` of the size that is asked for."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

# A float array is taken for a picture, and an array without channels too, from this many pixels a side.
_LEAST_SIDE = 8


def picture_layout(shape: tuple[int, ...], dtype: np.dtype, is_unit: bool = False) -> str | None:
    """How an array holds a picture: `"HWC"`, `"CHW"` or `"HW"`, or None when it holds none.

    Args:
        shape, dtype: of the array; uint8 of three axes, or of two of at least 8 pixels.
        is_unit: whether its numbers lie in [0, 1]; floats of three axes then are a picture too.

    Raises:
        ValueError: uint8 of three axes, none of which are 1 or 3 channels.
    """
    is_bytes = dtype == np.uint8
    is_float = np.issubdtype(dtype, np.floating)
    if len(shape) == 3 and (is_bytes or (is_float and is_unit and sorted(shape)[1] >= _LEAST_SIDE)):
        if shape[2] in (1, 3):
            return "HWC"
        if shape[0] in (1, 3):
            return "CHW"
        if is_bytes:
            raise ValueError(f"an image has 1 or 3 channels, first or last, got shape {shape}")
    if len(shape) == 2 and is_bytes and min(shape) >= _LEAST_SIDE:
        return "HW"
    return None


def as_rgb(value: np.ndarray, layout: str) -> np.ndarray:
    """A picture of that layout, uint8 or float in [0, 1], as contiguous uint8 `(height, width, 3)`.

    Raises:
        ValueError: floats outside [0, 1], or NaN.
    """
    if np.issubdtype(value.dtype, np.floating):
        if not (np.all(value >= 0) and np.all(value <= 1)):  # NaN fails this too
            raise ValueError("expected an image in [0, 1], got NaN or values outside it")
        value = np.round(value * 255).astype(np.uint8)
    value = value.transpose({"HWC": (0, 1, 2), "CHW": (1, 2, 0), "HW": (0, 1)}[layout])
    height, width = value.shape[:2]
    return np.ascontiguousarray(np.broadcast_to(value.reshape(height, width, -1), (height, width, 3)))


def fit(image: np.ndarray, size: int | None, crop: bool = False) -> np.ndarray:
    """A uint8 `(H, W, 3)` picture, cut to its middle square where `crop` says so, area-averaged to `(size, size, 3)`;
    untouched when it has that size or no size is asked for."""
    if crop:
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        image = np.ascontiguousarray(image[top : top + side, left : left + side])
    if size is None or image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))


def fitted_shape(height: int, width: int, size: int | None, crop: bool = False) -> list[int]:
    """The shape that `fit` gives a picture of `height` and `width`."""
    side = min(height, width) if crop else None
    return [size or side or height, size or side or width, 3]


def encode_png(image: np.ndarray) -> bytes:
    """A uint8 `(H, W, 3)` image as PNG, packed for speed rather than size."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def to_rgb(frames: Tensor) -> np.ndarray:
    """Frames of a model `(T, channels, H, W)` -> RGB `(T, H, W, 3)`; one channel is repeated, those past three left
    out."""
    rgb = frames.expand(-1, 3, -1, -1) if frames.shape[1] == 1 else frames[:, :3]
    return rgb.permute(0, 2, 3, 1).cpu().numpy()
