"""What a belief is: its keys name all that a prediction depends on, and its rows may be of different age."""

import copy
import weakref

import pytest
import torch
from tiny_worlds import acts, observe, world_model

from pan_hf import Belief
from pan_hf.agents.agent import PanAgent
from pan_hf.agents.graph_search import GraphSearch

EVERYTHING = ("camera", "touch", "heard", "mission")


def seen(model, past_seed, mission=None):
    """Three frames of one row; the first two and the actions between them differ by seed, the last does not."""
    observation, actions = observe(model, 1, 3, seed=1), acts(model, 1, 2, seed=past_seed)
    other = observe(model, 1, 3, seed=past_seed)
    for name in model.config.senses:
        if name not in model.config.prefix_senses:
            observation[name][:, :2] = other[name][:, :2]
    if mission is not None:
        observation["mission"] = torch.tensor([mission])
    return model.perceive(observation, actions)


# keys


def test_two_missions_are_two_beliefs():
    model = world_model(EVERYTHING)
    one, other = seen(model, 2, [5, 6, 7, 0, 0]), seen(model, 2, [5, 6, 8, 0, 0])
    assert one.keys() != other.keys() and one.keys(levels=1) != other.keys(levels=1)
    assert one.keys() == seen(model, 2, [5, 6, 7, 0, 0]).keys()


@pytest.mark.parametrize("context_steps, differ", [(1, False), (2, True), (3, True)])
def test_two_pasts_are_two_beliefs_as_far_as_predictions_see_them(context_steps, differ):
    model = world_model(EVERYTHING, context_steps=context_steps)
    one, other = seen(model, 2), seen(model, 3)
    assert (one.keys() != other.keys()) == differ
    assert one.keys(steps=0) == other.keys(steps=0)
    assert one.keys() == seen(model, 2).keys()


def test_an_earlier_action_alone_makes_another_belief():
    model = world_model(("camera",), "vector", context_steps=2)
    observation, action = observe(model, 1, 2), acts(model, 1, 1)
    one, other = model.perceive(observation, action), model.perceive(observation, action * 0.5)
    assert one.keys() != other.keys() and one.keys(steps=0) == other.keys(steps=0)
    assert one.keys(steps=5) == one.keys() == one.keys(steps=1)


def test_what_is_only_looked_up_runs_no_backbone(monkeypatch):
    model, runs = world_model(EVERYTHING, context_steps=2), []
    run = model.run_backbone
    monkeypatch.setattr(model, "run_backbone", lambda *given: runs.append(1) or run(*given))
    belief = model.perceive(observe(model, 1, 2), acts(model, 1, 1))
    belief.keys(), belief.keys(levels=1), belief.decode("camera")
    assert not runs
    assert belief.num_cached == model.layout.prefix_length + model.layout.trunk_length
    assert belief.cache is belief.cache and len(runs) == 1


def test_a_cache_that_could_not_be_filled_is_filled_whole_when_it_is_asked_for_again(monkeypatch):
    model = world_model(("touch",), context_steps=2)
    belief, other = (model.perceive(observe(model, 1, 2), acts(model, 1, 1)) for _ in range(2))

    def fails(*given):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(model, "run_backbone", fails)
        with pytest.raises(MemoryError):
            assert belief.cache
    for asked in (belief, copy.deepcopy(belief), copy.copy(belief)):
        assert asked.num_cached == other.num_cached > 0


def test_a_belief_whose_cache_nobody_asked_for_is_freed_at_once():
    model = world_model(("touch",), context_steps=2)
    belief = model.perceive(observe(model, 1, 2), acts(model, 1, 1))
    gone = weakref.ref(belief)
    del belief
    assert gone() is None


def test_coarser_keys_leave_out_finer_codes_of_the_past_too():
    model = world_model(("camera", "mission"), context_steps=2)
    one, other = (model.perceive(observe(model, 1, 2), acts(model, 1, 1)) for _ in range(2))
    (state, _) = other.history[0]
    state.codes["camera"][1] = (state.codes["camera"][1] + 1) % 5
    assert one.keys() != other.keys() and one.keys(levels=1) == other.keys(levels=1)


