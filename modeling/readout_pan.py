"""From codes to the backbone and back: state embeddings, readouts, and the head that samples coherent futures.

A code enters the backbone through its own row of the vocabulary and is read out against its own row, so a new token is
a new row and nothing else. What is learned here is shared by all codes of a level: where a code sits inside its state
token, and a local adapter that looks at a code's neighbours. One query a state token reads *all* of its codes, so a
step of a 64x64 image costs the backbone 16 query positions, not one for each of its 128 codes.

Shapes: B = batch, P = state tokens, r = codes of a token at a level, n = P * r, H = backbone width, A = adapter width,
K = capacity of the level's segment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .codecs_pan import digits_to_unit
from .embedding_pan import LevelTables, affine, module_list
from .layout_pan import spread_codes, ungroup_tokens, with_absent
from .state_pan import Actions, State, action_tensors

if TYPE_CHECKING:
    from .configuration_pan import PanConfig
    from .modeling_pan import PanModel
    from .sense_configuration_pan import CodedPart


class LevelReadout(nn.Module):
    """Logits over one level's codes from hidden states, the current codes and the coarser new ones.

    Args:
        sense ([`CodedPart`]): shape and levels.
        level (`int`): 0 is the coarsest.
        hidden_size, width (`int`): H and A.
        copy_bias (`float`): initial value of the scalar added to the current code's logit; vectors start at 0, since
            their [`DigitDensity`] already lies where they are.
        autoregressive (`bool`): sample the codes one after the other (see [`AutoregressiveHead`]).
        num_numbers (`int`): V, of `readout_pan.readout_scalars`.
        drawn (`slice`): those of them that say where the vectors will be, see [`RelativePositionFeatures`].
        num_blocks (`int`): local blocks; each lets a code look one code farther around itself.
    """

    def __init__(
        self,
        sense: CodedPart,
        level: int,
        hidden_size: int,
        width: int,
        copy_bias: float,
        autoregressive: bool,
        num_numbers: int,
        drawn: slice,
        num_blocks: int,
    ):
        super().__init__()
        self.drawn = drawn
        self.bearings = RelativePositionFeatures(drawn.stop - drawn.start, width) if drawn.stop > drawn.start else None
        self.sense, self.level, self.initial_copy_bias = sense, level, copy_bias
        self.places = nn.Linear(3 * hidden_size, sense.codes_per_token[level] * width)
        self.numbers = nn.Linear(num_numbers, self.places.out_features, bias=False) if num_numbers else None
        self.current = nn.Linear(hidden_size, width, bias=False)
        self.coarser = module_list(nn.Linear(hidden_size, width, bias=False) for _ in range(level))
        # vocabulary rows are a fiftieth of the size of hidden states, and would otherwise hardly be seen beside them
        self.row_norm = nn.LayerNorm(hidden_size)
        grid = sense.level_grid(level)
        self.blocks = module_list(_LocalBlock(grid[0] > 1, width) for _ in range(num_blocks))
        self.sentence = AutoregressiveHead(grid, hidden_size, width) if autoregressive else None
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, hidden_size)
        self.copy_bias = nn.Parameter(torch.empty(1))
        self.density = DigitDensity(sense, level, width, num_numbers) if sense.has_digits else None

    def reset_pan_parameters(self, _std: float) -> None:
        init.constant_(self.copy_bias, self.initial_copy_bias if self.density is None else 0.0)

    def tables(self, rows: list[Tensor], out_rows: Tensor, live: Tensor) -> LevelTables:
        """What this level's layers make of each code, worked out once for all of them.

        Args: rows, input rows `(K, H)` of every level's segment up to this one; out_rows `(K, H)`, which this level
        is read out against; live `(K,)` bool."""
        weight, bias = affine(self.out)
        assert bias is not None  # as `out` is made
        return LevelTables(
            current=with_absent(self.current(self.row_norm(rows[self.level]))),
            coarser=[with_absent(layer(self.row_norm(part))) for layer, part in zip(self.coarser, rows, strict=False)],
            drawn=None if self.sentence is None else self.sentence.table(rows[self.level]),
            weight=out_rows @ weight,
            bias=(out_rows @ bias).masked_fill(~live, -torch.inf),
        )

    def features(
        self,
        tokens: Tensor,
        now: Tensor,
        coarser: list[Tensor],
        tables: LevelTables,
        numbers: Tensor | None,
        shown: CodedPart | None = None,
        corner: Tensor | None = None,
    ) -> Tensor:
        """Args: tokens `(B, P, 3H)`, see `StepLayout.split_tokens`; now, the current codes `(B, n)`; coarser, the new
        codes of each level before this one `(B, n_l)`; numbers `(B, V)`, see `readout_scalars`; for a crop
        (`augmentation_pan`) shown, a sense of its size, and corner, `(B, 2)` the row and column of its first token.
        Returns: `(B, n, A)`."""
        shown = shown or self.sense
        x = self._inputs(tokens, now, coarser, tables, numbers, shown, corner)
        grid = shown.level_grid(self.level)
        for block in self.blocks:
            x = block(x, grid)
        return x

    def features_at(
        self,
        tokens: Tensor,
        now: Tensor,
        coarser: list[Tensor],
        tables: LevelTables,
        numbers: Tensor | None,
        row: Tensor,
        patch: Tensor,
    ) -> Tensor:
        """What `features` gives at some patches of an image, worked out there alone: each with as much around it as
        the blocks see. Args: as for `features`; row, patch `(F,)`, which. Returns: `(F, codes a patch, A)`."""
        x = self._inputs(tokens, now, coarser, tables, numbers, self.sense, None)
        (rows, columns), margin = self.sense.level_grid(self.level), len(self.blocks)
        across = self.sense.token_grid[1]
        high, wide = self._token_size()
        down = (high * (patch // across)).unsqueeze(1) + torch.arange(-margin, high + margin, device=x.device)
        right = (wide * (patch % across)).unsqueeze(1) + torch.arange(-margin, wide + margin, device=x.device)
        inside = ((down >= 0) & (down < rows)).unsqueeze(2) & ((right >= 0) & (right < columns)).unsqueeze(1)
        index = down.clamp(0, rows - 1).unsqueeze(2) * columns + right.clamp(0, columns - 1).unsqueeze(1)
        x = x[row.view(-1, 1, 1), index]  # (F, window, window, A)
        for block in self.blocks:
            x, inside = block.within(x, inside), inside[:, 1:-1, 1:-1]
        return x.flatten(1, 2)

    def _inputs(
        self,
        tokens: Tensor,
        now: Tensor,
        coarser: list[Tensor],
        tables: LevelTables,
        numbers: Tensor | None,
        shown: CodedPart,
        corner: Tensor | None,
    ) -> Tensor:
        """The features of each code before it looks around itself, `(B, n, A)`; args as for `features`."""
        hidden, held, action = tokens.chunk(3, -1)
        weight, bias = affine(self.places)
        for_hidden, for_held, for_action = weight.chunk(3, 1)
        x = nn.functional.linear(hidden, for_hidden, bias)
        x = x + nn.functional.linear(self.row_norm(held), for_held)
        x = x + nn.functional.linear(self.row_norm(action[:, :1]), for_action)  # one token: it is the same at all
        if self.numbers is not None:
            assert numbers is not None  # there are some where there is a layer for them
            x = x + self.numbers(numbers.to(x.dtype)).unsqueeze(1)
        x = ungroup_tokens(x.unflatten(-1, (self.sense.codes_per_token[self.level], -1)), shown, self.level)
        if self.bearings is not None:
            assert numbers is not None  # there are some where there is a layer for them
            x = x + self.bearings(numbers[:, self.drawn], *self._middles(shown, corner, numbers.device)).to(x.dtype)
        # modulo: an absent code, -1, finds the last row, which is zero
        x = x + nn.functional.embedding(now % len(tables.current), tables.current)
        for level, (codes, table) in enumerate(zip(coarser, tables.coarser, strict=False)):
            x = x + spread_codes(nn.functional.embedding(codes % len(table), table), shown, level, self.level)
        return x

    def _middles(self, shown: CodedPart, corner: Tensor | None, device: torch.device) -> list[Tensor]:
        """Where the middles of rows and of columns of codes are on the whole frame, in [-1, 1], `(B or 1, count)`
        each; args as for `features`."""
        whole, size, middles = self.sense.level_grid(self.level), self._token_size(), []
        for axis, count in enumerate(shown.level_grid(self.level)):
            index = torch.arange(count, device=device) + 0.5
            index = index.unsqueeze(0) if corner is None else index + size[axis] * corner[:, axis : axis + 1]
            middles.append(2 * index / whole[axis] - 1)
        return middles

    def _token_size(self) -> tuple[int, int]:
        """Rows and columns of this level's codes that a state token covers."""
        codes, tokens = self.sense.level_grid(self.level), self.sense.token_grid
        return codes[0] // tokens[0], codes[1] // tokens[1]

    def logits(
        self,
        features: Tensor,
        tables: LevelTables,
        current: list[Tensor],
        coarser: list[Tensor],
        numbers: Tensor | None,
    ) -> Tensor:
        """Args: features `(B, n, A)`; current, the current codes of every level `(B, n_l)`; coarser, the new codes of
        each level before this one; numbers `(B, V)`. Returns: `(B, n, K)` float32, minus infinity at rows
        that are not active."""
        logits = nn.functional.linear(self.out_norm(features), tables.weight, tables.bias).float()
        if self.density is not None:
            logits = logits + self.density(features, current, coarser, numbers)
        now = current[self.level]
        bias = self.copy_bias.float() * (now >= 0)  # an absent code cannot stay
        return logits.scatter_add_(-1, now.clamp(min=0).unsqueeze(-1), bias.unsqueeze(-1))


