"""Recorded trajectories: their files, and all rows of a split as flat arrays.

    <root>/data/train/episode_000000.parquet    one file an episode, under LeRobot's column names
    <root>/data/test/episode_000001.parquet
    <root>/meta/info.json                       senses, action, environments, seed, counts

An episode of T actions has T + 1 rows: row t < T holds observation t, action t and what that action led to
(`next.reward`, `next.done` for an end in the world, `next.truncated` for one by the clock); row T holds the last
observation and an empty action, marked by `action_is_pad`. `datasets.load_dataset("parquet", data_files=...)` reads
the same files.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pan_hf.arguments import checked, least
from pan_hf.data.episodes import (
    SPLITS,
    Episode,
    episode_files,
    mask_columns,
    read_columns,
    read_info,
    read_metadata,
)
from pan_hf.data.frame_store import IN_MEMORY_BYTES, FrameArrays, num_bytes
from pan_hf.features import ACTION, Feature, action_column, action_parts, feature_of
from pan_hf.hub import on_disk
from pan_hf.modeling.display_pan import strip_html

# Decoding PNG leaves the lock of the interpreter for half of its time: more threads cost time (measured: 1, 2, 4).
_READ_THREADS = 2
# Room for more than this is made only when the first picture is seen to be what meta/info.json says.
_UNSEEN_BYTES = 2**28


def read_episode(path: Path, index: int, features: dict[str, dict], actors: Sequence[str] = ()) -> Episode:
    """The episode number `index` of a recording, as it was played.

    Args:
        features, actors: as in `meta/info.json`.

    Raises:
        ValueError: the file is damaged or does not fit the features.
    """
    table = _read_table(path, features, actors)
    columns = {}
    for name, described in features.items():
        feature, rows = feature_of(described), table[name]
        if feature.row_shape is not None:
            rows = np.empty((len(table[name]), *feature.row_shape), feature.row_dtype)
            _decode(table[name], rows, feature, index)
        is_present = table.get(_present(name), np.ones(len(rows), bool))
        columns[name] = [
            value if here else None for value, here in zip(feature.recorded(rows), is_present, strict=True)
        ]
    parts = {part: columns[action_column(part)][:-1] for part in action_parts(features)}
    steps = [dict(zip(parts, step, strict=True)) for step in zip(*parts.values(), strict=True)]
    return Episode(
        environment=table["environment"],
        index=index,
        seed=table["seed"],
        task=table["task"],
        observations={
            name.removeprefix("observation."): values
            for name, values in columns.items()
            if name.startswith("observation.")
        },
        actions=parts.get(ACTION, steps),
        rewards=table["next.reward"][:-1].tolist(),
        is_done=bool(table["next.done"].any()),
        is_truncated=bool(table["next.truncated"].any()),
        action_masks={
            column.removeprefix(f"{ACTION}."): list(table[name]) for name, column in mask_columns(features).items()
        },
        actor_rewards={actor: table[f"next.reward.{actor}"][:-1].tolist() for actor in actors},
        actor_dones={actor: table[f"next.done.{actor}"][:-1].tolist() for actor in actors},
    )


@dataclass(repr=False)
class Trajectories:
    """All frames of a split, as flat arrays over its N rows, episode after episode.

    Args:
        features: `observation.<sense>` and `action` (or `action.<part>`), described as in `meta/info.json`.
        observations: by sense: images uint8 `(N, 3, H, W)`, depth uint16 `(N, 1, H, W)` (in memory or mapped, see
            `frame_store`), vectors float32 `(N, D)`, texts str `(N,)`. Where an optional sense is absent stands what
            was seen of it last.
        actions: int64 `(N,)`, float32 `(N, D)` or str `(N,)`; empty where `action_is_pad`. A dict of these by part
            where an action has several.
        rewards: float32 `(N,)`, after the action of the row, of all actors together.
        dones: bool `(N,)`, the row's action ended the episode in the world.
        truncateds: bool `(N,)`, the episode was cut short after the row's action.
        action_is_pad: bool `(N,)`, the last row of every episode.
        episode: int64 `(N,)`, the row's episode, 0 to E - 1.
        episode_starts: int64 `(E,)`, first row of each episode.
        episode_lengths: int64 `(E,)`, rows of each episode.
        episode_indices: int64 `(E,)`, number of each episode in its recording.
        tasks: `(E,)` texts that hold for a whole episode, "" where there is none.
        environments: `(E,)` environment ids.
        seeds: `(E,)` seeds the environment was reset with.
        fingerprints: `(E,)` 16 hex digits each, equal exactly when actions, first and last frame are.
        present: by optional sense, bool `(N,)`: the rows in which it is there.
        action_masks: by part of the action, bool `(N, n)`: the choices that are allowed at the row's observation.
        actor_rewards, actor_dones: by actor, float32 and bool `(N,)`.
    """

    features: dict[str, dict]
    observations: dict[str, np.ndarray]
    actions: Any  # an array, or arrays by part
    rewards: np.ndarray
    dones: np.ndarray
    truncateds: np.ndarray
    action_is_pad: np.ndarray
    episode: np.ndarray
    episode_starts: np.ndarray
    episode_lengths: np.ndarray
    episode_indices: np.ndarray
    tasks: list[str]
    environments: list[str]
    seeds: list[int]
    fingerprints: list[str]
    present: dict[str, np.ndarray] = field(default_factory=dict)
    action_masks: dict[str, np.ndarray] = field(default_factory=dict)
    actor_rewards: dict[str, np.ndarray] = field(default_factory=dict)
    actor_dones: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def actions_by_part(self) -> dict[str, np.ndarray]:
        """The actions of each part, also of an action of one part, which is called `action`."""
        return self.actions if isinstance(self.actions, dict) else {ACTION: self.actions}

    def all_rewards(self) -> np.ndarray:
        """Every reward of the split, `(n,)`: those of each actor too, none of the rows behind an episode's end."""
        return np.concatenate([each[~self.action_is_pad] for each in (self.rewards, *self.actor_rewards.values())])

    def __repr__(self) -> str:
        senses = ", ".join(
            f"{name} {values.dtype}{list(values.shape[1:])}" for name, values in self.observations.items()
        )
        worlds = ", ".join(sorted(set(self.environments)))
        steps = len(self) - self.num_episodes
        return (
            f"Trajectories({self.num_episodes} episodes, {steps} transitions of {worlds}: {senses}; "
            f"rewards {self.rewards.min():.3g} to {self.rewards.max():.3g})"
        )

    def _repr_html_(self) -> str:
        strips = {}
        for name, values in self.observations.items():
            feature = feature_of(self.features[f"observation.{name}"])
            if feature.is_shown:
                frames = feature.to_frames(torch.from_numpy(np.array(values[: self.episode_lengths[0]])))
                strips[f"{name}, first episode"] = torch.from_numpy(frames).movedim(-1, 1)  # (T, 3, H, W)
        return strip_html(strips, repr(self))

    @property
    def num_episodes(self) -> int:
        return len(self.episode_starts)

    def episodes_of(self, environment: str | None) -> np.ndarray:
        """Episodes (`int64`, 0 to E - 1) of one environment, or all when None.

        Raises:
            ValueError: there is none; the message names the environments there are.
        """
        if environment is None:
            return np.arange(self.num_episodes)
        episodes = np.flatnonzero(np.array(self.environments) == environment)
        if not len(episodes):
            raise ValueError(f"No episode of {environment!r}; there are episodes of {sorted(set(self.environments))}")
        return episodes

    @checked()
    def select(self, episodes: Sequence[int]) -> Trajectories:
        """Some of the episodes (0 to E - 1), in the order given, as trajectories of their own. Raises ValueError for
        none, and for numbers beyond."""
        if not len(episodes) or not all(-self.num_episodes <= episode < self.num_episodes for episode in episodes):
            raise ValueError(f"episodes: expected some of 0 to {self.num_episodes - 1}, got {list(episodes)[:20]}")
        starts, lengths = self.episode_starts[episodes], self.episode_lengths[episodes]
        spans = zip(starts, lengths, strict=True)
        rows = np.concatenate([np.arange(start, start + length) for start, length in spans])
        names: tuple[str, ...] = ("observations", "actions", "rewards", "dones", "truncateds", "action_is_pad")
        names += ("present", "action_masks", "actor_rewards", "actor_dones")
        by_row: dict = {name: map_columns(getattr(self, name), lambda column: column[rows]) for name in names}
        by_episode = ("tasks", "environments", "seeds", "fingerprints")
        of_episodes: dict = {name: [getattr(self, name)[episode] for episode in episodes] for name in by_episode}
        return Trajectories(
            features=self.features,
            **by_row,
            episode=np.repeat(np.arange(len(lengths)), lengths),
            episode_starts=np.cumsum(lengths) - lengths,
            episode_lengths=lengths,
            episode_indices=self.episode_indices[episodes],
            **of_episodes,
        )

    @checked(num_steps=least(0))
    def windows(self, num_steps: int, environment: str | None = None) -> np.ndarray:
        """Rows (`int64`) from which `num_steps` transitions follow inside one episode.

        Raises:
            ValueError: no episode is that long, or there is none of `environment`.
        """
        episodes = self.episodes_of(environment)
        counts = self.episode_lengths[episodes] - num_steps
        if counts.max() <= 0:
            longest = episodes[np.argmax(counts)]
            raise ValueError(
                f"No episode has {num_steps} transitions: the longest, episode {self.episode_indices[longest]} of "
                f"{self.environments[longest]}, has {self.episode_lengths[longest] - 1}. Use a shorter window or "
                "horizon, or record longer episodes."
            )
        starts = zip(self.episode_starts[episodes], counts, strict=True)
        return np.concatenate([np.arange(start, start + max(count, 0)) for start, count in starts])


