"""Using the world model: perceive, simulate, log_prob (the belief, world model and decoder of equation 6), and what
comes back: `Futures`, `LogProb`.

All of it goes step by step through a [`StepPredictor`]; [`PanModel`] passes its calls on to a [`Simulator`] made for
each of them, which asks the model for its parts when they are needed.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .backbone_pan import fill_cache
from .display_pan import Film, as_pictures, code_shapes, picture_senses, strip_html
from .effort_pan import ALL, BlockPlan, Cost, Effort, as_effort, block_plan
from .image_codec_pan import LATENT_BLUR
from .latent_head_pan import SenseLatents, draw_latents
from .sense_configuration_pan import ACTION
from .state_pan import (
    Actions,
    Belief,
    Observation,
    State,
    action_shape,
    as_action,
    check_observation,
    check_values,
    has_action_shape,
)
from .step_pan import StepPredictor, Transition

if TYPE_CHECKING:
    from .modeling_pan import PanModel


class Simulator:
    """Perceives, imagines and scores with a world model.

    Args:
        model ([`PanModel`]): with senses.

    Raises:
        ValueError: a model without senses.
    """

    def __init__(self, model: PanModel):
        if not model.is_world_model:
            raise ValueError("This model has no senses, so it is a language model only; see PanModel.from_backbone.")
        self.model = model

    @torch.no_grad()
    def perceive(
        self, observation: Mapping[str, Tensor], action: Tensor | Mapping[str, Tensor] | Actions | None = None
    ) -> Belief:
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
        self.check_past(observation, action)
        model, state = self.model, self.model.encode(observation)
        steps = state.tensors()[0].shape[1]
        first = max(0, steps - model.config.context_steps)
        history = []
        if action is not None:
            history = [(state.map(itemgetter((slice(None), i))), action[:, i]) for i in range(first, steps - 1)]
        belief = Belief(state.map(lambda t: t[:, -1]), history, model.prefix_ids(observation), None, model)
        return fill_cache(model, belief, model.table.code_tables())

    def check_past(self, observation: Mapping[str, Tensor], action: Tensor | Actions | None) -> None:
        """Raises ValueError where senses do not fit the configuration, or frames come without the actions between."""
        config = self.model.config
        check_observation(config, observation, needs_prefix=True)
        check_values(config, observation)
        rows, steps = Observation(observation, config.prefix_senses).shape
        given = 0 if action is None else action.shape[1]
        if given not in (steps - 1, steps):
            raise ValueError(f"{steps} frames need the {steps - 1} actions between them, got {given}.")
        if action is None or given == 0:
            return
        for what, described, part in self._named_parts("action", action):
            if not has_action_shape(described, part) or tuple(part.shape[:2]) != (rows, given):
                expected = f"{action_shape(described, 'T - 1')} with B = {rows}"
                raise ValueError(f"{what} must be {expected}, as the frames; got {tuple(part.shape)}.")
            described.check_values(part)

    @torch.no_grad()
    def simulate(
        self,
        belief: Belief,
        actions: Tensor | Mapping[str, Tensor] | Actions,
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
        blocks = ALL if effort is None else block_plan(as_effort(effort, self.model), self.model)
        return self.rollout(belief, actions, blocks, temperature, seed, expected, reencode)

    def _named_parts(self, what: str, action: Tensor | Actions) -> list[tuple[str, Any, Tensor]]:
        """The parts of an action: what they are called in messages, their descriptions, and their tensors. Raises
        ValueError where these are not the parts that the model has."""
        actions = self.model.config.actions
        parts = action.parts if isinstance(action, Actions) else {ACTION: action}
        if set(parts) != set(actions):
            raise ValueError(f"`{what}` must have the parts {list(actions)} by name, got {list(parts)}.")
        names = [f"`{what}`" if set(parts) == {ACTION} else f"`{what}[{name!r}]`" for name in parts]
        return list(zip(names, actions.values(), parts.values(), strict=True))

    def _checked_actions(self, belief: Belief, actions: Tensor | Mapping[str, Tensor] | Actions) -> Tensor | Actions:
        actions = as_action(actions)
        on_device = partial(torch.as_tensor, device=self.model.device)
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

    @torch.no_grad()
    def rollout(
        self,
        belief: Belief,
        actions: Tensor | Actions,
        blocks: BlockPlan = ALL,
        temperature: float = 1.0,
        seed: int | None = None,
        expected: Collection[int] = (),
        reencode: int = 0,
    ) -> Futures:
        """`simulate` of a belief and actions `(N, H, ...)` that were checked, with a plan of blocks."""
        started, predictor = time.perf_counter(), StepPredictor(self.model, temperature, seed)
        transitions: list[Transition] = []
        pasts = []
        codecs = self.model.senses
        images: dict[str, list[Tensor]] = {name: [] for name in codecs if codecs[name].can_grow and expected}
        for index in range(actions.shape[1]):
            transition = predictor.step(belief, actions[:, index], blocks=blocks, keeps_logits=index in expected)
            for name in images if index in expected else ():
                probabilities = [logits.softmax(-1) for logits in transition.logits[name]]
                images[name].append(codecs[name].as_output(codecs[name].decode_probabilities(probabilities)))
            belief = self._fed_back(transition, predictor)
            transition = replace(transition, belief=belief, hidden={}, logits={}, shifts={})  # they are large
            transitions.append(transition)
            if reencode and (index + 1) % reencode == 0:
                belief = replace(belief, state=self._seen_again(transition, predictor.sampler.generator))
            pasts.append((belief.history, belief.ages))
        futures = _joined(transitions, belief, seed, time.perf_counter() - started)
        futures.pasts = pasts
        futures.expected = {name: torch.stack(parts, 1) for name, parts in images.items()}
        return futures

    def _fed_back(self, transition: Transition, predictor: StepPredictor) -> Belief:
        """The belief that the next step starts from: with drawn latents, if the model is fed them back."""
        if not (self.model.config.latent_feedback and transition.conditions):
            return transition.belief
        state, generator = transition.state, predictor.sampler.generator
        drawn = draw_latents(self.model, transition.conditions, state, generator)
        return replace(transition.belief, state=replace(state, latents=drawn))

    def _seen_again(self, transition: Transition, generator: torch.Generator | None) -> State:
        """An imagined state as it would be encoded if it were seen: decoded, its latents drawn where they help and are
        not there, and encoded."""
        model, state = self.model, transition.state
        helpful = {name: told for name, told in transition.conditions.items() if model.senses[name].latents_help}
        whole = State(state.codes, draw_latents(model, helpful, state, generator) | state.latents, state.text)
        seen = {name: model.decode(whole, name).unsqueeze(1) for name in model.config.coded_senses}
        seen |= {name: words.unsqueeze(1) for name, words in state.text.items()}
        return model.encode(seen).map(lambda tensor: tensor[:, 0])

    @torch.no_grad()
    def log_prob(
        self,
        belief: Belief,
        actions: Tensor | Mapping[str, Tensor] | Actions,
        observations: Mapping[str, Tensor],
        latents: bool | None = None,
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
        actions = self._checked_actions(belief, actions)
        following, predictor, parts = self.model.encode(observations), StepPredictor(self.model), []
        for index in range(actions.shape[1]):
            target = following.map(itemgetter((slice(None), index)))
            transition = predictor.step(belief, actions[:, index], target)
            belief = transition.belief
            true = {name: observations[name][:, index] for name in self.model.senses}
            parts.append((transition.log_prob, *self._residual_log_prob(transition, predictor, true, latents)))
        return LogProb(*(torch.stack(column, 1) for column in zip(*parts, strict=True)))

    def _residual_log_prob(
        self, transition: Transition, predictor: StepPredictor, true: dict[str, Tensor], latents: bool | None
    ) -> tuple[Tensor, Tensor]:
        """What latents and images cost, `(N,)` nats each, of a transition to a true state."""
        model, target = self.model, transition.state
        latent_part, seen_part = torch.zeros_like(transition.log_prob), torch.zeros_like(transition.log_prob)
        for name, codec in model.senses.items():
            if codec.is_exact:
                continue
            blurred, there = None, target.present(name)
            if name in model.latent_heads and (codec.latents_help if latents is None else latents):
                head, shifts = SenseLatents(model, name), transition.shifts.get(name)
                condition = head.condition(transition.hidden, transition.trunk, target, predictor.tables, shifts)
                start = head.start(condition, target.codes[name])
                bound = model.latent_heads[name].log_prob_bound(target.latents[name], condition, start)
                latent_part = latent_part + torch.where(there, bound, 0.0)
                noise = torch.Generator(device=model.device).manual_seed(0)
                blur = torch.randn(target.latents[name].shape, generator=noise, device=model.device)
                blurred = target.latents[name] + LATENT_BLUR * blur
            seen = codec.log_prob(true[name], target.codes[name], blurred)
            seen_part = seen_part + torch.where(there, seen, 0.0)
        return latent_part, seen_part

    @torch.no_grad()
    def teacher_forced(
        self,
        observation: Mapping[str, Tensor],
        action: Tensor | Mapping[str, Tensor] | Actions,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Futures:
        """One-step predictions at every step of a window, each given the true frames before it.

        Args:
            observation: `(B, T + 1, ...)` (the last frame is not looked at), constant text `(B, max_length)`; action:
                `(B, T, ...)`.

        Returns:
            [`Futures`] of B rows and T steps; step `t` is the prediction of frame `t + 1`.
        """
        observation, action = Observation(observation, self.model.config.prefix_senses), as_action(action)
        context, parts = self.model.config.context_steps, []
        for now in range(action.shape[1]):
            first = max(0, now + 1 - context)
            belief = self.perceive(observation.frames(first, now + 1), action[:, first:now])
            parts.append(self.simulate(belief, action[:, now : now + 1], temperature=temperature, seed=seed))
        return Futures(
            state=State.combine([part.state for part in parts], lambda tensors: torch.cat(tensors, 1)),
            log_prob=torch.cat([part.log_prob for part in parts], 1),
            reward=torch.cat([part.reward for part in parts], 1),
            continue_prob=torch.cat([part.continue_prob for part in parts], 1),
            belief=parts[-1].belief,
            conditions={
                name: torch.cat([part.conditions[name] for part in parts], 1) for name in self.model.latent_heads
            },
            seed=seed,
            pasts=[(part.belief.history, part.belief.ages) for part in parts],
        )


def _joined(transitions: list[Transition], belief: Belief, seed: int | None, seconds: float) -> Futures:
    """Transitions one after the other as futures that end in a belief."""

    def stack(name: str) -> Any:
        parts = [getattr(transition, name) for transition in transitions]
        return None if parts[0] is None else torch.stack(parts, 1)

    rows, durations = len(belief), torch.tensor([transition.duration for transition in transitions])
    costs, conditions = [t.cost for t in transitions if t.cost is not None], [t.conditions for t in transitions]
    cost = None
    if costs:
        fields = ("tokens", "denoiser_calls", "compute")
        tokens, calls, compute = (torch.stack([getattr(each, name) for each in costs], 1) for name in fields)
        cost = Cost(tokens, calls, compute, seconds)
    return Futures(
        state=State.combine([transition.state for transition in transitions], lambda tensors: torch.stack(tensors, 1)),
        log_prob=stack("log_prob"),
        reward=stack("reward"),
        continue_prob=stack("continue_prob"),
        belief=belief,
        conditions={name: torch.stack([each[name] for each in conditions], 1) for name in conditions[0]},
        seed=seed,
        switch=stack("switch"),
        focus=stack("focus"),
        cost=cost,
        duration=durations.to(transitions[0].reward.device).expand(rows, -1),
    )


def _spread(values: Tensor) -> str:
    """`0.4 (0.1 to 0.9)`: the mean, and the least and the largest of several."""
    mean, least, largest = (float(value) for value in (values.mean(), values.min(), values.max()))
    return f"{mean:.3g}" if len(values) == 1 else f"{mean:.3g} ({least:.3g} to {largest:.3g})"


def _rows_of_past(past: tuple, index: Tensor) -> tuple:
    """Some rows of the `history` and the `ages` of a belief."""
    history, ages = past
    chosen = [(state.map(lambda tensor: tensor[index]), action[index]) for state, action in history]
    return chosen, None if ages is None else ages[index]


@dataclass(repr=False)
class Futures:
    """Imagined trajectories: N rows of H steps.

    Args:
        state: the states after each action, leading shape `(N, H)`.
        log_prob: log probability of each step's discrete blocks under the model, nats `(N, H)`.
        reward: expected reward of each transition, `(N, H)`; by actor `(N, H, A)` where there are several, in the
            order of `config.actors`.
        continue_prob: probability that the episode goes on after it, `(N, H)`.
        belief: the belief after the last action, batch N.
        conditions: what the latent head needs to fill in each sense's latents, `(N, H, P, C)`.
        seed: of the latents, drawn only when something is decoded.
        switch: which blocks were predicted, `(N, H, len(model.blocks))` bool, where `simulate` was given an effort;
        focus, which places were looked at, `(N, H, places of all senses)` bool; cost, an `effort_pan.Cost`.
        pasts: by step, the `history` and the `ages` of the belief after each action; None where it holds no past.
        duration: of each transition in steps, int64 `(N, H)`; one by default, several for a macro-action.
        expected: images that `simulate` was asked to expect, uint8 `(N, steps asked for, C, height, width)` a sense.
    """

    state: State
    log_prob: Tensor
    reward: Tensor
    continue_prob: Tensor
    belief: Belief
    conditions: dict[str, Tensor]
    seed: int | None = None
    switch: Tensor | None = None
    focus: Tensor | None = None
    cost: Cost | None = None
    expected: dict[str, Tensor] = field(default_factory=dict)
    pasts: list[tuple[list[tuple[State, Tensor | Actions]], Tensor | None]] | None = field(repr=False, default=None)
    duration: Tensor = None  # type: ignore[assignment]  # filled in when it is built

    def __post_init__(self):
        if self.duration is None:
            self.duration = torch.ones_like(self.log_prob, dtype=torch.long)

    @property
    def elapsed(self) -> Tensor:
        """How many steps have gone by before each transition, `(N, H)`: what returns are discounted by."""
        return self.duration.cumsum(1) - self.duration

    @property
    def codes(self) -> dict[str, list[Tensor]]:
        return self.state.codes

    def __len__(self) -> int:
        return len(self.log_prob)

    def keys(self, levels: int | None = None, steps: int | None = None) -> list[list[bytes]]:
        """The key of the belief after each action, `[row][step]`; levels, steps and what a key says as for
        [`Belief.keys`]."""
        columns = [self._belief_after(index).keys(levels, steps) for index in range(self.log_prob.shape[1])]
        return [list(row) for row in zip(*columns, strict=True)]

    def _belief_after(self, index: int) -> Belief:
        """The belief after action `index`, without its cache."""
        history, ages = self.pasts[index] if self.pasts else ([], None)
        state = self.state.map(lambda tensor: tensor[:, index])
        return replace(self.belief, state=state, history=history, cache=None, ages=ages)

    def __repr__(self) -> str:
        rows, steps = self.log_prob.shape
        return (
            f"Futures({rows} rows of {steps} steps: {code_shapes(self.codes)})\n"
            f"  reward         {_spread(self.reward.reshape(rows, steps, -1).sum((1, 2)))} a row\n"
            f"  continue_prob  {_spread(self.continue_prob.prod(1))} to the end\n"
            f"  log_prob       {_spread(self.log_prob.mean(1))} nats a step"
        )

    def _repr_html_(self) -> str:
        model, names = self.belief.model, picture_senses(self.belief.model)
        rows = {f"{name}, row 0": as_pictures(model, name, self.decode(name)[0]) for name in names}
        return strip_html(rows, repr(self))

    def __getitem__(self, rows: int | slice | Tensor) -> Futures:
        """Some of the rows as futures of their own; of one row `N` is 1.

        Raises:
            IndexError: there is no such row.
        """
        index = torch.arange(len(self), device=self.log_prob.device)[rows].reshape(-1)
        for sense in self.conditions:  # the noise of a row depends on the rows before it
            self._draw_latents(sense)
        return replace(
            self,
            state=self.state.map(lambda tensor: tensor[index]),
            log_prob=self.log_prob[index],
            reward=self.reward[index],
            continue_prob=self.continue_prob[index],
            belief=self.belief.select(index),
            conditions={name: condition[index] for name, condition in self.conditions.items()},
            switch=None if self.switch is None else self.switch[index],
            focus=None if self.focus is None else self.focus[index],
            cost=None if self.cost is None else self.cost.rows(index),
            expected={name: images[index] for name, images in self.expected.items()},
            pasts=None if self.pasts is None else [_rows_of_past(past, index) for past in self.pasts],
        )

    def _draw_latents(self, sense: str) -> None:
        """Draws a sense's latents for all rows, once."""
        if sense not in self.state.latents:
            drawn = SenseLatents(self.belief.model, sense).sample(self.conditions[sense], self.state, self.seed)
            self.state.latents[sense] = drawn

    def film(self, sense: str | None = None, row: int = 0, fps: float = 4.0) -> Film:
        """One imagined row as a film, which a notebook shows and `film.save(path)` writes.

        Args:
            sense (`str`, *optional*): whose pictures; the first sense that has any by default.
            row (`int`): which future.
            fps (`float`): frames a second.

        Raises:
            ValueError: the model has no such sense, or it has no pictures.
        """
        names = picture_senses(self.belief.model)
        name = sense or next(iter(names), None)
        if name not in names:
            options = f"one of {names}" if names else "and this model has none"
            raise ValueError(f"A film needs a sense with pictures, {options}; got {sense!r}.")
        return Film(as_pictures(self.belief.model, name, self.decode(name)[row]), fps)

    def to_pandas(self) -> "pandas.DataFrame":  # type: ignore[name-defined]  # noqa: F821, UP037  # loading a checkpoint asks for what is imported
        """What was imagined as a table, a line a row and step: `reward` (`reward.<actor>` where there are several),
        `continue_prob`, `log_prob`, and each number of the senses that are vectors, `<sense>.<coordinate>`."""
        rows, steps = self.log_prob.shape
        index = {
            "row": torch.arange(rows).repeat_interleave(steps),
            "step": torch.arange(steps).repeat(rows),
        }
        actors = (self.belief.model.config.actors or ()) if self.reward.ndim == 3 else ()
        rewards = {f"reward.{actor}": self.reward[..., number] for number, actor in enumerate(actors)}
        columns = (rewards or {"reward": self.reward}) | {
            "continue_prob": self.continue_prob,
            "log_prob": self.log_prob,
        }
        for name, sense in self.belief.model.config.senses.items():
            if name in self.codes and len(sense.shape) == 1:
                decoded = self.decode(name)
                columns |= {f"{name}.{number}": decoded[..., number] for number in range(decoded.shape[-1])}
        values = {name: column.flatten().cpu().numpy() for name, column in (index | columns).items()}
        try:
            import pyarrow

            return pyarrow.table(values).to_pandas().set_index(["row", "step"])
        except ImportError as error:
            raise ImportError(f"`to_pandas` needs pyarrow and pandas: pip install pyarrow pandas ({error})") from error

    def decode(self, sense: str, num_levels: int | None = None, latents: bool | None = None) -> Tensor:
        """The imagined observations in one sense, `(N, H, ...)`. `latents`: draw them, once, and use them; by default
        where they help (see [`PanModel.decode`]), and with an effort wherever it predicted them."""
        model = self.belief.model
        if latents is None and self.switch is not None:
            latents = True
        if sense in self.conditions and (model.senses[sense].latents_help if latents is None else latents):
            self._draw_latents(sense)
        return model.decode(self.state, sense, num_levels=num_levels, latents=latents)


@dataclass
class LogProb:
    """log p(o' | o, a) of true next observations, nats `(B, H)` a part: exact for the discrete codes, lower bounds for
    latents and observation (see [`PanModel.log_prob`])."""

    codes: Tensor
    latents: Tensor
    observation: Tensor

    @property
    def total(self) -> Tensor:
        return self.codes + self.latents + self.observation

    @property
    def bits_per_observation(self) -> Tensor:
        return -self.total / torch.log(torch.tensor(2.0))
