"""Windows of trajectories as batches: gathered from flat arrays, so that a batch costs one index a tensor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pan_hf.trajectories import Trajectories


def sense_tensors(trajectories: Trajectories, model, tokenizer) -> dict[str, Tensor]:
    """Every row's observation by sense, as the model takes it: images uint8 `(N, C, H, W)`, vectors `(N, dim)`, text
    ids `(N, max_length)`. Raises ValueError where the recording does not hold a configured sense, or holds it
    otherwise."""
    tensors = {}
    for name, sense in model.config.senses.items():
        if name not in trajectories.observations:
            known = sorted(trajectories.observations)
            raise ValueError(f"The model has a sense {name!r}, the recording has {known}; record it, or build anew.")
        values = trajectories.observations[name]
        if sense.kind == "text":
            tensors[name] = tokenize(values, tokenizer, sense.max_length)
            continue
        expected = (sense.channels, sense.height, sense.width) if sense.kind == "image" else (sense.dim,)
        if values.shape[1:] != expected:
            raise ValueError(
                f"Sense {name!r}: the recording has shape {values.shape[1:]}, the model expects {expected}."
            )
        tensors[name] = torch.from_numpy(values)
    return tensors


def tokenize(texts, tokenizer, max_length: int) -> Tensor:
    """Texts `(N,)` -> ids `(N, max_length)`, each distinct text once; longer ones are cut, shorter ones padded."""
    distinct, inverse = np.unique(np.asarray(texts), return_inverse=True)
    ids = tokenizer(
        [str(text) for text in distinct],
        padding="max_length",
        truncation=True,
        max_length=max_length,
        add_special_tokens=False,
        return_tensors="pt",
    )["input_ids"]
    return ids[torch.from_numpy(inverse)]


def action_tensor(trajectories: Trajectories, model, tokenizer) -> Tensor:
    """Every row's action: int64 `(N,)`, float `(N, dim)` or ids `(N, max_length)`."""
    action = model.config.action
    if action.kind == "text":
        return tokenize(trajectories.actions, tokenizer, action.max_length)
    return torch.from_numpy(trajectories.actions)


