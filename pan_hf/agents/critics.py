"""Critics: how good is an imagined future, and has it reached the goal?

Shapes: N = rows (imagined futures), H = horizon (actions ahead), D = coordinates of a vector, n_l = codes of level l.
"""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from pan_hf.agents.plan import check_numbers
from pan_hf.features import feature_class
from pan_hf.modeling.state_pan import Actions
from pan_hf.modeling.validation_pan import real, strings, truth


@dataclass(frozen=True)
class Critic:
    """Scores futures step by step; a step that scores `threshold` or more has reached the goal.

    Args:
        threshold (`float`): the score that counts as reaching the goal.
        discount (`float`): in (0, 1]; below 1 an earlier reward is worth more.
    """

    threshold: float = 0.5
    discount: float = 0.99

    scores_states: ClassVar[bool] = True
    """Whether a score is of a state, and stays while the state does; a reward is of a step."""

    def __post_init__(self):
        check_numbers(self, real, "discount", least=0, most=1, above=True)
        check_numbers(self, real, "threshold", infinite=True)

    def score(self, futures) -> torch.Tensor:
        """How good each imagined step is, `(N, H)`."""
        raise NotImplementedError

    def reached(self, futures, scores: torch.Tensor) -> torch.Tensor:
        """Which imagined steps reach the goal, bool `(N, H)`."""
        return scores >= self.threshold

    def value(self, futures, scores: torch.Tensor) -> torch.Tensor:
        """What each future is worth as a whole, `(N,)`: discounted scores, each weighed by the chance to get there."""
        alive = torch.cumprod(futures.continue_prob, dim=1).roll(1, dims=1)
        alive[:, 0] = 1.0
        return (discounts(self.discount, futures, scores) * alive * scores).sum(dim=1)

    def combine(self, score: Any, after: Any) -> Any:
        """What a step is worth together with what follows it: `value`, one step at a time, for searches that meet
        futures in pieces. Numbers or arrays.

        Args:
            score: of the step.
            after: what follows is worth, discounted and weighed by the chance that the episode goes on.
        """
        return score + after

    def combined(self, scores: Sequence[float], passes: Sequence[float], promised: float) -> float:
        """What the steps of a way are worth together. Args: passes, the share of what follows each step that counts
        before it; promised, what follows the last one is worth."""
        for score, passed in zip(reversed(scores), reversed(passes), strict=True):
            promised = float(self.combine(score, passed * promised))
        return promised

    def outlook(self, score: float, steps: int) -> float:
        """What the next `steps` steps from a state are taken to be worth before anything of them is imagined: its
        score stays, or, of rewards, nothing."""
        if not self.scores_states:
            return 0.0
        return score * (steps if self.discount == 1 else (1 - self.discount**steps) / (1 - self.discount))

    def promises(self, belief) -> torch.Tensor | None:
        """What states are taken to be worth before anything of their future is imagined, `(N,)`, by a critic that
        knows more of them than their score; None, by which `outlook` holds, of others."""
        return None

    def confirms(self, world, belief, actions: torch.Tensor | Actions) -> bool:
        """Whether a plan, `actions` of shape `(H,)`, holds on a second look. Plain critics trust the first."""
        return True


@dataclass(frozen=True)
class RewardCritic(Critic):
    """Wants reward, as the model's own heads predict it.

    A search over hundreds of states finds the one that a reward head is wrong about. So a found goal is confirmed:
    the whole plan is imagined again from its root in one rollout, and has to be rewarded there too.

    Args:
        threshold (`float`): expected reward of a transition that counts as reaching the goal.
        discount (`float`): see [`Critic`].
        ends_episode (`bool`): the world ends its episodes with the reward, so a goal counts only where the
            continuation head agrees: two heads have to be wrong together.
        actor (`str`, *optional*): whose reward, in a world that rewards several; the sum of all by default.
    """

    ends_episode: bool = False
    actor: str | None = None

    scores_states: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, truth, "ends_episode")

    def score(self, futures) -> torch.Tensor:
        if self.actor is None:
            rewards = futures.reward.float()
            return rewards if rewards.dim() == 2 else rewards.sum(-1)
        actors = getattr(futures.belief.model.config, "actors", None) or []
        if self.actor not in actors:
            raise ValueError(f"RewardCritic: this world rewards {actors or 'nobody by name'}, not {self.actor!r}.")
        return futures.reward[..., actors.index(self.actor)].float()

    def reached(self, futures, scores: torch.Tensor) -> torch.Tensor:
        reached = scores >= self.threshold
        return reached & (futures.continue_prob < 0.5) if self.ends_episode else reached

    def confirms(self, world, belief, actions: torch.Tensor | Actions) -> bool:
        futures = world.simulate(belief, actions[None], temperature=0.0)
        return bool(self.reached(futures, self.score(futures))[0, -1])


