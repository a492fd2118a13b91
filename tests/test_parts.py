"""What is recorded beside one action and one reward: parts, actors, masks, senses that are absent; and read back."""

import copy
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from pan_hf import RecordTrajectories
from pan_hf.build import build
from pan_hf.data.compat import check_fits
from pan_hf.data.episodes import episode_files, read_info
from pan_hf.data.mirror import mirror
from pan_hf.data.record import record
from pan_hf.data.trajectories import load_trajectories, read_episode
from pan_hf.envs.environment import make_environment


class Duel(gymnasium.Env):
    """Two actors on a line; one moves by steps that are not always allowed, the other by a number. A lamp is seen at
    every third step only."""

    actors = ["guard", "thief"]
    observation_space = spaces.Dict(
        {"place": spaces.Box(0, 4, (1,), np.float32), "lamp": spaces.Box(5, 9, (2,), np.float32)}
    )
    action_space = spaces.Dict({"legs": spaces.Discrete(3), "arm": spaces.Box(-1, 1, (2,), np.float32)})
    metadata = {"render_fps": 5}

    def __init__(self, has_lamp: bool = True):
        self.has_lamp = has_lamp

    def _look(self):
        seen = {"place": np.array([self.place], np.float32)}
        if self.has_lamp and self.steps % 3 == 1:
            seen["lamp"] = np.array([5 + self.place, 9 - self.place], np.float32)
        elif self.steps % 3 == 2:
            seen["lamp"] = None
        return seen, {"action_mask": {"legs": np.array([self.place > 0, True, self.place < 4], np.int8)}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(5)), 0
        return self._look()

    def step(self, action):
        move = int(action["legs"]) - 1
        if not 0 <= self.place + move <= 4:
            raise RuntimeError(f"there is a wall at {self.place + move}")
        self.place, self.steps = self.place + move, self.steps + 1
        seen, info = self._look()
        rewards = {"guard": 1.0, "thief": -0.25 * self.place}
        return seen, rewards, {"guard": False, "thief": False}, self.steps == 6, info


class Walled(gymnasium.Env):
    """A line with walls that are run into at one's own peril; the observation says where."""

    observation_space = spaces.Dict(
        {"place": spaces.Box(0, 4, (1,), np.float32), "action_mask": spaces.Box(0, 1, (2,), np.int8)}
    )
    action_space = spaces.Discrete(2)

    def _look(self):
        return {
            "place": np.array([self.place], np.float32),
            "action_mask": np.array([self.place > 0, self.place < 4], np.int8),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(5)), 0
        return self._look(), {}

    def step(self, action):
        self.place, self.steps = self.place + 2 * int(action) - 1, self.steps + 1
        if not 0 <= self.place <= 4:
            raise RuntimeError(f"there is a wall at {self.place}")
        return self._look(), 0.0, False, self.steps == 8, {}


