"""What each of several processes ends up with: `accelerate launch two_processes.py SCRIPT FOLDER [flags]`.

Runs a stage and writes the model's tensors as this process holds them to `FOLDER/rank<n>.pt`.
"""

import importlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pan_hf.training import stage as stages
from pan_hf.training.trainer import PanTrainer


def main():
    script, folder = sys.argv[1], Path(sys.argv[2])
    sys.argv[1:] = sys.argv[3:]
    module = importlib.import_module(f"pan_hf.training.{script}")
    train, trainers = PanTrainer.train, []

    def train_and_remember(self, *args, **kwargs):
        trainers.append(self)
        assert dist.get_world_size() == 2
        return train(self, *args, **kwargs)

    PanTrainer.train = train_and_remember
    stages.main(getattr(module, "STAGE", None) or module.DYNAMICS)
    model = trainers[0].accelerator.unwrap_model(trainers[0].model)
    held = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.save(held, folder / f"rank{dist.get_rank()}.pt")


if __name__ == "__main__":
    main()
