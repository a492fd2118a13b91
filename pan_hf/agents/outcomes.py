"""The graph of what a search has imagined: states, what was tried in them, and the outcomes that were met.

Equal states are one node. An edge, a state and an action, is a chance node: its first outcome is the most likely one,
later ones are drawn, so a stochastic world is searched as one. Outcomes are weighed by the probability that the model
gives them, or by how often they were drawn where it gives none. An edge is drawn no more once its outcomes make up
nearly all of the probability.

Each node is owned by the edge that found it on the shortest way. The owning edges are a tree: a node is closed when
nothing that it owns is left to explore. Values follow all edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pan_hf.agents.plan import Candidate, Foreseen, best_candidates
from pan_hf.agents.planner import Problem
from pan_hf.agents.strategy import Decision, Strategy, likely_way, stacked
from pan_hf.agents.successors import Successors, gather, imagine_step

if TYPE_CHECKING:
    from pan_hf.agents.outcome_search import OutcomeSearch

_RETRIES = 3  # a chance is of as many times the steps of the longest way: one that takes more circles is no way
_SHORTER = 1 - 1e-6  # a discount at least, so that of ways worth the same the shorter is taken


@dataclass(eq=False)
class Node:
    """A state.

    Args:
        key (`bytes`): of what would be seen.
        belief: (belief of several rows, row); None where nothing is imagined from it.
        depth (`int`): actions on the way by which it is owned.
        choices (`list[int]`): numbers of the actions to try.
        value (`float`): what is known of its future; before anything is imagined, what is taken to be.
        owner ([`Edge`], *optional*): that found it; None of the root.
        is_likely (`bool`): whether the way to it has only most likely outcomes.
        likelihood (`float`): of that way.
        is_end (`bool`): whether nothing comes after it: the episode is over, or the goal is reached.
    """

    key: bytes
    belief: tuple[Any, int] | None
    depth: int
    choices: list[int]
    value: float
    owner: "Edge | None" = None
    is_likely: bool = True
    likelihood: float = 1.0
    is_end: bool = False
    is_closed: bool = False
    visits: int = 0
    prior: Sequence[float] | None = None
    edges: dict[int, "Edge"] = field(default_factory=dict)

    @property
    def open_edges(self) -> list["Edge"]:
        return [edge for edge in self.edges.values() if not edge.is_closed]


@dataclass(eq=False)
class Outcome:
    """A state that an action has led to; `count` is how often it was drawn. `belief` is kept of the root's alone, to
    be looked at."""

    node: Node
    score: float
    continue_prob: float
    duration: int
    probability: float | None
    is_goal: bool
    count: int = 0
    belief: Any = None


@dataclass(eq=False)
class Edge:
    """An action in a state."""

    node: Node
    action: int
    outcomes: dict[tuple, Outcome] = field(default_factory=dict)
    num_drawn: int = 0
    visits: int = 0
    is_complete: bool = False  # nothing is left to draw
    unconfirmed: set[bytes] = field(default_factory=set)  # states that were taken for a goal
    value: float = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether nothing is left to explore through it."""
        return self.is_complete and not self.open_outcomes

    @property
    def open_outcomes(self) -> list[Outcome]:
        return [each for each in self.outcomes.values() if each.node.owner is self and not each.node.is_closed]

    def weights(self) -> list[float]:
        """Chance of each outcome among those met."""
        met = list(self.outcomes.values())
        said = [outcome.probability for outcome in met]
        weights = [float(outcome.count) for outcome in met] if None in said else [float(p or 0) for p in said]
        total = sum(weights)
        return [weight / total for weight in weights] if total > 0 else [1 / len(met)] * len(met)


