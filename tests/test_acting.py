"""The agent: when it follows a plan, plans anew, and what it says of what it is given."""

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mazes import (
    DOOR,
    DoubtingWorld,
    GridBelief,
    GridWorld,
    TwoWalkers,
    _with,
    processor,
    walk,
)

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.agent import PanAgent
from pan_hf.agents.critics import FunctionCritic, RewardCritic
from pan_hf.agents.graph_search import GraphSearch
from pan_hf.agents.mcts import MCTS
from pan_hf.agents.seen import perceive
from pan_hf.agents.shooting import RandomShooting
from pan_hf.agents.strategy_search import StrategySearch
from pan_hf.modeling import DiscreteAction, VectorAction, VectorSense
from pan_hf.modeling.state_pan import State


def test_an_agent_tries_a_door_that_its_model_doubts():
    world, model = GridWorld(DOOR.replace("S.#", "S..")), DoubtingWorld(DOOR, (0, 2))
    agent = PanAgent(model, processor, RewardCritic(), GraphSearch(sampled_searches=50))
    assert walk(agent, world) == (4, (0, 4))


def test_an_agent_does_several_things_at_once():
    world = TwoWalkers("S.G")
    world.config.context_steps = 2  # so that the actions between observations are given, too
    agent = PanAgent(world, processor, RewardCritic(threshold=2.0), GraphSearch(), replan="at_end")
    taken = [agent.act({"camera": np.array(cells)}) for cells in ([0, 0, 0, 0], [0, 1, 0, 1])]
    assert taken == [{"first": 3, "second": 3}] * 2


def test_an_agent_plans_anew_where_its_next_action_is_not_allowed():
    world = GridWorld("S.G\n...")
    agent = PanAgent(world, processor, RewardCritic(), GraphSearch())
    assert agent.act({"camera": np.array([0, 0])}) == 3
    assert agent.act({"camera": np.array([0, 1])}, mask=[1, 1, 1, 0, 1]) == 1
    assert agent.act({"camera": np.array([1, 1]), "action_mask": [0, 0, 0, 1, 0]}) == 3
    assert (agent.statistics.replans, agent.statistics.surprises) == (2, 0)


# --- What the agent cannot see, and what lies outside its range


class PartlySeen(GridWorld):
    """A maze of which the present state has codes, as a real model's has."""

    def __init__(self, maze):
        super().__init__(maze)
        self.config.senses["touch"] = VectorSense(dim=1, low=-1.0, high=1.0)

    def perceive(self, observation, action=None):
        cells = observation["camera"]
        cells = torch.full((1, 2), -1) if cells is None else torch.as_tensor(cells)[:, -1]
        return StatefulBelief(cells)

    def simulate(self, *args, **kwargs):
        futures = super().simulate(*args, **kwargs)
        futures.belief = StatefulBelief(futures.belief.cells)
        return futures


@dataclass
class StatefulBelief(GridBelief):
    cells: torch.Tensor = None
    state: State = None

    def __post_init__(self):
        if self.state is None:
            self.state = State({"camera": [self.cells], "touch": [self.cells[:, :1]]})
        self.cells = self.state.codes["camera"][0]

    def select(self, index):
        return StatefulBelief(self.cells[index])

    @staticmethod
    def cat(beliefs):
        return StatefulBelief(torch.cat([belief.cells for belief in beliefs]))


@pytest.mark.parametrize(("planner", "replan"), [(GraphSearch(), "on_surprise"), (RandomShooting(400, 6), "always")])
def test_what_is_absent_is_no_surprise_and_is_believed_as_imagined(planner, replan):
    world = PartlySeen("S...G")
    agent = PanAgent(world, processor, RewardCritic(), planner, replan=replan)
    cells, seen = world.start, [True, False, False, True]
    for is_seen in seen:
        camera = cells[0].numpy() if is_seen else None
        action = agent.act({"camera": camera, "touch": np.zeros(1, np.float32)})
        cells = world.step(cells, torch.tensor([action]))
    assert tuple(cells[0].tolist()) == (0, 4), "two blind steps go on where the agent believes to be"
    assert agent.statistics.surprises == 0


