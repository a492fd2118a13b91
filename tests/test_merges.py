"""Pairs of codes become one token: nothing is lost, nothing else moves, and only what saves bits stays."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import two_processes
from forked import run_in_two
from hypothesis import given, settings
from hypothesis import strategies as st
from test_growth import OLD, PROMPT, grown_up, pictures
from test_training import QUICK, flags
from tiny_worlds import ARCHITECTURES, SENSES, acts, all_tensors, build_board, differing, observe, record_board
from tiny_worlds import world_model as bare_world_model

from pan_hf import PanModel, PanProcessor, PanTokenizer
from pan_hf.build import make_processor
from pan_hf.checkpoints import save_checkpoint
from pan_hf.data.trajectories import load_trajectories
from pan_hf.modeling.merging_pan import TokenMerging, bits_per_sequence
from pan_hf.tokenization.tokenization_pan import Merges
from pan_hf.training import merge as sentences
from pan_hf.training.arguments import arguments
from pan_hf.training.merge import merge
from pan_hf.training.pipeline import SHARES, train
from pan_hf.training.stage import run
from pan_hf.training.token_windows import SentenceWindows
from pan_hf.training.trainer import PanTrainer
from pan_hf.vocabulary import double

CODES = list(range(100, 110))
REPEATING = [[100, 101, 102, 103] * 5, [104, 105] * 10, [100, 101] * 8] * 3


def world_model(*args, **given):
    """A world model attached to its processor."""
    from test_growth import _few_words

    model = bare_world_model(*args, **given)
    make_processor(model, PanTokenizer(tokenizer_object=_few_words(), pad_token="<pad>")).attach(model)
    return model


# merging and splitting

sentence_lists = st.lists(st.lists(st.sampled_from(CODES[:4]), max_size=30), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(learned=sentence_lists, others=sentence_lists, count=st.integers(1, 12))
def test_what_was_merged_splits_into_the_very_codes(learned, others, count):
    merges = Merges(CODES)
    merges = merges.extended(merges.find(learned, range(1000, 1000 + count)))
    assert len(merges) <= count
    for sentence, merged in zip(others, merges.merge(others), strict=True):
        assert merges.split(merged) == sentence and len(merged) <= len(sentence)


@settings(max_examples=40, deadline=None)
@given(learned=sentence_lists, first=st.integers(1, 6), more=st.integers(1, 6))
def test_later_merges_build_on_earlier_ones_and_leave_them_as_they_are(learned, first, more):
    merges = Merges(CODES)
    merges = merges.extended(merges.find(learned, range(1000, 1000 + first)))
    grown = merges.extended(merges.find(learned, range(2000, 2000 + more)))
    assert grown.pairs[: len(merges)] == merges.pairs
    lengths = [sum(map(len, some.merge(learned))) for some in (merges, grown)]
    assert lengths[1] <= lengths[0]


def test_a_pair_that_is_frequent_becomes_one_token_and_no_pair_crosses_sentences():
    merges = Merges(CODES)
    merges = merges.extended(merges.find([[100, 101], [100, 101], [101, 102]], [1000, 1001]))
    assert merges.pairs == [(100, 101, 1000)]
    assert merges.merge([[100], [101], [100, 101]]) == [[100], [101], [1000]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Merges(CODES, [(100, 5, 1000)]), "unknown parts, or an id that is taken"),
        (lambda: Merges(CODES, [(100, 101, 102)]), "unknown parts, or an id that is taken"),
        (lambda: Merges(CODES, [(100, 101, 1000), (100, 101, 1001)]), "stand for the same codes"),
        (lambda: Merges(CODES).merge([[100, 7]]), "Id 7 is no code"),
        (lambda: PanTokenizer.train(["a b"]).merges, "has no ledger"),
    ],
)
def test_what_cannot_be_merged_is_an_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_same_codes_cut_elsewhere_are_not_merged_twice():
    merges = Merges(CODES)
    merges = merges.extended(merges.find([[100, 101, 102], [101, 102, 100], [100, 101]] * 9, range(1000, 1020)))
    stand_for = [tuple(merges.split([merged])) for _, _, merged in merges.pairs]
    assert len(set(stand_for)) == len(stand_for)


# sentences


@pytest.mark.parametrize("chunk", [1, 3])
def test_vectors_and_actions_survive_being_written_and_read(chunk):
    model = world_model(("touch", "mission"), "vector")
    touch, action = observe(model, steps=6)["touch"], acts(model, steps=6)
    ids = model.to_token_ids("touch", touch, chunk)
    assert ids.shape == (2, 6 // chunk, 3 * 3 * chunk)
    read = model.from_token_ids("touch", ids, chunk)
    span = torch.tensor(SENSES["touch"].high) - torch.tensor(SENSES["touch"].low)
    assert read.shape == touch.shape and ((read - touch).abs() <= span / 5**3 / 2 + 1e-6).all()
    again = model.to_token_ids("action", model.from_token_ids("action", model.to_token_ids("action", action)))
    assert torch.equal(again, model.to_token_ids("action", action))


def test_digits_of_one_coordinate_stand_side_by_side_coarse_ones_first():
    model = world_model(("touch", "mission"), "vector")
    ids = model.to_token_ids("touch", observe(model, steps=4)["touch"], 4).flatten()[: 3 * 3 * 4].view(3, 3, 4)
    for level, some in enumerate(ids):
        assert torch.isin(some, model.table.segment_rows("touch", level)).all()
    still = model.to_token_ids("touch", torch.full((1, 4, 3), 0.3), 4).view(3, 3, 4)
    assert (still == still[..., :1]).all()


def test_discrete_actions_and_frames_survive_being_written_and_read():
    model, frames = grown_up(), pictures(4, OLD)
    action = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 1]])
    assert torch.equal(model.from_token_ids("action", model.to_token_ids("action", action, 2), 2), action)
    ids = model.to_token_ids("camera", frames)
    seen = model.senses["camera"].decode(model.senses["camera"].encode(frames.flatten(0, 1))[0][:1])
    assert ids.shape == (4, 1, 16)
    assert torch.equal(model.from_token_ids("camera", ids).flatten(0, 1), seen)


def test_old_names_of_methods_work_and_say_what_they_are_called_now():
    model, action = world_model(("touch",)), torch.tensor([[0, 1]])
    with pytest.warns(DeprecationWarning, match="write_sentences is PanModel.to_token_ids now"):
        ids = model.write_sentences("action", action)
    with pytest.warns(DeprecationWarning, match="read_sentences is PanModel.from_token_ids now"):
        assert torch.equal(model.read_sentences("action", ids), action)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.to_token_ids("mission", torch.zeros(1, 1)), "No part 'mission' is written in codes"),
        (lambda m: m.to_token_ids("camera", pictures(2, OLD), 2), "`chunk` must be 1"),
        (lambda m: m.to_token_ids("action", torch.zeros(1, 3, dtype=torch.long), 2), "no whole chunks of 2"),
        (lambda m: m.from_token_ids("camera", torch.zeros(1, 1, 15, dtype=torch.long)), "has 16 codes, got 15"),
        (lambda m: m.from_token_ids("camera", torch.zeros(1, 1, 16, dtype=torch.long)), "are not codes of"),
        (lambda m: m.grow("camera.merges", names=["x"]), "made of others"),
        (lambda m: TokenMerging(m).add("action", [(0, 1, 2)]), "The next merged tokens of 'action' are"),
        (lambda m: TokenMerging(m).add("action", pair_of(m, "action", "camera.0", 0)), "these belong elsewhere"),
        (
            lambda m: TokenMerging(m).add("camera", pair_of(m, "camera", "camera.0", 11)),
            "Only tokens that live are merged",
        ),
    ],
)
def test_sentences_that_do_not_fit_are_an_error(ask, message):
    model = grown_up()
    before = {name: tensor.clone() for name, tensor in all_tensors(model).items()}
    with pytest.raises(ValueError, match=message):
        ask(model)
    assert differing(before, all_tensors(model)) == []


def pair_of(model, part, segment, code):
    row = int(model.table.segment_rows(*segment.split("."))[code])
    return [(row, row, *TokenMerging(model).free_ids(part, 1))]


# without a gradient


def twins(count, seed=0):
    """Frames in which neighbours are always alike, two and two."""
    frames = pictures(count, OLD, seed)
    return frames.unflatten(-1, (2, 2, 4))[..., :1, :].expand(-1, -1, -1, -1, 2, 2, 4).flatten(-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merging_changes_no_shape_no_old_logit_and_no_prediction(architecture):
    model = grown_up(architecture)
    seen = {"camera": twins(2), "mission": observe(model)["mission"]}
    predicted = model.simulate(model.perceive(seen), acts(model), seed=0).decode("camera")
    before, old = model(PROMPT, codes_in_text=True).logits, model.live_rows.clone()
    shapes = {name: tensor.shape for name, tensor in all_tensors(model).items()}
    *_, growth = model.merge("camera", twins(32), held_out=twins(16, seed=1), count=3, step=7)
    assert growth.accepted and growth.bits_after < growth.bits_before and len(growth.ids) == growth.tried
    assert {name: tensor.shape for name, tensor in all_tensors(model).items()} == shapes
    after = model(PROMPT, codes_in_text=True).logits
    assert torch.equal(after[..., old], before[..., old]) and model.live_rows.sum() == old.sum() + growth.tried
    assert torch.equal(model.simulate(model.perceive(seen), acts(model), seed=0).decode("camera"), predicted)
    birth = model.ledger().births[-1]
    assert (birth["reason"], birth["step"], birth["segment"]) == ("merge", 7, "camera.merges")
    assert model.config.vocabulary_digest == model.ledger().digest()


def test_sentences_get_shorter_and_still_mean_the_same():
    model, frames = grown_up(), twins(8, seed=2)
    ids = model.to_token_ids("camera", frames)
    model.merge("camera", twins(32), count=8)
    merges = model.processor.tokenizer.merges
    merged = merges.merge(ids.flatten(0, 1).tolist())
    assert sum(map(len, merged)) < 0.8 * ids.numel()
    back = torch.tensor([merges.split(sentence) for sentence in merged]).view(ids.shape)
    assert torch.equal(model.from_token_ids("camera", back), model.from_token_ids("camera", ids))


def test_merges_that_save_nothing_leave_the_model_bit_for_bit_as_it_was():
    model = grown_up()
    before = {name: tensor.clone() for name, tensor in all_tensors(model).items()}
    events, digest = model.ledger().events, model.config.vocabulary_digest
    few = torch.randint(0, 4, (6, 4), generator=torch.Generator().manual_seed(0))
    growths = model.merge("action", few, chunk=4, count=4)
    assert growths and not any(growth.accepted for growth in growths)
    assert [growth.tried for growth in growths] == sorted({growth.tried for growth in growths}, reverse=True)
    assert differing(before, all_tensors(model)) == []
    assert (model.ledger().events, model.config.vocabulary_digest) == (events, digest)


def test_the_order_0_code_is_what_entropy_says():
    seen = [[1, 2] * 4000]
    assert bits_per_sequence(seen, [[1, 2, 1, 2]]) == pytest.approx(4.0, abs=0.01)
    assert bits_per_sequence(seen, [[3]]) > 10


@pytest.mark.slow
def test_merged_tokens_are_saved_spelled_and_read_again(tmp_path):
    model = grown_up()
    model.merge("camera", twins(32), count=4)
    processor = model.processor
    save_checkpoint(tmp_path, model, processor)
    loaded, again = PanModel.from_pretrained(tmp_path), PanProcessor.from_pretrained(tmp_path)
    again.attach(loaded)
    assert again.tokenizer.merges.pairs == processor.tokenizer.merges.pairs
    assert differing(all_tensors(model), all_tensors(loaded)) == []
    merged = processor.tokenizer.merges.pairs[0][-1]
    assert again.tokenizer.decode([merged]) == "<camera.merges:0>"
    given = {"add_special_tokens": False, "codes_in_text": True}
    assert again.tokenizer("<camera.merges:0>", **given)["input_ids"] == [merged]


def test_only_merged_tokens_that_are_no_parts_retire():
    model = grown_up()
    model.merge("camera", twins(32), count=4)
    merges = model.processor.tokenizer.merges
    inner = {part for left, right, _ in merges.pairs for part in (left, right)}
    parts = [number for number, pair in enumerate(merges.pairs) if pair[-1] in inner]
    leaves = [number for number, pair in enumerate(merges.pairs) if pair[-1] not in inner]
    with pytest.raises(ValueError, match="which must be retired first"):
        model.retire("camera.merges", parts[:1])
    model.retire("camera.merges", leaves, "unused")
    assert len(model.processor.tokenizer.merges) == len(merges) - len(leaves)
    assert not model.live_rows[[merges.pairs[number][-1] for number in leaves]].any()


@pytest.mark.slow
def test_a_full_segment_names_the_command_that_doubles_it_and_that_works(tmp_path):
    model = grown_up()
    model.merge("action", torch.zeros(8, 4, dtype=torch.long), chunk=4, count=200)
    found = [growth.ids for growth in model.merge("camera", twins(64), count=128)][-1]
    segment = model.config.senses["camera"].merge_capacity
    TokenMerging(model).add("camera", _padding_pairs(model, segment - len(found)))
    with pytest.raises(ValueError, match="pan vocabulary --double camera.merges"):
        model.merge("camera", twins(32), count=4)
    save_checkpoint(tmp_path / "checkpoint", model, model.processor)
    folder = double(tmp_path / "checkpoint", ["camera.merges"])
    larger, processor = PanModel.from_pretrained(folder), PanProcessor.from_pretrained(folder)
    processor.attach(larger)
    assert len(TokenMerging(larger).free_ids("camera", 10**6)) == segment
    assert processor.tokenizer.merges.pairs == model.processor.tokenizer.merges.pairs


def _padding_pairs(model, count):
    """Any `count` new pairs, each longer than the one before."""
    merges, code, pairs = model.processor.tokenizer.merges, model.ledger().id_of("camera.0", 3), []
    last = max((pair[-1] for pair in merges.pairs if model.ledger().segment_of(pair[-1])[0].startswith("camera")),
               key=lambda item: len(merges.split([item])))  # fmt: skip
    for merged in TokenMerging(model).free_ids("camera", count):
        pairs.append((last, code, merged))
        last = merged
    return pairs


# in training


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An untrained model of the board, whose place is digits that always go together, and a recording."""
    folder = tmp_path_factory.mktemp("sentences")
    trajectories = load_trajectories(record_board(folder / "data", episodes=12), "train")
    save_checkpoint(folder / "init", *build_board(trajectories))
    return SimpleNamespace(folder=folder, model=folder / "init", data=folder / "data", trajectories=trajectories)


