"""Mirror images of recorded episodes, as `pan mirror` makes them.

Where a world's laws know no left and right, or no up and down, an episode seen in a mirror could have happened as
well. A model that is not told has to see both, and twenty thousand frames are soon known by heart. What is mirrored is
the recording: pictures are flipped, and positions, directions and actions go with them. Test episodes stay as they
are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.arguments import a_seed, checked, least
from pan_hf.console import track
from pan_hf.data.episodes import (
    SPLITS,
    UNKNOWN_SEED,
    Episode,
    episode_files,
    episode_path,
    episode_schema,
    episode_table,
    read_info,
    recording_folder,
    write_table,
)
from pan_hf.data.info import write_counted
from pan_hf.data.trajectories import read_episode
from pan_hf.data.whole import write_whole
from pan_hf.features import ACTION, Feature, action_column, feature_of
from pan_hf.features.vector import FLIPS, Pair


@dataclass(frozen=True)
class Mirror:
    """One way to mirror an episode.

    Args:
        flips (`tuple[str, ...]`): of `FLIPS`, in this order: left and right change places, up and down, rows and
            columns.
        features: by sense, and of `action` or every `action.<part>`.
        rules: by name, what `Feature.mirrored` needs beside them: the pairs of numbers of a vector that are mirrored,
            what becomes of each discrete action.
    """

    flips: tuple[str, ...]
    features: Mapping[str, Feature]
    rules: Mapping[str, Any]

    def episode(self, episode: Episode, index: int) -> Episode:
        """The mirror image of an episode, under a number of its own and without a seed: no reset leads to it."""
        columns = [name for name in self.features if name not in episode.observations]
        parts = {name.removeprefix(f"{ACTION}."): self._values(name, episode.column(name)) for name in columns}
        steps = [dict(zip(parts, step, strict=True)) for step in zip(*parts.values(), strict=True)]
        return replace(
            episode,
            index=index,
            seed=UNKNOWN_SEED,
            observations={name: self._values(name, values) for name, values in episode.observations.items()},
            actions=parts.get(ACTION, steps),
            action_masks={part: self._masks(part, rows) for part, rows in episode.action_masks.items()},
        )

    def _values(self, name: str, values: list) -> list:
        """Mirrored values; what is absent stays absent."""
        present = [value for value in values if value is not None]
        mirrored = iter(self.features[name].mirrored(present, self.flips, self.rules.get(name)))
        return [None if value is None else next(mirrored) for value in values]

    def _masks(self, part: str, rows: list[np.ndarray]) -> list[np.ndarray]:
        """What is allowed of a choice, as what is allowed of its mirror image."""
        becomes = self.rules.get(action_column(part))
        return rows if becomes is None else [row[np.argsort(becomes)] for row in rows]


@checked(copies=least(1), seed=a_seed)
def mirror(
    source: str | Path,
    output: str | Path,
    *,
    flips: Sequence[str] = FLIPS,
    positions: Sequence[str] = (),
    directions: Sequence[str] = (),
    same: Sequence[str] = (),
    swaps: Sequence[str] = (),
    copies: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """Writes a recording anew with mirror images of its training episodes beside them.

    Args:
        source: folder of a recording or of a run with one, or a Hub id; it is left as it is.
        output: folder of the new recording.
        flips: symmetries of the world: `"horizontal"` (left and right), `"vertical"` (up and
            down), `"diagonal"` (rows and columns). An image is one of them or several in a row.
        positions: vector senses, or `"action"`, of which two numbers are a place in the picture, their bounds being
            its borders: `"state"`, or `"state=0,1"` with which number points across the picture and which down it.
            A vector with several places is named several times.
        directions: the same of two numbers that are a motion.
        same: vector senses, or `"action"`, of which no mirror changes anything, as a temperature. There is no way to
            mirror an angle.
        swaps: `"horizontal:left=right"` for discrete actions that change places, by name or number. Where several
            parts of an action are discrete, the part comes first: `"action.legs:horizontal:left=right"`.
        copies: images of each episode, drawn without repetition from all there are.
        seed: of these draws.
        progress: show it, on stderr.

    Returns:
        What `meta/info.json` holds.

    Raises:
        FileNotFoundError: `source` holds no recording.
        ValueError: it is not finished, a setting does not fit it, or `output` holds something else. Nothing is written
            then.
        KeyboardInterrupt: Ctrl-C; what is finished is kept beside `output`, and the same command goes on.
    """
    settings: dict[str, Any] = {"flips": list(flips), "positions": list(positions), "directions": list(directions)}
    settings |= {"same": list(same), "swaps": list(swaps), "copies": copies, "seed": seed}
    root = recording_folder(source)
    before = read_info(root)
    if not before["complete"]:
        raise ValueError(f"The recording in {root} is not finished; finish it by the command that began it.")
    mirrors = _mirrors(before["features"], settings)
    info = {key: value for key, value in before.items() if key != "requested"} | {"complete": False}
    info["source"] = {"kind": "mirrored", **settings, "frames": before["frames"], "of": before.get("source")}
    write = partial(_write, root, info=info, mirrors=mirrors, progress=progress)
    return write_whole(output, info, write, "these mirror images", "the same")


def _write(root: Path, output: Path, info: dict, mirrors: list[Mirror], progress: bool) -> None:
    files = {split: episode_files(root, split) for split in SPLITS}
    beyond = 1 + max(index for each in files.values() for index in each)
    actors = info.get("actors", ())
    schema, settings = episode_schema(info["features"], actors), info["source"]
    for split, paths in files.items():
        for index, path in track(paths.items(), f"mirroring for {split}", "episodes", progress):
            episodes = [read_episode(path, index, info["features"], actors)]
            if split == "train":
                order = np.random.default_rng([settings["seed"], index]).permutation(len(mirrors))
                drawn = [mirrors[one] for one in order[: settings["copies"]]]
                episodes += [one.episode(episodes[0], index + k * beyond) for k, one in enumerate(drawn, 1)]
            for episode in episodes:
                target = episode_path(output, split, episode.index)
                if not target.exists():
                    write_table(target, episode_table(episode, info["features"], schema, info["fps"]))
    write_counted(output, info, info["features"], is_complete=True)


# What is asked for


def _mirrors(features: dict[str, dict], settings: dict) -> list[Mirror]:
    """Every mirror there is.

    Raises:
        ValueError: a setting does not fit the features.
    """
    if not settings["flips"] or set(settings["flips"]) - set(FLIPS):
        raise ValueError(f"flips: expected some of {list(FLIPS)}, got {settings['flips']}")
    flips = [flip for flip in FLIPS if flip in settings["flips"]]
    named = {name.removeprefix("observation."): feature_of(one) for name, one in features.items()}
    for name, feature in named.items():
        feature.check_mirror(name, flips)
    pairs = _pairs(named, settings, flips)
    swaps = _swaps(named, settings["swaps"], flips)
    _check_all_named(named, {*pairs, *swaps}, settings)
    chosen = [part for size in range(1, len(flips) + 1) for part in itertools.combinations(flips, size)]
    if not 1 <= settings["copies"] <= len(chosen):
        raise ValueError(f"copies: {flips} make 1 to {len(chosen)} images, got {settings['copies']}")
    return [
        Mirror(part, named, pairs | {name: _becomes(named[name], part, each) for name, each in swaps.items()})
        for part in chosen
    ]


def _pairs(named: dict[str, Feature], settings: dict, flips: list[str]) -> dict[str, list[Pair]]:
    pairs: dict[str, list[Pair]] = {}
    vectors = sorted(name for name, feature in named.items() if feature.is_numeric)
    for what in ("positions", "directions"):
        for text in settings[what]:
            name, _, numbers = text.partition("=")
            if name not in vectors:
                raise ValueError(f"{what}: {name!r} is no vector of this recording, which has {vectors}")
            described = named[name].description
            dim = described["dim"]
            axes = [int(one) if one.isdigit() else dim for one in (numbers or "0,1").split(",")]
            if len(set(axes)) != 2 or max(axes) >= dim:
                raise ValueError(f"{what}: expected NAME or NAME=ACROSS,DOWN, two of the {dim} numbers, got {text!r}")
            pairs.setdefault(name, []).append(_pair(text, described, axes, what == "positions", flips))
    for name, named_pairs in pairs.items():
        axes = [axis for pair in named_pairs for axis in (pair.across, pair.down)]
        if len(set(axes)) < len(axes):
            raise ValueError(f"A number of {name!r} is told to be two things in positions and directions")
    return pairs


def _pair(text: str, feature: dict, axes: list[int], is_position: bool, flips: list[str]) -> Pair:
    bounds = [(feature["low"][axis], feature["high"][axis]) for axis in axes]
    if "diagonal" in flips and bounds[0] != bounds[1]:
        raise ValueError(f"{text}: a diagonal flip needs the same bounds across and down, got {bounds}")
    first, second = (low + high if is_position else 0.0 for low, high in bounds)
    mirrored = zip(FLIPS, bounds, strict=False)
    if not is_position and any(low != -high for flip, (low, high) in mirrored if flip in flips):
        raise ValueError(f"{text}: a direction has the same bounds forwards and backwards, got {bounds}")
    across, down = axes
    return Pair(across, down, (first, second))


def _check_all_named(named: dict[str, Feature], mirrored: set[str], settings: dict) -> None:
    """What is left out by mistake would be told wrongly in every image."""
    asked = {name for name, feature in named.items() if feature.needs_mirror_rule(has_swaps=name in mirrored)}
    if wrong := sorted(set(settings["same"]) - (asked - mirrored)):
        raise ValueError(f"same: expected some of {sorted(asked - mirrored)}, got {wrong}")
    if missing := sorted(asked - mirrored - set(settings["same"])):
        raise ValueError(
            f"What becomes of {missing} in a mirror? Name vectors in positions (--position), directions (--direction) "
            "or same (--same), and what discrete actions become in swaps (--swap)"
        )


def _swaps(named: dict[str, Feature], texts: Sequence[str], flips: list[str]) -> dict[str, dict[str, list[tuple]]]:
    """`["horizontal:left=right"]` as `{"action": {"horizontal": [(0, 1)]}}`."""
    discrete = [name for name, feature in named.items() if feature.is_discrete]
    if texts and not discrete:
        kinds = sorted({feature.kind for name, feature in named.items() if name.partition(".")[0] == ACTION})
        raise ValueError(f"swaps are of discrete actions, and this recording's are {', '.join(kinds)}")
    swaps: dict[str, dict[str, list[tuple]]] = {}
    for text in texts:
        *column, flip, pair = text.split(":") if text.count(":") in (1, 2) else ("", "")
        name = column[0] if column else discrete[0]
        if name not in discrete or (not column and len(discrete) > 1):
            raise ValueError(f"swaps: expected PART:FLIP:ONE=OTHER with a part of {discrete}, got {text!r}")
        names, count = named[name].description.get("names") or [], named[name].description["n"]
        numbers = [names.index(one) if one in names else int(one) if one.isdigit() else -1 for one in pair.split("=")]
        if flip not in flips or len(numbers) != 2 or not all(0 <= one < count for one in numbers):
            choices = names or f"0 to {count - 1}"
            raise ValueError(f"swaps: expected FLIP:ONE=OTHER of flips {flips} and actions {choices}, got {text!r}")
        swaps.setdefault(name, {}).setdefault(flip, []).append(tuple(numbers))
    return swaps


def _becomes(action: Feature, flips: tuple[str, ...], swaps: dict[str, list[tuple]]) -> np.ndarray:
    """What becomes of each discrete action by these flips, int64 `(n,)`."""
    becomes = np.arange(action.description["n"])
    for one, other in (pair for flip in flips for pair in swaps.get(flip, ())):
        becomes = np.where(becomes == one, other, np.where(becomes == other, one, becomes))
    return becomes
