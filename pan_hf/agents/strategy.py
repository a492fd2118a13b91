"""A strategy: a plan that says what to do in each outcome of its actions.

An agent that follows one plans again only where something happens that the strategy did not foresee.
"""

import math
from dataclasses import dataclass, field

import torch

from pan_hf.agents.plan import Plan
from pan_hf.modeling.state_pan import Actions


@dataclass(frozen=True)
class Decision:
    """What to do in one state, and what may come of it.

    Args:
        action (`torch.Tensor` or [`Actions`]): one action.
        outcomes (`dict[bytes, float]`): chance of each state, by its key, see `compared_keys`.
        next (`dict[bytes, int]`): number of the decision in each of them; states that are left out end the strategy.
        likely (`bytes`): key of the most likely state.
        chance (`float`): of reaching the goal from here.
    """

    action: torch.Tensor | Actions
    outcomes: dict[bytes, float]
    next: dict[bytes, int]
    likely: bytes
    chance: float = 0.0


@dataclass(frozen=True, repr=False)
class Strategy(Plan):
    """A plan whose `actions` and `states` are its most likely way, and which has answers to other outcomes, too.

    Decisions are a graph: a state that several ways lead to has one, and a way may lead back to an earlier state.

    Args:
        decisions (`list[Decision]`): the first is the root's.
        path (`list[int]`): number of the decision that each of `actions` is of.
        chance (`float`): that it reaches the goal, by the chances of the outcomes.
        patience (`int`): steps within which it does; it has no answer to what comes after.
    """

    decisions: list[Decision] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    chance: float = 0.0
    patience: int = 0

    @property
    def num_branches(self) -> int:
        """Outcomes beside the most likely ones that have an answer."""
        return sum(key != decision.likely for decision in self.decisions for key in decision.next)

    def branch(self, taken: int, key: bytes) -> Plan | None:
        decision = self.decisions[self.path[taken - 1]]
        number = decision.next.get(key)
        return None if number is None or taken >= self.patience else self._from(number, self.patience - taken)

    def evidence(self, taken: int, key: bytes) -> float | None:
        """One surprise for a state that was not foreseen. A foreseen one counts by how much rarer it is than what the
        strategy expects on average, in powers of ten: where its chances are right, that sums up to nothing."""
        outcomes = self.decisions[self.path[taken - 1]].outcomes
        if key not in outcomes:
            return 1.0
        expected = -sum(chance * math.log10(chance) for chance in outcomes.values() if chance > 0)
        return -math.log10(max(outcomes[key], 1e-9)) - expected

    def _from(self, number: int, patience: int) -> "Strategy":
        """The same strategy from one of its decisions on."""
        path, states = likely_way(self.decisions, number)
        actions = stacked([self.decisions[step].action for step in path])
        own = vars(self) | {"actions": actions, "states": states, "path": path, "candidates": ()}
        own |= {"chance": self.decisions[number].chance, "patience": patience}
        return Strategy(**own)


def likely_way(decisions: list[Decision], first: int) -> tuple[list[int], list[bytes]]:
    """Numbers of the decisions on the most likely way from one of them, and the state that each leads to; it ends
    before it meets a decision for the second time."""
    path: list[int] = []
    states: list[bytes] = []
    number: int | None = first
    while number is not None and number not in path:
        path.append(number)
        states.append(decisions[number].likely)
        number = decisions[number].next.get(states[-1])
    return path, states


def stacked(actions: list) -> torch.Tensor | Actions:
    """Single actions as one tensor `(length, ...)`, by name where they have several parts."""
    if isinstance(actions[0], Actions):
        return Actions({name: torch.stack([action.parts[name] for action in actions]) for name in actions[0].parts})
    return torch.stack(actions)
