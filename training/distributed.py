"""Weights and optimizer states that processes share out (FSDP): gathered whole into a checkpoint, and dealt out again.

Accelerate's own way writes shards beside the whole model and, on gloo, waits for ever when it reads them. Here a
checkpoint holds files of the same names whether weights were shared out or not.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from pan_hf.modeling import PanModel
from pan_hf.training.optimizers import MUON
from pan_hf.training.tuning import FULL


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may be shared out among processes, whole and on the CPU."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def whole_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights and buffers; every process takes part, or the others would wait for ever."""
    return {name: whole_tensor(tensor) for name, tensor in model.state_dict().items()}


def check_can_be_shared_out(model: nn.Module) -> None:
    """Raises ValueError for a model with an adapter on it: the checkpoints here are whole models."""
    if not isinstance(model, PanModel):
        raise ValueError(
            f"FSDP shares out the weights of a whole world model, not of {type(model).__name__}. To fine-tune an "
            "adapter, launch with accelerate_gpus.yaml, which gives every process the base, or in one process."
        )


def check_needs_no_whole_weights(trainer, tuning: str) -> None:
    """Raises ValueError where processes share out the weights of a Trainer whose stage cannot do with parts. Args:
    tuning, how its backbone is trained."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return
    if tuning != FULL:
        raise ValueError(
            f"`backbone={tuning}` keeps a pretrained backbone by its rows and layers, and processes share them out; "
            "launch without FSDP and DeepSpeed, or train it whole (`backbone=full`)."
        )
    args = trainer.args
    for name, is_needed in (("averaged_share", args.averaged_share > 0), ("optim", args.optim == MUON)):
        if is_needed:
            raise ValueError(
                f"`{name}={getattr(args, name)}` needs whole weights, and processes share them out; leave `{name}` as "
                "it is by default."
            )


@torch.no_grad()
def read_weights(model: nn.Module, folder: str | Path) -> None:
    """Deals the weights and buffers of a checkpoint out to a model that is shared out; every process takes part."""
    whole = PanModel.from_pretrained(folder).state_dict()
    for name, held in model.state_dict().items():
        tensor = whole[name].to(held.device)
        if isinstance(held, DTensor):
            tensor = distribute_tensor(tensor, held.device_mesh, held.placements)
        held.copy_(tensor)


def write_training_state(model: nn.Module, optimizer, scheduler, folder: str | Path) -> None:
    """Writes the optimizer's whole state and the scheduler's, from the first process; every process takes part."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    if dist.get_rank() == 0:
        torch.save(state, Path(folder) / OPTIMIZER_NAME)
        torch.save(scheduler.state_dict(), Path(folder) / SCHEDULER_NAME)


def read_training_state(model: nn.Module, optimizer, scheduler, folder: str | Path) -> None:
    """What `write_training_state` wrote, dealt out again; every process takes part.

    Raises:
        ValueError: the checkpoint was written without FSDP, which keeps the optimizer's state by number.
    """
    path = Path(folder) / OPTIMIZER_NAME
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True) if path.exists() else None
    if state is None or not all(isinstance(name, str) for name in state["state"]):
        raise ValueError(
            f"{folder} was not written with FSDP, so the optimizer cannot go on from it. Launch the stage as it was "
            "launched before, or remove that folder to begin anew."
        )
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, optimizer, state if dist.get_rank() == 0 else {}, options=options)
    scheduler.load_state_dict(torch.load(Path(folder) / SCHEDULER_NAME, weights_only=True))
