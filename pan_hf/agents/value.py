"""A learned value: the rewards that may be expected from a state on, and how sure that is.

Several small networks read what the model believes, each trained on another sample of the episodes; their mean is the
value, and where they differ, little was recorded. It is the value of what was done in the recording. Planners take it
for what comes after the end of what they imagined. A folder of it holds `value.safetensors` and `value.json`.

Shapes: N = rows, K = networks, D = numbers of a belief, see `state_features`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pan_hf.agents.critics import Critic, as_critic
from pan_hf.agents.policy import check_hidden, check_scales, perceptron
from pan_hf.envs.state_features import StateFeatures
from pan_hf.files import finish_writing, read_json, whole_folder
from pan_hf.modeling.state_pan import Actions
from pan_hf.modeling.validation_pan import real, whole

if TYPE_CHECKING:
    from pan_hf.modeling import PanModel

WEIGHTS, DESCRIPTION = "value.safetensors", "value.json"


class LearnedValue(nn.Module):
    """What rewards the networks expect from beliefs on, discounted, in the unit of rewards.

    Args:
        sizes (`Mapping[str, int]`), scales (`Mapping[str, float]`): of [`StateFeatures`].
        hidden (`Sequence[int]`): widths of the layers between.
        members (`int`): K.
        discount (`float`): of rewards, a step.
        about (`Mapping`, *optional*): what else `value.json` says, as how it was learned.

    Attributes:
        center, spread: scalars; of the returns that it learned from.
    """

    center: Tensor
    spread: Tensor

    def __init__(
        self,
        sizes: Mapping[str, int],
        scales: Mapping[str, float],
        hidden: Sequence[int],
        members: int,
        discount: float,
        about: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.sizes, self.scales, self.hidden = dict(sizes), dict(scales), list(hidden)
        self.discount, self.about = discount, dict(about or {})
        inputs = sum(self.sizes.values())
        self.members = nn.ModuleList(
            nn.Sequential(*perceptron(inputs, hidden, nn.SiLU), nn.Linear(hidden[-1], 1)) for _ in range(members)
        )
        self.register_buffer("center", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """What each network expects, `(K, N)`. Args: x `(N, D)`."""
        return torch.cat([member(x).T for member in self.members]) * self.spread + self.center

    @torch.no_grad()
    def expected(self, belief: Any) -> Tensor:
        """What each network expects from each row on, `(K, N)`.

        Raises:
            ValueError: a belief of no model, or of one with other senses.
        """
        model = getattr(belief, "model", None)
        if model is None:
            raise ValueError("A learned value reads beliefs of the model that it was learned in; got one of no model.")
        return self(StateFeatures(model, self.scales)(belief))

    def interval(self, belief: Any, confidence: float = 0.9) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, and the ends of the interval in which the expected return lies by how far the networks differ, `(N,)`
        each. Args: confidence, in (0, 1)."""
        confidence = real("confidence", confidence, 0, 1, above=True)
        each = self.expected(belief)
        width = statistics.NormalDist().inv_cdf(min((1 + confidence) / 2, 1 - 1e-9)) * each.std(0, correction=0)
        return each.mean(0), each.mean(0) - width, each.mean(0) + width

    def save(self, folder: str | Path) -> None:
        """Writes it into a folder, which changes whole or not at all."""
        built = {"sizes": self.sizes, "scales": self.scales, "hidden": self.hidden, "members": len(self.members)}
        described = built | {"discount": self.discount, "about": self.about}
        with whole_folder(folder) as temporary:
            save_file({name: each.cpu().contiguous() for name, each in self.state_dict().items()}, temporary / WEIGHTS)
            (temporary / DESCRIPTION).write_text(json.dumps(described, indent=1))

    @classmethod
    def load(cls, folder: str | Path, model: PanModel) -> LearnedValue:
        """Reads what `save` wrote, for the model that it was learned in, or one that has grown from it.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another model.
        """
        folder = Path(folder)
        finish_writing(folder)
        if not (folder / DESCRIPTION).is_file():
            raise FileNotFoundError(f"No value in {folder}: expected {DESCRIPTION} in it; `pan value` learns one.")
        try:
            described, weights = read_json(folder / DESCRIPTION), load_file(folder / WEIGHTS)
            described["scales"] = check_scales(described["scales"])
            described["hidden"] = check_hidden(described["hidden"])
            described["members"] = whole("members", described["members"], 1, len(weights))
            described["discount"] = real("discount", described["discount"], 0, 1, above=True)
            with torch.device("meta"):  # nothing is drawn, and no memory is taken before the weights are seen to fit
                value = cls(**described)
            value.load_state_dict(weights, assign=True)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, IndexError, SafetensorError) as error:
            raise ValueError(f"{folder} is no learned value, or damaged ({error!r}); learn it again.") from error
        sizes = StateFeatures(model, value.scales).sizes
        if list(sizes.items()) != list(value.sizes.items()):
            raise ValueError(
                f"The value in {folder} reads {value.sizes}, the model says {sizes}. Take the model that it was "
                "learned in."
            )
        return value.to(model.device).float().eval()


@dataclass(frozen=True)
class ValueCritic(Critic):
    """Wants rewards on the way, and what a learned value expects after it.

    Searches over states ask the value of the states that they have not gone on from, and planners that sample
    sequences that of the last one. `GraphSearch` looks for the nearest goal, so it asks for none.

    Args:
        critic ([`Critic`]): of the rewards on the way; a [`RewardCritic`], with caution or without.
        value_of ([`LearnedValue`]): whose discount holds for all.
        caution (`float`): how many standard deviations of the networks are taken from their mean; 0 takes the mean,
            more is averse to states of which little was recorded.

    Raises:
        ValueError: a critic of states, or of one actor's reward; or no number.
    """

    critic: Critic = field(kw_only=True)
    value_of: LearnedValue = field(kw_only=True)
    caution: float = field(kw_only=True, default=0.0)

    scores_states: ClassVar[bool] = False

    def __post_init__(self):
        object.__setattr__(self, "critic", as_critic(self.critic))
        if self.critic.scores_states:
            raise ValueError(
                f"A learned value is of rewards, and {type(self.critic).__name__} scores states; use RewardCritic."
            )
        rewarding = getattr(self.critic, "critic", self.critic)  # a critic with caution holds the one of rewards
        if getattr(rewarding, "actor", None) is not None:
            raise ValueError("A learned value is of the rewards of all actors together; leave `actor` out.")
        object.__setattr__(self, "caution", real("caution", self.caution))
        object.__setattr__(self, "threshold", self.critic.threshold)
        object.__setattr__(self, "discount", self.value_of.discount)
        super().__post_init__()

    def score(self, futures) -> Tensor:
        return self.critic.score(futures)

    def reached(self, futures, scores: Tensor) -> Tensor:
        return self.critic.reached(futures, scores)

    def confirms(self, world, belief, actions: Tensor | Actions) -> bool:
        return self.critic.confirms(world, belief, actions)

    def promises(self, belief) -> Tensor:
        each = self.value_of.expected(belief)
        return each.mean(0) - self.caution * each.std(0, correction=0)

    def value(self, futures, scores: Tensor) -> Tensor:
        left = futures.continue_prob.prod(1) * self.discount ** total_duration(futures, scores)
        after = left * self.promises(futures.belief).to(left.device)
        return super().value(futures, scores) + after.to(scores.device)


def total_duration(futures: Any, scores: Tensor) -> Tensor | int:
    """How many steps futures are of in all, `(N,)` or a number; of a world that does not say, as many as scores."""
    duration = getattr(futures, "duration", None)
    return scores.shape[1] if duration is None else duration.sum(1)
