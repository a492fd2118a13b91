"""Searches over outcomes, and strategies, in mazes whose right answers are known."""

import re
from types import SimpleNamespace

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
from pan_hf.agents.critics import FunctionCritic, GoalCritic, RewardCritic
from pan_hf.agents.graph_search import GraphSearch
from pan_hf.agents.mcts import MCTS
from pan_hf.agents.plan import Contradicted
from pan_hf.agents.registry import PLANNERS, make_planners
from pan_hf.agents.strategy import Strategy
from pan_hf.agents.strategy_search import StrategySearch
from pan_hf.modeling import DiscreteAction, VectorAction

SEARCHES = [MCTS(), StrategySearch()]
generator = torch.Generator


class WindyWorld(GridWorld):
    """A maze in which an action is not carried out with probability `slip`: the walker stays; `~` are cells in which
    it may slip, `!` are traps that end the episode."""

    def __init__(self, maze, slip=0.3, says_chances=True):
        super().__init__(maze.replace("~", ".").replace("!", "."))
        rows = maze.split()
        self.slippery = torch.tensor([[mark == "~" for mark in row] for row in rows])
        self.trap = torch.tensor([[mark == "!" for mark in row] for row in rows])
        self.slip, self.says_chances, self.temperatures = slip, says_chances, []

    def is_slippery(self, cells):
        return self.slippery[cells[:, 0], cells[:, 1]]

    def outcomes(self, cells, actions):
        """The two places `(N, 2)` that may follow, the likely one first, and the chance of the first."""
        return self.step(cells, actions), cells, torch.where(self.is_slippery(cells), 1 - self.slip, 1.0)

    def simulate(self, belief, actions, num_rollouts=1, temperature=1.0, seed=None):
        self.calls += 1
        self.temperatures.append(temperature)
        draws = torch.Generator().manual_seed(seed or 0)
        cells, visited, chances = belief.cells, [], []
        for step in actions.T:
            first, second, chance = self.outcomes(cells, step)
            takes = torch.rand(len(cells), generator=draws) < chance if temperature else chance >= 0.5
            cells = torch.where(takes[:, None], first, second)
            same = (first == second).all(1)
            chances.append(torch.where(same, 1.0, torch.where(takes, chance, 1 - chance)))
            visited.append(cells)
        visited = torch.stack(visited, 1)
        reward = self.goal[visited[..., 0], visited[..., 1]].float()
        trapped = self.trap[visited[..., 0], visited[..., 1]].float()
        futures = SimpleNamespace(
            reward=reward - trapped,
            continue_prob=1 - reward - trapped,
            belief=GridBelief(cells),
            codes={"camera": [visited]},
            keys=lambda: [[bytes(cell) for cell in row] for row in visited.tolist()],
        )
        if self.says_chances:
            futures.log_prob = torch.stack(chances, 1).log()
        return futures


# --- Worlds without chance


@pytest.mark.parametrize("planner", SEARCHES)
def test_a_search_over_outcomes_finds_a_shortest_way_that_graph_search_finds(planner):
    world = GridWorld()
    plan = planner.plan(world, world.root(), RewardCritic(), generator=generator().manual_seed(0))
    assert len(plan) == 11 and plan.reaches_goal and plan.chance == 1
    assert carry_out(world, plan.actions) == (0, 3) and plan.states[-1] == bytes([0, 3])
    assert plan.expected_return == pytest.approx(0.99**10, abs=1e-4)


@pytest.mark.parametrize("planner", [MCTS(temperature=0), StrategySearch(temperature=0)])
def test_a_world_without_a_goal_is_searched_to_its_end_and_no_further(planner):
    world = GridWorld("S.#.\n..#.\n....")
    plan = planner.plan(world, world.root(), lambda futures: futures.reward)
    assert plan.num_simulated == 10 * 5  # free cells x actions: each once, then all is closed
    assert plan.num_folded == 10 * 5 - 9 and not plan.reaches_goal


def test_a_batch_of_leaves_is_one_simulate_call():
    calls = {}
    for size in (1, 16):
        world = GridWorld()
        MCTS(batch_size=size, temperature=0, enough=2).plan(world, world.root(), lambda futures: futures.reward)
        calls[size] = world.calls
    assert calls[1] == 20 * 5 and calls[16] < calls[1] / 4


