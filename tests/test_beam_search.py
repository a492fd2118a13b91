"""Beam search in mazes and with numbers."""

import re

import pytest
import torch
from mazes import (
    GridBelief,
    GridWorld,
    MaskedWorld,
    PointWorld,
    TwoWalkers,
    _with,
    carry_out,
    not_a_number,
    processor,
    walk,
)
from tiny_worlds import observe, world_model

from pan_hf.agents.agent import PanAgent
from pan_hf.agents.beam_search import BeamSearch
from pan_hf.agents.critics import FunctionCritic, GoalCritic, RewardCritic
from pan_hf.agents.plan import Contradicted
from pan_hf.agents.registry import make_planners
from pan_hf.modeling import TextAction, VectorAction


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_wide_beam_finds_a_shortest_way_and_folds_equal_states():
    world = GridWorld()
    plan = BeamSearch(beam_size=30).plan(world, world.root(), RewardCritic())
    assert len(plan) == 11 and plan.reaches_goal and carry_out(world, plan.actions) == (0, 3)
    assert plan.states[-1] == bytes([0, 3]) and plan.num_folded > 0
    assert plan.num_simulated <= 21 * 5 + 11 and plan.expected_return == pytest.approx(0.99**10)


def test_a_narrow_beam_follows_what_the_critic_likes():
    world = GridWorld("S" + "." * 8)
    critic = FunctionCritic(function=lambda futures: futures.codes["camera"][0][..., 1].float())
    plan = BeamSearch(beam_size=1, horizon=8).plan(world, world.root(), critic)
    assert plan.actions.tolist() == [3] * 8 and plan.num_simulated == 8 * 5


def test_one_length_is_one_simulate_call_unless_the_batch_is_smaller():
    calls = {}
    for size in (2, 256):
        world = GridWorld("S.....")
        plan = BeamSearch(beam_size=3, horizon=4, batch_size=size).plan(
            world, world.root(), lambda futures: futures.codes["camera"][0][..., 1].float()
        )
        calls[size] = world.calls
        assert plan.actions.tolist() == [3] * 4
    assert calls[256] == 4 and calls[2] > 4


def test_a_goal_that_is_not_confirmed_is_passed_over_and_its_state_is_not():
    world = GridWorld(lies=[(2, 0), (4, 1)])  # both lie on every short way
    plan = BeamSearch(beam_size=30).plan(world, world.root(), RewardCritic())
    assert plan.reaches_goal and carry_out(world, plan.actions) == (0, 3)


def test_plans_keep_away_from_what_the_world_has_refuted():
    world = GridWorld("S.G\n...")
    root = world.root().keys()[0]
    around = BeamSearch().plan(world, world.root(), RewardCritic(), refuted=Contradicted(transitions={(root, 3)}))
    assert len(around) == 4 and around.actions[0] == 1
    other = BeamSearch().plan(world, world.root(), RewardCritic(), refuted=Contradicted(goals={(bytes([0, 1]), 3)}))
    assert other.reaches_goal and other.actions.tolist()[-1] == 0
    everything = Contradicted(transitions={(root, action) for action in range(5)})
    assert BeamSearch().plan(world, world.root(), RewardCritic(), refuted=everything).reaches_goal


def test_a_goal_observation_is_reached_and_an_agent_walks_there():
    world = GridWorld()
    plan = BeamSearch().plan(world, world.root(), GoalCritic(codes={"camera": [torch.tensor([4, 4])]}))
    assert plan.reaches_goal and len(plan) == 8
    agent = PanAgent(world, processor, RewardCritic(), BeamSearch(beam_size=30))
    assert walk(agent, world) == (11, (0, 3)) and agent.statistics.replans == 1


@pytest.mark.parametrize("batch_size", [2, 256])
def test_no_goal_is_claimed_where_every_action_is_paid(batch_size):
    world = GridWorld("S..")
    world.simulate = _with(world.simulate, continue_prob=1.0, reward=1.0)
    assert not BeamSearch(horizon=3, batch_size=batch_size).plan(world, world.root(), RewardCritic()).reaches_goal


