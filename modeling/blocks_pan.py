"""The blocks that a next state is made of, and how each of them is decoded.

A block is predicted in one go: the codes of one level of a sense, a text, or the latents of a sense. Each class of
block owns its decoding. [`CodesBlock`] reads all codes of a level off one pass of the backbone, in parallel.
[`AutoregressiveBlock`] draws tokens each given those before it: [`AutoregressiveCodes`] through a small head behind
one pass, [`TextBlock`] word by word through the backbone. [`LatentsBlock`] runs a diffusion head. A [`StepDraft`] is
the next state as far as it is predicted; blocks add to it, in their order.

Shapes: N = rows, n = codes of a level or some of the rows, P = state tokens of a sense, K = codes of a segment,
H = backbone width, F = single patches.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .backbone_pan import BackboneRun
from .embedding_pan import CodeTables, LevelTables
from .latent_head_pan import SenseLatents, hedged_senses
from .layout_pan import Pass, PatchIndex, group_by_token, spread_codes, ungroup_tokens
from .readout_pan import readout_scalars
from .state_pan import State

if TYPE_CHECKING:
    from .configuration_pan import PanConfig
    from .modeling_pan import PanModel

Picking = tuple[Tensor, Tensor] | None  # random numbers and temperature; None where the likeliest code is taken


class CodeSampler:
    """Draws codes and words from logits.

    Args:
        temperature (`float`): 0 takes the likeliest.
        generator (`torch.Generator`, *optional*): of the random numbers, on `device`.
        device (`torch.device`): where codes are drawn.
    """

    def __init__(self, temperature: float, generator: torch.Generator | None, device: torch.device):
        # as a tensor: a number would be a constant of a compiled function
        self.temperature = torch.tensor(float(temperature)) if temperature else None
        self.generator, self.device = generator, device

    def picking(self, shape: Sequence[int]) -> Picking:
        """The random numbers behind so many codes, uniform in [0, 1), and the temperature, as [`pick`] takes them."""
        if self.temperature is None:
            return None
        return torch.rand(shape, generator=self.generator, device=self.device), self.temperature


def pick(logits: Tensor, picking: Picking) -> Tensor:
    """Codes `(...)` from logits `(..., K)`, by inverting the cumulative distribution: one random number a code, where
    `torch.multinomial` draws one for each of K."""
    if picking is None:
        return logits.argmax(-1)
    draws, temperature = picking
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    # the last 1e-6 of the distribution is left out, so that no rounding draws a row that is not active
    level = draws.unsqueeze(-1) * (1 - 1e-6) * cumulative[..., -1:]
    # clamped for logits that are not a number, behind all of which anything comes; `rollout` says so in the end
    return torch.searchsorted(cumulative, level, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def log_prob_of(logits: Tensor, codes: Tensor) -> Tensor:
    """Log probability of codes `(N, ...)` under logits `(N, ..., K)`, added up a row: `(N,)`; an absent code (below 0)
    adds nothing."""
    chosen = logits.gather(-1, codes.clamp(min=0).unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    chosen = chosen.masked_fill(codes < 0, 0.0)
    return chosen.reshape(len(chosen), -1).sum(-1)


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy in nats of distributions of logits `(N, ..., K)`, added up a row: `(N,)`; a code that cannot be, of
    logit minus infinity, adds nothing."""
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
    return entropy.reshape(len(entropy), -1).sum(-1)


