"""What `--optim` names is what a stage trains with."""

import pytest
import torch
from tiny_worlds import world_model

from pan_hf.training import align
from pan_hf.training.arguments import arguments
from pan_hf.training.optimizers import build_optimizer, hidden_weights


def told(tmp_path, **given):
    return arguments(align.DYNAMICS, model="model", data="data", output_dir=str(tmp_path), **given)


def built(model, args):
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return build_optimizer(model, args, [{"params": named, "lr": args.learning_rate, "weight_decay": 0.0}])


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2"])  # tied, untied, and with layers of its own kind
def test_muon_takes_hidden_weights_and_adamw_everything_else(architecture, tmp_path):
    model = world_model(("camera", "touch"), architecture=architecture)
    optimizer = built(model, told(tmp_path, optim="muon", learning_rate=1e-2))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_muon, by_adam = (
        {names[id(p)] for group in optimizer.param_groups if group["use_muon"] == is_hidden for p in group["params"]}
        for is_hidden in (True, False)
    )
    assert by_muon == hidden_weights(model) & set(names.values()) and not by_muon & by_adam
    assert by_muon | by_adam == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    vocabulary = {names[id(model.get_input_embeddings().weight)], names[id(model.get_output_embeddings().weight)]}
    assert vocabulary | {"queries.camera", "state_embeddings.camera.place"} <= by_adam
    assert "readouts.camera.0.blocks.0.neighbours.weight" in by_muon  # a convolution
    layers = {name for name in by_muon if name.startswith("language_model.")}
    assert len(layers) == (4 if architecture == "gpt2" else 7) * 2


def test_a_step_of_muon_is_as_large_in_every_direction_of_a_weight(tmp_path):
    model = world_model(("camera",))
    weight = model.readouts["camera"][0].blocks[0].expand.weight
    before = weight.detach().clone()
    optimizer = built(model, told(tmp_path, optim="muon", learning_rate=1e-2))
    directions = torch.linalg.qr(torch.randn(weight.shape[1], weight.shape[1]))[0]
    scale = torch.logspace(0, -2, weight.shape[1])  # gradients in some directions are a hundred times those in others
    weight.grad = torch.linalg.qr(torch.randn(weight.shape))[0] @ torch.diag(scale) @ directions
    optimizer.step()
    sizes = torch.linalg.svdvals(weight.detach() - before)
    assert sizes.max() < 4 * sizes.min()
    rms = (weight.detach() - before).square().mean().sqrt()
    assert 0.05 < rms / 1e-2 < 0.4  # what AdamW's steps come to, times the learning rate


def test_optimizers_of_transformers_are_taken_by_name(tmp_path):
    model = world_model(("camera",))
    assert type(built(model, told(tmp_path))) is torch.optim.AdamW
    assert type(built(model, told(tmp_path, optim="sgd"))) is torch.optim.SGD


def test_an_unknown_optimizer_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="adamm"):
        told(tmp_path, optim="adamm")


def test_an_optimizer_that_chooses_its_own_parameters_is_refused(tmp_path, monkeypatch):
    model, args = world_model(("camera",)), told(tmp_path)
    choosing = (torch.optim.SGD, {"lr": 0.1, "params": []})
    monkeypatch.setattr("pan_hf.training.optimizers.Trainer.get_optimizer_cls_and_kwargs", lambda *_: choosing)
    with pytest.raises(ValueError, match="take another optimizer"):
        built(model, args)