def test_numbers_are_drawn_for_each_state_within_their_bounds():
    critic = RewardCritic(threshold=1.0, discount=1.0)
    GridBelief.keys, keys = lambda self: [str(cell).encode() for cell in self.cells.tolist()], GridBelief.keys
    try:
        plan = BeamSearch(beam_size=16, horizon=4, num_actions=64).plan(
            PointWorld(), GridBelief(torch.zeros(1, 2)), critic, generator=seeded()
        )
    finally:
        GridBelief.keys = keys
    assert plan.actions.shape == (4, 2)
    distance = float(PointWorld.target.norm())
    best = -sum(distance * (1 - step / 3) for step in (1, 2, 3))
    assert best - 0.6 < plan.expected_return <= best + 1e-4


@pytest.mark.parametrize("num_actions", [25, 12])  # all combinations, or some of them
def test_several_parts_are_moved_at_once(num_actions):
    world = TwoWalkers("S.G")
    plan = BeamSearch(beam_size=20, num_actions=num_actions).plan(
        world, world.root(), RewardCritic(threshold=2.0), generator=seeded()
    )
    assert plan.reaches_goal and plan.names[-1] == "right+right"


@pytest.mark.parametrize("num_actions", [16, 3])
def test_the_mask_is_kept_now_and_in_imagined_states(num_actions):
    world = GridWorld("S.G\n...")
    planner = BeamSearch(num_actions=num_actions, beam_size=20)
    assert planner.plan(world, world.root(), RewardCritic(), mask=[0, 1, 0, 0, 0], generator=seeded()).actions[0] == 1
    world = MaskedWorld("S.G")
    plan = planner.plan(world, world.root(), RewardCritic(), mask=world.mask(world.start)[0], generator=seeded(1))
    assert plan.reaches_goal
    for cells, actions in world.tried:
        if actions.shape[1] == 1:
            assert world.mask(cells).gather(1, actions).all()


@pytest.mark.parametrize("action", ["discrete", "vector"])
@pytest.mark.parametrize("context_steps", [1, 3])
def test_a_model_is_searched_whatever_its_actions_and_its_memory(action, context_steps):
    model = world_model(action=action, context_steps=context_steps)
    belief = model.perceive(observe(model, batch=1))
    planner = BeamSearch(beam_size=3, horizon=3, num_actions=4, temperature=0.5)
    plans = [planner.plan(model, belief, lambda futures: futures.reward, generator=seeded()).actions for _ in range(2)]
    assert torch.equal(*plans) and 1 <= len(plans[0]) <= 3


def test_it_is_found_by_name_and_says_what_it_cannot_take_when_it_is_built():
    assert list(make_planners(["beam?beam_size=4"], PointWorld().config).values()) == [BeamSearch(beam_size=4)]
    config = PointWorld().config
    config.action = TextAction(max_length=2)
    with pytest.raises(ValueError, match="TextAction cannot be drawn"):
        make_planners(["beam"], config)
    config.action = VectorAction(dim=1)
    assert make_planners(["beam"], config)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: BeamSearch(beam_size=0), "BeamSearch: `beam_size` must be a whole number of at least 1, got 0"),
        (lambda: BeamSearch(horizon=1.5), "`horizon` must be a whole number"),
        (lambda: BeamSearch(num_actions=0), "`num_actions` must be a whole number"),
        (lambda: BeamSearch(temperature=-1), "`temperature` must be at least 0"),
        (lambda: BeamSearch(key_levels=0), "`key_levels` must be a whole number"),
    ],
)
def test_nonsense_is_refused_when_it_is_built(build, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        build()


def test_no_plan_is_made_of_scores_that_are_not_numbers():
    world = GridWorld()
    with pytest.raises(ValueError, match="returned NaN for .* imagined steps"):
        BeamSearch().plan(world, world.root(), not_a_number)