def test_a_vector_outside_the_range_is_clipped_counted_and_said_once():
    world = PartlySeen("S...G")
    agent = PanAgent(world, processor, RewardCritic(), GraphSearch())
    with pytest.warns(UserWarning, match=r"touch\[0\] is 3, and the model was built for -1 to 1") as told:
        for column, touch in enumerate((3.0, -2.0, 1.0005)):  # the last is rounding
            agent.act({"camera": np.array([0, column]), "touch": np.array([touch])})
    assert len(told) == 1 and agent.statistics.clipped == 2
    assert agent.observations[-1]["touch"] == 1.0005


@pytest.mark.parametrize("fails", ["processor", "critic", "planner"])
def test_an_agent_that_refuses_is_as_it_was_before(fails):
    world = GridWorld()
    agent = PanAgent(world, processor, RewardCritic(), GraphSearch(), replan="always")
    agent.act({"camera": np.array([0, 0])})
    kept = {
        name: copy.deepcopy(value) for name, value in vars(agent).items() if name in ("statistics", "observations")
    }
    position, plan, state = agent._position, agent.plan, agent.generator.get_state()

    def refuse(*args, **kwargs):
        agent.generator.manual_seed(99)
        raise ValueError("no")

    broken = {"processor": refuse, "critic": FunctionCritic(function=refuse), "planner": SimpleNamespace(plan=refuse)}
    working = getattr(agent, fails)
    setattr(agent, fails, broken[fails])
    with pytest.raises(ValueError, match="no"):
        agent.act({"camera": np.array([1, 0])})
    assert agent.statistics == kept["statistics"] and len(agent.observations) == len(kept["observations"])
    assert (agent._position, agent.plan) == (position, plan) and torch.equal(agent.generator.get_state(), state)
    setattr(agent, fails, working)
    assert agent.act({"camera": np.array([1, 0])}) == 1


@pytest.mark.parametrize(("replan", "replans"), [("on_surprise", 1), ("at_end", 1), ("always", 11)])
def test_a_plan_is_kept_while_the_world_does_what_was_imagined(replan, replans):
    world = GridWorld()
    agent = PanAgent(world, processor, RewardCritic(), GraphSearch(), replan=replan)
    assert walk(agent, world) == (11, (0, 3))
    assert agent.statistics.replans == replans
    assert agent.statistics.decisions == 11 and agent.statistics.surprises == 0
    assert agent.statistics.seconds > 0


def test_an_agent_stops_walking_into_a_door_that_only_its_model_believes_in():
    world, model = GridWorld(), GridWorld(hidden_doors=[(0, 2)])
    agent = PanAgent(model, processor, RewardCritic(), GraphSearch(), patience=2)
    steps, cell = walk(agent, world)
    assert cell == (0, 3)
    assert agent.statistics.surprises == 2
    assert steps == 1 + 2 + (4 + 2 + 4)  # to the door, two tries, then down, across and up


def test_a_surprise_that_does_not_spoil_the_plan_keeps_it():
    world = GridWorld("S..G\n...G\n....")
    agent = PanAgent(world, processor, RewardCritic(), GraphSearch())
    seen = [agent.act({"camera": np.array(cell)}) for cell in ([0, 0], [1, 1], [1, 2])]  # blown down in the first step
    assert seen == [3, 3, 3]
    assert (agent.statistics.surprises, agent.statistics.repairs, agent.statistics.replans) == (1, 1, 1)
    agent.reset()
    for cell in ([0, 0], [2, 1]):  # blown to where going right misses the goal
        agent.act({"camera": np.array(cell)})
    assert (agent.statistics.surprises, agent.statistics.repairs, agent.statistics.replans) == (1, 0, 2)


def test_an_agent_that_is_told_the_reward_leaves_an_imagined_goal():
    world = GridWorld()
    model = GridWorld()
    model.goal[1, 0] = True  # the model is sure that a cell beside the start is rewarded
    model.simulate = _with(model.simulate, continue_prob=1.0)
    agent = PanAgent(model, processor, RewardCritic(), GraphSearch(), patience=1)
    assert walk(agent, world)[1] == (0, 3)


def promises(model, world, planner, limit=12):
    """Carries an agent out and tells what became of each goal that an action was to reach; and its statistics."""
    agent = PanAgent(model, processor, RewardCritic(), planner)
    cells, reward, told = world.start, 0.0, []
    for _ in range(limit):
        action = agent.act({"camera": cells[0].numpy()}, reward)
        cells = world.step(cells, torch.tensor([action]))
        reward = float(world.goal[tuple(cells[0])])
        told.append(agent.keeps_promise({"camera": cells[0].numpy()}, reward, bool(reward)))
        if reward:
            break
    return told, agent.statistics


