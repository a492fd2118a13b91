"""The world model in use: one forward equals many small ones, futures branch from a belief and leave it alone."""

import copy
import re
from functools import cached_property
from pathlib import Path
from types import FunctionType

import pytest
import torch
from tiny_worlds import ACTIONS, CAMERA, PAD, SENSES, acts, language_model, observe, world_model

from pan_hf import Belief, DiscreteAction, ImageSense, PanConfig, PanModel, VectorSense
from pan_hf.modeling.backbone_pan import fill_cache
from pan_hf.modeling.blocks_pan import CodeSampler, LevelInputs, draw_together, log_prob_of, pick
from pan_hf.modeling.objectives_pan import _code_losses, _teacher_forced, text_counts
from pan_hf.modeling.readout_pan import AutoregressiveHead
from pan_hf.modeling.state_pan import State
from pan_hf.modeling.step_pan import StepPredictor

EVERYTHING = ("camera", "touch", "heard", "mission")
# float32 attention over the same keys in another order of summation; measured 1e-6, a wrong mask gives 1e-2
CLOSE = {"atol": 2e-5, "rtol": 2e-5}

LAYOUTS = [
    pytest.param("qwen3", {"context_steps": 1}, id="markov"),
    pytest.param("qwen3", {"context_steps": 2, "level0_sampling": "autoregressive"}, id="sentence"),
    pytest.param("qwen3", {"context_steps": 3, "fold_levels": False}, id="a-pass-a-level"),
    pytest.param("llama", {"context_steps": 3, "fold_levels": False, "level0_sampling": "autoregressive"}, id="llama"),
    pytest.param("gpt2", {"context_steps": 2, "fold_levels": True}, id="gpt2"),
    pytest.param("gpt2", {"context_steps": 1, "fold_levels": False}, id="gpt2-markov"),
]


def futures_of(model, batch=2, horizon=3, steps=1, **kwargs):
    """A belief and what is imagined from it."""
    belief = model.perceive(observe(model, batch, steps), acts(model, batch, steps - 1) if steps > 1 else None)
    return belief, model.simulate(belief, acts(model, batch, horizon, seed=7), **kwargs)


def row(belief_or_actions, index):
    """One row, as a batch of one."""
    chosen = torch.tensor([index])
    return belief_or_actions.select(chosen) if isinstance(belief_or_actions, Belief) else belief_or_actions[chosen]


# one teacher-forced window = the incremental way


def run_both_ways(model, batch=2):
    """Hidden states of a window in one forward, and step by step: `[(block, window, incremental)]`, and the window."""
    steps = model.config.context_steps
    observation, action = observe(model, batch, steps + 1), acts(model, batch, steps)
    state = model.encode(observation)
    with torch.no_grad():
        window = _teacher_forced(model, state, action, model.prefix_ids(observation))
    first = {name: o if name in model.config.prefix_senses else o[:, :1] for name, o in observation.items()}
    belief, found = model.perceive(first), []
    with torch.no_grad():
        for index in range(steps):
            target = state.map(lambda t, i=index: t[:, i + 1])
            step = StepPredictor(model).step(belief, action[:, index], target)
            belief = step.belief
            found.append(step.hidden)
    pairs = []
    for name, values in window.hidden.items():
        by_step = values.unflatten(0, (batch, steps))
        if name in found[0] and found[0][name] is not None:
            pairs += [(name, by_step[:, index], found[index][name]) for index in range(steps)]
    return pairs, window, observation, action


@pytest.mark.parametrize("architecture, config", LAYOUTS)
def test_a_window_in_one_forward_equals_step_by_step(architecture, config):
    model = world_model(EVERYTHING, architecture=architecture, **config)
    pairs, *_ = run_both_ways(model)
    assert {name for name, *_ in pairs} >= {"action"}
    assert len(pairs) >= 2 * config["context_steps"]
    for _, in_one, by_step in pairs:
        torch.testing.assert_close(in_one, by_step, **CLOSE)


def window_log_prob(model, window, batch):
    """The log probability of a window's discrete blocks, from its logits: independent of `log_prob`."""
    total, (_, _, logits) = 0.0, _code_losses(model, window, None)
    for name, levels in window.following.codes.items():
        for found, target in zip(logits[name], levels, strict=True):
            total = total + found.log_softmax(-1).gather(-1, target.unsqueeze(-1)).flatten(1).sum(-1)
    for name, target in window.following.text.items():
        logits = model.get_output_embeddings()(window.hidden[name])[..., : model.config.text_size]
        found = logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
        total = total + (found * text_counts(target, PAD)).sum(-1)
    return total.unflatten(0, (batch, -1))


