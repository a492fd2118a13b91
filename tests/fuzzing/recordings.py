"""Recordings: made, imported, read, built from and evaluated on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from fuzzing import values as v
from fuzzing.configurations import settings
from fuzzing.outcomes import WRONG
from fuzzing.targets import (
    Call,
    an_output,
    board,
    given_of,
    misspelt,
    model_state,
    new_folder,
    plain,
    raw_action,
    raw_observation,
    target,
    without_marks,
)
from fuzzing.worlds import World
from pan_hf import PanTokenizer, RecordTrajectories, SimulationPipeline, load_trajectories


@target("build", ("discrete",), numbers=1, weight=1)
def build_world(world: World, number: int) -> Call:
    from pan_hf.build import build

    options = v.given(
        free=[None],
        wrong=[
            {"camra": {"patch_size": 4}},
            {"camera": {"patchsize": 4}},
            3,
            {"camera": {"patch_size": 5}},
            {"camera": "patch_size=4"},
            {"place": {"low": [v.NAN, 0]}},
            {"action": {"n": 3}},
            ["camera"],
        ],
    )
    given = v.given(wrong=[None, str(board().data), {}, world.model])
    arguments = {
        "trajectories": (board().trajectories, v.listed("trajectories", given)),
        "backbone": ("debug", v.choice("backbone", "debug")),
        "sense_options": (
            {"place": {"base": 4}},
            v.listed("sense_options", options, "camera", "place", "action", "patch_size"),
        ),
        "seed": (3, v.seed("seed")),
        **settings(),
    }
    return Call(lambda **each: plain(without_marks(build)(**each)[0].config.to_dict()), arguments)


@target("load_trajectories", ("discrete",), numbers=1, weight=1)
def trajectories_loaded(world: World, number: int) -> Call:
    episodes = v.given(free=[np.array([0]), [0, 0]], wrong=[[99], "all", 1, [0.5], [], [-1], ["0"]])
    arguments = {
        "root": (board().data, v.folder("root", board().data, Path("runs/missing"))),
        "split": ("train", v.choice("split", "train", ["test"])),
        "in_memory": (10**9, v.count("in_memory", 10**9, least=0)[6:]),
        "episodes": (None, v.listed("episodes", episodes, "episode")),
    }
    return Call(lambda **given: load_trajectories(**given).actions, arguments, state=(board().data,), is_pure=False)


@target("Trajectories.windows", ("discrete",), numbers=1, weight=1)
def trajectory_windows(world: World, number: int) -> Call:
    arguments = {
        "num_steps": (1, v.count("num_steps", 1, least=0)),
        "environment": ("TestPanBoard-v0", v.choice("environment", "TestPanBoard-v0", optional=True)),
    }
    return Call(board().trajectories.windows, arguments)


@target("Trajectories.select", ("discrete",), numbers=1, weight=1)
def trajectory_select(world: World, number: int) -> Call:
    made = v.given(
        same=[np.array([0, 1]), (0, 1), torch.tensor([0, 1]), range(2)],
        free=[iter([0, 1]), np.array([True, True] + [False] * 6)],
        wrong=[[99], "all", 1, [0.5], None, []],
    )
    return Call(
        lambda episodes: board().trajectories.select(episodes).actions,
        {"episodes": ([0, 1], v.listed("episodes", made, "episode"))},
    )


class _Env(gymnasium.Env):
    """Three steps of a vector."""

    observation_space = gymnasium.spaces.Dict({"place": gymnasium.spaces.Box(-1, 1, (2,), np.float32)})
    action_space = gymnasium.spaces.Discrete(3)
    given: Any = None

    def reset(self, *, seed=None, options=None):
        return {"place": np.zeros(2, np.float32)}, {}

    def step(self, action):
        observation, reward, terminated, truncated = {"place": np.zeros(2, np.float32)}, 0.5, False, False
        given = self.given or {}
        return (
            given.get("observation", observation),
            given.get("reward", reward),
            given.get("terminated", terminated),
            given.get("truncated", truncated),
            {},
        )


@target("RecordTrajectories", ("discrete",), numbers=1, weight=2)
def recorder(world: World, number: int) -> Call:
    folder = an_output("folder")
    envs = v.given(wrong=[None, "CartPole-v1", _Env, gymnasium.vector.SyncVectorEnv([_Env])])
    keep = v.given(same=[("place",)], wrong=[["palce"], "place", 3, [3]])
    rename = v.given(wrong=[{"palce": "where"}, "where", {"place": "my place"}, 3, {"place": "action"}, {"place": 3}])
    arguments = {
        "env": (_Env(), v.listed("env", envs, "environment")),
        "folder": folder,
        "keep": (["place"], v.listed("keep", keep)),
        "rename": (None, v.listed("rename", rename)),
        "image_size": (None, v.count("image_size", 16, optional=True)[6:]),
        "test_fraction": (0.5, v.number("test_fraction", 0.5, 0, 1)),
        "fps": (4.0, v.number("fps", 4.0, low=0, open_low=True, optional=True)),
        "render": (False, v.flag("render", False)),
        "crop": (False, v.flag("crop", False)),
        **misspelt("size", 16),
    }
    return Call(
        lambda **given: without_marks(RecordTrajectories)(**given).features,
        arguments,
        state=(folder[0].parent,),
        is_pure=False,
    )


@target("RecordTrajectories.step", ("discrete",), numbers=1, weight=2)
def recorder_step(world: World, number: int) -> Call:
    folder = new_folder() / "new"
    inner = _Env()
    env = RecordTrajectories(inner, folder)
    env.reset()
    env.step(1)
    place = np.zeros(2, np.float32)
    observations = v.given(
        same=[{"place": [0.0, 0.0]}, {"place": np.zeros(2)}],
        wrong=[
            {"place": place * v.NAN},
            {"place": place[:1]},
            {"place": "here"},
            place,
            {"palce": place},
            {"place": None},
        ],
    )
    acts = v.given(
        same=[1.0, np.int64(1), np.array(1), torch.tensor(1)], wrong=[9, -1, "left", None, 0.5, [1, 2], v.NAN]
    )
    arguments = {
        "action": (1, v.listed("action", acts)),
        "observation": ({"place": place}, v.listed("observation", observations, "place")),
        # the one in a list is meant: environments give rewards of shape (1,)
        "reward": (0.5, [made for made in v.number("reward", 0.5) if not isinstance(made().value, list)]),
        "terminated": (False, v.flag("terminated", False)[:3]),
    }

    def step(action, **given):
        inner.given = given
        return env.step(action)[1:4]

    return Call(step, arguments, state=(folder,), is_pure=False)


@target("import_dataset", ("discrete",), numbers=2, weight=2)
def dataset_imported(world: World, number: int) -> Call:
    import datasets

    from pan_hf.data.importing.hf_dataset import import_dataset

    rng = np.random.default_rng(0)
    columns = {
        "observation.place": rng.random((6, 2)).round(3).tolist(),
        "action": [0, 1, 0, 1, 0, 1],
        "next.reward": [0.0, 0.5, 0.0, 0.5, 0.0, 0.5],
        "episode_index": [0, 0, 0, 1, 1, 1],
        "frame_index": [0, 1, 2, 0, 1, 2],
    }

    def with_column(name: str, value: Any) -> Callable:
        return lambda: datasets.Dataset.from_dict({**columns, name: value})

    output = an_output()
    data = datasets.Dataset.from_dict(columns)
    made = v.given(
        same=[datasets.DatasetDict(train=data)],
        free=[
            columns,
            data.to_list(),
            data.to_pandas(),
            data.data.table,
            data.to_iterable_dataset(),
            v.Late(with_column("action", ["left"] * 6)),
            v.Late(with_column("action", [True] * 6)),
            v.Late(with_column("observation.place", [{"x": 1.0}] * 6)),
        ],
        wrong=[
            None,
            3,
            Path("runs/missing"),
            data.select([]),
            Path(__file__),
            iter(data),
            v.Late(with_column("next.reward", [v.NAN] * 6)),
            data.remove_columns("action"),
            v.Late(with_column("observation.place", [[v.NAN] * 2] * 6)),
            v.Late(with_column("observation.place", [[0.1] * (1 + row % 2) for row in range(6)])),
            data.remove_columns("observation.place"),
            v.Late(with_column("action", [-1] * 6)),
            v.Late(with_column("next.reward", [None] * 6)),
            v.Late(with_column("action", [None] * 6)),
            v.Late(with_column("next.reward", ["high"] * 6)),
            v.Late(with_column("frame_index", [0] * 6)),
            v.Late(with_column("frame_index", [0, 1, 9, 0, 1, 2])),
            v.Late(with_column("episode_index", [None] * 6)),
            v.Late(with_column("observation.place", [[]] * 6)),
        ],
    )
    maps = v.given(
        same=[None],
        free=[{"next.reward": "action"}],  # a column more of it
        wrong=[
            {"palce": "where"},
            3,
            "action",
            {"observation.place": "my place"},
            ["action"],
            {"action": 3},
        ],
    )
    arguments = {
        "data": (
            data,
            v.listed(
                "data",
                made,
                "column",
                "observation.place",
                "next.reward",
                "episode_index",
                "frame_index",
                "action",
                "episode",
                "missing",
                "recordings.py",
            ),
        ),
        "output": output,
        "map": ({}, v.listed("map", maps, "palce")),
        "image_size": (None, v.count("image_size", 16, optional=True)[6:]),
        "fps": (4.0, v.number("fps", 4.0, low=0, open_low=True, optional=True)),
        "test_fraction": (0.5, v.number("test_fraction", 0.5, 0, 1)),
        "progress": (False, []),
        **misspelt("maps", {}),
    }

    def run(**given):
        info = without_marks(import_dataset)(**given)
        return {name: info[name] for name in ("frames", "episodes")}

    return Call(run, arguments, state=(output[0].parent,), is_pure=False)


def _importer(name: str, module: str):
    """Other importers: what they are given is missing or of another kind."""

    @target(f"import_{name}", ("discrete",), numbers=1, weight=1)
    def make(world: World, number: int) -> Call:
        import importlib

        function = getattr(importlib.import_module(f"pan_hf.data.importing.{module}"), f"import_{name}")
        empty = new_folder()
        output = an_output()
        made = v.given(
            wrong=[None, 3, np.zeros((4, 4)), [empty], empty / "missing", Path(__file__), "\x00", board().data, ""]
        )
        arguments = {
            "data": (
                empty,
                v.listed("data", made, str(empty), "missing", "recordings.py", "folder", "data set", "fuzz"),
            ),
            "output": (output[0], []),
            "progress": (False, []),
        }

        def run(**given):
            return function(**given)

        arguments["data"] = (made[0][2](), arguments["data"][1])  # nothing that is right is at hand
        return Call(run, arguments, state=(empty, output[0].parent), is_pure=False, needs_change=True)

    return make


for _name, _module in (("lerobot", "lerobot"), ("videos", "videos"), ("minari", "minari")):
    _importer(_name, _module)


@target("evaluate_model", ("discrete",), numbers=1, weight=1)
def evaluated(world: World, number: int) -> Call:
    from pan_hf.checkpoints import load
    from pan_hf.evaluation.evaluate import evaluate_model

    model, processor = world.kept_as("board model", lambda: load(board().model))
    horizons = v.given(same=[(1,), 1, np.array([1]), [1, 1]], wrong=[[0], [-1], [], 0, ["1"], [999], [1.5], None])
    names = v.given(same=[None], free=["TestPanBoard-v0", []], wrong=[["Board-v9"], 3])
    arguments = {
        "horizons": ([1], v.listed("horizons", horizons, "horizon")),
        "num_windows": (2, v.count("num_windows", 2)),
        "batch_size": (2, v.count("batch_size", 2)),
        "seed": (3, v.seed("seed")),
        "environments": (["TestPanBoard-v0"], v.listed("environments", names, "environment", "episode")),
        "temperature": (0.0, v.number("temperature", 0.0, low=0)),
        "context": (1, v.count("context", 1, optional=True)),
        "reward_threshold": (0.05, v.number("reward_threshold", 0.05, low=0)),
        "reencode": (0, v.count("reencode", 1, least=0)[6:]),
        "progress": (False, []),
        **misspelt("horizon", 1),
    }

    def run(**given):
        test = world.kept_as("board test", lambda: load_trajectories(board().data, "test"))
        found = without_marks(evaluate_model)(model, processor, test, **given)
        return {
            f"{each.metric} {each.model} {each.horizon}": each.value for each in found if "bits" not in each.metric
        }

    return Call(run, arguments, state=(model,))


@target("record", ("discrete",), numbers=1, weight=1)
def recorded(world: World, number: int) -> Call:
    from pan_hf.data.record import record

    output = an_output()
    envs = v.given(
        same=[["TestPanBoard-v0"]],
        wrong=["Missing-v0", None, 3, [], _Env(), "", "missing_module:Env-v0", ["TestPanBoard-v0"] * 2],
    )
    policies = v.given(
        wrong=[
            "radnom",
            None,
            3,
            [],
            "os:missing",
            "random:-1",
            "random:nan",
            lambda observation, rng: None,
            lambda observation, rng: 1 / 0,
            lambda: 0,
            lambda observation, rng: 99,
        ]
    )
    args = v.given(wrong=[{"size": 3}, 3, "size=3", ["size"]])
    arguments = {
        "env_ids": (
            "TestPanBoard-v0",
            v.listed("env_ids", envs, "environment", "Missing", "missing_module", "TestPanBoard-v0"),
        ),
        "output": output,
        "episodes": (2, v.count("episodes", 2)),
        "policy": ("random", v.listed("policy", policies, "action", "radnom", "random")),
        "explore_steps": (0, v.count("explore_steps", 1, least=0)[6:]),
        "env_args": ({}, v.listed("env_args", args, "size")),
        "wrappers": (
            [],
            v.listed(
                "wrappers",
                v.given(wrong=[["missing:Wrapper"], 3, [3], ["os:getcwd"]]),
                "wrapper",
                "missing",
                "os:",
            ),
        ),
        "keep": ([], v.listed("keep", v.given(wrong=[["palce"], 3]), "palce")),
        "rename": (
            {},
            v.listed(
                "rename",
                v.given(wrong=[{"palce": "where"}, "where", ["place"]]),
                "palce",
            ),
        ),
        "seed": (3, v.count("seed", 3, least=0)),
        "test_fraction": (0.5, v.number("test_fraction", 0.5, 0, 1)),
        "workers": (1, v.count("workers", 1)[6:]),
        "max_episode_steps": (3, v.count("max_episode_steps", 3, optional=True)),
        "fps": (4.0, v.number("fps", 4.0, low=0, open_low=True, optional=True)),
        "image_size": (None, v.count("image_size", 16, optional=True)[6:]),
        "progress": (False, []),
        **misspelt("env", "TestPanBoard-v0"),
    }

    def run(**given):
        info = without_marks(record)(**given)
        return {name: info[name] for name in ("episodes",)}

    return Call(run, arguments, state=(output[0].parent,), is_pure=False)


@target("pipeline", ("discrete", "vector"), weight=1)
def pipeline(world: World, number: int) -> Call:
    def make():
        return SimulationPipeline(model=world.model, processor=world.processor)

    pipe = world.kept_as("pipeline", make)
    observation, changes = raw_observation(world, 1, number)
    actions, others = raw_action(world, 2, number, is_alone=True)
    arguments = {
        "observation": (observation, changes),
        "actions": (actions, others),
        "num_rollouts": (2, v.count("num_rollouts", 2)),
        "temperature": (0.5, v.number("temperature", 0.5, low=0)),
        "seed": (3, v.seed("seed")),
        "output_type": ("np", v.choice("output_type", "np", ["pil"], optional=True)),
        **misspelt("rollouts", 3),
    }

    def run(observation, actions, **given):
        return pipe({"observation": observation, "actions": actions}, **given_of(given))

    return Call(run, arguments, state=model_state(world))


@target("PanTokenizer.train", ("discrete",), numbers=1, weight=1)
def tokenizer_trained(world: World, number: int) -> Call:
    made = v.given(
        same=[("go to", "the door"), iter(["go to", "the door"])],
        free=[[], ["\udcff"]],
        wrong=["go", None, 3, [3], [b"go"]],
    )
    arguments = {
        "texts": (["go to", "the door"], v.listed("texts", made, "text")),
        "vocab_size": (270, v.count("vocab_size", 270, least=259)),
    }
    return Call(lambda **given: PanTokenizer.train(**given).get_vocab(), arguments)


@target("vocabulary.double", ("discrete",), numbers=1, weight=1)
def doubled(world: World, number: int) -> Call:
    from pan_hf.vocabulary import double

    output = an_output(may_lack=True)
    segments = v.given(wrong=[["camra.0"], ["camera"], ["place.0"], 3, "camera.0", [], None, [3], ["camera.9"], [""]])
    path = board().model
    missing = [each for each in v.folder("path", path, Path("runs/missing")) if each().expects == WRONG]
    arguments = {
        "path": (path, missing),
        "segments": (["camera.0"], v.listed("segments", segments, "segment", "camra", "camera", "place")),
        "output": output,
    }
    return Call(lambda **given: str(type(double(**given))), arguments, state=(path, output[0].parent), is_pure=False)


@target("load", ("discrete",), numbers=1, weight=1)
def checkpoint_loaded(world: World, number: int) -> Call:
    from pan_hf.checkpoints import load

    path = board().model
    missing = [each for each in v.folder("path", path, Path("runs/missing")) if each().expects == WRONG]
    extra = v.given(wrong=[board().data, None, world.model])
    return Call(
        lambda path: type(load(path)[0]).__name__,
        {"path": (path, missing + v.listed("path", extra, "checkpoint", "data"))},
        state=(path,),
    )
