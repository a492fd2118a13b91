"""What gymnasium spaces hold, as senses and actions: images, vectors and texts by name.

Each leaf of an observation space is a sense that reads itself out of a raw observation; an action space has one
recorded form (an integer, a float vector or a string) between which and the environment's own it translates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pan_hf.images import as_rgb, fit, fitted_shape, picture_layout

try:
    from gymnasium import spaces
except ImportError as error:
    raise ImportError(
        "pan_hf.envs.spaces needs gymnasium, which is not installed: pip install 'pan_hf[envs]'"
    ) from error

# A bound beyond this says "unbounded" (older environments write float32's maximum for infinity).
_UNBOUNDED = 1e30
# A product of several discrete choices becomes one choice up to this size, and a vector of rounded numbers beyond it.
_MAX_JOINT_CHOICES = 256
# Relative to the width of the range: what float32 arithmetic in a policy may overshoot.
_ACTION_TOLERANCE = 1e-4


# Senses: one leaf of the observation space each


@dataclass(frozen=True)
class Sense:
    """How to find one leaf in a raw observation and turn it into an image, a vector or a text."""

    name: str
    path: tuple  # keys of nested Dict and Tuple observations; () for a bare observation
    feature: dict  # as in meta/info.json
    space: spaces.Space
    convert: Callable[[Any], np.ndarray | str]

    def read(self, observation: Any) -> np.ndarray | str:
        for key in self.path:
            observation = observation[key]
        return self.convert(observation)


def leaves(space: spaces.Space, path: tuple = ()) -> list[tuple[tuple, spaces.Space]]:
    """The spaces that hold values, each with its path of keys through nested Dict and Tuple spaces."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, child in space.spaces.items() for leaf in leaves(child, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [leaf for index, child in enumerate(space.spaces) for leaf in leaves(child, (*path, index))]
    return [(path, space)]


def _layout(space: spaces.Space) -> str | None:
    """How a Box holds a picture, see `picture_layout`; None for any other space."""
    if not isinstance(space, spaces.Box):
        return None
    is_unit = bool(np.all(space.low == 0) and np.all(space.high == 1))
    try:
        return picture_layout(space.shape, space.dtype, is_unit)
    except ValueError as error:
        raise ValueError(
            f"{space}: {error}; choose or merge channels with a wrapper, or leave the sense out with keep"
        ) from error


def _image_sense(name: str, path: tuple, space: spaces.Box, layout: str, image_size: int | None, crop: bool) -> Sense:
    height, width = (space.shape[layout.index(axis)] for axis in "HW")
    is_float = np.issubdtype(space.dtype, np.floating)

    def convert(value: Any) -> np.ndarray:
        value = np.asarray(value)
        if value.shape != space.shape or (not is_float and value.dtype != np.uint8):
            raise ValueError(
                f"sense {name!r}: expected {space.dtype} of shape {space.shape}, got {value.dtype} of {value.shape}"
            )
        try:
            return fit(as_rgb(value, layout), image_size, crop)
        except ValueError as error:
            raise ValueError(f"sense {name!r}: {error}") from error

    feature = {"kind": "image", "shape": fitted_shape(height, width, image_size, crop), "unit": "uint8 RGB"}
    return Sense(name, path, feature, space, convert)


def _vector_feature(low: np.ndarray, high: np.ndarray) -> dict:
    """A vector's description; an unbounded side is None until the data gives it a bound."""

    def bounds(values: np.ndarray) -> list[float | None]:
        return [None if not abs(value) < _UNBOUNDED else float(value) for value in np.ravel(values)]

    return {"kind": "vector", "dim": int(np.size(low)), "low": bounds(low), "high": bounds(high)}