@pytest.mark.slow
@pytest.mark.parametrize("architecture, config", LAYOUTS)
def test_log_prob_of_codes_is_minus_the_nll_of_the_window(architecture, config):
    model = world_model(EVERYTHING, architecture=architecture, **config)
    _, window, observation, action = run_both_ways(model)
    belief = model.perceive({n: o if n == "mission" else o[:, :1] for n, o in observation.items()})
    later = {name: values[:, 1:] for name, values in observation.items() if name != "mission"}
    with torch.no_grad():
        expected = window_log_prob(model, window, 2)
    torch.testing.assert_close(model.log_prob(belief, action, later).codes, expected, atol=1e-3, rtol=1e-5)


def test_log_prob_of_what_was_imagined_is_what_the_futures_say():
    model = world_model(EVERYTHING, context_steps=3, level0_sampling="autoregressive")
    belief, futures = futures_of(model, seed=0)
    target = futures.state.map(lambda tensor: tensor[:, 0])
    with torch.no_grad():
        step = StepPredictor(model).step(belief, acts(model, 2, 3, seed=7)[:, 0], target)
    torch.testing.assert_close(step.log_prob, futures.log_prob[:, 0], atol=1e-4, rtol=1e-5)


def test_perceiving_frames_equals_perceiving_one_and_being_told_the_rest():
    model = world_model(EVERYTHING, context_steps=3)
    observation, action = observe(model, 2, 3), acts(model, 2, 2)
    whole = model.perceive(observation, action)
    belief = model.perceive({n: o if n == "mission" else o[:, :1] for n, o in observation.items()})
    state = model.encode(observation)
    with torch.no_grad():
        for index in range(2):
            target = state.map(lambda t, i=index: t[:, i + 1])
            belief = StepPredictor(model).step(belief, action[:, index], target).belief
    assert whole.keys() == belief.keys()
    for one, other in zip(whole.cache.layers, belief.cache.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, **CLOSE)
        torch.testing.assert_close(one.values, other.values, **CLOSE)


def test_padding_of_the_constant_text_is_seen_by_nobody():
    model = world_model(("camera", "mission"), context_steps=2)
    observation, action = observe(model, 1, 3), acts(model, 1, 2)
    observation["mission"] = torch.tensor([[5, 6, PAD, PAD, PAD]])
    before = _teacher_forced(model, model.encode(observation), action, observation["mission"])
    with torch.no_grad():
        model.get_input_embeddings().weight[PAD] += 1.0
    after = _teacher_forced(model, model.encode(observation), action, observation["mission"])
    assert torch.equal(before.hidden["places"], after.hidden["places"])


# simulate


@pytest.mark.parametrize("action", ACTIONS)
def test_every_kind_of_action_moves_the_future(action):
    model = world_model(("camera",), action)
    belief = model.perceive(observe(model, 1))
    one, other = acts(model, 1, 1, seed=1), acts(model, 1, 1, seed=4)
    assert not torch.equal(one, other)
    found = [model.simulate(belief, given, temperature=0.0).log_prob for given in (one, other)]
    assert not torch.allclose(*found)


@pytest.mark.parametrize("senses", [("camera",), ("touch",), ("heard",), EVERYTHING])
@pytest.mark.parametrize("config", [{}, {"fold_levels": False, "level0_sampling": "autoregressive"}])
def test_any_senses_can_be_imagined_and_decoded(senses, config):
    model = world_model(senses, context_steps=2, **config)
    _, futures = futures_of(model, batch=2, horizon=3, steps=2, num_rollouts=2, seed=0)
    assert futures.log_prob.shape == futures.reward.shape == futures.continue_prob.shape == (4, 3)
    assert (futures.log_prob < 0).all() and ((futures.continue_prob > 0) & (futures.continue_prob < 1)).all()
    shapes = {"camera": (4, 3, 3, 16, 16), "touch": (4, 3, 3), "heard": (4, 3, 4)}
    for name in set(senses) - {"mission"}:
        assert futures.decode(name).shape == shapes[name]
        assert futures.belief.decode(name).shape == (4, *shapes[name][2:])
    if "camera" in senses:
        assert futures.decode("camera").dtype == torch.uint8


