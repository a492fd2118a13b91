"""The world model as a language model: its backbone exactly, with one vocabulary of words and codes."""

import pytest
import torch
from tiny_worlds import ARCHITECTURES, PAD, WORDS, language_model, world_model

from pan_hf import PanModel

PROMPT = torch.tensor([[5, 17, 40, 8], [PAD, PAD, 33, 61]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_senses_logits_are_the_backbone_s_to_the_bit(architecture):
    backbone = language_model(architecture)
    ids = torch.randint(0, WORDS, (2, 9))
    with torch.no_grad():
        expected = backbone(ids, labels=ids)
        model = PanModel.from_backbone(backbone).eval()
        found = model(ids, labels=ids)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)
    assert model.num_parameters() == backbone.num_parameters()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generate_without_senses_continues_as_the_backbone_does(architecture):
    backbone = language_model(architecture)
    options = {"attention_mask": MASK, "max_new_tokens": 6, "do_sample": False}
    expected = backbone.generate(PROMPT, **options)
    assert torch.equal(PanModel.from_backbone(backbone).generate(PROMPT, **options), expected)


def test_the_backbone_s_generation_settings_are_taken_over():
    backbone = language_model()
    backbone.generation_config.eos_token_id = [2, 7]
    backbone.generation_config.repetition_penalty = 1.3
    found = PanModel.from_backbone(backbone).generation_config
    assert found.eos_token_id == [2, 7] and found.repetition_penalty == 1.3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generate_equals_choosing_word_by_word_without_a_cache(architecture):
    model = world_model(("camera",), architecture=architecture)
    found = model.generate(PROMPT[:1], max_new_tokens=5, do_sample=False, eos_token_id=None)
    ids = PROMPT[:1]
    with torch.no_grad():
        for _ in range(5):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, ids)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_id_that_does_not_exist_is_never_generated(architecture):
    model = world_model(("camera", "touch"), architecture=architecture)
    live = model.live_rows
    assert int(live.sum()) == WORDS + 6 + 10 + 3 * 5 + 4 < len(live)
    options = {"max_new_tokens": 24, "do_sample": True, "top_k": 0, "temperature": 10.0, "codes_in_text": True}
    ids = model.generate(PROMPT[:1].repeat(16, 1), **options)
    assert live[ids].all()
    assert (ids >= WORDS).any()  # at this temperature codes come too


def test_a_seed_decides_what_is_sampled():
    model, found = world_model(("camera",)), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model.generate(PROMPT[:1], max_new_tokens=12, do_sample=True, temperature=5.0))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_words_and_codes_can_be_mixed():
    model = world_model(("camera",))
    offset, capacity = model.config.segments["camera.1"]
    mixed = torch.tensor([[5, offset, offset + 3, model.config.segments["action.0"][0], 9]])
    ids = model.generate(mixed, max_new_tokens=4, do_sample=False)
    assert ids.shape == (1, 9) and torch.equal(ids[:, :5], mixed)
    with torch.no_grad():
        logits = model(mixed, codes_in_text=True).logits
    assert logits.shape[-1] == model.config.vocab_size
    assert (logits[..., offset + capacity - 1] == torch.finfo(logits.dtype).min).all()  # a row that waits to be born


def test_capacity_is_reserved_once_and_in_order():
    config = world_model(("camera", "touch", "mission"), "vector").config
    assert config.text_size == WORDS <= config.text_capacity
    end = config.text_capacity
    for name, (offset, capacity) in config.segments.items():
        assert offset == end, name
        end += capacity
    assert end <= config.vocab_size and config.vocab_size % 64 == 0
    levels = {"camera": 2, "touch": 3, "action": 2}
    expected = [f"{part}.{ending}" for part, count in levels.items() for ending in (*range(count), "merges")]
    assert list(config.segments) == expected


def test_neither_text_nor_an_objective_is_an_error():
    model = world_model(("camera",))
    with pytest.raises(ValueError, match="Give `input_ids`"):
        model()
    with pytest.raises(ValueError, match="Unknown objective 'dynamic'; expected one of .*'dynamics'"):
        model(objective="dynamic")
