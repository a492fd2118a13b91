"""One of so many values, or an array of them: nothing is learned, since the values are the codes.

A number here is a name. Taxi's state 207 is no nearer to 208 than to 12, and MiniGrid's cell (2, 5, 0) is a grey wall
and no dark blue. So each value has a row of the vocabulary to itself, a value that was never met is as legal as any
other, and an imagined observation is right or wrong, never nearly right.

On a grid a *level* is a channel: the object of a cell is drawn first, then its colour given the object. In a row, a
level holds the entries that have as many values as one another.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .codecs_pan import Codec, register_sense
from .sense_configuration_pan import CodedPart
from .validation_pan import MOST_PIXELS, MOST_ROWS, MOST_WIDE, bounded, require

MOST_TOKENS = 8  # of a row of values, as of a vector
MOST_LEVELS = 64
CELL = 12  # pixels on the side of a cell that is drawn, at least
GOLDEN = 0.618034  # of the circle of hues, from one value to the next: neighbouring values look unlike


@dataclass(frozen=True)
class DiscreteSense(CodedPart):
    """One of so many values (gymnasium's `Discrete`), a row of them (`MultiDiscrete`, `MultiBinary`), or a grid of
    cells with one value a channel (MiniGrid's `image`).

    Args:
        dims (`list[int]`): shape of an observation: `[]` of one value, `[entries]` of a row, `[height, width]` or
            `[height, width, channels]` of a grid.
        num_values (`int` or `list[int]`): how many values there are: of each entry of a row, or of each channel of a
            grid, where they differ.
        start (`int` or `list[int]`): the least value, likewise.
        spatial_merge_size (`int`): cells of a grid on the side of one state token, which holds all their channels.
        merge_capacity (`int`): rows reserved for merged tokens, see `merging_pan.py`.

    Raises:
        ValueError: more than three dimensions, another number of `num_values` or `start` than there are entries or
            channels, more than 64 levels, or tokens that do not tile the grid.
    """

    dims: list[int] = bounded([], 1, MOST_WIDE)
    num_values: int | list[int] = bounded(2, 1, MOST_ROWS)
    start: int | list[int] = bounded(0, -(2**31), 2**31 - 1)
    spatial_merge_size: int = bounded(1, 1, 1024)
    merge_capacity: int = bounded(128, 0, MOST_ROWS)
    kind: str = "symbols"

    def __post_init__(self):
        super().__post_init__()
        owner = f"DiscreteSense(dims={self.dims})"
        require(
            len(self.dims) <= 3 and math.prod(self.dims) <= MOST_PIXELS,
            f"{owner}: expected [], [entries], [height, width] or [height, width, channels] of at most {MOST_PIXELS} "
            "values; flatten what has more dimensions to a row.",
        )
        kinds = self.dims[-1] if len(self.dims) in (1, 3) else 1
        for name in ("num_values", "start"):
            value = getattr(self, name)
            value = value if isinstance(value, list) else [value] * kinds
            require(len(value) == kinds, f"{owner}: expected {kinds} of `{name}` or one for all, got {len(value)}.")
            object.__setattr__(self, name, value)
        require(
            self.num_levels <= MOST_LEVELS,
            f"{owner}: {self.num_levels} channels, or entries with different `num_values`; expected at most "
            f"{MOST_LEVELS}. Split the sense.",
        )
        side = self.spatial_merge_size
        require(
            all(size % side == 0 for size in self.level_grid(0)) if self._has_cells else side == 1,
            f"{owner}: spatial_merge_size={side} must divide the height and width of a grid; only a grid has one.",
        )

    latent_dim = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.dims)

    @property
    def _has_cells(self) -> bool:
        return len(self.dims) >= 2

    @property
    def is_grid(self) -> bool:  # type: ignore[override]  # of a configuration, not of its class
        return self._has_cells and self.dims[0] > 1

    @property
    def joins_steps(self) -> bool:  # type: ignore[override]
        return not self._has_cells

    @functools.cached_property
    def _levels(self) -> list[tuple[int, list[int]]]:
        """By level, how many values there are, and which entries of an observation, laid flat, have them.

        Of a row the level of the fewest entries comes first: the grids of levels nest."""
        sizes: list[int] = self.num_values  # type: ignore[assignment]  # a list by now
        if self._has_cells:
            size = math.prod(self.dims)
            return [(count, list(range(channel, size, len(sizes)))) for channel, count in enumerate(sizes)]
        alike: dict[int, list[int]] = {}
        for entry, count in enumerate(sizes):
            alike.setdefault(count, []).append(entry)
        return sorted(alike.items(), key=lambda level: len(level[1]))

    def entries(self, level: int) -> list[int]:
        """Which entries of an observation, laid flat, a level tells, in the order of its codes; codes beyond them
        only fill state tokens up."""
        return self._levels[level][1]

    @property
    def num_levels(self) -> int:
        return len(self._levels)

    @property
    def codebook_size(self) -> list[int]:
        return [count for count, _ in self._levels]

    @property
    def codebook_capacity(self) -> list[int]:
        return self.codebook_size

    def level_grid(self, level: int) -> tuple[int, int]:
        return (self.dims[0], self.dims[1]) if self._has_cells else super().level_grid(level)

    @property
    def token_grid(self) -> tuple[int, int]:
        if not self._has_cells:
            return super().token_grid
        return self.dims[0] // self.spatial_merge_size, self.dims[1] // self.spatial_merge_size

    @property
    def num_state_tokens(self) -> int:
        if self._has_cells:
            return math.prod(self.token_grid)
        return min(MOST_TOKENS, len(self.entries(self.num_levels - 1)))

    @functools.cached_property
    def codes_per_token(self) -> list[int]:
        if self._has_cells:
            return [self.spatial_merge_size**2] * self.num_levels
        counts, coarser = [], 1
        for level in range(self.num_levels):
            needed = math.ceil(len(self.entries(level)) / self.num_state_tokens)
            coarser *= math.ceil(needed / coarser)
            counts.append(coarser)
        return counts

    def limits(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """The least and the greatest value, int64, broadcast to `shape`."""
        start, count = (torch.tensor(each, device=device) for each in (self.start, self.num_values))
        return start, start + count - 1

    def check_values(self, values: Tensor) -> None:
        require(not values.is_floating_point(), f"expected whole numbers, the names of values, got {values.dtype}.")
        low, high = self.limits(values.device)
        wrong = values[(values < low) | (values > high)]
        if wrong.numel():
            spans = sorted({f"{least} to {most}" for least, most in zip(low.tolist(), high.tolist(), strict=True)})
            raise ValueError(f"expected values of {', '.join(spans)}, got {int(wrong[0])}.")

    def crop(self, rows: int, columns: int) -> DiscreteSense:
        """The sense of a part of a grid, so many state tokens high and wide."""
        side = self.spatial_merge_size
        return replace(self, dims=[rows * side, columns * side, *self.dims[2:]])


class DiscreteCodec(Codec):
    """Values as codes, counted from 0, and back."""

    sense: DiscreteSense
    latents_help = False
    is_exact = True

    def _counted(self, values: Tensor) -> Tensor:
        """Values `(..., *shape)` from 0 on, laid flat, `(..., entries)` int64."""
        values = values.long() if self.sense.shape else values.long().unsqueeze(-1)
        return (values - self.sense.limits(values.device)[0]).flatten(-max(1, len(self.sense.shape)))

    def _observed(self, flat: Tensor) -> Tensor:
        """Something of each entry, `(B, entries, ...)`, in the shape of an observation, `(B, *shape, ...)`."""
        return flat.unflatten(1, self.sense.shape) if self.sense.shape else flat.squeeze(1)

    def encode(self, values: Tensor) -> tuple[list[Tensor], None]:
        flat, codes = self._counted(values), []
        for level in range(self.sense.num_levels):
            told, (rows, columns) = flat[..., self.sense.entries(level)], self.sense.level_grid(level)
            codes.append(nn.functional.pad(told, (0, rows * columns - told.shape[-1])))
        return codes, None

    def decode(self, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """`(B, *shape)` int64; the least value where a code is absent."""
        flat = codes[0].new_zeros(len(codes[0]), math.prod(self.sense.shape))
        for level, level_codes in enumerate(codes):
            entries = self.sense.entries(level)
            flat[:, entries] = level_codes[:, : len(entries)].clamp(min=0)
        low, _ = self.sense.limits(flat.device)
        return self._observed(flat) + (low if self.sense.shape else low.squeeze(0))

    def decode_probabilities(self, probabilities: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """How likely each value of each entry is, `(B, *shape, K)`, since names have no mean."""
        most, rows = max(self.sense.codebook_size), len(probabilities[0])
        flat = probabilities[0].new_zeros(rows, math.prod(self.sense.shape), most, dtype=torch.float32)
        for level, count in enumerate(self.sense.codebook_size):
            entries = self.sense.entries(level)
            flat[:, entries, :count] = probabilities[level][:, : len(entries), :count].float()
        return self._observed(flat)

    def error(self, imagined: Tensor, true: Tensor) -> Tensor:
        """Of `decode_probabilities`, `(B, *shape, K)`; the mean square is half the Brier score, 1 for a sure and wrong
        value."""
        most = imagined.shape[-1]
        right = self._observed(nn.functional.one_hot(self._counted(true), most))
        return (imagined - right) * (most / 2) ** 0.5

    def usual_refinements(self, coarser: Tensor, level: int) -> Tensor:
        """None: that a cell holds another object says nothing of its colour."""
        return coarser.new_full((len(coarser), math.prod(self.sense.level_grid(level))), -1)

    def span(self, device: torch.device) -> Tensor:
        return torch.ones((), device=device)

    def squared_shares(self, values: Tensor, others: Tensor) -> Tensor:
        """Another value is wrong by the whole range, whichever it is."""
        wrong = (values != others).float()
        return wrong.flatten(-len(self.sense.shape)) if self.sense.shape else wrong.unsqueeze(-1)

    def log_prob(self, true: Tensor, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Nothing: codes say all there is."""
        return torch.zeros(len(true), device=true.device)

    @property
    def num_readings(self) -> int:
        return sum(len(self.sense.entries(level)) * count for level, count in enumerate(self.sense.codebook_size))

    def readings(self, codes: list[Tensor]) -> Tensor:
        """One number a value, 1 for the one that is there."""
        told = [level_codes[:, : len(self.sense.entries(level))] for level, level_codes in enumerate(codes)]
        pairs = zip(told, self.sense.codebook_size, strict=True)
        return torch.cat([nn.functional.one_hot(each, count).flatten(1) for each, count in pairs], 1).float()

    def sequence_lengths(self, chunk: int) -> list[int]:
        return [math.prod(self.sense.level_grid(level)) * chunk for level in range(self.sense.num_levels)]

    def to_sequence(self, values: Tensor) -> list[Tensor]:
        """All levels; of each entry its values side by side, so that slow changes repeat."""
        codes, _ = self.encode(values)  # (N, chunk, n) a level
        return [level.transpose(1, 2).flatten(1) for level in codes]

    def from_sequence(self, codes: list[Tensor], chunk: int) -> Tensor:
        levels = [level.unflatten(1, (-1, chunk)).transpose(1, 2).flatten(0, 1) for level in codes]  # (N * chunk, n)
        return self.decode(levels).unflatten(0, (-1, chunk))

    def to_picture(self, values: Tensor) -> Tensor:
        """A grid `(..., H, W)` or `(..., H, W, C)` as coloured cells, with a stripe a channel, the least value dark:
        uint8 `(..., 3, height, width)`."""
        counted = values.long() - self.sense.limits(values.device)[0]
        counted = counted if len(self.sense.shape) == 3 else counted.unsqueeze(-1)
        side = max(CELL, counted.shape[-1])
        stripe = torch.arange(side, device=values.device) * counted.shape[-1] // side
        cells = _colours(counted)[..., stripe, :]  # (..., H, W, side, 3)
        return cells.flatten(-3, -2).repeat_interleave(side, -3).movedim(-1, -3)


def _colours(numbers: Tensor) -> Tensor:
    """Whole numbers `(...)` -> RGB uint8 `(..., 3)`: bright hues, and a dark grey for 0."""
    hue = 6 * ((numbers * GOLDEN) % 1).unsqueeze(-1)
    distance = (torch.tensor([5.0, 3.0, 1.0], device=numbers.device) + hue) % 6
    bright = 1 - 0.75 * torch.minimum(distance, 4 - distance).clamp(0, 1)  # from HSV, of saturation 0.75
    return (torch.where(numbers.unsqueeze(-1) == 0, 0.15, 0.95 * bright) * 255).to(torch.uint8)


register_sense(DiscreteSense, DiscreteCodec)
