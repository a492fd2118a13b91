"""LeRobot v3 data sets, read in their published layout, without the lerobot package.

    meta/info.json                                     columns, frames a second, where the files lie
    meta/tasks.parquet                                 texts of the tasks
    meta/episodes/chunk-000/file-000.parquet           length and files of each episode
    data/chunk-000/file-000.parquet                    rows of many episodes
    videos/<column>/chunk-000/file-000.mp4             frames of many episodes

A row holds an observation and the action taken there, so what the last action led to is not in the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pan_hf.arguments import checked
from pan_hf.data.importing.columns import TableSource, Taking
from pan_hf.data.importing.frames import as_image, read_frames
from pan_hf.data.importing.writing import write_recording
from pan_hf.data.info import PICTURES
from pan_hf.features import View
from pan_hf.files import read_json


@checked(**PICTURES)
def import_lerobot(
    data: str | Path,
    output: str | Path,
    *,
    map: Mapping[str, str] | None = None,
    image_size: int | None = None,
    crop: bool = False,
    depth_scale: float | None = None,
    depth_unit: str = "",
    optional: Sequence[str] = (),
    resample: bool = False,
    skip_short: bool = False,
    test_fraction: float = 0.1,
    progress: bool = True,
) -> dict:
    """Imports a LeRobot data set of format v3.

    Args:
        data: its folder, with `meta/`, `data/` and perhaps `videos/`.
        output: folder of the recording, new or empty; it appears when all is there.
        map: column -> sense name, or `action`, `reward`, `done`, `truncated`, or "" to leave it out. Without one,
            `observation.images.top` becomes the sense `top`, `observation.state` becomes `state`.
        image_size: side in pixels that pictures are averaged to; as they are when None.
        crop: cut pictures to their middle square first.
        depth_scale: what numbers of a picture that are no colours, such as depth, are multiplied with to be whole
            numbers of 16 bits: 1000 makes metres millimetres. Whole numbers need none.
        depth_unit: the unit that they have then, e.g. `"mm"`.
        optional: senses that may be missing in some rows.
        resample: where rows are missing, doubled or of another rate, repeat and leave out rows, and say how many.
        skip_short: leave out episodes of fewer than two observations.
        test_fraction: share of the episodes that is kept for testing, in [0, 0.5], or 1.
        progress: show it, on stderr.

    Returns:
        What `meta/info.json` holds. Tasks become the sense `task`, a text that holds for an episode.

    Raises:
        ImportError: there are videos, and PyAV is not installed.
        FileNotFoundError: the folder holds no LeRobot data set, or a file of it is missing.
        ValueError: another format version, a column that is missing or does not fit; nothing is written then.
    """
    taking = Taking(View(image_size, crop, depth_scale, depth_unit), optional, resample)
    source = TableSource(_LeRobotTable(Path(data), resample), map or {}, taking)
    return write_recording(source, output, test_fraction, progress, skip_short)


class _LeRobotTable:
    """See `columns.Table`."""

    def __init__(self, root: Path, resample: bool):
        self.root, self._resample = root, resample
        self._info = _read_info(root)
        self.fps = float(self._info["fps"])
        self._videos = {name for name, one in self._info["features"].items() if one["dtype"] == "video"}
        self._images = {name for name, one in self._info["features"].items() if one["dtype"] == "image"}
        self._tasks = _read_tasks(root)
        self.columns = [*self._info["features"], *(["task"] if self._tasks else [])]
        self._episodes = _read_episodes(root)
        self.about = {"kind": "lerobot", "path": str(root), "episodes": len(self)}
        self.about["frames"] = int(sum(one["length"] for one in self._episodes))

    def __len__(self) -> int:
        return len(self._episodes)

    def where(self, number: int) -> str:
        return f"{self._file(number)}, episode {self._episodes[number]['episode_index']}"

    def _file(self, number: int) -> Path:
        one = self._episodes[number]
        file_keys = {"chunk_index": one["data/chunk_index"], "file_index": one["data/file_index"]}
        return self.root / self._info["data_path"].format(**file_keys)

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Iterable]:
        rows = self._rows(number)
        values: dict[str, Iterable] = {}
        for column in columns:
            if column in self._videos:
                values[column] = self._frames(number, column, rows)
            elif column == "task":
                values[column] = [self._tasks[index] for index in rows["task_index"].to_pylist()]
            elif column not in rows.column_names:
                raise ValueError(
                    f"{self.where(number)}: the column {column!r} is missing, which meta/info.json names; there are "
                    f"{rows.column_names}. Leave it out with map {column}="
                )
            elif column in self._images:
                cells = rows[column].to_pylist()
                values[column] = (None if cell is None else as_image(cell, self.root) for cell in cells)
            else:
                values[column] = self._values(rows[column], self._info["features"][column])
        return values

    def _rows(self, number: int) -> pa.Table:
        one = self._episodes[number]
        table = _read_table(self._file(number))
        rows = table.filter(pc.equal(table["episode_index"], one["episode_index"]))
        if len(rows) != one["length"]:
            raise ValueError(
                f"{self.where(number)}: expected {one['length']} rows, as meta/episodes says, got {len(rows)}; the "
                "data set is not whole, copy it again"
            )
        return rows

    def _values(self, column: pa.ChunkedArray, feature: dict) -> list:
        if feature["dtype"] == "string":
            return column.to_pylist()
        return [None if value is None else np.asarray(value, feature["dtype"]) for value in column.to_pylist()]

    def _frames(self, number: int, column: str, rows: pa.Table) -> Iterator[np.ndarray]:
        """The frame at the time of each row: order is not time, where a frame was dropped."""
        one = self._episodes[number]
        keys = {name: f"videos/{column}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")}
        missing = [key for key in keys.values() if key not in one]
        if missing:
            raise ValueError(f"{self.root}/meta/episodes: {missing} are missing, which say where {column!r} lies")
        file_keys = {name: one[keys[name]] for name in ("chunk_index", "file_index")}
        path = self.root / self._info["video_path"].format(video_key=column, **file_keys)
        if not path.is_file():
            raise FileNotFoundError(f"{self.where(number)}: the video {path} is missing; copy the data set again")
        times = np.arange(len(rows)) / self.fps
        if "timestamp" in rows.column_names:
            times = np.asarray(rows["timestamp"].to_pylist(), np.float64).ravel()
        return _in_order_of(times + one[keys["from_timestamp"]], path, self.fps, self._resample)

    def largest(self, column: str) -> int:
        files = pads.dataset(sorted((self.root / "data").glob("*/*.parquet")), format="parquet")
        values = files.to_table(columns=[column])[column].combine_chunks()
        return int(pc.max(values.flatten() if pa.types.is_nested(values.type) else values).as_py())


def _in_order_of(times: np.ndarray, path: Path, fps: float, resample: bool) -> Iterator[np.ndarray]:
    """The frames at `times`; of times out of order, all of them are held, since a video is read forwards."""
    order = np.argsort(times, kind="stable")
    frames = read_frames(path, times[order].tolist(), fps, resample)
    if (np.diff(order) > 0).all():
        yield from frames
        return
    held = list(frames)
    yield from (held[place] for place in np.argsort(order))


@lru_cache(maxsize=1)
def _read_table(path: Path) -> pa.Table:
    """One file of rows; the episodes of a file follow one another, so the last one is kept."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the data set again")
    try:
        return pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is damaged ({error}); copy the data set again") from error


