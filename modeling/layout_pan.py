"""Where everything stands in the backbone's sequence, and what may look at what.

    [prefix] S_0 A_0 | Q_0 | S_1 A_1 | Q_1 | ...

`S_t A_t` is the *trunk*. To predict the state after `A_t`, queries `Q_t` branch off behind it, pass by pass; the
next trunk step takes the same positions, as if the queries were not there. One mask says it all: the trunk sees
earlier trunk (a state sees itself both ways), a query sees the trunk up to its own action, its own step's earlier
passes and its own pass. Training lays out a whole window at once; simulation runs the same rule one step at a time.

Shapes: N = rows, H = backbone width, P = state tokens of one sense or of all, L = positions that are run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .configuration_pan import PanConfig
    from .sense_configuration_pan import CodedPart


@dataclass(frozen=True)
class Pass:
    """One run of the backbone: its queries, its mask, and the `levels` that are read out of it (none for a text)."""

    name: str
    length: int
    causal: bool = False
    levels: tuple[int, ...] = ()


@dataclass
class Tokens:
    """Which positions of a step are run, in the order in which they are.

    Args:
        position `(N, L)` int64: in the step.
        valid `(N, L)` bool: False where a position only fills a row up; nobody sees it.
        length (`int`): of the whole step.
    """

    position: Tensor
    valid: Tensor
    length: int

    def take(self, x: Tensor) -> Tensor:
        """The positions that are run, `(N, L, H)`, of `(N, length, H)`."""
        return x.gather(1, self.position.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def and_then(self, other: Tokens) -> Tokens:
        """These and then others."""
        position = torch.cat([self.position, other.position], 1)
        return Tokens(position, torch.cat([self.valid, other.valid], 1), self.length)

    def put_back(self, x: Tensor) -> Tensor:
        """Outputs `(N, L, H)` at their positions in the step, `(N, length, H)`; zero elsewhere."""
        x = x * self.valid.unsqueeze(-1)
        index = self.position.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        # added and not written: a position that fills a row up may be one that the row does run
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
        top = mask.to(torch.uint8).topk(most, 1)  # `topk` takes no bool
        return TokenSelection(top.indices, top.values.bool())


@dataclass
class PatchIndex:
    """Single patches of an image, of several rows: F of them.

    Args:
        row, patch `(F,)` int64: the row of each, and its number in the frame.
        rows `(n,)` int64: the rows that occur; inside `(F,)`: the entry of `rows` that each patch is of.
        count (`int`): F without what fills up, see `at_least`.
    """

    row: Tensor
    patch: Tensor
    rows: Tensor
    inside: Tensor
    count: int

    @staticmethod
    def of(mask: Tensor, fewest: int = 1) -> PatchIndex:
        """The patches in a mask `(N, P)` bool, with `fewest` entries at least if there is any."""
        row, patch = (index.clone() for index in mask.nonzero(as_tuple=True))  # views keep the size of their base
        rows, inside = row.unique_consecutive(return_inverse=True)
        rows = rows if len(mask) == 1 else at_least(rows, fewest)
        return PatchIndex(at_least(row, fewest), at_least(patch, fewest), rows, at_least(inside, fewest), len(row))


def at_least(index: Tensor, fewest: int) -> Tensor:
    """An index `(n,)`; if it has one entry, that is repeated up to `fewest`."""
    return index.repeat(fewest) if len(index) == 1 else index


class StepLayout:
    """Lengths, positions and masks of one step and of a window of steps.

    Args:
        config (`PanConfig`): senses, action and `fold_levels`.

    Attributes:
        trunk_length (`int`): positions that one step leaves behind; step_length, those with its queries.
        token_starts: by sense, where its state tokens begin in the state.
        focuses_trunk (`bool`): whether tokens that are not selected are left out of the trunk, too.

    Raises:
        ValueError: a window has more positions than the backbone.
    """

    def __init__(self, config: PanConfig):
        tokens = {name: sense.num_state_tokens for name, sense in config.coded_senses.items()}
        texts = {name: sense.max_length for name, sense in config.text_senses.items()}
        actions = config.actions.values()
        self.prefix_length = sum(sense.max_length for sense in config.prefix_senses.values())
        self.num_state_tokens = sum(tokens.values())
        self.state_length = self.num_state_tokens + sum(texts.values())
        self.action_length = sum(part.num_state_tokens if part.is_coded else part.max_length for part in actions)
        self.num_action_codes = sum(part.num_codes if part.is_coded else part.max_length for part in actions)
        self.token_starts = dict(zip(tokens, itertools.accumulate(tokens.values(), initial=0), strict=False))
        self.num_levels = max((sense.num_levels for sense in config.coded_senses.values()), default=0)
        self.passes = self._passes(config, texts)
        self.trunk_length = self.state_length + self.action_length
        self.step_length = self.trunk_length + sum(each.length for each in self.passes)
        # earlier steps are kept whole in the cache, so with several only queries can be left out
        self.focuses_trunk = config.context_steps == 1
        self.starts, self._queries = self._query_positions(config)
        self._senses, self._drawing_order = dict(config.coded_senses), config.drawing_order
        self._kept: dict[tuple, Tensor] = {}  # every step of a rollout asks for the same few tensors
        needed = self.prefix_length + (config.context_steps - 1) * self.trunk_length + self.step_length
        available = getattr(config.text_config, "max_position_embeddings", None)
        if available is not None and needed > available:
            raise ValueError(
                f"The backbone has {available} positions; `context_steps={config.context_steps}` with these senses "
                f"needs {needed}. Use fewer context steps, larger patches or a backbone with more positions."
            )

    def _passes(self, config: PanConfig, texts: dict[str, int]) -> list[Pass]:
        passes = []
        if self.num_state_tokens and config.fold_levels:
            passes.append(Pass("places", self.num_state_tokens, levels=tuple(range(self.num_levels))))
        else:
            for level in range(self.num_levels):
                length = sum(s.num_state_tokens for s in config.coded_senses.values() if level < s.num_levels)
                passes.append(Pass(f"level.{level}", length, levels=(level,)))
        return passes + [Pass(name, length, causal=True) for name, length in texts.items()]

    def _query_positions(self, config: PanConfig) -> tuple[dict[str, int], dict[str, list[int]]]:
        """Where each pass begins in a step, and where in the step the query of each state token is; -1 for tokens of
        senses that have no such level."""
        starts, queries, start = {}, {}, self.trunk_length
        for each in self.passes:
            positions, free = [], itertools.count(start)
            for sense in config.coded_senses.values() if each.levels else ():
                has_level = each.levels[0] < sense.num_levels
                positions += [next(free) if has_level else -1 for _ in range(sense.num_state_tokens)]
            starts[each.name], queries[each.name], start = start, positions, start + each.length
        return starts, queries

    def split_tokens(self, one_pass: Pass, hidden: Tensor, trunk: Tensor) -> dict[str, Tensor]:
        """What readouts get, by sense `(N, P, 3H)`: hidden states of a pass's queries, and beside each what its token
        holds now and what is done. So the backbone need not carry these through, and what happens locally is learned
        by the local adapter.

        Args:
            hidden `(N, one_pass.length, H)`: of the queries of a pass.
            trunk `(N, trunk_length, H)`: embeddings of the state and the action.
        """
        parts, start = {}, 0
        action = trunk[:, self.state_length :].mean(1, keepdim=True)
        for name, sense in self._senses.items():
            if one_pass.levels[0] < sense.num_levels:
                now = self.of_sense(name, trunk)
                queries = hidden[:, start : start + sense.num_state_tokens]
                parts[name] = torch.cat([queries, now, action.expand_as(now)], -1)
                start += sense.num_state_tokens
        # numbers first: pictures are then told what was drawn, and agree with it
        return {name: parts[name] for name in self._drawing_order if name in parts}

    def of_sense(self, sense: str, tokens: Tensor) -> Tensor:
        """The state tokens of one sense, `(N, P, ...)`, of those of all senses, `(N, P of all, ...)`."""
        start = self.token_starts[sense]
        return tokens[:, start : start + self._senses[sense].num_state_tokens]

    def step_mask(self) -> Tensor:
        """`(step_length, step_length)` bool: what may look at what inside one step.

        Each position has a rank: state 0, action 1, then 2, 3, ... a rank a pass, one a causal token. A position sees
        those of its own step whose rank is not above its own."""
        ranks = [torch.zeros(self.state_length), torch.ones(self.action_length)]
        first = 2
        for each in self.passes:
            ranks.append(first + (torch.arange(each.length) if each.causal else torch.zeros(each.length)))
            first += each.length if each.causal else 1
        rank = torch.cat(ranks)
        return rank.unsqueeze(0) <= rank.unsqueeze(1)

    def tokens(self, selection: TokenSelection, passes: list[Pass], trunk: bool) -> Tokens:
        """What is run of a step, the tokens of a selection alone: its trunk, and the queries of `passes`."""
        device, parts = selection.index.device, []

        def everyone(first: int, end: int) -> tuple[Tensor, Tensor]:
            position = torch.arange(first, end, device=device).expand(len(selection.index), -1)
            return position, torch.ones_like(position, dtype=torch.bool)

        if trunk:
            parts += [(selection.index, selection.valid)] if self.focuses_trunk else []
            parts.append(everyone(self.num_state_tokens if self.focuses_trunk else 0, self.trunk_length))
        for each in passes:
            if each.levels:
                position = self._query_of(each.name, device)[selection.index]
                parts.append((position.clamp(min=0), selection.valid & (position >= 0)))
            else:
                parts.append(everyone(self.starts[each.name], self.starts[each.name] + each.length))
        position, valid = (torch.cat(column, 1) for column in zip(*parts, strict=True))
        return Tokens(position, valid, self.step_length)

    def window(self, num_steps: int, tokens: Tokens | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mask `(1 or B, 1, L, L)` bool and position ids `(L,)` or `(B, L)` of a prefix and `num_steps` steps, of
        which `tokens` (B * num_steps rows) are run; None: all of them."""
        mask, step = self.window_mask(num_steps).to(device), torch.arange(num_steps, device=device).unsqueeze(1)
        before, inside = torch.arange(self.prefix_length, device=device), torch.arange(self.step_length, device=device)
        # queries go on from the end of their trunk, and the next trunk takes the same positions
        positions = torch.cat([before, (self.prefix_length + self.trunk_length * step + inside).flatten()])
        if tokens is None:
            return mask.view(1, 1, *mask.shape), positions
        inside = tokens.position.unflatten(0, (-1, num_steps))
        inside = (self.prefix_length + self.step_length * step + inside).flatten(1)
        before = before.expand(len(inside), -1)
        index = torch.cat([before, inside], 1)  # (B, L), where each position stands in the whole window
        valid = torch.cat([torch.ones_like(before, dtype=torch.bool), tokens.valid.reshape(inside.shape)], 1)
        mask = mask[index.unsqueeze(2), index.unsqueeze(1)] & valid.unsqueeze(1)
        return mask.unsqueeze(1), positions[index]

    def focused_mask(self, past: int, tokens: Tokens, keys: Tokens) -> Tensor:
        """`(N, 1, L, past + K)` bool: what the `tokens` of a step look at behind `past` cached positions, all of which
        they see; keys, everything of this step that was run, these tokens included."""
        step = self._keep(self.step_mask, "step", tokens.position.device)
        inside = step[tokens.position.unsqueeze(2), keys.position.unsqueeze(1)] & keys.valid.unsqueeze(1)
        return nn.functional.pad(inside, (past, 0), value=True).unsqueeze(1)

    def continuation_mask(self, past: int, seen: int, end: int, device: torch.device) -> Tensor:
        """`(1, 1, end - seen, past + end)` bool: what positions `seen` to `end` of a step look at behind `past` cached
        positions, all of which they see."""

        def make() -> Tensor:
            inside = self.step_mask()[seen:end, :end]
            return nn.functional.pad(inside, (past, 0), value=True)[None, None]

        return self._keep(make, past, seen, end, device)

    def keep_tensors(self, device: torch.device) -> None:
        """Makes what `tokens` and `focused_mask` keep, so that a compiled step, which must not, finds it."""
        self._keep(self.step_mask, "step", device)
        for each in self.passes:
            self._query_of(each.name, device)

    def _query_of(self, name: str, device: torch.device) -> Tensor:
        return self._keep(lambda: torch.tensor(self._queries[name]), "queries", name, device)

    def _keep(self, make: Callable[[], Tensor], *key) -> Tensor:
        """A tensor made once for each key, whose last entry is the device it lives on."""
        if key not in self._kept:
            self._kept[key] = make().to(key[-1])
        return self._kept[key]

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