class Windows(Dataset):
    """Windows of `num_steps` transitions from every row that can start one.

    Args:
        trajectories: a split.
        tensors: by sense, every row's observation (or, encoded, see [`encode_all`], a `state`).
        actions: every row's action.
        num_steps (`int`): T.
        is_encoded (`bool`): `tensors` is `{"codes": {...}, "text": {...}, "prefix": ...}`.
        constant (`set[str]`): senses that hold for the whole episode, given once a window.
    """

    def __init__(self, trajectories, tensors: dict, actions: Tensor, num_steps: int, is_encoded: bool, constant: set):
        self.rows = torch.from_numpy(trajectories.windows(num_steps))
        self.tensors, self.actions, self.num_steps = tensors, actions, num_steps
        self.rewards = torch.from_numpy(trajectories.rewards)
        self.dones = torch.from_numpy(trajectories.dones).float()
        self.is_encoded, self.constant = is_encoded, constant
        self.importance = torch.ones(len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict:
        first = self.rows[torch.as_tensor(indices)]
        transitions = first.unsqueeze(1) + torch.arange(self.num_steps)
        frames = first.unsqueeze(1) + torch.arange(self.num_steps + 1)
        batch = {
            "action": self.actions[transitions],
            "reward": self.rewards[transitions],
            "done": self.dones[transitions],
            "importance": self.importance[torch.as_tensor(indices)],
        }
        if not self.is_encoded:
            return batch | {"observation": self._gather(self.tensors, first, frames)}
        state = {
            "codes": {n: [level[frames].long() for level in levels] for n, levels in self.tensors["codes"].items()},
            "text": {name: ids[frames] for name, ids in self.tensors["text"].items()},
        }
        if self.tensors.get("latents"):
            state["latents"] = {name: latents[frames] for name, latents in self.tensors["latents"].items()}
        if self.tensors["prefix"] is not None:
            state["prefix"] = self.tensors["prefix"][first]
        return batch | {"state": state}

    def _gather(self, tensors: dict, first: Tensor, frames: Tensor) -> dict:
        return {name: values[first if name in self.constant else frames] for name, values in tensors.items()}


class CroppedFrames(Dataset):
    """Crops of frames for the senses, `(B, 3, ...)`: the neighbour in time, the frame, and what is usually seen there.

    Most of a frame is like most of the others, so crops are drawn where something moves or is rare: at equal time that
    is worth several times the frames. Vectors come whole.

    Args:
        trajectories: a split.
        tensors: by sense, every row's observation.
        senses: their configurations.
        crop_places (`int`): side of a crop, in places.
        usual (*optional*): by sense, what is usually seen; the median over these rows by default.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        tensors: dict[str, Tensor],
        senses: dict,
        crop_places: int = 2,
        usual: dict[str, Tensor] | None = None,
    ):
        rows = np.arange(len(trajectories))
        is_first = np.isin(rows, trajectories.episode_starts)
        self.neighbour = torch.from_numpy(np.where(is_first, rows + 1, rows - 1))
        self.tensors, self.senses, self.crop_places = tensors, senses, crop_places
        self.usual = usual or usually_seen(tensors)

    def __len__(self) -> int:
        return len(self.neighbour)

    def __getitems__(self, indices: list[int]) -> dict:
        rows = torch.as_tensor(indices)
        chance = torch.tensor([_chance(index) for index in indices])
        observation = {}
        for name, values in self.tensors.items():
            usual = self.usual[name].expand(len(rows), *self.usual[name].shape)
            triples = torch.stack([values[self.neighbour[rows]], values[rows], usual], 1)
            sense = self.senses[name]
            observation[name] = self._crop(triples, sense, chance) if sense.kind == "image" else triples
        return {"observation": observation}

    def _crop(self, triples: Tensor, sense, chance: Tensor) -> Tensor:
        rows, columns = sense.place_grid
        size, side = min(self.crop_places, rows, columns), sense.patch_size * sense.place_stride
        neighbour, frame, usual = triples.unbind(1)
        interest = 1.0 * (frame != neighbour).any(1) + 0.5 * (frame != usual).any(1)
        # (B, rows - size + 1, columns - size + 1); places first, then squares of them: few overlap
        interest = torch.nn.functional.avg_pool2d(torch.nn.functional.avg_pool2d(interest, side), size, 1)
        mass = (interest.flatten(1) + 0.02).double().cumsum(1)
        place = torch.searchsorted(mass, chance.unsqueeze(1) * mass[:, -1:]).squeeze(1).clamp(max=mass.shape[1] - 1)
        span = torch.arange(size)
        down = (place // interest.shape[2]).unsqueeze(1) + span
        across = (place % interest.shape[2]).unsqueeze(1) + span
        # (B, rows, columns, 3, C, side, side), of which each crop takes some rows and columns
        places = triples.unflatten(3, (rows, side)).unflatten(5, (columns, side)).permute(0, 3, 5, 1, 2, 4, 6)
        crops = places[torch.arange(len(triples))[:, None, None], down.unsqueeze(2), across.unsqueeze(1)]
        return crops.permute(0, 3, 4, 1, 5, 2, 6).reshape(*triples.shape[:3], size * side, size * side)


def usually_seen(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By sense, the median over 501 rows: what is usually seen."""
    found = {}
    for name, values in tensors.items():
        rows = torch.randint(len(values), (min(501, len(values)),), generator=torch.Generator().manual_seed(0))
        found[name] = values[rows].median(0).values
    return found


class Draw(int):
    """The index of a row that was drawn, and the number of the draw: what is random about a row in a batch depends on
    these two alone, not on the batch or the process that it came into."""

    number: int = 0

    def __new__(cls, index: int, number: int):
        draw = super().__new__(cls, index)
        draw.number = number
        return draw

    def __reduce__(self):
        return Draw, (int(self), self.number)


def _chance(index: int) -> float:
    """A number in [0, 1) for a draw."""
    return np.random.default_rng([int(index), getattr(index, "number", 0)]).random()


class WeightedRows(Sampler):
    """Endless draws with replacement, in proportion to weights; draw number `i` depends on the seed and `i` alone, so
    a resumed run continues the very sequence."""

    CHUNK = 4096

    def __init__(self, weights: Tensor, seed: int):
        self.weights, self.seed = weights.double(), seed

    def __len__(self) -> int:
        return 2**40

    def __iter__(self) -> Iterator[Draw]:
        for chunk in itertools.count():
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + chunk)
            drawn = torch.multinomial(self.weights, self.CHUNK, replacement=True, generator=generator).tolist()
            yield from map(Draw, drawn, itertools.count(chunk * self.CHUNK))