def test_a_seed_decides_the_future():
    model = world_model(EVERYTHING, level0_sampling="autoregressive")
    belief = model.perceive(observe(model))
    actions = acts(model, 2, 3)
    one, again, other = (model.simulate(belief, actions, num_rollouts=3, seed=seed) for seed in (1, 1, 2))
    assert one.keys() == again.keys() and torch.equal(one.log_prob, again.log_prob)
    assert torch.equal(one.decode("camera"), again.decode("camera"))
    assert one.keys() != other.keys()


def test_at_temperature_zero_every_rollout_is_the_same():
    model = world_model(EVERYTHING)
    _, futures = futures_of(model, num_rollouts=3, temperature=0.0)
    keys = futures.keys()
    assert keys[0] == keys[1] == keys[2] != keys[3] == keys[4] == keys[5]


def test_rollouts_of_a_row_stand_one_after_the_other():
    model = world_model(EVERYTHING, context_steps=2)
    belief, actions = model.perceive(observe(model, 3, 2), acts(model, 3, 1)), acts(model, 3, 2, seed=7)
    futures = model.simulate(belief, actions, num_rollouts=2, temperature=0.0)
    for index in range(3):
        alone = model.simulate(row(belief, index), row(actions, index), temperature=0.0)
        for future in (2 * index, 2 * index + 1):
            assert futures.keys()[future] == alone.keys()[0]
            torch.testing.assert_close(futures.reward[future], alone.reward[0], **CLOSE)


def test_branching_leaves_the_belief_as_it_was():
    model = world_model(EVERYTHING, context_steps=3, fold_levels=False)
    belief = model.perceive(observe(model, 2, 2), acts(model, 2, 1))
    before = copy.deepcopy([belief.state, belief.history, belief.prefix])
    cached = [(layer.keys.clone(), layer.values.clone()) for layer in belief.cache.layers]
    actions = acts(model, 2, 4)
    first = model.simulate(belief, actions, num_rollouts=2, seed=3)
    model.log_prob(belief, actions[:, :1], {n: o for n, o in observe(model, 2, 1).items() if n != "mission"})
    second = model.simulate(belief, actions, num_rollouts=2, seed=3)
    assert first.keys() == second.keys() and torch.equal(first.log_prob, second.log_prob)
    after = [belief.state, belief.history, belief.prefix]
    assert str(before) == str(after)
    for (keys, values), layer in zip(cached, belief.cache.layers, strict=True):
        assert torch.equal(keys, layer.keys) and torch.equal(values, layer.values)


def test_going_on_from_a_future_equals_imagining_it_at_once():
    model = world_model(("camera", "mission"), context_steps=3)
    belief, actions = model.perceive(observe(model)), acts(model, 2, 4)
    at_once = model.simulate(belief, actions, temperature=0.0)
    half = model.simulate(belief, actions[:, :2], temperature=0.0)
    rest = model.simulate(half.belief, actions[:, 2:], temperature=0.0)
    assert [a + b for a, b in zip(half.keys(), rest.keys(), strict=True)] == at_once.keys()
    torch.testing.assert_close(torch.cat([half.log_prob, rest.log_prob], 1), at_once.log_prob, **CLOSE)


@pytest.mark.slow
def test_a_batch_equals_its_rows():
    model = world_model(EVERYTHING, context_steps=2, level0_sampling="autoregressive")
    belief, actions = model.perceive(observe(model, 3, 2), acts(model, 3, 1)), acts(model, 3, 3, seed=7)
    together = model.simulate(belief, actions, temperature=0.0)
    for index in range(3):
        alone = model.simulate(row(belief, index), row(actions, index), temperature=0.0)
        assert alone.keys()[0] == together.keys()[index]
        torch.testing.assert_close(alone.log_prob[0], together.log_prob[index], atol=1e-4, rtol=1e-5)


def test_select_repeat_and_cat_are_about_rows():
    model = world_model(EVERYTHING, context_steps=2)
    belief, actions = model.perceive(observe(model, 3, 2), acts(model, 3, 1)), acts(model, 3, 2, seed=7)
    keys = belief.keys()
    assert len(belief) == len(set(keys)) == 3
    assert belief.select(torch.tensor([2, 0])).keys() == [keys[2], keys[0]]
    assert belief.repeat(2).keys() == [key for key in keys for _ in range(2)]
    joined = Belief.cat([row(belief, 2), belief.select(torch.tensor([0, 1]))])
    order = torch.tensor([2, 0, 1])
    found = model.simulate(joined, actions[order], temperature=0.0)
    expected = model.simulate(belief, actions, temperature=0.0)
    torch.testing.assert_close(found.log_prob, expected.log_prob[order], **CLOSE)


