"""Measures of predicted observations, each a sum over windows that is turned into a number at the very end.

A [`MetricAccumulator`] keeps, for every metric, a row of *components* for each window (a squared error and a pixel
count, or true and false positives) and the episode that the window came from. A *formula* turns the summed components
into the value: the mean of anything, the PSNR of the mean squared error, an F1 score. So one resampling of episodes
gives the standard error of every metric, and windows with more moving pixels weigh more where pixels are what is
counted.

PSNR is that of the mean squared error over all windows, not the mean of the windows' PSNRs, which perfect frames would
make infinite. Rounding to 8 bits alone makes an error of 58.9 dB, so no PSNR is above that: a larger one would say how
many windows were exact, in decibels, and hide what the others look like. The share of exact frames stands beside the
PSNR of the others for the same reason.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pan_hf.deprecated import old_names
from pan_hf.extras import extra

__getattr__ = old_names(__name__)  # `MetricAccumulator` was `Tally`

MSE_FLOOR = 1 / 12 / 255**2
"""Mean squared error of rounding pixels in [0, 1] to 8 bits, the least that is told apart from zero: 58.9 dB."""

EXACT_TOLERANCE = 25
"""A frame is exact when no pixel of any channel is off by more than this many of 255 grey levels."""

MIN_SSIM_SIDE = 11
"""Side in pixels of SSIM's Gaussian window; there is no SSIM for smaller frames."""