def merge_stage(world, folder, **given):
    given = QUICK | {"max_steps": 4, "parts": ["place"], "chunk": 2, "merge_count": 8, "trial_steps": 30} | given
    args = arguments(sentences.STAGE, model=str(world.model), data=str(world.data), output_dir=str(folder), **given)
    return run(sentences.STAGE, args, world.trajectories)


def log_of(final):
    return [entry for entry in json.loads((final.parent / "log.json").read_text()) if "growth" in entry]


@pytest.mark.slow
def test_merges_stay_where_they_save_held_out_bits(world, tmp_path):
    final = merge_stage(world, tmp_path / "stage")
    (entry,) = log_of(final)
    assert entry["step"] == 1 and entry["growth"]["accepted"] and entry["gain"] > 0
    assert entry["with"]["tokens"] < entry["without"]["tokens"]
    assert entry["with"]["windows"] > entry["without"]["windows"]
    model, processor = PanModel.from_pretrained(final), PanProcessor.from_pretrained(final)
    processor.check_model(model)
    assert [pair[-1] for pair in processor.tokenizer.merges.pairs] == entry["growth"]["ids"]
    assert model.live_rows[entry["growth"]["ids"]].all()
    held_out = json.loads((final.parent / "log.json").read_text())[-1]["held_out"]
    assert held_out["tokens"] == pytest.approx(entry["with"]["tokens"])


