"""Plays episodes and writes them, in one process or several.

Which episodes there are does not depend on who plays them: environment `k` of E plays its episodes number 0, 1, 2 and
so on until they hold enough frames. The `n`-th is episode `n * E + k` of the recording and has its seed from that.
Several processes play ahead of each other; what they played past the last one needed is removed in the end.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pan_hf.data.episodes import SPLITS, Episode, episode_path, episode_table, write_table
from pan_hf.data.info import is_test_episode
from pan_hf.envs.environment import EnvironmentFailure, Outcome, SenseEnvironment, make_environment
from pan_hf.envs.policies import PolicyMixture
from pan_hf.features import task_of
from pan_hf.processes import end_with_parent, is_forked

# Steps of an episode where neither the user nor the environment limits it.
_DEFAULT_MAX_STEPS = 1000


@dataclass(frozen=True)
class RecordingJob:
    """All that a process needs to record an episode."""

    root: Path
    environments: list[dict]  # arguments of make_environment, as in meta/info.json
    features: dict[str, dict]
    schema: pa.Schema
    actors: list[str]
    policies: PolicyMixture
    start: Callable | None
    seed: int
    test_fraction: float
    fps: float
    explore_steps: int
    max_episode_steps: int | None

    def index(self, environment: int, number: int) -> int:
        """Number in the whole recording of an environment's `number`-th episode."""
        return number * len(self.environments) + environment

    def path(self, environment: int, number: int) -> Path:
        split = SPLITS[is_test_episode(number, self.test_fraction)]
        return episode_path(self.root, split, self.index(environment, number))

    def make(self, environment: int) -> SenseEnvironment:
        """The environment, with room for the steps that are not recorded."""
        steps = self.max_episode_steps
        limit = steps and steps + self.explore_steps
        entry = {"symbols": [], **self.environments[environment]}  # where it names none there are none
        return make_environment(**entry, max_episode_steps=limit, start=self.start)


# One episode


class _Stopped(Exception):
    """The recording was interrupted while an episode was being played."""


class Recorder:
    """Plays and writes episodes, one at a time, in environments that are made once."""

    def __init__(self, job: RecordingJob, is_stopped: Callable[[], bool] = lambda: False):
        self._job = job
        self._is_stopped = is_stopped
        self._environments: dict[int, SenseEnvironment] = {}

    def record(self, environment: int, number: int) -> int:
        """Plays an environment's `number`-th episode, writes it and returns its number of rows."""
        job = self._job
        if environment not in self._environments:
            self._environments[environment] = job.make(environment)
        index = job.index(environment, number)
        sequence = np.random.SeedSequence([job.seed, index])
        episode = Episode(
            environment=job.environments[environment]["id"],
            index=index,
            seed=int(sequence.generate_state(1)[0] >> 1),  # some environments take 31 bits only
        )
        rng = np.random.default_rng(sequence.spawn(1)[0])
        try:
            self._play(self._environments[environment], episode, rng)
        except ValueError as error:  # an environment's own errors are among them, see `EnvironmentFailure`
            where = f"{episode.environment}, episode {index} (seed {episode.seed}), step {len(episode.actions)}"
            raise ValueError(f"{where}: {error}") from error
        write_table(job.path(environment, number), episode_table(episode, job.features, job.schema, job.fps))
        return len(episode.actions) + 1

    def _play(self, env: SenseEnvironment, episode: Episode, rng: np.random.Generator) -> None:
        env.action_space.seed(episode.seed)
        observation, _ = env.reset(seed=episode.seed)
        observation = _explore(env, observation, int(rng.integers(self._job.explore_steps + 1)), rng)
        try:
            act = self._job.policies.for_episode(env, rng)
        except Exception as error:
            raise EnvironmentFailure.of("the policy", error) from error
        episode.task = task_of(observation, self._job.features)
        see(episode, observation, env)
        limit = self._job.max_episode_steps or (env.spec and env.spec.max_episode_steps) or _DEFAULT_MAX_STEPS
        while not (episode.is_done or episode.is_truncated):
            if self._is_stopped():
                raise _Stopped
            try:
                action = act(observation, rng)
            except Exception as error:
                raise EnvironmentFailure.of("the policy", error) from error
            observation, *_ = env.step(action)
            follow(episode, env.action_taken, env.outcome)
            see(episode, observation, env)
            episode.is_truncated |= len(episode.actions) >= limit and not episode.is_done


def see(episode: Episode, observation: dict, env: SenseEnvironment) -> None:
    """Adds an observation, and what `env` allows there."""
    for sense, value in observation.items():
        # copied: the environment, or whoever plays it, may write into it later
        episode.observations.setdefault(sense, []).append(value.copy() if isinstance(value, np.ndarray) else value)
    for part, mask in env.action_masks.items():
        masks = episode.action_masks.setdefault(part, [])
        # where nothing was told, all was allowed
        masks += [np.ones_like(mask)] * (len(episode.actions) - len(masks)) + [mask]


