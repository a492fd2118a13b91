"""A run's folder: the settings it was begun with, and the checkpoint it publishes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pan_hf.arguments import a_seed, least
from pan_hf.checkpoints import PARTS, find_checkpoint, link, load, save_checkpoint
from pan_hf.data.compat import check_fits
from pan_hf.data.trajectories import load_trajectories
from pan_hf.files import whole_folder, write_file
from pan_hf.hub import address, on_disk
from pan_hf.modeling import PanConfig
from pan_hf.reporting.timing import stage_timer
from pan_hf.tokenization import PanProcessor
from pan_hf.training.arguments import Stage, arguments
from pan_hf.training.budget import now
from pan_hf.training.code_cache import forget
from pan_hf.training.stage import TRAINING_DATA
from pan_hf.training.stage import run as run_stage
from pan_hf.training.tuning import base_folder

# ---- A stage that a finished checkpoint is trained by further: `pan finetune`, `pan grow`, `pan merge`.
#
#     <run>/stages/<stage>    the stage, see the script of its name
#     <run>/checkpoint        its result, like that of `pan train`; of `pan finetune` mostly <run>/adapter
#     <run>/growth.json       of `pan grow` and `pan merge`: what was tried, accepted and rejected, and the bits saved


# bounds of the arguments that say how long they train, for `checked`
TIME = {"seconds": least(0, above=True), "max_steps": least(1), "seed": a_seed}


def find_start(run: Path, start: str | Path) -> Path:
    """The checkpoint that a new run starts from. Raises FileNotFoundError or HubError: there is none; ValueError: the
    run would overwrite it."""
    checkpoint = find_checkpoint(start)
    if checkpoint.resolve() == (run / "checkpoint").resolve():
        raise ValueError(f"{run} would overwrite the checkpoint it starts from; name another folder for the new run.")
    return checkpoint


def run_one_stage(
    stage: Stage, run: Path, start: Path, data: str | Path, settings: dict, progress: bool, encoded: bool = False
) -> Path:
    """Runs a stage from a finished checkpoint.

    Args:
        start: folder of the checkpoint; data: of the recording.
        settings: the stage's arguments that the run keeps to; those that are None are the stage's own, and
            `max_steps` comes before `seconds`.
        encoded: whether what the senses make of the recording is kept until the stage is done.

    Returns:
        the stage's `final` folder.

    Raises:
        ValueError: the recording does not fit the model; nothing has been written then.
    """
    started, folder, trajectories = now(), run / "stages" / stage.name, load_trajectories(data, "train")
    check_fits(PanConfig.from_pretrained(start), PanProcessor.from_pretrained(start), trajectories)
    given = {"model": str(start), "data": str(data), "output_dir": str(folder)} | settings
    given = {name: value for name, value in given.items() if value is not None}
    if "max_steps" in given:
        given.pop("seconds", None)
    args = arguments(stage, progress=progress, encoded=str(folder) if encoded else None, **given)
    args.started = started
    kept = keeping_settings(folder.with_name(f"{stage.name}.settings.json"), given, begun=folder)
    with kept, stage_timer(run / "timing.json", stage.name, seeds=[args.seed], resume=folder.exists()):
        final = run_stage(stage, args, trajectories)
    forget(folder)
    return final


def run_growing_stage(
    stage: Stage, run: Path, start: str | Path, data: str | Path | None, settings: dict, progress: bool
) -> Path:
    """Runs a stage in which tokens are born, and publishes what came of it: the folder of the checkpoint."""
    start = find_start(run, start)
    data = on_disk(data, "dataset") if data is not None else run / "data"
    final = run_one_stage(stage, run, start, data, settings, progress)
    growths = [
        entry["growth"] | {key: entry[key] for key in ("gain", "step", "with", "without") if key in entry}
        for entry in json.loads((final.parent / "log.json").read_text())
        if "growth" in entry
    ]
    write_file(run / "growth.json", json.dumps(growths, indent=1))
    return publish(final, run / "checkpoint", data)


@contextmanager
def keeping_settings(path: Path, settings: dict, begun: Path) -> Iterator[None]:
    """A run keeps to the settings it was begun with, another choice wants another folder; a start that fails before
    there is anything in `begun` leaves none.

    Raises:
        ValueError: other settings stand in `path`.
    """
    is_new = not path.exists()
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    if is_new:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(settings, indent=1))
    before = json.loads(path.read_text())
    if changes := [
        f"{key} was {before.get(key)!r}, is {value!r}" for key, value in settings.items() if before.get(key) != value
    ]:
        raise ValueError(
            f"{path.parent.parent} was begun with other settings ({'; '.join(changes)}); use another run folder."
        )
    try:
        yield
    except BaseException:
        if is_new and not begun.exists():
            path.unlink()
            for folder in made:
                with contextlib.suppress(OSError):  # something else stands in it
                    folder.rmdir()
        raise


def stable_repr(value: Any) -> str:
    """How settings name an object: the same in every process, so without addresses."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def publish(current: Path, checkpoint: Path, data: Path) -> Path:
    """Copies a stage's result to a run's `checkpoint`, whole or not at all. What was published already stays, with
    its card and what it has learned since."""
    if not (current / TRAINING_DATA).exists():
        raise ValueError("No stage trained anything: leave at least one of them in (`skip`).")
    if _saved_at(checkpoint) >= _saved_at(current) > 0:
        return checkpoint
    known = json.loads((current / TRAINING_DATA).read_text())
    known["root"] = address(data) or os.path.relpath(data, checkpoint)
    with whole_folder(checkpoint, replaced=["README.md"]) as temporary:  # the card is of the model before
        if base_folder(current) != current:
            save_checkpoint(temporary, *load(current), before=base_folder(current))  # the adapter is merged
        else:
            shutil.copytree(current, temporary, dirs_exist_ok=True, copy_function=_copy)
        (temporary / TRAINING_DATA).write_text(json.dumps(known, indent=1))
    return checkpoint


def _copy(source: str, target: str) -> None:
    """Parts of a model, which are never written in place, are linked."""
    if Path(source).name in PARTS:
        link(source, target)
    else:
        shutil.copy2(source, target)


def _saved_at(checkpoint: Path) -> float:
    """When a model was saved, in seconds, wherever it was copied to since; 0 where there is none."""
    config = base_folder(checkpoint) / "config.json"
    return config.stat().st_mtime if config.exists() else 0.0