@pytest.mark.parametrize("planner", [MCTS(budget=20, batch_size=4), StrategySearch(budget=20, batch_size=4)])
def test_the_budget_is_kept_but_for_the_last_batch(planner):
    world = GridWorld()
    plan = planner.plan(world, world.root(), RewardCritic(), generator=generator().manual_seed(0))
    assert not plan.reaches_goal and 20 <= plan.num_simulated <= 30 and len(plan) >= 1


def test_a_goal_that_is_not_confirmed_from_the_root_is_passed_over():
    world = GridWorld(lies=[(1, 1), (3, 1)])
    for planner in SEARCHES:
        plan = planner.plan(world, world.root(), RewardCritic())
        assert plan.reaches_goal and carry_out(world, plan.actions) == (0, 3)


def test_plans_keep_away_from_what_the_world_has_refuted():
    world = GridWorld("S.G\n...")
    root = world.root().keys()[0]
    for planner in SEARCHES:
        around = planner.plan(world, world.root(), RewardCritic(), refuted=Contradicted(transitions={(root, 3)}))
        assert len(around) == 4 and around.actions[0] == 1
        other = planner.plan(world, world.root(), RewardCritic(), refuted=Contradicted(goals={(bytes([0, 1]), 3)}))
        assert other.reaches_goal and other.actions.tolist()[-1] == 0
        everything = Contradicted(transitions={(root, action) for action in range(5)})
        assert planner.plan(world, world.root(), RewardCritic(), refuted=everything).reaches_goal


@pytest.mark.parametrize("planner", SEARCHES)
def test_a_function_s_best_state_is_gone_to(planner):
    world = GridWorld("S.#G\n..#.\n..#.")
    target = torch.tensor([0, 3])
    critic = FunctionCritic(function=lambda futures: -(futures.codes["camera"][0] - target).abs().sum(-1).float())
    plan = planner.plan(world, world.root(), critic)
    assert not plan.reaches_goal and carry_out(world, plan.actions) == (0, 1)


def test_a_goal_observation_is_reached():
    world = GridWorld()
    critic = GoalCritic(codes={"camera": [torch.tensor([4, 4])]})
    for planner in SEARCHES:
        plan = planner.plan(world, world.root(), critic)
        assert plan.reaches_goal and len(plan) == 8 and carry_out(world, plan.actions) == (4, 4)


def test_a_search_claims_no_goal_where_every_action_is_paid():
    world = GridWorld("S..")
    world.simulate = _with(world.simulate, continue_prob=1.0, reward=1.0)
    for planner in SEARCHES:
        assert not planner.plan(world, world.root(), RewardCritic()).reaches_goal


def test_several_parts_are_moved_at_once_and_masks_are_kept():
    world = TwoWalkers("S.G")
    for planner in SEARCHES:
        plan = planner.plan(world, world.root(), RewardCritic(threshold=2.0), generator=generator().manual_seed(0))
        assert plan.reaches_goal and plan.names == ["right+right"] * 2
        masked = GridWorld("S.G\n...")
        assert planner.plan(masked, masked.root(), RewardCritic(), mask=[0, 1, 0, 0, 0]).actions[0] == 1
        with pytest.raises(ValueError, match="allows no action"):
            planner.plan(masked, masked.root(), RewardCritic(), mask=[0] * 5)


def test_only_actions_are_tried_that_the_imagined_mask_allows():
    world = MaskedWorld("S.G")
    plan = MCTS(temperature=0, batch_size=1).plan(world, world.root(), RewardCritic(), mask=world.mask(world.start)[0])
    assert plan.reaches_goal and len(plan) == 2
    for cells, actions in world.tried[:-1]:  # the last call confirms the whole plan
        assert world.mask(cells).gather(1, actions).all()


def test_a_prior_says_what_is_tried_first():
    world = GridWorld("." * 6 + "\n" + "S....G\n" + "." * 6)
    right = MCTS(batch_size=1, prior=lambda beliefs: torch.eye(5)[torch.full((len(beliefs),), 3)] + 0.01)
    spent = [
        planner.plan(world, world.root(), RewardCritic()).num_simulated for planner in (right, MCTS(batch_size=1))
    ]
    assert spent[0] < spent[1] / 2
    with pytest.raises(ValueError, match="`prior` must return"):
        MCTS(prior=lambda beliefs: torch.ones(3)).plan(world, world.root(), RewardCritic())


