"""A source's episodes become a recording: checked one by one, written beside the output, renamed when all are in."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pan_hf.console import track
from pan_hf.data.episodes import (
    SPLITS,
    UNKNOWN_SEED,
    Episode,
    episode_path,
    episode_schema,
    episode_table,
    write_table,
)
from pan_hf.data.info import check_test_fraction, is_test_episode, new_info, write_counted
from pan_hf.data.whole import write_whole


class Source(Protocol):
    """Where episodes come from.

    Args:
        about: kind, place, options and size, as JSON can hold them: an import goes on only from the same.
        fps: frames a second.
        features: senses and action, as in `meta/info.json`.
        environment: an entry of `environments` in `meta/info.json`; `pan plan` makes it where it can be made.
        has_rewards: whether the source tells any.
    """

    about: dict
    fps: float
    features: dict[str, dict]
    environment: dict
    has_rewards: bool

    def __len__(self) -> int: ...

    def episode(self, number: int) -> Episode:
        """The `number`-th episode, converted and checked; ValueError names what is wrong with it, and where."""


def write_recording(
    source: Source, output: str | Path, test_fraction: float, progress: bool, skip_short: bool = False
) -> dict:
    """Writes every episode of a source into `output`, which appears whole when all are there.

    Args:
        skip_short: leave out episodes of fewer than two observations, and say how many.

    Returns:
        what `meta/info.json` holds.

    Raises:
        ValueError: `output` holds something else, or an episode is not as it must be; then nothing is left of it.
        KeyboardInterrupt: Ctrl-C; the finished episodes are kept beside `output`, and the same import goes on.
    """
    info = _new_info(source, test_fraction)
    write = partial(_write_episodes, source, info=info, progress=progress, skip_short=skip_short)
    written = write_whole(output, info, write, "this import", "the same import")
    if written is info and not source.has_rewards:
        warnings.warn("The data have no rewards: all are 0, so the model learns to expect none", stacklevel=4)
    return written


def _new_info(source: Source, test_fraction: float) -> dict:
    check_test_fraction(test_fraction)
    if len(source) < (2 if 0 < test_fraction < 1 else 1):
        raise ValueError(
            f"{source.about['path']} has {len(source)} episodes; at least one is needed for training and one for "
            "testing. Cut it into more, or keep none for testing with test_fraction=0"
        )
    about = {"source": json.loads(json.dumps(source.about))}
    return new_info(source.fps, source.features, [source.environment], test_fraction, **about)


class TooShort(ValueError):
    """An episode without a transition."""


def _write_episodes(source: Source, root: Path, info: dict, progress: bool, skip_short: bool) -> None:
    schema, num_short = episode_schema(source.features), 0
    for number in track(range(len(source)), "importing", "episodes", progress):
        path = episode_path(root, SPLITS[is_test_episode(number, info["test_fraction"])], number)
        if path.exists():
            continue
        try:
            write_table(path, episode_table(source.episode(number), source.features, schema, source.fps))
        except TooShort:
            if not skip_short:
                raise
            num_short += 1
    if num_short:
        warnings.warn(f"{num_short} episodes of fewer than two observations were left out", stacklevel=2)
    if num_short == len(source):
        raise ValueError(f"{source.about['path']}: no episode has two observations")
    write_counted(root, info, source.features, is_complete=True)


# One episode


def make_episode(
    where: str,
    environment: str,
    number: int,
    observations: Mapping[str, Iterable],
    actions: Sequence,
    rewards: Sequence | None = None,
    dones: Sequence | None = None,
    truncateds: Sequence | None = None,
    task: str = "",
    seed: int = UNKNOWN_SEED,
) -> Episode:
    """An episode from its columns, which must fit one another.

    There are T actions and T + 1 observations; or as many observations as actions, and then the last action, whose
    outcome nobody saw, is left out: its reward and its end are counted to the action before it, so that the episode's
    return and its end are kept.

    Args:
        where: what an error names.
        environment, number, task, seed: of the episode.
        observations: by sense, converted.
        actions: converted.
        rewards, dones, truncateds: one an action, or None where the source has none.

    Raises:
        ValueError: columns of different length, fewer than two observations, an end before the last step, or a reward
            that is no finite number.
    """
    seen = {sense: list(values) for sense, values in observations.items()}
    lengths = {sense: len(values) for sense, values in seen.items()}
    num_frames = next(iter(lengths.values()))
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where}: every sense needs as many observations as the others, got {lengths}")
    if num_frames < 2:
        raise TooShort(
            f"{where}: an episode needs two observations at least, got {num_frames}; leave it out with skip_short "
            "(--skip-short)"
        )
    if len(actions) not in (num_frames - 1, num_frames):
        raise ValueError(
            f"{where}: {num_frames} observations need {num_frames - 1} actions (or {num_frames}, of which the last is "
            f"left out), got {len(actions)}"
        )
    outcomes = {"rewards": rewards, "dones": dones, "truncateds": truncateds}
    lengths = {name: len(values) for name, values in outcomes.items() if values is not None}
    if wrong := {name: length for name, length in lengths.items() if length != len(actions)}:
        raise ValueError(f"{where}: expected one value for each of the {len(actions)} actions, got {wrong}")
    num_steps = num_frames - 1
    return Episode(
        environment=environment,
        index=number,
        seed=seed,
        task=task,
        observations=seen,
        actions=list(actions[:num_steps]),
        rewards=_rewards(where, rewards, num_steps),
        is_done=(is_done := _ends(where, "done", dones, num_steps)),
        # an episode that does not end in the world is cut short by the end of its data
        is_truncated=_ends(where, "truncated", truncateds, num_steps) or not is_done,
    )


def _rewards(where: str, rewards: Sequence | None, num_steps: int) -> list[float]:
    if rewards is None:
        return [0.0] * num_steps
    values = as_rewards(where, rewards)
    kept = values[:num_steps].copy()
    kept[-1] += values[num_steps:].sum()
    return kept.tolist()


def as_rewards(where: str, rewards: Sequence) -> np.ndarray:
    """A column of rewards as float64 `(T,)`; ValueError where one is no finite number."""
    try:
        values = np.asarray(rewards, dtype=np.float64).reshape(len(rewards), -1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected a number as the reward of each step ({error})") from error
    if values.shape[1] != 1 or not np.isfinite(values).all():
        raise ValueError(f"{where}: expected a finite number as the reward of each step, got {np.ravel(values)[:8]}")
    return values[:, 0]


def _ends(where: str, name: str, flags: Sequence | None, num_steps: int) -> bool:
    if flags is None:
        return False
    marked = np.flatnonzero(np.ravel(flags))
    if len(marked) and marked[0] < num_steps - 1:
        raise ValueError(
            f"{where}: {name!r} is set at step {marked[0]} of {len(flags)}, and an episode ends where it is set for "
            "the first time; is the column that tells episodes apart the right one?"
        )
    return bool(len(marked))


def as_text(value: Any) -> str:
    """A text, also where it is held as numpy or bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
