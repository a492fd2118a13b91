"""Windows of trajectories as batches: gathered from flat arrays, so that a batch costs one index a tensor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pan_hf.data.compat import check_has_actors
from pan_hf.data.trajectories import Trajectories, map_columns


class Windows(Dataset):
    """Windows of `num_steps` transitions from every row that can start one.

    Args:
        trajectories: a split.
        tensors: by sense, every row's observation (or, encoded, see [`encode_all`], a `state`).
        actions: every row's action, by part where there are several.
        num_steps (`int`): T.
        is_encoded (`bool`): `tensors` is `{"codes": {...}, "text": {...}, "prefix": ...}`.
        constant (`set[str]`): senses that hold for the whole episode, given once a window.
        actors (`list[str]`, *optional*): whose rewards are told apart; their sum by default.

    Raises:
        ValueError: the recording does not reward one of the actors.
    """

    is_held_out: Tensor  # by row, where a stage learns from some windows and decides by the others

    def __init__(
        self,
        trajectories: Trajectories,
        tensors: dict,
        actions: Tensor | dict[str, Tensor],
        num_steps: int,
        is_encoded: bool,
        constant: set[str],
        actors: list[str] | None = None,
    ):
        self.rows = torch.from_numpy(trajectories.windows(num_steps))
        self.tensors, self.actions, self.num_steps = tensors, actions, num_steps
        self.rewards = torch.from_numpy(trajectories.rewards)
        self.actor_rewards = None if actors is None else _actor_rewards(trajectories, actors)
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
            "action": map_columns(self.actions, lambda part: part[transitions]),
            "reward": (self.rewards if self.actor_rewards is None else self.actor_rewards)[transitions],
            "done": self.dones[transitions],
            "importance": self.importance[torch.as_tensor(indices)],
        }
        if not self.is_encoded:
            times = {name: first if name in self.constant else frames for name in self.tensors}
            return batch | {"observation": {name: values[times[name]] for name, values in self.tensors.items()}}
        state = {
            "codes": {n: [level[frames].long() for level in levels] for n, levels in self.tensors["codes"].items()},
            "text": {name: ids[frames] for name, ids in self.tensors["text"].items()},
        }
        if self.tensors.get("latents"):
            state["latents"] = {name: latents[frames] for name, latents in self.tensors["latents"].items()}
        if self.tensors["prefix"] is not None:
            state["prefix"] = self.tensors["prefix"][first]
        return batch | {"state": state}


def _actor_rewards(trajectories: Trajectories, actors: list[str]) -> Tensor:
    """Every row's rewards `(N, A)`."""
    check_has_actors(trajectories.actor_rewards, actors)
    return torch.from_numpy(np.stack([trajectories.actor_rewards[name] for name in actors], 1))


CROP_PATCHES = 2  # side of a crop, in patches


class CroppedFrames(Dataset):
    """Crops of frames for the senses, `(B, 3, ...)`: the neighbour in time, the frame, and what is usually seen there.

    Most of a frame is like most of the others, so crops are drawn where something moves or is rare: at equal time that
    is worth several times the frames. Vectors and symbols come whole.

    Args:
        trajectories: a split.
        tensors: by sense, every row's observation; `<sense>.present` `(N,)` says in which rows it is there, if not in
            all.
        senses: their configurations.
        median (*optional*): by sense, what is usually seen; the median over these rows by default.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        tensors: dict[str, Tensor],
        senses: dict,
        median: dict[str, Tensor] | None = None,
    ):
        rows = np.arange(len(trajectories))
        is_first = np.isin(rows, trajectories.episode_starts)
        self.neighbour = torch.from_numpy(np.where(is_first, rows + 1, rows - 1))
        self.tensors, self.senses = tensors, senses
        self.median = median or median_frames(tensors, senses)

    def __len__(self) -> int:
        return len(self.neighbour)

    def __getitems__(self, indices: list[int]) -> dict:
        rows = torch.as_tensor(indices)
        chance = crop_chances(indices)
        observation = {}
        for name, sense in self.senses.items():
            values = self.tensors[name]
            median = self.median[name].expand(len(rows), *self.median[name].shape)
            triples = torch.stack([values[self.neighbour[rows]], values[rows], median], 1)
            observation[name] = _crop(triples, sense, chance) if sense.is_picture else triples
            if (is_present := self.tensors.get(f"{name}.present")) is not None:
                # the neighbour may be absent: what was seen last stands in its place
                observation[f"{name}.present"] = is_present[rows].unsqueeze(1).expand(-1, 3)
        return {"observation": observation}


def _crop(triples: Tensor, sense, chance: Tensor) -> Tensor:
    """Squares of `CROP_PATCHES` patches a side, cut at one place from the three frames `(B, 3, C, height, width)`."""
    rows, columns = sense.token_grid
    size, side = min(CROP_PATCHES, rows, columns), sense.patch_size * sense.spatial_merge_size
    neighbour, frame, median = triples.unbind(1)
    interest = 1.0 * (frame != neighbour).any(1) + 0.5 * (frame != median).any(1)
    # (B, rows - size + 1, columns - size + 1); patches first, then squares of them: few overlap
    interest = torch.nn.functional.avg_pool2d(torch.nn.functional.avg_pool2d(interest, side), size, 1)
    # not zero anywhere, or what never moves would never be learned
    mass = (interest.flatten(1) + 0.02).double().cumsum(1)
    corner = torch.searchsorted(mass, chance.unsqueeze(1) * mass[:, -1:]).squeeze(1).clamp(max=mass.shape[1] - 1)
    down, across = (
        part.unsqueeze(1) + torch.arange(size) for part in (corner // interest.shape[2], corner % interest.shape[2])
    )
    # (B, rows, columns, 3, C, side, side), of which each crop takes some rows and columns
    patches = triples.unflatten(3, (rows, side)).unflatten(5, (columns, side)).permute(0, 3, 5, 1, 2, 4, 6)
    crops = patches[torch.arange(len(triples))[:, None, None], down.unsqueeze(2), across.unsqueeze(1)]
    return crops.permute(0, 3, 4, 1, 5, 2, 6).reshape(*triples.shape[:3], size * side, size * side)


def median_frames(tensors: dict[str, Tensor], senses: Iterable[str]) -> dict[str, Tensor]:
    """By sense, the median over 501 rows in which it is there: what is usually seen."""
    medians = {}
    for name in senses:
        there = tensors.get(f"{name}.present", torch.ones(len(tensors[name]), dtype=torch.bool)).nonzero().squeeze(1)
        there = there if len(there) else torch.arange(len(tensors[name]))
        drawn = torch.randint(len(there), (min(501, len(there)),), generator=torch.Generator().manual_seed(0))
        medians[name] = tensors[name][there[drawn]].median(0).values
    return medians


def crop_chances(indices: list[int]) -> Tensor:
    """A number in [0, 1) for each row of a batch, `(B,)`: another when a row comes again in another batch, the same
    when a run goes on. A stream asks for its windows one by one, so there a frame keeps its crop."""
    return torch.from_numpy(np.random.default_rng(indices).random(len(indices)))
