"""A learned value: what it learns, how sure it is, and what planners make of it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mazes import GridBelief, GridWorld, carry_out
from test_imagine import board, duel  # noqa: F401  fixtures
from test_plan import run_dir  # noqa: F401  a fixture
from tiny_worlds import observe, world_model

from pan_hf.agents.beam_search import BeamSearch
from pan_hf.agents.cautious import CautiousCritic
from pan_hf.agents.critics import GoalCritic, RewardCritic
from pan_hf.agents.mcts import MCTS
from pan_hf.agents.reasoners import ReasonersSearch
from pan_hf.agents.shooting import CEM
from pan_hf.agents.strategy_search import StrategySearch
from pan_hf.agents.value import LearnedValue, ValueCritic
from pan_hf.data.starts import RecordedStarts
from pan_hf.data.trajectories import load_trajectories
from pan_hf.envs.state_features import StateFeatures
from pan_hf.evaluation.control import plan
from pan_hf.reporting.tables import select
from pan_hf.training.value import Experience, fit, learn_value, recorded_experience, returns_of


def chain(length=8, episodes=40, cut=False, seed=0):
    """Walks to the right along a line, each from a random cell; only the last step is paid, with 1. Of a walk that is
    `cut`, three steps are seen at most."""
    rng, parts = np.random.default_rng(seed), []
    features = torch.eye(length)
    for episode in range(episodes):
        cells = np.arange(rng.integers(length), length)
        last = min(len(cells) - 1, 3) if cut else len(cells) - 1
        ends_here = cells[last] == length - 1
        for place in range(last + ends_here):
            steps = last - place
            value = 0.9**steps if ends_here else 0.0
            parts.append((cells[place], cells[last], value, 0.0 if ends_here else 0.9**steps, episode))
    columns = [torch.tensor(np.array(each)) for each in zip(*parts, strict=True)]
    return Experience(features, columns[0], columns[1], columns[2].float(), columns[3].float(), columns[4])


def learned(experience, members=4, steps=400, seed=0):
    torch.manual_seed(seed)
    sizes = {"cell": experience.features.shape[1]}
    value = LearnedValue(sizes, dict.fromkeys(sizes, 1.0), [32], members, 0.9)
    fit(value, experience, steps, 64, 1e-2, seed, progress=False)
    return value


@pytest.mark.parametrize("cut", [False, True])
def test_the_value_is_the_discounted_return_though_walks_are_cut(cut):
    experience = chain(cut=cut)
    value = learned(experience, steps=700 if cut else 300)
    with torch.no_grad():
        told = value(experience.features).mean(0)
    expected = 0.9 ** torch.arange(7, -1, -1)
    assert (told - expected).abs().max() < 0.08


def test_networks_differ_where_little_was_recorded():
    experience = chain()
    kept = experience.states >= 3
    some = Experience(
        experience.features,
        *(getattr(experience, name)[kept] for name in ("states", "ends", "returns", "passes", "episodes")),
    )
    value = learned(some, members=6, steps=200)
    with torch.no_grad():
        spread = value(experience.features).std(0)
    assert spread[:3].mean() > 2 * spread[3:].mean()


def test_returns_are_discounted_sums():
    assert returns_of(np.array([1.0, 0.0, 2.0]), 0.5).tolist() == [1.5, 1.0, 2.0]


def test_what_is_learned_twice_from_one_seed_is_the_same():
    experience = chain(episodes=5)
    one, two, other = (learned(experience, steps=20, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.members[0][0].weight, other.members[0][0].weight)


# ---- from a recording


def test_a_recording_is_read_as_its_returns(board):  # noqa: F811
    """Of the first episode the last step is paid and ends it; the second is cut."""
    told = board.starts.trajectories
    last = told.episode_starts[0] + told.episode_lengths[0] - 2
    is_last = np.arange(len(told)) == last
    told = replace(told, rewards=np.where(is_last, 1.0, 0.0).astype(np.float32), dones=is_last)
    starts = RecordedStarts(told, board.processor, board.model)
    experience = recorded_experience(starts, StateFeatures(board.model), np.arange(2), 0.9, progress=False)
    ended, cut = (int(length) - 1 for length in told.episode_lengths[:2])
    assert len(experience.features) == ended + cut and len(experience) == ended + cut - 1
    assert experience.returns[:ended].tolist() == pytest.approx([0.9**left for left in range(ended - 1, -1, -1)])
    assert experience.passes[:ended].tolist() == [0.0] * ended and experience.returns[ended:].tolist() == [0.0] * (
        cut - 1
    )
    assert experience.passes[ended:].tolist() == pytest.approx([0.9**left for left in range(cut - 1, 0, -1)])
    assert experience.ends[ended:].unique().tolist() == [ended + cut - 1]
    numbers = np.array([0, ended])  # the first step of both
    there = StateFeatures(board.model)(starts.beliefs(numbers))
    assert torch.equal(experience.features[experience.states[numbers]], there)


@pytest.mark.parametrize("world", ["board", "duel"])
def test_a_value_is_learned_kept_and_read_again(world, request, tmp_path):
    run = request.getfixturevalue(world)
    settings = {"hidden": (16,), "members": 3, "steps": 30, "imagined": 6, "horizon": 3, "progress": False}
    folder = learn_value(run.run, output=tmp_path, **settings)
    assert sorted(file.name for file in folder.iterdir()) == ["value.json", "value.safetensors"]
    value = LearnedValue.load(folder, run.model)
    belief = run.starts.beliefs(np.arange(5))
    assert value.expected(belief).shape == (3, 5) and value.discount == 0.99
    mean, low, high = value.interval(belief, 0.9)
    assert (low <= mean).all() and (mean <= high).all()
    assert value.about["imagined"] == 6 and value.about["states"] > 6
    held_out = load_trajectories(run.run / "data", "test")  # all but the last step of those that were cut
    assert 0 < value.about["held_out_states"] <= (held_out.episode_lengths - 1).sum()
    if world == "duel":
        return
    again = LearnedValue.load(learn_value(run.run, output=tmp_path / "again", **settings), run.model)
    assert torch.equal(again.expected(belief), value.expected(belief))


def test_a_value_that_is_damaged_or_of_another_model_is_refused(tmp_path):
    model, other = world_model(("camera",)), world_model(("touch",))
    features = StateFeatures(model)
    LearnedValue(features.sizes, features.scales, [8], 2, 0.9).save(tmp_path / "value")
    with pytest.raises(ValueError, match=r"camera.*touch|touch.*camera"):
        LearnedValue.load(tmp_path / "value", other)
    with pytest.raises(FileNotFoundError, match="`pan value` learns one"):
        LearnedValue.load(tmp_path, model)
    described = json.loads((tmp_path / "value" / "value.json").read_text())
    (tmp_path / "value" / "value.json").write_text(json.dumps(described | {"hidden": [9]}))
    with pytest.raises(ValueError, match="or damaged"):
        LearnedValue.load(tmp_path / "value", model)


def test_a_value_of_the_same_senses_in_another_order_is_refused(tmp_path):
    model = world_model(("camera", "touch"))
    features = StateFeatures(model)
    sizes = dict(reversed(features.sizes.items()))
    LearnedValue(sizes, features.scales, [8], 2, 0.9).save(tmp_path)
    with pytest.raises(ValueError, match="Take the model that it was learned in"):
        LearnedValue.load(tmp_path, model)


@pytest.mark.parametrize(
    "wrong",
    [{"hidden": []}, {"scales": {"touch": "x"}}, {"members": 10**12}, {"hidden": [10**9]}, {"discount": "0.9"}],
    ids=str,
)
def test_a_description_that_means_nothing_is_told_before_memory_is_taken(tmp_path, wrong):
    model = world_model(("touch",))
    features = StateFeatures(model)
    LearnedValue(features.sizes, features.scales, [8], 2, 0.9).save(tmp_path)
    described = json.loads((tmp_path / "value.json").read_text()) | wrong
    (tmp_path / "value.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="or damaged"):
        LearnedValue.load(tmp_path, model)


# ---- what planners make of it


def most(world_model, search_config):
    """To where a step is worth most, until the end."""
    state = world_model.init_state()
    while not world_model.is_terminal(state):
        after = [world_model.step(state, action)[0] for action in search_config.get_actions(state)]
        state = max(after, key=world_model.worth)
    return state


class ByColumn:
    """Expects the more the farther right, and of one network more than of the other in the top row."""

    discount = 0.9

    def expected(self, belief):
        column, row = belief.cells[:, 1].float(), belief.cells[:, 0].float()
        doubt = (row == 0).float() * 2
        return torch.stack([column + doubt, column - doubt]) / 10


def worth(**settings):
    return ValueCritic(critic=RewardCritic(), value_of=ByColumn(), **settings)


@pytest.mark.parametrize(
    "planner",
    [
        MCTS(budget=60, max_depth=3),
        StrategySearch(budget=60, max_depth=3),
        BeamSearch(beam_size=8, horizon=3),
        CEM(num_samples=64, horizon=3),
        ReasonersSearch(most, max_depth=3),
    ],
    ids=lambda planner: type(planner).__name__,
)
def test_a_goal_too_far_to_be_imagined_is_walked_towards(planner):
    world = GridWorld("S.........G")
    plan = planner.plan(world, world.root(), worth(), generator=torch.Generator().manual_seed(0))
    assert carry_out(world, plan.actions)[1] >= 2
    blind = planner.plan(world, world.root(), RewardCritic(), generator=torch.Generator().manual_seed(0))
    assert plan.expected_return > blind.expected_return


def test_what_is_worth_after_the_end_counts_by_the_time_and_the_chance_to_get_there():
    futures = SimpleNamespace(
        reward=torch.tensor([[1.0, 2.0]]),
        continue_prob=torch.tensor([[0.5, 0.4]]),
        belief=GridBelief(torch.tensor([[1, 5]])),
        duration=torch.tensor([[1, 3]]),
        elapsed=torch.tensor([[0, 1]]),
    )
    critic = worth()
    told = critic.value(futures, critic.score(futures))
    assert float(told) == pytest.approx(1 + 0.9 * 0.5 * 2 + 0.9**4 * 0.5 * 0.4 * 0.5)


def test_caution_avoids_what_the_networks_do_not_agree_on():
    there = GridBelief(torch.tensor([[0, 5], [1, 5]]))
    assert worth().promises(there).tolist() == pytest.approx([0.5, 0.5])
    assert worth(caution=1.0).promises(there).tolist() == pytest.approx([0.3, 0.5])
    assert CautiousCritic(critic=worth(), penalty=1.0).promises(there).tolist() == pytest.approx([0.5, 0.5])


def test_what_does_not_go_with_a_value_is_refused():
    goal = GoalCritic(vectors={"touch": torch.zeros(3)})
    with pytest.raises(ValueError, match="GoalCritic scores states"):
        ValueCritic(critic=goal, value_of=ByColumn())
    of_one = RewardCritic(actor="a")
    for critic in (of_one, CautiousCritic(critic=of_one, penalty=0.1)):
        with pytest.raises(ValueError, match="leave `actor` out"):
            ValueCritic(critic=critic, value_of=ByColumn())
    with pytest.raises(ValueError, match="got one of no model"):
        LearnedValue({"a": 1}, {"a": 1.0}, [4], 2, 0.9).expected(GridBelief(torch.zeros(1, 2)))
    broken = ByColumn()
    broken.expected = lambda belief: torch.full((2, len(belief)), torch.nan)
    world = GridWorld("S.G")
    with pytest.raises(ValueError, match="one finite number a state"):
        MCTS().plan(world, world.root(), ValueCritic(critic=RewardCritic(), value_of=broken))


@pytest.mark.slow
def test_pan_plan_takes_a_value_and_says_first_what_is_none(run_dir, tmp_path):  # noqa: F811
    folder = learn_value(run_dir, output=tmp_path, hidden=(8,), members=2, steps=5, progress=False)
    settings = {"planners": ["mcts?budget=12&max_depth=2"], "episodes": 1, "max_steps": 3, "progress": False}
    records = plan(run_dir, value=folder, value_caution=0.5, output=tmp_path / "out", **settings)
    assert select(records, model="pan/mcts", metric="steps")
    with pytest.raises(FileNotFoundError, match="`pan value` learns one"):
        plan(run_dir, value=tmp_path / "nowhere", output=tmp_path / "none", **settings)
    assert not (tmp_path / "none").exists()


def test_a_model_plans_with_a_value_whatever_it_remembers():
    model = world_model(("camera", "touch"), context_steps=2)
    features = StateFeatures(model)
    value = LearnedValue(features.sizes, features.scales, [8], 2, 0.9)
    belief = model.perceive(observe(model, 1))
    critic = ValueCritic(critic=RewardCritic(threshold=9.0), value_of=value)
    for planner in (MCTS(budget=24), CEM(num_samples=8, horizon=2)):
        assert len(planner.plan(model, belief, critic)) >= 1
