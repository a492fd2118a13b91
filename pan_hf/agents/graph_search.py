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
from torch import Tensor

from pan_hf.agents.actions import MASK, ActionParts
from pan_hf.agents.critics import Critic, as_critic
from pan_hf.agents.plan import (
    Contradicted,
    Plan,
    check_choices,
    check_discrete,
    check_numbers,
    check_one_row,
    compared_keys,
    device_of,
    draw_seed,
)
from pan_hf.agents.successors import Successors, imagine_step
from pan_hf.agents.world import World
from pan_hf.modeling.validation_pan import whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GraphSearch:
    """Breadth-first search over code states; equal states fold into one, so the first goal is a nearest one.

    A batch of nodes times all actions is one `simulate` call of one step at temperature 0: the search follows the
    most likely successors. Where these lead to no goal it hopes: it searches again among sampled successors, so that
    what the model holds for possible and not for likely, such as a door that it has seldom seen open, is tried in the
    world instead of given up. Where no goal is found so either, the plan leads to the best scored likely state.
    Only the beliefs of the current and the next depth are held; a node is its parent, its action and its key. An
    action of several discrete parts counts as one of their combinations.

    Args:
        max_states (`int`): distinct states after which the search gives up.
        batch_size (`int`): nodes expanded in one call.
        max_depth (`int`): longest plan.
        actions (`Sequence[int | str]`, *optional*): numbers or names of actions that are tried alone first; all are
            tried only where these do not reach the goal, by sampled successors either. The states of a world multiply
            with what can be done in it: in MiniGrid's DoorKey, leaving out dropping the key makes the search eight
            times cheaper. The plan is then a shortest one of these actions.
        key_levels (`int`, *optional*): states are equal if so many levels of their codes are, the coarsest first; all
            levels by default. For worlds that predict the coarsest levels alone.
        sampled_searches (`int`): searches among sampled successors, at most, where the likely ones reach no goal; a
            successor of probability p is missed by all n of them with probability (1 - p)^n. 0: none. Critics whose
            threshold is infinite know no goal and get none.
    """

    max_states: int = 5000
    batch_size: int = 32
    max_depth: int = 100
    actions: tuple[int | str, ...] | None = None
    key_levels: int | None = None
    sampled_searches: int = 4

    def __post_init__(self):
        counts = ["max_states", "batch_size", "max_depth"] + ["key_levels"] * (self.key_levels is not None)
        check_numbers(self, whole, *counts, least=1)
        check_numbers(self, whole, "sampled_searches")
        check_choices(self)

    def check_world(self, config: Any) -> None:
        """Raises ValueError where the actions of a world are not discrete."""
        check_discrete(self, ActionParts(config))

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
        """A shortest plan to the goal, or to the best scored state.

        Args:
            world ([`World`]): the model to imagine with; its action has to be discrete.
            belief: where to start; one row.
            critic ([`Critic`] or function of futures): what is wanted.
            generator (`torch.Generator`, *optional*): on the CPU; of the sampled searches.
            refuted ([`Contradicted`], *optional*): what the real world has shown to be wrong.
            mask (*optional*): which actions are allowed now, `(num_actions,)` of 0 and 1, by part where there are
                several; all by default. Later ones are known where the world has a sense "action_mask".

        Raises:
            ValueError: a belief of more than one row, an action that is not discrete, `actions` it has not, a critic
                whose scores are not numbers, or a mask that allows nothing.
        """
        check_one_row(belief, generator)
        parts = ActionParts(world.config)
        check_discrete(self, parts)
        preferred = None if self.actions is None else [parts.number_of(action) for action in self.actions]
        masks = parts.check_masks(mask)
        allowed = parts.allows(masks, parts.of_numbers(torch.arange(parts.num_choices))) if masks else None
        start, spent, critic, refuted = time.perf_counter(), 0, as_critic(critic), refuted or Contradicted()
        everything = range(parts.num_choices)
        first = everything if preferred is None else preferred
        hopes = self.sampled_searches if math.isfinite(critic.threshold) else 0
        searches = [(first, None), *[(first, partial(draw_seed, generator))] * hopes]
        if preferred is not None:
            searches.append((everything, None))
        for choices, sample in searches:
            search = _Search(self, world, parts, belief, critic, refuted, choices, allowed, sample)
            result = search.run()
            spent += result.num_simulated
            if result.reaches_goal or sample is None:
                plan = result
            if result.reaches_goal or (sample is None and not search.has_goal):
                break
        if not len(plan):  # every way out is refuted: believe the model again
            return self.plan(world, belief, critic, generator=generator, mask=mask)
        plan = replace(plan, num_simulated=spent, seconds=time.perf_counter() - start)
        logger.debug(
            "graph search: %d actions, goal %s, %d states, %d folded, %d goals not confirmed, %.2f s",
            len(plan), plan.reaches_goal, len(search.keys), plan.num_folded, search.num_unconfirmed, plan.seconds,
        )  # fmt: skip
        return plan


