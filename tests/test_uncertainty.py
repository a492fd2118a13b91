"""How open the next step is (entropy), and how little what came had been expected (surprise), sense by sense."""

import math

import pytest
import torch
from tiny_worlds import acts, observe, world_model

from pan_hf.modeling.blocks_pan import entropy_of

EVERYTHING = ("camera", "touch", "heard", "mission")


@pytest.fixture(scope="module")
def world():
    model = world_model(EVERYTHING, context_steps=3)
    return model, model.perceive(observe(model)), acts(model, steps=4)


def test_entropy_is_that_of_each_distribution_and_counts_no_row_that_cannot_be():
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, -torch.inf, -torch.inf, -torch.inf]]])
    assert entropy_of(logits).tolist() == pytest.approx([math.log(4)])


def test_asking_for_entropy_changes_no_future(world):
    model, belief, actions = world
    plain = model.simulate(belief, actions, seed=3)
    asked = model.simulate(belief, actions, seed=3, uncertainty=True)
    assert plain.entropy == {} and set(asked.entropy) == {"camera", "touch", "heard"}
    assert torch.equal(plain.log_prob, asked.log_prob) and plain.keys() == asked.keys()


def test_entropy_is_the_mean_surprise_of_what_is_drawn(world):
    """The surprise of a draw is the entropy on average. 400 draws of a step: within 4 standard errors."""
    model, belief, actions = world
    futures = model.simulate(belief.select([0]), actions[:1, :1], num_rollouts=400, seed=0, uncertainty=True)
    entropy, surprise = torch.stack(list(futures.entropy.values())).sum(0)[:, 0], -futures.log_prob[:, 0]
    # words, and levels after the first, are conditioned on what was drawn: both sides are means over draws
    assert abs(float((entropy - surprise).mean())) < 4 * float((entropy - surprise).std()) / 20


def test_surprise_of_all_senses_is_minus_the_log_probability(world):
    model, belief, actions = world
    seen = {name: values for name, values in observe(model, steps=4, seed=1).items() if name != "mission"}
    log_prob = model.log_prob(belief, actions, seen)
    assert set(log_prob.surprise) == {"camera", "touch", "heard"}
    total = torch.stack(list(log_prob.surprise.values())).sum(0)
    assert torch.allclose(total, -log_prob.codes, rtol=1e-4)


def test_entropy_goes_with_its_rows_and_into_a_table(world):
    model, belief, actions = world
    futures = model.simulate(belief, actions, seed=3, uncertainty=True)
    assert torch.equal(futures[1].entropy["camera"], futures.entropy["camera"][1:])
    assert futures.to_pandas()["entropy.heard"].to_numpy() == pytest.approx(futures.entropy["heard"].flatten().numpy())


def test_codes_that_are_drawn_one_by_one_have_entropy_too():
    model = world_model(("camera",), level0_sampling="autoregressive")
    futures = model.simulate(model.perceive(observe(model)), acts(model, steps=2), seed=0, uncertainty=True)
    assert (futures.entropy["camera"] > 0).all() and futures.entropy["camera"].shape == (2, 2)


def test_what_is_carried_over_has_no_entropy_to_ask_for(world):
    model, belief, actions = world
    with pytest.raises(ValueError, match="`uncertainty` is measured of every code everywhere"):
        model.simulate(belief, actions, uncertainty=True, effort="coarsest")
