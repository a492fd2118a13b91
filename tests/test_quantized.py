"""A backbone in 8 or 4 bits. What needs a quantiser is run by `make test-extras`, which installs them."""

import pytest
import torch
from tiny_worlds import SENSES, acts, observe, outcomes
from transformers import AqlmConfig, AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, TorchAoConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from pan_hf import DiscreteAction, PanModel
from pan_hf.adapters import lora_config
from pan_hf.modeling.loading_pan import layers_alone

EIGHT_BITS, FOUR_BITS = {"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A world model whose widths suit a quantiser's blocks, and its checkpoint."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    backbone = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=90, initializer_range=0.1, **shape))
    senses = {name: SENSES[name] for name in ("camera", "touch", "mission")}
    model = PanModel.from_backbone(backbone, senses, DiscreteAction(4), text_reserve=10, adapter_dim=16).eval()
    folder = tmp_path_factory.mktemp("quantized")
    model.save_pretrained(folder)
    return model, folder


def scores(model):
    """Log-probabilities of the codes of random transitions, `(3, 2)` nats."""
    later = {name: value for name, value in observe(model, 3, 2, seed=1).items() if name != "mission"}
    return model.log_prob(model.perceive(observe(model, 3)), acts(model, 3, 2), later, latents=False).codes


def imagined(model):
    return model.simulate(model.perceive(observe(model, 3)), acts(model, 3, 3), seed=0).log_prob


def test_all_that_is_quantised_is_the_backbones_layers(saved):
    (pattern,) = layers_alone({"quant_method": "bitsandbytes", **EIGHT_BITS}).llm_int8_skip_modules
    linear = [name for name, module in saved[0].named_modules() if isinstance(module, torch.nn.Linear)]
    converted = {name for name in linear if should_convert_module(name, [pattern])}
    assert converted == {name for name in linear if name.startswith("language_model.model.layers.")}
    assert len(converted) == 2 * 7
    assert should_convert_module("language_model.transformer.h.1.attn.c_attn", [pattern])
    assert not should_convert_module("language_model.embed_out", [pattern])


def test_what_a_user_spares_is_spared_too_and_the_users_own_configuration_stays():
    given = BitsAndBytesConfig(**EIGHT_BITS, llm_int8_skip_modules=["down_proj"])
    skipped = layers_alone(given).llm_int8_skip_modules
    assert given.llm_int8_skip_modules == ["down_proj"]
    assert not should_convert_module("language_model.model.layers.0.mlp.down_proj", skipped)
    assert should_convert_module("language_model.model.layers.0.mlp.up_proj", skipped)


def test_a_method_that_cannot_be_told_what_to_spare_is_refused(saved):
    with pytest.raises(ValueError, match="AqlmConfig has neither of .*Use BitsAndBytesConfig or TorchAoConfig"):
        PanModel.from_pretrained(saved[1], quantization_config=AqlmConfig())


def test_a_world_model_is_made_from_whole_weights(saved):
    backbone = AutoModelForCausalLM.from_config(saved[0].config.text_config)
    backbone.is_quantized = True  # as every quantiser of Transformers marks it
    with pytest.raises(ValueError, match="is quantised. Make the world model from its whole weights"):
        PanModel.from_backbone(backbone, {"touch": SENSES["touch"]}, DiscreteAction(4))


def bits(quantization_config, folder):
    return PanModel.from_pretrained(folder, quantization_config=quantization_config).eval()


# nats of 80 to 120: a random backbone says little, and what it says is rounded to 8 or 4 bits
@pytest.mark.parametrize(("settings", "largest"), [(EIGHT_BITS, 0.05), (FOUR_BITS, 1.0)])
def test_loaded_by_bitsandbytes_it_imagines_much_the_same_and_is_saved_so(saved, settings, largest, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install 'pan_hf[quantize]'")
    model, folder = saved
    few = bits(BitsAndBytesConfig(**settings), folder)
    assert {type(p).__name__ for n, p in few.named_parameters() if ".layers." not in n} == {"Parameter"}
    assert few.get_memory_footprint() < model.get_memory_footprint() and few.is_quantized
    assert 0 < (scores(model) - scores(few)).abs().max() < largest
    written = few.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False)
    assert written.shape == (1, 5)
    few.save_pretrained(tmp_path)
    assert torch.equal(imagined(PanModel.from_pretrained(tmp_path).eval()), imagined(few))


def test_loaded_by_torchao_it_imagines_much_the_same_and_saving_says_what_to_do(saved, tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="pip install 'pan_hf[quantize]'")
    model, folder = saved
    few = bits(TorchAoConfig(quantization.Int8WeightOnlyConfig()), folder)
    kinds = {n: type(p).__name__ for n, p in few.named_parameters() if type(p) is not torch.nn.Parameter}
    assert len(kinds) == 2 * 7 and all(".layers." in name for name in kinds)
    assert 0 < (scores(model) - scores(few)).abs().max() < 0.05
    assert imagined(few).isfinite().all()
    with pytest.raises(ValueError, match="quantised by torchao cannot be read back.*BitsAndBytesConfig"):
        few.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("settings", [EIGHT_BITS, FOUR_BITS])
def test_an_adapter_learns_on_a_quantised_backbone(saved, settings):
    pytest.importorskip("bitsandbytes", reason="pip install 'pan_hf[quantize]'")
    from peft import get_peft_model

    base = bits(BitsAndBytesConfig(**settings), saved[1])
    adapted = get_peft_model(base, lora_config(base)).train()
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], 1e-3)
    given = {"observation": observe(base, 4, 2), "action": acts(base, 4, 1), **outcomes(4, 1)}
    losses = []
    for _ in range(8):
        torch.manual_seed(0)
        loss = adapted(objective="joint", **given).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
