"""The training stages: what each trains and leaves alone, and that nothing stops them for good."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_worlds import all_tensors, board_world, differing

from pan_hf import PanModel, PanProcessor
from pan_hf.build import build
from pan_hf.checkpoints import save_checkpoint
from pan_hf.data.episodes import episode_files
from pan_hf.training import (
    align,
    pipeline,
    pretrain_backbone,
    pretrain_latent_head,
    pretrain_senses,
    reinforce,
    trainer,
)
from pan_hf.training import budget as budgets
from pan_hf.training.arguments import COMPLETE, CONFIGS, Stage, arguments, last_checkpoint
from pan_hf.training.pipeline import SHARES, train
from pan_hf.training.stage import run

pytestmark = pytest.mark.usefixtures("few_examples")
ROOT = Path(__file__).resolve().parent.parent
STAGES = {
    "senses": pretrain_senses.STAGE,
    "backbone": pretrain_backbone.STAGE,
    "dynamics": align.DYNAMICS,
    "latent_head": pretrain_latent_head.STAGE,
    "joint": align.JOINT,
    "switch": reinforce.WARM_UP,
    "reinforce": reinforce.REINFORCE,
}
LOSSES = {
    "senses": {"camera.reconstruction", "camera.commitment"},
    "backbone": {"text"},
    "dynamics": {"camera.0", "camera.1", "place.0", "place.1", "reward", "continuation", "inverse_dynamics"},
    "latent_head": {"camera.latents", "place.latents"},
}
LOSSES["dynamics"] |= {"camera.0.vectors", "camera.1.vectors"}
LOSSES["joint"] = LOSSES["senses"] | LOSSES["dynamics"] | LOSSES["latent_head"]
LOSSES["dynamics"] |= {"camera.change"}
LOSSES["joint"] |= {"camera.generative", "place.generative", "camera.change"}
LOSSES["switch"] = {"switch", "switch.regret", "switch.oracle", "switch.entropy"}
LOSSES["reinforce"] = {"switch", "switch.distortion", "switch.compute", "switch.value", "switch.entropy"}
SHORT = {"switch": {"horizon": 2}, "reinforce": {"horizon": 2}}
QUICK = {"per_device_train_batch_size": 4, "logging_steps": 1, "progress": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return board_world(tmp_path_factory.mktemp("world"))


def run_stage(world, name, folder, **given):
    stage = STAGES[name] if isinstance(name, str) else name
    given = {"model": str(world.model), "data": str(world.data), "output_dir": str(folder)} | QUICK | given
    return run(stage, arguments(stage, **given), world.trajectories)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_trains_its_part_logs_its_losses_and_leaves_the_rest(name, world, tmp_path):
    final = run_stage(world, name, tmp_path / name, max_steps=3)
    before, after = (all_tensors(PanModel.from_pretrained(path)) for path in (world.model, final))
    changed = set(differing(before, after)) - {"senses.camera.latents_help"}  # judged, not trained
    parts = {
        "senses": ("senses.", "language_model.model.embed_tokens."),  # rows of codes start from what these stand for
        "backbone": "language_model.",
        "latent_head": "latent_heads.",
        "dynamics": (
            *("language_model.", "readouts.", "state_embeddings.", "queries.", "outcome.", "inverse_dynamics."),
            *("glances.", "senses.camera.codebooks.0.refinements"),
        ),
        "joint": "",
        "switch": "switch.",
        "reinforce": "switch.",
    }[name]
    assert changed and all(tensor.startswith(parts) for tensor in changed)
    if isinstance(parts, tuple):
        assert all(any(tensor.startswith(part) for tensor in changed) for part in parts)
    log = json.loads((tmp_path / name / "log.json").read_text())
    logged = {key.removeprefix("loss/") for entry in log for key in entry if key.startswith("loss/")}
    assert LOSSES[name] <= logged and not any("loss/" in loss for loss in logged)
    assert len([entry for entry in log if "loss" in entry]) == 3
    known = json.loads((final / "training_data.json").read_text())
    assert known["fingerprints"] == sorted(set(world.trajectories.fingerprints))
    assert known["environments"] == ["TestPanBoard-v0"]
    processor = PanProcessor.from_pretrained(final)
    processor.check_model(PanModel.from_pretrained(final))
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["final", "log.json"]


@pytest.mark.parametrize("is_other", [False, True])
def test_the_joint_stage_leaves_frames_their_codes(is_other, world):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    windows, _ = align.make_raw(model, processor, world.trajectories)
    finish, sense = align.keep_codes(model), model.senses["camera"]
    before = {name: tensor.clone() for name, tensor in sense.state_dict().items()}
    with torch.no_grad():
        sense.head.weight.add_(1.0)  # what decodes may change
        if is_other:
            sense.to_code[0].weight.neg_()
    finish(model, windows)
    kept = [torch.equal(tensor, before[name]) for name, tensor in sense.state_dict().items()]
    assert all(kept) == is_other  # put back as a whole, or left as trained


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_dynamics_notes_which_codes_refine_which(streaming, world, tmp_path):
    final = run_stage(world, "dynamics", tmp_path / "dynamics", max_steps=1, streaming=streaming, stream_buffer=256)
    model = PanModel.from_pretrained(final)
    frames = torch.from_numpy(world.trajectories.observations["camera"])
    coarse, fine = model.senses["camera"].encode(frames)[0]
    share = (model.senses["camera"].usual_refinements(coarse, 1) == fine).float().mean()
    assert share > 1.2 / model.config.senses["camera"].codebook_size[1]  # codes are random, yet some go together


@pytest.mark.slow
def test_a_stage_that_is_finished_is_not_run_again(world, tmp_path):
    final = run_stage(world, "backbone", tmp_path, max_steps=1)
    written = (final / "model.safetensors").stat().st_mtime_ns
    assert run_stage(world, "backbone", tmp_path, max_steps=5) == final
    assert (final / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"place": {"low": [math.nan, 0]}}, "Sense 'place': VectorSense: `low`"),
        ({"camera": {"patch_size": 0}}, "Sense 'camera': .*patch_size"),
        ({"action": {"num_actions": 0}}, "Action 'action': DiscreteAction: `num_actions`"),
        ({"action": {"n": 3}}, "Action 'action': .*'n'"),
    ],
)
def test_an_option_that_does_not_fit_is_said_of_its_sense(options, said, world):
    with pytest.raises(ValueError, match=said):
        build(world.trajectories, "debug", options)


def test_no_options_and_empty_options_are_the_same_run(world, tmp_path):
    given = {"backbone": "debug", "skip": tuple(SHARES), "progress": False}
    for options in (None, {}):  # a script gives none, the shell gives empty ones
        with pytest.raises(ValueError, match="No stage trained anything"):
            train(tmp_path / "run", world.data, sense_options=options, config=options, **given)


def test_without_a_recording_nothing_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="Make one by `pan record`"):
        train(tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_was_trained_on_adds_up(world, tmp_path):
    first = run_stage(world, "backbone", tmp_path / "one", max_steps=1)
    known = json.loads((first / "training_data.json").read_text())
    older = {"fingerprints": ["0" * 16], "environments": ["Old"]}
    (first / "training_data.json").write_text(json.dumps(known | older))
    second = run_stage(world, "backbone", tmp_path / "two", model=str(first), max_steps=1)
    found = json.loads((second / "training_data.json").read_text())
    assert found["fingerprints"] == sorted({"0" * 16, *world.trajectories.fingerprints})
    assert found["environments"] == ["Old", "TestPanBoard-v0"]


@pytest.mark.slow
def test_a_pretrained_backbone_skips_its_stage(world, tmp_path):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    assert not model.config.backbone_is_pretrained
    model.config.backbone_is_pretrained = True
    save_checkpoint(tmp_path / "model", model, processor)
    found = run_stage(world, "backbone", tmp_path / "stage", model=str(tmp_path / "model"))
    assert found == tmp_path / "model" and not (tmp_path / "stage").exists()


def test_a_backbone_that_was_loaded_counts_as_pretrained(tmp_path):
    from tiny_worlds import language_model

    language_model().save_pretrained(tmp_path)
    assert PanModel.from_backbone(str(tmp_path)).config.backbone_is_pretrained
    assert not PanModel.from_backbone(language_model()).config.backbone_is_pretrained


# interrupted and resumed


class Stop(Exception):
    """Stands for a kill."""


def stopping_at(step, error, monkeypatch):
    """Makes training end in `error` when it is about to take a step."""
    take, taken = trainer.PanTrainer.training_step, [0]

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            raise error
        taken[0] += 1
        return take(self, *args, **kwargs)

    monkeypatch.setattr(trainer.PanTrainer, "training_step", training_step)
    return taken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [*((name, SHORT.get(name, {})) for name in STAGES), ("dynamics", {"averaged_share": 0.75, "optim": "muon"})],
)
def test_a_killed_run_resumed_equals_an_uninterrupted_one_to_the_bit(name, more, world, tmp_path, monkeypatch):
    given = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3} | more
    whole = run_stage(world, name, tmp_path / "whole", **given)
    with monkeypatch.context() as patch:
        stopping_at(5, Stop(), patch)
        with pytest.raises(Stop):
            run_stage(world, name, tmp_path / "killed", **given)
    assert not (tmp_path / "killed" / "final").exists()
    taken = stopping_at(-1, None, monkeypatch)
    resumed = run_stage(world, name, tmp_path / "killed", **given)
    assert taken[0] == 3  # and not from the beginning
    one, other = (all_tensors(PanModel.from_pretrained(path)) for path in (whole, resumed))
    assert differing(one, other) == []
    logs = [json.loads((tmp_path / run / "log.json").read_text()) for run in ("whole", "killed")]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.slow
def test_ctrl_c_keeps_the_last_whole_checkpoint_and_leaves_nothing_final(world, tmp_path, monkeypatch):
    stopping_at(3, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="'backbone' was interrupted at step 3; checkpoint-2 is kept.*again"):
        run_stage(world, "backbone", tmp_path, max_steps=9, save_strategy="steps", save_steps=2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


@pytest.mark.slow
def test_ctrl_c_before_any_checkpoint_says_so(world, tmp_path, monkeypatch):
    stopping_at(1, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="at step 1; it had not been saved yet"):
        run_stage(world, "backbone", tmp_path, max_steps=9)
    assert not (tmp_path / "final").exists()


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(world, tmp_path, monkeypatch):
    write = trainer.write_file

    def killed(path, text):
        if path == tmp_path / "checkpoint-4" / COMPLETE:
            raise Stop
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_file", killed)
        with pytest.raises(Stop):
            run_stage(world, "backbone", tmp_path, max_steps=6, save_strategy="steps", save_steps=2)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    taken = stopping_at(-1, None, monkeypatch)
    run_stage(world, "backbone", tmp_path, max_steps=6)
    assert taken[0] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final", "log.json"]


@pytest.mark.slow
def test_a_full_disk_at_the_end_leaves_no_half_result(world, tmp_path, monkeypatch):
    from pan_hf.training import stage

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "training_data", full_disk)
        with pytest.raises(OSError, match="No space left"):
            run_stage(world, "backbone", tmp_path, max_steps=2)
    assert not (tmp_path / "final").exists()
    assert (run_stage(world, "backbone", tmp_path, max_steps=2) / "training_data.json").exists()


@pytest.mark.slow
def test_a_kill_after_the_last_checkpoint_costs_no_step_and_adds_none(world, tmp_path, monkeypatch):
    from pan_hf.training import stage

    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = run_stage(world, "backbone", tmp_path / "whole", **given)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "training_data", lambda *_: (_ for _ in ()).throw(Stop()))
        for _ in range(2):
            with pytest.raises(Stop):
                run_stage(world, "backbone", tmp_path / "killed", **given)
    taken = stopping_at(-1, None, monkeypatch)
    resumed = run_stage(world, "backbone", tmp_path / "killed", **given)
    assert taken[0] == 0
    assert differing(*(all_tensors(PanModel.from_pretrained(path)) for path in (whole, resumed))) == []


# seconds as a budget


class Clock:
    """Stands for `time`: every look at it is `seconds` later."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def monotonic(self):
        self.now += self.seconds
        return self.now


