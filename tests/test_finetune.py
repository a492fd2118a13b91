"""`pan finetune`: an adapter learns a recording and is evaluated on its base; what does not fit is refused."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from safetensors.torch import load_file
from tiny_worlds import Board, all_tensors, differing

from pan_hf import PanConfig, PanModel, PanProcessor
from pan_hf.build import build
from pan_hf.checkpoints import find_checkpoint, load, save_checkpoint
from pan_hf.cli import app
from pan_hf.data.compat import check_fits
from pan_hf.data.record import record
from pan_hf.data.trajectories import load_trajectories
from pan_hf.evaluation.evaluate import evaluate
from pan_hf.reporting.tables import select
from pan_hf.training import run_folder
from pan_hf.training.finetune import finetune
from pan_hf.training.grow import grow
from pan_hf.training.merge import merge
from pan_hf.training.pipeline import train
from pan_hf.training.trainer import PanTrainer

WEIGHTS = "adapter_model.safetensors"
OPTIONS = {"place": {"base": 4, "num_levels": 1}}


class TurnedBoard(Board):
    """The board with its actions turned by a quarter."""

    MOVES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


gymnasium.register("TestPanTurnedBoard-v0", entry_point=TurnedBoard, max_episode_steps=12)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A checkpoint for the place on the board, untrained but for what it says, and a recording of the turned board."""
    folder = tmp_path_factory.mktemp("finetune")
    given = {"keep": ["place", "mission"], "test_fraction": 0.3, "progress": False}
    record("TestPanBoard-v0", folder / "base" / "data", episodes=40, **given)
    record("TestPanTurnedBoard-v0", folder / "turned" / "data", episodes=40, seed=500, **given)
    seen, turned = (load_trajectories(folder / name / "data", "train") for name in ("base", "turned"))
    model, processor = build(seen, "debug", OPTIONS, adapter_dim=16)
    trained_on = json.dumps({"fingerprints": seen.fingerprints, "environments": ["TestPanBoard-v0"], "root": "data"})
    save_checkpoint(folder / "base" / "checkpoint", model, processor, {"training_data.json": trained_on})
    return SimpleNamespace(folder=folder, base=folder / "base", data=folder / "turned", seen=seen, turned=turned)


@pytest.mark.slow
def test_an_adapter_is_learned_evaluated_on_its_base_and_merged_when_asked_again(world, tmp_path, capsys):
    run, command = tmp_path / "run", ["finetune", "--from", str(world.base), "--data", str(world.data)]
    command += ["--max-steps", "2"]
    before = (world.base / "checkpoint" / "model.safetensors").read_bytes()
    app([*command, "--run", str(run), "--rank", "2"])
    assert str(run / "adapter") in capsys.readouterr().out
    adapted, _ = load(run)
    base = PanModel.from_pretrained(world.base / "checkpoint")
    changed = {name.split(".")[0] for name in differing(all_tensors(base), all_tensors(adapted))}
    assert changed == {"language_model", "readouts", "outcome", "inverse_dynamics"}
    known = json.loads((run / "adapter" / "training_data.json").read_text())
    assert known["fingerprints"] == sorted({*world.seen.fingerprints, *world.turned.fingerprints})
    (tmp_path / "known" / "data").mkdir(parents=True)  # what was trained on, said to be held out
    (tmp_path / "known" / "meta").symlink_to(world.data / "data" / "meta")
    (tmp_path / "known" / "data" / "test").symlink_to(world.data / "data" / "data" / "train")
    with pytest.raises(ValueError, match="trained on"):
        evaluate(run, tmp_path / "known", progress=False)
    records = evaluate(run, world.data / "data", horizons=[1], num_windows=4, skip_trained=True, progress=False)
    assert records and (run / "evaluation.json").exists()
    with pytest.raises(FileNotFoundError, match="only an adapter: `pan finetune"):
        find_checkpoint(run)
    app([*command, "--run", str(run), "--rank", "2", "--merge"])
    assert find_checkpoint(run) == run / "checkpoint"
    merged = PanModel.from_pretrained(run / "checkpoint")
    assert differing(all_tensors(adapted), all_tensors(merged)) == []
    assert json.loads((run / "checkpoint" / "training_data.json").read_text()) == known
    assert (world.base / "checkpoint" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_killed_fine_tuning_goes_on_where_it_was(world, tmp_path, monkeypatch):
    given = {"adapter": "dora", "rank": 2, "max_steps": 3, "progress": False}
    whole = finetune(tmp_path / "whole", world.base, world.data, **given)
    step = PanTrainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PanTrainer, "training_step", killed)
        patch.setattr("pan_hf.training.trainer.BudgetCallback.__init__.__defaults__", (0.0,))  # saved at each step
        with pytest.raises(KeyboardInterrupt, match="checkpoint-[12] is kept"):
            finetune(tmp_path / "killed", world.base, world.data, **given)
    assert not (tmp_path / "killed" / "adapter").exists()
    resumed = finetune(tmp_path / "killed", world.base, world.data, **given)
    assert differing(load_file(whole / WEIGHTS), load_file(resumed / WEIGHTS)) == []
    assert not list((tmp_path / "killed" / "stages").rglob("encoded-*"))


