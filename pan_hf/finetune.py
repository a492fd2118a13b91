"""`pan finetune`: a finished world model, here or on the Hub, learns a recording of someone's own.

    <run>/stages/finetune    the stage, see `training/finetune.py`
    <run>/adapter            what it learned, a few MB; `pan evaluate` and `pan plan` put it on its base
    <run>/checkpoint         with `merge`, or without an adapter: a checkpoint like any other
"""

from __future__ import annotations

from pathlib import Path

from pan_hf.adapter_configs import check_family
from pan_hf.build import save_checkpoint
from pan_hf.evaluate import find_checkpoint
from pan_hf.fit import check_fits
from pan_hf.hub import address
from pan_hf.modeling import PanConfig
from pan_hf.results import stage_timer
from pan_hf.tokenization import PanProcessor
from pan_hf.train import keeping_settings, publish
from pan_hf.trajectories import load_trajectories, recording_folder


def finetune(
    run: str | Path,
    start: str | Path,
    data: str | Path | None = None,
    *,
    adapter: str = "lora",
    rank: int = 8,
    seconds: float = 60.0,
    max_steps: int | None = None,
    learning_rate: float | None = None,
    merge: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Trains the dynamics of a finished world model on a recording, through an adapter on its backbone.

    Run again, it goes on after an interruption; run again with `merge` when it is done, it merges.

    Args:
        run: folder of the new run; holds everything afterwards.
        start: a run or checkpoint, or its Hub id; it is left as it is.
        data: a recording, a run with one, or a Hub id; `<run>/data` by default. Only its train split is read.
        adapter (`str`): "lora", "dora", "ia3", or "none" to train all that the dynamics stage trains.
        rank (`int`): of lora and dora.
        seconds (`float`), max_steps (`int`, *optional*): how long to train; `max_steps` makes a run independent of the
            machine's speed.
        learning_rate (`float`, *optional*): its peak, in place of the stage's own.
        merge (`bool`): also write the model with the adapter merged into it, as `<run>/checkpoint`.
        seed (`int`): of everything random.

    Returns:
        `<run>/adapter`, or `<run>/checkpoint` where there is one.

    Raises:
        FileNotFoundError: there is no checkpoint, or no recording.
        HubError: the Hub did not give one of them.
        ValueError: the recording does not fit the model, an unknown adapter, a run that was begun with other settings
            or that would overwrite what it starts from. Nothing has been written then.
    """
    from pan_hf.training.encoded import forget
    from pan_hf.training.finetune import NONE, STAGE
    from pan_hf.training.stage import arguments
    from pan_hf.training.stage import run as run_stage

    run, source = Path(run), find_checkpoint(start)
    folder, recording = run / "stages" / STAGE.name, recording_folder(run / "data" if data is None else data)
    if source.resolve() == (run / "checkpoint").resolve():
        raise ValueError(f"{run} would overwrite the checkpoint it starts from; name another folder for the new run.")
    trajectories = load_trajectories(recording, "train")
    config, processor = PanConfig.from_pretrained(source), PanProcessor.from_pretrained(source)
    check_fits(config, processor, trajectories)
    check_family(config, adapter)
    base = address(source) or str(source.resolve())
    given = {"model": str(source), "base": base, "data": str(recording), "output_dir": str(folder), "seed": seed}
    given |= {"adapter": adapter, "rank": rank} | ({"seconds": seconds} if max_steps is None else {})
    given |= {"max_steps": max_steps} if max_steps is not None else {}
    given |= {"learning_rate": learning_rate} if learning_rate is not None else {}
    stage_arguments, begun = arguments(STAGE, progress=progress, encoded=str(folder), **given), folder.exists()
    with keeping_settings(folder.with_name(f"{STAGE.name}.settings.json"), given, begun=folder):
        with stage_timer(run / "timing.json", STAGE.name, seeds=[seed], resume=begun):
            final = run_stage(STAGE, stage_arguments, trajectories)
    forget(folder)
    if adapter == NONE:
        return publish(final, run / "checkpoint", recording)
    found = publish(final, run / "adapter", recording)
    return _merge(found, run / "checkpoint") if merge else found


def _merge(adapter: Path, checkpoint: Path) -> Path:
    """Writes the checkpoint that an adapter and its base make together."""
    from pan_hf.training.stage import TRAINING_DATA
    from pan_hf.vocabulary import load

    model, processor = load(adapter)
    save_checkpoint(checkpoint, model, processor, {TRAINING_DATA: (adapter / TRAINING_DATA).read_text()})
    return checkpoint
