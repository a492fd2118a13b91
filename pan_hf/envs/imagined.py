"""A world model as a gymnasium environment: whoever can act in the world can act in what is imagined of it.

An episode begins at a recorded step, goes on as the model predicts, reward and end included, and is cut at a horizon,
since what is imagined drifts from what would be. [`ImaginedVectorEnv`] imagines many episodes in one batch, and where
one ends, its row alone begins anew. Both are registered as `pan_hf/Imagined-v0`, see `pan_hf/imagined_worlds.py`.

Shapes: N = rows, that is episodes side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pan_hf.envs.state_features import StateFeatures
from pan_hf.extras import extra
from pan_hf.features import ACTION, feature_class, feature_of
from pan_hf.modeling import Belief, PanModel
from pan_hf.modeling.latent_head_pan import draw_latents
from pan_hf.modeling.state_pan import Actions, as_action
from pan_hf.modeling.step_pan import StepPredictor, as_seed
from pan_hf.modeling.validation_pan import real, truth, whole
from pan_hf.tokenization import PanProcessor

with extra("envs", "An imagined world"):
    import gymnasium
    from gymnasium import spaces
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space

HORIZON = 32
"""Steps after which an imagined episode is cut, unless another number is given."""

OBSERVATIONS = ("senses", "state")


class Starts(Protocol):
    """Where imagined episodes begin."""

    def draw(self, count: int, rng: np.random.Generator) -> Belief:
        """So many beliefs to begin from."""
        ...


class AnyText(spaces.Text):
    """Texts of any letters up to a length: what a model says is not made of a small alphabet."""

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length


@dataclass(frozen=True)
class Settings:
    """How episodes are imagined.

    Args:
        horizon (`int`): steps after which an episode is truncated.
        temperature (`float`): of the codes and words that are drawn. At 0 the likeliest are taken, and an episode ends
            where it more likely ends than not; above, it ends as often as the model says.
        uncertainty_penalty (`float`): taken from the reward for each nat of entropy in what was predicted.
        measures_entropy (`bool`): tell `entropy` in `info` without a penalty, too.
        observation (`str`): "senses": as the world itself shows them, decoded. "state": one vector, see
            [`StateFeatures`]; nothing is decoded, so steps are faster.

    Raises:
        ValueError: a setting is no number of its range, or an unknown `observation`.
    """

    horizon: int = HORIZON
    temperature: float = 1.0
    uncertainty_penalty: float = 0.0
    measures_entropy: bool = False
    observation: str = "senses"

    def __post_init__(self):
        checks = {
            "horizon": whole("horizon", self.horizon, 1),
            "temperature": real("temperature", self.temperature, 0),
            "uncertainty_penalty": real("uncertainty_penalty", self.uncertainty_penalty, 0),
            "measures_entropy": truth("measures_entropy", self.measures_entropy),
        }
        for name, value in checks.items():
            object.__setattr__(self, name, value)
        if self.observation not in OBSERVATIONS:
            raise ValueError(f"`observation` must be one of {OBSERVATIONS}, got {self.observation!r}.")


@dataclass
class Step:
    """What an imagined step brought, by row: numpy arrays `(N,)`, and by name what else is worth telling."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    told: dict[str, np.ndarray]


