"""Mirror images of recorded episodes, as `pan mirror` makes them.

Where a world's laws know no left and right, or no up and down, an episode seen in a mirror could have happened as
well. A model that is not told has to see both, and twenty thousand frames are soon known by heart. What is mirrored is
the recording: pictures are flipped, and positions, directions and actions go with them. Test episodes stay as they
are.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pan_hf.recording_info import write_counted
from pan_hf.trajectories import (
    SPLITS,
    UNKNOWN_SEED,
    Episode,
    episode_files,
    episode_path,
    episode_schema,
    episode_table,
    read_episode,
    read_info,
    recording_folder,
    write_info,
    write_table,
)

FLIPS = ("horizontal", "vertical", "diagonal")
AXES = {"horizontal": 0, "vertical": 1}  # which number of a position or direction points along it


@dataclass(frozen=True)
class Mirror:
    """What is done to an episode.

    Args:
        flips (`tuple[str, ...]`): of `FLIPS`, in this order: left and right change places, up and down, rows and
            columns.
        features: as in `meta/info.json`.
        positions, directions: vectors whose first two numbers are one.
        swaps: by flip, pairs of discrete actions that change places.
    """

    flips: tuple[str, ...]
    features: Mapping[str, dict]
    positions: frozenset[str]
    directions: frozenset[str]
    swaps: Mapping[str, list[tuple[int, int]]]

    def episode(self, episode: Episode, index: int) -> Episode:
        """The mirror image of an episode, under a number of its own and with no seed: no reset leads to it."""
        observations = {name: self._values(name, values) for name, values in episode.observations.items()}
        actions = self._values("action", episode.actions)
        return replace(episode, index=index, seed=UNKNOWN_SEED, observations=observations, actions=actions)

    def _values(self, name: str, values: list) -> list:
        feature = self.features[name if name == "action" else f"observation.{name}"]
        if feature["kind"] == "image":
            return [self._picture(value) for value in values]
        if feature["kind"] == "vector" and name in self.positions | self.directions:
            return list(self._vectors(np.array(values, np.float32), feature, name in self.positions))
        return self._actions(values, feature["n"]) if feature["kind"] == "discrete" else values

    def _picture(self, picture: np.ndarray) -> np.ndarray:
        """`(H, W, C)`."""
        flipped = picture[:: -1 if "vertical" in self.flips else 1, :: -1 if "horizontal" in self.flips else 1]
        return np.ascontiguousarray(flipped.swapaxes(0, 1) if "diagonal" in self.flips else flipped)

    def _vectors(self, values: np.ndarray, feature: dict, is_position: bool) -> np.ndarray:
        """`(T, D)`; a position is mirrored at the middle of its bounds, a direction at nothing."""
        for flip, axis in AXES.items():
            if flip in self.flips:
                around = feature["low"][axis] + feature["high"][axis] if is_position else 0.0
                values[:, axis] = np.float32(around) - values[:, axis]
        if "diagonal" in self.flips:
            values[:, :2] = values[:, 1::-1]
        return values

    def _actions(self, values: list[int], count: int) -> list[int]:
        becomes = np.arange(count)
        for flip in self.flips:
            for one, other in self.swaps.get(flip, ()):
                becomes = np.where(becomes == one, other, np.where(becomes == other, one, becomes))
        return becomes[values].tolist()


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
        flips: which changes the world's laws are blind to: `"horizontal"` (left and right), `"vertical"` (up and
            down), `"diagonal"` (rows and columns). An image is one of them or several in a row.
        positions: vector senses, or `"action"`, whose first two numbers are a place in the picture, to the right and
            down or up, their bounds being its borders.
        directions: those whose first two numbers are a motion.
        same: vector senses, or `"action"`, that no mirror changes, as a temperature.
        swaps: `"horizontal:left=right"` for discrete actions that change places, by name or number.
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
    settings = {"flips": list(flips), "positions": list(positions), "directions": list(directions)}
    settings |= {"same": list(same), "swaps": list(swaps), "copies": copies, "seed": seed}
    root = recording_folder(source)
    before = read_info(root)
    if not before["complete"]:
        raise ValueError(f"The recording in {root} is not finished; finish it by the command that began it.")
    images = _images(before["features"], settings)
    info = {key: value for key, value in before.items() if key != "requested"}
    info["source"] = {"kind": "mirrored", **settings, "frames": before["frames"]}
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if (output / "meta" / "info.json").is_file() and (there := read_info(output)).get("source") == info["source"]:
            return there
        raise ValueError(f"{output} holds something else than these mirror images; choose a new or empty folder.")
    partial = output.with_name(f".{output.name}.mirroring")
    if partial.exists() and read_info(partial).get("source") != info["source"]:
        shutil.rmtree(partial)
    write_info(partial, info | {"complete": False})
    try:
        _write(root, partial, info, images, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped; run the same again to go on") from None
    if output.exists():
        output.rmdir()
    os.replace(partial, output)
    return info


def _write(root: Path, output: Path, info: dict, images: list[Mirror], progress: bool) -> None:
    from tqdm.auto import tqdm

    for stale in output.glob("data/*/.*.tmp"):
        stale.unlink()  # of a run that was killed while it wrote
    files = {split: episode_files(root, split) for split in SPLITS}
    beyond = 1 + max(index for each in files.values() for index in each)
    schema, settings = episode_schema(info["features"]), info["source"]
    for split, paths in files.items():
        for index, path in tqdm(paths.items(), split, disable=not progress, unit="episode", file=sys.stderr):
            original = read_episode(path, index, info["features"])
            drawn = np.random.default_rng([settings["seed"], index]).permutation(len(images))[: settings["copies"]]
            written = [original] if split == "test" else [original, *_mirrored(original, images, drawn, beyond)]
            for episode in written:
                target = episode_path(output, split, episode.index)
                if not target.exists():
                    write_table(target, episode_table(episode, info["features"], schema, info["fps"]))
    write_counted(output, info, info["features"], is_complete=True)


def _mirrored(original: Episode, images: list[Mirror], drawn: np.ndarray, beyond: int) -> list[Episode]:
    """Images of an episode, numbered past all that were recorded."""
    return [images[one].episode(original, original.index + (k + 1) * beyond) for k, one in enumerate(drawn)]


def _images(features: dict[str, dict], settings: dict) -> list[Mirror]:
    """Every mirror image there is.

    Raises:
        ValueError: a setting does not fit the features.
    """
    unknown = sorted(set(settings["flips"]) - set(FLIPS))
    if unknown or not settings["flips"]:
        raise ValueError(f"flips: expected some of {list(FLIPS)}, got {settings['flips']}")
    named = {name.removeprefix("observation."): feature for name, feature in features.items()}
    _check_named(named, settings)
    flips = [flip for flip in FLIPS if flip in settings["flips"]]
    for name, feature in named.items():
        if feature["kind"] == "image" and "diagonal" in flips and feature["shape"][0] != feature["shape"][1]:
            raise ValueError(f"{name} is {feature['shape']}, and only squares have a diagonal flip; leave it out")
    for name in settings["positions"]:
        _check_bounds(name, named[name], flips, is_position=True)
    for name in settings["directions"]:
        _check_bounds(name, named[name], flips, is_position=False)
    shared = {"features": features, "swaps": _swaps(named["action"], settings["swaps"], flips)}
    shared |= {side: frozenset(settings[side]) for side in ("positions", "directions")}
    chosen = [part for size in range(1, len(flips) + 1) for part in itertools.combinations(flips, size)]
    if not 1 <= settings["copies"] <= len(chosen):
        raise ValueError(f"copies: {flips} have 1 to {len(chosen)} images, got {settings['copies']}")
    return [Mirror(part, **shared) for part in chosen]


def _check_named(named: dict[str, dict], settings: dict) -> None:
    """Every vector, and a discrete action, is said to be something, once."""
    told = [*settings["positions"], *settings["directions"], *settings["same"]]
    vectors = {name for name, feature in named.items() if feature["kind"] == "vector"}
    discrete = {name for name, feature in named.items() if feature["kind"] == "discrete"}
    if wrong := sorted(set(told) - vectors - (discrete & set(settings["same"]))):
        raise ValueError(f"{wrong} are no vectors of this recording, which has {sorted(vectors)}")
    if twice := sorted({name for name in told if told.count(name) > 1}):
        raise ValueError(f"{twice} are named twice; each is positions, directions or same")
    if missing := sorted((vectors | (discrete if not settings["swaps"] else set())) - set(told)):
        raise ValueError(
            f"What becomes of {missing} in a mirror? Name them in positions, directions or same (--position, "
            "--direction, --same), and what discrete actions become in swaps (--swap)"
        )


def _check_bounds(name: str, feature: dict, flips: list[str], is_position: bool) -> None:
    if feature["dim"] < 2:
        raise ValueError(f"{name} has one number, and a position or a direction has two")
    low, high = feature["low"], feature["high"]
    if "diagonal" in flips and (low[0], high[0]) != (low[1], high[1]):
        raise ValueError(f"{name}: a diagonal flip needs the same bounds for both numbers, got {low} and {high}")
    if not is_position and any(low[axis] != -high[axis] for flip, axis in AXES.items() if flip in flips):
        raise ValueError(f"{name}: a direction has the same bounds forwards and backwards, got {low} and {high}")


def _swaps(action: dict, told: Sequence[str], flips: list[str]) -> dict[str, list[tuple[int, int]]]:
    """`["horizontal:left=right"]` as `{"horizontal": [(0, 1)]}`."""
    if told and action["kind"] != "discrete":
        raise ValueError(f"swaps are of discrete actions, and this recording's are {action['kind']}")
    names = action.get("names") or []
    found: dict[str, list[tuple[int, int]]] = {}
    for each in told:
        flip, _, pair = each.partition(":")
        actions = [names.index(name) if name in names else name for name in pair.split("=")]
        numbers = [int(one) if str(one).isdigit() else -1 for one in actions]
        if flip not in flips or len(numbers) != 2 or not all(0 <= one < action["n"] for one in numbers):
            known = names or f"0 to {action['n'] - 1}"
            raise ValueError(f"swaps: expected FLIP:ONE=OTHER of flips {flips} and actions {known}, got {each!r}")
        found.setdefault(flip, []).append((numbers[0], numbers[1]))
    return found
