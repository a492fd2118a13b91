"""`pan plan`: agents that plan in a world model act in the real environment, beside a random policy on the same seeds.

The environments are those of the recording (ids, arguments, wrappers and senses are read from its `meta/info.json`),
reset with seeds that the recording did not use. What counts as a goal in imagination is read from the recording too
([`reward_critic`]); what counts as one in the world, see `pan_hf.evaluation.success`. Results are records with `model`
"pan/<planner>" and "random_policy":

| metric | what it is |
|---|---|
| `success`, `success_low`, `success_high` | share of episodes that reached the goal, where one is defined, and its \
Wilson 95% interval |
| `failures` | how many episodes did not; `seeds` are theirs, so that two policies can be compared seed by seed |
| `return` | sum of rewards of an episode |
| `steps`, `steps_to_success` | actions an episode, over all episodes and over successful ones; which is better, many \
or few, depends on the world |
| `seconds_per_decision`, `simulated_per_decision`, `calls_per_decision` | wall time, imagined steps, and `simulate` \
calls that made them, for one action |
| `median_decision_ms`, `percentile_99_decision_ms` | wall time of an action over all of them, observing included |
| `replans_per_episode`, `surprises_per_episode` | plans made, and observations unlike the predicted ones |
| `recalled`, `recalled_<level>` | with a cache: share of actions that it answered, in all and at each of its levels |
| `by_policy` | with a policy: share of actions that it took |
| `searched` | share of actions that a new search gave; the others went on with a plan, or came from cache or policy |
| `claims`, `claims_refused` | ways to the goal that searches found and looked at again, and the share that was none |
| `claims_acted_on`, `claims_false`, `claims_false_low`, `claims_false_high` | goals that an action was expected to \
reach, the share that was not there, and its Wilson 95% interval |
| `claims_false_unconfirmed` | the same share of all goals found, if those that were refused were none either |
| `clipped_per_episode` | observed vectors outside the range that the model knows, if there were any |
| `episodes` | how many were played: fewer than asked for if the time limit came first |
| `given_up` | how many of them the clock cut short: no success, and no part of `return` and `steps`. One that was at \
hand at the end of the time limit is not counted at all |
| `compute_per_simulated_step`, `tokens_per_simulated_step`, `denoiser_calls_per_simulated_step`, \
`simulated_steps_per_second` | with an effort: what one imagined step cost, compute as a share of a whole step's |
"""

import contextlib
import io
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.agent import PanAgent, perceive
from pan_hf.agents.policy import CONFIDENCE
from pan_hf.agents.world import FixedEffort, at_effort
from pan_hf.arguments import a_seed, checked, least
from pan_hf.checkpoints import find_checkpoint, find_recording, load, results_folder
from pan_hf.console import Progress
from pan_hf.data.episodes import read_info
from pan_hf.envs.environment import make_recorded_environment
from pan_hf.evaluation.acting import RecordedFacts, make_agents, recorded_facts
from pan_hf.evaluation.cache_dataset import cache_folder
from pan_hf.evaluation.explanations import Explained, explained_steps, write_explanations
from pan_hf.evaluation.success import Ending, Success, success_rule
from pan_hf.features import feature_of
from pan_hf.files import write_file
from pan_hf.reporting.results import Record, mean_stderr, record, wilson, write_records
from pan_hf.reporting.strips import shown_senses

RANDOM = "random_policy"
TIME_LIMIT = 600.0
"""Seconds for all of `plan`, unless another limit is given."""

_LONGEST_EPISODE = 10_000  # steps, for environments that end by themselves only
_LONGEST_FILM = 100  # steps shown of an episode

_ENDINGS: dict[bool | None, str] = {True: "success", False: "failure", None: "episode"}


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
    success: Success
    max_steps: int
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    films: dict[bool | None, _Trace] = field(default_factory=dict)  # the first of each ending
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
        start, trace, steps = time.perf_counter(), _Trace(), 0
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

    def _act(self, agent: PanAgent, observation: dict, reward: float | None, trace: _Trace) -> Any:
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
        names = (
            *("times", "num_simulated", "num_calls", "replans", "surprises", "clipped", "recalled", "recalled_by"),
            *("by_policy", "claims", "refused", "promised", "broken"),
        )
        return {name: getattr(self.agent.statistics, name) for name in names}


_POSITIVE = least(0, above=True)


