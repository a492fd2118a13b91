"""A checkpoint gives back the very model that was saved, here, elsewhere and without pan_hf; or it says why not."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import run_forked
from safetensors.torch import load_file, save_file
from tiny_worlds import (
    ACTIONS,
    ARCHITECTURES,
    SENSES,
    acts,
    all_tensors,
    build_board,
    differing,
    language_model,
    observe,
    record_board,
    world_model,
)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

import pan_hf
from pan_hf import PanConfig, PanModel, PanProcessor, PanTokenizer
from pan_hf.checkpoints import load, save_checkpoint
from pan_hf.data.trajectories import load_trajectories

ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = tuple(SENSES)


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A model of the board, its processor, and their checkpoint."""
    folder = tmp_path_factory.mktemp("board")
    model, processor = build_board(load_trajectories(record_board(folder / "data", episodes=4), "train"))
    save_checkpoint(folder / "checkpoint", model.eval(), processor)
    return model, processor, folder / "checkpoint"


def save_apart(folder, model, processor):
    """As by who knows only Transformers."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture
def copied(board, tmp_path):
    """A copy of the checkpoint, to be damaged."""
    return shutil.copytree(board[2], tmp_path / "checkpoint")


def dirty_memory():
    """Fills memory that was just freed with NaN, so that a tensor nobody set is seen to be one."""
    gc.collect()
    held = [torch.full((size,), float("nan")) for size in (8, 16, 64, 192, 1024, 4096) for _ in range(64)]
    del held


def reloaded(model, folder, **kwargs):
    model.save_pretrained(folder, **kwargs.pop("save", {}))
    dirty_memory()
    return PanModel.from_pretrained(folder, **kwargs)


def imagined(model, steps=2):
    """What a model imagines of the same things, as text to compare."""
    belief = model.perceive(observe(model, 2, 1))
    futures = model.simulate(belief, acts(model, 2, steps), num_rollouts=2, seed=0)
    return futures.keys(), futures.decode(next(iter(model.config.coded_senses)))


# the same model comes back


@pytest.mark.slow
@pytest.mark.parametrize("architecture, action", [*zip(ARCHITECTURES, ACTIONS, strict=True)])
def test_every_parameter_and_buffer_comes_back_to_the_bit(architecture, action, tmp_path):
    options = {"context_steps": 2, "level0_sampling": "autoregressive", "fold_levels": False}
    model = world_model(EVERYTHING, action, architecture, **options)
    again = reloaded(model, tmp_path)
    assert differing(all_tensors(model), all_tensors(again)) == []
    assert not any(torch.isnan(tensor.float()).any() for tensor in all_tensors(again).values())
    one, other = model.config.to_dict(), again.config.to_dict()
    loaded = {"_name_or_path", "architectures", "dtype", "auto_map", "text_config", "transformers_version"}
    assert {k: v for k, v in one.items() if k not in loaded} == {k: v for k, v in other.items() if k not in loaded}
    (keys, frames), (keys_again, frames_again) = imagined(model), imagined(again)
    assert keys == keys_again and torch.equal(frames, frames_again)


@pytest.mark.slow
@pytest.mark.parametrize("order", [("touch", "camera"), ("mission", "heard", "camera", "touch")])
def test_the_order_in_which_senses_were_given_does_not_matter(order, tmp_path):
    model, again = world_model(order), world_model(order[::-1])
    assert imagined(model)[0] == imagined(again)[0] == imagined(reloaded(model, tmp_path))[0]


@pytest.mark.slow
def test_a_diffusers_denoiser_comes_back_to_the_bit(tmp_path):
    denoiser = {"_class_name": "UNet2DConditionModel", "block_out_channels": [16], "norm_num_groups": 4}
    denoiser |= {"layers_per_block": 1}
    denoiser |= {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    denoiser |= {"mid_block_type": None, "cross_attention_dim": 16, "attention_head_dim": 4}
    model = world_model(("camera",), latent_head={"denoiser": denoiser})
    assert differing(all_tensors(model), all_tensors(reloaded(model, tmp_path))) == []


@pytest.mark.slow
@pytest.mark.parametrize("architecture, is_tied", [("qwen3", True), ("llama", False), ("gpt2", True)])
def test_tied_stays_tied_and_untied_untied(architecture, is_tied, tmp_path):
    again = reloaded(world_model(("camera",), architecture=architecture), tmp_path)
    one, other = again.get_input_embeddings().weight, again.get_output_embeddings().weight
    assert (one is other) == is_tied == again.config.tie_word_embeddings


@pytest.mark.slow
def test_a_model_without_senses_comes_back(tmp_path):
    model = PanModel.from_backbone(language_model()).eval()
    again, ids = reloaded(model, tmp_path), torch.randint(0, 90, (2, 7))
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert not again.is_world_model


@pytest.mark.slow
def test_saving_a_loaded_model_changes_nothing(tmp_path):
    first = reloaded(world_model(EVERYTHING), tmp_path / "first")
    second = reloaded(first, tmp_path / "second")
    assert differing(all_tensors(first), all_tensors(second)) == []
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("first", "second")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_shards_come_back(tmp_path):
    model = world_model(EVERYTHING)
    again = reloaded(model, tmp_path, save={"max_shard_size": "200KB"})
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert differing(all_tensors(model), all_tensors(again)) == []


@pytest.mark.slow
def test_a_device_map_places_it(tmp_path):
    model = world_model(EVERYTHING)
    again = reloaded(model, tmp_path, device_map="cpu")
    assert differing(all_tensors(model), all_tensors(again)) == []


@pytest.mark.slow
def test_in_bfloat16_the_senses_stay_float32_and_masks_masks(tmp_path):
    model = world_model(EVERYTHING, level0_sampling="autoregressive", context_steps=2)
    half = reloaded(model, tmp_path, dtype=torch.bfloat16)
    kept = {n: p.dtype for n, p in half.named_parameters() if n.startswith(("senses.", "latent_heads."))}
    rest = {n: p.dtype for n, p in half.named_parameters() if n not in kept}
    assert set(kept.values()) == {torch.float32} and set(rest.values()) == {torch.bfloat16}
    senses = {n: b for n, b in all_tensors(model).items() if n.startswith("senses.")}
    assert differing(senses, {n: b for n, b in all_tensors(half).items() if n.startswith("senses.")}) == []
    belief = half.perceive(observe(half, 2, 2), acts(half, 2, 1))
    futures = half.simulate(belief, acts(half, 2, 3), seed=0)
    assert futures.decode("camera").dtype == torch.uint8 and torch.isfinite(futures.log_prob).all()
    assert futures.decode("touch").dtype == torch.float32
    later = {n: o for n, o in observe(half, 2, 2).items() if n != "mission"}
    assert torch.isfinite(half.log_prob(belief, acts(half, 2, 2), later).total).all()
    again = reloaded(half, tmp_path / "again")
    assert differing(all_tensors(half), all_tensors(again)) == []


def test_a_bfloat16_backbone_becomes_a_world_model():
    backbone = language_model("llama").to(torch.bfloat16)
    model = PanModel.from_backbone(backbone, {"camera": SENSES["camera"]}, world_model().config.action).eval()
    belief = model.perceive(observe(model))
    assert torch.isfinite(model.simulate(belief, acts(model, 2, 2), seed=0).log_prob).all()
    assert {p.dtype for p in model.senses.parameters()} == {torch.float32}


def test_made_in_bfloat16_the_senses_are_float32_too():
    half = PanModel._from_config(world_model(EVERYTHING).config, dtype=torch.bfloat16).eval()
    kept = [p for n, p in half.named_parameters() if n.startswith(("senses.", "latent_heads."))]
    assert {parameter.dtype for parameter in kept} == {torch.float32}
    assert half.dtype == half.queries["camera"].dtype == torch.bfloat16 and torch.get_default_dtype() == torch.float32
    futures = half.simulate(half.perceive(observe(half)), acts(half, 2, 2), seed=0)
    assert torch.isfinite(futures.log_prob).all()


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_checkpoint, save_apart], ids=["together", "apart"])
def test_weights_of_an_older_checkpoint_go_and_files_of_ones_own_stay(board, tmp_path, save):
    model, processor, _ = board
    own = {"notes.md": "mine", "logs/run.csv": "1", ".git/HEAD": "ref"}
    for name, text in own.items():
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text(text)
    (tmp_path / "here" / "model-00001-of-00002.safetensors").write_text("of an older one")
    save(tmp_path / "here", model, processor)
    assert not (tmp_path / "here" / "model-00001-of-00002.safetensors").exists()
    assert {name: (tmp_path / "here" / name).read_text() for name in own} == own
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    load(tmp_path / "here")


def test_a_model_is_saved_with_the_processor_it_grows_with(board, tmp_path):
    model, processor = load(board[2])
    model.save_pretrained(tmp_path / "here")
    model.grow("text", names=["lava"])
    model.save_pretrained(tmp_path / "here")  # and no call of the processor's, as after a kill
    again, theirs = load(tmp_path / "here")
    assert theirs.vocabulary_digest == processor.vocabulary_digest == again.config.vocabulary_digest


@pytest.mark.slow
def test_a_processor_is_not_saved_beside_another_process_s_model(board, tmp_path):
    (mine, processor), (theirs, other) = load(board[2]), load(board[2])
    mine.save_pretrained(tmp_path / "here")
    theirs.config.copy_bias += 1
    theirs.save_pretrained(tmp_path / "here")
    with pytest.raises(ValueError, match="another process wrote it since. Save both again"):
        processor.save_pretrained(tmp_path / "here")
    other.save_pretrained(tmp_path / "here")
    assert load(tmp_path / "here")[0].config.copy_bias == theirs.config.copy_bias


def test_a_save_that_fails_leaves_the_older_checkpoint(board, tmp_path, monkeypatch):
    model, processor, _ = board
    save_checkpoint(tmp_path / "here", model, processor)
    before = sorted(path.name for path in (tmp_path / "here").iterdir())

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(processor, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "here", model, processor)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == before


# it comes back elsewhere

LOOK = """
import sys, numpy, torch, transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, pipeline
folder, is_remote = sys.argv[1], sys.argv[2] == "remote"
trust = {"trust_remote_code": True} if is_remote else {}
if not is_remote:
    import pan_hf
