"""`pan improve`: an agent acts, its model learns from what it met, and the rounds go on wherever they were stopped."""

import itertools
import json
import os
import signal
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from forked import run_forked
from safetensors.torch import load_file
from tiny_worlds import BOARD_OPTIONS, Board

from pan_hf import RewardCritic, cli
from pan_hf.agents.critics import as_critic
from pan_hf.build import build
from pan_hf.checkpoints import load, save_checkpoint
from pan_hf.data.episodes import episode_files, read_info
from pan_hf.data.join import join
from pan_hf.data.record import record
from pan_hf.data.trajectories import load_trajectories
from pan_hf.evaluation.acting import recorded_facts
from pan_hf.reporting.report import write_report
from pan_hf.reporting.results import read_records
from pan_hf.reporting.tables import select
from pan_hf.training import improve as loop
from pan_hf.training.encounters import misfits, surprise_at
from pan_hf.training.improve import improve
from pan_hf.training.run_folder import stable_repr

SHORT = {"episodes": 2, "max_steps": 1, "test_episodes": 1, "max_episode_steps": 4, "time_limit": 20.0}
SHORT |= {"planner": "cem?num_samples=4&horizon=2&num_iterations=1", "progress": False, "reward_threshold": 0.05}


class WideBoard(Board):
    """A board of which every second episode lies beyond the other one."""

    beyond = itertools.cycle([0, 6])

    def __init__(self):
        super().__init__()
        self.observation_space["place"] = gymnasium.spaces.Box(0, 9, (2,), np.float32)

    def reset(self, **options):
        self.moved = next(self.beyond)
        return super().reset(**options)

    def _look(self):
        seen = super()._look()
        return seen | {"place": seen["place"] + np.float32(self.moved)}


