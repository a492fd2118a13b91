"""The learned switch: which block of the next state is predicted next, or none (section 5.2).

`p(next block | trunk, blocks so far)`, a categorical over every sense's levels and latents, texts, and `end`, decided
row by row: rows of one batch stop at different blocks. It is told the task, whose distortion counts, and the price of
compute, so that one switch serves cheap navigation and costly contact alike.

Shapes: N = rows, K = blocks, H = backbone width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .effort_pan import TASKS, Block, may_follow

USUAL_PRICE = 0.1  # of a whole step's compute, in units of distortion: what `effort="auto"` pays
LEAST_PRICE, MOST_PRICE = 0.003, 3.0  # prices are told as logarithms within these


@dataclass
class SwitchInput:
    """What the switch decides on.

    Args:
        trunk `(N, H)`: the backbone's state after the action.
        places `(N, H)`: the mean over the queries of the last pass.
        chosen `(N, K)` bool: the blocks so far.
        changed `(N, K)`: which share of each block's codes has changed, 0 where it was not predicted.
        focus `(N,)`: share of the places that is looked at.
        price `(N,)`: of a whole step's compute, in units of distortion.
        task `(N,)` int64: index into `effort_pan.TASKS`.
    """

    trunk: Tensor
    places: Tensor
    chosen: Tensor
    changed: Tensor
    focus: Tensor
    price: Tensor
    task: Tensor


class SwitchHead(nn.Module):
    """Logits over the next block.

    Args:
        blocks (`list[effort_pan.Block]`): K of them.
        hidden_size, width (`int`): H, and of the head.
    """

    def __init__(self, blocks: list[Block], hidden_size: int, width: int):
        super().__init__()
        self.allowed = may_follow(blocks)  # a plain list: no buffer to be saved, or lost on the meta device
        self.trunk_norm, self.places_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.trunk, self.places = nn.Linear(hidden_size, width), nn.Linear(hidden_size, width)
        self.told = nn.Linear(2 * len(blocks) + 2 + len(TASKS), width)
        self.out = nn.Linear(width, len(blocks) + 1)

    def forward(self, given: SwitchInput) -> Tensor:
        """Returns: `(N, K + 1)` float32, the last being the end; minus infinity where a block may not follow."""
        low, high = math.log(LEAST_PRICE), math.log(MOST_PRICE)
        price = 2 * (given.price.clamp(LEAST_PRICE, MOST_PRICE).log() - low) / (high - low) - 1
        task = nn.functional.one_hot(given.task, len(TASKS))
        told = [given.chosen, given.changed.sqrt(), given.focus.unsqueeze(1), price.unsqueeze(1), task]
        told = torch.cat([part.to(given.trunk.dtype) for part in told], 1)
        x = self.trunk(self.trunk_norm(given.trunk)) + self.places(self.places_norm(given.places)) + self.told(told)
        logits = self.out(nn.functional.gelu(x)).float()
        return logits.masked_fill(~self._allowed(given.chosen), -torch.inf)

    def _allowed(self, chosen: Tensor) -> Tensor:
        """Which blocks may come next, `(N, K + 1)` bool: what may follow the last that was chosen."""
        order = torch.arange(1, chosen.shape[1] + 1, device=chosen.device)
        last = (chosen * order).amax(1)  # 0: the beginning
        return torch.tensor(self.allowed, device=chosen.device)[last]