@checked(episodes=least(1), seed=a_seed, max_steps=least(1), time_limit=_POSITIVE, episode_time_limit=_POSITIVE)
def plan(
    run: str | Path,
    data_root: str | Path | None = None,
    *,
    planners: str | Sequence[str] | None = None,
    environments: Sequence[str] | None = None,
    episodes: int = 50,
    seed: int = 10_000,
    max_steps: int | None = None,
    replan: str | None = None,
    success: str | Callable | None = None,
    reward_threshold: float | None = None,
    critic=None,
    uncertainty_penalty: float = 0.0,
    value: str | Path | None = None,
    value_caution: float = 0.0,
    effort=None,
    cache: str | Path | None = None,
    write_back: bool = True,
    policy: str | Path | None = None,
    policy_confidence: float = CONFIDENCE,
    time_limit: float | None = TIME_LIMIT,
    episode_time_limit: float | None = None,
    baseline: bool = True,
    explain: str | Sequence[str] | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    trust_recording: bool = False,
) -> list[Record]:
    """Plans with a checkpoint in the real environments and writes `planning.json` and films.

    With a time limit, planners get equal time rather than equal episodes. Loading is part of it, the films at the end
    are not. Each policy has one episode at least, which is given up after its share of the limit; the episode at hand
    when the time is up is not counted. Interrupted or failed, the finished episodes are written all the same.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, or a checkpoint.
        data_root (`str` or `Path`, *optional*): the recording, a folder or a Hub id; by default
            the one the checkpoint was trained on.
        planners (`Sequence[str]`, *optional*): names of `PLANNERS`, such as "graph", "mcts" or "cem", with settings as
            in "cem?horizon=8&num_samples=128"; by default "graph", "cem" and "random_shooting", where they fit the
            action and the reward.
        environments (`Sequence[str]`, *optional*): ids of the recording; all by default.
        episodes (`int`): episodes of each environment and policy.
        seed (`int`): the first environment seed; episode i has `seed + i`.
        max_steps (`int`, *optional*): steps after which an episode is cut; the environment's own limit by default.
        replan (`str`, *optional*): see [`PanAgent`]; "on_surprise" for discrete actions, "at_end" for vectors, whose
            states hardly ever equal the imagined ones.
        success (`str` or `Callable`, *optional*): when an episode has reached its goal: "terminated", "truncated",
            "reward>0", "return>=475", "info.KEY", or "module:function" of `(env, reward, terminated, info) -> bool`.
            By default what the environment says in `info`, or what is known of its id; elsewhere no goal is defined.
        reward_threshold (`float`, *optional*): expected reward that counts as the goal; by default from the recording.
        critic (*optional*): a critic in place of the expected reward, see `pan_hf.agents.critics`.
        uncertainty_penalty (`float`): what a critic's score loses for each nat by which an imagined step was open, see
            [`~pan_hf.agents.cautious.CautiousCritic`].
        value (`str` or `Path`, *optional*): folder of a learned value, see `pan value`: what is expected to come after
            the end of what a planner imagines.
        value_caution (`float`): standard deviations of the value's networks that are taken from their mean.
        effort (*optional*): what planners may spend on an imagined step, as [`PanModel.simulate`] takes it. Graph
            search then compares states by their coarsest level, unless every level is predicted.
        cache (`str` or `Path`, *optional*): folder or Hub id of a simulation cache that agents ask before they plan;
            values for what is wanted are backed up if it has none.
        write_back (`bool`): agents keep what they imagine in the cache.
        policy (`str` or `Path`, *optional*): folder or Hub id of a policy that acts before the planner, where it is
            sure enough, and guides MCTS.
        policy_confidence (`float`): from which probability of its action on; 0 to follow it always.
        time_limit (`float`, *optional*): seconds for all of it; None for no limit.
        episode_time_limit (`float`, *optional*): seconds after which an episode is given up and counts as a failure.
        baseline (`bool`): a random policy plays the same seeds.
        explain (`Sequence[str]`, *optional*): steps of each planner's first episode, as in "0,5,last", for which the
            report says why the agent acted so.
        output (`str` or `Path`, *optional*): folder to write into; the run folder by default.
        progress (`bool`): show a line of progress.
        trust_recording (`bool`): import whatever the recording's environments name, see
            [`~pan_hf.envs.environment.make_recorded_environment`].

    Returns:
        `list[Record]`: what was written.

    Raises:
        ValueError: an argument of another type or out of range, a seed that the recording used, an unknown planner or
            environment, a planner that does not fit the action or the reward, an environment whose action is not the
            model's; a policy of another model; or an environment raised something while it was played.
        FileNotFoundError: no checkpoint, no recording or no policy.
    """
    start = time.perf_counter()
    output = results_folder(run, output)
    checkpoint = find_checkpoint(run, adapters=True)
    root = find_recording(checkpoint, data_root)
    entries = choose_environments(read_info(root)["environments"], environments)
    facts = recorded_facts(root)
    seeds = list(range(seed, seed + episodes))
    check_seeds(seeds, entries, facts)
    rule, asked = success_rule(success), explained_steps(explain)
    model, processor = load(checkpoint)
    trials: list[_Trial] = []
    place = None if cache is None else cache_folder(run, cache, output, at_effort(model, effort))
    with contextlib.ExitStack() as opened:
        for entry in entries:
            env = make_recorded_environment(entry, trust_recording, max_steps)
            opened.callback(env.close)
            settings: dict[str, Any] = {"planners": planners, "replan": replan, "effort": effort}
            settings |= {"reward_threshold": reward_threshold, "critic": critic, "cache": place}
            settings |= {"uncertainty_penalty": uncertainty_penalty, "write_back": write_back}
            settings |= {"policy": policy, "policy_confidence": policy_confidence}
            settings |= {"value": value, "value_caution": value_caution}
            agents: dict[str, PanAgent | None] = {}
            agents |= make_agents(model, processor, entry["id"], env, facts.get(entry["id"]), opened, **settings)
            trials += [
                _Trial(entry["id"], env, name, agent, rule, max_steps or _LONGEST_EPISODE, explained=Explained(*asked))
                for name, agent in (agents | ({RANDOM: None} if baseline else {})).items()
            ]
        try:
            run_trials(trials, seeds, time_limit, episode_time_limit, progress, start)
        finally:
            records = [
                entry for trial in trials for entry in trial_records(trial, _has_goal(trials, trial.environment))
            ]
            if records:
                write_records(output / "planning.json", records)
                for trial in trials:
                    write_films(trial, model, processor, output / "report" / "films")
                    if trial.explained is not None and trial.agent is not None:
                        folder = output / "report" / "explanations"
                        write_explanations(trial.explained, trial.environment, trial.label, folder)
    return records


