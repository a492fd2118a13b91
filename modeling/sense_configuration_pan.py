"""What a sense and an action are, as plain data: shape, range, unit, levels and the size of each codebook.

A *sense* is one named channel of observation. Its discrete code has *levels*, coarse first, and its codes sit at
*places*: a place is one state embedding of the trunk, and holds one or more codes of every level. Every kind is a
frozen dataclass that says `kind`, validates itself when built and turns into JSON with `to_dict`. What can be said of
a kind from its configuration alone is asked here; what needs weights is asked of its codec (`codecs_pan.py`). Nobody
asks for the kind itself, so a new kind is a dataclass and a codec of its own, anywhere, and `register_sense`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

OUTSIDE = 1e-3  # of the range: rounding in a simulator, not a wrong unit
PRESENT = ".present"  # behind the name of a sense: in which frames it is there
ACTION = "action"  # the name of what is done, where that has one part
MERGES = "merges"  # after the dot of a segment's name: tokens that stand for several codes of the part


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_codebooks(owner: str, num_levels: int, size: list[int], capacity: list[int]) -> None:
    _require(
        len(size) == num_levels == len(capacity),
        f"{owner}: expected one `codebook_size` and one `codebook_capacity` a level ({num_levels} levels), "
        f"got {size} and {capacity}.",
    )
    for live, room in zip(size, capacity, strict=True):
        _require(
            2 <= live <= room,
            f"{owner}: a level needs 2 <= codebook_size <= codebook_capacity, got {live} and {room}.",
        )


def _check_merge_capacity(owner: str, capacity: int) -> None:
    _require(capacity >= 0, f"{owner}: merge_capacity must be 0 or more, got {capacity}.")


def cells_within(span: float, width: float) -> int:
    """How many equal cells of at most `width` an interval takes; rounding is never to the disadvantage of width."""
    return max(1, math.ceil(span / width * (1 + 1e-9)))


def digits_for(num_cells: int, base: int) -> int:
    """How many digits in a base count so many cells; exact, unlike a logarithm."""
    digits, counted = 1, base
    while counted < num_cells:
        digits, counted = digits + 1, counted * base
    return digits


@dataclass(frozen=True)
class Part:
    """One named part of a step, a sense or an action; a subclass adds the field `kind`, and whatever describes it."""

    is_coded: ClassVar[bool] = False  # written in codes, with rows of their own, rather than in words
    is_constant: ClassVar[bool] = False  # holds for a whole episode, and stands before its first state
    num_scalars: ClassVar[int] = 0  # coordinates that it says, and that readouts are told as numbers
    if TYPE_CHECKING:  # a field of every subclass

        @property
        def kind(self) -> str: ...

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one observation or action, without batch and time."""
        raise NotImplementedError

    def check_values(self, values: Tensor) -> None:
        """Raises ValueError where actions `(B, T, *shape)` are out of range; anything passes by default."""

    def bounds(self, device=None) -> tuple[Tensor, Tensor]:
        """The least and the greatest value of every entry, `shape` float32 each. Raises ValueError where there are
        none."""
        raise ValueError(f"A {type(self).__name__} has no bounds to draw numbers within; a VectorAction has.")

    def random(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Uniform actions, `(*shape, *self.shape)`; `generator` is of the CPU. Raises ValueError where none can be
        drawn."""
        raise ValueError(f"A {type(self).__name__} cannot be drawn at random; a discrete or vector action can.")


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

    @property
    def num_codes(self) -> int:
        """Of one observation or action, all levels together."""
        return self.num_state_tokens * sum(self.codes_per_token)

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of places."""
        return 1, self.num_state_tokens

    def level_grid(self, level: int) -> tuple[int, int]:
        """Rows and columns of a level's codes; each place covers as many of both."""
        return 1, self.num_state_tokens * self.codes_per_token[level]


@dataclass(frozen=True)
class ImageSense(CodedPart):
    """RGB (or any number of channels) frames, coded on a pyramid of grids.

    Args:
        size (`int` or `[height, width]`, *optional*): shorthand for `height` and `width`, in pixels.
        channels (`int`): 3 for RGB.
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

    Raises:
        ValueError: the patch does not tile the picture, strides do not nest, or codebooks do not fit their capacity.
    """

    size: int | list[int] | None = None
    height: int = 64
    width: int = 64
    channels: int = 3
    patch_size: int = 8
    level_strides: list[int] = field(default_factory=lambda: [1, 1])
    spatial_merge_size: int = 2
    codebook_size: list[int] = field(default_factory=lambda: [128, 128])
    codebook_capacity: list[int] = field(default_factory=lambda: [256, 256])
    merge_capacity: int = 128
    code_dim: int = 8
    hidden_size: int = 128
    num_blocks: int = 2
    kernel_size: int = 1
    decoder_kernel_size: int | None = None
    latent_dim: int = 16
    fps: float | None = None
    place_stride: int | None = None  # what `spatial_merge_size` was called; goes in 0.3
    kind: str = "image"

    def __post_init__(self):
        if self.place_stride is not None:
            object.__setattr__(self, "spatial_merge_size", self.place_stride)
            object.__setattr__(self, "place_stride", None)
        if self.size is not None:
            height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
            object.__setattr__(self, "height", int(height))
            object.__setattr__(self, "width", int(width))
            object.__setattr__(self, "size", None)
        name = f"ImageSense({self.height}x{self.width})"
        step = self.patch_size * self.spatial_merge_size
        _require(
            self.height % step == 0 and self.width % step == 0,
            f"{name}: height and width must be multiples of patch_size * spatial_merge_size = {step}; "
            "resize the frames or choose another patch_size.",
        )
        nested = [self.spatial_merge_size, *self.level_strides]
        for coarse, fine in zip(nested, nested[1:], strict=False):
            _require(coarse % fine == 0, f"{name}: spatial_merge_size and level_strides must nest, got {nested}.")
        _require(nested[-1] == 1, f"{name}: the last of level_strides must be 1, got {self.level_strides}.")
        if self.decoder_kernel_size is None:
            object.__setattr__(self, "decoder_kernel_size", self.kernel_size)
        for field_name in ("kernel_size", "decoder_kernel_size"):
            size = getattr(self, field_name)
            _require(size % 2 == 1, f"{name}: {field_name} must be odd, got {size}.")
        _check_codebooks(name, self.num_levels, self.codebook_size, self.codebook_capacity)
        _check_merge_capacity(name, self.merge_capacity)

    can_grow = True
    is_grid = True

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

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
        """The sense of a part of the frame, so many places high and wide."""
        side = self.patch_size * self.spatial_merge_size
        return replace(self, height=rows * side, width=columns * side)


@dataclass(frozen=True)
class _Vector(CodedPart):
    """A bounded vector, coded by the lattice of Theorem 1: level `l` is digit `l` of every coordinate."""

    dim: int = 1
    low: float | list[float] = -1.0
    high: float | list[float] = 1.0
    base: int = 16
    num_levels: int = 2
    unit: str | None = None
    clip: bool = False
    merge_capacity: int = 128

    def __post_init__(self):
        _check_merge_capacity(type(self).__name__, self.merge_capacity)
        for name in ("low", "high"):
            value = getattr(self, name)
            value = [float(value)] * self.dim if isinstance(value, (int, float)) else [float(item) for item in value]
            object.__setattr__(self, name, value)
        owner = f"{type(self).__name__}(dim={self.dim})"
        big_enough = self.dim >= 1 and self.base >= 2 and self.num_levels >= 1
        _require(big_enough, f"{owner}: dim, base or num_levels too small.")
        _require(
            len(self.low) == len(self.high) == self.dim,
            f"{owner}: expected {self.dim} values of `low` and `high`, got {len(self.low)} and {len(self.high)}.",
        )
        _require(
            all(-math.inf < lo < hi < math.inf for lo, hi in zip(self.low, self.high, strict=True)),
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
        _require(0 < epsilon < math.inf, f"`epsilon` must be positive and finite, got {epsilon}.")
        _require(base is None or base >= 2, f"`base` must be at least 2, got {base}.")
        sense = cls(dim=dim, low=low, high=high)
        span = max(hi - lo for lo, hi in zip(sense.low, sense.high, strict=True))  # type: ignore[arg-type]  # lists by now
        cells = max(2, cells_within(span, epsilon / math.sqrt(dim)))
        _require(cells <= 2**22, f"`epsilon` of {epsilon} is finer than float32 can tell within {span}.")
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
        flat = values.float().flatten(0, -2)
        for index, (low, high) in enumerate(zip(self.low, self.high, strict=True)):  # type: ignore[arg-type]  # lists by now
            margin = OUTSIDE * (high - low)
            least, most = float(flat[:, index].min()), float(flat[:, index].max())
            if not (low - margin <= least and most <= high + margin):  # NaN too
                told = f"goes from {low} to {high}, got {least:.6g} to {most:.6g}"
                raise ValueError(f"Actions: coordinate {index} {told}; which unit?")

    def random(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        low, high = self.bounds()
        return low + (high - low) * torch.rand((*shape, self.dim), generator=generator)

    @property
    def group(self) -> int:
        """Coordinates that share a place: at most 8 places a vector."""
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

    rate: float | None = None
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

    max_length: int = 16
    every_step: bool = False
    clip: bool = False
    kind: str = "text"

    def __post_init__(self):
        _require(self.max_length >= 1, f"TextSense: max_length must be at least 1, got {self.max_length}.")

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
        names (`list[str]`, *optional*): what they are called, for reports.
        capacity (`int`, *optional*): rows reserved for actions to come, these included; twice as many by default.
        merge_capacity (`int`): rows reserved for merged tokens, see `merging_pan.py`.
    """

    num_actions: int = 2
    names: list[str] | None = None
    capacity: int | None = None
    merge_capacity: int = 128
    kind: str = "discrete"

    def __post_init__(self):
        _check_merge_capacity("DiscreteAction", self.merge_capacity)
        _require(self.num_actions >= 1, f"DiscreteAction: num_actions must be at least 1, got {self.num_actions}.")
        if self.capacity is None:
            object.__setattr__(self, "capacity", 2 * self.num_actions)
        _require(
            self.capacity >= self.num_actions,
            f"DiscreteAction: capacity must be at least num_actions={self.num_actions}, got {self.capacity}.",
        )
        _require(
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
        if values.is_floating_point():
            raise ValueError(f"Discrete actions are whole numbers, got {values.dtype}.")
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= self.num_actions:
            raise ValueError(f"Discrete actions are 0 to {self.num_actions - 1}, got {low} to {high}.")

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

    max_length: int = 16
    clip: bool = False
    kind: str = "text"

    def __post_init__(self):
        _require(self.max_length >= 1, f"TextAction: max_length must be at least 1, got {self.max_length}.")

    @property
    def shape(self) -> tuple[int]:
        return (self.max_length,)


SENSES: dict[str, type[Part]] = {}  # by the kind's name, see `register_sense` and `register_action` in `codecs_pan.py`
ACTIONS: dict[str, type[Part]] = {}


def _from_dict(kinds: dict, what: str, values):
    """Builds the dataclass named by `values["kind"]`; an object that already is one passes through."""
    if not isinstance(values, dict):
        return values
    kind = values.get("kind")
    _require(
        kind in kinds,
        f"{what}: unknown kind {kind!r}; expected one of {sorted(kinds)}. Import the file that registers it first, or "
        "load the checkpoint with trust_remote_code=True where pan_hf is not imported, to run the code it came with.",
    )
    known = {item.name for item in fields(kinds[kind])}
    unknown = sorted(set(values) - known)
    _require(not unknown, f"{what}: a {kind} has no field {unknown}; its fields are {sorted(known)}.")
    return kinds[kind](**values)


def sense_from_dict(name: str, values):
    """The sense that `values` (a dict with `kind`, or a sense) describes. Raises ValueError for an unknown kind."""
    _check_name("sense", name, taken=("action", "places"))
    return _from_dict(SENSES, f"Sense {name!r}", values)


def action_from_dict(values, name: str = ACTION):
    """The action that `values` (a dict with `kind`, or an action) describes. Raises ValueError for an unknown kind."""
    _check_name("action", name)
    return _from_dict(ACTIONS, "Action" if name == ACTION else f"Action {name!r}", values)


def _check_name(what: str, name: str, taken: tuple[str, ...] = ()) -> None:
    _require(name.isidentifier(), f"{what.capitalize()} name {name!r} must be a Python identifier, such as 'camera'.")
    taken_too = name in taken or hasattr(nn.ModuleDict, name)  # they are attributes of a ModuleDict
    _require(not taken_too, f"A {what} cannot be called {name!r}, which means something else here; rename it.")
