"""What searches over outcomes share: their settings, and how a plan comes about."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.outcomes import Node, OutcomeGraph
from pan_hf.agents.plan import Plan, check_numbers
from pan_hf.agents.planner import Planner, Problem, check_choices, check_counts, check_discrete
from pan_hf.modeling.validation_pan import real


@dataclass(frozen=True)
class OutcomeSearch(Planner):
    """What searches over outcomes share: their settings, and how a plan comes about. Needs discrete actions.

    Args:
        budget (`int`): imagined steps after which the search gives up.
        batch_size (`int`): edges imagined in one call.
        max_depth (`int`): longest way.
        num_outcomes (`int`): outcomes drawn of an action in a state, at most; the first is the most likely one.
        coverage (`float`): probability of the outcomes met from which on no more are drawn, where the model tells it.
        temperature (`float`): of drawn outcomes; 0: the most likely outcomes are all there is.
        enough (`float`): chance of reaching the goal with which the search is content, however long its way is; above
            1: never, so that the search goes on for a shorter one.
        actions (`Sequence[int | str]`, *optional*): numbers or names of the actions to try; all by default.
        key_levels (`int`, *optional*): see [`GraphSearch`].

    Raises:
        ValueError: a setting is no number of its range.
    """

    budget: int = 10_000
    batch_size: int = 32
    max_depth: int = 100
    num_outcomes: int = 4
    coverage: float = 0.95
    temperature: float = 1.0
    enough: float = 0.9
    actions: tuple[int | str, ...] | None = None
    key_levels: int | None = None

    def __post_init__(self):
        check_counts(self, "budget", "batch_size", "max_depth", "num_outcomes")
        check_numbers(self, real, "coverage", least=0, most=1, above=True)
        check_numbers(self, real, "temperature", "enough", least=0)
        check_choices(self)

    def check_world(self, config: Any) -> None:
        """Raises ValueError where the actions of a world are not discrete."""
        check_discrete(self, ActionParts(config))

    def _search(self, problem: Problem) -> Plan | None:
        """A [`Strategy`]: what to do now, and in each outcome met."""
        graph = OutcomeGraph(self, problem)
        if not graph.root.choices:
            return None
        graph.draw_root()
        self._explore(graph, Content(graph, self.enough))
        return graph.strategy()

    def _explore(self, graph: OutcomeGraph, is_content: Callable[[], bool]) -> None:
        """Draws outcomes until the budget is spent, nothing is open, or `is_content()`."""
        raise NotImplementedError

    def judge(self, graph: OutcomeGraph, beliefs, nodes: list[Node]) -> None:
        """Says more of new nodes than the critic's outlook. Args: beliefs, a row a node."""


class Content:
    """Whether a search has found what is good enough. It is looked at where another goal was met, or the graph has
    grown by a quarter."""

    def __init__(self, graph: OutcomeGraph, enough: float):
        self.graph, self.enough, self.num_goals, self.size = graph, enough, 0, 0

    def __call__(self) -> bool:
        graph = self.graph
        has_grown = graph.num_goals > self.num_goals or graph.num_simulated > 1.25 * self.size
        if not graph.num_goals or not has_grown:
            return False
        graph.solve()
        while (is_content := graph.chance() >= self.enough) and not graph.is_spent:
            if not (half_known := graph.half_known()):
                break
            graph.draw(half_known)  # what was not met yet may spoil it
            graph.solve()
        self.num_goals, self.size = graph.num_goals, graph.num_simulated
        return is_content
