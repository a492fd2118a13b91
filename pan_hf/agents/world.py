"""What planners ask of a world, and wrappers that change what a world is asked.

A [`PanModel`] is such a world; an exact simulator can be another."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch

from pan_hf.features import ACTION, action_parts, feature_of
from pan_hf.modeling import PanModel
from pan_hf.modeling.effort_pan import NAMED, Effort, as_effort
from pan_hf.specs import literal


class FixedEffort:
    """A world model whose every `simulate` spends the same effort, unless another is given. It adds up the cost.

    Args:
        model ([`PanModel`]): imagines, and answers everything else.
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
        """Levels by which states are compared: the coarsest alone, unless every level is predicted."""
        levels = {block.name for block in self._model.blocks if block.level is not None}
        return None if self.effort.blocks is not None and levels <= set(self.effort.blocks) else 1

    @torch.no_grad()
    def simulate(self, belief, actions, **kwargs):
        """`simulate` of the model, at this effort unless another is given."""
        if "effort" in kwargs:  # the maps of a report ask so, and are no part of what planning costs
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


class CountedWorld:
    """A world that counts what is imagined in it.

    Attributes:
        num_simulated (`int`), num_calls (`int`): imagined steps so far, and `simulate` calls that made them.
    """

    def __init__(self, world: World):
        self._world, self.config = world, world.config
        self.num_simulated = self.num_calls = 0

    def __getattr__(self, name: str):
        return getattr(self._world, name)

    def simulate(self, *args: Any, **kwargs: Any):
        """`simulate` of the world."""
        futures = self._world.simulate(*args, **kwargs)
        self.num_simulated += futures.continue_prob.numel()
        self.num_calls += 1
        return futures


def parse_effort(text: str) -> Effort | str | tuple[str, ...]:
    """An effort from a command line: "all", "focused", "coarsest", "auto", blocks as "camera.0,camera.1", or fields as
    "price=0.1,task=planning".

    Raises:
        ValueError: no text or an empty one, a field that an effort does not have or that is there twice, or a wrong
            value.
    """
    parts = [part.strip() for part in text.split(",")] if isinstance(text, str) else []
    if not parts or not all(parts):
        raise ValueError(f"An effort is one of {NAMED}, names of blocks, or fields as 'price=0.1', got {text!r}.")
    if "=" not in text:
        return tuple(parts) if "." in text or len(parts) > 1 else parts[0]
    known, named = ("cap", "least_change", "price", "task"), [part.partition("=")[0] for part in parts]
    if set(named) - set(known) or len(set(named)) < len(named):
        raise ValueError(f"An effort has the fields {list(known)}, each once at most; got {named} in {text!r}.")
    fields = {name: part.partition("=")[2] for name, part in zip(named, parts, strict=True)}
    values: dict[str, Any] = {name: literal(value.lower()) for name, value in fields.items()}
    values |= {name: value for name, value in fields.items() if name == "task"}
    for name, value in values.items():
        if name != "task" and value is not None and not isinstance(value, int | float):
            raise ValueError(f"`{name}` of an effort is a number, got {value!r} in {text!r}.")
    return Effort(**values)


def at_effort(world: Any, effort: Any) -> Any:
    """The world as it is if `effort` is None, else one whose imagined steps spend so much, see [`FixedEffort`]."""
    return world if effort is None else FixedEffort(world, effort)


def within(model: PanModel, id: str, features: Mapping[str, dict]):
    """The model as a planner may use it in an environment. A model that has grown actions does without them where the
    environment takes the first ones only.

    Args:
        id (`str`): of the environment.
        features: what it takes, `action` or `action.<part>`, as in `meta/info.json`.

    Raises:
        ValueError: the environment takes other actions than the model was built for.
    """
    taken = action_parts(features)
    own = {name: feature_of(part) for name, part in model.config.actions.items()}
    fits = set(taken) == set(own) and all(
        part.kind == own[name].kind and part.is_playable(own[name]) for name, part in taken.items()
    )
    if not fits:
        asked, built_for = ({name: part.description for name, part in parts.items()} for parts in (taken, own))
        raise ValueError(f"{id} takes the actions {asked}; the model was built for {built_for}, so train one for it.")
    fewer = {
        name: part.description["n"]
        for name, part in taken.items()
        if part.is_discrete and part.description["n"] < own[name].description["n"]
    }
    return FewerActions(model, fewer) if fewer else model


class FewerActions:
    """A world model without its later actions. Args: num_actions, how many are left, by part."""

    def __init__(self, model: PanModel, num_actions: Mapping[str, int]):
        self._model, self.config = model, copy.copy(model.config)
        actions = dict(model.config.actions)
        for name, num in num_actions.items():
            names = None if actions[name].names is None else actions[name].names[:num]
            actions[name] = replace(actions[name], num_actions=num, names=names)
        self.config.actions, self.config.action = actions, actions.get(ACTION)

    def __getattr__(self, name: str):
        return getattr(self._model, name)


class World(Protocol):
    """What planners ask of a world model ([`PanModel`] is one, an exact simulator can be another).

    `config.actions` has the parts of an action by name, a [`DiscreteAction`] or a [`VectorAction`] each; or there is
    one, `config.action`. `simulate` continues a belief of N rows by `actions` of shape `(N, H)` or `(N, H, D)` (by
    name where there are several parts) and returns futures with `reward` and `continue_prob` `(N, H)`,
    `belief` (after the last action) and `keys()` (by row and step). Beliefs have `keys()`, `select(index)`, `len()`
    and the class method `cat(list)`; of a world whose senses include "action_mask" futures and beliefs have `decode`.
    `keys` takes `levels` for a planner with `key_levels`, and `steps` where
    `config.context_steps` is more than 1.
    """

    config: Any

    def simulate(self, belief, actions, num_rollouts=1, temperature=1.0, seed=None): ...
