"""A policy that is learned in imagination: how it acts, is kept, and goes on. What needs Stable-Baselines3 is skipped
where it is not installed; `make test-extras` has it."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_parts import Duel, Speaker, Walker, Walled  # registers the worlds
from tiny_worlds import SENSES, build_board, record_board

from pan_hf import DiscreteAction, PanAgent, RewardCritic, TextAction, VectorAction
from pan_hf.agents.cache_scope import digest_of
from pan_hf.agents.policy import ActorCritic, FlatActions, Policy, PolicyPlanner, mask_of
from pan_hf.agents.registry import make_planners
from pan_hf.agents.stable_baselines import as_vec_env, make_ppo, network_of, ppo_class
from pan_hf.build import build
from pan_hf.checkpoints import save_checkpoint
from pan_hf.data.record import record
from pan_hf.data.starts import RecordedStarts
from pan_hf.data.trajectories import load_trajectories
from pan_hf.envs.imagined import ImaginedVectorEnv
from pan_hf.envs.state_features import StateFeatures
from pan_hf.modeling.state_pan import Actions
from pan_hf.reporting.learning import CURVES, learning_curves
from pan_hf.training.imagine import _note, imagine

assert Duel and Speaker and Walled and Walker and SENSES
HAS_SB3 = importlib.util.find_spec("stable_baselines3") is not None
needs_sb3 = pytest.mark.skipif(not HAS_SB3, reason="Stable-Baselines3 is not here: pip install 'pan_hf[rl]'")
SHORT = {"num_envs": 4, "horizon": 6, "batch_size": 12, "hidden": (16,), "progress": False}


def _run(run, trajectories, model, processor):
    about = {"training_data.json": json.dumps({"fingerprints": [], "root": str(run / "data")})}
    save_checkpoint(run / "checkpoint", model, processor, about)
    model.eval()
    starts = RecordedStarts(trajectories, processor, model)
    return SimpleNamespace(run=run, model=model, processor=processor, starts=starts)


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    run = tmp_path_factory.mktemp("board")
    trajectories = load_trajectories(record_board(run / "data", episodes=10), "train")
    return _run(run, trajectories, *build_board(trajectories))


def _recorded(tmp_path_factory, id, **options):
    run = tmp_path_factory.mktemp("recorded")
    record(id, run / "data", episodes=6, progress=False, **options)
    trajectories = load_trajectories(run / "data", "train")
    return _run(run, trajectories, *build(trajectories, "debug", adapter_dim=16))


@pytest.fixture(scope="module")
def duel(tmp_path_factory):
    return _recorded(tmp_path_factory, "parts/Duel-v0", optional=["lamp"])


@pytest.fixture(scope="module")
def walled(tmp_path_factory):
    """A world that says in an observation which actions are allowed."""
    return _recorded(tmp_path_factory, "parts/Walled-v0")


@pytest.fixture(scope="module")
def walker(tmp_path_factory):
    """A world with one action part that has a name."""
    return _recorded(tmp_path_factory, "parts/Walker-v0")


def policy_of(world, seed=0):
    """An untrained policy, whose choices are far from even."""
    torch.manual_seed(seed)
    features, flat = StateFeatures(world.model), FlatActions(world.model.config)
    network = ActorCritic(features.size, [16], flat.size, flat.is_discrete, mask_of(features, flat))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.5)
    return Policy(world.model, network, features, flat, {"reward_scale": 2.0})


# ---- actions as a policy gives them


def test_every_combination_of_choices_is_one_choice():
    parts = {"legs": DiscreteAction(3), "hand": DiscreteAction(4)}
    flat = FlatActions(SimpleNamespace(actions=parts))
    assert flat.is_discrete and flat.space.n == 12
    taken = flat.to_world(torch.arange(12))
    assert {tuple(pair) for pair in zip(taken.parts["legs"].tolist(), taken.parts["hand"].tolist(), strict=True)} == {
        (legs, hand) for legs in range(3) for hand in range(4)
    }


def test_numbers_stand_for_vectors_in_their_bounds_and_for_choices():
    parts = {"arm": VectorAction(dim=2, low=[-1, 0], high=[1, 4]), "legs": DiscreteAction(3)}
    flat = FlatActions(SimpleNamespace(actions=parts))
    assert not flat.is_discrete and flat.space.shape == (5,)
    taken = flat.to_world(torch.tensor([[-1.0, -1.0, 0.1, 0.9, 0.2], [0.0, 7.0, 0.5, 0.1, 0.2]]))
    assert taken.parts["arm"].tolist() == [[-1.0, 0.0], [0.0, 4.0]] and taken.parts["legs"].tolist() == [1, 0]


def test_too_many_combinations_are_chosen_part_by_part():
    flat = FlatActions(SimpleNamespace(actions={name: DiscreteAction(17) for name in "abc"}))
    assert not flat.is_discrete and flat.size == 51
    assert flat.to_world(torch.rand(2, 51)).parts["a"].max() < 17


def test_what_is_said_is_no_policy_s():
    with pytest.raises(ValueError, match="are said"):
        FlatActions(SimpleNamespace(actions={"action": TextAction(max_length=3)}))


# ---- a policy


@pytest.mark.parametrize("name", ["board", "duel", "walled"])
def test_a_policy_that_was_kept_acts_as_before(name, request, tmp_path):
    world = request.getfixturevalue(name)
    policy, belief = policy_of(world), world.starts.beliefs(np.arange(5))
    policy.save(tmp_path / "policy")
    again = Policy.load(tmp_path / "policy", world.model)
    for sampled in (False, True):
        acts = [
            each.act(belief, sampled=sampled, generator=torch.Generator().manual_seed(1)) for each in (policy, again)
        ]
        first, second = (each.parts if isinstance(each, Actions) else {"action": each} for each in acts)
        assert all(torch.equal(first[part], second[part]) for part in first)
    assert torch.equal(policy.values(belief), again.values(belief)) and again.about == {"reward_scale": 2.0}
    assert not [file for file in (tmp_path / "policy").iterdir() if file.suffix not in (".json", ".safetensors")]


def test_a_mask_holds_for_what_is_chosen_and_what_is_drawn(board):
    policy, belief = policy_of(board), board.starts.beliefs(np.arange(6))
    mask = np.array([0, 0, 1, 0, 1])
    drawn = {
        int(action)
        for seed in range(8)
        for action in policy.act(belief, mask, True, torch.Generator().manual_seed(seed))
    }
    assert drawn <= {2, 4} and set(policy.act(belief, mask).tolist()) <= {2, 4}
    assert policy.probabilities(belief, mask)[:, [0, 1, 3]].max() == 0
    with pytest.raises(ValueError, match="allows no action"):
        policy.act(belief, np.zeros(5))


def test_a_mask_of_one_part_holds_where_the_others_are_numbers(duel):
    policy, belief = policy_of(duel), duel.starts.beliefs(np.arange(6))
    for number in range(3):
        taken = policy.act(belief, {"legs": np.arange(3) == number}, True, torch.Generator().manual_seed(0))
        assert taken.parts["legs"].tolist() == [number] * 6 and taken.parts["arm"].isfinite().all()


def test_where_a_belief_and_the_world_disagree_on_what_is_allowed_the_world_is_right(walled):
    policy, belief = policy_of(walled), walled.starts.beliefs(np.arange(len(walled.starts)))
    for number in range(2):
        assert set(policy.act(belief, np.arange(2) == number).tolist()) == {number}


def test_what_a_belief_forbids_is_never_chosen(walled):
    policy, belief = policy_of(walled), walled.starts.beliefs(np.arange(len(walled.starts)))
    allowed = walled.model.decode(belief.state, "action_mask") > 0.5
    assert policy.network.mask is not None and not allowed.all()
    assert policy.probabilities(belief)[~allowed].max() == 0


def test_an_agent_acts_by_a_policy_where_a_planner_is_asked_for(duel, board, tmp_path):
    policy_of(board).save(tmp_path / "policy")
    planner = make_planners([f"policy?folder={tmp_path / 'policy'}"], board.model.config)["policy"]
    assert isinstance(planner, PolicyPlanner) and "policy" not in make_planners(None, board.model.config)
    agent = PanAgent(board.model, board.processor, RewardCritic(), planner, replan="at_end")
    trajectories = board.starts.trajectories
    seen = {"camera": trajectories.observations["camera"][0].transpose(1, 2, 0), "mission": "go to the corner"}
    action = agent.act(seen | {"place": trajectories.observations["place"][0]})
    assert action in range(5) and agent.statistics.num_simulated == 0
    policy_of(duel).save(tmp_path / "other")
    with pytest.raises(ValueError, match="Take the model that it was trained in|The policy reads the senses"):
        Policy.load(tmp_path / "other", board.model)


def test_an_agent_acts_by_the_name_of_the_one_part_of_an_action(walker, tmp_path):
    policy_of(walker).save(tmp_path / "policy")
    planner = PolicyPlanner(str(tmp_path / "policy"))
    agent = PanAgent(walker.model, walker.processor, RewardCritic(), planner, replan="at_end")
    for _ in range(2):  # the second time it sees what it did
        assert Walker.action_space.contains(agent.act({"place": np.zeros(1, np.float32)}))


def test_a_folder_without_a_policy_or_with_a_damaged_one_is_told(board, tmp_path):
    with pytest.raises(ValueError, match="`folder` names a policy"):
        make_planners("policy", board.model.config)
    with pytest.raises(FileNotFoundError, match="`pan imagine` and `pan distil` train one"):
        Policy.load(tmp_path, board.model)
    policy_of(board).save(tmp_path)
    weights = tmp_path / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged"):
        Policy.load(tmp_path, board.model)
    (tmp_path / "policy.json").write_text("{}")
    with pytest.raises(ValueError, match="is no policy, or damaged"):
        Policy.load(tmp_path, board.model)


def test_a_policy_of_the_same_senses_in_another_order_is_refused(board, tmp_path):
    policy_of(board).save(tmp_path)
    described = json.loads((tmp_path / "policy.json").read_text())
    described["sizes"] = dict(reversed(described["sizes"].items()))
    (tmp_path / "policy.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="Take the model that it was trained in"):
        Policy.load(tmp_path, board.model)


@pytest.mark.parametrize("wrong", [{"hidden": []}, {"hidden": [0]}, {"scales": {"place": "x"}}, {"about": 1}])
def test_a_description_that_means_nothing_is_told(board, tmp_path, wrong):
    policy_of(board).save(tmp_path)
    described = json.loads((tmp_path / "policy.json").read_text()) | wrong
    (tmp_path / "policy.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="is no policy, or damaged"):
        Policy.load(tmp_path, board.model)


def test_reading_a_policy_draws_nothing(board, tmp_path):
    policy_of(board).save(tmp_path)
    before = torch.get_rng_state()
    Policy.load(tmp_path, board.model)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_policy_goes_on_when_the_vocabulary_has_grown(board, tmp_path):
    """A code's vector is read, and not its number; the scale is the one that was measured at first."""
    policy = policy_of(board)
    policy.save(tmp_path)
    book = board.model.senses["camera"].codebooks[0]
    before = book.vectors.clone()
    try:
        with torch.no_grad():
            book.vectors[-1] = 3.0
        assert Policy.load(tmp_path, board.model).features.scales == policy.features.scales
    finally:
        book.vectors.copy_(before)


