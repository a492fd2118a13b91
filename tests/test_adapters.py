"""Growth under LoRA: before and after wrapping, trained, saved small, put back on the base, refused by another."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_growth import OLD, PROMPT, grown_up, observation, pictures, psnr
from tiny_worlds import all_tensors, differing

from pan_hf.adapters import GROWN, load_adapter, save_adapter, train_grown_rows
from pan_hf.checkpoints import load, save_checkpoint

KEYS = (*OLD, "key")
TARGETS = {"qwen3": r"language_model\..*\.(q|v)_proj", "llama": r"language_model\..*\.(q|v)_proj"}
TARGETS |= {"gpt2": r"language_model\..*\.c_attn"}


@pytest.fixture(params=["qwen3", "llama", "gpt2"])
def base(request, tmp_path):
    """A saved base; `load(base)` gives it fresh."""
    model = grown_up(request.param)
    save_checkpoint(tmp_path / "base", model, model.processor)
    return tmp_path / "base"


def wrap(model):
    torch.manual_seed(0)
    architecture = model.config.text_config.model_type
    config = LoraConfig(r=2, target_modules=TARGETS[architecture], init_lora_weights=False)
    return get_peft_model(model, config)


def train(adapted, ids, steps=2):
    train_grown_rows(adapted.get_base_model())
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    prompt = torch.cat([PROMPT, torch.tensor([list(ids)])], 1).repeat(1, 2)
    for _ in range(steps):
        optimizer.zero_grad()
        adapted(input_ids=prompt, labels=prompt, codes_in_text=True).loss.backward()
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["before", "after"])
def test_an_adapter_brings_what_was_born_and_learned_to_its_base(order, base, tmp_path):
    model, _ = load(base)
    adapted = wrap(model) if order == "after" else None
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    mug = model.grow("text", names=["mug"])
    model.grow("action.0", names=["jump"])
    (growth,) = model.learn(observation(model, pictures(8, KEYS)))
    model.retire("camera.0", [1], into=0)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    adapted = adapted or wrap(model)
    rows = [table.detach().clone() for table in model.table.weights()]
    ids = [*mug, *growth.ids]
    train(adapted, ids)
    for table, old in zip(model.table.weights(), rows, strict=True):
        moved = (table != old).any(1).nonzero().squeeze(1).tolist()
        assert moved and set(moved) <= {*ids, model.processor.vocabulary.offset("action.0") + 4}
    save_adapter(adapted, tmp_path / "adapter")
    fresh, _ = load(base)
    again = load_adapter(fresh, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=PROMPT).logits, adapted(input_ids=PROMPT).logits)
    assert torch.equal(fresh.live_rows, model.live_rows)
    assert fresh.processor.vocabulary.digest() == model.processor.vocabulary.digest() == fresh.config.vocabulary_digest
    frames = pictures(8, KEYS, seed=4)
    assert psnr(fresh, frames, ["key"]) == psnr(model, frames, ["key"]) > 40
    assert fresh.config.action.num_actions == 5
    size = sum(path.stat().st_size for path in (tmp_path / "adapter").glob("*.safetensors"))
    assert size < 0.2 * sum(path.stat().st_size for path in base.glob("*.safetensors"))


@pytest.mark.slow
def test_growth_under_an_adapter_goes_on_after_loading(base, tmp_path):
    model, _ = load(base)
    model.grow("text", names=["mug"])
    save_adapter(wrap(model), tmp_path / "one")
    fresh, _ = load(base)
    again = load_adapter(fresh, tmp_path / "one", is_trainable=True)
    fresh.grow("text", names=["lava"])
    save_adapter(again, tmp_path / "two")
    assert len(load_file(tmp_path / "two" / GROWN)["table.0"]) == 2
    last, _ = load(base)
    load_adapter(last, tmp_path / "two")
    assert last.processor.tokenizer.convert_tokens_to_ids(["mug", "lava"]) == [90, 91]


@pytest.mark.slow
def test_a_base_that_went_another_way_is_refused_and_stays_as_it_was(base, tmp_path):
    model, _ = load(base)
    model.grow("text", names=["mug"])
    save_adapter(wrap(model), tmp_path / "adapter")
    other, processor = load(base)
    other.grow("camera.0", vectors=torch.ones(1, 4))
    before = {name: tensor.clone() for name, tensor in all_tensors(other).items()}
    mine, theirs = processor.vocabulary.digest(), model.processor.vocabulary.digest()
    with pytest.raises(ValueError, match=f"digest {mine}(?s:.*)has {theirs}(?s:.*)first differing event"):
        load_adapter(other, tmp_path / "adapter")
    assert differing(before, all_tensors(other)) == [] and processor.vocabulary.digest() == mine


@pytest.mark.slow
def test_a_base_older_than_the_adapter_s_is_refused(base, tmp_path):
    model, processor = load(base)
    model.grow("text", names=["mug"])
    save_checkpoint(tmp_path / "newer", model, processor)
    newer, _ = load(tmp_path / "newer")
    newer.grow("text", names=["lava"])
    save_adapter(wrap(newer), tmp_path / "adapter")
    older, _ = load(base)
    with pytest.raises(ValueError, match="was made on"):
        load_adapter(older, tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match="No adapter at"):
        load_adapter(older, tmp_path)
