"""`pan train`: the stages of section 5.3 in order, within one time budget, into one run folder.

    <run>/stages/0-init, 1-senses, 2-backbone, ... 8-reinforce    one folder a stage
    <run>/checkpoint                                          the last one's result
    <run>/timing.json                                         seconds and peak memory by stage

The stage `sentences`, in which codes are merged, runs only when it is given time (`--stage sentences.seconds=60`).
A finished stage is not run again and an interrupted one goes on, so the same command continues whatever was stopped.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pan_hf.build import build
from pan_hf.checkpoints import save_checkpoint
from pan_hf.data.trajectories import Trajectories, load_trajectories
from pan_hf.extras import extra
from pan_hf.files import write_file
from pan_hf.hub import on_disk
from pan_hf.reporting.timing import stage_timer
from pan_hf.training import align, merge, pretrain_backbone, pretrain_latent_head, pretrain_senses, reinforce
from pan_hf.training.arguments import Stage, arguments
from pan_hf.training.code_cache import forget
from pan_hf.training.run_folder import keeping_settings, publish
from pan_hf.training.stage import run as run_stage


@dataclass(frozen=True)
class Part:
    """A stage of `pan train`.

    Args:
        script: its module, whose command line runs it in several processes.
        stage: one of the script's.
        share (`float`): of the budget; one without runs when it is asked for.
        flag: by which the script runs it; None where it is the script's own.
    """

    script: ModuleType
    stage: Stage
    share: float
    flag: str | None = None


PARTS = {
    "senses": Part(pretrain_senses, pretrain_senses.STAGE, 0.2),
    "backbone": Part(pretrain_backbone, pretrain_backbone.STAGE, 0.02),
    "sentences": Part(merge, merge.STAGE, 0.0),
    "dynamics": Part(align, align.DYNAMICS, 0.61),
    "latent_head": Part(pretrain_latent_head, pretrain_latent_head.STAGE, 0.04),
    "joint": Part(align, align.JOINT, 0.07, "--joint"),
    "switch": Part(reinforce, reinforce.WARM_UP, 0.02, "--warm_up"),
    "reinforce": Part(reinforce, reinforce.REINFORCE, 0.04),
}
SHARES = {name: part.share for name, part in PARTS.items()}


def train(
    run: str | Path,
    data: str | Path | None = None,
    *,
    backbone: str = "tiny",
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
        backbone (`str`): a preset (debug, tiny, small), or a name or folder of any causal language model.
        seconds (`float`): budget of all stages together, shared out as in `SHARES`. It bounds wall-clock time, so the
            number of steps depends on the machine; `overrides` with `max_steps` makes a run independent of it.
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
        ValueError: the run was begun with other settings, or a stage is unknown.
    """
    run, overrides = Path(run), dict(overrides or {})
    data = on_disk(data, "dataset") if data is not None else run / "data"
    unknown = sorted({*overrides, *skip} - set(SHARES))
    if unknown:
        raise ValueError(f"Unknown stages {unknown}; there are {list(SHARES)}.")
    shareless = {name: set(given) for name, given in overrides.items() if not SHARES[name]}
    endless = [name for name, given in shareless.items() if not given & {"seconds", "max_steps"}]
    if endless:
        raise ValueError(f"{endless} have no share of the time; give them `seconds` or `max_steps`.")
    settings = {"backbone": backbone, "sense_options": sense_options or {}, "config": config or {}, "seed": seed}
    settings |= {"seconds": seconds, "overrides": overrides, "skip": list(skip)}
    trajectories = load_trajectories(data, "train")
    current = run / "stages" / "0-init"
    with keeping_settings(run / "stages" / "settings.json", settings, begun=current):
        if not current.exists():
            model, processor = build(trajectories, backbone, sense_options, seed, **(config or {}))
            save_checkpoint(current, model, processor)
    for number, name in enumerate(SHARES, start=1):
        if name in skip or not (SHARES[name] or overrides.get(name)):
            continue
        folder = run / "stages" / f"{number}-{name}"
        if (folder / "final").exists():
            current = folder / "final"
            continue
        given: dict[str, Any] = {"seconds": seconds * SHARES[name] or None, "seed": seed, "progress": progress}
        given |= overrides.get(name, {})
        given |= {"model": str(current), "data": str(data), "output_dir": str(folder), "encoded": str(folder.parent)}
        with stage_timer(run / "timing.json", name, seeds=[seed], resume=folder.exists()):
            current = _run_stage(name, given, trajectories, num_processes, accelerate_config)
    forget(run / "stages")
    return publish(current, run / "checkpoint", data)


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
