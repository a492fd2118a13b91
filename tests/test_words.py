"""Words are words: a world model speaks as its backbone does, and codes are read and said where they are asked for."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_growth import grown_up
from tiny_worlds import FAMILIES, PAD, SENSES, WORDS, acts, language_model, observe, outcomes, world_model
from transformers import AutoConfig, AutoModelForCausalLM, WatermarkingConfig

from pan_hf import DiscreteAction, PanModel, PanProcessor, PanTokenizer, TextAction, TextSense
from pan_hf.tokenization import Vocabulary

PROMPT = torch.randint(3, WORDS, (2, 9), generator=torch.Generator().manual_seed(0))
LEAST = torch.finfo(torch.float32).min
BACKBONES = [*FAMILIES, "tied llama", "untied gpt2"]  # Qwen3 is tied, with grouped queries


def bare(name, dtype=torch.float32):
    """A backbone of a family, whose tables are tied or not as that has it, or as the name says."""
    *tied, family = name.split()
    shape = FAMILIES[family] | ({"tie_word_embeddings": tied == ["tied"]} if tied else {})
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=WORDS, initializer_range=0.1, pad_token_id=PAD, **shape)
    return AutoModelForCausalLM.from_config(config).eval().to(dtype)


def world(backbone, **config):
    senses = {name: SENSES[name] for name in ("camera", "touch", "heard", "mission")}
    return PanModel.from_backbone(backbone, senses, DiscreteAction(4), text_reserve=10, **config).eval()


def said(model, **options):
    """What a model says greedily, with beams, with a penalty, and sampled with a seed."""
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD} | options
    torch.manual_seed(0)
    others = ({}, {"num_beams": 3}, {"repetition_penalty": 1.3}, {"do_sample": True, "top_k": 0, "temperature": 4.0})
    mask = torch.ones_like(PROMPT)
    return [model.generate(PROMPT, attention_mask=mask, **(options | other)).tolist() for other in others]


# a world model says what its backbone says


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in BACKBONES] + [(name, torch.bfloat16) for name in ("qwen3", "tied llama")],
)
@torch.no_grad()
def test_an_untrained_world_has_the_loss_and_the_words_of_its_backbone_to_the_bit(name, dtype):
    backbone = bare(name, dtype)
    expected, spoken = backbone(PROMPT, labels=PROMPT), said(backbone)
    model = world(backbone)
    found = model(PROMPT, labels=PROMPT)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.logits[..., :WORDS], expected.logits)
    assert found.logits.shape[-1] == model.config.vocab_size
    assert (found.logits[..., WORDS:] == torch.finfo(dtype).min).all()
    assert said(model) == spoken


@torch.no_grad()
def test_experts_run_as_they_do_in_the_backbone():
    backbone = language_model("mixtral").to(torch.bfloat16)
    expected, how = backbone(PROMPT).logits, backbone.config._experts_implementation
    model = world(backbone)
    assert model.language_model.config._experts_implementation == how
    assert torch.equal(model(PROMPT).logits[..., :WORDS], expected)


def test_a_trained_world_says_words_alone():
    model = world_model(("camera", "mission"))
    observation, action = observe(model, 2, 3), acts(model, 2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(objective="joint", observation=observation, action=action, **outcomes(2, 2)).loss.backward()
    optimizer.step()
    rows = [row for rows in said(model.eval(), temperature=10.0) for row in rows]
    assert max(max(row) for row in rows) < WORDS


# codes are possible where they are asked for


def test_an_argument_or_the_configuration_asks_for_codes(tmp_path):
    model = world_model(("camera",))
    options = {"max_new_tokens": 24, "do_sample": True, "top_k": 0, "temperature": 10.0}
    prompt = PROMPT[:1].repeat(16, 1)
    assert (model.generate(prompt, codes_in_text=True, **options) >= WORDS).any()
    model.config.codes_in_text = True
    assert (model.generate(prompt, **options) >= WORDS).any()
    assert (model.generate(prompt, codes_in_text=False, **options) < WORDS).all()
    model.save_pretrained(tmp_path)
    assert PanModel.from_pretrained(tmp_path).config.codes_in_text
    assert not PanModel.from_pretrained(tmp_path, codes_in_text=False).config.codes_in_text


def test_words_are_said_behind_codes():
    model = world_model(("camera",))
    code = model.config.segments["camera.0"][0]
    prompt = torch.tensor([[5, code, code + 1, 9]])
    ids = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None, repetition_penalty=1.2)
    assert torch.equal(ids[:, :4], prompt) and (ids[:, 4:] < WORDS).all()


def test_labels_that_are_no_words_are_refused():
    model = world_model(("camera",))
    code = model.config.segments["camera.0"][0]
    for label in (code, WORDS, 10**6):
        labels = torch.tensor([[5, label]])
        for given in ({}, {"objective": "text"}):
            with pytest.raises(ValueError, match=f"must be words, got id {label}, .*codes_in_text=True"):
                model(PROMPT[:1, :2], labels=labels, **given)
    ids = torch.tensor([[5, code]])
    with_codes = model(ids, labels=ids, codes_in_text=True).loss
    assert torch.isfinite(with_codes) and torch.isfinite(model(PROMPT, labels=PROMPT).loss)
    torch.testing.assert_close(model(objective="sentences", input_ids=ids, labels=ids).loss, with_codes)
    with pytest.raises(ValueError, match="`codes_in_text` must be True or False, got 'yes'"):
        model(ids, codes_in_text="yes")
    with pytest.raises(ValueError, match=r"Objectives take no \['codes_in_text'\]"):
        model(objective="text", input_ids=ids, labels=ids, codes_in_text=True)


# words that the vocabulary has grown by are words


@torch.no_grad()
def test_grown_words_are_said_and_learned_and_move_no_older_logit():
    model = grown_up("llama")
    before = model(PROMPT).logits[..., :WORDS]
    new = model.grow("text", names=["mug", "lava"])
    logits = model(PROMPT).logits
    assert torch.equal(logits[..., :WORDS], before) and (logits[..., list(new)] > LEAST).all()
    assert (logits[..., max(new) + 1 :] == LEAST).all()
    options = {"max_new_tokens": 24, "do_sample": True, "top_k": 0, "temperature": 30.0}
    ids = model.generate(PROMPT[:1].repeat(32, 1), **options)
    assert ids.max() == max(new)
    labels = torch.tensor([[5, new[0], new[1]]])
    assert torch.isfinite(model(labels, labels=labels).loss)
    with torch.enable_grad():
        model(labels, labels=labels).loss.backward()
    assert model.get_output_embeddings().weight.grad[list(new)].abs().sum() > 0


@torch.no_grad()
def test_codes_between_words_are_no_words():
    model = grown_up()
    config = model.config
    first = config.vocab_size
    config.extensions = {"text": [[first, 4]]}  # as `pan vocabulary --double text` reserves rows behind the codes
    model.table.resize(first + 4)
    model.table.activate([first, first + 1])
    is_word = model.table.active & ~(torch.arange(first + 4) >= config.text_capacity)
    is_word[first : first + 2] = True
    logits = model(PROMPT).logits
    assert (logits[..., ~is_word] == LEAST).all() and (logits[..., is_word] > LEAST).all()
    with pytest.raises(ValueError, match="must be words"):
        model(PROMPT, labels=torch.full_like(PROMPT, config.segments["camera.0"][0]))


# what Transformers does with logits and heads


@torch.no_grad()
def test_scores_of_what_was_said_are_those_of_its_words():
    model = world_model(("camera",))
    options = {"do_sample": False, "eos_token_id": None, "output_scores": True, "return_dict_in_generate": True}
    for given in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        found = model.generate(PROMPT, max_new_tokens=5, **options, **given)
        beams = () if not given else (found.beam_indices,)
        scores = model.compute_transition_scores(found.sequences, found.scores, *beams, normalize_logits=True)
        rows = model(found.sequences).logits[:, PROMPT.shape[1] - 1 : -1].log_softmax(-1)
        expected = rows.gather(-1, found.sequences[:, PROMPT.shape[1] :, None]).squeeze(-1)
        if given:  # scores of beams add up those before
            scores, expected = scores.sum(1) / 5, found.sequences_scores
            scores = model.compute_transition_scores(found.sequences, found.scores, *beams).sum(1) / 5
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_a_watermark_takes_scores_over_all_rows():
    model, mark = world_model(("camera",)), WatermarkingConfig(bias=2.5, seeding_scheme="lefthash")
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "watermarking_config": mark}
    assert model.generate(PROMPT, over_all_rows=True, **options).max() < WORDS


@torch.no_grad()
def test_a_head_with_an_adapter_still_says_words_alone():
    model = get_peft_model(
        world_model(("camera",)), LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    )
    logits = model(input_ids=PROMPT, labels=PROMPT).logits
    assert (logits[..., WORDS:] == LEAST).all() and (logits[..., :WORDS] > LEAST).all()
    assert model.generate(input_ids=PROMPT, max_new_tokens=4, do_sample=False).max() < WORDS


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_forward_says_words_alone():
    model = grown_up()
    model.grow("text", names=["mug"])
    torch._dynamo.reset()
    found = torch.compile(model, backend="eager")(PROMPT, use_cache=False).logits
    expected = model(PROMPT, use_cache=False).logits
    torch.testing.assert_close(found, expected)


# a text that spells a code is words

SPELLED = "go <camera.0:1><action.go.0:2>"


@pytest.fixture
def reader():
    """A processor of a mission and of an action of two parts, one of them a text."""
    senses = {"mission": TextSense(max_length=40).to_dict()}
    actions = {"say": TextAction(max_length=40).to_dict(), "go": DiscreteAction(4).to_dict()}
    ledger = Vocabulary.build(300, 320, {"camera.0": (8, 6), "action.go.0": (8, 4)})
    return PanProcessor(PanTokenizer.train(["go to the red door"], 300), senses, actions=actions, vocabulary=ledger)


def test_a_text_that_spells_a_code_is_words_unless_it_is_asked_for(reader):
    tokenizer, capacity = reader.tokenizer, reader.vocabulary.text_capacity
    read = {
        "call": tokenizer(SPELLED)["input_ids"],
        "batch": tokenizer([SPELLED, "go"])["input_ids"][0],
        "encode": tokenizer.encode(SPELLED),
        "tokenize": tokenizer.convert_tokens_to_ids(tokenizer.tokenize(SPELLED)),
        "processor": reader(text=SPELLED)["input_ids"][0].tolist(),
        "mission": reader(observation={"mission": SPELLED})["observation"]["mission"][0].tolist(),
        "action": reader(action={"say": SPELLED, "go": 1})["action"]["say"][0, 0].tolist(),
    }
    for where, ids in read.items():
        words = [item for item in ids if item != tokenizer.pad_token_id]
        assert max(words) < capacity and tokenizer.decode(words) == SPELLED, where
    asked = tokenizer(SPELLED, codes_in_text=True)["input_ids"]
    assert sum(item >= capacity for item in asked) == 2 and tokenizer.decode(asked) == SPELLED


def test_a_tokenizer_can_be_set_to_read_codes(reader, tmp_path):
    reader.tokenizer.save_pretrained(tmp_path)
    tokenizer = PanTokenizer.from_pretrained(tmp_path, codes_in_text=True)
    asked = reader.tokenizer.encode(SPELLED, codes_in_text=True)
    assert tokenizer.encode(SPELLED) == asked != tokenizer.encode(SPELLED, codes_in_text=False)
    assert tokenizer.text_ids([SPELLED]) == reader.tokenizer.text_ids([SPELLED])  # from outside: words, always
    tokenizer.save_pretrained(tmp_path)
    assert PanTokenizer.from_pretrained(tmp_path).encode(SPELLED) == asked


def test_no_word_has_the_name_of_a_code(reader):
    before = reader.vocabulary.digest()
    with pytest.raises(ValueError, match=r"\['<camera.0:1>'\] are names of codes, which cannot be words"):
        reader.tokenizer.add_tokens(["mug", "<camera.0:1>"])
    assert reader.vocabulary.digest() == before and not reader.tokenizer.has_word("mug")
