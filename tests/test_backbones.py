"""Any causal language model whose attention keeps to a mask and positions of ours becomes a world model."""

from types import SimpleNamespace

import pytest
import torch
from tiny_worlds import (
    ACTIONS,
    FAMILIES,
    MORE_FAMILIES,
    PAD,
    SENSES,
    WORDS,
    acts,
    all_tensors,
    differing,
    language_model,
    observe,
    outcomes,
    world_model,
)
from transformers import AutoConfig, AutoModelForCausalLM

from pan_hf import PanConfig, PanModel

PROMPT = torch.randint(3, WORDS, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A backbone, and the world model made of it before and after a step of training, saved and loaded."""
    backbone = language_model(request.param)
    model = world_model(("camera", "mission"), architecture=request.param, context_steps=4)
    with torch.no_grad():
        logits = model(PROMPT, codes_in_text=True).logits
    losses = [train_step(model) for _ in range(2)]
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    again = PanModel.from_pretrained(folder)
    return SimpleNamespace(backbone=backbone, model=model, again=again, logits=logits, losses=losses)


def train_step(model):
    """One step on the objective of stage `dynamics`; returns the loss before it."""
    observation, action = observe(model, 2, 4), acts(model, 2, 3)
    state = model.encode(observation)
    given = {"codes": state.codes, "latents": state.latents, "text": state.text}
    given["prefix"] = model.prefix_ids(observation)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = model(objective="dynamics", state=given, action=action, **outcomes(2, 3)).loss
    loss.backward()
    optimizer.step()
    model.zero_grad()
    return loss.item()


def test_without_senses_the_logits_are_the_backbone_s_to_the_bit(family):
    with torch.no_grad():
        expected = family.backbone(PROMPT).logits
        assert torch.equal(PanModel.from_backbone(family.backbone).eval()(PROMPT).logits, expected)
    # with codes: the same products in a wider matrix product, which may add up in another order
    torch.testing.assert_close(family.logits[..., :WORDS], expected, atol=1e-5, rtol=1e-5)


def test_a_step_of_training_lowers_the_loss_and_moves_the_backbone(family):
    first, second = family.losses
    assert second < first
    names = dict(family.backbone.named_parameters())
    table = family.backbone.get_input_embeddings().weight
    moved = [
        name
        for name, trained in family.model.language_model.named_parameters()
        if names[name].shape == trained.shape and not torch.equal(names[name], trained)
    ]
    assert len(moved) > len(names) / 2
    assert not torch.equal(family.model.get_input_embeddings().weight[: len(table)], table)


def test_what_is_loaded_is_what_was_saved_to_the_bit(family):
    assert differing(all_tensors(family.model), all_tensors(family.again)) == []
    assert family.again.config.text_config.model_type == family.model.config.text_config.model_type


def test_generate_equals_choosing_word_by_word_without_a_cache(family):
    found = family.again.generate(PROMPT, max_new_tokens=6, do_sample=False, eos_token_id=None)
    ids = PROMPT
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, family.again(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, ids)


def test_the_loaded_model_imagines_the_same(family):
    found = []
    for model in (family.model, family.again):
        belief = model.perceive(observe(model, 2, 2), acts(model, 2, 1))
        futures = model.simulate(belief, acts(model, 2, 5), num_rollouts=2, seed=0)
        assert torch.isfinite(futures.log_prob).all()
        found.append((futures.keys(), futures.decode("camera")))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def test_a_past_perceived_at_once_predicts_as_one_met_step_by_step(family):
    model, seen, actions = family.again, observe(family.again, 2, 4), acts(family.again, 2, 3)
    part = {name: value if name == "mission" else value[:, :1] for name, value in seen.items()}
    later = {"camera": seen["camera"][:, 1:]}
    by_step = model.log_prob(model.perceive(part), actions, later, latents=False).total[:, -1]
    all_but_last = {name: value if name == "mission" else value[:, :3] for name, value in seen.items()}
    belief = model.perceive(all_but_last, actions[:, :2])
    at_once = model.log_prob(belief, actions[:, 2:], {"camera": seen["camera"][:, 3:]}, latents=False).total[:, 0]
    torch.testing.assert_close(by_step, at_once, atol=1e-3, rtol=1e-5)  # of some hundreds of nats


@pytest.mark.parametrize("kind", MORE_FAMILIES)
def test_these_families_imagine_too(kind):
    model = world_model(("touch", "mission"), architecture=kind, context_steps=2)
    belief = model.perceive(observe(model, 2, 2), acts(model, 2, 1))
    futures = model.simulate(belief, acts(model, 2, 2), seed=0)
    assert torch.isfinite(futures.log_prob).all() and torch.isfinite(futures.reward).all()


# what cannot be a backbone says so

MISFITS = {
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}, "a forward with a mask of its own failed"),
    "bloom": ({"hidden_size": 32, "n_head": 4, "n_layer": 1}, "a forward with a mask of its own failed"),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 1}, "a position that is hidden still moves or reaches another"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_backbone_that_keeps_to_no_mask_or_position_is_refused(kind):
    config, reason = MISFITS[kind]
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=WORDS, **config))
    with pytest.raises(ValueError, match=f"cannot be the backbone of a world model: {reason}.*Use a model"):
        PanModel.from_backbone(backbone, {"camera": SENSES["camera"]}, ACTIONS["discrete"])
    assert backbone.get_input_embeddings().weight.shape[0] == WORDS  # nothing was touched
    words = PanModel.from_backbone(backbone).eval()  # without senses it needs neither
    with torch.no_grad():
        assert torch.equal(words(PROMPT).logits, backbone.eval()(PROMPT).logits)
    expected = backbone.generate(PROMPT, max_new_tokens=3, do_sample=False)
    assert torch.equal(words.generate(PROMPT, max_new_tokens=3, do_sample=False), expected)


def test_a_table_without_room_for_the_codes_is_refused():
    config = PanConfig(senses={"touch": SENSES["touch"]}, action=ACTIONS["discrete"])
    with pytest.raises(ValueError, match=r"table has 512 rows; words and codes need (\d+)\. .*from_backbone") as error:
        PanModel(config)
    config.vocab_size = int(error.value.args[0].rsplit(" ", 3)[1])
    model = PanModel(config).eval()
    assert torch.isfinite(model.simulate(model.perceive(observe(model)), acts(model, 2, 2), seed=0).reward).all()


# every way to generate


@pytest.fixture(scope="module")
def speaker():
    """A world model of which some weights were made large, so that what it says is not one word over and over."""
    return world_model(("camera",), seed=3)


def greedy(model, **options):
    return model.generate(PROMPT[:1], max_new_tokens=10, do_sample=False, eos_token_id=None, **options)


def test_a_static_cache_generates_the_same(speaker):
    assert torch.equal(greedy(speaker), greedy(speaker, cache_implementation="static", disable_compile=True))


def test_prompt_lookup_generates_the_same(speaker):
    assert torch.equal(greedy(speaker), greedy(speaker, prompt_lookup_num_tokens=3))


@pytest.mark.parametrize("assistant", ["words", "world"])
def test_an_assistant_changes_nothing_of_what_is_generated(speaker, assistant):
    """The assistant is a language model of the same words and codes, or a world model."""
    helper = world_model(("camera",), seed=4)
    helper = helper if assistant == "world" else helper.language_model
    assert torch.equal(greedy(speaker), greedy(speaker, assistant_model=helper))


def test_beams_find_what_is_more_likely(speaker):
    def score(ids):
        with torch.no_grad():
            logits = speaker(ids).logits[:, PROMPT.shape[1] - 1 : -1].log_softmax(-1)
        return logits.gather(-1, ids[:, PROMPT.shape[1] :, None]).sum((1, 2))

    beams = greedy(speaker, num_beams=4, num_return_sequences=4, return_dict_in_generate=True, output_scores=True)
    found = score(beams.sequences)
    # beam scores are means over the words generated
    torch.testing.assert_close(found / 10, beams.sequences_scores, atol=1e-4, rtol=1e-4)
    assert found[0] >= score(greedy(speaker)) - 1e-4 and speaker.live_rows[beams.sequences].all()


def test_sampling_is_from_the_live_logits(speaker):
    """Frequencies of the first word sampled against its probabilities: 2000 draws, within 5 standard errors."""
    torch.manual_seed(0)
    options = {"max_new_tokens": 1, "do_sample": True, "top_k": 0, "attention_mask": torch.ones_like(PROMPT[:1])}
    options["codes_in_text"] = True
    ids = speaker.generate(PROMPT[:1], num_return_sequences=2000, **options)[:, -1]
    with torch.no_grad():
        expected = speaker(PROMPT[:1], codes_in_text=True).logits[0, -1].softmax(-1)
    found = ids.bincount(minlength=len(expected)) / len(ids)
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / len(ids)).sqrt() + 1e-3).all()
    assert PAD < len(set(ids.tolist())) and speaker.live_rows[ids].all()
