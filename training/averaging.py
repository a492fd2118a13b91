"""The mean of the weights of many steps (Polyak and Juditsky 1992; Izmailov et al. 2018), instead of the last ones.

A learning rate high enough to get anywhere keeps weights moving about the place where the loss is least, and what a
world with chance in it makes likely moves along. A rate that falls stops them at one point near that place; the mean
of their ways is nearer to it, in as many steps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn
from transformers import TrainerCallback

FILE = "averaged.safetensors"


class WeightAverage(TrainerCallback):
    """Keeps the mean of what a stage trains over the last steps of its budget, and puts it in place at the end.

    Args:
        model (`nn.Module`): whose parameters with a gradient are averaged; buffers stay as they are.
        budget ([`Budget`]): says which steps count.
        folder (`Path`): of the stage, with its checkpoints; a resumed run goes on with the mean of the last one.
    """

    def __init__(self, model: nn.Module, budget, folder: Path):
        self.budget, self.folder = budget, folder
        self._trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
        self._mean = AveragedModel(self._trained, multi_avg_fn=get_swa_multi_avg_fn())

    def on_train_begin(self, args, state, control, **kwargs):
        kept = self.folder / f"checkpoint-{state.global_step}" / FILE
        if state.global_step and kept.exists():
            self._mean.load_state_dict(load_file(kept))

    def on_step_end(self, args, state, control, **kwargs):
        if self.budget.is_averaged(state.global_step):
            self._mean.update_parameters(self._trained)

    @torch.no_grad()
    def on_train_end(self, args, state, control, **kwargs):
        if self._mean.n_averaged:
            for parameter, mean in zip(self._trained, self._mean.module, strict=True):
                parameter.copy_(mean)

    def save(self, checkpoint: Path) -> None:
        """Writes the mean so far into a checkpoint that is not yet whole."""
        save_file(self._mean.state_dict(), checkpoint / FILE)
