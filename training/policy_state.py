"""What the training of a policy goes on from: weights, optimizer and counts, in one safetensors file, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

STATE = "training.safetensors"  # beside the policy
SAVE_SECONDS = 30.0  # between two writes; the last state is always written


def pack(network: torch.nn.Module, optimizer: torch.optim.Optimizer, counts: Any) -> bytes:
    """The content of the file. Args: counts, whatever JSON can say of how far training is."""
    tensors = {f"policy.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, held in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in held.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(tensors, {"counts": json.dumps(counts)})


def unpack(path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Takes up what `pack` made; returns its counts.

    Raises:
        ValueError: the file is damaged, or of another network.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            counts = json.loads(file.metadata()["counts"])
        network.load_state_dict(
            {name[len("policy.") :]: tensors[name] for name in tensors if name.startswith("policy.")}
        )
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, what = name.split(".", 2)
                state.setdefault(int(index), {})[what] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        return counts
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove {path.parent} and train the policy again.") from error