def map_columns(columns: Any, function: Callable) -> Any:
    """`function` of a column; by name where there are several."""
    return {name: function(one) for name, one in columns.items()} if isinstance(columns, dict) else function(columns)


@checked(in_memory=least(0))
def load_trajectories(
    root: str | Path,
    split: str,
    in_memory: int = IN_MEMORY_BYTES,
    revision: str | None = None,
    episodes: Iterable[int] | None = None,
) -> Trajectories:
    """Reads a split.

    Args:
        root: a folder that `pan record` or `pan import` wrote, or the Hub id that `pan push --data` gave one.
        split: `"train"` or `"test"`.
        in_memory: bytes up to which frames are held in memory; more are mapped from files in `<root>/frames`, which
            are written the first time.
        revision (`str`, *optional*): branch, tag or commit of a data set on a Hub.
        episodes: numbers of the episodes to read (see `episode_files`), in this order, always into memory; all by
            default.

    Raises:
        FileNotFoundError: `root` holds no recording.
        HubError: the Hub did not give it.
        ValueError: the split is unknown or empty, the recording was stopped before its bounds were measured, or a file
            is damaged or does not fit `meta/info.json`.
        OSError: the disk is too small for the frames' files.
    """
    if split not in SPLITS:
        raise ValueError(f"Expected the split 'train' or 'test', got {split!r}")
    root = on_disk(root, "dataset", revision, only=("meta/*", f"data/{split}/*"))
    info = read_info(root)
    files = episode_files(root, split)
    if not files:
        raise ValueError(f"{root} has no {split} episode; run the same `pan record` again, or with more episodes")
    if episodes is not None:
        if unknown := [index for index in episodes if index not in files] or not episodes:
            raise ValueError(f"episodes: expected some of {root}'s {split} episodes, {_brief(files)}, got {unknown}")
        files, in_memory = {index: files[index] for index in episodes}, sys.maxsize
    return load_files(root, split, info, files, in_memory)


