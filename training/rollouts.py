"""Windows that are imagined from in training: a beginning to look at, and some steps to imagine."""

import torch
from accelerate.utils import concatenate, recursively_apply
from torch.utils.data import Dataset

from pan_hf.data.windows import read_rows
from pan_hf.modeling.objectives_pan import judge_latents
from pan_hf.training.streaming import some_windows
from pan_hf.training.windows import Windows

CALIBRATION_WINDOWS = 128


def make_rollouts(model, processor, trajectories, args):
    """Windows of raw observations: a beginning to look at, and `horizon` steps to imagine, or as many as the longest
    episode has."""
    tensors, actions = read_rows(trajectories, processor)
    before, longest = model.config.context_steps - 1, int(trajectories.episode_lengths.max()) - 1
    steps = before + max(1, min(args.horizon, longest - before))
    windows = Windows(trajectories, tensors, actions, steps, False, set(model.config.prefix_senses))
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


def choose_latents(model, windows) -> None:
    """Lets a trained model note whether latents help, see [`judge_latents`], by some windows of its training."""
    batch, was_training = some_windows(windows, CALIBRATION_WINDOWS), model.training
    observation = {name: values.to(model.device) for name, values in batch["observation"].items()}
    model.eval()
    judge_latents(model, observation, batch["action"].to(model.device))
    model.train(was_training)
