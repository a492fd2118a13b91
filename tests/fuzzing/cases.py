"""Cases: which function is called in which world, and which of its arguments change."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import datasets
import huggingface_hub
from hypothesis import strategies as st

from fuzzing import commands, configurations, growth, models, planning, recordings  # noqa: F401  # add targets
from fuzzing.outcomes import Change, Outcome, judge
from fuzzing.targets import TARGETS, Target, world_of

MOST_CHANGES = 2  # more hide one another


@dataclass(frozen=True)
class Case:
    """A call in numbers: `picks` are (which argument, which of its changes), each modulo how many there are."""

    target: Target
    world: str
    number: int
    picks: tuple[tuple[int, int], ...]

    def __repr__(self) -> str:
        return f"Case({self.target.name!r}, {self.world!r}, {self.number}, {self.picks})"


@st.composite
def cases(draw, targets: tuple[Target, ...] = ()) -> Case:
    chosen = draw(st.sampled_from([each for each in targets or TARGETS for _ in range(each.weight)]))
    world = draw(st.sampled_from(chosen.worlds))
    number = draw(st.integers(0, chosen.numbers - 1))
    pick = st.tuples(st.integers(0, 40), st.integers(0, 10_000))
    return Case(chosen, world, number, tuple(draw(st.lists(pick, min_size=0, max_size=MOST_CHANGES))))


def singles(targets: Sequence[Target]) -> Iterator[Case]:
    """Every change that every argument has, each by itself, in the first world of its target."""
    for target in targets:
        call = target.make(world_of(target.worlds[0]), 0)
        open_to_change = [made for _, made in call.arguments.values() if made]
        for which, made in enumerate(open_to_change):
            yield from (Case(target, target.worlds[0], 0, ((which, how),)) for how in range(len(made)))


def run(case: Case) -> Outcome:
    """Calls, and judges what came of it."""
    world = world_of(case.world)
    call = case.target.make(world, case.number)
    arguments, changes = call.right(), {}
    for which, how in case.picks or ((0, 0),) * call.needs_change:
        open_to_change = [name for name, (_, made) in call.arguments.items() if made]
        name = open_to_change[which % len(open_to_change)]
        made = call.arguments[name][1]
        changes[name] = made[how % len(made)]()
    given = arguments | {name: change.value for name, change in changes.items()}

    def clean() -> Any:
        other = case.target.make(world, case.number)
        return other.function(**other.right())

    with warnings.catch_warnings(), _offline():
        warnings.simplefilter("ignore")
        return judge(
            case.target.name,
            lambda: call.function(**given),
            list[Change](changes.values()),
            lambda: world.kept_as((case.target.name, case.number), clean),
            call.check,
            call.state,
            call.is_pure,
        )


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """No case asks a Hub, and none waits for one that does not answer."""
    with mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True):
        with mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True):
            yield
