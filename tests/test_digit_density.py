"""Digits as cells of a density: masses are those of one distribution, and numbers that move by a rule are learned."""

import pytest
import torch
from tiny_worlds import language_model

from pan_hf import PanModel, VectorAction, VectorSense
from pan_hf.modeling.codecs_pan import digits_to_unit
from pan_hf.modeling.readout_pan import DigitDensity

SENSE = VectorSense(dim=2, base=8, num_levels=2)


def _density(level, scale=1.0):
    torch.manual_seed(level)
    density = DigitDensity(SENSE, level, 12, 3)
    density.reset_pan_parameters(1.0)
    with torch.no_grad():
        density.linear.normal_(std=0.3 * scale)
        density.shape.mul_(scale)
    return density


def _inputs(rows=64):
    torch.manual_seed(1)
    now = [torch.randint(8, (rows, 2)) for _ in range(2)]
    return torch.randn(rows, 2, 12), now, torch.randn(rows, 3)


def test_the_masses_of_the_coarsest_digits_add_up_to_one():
    features, now, numbers = _inputs()
    masses = _density(0)(features, now, [], numbers).exp()
    assert masses.shape == (64, 2, 8)
    torch.testing.assert_close(masses.sum(-1), torch.ones(64, 2))


def test_the_masses_of_the_finer_digits_add_up_to_that_of_the_coarser_one():
    features, now, numbers = _inputs()
    coarse, fine = _density(0), DigitDensity(SENSE, 1, 12, 3)
    fine.load_state_dict(coarse.state_dict())
    for digit in range(8):
        chosen = torch.full((64, 2), digit)
        found = fine(features, now, [chosen], numbers).logsumexp(-1)
        torch.testing.assert_close(found, coarse(features, now, [], numbers)[..., digit], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("level", [0, 1])
def test_no_displacement_however_large_makes_a_loss_or_a_gradient_that_is_not_a_number(level):
    features, now, numbers = _inputs()
    density = _density(level, scale=1e4)
    masses = density(features, now, now[:level], numbers)
    masses.log_softmax(-1)[..., 0].mean().backward()
    assert masses.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in density.parameters())


def test_digits_name_the_cell_that_the_number_lies_in():
    assert digits_to_unit([torch.tensor([0, 7])], 8).tolist() == [1 / 16, 15 / 16]
    assert digits_to_unit([torch.tensor([3]), torch.tensor([4])], 8, inside=0.0).item() == pytest.approx(
        3 / 8 + 4 / 64
    )


@pytest.mark.slow
def test_a_number_that_follows_a_linear_rule_is_predicted_to_a_part_of_a_coarse_cell():
    torch.manual_seed(0)
    senses = {"position": VectorSense(dim=2, base=16, num_levels=2)}
    model = PanModel.from_backbone(language_model("qwen3"), senses, VectorAction(dim=2))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, 2 * (100 - step) / 100)
        position, action = 1.8 * torch.rand(64, 2) - 0.9, 2 * torch.rand(64, 1, 2) - 1
        frames = torch.stack([position, position + 0.3 * (action[:, 0] - position)], 1)
        nothing = torch.zeros(64, 1)
        loss = model(
            objective="dynamics", state=_encoded(model, frames), action=action, reward=nothing, done=nothing
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    futures = model.simulate(model.perceive({"position": frames[:, :1]}), action, temperature=0.0)
    error = (futures.decode("position")[:, 0] - frames[:, 1]).square().mean().sqrt()
    moved = (frames[:, 1] - frames[:, 0]).square().mean().sqrt()
    assert error < 0.25 * moved


def _encoded(model, frames):
    with torch.no_grad():
        state = model.encode({"position": frames})
    return {"codes": state.codes, "latents": state.latents, "text": {}}