@pytest.mark.slow
def test_merges_that_do_not_pay_leave_training_bit_for_bit_as_it_was(world, tmp_path, monkeypatch):
    """After a rejection half as many are tried next time."""
    plain = merge_stage(world, tmp_path / "plain", merge_count=0)
    bits = iter(range(100))
    original = sentences.MergeCallback._arm

    def worse_with(self, *args):
        arm = original(self, *args)
        arm.bits = next(bits)  # the side with merges is scored last
        return arm

    monkeypatch.setattr(sentences.MergeCallback, "_arm", worse_with)
    tried = merge_stage(world, tmp_path / "tried", merge_every=2, trial_steps=2)
    assert [entry["growth"]["tried"] for entry in log_of(tried)] == [8, 4]
    assert not any(entry["growth"]["accepted"] for entry in log_of(tried))
    assert differing(*(all_tensors(PanModel.from_pretrained(final)) for final in (plain, tried))) == []
    assert len({PanProcessor.from_pretrained(final).vocabulary_digest for final in (plain, tried)}) == 1


@pytest.mark.slow
def test_a_killed_stage_goes_on_with_the_merges_it_had(world, tmp_path, monkeypatch):
    given = {"max_steps": 6, "merge_every": 4, "trial_steps": 10}
    whole = merge_stage(world, tmp_path / "whole", **given)
    step = PanTrainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PanTrainer, "training_step", killed)
    given |= {"save_strategy": "steps", "save_steps": 3}
    with pytest.raises(KeyboardInterrupt):
        merge_stage(world, tmp_path / "killed", **given)
    monkeypatch.undo()
    resumed = merge_stage(world, tmp_path / "killed", **given)
    assert differing(*(all_tensors(PanModel.from_pretrained(final)) for final in (whole, resumed))) == []
    one, other = (PanProcessor.from_pretrained(final) for final in (whole, resumed))
    assert one.vocabulary_digest == other.vocabulary_digest and len(one.tokenizer.merges)


