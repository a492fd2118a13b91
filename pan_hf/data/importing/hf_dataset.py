"""Hugging Face data sets: a row a step, or a row an episode.

Where a column tells episodes apart (`episode_index`, or the one mapped to `episode`), a row is a step: rows of an
episode follow one another, or are put in order by the column `frame_index`. Without such a column a row is an episode,
and its columns are lists over its steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.data.importing.columns import TableSource, assign
from pan_hf.data.importing.writing import write_recording

_ROWS_AT_ONCE = 64  # pictures that are decoded together


def import_dataset(
    data: Any,
    output: str | Path,
    *,
    map: Mapping[str, str] | None = None,
    split: str = "train",
    image_size: int | None = None,
    crop: bool = False,
    fps: float = 10.0,
    test_fraction: float = 0.1,
    progress: bool = True,
) -> dict:
    """Imports a data set of the `datasets` library.

    Args:
        data: a `datasets.Dataset`, a folder of `save_to_disk`, a parquet, CSV or JSON file or a folder of them, or a
            name on the Hub.
        output: folder of the recording, new or empty; it appears when all is there.
        map: column -> sense name, or `action`, `reward`, `done`, `truncated`, `episode`, `frame`, `task`, or "" to
            leave the column out. Columns of LeRobot's names need none: `observation.<sense>`, `action`, `next.reward`,
            `next.done`, `next.truncated`, `episode_index`, `frame_index`, `task`.
        split: which split of the data set.
        image_size: side in pixels that pictures are averaged to; as they are when None.
        crop: cut pictures to their middle square first.
        fps: frames a second, for timestamps.
        test_fraction: share of the episodes that is kept for testing, in [0, 0.5], or 1.
        progress: show it, on stderr.

    Returns:
        What `meta/info.json` holds.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: a column is missing or does not fit, see `pan_hf.data.importing.columns`; nothing is written then.
    """
    source = TableSource(_DatasetTable(data, split, map or {}, fps), map or {}, image_size, crop)
    return write_recording(source, output, test_fraction, progress)


def _load(data: Any, split: str) -> tuple[Any, str]:
    """The data set and how it is called."""
    import datasets

    if isinstance(data, datasets.Dataset):
        return data, data.info.dataset_name or "dataset"
    if isinstance(data, dict):
        return _split_of(data, split, "the data set"), "dataset"
    path = Path(data)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(str(path))
        return (_split_of(found, split, str(data)) if isinstance(found, dict) else found), str(data)
    if path.exists():
        builder, files = _files(path)
        return datasets.load_dataset(builder, data_files=files, split="train"), str(data)
    try:
        return datasets.load_dataset(str(data), split=split), str(data)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"{data} is neither a file or folder nor a data set on the Hub ({error})") from error


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
        raise ValueError(f"{path}: expected files of one kind of {sorted(builders)}, got {kinds}")
    return builders[kinds[0]], [str(one) for one in files]


class _DatasetTable:
    """See `columns.Table`."""

    def __init__(self, data: Any, split: str, mapping: Mapping[str, str], fps: float):
        self._data, name = _load(data, split)
        self.columns, self.fps = list(self._data.column_names), fps
        self.about = {"kind": "dataset", "path": name, "split": split, "rows": len(self._data)}
        self._roles = assign(self.columns, mapping, name)
        self._rows = self._episodes()

    def _episodes(self) -> list[np.ndarray] | None:
        """Rows of each episode, or None where a row is an episode."""
        if "episode" not in self._roles:
            return None
        column = self._roles["episode"][0]
        keys = np.asarray(self._data.with_format("arrow")[column].combine_chunks().to_pylist())
        _, first, episode = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))[episode]  # episodes in the order in which they begin
        if "frame" in self._roles:
            frames = np.asarray(self._data.with_format("arrow")[self._roles["frame"][0]].combine_chunks().to_pylist())
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
        row = self._data.select_columns(columns)[number]
        return {column: self._listed(column, row[column], number) for column in columns}

    def _steps(self, column: str, rows: np.ndarray) -> Iterator:
        data, kind = self._data.select_columns([column]), _whole_kind(self._data.features[column])
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            for value in data[rows[begin : begin + _ROWS_AT_ONCE]][column]:
                yield value if kind is None or value is None else np.asarray(value, kind)

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
        import pyarrow.compute as pc

        values = self._data.with_format("arrow")[column].combine_chunks()
        while hasattr(values, "flatten") and values.type.num_fields:
            values = values.flatten()
        return int(pc.max(values).as_py())


def _whole_kind(feature: Any) -> str | None:
    """`"uint8"` where a column holds lists of bytes, which come as lists of Python numbers otherwise."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return "uint8" if getattr(feature, "dtype", None) == "uint8" else None
