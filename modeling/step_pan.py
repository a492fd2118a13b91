"""The codes and words of one step: picked block by block, or read off what truly followed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from .backbone_pan import BackboneRun
from .effort_pan import USUAL_PRICE, Block, Cost, Effort, Meter, SwitchInput, capped_blocks
from .focus_pan import At, Focus, places_in_focus
from .latent_head_pan import SenseLatents, hedged_senses
from .layout_pan import fold_places, spread_codes, unfold_places
from .readout_pan import readout_numbers
from .state_pan import State


class Chooser:
    """Picks the next state block by block, or reads it off a target, and adds up its log probability."""

    def __init__(
        self,
        model,
        current: State,
        tables,
        temperature: float,
        generator,
        target: State | None,
        numbers: Tensor | None = None,
        keeps_logits: bool = False,
        keeps_shifts: bool = False,
    ):
        self.model, self.current, self.tables, self.numbers = model, current, tables, numbers
        self.generator, self.target = generator, target
        # as a tensor: a number would be a constant of a compiled piece
        self.temperature = torch.tensor(float(temperature)) if temperature else None
        self.codes = {name: [] for name in current.codes}
        self.words: dict[str, list[Tensor]] = {name: [] for name in current.text}
        self.log_prob = torch.zeros(len(current.tensors()[0]), device=model.device)
        self.keeps_logits = keeps_logits
        self.logits: dict[str, list[Tensor]] = {name: [] for name in current.codes}
        # by sense and level `(N, n, code_dim)`: what leads from the vectors of the codes to the expected ones
        self.shifts: dict[str, list[Tensor]] = {name: [] for name in hedged_senses(model.config) if keeps_shifts}

    def state(self) -> State:
        if self.target is not None:
            return self.target  # latents included: the next step is given the true state before it
        text = {name: torch.stack(words, 1) for name, words in self.words.items()}
        return State(self.codes, {}, text)

    def writer(self, rows: int) -> Chooser:
        """A chooser of the words of so many rows, some of these."""
        writer = copy.copy(self)
        writer.words = {name: [] for name in self.words}
        writer.log_prob = torch.zeros(rows, device=self.log_prob.device)
        return writer

    def choose_level(
        self,
        name: str,
        level: int,
        places: Tensor,
        rows: Tensor | None = None,
        at: At | None = None,
    ) -> None:
        """Picks the codes of one level, those of each sense coarse first.

        Args:
            places `(N, P, 3H)`: see `StepLayout.split_places`.
            rows `(n,)`: the rows that are picked for, all by default; the others' codes are carried over.
            at: the places of an image that are picked for instead; everywhere by default.
        """
        numbers = readout_numbers(self.model, name, self.numbers, self.codes)
        if rows is None and at is None:
            self._append(name, *self._level(name, level, places, numbers, None))
            return
        codes, shift = self.carried(name, level), None
        if name in self.shifts:  # none where nothing is predicted
            shift = torch.zeros(*codes.shape, self.model.config.senses[name].code_dim, device=codes.device)
        if at is not None and len(at):
            codes, shift = self._level_at(name, level, places, numbers, codes, at)
        elif at is None and len(rows):
            found, moved = self._level(name, level, places, numbers, rows)
            codes = codes.index_copy(0, rows, found)
            shift = None if shift is None else shift.index_copy(0, rows, moved)
        self._append(name, codes, shift)

    def _append(self, name: str, codes: Tensor, shift: Tensor | None) -> None:
        self.codes[name].append(codes)
        if name in self.shifts:
            self.shifts[name].append(shift)

    def _level_at(
        self,
        name: str,
        level: int,
        places: Tensor,
        numbers: Tensor | None,
        codes: Tensor,
        at: At,
    ) -> tuple[Tensor, Tensor | None]:
        """A level's `codes` `(N, num_codes)` with those at some places picked, and their shift if it is kept."""
        now, coarser = self.current.codes[name][level], self.codes[name][:level]
        picking = (self._draws(now.shape), self.temperature)
        codes, found, shift = self.model.pieces(
            read_level_at,
            *(self.model, name, level, places, now, coarser, codes, self.tables.levels[name][level], numbers),
            *(picking, at.row, at.place, at.rows, at.inside, name in self.shifts),
            which=(name, level),
            rows=len(now),
            sizes=[(index, 0) for index in (at.row, at.place, at.rows, at.inside)],
        )
        self._add_log_prob(found[: len(at)], at.row[: len(at)])
        return codes, shift

    def carried(self, name: str, level: int) -> Tensor:
        """A level's codes where it is not predicted: as they were, but what is usual, or absent if nothing is, where
        something coarser has changed."""
        sense, now = self.model.config.senses[name], self.current.codes[name]
        gone = torch.zeros_like(now[level], dtype=torch.bool)
        for coarser in range(level):
            gone |= spread_codes(self.codes[name][coarser] != now[coarser], sense, coarser, level)
        if not level:
            return now[level]
        return torch.where(gone, self.model.senses[name].usual_refinements(self.codes[name][-1], level), now[level])

    def _level(
        self,
        name: str,
        level: int,
        places: Tensor,
        numbers: Tensor | None,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """A level's codes of some rows, all by default, and their shift if it is kept."""
        current, coarser = self.current.codes[name], self.codes[name][:level]
        if rows is not None:
            current, coarser = [c[rows] for c in current], [c[rows] for c in coarser]
            places, numbers = places[rows], None if numbers is None else numbers[rows]
        target = None if self.target is None else self.target.codes[name][level]
        given = (self.model, name, level, places, current, coarser, self.tables.levels[name][level], numbers)
        use = {"which": (name, level), "rows": len(places)}
        if self.model.readouts[name][level].sentence is not None and target is None:
            codes = self._sentence(name, self.model.pieces(see_level, *given, **use), current, numbers, rows)
            if self.keeps_logits:
                self.logits[name].append(self.model.pieces(read_level, *given, codes, None, True, False, **use)[2])
            return codes, None
        picking = None if target is not None else (self._draws(current[level].shape), self.temperature)
        kept = (self.keeps_logits, name in self.shifts)
        codes, found, logits, shift = self.model.pieces(read_level, *given, target, picking, *kept, **use)
        self._add_log_prob(found, rows)
        if self.keeps_logits:
            self.logits[name].append(logits)
        return codes, shift

    def _sentence(
        self, name: str, features: Tensor, current: list[Tensor], numbers: Tensor | None, rows: Tensor | None = None
    ) -> Tensor:
        """Codes of level 0 `(B, n)`, each drawn given those before it, yet found together.

        With its random number fixed, a code is a function of the codes before it. So all of them are guessed (at
        first, that nothing changes) and guessed again until none changes any more, which gives exactly what drawing
        one by one would: after `i` rounds the first `i` codes are final. Where most codes hardly depend on one another
        a few rounds are enough (Song et al. 2021, "Accelerating Feedforward Computation via Parallel Nonlinear
        Equation Solving"). Rows that are done drop out."""
        now = current[0]
        draws, codes = self._draws(now.shape), now.clamp(min=0)
        log_prob = torch.zeros(len(now), device=now.device)
        open_rows = torch.arange(len(now), device=now.device)
        for _ in range(now.shape[1]):
            guess, held = codes[open_rows], [level[open_rows] for level in current]
            told = None if numbers is None else numbers[open_rows]
            picking = (None if draws is None else draws[open_rows], self.temperature)
            given = (self.model, name, features[open_rows], guess, self.tables.levels[name][0], held, told, picking)
            found, likely = self.model.pieces(guess_sentence, *given, which=(name,), rows=len(open_rows))
            codes[open_rows], log_prob[open_rows] = found, likely
            open_rows = open_rows[(found != guess).any(1)]
            if len(open_rows) == 0:
                break
        self._add_log_prob(log_prob, rows)
        return codes

    def _add_log_prob(self, found: Tensor, rows: Tensor | None) -> None:
        self.log_prob = self.log_prob + found if rows is None else self.log_prob.index_add(0, rows, found)

    def choose_word(self, name: str, hidden: Tensor) -> Tensor:
        model, index = self.model, len(self.words[name])
        logits = model.table.word_logits(hidden)
        target = None if self.target is None else self.target.text[name][:, index]
        pad = model.config.pad_token_id
        ended = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        for word in self.words[name]:
            ended |= word == pad
        before = self.log_prob
        word = self._pick(logits, target)
        self.log_prob = torch.where(ended, before, self.log_prob)
        self.words[name].append(torch.where(ended, torch.full_like(word, pad), word))
        return self.words[name][-1]

    def _pick(self, logits: Tensor, target: Tensor | None) -> Tensor:
        """Codes `(B, ...)` from logits `(B, ..., K)`; their log probability at temperature 1 is added up a row."""
        codes = _pick(logits, self._draws(logits.shape[:-1]), self.temperature) if target is None else target
        self._add_log_prob(_log_prob(logits, codes), None)
        return codes

    def _draws(self, shape: torch.Size) -> Tensor | None:
        """The random numbers behind so many codes, uniform in [0, 1); None where nothing is drawn."""
        if self.temperature is None:
            return None
        return torch.rand(shape, generator=self.generator, device=self.model.device)


def _pick(logits: Tensor, draws: Tensor | None, temperature: Tensor | None) -> Tensor:
    """Inverts the cumulative distribution: one random number a code, where `torch.multinomial` draws one for each
    of K. The last 1e-6 of it is left out, so that no rounding draws a row that is not live. Without draws, the
    likeliest."""
    if draws is None:
        return logits.argmax(-1)
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    level = draws.unsqueeze(-1) * (1 - 1e-6) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, level, right=True).squeeze(-1)


