"""Windows that are imagined from in training: a beginning to look at, and some steps to imagine."""

import torch

from pan_hf.data.windows import read_rows
from pan_hf.modeling.objectives_pan import judge_latents
from pan_hf.training.streaming import some_windows
from pan_hf.training.windows import Windows

CALIBRATION_WINDOWS = 128


def make_rollouts(model, processor, trajectories, args):
    """Windows of raw observations: a beginning to look at, and `horizon` steps to imagine, or as many as the longest
    episode has."""
    if args.horizon < 1:
        raise ValueError(f"`horizon` must be at least 1, got {args.horizon}.")
    tensors, actions = read_rows(trajectories, processor)
    before, longest = model.config.context_steps - 1, int(trajectories.episode_lengths.max()) - 1
    steps = before + max(1, min(args.horizon, longest - before))
    windows = Windows(trajectories, tensors, actions, steps, False, set(model.config.prefix_senses))
    return windows, torch.ones(len(windows))


def choose_latents(model, windows) -> None:
    """Lets a trained model note whether latents help, see [`judge_latents`], by some windows of its training."""
    batch, was_training = some_windows(windows, CALIBRATION_WINDOWS), model.training
    observation = {name: values.to(model.device) for name, values in batch["observation"].items()}
    model.eval()
    judge_latents(model, observation, batch["action"].to(model.device))
    model.train(was_training)