class Walker(gymnasium.Env):
    """An action of one part that has a name."""

    observation_space = spaces.Dict({"place": spaces.Box(0, 4, (1,), np.float32)})
    action_space = spaces.Dict({"legs": spaces.Discrete(3)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(5)), 0
        return {"place": np.array([self.place], np.float32)}, {}

    def step(self, action):
        self.place, self.steps = min(max(self.place + int(action["legs"]) - 1, 0), 4), self.steps + 1
        return {"place": np.array([self.place], np.float32)}, 0.0, False, self.steps == 5, {}


for _name, _env in {"parts/Duel-v0": Duel, "parts/Walled-v0": Walled, "parts/Walker-v0": Walker}.items():
    gymnasium.register(_name, _env, disable_env_checker=True)


@pytest.fixture(scope="module")
def duel(tmp_path_factory):
    root = tmp_path_factory.mktemp("duel") / "data"
    record("parts/Duel-v0", root, episodes=4, optional=["lamp"], progress=False)
    return root


def test_parts_of_an_action_are_columns_of_their_own(duel):
    seen = load_trajectories(duel, "train")
    assert set(seen.actions) == {"legs", "arm"} and len(seen) == len(seen.rewards)
    assert seen.actions["legs"].dtype == np.int64 and seen.actions["arm"].shape == (len(seen), 2)
    moved = np.diff(seen.observations["place"][:, 0])[~seen.action_is_pad[:-1]]
    np.testing.assert_array_equal(moved, seen.actions["legs"][:-1][~seen.action_is_pad[:-1]] - 1)


def test_rewards_and_ends_are_recorded_by_actor(duel):
    seen, info = load_trajectories(duel, "train"), read_info(duel)
    assert info["actors"] == ["guard", "thief"]
    steps = ~seen.action_is_pad
    assert (seen.actor_rewards["guard"][steps] == 1).all()
    np.testing.assert_allclose(seen.rewards, sum(seen.actor_rewards.values()))
    after = np.roll(seen.observations["place"][:, 0], -1)[steps]
    np.testing.assert_allclose(seen.actor_rewards["thief"][steps], -0.25 * after)
    assert not seen.dones.any() and not seen.actor_dones["thief"].any()


def test_a_mask_says_what_is_allowed_and_a_random_policy_obeys(duel):
    seen = load_trajectories(duel, "train")
    place, mask = seen.observations["place"][:, 0], seen.action_masks["legs"]
    np.testing.assert_array_equal(mask, np.stack([place > 0, np.ones(len(place), bool), place < 4], 1))
    assert mask[np.arange(len(seen)), seen.actions["legs"]][~seen.action_is_pad].all()


def test_an_optional_sense_is_absent_where_nothing_was_seen_and_keeps_what_was_seen_last(duel):
    seen = load_trajectories(duel, "train")
    lamp, present = seen.observations["lamp"], seen.present["lamp"]
    step = np.concatenate([np.arange(length) for length in seen.episode_lengths])
    np.testing.assert_array_equal(present, step % 3 == 1)
    np.testing.assert_array_equal(lamp[present][:, 0], 5 + seen.observations["place"][present][:, 0])
    before = np.maximum.accumulate(np.where(present | (step == 0), np.arange(len(seen)), 0))
    np.testing.assert_array_equal(lamp[step >= 1], lamp[before][step >= 1])
    assert list(seen.present) == ["lamp"] and (lamp >= 5).all()


def test_a_sense_that_is_absent_without_leave_is_named(tmp_path):
    with pytest.raises(ValueError, match="sense 'lamp'.*no value.*--optional"):
        record("parts/Duel-v0", tmp_path / "data", episodes=4, progress=False)
    with pytest.raises(ValueError, match="optional names"):
        record("parts/Duel-v0", tmp_path / "data", episodes=4, optional=["lamb"], progress=False)


def test_a_sense_that_never_came_stays_within_its_bounds(tmp_path):
    record(
        "parts/Duel-v0", tmp_path / "d", episodes=2, env_args={"has_lamp": False}, optional=["lamp"], progress=False
    )
    seen = load_trajectories(tmp_path / "d", "train")
    assert not seen.present["lamp"].any() and (seen.observations["lamp"] >= 5).all()


def test_an_episode_of_parts_is_read_as_it_was_played(duel, tmp_path):
    info = read_info(duel)
    (index, path), *_ = episode_files(duel, "train").items()
    episode = read_episode(path, index, info["features"], info["actors"])
    assert set(episode.actions[0]) == {"legs", "arm"} and episode.observations["lamp"][0] is None
    assert len(episode.action_masks["legs"]) == len(episode.actions) + 1
    assert episode.actor_rewards["guard"] == [1.0] * len(episode.actions)


def test_a_model_of_parts_and_actors_is_trained_further_on_what_fits_it_alone(duel):
    seen = load_trajectories(duel, "train")
    model, processor = build(seen, "debug")
    stranger = {"stranger": np.full(len(seen), 1e9, np.float32)}  # of whom the model knows nothing
    check_fits(model.config, processor, replace(seen, actor_rewards=seen.actor_rewards | stranger))
    more, fewer = copy.deepcopy(seen.features), dict(seen.features)
    more["action.legs"]["n"] = 4
    del fewer["action.arm"]
    for change, message in (
        ({"features": more}, "Action 'legs': The recording has 4 actions, the model 3"),
        ({"features": fewer}, r"action has the parts \['legs'\], the model's \['arm', 'legs'\]"),
        ({"actions": seen.actions | {"arm": seen.actions["arm"] + 9}}, "Action 'arm': .*is within"),
        ({"actor_rewards": {}}, r"actors \['guard', 'thief'\] are not rewarded in the recording"),
        ({"actor_rewards": {name: one * 1e6 for name, one in seen.actor_rewards.items()}}, "rewards as large as"),
    ):
        with pytest.raises(ValueError, match=message):
            check_fits(model.config, processor, replace(seen, **change))


def test_parts_masks_and_absent_senses_are_mirrored(duel, tmp_path):
    swaps = {"swaps": ["action.legs:horizontal:0=2"], "same": ["lamp", "action.arm", "place"], "flips": ["horizontal"]}
    mirror(duel, tmp_path / "data", **swaps, progress=False)
    before, after = load_trajectories(duel, "train"), load_trajectories(tmp_path / "data", "train")
    assert after.num_episodes == 2 * before.num_episodes
    image = after.select(np.flatnonzero(after.episode_indices == 4))  # of episode 0
    original = before.select([0])
    steps = ~image.action_is_pad
    np.testing.assert_array_equal(image.actions["legs"][steps], 2 - original.actions["legs"][steps])
    np.testing.assert_array_equal(image.action_masks["legs"], original.action_masks["legs"][:, ::-1])
    np.testing.assert_array_equal(image.present["lamp"], original.present["lamp"])
    np.testing.assert_array_equal(image.actor_rewards["thief"], original.actor_rewards["thief"])
    with pytest.raises(ValueError, match="What becomes of .*action.legs"):
        mirror(duel, tmp_path / "more", same=["lamp", "action.arm", "place"], flips=["horizontal"], progress=False)


def test_a_wrapper_records_what_the_recorder_does(tmp_path):
    env = RecordTrajectories(gymnasium.make("parts/Duel-v0"), tmp_path / "data", optional=["lamp"], test_fraction=0)
    for seed in range(2):
        _, info = env.reset(seed=seed)
        over = False
        while not over:
            mask = {"legs": info["action_mask"]["legs"], "arm": None}
            _, _, _, over, info = env.step(env.action_space.sample(mask=mask))
    env.close()
    seen = load_trajectories(tmp_path / "data", "train")
    assert seen.action_masks["legs"].any() and list(seen.actor_rewards) == ["guard", "thief"] and seen.present


def test_a_mask_in_an_observation_is_obeyed_and_seen(tmp_path):
    record("parts/Walled-v0", tmp_path / "data", episodes=6, explore_steps=3, progress=False)
    seen = load_trajectories(tmp_path / "data", "train")
    np.testing.assert_array_equal(seen.action_masks["action"], seen.observations["action_mask"] > 0)
    assert read_info(tmp_path / "data")["features"]["action"] == {"kind": "discrete", "n": 2, "masked": True}


def test_an_environments_own_error_is_told_with_environment_episode_seed_and_step(tmp_path):
    def stubborn(env, observation, rng):
        return 1

    told = (
        r"parts/Walled-v0, episode 0 \(seed \d+\), step \d: step\(\) of the environment raised RuntimeError: there is"
    )
    with pytest.raises(ValueError, match=told):
        record("parts/Walled-v0", tmp_path / "data", episodes=4, policy=stubborn, progress=False)


class Seldom(Walled):
    """Says what is allowed after an action alone, or after the reset and every other action."""

    def __init__(self, after_reset=True):
        self.after_reset = after_reset
        self.observation_space = spaces.Dict({"place": spaces.Box(0, 4, (1,), np.float32)})

    def reset(self, *, seed=None, options=None):
        seen, _ = super().reset(seed=seed)
        mask = seen.pop("action_mask")
        return seen, {"action_mask": mask} if self.after_reset else {}

    def step(self, action):
        self.place = min(max(self.place, 1), 3)  # no wall is met
        seen, *followed, info = super().step(action)
        mask = seen.pop("action_mask")
        return seen, *followed, {"action_mask": mask} if self.steps % 2 == 0 else info


gymnasium.register("parts/Seldom-v0", Seldom, disable_env_checker=True)


def test_where_no_mask_is_told_all_is_allowed(tmp_path):
    record("parts/Seldom-v0", tmp_path / "data", episodes=4, keep=["place"], progress=False)
    seen = load_trajectories(tmp_path / "data", "train")
    step = np.concatenate([np.arange(length) for length in seen.episode_lengths])
    assert seen.action_masks["action"][step % 2 == 1].all() and len(seen.action_masks["action"]) == len(seen)
    place, told = seen.observations["place"][:, 0], step % 2 == 0
    np.testing.assert_array_equal(seen.action_masks["action"][told], np.stack([place > 0, place < 4], 1)[told])


def test_a_mask_that_the_first_reset_did_not_promise_is_named(tmp_path):
    given = {"env_args": {"after_reset": False}, "keep": ["place"], "progress": False}
    with pytest.raises(ValueError, match=r"parts/Seldom-v0, episode 0: .*mask of \['action'\] .*after every reset"):
        record("parts/Seldom-v0", tmp_path / "data", episodes=4, **given)


@pytest.mark.parametrize("mask", [[1, 1, 1], [2, 0], ["yes", "no"], None])
def test_a_mask_that_does_not_fit_the_actions_is_named(mask):
    env = make_environment("parts/Walled-v0", keep=["place"])
    env.reset(seed=0)
    if mask is not None:
        with pytest.raises(ValueError, match="action_mask: expected 2 numbers of 0 or 1"):
            env.observe({"place": np.zeros(1, np.float32)}, {"action_mask": mask})


def test_several_choices_that_are_counted_as_one_take_a_mask_of_each():
    class Pad(gymnasium.Env):
        observation_space, action_space = spaces.Discrete(2), spaces.MultiDiscrete([2, 3])

        def reset(self, *, seed=None, options=None):
            return 0, {"action_mask": (np.array([0, 1]), np.array([1, 0, 1]))}

    gymnasium.register("parts/Pad-v0", Pad, disable_env_checker=True)
    env = make_environment("parts/Pad-v0")
    env.reset()
    assert env.action_masks["action"].tolist() == [False, False, False, True, False, True]
    assert {env.sample_action(np.random.default_rng(0)) for _ in range(20)} == {3, 5}


class Speaker(gymnasium.Env):
    """Is told what to do in words, of which it tells some that it understands."""

    observation_space, action_space = spaces.Discrete(3), spaces.Text(12, charset="abcdefghijklmnopqrstuvwxyz ")

    def __init__(self, tells=True):
        self.info = {"admissible_commands": ["go north", "look"]} if tells else {}

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return 0, self.info

    def step(self, action):
        self.steps += 1
        return 1, 0.0, False, self.steps == 4, self.info


gymnasium.register("parts/Speaker-v0", Speaker, disable_env_checker=True)


def test_a_random_policy_says_what_is_understood_or_that_it_says_nothing(tmp_path):
    record("parts/Speaker-v0", tmp_path / "data", episodes=4, progress=False)
    seen = load_trajectories(tmp_path / "data", "train")
    assert set(seen.actions[~seen.action_is_pad]) == {"go north", "look"}
    with pytest.warns(UserWarning, match="random letters.*--policy"):
        record("parts/Speaker-v0", tmp_path / "noise", episodes=2, env_args={"tells": False}, progress=False)
