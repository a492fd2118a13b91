"""A policy that imitates a simulation cache: how it learns, and how an agent acts by cache, policy and search."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_imagine import _recorded, policy_of
from tiny_worlds import board_world

from pan_hf import DiscreteAction, PanAgent, RewardCritic, SimulationCache, VectorAction, cli
from pan_hf.agents.mcts import MCTS
from pan_hf.agents.plan import Plan
from pan_hf.agents.policy import FlatActions, Policy
from pan_hf.agents.shooting import CEM
from pan_hf.agents.teacher import Decisions
from pan_hf.checkpoints import load
from pan_hf.envs.state_features import StateFeatures
from pan_hf.evaluation.control import plan
from pan_hf.evaluation.precompute import precompute
from pan_hf.reporting.tables import select
from pan_hf.training.distil import distil

WISH = RewardCritic(threshold=0.1)  # what an untrained model imagines is around 0, so that some steps are goals
GOAL = {"critic": WISH}
SHORT = {"hidden": (32,), "batch_size": 32, "progress": False, **GOAL}


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A run of the board with an untrained checkpoint and a cache of what it imagines."""
    folder = tmp_path_factory.mktemp("board")
    world = board_world(folder)
    (folder / "model" / "training_data.json").write_text(json.dumps({"fingerprints": [], "root": str(world.data)}))
    world.cache = folder / "cache"
    precompute(world.model, world.data, cache=world.cache, frames=50, depth=6, progress=False, **GOAL)
    world.loaded, world.processor = load(world.model)
    world.policy = distil(world.model, cache=world.cache, steps=300, output=folder, **SHORT)
    return world


@pytest.fixture(scope="module")
def duel(tmp_path_factory):
    """A world with masks, two actors, and an action of a choice and a vector."""
    return _recorded(tmp_path_factory, "parts/Duel-v0", optional=["lamp"])


def decisions_of(world, cache, critic=WISH):
    kept = SimulationCache(cache, create=False, writes=False)
    decisions = Decisions(StateFeatures(world), FlatActions(world.config), kept.bind(world, critic).keys)
    decisions.add(kept, world, critic)
    return decisions


def seen_at(world, row):
    trajectories = world.trajectories
    seen = {"camera": trajectories.observations["camera"][row].transpose(1, 2, 0), "mission": "go to the corner"}
    return seen | {"place": trajectories.observations["place"][row]}


# ---- what is imitated


def test_flat_actions_and_the_worlds_are_each_others_inverse():
    parts = {"hand": DiscreteAction(4), "legs": DiscreteAction(3)}
    flat = FlatActions(SimpleNamespace(actions=parts))
    assert flat.of_world(flat.to_world(torch.arange(12))).tolist() == list(range(12))
    parts = {"legs": DiscreteAction(3), "arm": VectorAction(dim=2, low=[-1, 0], high=[1, 4])}
    flat = FlatActions(SimpleNamespace(actions=parts))
    numbers = torch.tensor([[-1.0, 1.0, -1.0, 0.25, -0.5]])
    assert torch.allclose(flat.of_world(flat.to_world(numbers)), numbers)


def test_a_teacher_says_what_the_cache_would_answer(board):
    model, decisions = board.loaded, decisions_of(board.loaded, board.cache)
    cache = SimulationCache(board.cache, writes=False, radius=0)
    rows = cache.store.query("SELECT raw FROM states ORDER BY id")
    found = [cache.lookup(model, decisions.keys.belief([raw]), WISH, counts=False) for (raw,) in rows]
    answers = [answer for answer in found if answer is not None and answer.level == "exact"]
    assert len(decisions) == len(answers) > 20
    batch = decisions.batch(range(len(decisions)))
    for right, value, answer in zip(batch.right, batch.values.tolist(), answers, strict=True):
        assert right[int(answer.plan.actions[0])] and value == pytest.approx(answer.value, rel=1e-6)


def test_states_that_are_held_out_are_so_in_every_cache(board, tmp_path):
    decisions = decisions_of(board.loaded, board.cache)
    learned, held_out = decisions.split()
    assert 0 < len(held_out) < len(learned) and not set(learned) & set(held_out)
    told = {decisions.seen[number] for number in held_out}
    precompute(board.model, board.data, cache=tmp_path, frames=8, depth=2, progress=False, **GOAL)
    others = decisions_of(board.loaded, tmp_path)
    kept = {others.seen[number] for number in others.split()[1]}
    assert kept <= told | (set(others.seen) - set(decisions.seen))


# ---- learning


