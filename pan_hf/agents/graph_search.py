"""Graph search over what a world model imagines.

Everything that a prediction depends on is discrete, so two imagined beliefs can be *equal*. Equal ones fold into one,
and a breadth-first search over a few hundred of them finds a shortest plan, where sampling needs luck.

Shapes: N = rows (imagined futures), H = horizon (actions ahead)."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from pan_hf.agents.critics import Critic, as_critic
from pan_hf.agents.plan import (
    Contradicted,
    Plan,
    check_one_part,
    check_one_row,
    check_positive,
    compared_keys,
    device_of,
    draw_seed,
)
from pan_hf.agents.world import World
from pan_hf.features import feature_class

logger = logging.getLogger(__name__)


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
        check_positive(self, "max_states", "batch_size", "max_depth")
        if self.sampled_searches < 0:
            raise ValueError(f"GraphSearch: `sampled_searches` must be 0 or more, got {self.sampled_searches}.")
        if self.key_levels is not None:
            check_positive(self, "key_levels")
        if self.actions is not None:
            object.__setattr__(self, "actions", tuple(self.actions))

    @torch.no_grad()
    def plan(self, world: World, belief, critic, *, generator=None, refuted: Contradicted | None = None) -> Plan:
        """A shortest plan to the goal, or to the best scored state that was found.

        Args:
            world ([`World`]): the model to imagine with; its action has to be discrete.
            belief: where to start; one row.
            critic ([`Critic`] or function of futures): what is wanted.
            generator (`torch.Generator`, *optional*): on the CPU; of the sampled searches.
            refuted ([`Contradicted`], *optional*): what the real world has shown to be wrong.

        Raises:
            ValueError: a belief of more than one row, an action that is not discrete, or `actions` it has not.
        """
        check_one_row(belief)
        check_one_part(world)
        if not feature_class(world.config.action.kind).is_discrete:
            raise ValueError(
                f"GraphSearch tries every action, so it needs a 'discrete' one; got {world.config.action.kind!r}. "
                "Use CEM or RandomShooting."
            )
        everything = range(world.config.action.num_actions)
        if unknown := sorted(set(self.actions or ()) - set(everything)):
            raise ValueError(f"GraphSearch: this world has the actions 0..{everything[-1]}, got {unknown}.")
        start, spent, critic, refuted = time.perf_counter(), 0, as_critic(critic), refuted or Contradicted()
        first = everything if self.actions is None else self.actions
        hopes = self.sampled_searches if math.isfinite(critic.threshold) else 0
        searches = [(first, None), *[(first, partial(draw_seed, generator))] * hopes]
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
    """What one step of imagination found, a row an edge: (parent node, action), keys, score..."""

    belief: Any
    edges: list[tuple[int, int]]
    keys: list[bytes]  # of the beliefs, which fold if they are equal
    states: list[bytes]  # of what would be seen
    scores: list[float]
    durations: list[int]  # in steps
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
        refuted: Contradicted,
        allowed: Sequence[int],
        sample: Callable[[], int] | None,
    ):
        self.config, self.world, self.root, self.critic, self.refuted = config, world, belief, critic, refuted
        self.allowed = allowed  # actions to try
        self.sample = sample  # draws the seed of each step; None: the most likely successors
        self.folded_by = {} if config.key_levels is None else {"levels": config.key_levels}
        self.compared_by = compared_keys(world, config.key_levels)
        self.parents, self.actions, self.keys = [-1], [-1], [belief.keys(**self.compared_by)[0]]
        self.elapsed = [0]  # steps from the root to each node
        self.seen = {belief.keys(**self.folded_by)[0]}
        self.best, self.best_score = 0, float("-inf")
        self.num_simulated = self.num_folded = self.num_unconfirmed = 0

    def run(self) -> Plan:
        frontier, nodes = self.root, [0]
        for _ in range(self.config.max_depth):
            beliefs: list = []
            children: list[int] = []
            for first in range(0, len(nodes), self.config.batch_size):
                found = self._expand(frontier, first, nodes[first : first + self.config.batch_size])
                if found is None:
                    continue
                goal = self._goal(found)
                if goal is not None:
                    row, node = goal
                    worth = self.critic.discount ** self.elapsed[self.parents[node]]
                    return self._plan(node, worth * found.scores[row], reaches_goal=True)
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
        actions = torch.tensor([[action] for _, action in moves], device=device_of(self.world))
        parents = frontier.select(torch.tensor([first + row for row, _ in moves]))
        drawn = {"temperature": 0.0} if self.sample is None else {"temperature": 1.0, "seed": self.sample()}
        futures = self.world.simulate(parents, actions, **drawn)
        self.num_simulated += len(moves)
        scores = self.critic.score(futures)
        return _Successors(
            belief=futures.belief,
            edges=[(nodes[row], action) for row, action in moves],
            keys=futures.belief.keys(**self.folded_by),
            states=futures.belief.keys(**self.compared_by),
            scores=scores[:, 0].tolist(),
            durations=futures.duration[:, 0].tolist() if hasattr(futures, "duration") else [1] * len(moves),
            claims=self.critic.reached(futures, scores)[:, 0].tolist(),
            going_on=(futures.continue_prob[:, 0] >= 0.5).tolist(),
        )

    def _goal(self, found: "_Successors") -> tuple[int, int] | None:
        """The best confirmed goal among the successors, as (its row, its new node), if there is one."""
        claims = [row for row, claimed in enumerate(found.claims) if claimed]
        for row in sorted(claims, key=lambda row: -found.scores[row]):
            parent, action = found.edges[row]
            if (self.keys[parent], action) not in self.refuted.goals and self._confirmed(parent, action):
                return row, self._add(found, row)
            # The claim is dropped, the state is not: it is expanded like any other.
            self.num_unconfirmed += 1
        return None

    def _confirmed(self, parent: int, action: int) -> bool:
        if self.sample is not None:  # the likely future does not lead there: the world has to tell
            return True
        actions = torch.tensor([*(step for step, _ in self._path(parent)), action], device=device_of(self.world))
        self.num_simulated += len(actions)
        return self.critic.confirms(self.world, self.root, actions)

    def _fold(self, found: "_Successors") -> dict[int, int]:
        """Adds the states not seen before; returns those to go on from, row -> node."""
        fresh = {}
        for row, key in enumerate(found.keys):
            if key in self.seen:
                self.num_folded += 1
                continue
            node = self._add(found, row)
            if found.scores[row] > self.best_score and not found.claims[row]:  # a claim still here was not confirmed
                self.best, self.best_score = node, found.scores[row]
            if found.going_on[row]:  # an ended state must not hide another, unended way to the same codes
                self.seen.add(key)
                fresh[row] = node
        return fresh

    def _add(self, found: "_Successors", row: int) -> int:
        """A node for one of the successors."""
        parent, action = found.edges[row]
        self.parents.append(parent)
        self.actions.append(action)
        self.keys.append(found.states[row])
        self.elapsed.append(self.elapsed[parent] + found.durations[row])
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