def follow(episode: Episode, action: Any, outcome: Outcome) -> None:
    """Adds an action and what followed it."""
    episode.actions.append(action)
    episode.rewards.append(outcome.reward)
    episode.is_done, episode.is_truncated = outcome.is_done, outcome.is_truncated
    for actor, reward in outcome.actor_rewards.items():
        episode.actor_rewards.setdefault(actor, []).append(reward)
        episode.actor_dones.setdefault(actor, []).append(outcome.actor_dones[actor])


def _explore(env: SenseEnvironment, observation: dict, num_steps: int, rng: np.random.Generator) -> dict:
    """Takes random steps that are not recorded; an episode that ends under them begins anew where it would have."""
    for _ in range(num_steps):
        observation, _, is_done, is_truncated, _ = env.step(env.sample_action(rng))
        if is_done or is_truncated:
            return env.reset()[0]
    return observation


# Many episodes, in this process or in several


class _InThisProcess(Executor):
    """Runs what is submitted at once."""

    def __init__(self, recorder: Recorder):
        self._recorder = recorder

    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        future.set_result(self._recorder.record(*args))
        return future


_recorder: Recorder | None = None  # of this worker process


def _start_worker(job: RecordingJob, stop: Any) -> None:
    global _recorder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the recording process decides what Ctrl-C means
    end_with_parent()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # OpenMP's threads do not survive a fork
    _recorder = Recorder(job, stop.is_set)


def _record_in_worker(environment: int, number: int) -> int:
    assert _recorder is not None  # made by `_start_worker`
    return _recorder.record(environment, number)


@contextmanager
def recording_processes(job: RecordingJob, workers: int) -> Iterator[Executor]:
    """Where `record_streams` plays: this process, or several; leaving it stops the episodes that are being played.

    Enter it before other threads are started: they do not survive a fork.

    Raises:
        ValueError: the job cannot go to another process.
    """
    if workers == 1:
        yield _InThisProcess(Recorder(job))
        return
    context = multiprocessing.get_context()
    if not is_forked():
        _check_travels(job, workers)
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (job, stop))
    try:
        with _ignoring_interrupts():  # workers that are just starting inherit it
            pool.submit(int)
        yield pool
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _check_travels(job: RecordingJob, workers: int) -> None:
    try:
        ForkingPickler.dumps(job)
    except Exception as error:
        raise ValueError(
            f"workers={workers}: other processes find policy and start by name; pass 'module:callable' instead of "
            f"{job.policies.names}, start {job.start!r} ({error})"
        ) from error


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@dataclass
class Stream:
    """The episodes of one environment: what is finished, and whether more is needed.

    Args:
        environment: number of the environment.
        frames: rows to record at least.
        episodes: episodes to record at least.
    """

    environment: int
    frames: int
    episodes: int
    rows: dict[int, int] = field(default_factory=dict)  # of the finished episodes, by number
    num_needed: int = 0  # how many episodes, from the first on, count towards what is asked for
    num_rows: int = 0  # rows of these
    total_rows: int = 0  # rows of all finished episodes
    _playing: set[int] = field(default_factory=set)

    def finish(self, number: int, num_rows: int) -> None:
        """Notes that the `number`-th episode is written."""
        self._playing.discard(number)
        self.rows[number] = num_rows
        self.total_rows += num_rows
        while not self.is_reached and self.num_needed in self.rows:
            self.num_rows += self.rows[self.num_needed]
            self.num_needed += 1

    @property
    def is_reached(self) -> bool:
        """Whether the episodes from the first on hold what was asked for, without a gap."""
        return self.num_rows >= self.frames and self.num_needed >= self.episodes

    def progress(self) -> float:
        """Share of what was asked for that is finished or, by the mean length so far, being played."""
        num_episodes = len(self.rows) + len(self._playing)
        mean = self.total_rows / len(self.rows) if self.rows else 1.0
        frames = self.total_rows + len(self._playing) * mean
        return min(frames / max(self.frames, 1), num_episodes / self.episodes)

    def wants_another(self) -> bool:
        """Whether to begin another episode now."""
        return not self.is_reached and (not self._playing or self.progress() < 1)

    def begin(self) -> int:
        """The number of the next episode to play."""
        number = self.num_needed
        while number in self.rows or number in self._playing:
            number += 1
        self._playing.add(number)
        return number


def record_streams(executor: Executor, streams: list[Stream], num_ahead: int, report: Callable[[], None]) -> None:
    """Plays and writes episodes until every stream has what it needs.

    Args:
        executor: from `recording_processes`.
        streams: one an environment.
        num_ahead: how many episodes are begun at once.
        report: called whenever episodes are finished.

    Raises:
        ValueError: an environment or a policy gave something it may not.
        OSError: an episode cannot be written.
        BrokenProcessPool: a process was killed.
    """
    playing: dict[Future, tuple[Stream, int]] = {}
    while not all(stream.is_reached for stream in streams):
        for stream in sorted(streams, key=Stream.progress):
            while len(playing) < num_ahead and stream.wants_another():
                number = stream.begin()
                playing[executor.submit(_record_in_worker, stream.environment, number)] = stream, number
        for future in wait(playing, return_when=FIRST_COMPLETED).done:
            stream, number = playing.pop(future)
            stream.finish(number, future.result())
        report()
