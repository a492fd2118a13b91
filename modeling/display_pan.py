"""What a notebook shows of tensors that are long: a few lines of text, a strip of frames, a film.

Pictures are enlarged by the browser (`image-rendering: pixelated`), so one pixel of the model is one square on the
screen.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from .validation_pan import real

if TYPE_CHECKING:
    from .modeling_pan import PanModel

SHOWN_STEPS = 16  # frames of a strip; a longer future is thinned
SIDE = 96  # pixels of a frame's shorter side on the screen, at least


def code_shapes(codes: Mapping[str, list[Tensor]]) -> str:
    """`camera 16+64, joints 4+4`: how many codes each sense has a level."""
    return ", ".join(f"{name} {'+'.join(str(level.shape[-1]) for level in levels)}" for name, levels in codes.items())


def to_rgb(frames: Tensor) -> Tensor:
    """Pictures uint8 `(T, C, H, W)` -> `(T, H, W, 3)`: one channel is repeated, those past three are left out."""
    rgb = frames.expand(-1, 3, -1, -1) if frames.shape[1] == 1 else frames[:, :3]
    return rgb.permute(0, 2, 3, 1).cpu()


def strip_html(rows: Mapping[str, Tensor], caption: str) -> str:
    """A caption and a labelled strip for each row of frames, as HTML that needs no other file.

    Args:
        rows: label -> pictures uint8 `(T, C, H, W)`; at most [`SHOWN_STEPS`] of them are shown, evenly spaced.
        caption (`str`): plain text.
    """
    parts = [f"<pre>{html.escape(caption)}</pre>"]
    for label, frames in rows.items():
        count = min(len(frames), SHOWN_STEPS)
        steps = torch.linspace(0, len(frames) - 1, count).round().long()
        strip = torch.cat(list(to_rgb(frames[steps])), 1)
        width = strip.shape[1] * max(1, round(SIDE / min(frames.shape[-2:])))
        parts.append(
            f"<div>{html.escape(label)}, steps {', '.join(str(int(step) + 1) for step in steps)}</div>"
            f'<img style="image-rendering: pixelated; width: {width}px; max-width: 100%" alt="{html.escape(label)}" '
            f'src="{_data_uri(Image.fromarray(strip.numpy()), "PNG")}">'
        )
    return "\n".join(parts)


class Film:
    """Frames as a film: shows itself in a notebook, and is saved as an animated WebP.

    Args:
        frames: pictures uint8 `(T, C, H, W)`.
        fps (`float`): frames a second.

    Raises:
        ValueError: frames of another shape, or a rate that is not positive.
    """

    def __init__(self, frames: Tensor, fps: float = 4.0):
        if frames.ndim != 4 or frames.dtype != torch.uint8 or not len(frames):
            raise ValueError(f"A film takes uint8 frames (T, C, H, W), got {frames.dtype} {tuple(frames.shape)}.")
        self.fps = real("fps", fps, 0, above=True)
        scale = max(1, round(2 * SIDE / min(frames.shape[-2:])))
        size = (frames.shape[-1] * scale, frames.shape[-2] * scale)
        self._images = [
            Image.fromarray(frame.numpy()).resize(size, Image.Resampling.NEAREST) for frame in to_rgb(frames)
        ]

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        width, height = self._images[0].size
        return f"Film({len(self)} frames of {width}x{height}, {self.fps:g} a second)"

    def save(self, path: str | Path) -> Path:
        """Writes the film; `path` ends in `.webp` or `.gif`.

        Raises:
            ValueError: another ending.
        """
        path = Path(path)
        if path.suffix not in (".webp", ".gif"):
            raise ValueError(f"A film is saved as .webp or .gif, got {path.name!r}.")
        path.write_bytes(self._encoded(path.suffix[1:].upper()))
        return path

    def _encoded(self, kind: str) -> bytes:
        buffer = io.BytesIO()
        first, *rest = self._images
        settings = {"duration": round(1000 / self.fps), "loop": 0, "save_all": True, "append_images": rest}
        first.save(buffer, kind, **settings, **({"lossless": True} if kind == "WEBP" else {}))
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        encoded = base64.b64encode(self._encoded("WEBP")).decode()
        return f'<img alt="{self!r}" src="data:image/webp;base64,{encoded}">'


def _data_uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture_senses(model: PanModel) -> list[str]:
    """The senses whose observations can be looked at: those on a grid."""
    return [name for name, sense in model.config.coded_senses.items() if sense.is_grid]


def as_pictures(model: PanModel, sense: str, values: Tensor) -> Tensor:
    """Observations `(..., *shape)` of a sense as uint8 `(..., C, H, W)` to look at."""
    return model.senses[sense].to_picture(values)