@pytest.mark.slow
@pytest.mark.parametrize("context_steps", [1, 2, 4])
def test_keys_of_futures_are_those_of_the_beliefs_on_the_way(context_steps):
    model = world_model(EVERYTHING, context_steps=context_steps)
    belief, actions = seen(model, 2).repeat(2), acts(model, 2, 5, seed=7)
    whole = model.simulate(belief, actions, temperature=0.0)
    for index in range(5):
        belief = model.simulate(belief, actions[:, index : index + 1], temperature=0.0).belief
        for levels, steps in [(None, None), (1, None), (None, 0), (1, 1)]:
            assert [row[index] for row in whole.keys(levels, steps)] == belief.keys(levels, steps)


def test_keys_of_teacher_forced_futures_hold_the_true_past():
    model = world_model(("camera", "mission"), context_steps=2)
    observation, action = observe(model, 2, 4), acts(model, 2, 3)
    keys = model.teacher_forced(observation, action).keys()
    first = {name: values if name == "mission" else values[:, :2] for name, values in observation.items()}
    belief = model.perceive(first, action[:, :1])
    alone = model.simulate(belief, action[:, 1:2], temperature=0.0)
    assert [row[1] for row in keys] == alone.belief.keys()


def test_an_agent_is_not_surprised_by_how_much_past_was_imagined():
    """The imagined belief has dropped a step that the perceived one still holds; what is seen is the same."""
    model = world_model(("camera", "mission"), context_steps=3)
    agent = PanAgent(model, len, lambda futures: futures.reward, GraphSearch())
    imagined = model.simulate(seen(model, 2), acts(model, 1, 1), temperature=0.0).belief
    assert len(imagined.history) == 1
    assert agent._compared_by == {"steps": 0}
    observation = {name: values.unsqueeze(1) for name, values in imagined.state.text.items()}
    observation |= {"camera": model.decode(imagined.state, "camera").unsqueeze(1), "mission": imagined.prefix}
    again = model.perceive(observation)
    again.state = imagined.state
    assert again.keys() != imagined.keys() and again.keys(**agent._compared_by) == imagined.keys(**agent._compared_by)


# rows of different age

MIXED = [
    pytest.param("qwen3", EVERYTHING, {"context_steps": 3}, None, id="whole"),
    pytest.param("qwen3", EVERYTHING, {"context_steps": 3}, "focused", id="focused"),
    pytest.param("gpt2", EVERYTHING, {"context_steps": 3, "fold_levels": False}, "focused", id="gpt2-focused"),
    pytest.param("gpt2", ("camera", "touch"), {"context_steps": 4, "fold_levels": False}, None, id="gpt2-no-prefix"),
    pytest.param("llama", EVERYTHING, {"context_steps": 3, "level0_sampling": "autoregressive"}, None, id="sentence"),
    pytest.param("qwen3", EVERYTHING, {"context_steps": 3, "fold_levels": False}, "coarsest", id="some-blocks"),
]


def of_ages(model, ages):
    """A belief of one row for each number of earlier steps."""
    beliefs = []
    for seed, age in enumerate(ages):
        past = acts(model, 1, age, seed) if age else None
        beliefs.append(model.perceive(observe(model, 1, age + 1, seed), past))
    return beliefs


def check_as_alone(model, belief, alone, effort=None, horizon=4):
    """Every row predicts what it predicts by itself: imagined, scored, and from where that leads."""
    actions = acts(model, len(alone), horizon, seed=7)
    together = model.simulate(belief, actions, temperature=0.0, effort=effort)
    later = {name: values for name, values in observe(model, len(alone), horizon, 9).items() if name != "mission"}
    scored = model.log_prob(belief, actions, later)
    for index, one in enumerate(alone):
        row = slice(index, index + 1)
        by_itself = model.simulate(one, actions[row], temperature=0.0, effort=effort)
        assert together.keys()[index] == by_itself.keys()[0] and belief.keys()[index] == one.keys()[0]
        assert together.belief.keys()[index] == by_itself.belief.keys()[0]
        for name in ("log_prob", "reward", "continue_prob"):
            torch.testing.assert_close(
                getattr(together, name)[index], getattr(by_itself, name)[0], atol=1e-5, rtol=1e-5
            )
        expected = model.log_prob(one, actions[row], {name: values[row] for name, values in later.items()})
        torch.testing.assert_close(scored.codes[index], expected.codes[0], atol=1e-4, rtol=1e-5)
    return together.belief


