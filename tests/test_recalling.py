"""An agent that asks a simulation cache before it plans."""

import numpy as np
import pytest
import torch
from mazes import GridWorld, processor, walk
from test_plan import SMALL, run_dir  # noqa: F401  a fixture

from pan_hf.agents.agent import PanAgent
from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.critics import RewardCritic
from pan_hf.agents.graph_search import GraphSearch
from pan_hf.evaluation.control import plan
from pan_hf.reporting.tables import select


def agent_with(folder, model, **settings):
    cache = SimulationCache(folder, scope="maze", **settings)
    return PanAgent(model, processor, RewardCritic(), GraphSearch(), cache=cache)


def test_what_one_agent_has_searched_another_follows_without_imagining(tmp_path):
    world = GridWorld()
    first = agent_with(tmp_path, GridWorld())
    assert walk(first, world) == (11, (0, 3))
    assert (first.statistics.replans, first.statistics.recalled) == (1, 0)
    second = agent_with(tmp_path, GridWorld())
    assert walk(second, world) == (11, (0, 3))
    said = second.statistics
    assert (said.replans, said.recalled, said.num_simulated, said.surprises) == (0, 11, 0, 0)
    assert said.recalled_by == {"exact": 11}


def test_a_cache_that_keeps_nothing_stays_as_it_was(tmp_path):
    agent = agent_with(tmp_path, GridWorld(), writes=False)
    assert walk(agent, GridWorld()) == (11, (0, 3))
    assert agent.cache.store.query("SELECT COUNT(*) FROM states") == [(0,)]


def test_where_the_world_differs_from_what_is_kept_the_agent_finds_another_way(tmp_path):
    """The model, and so the cache, believe in a door; the agent is surprised there and goes round."""
    world = GridWorld("S#G\n.#.\n...")
    believed = GridWorld("S#G\n.#.\n...", hidden_doors=[(0, 1)])
    walk(agent_with(tmp_path, believed), world)
    again = agent_with(tmp_path, believed)
    steps, end = walk(again, world)
    assert end == (0, 2) and steps <= 12 and again.statistics.surprises >= 2 and again.statistics.recalled > 0


def test_an_agent_that_fails_is_as_it_was_and_so_is_the_cache(tmp_path):
    model = GridWorld()
    agent = agent_with(tmp_path, model)
    real, model.simulate = model.simulate, None
    seen = {"camera": np.array([0, 0])}
    with pytest.raises(TypeError):
        agent.act(seen)
    assert agent.statistics.decisions == agent.statistics.recalled == 0
    assert agent.cache.store.query("SELECT COUNT(*) FROM outcomes") == [(0,)]
    model.simulate = real
    assert agent.act(seen) == 1


def test_a_stale_cache_is_refused_when_the_agent_is_made(tmp_path):
    walk(agent_with(tmp_path, GridWorld()), GridWorld())
    other = SimulationCache(tmp_path, scope="another maze")
    with pytest.raises(ValueError, match="none of them holds"):
        PanAgent(GridWorld(), processor, RewardCritic(), GraphSearch(), cache=other)
    with pytest.raises(ValueError, match="must be a SimulationCache or None, got PosixPath"):
        PanAgent(GridWorld(), processor, RewardCritic(), GraphSearch(), cache=tmp_path)


def test_a_state_that_the_cache_leads_to_again_and_again_is_left_to_the_planner(tmp_path):
    """A cache that says to stay for ever: its word is taken `patience` times."""
    model = GridWorld()
    agent = agent_with(tmp_path, model)
    walk(agent, GridWorld())
    stay = agent.cache.bind(model, agent.critic).keys.of_actions(torch.tensor([4]))[0]
    with agent.cache.store.transaction() as connection:
        connection.execute("UPDATE worth SET value=1e3, reach=1.0 WHERE action=?", (stay,))
    agent.reset()
    steps, end = walk(agent, GridWorld())
    assert end == (0, 3) and agent.statistics.replans >= 1


def rewarded(futures):
    return futures.reward


@pytest.mark.slow
def test_pan_plan_reports_the_share_that_a_cache_answered(run_dir, tmp_path):  # noqa: F811
    settings = {"planners": SMALL[1:2], "episodes": 2, "success": "reward>0", "progress": False, "critic": rewarded}
    told = plan(run_dir, output=tmp_path / "one", cache=tmp_path / "cache", **settings)
    first = {entry.metric: entry.value for entry in select(told, model="pan/cem")}
    told = plan(run_dir, output=tmp_path / "two", cache=tmp_path / "cache", write_back=False, **settings)
    second = {entry.metric: entry.value for entry in select(told, model="pan/cem")}
    assert 0 <= first["recalled"] < second["recalled"] <= 1
