"""Any gymnasium environment, seen through named senses.

Whatever shape an environment gives its observations and takes its actions in, here it has one form: an observation
is a flat dict from sense name to an RGB image, a float vector or a string, and an action is an integer, a float
vector or a string. `make_environment` builds one from an id and flags, `describe_environment` says what its senses and
actions are. An entry of `environments` in `meta/info.json` holds arguments of `make_environment`, so a recording, a
plan and an evaluation see the same world.

Importing this module registers `pan_hf/FourRooms-8x8-v0` and `pan_hf/Scattered-8x8-v0`, of which minigrid is imported
when one is made, and `pan_hf/Imagined-v0`, the imagined world of a checkpoint.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import numpy as np

from pan_hf.arguments import as_type
from pan_hf.envs.spaces import action_form_of, leaves, sense_name, senses_of
from pan_hf.extras import extra
from pan_hf.features import ACTION, ImageFeature, View, action_column, feature_of
from pan_hf.images import fit
from pan_hf.specs import import_object, literal, parse_spec

with extra("envs", "An environment"):
    import gymnasium
    from gymnasium import spaces

# Environments that are registered by a module that their id does not name.
_PROVIDERS = {"MiniGrid": "minigrid", "BabyAI": "minigrid", "ALE": "ale_py"}


_MOST_REWARD = float(np.finfo(np.float32).max)  # rewards are recorded in that


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


class EnvironmentFailure(ValueError):
    """An environment, a wrapper around it, or a policy raised an error of its own."""

    @classmethod
    def of(cls, what: str, error: Exception) -> EnvironmentFailure:
        """Says whose error it is. Args: what, that raised it."""
        return cls(f"{what} raised {type(error).__name__}: {error}")


@dataclass(frozen=True)
class Outcome:
    """What followed an action.

    Args:
        reward: of all actors together.
        is_done: the episode ended in the world.
        is_truncated: the episode was cut short by a limit.
        actor_rewards, actor_dones: the same by actor, empty where an environment has none.
    """

    reward: float
    is_done: bool
    is_truncated: bool
    actor_rewards: dict[str, float] = field(default_factory=dict)
    actor_dones: dict[str, bool] = field(default_factory=dict)


class SenseEnvironment(gymnasium.Wrapper):
    """An environment whose observations are flat dicts of senses and whose actions are numbers, vectors or text.

    Every observation and action is checked on its way through: a `ValueError` says what was expected and what came.
    An error that the environment raises itself is an [`EnvironmentFailure`].

    Args:
        env: any gymnasium environment. With an attribute `actors`, a list of names, it gives rewards (and, if it
            likes, ends) as dicts by actor.
        keep: the observations to keep, by their own names, and `camera` for the rendered frame; all when empty.
        rename: sense names by observation name.
        render: add the rendered frame as the sense `camera`, unless an image is among the observations already.
        image_size: side in pixels that every image is averaged to; None leaves them as they are.
        crop: cut every image to its middle square before that.
        optional: observations that may be None or missing at some steps.
        symbols: the observations that are taken as symbols, by their own names; those that seem to be when None: of a
            `Discrete` space and the like, of a box that is a small grid of few whole numbers, and where a small grid
            of bytes begins with few of them, for which `env` is reset once.
        depth_scale, depth_unit: what numbers of a picture that are no colours, such as depth, are multiplied with to
            be whole, and the unit they have then.

    Attributes:
        action_masks (`dict[str, np.ndarray]`): by part of the action, the choices that are allowed now, bool `(n,)`;
            read off `action_mask` in what `reset` and `step` tell, or in the observation. Empty where all are.
        commands (`list[str]`): what may be said now, where `admissible_commands` is told; of text actions.
        action_taken: the last action, as it is recorded.
        outcome ([`Outcome`]): of the last step.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        keep: Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        render: bool = False,
        image_size: int | None = None,
        crop: bool = False,
        optional: Sequence[str] = (),
        depth_scale: float | None = None,
        depth_unit: str = "",
        symbols: Sequence[str] | None = None,
    ):
        super().__init__(env)
        self._action = action_form_of(env.action_space)
        self._view = View(image_size, crop, depth_scale, depth_unit)
        self.actors = list(getattr(env.unwrapped, "actors", None) or ())
        own = {sense_name(*leaf) for leaf in leaves(env.observation_space)}
        kept = [name for name in keep if name in own or not (render and name == "camera")] if keep else None
        first = functools.lru_cache(lambda: self._reset(seed=0)[0])
        self.senses = senses_of(env.observation_space, kept, rename or {}, self._view, optional, symbols, first)
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
        self.action_masks: dict[str, np.ndarray] = {}
        self.commands: list[str] = []
        self.action_taken: Any = None
        self.outcome: Outcome  # from the first step on
        self._has_warned = False

    def _has_image(self) -> bool:
        return any(feature_of(sense.feature).is_picture for sense in self.senses)

    def _camera_feature(self) -> dict:
        if any(sense.name == "camera" for sense in self.senses):
            raise ValueError("render adds the sense 'camera', and an observation has that name: rename that one")
        self._reset(seed=0)  # nothing can be drawn before a reset
        return ImageFeature.of_shape(self._rendered().shape).description

    def _rendered(self) -> np.ndarray:
        try:
            frame = self.env.render()
        except NotImplementedError as error:
            raise ValueError(f"{self.env} has no render(), so render cannot add a camera") from error
        except Exception as error:
            raise EnvironmentFailure.of("render() of the environment", error) from error
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape[2:] != (3,):
            what = getattr(frame, "shape", type(frame).__name__)
            raise ValueError(f"render() of {self.env} gave {what}; expected a (height, width, 3) uint8 frame")
        return fit(frame, self._view.image_size, self._view.crop)

    def _observation_features(self) -> list[tuple[str, dict]]:
        camera = [("observation.camera", self._camera)] if self._camera else []
        return camera + [(f"observation.{sense.name}", sense.feature) for sense in self.senses]

    @property
    def symbols(self) -> list[str]:
        """The observations that are taken as symbols, by their own names."""
        return [sense.own_name for sense in self.senses if feature_of(sense.feature).is_symbolic]

    @property
    def features(self) -> dict[str, dict]:
        """`observation.<sense>` and `action`, described as in `meta/info.json`. Whether an environment says which
        actions it allows is known after a reset."""
        actions = self._action.features
        if ACTION in actions and (names := _action_names(self.unwrapped, self._action.raw_space)):
            actions = {ACTION: actions[ACTION] | {"names": names}}
        for part in self.action_masks:
            actions[action_column(part)] = actions[action_column(part)] | {"masked": True}
        return {**dict(self._observation_features()), **actions}

    def observe(self, observation: Any, info: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """An observation of the environment within, as senses; None for an optional one that is absent.

        Args:
            info: what `reset` or `step` told beside it; what is allowed now is read off both.

        Raises:
            ValueError: an observation is not as its space says, or a mask does not fit the actions.
        """
        mask, commands = (_said(key, info, observation) for key in ("action_mask", "admissible_commands"))
        self.action_masks = {} if mask is None else self._action.masks(mask)
        self.commands = [] if commands is None else list(commands)
        seen: dict[str, Any] = {"camera": self._rendered()} if self._camera else {}
        return seen | {sense.name: sense.read(observation) for sense in self.senses}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        observation, info = self._reset(seed=seed, options=options)
        return self.observe(observation, info), info

    def _reset(self, **options: Any) -> tuple[Any, dict]:
        try:
            return self.env.reset(**options)
        except Exception as error:
            raise EnvironmentFailure.of("reset() of the environment", error) from error

    def look(self, seed: int) -> dict[str, Any]:
        """A first observation, as senses; ValueError also where a sense means something else than it seems to."""
        observation, info = self._reset(seed=seed)
        self.check_senses(observation)
        return self.observe(observation, info)

    def check_senses(self, observation: Any) -> None:
        """Raises ValueError where an observation of the environment within means something else than it seems to, as a
        grid of symbols that looks like a picture."""
        for sense in self.senses:
            sense.check(observation)

    def check_action(self, action: Any) -> Any:
        """The action as it is recorded: an int from 0, a `(dim,)` float32 vector or a string; a dict of these where it
        has several parts.

        Raises:
            ValueError: it has another kind or shape, is not finite, or lies out of range.
        """
        return self._action.check(action)

    def recorded_action(self, action: Any) -> Any:
        """An action as the environment within takes it, in the form in which it is recorded; ValueError as above."""
        return self._action.from_environment(action)

    def sample_action(self, rng: np.random.Generator) -> Any:
        """A random action among those that are allowed now. Draws from `action_space`, which has a seed of its own;
        what is said is drawn by `rng` among `commands`."""
        if self.commands:
            return self.commands[rng.integers(len(self.commands))]
        if isinstance(self.action_space, spaces.Text) and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"Random actions of {self.env} are random letters, since it tells no admissible_commands in info: a "
                "model learns little from them. Record with a policy that says something (--policy module:callable)",
                stacklevel=3,
            )
        return self._action.sample(self.action_masks)

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        self.action_taken = self._action.check(action)
        raw_action = self._action.to_environment(self.action_taken)
        try:
            observation, reward, terminated, truncated, info = self.env.step(raw_action)
        except Exception as error:
            raise EnvironmentFailure.of("step() of the environment", error) from error
        self.outcome = self.read_outcome(reward, terminated, truncated)
        seen = self.observe(observation, info)
        return seen, self.outcome.reward, self.outcome.is_done, self.outcome.is_truncated, info

    def read_outcome(self, reward: Any, terminated: Any, truncated: Any) -> Outcome:
        """What `step` of the environment within told, checked; an episode ends when it has ended for every actor.

        Raises:
            ValueError: a reward is no finite number, or rewards by actor of an environment that names no actors.
        """
        by_actor = isinstance(reward, Mapping)
        if by_actor != bool(self.actors) or (by_actor and not set(reward) <= set(self.actors)):
            raise ValueError(
                f"{self.env} gave the reward {reward!r:.80}; expected "
                + (f"a dict by actor of {self.actors}" if self.actors else "a number")
                + ". An environment of several actors lists their names in its attribute `actors`"
            )
        # an actor that has left the world is named no more
        rewards = {actor: self._number(reward.get(actor, 0.0)) for actor in self.actors}
        total = sum(rewards.values()) if by_actor else self._number(reward)
        ends = terminated if isinstance(terminated, Mapping) else dict.fromkeys(self.actors, terminated)
        dones = {actor: bool(ends.get(actor, True)) for actor in self.actors}
        is_done = all(dones.values()) if by_actor else bool(terminated)
        is_cut = any(truncated.values()) if isinstance(truncated, Mapping) else bool(truncated)
        return Outcome(total, is_done, is_cut, rewards, dones)

    def _number(self, reward: Any) -> float:
        value = reward
        if not isinstance(reward, float):  # most are, and a step is short
            array = np.asarray(reward)
            value = array.item() if array.size == 1 and array.dtype.kind in "iufb" else np.nan
        if not abs(value) <= _MOST_REWARD:  # NaN is not below anything
            raise ValueError(f"{self.env} gave the reward {reward!r:.80}; expected a finite number")
        return float(value)


