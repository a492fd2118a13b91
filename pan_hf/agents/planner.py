"""What every planner does before its search and after it; the file of a planner has its settings and its search."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pan_hf.agents.actions import MASK, ActionParts
from pan_hf.agents.critics import as_critic
from pan_hf.agents.plan import Contradicted, Plan, check_numbers, check_one_row, compared_keys, device_of, draw_seed
from pan_hf.agents.world import CountedWorld, World
from pan_hf.modeling.state_pan import Actions
from pan_hf.modeling.validation_pan import whole


class Problem:
    """What a planner is asked, checked, and what every search asks of it.

    Args:
        world, belief, critic, generator, refuted, mask, previous: see [`Planner.plan`]; the world is counted.
        key_levels (`int`, *optional*): see [`GraphSearch`].

    Attributes:
        parts ([`ActionParts`]): of the world.
        masks (`dict[str, torch.Tensor]`): which choices are allowed now, by part.
        num_claims, num_refused (`int`): ways to the goal that were looked at again, and those that did not hold.
        folded_by, compared_by (`dict[str, int]`): arguments of `keys` where states fold, and where they are compared
            with what is seen, see `compared_keys`.

    Raises:
        ValueError: a belief of more than one row, no critic, no generator of torch, or a mask that allows nothing.
    """

    def __init__(
        self,
        world: World,
        belief,
        critic,
        generator: torch.Generator | None = None,
        refuted: Contradicted | None = None,
        mask=None,
        previous: Plan | None = None,
        key_levels: int | None = None,
    ):
        check_one_row(belief, generator)
        self.world, self.belief, self.critic = CountedWorld(world), belief, as_critic(critic)
        self.generator, self.refuted, self.previous = generator, refuted or Contradicted(), previous
        self.parts = ActionParts(world.config)
        self.masks = self.parts.check_masks(mask)
        self.folded_by = {} if key_levels is None else {"levels": key_levels}
        self.compared_by = compared_keys(world, key_levels)
        self.num_claims = self.num_refused = 0

    def root_keys(self) -> tuple[bytes, bytes]:
        """Of the belief to start from, where states fold, and where they are compared."""
        return self.belief.keys(**self.folded_by)[0], self.belief.keys(**self.compared_by)[0]

    def drawn(self, temperature: float) -> dict[str, Any]:
        """Arguments of `simulate`: temperature, and the seed of what is drawn above 0."""
        return {"temperature": temperature} | ({"seed": draw_seed(self.generator)} if temperature else {})

    def allowed_now(self) -> Tensor | None:
        """Which actions the mask allows, bool `(num_choices,)`; None where there is none. Of discrete actions."""
        numbers = torch.arange(self.parts.num_choices)
        return self.parts.allows(self.masks, self.parts.of_numbers(numbers)) if self.masks else None

    def allowed_in(self, beliefs) -> Tensor | None:
        """Which actions the imagined masks allow, bool `(N, num_choices)`; None of a world that predicts no mask."""
        return (beliefs.decode(MASK) > 0.5).cpu() if self.parts.predicts_mask(self.world.config) else None

    def random_actions(self, count: int, masks: dict[str, Tensor]) -> Tensor | Actions:
        """`(count, ...)` random actions that the masks allow."""
        drawn = {name: part.random((count,), self.generator) for name, part in self.parts.parts.items()}
        return self.parts.join(self.parts.redrawn(drawn, masks, self.generator))

    def confirms(self, actions: Tensor | Actions) -> bool:
        """Whether the critic takes the end of a plan `(length, ...)` for the goal on a second look."""
        is_confirmed = self.critic.confirms(self.world, self.belief, actions.to(device_of(self.world)))
        self.num_claims += 1
        self.num_refused += not is_confirmed
        return is_confirmed


@dataclass(frozen=True)
class Planner:
    """Settings, and `plan`. A subclass is a frozen dataclass with a `_search`."""

    begins_with_previous: ClassVar[bool] = False
    """Whether a plan begins with what is left of the last one."""

    def check_world(self, config: Any) -> None:
        """Raises ValueError where the planner cannot take the actions of a world."""
        check_drawable(ActionParts(config))

    @torch.no_grad()
    def plan(
        self,
        world: World,
        belief,
        critic,
        *,
        generator: torch.Generator | None = None,
        refuted: Contradicted | None = None,
        mask=None,
        previous: Plan | None = None,
    ) -> Plan:
        """What to do from a belief on.

        Args:
            world ([`World`]): the model to imagine with.
            belief: where to start; one row.
            critic ([`Critic`] or function of futures): what is wanted.
            generator (`torch.Generator`, *optional*): on the CPU; the same state gives the same plan.
            refuted ([`Contradicted`], *optional*): what the real world has shown to be wrong; no use to a planner that
                does not compare states.
            mask (*optional*): which actions are allowed now, `(num_actions,)` of 0 and 1, by part where there are
                several; all by default. Later ones are known where the world has a sense "action_mask".
            previous (`Plan`, *optional*): what is left of the last plan; of use to planners that begin with it.

        Raises:
            ValueError: a belief of more than one row, an action that the planner cannot take, a critic whose scores
                are not numbers, or a mask that allows nothing.
        """
        start = time.perf_counter()
        self.check_world(world.config)
        key_levels = getattr(self, "key_levels", None)
        problem = Problem(world, belief, critic, generator, refuted, mask, previous, key_levels)
        plan = self._search(problem)
        if plan is None:  # every way out is refuted: believe the model again
            problem.refuted = Contradicted()
            plan = self._search(problem)
        if plan is None:
            raise ValueError(f"{type(self).__name__}: none of the actions that it tries is allowed now.")
        seconds, spent = time.perf_counter() - start, problem.world
        plan = replace(plan, num_claims=problem.num_claims, num_refused=problem.num_refused)
        return replace(plan, seconds=seconds, num_simulated=spent.num_simulated, num_calls=spent.num_calls)

    def _search(self, problem: Problem) -> Plan | None:
        """The best plan; None where no action may be tried. What it costs is filled in by `plan`."""
        raise NotImplementedError


def check_counts(owner: Any, *names: str) -> None:
    """Makes fields of a planner whole numbers, and `key_levels` unless it is None. Raises ValueError for others, and
    for less than 1."""
    levels = [] if owner.key_levels is None else ["key_levels"]
    check_numbers(owner, whole, *names, *levels, least=1)


def check_choices(owner: Any) -> None:
    """Makes the field `actions` of a planner a tuple, unless it is None. Raises ValueError for anything but numbers
    and names of actions."""
    if owner.actions is None:
        return
    is_one = isinstance(owner.actions, str) or not isinstance(owner.actions, Iterable)
    given = [owner.actions] if is_one else list(owner.actions)
    try:
        chosen = tuple(each if isinstance(each, str) and each else whole("actions", each) for each in given)
    except ValueError:
        chosen = ()
    if not chosen:
        raise ValueError(
            f"{type(owner).__name__}: `actions` must be numbers or names of actions, got {owner.actions!r}."
        )
    object.__setattr__(owner, "actions", chosen)


def check_discrete(owner: Any, parts: ActionParts) -> None:
    """Raises ValueError unless all parts of an action are choices."""
    if not parts.is_discrete:
        kinds = [part.kind for part in parts.parts.values()]
        raise ValueError(
            f"{type(owner).__name__} tries every action, so it needs 'discrete' ones; got {kinds}. Use CEM or "
            "RandomShooting for vectors, and make what is said a choice (a wrapper with spaces.Discrete)."
        )


def check_drawable(parts: ActionParts) -> None:
    """Raises ValueError where a part of an action cannot be drawn at random."""
    for part in parts.parts.values():
        part.random((1,), torch.Generator())