class OutcomeGraph:
    """What was imagined so far from one belief, see the module.

    Args:
        search ([`OutcomeSearch`]): settings.
        problem ([`Problem`]): with discrete actions.
    """

    def __init__(self, search: "OutcomeSearch", problem: Problem):
        self.search, self.problem, self.parts, self.critic = search, problem, problem.parts, problem.critic
        self.discount = min(self.critic.discount, _SHORTER)
        tried = range(self.parts.num_choices) if search.actions is None else search.actions
        self.choices = [self.parts.number_of(action) for action in tried]
        root, state = problem.root_keys()
        self.root = Node(state, (problem.belief, 0), 0, self._choices(state, problem.allowed_now()), 0.0)
        self._add_edges([self.root])
        self.nodes = {root: self.root}
        self.num_folded = self.num_goals = 0
        self.has_goal = True
        self.low, self.high = np.inf, -np.inf  # values met

    @property
    def num_simulated(self) -> int:
        """Imagined steps so far."""
        return self.problem.world.num_simulated

    @property
    def is_spent(self) -> bool:
        """Whether the budget is."""
        return self.num_simulated >= self.search.budget

    # ---- growing

    def draw(self, edges: list[Edge]) -> None:
        """Imagines an outcome of each edge: the most likely one first, sampled ones later. One `simulate` call for
        each kind and `batch_size` edges."""
        fresh = list(dict.fromkeys(edge for edge in edges if not edge.num_drawn))
        again = [edge for edge in edges if edge.num_drawn]
        size = self.search.batch_size
        for group, is_sampled in ((fresh, False), (again, True)):
            for first in range(0, len(group), size):
                self._draw(group[first : first + size], is_sampled)

    def draw_all(self, nodes: list[Node]) -> None:
        """Imagines every action of some nodes until the outcomes of each are complete."""
        edges = [edge for node in nodes for edge in node.edges.values() if not edge.is_complete]
        while edges:
            self.draw(edges)
            edges = [edge for edge in edges if not edge.is_complete]

    def draw_root(self) -> None:
        """The most likely outcome of every action of the root, and whether there is a goal to search for: whatever is
        done reaches no goal, as a reward for every step does."""
        self.draw(list(self.root.edges.values()))
        goals = [outcome.is_goal for edge in self.root.edges.values() for outcome in edge.outcomes.values()]
        if len(goals) > 1 and all(goals):
            self.has_goal, self.num_goals, self.root.belief = False, 0, (self.problem.belief, 0)
            self.nodes = {self.problem.root_keys()[0]: self.root}
            self._add_edges([self.root])
            self.draw(list(self.root.edges.values()))

    def _draw(self, edges: list[Edge], is_sampled: bool) -> None:
        parents = gather([edge.node.belief for edge in edges])
        actions = self.parts.of_numbers(torch.tensor([edge.action for edge in edges]))
        successors = imagine_step(self.problem, parents, actions, self.search.temperature if is_sampled else 0.0)
        found = [self._add(edge, successors, row, is_sampled) for row, edge in enumerate(edges)]
        self._settle([(row, node) for row, node in enumerate(found) if node is not None], successors)
        for edge in edges:
            if all(each.is_complete for each in edge.node.edges.values()):
                edge.node.belief = None  # nothing is imagined from it any more
            self.refresh(edge)

    def _add(self, edge: Edge, successors: Successors, row: int, is_sampled: bool) -> Node | None:
        """Notes an outcome; returns its node where that is new and goes on."""
        edge.num_drawn += 1
        key, is_goal = successors.keys[row], self._is_goal(edge, successors, row, is_sampled)
        is_end = is_goal or not successors.going_on[row]
        kind = (key, is_end, is_goal)
        outcome, new = edge.outcomes.get(kind), None
        if outcome is None:
            chance = None
            if successors.log_probs is not None and self.search.key_levels is None:
                chance = float(np.exp(successors.log_probs[row]))
            # a claim that is still here was not confirmed, so its score is not believed either
            score = 0.0 if successors.claims[row] and self.has_goal and not is_goal else successors.scores[row]
            outcome = Outcome(
                edge.node, score, successors.continue_probs[row], successors.durations[row], chance, is_goal
            )
            edge.outcomes[kind] = outcome
            if edge.node is self.root:
                outcome.belief = successors.belief.select(torch.tensor([row]))
            outcome.node, new = self._node(edge, outcome, key, successors, row, is_end)
            self.num_goals += is_goal
        outcome.count += is_sampled
        met = sum(each.probability or 0.0 for each in edge.outcomes.values())
        enough = self.search.temperature == 0 or edge.num_drawn >= self.search.num_outcomes
        edge.is_complete = enough or met >= self.search.coverage
        return new

    def _node(
        self, edge: Edge, outcome: Outcome, key: bytes, successors: Successors, row: int, is_end: bool
    ) -> tuple[Node, Node | None]:
        """The node of an outcome, and the same again where it is new and goes on."""
        state = successors.states[row]
        depth = edge.node.depth + 1
        is_likely = edge.node.is_likely and len(edge.outcomes) == 1
        likelihood = edge.node.likelihood * (1.0 if outcome.probability is None else outcome.probability)
        if is_end:  # an ended state must not hide another, unended way to the same codes
            return Node(state, None, depth, [], 0.0, edge, is_likely, likelihood, True, True), None
        node = self.nodes.get(key)
        if node is None:
            left = max(0, self.search.max_depth - depth)
            promised = successors.outlook(self.critic, row, outcome.score, left)
            node = Node(state, None, depth, [], promised, edge, is_likely, likelihood)
            self.nodes[key] = node
            return node, node
        self.num_folded += 1
        if depth < node.depth:
            former, node.owner, node.depth = node.owner, edge, depth
            node.is_likely, node.likelihood = is_likely, likelihood
            node.is_closed = self._is_closed(node)
            self.refresh(former)
        return node, None

    def _settle(self, found: list[tuple[int, Node]], successors: Successors) -> None:
        """Gives new nodes their beliefs, choices and edges."""
        if not found:
            return
        rows = successors.belief.select(torch.tensor([row for row, _ in found]))
        allowed = self.problem.allowed_in(rows)
        for index, (_, node) in enumerate(found):
            node.belief = (rows, index)
            node.choices = self._choices(node.key, None if allowed is None else allowed[index])
        nodes = [node for _, node in found]
        self._add_edges(nodes)
        self.search.judge(self, rows, nodes)

    def _add_edges(self, nodes: list[Node]) -> None:
        for node in nodes:
            node.edges = {action: Edge(node, action) for action in node.choices}
            node.is_closed = self._is_closed(node)

    def _choices(self, key: bytes, allowed: torch.Tensor | None) -> list[int]:
        wrong = self.problem.refuted.transitions
        return [
            action for action in self.choices if (key, action) not in wrong and (allowed is None or allowed[action])
        ]

    def _is_goal(self, edge: Edge, successors: Successors, row: int, is_sampled: bool) -> bool:
        """Whether a claim holds. One on a way of most likely outcomes is confirmed, as graph search does; of another,
        the world has to tell."""
        refuted = self.problem.refuted.goals
        if not successors.claims[row] or not self.has_goal or (edge.node.key, edge.action) in refuted:
            return False
        if is_sampled or not edge.node.is_likely:
            return successors.keys[row] not in edge.unconfirmed
        numbers = torch.tensor([*self.way(edge.node), edge.action])
        is_confirmed = self.problem.confirms(self.parts.of_numbers(numbers))
        if not is_confirmed:
            edge.unconfirmed.add(successors.keys[row])
        return is_confirmed

    def way(self, node: Node) -> list[int]:
        """Numbers of the actions from the root to a node, by the edges that own it."""
        actions = []
        while node.owner is not None:
            actions.append(node.owner.action)
            node = node.owner.node
        return actions[::-1]

    # ---- values

    def refresh(self, edge: Edge | None) -> None:
        """The value of an edge, and values and what is closed of the nodes that own it, as far as they change."""
        while edge is not None:
            node, known = edge.node, (edge.node.value, edge.node.is_closed)
            edge.value = self._worth(edge)
            self.low, self.high = min(self.low, edge.value), max(self.high, edge.value)
            node.value = max(each.value for each in node.edges.values() if each.outcomes)
            node.is_closed = self._is_closed(node)
            edge = None if (node.value, node.is_closed) == known else node.owner

    def _worth(self, edge: Edge) -> float:
        return sum(
            weight * self._value(each) for weight, each in zip(edge.weights(), edge.outcomes.values(), strict=True)
        )

    def _value(self, outcome: Outcome) -> float:
        """What the step to an outcome is worth with what follows it."""
        after = 0.0 if outcome.node.is_end else self._passes(outcome) * outcome.node.value
        return float(self.critic.combine(outcome.score, after))

    def _passes(self, outcome: Outcome) -> float:
        """The share of what comes after an outcome that counts before it."""
        return self.discount**outcome.duration * outcome.continue_prob

    def _is_closed(self, node: Node) -> bool:
        return node.is_end or node.depth >= self.search.max_depth or not node.open_edges

    def solve(self) -> None:
        """Values of all nodes as if each took its best action for `max_depth` steps; nodes of which nothing was
        imagined keep theirs."""
        nodes = [node for node in self.nodes.values() if any(edge.outcomes for edge in node.edges.values())]
        index = {node: number for number, node in enumerate(nodes)}
        edges = [edge for node in nodes for edge in node.edges.values() if edge.outcomes]
        if not edges:
            return
        owner = np.array([index[edge.node] for edge in edges])
        firsts = np.searchsorted(owner, np.arange(len(nodes)))
        rows = [
            (number, weight, each)
            for number, edge in enumerate(edges)
            for weight, each in zip(edge.weights(), edge.outcomes.values(), strict=True)
        ]
        of_edge, weight = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
        score = np.array([each.score for *_, each in rows])
        passes = np.array([0.0 if each.node.is_end else self._passes(each) for *_, each in rows])
        child = np.array([index.get(each.node, len(nodes)) for *_, each in rows])
        fixed = np.array([0.0 if each.node in index else each.node.value for *_, each in rows])
        starts, values = np.searchsorted(of_edge, np.arange(len(edges))), np.zeros(len(nodes) + 1)
        for _ in range(self.search.max_depth):
            worth = weight * self.critic.combine(score, passes * (values[child] + fixed))
            by_edge = np.add.reduceat(worth, starts)
            before, values = values, np.append(np.maximum.reduceat(by_edge, firsts), 0.0)
            if np.allclose(before, values, rtol=0, atol=1e-9):
                break
        for edge, value in zip(edges, by_edge.tolist(), strict=True):
            edge.value = value
        for node, value in zip(nodes, values.tolist(), strict=False):
            node.value = value

    # ---- what comes of it

    def best(self, node: Node) -> Edge | None:
        """The action that is worth most; of several the one that was explored most. None where none was imagined."""
        tried = [edge for edge in node.edges.values() if edge.outcomes]
        return max(tried, key=lambda edge: (round(edge.value, 9), edge.visits), default=None)

    def chance(self) -> float:
        """Of reaching the goal from the root, where each node takes its best action. `solve` comes first."""
        return self._chances(self._chosen()).get(self.root, 0.0)

    def _chances(self, chosen: dict[Node, Edge]) -> dict[Node, float]:
        """Of reaching the goal from each node that takes the chosen action, within [`steps_for`]."""
        chances = dict.fromkeys(chosen, 0.0)
        for _ in range(self.steps_for(chosen)):
            before = chances
            chances = {
                node: sum(
                    weight * (1.0 if each.is_goal else before.get(each.node, 0.0))
                    for weight, each in zip(edge.weights(), edge.outcomes.values(), strict=True)
                )
                for node, edge in chosen.items()
            }
            if all(abs(chances[node] - before[node]) < 1e-6 for node in chances):
                break
        return chances

    def steps_for(self, chosen: dict[Node, Edge]) -> int:
        """Steps within which the chosen actions are to reach the goal. Where an action fails now and then the agent
        tries again; but in a circle any rare outcome, or one that the model is wrong about, would come at last."""
        return min(self.search.max_depth, _RETRIES * (1 + max(node.depth for node in chosen)))

    def half_known(self) -> list[Edge]:
        """Actions that would be taken and of which there are outcomes to draw. `solve` comes first."""
        return [edge for edge in self._chosen().values() if not edge.is_complete]

    def _chosen(self) -> dict[Node, Edge]:
        """The best action of every node that these lead to, the root's first."""
        chosen: dict[Node, Edge] = {}
        ahead = [self.root]
        while ahead:
            node = ahead.pop()
            edge = None if node in chosen or node.is_end else self.best(node)
            if edge is not None:
                chosen[node] = edge
                ahead += [each.node for each in edge.outcomes.values()]
        return chosen

    def strategy(self) -> Strategy:
        """The best action in every state that it leads to."""
        self.solve()
        chosen = self._chosen()
        numbers = {node: number for number, node in enumerate(chosen)}
        chances = self._chances(chosen)
        decisions = [self._decision(edge, numbers, chances[node]) for node, edge in chosen.items()]
        path, states = likely_way(decisions, 0)
        last = list(chosen.values())[path[-1]]
        return Strategy(
            actions=stacked([decisions[number].action for number in path]),
            expected_return=self.root.value,
            states=states,
            reaches_goal=_likeliest(last).is_goal,
            num_folded=self.num_folded,
            parts=self.parts,
            candidates=self._candidates(),
            decisions=decisions,
            path=path,
            chance=decisions[0].chance,
            patience=self.steps_for(chosen),
        )

    def _candidates(self) -> tuple[Candidate, ...]:
        """The actions of the root: what each leads to."""
        tried = [edge for edge in self.root.edges.values() if edge.outcomes]
        visits = sum(edge.visits for edge in tried)
        return best_candidates(
            Candidate(
                actions=self.parts.of_numbers(torch.tensor([edge.action])),
                value=edge.value,
                weight=edge.visits / visits if visits else None,
                reaches_goal=_likeliest(edge).is_goal,
                outcomes=self._foreseen(edge),
            )
            for edge in tried
        )

    def _foreseen(self, edge: Edge) -> tuple[Foreseen, ...]:
        pairs = sorted(zip(edge.weights(), edge.outcomes.values(), strict=True), key=lambda pair: -pair[0])
        return tuple(
            Foreseen(weight, each.score, each.continue_prob, self._value(each), each.is_goal, each.belief)
            for weight, each in pairs
        )

    def _decision(self, edge: Edge, numbers: dict[Node, int], chance: float) -> Decision:
        outcomes: dict[bytes, float] = {}
        for weight, each in zip(edge.weights(), edge.outcomes.values(), strict=True):
            outcomes[each.node.key] = outcomes.get(each.node.key, 0.0) + weight
        following = {each.node.key: numbers[each.node] for each in edge.outcomes.values() if each.node in numbers}
        action = self.parts.of_numbers(torch.tensor([edge.action]))[0]
        return Decision(action, outcomes, following, _likeliest(edge).node.key, chance)


def _likeliest(edge: Edge) -> Outcome:
    return max(zip(edge.weights(), edge.outcomes.values(), strict=True), key=lambda pair: pair[0])[1]