def _log_prob(logits: Tensor, codes: Tensor) -> Tensor:
    """Log probability of codes `(B, ...)` under logits `(B, ..., K)`, added up a row: `(B,)`; what is absent (below 0)
    is not asked for."""
    chosen = logits.gather(-1, codes.clamp(min=0).unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    chosen = chosen.masked_fill(codes < 0, 0.0)
    return chosen.reshape(len(chosen), -1).sum(-1)


# ---- pieces of a step, see `compile_pan`. Of a level: places `(N, P, 3H)`, see `StepLayout.split_places`; the current
# codes `(N, n)`, and the new ones of coarser levels; its `LevelTables`; numbers, see `readout_pan`; picking, the
# random numbers and the temperature, see `_pick`


def see_level(model, name: str, level: int, places, current: list, coarser: list, tables, numbers) -> Tensor:
    """Features of every code of a level, `(N, n, A)`."""
    return model.readouts[name][level].features(places, current[level], coarser, tables, numbers)


def read_level(
    model, name: str, level: int, places, current: list, coarser: list, tables, numbers,
    target: Tensor | None, picking: tuple | None, keeps_logits: bool, keeps_shift: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """A level's codes `(N, n)`, picked unless a target says what they are; their log probability `(N,)`; their logits
    and their shift if they are kept."""
    readout = model.readouts[name][level]
    x = see_level(model, name, level, places, current, coarser, tables, numbers)
    if readout.sentence is not None:
        x = readout.sentence(x, target.clamp(min=0), tables.drawn)
    logits = readout.logits(x, tables, current, coarser, numbers)
    draws, temperature = picking or (None, None)
    codes = _pick(logits, draws, temperature) if target is None else target
    shift = model.senses[name].codebooks[level].shift(logits, codes) if keeps_shift else None
    return codes, _log_prob(logits, codes), logits if keeps_logits else None, shift


def read_level_at(
    model, name: str, level: int, places, now: Tensor, coarser: list, codes: Tensor, tables, numbers,
    picking: tuple, row: Tensor, place: Tensor, rows: Tensor, inside: Tensor, keeps_shift: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """A level's `codes` `(N, n)` with those at some places picked, see `focus_pan.At`; the log probability of each
    place, `(F,)`; and the codes' shift if it is kept."""
    sense, readout = model.config.senses[name], model.readouts[name][level]
    coarser, told = [c[rows] for c in coarser], None if numbers is None else numbers[rows]
    features = readout.features_at(places[rows], now[rows], coarser, tables, told, inside, place)
    held = fold_places(now, sense, level)[row, place]  # (F, codes a place)
    logits = readout.logits(features, tables, [held] * (level + 1), coarser, told)
    draws, temperature = picking
    found = _pick(logits, None if draws is None else fold_places(draws, sense, level)[row, place], temperature)
    slots = fold_places(codes, sense, level).clone()
    slots[row, place] = found
    shift = None
    if keeps_shift:
        there = model.senses[name].codebooks[level].shift(logits, found)
        shifts = there.new_zeros(*slots.shape, there.shape[-1])
        shifts[row, place] = there
        shift = unfold_places(shifts, sense, level)
    return unfold_places(slots, sense, level), _log_prob(logits, found), shift


def guess_sentence(
    model, name: str, features: Tensor, guess: Tensor, tables, current: list, numbers, picking: tuple
) -> tuple[Tensor, Tensor]:
    """Codes `(N, n)` of a sentence, each picked given the guesses before it, and their log probability `(N,)`."""
    readout = model.readouts[name][0]
    logits = readout.logits(readout.sentence(features, guess, tables.drawn), tables, current, [], numbers)
    found = _pick(logits, *picking)
    return found, _log_prob(logits, found)


# ---- Spending an effort: one imagined step, block by block, each row as far as it is wanted.
#
# The walk over the blocks is the same whoever decides: a fixed or capped set, the same for all rows, or the switch,
# row by row. A row that has ended takes no part in later passes, readouts or denoiser calls.
#
# Shapes: N = rows, H = steps, K = blocks, P = places of all senses.


class Spending:
    """What a call of `simulate` spends.

    Args:
        model ([`PanModel`]): that imagines.
        effort ([`Effort`]): how much.
        seed (`int`, *optional*): of the latents, and of the switch where it is sampled.
        follows (names of blocks, *optional*): what is predicted whatever the effort says, for training the switch.
        records (`bool`): keep what choices were made from in `decisions`, and draw the switch's instead of taking the
            most likely: for training it.

    Attributes:
        decisions: by step, the switch's inputs and choices, a list of `(SwitchInput, rows (n,), choice (n,))`.
    """

    def __init__(
        self,
        model,
        effort: Effort,
        seed: int | None = None,
        follows: tuple[str, ...] | None = None,
        records: bool = False,
    ):
        self.model, self.effort, self.blocks, self.prices = model, effort, model.blocks, model.prices
        wanted = effort.blocks if follows is None else follows
        if effort.cap is not None:
            wanted = capped_blocks(model, effort.cap)
        self.wanted = None if wanted is None else frozenset(wanted)  # None: the switch decides
        self.least_change = effort.least_change if len(model.glances) else None
        self.records, self.decisions = records, []
        self.generator = None if seed is None else torch.Generator(device=model.device).manual_seed(seed)
        self._steps: list[tuple[Tensor, Tensor, Meter]] = []

    @property
    def may_draw_latents(self) -> bool:
        """Whether latents may be among what is predicted."""
        blocks = self.blocks if self.wanted is None else [b for b in self.blocks if b.name in self.wanted]
        return any(block.kind == "latents" for block in blocks)

    # ---- one step

    def look(self, change: dict[str, Tensor]) -> Focus | None:
        """The places to look at, from the glances' logits of a change."""
        self.places, self._seen = None, {}
        if self.least_change is None:
            return None
        focus = places_in_focus(self.model.config, change, self.least_change, fewest=self.model.pieces.least_size)
        self.places = focus.mask(self.model.layout.num_places)
        return focus

    def begin(self, run: BackboneRun, chooser, trunk: Tensor, embedded: Tensor, tables) -> None:
        """Takes up a step: its run of the backbone, the chooser of its codes, and its embeddings."""
        self.run, self.chooser, self.trunk, self.embedded, self.tables = run, chooser, trunk, embedded, tables
        self.rows, count, device = len(trunk), len(self.blocks), trunk.device
        self.meter = Meter(self.prices, self.rows, device)
        self.chosen = torch.zeros(self.rows, count, dtype=torch.bool, device=device)
        self.changed = torch.zeros(self.rows, count, device=device)
        self.next = torch.full((self.rows,), count, device=device)
        self.nobody = torch.zeros(0, dtype=torch.long, device=device)
        self.texts, self.latents, self._passed = dict(chooser.current.text), {}, -1
        self.pooled = torch.zeros_like(trunk[:, 0])
        self.decisions.append([])

    def predict(self) -> State:
        """Predicts the next state, block by block."""
        for number, block in enumerate(self.blocks):
            self._pass(block)
            rows = self._takers(number, block)
            is_taken = rows is None or len(rows) > 0
            if block.kind == "codes":
                self._codes(number, block, rows)
            elif is_taken:
                {"text": self._text, "latents": self._latents}[block.kind](block, self._numbers(rows))
            if is_taken:
                self.chosen[_of(rows), number] = True
                self.meter.read(block, self._share(block, rows), rows)
                self._decide(rows, number)
        places = self.places
        if places is None:
            shape = (self.rows, self.model.layout.num_places)
            places = torch.ones(shape, dtype=torch.bool, device=self.next.device)
        self._steps.append((self.chosen, places, self.meter))
        return State(self.chooser.codes, self.latents, self.texts)

    def _takers(self, number: int, block: Block) -> Tensor | None:
        """The rows that predict a block, `(n,)`; None for all."""
        if self.wanted is not None:
            return None if block.name in self.wanted else self.nobody
        rows = (self.next == number).nonzero().squeeze(1)
        return None if len(rows) == self.rows else rows

    def _numbers(self, rows: Tensor | None) -> Tensor:
        return torch.arange(self.rows, device=self.next.device) if rows is None else rows

    def _pass(self, block: Block) -> None:
        """Runs the pass that a block is read from, once, for the rows that still want it or something behind it."""
        if block.number <= self._passed:
            return
        each, first = self.model.layout.passes[block.number], self._passed < 0
        if not first and not self._goes_on(block):
            return
        self._passed = block.number
        if each.levels:
            queries = self.model.embed_queries(each, self.embedded, self.chooser.codes, self.tables)
            self.run.queries(each, queries)
            self.meter.run(self.run.ran[each.name], self.run.index)
            self.split = self.model.layout.split_places(each, self.run.hidden[each.name], self.trunk)
            if self._is_asked:
                self.pooled = self._pooled(each)
        elif first:
            self.meter.run(self.run.lead())
        if first:
            self._decide(None, -1)

    def _goes_on(self, block: Block) -> bool:
        """Whether any row wants a block's pass or a later one; the others are not run any more."""
        if self.wanted is not None:
            return any(other.number >= block.number for other in self.blocks if other.name in self.wanted)
        numbers = torch.tensor([other.number for other in self.blocks] + [-1], device=self.next.device)
        index = (numbers[self.next] >= block.number).nonzero().squeeze(1)
        if len(index):
            self.run.keep(index)
        return len(index) > 0

    @property
    def _is_asked(self) -> bool:
        """Whether the switch's inputs are needed."""
        return self.wanted is None or self.records

    def _pooled(self, each) -> Tensor:
        """The mean over the queries of a pass that were run, `(N, H)`."""
        hidden = self.run.hidden[each.name]
        if self.places is None:
            return hidden.mean(1)
        return hidden.sum(1) / self.places.sum(1, keepdim=True).clamp(min=1)

    def _codes(self, number: int, block: Block, rows: Tensor | None) -> None:
        places = self.split.get(block.sense) if rows is None or len(rows) else None
        self.chooser.choose_level(block.sense, block.level, places, rows, self._looked_at(block, rows))
        if self._is_asked:
            now = self.chooser.current.codes[block.sense][block.level]
            changed = (self.chooser.codes[block.sense][block.level] != now).float().mean(1)
            self.changed[_of(rows), number] = changed[_of(rows)]

    def _sense_places(self, name: str) -> Tensor | None:
        """The part of `places` that is a sense's."""
        if self.places is None:
            return None
        start = self.model.layout.place_starts[name]
        return self.places[:, start : start + self.model.config.senses[name].num_places]

    def _looked_at(self, block: Block, rows: Tensor | None) -> At | None:
        """The rows and places of an image that are looked at, of `rows`; None where everything is."""
        places = self._sense_places(block.sense)
        if places is None or block.sense not in self.model.glances:
            return None
        if rows is not None:
            chosen = torch.zeros(self.rows, 1, dtype=torch.bool, device=places.device).index_fill(0, rows, True)
            return At.of(places & chosen, self.model.pieces)
        if block.sense not in self._seen:
            self._seen[block.sense] = At.of(places, self.model.pieces)
        return self._seen[block.sense]

    def _share(self, block: Block, rows: Tensor | None) -> Tensor | float:
        places = None if block.kind == "text" else self._sense_places(block.sense)
        return 1.0 if places is None else places[_of(rows)].float().mean(1)

    def _text(self, block: Block, rows: Tensor) -> None:
        each = self.model.layout.passes[block.number]
        writer = self.chooser.writer(self.run.rows)
        self.model._choose_text(each, self.run, writer)
        self.meter.run(self.run.ran[each.name], self.run.index)
        index = self._numbers(self.run.index)
        wanted = torch.isin(index, rows)
        words = self.texts[block.sense].clone()
        words[index[wanted]] = torch.stack(writer.words[block.sense], 1)[wanted]
        self.texts[block.sense] = words
        self.chooser.log_prob = self.chooser.log_prob.index_add(0, index[wanted], writer.log_prob[wanted])

    def _latents(self, block: Block, rows: Tensor) -> None:
        """Draws a sense's latents where it is looked at; elsewhere they stay, if there were any."""
        name, now = block.sense, self.chooser.current.latents.get(block.sense)
        so_far = State(self.chooser.codes, {}, self.texts)
        told = (so_far, self.tables, self.chooser.shifts.get(name))
        latents = SenseLatents(self.model, name)
        condition = latents.condition(self.run.hidden, self.trunk, *told)[rows]
        drawn = latents.draw(condition, [level[rows] for level in so_far.codes[name]], self.generator)
        shape = (self.rows, *drawn.shape[1:])
        found = drawn.new_full(shape, torch.nan) if now is None else now.clone()
        places = self._sense_places(name)
        if places is not None:
            drawn = torch.where(places[rows].unsqueeze(-1), drawn, found[rows])
        stays = torch.ones(shape[0], dtype=torch.bool, device=drawn.device).index_fill(0, rows, False)
        self.latents[name] = found.index_copy(0, rows, drawn).masked_fill(stays.view(-1, 1, 1), torch.nan)

    # ---- who decides

    def _decide(self, rows: Tensor | None, number: int) -> None:
        """What comes after block `number` (-1: at the beginning) in these rows."""
        if not self._is_asked:
            return
        given = self._switch_input(rows)
        if self.wanted is not None:
            follower = next((k for k, b in enumerate(self.blocks) if k > number and b.name in self.wanted), None)
            choice = torch.full_like(given.task, len(self.blocks) if follower is None else follower)
        elif self.records:
            choice = torch.multinomial(self.model.switch(given).softmax(-1), 1, generator=self.generator).squeeze(1)
        else:
            choice = self.model.switch(given).argmax(-1)
        if self.records:
            self.decisions[-1].append((given, self._numbers(rows), choice))
        self.next[_of(rows)] = choice

    def _switch_input(self, rows: Tensor | None) -> SwitchInput:
        some, device = _of(rows), self.next.device
        count = self.rows if rows is None else len(rows)
        price = USUAL_PRICE if self.effort.price is None else self.effort.price
        share = torch.ones(count, device=device) if self.places is None else self.places[some].float().mean(1)
        return SwitchInput(
            trunk=self.run.hidden["action"][some],
            places=self.pooled[some],
            chosen=self.chosen[some].clone(),
            changed=self.changed[some].clone(),
            focus=share,
            price=torch.full((count,), price, device=device),
            task=torch.full((count,), self.effort.task_number, device=device),
        )

    # ---- what was spent

    def switch(self) -> Tensor:
        """Which blocks were predicted, `(N, H, K)` bool."""
        return torch.stack([chosen for chosen, _, _ in self._steps], 1)

    def focus(self) -> Tensor:
        """Which places were looked at, `(N, H, P)` bool."""
        return torch.stack([places for _, places, _ in self._steps], 1)

    def cost(self, seconds: float) -> Cost:
        """What was spent, by row and step."""
        meters = [meter for _, _, meter in self._steps]
        return Cost(
            tokens=torch.stack([meter.tokens for meter in meters], 1),
            denoiser_calls=torch.stack([meter.denoiser_calls for meter in meters], 1),
            compute=torch.stack([meter.compute for meter in meters], 1),
            seconds=seconds,
        )


def _of(rows: Tensor | None) -> Tensor | slice:
    """An index of rows; None for all."""
    return slice(None) if rows is None else rows