def steps_taken(folder):
    return json.loads((folder / "log.json").read_text())[-1]["step"]


@pytest.mark.slow
def test_seconds_become_steps(world, tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "time", Clock(0.1))
    run_stage(world, "backbone", tmp_path, seconds=5.0)
    assert steps_taken(tmp_path) == json.loads((tmp_path / "budget.json").read_text())["max_steps"]
    assert 44 <= steps_taken(tmp_path) <= 50  # the clock is looked at some times before the first step


@pytest.mark.slow
def test_a_machine_that_is_too_slow_to_be_timed_still_stops_in_time(world, tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "time", Clock(1.0))
    run_stage(world, "backbone", tmp_path, seconds=5.0)
    assert steps_taken(tmp_path) <= 6


def test_weights_decay_and_norms_and_biases_do_not(world, tmp_path):
    args = arguments(align.JOINT, model="", data="", output_dir=str(tmp_path), weight_decay=0.1)
    model = PanModel.from_pretrained(world.model)
    budget, slow = budgets.Budget(tmp_path, 1, None), {"senses.": 0.01}
    given = {"objective": "joint", "sampler": None, "budget": budget, "slow": slow}
    optimizer = trainer.PanTrainer(model=model, args=args, **given).create_optimizer()
    found = {id(each): group for group in optimizer.param_groups for each in group["params"]}
    assert len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        group = found[id(parameter)]
        assert group["weight_decay"] == (0.0 if "norm" in name or name.endswith("bias") else 0.1), name
        assert group["lr"] == args.learning_rate * (0.01 if name.startswith("senses.") else 1.0)


