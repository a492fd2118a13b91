"""Planners by name, as `pan plan --planner NAME?field=value` asks for them."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from pan_hf.agents.graph_search import GraphSearch
from pan_hf.agents.shooting import CEM, RandomShooting
from pan_hf.features import feature_class
from pan_hf.specs import parse_spec

PLANNERS: dict[str, type] = {"graph": GraphSearch, "cem": CEM, "random_shooting": RandomShooting}


def make_planners(specs: Sequence[str] | None, action) -> dict[str, Any]:
    """Planners by name, or by the whole text, such as "cem?horizon=8", where one name is asked for twice; None: all
    that fit the action.

    Raises:
        ValueError: an unknown planner or setting, or graph search over actions that are not discrete.
    """
    if specs is None:
        specs = [name for name in PLANNERS if name != "graph" or feature_class(action.kind).is_discrete]
    specs = [specs] if isinstance(specs, str) else list(specs)
    names = [parse_spec(spec)[0] for spec in specs]
    made = {}
    for spec in specs:
        name, settings = parse_spec(spec)
        if name not in PLANNERS:
            raise ValueError(f"Unknown planner {name!r}; expected some of {sorted(PLANNERS)}.")
        if name == "graph" and not feature_class(action.kind).is_discrete:
            raise ValueError(f"'graph' tries every action, and this model's are {action.kind!r}; use cem.")
        try:
            label = name if names.count(name) == 1 else spec  # settings are in the record's command
            made[label] = PLANNERS[name](**settings)
        except TypeError as error:
            known = sorted(field.name for field in fields(PLANNERS[name]))
            raise ValueError(f"Planner {spec!r}: {error}; its settings are {known}.") from error
    if not made:
        raise ValueError(f"No planner was asked for; expected some of {sorted(PLANNERS)}.")
    return made


def comparing(planner, world):
    """A planner that compares states as far as a world at an effort predicts them."""
    levels = getattr(world, "key_levels", None)
    if levels is None or not isinstance(planner, GraphSearch) or planner.key_levels is not None:
        return planner
    return replace(planner, key_levels=levels)
