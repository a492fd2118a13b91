"""Windows of trajectories as batches: gathered from flat arrays, so that a batch costs one index a tensor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pan_hf.data.trajectories import Trajectories


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

    is_held_out: Tensor  # by row, where a stage learns from some windows and decides by the others

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


CROP_PATCHES = 2  # side of a crop, in patches


class CroppedFrames(Dataset):
    """Crops of frames for the senses, `(B, 3, ...)`: the neighbour in time, the frame, and what is usually seen there.

    Most of a frame is like most of the others, so crops are drawn where something moves or is rare: at equal time that
    is worth several times the frames. Vectors come whole.

    Args:
        trajectories: a split.
        tensors: by sense, every row's observation.
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
        self.median = median or median_frames(tensors)

    def __len__(self) -> int:
        return len(self.neighbour)

    def __getitems__(self, indices: list[int]) -> dict:
        rows = torch.as_tensor(indices)
        chance = crop_chances(indices)
        observation = {}
        for name, values in self.tensors.items():
            median = self.median[name].expand(len(rows), *self.median[name].shape)
            triples = torch.stack([values[self.neighbour[rows]], values[rows], median], 1)
            sense = self.senses[name]
            observation[name] = _crop(triples, sense, chance) if sense.is_grid else triples
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


def median_frames(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By sense, the median over 501 rows: what is usually seen."""
    medians = {}
    for name, values in tensors.items():
        rows = torch.randint(len(values), (min(501, len(values)),), generator=torch.Generator().manual_seed(0))
        medians[name] = values[rows].median(0).values
    return medians


def crop_chances(indices: list[int]) -> Tensor:
    """A number in [0, 1) for each row of a batch, `(B,)`: another when a row comes again in another batch, the same
    when a run goes on. A stream asks for its windows one by one, so there a frame keeps its crop."""
    return torch.from_numpy(np.random.default_rng(indices).random(len(indices)))
