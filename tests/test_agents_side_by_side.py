"""`benchmarks/agents.py`: ways to act with one model, on the same seeds of a tiny world."""

import shutil

import pytest
from test_plan import run_dir  # noqa: F401  a fixture

from benchmarks import agents
from pan_hf.agents.policy import ActorCritic, FlatActions, Policy
from pan_hf.checkpoints import load
from pan_hf.envs.state_features import StateFeatures
from pan_hf.evaluation.control import RANDOM
from pan_hf.reporting.results import read_records, record
from pan_hf.reporting.tables import select

CORRIDOR = "pan_test/Corridor-v0"


def values_of(records, model):
    return {entry.metric: entry.value for entry in select(records, model=model)}


@pytest.mark.slow
def test_every_way_to_act_plays_the_same_seeds(run_dir, tmp_path, capsys):  # noqa: F811
    run, path = tmp_path / "run", tmp_path / "agents.json"
    shutil.copytree(run_dir, run)
    settings = {"run": [run], "env": CORRIDOR, "planner": "graph?max_states=9", "success": "reward>0", "output": path}
    settings |= {"seed": [500], "frames": 2, "depth": 1, "effort": None, "fill_seconds": None, "episode_seconds": 60.0}
    found = agents.main(**settings, episodes=1, row=None)
    assert found == read_records(path)
    assert {entry.model for entry in found} == {RANDOM, "search", "cache", "cache+search"}
    assert all(entry.seeds == [500] for entry in select(found, metric=["success", "steps", "imagined_before"]))
    search, cached = values_of(found, "search"), values_of(found, "cache+search")
    assert search["imagined_before"] == 0 < cached["imagined_before"] and "recalled" not in search
    assert search["recorded_steps"] > 0 and cached["median_decision_ms"] > 0 and 0 <= cached["recalled"] <= 1
    assert values_of(found, "cache")["recorded_layouts"] == 1  # the first frame shows where the agent is
    assert "no policy in" in capsys.readouterr().out
    assert (run / "agents" / "pan_test--Corridor-v0").exists() and not (run / "cache").exists()  # of any world

    untrained_policy(run)
    rows = ["policy", "cache+policy+search"]
    told = agents.main(**settings, episodes=1, row=rows)
    assert [entry for entry in told if entry.model not in rows and entry.metric != agents.LOST] == [
        entry for entry in found if entry.metric != agents.LOST
    ]
    assert "by_policy" in values_of(told, rows[1])
    assert values_of(told, "policy")["imagined_before"] == 70
    with pytest.raises(ValueError, match="There are the rows"):
        agents.main(**settings, episodes=1, row=["plan"])


def untrained_policy(run):
    model, _ = load(run / "checkpoint")
    features, flat = StateFeatures(model), FlatActions(model.config)
    network = ActorCritic(features.size, [4], flat.size, flat.is_discrete)
    Policy(model, network, features, flat, {"steps": 70}).save(run / "policy")


def test_what_search_wins_and_another_loses_is_counted_seed_by_seed():
    def played(model, failed, seeds=(1, 2, 3, 4)):
        where = {"model": model, "environment": "World-v0", "split": "unseen_seeds"}
        rate = record("success", 1 - len(failed) / len(seeds), seeds=seeds, **where)
        return [rate, record("failures", len(failed), seeds=failed, **where)]

    records = [*played("search", [1]), *played("cache", [1, 3, 4]), *played("policy", [2], seeds=[1, 2])]
    (lost,) = agents.lost_to_search(records)
    assert (lost.model, lost.value, lost.seeds) == ("cache", 2, [3, 4])
