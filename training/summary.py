"""What a trained world model can do, a line a sense, and what would make it better."""

from __future__ import annotations

import numpy as np
import torch

from pan_hf.data.trajectories import Trajectories, map_columns
from pan_hf.data.windows import WindowReader
from pan_hf.features import feature_of
from pan_hf.metrics import MSE_FLOOR

BLURRED = 25.0  # decibels below which a picture's details are lost
NUM_WINDOWS = 16


@torch.no_grad()
def summary(model, processor, trajectories: Trajectories, num_windows: int = NUM_WINDOWS) -> list[str]:
    """How well each sense is rebuilt from its codes and imagined one step ahead, beside repeating what was seen last.

    Args:
        model ([`PanModel`]), processor ([`PanProcessor`]): of one checkpoint.
        trajectories: episodes to look at, of training mostly: whether a model generalises is for `pan evaluate`.
        num_windows (`int`): windows that are looked at, spread over the episodes.

    Returns:
        `list[str]`: a sentence for each sense of pictures, numbers or symbols, with advice where one is poor.
    """
    reader = WindowReader(trajectories, processor, model)
    starts = trajectories.windows(reader.lead + 1)
    rows = starts[np.linspace(0, len(starts) - 1, min(num_windows, len(starts))).astype(int)] + reader.lead
    batch, was_training = reader.batch(rows, 1), model.training
    model.eval()
    last_action = map_columns(batch["action"], lambda part: part[:, -1:])
    futures = model.simulate(reader.perceive(batch), last_action, temperature=0.0, seed=0)
    state, lines = model.encode(batch["observation"]), []
    for name, sense in model.config.coded_senses.items():
        feature, true = feature_of(sense), batch["observation"][name]
        rebuilt, imagined = model.decode(state, name)[:, -1], futures.decode(name)[:, 0]
        codec = model.senses[name]  # errors are shares of the range of a pixel, or of each number
        errors = [float(codec.squared_shares(each, true[:, -1]).mean()) for each in (rebuilt, imagined, true[:, -2])]
        if feature.is_picture:
            lines.append(f"{name}: {_of_pictures(*(_psnr(error) for error in errors))}.")
        elif feature.is_numeric:
            lines.append(f"{name}: {_of_numbers(*(error**0.5 for error in errors[1:]))}.")
        elif feature.is_symbolic:
            lines.append(f"{name}: {_of_symbols(*(1 - error for error in errors[1:]))}.")
    model.train(was_training)
    return lines


def _psnr(error: float) -> float:
    return -10 * float(np.log10(max(error, MSE_FLOOR)))


def _of_pictures(rebuilt: float, imagined: float, repeated: float) -> str:
    line = f"frames reconstruct at {rebuilt:.1f} dB and are imagined one step ahead at {imagined:.1f} dB "
    line += f"(the frame before: {repeated:.1f} dB)"
    if rebuilt < BLURRED:
        return f"{line}: give the senses more time (`--stage senses.seconds=...`)"
    return line if imagined > repeated else f"{line}: give the dynamics more time (`--stage dynamics.seconds=...`)"


def _of_numbers(imagined: float, repeated: float) -> str:
    line = f"numbers imagined one step ahead are off by {imagined:.2%} of their range (those before: {repeated:.2%})"
    return line if imagined < repeated else f"{line}: give the dynamics more time (`--stage dynamics.seconds=...`)"


def _of_symbols(imagined: float, repeated: float) -> str:
    line = f"{imagined:.1%} of the symbols imagined one step ahead are right (the same as before: {repeated:.1%})"
    is_better = imagined > repeated or imagined == 1
    return line if is_better else f"{line}: give the dynamics more time (`--stage dynamics.seconds=...`)"
