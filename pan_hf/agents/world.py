"""What planners ask of a world, and wrappers that change what a world is asked.

A [`PanModel`] is such a world; an exact simulator can be another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch

from pan_hf.features import feature_of
from pan_hf.modeling import PanModel
from pan_hf.modeling.effort_pan import Effort, as_effort


class FixedEffort:
    """A world model of which every `simulate` spends the same effort, unless another is given, and which adds up what
    its own effort costs.

    Args:
        model ([`PanModel`]): that imagines; everything else is asked of it.
        effort ([`Effort`], `str` or names of blocks): as `simulate` takes it.

    Attributes:
        steps (`int`), compute, tokens, denoiser_calls, seconds (`float`): spent so far; compute in whole steps.

    Raises:
        ValueError: an effort that the model cannot make.
    """

    def __init__(self, model, effort: Effort | str | tuple[str, ...]):
        self._model, self.effort = model, as_effort(effort, model)
        self.steps, self.compute, self.tokens, self.denoiser_calls, self.seconds = 0, 0.0, 0.0, 0.0, 0.0

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    @property
    def key_levels(self) -> int | None:
        """By how many levels states are to be compared: by the coarsest alone, unless every level is predicted."""
        everything = {block.name for block in self._model.blocks if block.level is not None}
        return None if self.effort.blocks is not None and everything <= set(self.effort.blocks) else 1

    @torch.no_grad()
    def simulate(self, belief, actions, **kwargs):
        """`simulate` of the model, at this effort unless another is given."""
        if "effort" in kwargs:  # as the maps of a report do: that is not what this world spends
            return self._model.simulate(belief, actions, **kwargs)
        futures = self._model.simulate(belief, actions, effort=self.effort, **kwargs)
        cost = futures.cost
        self.steps += cost.compute.numel()
        self.compute += float(cost.compute.sum())
        self.tokens += float(cost.tokens.sum())
        self.denoiser_calls += float(cost.denoiser_calls.sum())
        self.seconds += cost.seconds
        return futures

    def spent(self) -> dict[str, float]:
        """By metric, the mean of one imagined step; empty before the first."""
        if not self.steps:
            return {}
        names = ("compute", "tokens", "denoiser_calls")
        return {f"{name}_per_simulated_step": getattr(self, name) / self.steps for name in names} | {
            "simulated_steps_per_second": self.steps / self.seconds
        }


def parse_effort(text: str) -> Effort | str | tuple[str, ...]:
    """An effort from a command line: "all", "focused", "coarsest", "auto", blocks as "camera.0,camera.1", or fields as
    "price=0.1,task=planning".

    Raises:
        ValueError: a field that an effort does not have, or a wrong value.
    """
    if "=" not in text:
        parts = tuple(part.strip() for part in text.split(","))
        return parts if "." in text or len(parts) > 1 else text
    fields = dict(part.strip().split("=", 1) for part in text.split(",") if "=" in part)
    known: dict[str, Callable] = {"cap": float, "price": float, "least_change": _float_or_none, "task": str}
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(f"An effort has the fields {sorted(known)}, got {unknown} in {text!r}.")
    return Effort(**{name: known[name](value) for name, value in fields.items()})


def _float_or_none(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def within(model: PanModel, id: str, feature: dict):
    """The model as a planner may use it in an environment: one that has grown actions does without them where the
    environment knows the first ones only. Raises ValueError where the two do not fit."""
    action: Any = model.config.action
    taken, known = feature_of(feature), feature_of(action)
    if taken.kind != known.kind or not taken.is_playable(known):
        raise ValueError(f"{id} takes the action {feature}, and the model was built for {action}; train one for it.")
    if taken.is_discrete and feature["n"] < action.num_actions:
        return FewerActions(model, feature["n"])
    return model


class FewerActions:
    """A world model, but for its later actions."""

    def __init__(self, model: PanModel, num_actions: int):
        self._model, self.config = model, copy.copy(model.config)
        action: Any = model.config.action
        names = None if action.names is None else action.names[:num_actions]
        self.config.action = replace(action, num_actions=num_actions, names=names)

    def __getattr__(self, name: str):
        return getattr(self._model, name)


class World(Protocol):
    """What planners ask of a world model ([`PanModel`] is one, an exact simulator can be another).

    `config.action` is a [`DiscreteAction`] or a [`VectorAction`]. `simulate` continues a belief of N rows by
    `actions` of shape `(N, H)` or `(N, H, D)` and returns futures with `reward` and `continue_prob` `(N, H)`,
    `belief` (after the last action) and `keys()` (by row and step). Beliefs have `keys()`, `select(index)`, `len()`
    and the class method `cat(list)`. `keys` takes `levels` for a planner with `key_levels`, and `steps` where
    `config.context_steps` is more than 1.
    """

    config: Any

    def simulate(self, belief, actions, num_rollouts=1, temperature=1.0, seed=None): ...
