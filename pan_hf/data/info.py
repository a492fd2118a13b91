"""What `meta/info.json` says of a recording as a whole: which of its episodes are for testing, how many there are, and
the bounds of its vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from pan_hf.arguments import least
from pan_hf.data.episodes import FORMAT, SPLITS, VERSION, episode_files, read_info, read_summary, write_info
from pan_hf.features import feature_of

# By column, what `Feature.summary` says of an episode: of a vector the smallest and largest value of each number.
Extremes = dict[str, list]


# Bounds of the arguments that say how pictures are brought to size, for `checked`.
PICTURES = {"image_size": least(1), "depth_scale": least(0, above=True)}


def check_test_fraction(test_fraction: float) -> None:
    """Raises ValueError for a share of episodes that cannot be kept for testing."""
    if not (0 <= test_fraction <= 0.5 or test_fraction == 1):
        raise ValueError(f"test_fraction: expected 0 to 0.5, or 1 for test episodes only, got {test_fraction}")


def new_info(fps: float, features: dict[str, dict], environments: list[dict], test_fraction: float, **about) -> dict:
    """What `meta/info.json` holds before the first episode. Args: about, what else is told, as where it comes from."""
    info = {"format": FORMAT, "version": VERSION, "fps": fps, "features": features, "environments": environments}
    info |= {"test_fraction": test_fraction} | about
    return info | {"episodes": dict.fromkeys(SPLITS, 0), "frames": 0, "complete": False}


def rare_options(
    optional: Sequence[str], depth_scale: float | None, depth_unit: str, symbols: Sequence[str] = ()
) -> dict:
    """What an environment's entry says where it is asked for; recordings of before go on without."""
    options = {"optional": list(optional), "depth_scale": depth_scale, "depth_unit": depth_unit}
    options["symbols"] = list(symbols)
    return {name: value for name, value in options.items() if value}


def begun_with(root: Path, symbols: Sequence[str] | None) -> Sequence[str] | None:
    """What is taken as symbols in a recording that may have been begun: as there, where nothing is asked for."""
    if symbols is not None or not (root / "meta" / "info.json").is_file():
        return symbols
    return read_info(root)["environments"][0].get("symbols", [])


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


def joined(features: dict[str, dict], extremes: Sequence[Extremes]) -> Extremes:
    """The extremes of several episodes together. Args: features, as in `meta/info.json`."""
    # an optional sense may be absent from a whole episode
    names = dict.fromkeys(name for one in extremes for name in one)
    return {name: feature_of(features[name]).joined([one[name] for one in extremes if name in one]) for name in names}


def bounded(features: dict[str, dict], extremes: Sequence[Extremes]) -> dict[str, dict]:
    """Features with bounds for every vector: those it was declared with, and a tenth beyond the data where there are
    none.

    Args:
        features: as in `meta/info.json`; a bound that nobody declared is None, and stays so where there is no episode.
        extremes: of the episodes.
    """
    summaries = joined(features, extremes)
    return {
        name: feature_of(described).bounded(name, summaries[name]) if name in summaries else described
        for name, described in features.items()
    }
