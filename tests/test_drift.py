"""Drift: noise on the context in training, and encoding anew while imagining."""

import pytest
import torch
from tiny_worlds import acts, observe, world_model

from pan_hf.modeling.augmentation_pan import corrupt_context
from pan_hf.modeling.codecs_pan import MOST_CELLS
from pan_hf.modeling.latent_head_pan import LatentHead
from pan_hf.modeling.objectives_pan import _teacher_forced

EVERYTHING = ("camera", "touch", "heard", "mission")


def encoded(model, batch=64, steps=2):
    return model.encode(observe(model, batch, steps))


def differs(one, other):
    """By sense, which states `(B, T)` differ in any code."""
    return {
        name: torch.stack([(a != b).any(-1) for a, b in zip(levels, other.codes[name], strict=True)]).any(0)
        for name, levels in one.codes.items()
    }


def test_a_share_of_states_is_disturbed_in_a_few_places_and_loses_its_latents():
    model = world_model(EVERYTHING, context_noise=0.5)
    state = encoded(model, batch=300)
    torch.manual_seed(0)
    found = corrupt_context(model, state)
    is_disturbed = found.latents["camera"].isnan().flatten(2).all(2)
    assert 0.4 < is_disturbed.float().mean() < 0.6
    assert torch.equal(found.latents["touch"].isnan().flatten(2).all(2), is_disturbed)
    changed = differs(found, state)
    assert not any((where & ~is_disturbed).any() for where in changed.values())
    assert changed["touch"].float().mean() > 0.4 and changed["camera"].float().mean() > 0.02
    share = torch.stack(
        [(a != b).float().mean(-1) for a, b in zip(found.codes["camera"], state.codes["camera"], strict=True)]
    )
    assert share.mean() < MOST_CELLS
    assert all(torch.equal(found.text[name], state.text[name]) for name in state.text)


def test_disturbed_vectors_are_a_little_off():
    model = world_model(("touch",), context_noise=1.0)
    state = encoded(model)
    before = model.decode(state, "touch", latents=False)
    after = model.decode(corrupt_context(model, state), "touch", latents=False)
    sense = model.config.senses["touch"]
    span = torch.tensor(sense.high) - torch.tensor(sense.low)
    off = ((after - before) / span).abs()
    assert 0 < off.mean() < 0.03 and off.amax() < 0.2


def test_without_noise_the_state_itself_is_seen():
    model = world_model(EVERYTHING, context_noise=0.0)
    state = encoded(model, batch=2)
    assert corrupt_context(model, state) is state


def test_what_is_to_be_predicted_stays_true_and_what_is_wrong_will_change():
    model = world_model(EVERYTHING, context_noise=1.0, block_dropout=0.0).train()
    observation, action = observe(model, 32, 1), acts(model, 32, 2)
    state = model.encode(observation).map(lambda tensor: tensor.repeat_interleave(3, 1))  # nothing truly changes
    window = _teacher_forced(model, state, action, observation["mission"])
    true = state.map(lambda tensor: tensor[:, 1:].flatten(0, 1))
    assert not any(found.any() for found in differs(window.following, true).values())
    wrong = differs(window.current, true)
    assert wrong["touch"].float().mean() > 0.9 and wrong["camera"].any()
    assert torch.equal(window.changed["camera"].any(1), wrong["camera"])


def test_encoding_anew_goes_on_from_what_the_decoded_state_looks_like(monkeypatch):
    def sample(self, condition, _start, _generator=None):
        return torch.zeros(len(condition), self.sense.num_state_tokens, self.sense.latent_dim)

    monkeypatch.setattr(LatentHead, "sample", sample)
    model = world_model(EVERYTHING)
    belief, actions = model.perceive(observe(model, 3, 1)), acts(model, 3, 2)
    first = model.simulate(belief, actions[:, :1], seed=0, temperature=0)
    seen = {name: first.decode(name) for name in model.senses} | {"heard": first.state.text["heard"]}
    again = model.encode(seen)
    futures = model.simulate(belief, actions[:, :1], seed=0, temperature=0, reencode=1)
    assert all(torch.equal(a, b) for a, b in zip(futures.state.tensors(), first.state.tensors(), strict=True))
    one = futures.belief.state
    assert all(torch.equal(a, b[:, 0]) for a, b in zip(one.tensors(), again.tensors(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("reencode, same", [(0, True), (3, True), (1, False)])
def test_encoding_anew_takes_place_every_so_many_steps(reencode, same):
    model = world_model(EVERYTHING)
    belief, actions = model.perceive(observe(model, 8, 1)), acts(model, 8, 3)
    plain = model.simulate(belief, actions, seed=0, temperature=0)
    found = model.simulate(belief, actions, seed=0, temperature=0, reencode=reencode)
    equal = all(torch.equal(a, b) for a, b in zip(found.state.tensors(), plain.state.tensors(), strict=True))
    assert equal == same


def test_a_negative_number_of_steps_is_refused():
    model = world_model(("camera",))
    with pytest.raises(ValueError, match="`reencode` must be a whole number of at least 0, got -1"):
        model.simulate(model.perceive(observe(model, 1, 1)), acts(model, 1, 1), reencode=-1)
