"""What was seen after an action, in the shape of what is imagined of one, so that a critic can judge it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.plan import device_of


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
