"""Checkpoints, an adapter and a recording of an earlier revision load, say what they said then, and go on.

They are in `tests/data/old`; its README.md says what wrote them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import old_data
import pytest
from forked import run_pan
from tiny_worlds import all_tensors, differing
from transformers import AutoModel, AutoProcessor

from pan_hf import PanModel, load_trajectories
from pan_hf.adapters import load_adapter

OLD = Path(__file__).resolve().parent / "data" / "old"
EXPECTED = json.loads((OLD / "expected.json").read_text())


def check(found, expected):
    """Discrete outputs are equal; floats are near, since other CPUs round otherwise."""
    assert {n: v for n, v in found["exact"].items() if v != expected["exact"].get(n)} == {}
    assert set(found["exact"]) == set(expected["exact"]) and set(found["close"]) == set(expected["close"])
    for name, values in expected["close"].items():
        assert found["close"][name] == pytest.approx(values, rel=1e-4, abs=1e-4), name


def load(name):
    model, processor = AutoModel.from_pretrained(OLD / name).eval(), AutoProcessor.from_pretrained(OLD / name)
    processor.attach(model)
    return model, processor


@pytest.mark.slow
@pytest.mark.parametrize("name", old_data.ACTIONS)
def test_an_old_checkpoint_says_what_it_said(name):
    model, processor = load(name)
    assert type(model) is PanModel
    check(old_data.ask(name, model, processor), EXPECTED[name])


@pytest.mark.slow
def test_an_old_checkpoint_says_the_same_by_the_code_that_it_ships(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-P", old_data.__file__, str(OLD / "model")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    check(json.loads(done.stdout.splitlines()[-1]), EXPECTED["model"])


@pytest.mark.slow
def test_an_old_adapter_goes_onto_its_base(tmp_path):
    base, processor = load("model")
    adapted = load_adapter(base, OLD / "adapter").eval()
    check(old_data.ask("model", adapted, processor), EXPECTED["adapter"])
    assert processor.vocabulary_digest != EXPECTED["model"]["exact"]["vocabulary"]  # it brought what was born


@pytest.mark.slow
def test_an_old_recording_is_read():
    assert old_data.summary(load_trajectories(OLD / "recording", "train")) == EXPECTED["recording"]


@pytest.mark.slow
def test_training_goes_on_from_an_old_checkpoint(tmp_path):
    given = ["--from", str(OLD / "model"), "--data", str(OLD / "recording"), "--adapter", "none", "--max-steps", "2"]
    done = run_pan("finetune", "--run", "run", *given, cwd=tmp_path)
    assert done.returncode == 0, done.said[-3000:]
    before, after = (PanModel.from_pretrained(path) for path in (OLD / "model", tmp_path / "run" / "checkpoint"))
    changed = {tensor.split(".")[0] for tensor in differing(all_tensors(before), all_tensors(after))}
    assert {"language_model", "readouts", "outcome"} <= changed
    assert set(all_tensors(before)) == set(all_tensors(after))


def test_the_old_data_are_small_and_hold_no_pickle():
    files = [path for path in OLD.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 2**20
    assert {path.suffix for path in files} <= {".json", ".jinja", ".md", ".parquet", ".py", ".safetensors"}
