"""Makes the README's film of a finished run: a held-out episode, and beside it what the model dreams of it.

python docs/film.py --run runs/quickstart --output docs/results/quickstart/dream.webp

The film shows the strip of median error, which `pan evaluate` chose by rank and never by eye. The model sees the first
frame and the true actions; every later frame on its side is imagined.
"""

import argparse
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pan_hf.files import write_file
from pan_hf.reporting.figures import Strip, load_strip

SIDE = 320  # pixels of an enlarged frame: five times 64, so that each pixel of the model is one square
MARGIN, HEAD, FOOT = 16, 36, 40
INK, SOFT, WRONG = "#1f2933", "#6b7280", "#c2410c"
FRAME_MS, HOLD_MS = 650, 2000


def median_strip(run: Path) -> Path:
    """The strip of median error of a run, of DoorKey where the run has it.

    Raises:
        FileNotFoundError: the run has no strips.
    """
    folder = run / "report" / "strips"
    found = sorted(folder.glob("*DoorKey*median.npz")) or sorted(folder.glob("*median.npz"))
    if not found:
        raise FileNotFoundError(f"{folder} has no strip of median error. Run `pan evaluate --run {run}` first.")
    return found[0]


def write_film(strip: Strip, path: Path) -> Path:
    """Writes a strip as an endless, lossless animated WebP: the world on the left, the dream on the right."""
    frames = [_frame(strip, step) for step in range(len(strip))]
    durations = [HOLD_MS, *[FRAME_MS] * (len(frames) - 2), HOLD_MS]
    buffer = io.BytesIO()
    options = {"append_images": frames[1:], "duration": durations, "loop": 0, "lossless": True, "method": 6}
    frames[0].save(buffer, "WEBP", save_all=True, **options)
    return write_file(path, buffer.getvalue())


def _frame(strip: Strip, step: int) -> Image.Image:
    """One moment: both frames under their names, and below them the step, the action into it and the verdict."""
    size = (2 * SIDE + 3 * MARGIN, HEAD + SIDE + FOOT)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(20), ImageFont.load_default(17)
    number, action = strip.steps()[step]
    verdict = strip.verdicts()[step]
    for x, name, frames in ((MARGIN, "the world", strip.real), (SIDE + 2 * MARGIN, "the dream", strip.imagined)):
        draw.text((x, 8), name, fill=INK, font=large)
        picture.paste(_enlarged(frames[step]), (x, HEAD))
    line = HEAD + SIDE + 10
    caption = f"step {number} of {len(strip) - 1}: {action}" if verdict else "start: the model sees this frame"
    draw.text((MARGIN, line), caption, fill=SOFT, font=small)
    is_wrong = verdict not in ("", "exact")
    judged = f"not exact, {verdict}" if is_wrong else verdict
    draw.text((SIDE + 2 * MARGIN, line), judged, fill=WRONG if is_wrong else SOFT, font=small)
    return picture


def _enlarged(frame: np.ndarray) -> Image.Image:
    return Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def strip_picture(strip: Strip, path: str | os.PathLike, cell: int = 96) -> Path:
    """Writes a strip as one labelled PNG, for a README.

    Args:
        cell (`int`): width of a frame in the picture; frames are enlarged by the largest whole factor that fits.
    """
    scale = max(1, cell // strip.real.shape[2])
    height, width = scale * strip.real.shape[1], scale * strip.real.shape[2]
    rows, margin, line, gap = strip.rows(), 92, 16, 4
    size = (margin + len(strip) * (width + gap), 2 * line + len(rows) * (height + gap) + line)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)

    def write(x: int, y: int, text: str, colour: str = "#222222") -> None:
        while text and draw.textlength(text, font=font) > width and x >= margin:
            text = text[:-1]
        draw.text((x, y), text, fill=colour, font=font)

    for index, ((number, action), verdict) in enumerate(zip(strip.steps(), strip.verdicts(), strict=True)):
        x = margin + index * (width + gap)
        write(x, 0, number)
        write(x, line, action, "#777777")
        write(x, size[1] - line, verdict, "#777777")
    for index, (label, frames) in enumerate(rows):
        y = 2 * line + index * (height + gap)
        write(0, y + height // 2 - line // 2, label)
        for step, frame in enumerate(frames):
            enlarged = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(enlarged, (margin + step * (width + gap), y))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return write_file(path, buffer.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run that was evaluated")
    parser.add_argument("--output", type=Path, help="dream.webp in the run by default")
    given = parser.parse_args()
    film = write_film(load_strip(median_strip(given.run)), given.output or given.run / "dream.webp")
    print(f"Done. See {film}, {film.stat().st_size / 1000:.0f} kB")
