"""Observations: frames and rows of them, and senses that are absent in some frames."""

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from tiny_worlds import PAD, acts, observe, outcomes, world_model

from pan_hf import PanProcessor, PanTokenizer
from pan_hf.modeling.imagination_pan import latent_examples
from pan_hf.modeling.objectives_pan import _teacher_forced
from pan_hf.modeling.state_pan import ABSENT, Observation, State
from pan_hf.modeling.step_pan import StepPredictor

EVERYTHING = ("camera", "touch", "heard", "mission")


def with_gaps(model, batch=2, steps=3, seed=0, garbage=0):
    """Random observations in which the camera is absent in one frame, touch in all of a row and hearing in another
    frame; `garbage` decides what stands there."""
    values = observe(model, batch, steps, seed)
    there = {name: torch.ones(batch, steps, dtype=torch.bool) for name in ("camera", "touch", "heard")}
    there["camera"][0, 1] = there["touch"][1] = there["heard"][0, 2] = False
    other = observe(model, batch, steps, 90 + garbage)
    for name, mask in there.items():
        values[name] = torch.where(mask.view(batch, steps, *[1] * (values[name].dim() - 2)), values[name], other[name])
        values[f"{name}.present"] = mask
    return values


# frames, rows and masks


def test_frames_are_cut_and_constant_text_stays_whole():
    model = world_model(EVERYTHING)
    values = with_gaps(model, 2, 5)
    observation = Observation(values, model.config.prefix_senses)
    cut = observation.frames(1, 3)
    assert (observation.shape, cut.shape, len(cut)) == ((2, 5), (2, 2), len(values))
    assert torch.equal(cut["camera"], values["camera"][:, 1:3]) and torch.equal(cut["mission"], values["mission"])
    assert torch.equal(cut["touch.present"], values["touch.present"][:, 1:3])
    assert cut.rows(torch.tensor([1])).shape == (1, 2) and set(cut.senses) == set(EVERYTHING)
    assert "mission" not in cut.changing and len(observation.seen("touch")) == 5


def test_an_observation_is_moved_like_the_plain_mapping_it_stands_for():
    model = world_model(EVERYTHING)
    observation = Observation(with_gaps(model), model.config.prefix_senses)
    for moved in (observation.to("meta"), send_to_device(observation, "meta")):
        assert isinstance(moved, Observation) and {value.device.type for value in moved.values()} == {"meta"}
    # what a Trainer does with a mapping
    again = type(observation)({name: value.clone() for name, value in observation.items()})
    assert again.constant == observation.constant == {"mission"}


def test_the_age_of_a_sense_is_how_long_ago_it_was_there():
    there = torch.tensor([[True, False, False, True], [False, False, True, False]])
    observation = Observation({"touch": torch.zeros(2, 4, 3), "touch.present": there, "camera": torch.zeros(2, 4, 3)})
    assert observation.age("touch").tolist() == [[0, 1, 2, 0], [1, 2, 0, 1]]
    assert not observation.age("camera").any() and observation.present("camera") is None


