"""Muon (Jordan et al. 2024): steps of one size in every direction of a hidden weight.

AdamW sizes the step of each number by itself, so directions of a weight that are rarely called for are learned late.
Muon makes the singular values of the whole matrix's momentum alike, by products instead of a decomposition. PyTorch's
own, and those of libraries, make them in bfloat16, which takes a CPU without it thirty times as long, and take weights
of convolutions not at all or one by one; here all of one shape are done at once, in float32.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the polynomial that takes singular values to about 1, by its author
SIZE = 0.2  # root mean square of a step, in learning rates, about what AdamW's come to (Liu et al. 2025)


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups with `use_muon`, whose parameters have two dimensions or more: the first, and all
    others as one.

    Args: those of AdamW; each group says `use_muon` (`bool`), and has a learning rate and weight decay of its own.
    """

    @torch.no_grad()
    def step(self, closure=None):
        hidden = [group for group in self.param_groups if group["use_muon"]]
        everything, self.param_groups = self.param_groups, [g for g in self.param_groups if not g["use_muon"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = everything
        for group in hidden:
            self._step_hidden(group)
        return loss

    def _step_hidden(self, group: dict) -> None:
        by_shape: dict[tuple, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:  # AdamW, which loads it, counts steps in all states
                state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(parameter)}
            state["step"] += 1
            momentum = state["momentum"]
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            ahead = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
            wide = ahead.mT if ahead.shape[0] > ahead.shape[1] else ahead
            by_shape[wide.device, *wide.shape].append((parameter, wide))
        for (_, _, longest), members in by_shape.items():
            steps = orthogonal(torch.stack([ahead.float() for _, ahead in members]))
            for (parameter, _), step in zip(members, steps, strict=True):
                step = step if parameter.shape[0] == step.shape[0] else step.mT
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step.reshape(parameter.shape), alpha=-group["lr"] * SIZE * longest**0.5)


def orthogonal(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """Wide matrices `(N, a, b)`, a <= b, with their singular values brought to about 1 (0.7 to 1.2), by a
    Newton-Schulz iteration."""
    first, second, third = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x