# ---- what is told of learning


def test_curves_are_drawn_of_what_was_noted():
    log = [{"steps": 10 * n, "return": n, "length": 4.0, "entropy": float("nan")} for n in range(4)]
    svg = learning_curves(log).decode()
    assert CURVES["return"] in svg and CURVES["entropy"] not in svg and learning_curves(log).decode() == svg


def test_what_is_noted_of_a_rollout_is_the_mean_of_the_episodes_that_it_began_with():
    """Of the episodes that begin within it, only short ones end in it."""
    episodes = [
        {"r": 1.0, "l": 2, "truncated": False, "is_first": True},
        {"r": 4.0, "l": 6, "truncated": True, "is_first": True},
        {"r": 9.0, "l": 1, "truncated": False, "is_first": False},
    ]
    told = dict.fromkeys(("entropy_loss", "value_loss", "approx_kl", "explained_variance"), 0.5)
    ppo = SimpleNamespace(
        logger=SimpleNamespace(name_to_value={f"train/{name}": value for name, value in told.items()}),
        env=SimpleNamespace(mean_entropy=lambda: float("nan")),
        ep_info_buffer=episodes,
        num_timesteps=12,
    )
    noted = _note(ppo, seconds=1.0)
    assert (noted["return"], noted["length"], noted["ended"], noted["episodes"]) == (2.5, 4.0, 0.5, 3)
    assert ppo.ep_info_buffer == [] and "entropy" not in noted


