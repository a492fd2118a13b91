"""Spending an effort: one imagined step, block by block, each row as far as it is wanted.

The walk over the blocks is the same whoever decides: a fixed or capped set, the same for all rows, or the switch, row
by row. A row that has ended takes no part in later passes, readouts or denoiser calls.

Shapes: N = rows, H = steps, K = blocks, P = places of all senses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .belief_pan import State
from .effort_pan import Block, Cost, Effort, Meter, capped_blocks
from .focus_pan import At, Focus, places_in_focus
from .run_pan import BackboneRun
from .switch_pan import USUAL_PRICE, SwitchInput


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
            self.split = self.model.split_places(each, self.run.hidden[each.name], self.trunk)
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
        start = self.model.place_starts[name]
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
        condition = self.model.latent_condition(name, self.run.hidden, self.trunk, *told)
        drawn = self.model.draw_latents(name, condition[rows], so_far, self.generator, rows)
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
