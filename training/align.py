"""Stage 4: the backbone meets the senses, on trajectories.

`DYNAMICS` trains backbone, readouts and agent heads on codes encoded once, which is most of the learning at a small
part of the cost; `JOINT` then trains everything together from raw observations, with the generative loss (equation 8).

    python -m pan_hf.training.align --model DIR --data DIR --output_dir DIR --seconds 240
    python -m pan_hf.training.align --joint --model DIR --data DIR --output_dir DIR --seconds 30
"""

import copy

import torch

from pan_hf.modeling.state_pan import ABSENT
from pan_hf.training.arguments import Stage
from pan_hf.training.rollouts import choose_latents
from pan_hf.training.sampling import make_encoded, make_raw
from pan_hf.training.stage import main
from pan_hf.training.streaming import some_windows
from pan_hf.training.windows import Windows


def note_refinements(model, windows: Windows) -> None:
    """Lets each image sense keep which finer codes usually stand under its coarser ones: where the finer are not
    predicted, they are the best guess."""
    for name, levels in windows.tensors["codes"].items():
        if model.senses[name].can_grow:
            there = (levels[0] != ABSENT).all(1)
            model.senses[name].note_refinements([level[there] for level in levels])


CODED = 256  # windows whose codes are compared


def keep_codes(model, args=None):
    """An image sense that came to give frames of the training episodes other codes is put back as it was: the backbone
    knows frames by the codes that they had, and a code that turned into its neighbour is one it predicts wrong for as
    long as it is in sight. With a time budget, as many frames are compared as there is time for."""
    before = {name: copy.deepcopy(codec) for name, codec in model.senses.items() if codec.can_grow}

    @torch.no_grad()
    def finish(trained, windows) -> None:
        observation = some_windows(windows, CODED)["observation"]
        for name, sense in before.items():
            frames = observation[name].flatten(0, 1).to(trained.device)
            for part in frames.split(64 if args is None or args.seconds is None else 8):
                codes = (trained.senses[name].encode(part)[0], sense.to(trained.device).encode(part)[0])
                if not all(map(torch.equal, *codes)):
                    trained.senses[name].load_state_dict(sense.state_dict())
                    break
                if args is not None and args.seconds_left() < 0:
                    break

    return finish


DYNAMICS = Stage(
    name="dynamics",
    objective="dynamics",
    trains=r"(?!senses\.|latent_heads\.|switch\.)",
    half=True,
    make_data=make_encoded,
    look=note_refinements,
    streams=True,
    defaults={"learning_rate": 2.5e-3},
)
JOINT = Stage(
    name="joint",
    objective="joint",
    trains=r"(?!switch\.)",
    make_data=make_raw,
    prepare=keep_codes,
    calibrate=choose_latents,
    streams=True,
    # few small batches at a larger rate would shift probabilities that the stage before has settled
    defaults={"learning_rate": 5e-5, "per_device_train_batch_size": 16},
    # an encoder that moves quickly turns codes into other codes faster than the backbone can follow
    slow={"senses.": 0.01},
)


if __name__ == "__main__":
    main(DYNAMICS, joint=JOINT)
