"""Rows of a recording as the processor gives them, and windows of held-out episodes: which to evaluate on, and as
batches for the model."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pan_hf.data.trajectories import Trajectories, map_columns
from pan_hf.features import ACTION, action_parts, feature_of
from pan_hf.tokenization import PanProcessor


def read_rows(
    trajectories: Trajectories, processor: PanProcessor
) -> tuple[dict[str, Tensor], Tensor | dict[str, Tensor]]:
    """Every row of a recording as the processor gives it (see [`PanProcessor.read_columns`]).

    Returns:
        `(N, ...)` by sense, and under `<sense>.present` bool `(N,)` for a sense that is absent in some rows; and the
        actions `(N, ...)`, by part where there are several, of which the last of an episode, where nothing was done,
        repeats the one before it.

    Raises:
        ValueError: the recording lacks a sense of the processor's model, or holds something that does not fit.
    """
    check_has_senses(trajectories, processor.senses)
    columns: dict[str, Any] = {
        name: feature_of(trajectories.features[f"observation.{name}"]).to_processor(trajectories.observations[name])
        for name in processor.senses
    }
    columns[ACTION] = actions_of(trajectories, np.arange(len(trajectories)) - trajectories.action_is_pad)
    rows = processor.read_columns(columns)
    actions = rows.pop(ACTION)
    for name, mask in trajectories.present.items():
        if name in processor.senses and processor.senses[name].get("every_step", True):
            rows[f"{name}.present"] = torch.from_numpy(mask)
    return rows, actions


def actions_of(trajectories: Trajectories, rows: np.ndarray) -> Any:
    """The actions of some rows, as the processor takes them; by part where there are several."""
    parts = action_parts(trajectories.features)
    if ACTION in parts:
        return parts[ACTION].to_processor(trajectories.actions[rows])
    return {name: part.to_processor(trajectories.actions[name][rows]) for name, part in parts.items()}


def check_has_senses(trajectories: Trajectories, senses: Iterable[str]) -> None:
    """Raises ValueError where a recording lacks some of a model's senses."""
    missing = sorted(set(senses) - set(trajectories.observations))
    if missing:
        raise ValueError(
            f"The model's senses {missing} are not in the recording, which has {sorted(trajectories.observations)}. "
            "Record them (`pan record --keep`, `--rename`), or take the data that the model was trained for."
        )


class WindowReader:
    """Turns rows of recorded trajectories into batches for the model.

    Args:
        trajectories (`Trajectories`): a split of recorded episodes.
        processor (`PanProcessor`), model (`PanModel`): the batches are on the model's device.
        context (`int`, *optional*): true frames that a batch shows up to the start of its windows; as many as the
            model looks back on by default.

    Raises:
        ValueError: the recording lacks a sense of the model, or `context` is below 1.
    """

    def __init__(self, trajectories: Trajectories, processor: PanProcessor, model, context: int | None = None):
        self.trajectories, self.processor, self.model = trajectories, processor, model
        context = model.config.context_steps if context is None else context
        if context < 1:
            raise ValueError(f"`context` must be at least 1 frame, got {context}.")
        self.lead = context - 1
        check_has_senses(trajectories, model.config.senses)

    def batch(self, rows: np.ndarray, num_steps: int) -> Mapping[str, Any]:
        """`num_steps` transitions from each of `rows`, with the `lead` before them.

        Returns:
            What the processor gives for `lead + num_steps + 1` frames; frame `lead` is that of `rows`.
        """
        frames = rows[:, None] - self.lead + np.arange(self.lead + num_steps + 1)
        observation = {name: self._sense(name, frames) for name in self.model.config.senses}
        present = {name: mask for name, mask in self.trajectories.present.items() if name in observation}
        observation |= {f"{name}.present": mask[frames] for name, mask in present.items() if self.changes(name)}
        actions = actions_of(self.trajectories, frames[:, :-1])
        return self.processor(observation=observation, action=actions).to(self.model.device)

    def perceive(self, batch: Mapping, step: int = 0):
        """The model's belief at the true frame `step` steps after the start, with what it looks back on before it."""
        end = self.lead + step + 1
        first = max(0, end - self.model.config.context_steps)
        seen = self.part(batch["observation"], slice(first, end))
        actions = map_columns(batch["action"], lambda part: part[:, first : end - 1])
        return self.model.perceive(observation=seen, action=actions)

    def _sense(self, name: str, frames: np.ndarray) -> Any:
        rows = frames if self.changes(name) else frames[:, 0]
        feature = feature_of(self.model.config.senses[name])
        return feature.to_processor(self.trajectories.observations[name][rows])

    def outcome(self, rows: np.ndarray, step: int) -> tuple[Tensor, Tensor]:
        """Reward and end of the `step`-th action (from 1) after `rows`, on the model's device."""
        taken = rows + step - 1
        reward, done = (values[taken] for values in (self.trajectories.rewards, self.trajectories.dones))
        device = self.model.device
        return torch.as_tensor(reward, dtype=torch.float, device=device), torch.as_tensor(done, device=device)

    def part(self, observation: dict[str, Tensor], times: slice | Sequence[int]) -> dict[str, Tensor]:
        """The chosen frames of a batch's observation; texts that hold for the whole episode stay whole."""
        return {name: x[:, times] if self.changes(name) else x for name, x in observation.items()}

    def changes(self, sense: str) -> bool:
        """Whether a sense is observed at every step, unlike a text that holds for the whole episode."""
        # `<sense>.present` changes with its sense
        return getattr(self.model.config.senses[sense.removesuffix(".present")], "every_step", True)