def test_too_few_seconds_are_refused_before_anything_is_written(world, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_window_seconds", lambda *_: 2.0)
    with pytest.raises(ValueError, match=r"^10 seconds are too few .* take about \d+\. Give more .*--seconds"):
        train(tmp_path / "run", world.data, backbone="debug", seconds=10, progress=False)
    assert not list((tmp_path / "run").glob("**/*.*"))
    measured = iter([2.0, 0.001])  # the machine was busy at first
    monkeypatch.setattr(pipeline, "_window_seconds", lambda *_: next(measured))
    assert (
        pipeline.check_seconds(
            PanModel.from_pretrained(world.model), None, world.trajectories, ["senses", "dynamics"], 10.0
        )
        == 0.001
    )
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="seconds: expected (more than 0|a finite number), got"):
            train(tmp_path / "run", world.data, seconds=wrong)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"overrides": {"reinforce": {"sed": 1}}}, r"Stage 'reinforce': .*'sed' \(near: .*seed"),
        ({"overrides": {"joint": {"data": "elsewhere"}}}, "Stage 'joint': .*'data'"),
        ({"overrides": {"reinforce": {"max_steps": "many"}}}, "reinforce.max_steps: expected a whole number"),
        ({"overrides": {"switch": {"learning_rate": -1.0}}}, "Stage 'switch': `learning_rate` must be at least 0"),
        ({"seconds": "400"}, "seconds: expected a finite number, got str"),
        ({"seed": 1.5}, "seed: expected a whole number"),
        ({"num_processes": 0}, "num_processes: expected at least 1"),
        ({"skip": "senses"}, "skip: expected a list"),
        ({"accelerate_config": __file__}, "--accelerate .*test_training.py is not YAML"),
    ],
)
def test_what_a_stage_does_not_take_is_refused_before_the_first_one(given, message, world, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", world.data, backbone="debug", progress=False, **given)
    assert not (tmp_path / "run").exists()


def test_a_file_for_accelerate_may_be_given_by_its_name(world, tmp_path, monkeypatch):
    launched = []
    monkeypatch.setattr(pipeline, "_window_seconds", lambda *_: 0.01)
    monkeypatch.setattr(pipeline, "_run_stages", lambda *given: launched.append(given[-1]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, world.data, backbone="debug", accelerate_config="accelerate_gpus", progress=False)
    assert launched == [CONFIGS / "accelerate_gpus.yaml"]


@pytest.mark.slow
def test_a_stage_that_there_is_no_time_for_is_left_out_with_a_warning(world, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_window_seconds", lambda *_: 0.3)
    monkeypatch.setattr(pipeline, "SHARES", SHARES | {"joint": 0.001})
    skip = ("backbone", "latent_head", "switch", "reinforce")
    with pytest.warns(
        UserWarning, match="Stage 'joint' is left out: a step of it takes about 13 seconds, and there are"
    ):
        checkpoint = train(tmp_path, world.data, backbone="debug", seconds=6, skip=skip, progress=False)
    assert (checkpoint / "model.safetensors").exists()
    assert sorted(path.name for path in (tmp_path / "stages").glob("?-*")) == ["0-init", "1-senses", "4-dynamics"]


@pytest.mark.slow
def test_the_cost_of_a_window_is_measured_on_a_model_that_stays_as_it_was(world):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    before = {name: tensor.clone() for name, tensor in all_tensors(model).items()}
    assert 0 < pipeline._window_seconds(model, processor, world.trajectories) < 5
    assert differing(before, all_tensors(model)) == []
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_the_cost_of_a_window_is_measured_where_stages_run(world, monkeypatch):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    asked, waited = [], []
    cuda = SimpleNamespace(is_available=lambda: True, synchronize=lambda: waited.append(True))
    monkeypatch.setattr(pipeline, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(model, "to", lambda device: asked.append(str(device)) or model)
    pipeline._window_seconds(model, processor, world.trajectories)
    assert asked == ["cuda", "cpu"] and len(waited) == 3  # a GPU is behind what it is told


def test_a_large_picture_is_told_its_cost_and_the_flag_that_makes_it_smaller(world, monkeypatch):
    model, processor = PanModel.from_pretrained(world.model), PanProcessor.from_pretrained(world.model)
    monkeypatch.setattr(pipeline, "_window_seconds", lambda *_: 0.5)
    monkeypatch.setattr(pipeline, "LARGE", 100)
    with pytest.warns(UserWarning, match=r"about 15 steps .* 'camera' is 16x16 pixels: `pan record --image-size 64`"):
        pipeline.check_seconds(model, processor, world.trajectories, ["dynamics"], 100.0)


# averaged


@pytest.mark.slow
def test_averaged_weights_are_the_mean_over_the_last_steps(world, tmp_path):
    """Of four steps the last two; alone, a last step is the weights after it."""
    given = {"averaged_share": 0.01}
    ends = [run_stage(world, "dynamics", tmp_path / f"{steps}", max_steps=steps, **given) for steps in (3, 4)]
    given["averaged_share"] = 0.5
    mean = all_tensors(PanModel.from_pretrained(run_stage(world, "dynamics", tmp_path / "mean", max_steps=4, **given)))
    apart = [all_tensors(PanModel.from_pretrained(end)) for end in ends]
    assert len(differing(*apart)) > 10
    for name, tensor in mean.items():
        expected = torch.stack([tensors[name].double() for tensors in apart]).mean(0)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-7, msg=name)


def test_a_stage_whose_codebooks_move_is_not_averaged(world, tmp_path):
    with pytest.raises(ValueError, match="'senses' changes more than weights.*`averaged_share` at 0"):
        run_stage(world, "senses", tmp_path / "stage", max_steps=1, averaged_share=0.5)
    assert not (tmp_path / "stage").exists()


# refused


def test_a_recording_without_a_configured_sense_is_refused(world, tmp_path):
    observations = {name: v for name, v in world.trajectories.observations.items() if name != "place"}
    poorer = SimpleNamespace(**{**vars(world.trajectories), "observations": observations})
    args = arguments(STAGES["dynamics"], model=str(world.model), data="x", output_dir=str(tmp_path), **QUICK)
    with pytest.raises(ValueError, match=r"\['place'\] are not in the recording, which has .*camera"):
        run(STAGES["dynamics"], args, poorer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_rewards_beyond_the_model_s_bound_are_refused_and_not_clipped(streaming, world, tmp_path):
    data = shutil.copytree(world.data, tmp_path / "data")
    path = next(iter(episode_files(data, "train").values()))
    table = pq.read_table(path)
    rewards = pa.array([-20.0] + [0.0] * (len(table) - 1), pa.float32())
    pq.write_table(table.set_column(table.column_names.index("next.reward"), "next.reward", rewards), path)
    given = {"model": str(world.model), "data": str(data), "output_dir": str(tmp_path / "stage"), "max_steps": 1}
    args = arguments(STAGES["dynamics"], streaming=streaming, **given, **QUICK)
    with pytest.raises(ValueError, match="rewards as large as 20; the model was built for rewards within .* 10 "):
        run(STAGES["dynamics"], args)
    assert not (tmp_path / "stage").exists()


def test_a_processor_of_another_model_is_refused_before_training(world, tmp_path):
    copied = shutil.copytree(world.model, tmp_path / "model")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"vocabulary_digest": "0" * 16}))
    with pytest.raises(ValueError, match="does not belong to this model"):
        run_stage(world, "backbone", tmp_path / "stage", model=str(copied))


# from a shell


def launch(*command, timeout=300):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


def flags(**given):
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


@pytest.mark.slow
def test_a_stage_runs_from_a_shell(world, tmp_path):
    (tmp_path / "notes.txt").write_text("up and down\n" * 40)
    command = ["-m", "pan_hf.training.pretrain_backbone", "--text", str(tmp_path / "notes.txt")]
    given = {"model": world.model, "data": world.data, "output_dir": tmp_path / "stage", "max_steps": 2}
    found = launch(*command, *flags(**QUICK, **given))
    assert found.returncode == 0, found.stderr[-2000:]
    assert (tmp_path / "stage" / "final" / "model.safetensors").exists()


def test_every_stage_has_an_objective_and_a_script():
    from pan_hf.modeling.objectives_pan import OBJECTIVES

    assert all(isinstance(stage, Stage) and stage.objective in OBJECTIVES for stage in STAGES.values())
    assert {stage.name for stage in STAGES.values()} == set(STAGES)


@pytest.mark.parametrize("multiplies", [True, False])
def test_half_precision_is_for_stages_that_bear_it_on_machines_that_multiply_in_it(multiplies, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    chosen = {name: arguments(stage, output_dir=str(tmp_path)).bf16 for name, stage in STAGES.items()}
    assert chosen == dict.fromkeys(STAGES, False) | {"dynamics": multiplies}
    assert not arguments(STAGES["dynamics"], output_dir=str(tmp_path), bf16=False).bf16


@pytest.mark.slow
def test_half_precision_leaves_weights_whole_and_losses_nearly_as_they_are(world, tmp_path):
    logs = {}
    for half in (False, True):
        final = run_stage(world, "dynamics", tmp_path / str(half), max_steps=1, bf16=half, seed=0)
        logs[half] = json.loads((final.parent / "log.json").read_text())[0]
        assert {tensor.dtype for tensor in PanModel.from_pretrained(final).state_dict().values()} <= {
            torch.float32,
            torch.bool,
            torch.int64,
        }
    for name in ("loss/camera.0", "loss/place.1", "loss/reward"):
        # bfloat16 keeps 8 bits, so a loss over a few layers is good to about one part in a hundred
        assert logs[True][name] == pytest.approx(logs[False][name], rel=0.02)
        assert logs[True][name] != logs[False][name]


@pytest.mark.slow
def test_a_start_that_fails_leaves_the_folder_free_and_a_finished_run_is_left_alone(world, tmp_path):
    with pytest.raises(ValueError, match="adapter_width"):
        train(tmp_path, world.data, backbone="debug", sense_options={"camera": {"adapter_width": 3}}, progress=False)
    assert not (tmp_path / "stages" / "settings.json").exists()
    overrides = {"senses": {"max_steps": 1}}
    skip = tuple(name for name in SHARES if name not in ("senses", "sentences"))
    settings = {"backbone": "debug", "overrides": overrides, "skip": skip, "progress": False}
    checkpoint = train(tmp_path, world.data, **settings)
    (checkpoint / "README.md").write_text("a card")
    assert train(tmp_path, world.data, **settings) == checkpoint
    assert (checkpoint / "README.md").exists()  # nothing was trained, so what is published stays
    (tmp_path / "stages" / "1-senses" / "final" / "config.json").touch()
    assert not (train(tmp_path, world.data, **settings) / "README.md").exists()
    with pytest.raises(ValueError, match="begun with other settings"):
        train(tmp_path, world.data, seed=1, **settings)
