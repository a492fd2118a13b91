"""Other precisions, attentions and memories than the usual: what stays float32 does, and nothing else changes."""

import pytest
import torch
from tiny_worlds import acts, all_tensors, differing, observe, outcomes, world_model

from pan_hf import PanModel

SENSES = ("camera", "touch", "mission")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model in float32, and its checkpoint in several files."""
    model, folder = world_model(SENSES, "vector"), tmp_path_factory.mktemp("precision")
    model.save_pretrained(folder, max_shard_size="200KB")
    return model, folder


def losses(model, seed=0):
    """The loss of one training step, every draw of it repeatable."""
    torch.manual_seed(seed)
    given = {"observation": observe(model, 4, 2), "action": acts(model, 4, 1), **outcomes(4, 1)}
    return model(objective="joint", **given)


def imagined(model, **kwargs):
    belief = model.perceive(observe(model, 3))
    return model.simulate(belief, acts(model, 3, 3), seed=0, temperature=0.0, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_imagines_generates_and_learns(saved, dtype):
    half = PanModel.from_pretrained(saved[1], dtype=dtype).eval()
    assert half.dtype == dtype and next(half.senses.parameters()).dtype == torch.float32
    for effort in (None, "auto"):
        futures = imagined(half, effort=effort)
        assert futures.reward.dtype == futures.log_prob.dtype == torch.float32
        assert torch.isfinite(futures.log_prob).all() and torch.isfinite(futures.reward).all()
    assert futures.decode("touch").dtype == torch.float32
    written = half.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False)
    assert written.shape == (1, 5) and bool(half.live_rows[written].all())
    found = losses(half.train())
    assert found.loss.dtype == torch.float32
    found.loss.backward()
    gradients = {name: each.grad for name, each in half.named_parameters() if each.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    kept = ("senses.", "latent_heads.")
    assert {gradient.dtype for name, gradient in gradients.items() if not name.startswith(kept)} == {dtype}


CASTS = {
    "autocast": lambda model: model,
    "half": torch.nn.Module.half,
    "bfloat16": torch.nn.Module.bfloat16,
    "to": lambda model: model.to(torch.bfloat16),
    "and back": lambda model: model.half().float(),
}


@pytest.mark.slow
@pytest.mark.parametrize("cast", CASTS)
def test_codes_are_the_same_however_a_model_is_cast_and_it_imagines_on(saved, cast):
    model, folder = saved
    frames = observe(model, 16)
    true = model.encode(frames)
    other = CASTS[cast](PanModel.from_pretrained(folder).eval())
    assert {each.dtype for each in other.senses.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
        found = other.encode(frames)
        assert all(map(torch.equal, found.tensors(), true.tensors()))
        assert torch.equal(found.latents["camera"], true.latents["camera"])
        futures = imagined(other)
        assert futures.decode("camera").dtype == torch.uint8 and bool(futures.log_prob.isfinite().all())
    assert differing(all_tensors(model.senses), all_tensors(other.senses)) == []  # nothing was rounded


def test_masses_of_digits_are_float32_whatever_the_features_are(saved):
    half = PanModel.from_pretrained(saved[1], dtype=torch.bfloat16).eval()
    sense, density = half.config.senses["touch"], half.readouts["touch"][2].density
    now = [torch.randint(sense.base, (2, 3)) for _ in range(3)]
    features = torch.randn(2, 3, half.config.adapter_dim, dtype=torch.bfloat16)
    numbers = torch.rand(2, density.linear.shape[1])
    found = density(features, now, now[:2], numbers)
    assert found.dtype == torch.float32
    assert torch.equal(found, density(features.float(), now, now[:2], numbers))


@pytest.mark.slow
def test_auto_is_the_precision_that_was_saved(saved, tmp_path):
    half = PanModel.from_pretrained(saved[1], dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    again = PanModel.from_pretrained(tmp_path, dtype="auto")
    assert differing(all_tensors(half), all_tensors(again)) == []
    assert {n: t.dtype for n, t in all_tensors(half).items()} == {n: t.dtype for n, t in all_tensors(again).items()}


def layers_on_disk(model):
    """A device map with everything but the backbone's layers in memory."""
    backbone = model.language_model
    held = [name for name, _ in [*model.named_children(), *model.named_buffers(recurse=False)]]
    held += [f"language_model.{name}" for name, _ in backbone.named_children()]
    held += [f"language_model.model.{name}" for name, _ in backbone.model.named_children()]
    held = set(held) - {"language_model", "language_model.model"}
    return dict.fromkeys(held, "cpu") | {"language_model.model.layers": "disk"}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["auto", "disk"])
def test_placed_by_a_map_or_half_on_disk_it_imagines_the_same(saved, where, tmp_path):
    model, folder = saved
    where = layers_on_disk(model) if where == "disk" else where
    placed = PanModel.from_pretrained(folder, device_map=where, offload_folder=tmp_path).eval()
    is_on_disk = next(placed.language_model.base_model.layers.parameters()).device.type == "meta"
    assert is_on_disk == (where != "auto")
    one, other = imagined(model, effort="focused"), imagined(placed, effort="focused")
    assert one.keys() == other.keys() and torch.equal(one.log_prob, other.log_prob)


@pytest.mark.slow
def test_checkpointed_activations_change_neither_loss_nor_gradients(saved):
    model = PanModel.from_pretrained(saved[1]).train()
    found = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            model.activation_checkpointing_enable()
        model.zero_grad()
        loss = losses(model).loss
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert torch.equal(found[0][0], found[1][0])
    assert differing(found[0][1], found[1][1]) == []


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_every_attention_looks_at_the_same(saved, attention):
    model, folder = saved
    other = PanModel.from_pretrained(folder, attn_implementation=attention).eval()
    with torch.compiler.set_stance("force_eager"):  # flex would compile itself for minutes
        for effort in (None, "focused"):
            one, two = imagined(model, effort=effort), imagined(other, effort=effort)
            assert one.keys() == two.keys()
            # sums in another order
            torch.testing.assert_close(one.log_prob, two.log_prob, atol=1e-4, rtol=1e-4)
