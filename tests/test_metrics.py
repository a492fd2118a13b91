"""Metrics against torchmetrics, or against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_f1_score
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from pan_hf import metrics
from pan_hf.metrics import MetricAccumulator


def value_of(measure, episodes=None):
    """The value of one measure over its windows."""
    formula, components = measure
    tally = MetricAccumulator()
    tally.add("it", formula, components, np.zeros(len(components)) if episodes is None else episodes)
    result = tally.result("it")
    return None if result is None else result[0]


def noisy_frames(count=6, size=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(0, 256, (count, 3, size, size), generator=generator)
    noise = torch.randint(-20, 21, true.shape, generator=generator)
    return (true + noise).clamp(0, 255).to(torch.uint8), true.to(torch.uint8)


def test_psnr_is_torchmetrics_psnr_over_all_windows():
    predicted, true = noisy_frames()
    expected = peak_signal_noise_ratio(predicted / 255, true / 255, data_range=1.0)
    assert value_of(metrics.psnr(predicted, true)) == pytest.approx(float(expected), abs=1e-4)


def test_ssim_is_torchmetrics_ssim():
    predicted, true = noisy_frames()
    expected = structural_similarity_index_measure(predicted / 255, true / 255, data_range=1.0)
    assert value_of(metrics.ssim(predicted, true)) == pytest.approx(float(expected), abs=1e-5)


def test_a_single_frame_has_an_ssim_and_a_tiny_one_has_none():
    predicted, true = noisy_frames(count=1)
    assert 0 < value_of(metrics.ssim(predicted, true)) < 1
    assert metrics.ssim(*noisy_frames(size=8)) is None


def test_perfect_frames_have_a_finite_psnr():
    _, true = noisy_frames()
    assert value_of(metrics.psnr(true, true)) == pytest.approx(-10 * math.log10(metrics.MSE_FLOOR))


@pytest.mark.slow
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_f1_is_torchmetrics_f1_wherever_there_is_an_event(pairs):
    predicted, true = torch.tensor(pairs).unbind(1)
    expected = float(binary_f1_score(predicted.float(), true.int())) if true.any() and not true.all() else None
    assert value_of(metrics.f1(predicted, true)) == (None if expected is None else pytest.approx(expected))


def test_changed_pixels_are_whole_patches():
    before = torch.zeros(1, 3, 20, 16, dtype=torch.uint8)
    after = before.clone()
    after[0, 1, 9, 2] = 1
    after[0, 0, 19, 15] = 1
    expected = torch.zeros(1, 20, 16, dtype=torch.bool)
    expected[0, 8:16, 0:8] = True
    expected[0, 16:20, 8:16] = True  # a patch that the frame cuts off
    assert torch.equal(metrics.changed_pixels(before, after, 8), expected)


def test_moving_psnr_counts_moving_pixels_only():
    predicted, true = noisy_frames(count=2, size=16)
    moving = torch.zeros(2, 16, 16, dtype=torch.bool)
    moving[0, :8, :8] = True
    measure = ("psnr", metrics.moving_error(predicted, true, moving))
    expected = peak_signal_noise_ratio(predicted[0, :, :8, :8] / 255, true[0, :, :8, :8] / 255, data_range=1.0)
    assert value_of(measure) == pytest.approx(float(expected), abs=1e-4)


def test_where_nothing_moves_there_is_no_moving_psnr():
    predicted, true = noisy_frames(count=2, size=16)
    assert value_of(("psnr", metrics.moving_error(predicted, true, torch.zeros(2, 16, 16, dtype=torch.bool)))) is None


def test_a_frame_is_exact_up_to_the_tolerance_and_not_beyond():
    true = torch.full((3, 1, 4, 4), 100, dtype=torch.uint8)
    predicted = true.clone()
    predicted[1, 0, 0, 0] += metrics.EXACT_TOLERANCE
    predicted[2, 0, 0, 0] -= metrics.EXACT_TOLERANCE + 1
    assert metrics.exact_frames(predicted, true).tolist() == [True, True, False]


def test_rmse_is_per_coordinate_and_scaled():
    predicted, true = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert value_of(metrics.rmse(predicted, true)) == pytest.approx(math.sqrt(12.5))
    assert value_of(metrics.rmse(predicted, true, torch.tensor([3.0, 2.0]))) == pytest.approx(math.sqrt(2.5))


def test_token_accuracy_counts_missing_and_surplus_tokens_as_wrong():
    pad = 0
    true = torch.tensor([[5, 6, 7, pad]])
    assert value_of(metrics.token_accuracy(torch.tensor([[5, 6, pad, pad]]), true, pad)) == pytest.approx(2 / 3)
    assert value_of(metrics.token_accuracy(torch.tensor([[5, 6, 7, 8, 9]]), true, pad)) == pytest.approx(3 / 5)


def test_codes_are_equal_only_at_every_level():
    coarse, fine = torch.tensor([[1], [1]]), torch.tensor([[2, 3], [2, 3]])
    other = torch.tensor([[2, 3], [2, 4]])
    assert metrics.equal_codes([coarse, fine], [coarse, other]).tolist() == [True, False]
    assert value_of(("mean", metrics.code_accuracy(other, fine))) == pytest.approx(3 / 4)


def test_a_gain_is_the_difference_of_the_two_metrics():
    predicted, true = noisy_frames(count=4, size=16)
    worse = (predicted.int() + 30).clamp(0, 255).to(torch.uint8)
    moving = torch.ones(4, 16, 16, dtype=torch.bool)
    with_, without = (metrics.moving_error(frames, true, moving) for frames in (predicted, worse))
    expected = value_of(("psnr", with_)) - value_of(("psnr", without))
    assert value_of(metrics.gain("psnr", with_, without)) == pytest.approx(expected)


def test_a_gain_refuses_cases_that_count_different_things():
    with pytest.raises(ValueError, match="same pixels"):
        metrics.gain("mean", torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 3.0]]))


def test_the_standard_error_is_over_episodes_not_windows():
    """Two hundred windows of ten episodes, all alike within one: ten independent numbers, not two hundred."""
    generator = np.random.default_rng(0)
    by_episode = generator.normal(size=10)
    episodes = np.repeat(np.arange(10), 20)
    tally = MetricAccumulator(num_resamples=4000)
    tally.add("it", *metrics.mean_of(torch.tensor(by_episode[episodes])), episodes)
    value, stderr = tally.result("it")
    assert value == pytest.approx(by_episode.mean())
    assert stderr == pytest.approx(by_episode.std() / math.sqrt(10), rel=0.05)


def test_one_episode_has_no_standard_error():
    tally = MetricAccumulator()
    tally.add("it", *metrics.mean_of(torch.tensor([0.0, 1.0])), np.array([3, 3]))
    assert tally.result("it") == (0.5, None)


def test_a_tally_is_the_same_however_windows_are_batched():
    values, episodes = torch.arange(12.0), np.arange(12) // 3
    whole, parts = MetricAccumulator(), MetricAccumulator()
    whole.add("it", *metrics.mean_of(values), episodes)
    for start in range(0, 12, 5):
        parts.add("it", *metrics.mean_of(values[start : start + 5]), episodes[start : start + 5])
    assert whole.result("it") == parts.result("it")
