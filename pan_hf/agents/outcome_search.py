"""What searches over outcomes share: their settings, and how a plan comes about."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.critics import as_critic
from pan_hf.agents.outcomes import Node, OutcomeGraph
from pan_hf.agents.plan import Contradicted, Plan, check_choices, check_discrete, check_numbers, check_one_row
from pan_hf.agents.world import World
from pan_hf.modeling.validation_pan import real, whole


@dataclass(frozen=True)
class OutcomeSearch:
    """What searches over outcomes share: their settings, and how a plan comes about. Needs discrete actions.

    Args:
        budget (`int`): imagined steps after which the search gives up.
        batch_size (`int`): edges imagined in one call.
        max_depth (`int`): longest way.
        num_outcomes (`int`): outcomes drawn of an action in a state, at most; the first is the most likely one.
        coverage (`float`): probability of the outcomes met from which on no more are drawn, where the model tells it.
        temperature (`float`): of drawn outcomes; 0: the most likely outcomes are all there is.
        enough (`float`): chance of reaching the goal with which the search is content; above 1: never.
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
        counts = ["budget", "batch_size", "max_depth", "num_outcomes"]
        check_numbers(self, whole, *counts, *["key_levels"] * (self.key_levels is not None), least=1)
        check_numbers(self, real, "coverage", least=0, most=1, above=True)
        check_numbers(self, real, "temperature", "enough", least=0)
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
        """A [`Strategy`]: what to do now, and in each outcome met. Arguments and errors as for
        [`GraphSearch.plan`]."""
        check_one_row(belief, generator)
        self.check_world(world.config)
        start, critic = time.perf_counter(), as_critic(critic)
        masks = ActionParts(world.config).check_masks(mask)
        graph = OutcomeGraph(self, world, belief, critic, refuted or Contradicted(), masks, generator)
        if not graph.root.choices and refuted is not None:  # every way out is refuted: believe the model again
            graph = OutcomeGraph(self, world, belief, critic, Contradicted(), masks, generator)
        if not graph.root.choices:
            raise ValueError(f"{type(self).__name__}: none of `actions` {self.actions} is allowed now.")
        graph.draw_root()
        self._search(graph, Content(graph, self.enough))
        return graph.strategy(start)

    def _search(self, graph: OutcomeGraph, is_content: Callable[[], bool]) -> None:
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
        while (is_content := graph.chance() >= self.enough) and (open_edges := graph.half_known()):
            graph.draw(open_edges)  # what was not met yet may spoil it
            graph.solve()
        self.num_goals, self.size = graph.num_goals, graph.num_simulated
        return is_content
