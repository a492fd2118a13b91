"""The vocabulary grows, and nothing else moves: not a shape, not an old logit, not an optimizer's moments."""

import copy

import pytest
import torch
from tiny_worlds import ARCHITECTURES, CAMERA, SENSES, acts, all_tensors, differing, observe, world_model

from pan_hf import ImageSense, PanModel, PanProcessor, PanTokenizer
from pan_hf.build import make_processor
from pan_hf.checkpoints import save_checkpoint
from pan_hf.modeling import learning_pan as learning_pan
from pan_hf.modeling.learning_pan import CodeLearning

KINDS = {"wall": (10, 10, 10), "ball": (250, 200, 30), "goal": (20, 90, 240), "key": (240, 20, 20)}
OLD = tuple(KINDS)[:3]
PROMPT = torch.tensor([[5, 9, 70, 3, 44, 6]])


def pictures(count, kinds, seed=0):
    """Frames `(count, 1, 3, 16, 16)` of a board of 4x4 cells, each of some kind; every frame has one of the last."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, len(kinds), (count, 16), generator=generator)
    cells[torch.arange(count), torch.randint(0, 16, (count,), generator=generator)] = len(kinds) - 1
    board = torch.tensor([KINDS[kind] for kind in kinds], dtype=torch.uint8)[cells].view(count, 4, 4, 3)
    return board.permute(0, 3, 1, 2).repeat_interleave(4, -1).repeat_interleave(4, -2).unsqueeze(1)


def grown_up(architecture="qwen3", action="discrete", **config):
    """A model whose codes describe the old kinds, attached to its processor."""
    camera = CAMERA | {"level_strides": [1], "codebook_size": [4], "codebook_capacity": [12]}
    senses = {"camera": ImageSense(**camera), "mission": SENSES["mission"]}
    model = world_model(senses, action, architecture, **config)
    codec, frames = model.senses["camera"], pictures(64, OLD).flatten(0, 1)
    codec.train().losses(frames, frames.flip(0), None, 0.0, 0.0)
    model.eval()

    words = PanTokenizer(tokenizer_object=_few_words(), pad_token="<pad>")
    make_processor(model, words).attach(model)
    return model


def _few_words(count=90):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: index for index, word in enumerate(["<pad>", "<unk>", "<eos>", "go", "to", "the", "red", "key"])}
    vocab |= {f"w{index}": index for index in range(len(vocab), count)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def observation(model, frames):
    return {"camera": frames, "mission": observe(model, batch=len(frames))["mission"]}


def codec_vectors(count, dim=4):
    return 3 * torch.randn(count, dim, generator=torch.Generator().manual_seed(1))


def psnr(model, frames, kinds):
    """Of the cells of some kinds, through the codes and back."""
    seen = model.decode(model.encode(observation(model, frames)), "camera", latents=False)
    colours = torch.tensor([KINDS[kind] for kind in kinds], dtype=torch.uint8).view(-1, 1, 1, 3, 1, 1)
    cells = (frames == colours).all(3).any(0)
    error = ((seen.float() - frames.float()) / 255).square().mean(2)[cells]
    return float(-10 * error.mean().clamp(min=1e-10).log10())


# nothing breaks


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_growth_changes_no_shape_and_no_old_logit_by_a_bit(architecture):
    model = grown_up(architecture)
    before, words = model(PROMPT, codes_in_text=True).logits, model(PROMPT).logits
    shapes = {name: tensor.shape for name, tensor in all_tensors(model).items()}
    old = model.live_rows.clone()
    parameters = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    model.grow("text", names=["mug", "lava"])
    model.grow("camera.0", vectors=codec_vectors(3))
    model.grow("action.0", names=["jump"])
    after = model(PROMPT, codes_in_text=True).logits
    assert torch.equal(before[..., old], after[..., old])
    assert torch.equal(words[..., old], model(PROMPT).logits[..., old])
    new = model.live_rows & ~old
    assert int(new.sum()) == 6 and torch.isfinite(after[..., new]).all()
    assert (before[..., new] == torch.finfo(before.dtype).min).all()
    assert {name: tensor.shape for name, tensor in all_tensors(model).items()} == shapes
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == parameters


def test_a_cache_goes_on_over_growth():
    model = grown_up("llama")
    with torch.no_grad():
        whole = model(PROMPT, use_cache=False).logits[:, -1]
        first = model(PROMPT[:, :3], use_cache=True)
        old = model.live_rows.clone()
        model.grow("text", names=["mug"])
        model.grow("camera.0", vectors=codec_vectors(2))
        rest = model(PROMPT[:, 3:], past_key_values=first.past_key_values, use_cache=True).logits[:, -1]
    torch.testing.assert_close(rest[:, old], whole[:, old])


def test_a_belief_from_before_growth_is_simulated_after_it():
    model = grown_up(context_steps=2)
    seen = observation(model, pictures(2, OLD))
    belief = model.perceive(seen)
    before = model.simulate(belief, acts(model, steps=2), temperature=0.0)
    model.grow("text", names=["mug"])
    after = model.simulate(belief, acts(model, steps=2), temperature=0.0)
    assert all(torch.equal(a, b) for a, b in zip(before.codes["camera"], after.codes["camera"], strict=True))


def test_adam_keeps_its_moments_and_new_rows_start_with_none():
    model = grown_up("llama").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    def step():
        optimizer.zero_grad()
        model(PROMPT, labels=PROMPT).loss.backward()
        optimizer.step()

    step()
    table = model.get_input_embeddings().weight
    moments = {name: value.clone() for name, value in optimizer.state[table].items()}
    (mug,) = model.grow("text", names=["mug"])
    kept = optimizer.state[model.get_input_embeddings().weight]
    assert all(torch.equal(moments[name], kept[name]) for name in moments)
    assert not kept["exp_avg"][mug].any()
    row = table[mug].clone()
    ids = torch.cat([PROMPT, torch.tensor([[mug, 5]])], 1)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    assert not torch.equal(row, table[mug])  # and it learns from then on


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["text", "dynamics"])
def test_a_compiled_forward_is_not_compiled_again(objective):
    model = grown_up()
    frames = pictures(2, OLD).repeat(1, 2, 1, 1, 1)
    state = model.encode(observation(model, frames))
    given = {"action": acts(model), "reward": torch.zeros(2, 1), "done": torch.zeros(2, 1)}
    given |= {"objective": "dynamics", "state": {"codes": state.codes, "latents": state.latents}}
    given["state"]["prefix"] = observation(model, frames)["mission"]
    given = given if objective == "dynamics" else {"input_ids": PROMPT, "use_cache": False}
    compiled = torch.compile(model, backend="eager")
    torch._dynamo.reset()
    with torch.no_grad():
        compiled(**given)
        with torch._dynamo.config.patch(error_on_recompile=True):
            model.grow("text", names=["mug"])
            model.grow("camera.0", vectors=codec_vectors(3))
            model.grow("action.0", names=["jump"])
            found = compiled(**given)
        expected = model(**given)
    key = "loss" if objective == "dynamics" else "logits"
    torch.testing.assert_close(found[key], expected[key])


# what grows by hand


def test_a_word_starts_as_the_mean_of_its_description():
    model = grown_up("llama")
    ids = [model.processor.tokenizer.convert_tokens_to_ids(word) for word in ("red", "key")]
    (born,) = model.grow("text", names=["keycard"], descriptions=["red key"])
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        torch.testing.assert_close(table[born], table[ids].mean(0))
    assert model.processor.tokenizer("keycard", add_special_tokens=False)["input_ids"] == [born]
    assert model.processor.vocabulary.births[-1]["names"] == ["keycard"]


def test_words_of_add_tokens_go_live_by_the_call_that_transformers_users_know():
    model = grown_up()
    tokenizer, table = model.processor.tokenizer, model.get_input_embeddings().weight.data_ptr()
    tokenizer.add_tokens(["mug", "lava"])
    embeddings = model.resize_token_embeddings(len(tokenizer))
    ids = tokenizer.convert_tokens_to_ids(["mug", "lava"])
    assert embeddings is model.get_input_embeddings() and embeddings.weight.data_ptr() == table
    assert model.live_rows[ids].all()
    model.processor.check_model(model)


def test_an_action_is_added_by_name_and_can_be_taken():
    model = grown_up()
    model.grow("action.0", names=["jump"], descriptions=["go to"])
    assert model.config.action.num_actions == 5 and model.config.action.names[-1] == "jump"
    belief = model.perceive(observation(model, pictures(1, OLD)))
    model.simulate(belief, model.processor(action=[4])["action"])
    with pytest.raises(ValueError, match="0..4"):
        model.processor(action=[5])


@pytest.mark.slow
def test_a_grown_model_loads_equal_and_a_stale_processor_is_refused(tmp_path):
    model = grown_up()
    stale = copy.deepcopy(model.processor)
    model.grow("text", names=["mug"])
    model.grow("action.0", names=["jump"])
    model.learn(observation(model, pictures(8, (*OLD, "key"))))
    save_checkpoint(tmp_path / "grown", model, model.processor)
    loaded, processor = (kind.from_pretrained(tmp_path / "grown") for kind in (PanModel, PanProcessor))
    assert differing(all_tensors(model), all_tensors(loaded)) == []
    processor.attach(loaded)
    assert processor.vocabulary.digest() == loaded.config.vocabulary_digest
    loaded.grow("text", names=["lava"])
    with pytest.raises(ValueError, match=r"does not belong(?s:.*)born in"):
        stale.check_model(model)


def test_a_retired_code_is_neither_chosen_nor_predicted_and_its_id_stays_taken():
    model = grown_up()
    seen = observation(model, pictures(8, OLD))
    used = model.encode(seen).codes["camera"][0]
    gone = int(used.flatten().mode().values)
    model.retire("camera.0", [gone], reason="unused")
    assert not (model.encode(seen).codes["camera"][0] == gone).any()
    futures = model.simulate(model.perceive(seen), acts(model, batch=8, steps=3), temperature=50.0, seed=0)
    assert not (futures.codes["camera"][0] == gone).any()
    born = model.grow("camera.0", vectors=codec_vectors(1))
    assert born[0] == model.processor.vocabulary.offset("camera.0") + 4


def test_a_belief_that_holds_a_retired_code_is_still_simulated():
    model = grown_up()
    (key,) = model.learn(observation(model, pictures(8, (*OLD, "key"))))
    belief = model.perceive(observation(model, pictures(2, (*OLD, "key"))))
    before = model.simulate(belief, acts(model, steps=1), temperature=0.0)
    last = model.processor.vocabulary.segment_of(key.ids[0])[1]
    model.retire("camera.0", [last])
    after = model.simulate(belief, acts(model, steps=1), temperature=0.0)
    assert (belief.codes["camera"][0] == last).any() and not (after.codes["camera"][0] == last).any()
    same = (before.codes["camera"][0] != last) & (belief.codes["camera"][0] != last).unsqueeze(1)
    assert torch.equal(before.codes["camera"][0][same], after.codes["camera"][0][same])


def test_words_that_wait_in_the_tokenizer_start_with_the_next_that_grow():
    model = grown_up()
    model.processor.tokenizer.add_tokens(["mug"])
    (lava,) = model.grow("text", names=["lava"])
    mug = model.processor.tokenizer.convert_tokens_to_ids("mug")
    row = model.get_input_embeddings().weight[lava].clone()
    assert model.live_rows[[mug, lava]].all()
    model.resize_token_embeddings(len(model.processor.tokenizer))
    assert torch.equal(model.get_input_embeddings().weight[lava], row)


def test_rows_that_only_fill_up_a_table_are_no_words_until_they_are_given_out():
    model = world_model(("camera",))
    words = PanTokenizer.train(["go"], vocab_size=259)
    with pytest.raises(ValueError, match="tokenizer has words up to"):
        make_processor(model, words)
    few = PanTokenizer(tokenizer_object=_few_words(30), pad_token="<pad>")
    make_processor(model, few).attach(model)
    assert int(model.table.active_words().sum()) == model.config.text_size == 30
    assert model.grow("text", names=["mug"]) == (30,)
    assert model.processor.vocabulary.births[-1]["names"] == ["mug"]


# what grows by itself


def test_what_no_code_describes_becomes_a_code_and_is_seen_from_then_on():
    model = grown_up()
    old, new = pictures(8, OLD, seed=1), pictures(8, (*OLD, "key"), seed=2)
    before = psnr(model, old, OLD), psnr(model, new, ["key"])
    belief = model.observe(observation(model, new), learn=True)
    (growth,) = belief.growths
    assert growth.accepted and growth.segment == "camera.0" and growth.gain > 0
    assert len(growth.ids) == 1  # one kind of thing, one code, wherever it lies
    assert psnr(model, pictures(8, (*OLD, "key"), seed=3), ["key"]) > max(40, before[1] + 20)
    assert psnr(model, old, OLD) == before[0]
    assert model.processor.vocabulary.births[-1]["reason"] == "novelty"
    assert model.observe(observation(model, new), learn=True).growths == []  # nothing is new any more


def test_observing_without_learning_changes_nothing():
    model = grown_up()
    before = {name: tensor.clone() for name, tensor in all_tensors(model).items()}
    model.observe(observation(model, pictures(8, (*OLD, "key"))))
    assert differing(before, all_tensors(model)) == []


def test_a_rejected_growth_leaves_model_and_ledger_bit_for_bit(monkeypatch):
    model = grown_up("llama")
    bits = iter([100.0, 101.0])
    monkeypatch.setattr(model, "description_length", lambda *_: next(bits))
    before = {name: tensor.clone() for name, tensor in all_tensors(model).items()}
    ledger = model.processor.vocabulary.to_dict()
    seen = observation(model, pictures(8, (*OLD, "key")))
    (growth,) = model.learn(seen, held_out=(seen, None))
    assert not growth.accepted and growth.tried == 1 and growth.gain == -1 and growth.ids == ()
    assert differing(before, all_tensors(model)) == []
    assert model.processor.vocabulary.to_dict() == ledger
    assert model.config.vocabulary_digest == model.processor.vocabulary.digest()


def test_held_out_observations_decide():
    """What is novel where it is learned from, and nowhere else, does not pay."""
    model = grown_up()
    seen, others = (observation(model, pictures(8, kinds)) for kinds in ((*OLD, "key"), OLD))
    (growth,) = model.learn(seen, held_out=(others, None))
    assert not growth.accepted and growth.bits_after > growth.bits_before
    (growth,) = model.learn(seen, held_out=(observation(model, pictures(8, (*OLD, "key"), seed=5)), None))
    assert growth.accepted


def test_description_length_counts_tokens_and_pixels():
    model = grown_up()
    seen = observation(model, pictures(8, OLD))
    bits = model.description_length(seen)
    model.grow("camera.0", vectors=100 * torch.ones(4, 4))  # never used: 8 codes to choose from instead of 4
    assert model.description_length(seen) == pytest.approx(bits + 16, rel=1e-6)
    frames = pictures(8, OLD).repeat(1, 2, 1, 1, 1)
    given, action = observation(model, frames), acts(model, batch=8)
    first, second = ({"camera": given["camera"][:, [at]], "mission": given["mission"]} for at in (0, 1))
    scored = model.log_prob(model.perceive(first), action, {"camera": second["camera"]}, latents=False)
    expected = float(scored.bits_per_observation.mean())
    assert model.description_length(given, action) == pytest.approx(expected) and expected > 0


def test_unused_codes_and_twins_are_retired_and_predictions_of_the_others_stay():
    model = grown_up()
    seen = observation(model, pictures(8, OLD))
    book = model.senses["camera"].codebooks[0]
    used = model.encode(seen).codes["camera"][0].unique().tolist()
    twin = used[0]
    model.grow("camera.0", vectors=torch.cat([torch.full((2, 4), 50.0), book.vectors[[twin]] + 1e-6]))
    book.usage[4:6], book.usage[6] = 0.0, 0.5 * book.usage[twin]
    (unused, twins) = model.prune(seen)
    assert unused.reason == "unused" and unused.accepted and unused.gain > 0
    assert {4, 5} <= {model.processor.vocabulary.segment_of(item)[1] for item in unused.ids}
    assert twins.reason == "indistinguishable" and twins.accepted and len(twins.ids) == 1
    event = model.processor.vocabulary.events[-1]
    assert event["into"] == model.processor.vocabulary.offset("camera.0") + twin
    assert set(model.encode(seen).codes["camera"][0].unique().tolist()) == set(used)
    assert sorted(book.live.nonzero().squeeze(1).tolist()) == sorted(used)
    assert model.prune(seen) == []


def test_a_retirement_that_does_not_pay_is_undone(monkeypatch):
    model = grown_up()
    model.grow("camera.0", vectors=torch.full((1, 4), 50.0))
    model.senses["camera"].codebooks[0].usage[4] = 0.0
    monkeypatch.setattr(model, "description_length", lambda *_: 1.0)
    before, ledger = {n: t.clone() for n, t in all_tensors(model).items()}, model.processor.vocabulary.to_dict()
    growths = model.prune(observation(model, pictures(8, OLD)))
    assert growths and not any(growth.accepted or growth.ids for growth in growths)
    assert differing(before, all_tensors(model)) == [] and model.processor.vocabulary.to_dict() == ledger


def test_a_full_segment_says_so_while_learning(caplog):
    model = grown_up()
    model.grow("camera.0", vectors=model.senses["camera"].codebooks[0].vectors[:1].repeat(8, 1))
    assert model.learn(observation(model, pictures(8, (*OLD, "key")))) == []
    assert "pan vocabulary --double camera.0" in caplog.text


def test_a_threshold_that_makes_everything_novel_is_capped_and_doubted_aloud(caplog):
    model = grown_up()
    noise = torch.randint(0, 256, (4, 1, 3, 16, 16), dtype=torch.uint8)
    growths = model.learn(observation(model, noise), threshold=1e-6, max_new=3)
    assert all(growth.tried <= 3 for growth in growths)
    assert sum(len(growth.ids) for growth in growths) <= 3
    assert "% of camera.0 is farther than threshold=1e-06" in caplog.text


# bad input


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda m: m.grow("smell.0", names=["a"]), "Unknown segment 'smell.0'"),
        (lambda m: m.grow("camera.1", vectors=codec_vectors(1)), "Unknown segment 'camera.1'"),
        (lambda m: m.grow("text", names=["key"]), "are words already"),
        (lambda m: m.grow("text", names=["mug", "mug"]), "must differ"),
        (lambda m: m.grow("text", names="mug"), "must be a list"),
        (lambda m: m.grow("text"), "give `names`"),
        (lambda m: m.grow("text", names=["<camera.0:1>"]), "cannot be words"),
        (lambda m: m.grow("text", names=[""]), "cannot be words"),
        (lambda m: m.grow("action.0", names=["1"]), "are actions already"),
        (lambda m: m.grow("text", names=["mug"], descriptions=["a", "b"]), "as many descriptions"),
        (lambda m: m.grow("text", names=["mug"], descriptions=[""]), "must hold words"),
        (lambda m: m.grow("text", names=[f"x{i}" for i in range(999)]), "pan vocabulary --double text"),
        (lambda m: m.grow("camera.0", names=["key"]), "need finite `vectors`"),
        (lambda m: m.grow("camera.0", vectors=torch.full((1, 4), torch.nan)), "need finite `vectors`"),
        (lambda m: m.grow("camera.0", vectors=codec_vectors(9)), "pan vocabulary --double camera.0"),
        (lambda m: m.grow("action.0", names=["a", "b", "c", "d", "e"]), "pan vocabulary --double"),
        (lambda m: m.retire("camera.0", [9]), "has no token 9: 4 were born"),
        (lambda m: m.retire("camera.0", range(4)), "at least one must stay"),
        (lambda m: m.retire("action.0", [0]), "Only codes of image senses and merged tokens retire"),
        (lambda m: m.resize_token_embeddings(95), "up to id 89, not 95"),
        (lambda m: m.resize_token_embeddings(500), "pan vocabulary --double text"),
        (lambda m: m.learn(observation(m, pictures(2, OLD)), threshold=0.0), "`threshold` must be above 0"),
        (lambda m: m.learn({"camera": pictures(2, OLD)[..., :8]}), "camera"),
    ],
)
def test_what_cannot_grow_is_an_error_and_leaves_no_trace(act, message):
    model = grown_up()
    before = {name: tensor.clone() for name, tensor in all_tensors(model).items()}
    ledger, words = model.processor.vocabulary.to_dict(), len(model.processor.tokenizer)
    with pytest.raises(ValueError, match=message):
        act(model)
    assert differing(before, all_tensors(model)) == []
    assert model.processor.vocabulary.to_dict() == ledger and len(model.processor.tokenizer) == words


def test_codes_are_not_grown_before_the_senses_have_been_trained():
    model = grown_up()
    model.senses["camera"].codebooks[0].started[:] = False
    with pytest.raises(ValueError, match="train the senses first"):
        model.grow("camera.0", vectors=codec_vectors(1))
    assert model.learn(observation(model, pictures(2, OLD))) == []


def test_a_model_without_its_processor_says_what_to_do():
    with pytest.raises(ValueError, match=r"processor.attach\(model\)"):
        world_model().grow("text", names=["mug"])


def test_bits_of_new_codes_count_where_nothing_is_held_out(monkeypatch):
    model = grown_up()
    monkeypatch.setattr(learning_pan, "BITS_A_NUMBER", 1e9)
    (growth,) = model.learn(observation(model, pictures(8, (*OLD, "key"))))
    assert not growth.accepted


@pytest.mark.slow
def test_what_another_process_grew_meanwhile_is_not_overwritten(tmp_path):
    model = grown_up()
    save_checkpoint(tmp_path / "one", model, model.processor)
    others = []
    for name in ("mug", "lava"):
        other, processor = PanModel.from_pretrained(tmp_path / "one"), PanProcessor.from_pretrained(tmp_path / "one")
        processor.attach(other)
        other.grow("text", names=[name])
        others.append((other, processor))
    save_checkpoint(tmp_path / "one", *others[0])
    kept = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir() if path.is_file()}
    ways = [lambda folder, model, processor: model.save_pretrained(folder)]
    ways += [lambda folder, model, processor: processor.save_pretrained(folder), save_checkpoint]
    for save in ways:
        with pytest.raises(ValueError, match="as another process grew it, which would be lost"):
            save(tmp_path / "one", *others[1])
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir() if path.is_file()} == kept
    save_checkpoint(tmp_path / "two", *others[1])
    save_checkpoint(tmp_path / "one", *others[0])  # its own growth may be saved again


def test_where_a_gradient_follows_a_new_code_starts_as_a_thing_that_stays():
    model, frames = grown_up(), pictures(16, tuple(KINDS))
    codec, seen = model.senses["camera"], observation(model, frames)
    model.learn(seen)
    codes = range(4, model.ledger().born("camera.0"))
    frames = frames.flatten(0, 1)
    nearest = learning_pan.find_models(codec, frames, 0, codes)
    nothing_stays, stays = torch.zeros(12), torch.ones(12)
    assert torch.equal(learning_pan.find_models(codec, frames, 0, codes, nothing_stays), nearest)
    book, stays[nearest] = codec.codebooks[0], 0.0
    book.live[3], book.vectors[3] = True, 9.0  # far away, and so rare that it was not seen
    assert learning_pan.find_models(codec, frames, 0, codes, stays).tolist() == [3] * len(codes)


def test_how_often_codes_stay_is_what_the_model_predicts():
    model, frames = grown_up(), pictures(8, OLD)
    seen = observation(model, frames)
    found = CodeLearning(model).persistence(seen, "camera", 0)
    used = model.encode(seen).codes["camera"][0].unique()
    assert found.shape == (12,) and ((found >= 0) & (found <= 1)).all()
    assert (found[[code for code in range(12) if code not in used]] == 0).all()
    with torch.no_grad():
        model.readouts["camera"][0].copy_bias.fill_(50.0)  # nothing ever changes
    assert (CodeLearning(model).persistence(seen, "camera", 0)[used] == 1).all()
