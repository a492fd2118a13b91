"""Senses, actions, configurations, and models made of them."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import torch
from tiny_worlds import language_model

from fuzzing import values as v
from fuzzing.targets import Call, Changes, misspelt, plain, target, without_marks
from fuzzing.worlds import MOVE, PLACE, SENSES, World
from pan_hf import DiscreteAction, ImageSense, PanConfig, PanModel, TextAction, TextSense, VectorAction, VectorSense


def _numbers(name: str, value: list[int]) -> Changes:
    made = v.given(
        same=[tuple(value), np.array(value)],
        wrong=[
            3,
            ["a"],
            [each + 0.5 for each in value],
            [-each for each in value],
            [0] * len(value),
            [],
            str(value),
            [None] * len(value),
            None,
            [v.NAN] * len(value),
            [*value, 7],
        ],
    )
    return v.listed(name, made)


@target("ImageSense", ("discrete",), numbers=1, weight=3)
def image_sense(world: World, number: int) -> Call:
    arguments = {
        "height": (16, v.count("height", 16)),
        "width": (16, v.count("width", 16)),
        "channels": (3, v.count("channels", 3)),
        "patch_size": (4, v.count("patch_size", 4)),
        "level_strides": ([2, 1], _numbers("level_strides", [2, 1])),
        "spatial_merge_size": (2, v.count("spatial_merge_size", 2)),
        "codebook_size": ([6, 10], _numbers("codebook_size", [6, 10])),
        "codebook_capacity": ([8, 12], _numbers("codebook_capacity", [8, 12])),
        "merge_capacity": (4, v.count("merge_capacity", 4, least=0)),
        "code_dim": (4, v.count("code_dim", 4)),
        "hidden_size": (16, v.count("hidden_size", 16)),
        "num_blocks": (1, v.count("num_blocks", 1, least=0)),
        "kernel_size": (3, v.count("kernel_size", 3)),
        "latent_dim": (3, v.count("latent_dim", 3, least=0)),
        "fps": (4.0, v.number("fps", 4.0, low=0, open_low=True, optional=True)),
        "kind": ("image", v.listed("kind", v.given(wrong=["vector", 3]))),
        **misspelt("patchsize", 4),
    }
    return Call(without_marks(ImageSense), arguments)


def _bounds(name: str, value: list[float]) -> Changes:
    made = v.given(
        same=[tuple(value), np.array(value), torch.tensor(value)],
        wrong=[
            ["a"] * len(value),
            [v.NAN] * len(value),
            [v.INF] * len(value),
            [*value, 0.0],
            [],
            None,
            "1.0",
            [1j] * len(value),
            [[each] for each in value],
            v.NAN,
        ],
    )
    return v.listed(name, made)


def _vector(kind: str) -> dict:
    return {
        "dim": (2, v.count("dim", 2)),
        "low": ([-1.0, 0.0], _bounds("low", [-1.0, 0.0])),
        "high": ([1.0, 4.0], _bounds("high", [1.0, 4.0])),
        "base": (4, v.count("base", 4, least=2)),
        "num_levels": (2, v.count("num_levels", 2)),
        "clip": (False, v.flag("clip", False)),
        "merge_capacity": (4, v.count("merge_capacity", 4, least=0)),
        "kind": ("vector", v.listed("kind", v.given(wrong=["image", 3]))),
        **misspelt("dims", 2),
    }


@target("VectorSense", ("discrete",), numbers=1)
def vector_sense(world: World, number: int) -> Call:
    rate = {"rate": (4.0, v.number("rate", 4.0, low=0, open_low=True, optional=True))}
    return Call(without_marks(VectorSense), _vector("vector") | rate)


@target("VectorAction", ("discrete",), numbers=1, weight=1)
def vector_action(world: World, number: int) -> Call:
    return Call(without_marks(VectorAction), _vector("vector"))


@target("VectorSense.within", ("discrete",), numbers=1, weight=1)
def vector_within(world: World, number: int) -> Call:
    arguments = {
        "epsilon": (0.1, v.number("epsilon", 0.1, low=0, open_low=True)),
        "dim": (2, v.count("dim", 2)),
        "low": ([-1.0, 0.0], _bounds("low", [-1.0, 0.0])),
        "high": ([1.0, 4.0], _bounds("high", [1.0, 4.0])),
        "base": (4, v.count("base", 4, least=2, optional=True)),
        **misspelt("units", "m"),
    }
    return Call(without_marks(VectorSense.within), arguments)


@target("TextSense", ("discrete",), numbers=1, weight=1)
def text_sense(world: World, number: int) -> Call:
    arguments = {
        "max_length": (8, v.count("max_length", 8)),
        "every_step": (False, v.flag("every_step", False)),
        "clip": (False, v.flag("clip", False)),
        **misspelt("length", 3),
    }
    return Call(without_marks(TextSense), arguments)


@target("DiscreteAction", ("discrete",), numbers=1)
def discrete_action(world: World, number: int) -> Call:
    names = ["stay", "left", "right"]
    made = v.texts("names", names, optional=True)
    made += v.listed("names", v.given(wrong=[["a"]]))
    arguments = {
        "num_actions": (3, v.count("num_actions", 3)),
        "names": (names, made),
        "capacity": (6, v.count("capacity", 6, least=3, optional=True)),
        "merge_capacity": (4, v.count("merge_capacity", 4, least=0)),
        **misspelt("n", 3),
    }
    return Call(without_marks(DiscreteAction), arguments)


@target("TextAction", ("discrete",), numbers=1, weight=1)
def text_action(world: World, number: int) -> Call:
    arguments = {"max_length": (8, v.count("max_length", 8)), "clip": (True, v.flag("clip", True))}
    return Call(TextAction, arguments)


def settings() -> dict:
    heads = v.given(
        wrong=[
            {"num_steps": 2},
            {"num_inference_steps": 0},
            3,
            {"scheduler": {"_class_name": "Euler"}},
            "diffusion",
            {"num_inference_steps": v.NAN},
            {"scheduler": "ddim"},
        ]
    )
    weights = v.given(
        free=[None],
        wrong=[{"rewards": 1.0}, {"reward": -1.0}, {"reward": v.NAN}, {"reward": "1"}, 3, {"reward": v.INF}],
    )
    return {
        "context_steps": (2, v.count("context_steps", 2)),
        "fold_levels": (True, v.flag("fold_levels", True)),
        "level0_sampling": ("parallel", v.choice("level0_sampling", "parallel", ["autoregressive"])),
        "copy_bias": (2.0, v.number("copy_bias", 2.0)),
        "adapter_dim": (16, v.count("adapter_dim", 16)),
        "adapter_blocks": (1, v.count("adapter_blocks", 1, least=0)),
        "latent_feedback": (False, v.flag("latent_feedback", False)),
        "reward_bound": (10.0, v.number("reward_bound", 10.0, low=0, open_low=True)),
        "latent_head": (None, v.listed("latent_head", heads, "scheduler", "num_inference_steps")),
        "loss_weights": ({"reward": 1.0}, v.listed("loss_weights", weights)),
        "change_weight": (3.0, v.number("change_weight", 3.0, low=0)),
        "focus_share": (0.5, v.number("focus_share", 0.5, 0, 1)),
        "block_dropout": (0.5, v.number("block_dropout", 0.5, 0, 1)),
        "context_noise": (0.5, v.number("context_noise", 0.5, 0, 1)),
        "latent_noise": (0.5, v.number("latent_noise", 0.5, low=0)),
        **misspelt("contex_steps", 2),
    }


def parts_of(world: World) -> dict:
    senses = {"touch": SENSES["touch"]}
    made = v.given(
        same=[{"touch": SENSES["touch"].to_dict()}],
        wrong=[
            3,
            list(senses.values()),
            {"touch": VectorSense},
            {"touch": None},
            {"touch": PLACE},
            {"my touch": SENSES["touch"]},
            {"action": SENSES["touch"]},
            {3: SENSES["touch"]},
            {"touch": {"kind": "smell"}},
            {"touch": {"kind": "vector", "dims": 2}},
        ],
    )
    acts = v.given(
        same=[PLACE.to_dict()],
        free=[{"move": MOVE, "pick": PLACE}],
        wrong=[
            None,
            DiscreteAction,
            4,
            "discrete",
            SENSES["touch"],
            {"kind": "jump"},
            gymnasium.spaces.Discrete(4),
            {"kind": "discrete", "n": 4},
            {},
        ],
    )
    return {
        "senses": (senses, v.listed("senses", made, "sense", "touch")),
        "action": (PLACE, v.listed("action", acts)),
    }


@target("PanConfig", ("discrete",), numbers=1, weight=5)
def pan_config(world: World, number: int) -> Call:
    actors = v.given(wrong=[["a", "a"], "abc", [], [3], 3])
    arguments = settings() | parts_of(world) | {"actors": (None, v.listed("actors", actors))}
    return Call(lambda **given: plain(without_marks(PanConfig)(**given).to_dict()), arguments)


@target("PanModel.from_backbone", ("discrete",), numbers=1, weight=2)
def from_backbone(world: World, number: int) -> Call:
    backbones = v.given(
        wrong=[
            None,
            3,
            "runs/missing/folder",
            "nobody/nothing",
            Path("runs/missing"),
            world.model.config,
            world.model,
            torch.nn.Linear(2, 2),
            "",
        ]
    )
    arguments = {
        **settings(),
        **parts_of(world),
        "backbone": (v.LEFT_OUT, v.listed("backbone", backbones, "missing", "checkpoint")),
        "text_reserve": (10, v.count("text_reserve", 10, least=0)),
        "pad_token_id": (0, v.count("pad_token_id", 1, least=0, optional=True)[6:]),
        "backbone_kwargs": (
            None,
            v.listed(
                "backbone_kwargs",
                v.given(wrong=[{"dtype": "bfloat16"}, 3]),
            ),
        ),
    }

    def make(**given):
        given = {"backbone": language_model()} | {
            name: value for name, value in given.items() if value is not v.LEFT_OUT
        }
        return plain(PanModel.from_backbone(**given).config.to_dict())

    return Call(make, arguments)
