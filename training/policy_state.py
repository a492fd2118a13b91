"""The folder of a policy while it is trained: the policy, its log, curves and card, and what training goes on from,
which is weights, optimizer and counts in one safetensors file, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pan_hf.agents.policy import Policy
from pan_hf.files import finish_writing, read_json
from pan_hf.reporting.learning import learning_curves

STATE = "training.safetensors"  # beside the policy
SAVE_SECONDS = 30.0  # between two writes; the last state is always written


def save_training(
    folder: Path,
    policy: Policy,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    counts: Any,
    log: list[dict[str, Any]],
    story: str,
    step: str,
) -> None:
    """Writes a policy, how it came to be, and what its training goes on from, whole or not at all.

    Args:
        folder: of the policy.
        policy ([`Policy`]): as it is now; its `about` is on the card.
        network, optimizer: what is trained.
        counts: whatever JSON can say of how far training is.
        log: what was measured, the last at the end.
        story (`str`): what its card begins with: a title, and how it was trained.
        step (`str`): what a step of the log is.
    """
    files: dict[str, str | bytes] = {
        STATE: _pack(network, optimizer, counts),
        "log.json": json.dumps(log, indent=1),
        "curves.svg": learning_curves(log, step),
        "README.md": _card(story, policy.about, log[-1]),
    }
    policy.save(folder, files)


def resume_training(
    folder: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Any, list[dict[str, Any]]] | None:
    """Takes up what `save_training` left; its counts and its log, or None where there is nothing.

    Raises:
        ValueError: it is damaged, or of another network.
    """
    finish_writing(folder)
    if not (folder / STATE).exists():
        return None
    return _unpack(folder / STATE, network, optimizer), read_json(folder / "log.json", list)


def _card(story: str, about: dict[str, Any], last: dict[str, Any]) -> str:
    """The card of a policy. Args: about, how it was trained; last, its last measurement; story, see above."""
    return f"""---
library_name: pan_hf
pipeline_tag: reinforcement-learning
---
{story}
`policy.safetensors` and `policy.json` are all it needs. `training.safetensors` holds the optimizer, to go on from.

![curves](curves.svg)

Its last measurement

```json
{json.dumps(last, indent=1)}
```

Trained with

```json
{json.dumps(about, indent=1)}
```
"""


def _pack(network: torch.nn.Module, optimizer: torch.optim.Optimizer, counts: Any) -> bytes:
    """The content of the file. Args: counts, whatever JSON can say of how far training is."""
    tensors = {f"policy.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, held in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in held.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(tensors, {"counts": json.dumps(counts)})


def _unpack(path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Takes up what `_pack` made; returns its counts.

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
