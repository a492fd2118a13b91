"""Policies that play the same seeds of an environment, each for as long as the others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pan_hf.agents.agent import PanAgent
from pan_hf.console import Progress
from pan_hf.evaluation.explanations import Explained
from pan_hf.evaluation.success import Ending, Success


@dataclass(frozen=True)
class Outcome:
    """One episode as it was carried out; `times` of its decisions in seconds of wall time. `success` is None where no
    goal is defined."""

    seed: int
    success: bool | None
    steps: int
    total_reward: float
    times: Sequence[float] = ()
    num_simulated: int = 0
    num_calls: int = 0
    replans: int = 0
    surprises: int = 0
    clipped: int = 0
    recalled: int = 0
    recalled_by: dict[str, int] = field(default_factory=dict)
    by_policy: int = 0
    claims: int = 0
    refused: int = 0
    promised: int = 0
    broken: int = 0
    was_given_up: bool = False  # by the clock, so its return and steps are those of a part

    @property
    def seconds(self) -> float:
        return sum(self.times)


@dataclass
class Trace:
    """What a film needs of an episode: T + 1 observations, T actions, and the steps at which a plan was made."""

    observations: list[dict] = field(default_factory=list)
    actions: list = field(default_factory=list)
    plans: list[int] = field(default_factory=list)


@dataclass
class Trial:
    """One policy in one environment, and its episodes so far. `agent` is None for the random policy."""

    environment: str
    env: Any
    label: str
    agent: PanAgent | None
    success: Success
    max_steps: int
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    films: dict[bool | None, Trace] = field(default_factory=dict)  # the first of each ending
    explained: Explained | None = None  # decisions of the first episode

    @property
    def model(self) -> str:
        return self.label if self.agent is None else f"pan/{self.label}"

    def play(
        self, seed: int, max_seconds: float, on_step: Callable[[int], None], time_left: float = math.inf
    ) -> Outcome | None:
        """Carries one episode out and keeps its outcome; None where the time that was left has cut it.

        Args:
            seed (`int`): of the environment, the agent and random actions.
            max_seconds (`float`): after which it is given up.
            time_left (`float`): in seconds, for all that is still to be played.
            on_step: called with the number of steps so far.

        Raises:
            ValueError: the environment, the agent or the critic raised something; the message says where.
        """
        start, trace, steps = time.perf_counter(), Trace(), 0
        try:
            observation, _ = self.env.reset(seed=seed)
            self.env.action_space.seed(seed)
            rng = np.random.default_rng(seed)
            if self.agent is not None:
                self.agent.reset(seed=seed)
            total, reward, terminated, truncated, is_late = 0.0, None, False, False, False
            while not (terminated or truncated or is_late):
                if self.agent is None:
                    action = self.env.sample_action(rng)
                else:
                    action = self._act(self.agent, observation, reward, trace)
                observation, reward, terminated, truncated, info = self.env.step(action)
                if self.agent is not None:
                    self.agent.keeps_promise(observation, float(reward), terminated)
                total, steps = total + float(reward), steps + 1
                on_step(steps)
                # An episode that is given up is a failure: dropping it would count only the easy ones.
                is_late = time.perf_counter() - start > min(max_seconds, time_left)
                if steps >= self.max_steps:
                    break
            ending = Ending(self.environment, self.env, float(reward or 0), terminated, truncated, info, total)
            success = self.success(ending)
        except Exception as error:
            where = f"{self.environment}, {self.model}, episode {len(self.outcomes)} (seed {seed}), step {steps}"
            what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise ValueError(f"{where}: {what}") from error
        was_given_up = is_late and not (terminated or truncated)
        if was_given_up and time_left < max_seconds:
            return None
        outcome = Outcome(seed, success, steps, total, **self._statistics(), was_given_up=was_given_up)
        self.outcomes.append(outcome)
        self.seconds += time.perf_counter() - start
        if self.agent is not None and success not in self.films:
            trace.observations.append(self.agent.senses_of(observation))
            self.films[success] = trace
        return outcome

    def _act(self, agent: PanAgent, observation: dict, reward: float | None, trace: Trace) -> Any:
        statistics = agent.statistics
        plans = statistics.plans
        action = agent.act(observation, reward, mask=self.env.action_masks or None)
        if statistics.plans > plans:
            trace.plans.append(len(trace.actions))
        if self.explained is not None and not self.outcomes:
            self.explained.note(len(trace.actions), agent)
        trace.observations.append(agent.observations[-1])
        trace.actions.append(action)
        return action

    def _statistics(self) -> dict:
        if self.agent is None:
            return {}
        return {name: told for name, told in vars(self.agent.statistics).items() if name in Outcome.__annotations__}


def run_trials(
    trials: list[Trial],
    seeds: list[int],
    time_limit: float | None = None,
    episode_time_limit: float | None = None,
    progress: bool = True,
    start: float | None = None,
) -> None:
    """Plays until each trial has had every seed, or the time is up and each has had one; next is the trial that took
    least time so far. A first episode may take the trial's share of the time, and a later one what is left.

    Args:
        start (`float`, *optional*): when the time began, by `time.perf_counter`; now by default.
    """
    limit, longest = time_limit or math.inf, episode_time_limit or math.inf
    deadline = limit + (time.perf_counter() if start is None else start)
    share = max(0.0, deadline - time.perf_counter()) / len(trials)
    bound = "" if time_limit is None else f" in {time_limit:g} s at most"
    with Progress(f"planning{bound}", len(seeds) * len(trials), "episodes", progress) as line:
        while pending := [index for index, trial in enumerate(trials) if len(trial.outcomes) < len(seeds)]:
            left = deadline - time.perf_counter()
            if left <= 0 and all(trial.outcomes for trial in trials):
                line.update(line.done, f"the time limit of {time_limit:g} s is reached; what was played is written")
                break
            trial = trials[min(pending, key=lambda index: trials[index].seconds)]
            number = len(trial.outcomes)
            where, so_far = f"{trial.model}, episode {number + 1}", _so_far(trials)

            def say(step: int, where: str = where, so_far: str = so_far) -> None:
                line.update(line.done, f"{where}, step {step}; {so_far}")

            if number:
                trial.play(seeds[number], longest, say, left)
            else:
                trial.play(seeds[number], min(longest, share), say)
            line.update(sum(len(trial.outcomes) for trial in trials), _so_far(trials))


def _so_far(trials: list[Trial]) -> str:
    return ", ".join(map(_result_so_far, trials))


def _result_so_far(trial: Trial) -> str:
    outcomes = trial.outcomes
    if all(outcome.success is None for outcome in outcomes):
        outcomes = [outcome for outcome in outcomes if not outcome.was_given_up]
        mean = f"{np.mean([outcome.total_reward for outcome in outcomes]):.3g}" if outcomes else "none yet"
        return f"{trial.model} return {mean}"
    return f"{trial.model} {sum(bool(outcome.success) for outcome in outcomes)} of {len(outcomes)}"
