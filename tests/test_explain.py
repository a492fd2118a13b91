"""Why an agent acted as it did: what was weighed, what is imagined of it, and what `pan plan` tells of it."""

import json
import re

import numpy as np
import pytest
import torch
from mazes import GridWorld, TwoWalkers, processor, walk
from test_mcts import RIVER, SlippingWalk, WindyWorld
from test_plan import SMALL, run_dir  # noqa: F401  a fixture
from tiny_worlds import observe, world_model

from pan_hf.agents.agent import PanAgent
from pan_hf.agents.beam_search import BeamSearch
from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.cautious import CautiousCritic
from pan_hf.agents.critics import FunctionCritic, GoalCritic, RewardCritic
from pan_hf.agents.graph_search import GraphSearch
from pan_hf.agents.icem import ICEM
from pan_hf.agents.mcts import MCTS
from pan_hf.agents.mppi import MPPI
from pan_hf.agents.policy import ActorCritic, FlatActions, Policy, PolicyPlanner
from pan_hf.agents.reasoners import ReasonersSearch
from pan_hf.agents.seen import SeenStep
from pan_hf.agents.shooting import CEM, RandomShooting
from pan_hf.agents.strategy_search import StrategySearch
from pan_hf.envs.state_features import StateFeatures
from pan_hf.evaluation.control import plan
from pan_hf.evaluation.explanations import explained_steps
from pan_hf.reporting.explanations import load_explanation
from pan_hf.reporting.report import write_report

NEAR = "S..\n...\n..G"


def greedy(world_model, search_config):
    state = world_model.init_state()
    while not world_model.is_terminal(state):
        rewards = {each: search_config.fast_reward(state, each)[0] for each in search_config.get_actions(state)}
        state, _ = world_model.step(state, max(rewards, key=rewards.get))
    return state


PLANNERS = [
    GraphSearch(),
    MCTS(budget=200),
    StrategySearch(budget=200),
    BeamSearch(beam_size=4, horizon=5),
    CEM(num_samples=32, horizon=5),
    RandomShooting(num_samples=64, horizon=5),
    ReasonersSearch(greedy, max_depth=4),
]


def acted(planner, world=None, critic=None, at=(0, 0), **settings):
    """An agent that has taken its first action, and that action."""
    agent = PanAgent(world or GridWorld(NEAR), processor, critic or RewardCritic(), planner, **settings)
    return agent, agent.act({"camera": np.array(at)})


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: type(planner).__name__)
def test_what_a_planner_weighed_begins_with_what_was_done(planner):
    agent, action = acted(planner)
    told = agent.explain()
    assert told.source == "search" and told.planner == type(planner).__name__ and 2 <= len(told.candidates) <= 8
    assert told.candidates[0].actions.tolist() == agent.plan.actions.tolist() and told.action == str(action)
    values = [each.value for each in told.candidates]
    # way by way, a later one may begin like a better one, so only what begins anew is in order
    firsts = {each.actions[0].item(): each.value for each in reversed(told.candidates[1:])}
    assert values[0] >= max(firsts.values()) - 1e-6 and list(firsts.values())[::-1][0] == max(firsts.values())
    assert str(len(told.candidates)) in repr(told).splitlines()[0] and len(repr(told).splitlines()) <= 10


def test_every_first_action_is_told_with_the_best_state_it_leads_to():
    """A state scores its column: from column 2, right leads to 5 at most and left to 1, as nothing goes through it."""
    critic = FunctionCritic(function=lambda futures: futures.codes["camera"][0][..., 1].float())
    agent, _ = acted(GraphSearch(), GridWorld("..S..."), critic, at=[0, 2])
    told = {each.actions[0].item(): (each.actions.tolist(), each.value) for each in agent.explain().candidates}
    assert told == {3: ([3, 3, 3], 5.0), 2: ([2], 1.0)}


def test_nothing_is_imagined_before_it_is_asked_for():
    agent, _ = acted(GraphSearch())
    calls, told = agent.model.calls, agent.explain()
    assert repr(told) and agent.model.calls == calls
    rows = told.rows()
    assert agent.model.calls == calls + 1 and told.rows() and agent.model.calls == calls + 1
    assert rows[0]["reward"] == 1 and rows[0]["continue_prob"] == 0 and rows[0]["is_taken"]
    assert rows[0]["reaches_goal"] and not rows[1]["reaches_goal"] and rows[1]["reward"] == 0
    assert told.to_pandas()["value"].tolist() == [row["value"] for row in rows]


