"""`pan plan`: agents that plan in a world model act in the real environment, beside a random policy on the same seeds.

The environments are those of the recording (ids, arguments, wrappers and senses are read from its `meta/info.json`),
reset with seeds that the recording did not use. What counts as a goal is read from the recording too: see
[`reward_critic`]. Results are records with `model` "pan/<planner>" and "random_policy":

| metric | what it is |
|---|---|
| `success`, `success_low`, `success_high` | share of episodes that reached the goal, and its Wilson 95% interval |
| `steps`, `steps_to_success` | actions an episode, over all episodes and over successful ones |
| `return` | sum of rewards of an episode |
| `seconds_per_decision`, `simulated_per_decision` | wall time and imagined steps for one action |
| `replans_per_episode`, `surprises_per_episode` | plans made, and observations unlike the predicted ones |
| `episodes` | how many were played: fewer than asked for if the time limit came first |
| `compute_per_simulated_step`, `tokens_per_simulated_step`, `denoiser_calls_per_simulated_step`, \
`simulated_steps_per_second` | with an effort: what one imagined step cost, compute as a share of a whole step's |
"""

import io
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from pan_hf.agents.agent import PanAgent, perceive
from pan_hf.agents.critics import RewardCritic
from pan_hf.agents.registry import comparing, make_planners
from pan_hf.agents.world import FixedEffort, within
from pan_hf.checkpoints import find_checkpoint, find_recording, load, results_folder
from pan_hf.console import Progress
from pan_hf.data.episodes import episode_files, read_info
from pan_hf.envs.environment import describe_environment, make_environment
from pan_hf.features import feature_of
from pan_hf.files import write_file
from pan_hf.reporting.results import Record, mean_stderr, record, wilson, write_records
from pan_hf.reporting.strips import shown_senses
from pan_hf.specs import load_callable

RANDOM = "random_policy"
_LONGEST_EPISODE = 10_000  # steps, for environments that end by themselves only
_LONGEST_FILM = 100  # steps shown of an episode


@dataclass(frozen=True)
class Outcome:
    """One episode as it was carried out; times in seconds of wall time."""

    seed: int
    success: bool
    steps: int
    total_reward: float
    seconds: float = 0.0
    num_simulated: int = 0
    replans: int = 0
    surprises: int = 0


@dataclass
class _Trace:
    """What a film needs of an episode: T + 1 observations, T actions, and the steps at which a plan was made."""

    observations: list[dict] = field(default_factory=list)
    actions: list = field(default_factory=list)
    plans: list[int] = field(default_factory=list)


@dataclass
class _Trial:
    """One policy in one environment, and its episodes so far. `agent` is None for the random policy."""

    environment: str
    env: Any
    label: str
    agent: PanAgent | None
    is_success: Callable
    max_steps: int
    max_seconds: float
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    films: dict[bool, _Trace] = field(default_factory=dict)  # the first success and the first failure

    @property
    def model(self) -> str:
        return self.label if self.agent is None else f"pan/{self.label}"

    def play(self, seed: int) -> Outcome:
        """Carries one episode out and keeps its outcome."""
        start = time.perf_counter()
        observation, _ = self.env.reset(seed=seed)
        self.env.action_space.seed(seed)
        if self.agent is not None:
            self.agent.reset(seed=seed)
        trace, total, reward, steps = _Trace(), 0.0, None, 0
        terminated = truncated = False
        while not (terminated or truncated):
            action = self._choose(observation, reward, trace)
            observation, reward, terminated, truncated, info = self.env.step(action)
            total, steps = total + float(reward), steps + 1
            # An episode that is given up is a failure: dropping it would count only the easy ones.
            truncated = truncated or steps >= self.max_steps or time.perf_counter() - start > self.max_seconds
        success = bool(self.is_success(self.env, float(reward or 0.0), bool(terminated), info))
        outcome = Outcome(seed, success, steps, total, **self._statistics())
        self.outcomes.append(outcome)
        self.seconds += time.perf_counter() - start
        if self.agent is not None and success not in self.films:
            trace.observations.append(self.agent.senses_of(observation))
            self.films[success] = trace
        return outcome

    def _choose(self, observation: dict, reward: float | None, trace: _Trace):
        if self.agent is None:
            return self.env.action_space.sample()
        numbers = self.agent.statistics
        plans = numbers.replans + numbers.repairs
        action = self.agent.act(observation, reward)
        if numbers.replans + numbers.repairs > plans:
            trace.plans.append(len(trace.actions))
        trace.observations.append(self.agent.senses_of(observation))
        trace.actions.append(action)
        return action

    def _statistics(self) -> dict:
        if self.agent is None:
            return {}
        numbers = self.agent.statistics
        names = ("seconds", "num_simulated", "replans", "surprises")
        return {name: getattr(numbers, name) for name in names}


