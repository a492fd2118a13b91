"""How much of the next state is predicted, and what that costs: efforts, plans of blocks, compute.

The next state is made of *blocks*: each sense's levels, changing texts, and the latents of each sense. Which of them
are predicted, at which state tokens, is the *effort*: fixed, capped, or left to the model's switch at a price. A
[`BlockPlan`] says so step by step; a [`ChangePredictor`] says which tokens are likely to change; a [`ComputeModel`]
what it all costs. What is not predicted is carried over. If a coarser code changed, the finer code is replaced by its
most frequent refinement, or marked absent if it has none.

Shapes: N = rows, K = blocks.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .blocks_pan import Block, StepDraft, may_follow
from .embedding_pan import ChangeTables, ZeroInitLinear
from .layout_pan import TokenSelection, group_by_token, ungroup_tokens, with_absent
from .validation_pan import real

if TYPE_CHECKING:
    from .configuration_pan import PanConfig
    from .modeling_pan import PanModel
    from .sense_configuration_pan import ImageSense

SURE = 20.0  # logit of a change where a code is absent: whatever will be there is another one
LEAST_CHANGE = 0.005  # state tokens whose probability of change is below this are not looked at
TASKS = ("pixels", "moving", "outcome", "planning")
NAMED = ("all", "focused", "coarsest", "auto")


@dataclass(frozen=True)
class Effort:
    """How much a step of simulation may cost.

    Args:
        blocks (`Collection[str]`, *optional*): exactly these are predicted.
        cap (`float`, *optional*): as many blocks, in their order, as this share of a whole step's compute allows.
        price (`float`, *optional*): of a whole step's compute, in units of distortion, at which the model's switch
            decides. With neither blocks, cap nor price it decides at a tenth.
        task (`str`, *optional*): one of `TASKS`, whose distortion the switch weighs against the price.
        least_change (`float`, *optional*): state tokens less likely to change than this stay as they are, and the
            backbone does not look at them ([`ChangePredictor`]). None: everything is looked at.

    Raises:
        ValueError: blocks and cap or price at once, a price below zero, an unknown task, or a share that is none.
    """

    blocks: Collection[str] | None = None
    cap: float | None = None
    price: float | None = None
    task: str = "pixels"
    least_change: float | None = LEAST_CHANGE

    def __post_init__(self):
        if self.blocks is not None:
            blocks = (self.blocks,) if isinstance(self.blocks, str) else tuple(self.blocks)
            object.__setattr__(self, "blocks", blocks)
        limits = [name for name in ("blocks", "cap", "price") if getattr(self, name) is not None]
        if len(limits) > 1:
            raise ValueError(f"An effort has blocks, a cap or a price, one of them; got {limits}.")
        for name, above in (("cap", True), ("price", False)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, real(name, getattr(self, name), 0, above=above))
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {TASKS}, got {self.task!r}.")
        if self.least_change is not None and not real("least_change", self.least_change, 0) < 1:
            raise ValueError(f"`least_change` is a probability, or None; got {self.least_change}.")


def as_effort(effort: Effort | str | Collection[str], model: PanModel) -> Effort:
    """An [`Effort`] from an argument of `simulate`: one, names of blocks, or one of `NAMED`: "all" blocks everywhere;
    "focused", all codes where something is likely to change; "coarsest", the coarsest level there; "auto", the switch.

    Raises:
        ValueError: unknown names, or blocks that the model lacks or that lack a coarser one.
    """
    names = [block.name for block in model.blocks]
    if isinstance(effort, str):
        if effort not in NAMED:
            raise ValueError(f"`effort` must be one of {NAMED}, names of blocks, or an Effort; got {effort!r}.")
        levels = {block.name: block.level for block in model.blocks if block.level is not None}
        chosen = {"all": names, "focused": levels, "coarsest": [name for name in levels if levels[name] == 0]}
        effort = Effort(chosen.get(effort), least_change=None if effort == "all" else LEAST_CHANGE)
    elif not isinstance(effort, Effort):
        if not isinstance(effort, Collection):
            raise ValueError(f"`effort` must be one of {NAMED}, names of blocks, or an Effort; got {effort!r}.")
        effort = Effort(tuple(effort))
    if effort.blocks is None:
        return effort
    if unknown := [name for name in effort.blocks if name not in names]:
        raise ValueError(f"This model has no blocks {unknown}; it has {names}.")
    for block in model.blocks:
        needed = {other.name for other in model.blocks if block.needs(other)}
        if block.stands_alone and not needed & set(effort.blocks):
            continue
        if block.name in effort.blocks and not needed <= set(effort.blocks):
            coarser = [name for name in names if name in needed]
            raise ValueError(f"Block {block.name!r} needs {coarser} too, got {list(effort.blocks)}.")
    return effort


# ---- The cost of imagined steps.


@dataclass
class Cost:
    """The cost of imagined steps.

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

    def rows(self, index: Tensor) -> Cost:
        """The cost of some rows; `seconds` stays that of the whole call."""
        return replace(self, **{name: getattr(self, name)[index] for name in ("tokens", "denoiser_calls", "compute")})


