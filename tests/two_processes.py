"""What each of several processes ends up with: `accelerate launch two_processes.py SCRIPT FOLDER [flags]`, or, several
stages one after the other, `accelerate launch two_processes.py RUNS.json FOLDER`.

Runs a stage and writes the model's tensors as this process holds them to `FOLDER/rank<n>.pt`. `RUNS.json` holds, by
name, the script, the name of the stage in it, and its arguments; tensors go to `FOLDER/<name>-rank<n>.pt`. From the
first run whose name begins with `fsdp` on, weights are shared out; a run whose name ends in `resumed` is broken off
after two steps and started again.
"""

import importlib
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from pan_hf.training import stage as stages
from pan_hf.training.arguments import COMPLETE, CONFIGS, arguments
from pan_hf.training.distributed import whole_tensor
from pan_hf.training.trainer import PanTrainer


def main():
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
    is_shared_out = False
    for name, (module, stage, given) in json.loads(Path(script).read_text()).items():
        if name.startswith("fsdp") and not is_shared_out:
            share_out_weights()
            is_shared_out = True
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


def write(trainer, stem):
    model = trainer.accelerator.unwrap_model(trainer.model)
    is_shared = [isinstance(parameter, DTensor) for parameter in model.parameters()]
    assert all(is_shared) if trainer.is_fsdp_enabled else not any(is_shared)
    held = {name: whole_tensor(parameter).clone() for name, parameter in model.named_parameters()}
    torch.save(held, f"{stem}{dist.get_rank()}.pt")


if __name__ == "__main__":
    main()
