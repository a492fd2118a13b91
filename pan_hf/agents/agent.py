"""An agent that looks, imagines and acts: a world model, a critic and a planner in one loop.

A plan is kept while the world does what was imagined: the codes of what is seen have to *equal* the codes that the
plan predicted. A difference is a surprise. The agent then imagines the rest of its plan from what it sees now; if that
does not reach the goal any more it plans again. An action that surprised it more than once in the same state is left
out, so that it does not walk into the same wrong prediction for ever.
"""

import time
from collections import Counter, deque
from dataclasses import dataclass, replace

import numpy as np
import torch

from pan_hf.agents.critics import as_critic
from pan_hf.agents.plan import Contradicted, Plan, compared_keys
from pan_hf.features import feature_class

REPLAN = ("on_surprise", "always", "at_end")


@dataclass
class AgentStatistics:
    """What an agent did since it was reset.

    Args:
        decisions (`int`): calls of `act`.
        replans (`int`): plans made, the first included.
        repairs (`int`): surprises after which the rest of the plan still reached the goal.
        surprises (`int`): observations whose codes differ from the predicted ones.
        num_simulated (`int`): imagined steps.
        seconds (`float`): wall time inside `act`.
    """

    decisions: int = 0
    replans: int = 0
    repairs: int = 0
    surprises: int = 0
    num_simulated: int = 0
    seconds: float = 0.0

    @property
    def seconds_per_decision(self) -> float:
        return self.seconds / max(1, self.decisions)

    @property
    def simulated_per_decision(self) -> float:
        return self.num_simulated / max(1, self.decisions)


