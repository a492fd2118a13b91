"""Frames of video files, one after another, by PyAV, and pictures as parquet files hold them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from pan_hf.extras import extra


def read_frames(path: Path, begin: float = 0.0, count: int | None = None, fps: float | None = None) -> Iterator:
    """Frames of a video, uint8 `(height, width, 3)`, decoded as they are asked for.

    Args:
        path: the file.
        begin: seconds into the video at which the first frame is shown.
        count: how many frames, all to the end when None.
        fps: frames a second; what the video says when None.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: the file is no video, or has fewer frames than `count` from there on.
    """
    given = 0
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        early = begin - 0.5 / float(fps or stream.average_rate or 1)  # a frame's time may be rounded down
        if begin:
            container.seek(int(begin / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time is None or frame.time >= early:
                if given == count:
                    return
                given += 1
                yield frame.to_ndarray(format="rgb24")
    if count is not None and given < count:
        raise ValueError(
            f"{path} has {given} frames from {begin:.3f} s on, and {count} are needed; frames are missing in the video"
        )


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


def as_image(stored: dict, root: Path) -> np.ndarray:
    """A picture as parquet files hold it, `{"bytes", "path"}`, as uint8 `(height, width, 3)`."""
    with Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else root / stored["path"]) as image:
        return np.asarray(image.convert("RGB"))
