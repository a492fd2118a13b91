"""An agent that looks, imagines and acts: a world model, a critic and a planner in one loop.

A plan is kept while the world does what was imagined: the codes of what is seen have to *equal* the codes that the
plan predicted. A difference is a surprise. The agent then imagines the rest of its plan from what it sees now; if that
does not reach the goal any more it plans again. An action that surprised it more than once in the same state is left
out, so that it does not walk into the same wrong prediction for ever.

A decision need not be searched for. A simulation cache is asked first, then a policy, which acts where it is sure
enough; only then does the planner search, and what it imagines is written to the cache.

What is not seen is no surprise: where a sense is absent, the agent believes what it had imagined for it.
"""

import copy
import time
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pan_hf.agents.actions import ActionParts, find_mask
from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.critics import as_critic, check_scores
from pan_hf.agents.explain import Explanation, explanation_of
from pan_hf.agents.plan import Contradicted, Plan, compared_keys
from pan_hf.agents.policy import CONFIDENCE, Policy
from pan_hf.agents.registry import guided
from pan_hf.agents.seen import SeenStep, perceive
from pan_hf.agents.statistics import AgentStatistics
from pan_hf.features import feature_class
from pan_hf.modeling.sense_configuration_pan import OUTSIDE
from pan_hf.modeling.state_pan import Actions, State
from pan_hf.modeling.step_pan import as_seed
from pan_hf.modeling.validation_pan import real, whole

REPLAN = ("on_surprise", "always", "at_end")


