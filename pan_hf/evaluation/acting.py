"""Who acts in an environment of a recording, and what is wanted there: agents that plan in the model of a run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.agent import PanAgent
from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.cautious import CautiousCritic
from pan_hf.agents.critics import RewardCritic, as_critic
from pan_hf.agents.policy import CONFIDENCE, Policy
from pan_hf.agents.registry import comparing, make_planners
from pan_hf.agents.value import LearnedValue, ValueCritic
from pan_hf.agents.world import at_effort, within
from pan_hf.data.episodes import episode_files, read_columns
from pan_hf.envs.environment import describe_environment

_MOSTLY = 0.5  # share of recorded steps beyond which a reward is no goal: CartPole rewards every step


def make_agents(
    model: Any,
    processor: Any,
    environment: str,
    env: Any,
    facts: RecordedFacts | None,
    opened: contextlib.ExitStack,
    *,
    planners: str | Sequence[str] | None = None,
    replan: str | None = None,
    reward_threshold: float | None = None,
    critic: Any = None,
    uncertainty_penalty: float = 0.0,
    value: str | Path | None = None,
    value_caution: float = 0.0,
    effort: Any = None,
    cache: Path | None = None,
    write_back: bool = True,
    policy: str | Path | None = None,
    policy_confidence: float = CONFIDENCE,
) -> dict[str, PanAgent]:
    """Agents for one environment, by the name of their planner.

    Args:
        model ([`PanModel`]), processor ([`PanProcessor`]): as loaded.
        environment (`str`): its id; env, the environment itself, as `make_environment` makes it.
        facts ([`RecordedFacts`], *optional*): what the recording says of it.
        opened: closes the caches.
        cache (`Path`, *optional*): folder of a cache; the others are as for [`~pan_hf.evaluation.control.plan`].

    Raises:
        ValueError: a planner, cache, policy or environment that does not fit the model.
    """
    world = within(model, environment, describe_environment(env))
    wanted = reward_critic(facts, reward_threshold) if critic is None else as_critic(critic)
    has_goal = critic is not None or math.isfinite(wanted.threshold)
    wanted = CautiousCritic(critic=wanted, penalty=uncertainty_penalty) if uncertainty_penalty else wanted
    if value is not None:
        wanted = ValueCritic(critic=wanted, value_of=LearnedValue.load(value, model), caution=value_caution)
    usual = "on_surprise" if ActionParts(model.config).is_discrete else "at_end"
    when = usual if replan is None else replan
    learned = None if policy is None else Policy.load(policy, model)
    agents = {}
    for name, planner in make_planners(planners, model.config, has_goal).items():
        imagined = at_effort(world, effort)  # an account of its own for each
        known = None
        if cache is not None:
            known = SimulationCache(cache, writes=write_back)
            opened.callback(known.close)
            if not known.is_valued(imagined, wanted):
                known.back_up(imagined, wanted)
        agents[name] = PanAgent(
            imagined,
            processor,
            wanted,
            comparing(planner, imagined),
            when,
            cache=known,
            policy=learned,
            policy_confidence=policy_confidence,
        )
    return agents


@dataclass(frozen=True)
class RecordedFacts:
    """What a recording says of one environment: the seeds it used, its positive rewards, whether each ended its
    episode, and of how many steps they are."""

    seeds: frozenset[int] = frozenset()
    rewards: tuple[float, ...] = ()
    reward_ends: bool = False
    num_steps: int | None = None


def reward_critic(facts: RecordedFacts | None, threshold: float | None = None) -> RewardCritic:
    """The critic that wants the reward a recording has shown.

    Where every reward ended its episode, half the mean reward is the goal, and the continuation head has to agree.
    Elsewhere rewards come in degrees, and nine tenths of the largest is the goal. A reward that most steps bring is no
    goal, and where no step was rewarded none is known; then the threshold is infinite.

    Args:
        facts ([`RecordedFacts`], *optional*): of the environment.
        threshold (`float`, *optional*): in place of the recording's.
    """
    if threshold is not None:
        return RewardCritic(threshold=threshold, ends_episode=facts is not None and facts.reward_ends)
    if facts is None or not facts.rewards:
        return RewardCritic() if facts is None else RewardCritic(threshold=math.inf)
    own = 0.5 * float(np.mean(facts.rewards)) if facts.reward_ends else 0.9 * max(facts.rewards)
    num_reaching = sum(reward >= own for reward in facts.rewards)
    is_common = facts.num_steps is not None and num_reaching > _MOSTLY * facts.num_steps
    return RewardCritic(threshold=math.inf if is_common else own, ends_episode=facts.reward_ends)


def recorded_facts(root: Path) -> dict[str, RecordedFacts]:
    """By environment id: seeds of both splits, rewards of the training split only."""
    seeds: dict[str, set[int]] = {}
    rewards: dict[str, list[float]] = {}
    steps: dict[str, int] = {}
    ends: dict[str, bool] = {}
    for split in ("train", "test"):
        for path in episode_files(root, split).values():
            table = read_columns(path, ["environment", "seed", "next.reward", "next.done"])
            name = table["environment"][0].as_py()
            seeds.setdefault(name, set()).add(int(table["seed"][0].as_py()))
            if split != "train":
                continue
            reward, done = table["next.reward"].to_numpy(), table["next.done"].to_numpy()
            steps[name] = steps.get(name, 0) + len(reward) - 1
            rewards.setdefault(name, []).extend(reward[reward > 0].tolist())
            ends[name] = ends.get(name, True) and bool(done[reward > 0].all())
    return {
        name: RecordedFacts(frozenset(used), tuple(rewards.get(name, ())), ends.get(name, False), steps.get(name))
        for name, used in seeds.items()
    }