def test_a_policy_learns_what_the_cache_would_answer(board):
    log = json.loads((board.policy / "log.json").read_text())
    assert log[-1]["steps"] == 300 and log[-1]["learned"] > 0.85 and 0 <= log[-1]["agreement"] <= 1
    kept = {path.suffix for path in board.policy.iterdir()}
    assert kept == {".json", ".safetensors", ".svg", ".md"}
    decisions = decisions_of(board.loaded, board.cache)
    learned, _ = decisions.split()
    policy, batch = Policy.load(board.policy, board.loaded), decisions.batch(learned)
    belief = decisions.keys.belief([decisions.seen[number] for number in learned])
    chosen = policy.flat.of_world(policy.act(belief)).unsqueeze(1)
    # the policy reads beliefs as they are, and does what was measured while it learned from scaled ones
    assert float(batch.right.gather(1, chosen).float().mean()) == pytest.approx(log[-1]["learned"], abs=1e-6)
    assert float(np.corrcoef(policy.values(belief), batch.values)[0, 1]) > 0.6


@pytest.mark.slow
def test_learning_that_was_interrupted_ends_as_it_would_have(board, tmp_path):
    weights = []
    for name, counts in (("whole", [8]), ("parts", [3, 8])):
        for steps in counts:
            folder = distil(board.model, cache=board.cache, steps=steps, output=tmp_path / name, **SHORT)
        weights.append((folder / "policy.safetensors").read_bytes())
    assert weights[0] == weights[1]
    again = distil(board.model, cache=board.cache, steps=8, output=tmp_path / "parts", **SHORT)
    assert (again / "policy.safetensors").read_bytes() == weights[0]


@pytest.mark.slow
def test_learning_begins_anew_where_the_cache_has_other_decisions(board, tmp_path):
    cache = tmp_path / "cache"
    for frames in (6, 12):
        precompute(board.model, board.data, cache=cache, frames=frames, depth=1, progress=False, **GOAL)
        folder = distil(board.model, cache=cache, steps=3, output=tmp_path / "both", **SHORT)
    alone = distil(board.model, cache=cache, steps=3, output=tmp_path / "alone", **SHORT)
    assert (folder / "policy.safetensors").read_bytes() == (alone / "policy.safetensors").read_bytes()


@pytest.mark.slow
def test_a_policy_over_numbers_imitates_planned_ones(duel, tmp_path):
    wish, cache = RewardCritic(threshold=float("inf")), tmp_path / "cache"
    given = {"planner": "cem?num_samples=4&horizon=2&num_iterations=1", "critic": wish, "progress": False}
    precompute(duel.run, cache=cache, frames=12, **given)
    folder = distil(duel.run, cache=cache, steps=100, output=tmp_path, **(SHORT | {"critic": wish}))
    policy, decisions = Policy.load(folder, duel.model), decisions_of(duel.model, cache, wish)
    learned, _ = decisions.split()
    belief = decisions.keys.belief([decisions.seen[number] for number in learned])
    error = (policy.flat.of_world(policy.act(belief)) - decisions.batch(learned).right).abs().mean()
    assert error < 0.4 and 0 < float(policy.confidence(belief)[0]) < 1


def test_wrong_settings_and_caches_without_an_answer_are_told(board, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="`pan precompute` makes one"):
        distil(board.model, cache=tmp_path / "empty", output=tmp_path / "out", **SHORT)
    with pytest.raises(ValueError, match="knows no action for this goal"):
        never = RewardCritic(threshold=1e6)
        distil(board.model, cache=board.cache, output=tmp_path / "out", **(SHORT | {"critic": never}))
    with pytest.raises(ValueError, match="hidden"):
        distil(board.model, cache=board.cache, output=tmp_path / "out", **(SHORT | {"hidden": ()}))
    with pytest.raises(ValueError, match="were begun with other settings|was begun with other settings"):
        distil(board.model, cache=board.cache, output=board.policy.parent, **(SHORT | {"seed": 7}))
    with pytest.raises(ValueError, match="not in the recording"):
        distil(board.model, cache=board.cache, output=tmp_path / "out", environments=["Elsewhere-v0"])
    assert not (tmp_path / "out").exists()


# ---- acting


def agent_with(world, **settings):
    planner = settings.pop("planner", CEM(num_samples=4, horizon=3, num_iterations=1))
    return PanAgent(world.loaded, world.processor, WISH, planner, **settings)


def test_an_agent_acts_by_its_policy_where_that_is_sure_and_searches_elsewhere(board):
    policy = Policy.load(board.policy, board.loaded)
    sure, unsure = (agent_with(board, policy=policy, policy_confidence=least) for least in (0.0, 1.0))
    for row in range(3):
        sure.act(seen_at(board, row))
        unsure.act(seen_at(board, row))
    assert (sure.statistics.by_policy, sure.statistics.replans, sure.statistics.num_simulated) == (3, 0, 0)
    assert unsure.statistics.by_policy == 0 and unsure.statistics.replans > 0


def test_the_cache_is_asked_before_the_policy_and_both_before_a_search(board):
    cache, policy = SimulationCache(board.cache, writes=False, radius=0), Policy.load(board.policy, board.loaded)
    given = {"cache": cache, "policy": policy, "replan": "always", "patience": 100}
    for least, others in ((0.0, "by_policy"), (1.0, "replans")):
        agent = agent_with(board, policy_confidence=least, **given)
        for row in range(0, 24, 2):
            agent.act(seen_at(board, row))
        said = agent.statistics
        assert 0 < said.recalled < 12 and said.recalled + getattr(said, others) == said.decisions == said.plans