class _Search:
    """One run of [`GraphSearch`]. A node is an index into `parents`, `actions` and `keys`; node 0 is the root."""

    def __init__(
        self,
        config: GraphSearch,
        world: World,
        parts: ActionParts,
        belief,
        critic: Critic,
        refuted: Contradicted,
        choices: Sequence[int],
        allowed: Tensor | None,
        sample: Callable[[], int] | None,
    ):
        self.config, self.world, self.root, self.critic, self.refuted = config, world, belief, critic, refuted
        self.parts, self.choices = parts, choices  # numbers of the actions to try
        self.allowed = allowed  # of them, at the root
        self.sample = sample  # draws the seed of each step; None: the most likely successors
        self.folded_by = {} if config.key_levels is None else {"levels": config.key_levels}
        self.compared_by = compared_keys(world, config.key_levels)
        self.parents, self.actions, self.keys = [-1], [-1], [belief.keys(**self.compared_by)[0]]
        self.elapsed = [0]  # steps from the root to each node
        self.seen = {belief.keys(**self.folded_by)[0]}
        self.best, self.best_score = 0, float("-inf")
        self.num_simulated = self.num_folded = self.num_unconfirmed = 0
        self.has_goal = True

    def run(self) -> Plan:
        frontier, nodes = self.root, [0]
        for _ in range(self.config.max_depth):
            beliefs: list = []
            children: list[int] = []
            for first in range(0, len(nodes), self.config.batch_size):
                successors = self._expand(frontier, first, nodes[first : first + self.config.batch_size])
                if successors is None:
                    continue
                goal = self._goal(successors)
                if goal is not None:
                    row, node = goal
                    worth = self.critic.discount ** self.elapsed[self.parents[node]]
                    return self._plan(node, worth * successors.scores[row], reaches_goal=True)
                fresh = self._fold(successors)
                if not self.has_goal:
                    return self._plan(self.best, self.best_score)
                if fresh:
                    beliefs.append(successors.belief.select(torch.tensor(list(fresh))))
                    children += fresh.values()
                if len(self.keys) > self.config.max_states:
                    return self._plan(self.best, self.best_score)
            if not children:
                break
            frontier, nodes = type(self.root).cat(beliefs), children
        return self._plan(self.best, self.best_score)

    def _moves(self, nodes: list[int], allowed: Tensor | None) -> list[tuple[int, int]]:
        """(row in `nodes`, action) of every action that is allowed there and that the real world has not refuted.
        Args: allowed, `(rows of nodes, num_choices)`."""
        wrong = self.refuted.transitions
        return [
            (row, action)
            for row, node in enumerate(nodes)
            for action in self.choices
            if (self.keys[node], action) not in wrong and (allowed is None or allowed[row, action])
        ]

    def _allowed(self, frontier, first: int, nodes: list[int]) -> Tensor | None:
        """Which actions are allowed at `nodes`, `(len(nodes), num_choices)` bool; None where nothing is forbidden."""
        if nodes == [0]:
            return None if self.allowed is None else self.allowed[None]
        if not self.parts.predicts_mask(self.world.config):
            return None
        return frontier.select(torch.arange(first, first + len(nodes))).decode(MASK) > 0.5

    def _expand(self, frontier, first: int, nodes: list[int]) -> Successors | None:
        """One imagined step of all actions from `nodes`, whose beliefs are rows `first`... of `frontier`."""
        moves = self._moves(nodes, self._allowed(frontier, first, nodes))
        if not moves:
            return None
        numbers = torch.tensor([[action] for _, action in moves], device=device_of(self.world))
        parents = frontier.select(torch.tensor([first + row for row, _ in moves]))
        drawn: dict[str, Any] = (
            {"temperature": 0.0} if self.sample is None else {"temperature": 1.0, "seed": self.sample()}
        )
        edges = [(nodes[row], action) for row, action in moves]
        keys = (self.folded_by, self.compared_by)
        successors = imagine_step(
            self.world, parents, self.parts.of_numbers(numbers), edges, self.critic, *keys, **drawn
        )
        self.num_simulated += len(moves)
        if nodes == [0] and len(moves) > 1 and all(successors.claims):
            # Whatever is done reaches this "goal", as a reward for every step does: there is none to search for, and
            # the plan is the best single action.
            self.has_goal = False
        successors.claims = [claimed and self.has_goal for claimed in successors.claims]
        return successors

    def _goal(self, successors: Successors) -> tuple[int, int] | None:
        """The best confirmed goal among the successors, as (its row, its new node), if there is one."""
        claims = [row for row, claimed in enumerate(successors.claims) if claimed]
        for row in sorted(claims, key=lambda row: -successors.scores[row]):
            parent, action = successors.edges[row]
            if (self.keys[parent], action) not in self.refuted.goals and self._confirmed(parent, action):
                return row, self._add(successors, row)
            # The claim is dropped, the state is not: it is expanded like any other.
            self.num_unconfirmed += 1
        return None

    def _confirmed(self, parent: int, action: int) -> bool:
        if self.sample is not None:  # the likely future does not lead there: the world has to tell
            return True
        numbers = torch.tensor([*(step for step, _ in self._path(parent)), action], device=device_of(self.world))
        self.num_simulated += len(numbers)
        return self.critic.confirms(self.world, self.root, self.parts.of_numbers(numbers))

    def _fold(self, successors: Successors) -> dict[int, int]:
        """Adds the states not seen before; returns those to go on from, row -> node."""
        fresh = {}
        for row, key in enumerate(successors.keys):
            if key in self.seen:
                self.num_folded += 1
                continue
            node = self._add(successors, row)
            # a claim that is still here was not confirmed, so its score is not believed either
            if successors.scores[row] > self.best_score and not successors.claims[row]:
                self.best, self.best_score = node, successors.scores[row]
            if successors.going_on[row]:  # an ended state must not hide another, unended way to the same codes
                self.seen.add(key)
                fresh[row] = node
        return fresh

    def _add(self, successors: Successors, row: int) -> int:
        """A node for one of the successors."""
        parent, action = successors.edges[row]
        self.parents.append(parent)
        self.actions.append(action)
        self.keys.append(successors.states[row])
        self.elapsed.append(self.elapsed[parent] + successors.durations[row])
        return len(self.keys) - 1

    def _path(self, node: int) -> list[tuple[int, bytes]]:
        """(action, key of the state it leads to) from the root to `node`."""
        steps = []
        while node > 0:
            steps.append((self.actions[node], self.keys[node]))
            node = self.parents[node]
        return steps[::-1]

    def _plan(self, node: int, expected_return: float, reaches_goal: bool = False) -> Plan:
        at_root = self._moves([0], self._allowed(self.root, 0, [0]))
        # Where nothing leads away from the root, any action that is not refuted stays there.
        steps = self._path(node) or [(action, self.keys[0]) for _, action in at_root[:1]]
        return Plan(
            actions=self.parts.of_numbers(torch.tensor([action for action, _ in steps], dtype=torch.long)),
            expected_return=expected_return,
            states=[key for _, key in steps],
            num_simulated=self.num_simulated,
            seconds=0.0,  # filled in by the planner
            reaches_goal=reaches_goal,
            num_folded=self.num_folded,
            parts=self.parts,
        )