class _LocalBlock(nn.Module):
    """A convolution over the grid of codes (on a row: a layer for each code by itself), then a perceptron; each is
    added to its input."""

    def __init__(self, is_grid: bool, width: int):
        super().__init__()
        self.is_grid = is_grid
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.neighbours = nn.Conv2d(width, width, 3, padding=1) if is_grid else nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """`(B, n, A)` -> `(B, n, A)`, n = rows times columns of `grid`."""
        around = self.norm(x)
        if self.is_grid:
            around = around.unflatten(1, grid).permute(0, 3, 1, 2)
            around = self.neighbours(around).permute(0, 2, 3, 1).flatten(1, 2)
        else:
            around = self.neighbours(around)
        return self._alone(x + nn.functional.gelu(around))

    def within(self, x: Tensor, inside: Tensor) -> Tensor:
        """The same for the middles of windows of a grid: `(F, w, w, A)`, `inside` the grid `(F, w, w)` bool ->
        `(F, w - 2, w - 2, A)`."""
        around = (self.norm(x) * inside.unsqueeze(-1)).permute(0, 3, 1, 2)
        if hasattr(self.neighbours, "base_layer"):  # an adapter (PEFT), whose convolution pads whatever is asked
            around = self.neighbours(around)[..., 1:-1, 1:-1]
        else:
            around = nn.functional.conv2d(around, self.neighbours.weight, self.neighbours.bias)
        return self._alone(x[:, 1:-1, 1:-1] + nn.functional.gelu(around.permute(0, 2, 3, 1)))

    def _alone(self, x: Tensor) -> Tensor:
        return x + self.contract(nn.functional.gelu(self.expand(self.mlp_norm(x))))