@pytest.mark.slow
def test_two_processes_merge_alike(world, tmp_path, monkeypatch):
    given = QUICK | {"model": world.model, "data": world.data, "output_dir": tmp_path / "stage", "max_steps": 3}
    given |= {"parts": "place", "chunk": 2, "merge_count": 8, "trial_steps": 30}
    monkeypatch.setattr(sys, "argv", ["two_processes.py", "merge", str(tmp_path), *flags(**given)])
    run_in_two(two_processes.main, tmp_path)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert differing(one, other) == []
    assert log_of(tmp_path / "stage" / "final")[0]["growth"]["accepted"]


def test_windows_hold_goal_and_sentences_in_the_order_of_time(world):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    processor.attach(model)
    windows = SentenceWindows(model, processor, world.trajectories, ["place", "action"], window=3)
    batch, row = windows.__getitems__([0, 5]), int(windows.rows[5])
    ids = batch["input_ids"][1][batch["attention_mask"][1].bool()].tolist()
    goal = processor.tokenizer.text_ids(["go to the corner"])[0]
    assert ids[: len(goal)] == goal
    steps = torch.tensor(ids[len(goal) :]).view(3, 5)  # two digits of two coordinates, and an action
    place = model.from_token_ids("place", steps[None, :, :4])[0]
    assert (place - torch.from_numpy(world.trajectories.observations["place"][row : row + 3])).abs().max() < 0.1
    assert (
        model.from_token_ids("action", steps[None, :, 4:])[0].tolist()
        == world.trajectories.actions[row : row + 3].tolist()
    )
    scored = windows.batch([5], processor.tokenizer.merges, scored_only=True)["labels"][0]
    assert (scored[: len(goal) + 5] == -100).all() and (scored[len(goal) + 5 :] != -100).all()


