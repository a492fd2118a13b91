"""What `meta/info.json` says of a recording as a whole: which of its episodes are for testing, how many there are, and
the bounds of its vectors."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from pan_hf.data.episodes import FORMAT, SPLITS, VERSION, episode_files, read_info, read_summary, write_info
from pan_hf.data.trajectories import Trajectories
from pan_hf.modeling import PanConfig
from pan_hf.tokenization import PanProcessor

# Smallest and largest value of each number, by column.
Extremes = dict[str, list[list[float]]]
# What an unbounded vector is given beyond the recorded values, as a share of their range.
_MARGIN = 0.1


def new_info(fps: float, features: dict[str, dict], environments: list[dict], test_fraction: float, **about) -> dict:
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


# ---- Whether a recording is one that a finished world model can be trained further on: the same senses and actions.


def check_fits(config: PanConfig, processor: PanProcessor, trajectories: Trajectories) -> None:
    """Raises ValueError where a recording lacks a sense of the model, or has it, or the action, otherwise: of another
    kind or shape, out of range, texts that are too long. Senses that the model has not are passed over."""
    missing = sorted(set(config.senses) - set(trajectories.observations))
    if missing:
        raise ValueError(
            f"The model's senses {missing} are not in the recording, which has {sorted(trajectories.observations)}. "
            "Record them (`pan record --keep`, `--rename`)."
        )
    for name, sense in config.senses.items():
        values, feature = trajectories.observations[name], trajectories.features[f"observation.{name}"]
        _check_kind(f"Sense {name!r}", feature["kind"], sense.kind)
        if sense.kind == "image":
            _check_shape(name, values.shape[1:], (sense.channels, sense.height, sense.width))
        else:
            processor(observation={name: _distinct(values)}, partial=True)
    _check_action(config.action, processor, trajectories)


def _check_kind(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(f"{what}: the recording's is of kind {found!r}, the model's of kind {expected!r}.")


def _check_shape(name: str, found: tuple, expected: tuple) -> None:
    if tuple(found) != expected:
        channels, height, width = expected
        raise ValueError(
            f"Sense {name!r}: the recording has images of {tuple(found)}, the model sees {expected} (channels, "
            f"height, width); record with `--image-size {height}`{'' if height == width else f' ({height}x{width})'}."
        )


def _check_action(action, processor: PanProcessor, trajectories: Trajectories) -> None:
    feature = trajectories.features["action"]
    _check_kind("Action", feature["kind"], action.kind)
    if action.kind == "discrete":
        if feature["n"] != action.num_actions:
            raise ValueError(
                f"The recording has {feature['n']} actions, the model {action.num_actions}. A number means the same "
                "in both only where there are as many; new actions are born with model.grow('action.0', names=[...])."
            )
        return
    processor(action=_distinct(trajectories.actions[~trajectories.action_is_pad]))


def _distinct(values: np.ndarray):
    """Texts once each, as a batch of constant ones; vectors as they are."""
    return np.unique(values).tolist() if values.dtype.kind in "UO" else values


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
    told = {name: value for name, value in info.items() if name not in COUNTED}
    return json.loads(json.dumps(told))  # as it is read from the file


def _begin(partial: Path, info: dict) -> None:
    """An empty folder to write into, or what the same settings left when they were interrupted."""
    if partial.exists() and not (
        (partial / "meta" / "info.json").is_file() and _settings(read_info(partial)) == _settings(info)
    ):
        shutil.rmtree(partial)
    for stale in partial.glob("data/*/.*.tmp"):
        stale.unlink()  # of a run that was killed while it wrote
    write_info(partial, info)
