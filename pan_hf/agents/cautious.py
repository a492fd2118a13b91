"""Caution: a critic that would rather go where the model is sure."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pan_hf.agents.critics import Critic, as_critic
from pan_hf.modeling.state_pan import Actions
from pan_hf.modeling.validation_pan import real


def uncertainty_of(futures) -> torch.Tensor:
    """How open each imagined step was, nats `(N, H)`: the entropy of all senses together where `simulate` was asked
    for it; else the surprise of what was drawn, which is that on average and comes with every future.

    Raises:
        ValueError: the world tells neither.
    """
    if entropy := getattr(futures, "entropy", None):
        return torch.stack([nats.float() for nats in entropy.values()]).sum(0)
    log_prob = getattr(futures, "log_prob", None)
    if log_prob is None:
        raise ValueError(
            "A CautiousCritic needs futures with `log_prob`, which this world does not tell; use its critic alone."
        )
    return -log_prob.float()


@dataclass(frozen=True)
class CautiousCritic(Critic):
    """Another critic, less a penalty for each nat of uncertainty in a step.

    What the goal is stays with the other critic. A search for the shortest way to it, as `GraphSearch` is one,
    asks for no value, so it is not made more careful.

    Args:
        critic ([`Critic`] or function of futures): what is wanted.
        penalty (`float`): score taken for a nat.

    Raises:
        ValueError: a penalty below 0, or no critic.
    """

    critic: Critic = field(kw_only=True)
    penalty: float = field(kw_only=True)

    def __post_init__(self):
        object.__setattr__(self, "critic", as_critic(self.critic))
        object.__setattr__(self, "penalty", real("penalty", self.penalty, 0))
        for name in ("threshold", "discount", "scores_states"):
            object.__setattr__(self, name, getattr(self.critic, name))
        super().__post_init__()

    def score(self, futures) -> torch.Tensor:
        scores = self.critic.score(futures)
        return scores - self.penalty * uncertainty_of(futures).to(scores.device)

    def reached(self, futures, scores: torch.Tensor) -> torch.Tensor:
        # scored again: what was taken from a score of exactly the threshold cannot be added back exactly
        return self.critic.reached(futures, self.critic.score(futures).float())

    def value(self, futures, scores: torch.Tensor) -> torch.Tensor:
        return self.critic.value(futures, scores)

    def combine(self, score, after):
        return self.critic.combine(score, after)

    def promises(self, belief) -> torch.Tensor | None:
        return self.critic.promises(belief)

    def outlook(self, score: float, steps: int) -> float:
        return self.critic.outlook(score, steps)

    def confirms(self, world, belief, actions: torch.Tensor | Actions) -> bool:
        return self.critic.confirms(world, belief, actions)
