"""Where everything stands in the backbone's sequence, and what may look at what.

    [prefix] S_0 A_0 | Q_0 | S_1 A_1 | Q_1 | ...

`S_t A_t` is the *trunk*. To predict the state after `A_t`, queries `Q_t` branch off behind it, pass by pass; the
next trunk step takes the same positions, as if the queries were not there. One mask says it all: the trunk sees
earlier trunk (a state sees itself both ways), a query sees the trunk up to its own action, its own step's earlier
passes and its own pass. Training lays out a whole window at once; simulation runs the same rule one step at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .configuration_pan import PanConfig


@dataclass(frozen=True)
class Pass:
    """What the backbone is run for at once: `levels` read out of it (all, one, or none for text), and its mask."""

    name: str
    length: int
    causal: bool = False
    levels: tuple[int, ...] = ()


@dataclass
class Tokens:
    """Which positions of a step are run, in the order in which they are.

    Args:
        position `(N, L)` int64: in the step.
        valid `(N, L)` bool: False for what only fills a row up; nobody sees it.
        length (`int`): of the whole step.
    """

    position: Tensor
    valid: Tensor
    length: int

    def take(self, x: Tensor) -> Tensor:
        """Of `(N, length, H)` what is run, `(N, L, H)`."""
        return x.gather(1, self.position.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def and_then(self, other: Tokens) -> Tokens:
        """These and then others."""
        position = torch.cat([self.position, other.position], 1)
        return Tokens(position, torch.cat([self.valid, other.valid], 1), self.length)

    def put_back(self, x: Tensor) -> Tensor:
        """What came out, `(N, L, H)`, at its place in the step, `(N, length, H)`; zero elsewhere."""
        x = x * self.valid.unsqueeze(-1)
        index = self.position.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return x.new_zeros(len(x), self.length, x.shape[-1]).scatter_add(1, index, x)


@dataclass
class TokenSelection:
    """State tokens that the backbone reads and predicts; all others stay as they are.

    Args:
        index `(N, M)` int64: tokens, counted over all senses as they stand in the state.
        valid `(N, M)` bool: False where a row has fewer than M.
    """

    index: Tensor
    valid: Tensor

    def mask(self, num_tokens: int) -> Tensor:
        """Which tokens are selected, `(N, num_tokens)` bool."""
        mask = torch.zeros(len(self.index), num_tokens, dtype=torch.bool, device=self.index.device)
        return mask.scatter(1, self.index, self.valid)

    def rows(self, index: Tensor) -> TokenSelection:
        """The rows `index` `(n,)` as a selection of their own."""
        return TokenSelection(self.index[index], self.valid[index])

    @staticmethod
    def of(mask: Tensor, fewest: int = 1) -> TokenSelection:
        """The tokens in a mask `(N, P)` bool, with room for `fewest` at least."""
        most = max(min(fewest, mask.shape[1]), int(mask.sum(1).max()))
        top = mask.to(torch.uint8).topk(most, 1)
        return TokenSelection(top.indices, top.values.bool())


@dataclass
class PatchIndex:
    """Single patches of an image, of several rows: F of them.

    Args:
        row, place `(F,)` int64: which.
        rows `(n,)` int64: the rows that occur; inside `(F,)`: which of these each patch is of.
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
    def of(mask: Tensor, fewest: int = 1) -> PatchIndex:
        """The patches in a mask `(N, P)` bool, with `fewest` entries at least if there is any."""
        row, place = (index.clone() for index in mask.nonzero(as_tuple=True))  # else views
        rows, inside = row.unique_consecutive(return_inverse=True)
        rows = rows if len(mask) == 1 else at_least(rows, fewest)
        padded = [at_least(index, fewest) for index in (row, place, inside)]
        return PatchIndex(row=padded[0], place=padded[1], rows=rows, inside=padded[2], count=len(row))


def at_least(index: Tensor, fewest: int) -> Tensor:
    """An index `(n,)`; if it has one entry, that is repeated up to `fewest`."""
    return index.repeat(fewest) if len(index) == 1 else index


