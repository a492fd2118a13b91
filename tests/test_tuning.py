"""How a stage trains a backbone that was loaded: what it keeps to the bit, what it writes, and what is refused.

The backbone is a tiny random one in a folder, which is as good as a pretrained one: it has weights to lose.
"""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from tiny_worlds import BOARD_OPTIONS, all_tensors, differing, language_model, record_board
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks import words
from pan_hf import PanModel, PanProcessor
from pan_hf.adapters import BASE, base_of
from pan_hf.build import build
from pan_hf.checkpoints import PARTS, load, save_checkpoint
from pan_hf.data.trajectories import load_trajectories
from pan_hf.reporting.tables import select
from pan_hf.training import align, distributed, pretrain_senses, reinforce, trainer
from pan_hf.training.arguments import arguments
from pan_hf.training.pipeline import SHARES, train
from pan_hf.training.stage import run
from pan_hf.training.trainer import PanTrainer
from pan_hf.training.tuning import RATES, base_folder, tune

pytestmark = pytest.mark.usefixtures("few_examples")
WORDS = ["<pad>", "<s>", "</s>", *"go to the corner of red door pick up a key and open it then walk on".split()]
WORDS += [f"word{number}" for number in range(90 - len(WORDS))]
QUICK = {"per_device_train_batch_size": 4, "logging_steps": 1, "progress": False}
BACKBONES = {"tied": "qwen3", "untied": "llama"}


