"""The codec of each kind of sense and action: observations into codes and latents, and back.

A [`Codec`] encodes and decodes, and answers for its kind whatever needs more than the configuration. Codecs are found
by the kind's name (`register_sense`, `register_action`), never by class: where a checkpoint's own code runs, each of
its files may exist twice. Vectors use a lattice, whose remainder is the latent; the codes of images are learned
(`image_codec_pan.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .embedding_pan import Float32Module, part_embedding
from .layout_pan import fold_cells, unfold_cells
from .sense_configuration_pan import (
    ACTION,
    CodedPart,
    DiscreteAction,
    Part,
    TextAction,
    TextSense,
    VectorAction,
    VectorSense,
)
from .state_pan import ABSENT, Observation, State
from .validation_pan import check_fields, require

if TYPE_CHECKING:
    from .embedding_pan import CodeTables
    from .image_codec_pan import Codebook
    from .modeling_pan import PanModel

MOST_CELLS = 0.1  # share of the cells of a grid that are wrong in a corrupted state, at most
VECTOR_NOISE = 0.01  # standard deviation, as a share of a coordinate's range


class Codec(Float32Module):
    """How one sense, or a coded action, is encoded and decoded.

    A subclass has `encode` and `decode`, and `latents_help`, whether decoding comes closer with latents; and overrides
    whatever else differs for its kind.

    Shapes: B = batch, n = codes of a level, P = state tokens, `shape` = that of the sense or action.

    Args:
        sense (`CodedPart`): shape, levels and sizes.
    """

    is_exact = False  # codes and latents say all there is, so `log_prob` counts nothing beyond the codes
    notes: tuple[str, ...] = ()  # buffers in which stages note something that `encode` does not depend on
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
        """Observations `(B, T, *shape)`, or of any leading shape. The code of step `t` may depend on the steps up to
        `t`.

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
        """The latents `(B, P, latent_dim)`, at unit scale, with which codes decode to observations `(B, *shape)`. The
        codes may be those of other observations, as imagined ones are. Args: codes as for `decode`, of all levels."""
        raise NotImplementedError

    def describe(self) -> list[tuple[Tensor, Tensor]]:
        """For each level `(K, D)` and `(K,)` bool: what each code stands for, and whether it does so yet."""
        raise NotImplementedError

    def usual_refinements(self, coarser: Tensor, level: int) -> Tensor:
        """The codes of a level that usually stand under codes of the level before it, `(B, n')` -> `(B, n)`; below 0
        where none is known, or the usual code has been retired."""
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
        """Decoded values in the type and range of observations."""
        return decoded

    def to_picture(self, values: Tensor) -> Tensor:
        """Observations `(..., *shape)` as uint8 `(..., C, H, W)` to look at, of a sense on a grid."""
        return values

    def span(self, device: torch.device) -> Tensor:
        """From the least to the greatest value of an observation, broadcast to `shape`."""
        return torch.tensor(2.0, device=device)

    def error(self, imagined: Tensor, true: Tensor) -> Tensor:
        """Decoded values less observations, `(B, *shape)`, in halves of the range."""
        return imagined - self.to_float(true)

    def squared_shares(self, values: Tensor, others: Tensor) -> Tensor:
        """How far observations `(..., *shape)` are from others, in shares of the range, squared: `(..., numbers)`."""
        differences = (values.float() - others.float()) / self.span(values.device)
        return differences.square().flatten(-len(self.sense.shape))

    def log_prob(self, true: Tensor, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Log probability `(B,)` in nats of observations `(B, *shape)`, given their codes and latents."""
        raise NotImplementedError

    def scalars(self, codes: list[Tensor]) -> Tensor:
        """Of codes `(..., n)`, one a level: the coordinates that they say, in [-1, 1], `(..., sense.num_scalars)`."""
        raise NotImplementedError

    @property
    def num_readings(self) -> int:
        """D of `readings`."""
        return self.sense.num_scalars or math.prod(self.sense.shape)

    def readings(self, codes: list[Tensor]) -> Tensor:
        """Codes `(N, n)` a level, none of them absent, as numbers that a small policy reads, `(N, D)` float32."""
        return self.scalars(codes) if self.sense.num_scalars else self.decode(codes).float().flatten(1)

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
        source = torch.where(is_beside, down * columns + right, cell)
        corrupted = []
        for level, level_codes in enumerate(codes):
            grid = self.sense.level_grid(level)
            slots = fold_cells(level_codes, grid, (rows, columns))  # (B, cells, codes a cell)
            slots = torch.where(is_wrong.unsqueeze(-1), slots[frame, source], slots)
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
    """The lattice code: a bounded vector as digits, coarse first (Theorem 1 of "Critiques of World Models").

    Coordinate `x` in [low, high] is written in base `b` with `N` digits: digit `l` says in which of `b` equal parts of
    the interval left by the digits before it `x` lies. Any prefix of digits decodes to the middle of its cell, so the
    error after `n` digits is at most (high - low) / b**n / 2, and two vectors farther apart than a cell get different
    digits. The last digit leaves a remainder in [-1, 1]: digits and remainder together are exact. Nothing is learned;
    `VectorSense.within` chooses digits for a precision.
    """

    sense: VectorSense | VectorAction
    latents_help = True  # the remainder
    is_exact = True

    def _unit(self, vector: Tensor) -> Tensor:
        """Vectors `(..., dim)` in [0, 1], float32; values beyond the bounds count as the bounds."""
        # bounds are made on the spot: a plain tensor attribute would stay on the meta device under from_pretrained
        low, high = self.sense.bounds(vector.device)
        return ((vector.float() - low) / (high - low)).clamp(0, 1)

    def _vector(self, unit: Tensor) -> Tensor:
        low, high = self.sense.bounds(unit.device)
        return low + unit[..., : self.sense.dim] * (high - low)

    def _pad(self, values: Tensor) -> Tensor:
        return nn.functional.pad(values, (0, self.sense.num_state_tokens * self.sense.group - self.sense.dim))

    def _by_token(self, remainder: Tensor) -> Tensor:
        return self._pad(remainder).unflatten(-1, (self.sense.num_state_tokens, self.sense.group))

    def encode(self, values: Tensor) -> tuple[list[Tensor], Tensor]:
        """`(..., dim)` float -> digits, one `(..., n)` int64 in [0, base) a level, most significant first, and the
        remainder `(..., P, group)` in [-1, 1]."""
        unit, digits = self._unit(values), []
        for _ in range(self.sense.num_levels):
            scaled = unit * self.sense.base
            digit = scaled.floor().clamp(max=self.sense.base - 1)
            digits.append(self._pad(digit.long()))
            unit = scaled - digit
        return digits, self._by_token(2 * unit - 1)

    def latents_given(self, values: Tensor, codes: list[Tensor]) -> Tensor:
        """The remainder `(..., P, group)` in [-1, 1] with which digits of all levels come nearest to vectors."""
        lower = digits_to_unit(codes, self.sense.base, 0.0)[..., : self.sense.dim]
        cells = self.sense.base**self.sense.num_levels
        return self._by_token((2 * (self._unit(values) - lower) * cells - 1).clamp(-1, 1))

    def decode(self, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Any prefix of digits -> `(..., dim)` float, the middle of the cell. With all digits, the remainder, not a
        number where it is absent, makes it exact."""
        offset: float | Tensor = 0.5
        if latents is not None and len(codes) == self.sense.num_levels:
            offset = ((latents.flatten(-2).float().clamp(-1, 1) + 1) / 2).nan_to_num(0.5)
        return self._vector(digits_to_unit(codes, self.sense.base, offset))

    def decode_probabilities(self, probabilities: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Expected vector `(..., dim)` under independent distributions `(..., n, base)` of the digits; differentiable.
        The latents' share of the last cell is added."""
        values = torch.arange(self.sense.base, device=probabilities[0].device, dtype=torch.float32)
        unit, scale = torch.zeros((), device=values.device), 1.0
        for distribution in probabilities:
            scale = scale / self.sense.base
            unit = unit + scale * (distribution[..., : self.sense.base].float() @ values)
        vector = self._vector(unit + 0.5 * scale)
        if latents is None:
            return vector
        cell = self.span(vector.device) / self.sense.base**self.sense.num_levels
        return vector + latents.flatten(1)[:, : self.sense.dim] * cell / 2

    def scalars(self, codes: list[Tensor]) -> Tensor:
        return (2 * digits_to_unit(codes, self.sense.base) - 1)[..., : self.sense.dim]

    def usual_refinements(self, coarser: Tensor, level: int) -> Tensor:
        """No digit is usual below 0: the middle of a cell, which its digits alone decode to, is the better guess."""
        return torch.full_like(coarser, -1)

    def describe(self) -> list[tuple[Tensor, Tensor]]:
        """For each level `(base, base)` and `(base,)` bool: what each digit stands for, and that it does."""
        digits = describe_digits(self.sense.base)
        return [(digits, torch.ones(len(digits), dtype=torch.bool))] * self.sense.num_levels

    def sequence_lengths(self, chunk: int) -> list[int]:
        return [self.sense.dim * chunk] * self.sense.num_levels

    def to_sequence(self, values: Tensor) -> list[Tensor]:
        """All digits; those of one coordinate side by side, so that slow changes repeat."""
        levels, _ = self.encode(values.flatten(0, 1))
        digits = [codes[:, : self.sense.dim].unflatten(0, values.shape[:2]) for codes in levels]  # (N, chunk, dim)
        return [codes.transpose(1, 2).flatten(1) for codes in digits]

    def from_sequence(self, codes: list[Tensor], chunk: int) -> Tensor:
        digits = [level.unflatten(1, (self.sense.dim, chunk)).transpose(1, 2) for level in codes]  # (N, chunk, dim)
        return self.decode([self._pad(level) for level in digits])

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
        digits, _ = self.encode(moved)
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


# ---- Kinds by their names


SENSES: dict[str, type[Part]] = {}
ACTIONS: dict[str, type[Part]] = {}
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
    return list(dict.fromkeys(each for pair in kinds for each in pair if each is not None))


register_sense(VectorSense, VectorCodec)
register_sense(TextSense, None)
register_action(DiscreteAction, TokenCodec)
register_action(VectorAction, VectorCodec)
register_action(TextAction, TextCodec)


def _from_dict(kinds: dict[str, type[Part]], what: str, values: Any) -> Any:
    """Builds the dataclass named by `values["kind"]`; an object that already is one passes through."""
    expected = f"expected one of the kinds {sorted(kinds)}"
    if is_dataclass(values) and not isinstance(values, type) and hasattr(values, "kind"):
        # by name: a module that travels may exist twice, and a user's kind need not be known yet
        others = {part.__name__ for part in (*SENSES.values(), *ACTIONS.values())} - {
            part.__name__ for part in kinds.values()
        }
        require(type(values).__name__ not in others, f"{what}: {expected}, got {values!r}.")
        check_fields(values)  # those of a user's kind, which need not check themselves
        return values
    require(isinstance(values, dict), f"{what}: {expected} or a dict with `kind`, got {values!r}.")
    kind = values.get("kind")
    require(
        isinstance(kind, str) and kind in kinds,
        f"{what}: unknown kind {kind!r}; {expected}. Import the file that registers it first, or load the checkpoint "
        "with trust_remote_code=True where pan_hf is not imported, to run the code it came with.",
    )
    names = {item.name for item in fields(kinds[kind])}
    unknown = sorted(map(str, set(values) - names))
    require(not unknown, f"{what}: a {kind} has no field {unknown}; its fields are {sorted(names)}.")
    part = kinds[kind](**values)
    check_fields(part)
    return part


def sense_from_dict(name: str, values):
    """The sense that `values` (a dict with `kind`, or a sense) describes. Raises ValueError for an unknown kind."""
    _check_name("sense", name, taken=("action", "places"))
    return _from_dict(SENSES, f"Sense {name!r}", values)


def action_from_dict(values, name: str = ACTION):
    """The action that `values` (a dict with `kind`, or an action) describes. Raises ValueError for an unknown kind."""
    _check_name("action", name)
    return _from_dict(ACTIONS, "Action" if name == ACTION else f"Action {name!r}", values)


def _check_name(what: str, name: str, taken: tuple[str, ...] = ()) -> None:
    is_name = isinstance(name, str) and name.isidentifier()
    require(is_name, f"{what.capitalize()} name {name!r} must be a Python identifier, such as 'camera'.")
    taken_too = name in taken or hasattr(nn.ModuleDict, name)  # they are attributes of a ModuleDict
    require(not taken_too, f"A {what} cannot be called {name!r}, which means something else here; rename it.")


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


# ---- Digits


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


# ---- Pieces of codecs, those of users too


def fold_grid(x: Tensor, factor: int | tuple[int, int]) -> Tensor:
    """Space to depth, by a factor `(f, g)` or the same one down and across: `(B, R, S, W)` ->
    `(B, R/f, S/g, f*g*W)`."""
    down, across = (factor, factor) if isinstance(factor, int) else factor
    if down == across == 1:
        return x
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows // down, down, columns // across, across, width)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows // down, columns // across, down * across * width)


def unfold_grid(x: Tensor, factor: int | tuple[int, int]) -> Tensor:
    """Depth to space, the inverse of `fold_grid`: `(B, R, S, f*g*W)` -> `(B, R*f, S*g, W)`."""
    down, across = (factor, factor) if isinstance(factor, int) else factor
    if down == across == 1:
        return x
    batch, rows, columns, width = x.shape
    width = width // (down * across)
    x = x.reshape(batch, rows, columns, down, across, width).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * down, columns * across, width)


def as_bytes(frames: Tensor) -> Tensor:
    """Decoded frames, nominally in [-1, 1], as uint8."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def value_log_prob(mean: Tensor, true: Tensor, scale: Tensor, num_values: int = 256) -> Tensor:
    """Log probability of numbers that have one of `num_values` values evenly over [-1, 1], such as 8-bit pixels:
    `(B, ...)` -> `(B,)` nats. A Gaussian integrated over each value's interval, mixed with a share of 1e-4 of the
    uniform distribution, so that one surprising value costs 21 bits at most, of 256."""
    half = 1 / (num_values - 1)
    normal = torch.distributions.Normal(mean.float(), scale.float())
    upper = torch.where(true > 1 - half, torch.ones_like(true), normal.cdf(true + half))
    lower = torch.where(true < -1 + half, torch.zeros_like(true), normal.cdf(true - half))
    probability = (1 - 1e-4) * (upper - lower).clamp(min=0) + 1e-4 / num_values
    return probability.log().flatten(1).sum(-1)


class PositionBlock(nn.Module):
    """Residual block on a channels-last map `(B, R, S, W)`, normalised at each position."""

    def __init__(self, width: int, kernel_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2) if kernel_size > 1 else None
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        if self.mix is not None:
            hidden = nn.functional.gelu(self.mix(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x + self.contract(nn.functional.gelu(self.expand(hidden)))


# ---- a whole observation


def encode_observation(model: PanModel, observation: Mapping[str, Tensor]) -> State:
    """An observation that fits (see [`PanModel.encode`], which checks it) as codes and latents, absent where a sense
    was."""
    config, state = model.config, State({})
    observation = Observation(observation, config.prefix_senses)
    for name in config.coded_senses:
        codes, latents = model.senses[name].encode(observation[name])
        absent = _absent(observation, name)
        state.codes[name] = [_blank(level, absent, ABSENT) for level in codes]
        if latents is not None:
            state.latents[name] = _blank(latents, absent, torch.nan)
    texts = config.text_senses
    state.text = {name: _blank(observation[name], _absent(observation, name), ABSENT) for name in texts}
    return state


def _absent(observation: Observation, sense: str) -> Tensor | None:
    """In which frames a sense is absent, `(B, T)` bool; None: in none."""
    present = observation.present(sense)
    return None if present is None else ~present


def _blank(values: Tensor, absent: Tensor | None, with_what: float) -> Tensor:
    """Values `(B, T, ...)` replaced where they are absent."""
    if absent is None:
        return values
    return values.masked_fill(absent.view(*absent.shape, *[1] * (values.dim() - 2)), with_what)
