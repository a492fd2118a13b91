"""Graph search over what a world model imagines.

Everything that a prediction depends on is discrete, so two imagined beliefs can be *equal*. Equal ones fold into one,
and a breadth-first search over a few hundred of them finds a shortest plan, where sampling needs luck.

Shapes: N = rows (imagined futures), H = horizon (actions ahead)."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.plan import Candidate, Plan, best_candidates, check_numbers
from pan_hf.agents.planner import Planner, Problem, check_choices, check_counts, check_discrete
from pan_hf.agents.successors import Successors, imagine_step
from pan_hf.modeling.validation_pan import whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GraphSearch(Planner):
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
        check_counts(self, "max_states", "batch_size", "max_depth")
        check_numbers(self, whole, "sampled_searches")
        check_choices(self)

    def check_world(self, config: Any) -> None:
        """Raises ValueError where the actions of a world are not discrete."""
        check_discrete(self, ActionParts(config))

    def _search(self, problem: Problem) -> Plan | None:
        """A shortest plan to the goal, or to the best scored state."""
        everything = range(problem.parts.num_choices)
        preferred = None if self.actions is None else [problem.parts.number_of(action) for action in self.actions]
        hopes = self.sampled_searches if math.isfinite(problem.critic.threshold) else 0
        first = everything if preferred is None else preferred
        searches = [(first, False), *[(first, True)] * hopes]
        if preferred is not None:
            searches.append((everything, False))
        for choices, is_sampled in searches:
            search = _Search(self, problem, choices, is_sampled)
            result = search.run()
            if not is_sampled or (result is not None and result.reaches_goal):
                plan = result
            if (result is not None and result.reaches_goal) or (not is_sampled and not search.has_goal):
                break
        logger.debug(
            "graph search: %d states, %d folded, %d goals not confirmed",
            len(search.keys), search.num_folded, search.num_unconfirmed,
        )  # fmt: skip
        return plan


class _Search:
    """One run of [`GraphSearch`]. A node is an index into `parents`, `actions` and `keys`; node 0 is the root. An edge
    is a node and the number of an action."""

    def __init__(self, config: GraphSearch, problem: Problem, choices: Sequence[int], is_sampled: bool):
        self.config, self.problem, self.parts = config, problem, problem.parts
        self.choices = choices  # numbers of the actions to try
        self.temperature = 1.0 if is_sampled else 0.0
        root, state = problem.root_keys()
        self.parents, self.actions, self.keys = [-1], [-1], [state]
        self.firsts = [-1]  # the root's action that each node is below
        self.ends: dict[int, tuple[int, float]] = {}  # by action of the root, the best node below it, and its score
        self.elapsed = [0]  # steps from the root to each node
        self.seen = {root}
        self.best, self.best_score = 0, float("-inf")
        self.num_folded = self.num_unconfirmed = 0
        self.has_goal = True

    def run(self) -> Plan | None:
        frontier, nodes = self.problem.belief, [0]
        for _ in range(self.config.max_depth):
            beliefs: list = []
            children: list[int] = []
            for first in range(0, len(nodes), self.config.batch_size):
                moves = self._moves(frontier, first, nodes[first : first + self.config.batch_size])
                if not moves:
                    continue
                edges = [(nodes[row], action) for row, action in moves]
                successors = self._expand(frontier, moves, is_root=nodes == [0])
                goal = self._goal(edges, successors)
                if goal is not None:
                    row, node = goal
                    worth = self.problem.critic.discount ** self.elapsed[self.parents[node]]
                    return self._plan(node, worth * successors.scores[row], reaches_goal=True)
                fresh = self._fold(edges, successors)
                if not self.has_goal:
                    return self._plan(self.best, self.best_score)
                if fresh:
                    beliefs.append(successors.belief.select(torch.tensor(list(fresh))))
                    children += fresh.values()
                if len(self.keys) > self.config.max_states:
                    return self._plan(self.best, self.best_score)
            if not children:
                break
            frontier, nodes = type(frontier).cat(beliefs), children
        return self._plan(self.best, self.best_score)

    def _moves(self, frontier, first: int, nodes: list[int]) -> list[tuple[int, int]]:
        """(row of `frontier`, action) of every action that is allowed in some nodes and that the real world has not
        refuted. Args: first, the row of the first of `nodes`."""
        rows, wrong = range(first, first + len(nodes)), self.problem.refuted.transitions
        allowed = self._allowed(frontier, rows, nodes)
        return [
            (row, action)
            for index, (row, node) in enumerate(zip(rows, nodes, strict=True))
            for action in self.choices
            if (self.keys[node], action) not in wrong and (allowed is None or allowed[index, action])
        ]

    def _allowed(self, frontier, rows: Sequence[int], nodes: list[int]) -> Tensor | None:
        """Which actions are allowed at `nodes`, `(len(nodes), num_choices)` bool; None where nothing is forbidden."""
        if nodes != [0]:
            return self.problem.allowed_in(frontier.select(torch.tensor(rows)))
        allowed = self.problem.allowed_now()
        return None if allowed is None else allowed[None]

    def _expand(self, frontier, moves: list[tuple[int, int]], is_root: bool) -> Successors:
        """One imagined step of each of the moves."""
        parents = frontier.select(torch.tensor([row for row, _ in moves]))
        actions = self.parts.of_numbers(torch.tensor([action for _, action in moves]))
        successors = imagine_step(self.problem, parents, actions, self.temperature)
        if is_root and len(moves) > 1 and all(successors.claims):
            # Whatever is done reaches this "goal", as a reward for every step does: there is none to search for, and
            # the plan is the best single action.
            self.has_goal = False
        successors.claims = [claimed and self.has_goal for claimed in successors.claims]
        return successors

    def _goal(self, edges: list[tuple[int, int]], successors: Successors) -> tuple[int, int] | None:
        """The best confirmed goal among the successors, as (its row, its new node), if there is one."""
        claims = [row for row, claimed in enumerate(successors.claims) if claimed]
        for row in sorted(claims, key=lambda row: -successors.scores[row]):
            parent, action = edges[row]
            if (self.keys[parent], action) not in self.problem.refuted.goals and self._is_confirmed(parent, action):
                return row, self._add(edges[row], successors, row)
            # The claim is dropped, the state is not: it is expanded like any other.
            self.num_unconfirmed += 1
        return None

    def _is_confirmed(self, parent: int, action: int) -> bool:
        if self.temperature:  # the likely future does not lead there: the world has to tell
            return True
        numbers = torch.tensor([*(step for step, _ in self._path(parent)), action])
        return self.problem.confirms(self.parts.of_numbers(numbers))

    def _fold(self, edges: list[tuple[int, int]], successors: Successors) -> dict[int, int]:
        """Adds the states not seen before; returns those to go on from, row -> node."""
        fresh = {}
        for row, key in enumerate(successors.keys):
            if key in self.seen:
                self.num_folded += 1
                continue
            node = self._add(edges[row], successors, row)
            # a claim that is still here was not confirmed, so its score is not believed either
            score = float("-inf") if successors.claims[row] else successors.scores[row]
            if score > self.best_score:
                self.best, self.best_score = node, score
            if self.firsts[node] not in self.ends or score > self.ends[self.firsts[node]][1]:
                self.ends[self.firsts[node]] = node, score
            if successors.going_on[row]:  # an ended state must not hide another, unended way to the same codes
                self.seen.add(key)
                fresh[row] = node
        return fresh

    def _add(self, edge: tuple[int, int], successors: Successors, row: int) -> int:
        """A node for the successor at the end of an edge."""
        parent, action = edge
        self.parents.append(parent)
        self.actions.append(action)
        self.keys.append(successors.states[row])
        self.firsts.append(self.firsts[parent] if parent else action)
        self.elapsed.append(self.elapsed[parent] + successors.durations[row])
        return len(self.keys) - 1

    def _path(self, node: int) -> list[tuple[int, bytes]]:
        """(action, key of the state it leads to) from the root to `node`."""
        steps = []
        while node > 0:
            steps.append((self.actions[node], self.keys[node]))
            node = self.parents[node]
        return steps[::-1]

    def _plan(self, node: int, expected_return: float, reaches_goal: bool = False) -> Plan | None:
        steps = self._path(node)
        if not steps:  # nothing leads away from the root: any action that is not refuted stays there
            steps = [(action, self.keys[0]) for _, action in self._moves(self.problem.belief, 0, [0])[:1]]
        if not steps:
            return None
        return Plan(
            actions=self.parts.of_numbers(torch.tensor([action for action, _ in steps])),
            expected_return=expected_return,
            states=[key for _, key in steps],
            reaches_goal=reaches_goal,
            num_folded=self.num_folded,
            parts=self.parts,
            candidates=self._candidates(node, expected_return, reaches_goal),
        )

    def _candidates(self, chosen: int, worth: float, reaches_goal: bool) -> tuple[Candidate, ...]:
        """The way to the chosen node, and by every other action of the root the way to the best node below it."""
        ends = [(chosen, worth)] if chosen else []
        ends += [end for first, end in self.ends.items() if not chosen or first != self.firsts[chosen]]
        return best_candidates(
            Candidate(
                actions=self.parts.of_numbers(torch.tensor([action for action, _ in self._path(node)])),
                value=score if math.isfinite(score) else None,
                reaches_goal=reaches_goal and node == chosen,
            )
            for node, score in ends
        )
