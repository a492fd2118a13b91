"""A folder of videos with a CSV of actions: each video is an episode, each row of the CSV what was done at a frame.

    videos/door_0.mp4, videos/door_1.mp4, ...
    videos/actions.csv          video,action            one whole number or text a row, or
                                video,speed,turn        numbers that `map` joins to an action

Rows of a video stand in the order of its frames. A video of T + 1 frames needs T rows, or T + 1 of which the last is
left out, because what it led to is not in the video.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from pan_hf.arguments import checked
from pan_hf.data.importing.columns import TableSource, Taking
from pan_hf.data.importing.frames import count_frames, frame_rate, read_frames
from pan_hf.data.importing.writing import write_recording
from pan_hf.data.info import PICTURES
from pan_hf.features import View

CAMERA = "camera"
_SAME_RATE = 0.01  # 29.97 and 30 frames a second are one rate
_VIDEO = "video"


@checked(**PICTURES)
def import_videos(
    data: str | Path,
    output: str | Path,
    *,
    actions: str | Path | None = None,
    map: Mapping[str, str] | None = None,
    image_size: int | None = None,
    crop: bool = False,
    depth_scale: float | None = None,
    depth_unit: str = "",
    encoding: str = "utf-8",
    skip_short: bool = False,
    test_fraction: float = 0.1,
    progress: bool = True,
) -> dict:
    """Imports videos with the actions taken in them.

    Args:
        data: folder of the videos.
        output: folder of the recording, new or empty; it appears when all is there.
        actions: the CSV; `actions.csv` in the folder when None. Its column `video` names a file of the folder.
        map: column of the CSV -> `action`, `reward`, `done`, `truncated`, `task`, the name of a sense, or "" to leave
            it out. Columns of one name are joined in the order of `map`. The frames are the column `camera`.
        image_size: side in pixels that frames are averaged to; as they are when None.
        crop: cut frames to their middle square first.
        depth_scale: what numbers of a picture that are no colours, such as depth, are multiplied with to be whole
            numbers of 16 bits: 1000 makes metres millimetres. Whole numbers need none.
        depth_unit: the unit that they have then, e.g. `"mm"`.
        encoding: of the CSV.
        skip_short: leave out videos of fewer than two frames.
        test_fraction: share of the videos that is kept for testing, in [0, 0.5], or 1.
        progress: show it, on stderr.

    Returns:
        What `meta/info.json` holds.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError: the CSV or a video that it names is missing.
        ValueError: a column is missing or does not fit, or a video has more or fewer frames than rows; nothing is
            written then.
    """
    folder = Path(data)
    table = _VideoTable(folder, folder / "actions.csv" if actions is None else Path(actions), encoding)
    taking = Taking(View(image_size, crop, depth_scale, depth_unit))
    source = TableSource(table, {CAMERA: CAMERA, **(map or {})}, taking)
    return write_recording(source, output, test_fraction, progress, skip_short)


class _VideoTable:
    """See `columns.Table`."""

    def __init__(self, folder: Path, path: Path, encoding: str):
        self.root, self._path = folder, path
        self._table = _read_csv(path, encoding)
        if CAMERA in self._table.column_names:
            raise ValueError(f"{path}: the column {CAMERA!r} has the name of the videos' frames; call it otherwise")
        self.columns = [CAMERA, *(name for name in self._table.column_names if name != _VIDEO)]
        names = self._table[_VIDEO].to_pylist()
        self._names = list(dict.fromkeys(names))
        missing = [name for name in self._names if not (folder / str(name)).is_file()]
        if missing:
            raise FileNotFoundError(f"{path} names the videos {missing[:5]}, which are not in {folder}")
        rates = {name: frame_rate(folder / name) for name in self._names}
        self.fps = rates[self._names[0]]
        if other := next((name for name, rate in rates.items() if abs(rate / self.fps - 1) > _SAME_RATE), None):
            raise ValueError(
                f"{folder / other} has {rates[other]:g} frames a second, {self._names[0]} {self.fps:g}: one recording "
                f"has one rate. Bring them to one (ffmpeg -r {self.fps:g}) with their actions, or import them apart"
            )
        self.about: dict[str, Any] = {"kind": "videos", "path": str(folder), "actions": str(path)}
        self.about |= {"episodes": len(self), "rows": len(names)}
        for number, name in enumerate(self._names):
            self._check_length(number, names.count(name), count_frames(folder / name))

    def _check_length(self, number: int, num_rows: int, num_frames: int) -> None:
        if num_rows not in (num_frames - 1, num_frames):
            raise ValueError(
                f"{self.where(number)}: {self._path} has {num_rows} rows for it, and the video has {num_frames} "
                f"frames; expected a row for every frame, or for all but the last. "
                + ("Rows are missing in the CSV" if num_rows < num_frames else "Frames are missing in the video")
            )

    def __len__(self) -> int:
        return len(self._names)

    def where(self, number: int) -> str:
        return str(self.root / self._names[number])

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Iterable]:
        rows = self._table.filter(pc.equal(self._table[_VIDEO], self._names[number]))
        values: dict[str, Iterable] = {name: _values(rows[name]) for name in columns if name != CAMERA}
        if CAMERA in columns:
            values[CAMERA] = read_frames(self.root / self._names[number])
        return values

    def largest(self, column: str) -> int:
        return int(pc.max(self._table[column]).as_py())


def _values(column: pa.ChunkedArray) -> list:
    values = column.to_pylist()
    return values if pa.types.is_string(column.type) else [None if one is None else np.asarray(one) for one in values]


def _read_csv(path: Path, encoding: str) -> pa.Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a CSV with a row a frame, and a column {_VIDEO!r} of file names")
    try:
        table = csv.read_csv(path, csv.ReadOptions(encoding=encoding))
    except (pa.ArrowException, UnicodeError, LookupError) as error:
        raise ValueError(
            f"{path} cannot be read as a CSV in {encoding} ({error}); its first row names the columns, and encoding "
            "(--encoding latin-1) says how letters are written"
        ) from error
    if _VIDEO not in table.column_names or not len(table):
        raise ValueError(f"{path}: expected rows with a column {_VIDEO!r} of file names, got {table.column_names}")
    return table