gymnasium.register("TestPanWideBoard-v0", entry_point=WideBoard, max_episode_steps=5)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run with an untrained model of the place on the board, and a recording."""
    run = tmp_path_factory.mktemp("improve")
    given = {"keep": ["place", "mission"], "test_fraction": 0.2, "progress": False}
    record("TestPanBoard-v0", run / "data", episodes=6, **given)
    trajectories = load_trajectories(run / "data", "train")
    model, processor = build(trajectories, "debug", {"place": BOARD_OPTIONS["place"]}, adapter_dim=16)
    about = json.dumps({"fingerprints": trajectories.fingerprints, "environments": [], "root": "data"})
    save_checkpoint(run / "checkpoint", model, processor, {"training_data.json": about})
    return SimpleNamespace(run=run, trajectories=trajectories)


# ---- recordings as one


def test_joined_recordings_hold_every_episode_once_under_its_own_number(world, tmp_path):
    other, out = tmp_path / "other", tmp_path / "out"
    record("TestPanBoard-v0", other, episodes=3, keep=["place", "mission"], seed=9, test_fraction=0.0, progress=False)
    info = join([world.run / "data", other], out)
    again = join([world.run / "data", other], out)
    assert again == read_info(out) and info["episodes"] == {"train": 5 + 3, "test": 1}
    joined, parts = load_trajectories(out, "train"), [world.trajectories, load_trajectories(other, "train")]
    assert joined.fingerprints == [each for part in parts for each in part.fingerprints]
    assert len(set(joined.episode_indices)) == 8
    facts = [recorded_facts(root)["TestPanBoard-v0"].seeds for root in (out, world.run / "data", other)]
    assert facts[0] == facts[1] | facts[2]


def test_episodes_that_are_left_out_are_not_joined(world, tmp_path):
    first = next(iter(episode_files(world.run / "data", "train")))
    info = join([world.run / "data"], tmp_path / "out", {world.run / "data": [first]})
    assert info["episodes"]["train"] == 4


def test_recordings_of_other_senses_are_not_joined(world, tmp_path):
    record("TestPanBoard-v0", tmp_path / "other", episodes=2, keep=["place"], progress=False)
    with pytest.raises(ValueError, match="has the senses and actions"):
        join([world.run / "data", tmp_path / "other"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- what was met


def test_episodes_beyond_what_a_model_knows_are_no_surprise_to_it(world, tmp_path):
    given = {"keep": ["place", "mission"], "test_fraction": 0.0, "progress": False}
    record("TestPanWideBoard-v0", tmp_path, episodes=4, **given)
    model, processor = load(world.run)
    met = load_trajectories(tmp_path, "train")
    wrong = misfits(model.config, processor, met)
    assert len(wrong) == 2
    told = surprise_at(world.run, tmp_path)
    assert told["surprise"] > 0
    assert told["met_steps"] == sum(met.episode_lengths - 1) - sum(met.episode_lengths[wrong] - 1)


# ---- a round


@pytest.mark.slow
def test_a_round_changes_the_checkpoint_and_tells_success_and_surprise(world, tmp_path, monkeypatch, capsys):
    words = ["--model", world.run, "--run", tmp_path, "--rounds", "1", "--cache", "--policy"]
    flags = {name.replace("_", "-"): value for name, value in SHORT.items() if name != "progress"}
    words = [str(word) for word in [*words, *(word for flag in flags for word in (f"--{flag}", flags[flag]))]]
    monkeypatch.setattr("sys.argv", ["pan", "improve", *words, "--success", "reward>0"])
    cli.main()
    said = capsys.readouterr().out
    assert "round 0" in said and "round 1" in said and "surprise" in said
    records = read_records(tmp_path / "improvement.json")
    assert {entry.model for entry in records} == {"round 0", "round 1"}
    (surprise,) = select(records, metric="surprise")
    assert surprise.value > 0 and len(select(records, metric="success")) == 2
    last = tmp_path / "improve" / "round-01"
    before, after = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (world.run, last))
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    facts = recorded_facts(last / "data")["TestPanBoard-v0"]
    assert 10_000 not in facts.seeds and read_info(last / "data")["episodes"]["train"] == 5 + 2
    assert (last / "cache" / "cache.sqlite").exists() and (last / "distilled" / "policy.json").exists()
    report = write_report(tmp_path).read_text()
    assert "What it learned by acting" in report and "success on seeds held out" in report


@pytest.mark.slow
@pytest.mark.parametrize("part", ["_act", "_learn", "_measure"])
def test_rounds_that_were_killed_go_on_where_they_were(world, tmp_path, part):
    def kill_after():
        doing = getattr(loop._Loop, part)

        def do(self, number, *args):
            done = doing(self, number, *args)
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        setattr(loop._Loop, part, do)
        improve(world.run, rounds=1, output=tmp_path / "killed", **SHORT)

    assert run_forked(kill_after, tmp_path).returncode == -signal.SIGKILL
    last = improve(world.run, rounds=1, output=tmp_path / "killed", **SHORT)
    assert len(read_records(last.parent.parent / "improvement.json")) > 10
    first = sorted((last / "checkpoint").iterdir())
    improve(world.run, rounds=1, output=tmp_path / "killed", **SHORT)  # nothing is left to do
    assert sorted((last / "checkpoint").iterdir()) == first


# ---- what a run keeps to


def test_settings_name_a_critic_the_same_in_every_process():
    def critic():
        return as_critic(lambda futures: futures.reward)

    one, other = critic(), critic()
    assert repr(one) != repr(other) and stable_repr(one) == stable_repr(other) != stable_repr(RewardCritic())


# ---- what is refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0},
        {"episodes": 0},
        {"planner": "astar"},
        {"critic": 0.5},
        {"environments": ["Elsewhere-v0"]},
        {"success": "sometimes", "cache": True},
        {"adapter": "glue"},
        {"effort": "some", "cache": True},
        {"seconds": 0.0},
        {"time_limit": 0.0},
    ],
)
def test_wrong_settings_are_told_before_anything_is_written(world, tmp_path, wrong):
    with pytest.raises(ValueError):
        improve(world.run, output=tmp_path / "out", **(SHORT | wrong))
    assert not (tmp_path / "out").exists()


def test_a_test_seed_that_was_recorded_is_refused(world, tmp_path):
    seed = min(recorded_facts(world.run / "data")["TestPanBoard-v0"].seeds)
    with pytest.raises(ValueError, match="so they are not unseen"):
        improve(world.run, output=tmp_path / "out", test_seed=seed, **SHORT)
    assert not (tmp_path / "out").exists()
