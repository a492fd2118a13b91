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
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.agents.agent import PanAgent
from pan_hf.agents.policy import CONFIDENCE
from pan_hf.agents.world import FixedEffort, at_effort
from pan_hf.arguments import a_seed, checked, least
from pan_hf.checkpoints import find_checkpoint, find_recording, load, results_folder
from pan_hf.data.episodes import read_info
from pan_hf.envs.environment import make_recorded_environment
from pan_hf.evaluation.acting import RecordedFacts, make_agents, recorded_facts
from pan_hf.evaluation.cache_dataset import cache_folder
from pan_hf.evaluation.explanations import Explained, explained_steps, write_explanations
from pan_hf.evaluation.films import write_films
from pan_hf.evaluation.success import success_rule
from pan_hf.evaluation.trials import Outcome, Trial, run_trials
from pan_hf.reporting.results import Record, mean_stderr, record, wilson, write_records

RANDOM = "random_policy"
TIME_LIMIT = 600.0
"""Seconds for all of `plan`, unless another limit is given."""

_LONGEST_EPISODE = 10_000  # steps, for environments that end by themselves only
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
    trials: list[Trial] = []
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
                Trial(entry["id"], env, name, agent, rule, max_steps or _LONGEST_EPISODE, explained=Explained(*asked))
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


# --- Records -------------------------------------------------------------------------------------------------------


def _has_goal(trials: list[Trial], environment: str) -> bool:
    """Whether any episode of an environment could tell if it has reached a goal. Some say so in `info` only when it is
    reached."""
    outcomes = [outcome for trial in trials if trial.environment == environment for outcome in trial.outcomes]
    return any(outcome.success is not None for outcome in outcomes)


def trial_records(trial: Trial, has_goal: bool = True) -> list[Record]:
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