@dataclass(frozen=True)
class ComputeModel:
    """Floating-point operations of one row of a step, counted while the model runs one: `PanModel.compute_model`.

    Codes are read out against every row that is reserved for them, so growth changes nothing.

    Args:
        token (`float`): of one position of the backbone.
        blocks (`dict[str, float]`): of each block everywhere, the backbone aside.
        fixed (`float`): of the change predictors and the outcome, which every step runs.
        whole (`float`): of a whole step.
        denoiser_calls (`dict[str, int]`): by block.
    """

    token: float
    blocks: dict[str, float]
    fixed: float
    whole: float
    denoiser_calls: dict[str, int]

    def cost(self, model: PanModel, chosen: Tensor, seen: Tensor | None, positions: Tensor) -> Cost:
        """Of one step of N rows. Args: chosen `(N, K)` bool, the blocks predicted; seen `(N, P of all senses)` bool,
        the state tokens predicted, all by default; positions `(N,)`, that the backbone ran."""
        share = chosen.float()
        if seen is not None:
            senses, whole = model.config.coded_senses, torch.ones(len(seen), device=seen.device)
            shares = {name: model.layout.of_sense(name, seen).float().mean(1) for name in senses}
            share = chosen * torch.stack([shares.get(block.sense, whole) for block in model.blocks], 1)
        calls = chosen.float() @ positions.new_tensor([self.denoiser_calls.get(name, 0) for name in self.blocks])
        operations = self.fixed + share @ positions.new_tensor(list(self.blocks.values())) + self.token * positions
        return Cost(positions, calls, operations / self.whole, 0.0)


def capped_blocks(model: PanModel, cap: float) -> tuple[str, ...]:
    """The blocks, in their order, whose whole compute stays within a share `cap` of a whole step's.

    Raises:
        ValueError: not even the first fits.
    """
    compute, names, passes = model.compute_model, [], set()
    spent = compute.fixed + compute.token * model.layout.trunk_length
    for block in model.blocks:
        spent += compute.blocks[block.name]
        if block.number not in passes:
            spent += compute.token * model.layout.passes[block.number].length
            passes.add(block.number)
        if spent > cap * compute.whole * (1 + 1e-9):  # sums in another order differ in their last digit
            break
        names.append(block.name)
    if not names:
        raise ValueError(f"A cap of {cap} is less than the first block, {model.blocks[0].name!r}, costs.")
    return tuple(names)


# ---- Which blocks of a step are predicted, in which rows, at which state tokens.


