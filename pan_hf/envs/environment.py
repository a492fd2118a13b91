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

import difflib
import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pan_hf.envs.spaces import action_form_of, leaves, sense_name, senses_of
from pan_hf.extras import extra
from pan_hf.features import ImageFeature, feature_of
from pan_hf.images import fit
from pan_hf.specs import import_object, literal, parse_spec

with extra("envs", "An environment"):
    import gymnasium
    from gymnasium import spaces

# Environments that are registered by a module that their id does not name.
_PROVIDERS = {"MiniGrid": "minigrid", "BabyAI": "minigrid", "ALE": "ale_py"}


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
        crop: cut every image to its middle square before that.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        keep: Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        render: bool = False,
        image_size: int | None = None,
        crop: bool = False,
    ):
        super().__init__(env)
        self._action = action_form_of(env.action_space)
        self._image_size, self._crop = image_size, crop
        own = {sense_name(*leaf) for leaf in leaves(env.observation_space)}
        kept = [name for name in keep if name in own or not (render and name == "camera")] if keep else None
        self.senses = senses_of(env.observation_space, kept, rename or {}, image_size, crop)
        if render and self._has_image():
            warnings.warn(f"render adds nothing: {env.observation_space} has an image already", stacklevel=3)
        self._camera = self._camera_feature() if render and not self._has_image() else None
        self.action_space = self._action.space
        self.observation_space = spaces.Dict(
            {
                name.removeprefix("observation."): feature_of(described).space()
                for name, described in self._observation_features()
            }
        )

    def _has_image(self) -> bool:
        return any(feature_of(sense.feature).is_picture for sense in self.senses)

    def _camera_feature(self) -> dict:
        if any(sense.name == "camera" for sense in self.senses):
            raise ValueError("render adds the sense 'camera', and an observation has that name: rename that one")
        self.env.reset(seed=0)  # nothing can be drawn before a reset
        frame = fit(self._rendered(), self._image_size, self._crop)
        return ImageFeature.of_shape(frame.shape).description

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
        names = _action_names(self.unwrapped, self._action.raw_space)
        action = self._action.feature | ({"names": names} if names else {})
        return {**dict(self._observation_features()), "action": action}

    def observe(self, observation: Any) -> dict[str, np.ndarray | str]:
        """An observation of the environment within, as senses; ValueError where one is not as its space says."""
        seen: dict[str, np.ndarray | str] = (
            {"camera": fit(self._rendered(), self._image_size, self._crop)} if self._camera else {}
        )
        for sense in self.senses:
            seen[sense.name] = sense.read(observation)
        return seen

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self.observe(observation), info

    def check_action(self, action: Any) -> int | np.ndarray | str:
        """The action as it is recorded: an int from 0, a `(dim,)` float32 vector or a string.

        Raises:
            ValueError: it has another kind or shape, is not finite, or lies out of range.
        """
        return self._action.check(action)

    def recorded_action(self, action: Any) -> int | np.ndarray | str:
        """An action as the environment within takes it, in the form in which it is recorded; ValueError as above."""
        return self._action.from_environment(action)

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        raw_action = self._action.to_environment(self._action.check(action))
        observation, reward, terminated, truncated, info = self.env.step(raw_action)
        reward = float(reward)
        if not np.isfinite(reward):
            raise ValueError(f"{self.env} gave the reward {reward}; expected a finite number")
        return self.observe(observation), reward, bool(terminated), bool(truncated), info


def _action_names(env: gymnasium.Env, space: spaces.Space) -> list[str] | None:
    """What an environment calls its discrete actions: by an enumeration, as MiniGrid does, or a list, as Atari's."""
    if not isinstance(space, spaces.Discrete) or space.start != 0:
        return None
    known = getattr(getattr(env, "actions", None), "__members__", {})
    found = {int(member): name for name, member in known.items() if isinstance(member, int)}
    if not found and callable(getattr(env, "get_action_meanings", None)):
        found = dict(enumerate(map(str, env.get_action_meanings())))  # type: ignore[attr-defined]  # see the line above
    return list(found.values()) if list(found) == list(range(space.n)) else None


def describe_environment(env: SenseEnvironment) -> dict[str, dict]:
    """The senses and the action of an environment that `make_environment` made.

    Returns:
        `observation.<sense>` and `action` to `{"kind": "image", "shape": [H, W, 3], "unit": ...}`,
        `{"kind": "vector", "dim", "low", "high"}` (a bound is None where the environment states none),
        `{"kind": "text", "every_step": bool}` or, for actions, `{"kind": "discrete", "n"}`, with `names` where the
        environment has some.
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
    crop: bool = False,
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
        crop: cut images to their middle square before that.
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
        return SenseEnvironment(env, keep, rename, render, image_size, crop)
    except Exception as error:
        env.close()
        if isinstance(error, ValueError):
            raise ValueError(f"Environment {id!r}: {error}") from error
        raise


def spec_entry(spec: Any) -> dict:
    """The arguments of `make_environment` that make an environment of a `gymnasium.envs.registration.EnvSpec` again;
    a wrapper whose arguments cannot be written down is left out."""
    arguments = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    wrappers = [_wrapper_text(wrapper) for wrapper in spec.additional_wrappers]
    return {"id": spec.id, "env_args": _plain(arguments), "wrappers": [text for text in wrappers if text]}


def _wrapper_text(wrapper: Any) -> str | None:
    kwargs = wrapper.kwargs or {}
    if _plain(kwargs) != kwargs:
        return None
    query = "&".join(f"{name}={value}" for name, value in kwargs.items())
    return wrapper.entry_point + ("?" + query if query else "")


def _plain(arguments: dict) -> dict:
    """Those whose values read back as they are written."""
    return {name: value for name, value in arguments.items() if literal(str(value)) == value}


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
    "pan_hf/FourRooms-8x8-v0": "pan_hf.envs.minigrid_rooms:FourRoomsEnv",
    "pan_hf/Scattered-8x8-v0": "pan_hf.envs.minigrid_rooms:ScatteredEnv",
}.items():
    if _name not in gymnasium.registry:
        gymnasium.register(_name, entry_point=_entry_point)
