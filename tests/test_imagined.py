"""A world model as a gymnasium environment: what gymnasium asks of one, single and batched, in worlds of any kind."""

import json
import re
import warnings
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from test_parts import Duel, Speaker, Walker  # registers the worlds
from tiny_worlds import build_board, record_board

from pan_hf.build import build
from pan_hf.checkpoints import save_checkpoint
from pan_hf.data.record import record
from pan_hf.data.starts import RecordedStarts
from pan_hf.data.trajectories import load_trajectories
from pan_hf.envs.environment import describe_environment, make_environment
from pan_hf.envs.imagined import ImaginedEnv, ImaginedVectorEnv
from pan_hf.envs.state_features import StateFeatures

assert Duel and Speaker and Walker
STAY, RIGHT = 0, 1


def _world(model, processor, trajectories, run):
    model.eval()
    return SimpleNamespace(
        model=model, processor=processor, starts=RecordedStarts(trajectories, processor, model), run=run
    )


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Pictures, numbers and a constant text; the model sees two steps. Kept as a run."""
    run = tmp_path_factory.mktemp("board")
    trajectories = load_trajectories(record_board(run / "data", episodes=10), "train")
    model, processor = build_board(trajectories, context_steps=2)
    about = {"training_data.json": json.dumps({"fingerprints": [], "root": str(run / "data")})}
    save_checkpoint(run / "checkpoint", model, processor, about)
    return _world(model, processor, trajectories, run)


@pytest.fixture(scope="module")
def duel(tmp_path_factory):
    """Two parts of an action, two actors, a sense that is mostly absent; the model sees three steps."""
    run = tmp_path_factory.mktemp("duel")
    record("parts/Duel-v0", run / "data", episodes=6, optional=["lamp"], progress=False)
    trajectories = load_trajectories(run / "data", "train")
    return _world(*build(trajectories, "debug", adapter_dim=16, context_steps=3), trajectories, run)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """Actions that are said."""
    run = tmp_path_factory.mktemp("speaker")
    record("parts/Speaker-v0", run / "data", episodes=4, progress=False)
    trajectories = load_trajectories(run / "data", "train")
    return _world(*build(trajectories, "debug", adapter_dim=16), trajectories, run)


@pytest.fixture(params=["board", "duel", "speaker"])
def world(request):
    return request.getfixturevalue(request.param)


def single(world, **settings):
    return ImaginedEnv(world.model, world.processor, world.starts, **settings)


def batch(world, num_envs=3, **settings):
    return ImaginedVectorEnv(world.model, world.processor, world.starts, num_envs, **settings)


def sampled(world, count):
    """Actions that each world takes, for `count` rows."""
    if isinstance(world.model.config.action, type(None)):
        return {"legs": np.arange(count) % 3, "arm": np.zeros((count, 2), np.float32)}
    return ["look"] * count if world.model.config.action.kind == "text" else np.arange(count) % 5


# ---- gymnasium's own checks


@pytest.mark.parametrize(
    "settings", [{}, {"observation": "state", "uncertainty_penalty": 0.1}], ids=["senses", "state"]
)
def test_gymnasium_finds_nothing_wrong(world, settings):
    env = single(world, **settings)
    if world.model.config.actions.get("action") and world.model.config.action.kind == "text":
        env.action_space = gymnasium.spaces.Text(4)  # letters at random that fit in the model's words
        env.action_space.sample = lambda: "look"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Not able to test alternative render modes.*")
        check_env(env)


@pytest.mark.slow
def test_a_checkpoint_is_registered_as_an_environment(board):
    settings = {"checkpoint": str(board.run), "horizon": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("pan_hf/Imagined-v0", **settings).unwrapped)
    env = gymnasium.make_vec("pan_hf/Imagined-v0", num_envs=2, max_episode_steps=3, checkpoint=str(board.run))
    assert env.imagination.settings.horizon == 3 and env.reset(seed=0)[0] in env.observation_space


def test_what_is_imagined_has_the_senses_and_actions_of_the_world(board):
    dream = make_environment(
        "pan_hf/Imagined-v0", {"checkpoint": str(board.run)}, ["gymnasium.wrappers:OrderEnforcing"]
    )
    real, imagined = board.starts.trajectories.features, describe_environment(dream)
    assert imagined["observation.camera"] == real["observation.camera"]
    assert (
        imagined["observation.place"] == real["observation.place"] and imagined["action"]["n"] == real["action"]["n"]
    )
    seen, _ = dream.reset(seed=1)
    assert seen["mission"] == "go to the corner"


def test_a_batch_keeps_to_its_spaces_and_to_gymnasium_wrappers(world):
    env = RecordEpisodeStatistics(batch(world, horizon=2))
    observations, infos = env.reset(seed=0)
    assert env.observation_space.contains(observations) and infos == {}
    for number in range(5):
        observations, rewards, terminated, truncated, infos = env.step(sampled(world, 3))
        assert env.observation_space.contains(observations), number
        assert rewards.dtype == np.float64 and terminated.dtype == truncated.dtype == bool
        assert infos["log_prob"].shape == infos["_log_prob"].shape == (3,)


def test_every_action_of_a_batch_that_is_sampled_can_be_taken(board, duel):
    for world in (board, duel):
        env = batch(world)
        env.reset(seed=0)
        env.action_space.seed(0)
        env.step(env.action_space.sample())


def test_an_action_of_one_part_is_taken_by_its_name(tmp_path):
    record("parts/Walker-v0", tmp_path / "data", episodes=4, progress=False)
    trajectories = load_trajectories(tmp_path / "data", "train")
    env = batch(_world(*build(trajectories, "debug", adapter_dim=16), trajectories, tmp_path))
    env.reset(seed=0)
    env.step(env.action_space.sample())
    with pytest.raises(ValueError, match=r"a dict of the parts \['legs'\]"):
        env.step([1, 0, 2])


# ---- what is imagined


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_seed_tells_everything_that_follows(world, mode):
    def played(seed):
        env = batch(world, horizon=3, autoreset_mode=mode)
        told = [env.reset(seed=seed)[0]]
        for _ in range(3 if mode == "Disabled" else 5):
            if (env._is_over & (mode == "Disabled")).any():
                told.append(env.reset(options={"reset_mask": env._is_over.copy()})[0])
            told.append(env.step(sampled(world, 3))[:4])
        return told

    assert data_equivalence(played(3), played(3), exact=True)
    assert not data_equivalence(played(3), played(4), exact=True)


def test_an_episode_is_the_future_that_simulate_gives(world):
    env = single(world, temperature=0.0, horizon=4)
    env.reset(seed=5)
    start = env.imagination.belief
    taken = [sampled(world, 1) for _ in range(4)]
    one = taken[0] if isinstance(taken[0], dict) else {"action": taken[0]}
    action = {name: values[0] for name, values in one.items()} if "action" not in one else one["action"][0]
    rewards, keys, goes_on = [], [], []
    for _ in range(4):
        env._is_over = False  # an untrained model may see the end coming at once
        _, reward, *_, told = env.step(action)
        rewards.append(reward)
        goes_on.append(told["continue_prob"])
        keys += env.imagination.belief.keys()
    actions = env.imagination._batch([action])[:, None] if not isinstance(action, dict) else None
    if actions is None:
        step = env.imagination._batch([action])
        actions = step.map(lambda part: part[:, None].expand(-1, 4, *part.shape[1:]))
    else:
        actions = actions.expand(-1, 4, *actions.shape[2:])
    futures = world.model.simulate(start, actions, temperature=0.0)
    assert futures.keys() == [keys]
    expected = futures.reward[0] if futures.reward.dim() == 2 else futures.reward[0].sum(-1)
    assert rewards == pytest.approx(expected.tolist(), abs=1e-5)
    assert goes_on == pytest.approx(futures.continue_prob[0].tolist(), abs=1e-5)


def test_a_row_that_begins_anew_leaves_the_others_as_they_were(board):
    """The likeliest future of a row does not depend on its neighbours."""
    alone, among = batch(board, temperature=0.0, autoreset_mode="Disabled"), batch(board, temperature=0.0)
    for env in (alone, among):
        env.reset(seed=7)
    among._is_over[1] = True  # row 1 begins anew with the next step
    alone._is_over[:] = False
    actions = np.array([RIGHT, RIGHT, STAY])
    seen, rewards, _, _, infos = among.step(actions)
    others, plain, *_ = alone.step(actions)
    for name in ("camera", "place"):
        assert np.array_equal(seen[name][[0, 2]], others[name][[0, 2]])
    assert rewards[1] == 0 and rewards[[0, 2]] == pytest.approx(plain[[0, 2]])
    assert infos["_log_prob"].tolist() == [True, False, True] and among.imagination.age.tolist() == [1, 0, 1]
    assert among.imagination.belief.ages is not None or among.imagination.belief.history  # rows of different age


def test_an_episode_is_cut_at_the_horizon(board):
    env = batch(board, horizon=2, autoreset_mode="SameStep")
    env.reset(seed=0)
    ended = [env.step([STAY] * 3)[2:4] for _ in range(6)]
    ages = np.zeros(3, int)
    for terminated, truncated in ended:
        ages += 1
        assert np.array_equal(truncated, ~terminated & (ages == 2))
        ages[terminated | truncated] = 0


def test_a_row_that_begins_anew_in_the_same_step_tells_its_last_observation(board):
    env = batch(board, horizon=1, autoreset_mode="SameStep", temperature=0.0)
    env.reset(seed=0)
    plain = batch(board, horizon=1, autoreset_mode="Disabled", temperature=0.0)
    plain.reset(seed=0)
    seen, _, terminated, truncated, infos = env.step([RIGHT] * 3)
    last, *_ = plain.step([RIGHT] * 3)
    assert (terminated | truncated).all() and infos["_final_obs"].all() and env.observation_space.contains(seen)
    for row in range(3):
        assert env.single_observation_space.contains(infos["final_obs"][row])
        assert np.array_equal(infos["final_obs"][row]["camera"], last["camera"][row])
    assert infos["final_info"]["log_prob"].shape == (3,) and env.imagination.age.tolist() == [0, 0, 0]


def test_a_penalty_takes_nats_from_the_reward(board):
    env = batch(board, uncertainty_penalty=0.25)
    env.reset(seed=0)
    _, rewards, _, _, infos = env.step([RIGHT] * 3)
    nats = infos["entropy.camera"] + infos["entropy.place"]
    assert infos["entropy"] == pytest.approx(nats) and (nats > 0).all()
    assert rewards == pytest.approx(infos["reward"] - 0.25 * nats)


def test_rewards_of_several_actors_are_told_and_added_up(duel):
    env = single(duel)
    env.reset(seed=0)
    _, reward, _, _, told = env.step({"legs": 1, "arm": np.zeros(2, np.float32)})
    assert reward == pytest.approx(told["reward.guard"] + told["reward.thief"], abs=1e-6)


def test_a_frame_shows_the_first_picture(board):
    env = single(board, render_mode="rgb_array")
    seen, _ = env.reset(seed=0)
    assert np.array_equal(env.render(), seen["camera"])
    several = batch(board, render_mode="rgb_array")
    several.reset(seed=0)
    assert [frame.shape for frame in several.render()] == [(16, 16, 3)] * 3


# ---- where episodes begin


def test_an_episode_begins_at_any_recorded_step_with_what_is_seen_of_the_past(duel):
    starts, lengths = duel.starts, duel.starts.trajectories.episode_lengths
    assert len(starts) == (lengths - 1).sum()
    rows = np.array([2, 0, 1, 5])  # of the first episode, which has 6 actions
    belief = starts.beliefs(rows)
    assert belief.ages.tolist() == [2, 0, 1, 2]
    alone = [starts.beliefs(rows[index : index + 1]) for index in range(4)]
    assert belief.keys() == [key for each in alone for key in each.keys()]


def test_episodes_begin_in_one_environment_if_they_are_told_to(board):
    with pytest.raises(ValueError, match="No episode of 'Elsewhere-v0'"):
        RecordedStarts(board.starts.trajectories, board.processor, board.model, "Elsewhere-v0")


# ---- a belief as one vector


def test_a_vector_tells_what_is_believed_now_and_no_more(world):
    features = StateFeatures(world.model)
    belief = world.starts.beliefs(np.arange(6) % len(world.starts))
    vectors = features(belief)
    assert vectors.shape == (6, features.size) and vectors.dtype == torch.float32 and vectors.isfinite().all()
    assert features.space.contains(vectors[0].numpy())
    for one, vector in enumerate(vectors):
        assert torch.allclose(features(belief.select([one]))[0], vector, atol=1e-6)


def test_a_sense_that_is_absent_is_zero(duel):
    features, belief = StateFeatures(duel.model), duel.starts.beliefs(np.arange(6))
    is_there = belief.state.present("lamp")
    lamp = features(belief)[:, features.slice_of("lamp")]
    assert 0 < is_there.sum() < 6 and (lamp[~is_there] == 0).all() and (lamp[is_there] != 0).any(1).all()


def test_numbers_are_told_in_their_range(board):
    features, belief = StateFeatures(board.model), board.starts.beliefs(np.arange(5))
    place = features(belief)[:, features.slice_of("place")]
    expected = board.model.decode(belief.state, "place", latents=False) / 1.5 - 1  # from 0 to 3
    assert torch.allclose(place, expected, atol=1e-5)


def test_scales_of_another_model_are_refused(board, duel):
    with pytest.raises(ValueError, match="The policy reads the senses"):
        StateFeatures(board.model, StateFeatures(duel.model).scales)


# ---- what is wrong


@pytest.mark.parametrize(
    "settings",
    [{"horizon": 0}, {"temperature": -1}, {"uncertainty_penalty": float("nan")}, {"observation": "pixels"}],
)
def test_settings_are_checked(board, settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must be"):
        single(board, **settings)


@pytest.mark.parametrize("wrong", [7, -1, 1.5, "north"])
def test_an_action_that_the_model_lacks_is_refused_and_changes_nothing(board, wrong):
    env = single(board)
    env.reset(seed=0)
    before = env.imagination.belief
    with pytest.raises(ValueError, match="action"):
        env.step(wrong)
    assert env.imagination.belief is before and env.imagination.age.tolist() == [0]


def test_predictions_that_are_no_numbers_are_refused_and_change_nothing(board):
    env = single(board)
    env.reset(seed=0)
    before, weights = env.imagination.belief, board.model.outcome.out.weight
    kept = weights.detach().clone()
    try:
        with torch.no_grad():
            weights.fill_(float("nan"))
        with pytest.raises(ValueError, match="predicts values that are not numbers"):
            env.step(STAY)
    finally:
        with torch.no_grad():
            weights.copy_(kept)
    assert env.imagination.belief is before and env.imagination.age.tolist() == [0]


@pytest.mark.parametrize("wrong", [{"legs": 1}, 1, {"legs": 1, "arm": np.zeros(3)}])
def test_an_action_without_all_its_parts_is_refused(duel, wrong):
    env = single(duel)
    env.reset(seed=0)
    with pytest.raises(ValueError):
        env.step(wrong)


def test_stepping_what_is_over_is_refused(board):
    env = single(board)
    with pytest.raises(ValueError, match=re.escape("call reset() first")):
        env.step(STAY)
    several = batch(board, horizon=1, autoreset_mode="Disabled")
    with pytest.raises(ValueError, match=re.escape("call reset() first")):
        several.step([STAY] * 3)
    several.reset(seed=0)
    several.step([STAY] * 3)
    with pytest.raises(ValueError, match=r"rows \[0, 1, 2\] are over"):
        several.step([STAY] * 3)
    several.reset(options={"reset_mask": np.array([True, True, False])})
    with pytest.raises(ValueError, match=r"rows \[2\] are over"):
        several.step([STAY] * 3)
    with pytest.raises(ValueError, match="`reset_mask` says"):
        several.reset(options={"reset_mask": np.zeros(3, bool)})


def test_as_many_actions_as_rows(board):
    env = batch(board)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="3 rows take an action each, got 2"):
        env.step([STAY] * 2)


def test_a_world_without_pictures_shows_none(duel):
    with pytest.raises(ValueError, match="`render_mode` must be None"):
        single(duel, render_mode="rgb_array")


def test_no_steps_to_begin_at(board):
    with pytest.raises(ValueError, match="`starts` must have a method `draw`"):
        ImaginedEnv(board.model, board.processor, None)
