"""What a predicted step is worth: predicted against true observations, codes, reward and end, by metric name."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pan_hf import metrics
from pan_hf.features import feature_of


@dataclass
class Step:
    """What n windows show at one step, true or predicted.

    Args:
        observations (`dict[str, Tensor]`): by sense `(n, ...)`, as the model decodes it: images uint8, texts ids.
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
        references (`dict`): by sense that changes with time, what its `Feature.reference` gave.
        reward_threshold (`float`): see `REWARD_THRESHOLD`.
    """

    def __init__(self, senses: dict, references: dict[str, Any], reward_threshold: float):
        self.features = {name: feature_of(sense) for name, sense in senses.items()}
        self.references, self.reward_threshold = references, reward_threshold

    def name(self, sense: str, metric: str) -> str:
        """The metric's name, with the sense's before it where several senses of its kind are predicted."""
        alike = [name for name in self.predicted() if self.features[name].kind == self.features[sense].kind]
        return metric if len(alike) == 1 else f"{sense}_{metric}"

    def predicted(self) -> list[str]:
        """Names of the senses that change with time."""
        return [name for name, feature in self.features.items() if not feature.is_task]

    def __call__(self, predicted: Step, true: Step, last_seen: Step) -> dict[str, tuple[str, Tensor]]:
        """`metric: (formula, components)` of `predicted` against `true`; "changed" is since `last_seen`."""
        measures = self.observed(predicted.observations, true, last_seen)
        return measures | self._codes(predicted, true, last_seen) | self._outcome(predicted, true)

    def observed(self, predicted: dict[str, Tensor], true: Step, last_seen: Step) -> dict[str, tuple[str, Tensor]]:
        """What of `__call__` is about observations, of the senses in `predicted`."""
        measures: dict[str, tuple[str, Tensor]] = {}
        for name in self.predicted():
            if name in predicted:
                views = predicted[name], true.observations[name], last_seen.observations[name]
                found = self.features[name].measures(*views, self.references[name])
                measures |= {self.name(name, key): value for key, value in found.items()}
        return measures

    def changed(self, true: Step, last_seen: Step) -> Tensor:
        """`(n,)`: whether anything observed differs from the last frame seen."""
        pairs = [(true.observations[name], last_seen.observations[name]) for name in self.predicted()]
        return torch.stack([(a != b).flatten(1).any(1) for a, b in pairs]).any(0)

    def exact(self, predicted: Step, true: Step) -> Tensor:
        """`(n,)`: whether all codes of all senses, and all tokens of texts, are the true ones."""
        equal = [metrics.equal_codes(predicted.codes[name], true.codes[name]) for name in true.codes]
        uncoded = [name for name in self.predicted() if name not in true.codes]
        equal += [(predicted.observations[name] == true.observations[name]).flatten(1).all(1) for name in uncoded]
        return torch.stack(equal).all(0)

    def moving_error(self, predicted: Step, true: Step, last_seen: Step) -> Tensor | None:
        """Components of `psnr_moving` with the pixels of all senses that have one pooled, `(n, 2)`."""
        errors = []
        for name in self.predicted():
            views = predicted.observations[name], true.observations[name], last_seen.observations[name]
            error = self.features[name].moving_error(*views, self.references[name])
            errors += [] if error is None else [error]
        return torch.stack(errors).sum(0) if errors else None

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
            measures["code_accuracy"] = ("mean", torch.stack([*levels.values()]).sum(0))
        return measures | {f"{level}_code_accuracy": ("mean", counts) for level, counts in levels.items()}

    def _outcome(self, predicted: Step, true: Step) -> dict[str, tuple[str, Tensor]]:
        events = (step.reward.abs() > self.reward_threshold for step in (predicted, true))
        return {
            "reward_mae": metrics.mean_of((predicted.reward - true.reward).abs()),
            "reward_f1": metrics.f1(*events),
            "done_f1": metrics.f1(predicted.done, true.done),
        }