def test_a_perceived_belief_and_an_imagined_one_can_be_joined():
    model = world_model(("camera", "mission"))
    belief, futures = futures_of(model)
    joined = Belief.cat([belief, futures.belief])
    assert joined.keys() == belief.keys() + futures.belief.keys()
    assert len(model.simulate(joined, acts(model, 4, 1))) == 4


@pytest.mark.parametrize("context_steps", [1, 2, 4])
def test_a_future_may_be_longer_than_what_is_remembered(context_steps):
    model = world_model(("camera", "mission"), architecture="gpt2", context_steps=context_steps)
    _, futures = futures_of(model, horizon=9, seed=0)
    assert futures.log_prob.shape == (2, 9) and torch.isfinite(futures.log_prob).all()
    assert len(futures.belief.history) < context_steps
    trunk = model.layout.prefix_length + len(futures.belief.history) * model.layout.trunk_length
    assert futures.belief.cache.get_seq_length() == trunk


def test_a_slid_belief_equals_one_perceived_from_what_it_remembers():
    model = world_model(("camera", "mission"), context_steps=2, latent_feedback=False)
    belief, futures = futures_of(model, horizon=5, temperature=0.0)
    assert len(futures.belief.history) == 1
    rebuilt = Belief(futures.belief.state, futures.belief.history, belief.prefix, None, model)
    rebuilt = fill_cache(model, rebuilt, model.table.code_tables())
    actions = acts(model, 2, 1, seed=9)
    expected = model.simulate(rebuilt, actions, temperature=0.0).log_prob
    torch.testing.assert_close(model.simulate(futures.belief, actions, temperature=0.0).log_prob, expected, **CLOSE)


def test_latents_feed_back_where_the_config_says_so():
    model = world_model(("camera",), context_steps=2, latent_feedback=True)
    _, futures = futures_of(model, seed=0)
    assert futures.state.latents["camera"].shape == (2, 3, 4, 3)
    assert torch.equal(futures.belief.state.latents["camera"], futures.state.latents["camera"][:, -1])


def test_only_live_codes_are_imagined():
    model = world_model(("camera", "touch"))
    _, futures = futures_of(model, batch=4, horizon=4, num_rollouts=8, temperature=5.0, seed=0)
    for name, levels in futures.codes.items():
        for level, codes in enumerate(levels):
            assert model.table.active_codes(name, level)[codes].all()
            assert codes.max() > 0


def test_teacher_forced_predicts_each_step_from_the_true_frames_before_it():
    model = world_model(("camera", "mission"), context_steps=2)
    observation, action = observe(model, 2, 4), acts(model, 2, 3)
    found = model.teacher_forced(observation, action)
    pair = {"camera": observation["camera"][:, 1:3], "mission": observation["mission"]}
    belief = model.perceive(pair, action[:, 1:2])
    alone = model.simulate(belief, action[:, 2:3], temperature=0.0)
    assert torch.equal(found.codes["camera"][1][:, 2], alone.codes["camera"][1][:, 0])
    torch.testing.assert_close(found.log_prob[:, 2:], alone.log_prob, **CLOSE)


# decode and log_prob


def test_any_prefix_of_levels_decodes():
    model = world_model(("camera", "touch"))
    belief, futures = futures_of(model, seed=0)
    for name, num_levels in (("camera", 2), ("touch", 3)):
        whole = futures.decode(name)
        for count in range(1, num_levels + 1):
            part = futures.decode(name, num_levels=count, latents=False)
            assert part.shape == whole.shape and part.dtype == whole.dtype
        assert belief.decode(name, num_levels=1).shape == whole[:, 0].shape
        with pytest.raises(ValueError, match=f"levels 1 to {num_levels}; got num_levels={num_levels + 1}"):
            futures.decode(name, num_levels=num_levels + 1)


