"""The language model alone, on sentences of codes, whose pairs may become one token (section 5.2 of "Critiques of
World Models").

Every so many steps merges are tried for each part: the model goes on twice from the same weights, with the merges and
without, and reads equally many tokens. The merges stay, with the weights that learned them, if held-out windows then
take fewer bits; if not, the model is bit for bit what it was.

    python -m pan_hf.training.merge --model DIR --data DIR --output_dir DIR --seconds 60 --parts camera

The backbone's weights are moved: a world model's dynamics are trained after this stage, not before it.
"""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerCallback

from pan_hf.arguments import checked
from pan_hf.data.trajectories import Trajectories
from pan_hf.modeling import PanConfig, PanModel
from pan_hf.tokenization import PanProcessor
from pan_hf.training.arguments import Stage
from pan_hf.training.growth_callback import candidates_and_held_out, in_last_episodes
from pan_hf.training.merge_callback import MergeCallback
from pan_hf.training.run_folder import TIME, find_start, run_growing_stage
from pan_hf.training.stage import main
from pan_hf.training.token_windows import SentenceArguments, SentenceWindows, coded_parts


def make_data(model: PanModel, processor: PanProcessor, trajectories: Trajectories, args: SentenceArguments):
    """Windows of sentences, drawn alike; those of the last episodes decide on merges and are never drawn."""
    windows = SentenceWindows(model, processor, trajectories, args.parts, args.chunk, args.window)
    windows.is_held_out = in_last_episodes(trajectories, windows.rows)
    return windows, (~windows.is_held_out).double()


def callbacks(model: PanModel, windows: SentenceWindows, args: SentenceArguments) -> list[TrainerCallback]:
    """The one that merges."""
    return [MergeCallback(model, windows, *candidates_and_held_out(windows, args.seed), args)]


STAGE = Stage(
    name="sentences",
    objective="sentences",
    trains=r"language_model\.",
    make_data=make_data,
    callbacks=callbacks,
    arguments=SentenceArguments,
    defaults={"learning_rate": 1e-3, "per_device_train_batch_size": 32},
    averages=False,
)


@checked(**TIME)
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
    """Trains the language model on sentences of codes, merging pairs where that saves bits: writes growth.json.

    This moves the backbone's weights: train the dynamics of a world model after it, not before.

    Args:
        run: folder of the new run; holds everything afterwards.
        start: the run or checkpoint to start from, or its Hub id; it is left as it is.
        data: the recording, a folder or a Hub id; `<run>/data` by default.
        parts (`list[str]`, *optional*): senses, or "action"; all that have codes by default.
        chunk (`int`): steps of vectors and actions in a sentence.
        window (`int`): sentences of each part that are read together.
        seconds (`float`): how long to train, trials included.
        max_steps (`int`, *optional*): how long to train, in steps; a run is then independent of the machine's speed.
        every (`int`): steps between attempts to merge.
        count (`int`): merged tokens of a part in an attempt; 0 for none.
        trial_steps (`int`): how long either side of a trial is trained, in steps of the side without new merges.
        seed (`int`): of everything random.
        progress (`bool`): show progress bars.

    Returns:
        the folder of the finished checkpoint.

    Raises:
        FileNotFoundError, ValueError: as for `grow`; or parts that have no codes, or windows that are too long.
    """
    coded_parts(PanConfig.from_pretrained(find_start(Path(run), start)), parts)  # what is wrong is said before a start
    settings: dict = {"parts": parts, "chunk": chunk, "window": window, "merge_every": every, "merge_count": count}
    settings |= {"trial_steps": trial_steps, "seconds": seconds, "max_steps": max_steps, "seed": seed}
    return run_growing_stage(STAGE, Path(run), start, data, settings, progress)


if __name__ == "__main__":
    main(STAGE)