class BlockPlan:
    """The same blocks in every row. It is asked at each step, and a row that has ended takes no part in later passes,
    readouts or denoiser calls.

    Args:
        names (names of blocks, *optional*): those predicted. None: every discrete block; latents are drawn when
            something is decoded.
        least_change (`float`, *optional*): state tokens less likely to change stay as they are; None: all are
            predicted.
    """

    def __init__(self, names: Collection[str] | None = None, least_change: float | None = None):
        self.names, self.least_change = None if names is None else frozenset(names), least_change

    is_asked = False  # whether rows decide anew after each block

    @property
    def leaves_latents(self) -> bool:
        """Whether latents are left to whoever decodes."""
        return self.names is None and not self.is_asked

    def wants(self, block: Block) -> bool:
        """Whether a block may be predicted at all."""
        return block.is_discrete if self.names is None else block.name in self.names

    def select(self, model: PanModel, change: dict[str, Tensor]) -> TokenSelection | None:
        """The state tokens to predict, from the logits of a change at each, by sense `(N, P)`; None: all of them."""
        if self.least_change is None or not change:
            return None
        fewest = model.compiled_step.least_size
        return likely_changes(model.config, change, self.least_change, fewest=fewest)

    def begin(self, draft: StepDraft) -> None:
        """Takes up a step, of which the trunk is about to run."""

    def goes_on(self, block: Block, draft: StepDraft) -> bool:
        """Whether any row wants a block's pass or a later one; the others are not run any more."""
        return any(other.number >= block.number for other in draft.model.blocks if self.wants(other))

    def rows(self, number: int, draft: StepDraft) -> Tensor | None:
        """The rows that predict block `number`, `(n,)`; None for all of them."""
        return None if self.wants(draft.model.blocks[number]) else draft.nobody

    def note(self, number: int, rows: Tensor | None, draft: StepDraft) -> None:
        """Block `number` has just been predicted in these rows; -1: the trunk has been run."""

    def chosen(self, draft: StepDraft) -> Tensor:
        """The blocks that each row predicted, `(N, K)` bool."""
        wanted = torch.tensor([self.wants(block) for block in draft.model.blocks], device=draft.trunk.device)
        return wanted.expand(draft.num_rows, -1)


ALL = BlockPlan()  # every discrete block of every row, everywhere


class SwitchPlan(BlockPlan):
    """The model's switch decides after each block which one is next, row by row.

    Args:
        effort ([`Effort`]): whose price and task the switch is told.
    """

    is_asked = True

    def __init__(self, effort: Effort):
        super().__init__(None, effort.least_change)
        self.effort = effort

    def wants(self, block: Block) -> bool:
        return True

    def begin(self, draft: StepDraft) -> None:
        count, device = len(draft.model.blocks), draft.trunk.device
        self._chosen = torch.zeros(draft.num_rows, count, dtype=torch.bool, device=device)
        self._changed = torch.zeros(draft.num_rows, count, device=device)
        self._next = torch.full((draft.num_rows,), count, device=device)

    def goes_on(self, block: Block, draft: StepDraft) -> bool:
        numbers = torch.tensor([other.number for other in draft.model.blocks] + [-1], device=self._next.device)
        index = (numbers[self._next] >= block.number).nonzero().squeeze(1)
        if len(index):
            draft.run.keep(index)
        return len(index) > 0

    def rows(self, number: int, draft: StepDraft) -> Tensor | None:
        rows = (self._next == number).nonzero().squeeze(1)
        return None if len(rows) == draft.num_rows else rows

    def note(self, number: int, rows: Tensor | None, draft: StepDraft) -> None:
        some = slice(None) if rows is None else rows
        if number >= 0:
            block = draft.model.blocks[number]
            self._chosen[some, number] = True
            if block.level is not None:
                before, after = (state[block.sense][block.level] for state in (draft.current.codes, draft.codes))
                self._changed[some, number] = (after != before).float().mean(1)[some]
        self._next[some] = self.choose(number, rows, draft)

    def choose(self, number: int, rows: Tensor | None, draft: StepDraft) -> Tensor:
        """The number of the block after block `number` (-1: the first) in each of these rows, `(n,)`; as many as there
        are blocks: the end."""
        return draft.model.switch(self.inputs(rows, draft)).argmax(-1)

    def inputs(self, rows: Tensor | None, draft: StepDraft) -> SwitchInput:
        """The inputs of the switch in these rows."""
        some, device = slice(None) if rows is None else rows, draft.trunk.device
        count = draft.num_rows if rows is None else len(rows)
        price = USUAL_PRICE if self.effort.price is None else self.effort.price
        seen = draft.seen
        return SwitchInput(
            trunk=draft.run.hidden["action"][some],
            queries=draft.pooled()[some],
            chosen=self._chosen[some].clone(),
            changed=self._changed[some].clone(),
            focus=torch.ones(count, device=device) if seen is None else seen[some].float().mean(1),
            price=torch.full((count,), price, device=device),
            task=torch.full((count,), TASKS.index(self.effort.task), device=device),
        )

    def chosen(self, draft: StepDraft) -> Tensor:
        return self._chosen


