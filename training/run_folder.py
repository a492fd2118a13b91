"""A run's folder: the settings it was begun with, and the checkpoint it publishes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pan_hf.checkpoints import find_checkpoint
from pan_hf.data.trajectories import load_trajectories
from pan_hf.files import whole_folder
from pan_hf.hub import address, on_disk
from pan_hf.reporting.results import write_text
from pan_hf.reporting.timing import stage_timer

# ---- `pan grow`: a trained world model meets a recording with something new in it, and grows codes for it. `pan
# merge`: a language model learns sentences of codes, and pairs of them become one token.
#
#     <run>/stages/growth     the stage of `pan grow`, see `training/grow.py`
#     <run>/stages/sentences  that of `pan merge`, see `training/merge.py`
#     <run>/checkpoint        its result, like that of `pan train`
#     <run>/growth.json       what was tried, accepted and rejected, and the bits an observation it saves


def run_stage_once(stage, run: Path, start, data, given: dict, seconds, max_steps, seed: int, progress: bool) -> Path:
    """Runs a stage that grows from a finished checkpoint, and publishes what came of it."""
    from pan_hf.files import write_text
    from pan_hf.training.arguments import arguments
    from pan_hf.training.stage import run as run_stage

    start, folder = find_checkpoint(start), run / "stages" / stage.name
    if start.resolve() == (run / "checkpoint").resolve():
        raise ValueError(f"{run} would overwrite the checkpoint it starts from; name another folder for the new run.")
    data = on_disk(data, "dataset") if data is not None else run / "data"
    trajectories = load_trajectories(data, "train")
    given |= {"model": str(start), "data": str(data), "output_dir": str(folder), "seed": seed}
    given |= {"seconds": seconds} if max_steps is None else {"max_steps": max_steps}
    begun = folder.exists()
    stage_arguments = arguments(stage, progress=progress, **given)
    settings = keeping_settings(folder.with_name(f"{stage.name}.settings.json"), given, begun=folder)
    with settings, stage_timer(run / "timing.json", stage.name, seeds=[seed], resume=begun):
        final = run_stage(stage, stage_arguments, trajectories)
    log = json.loads((final.parent / "log.json").read_text())
    growths = [
        entry["growth"]
        | {"gain": entry["gain"], "step": entry["step"]}
        | {side: entry[side] for side in ("with", "without") if side in entry}
        for entry in log
        if "growth" in entry
    ]
    write_text(run / "growth.json", json.dumps(growths, indent=1))
    return publish(final, run / "checkpoint", data)


@contextmanager
def keeping_settings(path: Path, settings: dict, begun: Path) -> Iterator[None]:
    """A run keeps to the settings it was begun with, another choice wants another folder; a start that fails before
    there is anything in `begun` leaves none.

    Raises:
        ValueError: other settings stand in `path`.
    """
    is_new = not path.exists()
    _check_settings(path, settings)
    try:
        yield
    except BaseException:
        if is_new and not begun.exists():
            path.unlink()
        raise


def _check_settings(path: Path, settings: dict) -> None:
    if path.exists():
        known = json.loads(path.read_text())
        differing = {key: (known.get(key), value) for key, value in settings.items() if known.get(key) != value}
        if differing:
            told = "; ".join(f"{key} was {was!r}, is {now!r}" for key, (was, now) in differing.items())
            raise ValueError(f"{path.parent.parent} was begun with other settings ({told}); use another run folder.")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=1))


def publish(current: Path, checkpoint: Path, data: Path) -> Path:
    """Copies a stage's result to a run's `checkpoint`, whole or not at all. What was published already stays, with
    its card and what it has learned since."""
    from pan_hf.training.stage import TRAINING_DATA

    if not (current / TRAINING_DATA).exists():
        raise ValueError("No stage trained anything: leave at least one of them in (`skip`).")
    if _saved_at(checkpoint) >= _saved_at(current) > 0:
        return checkpoint
    known = json.loads((current / TRAINING_DATA).read_text())
    known["root"] = address(data) or os.path.relpath(data, checkpoint)
    with whole_folder(checkpoint) as temporary:
        shutil.copytree(current, temporary, dirs_exist_ok=True)
        (temporary / TRAINING_DATA).write_text(json.dumps(known, indent=1))
    return checkpoint


def _saved_at(checkpoint: Path) -> float:
    """When a model was saved, in seconds, wherever it was copied to since; 0 where there is none."""
    config = checkpoint / "config.json"
    return config.stat().st_mtime if config.exists() else 0.0
