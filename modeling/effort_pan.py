"""How much of the next state is predicted, and what that costs: blocks, efforts, compute.

The next state is made of *blocks*: each sense's levels, changing texts, and the latents of each sense. Which of them
are predicted, of which places, is the *effort*: fixed, capped, or left to the model's switch (`effort_pan`) at a
price. What is not predicted is carried over where nothing coarser changes, and where something does it is what usually
refines it, or absent where nothing is usual.

Shapes: N = rows, K = blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .focus_pan import LEAST_CHANGE
from .latent_head_pan import hedged_senses

TASKS = ("pixels", "moving", "outcome", "planning")
NAMED = ("all", "focused", "coarsest", "auto")


@dataclass(frozen=True)
class Block:
    """One part of a state that is predicted or not.

    Args:
        name (`str`): `<sense>.<level>`, `<sense>.latents`, or the name of a text sense.
        sense (`str`), level (`int`, *optional*): whose; None for latents and texts.
        kind (`str`): "codes", "text" or "latents".
        number (`int`): of the last pass that it takes, in the layout.
    """

    name: str
    sense: str
    level: int | None
    kind: str
    number: int


def state_blocks(config, passes) -> list[Block]:
    """Every block, in the order in which they are predicted: pass by pass, numbers before pictures, latents last."""
    blocks = []
    in_order = [(name, config.senses[name]) for name in config.drawing_order]
    for number, each in enumerate(passes):
        if not each.levels:
            blocks.append(Block(each.name, each.name, None, "text", number))
        for name, sense in in_order if each.levels else ():
            blocks += [
                Block(f"{name}.{level}", name, level, "codes", number)
                for level in each.levels
                if level < sense.num_levels
            ]
    last = {block.sense: block.number for block in blocks}
    return blocks + [
        Block(f"{name}.latents", name, None, "latents", last[name]) for name, sense in in_order if sense.latent_dim
    ]


def may_follow(blocks: list[Block]) -> list[list[bool]]:
    """Whether block `[row][column]` may come straight after block `row - 1`, row 0 being the beginning and the last
    column the end: `(K + 1) x (K + 1)`. Blocks keep their order, and a finer one needs all coarser ones of its
    sense."""

    def may(row: int, column: int) -> bool:
        # what lies between is left out, so nothing that is needed may lie there
        left_out = blocks[row:column]
        return row <= column and not any(_needs(blocks[column], other) for other in left_out)

    count = len(blocks)
    return [[may(row, column) for column in range(count)] + [True] for row in range(count + 1)]


@dataclass(frozen=True)
class Effort:
    """What may be spent on a step of simulation.

    Args:
        blocks (`Sequence[str]`, *optional*): exactly these are predicted.
        cap (`float`, *optional*): as many blocks, in their order, as this share of a whole step's compute allows.
        price (`float`, *optional*): of a whole step's compute, in units of distortion: the model's switch decides,
            told the price. With neither blocks, cap nor price it decides at a tenth.
        task (`str`, *optional*): what the switch is to spare: one of `TASKS`.
        least_change (`float`, *optional*): places less likely to change than this stay as they are, and the backbone
            does not look at them (`focus_pan`). None: everything is looked at.

    Raises:
        ValueError: blocks and cap or price at once, a price below zero, an unknown task, or a share that is none.
    """

    blocks: Sequence[str] | None = None
    cap: float | None = None
    price: float | None = None
    task: str = "pixels"
    least_change: float | None = LEAST_CHANGE

    def __post_init__(self):
        if self.blocks is not None:
            object.__setattr__(self, "blocks", tuple(self.blocks))
        given = [name for name in ("blocks", "cap", "price") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"An effort has blocks, a cap or a price, one of them; got {given}.")
        if self.price is not None and not 0 <= self.price < math.inf:
            raise ValueError(f"`price` must be finite and at least 0, got {self.price}.")
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"`cap` is a share of a whole step's compute, above 0; got {self.cap}.")
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {TASKS}, got {self.task!r}.")
        if self.least_change is not None and not 0 <= self.least_change < 1:
            raise ValueError(f"`least_change` is a probability, or None; got {self.least_change}.")

    @property
    def task_number(self) -> int:
        return TASKS.index(self.task)


def as_effort(given, model) -> Effort:
    """An [`Effort`] from what `simulate` takes: one, names of blocks, or one of `NAMED`: "all" blocks everywhere;
    "focused", all codes where something is likely to change; "coarsest", the coarsest level there; "auto", the switch.

    Raises:
        ValueError: unknown names, or blocks that the model lacks or that lack a coarser one.
    """
    names = [block.name for block in model.blocks]
    if isinstance(given, str):
        if given not in NAMED:
            raise ValueError(f"`effort` must be one of {NAMED}, names of blocks, or an Effort; got {given!r}.")
        given = _named(given, model.blocks)
    elif not isinstance(given, Effort):
        given = Effort(given)
    if given.blocks is None:
        return given
    if unknown := sorted(set(given.blocks) - set(names)):
        raise ValueError(f"This model has no blocks {unknown}; it has {names}.")
    for block in model.blocks:
        coarser = [other.name for other in model.blocks if _needs(block, other)]
        if block.kind == "latents" and not set(coarser) & set(given.blocks):
            continue  # latents alone: they mend the codes that were there
        if block.name in given.blocks and not set(coarser) <= set(given.blocks):
            raise ValueError(f"Block {block.name!r} needs {coarser} too, got {list(given.blocks)}.")
    return given


def _named(name: str, blocks: list[Block]) -> Effort:
    if name == "auto":
        return Effort()
    if name == "all":
        return Effort([block.name for block in blocks], least_change=None)
    is_focused = name == "focused"
    return Effort([block.name for block in blocks if block.kind == "codes" and (is_focused or block.level == 0)])


def _needs(block: Block, other: Block) -> bool:
    """Whether a block stands on another: finer codes on coarser ones, latents on all codes of their sense."""
    if other.sense != block.sense or other.kind != "codes":
        return False
    return block.kind == "latents" or other.level < block.level


@dataclass
class Cost:
    """What imagined steps cost.

    Args:
        tokens `(N, H)`: positions that the backbone ran.
        denoiser_calls `(N, H)`: calls of latent heads' denoisers.
        compute `(N, H)`: floating-point operations, as a share of those of a whole step: all blocks, everywhere.
        seconds (`float`): of the whole call, all rows and steps together.
    """

    tokens: Tensor
    denoiser_calls: Tensor
    compute: Tensor
    seconds: float


class Meter:
    """Counts what one step spends, row by row, at the model's `Prices`."""

    def __init__(self, prices: Prices, rows: int, device: torch.device):
        self.prices = prices
        self.tokens = torch.zeros(rows, device=device)
        self.denoiser_calls = torch.zeros(rows, device=device)
        self.operations = torch.full((rows,), prices.fixed, device=device)

    def run(self, count: Tensor | int, rows: Tensor | None = None) -> None:
        """So many positions of the backbone: a number, or `(n,)` of `rows`."""
        rows = slice(None) if rows is None else rows
        self.tokens[rows] += count
        self.operations[rows] += self.prices.token * count

    def read(self, block: Block, share: Tensor | float, rows: Tensor | None = None) -> None:
        """A block, of a share of its places."""
        rows = slice(None) if rows is None else rows
        self.operations[rows] += self.prices.blocks[block.name] * share
        if block.kind == "latents":
            self.denoiser_calls[rows] += self.prices.calls[block.name]

    @property
    def compute(self) -> Tensor:
        return self.operations / self.prices.whole


