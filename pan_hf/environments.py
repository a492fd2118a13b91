"""Any gymnasium environment, seen through named senses.

Whatever shape an environment gives its observations and takes its actions in, here it has one form: an observation
is a flat dict from sense name to an RGB image, a float vector or a string, and an action is an integer, a float
vector or a string. `make_environment` builds one from an id and flags, `describe_environment` says what its senses and
actions are. An entry of `environments` in `meta/info.json` holds arguments of `make_environment`, so a recording, a
plan and an evaluation see the same world.

Importing this module registers `pan_hf/FourRooms-8x8-v0` and `pan_hf/Scattered-8x8-v0`; minigrid is imported when one
is made.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as error:
    raise ImportError(
        "pan_hf.environments needs gymnasium, which is not installed: pip install 'pan_hf[envs]'"
    ) from error

# A bound beyond this says "unbounded" (older environments write float32's maximum for infinity).
_UNBOUNDED = 1e30
# A product of several discrete choices becomes one choice up to this size, and a vector of rounded numbers beyond it.
_MAX_JOINT_CHOICES = 256
# Relative to the width of the range: what float32 arithmetic in a policy may overshoot.
_ACTION_TOLERANCE = 1e-4
# Environments that are registered by a module that their id does not name.
_PROVIDERS = {"MiniGrid": "minigrid", "BabyAI": "minigrid", "ALE": "ale_py"}


# "module:name?key=value"


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Splits `"module:name?key=value&key=value"` into `"module:name"` and its keyword arguments.

    Values are Python literals where they read as one (`8`, `0.5`, `[1, 2]`, `true`), and strings otherwise.

    Raises:
        ValueError: a parameter is not of the form `key=value`.
    """
    target, _, query = spec.partition("?")
    arguments = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"{spec!r}: expected key=value after '?', got {pair!r}")
        arguments[key] = _literal(value)
    return target, arguments