def default_success(env, reward: float, terminated: bool, info: dict) -> bool:
    """`info["is_success"]` where the environment says it, else: the episode ended, with a positive reward."""
    return bool(info.get("is_success", terminated and reward > 0))


def plan(
    run: str | Path,
    data_root: str | Path | None = None,
    *,
    planners: Sequence[str] | None = None,
    environments: Sequence[str] | None = None,
    episodes: int = 50,
    seed: int = 10_000,
    max_steps: int | None = None,
    replan: str | None = None,
    success: str | Callable | None = None,
    reward_threshold: float | None = None,
    critic=None,
    effort=None,
    time_limit: float | None = None,
    episode_time_limit: float | None = None,
    output: str | Path | None = None,
    progress: bool = True,
) -> list[Record]:
    """Plans with a checkpoint in the real environments and writes `planning.json` and films.

    With a time limit, planners get equal time rather than equal episodes, and the one at hand is finished. Interrupted
    or failed, the finished episodes are written all the same.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, or a checkpoint.
        data_root (`str` or `Path`, *optional*): the recording, a folder or a Hub id; by default
            the one the checkpoint was trained on.
        planners (`Sequence[str]`, *optional*): "graph", "cem" or "random_shooting", with settings as in
            "cem?horizon=8&num_samples=128"; by default all that fit the action.
        environments (`Sequence[str]`, *optional*): ids of the recording; all by default.
        episodes (`int`): episodes of each environment and policy.
        seed (`int`): the first environment seed; episode i has `seed + i`.
        max_steps (`int`, *optional*): steps after which an episode is cut; the environment's own limit by default.
        replan (`str`, *optional*): see [`PanAgent`]; "on_surprise" for discrete actions, "at_end" for vectors, whose
            states hardly ever equal the imagined ones.
        success (`str` or `Callable`, *optional*): `(env, reward, terminated, info) -> bool` after the last step, or
            "module:name" of one; [`default_success`] by default.
        reward_threshold (`float`, *optional*): expected reward that counts as the goal; by default from the recording.
        critic (*optional*): a critic in place of the expected reward, see `pan_hf.agents.critics`.
        effort (*optional*): what planners may spend on an imagined step, as [`PanModel.simulate`] takes it. Graph
            search then compares states by their coarsest level, unless every level is predicted.
        time_limit (`float`, *optional*): seconds for all of it.
        episode_time_limit (`float`, *optional*): seconds after which an episode is given up and counts as a failure.
        output (`str` or `Path`, *optional*): folder to write into; the run folder by default.
        progress (`bool`): show progress bars.

    Returns:
        `list[Record]`: what was written.

    Raises:
        ValueError: a seed that the recording used, an unknown planner or environment, a planner that does not fit the
            action, an environment whose action is not the model's.
        FileNotFoundError: no checkpoint or no recording.
    """
    if episodes < 1:
        raise ValueError(f"`episodes` must be at least 1, got {episodes}.")
    output = results_folder(run, output)
    checkpoint = find_checkpoint(run, adapters=True)
    root = find_recording(checkpoint, data_root)
    entries = _choose_environments(read_info(root)["environments"], environments)
    facts = _recorded_facts(root)
    seeds = list(range(seed, seed + episodes))
    _check_seeds(seeds, entries, facts)
    model, processor = load(checkpoint)
    chosen = make_planners(planners, model.config.action)
    is_success = default_success if success is None else load_callable(success, "success")
    trials = []
    for entry in entries:
        env = make_environment(**entry, max_episode_steps=max_steps)
        world = within(model, entry["id"], describe_environment(env)["action"])
        wants = critic or reward_critic(facts.get(entry["id"]), reward_threshold)
        when = replan or ("on_surprise" if feature_of(model.config.action).is_discrete else "at_end")
        agents = {}
        for name, planner in chosen.items():
            imagined = (
                world if effort is None else FixedEffort(world, effort)
            )  # each planner has an account of its own
            agents[name] = PanAgent(imagined, processor, wants, comparing(planner, imagined), when)
        limits = (max_steps or _LONGEST_EPISODE, episode_time_limit or float("inf"))
        trials += [
            _Trial(entry["id"], env, name, agent, is_success, *limits)
            for name, agent in [*agents.items(), (RANDOM, None)]
        ]
    try:
        run_trials(trials, seeds, time_limit, progress)
    finally:
        records = [entry for trial in trials for entry in trial_records(trial)]
        if records:
            write_records(output / "planning.json", records)
            for trial in trials:
                write_films(trial, model, processor, output / "report" / "films")
        for env in {id(trial.env): trial.env for trial in trials}.values():
            env.close()
    return records