def test_encode_then_decode_gives_vectors_back_exactly_and_coarser_within_the_bound():
    model = world_model(("touch",))
    observation = observe(model, 8, 5)
    state, sense = model.encode(observation), model.config.senses["touch"]
    span = torch.tensor(sense.high) - torch.tensor(sense.low)
    torch.testing.assert_close(model.decode(state, "touch"), observation["touch"], atol=1e-6, rtol=0)
    for count in range(1, sense.num_levels + 1):
        error = (model.decode(state, "touch", num_levels=count, latents=False) - observation["touch"]).abs()
        assert (error <= span / sense.base**count / 2 + 1e-6).all()


def test_log_prob_is_finite_and_the_sum_of_its_parts():
    model = world_model(EVERYTHING)
    belief = model.perceive(observe(model))
    later = {name: values for name, values in observe(model, 2, 3, seed=5).items() if name != "mission"}
    found = model.log_prob(belief, acts(model, 2, 3), later)
    assert torch.isfinite(found.total).all()
    assert (found.codes < 0).all() and (found.latents < 0).all() and (found.observation < 0).all()
    assert torch.equal(found.total, found.codes + found.latents + found.observation)
    torch.testing.assert_close(found.bits_per_observation, -found.total / 0.6931471805599453)
    without = model.log_prob(belief, acts(model, 2, 3), later, latents=False)
    assert (without.latents == 0).all() and torch.equal(without.codes, found.codes)


def test_the_most_surprising_pixel_value_costs_twenty_one_bits():
    from pan_hf.modeling.image_codec_pan import value_log_prob

    mean, true = torch.full((1, 1, 1, 1), -1.0), torch.full((1, 1, 1, 1), 1.0)
    nats = value_log_prob(mean, true, torch.tensor(1e-3))
    assert -nats.item() / 0.6931 == pytest.approx(21.29, abs=0.01)  # log2(256 / 1e-4)
    values = (torch.arange(256.0) / 127.5 - 1).view(256, 1, 1, 1)
    every = value_log_prob(torch.full_like(values, 0.1), values, torch.tensor(0.05))
    assert every.exp().sum().item() == pytest.approx(1.0, abs=1e-4)  # a distribution over the 256 values


# what cannot be done says so


def test_observations_that_do_not_fit_are_refused():
    model = world_model(("camera", "touch", "mission"), context_steps=2)
    good = observe(model, 2, 2)
    action = acts(model, 2, 1)
    with pytest.raises(ValueError, match=r"missing \['touch'\], unknown \['smell'\]"):
        model.perceive({"camera": good["camera"], "mission": good["mission"], "smell": good["touch"]}, action)
    with pytest.raises(ValueError, match="missing.*mission"):
        model.perceive({"camera": good["camera"], "touch": good["touch"]}, action)
    with pytest.raises(ValueError, match=r"camera.*\(B, T, 3, 16, 16\).*got \(2, 2, 3, 8, 16\)"):
        model.perceive({**good, "camera": good["camera"][..., :8, :]}, action)
    with pytest.raises(ValueError, match=r"touch.*\(B, T, 3\).*got \(2, 2, 2\)"):
        model.perceive({**good, "touch": good["touch"][..., :2]}, action)
    with pytest.raises(ValueError, match="equally many.*camera.*touch"):
        model.perceive({**good, "touch": good["touch"][:, :1]}, action)
    with pytest.raises(ValueError, match="2 frames need the 1 actions between them, got 0"):
        model.perceive(good)
    with pytest.raises(ValueError, match="No sense 'smell' to decode"):
        model.perceive(good, action).decode("smell")


def test_actions_that_do_not_fit_are_refused():
    model = world_model(("camera",), context_steps=2)
    belief = model.perceive(observe(model))
    for wrong in (acts(model, 3, 2), acts(model, 2, 2)[0], acts(model, 2, 2).unsqueeze(-1)):
        with pytest.raises(ValueError, match=r"`actions` must be \(B, H\) with B = 2"):
            model.simulate(belief, wrong)
    with pytest.raises(ValueError, match="at least one action"):
        model.simulate(belief, acts(model, 2, 2)[:, :0])
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=f"0 to 3, got .*{wrong}"):
            model.simulate(belief, torch.full((2, 2), wrong))
        with pytest.raises(ValueError, match=f"0 to 3, got .*{wrong}"):
            model.perceive(observe(model, 2, 2), torch.full((2, 1), wrong))
    with pytest.raises(ValueError, match="whole numbers"):
        model.simulate(belief, torch.full((2, 2), 0.5))


