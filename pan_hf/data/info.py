"""What `meta/info.json` says of a recording as a whole: which of its episodes are for testing, how many there are, and
the bounds of its vectors."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

from pan_hf.arguments import least
from pan_hf.data.episodes import FORMAT, SPLITS, VERSION, episode_files, read_info, read_summary, write_info
from pan_hf.data.trajectories import Trajectories
from pan_hf.data.windows import check_has_senses
from pan_hf.features import Feature, feature_of
from pan_hf.modeling import PanConfig
from pan_hf.modeling.heads_pan import check_rewards
from pan_hf.tokenization import PanProcessor

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


def rare_options(optional: Sequence[str], depth_scale: float | None, depth_unit: str) -> dict:
    """What an environment's entry says where it is asked for; recordings of before go on without."""
    options = {"optional": list(optional), "depth_scale": depth_scale, "depth_unit": depth_unit}
    return {name: value for name, value in options.items() if value}


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


# ---- Whether a recording is one that a finished world model can be trained further on: the same senses and actions.


def check_fits(config: PanConfig, processor: PanProcessor, trajectories: Trajectories) -> None:
    """Raises ValueError where a recording lacks a sense of the model, or has it, or the action, otherwise: of another
    kind or shape, out of range (rewards too), texts that are too long. Senses that the model lacks are ignored."""
    check_has_senses(trajectories, config.senses)
    for name, sense in config.senses.items():
        feature = _of_same_kind(f"Sense {name!r}", trajectories.features[f"observation.{name}"], sense)
        feature.check_sense(name, sense, trajectories.observations[name], processor)
    check_rewards(trajectories.all_rewards(), config.reward_bound)
    action = _of_same_kind("Action", trajectories.features["action"], config.action)
    action.check_action(config.action, trajectories.actions[~trajectories.action_is_pad], processor)


def _of_same_kind(what: str, described: dict, part) -> Feature:
    feature, expected = feature_of(described), feature_of(part)
    if feature.kind != expected.kind:
        raise ValueError(
            f"{what}: the recording's is of kind {feature.kind!r}, the model's of kind {expected.kind!r}."
        )
    return feature


# ---- A recording that is made of other data appears whole: written beside its folder, and renamed when all is in it.


COUNTED = ("features", "episodes", "frames", "complete")  # of `meta/info.json`, what is known when all is written


def write_whole(output: str | Path, info: dict, write: Callable[[Path], None], what: str, again: str) -> dict:
    """Has a recording written into `output`, which appears when all is there.

    Args:
        output: folder of the recording, new or empty, or what the same settings left there.
        info: what `meta/info.json` holds before the first episode; the settings are all of it but `COUNTED`.
        write: writes into the folder it is given the episodes that are not there yet, and counts them into `info`.
        what, again: what is made, and what to run to go on, as messages name them.

    Returns:
        `info`, or, where the same was finished before, what is there.

    Raises:
        ValueError: `output` holds something else, or an episode is not as it must be; then nothing is left of it.
        KeyboardInterrupt: Ctrl-C; the finished episodes are kept beside `output`, and the same settings go on.
    """
    root = Path(output)
    before = _made_before(root, info, what)
    if before is not None:
        return before
    partial = root.with_name(f".{root.name}.partial")
    _begin(partial, info)
    try:
        write(partial)
    except (ValueError, FileNotFoundError):
        shutil.rmtree(partial)
        raise
    except KeyboardInterrupt:
        done = sum(len(episode_files(partial, split)) for split in SPLITS)
        raise KeyboardInterrupt(f"Stopped after {done} episodes; run {again} again to go on") from None
    os.replace(partial, root)
    return info


def _made_before(root: Path, info: dict, what: str) -> dict | None:
    """What the same settings left in `root`, or None where there is nothing."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    if (root / "meta" / "info.json").is_file():
        before = read_info(root)
        if _settings(before) == _settings(info):
            return before
    raise ValueError(f"{root} holds something else than {what}; choose a new or empty folder")


def _settings(info: dict) -> dict:
    settings = {name: value for name, value in info.items() if name not in COUNTED}
    return json.loads(json.dumps(settings))  # as it is read from the file


def _begin(partial: Path, info: dict) -> None:
    """An empty folder to write into, or what the same settings left when they were interrupted."""
    if partial.exists() and not (
        (partial / "meta" / "info.json").is_file() and _settings(read_info(partial)) == _settings(info)
    ):
        shutil.rmtree(partial)
    for stale in partial.glob("data/*/.*.tmp"):
        stale.unlink()  # of a run that was killed while it wrote
    write_info(partial, info)
