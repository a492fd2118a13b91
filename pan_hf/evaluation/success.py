"""When an episode has reached its goal.

An end is not a goal by itself: CartPole pays for every step and ends when the pole falls. So success is defined only
where the environment says it in `info`, where the id is known here, or as the user says.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pan_hf.specs import load_callable

KEYS = ("is_success", "success")
"""What environments call it in `info`: Gymnasium-Robotics and PushT the first, Meta-World and ManiSkill the second."""

GOALS = {
    ("MiniGrid-", "BabyAI-", "pan_hf/", "FrozenLake", "Taxi-"): "reward>0",
    ("MountainCar", "Acrobot-", "CliffWalking-"): "terminated",
}
"""How episodes of environments whose id begins so end at their goal, as `--success` would say it."""

FORMS = "'terminated', 'truncated', 'reward>0', 'return>=475', 'info.KEY' or 'module:function'"


@dataclass(frozen=True)
class Ending:
    """The last step of an episode.

    Args:
        environment (`str`): its id.
        env: the environment itself.
        reward (`float`), terminated (`bool`), truncated (`bool`), info (`dict`): of the last step.
        total_reward (`float`): of the episode.
    """

    environment: str
    env: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]
    total_reward: float


Success = Callable[[Ending], bool | None]


def success_rule(asked: str | Callable | None) -> Success:
    """What tells whether an episode has reached its goal; the rule returns None where no goal is defined.

    Args:
        asked (`str` or `Callable`, *optional*): one of `FORMS`, of the last step: it ended the episode in the world
            ("terminated") or by its time limit ("truncated"), its reward, the sum of rewards, or a truth in its info;
            or a function `(env, reward, terminated, info) -> bool`. By default what the environment says, or what is
            known of its id.

    Raises:
        ValueError: a text of another form, or one that names no function.
    """
    if asked is None:
        return _default
    if callable(asked):
        return lambda ending: bool(asked(ending.env, ending.reward, ending.terminated, ending.info))
    if asked in ("terminated", "truncated"):
        return operator.attrgetter(asked)
    if asked.startswith("info.") and ":" not in asked:
        return lambda ending: _told(ending, [asked.removeprefix("info.")])
    if compared := re.fullmatch(r"(reward|return)\s*(>=|>)\s*(-?\d+(?:\.\d+)?)", asked):
        field = {"reward": "reward", "return": "total_reward"}[compared[1]]
        holds = operator.ge if compared[2] == ">=" else operator.gt
        return lambda ending: holds(getattr(ending, field), float(compared[3]))
    if ":" not in asked:
        raise ValueError(f"`success` is {FORMS}, got {asked!r}.")
    return success_rule(load_callable(asked, "success"))


def _told(ending: Ending, keys: Sequence[str]) -> bool | None:
    """What `info` says by the first of these keys that it has; None where it has none of them."""
    return next((bool(np.all(ending.info[key])) for key in keys if key in ending.info), None)


def _default(ending: Ending) -> bool | None:
    if (told := _told(ending, KEYS)) is not None:
        return told
    name = ending.environment.rpartition(":")[2]
    known = next((form for prefixes, form in GOALS.items() if name.startswith(prefixes)), None)
    return None if known is None else success_rule(known)(ending)