@pytest.mark.slow
def test_the_command_writes_what_was_tried_and_refuses_what_does_not_fit(world, tmp_path):
    given = {"parts": ["place"], "chunk": 2, "max_steps": 1, "count": 4, "progress": False}
    checkpoint = merge(tmp_path / "run", world.model, world.data, **given)
    (entry,) = json.loads((tmp_path / "run" / "growth.json").read_text())
    assert entry["segment"] == "place.merges" and {"gain", "with", "without", "accepted"} <= set(entry)
    PanProcessor.from_pretrained(checkpoint).check_model(PanModel.from_pretrained(checkpoint))
    with pytest.raises(ValueError, match="expected parts that have codes, camera, place, action"):
        merge(tmp_path / "other", world.model, world.data, parts=["mission"], max_steps=1, progress=False)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="`window` must be at least 2"):
        merge(tmp_path / "third", world.model, world.data, window=1, max_steps=1, progress=False)


@pytest.mark.slow
def test_merging_is_a_stage_of_training_that_runs_when_it_is_asked_for(world, tmp_path):
    given = {"skip": tuple(set(SHARES) - {"sentences"}), "backbone": "debug", "progress": False}
    asked = {"parts": ["place"], "chunk": 2, "merge_count": 4, "trial_steps": 5}
    with pytest.raises(ValueError, match="give them `seconds` or `max_steps`"):
        train(tmp_path / "run", world.data, overrides={"sentences": asked}, **given)
    checkpoint = train(tmp_path / "run", world.data, overrides={"sentences": asked | {"max_steps": 1}}, **given)
    assert len(PanProcessor.from_pretrained(checkpoint).tokenizer.merges) in (2, 3, 4)
