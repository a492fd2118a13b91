"""Whether the rows of an episode are one step apart, by their frame numbers and their times."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np


def steps_of(
    where: str, frames: Sequence | None, times: Sequence | None, fps: float, resample: bool
) -> np.ndarray | None:
    """The rows that make an episode of equal steps, int64; None where that is every row.

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
    taken = order[nearest]
    num_used = len(np.unique(taken))
    warnings.warn(
        f"{where}: resampled to {len(taken)} rows; {len(taken) - num_used} repeat another, "
        f"{len(position) - num_used} were left out",
        stacklevel=2,
    )
    return taken


def _numbers(where: str, name: str, values: Sequence) -> np.ndarray:
    try:
        return np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected a number as the {name} of each row (seconds, of times), got {values[0]!r:.40}; leave "
            "the column out with map COLUMN="
        ) from error
