"""What was seen: as a belief, and after an action in the shape of what is imagined of one, for a critic to judge."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.plan import device_of
from pan_hf.features import feature_class
from pan_hf.modeling.sense_configuration_pan import ACTION


def perceive(model, processor, observations: list[dict], actions: list):
    """The belief after `T` observations and the `T - 1` actions between them; batch of one.

    Args:
        model ([`PanModel`]), processor ([`PanProcessor`]): as loaded.
        observations (`list[dict]`): raw senses by name, oldest first; None where a sense is absent.
        actions (`list`): `int` or `(D,)` array each, or a dict of these by part.
    """
    shown = {name: [observation[name] for observation in observations] for name in observations[-1]}
    seen = {
        name: None if all(value is None for value in values) else _sequence(name, model.config.senses[name], values)
        for name, values in shown.items()
    }
    taken: Any = None
    if actions:
        parts = ActionParts(model.config).parts
        by_part = [action if isinstance(action, dict) else dict.fromkeys(parts, action) for action in actions]
        taken = {name: _sequence(name, part, [action[name] for action in by_part]) for name, part in parts.items()}
        taken = taken[ACTION] if set(parts) == {ACTION} else taken
    return model.perceive(**processor(observation=seen, action=taken).to(model.device))


def _sequence(name: str, part, values: list):
    return feature_class(part.kind).sequence(name, part, values)


class SeenStep:
    """One row and step of what the world did, as a critic asks futures: `reward`, `continue_prob`, `log_prob`,
    `duration` `(1, 1)`, `belief`, `state`, `codes` and `decode`. What was seen is certain.

    Args:
        world ([`World`]): that perceived it.
        belief: after the action, one row.
        reward (`float`): that it brought.
        terminated (`bool`): whether it ended the episode in the world.
    """

    def __init__(self, world: Any, belief: Any, reward: float, terminated: bool):
        self._world, self.belief = world, belief
        device = device_of(world)
        self.reward = torch.tensor([[float(reward)]], device=device)
        self.continue_prob = torch.tensor([[float(not terminated)]], device=device)
        self.log_prob = torch.zeros(1, 1, device=device)
        self.duration = torch.ones(1, 1, dtype=torch.long, device=device)

    @cached_property
    def state(self) -> Any:
        return self.belief.state.map(lambda tensor: tensor[:, None])

    @property
    def codes(self) -> dict[str, list[Tensor]]:
        return self.state.codes

    def decode(self, sense: str, *args: Any, **kwargs: Any) -> Tensor:
        """What was seen in one sense, `(1, 1, ...)`, as the codes hold it."""
        return self._world.decode(self.state, sense, *args, **kwargs)
