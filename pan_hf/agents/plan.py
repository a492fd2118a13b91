"""A plan: actions, and what the planner expects of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from pan_hf.agents.actions import ActionParts
from pan_hf.modeling.state_pan import Actions

_SHOWN_ACTIONS = 12  # in `repr`, which stays in one line
MOST_CANDIDATES = 16
"""Candidates that a plan keeps, the best."""


@dataclass(frozen=True, eq=False)
class Foreseen:
    """What may come of an action, as a search met it.

    Args:
        probability (`float`): among the outcomes that were met.
        score (`float`), continue_prob (`float`): the critic's score of the step, and the chance that the episode goes
            on.
        value (`float`): what the step is worth with what follows it.
        is_goal (`bool`): whether the goal is reached.
        belief: after it, one row, to be decoded.
    """

    probability: float
    score: float
    continue_prob: float
    value: float
    is_goal: bool
    belief: Any = field(repr=False)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way that was weighed before an action was taken.

    Args:
        actions (`torch.Tensor` or [`Actions`]): `(length, ...)`, as in a plan.
        value (`float`, *optional*): what it was taken to be worth; None where nothing says it, as a policy does not.
        weight (`float`, *optional*): share of a search's visits, or a policy's probability.
        reaches_goal (`bool`): whether it was expected to.
        outcomes (`tuple[Foreseen]`): of its first action, where a search met several; the likeliest first.
    """

    actions: torch.Tensor | Actions
    value: float | None
    weight: float | None = None
    reaches_goal: bool = False
    outcomes: tuple[Foreseen, ...] = ()


@dataclass(frozen=True)
class Spread:
    """What all sampled sequences were worth: how many they are, their mean, standard deviation, least and most."""

    count: int
    mean: float
    std: float
    least: float
    most: float


def best_candidates(candidates: Iterable[Candidate], most: int = MOST_CANDIDATES) -> tuple[Candidate, ...]:
    """The best of several: what reaches the goal first, then by value, then by weight."""

    def rank(each: Candidate) -> tuple[bool, float, float]:
        value = float("-inf") if each.value is None else each.value
        return each.reaches_goal, value, each.weight or 0.0

    return tuple(sorted(candidates, key=rank, reverse=True)[:most])


@dataclass(frozen=True, repr=False)
class Plan:
    """Actions, and what the planner expects of them.

    Args:
        actions (`torch.Tensor` or [`Actions`]): `(length,)` int64 or `(length, D)` float, by name where they have
            several parts; at least one action.
        expected_return (`float`): what the critic thinks the plan is worth.
        states (`list[bytes]`, *optional*): key of the state expected after each action, see `compared_keys`; `None`
            where the planner does not compare states.
        num_simulated (`int`), num_calls (`int`): imagined steps spent on finding it, and `simulate` calls that made
            them.
        seconds (`float`): wall time spent on finding it.
        reaches_goal (`bool`): whether the last action is expected to reach the critic's threshold.
        num_folded (`int`): imagined states that were equal to one seen before.
        parts ([`ActionParts`], *optional*): of the world, for names of actions.
        num_claims (`int`), num_refused (`int`): ways that the search took to lead to the goal and looked at again, and
            those that did not on the second look.
        candidates (`tuple[Candidate]`): what was weighed, the best first.
        spread ([`Spread`], *optional*): of all sequences, where they were sampled.
    """

    actions: torch.Tensor | Actions
    expected_return: float
    states: list[bytes] | None
    num_simulated: int = 0
    seconds: float = 0.0
    reaches_goal: bool = False
    num_folded: int = 0
    num_calls: int = 0
    num_claims: int = 0
    num_refused: int = 0
    parts: ActionParts | None = field(default=None, compare=False)
    candidates: tuple[Candidate, ...] = field(default=(), compare=False)
    spread: Spread | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.actions)

    def rest(self, taken: int) -> "Plan | None":
        """What is left of it after its first `taken` actions; None where nothing is."""
        if taken >= len(self):
            return None
        states = None if self.states is None else self.states[taken:]
        return self.along(self.actions[taken:], states)

    def along(self, actions: torch.Tensor | Actions, states: list[bytes] | None) -> "Plan":
        """A plain plan of other actions and states, of which nothing was weighed, and of all else that it says."""
        own = {item.name: getattr(self, item.name) for item in fields(Plan)}
        return Plan(**(own | {"actions": actions, "states": states, "candidates": (), "spread": None}))

    def branch(self, taken: int, key: bytes) -> "Plan | None":
        """What to do where the last of the first `taken` actions led to the state `key`; None where it does not say.
        See [`Strategy`]."""
        return None

    def evidence(self, taken: int, key: bytes) -> float | None:
        """How much it speaks against the model that the last of the first `taken` actions led to the state `key`, in
        surprises; None where the plan tells no chances."""
        return None

    @property
    def names(self) -> list[str]:
        """What each action is called; its number where the world has no names."""
        assert self.parts is not None  # planners say it
        return [self.parts.label(self.parts.to_environment(self.actions[index])) for index in range(len(self))]

    def __repr__(self) -> str:
        shown = self.names if self.parts is not None else [str(action) for action in _numbers(self.actions)]
        actions = ", ".join(shown[:_SHOWN_ACTIONS]) + (", ..." if len(shown) > _SHOWN_ACTIONS else "")
        goal = "reaches the goal, " if self.reaches_goal else ""
        return (
            f"Plan({len(self)} actions: {actions}; {goal}expected return {self.expected_return:.3g}; "
            f"{self.num_simulated} imagined steps in {self.seconds:.2g} s)"
        )


