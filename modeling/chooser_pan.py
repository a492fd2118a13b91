"""The codes and words of one step: picked block by block, or read off what truly followed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from .belief_pan import ABSENT, State
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
    ):
        self.model, self.current, self.tables, self.numbers = model, current, tables, numbers
        self.temperature, self.generator, self.target = temperature, generator, target
        self.codes = {name: [] for name in current.codes}
        self.words: dict[str, list[Tensor]] = {name: [] for name in current.text}
        self.log_prob = torch.zeros(len(current.tensors()[0]), device=model.device)
        self.keeps_logits = keeps_logits
        self.logits: dict[str, list[Tensor]] = {name: [] for name in current.codes}

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
            self.codes[name].append(self._level(name, level, places, numbers, None))
            return
        codes = self.carried(name, level)
        if at is not None and len(at):
            codes = self._level_at(name, level, places, numbers, codes, at)
        elif at is None and len(rows):
            codes = codes.index_copy(0, rows, self._level(name, level, places, numbers, rows))
        self.codes[name].append(codes)

    def _level_at(
        self,
        name: str,
        level: int,
        places: Tensor,
        numbers: Tensor | None,
        codes: Tensor,
        at: At,
    ) -> Tensor:
        """A level's `codes` `(N, num_codes)` with those at some places picked."""
        readout, tables = self.model.readouts[name][level], self.tables.levels[name][level]
        some, row, place = at.rows, at.row, at.place
        now, coarser = self.current.codes[name][level], [c[some] for c in self.codes[name][:level]]
        told = None if numbers is None else numbers[some]
        features = readout.features_at(places[some], now[some], coarser, tables, told, at.inside, place)
        sense, draws = self.model.config.senses[name], self._draws(now.shape)
        held = fold_places(now, sense, level)[row, place]  # (F, codes a place)
        logits = readout.logits(features, tables, [held] * (level + 1), coarser, told)
        drawn = None if draws is None else fold_places(draws, sense, level)[row, place]
        found = self._draw(logits, drawn)
        self._add_log_prob(_log_prob(logits, found), row)
        slots = fold_places(codes, sense, level).clone()
        slots[row, place] = found
        return unfold_places(slots, sense, level)

    def carried(self, name: str, level: int) -> Tensor:
        """A level's codes where it is not predicted: as they were, but absent where something coarser has changed."""
        sense, now = self.model.config.senses[name], self.current.codes[name]
        gone = torch.zeros_like(now[level], dtype=torch.bool)
        for coarser in range(level):
            gone |= spread_codes(self.codes[name][coarser] != now[coarser], sense, coarser, level)
        return now[level].masked_fill(gone, ABSENT)

    def _level(
        self,
        name: str,
        level: int,
        places: Tensor,
        numbers: Tensor | None,
        rows: Tensor | None,
    ) -> Tensor:
        readout, tables = self.model.readouts[name][level], self.tables.levels[name][level]
        current, coarser = self.current.codes[name], self.codes[name][:level]
        if rows is not None:
            current, coarser = [c[rows] for c in current], [c[rows] for c in coarser]
            places, numbers = places[rows], None if numbers is None else numbers[rows]
        features = readout.features(places, current[level], coarser, tables, numbers)
        target = None if self.target is None else self.target.codes[name][level]
        if readout.sentence is not None and target is None:
            codes = self._sentence(readout, tables, features, current, numbers, rows)
            if self.keeps_logits:
                x = readout.sentence(features, codes, tables.drawn)
                self.logits[name].append(readout.logits(x, tables, current, coarser, numbers))
            return codes
        if readout.sentence is not None:
            features = readout.sentence(features, target, tables.drawn)
        logits = readout.logits(features, tables, current, coarser, numbers)
        if self.keeps_logits:
            self.logits[name].append(logits)
        return self._pick(logits, target, rows)

    def _sentence(
        self, readout, tables, features, current: list[Tensor], numbers: Tensor | None, rows: Tensor | None = None
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
            x = readout.sentence(features[open_rows], guess, tables.drawn)
            logits = readout.logits(x, tables, held, [], told)
            found = self._draw(logits, None if draws is None else draws[open_rows])
            codes[open_rows], log_prob[open_rows] = found, _log_prob(logits, found)
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

    def _pick(self, logits: Tensor, target: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """Codes `(B, ...)` from logits `(B, ..., K)` of `rows`; their log probability at temperature 1 is added up a
        row."""
        codes = self._draw(logits, self._draws(logits.shape[:-1])) if target is None else target
        self._add_log_prob(_log_prob(logits, codes), rows)
        return codes

    def _draws(self, shape: torch.Size) -> Tensor | None:
        """The random numbers behind so many codes, uniform in [0, 1); None where nothing is drawn."""
        if self.temperature == 0:
            return None
        return torch.rand(shape, generator=self.generator, device=self.model.device)

    def _draw(self, logits: Tensor, draws: Tensor | None) -> Tensor:
        """Inverts the cumulative distribution: one random number a code, where `torch.multinomial` draws one for each
        of K. The last 1e-6 of it is left out, so that no rounding draws a row that is not live."""
        if draws is None:
            return logits.argmax(-1)
        cumulative = (logits / self.temperature).softmax(-1).cumsum(-1)
        level = draws.unsqueeze(-1) * (1 - 1e-6) * cumulative[..., -1:]
        return torch.searchsorted(cumulative, level, right=True).squeeze(-1)


def _log_prob(logits: Tensor, codes: Tensor) -> Tensor:
    """Log probability of codes `(B, ...)` under logits `(B, ..., K)`, added up a row: `(B,)`."""
    chosen = logits.gather(-1, codes.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    return chosen.reshape(len(chosen), -1).sum(-1)
