"""The quickstart in miniature, the whole path through the command line, and what its commands say to bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


def pan(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pan_hf.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT | {"HOME": str(cwd)}, capture_output=True, text=True)


@pytest.mark.slow
def test_the_quickstart_in_miniature_leaves_everything_it_promises(tmp_path):
    done = pan("quickstart", "--miniature", "--backbone", "debug", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "quickstart"
    for name in ("checkpoint/model.safetensors", "checkpoint/vocabulary.json", "checkpoint/README.md", "report.html"):
        assert (run / name).stat().st_size > 0
    fields = {"metric", "value", "stderr", "horizon", "model", "environment", "split", "seeds"}
    fields |= {"command", "commit", "hardware"}
    for name, baseline in (("evaluation", "copy_last"), ("planning", "random_policy"), ("timing", "record")):
        records = json.loads((run / f"{name}.json").read_text())
        assert all(set(record) == fields for record in records)
        assert baseline in {record["model"] for record in records}
    again = pan("quickstart", "--miniature", "--backbone", "debug", cwd=tmp_path)
    assert again.returncode == 0, "a finished quickstart runs again without training anew"
    other = pan("quickstart", "--miniature", "--backbone", "tiny", cwd=tmp_path)
    assert other.returncode == 1
    assert "begun with other settings" in other.stderr


@pytest.mark.slow
def test_an_environment_never_seen_needs_flags_only(tmp_path):
    for command in (
        ["record", "--env", "Pendulum-v1", "--frames", "600"],
        ["train", "--seconds", "5", "--backbone", "debug"],
        ["evaluate", "--windows", "4", "--skip-trained"],
        ["plan", "--planner", "random_shooting?num_samples=4&horizon=2", "--episodes", "1", "--max-steps", "5"],
        ["report"],
    ):
        done = pan(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr[-3000:])
    assert (tmp_path / "runs" / "default" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["record", "--env", "NoSuchWorld-v0"], "NoSuchWorld-v0"),
        (["train", "--run", "nowhere"], "pan record"),
        (["evaluate", "--run", "nowhere"], "nowhere"),
        (["train", "--set", "context_steps"], "NAME=VALUE"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, said, tmp_path):
    done = pan(*arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