def _numbers(actions: torch.Tensor | Actions) -> list:
    """Actions as plain numbers, of worlds whose names are not known."""
    if isinstance(actions, torch.Tensor):
        return actions.tolist()
    return [{name: part[index].tolist() for name, part in actions.parts.items()} for index in range(len(actions))]


@dataclass
class Contradicted:
    """What the real world has shown to be wrong, as (key of the state, action): plans keep away from it.

    Args:
        transitions: actions that led elsewhere than imagined; not to be planned through.
        goals: actions that were imagined to reach the goal and did not.
    """

    transitions: set[tuple[bytes, int]] = field(default_factory=set)
    goals: set[tuple[bytes, int]] = field(default_factory=set)


def compared_keys(world, key_levels: int | None) -> dict[str, int]:
    """Arguments of `keys` where an imagined state is compared with a seen one: by the present alone. How many earlier
    steps a belief holds depends on how it came about, so keys of all of them would differ without a surprise."""
    arguments = {} if key_levels is None else {"levels": key_levels}
    return arguments if getattr(world.config, "context_steps", 1) == 1 else arguments | {"steps": 0}


def draw_seed(generator: torch.Generator | None) -> int:
    return int(torch.randint(2**31, (1,), generator=generator))


def device_of(world) -> torch.device:
    return getattr(world, "device", torch.device("cpu"))


def check_numbers(owner: Any, check: Callable[..., float], *names: str, **limits: Any) -> None:
    """Makes fields of a frozen dataclass Python's numbers. Args: check, `whole` or `real`, which refuses others."""
    for name in names:
        try:
            number = check(name, getattr(owner, name), **limits)
        except ValueError as error:
            raise ValueError(f"{type(owner).__name__}: {error}") from None
        object.__setattr__(owner, name, number)


def check_one_row(belief, generator=None) -> None:
    """Raises ValueError where a plan cannot start from a belief, or is drawn by what is no generator of torch."""
    if not hasattr(belief, "select"):
        raise ValueError(f"`belief` must be a Belief, as `perceive` returns it, got {type(belief).__name__}.")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"`generator` must be a torch.Generator on the CPU or None, got {generator!r}.")
    if len(belief) != 1:
        raise ValueError(f"A plan starts from one belief; got {len(belief)} rows. Use `belief.select` to pick one.")
