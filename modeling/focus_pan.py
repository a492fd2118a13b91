"""Looking only where something will change: a glance over the whole state, then the backbone at a few places.

Of a frame a few places change in a step and the rest stands still. A [`Glance`] is a small convolution over the cells
of level 0 and the action: it says at which places something will change, and tells the action's embedding the gist of
the rest, with an inventory of it (whether there still is a key somewhere). The backbone then reads, and is asked
about, the places in *focus* alone; all others stay as they are. In a Markov world that leaves 2 to 3 of 33 positions
of a MiniGrid step on average; where a prediction sees earlier steps the whole state stays in the trunk, and queries
alone are left out.

Shapes: N = rows, P = places of all senses, M = most places in focus of any row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .embedding_pan import GlanceTables, ZeroInitLinear
from .layout_pan import fold_places, unfold_places, with_absent

SURE = 20.0  # logit of a change where a code is absent: whatever will be there is another one
LEAST_CHANGE = 0.005  # places whose probability of change is below this are not looked at


@dataclass
class Focus:
    """Places that the backbone looks at.

    Args:
        index `(N, M)` int64: places, counted over all senses as they stand in the state.
        valid `(N, M)` bool: False where a row has fewer than M.
    """

    index: Tensor
    valid: Tensor

    def mask(self, num_places: int) -> Tensor:
        """Which places are in focus, `(N, num_places)` bool."""
        found = torch.zeros(len(self.index), num_places, dtype=torch.bool, device=self.index.device)
        return found.scatter(1, self.index, self.valid)

    def rows(self, index: Tensor) -> "Focus":
        """The rows `index` `(n,)` as a focus of their own."""
        return Focus(self.index[index], self.valid[index])

    @staticmethod
    def of(wanted: Tensor, fewest: int = 1) -> "Focus":
        """The focus on the places `wanted` `(N, P)` bool, with room for `fewest` at least."""
        most = max(min(fewest, wanted.shape[1]), int(wanted.sum(1).max()))
        found = wanted.to(torch.uint8).topk(most, 1)
        return Focus(found.indices, found.values.bool())


@dataclass
class At:
    """Single places of an image, of several rows: F of them.

    Args:
        row, place `(F,)` int64: which.
        rows `(n,)` int64: the rows that occur; inside `(F,)`: which of these each place is of.
        count (`int`): F, less what is there a second time.
    """

    row: Tensor
    place: Tensor
    rows: Tensor
    inside: Tensor
    count: int

    def __len__(self) -> int:
        return self.count

    @staticmethod
    def of(places: Tensor, pieces) -> "At":
        """The places marked in `(N, P)` bool, as `pieces` (`compile_pan.Pieces`) want to be given them."""
        row, place = (index.clone() for index in places.nonzero(as_tuple=True))  # else views
        rows, inside = row.unique_consecutive(return_inverse=True)
        rows = rows if len(places) == 1 else pieces.at_least_two(rows)
        padded = [pieces.at_least_two(index) for index in (row, place, inside)]
        return At(row=padded[0], place=padded[1], rows=rows, inside=padded[2], count=len(row))


class Glance(nn.Module):
    """Which places of an image will change, and the gist of them all.

    It looks at cells, several of which share a place: what is in front of something is the same anywhere, while a
    place would have to learn it anew for each way in which its cells can stand to one another.

    Args:
        sense (`ImageSense`): whose places.
        hidden_size, width (`int`): H, and of the two layers.
    """

    def __init__(self, sense, hidden_size: int, width: int):
        super().__init__()
        self.sense = sense
        self.norm, self.action_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.row_norm = nn.LayerNorm(hidden_size)
        self.place, self.action = nn.Linear(hidden_size, width), nn.Linear(hidden_size, width)
        self.cell = nn.Linear(hidden_size, width, bias=False)
        self.around = nn.Conv2d(width, width, 3, padding=1)
        self.change = nn.Linear(width, 1)
        self.gist = ZeroInitLinear(2 * width, hidden_size, bias=False)
        self.inventory = ZeroInitLinear(hidden_size, hidden_size, bias=False)

    def tables(self, rows: Tensor) -> GlanceTables:
        """What it makes of each code, worked out once for all of them: of the rows of level 0's segment, `(K, H)`."""
        rows = self.row_norm(rows)
        return GlanceTables(with_absent(self.cell(rows)), self.inventory(rows))

    def forward(self, places: Tensor, codes: Tensor, tables: GlanceTables, action: Tensor) -> tuple[Tensor, Tensor]:
        """Args: places, embedded `(N, P, H)`; codes of level 0 `(N, n)`; action `(N, H)`. Returns: the logit of a
        change at each place `(N, P)` float32; the gist, `(N, H)`."""
        size = len(tables.cells)
        x = self.place(self.norm(places)) + self.action(self.action_norm(action)).unsqueeze(1)
        x = x.unsqueeze(2).expand(-1, -1, self.sense.codes_per_place[0], -1)
        x = nn.functional.gelu(unfold_places(x, self.sense, 0) + nn.functional.embedding(codes % size, tables.cells))
        grid = x.unflatten(1, self.sense.level_grid(0)).permute(0, 3, 1, 2)
        x = x + nn.functional.gelu(self.around(grid)).flatten(2).transpose(1, 2)
        gist = self.gist(torch.cat([x.amax(1), x.mean(1)], -1))
        there = tables.anywhere.new_zeros(len(codes), size).scatter(1, codes % size, 1.0)
        # a place changes if any of its cells does; of what is seldom, the odds add up
        change = fold_places(self.change(x).squeeze(-1).float(), self.sense, 0).logsumexp(-1)
        change = change.masked_fill((fold_places(codes, self.sense, 0) < 0).any(-1), SURE)
        return change, gist + there[:, :-1] @ tables.anywhere


def focusable(config) -> list[str]:
    """The senses that can be looked at in part: those on a grid, unless their codes are sentences, which run over all
    of them."""
    if config.level0_sampling == "autoregressive":
        return []
    return [name for name, sense in config.place_senses.items() if sense.is_grid and sense.num_places > 1]


def changed_places(sense, now: list[Tensor], after: list[Tensor]) -> Tensor:
    """Where any code changes, `(N, P)` bool, from codes `(N, n)` a level."""
    pairs = enumerate(zip(now, after, strict=True))
    found = [fold_places(one != other, sense, level).any(-1) for level, (one, other) in pairs]
    return torch.stack(found).any(0)


def places_in_focus(config, change: dict[str, Tensor], least: float, extra: float = 0.0, fewest: int = 1) -> Focus:
    """The places whose probability of change is at least `least`, all of the senses that change has no logits `(N, P)`
    of, and a random share `extra` of the others; with room for `fewest` at least."""
    known = next(iter(change.values()))
    parts = [
        change[name].sigmoid() if name in change else known.new_ones(len(known), sense.num_places)
        for name, sense in config.place_senses.items()
    ]
    chance = torch.cat(parts, 1)
    wanted = chance >= least
    return Focus.of(wanted | (torch.rand_like(chance) < extra) if extra else wanted, fewest)