# --- What the recording says ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordedFacts:
    """What a recording says of one environment: the seeds it used, its positive rewards, and whether each ended its
    episode."""

    seeds: frozenset[int] = frozenset()
    rewards: tuple[float, ...] = ()
    reward_ends: bool = False


def reward_critic(facts: RecordedFacts | None, threshold: float | None = None) -> RewardCritic:
    """The critic that wants the reward a recording has shown.

    Where every reward ended its episode, half the mean reward is the goal, and the continuation head has to agree.
    Elsewhere rewards come in degrees, and nine tenths of the largest is the goal.

    Args:
        facts ([`RecordedFacts`], *optional*): of the environment.
        threshold (`float`, *optional*): in place of the recording's.
    """
    if facts is None or not facts.rewards:
        return RewardCritic() if threshold is None else RewardCritic(threshold=threshold)
    own = 0.5 * float(np.mean(facts.rewards)) if facts.reward_ends else 0.9 * max(facts.rewards)
    return RewardCritic(threshold=own if threshold is None else threshold, ends_episode=facts.reward_ends)


def _recorded_facts(root: Path) -> dict[str, RecordedFacts]:
    """By environment id, over both splits; rewards of the training split only."""
    seeds: dict[str, set[int]] = {}
    rewards: dict[str, list[float]] = {}
    ends: dict[str, bool] = {}
    for split in ("train", "test"):
        for path in episode_files(root, split).values():
            table = pq.read_table(path, columns=["environment", "seed", "next.reward", "next.done"])
            name = table["environment"][0].as_py()
            seeds.setdefault(name, set()).add(int(table["seed"][0].as_py()))
            reward, done = table["next.reward"].to_numpy(), table["next.done"].to_numpy()
            if split == "train" and (reward > 0).any():
                rewards.setdefault(name, []).extend(reward[reward > 0].tolist())
                ends[name] = ends.get(name, True) and bool(done[reward > 0].all())
    return {
        name: RecordedFacts(frozenset(used), tuple(rewards.get(name, ())), ends.get(name, False))
        for name, used in seeds.items()
    }


def _choose_environments(entries: list[dict], wanted: Sequence[str] | None) -> list[dict]:
    recorded = [entry["id"] for entry in entries]
    unknown = sorted(set(wanted or ()) - set(recorded))
    if unknown:
        raise ValueError(f"{unknown} are not in the recording, which has {recorded}; name some of those.")
    return [entry for entry in entries if not wanted or entry["id"] in wanted]


def _check_seeds(seeds: list[int], entries: list[dict], facts: dict[str, RecordedFacts]) -> None:
    for entry in entries:
        used = facts.get(entry["id"], RecordedFacts()).seeds
        seen = sorted(used & set(seeds))
        if seen:
            free = next(first for first in count(max(seeds) + 1) if used.isdisjoint(range(first, first + len(seeds))))
            raise ValueError(
                f"The recording of {entry['id']} used the seeds {seen[:10]}{'...' * (len(seen) > 10)}, so they are "
                f"not unseen. Choose others, for example seed={free}."
            )


# --- Playing -------------------------------------------------------------------------------------------------------


def run_trials(trials: list[_Trial], seeds: list[int], time_limit: float | None, progress: bool = True) -> None:
    """Plays until each trial has had every seed, or the time is up and each has had one; next is the trial that took
    least time so far."""
    start = time.perf_counter()
    with Progress("planning", len(seeds) * len(trials), "episodes", progress) as line:
        while pending := [index for index, trial in enumerate(trials) if len(trial.outcomes) < len(seeds)]:
            is_late = time_limit is not None and time.perf_counter() - start >= time_limit
            if is_late and all(trial.outcomes for trial in trials):
                line.update(line.done, f"the time limit of {time_limit:g} s is reached; what was played is written")
                break
            index = min(pending, key=lambda index: trials[index].seconds)
            trial = trials[index]
            trial.play(seeds[len(trial.outcomes)])
            line.update(line.done + 1, ", ".join(map(_success_so_far, trials)))


