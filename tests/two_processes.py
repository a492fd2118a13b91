"""What each of several processes ends up with: `two_processes.py SCRIPT FOLDER [flags]`, or, several stages one after
the other, `accelerate launch two_processes.py RUNS.json FOLDER`.

Runs a stage and writes the model's tensors as this process holds them to `FOLDER/rank<n>.pt`. `RUNS.json` holds, by
name, the script, the name of the stage in it, and its arguments; tensors go to `FOLDER/<name>-rank<n>.pt`. From the
first run whose name begins with `fsdp` on, weights are shared out; a run whose name ends in `resumed` is broken off
after two steps and started again. A run whose name begins with `own` draws as every run does, the others the noise
that one process with the whole batch draws.
"""

import gc
import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import yaml
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode
from transformers import TrainerCallback

from pan_hf.training import stage as stages
from pan_hf.training import trainer, windows
from pan_hf.training.arguments import COMPLETE, CONFIGS, arguments
from pan_hf.training.distributed import whole_tensor
from pan_hf.training.trainer import PanTrainer


def main():
    gc.freeze()  # what was imported: each stage collects garbage
    script, folder = sys.argv[1], Path(sys.argv[2])
    train, trainers, begun = PanTrainer.train, [], []

    def train_and_remember(self, *args, **kwargs):
        trainers.append(self)
        assert dist.get_world_size() == self.args.world_size == 2
        self.add_callback(Beginning(begun))
        return train(self, *args, **kwargs)

    PanTrainer.train = train_and_remember
    if not script.endswith(".json"):
        sys.argv[1:] = sys.argv[3:]
        module = importlib.import_module(f"pan_hf.training.{script}")
        stages.main(getattr(module, "STAGE", None) or module.DYNAMICS)
        write(trainers[0], folder / "rank")
        return
    is_shared_out = draws_as_one = False
    for name, (module, stage, given) in json.loads(Path(script).read_text()).items():
        if name.startswith("fsdp") and not is_shared_out:
            share_out_weights()
            is_shared_out = True
        if not name.startswith("own") and not draws_as_one:
            draw_as_one()
            draws_as_one = True
        stage = getattr(importlib.import_module(f"pan_hf.training.{module}"), stage)
        if name.endswith("resumed"):
            break_off(stage, arguments(stage, **given), after=2)
        stages.run(stage, arguments(stage, **given))
        assert trainers[-1].is_fsdp_enabled == is_shared_out
        assert begun[-1] == (2 if name.endswith("resumed") else 0)  # where the last of its runs took its first step
        write(trainers[-1], folder / f"{name}-rank")


class Beginning(TrainerCallback):
    """Notes the step that a run goes on from."""

    def __init__(self, begun: list):
        self.begun = begun

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun.append(state.global_step)


class BrokenOff(Exception):
    """As a kill would, before the third step."""


def break_off(stage, args, after: int):
    """Runs a stage for so many steps, and leaves what a kill would."""
    step = PanTrainer.training_step

    def step_or_break(self, *given, **kwargs):
        if self.state.global_step == after:
            raise BrokenOff
        return step(self, *given, **kwargs)

    PanTrainer.training_step = step_or_break
    try:
        stages.run(stage, args)
        raise AssertionError("The stage was not broken off.")
    except BrokenOff:
        dist.barrier()  # the first process writes
        assert (Path(args.output_dir) / f"checkpoint-{after}" / COMPLETE).exists()
    finally:
        PanTrainer.training_step = step


def share_out_weights():
    """What `accelerate launch --config_file accelerate_fsdp.yaml` does on GPUs. Accelerate takes two processes on a
    CPU for DDP whatever they are told, though PyTorch shares weights out there as well; so it is told once more."""
    config = yaml.safe_load((CONFIGS / "accelerate_fsdp.yaml").read_text())["fsdp_config"]
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    renamed = {"FSDP_TRANSFORMER_LAYER_CLS_TO_WRAP": "FSDP_TRANSFORMER_CLS_TO_WRAP"}
    for name, value in config.items():
        told = str(value).lower() if isinstance(value, bool) else str(value)
        os.environ[renamed.get(name.upper(), name.upper())] = told
    AcceleratorState._reset_state()
    start = AcceleratorState.__init__

    def start_sharing(self, *args, **kwargs):
        start(self, *args, **kwargs)
        if kwargs.get("fsdp_plugin") is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, kwargs["fsdp_plugin"]

    AcceleratorState.__init__ = start_sharing


# ---- The noise of one process in several.
#
# Processes draw their own noise, so they train as one does only on average. To show that nothing else differs, here
# whatever is drawn with rows in front is drawn for the rows of all processes, and each takes its own: `torch.rand`,
# `randn`, `randint`, their `_like` forms, `multinomial` and dropout of the default generator.


def draw_as_one():
    """From here on, training draws the noise of one process with the whole batch."""
    step = PanTrainer.training_step

    def step_with_rows(self, model, inputs, *args):
        with RowDraws(dist.get_rank(), dist.get_world_size(), _rows(inputs)):
            return step(self, model, inputs, *args)

    PanTrainer.training_step = step_with_rows
    trainer.noise_seed = lambda seed, step, micro, process: hash((seed, step, micro))
    windows.crop_chances = crop_chances_by_row


def crop_chances_by_row(indices):
    """Crops that depend on a frame alone, whichever batch it came into."""
    return torch.tensor([np.random.default_rng(index).random() for index in indices])


_BY_SHAPE = {torch.rand, torch.randn}
_LIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}


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


def write(trainer, stem):
    model = trainer.accelerator.unwrap_model(trainer.model)
    is_shared = [isinstance(parameter, DTensor) for parameter in model.parameters()]
    assert all(is_shared) if trainer.is_fsdp_enabled else not any(is_shared)
    held = {name: whole_tensor(parameter).clone() for name, parameter in model.named_parameters()}
    torch.save(held, f"{stem}{dist.get_rank()}.pt")


if __name__ == "__main__":
    main()