model = AutoModel.from_pretrained(folder, **trust).eval()
processor = AutoProcessor.from_pretrained(folder, **trust)
processor.check_model(model)
assert (sys.modules.get("pan_hf") is None) == is_remote, "pan_hf was imported"
frame = (numpy.arange(16 * 16 * 3) % 251).astype("uint8").reshape(16, 16, 3)
mission = "go to the corner"
batch = processor(observation={"camera": frame, "place": [1.0, 2.0], "mission": mission})
belief = model.perceive(**batch)
futures = model.simulate(belief, torch.tensor([[0, 1, 2, 3]]), num_rollouts=3, seed=5)
print("keys", hash_ := [key.hex() for row in futures.keys() for key in row])
print("frames", int(futures.decode("camera").long().sum()), "log_prob", futures.log_prob.sum().item())
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
ids = tokenizer("go <camera.0:3>", return_tensors="pt", codes_in_text=True)["input_ids"]
print("ids", ids.tolist(), type(tokenizer).__name__, type(processor).__name__)
causal = AutoModelForCausalLM.from_pretrained(folder, **trust)
assert type(causal).__name__ == "PanModel" and causal.is_world_model
print("words", causal.generate(ids, max_new_tokens=4, do_sample=False).tolist())
config = AutoConfig.from_pretrained(folder, **trust)
again = AutoModel.from_config(config, **trust)
print("config", type(config).__name__, config.model_type, sorted(config.senses), again.num_parameters())
write = pipeline("text-generation", model=folder, device="cpu", **trust)
print("text", write("go <camera.0:3>", max_new_tokens=4, do_sample=False)[0]["generated_text"].encode())
print("class", type(model).__module__)
"""


# then a copy is saved, and two checkpoints are loaded whose folders have one name
MORE = """
for part in (model, processor):
    part.save_pretrained(sys.argv[3])
