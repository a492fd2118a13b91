"""`pan vocabulary`: what lives is shown as it is, and a doubled checkpoint predicts what it predicted."""

import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from test_growth import OLD, PROMPT, codec_vectors, grown_up, observation, pictures
from tiny_worlds import ARCHITECTURES, acts
from waveform_kind import WaveformSense

from pan_hf import DiscreteAction, ImageSense, VectorAction
from pan_hf.checkpoints import load, save_checkpoint
from pan_hf.cli import app
from pan_hf.modeling.codecs_pan import build_codec
from pan_hf.vocabulary import code_pictures, double, picture, show


@pytest.fixture
def checkpoint(tmp_path):
    model = grown_up()
    model.grow("text", names=["mug", "lava"], step=3)
    model.learn(observation(model, pictures(8, (*OLD, "key"))), step=7)
    model.retire("camera.0", [2])
    save_checkpoint(tmp_path / "run" / "checkpoint", model, model.processor, {"training_data.json": "{}"})
    return tmp_path / "run"


def text_of(tables):
    console = Console(width=160, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.export_text()


def test_counts_and_newest_births_are_shown(checkpoint):
    tables, image = show(checkpoint)
    lines = [re.findall(r"[^\s│┃]+", line) for line in text_of(tables).splitlines()]
    assert ["camera.0", "12", "5", "1", "4"] in [line[:5] for line in lines]
    assert ["7", "camera.0", "1", "novelty"] in [line[:4] for line in lines]
    assert ["mug,", "lava"] in [line[-2:] for line in lines]
    assert image == checkpoint / "vocabulary.png" and Image.open(image).size[0] == 16 * 36


def test_codes_of_depth_are_shown_in_greys_and_those_without_pictures_are_not():
    rows = {"level_strides": [1], "codebook_size": [4], "codebook_capacity": [8]}
    depth = ImageSense(size=[8, 16], channels=1, bits=16, low=0, high=4000, patch_size=4, **rows)
    codec = build_codec(depth).eval()
    book = codec.codebooks[0]  # as after training: its codes lie where values do
    book.started.fill_(True)
    book.live[:4] = True
    book.vectors.zero_()
    model = SimpleNamespace(senses={"depth": codec}, device="cpu", config=SimpleNamespace(senses={"depth": depth}))
    tiles = code_pictures(model, "depth", 0)
    assert tiles.dtype == np.uint8 and tiles.shape[1:] == (4, 4, 3) and len(tiles)
    assert (tiles == tiles[..., :1]).all()
    model.senses = {"voice": build_codec(WaveformSense())}
    with pytest.raises(ValueError, match="senses with pictures are \\[\\]"):
        code_pictures(model, "voice", 0)


def test_a_learned_code_looks_like_what_it_was_learned_from(checkpoint):
    model, _ = load(checkpoint)
    tiles = code_pictures(model, "camera", 0)
    assert tiles.shape == (int(model.senses["camera"].codebooks[0].describes().sum()), 4, 4, 3)
    np.testing.assert_allclose(tiles[-1], np.broadcast_to((240, 20, 20), (4, 4, 3)), atol=2)
    with pytest.raises(ValueError, match="No codes camera.3"):
        code_pictures(model, "camera", 3)
    assert picture(model).size[1] % 36 == 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_doubled_checkpoint_predicts_what_it_predicted_and_has_room(architecture, tmp_path):
    model = grown_up(architecture)
    save_checkpoint(tmp_path / "one", model, model.processor, {"training_data.json": "{}"})
    double(tmp_path / "one", ["camera.0", "action.0"], tmp_path / "two")
    larger, processor = load(tmp_path / "two")
    assert larger.config.senses["camera"].codebook_capacity == [24] and larger.config.action.capacity == 16
    assert (tmp_path / "two" / "training_data.json").exists()
    with torch.no_grad():
        old, new = (each(PROMPT, codes_in_text=True).logits for each in (model, larger))
    assert torch.equal(old[..., model.live_rows], new[..., larger.live_rows])
    assert torch.equal(model.live_rows.nonzero(), larger.live_rows.nonzero())  # no id has moved
    seen = observation(model, pictures(4, OLD))
    one, two = (m.simulate(m.perceive(seen), acts(model, 4, 3), temperature=1.0, seed=0) for m in (model, larger))
    assert torch.equal(one.codes["camera"][0], two.codes["camera"][0]) and torch.equal(one.log_prob, two.log_prob)
    assert model.processor.vocabulary.is_ancestor_of(processor.vocabulary)
    ids = larger.grow("camera.0", vectors=codec_vectors(15))
    assert ids[-1] >= processor.vocabulary.runs("camera.0")[1][0] and larger.live_rows[list(ids)].all()
    larger.grow("action.0", names=["a", "b", "c", "d", "e"])
    futures = larger.simulate(larger.perceive(seen), torch.full((4, 2), 8), temperature=30.0, seed=0)
    assert int(futures.codes["camera"][0].max()) >= 12  # codes of the extension are predicted, too
    save_checkpoint(tmp_path / "three", larger, processor)
    again, _ = load(tmp_path / "three")
    assert torch.equal(again(PROMPT).logits, larger(PROMPT).logits)


@pytest.mark.slow
@pytest.mark.parametrize("segment", ["action.legs.0", "action.legs.merges", "action.arm.merges"])
def test_rows_of_a_part_of_the_action_are_doubled(segment, tmp_path):
    arm = VectorAction(dim=2, low=-1, high=1, base=4, num_levels=2)
    model = grown_up(action={"legs": DiscreteAction(3, names=["left", "stay", "right"]), "arm": arm})
    save_checkpoint(tmp_path / "one", model, model.processor)
    before = model.processor.vocabulary.capacity(segment)
    double(tmp_path / "one", [segment], tmp_path / "two")
    larger, processor = load(tmp_path / "two")
    assert processor.vocabulary.capacity(segment) == 2 * before
    old, new = (each(PROMPT, codes_in_text=True).logits for each in (model, larger))
    assert torch.equal(old[..., model.live_rows], new[..., larger.live_rows])
    names = [f"kick{number}" for number in range(before)]
    if segment == "action.legs.0":
        assert larger.grow(segment, names=names)[-1] >= processor.vocabulary.runs(segment)[1][0]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_words_without_room_go_on_behind_the_codes_once_doubled(architecture, tmp_path):
    model = grown_up(architecture)
    ledger = model.processor.vocabulary
    room = ledger.capacity("text") - ledger.born("text")
    model.grow("text", names=[f"full{number}" for number in range(room - 1)])
    save_checkpoint(tmp_path / "one", model, model.processor, {"training_data.json": "{}"})
    double(tmp_path / "one", ["text"], tmp_path / "two")
    larger, processor = load(tmp_path / "two")
    with torch.no_grad():
        old, new = (each(PROMPT, codes_in_text=True).logits for each in (model, larger))
    assert torch.equal(old[..., model.live_rows], new[..., larger.live_rows])
    before = larger.table.word_logits(torch.ones(larger.config.text_config.hidden_size))

    ids = larger.grow("text", names=["last", "mug", "lava"], descriptions=["a", "a", "a"])
    behind = processor.vocabulary.runs("text")[1][0]
    assert ids == (ledger.capacity("text") - 1, behind, behind + 1)
    tokenizer = processor.tokenizer
    spoken = tokenizer.encode("mug lava<camera.0:1>last", add_special_tokens=False, codes_in_text=True)
    assert [item for item in spoken if item in ids] == [ids[1], ids[2], ids[0]]
    assert tokenizer.decode(spoken).replace(" ", "") == "muglava<camera.0:1>last"
    assert tokenizer.convert_ids_to_tokens(behind) == "mug" and tokenizer.convert_tokens_to_ids("mug") == behind
    assert processor.vocabulary.segment_of(behind) == ("text", ledger.capacity("text"))
    after = larger.table.word_logits(torch.ones(larger.config.text_config.hidden_size))
    assert after[list(ids)].isfinite().all() and not after[larger.table.segment_rows("camera", 0)].isfinite().any()
    kept = before.isfinite()
    assert torch.equal(before[kept], after[: len(kept)][kept])

    is_code = torch.arange(larger.config.vocab_size) >= model.config.text_capacity
    is_code[list(ids)] = False
    with torch.no_grad():
        assert (larger(PROMPT).logits[..., is_code] == torch.finfo(torch.float32).min).all()  # also those in between
    tokenizer.add_tokens(["rope"])  # as who knows only Transformers
    larger.resize_token_embeddings(len(tokenizer))
    assert larger.live_rows[behind + 2]
    save_checkpoint(tmp_path / "three", larger, processor)
    again, theirs = load(tmp_path / "three")
    assert torch.equal(again(PROMPT).logits, larger(PROMPT).logits)
    assert theirs.tokenizer.encode("rope mug lava last") == tokenizer.encode("rope mug lava last")


def test_doubling_in_place_keeps_the_other_files(checkpoint):
    before = json.loads((checkpoint / "checkpoint" / "config.json").read_text())
    assert double(checkpoint, ["camera.0"]) == checkpoint / "checkpoint"
    after = json.loads((checkpoint / "checkpoint" / "config.json").read_text())
    assert after["segments"] == before["segments"] and after["extensions"]["camera.0"][0][1] == 12
    assert (checkpoint / "checkpoint" / "training_data.json").exists()


@pytest.mark.parametrize(
    "segment, message",
    [
        ("smell.0", "Unknown segment"),
        ("camera.1", "Unknown segment"),
        (3, r"segments\[1\]: expected a text, got int 3"),
    ],
)
def test_what_cannot_be_doubled_leaves_the_checkpoint(checkpoint, segment, message):
    before = {path.name: path.read_bytes() for path in (checkpoint / "checkpoint").iterdir()}
    with pytest.raises(ValueError, match=message):
        double(checkpoint, ["camera.0", segment])
    assert {path.name: path.read_bytes() for path in (checkpoint / "checkpoint").iterdir()} == before


@pytest.mark.parametrize(
    "given, message",
    [
        ({"segments": []}, "`segments` names none"),
        ({"segments": None}, "segments: expected a list, got NoneType"),
        ({"output": 3}, "output: expected a text or a path or None, got int 3"),
        ({"path": ""}, "path: expected a path, got ''"),
    ],
)
def test_doubling_nothing_or_into_nothing_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        double(**{"path": "missing", "segments": ["camera.0"]} | given)


def test_a_folder_that_is_something_else_is_not_replaced(checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        double(checkpoint, ["camera.0"], tmp_path / "photos")


@pytest.mark.slow
def test_a_stranger_s_names_are_shown_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    model = grown_up()
    model.grow("text", names=["[link=https://example.com]here[/link]", "[/b]", ":smile:", "\x1b[31mred"])
    save_checkpoint(tmp_path / "checkpoint", model, model.processor)
    app(["vocabulary", "--run", str(tmp_path / "checkpoint")])
    shown = capsys.readouterr().out
    assert "[link=https://example.com]here[/link], [/b], :smile:,  [31mred" in shown and "\x1b" not in shown


@pytest.mark.slow
def test_the_command_shows_and_doubles(checkpoint, capsys):
    app(["vocabulary", "--run", str(checkpoint)])
    shown = capsys.readouterr().out
    assert "vocabulary.png" in shown and "novelty" in shown
    app(["vocabulary", "--run", str(checkpoint), "--double", "camera.0"])
    assert "larger checkpoint" in capsys.readouterr().out
