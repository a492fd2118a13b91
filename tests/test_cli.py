"""`pan` in a shell: flags come from the signatures of the library, and those that people have written down stay."""

import importlib
import inspect
import os
import subprocess
import sys
from functools import reduce, wraps
from pathlib import Path
from typing import get_type_hints

import pytest

import pan_hf
from pan_hf import cli
from pan_hf.checkpoints import find_checkpoint
from pan_hf.commands import declarations
from pan_hf.data import record as recording
from pan_hf.evaluation import evaluate as evaluation
from pan_hf.evaluation.cache_dataset import cache_folder
from pan_hf.training import pipeline

# as of 0.1, when each was written by hand; recorded commands, scripts and the docs have them
FLAGS = {
    "quickstart": "run seed workers backbone seconds miniature",
    "record": "env run output frames episodes policy explore-steps start env-arg wrapper keep rename render no-render "
    "image-size seed test-fraction fps workers max-episode-steps",
    "mirror": "from run output flip position direction same swap copies seed",
    "import minari": "run output map image-size crop fps test-fraction",
    "import lerobot": "run output map image-size crop test-fraction",
    "import dataset": "run output map image-size crop split fps test-fraction",
    "import videos": "run output map image-size crop actions test-fraction",
    "train": "run data backbone seconds sense set stage skip processes accelerate seed config",
    "finetune": "from run data adapter rank seconds max-steps learning-rate merge no-merge seed",
    "grow": "from run data seconds max-steps every threshold max-new prune no-prune name seed",
    "merge": "from run data part chunk window seconds max-steps every count trial-steps seed",
    "evaluate": "run model data horizon windows temperature env seed effort reencode skip-trained no-skip-trained",
    "plan": "run model data planner env episodes seed max-steps time-limit episode-time-limit success effort output",
    "pool": "output",
    "vocabulary": "run model double output",
    "push": "repo run data adapter private revision dataset base-model license",
    "report": "run",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", FLAGS)
def test_the_flags_of_a_command_stay_and_each_says_what_it_does(command):
    app = reduce(lambda above, name: above[name], command.split(), cli.app)
    arguments = app.assemble_argument_collection(parse_docstring=True)
    known = {name for argument in arguments for name in [*argument.names, *argument.negatives]}
    assert not {f"--{flag}" for flag in FLAGS[command].split()} - known
    assert [argument.name for argument in arguments if not argument.parameter.help] == []


def called(function, monkeypatch, module) -> list[dict]:
    """Calls of a function of the library, which then does nothing."""
    calls = []
    monkeypatch.setattr(module, function.__name__, wraps(function)(lambda *_places, **given: calls.append(given)))
    return calls


def test_flags_say_numbers_lists_and_mappings(monkeypatch):
    calls = called(recording.record, monkeypatch, recording)
    words = "record --env A-v0 --env B-v0 --policy random:0.6 --policy m:f:0.4 --env-arg size=8 --env-arg walls=[1,2]"
    cli.app(f"{words} --env-arg highlight=false --env-arg name=x=y --rename image=camera --run r --render --fps 5")
    (given,) = calls
    assert given["env_ids"] == ["A-v0", "B-v0"] and given["policy"] == ["random:0.6", "m:f:0.4"]
    assert given["env_args"] == {"size": 8, "walls": [1, 2], "highlight": False, "name": "x=y"}
    assert given["rename"] == {"image": "camera"} and given["render"] is True and given["fps"] == 5.0
    assert given["output"] == Path("r/data") and given["frames"] == 20_000
    cli.app("record --env A-v0 --output elsewhere --episodes 3 --no-progress")
    assert calls[1]["output"] == Path("elsewhere") and calls[1]["progress"] is False and calls[1]["frames"] is None


def test_a_flag_comes_before_the_file_field_by_field(monkeypatch, tmp_path):
    calls = called(pipeline.train, monkeypatch, pipeline)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "seconds: 9\nskip: [joint]\nset: {context_steps: 2, loss_weights: {reward: 2.0}}\n"
        "stage:\n  senses: {seconds: 2}\n  dynamics: {learning_rate: 1e-3, max_steps: 7}\n"
    )
    cli.app(["train", "--config", str(recipe), "--seconds", "5", "--stage", "dynamics.max_steps=8"])
    (given,) = calls
    assert given["seconds"] == 5 and given["skip"] == ["joint"]
    assert given["config"] == {"context_steps": 2, "loss_weights": {"reward": 2.0}}
    assert given["overrides"] == {"senses": {"seconds": 2}, "dynamics": {"learning_rate": 1e-3, "max_steps": 8}}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --secnds 5", "Did you mean --seconds?"),
        ("trian", 'Did you mean "train"?'),
        ("train --seconds many", "many"),
        ("record --frames 5", "--env"),
    ],
)
def test_a_mistyped_word_is_answered_in_one_line_with_what_comes_near(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.app(words)
    error = capsys.readouterr().err
    assert ended.value.code and said in error and error.startswith("Error: ") and len(error.splitlines()) == 1


def test_a_field_without_a_value_is_named():
    for words, form in (("--set context_steps", "NAME=VALUE"), ("--stage max_steps=5", "NAME.FIELD=VALUE")):
        with pytest.raises(ValueError, match=f"must be {form}"):
            cli.app(f"train {words}")


def test_a_flag_of_several_numbers_is_given_once_for_each(monkeypatch, capsys):
    calls = called(evaluation.evaluate, monkeypatch, evaluation)
    monkeypatch.setattr("pan_hf.evaluation.summary.evaluation_summary", str)
    cli.app("evaluate --run r --output o --horizon 1 --horizon 5")
    assert calls[0]["horizons"] == [1, 5]
    for text in ("[1]", "[1, 5]", "1,5"):
        with pytest.raises(SystemExit):
            cli.app(["evaluate", "--run", "r", "--horizon", text])
        said = f"--horizon takes a whole number, got '{text}'; for several give --horizon once for each"
        assert said in capsys.readouterr().err
    assert len(calls) == 1


def test_an_empty_text_is_not_taken_for_what_was_left_out(monkeypatch):
    calls = called(evaluation.evaluate, monkeypatch, evaluation)
    monkeypatch.setattr("pan_hf.evaluation.summary.evaluation_summary", str)
    cli.app(["evaluate", "--run", "r", "--output", "o", "--model", ""])
    assert calls[0]["run"] == ""  # which no checkpoint is called
    for words in ("train --run ''", "evaluate --output ''", "vocabulary --run ''", "pool r '' --output o"):
        with pytest.raises(ValueError, match=" takes a folder, got ''"):
            cli.app(words)
    with pytest.raises(ValueError, match="Expected a folder or the name of a model"):
        find_checkpoint("")
    with pytest.raises(ValueError, match="leave it out for the run's own"):
        cache_folder("r", "", "o", None)
    with pytest.raises(FileNotFoundError, match="--config .: no such file, and no recipe of"):
        cli.app(["train", "--config", ""])


def test_what_has_left_the_package_says_where_it_went():
    with pytest.raises(ValueError, match="benchmarks/moving_obstacles.py .* same options"):
        cli.app("futures --run runs/x --seed 0 --seed 1")
    for name in ("tile_world", "futures_check", "evaluation.calibration", "envs.minigrid_oracle"):
        with pytest.raises(ModuleNotFoundError, match="is benchmarks/moving_obstacles.py of the repository now"):
            importlib.import_module(f"pan_hf.{name}")


def test_pan_tells_its_version(capsys):
    cli.app("--version")
    assert capsys.readouterr().out.strip() == pan_hf.__version__


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--help", "--version", "train --help", "plan --help", "train --secnds 5"])
def test_help_and_a_mistyped_flag_are_answered_without_torch(words, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(pan_hf.__file__).parents[1]), "PYTHONPROFILEIMPORTTIME": "1"}
    command = [sys.executable, "-m", "pan_hf", *words.split()]
    done = subprocess.run(command, env=environment, cwd=tmp_path, text=True, capture_output=True, check=False)
    read = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "pan_hf.cli" in read and not {"torch", "transformers", "numpy"} & read
    assert done.stdout or "Did you mean --seconds?" in done.stderr


TARGETS = [("quickstart", "quickstart"), ("data.record", "record"), ("data.mirror", "mirror")]
TARGETS += [("data.importing.minari", "import_minari"), ("data.importing.videos", "import_videos")]
TARGETS += [("training.pipeline", "train"), ("training.grow", "grow"), ("evaluation.evaluate", "evaluate")]
TARGETS += [("evaluation.control", "plan"), ("publishing.push", "push_checkpoint")]


@pytest.mark.parametrize(("module", "name"), TARGETS)
def test_a_signature_read_from_a_file_is_that_of_the_function(module, name):
    function = cli.library(f"pan_hf.{module}:{name}")
    declared, hints = declarations(f"pan_hf.{module}").signature(name).parameters, get_type_hints(function)
    for parameter, true in zip(declared.values(), inspect.signature(function).parameters.values(), strict=True):
        assert (parameter.name, parameter.kind, parameter.default) == (true.name, true.kind, true.default)
        assert parameter.annotation in (None, hints.get(true.name))
