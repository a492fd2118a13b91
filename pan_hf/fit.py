"""Whether a recording is one that a finished world model can be trained further on: the same senses and actions."""

from __future__ import annotations

import numpy as np

from pan_hf.modeling import PanConfig
from pan_hf.tokenization import PanProcessor
from pan_hf.trajectories import Trajectories


def check_fits(config: PanConfig, processor: PanProcessor, trajectories: Trajectories) -> None:
    """Raises ValueError where a recording lacks a sense of the model, or has it, or the action, otherwise: of another
    kind or shape, out of range, texts that are too long. Senses that the model has not are passed over."""
    missing = sorted(set(config.senses) - set(trajectories.observations))
    if missing:
        raise ValueError(
            f"The model's senses {missing} are not in the recording, which has {sorted(trajectories.observations)}. "
            "Record them (`pan record --keep`, `--rename`)."
        )
    for name, sense in config.senses.items():
        values, feature = trajectories.observations[name], trajectories.features[f"observation.{name}"]
        _check_kind(f"Sense {name!r}", feature["kind"], sense.kind)
        if sense.kind == "image":
            _check_shape(name, values.shape[1:], (sense.channels, sense.height, sense.width))
        else:
            processor(observation={name: _distinct(values)}, partial=True)
    _check_action(config.action, processor, trajectories)


def _check_kind(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(f"{what}: the recording's is of kind {found!r}, the model's of kind {expected!r}.")


def _check_shape(name: str, found: tuple, expected: tuple) -> None:
    if tuple(found) != expected:
        channels, height, width = expected
        raise ValueError(
            f"Sense {name!r}: the recording has images of {tuple(found)}, the model sees {expected} (channels, "
            f"height, width); record with `--image-size {height}`{'' if height == width else f' ({height}x{width})'}."
        )


def _check_action(action, processor: PanProcessor, trajectories: Trajectories) -> None:
    feature = trajectories.features["action"]
    _check_kind("Action", feature["kind"], action.kind)
    if action.kind == "discrete":
        if feature["n"] != action.num_actions:
            raise ValueError(
                f"The recording has {feature['n']} actions, the model {action.num_actions}. A number means the same "
                "in both only where there are as many; new actions are born with model.grow('action.0', names=[...])."
            )
        return
    processor(action=_distinct(trajectories.actions[~trajectories.action_is_pad]))


def _distinct(values: np.ndarray):
    """Texts once each, as a batch of constant ones; vectors as they are."""
    return np.unique(values).tolist() if values.dtype.kind in "UO" else values
