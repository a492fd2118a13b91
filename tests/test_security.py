"""What a stranger's checkpoint, adapter or ledger is refused for, line by line as `docs/security.md` has it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_growth import grown_up
from tiny_worlds import all_tensors, differing, world_model

from pan_hf import PanModel
from pan_hf.adapters import load_adapter, save_adapter
from pan_hf.checkpoints import find_recording, load, save_checkpoint, trained_fingerprints, trained_seeds
from pan_hf.files import finish_writing
from pan_hf.publishing.card import check_card, checkpoint_facts
from pan_hf.publishing.push import _portable
from pan_hf.reporting.figures import load_strip
from pan_hf.reporting.results import read_records
from pan_hf.tokenization import Vocabulary
from pan_hf.tokenization.vocabulary_pan import MOST_ROWS

DEEP = "[" * 200_000 + "]" * 200_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    world_model(senses=("camera",)).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "checkpoint")


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ---- checkpoints


@pytest.mark.parametrize(
    "name", ["weights.bin", "../elsewhere.safetensors", "/etc/passwd", 3, ["a.safetensors"], None]
)
def test_an_index_names_safetensors_beside_it_alone(copied, name):
    names = list(load_file(copied / "model.safetensors"))
    torch.save({}, copied / "weights.bin")
    shutil.copy(copied / "model.safetensors", copied.parent / "elsewhere.safetensors")
    (copied / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="must name safetensors beside it"):
        PanModel.from_pretrained(copied)


@pytest.mark.parametrize("place", ["model.safetensors.index.fp16.json", "inner/model.safetensors.index.json"])
def test_an_index_of_a_variant_or_a_subfolder_is_read_as_strictly(copied, place):
    shutil.copytree(copied, copied / "inner")
    (copied / place).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "../elsewhere.safetensors"}}))
    options = {"subfolder": "inner"} if "/" in place else {"variant": "fp16"}
    with pytest.raises(ValueError, match="must name safetensors beside it"):
        PanModel.from_pretrained(copied, **options)


def test_a_configuration_does_not_name_the_file_of_its_weights(copied):
    change(copied / "config.json", transformers_weights="../elsewhere.safetensors.index.json")
    with pytest.raises(ValueError, match="names the file of its weights"):
        PanModel.from_pretrained(copied)


def test_a_configuration_larger_than_its_files_is_refused_before_numbers_are_allocated(copied):
    config = json.loads((copied / "config.json").read_text())
    change(copied / "config.json", text_config=config["text_config"] | {"intermediate_size": 2**20})
    with pytest.raises(ValueError, match=r"config.json asks for a model of \d+ numbers, and its files hold \d+"):
        PanModel.from_pretrained(copied)


def test_a_configuration_of_a_million_layers_is_refused_before_one_is_made(copied):
    config = json.loads((copied / "config.json").read_text())
    change(copied / "config.json", text_config=config["text_config"] | {"num_hidden_layers": 10**6})
    with pytest.raises(ValueError, match=r"asks for 1000000 layers, and its files hold \d+ tensors"):
        PanModel.from_pretrained(copied)


def test_a_deeply_nested_configuration_is_refused_in_a_sentence(copied):
    (copied / "config.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"Cannot read .*config.json: RecursionError"):
        PanModel.from_pretrained(copied)


# ---- ledgers


def ledger(**changes) -> dict:
    return Vocabulary.build(40, 64, {"camera.0": (8, 4)}).to_dict() | changes


EXTENSION = {"event": "extension", "segment": "camera.0", "first": 72, "capacity": 10**9, "step": 0}


@pytest.mark.parametrize(
    "values",
    [
        ledger(text_capacity=10**9, segments=[]),
        ledger(segments=[{"name": "camera.0", "offset": 64, "capacity": 10**9}]),
        ledger(
            events=[
                *ledger()["events"],
                {"event": "extension", "segment": "camera.0", "first": 72, "capacity": 10**9, "step": 0},
            ]
        ),
    ],
    ids=["words", "segment", "extension"],
)
def test_a_ledger_of_a_billion_rows_is_refused(values):
    with pytest.raises(ValueError, match=f"{MOST_ROWS} rows"):
        Vocabulary.from_dict(values)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("stages/settings.json", trained_seeds),
        ("training_data.json", lambda run: find_recording(run, None)),
        ("training_data.json", trained_fingerprints),
        ("evaluation.json", lambda run: read_records(run / "evaluation.json")),
        ("checkpoint.json", lambda run: check_card(run / "README.md", run)),
        ("checkpoint.json", checkpoint_facts),
        ("config.json", checkpoint_facts),
        ("training_data.json", lambda run: _portable(run / "training_data.json", None)),
        ("strip.json", lambda run: load_strip(run / "strip.npz")),
        (".folder.ready/.content.json", lambda run: finish_writing(run / "folder")),
    ],
)
def test_deeply_nested_json_beside_a_checkpoint_is_refused_in_a_sentence(name, read, tmp_path):
    frame = np.zeros((1, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "strip.npz", real=frame, imagined=frame)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(ValueError, match=f"{Path(name).name} .*maximum recursion depth"):
        read(tmp_path)


def test_a_deeply_nested_ledger_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "vocabulary.json").write_text(DEEP)
    with pytest.raises(ValueError, match="not JSON .*truncated or damaged"):
        Vocabulary.load(tmp_path)


# ---- adapters


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A base that knows a word it grew, and an adapter on it that grew another."""
    folder = tmp_path_factory.mktemp("adapter")
    model = grown_up("qwen3")
    (own,) = model.grow("text", names=["lava"])
    save_checkpoint(folder / "base", model, model.processor)
    model, _ = load(folder / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r"language_model\..*\.q_proj"))
    model.grow("text", names=["mug"])
    save_adapter(adapted, folder / "adapter")
    return folder, own


