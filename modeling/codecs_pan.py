"""The codec of each kind of sense and action: what is made of an observation, and back.

A [`Codec`] encodes and decodes, and says of its kind what needs more than the configuration. Codecs are looked up by
the kind's name (`register_sense`, `register_action`), never by class: where a checkpoint's own code runs, each of its
files may exist twice. Vectors use the lattice, whose remainder is the latent; `image_codec_pan.py` has learned codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .embedding_pan import part_embedding
from .layout_pan import fold_cells, unfold_cells
from .sense_configuration_pan import (
    ACTIONS,
    SENSES,
    CodedPart,
    DiscreteAction,
    Part,
    TextAction,
    TextSense,
    VectorAction,
    VectorSense,
)

if TYPE_CHECKING:
    from .embedding_pan import CodeTables
    from .image_codec_pan import Codebook
    from .modeling_pan import PanModel

MOST_CELLS = 0.1  # of what is on a grid that are wrong in a disturbed state, at most
VECTOR_NOISE = 0.01  # standard deviation, as a share of a coordinate's range


class Codec(nn.Module):
    """How one sense, or a coded action, is encoded and decoded.

    A subclass has `encode` and `decode`, and `latents_help`, whether what is decoded comes closer with latents; the
    rest as far as it is not what stands here.

    Shapes: B = batch, n = codes of a level, P = places, `shape` = that of the sense or action.

    Args:
        sense (`CodedPart`): shape, levels and sizes.
    """

    is_exact = False  # codes and latents say all there is, so nothing is counted beyond the codes
    latents_help: bool | Tensor
    codebooks: list[Codebook]  # where codes are learned

    def __init__(self, sense: CodedPart):
        super().__init__()
        self.sense = sense

    @property
    def can_grow(self) -> bool:
        """Whether codes are learned: a [`Codebook`] a level in `codebooks`, with room for more."""
        return self.sense.can_grow

    def encode(self, values: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Observations `(B, T, *shape)`, or of any leading shape. What is made of step `t` may depend on the steps up
        to `t`.

        Returns:
            codes, one `(B, T, n)` int64 a level in raster order, coarse first; latents `(B, T, P, latent_dim)` at unit
            scale, or None.
        """
        raise NotImplementedError

    def decode(self, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Args: codes `(B, n)`, any prefix of levels, absent ones below 0; latents, optional, absent ones not a
        number. Returns: `(B, *shape)` float, see `as_output`."""
        raise NotImplementedError

    def decode_probabilities(self, probabilities: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """The observation `(B, *shape)` that is expected under distributions `(B, n, K)` over the first K codes, one a
        level; differentiable, so that the generative loss of equation 8 reaches whatever made the distributions."""
        raise NotImplementedError

    def latents_given(self, values: Tensor, codes: list[Tensor]) -> Tensor:
        """What codes lack of observations `(B, *shape)`, `(B, P, latent_dim)` at unit scale: with codes of other
        observations, as imagined ones are, latents mend them. Args: codes as for `decode`, of all levels."""
        raise NotImplementedError

    def describe(self) -> list[tuple[Tensor, Tensor]]:
        """For each level `(K, D)` and `(K,)` bool: what each code stands for, and whether it does so yet."""
        raise NotImplementedError

    def usual_refinements(self, coarser: Tensor, level: int) -> Tensor:
        """The codes of a level that usually stand under codes of the level before it, `(B, n')` -> `(B, n)`; below 0
        where that is not known, or the usual code lives no more."""
        raise NotImplementedError

    def losses(
        self,
        values: Tensor,
        neighbours: Tensor,
        usual: Tensor | None,
        motion: float,
        rarity: float,
        update: bool = True,
    ) -> dict[str, Tensor]:
        """Losses of stage 1 by name, none where nothing is learned. Args: see `CodebookCodec.losses`."""
        return {}

    def to_float(self, values: Tensor) -> Tensor:
        """Observations as `decode` gives them: floats."""
        return values

    def as_output(self, decoded: Tensor) -> Tensor:
        """What was decoded as it would be observed."""
        return decoded

    def span(self, device: torch.device) -> Tensor:
        """From the least to the greatest value of an observation, broadcast to `shape`."""
        return torch.tensor(2.0, device=device)

    def error(self, imagined: Tensor, true: Tensor) -> Tensor:
        """What is decoded, less the observation, `(B, *shape)`, in halves of the range."""
        raise NotImplementedError

    def log_prob(self, true: Tensor, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Log probability `(B,)` in nats of observations `(B, *shape)`, given their codes and latents."""
        raise NotImplementedError

    def scalars(self, codes: list[Tensor]) -> Tensor:
        """Of codes `(..., n)`, one a level: the coordinates that they say, in [-1, 1], `(..., sense.num_scalars)`."""
        raise NotImplementedError

    def corrupt(self, codes: list[Tensor], is_corrupt: Tensor) -> list[Tensor]:
        """Codes `(B, n)` a level that are wrong in a likely way in some rows `(B,)` bool: those of some cells, all
        levels of each, are taken from beside them, or from another row."""
        (rows, columns), device = self.sense.level_grid(0), is_corrupt.device
        shape = (len(is_corrupt), rows * columns)
        share = MOST_CELLS * torch.rand(shape[0], 1, device=device) * is_corrupt.unsqueeze(1)
        is_wrong = torch.rand(shape, device=device) < share
        cell, step = torch.arange(shape[1], device=device), torch.randint(-1, 2, (2, *shape), device=device)
        down, right = (cell // columns + step[0]).clamp(0, rows - 1), (cell % columns + step[1]).clamp(0, columns - 1)
        other = torch.randint(shape[0], shape, device=device)
        is_beside = torch.rand(shape, device=device) < 0.5
        frame = torch.where(is_beside, torch.arange(shape[0], device=device).unsqueeze(1), other)
        place = torch.where(is_beside, down * columns + right, cell)
        corrupted = []
        for level, level_codes in enumerate(codes):
            grid = self.sense.level_grid(level)
            slots = fold_cells(level_codes, grid, (rows, columns))  # (B, cells, codes a cell)
            slots = torch.where(is_wrong.unsqueeze(-1), slots[frame, place], slots)
            corrupted.append(unfold_cells(slots, grid, (rows, columns)))
        return corrupted

    def sequence_lengths(self, chunk: int) -> list[int]:
        """How many codes of each level, coarse first, tell `chunk` steps as a sequence of tokens."""
        return [math.prod(self.sense.level_grid(0))]

    def to_sequence(self, values: Tensor) -> list[Tensor]:
        """Observations `(N, chunk, *shape)` as codes of a sequence, `(N, length)` a level: level 0 in raster order of
        one step. Where a sense `joins_steps`, so that `chunk` is not 1, it says in which order."""
        return self.encode(values.flatten(0, 1))[0][:1]

    def from_sequence(self, codes: list[Tensor], chunk: int) -> Tensor:
        """The inverse of `to_sequence`, `(N, chunk, *shape)` float, as far as its codes say it."""
        return self.decode(codes).unsqueeze(1)

    def embed(self, values: Tensor, model: PanModel, part: str, tables: CodeTables | None) -> Tensor:
        """Values `(N, *shape)` of a part of a model -> `(N, P, hidden_size)`, what its backbone reads. Args: tables,
        from `EmbeddingTable.code_tables`, if they are at hand."""
        codes, latents = self.encode(values)
        tables = tables or model.table.code_tables()
        return part_embedding(model, part)(codes, tables.embeddings[part], tables.sizes[part], latents)

    def tokens(self, values: Tensor, model: PanModel, part: str) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Values `(N, *shape)` as tokens, a tuple a level: codes `(N, n)`, the rows they are read out against, which
        of these are active."""
        table = model.table
        return [
            (codes, table.code_table(part, level), table.active_codes(part, level))
            for level, codes in enumerate(self.encode(values)[0])
        ]


class VectorCodec(Codec):
    """The lattice behind the interface of a codec; nothing to train."""

    sense: VectorSense | VectorAction
    latents_help = True  # they are what digits leave over
    is_exact = True

    def __init__(self, sense: VectorSense | VectorAction):
        super().__init__(sense)
        self.lattice = LatticeCodec(sense)

    def encode(self, values: Tensor) -> tuple[list[Tensor], Tensor]:
        """`(..., dim)` float -> digits, one `(..., n)` a level, and the remainder `(..., P, group)` in [-1, 1]."""
        return self.lattice.encode(values)

    def latents_given(self, values: Tensor, codes: list[Tensor]) -> Tensor:
        """What digits lack of vectors `(B, dim)`: the remainder that is nearest, `(B, P, group)` in [-1, 1]."""
        return self.lattice.remainder(values, codes)

    def scalars(self, codes: list[Tensor]) -> Tensor:
        return (2 * digits_to_unit(codes, self.sense.base) - 1)[..., : self.sense.dim]

    def usual_refinements(self, coarser: Tensor, level: int) -> Tensor:
        """No digit is usual below 0: the middle of a cell, what its digits alone decode to, is the better guess."""
        return torch.full_like(coarser, -1)

    def decode(self, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Any prefix of digits -> `(B, dim)` float; with all of them, latents make it exact."""
        return self.lattice.decode(codes, latents if len(codes) == self.sense.num_levels else None)

    def decode_probabilities(self, probabilities: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Expected vector `(B, dim)`, the latents' share of the last cell added."""
        vector = self.lattice.decode_probabilities(probabilities)
        if latents is None:
            return vector
        cell = self.span(vector.device) / self.sense.base**self.sense.num_levels
        return vector + latents.flatten(1)[:, : self.sense.dim] * cell / 2

    def describe(self) -> list[tuple[Tensor, Tensor]]:
        """For each level `(base, base)` and `(base,)` bool: what each digit stands for, and that it does."""
        digits = describe_digits(self.sense.base)
        return [(digits, torch.ones(len(digits), dtype=torch.bool))] * self.sense.num_levels

    def sequence_lengths(self, chunk: int) -> list[int]:
        return [self.sense.dim * chunk] * self.sense.num_levels

    def to_sequence(self, values: Tensor) -> list[Tensor]:
        """All digits; those of one coordinate side by side, so that what changes slowly repeats."""
        levels, _ = self.encode(values.flatten(0, 1))
        digits = [codes[:, : self.sense.dim].unflatten(0, values.shape[:2]) for codes in levels]  # (N, chunk, dim)
        return [codes.transpose(1, 2).flatten(1) for codes in digits]

    def from_sequence(self, codes: list[Tensor], chunk: int) -> Tensor:
        missing = self.sense.num_state_tokens * self.sense.group - self.sense.dim
        digits = [level.unflatten(1, (self.sense.dim, chunk)).transpose(1, 2) for level in codes]  # (N, chunk, dim)
        return self.decode([nn.functional.pad(level, (0, missing)) for level in digits])

    def span(self, device: torch.device) -> Tensor:
        low, high = self.sense.bounds(device)
        return high - low

    def error(self, imagined: Tensor, true: Tensor) -> Tensor:
        return 2 * (imagined - true) / self.span(true.device)

    def log_prob(self, true: Tensor, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Nothing: a vector counts as observed to the precision of its digits."""
        return torch.zeros(len(true), device=true.device)

    def corrupt(self, codes: list[Tensor], is_corrupt: Tensor) -> list[Tensor]:
        """Digits of vectors that are a little off."""
        vectors = self.decode(codes)
        low, high = self.sense.bounds(vectors.device)
        moved = vectors + VECTOR_NOISE * (high - low) * torch.randn_like(vectors)
        digits, _ = self.encode(moved.clamp(low, high))
        pairs = zip(digits, codes, strict=True)
        return [torch.where(is_corrupt.unsqueeze(1) & (old >= 0), new, old) for new, old in pairs]


class TokenCodec(Codec):
    """A discrete action, which is one code, and whose embedding is that code's row."""

    latents_help = False
    is_exact = True

    def encode(self, values: Tensor) -> tuple[list[Tensor], None]:
        return [values.long().unsqueeze(-1)], None

    def decode(self, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        return codes[0].squeeze(-1)

    def sequence_lengths(self, chunk: int) -> list[int]:
        return [chunk]

    def to_sequence(self, values: Tensor) -> list[Tensor]:
        return [values]

    def from_sequence(self, codes: list[Tensor], chunk: int) -> Tensor:
        return codes[0]

    def embed(self, values: Tensor, model: PanModel, part: str, tables: CodeTables | None) -> Tensor:
        return model.table.code_rows(part, 0, values.long()).unsqueeze(1)


class TextCodec(Codec):
    """An action in words, which are tokens already."""

    def embed(self, values: Tensor, model: PanModel, part: str, tables: CodeTables | None) -> Tensor:
        return model.get_input_embeddings()(values)

    def tokens(self, values: Tensor, model: PanModel, part: str) -> list[tuple[Tensor, Tensor, Tensor]]:
        active = model.table.active_words()
        return [(values, model.get_output_embeddings().weight[: len(active)], active)]


CODECS: dict[str, type[Codec]] = {}
ACTION_CODECS: dict[str, type[Codec]] = {}


def register_sense(config: type[Part], codec: type[Codec] | None) -> None:
    """Makes a kind of sense known, under the name that its configuration has as `kind`.

    A file of its own that calls this travels with the checkpoints of models that have such a sense.

    Args:
        config: a frozen dataclass, a `CodedPart` with the field `kind`.
        codec: made from a `config` alone; None for texts, which are words already.
    """
    kind: str = config.kind  # type: ignore[assignment]  # the default of a field is found on its class
    SENSES[kind] = config
    if codec is not None:
        CODECS[kind] = codec


def register_action(config: type[Part], codec: type[Codec]) -> None:
    """As `register_sense`, of actions."""
    kind: str = config.kind  # type: ignore[assignment]  # the default of a field is found on its class
    ACTIONS[kind] = config
    ACTION_CODECS[kind] = codec


def classes_of(senses: Iterable[Part], actions: Iterable[Part]) -> list[type]:
    """The classes, configurations and codecs, that the kinds of some senses and actions are registered with."""
    kinds = [(SENSES[sense.kind], CODECS.get(sense.kind)) for sense in senses]
    kinds += [(ACTIONS[action.kind], ACTION_CODECS[action.kind]) for action in actions]
    return list(dict.fromkeys(found for pair in kinds for found in pair if found is not None))


register_sense(VectorSense, VectorCodec)
register_sense(TextSense, None)
register_action(DiscreteAction, TokenCodec)
register_action(VectorAction, VectorCodec)
register_action(TextAction, TextCodec)


def build_codec(sense: CodedPart) -> Codec:
    """The codec for a sense's kind. Raises ValueError for a kind without one."""
    if sense.kind not in CODECS:
        raise ValueError(f"No codec for senses of kind {sense.kind!r}; known kinds are {sorted(CODECS)}.")
    return CODECS[sense.kind](sense)


def build_action_codec(action: Part) -> Codec:
    """The same for an action."""
    if action.kind not in ACTION_CODECS:
        raise ValueError(f"No codec for actions of kind {action.kind!r}; known kinds are {sorted(ACTION_CODECS)}.")
    return ACTION_CODECS[action.kind](action)  # type: ignore[arg-type]  # a text is not coded, and its codec asks it nothing


# ---- The lattice code: a bounded vector as digits, coarse first (Theorem 1 of "Critiques of World Models", scale
# out).
#
# Coordinate `x` in [low, high] is written in base `b` with `N` digits: digit `l` says in which of `b` equal parts of
# the interval left by the digits before it `x` lies. Any prefix of digits decodes to the middle of its cell, so the
# error after `n` digits is at most (high - low) / b**n / 2, and two vectors farther apart than a cell get different
# digits. What the last digit leaves over is returned as a remainder in [-1, 1]: digits and remainder together are
# exact. `VectorSense.within` chooses digits for a precision.


class LatticeCodec(nn.Module):
    """Encodes and decodes vectors; nothing in it is learned.

    Args:
        sense (`VectorSense` or `VectorAction`): dimension, bounds, base and number of digits.
    """

    def __init__(self, sense: VectorSense | VectorAction):
        super().__init__()
        self.sense = sense
        self.base, self.num_levels = sense.base, sense.num_levels

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # made on the spot: a plain tensor attribute would stay on the meta device under from_pretrained
        low = torch.tensor(self.sense.low, device=like.device, dtype=torch.float32)
        high = torch.tensor(self.sense.high, device=like.device, dtype=torch.float32)
        return low, high

    def _pad(self, values: Tensor) -> Tensor:
        missing = self.sense.num_state_tokens * self.sense.group - self.sense.dim
        return nn.functional.pad(values, (0, missing))

    def encode(self, vector: Tensor) -> tuple[list[Tensor], Tensor]:
        """Args: vector (`(..., dim)` float). Returns: digits, `num_levels` tensors `(..., num_codes)` int64 in
        [0, base), most significant first; remainder `(..., num_state_tokens, group)` in [-1, 1]."""
        low, high = self._bounds(vector)
        unit = ((vector.float() - low) / (high - low)).clamp(0, 1)
        digits = []
        for _ in range(self.num_levels):
            scaled = unit * self.base
            digit = scaled.floor().clamp(max=self.base - 1)
            digits.append(self._pad(digit.long()))
            unit = scaled - digit
        remainder = self._pad(2 * unit - 1)
        return digits, remainder.unflatten(-1, (self.sense.num_state_tokens, self.sense.group))

    def remainder(self, vector: Tensor, digits: list[Tensor]) -> Tensor:
        """The remainder with which `digits`, all of them, come nearest to `vector`; args and result as for
        `encode`."""
        low, high = self._bounds(vector)
        unit = ((vector.float() - low) / (high - low)).clamp(0, 1)
        lower = digits_to_unit(digits, self.base, 0.0)[..., : self.sense.dim]
        remainder = self._pad((2 * (unit - lower) * self.base**self.num_levels - 1).clamp(-1, 1))
        return remainder.unflatten(-1, (self.sense.num_state_tokens, self.sense.group))

    def decode(self, digits: list[Tensor], remainder: Tensor | None = None) -> Tensor:
        """Args: digits, any prefix of those of `encode`; remainder, only with all of them, not a number
        where it is absent. Returns: `(..., dim)` float, the middle of the cell or, with the remainder, the vector
        itself."""
        low, high = self._bounds(digits[0])
        offset: float | Tensor = 0.5
        if remainder is not None:
            offset = ((remainder.flatten(-2).float().clamp(-1, 1) + 1) / 2).nan_to_num(0.5)
        unit = digits_to_unit(digits, self.base, offset)
        return low + unit[..., : self.sense.dim] * (high - low)

    def decode_probabilities(self, probabilities: list[Tensor]) -> Tensor:
        """Expected vector under independent digit distributions `(..., num_codes, base)`, a level each;
        differentiable."""
        low, high = self._bounds(probabilities[0])
        values = torch.arange(self.base, device=low.device, dtype=torch.float32)
        unit, scale = torch.zeros((), device=low.device), 1.0
        for distribution in probabilities:
            scale = scale / self.base
            unit = unit + scale * (distribution[..., : self.base].float() @ values)
        return low + (unit[..., : self.sense.dim] + 0.5 * scale) * (high - low)


def digits_to_unit(digits: list[Tensor], base: int, inside: float | Tensor = 0.5) -> Tensor:
    """A prefix of digits `(...)` -> where in [0, 1] their cell is, float32; `inside` 0.5 is its middle, 0 its lower
    end. An absent digit (below 0) counts as the middle of all digits."""
    fine = torch.zeros_like(digits[0], dtype=torch.float32)
    for digit in digits:
        fine = fine * base + torch.where(digit < 0, (base - 1) / 2, digit)
    return (fine + inside) / base ** len(digits)


DIGIT_WIDTH = 1.5  # digits this far apart are still alike


def describe_digits(base: int) -> Tensor:
    """`(base, base)`: each digit of a lattice as a bump over the digits around it."""
    digits = torch.arange(base, dtype=torch.float32)
    return torch.exp(-((digits - digits.unsqueeze(1)) / DIGIT_WIDTH).square() / 2)
