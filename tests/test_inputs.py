"""What simulating and scoring refuse, in a sentence that names what was given; and what they take beside tensors."""

import dataclasses
import math
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from test_growth import grown_up
from tiny_worlds import WORDS, acts, language_model, observe, outcomes, world_model

from pan_hf import (
    CEM,
    DiscreteAction,
    Effort,
    ImageSense,
    PanConfig,
    PanModel,
    PanProcessor,
    PanTokenizer,
    RewardCritic,
    SimulationPipeline,
    TextSense,
    VectorAction,
    VectorSense,
)
from pan_hf.modeling.display_pan import Film
from pan_hf.modeling.imagination_pan import split_window, switch_examples
from pan_hf.modeling.step_pan import StepPredictor

NAMES = ["left", "right", "up", "down"]


@pytest.fixture(scope="module")
def model():
    return world_model(("touch", "mission"), DiscreteAction(4, names=NAMES))


@pytest.fixture(scope="module")
def belief(model):
    return model.perceive(observe(model, 2))


def without_mission(observation):
    return {name: values for name, values in observation.items() if name != "mission"}


def same(one, other):
    return all(map(torch.equal, one.state.tensors(), other.state.tensors()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rollouts": 0}, "`num_rollouts` must be a whole number of at least 1, got 0"),
        ({"num_rollouts": 1.5}, "got 1.5"),
        ({"num_rollouts": None}, "got None"),
        ({"temperature": -1.0}, "`temperature` must be at least 0, a number; got -1.0"),
        ({"temperature": float("nan")}, "got nan"),
        ({"temperature": None}, "got None"),
        ({"seed": 1.5}, "`seed` must be a whole number from -9223372036854775808 to .*, got 1.5"),
        ({"seed": 2**64}, "to 18446744073709551615, got 18446744073709551616"),
        ({"expected": 3}, "`expected` steps must be 0 to 1, got 3"),
        ({"expected": [2]}, "`expected` steps must be 0 to 1"),
        ({"effort": 5}, "`effort` must be one of .* got 5"),
        ({"effort": [1]}, r"no blocks \[1\]"),
        ({"reencode": None}, "`reencode` must be a whole number of at least 0, got None"),
    ],
)
def test_a_number_out_of_range_is_refused(model, belief, options, message):
    with pytest.raises(ValueError, match=message):
        model.simulate(belief, acts(model, 2, 2), **options)


@pytest.mark.parametrize("number", [Decimal("1"), Fraction(1)])
def test_what_counts_and_what_measures_take_the_same_kinds_of_numbers(model, belief, number):
    """Python's, NumPy's and torch's: no argument takes a Decimal or a Fraction that another refuses."""
    actions = acts(model, 2, 1)
    for call in (
        lambda: model.simulate(belief, actions, num_rollouts=number),
        lambda: model.simulate(belief, actions, temperature=number),
        lambda: Effort(price=number),
        lambda: RewardCritic(threshold=number),
        lambda: RewardCritic(discount=number),
        lambda: CEM(temperature=number),
        lambda: ImageSense(size=8, fps=number),
        lambda: Film(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), fps=number),
    ):
        with pytest.raises(ValueError, match=f"got {re.escape(repr(number))}"):
            call()


@pytest.mark.parametrize("number", [1, np.float32(1), np.int64(1), np.array(1.0), torch.tensor(1.0)])
def test_a_threshold_is_any_number_and_may_be_infinite(number):
    assert RewardCritic(threshold=number).threshold == 1.0
    assert RewardCritic(threshold=number * math.inf).threshold == math.inf


