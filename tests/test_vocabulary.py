"""The ledger: ids that never move, an account of every birth, and files that cannot be quietly edited."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pan_hf.tokenization.vocabulary_pan import Vocabulary

SEGMENTS = {"camera.0": (64, 32), "camera.1": (64, 64), "action.0": (14, 7)}


def build() -> Vocabulary:
    return Vocabulary.build(300, 512, SEGMENTS)


def test_segments_lie_one_behind_the_other_after_the_words():
    vocabulary = build()
    assert vocabulary.segments == {"camera.0": (512, 64), "camera.1": (576, 64), "action.0": (640, 14)}
    assert (vocabulary.code_capacity, vocabulary.size) == (142, 654)
    assert vocabulary.live("text") == 300 and vocabulary.capacity("text") == 512


def test_every_id_belongs_to_one_segment_and_comes_back():
    vocabulary = build()
    for token_id in range(vocabulary.size):
        segment, code = vocabulary.segment_of(token_id)
        assert vocabulary.offset(segment) + code == token_id
        if code < vocabulary.born(segment):
            assert vocabulary.id_of(segment, code) == token_id
    for outside in (-1, vocabulary.size):
        with pytest.raises(ValueError, match="654 rows"):
            vocabulary.segment_of(outside)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["text", "camera.0", "action.0"]), st.integers(1, 3)), max_size=8))
def test_growth_keeps_old_ids_and_the_size_of_the_table(growths):
    vocabulary, old = build(), build()
    for step, (segment, count) in enumerate(growths):
        live = vocabulary.live(segment)
        if live + count > vocabulary.capacity(segment):
            continue
        ids = vocabulary.grow(segment, count, "novelty", step)
        assert ids == [vocabulary.offset(segment) + live + index for index in range(count)]
    assert vocabulary.size == old.size and vocabulary.segments == old.segments
    assert old.is_ancestor_of(vocabulary)
    assert all(vocabulary.id_of(name, 0) == old.id_of(name, 0) for name in SEGMENTS)
    assert Vocabulary.from_dict(vocabulary.to_dict()).digest() == vocabulary.digest()


def test_births_are_recorded_with_reason_step_parents_and_names():
    vocabulary = build()
    parents = [[512, 513]]
    ids = vocabulary.grow("camera.0", 1, "merge", step=120, parents=parents)
    vocabulary.grow("text", 1, "named", step=130, names=["icepick"])
    assert list(ids) == [544]
    assert [birth["reason"] for birth in vocabulary.births] == ["start"] * 4 + ["merge", "named"]
    assert vocabulary.births[4] == {
        "event": "birth", "first": 544, "count": 1, "segment": "camera.0", "reason": "merge", "step": 120,
        "parents": parents,
    }  # fmt: skip
    assert vocabulary.births[5]["names"] == ["icepick"]


def test_a_retired_id_is_dead_but_stays_taken():
    vocabulary = build()
    vocabulary.retire([513, 515], "indistinguishable", step=9, into=512)
    mask = vocabulary.live_mask("camera.0")
    assert mask.shape == (64,) and list(np.flatnonzero(~mask[:32])) == [1, 3] and not mask[32:].any()
    assert (vocabulary.live("camera.0"), vocabulary.born("camera.0")) == (30, 32)
    assert vocabulary.id_of("camera.0", 1) == 513
    assert list(vocabulary.grow("camera.0", 1, "novelty", step=10)) == [544]
    assert vocabulary.events[-2]["event"] == "retirement" and len(vocabulary.births) == 5


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda v: v.grow("camera.9", 1, "novelty", 0), "Known segments: text, camera.0, camera.1, action.0"),
        (lambda v: v.grow("camera.1", 1, "novelty", 0), r"0 of 64 rows left. Run `pan vocabulary --double camera.1`"),
        (lambda v: v.grow("camera.0", 0, "novelty", 0), "count of at least 1"),
        (lambda v: v.grow("camera.0", 1, "whim", 0), "expected one of start, named, novelty, merge"),
        (lambda v: v.grow("camera.0", 2, "merge", 0, parents=[[512, 513]]), "one list of parents each"),
        (lambda v: v.grow("camera.0", 1, "merge", 0, parents=[[512, 545]]), "camera.0 has no token 33"),
        (lambda v: v.grow("camera.0", 2, "named", 0, names=["red", "red"]), "as many new names"),
        (lambda v: v.retire([512, 576], "unused", 0), "one code segment at a time"),
        (lambda v: v.retire([3], "unused", 0), "one code segment at a time"),
        (lambda v: v.retire([545], "unused", 0), "no live tokens"),
        (lambda v: v.retire([512], "unused", 0, into=576), "fold into a live token of camera.0"),
        (lambda v: v.id_of("action.0", 7), "7 were born"),
        (lambda v: v.live("smell.0"), "Unknown segment 'smell.0'"),
    ],
)
def test_what_cannot_happen_is_an_error_and_leaves_no_trace(act, message):
    vocabulary = build()
    before = vocabulary.digest()
    with pytest.raises(ValueError, match=message):
        act(vocabulary)
    assert vocabulary.digest() == before


def test_a_ledger_that_does_not_fit_its_rows_cannot_be_built():
    with pytest.raises(ValueError, match="text is full"):
        Vocabulary.build(600, 512)
    with pytest.raises(ValueError, match="cannot name a code segment"):
        Vocabulary.build(300, 512, {"text": (4, 4)})
    with pytest.raises(ValueError, match="expected at least one row from row 512 on"):
        Vocabulary(512, {"camera.0": (600, 8)})


def test_the_digest_is_of_the_content_and_does_not_depend_on_the_order_segments_are_given_in():
    layout = build().segments
    shuffled = Vocabulary(512, dict(sorted(layout.items(), reverse=True)))
    assert shuffled.digest() == Vocabulary(512, layout).digest()
    assert build().digest() == build().digest() and len(build().digest()) == 16
    other = build()
    other.grow("camera.0", 1, "novelty", step=1)
    assert other.digest() != build().digest()


def test_the_difference_names_segments_and_the_first_differing_event():
    old, new = build(), build()
    assert old.difference(new) == ""
    new.grow("camera.0", 16, "novelty", step=100)
    text = old.difference(new, "in the processor", "in the model")
    assert "segment camera.0: 32 live of 64 from row 512 in the processor, 48 live" in text
    assert "number 4: none in the processor, 16 born in camera.0 (novelty, step 100) in the model" in text
    assert "camera.1" not in text
    assert "segment smell.0: absent here" in old.difference(Vocabulary.build(300, 512, {"smell.0": (4, 4)}))


def test_only_an_earlier_state_of_a_ledger_is_its_ancestor():
    old, new, other = build(), build(), build()
    new.grow("camera.0", 1, "novelty", step=1)
    other.grow("camera.0", 1, "novelty", step=2)
    assert old.is_ancestor_of(new) and old.is_ancestor_of(old)
    assert not new.is_ancestor_of(old) and not new.is_ancestor_of(other)
    assert not Vocabulary.build(300, 1024, SEGMENTS).is_ancestor_of(old)


def test_a_saved_ledger_loads_equal_and_goes_on_growing(tmp_path):
    vocabulary = build()
    vocabulary.retire([513], "unused", step=3)
    path = vocabulary.save(tmp_path / "new")
    loaded = Vocabulary.load(tmp_path / "new")
    assert loaded.to_dict() == Vocabulary.load(path).to_dict() == vocabulary.to_dict()
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["vocabulary.json"]
    assert loaded.grow("camera.0", 2, "novelty", 4) == vocabulary.grow("camera.0", 2, "novelty", 4)


def test_to_dict_is_a_copy():
    vocabulary = build()
    vocabulary.to_dict()["events"][0]["count"] = 1
    assert vocabulary.births[0]["count"] == 300


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda values: values["events"][0].update(count=299), "it was edited or damaged"),
        (lambda values: values["events"][1].update(first=513), "not a ledger that can have grown"),
        (lambda values: values["events"][1].pop("count"), "not a ledger that can have grown"),
        (lambda values: values.pop("digest"), "it says None"),
        (lambda values: values.update(format="words"), "expected a 'pan-vocabulary' of version 1"),
    ],
)
def test_an_edited_file_is_refused(tmp_path, edit, message):
    path = build().save(tmp_path)
    with open(path) as file:
        values = json.load(file)
    edit(values)
    (tmp_path / "vocabulary.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as caught:
        Vocabulary.load(tmp_path)
    assert "vocabulary.json" in str(caught.value)


def test_a_truncated_or_absent_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No vocabulary at .*vocabulary\.json"):
        Vocabulary.load(tmp_path)
    path = tmp_path / build().save(tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        Vocabulary.load(tmp_path)


def test_a_failed_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    vocabulary = build()
    vocabulary.save(tmp_path)
    before = (tmp_path / "vocabulary.json").read_bytes()
    vocabulary.grow("camera.0", 1, "novelty", step=1)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("json.dump", full_disk)
    with pytest.raises(OSError, match="No space left"):
        vocabulary.save(tmp_path)
    assert (tmp_path / "vocabulary.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_an_extended_segment_grows_on_behind_all_others_and_no_id_moves():
    vocabulary = build()
    segment = "camera.0"
    room = vocabulary.capacity(segment) - vocabulary.born(segment)
    before, size = [vocabulary.id_of(segment, code) for code in range(vocabulary.born(segment))], vocabulary.size
    old = Vocabulary.from_dict(vocabulary.to_dict())
    assert vocabulary.extend(segment, 8) == (size, 8)
    ids = vocabulary.grow(segment, room + 3, "novelty", step=1)
    assert [vocabulary.id_of(segment, code) for code in range(len(before))] == before
    assert ids[-3:] == [size, size + 1, size + 2] and vocabulary.size == size + 8
    assert [vocabulary.segment_of(item) for item in ids[-3:]] == [
        (segment, vocabulary.capacity(segment) - 8 + index) for index in range(3)
    ]
    assert vocabulary.capacity(segment) == old.capacity(segment) + 8 and int(vocabulary.live_mask(segment).sum()) == (
        vocabulary.live(segment)
    )
    assert vocabulary.ids_of(vocabulary.births[-1]) == ids  # of one birth, in two runs
    vocabulary.retire([size + 1], "unused", step=2)
    assert not vocabulary.live_mask(segment)[vocabulary.segment_of(size + 1)[1]]
    assert old.is_ancestor_of(vocabulary)
    assert Vocabulary.from_dict(vocabulary.to_dict()).digest() == vocabulary.digest()
    for wrong in (("nose.0", 8), (segment, 0)):
        with pytest.raises(ValueError, match="cannot have"):
            vocabulary.extend(*wrong)
