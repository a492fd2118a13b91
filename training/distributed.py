"""Weights and optimizer states that processes share out (FSDP): gathered whole into a checkpoint, and dealt out again.

Accelerate's own way writes shards beside the whole model and, on gloo, waits for ever when it reads them. Here a
checkpoint holds files of the same names whether weights were shared out or not.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.overrides import TorchFunctionMode
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from pan_hf.modeling import PanModel
from pan_hf.training.optimizers import MUON


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


def check_needs_no_whole_weights(trainer) -> None:
    """Raises ValueError where processes share out the weights of a Trainer whose stage cannot do with parts."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return
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


# ---- The same random numbers for a row of the batch, in however many processes it is trained.
#
# All processes have the same seed, so each would draw the same noise for its own first row, and none would train as
# one process with the whole batch does. Here whatever is drawn with rows in front is drawn for the rows of all
# processes, and each takes its own. That covers `torch.rand`, `randn`, `randint`, their `_like` forms, `multinomial`
# and dropout of the default generator; a draw with a generator of its own is left alone.


_BY_SHAPE = {torch.rand, torch.randn}
_LIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}


def row_draws(accelerator, batch: dict) -> AbstractContextManager:
    """While it is open, draws are those of one process with the whole batch. Args: batch, of this process."""
    if accelerator.num_processes == 1:
        return nullcontext()
    return RowDraws(accelerator.process_index, accelerator.num_processes, _rows(batch))


def _rows(batch) -> int:
    """Rows of a batch: of its first tensor, however deep."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return len(batch)


class RowDraws(TorchFunctionMode):
    """Draws for the rows of all processes, and takes those of this one.

    Args:
        index, count (`int`): of this process, of all.
        rows (`int`): of a batch; a draw whose first size is a multiple of it is one for rows.
    """

    def __init__(self, index: int, count: int, rows: int):
        super().__init__()
        self.index, self.count, self.rows = index, count, rows

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if func in _BY_SHAPE:
            return self._by_shape(func, args, kwargs)
        if func in _LIKE:
            given = {"dtype": args[0].dtype, "device": args[0].device} | kwargs
            return self._by_shape(_LIKE[func], (args[0].shape,), given)
        if func is torch.randint:
            return self._randint(args, kwargs)
        if func is torch.multinomial and args[0].dim() == 2 and (kwargs.get("num_samples") or args[1]) == 1:
            return self._multinomial(args[0])
        if func is torch.nn.functional.dropout:
            return self._dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _is_for_rows(self, shape) -> bool:
        return len(shape) > 0 and shape[0] > 0 and shape[0] % self.rows == 0

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn.chunk(self.count)[self.index]

    def _by_shape(self, func, args: tuple, kwargs: dict) -> Tensor:
        shape = args[0] if args and isinstance(args[0], (tuple, list)) else args
        if not self._is_for_rows(shape):
            return func(*args, **kwargs)
        return self._own(func((shape[0] * self.count, *shape[1:]), **kwargs))

    def _randint(self, args: tuple, kwargs: dict) -> Tensor:
        *bounds, shape = args
        if not self._is_for_rows(shape):
            return torch.randint(*args, **kwargs)
        many = (shape[0] * self.count, *shape[1:])
        return self._own(torch.randint(*bounds, many, **kwargs))  # type: ignore[call-overload]

    def _multinomial(self, chances: Tensor) -> Tensor:
        """One draw a row, as `torch.multinomial` itself makes it: the largest of chances over exponential noise."""
        if not self._is_for_rows(chances.shape):
            return torch.multinomial(chances, 1)
        noise = torch.empty(len(chances) * self.count, chances.shape[1], dtype=chances.dtype, device=chances.device)
        return (chances / self._own(noise.exponential_())).argmax(1, keepdim=True)

    def _dropout(self, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not (training and p and self._is_for_rows(values.shape)):
            return torch.nn.functional.dropout(values, p, training, inplace)
        ones = torch.ones(len(values) * self.count, *values.shape[1:], dtype=values.dtype, device=values.device)
        return values * self._own(torch.nn.functional.dropout(ones, p))
