"""Planners that sample whole action sequences: random shooting, and the cross-entropy method.

Shapes: N = rows (imagined futures), H = horizon (actions ahead), D = coordinates of a vector action."""

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.actions import MASK, ActionParts
from pan_hf.agents.critics import Critic, as_critic, check_scores
from pan_hf.agents.plan import (
    Contradicted,
    Plan,
    check_numbers,
    check_one_row,
    device_of,
    draw_seed,
)
from pan_hf.agents.world import World
from pan_hf.features import feature_class
from pan_hf.modeling.state_pan import Actions
from pan_hf.modeling.validation_pan import real, whole


@dataclass(frozen=True)
class _Shooting:
    """What random shooting and the cross-entropy method share: how sequences are imagined."""

    def _check_imagining(self: Any) -> None:
        check_numbers(self, whole, "num_samples", "horizon", "num_rollouts", "batch_size", least=1)
        check_numbers(self, real, "temperature", least=0)
        if self.num_rollouts > 1 and self.temperature == 0:
            raise ValueError(
                f"{type(self).__name__}: {self.num_rollouts} rollouts at temperature 0 are all the same future; use "
                "num_rollouts=1, or a temperature above 0."
            )

    def _imagine(self: Any, world: World, parts: ActionParts, belief, critic: Critic, actions, generator):
        """Value `(N,)`, length up to the goal or the end `(N,)` and whether the goal is reached `(N,)`, on the CPU."""
        first_rows = range(0, len(actions), self.batch_size)
        batches = [
            self._imagine_batch(world, parts, belief, critic, actions[first : first + self.batch_size], generator)
            for first in first_rows
        ]
        values, reached, ended = (torch.cat(parts).cpu() for parts in zip(*batches, strict=True))
        if len(reached) > 1 and reached[:, 0].all():
            # Whatever is done reaches this "goal", as a reward for every step does: it tells no plan from another.
            reached = torch.zeros_like(reached)
        lengths = _first_true(reached | ended)
        return values, lengths, reached.gather(1, lengths[:, None] - 1)[:, 0]

    def _imagine_batch(self: Any, world: World, parts: ActionParts, belief, critic: Critic, actions, generator):
        """Value `(n,)`; in which steps the goal is reached, and the episode ended, `(n, H)` bool each."""
        rows, rollouts = len(actions), self.num_rollouts
        futures = world.simulate(
            belief.select(torch.zeros(rows, dtype=torch.long)),
            actions.to(device_of(world)),
            num_rollouts=rollouts,
            temperature=self.temperature,
            seed=None if self.temperature == 0 else draw_seed(generator),
        )
        futures, scores, values = judge_futures(world, parts, critic, futures, actions.repeat_interleave(rollouts, 0))
        values = values.view(rows, rollouts).mean(dim=1)
        # The plan is cut where most rollouts have reached the goal, or ended.
        reached = critic.reached(futures, scores).view(rows, rollouts, -1).float().mean(dim=1) > 0.5
        ended = futures.continue_prob.view(rows, rollouts, -1).mean(dim=1) < 0.5
        return values.float(), reached, ended


@dataclass(frozen=True)
class RandomShooting(_Shooting):
    """Imagines random action sequences and keeps the best.

    Args:
        num_samples (`int`): sequences imagined.
        horizon (`int`): actions in each.
        num_rollouts (`int`): futures sampled for each sequence; their values are averaged. For stochastic worlds.
        temperature (`float`): of sampled codes; 0 takes the most likely ones.
        batch_size (`int`): sequences in one `simulate` call; bounds memory.

    Raises:
        ValueError: a setting is no number of its range, or several rollouts would be the same.
    """

    num_samples: int = 256
    horizon: int = 12
    num_rollouts: int = 1
    temperature: float = 0.0
    batch_size: int = 256

    def __post_init__(self):
        self._check_imagining()

    @torch.no_grad()
    def plan(
        self,
        world: World,
        belief,
        critic,
        *,
        generator: torch.Generator | None = None,
        refuted: Contradicted | None = None,
        mask=None,
    ) -> Plan:
        """The best of `num_samples` random plans.

        Args:
            world ([`World`]): the model to imagine with.
            belief: where to start; one row.
            critic ([`Critic`] or function of futures): what is wanted.
            generator (`torch.Generator`, *optional*): on the CPU; the same state gives the same plan.
            refuted ([`Contradicted`], *optional*): no use to a planner that does not compare states.
            mask (*optional*): which actions are allowed now, `(num_actions,)` of 0 and 1, by part where there are
                several; all by default. Later ones are known where the world has a sense "action_mask".

        Raises:
            ValueError: a belief of more than one row, an action kind that cannot be drawn at random, a critic whose
                scores are not numbers, or a mask that allows nothing.
        """
        start, critic, parts = time.perf_counter(), as_critic(critic), ActionParts(world.config)
        check_one_row(belief, generator)
        masks, shape = parts.check_masks(mask), (self.num_samples, self.horizon)
        actions = parts.join({name: part.random(shape, generator) for name, part in parts.parts.items()})
        _redraw_forbidden(parts.split(actions), masks, generator)
        spent = self.num_samples * self.horizon * self.num_rollouts
        values, lengths, reached = self._imagine(world, parts, belief, critic, actions, generator)
        return _best_plan(parts, actions, values, lengths, reached, spent, start)


