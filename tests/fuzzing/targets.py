"""A function to call with right arguments, and the arguments that many functions share."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny_worlds import board_world

from fuzzing import values as v
from fuzzing.outcomes import FREE, WRONG, Change
from fuzzing.worlds import World, make_world
from pan_hf import (
    Effort,
)

Changes = list[Callable[[], Change]]


@dataclass
class Call:
    """One function, its right arguments, and how each may change.

    Args:
        function: what is called, by keyword.
        arguments (`dict`): name -> (right value, what it may become).
        check: what is wrong with a result, "" if nothing is.
        state (`tuple`): what a refused call must leave as it is.
        is_pure (`bool`): an accepted one must too.
        needs_change (`bool`): nothing that is right is at hand.
    """

    function: Callable
    arguments: dict[str, tuple[Any, Changes]]
    check: Callable[[Any], str] = lambda result: ""
    state: tuple = ()
    is_pure: bool = True
    needs_change: bool = False

    def right(self) -> dict[str, Any]:
        return {name: value for name, (value, _) in self.arguments.items()}


@dataclass
class Target:
    """A function to call in one of several worlds; `make(world, number)` gives the `number`-th right [`Call`]."""

    name: str
    worlds: tuple[str, ...]
    make: Callable[[World, int], Call]
    weight: int = 2
    numbers: int = 4


TARGETS: list[Target] = []
_FOLDERS = tempfile.TemporaryDirectory(prefix="fuzz")  # removed when the process ends
EVERY = ("discrete", "vector", "parts")


def target(name: str, worlds: tuple[str, ...] = EVERY, weight: int = 2, numbers: int = 4):
    def register(make: Callable[[World, int], Call]):
        TARGETS.append(Target(name, worlds, make, weight, numbers))
        return make

    return register


def new_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=_FOLDERS.name))


@cache
def world_of(name: str) -> World:
    return make_world(name)


@cache
def board():
    """A recording, an untrained checkpoint of it, and its trajectories; see `tiny_worlds`."""
    return board_world(new_folder())


def fresh(world: World) -> World:
    """A copy whose model may be changed."""
    model = copy.deepcopy(world.model)
    return World(world.name, model, model.processor)


def model_state(world: World) -> tuple:
    return world.model, world.processor.senses, world.processor.action, lambda: _ledger(world)


def _ledger(world: World) -> dict:
    ledger = world.processor.vocabulary
    return {"digest": ledger.digest(), "events": len(ledger.events), "words": len(world.processor.tokenizer)}


# ---- the arguments that many functions share


def raw_observation(
    world: World, steps: int, number: int, name: str = "observation", senses: Collection[str] | None = None
) -> tuple[dict, Changes]:
    """Args: senses, that are looked at; all by default, and then there must be no others."""
    seen = world.raw(steps, number)
    made = {}
    for sense, value in ((sense, value) for sense, value in seen.items() if senses is None or sense in senses):
        kind = world.model.config.senses[sense].kind
        made[sense] = v.words(value) if kind == "text" else v.array(value, kind, value.ndim - 1)
        made[sense] = [(what, FREE if what == "of two rows" else expects, make) for what, expects, make in made[sense]]
        made[sense] += v.given(free=[None, [None] * steps])
    return seen, v.entries(name, seen, made, may_lack=True, may_have_more=senses is not None)


def raw_action(world: World, steps: int, number: int, is_alone: bool = False) -> tuple[Any, Changes]:
    """Args: is_alone, without an observation whose rows and steps they must fit."""
    done = world.raw_actions(steps, number)
    parts = done if isinstance(done, dict) else {"action": done}
    made = {name: _raw_part(world, name, value) for name, value in parts.items()}
    if is_alone:
        free = {"of two rows", "empty", "an empty list"} if len(parts) == 1 else set()
        made = {name: [(w, FREE if w in free else e, m) for w, e, m in several] for name, several in made.items()}
    if isinstance(done, dict):
        return done, v.entries("action", done, made)
    return done, v.listed("action", made["action"])


def _raw_part(world: World, name: str, value: Any) -> list:
    kind = world.actions[name].kind
    return v.words(value) if kind == "text" else v.array(value, kind, value.ndim - 1)


def seen(
    world: World,
    steps: int,
    number: int,
    rows: int,
    name: str = "observation",
    needs_prefix: bool = True,
    any_rows: bool = False,
):
    """An observation as the processor gives it."""
    given = world.observation(steps, number, rows)
    made = {}
    for sense, value in given.items():
        described = world.model.config.senses[sense]
        made[sense] = v.tensor(value, described.kind, not described.is_constant, any_rows)
        if described.is_constant and not needs_prefix:  # it stands before the first state, and is passed over here
            made[sense] = [(what, FREE, make) for what, _, make in made[sense]]
    given = dict(sorted(given.items(), key=lambda item: item[0] == "mission"))  # a sense that changes comes first
    changes = v.entries(name, given, made, may_lack=any_rows)
    first = next(sense for sense in given if not world.model.config.senses[sense].is_constant)
    mask = torch.ones(rows, steps, dtype=torch.bool)
    masks = v.given(
        same=[{**given, f"{first}.present": mask}],
        free=[{**given, f"{first}.present": mask.int()}, {**given, f"{first}.present": mask.tolist()}],
        wrong=[{**given, f"{first}.present": mask[:, :0]}, {**given, "rgb.present": mask}],
    )
    return given, changes + v.listed(name, masks, first, "rgb")


def acted(world: World, steps: int, number: int, rows: int, name: str = "action", any_rows: bool = False):
    """Actions as the processor gives them."""
    given = world.action(steps, number, rows)
    if isinstance(given, dict):
        made = {part: v.tensor(value, world.actions[part].kind, True, any_rows) for part, value in given.items()}
        return given, v.entries(name, given, made)
    return given, v.listed(name, v.tensor(given, world.actions["action"].kind, True, any_rows))


def a_belief(world: World, rows: int, number: int):
    belief = world.belief(rows, number)
    made = v.given(
        wrong=[
            None,
            world.observation(1, number, rows),
            belief.state,
            [belief],
            belief.repeat(3),
            belief.select(torch.tensor([], dtype=torch.long)),
            "belief",
            world_of("vector" if world.name != "vector" else "parts").belief(rows),
        ]
    )
    return belief, v.listed("belief", made)


def an_effort(world: World):
    names = [block.name for block in world.model.blocks]
    made = [
        ("= 'all'", FREE, lambda: "all"),
        ("= 'coarsest'", FREE, lambda: "coarsest"),
        ("= 'auto'", FREE, lambda: "auto"),
        ("= 'focused'", FREE, lambda: "focused"),
        ("= Effort(cap)", FREE, lambda: Effort(cap=0.5)),
        ("= block names", FREE, lambda: names),
        ("= 'everything'", WRONG, lambda: "everything"),
        ("= misspelt block", WRONG, lambda: [names[0] + "0"]),
        ("= number", WRONG, lambda: 3),
        ("= []", FREE, list),  # nothing is predicted: all stays
        ("= [3]", WRONG, lambda: [3]),
        ("= dict", WRONG, lambda: {"cap": 0.5}),
        ("= ''", WRONG, lambda: ""),
        ("= NaN", WRONG, lambda: v.NAN),
        ("= the class", WRONG, lambda: Effort),
    ]
    return None, v.listed("effort", made, "block")


def shapes_of(world: World, rows: int, steps: int) -> Callable[[Any], str]:
    """Checks futures by their shapes."""

    def check(futures) -> str:
        for name in ("log_prob", "reward", "continue_prob"):
            if tuple(getattr(futures, name).shape) != (rows, steps):
                return f"{name} has shape {tuple(getattr(futures, name).shape)}, expected {(rows, steps)}"
        return ""

    return check


def without_marks(function: Callable) -> Callable:
    """Leaves out arguments that are right when they are not there."""
    return lambda *places, **arguments: function(*places, **given_of(arguments))


def given_of(arguments: dict) -> dict:
    """Without those that are left out."""
    return {name: value for name, value in arguments.items() if value is not v.LEFT_OUT}


def misspelt(name: str, value: Any) -> dict:
    return {name: (v.LEFT_OUT, v.listed(name, v.given(wrong=[value])))}


def plain(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name not in ("text_config", "transformers_version")}


def an_output(name: str = "output", may_lack: bool = False):
    """Where something is to be written: a new folder. Args: may_lack, None means something."""
    path = new_folder() / "new"
    file = path.parent / "file"
    file.write_text("mine")
    other = path.parent / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    wrong = [file, file / "new", "\x00", other, 3, [path], "x" * 5000, Path("/proc/new")]
    made = v.given(same=[str(path)], wrong=wrong if may_lack else [*wrong, None])
    return path, v.listed(name, made, "file", "other", "new", "xxx", "folder", "/proc")


def futures_of(world: World, number: int):
    def make():
        return world.model.simulate(world.belief(2, number), world.action(3, number, 2), seed=1)

    return world.kept_as(("futures", number), make)