def _said(key: str, info: Any, observation: Any) -> Any:
    """What an environment says beside or in an observation, None where it says nothing."""
    if isinstance(info, dict) and key in info:
        return info[key]
    return observation.get(key) if isinstance(observation, dict) else None


def _action_names(env: gymnasium.Env, space: spaces.Space) -> list[str] | None:
    """What an environment calls its discrete actions: by an enumeration, as MiniGrid does, or a list, as Atari's."""
    if not isinstance(space, spaces.Discrete) or space.start != 0:
        return None
    members = getattr(getattr(env, "actions", None), "__members__", {})
    names = {int(member): name for name, member in members.items() if isinstance(member, int)}
    if not names and callable(getattr(env, "get_action_meanings", None)):
        names = dict(enumerate(map(str, env.get_action_meanings())))  # type: ignore[attr-defined]  # see the line above
    return list(names.values()) if list(names) == list(range(space.n)) else None


def describe_environment(env: SenseEnvironment) -> dict[str, dict]:
    """The senses and the action of an environment that `make_environment` made.

    Returns:
        `observation.<sense>` and `action` to `{"kind": "image", "shape": [H, W, 3], "unit": ...}`,
        `{"kind": "vector", "dim", "low", "high"}` (a bound is None where the environment states none),
        `{"kind": "symbols", "dims", "num_values", "start"}`,
        `{"kind": "text", "every_step": bool}` or, for actions, `{"kind": "discrete", "n"}`, with `names` where the
        environment has some. An action of several parts has `action.<part>` in place of `action`.
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
    optional: Sequence[str] = (),
    depth_scale: float | None = None,
    depth_unit: str = "",
    symbols: Sequence[str] | None = None,
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
        optional: observations that may be None or missing at some steps, by their own names.
        depth_scale, depth_unit: of pictures that are no colours, see [`SenseEnvironment`].
        symbols: observations that are taken as symbols, see [`SenseEnvironment`].
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
        view = (image_size, crop, optional, depth_scale, depth_unit, symbols)
        return SenseEnvironment(env, keep, rename, render, *view)
    except Exception as error:
        env.close()
        if isinstance(error, ValueError):
            raise ValueError(f"Environment {id!r}: {error}") from error
        raise


# Packages whose modules a recording may name: they hold environments and wrappers, and do nothing when imported.
_TRUSTED = {*_PROVIDERS.values(), "gymnasium", "gymnasium_robotics", "gym_pusht", "gym_aloha", "gym_xarm"}
_TRUSTED |= {"highway_env", "miniworld", "pan_hf"}
# These write files where their arguments say.
_WRITING_WRAPPERS = {"RecordVideo", "RecordTrajectories"}


def make_recorded_environment(
    entry: Mapping[str, Any], trust_recording: bool = False, max_episode_steps: int | None = None
) -> SenseEnvironment:
    """Makes an environment that a recording names, which somebody else may have written.

    Only what cannot run a stranger's code is made: an environment that is registered, or that a known package
    registers, in wrappers of known packages or of modules that are imported already.

    Args:
        entry: of `environments` in `meta/info.json`.
        trust_recording: make whatever the recording names. Each import and its arguments are shown first, on stderr.
        max_episode_steps: replaces the time limit the environment was registered with.

    Raises:
        ValueError: the recording names something else, and is not trusted; or as [`make_environment`].
    """
    if not isinstance(entry.get("id"), str) or set(entry) - _ENTRY:
        raise ValueError(
            f"An environment of the recording has {sorted(entry)}; expected `id` and some of {sorted(_ENTRY)}."
        )
    entry = {
        name: as_type(f"environments of the recording, {name}", value, _TYPES[name]) for name, value in entry.items()
    }
    imports = [*_foreign_environment(entry["id"]), *filter(_is_foreign_wrapper, entry.get("wrappers") or ())]
    if imports and not trust_recording:
        raise ValueError(
            f"The recording's environment {entry['id']!r} asks to import and run {imports}. If you trust who made the "
            "recording, pass --trust-recording (trust_recording=True); or import the modules that you know yourself."
        )
    for text in imports:
        shown = text.encode("unicode_escape").decode()  # on a terminal, letters that move its cursor hide others
        print(f"trusting the recording: imports and runs {shown} {entry.get('env_args') or ''}", file=sys.stderr)
    # where a recording names none there were none: whole numbers are vectors in those of before
    return make_environment(**{"symbols": [], **entry}, max_episode_steps=max_episode_steps)


_ENTRY = {"id", "env_args", "wrappers", "render", "keep", "rename", "image_size", "crop", "optional"}
_ENTRY |= {"depth_scale", "depth_unit", "symbols"}
_TYPES = get_type_hints(make_environment)


def _foreign_environment(id: str) -> list[str]:
    """The import that an environment's id asks for, where it is of no known package."""
    module, colon, name = id.rpartition(":")
    if name.startswith("GymV2"):  # makes an environment of the older `gym`, by an id among its arguments
        return [id]
    if name in gymnasium.registry:
        entry_point = gymnasium.registry[name].entry_point
        is_known = not colon or module in sys.modules or callable(entry_point)
        return [] if is_known else [id]
    provider = module if colon else _provider(name)
    return [] if provider is None or provider.partition(".")[0] in _TRUSTED or provider in sys.modules else [id]