@dataclass
class StepDraft:
    """The next state of N rows as far as it is predicted, and the inputs of its blocks.

    Args:
        model ([`PanModel`]): that predicts.
        current, target: the state before the step, and the true one after it if that is scored instead.
        tables: see `EmbeddingTable.code_tables`.
        sampler: of codes and words; generator, of latents and of the switch.
        run: this step's run of the backbone.
        embedded `(N, state_length, H)`, trunk `(N, trunk_length, H)`: the current state, and with the action behind.
        numbers `(N, V)`: see `readout_pan`; None where nothing is a number.
        keeps_logits, keeps_shifts (`bool`): fill in `logits` and `shifts`.
        seen `(N, P of all senses)` bool: the state tokens that are predicted; None: all of them.
        tokens: by sense `(N, P, 3H)`, what readouts get of the last pass, see `StepLayout.split_tokens`.
        codes, text, latents: of the next state.
        log_prob `(N,)`: of its codes and words, at temperature 1.
        logits: by sense, a level `(N, n, K)`.
        word_entropy: by text `(N,)`, beside the logits, since those of every word would be large.
        shifts: by sense and level `(N, n, code_dim)`: what leads from the vectors of the codes to the expected ones.
        nobody: an index of no row.
    """

    model: PanModel
    current: State
    target: State | None
    tables: CodeTables
    sampler: CodeSampler
    generator: torch.Generator | None
    run: BackboneRun
    embedded: Tensor
    trunk: Tensor
    numbers: Tensor | None
    keeps_logits: bool
    keeps_shifts: bool
    seen: Tensor | None
    last_pass: int = -1  # number of the last pass that was run
    tokens: dict[str, Tensor] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.codes: dict[str, list[Tensor]] = {name: [] for name in self.current.codes}
        self.text = dict(self.current.text)
        self.log_prob = torch.zeros(self.num_rows, device=self.trunk.device)
        self.logits: dict[str, list[Tensor]] = {name: [] for name in self.current.codes}
        self.word_entropy: dict[str, Tensor] = {}
        hedged = hedged_senses(self.model.config) if self.keeps_shifts else ()
        self.shifts: dict[str, list[Tensor]] = {name: [] for name in hedged}
        self.nobody = torch.zeros(0, dtype=torch.long, device=self.trunk.device)
        self._indices: dict[str, PatchIndex] = {}

    @property
    def num_rows(self) -> int:
        return len(self.trunk)

    def state(self) -> State:
        """The state after the step."""
        # a target has its latents too: the next step is given the true state before it
        return State(self.codes, self.latents, self.text) if self.target is None else self.target

    def pooled(self) -> Tensor:
        """The mean over the queries that were run of the last pass of levels, `(N, H)`; zero before the first."""
        names = [each.name for each in self.model.layout.passes if each.levels and each.name in self.run.hidden]
        if not names:
            return torch.zeros_like(self.trunk[:, 0])
        hidden = self.run.hidden[names[-1]]
        if self.seen is None:
            return hidden.mean(1)
        return hidden.sum(1) / self.seen.sum(1, keepdim=True).clamp(min=1)

    def set_log_prob(self, log_prob: Tensor, rows: Tensor | None) -> None:
        """Replaces the log probabilities of `rows` `(n,)`, of all rows by default."""
        self.log_prob = log_prob if rows is None else self.log_prob.index_copy(0, rows, log_prob)

    def add_log_prob(self, log_prob: Tensor, rows: Tensor | None) -> None:
        """Adds log probabilities `(n,)` of `rows`, of all rows by default."""
        self.log_prob = self.log_prob + log_prob if rows is None else self.log_prob.index_add(0, rows, log_prob)

    def patches(self, sense: str, rows: Tensor | None) -> PatchIndex | None:
        """The patches of an image that are predicted, of `rows`; None where all of them are."""
        if self.seen is None or sense not in self.model.glances:
            return None
        seen, least = self.model.layout.of_sense(sense, self.seen), self.model.compiled_step.least_size
        if rows is not None:
            chosen = torch.zeros(self.num_rows, 1, dtype=torch.bool, device=seen.device).index_fill(0, rows, True)
            return PatchIndex.of(seen & chosen, least)
        if sense not in self._indices:  # all levels look at the same patches
            self._indices[sense] = PatchIndex.of(seen, least)
        return self._indices[sense]

    def latent_condition(self, sense: str) -> Tensor:
        """The condition of the latent head of a sense, `(N, P, C)`."""
        inputs = (self.run.hidden, self.trunk, self.state(), self.tables, self.shifts.get(sense))
        return SenseLatents(self.model, sense).condition(*inputs)