def test_vectors_that_are_no_action_are_refused():
    model = world_model(("camera",), "vector")
    belief = model.perceive(observe(model))
    good = acts(model, 2, 2)
    with pytest.raises(ValueError, match=r"\(B, H, 2\)"):
        model.simulate(belief, good[..., :1])
    with pytest.raises(ValueError, match=r"coordinate 1.*0\.0 to 4\.0.*got.*5"):
        model.simulate(belief, torch.tensor([0.0, 5.0]).expand(2, 2, 2))
    with pytest.raises(ValueError, match="coordinate 0"):
        model.simulate(belief, torch.full((2, 2, 2), float("nan")))


def test_a_language_model_perceives_nothing():
    with pytest.raises(ValueError, match="no senses"):
        PanModel.from_backbone(language_model()).perceive({})


def test_senses_need_an_action():
    with pytest.raises(ValueError, match="needs an action"):
        PanConfig(senses={"camera": SENSES["camera"]})


def test_a_backbone_with_too_few_positions_is_refused():
    with pytest.raises(ValueError, match="has 256 positions.*needs 3"):
        world_model(("camera",), architecture="gpt2", context_steps=60)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"context_steps": 0}, "at least 1"),
        ({"level0_sampling": "both"}, "'parallel' or 'autoregressive'"),
        ({"loss_weights": {"cods": 1.0}}, r"unknown names \['cods'\]"),
        ({"senses": {"camera": {"kind": "smell"}}}, "unknown kind 'smell'"),
        ({"senses": {"camera": {"kind": "image", "hight": 3}}}, r"no field \['hight'\]"),
        ({"senses": {"a b": ImageSense()}}, "Python identifier"),
        ({"senses": {"action": ImageSense()}}, "cannot be called 'action'"),
        ({"senses": {"keys": ImageSense()}}, "cannot be called 'keys'"),
        ({"action": {"kind": "text", "max_length": 0}}, "at least 1"),
    ],
)
def test_a_wrong_configuration_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        PanConfig(**({"action": DiscreteAction(2)} | config))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ImageSense(size=20), "multiples of patch_size"),
        (lambda: ImageSense(level_strides=[2, 1], spatial_merge_size=3, size=144), "must nest"),
        (lambda: ImageSense(**(CAMERA | {"codebook_size": [9, 9]})), "<= codebook_capacity, got 9 and 8"),
        (lambda: ImageSense(kernel_size=2), "odd"),
        (lambda: ImageSense(decoder_kernel_size=4), "decoder_kernel_size must be odd"),
        (lambda: VectorSense(dim=2, low=[0, 1], high=1), "finite low < high"),
        (lambda: VectorSense(dim=2, low=[0, 1, 2]), "expected 2 values"),
        (lambda: DiscreteAction(3, names=["a"]), "expected 3 names"),
    ],
)
def test_a_wrong_sense_or_action_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_joined_latents_are_absent_where_a_state_has_none():
    codes = {"camera": [torch.zeros(1, 2, dtype=torch.long)]}
    with_latents = State(codes, {"camera": torch.zeros(1, 1, 1)})
    joined = State.combine([with_latents, State(codes)], torch.cat).latents["camera"]
    assert joined.shape == (2, 1, 1) and joined.isnan().flatten().tolist() == [False, True]


