"""Stage 1: encoder, codes and decoder of each sense, alone, by reconstruction.

python -m pan_hf.training.pretrain_senses --model DIR --data DIR --output_dir DIR --seconds 80
"""

import torch

from pan_hf.data.windows import read_rows
from pan_hf.training.arguments import Stage
from pan_hf.training.stage import main
from pan_hf.training.windows import CroppedFrames


def make_data(model, processor, trajectories, _args=None, stats=None):
    """Crops of frames, where something moves or is rare, with their neighbours in time."""
    tensors, _ = read_rows(trajectories, processor)
    dataset = CroppedFrames(trajectories, tensors, model.config.coded_senses, median=stats and stats.median)
    learned = [name for name, codec in model.senses.items() if codec.can_grow]
    masks = [tensors.get(f"{name}.present", torch.ones(len(dataset), dtype=torch.bool)) for name in learned]
    return dataset, torch.stack(masks).any(0).float()  # a row in which nothing is there teaches nothing


def prepare(model, _args):
    """The rows of codes that are new to the backbone start from what the codes came to stand for."""
    learned = {name: codec for name, codec in model.senses.items() if codec.can_grow}
    new = [name for name, codec in learned.items() if not any(book.started.item() for book in codec.codebooks)]
    return lambda trained, _windows: trained.table.start_code_rows(new)


STAGE = Stage(
    name="senses",
    objective="senses",
    trains=r"senses\.",
    make_data=make_data,
    streams=True,
    defaults={"learning_rate": 2e-3, "per_device_train_batch_size": 64},
    prepare=prepare,
    is_needed=lambda model, args: any(codec.can_grow for codec in model.senses.values()),
    averages=False,
)

if __name__ == "__main__":
    main(STAGE)
