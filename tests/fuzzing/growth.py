"""The model, growing: on copies, whose state a refused call must leave as it is."""

from __future__ import annotations

import numpy as np
import torch

from fuzzing import values as v
from fuzzing.targets import Call, acted, fresh, model_state, seen, target, without_marks, world_of
from fuzzing.worlds import World


@target("PanModel.observe", ("discrete", "vector"), weight=1)
def observe(world: World, number: int) -> Call:
    own = fresh(world)
    arguments = {
        "observation": seen(world, 2, number, 1),
        "action": acted(world, 1, number, 1),
        "learn": (True, v.flag("learn", True)),
        "threshold": (1.0, v.number("threshold", 1.0, low=0, open_low=True)),
        "max_new": (2, v.count("max_new", 2)),
        "step": (0, v.count("step", 1, least=0)[6:]),
    }
    held = v.listed("held_out", v.given(wrong=[3, world.observation(1), "half"]))
    misspelt = v.listed("treshold", v.given(wrong=[0.5]), "treshold")
    arguments |= {"held_out": (None, held), "treshold": (v.LEFT_OUT, misspelt)}
    return Call(without_marks(own.model.observe), arguments, state=model_state(own), is_pure=False)


@target("PanModel.description_length", ("discrete", "vector"), weight=1)
def description_length(world: World, number: int) -> Call:
    made = acted(world, 1, number, 1)
    arguments = {
        "observation": seen(world, 2, number, 1),
        "action": (made[0], [each for each in made[1] if each().value is not None]),
    }
    return Call(world.model.description_length, arguments, state=model_state(world))


@target("PanModel.prune", ("discrete",), weight=1)
def prune(world: World, number: int) -> Call:
    own = fresh(world)
    arguments = {"observation": seen(world, 1, number, 1), "step": (0, v.count("step", 1, least=0)[6:])}
    return Call(own.model.prune, arguments, state=model_state(own), is_pure=False)


@target("PanModel.grow, words", ("discrete",), weight=1)
def grow_words(world: World, number: int) -> Call:
    own = fresh(world)
    arguments = {
        "segment": ("text", v.choice("segment", "text", ["action.0"])),
        "names": (["robot", "lamp"], v.texts("names", ["robot", "lamp"])),
        "descriptions": (["red", "key"], v.texts("descriptions", ["red", "key"], optional=True)),
        "step": (0, v.count("step", 1, least=0)[6:]),
    }
    return Call(own.model.grow, arguments, state=model_state(own), is_pure=False)


@target("PanModel.grow, actions", ("discrete", "parts"), weight=1)
def grow_actions(world: World, number: int) -> Call:
    own, segment = fresh(world), "action.0" if world.name == "discrete" else "action.pick.0"
    more = v.listed("names", v.given(wrong=[["stay"], ["a", "a"], list("abcdefghijk")]), segment)
    arguments = {
        "segment": (segment, v.choice("segment", segment)),
        "names": (["throw"], v.texts("names", ["throw"]) + more),
        "vectors": (None, v.listed("vectors", v.given(wrong=[torch.zeros(1, 4)]))),
    }
    return Call(own.model.grow, arguments, state=model_state(own), is_pure=False)


@target("PanModel.grow, codes", ("discrete",), weight=1)
def grow_codes(world: World, number: int) -> Call:
    own, vectors = fresh(world), torch.randn(1, 4, generator=torch.Generator().manual_seed(number))
    made = v.given(
        same=[vectors.numpy(), vectors.tolist(), vectors.clone().requires_grad_(), vectors.double()],
        wrong=[vectors * v.NAN, vectors[:, :2], vectors[:0], vectors[0], "red", vectors.repeat(50, 1)],
    )
    arguments = {
        "segment": ("camera.0", v.choice("segment", "camera.0", ["camera.1"])),
        "vectors": (vectors, v.listed("vectors", made)),
        "names": (["key"], v.texts("names", ["key"], optional=True)),
    }
    return Call(own.model.grow, arguments, state=model_state(own), is_pure=False)


@target("PanModel.retire", ("discrete",), weight=1)
def retire(world: World, number: int) -> Call:
    own = fresh(world)
    made = v.given(
        same=[np.array([1, 2]), torch.tensor([1, 2]), (1, 2)],
        wrong=[[99], [-1], [1.5], "12", list(range(6)), 1, None, [None], [], ["red"]],
    )
    arguments = {
        "segment": ("camera.0", v.choice("segment", "camera.0", ["camera.1"])),
        "codes": ([1, 2], v.listed("codes", made, "token")),
        "reason": ("unused", v.choice("reason", "unused", ["odd"])[:1]),
        "into": (0, v.count("into", 3, least=0, optional=True, most=5)[6:]),
        "step": (0, v.count("step", 1, least=0)[6:]),
    }
    return Call(own.model.retire, arguments, state=model_state(own), is_pure=False)


@target("PanModel.to_token_ids", ("discrete", "vector"), weight=1)
def to_token_ids(world: World, number: int) -> Call:
    values = world.observation(2, number, 1)["touch"]
    arguments = {
        "part": ("touch", v.choice("part", "touch")),
        "values": (values, v.listed("values", v.tensor(values, "vector", True, any_rows=True))),
        "chunk": (2, v.count("chunk", 2, most=2)),
    }
    return Call(world.model.to_token_ids, arguments, state=model_state(world))


@target("PanModel.from_token_ids", ("discrete", "vector"), weight=1)
def from_token_ids(world: World, number: int) -> Call:
    ids = world.kept_as(
        ("ids", number), lambda: world.model.to_token_ids("touch", world.observation(2, number)["touch"], 2)
    )
    arguments = {
        "part": ("touch", v.choice("part", "touch")),
        "ids": (ids, v.listed("ids", v.tensor(ids, "text", True, any_rows=True))),
        "chunk": (2, v.count("chunk", 2, most=2)),
    }
    return Call(world.model.from_token_ids, arguments, state=model_state(world))


@target("PanModel.merge", ("discrete", "vector"), weight=1)
def merge(world: World, number: int) -> Call:
    own, values = fresh(world), world.observation(1, number, 1)["touch"].repeat(2, 4, 1)
    arguments = {
        "part": ("touch", v.choice("part", "touch", ["camera"])),
        "values": (values, v.listed("values", v.tensor(values, "vector", True, any_rows=True))),
        "chunk": (2, v.count("chunk", 2)),
        "count": (2, v.count("count", 2)),
        "min_count": (2, v.count("min_count", 2)),
        "step": (0, v.count("step", 1, least=0)[6:]),
    }
    return Call(own.model.merge, arguments, state=model_state(own), is_pure=False)


@target("PanModel.resize_token_embeddings", ("discrete",), weight=1)
def resize(world: World, number: int) -> Call:
    own = fresh(world)
    own.processor.tokenizer.add_tokens(["robot"])
    size = len(own.processor.tokenizer)
    arguments = {"new_num_tokens": (size, v.count("new_num_tokens", size, optional=True, most=10_000))}
    return Call(own.model.resize_token_embeddings, arguments, state=(own.model,), is_pure=False)


@target("PanProcessor.attach", weight=1)
def attach(world: World, number: int) -> Call:
    own = fresh(world)
    made = v.given(
        wrong=[
            None,
            own.processor,
            own.model.config,
            world_of("vector" if world.name != "vector" else "parts").model,
            "runs/mine",
            own.model.language_model,
        ]
    )
    return Call(own.processor.attach, {"model": (own.model, v.listed("model", made))}, state=(own.model,))