def test_the_first_way_that_is_sure_enough_is_taken_and_a_shorter_one_where_none_is_enough():
    world = GridWorld("S...G\n.....")
    detour = {(0, 0): 1, (1, 4): 0} | {(1, column): 3 for column in range(4)}  # down, right, and up again

    def prior(beliefs):
        wanted = torch.tensor([detour.get(tuple(cell), 4) for cell in beliefs.cells.tolist()])
        return torch.nn.functional.one_hot(wanted, 5) + 0.01

    lengths = [
        len(MCTS(batch_size=1, prior=prior, enough=enough).plan(world, world.root(), RewardCritic()))
        for enough in (0.9, 2)
    ]
    assert lengths == [6, 4]


def test_rollouts_tell_a_state_s_worth_before_it_is_expanded():
    world = GridWorld("S.........G")
    critic = FunctionCritic(function=lambda futures: futures.codes["camera"][0][..., 1].float() / 10)
    plan = MCTS(budget=400, batch_size=2, rollout_steps=4, actions=[2, 3]).plan(
        world, world.root(), critic, generator=generator().manual_seed(0)
    )
    assert carry_out(world, plan.actions)[1] >= 4


# --- Worlds with chance

# the short way leads past a trap: a slip before it is harmless, and the long way has none
RIVER = """
S~~G
"""


@pytest.mark.parametrize("says_chances", [True, False])
@pytest.mark.parametrize("planner", [MCTS(num_outcomes=16), StrategySearch(num_outcomes=16)])
def test_a_strategy_has_an_answer_to_every_outcome_that_was_met(planner, says_chances):
    world = WindyWorld(RIVER, slip=0.4, says_chances=says_chances)
    plan = planner.plan(world, world.root(), RewardCritic(), generator=generator().manual_seed(0))
    assert isinstance(plan, Strategy) and plan.actions.tolist() == [3, 3, 3] and plan.reaches_goal
    assert plan.num_branches == 2 and plan.chance > 0.9
    stayed = plan.branch(2, bytes([0, 1]))
    assert stayed.actions.tolist() == [3, 3] and stayed.states == [bytes([0, 2]), bytes([0, 3])]
    assert plan.branch(1, bytes([0, 0])) is None  # nobody slips there
    if says_chances:  # of 2 steps that succeed with probability 0.6: sum of the discount over waiting times
        step = 0.6 * 0.99 / (1 - 0.4 * 0.99)
        assert plan.expected_return == pytest.approx(0.99 * step * step / 0.99, abs=2e-3)


class Bridge(WindyWorld):
    """From a bridge (`~`) one is blown down into a trap."""

    def outcomes(self, cells, actions):
        first = self.step(cells, actions)
        return (
            first,
            torch.where(self.is_slippery(cells)[:, None], cells + torch.tensor([1, 0]), first),
            torch.where(self.is_slippery(cells), 1 - self.slip, 1.0),
        )


BRIDGE = """
.....
S~~.G
!!!!!
"""


@pytest.mark.parametrize("planner", [MCTS(num_outcomes=8, enough=0.99), StrategySearch(num_outcomes=8, enough=0.99)])
def test_the_safe_way_is_taken_though_the_likely_future_of_the_short_one_succeeds(planner):
    world = Bridge(BRIDGE, slip=0.3)
    likely = GraphSearch().plan(world, world.root(), RewardCritic())
    assert likely.actions.tolist() == [3, 3, 3, 3]
    plan = planner.plan(world, world.root(), RewardCritic(), generator=generator().manual_seed(0))
    assert plan.actions[0] == 0 and len(plan) == 6 and plan.chance == 1


def test_an_action_whose_likely_outcome_is_certain_is_imagined_once():
    world = WindyWorld("S.G")
    plan = MCTS().plan(world, world.root(), RewardCritic())
    assert set(world.temperatures) == {0.0} and plan.chance == 1
    unsaid = WindyWorld("S.G", says_chances=False)
    MCTS(num_outcomes=3, enough=2).plan(unsaid, unsaid.root(), RewardCritic())
    assert 1.0 in unsaid.temperatures


# --- The agent follows a strategy


