"""What a predicted step is worth: predicted against true observations, codes, reward and end, by metric name."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pan_hf import metrics


@dataclass
class Step:
    """What n windows show at one step, true or predicted.

    Args:
        observations (`dict[str, Tensor]`): image senses uint8 `(n, channels, h, w)`, vectors `(n, dim)`, texts ids.
        codes (`dict[str, list[Tensor]]`): of each sense its levels, `(n, n_l)` int64.
        reward (`Tensor` of shape `(n,)`), done (boolean `Tensor` of shape `(n,)`): of the action that led here.
    """

    observations: dict[str, Tensor]
    codes: dict[str, list[Tensor]]
    reward: Tensor
    done: Tensor

    def unrewarded(self) -> "Step":
        """The same state reached without reward or end: what copying it as a prediction claims."""
        return Step(self.observations, self.codes, torch.zeros_like(self.reward), torch.zeros_like(self.done))

    def coarsest(self) -> "Step":
        """The same with the coarsest level of codes alone."""
        return Step(self.observations, {name: codes[:1] for name, codes in self.codes.items()}, self.reward, self.done)

    def where(self, chosen: Tensor) -> "Step":
        """The windows that the boolean `chosen` `(n,)` keeps."""
        return Step(
            {name: values[chosen] for name, values in self.observations.items()},
            {name: [codes[chosen] for codes in levels] for name, levels in self.codes.items()},
            self.reward[chosen],
            self.done[chosen],
        )


class Judge:
    """Compares predicted steps with true ones.

    Args:
        senses (`dict`): the model's senses by name.
        scales (`dict[str, Tensor]`): of each vector sense, what a coordinate is divided by for `rmse_normalised`.
        pad_token_id (`int`): of the processor's tokenizer.
        reward_threshold (`float`): see `REWARD_THRESHOLD`.
    """

    def __init__(self, senses: dict, scales: dict[str, Tensor], pad_token_id: int, reward_threshold: float):
        self.senses, self.scales = senses, scales
        self.pad_token_id, self.reward_threshold = pad_token_id, reward_threshold

    def name(self, sense: str, metric: str) -> str:
        """The metric's name, with the sense's before it where several senses of its kind are predicted."""
        alike = [name for name in self.predicted() if self.senses[name].kind == self.senses[sense].kind]
        return metric if len(alike) == 1 else f"{sense}_{metric}"

    def predicted(self, kind: str | None = None) -> list[str]:
        """Names of the senses that change with time (of one kind)."""
        moving = [name for name, sense in self.senses.items() if getattr(sense, "every_step", True)]
        return [name for name in moving if kind in (None, self.senses[name].kind)]

    def __call__(self, predicted: Step, true: Step, last_seen: Step) -> dict[str, tuple[str, Tensor]]:
        """`metric: (formula, components)` of `predicted` against `true`; "changed" is since `last_seen`."""
        measures = self.images(predicted.observations, true, last_seen)
        for name in self.predicted("vector"):
            guess, fact = predicted.observations[name], true.observations[name]
            measures[self.name(name, "rmse")] = metrics.rmse(guess, fact)
            measures[self.name(name, "rmse_normalised")] = metrics.rmse(guess, fact, self.scales[name].to(fact.device))
        for name in self.predicted("text"):
            guess, fact = predicted.observations[name], true.observations[name]
            measures[self.name(name, "token_accuracy")] = metrics.token_accuracy(guess, fact, self.pad_token_id)
        return measures | self._codes(predicted, true, last_seen) | self._outcome(predicted, true)

    def images(self, predicted: dict[str, Tensor], true: Step, last_seen: Step) -> dict[str, tuple[str, Tensor]]:
        """What of `__call__` is about images, `predicted` by sense."""
        measures = {}
        for name in self.predicted("image"):
            views = predicted[name], true.observations[name], last_seen.observations[name]
            measures |= {self.name(name, key): value for key, value in self._image(name, *views).items()}
        return measures

    def changed(self, true: Step, last_seen: Step) -> Tensor:
        """`(n,)`: whether anything observed differs from the last frame seen."""
        pairs = [(true.observations[name], last_seen.observations[name]) for name in self.predicted()]
        return torch.stack([(a != b).flatten(1).any(1) for a, b in pairs]).any(0)

    def exact(self, predicted: Step, true: Step) -> Tensor:
        """`(n,)`: whether all codes of all senses, and all tokens of texts without codes, are the true ones."""
        equal = [metrics.equal_codes(predicted.codes[name], true.codes[name]) for name in true.codes]
        texts = [name for name in self.predicted("text") if name not in true.codes]
        equal += [(predicted.observations[name] == true.observations[name]).flatten(1).all(1) for name in texts]
        return torch.stack(equal).all(0)

    def moving_error(self, predicted: Step, true: Step, last_seen: Step) -> Tensor:
        """Components of `psnr_moving` with the pixels of all image senses pooled, `(n, 2)`."""
        errors = []
        for name in self.predicted("image"):
            guess, fact, before = (step.observations[name] for step in (predicted, true, last_seen))
            errors.append(metrics.moving_error(guess, fact, self._moving(name, before, fact)))
        return torch.stack(errors).sum(0)

    def _moving(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        return metrics.changed_pixels(before, after, self.senses[name].patch_size)

    def _image(self, name: str, predicted: Tensor, true: Tensor, last_seen: Tensor) -> dict[str, tuple[str, Tensor]]:
        moving = metrics.moving_error(predicted, true, self._moving(name, last_seen, true))
        measures = {"psnr": metrics.psnr(predicted, true), "ssim": metrics.ssim(predicted, true)}
        measures |= {"psnr_moving": ("psnr", moving)}
        measures |= {"exact_frame": metrics.mean_of(metrics.exact_frames(predicted, true))}
        return {key: value for key, value in measures.items() if value is not None}

    def _codes(self, predicted: Step, true: Step, last_seen: Step) -> dict[str, tuple[str, Tensor]]:
        exact = self.exact(predicted, true)
        measures = {
            "exact_state": metrics.mean_of(exact),
            "exact_state_changed": metrics.mean_where(exact, self.changed(true, last_seen)),
            "exact_coarse_state": metrics.mean_of(self.exact(predicted.coarsest(), true.coarsest())),
        }
        levels = {
            f"{name}.{level}": metrics.code_accuracy(predicted.codes[name][level], codes)
            for name in true.codes
            for level, codes in enumerate(true.codes[name])
        }
        if levels:
            measures["code_accuracy"] = ("mean", sum(levels.values()))
        return measures | {f"{level}_code_accuracy": ("mean", counts) for level, counts in levels.items()}

    def _outcome(self, predicted: Step, true: Step) -> dict[str, tuple[str, Tensor]]:
        events = (step.reward.abs() > self.reward_threshold for step in (predicted, true))
        return {
            "reward_mae": metrics.mean_of((predicted.reward - true.reward).abs()),
            "reward_f1": metrics.f1(*events),
            "done_f1": metrics.f1(predicted.done, true.done),
        }
