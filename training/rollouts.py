"""Windows that are imagined from in training: a beginning to look at, and some steps to imagine."""

from collections.abc import Iterator

import torch
from accelerate.utils import concatenate, recursively_apply, send_to_device
from torch.utils.data import Dataset

from pan_hf.data.windows import read_rows
from pan_hf.modeling.embedding_pan import broadcast_from_main
from pan_hf.modeling.imagination_pan import update_latents_help
from pan_hf.training.streaming import some_windows
from pan_hf.training.windows import Windows

CALIBRATION_WINDOWS = 128
FEW = 1  # windows that are imagined first, to see what one costs
PREPARATION = 0.4  # share of a time budget that examples to learn from may take


def make_rollouts(model, processor, trajectories, args):
    """Windows of raw observations: a beginning to look at, and `horizon` steps to imagine, or as many as the longest
    episode has."""
    tensors, actions = read_rows(trajectories, processor)
    before, longest = model.config.context_steps - 1, int(trajectories.episode_lengths.max()) - 1
    steps = before + max(1, min(args.horizon, longest - before))
    config = model.config
    windows = Windows(trajectories, tensors, actions, steps, False, set(config.prefix_senses), config.actors)
    return windows, torch.ones(len(windows))


class Examples(Dataset):
    """What was imagined once and is learned from many times.

    Args:
        batches: nested dicts of tensors, the arguments of an objective; all rows of `condition` are examples.
        windows: what was imagined from.
    """

    def __init__(self, batches: list[dict], windows: Dataset):
        self.examples, self.windows = concatenate(batches), windows

    def __len__(self) -> int:
        return len(next(iter(self.examples["condition"].values())))

    def __getitems__(self, indices: list[int]) -> dict:
        rows = torch.as_tensor(indices)
        return recursively_apply(lambda values: values[rows], self.examples)


def affordable(rows: torch.Tensor, args, batch_size: int = 64) -> Iterator[torch.Tensor]:
    """Rows in batches. With a time budget, there are no more than are done within `PREPARATION` of it, but one batch
    at least; batches then grow from `FEW` rows on, because nobody knows yet what a row costs."""
    if args.seconds is None:
        yield from rows.split(batch_size)
        return
    first, size = 0, FEW
    while first < len(rows):
        before = args.seconds_left(PREPARATION)
        yield rows[first : first + size]
        first, grown, left = first + size, min(2 * size, batch_size), args.seconds_left(PREPARATION)
        # all processes stop at the same batch, since each trains on what all have made
        if broadcast_from_main(left < (before - left) * grown / size):
            return
        size = grown


def choose_latents(model, windows, args) -> None:
    """Lets a trained model note whether latents help, see [`update_latents_help`], by some windows of its training: as
    many as there is time for, one at least."""
    if not model.latent_heads:
        return
    was_training, count, before = model.training, CALIBRATION_WINDOWS, args.seconds_left()
    model.eval()
    if args.seconds is not None:
        _compare(model, some_windows(windows, FEW))
        left = args.seconds_left(0.98)
        count = min(count, int(FEW * left / (before - args.seconds_left() + 1e-6)))
    if count > FEW:
        _compare(model, some_windows(windows, count))
    model.train(was_training)


def _compare(model, batch: dict) -> None:
    update_latents_help(model, *send_to_device((batch["observation"], batch["action"]), model.device))
