"""What a stage's `--optim` names: any optimizer of Transformers, or `muon`.

With `muon`, hidden weights are Muon's, and vocabulary rows, positions, biases and norms AdamW's, at one learning rate.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.pytorch_utils import Conv1D

MUON = "muon"


def hidden_weights(model: PreTrainedModel) -> set[str]:
    """Names of the matrices between the vocabulary and itself: weights of linear and convolutional layers."""
    words = model.get_output_embeddings()
    outside = set() if words is None else {id(words.weight)}
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, Conv1D)) and id(module.weight) not in outside
    }


def build_optimizer(
    model: PreTrainedModel, args: TrainingArguments, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The optimizer that `args.optim` names.

    Args:
        groups: of parameters by name, `{"params": {name: parameter}, "lr": ..., "weight_decay": ...}`.

    Raises:
        ValueError: one of Transformers' that chooses its parameters itself.
    """
    if args.optim == MUON:
        hidden, parts = hidden_weights(model), []
        for group in groups:
            for is_hidden in (True, False):
                chosen = [parameter for name, parameter in group["params"].items() if (name in hidden) == is_hidden]
                if chosen:
                    parts.append(group | {"params": chosen, "use_muon": is_hidden})
        return Muon(parts, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if {"params", "model", "optimizer_dict"} & set(settings):
        raise ValueError(f"A stage chooses what it trains, and `optim={args.optim}` does too; take another optimizer.")
    return kind([group | {"params": [*group["params"].values()]} for group in groups], **settings)


# ---- The mean of the weights of many steps (Polyak and Juditsky 1992; Izmailov et al. 2018), instead of the last
# ones.
#
# A learning rate high enough to get anywhere keeps weights moving about the place where the loss is least, and what a
# world with chance in it makes likely moves along. A rate that falls stops them at one point near that place; the mean
# of their ways is nearer to it, in as many steps.


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


# ---- Muon (Jordan et al. 2024): steps of one size in every direction of a hidden weight.
#
# AdamW sizes the step of each number by itself, so directions of a weight that are rarely called for are learned late.
# Muon makes the singular values of the whole matrix's momentum alike, by products instead of a decomposition.
# PyTorch's own, and those of libraries, make them in bfloat16, which takes a CPU without it thirty times as long, and
# take weights of convolutions not at all or one by one; here all of one shape are done at once, in float32.


MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the polynomial that takes singular values to about 1, by its author
SIZE = 0.2  # root mean square of a step, in learning rates, about what AdamW's come to (Liu et al. 2025)


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups with `use_muon`, whose parameters have two dimensions or more: the first, and all
    others as one.

    Args: those of AdamW; each group says `use_muon` (`bool`), and has a learning rate and weight decay of its own.
    """

    @torch.no_grad()
    def step(self, closure=None):
        hidden = [group for group in self.param_groups if group["use_muon"]]
        everything, self.param_groups = self.param_groups, [g for g in self.param_groups if not g["use_muon"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = everything
        for group in hidden:
            self._step_hidden(group)
        return loss

    def _step_hidden(self, group: dict) -> None:
        by_shape: dict[tuple, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:  # AdamW, which loads it, counts steps in all states
                state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(parameter)}
            state["step"] += 1
            momentum = state["momentum"]
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            ahead = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
            wide = ahead.mT if ahead.shape[0] > ahead.shape[1] else ahead
            by_shape[wide.device, *wide.shape].append((parameter, wide))
        for (_, _, longest), members in by_shape.items():
            steps = orthogonal(torch.stack([ahead.float() for _, ahead in members]))
            for (parameter, _), step in zip(members, steps, strict=True):
                step = step if parameter.shape[0] == step.shape[0] else step.mT
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step.reshape(parameter.shape), alpha=-group["lr"] * SIZE * longest**0.5)


def orthogonal(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """Wide matrices `(N, a, b)`, a <= b, with their singular values brought to about 1 (0.7 to 1.2), by a
    Newton-Schulz iteration."""
    first, second, third = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x
