"""What gymnasium spaces hold, as senses and actions.

Each leaf of an observation space is a sense that reads itself out of a raw observation. Each leaf of an action space
is a part of the action. The kinds themselves say which spaces are theirs, see `pan_hf.features`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pan_hf.extras import extra
from pan_hf.features import ACTION, ActionForm, Feature, Form, View, action_column, check_sense_name, kinds
from pan_hf.images import are_symbols, taken_as_symbols

with extra("envs", "A space"):
    from gymnasium import spaces


@dataclass(frozen=True)
class Sense:
    """How to find one leaf in a raw observation and turn it into a recorded value."""

    name: str
    path: tuple  # keys of nested Dict and Tuple observations; () for a bare observation
    feature: dict  # as in meta/info.json
    form: Form
    own_name: str = ""  # the environment's name for it

    def shows_symbols(self, observation: Any) -> bool:
        """Whether the value in a raw observation is a grid of symbols, which is said."""
        value = self._value(observation)
        if value is None or not are_symbols(value := np.asarray(value)):
            return False
        remedy = "if they are dark colours, leave it out of symbols (--symbols)"
        warnings.warn(f"{self.name}: {taken_as_symbols(value)} {remedy}", stacklevel=5)
        return True

    def check(self, observation: Any) -> None:
        """Raises ValueError where the value means something else than it seems to."""
        value = self._value(observation)
        if value is not None:
            self._named(self.form.check, value)

    def _value(self, observation: Any) -> Any:
        for key in self.path:
            if isinstance(observation, Mapping):
                observation = observation.get(key)
            elif isinstance(key, int) and isinstance(observation, list | tuple) and key < len(observation):
                observation = observation[key]
            else:
                kind = type(observation).__name__
                raise ValueError(f"sense {self.name!r}: expected an observation that holds {key!r}, got {kind}")
        return observation

    def read(self, observation: Any) -> Any:
        """The recorded value; None where an optional sense is None or missing. ValueError for one that is not as its
        space says."""
        value = self._value(observation)
        if value is None:
            if self.feature.get("optional"):
                return None
            raise ValueError(
                f"sense {self.name!r}: the observation has no value for it; name a sense that comes seldom in "
                "optional (--optional), or leave it out with keep"
            )
        return self._named(self.form.convert, value)

    def _named(self, function: Callable[[Any], Any], value: Any) -> Any:
        try:
            return function(value)
        except ValueError as error:
            raise ValueError(f"sense {self.name!r}: {error}") from error


def leaves(space: spaces.Space, path: tuple = ()) -> list[tuple[tuple, spaces.Space]]:
    """The spaces that hold values, each with its path of keys through nested Dict and Tuple spaces."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, child in space.spaces.items() for leaf in leaves(child, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [leaf for index, child in enumerate(space.spaces) for leaf in leaves(child, (*path, index))]
    return [(path, space)]


def _kind_of(space: spaces.Space, view: View) -> tuple[type[Feature], Form] | None:
    """The first kind that observations of a space have, and how they are converted; None where no kind holds them."""
    forms = ((kind, kind.from_space(space, view)) for kind in kinds())
    return next(((kind, form) for kind, form in forms if form is not None), None)


def sense_name(path: tuple, space: spaces.Space) -> str:
    """The name of the sense at a path of keys, for one that has none by itself as well."""
    if any(isinstance(key, str) for key in path):
        return "_".join(map(str, path))
    form = _kind_of(space, View())
    return "_".join([form[0].bare_name if form else Feature.bare_name, *map(str, path)])


def senses_of(
    space: spaces.Space,
    keep: Sequence[str] | None,
    rename: Mapping[str, str],
    view: View,
    optional: Sequence[str] = (),
    symbols: Sequence[str] | None = None,
    first: Callable[[], Any] | None = None,
) -> list[Sense]:
    """The senses of an observation space.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, Text, or a Dict or Tuple of these.
        keep: the observations to keep, by their own names; all when None.
        rename: sense names by observation name.
        view: how images are brought to size.
        optional: observations that may be None or missing, by their own names.
        symbols: observations that are taken as symbols, by their own names; those that seem to be when None.
        first: gives a raw observation; asked where the space leaves open whether it holds symbols or colours.

    Raises:
        ValueError: a space that no sense can hold, or a name that is unknown, taken twice or cannot name a sense.
    """
    named: dict[str, tuple[tuple, spaces.Space]] = {}
    for path, leaf in leaves(space):
        name = sense_name(path, leaf)
        if name in named:
            raise ValueError(f"Two observations of {space} are called {name!r}; wrap the environment to rename one")
        named[name] = (path, leaf)
    for option, names in (
        ("keep", keep or ()),
        ("rename", rename),
        ("optional", optional),
        ("symbols", symbols or ()),
    ):
        if unknown := [name for name in names if name not in named]:
            raise ValueError(f"{option} names {unknown}, which the environment has not; it has {sorted(named)}")
    kept = [name for name in named if keep is None or name in keep]
    final = [rename.get(name, name) for name in kept]
    if len(set(final)) < len(final):
        raise ValueError(f"rename {dict(rename)} gives two senses one name: {final}")
    for name in final:
        check_sense_name(name, "give it another with rename")
    senses = []
    for name in kept:
        asked = replace(view, symbols=None if symbols is None else name in symbols)
        sense = _sense(name, *named[name], asked, name in optional)
        if asked.symbols is None and sense.form.may_be_symbols and first is not None and sense.shows_symbols(first()):
            sense = _sense(name, *named[name], replace(view, symbols=True), name in optional)
        senses.append(replace(sense, name=rename.get(name, name), own_name=name))
    return senses