def block_plan(effort: Effort, model: PanModel) -> BlockPlan:
    """The plan of an effort.

    Raises:
        ValueError: a cap below what the first block costs.
    """
    names = capped_blocks(model, effort.cap) if effort.cap is not None else effort.blocks
    return SwitchPlan(effort) if names is None else BlockPlan(names, effort.least_change)


# ---- The learned switch: which block of the next state is predicted next, or none (section 5.2).
#
# `p(next block | trunk, blocks so far)`, a categorical over every sense's levels and latents, texts, and `end`,
# decided row by row: rows of one batch stop at different blocks. Its inputs name the task, whose distortion counts,
# and the price of compute, so that one switch serves cheap navigation and costly contact alike.
#
# Shapes: N = rows, K = blocks, H = backbone width.


USUAL_PRICE = 0.1  # of a whole step's compute, in units of distortion: what `effort="auto"` pays
LEAST_PRICE, MOST_PRICE = 0.003, 3.0  # the switch reads the logarithm of a price within these


@dataclass
class SwitchInput:
    """The inputs of the switch.

    Args:
        trunk `(N, H)`: the backbone's state after the action.
        queries `(N, H)`: the mean over the queries of the last pass.
        chosen `(N, K)` bool: the blocks so far.
        changed `(N, K)`: which share of each block's codes has changed, 0 where it was not predicted.
        focus `(N,)`: share of the state tokens that is looked at.
        price `(N,)`: of a whole step's compute, in units of distortion.
        task `(N,)` int64: index into `TASKS`.
    """

    trunk: Tensor
    queries: Tensor
    chosen: Tensor
    changed: Tensor
    focus: Tensor
    price: Tensor
    task: Tensor


class SwitchHead(nn.Module):
    """Logits over the next block.

    Args:
        blocks (`list[Block]`): K of them.
        hidden_size, width (`int`): H, and of the head.
    """

    def __init__(self, blocks: list[Block], hidden_size: int, width: int):
        super().__init__()
        self.allowed = may_follow(blocks)  # a plain list: no buffer to be saved, or lost on the meta device
        self.trunk_norm, self.places_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.trunk, self.places = nn.Linear(hidden_size, width), nn.Linear(hidden_size, width)
        self.told = nn.Linear(2 * len(blocks) + 2 + len(TASKS), width)
        self.out = nn.Linear(width, len(blocks) + 1)

    def forward(self, inputs: SwitchInput) -> Tensor:
        """Returns: `(N, K + 1)` float32, the last being the end; minus infinity where a block may not follow."""
        low, high = math.log(LEAST_PRICE), math.log(MOST_PRICE)
        price = 2 * (inputs.price.clamp(LEAST_PRICE, MOST_PRICE).log() - low) / (high - low) - 1
        task = nn.functional.one_hot(inputs.task, len(TASKS))
        # the root of a share: of few codes that changed the switch should hear, too
        scalars = [inputs.chosen, inputs.changed.sqrt(), inputs.focus.unsqueeze(1), price.unsqueeze(1), task]
        joined = torch.cat([part.to(inputs.trunk.dtype) for part in scalars], 1)
        x = self.trunk(self.trunk_norm(inputs.trunk)) + self.places(self.places_norm(inputs.queries))
        logits = self.out(nn.functional.gelu(x + self.told(joined))).float()
        order = torch.arange(1, inputs.chosen.shape[1] + 1, device=inputs.chosen.device)
        last = (inputs.chosen * order).amax(1)  # 0: the beginning
        allowed = torch.tensor(self.allowed, device=inputs.chosen.device)[last]
        return logits.masked_fill(~allowed, -torch.inf)


