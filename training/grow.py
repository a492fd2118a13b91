"""Growth in training: a recording that holds something new, codes for it on a schedule, and a model that learns them.
Words that a person names are born at the first attempt.

It is the joint stage, in which new codes are tried every so many steps and stay if they make held-out windows shorter
to describe. The last tenth of the training episodes is held out for that; no gradient is taken on it.

    python -m pan_hf.training.grow --model DIR --data DIR --output_dir DIR --seconds 60 --grow_every 50
"""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerCallback

from pan_hf.arguments import checked
from pan_hf.data.trajectories import Trajectories
from pan_hf.modeling import PanModel
from pan_hf.tokenization import PanProcessor
from pan_hf.training.arguments import Stage, last_checkpoint
from pan_hf.training.growth_callback import GrowthArguments, GrowthCallback, candidates_and_held_out, in_last_episodes
from pan_hf.training.rollouts import choose_latents
from pan_hf.training.run_folder import TIME, run_growing_stage
from pan_hf.training.sampling import make_raw
from pan_hf.training.stage import main
from pan_hf.training.windows import Windows


def make_data(
    model: PanModel, processor: PanProcessor, trajectories: Trajectories, _args: GrowthArguments | None = None
):
    """Raw windows; those of the last episodes are never drawn."""
    windows, weights = make_raw(model, processor, trajectories)
    windows.is_held_out = in_last_episodes(trajectories, windows.rows.numpy())
    return windows, weights * ~windows.is_held_out


def callbacks(model: PanModel, windows: Windows, args: GrowthArguments) -> list[TrainerCallback]:
    """The one that grows. Raises ValueError for names that are words already, unless this run gave them."""
    taken = [name for name in args.named() if model.processor.tokenizer.has_word(name)]
    if taken and not last_checkpoint(Path(args.output_dir)):
        raise ValueError(f"{taken} are words already; choose other names.")
    return [GrowthCallback(model, windows, *candidates_and_held_out(windows, args.seed), args)]


STAGE = Stage(
    name="growth",
    objective="joint",
    trains=r"(?!switch\.)",
    make_data=make_data,
    callbacks=callbacks,
    calibrate=choose_latents,
    arguments=GrowthArguments,
    defaults={"learning_rate": 2e-4, "per_device_train_batch_size": 16},
    slow={"senses.": 0.01},
    averages=False,
)


@checked(**TIME)
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
    """Trains on a recording with something new in it, growing codes for what none describes: writes growth.json.

    Args:
        run: folder of the new run; holds everything afterwards.
        start: the run or checkpoint to start from, or its Hub id; it is left as it is.
        data: the recording, a folder or a Hub id; `<run>/data` by default.
        seconds (`float`): how long to train.
        max_steps (`int`, *optional*): how long to train, in steps; a run is then independent of the machine's speed.
        every (`int`): steps between attempts to grow.
        threshold (`float`, *optional*): distance from which a piece of an image is novel, see [`PanModel.learn`].
        max_new (`int`): codes at most.
        names (`list[str]`, *optional*): words to make live, each a word or "word=what it means", in known words.
        prune (`bool`): also try to retire codes that are unused, or twins of others.
        seed (`int`): of everything random.
        progress (`bool`): show progress bars.

    Returns:
        the folder of the finished checkpoint.

    Raises:
        FileNotFoundError: there is no checkpoint, or no recording.
        ValueError: the recording does not fit the model, the run was begun with other settings or would overwrite what
            it starts from.
    """
    settings = {"grow_every": every, "threshold": threshold, "max_new": max_new, "prune": prune, "names": names}
    settings |= {"seconds": seconds, "max_steps": max_steps, "seed": seed}
    return run_growing_stage(STAGE, Path(run), start, data, settings, progress)


if __name__ == "__main__":
    main(STAGE)