def test_a_state_to_which_the_policy_leads_again_and_again_is_left_to_the_planner(board):
    agent = agent_with(board, policy=Policy.load(board.policy, board.loaded), policy_confidence=0.0, replan="always")
    for _ in range(4):
        agent.act(seen_at(board, 0))
    assert (agent.statistics.by_policy, agent.statistics.replans) == (2, 2)


def test_what_the_world_has_refuted_a_policy_does_not_do(board):
    policy = Policy.load(board.policy, board.loaded)
    agent = agent_with(board, policy=policy, policy_confidence=0.0)
    action = agent.act(seen_at(board, 0))
    agent.reset()
    key = board.loaded.perceive(**_processed(board, 0)).keys(steps=0)[0]
    agent._refuted.transitions.add((key, action))
    agent.act(seen_at(board, 0))
    assert (agent.statistics.by_policy, agent.statistics.replans) == (0, 1)


def _processed(world, row):
    seen = seen_at(world, row)
    steps = {name: [value] if name == "mission" else np.stack([value]) for name, value in seen.items()}
    steps["mission"] = seen["mission"]
    return world.processor(observation=steps)


def test_an_action_of_the_policy_is_explained_by_its_likeliest_choices(board):
    policy = Policy.load(board.policy, board.loaded)
    agent = agent_with(board, policy=policy, policy_confidence=0.0)
    action = agent.act(seen_at(board, 0))
    said = agent.explain()
    assert said.source == "policy" and "the policy" in said.words and len(said.candidates) == 5
    assert int(said.candidates[0].actions[0]) == action
    assert sum(each.weight for each in said.candidates) == pytest.approx(1, abs=1e-3)


def test_a_mask_holds_for_what_an_agents_policy_does(board):
    policy = Policy.load(board.policy, board.loaded)
    for allowed in range(5):
        agent = agent_with(board, policy=policy, policy_confidence=0.0)
        assert agent.act(seen_at(board, 0), mask=np.arange(5) == allowed) == allowed


def test_tree_search_is_guided_by_the_policy_unless_it_has_a_prior(board):
    policy = Policy.load(board.policy, board.loaded)
    assert agent_with(board, policy=policy, planner=MCTS(budget=20)).planner.prior == policy.prior

    def own(beliefs):
        return torch.ones(len(beliefs), 5)

    assert agent_with(board, policy=policy, planner=MCTS(prior=own)).planner.prior is own
    prior = policy.prior(
        decisions_of(board.loaded, board.cache).keys.belief(decisions_of(board.loaded, board.cache).seen[:8])
    )
    assert torch.allclose(prior.sum(1), torch.ones(8)) and prior.min() >= 0.05
    agent = agent_with(board, policy=policy, policy_confidence=1.0, planner=MCTS(budget=20, max_depth=3))
    agent.act(seen_at(board, 0))
    assert isinstance(agent.plan, Plan) and agent.statistics.num_simulated >= 5


def test_a_policy_of_another_world_or_of_no_world_is_told(board, duel):
    with pytest.raises(ValueError, match="must be a Policy"):
        agent_with(board, policy=board.policy)
    with pytest.raises(ValueError, match="The policy gives actions of"):
        agent_with(board, policy=policy_of(duel))
    with pytest.raises(ValueError, match="policy_confidence"):
        agent_with(board, policy=Policy.load(board.policy, board.loaded), policy_confidence=1.5)


def test_pan_plan_tells_the_share_of_actions_by_the_policy(board, tmp_path, monkeypatch, capsys):
    given = {"planners": "cem?num_samples=4&horizon=2&num_iterations=1", "episodes": 1, "max_steps": 4, **GOAL}
    given |= {"policy": board.policy, "policy_confidence": 0.0, "output": tmp_path, "progress": False}
    records = plan(board.model, board.data, **given)
    (share,) = select(records, metric="by_policy", model="pan/cem")
    assert 0.5 <= share.value <= 1 and not select(records, metric="recalled")


def test_the_command_tells_how_often_policy_and_cache_agree(board, tmp_path, monkeypatch, capsys):
    precompute(board.model, board.data, cache=tmp_path / "cache", frames=6, depth=1, reward_threshold=0.1)
    words = ["--model", board.model, "--data", board.data, "--cache", tmp_path / "cache", "--steps", "3"]
    words += ["--run", tmp_path, "--reward-threshold", "0.1", "--hidden", "8"]
    monkeypatch.setattr("sys.argv", ["pan", "distil", *map(str, words)])
    cli.main()
    said = capsys.readouterr().out
    assert f"The policy is in {tmp_path / 'distilled'}; it does what the cache would do in " in said
    assert "Next: pan plan" in said and f"--policy {tmp_path / 'distilled'}" in said
