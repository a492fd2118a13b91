"""Planners that sample whole action sequences: random shooting, and the cross-entropy method.

Shapes: N = rows (imagined futures), H = horizon (actions ahead), D = coordinates of a vector action."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.critics import check_scores, discounts
from pan_hf.agents.plan import Candidate, Plan, Spread, best_candidates, check_numbers, device_of
from pan_hf.agents.planner import Planner, Problem
from pan_hf.features import feature_class
from pan_hf.modeling.state_pan import Actions
from pan_hf.modeling.validation_pan import real, whole

OBJECTIVES = ("critic", "path", "end", "both")
"""What a sequence is worth: as its critic says; the discounted mean of the scores on its way; the score at its end;
the sum of these two. The way ends where the goal is reached, or the episode is over, and the score at that step then
counts for the steps that are left. So sequences that reach the same end are worth the same by "end", and the sooner
the more by "path" and "both"."""


_FEW = 5  # sampled sequences that are kept as candidates


@dataclass(frozen=True)
class Shooting(Planner):
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


class Imagined:
    """What a planner has imagined so far of a problem: `best` is the best plan of all sequences.

    Args:
        planner ([`Shooting`]): says how sequences are imagined.
        problem ([`Problem`]): what is wanted, and where to start.
    """

    def __init__(self, planner: Any, problem: Problem):
        self.planner, self.problem, self.parts = planner, problem, problem.parts
        self.best: Plan | None = None
        self._has_goal: bool | None = None
        self._candidates: tuple[Candidate, ...] = ()
        self._worths: list[Tensor] = []

    def judge(self, sampled: dict[str, Tensor]) -> Tensor:
        """What sequences are worth, `(N,)` on the CPU. Args: sampled, `(N, H, ...)` by part; first actions that are
        not allowed now are replaced in place."""
        first = {name: part[:, 0] for name, part in sampled.items()}
        for name, part in self.parts.redrawn(first, self.problem.masks, self.problem.generator).items():
            sampled[name][:, 0] = part
        actions, size = self.parts.join(sampled), self.planner.batch_size
        batches = [self._imagine(actions[first : first + size]) for first in range(0, len(actions), size)]
        scores, weights, continue_probs, reached, values = (torch.cat(column) for column in zip(*batches, strict=True))
        rows = (len(actions), self.planner.num_rollouts)
        if self._has_goal is None:
            # Random actions that all reach a "goal", as where every step is rewarded, tell no plan from another.
            self._has_goal = len(actions) == 1 or not _mostly(reached[:, 0].view(rows)).all()
        reached = reached & self._has_goal
        if self.planner.objective != "critic":
            over = reached | (continue_probs < 0.5)
            values = _by_objective(self.planner.objective, scores, weights, over)
        worth = values.view(rows).mean(dim=1).float()
        # The plan is cut where most rollouts have reached the goal, or ended.
        reached, ended = _mostly(reached.view(*rows, -1)), continue_probs.view(*rows, -1).mean(dim=1) < 0.5
        self._keep_best(actions, worth, reached, _first_true(reached | ended))
        return worth

    def _keep_best(self, actions: Tensor | Actions, worth: Tensor, reached: Tensor, lengths: Tensor) -> None:
        few = []
        for row in worth.argsort(descending=True, stable=True)[: 4 * _FEW].tolist():
            length = int(lengths[row])
            is_goal = bool(reached[row, length - 1])
            few.append(Candidate(actions[row][:length], float(worth[row]), reaches_goal=is_goal))
        distinct = {self._spelled(each.actions): each for each in (*self._candidates, *few)}
        self._candidates = best_candidates(distinct.values(), _FEW)
        self._worths.append(worth)
        best = few[0]
        assert best.value is not None  # the worth of a sequence
        if self.best is None or best.value > self.best.expected_return:
            self.best = Plan(best.actions, best.value, None, reaches_goal=best.reaches_goal, parts=self.parts)

    def _spelled(self, actions: Tensor | Actions) -> bytes:
        """Equal of equal sequences."""
        return b"|".join(part.cpu().numpy().tobytes() for part in self.parts.split(actions).values())

    def plan(self) -> Plan:
        """The best plan, with the few best sequences beside it, and how far all of them were spread."""
        assert self.best is not None  # something was judged
        worths = torch.cat(self._worths)
        told = [float(each) for each in (worths.mean(), worths.std(correction=0), worths.min(), worths.max())]
        return replace(self.best, candidates=self._candidates, spread=Spread(len(worths), *told))

    def _imagine(self, actions: Tensor | Actions) -> tuple[Tensor, ...]:
        """Scores, what they count for, probabilities to go on, and whether the goal is reached, of each step of n
        sequences and their rollouts, `(n * num_rollouts, H)`; and what each is worth by the critic."""
        problem, rollouts = self.problem, self.planner.num_rollouts
        futures = problem.world.simulate(
            problem.belief.select(torch.zeros(len(actions), dtype=torch.long)),
            actions.to(device_of(problem.world)),
            num_rollouts=rollouts,
            **problem.drawn(self.planner.temperature),
        )
        futures, scores, values = judge_futures(problem, futures, actions.repeat_interleave(rollouts, 0))
        weights = discounts(problem.critic.discount, futures, scores).expand_as(scores)
        reached = problem.critic.reached(futures, scores)
        return tuple(each.cpu() for each in (scores, weights, futures.continue_prob, reached, values))


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

    def _search(self, problem: Problem) -> Plan | None:
        """The best of `num_samples` random plans."""
        imagined, shape = Imagined(self, problem), (self.num_samples, self.horizon)
        imagined.judge({name: part.random(shape, problem.generator) for name, part in problem.parts.parts.items()})
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
        proposals_of(ActionParts(config), 1, 1.0)

    def _search(self, problem: Problem) -> Plan | None:
        """The best sequence of any iteration."""
        imagined = Imagined(self, problem)
        proposals = proposals_of(problem.parts, self.horizon, self.initial_std)
        for _ in range(self.num_iterations):
            sampled = {name: each.sample(self.num_samples, problem.generator) for name, each in proposals.items()}
            elites = imagined.judge(sampled).topk(self.num_elites).indices
            for name, proposal in proposals.items():
                proposal.refit(sampled[name][elites], self.smoothing)
        return imagined.plan()

    @property
    def num_elites(self) -> int:
        """Samples that the distribution is refitted to."""
        return max(1, round(self.elite_fraction * self.num_samples))


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

    def move(self, samples: Tensor, weights: Tensor) -> None:
        """To the weighted samples."""
        self.refit(samples, 0.0, weights)


class Gaussian:
    """An independent Gaussian at each step and coordinate, clipped to the bounds: `mean`, `std` (H, D). Its noise is
    coloured over time, see `colored_noise`."""

    def __init__(self, low: Tensor, high: Tensor, horizon: int, initial_std: float, noise_beta: float):
        self.low, self.high, self.noise_beta = low, high, noise_beta
        self.mean = ((low + high) / 2).repeat(horizon, 1)
        self.std = initial_std * ((high - low) / 2).repeat(horizon, 1)

    @property
    def center(self) -> Tensor:
        """The mean sequence, `(H, D)`."""
        return self.mean.clamp(self.low, self.high)

    def sample(self, num_samples: int, generator) -> Tensor:
        shape, beta = (num_samples, *self.mean.shape), self.noise_beta
        noise = colored_noise(shape, beta, generator) if beta else torch.randn(shape, generator=generator)
        return (self.mean + self.std * noise).clamp(self.low, self.high)

    def refit(self, elites: Tensor, smoothing: float) -> None:
        self.mean = smoothing * self.mean + (1 - smoothing) * elites.mean(dim=0)
        self.std = smoothing * self.std + (1 - smoothing) * elites.std(dim=0, correction=0)

    def move(self, samples: Tensor, weights: Tensor) -> None:
        """The mean to the weighted mean of the samples."""
        self.mean = torch.einsum("n,nhd->hd", weights, samples)


def proposals_of(
    parts: ActionParts, horizon: int, initial_std: float, noise_beta: float = 0.0
) -> dict[str, Categorical | Gaussian]:
    """What the actions of each part are drawn from at first. Raises ValueError where a part has neither choices nor
    bounds."""
    proposals: dict[str, Categorical | Gaussian] = {}
    for name, part in parts.parts.items():
        if feature_class(part.kind).is_discrete:
            proposals[name] = Categorical(part.num_actions, horizon)
        else:
            low, high = part.bounds()
            proposals[name] = Gaussian(low, high, horizon, initial_std, noise_beta)
    return proposals


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


def _by_objective(objective: str, scores: Tensor, weights: Tensor, over: Tensor) -> Tensor:
    """What futures are worth by one of `OBJECTIVES`, `(N,)`. Args: weights, what each score counts for; over, where
    the way ends; `(N, H)` each."""
    last = _first_true(over)[:, None] - 1
    end = scores.gather(1, last)
    path = (torch.where(torch.arange(scores.shape[1]) <= last, scores, end) * weights).sum(1) / weights.sum(1)
    return {"path": path, "end": end[:, 0], "both": path + end[:, 0]}[objective]


def judge_futures(problem: Problem, futures, actions: Tensor | Actions):
    """What a critic says of futures: these without what the imagined mask forbids, scores `(N, H)` and values `(N,)`.
    Args: actions, `(N, H, ...)`.

    Raises:
        ValueError: scores or values that are not numbers.
    """
    allowed = problem.allowed_in(futures)
    if allowed is not None:
        futures = _cut_before_forbidden(futures, allowed, problem.parts.numbers(actions).cpu())
    scores = check_scores(problem.critic.score(futures), futures)
    values = problem.critic.value(futures, scores)
    if values.isnan().any():
        raise ValueError("The critic's value of a future is not a number; check its `value` and its discount.")
    return futures, scores, values


def _cut_before_forbidden(futures, allowed: Tensor, numbers: Tensor):
    """Futures that end before an action that is forbidden: what comes after it counts for nothing. Args: allowed,
    after each step, `(N, H, num_choices)`; numbers, of the actions, `(N, H)`."""
    is_allowed = allowed[:, :-1].gather(2, numbers[:, 1:, None])[..., 0]
    cut = copy.copy(futures)
    cut.continue_prob = futures.continue_prob.clone()
    cut.continue_prob[:, :-1] *= is_allowed.to(cut.continue_prob.device)
    return cut


def _mostly(flags: Tensor) -> Tensor:
    """Whether most rollouts, of dimension 1, say so."""
    return flags.float().mean(dim=1) > 0.5


def _first_true(flags: Tensor) -> Tensor:
    """Steps up to and including the first true one, all of them where there is none: `(N, H)` -> `(N,)`."""
    first = flags.int().argmax(dim=1) + 1
    return torch.where(flags.any(dim=1), first, flags.shape[1])