@dataclass(frozen=True)
class Block(ABC):
    """One part of a state that is predicted or not.

    Args:
        name (`str`): `<sense>.<level>`, `<sense>.latents`, or the name of a text sense.
        sense (`str`): whose.
        number (`int`): of the pass that it is read from, in the layout.
        level (`int`, *optional*): of codes, 0 the coarsest; None for texts and latents.
    """

    name: str
    sense: str
    number: int
    level: int | None = None

    is_discrete = True  # codes or words, which tell one state from another
    stands_alone = False  # whether it may also be predicted with nothing that it needs, on the codes before the step

    def needs(self, other: Block) -> bool:
        """Whether this block stands on another: finer codes on coarser ones, latents on all codes of their sense."""
        return False

    @abstractmethod
    def predict(self, draft: StepDraft, rows: Tensor | None) -> None:
        """Decodes the block in `rows` `(n,)`, at least one of them, or in all rows where that is None."""

    def carry(self, draft: StepDraft) -> None:
        """Takes the block over from the state before: no row predicts it."""
        return  # a draft begins with the text of the state before, and without latents


@dataclass(frozen=True)
class CodesBlock(Block):
    """The codes of one level of a sense, all at once, given those of coarser levels."""

    level: int = 0

    def needs(self, other: Block) -> bool:
        return other.sense == self.sense and other.level is not None and other.level < self.level

    def predict(self, draft: StepDraft, rows: Tensor | None) -> None:
        patches = draft.patches(self.sense, rows)
        if rows is None and patches is None:
            return self._append(draft, *self._read(draft, None))
        codes, shift = self._carried(draft)
        if patches is not None and patches.count:
            codes, shift = self._read_patches(draft, codes, patches)
        elif patches is None:
            assert rows is not None  # neither all rows nor some patches
            read, moved = self._read(draft, rows)
            codes = codes.index_copy(0, rows, read)
            shift = None if shift is None or moved is None else shift.index_copy(0, rows, moved)
        self._append(draft, codes, shift)

    def carry(self, draft: StepDraft) -> None:
        self._append(draft, *self._carried(draft))

    def _append(self, draft: StepDraft, codes: Tensor, shift: Tensor | None) -> None:
        draft.codes[self.sense].append(codes)
        if self.sense in draft.shifts:
            draft.shifts[self.sense].append(shift)  # type: ignore[arg-type]  # kept where it is asked for

    def _carried(self, draft: StepDraft) -> tuple[Tensor, Tensor | None]:
        """The level's codes `(N, n)` where they are not predicted, and their shift, which is zero. They are carried
        over. If a coarser code changed, a code is its most frequent refinement, or absent if it has none."""
        sense, level = draft.model.config.senses[self.sense], self.level
        now, after = draft.current.codes[self.sense], draft.codes[self.sense]
        codes = now[level]
        if level:
            changed = torch.zeros_like(codes, dtype=torch.bool)
            for coarser in range(level):
                changed |= spread_codes(after[coarser] != now[coarser], sense, coarser, level)
            codes = torch.where(changed, draft.model.senses[self.sense].usual_refinements(after[-1], level), codes)
        if self.sense not in draft.shifts:
            return codes, None
        return codes, torch.zeros(*codes.shape, sense.code_dim, device=codes.device)

    def _read(self, draft: StepDraft, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The level's codes of some rows `(n,)`, all by default, and their shift if it is kept."""
        inputs = LevelInputs.of(self, draft, rows)
        target = None if draft.target is None else draft.target.codes[self.sense][self.level]
        picking = None if target is not None else draft.sampler.picking(inputs.current[self.level].shape)
        kept = (draft.keeps_logits, self.sense in draft.shifts)
        codes, log_prob, logits, shift = inputs.call(read_level, target, picking, *kept)
        draft.add_log_prob(log_prob, rows)
        if draft.keeps_logits:
            draft.logits[self.sense].append(logits)
        return codes, shift

    def _read_patches(self, draft: StepDraft, codes: Tensor, at: PatchIndex) -> tuple[Tensor, Tensor | None]:
        """The level's `codes` `(N, n)` with those of some patches picked, and their shift if it is kept."""
        picking = draft.sampler.picking(codes.shape)
        index = (at.row, at.patch, at.rows, at.inside)
        codes, log_prob, shift = LevelInputs.of(self, draft, None).call(
            read_patches, codes, picking, *index, self.sense in draft.shifts, sizes=[(each, 0) for each in index]
        )
        # a patch that only fills up is a patch once more, and its codes are the same; its log probability counts once
        draft.add_log_prob(log_prob[: at.count], at.row[: at.count])
        return codes, shift


class AutoregressiveBlock(Block):
    """Tokens drawn each given those before it: codes of one sense, or words."""

    @abstractmethod
    def draw(self, draft: StepDraft, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens `(n, length)` of `rows` `(n,)`, all by default; and `(n,)`, the draft's log probability of each of
        these rows, with that of the tokens added."""


class AutoregressiveCodes(CodesBlock, AutoregressiveBlock):
    """The codes of the coarsest level, each given those before it in raster order."""

    def _read(self, draft: StepDraft, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if draft.target is not None:
            return super()._read(draft, rows)
        codes, log_prob = self.draw(draft, rows)
        draft.set_log_prob(log_prob, rows)
        if draft.keeps_logits:
            inputs = LevelInputs.of(self, draft, rows)
            draft.logits[self.sense].append(inputs.call(read_level, codes, None, True, False)[2])
        return codes, None

    def draw(self, draft: StepDraft, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        inputs = LevelInputs.of(self, draft, rows)
        codes, log_prob = draw_together(inputs, inputs.call(see_level), draft.sampler)
        return codes, log_prob + (draft.log_prob if rows is None else draft.log_prob[rows])


class TextBlock(AutoregressiveBlock):
    """A text, word by word through the backbone; padding ends it."""

    def predict(self, draft: StepDraft, rows: Tensor | None) -> None:
        index = draft.run.index  # rows that the backbone is no longer run for have no words
        words, log_prob = self.draw(draft, index)
        if rows is None:
            draft.text[self.sense], draft.log_prob = words, log_prob
            return
        index = torch.arange(draft.num_rows, device=rows.device) if index is None else index
        wanted = torch.isin(index, rows)
        draft.text[self.sense] = draft.text[self.sense].index_copy(0, index[wanted], words[wanted])
        draft.set_log_prob(log_prob[wanted], index[wanted])

    def draw(self, draft: StepDraft, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        model, run, words = draft.model, draft.run, []
        log_prob = draft.log_prob if rows is None else draft.log_prob[rows]
        ended, entropy = torch.zeros(run.rows, dtype=torch.bool, device=log_prob.device), torch.zeros_like(log_prob)
        x = model.text_start.detach().expand(run.rows, 1, -1)
        for index in range(model.layout.passes[self.number].length):
            logits = model.table.word_logits(run.words(x))
            if draft.target is None:
                word = pick(logits, draft.sampler.picking(logits.shape[:-1]))
            else:
                word = draft.target.text[self.sense][:, index]
            log_prob = torch.where(ended, log_prob, log_prob + log_prob_of(logits, word))
            if draft.keeps_logits:
                entropy = torch.where(ended, entropy, entropy + entropy_of(logits))
            words.append(word.masked_fill(ended, model.config.pad_token_id))
            ended = ended | (words[-1] == model.config.pad_token_id)
            x = model.table.word_rows(words[-1]).unsqueeze(1)
        draft.word_entropy[self.sense] = entropy
        return torch.stack(words, 1), log_prob


class LatentsBlock(Block):
    """The latents of a sense, what its codes leave over, drawn by its diffusion head."""

    is_discrete = False
    stands_alone = True  # latents correct the codes that are carried over, too

    def needs(self, other: Block) -> bool:
        return other.sense == self.sense and other.level is not None

    def predict(self, draft: StepDraft, rows: Tensor | None) -> None:
        """Draws the latents of the tokens that are seen. Those of other tokens are carried over, and rows that do not
        predict the block have none."""
        rows = torch.arange(draft.num_rows, device=draft.trunk.device) if rows is None else rows
        codes = [level[rows] for level in draft.codes[self.sense]]
        head = SenseLatents(draft.model, self.sense)
        drawn = head.draw(draft.latent_condition(self.sense)[rows], codes, draft.generator)
        shape, now = (draft.num_rows, *drawn.shape[1:]), draft.current.latents.get(self.sense)
        before = drawn.new_full(shape, torch.nan) if now is None else now.clone()
        if draft.seen is not None:
            seen = draft.model.layout.of_sense(self.sense, draft.seen)
            drawn = torch.where(seen[rows].unsqueeze(-1), drawn, before[rows])
        draft.latents[self.sense] = torch.full_like(before, torch.nan).index_copy(0, rows, drawn)


def state_blocks(config: PanConfig, passes: list[Pass]) -> list[Block]:
    """Every block, in the order in which they are predicted: pass by pass, numbers before pictures, latents last."""
    blocks: list[Block] = []
    for number, each in enumerate(passes):
        if not each.levels:
            blocks.append(TextBlock(each.name, each.name, number))
        for name, level in itertools.product(config.drawing_order, each.levels):
            if level < config.senses[name].num_levels:
                is_drawn = level == 0 and config.level0_sampling == "autoregressive"
                block_class = AutoregressiveCodes if is_drawn else CodesBlock
                blocks.append(block_class(f"{name}.{level}", name, number, level))
    last = {block.sense: block.number for block in blocks}
    with_latents = [name for name in config.drawing_order if config.senses[name].latent_dim]
    return blocks + [LatentsBlock(f"{name}.latents", name, last[name]) for name in with_latents]


def may_follow(blocks: list[Block]) -> list[list[bool]]:
    """Whether block `[row][column]` may come straight after block `row - 1`, row 0 being the beginning and the last
    column the end: `(K + 1) x (K + 1)`. Blocks keep their order, and a finer one needs all coarser ones of its
    sense."""

    def may(row: int, column: int) -> bool:
        # what lies between is left out, so nothing that is needed may lie there
        left_out = blocks[row:column]
        return row <= column and not any(blocks[column].needs(other) for other in left_out)

    count = len(blocks)
    return [[may(row, column) for column in range(count)] + [True] for row in range(count + 1)]


# ---- functions that are compiled, see `CompiledStep`. Their first arguments are those of `LevelInputs`


@dataclass
class LevelInputs:
    """The inputs of the readout of one level, of the rows that it is read in.

    Args:
        tokens `(n, P, 3H)`: see `StepLayout.split_tokens`.
        current, coarser: the current codes of all levels, and the new ones of coarser levels.
        numbers `(n, V)`: see `readout_scalars`.
    """

    model: PanModel
    name: str
    level: int
    tokens: Tensor
    current: list[Tensor]
    coarser: list[Tensor]
    tables: LevelTables
    numbers: Tensor | None

    @staticmethod
    def of(block: CodesBlock, draft: StepDraft, rows: Tensor | None) -> LevelInputs:
        """Of `rows` `(n,)`, all by default."""
        name, level, tables = block.sense, block.level, draft.tables.levels[block.sense][block.level]
        tokens, current, coarser = draft.tokens[name], draft.current.codes[name], draft.codes[name][:level]
        numbers = readout_scalars(draft.model, name, draft.numbers, draft.codes)
        if rows is not None:
            current, coarser = [c[rows] for c in current], [c[rows] for c in coarser]
            tokens, numbers = tokens[rows], None if numbers is None else numbers[rows]
        return LevelInputs(draft.model, name, level, tokens, current, coarser, tables, numbers)

    def call(self, function: Callable, *arguments, sizes: Iterable[tuple[Tensor, int]] = ()):
        """Calls one of the functions below, compiled if the step is."""
        inputs = [getattr(self, each.name) for each in fields(self)]
        which, rows = (self.name, self.level), len(self.tokens)
        return self.model.compiled_step(function, *inputs, *arguments, which=which, rows=rows, sizes=sizes)


def draw_together(inputs: LevelInputs, features: Tensor, sampler: CodeSampler) -> tuple[Tensor, Tensor]:
    """Codes of level 0 `(n, codes)`, each drawn given those before it, yet found together, and their log probability
    `(n,)`. Args: features `(n, codes, A)`, see `see_level`.

    With its random number fixed, a code is a function of the codes before it. So all of them are guessed (at first,
    that nothing changes) and guessed again until none changes any more. The result is that of drawing one by one:
    after `i` rounds the first `i` codes are final. A few rounds are enough where most codes hardly depend on one
    another (Song et al. 2021, "Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving"). Rows
    that are done drop out."""
    codes = inputs.current[0].clamp(min=0)
    picking = sampler.picking(codes.shape)
    log_prob = torch.zeros(len(codes), device=codes.device)
    open_rows = torch.arange(len(codes), device=codes.device)
    for _ in range(codes.shape[1]):
        guess, held = codes[open_rows], [level[open_rows] for level in inputs.current]
        numbers = None if inputs.numbers is None else inputs.numbers[open_rows]
        some = None if picking is None else (picking[0][open_rows], picking[1])
        arguments = (inputs.model, inputs.name, features[open_rows], guess, inputs.tables, held, numbers, some)
        drawn, its = inputs.model.compiled_step(guess_codes, *arguments, which=(inputs.name,), rows=len(open_rows))
        codes[open_rows], log_prob[open_rows] = drawn, its
        open_rows = open_rows[(drawn != guess).any(1)]
        if len(open_rows) == 0:
            break
    return codes, log_prob


def see_level(
    model: PanModel, name: str, level: int, tokens: Tensor, current: list[Tensor], coarser: list[Tensor],
    tables: LevelTables, numbers: Tensor | None,
) -> Tensor:  # fmt: skip
    """Features of every code of a level, `(n, codes, A)`."""
    return model.readouts[name][level].features(tokens, current[level], coarser, tables, numbers)


def read_level(
    model: PanModel, name: str, level: int, tokens: Tensor, current: list[Tensor], coarser: list[Tensor],
    tables: LevelTables, numbers: Tensor | None, target: Tensor | None, picking: Picking, keeps_logits: bool,
    keeps_shift: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """A level's codes `(n, codes)`, picked unless a target says what they are; their log probability `(n,)`; their
    logits and their shift if they are kept."""
    readout = model.readouts[name][level]
    x = see_level(model, name, level, tokens, current, coarser, tables, numbers)
    if readout.sentence is not None:
        assert target is not None  # or `guess_codes` reads the level
        x = readout.sentence(x, target.clamp(min=0), tables.drawn)
    logits = readout.logits(x, tables, current, coarser, numbers)
    codes = pick(logits, picking) if target is None else target
    shift = model.senses[name].codebooks[level].shift(logits, codes) if keeps_shift else None
    return codes, log_prob_of(logits, codes), logits if keeps_logits else None, shift


def read_patches(
    model: PanModel, name: str, level: int, tokens: Tensor, current: list[Tensor], coarser: list[Tensor],
    tables: LevelTables, numbers: Tensor | None, codes: Tensor, picking: Picking, row: Tensor, patch: Tensor,
    rows: Tensor, inside: Tensor, keeps_shift: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """A level's `codes` `(N, n)` with those of some patches picked, see [`PatchIndex`]; the log probability of each
    patch, `(F,)`; and the codes' shift if it is kept."""
    now = current[level]
    sense, readout = model.config.senses[name], model.readouts[name][level]
    coarser, some = [c[rows] for c in coarser], None if numbers is None else numbers[rows]
    features = readout.features_at(tokens[rows], now[rows], coarser, tables, some, inside, patch)
    held = group_by_token(now, sense, level)[row, patch]  # (F, codes a patch)
    logits = readout.logits(features, tables, [held] * (level + 1), coarser, some)
    if picking is not None:
        picking = (group_by_token(picking[0], sense, level)[row, patch], picking[1])
    picked = pick(logits, picking)
    slots = group_by_token(codes, sense, level).clone()
    slots[row, patch] = picked
    shift = None
    if keeps_shift:
        moved = model.senses[name].codebooks[level].shift(logits, picked)
        shifts = moved.new_zeros(*slots.shape, moved.shape[-1])
        shifts[row, patch] = moved
        shift = ungroup_tokens(shifts, sense, level)
    return ungroup_tokens(slots, sense, level), log_prob_of(logits, picked), shift


def guess_codes(
    model: PanModel, name: str, features: Tensor, guess: Tensor, tables: LevelTables, current: list[Tensor],
    numbers: Tensor | None, picking: Picking,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Codes `(n, codes)` of level 0, each picked given the guesses before it, and their log probability `(n,)`."""
    readout = model.readouts[name][0]
    assert readout.sentence is not None
    logits = readout.logits(readout.sentence(features, guess, tables.drawn), tables, current, [], numbers)
    drawn = pick(logits, picking)
    return drawn, log_prob_of(logits, drawn)