for folder in sys.argv[4:]:
    model, processor = (auto.from_pretrained(folder, **trust) for auto in (AutoModel, AutoProcessor))
    print("whose", *[sys.modules[type(part).__module__].WHOSE for part in (model.outcome, processor)])
"""


def said(output):
    """Lines of [`LOOK`] by their first word."""
    words = ("keys", "frames", "ids", "words", "config", "text", "class")
    return dict(line.split(" ", 1) for line in output.splitlines() if line.startswith(words))


@pytest.fixture(scope="module")
def elsewhere(board, tmp_path_factory):
    """What one fresh process without pan_hf, which costs seconds, says of all of this, and the folder of the copy."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    environment.pop("PYTHONPATH", None)
    namesakes = [folder / name / "checkpoint" for name in ("one", "two")]
    for namesake in namesakes:
        shutil.copytree(board[2], namesake)
        for name in ("heads_pan.py", "processing_pan.py"):
            with (namesake / name).open("a") as code:
                code.write(f"\nWHOSE = {namesake.parent.name!r}\n")
    script = folder / "look.py"
    script.write_text("import sys; sys.modules['pan_hf'] = None\n" + LOOK + MORE)
    command = [sys.executable, "-P", script, board[2], "remote", folder / "again", *namesakes]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    whose = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("whose")]
    return SimpleNamespace(said=said(done.stdout), again=folder / "again", whose=whose)


