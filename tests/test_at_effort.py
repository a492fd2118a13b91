"""Planning, evaluating and reporting at an effort: what is spent is counted, and states compare as far as they go."""

import re

import numpy as np
import pytest
import torch
from tiny_worlds import acts, observe, world_model

from pan_hf import Effort, GoalCritic, GraphSearch
from pan_hf.agents.world import FixedEffort, parse_effort
from pan_hf.evaluation.comparison import Step
from pan_hf.modeling.state_pan import ABSENT
from pan_hf.reporting.figures import load_strip
from pan_hf.reporting.strips import _write, spending_map


@pytest.mark.slow
def test_a_world_at_an_effort_imagines_at_it_and_adds_up_what_it_costs():
    model = world_model(("camera", "mission"))
    world = FixedEffort(model, "coarsest")
    belief, actions = model.perceive(observe(model, 3)), acts(model, 3, 2)
    assert world.spent() == {} and world.config is model.config
    futures = world.simulate(belief, actions, temperature=0.0)
    alone = model.simulate(belief, actions, temperature=0.0, effort="coarsest")
    assert torch.equal(futures.codes["camera"][0], alone.codes["camera"][0])
    world.simulate(belief, actions, temperature=0.0)
    world.simulate(belief, actions, temperature=0.0, effort="all")  # another's effort is not this world's cost
    spent = world.spent()
    assert world.steps == 12 and spent["simulated_steps_per_second"] > 0
    assert spent["compute_per_simulated_step"] == pytest.approx(float(alone.cost.compute.mean()), rel=1e-5)
    assert spent["tokens_per_simulated_step"] == pytest.approx(float(alone.cost.tokens.mean()), rel=1e-5)


@pytest.mark.parametrize(
    "effort, levels", [("all", None), ("focused", None), ("coarsest", 1), ("auto", 1), (Effort(cap=0.9), 1)]
)
def test_states_are_compared_by_the_coarsest_codes_unless_all_are_predicted(effort, levels):
    assert FixedEffort(world_model(("camera", "mission")), effort).key_levels == levels


def test_keys_of_coarse_levels_are_equal_where_these_are():
    model = world_model(("camera", "heard", "mission"))
    belief = model.perceive(observe(model, 2))
    coarse = model.perceive(observe(model, 2))
    coarse.state.codes["camera"][1] = torch.full_like(coarse.codes["camera"][1], ABSENT)
    assert belief.keys(1) == coarse.keys(1) and not set(belief.keys()) & set(coarse.keys())
    futures = model.simulate(belief, acts(model, 2, 2), seed=0)
    assert [row[-1] for row in futures.keys(1)] == futures.belief.keys(1)


@pytest.mark.slow
def test_a_planner_plans_at_an_effort_and_folds_coarse_states():
    model = world_model(("camera", "mission"))
    belief = model.perceive(observe(model, 1))
    codes = [level[0].clone() for level in belief.codes["camera"]]
    critic = GoalCritic(codes={"camera": codes}, threshold=2.0)  # never reached: the search goes on to its end
    search = GraphSearch(max_states=30, max_depth=3, key_levels=1)
    world = FixedEffort(model, "coarsest")
    plan = search.plan(world, belief, critic)
    assert plan.states and all(len(key) == 4 * (4 + 5) for key in plan.states)  # coarse codes and the mission, int32
    assert world.steps == plan.num_simulated


def test_a_goal_is_compared_where_codes_are_known():
    codes = [torch.tensor([1, 2]), torch.tensor([3, 4])]
    critic = GoalCritic(codes={"camera": codes})
    known = [torch.tensor([[[1, 2]]]), torch.tensor([[[3, ABSENT]]])]
    assert critic._matching(known, codes) == 1.0
    assert critic._matching([known[0], torch.tensor([[[4, ABSENT]]])], codes) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("auto", "auto"),
        ("camera.0,camera.1", ("camera.0", "camera.1")),
        ("camera.0", ("camera.0",)),
        ("price=0.5,task=planning", Effort(price=0.5, task="planning")),
        ("cap=0.3,least_change=none", Effort(cap=0.3, least_change=None)),
    ],
)
def test_an_effort_is_read_off_a_command_line(text, expected):
    assert parse_effort(text) == expected


def test_an_unknown_field_of_an_effort_is_refused():
    with pytest.raises(ValueError, match=r"has the fields .*'price'.* got \['speed'\]"):
        parse_effort("speed=3")


@pytest.mark.parametrize("text", ["price=0.1,price=0.2", "price=0.1,auto", "price==1"])
def test_a_field_of_an_effort_is_there_once_and_stands_with_fields(text):
    with pytest.raises(ValueError, match=f"effort.*{text}"):
        parse_effort(text)


@pytest.mark.parametrize("text", ["", ",", "auto,", 3, None, ["all"]])
def test_what_says_no_effort_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(f"got {text!r}")):
        parse_effort(text)


def test_a_step_s_coarsest_codes_can_be_exact_alone():
    codes = {"camera": [torch.tensor([[1]]), torch.tensor([[2]])]}
    step = Step({}, codes, torch.zeros(1), torch.zeros(1, dtype=torch.bool))
    assert [len(levels) for levels in step.coarsest().codes.values()] == [1]


def test_the_map_of_what_was_spent_is_dark_where_nothing_was_looked_at(monkeypatch):
    model = world_model(("camera", "mission"))
    picked = torch.tensor([[9.0, -9.0, -9.0, -9.0]])
    (glance,) = model.glances.values()
    monkeypatch.setattr(glance, "forward", lambda places, codes, table, action: (picked, 0.0 * action))
    belief = model.perceive(observe(model, 1))
    futures = model.simulate(belief, acts(model, 1, 2), effort=Effort(("camera.0", "camera.1"), least_change=0.5))
    shown, frames = spending_map(model, futures, "camera"), futures.decode("camera")[0]
    assert shown.shape == (2, 3, 16, 16) and torch.equal(shown[..., :8, :8], frames[..., :8, :8])
    assert (shown[..., 8:, 8:] <= frames[..., 8:, 8:] // 4 + 1).all()
    everything = model.simulate(belief, acts(model, 1, 2), effort="all", seed=0)
    assert (spending_map(model, everything, "camera") >= everything.decode("camera")[0]).all()  # latents: paler


def test_a_strip_shows_what_was_spent_on_it(tmp_path):
    frames = {name: np.zeros((3, 8, 8, 3), np.uint8) for name in ("real", "imagined", "spent_planning")}
    about = {"title": "t", "environment": "e", "actions": ["a", "b"], "horizon": 2, "compute": {"planning": 0.071}}
    strip = load_strip(_write(tmp_path / "strip", frames, about))
    assert list(strip.spent) == ["planning: 7%"]
    label, shown = strip.rows()[-1]
    assert label == "planning: 7%" and shown.shape == (3, 8, 8, 3) and shown.dtype == np.uint8