def hide_padding(mask: Tensor, prefix: Tensor, pad_token_id: int) -> Tensor:
    """Keys of the prefix that are padding are seen by nobody but themselves. mask bool `(1, 1, Q, K)` ->
    `(1 or B, 1, Q, K)`."""
    real = prefix != pad_token_id
    if bool(real.all()):
        return mask
    queries, keys = mask.shape[-2:]
    visible = nn.functional.pad(real, (0, keys - real.shape[1]), value=True)[:, None, None]
    if queries == keys:  # a row of a mask without any key would be softmax of nothing
        visible = visible | torch.eye(keys, dtype=torch.bool, device=mask.device)
    return mask & visible


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as the additive float mask attention wants: 0 where it may look, the least float elsewhere."""
    # the least float and not minus infinity: a query all of whose keys are hidden would become NaN
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def with_absent(rows: Tensor) -> Tensor:
    """Rows `(K, ...)` and one more of zeros, the row of a code that is absent: `codes % (K + 1)` finds it."""
    return nn.functional.pad(rows, (0, 0, 0, 1))


def group_by_token(codes: Tensor, sense: CodedPart, level: int) -> Tensor:
    """Codes of one level by state token: `(B, num_codes, ...)` -> `(B, P, codes_per_token, ...)`, raster order
    inside."""
    return fold_cells(codes, sense.level_grid(level), sense.token_grid)


def ungroup_tokens(codes: Tensor, sense: CodedPart, level: int) -> Tensor:
    """The inverse of `group_by_token`: `(B, P, codes_per_token, ...)` -> `(B, num_codes, ...)`."""
    return unfold_cells(codes, sense.level_grid(level), sense.token_grid)


def fold_cells(x: Tensor, fine: tuple[int, int], coarse: tuple[int, int]) -> Tensor:
    """Values on a fine grid, by the cells of a coarse one that it nests in, grids as rows and columns in raster
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


def spread_codes(values: Tensor, sense: CodedPart, coarse: int, fine: int) -> Tensor:
    """Values of the codes of a coarser level, `(N, n, ...)`, repeated onto the codes of a finer one that lie in
    them."""
    (rows, columns), (fine_rows, fine_columns) = sense.level_grid(coarse), sense.level_grid(fine)
    if (rows, columns) == (fine_rows, fine_columns):
        return values
    rest = values.shape[2:]
    grid = values.reshape(len(values), rows, 1, columns, 1, *rest)
    grid = grid.expand(-1, -1, fine_rows // rows, -1, fine_columns // columns, *rest)
    return grid.reshape(len(values), fine_rows * fine_columns, *rest)