class PanAgent:
    """Acts by planning in a world model.

    Args:
        model ([`PanModel`]): imagines.
        processor ([`PanProcessor`]): the model's own.
        critic ([`~pan_hf.agents.critics.Critic`] or function of futures): what is wanted.
        planner: `RandomShooting`, `CEM`, `GraphSearch`, or anything with their `plan`.
        replan (`str`): "on_surprise": when a plan ends, or the world differs so that it fails. "always": at every
            step (model-predictive control). "at_end": only when a plan ends: cheapest, where no two states are equal.
        seed (`int`): of the planner's draws.
        patience (`int`): surprises by one action in one state after which plans avoid it.

    Raises:
        ValueError: an unknown `replan`.
    """

    def __init__(self, model, processor, critic, planner, replan="on_surprise", seed: int = 0, patience: int = 2):
        if replan not in REPLAN:
            raise ValueError(f"`replan` must be one of {REPLAN}, got {replan!r}.")
        self.model, self.processor, self.critic, self.planner = model, processor, as_critic(critic), planner
        self.replan, self.seed, self.patience = replan, seed, patience
        self._compared_by = compared_keys(model, getattr(planner, "key_levels", None))  # as the planner compares them
        self.reset()

    def reset(self, task: str | None = None, seed: int | None = None) -> None:
        """Forgets the episode: history, plan, statistics.

        Args:
            task (`str`, *optional*): given to the text senses that the observations leave out.
            seed (`int`, *optional*): of the planner's draws from here on; the agent's own if not given.
        """
        steps = self.model.config.context_steps
        self.task = task
        self.observations: deque = deque(maxlen=steps)
        self.actions: deque = deque(maxlen=steps - 1)
        self.statistics = AgentStatistics()
        self.plan: Plan | None = None
        self.generator = torch.Generator().manual_seed(self.seed if seed is None else seed)
        self._position = 0  # actions of the plan that were taken
        self._last: tuple[bytes, int] | None = None  # (key of the state, action) of the last discrete action
        self._predicted: bytes | None = None
        self._surprises: Counter = Counter()
        self._refuted = Contradicted()

    @torch.no_grad()
    def act(self, observation: dict, reward: float | None = None):
        """The next action.

        Args:
            observation (`dict`): raw senses by name, as the environment gives them; names the model has no sense for
                are ignored.
            reward (`float`, *optional*): what the last action brought. An agent that is told notices a goal that
                was only imagined, and stops going there.

        Returns:
            `int` for a discrete action, `np.ndarray` of shape `(D,)` for a vector.

        Raises:
            ValueError: a sense of the model is missing from the observation.
        """
        start = time.perf_counter()
        self.observations.append(self.senses_of(observation))
        belief = perceive(self.model, self.processor, list(self.observations), list(self.actions))
        key = belief.keys(**self._compared_by)[0]
        surprised = self._compare(key, reward)
        if self._needs_plan(surprised) and not (surprised and self._repair(belief, key)):
            self.plan, self._position = self._new_plan(belief), 0
        assert self.plan is not None  # one was needed until there was one
        action = self._take(self.plan, belief, key)
        self.statistics.decisions += 1
        self.statistics.seconds += time.perf_counter() - start
        return action

    def senses_of(self, observation: dict) -> dict:
        """The part of an environment's observation that the model has senses for, the task included.

        Raises:
            ValueError: a sense of the model is missing.
        """
        senses = self.model.config.senses
        told = [name for name, sense in senses.items() if feature_class(sense.kind).is_text]
        texts = {} if self.task is None else dict.fromkeys(told, self.task)
        observation = texts | {name: value for name, value in observation.items() if name in senses}
        missing = sorted(set(senses) - set(observation))
        if missing:
            raise ValueError(
                f"The observation lacks the model's senses {missing}; it has {sorted(observation)}. "
                "Rename the environment's observations to the names used in training, or pass `reset(task=...)` "
                "for a text."
            )
        return observation

    def _compare(self, key: bytes, reward: float | None) -> bool:
        """Whether `key` differs from what was predicted; notes what the world has refuted."""
        surprised = self._predicted is not None and key != self._predicted
        if surprised:
            self.statistics.surprises += 1
            self._surprises[self._last] += 1
            if self._last is not None and self._surprises[self._last] >= self.patience:
                self._refuted.transitions.add(self._last)
        goal_taken = self.plan is not None and self.plan.reaches_goal and self._position == len(self.plan)
        if goal_taken and not surprised and self._last is not None and reward is not None and reward <= 0:
            self._refuted.goals.add(self._last)
        return surprised

    def _needs_plan(self, surprised: bool) -> bool:
        if self.plan is None or self._position >= len(self.plan) or self.replan == "always":
            return True
        return surprised and self.replan == "on_surprise"

    def _repair(self, belief, key: bytes) -> bool:
        """Whether the rest of the plan reaches the goal from here too; if so, it is kept, with new predictions."""
        plan = self.plan
        if plan is None or self.replan == "always" or not plan.reaches_goal or self._position >= len(plan):
            return False
        actions = plan.actions[self._position :]
        futures = self.model.simulate(belief, actions[None].to(self.model.device), temperature=0.0)
        self.statistics.num_simulated += len(actions)
        keys = futures.keys(**self._compared_by)[0]
        if feature_class(self.model.config.action.kind).is_discrete:
            steps = set(zip([key, *keys], actions.tolist(), strict=False))
            if steps & (self._refuted.transitions | self._refuted.goals):
                return False
        if not self.critic.reached(futures, self.critic.score(futures))[0, -1]:
            return False
        self.plan, self._position = replace(plan, actions=actions, states=keys), 0
        self.statistics.repairs += 1
        return True

    def _new_plan(self, belief) -> Plan:
        plan = self.planner.plan(self.model, belief, self.critic, generator=self.generator, refuted=self._refuted)
        self.statistics.replans += 1
        self.statistics.num_simulated += plan.num_simulated
        return plan

    def _take(self, plan: Plan, belief, key: bytes):
        action = plan.actions[self._position]
        self._predicted = self._prediction(plan, belief, action)
        self._position += 1
        if feature_class(self.model.config.action.kind).is_discrete:
            taken: int | np.ndarray = int(action)
            self._last = (key, int(action))
        else:
            taken = action.cpu().numpy().astype(np.float32)
        self.actions.append(taken)
        return taken

    def _prediction(self, plan: Plan, belief, action: torch.Tensor) -> bytes | None:
        """Key expected after the next action: the plan's own, or one imagined step for planners that keep none."""
        if plan.states is not None:
            return plan.states[self._position]
        if self.replan != "on_surprise":
            return None
        self.statistics.num_simulated += 1
        actions = action[None, None].to(self.model.device)
        return self.model.simulate(belief, actions, temperature=0.0).belief.keys(**self._compared_by)[0]


def perceive(model, processor, observations: list[dict], actions: list):
    """The belief after `T` observations and the `T - 1` actions between them; batch of one.

    Args:
        model ([`PanModel`]), processor ([`PanProcessor`]): as loaded.
        observations (`list[dict]`): raw senses by name, oldest first.
        actions (`list`): `int` or `(D,)` array each.
    """
    shown = {name: [observation[name] for observation in observations] for name in observations[-1]}
    batch = processor(
        observation={name: _sequence(model.config.senses[name], values) for name, values in shown.items()},
        action=_sequence(model.config.action, actions) if actions else None,
    )
    return model.perceive(**batch.to(model.device))


def _sequence(part, values: list):
    return feature_class(part.kind).sequence(part, values)
