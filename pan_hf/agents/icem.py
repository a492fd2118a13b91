"""The improved cross-entropy method, iCEM (Pinneri et al. 2020): as good as [`CEM`] on a fraction of the samples.

Noise is coloured, so that neighbouring steps push the same way; elites stay from one iteration to the next and from
one plan to the next; each iteration has fewer samples than the one before; the mean itself is tried in the last one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.plan import Plan, check_numbers
from pan_hf.agents.planner import Problem
from pan_hf.agents.shooting import CEM, Categorical, Gaussian, Imagined, proposals_of
from pan_hf.features import feature_class
from pan_hf.modeling.validation_pan import real


@dataclass(frozen=True, repr=False)
class SampledPlan(Plan):
    """A plan and the best sequences that were sampled with it, with which the next plan begins.

    Args:
        elites (`dict[str, torch.Tensor]`): `(K, H, ...)` by part of the action, the best first.
    """

    elites: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def rest(self, taken: int) -> Plan | None:
        if all(taken >= part.shape[1] for part in self.elites.values()):
            return None
        left = super().rest(taken) or self.along(self.actions[-1:], None)
        return SampledPlan(**vars(left), elites={name: part[:, taken:] for name, part in self.elites.items()})


@dataclass(frozen=True)
class ICEM(CEM):
    """Improved cross-entropy method. Vector actions have coloured noise; other parts of an action are drawn as in
    [`CEM`].

    Args:
        num_samples (`int`): sequences of the first iteration.
        horizon, num_iterations, elite_fraction, smoothing, initial_std, num_rollouts, temperature, batch_size,
            objective: see [`CEM`].
        noise_beta (`float`): exponent of the noise's colour; 0 is white, 2 a random walk.
        shrinking (`float`): each iteration has so many times fewer samples, 1 or more; twice the elites at least.
        keep_fraction (`float`): share of the elites that stay for the next iteration, and for the next plan.

    Raises:
        ValueError: as [`CEM`].
    """

    noise_beta: float = 2.0
    shrinking: float = 1.25
    keep_fraction: float = 0.3

    begins_with_previous: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, real, "noise_beta", least=0)
        check_numbers(self, real, "shrinking", least=1)
        check_numbers(self, real, "keep_fraction", least=0, most=1)

    def check_world(self, config: Any) -> None:
        """Raises ValueError where no part of the action is numbers, or one cannot be drawn."""
        super().check_world(config)
        check_has_numbers(self, config)

    def _search(self, problem: Problem) -> Plan | None:
        """The best sequence of any iteration."""
        imagined, num_elites = Imagined(self, problem), self.num_elites
        num_kept = round(self.keep_fraction * num_elites)
        proposals = proposals_of(problem.parts, self.horizon, self.initial_std, self.noise_beta)
        added = [{name: part[:num_kept] for name, part in left.items()} for left in begin_with(problem, proposals)]
        for iteration in range(self.num_iterations):
            num = max(2 * num_elites, round(self.num_samples / self.shrinking**iteration))
            if iteration == self.num_iterations - 1:
                added.append({name: proposal.center[None] for name, proposal in proposals.items()})
            sampled = {name: each.sample(num, problem.generator) for name, each in proposals.items()}
            sampled = {name: torch.cat([part, *(each[name] for each in added)]) for name, part in sampled.items()}
            elites = imagined.judge(sampled).topk(num_elites).indices
            best = {name: part[elites] for name, part in sampled.items()}
            added = [{name: part[:num_kept] for name, part in best.items()}]
            for name, proposal in proposals.items():
                proposal.refit(best[name], self.smoothing)
        return SampledPlan(**vars(imagined.plan()), elites=best)


def begin_with(problem: Problem, proposals: Mapping[str, Categorical | Gaussian]) -> list[dict[str, Tensor]]:
    """Moves what numbers are drawn from to what the last plan leaves. Returns its sequences `(K, H, ...)` by part, the
    best first, whose last action is repeated; nothing without a last plan."""
    previous = problem.previous
    if previous is None:
        return []
    left = dict(getattr(previous, "elites", None) or problem.parts.split(previous.actions[None]))
    for name, proposal in proposals.items():
        horizon = len(proposal.center)
        left[name] = left[name][:, torch.arange(horizon).clamp(max=left[name].shape[1] - 1)].cpu()
        if isinstance(proposal, Gaussian):
            proposal.mean = left[name].mean(dim=0)
    return [left]


def check_has_numbers(owner: Any, config: Any) -> None:
    """Raises ValueError where no part of a world's action is numbers."""
    kinds = [part.kind for part in ActionParts(config).parts.values()]
    if not any(feature_class(kind).is_numeric for kind in kinds):
        raise ValueError(
            f"{type(owner).__name__} moves numbers, so it needs a part of 'vector' in the action; got {kinds}. Use "
            "CEM, or a search such as MCTS or GraphSearch."
        )