# --- Which environments and seeds ----------------------------------------------------------------------------------


def choose_environments(entries: list[dict], wanted: Sequence[str] | None) -> list[dict]:
    """Those of a recording's environments that are wanted. Raises ValueError for others."""
    recorded = [entry["id"] for entry in entries]
    unknown = sorted(set(wanted or ()) - set(recorded))
    if unknown:
        raise ValueError(f"{unknown} are not in the recording, which has {recorded}; name some of those.")
    return [entry for entry in entries if not wanted or entry["id"] in wanted]


def check_seeds(seeds: list[int], entries: list[dict], facts: dict[str, RecordedFacts]) -> None:
    """Raises ValueError where a recording of some of the environments used a seed."""
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


def run_trials(
    trials: list[_Trial],
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


def _so_far(trials: list[_Trial]) -> str:
    return ", ".join(map(_result_so_far, trials))


def _result_so_far(trial: _Trial) -> str:
    outcomes = trial.outcomes
    if all(outcome.success is None for outcome in outcomes):
        outcomes = [outcome for outcome in outcomes if not outcome.was_given_up]
        mean = f"{np.mean([outcome.total_reward for outcome in outcomes]):.3g}" if outcomes else "none yet"
        return f"{trial.model} return {mean}"
    return f"{trial.model} {sum(bool(outcome.success) for outcome in outcomes)} of {len(outcomes)}"


def _has_goal(trials: list[_Trial], environment: str) -> bool:
    """Whether any episode of an environment could tell if it has reached a goal. Some say so in `info` only when it is
    reached."""
    outcomes = [outcome for trial in trials if trial.environment == environment for outcome in trial.outcomes]
    return any(outcome.success is not None for outcome in outcomes)


def trial_records(trial: _Trial, has_goal: bool = True) -> list[Record]:
    """The records of one policy in one environment; none if no episode was played. Args: has_goal (`bool`), whether
    success is defined in this environment."""
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
    # -2 after two steps of Acrobot would look far better than random play's -500 of a whole episode
    whole = [outcome for outcome in outcomes if not outcome.was_given_up]
    columns: dict[str, list] = {
        "success": [bool(outcome.success) for outcome in outcomes] if has_goal else [],
        "return": [outcome.total_reward for outcome in whole],
        "steps": [outcome.steps for outcome in whole],
        "steps_to_success": [outcome.steps for outcome in won],
    }
    if trial.agent is not None:
        columns |= {
            "seconds_per_decision": [outcome.seconds / outcome.steps for outcome in outcomes],
            "simulated_per_decision": [outcome.num_simulated / outcome.steps for outcome in outcomes],
            "calls_per_decision": [outcome.num_calls / outcome.steps for outcome in outcomes],
            "replans_per_episode": [outcome.replans for outcome in outcomes],
            "surprises_per_episode": [outcome.surprises for outcome in outcomes],
            "searched": [outcome.replans / outcome.steps for outcome in outcomes],
        }
        if trial.agent.cache is not None:
            columns["recalled"] = [outcome.recalled / outcome.steps for outcome in outcomes]
            for level in dict.fromkeys(level for outcome in outcomes for level in outcome.recalled_by):
                shares = [outcome.recalled_by.get(level, 0) / outcome.steps for outcome in outcomes]
                columns[f"recalled_{level}"] = shares
        if trial.agent.policy is not None:
            columns["by_policy"] = [outcome.by_policy / outcome.steps for outcome in outcomes]
        clipped = [outcome.clipped for outcome in outcomes]
        columns |= {"clipped_per_episode": clipped} if any(clipped) else {}
        if isinstance(trial.agent.model, FixedEffort):
            columns |= {metric: [value] for metric, value in trial.agent.model.spent().items()}
    records = []
    for metric, values in columns.items():
        if values:
            value, stderr = mean_stderr(values)
            records.append(record(metric, value, stderr=stderr, **where))
    if has_goal:
        low, high = wilson(len(won), len(outcomes))
        lost = [outcome.seed for outcome in outcomes if not outcome.success]
        bounds = [record("success_low", low, **where), record("success_high", high, **where)]
        records[1:1] = [*bounds, record("failures", len(lost), **(where | {"seeds": lost}))]
    records += [record(metric, value, **where) for metric, value in _claims(outcomes).items()]
    times = [1000 * seconds for outcome in outcomes for seconds in outcome.times]
    if times:
        records.append(record("median_decision_ms", np.median(times), **where))
        records.append(record("percentile_99_decision_ms", np.percentile(times, 99), **where))
    if len(whole) < len(outcomes):
        records.append(record("given_up", len(outcomes) - len(whole), **where))
    return [*records, record("episodes", len(outcomes), **where)]


def _claims(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """How many of the goals that searches found were none, by metric, before the second look and after it; empty where
    none was found."""
    names = ("claims", "refused", "promised", "broken")
    claims, refused, promised, broken = (sum(getattr(outcome, name) for outcome in outcomes) for name in names)
    told: dict[str, float] = {}
    if claims:
        told |= {"claims": claims, "claims_refused": refused / claims}
    if promised:
        low, high = wilson(broken, promised)
        told |= {"claims_acted_on": promised, "claims_false": broken / promised}
        told |= {"claims_false_low": low, "claims_false_high": high}
    if claims and promised:
        told["claims_false_unconfirmed"] = (refused + (claims - refused) * broken / promised) / claims
    return told


# --- Films ---------------------------------------------------------------------------------------------------------


def write_films(trial: _Trial, model, processor, folder: Path) -> list[Path]:
    """Writes the trial's first success and first failure as films (its first episode, where neither is defined), in
    place of those of an earlier run.

    A film is an `.npz` with `imagined` and `carried_out`, uint8 `(T, H, W, 3)`, and a JSON of the same name: title,
    environment, success, actions. Imagined frames are those of the plan that was in force; both begin with the start.
    """
    shown = shown_senses(model.config)
    if not shown or trial.agent is None or not trial.outcomes:
        return []
    parts, written = ActionParts(model.config), []
    for success, ending in _ENDINGS.items():
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
            "actions": [parts.label(value) for value in trace.actions[: len(carried_out) - 1]],
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
        actions = ActionParts(model.config).stack(trace.actions[start:end], model.device)
        imagined.append(model.simulate(belief, actions, temperature=0.0, seed=0).decode(sense)[0])
    config = model.config.senses[sense]
    feature = feature_of(config)
    seen = feature.sequence(sense, config, [observation[sense] for observation in trace.observations[: steps + 1]])
    carried_out = processor(observation={sense: seen}, partial=True)["observation"][sense][0]
    return feature.to_frames(torch.cat(imagined)), feature.to_frames(carried_out)
