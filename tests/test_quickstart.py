"""The quickstart in miniature, the whole path through the command line, and what its commands say to bad input."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from forked import run_pan as pan

from pan_hf import RewardCritic
from pan_hf.evaluation import acting, precompute
from pan_hf.quickstart import EMPTY, quickstart
from pan_hf.training import distil


@pytest.mark.slow
def test_the_quickstart_in_miniature_leaves_everything_it_promises(miniature, tmp_path):
    run, folder = tmp_path / "runs" / "quickstart", tmp_path  # trained again below, while other tests read theirs
    shutil.copytree(miniature, run)
    for name in ("checkpoint/model.safetensors", "checkpoint/vocabulary.json", "checkpoint/README.md", "report.html"):
        assert (run / name).stat().st_size > 0
    fields = {"metric", "value", "stderr", "horizon", "model", "environment", "split", "seeds"}
    fields |= {"command", "commit", "hardware"}
    for name, baseline in (("evaluation", "copy_last"), ("planning", "random_policy"), ("timing", "record")):
        records = json.loads((run / f"{name}.json").read_text())
        assert all(set(record) == fields for record in records)
        assert baseline in {record["model"] for record in records}
    assert (run / "cache" / "cache.sqlite").exists()
    before = (run / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    muon = ["--stage", "senses.optim=muon", "--stage", "dynamics.optim=muon"]
    same = ["--backbone", "debug", "--seconds", "6.0", *muon]
    again = pan("train", "--run", "runs/quickstart", *same, cwd=folder)
    assert again.returncode == 0, again.said[-3000:]
    assert (run / "checkpoint" / "README.md").exists()  # it was finished, and is left with its card
    assert all(left.stat().st_mtime_ns <= before for left in (run / "stages").glob("*/final/model.safetensors"))
    other = pan("quickstart", "--miniature", "--backbone", "tiny", cwd=folder)
    assert other.returncode == 1
    assert "begun with other settings" in other.said


@pytest.mark.slow
def test_three_commands_make_a_finished_quickstart_an_agent_that_remembers_and_has_learned(
    miniature, tmp_path, monkeypatch
):
    """Those of docs/guide/cache.md, on a small budget. A model of seconds knows no goal, so here every step is one."""
    for module in (acting, precompute, distil):
        monkeypatch.setattr(module, "reward_critic", lambda *_: RewardCritic(threshold=-1.0))
    shutil.copytree(miniature, tmp_path / "runs" / "quickstart")
    budgets = {"precompute": ["--frames", "4", "--depth", "1", "--time-limit", "60"], "distil": ["--steps", "5"]}
    budgets["plan"] = ["--episodes", "1", "--max-steps", "3", "--planner", "mcts?budget=20", "--env", EMPTY]
    guide = (Path(__file__).parents[1] / "docs" / "guide" / "cache.md").read_text()
    block = guide.partition("three commands")[2].partition("```bash\n")[2].partition("```")[0]
    commands = [line.split()[1:] for line in block.splitlines()]
    assert [command[0] for command in commands] == [*budgets]
    for command in commands:
        done = pan(*command, *budgets[command[0]], cwd=tmp_path)
        assert done.returncode == 0, (command, done.said[-3000:])
    records = json.loads((tmp_path / "runs" / "quickstart" / "planning.json").read_text())
    assert {"recalled", "by_policy"} <= {record["metric"] for record in records}


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
        assert done.returncode == 0, (command, done.said[-3000:])
    assert (tmp_path / "runs" / "default" / "report.html").exists()


def test_a_backbone_that_is_none_is_refused_before_anything_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="`backbone` 'tyni' is neither one of"):
        quickstart(tmp_path / "run", backbone="tyni", progress=False)
    assert not list(tmp_path.iterdir())


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
    assert said in done.said
    assert "Traceback" not in done.said
