"""What a predicted step is worth: predicted against true observations, codes, reward and end, by metric name."""

from dataclasses import dataclass, field, replace
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
        reward (`Tensor` of shape `(n,)`), done (boolean `Tensor` of shape `(n,)`): of the action that led here; the
            reward of all actors together.
        actor_rewards (`dict[str, Tensor]`): by actor `(n,)`, in a world that rewards several.
        present (`dict[str, Tensor]`): by sense that may be absent, in which windows it is there, bool `(n,)`.
    """

    observations: dict[str, Tensor]
    codes: dict[str, list[Tensor]]
    reward: Tensor
    done: Tensor
    actor_rewards: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)

    def unrewarded(self) -> "Step":
        """The same state reached without reward or end: what copying it as a prediction claims."""
        nothing = {actor: torch.zeros_like(reward) for actor, reward in self.actor_rewards.items()}
        reward, done = torch.zeros_like(self.reward), torch.zeros_like(self.done)
        return replace(self, reward=reward, done=done, actor_rewards=nothing)

    def coarsest(self) -> "Step":
        """The same with the coarsest level of codes alone."""
        return replace(self, codes={name: codes[:1] for name, codes in self.codes.items()})

    def where(self, chosen: Tensor) -> "Step":
        """The windows that the boolean `chosen` `(n,)` keeps."""

        def rows(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: values[chosen] for name, values in tensors.items()}

        return Step(
            rows(self.observations),
            {name: [codes[chosen] for codes in levels] for name, levels in self.codes.items()},
            self.reward[chosen],
            self.done[chosen],
            rows(self.actor_rewards),
            rows(self.present),
        )


class Comparison:
    """Compares predicted steps with true ones. Where a sense is absent in truth, it counts for nothing.

    Args:
        senses (`dict`): the model's senses by name.
        references (`dict`): by sense that changes with time, what its `Feature.reference` gave.
        reward_threshold (`float`): see `REWARD_THRESHOLD`.
    """

    def __init__(self, senses: dict, references: dict[str, Any], reward_threshold: float):
        self.features = {name: feature_of(sense) for name, sense in senses.items()}
        self.references, self.reward_threshold = references, reward_threshold
        # names of the senses that change with time
        self.predicted = [name for name, feature in self.features.items() if not feature.is_task]

    def name(self, sense: str, metric: str) -> str:
        """The metric's name, with the sense's before it where several senses of its kind are predicted."""
        alike = [name for name in self.predicted if self.features[name].kind == self.features[sense].kind]
        return metric if len(alike) == 1 else f"{sense}_{metric}"

    def __call__(self, predicted: Step, true: Step, last_seen: Step) -> dict[str, tuple[str, Tensor]]:
        """`metric: (formula, components)` of `predicted` against `true`; "changed" is since `last_seen`."""
        measures = self.observed(predicted.observations, true, last_seen)
        return measures | self._codes(predicted, true, last_seen) | self._outcome(predicted, true)

    def observed(self, predicted: dict[str, Tensor], true: Step, last_seen: Step) -> dict[str, tuple[str, Tensor]]:
        """What of `__call__` is about observations, of the senses in `predicted`."""
        measures: dict[str, tuple[str, Tensor]] = {}
        for name in self.predicted:
            if name in predicted:
                views = predicted[name], true.observations[name], last_seen.observations[name]
                of_sense = self.features[name].measures(*views, self.references[name])
                measures |= {self.name(name, key): value for key, value in of_sense.items()}
                if name in true.present:
                    measures |= {
                        self.name(name, key): metrics.only_where(value, true.present[name])
                        for key, value in of_sense.items()
                    }
        return measures

    def changed(self, true: Step, last_seen: Step) -> Tensor:
        """`(n,)`: whether anything observed differs from the last frame seen."""
        flags = []
        for name in self.predicted:
            differs = (true.observations[name] != last_seen.observations[name]).reshape(len(true.reward), -1).any(1)
            flags.append(differs & true.present.get(name, differs))
        return torch.stack(flags).any(0)

    def exact(self, predicted: Step, true: Step) -> Tensor:
        """`(n,)`: whether all codes of all senses, and all tokens of texts, are the true ones."""
        equal = {name: metrics.equal_codes(predicted.codes[name], true.codes[name]) for name in true.codes}
        for name in self.predicted:
            if name not in true.codes:
                equal[name] = (predicted.observations[name] == true.observations[name]).flatten(1).all(1)
        is_absent = {name: ~present for name, present in true.present.items()}
        return torch.stack([flags | is_absent.get(name, flags) for name, flags in equal.items()]).all(0)

    def moving_error(self, predicted: Step, true: Step, last_seen: Step) -> Tensor | None:
        """Components of `psnr_moving` with the pixels of all senses that have one pooled, `(n, 2)`."""
        errors = []
        for name in self.predicted:
            views = predicted.observations[name], true.observations[name], last_seen.observations[name]
            error = self.features[name].moving_error(*views, self.references[name])
            if error is not None:
                present = true.present.get(name)
                errors.append(error if present is None else error * present.unsqueeze(1))
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
        by_actor = {
            f"{actor}_reward_mae": metrics.mean_of((predicted.actor_rewards[actor] - reward).abs())
            for actor, reward in true.actor_rewards.items()
        }
        return by_actor | {
            "reward_mae": metrics.mean_of((predicted.reward - true.reward).abs()),
            "reward_f1": metrics.f1(*events),
            "done_f1": metrics.f1(predicted.done, true.done),
        }