def _is_foreign_wrapper(spec: str) -> bool:
    module, _, name = parse_spec(spec)[0].partition(":")
    if module not in sys.modules and module.partition(".")[0] not in _TRUSTED:
        return True
    wrapper = import_object(f"{module}:{name}", "wrapper")
    is_wrapper = isinstance(wrapper, type) and issubclass(wrapper, gymnasium.Wrapper)
    return not is_wrapper or wrapper.__name__ in _WRITING_WRAPPERS


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
    wrapper = import_object(target, "wrapper")
    try:
        return wrapper(env, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
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


def _provider(name: str) -> str | None:
    """The package that registers an environment of that name, as far as the name tells."""
    namespace, slash, _ = name.partition("/")
    provider = _PROVIDERS.get(namespace if slash else name.partition("-")[0], namespace if slash else None)
    return provider if provider is not None and provider.isidentifier() and provider != "pan_hf" else None


def _import_provider(id: str) -> None:
    """Imports the package that registers `id`, when its name can be told from the id and it is installed."""
    provider = _provider(id)
    if ":" in id or id in gymnasium.registry or provider is None:
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


if "pan_hf/Imagined-v0" not in gymnasium.registry:
    gymnasium.register(
        "pan_hf/Imagined-v0",
        entry_point="pan_hf.imagined_worlds:make_imagined_env",
        vector_entry_point="pan_hf.imagined_worlds:make_imagined_vector_env",
    )
for _name, _entry_point in {
    "pan_hf/FourRooms-8x8-v0": "pan_hf.envs.minigrid_rooms:FourRoomsEnv",
    "pan_hf/Scattered-8x8-v0": "pan_hf.envs.minigrid_rooms:ScatteredEnv",
}.items():
    if _name not in gymnasium.registry:
        gymnasium.register(_name, entry_point=_entry_point)