@pytest.mark.parametrize(
    "mask, told",
    [
        ({"touch.present": torch.ones(2, 3)}, "bool"),
        ({"touch.present": torch.ones(2, 2, dtype=torch.bool)}, r"\(2, 3\)"),
        ({"mission.present": torch.ones(2, dtype=torch.bool)}, "a sense that changes"),
        ({"smell.present": torch.ones(2, 3, dtype=torch.bool)}, "a sense that changes"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, told):
    model = world_model(EVERYTHING)
    with pytest.raises(ValueError, match=told):
        model.encode(observe(model, 2, 3) | mask)


# what the model makes of it


def test_what_stands_where_a_sense_is_absent_means_nothing():
    model = world_model(EVERYTHING, context_steps=3)
    one, other = (with_gaps(model, garbage=garbage) for garbage in (1, 2))
    assert not torch.equal(one["camera"], other["camera"])
    state = model.encode(one)
    assert all((level[0, 1] == ABSENT).all() and (level[1] >= 0).all() for level in state.codes["camera"])
    assert (state.codes["touch"][0][1] == ABSENT).all() and (state.text["heard"][0, 2] == ABSENT).all()
    assert torch.isnan(state.latents["camera"][0, 1]).all()
    assert state.present("touch").tolist() == [[True] * 3, [False] * 3]
    beliefs = [model.perceive(values, acts(model, 2, 2)) for values in (one, other)]
    futures = [model.simulate(belief, acts(model, 2, 2, seed=7), seed=0) for belief in beliefs]
    assert beliefs[0].keys() == beliefs[1].keys() and futures[0].keys() == futures[1].keys()
    assert torch.equal(futures[0].log_prob, futures[1].log_prob)


@pytest.mark.slow
def test_an_absent_sense_is_another_belief_and_is_asked_for_all_the_same():
    model = world_model(EVERYTHING)
    values = observe(model, 1)
    gaps = {f"{name}.present": torch.zeros(1, 1, dtype=torch.bool) for name in ("camera", "touch", "heard")}
    absent, there = model.perceive(values | gaps), model.perceive(values)
    assert absent.keys() != there.keys()
    for effort in (None, "focused"):
        futures = model.simulate(absent, acts(model, 1, 1), effort=effort)
        state = futures.state if effort is None else State(futures.codes)  # "focused" asks for codes alone
        assert all((tensor >= 0).all() for tensor in state.tensors())
        assert futures.decode("camera").shape == (1, 1, 3, 16, 16)


def test_masks_without_a_gap_change_nothing():
    model = world_model(EVERYTHING, context_steps=2)
    values, action = observe(model, 2, 3), acts(model, 2, 2)
    masks = {f"{name}.present": torch.ones(2, 3, dtype=torch.bool) for name in ("camera", "touch", "heard")}
    found = []
    for given in (values, values | masks):
        torch.manual_seed(0)
        found.append(model(observation=given, action=action).losses)
    plain, masked = found
    for name, loss in plain.items():
        torch.testing.assert_close(loss, masked[name], atol=0, rtol=1e-6)


def test_absent_frames_cost_no_bits():
    model = world_model(EVERYTHING, context_steps=2)
    belief = model.perceive(observe(model, 2))
    later = {name: values for name, values in with_gaps(model).items() if name != "mission"}
    found = model.log_prob(belief, acts(model, 2, 3), later)
    assert torch.isfinite(found.total).all()
    gaps = later["camera.present"] == 0
    assert (found.observation[gaps] == 0).all() and (found.observation[~gaps] != 0).all()
    alone = world_model(("touch",), context_steps=2)
    later = {"touch": observe(alone, 2, 3)["touch"], "touch.present": torch.tensor([[1, 0, 1], [0, 0, 0]]).bool()}
    found = alone.log_prob(alone.perceive(observe(alone, 2)), acts(alone, 2, 3), later)
    assert (found.total != 0).tolist() == later["touch.present"].tolist()


def test_a_window_with_gaps_equals_step_by_step():
    model = world_model(EVERYTHING, context_steps=3, fold_levels=False)
    values, action = with_gaps(model, 2, 4), acts(model, 2, 3)
    state = model.encode(values)
    with torch.no_grad():
        window = _teacher_forced(model, state, action, values["mission"])
        belief = model.perceive(Observation(values, model.config.prefix_senses).frames(0, 1))
        for index in range(3):
            target = state.map(lambda tensor, i=index: tensor[:, i + 1])
            step = StepPredictor(model).step(belief, action[:, index], target)
            belief = step.belief
            in_one = window.hidden["action"].unflatten(0, (2, 3))[:, index]
            torch.testing.assert_close(in_one, step.hidden["action"], atol=2e-5, rtol=2e-5)


# what is learned from it


def encoded(model, values):
    state = model.encode(values)
    return {"codes": state.codes, "latents": state.latents, "text": state.text, "prefix": values["mission"]}


@pytest.mark.parametrize("config", [{}, {"level0_sampling": "autoregressive", "fold_levels": False}])
def test_absent_frames_give_no_loss(config):
    model = world_model(EVERYTHING, context_steps=2, **config)
    action, told = acts(model, 2, 2), outcomes(2, 2)
    losses = []
    for garbage in (1, 2):
        values = with_gaps(model, garbage=garbage)
        torch.manual_seed(0)
        losses.append(model(observation=values, action=action, **told).losses)
        losses[-1] |= model(objective="dynamics", state=encoded(model, values), action=action, **told).losses
    for name, loss in losses[0].items():
        assert torch.isfinite(loss)
        torch.testing.assert_close(loss, losses[1][name], atol=0, rtol=1e-6, msg=name)


def test_a_sense_that_is_never_there_costs_nothing():
    model = world_model(("camera", "touch", "heard"))
    values, action = observe(model, 2, 2), acts(model, 2, 1)
    for name in ("touch", "heard"):
        values[f"{name}.present"] = torch.zeros(2, 2, dtype=torch.bool)
    losses = model(observation=values, action=action).losses
    silent = {name for name in losses if name.startswith(("touch.", "heard."))}
    assert len(silent) > 3 and all(float(losses[name]) == 0 for name in silent)


@pytest.mark.slow
def test_a_model_trains_on_windows_with_gaps():
    model = world_model(EVERYTHING, context_steps=2, context_noise=0.5, block_dropout=0.5, crop_tokens=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for seed in range(4):
        values, action = with_gaps(model, seed=seed), acts(model, 2, 2, seed)
        given = {"observation": values} if seed % 2 else {"objective": "dynamics", "state": encoded(model, values)}
        loss = model(action=action, **given, **outcomes(2, 2, seed)).loss
        optimizer.zero_grad()
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        optimizer.step()


def test_latents_are_learned_where_a_sense_is_there():
    model = world_model(("camera", "touch"), context_steps=2)
    values = observe(model, 2, 4)
    values["camera.present"] = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]]).bool()
    examples = latent_examples(model, values, acts(model, 2, 3))
    assert examples[0]["state"]["present"]["camera"].tolist() == [False, True]
    for example in examples:
        assert torch.isfinite(model(objective="latent_head", **example).loss)


