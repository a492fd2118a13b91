"""Whether a recording is one that a finished world model can be trained further on: the same senses, actions and
actors, within what the model was built for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pan_hf.data.trajectories import Trajectories
from pan_hf.data.windows import check_has_senses
from pan_hf.features import ACTION, Feature, action_column, action_parts, feature_of
from pan_hf.modeling import PanConfig
from pan_hf.modeling.heads_pan import check_rewards
from pan_hf.tokenization import PanProcessor


def check_fits(config: PanConfig, processor: PanProcessor, trajectories: Trajectories) -> None:
    """Raises ValueError where a recording lacks a sense, a part of the action or an actor of the model, or has it
    otherwise: of another kind or shape, out of range (rewards too), texts that are too long. Senses that the model
    lacks are ignored."""
    check_has_senses(trajectories, config.senses)
    for name, sense in config.senses.items():
        feature = _of_same_kind(f"Sense {name!r}", trajectories.features[f"observation.{name}"], sense)
        feature.check_sense(name, sense, trajectories.observations[name], processor)
    check_reward_range(config, trajectories.rewards, trajectories.actor_rewards)
    _check_actions(config, processor, trajectories)


def check_reward_range(config: PanConfig, rewards: np.ndarray, actor_rewards: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where rewards are beyond the model's bound: their sum, or those of one of its actors.

    Args:
        rewards: of all actors together; actor_rewards: by actor, of which the model may have some.
    """
    actors = config.actors or ()
    check_has_actors(actor_rewards, actors)
    for each in (rewards, *(actor_rewards[name] for name in actors)):
        check_rewards(each, config.reward_bound)


def check_has_actors(recorded: Collection[str], actors: Sequence[str]) -> None:
    """Raises ValueError where a recording tells no rewards of some of a model's actors."""
    if missing := sorted(set(actors) - set(recorded)):
        raise ValueError(
            f"The model's actors {missing} are not rewarded in the recording, whose actors are "
            f"{sorted(recorded)}. Take the data that the model was trained for."
        )


def _check_actions(config: PanConfig, processor: PanProcessor, trajectories: Trajectories) -> None:
    recorded = action_parts(trajectories.features)
    if set(recorded) != set(config.actions):
        raise ValueError(
            f"The recording's action has the parts {sorted(recorded)}, the model's {sorted(config.actions)}."
        )
    for name, part in config.actions.items():
        what = "Action" if name == ACTION else f"Action {name!r}"
        feature = _of_same_kind(what, trajectories.features[action_column(name)], part)
        values = trajectories.actions_by_part[name]
        alone = PanProcessor(processor.tokenizer, action=part.to_dict())  # of this part
        try:
            feature.check_action(part, values[~trajectories.action_is_pad], alone)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error


def _of_same_kind(what: str, described: dict, part: Any) -> Feature:
    feature, expected = feature_of(described), feature_of(part)
    if feature.kind != expected.kind:
        raise ValueError(
            f"{what}: the recording's is of kind {feature.kind!r}, the model's of kind {expected.kind!r}."
        )
    return feature
