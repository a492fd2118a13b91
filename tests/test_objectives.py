"""What training minimises: every part has a name, reaches what it should, and is the number it says it is."""

import pytest
import torch
from tiny_worlds import PAD, acts, differing, language_model, observe, outcomes, world_model

from pan_hf import PanModel
from pan_hf.modeling.configuration_pan import LOSS_WEIGHTS
from pan_hf.modeling.heads_pan import reward_bins, symexp, symlog, two_hot
from pan_hf.modeling.image_codec_pan import PARKED, Codebook
from pan_hf.modeling.imagination_pan import latent_examples
from pan_hf.modeling.objectives_pan import _generative_loss, _vector_loss

EVERYTHING = ("camera", "touch", "heard", "mission")


def joint(model, batch=4, seed=0, **override):
    """The joint objective on a random window."""
    steps = model.config.context_steps
    given = {"observation": observe(model, batch, steps + 1, seed), "action": acts(model, batch, steps, seed)}
    return model(objective="joint", **(given | outcomes(batch, steps, seed) | override))


def encoded(model, batch=4, seed=0):
    """A random window, encoded, as the dynamics objective takes it."""
    steps = model.config.context_steps
    observation = observe(model, batch, steps + 1, seed)
    with torch.no_grad():
        state = model.encode(observation)
    given = {"codes": state.codes, "latents": state.latents, "text": state.text}
    if model.config.prefix_senses:
        given["prefix"] = model.prefix_ids(observation)
    return {"state": given, "action": acts(model, batch, steps, seed), **outcomes(batch, steps, seed)}


def reached(model):
    """Names of the parameters with a gradient that is not zero, and of all others."""
    has = {name: p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters()}
    return {name for name, found in has.items() if found}, {name for name, found in has.items() if not found}


@pytest.mark.parametrize("action", ["discrete", "vector", "text"])
@pytest.mark.parametrize(
    "architecture, config",
    [
        ("qwen3", {"level0_sampling": "autoregressive"}),
        ("llama", {"fold_levels": False, "context_steps": 2}),
        ("gpt2", {}),
    ],
)
def test_the_joint_objective_reaches_every_parameter_but_the_switch(architecture, config, action):
    model = world_model(EVERYTHING, action, architecture, latent_dropout=0.0, **config).train()
    torch.manual_seed(0)
    joint(model).loss.backward()
    _, left_out = reached(model)
    assert left_out == {name for name, _ in model.named_parameters() if name.startswith("switch.")}


def test_every_loss_has_a_name_and_a_weight():
    model = world_model(EVERYTHING)
    found = joint(model)
    expected = {"camera.0", "camera.1", "touch.0", "touch.1", "touch.2", "heard.text", "camera.latents"}
    expected |= {"touch.latents", "camera.generative", "touch.generative", "camera.0.vectors", "camera.1.vectors"}
    expected |= {"camera.reconstruction", "camera.commitment", "reward", "continuation", "inverse_dynamics"}
    expected |= {"camera.change"}
    assert set(found.losses) == expected
    assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in found.losses.values())
    kinds = {name: "codes" if name[-1].isdigit() else name.split(".")[-1] for name in expected}
    total = sum(LOSS_WEIGHTS[kinds[name]] * loss.item() for name, loss in found.losses.items())
    assert found.loss.item() == pytest.approx(total, rel=1e-5)
    assert {"camera.0.accuracy", "touch.2.accuracy_changed"} <= set(found.metrics)


def test_a_weight_of_zero_leaves_a_loss_out_of_the_sum_but_not_out_of_the_log():
    model = world_model(("camera",), loss_weights=dict.fromkeys(LOSS_WEIGHTS, 0.0) | {"reward": 2.0})
    found = joint(model)
    assert float(found.loss) == pytest.approx(2 * float(found.losses["reward"]))
    assert float(found.losses["camera.1"]) > 0


def test_the_vector_loss_is_least_at_the_true_mean_and_1_where_everything_stands_still():
    book = Codebook(3, 4, 1)
    book.vectors.copy_(torch.tensor([[0.0], [2.0], [PARKED], [0.0]]))
    book.live[:3], book.started[:] = True, True
    now, target = torch.zeros(4, 1, dtype=torch.long), torch.tensor([[0], [0], [0], [1]])

    def loss(*probabilities, share=(1.0, 1.0, 1.0, 1.0)):
        logits = torch.tensor([*probabilities, 0.0]).log().expand(4, 1, 4)
        return float(_vector_loss(book, logits, now, target, torch.tensor(share).unsqueeze(1)))

    assert loss(1.0, 0.0, 0.0) == pytest.approx(1.0)
    assert loss(0.75, 0.25, 0.0) == pytest.approx(0.75)
    assert loss(0.75, 0.25, 0.0) < min(loss(0.7, 0.3, 0.0), loss(0.8, 0.2, 0.0))
    assert loss(0.7, 0.2, 0.1) < 1.0  # what a code that describes nothing is parked on counts for nothing
    assert loss(0.0, 1.0, 0.0, share=(0.0, 0.0, 0.0, 1.0)) == pytest.approx(0.0)