@pytest.mark.parametrize("name", ["nobody/nothing", "/missing/folder", Path("missing/folder")])
def test_a_name_that_leads_nowhere_is_named_with_what_it_was_given_for(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    senses = {"touch": VectorSense(dim=2, low=-1, high=1)}
    for call, said in (
        (lambda: PanTokenizer.from_backbone(name), "`tokenizer` '{}' is neither a folder .* network"),
        (lambda: PanProcessor(name), "`tokenizer` '{}' is neither a folder .* network"),
        (lambda: PanModel.from_backbone(name, senses, DiscreteAction(2)), "`backbone` '{}' is no causal .* network"),
        (lambda: PanTokenizer.from_pretrained(name), "'{}' is neither a folder .* network"),
        (lambda: PanProcessor.from_pretrained(name), "'{}' is neither a folder .* network"),
        (lambda: PanConfig.from_pretrained(name), "'{}' is neither a folder .* network"),
        (lambda: PanModel.from_pretrained(name), "'{}' is neither a folder .* network|No checkpoint at {}"),
        (lambda: SimulationPipeline(model=name), "`model` must be a PanModel; `pipeline.*'{}'"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=said.replace("{}", str(name))):
            call()


@pytest.mark.parametrize("fields", [{"price": float("nan")}, {"cap": float("nan")}, {"cap": "half"}, {"price": "low"}])
def test_an_effort_that_is_no_number_is_refused(fields):
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}`"):
        Effort(**fields)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (None, "must be a tensor, an array or nested lists"),
        ([["left"], ["left", "up"]], "nested lists of equal lengths"),
        ([["left"], ["leftt"]], r"no action 'leftt'; its actions are \['left', 'right', 'up', 'down'\]"),
        (["left"], "B = 2 .the belief's rows"),
        (torch.tensor([1, 2]), "B = 2 .the belief's rows"),
        (torch.zeros(2, 0, dtype=torch.long), "at least one action"),
        ([[0.5], [1.0]], "whole numbers"),
        ([[4], [0]], "0 to 3"),
    ],
)
def test_actions_that_are_none_of_the_model_s_are_refused(model, belief, actions, message):
    with pytest.raises(ValueError, match=message):
        model.simulate(belief, actions)


def test_actions_without_names_and_words_out_of_range_are_refused():
    model = world_model(("touch",), "text")
    belief = model.perceive(observe(model, 1))
    with pytest.raises(ValueError, match="becomes ids of words by `processor"):
        model.simulate(belief, ["go north"])
    rows = model.config.vocab_size
    with pytest.raises(ValueError, match=f"ids of words, from 0 to {rows - 1}; got {rows}"):
        model.simulate(belief, torch.full((1, 1, 3), rows))
    moved = world_model(("touch",), VectorAction(dim=2))
    with pytest.raises(ValueError, match="which unit"):
        moved.simulate(moved.perceive(observe(moved, 1)), torch.full((1, 1, 2), float("nan")))


@pytest.mark.parametrize(
    "how", [lambda a: a.numpy(), lambda a: a.tolist(), lambda a: a.int(), lambda a: {"action": a}]
)
def test_actions_may_be_arrays_lists_and_parts(model, belief, how):
    actions = acts(model, 2, 2)
    assert same(model.simulate(belief, how(actions), seed=0), model.simulate(belief, actions, seed=0))


def test_actions_may_be_said_by_name(model, belief):
    numbers = torch.tensor([[0, 2], [3, 1]])
    named = [["left", "up"], ["down", "right"]]
    assert same(model.simulate(belief, named, seed=0), model.simulate(belief, numbers, seed=0))
    assert same(model.simulate(belief, np.array(named), seed=0), model.simulate(belief, numbers, seed=0))
    one = model.perceive(observe(model, 1))
    assert same(model.simulate(one, ["left", "up"], seed=0), model.simulate(one, numbers[:1], seed=0))
    later = without_mission(observe(model, 2, 2, 1))
    found = model.log_prob(belief, named, later).total
    assert torch.equal(found, model.log_prob(belief, numbers, later).total)
    window = observe(model, 2, 3)
    assert same(model.perceive(window, named), model.perceive(window, numbers))
    assert same(model.teacher_forced(window, named), model.teacher_forced(window, numbers))


def test_a_seed_may_be_a_number_of_numpy(model, belief):
    one, other = (model.simulate(belief, acts(model, 2, 2), seed=seed) for seed in (3, np.int64(3)))
    assert same(one, other) and other.seed == 3 and torch.equal(one.decode("touch"), other.decode("touch"))


def test_other_rows_or_frames_than_the_belief_has_are_refused(model, belief):
    later = without_mission(observe(model, 3, 2, 1))
    with pytest.raises(ValueError, match=r"`observations` must be \(B, H\) of \(2, 2\).* got \(3, 2\)"):
        model.log_prob(belief, acts(model, 2, 2), later)
    with pytest.raises(ValueError, match=r"got \(3, 2\)"):
        model.log_prob(model.perceive(observe(model, 3)), acts(model, 3, 1), later)
    with pytest.raises(ValueError, match="as many rows"):
        StepPredictor(model).step(belief, torch.tensor([1]))
    with pytest.raises(ValueError, match="no rows"):
        model.simulate(belief.select(torch.zeros(0, dtype=torch.long)), torch.zeros(0, 1, dtype=torch.long))
    with pytest.raises(TypeError, match="`belief` must be a Belief"):
        model.simulate(None, acts(model, 2, 2))


def test_senses_that_are_no_numbers_are_refused(model, belief):
    frames = observe(model, 2)
    frames["touch"][0, 0, 1] = float("nan")
    uses = {
        "encode": lambda: model.encode(frames),
        "perceive": lambda: model.perceive(frames),
        "log_prob": lambda: model.log_prob(belief, acts(model, 2, 1), frames),
    }
    for use in uses.values():
        with pytest.raises(ValueError, match="Sense 'touch'"):
            use()
    with pytest.raises(ValueError, match="got NoneType"):
        model.perceive(None)
    with pytest.raises(ValueError, match="num_levels=1.5"):
        belief.decode("touch", num_levels=1.5)
    absent = frames | {"touch.present": torch.tensor([[False], [True]])}
    assert model.perceive(absent).codes["touch"][0][0, 0] == -1  # nothing is said of what is not there


@pytest.mark.parametrize("part", ["outcome.out.weight", "language_model.model.norm.weight"])
def test_weights_that_are_not_finite_are_named(part):
    model = world_model(("touch",))
    belief, weight = model.perceive(observe(model, 1)), model.get_parameter(part)
    weight.data.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=f"not numbers: its weights .'{part}'. are not finite"):
        model.simulate(belief, acts(model, 1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"context_steps": 2}])