def _success_so_far(trial: _Trial) -> str:
    won = sum(outcome.success for outcome in trial.outcomes)
    return f"{trial.model} {won} of {len(trial.outcomes)}"


def trial_records(trial: _Trial) -> list[Record]:
    """The records of one policy in one environment; none if no episode was played."""
    outcomes = trial.outcomes
    if not outcomes:
        return []
    where: dict = {
        "model": trial.model,
        "environment": trial.environment,
        "split": "unseen_seeds",
        "seeds": [outcome.seed for outcome in outcomes],
    }
    won = [outcome for outcome in outcomes if outcome.success]
    columns: dict[str, list] = {
        "success": [outcome.success for outcome in outcomes],
        "steps": [outcome.steps for outcome in outcomes],
        "steps_to_success": [outcome.steps for outcome in won],
        "return": [outcome.total_reward for outcome in outcomes],
    }
    if trial.agent is not None:
        columns |= {
            "seconds_per_decision": [outcome.seconds / outcome.steps for outcome in outcomes],
            "simulated_per_decision": [outcome.num_simulated / outcome.steps for outcome in outcomes],
            "replans_per_episode": [outcome.replans for outcome in outcomes],
            "surprises_per_episode": [outcome.surprises for outcome in outcomes],
        }
    records = []
    if trial.agent is not None and isinstance(trial.agent.model, FixedEffort):
        columns |= {metric: [value] for metric, value in trial.agent.model.spent().items()}
    for metric, values in columns.items():
        if values:
            value, stderr = mean_stderr(values)
            records.append(record(metric, value, stderr=stderr, **where))
    low, high = wilson(len(won), len(outcomes))
    records.insert(1, record("success_low", low, **where))
    records.insert(2, record("success_high", high, **where))
    return [*records, record("episodes", len(outcomes), **where)]


# --- Films ---------------------------------------------------------------------------------------------------------


def write_films(trial: _Trial, model, processor, folder: Path) -> list[Path]:
    """Writes the trial's first success and first failure as films, in place of those of an earlier run.

    A film is an `.npz` with `imagined` and `carried_out`, uint8 `(T, H, W, 3)`, and a JSON of the same name: title,
    environment, success, actions. Imagined frames are those of the plan that was in force; both begin with the start.
    """
    shown = shown_senses(model.config)
    if not shown or trial.agent is None or not trial.outcomes:
        return []
    action, written = feature_of(model.config.action), []
    for success, ending in ((True, "success"), (False, "failure")):
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{trial.environment}-{trial.label}-{ending}")
        path = folder / f"{name}.npz"
        if success not in trial.films:
            for stale in (path, path.with_suffix(".json")):
                stale.unlink(missing_ok=True)
            continue
        trace = trial.films[success]
        imagined, carried_out = imagine_episode(model, processor, trace, shown[0])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, imagined=imagined, carried_out=carried_out)
        write_file(path, buffer.getvalue())
        about = {
            "title": f"{trial.environment}: {trial.label.replace('_', ' ')}, first {ending}",
            "environment": trial.environment,
            "success": success,
            "actions": [action.label(value) for value in trace.actions[: len(carried_out) - 1]],
        }
        write_file(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
        written.append(path)
    return written


@torch.no_grad()
def imagine_episode(model, processor, trace: _Trace, sense: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames as imagined at each plan and frames as seen, both uint8 `(T + 1, H, W, 3)`; the first as perceived."""
    steps = min(len(trace.actions), _LONGEST_FILM)
    starts = [start for start in trace.plans if start < steps]
    imagined = []
    for start, end in zip(starts, [*starts[1:], steps], strict=True):
        first = max(0, start + 1 - model.config.context_steps)
        belief = perceive(model, processor, trace.observations[first : start + 1], trace.actions[first:start])
        if start == 0:
            imagined.append(belief.decode(sense))
        actions = torch.as_tensor(np.stack(trace.actions[start:end]))[None].to(model.device)
        imagined.append(model.simulate(belief, actions, temperature=0.0, seed=0).decode(sense)[0])
    config = model.config.senses[sense]
    feature = feature_of(config)
    seen = feature.sequence(config, [observation[sense] for observation in trace.observations[: steps + 1]])
    carried_out = processor(observation={sense: seen}, partial=True)["observation"][sense][0]
    return feature.to_frames(torch.cat(imagined)), feature.to_frames(carried_out)
