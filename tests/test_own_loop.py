"""A loop of one's own is recorded as it is played, whatever wraps it and wherever it is killed."""

import os
import signal

import gymnasium
import numpy as np
import pytest
from forked import run_forked
from tiny_worlds import Board

from pan_hf import RecordTrajectories, files
from pan_hf.data.episodes import read_info
from pan_hf.data.trajectories import load_trajectories
from pan_hf.envs.environment import make_environment


def play(env, episodes: int, seed: int = 0) -> list:
    """Random episodes in a wrapped environment; what a loop saw of them."""
    seen = []
    env.action_space.seed(seed)
    for episode in range(episodes):
        frames, is_over = [env.reset(seed=seed + episode)[0]["camera"].copy()], False
        while not is_over:
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            frames.append(observation["camera"].copy())
            is_over = terminated or truncated
        seen.append(np.stack(frames))
    return seen


def board() -> gymnasium.Env:
    return gymnasium.make("TestPanBoard-v0", max_episode_steps=5, disable_env_checker=True)


def test_a_loop_of_ones_own_is_recorded_as_it_is_played_and_goes_on(tmp_path):
    assert Board  # importing it registers the board
    env = RecordTrajectories(board(), tmp_path / "data", rename={"place": "touch"}, test_fraction=0.25)
    seen = play(env, 3)
    assert read_info(tmp_path / "data")["episodes"] == {"train": 2, "test": 1}  # usable before it is closed
    env.reset(seed=9)
    env.step(np.int64(0))
    env.close()  # cuts the fourth short
    again = RecordTrajectories(board(), tmp_path / "data", rename={"place": "touch"}, test_fraction=0.25)
    seen += play(again, 1, seed=50)
    entry = read_info(tmp_path / "data")["environments"][0]  # makes it again, as `pan plan` does
    assert set(make_environment(**entry).features) == set(again.features)
    found = load_trajectories(tmp_path / "data", "train")
    assert found.seeds == [0, 2, 9, 50] and found.tasks == [""] * 4
    for row, index in enumerate((0, 2)):
        np.testing.assert_array_equal(
            found.observations["camera"][found.episode == row], seen[index].transpose(0, 3, 1, 2)
        )
    assert found.episode_lengths[2] == 2 and found.truncateds[found.episode == 2][0]
    assert set(found.observations) == {"camera", "touch", "mission"}
    with pytest.raises(ValueError, match="another test_fraction: 0.25 there, 0.5 now"):
        RecordTrajectories(board(), tmp_path / "data", rename={"place": "touch"}, test_fraction=0.5)


@pytest.mark.parametrize("number", range(4))  # of its files: what is recorded, an episode, how many, an episode
def test_a_loop_of_ones_own_goes_on_wherever_it_was_killed(tmp_path, number):
    replace, calls = os.replace, iter(range(5))

    def replace_or_die(*paths):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)

    def killed():
        files.os.replace = replace_or_die
        play(RecordTrajectories(board(), "data"), 3)

    assert run_forked(killed, tmp_path).returncode == -signal.SIGKILL
    play(RecordTrajectories(board(), tmp_path / "data"), 2, seed=50)
    assert sum(read_info(tmp_path / "data")["episodes"].values()) == number // 2 + 2
    assert not list((tmp_path / "data").rglob(".*"))


def played(env, steps=120):
    """Plays on without a reset; how many episodes ended."""
    env.reset(seed=0)
    env.action_space.seed(0)
    ends = 0
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        ends += bool(terminated or truncated)
    env.close()
    return ends


@pytest.mark.parametrize("is_outside", [True, False])
def test_every_episode_of_a_loop_that_never_resets_is_written(is_outside, tmp_path):
    env, folder = gymnasium.make("CartPole-v1"), tmp_path / "data"
    if is_outside:
        env = RecordTrajectories(gymnasium.wrappers.Autoreset(env), folder, test_fraction=0)
    else:
        env = gymnasium.wrappers.Autoreset(RecordTrajectories(env, folder, test_fraction=0))
    ends = played(env)
    found = load_trajectories(folder, "train")
    assert ends >= 4 and found.num_episodes in (ends, ends + 1)  # the last one may have been cut short
    assert found.dones.sum() == ends
    # each begins where CartPole begins: no step from one episode to the next was written
    assert (np.abs(found.observations["state"][found.episode_starts]) <= 0.05).all()


def test_steps_behind_an_end_are_refused_and_so_is_a_vector(tmp_path):
    env = RecordTrajectories(gymnasium.make("CartPole-v1"), tmp_path / "data")
    with pytest.raises(ValueError, match="episode has ended.*call reset"):
        played(env)
    with pytest.raises(ValueError, match="expected one gymnasium environment, got SyncVectorEnv"):
        RecordTrajectories(gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync"), tmp_path / "more")


def test_a_reward_that_is_no_number_is_told_with_its_step_and_its_episode_is_not_written(tmp_path):
    class Bad(gymnasium.RewardWrapper):
        def reward(self, reward):
            self.count = getattr(self, "count", 0) + 1
            return float("nan") if self.count == 7 else reward

    env = RecordTrajectories(Bad(gymnasium.make("CartPole-v1")), tmp_path / "data", test_fraction=0)
    with pytest.raises(ValueError, match=r"CartPole-v1, episode 0 \(seed 3\), step 6: .*reward nan"):
        env.reset(seed=3)
        for step in range(9):
            env.step(step % 2)
    played(gymnasium.wrappers.Autoreset(env), 60)
    assert np.isfinite(load_trajectories(tmp_path / "data", "train").rewards).all()