@dataclass(frozen=True)
class CEM(_Shooting):
    """Cross-entropy method: samples sequences, refits the distribution to the best of them, and again.

    Discrete actions have one categorical distribution a step, vector actions one Gaussian a step and coordinate,
    clipped to the action's bounds. Parts of an action have distributions of their own.

    Args:
        num_samples, horizon, num_rollouts, temperature, batch_size: see [`RandomShooting`], each iteration.
        num_iterations (`int`): times the distribution is refitted.
        elite_fraction (`float`): share of the samples it is refitted to, in (0, 1]; one sample at least.
        smoothing (`float`): share of the old distribution kept at each refit, in [0, 1).
        initial_std (`float`): of the Gaussian, as a share of half the action's range.

    Raises:
        ValueError: as [`RandomShooting`].
    """

    num_samples: int = 64
    horizon: int = 12
    num_iterations: int = 4
    elite_fraction: float = 0.125
    smoothing: float = 0.1
    initial_std: float = 1.0
    num_rollouts: int = 1
    temperature: float = 0.0
    batch_size: int = 256

    def __post_init__(self):
        self._check_imagining()
        check_numbers(self, whole, "num_iterations", least=1)
        check_numbers(self, real, "elite_fraction", least=0, most=1, above=True)
        check_numbers(self, real, "smoothing", least=0, most=1)
        check_numbers(self, real, "initial_std", least=0, above=True)
        if self.smoothing == 1:
            raise ValueError("CEM: `smoothing` of 1 keeps the first distribution for ever; choose one below 1.")

    @torch.no_grad()
    def plan(
        self,
        world: World,
        belief,
        critic,
        *,
        generator: torch.Generator | None = None,
        refuted: Contradicted | None = None,
        mask=None,
    ) -> Plan:
        """The best sequence seen in any iteration. Arguments and errors as for [`RandomShooting.plan`]."""
        start, critic, parts = time.perf_counter(), as_critic(critic), ActionParts(world.config)
        check_one_row(belief, generator)
        masks, num_elites = parts.check_masks(mask), max(1, round(self.elite_fraction * self.num_samples))
        proposals = {name: _proposal(part, self.horizon, self.initial_std) for name, part in parts.parts.items()}
        plans, spent = [], 0
        for _ in range(self.num_iterations):
            sampled = {name: each.sample(self.num_samples, generator) for name, each in proposals.items()}
            actions = parts.join(sampled)
            _redraw_forbidden(sampled, masks, generator)
            values, lengths, reached = self._imagine(world, parts, belief, critic, actions, generator)
            spent += self.num_samples * self.horizon * self.num_rollouts
            elites = values.topk(num_elites).indices
            for name, part in parts.split(actions).items():
                proposals[name].refit(part[elites], self.smoothing)
            plans.append(_best_plan(parts, actions, values, lengths, reached, spent, start))
        best = max(plans, key=lambda plan: plan.expected_return)
        last = {"num_simulated": spent, "seconds": time.perf_counter() - start}
        return Plan(**(vars(best) | last))


