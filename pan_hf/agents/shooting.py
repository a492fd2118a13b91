"""Planners that sample whole action sequences: random shooting, and the cross-entropy method.

Shapes: N = rows (imagined futures), H = horizon (actions ahead), D = coordinates of a vector action."""

import copy
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.actions import MASK, ActionParts
from pan_hf.agents.critics import Critic, as_critic, check_scores, discounts
from pan_hf.agents.plan import (
    Contradicted,
    Plan,
    check_drawable,
    check_numbers,
    check_one_row,
    device_of,
    draw_seed,
)
from pan_hf.agents.world import World
from pan_hf.features import feature_class
from pan_hf.modeling.state_pan import Actions
from pan_hf.modeling.validation_pan import real, whole

OBJECTIVES = ("critic", "path", "end", "both")
"""What a sequence is worth: as its critic says; the discounted mean of the scores on its way; the score at its end;
the sum of these two. The way ends where the goal is reached, or the episode is over, and the score at that step then
counts for the steps that are left. So sequences that reach the same end are worth the same by "end", and the sooner
the more by "path" and "both"."""


@dataclass(frozen=True)
class Shooting:
    """What planners that sample sequences share. A subclass is a frozen dataclass with `num_samples`, `horizon`,
    `num_rollouts`, `temperature`, `batch_size` and `objective`."""

    def _check_imagining(self: Any) -> None:
        check_numbers(self, whole, "num_samples", "horizon", "num_rollouts", "batch_size", least=1)
        check_numbers(self, real, "temperature", least=0)
        if self.num_rollouts > 1 and self.temperature == 0:
            raise ValueError(
                f"{type(self).__name__}: {self.num_rollouts} rollouts at temperature 0 are all the same future; use "
                "num_rollouts=1, or a temperature above 0."
            )
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"{type(self).__name__}: `objective` must be one of {OBJECTIVES}, got {self.objective!r}."
            )

    def check_world(self, config: Any) -> None:
        """Raises ValueError where a part of the action cannot be drawn."""
        check_drawable(ActionParts(config))


class Imagined:
    """What a planner has imagined so far from one belief, and the best of it.

    Args:
        planner ([`Shooting`]): says how sequences are imagined.
        world, belief, critic, generator, mask: as for `plan`.

    Raises:
        ValueError: as `plan`.
    """

    def __init__(self, planner: Any, world: World, belief, critic, generator, mask):
        self.start, self.planner, self.world, self.belief = time.perf_counter(), planner, world, belief
        self.critic, self.generator, self.parts = as_critic(critic), generator, ActionParts(world.config)
        check_one_row(belief, generator)
        planner.check_world(world.config)
        self.masks = self.parts.check_masks(mask)
        self.num_simulated = 0
        self.best: Plan | None = None

    def judge(self, sampled: dict[str, Tensor]) -> Tensor:
        """What sequences are worth, `(N,)` on the CPU. Args: sampled, `(N, H, ...)` by part; first actions that are
        not allowed now are replaced in place."""
        first = {name: part[:, 0] for name, part in sampled.items()}
        for name, part in self.parts.redrawn(first, self.masks, self.generator).items():
            sampled[name][:, 0] = part
        actions, size = self.parts.join(sampled), self.planner.batch_size
        batches = [self._judge_batch(actions[first : first + size]) for first in range(0, len(actions), size)]
        values, reached, ended = (torch.cat(column).cpu() for column in zip(*batches, strict=True))
        if len(reached) > 1 and reached[:, 0].all():
            # Whatever is done reaches this "goal", as a reward for every step does: it tells no plan from another.
            reached = torch.zeros_like(reached)
        lengths = _first_true(reached | ended)
        best = int(values.argmax())
        if self.best is None or float(values[best]) > self.best.expected_return:
            length = int(lengths[best])
            self.best = Plan(
                actions=actions[best][:length],
                expected_return=float(values[best]),
                states=None,
                num_simulated=0,  # filled in by `plan`
                seconds=0.0,
                reaches_goal=bool(reached[best, length - 1]),
                parts=self.parts,
            )
        return values

    def plan(self) -> Plan:
        """The best of all sequences."""
        assert self.best is not None  # something was imagined
        return replace(self.best, num_simulated=self.num_simulated, seconds=time.perf_counter() - self.start)

    def _judge_batch(self, actions: Tensor | Actions) -> tuple[Tensor, Tensor, Tensor]:
        """Value `(n,)`; in which steps the goal is reached, and the episode ended, `(n, H)` bool each."""
        planner, rows, rollouts = self.planner, len(actions), self.planner.num_rollouts
        futures = self.world.simulate(
            self.belief.select(torch.zeros(rows, dtype=torch.long)),
            actions.to(device_of(self.world)),
            num_rollouts=rollouts,
            temperature=planner.temperature,
            seed=None if planner.temperature == 0 else draw_seed(self.generator),
        )
        self.num_simulated += rows * rollouts * planner.horizon
        taken = actions.repeat_interleave(rollouts, 0)
        futures, scores, values = judge_futures(self.world, self.parts, self.critic, futures, taken)
        values = _by_objective(planner.objective, self.critic, futures, scores, values)
        # The plan is cut where most rollouts have reached the goal, or ended.
        reached = self.critic.reached(futures, scores).view(rows, rollouts, -1).float().mean(dim=1) > 0.5
        ended = futures.continue_prob.view(rows, rollouts, -1).mean(dim=1) < 0.5
        return values.view(rows, rollouts).mean(dim=1).float(), reached, ended