@dataclass(frozen=True)
class GoalCritic(Critic):
    """Wants a state that looks like a given one; the value of a future is its best discounted step.

    Args:
        threshold (`float`): 1 asks for every code to match and every vector to be within its tolerance.
        discount (`float`): see [`Critic`].
        codes (`dict[str, list[torch.Tensor]]`): wanted codes of each sense that is no vector, `(n_l,)` a level; the
            score is the share that matches.
        vectors (`dict[str, torch.Tensor]`): wanted value of each vector sense, `(D,)`.
        scales (`dict[str, float]`): distance at which a vector scores 0, in the sense's unit.
        tolerance (`float`): distance within which a vector scores 1, as a share of its scale.
    """

    threshold: float = 1.0
    codes: dict = field(default_factory=dict)
    vectors: dict = field(default_factory=dict)
    scales: dict = field(default_factory=dict)
    tolerance: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, real, "tolerance", least=0)
        if not self.codes and not self.vectors:
            raise ValueError("GoalCritic needs at least one sense but texts to compare; got none.")

    @classmethod
    @torch.no_grad()
    def from_observation(cls, model, processor, observation: dict, senses=None, **kwargs) -> "GoalCritic":
        """The critic that wants what is seen in one `observation`.

        Args:
            model ([`PanModel`]), processor ([`PanProcessor`]): as loaded.
            observation (`dict`): raw senses by name; the goal is about those that are there, and says nothing of the
                others. Names the model has no sense for are ignored, as an environment gives more than is recorded.
            senses (`list[str]`, *optional*): which of them to compare; all but texts by default.
            kwargs: `threshold`, `discount`, `tolerance`.

        Raises:
            ValueError: `senses` names one that the model or the observation lacks, none is left to compare, or a name
                is that of a missing sense but for a letter or two.
        """
        senses = None if senses is None else strings("senses", senses)
        if not isinstance(observation, Mapping):
            raise ValueError(f"`observation` must be a dict by sense, got {type(observation).__name__}.")
        _check_spelling(observation, model.config.senses)
        shown = {name: value for name, value in observation.items() if name in model.config.coded_senses}
        if unknown := sorted(set(senses or ()) - set(shown)):
            raise ValueError(f"A goal can be about {sorted(shown)} of this observation, got `senses` {unknown}.")
        chosen = {name: model.config.senses[name] for name in shown if senses is None or name in senses}
        if not chosen:
            known = sorted(model.config.coded_senses)
            raise ValueError(f"A goal is about some of {known}; the observation has none, or `senses` names none.")
        seen = processor(observation={name: shown[name] for name in chosen}, partial=True).to(model.device)[
            "observation"
        ]
        vectors = {name: sense for name, sense in chosen.items() if feature_class(sense.kind).is_numeric}
        spans = {name: torch.tensor(sense.high) - torch.tensor(sense.low) for name, sense in vectors.items()}
        codes = {name: model.senses[name].encode(seen[name])[0] for name in chosen if name not in vectors}
        return cls(
            codes={name: [level[0, -1] for level in levels] for name, levels in codes.items()},
            vectors={name: seen[name][0, -1].float() for name in vectors},
            scales={name: float(span.norm()) for name, span in spans.items()},
            **kwargs,
        )

    def score(self, futures) -> torch.Tensor:
        scores = [self._matching(futures.codes[name], wanted) for name, wanted in self.codes.items()]
        scores += [self._nearness(name, futures.decode(name)) for name in self.vectors]
        return torch.stack(scores).mean(dim=0)

    def value(self, futures, scores: torch.Tensor) -> torch.Tensor:
        return (discounts(self.discount, futures, scores) * scores).amax(dim=1)

    def combine(self, score: Any, after: Any) -> Any:
        return np.maximum(score, after)

    def outlook(self, score: float, steps: int) -> float:
        return score

    @staticmethod
    def _matching(codes: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
        """Share of codes, over all levels, that are as wanted, absent ones aside: `(N, H)`."""
        right = torch.cat([level == goal for level, goal in zip(codes, wanted, strict=True)], dim=-1)
        known = torch.cat([level >= 0 for level in codes], dim=-1)
        # of a state in which the sense is absent nothing matches, and nothing differs: it is no goal
        return right.sum(-1) / known.sum(-1).clamp(min=1)

    def _nearness(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """1 within the tolerance of the wanted vector, falling to 0 at its scale: `(N, H)`."""
        distance = (values.float() - self.vectors[name]).norm(dim=-1) / self.scales.get(name, 1.0)
        return (1.0 - (distance - self.tolerance).clamp(min=0.0)).clamp(min=0.0)


@dataclass(frozen=True)
class FunctionCritic(Critic):
    """Any function of futures that returns scores `(N, H)`.

    Args:
        threshold (`float`): infinite by default: a function says what is better, not what is enough.
        discount (`float`): see [`Critic`].
        function (`Callable`): `futures -> (N, H)` scores.
    """

    threshold: float = float("inf")
    function: Callable = field(kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not callable(self.function):
            raise ValueError(f"FunctionCritic: `function` must be callable with futures, got {self.function!r}.")

    def score(self, futures) -> torch.Tensor:
        try:
            return self.function(futures)
        except TypeError as error:
            raise ValueError(f"The critic's function {self.function!r} failed on futures: {error}") from error


def _check_spelling(observation: Mapping, senses: Collection[str]) -> None:
    """Raises ValueError for a name that no sense has and a sense that is not there almost has."""
    missing = [name for name in senses if name not in observation]
    for name in observation:
        near = difflib.get_close_matches(str(name), missing, 1, cutoff=0.8)
        if name not in senses and near:
            raise ValueError(
                f"`observation` has {name!r} and lacks the sense {near[0]!r}; rename it, or leave it out if it is "
                "another."
            )


def as_critic(critic) -> Critic:
    """A [`Critic`] as it is; any other callable becomes a [`FunctionCritic`]."""
    if isinstance(critic, Critic):
        return critic
    if callable(critic):
        return FunctionCritic(function=critic)
    raise ValueError(f"Expected a Critic or a function futures -> (N, H) scores, got {type(critic).__name__}.")


def check_scores(scores: Any, futures) -> torch.Tensor:
    """What a critic says of futures, as float32 `(N, H)`.

    Raises:
        ValueError: another shape, or scores that are not numbers.
    """
    expected = tuple(futures.continue_prob.shape)
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != expected:
        what = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(
            f"A critic must return one score a future and step, a tensor of shape {expected}; got {what}."
        )
    if scores.isnan().any():
        raise ValueError(
            f"A critic returned NaN for {int(scores.isnan().sum())} of {scores.numel()} imagined steps, so no plan is "
            "better than another; check its division, roots and logarithms."
        )
    return scores.float()


def check_promises(promised: Any, count: int) -> list[float]:
    """What a critic promises of so many states. Raises ValueError for another shape, or what is no number."""
    if not isinstance(promised, torch.Tensor) or promised.shape != (count,) or not torch.isfinite(promised).all():
        what = f"shape {tuple(promised.shape)}" if isinstance(promised, torch.Tensor) else type(promised).__name__
        raise ValueError(f"A critic must promise one finite number a state, a tensor of shape ({count},); got {what}.")
    return promised.float().tolist()


def discounts(discount: float, futures, scores: torch.Tensor) -> torch.Tensor:
    """What a score counts for after the steps that have gone by, `(H,)` or `(N, H)`; transitions of a world that does
    not say how long they take are of one step."""
    elapsed = getattr(futures, "elapsed", None)
    elapsed = torch.arange(scores.shape[1]) if elapsed is None else elapsed
    return discount ** elapsed.to(scores.device, torch.float32)
