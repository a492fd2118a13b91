"""How often each window is drawn: more where codes change, where the future is open, and where rewards are rare."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from pan_hf.data.trajectories import Trajectories
from pan_hf.data.windows import read_rows
from pan_hf.modeling.state_pan import ABSENT
from pan_hf.training.code_cache import encode_once
from pan_hf.training.windows import Windows


def make_encoded(model, processor, trajectories, args=None, stats=None):
    """Windows of codes, encoded once by the senses as they are."""
    tensors, actions = read_rows(trajectories, processor)
    encoded = encode_once(model, tensors, trajectories, None if args is None else args.encoded)
    constant = set(model.config.prefix_senses)
    encoded = _without_absent(encoded, tensors)
    config = model.config
    windows = Windows(trajectories, encoded, actions, config.context_steps, True, constant, config.actors)
    by_kind = outcome_entropy_by_kind(windows, trajectories) if stats is None else stats.outcome_entropy
    left_open = outcome_entropy(windows, trajectories, by_kind)
    weights = window_weights(windows, left_open, stats and stats.weighing)
    for_outcome = weights / left_open
    mean = for_outcome.mean() if stats is None else stats.weighing.mean
    windows.importance = mean / for_outcome  # rewards are drawn more often; what happens must not look so
    return windows, weights


def make_raw(model, processor, trajectories, args=None, stats=None):
    """Windows of raw observations, drawn as often as the windows of their codes would be."""
    tensors, _ = read_rows(trajectories, processor)
    encoded, weights = make_encoded(model, processor, trajectories, args, stats)
    actors = model.config.actors
    raw = Windows(trajectories, tensors, encoded.actions, encoded.num_steps, False, encoded.constant, actors)
    raw.importance = encoded.importance
    return raw, weights


def _without_absent(encoded: dict, tensors: dict[str, Tensor]) -> dict:
    """Codes, words and latents marked absent where `<sense>.present` says so."""
    masks = {name.removesuffix(".present"): ~mask for name, mask in tensors.items() if name.endswith(".present")}

    def blank(name: str, values: Tensor, nothing: float) -> Tensor:
        # a copy: what was encoded is mapped from a file, for other stages too
        absent = masks.get(name)
        return values if absent is None else values.masked_fill(absent.view(-1, *[1] * (values.dim() - 1)), nothing)

    codes = {name: [blank(name, level, ABSENT) for level in levels] for name, levels in encoded["codes"].items()}
    text = {name: blank(name, ids, ABSENT) for name, ids in encoded["text"].items()}
    latents = {name: blank(name, values, math.nan) for name, values in encoded["latents"].items()}
    return encoded | {"codes": codes, "text": text, "latents": latents}


class WeightedRows(Sampler):
    """Endless draws with replacement, in proportion to weights; draw number `i` depends on the seed and `i` alone, so
    a resumed run continues the very sequence."""

    CHUNK = 4096

    def __init__(self, weights: Tensor, seed: int):
        self.weights, self.seed = weights.double(), seed

    def __len__(self) -> int:
        return 2**40

    def __iter__(self) -> Iterator[int]:
        for chunk in itertools.count():
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + chunk)
            yield from torch.multinomial(self.weights, self.CHUNK, replacement=True, generator=generator).tolist()


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
        left_open `(len(windows),)`: see `outcome_entropy`.
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
    moved = torch.zeros(len(windows.rewards), dtype=torch.bool)
    discrete = [level for levels in windows.tensors["codes"].values() for level in levels]
    for level in [*discrete, *windows.tensors["text"].values()]:
        now, later = level[:-1], level[1:]
        moved[:-1] |= ((now != later) & (now != ABSENT) & (later != ABSENT)).any(1)
    return moved


def outcome_entropy_by_kind(windows: Windows, trajectories: Trajectories) -> dict[tuple, float]:
    """How often windows that begin with each kind of transition are drawn, a kind being an environment and the parts
    of the action that are discrete: most where half of them change something, less the more surely it is known
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
    here = torch.from_numpy(np.unique([environment for environment, *_ in kinds], return_inverse=True)[1])
    mean = torch.bincount(here, weight * count) / torch.bincount(here, count)
    values = zip(kinds, (weight / mean[here]).tolist(), count.tolist(), strict=True)
    return {kind: value for kind, value, times in values if times}  # only the end of an episode may be of a kind


def outcome_entropy(windows: Windows, trajectories: Trajectories, by_kind: dict[tuple, float]) -> Tensor:
    """How often each window is drawn for the kind of its first transition, `(len(windows),)`; 1 for a kind that is not
    known. Args: as for, and result of, `outcome_entropy_by_kind`."""
    kinds, of_row = _kinds(trajectories, windows.actions)
    return torch.tensor([by_kind.get(kind, 1.0) for kind in kinds])[of_row[windows.rows]]


def _kinds(trajectories: Trajectories, actions: Tensor | dict[str, Tensor]) -> tuple[list[tuple], Tensor]:
    """The kinds of transition that there are, and of which each row is, `(N,)` int64."""
    names, of_episode = np.unique(np.asarray(trajectories.environments), return_inverse=True)
    environment = torch.from_numpy(of_episode)[torch.from_numpy(np.asarray(trajectories.episode))]
    parts = actions.values() if isinstance(actions, dict) else [actions]
    choices = [part.long() for part in parts if part.dim() == 1 and not part.is_floating_point()]
    kinds, of_row = torch.stack([environment, *choices], 1).unique(dim=0, return_inverse=True)
    return [(str(names[number]), *chosen) for number, *chosen in kinds.tolist()], of_row


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