@pytest.mark.parametrize("planner", [GraphSearch(), MCTS(budget=300), StrategySearch(budget=300)])
def test_a_goal_that_was_expected_is_looked_for_once_the_last_action_is_done(planner):
    world = GridWorld("S.G\n...")
    told, statistics = promises(world, world, planner)
    assert told == [None, True] and (statistics.promised, statistics.broken) == (1, 0)
    assert statistics.claims >= 1 and statistics.refused == 0


def test_a_goal_that_was_only_imagined_is_a_broken_promise_and_one_refused_is_counted():
    told, statistics = promises(GridWorld("S..G"), GridWorld("S..."), GraphSearch(sampled_searches=0), limit=3)
    assert told[:3] == [None, None, False] and statistics.broken == 1
    _, statistics = promises(GridWorld("S..G", lies=[(0, 2)]), GridWorld("S..G"), GraphSearch())
    assert (statistics.claims - statistics.refused, statistics.promised, statistics.broken) == (1, 1, 0)
    assert statistics.refused == 3  # the lie is met from its left, and by two actions that stay there


def test_looking_for_the_goal_changes_nothing_that_an_agent_does():
    seen, results = {"camera": np.array([0, 1])}, []
    for looks in (True, False):
        agent = PanAgent(GridWorld("S.G\n..."), processor, RewardCritic(), GraphSearch())
        agent.act({"camera": np.array([0, 0])})
        agent.act(seen)
        if looks:
            agent.keeps_promise({"camera": np.array([1, 2])}, 0.0, False)
        results.append((agent.act({"camera": np.array([1, 2])}, 0.0), agent.statistics.surprises))
    assert results[0] == results[1]


def test_sampled_plans_are_checked_for_surprise_one_step_ahead():
    world, model = GridWorld("S#G\n..."), GridWorld("S.G\n...")
    agent = PanAgent(model, processor, RewardCritic(), RandomShooting(400, 5))
    assert walk(agent, world, limit=40)[1] == (0, 2) or agent.statistics.surprises > 0


def test_reset_forgets_the_episode():
    world = GridWorld()
    agent = PanAgent(world, processor, RewardCritic(), GraphSearch())
    first = walk(agent, world)
    agent.reset()
    assert agent.statistics.decisions == 0 and agent.plan is None
    assert walk(agent, world) == first


def test_a_missing_sense_is_named():
    world = GridWorld()
    agent = PanAgent(world, processor, RewardCritic(), GraphSearch())
    with pytest.raises(ValueError, match=r"lacks the model's senses \['camera'\]; it has \['picture'\]"):
        agent.act({"picture": np.zeros(2)})


@pytest.mark.parametrize(
    ("later", "said"),
    [(np.zeros(3), r"shape, got \(2,\), \(3,\)"), ([[1], 2], "no array"), (torch.zeros(2).bfloat16(), "no array")],
)
def test_a_step_that_does_not_fit_those_before_names_its_sense(later, said):
    world = GridWorld()
    with pytest.raises(ValueError, match=f"'camera': .*{said}"):
        perceive(world, processor, [{"camera": np.zeros(2)}, {"camera": later}], [0])


def test_an_observation_without_names_is_refused_with_how_to_name_it():
    agent = PanAgent(GridWorld(), processor, RewardCritic(), GraphSearch())
    with pytest.raises(ValueError, match="must be a dict of senses by name, got ndarray; wrap it"):
        agent.act(np.zeros(2))


def test_a_mask_is_what_an_environment_gives():
    parts = ActionParts(SimpleNamespace(actions={"legs": DiscreteAction(6), "arm": VectorAction(2)}))
    for told in (np.array([0, 0, 0, 1, 0, 1]), ([0, 1], [1, 0, 1]), [False] * 3 + [True, False, True]):
        (mask,) = parts.check_masks({"legs": told, "arm": None}).values()
        assert mask.tolist() == [False, False, False, True, False, True]
    assert parts.check_masks(None) == {}
    wrong = [
        ({"legs": [0.5] * 6}, "numbers of 0 or 1"),
        ({"legs": [1, 1]}, "expected 6"),
        ({"arm": [1]}, "no choices"),
    ]
    for told, said in [*wrong, ({"wings": [1]}, r"parts \['legs', 'arm'\], got \['wings'\]")]:
        with pytest.raises(ValueError, match=said):
            parts.check_masks(told)
