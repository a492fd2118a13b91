"""What a sense and an action are, as plain data: shape, range, unit, levels and the size of each codebook.

A *sense* is one named channel of observation. Its discrete code has *levels*, coarse first, and its codes stand in
*state tokens*: a state token is one position of the backbone, and holds one or more codes of every level. Every kind
is a frozen dataclass that says `kind`, checks itself when built and turns into JSON with `to_dict`. Questions that
the configuration alone can answer are asked here; those that need weights are asked of its codec (`codecs_pan.py`).
Nobody asks for the kind itself, so a new kind is a dataclass and a codec of its own, anywhere, and `register_sense`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from .validation_pan import MOST_PIXELS, MOST_ROWS, MOST_WIDE, Number, bounded, check_fields, real, require, whole

OUTSIDE = 1e-3  # of the range: rounding in a simulator, not a wrong unit
ACTION = "action"  # the name of what is done, where that has one part
MERGES = "merges"  # after the dot of a segment's name: tokens that stand for several codes of the part
_CHOICE = "To plan what is said, make it a choice: a wrapper with spaces.Discrete, recorded anew."


def cells_within(span: float, width: float) -> int:
    """How many equal cells of at most `width` an interval takes; rounding is never to the disadvantage of width."""
    return max(1, math.ceil(span / width * (1 + 1e-9)))


def digits_for(num_cells: int, base: int) -> int:
    """How many digits in a base count so many cells; exact, unlike a logarithm."""
    digits, counted = 1, base
    while counted < num_cells:
        digits, counted = digits + 1, counted * base
    return digits


# ---- Kinds


@dataclass(frozen=True)
class Part:
    """One named part of a step, a sense or an action; a subclass adds the field `kind`, and whatever describes it."""

    is_coded: ClassVar[bool] = False  # written in codes, with rows of their own, rather than in words
    is_constant: ClassVar[bool] = False  # holds for a whole episode, and stands before its first state
    num_scalars: ClassVar[int] = 0  # coordinates that it says, and that readouts are told as numbers
    if TYPE_CHECKING:  # a field of every subclass

        @property
        def kind(self) -> str: ...

    def __post_init__(self):
        check_fields(self)

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one observation or action, without batch and time."""
        raise NotImplementedError

    def check_values(self, values: Tensor) -> None:
        """Raises ValueError where observations or actions `(..., *shape)` are out of range; by default all pass."""

    def bounds(self, device=None) -> tuple[Tensor, Tensor]:
        """The least and the greatest value of every entry, `shape` float32 each. Raises ValueError where there are
        none."""
        raise ValueError(
            f"A {type(self).__name__} has no bounds to draw numbers within; a VectorAction has. {_CHOICE}"
        )

    def random(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Uniform actions, `(*shape, *self.shape)`; `generator` is of the CPU. Raises ValueError where none can be
        drawn."""
        raise ValueError(
            f"A {type(self).__name__} cannot be drawn at random; a discrete or vector action can. {_CHOICE}"
        )


@dataclass(frozen=True)
class CodedPart(Part):
    """A part that is written in codes.

    A subclass has, as fields or properties: `num_levels`, `num_state_tokens`, `codes_per_token`, `codebook_size` and
    `codebook_capacity` (an `int` a level each), `merge_capacity`, and `latent_dim`. The codes of a level stand in a
    row unless `level_grid` and `token_grid` say otherwise.
    """

    is_coded: ClassVar[bool] = True
    is_token: ClassVar[bool] = False  # one code is all there is, and its row is what the backbone reads
    can_grow: ClassVar[bool] = False  # codes are learned vectors, `code_dim` wide, and there can be more of them
    is_grid: ClassVar[bool] = False  # codes have neighbours in two directions, which readouts look at and crops keep
    is_picture: ClassVar[bool] = False  # an observation is `(channels, height, width)`, of which parts can be learned
    joins_steps: ClassVar[bool] = False  # the codes of several steps can stand together in one sequence of tokens
    has_digits: ClassVar[bool] = False  # codes are digits of coordinates, in order: readouts add a density over them
    if TYPE_CHECKING:  # fields or properties of every subclass

        @property
        def num_levels(self) -> int: ...
        @property
        def num_state_tokens(self) -> int: ...
        @property
        def codes_per_token(self) -> list[int]: ...
        @property
        def codebook_size(self) -> list[int]: ...
        @property
        def codebook_capacity(self) -> list[int]: ...
        @property
        def merge_capacity(self) -> int: ...
        @property
        def latent_dim(self) -> int: ...
        @property
        def code_dim(self) -> int: ...  # of those that can grow

    @property
    def segments(self) -> dict[str, tuple[int, int]]:
        """What comes after the dot of each segment's name -> (capacity, live at birth). Levels first, then room for
        merged tokens."""
        levels = zip(self.codebook_capacity, self.codebook_size, strict=True)
        sizes = {str(level): pair for level, pair in enumerate(levels)}
        return sizes | ({MERGES: (self.merge_capacity, 0)} if self.merge_capacity else {})

    def with_rows(self, level: str, rows: int) -> Self:
        """The part with `rows` more rows in a segment, of which `level` is what comes after the dot of its name.

        Raises:
            ValueError: the level cannot be extended.
        """
        if level == MERGES:
            return replace(self, merge_capacity=self.merge_capacity + rows)  # type: ignore[call-arg]  # a field of it
        require(
            self.can_grow,
            f"Level {level} of a {type(self).__name__} cannot be extended: its number of codes is fixed. Levels of "
            "images, discrete actions, merged tokens and words can.",
        )
        capacity = [*self.codebook_capacity]
        capacity[int(level)] += rows
        return replace(self, codebook_capacity=capacity)  # type: ignore[call-arg]  # a field of it

    @property
    def num_places(self) -> int:  # what `num_state_tokens` was called; goes in 0.3
        return self.num_state_tokens

    @property
    def num_codes(self) -> int:
        """Of one observation or action, all levels together."""
        return self.num_state_tokens * sum(self.codes_per_token)

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of state tokens."""
        return 1, self.num_state_tokens

    def level_grid(self, level: int) -> tuple[int, int]:
        """Rows and columns of a level's codes; each state token covers as many of both."""
        return 1, self.num_state_tokens * self.codes_per_token[level]


@dataclass(frozen=True)
class ImageSense(CodedPart):
    """RGB (or any number of channels) frames, or one channel of depth, coded on a pyramid of grids.

    Args:
        size (`int` or `[height, width]`, *optional*): shorthand for `height` and `width`, in pixels.
        channels (`int`): 3 for RGB, 1 for depth.
        patch_size (`int`): pixels on the side of one cell of the finest grid.
        level_strides (`list[int]`): cells of the finest grid on the side of one code, one entry a level, coarse
            first; each entry divides the one before it. `[1, 1]` refines every cell; `[2, 1]` on 64x64 pixels in
            patches of 8 is 16 + 64 codes.
        spatial_merge_size (`int`): cells of the finest grid on the side of one patch token (one position in the
            backbone); a multiple of `level_strides[0]`.
        codebook_size (`list[int]`): live codes a level at birth.
        codebook_capacity (`list[int]`): rows reserved a level, so that growth changes no shape.
        merge_capacity (`int`): rows reserved for merged tokens, see `merging_pan.py`.
        code_dim (`int`): width of a codebook vector.
        hidden_size (`int`): width of the convolutional encoder and decoder.
        num_blocks (`int`): residual blocks in each of them.
        kernel_size (`int`): of the encoder. 1 keeps a code local to its patch (one changed cell changes one code), 3
            shares context with the neighbours.
        decoder_kernel_size (`int`, *optional*): of the decoder, `kernel_size` if not given; 3 paints edges that run
            through several patches better, whatever the codes are.
        latent_dim (`int`): continuous latents of each patch token; 0 turns the continuous pathway off.
        fps (`float`, *optional*): frames a second, for films and time stamps.
        bits (`int`): 8 for colours, uint8. More, up to 16, for one channel of whole numbers, int32, such as depth.
        low, high (`int`, *optional*): range of these numbers, in `unit`; all that `bits` can tell if not given.
        unit (`str`, *optional*): what these numbers are, e.g. "mm".
        clip (`bool`): numbers outside the range are clipped instead of refused.

    Raises:
        ValueError: the patch does not tile the picture, strides do not nest, codebooks do not fit their capacity, or
            there is a range of colours.
    """

    size: int | list[int] | None = bounded(None, 1, MOST_WIDE)
    height: int = bounded(64, 1, MOST_WIDE)
    width: int = bounded(64, 1, MOST_WIDE)
    channels: int = bounded(3, 1, 1024)
    patch_size: int = bounded(8, 1, 1024)
    level_strides: list[int] = bounded([1, 1], 1, 1024)
    spatial_merge_size: int = bounded(2, 1, 1024)
    codebook_size: list[int] = bounded([128, 128], 2, MOST_ROWS)
    codebook_capacity: list[int] = bounded([256, 256], 2, MOST_ROWS)
    merge_capacity: int = bounded(128, 0, MOST_ROWS)
    code_dim: int = bounded(8, 1, MOST_WIDE)
    hidden_size: int = bounded(128, 1, MOST_WIDE)
    num_blocks: int = bounded(2, 0, 1024)
    kernel_size: int = bounded(1, 1, 63)
    decoder_kernel_size: int | None = bounded(None, 1, 63)
    latent_dim: int = bounded(16, 0, MOST_WIDE)
    fps: Number | None = bounded(None, 1e-6, 1e6)
    place_stride: int | None = bounded(None, 1, 1024)  # what `spatial_merge_size` was called; goes in 0.3
    bits: int = bounded(8, 8, 16)
    low: int | None = bounded(None, 0, 2**16 - 1)
    high: int | None = bounded(None, 0, 2**16 - 1)
    unit: str | None = None
    clip: bool = False
    kind: str = "image"

    def __post_init__(self):
        super().__post_init__()
        if self.place_stride is not None:
            object.__setattr__(self, "spatial_merge_size", self.place_stride)
            object.__setattr__(self, "place_stride", None)
        if self.size is not None:
            sides = [self.size, self.size] if isinstance(self.size, int) else self.size
            require(len(sides) == 2, f"ImageSense: `size` is one side or [height, width], got {self.size}.")
            for name, value in (("height", sides[0]), ("width", sides[1]), ("size", None)):
                object.__setattr__(self, name, value)
        if self.decoder_kernel_size is None:
            object.__setattr__(self, "decoder_kernel_size", self.kernel_size)
        name = f"ImageSense({self.height}x{self.width})"
        require(
            self.height * self.width * self.channels <= MOST_PIXELS,
            f"{name}: {self.channels} channels of so many pixels are more than {MOST_PIXELS} numbers; resize them.",
        )
        step = self.patch_size * self.spatial_merge_size
        require(
            self.height % step == 0 and self.width % step == 0,
            f"{name}: height and width must be multiples of patch_size * spatial_merge_size = {step}; "
            "resize the frames or choose another patch_size.",
        )
        self._check_levels(name)
        for field_name in ("kernel_size", "decoder_kernel_size"):
            size = getattr(self, field_name)
            require(size % 2 == 1, f"{name}: {field_name} must be odd, got {size}.")
        self._check_range(name)

    def _check_levels(self, name: str) -> None:
        nested = [self.spatial_merge_size, *self.level_strides]
        for coarse, fine in zip(nested, nested[1:], strict=False):
            require(coarse % fine == 0, f"{name}: spatial_merge_size and level_strides must nest, got {nested}.")
        require(nested[-1] == 1, f"{name}: the last of level_strides must be 1, got {self.level_strides}.")
        size, capacity = self.codebook_size, self.codebook_capacity
        require(
            len(size) == self.num_levels == len(capacity),
            f"{name}: expected one `codebook_size` and one `codebook_capacity` a level ({self.num_levels} levels), "
            f"got {size} and {capacity}.",
        )
        for live, room in zip(size, capacity, strict=True):
            require(live <= room, f"{name}: a level needs codebook_size <= codebook_capacity, got {live} and {room}.")

    def _check_range(self, name: str) -> None:
        if not self.is_deep:
            given = [key for key in ("low", "high", "unit") if getattr(self, key) is not None]
            text = f"{name}: colours of 8 bits have no range; pass bits=16, or leave out {', '.join(given) or 'clip'}."
            require(not given and not self.clip, text)
            return
        low, high = self.value_range
        require(self.channels == 1, f"{name}: numbers of {self.bits} bits have channels=1, got {self.channels}.")
        require(
            low < high < 2**self.bits,
            f"{name}: expected 0 <= low < high < {2**self.bits} ({self.bits} bits), got {low} and {high}.",
        )

    can_grow = True
    is_grid = True
    is_picture = True

    def to_dict(self) -> dict:
        """As JSON. Colours leave the range out: versions before it read such a sense too."""
        own = () if self.is_deep else ("bits", "low", "high", "unit", "clip")
        return {key: value for key, value in asdict(self).items() if key not in own}

    @property
    def is_deep(self) -> bool:
        """Whether pixels are whole numbers in a range (int32) rather than colours (uint8)."""
        return self.bits > 8

    @property
    def value_range(self) -> tuple[int, int]:
        """The least and the greatest number that a pixel can have."""
        return self.low or 0, 2**self.bits - 1 if self.high is None else self.high

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def check_values(self, values: Tensor) -> None:
        if values.numel() == 0 or (values.dtype == torch.uint8 and not self.is_deep):
            return
        least, most = (bound.item() for bound in values.aminmax())
        if values.is_floating_point():
            fits, expected = -1 - OUTSIDE <= least and most <= 1 + OUTSIDE, "floats within -1 to 1"
        else:
            (low, high), unit = self.value_range, f" {self.unit}" if self.unit else ""
            fits = self.is_deep and (self.clip or low <= least and most <= high)
            expected = f"whole numbers from {low} to {high}{unit}" if self.is_deep else "uint8"
        require(fits, f"expected {expected}, got {values.dtype} from {least} to {most}.")  # NaN does not fit

    @property
    def num_levels(self) -> int:
        return len(self.level_strides)

    @property
    def patch_grid(self) -> tuple[int, int]:
        return self.height // self.patch_size, self.width // self.patch_size

    def level_grid(self, level: int) -> tuple[int, int]:
        """Rows and columns of a level's codes."""
        rows, columns = self.patch_grid
        return rows // self.level_strides[level], columns // self.level_strides[level]

    @property
    def token_grid(self) -> tuple[int, int]:
        rows, columns = self.patch_grid
        return rows // self.spatial_merge_size, columns // self.spatial_merge_size

    @property
    def num_state_tokens(self) -> int:
        return math.prod(self.token_grid)

    @property
    def codes_per_token(self) -> list[int]:
        return [(self.spatial_merge_size // stride) ** 2 for stride in self.level_strides]

    def crop(self, rows: int, columns: int) -> ImageSense:
        """The sense of a part of the frame, so many patch tokens high and wide."""
        side = self.patch_size * self.spatial_merge_size
        return replace(self, height=rows * side, width=columns * side)


@dataclass(frozen=True)
class _Vector(CodedPart):
    """A bounded vector, coded by the lattice of Theorem 1: level `l` is digit `l` of every coordinate."""

    dim: int = bounded(1, 1, MOST_WIDE)
    low: Number | list[Number] = -1.0
    high: Number | list[Number] = 1.0
    base: int = bounded(16, 2, MOST_ROWS)
    num_levels: int = bounded(2, 1, 64)
    unit: str | None = None
    clip: bool = False
    merge_capacity: int = bounded(128, 0, MOST_ROWS)

    def __post_init__(self):
        super().__post_init__()
        for name in ("low", "high"):
            value = getattr(self, name)
            value = [float(item) for item in value] if isinstance(value, list) else [float(value)] * self.dim
            object.__setattr__(self, name, value)
        owner = f"{type(self).__name__}(dim={self.dim})"
        require(
            len(self.low) == len(self.high) == self.dim,
            f"{owner}: expected {self.dim} values of `low` and `high`, got {len(self.low)} and {len(self.high)}.",
        )
        require(
            all(lo < hi for lo, hi in zip(self.low, self.high, strict=True)),
            f"{owner}: every coordinate needs finite low < high, got low={self.low}, high={self.high}.",
        )

    @classmethod
    def within(cls, epsilon: float, dim: int, low, high, base: int | None = None, **fields):
        """The sense (or action) whose code keeps vectors apart that are farther than `epsilon` from one another, and
        decodes at most half of it away (Theorem 1 for one vector).

        Args:
            epsilon (`float`): Euclidean distance, in the unit of the vector.
            dim, low, high: as in the class.
            base (`int`, *optional*): alphabet of a digit, of which there are as many as it takes (scale out). Without,
                one digit from an alphabet as large as it takes (scale up).
            fields: any other.

        Raises:
            ValueError: as the class, or an epsilon that is not positive.
        """
        epsilon, dim = real("epsilon", epsilon, 0, above=True), whole("dim", dim, 1, MOST_WIDE)
        base = None if base is None else whole("base", base, 2, MOST_ROWS)
        sense = cls(dim=dim, low=low, high=high)
        span = max(hi - lo for lo, hi in zip(sense.low, sense.high, strict=True))  # type: ignore[arg-type]  # lists by now
        cells = max(2, cells_within(span, epsilon / math.sqrt(dim)))
        require(cells <= MOST_ROWS, f"`epsilon` of {epsilon} is finer than float32 can tell within {span}.")
        digits = 1 if base is None else digits_for(cells, base)
        return cls(dim=dim, low=low, high=high, base=base or cells, num_levels=digits, **fields)

    has_digits = True
    joins_steps = True

    @property
    def shape(self) -> tuple[int]:
        return (self.dim,)

    @property
    def num_scalars(self) -> int:  # type: ignore[override]  # of a configuration, not of its class
        return self.dim

    def bounds(self, device=None) -> tuple[Tensor, Tensor]:
        """`low` and `high`, `(dim,)` float32 each."""
        low, high = (torch.tensor(bound, dtype=torch.float32, device=device) for bound in (self.low, self.high))
        return low, high

    def check_values(self, values: Tensor) -> None:
        if values.numel() == 0:
            return
        low, high = self.bounds(values.device)
        least, most = values.float().flatten(0, -2).aminmax(dim=0)
        margin = math.inf if self.clip else OUTSIDE * (high - low)
        fits = (least >= low - margin) & (most <= high + margin)  # NaN fits nothing
        if not bool(fits.all()):
            index = int(fits.logical_not().nonzero()[0])
            span = f"{self.low[index]} to {self.high[index]}"  # type: ignore[index]  # lists by now
            values_there = f"{least[index]:.6g} to {most[index]:.6g}"
            raise ValueError(
                f"{type(self).__name__}: coordinate {index} goes from {span}, got {values_there}; which unit?"
            )

    def random(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        low, high = self.bounds()
        return low + (high - low) * torch.rand((*shape, self.dim), generator=generator)

    @property
    def group(self) -> int:
        """Coordinates that share a state token: at most 8 tokens a vector."""
        return math.ceil(self.dim / 8)

    @property
    def num_state_tokens(self) -> int:
        return math.ceil(self.dim / self.group)

    @property
    def codes_per_token(self) -> list[int]:
        return [self.group] * self.num_levels

    @property
    def codebook_size(self) -> list[int]:
        return [self.base] * self.num_levels

    @property
    def codebook_capacity(self) -> list[int]:
        return [self.base] * self.num_levels

    @property
    def latent_dim(self) -> int:
        return self.group


@dataclass(frozen=True)
class VectorSense(_Vector):
    """Proprioception, touch, temperature...: `dim` numbers within `low`..`high`, in `unit`.

    Args:
        dim (`int`): number of coordinates.
        low, high (`float` or `list[float]`): bounds of each coordinate; values outside are an error in the processor.
        base (`int`): alphabet of one digit.
        num_levels (`int`): digits a coordinate; the lattice errs by at most (high - low) / base ** num_levels / 2.
        unit (`str`, *optional*): what the numbers are, e.g. "rad".
        clip (`bool`): values outside the bounds are clipped instead of refused.
        merge_capacity (`int`): rows reserved for merged tokens, see `merging_pan.py`.
        rate (`float`, *optional*): samples a second.

    Raises:
        ValueError: bounds that are not finite, not ordered, or not `dim` long.
    """

    rate: Number | None = bounded(None, 1e-6, 1e9)
    kind: str = "vector"


@dataclass(frozen=True)
class TextSense(Part):
    """Words of the backbone's own vocabulary.

    Args:
        max_length (`int`): tokens of one text; a longer one is an error in the processor.
        every_step (`bool`): `True`: the text changes with time and is predicted like any sense. `False`: it holds for
            the whole episode (a mission, a goal) and enters once, before the first state.
        clip (`bool`): a longer text is cut instead of refused.
    """

    max_length: int = bounded(16, 1, MOST_WIDE)
    every_step: bool = False
    clip: bool = False
    kind: str = "text"

    @property
    def is_constant(self) -> bool:  # type: ignore[override]  # of a configuration, not of its class
        return not self.every_step

    @property
    def shape(self) -> tuple[int]:
        return (self.max_length,)


@dataclass(frozen=True)
class DiscreteAction(CodedPart):
    """One of `num_actions` choices; each has its own token.

    Args:
        num_actions (`int`): how many.
        names (`list[str]`, *optional*): what they are called: the processor takes them, and reports show them.
        capacity (`int`, *optional*): rows reserved for actions to come, these included; twice as many by default.
        merge_capacity (`int`): rows reserved for merged tokens, see `merging_pan.py`.

    Raises:
        ValueError: no action, less room than actions, or not one name for each.
    """

    num_actions: int = bounded(2, 1, MOST_ROWS)
    names: list[str] | None = None
    capacity: int | None = bounded(None, 1, 2 * MOST_ROWS)
    merge_capacity: int = bounded(128, 0, MOST_ROWS)
    kind: str = "discrete"

    def __post_init__(self):
        super().__post_init__()
        if self.capacity is None:
            object.__setattr__(self, "capacity", 2 * self.num_actions)
        require(
            self.capacity >= self.num_actions,
            f"DiscreteAction: capacity must be at least num_actions={self.num_actions}, got {self.capacity}.",
        )
        require(
            self.names is None or len(self.names) == self.num_actions,
            f"DiscreteAction: expected {self.num_actions} names, got {self.names}.",
        )

    is_token = True
    joins_steps = True
    shape = ()
    num_state_tokens = 1
    num_levels = 1
    latent_dim = 0

    def check_values(self, values: Tensor) -> None:
        if values.numel() == 0:
            return
        require(not values.is_floating_point(), f"Discrete actions are whole numbers, got {values.dtype}.")
        low, high, last = int(values.min()), int(values.max()), self.num_actions - 1
        require(0 <= low and high <= last, f"Discrete actions are 0 to {last}, got {low} to {high}.")

    def with_rows(self, level: str, rows: int) -> Self:
        if level == MERGES:
            return super().with_rows(level, rows)
        return replace(self, capacity=self.capacity + rows)  # type: ignore[operator]  # set when it was built

    def random(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(self.num_actions, shape, generator=generator)

    @property
    def codes_per_token(self) -> list[int]:
        return [1]

    @property
    def codebook_size(self) -> list[int]:
        return [self.num_actions]

    @property
    def codebook_capacity(self) -> list[int]:
        return [self.capacity]  # type: ignore[list-item]  # set when it was built


@dataclass(frozen=True)
class VectorAction(_Vector):
    """A continuous action of `dim` numbers within `low`..`high`; arguments as for [`VectorSense`]."""

    kind: str = "vector"


@dataclass(frozen=True)
class TextAction(Part):
    """An action said in words: at most `max_length` tokens of the backbone's own vocabulary; with `clip` a longer text
    is cut instead of refused."""

    max_length: int = bounded(16, 1, MOST_WIDE)
    clip: bool = False
    kind: str = "text"

    @property
    def shape(self) -> tuple[int]:
        return (self.max_length,)
