"""`pan grow`: a trained world model meets a recording with something new in it, and grows codes for it. `pan merge`: a
language model learns sentences of codes, and pairs of them become one token.

    <run>/stages/growth     the stage of `pan grow`, see `training/grow.py`
    <run>/stages/sentences  that of `pan merge`, see `training/sentences.py`
    <run>/checkpoint        its result, like that of `pan train`
    <run>/growth.json       what was tried, accepted and rejected, and the bits an observation it saves
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pan_hf.evaluate import find_checkpoint
from pan_hf.hub import on_disk
from pan_hf.results import stage_timer
from pan_hf.train import keeping_settings, publish
from pan_hf.trajectories import load_trajectories


def grow(
    run: str | Path,
    start: str | Path,
    data: str | Path | None = None,
    *,
    seconds: float = 60.0,
    max_steps: int | None = None,
    every: int = 50,
    threshold: float | None = None,
    max_new: int = 32,
    prune: bool = False,
    names: list[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Goes on training a world model on a recording, growing codes for what none describes.

    Args:
        run: folder of the new run; holds everything afterwards.
        start: the run or checkpoint to start from, or its Hub id; it is left as it is.
        data: the recording, a folder or a Hub id; `<run>/data` by default.
        seconds (`float`), max_steps (`int`, *optional*): how long to train; `max_steps` makes a run independent of the
            machine's speed.
        every (`int`): steps between attempts to grow.
        threshold (`float`, *optional*): see [`PanModel.learn`].
        max_new (`int`): codes at most.
        names (`list[str]`, *optional*): words to make live, each a word or "word=what it means", in known words.
        prune (`bool`): also try to retire codes that are unused, or twins of others.
        seed (`int`): of everything random.

    Returns:
        the folder of the finished checkpoint.

    Raises:
        FileNotFoundError: there is no checkpoint, or no recording.
        ValueError: the recording does not fit the model, the run was begun with other settings or would overwrite what
            it starts from.
    """
    from pan_hf.training.grow import STAGE

    given: dict[str, Any] = {"grow_every": every, "max_new": max_new, "prune": prune, "names": names}
    given |= {} if threshold is None else {"threshold": threshold}
    return _run(STAGE, Path(run), start, data, given, seconds, max_steps, seed, progress)


def merge(
    run: str | Path,
    start: str | Path,
    data: str | Path | None = None,
    *,
    parts: list[str] | None = None,
    chunk: int = 1,
    window: int = 2,
    seconds: float = 60.0,
    max_steps: int | None = None,
    every: int = 200,
    count: int = 16,
    trial_steps: int = 50,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Trains the language model of a checkpoint on sentences of codes, merging what often stands side by side.

    Args:
        run, start, data, seconds, max_steps, seed: as for `grow`.
        parts (`list[str]`, *optional*): senses, or "action"; all that have codes by default.
        chunk (`int`): steps of vectors and actions in a sentence.
        window (`int`): sentences of each part that are read together.
        every (`int`): steps between attempts to merge.
        count (`int`): merged tokens of a part in an attempt; 0 for none.
        trial_steps (`int`): how long either side of a trial is trained, in steps of the side without new merges.

    Returns:
        the folder of the finished checkpoint.

    Raises:
        FileNotFoundError, ValueError: as for `grow`; or parts that have no codes, or windows that are too long.
    """
    from pan_hf.training.sentences import STAGE

    given = {"parts": parts, "chunk": chunk, "window": window, "merge_every": every, "merge_count": count}
    given |= {"trial_steps": trial_steps}
    return _run(STAGE, Path(run), start, data, given, seconds, max_steps, seed, progress)


def _run(stage, run: Path, start, data, given: dict, seconds, max_steps, seed: int, progress: bool) -> Path:
    """Runs a stage that grows from a finished checkpoint, and publishes what came of it."""
    from pan_hf.training.stage import arguments
    from pan_hf.training.stage import run as run_stage
    from pan_hf.training.trainer import write_text

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
        entry["growth"] | {"gain": entry["gain"], "step": entry["step"]}
        | {side: entry[side] for side in ("with", "without") if side in entry}
        for entry in log
        if "growth" in entry
    ]
    write_text(run / "growth.json", json.dumps(growths, indent=1))
    return publish(final, run / "checkpoint", data)
