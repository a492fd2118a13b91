"""Hugging Face data sets: a row a step, or a row an episode.

Where a column tells episodes apart (`episode_index`, or the one mapped to `episode`), a row is a step: rows of an
episode follow one another, or are put in order by the column `frame_index`. Without such a column a row is an episode,
and its columns are lists over its steps. The column `timestamp` and `frame_index` say whether rows are one step apart.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import constants

from pan_hf.arguments import checked, least
from pan_hf.console import without_bars
from pan_hf.data.importing.columns import Table, TableSource, Taking, assign
from pan_hf.data.importing.frames import Root
from pan_hf.data.importing.hdf5 import Hdf5Table, is_hdf5
from pan_hf.data.importing.writing import write_recording
from pan_hf.data.info import PICTURES
from pan_hf.features import View

_ROWS_AT_ONCE = 64  # pictures that are decoded together


@checked(fps=least(0, above=True), **PICTURES)
def import_dataset(
    data: Any,
    output: str | Path,
    *,
    map: Mapping[str, str] | None = None,
    split: str = "train",
    image_size: int | None = None,
    crop: bool = False,
    depth_scale: float | None = None,
    depth_unit: str = "",
    optional: Sequence[str] = (),
    resample: bool = False,
    skip_short: bool = False,
    fps: float | None = None,
    encoding: str = "utf-8",
    test_fraction: float = 0.1,
    progress: bool = True,
) -> dict:
    """Imports a data set of the `datasets` library.

    Args:
        data: a `datasets.Dataset`, a DataFrame, a list of dicts, a dict of columns, a folder of `save_to_disk`, a
            parquet, CSV or JSON file or a folder of them, an HDF5 file of robomimic's or of flat columns, or a name on
            the Hub. A column of file names is read as pictures.
        output: folder of the recording, new or empty; it appears when all is there.
        map: column -> sense name, or `action`, `reward`, `done`, `truncated`, `episode`, `frame`, `task`, or "" to
            leave the column out. Columns of LeRobot's names need none: `observation.<sense>`, `action`, `next.reward`,
            `next.done`, `next.truncated`, `episode_index`, `frame_index`, `timestamp`, `task`.
        split: which split of the data set.
        image_size: side in pixels that pictures are averaged to; as they are when None.
        crop: cut pictures to their middle square first.
        depth_scale: what numbers of a picture that are no colours, such as depth, are multiplied with to be whole
            numbers of 16 bits: 1000 makes metres millimetres. Whole numbers need none.
        depth_unit: the unit that they have then, e.g. `"mm"`.
        optional: senses that may be missing in some rows.
        resample: where rows are missing, doubled or of another rate, repeat and leave out rows, and say how many.
        skip_short: leave out episodes of fewer than two observations.
        fps: frames a second; by the column `timestamp` when None, or 10 where there is none.
        encoding: of CSV and JSON files.
        test_fraction: share of the episodes that is kept for testing, in [0, 0.5], or 1.
        progress: show it, on stderr.

    Returns:
        What `meta/info.json` holds.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: a column is missing or does not fit, see `pan_hf.data.importing.columns`; nothing is written then.
    """
    import datasets  # noqa: F401  # what is not imported yet could turn its bars on

    mapping = map or {}
    with without_bars(downloads=not progress):
        if isinstance(data, str | os.PathLike) and is_hdf5(Path(data)):
            table: Table = Hdf5Table(Path(data), fps)
        else:
            table = _DatasetTable(data, split, mapping, fps, encoding)
    taking = Taking(View(image_size, crop, depth_scale, depth_unit), optional, resample)
    return write_recording(TableSource(table, mapping, taking), output, test_fraction, progress, skip_short)


def _load(data: Any, split: str, encoding: str) -> tuple[Any, str, Root]:
    """The data set, how it is called, and where the files lie that it names."""
    import datasets

    if isinstance(data, datasets.Dataset):
        return data, data.info.dataset_name or "dataset", None
    if isinstance(data, Mapping) and all(isinstance(part, datasets.Dataset) for part in data.values()):
        return _split_of(data, split, "the data set"), "dataset", None
    if not isinstance(data, str | os.PathLike):
        return _made_of(data), "dataset", None
    if not str(data):
        raise ValueError(f"data: expected a folder, a file or a name on the Hub, got {data!r}")
    path = Path(data)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        stored = datasets.load_from_disk(str(path))
        return (_split_of(stored, split, str(data)) if isinstance(stored, dict) else stored), str(data), path
    if path.exists():
        builder, files = _files(path)
        options = {"encoding": encoding} if builder != "parquet" else {}
        try:
            table = datasets.load_dataset(builder, data_files=files, split="train", **options)
        except (datasets.exceptions.DatasetGenerationError, UnicodeError, LookupError) as error:
            raise ValueError(
                f"{path} cannot be read as {builder} in {encoding} ({error.__cause__ or error}); encoding (--encoding "
                "latin-1) says how letters are written"
            ) from error
        return table, str(data), path if path.is_dir() else path.parent
    try:
        # what it may name is what came with it: files as they were downloaded, or out of an archive
        came = (Path(constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE))
        return datasets.load_dataset(str(data), split=split), str(data), came
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(f"{data} is neither a file or folder nor a data set on the Hub ({error})") from error


def _made_of(data: Any) -> Any:
    """A data set of what holds rows in memory: a DataFrame, a list of dicts, a dict of columns."""
    import datasets

    try:
        if hasattr(data, "to_parquet") and hasattr(data, "columns"):  # pandas is not imported to ask it
            return datasets.Dataset.from_pandas(data, preserve_index=False)
        if isinstance(data, list | tuple) and data and all(isinstance(row, Mapping) for row in data):
            return datasets.Dataset.from_list(list(data))
        if isinstance(data, Mapping) and data:
            return datasets.Dataset.from_dict(dict(data))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ValueError(f"data: this {type(data).__name__} is no table of columns of one type ({error})") from error
    remedy = ""
    if isinstance(data, datasets.IterableDataset):
        remedy = "; load it whole, without streaming, or take rows: datasets.Dataset.from_list(list(data.take(N)))"
    raise ValueError(
        "data: expected a datasets.Dataset, a DataFrame, a list of dicts, a dict of columns, a folder, a file or a "
        f"name on the Hub, got {type(data).__name__}{remedy}"
    )


def _split_of(splits: Mapping[str, Any], split: str, where: str) -> Any:
    if split not in splits:
        raise ValueError(f"{where} has no split {split!r}; it has {sorted(splits)}")
    return splits[split]


def _files(path: Path) -> tuple[str, list[str]]:
    """The builder for a file, or for all files of a folder, and these."""
    builders = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.suffix in builders)
    kinds = sorted({one.suffix for one in files})
    if len(kinds) != 1 or kinds[0] not in builders:
        raise ValueError(f"{path}: expected files of one kind of {sorted(builders)} or .hdf5, got {kinds or 'none'}")
    return builders[kinds[0]], [str(one) for one in files]


class _DatasetTable:
    """See `columns.Table`."""

    def __init__(self, data: Any, split: str, mapping: Mapping[str, str], fps: float | None, encoding: str):
        self._data, name, self.root = _load(data, split, encoding)
        # as they are stored: `datasets` would open pictures of any format and size
        self._arrow = self._data.with_format("arrow")
        self.columns = list(self._data.column_names)
        self.about = {"kind": "dataset", "path": name, "split": split, "rows": len(self._data)}
        self._roles = assign(self.columns, mapping, name)
        self._rows = self._episodes()
        self.fps = float(fps or self._measured_rate() or 10.0)

    def _measured_rate(self) -> float | None:
        """Frames a second by the times of the first episode, None where there are none."""
        if "time" not in self._roles or not len(self):
            return None
        (column,) = self._roles["time"]
        values = list(self.read(0, [column])[column])
        if len(values) < 2 or not all(isinstance(value, int | float) for value in values):
            return None
        step = float(np.median(np.diff(values)))
        return round(1 / step, 3) if step > 0 else None

    def _episodes(self) -> list[np.ndarray] | None:
        """Rows of each episode, or None where a row is an episode."""
        if "episode" not in self._roles:
            return None
        column = self._column(self._roles["episode"][0])
        if column.null_count:
            raise ValueError(f"{self.about['path']}: {column.null_count} rows name no episode; leave them out")
        if not len(column):
            return []
        keys = np.asarray(column.to_pylist())
        _, first, episode = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))[episode]  # episodes in the order in which they begin
        if "frame" in self._roles:
            frames = np.asarray(self._column(self._roles["frame"][0]).to_pylist())
            rows = np.lexsort((frames, order))
        else:
            rows = np.argsort(order, kind="stable")
        return np.split(rows, np.cumsum(np.bincount(order))[:-1])

    def __len__(self) -> int:
        return len(self._data) if self._rows is None else len(self._rows)

    def where(self, number: int) -> str:
        row = number if self._rows is None else self._rows[number][0]
        return f"{self.about['path']}, episode {number} (from row {row})"

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Iterable]:
        if self._rows is not None:
            return {column: self._steps(column, self._rows[number]) for column in columns}
        row = self._arrow.select_columns(columns)[number].to_pylist()[0]
        return {column: self._listed(column, row[column], number) for column in columns}

    def _steps(self, column: str, rows: np.ndarray) -> Iterator:
        data, kind = self._arrow.select_columns([column]), _whole_kind(self._data.features[column])
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            for value in data[rows[begin : begin + _ROWS_AT_ONCE]][column].to_pylist():
                yield value if kind is None or value is None else np.asarray(value, kind)

    def _column(self, name: str) -> pa.Array:
        return self._arrow.select_columns([name])[:][name].combine_chunks()

    def _listed(self, column: str, values: Any, number: int) -> list:
        if not isinstance(values, list):
            if column in self._roles.get("task", ()):
                return [values]
            raise ValueError(
                f"{self.where(number)}, column {column!r}: expected a list over the steps, because no column tells "
                f"episodes apart, got {values!r:.60}; if a row is one step, say which column does: map COLUMN=episode"
            )
        kind = _whole_kind(self._data.features[column])
        return [value if kind is None or value is None else np.asarray(value, kind) for value in values]

    def largest(self, column: str) -> int:
        values = self._column(column)
        while hasattr(values, "flatten") and values.type.num_fields:
            values = values.flatten()
        return int(pc.max(values).as_py())


def _whole_kind(feature: Any) -> str | None:
    """`"uint8"` where a column holds lists of bytes, which come as lists of Python numbers otherwise."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return "uint8" if getattr(feature, "dtype", None) == "uint8" else None
