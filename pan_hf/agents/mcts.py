"""Monte Carlo tree search (PUCT, as in AlphaZero; Silver et al. 2017) over what a world model imagines.

States are codes, so equal states are one node and the tree is a graph. Each simulation walks from the root along the
actions of the largest value plus exploration bonus, and ends at an action that is still to be imagined; several such
actions are imagined in one call. What is fully explored is closed and never walked into again, so a small world is
searched to its end.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from pan_hf.agents.outcome_search import OutcomeSearch
from pan_hf.agents.outcomes import Edge, Node, OutcomeGraph
from pan_hf.agents.plan import check_numbers, device_of
from pan_hf.agents.shooting import judge_futures
from pan_hf.modeling.validation_pan import real, whole


@dataclass(frozen=True)
class MCTS(OutcomeSearch):
    """Monte Carlo tree search; its plan is a [`Strategy`].

    A second outcome of an action is drawn once it was walked through often enough: after `v` walks it has about
    `v ** widening` of them (progressive widening), and `num_outcomes` at most. A node is worth what its best action is
    worth, the mean over outcomes, rather than the mean of all walks: the model is not noise to be averaged.

    Args:
        budget, batch_size, max_depth, num_outcomes, coverage, temperature, enough, actions, key_levels: see
            [`OutcomeSearch`].
        exploration (`float`): weight of the bonus for what was tried seldom.
        widening (`float`): exponent of outcomes by walks, in [0, 1].
        rollout_steps (`int`): random actions imagined from each new state to tell its worth; 0: the critic's outlook.
        prior (`Callable`, *optional*): `beliefs -> (N, num_choices)`, how likely each action is to be a good one, such
            as a policy's probabilities; uniform by default.

    Raises:
        ValueError: a setting is no number of its range.
    """

    exploration: float = 1.25
    widening: float = 0.5
    rollout_steps: int = 0
    prior: Callable[[Any], Any] | None = field(default=None)

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, real, "exploration", least=0)
        check_numbers(self, real, "widening", least=0, most=1)
        check_numbers(self, whole, "rollout_steps")
        if self.prior is not None and not callable(self.prior):
            raise ValueError(f"MCTS: `prior` must be a function of beliefs, got {self.prior!r}.")

    def _explore(self, graph: OutcomeGraph, is_content: Callable[[], bool]) -> None:
        self.judge(graph, graph.problem.belief, [graph.root])
        while not graph.is_spent and not graph.root.is_closed and not is_content():
            chosen: list[Edge] = []
            for _ in range(self.batch_size):
                edge = self._walk(graph, set(chosen))
                if edge is None:  # all that is open was chosen already
                    break
                chosen.append(edge)
            if not chosen:
                break
            graph.draw(chosen)

    def _walk(self, graph: OutcomeGraph, pending: set[Edge]) -> Edge | None:
        """The edge to imagine next, from the root on. Visits count at once, so that a batch spreads."""
        node = graph.root
        while True:
            edges = [edge for edge in node.open_edges if edge not in pending]
            if not edges:
                return None
            edge = max(edges, key=lambda edge: self._promise(graph, node, edge))
            node.visits += 1
            edge.visits += 1
            following = edge.open_outcomes
            wants_more = not edge.is_complete and edge.num_drawn < max(1, edge.visits**self.widening)
            if wants_more or not following:
                return edge
            weights = dict(zip(map(id, edge.outcomes.values()), edge.weights(), strict=True))
            node = max(following, key=lambda each: weights[id(each)] / (1 + each.node.visits)).node

    def _promise(self, graph: OutcomeGraph, node: Node, edge: Edge) -> float:
        """PUCT: the value, as a share of the values met, and the bonus."""
        value = edge.value if edge.outcomes else node.value
        span = graph.high - graph.low
        share = (value - graph.low) / span if span > 0 else 0.0
        chance = 1 / len(node.edges) if node.prior is None else node.prior[edge.action]
        return share + self.exploration * chance * math.sqrt(1 + node.visits) / (1 + edge.visits)

    def judge(self, graph: OutcomeGraph, beliefs, nodes: list[Node]) -> None:
        if self.prior is not None:
            for node, chances in zip(nodes, self._priors(graph, beliefs, len(nodes)), strict=True):
                node.prior = chances
        if self.rollout_steps and nodes != [graph.root]:
            for node, value in zip(nodes, self._rollouts(graph, beliefs, len(nodes)), strict=True):
                node.value = value

    def _priors(self, graph: OutcomeGraph, beliefs, rows: int) -> list[list[float]]:
        assert self.prior is not None
        said = torch.as_tensor(self.prior(beliefs)).float()
        expected = (rows, graph.parts.num_choices)
        if said.shape != expected or not torch.isfinite(said).all() or (said < 0).any():
            raise ValueError(
                f"MCTS: `prior` must return {expected} numbers of at least 0, got shape {tuple(said.shape)}."
            )
        return (said / said.sum(1, keepdim=True).clamp(min=1e-9)).tolist()

    def _rollouts(self, graph: OutcomeGraph, beliefs, rows: int) -> list[float]:
        """What random actions bring from each row on."""
        problem, shape = graph.problem, (rows, self.rollout_steps)
        numbers = torch.randint(graph.parts.num_choices, shape, generator=problem.generator)
        actions = graph.parts.of_numbers(numbers.to(device_of(problem.world)))
        futures = problem.world.simulate(beliefs, actions, **problem.drawn(self.temperature))
        return judge_futures(problem, futures, actions)[2].tolist()