class StepLayout:
    """Lengths, positions and masks of one step and of a window of steps.

    Args:
        config (`PanConfig`): senses, action and `fold_levels`.
    """

    def __init__(self, config: PanConfig):
        places = {name: sense.num_state_tokens for name, sense in config.coded_senses.items()}
        texts = {name: sense.max_length for name, sense in config.text_senses.items()}
        self.prefix_length = sum(sense.max_length for sense in config.prefix_senses.values())
        self.state_length = sum(places.values()) + sum(texts.values())
        actions = config.actions.values()
        self.action_length = sum(part.num_state_tokens if part.is_coded else part.max_length for part in actions)
        self.num_action_codes = sum(part.num_codes if part.is_coded else part.max_length for part in actions)
        self.num_state_tokens = sum(places.values())
        # where the places of each sense begin in the state
        self.token_starts = dict(zip(places, itertools.accumulate(places.values(), initial=0), strict=False))
        self._places, self._drawing_order = dict(config.coded_senses), config.drawing_order
        self.num_levels = max((sense.num_levels for sense in config.coded_senses.values()), default=0)
        self.passes = self._passes(config, texts)
        # earlier steps are kept whole in the cache, so what is in focus now can only save queries
        self.focuses_trunk = config.context_steps == 1
        self.starts, self._queries = self._query_positions(config)
        self._kept: dict[tuple, Tensor] = {}  # what every step of a rollout asks for anew

    def _passes(self, config, texts: dict[str, int]) -> list[Pass]:
        passes = []
        if self.num_state_tokens and config.fold_levels:
            passes.append(Pass("places", self.num_state_tokens, levels=tuple(range(self.num_levels))))
        else:
            for level in range(self.num_levels):
                length = sum(s.num_state_tokens for s in config.coded_senses.values() if level < s.num_levels)
                passes.append(Pass(f"level.{level}", length, levels=(level,)))
        return passes + [Pass(name, length, causal=True) for name, length in texts.items()]

    def _query_positions(self, config) -> tuple[dict[str, int], dict[str, list[int]]]:
        """Where each pass begins in a step, and where in the step the query of each place is; -1 for places of senses
        that have no such level."""
        starts, queries, start = {}, {}, self.trunk_length
        for each in self.passes:
            starts[each.name] = start
            where, free = [], itertools.count(start)
            for sense in config.coded_senses.values() if each.levels else ():
                has_level = each.levels[0] < sense.num_levels
                where += [next(free) if has_level else -1 for _ in range(sense.num_state_tokens)]
            queries[each.name], start = where, start + each.length
        return starts, queries

    def check_positions(self, config: PanConfig) -> None:
        """Raises ValueError where a window has more positions than the backbone."""
        needed = self.prefix_length + config.context_steps * self.trunk_length + self.query_length
        available = getattr(config.text_config, "max_position_embeddings", None)
        if available is not None and needed > available:
            raise ValueError(
                f"The backbone has {available} positions; `context_steps={config.context_steps}` with these senses "
                f"needs {needed}. Use fewer context steps, larger patches or a backbone with more positions."
            )

    def split_tokens(self, one_pass: Pass, hidden: Tensor, trunk: Tensor) -> dict[str, Tensor]:
        """What readouts get, by sense `(N, P, 3H)`: hidden states of a pass's queries, and beside each what its place
        holds now and what is done. So the backbone need not carry these through, and what happens locally is learned
        by the local adapter.

        Args:
            hidden `(N, one_pass.length, H)`: of the queries of a pass.
            trunk `(N, trunk_length, H)`: embeddings of the state and the action.
        """
        parts, start = {}, 0
        action = trunk[:, self.state_length :].mean(1, keepdim=True)
        for name, sense in self._places.items():
            if one_pass.levels[0] < sense.num_levels:
                now = trunk[:, self.token_starts[name] :][:, : sense.num_state_tokens]
                parts[name] = torch.cat(
                    [hidden[:, start : start + sense.num_state_tokens], now, action.expand_as(now)], -1
                )
                start += sense.num_state_tokens
        # numbers first: pictures are then told what was drawn, and agree with it
        return {name: parts[name] for name in self._drawing_order if name in parts}

    @property
    def trunk_length(self) -> int:
        """Positions that one step leaves behind."""
        return self.state_length + self.action_length

    @property
    def query_length(self) -> int:
        return sum(each.length for each in self.passes)

    @property
    def step_length(self) -> int:
        return self.trunk_length + self.query_length

    def _rank(self) -> Tensor:
        """For each position of a step its rank: state 0, action 1, then 2, 3, ... a rank a pass, one a causal token.
        A position sees those of its own step whose rank is not above its own."""
        ranks = [torch.zeros(self.state_length), torch.ones(self.action_length)]
        rank = 2
        for each in self.passes:
            steps = torch.arange(each.length) if each.causal else torch.zeros(each.length, dtype=torch.long)
            ranks.append(rank + steps)
            rank += each.length if each.causal else 1
        return torch.cat([part.long() for part in ranks])

    def step_mask(self) -> Tensor:
        """`(step_length, step_length)` bool: what may look at what inside one step."""
        rank = self._rank()
        return rank.unsqueeze(0) <= rank.unsqueeze(1)

    def tokens(self, selection: TokenSelection, passes: list[Pass], trunk: bool) -> Tokens:
        """What is run of a step, the tokens of a selection alone: its trunk, and the queries of `passes`."""
        rows, device, parts = len(selection.index), selection.index.device, []
        if trunk:
            first = self.num_state_tokens if self.focuses_trunk else 0
            parts += [(selection.index, selection.valid)] if self.focuses_trunk else []
            parts.append(_everyone(rows, first, self.trunk_length, device))
        for each in passes:
            start = self.starts[each.name]
            if each.levels:
                position = self._keep(("queries", each.name, device), partial(self._query_of, each.name))
                position = position[selection.index]
                parts.append((position.clamp(min=0), selection.valid & (position >= 0)))
            else:
                parts.append(_everyone(rows, start, start + each.length, device))
        position, valid = (torch.cat(column, 1) for column in zip(*parts, strict=True))
        return Tokens(position, valid, self.step_length)

    def window(self, num_steps: int, tokens: Tokens | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mask `(1 or B, 1, L, L)` bool and position ids `(L,)` or `(B, L)` of a prefix and `num_steps` steps, of
        which `tokens` (B * num_steps rows) are run; None: all of them."""
        mask, positions = self.window_mask(num_steps).to(device), self.window_positions(num_steps).to(device)
        if tokens is None:
            return mask.view(1, 1, *mask.shape), positions
        step = self.step_length * torch.arange(num_steps, device=device).view(-1, 1)
        inside = (self.prefix_length + step + tokens.position.unflatten(0, (-1, num_steps))).flatten(1)
        before = torch.arange(self.prefix_length, device=device).expand(len(inside), -1)
        index = torch.cat([before, inside], 1)  # (B, L), where each position stands in the whole window
        valid = torch.cat([torch.ones_like(before, dtype=torch.bool), tokens.valid.reshape(inside.shape)], 1)
        mask = mask[index.unsqueeze(2), index.unsqueeze(1)] & valid.unsqueeze(1)
        return mask.unsqueeze(1), positions[index]

    def focused_mask(self, past: int, tokens: Tokens, keys: Tokens) -> Tensor:
        """`(N, 1, L, past + K)` bool: what the `tokens` of a step look at behind `past` cached positions, all of which
        they see; keys, everything of this step that was run, these tokens included."""
        step = self._keep(("step", tokens.position.device), self.step_mask)
        inside = step[tokens.position.unsqueeze(2), keys.position.unsqueeze(1)] & keys.valid.unsqueeze(1)
        return nn.functional.pad(inside, (past, 0), value=True).unsqueeze(1)

    def continuation_mask(self, past: int, seen: int, end: int, device: torch.device) -> Tensor:
        """`(1, 1, end - seen, past + end)` bool: what positions `seen` to `end` of a step look at behind `past` cached
        positions, all of which they see. Kept, since a rollout asks for the same few at every step."""
        key = (past, seen, end, device)

        def make() -> Tensor:
            inside = self.step_mask()[seen:end, :end]
            return nn.functional.pad(inside, (past, 0), value=True).view(1, 1, len(inside), past + end)

        return self._keep(key, make)

    def keep_tensors(self, device: torch.device) -> None:
        """Makes what every step at some places needs, so that a compiled one finds it."""
        self._keep(("step", device), self.step_mask)
        for each in self.passes:
            self._keep(("queries", each.name, device), partial(self._query_of, each.name))

    def _keep(self, key: tuple, make: Callable[[], Tensor]) -> Tensor:
        """A tensor made once for each key, whose last entry is the device it lives on."""
        if key not in self._kept:
            self._kept[key] = make().to(key[-1])
        return self._kept[key]

    def _query_of(self, name: str) -> Tensor:
        return torch.tensor(self._queries[name])

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


def _everyone(rows: int, first: int, end: int, device) -> tuple[Tensor, Tensor]:
    """The same positions for all rows, and that they count."""
    position = torch.arange(first, end, device=device).expand(rows, -1)
    return position, torch.ones_like(position, dtype=torch.bool)


def hide_padding(mask: Tensor, prefix: Tensor, pad_token_id: int) -> Tensor:
    """Keys of the prefix that are padding are seen by nobody but themselves. mask bool `(1, 1, Q, K)` ->
    `(1 or B, 1, Q, K)`."""
    real = prefix != pad_token_id
    if bool(real.all()):
        return mask
    keys = torch.ones(len(prefix), mask.shape[-1], dtype=torch.bool, device=mask.device)
    keys[:, : prefix.shape[1]] = real
    own = torch.zeros(mask.shape[-2:], dtype=torch.bool, device=mask.device)
    if mask.shape[-2] == mask.shape[-1]:
        own = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    return mask & (keys.view(len(prefix), 1, 1, -1) | own)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as the additive float mask attention wants: 0 where it may look, the least float elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def with_absent(rows: Tensor) -> Tensor:
    """Rows `(K, ...)` and one more of zeros, the row of a code that is absent: `codes % (K + 1)` finds it."""
    return nn.functional.pad(rows, (0, 0, 0, 1))


def group_by_token(codes: Tensor, sense, level: int) -> Tensor:
    """Codes of one level by place: `(B, num_codes, ...)` -> `(B, P, codes_per_token, ...)`, raster order inside."""
    return fold_cells(codes, sense.level_grid(level), sense.token_grid)


def ungroup_tokens(codes: Tensor, sense, level: int) -> Tensor:
    """The inverse of `group_by_token`: `(B, P, codes_per_token, ...)` -> `(B, num_codes, ...)`."""
    return unfold_cells(codes, sense.level_grid(level), sense.token_grid)


def fold_cells(x: Tensor, fine: tuple[int, int], coarse: tuple[int, int]) -> Tensor:
    """What stands on a fine grid, by the cells of a coarse one that it nests in, grids as rows and columns in raster
    order: `(B, fine, ...)` -> `(B, coarse, fine / coarse, ...)`."""
    down, across = fine[0] // coarse[0], fine[1] // coarse[1]
    if down == 1:  # a row, or nothing to nest
        return x.unflatten(1, (-1, across))
    rest = x.shape[2:]
    x = x.reshape(len(x), coarse[0], down, coarse[1], across, *rest).transpose(2, 3)
    return x.reshape(len(x), coarse[0] * coarse[1], down * across, *rest)


def unfold_cells(x: Tensor, fine: tuple[int, int], coarse: tuple[int, int]) -> Tensor:
    """The inverse of `fold_cells`."""
    down, across = fine[0] // coarse[0], fine[1] // coarse[1]
    if down == 1:
        return x.flatten(1, 2)
    rest = x.shape[3:]
    x = x.reshape(len(x), coarse[0], coarse[1], down, across, *rest).transpose(2, 3)
    return x.reshape(len(x), fine[0] * fine[1], *rest)


def spread_codes(values: Tensor, sense, coarse: int, fine: int) -> Tensor:
    """What is said of each code of a coarser level, `(N, num_codes)`, said of the codes of a finer one that lie in
    it."""
    (rows, columns), (fine_rows, fine_columns) = sense.level_grid(coarse), sense.level_grid(fine)
    if (rows, columns) == (fine_rows, fine_columns):
        return values
    grid = values.unflatten(1, (rows, columns))
    return grid.repeat_interleave(fine_rows // rows, 1).repeat_interleave(fine_columns // columns, 2).flatten(1)
