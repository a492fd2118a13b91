"""Writes the other files of this folder. Meaningful at the revision that README.md names, and run there alone: later
code must read what this one wrote, so nothing here follows later changes.

    OMP_NUM_THREADS=1 PYTHONPATH=.:tests python tests/data/old/make.py
"""

import json
import shutil
import tempfile
from pathlib import Path

import old_data
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import unchanged  # noqa: F401  registers the world
from pan_hf import PanModel, PanProcessor, PanTokenizer, VectorAction, VectorSense
from pan_hf.adapters import load_adapter, save_adapter
from pan_hf.build import PRESETS, make_processor, save_checkpoint
from pan_hf.finetune import finetune
from pan_hf.record import record
from pan_hf.train import train
from pan_hf.trajectories import load_trajectories
from pan_hf.vocabulary import load

HERE = Path(__file__).parent
WORDS = [*old_data.TEXTS, "take 40 to the corner", "near the goal", "far"]
CAMERA = {"patch_size": 4, "level_strides": [2, 1], "codebook_size": [8, 12], "codebook_capacity": [12, 16]}
CAMERA |= {"code_dim": 4, "hidden_size": 12, "num_blocks": 1, "latent_dim": 3, "merge_capacity": 8}
PLACE = {"base": 5, "num_levels": 2, "merge_capacity": 8}
OPTIONS = {"camera": CAMERA, "place": PLACE, "action": {"merge_capacity": 8}}
BACKBONE = {"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
BACKBONE |= {"initializer_range": 0.1}
STEPS = {"senses": 60, "backbone": 10, "dynamics": 60, "latent_head": 20, "joint": 10}
STEPS |= {"switch": 10, "reinforce": 10}
DENOISER = {"_class_name": "PlaceDenoiser", "hidden_size": 16, "num_layers": 1, "cross_attention_dim": 16}
SMALL = {"adapter_dim": 8, "latent_head": {"denoiser": DENOISER}}


def make_vector() -> tuple[PanModel, PanProcessor]:
    """A model of vector actions that draws the coarsest digits one after the other and keeps its latents in mind."""
    tokenizer = PanTokenizer.train(WORDS, vocab_size=280)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    shape = BACKBONE | {"hidden_size": 8, "intermediate_size": 16, "max_position_embeddings": 256}
    config = AutoConfig.for_model("llama", vocab_size=280, tie_word_embeddings=False, **special, **shape)
    senses, action = {"place": VectorSense(dim=2, low=0, high=3, **PLACE)}, VectorAction(dim=2, **PLACE)
    coherent = {"level0_sampling": "autoregressive", "fold_levels": False, "context_steps": 2}
    coherent |= {"text_reserve": 10, "latent_feedback": True, **SMALL}
    torch.manual_seed(0)
    model = PanModel.from_backbone(AutoModelForCausalLM.from_config(config), senses, action, **coherent)
    return model, make_processor(model, tokenizer)


def stir(model: PanModel) -> PanModel:
    """Moves what begins at zero, as training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def save_alone(name: str, model: PanModel, processor) -> None:
    """A checkpoint without the code it ships, which would be the same again."""
    save_checkpoint(HERE / name, model, processor)
    for path in (HERE / name).glob("*.py"):
        path.unlink()


def main() -> None:
    for name in ("model", "adapter", "vector", "recording"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    record("Unchanged-v0", HERE / "recording", episodes=4, test_fraction=0.2, progress=False)
    PRESETS["old"] = BACKBONE
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        make_adapter(Path(folder))
    model, processor = make_vector()
    save_alone("vector", stir(model), processor)
    write_expected()


def make_model(work: Path) -> None:
    """A trained model of every kind of sense, which has grown a word, retired a code and merged digits."""
    common = {"per_device_train_batch_size": 8, "progress": False, "seconds": None}
    overrides = {name: {"max_steps": steps, **common} for name, steps in STEPS.items()}
    config = {"context_steps": 2, "context_noise": 0.1, **SMALL}
    train(work, HERE / "recording", backbone="old", sense_options=OPTIONS, config=config, overrides=overrides)
    model, processor = load(work)
    model.grow("text", names=["mug"])
    model.grow("camera.0", vectors=torch.ones(1, 4))
    model.retire("camera.1", [11], into=10)
    places = torch.from_numpy(load_trajectories(HERE / "recording", "train").observations["place"])
    pairs = processor.tokenizer.merges.find(
        model.write_sentences("place", places[None]).flatten(0, 1).tolist(), model.free_merges("place", 2), 2
    )
    model.add_merges("place", pairs)
    trained_on = json.loads((work / "checkpoint" / "training_data.json").read_text()) | {"root": "../recording"}
    save_checkpoint(HERE / "model", model, processor, {"training_data.json": json.dumps(trained_on, indent=1)})


def make_adapter(work: Path) -> None:
    """A LoRA adapter that learned, and was there when a word, an action and a code were born."""
    learned = finetune(work / "tuned", HERE / "model", HERE / "recording", rank=2, max_steps=10, progress=False)
    model, _ = load(HERE / "model")
    adapted = load_adapter(model, learned, is_trainable=True).eval()
    adapted.peft_config["default"].base_model_name_or_path = "tests/data/old/model"
    model.grow("text", names=["icepick"])
    model.grow("action.0", names=["jump"])
    model.grow("camera.0", vectors=-torch.ones(1, 4))
    save_adapter(adapted, HERE / "adapter")
    (HERE / "adapter" / "README.md").unlink()  # PEFT's, about where the base was


def write_expected() -> None:
    """What all of it says, read back."""
    expected = {name: old_data.ask(name, *load(HERE / name)) for name in old_data.ACTIONS}
    base, processor = load(HERE / "model")
    expected["adapter"] = old_data.ask("model", load_adapter(base, HERE / "adapter").eval(), processor)
    expected["recording"] = old_data.summary(load_trajectories(HERE / "recording", "train"))
    (HERE / "expected.json").write_text(json.dumps(expected, sort_keys=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
