"""Minari data sets: spaces say what is a sense, and the environment comes with the data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.arguments import checked, least
from pan_hf.data.episodes import UNKNOWN_SEED, Episode
from pan_hf.data.importing.writing import make_episode, write_recording
from pan_hf.data.info import PICTURES, rare_options
from pan_hf.extras import extra
from pan_hf.features import View, feature_of, task_of


@checked(fps=least(0, above=True), **PICTURES)
def import_minari(
    data: str | os.PathLike,
    output: str | Path,
    *,
    map: Mapping[str, str] | None = None,
    image_size: int | None = None,
    crop: bool = False,
    depth_scale: float | None = None,
    depth_unit: str = "",
    fps: float | None = None,
    test_fraction: float = 0.1,
    progress: bool = True,
) -> dict:
    """Imports a Minari data set.

    Args:
        data: its id (`"D4RL/door/human-v2"`), looked for among the data sets that Minari has here, or its folder.
        output: folder of the recording, new or empty; it appears when all is there.
        map: observation -> sense name, or "" to leave it out. A bare observation is called `camera`, `state` or
            `text`, one of a Dict by its keys.
        image_size: side in pixels that pictures are averaged to; as they are when None.
        crop: cut pictures to their middle square first.
        depth_scale: what numbers of a picture that are no colours, such as depth, are multiplied with to be whole
            numbers of 16 bits: 1000 makes metres millimetres. Whole numbers need none.
        depth_unit: the unit that they have then, e.g. `"mm"`.
        fps: frames a second, for timestamps; what the environment says, or 10, when None.
        test_fraction: share of the episodes that is kept for testing, in [0, 0.5], or 1.
        progress: show it, on stderr.

    Returns:
        What `meta/info.json` holds. The environment is told as the data set names it, so `pan plan` can make it where
        it is installed.

    Raises:
        ImportError: minari or h5py is not installed.
        FileNotFoundError: there is no such data set.
        ValueError: a space that no sense can hold, or an episode that does not fit; nothing is written then.
    """
    source = _MinariSource(data, dict(map or {}), View(image_size, crop, depth_scale, depth_unit), fps)
    return write_recording(source, output, test_fraction, progress)


def _load(data: str | os.PathLike) -> Any:
    with extra("data", "Importing Minari data sets"):
        import h5py  # noqa: F401  (what Minari keeps most data sets in)
        import minari
    folder = Path(data)
    try:
        if (folder / "data").is_dir():
            return minari.MinariDataset(folder / "data")
        return minari.load_dataset(str(data))
    except (FileNotFoundError, ValueError) as error:
        raise FileNotFoundError(f"{data} is no Minari data set's folder, nor one that is here: {error}") from error


class _MinariSource:
    """See `writing.Source`."""

    has_rewards = True

    def __init__(self, data: str | os.PathLike, mapping: dict[str, str], view: View, fps: float | None):
        from pan_hf.envs.environment import spec_entry
        from pan_hf.envs.spaces import action_form_of, leaves, sense_name, senses_of

        self._data = _load(data)
        spec = self._data.env_spec
        names = [sense_name(*leaf) for leaf in leaves(self._data.observation_space)]
        keep = [name for name in names if mapping.get(name, name)]
        if not keep or set(mapping) - set(names):
            raise ValueError(f"{data}: map leaves no sense, or names one that is not there; there are {names}")
        rename = {name: sense for name, sense in mapping.items() if sense}
        self._senses = senses_of(self._data.observation_space, keep, rename, view, first=self._first)
        self._action = action_form_of(self._data.action_space)
        self.features = {f"observation.{sense.name}": sense.feature for sense in self._senses} | self._action.features
        entry = spec_entry(spec) if spec is not None else {"id": self._data.id}
        pictures = {"image_size": view.image_size, "crop": view.crop}
        symbols = [sense.own_name for sense in self._senses if feature_of(sense.feature).is_symbolic]
        pictures |= rare_options((), view.depth_scale, view.depth_unit, symbols)
        self.environment = {**entry, "keep": keep, "rename": rename, **pictures}
        self.fps = float(fps or 10)
        self.about = {"kind": "minari", "path": str(data), "map": mapping, **pictures}
        self.about |= {"episodes": len(self), "steps": int(self._data.total_steps)}

    def _first(self) -> Any:
        (episode,) = self._data.iterate_episodes([int(self._data.episode_indices[0])])
        return _at(episode.observations, 0)

    def __len__(self) -> int:
        return len(self._data)

    def episode(self, number: int) -> Episode:
        index = int(self._data.episode_indices[number])
        where = f"{self.about['path']}, episode {index}"
        (raw,) = self._data.iterate_episodes([index])
        (metadata,) = self._data.storage.get_episode_metadata([index])
        try:
            if number == 0:
                for sense in self._senses:
                    sense.check(_at(raw.observations, 0))
            frames = [_at(raw.observations, step) for step in range(_length(raw.observations))]
            observations = {sense.name: [sense.read(frame) for frame in frames] for sense in self._senses}
            num_actions = _length(raw.actions)
            actions = [self._action.from_environment(_at(raw.actions, step)) for step in range(num_actions)]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        task = task_of({sense: values[0] for sense, values in observations.items()}, self.features)
        seed = metadata.get("seed")
        seed = UNKNOWN_SEED if seed is None or not str(seed).isdigit() else int(seed)
        outcomes = {"rewards": raw.rewards, "dones": raw.terminations, "truncateds": raw.truncations}
        id = self.environment["id"]
        return make_episode(where, id, number, observations, actions, **outcomes, task=task, seed=seed)


def _length(values: Any) -> int:
    """Steps of nested columns; those that differ are said.

    Raises:
        ValueError: columns of different length.
    """
    if isinstance(values, Mapping | tuple):
        children = values.values() if isinstance(values, Mapping) else values
        lengths = {_length(child) for child in children}
        if len(lengths) != 1:
            raise ValueError(f"expected observations of one length, got {sorted(lengths)}")
        return lengths.pop()
    return len(values)


def _at(values: Any, step: int) -> Any:
    if isinstance(values, Mapping):
        return {name: _at(child, step) for name, child in values.items()}
    if isinstance(values, tuple):
        return tuple(_at(child, step) for child in values)
    value = values[step]
    return value.decode() if isinstance(value, bytes | np.bytes_) else value
