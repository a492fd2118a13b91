"""Stage 3: the diffusion head, alone, on what the backbone would tell it, computed once and kept.

python -m pan_hf.training.pretrain_latent_head --model DIR --data DIR --output_dir DIR --seconds 40
"""

import torch
from torch.utils.data import Dataset

from pan_hf.modeling.belief_pan import State
from pan_hf.modeling.objectives_pan import cache_conditions
from pan_hf.training.align import make_encoded
from pan_hf.training.stage import Stage, main

MOST_CONDITIONS = 8_192  # transitions kept: 16 places x 256 numbers in bfloat16 are 8 KiB each


class Conditions(Dataset):
    """Conditions of the latent head and the latents they should lead to, by sense."""

    def __init__(self, conditions: dict[str, torch.Tensor], latents: dict[str, torch.Tensor]):
        self.conditions, self.latents = conditions, latents

    def __len__(self) -> int:
        return len(next(iter(self.latents.values())))

    def __getitems__(self, indices: list[int]) -> dict:
        rows = torch.as_tensor(indices)
        return {
            "condition": {name: values[rows].float() for name, values in self.conditions.items()},
            "state": {"latents": {name: values[rows] for name, values in self.latents.items()}},
        }


@torch.no_grad()
def make_data(model, processor, trajectories, args=None, batch_size: int = 64):
    """Runs the backbone over windows once and keeps the conditions of the latent head."""
    windows, weights = make_encoded(model, processor, trajectories, args)
    steps = windows.num_steps
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(weights.double(), max(1, MOST_CONDITIONS // steps), True, generator=generator)
    conditions, latents = {name: [] for name in model.latent_heads}, {name: [] for name in model.latent_heads}
    model.eval()
    for rows in drawn.split(batch_size):
        batch = windows.__getitems__(rows.tolist())
        state = State(batch["state"]["codes"], batch["state"]["latents"], batch["state"]["text"])
        found = cache_conditions(model, state, batch["action"], batch["state"].get("prefix"))
        for name, values in found.items():
            conditions[name].append(values.to(torch.bfloat16))
            latents[name].append(state.latents[name][:, 1:].flatten(0, 1))
    model.train()
    dataset = Conditions(
        {n: torch.cat(v) for n, v in conditions.items()}, {n: torch.cat(v) for n, v in latents.items()}
    )
    return dataset, torch.ones(len(dataset))


STAGE = Stage(
    name="latent_head",
    objective="latent_head",
    trains=r"latent_heads\.",
    make_data=make_data,
    defaults={"learning_rate": 2e-3, "per_device_train_batch_size": 64},
    is_needed=lambda model: len(model.latent_heads) > 0,
)

if __name__ == "__main__":
    main(STAGE)
