"""Planners by name, as `pan plan --planner NAME?field=value` asks for them."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.beam_search import BeamSearch
from pan_hf.agents.graph_search import GraphSearch
from pan_hf.agents.icem import ICEM
from pan_hf.agents.mcts import MCTS
from pan_hf.agents.mppi import MPPI
from pan_hf.agents.policy import PolicyPlanner
from pan_hf.agents.reasoners import ReasonersSearch
from pan_hf.agents.shooting import CEM, RandomShooting
from pan_hf.agents.strategy_search import StrategySearch
from pan_hf.modeling.validation_pan import strings
from pan_hf.specs import parse_spec

PLANNERS: dict[str, type] = {
    "graph": GraphSearch,
    "cem": CEM,
    "random_shooting": RandomShooting,
    "icem": ICEM,
    "mppi": MPPI,
    "beam": BeamSearch,
    "mcts": MCTS,
    "strategy": StrategySearch,
    "reasoners": ReasonersSearch,
    "policy": PolicyPlanner,
}
UNASKED = ("graph", "cem", "random_shooting")
"""Planners that are compared where none is named."""


def make_planners(specs: Sequence[str] | None, config, has_goal: bool = True) -> dict[str, Any]:
    """Planners by name, or by the whole text, such as "cem?horizon=8", where one name is asked for twice; None: those
    of `UNASKED` that fit.

    Args:
        config: of the world, with its actions.
        has_goal (`bool`): whether what is wanted is a goal to be reached, rather than as much as possible.

    Raises:
        ValueError: an unknown planner or setting, a value that a setting cannot have, the same text twice, a planner
            that cannot take the actions of the world, or graph search for no goal.
    """
    is_discrete = ActionParts(config).is_discrete
    if specs is None:
        specs = [name for name in UNASKED if name != "graph" or (is_discrete and has_goal)]
    specs = [specs] if isinstance(specs, str) else strings("planners", specs)
    if len(set(specs)) < len(specs):
        raise ValueError(f"Planners {specs}: one is there twice; leave it out, or give it other settings.")
    names = [parse_spec(spec)[0] for spec in specs]
    made = {}
    for spec in specs:
        name, settings = parse_spec(spec)
        if name not in PLANNERS:
            raise ValueError(f"Unknown planner {name!r}; expected some of {sorted(PLANNERS)}.")
        if name == "graph" and not has_goal:
            raise ValueError(
                "'graph' searches the nearest goal, and there is none: no recorded step is rewarded, or most recorded "
                "steps are rewarded as much as a goal would be. Use cem, or name a reward that few steps bring with "
                "`reward_threshold`."
            )
        try:
            label = name if names.count(name) == 1 else spec  # settings are in the record's command
            planner = PLANNERS[name](**settings)
        except TypeError as error:
            settings_of = sorted(field.name for field in fields(PLANNERS[name]))
            raise ValueError(f"Planner {spec!r}: {error}; its settings are {settings_of}.") from error
        except ValueError as error:
            raise ValueError(f"Planner {spec!r}: {error}") from error
        if hasattr(planner, "check_world"):
            planner.check_world(config)
        made[label] = planner
    if not made:
        raise ValueError(f"No planner was asked for; expected some of {sorted(PLANNERS)}.")
    return made


def guided(planner, policy):
    """A planner that tries first what a policy would, where it takes a `prior` and was given none."""
    if not policy.flat.is_discrete or getattr(planner, "prior", guided) is not None:
        return planner
    return replace(planner, prior=policy.prior)


def comparing(planner, world):
    """A planner that compares states as far as a world at an effort predicts them."""
    levels = getattr(world, "key_levels", None)
    if levels is None or getattr(planner, "key_levels", levels) is not None:
        return planner
    return replace(planner, key_levels=levels)