@pytest.mark.slow
@pytest.mark.parametrize("architecture, senses, config, effort", MIXED)
def test_rows_of_different_age_predict_what_they_predict_alone(architecture, senses, config, effort):
    model = world_model(senses, architecture=architecture, **config)
    alone = of_ages(model, [1, 0, 2, 0])
    check_as_alone(model, Belief.cat(alone), alone, effort)


@pytest.mark.slow
def test_finished_rows_begin_anew_in_a_batch():
    model = world_model(EVERYTHING, context_steps=3)
    alone = of_ages(model, [2, 2, 1])
    belief = Belief.cat(alone[:2]).put([1], alone[2])
    assert belief.ages.tolist() == [2, 1]
    check_as_alone(model, belief, [alone[0], alone[2]])
    (new,) = of_ages(model, [0])
    belief = belief.put([0], new)
    assert len(belief.history) == 1  # what no row holds any more is dropped
    check_as_alone(model, belief, [new, alone[2]])
    assert belief.put([0, 1], Belief.cat([new, new])).ages is None


@pytest.mark.slow
def test_rows_of_different_age_are_selected_and_joined_like_others():
    model = world_model(("camera", "touch", "mission"), context_steps=3)
    alone = of_ages(model, [1, 0, 2])
    belief = Belief.cat(alone)
    assert belief.ages.tolist() == [1, 0, 2] and len(belief.history) == 2
    chosen = belief.select([1, 0])
    assert chosen.ages.tolist() == [0, 1] and len(chosen.history) == 1
    check_as_alone(model, chosen, [alone[1], alone[0]])
    again = Belief.cat([chosen, belief])
    assert again.ages.tolist() == [0, 1, 1, 0, 2]
    check_as_alone(model, again, [alone[1], alone[0], *alone])
    assert belief.select([1]).ages is None and belief.select([1]).history == []
    assert belief.repeat(2).keys() == [key for key in belief.keys() for _ in range(2)]


def test_a_row_keeps_its_velocity_when_another_begins_anew():
    model = world_model(("touch",), "vector", context_steps=2)
    alone = of_ages(model, [1, 0])
    check_as_alone(model, Belief.cat(alone), alone, horizon=1)


@pytest.mark.slow
def test_a_compiled_step_takes_rows_of_different_age():
    model = world_model(("camera", "touch", "mission"), context_steps=3)
    belief, actions = Belief.cat(of_ages(model, [1, 0, 2])), acts(model, 3, 4, seed=7)
    expected = model.simulate(belief, actions, seed=0)
    model.compile_step(backend="eager")
    compiled = model.simulate(belief, actions, seed=0)
    assert compiled.keys() == expected.keys()
    torch.testing.assert_close(compiled.log_prob, expected.log_prob, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([0], "must name 2 different rows"),
        ([0, 0], "must name 2 different rows"),
        ([0, -2], "must name 2 different rows"),
        ([1, 2], r"from 0 to 1, or from -1 to -2 .* got \[1, 2\]"),
        ([-3, 0], r"got \[-3, 0\]"),
    ],
)
def test_rows_that_cannot_be_put_are_refused(rows, said):
    model = world_model(("camera",))
    belief = model.perceive(observe(model, 2))
    with pytest.raises(ValueError, match=said):
        belief.put(rows, belief)


def test_a_negative_row_counts_from_the_end_wherever_rows_are_named():
    model = world_model(("camera",))
    belief, other = model.perceive(observe(model, 3)), model.perceive(observe(model, 1, seed=5))
    futures = model.simulate(belief, acts(model, 3, 2), seed=0)
    assert belief.select([-1, 0]).keys() == belief.select([2, 0]).keys()
    assert belief.put([-2], other).keys() == belief.put([1], other).keys()
    assert futures[-1].keys() == futures[2].keys() == futures[[-1]].keys()
    assert futures.film(row=-3)._repr_html_() == futures.film(row=0)._repr_html_()
    for named in (lambda row: belief.select([row]), lambda row: belief.put([row], other), lambda row: futures[row]):
        for row in (3, -4):
            with pytest.raises((ValueError, IndexError), match=f"0 to 2, or (from )?-1 to -3 .*{row}"):
                named(row)
    with pytest.raises(ValueError, match="`row` must be a whole number from -3 to 2, got -4"):
        futures.film(row=-4)
