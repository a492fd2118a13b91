"""The heads of a transition: its reward, whether the episode goes on, and which action it was.

The heads read the *next state itself* (the rows of its codes, sampled or true) beside the current one, not only the
backbone's hidden state: a reward is then a property of the possibility that was drawn, and in a stochastic world two
futures of one action get the rewards they deserve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

NUM_BINS = 41
_ROUNDING = 1e-6  # of a reward to float32, relative: a bound is given in decimals
LEAST_BOUND = 10.0  # of rewards: a recording in which none was met says little about their scale


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): large and small rewards on one scale (DreamerV3)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


def reward_bins(bound: float, device=None) -> Tensor:
    """Centres of the `NUM_BINS` bins in symlog space, `(NUM_BINS,)`."""
    return torch.linspace(-math.log1p(bound), math.log1p(bound), NUM_BINS, device=device)


def reward_bound(rewards: ArrayLike) -> float:
    """The bound of a head for a recording with these rewards: twice the largest, and at least `LEAST_BOUND`.
    Bins are spaced by symlog, so that the room costs little, and the next recording often holds a larger reward.

    Raises:
        ValueError: a reward is not finite.
    """
    return max(LEAST_BOUND, 2 * _largest(rewards))


def check_rewards(rewards: ArrayLike, bound: float) -> None:
    """Raises ValueError where rewards of a recording or a batch are beyond the `bound` of a model, which would clip
    them in silence, or not finite."""
    largest = _largest(rewards)
    if largest > bound * (1 + _ROUNDING):
        raise ValueError(
            f"There are rewards as large as {largest:.6g}; the model was built for rewards within plus and minus "
            f"{bound:.6g} (`reward_bound`), and would take all beyond for that. Divide the rewards, or build the "
            f"model with reward_bound={2 * largest:.4g}."
        )


def _largest(rewards: ArrayLike) -> float:
    # of a batch they are on its device, which may have no float64
    values = rewards.float() if isinstance(rewards, Tensor) else torch.as_tensor(rewards, dtype=torch.float64)
    if not bool(values.isfinite().all()):
        raise ValueError(f"Rewards must be finite, got {int(values.isfinite().logical_not().sum())} NaN or inf.")
    return float(values.abs().max()) if values.numel() else 0.0


def two_hot(reward: Tensor, bound: float) -> Tensor:
    """Reward `(...)` as weights on its two nearest bins, `(..., NUM_BINS)`, whose mean is exactly its symlog; clipped
    to plus and minus `bound`, see `check_rewards`."""
    edge = math.log1p(bound)
    position = (symlog(reward.float()).clamp(-edge, edge) + edge) / (2 * edge) * (NUM_BINS - 1)
    below = position.floor().clamp(max=NUM_BINS - 2)
    weight = position - below
    target = torch.zeros(*reward.shape, NUM_BINS, device=reward.device)
    target.scatter_(-1, below.long().unsqueeze(-1), (1 - weight).unsqueeze(-1))
    return target.scatter_add_(-1, below.long().unsqueeze(-1) + 1, weight.unsqueeze(-1))


class TransitionFeatures(nn.Module):
    """Compares two states token by token and pools: `(B, P, H)` twice -> `(B, 2 * width)`.

    Args:
        hidden_size, width (`int`): H, and that of the result's halves.
        grids (`Mapping[int, tuple[int, int]]`, *optional*): images whose patch tokens see those around them, in order:
            by the first of its tokens, rows and columns of an image's. An agent may run into the next patch.
    """

    def __init__(self, hidden_size: int, width: int, grids: Mapping[int, tuple[int, int]] | None = None):
        super().__init__()
        self.grids = dict(grids or {})
        self.norm = nn.LayerNorm(hidden_size)
        self.before, self.after = nn.Linear(hidden_size, width), nn.Linear(hidden_size, width)
        self.mix = nn.Linear(width, width)
        self.around = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in self.grids)

    def forward(self, before: Tensor, after: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.before(self.norm(before)) + self.after(self.norm(after))
        if context is not None:
            x = x + context.unsqueeze(1)
        x = nn.functional.gelu(x)
        mixed = self.mix(x)
        for around, (first, grid) in zip(self.around, self.grids.items(), strict=True):
            end = first + math.prod(grid)
            image = x[:, first:end].unflatten(1, grid).permute(0, 3, 1, 2)
            seen = around(image).permute(0, 2, 3, 1).flatten(1, 2)
            mixed = mixed.slice_scatter(mixed[:, first:end] + seen, 1, first, end)
        x = nn.functional.gelu(mixed)
        return torch.cat([x.amax(1), x.mean(1)], -1)


class OutcomeHead(nn.Module):
    """Reward and continuation of a transition.

    Args:
        hidden_size (`int`): H.
        width (`int`): of the head.
        bound (`float`): of the rewards, `config.reward_bound`.
        grids: see [`TransitionFeatures`].
        num_actors (`int`, *optional*): A, how many rewards there are; None: one, which has no axis of its own.
    """

    def __init__(
        self,
        hidden_size: int,
        width: int,
        bound: float,
        grids: Mapping[int, tuple[int, int]],
        num_actors: int | None = None,
    ):
        super().__init__()
        self.bound, self.num_actors = bound, num_actors
        self.context_norm = nn.LayerNorm(hidden_size)
        self.context = nn.Linear(hidden_size, width)
        self.features = TransitionFeatures(hidden_size, width, grids)
        self.out = nn.Linear(2 * width, (num_actors or 1) * NUM_BINS + 1)

    def forward(self, before: Tensor, after: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Args: before, after, state embeddings `(B, P, H)`; context `(B, H)`, the backbone's state after the action.
        Returns: reward logits `(B, NUM_BINS)` or `(B, A, NUM_BINS)`, and continuation logit `(B,)`, float32."""
        out = self.out(self.features(before, after, self.context(self.context_norm(context)))).float()
        rewards = out[..., :-1]
        return (rewards if self.num_actors is None else rewards.unflatten(-1, (self.num_actors, -1))), out[..., -1]

    def expected_reward(self, logits: Tensor) -> Tensor:
        """`(..., NUM_BINS)` -> `(...)`, in the reward's own unit."""
        return symexp(logits.softmax(-1) @ reward_bins(self.bound, logits.device))


class InverseDynamicsHead(nn.Module):
    """Which action led from one state to the next, read out against the action's own vocabulary rows."""

    def __init__(self, hidden_size: int, width: int, num_slots: int):
        super().__init__()
        self.features = TransitionFeatures(hidden_size, width)
        self.out = nn.Linear(2 * width, num_slots * hidden_size)
        self.num_slots = num_slots

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """State embeddings `(B, P, H)` twice -> one query a token of the action, `(B, num_slots, H)`."""
        return self.out(self.features(before, after)).unflatten(-1, (self.num_slots, -1))
