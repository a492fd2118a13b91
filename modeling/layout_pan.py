"""Where everything stands in the backbone's sequence, and what may look at what.

    [prefix] S_0 A_0 | Q_0 | S_1 A_1 | Q_1 | ...

`S_t A_t` is the *trunk*. To predict the state after `A_t`, queries `Q_t` branch off behind it, block by block; the
next trunk step takes the same positions, as if the queries were not there. One mask says it all: the trunk sees
earlier trunk (a state sees itself both ways), a query sees the trunk up to its own action, its own step's earlier
blocks and its own block. Training lays out a whole window at once; simulation runs the same rule one step at a time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """What is predicted in one go: `levels` read out of it (all, one, or none for text), and how it is masked."""

    name: str
    length: int
    causal: bool = False
    levels: tuple[int, ...] = ()


class StepLayout:
    """Lengths, positions and masks of one step and of a window of steps.

    Args:
        config (`PanConfig`): senses, action and `fold_levels`.
    """

    def __init__(self, config):
        places = {name: sense.num_places for name, sense in config.place_senses.items()}
        texts = {name: sense.max_length for name, sense in config.text_senses.items()}
        action = config.action
        self.prefix_length = sum(sense.max_length for sense in config.prefix_senses.values())
        self.state_length = sum(places.values()) + sum(texts.values())
        self.action_length = action.max_length if action.kind == "text" else action.num_places
        self.num_places = sum(places.values())
        self.num_levels = max((sense.num_levels for sense in config.place_senses.values()), default=0)
        self.blocks = self._blocks(config, texts)
        self._continuation_masks: dict[tuple, Tensor] = {}

    def _blocks(self, config, texts: dict[str, int]) -> list[Block]:
        blocks = []
        if self.num_places and config.fold_levels:
            blocks.append(Block("places", self.num_places, levels=tuple(range(self.num_levels))))
        else:
            for level in range(self.num_levels):
                length = sum(s.num_places for s in config.place_senses.values() if level < s.num_levels)
                blocks.append(Block(f"level.{level}", length, levels=(level,)))
        return blocks + [Block(name, length, causal=True) for name, length in texts.items()]

    @property
    def trunk_length(self) -> int:
        """Positions that one step leaves behind."""
        return self.state_length + self.action_length

    @property
    def query_length(self) -> int:
        return sum(block.length for block in self.blocks)

    @property
    def step_length(self) -> int:
        return self.trunk_length + self.query_length

    def _rank(self) -> Tensor:
        """For each position of a step its rank: state 0, action 1, then 2, 3, ... a rank a block, one a causal token.
        A position sees those of its own step whose rank is not above its own."""
        ranks = [torch.zeros(self.state_length), torch.ones(self.action_length)]
        rank = 2
        for block in self.blocks:
            steps = torch.arange(block.length) if block.causal else torch.zeros(block.length, dtype=torch.long)
            ranks.append(rank + steps)
            rank += block.length if block.causal else 1
        return torch.cat([part.long() for part in ranks])

    def step_mask(self) -> Tensor:
        """`(step_length, step_length)` bool: what may look at what inside one step."""
        rank = self._rank()
        return rank.unsqueeze(0) <= rank.unsqueeze(1)

    def continuation_mask(self, past: int, seen: int, end: int, device: torch.device) -> Tensor:
        """`(1, 1, end - seen, past + end)` bool: what positions `seen` to `end` of a step look at behind `past` cached
        positions, all of which they see. Kept, since a rollout asks for the same few at every step."""
        key = (past, seen, end, device)
        if key not in self._continuation_masks:
            inside = self.step_mask()[seen:end, :end]
            mask = torch.cat([torch.ones(len(inside), past, dtype=torch.bool), inside], 1)
            self._continuation_masks[key] = mask.to(device).view(1, 1, *mask.shape)
        return self._continuation_masks[key]

    def window_mask(self, num_steps: int) -> Tensor:
        """`(L, L)` bool for a prefix and `num_steps` steps, row looks at column."""
        prefix, step = self.prefix_length, self.step_length
        total = prefix + num_steps * step
        mask = torch.zeros(total, total, dtype=torch.bool)
        mask[:prefix, :prefix] = torch.ones(prefix, prefix, dtype=torch.bool).tril()
        mask[prefix:, :prefix] = True
        inside, trunk = self.step_mask(), torch.arange(step) < self.trunk_length
        for row in range(num_steps):
            rows = slice(prefix + row * step, prefix + (row + 1) * step)
            for column in range(row + 1):
                columns = slice(prefix + column * step, prefix + (column + 1) * step)
                mask[rows, columns] = inside if column == row else trunk
        return mask

    def window_positions(self, num_steps: int) -> Tensor:
        """`(L,)` int64 position ids: queries go on from the trunk's end, and the next trunk ignores them."""
        step = torch.arange(self.step_length)
        starts = self.prefix_length + self.trunk_length * torch.arange(num_steps)
        return torch.cat([torch.arange(self.prefix_length), (starts.unsqueeze(1) + step).flatten()])


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as the additive float mask attention wants: 0 where it may look, the least float elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