def load_files(
    root: Path, split: str, info: Mapping[str, Any], files: Mapping[int, Path], in_memory: int = sys.maxsize
) -> Trajectories:
    """Reads some episodes of a split whose folder is known.

    Args:
        info: what `meta/info.json` holds; files: by number, see `episode_files`.

    Raises:
        ValueError, OSError: as for [`load_trajectories`].
    """
    features, actors = info["features"], info.get("actors", ())
    kinds = {name: feature_of(described) for name, described in features.items()}
    if unbounded := [name for name, feature in kinds.items() if not feature.is_measured]:
        raise ValueError(f"{root}: recording stopped before the bounds of {unbounded} were measured; run it again")
    lengths = np.array([_num_rows(path) for path in files.values()])
    starts = np.cumsum(lengths) - lengths
    shapes = {
        name.removeprefix("observation."): ((int(lengths.sum()), *feature.row_shape), feature.row_dtype)
        for name, feature in kinds.items()
        if feature.row_shape is not None
    }
    if sum(num_bytes(*kind) for kind in shapes.values()) > _UNSEEN_BYTES:
        index = next(iter(files))
        _check_first(files[index], index, {f"observation.{name}": kinds[f"observation.{name}"] for name in shapes})
    frames = FrameArrays(root, split, files.values(), shapes, in_memory)
    with ThreadPoolExecutor(_READ_THREADS) as pool, frames.filling() as missing:
        # an optional picture is read all the same: its column says where it is there
        ready = {
            f"observation.{sense}"
            for sense in set(shapes) - set(missing)
            if not kinds[f"observation.{sense}"].is_optional
        }
        wanted = {name: one for name, one in features.items() if name not in ready}

        def read(index: int, path: Path, start: int) -> dict[str, Any]:
            table = _read_table(path, wanted, actors)
            for sense in shapes:
                cells = table.pop(f"observation.{sense}", None)
                if sense in missing:
                    _decode(cells, missing[sense][start:], kinds[f"observation.{sense}"], index)
            return table

        tables = list(pool.map(read, files, files.values(), starts))
    return _assemble(list(files), tables, features, frames.arrays, actors)