@torch.no_grad()
def encode_all(model, tensors: dict[str, Tensor], latents: bool, batch_size: int = 256) -> dict:
    """Every row's codes (int32), words and constant text, once and for all: what `Windows(is_encoded=True)`
    gathers."""
    config = model.config
    codes: dict[str, list[Tensor]] = {}
    found: dict[str, Tensor] = {}
    was_training = model.training
    model.eval()
    for name in config.place_senses:
        num_rows = len(tensors[name])
        for start in range(0, num_rows, batch_size):
            rows = slice(start, start + batch_size)
            levels, remainder = model.senses[name].encode(tensors[name][rows].to(model.device))
            if start == 0:  # whole at once: small parts would lie between what batches need and hold freed memory
                codes[name] = [torch.empty(num_rows, level.shape[1], dtype=torch.int32) for level in levels]
                if latents and remainder is not None:
                    found[name] = torch.empty(num_rows, *remainder.shape[1:])
            for store, level in zip(codes[name], levels, strict=True):
                store[rows] = level
            if name in found:
                found[name][rows] = remainder
    model.train(was_training)
    return {
        "codes": codes,
        "latents": found,
    } | words_of(model, tensors)


def words_of(model, tensors: dict[str, Tensor]) -> dict:
    """The part of `encode_all` that is words already: changing texts, and the constant ones side by side."""
    prefix = [tensors[name] for name in model.config.prefix_senses]
    return {
        "text": {name: tensors[name] for name in model.config.text_senses},
        "prefix": torch.cat(prefix, 1) if prefix else None,
    }


CHANGE_SHARE = 0.6  # weight of a window in which no code changes; that of others is 1
SETTLED = 0.2  # weight, before scaling, where it is known beforehand whether anything will change; 1 where it is open
REWARD_BOOST = 25.0  # most weight of a window in which a rare reward or an end is met
RARE = 0.1  # most share of the draws that such windows are raised to


@dataclass
class Weighing:
    """What is known of a whole recording where only a part of it is at hand.

    Args:
        usual_reward (`float`): the median.
        boost (`float`, *optional*): weight of windows with a rare reward or an end; None where they are none, or many.
        mean (`float`): mean weight of all windows.
    """

    usual_reward: float
    boost: float | None
    mean: float


def window_weights(windows: Windows, left_open: Tensor, weighing: Weighing | None = None) -> Tensor:
    """How often each window is drawn: as `left_open` says; `CHANGE_SHARE` of it where no code changes; up to
    `REWARD_BOOST` where a rare reward or an end is met, never so much that those windows are more than a tenth of all
    draws.

    Args:
        windows: encoded.
        left_open `(len(windows),)`: see `openness`.
        weighing (*optional*): of the recording that they are a part of; by default they are all of it.
    """
    weights, rows = change_weights(windows) * left_open, _transitions(windows)
    usual = float(windows.rewards.median()) if weighing is None else weighing.usual_reward
    rare = is_rare(windows.rewards[rows], windows.dones[rows], usual)
    boost = reward_boost(rare, float(weights[~rare].mean())) if weighing is None else weighing.boost
    if boost is not None:
        weights[rare] = boost
    return weights


def change_weights(windows: Windows) -> Tensor:
    """`CHANGE_SHARE` where no code and no text of a window changes, else 1: `(len(windows),)`."""
    changed = _moved(windows)[_transitions(windows)].any(1)
    return torch.where(changed, 1.0, CHANGE_SHARE)


