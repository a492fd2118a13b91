"""Planners that sample whole action sequences: random shooting, and the cross-entropy method.

Shapes: N = rows (imagined futures), H = horizon (actions ahead), D = coordinates of a vector action."""

import time
from dataclasses import dataclass

import torch

from pan_hf.agents.critics import Critic, as_critic
from pan_hf.agents.plan import Contradicted, Plan, check_one_part, check_one_row, check_positive, device_of, draw_seed
from pan_hf.agents.world import World
from pan_hf.features import feature_class


@dataclass(frozen=True)
class RandomShooting:
    """Imagines random action sequences and keeps the best.

    Args:
        num_samples (`int`): sequences imagined.
        horizon (`int`): actions in each.
        num_rollouts (`int`): futures sampled for each sequence; their values are averaged. For stochastic worlds.
        temperature (`float`): of sampled codes; 0 takes the most likely ones.
        batch_size (`int`): sequences in one `simulate` call; bounds memory.
    """

    num_samples: int = 256
    horizon: int = 12
    num_rollouts: int = 1
    temperature: float = 0.0
    batch_size: int = 256

    def __post_init__(self):
        check_positive(self, "num_samples", "horizon", "num_rollouts", "batch_size")
        _check_rollouts(self)

    @torch.no_grad()
    def plan(self, world: World, belief, critic, *, generator=None, refuted: Contradicted | None = None) -> Plan:
        """The best of `num_samples` random plans.

        Args:
            world ([`World`]): the model to imagine with.
            belief: where to start; one row.
            critic ([`Critic`] or function of futures): what is wanted.
            generator (`torch.Generator`, *optional*): on the CPU; the same state gives the same plan.
            refuted ([`Contradicted`], *optional*): no use to a planner that does not compare states.

        Raises:
            ValueError: a belief of more than one row, or an action kind that cannot be drawn at random.
        """
        start, critic = time.perf_counter(), as_critic(critic)
        check_one_row(belief)
        check_one_part(world)
        shape = (self.num_samples, self.horizon)
        actions = world.config.action.random(shape, generator)
        values, lengths, reached = _imagine(self, world, belief, critic, actions, generator)
        spent = self.num_samples * self.horizon * self.num_rollouts
        return _best_plan(actions, values, lengths, reached, spent, start)