def _sense(name: str, path: tuple, space: spaces.Space, view: View, is_optional: bool) -> Sense:
    try:
        kind = _kind_of(space, view)
    except ValueError as error:
        raise ValueError(f"Observation {name!r}: {error}") from error
    if kind is None:
        raise ValueError(
            f"Observation {name!r} has the space {space}, which no sense can hold: expected Box, Discrete, "
            "MultiDiscrete, MultiBinary, Text, or a Dict or Tuple of these. Leave it out with keep, or convert it "
            "with a wrapper."
        )
    form = kind[1]
    return Sense(name, path, form.feature | ({"optional": True} if is_optional else {}), form)


# ---- Actions


def action_form_of(space: spaces.Space) -> ActionForm:
    """How actions of a gymnasium space are recorded: as the first kind that takes it, or as parts of these.

    Raises:
        ValueError: no kind does.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return ActionParts(space)
    forms = (kind.action_from_space(space) for kind in kinds())
    form = next((form for form in forms if form is not None), None)
    if form is None:
        raise ValueError(
            f"The action space {space} is not supported: expected Discrete, MultiDiscrete, MultiBinary, Box, Text, or "
            "a Dict or Tuple of these. Convert it with a wrapper."
        )
    return form


class ActionParts(ActionForm):
    """Actions of several named parts: a dict by part is recorded, each part in a column of its own.

    Args:
        space: a Dict or Tuple space, nested or not. A part has the name of its keys, joined by `_`.
    """

    def __init__(self, space: spaces.Space):
        self.raw_space = space
        self._parts = {_part_name(path): action_form_of(leaf) for path, leaf in leaves(space)}
        self.space = spaces.Dict({name: form.space for name, form in self._parts.items()})
        for name in self._parts:
            check_sense_name(name, "an action's part needs such a name too; rename it with a wrapper")

    @property
    def features(self) -> dict[str, dict]:
        return {action_column(name): form.features[ACTION] for name, form in self._parts.items()}

    def check(self, action: Any) -> dict[str, Any]:
        if not isinstance(action, Mapping) or set(action) != set(self._parts):
            raise ValueError(f"Expected an action of the parts {list(self._parts)}, got {action!r:.80}")
        return {name: form.check(action[name]) for name, form in self._parts.items()}

    def to_environment(self, action: dict[str, Any]) -> Any:
        raw = {name: form.to_environment(action[name]) for name, form in self._parts.items()}
        return self._nested(self.raw_space, (), raw)

    def _nested(self, space: spaces.Space, path: tuple, raw: dict[str, Any]) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self._nested(child, (*path, key), raw) for key, child in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(self._nested(child, (*path, key), raw) for key, child in enumerate(space.spaces))
        return raw[_part_name(path)]

    def from_environment(self, action: Any) -> dict[str, Any]:
        recorded = {}
        for path, _ in leaves(self.raw_space):
            value, name = action, _part_name(path)
            try:
                for key in path:
                    value = value[key]
            except (LookupError, TypeError) as error:
                raise ValueError(f"Expected an action within {self.raw_space}, got {action!r:.80}") from error
            recorded[name] = self._parts[name].from_environment(value)
        return recorded

    def masks(self, action_mask: Any) -> dict[str, np.ndarray]:
        if not isinstance(action_mask, Mapping):
            raise ValueError(f"action_mask: expected a dict by part of {list(self._parts)}, got {action_mask!r:.80}")
        parts = {
            name: form.masks(action_mask[name])
            for name, form in self._parts.items()
            if action_mask.get(name) is not None
        }
        return {name: mask[ACTION] for name, mask in parts.items() if mask}

    def sample(self, masks: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {
            name: form.sample({ACTION: masks[name]} if name in masks else {}) for name, form in self._parts.items()
        }


def _part_name(path: tuple) -> str:
    return "_".join(map(str, path)) if isinstance(path[0], str) else "_".join(["part", *map(str, path)])
