"""The tokenizer spells codes and leaves words alone; the processor refuses what does not fit and keeps what does."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from pan_hf.tokenization.processing_pan import PanProcessor
from pan_hf.tokenization.tokenization_pan import PanTokenizer
from pan_hf.tokenization.vocabulary_pan import Vocabulary

TEXTS = ["go to the red door", "pick up the blue key", "open the green box"] * 4
SENSES = {
    "camera": {"kind": "image", "height": 8, "width": 6, "channels": 3},
    "arm": {"kind": "vector", "dim": 2, "low": [0.0, -1.0], "high": [512.0, 1.0]},
    "mission": {"kind": "text", "max_length": 8, "every_step": False},
}
ACTION = {"kind": "discrete", "num_actions": 7}
FRAME = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)


@pytest.fixture(scope="module")
def words():
    return PanTokenizer.train(TEXTS, vocab_size=320)


@pytest.fixture
def tokenizer(words):
    ledger = Vocabulary.build(len(words), 512, {"camera.0": (64, 32), "camera.1": (64, 32), "action.0": (14, 7)})
    return PanTokenizer.from_backbone(words, ledger)


@pytest.fixture
def processor(tokenizer):
    return PanProcessor(tokenizer, senses=SENSES, action=ACTION)


def observe(**changes) -> dict:
    return {"camera": FRAME, "arm": [100.0, 0.5], "mission": "go to the red door", **changes}


def read(spec: dict, value, tokenizer, action: bool = False):
    """One value through a processor of one sense (or action)."""
    if action:
        return PanProcessor(tokenizer, action=spec)(action=value)["action"]
    return PanProcessor(tokenizer, senses={"it": spec})(observation={"it": value})["observation"]["it"]


# -- tokenizer


def test_a_trained_tokenizer_writes_any_text_and_reads_it_back(words):
    assert len(words) <= 320 and words.pad_token_id == 0
    for text in [*TEXTS, "Zürich 東京 🤖\n\tx", ""]:
        assert words.decode(words.encode(text)) == text
    assert words.encode("go") == PanTokenizer.train(iter(TEXTS), vocab_size=320).encode("go")


def test_training_refuses_one_string_and_too_small_a_size():
    with pytest.raises(ValueError, match="list of texts"):
        PanTokenizer.train("go to the red door")
    with pytest.raises(ValueError, match="at least 259.*got 100"):
        PanTokenizer.train(TEXTS, vocab_size=100)


def test_mixed_ids_decode_to_readable_pieces_and_encode_back(tokenizer):
    text = "go <camera.0:17><camera.1:3> then<action.0:6>"
    ids = tokenizer.encode(text, codes_in_text=True)
    assert [item for item in ids if item >= 512] == [529, 579, 646]
    assert tokenizer.decode(ids) == text and tokenizer.decode(torch.tensor(ids)) == text
    assert tokenizer.batch_decode([ids, ids[:1]]) == [text, "go"]
    tokens = tokenizer.tokenize(text, codes_in_text=True)
    assert tokens[2] == "<camera.0:17>" and tokenizer.convert_tokens_to_ids(tokens) == ids
    assert tokenizer.convert_ids_to_tokens(ids) == tokens


def test_every_born_code_survives_decode_and_encode(tokenizer):
    ledger = tokenizer.vocabulary
    ids = [ledger.id_of(name, code) for name in ledger.segments for code in range(ledger.born(name))]
    assert tokenizer.encode(tokenizer.decode(ids), codes_in_text=True) == ids


def test_a_code_that_was_never_born_is_an_error_and_an_unknown_segment_is_text(tokenizer):
    with pytest.raises(ValueError, match="camera.0 has no token 32: 32 were born"):
        tokenizer.encode("<camera.0:32>", codes_in_text=True)
    assert max(tokenizer.encode("<smell.0:1>", codes_in_text=True)) < 512


def test_padding_and_truncation_work_on_text_with_codes(tokenizer):
    batch = tokenizer(["go <camera.0:17>", "go"], padding=True, return_tensors="pt", codes_in_text=True)
    assert batch["input_ids"].shape == (2, 3) and batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    short = {"truncation": True, "max_length": 2, "codes_in_text": True}
    assert tokenizer("<camera.0:1><camera.0:2><camera.0:3>", **short)["input_ids"] == [513, 514]
    with pytest.raises(ValueError, match="return_offsets_mapping"):
        tokenizer("<camera.0:1>", return_offsets_mapping=True, codes_in_text=True)


def llama_like(words) -> PreTrainedTokenizerFast:
    backend = PanTokenizer.from_backbone(words).backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", padding_side="left", chat_template=template
    )


def test_from_backbone_keeps_every_id_of_the_backbone(words):
    backbone = llama_like(words)
    backbone("go", truncation=True, max_length=1)  # leaves a truncation behind in the backend
    ours = PanTokenizer.from_backbone(backbone)
    for text in TEXTS:
        assert ours.encode(text) == backbone.encode(text)
    assert ours.get_vocab() == backbone.get_vocab()
    assert (ours.padding_side, ours.chat_template) == ("left", backbone.chat_template)
    assert ours.pad_token == "<eos>" and backbone.pad_token is None


def test_special_tokens_of_the_backbone_stand_around_text_with_codes(words):
    ours = PanTokenizer.from_backbone(llama_like(words), Vocabulary.build(len(words), 512, {"camera.0": (4, 4)}))
    assert ours.encode("<camera.0:2>", codes_in_text=True) == [1, 514]
    assert ours.encode("<camera.0:2>", add_special_tokens=False, codes_in_text=True) == [514]


def test_from_backbone_refuses_a_tokenizer_that_is_not_fast():
    with pytest.raises(ValueError, match="fast tokenizer"):
        PanTokenizer.from_backbone(SimpleNamespace())


def test_added_words_stay_below_the_codes_and_enter_the_ledger(tokenizer):
    start = len(tokenizer)
    tokenizer.add_tokens(["icepick", "icepick", "go"])  # "go" is a word already
    assert tokenizer.encode("icepick") == [start]
    assert tokenizer.vocabulary.births[-1]["names"] == ["icepick"] and tokenizer.vocabulary.live("text") == start + 1
    with pytest.raises(ValueError, match="No room for 600 more words.*--double text"):
        tokenizer.add_tokens([f"word{index}" for index in range(600)])
    assert len(tokenizer) == start + 1


def test_words_added_to_rows_that_are_live_already_are_no_births(words):
    ledger = Vocabulary.build(len(words) + 4, 512, {"camera.0": (4, 4)})
    tokenizer = PanTokenizer.from_backbone(words, ledger)
    before = ledger.digest()
    tokenizer.add_tokens(["icepick"])
    assert ledger.digest() == before


def test_a_ledger_with_too_few_words_is_refused(words):
    with pytest.raises(ValueError, match=f"text_size={len(words)} or more"):
        PanTokenizer.from_backbone(words, Vocabulary.build(260, 512))


def test_a_saved_tokenizer_brings_its_ledger(tokenizer, tmp_path):
    tokenizer.add_tokens(["icepick"])
    tokenizer.save_pretrained(tmp_path)
    loaded = PanTokenizer.from_pretrained(tmp_path)
    assert loaded.vocabulary_digest == tokenizer.vocabulary_digest
    text, given = "the icepick <camera.0:17>", {"codes_in_text": True}
    assert loaded.encode(text, **given) == tokenizer.encode(text, **given) and len(loaded) == len(tokenizer)
    assert "camera" not in (tmp_path / "tokenizer_config.json").read_text()


def test_an_edited_ledger_stops_the_tokenizer_from_loading(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "vocabulary.json"
    path.write_text(path.read_text().replace('"count": 32', '"count": 31', 1))
    with pytest.raises(ValueError, match="edited or damaged"):
        PanTokenizer.from_pretrained(tmp_path)


# -- observations


def test_one_observation_becomes_a_batch_of_one_frame(processor):
    batch = processor(observation=observe(), action=[])
    shapes = {name: tuple(value.shape) for name, value in batch["observation"].items()}
    assert shapes == {"camera": (1, 1, 3, 8, 6), "arm": (1, 1, 2), "mission": (1, 8)}
    assert [value.dtype for value in batch["observation"].values()] == [torch.uint8, torch.float32, torch.int64]
    assert batch["action"].shape == (1, 0)
    assert "action" not in processor(observation=observe())


def test_frames_keep_their_pixels_whatever_they_come_as(processor):
    expected = torch.from_numpy(FRAME).permute(2, 0, 1)
    forms = [FRAME, FRAME.transpose(2, 0, 1), torch.from_numpy(FRAME), expected, Image.fromarray(FRAME)]
    for form in forms:
        for value, shape in [(form, (1, 1)), ([form, form], (1, 2)), ([[form], [form]], (2, 1))]:
            camera = read(SENSES["camera"], value, processor.tokenizer)
            assert camera.shape == (*shape, 3, 8, 6) and (camera == expected).all()
    with pytest.raises(ValueError, match="expected uint8.*got int64"):
        read(SENSES["camera"], FRAME.tolist(), processor.tokenizer)


def test_the_batch_does_not_share_memory_with_the_frames_given(processor):
    frame = np.zeros((3, 8, 6), dtype=np.uint8)
    camera = read(SENSES["camera"], frame, processor.tokenizer)
    frame[:] = 255
    assert camera.max() == 0


def test_batches_of_windows_pass_with_their_actions(processor):
    observation = observe(camera=np.stack([[FRAME] * 4] * 2), arm=np.zeros((2, 4, 2)), mission=["go", "open the box"])
    batch = processor(observation=observation, action=np.zeros((2, 3), dtype=np.int32))
    assert batch["observation"]["camera"].shape == (2, 4, 3, 8, 6) and batch["action"].shape == (2, 3)
    assert batch["action"].dtype == torch.int64
    one_mission = processor(observation={**observation, "mission": "go"})["observation"]["mission"]
    assert one_mission.shape == (2, 8) and (one_mission[0] == one_mission[1]).all()


def test_text_is_padded_at_the_end_and_read_back(processor):
    spec = {"kind": "text", "max_length": 8, "every_step": True}
    for value, shape in [("go", (1, 1, 8)), (["go", "open"], (1, 2, 8)), ([["go"], ["open"]], (2, 1, 8))]:
        ids = read(spec, value, processor.tokenizer)
        assert ids.shape == shape and ids[..., -1].eq(0).all()
    names = np.array([["go", "open"], ["pick", "go"]], dtype=object)
    ids = read(spec, names, processor.tokenizer)
    decoded = PanProcessor(processor.tokenizer, senses={"it": spec}).decode_observation({"it": ids})
    assert decoded == {"it": names.tolist()}


def test_text_from_outside_cannot_name_codes(processor):
    spec = {"kind": "text", "max_length": 32, "every_step": False}
    assert read(spec, "<camera.0:17>", processor.tokenizer).max() < 512


def test_vectors_within_rounding_of_their_range_are_pulled_in(processor):
    arm = read(SENSES["arm"], [512.0 + 0.1, -1.001], processor.tokenizer)
    assert arm.flatten().tolist() == [512.0, -1.0]


def test_clip_takes_what_is_outside(tokenizer):
    assert read({**SENSES["arm"], "clip": True}, [900.0, -3.0], tokenizer).flatten().tolist() == [512.0, -1.0]
    assert read({**SENSES["mission"], "clip": True}, "go to the red door " * 9, tokenizer).shape == (1, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smell": 1}, r"expected exactly the senses camera, arm, mission \(unknown: smell; missing: none\)"),
        ({"camera": FRAME / 255}, "camera: expected uint8 in 0..255, got float64; multiply by 255"),
        ({"camera": FRAME[:4]}, r"camera: expected frames of \(8, 6, 3\).*got shape \(4, 6, 3\); resize"),
        ({"camera": np.zeros((1, 1, 1, 8, 6, 3), np.uint8)}, "camera: expected frames of"),
        ({"camera": [FRAME, FRAME[:4]]}, "camera: expected items of one shape"),
        ({"camera": []}, "camera: expected uint8"),
        ({"camera": np.zeros((0, 8, 6, 3), np.uint8)}, "camera: nothing in it"),
        ({"arm": [1.0, 0.5, 0.5]}, r"arm: expected \(2,\), \(time, 2\) or \(batch, time, 2\), got shape \(3,\)"),
        ({"arm": [float("nan"), 0.5]}, "arm: expected finite numbers, got 1 NaN or inf"),
        ({"arm": [1.0, float("inf")]}, "arm: expected finite numbers"),
        ({"arm": [1.0, 1.01]}, r"arm: coordinate 1 is within 1.01..1.01, expected -1..1"),
        ({"arm": ["a", "b"]}, "arm: expected numbers"),
        ({"mission": 3}, "mission: expected a string or a list of strings, got 3"),
        ({"mission": [["go"]]}, "mission: expected a string or a list"),
        ({"mission": "pick up the blue key and the red door"}, "mission: .* tokens long, expected at most 8"),
        ({"arm": np.zeros((2, 2))}, "Numbers of frames differ: {'camera': 1, 'arm': 2}"),
        ({"mission": ["go", "open"]}, "Batch sizes differ: {'camera': 1, 'arm': 1, 'mission': 2}"),
    ],
)
def test_an_observation_that_does_not_fit_its_sense_is_refused(processor, changes, message):
    with pytest.raises(ValueError, match=message):
        processor(observation=observe(**changes))


def test_a_goal_may_be_about_some_senses_and_a_whole_observation_is_refused_without_one(processor):
    goal = {"camera": FRAME}
    assert set(processor(observation=goal)["observation"]) == {"camera"}
    with pytest.raises(ValueError, match="missing: arm, mission"):
        processor(observation=goal, partial=False)
    with pytest.raises(ValueError, match="observation has nothing"):
        processor(observation={})
    with pytest.raises(ValueError, match="must be a dict.*got ndarray"):
        processor(observation=FRAME)
    with pytest.raises(ValueError, match="Nothing to process"):
        processor()


def test_a_list_may_mix_tensors_arrays_and_pil_images(processor):
    first = torch.from_numpy(FRAME).permute(2, 0, 1)
    mixed = [FRAME, first, Image.fromarray(FRAME), torch.from_numpy(FRAME), FRAME.transpose(2, 0, 1)]
    camera = read(SENSES["camera"], mixed, processor.tokenizer)
    assert camera.shape == (1, 5, 3, 8, 6) and (camera == first).all()


def test_grey_pictures_need_no_axis_of_channels(processor):
    grey = {"kind": "image", "height": 8, "width": 6, "channels": 1}
    frame = FRAME[..., 0]
    for value, shape in [(frame, (1, 1)), (np.stack([frame] * 3), (1, 3)), ([[frame], [frame]], (2, 1))]:
        camera = read(grey, value, processor.tokenizer)
        assert camera.shape == (*shape, 1, 8, 6) and (camera == torch.from_numpy(frame)).all()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME / 255, "multiply by 255, round and convert to uint8"),
        (FRAME.astype(np.float64), "got float64; round it and convert to uint8"),
        (FRAME / 127.5 - 1, "add 1, multiply by 127.5"),
        (np.full(FRAME.shape, np.nan), "it holds NaN or inf"),
        (FRAME > 9, "got bool; convert it to uint8"),
        (FRAME.astype(np.uint16), "got uint16; convert it to uint8"),
        (Image.fromarray(FRAME[..., 0].astype(np.uint16)), "mode 'I;16', whose numbers are no colours; .* bits=16"),
        (Image.fromarray(FRAME[..., 0].astype(np.float32)), "mode 'F', whose numbers are no colours"),
        (Image.fromarray(np.dstack([FRAME, FRAME[..., :1]])), "mode 'RGBA'. is transparent in places.* channels=4"),
        (np.zeros((0, 2, 8, 6, 3), np.uint8), "camera: nothing in it .* give at least one row and one step"),
        ("camera.png", "camera: expected uint8"),
    ],
)
def test_pictures_that_are_no_8_bit_colours_are_refused_with_what_makes_them_so(processor, frame, message):
    with pytest.raises(ValueError, match=message):
        processor(observation={"camera": frame})


def test_an_opaque_picture_loses_its_alpha_and_a_palette_becomes_its_colours(processor):
    opaque = Image.fromarray(FRAME).convert("RGBA")
    assert (
        read(SENSES["camera"], opaque, processor.tokenizer)[0, 0] == torch.from_numpy(FRAME).permute(2, 0, 1)
    ).all()
    black = Image.new("P", (6, 8))
    assert not read(SENSES["camera"], black, processor.tokenizer).any()


DEPTH = {"kind": "image", "height": 8, "width": 6, "channels": 1, "bits": 16, "low": 400, "high": 4000, "unit": "mm"}


def test_depth_is_read_in_its_own_range_whatever_it_comes_as(tokenizer):
    depth = np.linspace(400, 4000, 48).astype(np.uint16).reshape(8, 6)
    forms = [depth, depth[..., None], depth.astype(np.int64), Image.fromarray(depth), torch.from_numpy(depth[None])]
    forms += [Image.fromarray(depth.astype(np.int32)), torch.from_numpy(depth.astype(np.int32))]
    for form in forms:
        ids = read(DEPTH, form, tokenizer)
        assert ids.dtype == torch.int32 and (ids[0, 0, 0].numpy() == depth).all()
    processor = PanProcessor(tokenizer, senses={"it": DEPTH})
    shown = processor.decode_observation({"it": read(DEPTH, depth, tokenizer)}, output_type="pil")["it"]
    assert (np.asarray(shown[0][0]) == depth).all()
    rows = processor.read_columns({"it": np.stack([depth] * 3)})
    assert rows["it"].dtype == torch.int32 and rows["it"].shape == (3, 1, 8, 6)
    absent = processor(observation={"it": [depth, None]})["observation"]
    assert absent["it.present"].tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda depth: depth / 1000, "whole numbers in 400..4000 mm, got float64; multiply"),
        (lambda depth: depth * 0, "expected 400..4000 mm, got 0..0; check the unit"),
        (lambda depth: depth[:4], r"expected frames of \(8, 6, 1\)"),
    ],
)
def test_depth_beyond_its_range_is_refused_and_clipped_only_when_asked(tokenizer, change, message):
    depth = np.full((8, 6), 1000, np.uint16)
    with pytest.raises(ValueError, match=message):
        read(DEPTH, change(depth), tokenizer)
    assert (read(DEPTH | {"clip": True}, depth * 0, tokenizer) == 400).all()


def test_a_mask_without_its_sense_and_ragged_gaps_are_refused(processor):
    with pytest.raises(ValueError, match="unknown: arm.present"):
        processor(observation={"camera": FRAME, "arm.present": [True]})
    with pytest.raises(ValueError, match=r"one number of steps, got \[1, 2\]"):
        processor(observation={"camera": [[FRAME, None], [FRAME]]})


# -- actions


def test_actions_are_told_by_their_names_where_they_have_some(tokenizer):
    named = ACTION | {"names": ["left", "right", "forward", "pickup", "drop", "toggle", "done"]}
    for value, expected in [
        ("forward", [[2]]),
        (["left", "done"], [[0, 6]]),
        ([["left"], ["right"]], [[0], [1]]),
        (np.array(["drop", "left"]), [[4, 0]]),
        ([1, 2], [[1, 2]]),
    ]:
        assert read(named, value, tokenizer, action=True).tolist() == expected
    with pytest.raises(ValueError, match="no one action 'fly'; there are .*'left'"):
        read(named, ["left", "fly"], tokenizer, action=True)
    with pytest.raises(ValueError, match="expected integers in 0..6, got 'left'; these actions have no names"):
        read(ACTION, "left", tokenizer, action=True)


@pytest.mark.parametrize(
    ("spec", "value", "shape"),
    [
        (ACTION, 3, (1, 1)),
        (ACTION, [0, 6, 2], (1, 3)),
        (ACTION, torch.tensor([[1, 2]], dtype=torch.int32), (1, 2)),
        ({"kind": "vector", "dim": 2, "low": -1.0, "high": 1.0}, [0.5, -0.5], (1, 1, 2)),
        ({"kind": "vector", "dim": 2, "low": -1.0, "high": 1.0}, np.zeros((4, 3, 2)), (4, 3, 2)),
        ({"kind": "vector", "dim": 2, "low": -1.0, "high": 1.0}, [], (1, 0, 2)),
        ({"kind": "vector", "dim": 1, "low": -1.0, "high": 1.0}, 0.5, (1, 1, 1)),
        ({"kind": "text", "max_length": 4}, "go", (1, 1, 4)),
        ({"kind": "text", "max_length": 4}, [["go", "open"]], (1, 2, 4)),
    ],
)
def test_actions_get_a_batch_and_a_time(tokenizer, spec, value, shape):
    assert read(spec, value, tokenizer, action=True).shape == shape


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        (ACTION, [0, 7], r"action: expected integers in 0..6, got 7"),
        (ACTION, -1, r"action: expected integers in 0..6, got -1"),
        (ACTION, [0.0, 1.0], "action: expected integers, .* got float64"),
        (ACTION, True, "action: expected integers, .* got bool"),
        ({"kind": "vector", "dim": 2, "low": -1.0, "high": 1.0}, [0.0, 2.0], "action: coordinate 1"),
        ({"kind": "text", "max_length": 4}, [[["go"]]], "action: expected a string, a list or a list of lists"),
    ],
)
def test_an_action_out_of_range_is_refused(tokenizer, spec, value, message):
    with pytest.raises(ValueError, match=message):
        read(spec, value, tokenizer, action=True)


def test_actions_must_lie_between_the_frames(processor):
    observation = observe(camera=np.stack([FRAME] * 3), arm=np.zeros((3, 2)))
    assert processor(observation=observation, action=[1, 2])["action"].shape == (1, 2)
    with pytest.raises(ValueError, match="3 frames have 2 actions between them, got 3"):
        processor(observation=observation, action=[1, 2, 3])
    with pytest.raises(ValueError, match="this processor has none"):
        PanProcessor(processor.tokenizer)(action=3)


# -- the rest of the processor


def test_observations_survive_the_way_there_and_back(processor):
    given = observe(camera=np.stack([FRAME] * 2), arm=np.array([[1.0, 0.0], [2.0, 0.5]]))
    back = processor.decode_observation(processor(observation=given)["observation"])
    assert (back["camera"][0] == given["camera"]).all() and back["camera"].dtype == np.uint8
    assert np.allclose(back["arm"][0], given["arm"]) and back["mission"] == ["go to the red door"]
    pictures = processor.decode_observation(processor(observation=given)["observation"], output_type="pil")["camera"]
    assert (np.asarray(pictures[0][1]) == FRAME).all()
    assert processor.decode_action(torch.tensor([[1, 2]])).tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="Unknown senses smell"):
        processor.decode_observation({"smell": torch.zeros(1)})


def test_a_chat_template_writes_messages_and_their_codes(tokenizer):
    template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }} {% endfor %}"
    processor = PanProcessor(tokenizer, senses=SENSES, action=ACTION, chat_template=template)
    messages = [{"role": "user", "content": "go <camera.0:1>"}, {"role": "assistant", "content": "open"}]
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    for given in ({}, {"codes_in_text": True}):
        ids = processor.apply_chat_template(messages, **settings, **given)["input_ids"]
        assert ids.tolist() == [tokenizer.encode("user: go <camera.0:1> assistant: open ", **given)]
        assert (513 in ids) == bool(given)  # what a message spells is words, where codes are not asked for
    settings = {"padding": "max_length", "max_length": 40}
    assert processor(text=["go", "open"], **settings)["input_ids"].shape == (2, 40)
    with pytest.raises(ValueError, match="Got images: what is seen or heard is given by sense"):
        processor(text="go", images=[FRAME])
    with pytest.raises(ValueError, match="Got max_length without text"):
        processor(observation=observe(), max_length=3)


def test_plain_text_becomes_padded_ids_with_codes_if_asked(processor):
    assert processor(text=["go <camera.0:1>", "go"])["input_ids"].max() < 512
    batch = processor(text=["go <camera.0:1>", "go"], codes_in_text=True)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 3) and 513 in batch["input_ids"]
    assert isinstance(processor(text="go", return_tensors="np")["input_ids"], np.ndarray)
    with pytest.raises(ValueError, match="'pt' or 'np'"):
        processor(text="go", return_tensors="tf")


def test_moving_a_batch_reaches_the_observation(processor):
    batch = processor(observation=observe(), action=[]).to(torch.float64)
    assert batch["observation"]["arm"].dtype == torch.float64 and batch["observation"]["camera"].dtype == torch.uint8
    assert processor(observation=observe()).to("meta")["observation"]["camera"].device.type == "meta"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"senses": {"ear": {"kind": "audio"}}}, "Sense 'ear' has the unknown kind 'audio'"),
        ({"senses": {"arm": {"kind": "vector", "dim": 2}}}, "Sense 'arm' of kind 'vector' lacks high, low"),
        ({"action": {"kind": "image"}}, "expected one of discrete, vector, text"),
    ],
)
def test_a_sense_that_cannot_be_read_is_refused_at_once(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        PanProcessor(tokenizer, **arguments)


def test_a_processor_needs_a_tokenizer_and_wraps_a_plain_one(words):
    with pytest.raises(ValueError, match="PanTokenizer.train"):
        PanProcessor()
    processor = PanProcessor(llama_like(words), vocabulary=Vocabulary.build(len(words), 512).to_dict())
    assert processor.vocabulary.live("text") == len(words) and processor.chat_template


def test_a_grown_ledger_replaces_its_ancestor_and_a_stranger_is_refused(tokenizer):
    grown = Vocabulary.from_dict(tokenizer.vocabulary.to_dict())
    grown.grow("camera.0", 1, "novelty", step=5)
    assert PanProcessor(tokenizer, vocabulary=grown).vocabulary_digest == grown.digest()
    with pytest.raises(ValueError, match="did not grow from:(?s:.*)segment camera.0"):
        PanProcessor(tokenizer, vocabulary=Vocabulary.build(320, 512, {"camera.0": (64, 32)}))


def test_check_model_says_what_differs(processor):
    senses = {name: SimpleNamespace(to_dict=lambda spec=spec: spec) for name, spec in SENSES.items()}
    config = SimpleNamespace(vocabulary_digest=processor.vocabulary_digest, senses=senses, action=ACTION)
    model = SimpleNamespace(config=config)
    processor.check_model(model)
    grown = Vocabulary.from_dict(processor.vocabulary.to_dict())
    grown.grow("camera.0", 8, "novelty", step=5)
    config.vocabulary_digest, model.processor = grown.digest(), SimpleNamespace(vocabulary=grown)
    with pytest.raises(ValueError, match="does not belong(?s:.*)8 born in camera.0 .novelty, step 5. in the model"):
        processor.check_model(model)
    config.vocabulary_digest = processor.vocabulary_digest
    config.senses = {**SENSES, "camera": {**SENSES["camera"], "height": 64}}
    with pytest.raises(ValueError, match="camera.height: 8 in the processor, 64 in the model"):
        processor.check_model(model)


def test_a_saved_processor_loads_equal_and_keeps_one_ledger(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = PanProcessor.from_pretrained(tmp_path)
    assert (loaded.senses, loaded.action) == (processor.senses, processor.action)
    assert loaded.vocabulary_digest == processor.vocabulary_digest
    assert "vocabulary" not in json.loads((tmp_path / "processor_config.json").read_text())
    ours, theirs = (item(observation=observe())["observation"] for item in (processor, loaded))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    loaded.save_pretrained(tmp_path / "again")
    names = {item.name for item in (tmp_path / "again").iterdir()}
    code = {"processing_pan.py", "readers_pan.py", "tokenization_pan.py", "vocabulary_pan.py"}
    assert code | {"vocabulary.json", "processor_config.json", "tokenizer.json"} <= names


STRANGER = """
import sys
sys.modules["pan_hf"] = None  # as where it is not installed
import numpy as np
from transformers import AutoProcessor, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
for given in (False, True):
    ids = tokenizer.encode("go <camera.0:17>", codes_in_text=given)
    assert tokenizer.decode(ids) == "go <camera.0:17>" and (529 in ids) == given
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
observation = {"camera": np.zeros((8, 6, 3), np.uint8), "arm": [1, 0], "mission": "go"}
assert processor(observation=observation)["observation"]["camera"].shape == (1, 1, 3, 8, 6)
processor.save_pretrained(folder + "/again")
again = AutoProcessor.from_pretrained(folder + "/again", trust_remote_code=True)
print(type(processor).__name__, type(tokenizer).__name__, tokenizer.vocabulary_digest, again.vocabulary_digest)
"""


@pytest.mark.slow
def test_a_process_without_pan_hf_loads_processor_and_tokenizer(processor, tmp_path):
    processor.save_pretrained(tmp_path / "saved")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path / "saved")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    digest = processor.vocabulary_digest
    assert result.stdout.split() == ["PanProcessor", "PanTokenizer", digest, digest]


def test_what_stands_where_an_array_is_absent_is_passed_over(tokenizer):
    processor = PanProcessor(tokenizer, senses={"arm": {"kind": "vector", "dim": 2, "low": [-1, -1], "high": [1, 1]}})
    arm = np.array([[np.nan, 9.0], [0.5, 0.25], [np.inf, 0.0]], np.float32)
    for array in (arm, torch.from_numpy(arm)):
        batch = processor(observation={"arm": array, "arm.present": [False, True, False]})["observation"]
        assert batch["arm"][0, 1].tolist() == [0.5, 0.25] and batch["arm.present"].tolist() == [[False, True, False]]
    assert np.isnan(arm[0, 0])  # what was given is as it was
    with pytest.raises(ValueError, match="arm"):
        processor(observation={"arm": array, "arm.present": [True, True, False]})


def test_a_column_of_actions_has_no_batch(tokenizer):
    processor = PanProcessor(tokenizer, action={"kind": "discrete", "num_actions": 3})
    assert processor.read_columns({"action": [0, 2, 1]})["action"].tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="action: a column has no batch, got one of 2 rows"):
        processor.read_columns({"action": [[0, 2], [1, 1]]})


def test_columns_of_one_recording_have_equally_many_rows(tokenizer):
    spec = {"kind": "vector", "dim": 1, "low": [0.0], "high": [1.0]}
    senses = {"arm": spec, "goal": {"kind": "text", "max_length": 8}}
    processor = PanProcessor(tokenizer, senses, action={"kind": "discrete", "num_actions": 3})
    with pytest.raises(ValueError, match=r"equally many rows; got \{'arm': 2, 'action': 3\}"):
        processor.read_columns({"arm": np.zeros((2, 1)), "action": [0, 2, 1]})
    assert len(processor.read_columns({"arm": np.zeros((2, 1)), "goal": "go"})["goal"]) == 1  # of all rows