@pytest.mark.slow
def test_a_process_imagines_the_same_with_pan_hf_and_without(board, elsewhere, tmp_path):
    def with_pan_hf():
        sys.argv = ["look.py", str(board[2]), "installed"]
        exec(compile(LOOK, "look.py", "exec"), {"__name__": "__main__"})

    done = run_forked(with_pan_hf, tmp_path)
    assert done.returncode == 0, done.said[-3000:]
    here, there = said(done.said), elsewhere.said
    assert here.pop("class").startswith("pan_hf.modeling")
    assert there.pop("class").startswith("transformers_modules")
    assert here == there and {"keys", "frames", "ids", "words", "config", "text"} <= set(here)


def test_the_configuration_names_the_code_for_every_auto_class(board):
    saved = json.loads((board[2] / "config.json").read_text())
    model, config = "modeling_pan.PanModel", "configuration_pan.PanConfig"
    assert saved["auto_map"] == {"AutoConfig": config, "AutoModel": model, "AutoModelForCausalLM": model}
    assert saved["architectures"] == ["PanModel"] and saved["pan_version"] == pan_hf.__version__
    tokenizer = json.loads((board[2] / "tokenizer_config.json").read_text())["auto_map"]
    processor = json.loads((board[2] / "processor_config.json").read_text())["auto_map"]
    assert "tokenization_pan.PanTokenizer" in str(tokenizer["AutoTokenizer"])
    assert processor["AutoProcessor"] == "processing_pan.PanProcessor"


@pytest.mark.parametrize(
    "auto, kind",
    [
        (AutoConfig, PanConfig),
        (AutoModel, PanModel),
        (AutoModelForCausalLM, PanModel),
        (AutoProcessor, PanProcessor),
        (AutoTokenizer, PanTokenizer),
    ],
)
def test_every_auto_class_finds_the_installed_class_without_trust(auto, kind, board):
    assert type(auto.from_pretrained(board[2])) is kind


@pytest.mark.slow
def test_two_checkpoints_of_one_folder_name_run_each_its_own_code(elsewhere):
    assert elsewhere.whose == [["one", "one"], ["two", "two"]]


@pytest.mark.slow
def test_a_model_loaded_as_remote_code_can_be_saved_and_loaded_again(board, elsewhere):
    model, processor = PanModel.from_pretrained(elsewhere.again), PanProcessor.from_pretrained(elsewhere.again)
    processor.check_model(model)
    assert differing(all_tensors(board[0]), all_tensors(model)) == []


# what is wrong with it is said


