"""Planners and critics on worlds small enough to know the right answer."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mazes import (
    DOOR,
    MAZE,
    MOVES,
    DoubtingWorld,
    GridBelief,
    GridWorld,
    MaskedWorld,
    PointWorld,
    TwoWalkers,
    _with,
    carry_out,
    not_a_number,
    processor,
)

from pan_hf.agents.agent import PanAgent
from pan_hf.agents.beam_search import BeamSearch
from pan_hf.agents.critics import FunctionCritic, GoalCritic, RewardCritic
from pan_hf.agents.graph_search import GraphSearch
from pan_hf.agents.mcts import MCTS
from pan_hf.agents.plan import Contradicted
from pan_hf.agents.policy import PolicyPlanner
from pan_hf.agents.reasoners import ReasonersSearch
from pan_hf.agents.registry import make_planners
from pan_hf.agents.shooting import CEM, RandomShooting
from pan_hf.agents.strategy_search import StrategySearch
from pan_hf.modeling import DiscreteAction

# --- Graph search


def test_graph_search_finds_a_shortest_plan():
    world = GridWorld()
    plan = GraphSearch().plan(world, world.root(), RewardCritic())
    # 4 down, 3 right, 4 up: no way round the wall is shorter.
    assert len(plan) == 11 and plan.reaches_goal
    assert carry_out(world, plan.actions) == (0, 3)
    assert plan.states[-1] == bytes([0, 3]) and len(plan.states) == 11


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_of_nodes_do_not_change_the_length_of_the_plan(batch_size):
    world = GridWorld()
    assert len(GraphSearch(batch_size=batch_size).plan(world, world.root(), RewardCritic())) == 11


def test_equal_states_fold_so_that_each_is_expanded_once():
    world = GridWorld(MAZE.replace("G", "."))
    plan = GraphSearch(sampled_searches=0).plan(world, world.root(), RewardCritic())
    assert plan.num_simulated == 21 * 5  # free cells x actions
    assert plan.num_folded == 21 * 5 - 20  # all edges but the 20 that found a new cell
    assert not plan.reaches_goal


def test_a_batch_of_nodes_is_one_simulate_call():
    world = GridWorld(MAZE.replace("G", "."))
    GraphSearch(batch_size=100, sampled_searches=0).plan(world, world.root(), RewardCritic())
    assert world.calls == 13  # one a depth: the farthest cell is 12 steps away, and the last call only folds


def test_the_search_gives_up_at_max_states():
    world = GridWorld()
    plan = GraphSearch(max_states=5, batch_size=1, sampled_searches=0).plan(world, world.root(), RewardCritic())
    assert not plan.reaches_goal and plan.num_simulated <= 5 * 5 and len(plan) >= 1


def test_an_unreachable_goal_gets_a_plan_to_the_best_scored_state():
    world = GridWorld("S.#G\n..#.\n..#.")
    target = torch.tensor([0, 3])
    critic = FunctionCritic(function=lambda futures: -(futures.codes["camera"][0] - target).abs().sum(-1).float())
    plan = GraphSearch().plan(world, world.root(), critic)
    assert carry_out(world, plan.actions) == (0, 1) and not plan.reaches_goal


def test_a_goal_that_is_not_confirmed_from_the_root_is_passed_over():
    world = GridWorld(lies=[(1, 1), (3, 1)])
    plan = GraphSearch().plan(world, world.root(), RewardCritic())
    assert plan.reaches_goal and carry_out(world, plan.actions) == (0, 3)


def test_a_reward_that_does_not_end_the_episode_is_no_goal_where_goals_end_it():
    world = GridWorld("S.G")
    world.simulate = _with(world.simulate, continue_prob=1.0)
    assert GraphSearch().plan(world, world.root(), RewardCritic()).reaches_goal
    assert not GraphSearch().plan(world, world.root(), RewardCritic(ends_episode=True)).reaches_goal


def test_plans_keep_away_from_refuted_transitions_and_goals():
    world = GridWorld("S.G\n...")
    root = world.root().keys()[0]
    around = GraphSearch().plan(world, world.root(), RewardCritic(), refuted=Contradicted(transitions={(root, 3)}))
    assert len(around) == 4 and around.actions[0] == 1
    claimed = Contradicted(goals={(bytes([0, 1]), 3)})
    other = GraphSearch().plan(world, world.root(), RewardCritic(), refuted=claimed)
    assert other.reaches_goal and other.actions.tolist()[-1] == 0  # from below instead


def test_preferred_actions_are_tried_alone_first_and_all_where_they_fail():
    world = GridWorld("S..\n..G")
    cheap = GraphSearch(actions=[1, 3]).plan(world, world.root(), RewardCritic())
    assert cheap.reaches_goal and len(cheap) == 3 and set(cheap.actions.tolist()) == {1, 3}
    assert cheap.num_simulated < GraphSearch().plan(world, world.root(), RewardCritic()).num_simulated
    world = GridWorld()
    assert len(GraphSearch(actions=[1, 3]).plan(world, world.root(), RewardCritic())) == 11
    with pytest.raises(ValueError, match="0..4"):
        GraphSearch(actions=[5]).plan(world, world.root(), RewardCritic())


def test_where_the_likely_futures_reach_no_goal_a_possible_one_is_tried():
    world, generator = DoubtingWorld(DOOR, (0, 2)), torch.Generator().manual_seed(0)
    plan = GraphSearch(sampled_searches=50).plan(world, world.root(), RewardCritic(), generator=generator)
    assert plan.reaches_goal and plan.actions.tolist() == [3, 3, 3, 3]
    preferred = GraphSearch(actions=[3], sampled_searches=50)  # all actions are tried last: there are most ways
    narrow = preferred.plan(world, world.root(), RewardCritic(), generator=generator)
    assert narrow.reaches_goal and narrow.num_simulated <= 5 * 51  # one edge a cell
    given_up = GraphSearch(sampled_searches=0).plan(world, world.root(), RewardCritic())
    assert not given_up.reaches_goal


def test_futures_are_sampled_only_where_the_likely_ones_reach_no_goal():
    world = DoubtingWorld("S..#.G\n......", (0, 3))
    assert GraphSearch().plan(world, world.root(), RewardCritic()).reaches_goal
    assert set(world.temperatures) == {0.0}
    world = DoubtingWorld(DOOR, (0, 2))  # a function says what is better and knows no goal
    GraphSearch().plan(world, world.root(), lambda futures: futures.reward)
    assert set(world.temperatures) == {0.0}


def test_a_goal_observation_is_reached():
    world = GridWorld()
    critic = GoalCritic(codes={"camera": [torch.tensor([4, 4])]})
    plan = GraphSearch().plan(world, world.root(), critic)
    assert plan.reaches_goal and len(plan) == 8 and carry_out(world, plan.actions) == (4, 4)


# --- Sampling planners


@pytest.mark.parametrize(
    "planner", [RandomShooting(512, 6), CEM(128, 6, 4), CEM(64, 6, 3, num_rollouts=2, temperature=1)]
)
def test_sampling_planners_reach_a_near_goal(planner):
    world = GridWorld("S.#\n..#\n..G")
    plan = planner.plan(world, world.root(), RewardCritic(), generator=torch.Generator().manual_seed(0))
    assert plan.reaches_goal and carry_out(world, plan.actions) == (2, 2)
    assert 4 <= len(plan) <= 6


@pytest.mark.parametrize("planner", [RandomShooting(32, 4), CEM(32, 4, 2)])
def test_the_same_generator_state_gives_the_same_plan(planner):
    world = GridWorld()
    plans = [
        planner.plan(world, world.root(), RewardCritic(), generator=torch.Generator().manual_seed(3)).actions
        for _ in range(2)
    ]
    assert torch.equal(*plans)


def test_cem_steers_vector_actions_within_their_bounds():
    world, planner = PointWorld(), CEM(128, 4, 6)
    critic = RewardCritic(threshold=1.0, discount=1.0)
    plan = planner.plan(world, GridBelief(torch.zeros(1, 2)), critic, generator=torch.Generator().manual_seed(0))
    assert plan.actions.shape == (4, 2)
    # The best return by hand: three steps of (1, -1/3) along the straight line, then standing still.
    distance = world.target.norm()
    best = -sum(float(distance) * (1 - step / 3) for step in (1, 2, 3))
    assert best - 0.5 < plan.expected_return <= best + 1e-4


def test_a_vector_goal_is_reached_within_its_tolerance():
    critic = GoalCritic(vectors={"at": PointWorld.target}, scales={"at": 4.0}, tolerance=0.1)
    plan = CEM(256, 4, 6).plan(
        PointWorld(), GridBelief(torch.zeros(1, 2)), critic, generator=torch.Generator().manual_seed(0)
    )
    assert plan.reaches_goal
    assert (plan.actions.sum(dim=0) - PointWorld.target).norm() <= 0.1 * 4.0 + 1e-5


# --- Critics


def test_value_is_the_discounted_reward_weighed_by_the_chance_to_get_there():
    futures = SimpleNamespace(reward=torch.tensor([[1.0, 2.0, 4.0]]), continue_prob=torch.tensor([[0.5, 0.1, 0.9]]))
    critic = RewardCritic(discount=0.9)
    expected = 1.0 + 0.9 * 0.5 * 2.0 + 0.81 * 0.5 * 0.1 * 4.0
    torch.testing.assert_close(critic.value(futures, critic.score(futures)), torch.tensor([expected]))


def test_goal_score_is_the_share_of_matching_codes():
    codes = [torch.tensor([[[1, 2]]]), torch.tensor([[[5, 6, 7, 8]]])]
    critic = GoalCritic(codes={"camera": [torch.tensor([1, 0]), torch.tensor([5, 6, 0, 8])]})
    assert critic.score(SimpleNamespace(codes={"camera": codes})).item() == pytest.approx(4 / 6)


# --- Bad input


def test_wrong_settings_are_refused_with_what_to_do():
    world = GridWorld()
    with pytest.raises(ValueError, match="num_samples"):
        RandomShooting(num_samples=0)
    with pytest.raises(ValueError, match="temperature"):
        CEM(num_rollouts=4)
    with pytest.raises(ValueError, match="elite_fraction"):
        CEM(elite_fraction=0)
    with pytest.raises(ValueError, match="Use CEM"):
        GraphSearch().plan(PointWorld(), world.root(), RewardCritic())
    with pytest.raises(ValueError, match="2 rows"):
        GraphSearch().plan(world, world.root().select(torch.tensor([0, 0])), RewardCritic())
    with pytest.raises(ValueError, match="shape"):
        GraphSearch().plan(world, world.root(), lambda futures: futures.reward[:, 0])
    with pytest.raises(ValueError, match="on_surprise"):
        PanAgent(world, processor, RewardCritic(), GraphSearch(), replan="sometimes")


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: RandomShooting(horizon=0), "`horizon` must be a whole number of at least 1, got 0"),
        (lambda: RandomShooting(horizon="8"), "`horizon` must be a whole number of at least 1, got '8'"),
        (lambda: CEM(num_samples=2.5), "`num_samples` must be a whole number"),
        (lambda: CEM(temperature=-1.0), "CEM: `temperature` must be at least 0, a number; got -1.0"),
        (lambda: CEM(temperature=math.nan), "`temperature` must be at least 0, a number"),
        (lambda: CEM(temperature=None), "`temperature` must be at least 0, a number"),
        (lambda: CEM(elite_fraction=1.5), "`elite_fraction` must be above 0 and at most 1, a number"),
        (lambda: CEM(smoothing=math.nan), "`smoothing` must be at least 0 and at most 1, a number"),
        (lambda: CEM(initial_std=math.inf), "`initial_std` must be above 0, a number"),
        (lambda: GraphSearch(max_states=True), "`max_states` must be a whole number"),
        (lambda: GraphSearch(sampled_searches=-1), "`sampled_searches` must be a whole number of at least 0"),
        (lambda: RewardCritic(discount=0.0), "`discount` must be above 0 and at most 1, a number"),
        (lambda: RewardCritic(discount=1.01), "`discount` must be above 0 and at most 1, a number"),
        (lambda: RewardCritic(discount=math.nan), "`discount` must be above 0 and at most 1, a number"),
        (lambda: RewardCritic(threshold=math.nan), "`threshold` must be a number"),
        (lambda: GoalCritic(vectors={"at": PointWorld.target}, tolerance=-1.0), "`tolerance` must be"),
        (lambda: GraphSearch(actions=[-1]), "`actions` must be numbers or names of actions, got [-1]"),
        (lambda: GraphSearch(actions=0.5), "`actions` must be numbers or names of actions, got 0.5"),
        (lambda: GraphSearch(actions=""), "`actions` must be numbers or names of actions, got ''"),
        (lambda: RewardCritic(ends_episode="no"), "RewardCritic: `ends_episode` must be True or False, got 'no'"),
        (lambda: PolicyPlanner("policy", sampled="no"), "PolicyPlanner: `sampled` must be True or False, got 'no'"),
        (lambda: ReasonersSearch(len, settings=3), "`settings` are a dict by name, got 3"),
        (lambda: make_planners(3, GridWorld().config), "`planners` must be a list of strings, got 3"),
        (lambda: make_planners([3], GridWorld().config), "`planners` must be a list of strings, got [3]"),
        (lambda: make_planners(["cem", "cem"], GridWorld().config), "one is there twice"),
        (lambda: make_planners(["cem?horizon=3&horizon=4"], GridWorld().config), "'horizon' is given twice"),
        (lambda: make_planners(["cem?horizon=0"], GridWorld().config), "Planner 'cem?horizon=0': CEM: `horizon` must"),
        (lambda: make_planners(["cem?horizon=x"], GridWorld().config), "Planner 'cem?horizon=x': CEM: `horizon` must"),
        (lambda: make_planners(["cem?horizn=3"], GridWorld().config), "its settings are"),
        (lambda: PanAgent(GridWorld(), processor, RewardCritic(), GraphSearch(), patience=0), "`patience` must be"),
        (lambda: PanAgent(GridWorld(), processor, RewardCritic(), "cem"), "A planner has a method `plan`"),
        (lambda: PanAgent(GridWorld(), None, RewardCritic(), GraphSearch()), "`processor` must be the model's own"),
    ],
)
def test_nonsense_is_refused_when_it_is_built(build, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        build()


@pytest.mark.parametrize("planner", [RandomShooting(8, 3), CEM(8, 3, 2), GraphSearch()])
def test_no_plan_is_made_of_scores_that_are_not_numbers(planner):
    world = GridWorld()
    with pytest.raises(ValueError, match="returned NaN for .* imagined steps"):
        planner.plan(world, world.root(), not_a_number)
    with pytest.raises(ValueError, match="got list"):
        planner.plan(world, world.root(), lambda futures: futures.reward.tolist())


PLANNING = [
    GraphSearch(),
    RandomShooting(64, 4, batch_size=16),
    CEM(16, 4, 2),
    BeamSearch(),
    MCTS(rollout_steps=2, budget=200),
    StrategySearch(),
]


@pytest.mark.parametrize("planner", PLANNING)
@pytest.mark.parametrize("critic", [RewardCritic(), GoalCritic(codes={"camera": [torch.tensor([1, 1])]})])
def test_a_plan_says_how_often_and_how_far_its_world_was_imagined(planner, critic):
    world, steps = GridWorld("S..\n..G"), []
    inner = world.simulate

    def noting(belief, actions, **kwargs):
        steps.append(actions.numel())
        return inner(belief, actions, **kwargs)

    world.simulate = noting
    plan = planner.plan(world, world.root(), critic, generator=torch.Generator().manual_seed(0))
    assert (plan.num_calls, plan.num_simulated) == (len(steps), sum(steps)) and plan.num_calls > 0
    steps.clear()
    agent = PanAgent(world, processor, critic, planner)
    for _ in range(2):  # the second step surprises
        agent.act({"camera": np.array([0, 0])})
    assert (agent.statistics.num_calls, agent.statistics.num_simulated) == (len(steps), sum(steps))


# --- A goal that everything reaches


@pytest.mark.parametrize("planner", [RandomShooting(8, 6), CEM(8, 6, 2)])
def test_a_plan_is_as_long_as_its_horizon_where_every_step_is_paid(planner):
    world = GridWorld("S....\n.....")
    world.simulate = _with(world.simulate, continue_prob=1.0, reward=1.0)
    plan = planner.plan(world, world.root(), RewardCritic())
    assert len(plan) == 6 and not plan.reaches_goal


def test_a_search_claims_no_goal_where_every_action_is_paid():
    world = GridWorld("S..")
    world.simulate = _with(world.simulate, continue_prob=1.0, reward=1.0)
    for depth in (1, 3):
        plan = GraphSearch(max_depth=depth).plan(world, world.root(), RewardCritic())
        assert not plan.reaches_goal and plan.num_simulated == len(MOVES)  # no search: there is nothing to find


# --- Names, and several parts


def test_a_plan_prints_in_one_line_with_the_names_of_its_actions():
    world = GridWorld()
    world.config.action = DiscreteAction(5, names=["up", "down", "left", "right", "stay"])
    plan = GraphSearch(actions=["down", "right", "up"]).plan(world, world.root(), RewardCritic())
    assert plan.names == ["down"] * 4 + ["right"] * 3 + ["up"] * 4
    assert repr(plan).startswith("Plan(11 actions: down, down, down, down, right,") and len(repr(plan)) < 200
    assert repr(GraphSearch().plan(GridWorld(), world.root(), RewardCritic())).startswith("Plan(11 actions: 1, 1")
    with pytest.raises(ValueError, match="named .*'up'.* got 'jump'"):
        GraphSearch(actions=["jump"]).plan(world, world.root(), RewardCritic())


@pytest.mark.parametrize("planner", [GraphSearch(), CEM(200, 4, 6), RandomShooting(2000, 3)])
def test_planners_move_several_parts_at_once(planner):
    world = TwoWalkers("S.G")
    critic = RewardCritic(threshold=2.0)  # both have arrived
    plan = planner.plan(world, world.root(), critic, generator=torch.Generator().manual_seed(0))
    assert plan.reaches_goal and set(plan.actions.parts) == {"first", "second"}
    assert plan.names[-1].split("+") == ["right", "right"]


def test_one_actor_s_reward_can_be_wanted_alone():
    world = TwoWalkers("S.G")
    plan = GraphSearch().plan(world, world.root(), RewardCritic(actor="second"))
    assert len(plan) == 2 and plan.actions.parts["second"].tolist() == [3, 3]
    with pytest.raises(ValueError, match="rewards .*'first', 'second'.*, not 'third'"):
        GraphSearch().plan(world, world.root(), RewardCritic(actor="third"))


# --- Actions that are not allowed now


@pytest.mark.parametrize("planner", [GraphSearch(), CEM(64, 3, 3), RandomShooting(64, 3)])
def test_a_plan_begins_with_an_action_that_is_allowed(planner):
    world = GridWorld("S.G\n...")
    plan = planner.plan(world, world.root(), RewardCritic(), mask=[0, 1, 0, 0, 0])
    assert plan.actions[0] == 1
    for mask, said in (([0] * 5, "allows no action"), ([1, 1], "'action' does not fit: expected 5 numbers of 0 or 1")):
        with pytest.raises(ValueError, match=said):
            planner.plan(world, world.root(), RewardCritic(), mask=mask)


@pytest.mark.parametrize("planner", [CEM(64, 6, 3), RandomShooting(200, 6)])
def test_an_imagined_mask_cuts_a_plan_before_what_it_forbids(planner):
    world = MaskedWorld("S..\n...\n..G")
    world.goal[:] = False  # so that only the mask can end a plan
    plan = planner.plan(
        world, world.root(), lambda futures: -futures.reward + 1, generator=torch.Generator().manual_seed(0)
    )
    cells = world.start
    for number, action in enumerate(plan.actions.tolist()):
        assert number == 0 or world.mask(cells)[0, action], "each action after the first is allowed where it is taken"
        cells = world.step(cells, torch.tensor([action]))


def test_a_search_tries_what_is_allowed_in_imagined_states():
    world = MaskedWorld("S.G")
    plan = GraphSearch(sampled_searches=0).plan(world, world.root(), RewardCritic(), mask=world.mask(world.start)[0])
    assert plan.reaches_goal and len(plan) == 2
    for cells, actions in world.tried[:-1]:  # the last call confirms the whole plan
        assert world.mask(cells).gather(1, actions).all()


# what takes several steps


def test_returns_are_discounted_by_the_steps_that_have_gone_by():
    scores = torch.tensor([[1.0, 0.0, 4.0], [0.0, 2.0, 0.0]])
    futures = SimpleNamespace(reward=scores, continue_prob=torch.ones(2, 3))
    critic = RewardCritic(discount=0.5)
    assert critic.value(futures, scores).tolist() == [1 + 4 / 4, 2 / 2]
    futures.elapsed = torch.tensor([[0, 3, 4], [0, 1, 2]])  # the first transition of row 0 took three steps
    assert critic.value(futures, scores).tolist() == [1 + 4 / 16, 2 / 2]


def test_a_search_discounts_a_goal_by_the_steps_that_lead_there():
    class Slow(GridWorld):
        """Every action takes two steps."""

        def simulate(self, *args, **kwargs):
            futures = super().simulate(*args, **kwargs)
            futures.duration = torch.full(futures.reward.shape, 2)
            return futures

    plans = [GraphSearch().plan(world, world.root(), RewardCritic(discount=0.9)) for world in (GridWorld(), Slow())]
    assert [len(plan) for plan in plans] == [11, 11]
    assert plans[0].expected_return == pytest.approx(0.9**10)
    assert plans[1].expected_return == pytest.approx(0.9**20)