class SlippingWalk:
    """Carries an agent out in a world in which it slips at given steps."""

    def __init__(self, world, slips):
        self.world, self.slips = world, slips

    def __call__(self, agent, limit=30):
        cells = self.world.start
        for step in range(limit):
            action = agent.act({"camera": cells[0].numpy()}, 0.0)
            cells = cells if step in self.slips else self.world.step(cells, torch.tensor([action]))
            if self.world.goal[tuple(cells[0])]:
                return step + 1
        return limit


@pytest.mark.parametrize("planner", [MCTS(num_outcomes=16), StrategySearch(num_outcomes=16)])
@pytest.mark.parametrize("replan", ["on_surprise", "at_end"])
def test_an_agent_follows_a_strategy_through_a_surprise_without_planning_again(planner, replan):
    world = WindyWorld(RIVER, slip=0.4)
    agent = PanAgent(world, processor, RewardCritic(), planner, replan=replan)
    assert SlippingWalk(world, slips={1, 2, 4})(agent) == 6
    told = agent.statistics
    assert (told.replans, told.surprises, told.followed, told.repairs) == (1, 3, 3, 0)


def test_an_outcome_that_no_strategy_foresaw_is_planned_from():
    world = WindyWorld(RIVER + "....", slip=0.4)
    agent = PanAgent(world, processor, RewardCritic(), MCTS(num_outcomes=16))
    for cell in ([0, 0], [1, 1]):
        agent.act({"camera": torch.tensor(cell).numpy()})
    assert (agent.statistics.followed, agent.statistics.surprises) == (0, 1)


def test_a_foreseen_outcome_that_comes_too_often_refutes_the_model():
    world, model = GridWorld("S#G\n..."), WindyWorld("~.G\n...".replace("~", "S"), slip=0.1)
    model.slippery[0, 0] = True
    agent = PanAgent(model, processor, RewardCritic(), MCTS(num_outcomes=64, coverage=1.0))
    steps, cell = walk(agent, world)
    assert cell == (0, 2) and steps <= 10


def test_chances_that_are_right_are_never_refuted():
    world = WindyWorld("S" + "~" * 3 + "G", slip=0.4)
    agent = PanAgent(world, processor, RewardCritic(), MCTS(num_outcomes=16))
    draws = torch.Generator().manual_seed(0)
    for _ in range(20):
        agent.reset()
        slips = {step for step in range(60) if torch.rand((), generator=draws) < 0.4 and step}
        assert SlippingWalk(world, slips)(agent, 60) < 60
        assert not agent._refuted.transitions or agent.statistics.surprises > 5


# --- By name, and bad input


