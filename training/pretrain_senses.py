"""Stage 1: encoder, codes and decoder of each sense, alone, by reconstruction.

python -m pan_hf.training.pretrain_senses --model DIR --data DIR --output_dir DIR --seconds 80
"""

import torch

from pan_hf.training.stage import Stage, main
from pan_hf.training.windows import CroppedFrames, sense_tensors


def make_data(model, processor, trajectories):
    """Crops of frames, where something moves or is rare, with their neighbours in time."""
    tensors = sense_tensors(trajectories, model, processor.tokenizer)
    senses = model.config.place_senses
    dataset = CroppedFrames(trajectories, {name: tensors[name] for name in senses}, senses)
    return dataset, torch.ones(len(dataset))


STAGE = Stage(
    name="senses",
    objective="senses",
    trains=r"senses\.",
    make_data=make_data,
    defaults={"learning_rate": 2e-3, "per_device_train_batch_size": 64},
    is_needed=lambda model: any(sense.kind == "image" for sense in model.config.place_senses.values()),
)

if __name__ == "__main__":
    main(STAGE)
