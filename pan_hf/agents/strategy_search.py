"""A search for a strategy: what to do in each outcome, found by exploring the likeliest ways first."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from pan_hf.agents.outcome_search import OutcomeSearch
from pan_hf.agents.outcomes import Node, OutcomeGraph


@dataclass(frozen=True)
class StrategySearch(OutcomeSearch):
    """Best-first search over outcomes; its plan is a [`Strategy`].

    States are expanded in the order of how likely the way to them is, discounted by its length: breadth first where
    the model is sure, and the rarer outcomes of the same states later. Each action of a state is imagined until its
    outcomes are complete. The search ends where the goal is reached with a chance of `enough`. Unlike [`MCTS`] it
    looks nowhere for the sake of a value, so its ways are as short as those of [`GraphSearch`].

    Args:
        budget, batch_size, max_depth, num_outcomes, coverage, temperature, enough, actions, key_levels: see
            [`OutcomeSearch`].
    """

    def _explore(self, graph: OutcomeGraph, is_content: Callable[[], bool]) -> None:
        order = count()
        ahead: list[tuple[float, int, Node]] = [(-1.0, next(order), graph.root)]
        known = {graph.root}
        while ahead and not graph.is_spent and not is_content():
            size = max(1, self.batch_size // graph.parts.num_choices)
            nodes = [heapq.heappop(ahead)[2] for _ in range(min(size, len(ahead)))]
            graph.draw_all([node for node in nodes if not node.is_closed])
            found = [each.node for node in nodes for edge in node.edges.values() for each in edge.outcomes.values()]
            for node in found:
                if node not in known and not node.is_closed:
                    known.add(node)
                    worth = node.likelihood * graph.discount**node.depth
                    heapq.heappush(ahead, (-worth, next(order), node))