def test_a_digest_tells_weights_apart(board):
    first = digest_of(board.model, None)
    bias = next(iter(board.model.parameters()))
    with torch.no_grad():
        bias.flatten()[0] += 1
        changed = digest_of(board.model, None)
        bias.flatten()[0] -= 1
    assert len(first) == 32 and first != changed


def test_without_stable_baselines_the_install_line_is_told(board, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.setattr("pan_hf.training.imagine.ppo_class", ppo_class.__wrapped__)  # the cached one may be there
    with pytest.raises(ImportError, match=r"needs stable_baselines3: pip install 'pan_hf\[rl\]'"):
        imagine(board.run, steps=4, output=tmp_path, **SHORT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"discount": 0},
        {"discount": 1.5},
        {"hidden": ()},
        {"horizon": 0},
        {"temperature": -1},
        {"num_envs": 1, "horizon": 1},
    ],
)
def test_settings_are_checked_before_anything_is_written(board, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr("pan_hf.training.imagine.ppo_class", lambda: None)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        imagine(board.run, output=tmp_path, **(SHORT | wrong))
    assert not list(tmp_path.iterdir())


# ---- with Stable-Baselines3


def vec_env(world, num_envs=4, reward_scale=1.0, **settings):
    env = ImaginedVectorEnv(
        world.model, world.processor, world.starts, num_envs, "SameStep", observation="state", **settings
    )
    return as_vec_env(env, reward_scale)


def test_only_a_vector_of_what_is_believed_goes_to_stable_baselines(board):
    for mode, seen in (("NextStep", "state"), ("SameStep", "senses")):
        env = ImaginedVectorEnv(board.model, board.processor, board.starts, 2, mode, observation=seen)
        with pytest.raises(ValueError, match='autoreset_mode="SameStep" and observation="state"'):
            as_vec_env(env)


@needs_sb3
@pytest.mark.parametrize("name", ["board", "duel", "walled", "walker"])
def test_a_vec_env_tells_how_an_episode_ended(name, request):
    world = request.getfixturevalue(name)
    env = vec_env(world, horizon=2, reward_scale=2.0)
    env.seed(3)
    seen = env.reset()
    assert seen.shape == (4, *env.observation_space.shape) and env.observation_space.contains(seen[0])
    ages, is_first = np.zeros(4, int), np.ones(4, bool)
    for _ in range(4):
        seen, rewards, dones, infos = env.step(np.stack([env.action_space.sample() for _ in range(4)]))
        ages += 1
        assert seen.dtype == rewards.dtype == np.float32 and dones.dtype == bool and len(infos) == 4
        for row in range(4):
            assert ("terminal_observation" in infos[row]) == bool(dones[row])
            if dones[row]:
                assert infos[row]["episode"]["l"] == ages[row] and env.observation_space.contains(seen[row])
                assert infos[row]["TimeLimit.truncated"] <= (ages[row] == 2)
                assert infos[row]["episode"]["is_first"] == is_first[row]
                is_first[row] = False
        ages[dones] = 0
    assert env.get_attr("num_envs") == [4] * 4 and env.env_is_wrapped(object) == [False] * 4


@needs_sb3
def test_a_vec_env_is_reproducible(board):
    def played():
        env = vec_env(board, horizon=3)
        env.seed(5)
        told = [env.reset()]
        for _ in range(3):
            told += env.step(np.array([0, 1, 2, 3]))[:3]
        return told

    assert all(np.array_equal(one, other) for one, other in zip(played(), played(), strict=True))


@needs_sb3
@pytest.mark.parametrize("name", ["board", "duel", "walled"])
def test_our_network_says_what_stable_baselines_says(name, request):
    world = request.getfixturevalue(name)
    env = vec_env(world, horizon=2)
    ppo = make_ppo(env, [16, 8], seed=0, batch_size=4)
    network, seen = network_of(ppo), torch.as_tensor(env.reset())
    distribution = ppo.policy.get_distribution(seen).distribution
    outputs = network.outputs(seen)
    if env.flat.is_discrete:
        assert torch.allclose(outputs.softmax(-1), distribution.probs, atol=1e-6)
    else:
        assert torch.allclose(outputs, distribution.mean, atol=1e-6)
    assert torch.allclose(network.values(seen), ppo.policy.predict_values(seen)[:, 0], atol=1e-6)


@needs_sb3
def test_ppo_never_does_what_is_forbidden(walled):
    env = vec_env(walled, num_envs=8, horizon=4)
    ppo = make_ppo(env, [8], seed=0, batch_size=8)
    ppo.learn(32)
    where = mask_of(env.env.imagination.features, env.flat)
    seen, taken = ppo.rollout_buffer.observations, ppo.rollout_buffer.actions.astype(int)
    allowed = seen.reshape(len(taken), -1)[:, where] > 0 if seen.ndim == 2 else seen[..., where] > 0
    chosen = np.take_along_axis(allowed.reshape(-1, 2), taken.reshape(-1, 1), 1)[:, 0]
    possible = allowed.reshape(-1, 2).any(1)  # an untrained model may imagine that nothing is allowed
    assert chosen[possible].all()


@needs_sb3
@pytest.mark.slow
@pytest.mark.parametrize("name", ["board", "duel"])
def test_a_run_that_goes_on_ends_where_it_would_have_ended(name, request, tmp_path):
    """To the bit: weights, optimizer, and what was noted but for the seconds."""
    world = request.getfixturevalue(name)
    whole = imagine(world.run, steps=72, output=tmp_path / "whole", **SHORT)
    for steps in (24, 48, 72):
        torch.rand(steps), np.random.rand(steps)  # whatever was drawn in between
        parts = imagine(world.run, steps=steps, output=tmp_path / "parts", **SHORT)
    for file in ("policy.safetensors", "training.safetensors"):
        assert (whole / file).read_bytes() == (parts / file).read_bytes()
    logs = [json.loads((folder / "log.json").read_text()) for folder in (whole, parts)]
    for log in logs:
        for entry in log:
            entry.pop("seconds")
    assert logs[0] == logs[1] and [entry["steps"] for entry in logs[0]] == [24, 48, 72]


@needs_sb3
@pytest.mark.slow
def test_a_run_leaves_a_policy_its_curves_and_its_card_and_no_pickle(board, tmp_path):
    folder = imagine(board.run, steps=24, output=tmp_path, uncertainty_penalty=0.01, **SHORT)
    assert {file.name for file in folder.iterdir()} == {
        "README.md", "curves.svg", "log.json", "policy.json", "policy.safetensors", "training.safetensors"
    }  # fmt: skip
    (entry,) = json.loads((folder / "log.json").read_text())
    assert {"return", "length", "ended", "entropy", "policy_entropy", "episodes"} <= set(entry)
    policy = Policy.load(folder, board.model)
    assert policy.about["steps"] == 24 and policy.about["uncertainty_penalty"] == 0.01
    with pytest.raises(ValueError, match="begun with other settings.*seed was 0, is 1"):
        imagine(board.run, steps=24, output=tmp_path, uncertainty_penalty=0.01, seed=1, **SHORT)


@needs_sb3
@pytest.mark.slow
def test_a_damaged_state_is_told_and_left(board, tmp_path):
    folder = imagine(board.run, steps=24, output=tmp_path, **SHORT)
    state = folder / "training.safetensors"
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(ValueError, match="training.safetensors is damaged"):
        imagine(board.run, steps=48, output=tmp_path, **SHORT)
    assert state.exists()


@needs_sb3
def test_learning_leaves_the_world_model_as_it_was(board, tmp_path):
    before = digest_of(board.model, None)
    env = vec_env(board, horizon=3)
    ppo = make_ppo(env, [8], seed=0, batch_size=4)
    ppo.learn(24)
    assert digest_of(board.model, None) == before and ppo.num_timesteps == 24
