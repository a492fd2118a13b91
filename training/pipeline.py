"""`pan train`: the stages of section 5.3 in order, within one time budget, into one run folder.

    <run>/stages/0-init, 1-senses, 2-backbone, ... 8-reinforce    one folder a stage
    <run>/checkpoint                                          the last one's result
    <run>/timing.json                                         seconds and peak memory by stage

The stage `sentences`, in which codes are merged, runs only when it is given time (`--stage sentences.seconds=60`).
A finished stage is not run again and an interrupted one goes on, so the same command continues whatever was stopped.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, get_args, get_type_hints

import torch

from pan_hf.arguments import a_seed, as_type, checked, least
from pan_hf.build import PRESETS, build
from pan_hf.checkpoints import load, save_checkpoint
from pan_hf.console import without_bars
from pan_hf.data.trajectories import Trajectories, load_trajectories
from pan_hf.data.windows import WindowReader
from pan_hf.extras import extra
from pan_hf.files import write_file
from pan_hf.hub import on_disk
from pan_hf.modeling import PanConfig
from pan_hf.reporting.results import read_records
from pan_hf.reporting.tables import select
from pan_hf.reporting.timing import stage_timer
from pan_hf.training import align, merge, pretrain_backbone, pretrain_latent_head, pretrain_senses, reinforce
from pan_hf.training.arguments import Stage, arguments, find_config, read_config, unknown_names
from pan_hf.training.budget import now
from pan_hf.training.code_cache import forget
from pan_hf.training.run_folder import keeping_settings, publish
from pan_hf.training.stage import run as run_stage
from pan_hf.training.summary import summary
from pan_hf.training.tuning import chosen, told


@dataclass(frozen=True)
class Part:
    """A stage of `pan train`.

    Args:
        script: its module, whose command line runs it in several processes.
        stage: one of the script's.
        share (`float`): of the budget; one without runs when it is asked for.
        windows (`int`): how many windows' worth of work its shortest run is: a step, and what it learns from.
        flag: by which the script runs it; None where it is the script's own.
    """

    script: ModuleType
    stage: Stage
    share: float
    windows: int
    flag: str | None = None


# a window of `dynamics` is codes, and costs a fraction of one of pictures
PARTS = {
    "senses": Part(pretrain_senses, pretrain_senses.STAGE, 0.2, 16),
    "backbone": Part(pretrain_backbone, pretrain_backbone.STAGE, 0.02, 0),
    "sentences": Part(merge, merge.STAGE, 0.0, 0),
    "dynamics": Part(align, align.DYNAMICS, 0.61, 8),
    "latent_head": Part(pretrain_latent_head, pretrain_latent_head.STAGE, 0.04, 16),
    "joint": Part(align, align.JOINT, 0.07, 40, "--joint"),
    "switch": Part(reinforce, reinforce.WARM_UP, 0.02, 16, "--warm_up"),
    "reinforce": Part(reinforce, reinforce.REINFORCE, 0.04, 16),
}
SHARES = {name: part.share for name, part in PARTS.items()}


@dataclass(frozen=True)
class Schedule:
    """The stages that a run has and the time they get.

    Args:
        seconds: of the `shared` stages together.
        chosen: the stages that run, in order.
        overrides: by stage, fields of its arguments.
    """

    seconds: float
    chosen: list[str]
    overrides: dict[str, dict]

    @property
    def shared(self) -> list[str]:
        """The stages without a budget of their own."""
        return [name for name in self.chosen if not _has_budget(self.overrides.get(name, {}))]


def _has_budget(fields: dict) -> bool:
    return bool({"seconds", "max_steps"} & set(fields))


def _schedule(seconds: float, overrides: dict[str, dict], skip: Sequence[str]) -> Schedule:
    """Raises ValueError for stages that there are not, or without time, and for fields that a stage does not take."""
    if unknown := sorted({*overrides, *skip} - set(SHARES)):
        raise ValueError(f"Unknown stages {unknown}; there are {list(SHARES)}.")
    if endless := [name for name, given in overrides.items() if not SHARES[name] and not _has_budget(given)]:
        raise ValueError(f"{endless} have no share of the time; give them `seconds` or `max_steps`.")
    for name, given in overrides.items():
        _check_fields(name, given)
    chosen = [name for name in SHARES if name not in skip and (SHARES[name] or overrides.get(name))]
    return Schedule(seconds, chosen, overrides)


PLACES = ("model", "data", "output_dir", "encoded")  # arguments of a stage that a run fills in itself


def _check_fields(name: str, given: dict) -> None:
    """Raises ValueError for a field of a stage's arguments that it does not take, or not with that value."""
    stage = PARTS[name].stage
    known = [field.name for field in fields(stage.arguments) if field.init and field.name not in PLACES]
    if unknown := [field for field in given if field not in known]:
        raise ValueError(f"Stage {name!r}: {unknown_names(unknown, 'fields', known)}.")
    hints = get_type_hints(stage.arguments)
    for field, value in given.items():
        if {*(get_args(hints[field]) or [hints[field]])} <= {int, float, bool, str, NoneType}:
            as_type(f"{name}.{field}", value, hints[field])
    try:
        arguments(stage, **given, output_dir="")
    except (TypeError, ValueError) as error:
        raise ValueError(f"Stage {name!r}: {error}") from error