def _vector_sense(name: str, path: tuple, space: spaces.Space, low: np.ndarray, high: np.ndarray) -> Sense:
    shape = np.shape(low)

    def convert(value: Any) -> np.ndarray:
        value = np.asarray(value, dtype=np.float32)
        if value.shape != shape:
            raise ValueError(f"sense {name!r}: expected shape {shape} ({space}), got {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"sense {name!r}: expected finite numbers ({space}), got {value.tolist()}")
        return value.reshape(-1)

    return Sense(name, path, _vector_feature(low, high), space, convert)


def _text_sense(name: str, path: tuple, space: spaces.Space, every_step: bool) -> Sense:
    def convert(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"sense {name!r}: expected a string ({space}), got {type(value).__name__} {value!r}")
        return value

    return Sense(name, path, {"kind": "text", "every_step": every_step}, space, convert)


def _integer_bounds(space: spaces.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """Lowest and highest values of a space of whole choices, in its own shape; None for any other space."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start), np.asarray(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray(space.start), np.asarray(space.start + space.nvec - 1)
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape, np.int64), np.ones(space.shape, np.int64)
    return None


def _is_mission(space: spaces.Space) -> bool:
    """MiniGrid's missions are drawn once an episode: text that does not change from step to step."""
    return any(kind.__name__ == "MissionSpace" for kind in type(space).__mro__)


def _sense(name: str, path: tuple, space: spaces.Space, image_size: int | None, crop: bool) -> Sense:
    layout = _layout(space)
    if layout:
        return _image_sense(name, path, space, layout, image_size, crop)
    if isinstance(space, spaces.Box):
        return _vector_sense(name, path, space, space.low, space.high)
    integers = _integer_bounds(space)
    if integers is not None:
        # A bare Discrete has no axes; it is a vector of one number.
        return _vector_sense(name, path, space, *integers)
    if _is_mission(space) or isinstance(space, spaces.Text):
        return _text_sense(name, path, space, every_step=not _is_mission(space))
    raise ValueError(
        f"Observation {name!r} has the space {space}, which no sense can hold: expected Box, Discrete, MultiDiscrete, "
        "MultiBinary, Text, or a Dict or Tuple of these. Leave it out with keep, or convert it with a wrapper."
    )


def _bare_name(space: spaces.Space) -> str:
    if _layout(space):
        return "camera"
    return "text" if isinstance(space, spaces.Text) or _is_mission(space) else "state"


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
        if not name.isidentifier():
            raise ValueError(f"{name!r} cannot name a sense (letters, digits and _ can): give it another with rename")
    return [_sense(rename.get(name, name), *found[name], image_size, crop) for name in chosen]


# Actions


class ActionForm:
    """Between the action that is recorded (integer, float vector or text) and the one the environment takes.

    `check` returns the recorded form and `to_environment` takes that; `from_environment` leads back from the
    environment's own.

    Raises:
        ValueError: an action space that is not supported, or an action that does not lie in it.
    """

    def __init__(self, space: spaces.Space):
        self.raw_space = space
        self.check: Callable[[Any], Any]
        self.to_environment: Callable[[Any], Any]
        integers = _integer_bounds(space)
        if integers is not None:
            self._use_choices(*integers)
        elif isinstance(space, spaces.Box):
            self._use_vector(space.low, space.high, is_whole=np.issubdtype(space.dtype, np.integer))
        elif isinstance(space, spaces.Text):
            self.space: spaces.Space = space
            self.feature: dict = {"kind": "text"}
            self.check, self.to_environment = self._check_text, str
        else:
            raise ValueError(
                f"The action space {space} is not supported: expected Discrete, MultiDiscrete, MultiBinary, Box or "
                "Text. Convert it with a wrapper."
            )

    def _use_choices(self, low: np.ndarray, high: np.ndarray) -> None:
        sizes = tuple(int(size) for size in np.ravel(high - low + 1))
        if low.ndim and np.prod(sizes, dtype=float) > _MAX_JOINT_CHOICES:
            self._use_vector(low, high, is_whole=True)
            return
        self._low, self._sizes = low, sizes
        self.space = spaces.Discrete(int(np.prod(sizes)))
        self.feature = {"kind": "discrete", "n": int(self.space.n)}
        self.check, self.to_environment = self._check_choice, self._choice

    def _use_vector(self, low: np.ndarray, high: np.ndarray, is_whole: bool) -> None:
        self._is_whole = is_whole
        self._low, self._high = (np.ravel(bound).astype(np.float32) for bound in (low, high))
        width = self._high - self._low
        self._slack = np.where(np.isfinite(width), width * _ACTION_TOLERANCE, 0)
        self.space = spaces.Box(self._low, self._high, dtype=np.float32)
        self.feature = _vector_feature(low, high)
        self.check, self.to_environment = self._check_vector, self._vector

    def _check_choice(self, action: Any) -> int:
        value = np.asarray(action)
        if value.size != 1 or value.dtype.kind not in "iufb" or not 0 <= value.item() < self.space.n or value % 1 != 0:
            raise ValueError(f"Expected a whole action in 0..{self.space.n - 1}, got {action!r}")
        return int(value.item())

    def _choice(self, number: int) -> Any:
        if self._low.ndim == 0:
            return number + int(self._low)
        digits = np.array(np.unravel_index(number, self._sizes))
        return (digits.reshape(self._low.shape) + self._low).astype(self.raw_space.dtype)

    def _check_vector(self, action: Any) -> np.ndarray:
        value = np.asarray(action, dtype=np.float32).reshape(-1)
        if value.shape != self._low.shape:
            raise ValueError(f"Expected an action of {self._low.size} numbers ({self.raw_space}), got {action!r}")
        inside = (value >= self._low - self._slack) & (value <= self._high + self._slack) & np.isfinite(value)
        if not inside.all():
            raise ValueError(f"Expected a finite action within {self.raw_space}, got {value.tolist()}")
        value = np.clip(value, self._low, self._high)
        return np.round(value) if self._is_whole else value

    def from_environment(self, action: Any) -> int | np.ndarray | str:
        """The recorded form of an action as the environment takes it."""
        if self.feature["kind"] != "discrete":
            return self.check(action)
        digits = np.asarray(action) - self._low
        if digits.shape != self._low.shape or digits.dtype.kind not in "iu":
            raise ValueError(f"Expected an action within {self.raw_space}, got {action!r}")
        is_inside = np.all(digits >= 0) and np.all(np.ravel(digits) < self._sizes)
        if not is_inside:
            raise ValueError(f"Expected an action within {self.raw_space}, got {action!r}")
        return int(np.ravel_multi_index(tuple(np.ravel(digits)), self._sizes))

    def _vector(self, value: np.ndarray) -> np.ndarray:
        return value.reshape(self.raw_space.shape).astype(self.raw_space.dtype)

    def _check_text(self, action: Any) -> str:
        if not isinstance(action, str) or not self.raw_space.contains(action):
            raise ValueError(f"Expected a text action within {self.raw_space}, got {action!r}")
        return action