def edit(folder, **changes):
    """Changes entries of config.json; `a__b` is entry b of entry a."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        part = config
        *outer, last = name.split("__")
        for key in outer:
            part = part[key]
        part[last] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_truncated_file_is_named(copied, kept):
    path = copied / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"Cannot read .*model\.safetensors \(\d+ bytes.*cut short.*Restore"):
        PanModel.from_pretrained(copied)


def test_a_truncated_shard_is_the_one_that_is_named(board, tmp_path):
    board[0].save_pretrained(tmp_path, max_shard_size="300KB")
    second = sorted(tmp_path.glob("model-*.safetensors"))[1]
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(ValueError, match=second.name) as error:
        PanModel.from_pretrained(tmp_path)
    assert str(error.value).count(".safetensors (") == 1


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_missing_tensor_is_named(copied):
    change_tensors(copied, lambda tensors: tensors.pop("senses.camera.head.weight"))
    with pytest.raises(ValueError, match=r"missing: senses\.camera\.head\.weight\. Restore"):
        PanModel.from_pretrained(copied)


def test_a_missing_buffer_is_named(copied):
    change_tensors(copied, lambda tensors: tensors.pop("senses.camera.codebooks.0.live"))
    with pytest.raises(ValueError, match=r"missing: senses\.camera\.codebooks\.0\.live"):
        PanModel.from_pretrained(copied)


def test_a_tensor_too_many_is_named_with_its_file(copied):
    change_tensors(copied, lambda tensors: tensors.update(extra=torch.zeros(2)))
    with pytest.raises(ValueError, match=r"not in the configuration: extra \(in model\.safetensors\)"):
        PanModel.from_pretrained(copied)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"senses__camera__hidden_size": 24}, r"senses\.camera\..* in the file and .* by config\.json"),
        ({"adapter_dim": 24}, r"is \(\d+.*\) in the file and \(\d+.*\) by config\.json.* and \d+ more"),
        ({"senses__camera__num_blocks": 2}, r"missing: senses\.camera\.decoder\.1"),
        ({"text_config__num_hidden_layers": 1}, r"(?s)Cannot load .*checkpoint: .*layers. \(1\) must be equal"),
        ({"senses__camera__codebook_capacity": [16, 32]}, "`segments` must hold these capacities.*'camera.1': 32"),
        ({"senses__camera__colour": "red"}, r"no field \['colour'\]"),
        ({"action__kind": "smell"}, "unknown kind 'smell'"),
        ({"action": None}, "needs an action"),
        ({"model_type": "llama"}, r"config\.json: expected a PAN world model .* got 'llama'"),
    ],
)
def test_an_edited_configuration_is_refused(copied, changes, message):
    edit(copied, **changes)
    with pytest.raises(ValueError, match=message):
        PanModel.from_pretrained(copied)


def test_a_moved_segment_is_refused(copied):
    segments = json.loads((copied / "config.json").read_text())["segments"]
    segments["camera.1"][0] = segments["camera.0"][0]
    edit(copied, segments=segments)
    with pytest.raises(ValueError, match=r"Segment 'camera.1' starts at row \d+, inside .*'camera.0'"):
        PanModel.from_pretrained(copied)


def test_a_file_that_is_not_there_is_named(copied, tmp_path):
    with pytest.raises(FileNotFoundError, match="No checkpoint at .*nowhere.*config.json"):
        PanModel.from_pretrained(tmp_path / "nowhere")
    (copied / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors.*checkpoint"):
        PanModel.from_pretrained(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(OSError, match=r"config\.json.* is not a valid JSON"):
        PanModel.from_pretrained(copied)


def test_a_language_model_s_folder_is_no_world_model(tmp_path):
    language_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"got 'qwen3'.*PanModel\.from_backbone"):
        PanModel.from_pretrained(tmp_path)


def test_a_pickle_is_not_read(copied):
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(tensors, copied / "pytorch_model.bin")
    for kind in (PanModel, AutoModel):
        with pytest.raises(ValueError, match=r"in pytorch_model\.bin, a pickle, .*Only safetensors are loaded"):
            kind.from_pretrained(copied)
    with pytest.raises(ValueError, match="`use_safetensors=False` would read a pickle"):
        PanModel.from_pretrained(copied, use_safetensors=False)


NEWER = r"written by pan_hf 99\.1, and this is .*update pan_hf, or load it with trust_remote_code=True"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dreams": True}, r"unknown settings \['dreams'\]"),
        ({"senses__camera__colour": "red"}, r"no field \['colour'\]"),
        ({"adapter_dim": 24}, r"is \(\d+.*\) in the file and \(\d+.*\) by config\.json"),
    ],
)
def test_what_only_a_newer_version_can_read_says_so(copied, changes, message):
    edit(copied, pan_version="99.1", **changes)
    with pytest.raises(ValueError, match=f"{message}.*{NEWER}") as error:
        PanModel.from_pretrained(copied)
    assert str(error.value).count("written by") == 1


def test_what_a_newer_version_wrote_is_loaded_where_nothing_is_new(board, copied, tmp_path):
    edit(copied, pan_version="99.1")
    again = PanModel.from_pretrained(copied)
    assert differing(all_tensors(board[0]), all_tensors(again)) == []
    again.config.save_pretrained(tmp_path / "saved")  # by this version, then
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["pan_version"] == pan_hf.__version__


def test_other_shapes_are_borne_where_the_user_says_so(copied):
    edit(copied, adapter_dim=24)
    assert PanModel.from_pretrained(copied, ignore_mismatched_sizes=True).config.adapter_dim == 24


@pytest.mark.slow
def test_a_processor_of_another_model_says_what_differs(board, tmp_path):
    model, processor, folder = board
    processor.check_model(model)
    PanProcessor.from_pretrained(folder).check_model(PanModel.from_pretrained(folder))
    other, other_processor = build_board(
        load_trajectories(record_board(tmp_path / "data", episodes=4), "train"), context_steps=2
    )
    other_processor.check_model(other)
    processor.check_model(other)  # what differs is no business of the processor
    stranger = world_model(("camera", "mission"))
    with pytest.raises(ValueError, match="does not belong to this model") as error:
        processor.check_model(stranger)
    for difference in ("vocabulary digest", "place", "action"):
        assert difference in str(error.value)