def _ratio(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def _psnr(sums: np.ndarray) -> np.ndarray:
    return -10 * np.log10(np.maximum(_ratio(sums), MSE_FLOOR))


def _f1(sums: np.ndarray) -> np.ndarray:
    """0 where no event was predicted rightly; NaN where there was none, or where everything was one: then an F1 of 1
    is had for saying yes."""
    hits, false_alarms, missed, rejected = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = 2 * hits / (2 * hits + false_alarms + missed)
    return np.where((hits + missed > 0) & (false_alarms + rejected > 0), value, np.nan)


def _ratio_gain(sums: np.ndarray) -> np.ndarray:
    return _ratio(sums[..., [0, 2]]) - _ratio(sums[..., [1, 2]])


def _psnr_gain(sums: np.ndarray) -> np.ndarray:
    return _psnr(sums[..., [0, 2]]) - _psnr(sums[..., [1, 2]])


def _auroc(sums: np.ndarray) -> np.ndarray:
    """The share of pairs of a case and another in which the case has the greater number; half of those in one bin."""
    others, cases = np.split(sums, 2, axis=-1)
    below = others.cumsum(-1) - others
    pairs = cases.sum(-1) * others.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (cases * (below + others / 2)).sum(-1) / pairs


def _calibration_error(sums: np.ndarray) -> np.ndarray:
    """How far what was said is from what came, on average over predictions, by `RELIABILITY_BINS`."""
    said, came, count = np.split(sums, [RELIABILITY_BINS, 2 * RELIABILITY_BINS], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(said - came).sum(-1) / count[..., 0]


FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": _ratio,
    "psnr": _psnr,
    "rmse": lambda sums: np.sqrt(_ratio(sums)),
    "f1": _f1,
    "mean_gain": _ratio_gain,
    "psnr_gain": _psnr_gain,
    "auroc": _auroc,
    "calibration_error": _calibration_error,
}
"""Formula name -> function of summed components `(..., k)`: `mean`, `psnr` and `rmse` of `(total, count)`, `f1` of
`(true positives, false positives, false negatives, true negatives)`, the gains of `(total with, total without,
count)`, `auroc` of how many others, and how many cases, lie in each of `AUROC_BINS`, and `calibration_error` of the
probabilities, and of what came true, in each of `RELIABILITY_BINS`, and the count."""

AUROC_BINS = 128
"""Bins by which two numbers are told apart in an AUROC, equally wide in their logarithm, from 1e-4 to 1e4."""

RELIABILITY_BINS = 10
"""Bins of equal width by which probabilities are compared with how often what they are of came true."""


@lru_cache(maxsize=16)
def _resampling_weights(num_episodes: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each episode is drawn in each resample, `(num_resamples, num_episodes)`."""
    shares = np.full(num_episodes, 1 / num_episodes)
    return np.random.default_rng(seed).multinomial(num_episodes, shares, size=num_resamples).astype(float)


class MetricAccumulator:
    """Sums of metrics over windows, with their spread over episodes.

    Args:
        num_resamples (`int`): bootstrap resamples behind each standard error.
        seed (`int`): of those resamples.
    """

    def __init__(self, num_resamples: int = 1000, seed: int = 0):
        self.num_resamples = num_resamples
        self.seed = seed
        self.rows: dict[str, tuple[str, list[np.ndarray], list[np.ndarray]]] = {}

    def add(self, metric: str, formula: str, components: Tensor, episodes: np.ndarray) -> None:
        """Adds windows to a metric.

        Args:
            metric (`str`): its name.
            formula (`str`): a key of `FORMULAS`, the same at every call.
            components (`Tensor` of shape `(n, k)`): what the formula sums, a row a window.
            episodes (`np.ndarray` of shape `(n,)`): the episode that each window came from.
        """
        _, all_components, all_episodes = self.rows.setdefault(metric, (formula, [], []))
        all_components.append(components.detach().double().cpu().numpy())
        all_episodes.append(np.asarray(episodes))

    def update(self, measures: dict[str, tuple[str, Tensor]], episodes: np.ndarray, prefix: str = "") -> None:
        """Adds a whole dict of `metric: (formula, components)`; each metric's name is put behind `prefix`."""
        for metric, (formula, components) in measures.items():
            self.add(prefix + metric, formula, components, episodes)

    def metrics(self) -> list[str]:
        """Names of the metrics added so far, in the order they came."""
        return list(self.rows)

    def result(self, metric: str) -> tuple[float, float | None] | None:
        """Value and standard error of a metric.

        Windows of one episode are alike, so whole episodes are resampled with replacement (a cluster bootstrap): the
        standard error is the standard deviation of the metric over `num_resamples` resamples of the episodes.

        Returns:
            `(value, stderr)`; stderr is `None` with fewer than two episodes. `None` when there was nothing to measure
            (no window in which anything moved, no rewarded transition).
        """
        formula, *parts = self.rows[metric]
        components, episodes = (np.concatenate(part) for part in parts)
        names, cluster = np.unique(episodes, return_inverse=True)
        sums = np.zeros((len(names), components.shape[1]))
        np.add.at(sums, cluster, components)
        value = FORMULAS[formula](sums.sum(0))
        if not np.isfinite(value):
            return None
        return float(value), self._stderr(FORMULAS[formula], sums)

    def _stderr(self, formula, sums: np.ndarray) -> float | None:
        if len(sums) < 2:
            return None
        values = formula(_resampling_weights(len(sums), self.num_resamples, self.seed) @ sums)
        values = values[np.isfinite(values)]
        return float(values.std(ddof=1)) if len(values) > 1 else None


def _unit(frames: Tensor) -> Tensor:
    return frames.float() / 255


def _with_count(totals: Tensor) -> Tensor:
    return torch.stack([totals.double(), torch.ones_like(totals, dtype=torch.double)], dim=-1)


def auroc(numbers: Tensor, is_case: Tensor) -> tuple[str, Tensor]:
    """Whether numbers of at least 0 `(n,)` tell cases, bool `(n,)`, from others: 0.5 is chance, 1 always."""
    edges = torch.logspace(-4, 4, AUROC_BINS - 1, dtype=torch.double)
    bins = torch.bucketize(numbers.double().cpu(), edges) + AUROC_BINS * is_case.long().cpu()
    return "auroc", torch.nn.functional.one_hot(bins, 2 * AUROC_BINS).double()


def reliability(probabilities: Tensor, came_true: Tensor) -> dict[str, dict[str, tuple[str, Tensor]]]:
    """Predicted probabilities `(n,)` against what came true, bool `(n,)`: measures by model, "predicted" and "pan".

    `reliability:<from>-<to>%` of both is the mean of the probabilities in a bin, and the share of them that came true;
    `calibration_error` is how far these two are apart, on average over predictions.
    """
    said, came = probabilities.double().cpu(), came_true.double().cpu()
    bins = (said * RELIABILITY_BINS).long().clamp(0, RELIABILITY_BINS - 1)
    inside = torch.nn.functional.one_hot(bins, RELIABILITY_BINS).double()
    width = 100 // RELIABILITY_BINS
    names = [f"reliability:{width * index}-{width * (index + 1)}%" for index in range(RELIABILITY_BINS)]
    measures = {
        model: {name: mean_where(values, inside[:, index]) for index, name in enumerate(names)}
        for model, values in {"pan": came, "predicted": said}.items()
    }
    both = torch.cat([inside * said[:, None], inside * came[:, None], torch.ones(len(said), 1)], 1)
    measures["pan"]["calibration_error"] = "calibration_error", both
    return measures


def mean_of(values: Tensor) -> tuple[str, Tensor]:
    """A plain mean over windows of `values` `(n,)` (booleans count as 0 and 1)."""
    return "mean", _with_count(values)


def mean_where(values: Tensor, where: Tensor) -> tuple[str, Tensor]:
    """A mean of `values` `(n,)` over the windows in which `where` `(n,)` holds."""
    where = where.double()
    return "mean", torch.stack([values.double() * where, where], dim=-1)


def only_where(measure: tuple[str, Tensor], where: Tensor) -> tuple[str, Tensor]:
    """A measure of the windows in which the boolean `where` `(n,)` holds; the others add nothing to its sums."""
    formula, components = measure
    return formula, torch.where(where.unsqueeze(1), components, 0)


def psnr(predicted: Tensor, true: Tensor) -> tuple[str, Tensor]:
    """PSNR in dB of uint8 frames `(n, channels, height, width)`; equals torchmetrics' over all windows at once."""
    return "psnr", _with_count((_unit(predicted) - _unit(true)).square().mean((1, 2, 3)))


def changed_pixels(before: Tensor, after: Tensor, patch_size: int) -> Tensor:
    """Pixels of the patches in which anything differs.

    Args:
        before, after (`Tensor` of shape `(n, channels, height, width)`): uint8 frames.
        patch_size (`int`): side of a patch in pixels; patches start at the upper left corner.

    Returns:
        Boolean `Tensor` of shape `(n, height, width)`.
    """
    changed = (before != after).any(1, keepdim=True).float()
    patches = torch.nn.functional.max_pool2d(changed, patch_size, ceil_mode=True)
    pixels = patches.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    return pixels[:, 0, : before.shape[2], : before.shape[3]].bool()


def moving_error(predicted: Tensor, true: Tensor, moving: Tensor) -> Tensor:
    """Components `(n, 2)` of the PSNR on moving pixels: squared error summed over them, and how many there are.

    Args:
        predicted, true (`Tensor` of shape `(n, channels, height, width)`): uint8 frames.
        moving (`Tensor` of shape `(n, height, width)`): boolean, see [`changed_pixels`].
    """
    error = (_unit(predicted) - _unit(true)).square().mean(1) * moving
    return torch.stack([error.sum((1, 2)), moving.sum((1, 2)).float()], dim=-1)


def exact_frames(predicted: Tensor, true: Tensor) -> Tensor:
    """`(n,)`: whether no pixel of the uint8 frame is off by more than `EXACT_TOLERANCE` grey levels."""
    return (predicted.int() - true.int()).abs().flatten(1).amax(1) <= EXACT_TOLERANCE


def ssim(predicted: Tensor, true: Tensor) -> tuple[str, Tensor] | None:
    """Mean over windows of torchmetrics' SSIM of uint8 frames; `None` for frames below `MIN_SSIM_SIDE` pixels."""
    if min(true.shape[-2:]) < MIN_SSIM_SIDE:
        return None
    with extra("report", "SSIM"):
        from torchmetrics.functional.image import structural_similarity_index_measure
    # As channels of one picture the frames take a third of the time on a CPU; SSIM sees each channel by itself.
    one, other = (_unit(frames).flatten(0, 1).unsqueeze(0) for frames in (predicted, true))
    _, everywhere = structural_similarity_index_measure(one, other, data_range=1.0, return_full_image=True)
    return mean_of(everywhere.reshape(len(true), -1).mean(1))


def rmse(predicted: Tensor, true: Tensor, scale: Tensor | float = 1.0) -> tuple[str, Tensor]:
    """Root mean squared error of vectors `(n, dim)`, each coordinate divided by `scale`, over all coordinates."""
    return "rmse", _with_count(((predicted - true) / scale).square().mean(1))


def token_accuracy(predicted: Tensor, true: Tensor, pad_token_id: int) -> tuple[str, Tensor]:
    """Share of right tokens of `(n, length)` ids, over the places where either text has a token."""
    width = max(predicted.shape[1], true.shape[1])
    predicted, true = (
        torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=pad_token_id) for ids in (predicted, true)
    )
    counted = (predicted != pad_token_id) | (true != pad_token_id)
    right = (predicted == true) & counted
    return "mean", torch.stack([right.sum(1), counted.sum(1)], dim=-1)


def f1(predicted: Tensor, true: Tensor) -> tuple[str, Tensor]:
    """F1 of boolean events `(n,)`; equals torchmetrics' `binary_f1_score`, and is absent where no event was true, or
    every one."""
    counts = [predicted & true, predicted & ~true, ~predicted & true, ~predicted & ~true]
    return "f1", torch.stack(counts, dim=-1).double()


def equal_codes(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """`(n,)`: whether the codes of every level `(n, n_l)` agree everywhere."""
    return torch.stack([(a == b).flatten(1).all(1) for a, b in zip(one, other, strict=True)]).all(0)


def code_accuracy(predicted: Tensor, true: Tensor) -> Tensor:
    """Components `(n, 2)`: how many codes of one level `(n, n_l)` are right, and how many are not absent in truth."""
    is_there = true.flatten(1) >= 0
    right = (predicted.flatten(1) == true.flatten(1)) & is_there
    return torch.stack([right.sum(1), is_there.sum(1)], dim=-1)


def gain(formula: str, with_: Tensor, without: Tensor) -> tuple[str, Tensor]:
    """How much larger a metric is in one case than in another, from the components `(n, 2)` of the two cases.

    Raises:
        ValueError: the two cases count different things.
    """
    if not torch.equal(with_[:, 1].double(), without[:, 1].double()):
        raise ValueError("gain: the two cases must count the same pixels or windows, but their counts differ.")
    components = torch.stack([with_[:, 0], without[:, 0], with_[:, 1]], dim=-1)
    return f"{formula}_gain", components