@pytest.mark.slow
def test_a_model_of_the_hub_is_named_as_the_base(world, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--user--pan" / "snapshots" / f"{7:040x}"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(world.base / "checkpoint")
    monkeypatch.setattr("pan_hf.hub.snapshot_download", lambda name, **_: str(snapshot))
    adapter = finetune(tmp_path / "run", "user/pan", world.data, max_steps=1, adapter="ia3", progress=False)
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == f"hf://user/pan@{7:040x}"
    load(tmp_path / "run")


def test_what_cannot_be_is_refused_before_anything_is_written(world, tmp_path):
    run = tmp_path / "run"
    for given, message in (
        ({"data": tmp_path}, "is no recording"),
        ({"adapter": "prefix"}, "`adapter` must be one of"),
        ({"rank": 0}, "`rank` must be at least 1"),
        ({"start": tmp_path}, "No checkpoint at"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            finetune(run, **({"start": world.base, "data": world.data, "max_steps": 1, "progress": False} | given))
    with pytest.raises(ValueError, match="would overwrite the checkpoint it starts from"):
        finetune(world.base, world.base, world.data)
    assert not run.exists() and not (world.base / "stages").exists()


@pytest.mark.parametrize("further", [finetune, grow, merge])
def test_what_does_not_fit_is_refused_before_anything_is_written(further, world, tmp_path):
    record("CartPole-v1", tmp_path / "data", episodes=2, test_fraction=0, progress=False)
    with pytest.raises(ValueError, match=r"senses \['mission', 'place'\] are not"):
        further(tmp_path / "run", world.base, tmp_path / "data", max_steps=1, progress=False)
    for given in ({"seconds": 0}, {"max_steps": 0}, {"max_steps": 1.5}, {"seed": -1}):
        with pytest.raises(ValueError, match=rf"{next(iter(given))}: expected"):
            further(tmp_path / "run", world.base, world.data, **given)
    assert not (tmp_path / "run").exists()


def test_the_recording_is_read_once(world, tmp_path, monkeypatch):
    read = []

    def run_stage(stage, args, trajectories):
        raise InterruptedError

    monkeypatch.setattr(
        run_folder, "load_trajectories", lambda *where: read.append(where) or load_trajectories(*where)
    )
    monkeypatch.setattr(run_folder, "run_stage", run_stage)
    with pytest.raises(InterruptedError):
        finetune(tmp_path / "run", world.base, world.data, max_steps=1, progress=False)
    assert len(read) == 1


def feature(trajectories, name, **fields):
    features = copy.deepcopy(trajectories.features)
    features[name] |= fields
    return {"features": features}


MISFITS = {
    "no mission": (lambda t: {"observations": {"place": t.observations["place"]}}, "senses .'mission'. are not"),
    "another kind": (lambda t: feature(t, "observation.place", kind="image"), "of kind 'image', the model's of kind"),
    "more numbers": (
        lambda t: {"observations": t.observations | {"place": np.zeros((len(t), 3), "f4")}},
        r"place: expected \(2,\)",
    ),
    "out of range": (
        lambda t: {"observations": t.observations | {"place": t.observations["place"] + 9}},
        "place: coordinate 0 is within 9",
    ),
    "longer texts": (
        lambda t: {"observations": t.observations | {"mission": np.array(["go to the corner " * 9] * len(t))}},
        "tokens long, expected at most",
    ),
    "more actions": (lambda t: feature(t, "action", n=6), "The recording has 6 actions, the model 5"),
    "actions of another kind": (lambda t: feature(t, "action", kind="vector"), "Action: the recording's is of kind"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_recording_that_does_not_fit_is_told_so(what, world):
    checkpoint = world.base / "checkpoint"
    config, processor = PanConfig.from_pretrained(checkpoint), PanProcessor.from_pretrained(checkpoint)
    check_fits(config, processor, world.turned)
    change, message = MISFITS[what]
    with pytest.raises(ValueError, match=message):
        check_fits(config, processor, replace(world.turned, **change(world.turned)))


@pytest.mark.slow
def test_fine_tuning_on_a_changed_board_beats_the_base_on_held_out_episodes(world, tmp_path):
    steps = {"dynamics": {"max_steps": 120}}
    skip = ("senses", "backbone", "latent_head", "joint", "switch", "reinforce")
    given = {"backbone": "debug", "sense_options": OPTIONS, "config": {"adapter_dim": 16}, "progress": False}
    train(tmp_path / "base", world.base / "data", overrides=steps, skip=skip, **given)
    finetune(tmp_path / "turned", tmp_path / "base", world.data, max_steps=80, progress=False)

    def exact(run):
        given = {"horizons": [1], "num_windows": 64, "skip_trained": True, "progress": False}
        records = evaluate(tmp_path / run, world.data / "data", tmp_path / "out", **given)
        (found,) = select(records, metric="exact_state", model="pan", environment="TestPanTurnedBoard-v0")
        return found.value

    base, tuned = exact("base"), exact("turned")
    assert tuned > base + 0.2, (base, tuned)
