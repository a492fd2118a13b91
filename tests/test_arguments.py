"""What a function is called with is taken, or refused in a sentence, before anything is written."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pan_hf import RecordTrajectories
from pan_hf.arguments import checked, least
from pan_hf.build import build
from pan_hf.data.importing import import_dataset, import_lerobot, import_minari, import_videos
from pan_hf.data.mirror import mirror
from pan_hf.data.record import record
from pan_hf.data.trajectories import Trajectories
from pan_hf.evaluation.control import plan
from pan_hf.evaluation.evaluate import evaluate
from pan_hf.evaluation.precompute import precompute
from pan_hf.training.distil import distil
from pan_hf.training.finetune import finetune
from pan_hf.training.grow import grow
from pan_hf.training.imagine import imagine
from pan_hf.training.improve import improve
from pan_hf.training.merge import merge
from pan_hf.training.pipeline import train
from pan_hf.training.value import learn_value


@checked(count=least(1), rate=least(0, above=True))
def taken(
    count: int = 1,
    rate: float | None = None,
    names: str | Sequence[str] = (),
    flag: bool = False,
    fields: Mapping[str, str] | None = None,
    folder: str | Path = "here",
    call: Callable | None = None,
) -> tuple:
    return count, rate, names, flag, fields, folder, call


@pytest.mark.parametrize("count", [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)])
def test_a_whole_number_of_any_library_is_one(count):
    assert taken(count)[0] == 3 and type(taken(count)[0]) is int


def test_other_types_are_taken_where_they_mean_the_same():
    assert (
        taken(rate=np.float32(0.5))[1] == 0.5 and taken(rate=2)[1] == 2.0 and taken(rate=torch.tensor(0.5))[1] == 0.5
    )
    assert taken(names=np.array(["a", "b"]))[2] == ["a", "b"] and taken(names=("a",))[2] == ["a"]
    assert taken(flag=np.bool_(True))[3] is True and taken(names="one")[2] == "one"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "count: expected at least 1, got 0"),
        ({"count": 2.5}, "count: expected a whole number, got float 2.5"),
        ({"count": True}, "count: expected a whole number"),
        ({"count": torch.tensor(True)}, "count: expected a whole number"),
        ({"count": None}, "count: expected a whole number, got NoneType"),
        ({"count": np.array([1, 2])}, "count: expected a whole number, got ndarray"),
        ({"rate": float("nan")}, "rate: expected a finite number or None, got float nan"),
        ({"rate": 0}, "rate: expected more than 0"),
        ({"rate": "0.5"}, "rate: expected a finite number or None, got str"),
        ({"rate": np.str_("0.5")}, "rate: expected a finite number or None, got str_"),
        ({"rate": np.bool_(True)}, "rate: expected a finite number or None, got bool"),
        ({"rate": np.complex128(0.5)}, "rate: expected a finite number or None, got complex"),
        ({"rate": np.datetime64("2020")}, "rate: expected a finite number or None, got datetime64"),
        ({"names": 3}, "names: expected a text or a list, got int 3"),
        ({"names": ["a", 3]}, r"names\[1\]: expected a text, got int 3"),
        ({"flag": "no"}, "flag: expected True or False, got str 'no'"),
        ({"fields": ["a"]}, "fields: expected a dict or None, got list"),
        ({"fields": {"a": 3}}, r"fields\['a'\]: expected a text, got int 3"),
        ({"folder": 3}, "folder: expected a text or a path, got int 3"),
        ({"folder": ""}, "folder: expected a path, got ''"),
        ({"folder": "x" * 5000}, "folder: 'x+' cannot be used as a path"),
        ({"folder": Path("a\0b")}, "folder: .* cannot be used as a path"),
        ({"call": 3}, "call: expected a callable or None"),
    ],
)
def test_what_is_of_another_type_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        taken(**given)


SEEDED = (
    record,
    build,
    train,
    evaluate,
    plan,
    mirror,
    finetune,
    grow,
    merge,
    imagine,
    distil,
    learn_value,
    improve,
    precompute,
)


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize("function", SEEDED, ids=lambda function: function.__name__)
def test_a_seed_is_one_that_every_library_takes(function, seed):
    needed = [one for one in inspect.signature(function).parameters.values() if one.default is one.empty]
    given = {one.name: "x" for one in needed if one.kind is not one.VAR_KEYWORD}
    given |= {"trajectories": object.__new__(Trajectories)} if "trajectories" in given else {}
    with pytest.raises(ValueError, match=f"seed: expected a seed from 0 to 4294967295, got {seed}"):
        function(**given, seed=seed)


def test_a_misspelt_argument_names_those_there_are():
    with pytest.raises(TypeError, match="taken: .*'counts'; it takes count, rate, names"):
        taken(counts=3)


@pytest.mark.parametrize(
    "given",
    [
        {"seed": 3.5}, {"seed": None}, {"explore_steps": 1.5}, {"workers": float("inf")}, {"max_episode_steps": "3"},
        {"image_size": 0}, {"image_size": 16.5}, {"fps": "hot"}, {"fps": float("nan")}, {"test_fraction": -0.5},
        {"episodes": "3"}, {"env_args": "text"}, {"wrappers": 3}, {"keep": "camera and more", "frames": 0},
        {"policy": 3}, {"policy": ""}, {"policy": "os:getcwd"}, {"policy": lambda env, observation, rng: None},
        {"policy": lambda env, observation, rng: 99}, {"depth_scale": 0},
    ],
)  # fmt: skip
def test_a_refused_recording_leaves_nothing(given, tmp_path):
    with pytest.raises(ValueError):
        record("CartPole-v1", tmp_path / "run" / "data", **{"episodes": 2, "progress": False} | given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("importer", [import_dataset, import_lerobot, import_videos, import_minari])
@pytest.mark.parametrize("given", [{"image_size": float("nan")}, {"test_fraction": "0.5"}, {"map": 3}, {"crop": "no"}])
def test_a_refused_import_leaves_nothing(importer, given, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=next(iter(given))):
        importer(tmp_path / "in", tmp_path / "data", **given)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("given", [{"fps": -0.5}, {"test_fraction": 1.5}, {"image_size": -7}, {"render": np.ones(2)}])
def test_a_refused_wrapper_leaves_nothing(given, tmp_path):
    import gymnasium

    with pytest.raises(ValueError, match=next(iter(given))):
        RecordTrajectories(gymnasium.make("CartPole-v1"), tmp_path / "data", **given)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_said_before_an_episode_is_played(tmp_path):
    import gymnasium

    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file" / "new", "/proc/new"):
        with pytest.raises(ValueError, match=f"folder: .*{folder}.* cannot be"):
            RecordTrajectories(gymnasium.make("CartPole-v1"), folder)


@pytest.mark.parametrize("steps", [-1, 0])
def test_a_stage_takes_a_step_at_least(steps, tmp_path):
    """Transformers means epochs by -1; a stage counts none, and would end before its first step."""
    with pytest.raises(ValueError, match=f"Stage 'dynamics': `max_steps` must be at least 1, got {steps}"):
        train(tmp_path, overrides={"dynamics": {"max_steps": steps}})
