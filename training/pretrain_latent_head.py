"""Stage 3: the diffusion head, alone, on what the backbone would tell it, computed once and kept.

python -m pan_hf.training.pretrain_latent_head --model DIR --data DIR --output_dir DIR --seconds 40
"""

import torch

from pan_hf.modeling.imagination_pan import latent_examples
from pan_hf.training.arguments import RolloutArguments, Stage
from pan_hf.training.rollouts import Examples, affordable, choose_latents, make_rollouts
from pan_hf.training.stage import main

MOST_CONDITIONS = 4_096  # transitions kept: 16 patch tokens x 256 numbers in bfloat16 are 8 KiB each


@torch.no_grad()
def make_data(model, processor, trajectories, args):
    """Imagines from some beginnings once, and keeps the conditions of the latent head and what was truly seen."""
    windows, _ = make_rollouts(model, processor, trajectories, args)
    steps = windows.num_steps - model.config.context_steps + 1
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(windows), (max(1, MOST_CONDITIONS // steps),), generator=generator)
    kept = []
    model.eval()
    for rows in affordable(drawn, args):
        batch = windows.__getitems__(rows.tolist())
        for step in latent_examples(model, batch["observation"], batch["action"]):
            step["condition"] = {name: values.to(torch.bfloat16) for name, values in step["condition"].items()}
            kept.append(step)
    model.train()
    dataset = Examples(kept, windows)
    return dataset, torch.ones(len(dataset))


STAGE = Stage(
    name="latent_head",
    objective="latent_head",
    trains=r"latent_heads\.",
    make_data=make_data,
    defaults={"learning_rate": 2e-3, "per_device_train_batch_size": 16},
    arguments=RolloutArguments,
    calibrate=lambda model, dataset, args: choose_latents(model, dataset.windows, args),
    is_needed=lambda model, args: len(model.latent_heads) > 0,
)

if __name__ == "__main__":
    main(STAGE)