class PanAgent:
    """Acts by planning in a world model.

    Args:
        model ([`PanModel`]): imagines.
        processor ([`PanProcessor`]): the model's own.
        critic ([`~pan_hf.agents.critics.Critic`] or function of futures): what is wanted.
        planner: one of [`PLANNERS`](registry), or anything with their `plan`. It may have `check_world(config)`, which
            raises where it cannot take the actions of a world, and `begins_with_previous = True` to be given what is
            left of the last plan as `previous`.
        replan (`str`): "on_surprise": when a plan ends, or the world differs so that it fails. "always": at every
            step (model-predictive control). "at_end": only when a plan ends: cheapest, where no two states are equal.
        seed (`int`): of the planner's draws.
        patience (`int`): surprises by one action in one state after which plans avoid it.
        cache ([`SimulationCache`], *optional*): asked for an action before the planner; what the planner imagines is
            written to it.
        policy ([`~pan_hf.agents.policy.Policy`], *optional*): acts before the planner does, where it is sure enough.
            A planner with a `prior` that was given none, as MCTS, is guided by it. Of a model that sees several steps
            it reads the last one.
        policy_confidence (`float`): see [`Policy.confidence`](~pan_hf.agents.policy.Policy); 0 to follow it always.

    Raises:
        ValueError: an unknown `replan`, a `patience` below 1, a planner without `plan`, or one that cannot take
            the actions of the model; a cache of other weights, or a policy of another model.
    """

    def __init__(
        self,
        model,
        processor,
        critic,
        planner,
        replan="on_surprise",
        seed: int = 0,
        patience: int = 2,
        cache: SimulationCache | None = None,
        policy: Policy | None = None,
        policy_confidence: float = CONFIDENCE,
    ):
        if replan not in REPLAN:
            raise ValueError(f"`replan` must be one of {REPLAN}, got {replan!r}.")
        if not callable(getattr(planner, "plan", None)) or isinstance(planner, type):
            raise ValueError(f"A planner has a method `plan`, as CEM() does; got {planner!r}.")
        if not hasattr(model, "config"):
            raise ValueError(f"`model` must be a world model, as `load` gives it; got {model!r:.60}.")
        if not callable(processor):
            raise ValueError(f"`processor` must be the model's own, as `load` gives it; got {processor!r:.60}.")
        if hasattr(planner, "check_world"):
            planner.check_world(model.config)
        self.seed = 0 if seed is None else as_seed(seed) or 0
        self.model, self.processor, self.critic, self.planner = model, processor, as_critic(critic), planner
        self.replan, self.patience = replan, whole("patience", patience, 1)
        self.parts = ActionParts(model.config)
        if cache is not None and not isinstance(cache, SimulationCache):
            raise ValueError(f"`cache` must be a SimulationCache or None, got {type(cache).__name__} {cache!r:.60}.")
        if policy is not None and not isinstance(policy, Policy):
            raise ValueError(f"`policy` must be a Policy, as `Policy.load` gives it, or None; got {policy!r:.60}.")
        self.policy, self.policy_confidence = policy, real("policy_confidence", policy_confidence, 0, 1)
        if policy is not None:
            policy.check_world(model)
            self.planner = guided(planner, policy)
        self.cache = cache
        if cache is not None:
            cache.bind(model, self.critic)  # says now whose entries it holds
        self._bounds = {
            name: tuple(bound.numpy() for bound in sense.bounds())
            for name, sense in model.config.senses.items()
            if feature_class(sense.kind).is_numeric and hasattr(sense, "low")
        }
        self._compared_by = compared_keys(model, getattr(planner, "key_levels", None))  # as the planner compares them
        self._has_warned: set[str] = set()
        self.reset()

    def reset(self, task: str | None = None, seed: int | None = None) -> None:
        """Forgets the episode: history, plan, statistics.

        Args:
            task (`str`, *optional*): given to the text senses that the observations leave out.
            seed (`int`, *optional*): of the planner's draws from here on; the agent's own if not given.
        """
        if task is not None and not isinstance(task, str):
            raise ValueError(f"`task` must be a text or None, got {task!r}.")
        first_seed = self.seed if seed is None else as_seed(seed) or 0
        steps = self.model.config.context_steps
        self.task = task
        self.observations: deque = deque(maxlen=steps)
        self.actions: deque = deque(maxlen=steps - 1)
        self.statistics = AgentStatistics()
        self.plan: Plan | None = None
        self.generator = torch.Generator().manual_seed(first_seed)
        self._position = 0  # actions of the plan that were taken
        self._last: tuple[bytes, int] | None = None  # (key of the state, number) of the last discrete action
        self._predicted: bytes | None = None
        self._before: tuple[Any, Any] | None = None  # (belief, action) of the last step
        self._imagined: Any = None  # the belief after it, once that was asked for
        self._surprises: dict[Any, float] = defaultdict(float)
        self._recalled: Counter = Counter()  # how often cache or policy have answered in a state
        self._is_recalled = False  # the plan is from one of them
        self._source = "search"  # of the last action, see `explain.SOURCES`
        self._answer: Any = None  # of the cache, if the plan is from it
        self._masks: dict[str, Tensor] = {}  # at the last decision
        self._refuted = Contradicted()

    @torch.no_grad()
    def act(self, observation: dict, reward: float | None = None, mask=None):
        """The next action. An agent that raises is as it was before, so the call can be made again.

        Args:
            observation (`dict`): raw senses by name, as the environment gives them; names the model has no sense for
                are ignored. None where a sense is absent. Vectors outside the model's range are clipped to it, with a
                warning.
            reward (`float`, *optional*): what the last action brought. An agent that is told notices a goal that
                was only imagined, and stops going there.
            mask (*optional*): which actions are allowed now, as an environment gives it: `(num_actions,)` of 0 and 1,
                a tuple of masks for choices that are counted as one, by part where there are several; the
                observation's "action_mask" by default, if it has one.

        Returns:
            `int` for a discrete action, `np.ndarray` of shape `(D,)` for a vector, a dict of these for several parts.

        Raises:
            ValueError: a sense of the model is missing from the observation, or does not fit it; a mask that allows
                nothing; or as the planner and the critic do.
        """
        reward = None if reward is None else real("reward", reward)
        start = time.perf_counter()
        with self._unchanged_by_failure():
            seen = self.senses_of(observation)
            masks = self.parts.check_masks(find_mask(observation) if mask is None else mask)
            self._masks, self._source = masks, "plan"
            self.observations.append(seen)
            belief = perceive(self.model, self.processor, list(self.observations), list(self.actions))
            belief = self._with_what_is_not_seen(belief, seen)
            key = belief.keys(**self._compared_by)[0]
            surprised = self._compare(key, reward)
            surprised = not self._follow(key, surprised) and surprised
            if self._needs_plan(surprised, masks) and not (surprised and self._repair(belief, key, masks)):
                self.plan, self._position = self._new_plan(belief, key, masks), 0
            assert self.plan is not None  # one was needed until there was one
            action = self._take(self.plan, belief, key)
        self.statistics.decisions += 1
        self.statistics.times.append(time.perf_counter() - start)
        return action

    def keeps_promise(self, observation: dict, reward: float, terminated: bool) -> bool | None:
        """Whether the goal that the last action was expected to reach is there, as the critic judges what was seen.
        It is counted; it changes nothing of what the agent does.

        Args:
            observation (`dict`), reward (`float`), terminated (`bool`): what the last action brought.

        Returns:
            `bool`, or None where no goal was expected of the last action, or the world rewards several actors, of
            whom a reward does not tell.

        Raises:
            ValueError: an observation that does not fit the model.
        """
        plan = self.plan
        if plan is None or not plan.reaches_goal or self._position < len(plan):
            return None
        if getattr(self.model.config, "actors", None):
            return None
        clipped, steps = self.statistics.clipped, int(self.model.config.context_steps)
        seen = [*self.observations, self.senses_of(observation)][-steps:]
        self.statistics.clipped = clipped  # it is counted when the agent acts on what it sees
        actions = list(self.actions)[len(self.actions) - len(seen) + 1 :]
        step = SeenStep(self.model, perceive(self.model, self.processor, seen, actions), reward, terminated)
        is_kept = bool(self.critic.reached(step, check_scores(self.critic.score(step), step))[0, -1])
        self.statistics.promised += 1
        self.statistics.broken += not is_kept
        return is_kept

    def explain(self) -> Explanation:
        """Why the last action was taken: what was weighed, what was expected of it, and where the action comes from.
        Nothing is imagined before the explanation is asked for it.

        Where the agent goes on with an earlier plan, what was weighed is what is left of those candidates that began
        with the actions taken since.

        Raises:
            ValueError: no action was taken since `reset`.
        """
        if self._before is None or self.plan is None:
            raise ValueError("There is nothing to explain before the first `act`.")
        belief, _ = self._before
        known: tuple = ()
        if self._source.startswith("cache") and self.cache is not None:
            known = self.cache.candidates(self.model, self.critic, self._answer)
        elif self._source == "policy" and self.policy is not None:
            known = self.policy.candidates(belief, self._masks)
        return explanation_of(
            self.plan, self._position - 1, self._source, self.planner, self.model, belief, self.parts, known
        )

    @contextmanager
    def _unchanged_by_failure(self) -> Iterator[None]:
        """Puts the episode back as it was where the block raises."""
        replaced = (
            *("plan", "_position", "_last", "_predicted", "_before", "_imagined", "_is_recalled"),
            *("_source", "_answer", "_masks"),
        )
        changed = ("observations", "actions", "statistics", "_surprises", "_recalled")
        kept = {name: getattr(self, name) for name in replaced}
        kept |= {name: copy.copy(getattr(self, name)) for name in changed}
        kept["_refuted"] = copy.deepcopy(self._refuted)
        state = self.generator.get_state()
        try:
            yield
        except BaseException:
            vars(self).update(kept)
            self.generator.set_state(state)
            raise

    def senses_of(self, observation: dict) -> dict:
        """The part of an environment's observation that the model has senses for, the task included; vectors within
        the range that the model knows.

        Raises:
            ValueError: a sense of the model is missing.
        """
        if not isinstance(observation, Mapping):
            kind = type(observation).__name__
            raise ValueError(
                f"`observation` must be a dict of senses by name, got {kind}; wrap it as {{name: value}}."
            )
        senses = self.model.config.senses
        texts = [name for name, sense in senses.items() if feature_class(sense.kind).is_text]
        tasks = {} if self.task is None else dict.fromkeys(texts, self.task)
        given = tasks | dict(observation)
        missing = sorted(set(senses) - set(given))
        if missing:
            raise ValueError(
                f"The observation lacks the model's senses {missing}; it has {sorted(map(str, given))}. "
                "Rename the environment's observations to the names used in training, pass `reset(task=...)` for a "
                "text, or None for a sense that is absent."
            )
        return {name: self._within_range(name, value) for name, value in given.items() if name in senses}

    def _within_range(self, name: str, value: Any) -> Any:
        """A vector clipped to the range of its sense, and counted; other values and misfits as they are."""
        if value is None or name not in self._bounds:
            return value
        low, high = self._bounds[name]
        try:
            vector = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError):
            return value
        if vector.shape != low.shape or not np.isfinite(vector).all():
            return value  # the processor says what is wrong
        outside = np.abs(vector - vector.clip(low, high)) > OUTSIDE * (high - low)
        if not outside.any():
            return value
        self.statistics.clipped += 1
        if name not in self._has_warned:
            self._has_warned.add(name)
            index = int(outside.argmax())
            warnings.warn(
                f"The world leaves the range that the model knows: {name}[{index}] is {vector[index]:.4g}, and "
                f"the model was built for {low[index]:.4g} to {high[index]:.4g}. Values are clipped to it, so plans "
                "may be wrong there; record such states and train again. This is said once.",
                stacklevel=3,
            )
        return vector.clip(low, high)

    def _with_what_is_not_seen(self, belief, seen: dict):
        """The belief in which senses that are absent are as they were imagined; as perceived before the first step."""
        absent = {name for name, value in seen.items() if value is None}
        if not absent or self._before is None:
            return belief
        now, imagined = belief.state, self._imagine_step().state
        state = State(
            codes={name: (imagined if name in absent else now).codes[name] for name in now.codes},
            latents={name: latents for name, latents in now.latents.items() if name not in absent},
            text={name: (imagined if name in absent else now).text[name] for name in now.text},
        )
        return replace(belief, state=state)

    def _imagine_step(self):
        """The most likely belief after the last step, imagined once."""
        if self._imagined is None:
            assert self._before is not None  # a step was taken
            belief, action = self._before
            self._imagined = self._simulate(belief, action[None]).belief
        return self._imagined

    def _simulate(self, belief, actions: Tensor | Actions):
        """The most likely future of actions `(H, ...)`."""
        futures = self.model.simulate(belief, actions[None].to(self.model.device), temperature=0.0)
        self.statistics.num_simulated += len(actions)
        self.statistics.num_calls += 1
        return futures

    def _compare(self, key: bytes, reward: float | None) -> bool:
        """Whether `key` differs from what was predicted; notes what the world has refuted."""
        surprised = self._predicted is not None and key != self._predicted
        self.statistics.surprises += surprised
        if self._predicted is not None:
            assert self.plan is not None  # that predicted it
            told = self.plan.evidence(self._position, key)
            evidence = self._surprises[self._last] + (surprised if told is None else told)
            self._surprises[self._last] = max(0, evidence)
            if surprised and self._last is not None and evidence >= self.patience:
                self._refuted.transitions.add(self._last)
        goal_taken = self.plan is not None and self.plan.reaches_goal and self._position == len(self.plan)
        if goal_taken and not surprised and self._last is not None and reward is not None and reward <= 0:
            self._refuted.goals.add(self._last)
        return surprised

    def _follow(self, key: bytes, surprised: bool) -> bool:
        """Whether the plan has another branch for the state that its last action led to; if so, it goes on there. A
        way that leads back to where it has been is gone on only where it may reach the goal."""
        plan = self.plan
        if plan is None or not self._position or self.replan == "always":
            return False
        if not surprised and self._position < len(plan):
            return False
        branch = plan.branch(self._position, key)
        if branch is None or self._has_refuted(key, branch.actions, branch.states or []):
            return False
        if not surprised and not getattr(branch, "chance", 0.0):
            return False
        self.plan, self._position, self._source = branch, 0, "branch"
        self.statistics.followed += 1
        return True

    def _has_refuted(self, key: bytes, actions: Tensor | Actions, keys: list[bytes]) -> bool:
        """Whether the world has refuted a step of a way. Args: key, of where it begins; keys, of where each action
        leads."""
        if not self.parts.is_discrete:
            return False
        steps = set(zip([key, *keys], self.parts.numbers(actions).tolist(), strict=False))
        return bool(steps & (self._refuted.transitions | self._refuted.goals))

    def _needs_plan(self, surprised: bool, masks: dict[str, Tensor]) -> bool:
        if self.plan is None or self._position >= len(self.plan) or self.replan == "always":
            return True
        if masks and not self.parts.allows(masks, self.plan.actions[self._position]):
            return True
        return surprised and self.replan == "on_surprise"

    def _repair(self, belief, key: bytes, masks: dict[str, Tensor]) -> bool:
        """Whether the rest of the plan reaches the goal from here too; if so, it is kept, with new predictions."""
        plan = self.plan
        if plan is None or self.replan == "always" or not plan.reaches_goal or self._position >= len(plan):
            return False
        actions = plan.actions[self._position :]
        if masks and not self.parts.allows(masks, actions[0]):
            return False
        futures = self._simulate(belief, actions)
        keys = futures.keys(**self._compared_by)[0]
        if self._has_refuted(key, actions, keys):
            return False
        if not self.critic.reached(futures, check_scores(self.critic.score(futures), futures))[0, -1]:
            return False
        self.plan, self._position, self._source = plan.along(actions, keys), 0, "repair"
        self.statistics.repairs += 1
        return True

    def _new_plan(self, belief, key: bytes, masks: dict[str, Tensor]) -> Plan:
        """From the cache if it knows an action, from the policy if that is sure of one, else from the planner, whose
        search is written to the cache."""
        known = self._known_action(belief, key, masks)
        self._is_recalled = known is not None
        if known is not None:
            return known
        if self.cache is None:
            return self._search(self.model, belief, masks)
        with self.cache.recording(self.model, self.critic) as recorded:
            plan = self._search(recorded, belief, masks)
            recorded.keep_plan(belief, plan)
        return plan

    def _known_action(self, belief, key: bytes, masks: dict[str, Tensor]) -> Plan | None:
        """What cache or policy say; nothing in a state where they were followed `patience` times already."""
        if self._recalled[key] >= self.patience:
            return None
        plan = self._recall(belief, masks) or self._act_by_policy(belief, key, masks)
        if plan is not None:
            self._recalled[key] += 1
        return plan

    def _recall(self, belief, masks: dict[str, Tensor]) -> Plan | None:
        """What the cache says."""
        if self.cache is None:
            return None
        levels = getattr(self.planner, "key_levels", None)
        answer = self.cache.lookup(
            self.model, belief, self.critic, mask=masks, refuted=self._refuted, key_levels=levels
        )
        if answer is None:
            return None
        self._source, self._answer = f"cache ({answer.level})", answer
        self.statistics.recalled += 1
        by_level = self.statistics.recalled_by
        self.statistics.recalled_by = by_level | {answer.level: by_level.get(answer.level, 0) + 1}
        return answer.plan

    def _act_by_policy(self, belief, key: bytes, masks: dict[str, Tensor]) -> Plan | None:
        """What the policy does; nothing where it is not sure enough, or the world has refuted that."""
        policy = self.policy
        if policy is None or float(policy.confidence(belief, masks)[0]) < self.policy_confidence:
            return None
        actions = policy.act(belief, masks)
        if self._has_refuted(key, actions, []):
            return None
        self._source = "policy"
        self.statistics.by_policy += 1
        return Plan(actions, float(policy.values(belief)[0]), None, parts=self.parts)

    def _search(self, world, belief, masks: dict[str, Tensor]) -> Plan:
        self._source = "search"
        settings: dict[str, Any] = {"generator": self.generator, "refuted": self._refuted}
        if masks:  # planners of one's own need not know of them
            settings["mask"] = masks
        if getattr(self.planner, "begins_with_previous", False):
            settings["previous"] = None if self.plan is None else self.plan.rest(self._position)
        plan = self.planner.plan(world, belief, self.critic, **settings)
        self.statistics.replans += 1
        self.statistics.num_simulated += plan.num_simulated
        self.statistics.num_calls += plan.num_calls
        self.statistics.claims += plan.num_claims
        self.statistics.refused += plan.num_refused
        return plan

    def _take(self, plan: Plan, belief, key: bytes):
        action = plan.actions[self._position]
        self._before, self._imagined = (belief, action), None
        if plan.states is not None:
            self._predicted = plan.states[self._position]
        elif (
            self.replan == "on_surprise" and not self._is_recalled
        ):  # what a planner without states expects is imagined here
            self._predicted = self._imagine_step().keys(**self._compared_by)[0]
        else:
            self._predicted = None
        self._position += 1
        if self.parts.is_discrete:
            self._last = (key, int(self.parts.numbers(action)))
        taken = self.parts.to_environment(action)
        self.actions.append(taken)
        return taken