def pretrained(folder, architecture):
    """A folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    language_model(architecture).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=BACKBONES)
def world(request, tmp_path_factory):
    """A recording, a backbone, and an untrained world model of them: `data`, `backbone` and `model`."""
    folder = tmp_path_factory.mktemp(request.param)
    data = record_board(folder / "data", episodes=10)
    trajectories = load_trajectories(data, "train")
    backbone = pretrained(folder / "backbone", BACKBONES[request.param])
    model, processor = build(trajectories, backbone, BOARD_OPTIONS, adapter_dim=16, context_steps=2)
    save_checkpoint(folder / "model", model, processor)
    return SimpleNamespace(data=data, backbone=backbone, model=folder / "model", trajectories=trajectories)


def stage(world, chosen, folder, **given):
    given = {"model": str(world.model), "data": str(world.data), "output_dir": str(folder)} | QUICK | given
    return run(chosen, arguments(chosen, **given), world.trajectories)


def words_of(model):
    """All that a language model knows its words by: its layers, and rows of its tables."""
    size = model.config.text_size
    return {
        name: tensor[:size] if tensor.shape[:1] == (model.config.vocab_size,) else tensor
        for name, tensor in all_tensors(model.language_model).items()
    }


def perplexity(model):
    ids = torch.tensor([[WORDS.index(word) for word in "go to the red door and open it".split()]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1, : len(WORDS)]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).exp().item()


@pytest.mark.slow
def test_every_stage_keeps_the_words_of_a_pretrained_backbone(world, tmp_path, capsys):
    short = {name: {"max_steps": 2} | QUICK for name in SHARES if name not in ("backbone", "sentences")}
    given = {"sense_options": BOARD_OPTIONS, "config": {"adapter_dim": 16}, "overrides": short}
    checkpoint = train(tmp_path, world.data, backbone=world.backbone, **given)
    assert "LoRA of rank 8 is trained on its 2 layers, at 0.04" in capsys.readouterr().err
    first = PanModel.from_pretrained(tmp_path / "stages" / "0-init")
    finals = sorted((tmp_path / "stages").glob("*/final"))
    assert [path.parent.name[2:] for path in finals] == [name for name in SHARES if name in short]
    for final in finals:
        base, (model, _) = PanModel.from_pretrained(base_folder(final)), load(final)
        assert differing(words_of(first), words_of(base)) == []  # with the adapter off
        assert perplexity(model) == pytest.approx(perplexity(first), rel=0.02)
        assert (base_folder(final) != final) == (final.parent.name[0] >= "4")  # an adapter from dynamics on
    merged = AutoModel.from_pretrained(checkpoint)
    assert differing(all_tensors(merged), all_tensors(model)) == []  # as the last stage
    changed = [name for name in differing(words_of(first), words_of(merged)) if "embed" not in name]
    assert changed and all("proj" in name for name in changed)
    again = train(tmp_path, world.data, backbone=world.backbone, progress=False, **given)
    assert again == checkpoint and not (tmp_path / "adapter").exists()


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adamw_torch", "muon"])
def test_rows_of_words_stay_and_those_of_codes_learn_under_weight_decay(optim, world, tmp_path):
    final = stage(world, align.DYNAMICS, tmp_path, max_steps=2, weight_decay=0.1, optim=optim)
    before, after = PanModel.from_pretrained(world.model), PanModel.from_pretrained(final / BASE)
    assert differing(words_of(before), words_of(after)) == []
    for one, other in zip(before.table.weights(), after.table.weights(), strict=True):
        assert not torch.equal(one[before.config.text_capacity :], other[before.config.text_capacity :])
    adapter = json.loads((final / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["modules_to_save"], base_of(final)) == (8, None, str(final / BASE))
    assert before.config.backbone_is_pretrained


@pytest.mark.slow
def test_freeze_trains_everything_but_the_backbone(world, tmp_path):
    final = stage(world, align.DYNAMICS, tmp_path, max_steps=2, backbone="freeze")
    before, after = PanModel.from_pretrained(world.model), PanModel.from_pretrained(final)  # no adapter
    assert differing(words_of(before), words_of(after)) == []
    changed = {name.split(".")[0] for name in differing(all_tensors(before), all_tensors(after))}
    assert {"readouts", "outcome", "state_embeddings"} <= changed


@pytest.mark.slow
def test_full_trains_the_whole_backbone_slowly(world, tmp_path):
    given = {"max_steps": 1, "learning_rate": 1e-3}
    final = stage(world, align.DYNAMICS, tmp_path, backbone="full", **given)
    before, after = PanModel.from_pretrained(world.model), PanModel.from_pretrained(final)
    changed = differing(words_of(before), words_of(after))
    assert any("embed" in name for name in changed) and any("mlp" in name for name in changed)
    one, other = (model.language_model.model.layers[0].mlp.up_proj.weight for model in (before, after))
    first_step = 1e-3 * RATES["full"] / 20  # Adam's, in the warm-up
    assert float((one - other).detach().abs().max()) <= 1.1 * first_step  # rounded to what is near a weight


@pytest.mark.slow
def test_an_adapter_is_trained_further_and_merged_where_the_next_stage_trains_all(world, tmp_path):
    first = stage(world, align.DYNAMICS, tmp_path / "one", max_steps=2, lora={"r": 3})
    second = stage(world, align.JOINT, tmp_path / "two", model=str(first), max_steps=2)
    one, two = (json.loads((path / "adapter_config.json").read_text()) for path in (first, second))
    assert one["r"] == two["r"] == 3
    switch = stage(world, reinforce.WARM_UP, tmp_path / "three", model=str(second), max_steps=2, horizon=2)
    names = [path / "adapter_model.safetensors" for path in (first, second, switch)]
    assert names[0].read_bytes() != names[1].read_bytes() == names[2].read_bytes()
    whole = stage(world, align.JOINT, tmp_path / "four", model=str(switch), max_steps=1, backbone="full")
    assert base_folder(whole) == whole and not (whole / "adapter_config.json").exists()


@pytest.mark.slow
def test_what_a_stage_leaves_alone_is_linked_and_outlives_the_stage_before(world, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(world.model, start)
    senses = stage(world, pretrain_senses.STAGE, tmp_path / "senses", model=str(start), max_steps=1)
    dynamics = stage(world, align.DYNAMICS, tmp_path / "dynamics", model=str(senses), max_steps=1)
    switch = stage(world, reinforce.WARM_UP, tmp_path / "switch", model=str(dynamics), max_steps=1, horizon=2)
    folders = [base_folder(path) for path in (start, senses, dynamics, switch)]
    inodes = [[os.stat(folder / part).st_ino for part in PARTS] for folder in folders]
    backbone, table, world_part = zip(*inodes, strict=True)
    assert len(set(backbone)) == 1 and len(set(world_part)) == 4
    assert len(set(table)) == 3 and table[2] == table[3]  # the switch has no row of it
    kept = all_tensors(load(switch)[0])
    for folder in (start, tmp_path / "senses", tmp_path / "dynamics"):
        shutil.rmtree(folder)
    assert differing(kept, all_tensors(load(switch)[0])) == []


@pytest.mark.slow
def test_a_killed_stage_goes_on_to_the_same_end_from_a_checkpoint_without_what_is_kept(world, tmp_path, monkeypatch):
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = stage(world, align.DYNAMICS, tmp_path / "whole", **given)
    step = PanTrainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise InterruptedError
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(trainer.PanTrainer, "training_step", killed)
        stage(world, align.DYNAMICS, tmp_path / "killed", **given)
    with safe_open(tmp_path / "killed" / "checkpoint-2" / "model.safetensors", "pt") as file:
        held = {name for name in file.keys() if name.startswith("language_model.")}
    assert held and all("lora_" in name or "embed" in name or "lm_head" in name for name in held)
    resumed = stage(world, align.DYNAMICS, tmp_path / "killed", **given)
    assert differing(all_tensors(load(whole)[0]), all_tensors(load(resumed)[0])) == []


@pytest.mark.slow
def test_a_text_is_read_with_what_a_stage_left_and_with_its_adapter_off(world, tmp_path):
    (tmp_path / "text.txt").write_text("go to the corner of the red door and open it\n" * 4)
    final = stage(world, align.DYNAMICS, tmp_path / "stage", max_steps=4)
    given = {"text": tmp_path / "text.txt", "output": tmp_path / "words.json", "trained": [final]}
    records = words.main(world.backbone, **given, batch=4, dtype="float32", sentences=4, threads=1)
    found = {entry.model: entry.value for entry in select(records, metric="perplexity")}
    assert found[f"{final}, adapter off"] == pytest.approx(found["backbone"], rel=1e-6)
    assert found[str(final)] != pytest.approx(found["backbone"], rel=1e-6)


def test_a_random_backbone_is_trained_whole_at_the_rate_of_the_stage(world):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    model.config.backbone_is_pretrained = False
    tuning = tune(model, processor, world.model, align.DYNAMICS.trains, None, {})
    assert (tuning.kind, tuning.adapted, tuning.slow, tuning.tables) == ("full", None, {}, set())
    assert all(parameter.requires_grad for parameter in model.language_model.parameters())
    assert not any(table._backward_hooks for table in model.table.weights())


def test_layers_are_the_first_of_the_backbone(world):
    given = {"sense_options": BOARD_OPTIONS, "adapter_dim": 16}
    model, _ = build(world.trajectories, world.backbone, layers=1, **given)
    whole = AutoModelForCausalLM.from_pretrained(world.backbone)
    assert len(model.language_model.model.layers) == model.config.text_config.num_hidden_layers == 1
    one, other = (all_tensors(each.model.layers[0]) for each in (model.language_model, whole))
    assert differing(one, other) == []
    with pytest.raises(ValueError, match="has 2 layers, got 3. Name as many or fewer"):
        build(world.trajectories, world.backbone, layers=3, **given)
    assert build(world.trajectories, "debug", layers=1, **given)[0].config.text_config.num_hidden_layers == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"freeze": True, "full": True}, "`freeze` and `full` exclude one another"),
        ({"lora": {"r": 4}, "full": True}, "`lora` and `full` exclude one another"),
        ({"lora": {"rank": 4}}, "peft's LoraConfig, as `r=8`; it has no .'rank'."),
        ({"lora": {"r": 0}}, "`r`, its rank, must be a whole number of at least 1, got 0"),
        ({"lora": {"r": 2, "modules_to_save": ["senses"]}}, "a stage chooses `modules_to_save`"),
        (
            {"freeze": True, "backbone": "debug"},
            "`freeze` keeps a pretrained backbone, and this one has random weights",
        ),
        ({"layers": 0}, "layers: expected at least 1"),
        ({"layers": 9}, "has 2 layers, got 9"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(given, message, world, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", world.data, **({"backbone": world.backbone, "progress": False} | given))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [{"backbone": "some"}, {"lora": "{"}, {"lora": "[]"}, {"lora": '{"r": true}'}])
def test_a_stage_refuses_a_way_to_train_that_there_is_not(given, tmp_path):
    with pytest.raises(ValueError, match=next(iter(given))):
        arguments(align.DYNAMICS, output_dir=str(tmp_path), **given)


def test_processes_that_share_out_weights_train_a_pretrained_backbone_whole():
    sharing = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False)
    with pytest.raises(ValueError, match="`backbone=lora` keeps a pretrained backbone.*backbone=full"):
        distributed.check_needs_no_whole_weights(sharing, "lora")