def test_a_mask_is_not_taken_for_row_numbers():
    belief = world_model(("camera",)).perceive({"camera": torch.zeros(2, 1, 3, 16, 16, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="not by a mask"):
        belief.select(torch.tensor([True, False]))


# codes are drawn as the model says


@pytest.mark.slow
def test_a_sentence_found_together_equals_one_drawn_code_by_code():
    model = world_model(("camera",), level0_sampling="autoregressive")
    readout = model.readouts["camera"][0]
    with torch.no_grad():
        for parameter in readout.sentence.parameters():  # let the codes depend on one another strongly
            parameter.mul_(3)
        codes = model.perceive(observe(model, batch=32)).state
        tables = model.table.code_tables()
        level, current = tables.levels["camera"][0], codes.codes["camera"]
        now = current[0]
        features = torch.randn(*now.shape, model.config.adapter_dim, generator=torch.Generator().manual_seed(0))
        sampler = CodeSampler(1.0, torch.Generator().manual_seed(1), model.device)
        inputs = LevelInputs(model, "camera", 0, features, current, [], level, None)
        together, found_log_prob = draw_together(inputs, features, sampler)
        draws = torch.rand(now.shape, generator=torch.Generator().manual_seed(1))
        drawn, log_prob = torch.zeros_like(now), torch.zeros(len(now))
        for index in range(now.shape[1]):
            x = readout.sentence(features, drawn, level.drawn)
            logits = readout.logits(x, level, current, [], None)[:, index]
            drawn[:, index] = pick(logits, (draws[:, index], sampler.temperature))
            log_prob += log_prob_of(logits, drawn[:, index])
    assert torch.equal(together, drawn)
    torch.testing.assert_close(found_log_prob, log_prob, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("sampling", ["parallel", "autoregressive"])
def test_where_one_future_is_certain_the_expected_image_is_its_image(sampling):
    model = world_model(("camera", "touch"), level0_sampling=sampling)
    with torch.no_grad():
        for readout in model.readouts["camera"]:
            readout.copy_bias.fill_(1e4)
    belief = model.perceive(observe(model))
    futures = model.simulate(belief, acts(model, steps=3), temperature=0.0, expected=[0, 2])
    assert torch.equal(futures.expected["camera"], futures.decode("camera", latents=False)[:, [0, 2]])
    assert model.simulate(belief, acts(model, steps=3)).expected == {}
    with pytest.raises(ValueError, match="`expected` steps must be 0 to 2"):
        model.simulate(belief, acts(model, steps=3), expected=[3])


@pytest.mark.parametrize("grid", [(4, 7), (1, 6)])
def test_a_sentence_looks_at_every_code_before_and_at_none_from_there_on(grid):
    torch.manual_seed(0)
    head = AutoregressiveHead(grid, 32, 16)
    head.reset_pan_parameters(1.0)
    codes, table = torch.randint(8, (1, grid[0] * grid[1])), torch.randn(8, 16)
    features = torch.randn(1, codes.shape[1], 16)
    with torch.no_grad():
        before = head(features, codes, table)
        for index in range(codes.shape[1]):
            other = codes.clone()
            other[0, index] = (other[0, index] + 1) % 8
            changed = (head(features, other, table) - before).abs().amax(-1)[0] > 1e-6
            assert changed.tolist() == [place > index for place in range(codes.shape[1])]


def test_a_sentence_is_the_same_with_and_without_gradients():
    torch.manual_seed(0)
    head = AutoregressiveHead((4, 7), 32, 16)
    head.reset_pan_parameters(1.0)
    given = (torch.randn(2, 28, 16), torch.randint(8, (2, 28)), torch.randn(8, 16))
    with torch.no_grad():
        without = head(*given)
    torch.testing.assert_close(head(*given).detach(), without, atol=1e-5, rtol=1e-5)


def test_codes_are_drawn_as_often_as_the_model_says_and_dead_rows_never():
    model = world_model(("camera",))
    sampler = CodeSampler(0.7, torch.Generator().manual_seed(0), model.device)
    logits = torch.tensor([0.3, -1.0, -torch.inf, 2.0, 0.0, -torch.inf])
    many = logits.expand(100_000, -1)
    counts = torch.bincount(pick(many, sampler.picking(many.shape[:1])), minlength=6)
    p = (logits / 0.7).softmax(-1)
    assert counts[[2, 5]].sum() == 0
    error = (p * (1 - p) / len(many)).sqrt()
    assert ((counts / len(many) - p).abs() <= 4 * error).all()


# what a model is made of


def test_a_model_has_few_methods_of_its_own():
    """What embeds, grows, learns, merges and imagines are objects that hold a model; it keeps what users call, and how
    its parts are wired."""
    kinds = (FunctionType, property, classmethod, staticmethod, cached_property)
    ours = [kind for kind in PanModel.__mro__ if kind.__module__.startswith("pan_hf.")]
    methods = [
        f"{kind.__name__}.{name}" for kind in ours for name, value in vars(kind).items() if isinstance(value, kinds)
    ]
    assert len(methods) <= 45, methods


def test_nothing_outside_a_model_reaches_into_it():
    reaching = re.compile(r"\b(?:model|base|still)\._(?!modules\b)[a-z]\w*")  # `_modules` is torch's
    root = Path(__file__).parent.parent
    files = [
        path for folder in ("modeling", "tokenization", "training", "pan_hf") for path in (root / folder).rglob("*.py")
    ]
    found = [f"{path.name}: {match}" for path in files for match in reaching.findall(path.read_text())]
    assert found == []