def _literal(text: str) -> Any:
    text = {"true": "True", "false": "False", "none": "None"}.get(text, text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def import_object(target: str, what: str = "object") -> Any:
    """The object that `"module:name"` names; modules in the working directory are found too.

    Raises:
        ValueError: the text has no `:`, the module cannot be imported or has no such name.
    """
    module_name, colon, name = target.partition(":")
    if not colon or not module_name or not name:
        raise ValueError(f"Expected a {what} as 'module:name', got {target!r}")
    if "" not in sys.path:
        sys.path.append("")  # a console script does not look in the working directory; last, so it shadows nothing
    try:
        found = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise ValueError(f"{what} {target!r}: cannot import {module_name!r}: {error}") from error
    except AttributeError as error:
        raise ValueError(f"{what} {target!r}: module {module_name!r} has no {name!r}") from error
    return found


# Senses: one leaf of the observation space each


@dataclass(frozen=True)
class _Sense:
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


def _leaves(space: spaces.Space, path: tuple = ()) -> list[tuple[tuple, spaces.Space]]:
    if isinstance(space, spaces.Dict):
        return [leaf for key, child in space.spaces.items() for leaf in _leaves(child, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [leaf for index, child in enumerate(space.spaces) for leaf in _leaves(child, (*path, index))]
    return [(path, space)]


def _image_layout(space: spaces.Space) -> str | None:
    """`"HWC"`, `"CHW"` or `"HW"` when a Box holds an image, else None."""
    if not isinstance(space, spaces.Box):
        return None
    is_bytes = space.dtype == np.uint8
    is_unit = np.issubdtype(space.dtype, np.floating) and np.all(space.low == 0) and np.all(space.high == 1)
    if len(space.shape) == 3 and (is_bytes or (is_unit and min(sorted(space.shape)[1:]) >= 8)):
        if space.shape[2] in (1, 3):
            return "HWC"
        if space.shape[0] in (1, 3):
            return "CHW"
        if is_bytes:
            raise ValueError(
                f"{space}: an image has 1 or 3 channels, first or last, got shape {space.shape}; "
                "choose or merge channels with a wrapper, or leave the sense out with keep"
            )
    if len(space.shape) == 2 and is_bytes and min(space.shape) >= 8:
        return "HW"
    return None


def _resize(image: np.ndarray, size: int | None) -> np.ndarray:
    """Area-averaged to `(size, size, 3)`; the image itself when it has that size or no size is asked for."""
    if size is None or image.shape[:2] == (size, size):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))


def _image_sense(name: str, path: tuple, space: spaces.Box, layout: str, image_size: int | None) -> _Sense:
    order = {"HWC": (0, 1, 2), "CHW": (1, 2, 0), "HW": (0, 1)}[layout]
    height, width = (space.shape[axis] for axis in order[:2])
    is_float = np.issubdtype(space.dtype, np.floating)

    def convert(value: Any) -> np.ndarray:
        value = np.asarray(value)
        if value.shape != space.shape or (not is_float and value.dtype != np.uint8):
            raise ValueError(
                f"sense {name!r}: expected {space.dtype} of shape {space.shape}, got {value.dtype} of {value.shape}"
            )
        if is_float:
            if not (np.all(value >= 0) and np.all(value <= 1)):  # NaN fails this too
                raise ValueError(f"sense {name!r}: expected an image in [0, 1], got NaN or values outside it")
            value = np.round(value * 255).astype(np.uint8)
        value = value.transpose(order)
        value = np.broadcast_to(value.reshape(height, width, -1), (height, width, 3))
        return _resize(np.ascontiguousarray(value), image_size)

    shape = [image_size or height, image_size or width, 3]
    return _Sense(name, path, {"kind": "image", "shape": shape, "unit": "uint8 RGB"}, space, convert)


def _vector_feature(low: np.ndarray, high: np.ndarray) -> dict:
    """A vector's description; an unbounded side is None until the data gives it a bound."""

    def bounds(values: np.ndarray) -> list[float | None]:
        return [None if not abs(value) < _UNBOUNDED else float(value) for value in np.ravel(values)]

    return {"kind": "vector", "dim": int(np.size(low)), "low": bounds(low), "high": bounds(high)}


def _vector_sense(name: str, path: tuple, space: spaces.Space, low: np.ndarray, high: np.ndarray) -> _Sense:
    shape = np.shape(low)

    def convert(value: Any) -> np.ndarray:
        value = np.asarray(value, dtype=np.float32)
        if value.shape != shape:
            raise ValueError(f"sense {name!r}: expected shape {shape} ({space}), got {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"sense {name!r}: expected finite numbers ({space}), got {value.tolist()}")
        return value.reshape(-1)

    return _Sense(name, path, _vector_feature(low, high), space, convert)


def _text_sense(name: str, path: tuple, space: spaces.Space, every_step: bool) -> _Sense:
    def convert(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"sense {name!r}: expected a string ({space}), got {type(value).__name__} {value!r}")
        return value

    return _Sense(name, path, {"kind": "text", "every_step": every_step}, space, convert)


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


def _sense(name: str, path: tuple, space: spaces.Space, image_size: int | None) -> _Sense:
    layout = _image_layout(space)
    if layout:
        return _image_sense(name, path, space, layout, image_size)
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
    if _image_layout(space):
        return "camera"
    return "text" if isinstance(space, spaces.Text) or _is_mission(space) else "state"


def _sense_name(path: tuple, space: spaces.Space) -> str:
    if not path:
        return _bare_name(space)
    if all(isinstance(key, int) for key in path):
        return "_".join([_bare_name(space), *map(str, path)])
    return "_".join(map(str, path))


def _senses(
    space: spaces.Space, keep: Sequence[str] | None, rename: Mapping[str, str], image_size: int | None
) -> list[_Sense]:
    """The senses of an observation space that `keep` names (all when None), under the names `rename` gives them."""
    found = {}
    for path, leaf in _leaves(space):
        name = _sense_name(path, leaf)
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
    return [_sense(rename.get(name, name), *found[name], image_size) for name in chosen]


# Actions


class _Action:
    """Between the action that is recorded (integer, float vector or text) and the one the environment takes.

    `check` returns the recorded form, `to_environment` takes that.
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

    def _vector(self, value: np.ndarray) -> np.ndarray:
        return value.reshape(self.raw_space.shape).astype(self.raw_space.dtype)

    def _check_text(self, action: Any) -> str:
        if not isinstance(action, str) or not self.raw_space.contains(action):
            raise ValueError(f"Expected a text action within {self.raw_space}, got {action!r}")
        return action


# The environment


class StartingState(gymnasium.Wrapper):
    """Lets `start(env, rng)` change the state after every reset, below the observation wrappers.

    `start` returns the observation of the environment it was given, or None when that environment can tell it itself
    (`gen_obs`, `_get_obs` or `get_obs`). `rng` is a `numpy.random.Generator` seeded by `reset(seed=...)`.
    """

    def __init__(self, env: gymnasium.Env, start: Callable[[gymnasium.Env, np.random.Generator], Any]):
        super().__init__(env)
        self._start = start
        self._rng = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        _, info = self.env.reset(seed=seed, options=options)
        observation = self._start(self.env, self._rng)
        return (self._look() if observation is None else observation), info

    def _look(self) -> Any:
        for name in ("gen_obs", "_get_obs", "get_obs"):
            if hasattr(self.unwrapped, name):
                return getattr(self.unwrapped, name)()
        raise ValueError(f"start returned None, and {self.unwrapped} has no get_obs(): return the observation instead")


class SenseEnvironment(gymnasium.Wrapper):
    """An environment whose observations are flat dicts of senses and whose actions are numbers, vectors or text.

    Every observation and action is checked on its way through: a `ValueError` says what was expected and what came.

    Args:
        env: any gymnasium environment.
        keep: the observations to keep, by their own names, and `camera` for the rendered frame; all when empty.
        rename: sense names by observation name.
        render: add the rendered frame as the sense `camera`, unless an image is among the observations already.
        image_size: side in pixels that every image is averaged to; None leaves them as they are.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        keep: Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        render: bool = False,
        image_size: int | None = None,
    ):
        super().__init__(env)
        self._action = _Action(env.action_space)
        self._image_size = image_size
        own = {_sense_name(*leaf) for leaf in _leaves(env.observation_space)}
        kept = [name for name in keep if name in own or not (render and name == "camera")] if keep else None
        self.senses = _senses(env.observation_space, kept, rename or {}, image_size)
        if render and self._has_image():
            warnings.warn(f"render adds nothing: {env.observation_space} has an image already", stacklevel=3)
        self._camera = self._camera_feature() if render and not self._has_image() else None
        self.action_space = self._action.space
        self.observation_space = spaces.Dict(
            {name.removeprefix("observation."): _space_of(feature) for name, feature in self._observation_features()}
        )

    def _has_image(self) -> bool:
        return any(sense.feature["kind"] == "image" for sense in self.senses)

    def _camera_feature(self) -> dict:
        if any(sense.name == "camera" for sense in self.senses):
            raise ValueError("render adds the sense 'camera', and an observation has that name: rename that one")
        self.env.reset(seed=0)  # nothing can be drawn before a reset
        frame = _resize(self._rendered(), self._image_size)
        return {"kind": "image", "shape": list(frame.shape), "unit": "uint8 RGB"}

    def _rendered(self) -> np.ndarray:
        try:
            frame = self.env.render()
        except NotImplementedError as error:
            raise ValueError(f"{self.env} has no render(), so render cannot add a camera") from error
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape[2:] != (3,):
            what = getattr(frame, "shape", type(frame).__name__)
            raise ValueError(f"render() of {self.env} gave {what}; expected a (height, width, 3) uint8 frame")
        return frame

    def _observation_features(self) -> list[tuple[str, dict]]:
        camera = [("observation.camera", self._camera)] if self._camera else []
        return camera + [(f"observation.{sense.name}", sense.feature) for sense in self.senses]

    @property
    def features(self) -> dict[str, dict]:
        """`observation.<sense>` and `action`, described as in `meta/info.json`."""
        return {**dict(self._observation_features()), "action": self._action.feature}

    def _observe(self, observation: Any) -> dict[str, np.ndarray | str]:
        seen: dict[str, np.ndarray | str] = (
            {"camera": _resize(self._rendered(), self._image_size)} if self._camera else {}
        )
        for sense in self.senses:
            seen[sense.name] = sense.read(observation)
        return seen

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observe(observation), info

    def check_action(self, action: Any) -> int | np.ndarray | str:
        """The action as it is recorded: an int from 0, a `(dim,)` float32 vector or a string.

        Raises:
            ValueError: it has another kind or shape, is not finite, or lies out of range.
        """
        return self._action.check(action)

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        raw_action = self._action.to_environment(self._action.check(action))
        observation, reward, terminated, truncated, info = self.env.step(raw_action)
        reward = float(reward)
        if not np.isfinite(reward):
            raise ValueError(f"{self.env} gave the reward {reward}; expected a finite number")
        return self._observe(observation), reward, bool(terminated), bool(truncated), info


def _space_of(feature: dict) -> spaces.Space:
    if feature["kind"] == "image":
        return spaces.Box(0, 255, tuple(feature["shape"]), np.uint8)
    if feature["kind"] == "text":
        return spaces.Text(4096)
    low = np.array([-np.inf if bound is None else bound for bound in feature["low"]], np.float32)
    high = np.array([np.inf if bound is None else bound for bound in feature["high"]], np.float32)
    return spaces.Box(low, high, dtype=np.float32)


def describe_environment(env: SenseEnvironment) -> dict[str, dict]:
    """The senses and the action of an environment that `make_environment` made.

    Returns:
        `observation.<sense>` and `action` to `{"kind": "image", "shape": [H, W, 3], "unit": ...}`,
        `{"kind": "vector", "dim", "low", "high"}` (a bound is None where the environment states none),
        `{"kind": "text", "every_step": bool}` or, for actions, `{"kind": "discrete", "n"}`.
    """
    return env.features


def make_environment(
    id: str,
    env_args: Mapping[str, Any] | None = None,
    wrappers: Sequence[str] | None = None,
    render: bool = False,
    *,
    keep: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    image_size: int | None = None,
    max_episode_steps: int | None = None,
    start: Callable[[gymnasium.Env, np.random.Generator], Any] | None = None,
) -> SenseEnvironment:
    """Makes a gymnasium environment by id, wrapped so that its observation is a flat dict of senses.

    Args:
        id: a gymnasium id, or `"module:Id"`, which imports the module first.
        env_args: keyword arguments of the environment.
        wrappers: `"module:Class?key=value&key=value"` each, innermost first.
        render: add `env.render()` as the sense `camera` when no observation is an image.
        keep: the observations to keep, and `camera` for the rendered frame; all when empty.
        rename: sense names by observation name.
        image_size: side in pixels that images are averaged to.
        max_episode_steps: replaces the time limit the environment was registered with.
        start: sets a starting state after every reset; see `StartingState`.

    Raises:
        ValueError: the id is unknown, an argument does not fit, or an observation or action space is not supported.
    """
    env = _make(id, dict(env_args or {}), render, max_episode_steps)
    try:
        if start is not None:
            env = StartingState(env, start)
        for spec in wrappers or ():
            env = _wrap(env, spec)
        return SenseEnvironment(env, keep, rename, render, image_size)
    except Exception as error:
        env.close()
        if isinstance(error, ValueError):
            raise ValueError(f"Environment {id!r}: {error}") from error
        raise


def _wrap(env: gymnasium.Env, spec: str) -> gymnasium.Env:
    target, arguments = parse_spec(spec)
    try:
        return import_object(target, "wrapper")(env, **arguments)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"wrapper {spec!r} does not fit: {error}") from error