@checked(seconds=least(0, above=True), num_processes=least(1), layers=least(1), seed=a_seed)
def train(
    run: str | Path,
    data: str | Path | None = None,
    *,
    backbone: str = "tiny",
    freeze: bool = False,
    lora: dict | None = None,
    layers: int | None = None,
    full: bool = False,
    seconds: float = 400.0,
    sense_options: dict[str, dict] | None = None,
    config: dict | None = None,
    overrides: dict[str, dict] | None = None,
    skip: tuple[str, ...] = (),
    num_processes: int = 1,
    accelerate_config: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Trains a world model on a recording, stage by stage; run again, it goes on after an interruption.

    Args:
        run: folder of the run; holds everything afterwards.
        data: the recording, a folder or a Hub id; `<run>/data` by default.
        backbone (`str`): a preset (debug, tiny, small), or a name or folder of any causal language model. One that is
            pretrained keeps its words: its layers are trained by LoRA of rank 8, at a share of the learning rate.
        freeze (`bool`): train no layer of a pretrained backbone.
        lora (`dict`, *optional*): fields of its LoRA, as `r=16`; see peft's `LoraConfig`.
        layers (`int`, *optional*): the backbone's first layers that are used; all by default.
        full (`bool`): train all weights of a pretrained backbone, at a smaller share of the learning rate; its words
            may drift.
        seconds (`float`): budget of all stages together, shared out as in `SHARES`; stages that `overrides` give
            `seconds` or `max_steps` have their own. It bounds wall-clock time, reading and saving included, so the
            number of steps depends on the machine; `max_steps` makes a run independent of it.
        sense_options (`dict`, *optional*): fields of senses and action, as `camera.patch_size`; see
            [`pan_hf.build.build`].
        config (`dict`, *optional*): fields of [`PanConfig`].
        overrides (`dict`, *optional*): by stage, any field of its arguments: `dynamics.learning_rate`, `seconds`,
            `max_steps`.
        skip: stages to leave out.
        num_processes (`int`): more than 1 runs each stage under `accelerate launch`.
        accelerate_config (*optional*): a file of `accelerate config` that each stage is launched with, in place of
            `num_processes`.
        seed (`int`): of weights and draws.
        progress (`bool`): show progress bars.

    Returns:
        the folder of the finished checkpoint.

    Raises:
        FileNotFoundError: there is no recording.
        ValueError: the run was begun with other settings, a stage or a field of one is unknown or has a value that it
            cannot have, the backbone cannot be trained as chosen, `accelerate_config` is no file of settings, or there
            are too few seconds for a step of each stage. Nothing has been written then.
    """
    begun, run = now(), Path(run)
    with without_bars(downloads=not progress):
        data = on_disk(data, "dataset") if data is not None else run / "data"
    schedule = _schedule(seconds, overrides or {}, skip)
    if accelerate_config is not None:
        accelerate_config = find_config(accelerate_config, "--accelerate")
        read_config(accelerate_config, "--accelerate")  # raises for what is no file of settings
    settings = {"backbone": backbone, "sense_options": sense_options or {}, "config": config or {}, "seed": seed}
    settings |= {"seconds": seconds, "overrides": schedule.overrides, "skip": list(skip)}
    tuning = chosen(freeze, lora, full, is_pretrained=backbone not in PRESETS)
    settings |= {"layers": layers, "tuning": tuning or None}  # which runs begun by older versions do not have
    trajectories, start = load_trajectories(data, "train"), run / "stages" / "0-init"
    with keeping_settings(run / "stages" / "settings.json", settings, begun=start):
        if not start.exists():
            with without_bars(downloads=not progress):  # a backbone may be downloaded
                model, processor = build(trajectories, backbone, sense_options, seed, layers, **(config or {}))
            trajectories.windows(model.config.context_steps)  # raises where no episode is long enough
            cost = check_seconds(model, processor, trajectories, schedule.shared, seconds)
            save_checkpoint(start, model, processor, {COST: json.dumps(cost)})
    if progress and (line := told(PanConfig.from_pretrained(start), str(backbone), tuning)):
        print(line, file=sys.stderr)
    given = {"seed": seed, "progress": progress, "data": str(data), "encoded": str(start.parent)} | tuning
    current = _run_stages(run, schedule, given, trajectories, begun, num_processes, accelerate_config)
    forget(run / "stages")
    checkpoint = publish(current, run / "checkpoint", data)
    if progress:
        for line in summary(*load(checkpoint), trajectories):
            print(line, file=sys.stderr)
    return checkpoint


def _run_stages(
    run: Path,
    schedule: Schedule,
    given: dict[str, Any],
    trajectories: Trajectories,
    begun: float,
    num_processes: int,
    launched_with: str | Path | None,
) -> Path:
    """Runs what is not finished yet, each stage from the result of the one before, and returns the last one's.

    Args:
        given: arguments of every stage.
        begun: when the run did, as `now` says.
    """
    current = run / "stages" / "0-init"
    measured = current / COST  # runs begun by older versions have none
    cost = json.loads(measured.read_text()) if measured.exists() else 0.0
    # what is left for the stages that share the seconds; those with a budget of their own do not count
    left = schedule.seconds * sum(SHARES[name] for name in schedule.shared) - (now() - begun)
    for name in schedule.chosen:
        folder = run / "stages" / f"{list(SHARES).index(name) + 1}-{name}"
        before, is_shared = now(), name in schedule.shared
        if (folder / "final").exists():
            current = folder / "final"
            left -= _seconds_spent(run, name) if is_shared else 0.0
            continue
        own: dict[str, Any] = {"model": str(current), "output_dir": str(folder)}
        if is_shared:
            own["seconds"] = _seconds_of(name, schedule.shared, schedule.seconds, left)
            if not folder.exists() and _is_left_out(name, cost, own["seconds"]):
                continue
        own |= schedule.overrides.get(name, {})
        with stage_timer(run / "timing.json", name, seeds=[given["seed"]], resume=folder.exists()):
            current = _run_stage(name, given | own, trajectories, num_processes, launched_with)
        left -= now() - before if is_shared else 0.0
    return current


def _is_left_out(stage: str, cost: float, seconds: float) -> bool:
    """Whether a stage that a world model can do without has no time for a step, of which it then warns."""
    least = _least(stage, cost)
    if stage in ESSENTIAL or not _is_too_long(least, seconds):
        return False
    warnings.warn(
        f"Stage {stage!r} is left out: a step of it takes about {least:.0f} seconds, and there are {seconds:.0f}. "
        "Give more (`--seconds`).",
        stacklevel=5,  # whoever called `train`
    )
    return True


SAVING = 0.7  # seconds that a stage takes to start, to load and to save
FEW_WINDOWS = 8  # that are timed
ENCODED_FRAMES = 10  # that are encoded in the time in which the model learns from a window, about
LARGE = 128 * 128  # pixels of a picture from which on its size is what makes a step slow
FEW_STEPS = 50
ESSENTIAL = ("senses", "dynamics")  # without which there is no world model
COST = "seconds_a_window.json"  # beside the untrained model: what a window costs, see `check_seconds`


def _seconds_of(stage: str, shared: list[str], seconds: float, left: float) -> float:
    """The time budget of a stage: its share, or less where the stages before it took longer than theirs.

    Args:
        shared: the stages that share `seconds`, of which `left` are left for this one and those behind it.
    """
    later = shared[shared.index(stage) :]
    share = SHARES[stage] / sum(SHARES[name] for name in later)
    # what every stage needs comes first, or short stages would only load and save
    return SAVING + max(0.0, min(seconds * SHARES[stage], share * (left - SAVING * len(later))))


def _least(stage: str, cost: float) -> float:
    """Seconds of the shortest run of a stage. Args: cost, seconds a window."""
    return SAVING + cost * PARTS[stage].windows


def _is_too_long(least: float, seconds: float) -> bool:
    """Whether seconds could not be kept within a tenth or ten seconds."""
    return least > max(1.1 * seconds, seconds + 10.0)


def check_seconds(model, processor, trajectories: Trajectories, stages: list[str], seconds: float) -> float:
    """Measures what a window costs, in seconds.

    Args:
        stages: those that share the `seconds`.

    Raises:
        ValueError: the stages that a world model cannot do without could not take a step; a warning where they will
            take few.
    """
    if not stages:
        return 0.0

    def least_of(cost: float) -> float:
        frames = len(trajectories) * cost / ENCODED_FRAMES if model.senses else 0.0
        return frames + sum(_least(name, cost) for name in stages if name in ESSENTIAL)

    cost = _window_seconds(model, processor, trajectories)
    if _is_too_long(least_of(cost), seconds):  # the machine may have been busy with something else just then
        cost = min(cost, _window_seconds(model, processor, trajectories))
    least = least_of(cost)
    pictures = [
        f"{name!r} is {sense.height}x{sense.width} pixels"
        for name, sense in model.config.coded_senses.items()
        if sense.is_picture and sense.height * sense.width > LARGE
    ]
    smaller = f" {', '.join(pictures)}: `pan record --image-size 64` makes it smaller." if pictures else ""
    if _is_too_long(least, seconds):
        raise ValueError(
            f"{seconds:g} seconds are too few for this world: encoding it and a single step take about {least:.0f}. "
            f"Give more (`--seconds {10 * least:.0f}`).{smaller}"
        )
    steps = seconds * SHARES["dynamics"] / (cost * PARTS["dynamics"].windows)
    if steps < FEW_STEPS and "dynamics" in stages:
        warnings.warn(
            f"{seconds:g} seconds are worth about {steps:.0f} steps of the stage 'dynamics' in this world; some "
            f"hundreds are the least that teaches anything. Give more (`--seconds`).{smaller}",
            stacklevel=4,  # whoever called `train`
        )
    return cost


def _window_seconds(model, processor, trajectories: Trajectories) -> float:
    """Seconds that a window takes forwards and backwards, in a batch of a few, where stages run; the model is left as
    it was."""
    device = model.device
    model.to("cuda" if torch.cuda.is_available() else device)
    reader, steps = WindowReader(trajectories, processor, model), model.config.context_steps
    rows = trajectories.windows(steps)[:FEW_WINDOWS] + reader.lead
    batch, was_training = reader.batch(rows, 1), model.training
    model.eval()  # codebooks stay
    spent = math.inf
    for _ in range(3):  # the first one warms up, and a machine that is busy makes one or another take longer
        before = now()
        model(objective="joint", observation=batch["observation"], action=batch["action"]).loss.backward()
        model.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent = min(spent, now() - before)
    model.train(was_training).to(device)
    return spent / len(rows)


def _seconds_spent(run: Path, stage: str) -> float:
    """What `timing.json` says of a stage."""
    path = run / "timing.json"
    return (
        sum(entry.value for entry in select(read_records(path), model=stage, metric="seconds"))
        if path.exists()
        else 0.0
    )


def _run_stage(name: str, given: dict, trajectories: Trajectories, num_processes: int, launched_with) -> Path:
    part = PARTS[name]
    if num_processes == 1 and launched_with is None:
        return run_stage(part.stage, arguments(part.stage, **given), trajectories)
    # `--cpu` would start one process only; the stages choose the CPU themselves where there is no accelerator
    how = ["--multi_gpu", "--num_machines", "1", "--num_processes", str(num_processes)]
    how = how if launched_with is None else ["--config_file", str(launched_with)]
    told = Path(given["output_dir"]).with_suffix(".yaml")
    with extra("cli", "A run of several processes"):
        import yaml
    write_file(told, yaml.safe_dump({key: value for key, value in given.items() if value is not None}))
    command = [sys.executable, "-m", "accelerate.commands.launch", *how, "-m", part.script.__name__]
    subprocess.run([*command, *([part.flag] if part.flag else []), "--config", str(told)], check=True)
    final = Path(given["output_dir"]) / "final"
    return final if final.exists() else Path(given["model"])
