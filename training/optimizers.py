"""What a stage's `--optim` names: any optimizer of Transformers, or `muon`.

With `muon`, hidden weights are Muon's, and vocabulary rows, positions, biases and norms AdamW's, at one learning rate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D

from pan_hf.training.muon import Muon

MUON = "muon"


def hidden_weights(model: nn.Module) -> set[str]:
    """Names of the matrices between the vocabulary and itself: weights of linear and convolutional layers."""
    words = model.get_output_embeddings()
    outside = set() if words is None else {id(words.weight)}
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, Conv1D)) and id(module.weight) not in outside
    }


def build_optimizer(model: nn.Module, args: TrainingArguments, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer that `args.optim` names.

    Args:
        groups: of parameters by name, `{"params": {name: parameter}, "lr": ..., "weight_decay": ...}`.

    Raises:
        ValueError: one of Transformers' that chooses its parameters itself.
    """
    if args.optim == MUON:
        return _build_muon(model, args, groups)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if {"params", "model", "optimizer_dict"} & set(settings):
        raise ValueError(f"A stage chooses what it trains, and `optim={args.optim}` does too; take another optimizer.")
    return kind([group | {"params": [*group["params"].values()]} for group in groups], **settings)


def _build_muon(model: nn.Module, args: TrainingArguments, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    hidden, parts = hidden_weights(model), []
    for group in groups:
        for is_hidden in (True, False):
            chosen = [parameter for name, parameter in group["params"].items() if (name in hidden) == is_hidden]
            if chosen:
                parts.append(group | {"params": chosen, "use_muon": is_hidden})
    return Muon(parts, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon)