def test_searches_are_found_by_name_and_say_what_they_cannot_take_when_they_are_built():
    config = GridWorld().config
    made = make_planners(["mcts?exploration=2&num_outcomes=3", "strategy?budget=10"], config)
    assert list(made.values()) == [MCTS(exploration=2, num_outcomes=3), StrategySearch(budget=10)]
    numbers = PointWorld().config
    for name in ("mcts", "strategy"):
        with pytest.raises(ValueError, match=f"{PLANNERS[name].__name__} tries every action.*'vector'"):
            make_planners([name], numbers)
    with pytest.raises(ValueError, match="tries every action"):
        PanAgent(PointWorld(), processor, RewardCritic(), MCTS())
    mixed = SimpleNamespace(actions={"a": DiscreteAction(2), "b": VectorAction(dim=1)})
    with pytest.raises(ValueError, match="tries every action"):
        make_planners(["mcts"], mixed)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: MCTS(budget=0), "MCTS: `budget` must be a whole number of at least 1, got 0"),
        (lambda: MCTS(coverage=0), "`coverage` must be above 0"),
        (lambda: MCTS(exploration=-1), "`exploration` must be at least 0"),
        (lambda: MCTS(widening=2), "`widening` must be at least 0 and at most 1"),
        (lambda: MCTS(prior=3), "`prior` must be a function"),
        (lambda: MCTS(actions=()), "`actions` must be numbers or names"),
        (lambda: StrategySearch(temperature=float("nan")), "`temperature` must be at least 0"),
        (lambda: StrategySearch(key_levels=0), "`key_levels` must be a whole number"),
    ],
)
def test_nonsense_is_refused_when_it_is_built(build, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        build()


def test_no_strategy_is_made_of_scores_that_are_not_numbers():
    world = GridWorld()
    for planner in SEARCHES:
        with pytest.raises(ValueError, match="returned NaN for .* imagined steps"):
            planner.plan(world, world.root(), not_a_number)


@pytest.mark.parametrize(
    "critic",
    [
        RewardCritic(discount=0.9),
        FunctionCritic(function=lambda f: f.reward, discount=0.9),
        GoalCritic(vectors={"at": torch.zeros(2)}, discount=0.9),
    ],
)
def test_a_value_is_its_steps_combined_from_the_last_to_the_first(critic):
    draws = torch.Generator().manual_seed(0)
    scores = torch.rand((3, 5), generator=draws)
    futures = SimpleNamespace(reward=scores, continue_prob=torch.rand((3, 5), generator=draws))
    if isinstance(critic, GoalCritic):  # takes the best step, whatever the chance to get there
        futures.continue_prob = torch.ones(3, 5)
    for row, value in enumerate(critic.value(futures, scores).tolist()):
        after = 0.0
        for step in reversed(range(5)):
            after = float(critic.combine(float(scores[row, step]), after))
            after *= 0.9 * float(futures.continue_prob[row, step - 1]) if step else 1.0
        assert after == pytest.approx(value, rel=1e-5)


# --- A model


@pytest.mark.parametrize(
    "planner", [MCTS(budget=60, batch_size=8, rollout_steps=2), StrategySearch(budget=60, batch_size=8)]
)
@pytest.mark.parametrize("context_steps", [1, 3])
def test_a_model_s_beliefs_are_searched_whatever_they_remember(planner, context_steps):
    model = world_model(context_steps=context_steps)
    belief = model.perceive(observe(model, batch=1))
    plans = [planner.plan(model, belief, RewardCritic(), generator=generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(plans[0].actions, plans[1].actions) and plans[0].expected_return == plans[1].expected_return
    assert len(plans[0].decisions) >= 1 and all(0 < sum(each.outcomes.values()) < 1.001 for each in plans[0].decisions)
    futures = model.simulate(belief, plans[0].actions[None, :1], temperature=0.0)
    steps = {} if context_steps == 1 else {"steps": 0}
    assert futures.keys(**steps)[0][0] in plans[0].decisions[0].outcomes


def test_a_way_that_leads_back_is_followed_only_where_it_may_reach_the_goal():
    world = WindyWorld("S~G", slip=0.6)  # the likely outcome is to stay
    agent = PanAgent(world, processor, RewardCritic(), MCTS(num_outcomes=16))
    assert SlippingWalk(world, slips={1, 2, 3})(agent) == 5
    assert agent.statistics.replans == 1 and agent.statistics.followed >= 3
    world = WindyWorld("S..")  # nothing to reach: what it does is planned anew, not repeated for ever
    agent = PanAgent(world, processor, RewardCritic(), MCTS(num_outcomes=16))
    SlippingWalk(world, slips=set())(agent, limit=8)
    assert agent.statistics.followed == 0 and agent.statistics.replans > 1


class Leak(WindyWorld):
    """Who walks against the wall at the start is now and then at the goal."""

    def outcomes(self, cells, actions):
        first, at_start = self.step(cells, actions), (cells == torch.tensor([0, 0])).all(1)
        leaks = at_start & (first == cells).all(1)
        goal = self.goal.nonzero()[0].expand_as(cells)
        return first, torch.where(leaks[:, None], goal, first), torch.where(leaks, 0.95, 1.0)


def test_a_circle_from_which_a_rare_outcome_leads_to_the_goal_is_no_way():
    world = Leak("S" + "." * 6 + "G")
    first = torch.tensor([20.0, 1, 1, 1, 1])  # the circle is looked at before all else
    planner = MCTS(widening=1.0, num_outcomes=1000, prior=lambda beliefs: first.expand(len(beliefs.cells), 5))
    plan = planner.plan(world, world.root(), RewardCritic(), generator=generator().manual_seed(0))
    assert plan.actions.tolist() == [3] * 7 and plan.chance == 1


def test_a_strategy_whose_time_is_over_is_planned_anew():
    world = WindyWorld("S~G", slip=0.6)
    agent = PanAgent(world, processor, RewardCritic(), MCTS(num_outcomes=16))
    SlippingWalk(world, slips=set(range(1, 20)))(agent, limit=12)  # the goal never comes
    assert agent.statistics.replans > 1 and agent.statistics.followed >= 6