def choose_windows(
    trajectories,
    environment: str,
    horizons: Iterable[int],
    num_windows: int,
    seed: int,
    skip: Iterable[int] = (),
    lead: int = 0,
) -> dict[int, np.ndarray]:
    """For each horizon, rows of `environment` to start from, uniform among the windows that are long enough.

    Every row has one random rank and each horizon takes the rows of lowest rank that are long enough for it: a window
    drawn for horizon 20 is most likely drawn for horizon 1 too, so that one simulation serves both.

    Args:
        num_windows (`int`): how many a horizon, all where there are fewer.
        skip (`Iterable[int]`): episodes to leave out.
        lead (`int`): transitions that must lie before each row, in the same episode.

    Returns:
        `{horizon: rows}`, ascending; a horizon that no episode reaches is left out, with a warning.

    Raises:
        ValueError: no episode reaches the shortest horizon, or a horizon is below 1.
    """
    horizons = sorted(set(horizons))
    if not horizons or horizons[0] < 1:
        raise ValueError(f"Expected horizons of 1 step or more, got {horizons}.")
    rank = np.random.default_rng(seed).permutation(len(trajectories.episode))
    chosen: dict[int, np.ndarray] = {}
    for horizon in horizons:
        try:
            rows = trajectories.windows(lead + horizon, environment) + lead
        except ValueError as error:
            if not chosen:
                raise
            warnings.warn(f"Horizon {horizon} is left out for {environment}: {error}", stacklevel=2)
            break
        rows = rows[~np.isin(trajectories.episode[rows], list(skip))]
        if len(rows):
            chosen[horizon] = np.sort(rows[np.argsort(rank[rows])[:num_windows]])
    if not chosen:
        raise ValueError(f"All episodes of {environment} of {lead + horizons[0]} steps or more were trained on.")
    return chosen


def check_held_out(trajectories, trained: Iterable[str], skip_trained: bool = False) -> list[int]:
    """Refuses episodes that were trained on.

    Args:
        trained (`Iterable[str]`): fingerprints of the episodes trained on.
        skip_trained (`bool`): warn in place of refusing, as long as any episode is left.

    Returns:
        `list[int]`: the episodes to skip.

    Raises:
        ValueError: names the episodes that were trained on.
    """
    trained = set(trained)
    seen = [index for index, fingerprint in enumerate(trajectories.fingerprints) if fingerprint in trained]
    if not seen:
        return []
    columns = (trajectories.episode_indices, trajectories.environments, trajectories.fingerprints)
    names = [f"{columns[0][index]} ({columns[1][index]}, {columns[2][index]})" for index in seen[:10]]
    what = f"{len(seen)} of {len(columns[2])} episodes to evaluate on were trained on: episode {', '.join(names)}"
    what += ", ..." if len(seen) > 10 else ""
    if not skip_trained or len(seen) == len(columns[2]):
        raise ValueError(f"{what}. Evaluate on episodes recorded for testing, or skip those that were trained on.")
    warnings.warn(f"{what}; they are left out.", stacklevel=2)
    return seen
