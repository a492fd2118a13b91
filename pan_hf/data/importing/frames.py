"""Frames of video files, one after another, by PyAV, and pictures as tables hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path

import numpy as np

from pan_hf.extras import extra
from pan_hf.images import read_picture

Root = Path | Sequence[Path] | None
"""Where the files lie that a table names, see `as_image`."""


def read_frames(
    path: Path, times: Sequence[float] | None = None, fps: float | None = None, resample: bool = False
) -> Iterator[np.ndarray]:
    """Frames of a video, uint8 `(height, width, 3)`, decoded as they are asked for.

    Args:
        path: the file.
        times: seconds into the video of the frames that are wanted, ascending; every frame when None.
        fps: frames a second; what the video says when None.
        resample: where the video has no frame within half a step, take the one before.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: the file is no video, has no frame at one of `times`, or its frames are not one step apart.
    """
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        step = 1 / float(fps or stream.average_rate or 1)
        if times is not None and len(times) and times[0] > 0:
            container.seek(int(times[0] / stream.time_base), stream=stream)
        frames = ((frame.time, frame) for frame in container.decode(stream))
        wanted = _each(path, frames, step) if times is None else _at(path, frames, times, step, resample)
        yield from (frame.to_ndarray(format="rgb24") for frame in wanted)


def _each(path: Path, frames: Iterator[tuple], step: float) -> Iterator:
    before = None
    for row, (time, frame) in enumerate(frames):
        # order is not time: where a frame was dropped, those behind it are of a later moment
        if before is not None and time is not None and abs(time - before - step) > step / 2:
            raise ValueError(
                f"{path}: frame {row} is shown {time - before:.3f} s after the one before, expected {step:.3f} s; "
                f"bring the video to one rate (ffmpeg -r {1 / step:g}), and its actions with it"
            )
        before = time
        yield frame


def _at(path: Path, frames: Iterator[tuple], times: Sequence[float], step: float, resample: bool) -> Iterator:
    end = (inf, None)
    shown, (time, frame) = None, next(frames, end)
    for row, wanted in enumerate(times):
        while time is not None and time < wanted - step / 2:
            shown, (time, frame) = frame, next(frames, end)
        if time is None or time <= wanted + step / 2:
            shown, (time, frame) = frame, next(frames, end)
        elif not resample and frame is None:
            raise ValueError(
                f"{path} has {row} frames from {times[0]:.3f} s on, and {len(times)} are needed; frames are missing "
                "in the video. resample (--resample) repeats the one before"
            )
        elif not resample:
            raise ValueError(
                f"{path} has no frame at {wanted:.3f} s, row {row} of the episode; the next is at {time:.3f} s. A "
                "frame was dropped: resample (--resample) repeats the one before"
            )
        shown = frame if shown is None else shown
        if shown is None:
            raise ValueError(f"{path} has no frame from {times[0]:.3f} s on")
        yield shown


def count_frames(path: Path) -> int:
    """How many frames a video has, without decoding them; see `read_frames` for what is raised."""
    with _opened(path) as (container, stream):
        return stream.frames or sum(packet.size > 0 for packet in container.demux(stream))


def frame_rate(path: Path) -> float:
    """Frames a second of a video; see `read_frames` for what is raised."""
    with _opened(path) as (_, stream):
        return float(stream.average_rate)


@contextmanager
def _opened(path: Path) -> Iterator[tuple]:
    """A container and its first stream of frames."""
    with extra("data", "Reading videos"):
        import av
    try:
        with av.open(str(path)) as container:
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a video ({error}); record it again or leave it out") from error


def as_image(stored: Mapping, root: Root = None) -> np.ndarray:
    """A picture as parquet files hold it, `{"bytes", "path"}`, see `read_picture`.

    Args:
        root: folder that paths lie in, or one of several; where it is None, any.

    Raises:
        ValueError, OSError: it is no picture, or lies elsewhere.
    """
    if stored.get("bytes") is not None:
        return read_picture(stored["bytes"])
    if not isinstance(stored.get("path"), str):
        raise ValueError("expected a picture's bytes or the path of its file, got neither; leave the row out")
    roots = [root] if isinstance(root, Path) else list(root or ())
    path = Path(*roots[:1], stored["path"])
    if roots and not any(path.resolve().is_relative_to(each.resolve()) for each in roots):
        where = " and ".join(map(str, roots))
        raise ValueError(f"the picture {stored['path']!r} lies outside {where}, and a table may name what lies inside")
    if not path.is_file():
        raise ValueError(f"the picture {path} is missing; copy the data again, or leave the column out with map")
    return read_picture(path)
