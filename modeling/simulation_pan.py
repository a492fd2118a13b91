"""Using the world model: perceive, simulate, log_prob (the belief, world model and decoder of equation 6), and what
comes back: `Futures`, `LogProb`.

All of it goes step by step through a [`StepPredictor`]; [`PanModel`] passes its calls on to a [`Simulator`] made for
each of them, which asks the model for its parts when they are needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .backbone_pan import filled_cache
from .codecs_pan import encode_observation
from .display_pan import Film, as_pictures, code_shapes, picture_senses, strip_html
from .effort_pan import ALL, BlockPlan, Cost, Effort, as_effort, block_plan
from .image_codec_pan import LATENT_BLUR
from .latent_head_pan import SenseLatents, draw_latents
from .state_pan import Actions, Belief, Observation, State, checked_actions
from .step_pan import StepPredictor, Transition, as_seed
from .validation_pan import PRESENT, check_decodes, check_observation, check_values, real, truth, whole

if TYPE_CHECKING:
    from .modeling_pan import PanModel


BESIDE = {"input_ids", "attention_mask", "reward", "done", "importance"}


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
        self, observation: Mapping[str, Tensor], action: Tensor | Mapping[str, Tensor] | Actions | None = None, **rest
    ) -> Belief:
        """Encodes what was observed into a belief about now.

        Args:
            observation: per sense `(B, T, ...)`, as the processor makes it; constant text `(B, max_length)`; in which
                frames a sense is there, if not in all, see [`Observation`].
            action: the T - 1 actions between the frames, `(B, T - 1, ...)`, by name where they have several parts, or
                their names; may be None if T is 1.
            rest: what else is in a batch of a processor or a data loader, `BESIDE`; it is passed over.

        Returns:
            [`Belief`] of batch B at the last frame, holding up to `config.context_steps - 1` earlier steps.

        Raises:
            ValueError: senses that do not fit the configuration, frames without the actions between them, or another
                argument.
        """
        if unknown := sorted(set(rest) - BESIDE):
            raise ValueError(f"`perceive` takes `observation` and `action`, got {unknown} too.")
        action = self.check_past(observation, action)
        model, state = self.model, encode_observation(self.model, observation)
        steps = state.tensors()[0].shape[1]
        first = max(0, steps - model.config.context_steps)
        history = []
        if action is not None:
            history = [(state.map(itemgetter((slice(None), i))), action[:, i]) for i in range(first, steps - 1)]
        return Belief(state.map(lambda t: t[:, -1]), history, model.prefix_ids(observation), filled_cache, model)

    def check_past(
        self, observation: Mapping[str, Tensor], action: Tensor | Mapping[str, Tensor] | Actions | None
    ) -> Tensor | Actions | None:
        """The actions between frames, as tensors. Raises ValueError where senses do not fit the configuration, or
        frames come without the actions between."""
        check_observation(self.model.config, observation, needs_prefix=True)
        check_values(self.model.config, observation)
        rows, steps = Observation(observation, self.model.config.prefix_senses).shape
        actions, num_actions = None, 0
        if action is not None:
            actions = checked_actions(self.model, "action", action, f"with B = {rows}, as the frames", rows, "T - 1")
            num_actions = actions.shape[1]
        if num_actions not in (steps - 1, steps):
            raise ValueError(f"{steps} frames need the {steps - 1} actions between them, got {num_actions}.")
        return actions

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
        uncertainty: bool = False,
    ) -> Futures:
        """Imagines what follows from actions.

        Args:
            belief: of batch B; it is left as it was, and its past is not computed again.
            actions: `(B, H)` ints, `(B, H, dim)` floats or `(B, H, max_length)` ids: H actions a row; by name where
                they have several parts. Where actions have names, a list of them for each row; for one row, its list.
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
            uncertainty (`bool`): fill in `futures.entropy`: how open each imagined step was, by sense.

        Returns:
            [`Futures`] of N rows and H steps; observations are decoded only when asked for. With an effort,
            `futures.switch` says what was predicted and `futures.cost` what it cost.

        Raises:
            ValueError: rows of actions do not match the belief, an action, an expected step or another number is out
                of range, an effort that this model cannot make, or one with expected images; or the model predicts
                values that are not numbers.
        """
        actions = self._plan_of(belief, actions)
        steps = range(actions.shape[1])
        if not isinstance(expected, Collection) or not all(step in steps for step in expected):
            raise ValueError(f"`expected` steps must be 0 to {len(steps) - 1}, got {expected!r}.")
        expected = list(expected)
        uncertainty = truth("uncertainty", uncertainty)
        if effort is not None and (expected or uncertainty):
            what = "`expected` images take" if expected else "`uncertainty` is measured of"
            raise ValueError(f"{what} every code everywhere, so they go with no `effort`.")
        num_rollouts, reencode = whole("num_rollouts", num_rollouts, 1), whole("reencode", reencode)
        if num_rollouts > 1:
            belief, actions = belief.repeat(num_rollouts), actions.repeat_interleave(num_rollouts, 0)
        blocks = ALL if effort is None else block_plan(as_effort(effort, self.model), self.model)
        return self.rollout(belief, actions, blocks, temperature, seed, expected, reencode, uncertainty)

    def _plan_of(self, belief: Belief, actions: Tensor | Mapping[str, Tensor] | Actions) -> Tensor | Actions:
        """Actions `(B, H, ...)` from a belief on, checked."""
        if not hasattr(belief, "history"):
            raise TypeError(f"`belief` must be a Belief, as `perceive` returns it; got {type(belief).__name__}.")
        config, state = self.model.config, belief.state
        if (set(state.codes), set(state.text)) != (set(config.coded_senses), set(config.text_senses)):
            senses = sorted({**config.coded_senses, **config.text_senses})
            raise ValueError(f"`belief` is of another model: it has {[*state.codes, *state.text]}, not {senses}.")
        if len(belief) == 0:
            raise ValueError("`belief` has no rows, so nothing follows from it.")
        expected = f"with B = {len(belief)} (the belief's rows; `belief.repeat(n)` takes several plans from one)"
        actions = checked_actions(self.model, "actions", actions, expected, len(belief))
        if actions.shape[1] == 0:
            raise ValueError("`actions` must hold at least one action a row, got none.")
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
        uncertainty: bool = False,
    ) -> Futures:
        """`simulate` of a belief and actions `(N, H, ...)` that were checked, with a plan of blocks."""
        started, predictor, seed = time.perf_counter(), StepPredictor(self.model, temperature, seed), as_seed(seed)
        transitions, pasts, codecs = [], [], self.model.senses
        images: dict[str, list[Tensor]] = {name: [] for name in codecs if codecs[name].can_grow and expected}
        for index in range(actions.shape[1]):
            action, keeps = actions[:, index], index in expected
            transition = predictor.step(belief, action, None, blocks, keeps, keeps_entropy=uncertainty)
            for name in images if index in expected else ():
                probabilities = [logits.softmax(-1) for logits in transition.logits[name]]
                images[name].append(codecs[name].as_output(codecs[name].decode_probabilities(probabilities)))
            belief = transition.belief
            if self.model.config.latent_feedback and transition.conditions:  # the next step sees latents, too
                drawn = draw_latents(self.model, transition.conditions, transition.state, predictor.sampler.generator)
                belief = replace(belief, state=replace(transition.state, latents=drawn))
            transition = replace(transition, belief=belief, hidden={}, logits={}, shifts={})  # they are large
            transitions.append(transition)
            if reencode and (index + 1) % reencode == 0:
                belief = replace(belief, state=self._seen_again(transition, predictor.sampler.generator))
            pasts.append((belief.history, belief.ages))
        durations = torch.tensor([transition.duration for transition in transitions], device=self.model.device)
        others: dict[str, Any] = {"belief": belief, "seed": seed, "pasts": pasts}
        others["duration"] = durations.expand(len(belief), -1)
        others["expected"] = {name: torch.stack(parts, 1) for name, parts in images.items()}
        if blocks is not ALL:
            others |= {name: torch.stack([getattr(t, name) for t in transitions], 1) for name in ("switch", "focus")}
            names = ("tokens", "denoiser_calls", "compute")
            tokens, calls, compute = (torch.stack([getattr(t.cost, name) for t in transitions], 1) for name in names)
            others["cost"] = Cost(tokens, calls, compute, time.perf_counter() - started)
        futures = _joined(transitions, torch.stack, **others)
        self._check_numbers(futures.log_prob, futures.reward, futures.continue_prob)
        return futures

    def _check_numbers(self, *predictions: Tensor) -> None:
        """Raises ValueError where a prediction is not a number. What is not finite anywhere in a model ends there."""
        if not bool(torch.stack([prediction.sum() for prediction in predictions]).isnan().any()):
            return
        wrong = [name for name, weight in self.model.named_parameters() if not bool(weight.isfinite().all())]
        cause = f"its weights {wrong[:3]} are not finite" if wrong else "its weights are finite, but sums overflow"
        raise ValueError(f"The model predicts values that are not numbers: {cause}. Load or train it anew.")

    def _seen_again(self, transition: Transition, generator: torch.Generator | None) -> State:
        """An imagined state as it would be encoded if it were seen: decoded, with latents drawn where they help and it
        has none, and encoded."""
        model, state = self.model, transition.state
        helpful = {name: each for name, each in transition.conditions.items() if model.senses[name].latents_help}
        complete = State(state.codes, draw_latents(model, helpful, state, generator) | state.latents, state.text)
        seen = {name: model.decode(complete, name).unsqueeze(1) for name in model.config.coded_senses}
        seen |= {name: words.unsqueeze(1) for name, words in state.text.items()}
        seen |= {f"{name}{PRESENT}": state.present(name).unsqueeze(1) for name in list(seen)}
        return encode_observation(model, seen).map(lambda tensor: tensor[:, 0])

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
            ValueError: as `simulate` and `encode`, or other frames than one after each action.
        """
        latents = None if latents is None else truth("latents", latents)
        actions = self._plan_of(belief, actions)
        following, predictor = self.model.encode(observations), StepPredictor(self.model)
        parts, senses = [], []
        shape, expected = tuple(following.tensors()[0].shape[:2]), (len(belief), actions.shape[1])
        if shape != expected:
            raise ValueError(f"`observations` must be (B, H) of {expected}, one after each action; got {shape}.")
        for index in range(actions.shape[1]):
            target = following.map(itemgetter((slice(None), index)))
            transition = predictor.step(belief, actions[:, index], target, has_outcome=False)
            belief = transition.belief
            true = {name: observations[name][:, index] for name in self.model.senses}
            parts.append((transition.log_prob, *self._residual_log_prob(transition, predictor, true, latents)))
            senses.append(transition.log_probs)
        by_sense = {name: torch.stack([each[name] for each in senses], 1) for name in senses[0]}
        codes, latent, seen = (torch.stack(column, 1) for column in zip(*parts, strict=True))
        log_prob = LogProb(codes, latent, seen, by_sense)
        self._check_numbers(log_prob.total)
        return log_prob

    def _residual_log_prob(
        self, transition: Transition, predictor: StepPredictor, true: dict[str, Tensor], latents: bool | None
    ) -> tuple[Tensor, Tensor]:
        """Log probability of the latents and of the images of a transition to a true state, `(N,)` nats each."""
        model, target = self.model, transition.state
        latent_part, seen_part = torch.zeros_like(transition.log_prob), torch.zeros_like(transition.log_prob)
        for name, codec in model.senses.items():
            if codec.is_exact:
                continue
            blurred, is_present = None, target.present(name)
            if name in model.latent_heads and (codec.latents_help if latents is None else latents):
                head, shifts = SenseLatents(model, name), transition.shifts.get(name)
                condition = head.condition(transition.hidden, transition.trunk, target, predictor.tables, shifts)
                start = head.start(condition, target.codes[name])
                bound = model.latent_heads[name].log_prob_bound(target.latents[name], condition, start)
                latent_part = latent_part + torch.where(is_present, bound, 0.0)
                # the bound is that of blurred latents, and so are those that the decoder gets
                noise = torch.Generator(device=model.device).manual_seed(0)
                blur = torch.randn(target.latents[name].shape, generator=noise, device=model.device)
                blurred = target.latents[name] + LATENT_BLUR * blur
            seen = codec.log_prob(true[name], target.codes[name], blurred)
            seen_part = seen_part + torch.where(is_present, seen, 0.0)
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

        Raises:
            ValueError: as `perceive` and `simulate`.
        """
        check_observation(self.model.config, observation, needs_prefix=True)
        observation = Observation(observation, self.model.config.prefix_senses)
        rows, steps = observation.shape
        action = checked_actions(self.model, "action", action, f"with B = {rows}, as the frames", rows, "T")
        if not 0 < action.shape[1] <= steps:
            raise ValueError(f"{steps} frames need the {steps - 1} actions between them, got {action.shape[1]}.")
        context, parts = self.model.config.context_steps, []
        for now in range(action.shape[1]):
            first = max(0, now + 1 - context)
            belief = self.perceive(observation.frames(first, now + 1), action[:, first:now])
            parts.append(self.simulate(belief, action[:, now : now + 1], temperature=temperature, seed=seed))
        pasts = [(part.belief.history, part.belief.ages) for part in parts]
        return _joined(parts, torch.cat, belief=parts[-1].belief, seed=seed, pasts=pasts)


def _joined(parts: Sequence[Transition | Futures], join: Callable, **others) -> Futures:
    """Transitions (join: `torch.stack`) or futures (`torch.cat`), one after the other. Args: others, fields of the
    result that are not those of its parts."""
    names = ("log_prob", "reward", "continue_prob")
    return Futures(
        state=State.combine([part.state for part in parts], lambda tensors: join(tensors, 1)),
        conditions={name: join([part.conditions[name] for part in parts], 1) for name in parts[0].conditions},
        entropy={name: join([part.entropy[name] for part in parts], 1) for name in parts[0].entropy},
        **{name: join([getattr(part, name) for part in parts], 1) for name in names},
        **others,
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
        entropy: by sense, how open each step was: the entropy of what was predicted, nats `(N, H)` at temperature 1,
            of each code given those drawn before it. Empty unless `simulate` was asked for it.
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
    entropy: dict[str, Tensor] = field(default_factory=dict)

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
        """Some of the rows as futures of their own; of one row `N` is 1. Negative numbers count from the end.

        Raises:
            IndexError: there is no such row.
        """
        try:
            if rows is None or isinstance(rows, bool):
                raise IndexError("only numbers are")
            index = torch.arange(len(self), device=self.log_prob.device)[rows].reshape(-1)
        except (IndexError, TypeError, ValueError) as error:
            raise IndexError(
                f"Futures have rows 0 to {len(self) - 1}, or -1 to {-len(self)} counted from the end; {rows!r} is "
                f"none of these ({error})."
            ) from error
        for sense in self.conditions:  # the noise of a row depends on the rows before it
            self._draw_latents(sense)
        return replace(
            self,
            state=self.state.map(lambda tensor: tensor[index]),
            log_prob=self.log_prob[index],
            reward=self.reward[index],
            continue_prob=self.continue_prob[index],
            duration=self.duration[index],
            belief=self.belief.select(index),
            conditions={name: condition[index] for name, condition in self.conditions.items()},
            switch=None if self.switch is None else self.switch[index],
            focus=None if self.focus is None else self.focus[index],
            cost=None if self.cost is None else self.cost.rows(index),
            expected={name: images[index] for name, images in self.expected.items()},
            entropy={name: nats[index] for name, nats in self.entropy.items()},
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
            row (`int`): which future; a negative number counts from the end.
            fps (`float`): frames a second.

        Raises:
            ValueError: the model has no such sense, or it has no pictures; or there is no such row.
        """
        names, fps = picture_senses(self.belief.model), real("fps", fps, 0, above=True)
        name = next(iter(names), None) if sense is None else sense
        if name not in names:
            options = f"one of {names}" if names else "and this model has none"
            raise ValueError(f"A film needs a `sense` with pictures, {options}; got {sense!r}.")
        row = whole("row", row, -len(self), len(self) - 1)
        return Film(as_pictures(self.belief.model, name, self.decode(name)[row]), fps)

    def to_pandas(self) -> "pandas.DataFrame":  # type: ignore[name-defined]  # noqa: F821, UP037  # loading a checkpoint asks for what is imported
        """What was imagined as a table, a line a row and step: `reward` (`reward.<actor>` where there are several),
        `continue_prob`, `log_prob`, `entropy.<sense>` if it was asked for, and each number of the senses that are
        vectors, `<sense>.<coordinate>`."""
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
        columns |= {f"entropy.{name}": nats for name, nats in self.entropy.items()}
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
        check_decodes(model.senses, self.state, sense, num_levels, latents)
        if sense in self.conditions and (model.senses[sense].latents_help if latents is None else latents):
            self._draw_latents(sense)
        return model.decode(self.state, sense, num_levels=num_levels, latents=latents)


@dataclass
class LogProb:
    """log p(o' | o, a) of true next observations, nats `(B, H)` a part: exact for the discrete codes, lower bounds for
    latents and observation (see [`PanModel.log_prob`]).

    Args:
        codes, latents, observation: the parts.
        by_sense: by sense, its share of `codes`, that of words included.
    """

    codes: Tensor
    latents: Tensor
    observation: Tensor
    by_sense: dict[str, Tensor] = field(default_factory=dict)

    @property
    def surprise(self) -> dict[str, Tensor]:
        """By sense, how little what was seen had been expected: -log p of its codes or words, nats `(B, H)`."""
        return {name: -log_prob for name, log_prob in self.by_sense.items()}

    @property
    def total(self) -> Tensor:
        return self.codes + self.latents + self.observation

    @property
    def bits_per_observation(self) -> Tensor:
        return -self.total / torch.log(torch.tensor(2.0))
