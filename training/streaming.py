"""Training on a recording that is read while it is trained on: memory holds a buffer of windows, not the recording.

Episodes are read in a random order, epoch after epoch. The windows of each go into a buffer, as often as their weight
says, and every window of a batch is drawn from the buffer at random. An episode is decoded and encoded once when it
comes in, and forgotten when none of its windows is left; that is about five times as many frames as the buffer has
windows. What was drawn depends on the seed alone. A checkpoint holds where the stream was (`stream.json`), so a
resumed run reads the episodes of its buffer again and goes on with the very same windows.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from pan_hf.data.compat import check_has_actors, check_reward_range
from pan_hf.data.episodes import episode_files, read_columns, read_info
from pan_hf.data.trajectories import load_files, load_trajectories
from pan_hf.data.windows import read_rows
from pan_hf.files import write_file
from pan_hf.training.sampling import (
    Weighing,
    change_weights,
    is_rare,
    make_encoded,
    outcome_entropy,
    outcome_entropy_by_kind,
    reward_boost,
)
from pan_hf.training.windows import Windows, median_frames

STATE = "stream.json"
SAMPLED = 32  # episodes that are read to know what a recording is like
CHUNK = 1024  # random numbers made at once
ORDER, COPIES, DRAW = range(3)  # of what a random number is; part of its seed


@dataclass
class DatasetStats:
    """What a stage must know of a whole recording, from reading a part of it.

    Args:
        median: by sense, what is usually seen: the median over rows of some episodes.
        weighing: how often its windows are drawn: rewards and ends of all episodes, changes of some.
        outcome_entropy: see `outcome_entropy_by_kind`, of some episodes.
    """

    median: dict[str, Tensor]
    weighing: Weighing
    outcome_entropy: dict[tuple, float]


def some_episodes(root: str | Path, seed: int, most_rows: int, among: list[int] | None = None) -> list[int]:
    """Numbers of episodes of the train split, in a random order, with `most_rows` rows together; at least one."""
    files = episode_files(Path(root), "train")
    numbers = sorted(files if among is None else among)
    chosen: list[int] = []
    rows = 0
    for number in np.random.default_rng(seed).permutation(numbers).tolist():
        rows += pq.read_metadata(files[number]).num_rows
        if chosen and rows > most_rows:
            break
        chosen.append(number)
    return chosen


def dataset_stats(model, processor, root: str | Path, episodes: list[int], seed: int) -> tuple[DatasetStats, Windows]:
    """Reads some of the episodes whole, of which it also gives the encoded windows, of the others rewards and ends
    alone."""
    chosen = np.random.default_rng(seed).permutation(episodes)[:SAMPLED]
    trajectories = load_trajectories(root, "train", episodes=chosen.tolist())
    tensors, _ = read_rows(trajectories, processor)
    steps, files = model.config.context_steps, episode_files(Path(root), "train")
    of_actors = {name: f"next.reward.{name}" for name in model.config.actors or ()}
    check_has_actors(trajectories.actor_rewards, list(of_actors))
    columns = ["next.reward", "next.done", *of_actors.values()]
    outcomes = [read_columns(files[number], columns) for number in episodes]
    for outcome in outcomes:
        by_actor = {name: outcome[column].to_numpy().copy() for name, column in of_actors.items()}
        check_reward_range(model.config, outcome["next.reward"].to_numpy().copy(), by_actor)
    rewards = [torch.from_numpy(one["next.reward"].to_numpy().copy()) for one in outcomes]
    dones = [torch.from_numpy(one["next.done"].to_numpy().astype(np.float32)) for one in outcomes]
    usual = float(torch.cat(rewards).median())
    # the last row of an episode has an empty action, so a window never reaches it
    pairs = [(r[:-1].unfold(0, steps, 1), d[:-1].unfold(0, steps, 1)) for r, d in zip(rewards, dones, strict=True)
             if len(r) > steps]  # fmt: skip
    if not pairs:
        raise ValueError(f"{root} has no episode with {steps} transitions; record longer episodes.")
    rare = torch.cat([is_rare(reward, done, usual) for reward, done in pairs])
    windows = make_encoded(model, processor, trajectories)[0]
    by_kind = outcome_entropy_by_kind(windows, trajectories)
    weights = change_weights(windows) * outcome_entropy(windows, trajectories, by_kind)
    plain = float(weights.mean())
    boost, share = reward_boost(rare, plain), float(rare.float().mean())
    mean = plain if boost is None else share * boost + (1 - share) * plain
    median = median_frames(tensors, model.config.coded_senses)
    return DatasetStats(median, Weighing(usual, boost, mean), by_kind), windows


class WindowStream(IterableDataset):
    """Windows of a recording, without end, shuffled in a buffer; to be batched by [`collate`].

    Args:
        root (`str` or `Path`): the recording; its train split is read.
        episodes (`list[int]`): numbers of the episodes to train on.
        make_data: `(trajectories) -> (dataset, weights)`, what an episode gives.
        seed (`int`): of order and draws.
        buffer (`int`): windows that are drawn from; the larger, the better they are mixed.
        least_rows (`int`): rows of the shortest episode that has a window; shorter ones are left out.
        keep_every (`int`): windows of a training step, all processes together: where the stream can be resumed.

    Raises:
        ValueError: no episode is long enough for a window.
    """

    def __init__(
        self,
        root: str | Path,
        episodes: list[int],
        make_data: Callable,
        seed: int,
        buffer: int,
        keep_every: int,
        least_rows: int = 2,
    ):
        self.root, self.make_data = Path(root), make_data
        self.info, self.files = read_info(root), episode_files(self.root, "train")
        self.episodes = [n for n in sorted(episodes) if pq.read_metadata(self.files[n]).num_rows >= least_rows]
        if not self.episodes:
            raise ValueError(f"{root} has no episode of {least_rows - 1} transitions; record longer episodes.")
        self.seed, self.size, self.keep_every = seed, buffer, keep_every
        self.drawn = self.num_read = 0
        self.buffer: list[tuple[int, int]] = []  # (episode, window of it)
        self.seen: dict[int, tuple[str, str]] = {}  # fingerprint and environment of every episode that was read
        self._open: dict[int, object] = {}
        self._left: Counter[int] = Counter()
        self._chances: tuple = (-1, None)
        self._kept: deque[dict] = deque(maxlen=8)

    def __iter__(self) -> Iterator[tuple]:
        while True:
            while len(self.buffer) < self.size:
                self._take_in()
            if self.drawn % self.keep_every == 0:
                self._kept.append(self._state())
            index = int(self._chance() * len(self.buffer))
            episode, window = self.buffer[index]
            self.buffer[index] = self.buffer[-1]  # a hole in the middle of a list would be expensive to close
            self.buffer.pop()
            dataset = self._open[episode]
            self._left[episode] -= 1
            if not self._left[episode]:
                del self._left[episode], self._open[episode]
            self.drawn += 1
            yield dataset, window

    def state_at(self, drawn: int) -> dict:
        """Where the stream was when so many windows had been drawn, a step or two ago."""
        state = next(state for state in [*self._kept, self._state()] if state["drawn"] == drawn)
        return state | {"seen": {str(number): names for number, names in self.seen.items()}}

    def resume(self, state: dict) -> None:
        """Goes on from where `state_at` says."""
        self.drawn, self.num_read = state["drawn"], state["num_read"]
        self.buffer = [tuple(pair) for pair in state["buffer"]]
        self.seen = {int(number): tuple(names) for number, names in state["seen"].items()}
        self._left = Counter(episode for episode, _ in self.buffer)
        self._open = {episode: self._read(episode)[0] for episode in self._left}

    def _state(self) -> dict:
        return {"drawn": self.drawn, "num_read": self.num_read, "buffer": list(self.buffer)}

    def _take_in(self) -> None:
        """Takes in the windows of the next episode, each as often as its weight says, a fraction by chance."""
        epoch, index = divmod(self.num_read, len(self.episodes))
        episode = self.episodes[self._random(ORDER, epoch).permutation(len(self.episodes))[index]]
        random = self._random(COPIES, self.num_read)
        self.num_read += 1
        dataset, weights = self._read(episode)
        copies = np.floor(weights.numpy() + random.random(len(weights))).astype(int)
        self.buffer += [(episode, window) for window in np.repeat(np.arange(len(copies)), copies).tolist()]
        self._left[episode] += int(copies.sum())
        if self._left[episode]:
            self._open[episode] = dataset

    def _read(self, episode: int) -> tuple:
        trajectories = load_files(self.root, "train", self.info, {episode: self.files[episode]})
        self.seen[episode] = (trajectories.fingerprints[0], trajectories.environments[0])
        return self.make_data(trajectories)

    def _chance(self) -> float:
        """In [0, 1), of the next draw."""
        chunk, index = divmod(self.drawn, CHUNK)
        if self._chances[0] != chunk:
            self._chances = chunk, self._random(DRAW, chunk).random(CHUNK)
        return self._chances[1][index]

    def _random(self, what: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, what, number])


def collate(windows: dict | list[tuple]) -> dict[str, Any]:
    """Collates what a [`WindowStream`] gives: one batch of windows of many episodes. A data set in memory has gathered
    its batch already."""
    if isinstance(windows, dict):
        return windows
    return _joined([dataset.__getitems__([index]) for dataset, index in windows])


def some_windows(dataset: Windows | WindowStream, count: int) -> dict:
    """A batch of so many windows, of a data set in memory drawn by a seed of its own, of a stream the next ones."""
    if isinstance(dataset, WindowStream):
        return collate(list(itertools.islice(dataset, count)))
    drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count]
    return dataset.__getitems__(drawn.tolist())


def _joined(parts: list) -> Any:
    """Tensors of equal rank end to end, inside dicts and lists of any depth."""
    first = parts[0]
    if isinstance(first, dict):
        return {name: _joined([part[name] for part in parts]) for name in first}
    if isinstance(first, list):
        return [_joined(list(each)) for each in zip(*parts, strict=True)]
    return torch.cat(parts)


def as_they_are(model):
    """The model with senses that stay as they are now, for encoding what comes later; all else is shared."""
    still = copy.copy(model)
    still._modules = dict(model._modules)
    still._modules["senses"] = copy.deepcopy(model.senses).eval()
    return still


def write_state(folder: Path, stream: WindowStream, drawn: int) -> None:
    """Writes where a stream was into a checkpoint."""
    write_file(folder / STATE, json.dumps(stream.state_at(drawn)))
