"""A world of several action parts and actors, masks and absent senses is evaluated, planned in and acted in."""

import json
import warnings

import numpy as np
import pytest
from test_parts import Duel  # registers the worlds

from pan_hf import CEM, PanAgent, RewardCritic
from pan_hf.build import build
from pan_hf.checkpoints import save_checkpoint
from pan_hf.data.record import record
from pan_hf.data.trajectories import load_trajectories
from pan_hf.envs.environment import make_environment
from pan_hf.evaluation.control import plan
from pan_hf.evaluation.evaluate import evaluate_model
from pan_hf.reporting.tables import select

assert Duel.actors == ["guard", "thief"]
QUICK = {"horizons": (1, 3), "num_windows": 16, "batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def duel(tmp_path_factory):
    """A recording of the duel, an untrained model of it, and both as a run."""
    run = tmp_path_factory.mktemp("acting")
    record("parts/Duel-v0", run / "data", episodes=12, optional=["lamp"], progress=False)
    model, processor = build(load_trajectories(run / "data", "train"), "debug", adapter_dim=16)
    about = {"training_data.json": json.dumps({"fingerprints": [], "root": str(run / "data")})}
    save_checkpoint(run / "checkpoint", model, processor, about)
    return run, model.eval(), processor


def test_what_is_absent_in_truth_counts_for_nothing(duel):
    run, model, processor = duel
    seen = load_trajectories(run / "data", "test")
    records = evaluate_model(model, processor, seen, **QUICK)
    measured = {(entry.metric, entry.horizon): entry.value for entry in select(records, model="copy_last")}
    assert {"lamp_rmse", "place_rmse", "guard_reward_mae", "thief_reward_mae"} <= {metric for metric, _ in measured}
    rows = np.concatenate([start + np.arange(length - 1) for start, length in _spans(seen)])
    there = seen.present["lamp"][rows + 1]
    lamp = seen.observations["lamp"]
    error = np.square(lamp[rows + 1] - lamp[rows])[there].mean() ** 0.5
    assert measured["lamp_rmse", 1] == pytest.approx(error, rel=1e-5)
    assert measured["guard_reward_mae", 1] == 1.0  # copying expects no reward
    thief = np.abs(seen.actor_rewards["thief"][rows]).mean()
    assert measured["thief_reward_mae", 1] == pytest.approx(thief, rel=1e-5)


def _spans(seen):
    return zip(seen.episode_starts, seen.episode_lengths, strict=True)


def test_exact_states_are_told_by_the_choice_of_each_discrete_part(duel):
    run, model, processor = duel
    records = evaluate_model(model, processor, load_trajectories(run / "data", "test"), **QUICK)
    told = {entry.metric for entry in records if entry.metric.startswith("exact_state_after:")}
    assert told == {f"exact_state_after:legs.{number}" for number in range(3)}


def test_an_agent_walks_and_points_and_never_against_the_mask(duel):
    _, model, processor = duel
    env = make_environment("parts/Duel-v0", optional=["lamp"])
    critic = RewardCritic(threshold=1e9, actor="guard")
    agent = PanAgent(model, processor, critic, CEM(num_samples=8, horizon=2, num_iterations=2), replan="always")
    observation, _ = env.reset(seed=5)
    for _ in range(6):  # the environment raises at the wall
        action = agent.act(observation, mask=env.action_masks)
        assert set(action) == {"legs", "arm"} and action["arm"].shape == (2,)
        observation, *_ = env.step(action)
    assert agent.statistics.surprises == 0 and agent.statistics.decisions == 6


@pytest.mark.slow
@pytest.mark.parametrize("planner", ["cem?num_samples=8&horizon=2&num_iterations=1", "random_shooting?num_samples=4"])
def test_pan_plan_plays_a_world_of_several_parts(duel, tmp_path, planner):
    run, *_ = duel
    records = plan(run, planners=[planner], episodes=2, output=tmp_path, progress=False)
    assert {entry.value for entry in select(records, metric="episodes")} == {2.0}
    assert {entry.value for entry in select(records, metric="steps")} == {6.0}


@pytest.mark.slow
def test_a_search_obeys_the_mask_of_a_world_whose_walls_raise(tmp_path):
    record("parts/Walled-v0", tmp_path / "data", episodes=12, progress=False)
    model, processor = build(load_trajectories(tmp_path / "data", "train"), "debug", adapter_dim=16)
    about = {"training_data.json": json.dumps({"fingerprints": [], "root": str(tmp_path / "data")})}
    save_checkpoint(tmp_path / "checkpoint", model, processor, about)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        planners = ["graph?max_states=20&sampled_searches=0", "cem?num_samples=4&horizon=2&num_iterations=1"]
        records = plan(tmp_path, planners=planners, episodes=1, reward_threshold=0.5, progress=False)
    assert {entry.value for entry in select(records, metric="steps")} == {8.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_windows": 0},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"horizons": ()},
        {"horizons": (0, 1)},
        {"horizons": (1.5,)},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": None},
        {"reencode": -1},
        {"context": 0},
        {"reward_threshold": float("inf")},
        {"seed": -3},
    ],
)
def test_settings_of_an_evaluation_are_checked_first(duel, wrong):
    run, model, processor = duel
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}`"):
        evaluate_model(model, processor, load_trajectories(run / "data", "test"), **(QUICK | wrong))


def test_numpy_numbers_are_numbers(duel):
    run, model, processor = duel
    settings = QUICK | {"horizons": np.array([1]), "seed": np.int64(3), "temperature": np.float32(0)}
    assert evaluate_model(model, processor, load_trajectories(run / "data", "test"), **settings)
