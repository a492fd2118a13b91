"""Whether the rows of an episode are one step apart, by their frame numbers and their times."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Steps:
    """An episode of T equal steps, made of N rows that are not.

    Args:
        rows: int64 `(T,)`, the row that each step shows.
        of_row: int64 `(N,)`, the step in which what followed a row is counted.
    """

    rows: np.ndarray
    of_row: np.ndarray

    def shown(self, values: Sequence) -> list:
        """A column's values step by step; one without values for the last rows has none for as many steps."""
        return [values[min(row, len(values) - 1)] for row in self.rows[: self._count(values)]]

    def summed(self, rewards: np.ndarray) -> list[float]:
        """By step, the rewards of its rows together: each is counted once."""
        return np.bincount(self._of(rewards), rewards, self._count(rewards)).tolist()

    def any(self, flags: Sequence) -> list[bool]:
        """By step, whether a flag of one of its rows is set."""
        return (np.bincount(self._of(flags), np.ravel(flags).astype(bool), self._count(flags)) > 0).tolist()

    def _count(self, values: Sequence | np.ndarray) -> int:
        return max(0, len(self.rows) - (len(self.of_row) - len(values)))

    def _of(self, values: Any) -> np.ndarray:
        return np.minimum(self.of_row[: len(values)], max(0, self._count(values) - 1))


def steps_of(where: str, frames: Sequence | None, times: Sequence | None, fps: float, resample: bool) -> Steps | None:
    """How rows make an episode of equal steps; None where each row is a step.

    Args:
        where: what an error names.
        frames: number of each row; times: in seconds; None where the source has none.
        fps: frames a second.
        resample: take the row that is nearest to each step, and say how many were repeated and left out.

    Raises:
        ValueError: rows that are missing, doubled, out of order or of another rate, without `resample`.
    """
    positions = {
        name: _numbers(where, name, values) * rate
        for name, values, rate in (("frame number", frames, 1.0), ("time", times, fps))
        if values is not None and len(values)
    }
    uneven = False
    for name, position in positions.items():
        # within half a step of where the row before says that it is: rates such as 29.97 may drift
        wrong = np.flatnonzero(~(np.abs(np.diff(position) - 1) <= 0.5))
        uneven |= bool(len(wrong))
        if len(wrong) and not resample:
            row = wrong[0] + 1
            raise ValueError(
                f"{where}, row {row}: its {name} is {np.diff(position)[row - 1]:.3g} steps after that of the row "
                f"before, at {fps:g} frames a second; expected 1. Rows are missing, doubled, out of order or of "
                "another rate: say the rate with fps, resample (--resample), which repeats and leaves out rows, or "
                "leave the column out with map COLUMN="
            )
    if not uneven:
        return None
    position = positions["time"] if "time" in positions else positions["frame number"]
    order = np.argsort(position, kind="stable")
    ascending = position[order] - position[order[0]]
    grid = np.arange(int(np.floor(ascending[-1] + 0.5)) + 1)
    after = np.searchsorted(ascending, grid).clip(1, len(order) - 1)
    nearest = np.where(grid - ascending[after - 1] <= ascending[after] - grid, after - 1, after)
    # the last row is shown once, at the end: nothing follows what it led to
    nearest = np.append(np.minimum(nearest[:-1], len(order) - 2), len(order) - 1)
    taken = order[nearest]
    num_used = len(np.unique(taken))
    warnings.warn(
        f"{where}: resampled to {len(taken)} rows; {len(taken) - num_used} repeat another, "
        f"{len(position) - num_used} were left out",
        stacklevel=2,
    )
    of_row = np.empty_like(order)
    # of a row that is repeated, at the last of its steps: the one after it shows what followed
    of_row[order] = (np.searchsorted(nearest, np.arange(len(order)), side="right") - 1).clip(0)
    return Steps(taken, of_row)


def _numbers(where: str, name: str, values: Sequence) -> np.ndarray:
    try:
        return np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected a number as the {name} of each row (seconds, of times), got {values[0]!r:.40}; leave "
            "the column out with map COLUMN="
        ) from error