@dataclass(frozen=True)
class Prices:
    """Floating-point operations of one row, 2 a weight and position: of a position of the backbone, of each block read
    out whole (the backbone aside) against every row reserved for its codes, of what a step takes in any case, and of a
    whole step; `calls` of a denoiser by block. `PanModel.prices` keeps them: growth changes nothing in them."""

    token: float
    blocks: dict[str, float]
    fixed: float
    whole: float
    calls: dict[str, int]

    @staticmethod
    def of(model) -> Prices:
        backbone = model.language_model.base_model
        embeddings = model.get_input_embeddings()
        token = 2.0 * (_size(backbone) - _size(embeddings))
        blocks = {block.name: _block_operations(model, block) for block in model.blocks}
        fixed = sum(_glance_operations(model, name) for name in model.glances)
        fixed += 2.0 * model.layout.num_places * _size(model.outcome.features)
        whole = fixed + sum(blocks.values()) + token * model.layout.step_length
        calls = {f"{name}.latents": head.num_calls for name, head in model.latent_heads.items()}
        return Prices(token, blocks, fixed, whole, calls)


def _size(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _glance_operations(model, name: str) -> float:
    glance = model.glances[name]
    by_place, by_cell = (glance.norm, glance.place), (glance.around, glance.change)
    everywhere = glance.sense.num_places * (
        sum(map(_size, by_place)) + glance.sense.codes_per_place[0] * sum(map(_size, by_cell))
    )
    once = sum(map(_size, (glance.action_norm, glance.action, glance.gist)))
    reserved = len(model.table.active_codes(name, 0))  # the inventory is read against every row
    inventory = reserved * glance.inventory.out_features
    return 2.0 * (everywhere + once + inventory)


def _frame_operations(codec, sense) -> float:
    """What it takes to decode a frame and to look at it again, as `SenseLatents.start` does."""
    (rows, columns), places = sense.patch_grid, sense.num_places
    by_cell = sum(map(_size, (codec.stem, codec.encoder, codec.decoder, codec.head)))
    by_place = _size(codec.to_latent)
    by_place += sum(count * _size(layer) for count, layer in zip(sense.codes_per_place, codec.from_code, strict=True))
    return 2.0 * (rows * columns * by_cell + places * by_place)


def _block_operations(model, block: Block) -> float:
    if block.kind == "text":
        return 2.0 * model.config.senses[block.sense].max_length * model.get_output_embeddings().weight.numel()
    sense = model.config.senses[block.sense]
    if block.kind == "latents":
        head = model.latent_heads[block.sense]
        is_hedged = block.sense in hedged_senses(model.config)
        start = _frame_operations(model.senses[block.sense], sense) if is_hedged else 0.0
        return start + 2.0 * head.num_calls * sense.num_places * _size(head)
    readout = model.readouts[block.sense][block.level]
    codes = sense.num_places * sense.codes_per_place[block.level]
    width, size = readout.out.in_features, len(model.table.active_codes(block.sense, block.level))
    around = _size(readout.blocks) + (_size(readout.sentence) if readout.sentence is not None else 0)
    return 2.0 * (sense.num_places * _size(readout.places) + codes * (around + width * size))


def capped_blocks(model, cap: float) -> tuple[str, ...]:
    """The blocks, in their order, whose whole compute stays within a share `cap` of a whole step's.

    Raises:
        ValueError: not even the first fits.
    """
    prices, found, passes = model.prices, [], set()
    spent = prices.fixed + prices.token * model.layout.trunk_length
    for block in model.blocks:
        spent += prices.blocks[block.name]
        if block.number not in passes:
            spent += prices.token * model.layout.passes[block.number].length
            passes.add(block.number)
        if spent > cap * prices.whole:
            break
        found.append(block.name)
    if not found:
        raise ValueError(f"A cap of {cap} is less than the first block, {model.blocks[0].name!r}, costs.")
    return tuple(found)


# ---- The learned switch: which block of the next state is predicted next, or none (section 5.2).
#
# `p(next block | trunk, blocks so far)`, a categorical over every sense's levels and latents, texts, and `end`,
# decided row by row: rows of one batch stop at different blocks. It is told the task, whose distortion counts, and the
# price of compute, so that one switch serves cheap navigation and costly contact alike.
#
# Shapes: N = rows, K = blocks, H = backbone width.


USUAL_PRICE = 0.1  # of a whole step's compute, in units of distortion: what `effort="auto"` pays
LEAST_PRICE, MOST_PRICE = 0.003, 3.0  # prices are told as logarithms within these


@dataclass
class SwitchInput:
    """What the switch decides on.

    Args:
        trunk `(N, H)`: the backbone's state after the action.
        places `(N, H)`: the mean over the queries of the last pass.
        chosen `(N, K)` bool: the blocks so far.
        changed `(N, K)`: which share of each block's codes has changed, 0 where it was not predicted.
        focus `(N,)`: share of the places that is looked at.
        price `(N,)`: of a whole step's compute, in units of distortion.
        task `(N,)` int64: index into `effort_pan.TASKS`.
    """

    trunk: Tensor
    places: Tensor
    chosen: Tensor
    changed: Tensor
    focus: Tensor
    price: Tensor
    task: Tensor


class SwitchHead(nn.Module):
    """Logits over the next block.

    Args:
        blocks (`list[effort_pan.Block]`): K of them.
        hidden_size, width (`int`): H, and of the head.
    """

    def __init__(self, blocks: list[Block], hidden_size: int, width: int):
        super().__init__()
        self.allowed = may_follow(blocks)  # a plain list: no buffer to be saved, or lost on the meta device
        self.trunk_norm, self.places_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.trunk, self.places = nn.Linear(hidden_size, width), nn.Linear(hidden_size, width)
        self.told = nn.Linear(2 * len(blocks) + 2 + len(TASKS), width)
        self.out = nn.Linear(width, len(blocks) + 1)

    def forward(self, given: SwitchInput) -> Tensor:
        """Returns: `(N, K + 1)` float32, the last being the end; minus infinity where a block may not follow."""
        low, high = math.log(LEAST_PRICE), math.log(MOST_PRICE)
        price = 2 * (given.price.clamp(LEAST_PRICE, MOST_PRICE).log() - low) / (high - low) - 1
        task = nn.functional.one_hot(given.task, len(TASKS))
        told = [given.chosen, given.changed.sqrt(), given.focus.unsqueeze(1), price.unsqueeze(1), task]
        told = torch.cat([part.to(given.trunk.dtype) for part in told], 1)
        x = self.trunk(self.trunk_norm(given.trunk)) + self.places(self.places_norm(given.places)) + self.told(told)
        logits = self.out(nn.functional.gelu(x)).float()
        return logits.masked_fill(~self._allowed(given.chosen), -torch.inf)

    def _allowed(self, chosen: Tensor) -> Tensor:
        """Which blocks may come next, `(N, K + 1)` bool: what may follow the last that was chosen."""
        order = torch.arange(1, chosen.shape[1] + 1, device=chosen.device)
        last = (chosen * order).amax(1)  # 0: the beginning
        return torch.tensor(self.allowed, device=chosen.device)[last]
