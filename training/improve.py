"""Closing the loop (section 4.5): the agent acts in the world, and its model learns from what it met there.

    <run>/improve/round-00              the model as it was: its success, its cache and its policy, if they are wanted
    <run>/improve/round-01/met/<k>      what the agent of the round before met in the k-th environment
    <run>/improve/round-01/data         that, and all that was recorded before
    <run>/improve/round-01/checkpoint   the model of the round before, finetuned on it; beside it cache/ and distilled/
    <run>/improvement.json              success and surprise by round, which `pan report` shows

Success is measured on seeds on which nobody has acted before. Each part of a round is what its own command does, and
appears whole or not at all, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.adapters import check_family
from pan_hf.agents.agent import PanAgent
from pan_hf.agents.cache_scope import digest_of
from pan_hf.agents.critics import as_critic
from pan_hf.agents.policy import FlatActions
from pan_hf.agents.registry import make_planners
from pan_hf.agents.world import at_effort
from pan_hf.arguments import a_seed, checked, least
from pan_hf.checkpoints import find_checkpoint, find_recording, load, results_folder
from pan_hf.data.episodes import read_info
from pan_hf.data.join import join
from pan_hf.data.record import record as record_episodes
from pan_hf.data.trajectories import load_trajectories
from pan_hf.envs.environment import make_recorded_environment
from pan_hf.evaluation.acting import make_agents, recorded_facts, reward_critic
from pan_hf.evaluation.cache_dataset import CACHE
from pan_hf.evaluation.control import check_seeds, choose_environments, plan
from pan_hf.evaluation.precompute import precompute
from pan_hf.evaluation.success import success_rule
from pan_hf.modeling import PanModel
from pan_hf.reporting.results import Record, read_records, record, write_records
from pan_hf.training.arguments import arguments
from pan_hf.training.distil import DISTILLED, distil
from pan_hf.training.encounters import acting, misfits, record_arguments, surprise_at
from pan_hf.training.finetune import STAGE, finetune
from pan_hf.training.run_folder import TIME, keeping_settings, stable_repr

IMPROVE, IMPROVEMENT = "improve", "improvement.json"
_INCREMENTS = 10  # in which episodes are asked for, so that a time limit is kept


@checked(
    **TIME,
    rounds=least(1),
    episodes=least(1),
    explore_steps=least(0),
    max_episode_steps=least(1),
    learning_rate=least(0, above=True),
    test_episodes=least(1),
    test_seed=a_seed,
    time_limit=least(0, above=True),
)
def improve(
    run: str | Path,
    data_root: str | Path | None = None,
    *,
    rounds: int = 3,
    episodes: int = 20,
    explore_steps: int = 0,
    max_episode_steps: int | None = None,
    planner: str | None = None,
    environments: Sequence[str] | None = None,
    reward_threshold: float | None = None,
    critic=None,
    success: str | Callable | None = None,
    effort=None,
    cache: bool = False,
    policy: bool = False,
    seconds: float = 60.0,
    max_steps: int | None = None,
    learning_rate: float | None = None,
    adapter: str = "lora",
    test_episodes: int = 20,
    test_seed: int = 10_000,
    time_limit: float | None = 120.0,
    seed: int = 0,
    output: str | Path | None = None,
    progress: bool = True,
    trust_recording: bool = False,
) -> Path:
    """Improves a world model by what its agent meets, round by round. Run again, it goes on after an interruption, or
    with more rounds.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, or a checkpoint, or its Hub id. It is left as it is.
        data_root (`str` or `Path`, *optional*): the recording that it was trained on, from which it keeps learning; by
            default the one that the checkpoint names.
        rounds (`int`): of acting and learning.
        episodes (`int`): that the agent plays in each environment and round.
        explore_steps (`int`): each of these begins after 0 to this many random steps that are not recorded.
        max_episode_steps (`int`, *optional*): after which an episode is cut; the environment's own limit by default.
        planner (`str`, *optional*): with settings, as in "cem?horizon=8"; by default "graph" or else "cem".
        environments (`Sequence[str]`, *optional*): ids of the recording; all by default.
        reward_threshold, critic, success, effort (*optional*): see [`~pan_hf.evaluation.control.plan`].
        cache (`bool`): agents ask a simulation cache before they plan, which is filled anew in each round.
        policy (`bool`): and a policy, distilled from that cache.
        seconds (`float`): of training in a round.
        max_steps (`int`, *optional*): steps of training in a round, in place of `seconds`.
        learning_rate (`float`, *optional*): its peak.
        adapter (`str`): that learns, and is merged: "lora", "dora", "ia3"; "none" to train all that the dynamics stage
            trains.
        test_episodes (`int`), test_seed (`int`): episodes of each environment on which success is measured, and the
            seed of the first one.
        time_limit (`float`, *optional*): seconds for each other part of a round: acting, the cache, the policy,
            measuring. None for no limit.
        seed (`int`): of everything random.
        output (`str` or `Path`, *optional*): folder to write into; the run folder by default.
        progress (`bool`): show lines of progress.
        trust_recording (`bool`): see [`~pan_hf.evaluation.control.plan`].

    Returns:
        the folder of the last round, a run folder like any other.

    Raises:
        FileNotFoundError: there is no checkpoint, or no recording.
        ValueError: an argument is out of its range; a planner, environment or test seed that does not fit, as `plan`
            says; or the folder was begun with other settings. Nothing has been written then.
    """
    home = results_folder(run, output)
    start = find_checkpoint(run)
    root = find_recording(start, data_root)
    entries = choose_environments(read_info(root)["environments"], environments)
    facts = recorded_facts(root)
    check_seeds(list(range(test_seed, test_seed + test_episodes)), entries, facts)
    for entry in entries:
        record_arguments(entry)
        make_recorded_environment(entry, trust_recording).close()
    model, _ = load(start)
    _check_parts(model, start, root, adapter, critic, success, effort, policy)
    wishes = [reward_critic(facts.get(entry["id"]), reward_threshold) for entry in entries]
    has_goal = critic is not None or all(math.isfinite(wish.threshold) for wish in wishes)
    (name, *_) = make_planners(planner if planner is None else [planner], model.config, has_goal)
    wanted = {"environments": [entry["id"] for entry in entries], "reward_threshold": reward_threshold}
    wanted |= {"critic": critic, "effort": effort}
    settings: dict[str, Any] = {"episodes": episodes, "explore_steps": explore_steps, "max_steps": max_steps}
    settings |= {"max_episode_steps": max_episode_steps, "cache": cache or policy, "policy": policy}
    settings |= {"seconds": seconds, "learning_rate": learning_rate, "adapter": adapter, "seed": seed}
    settings |= {"test_episodes": test_episodes, "test_seed": test_seed, "planner": planner or name}
    told = settings | {name: stable_repr(value) for name, value in wanted.items()}
    told |= {"weights": digest_of(model, None)}
    folder, shown = home / IMPROVE, {"progress": progress}
    loop = _Loop(folder, start, root, entries, settings, wanted, success, time_limit, shown, trust_recording)
    with keeping_settings(folder / "settings.json", told, begun=folder / "round-00"):
        records = [entry for number in range(rounds + 1) for entry in loop.round(number)]
    write_records(home / IMPROVEMENT, records)
    return folder / f"round-{rounds:02d}"


def _check_parts(
    model: PanModel, start: Path, root: Path, adapter: str, critic: Any, success: Any, effort: Any, policy: bool
) -> None:
    """Raises ValueError for what a part of a round would refuse when others are done."""
    arguments(STAGE, model=str(start), data=str(root), output_dir=str(root), adapter=adapter)
    check_family(model.config, adapter)
    if critic is not None:
        as_critic(critic)
    success_rule(success)
    at_effort(model, effort)
    if policy:
        FlatActions(model.config)


@dataclass
class _Loop:
    """The rounds of a run, see `improve`."""

    folder: Path
    start: Path
    root: Path
    entries: list[dict]
    settings: dict[str, Any]
    wanted: dict[str, Any]
    success: Any
    time_limit: float | None
    shown: dict[str, Any]
    trusts: bool

    def place(self, number: int) -> Path:
        return self.folder / f"round-{number:02d}"

    def checkpoint(self, number: int) -> Path:
        """The model that a round ends with."""
        return self.place(number) / "checkpoint" if number else self.start

    def data(self, number: int) -> Path:
        """All that was recorded up to the end of a round."""
        return self.place(number) / "data" if number else self.root

    def known(self, number: int) -> dict[str, Any]:
        """What agents are given after a round: its cache and its policy, if there are some."""
        cache, policy = self.place(number) / CACHE, self.place(number) / DISTILLED
        return {"cache": cache if cache.exists() else None, "policy": policy if policy.exists() else None}

    def round(self, number: int) -> list[Record]:
        """Acts, learns, remembers and measures, as far as that was not done; what was measured."""
        done = self.place(number) / "round.json"
        if not done.exists():
            met = self._act(number) if number else []
            if number:
                self._learn(number, met)
            self._remember(number)
            write_records(done, self._measure(number, met))
        return read_records(done)

    # ---- the parts of a round

    def _act(self, number: int) -> list[Path]:
        """Has the agent of the round before play; folders of what it met, by environment."""
        folders = [self.place(number) / "met" / str(index) for index in range(len(self.entries))]
        if self.data(number).exists():
            return folders
        model, processor = load(self.checkpoint(number - 1))
        facts = recorded_facts(self.data(number - 1))
        drawn = np.random.SeedSequence([self.settings["seed"], number]).generate_state(len(self.entries)) >> 1
        with contextlib.ExitStack() as opened:
            for entry, folder, seed in zip(self.entries, folders, drawn.tolist(), strict=True):

                def agent_in(env: Any, id: str = entry["id"]) -> PanAgent:
                    about = {key: value for key, value in self.wanted.items() if key != "environments"}
                    about |= {"planners": [self.settings["planner"]]} | self.known(number - 1)
                    (agent,) = make_agents(model, processor, id, env, facts.get(id), opened, **about).values()
                    return agent

                self._record(entry, folder, seed, acting(agent_in))
        return folders

    def _record(self, entry: dict, folder: Path, seed: int, policy: type) -> None:
        """As many episodes as are asked for, or as there is time for."""
        start, count = time.monotonic(), self.settings["episodes"]
        is_begun = (folder / "meta" / "info.json").is_file()
        had = read_info(folder)["requested"]["episodes"] if is_begun else 1
        for asked in sorted({max(had, count * part // _INCREMENTS) for part in range(1, 1 + _INCREMENTS)}):
            record_episodes(
                entry["id"],
                folder,
                episodes=asked,
                policy=policy,
                explore_steps=self.settings["explore_steps"],
                max_episode_steps=self.settings["max_episode_steps"],
                fps=read_info(self.root)["fps"],
                seed=seed,
                test_fraction=0.0,
                **record_arguments(entry),
                **self.shown,
            )
            if self.time_limit is not None and time.monotonic() - start > self.time_limit:
                break

    def _learn(self, number: int, met: list[Path]) -> None:
        """Finetunes the model of the round before on all that was recorded."""
        before = self.checkpoint(number - 1)
        if not self.data(number).exists():
            model, processor = load(before)
            left_out: dict[str | Path, list[int]] = {}
            for folder in met:
                trajectories = load_trajectories(folder, "train")
                wrong = misfits(model.config, processor, trajectories)
                left_out[folder] = trajectories.episode_indices[wrong].tolist()
            join([self.data(number - 1), *met], self.data(number), left_out)
        given = {name: self.settings[name] for name in ("seconds", "max_steps", "learning_rate", "adapter", "seed")}
        finetune(self.place(number), before, self.data(number), merge=True, **given, **self.shown)

    def _remember(self, number: int) -> None:
        """Fills the cache for the model as it is now, and distils the policy from it."""
        if not self.settings["cache"]:
            return
        given = {"cache": self.place(number) / CACHE, "output": self.place(number)} | self.wanted | self.shown
        given |= {"time_limit": self.time_limit, "seed": self.settings["seed"]}
        told = precompute(self.checkpoint(number), self.data(number), **given)
        if self.settings["policy"] and told["answered"] > 0:
            distil(self.checkpoint(number), self.data(number), **given)

    def _measure(self, number: int, met: list[Path]) -> list[Record]:
        """Plays the held-out seeds; records of a round, by environment."""
        played = plan(
            self.checkpoint(number),
            self.data(number),
            planners=[self.settings["planner"]],
            episodes=self.settings["test_episodes"],
            seed=self.settings["test_seed"],
            max_steps=self.settings["max_episode_steps"],
            success=self.success,
            time_limit=self.time_limit,
            output=self.place(number),
            write_back=False,
            baseline=False,
            trust_recording=self.trusts,
            **self.wanted,
            **self.known(number),
            **self.shown,
        )
        where: dict[str, Any] = {"model": f"round {number}", "seeds": [self.settings["seed"]]}
        records = [
            record(
                each.metric, each.value, stderr=each.stderr, environment=each.environment, split=each.split, **where
            )
            for each in played
        ]
        where["split"] = "met"
        for entry, folder in zip(self.entries, met, strict=False):
            told = surprise_at(self.checkpoint(number - 1), folder)
            records += [record(name, value, environment=entry["id"], **where) for name, value in told.items()]
        return records