def only_generative(model):
    torch.manual_seed(0)
    joint(model).losses["camera.generative"].backward()
    return reached(model)[0]


def test_the_generative_loss_counts_a_transition_as_much_as_it_matters():
    model = world_model(("camera",))
    after = observe(model, 2, 1)["camera"][:, 0]
    imagined = torch.zeros(after.shape)
    one = _generative_loss(model, "camera", imagined, after, torch.tensor([1.0, 0.0]))
    assert one == pytest.approx(float(_generative_loss(model, "camera", imagined[:1], after[:1], None)))
    assert one != pytest.approx(float(_generative_loss(model, "camera", imagined, after, None)))


@pytest.mark.parametrize("part", ["senses.camera.stem", "senses.camera.encoder", "senses.camera.to_latent"])
def test_the_generative_loss_alone_reaches_the_encoder(part):
    model = world_model(("camera",), latent_dropout=0.0).train()
    assert any(name.startswith(part) for name in only_generative(model))


@pytest.mark.parametrize("part", ["embed_tokens", "layers.0.self_attn", "layers.1.mlp", "norm"])
def test_the_generative_loss_alone_reaches_the_backbone(part):
    model = world_model(("camera",)).train()
    assert any(name.startswith(f"language_model.model.{part}") for name in only_generative(model))


def test_the_generative_loss_alone_reaches_the_latent_head_readouts_and_decoder():
    model = world_model(("camera",)).train()
    found = only_generative(model)
    for part in ("latent_heads.camera.denoiser", "latent_heads.camera.condition", "readouts.camera.0"):
        assert any(name.startswith(part) for name in found), part
    assert {name for name in found if name.startswith("senses.camera.decoder")}
    # and nothing that is not on the way from one observation to the next
    assert not {name for name in found if name.startswith(("outcome", "inverse_dynamics"))}


def test_dynamics_reaches_backbone_and_heads_but_no_sense_and_no_latent_head():
    model = world_model(EVERYTHING, latent_dropout=0.0).train()
    model(objective="dynamics", **encoded(model)).loss.backward()
    _, left_out = reached(model)
    others = ("senses.", "latent_heads.", "switch.")
    assert left_out == {name for name, _ in model.named_parameters() if name.startswith(others)}


def test_dynamics_changes_no_buffer():
    model = world_model(EVERYTHING).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(objective="dynamics", **encoded(model)).loss.backward()
    assert differing(before, dict(model.named_buffers())) == []


def test_dynamics_on_codes_and_joint_on_pixels_agree():
    model = world_model(("camera", "touch", "mission"), context_steps=2)
    by_codes, by_pixels = model(objective="dynamics", **encoded(model)).losses, joint(model).losses
    for name, loss in by_codes.items():
        torch.testing.assert_close(by_pixels[name], loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change_weight", [1.0, 5.0])
def test_however_much_change_weighs_the_best_logits_are_the_true_distribution(change_weight):
    from pan_hf.modeling.objectives_pan import _change_weighted

    true, now = torch.tensor([0.7, 0.2, 0.1]), torch.zeros(3, 1, dtype=torch.long)
    target = torch.arange(3).unsqueeze(-1)  # each outcome once, weighted by how often it happens
    weight = true * torch.where(target[:, 0] == 0, 1.0, change_weight)
    logits = true.log().requires_grad_()
    _change_weighted(logits.expand(3, 1, 3), now, target, weight, change_weight).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3), atol=1e-6, rtol=0)


def test_without_extra_weight_the_loss_is_the_mean_nll_of_the_codes():
    model = world_model(("camera",), change_weight=1.0)
    given = encoded(model)
    found, per_code = model(objective="dynamics", **given).losses["camera.0"], nll_of_codes(model, given)
    assert found.item() == pytest.approx(per_code.mean().item(), rel=1e-5)
    importance = torch.tensor([1.0, 0.0, 3.0, 0.0])
    found = model(objective="dynamics", importance=importance, **given).losses["camera.0"]
    by_window = per_code.unflatten(0, (4, -1)).mean(1)
    assert found.item() == pytest.approx(((by_window[0] + 3 * by_window[2]) / 4).item(), rel=1e-5)


def nll_of_codes(model, given):
    """Minus the log probability of each code of level 0, from the logits."""
    from pan_hf.modeling.objectives_pan import _code_losses, _teacher_forced
    from pan_hf.modeling.state_pan import State

    state = State(given["state"]["codes"], given["state"]["latents"], given["state"]["text"])
    with torch.no_grad():
        _, _, logits = _code_losses(model, _teacher_forced(model, state, given["action"], None), None)
    target = state.codes["camera"][0][:, 1:].flatten(0, 1)
    return -logits["camera"][0].log_softmax(-1).gather(-1, target.unsqueeze(-1)).flatten()


