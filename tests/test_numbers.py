"""Readouts are told in numbers what is a number, and the senses of one future agree."""

import torch
from tiny_worlds import acts, observe, world_model

from pan_hf import VectorAction
from pan_hf.modeling.blocks_pan import LevelInputs
from pan_hf.modeling.readout_pan import (
    RelativePositionFeatures,
    drawn_scalars,
    num_readout_scalars,
    num_step_numbers,
    readout_scalars,
    scalar_features,
    window_numbers,
)
from pan_hf.modeling.state_pan import State


def _touched(model):
    dim = model.config.senses["touch"].dim
    low = State({"touch": [torch.zeros(3, dim, dtype=torch.long)] * 2})
    return dim, low, low.map(lambda digits: digits + 1)


def test_numbers_say_where_things_are_how_they_changed_and_what_is_done():
    model = world_model(("camera", "touch"), action=VectorAction(dim=2, low=0.0, high=4.0))
    dim, low, high = _touched(model)
    action = torch.tensor([[0.0, 4.0]] * 3)
    unknown = scalar_features(model, high, None, action)
    assert unknown.shape == (3, num_step_numbers(model.config))
    assert not unknown[:, dim : 2 * dim + 1].any()  # neither a change, nor a sign that it is known
    known = scalar_features(model, high, low, action)
    assert (known[:, dim : 2 * dim] > 0).all()
    assert known[:, 2 * dim].tolist() == [1, 1, 1]
    assert known[0, -2:].tolist() == [-1, 1]


def test_a_window_s_numbers_are_those_of_its_steps_and_its_first_knows_no_change():
    model = world_model(("camera", "touch"), action=VectorAction(dim=2, low=0.0, high=4.0))
    _, low, high = _touched(model)
    window = State.combine([low, high, low], lambda frames: torch.stack(frames, 1))
    action = 4 * torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0))
    first, second = window_numbers(model, window, action).unflatten(0, (3, 2)).unbind(1)
    torch.testing.assert_close(first, scalar_features(model, low, None, action[:, 0]))
    torch.testing.assert_close(second, scalar_features(model, high, low, action[:, 1]))


def test_a_world_without_numbers_has_none():
    model = world_model(("camera",))
    assert num_readout_scalars(model.config, "camera") == 0
    assert readout_scalars(model, "camera", scalar_features(model, State({}), None, torch.zeros(2)), {}) is None


def test_a_picture_is_told_where_the_vectors_of_its_own_future_are(monkeypatch):
    model = world_model(("camera", "touch")).eval()
    belief = model.perceive(observe(model, batch=2))
    told = []

    original = LevelInputs.of

    def of(block, draft, rows):
        inputs = original(block, draft, rows)
        if inputs.name == "camera":
            told.append((inputs.numbers, [drawn.clone() for drawn in draft.codes["touch"]]))
        return inputs

    monkeypatch.setattr(LevelInputs, "of", of)
    model.simulate(belief, acts(model, 2, 1), seed=0)
    touch = model.senses["touch"]
    for numbers, drawn in told:
        assert numbers.shape[1] == num_readout_scalars(model.config, "camera")
        unit = touch.scalars(drawn)
        first = num_step_numbers(model.config)
        torch.testing.assert_close(numbers[:, first : first + unit.shape[1]], unit)
    assert told


def test_bearings_depend_on_how_far_a_number_is_from_a_place_alone():
    bearings = RelativePositionFeatures(2, 6)
    with torch.no_grad():
        numbers, rows = torch.rand(3, 2), torch.linspace(-0.9, 0.9, 4)[None]
        columns = torch.linspace(-0.8, 0.8, 5)[None]
        found = bearings(numbers, rows, columns)
        assert found.shape == (3, 20, 6)
        torch.testing.assert_close(bearings(numbers + 0.25, rows + 0.25, columns + 0.25), found, rtol=0, atol=1e-4)
        moved = bearings(numbers + 0.25, rows, columns)
    assert (moved - found).abs().max() > 0.01


def test_images_alone_are_told_where_vectors_will_be():
    model = world_model(("camera", "touch"))
    assert drawn_scalars(model.config, "camera") == slice(7, 10)  # behind touch, its change and whether that is known
    told = drawn_scalars(model.config, "touch")
    assert told.start == told.stop and model.readouts["touch"][0].bearings is None
    assert all(readout.bearings is not None for readout in model.readouts["camera"])
    assert world_model(("camera",)).readouts["camera"][0].bearings is None
