"""Weights that speed up learning do not move what is learned: sampled probabilities stay the true ones."""

import torch

from pan_hf.modeling.objectives_pan import _change_weighted


def test_the_change_weight_leaves_the_optimum_at_the_true_distribution():
    torch.manual_seed(0)
    true = torch.tensor([0.7, 0.2, 0.1])  # code 0 is the current one: 70% of the time nothing changes
    target = torch.multinomial(true, 20_000, replacement=True).view(1, -1)
    now = torch.zeros_like(target)
    frequencies = torch.bincount(target[0], minlength=3) / target.numel()
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure():
        optimizer.zero_grad()
        weight = 1 + 4 * (now != target).flatten().float()
        loss = _change_weighted(logits.expand(1, target.shape[1], 3), now, target, weight, 5.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(logits.softmax(-1), frequencies, atol=1e-3)
