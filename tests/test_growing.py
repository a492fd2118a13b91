"""Growth while a model is trained: on a schedule, judged by what is held out, alike in every process, resumable."""

import json
import sys
from types import SimpleNamespace

import gymnasium
import pytest
import torch
import two_processes
from forked import run_in_two
from test_training import QUICK, flags
from tiny_worlds import Board, all_tensors, build_board, differing, record_board

from pan_hf import PanModel, PanProcessor
from pan_hf.checkpoints import save_checkpoint
from pan_hf.data.trajectories import load_trajectories
from pan_hf.training import grow as growing
from pan_hf.training import pretrain_senses
from pan_hf.training.arguments import arguments
from pan_hf.training.grow import grow
from pan_hf.training.stage import run
from pan_hf.training.trainer import PanTrainer


class KeyBoard(Board):
    """The board with a thing on it that the board never had."""

    def _look(self):
        seen = super()._look()
        seen["camera"][4:8, 8:12] = (240, 20, 20)
        seen["camera"][5, 8:12] = (20, 240, 20)
        return seen, {}

    def _observation(self):
        return self._look()[0]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action):
        _, *rest = super().step(action)
        return self._observation(), *rest


gymnasium.register("TestPanKeyBoard-v0", entry_point=KeyBoard, max_episode_steps=12)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A checkpoint that knows the board, and a recording of the board with a key."""
    from pan_hf.data.record import record

    folder = tmp_path_factory.mktemp("keys")
    trajectories = load_trajectories(record_board(folder / "old", episodes=8), "train")
    save_checkpoint(folder / "init", *build_board(trajectories))
    args = arguments(
        pretrain_senses.STAGE,
        model=str(folder / "init"),
        data="x",
        output_dir=str(folder / "senses"),
        max_steps=150,
        progress=False,
    )
    model = run(pretrain_senses.STAGE, args, trajectories)
    record("TestPanKeyBoard-v0", folder / "keys", episodes=12, seed=0, test_fraction=0.2, progress=False)
    return SimpleNamespace(folder=folder, model=model, data=folder / "keys", old=folder / "old")


def grow_stage(world, folder, **given):
    given = QUICK | {"max_steps": 4, "grow_every": 2, "grow_windows": 16} | given
    args = arguments(growing.STAGE, model=str(world.model), data=str(world.data), output_dir=str(folder), **given)
    return run(growing.STAGE, args, load_trajectories(world.data, "train"))


def growths_of(final):
    log = json.loads((final.parent / "log.json").read_text())
    return [(entry["step"], entry["growth"]) for entry in log if "growth" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"gradient_accumulation_steps": 2, "activation_checkpointing": True}])
def test_a_recording_with_something_new_grows_codes_for_it(given, world, tmp_path):
    final = grow_stage(world, tmp_path / "growth", **given)
    (step, growth), *_ = growths_of(final)
    assert step == 1 and growth["accepted"] and growth["bits_after"] < growth["bits_before"]
    model, processor = PanModel.from_pretrained(final), PanProcessor.from_pretrained(final)
    processor.check_model(model)
    births = [birth for birth in processor.vocabulary.births if birth["reason"] == "novelty"]
    assert births[0]["step"] == 1 and births[0]["first"] == growth["ids"][0]
    assert model.live_rows[growth["ids"]].all()
    before = PanModel.from_pretrained(world.model)
    assert {n: t.shape for n, t in all_tensors(before).items()} == {n: t.shape for n, t in all_tensors(model).items()}


@pytest.mark.slow
def test_codes_that_nothing_uses_are_retired_on_the_same_schedule(world, tmp_path):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    for book in model.senses["camera"].codebooks:
        book.usage.zero_()  # all of it was long ago; what the recording shows stays for that alone
    save_checkpoint(tmp_path / "start", model, processor)
    final = grow_stage(SimpleNamespace(model=tmp_path / "start", data=world.data), tmp_path / "growth", prune=True)
    retired = [growth for _, growth in growths_of(final) if growth["reason"] == "unused"]
    model, processor = PanModel.from_pretrained(final), PanProcessor.from_pretrained(final)
    processor.check_model(model)
    for growth in retired:
        assert growth["accepted"] == bool(growth["ids"]) and not model.live_rows[growth["ids"]].any()
    assert retired


@pytest.mark.slow
def test_words_are_born_at_the_first_attempt_and_only_once(world, tmp_path):
    final = grow_stage(world, tmp_path / "growth", names=["icepick=bright", "gong"], max_steps=3, grow_every=1)
    named = [(step, growth) for step, growth in growths_of(final) if growth["reason"] == "named"]
    processor = PanProcessor.from_pretrained(final)
    ((step, growth),) = named
    assert growth["bits_before"] is None and growth["accepted"]  # wanted by a person, not judged
    assert step == 1 and growth["ids"] == processor.tokenizer.convert_tokens_to_ids(["icepick", "gong"])
    assert PanModel.from_pretrained(final).live_rows[growth["ids"]].all()
    with pytest.raises(ValueError, match="'gong'. are words already"):
        grow_stage(SimpleNamespace(model=final, data=world.data), tmp_path / "again", names=["gong"])
    with pytest.raises(ValueError, match="must be words"):
        grow_stage(world, tmp_path / "wrong", names=["=bright"])


@pytest.mark.slow
def test_what_is_known_already_grows_nothing(world, tmp_path):
    final = grow_stage(SimpleNamespace(model=world.model, data=world.old), tmp_path / "growth")
    assert [growth for _, growth in growths_of(final) if growth["accepted"]] == []


@pytest.mark.slow
def test_codes_stop_at_the_most_that_is_allowed(world, tmp_path):
    growths = growths_of(grow_stage(world, tmp_path / "growth", max_new=1, max_steps=3, grow_every=1))
    assert sum(len(growth["ids"]) for _, growth in growths) <= 1


@pytest.mark.slow
def test_a_killed_growth_goes_on_where_it_was(world, tmp_path, monkeypatch):
    """The ledger comes back with the checkpoint, and codes that were grown before the kill are not grown again."""
    whole = grow_stage(world, tmp_path / "whole", max_steps=6)
    step = PanTrainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PanTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        grow_stage(world, tmp_path / "killed", max_steps=6, save_strategy="steps", save_steps=3)
    monkeypatch.undo()
    resumed = grow_stage(world, tmp_path / "killed", max_steps=6, save_strategy="steps", save_steps=3)
    assert differing(*(all_tensors(PanModel.from_pretrained(final)) for final in (whole, resumed))) == []
    digests = {PanProcessor.from_pretrained(final).vocabulary.digest() for final in (whole, resumed)}
    assert len(digests) == 1


@pytest.mark.slow
def test_two_processes_grow_alike(world, tmp_path, monkeypatch):
    given = QUICK | {"model": world.model, "data": world.data, "output_dir": tmp_path / "stage", "max_steps": 3}
    given |= {"grow_every": 2, "grow_windows": 16}
    monkeypatch.setattr(sys, "argv", ["two_processes.py", "grow", str(tmp_path), *flags(**given)])
    run_in_two(two_processes.main, tmp_path)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert differing(one, other) == []
    assert growths_of(tmp_path / "stage" / "final")[0][1]["accepted"]
    final = PanModel.from_pretrained(tmp_path / "stage" / "final")
    PanProcessor.from_pretrained(tmp_path / "stage" / "final").check_model(final)


@pytest.mark.slow
def test_growing_onto_itself_or_with_other_settings_is_refused(world, tmp_path):
    checkpoint = grow(tmp_path, world.model, world.data, max_steps=1, progress=False)
    with pytest.raises(ValueError, match="begun with other settings"):
        grow(tmp_path, world.model, world.data, max_steps=2, progress=False)
    with pytest.raises(ValueError, match="would overwrite the checkpoint it starts from"):
        grow(tmp_path, checkpoint, world.data, max_steps=1, progress=False)
    with pytest.raises(ValueError, match="`grow_every` must be at least 1"):
        grow(tmp_path / "new", world.model, world.data, max_steps=1, every=0, progress=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_growing_from_a_run_leaves_it_and_writes_what_was_tried(world, tmp_path):
    before = all_tensors(PanModel.from_pretrained(world.model))
    checkpoint = grow(tmp_path, world.model, world.data, max_steps=2, progress=False)
    assert differing(before, all_tensors(PanModel.from_pretrained(world.model))) == []
    growths = json.loads((tmp_path / "growth.json").read_text())
    assert growths[0]["accepted"] and growths[0]["gain"] > 0 and growths[0]["step"] == 1
    assert int(PanModel.from_pretrained(checkpoint).live_rows.sum()) > int(before["live_rows"].sum())
    trained = json.loads((checkpoint / "training_data.json").read_text())
    assert len(trained["fingerprints"]) > len(load_trajectories(world.data, "train").fingerprints)