@dataclass(frozen=True)
class RandomShooting(Shooting):
    """Imagines random action sequences and keeps the best.

    Args:
        num_samples (`int`): sequences imagined.
        horizon (`int`): actions in each.
        num_rollouts (`int`): futures sampled for each sequence; their values are averaged. For stochastic worlds.
        temperature (`float`): of sampled codes; 0 takes the most likely ones.
        batch_size (`int`): sequences in one `simulate` call; bounds memory.
        objective (`str`): what a sequence is worth, see `OBJECTIVES`.

    Raises:
        ValueError: a setting is no number of its range, or several rollouts would be the same.
    """

    num_samples: int = 256
    horizon: int = 12
    num_rollouts: int = 1
    temperature: float = 0.0
    batch_size: int = 256
    objective: str = "critic"

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
        imagined = Imagined(self, world, belief, critic, generator, mask)
        shape, parts = (self.num_samples, self.horizon), imagined.parts.parts
        imagined.judge({name: part.random(shape, generator) for name, part in parts.items()})
        return imagined.plan()


@dataclass(frozen=True)
class CEM(Shooting):
    """Cross-entropy method: samples sequences, refits the distribution to the best of them, and again.

    Discrete actions have one categorical distribution a step, vector actions one Gaussian a step and coordinate,
    clipped to the action's bounds. Parts of an action have distributions of their own.

    Args:
        num_samples, horizon, num_rollouts, temperature, batch_size: see [`RandomShooting`], each iteration.
        num_iterations (`int`): times the distribution is refitted.
        elite_fraction (`float`): share of the samples it is refitted to, in (0, 1]; one sample at least.
        smoothing (`float`): share of the old distribution kept at each refit, in [0, 1).
        initial_std (`float`): of the Gaussian, as a share of half the action's range.
        objective (`str`): what a sequence is worth, see `OBJECTIVES`.

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
    objective: str = "critic"

    def __post_init__(self):
        self._check_imagining()
        check_numbers(self, whole, "num_iterations", least=1)
        check_numbers(self, real, "elite_fraction", least=0, most=1, above=True)
        check_numbers(self, real, "smoothing", least=0, most=1)
        check_numbers(self, real, "initial_std", least=0, above=True)
        if self.smoothing == 1:
            name = type(self).__name__
            raise ValueError(f"{name}: `smoothing` of 1 keeps the first distribution for ever; choose one below 1.")

    def check_world(self, config: Any) -> None:
        """Raises ValueError where a part of the action has no distribution to be drawn from."""
        for part in ActionParts(config).parts.values():
            proposal_of(part, 1, 1.0)

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
        imagined = Imagined(self, world, belief, critic, generator, mask)
        num_elites = max(1, round(self.elite_fraction * self.num_samples))
        parts = imagined.parts.parts
        proposals = {name: proposal_of(part, self.horizon, self.initial_std) for name, part in parts.items()}
        for _ in range(self.num_iterations):
            sampled = {name: each.sample(self.num_samples, generator) for name, each in proposals.items()}
            elites = imagined.judge(sampled).topk(num_elites).indices
            for name, proposal in proposals.items():
                proposal.refit(sampled[name][elites], self.smoothing)
        return imagined.plan()


class Categorical:
    """An independent choice at each step: `probabilities` (H, num_actions)."""

    def __init__(self, num_actions: int, horizon: int):
        self.probabilities = torch.full((horizon, num_actions), 1.0 / num_actions)

    @property
    def center(self) -> Tensor:
        """The most likely sequence, `(H,)`."""
        return self.probabilities.argmax(dim=1)

    def sample(self, num_samples: int, generator) -> Tensor:
        return torch.multinomial(self.probabilities, num_samples, replacement=True, generator=generator).T.contiguous()

    def refit(self, elites: Tensor, smoothing: float, weights: Tensor | None = None) -> None:
        """Moves towards sequences `(N, H)`. Args: smoothing, the share of the old distribution that is kept; weights,
        `(N,)` of sum 1; equal ones by default."""
        chosen = torch.nn.functional.one_hot(elites, self.probabilities.shape[1]).float()
        counts = chosen.mean(dim=0) if weights is None else torch.einsum("n,nha->ha", weights, chosen)
        # A twentieth stays uniform: an action that no elite happened to take must not be lost for good.
        floor = 0.05 / self.probabilities.shape[1]
        self.probabilities = smoothing * self.probabilities + (1 - smoothing) * (0.95 * counts + floor)


class Gaussian:
    """An independent Gaussian at each step and coordinate, clipped to the bounds: `mean`, `std` (H, D)."""

    def __init__(self, low: Tensor, high: Tensor, horizon: int, initial_std: float):
        self.low, self.high = low, high
        self.mean = ((low + high) / 2).repeat(horizon, 1)
        self.std = initial_std * ((high - low) / 2).repeat(horizon, 1)

    @property
    def center(self) -> Tensor:
        """The mean sequence, `(H, D)`."""
        return self.mean.clamp(self.low, self.high)

    def sample(self, num_samples: int, generator, noise_beta: float = 0.0) -> Tensor:
        """Sequences `(N, H, D)`. Args: noise_beta, of the colour of the noise over time; 0: none, which is white."""
        shape = (num_samples, *self.mean.shape)
        noise = colored_noise(shape, noise_beta, generator) if noise_beta else torch.randn(shape, generator=generator)
        return (self.mean + self.std * noise).clamp(self.low, self.high)

    def refit(self, elites: Tensor, smoothing: float) -> None:
        self.mean = smoothing * self.mean + (1 - smoothing) * elites.mean(dim=0)
        self.std = smoothing * self.std + (1 - smoothing) * elites.std(dim=0, correction=0)


def proposal_of(part, horizon: int, initial_std: float) -> Categorical | Gaussian:
    """What the actions of a part are drawn from at first. Raises ValueError for a part without choices or bounds."""
    if feature_class(part.kind).is_discrete:
        return Categorical(part.num_actions, horizon)
    low, high = part.bounds()
    return Gaussian(low, high, horizon, initial_std)


def colored_noise(shape: tuple[int, int, int], beta: float, generator: torch.Generator | None) -> Tensor:
    """Gaussian noise `(N, H, D)` of variance 1 whose power falls as `1 / frequency ** beta` over the H steps (Timmer &
    König 1995): steps are alike the more the larger `beta` is."""
    rows, steps, dim = shape
    frequency = torch.fft.rfftfreq(steps)
    frequency[0] = 1 / steps
    scale = frequency ** (-beta / 2)
    real_part, imaginary = (torch.randn((rows, dim, len(scale)), generator=generator) for _ in range(2))
    waves = torch.fft.irfft(scale * torch.complex(real_part, imaginary), n=steps)
    # the real parts of the first and, of an even number of steps, of the last frequency count once, others twice
    power = 4 * scale**2
    power[0] = scale[0] ** 2
    if steps % 2 == 0:
        power[-1] = scale[-1] ** 2
    return (waves * steps / power.sum().sqrt()).transpose(1, 2)


def _by_objective(objective: str, critic: Critic, futures, scores: Tensor, values: Tensor) -> Tensor:
    """What futures are worth by one of `OBJECTIVES`, `(N,)`. Args: values, as the critic says, `(N,)`."""
    if objective == "critic":
        return values
    over = critic.reached(futures, scores) | (futures.continue_prob < 0.5)
    last = _first_true(over)[:, None] - 1
    end = scores.gather(1, last)
    steps = torch.arange(scores.shape[1], device=scores.device)
    weights = discounts(critic.discount, futures, scores).expand_as(scores)
    path = (torch.where(steps <= last, scores, end) * weights).sum(1) / weights.sum(1)
    return {"path": path, "end": end[:, 0], "both": path + end[:, 0]}[objective]


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