def _transitions(windows: Windows) -> Tensor:
    """Rows of the transitions of each window, `(len(windows), T)`."""
    return windows.rows.unsqueeze(1) + torch.arange(windows.num_steps)


def _moved(windows: Windows) -> Tensor:
    """For every row of the recording, whether any code or text is another one in the next row, bool."""
    moved = torch.zeros(len(windows.actions), dtype=torch.bool)
    discrete = [level for levels in windows.tensors["codes"].values() for level in levels]
    for level in [*discrete, *windows.tensors["text"].values()]:
        moved[:-1] |= (level[1:] != level[:-1]).any(1)
    return moved


def openness_by_kind(windows: Windows, trajectories: Trajectories) -> dict[tuple[str, int], float]:
    """How often windows that begin with each kind of transition are drawn, a kind being an environment and, where
    actions are discrete, an action: most where half of them change something, less the more surely it is known
    beforehand whether anything will. Most of a recording is walking about; a key is dropped or not in 4% of it. In
    each environment the mean is 1, so that environments are drawn as they were recorded: one in which everything
    always moves is no less open for it.

    The first kind of a window is known before anything happens in it, so that drawing some more often leaves
    probabilities as they are.

    Args:
        windows: encoded.
        trajectories: what they are windows of.
    """
    kinds, of_row = _kinds(trajectories, windows.actions)
    of_window, moved = of_row[windows.rows], _moved(windows)[windows.rows].double()
    count = torch.bincount(of_window, minlength=len(kinds)).double()
    share = (torch.bincount(of_window, moved, len(kinds)) + 1) / (count + 2)  # a kind met once or twice is open
    bits = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)) / math.log(2)
    weight = SETTLED + (1 - SETTLED) * bits
    here = torch.from_numpy(np.unique([environment for environment, _ in kinds], return_inverse=True)[1])
    mean = torch.bincount(here, weight * count) / torch.bincount(here, count)
    values = zip(kinds, (weight / mean[here]).tolist(), count.tolist(), strict=True)
    return {kind: value for kind, value, times in values if times}  # only the end of an episode may be of a kind


def openness(windows: Windows, trajectories: Trajectories, by_kind: dict[tuple[str, int], float]) -> Tensor:
    """How often each window is drawn for the kind of its first transition, `(len(windows),)`; 1 for a kind that is not
    known. Args: as for, and result of, `openness_by_kind`."""
    kinds, of_row = _kinds(trajectories, windows.actions)
    return torch.tensor([by_kind.get(kind, 1.0) for kind in kinds])[of_row[windows.rows]]


def _kinds(trajectories: Trajectories, actions: Tensor) -> tuple[list[tuple[str, int]], Tensor]:
    """The kinds of transition that there are, and of which each row is, `(N,)` int64."""
    names, of_episode = np.unique(np.asarray(trajectories.environments), return_inverse=True)
    environment = torch.from_numpy(of_episode)[torch.from_numpy(np.asarray(trajectories.episode))]
    is_discrete = actions.dim() == 1 and not actions.is_floating_point()
    taken = actions.long() if is_discrete else torch.zeros_like(environment)
    pairs, of_row = torch.stack([environment, taken], 1).unique(dim=0, return_inverse=True)
    return [(str(names[number]), action) for number, action in pairs.tolist()], of_row


def is_rare(rewards: Tensor, dones: Tensor, usual: float) -> Tensor:
    """Which windows `(N,)` meet a reward that is not the usual one, or an end, in `(N, T)` rewards and ends."""
    return ((rewards - usual).abs() > 1e-6).any(1) | (dones > 0).any(1)


def reward_boost(rare: Tensor, mean_weight: float) -> float | None:
    """Weight of the windows that are `rare` `(N,)` bool, where the others' mean weight is `mean_weight`."""
    count = int(rare.sum())
    if not 0 < count < RARE * len(rare):
        return None
    most = RARE * mean_weight * (len(rare) - count) / (1 - RARE) / count
    return min(REWARD_BOOST, max(1.0, most))