# what the processor makes of it


@pytest.fixture(scope="module")
def processor():
    senses = {name: sense.to_dict() for name, sense in world_model(EVERYTHING).config.senses.items()}
    return PanProcessor(PanTokenizer.train(["go to the red door", "a bell"], vocab_size=300), senses)


FRAME, TOUCH = np.full((16, 16, 3), 7, np.uint8), [0.0, 0.5, 1.0]


def test_none_is_a_sense_that_is_absent(processor):
    given = {"camera": [FRAME, None, FRAME], "touch": None, "heard": ["a bell", None, ""], "mission": None}
    found = processor(observation=given)["observation"]
    assert found["camera.present"].tolist() == [[True, False, True]]
    assert found["touch.present"].tolist() == [[False] * 3] and found["touch"].shape == (1, 3, 3)
    assert found["heard.present"].tolist() == [[True, False, True]]
    assert (found["mission"] == processor.tokenizer.pad_token_id).all() and found["mission"].shape == (1, 5)
    assert "mission.present" not in found


def test_gaps_may_differ_by_row_of_a_batch(processor):
    given = {"camera": [[FRAME, None], [FRAME, FRAME], [None, None]], "touch": np.zeros((3, 2, 3)), "mission": "a"}
    found = processor(observation=given | {"heard": [["a"] * 2] * 3})["observation"]
    assert found["camera.present"].tolist() == [[True, False], [True, True], [False, False]]
    assert set(found) == {*EVERYTHING, "camera.present"}


def test_a_mask_says_where_an_array_means_something(processor):
    given = {"camera": np.stack([FRAME] * 2), "touch": [TOUCH] * 2, "heard": ["a"] * 2, "mission": "a"}
    found = processor(observation=given | {"touch.present": [True, False]})["observation"]
    assert found["touch.present"].tolist() == [[True, False]] and found["touch.present"].dtype == torch.bool


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"touch": [0.0, None, 1.0]}, "whole frames"),
        ({"touch.present": [1, 0]}, "expected bool"),
        ({"smell.present": [True, True]}, "unknown: smell"),
        ({"camera": [FRAME, None, None]}, "Numbers of frames differ"),
    ],
)
def test_gaps_that_do_not_fit_are_refused(processor, wrong, told):
    given = {"camera": np.stack([FRAME] * 2), "touch": [TOUCH] * 2, "heard": ["a"] * 2, "mission": "a"}
    with pytest.raises(ValueError, match=told):
        processor(observation=given | wrong)


def test_an_absent_text_reads_as_nothing(processor):
    assert processor.decode_observation({"heard": torch.full((1, 1, 4), ABSENT)}) == {"heard": [[""]]}
    assert PAD == 0
