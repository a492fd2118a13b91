"""Who acts while a recording is made, and where its episodes begin.

A policy is a callable `policy(env, observation, rng) -> action`, or a class: it is made once an episode as
`Policy(env)` and called as `policy(observation, rng)`, so that it can keep a plan from step to step. `env` is a
`SenseEnvironment`; a scripted policy looks into `env.unwrapped` for the simulator's own state. A start is a callable
`start(env, rng) -> observation or None` that changes the state after a reset. Both are named `"module:name"`, with
parameters as `"module:name?epsilon=0.3"`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pan_hf.specs import load_callable, spelled

Policy = Callable[..., Any]


# Naming policies


def random(env: Any, observation: Any, rng: np.random.Generator) -> Any:
    """An action drawn among those that are allowed now, see [`SenseEnvironment.sample_action`]."""
    return env.sample_action(rng)


@dataclass(frozen=True)
class PolicyMixture:
    """Policies with the share of episodes each of them plays.

    Args:
        names: how each was asked for, as text that identifies it.
        policies: the callables or classes.
        weights: positive shares that sum to 1.
    """

    names: tuple[str, ...]
    policies: tuple[Policy, ...]
    weights: tuple[float, ...]

    def for_episode(self, env: Any, rng: np.random.Generator) -> Callable[[Any, np.random.Generator], Any]:
        """Draws the policy of one episode; the result is called as `act(observation, rng)`."""
        policy = self.policies[rng.choice(len(self.policies), p=self.weights)]
        is_class = inspect.isclass(policy.func if isinstance(policy, partial) else policy)
        return policy(env) if is_class else partial(policy, env)


def load_policies(policy: str | Policy | Sequence[str | Policy]) -> PolicyMixture:
    """Finds the policies that texts such as `"random:0.7"` or `"module:callable?epsilon=0.3:0.5"` name.

    Args:
        policy: one policy or several. A text is `"random"` or `"module:callable"`, then optional `?key=value&...`,
            then an optional `:weight` (1 when left out). A callable has the weight 1.

    Raises:
        ValueError: nothing is given, a text names nothing that can be called, or a weight is not positive.
    """
    asked = [policy] if isinstance(policy, str) or callable(policy) else list(policy)
    if not asked:
        raise ValueError("policy: expected at least one, such as 'random' or 'module:callable', got none")
    names, policies, weights = zip(*(_load_policy(one) for one in asked), strict=True)
    total = sum(weights)
    return PolicyMixture(names, policies, tuple(weight / total for weight in weights))


def _load_policy(policy: str | Policy) -> tuple[str, Policy, float]:
    if not isinstance(policy, str):
        return spelled(policy), policy, 1.0
    match = re.fullmatch(r"(.+?)(?::(\d+(?:\.\d*)?|\.\d+))?", policy)
    if match is None:
        raise ValueError(f"policy: expected 'random' or 'module:callable', got {policy!r}")
    spec, weight = match.groups()
    if weight is not None and float(weight) == 0:
        raise ValueError(f"policy {policy!r}: expected a weight above 0, got {weight}")
    return policy, random if spec == "random" else load_callable(spec, "policy"), float(weight or 1)