def test_an_earlier_plan_is_told_from_where_it_is_gone_on_with():
    agent, first = acted(BeamSearch(beam_size=4, horizon=5))
    where = agent.model.step(agent.model.start, torch.tensor([first]))[0]
    agent.act({"camera": where.numpy()})
    told = agent.explain()
    assert told.source == "plan" and "gone on with" in repr(told)
    assert told.candidates[0].actions.tolist() == agent.plan.actions[1:].tolist()
    assert told.rows()[0]["reward"] == 1  # imagined from where it is now


def test_a_repaired_plan_is_told_as_one():
    agent, _ = acted(GraphSearch(), GridWorld("S..G\n...G"))
    agent.act({"camera": np.array([1, 1])})  # blown down, to where the rest of the plan reaches the goal as well
    told = agent.explain()
    assert told.source == "repair" and agent.statistics.repairs + agent.statistics.replans >= 2
    assert told.candidates[0].actions.tolist() == [3, 3] and told.rows()[0]["reward"] == 1


def test_an_explanation_before_any_action_is_refused():
    agent = PanAgent(GridWorld(), processor, RewardCritic(), GraphSearch())
    with pytest.raises(ValueError, match="nothing to explain before the first `act`"):
        agent.explain()


def test_what_the_cache_knew_is_told_with_its_level(tmp_path):
    cache = SimulationCache(tmp_path, scope="maze")
    walk(PanAgent(GridWorld(), processor, RewardCritic(), GraphSearch(), cache=cache), GridWorld())
    agent, action = acted(GraphSearch(), GridWorld(), cache=cache)
    told = agent.explain()
    assert told.source == "cache (exact)" and "the simulation cache (exact)" in repr(told)
    assert told.candidates[0].actions.tolist() == [action] and len(told.candidates) > 1
    assert told.candidates[0].value == max(each.value for each in told.candidates)


def test_a_strategy_tells_what_may_come_of_an_action_and_what_it_does_then():
    world = WindyWorld(RIVER, slip=0.4)
    agent = PanAgent(world, processor, RewardCritic(), MCTS(num_outcomes=16))
    walker = SlippingWalk(world, slips={1})
    walker(agent, limit=1)
    assert [len(each.outcomes) for each in agent.explain().candidates][0] == 1  # nobody slips there
    agent.act({"camera": np.array([0, 1])}, 0.0)
    agent.act({"camera": np.array([0, 1])}, 0.0)  # it slipped
    told = agent.explain()
    assert told.source == "branch" and told.candidates[0].actions.tolist() == [3, 3]


def test_outcomes_have_their_chances_and_values():
    world = WindyWorld("S~G", slip=0.4)
    agent = PanAgent(world, processor, RewardCritic(), MCTS(num_outcomes=16, enough=2, budget=300))
    agent.act({"camera": np.array([0, 1])})
    taken = agent.explain().candidates[0]
    assert [each.probability for each in taken.outcomes] == pytest.approx([0.6, 0.4], abs=1e-6)
    assert taken.outcomes[0].is_goal and not taken.outcomes[1].is_goal
    mean = sum(each.probability * each.value for each in taken.outcomes)
    assert taken.value == pytest.approx(mean, abs=1e-6)
    assert len(taken.outcomes[1].belief) == 1 and taken.outcomes[1].belief.keys() == [bytes([0, 1])]


@pytest.mark.parametrize("planner", [CEM(num_samples=16, horizon=3), MCTS(budget=32, num_outcomes=3)])
@pytest.mark.parametrize("context_steps", [1, 2])
def test_a_notebook_is_shown_what_was_imagined_of_each_candidate(planner, context_steps):
    model = world_model(("camera", "mission"), context_steps=context_steps)
    belief = model.perceive(observe(model, 1))
    agent = PanAgent(model, lambda **_: None, RewardCritic(), planner)
    agent._before, agent.plan, agent._position = (belief, None), agent._search(model, belief, {}), 1
    told = agent.explain()
    pictures = told.pictures()
    assert [len(each) for each in pictures] == [1 + length for length in told.lengths]
    assert torch.equal(pictures[0][0], belief.decode("camera")[0])
    several = sum(len(each.outcomes) > 1 for each in told.candidates)
    assert told._repr_html_().count("<img") == len(told.candidates) + several
    assert told.rows()[0]["log_prob"] < 0


@pytest.mark.parametrize("planner", [ICEM(num_samples=16, horizon=3), MPPI(num_samples=16, horizon=3)])
def test_numbers_are_weighed_with_how_far_their_worth_was_spread(planner):
    model = world_model(("touch",), "vector")
    agent = PanAgent(model, lambda **_: None, RewardCritic(), planner)
    belief = model.perceive(observe(model, 1))
    agent._before, agent.plan, agent._position = (belief, None), agent._search(model, belief, {}), 1
    told = agent.explain()
    assert told.spread.count > 16 and told.spread.least <= told.spread.mean <= told.spread.most
    assert torch.equal(told.candidates[0].actions, agent.plan.actions) and "sequences: values" in repr(told)
    assert told.pictures() == [] and told._repr_html_().startswith("<pre>")


