"""What gymnasium spaces hold, as senses and actions.

Each leaf of an observation space is a sense that reads itself out of a raw observation. The kinds themselves say which
spaces are theirs, see `pan_hf.features`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pan_hf.extras import extra
from pan_hf.features import ActionForm, Feature, Form, View, check_sense_name, kinds

with extra("envs", "A space"):
    from gymnasium import spaces


@dataclass(frozen=True)
class Sense:
    """How to find one leaf in a raw observation and turn it into a recorded value."""

    name: str
    path: tuple  # keys of nested Dict and Tuple observations; () for a bare observation
    feature: dict  # as in meta/info.json
    convert: Callable[[Any], Any]

    def read(self, observation: Any) -> Any:
        for key in self.path:
            observation = observation[key]
        try:
            return self.convert(observation)
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


def _bare_name(space: spaces.Space) -> str:
    held = _kind_of(space, View())
    return held[0].bare_name if held else Feature.bare_name


def sense_name(path: tuple, space: spaces.Space) -> str:
    """The name of the sense at a path of keys, for one that has none by itself as well."""
    if not path:
        return _bare_name(space)
    if all(isinstance(key, int) for key in path):
        return "_".join([_bare_name(space), *map(str, path)])
    return "_".join(map(str, path))


def senses_of(
    space: spaces.Space,
    keep: Sequence[str] | None,
    rename: Mapping[str, str],
    image_size: int | None,
    crop: bool = False,
) -> list[Sense]:
    """The senses of an observation space.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, Text, or a Dict or Tuple of these.
        keep: the observations to keep, by their own names; all when None.
        rename: sense names by observation name.
        image_size: side in pixels that images are averaged to.
        crop: whether images are cut to their middle square before that.

    Raises:
        ValueError: a space that no sense can hold, or a name that is unknown, taken twice or cannot name a sense.
    """
    found = {}
    for path, leaf in leaves(space):
        name = sense_name(path, leaf)
        if name in found:
            raise ValueError(f"Two observations of {space} are called {name!r}; wrap the environment to rename one")
        found[name] = (path, leaf)
    for option, names in (("keep", keep or ()), ("rename", rename)):
        unknown = [name for name in names if name not in found]
        if unknown:
            raise ValueError(f"{option} names {unknown}, which the environment has not; it has {sorted(found)}")
    chosen = [name for name in found if keep is None or name in keep]
    final = [rename.get(name, name) for name in chosen]
    if len(set(final)) < len(final):
        raise ValueError(f"rename {dict(rename)} gives two senses one name: {final}")
    for name in final:
        check_sense_name(name, "give it another with rename")
    return [_sense(rename.get(name, name), *found[name], View(image_size, crop)) for name in chosen]


def _sense(name: str, path: tuple, space: spaces.Space, view: View) -> Sense:
    held = _kind_of(space, view)
    if held is None:
        raise ValueError(
            f"Observation {name!r} has the space {space}, which no sense can hold: expected Box, Discrete, "
            "MultiDiscrete, MultiBinary, Text, or a Dict or Tuple of these. Leave it out with keep, or convert it "
            "with a wrapper."
        )
    return Sense(name, path, held[1].feature, held[1].convert)


def action_form_of(space: spaces.Space) -> ActionForm:
    """How actions of a gymnasium space are recorded: as the first kind that takes it.

    Raises:
        ValueError: no kind does.
    """
    forms = (kind.action_from_space(space) for kind in kinds())
    form = next((form for form in forms if form is not None), None)
    if form is None:
        raise ValueError(
            f"The action space {space} is not supported: expected Discrete, MultiDiscrete, MultiBinary, Box or Text. "
            "Convert it with a wrapper."
        )
    return form