@dataclass(frozen=True)
class CEM:
    """Cross-entropy method: samples sequences, refits the distribution to the best of them, and again.

    Discrete actions have one categorical distribution a step, vector actions one Gaussian a step and coordinate,
    clipped to the action's bounds.

    Args:
        num_samples, horizon, num_rollouts, temperature, batch_size: see [`RandomShooting`], each iteration.
        num_iterations (`int`): times the distribution is refitted.
        elite_fraction (`float`): share of the samples it is refitted to, in (0, 1].
        smoothing (`float`): share of the old distribution kept at each refit, in [0, 1).
        initial_std (`float`): of the Gaussian, as a share of half the action's range.
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
        check_positive(self, "num_samples", "horizon", "num_iterations", "num_rollouts", "batch_size", "initial_std")
        _check_rollouts(self)
        if not 0 < self.elite_fraction <= 1 or not 0 <= self.smoothing < 1:
            raise ValueError(
                f"CEM: expected 0 < elite_fraction <= 1 and 0 <= smoothing < 1, got {self.elite_fraction} and "
                f"{self.smoothing}."
            )

    @torch.no_grad()
    def plan(self, world: World, belief, critic, *, generator=None, refuted: Contradicted | None = None) -> Plan:
        """The best sequence seen in any iteration. Arguments and errors as for [`RandomShooting.plan`]."""
        start, critic = time.perf_counter(), as_critic(critic)
        check_one_row(belief)
        check_one_part(world)
        num_elites = max(1, round(self.elite_fraction * self.num_samples))
        distribution = _proposal(world.config.action, self.horizon, self.initial_std)
        best, spent = None, 0
        for _ in range(self.num_iterations):
            actions = distribution.sample(self.num_samples, generator)
            values, lengths, reached = _imagine(self, world, belief, critic, actions, generator)
            spent += self.num_samples * self.horizon * self.num_rollouts
            distribution.refit(actions[values.topk(num_elites).indices], self.smoothing)
            plan = _best_plan(actions, values, lengths, reached, spent, start)
            best = plan if best is None or plan.expected_return > best.expected_return else best
        assert best is not None  # there is an iteration at least
        return Plan(best.actions, best.expected_return, None, spent, time.perf_counter() - start, best.reaches_goal)


class _Categorical:
    """An independent choice at each step: `probabilities` (H, num_actions)."""

    def __init__(self, num_actions: int, horizon: int):
        self.probabilities = torch.full((horizon, num_actions), 1.0 / num_actions)

    def sample(self, num_samples: int, generator) -> torch.Tensor:
        return torch.multinomial(self.probabilities, num_samples, replacement=True, generator=generator).T.contiguous()

    def refit(self, elites: torch.Tensor, smoothing: float) -> None:
        counts = torch.nn.functional.one_hot(elites, self.probabilities.shape[1]).float().mean(dim=0)
        # A twentieth stays uniform: an action that no elite happened to take must not be lost for good.
        floor = 0.05 / self.probabilities.shape[1]
        self.probabilities = smoothing * self.probabilities + (1 - smoothing) * (0.95 * counts + floor)


class _Gaussian:
    """An independent Gaussian at each step and coordinate, clipped to the bounds: `mean`, `std` (H, D)."""

    def __init__(self, low: torch.Tensor, high: torch.Tensor, horizon: int, initial_std: float):
        self.low, self.high = low, high
        self.mean = ((low + high) / 2).repeat(horizon, 1)
        self.std = initial_std * ((high - low) / 2).repeat(horizon, 1)

    def sample(self, num_samples: int, generator) -> torch.Tensor:
        noise = torch.randn((num_samples, *self.mean.shape), generator=generator)
        return (self.mean + self.std * noise).clamp(self.low, self.high)

    def refit(self, elites: torch.Tensor, smoothing: float) -> None:
        self.mean = smoothing * self.mean + (1 - smoothing) * elites.mean(dim=0)
        self.std = smoothing * self.std + (1 - smoothing) * elites.std(dim=0, correction=0)


def _proposal(action, horizon: int, initial_std: float):
    if feature_class(action.kind).is_discrete:
        return _Categorical(action.num_actions, horizon)
    low, high = action.bounds()
    return _Gaussian(low, high, horizon, initial_std)


def _imagine(planner, world: World, belief, critic: Critic, actions: torch.Tensor, generator):
    """Value `(N,)`, length up to the goal or the end `(N,)` and whether the goal is reached `(N,)`, on the CPU."""
    batches = actions.split(planner.batch_size)
    results = [_imagine_batch(planner, world, belief, critic, batch, generator) for batch in batches]
    return [torch.cat(parts) for parts in zip(*results, strict=True)]


def _imagine_batch(planner, world: World, belief, critic: Critic, actions: torch.Tensor, generator):
    rows, rollouts = len(actions), planner.num_rollouts
    seed = None if planner.temperature == 0 else draw_seed(generator)
    futures = world.simulate(
        belief.select(torch.zeros(rows, dtype=torch.long)),
        actions.to(device_of(world)),
        num_rollouts=rollouts,
        temperature=planner.temperature,
        seed=seed,
    )
    scores = critic.score(futures)
    values = critic.value(futures, scores).view(rows, rollouts).mean(dim=1)
    # The plan is cut where most rollouts have reached the goal, or ended.
    reached = critic.reached(futures, scores).view(rows, rollouts, -1).float().mean(dim=1) > 0.5
    ended = futures.continue_prob.view(rows, rollouts, -1).mean(dim=1) < 0.5
    lengths = _first_true(reached | ended)
    at_end = reached.gather(1, lengths[:, None] - 1)[:, 0]
    return values.float().cpu(), lengths.cpu(), at_end.cpu()


def _first_true(flags: torch.Tensor) -> torch.Tensor:
    """Steps up to and including the first true one, all of them where there is none: `(N, H)` -> `(N,)`."""
    first = flags.int().argmax(dim=1) + 1
    return torch.where(flags.any(dim=1), first, flags.shape[1])


def _best_plan(actions, values, lengths, reached, num_simulated: int, start: float) -> Plan:
    best = int(values.argmax())
    return Plan(
        actions=actions[best, : int(lengths[best])],
        expected_return=float(values[best]),
        states=None,
        num_simulated=num_simulated,
        seconds=time.perf_counter() - start,
        reaches_goal=bool(reached[best]),
    )


def _check_rollouts(config) -> None:
    if config.temperature < 0 or (config.num_rollouts > 1 and config.temperature == 0):
        raise ValueError(
            f"{type(config).__name__}: {config.num_rollouts} rollouts at temperature {config.temperature} are all the "
            "same future; use num_rollouts=1, or a temperature above 0."
        )