class Imagination:
    """N imagined episodes side by side.

    Args:
        model ([`PanModel`]), processor ([`PanProcessor`]): of one checkpoint.
        starts ([`Starts`]): where episodes begin.
        settings ([`Settings`]): how they go on.

    Raises:
        ValueError: the model has no senses, or `starts` are none.
    """

    def __init__(self, model: PanModel, processor: PanProcessor, starts: Starts, settings: Settings):
        if not getattr(model, "is_world_model", False):
            raise ValueError("An imagined world needs a model with senses; see PanModel.from_backbone.")
        if not callable(getattr(starts, "draw", None)) or isinstance(starts, type):
            raise ValueError(f"`starts` must have a method `draw`, as RecordedStarts has; got {starts!r:.80}.")
        self.model, self.processor, self.starts, self.settings = model, processor, starts, settings
        self.features = StateFeatures(model) if settings.observation == "state" else None
        self.observation_space = self._observation_space()
        parts = {name: _space(part) for name, part in model.config.actions.items()}
        self.action_space = parts[ACTION] if set(parts) == {ACTION} else spaces.Dict(parts)
        self.pictures = [name for name, sense in model.config.senses.items() if feature_of(sense).is_shown]
        self._keeps_entropy = settings.measures_entropy or settings.uncertainty_penalty > 0
        self.predictor: StepPredictor
        self.belief: Belief  # of the N rows
        self.shown: Belief  # the same as it is looked at: with latents that the next step need not see, without a past
        self.age: np.ndarray  # steps since each row began

    def _observation_space(self) -> spaces.Space:
        if self.features is not None:
            return self.features.space
        return spaces.Dict({name: _space(sense) for name, sense in self.model.config.senses.items()})

    # ---- beginning and going on

    @torch.no_grad()
    def begin(self, count: int, rng: np.random.Generator) -> None:
        """Begins all rows anew; what is drawn from here on follows from `rng`."""
        self.predictor = StepPredictor(self.model, self.settings.temperature, int(rng.integers(2**31)))
        self.belief = self.starts.draw(count, rng)
        self.shown, self.age = _present(self.belief), np.zeros(count, np.int64)

    @torch.no_grad()
    def begin_again(self, rows: np.ndarray, rng: np.random.Generator) -> None:
        """Begins some rows anew, int64 `(n,)`."""
        fresh, index = self.starts.draw(len(rows), rng), torch.as_tensor(rows)
        self.belief, self.shown = self.belief.put(index, fresh), self.shown.put(index, _present(fresh))
        self.age[rows] = 0

    @torch.no_grad()
    def step(self, actions: Sequence[Any], rng: np.random.Generator) -> Step:
        """Imagines one step of every row. Args: actions, N, as a single environment takes them.

        Raises:
            ValueError: an action that the model does not have, or predictions that are not numbers.
        """
        taken, settings = self._batch(actions), self.settings
        transition = self.predictor.step(self.belief, taken, keeps_entropy=self._keeps_entropy)
        assert transition.reward is not None and transition.continue_prob is not None  # a step has an outcome
        rewards, goes_on = transition.reward.float(), transition.continue_prob.float().cpu().numpy()
        told = {"log_prob": transition.log_prob.cpu().numpy(), "continue_prob": goes_on}
        if rewards.dim() == 2:
            actors = self.model.config.actors or []
            told |= {f"reward.{name}": rewards[:, number].cpu().numpy() for number, name in enumerate(actors)}
            rewards = rewards.sum(1)
        reward = rewards.cpu().numpy().astype(np.float64)
        if not (np.isfinite(reward).all() and np.isfinite(goes_on).all()):
            raise ValueError("The model predicts values that are not numbers; load or train it anew.")
        self.belief = self._with_latents(transition)
        if self._keeps_entropy:
            told |= {f"entropy.{name}": nats.cpu().numpy() for name, nats in transition.entropy.items()}
            told["entropy"] = torch.stack(list(transition.entropy.values())).sum(0).cpu().numpy()
            told["reward"] = reward
            reward = reward - settings.uncertainty_penalty * told["entropy"]
        self.age = self.age + 1
        terminated = goes_on <= (rng.random(len(goes_on)) if settings.temperature else 0.5)
        return Step(reward, terminated, ~terminated & (self.age >= settings.horizon), told)

    def _with_latents(self, transition) -> Belief:
        """The belief after a step, as the next step sees it; sets `shown`. Latents are drawn where they are fed back,
        and to be looked at where they help."""
        model, belief = self.model, transition.belief
        feeds_back, is_decoded = model.config.latent_feedback, self.features is None
        wanted = {
            name: condition
            for name, condition in transition.conditions.items()
            if feeds_back or (is_decoded and model.senses[name].latents_help)
        }
        drawn = draw_latents(model, wanted, belief.state, self.predictor.sampler.generator)
        seen = replace(belief, state=replace(belief.state, latents=belief.state.latents | drawn))
        self.shown = _present(seen)
        return seen if feeds_back else belief

    def _batch(self, actions: Sequence[Any]) -> Tensor | Actions:
        """Actions of N rows as the model takes them; the processor checks them."""
        parts = list(self.model.config.actions)
        rows = [{ACTION: action} for action in actions] if parts == [ACTION] else actions
        if not all(isinstance(row, Mapping) and set(row) == set(parts) for row in rows):
            raise ValueError(f"An action is a dict of the parts {parts}, got {list(actions)[0]!r:.80}.")
        columns = {name: self._column(name, [row[name] for row in rows]) for name in parts}
        batch = self.processor(action=columns).to(self.model.device)["action"]
        return as_action(batch)[:, 0]

    def _column(self, name: str, values: list) -> Any:
        """One part of N actions, as the processor takes them: a step each."""
        if feature_class(self.model.config.actions[name].kind).is_text:
            return [[value] for value in values]
        return np.stack([np.asarray(value) for value in values])[:, None]

    # ---- looking

    @torch.no_grad()
    def look(self) -> Any:
        """What is seen, by sense arrays `(N, ...)` and lists of texts; or `(N, D)` float32."""
        if self.features is not None:
            return self.features(self.shown).cpu().numpy()
        return {name: self._see(name) for name in self.model.config.senses}

    def _see(self, name: str) -> Any:
        model, belief = self.model, self.shown
        constant = model.config.prefix_senses
        if name in constant:
            assert belief.prefix is not None  # the model has constant texts
            names = list(constant)
            lengths = [constant[other].max_length for other in names]
            values = belief.prefix.split(lengths, 1)[names.index(name)]
        else:
            values = model.decode(belief.state, name)
        seen = self.processor.decode_observation({name: values.cpu()})[name]
        space = self.observation_space[name]  # type: ignore[index]  # a Dict, since something is decoded
        return np.clip(seen, space.low, space.high).astype(space.dtype) if isinstance(space, spaces.Box) else seen

    @torch.no_grad()
    def frames(self) -> list[np.ndarray]:
        """What each row looks like, uint8 `(height, width, 3)`.

        Raises:
            ValueError: the model has no sense with pictures.
        """
        if not self.pictures:
            raise ValueError(f"Nothing can be drawn: no sense of {list(self.model.config.senses)} has pictures.")
        name = self.pictures[0]
        return list(feature_of(self.model.config.senses[name]).to_frames(self.model.decode(self.shown.state, name)))