def _make(id: str, env_args: dict, render: bool, max_episode_steps: int | None) -> gymnasium.Env:
    _import_provider(id)
    options = dict(env_args)
    if render:
        options.setdefault("render_mode", "rgb_array")
    if max_episode_steps is not None:
        options["max_episode_steps"] = max_episode_steps
    try:
        # SenseEnvironment checks every step itself, and says more.
        return gymnasium.make(id, disable_env_checker=True, **options)
    except gymnasium.error.UnregisteredEnv as error:
        raise ValueError(f"Unknown environment id {id!r}{_suggestion(id)}") from error
    except ImportError as error:
        raise ValueError(f"Environment {id!r} cannot be imported: {error}. Install the package it is in.") from error
    except (TypeError, ValueError, AssertionError, gymnasium.error.Error) as error:
        raise ValueError(f"Environment {id!r} cannot be made with {options}: {error}") from error


def _import_provider(id: str) -> None:
    """Imports the package that registers `id`, when its name can be told from the id and it is installed."""
    name = id.rpartition(":")[2]
    if ":" in id or name in gymnasium.registry:
        return
    namespace, slash, _ = name.partition("/")
    provider = _PROVIDERS.get(namespace if slash else name.partition("-")[0], namespace if slash else None)
    if provider is None or not provider.isidentifier() or provider == "pan_hf":
        return
    try:
        importlib.import_module(provider)
    except ModuleNotFoundError as error:
        if error.name != provider:
            raise ValueError(f"Environment {id!r}: importing {provider!r} failed: {error}") from error
        raise ValueError(f"Environment {id!r} comes with the package {provider!r}, which is not installed") from error
    if provider == "ale_py":
        gymnasium.register_envs(importlib.import_module(provider))


def _suggestion(id: str) -> str:
    close = difflib.get_close_matches(id, gymnasium.registry, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    return hint + " An environment of another package is named 'module:Id', which imports the module first."


for _name, _entry_point in {
    "pan_hf/FourRooms-8x8-v0": "pan_hf.four_rooms:FourRoomsEnv",
    "pan_hf/Scattered-8x8-v0": "pan_hf.scattered:ScatteredEnv",
}.items():
    if _name not in gymnasium.registry:
        gymnasium.register(_name, entry_point=_entry_point)