def test_a_world_of_words_alone_imagines_learns_and_switches(config):
    model = world_model({"heard": TextSense(max_length=4, every_step=True)}, **config)
    steps = model.config.context_steps + 1
    belief = model.perceive(observe(model, 4))
    for effort in (None, "auto", "all"):
        futures = model.simulate(belief, acts(model, 4, 3), seed=0, effort=effort)
        words = futures.decode("heard")
        assert words.shape == (4, 3, 4) and bool((words < WORDS).all())
    window = {"observation": observe(model, 4, steps + 1), "action": acts(model, 4, steps), **outcomes(4, steps)}
    for objective in ("joint", "switch"):
        assert bool(model(objective=objective, **window).loss.isfinite())
    examples = switch_examples(model, *split_window(model, **window))
    # standing still is wrong where a word changes, and no worse than that
    assert bool((examples["distortion"] >= 0).all()) and bool((examples["distortion"][..., 0] <= 1).all())
    assert bool(model(objective="switch_warm_up", condition=examples).loss.isfinite())


@pytest.fixture(scope="module")
def window(model):
    return {"observation": observe(model, 2, 3), "action": acts(model, 2, 2), **outcomes(2, 2)}


@pytest.mark.parametrize(
    ("objective", "change", "message"),
    [
        ("join", {}, r"Unknown objective 'join'; expected one of \['dynamics', 'joint'"),
        ("dynamics", {}, r"needs \['state', 'action', 'reward', 'done'\], got .* 'joint' takes the observation"),
        ("switch", {"done": None}, r"needs \['observation', 'action', 'reward', 'done'\]"),
        ("joint", {"rewards": torch.zeros(2, 2)}, r"take no \['rewards'\]"),
        ("joint", {"action": torch.zeros(2, 3, dtype=torch.long)}, r"3 frames .*\(2, 2\) .*'action': \(2, 3\)"),
        ("joint", {"action": torch.zeros(3, 2, dtype=torch.long)}, "B = 2 and T = 2"),
        ("joint", {"reward": torch.zeros(2, 1)}, r"'reward': \(2, 1\)"),
        ("joint", {"reward": torch.full((2, 2), float("nan"))}, "`reward` holds numbers that are not finite"),
        ("joint", {"observation": {"touch": torch.zeros(2, 3, 3)}}, r"missing \['mission'\]"),
        ("joint", {"observation": None}, "needs"),
    ],
)
def test_an_objective_says_what_it_needs(model, window, objective, change, message):
    with pytest.raises(ValueError, match=message):
        model(objective=objective, **(window | change))