class AutoregressiveHead(nn.Module):
    """A small causal transformer over the codes of one level, in raster order.

    Codes sampled in parallel from their marginals would mix two futures into one (an obstacle in two cells, or in
    none). This head draws each code of level 0 given those before it, the backbone having been run once for all of
    them. Codes drawn just before and close by, with the features there, come in through causal convolutions, the same
    everywhere, as in a PixelCNN; codes drawn farther away come in through attention.

    Args:
        grid (`tuple[int, int]`): rows and columns of the level's codes; a vector's are one row.
        hidden_size, width (`int`): H and A.
    """

    def __init__(self, grid: tuple[int, int], hidden_size: int, width: int, num_layers: int = 2, num_heads: int = 4):
        super().__init__()
        self.row_norm = nn.LayerNorm(hidden_size)
        self.drawn = nn.Linear(hidden_size, width, bias=False)
        self.pair_norm = nn.LayerNorm(width)
        self.pair = nn.Linear(width, 2 * width)
        self.previous = nn.Linear(2 * width, width, bias=False)
        self.close_by = _CausalNeighbours(grid, 2 * width, width)
        self.position = nn.Parameter(torch.empty(grid[0] * grid[1], width))
        self.layers = module_list(_CausalLayer(grid, width, num_heads) for _ in range(num_layers))

    def reset_pan_parameters(self, std: float) -> None:
        init.normal_(self.position, std=std)

    def table(self, rows: Tensor) -> Tensor:
        """What each code adds to the features of those behind it: rows of the level's segment `(K, H)` -> `(K, A)`."""
        return self.drawn(self.row_norm(rows))

    def forward(self, features: Tensor, codes: Tensor, table: Tensor) -> Tensor:
        """Features `(B, n, A)` that know the codes before each: `codes` `(B, n)`, of which the last is not looked at;
        table, see `table`. Returns: `(B, n, A)`."""
        pairs = nn.functional.gelu(self.pair(self.pair_norm(features + nn.functional.embedding(codes, table))))
        previous = nn.functional.pad(self.previous(pairs[:, :-1]), (0, 0, 1, 0))
        x = features + previous + self.close_by(pairs) + self.position
        for layer in self.layers:
            x = layer(x)
        return x


