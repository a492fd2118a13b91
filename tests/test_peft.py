"""Adapters of PEFT on a world model: any kind, on the backbone by name and on the head, several on one base, swapped
hot, under growth; and what does not belong together is refused."""

import copy
import json
import math
import shutil
import zlib

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from test_growth import OLD, PROMPT, grown_up, observation, pictures
from tiny_worlds import acts, all_tensors, differing, language_model, observe, outcomes, world_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.neftune import neftune_post_forward_hook

from pan_hf import DiscreteAction, PanModel, VectorSense
from pan_hf.adapters import ia3_config, load_adapter, lora_config, save_adapter, targets

KEYS = (*OLD, "key")
KINDS = {
    "dora": ("gpt2", lambda model: lora_config(model, r=2, use_dora=True)),
    "ia3": ("llama", lambda model: ia3_config(model)),
    "adalora": ("qwen3", lambda model: AdaLoraConfig(init_r=3, target_r=2, total_step=4, **targets(model, "lora"))),
}


@pytest.fixture(scope="module")
def bases():
    """A base by architecture, untouched; `fresh` makes copies of it."""
    return {name: grown_up(name) for name in ("qwen3", "llama", "gpt2")}


def fresh(base):
    """A copy of a base with a processor of its own, attached as the base is."""
    return copy.deepcopy(base)


def wrap(model, config, seed=1):
    """An adapter in which nothing is zero, as if it had been trained."""
    adapted = get_peft_model(model, config)
    stir(adapted, seed)
    return adapted