def _read_info(root: Path) -> dict[str, Any]:
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise FileNotFoundError(f"{root} holds no LeRobot data set: {path} is missing")
    try:
        info = read_json(path)
        version = str(info["codebase_version"])
        missing = [key for key in ("fps", "features", "data_path") if key not in info]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); copy the data set again") from error
    if not version.startswith("v3."):
        raise ValueError(f"{path}: expected format v3, got {version}; convert it with lerobot's own script first")
    if missing:
        raise ValueError(f"{path} is damaged: {missing} are missing; copy the data set again")
    return info


def _read_tasks(root: Path) -> dict[int, str]:
    """Texts by number; none where the data set names no task."""
    path = root / "meta" / "tasks.parquet"
    if not path.is_file():
        return {}
    table = pq.read_table(path)
    texts = next(name for name in table.column_names if name != "task_index")  # pandas' index, under various names
    return dict(zip(table["task_index"].to_pylist(), table[texts].to_pylist(), strict=True))


def _read_episodes(root: Path) -> list[dict[str, Any]]:
    """Length and files of every episode, in order."""
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{root} holds no LeRobot data set of format v3: meta/episodes is empty")
    names = [name for name in pq.read_schema(files[0]).names if not name.startswith("stats/")]
    needed = {"episode_index", "length", "data/chunk_index", "data/file_index"}
    if needed - set(names):
        raise ValueError(f"{files[0]}: the columns {sorted(needed - set(names))} are missing; there are {names}")
    rows = [row for path in files for row in pq.read_table(path, columns=names).to_pylist()]
    return sorted(rows, key=lambda row: row["episode_index"])