@pytest.mark.parametrize(
    ("sense", "change"),
    [
        ("mission", lambda ids: ids + 10**7),
        ("mission", lambda ids: ids - 1000),
        ("mission", lambda ids: ids * 0 - 1),
        ("mission", lambda ids: ids.double()),
        ("mission", lambda ids: ids > 0),
        ("touch", lambda numbers: numbers + 1e6),
        ("camera", lambda frames: frames.float()),
        ("camera", lambda frames: frames.long()),
        ("camera", lambda frames: frames > 0),
    ],
)
def test_an_objective_takes_no_values_beyond_a_sense_s_range(sense, change):
    model = world_model(("touch", "mission", "camera"), DiscreteAction(4))
    seen = observe(model, 2, 3)
    window = {"observation": seen | {sense: change(seen[sense])}, "action": acts(model, 2, 2), **outcomes(2, 2)}
    with pytest.raises(ValueError, match=f"Sense '{sense}': .* got "):
        model(objective="joint", **window)


def test_a_window_may_be_trained_on_by_names_of_its_actions(model, window):
    numbers = torch.tensor([[0, 2], [3, 1]])
    named = window | {"action": [["left", "up"], ["down", "right"]]}
    found = [model(objective="joint", **each) for each in (named, window | {"action": numbers})]
    assert torch.equal(found[0].losses["touch.0"], found[1].losses["touch.0"])


def test_a_language_model_has_no_objective_but_text():
    with pytest.raises(ValueError, match="no senses; use 'text'"):
        PanModel.from_backbone(language_model())(objective="joint", observation={}, action=torch.zeros(1, 1))


# ---- what is not there, and rows of what is


def test_rows_of_futures_hold_that_many_rows_of_everything(model, belief):
    some = model.simulate(belief, acts(model, 2, 3), num_rollouts=2, effort="focused")[torch.tensor([3, 0, 1])]
    for item in dataclasses.fields(some):
        value = getattr(some, item.name)
        assert not isinstance(value, torch.Tensor) or len(value) == 3, item.name
    assert some.elapsed.shape == some.reward.shape == (3, 3)


@pytest.mark.parametrize("shape", [(2, 2, 1), (2, 2, 3), (2,)])
def test_a_reward_has_a_number_for_each_transition(model, window, shape):
    with pytest.raises(ValueError, match=r"`reward` must be \(B, T\); several rewards need `actors`; got"):
        model(objective="joint", **window | {"reward": torch.zeros(shape)})


def test_ends_have_a_number_for_each_transition(model, window):
    with pytest.raises(ValueError, match=r"'done': \(2, 2, 2\)"):
        model(objective="joint", **window | {"done": torch.zeros(2, 2, 2)})


def test_codes_are_not_learned_from_a_camera_that_saw_nothing():
    model = grown_up()
    seen = observe(model, 2, 2)
    seen["camera.present"] = torch.zeros(2, 2, dtype=torch.bool)
    assert model.learn(seen) == [] == model.prune(seen)
    assert np.isfinite(model.description_length(seen))


def test_depth_in_bytes_is_depth():
    books = {"level_strides": [1], "codebook_size": [8], "codebook_capacity": [8]}
    depth = ImageSense(size=8, channels=1, bits=16, low=0, high=200, unit="mm", patch_size=4, **books)
    model = world_model({"depth": depth})
    frames = observe(model)["depth"].clamp(max=200)
    as_bytes, as_whole = (model.encode({"depth": kind}) for kind in (frames, frames.to(torch.int32)))
    assert all(map(torch.equal, as_bytes.tensors(), as_whole.tensors()))
    with pytest.raises(ValueError, match="whole numbers from 0 to 200 mm"):
        model.encode({"depth": torch.full_like(frames, 201)})


def test_an_observation_without_an_action_is_not_passed_over(model, window):
    with pytest.raises(ValueError, match="use `perceive`"):
        model(input_ids=torch.zeros(1, 2, dtype=torch.long), observation=window["observation"])


def test_an_action_of_two_like_names_is_given_by_number():
    model = world_model(("touch",), DiscreteAction(2, names=["go", "go"]))
    with pytest.raises(ValueError, match="more than one action is called 'go'"):
        model.simulate(model.perceive(observe(model)), [["go"]])