def test_joint_training_moves_no_codebook_and_the_senses_stage_only_in_training():
    model = world_model(("camera",))
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "codebooks" in name}

    def moved():
        return differing(before, {name: buffer for name, buffer in model.named_buffers() if "codebooks" in name})

    joint(model.train())
    model.eval()(objective="senses", observation=observe(model, 4, 3))
    assert moved() == []
    model.train()(objective="senses", observation=observe(model, 4, 3))
    assert moved() != []


def test_what_stands_behind_a_text_s_end_costs_nothing():
    model = world_model(("heard",))
    given = encoded(model)
    given["state"]["text"]["heard"][:, 1] = torch.tensor([7, PAD, PAD, PAD])
    one = model(objective="dynamics", **given).losses["heard.text"]
    from pan_hf.modeling.objectives_pan import text_counts

    assert text_counts(torch.tensor([[7, PAD, PAD, PAD], [7, 8, 9, 4]]), PAD).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    given["state"]["text"]["heard"][:, 1, 2:] = PAD
    assert torch.equal(model(objective="dynamics", **given).losses["heard.text"], one)


def test_text_is_the_language_model_s_own_loss():
    backbone = language_model()
    model = PanModel.from_backbone(backbone).eval()
    ids = torch.randint(3, 90, (2, 8))
    labels = ids.masked_fill(torch.rand(2, 8) < 0.3, -100)
    found = model(objective="text", input_ids=ids, labels=labels)
    torch.testing.assert_close(found.loss, backbone(ids, labels=labels).loss)
    assert set(found.losses) == {"text"}


def test_latents_in_the_trunk_are_noisy_and_often_missing_in_training_only():
    from pan_hf.modeling.objectives_pan import _trunk_latents

    model = world_model(("camera",), latent_dropout=0.5, latent_noise=0.1)
    state = model.encode(observe(model, 64)).map(lambda tensor: tensor[:, 0])
    assert _trunk_latents(model, state) is state
    torch.manual_seed(0)
    found = _trunk_latents(model.train(), state).latents["camera"]
    missing = (found == 0).flatten(1).all(1)
    assert 20 < int(missing.sum()) < 44  # 32 of 64 expected, standard deviation 4
    noise = (found - state.latents["camera"])[~missing]
    assert noise.std().item() == pytest.approx(0.1, rel=0.15)


def test_a_reward_is_written_on_two_bins_and_read_back():
    rewards = torch.tensor([-10.0, -0.3, 0.0, 1.0, 9.7])
    weights = two_hot(rewards, 10.0)
    assert ((weights > 0).sum(-1) <= 2).all() and torch.allclose(weights.sum(-1), torch.ones(5))
    torch.testing.assert_close(weights @ reward_bins(10.0), symlog(rewards))
    torch.testing.assert_close(symexp(symlog(rewards)), rewards)
    assert two_hot(torch.tensor([99.0]), 10.0)[0, -1] == 1


def test_latent_head_alone_trains_on_latents_and_on_what_they_decode_to():
    model = world_model(("camera", "touch")).requires_grad_(False)
    model.latent_heads.requires_grad_(True)
    examples = latent_examples(model, observe(model, 4, 3), acts(model, 4, 2))[-1]
    found = model.train()(objective="latent_head", **examples)
    assert set(found.losses) == {"camera.latents", "camera.latent_reconstruction", "touch.latents"}
    found.losses["camera.latent_reconstruction"].backward(retain_graph=True)
    assert {name.split(".")[1] for name in reached(model)[0]} == {"camera"}
    found.loss.backward()
    assert {name.split(".")[1] for name in reached(model)[0]} == {"camera", "touch"}
    assert all(name.startswith("latent_heads.") for name in reached(model)[0])


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"fold_levels": False, "level0_sampling": "autoregressive"}])
def test_dynamics_learns_one_batch_by_heart(config):
    model = world_model(("camera", "heard"), context_steps=2, **config).train()
    given = encoded(model, batch=4)
    given["state"]["latents"] = {}
    trained = [p for n, p in model.named_parameters() if not n.startswith(("senses.", "latent_heads."))]
    optimizer = torch.optim.AdamW(trained, 1e-2, weight_decay=0.0)
    torch.manual_seed(0)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, 2 * (100 - step) / 100)
        optimizer.zero_grad()
        found = model(objective="dynamics", **given)
        found.loss.backward()
        optimizer.step()
    assert all(float(found.losses[name]) < 0.05 for name in ("camera.0", "camera.1", "heard.text", "inverse_dynamics"))
    assert float(found.metrics["camera.1.accuracy"]) == 1.0
