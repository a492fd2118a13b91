"""Using the world model: perceive, simulate, log_prob (the belief, world model and decoder of equation 6).

One imagined step is as many backbone passes as the layout has, one where the levels fold: the current state, the
action and the first pass's queries share a forward, and what is not trunk is dropped from the cache again. With an
`effort` a step predicts some blocks alone, row by row, and looks at some places alone; see `step_pan`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .backbone_pan import BackboneRun
from .compile_pan import Pieces
from .effort_pan import Effort, as_effort
from .embedding_pan import CodeTables
from .image_codec_pan import LATENT_BLUR
from .latent_head_pan import SenseLatents, draw_latents
from .layout_pan import hide_padding
from .readout_pan import step_numbers
from .sense_configuration_pan import ACTION, action_shape, check_observation, has_action_shape
from .state_pan import Actions, Belief, Futures, LogProb, Observation, State, action_tensors, as_action
from .step_pan import Chooser, Spending


class _Step:
    """The result of one imagined step."""

    def __init__(self, chooser: Chooser, state: State, hidden: dict[str, Tensor], trunk: Tensor):
        self.state, self.log_prob, self.logits, self.shifts = state, chooser.log_prob, chooser.logits, chooser.shifts
        self.hidden, self.trunk = hidden, trunk


class SimulationMixin:
    """`perceive`, `simulate`, `log_prob` and `teacher_forced` of [`PanModel`]."""

    @torch.no_grad()
    def perceive(self, observation: dict[str, Tensor], action: Tensor | None = None, **_) -> Belief:
        """Encodes what was observed into a belief about now.

        Args:
            observation: per sense `(B, T, ...)`, as the processor makes it; constant text `(B, max_length)`; in which
                frames a sense is there, if not in all, see [`Observation`].
            action: the T - 1 actions between the frames, `(B, T - 1, ...)`, by name where they have several parts; may
                be None if T is 1.

        Returns:
            [`Belief`] of batch B at the last frame, holding up to `config.context_steps - 1` earlier steps.

        Raises:
            ValueError: senses that do not fit the configuration, or frames without the actions between them.
        """
        action = as_action(action)
        self._check_past(observation, action)
        state = self.encode(observation)
        steps = state.tensors()[0].shape[1]
        first = max(0, steps - self.config.context_steps)
        history = [(state.map(lambda t, i=i: t[:, i]), action[:, i]) for i in range(first, steps - 1)]
        belief = Belief(state.map(lambda t: t[:, -1]), history, self.prefix_ids(observation), None, self)
        return self._rebuild(belief, self.table.code_tables())

    def _check_past(self, observation: dict[str, Tensor], action: Tensor | Actions | None) -> None:
        self._require_world()
        check_observation(self.config, observation, needs_prefix=True)
        rows, steps = Observation(observation, self.config.prefix_senses).shape
        given = 0 if action is None else action.shape[1]
        if given not in (steps - 1, steps):
            raise ValueError(f"{steps} frames need the {steps - 1} actions between them, got {given}.")
        if given == 0:
            return
        for what, described, part in self._named_parts("action", action):
            if not has_action_shape(described, part) or tuple(part.shape[:2]) != (rows, given):
                expected = f"{action_shape(described, 'T - 1')} with B = {rows}"
                raise ValueError(f"{what} must be {expected}, as the frames; got {tuple(part.shape)}.")
            described.check_values(part)

    def compile_step(self, disable: bool = False, **options) -> None:
        """Lets every step that is imagined or scored from now on run compiled: `simulate`, `log_prob`, planners.

        Graphs are made by the first steps: for one row, for several, and where there are convolutions for sixteen and
        more. Within these none is made anew when there are other rows, places that are looked at, steps that are
        remembered, weights or tokens. They are neither saved nor copied with the model.

        Args:
            disable (`bool`): leave compiled steps again.
            options: of `torch.compile`: backend, mode, options. Without any, and with the model on CPU, PyTorch's
                compiler writes the calls between its kernels in C++. Each graph is whole (`fullgraph=True`), and what
                is dynamic in it is known.

        Raises:
            ValueError: a model without senses, or an option that is not left to the caller.
        """
        self._require_world()
        if fixed := sorted({"fullgraph", "dynamic", "isolate_recompiles"} & set(options)):
            raise ValueError(f"`compile_step` decides on {fixed} itself; give it backend, mode or options.")
        if not options and self.device.type == "cpu":  # a small model's time goes to calls, and these cost less
            options = {"options": {"cpp_wrapper": True}}
        self.pieces = Pieces(None if disable else options)

    def _tables(self) -> CodeTables:
        return self.pieces(whole_tables, self) if self.pieces.are_compiled else self.table.code_tables()

    def _require_world(self) -> None:
        if not self.is_world_model:
            raise ValueError("This model has no senses, so it is a language model only; see PanModel.from_backbone.")

    def _rebuild(self, belief: Belief, tables: CodeTables | None = None) -> Belief:
        """Fills the cache from the belief's prefix and history."""
        layout, parts = self.layout, []
        if belief.prefix is not None:
            parts.append(self.get_input_embeddings()(belief.prefix))
        for state, action in belief.history:
            embedded = self.embed_state(state, tables)
            parts.append(self.embed_step(state, embedded, self.embed_action(action, tables), tables)[0])
        if not parts:
            belief.cache = None
            return belief
        x = torch.cat(parts, 1)
        steps, total = len(belief.history), x.shape[1]
        trunk = torch.arange(layout.prefix_length + steps * layout.step_length)
        keep = (trunk - layout.prefix_length) % layout.step_length < layout.trunk_length
        keep |= trunk < layout.prefix_length
        mask = layout.window_mask(steps)[keep][:, keep].to(x.device).view(1, 1, total, total)
        belief.cache = DynamicCache()
        self.run_backbone(x, self._masked(mask, belief), torch.arange(total, device=x.device), belief.cache)
        return belief

    def _masked(self, mask: Tensor, belief: Belief) -> Tensor:
        return mask if belief.prefix is None else hide_padding(mask, belief.prefix, self.config.pad_token_id)

    @torch.no_grad()
    def simulate(
        self,
        belief: Belief,
        actions: Tensor,
        num_rollouts: int = 1,
        temperature: float = 1.0,
        seed: int | None = None,
        expected: Collection[int] = (),
        effort: Effort | str | Collection[str] | None = None,
        reencode: int = 0,
    ) -> Futures:
        """Imagines what follows from actions.

        Args:
            belief: of batch B; it is left as it was, and its past is not computed again.
            actions: `(B, H)` ints, `(B, H, dim)` floats or `(B, H, max_length)` ids: H actions a row; by name where
                they have several parts.
            num_rollouts (`int`): futures drawn for each row; N = B * num_rollouts, those of a row one after the other.
            temperature (`float`): of the sampling of codes and words; 0 takes the most likely.
            seed (`int`, *optional*): makes the futures reproducible; codes and latents have generators of their own.
            expected (`Collection[int]`): steps, 0 the first, of which the *expected* images are decoded too: those of
                the mean code vectors under the probabilities that the step's codes were chosen from, each level given
                the coarser codes chosen. They are meant to be near to what will be seen in squared error, and are
                blurred where several futures are open.
            effort ([`Effort`], `str` or names of blocks, *optional*): what of the next states is predicted: "all",
                "focused" (all codes, where something is likely to change), "coarsest", "auto" (the model's switch
                decides), the names of `model.blocks` to predict, or an [`Effort`] with a cap, a price or a task.
                Without one, every discrete block everywhere, and latents when something is decoded and they help.
            reencode (`int`): against drift, after every so many steps what was imagined is decoded and encoded anew,
                and the next step is predicted from that; 0: never.

        Returns:
            [`Futures`] of N rows and H steps; observations are decoded only when asked for. With an effort,
            `futures.switch` says what was predicted and `futures.cost` what it cost.

        Raises:
            ValueError: rows of actions do not match the belief, an action or an expected step is out of range, an
                effort that this model cannot make, or one with expected images, or `reencode` is below 0.
        """
        self._require_world()
        actions = self._checked_actions(belief, actions)
        wrong = [step for step in expected if not 0 <= step < actions.shape[1]]
        if wrong:
            raise ValueError(f"`expected` steps must be 0 to {actions.shape[1] - 1}, got {wrong}.")
        if effort is not None and expected:
            raise ValueError("`expected` images take every code everywhere, so they go with no `effort`.")
        if reencode < 0:
            raise ValueError(f"`reencode` is a number of steps, or 0 for never; got {reencode}.")
        if num_rollouts > 1:
            belief, actions = belief.repeat(num_rollouts), actions.repeat_interleave(num_rollouts, 0)
        spending = None if effort is None else Spending(self, as_effort(effort, self), seed)
        return self.rollout(belief, actions, temperature, seed, expected, spending, reencode)

    @torch.no_grad()
    def rollout(
        self,
        belief: Belief,
        actions: Tensor,
        temperature: float = 1.0,
        seed: int | None = None,
        expected: Collection[int] = (),
        spending: Spending | None = None,
        reencode: int = 0,
    ) -> Futures:
        """`simulate` of a belief and actions `(N, H, ...)` that were checked, with a `spending` made by the caller,
        who learns from it what was decided."""
        started = time.perf_counter()
        generator = None if seed is None else torch.Generator(device=actions.device).manual_seed(seed)
        tables = self._tables()
        embedded = self.embed_state(belief.state, tables)
        before = embedded if not belief.state.latents else self.embed_state(belief.state.without_latents(), tables)
        steps, outcomes, pasts, conditions = [], [], [], {name: [] for name in self.latent_heads}
        images = {name: [] for name, codec in self.senses.items() if codec.can_grow and expected}
        for index in range(actions.shape[1]):
            step, belief = self._advance(
                belief,
                actions[:, index],
                temperature,
                generator,
                tables=tables,
                embedded=embedded,
                keeps_logits=index in expected,
                keeps_shifts=spending is None,
                spending=spending,
            )
            for name in images if index in expected else ():
                probabilities = [logits.softmax(-1) for logits in step.logits[name]]
                codec = self.senses[name]
                images[name].append(codec.as_output(codec.decode_probabilities(probabilities)))
            step.logits = {}  # they are large, and the step is kept
            given = (self, before, step.state.without_latents(), step.hidden["action"], tables)
            after, reward, continue_prob = self.pieces(judge, *given, rows=len(actions))
            outcomes.append((reward, continue_prob))
            for name in conditions if spending is None else ():
                conditions[name].append(self._step_condition(name, step, tables))
            before = embedded = after
            if step.state.latents:
                embedded = self.embed_state(step.state, tables)
            elif self.config.latent_feedback and spending is None:
                newest = {name: parts[-1] for name, parts in conditions.items()}
                drawn = draw_latents(self, newest, step.state, generator)
                belief.state.latents = step.state.latents = drawn
                embedded = self.embed_state(step.state, tables)
            if reencode and (index + 1) % reencode == 0:
                newest = {name: parts[-1] for name, parts in conditions.items() if parts}
                belief.state = self._seen_again(step.state, newest, generator)
                before = self.embed_state(belief.state.without_latents(), tables)
                embedded = self.embed_state(belief.state, tables)
            steps.append(step)
            pasts.append((belief.history, belief.ages))
        rewards, continues = zip(*outcomes, strict=True)
        return Futures(
            state=State.combine([step.state for step in steps], lambda tensors: torch.stack(tensors, 1)),
            log_prob=torch.stack([step.log_prob for step in steps], 1),
            reward=torch.stack(rewards, 1),
            continue_prob=torch.stack(continues, 1),
            belief=belief,
            conditions={name: torch.stack(parts, 1) for name, parts in conditions.items() if parts},
            seed=seed,
            switch=None if spending is None else spending.switch(),
            focus=None if spending is None else spending.focus(),
            cost=None if spending is None else spending.cost(time.perf_counter() - started),
            expected={name: torch.stack(parts, 1) for name, parts in images.items()},
            pasts=pasts,
        )

    def _seen_again(self, state: State, conditions: dict[str, Tensor], generator: torch.Generator | None) -> State:
        """An imagined state as it would be encoded if it were seen: decoded, its latents drawn where they help and are
        not there, and encoded."""
        helpful = [name for name in conditions if self.senses[name].latents_help]
        drawn = draw_latents(self, {name: conditions[name] for name in helpful}, state, generator)
        whole = State(state.codes, drawn | state.latents, state.text)
        seen = {name: self.decode(whole, name).unsqueeze(1) for name in self.config.place_senses}
        seen |= {name: words.unsqueeze(1) for name, words in state.text.items()}
        return self.encode(seen).map(lambda tensor: tensor[:, 0])

    def _named_parts(self, what: str, action: Tensor | Actions) -> list[tuple[str, Any, Tensor]]:
        """The parts of an action: what they are called in messages, their descriptions, and their tensors. Raises
        ValueError where these are not the parts that the model has."""
        parts = action.parts if isinstance(action, Actions) else {ACTION: action}
        if set(parts) != set(self.config.actions):
            raise ValueError(f"`{what}` must have the parts {list(self.config.actions)} by name, got {list(parts)}.")
        names = [f"`{what}`" if set(parts) == {ACTION} else f"`{what}[{name!r}]`" for name in parts]
        return list(zip(names, self.config.actions.values(), parts.values(), strict=True))

    def _checked_actions(self, belief: Belief, actions: Tensor | Mapping[str, Tensor]) -> Tensor | Actions:
        actions = as_action(actions)
        on_device = partial(torch.as_tensor, device=self.device)
        actions = actions.map(on_device) if isinstance(actions, Actions) else on_device(actions)
        for what, described, part in self._named_parts("actions", actions):
            if not has_action_shape(described, part) or len(part) != len(belief):
                raise ValueError(
                    f"{what} must be {action_shape(described)} with B = {len(belief)} (the belief's rows), got "
                    f"{tuple(part.shape)}; use `belief.repeat(n)` to try several plans from one belief."
                )
            if part.shape[1] == 0 or part.shape[1] != actions.shape[1]:
                raise ValueError(
                    f"{what} must hold at least one action a row, as many as any other part, got shape "
                    f"{tuple(part.shape)}."
                )
            described.check_values(part)
        return actions

    def _advance(
        self,
        belief: Belief,
        action: Tensor,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        target: State | None = None,
        tables: CodeTables | None = None,
        embedded: Tensor | None = None,
        keeps_logits: bool = False,
        keeps_shifts: bool = False,
        spending: Spending | None = None,
    ) -> tuple[_Step, Belief]:
        """One step: `target` None samples the next state, else scores it. Returns the step and the belief after it.
        `tables` and the belief's state `embedded` are made here unless a rollout has them at hand."""
        tables = tables or self._tables()
        embedded = self.embed_state(belief.state, tables) if embedded is None else embedded
        parts = action_tensors(action)
        trunk, change = self.pieces(begin, self, belief.state, embedded, parts, tables, rows=len(embedded))
        before = belief.history[-1][0] if belief.history else None
        has_before = None if belief.ages is None else belief.ages > 0
        numbers = step_numbers(self, belief.state, before, action, has_before)
        keeps_shifts |= spending is not None and spending.may_draw_latents
        kept = (keeps_logits, keeps_shifts)
        chooser = Chooser(self, belief.state, tables, temperature, generator, target, numbers, *kept)
        run = BackboneRun(self, belief, trunk, None if spending is None else spending.look(change))
        if spending is not None:
            spending.begin(run, chooser, trunk, embedded, tables)
            state = spending.predict()
            step = _Step(chooser, state, run.hidden, trunk)
            return step, self._after(belief, action, state, run.cache, run.length, tables)
        for each in self.layout.passes:
            if each.levels:
                run.queries(each, self.embed_queries(each, embedded, chooser.codes, tables))
                for name, places in self.layout.split_places(each, run.hidden[each.name], trunk).items():
                    for level in each.levels[: self.config.senses[name].num_levels]:
                        chooser.choose_level(name, level, places)
            else:
                self._choose_text(each, run, chooser)
        step = _Step(chooser, chooser.state(), run.hidden, trunk)
        return step, self._after(belief, action, step.state, run.cache, run.length, tables)

    def _choose_text(self, each, run: BackboneRun, chooser: Chooser) -> None:
        """Ordinary autoregressive decoding of one text; padding ends it."""
        x = self.text_start.expand(run.rows, 1, -1)
        for _ in range(each.length):
            last = run.words(each, x)
            x = self.table.word_rows(chooser.choose_word(each.name, last)).unsqueeze(1)

    def _after(self, belief: Belief, action: Tensor, state: State, cache, seen: int, tables: CodeTables) -> Belief:
        """The belief after a step: queries leave the cache, the trunk stays if there is room for it."""
        room = self.config.context_steps - 1
        if room == 0:
            return Belief(state, [], belief.prefix, belief.cache, self)
        history = [*belief.history, (belief.state, action)]
        ages = None if belief.ages is None else belief.ages + 1
        after = Belief(state, history, belief.prefix, cache, self, ages=ages)
        if len(history) > room and ages is None:
            return self._renewed(after, tables)
        cache.crop(-(seen - self.layout.trunk_length))
        if len(history) <= room:
            return after
        full, others = ((ages > room) == wanted for wanted in (True, False))
        full, others = full.nonzero().squeeze(1), others.nonzero().squeeze(1)
        order = torch.cat([full, others]).argsort()
        return Belief.cat([self._renewed(after.select(full), tables), after.select(others)]).select(order)

    def _renewed(self, belief: Belief, tables: CodeTables) -> Belief:
        """A belief that holds more than there is room for: it keeps the newer half and encodes it again. The cost is
        spread over the steps until it is full anew."""
        newer = belief.history[-max(1, self.config.context_steps // 2) :]
        return self._rebuild(Belief(belief.state, newer, belief.prefix, None, self), tables)

    def _step_condition(self, name: str, step: _Step, tables: CodeTables) -> Tensor:
        return SenseLatents(self, name).condition(step.hidden, step.trunk, step.state, tables, step.shifts.get(name))

    @torch.no_grad()
    def log_prob(
        self, belief: Belief, actions: Tensor, observations: dict[str, Tensor], latents: bool | None = None
    ) -> LogProb:
        """log p(o' | o, a) of true next observations, teacher forced (the factorisation at the end of section 5.2).

        The discrete blocks are exact. Since the encoder is deterministic, the sum over states is bounded from below by
        its one true term. Latents: a variational bound (`LatentHead.log_prob_bound`). Images: a Gaussian of the
        decoder's running error, integrated over each 8-bit pixel value, and so finite. Vectors count as observed to
        the precision of their lattice code, so they cost nothing beyond their digits. What is absent in an observation
        costs nothing.

        Args:
            belief: of batch B; actions: `(B, H, ...)`; observations: `(B, H, ...)`, what was seen after each action.
            latents (`bool`, *optional*): spend bits on the latents and decode with them, or decode from the codes
                alone; by default as `decode` does.

        Returns:
            [`LogProb`], each part `(B, H)` in nats.

        Raises:
            ValueError: as `simulate` and `encode`.
        """
        self._require_world()
        actions = self._checked_actions(belief, actions)
        following = self.encode(observations)
        parts, tables = [], self._tables()
        for index in range(actions.shape[1]):
            target = following.map(lambda t, i=index: t[:, i])
            step, belief = self._advance(belief, actions[:, index], target=target, tables=tables, keeps_shifts=True)
            true = {name: observations[name][:, index] for name in self.senses}
            latent_part, seen_part = self._residual_log_prob(target, step, tables, true, latents)
            parts.append((step.log_prob, latent_part, seen_part))
        return LogProb(*(torch.stack(column, 1) for column in zip(*parts, strict=True)))

    def _residual_log_prob(
        self, target: State, step: _Step, tables: CodeTables, true: dict[str, Tensor], latents: bool | None
    ) -> tuple[Tensor, Tensor]:
        rows = len(target.tensors()[0])
        latent_part, seen_part = torch.zeros(rows, device=self.device), torch.zeros(rows, device=self.device)
        for name, codec in self.senses.items():
            if codec.is_exact:
                continue
            blurred, there = None, target.present(name)
            if name in self.latent_heads and (codec.latents_help if latents is None else latents):
                condition = self._step_condition(name, step, tables)
                start = SenseLatents(self, name).start(condition, target.codes[name])
                bound = self.latent_heads[name].log_prob_bound(target.latents[name], condition, start)
                latent_part = latent_part + torch.where(there, bound, 0.0)
                noise = torch.Generator(device=self.device).manual_seed(0)
                blur = torch.randn(target.latents[name].shape, generator=noise, device=self.device)
                blurred = target.latents[name] + LATENT_BLUR * blur
            seen = codec.log_prob(true[name], target.codes[name], blurred)
            seen_part = seen_part + torch.where(there, seen, 0.0)
        return latent_part, seen_part

    @torch.no_grad()
    def teacher_forced(
        self, observation: dict[str, Tensor], action: Tensor, temperature: float = 0.0, seed: int | None = None
    ) -> Futures:
        """One-step predictions at every step of a window, each given the true frames before it.

        Args:
            observation: `(B, T + 1, ...)` (the last frame is not looked at), constant text `(B, max_length)`; action:
                `(B, T, ...)`.

        Returns:
            [`Futures`] of B rows and T steps; step `t` is the prediction of frame `t + 1`.
        """
        observation = Observation(observation, self.config.prefix_senses)
        action = as_action(action)
        steps, context, found = action.shape[1], self.config.context_steps, []
        for now in range(steps):
            first = max(0, now + 1 - context)
            belief = self.perceive(observation.frames(first, now + 1), action[:, first:now])
            found.append(self.simulate(belief, action[:, now : now + 1], temperature=temperature, seed=seed))
        joined = State.combine([future.state for future in found], lambda tensors: torch.cat(tensors, 1))
        return Futures(
            state=joined,
            log_prob=torch.cat([future.log_prob for future in found], 1),
            reward=torch.cat([future.reward for future in found], 1),
            continue_prob=torch.cat([future.continue_prob for future in found], 1),
            belief=found[-1].belief,
            conditions={name: torch.cat([f.conditions[name] for f in found], 1) for name in self.latent_heads},
            seed=seed,
            pasts=[(future.belief.history, future.belief.ages) for future in found],
        )


# ---- pieces of a step, see `compile_pan`


def whole_tables(model) -> CodeTables:
    """What [`EmbeddingTable.code_tables`] gives, with rows to grow into."""
    return model.table.code_tables(whole=True)


def begin(
    model, state: State, embedded: Tensor, action: list[Tensor], tables: CodeTables
) -> tuple[Tensor, dict[str, Tensor]]:
    """What [`PanModel.embed_step`] gives, of a state, the same embedded, and the parts of actions `(N, ...)`."""
    return model.embed_step(state, embedded, model.embed_action(action, tables), tables)


def judge(model, before: Tensor, state: State, context: Tensor, tables: CodeTables) -> tuple[Tensor, Tensor, Tensor]:
    """The next state embedded, the expected reward and the probability that the episode goes on `(N,)`. States are
    without latents, as in training: imagined ones have none."""
    after = model.embed_state(state, tables)
    reward_logits, continue_logit = model.outcome(before, after, context)
    return after, model.outcome.expected_reward(reward_logits), continue_logit.sigmoid()