def claim(folder: Path, first_event: int, ids: list[int]) -> None:
    """Lets an adapter say that it has rows of other tokens than those that were born on its base."""
    path = folder / "grown.safetensors"
    tensors = load_file(path)
    table = tensors["table.0"]
    tensors["table.0"] = torch.cat([torch.zeros(len(ids) - len(table), table.shape[1]), table])
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file(tensors, path, metadata=about | {"ids": json.dumps(ids), "base_events": str(first_event)})


@pytest.mark.slow
def test_an_adapter_changes_no_row_of_its_base_s_own_tokens(adapter, tmp_path):
    folder, own = adapter
    model, processor = load(folder / "base")
    load_adapter(model, folder / "adapter")  # as it was saved it is welcome
    last = len(processor.vocabulary.events) - 1
    birth = next(event for event in processor.vocabulary.events if event["reason"] == "start")
    words = list(range(birth["count"]))
    claims = {"a word of the base": (last - 1, [own, own + 1], "the base's own")}
    claims |= {"no word that was born": (last, [5, own + 1], "does not say were born")}
    claims |= {"all words": (0, words, "rows of tokens that its vocabulary.json does not say were born")}
    for name, (first_event, ids, message) in claims.items():
        hostile = shutil.copytree(folder / "adapter", tmp_path / name)
        claim(hostile, first_event, ids)
        model, _ = load(folder / "base")
        before = all_tensors(model)
        with pytest.raises(ValueError, match=message):
            load_adapter(model, hostile)
        assert not differing(before, all_tensors(model))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "grown.safetensors"])
def test_an_adapter_whose_numbers_are_not_finite_is_refused(adapter, tmp_path, name):
    folder, _ = adapter
    hostile = shutil.copytree(folder / "adapter", tmp_path / "adapter")
    tensors = load_file(hostile / name)
    with safe_open(hostile / name, "pt") as file:
        about = file.metadata()
    key = min(tensors)
    tensors[key].view(-1)[0] = torch.nan
    save_file(tensors, hostile / name, metadata=about)
    model, _ = load(folder / "base")
    before = all_tensors(model)
    with pytest.raises(ValueError, match=f"holds numbers that are not finite, in .*{re.escape(key)}"):
        load_adapter(model, hostile)
    assert not differing(before, all_tensors(model))


# ---- the document


def test_every_line_of_the_document_names_a_test_that_there_is():
    here = Path(__file__).parent
    lines = [line for line in (here.parent / "docs" / "security.md").read_text().splitlines() if line.startswith("| ")]
    named = [line for line in lines if not line.endswith("| test |")]
    for line in named:
        file, _, test = re.search(r"`(test_\w+\.py)(::)?(\w+)?`", line).groups()
        assert (here / file).is_file() and (not test or f"def {test}(" in (here / file).read_text()), line
    assert len(named) > 10
