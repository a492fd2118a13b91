"""A plan: actions, and what the planner expects of them."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, repr=False)
class Plan:
    """Actions, and what the planner expects of them.

    Args:
        actions (`torch.Tensor`): `(length,)` int64 or `(length, D)` float; at least one action.
        expected_return (`float`): what the critic thinks the plan is worth.
        states (`list[bytes]`, *optional*): key of the state expected after each action, see `compared_keys`; `None`
            where the planner does not compare states.
        num_simulated (`int`): imagined steps spent on finding it.
        seconds (`float`): wall time spent on finding it.
        reaches_goal (`bool`): whether the last action is expected to reach the critic's threshold.
        num_folded (`int`): imagined states that were equal to one seen before.
    """

    actions: torch.Tensor
    expected_return: float
    states: list[bytes] | None
    num_simulated: int
    seconds: float
    reaches_goal: bool = False
    num_folded: int = 0

    def __len__(self) -> int:
        return len(self.actions)

    def __repr__(self) -> str:
        shown = [[round(number, 3) for number in a] if isinstance(a, list) else a for a in self.actions.tolist()]
        actions = ", ".join(map(str, shown[:12])) + (", ..." if len(shown) > 12 else "")
        goal = "reaches the goal, " if self.reaches_goal else ""
        return (
            f"Plan({len(self)} actions: {actions}; {goal}expected return {self.expected_return:.3g}; "
            f"{self.num_simulated} imagined steps in {self.seconds:.2g} s)"
        )


@dataclass
class Contradicted:
    """What the real world has shown to be wrong, as (key of the state, action): plans keep away from it.

    Args:
        transitions: actions that led elsewhere than imagined; not to be planned through.
        goals: actions that were imagined to reach the goal and did not.
    """

    transitions: set[tuple[bytes, int]] = field(default_factory=set)
    goals: set[tuple[bytes, int]] = field(default_factory=set)


def compared_keys(world, key_levels: int | None) -> dict[str, int]:
    """Arguments of `keys` where an imagined state is compared with a seen one: by the present alone. How many earlier
    steps a belief holds depends on how it came about, so keys of all of them would differ without a surprise."""
    arguments = {} if key_levels is None else {"levels": key_levels}
    return arguments if getattr(world.config, "context_steps", 1) == 1 else arguments | {"steps": 0}


def draw_seed(generator: torch.Generator | None) -> int:
    return int(torch.randint(2**31, (1,), generator=generator))


def device_of(world) -> torch.device:
    return getattr(world, "device", torch.device("cpu"))


def check_positive(config, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{type(config).__name__}: `{name}` must be positive, got {getattr(config, name)}.")


def check_one_part(world) -> None:
    if world.config.action is None:
        raise ValueError(
            f"A planner proposes actions of one part; this world's have {list(world.config.actions)}. Plan in a "
            "wrapper of it whose `simulate` fills in the other parts, and whose `config.action` is the one to plan."
        )


def check_one_row(belief) -> None:
    if len(belief) != 1:
        raise ValueError(f"A plan starts from one belief; got {len(belief)} rows. Use `belief.select` to pick one.")