# ---- The change predictor: which state tokens are worth looking at.
#
# Of a frame a few tokens change in a step and the rest stands still. A [`ChangePredictor`] is a small convolution over
# the cells of level 0 and the action. It says at which state tokens something will change, and adds the gist of the
# rest to the action's embedding, with an inventory of it (whether there still is a key somewhere). The backbone then
# reads, and is asked about, these tokens alone; all others stay as they are. In a Markov world that leaves 2 to 3 of
# 33 positions of a MiniGrid step on average; where a prediction sees earlier steps the whole state stays in the trunk,
# and queries alone are left out.
#
# Shapes: N = rows, P = state tokens of all senses.


class ChangePredictor(nn.Module):
    """Which state tokens of an image will change, and the gist of them all.

    It looks at cells, several of which share a state token: a cell in front of another is the same anywhere, while a
    token would have to learn it anew for each way in which its cells can stand to one another.

    Args:
        sense (`ImageSense`): whose state tokens.
        hidden_size, width (`int`): H, and of the two layers.
    """

    def __init__(self, sense: ImageSense, hidden_size: int, width: int):
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

    def tables(self, rows: Tensor) -> ChangeTables:
        """The tables of its inputs, a row a code, from the rows of level 0's segment, `(K, H)`."""
        rows = self.row_norm(rows)
        return ChangeTables(with_absent(self.cell(rows)), self.inventory(rows))

    def forward(self, tokens: Tensor, codes: Tensor, tables: ChangeTables, action: Tensor) -> tuple[Tensor, Tensor]:
        """Args: tokens, embedded `(N, P, H)`; codes of level 0 `(N, n)`; action `(N, H)`. Returns: the logit of a
        change at each state token `(N, P)` float32; the gist, `(N, H)`."""
        size = len(tables.cells)
        x = self.place(self.norm(tokens)) + self.action(self.action_norm(action)).unsqueeze(1)
        x = x.unsqueeze(2).expand(-1, -1, self.sense.codes_per_token[0], -1)
        x = nn.functional.gelu(ungroup_tokens(x, self.sense, 0) + nn.functional.embedding(codes % size, tables.cells))
        grid = x.unflatten(1, self.sense.level_grid(0)).permute(0, 3, 1, 2)
        x = x + nn.functional.gelu(self.around(grid)).flatten(2).transpose(1, 2)
        gist = self.gist(torch.cat([x.amax(1), x.mean(1)], -1))
        there = tables.anywhere.new_zeros(len(codes), size).scatter(1, codes % size, 1.0)
        # a token changes if any of its cells does; where changes are rare, their odds add up
        change = group_by_token(self.change(x).squeeze(-1).float(), self.sense, 0).logsumexp(-1)
        change = change.masked_fill((group_by_token(codes, self.sense, 0) < 0).any(-1), SURE)
        return change, gist + there[:, :-1] @ tables.anywhere


def focusable(config: PanConfig) -> list[str]:
    """The senses that can be looked at in part: those on a grid, unless their codes are drawn one after the other."""
    if config.level0_sampling == "autoregressive":  # each code depends on all before it, so none can be left out
        return []
    return [name for name, sense in config.coded_senses.items() if sense.is_grid and sense.num_state_tokens > 1]


def changed_tokens(sense: ImageSense, now: list[Tensor], after: list[Tensor]) -> Tensor:
    """The state tokens of which any code changes, `(N, P)` bool, from codes `(N, n)` a level."""
    pairs = enumerate(zip(now, after, strict=True))
    changed = [group_by_token(one != other, sense, level).any(-1) for level, (one, other) in pairs]
    return torch.stack(changed).any(0)


def likely_changes(
    config: PanConfig, change: dict[str, Tensor], least: float, extra: float = 0.0, fewest: int = 1
) -> TokenSelection:
    """The state tokens whose probability of change is at least `least`, all of the senses that `change` has no logits
    `(N, P)` of, and a random share `extra` of the others; with room for `fewest` at least."""
    first = next(iter(change.values()))
    parts = [
        change[name].sigmoid() if name in change else first.new_ones(len(first), sense.num_state_tokens)
        for name, sense in config.coded_senses.items()
    ]
    chance = torch.cat(parts, 1)
    wanted = chance >= least
    return TokenSelection.of(wanted | (torch.rand_like(chance) < extra) if extra else wanted, fewest)