def stir(adapted, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def told(model, kinds=OLD):
    """Logits of a prompt, and codes, rewards and latents of futures."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    seen = observation(base, pictures(2, kinds))
    futures = model.simulate(model.perceive(seen), acts(base, steps=2), seed=0)
    drawn = {f"codes.{n}": level for n, level in enumerate(futures.codes["camera"])}
    drawn |= {"reward": futures.reward, "seen": futures.decode("camera")}
    return drawn | {"logits": model(input_ids=PROMPT).logits}


def losses(model, observed, action):
    state = model.encode(observed)
    state = {"codes": state.codes, "latents": state.latents, "text": state.text, "prefix": model.prefix_ids(observed)}
    return model(objective="dynamics", state=state, action=action, **outcomes())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_any_kind_is_trained_saved_loaded_disabled_merged_and_taken_off(kind, bases, tmp_path):
    architecture, config = KINDS[kind]
    base = bases[architecture]
    model = fresh(base)
    adapted = wrap(model, config(model))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[2] for name in trained} >= {"language_model", "readouts", "outcome"}
    torch.manual_seed(0)
    losses(adapted, observation(model, pictures(2, OLD).repeat(1, 2, 1, 1, 1)), acts(model)).loss.backward()
    reached = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert reached <= trained and not [name for name in trained - reached if "language_model" in name]
    before, after = told(base), told(adapted)
    assert {"logits", "reward"} <= set(differing(before, after))
    save_adapter(adapted, tmp_path / "adapter")
    again = load_adapter(fresh(base), tmp_path / "adapter")
    assert differing(after, told(again)) == []
    with again.disable_adapter():
        assert differing(before, told(again)) == []
    merged = told(again.merge_and_unload())
    torch.testing.assert_close(merged["logits"], after["logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(merged["reward"], after["reward"], atol=1e-4, rtol=1e-4)
    adapted.delete_adapter("default")  # without it, `unload` keeps modules that were trained whole
    assert differing(before, told(adapted.unload())) == []
    size = sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir())
    assert size < 0.5 * sum(tensor.nbytes for tensor in base.state_dict().values())


@pytest.mark.slow
def test_no_reading_of_a_layer_passes_its_adapter_over():
    """Where a weight is multiplied by hand, an adapter would be lost until it is merged."""
    model = world_model(("camera", "touch", "mission"), "vector")
    observed, action = observe(model, steps=2), acts(model)
    everything = LoraConfig(r=2, target_modules="all-linear", use_dora=True)
    convolutions = LoraConfig(r=2, target_modules=r"readouts\.camera\..*neighbours")
    for config in (everything, convolutions):
        adapted = wrap(copy.deepcopy(model), config)
        belief = adapted.perceive(observe(model))
        with torch.no_grad():
            apart = losses(adapted, observed, action).losses
            looked = adapted.simulate(belief, acts(model), seed=0, effort="focused").reward
            merged = adapted.merge_and_unload()
            for name, loss in losses(merged, observed, action).losses.items():
                torch.testing.assert_close(loss, apart[name], atol=1e-4, rtol=1e-4)
            belief = merged.perceive(observe(model))
            again = merged.simulate(belief, acts(model), seed=0, effort="focused").reward
            torch.testing.assert_close(again, looked, atol=1e-4, rtol=1e-4)


FAMILIES = {
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "phi": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "smollm3": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "gemma2": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"num_key_value_heads": 1, "head_dim": 8},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_found_in_any_family_and_in_the_language_model_alone(family):
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=20, **FAMILIES[family]))
    model = PanModel.from_backbone(backbone, {"felt": VectorSense(dim=1)}, DiscreteAction(2), text_reserve=0)
    found = get_peft_model(model, lora_config(model, head=None)).targeted_module_names
    assert found and all(name.startswith("language_model.") for name in found)
    assert not any(name.endswith(("lm_head", "embed_out", "embed_tokens")) for name in found)
    again = targets(model, head=None)["target_modules"]  # what is adapted already is told alike
    assert again == targets(fresh(model.cpu()), head=None)["target_modules"]
    if family == "smollm3":
        with pytest.raises(ValueError, match="names no IA3 layers for a backbone of family 'smollm3'"):
            ia3_config(model)


@pytest.mark.slow
def test_several_adapters_on_one_base_switch_there_and_back_exactly(bases, tmp_path):
    base = bases["qwen3"]
    one = wrap(fresh(base), lora_config(base, r=2), seed=1)
    save_adapter(one, tmp_path / "one")
    two = get_peft_model(fresh(base), ia3_config(base), adapter_name="two")
    stir(two, 2)
    save_adapter(two, tmp_path / "two")
    save_adapter(wrap(fresh(base), LoraConfig(r=3, target_modules=["q_proj", "v_proj"]), seed=3), tmp_path / "three")
    expected = {"one": told(one), "two": told(two)}
    model = load_adapter(fresh(base), tmp_path / "one", adapter_name="one")
    load_adapter(model, tmp_path / "three", adapter_name="three")
    model.set_adapter("three")
    third = told(model)
    assert differing(third, expected["one"])
    model.set_adapter("one")
    assert differing(told(model), expected["one"]) == []
    model.set_adapter("three")
    assert differing(told(model), third) == []
    with model.disable_adapter():
        assert differing(told(model), told(base)) == []
    model.set_adapter("one")
    model.delete_adapter("three")
    assert differing(told(model), expected["one"]) == []
    assert differing(told(load_adapter(fresh(base), tmp_path / "two")), expected["two"]) == []
    with pytest.raises(ValueError, match="has an adapter 'one' already"):
        load_adapter(model, tmp_path / "one", adapter_name="one")


@pytest.mark.slow
def test_an_adapter_is_swapped_hot(bases, tmp_path):
    base, expected = bases["qwen3"], {}
    for seed, name in enumerate(("one", "two"), start=1):
        adapted = wrap(fresh(base), lora_config(base, r=2 * seed, head="lora"), seed)
        save_adapter(adapted, tmp_path / name)
        expected[name] = told(adapted)
    save_adapter(wrap(fresh(base), lora_config(base, r=2)), tmp_path / "whole")
    model = load_adapter(fresh(base), tmp_path / "one")
    hotswap_adapter(model, str(tmp_path / "two"), "default", torch_device="cpu")
    assert differing(told(model), expected["two"]) == []
    load_adapter(model, tmp_path / "one", hotswap=True)
    torch.testing.assert_close(told(model)["logits"], expected["one"]["logits"])
    with pytest.raises(ValueError, match="Only LoRA layers can be hot-swapped"):
        load_adapter(model, tmp_path / "whole", hotswap=True)
    with pytest.raises(ValueError, match="No adapter 'other' to take the place of"):
        load_adapter(model, tmp_path / "two", adapter_name="other", hotswap=True)


@pytest.mark.slow
def test_a_model_grows_under_its_adapter_and_both_come_back(bases, tmp_path):
    """Words, actions, codes found at inference, merged tokens; no shape changes, and a fresh base imagines alike."""
    base = bases["qwen3"]
    model = fresh(base)
    adapted = wrap(model, lora_config(model, r=2, latents=True))
    shapes = {name: tensor.shape for name, tensor in all_tensors(adapted).items()}
    model.grow("text", names=["mug"])
    model.grow("action.0", names=["jump"])
    (growth,) = adapted.observe(observation(model, pictures(8, KEYS)), learn=True).growths
    *_, merges = adapted.merge("camera", pictures(1, OLD).repeat(32, 1, 1, 1, 1), count=2)
    assert growth.accepted and merges.accepted
    assert {name: tensor.shape for name, tensor in all_tensors(adapted).items()} == shapes
    save_adapter(adapted, tmp_path / "adapter")
    other = wrap(fresh(base), LoraConfig(r=2, target_modules=["q_proj"]), seed=5)
    save_adapter(other, tmp_path / "other")
    again = load_adapter(fresh(base), tmp_path / "adapter")
    assert differing(told(adapted, KEYS), told(again, KEYS)) == []
    spelled = again.get_base_model().processor.tokenizer.merges.split(merges.ids)
    assert spelled == model.processor.tokenizer.merges.split(merges.ids) and len(spelled) > len(merges.ids)
    load_adapter(again, tmp_path / "other", adapter_name="other")  # which knows nothing of what was born
    again.set_adapter("other")
    old = base.live_rows
    assert torch.equal(told(again)["logits"][..., old], told(other)["logits"][..., old])
    again.delete_adapter("default")
    with torch.no_grad():  # as if it had been learned otherwise
        model.table.weights()[0][growth.ids[0]] += 1
    save_adapter(adapted, tmp_path / "otherwise")
    with pytest.raises(ValueError, match=r"other rows for tokens that the model's adapters \['other'\] use"):
        load_adapter(again, tmp_path / "otherwise")


# what does not belong together


@pytest.fixture(scope="module")
def saved(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    save_adapter(wrap(fresh(bases["qwen3"]), lora_config(bases["qwen3"], r=2)), folder)
    return folder


def edited_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


BROKEN = {
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "'adapter_model.safetensors'. not"),
    "pickled": (
        lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
        "adapter_model.bin'., which are pickled",
    ),
    "cut weights": (lambda folder: cut(folder / "adapter_model.safetensors"), "damaged or cut short"),
    "cut rows": (lambda folder: cut(folder / "grown.safetensors"), "damaged or cut short"),
    "cut config": (lambda folder: cut(folder / "adapter_config.json"), "damaged or cut short"),
    "cut ledger": (lambda folder: cut(folder / "vocabulary.json"), "vocabulary.json"),
    "without a ledger": (
        lambda folder: [(folder / name).unlink() for name in ("grown.safetensors", "vocabulary.json")],
        "that PEFT saved by itself",
    ),
    "other layers": (lambda folder: edited_config(folder, target_modules=["q_proj"]), "made for other layers"),
    "another rank": (lambda folder: edited_config(folder, r=3), r"lora_A.weight is \(2, 32\), here \(3, 32\)"),
    "unknown layers": (lambda folder: edited_config(folder, target_modules=["w_q"]), "does not fit this base: "),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_adapter_is_refused_and_the_base_stays(what, saved, bases, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "adapter")
    edit, message = BROKEN[what]
    edit(folder)
    before, base = dict(all_tensors(bases["qwen3"])), bases["qwen3"]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_adapter(base, folder)
    assert differing(before, all_tensors(base)) == []


def test_an_adapter_of_another_base_is_refused(saved, bases):
    other = grown_up(seed=7)
    with pytest.raises(ValueError, match="this base has other weights"):
        load_adapter(other, saved)
    for wrong in (bases["llama"], bases["gpt2"]):
        with pytest.raises(ValueError, match="of another model|other weights|other layers"):
            load_adapter(wrong, saved)
    halved = fresh(bases["qwen3"]).to(torch.bfloat16)
    load_adapter(halved, saved)  # the same base in half precision


def test_a_folder_with_other_things_in_it_is_not_replaced(bases, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    adapted = wrap(fresh(bases["qwen3"]), lora_config(bases["qwen3"], r=2))
    with pytest.raises(ValueError, match="holds other things than an adapter"):
        save_adapter(adapted, tmp_path)
    with pytest.raises(ValueError, match="Name one adapter to save"):
        save_adapter(adapted, tmp_path / "new", adapter_name="other")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="`head` must be one of"):
        lora_config(bases["qwen3"], head="all")


@pytest.mark.parametrize("config", [{"target_modules": ["lm_head"]}, {"trainable_token_indices": [3]}])
def test_an_adapter_on_the_table_is_refused_where_it_would_be_passed_over(config, bases):
    model = fresh(bases["llama"])
    adapted = get_peft_model(model, LoraConfig(r=2, **({"target_modules": ["q_proj"]} | config)))
    with pytest.raises(ValueError, match="An adapter is on the vocabulary's table"):
        adapted.simulate(adapted.perceive(observation(model, pictures(1, OLD))), acts(model, batch=1))


# what PEFT documents for tables of words, of a tied and of an untied backbone; the layers as a plain Qwen3 names them
TABLES = {
    "rows of both": {"trainable_token_indices": [6, 7]},
    "rows by name": {"trainable_token_indices": {"embed_tokens": [6, 7]}},
    "rows, tied": {"trainable_token_indices": [6, 7], "ensure_weight_tying": True},
    "both tables": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "one table": {"modules_to_save": ["embed_tokens"]},
    "one table, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "adapter of the head": {"target_modules": ["q_proj", "lm_head"]},
    "adapter of the table": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
@pytest.mark.parametrize("options", TABLES.values(), ids=TABLES)
def test_adapters_of_the_table_do_what_they_do_to_a_plain_language_model(architecture, options, tmp_path):
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])

    def outcome(model, name):
        config = LoraConfig(**({"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False} | options))
        adapted = get_peft_model(model, config).eval()
        for path, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                seed = zlib.crc32(path.replace("language_model.", "").encode())
                parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
        adapted.save_pretrained(tmp_path / name)
        logits = adapted(input_ids=ids).logits
        trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
        again = PeftModel.from_pretrained(fresh_model(name), tmp_path / name)(input_ids=ids).logits
        merged = adapted.merge_and_unload()
        is_tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
        return logits, trained, again, merged(input_ids=ids).logits, is_tied

    def fresh_model(name):
        plain = language_model(architecture)
        return plain if name == "plain" else PanModel.from_backbone(plain).eval()

    plain, ours = outcome(fresh_model("plain"), "plain"), outcome(fresh_model("ours"), "ours")
    assert ours[1] == plain[1] and ours[4] == plain[4]
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_adapters_that_part_tied_tables_are_refused():
    both = {"embed_tokens": [6, 7], "lm_head": [6, 7]}  # a plain Qwen3 ties them; PEFT compares whole names
    model = PanModel.from_backbone(language_model("qwen3"))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=both))
    with pytest.raises(ValueError, match="would keep one. Give `trainable_token_indices` as a list"):
        adapted(input_ids=torch.tensor([[5, 6]]))
    whole = {"language_model.model.embed_tokens": [6, 7], "language_model.lm_head": [6, 7]}
    model = PanModel.from_backbone(language_model("qwen3"))
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=whole, init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    before = adapted(input_ids=torch.tensor([[5, 6]])).logits
    torch.testing.assert_close(adapted.merge_and_unload()(input_ids=torch.tensor([[5, 6]])).logits, before)


def test_noise_on_embeddings_reaches_a_world_model_s_training():
    model = world_model(senses=("camera", "touch", "heard", "mission"))
    table = model.get_input_embeddings()
    table.neftune_noise_alpha = 5.0
    hook = table.register_forward_hook(neftune_post_forward_hook)
    observed, action = observe(model, 2, 3), acts(model, 2, 2)
    zeros = torch.zeros(2, 2)

    def loss():
        torch.manual_seed(0)
        batch = {"observation": observed, "action": action, "reward": zeros, "done": zeros}
        return float(model.train()(objective="joint", **batch).loss)

    noisy = loss()
    hook.remove()
    assert noisy != loss() and math.isfinite(noisy)


def test_transformers_own_way_to_add_an_adapter_works_or_names_the_other(monkeypatch):
    model = world_model(senses=("camera",))
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "99.0")
    with pytest.raises(
        ValueError, match=r"99\.0.* `peft.get_peft_model\(model, config\)` works with the one installed"
    ):
        model.add_adapter(lora_config(model))
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.1")
    model.add_adapter(lora_config(model, r=2))
    model.simulate(model.perceive(observe(model)), acts(model, 2, 1), seed=0)