def _check_first(path: Path, index: int, images: dict[str, Feature]) -> None:
    """Compares the first picture of each column with `meta/info.json`. What that says is not ours alone to write, and
    room for all of them may be more than the disk has."""
    table = _read_table(path, {name: feature.description for name, feature in images.items()})
    for name, feature in images.items():
        try:
            feature.decode(table[name][0])
        except (OSError, TypeError, ValueError) as error:
            raise _not_as_described(index, 0, feature, error) from error


def _brief(numbers: Iterable[int]) -> str:
    numbers = list(numbers)
    return ", ".join(map(str, numbers[:5])) + (f", ... {numbers[-1]}" if len(numbers) > 5 else "")


_COLUMNS = ("next.reward", "next.done", "next.truncated", "action_is_pad")
_CONSTANT = ("task", "environment", "seed")


def _present(column: str) -> str:
    """Where `_read_table` says in which rows an optional sense is there."""
    return f"{column}.present"


def _read_table(path: Path, features: dict[str, dict], actors: Sequence[str] = ()) -> dict[str, Any]:
    """The columns of a file, see `Feature.read`, what is constant as one value. Of an optional sense the gaps are
    filled, see [`Trajectories`], and `<column>.present` says where they were."""
    plain = [*_COLUMNS, *(f"next.{what}.{actor}" for actor in actors for what in ("reward", "done"))]
    masks = mask_columns(features)
    table = read_columns(path, [*features, *masks, *plain, *_CONSTANT])
    columns: dict[str, Any] = {}
    try:
        for name, described in features.items():
            feature, column = feature_of(described), table[name]
            if feature.is_optional:
                columns[_present(name)] = column.is_valid().to_numpy()
                column = feature.filled(column)
            columns[name] = feature.read(column)
        columns |= {name: table[name].to_numpy() for name in plain}
        columns |= {name: np.array(table[name].to_pylist(), bool) for name in masks}
        columns |= {name: table[name][0].as_py() for name in _CONSTANT}
    except (pa.ArrowException, KeyError, IndexError, ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged or does not fit meta/info.json ({error}); record it again") from error
    is_pad = columns["action_is_pad"]
    if len(is_pad) < 2 or not is_pad[-1] or is_pad[:-1].any():
        raise ValueError(f"{path} is not one whole episode: action_is_pad marks rows {np.flatnonzero(is_pad)}")
    if not np.isfinite(columns["next.reward"]).all():
        raise ValueError(f"{path}: rewards that are no finite numbers; delete the episode and record it again")
    return columns


def _num_rows(path: Path) -> int:
    try:
        return read_metadata(path).num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run the same recording again") from error


def _assemble(
    indices: list[int], tables: list[dict], features: dict, frames: dict[str, np.ndarray], actors: Sequence[str]
) -> Trajectories:
    lengths = np.array([len(table["action_is_pad"]) for table in tables])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])

    def joined(name: str) -> np.ndarray:
        return np.concatenate([table[name] for table in tables])

    senses = {name.removeprefix("observation."): name for name in features if name.startswith("observation.")}
    observations = {sense: frames[sense] if sense in frames else joined(column) for sense, column in senses.items()}
    rewards, dones, truncateds, action_is_pad = map(joined, _COLUMNS)
    parts = {part: joined(action_column(part)) for part in action_parts(features)}
    actions: Any = parts.get(ACTION, parts)
    spans = [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return Trajectories(
        features=features,
        observations=observations,
        actions=actions,
        rewards=rewards,
        dones=dones,
        truncateds=truncateds,
        action_is_pad=action_is_pad,
        episode=np.repeat(np.arange(len(tables)), lengths),
        episode_starts=starts,
        episode_lengths=lengths,
        episode_indices=np.array(indices),
        tasks=[table["task"] for table in tables],
        environments=[table["environment"] for table in tables],
        seeds=[table["seed"] for table in tables],
        fingerprints=[_fingerprint(parts, observations, span) for span in spans],
        present={sense: joined(_present(name)) for sense, name in senses.items() if _present(name) in tables[0]},
        action_masks={column.removeprefix(f"{ACTION}."): joined(n) for n, column in mask_columns(features).items()},
        actor_rewards={actor: joined(f"next.reward.{actor}") for actor in actors},
        actor_dones={actor: joined(f"next.done.{actor}") for actor in actors},
    )


def _decode(cells: list, frames: np.ndarray, feature: Feature, index: int) -> None:
    """An episode's compressed cells of a sense into the first rows of `frames` `(N, *row_shape)`."""
    for row, cell in enumerate(cells):
        try:
            frames[row] = feature.decode(cell)
        except (OSError, TypeError, ValueError) as error:
            raise _not_as_described(index, row, feature, error) from error


def _not_as_described(index: int, row: int, feature: Feature, error: Exception) -> ValueError:
    return ValueError(
        f"Episode {index}, frame {row}: expected {feature.description} ({error}); delete the episode's file "
        "and record again"
    )


def _fingerprint(parts: dict[str, np.ndarray], observations: dict[str, np.ndarray], span: slice) -> str:
    """16 hex digits of SHA-256 over an episode's actions, first and last frame."""
    digest = hashlib.sha256()
    for part in sorted(parts):
        digest.update(_bytes(parts[part][span]))
    for sense in sorted(observations):
        digest.update(_bytes(observations[sense][[span.start, span.stop - 1]]))
    return digest.hexdigest()[:16]


def _bytes(values: np.ndarray) -> bytes:
    # A string array is as wide as its longest text, so its memory says more than its texts.
    return "\0".join(values.tolist()).encode() if values.dtype.kind == "U" else np.ascontiguousarray(values).tobytes()
