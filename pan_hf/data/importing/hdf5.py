"""HDF5 files, as robomimic and stable-worldmodel keep data in them.

data/demo_0/obs/<sense>, data/demo_0/actions, .../rewards, .../dones     robomimic: a group an episode
<column> of N rows, ep_len and ep_offset of E                           flat: columns of all episodes one after another
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.extras import extra

_LENGTHS, _OFFSETS = "ep_len", "ep_offset"
_ROWS_AT_ONCE = 64
# robomimic's names of what an episode's file calls otherwise
_ROBOMIMIC = {"actions": "action", "rewards": "next.reward", "dones": "next.done"}


def is_hdf5(path: Path) -> bool:
    """Whether a file is kept in HDF5, as its first bytes say."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


class Hdf5Table:
    """See `columns.Table`."""

    root = None

    def __init__(self, path: Path, fps: float | None):
        with extra("data", "Importing HDF5 files"):
            import h5py
        self._file = h5py.File(path, "r")
        self._path, self.fps = path, float(fps or 10.0)
        self._spans = self._flat() if _LENGTHS in self._file else self._demos()
        self.columns = list(self._spans[0][0]) if self._spans else []
        self.about: dict[str, Any] = {"kind": "hdf5", "path": str(path), "episodes": len(self)}

    def _demos(self) -> list[tuple[dict, slice]]:
        """By episode, robomimic's columns and the rows of them that it has."""
        if "data" not in self._file or not len(demos := [name for name in self._file["data"] if name[:4] == "demo"]):
            raise ValueError(
                f"{self._path} holds {sorted(self._file)[:8]}; expected groups data/demo_0, ... as robomimic keeps "
                f"them, or columns with {_LENGTHS} and {_OFFSETS}. Of DIAMOND's files (frame_0_x, ...) make a folder "
                "of videos with a CSV of actions (pan import videos), or a parquet file with a row a step"
            )
        spans = []
        for name in sorted(demos, key=lambda name: int(re.sub(r"\D", "", name) or 0)):
            group = self._file["data"][name]
            columns = {f"observation.{sense}": group["obs"][sense] for sense in group.get("obs", ())}
            columns |= {ours: group[theirs] for theirs, ours in _ROBOMIMIC.items() if theirs in group}
            spans.append((columns, slice(None)))
        return spans

    def _flat(self) -> list[tuple[dict, slice]]:
        lengths = self._file[_LENGTHS][:].astype(int)
        offsets = self._file[_OFFSETS][:].astype(int) if _OFFSETS in self._file else np.cumsum(lengths) - lengths
        num_rows = int((offsets + lengths).max(initial=0))
        columns = {
            name: values
            for name, values in self._file.items()
            if name not in (_LENGTHS, _OFFSETS) and len(getattr(values, "shape", ())) and len(values) >= num_rows
        }
        if not columns or (lengths < 0).any() or (offsets < 0).any():
            raise ValueError(f"{self._path}: {_LENGTHS} and {_OFFSETS} fit none of the columns {sorted(self._file)}")
        return [(columns, slice(start, start + n)) for start, n in zip(offsets, lengths, strict=True)]

    def __len__(self) -> int:
        return len(self._spans)

    def where(self, number: int) -> str:
        return f"{self._path}, episode {number}"

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Iterable]:
        values, span = self._spans[number]
        if missing := [name for name in columns if name not in values]:
            raise ValueError(f"{self.where(number)}: the columns {missing} are missing; there are {list(values)}")
        return {name: _rows(values[name], span) for name in columns}

    def largest(self, column: str) -> int:
        return max(int(values[column][span].max()) for values, span in self._spans)


def _rows(values: Any, span: slice) -> Iterator:
    """The rows of a span, some at a time: pictures of an episode may be more than memory holds."""
    first, last, _ = span.indices(len(values))
    for begin in range(first, last, _ROWS_AT_ONCE):
        for value in values[begin : min(begin + _ROWS_AT_ONCE, last)]:
            yield value.decode() if isinstance(value, bytes) else np.asarray(value)
