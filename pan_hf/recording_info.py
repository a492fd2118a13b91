"""What `meta/info.json` says of a recording as a whole: which of its episodes are for testing, how many there are, and
the bounds of its vectors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from pan_hf.trajectories import FORMAT, SPLITS, VERSION, episode_files, read_summary, write_info

# Smallest and largest value of each number, by column.
Extremes = dict[str, list[list[float]]]
# What an unbounded vector is given beyond the recorded values, as a share of their range.
_MARGIN = 0.1


def new_info(
    fps: float, features: dict[str, dict], environments: list[dict], test_fraction: float, **about
) -> dict:
    """What `meta/info.json` holds before the first episode. Args: about, what else is told, as where it comes from."""
    info = {"format": FORMAT, "version": VERSION, "fps": fps, "features": features, "environments": environments}
    info |= {"test_fraction": test_fraction} | about
    return info | {"episodes": dict.fromkeys(SPLITS, 0), "frames": 0, "complete": False}


def write_counted(root: Path, info: dict, features: dict[str, dict], is_complete: bool) -> None:
    """Counts the episodes in a recording's folder and writes `meta/info.json`, bounds of vectors included.

    Args:
        info: changed in place.
        features: with the bounds that were declared.
        is_complete: whether all that was asked for is there.
    """
    files = {split: list(episode_files(root, split).values()) for split in SPLITS}
    summaries = [read_summary(path) for paths in files.values() for path in paths]
    info["episodes"] = {split: len(paths) for split, paths in files.items()}
    info["frames"] = sum(num_rows for num_rows, _ in summaries)
    info["features"] = bounded(features, [extremes for _, extremes in summaries])
    info["complete"] = is_complete
    write_info(root, info)


def is_test_episode(number: int, test_fraction: float) -> bool:
    """Whether an environment's `number`-th episode is for testing: the second and every 1 / `test_fraction`-th on."""
    share = Fraction(test_fraction).limit_denominator(1000)
    return math.floor((number + 1) * share - 2 * share) > math.floor(number * share - 2 * share)


def joined(extremes: Sequence[Extremes]) -> Extremes:
    """The extremes of several episodes together."""

    def over(name: str, side: int, among) -> list[float]:
        return among([one[name][side] for one in extremes], 0).tolist()

    return {name: [over(name, 0, np.min), over(name, 1, np.max)] for name in (extremes[0] if extremes else ())}


def bounded(features: dict[str, dict], extremes: Sequence[Extremes]) -> dict[str, dict]:
    """Features with bounds for every vector: those it was declared with, and a tenth beyond the data where there are
    none.

    Args:
        features: as in `meta/info.json`; a bound that nobody declared is None, and stays so where there is no episode.
        extremes: of the episodes.
    """
    found = joined(extremes)
    return {
        name: _bounded(name, feature, *map(np.array, found[name])) if name in found else feature
        for name, feature in features.items()
    }


def _bounded(name: str, feature: dict, lowest: np.ndarray, highest: np.ndarray) -> dict:
    width = highest - lowest
    margin = np.where(width > 0, _MARGIN * width, np.maximum(_MARGIN * np.abs(highest), _MARGIN))
    low, high = (
        [float(value) if bound is None else bound for bound, value in zip(feature[side], values, strict=True)]
        for side, values in (("low", lowest - margin), ("high", highest + margin))
    )
    # float32 rounding of a declared bound is no breach of it
    slack = 1e-6 * np.maximum(1, np.abs([*low, *high])).max()
    if np.any(lowest < np.array(low) - slack) or np.any(highest > np.array(high) + slack):
        warnings.warn(
            f"{name} left the bounds its environment declares ({low} to {high}): recorded {lowest.tolist()} to "
            f"{highest.tolist()}; the bounds in meta/info.json are widened to hold it",
            stacklevel=5,
        )
    return feature | {"low": np.minimum(low, lowest).tolist(), "high": np.maximum(high, highest).tolist()}