@pytest.mark.parametrize("senses", [("camera", "mission"), ("touch",)])
def test_what_was_seen_is_judged_by_any_critic_as_what_is_imagined_is(senses):
    model = world_model(senses, context_steps=2)
    seen = observe(model, 1)
    belief, other = model.perceive(seen), model.perceive(observe(model, 1, seed=1))
    goal = GoalCritic(
        codes={name: [level[0] for level in belief.codes[name]] for name in senses if name == "camera"},
        vectors={name: seen[name][0, 0] for name in senses if name == "touch"},
    )
    reached = []
    for there in (belief, other):
        step = SeenStep(model, there, 0.0, False)
        for critic in (goal, CautiousCritic(critic=goal, penalty=0.1)):
            reached.append(bool(critic.reached(step, critic.score(step))[0, 0]))
    assert reached == [True, True, False, False]


def test_several_parts_are_told_together():
    agent = PanAgent(TwoWalkers("S.G"), processor, RewardCritic(threshold=2.0), GraphSearch(), replan="at_end")
    agent.act({"camera": np.zeros(4, int)})
    told = agent.explain()
    assert told.action == "right+right" and told.rows()[0]["actions"] == ["right+right"] * 2


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_policy_tells_its_likeliest_choices(tmp_path, is_cached):
    torch.manual_seed(0)
    model = world_model(("camera",))
    features, flat = StateFeatures(model), FlatActions(model.config)
    Policy(model, ActorCritic(features.size, [8], flat.size, True), features, flat).save(tmp_path / "policy")
    cache = SimulationCache(tmp_path / "cache") if is_cached else None
    agent = PanAgent(model, lambda **_: None, RewardCritic(), PolicyPlanner(tmp_path / "policy"), cache=cache)
    other, belief = (model.perceive(observe(model, 1, seed=seed)) for seed in (1, 0))
    agent._new_plan(other, other.keys()[0], {})
    agent._before, agent.plan, agent._position = (belief, None), agent._new_plan(belief, belief.keys()[0], {}), 1
    told = agent.explain()
    assert told.candidates[0].actions.tolist() == agent.plan.actions.tolist()
    assert told.source == "search" and len(vars(agent.planner)["_loaded"]) == 1  # a cache reads it no second time
    weights = [each.weight for each in told.candidates]
    assert weights == sorted(weights, reverse=True) and sum(weights) == pytest.approx(1, abs=1e-5)


# ---- pan plan


def test_steps_are_named_by_number_or_as_the_last():
    assert explained_steps("0,5,last") == explained_steps(["0", "5,last"]) == (frozenset({0, 5}), True)
    assert explained_steps(None) == (frozenset(), False)
    for wrong in ("-1", "first", "1.5", ""):
        with pytest.raises(ValueError, match=r"steps from 0 on, or 'last'"):
            explained_steps(wrong)


def test_explaining_changes_nothing_of_what_is_played_and_the_report_shows_it(run_dir, tmp_path):  # noqa: F811
    settings = {"planners": SMALL[1:2], "episodes": 1, "success": "reward>0", "progress": False, "max_steps": 4}
    plain = plan(run_dir, output=tmp_path / "plain", **settings)
    records = plan(run_dir, output=tmp_path, explain="0,last", **settings)
    timed = ("seconds_per_decision", "median_decision_ms", "percentile_99_decision_ms")
    told = [[(each.metric, each.value) for each in one if each.metric not in timed] for one in (plain, records)]
    assert told[0] == told[1] and not (tmp_path / "plain" / "report" / "explanations").exists()
    files = sorted((tmp_path / "report" / "explanations").glob("*.json"))
    steps = [int(re.search(r"step-(\d+)", file.name)[1]) for file in files]
    assert len(steps) == 2 and steps[0] == 0 and steps[1] <= 3
    first = load_explanation(files[0])
    assert first.frames["candidate_0"].shape[1:] == (16, 24, 3) and "sequences were sampled" in first.spread_words
    assert len(first.candidates) == len(first.frames) >= 2 and first.candidates[0]["is_taken"]
    page = write_report(tmp_path).read_text()
    assert "Why these actions" in page and first.title in page and page.count("candidate 2") >= 2
    plan(run_dir, output=tmp_path, **settings)  # of an earlier run nothing is left
    assert not list((tmp_path / "report" / "explanations").iterdir())


def test_a_malformed_explanation_is_named(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"title": "a", "source": "b", "candidates": [3]}))
    with pytest.raises(ValueError, match="one.json is no explanation"):
        load_explanation(path)
