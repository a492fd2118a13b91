"""The codes and words of one step: picked block by block, or read off what truly followed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from .belief_pan import State
from .focus_pan import At
from .numbers_pan import readout_numbers
from .senses_pan import fold_places, spread_codes, unfold_places


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
        self.shifts: dict[str, list[Tensor]] = {name: [] for name in model.hedged_senses if keeps_shifts}

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
            places `(N, P, 3H)`: see `PanModel.split_places`.
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
        logits = model.word_logits(hidden)
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
    """Log probability of codes `(B, ...)` under logits `(B, ..., K)`, added up a row: `(B,)`."""
    chosen = logits.gather(-1, codes.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    return chosen.reshape(len(chosen), -1).sum(-1)


# ---- pieces of a step, see `pieces_pan`. Of a level: places `(N, P, 3H)`, see `PanModel.split_places`; the current
# codes `(N, n)`, and the new ones of coarser levels; its `LevelTables`; numbers, see `numbers_pan`; picking, the
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
        x = readout.sentence(x, target, tables.drawn)
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