class _CausalLayer(nn.Module):
    def __init__(self, grid: tuple[int, int], width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.local_norm, self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.local = _CausalNeighbours(grid, width, width, itself=True)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local(nn.functional.gelu(self.local_norm(x)))
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        x = x + self.out(_attend(query, key, value).transpose(1, 2).flatten(2))
        return x + self.contract(nn.functional.gelu(self.expand(self.mlp_norm(x))))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention `(B, heads, n, width)`, written out where gradients are wanted on a CPU: a sentence is short,
    and the fused kernel takes several times as long backwards."""
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ value


class _CausalNeighbours(nn.Module):
    """A convolution over the codes before on a grid: `REACH` rows above, and as many columns to the left.

    One side is padded and the other cut off, which makes it causal; no weight is masked.

    Args:
        itself (`bool`): see the position itself too.
    """

    REACH = 2

    def __init__(self, grid: tuple[int, int], width: int, out: int, itself: bool = False):
        super().__init__()
        self.grid, self.itself = grid, itself
        self.beside = nn.Conv2d(width, out, (1, self.REACH + itself))
        window = (self.REACH, 2 * self.REACH + 1)
        self.above = nn.Conv2d(width, out, window, bias=False) if grid[0] > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """`(B, n, width)` -> `(B, n, out)`."""
        reach, x = self.REACH, x.unflatten(1, self.grid).permute(0, 3, 1, 2)
        out = self.beside(nn.functional.pad(x if self.itself else x[..., :-1], (reach, 0)))
        if self.above is not None:
            out = out + self.above(nn.functional.pad(x[:, :, :-1], (reach, reach, reach, 0)))
        return out.permute(0, 2, 3, 1).flatten(1, 2)


# ---- Digits as cells of a smooth density: how far a number moves is learned once, not once for each digit.
#
# A vector's coordinate is written in digits, coarse first (`codecs_pan`). Rows know nothing of the order of digits,
# and a fine digit, which repeats in every coarse cell, is close to noise. So the readout of each level also says where
# the coordinate will be: a mixture of logistics around its value now, integrated over the cells of the level (a
# discretised mixture, as in PixelCNN++, Salimans et al. 2017, there over 8-bit pixels). The log mass of each digit's
# cell is added to the logit of its row.


# unit of a displacement that features tell, as a share of the range: at 1, Adam's jitter alone is a hundredth
STEP = 0.1
WIDTH = 0.02  # initial width of a logistic, as a share of the range


class DigitDensity(nn.Module):
    """Log mass of each digit of one level.

    Args:
        sense ([`CodedPart`]): with digits.
        level (`int`): 0 is the coarsest.
        width (`int`): A, of the features.
        num_numbers (`int`): V of `scalar_features`, which act on the displacement directly, since much of what numbers
            do is nearly linear.
        num_components (`int`): logistics in the mixture.
    """

    def __init__(self, sense: CodedPart, level: int, width: int, num_numbers: int, num_components: int = 3):
        super().__init__()
        self.base, self.level = sense.codebook_size[level], level
        self.narrowest = self.base**-sense.num_levels / 8
        # parameters of this module, not layers: layers would be initialised at unit gain
        self.shape = nn.Parameter(torch.empty(3 * num_components, width))
        self.linear = nn.Parameter(torch.empty(sense.num_state_tokens * sense.codes_per_token[level], num_numbers))

    def reset_pan_parameters(self, std: float) -> None:
        init.normal_(self.shape, std=0.1 * std)  # a little apart, or the components would stay the same for ever
        init.zeros_(self.linear)

    def forward(self, features: Tensor, now: list[Tensor], coarser: list[Tensor], numbers: Tensor) -> Tensor:
        """Args: features `(B, n, A)`; now, the current digits of every level `(B, n)`; coarser, the new digits of the
        levels before this one; numbers `(B, V)`. Returns: `(B, n, base)` float32, log masses of the digits."""
        with torch.autocast(features.device.type, enabled=False):  # a fine cell is narrower than bfloat16 can tell
            shape = nn.functional.linear(features.float(), self.shape.float())
            moved = nn.functional.linear(numbers.float(), self.linear.float())
        share, displacement, width = shape.unsqueeze(-2).chunk(3, -1)  # (B, n, 1, M)
        expected = digits_to_unit(now, self.base) + moved
        centre = expected.unsqueeze(-1).unsqueeze(-1) + STEP * displacement
        scale = WIDTH * width.clamp(-6, 6).exp() + self.narrowest
        cell = self.base ** -(self.level + 1)
        first = digits_to_unit(coarser, self.base, inside=0.0) if coarser else torch.zeros_like(expected)
        lower = (first.unsqueeze(-1) + cell * torch.arange(self.base, device=features.device)).unsqueeze(-1)
        # mass outside the bounds belongs to the outermost cells
        lowest, highest = lower < cell / 2, lower + cell > 1 - cell / 2
        below = ((lower - centre) / scale).masked_fill(lowest, -1e4)
        above = ((lower + cell - centre) / scale).masked_fill(highest, 1e4)
        gap = (cell / scale).masked_fill(lowest | highest, 1e4)
        # log(sigmoid(above) - sigmoid(below)), without cancellation
        inside = nn.functional.logsigmoid(above) + nn.functional.logsigmoid(-below) + torch.log(-torch.expm1(-gap))
        return (inside + share.log_softmax(-1)).logsumexp(-1)


# ---- Scalar features: the numbers of a step, which the readouts get as numbers.
#
# Codes are good at naming things and poor at arithmetic. Where a coordinate is, how it has just changed and which way
# a vector action points are known exactly, so the readouts get them beside the hidden states: displacements follow
# nearly linear rules, and the readout of an image that is given the vectors of its own future agrees with them.


OCTAVES = 6  # the highest has a period of a thirty-second of the range


def _numeric_senses(config: PanConfig) -> dict[str, CodedPart]:
    return {name: sense for name, sense in config.coded_senses.items() if sense.num_scalars}


def num_step_numbers(config: PanConfig) -> int:
    """V, the width of `scalar_features`; 0 where nothing is a number."""
    senses = sum(2 * sense.num_scalars for sense in _numeric_senses(config).values())
    return senses + bool(senses) + sum(part.num_scalars for part in config.actions.values())


def num_readout_scalars(config: PanConfig, sense: str) -> int:
    """Width of `readout_scalars` of one sense."""
    drawn = drawn_scalars(config, sense)
    return num_step_numbers(config) + (drawn.stop - drawn.start) * (1 + 2 * OCTAVES)


def drawn_scalars(config: PanConfig, sense: str) -> slice:
    """Which of the `readout_scalars` of a sense say where the vectors will be, in [-1, 1]; none for a sense that is
    numbers itself, since these are drawn first."""
    first, gets_them = num_step_numbers(config), not config.senses[sense].num_scalars
    return slice(first, first + gets_them * sum(vector.num_scalars for vector in _numeric_senses(config).values()))


def scalar_features(
    model: PanModel, now: State, before: State | None, action: Tensor | Actions, has_before: Tensor | None = None
) -> Tensor | None:
    """Every vector sense in [-1, 1], its change since the step before, whether that is known, and a vector action:
    `(N, V)` float32, or None where nothing is a number.

    Args:
        now, before: states of leading shape `(N,)`; `before` is None where no step before is remembered.
        action: `(N, ...)`.
        has_before `(N,)` bool: the rows that have a step before; all of them if not given.
    """
    parts = []
    if senses := _numeric_senses(model.config):
        unit = _units(model, now.codes)
        is_known, change = unit.new_full((len(unit), 1), float(before is not None)), torch.zeros_like(unit)
        if has_before is not None:
            is_known = is_known * has_before.unsqueeze(1)
        if before is not None:
            both = [(now.present(name) & before.present(name)).unsqueeze(1) for name in senses]
            both = [each.expand(-1, sense.num_scalars) for each, sense in zip(both, senses.values(), strict=True)]
            change = is_known * torch.cat(both, 1) * (unit - _units(model, before.codes))
        parts = [unit, change, is_known]
    for described, part in zip(model.config.actions.values(), action_tensors(action), strict=True):
        if described.num_scalars:
            low, high = described.bounds(part.device)
            parts.append((2 * (part.float() - low) / (high - low) - 1).clamp(-1, 1))
    return torch.cat(parts, 1) if parts else None


def window_numbers(model: PanModel, state: State, action: Tensor | Actions) -> Tensor | None:
    """`scalar_features` of all transitions of windows, each window's first without a step before. Args: state, of
    leading shape `(B, T + 1)`; action `(B, T, ...)`. Returns: `(B * T, V)` or None."""
    batch, steps = action.shape[:2]
    now = state.without_latents().map(lambda tensor: tensor[:, :steps].flatten(0, 1))
    before = now.map(lambda tensor: tensor.roll(1, 0))  # the first of a window gets another's, which does not count
    has_before = torch.arange(batch * steps, device=action.device) % steps > 0
    return scalar_features(model, now, before, action.flatten(0, 1), has_before)


def _units(model: PanModel, codes: dict[str, list[Tensor]]) -> Tensor:
    """All vector senses side by side, in [-1, 1]: `(..., sum of dim)`."""
    return torch.cat([model.senses[name].scalars(codes[name]) for name in _numeric_senses(model.config)], -1)


def readout_scalars(
    model: PanModel, sense: str, numbers: Tensor | None, drawn: dict[str, list[Tensor]]
) -> Tensor | None:
    """The scalars that the readouts of one sense get, `(N, num_readout_scalars)`: the step's numbers, and for an image
    also where the vectors will be.

    Args:
        numbers: see `scalar_features`.
        drawn: the next state's codes `(N, n)` a level, of all vector senses as far as they are drawn.
    """
    gets = drawn_scalars(model.config, sense)
    if gets.start == gets.stop:
        return numbers
    assert numbers is not None  # some are drawn
    return torch.cat([numbers, _waves(_units(model, drawn))], 1)


def _waves(unit: Tensor) -> Tensor:
    """Numbers `(..., dim)` with their sines and cosines at `OCTAVES` octaves, so that a layer can tell close ones
    apart."""
    phases = (unit.unsqueeze(-1) * torch.pi * 2.0 ** torch.arange(OCTAVES, device=unit.device)).flatten(-2)
    return torch.cat([unit, phases.sin(), phases.cos()], -1)


class RelativePositionFeatures(nn.Module):
    """How far each number is from each row and each column of a picture's codes.

    Where a number is a coordinate of what the picture shows, something stands where it says. That is a matter of
    differences between a number and a position, which layers that see both side by side learn slowly: PushT's agent
    was drawn at 15.7 dB with its position known to half a pixel. So each row and each column gets the differences, as
    waves; the features of rows and columns are added up, and the perceptrons behind make a spot of them.

    Args:
        num_numbers (`int`): D, numbers in [-1, 1], taken for positions from one border of the picture to the other.
        width (`int`): A.
    """

    def __init__(self, num_numbers: int, width: int):
        super().__init__()
        size = num_numbers * (1 + 2 * OCTAVES)
        self.rows, self.columns = nn.Linear(size, width, bias=False), nn.Linear(size, width, bias=False)

    def forward(self, numbers: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Args: numbers `(N, D)`; rows `(N or 1, R)` and columns `(N or 1, C)`, where the middles of codes are, in
        [-1, 1]. Returns: `(N, R * C, A)`."""
        dtype = self.rows.weight.dtype  # distances and waves in float32: the finest wave would be lost below it
        down = self.rows(_waves(numbers.unsqueeze(1) - rows.unsqueeze(-1)).to(dtype))  # (N, R, A)
        across = self.columns(_waves(numbers.unsqueeze(1) - columns.unsqueeze(-1)).to(dtype))  # (N, C, A)
        return (down.unsqueeze(2) + across.unsqueeze(1)).flatten(1, 2)
