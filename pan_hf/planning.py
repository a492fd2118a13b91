"""Planners: search over what a world model imagines, for actions that lead to what a critic wants.

A planner needs two things of a world: `world.simulate(belief, actions, ...)` and `world.config.action`. What is
unusual here is [`GraphSearch`]: a belief's codes are discrete, so two imagined states can be *equal*. Equal states
fold into one, and a breadth-first search over a few hundred of them finds a shortest plan, where sampling needs luck.

Shapes: N = rows (imagined futures), H = horizon (actions ahead), D = coordinates of a vector action.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch

from pan_hf.critics import Critic, FunctionCritic, GoalCritic, RewardCritic, as_critic
from pan_hf.modeling.sense_configuration_pan import action_bounds, random_actions

__all__ = [
    "CEM", "Critic", "FunctionCritic", "GoalCritic", "GraphSearch", "Plan", "RandomShooting", "Refuted",
    "RewardCritic", "World", "as_critic",
]  # fmt: skip

logger = logging.getLogger(__name__)


class World(Protocol):
    """What planners ask of a world model ([`PanModel`] is one, an exact simulator can be another).

    `config.action` says `kind`, and `num_actions` or `low` and `high`. `simulate` continues a belief of N rows by
    `actions` of shape `(N, H)` or `(N, H, D)` and returns futures with `reward` and `continue_prob` `(N, H)`,
    `belief` (after the last action) and `keys()` (by row and step). Beliefs have `keys()`
    (`keys(levels)` for a planner with `key_levels`), `select(index)`, `len()`
    and the class method `cat(list)`.
    """

    config: Any

    def simulate(self, belief, actions, num_rollouts=1, temperature=1.0, seed=None): ...


@dataclass(frozen=True)
class Plan:
    """Actions, and what the planner expects of them.

    Args:
        actions (`torch.Tensor`): `(length,)` int64 or `(length, D)` float; at least one action.
        expected_return (`float`): what the critic thinks the plan is worth.
        states (`list[bytes]`, *optional*): belief key expected after each action; `None` where the planner does not
            compare states.
        num_simulated (`int`): imagined steps spent on finding it.
        seconds (`float`): wall time spent on finding it.
        reaches_goal (`bool`): whether the last action is expected to reach the critic's threshold.
        num_folded (`int`): imagined states that were equal to one seen before.
    """

    actions: torch.Tensor
    expected_return: float
    states: list[bytes] | None
    num_simulated: int
    seconds: float
    reaches_goal: bool = False
    num_folded: int = 0

    def __len__(self) -> int:
        return len(self.actions)


@dataclass
class Refuted:
    """What the real world has shown to be wrong, as (key of the state, action): plans keep away from it.

    Args:
        transitions: actions that led elsewhere than imagined; not to be planned through.
        goals: actions that were imagined to reach the goal and did not.
    """

    transitions: set[tuple[bytes, int]] = field(default_factory=set)
    goals: set[tuple[bytes, int]] = field(default_factory=set)


# --- Planners that sample ------------------------------------------------------------------------------------------


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
        _check_positive(self, "num_samples", "horizon", "num_rollouts", "batch_size")
        _check_rollouts(self)

    @torch.no_grad()
    def plan(self, world: World, belief, critic, *, generator=None, refuted: Refuted | None = None) -> Plan:
        """The best of `num_samples` random plans.

        Args:
            world ([`World`]): the model to imagine with.
            belief: where to start; one row.
            critic ([`Critic`] or function of futures): what is wanted.
            generator (`torch.Generator`, *optional*): on the CPU; the same state gives the same plan.
            refuted ([`Refuted`], *optional*): no use to a planner that does not compare states.

        Raises:
            ValueError: a belief of more than one row, or an action kind that cannot be drawn at random.
        """
        start, critic = time.perf_counter(), as_critic(critic)
        _check_one_row(belief)
        shape = (self.num_samples, self.horizon)
        actions = random_actions(world.config.action, shape, generator)
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
        _check_positive(self, "num_samples", "horizon", "num_iterations", "num_rollouts", "batch_size", "initial_std")
        _check_rollouts(self)
        if not 0 < self.elite_fraction <= 1 or not 0 <= self.smoothing < 1:
            raise ValueError(
                f"CEM: expected 0 < elite_fraction <= 1 and 0 <= smoothing < 1, got {self.elite_fraction} and "
                f"{self.smoothing}."
            )

    @torch.no_grad()
    def plan(self, world: World, belief, critic, *, generator=None, refuted: Refuted | None = None) -> Plan:
        """The best sequence seen in any iteration. Arguments and errors as for [`RandomShooting.plan`]."""
        start, critic = time.perf_counter(), as_critic(critic)
        _check_one_row(belief)
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
    if action.kind == "discrete":
        return _Categorical(action.num_actions, horizon)
    return _Gaussian(*action_bounds(action), horizon, initial_std)


def _imagine(planner, world: World, belief, critic: Critic, actions: torch.Tensor, generator):
    """Value `(N,)`, length up to the goal or the end `(N,)` and whether the goal is reached `(N,)`, on the CPU."""
    batches = actions.split(planner.batch_size)
    results = [_imagine_batch(planner, world, belief, critic, batch, generator) for batch in batches]
    return [torch.cat(parts) for parts in zip(*results, strict=True)]


def _imagine_batch(planner, world: World, belief, critic: Critic, actions: torch.Tensor, generator):
    rows, rollouts = len(actions), planner.num_rollouts
    seed = None if planner.temperature == 0 else _draw_seed(generator)
    futures = world.simulate(
        belief.select(torch.zeros(rows, dtype=torch.long)),
        actions.to(_device(world)),
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


# --- The planner that compares states ------------------------------------------------------------------------------


@dataclass(frozen=True)
class GraphSearch:
    """Breadth-first search over code states; equal states fold into one, so the first goal is a nearest one.

    A batch of nodes times all actions is one `simulate` call of one step at temperature 0: the search follows the
    most likely successors. Where these lead to no goal it hopes: it searches again among sampled successors, so that
    what the model holds for possible and not for likely, such as a door that it has seldom seen open, is tried in the
    world instead of given up. Where no goal is found so either, the plan leads to the best scored likely state.
    Only the beliefs of the current and the next depth are held; a node is its parent, its action and its key.

    Args:
        max_states (`int`): distinct states after which the search gives up.
        batch_size (`int`): nodes expanded in one call.
        max_depth (`int`): longest plan.
        actions (`Sequence[int]`, *optional*): tried alone first; all of them are tried only where these do not reach
            the goal, by sampled successors either. The states of a world multiply with what can be done in it: in
            MiniGrid's DoorKey, leaving out dropping the key makes the search eight times cheaper. The plan is then a
            shortest one of these actions.
        key_levels (`int`, *optional*): states are equal if so many levels of their codes are, the coarsest first; all
            levels by default. For worlds that predict the coarsest levels alone.
        sampled_searches (`int`): searches among sampled successors, at most, where the likely ones reach no goal; a
            successor of probability p is missed by all n of them with probability (1 - p)^n. 0: none. Critics whose
            threshold is infinite know no goal and get none.
    """

    max_states: int = 5000
    batch_size: int = 32
    max_depth: int = 100
    actions: tuple[int, ...] | None = None
    key_levels: int | None = None
    sampled_searches: int = 4

    def __post_init__(self):
        _check_positive(self, "max_states", "batch_size", "max_depth")
        if self.sampled_searches < 0:
            raise ValueError(f"GraphSearch: `sampled_searches` must be 0 or more, got {self.sampled_searches}.")
        if self.key_levels is not None:
            _check_positive(self, "key_levels")
        if self.actions is not None:
            object.__setattr__(self, "actions", tuple(self.actions))

    @torch.no_grad()
    def plan(self, world: World, belief, critic, *, generator=None, refuted: Refuted | None = None) -> Plan:
        """A shortest plan to the goal, or to the best scored state that was found.

        Args:
            world ([`World`]): the model to imagine with; its action has to be discrete.
            belief: where to start; one row.
            critic ([`Critic`] or function of futures): what is wanted.
            generator (`torch.Generator`, *optional*): on the CPU; of the sampled searches.
            refuted ([`Refuted`], *optional*): what the real world has shown to be wrong.

        Raises:
            ValueError: a belief of more than one row, an action that is not discrete, or `actions` it has not.
        """
        _check_one_row(belief)
        if world.config.action.kind != "discrete":
            raise ValueError(
                f"GraphSearch tries every action, so it needs a 'discrete' one; got {world.config.action.kind!r}. "
                "Use CEM or RandomShooting."
            )
        everything = range(world.config.action.num_actions)
        if unknown := sorted(set(self.actions or ()) - set(everything)):
            raise ValueError(f"GraphSearch: this world has the actions 0..{everything[-1]}, got {unknown}.")
        start, spent, critic, refuted = time.perf_counter(), 0, as_critic(critic), refuted or Refuted()
        first = everything if self.actions is None else self.actions
        hopes = self.sampled_searches if math.isfinite(critic.threshold) else 0
        searches = [(first, None), *[(first, partial(_draw_seed, generator))] * hopes]
        if self.actions is not None:
            searches.append((everything, None))
        for allowed, sample in searches:
            search = _Search(self, world, belief, critic, refuted, allowed, sample)
            found = search.run()
            spent += found.num_simulated
            if found.reaches_goal or sample is None:
                plan = found
            if found.reaches_goal:
                break
        if not len(plan):  # every way out is refuted: believe the model again
            return self.plan(world, belief, critic, generator=generator)
        plan = replace(plan, num_simulated=spent, seconds=time.perf_counter() - start)
        logger.debug(
            "graph search: %d actions, goal %s, %d states, %d folded, %d goals not confirmed, %.2f s",
            len(plan), plan.reaches_goal, len(search.keys), plan.num_folded, search.num_unconfirmed, plan.seconds,
        )  # fmt: skip
        return plan


@dataclass(frozen=True)
class _Successors:
    """What one step of imagination found, a row an edge: (parent node, action), key, score..."""

    belief: Any
    edges: list[tuple[int, int]]
    keys: list[bytes]
    scores: list[float]
    claims: list[bool]
    going_on: list[bool]


class _Search:
    """One run of [`GraphSearch`]. A node is an index into `parents`, `actions` and `keys`; node 0 is the root."""

    def __init__(
        self,
        config: GraphSearch,
        world: World,
        belief,
        critic: Critic,
        refuted: Refuted,
        allowed: Sequence[int],
        sample: Callable[[], int] | None,
    ):
        self.config, self.world, self.root, self.critic, self.refuted = config, world, belief, critic, refuted
        self.allowed = allowed  # actions to try
        self.sample = sample  # draws the seed of each step; None: the most likely successors
        self.levels = () if config.key_levels is None else (config.key_levels,)
        self.parents, self.actions, self.keys = [-1], [-1], [belief.keys(*self.levels)[0]]
        self.seen = {self.keys[0]}
        self.best, self.best_score = 0, float("-inf")
        self.num_simulated = self.num_folded = self.num_unconfirmed = 0

    def run(self) -> Plan:
        frontier, nodes = self.root, [0]
        for depth in range(self.config.max_depth):
            beliefs, children = [], []
            for first in range(0, len(nodes), self.config.batch_size):
                found = self._expand(frontier, first, nodes[first : first + self.config.batch_size])
                if found is None:
                    continue
                goal = self._goal(found)
                if goal is not None:
                    row, node = goal
                    return self._plan(node, self.critic.discount**depth * found.scores[row], reaches_goal=True)
                fresh = self._fold(found)
                if fresh:
                    beliefs.append(found.belief.select(torch.tensor(list(fresh))))
                    children += fresh.values()
                if len(self.keys) > self.config.max_states:
                    return self._plan(self.best, self.best_score)
            if not children:
                break
            frontier, nodes = type(self.root).cat(beliefs), children
        return self._plan(self.best, self.best_score)

    def _moves(self, nodes: list[int]) -> list[tuple[int, int]]:
        """(row in `nodes`, action) of every action that the real world has not refuted."""
        wrong = self.refuted.transitions
        return [
            (row, action)
            for row, node in enumerate(nodes)
            for action in self.allowed
            if (self.keys[node], action) not in wrong
        ]

    def _expand(self, frontier, first: int, nodes: list[int]) -> "_Successors | None":
        """One imagined step of all actions from `nodes`, whose beliefs are rows `first`... of `frontier`."""
        moves = self._moves(nodes)
        if not moves:
            return None
        actions = torch.tensor([[action] for _, action in moves], device=_device(self.world))
        parents = frontier.select(torch.tensor([first + row for row, _ in moves]))
        drawn = {"temperature": 0.0} if self.sample is None else {"temperature": 1.0, "seed": self.sample()}
        futures = self.world.simulate(parents, actions, **drawn)
        self.num_simulated += len(moves)
        scores = self.critic.score(futures)
        return _Successors(
            belief=futures.belief,
            edges=[(nodes[row], action) for row, action in moves],
            keys=futures.belief.keys(*self.levels),
            scores=scores[:, 0].tolist(),
            claims=self.critic.reached(futures, scores)[:, 0].tolist(),
            going_on=(futures.continue_prob[:, 0] >= 0.5).tolist(),
        )

    def _goal(self, found: "_Successors") -> tuple[int, int] | None:
        """The best confirmed goal among the successors, as (its row, its new node), if there is one."""
        claims = [row for row, claimed in enumerate(found.claims) if claimed]
        for row in sorted(claims, key=lambda row: -found.scores[row]):
            parent, action = found.edges[row]
            if (self.keys[parent], action) not in self.refuted.goals and self._confirmed(parent, action):
                return row, self._add(parent, action, found.keys[row])
            # The claim is dropped, the state is not: it is expanded like any other.
            self.num_unconfirmed += 1
        return None

    def _confirmed(self, parent: int, action: int) -> bool:
        if self.sample is not None:  # the likely future does not lead there: the world has to tell
            return True
        actions = torch.tensor([*(step for step, _ in self._path(parent)), action], device=_device(self.world))
        self.num_simulated += len(actions)
        return self.critic.confirms(self.world, self.root, actions)

    def _fold(self, found: "_Successors") -> dict[int, int]:
        """Adds the states not seen before; returns those to go on from, row -> node."""
        fresh = {}
        for row, key in enumerate(found.keys):
            if key in self.seen:
                self.num_folded += 1
                continue
            node = self._add(*found.edges[row], key)
            if found.scores[row] > self.best_score and not found.claims[row]:  # a claim still here was not confirmed
                self.best, self.best_score = node, found.scores[row]
            if found.going_on[row]:  # an ended state must not hide another, unended way to the same codes
                self.seen.add(key)
                fresh[row] = node
        return fresh

    def _add(self, parent: int, action: int, key: bytes) -> int:
        self.parents.append(parent)
        self.actions.append(action)
        self.keys.append(key)
        return len(self.keys) - 1

    def _path(self, node: int) -> list[tuple[int, bytes]]:
        """(action, key of the state it leads to) from the root to `node`."""
        steps = []
        while node > 0:
            steps.append((self.actions[node], self.keys[node]))
            node = self.parents[node]
        return steps[::-1]

    def _plan(self, node: int, expected_return: float, reaches_goal: bool = False) -> Plan:
        steps = self._path(node) or self._any_step()
        return Plan(
            actions=torch.tensor([action for action, _ in steps], dtype=torch.long),
            expected_return=expected_return,
            states=[key for _, key in steps],
            num_simulated=self.num_simulated,
            seconds=0.0,  # filled in by the planner
            reaches_goal=reaches_goal,
            num_folded=self.num_folded,
        )

    def _any_step(self) -> list[tuple[int, bytes]]:
        """One step that stays where it is, for a root that nothing leads away from; none if all are refuted."""
        moves = self._moves([0])
        return [(moves[0][1], self.keys[0])] if moves else []


def _draw_seed(generator: torch.Generator | None) -> int:
    return int(torch.randint(2**31, (1,), generator=generator))


def _device(world) -> torch.device:
    return getattr(world, "device", torch.device("cpu"))


def _check_positive(config, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{type(config).__name__}: `{name}` must be positive, got {getattr(config, name)}.")


def _check_rollouts(config) -> None:
    if config.temperature < 0 or (config.num_rollouts > 1 and config.temperature == 0):
        raise ValueError(
            f"{type(config).__name__}: {config.num_rollouts} rollouts at temperature {config.temperature} are all the "
            "same future; use num_rollouts=1, or a temperature above 0."
        )


def _check_one_row(belief) -> None:
    if len(belief) != 1:
        raise ValueError(f"A plan starts from one belief; got {len(belief)} rows. Use `belief.select` to pick one.")
