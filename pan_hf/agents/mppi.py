"""Model predictive path integral control, MPPI (Williams et al. 2017).

One nominal sequence is moved by the mean of many noisy ones, weighed by the exponential of what each is worth. Unlike
[`CEM`], no sample is thrown away, and the noise does not shrink.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pan_hf.agents.icem import SampledPlan, begin_with, check_has_numbers
from pan_hf.agents.plan import Plan, check_numbers
from pan_hf.agents.planner import Problem
from pan_hf.agents.shooting import Imagined, Shooting, proposals_of
from pan_hf.modeling.validation_pan import real, whole


@dataclass(frozen=True)
class MPPI(Shooting):
    """Model predictive path integral control. Its plan is the nominal sequence, not a sampled one.

    Args:
        num_samples, horizon, num_rollouts, temperature, batch_size, objective: see [`RandomShooting`], each iteration.
        num_iterations (`int`): times the nominal sequence is moved.
        sharpness (`float`): 1 over the temperature of the weights, in standard deviations of what the samples are
            worth, so that it is the same for every world; 0 weighs all alike, and a large one takes the best.
        noise_std (`float`): of the noise, as a share of half the action's range.
        noise_beta (`float`): exponent of the noise's colour, see [`ICEM`]; white noise by default.

    Raises:
        ValueError: as [`RandomShooting`].
    """

    num_samples: int = 128
    horizon: int = 12
    num_iterations: int = 3
    sharpness: float = 5.0
    noise_std: float = 0.5
    noise_beta: float = 0.0
    num_rollouts: int = 1
    temperature: float = 0.0
    batch_size: int = 256
    objective: str = "critic"

    begins_with_previous: ClassVar[bool] = True

    def __post_init__(self):
        self._check_imagining()
        check_numbers(self, whole, "num_iterations", least=1)
        check_numbers(self, real, "noise_std", least=0, above=True)
        check_numbers(self, real, "sharpness", "noise_beta", least=0)

    def check_world(self, config: Any) -> None:
        """Raises ValueError where no part of the action is numbers, or one cannot be drawn."""
        super().check_world(config)
        check_has_numbers(self, config)

    def _search(self, problem: Problem) -> Plan | None:
        """The nominal sequence after the last iteration."""
        imagined = Imagined(self, problem)
        proposals = proposals_of(problem.parts, self.horizon, self.noise_std, self.noise_beta)
        begin_with(problem, proposals)
        for _ in range(self.num_iterations):
            sampled = {name: each.sample(self.num_samples, problem.generator) for name, each in proposals.items()}
            weights = self._weights(imagined.judge(sampled))
            for name, proposal in proposals.items():
                proposal.move(sampled[name], weights)
        nominal = {name: proposal.center[None].clone() for name, proposal in proposals.items()}
        imagined.best = None
        imagined.judge(nominal)
        return SampledPlan(**vars(imagined.plan()), elites=nominal)

    def _weights(self, values: Tensor) -> Tensor:
        spread = values.std(correction=0).clamp(min=1e-9)
        return (self.sharpness * values / spread).softmax(dim=0)