def _present(belief: Belief) -> Belief:
    """The belief without its past."""
    return replace(belief, history=[], cache=None, ages=None)


def _space(part: Any) -> spaces.Space:
    """Of the values of a sense, or of a part of the action."""
    return AnyText(4096) if feature_class(part.kind).is_text else feature_of(part).space()


def _row(values: Any, row: int) -> Any:
    """One row of what `Imagination.look` gives."""
    return {name: one[row] for name, one in values.items()} if isinstance(values, dict) else values[row]


class ImaginedEnv(gymnasium.Env):
    """One imagined episode at a time.

    `info` tells `log_prob` of what was drawn and `continue_prob`, of several actors `reward.<actor>`, and where
    uncertainty is measured `entropy`, `entropy.<sense>`, and the `reward` before the penalty.

    Args:
        model ([`PanModel`]), processor ([`PanProcessor`]): of one checkpoint.
        starts ([`Starts`]): where episodes begin.
        render_mode (`str`, *optional*): "rgb_array": `render` shows the first sense that has pictures.
        settings: of [`Settings`].

    Raises:
        ValueError: a setting out of its range, a model without senses, or another `render_mode`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, model: PanModel, processor: PanProcessor, starts: Starts, render_mode=None, **settings: Any):
        self.imagination = Imagination(model, processor, starts, Settings(**settings))
        self.observation_space, self.action_space = self.imagination.observation_space, self.imagination.action_space
        self.render_mode, self.metadata = _render_mode(self.imagination, render_mode)
        self._is_over = True

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=as_seed(seed))
        self.imagination.begin(1, self.np_random)
        self._is_over = False
        return _row(self.imagination.look(), 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        if self._is_over:
            raise ValueError("The imagined episode is over, or has not begun; call reset() first.")
        step = self.imagination.step([action], self.np_random)
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        self._is_over = terminated or truncated
        told = {name: float(values[0]) for name, values in step.told.items()}
        return _row(self.imagination.look(), 0), float(step.reward[0]), terminated, truncated, told

    def render(self) -> Any:
        return self.imagination.frames()[0] if self.render_mode is not None else None


class ImaginedVectorEnv(VectorEnv):
    """Many imagined episodes in one batch.

    A row whose episode ends begins anew by itself: with its next step, as gymnasium's own vector environments do
    (`AutoresetMode.NEXT_STEP`); in the same step (`SAME_STEP`), with the last observation in `infos["final_obs"]`; or
    when it is told to, by `reset(options={"reset_mask": mask})` (`DISABLED`).

    Args:
        num_envs (`int`): N.
        autoreset_mode ([`~gymnasium.vector.AutoresetMode`] or its value): when a row begins anew.
        others: see [`ImaginedEnv`].

    Raises:
        ValueError: as [`ImaginedEnv`]; fewer rows than one, or an unknown mode.
    """

    def __init__(
        self,
        model: PanModel,
        processor: PanProcessor,
        starts: Starts,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode=None,
        **settings: Any,
    ):
        self.num_envs = whole("num_envs", num_envs, 1)
        self.imagination = Imagination(model, processor, starts, Settings(**settings))
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.single_observation_space = self.imagination.observation_space
        self.single_action_space = self.imagination.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.render_mode, metadata = _render_mode(self.imagination, render_mode)
        self.metadata = metadata | {"autoreset_mode": self.autoreset_mode}
        self._is_over = np.ones(self.num_envs, bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        mask = None if options is None else options.get("reset_mask")
        if mask is not None:
            mask = self._checked_mask(mask)
        super().reset(seed=as_seed(seed))
        if mask is None:
            self.imagination.begin(self.num_envs, self.np_random)
            self._is_over[:] = False
        else:
            self._begin_again(mask)
        return self._batched(self.imagination.look()), {}

    def _checked_mask(self, mask: Any) -> np.ndarray:
        is_mask = isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (self.num_envs,)
        if not is_mask or not mask.any() or not hasattr(self.imagination, "belief"):
            raise ValueError(
                f"`reset_mask` says which of {self.num_envs} rows begin anew, a bool array that is true somewhere, "
                f"once all have begun; got {mask!r:.80}."
            )
        return mask

    def _begin_again(self, mask: np.ndarray) -> None:
        self.imagination.begin_again(np.flatnonzero(mask), self.np_random)
        self._is_over[mask] = False

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if not hasattr(self.imagination, "belief"):
            raise ValueError("No imagined episode has begun; call reset() first.")
        over = self._is_over.copy()
        if over.any() and self.autoreset_mode is not AutoresetMode.NEXT_STEP:
            rows = np.flatnonzero(over).tolist()
            raise ValueError(
                f"The episodes of rows {rows} are over; reset(options={{'reset_mask': mask}}) them first."
            )
        step = self.imagination.step(self._rows_of(actions), self.np_random)
        for values in (step.reward, step.terminated, step.truncated):
            values[over] = 0  # of a row that begins anew the action counts for nothing
        infos = self._told(step.told, ~over)
        if over.any():
            self._begin_again(over)
        self._is_over = step.terminated | step.truncated
        seen = self.imagination.look()
        if self._is_over.any() and self.autoreset_mode is AutoresetMode.SAME_STEP:
            for row in np.flatnonzero(self._is_over).tolist():
                final = {"final_obs": _row(seen, row), "final_info": {n: v[row] for n, v in step.told.items()}}
                infos = self._add_info(infos, final, row)
            self._begin_again(self._is_over)
            seen = self.imagination.look()
        return self._batched(seen), step.reward, step.terminated, step.truncated, infos

    def _rows_of(self, actions: Any) -> list[Any]:
        """The actions of all rows, as a single environment takes them."""
        if isinstance(actions, Mapping):
            rows = [dict(zip(actions, row, strict=True)) for row in zip(*actions.values(), strict=True)]
        else:
            rows = list(actions)
        if len(rows) != self.num_envs:
            raise ValueError(f"{self.num_envs} rows take an action each, got {len(rows)}.")
        return rows

    @staticmethod
    def _told(told: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
        """What is told of all rows, each beside the mask of the rows of which it is."""
        return dict(told) | {f"_{name}": mask.copy() for name in told}

    @staticmethod
    def _batched(seen: Any) -> Any:
        """Texts of several rows are a tuple to gymnasium."""
        if not isinstance(seen, dict):
            return seen
        return {name: tuple(values) if isinstance(values, list) else values for name, values in seen.items()}

    def render(self) -> tuple[np.ndarray, ...] | None:
        return tuple(self.imagination.frames()) if self.render_mode is not None else None


def _render_mode(imagination: Imagination, mode: str | None) -> tuple[str | None, dict[str, Any]]:
    """The mode, and an environment's `metadata` with the modes there are."""
    modes = ["rgb_array"] if imagination.pictures else []
    if mode is not None and mode not in modes:
        raise ValueError(f"`render_mode` must be None or one of {modes}, got {mode!r}.")
    return mode, {"render_modes": modes, "render_fps": 4}
