"""Stage 4: the backbone meets the senses, on trajectories.

`DYNAMICS` trains backbone, readouts and agent heads on codes encoded once, which is most of the learning at a small
part of the cost; `JOINT` then trains everything together from raw observations, with the generative loss (equation 8).

    python -m pan_hf.training.align --model DIR --data DIR --output_dir DIR --seconds 240
    python -m pan_hf.training.align --joint --model DIR --data DIR --output_dir DIR --seconds 30
"""

from pan_hf.training.encoded import encode_once
from pan_hf.training.rollouts import judge_by
from pan_hf.training.stage import Stage, main
from pan_hf.training.windows import (
    Windows,
    action_tensor,
    openness,
    openness_by_kind,
    sense_tensors,
    window_weights,
)


def make_encoded(model, processor, trajectories, args=None, survey=None):
    """Windows of codes, encoded once by the senses as they are."""
    tensors = sense_tensors(trajectories, model, processor.tokenizer)
    encoded = encode_once(model, tensors, trajectories, None if args is None else args.encoded)
    actions = action_tensor(trajectories, model, processor.tokenizer)
    constant = set(model.config.prefix_senses)
    windows = Windows(trajectories, encoded, actions, model.config.context_steps, True, constant)
    by_kind = openness_by_kind(windows, trajectories) if survey is None else survey.openness
    left_open = openness(windows, trajectories, by_kind)
    weights = window_weights(windows, left_open, survey and survey.weighing)
    for_outcome = weights / left_open
    mean = for_outcome.mean() if survey is None else survey.weighing.mean
    windows.importance = mean / for_outcome  # rewards are drawn more often; what happens must not look so
    return windows, weights


def make_raw(model, processor, trajectories, args=None, survey=None):
    """Windows of raw observations, drawn as often as the windows of their codes would be."""
    tensors = sense_tensors(trajectories, model, processor.tokenizer)
    encoded, weights = make_encoded(model, processor, trajectories, args, survey)
    raw = Windows(trajectories, tensors, encoded.actions, encoded.num_steps, False, encoded.constant)
    raw.importance = encoded.importance
    return raw, weights


def note_refinements(model, windows: Windows) -> None:
    """Lets each image sense keep which finer codes usually stand under its coarser ones: where the finer are not
    predicted, they are the best guess."""
    for name, levels in windows.tensors["codes"].items():
        if model.config.senses[name].kind == "image":
            model.senses[name].note_refinements(levels)


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
    judge=judge_by,
    streams=True,
    # few small batches at a larger rate would shift probabilities that the stage before has settled
    defaults={"learning_rate": 5e-5, "per_device_train_batch_size": 16},
    # an encoder that moves quickly turns codes into other codes faster than the backbone can follow
    slow={"senses.": 0.01},
)

if __name__ == "__main__":
    main(DYNAMICS, joint=JOINT)
