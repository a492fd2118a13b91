"""Stage 5: the switch learns how much of the next state to predict, and with what.

`WARM_UP` imagines every candidate set of blocks from some beginnings and learns from what each costs; `REINFORCE` then
compares rollouts of the same beginning with one another (group-relative policy gradient). Nothing but the switch is
trained.

    python -m pan_hf.training.reinforce --warm_up --model DIR --data DIR --output_dir DIR --seconds 20
    python -m pan_hf.training.reinforce --model DIR --data DIR --output_dir DIR --seconds 60
"""

import torch

from pan_hf.modeling.imagination_pan import split_window, switch_examples
from pan_hf.training.arguments import RolloutArguments, Stage
from pan_hf.training.rollouts import Examples, affordable, make_rollouts
from pan_hf.training.stage import main

MOST_BEGINNINGS = 256  # of which every candidate is imagined for the warm-up


@torch.no_grad()
def make_examples(model, processor, trajectories, args):
    """Every candidate set of blocks imagined from some beginnings, once."""
    windows, weights = make_rollouts(model, processor, trajectories, args)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(weights.double(), min(MOST_BEGINNINGS, len(windows)), generator=generator)
    was_training, batches = model.training, []
    model.eval()
    for rows in affordable(drawn, args):
        batch = windows.__getitems__(rows.tolist())
        batch.pop("importance")
        batches.append({"condition": switch_examples(model, *split_window(model, **batch))})
    model.train(was_training)
    examples = Examples(batches, windows)
    return examples, torch.ones(len(examples))


WARM_UP = Stage(
    name="switch",
    objective="switch_warm_up",
    trains=r"switch\.",
    make_data=make_examples,
    defaults={"learning_rate": 3e-3, "per_device_train_batch_size": 128},
    arguments=RolloutArguments,
)
REINFORCE = Stage(
    name="reinforce",
    objective="switch",
    trains=r"switch\.",
    make_data=make_rollouts,
    defaults={"learning_rate": 1e-3, "per_device_train_batch_size": 4},
    arguments=RolloutArguments,
)

if __name__ == "__main__":
    main(REINFORCE, warm_up=WARM_UP)
