"""The processor, and the model in use: perceiving, imagining, scoring, decoding, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_worlds import CAMERA

from fuzzing import values as v
from fuzzing.outcomes import FREE
from fuzzing.targets import (
    Call,
    Changes,
    a_belief,
    acted,
    an_effort,
    futures_of,
    model_state,
    raw_action,
    raw_observation,
    seen,
    target,
    without_marks,
    world_of,
)
from fuzzing.worlds import PLACE, World
from pan_hf import ImageSense, PanProcessor


@target("PanProcessor.__call__", weight=8)
def processor_call(world: World, number: int) -> Call:
    steps = 1 + number % 3
    arguments: dict = {"observation": raw_observation(world, steps, number)}
    if steps > 1:
        arguments["action"] = raw_action(world, steps - 1, number)
    arguments["return_tensors"] = "pt", v.choice("return_tensors", "pt", ["np"])
    arguments["partial"] = False, v.flag("partial", False)
    return Call(world.processor, arguments, state=model_state(world))


@target("PanProcessor.__call__, actions alone", weight=4)
def processor_actions(world: World, number: int) -> Call:
    return Call(
        world.processor, {"action": raw_action(world, 1 + number, number, is_alone=True)}, state=model_state(world)
    )


@target("PanProcessor.__call__, text", ("discrete",))
def processor_text(world: World, number: int) -> Call:
    made = [(what, FREE if what == "too long" else expects, make) for what, expects, make in v.words("go to key")]
    arguments = {
        "text": ("go to key", v.listed("text", made)),
        "padding": (True, v.listed("padding", v.given(free=["max_length", False], wrong=["longer", []]))),
        "truncation": (True, v.flag("truncation", True)),
    }
    return Call(world.processor, arguments, state=model_state(world))


@target("PanProcessor.decode_observation")
def decode_observation(world: World, number: int) -> Call:
    observation, changes = seen(world, 2, number, 1, any_rows=True)
    # a vector that is NaN throughout is an absent one, and stays so
    changes = [made for made in changes if not made().what.endswith("] with NaN")]
    output = "np", v.choice("output_type", "np", ["pil"])
    return Call(
        world.processor.decode_observation,
        {"observation": (observation, changes), "output_type": output},
        state=model_state(world),
    )


@target("PanProcessor.decode_action")
def decode_action(world: World, number: int) -> Call:
    return Call(
        world.processor.decode_action, {"action": acted(world, 2, number, 1, any_rows=True)}, state=model_state(world)
    )


@target("PanProcessor.read_columns", ("discrete", "vector"))
def read_columns(world: World, number: int) -> Call:
    return Call(world.processor.read_columns, {"columns": raw_observation(world, 3, number, "columns")})


@target("PanProcessor", ("discrete",), weight=1)
def processor_made(world: World, number: int) -> Call:
    config = world.model.config
    senses = {name: sense.to_dict() for name, sense in config.senses.items()}
    action = config.action.to_dict()
    arguments = {
        "tokenizer": (
            world.processor.tokenizer,
            v.listed(
                "tokenizer",
                v.given(wrong=[None, "gpt2", "nobody/nothing", Path("runs/missing"), "/missing", "", 3]),
            ),
        ),
        "senses": (senses, _spec_changes("senses", senses, "camera")),
        "action": (action, _spec_changes("action", {"action": action}, "action", inner=True)),
    }
    return Call(lambda **given: PanProcessor(**given).senses, arguments)


def _spec_changes(name: str, specs: dict, entry: str, inner: bool = False) -> Changes:
    spec = specs[entry]

    def changed(new: Any) -> Any:
        return new if inner else {**specs, entry: new}

    made = v.given(
        free=[changed(ImageSense(**CAMERA) if not inner else PLACE)],
        wrong=[
            changed({**spec, "kind": "smell"}),
            changed({key: each for key, each in spec.items() if key != "kind"}),
            changed({"kind": spec["kind"]}),
            changed([spec]),
            changed("camera"),
            changed(3),
        ],
    )
    return v.listed(name, made, entry, "kind")


# ---- the model in use


@target("PanModel.perceive", weight=6)
def perceive(world: World, number: int) -> Call:
    steps, rows = 1 + number % 3, 1 + number % 2
    arguments: dict = {"observation": seen(world, steps, number, rows)}
    if steps > 1:
        arguments["action"] = acted(world, steps - 1, number, rows)
    misspelt = v.given(wrong=[world.action(1)])
    arguments["actions"] = v.LEFT_OUT, v.listed("actions", misspelt) if steps == 1 else []
    return Call(without_marks(world.model.perceive), arguments, state=model_state(world))


@target("PanModel.encode", weight=3)
def encode(world: World, number: int) -> Call:
    observation = seen(world, 1 + number % 2, number, 1 + number % 3, needs_prefix=False)
    return Call(
        lambda observation: world.model.encode(observation), {"observation": observation}, state=model_state(world)
    )


@target("PanModel.simulate", weight=10)
def simulate(world: World, number: int) -> Call:
    rows, steps = 1 + number % 2, 1 + number % 3
    arguments: dict = {
        "belief": a_belief(world, rows, number),
        "actions": acted(world, steps, number, rows, "actions"),
        "num_rollouts": (2, v.count("num_rollouts", 2)),
        "temperature": (0.5, v.number("temperature", 0.5, low=0)),
        "seed": (3, v.seed("seed")),
        "reencode": (0, v.count("reencode", 1, least=0)[6:]),
        "effort": an_effort(world),
        "uncertainty": (False, v.flag("uncertainty", False)),
    }
    if number % 2:
        made = v.given(
            same=[[0], (0,), np.array([0]), {0}], free=[None], wrong=[[99], [-1], 0, ["camera"], [0.5], True]
        )
        arguments["expected"] = [0], v.listed("expected", made)
        del arguments["effort"]
    return Call(world.model.simulate, arguments, state=(*model_state(world), arguments["belief"][0].state))


@target("PanModel.log_prob", weight=5)
def log_prob(world: World, number: int) -> Call:
    rows, steps = 1 + number % 2, 1 + number % 2
    arguments = {
        "belief": a_belief(world, rows, number),
        "actions": acted(world, steps, number, rows, "actions"),
        "observations": seen(world, steps, number + 1, rows, "observations", needs_prefix=False),
        "latents": (None, v.flag("latents", False)),
    }
    arguments["latents"] = None, v.listed("latents", v.given(free=[True], wrong=["no", v.NAN]))
    return Call(world.model.log_prob, arguments, state=model_state(world))


@target("PanModel.teacher_forced")
def teacher_forced(world: World, number: int) -> Call:
    arguments = {
        "observation": seen(world, 3, number, 1),
        "action": acted(world, 2, number, 1),
        "temperature": (0.0, v.number("temperature", 0.0, low=0)),
        "seed": (3, v.seed("seed")),
    }
    return Call(world.model.teacher_forced, arguments, state=model_state(world))


@target("PanModel.decode")
def decode(world: World, number: int) -> Call:
    state = world.belief(2, number).state
    sense = list(world.model.config.coded_senses)[0]
    levels = world.model.config.senses[sense].num_levels
    made = v.given(wrong=[None, world.belief(2, number), state.codes, state.codes[sense][0]])
    arguments = {
        "state": (state, v.listed("state", made)),
        "sense": (sense, v.choice("sense", sense)),
        "num_levels": (levels, v.count("num_levels", levels, optional=True, most=levels)),
        "latents": (False, v.flag("latents", False)),
    }
    return Call(world.model.decode, arguments, state=(*model_state(world), state))


@target("Futures.decode", weight=1)
def futures_decode(world: World, number: int) -> Call:
    futures, sense = futures_of(world, number), list(world.model.config.coded_senses)[0]
    levels = world.model.config.senses[sense].num_levels
    arguments = {
        "sense": (sense, v.choice("sense", sense)),
        "num_levels": (levels, v.count("num_levels", levels, optional=True, most=levels)),
        "latents": (False, v.flag("latents", False)),
    }
    return Call(futures.decode, arguments, state=model_state(world))


@target("Futures.film", ("discrete", "vector"), weight=1)
def futures_film(world: World, number: int) -> Call:
    arguments = {
        "sense": ("camera", v.choice("sense", "camera", optional=True)),
        "row": (1, v.listed("row", v.given(same=[-1])) + v.count("row", 1, least=-2, most=1)),
        "fps": (4.0, v.number("fps", 4.0, low=0, open_low=True)),
    }
    return Call(lambda **given: futures_of(world, number).film(**given)._repr_html_(), arguments)


@target("Futures.__getitem__", weight=1)
def futures_rows(world: World, number: int) -> Call:
    made = v.given(
        same=[np.array([1]), torch.tensor([1]), slice(1, 2), np.int64(1), -1, [-1], torch.tensor([False, True])],
        wrong=[99, 2, -3, "a", 0.5, None, [99], [0, -3], (0, 1), True],
    )
    arguments = {"rows": (1, v.listed("rows", made, "row"))}
    return Call(lambda rows: futures_of(world, number)[rows], arguments, state=model_state(world))


@target("Futures.keys", weight=1)
def futures_keys(world: World, number: int) -> Call:
    arguments = {
        "levels": (1, v.count("levels", 1, optional=True)),
        "steps": (0, v.count("steps", 1, least=0, optional=True)[6:]),
    }
    return Call(futures_of(world, number).keys, arguments)


@target("Belief.select", weight=1)
def belief_select(world: World, number: int) -> Call:
    made = v.given(
        same=[[1, 0], np.array([1, 0]), torch.tensor([1, 0]).int(), [-1, -2], torch.tensor([1, -2])],
        wrong=[
            1,
            [0, 2],
            [0, -3],
            torch.tensor([0, 9]),
            torch.tensor([0.5]),
            "first",
            None,
            torch.tensor([True, False]),
            torch.tensor([[0, 1]]),
        ],
    )
    arguments = {"index": (torch.tensor([1, 0]), v.listed("index", made, "row"))}
    return Call(lambda index: world.belief(2, number).select(index).state, arguments, state=model_state(world))


@target("Belief.repeat", weight=1)
def belief_repeat(world: World, number: int) -> Call:
    return Call(lambda count: world.belief(2, number).repeat(count).state, {"count": (2, v.count("count", 2))})


@target("Belief.put", weight=1)
def belief_put(world: World, number: int) -> Call:
    wrong = [[9], [-3], [0, 1], [1, 1], [1, -1], 1, None, "one", torch.tensor([0.5])]
    made = v.given(same=[[1], np.array([1]), [-1]], wrong=wrong)
    others = v.given(
        wrong=[
            None,
            world.belief(2),
            world.belief(1).state,
            world_of("vector" if world.name != "vector" else "parts").belief(1),
        ]
    )
    arguments = {
        "rows": (torch.tensor([1]), v.listed("rows", made)),
        "other": (world.belief(1, number + 1), v.listed("other", others, "belief")),
    }
    return Call(lambda **given: world.belief(2, number).put(**given).state, arguments, state=model_state(world))


@target("PanModel.forward, an objective", ("discrete", "vector"))
def forward(world: World, number: int) -> Call:
    reward = torch.full((2, 2), 0.5)
    made = v.given(
        free=[reward.numpy(), reward.tolist(), reward.long(), None],
        wrong=[reward * v.NAN, reward[:1].repeat(3, 1), "high"],
    )
    arguments = {
        "objective": ("joint", v.choice("objective", "joint", optional=True)),
        "observation": seen(world, 3, number, 2),
        "action": acted(world, 2, number, 2),
        "reward": (reward, v.listed("reward", made)),
        "done": (torch.zeros(2, 2), v.listed("done", made[:5])),
    }

    def run(**given):
        torch.manual_seed(0)
        return world.model(**given).loss

    return Call(run, arguments, state=model_state(world))