class _Categorical:
    """An independent choice at each step: `probabilities` (H, num_actions)."""

    def __init__(self, num_actions: int, horizon: int):
        self.probabilities = torch.full((horizon, num_actions), 1.0 / num_actions)

    def sample(self, num_samples: int, generator) -> Tensor:
        return torch.multinomial(self.probabilities, num_samples, replacement=True, generator=generator).T.contiguous()

    def refit(self, elites: Tensor, smoothing: float) -> None:
        counts = torch.nn.functional.one_hot(elites, self.probabilities.shape[1]).float().mean(dim=0)
        # A twentieth stays uniform: an action that no elite happened to take must not be lost for good.
        floor = 0.05 / self.probabilities.shape[1]
        self.probabilities = smoothing * self.probabilities + (1 - smoothing) * (0.95 * counts + floor)


class _Gaussian:
    """An independent Gaussian at each step and coordinate, clipped to the bounds: `mean`, `std` (H, D)."""

    def __init__(self, low: Tensor, high: Tensor, horizon: int, initial_std: float):
        self.low, self.high = low, high
        self.mean = ((low + high) / 2).repeat(horizon, 1)
        self.std = initial_std * ((high - low) / 2).repeat(horizon, 1)

    def sample(self, num_samples: int, generator) -> Tensor:
        noise = torch.randn((num_samples, *self.mean.shape), generator=generator)
        return (self.mean + self.std * noise).clamp(self.low, self.high)

    def refit(self, elites: Tensor, smoothing: float) -> None:
        self.mean = smoothing * self.mean + (1 - smoothing) * elites.mean(dim=0)
        self.std = smoothing * self.std + (1 - smoothing) * elites.std(dim=0, correction=0)


def _proposal(part, horizon: int, initial_std: float):
    if feature_class(part.kind).is_discrete:
        return _Categorical(part.num_actions, horizon)
    low, high = part.bounds()
    return _Gaussian(low, high, horizon, initial_std)


def _redraw_forbidden(parts: dict[str, Tensor], masks: dict[str, Tensor], generator) -> None:
    """Replaces first actions that are not allowed now by allowed ones, in place. Args: parts, `(N, H)` by name."""
    for name, mask in masks.items():
        first = parts[name][:, 0]
        drawn = torch.multinomial(mask.float(), len(first), replacement=True, generator=generator)
        parts[name][:, 0] = torch.where(mask[first], first, drawn)


def _cut_before_forbidden(futures, numbers: Tensor):
    """Futures that end before an action that the imagined mask forbids: what comes after it counts for nothing. Args:
    numbers, of the actions, `(N, H)`."""
    allowed = futures.decode(MASK) > 0.5  # (N, H, num_choices)
    is_allowed = allowed[:, :-1].gather(2, numbers.to(allowed.device)[:, 1:, None])[..., 0]
    cut = copy.copy(futures)
    cut.continue_prob = futures.continue_prob.clone()
    cut.continue_prob[:, :-1] *= is_allowed
    return cut


def judge_futures(world: World, parts: ActionParts, critic: Critic, futures, actions: Tensor | Actions):
    """What a critic says of futures: these without what the imagined mask forbids, scores `(N, H)` and values `(N,)`.
    Args: actions, `(N, H, ...)`.

    Raises:
        ValueError: scores or values that are not numbers.
    """
    if parts.predicts_mask(world.config):
        futures = _cut_before_forbidden(futures, parts.numbers(actions))
    scores = check_scores(critic.score(futures), futures)
    values = critic.value(futures, scores)
    if values.isnan().any():
        raise ValueError("The critic's value of a future is not a number; check its `value` and its discount.")
    return futures, scores, values


def _first_true(flags: Tensor) -> Tensor:
    """Steps up to and including the first true one, all of them where there is none: `(N, H)` -> `(N,)`."""
    first = flags.int().argmax(dim=1) + 1
    return torch.where(flags.any(dim=1), first, flags.shape[1])


def _best_plan(parts, actions, values, lengths, reached, num_simulated: int, start: float) -> Plan:
    best = int(values.argmax())
    return Plan(
        actions=actions[best][: int(lengths[best])],
        expected_return=float(values[best]),
        states=None,
        num_simulated=num_simulated,
        seconds=time.perf_counter() - start,
        reaches_goal=bool(reached[best]),
        parts=parts,
    )
