"""What planners imagine, as rows for a simulation cache: a world that passes every question on and keeps the answers.

Shapes: N = rows, H = steps ahead.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.cache_keys import Filed, Keys
from pan_hf.agents.cache_store import OutcomeRow, StateRow
from pan_hf.agents.critics import Critic, check_scores
from pan_hf.agents.plan import Plan, device_of
from pan_hf.modeling.state_pan import Actions


@dataclass(eq=False)
class Rows:
    """What a cache is to keep: states by digest, outcomes, and what planners expect of actions, by node."""

    states: dict[bytes, StateRow] = field(default_factory=dict)
    outcomes: dict[tuple[bytes, bytes, bytes], OutcomeRow] = field(default_factory=dict)
    planned: list[tuple[bytes, bytes, float]] = field(default_factory=list)


class Recorded(Rows):
    """A world that passes every question on, and remembers the outcomes that it imagined.

    Every outcome of discrete actions is kept. Of others, which never repeat, the plan is handed to `keep_plan`.

    Args:
        world ([`World`]): imagines.
        keys ([`Keys`]): files its beliefs.
        critic ([`Critic`]): scores what is imagined.
        keeps (`bool`): off, nothing is remembered.
        keeps_all (`bool`): every outcome is kept, whatever the actions.
    """

    def __init__(self, world: Any, keys: Keys, critic: Critic, keeps: bool = True, keeps_all: bool = False):
        super().__init__()
        self._model, self.keys, self.critic, self.keeps = world, keys, critic, keeps
        self.keeps_all = keeps_all or keys.parts.is_discrete

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def rows(self) -> Rows:
        """What is remembered, without the world."""
        return Rows(self.states, self.outcomes, self.planned)

    @torch.no_grad()
    def simulate(self, belief: Any, actions: Tensor | Actions, *args: Any, **kwargs: Any) -> Any:
        """`simulate` of the world."""
        futures = self._model.simulate(belief, actions, *args, **kwargs)
        if self.keeps and self.keeps_all:
            rollouts = kwargs.get("num_rollouts", args[0] if args else 1)
            temperature = kwargs.get("temperature", args[1] if len(args) > 1 else 1.0)
            self._keep(belief, actions, futures, rollouts, drawn=temperature > 0)
        return futures

    def _keep(self, belief: Any, actions: Tensor | Actions, futures: Any, rollouts: int, drawn: bool) -> None:
        """Every transition of futures, up to where the episode has ended."""
        keys = self.keys
        before, after = keys.of_belief(belief), keys.of_futures(futures)
        steps = actions.shape[1]
        flat = actions.flatten(0, 1)
        stored = keys.of_actions(flat)
        scores = check_scores(self.critic.score(futures), futures)
        columns = [scores, self.critic.reached(futures, scores), futures.continue_prob, _log_prob(futures)]
        score, reached, alive, log_prob = (column.flatten().tolist() for column in columns)
        rewards, durations = _rewards(futures), _durations(futures)
        for row in range(len(belief) * rollouts):
            state, at = before, row // rollouts
            for step in range(steps):
                place = row * steps + step
                start = self._file(state, at)
                end = self._file(after, place)
                action = stored[row // rollouts * steps + step]
                outcome = OutcomeRow(
                    start, action, end, int(drawn), rewards[place], alive[place], log_prob[place], durations[place],
                    score[place], bool(reached[place]),
                )  # fmt: skip
                known = self.outcomes.get((start, action, end))
                count = outcome.count + (0 if known is None else known.count)
                self.outcomes[start, action, end] = replace(outcome, count=count)
                if alive[place] < 0.5:
                    break
                state, at = after, place

    def _file(self, filed: Filed, row: int) -> bytes:
        node = filed.nodes[0][row]
        if node not in self.states:
            features = None if filed.features is None else filed.features[row].tobytes()
            nodes = [level[row] for level in filed.nodes]
            self.states[node] = StateRow(nodes, filed.raw[row], filed.present, filed.text[row], features)
        return node

    def file(self, belief: Any) -> list[bytes]:
        """Keeps the rows of a belief, without outcomes; returns their nodes."""
        filed = self.keys.of_belief(belief)
        return [self._file(filed, row) for row in range(len(filed))]

    @torch.no_grad()
    def keep_plan(self, belief: Any, plan: Plan) -> None:
        """Keeps what a planner expects of its plan. Where not everything was recorded, the plan is imagined once more,
        and what is met on its way is kept."""
        if not self.keeps:
            return
        keys, stored = self.keys, self.keys.of_actions(plan.actions)
        start = keys.of_belief(belief, with_features=False)
        self.planned += [(level[0], stored[0], plan.expected_return) for level in start.nodes]
        if self.keeps_all:
            return
        actions = plan.actions[None].to(device_of(self._model))
        futures = self._model.simulate(belief, actions, temperature=0.0)
        self._keep(belief, actions, futures, 1, drawn=False)
        after = keys.of_futures(futures, with_features=False)
        for step, worth in enumerate(_values_to_go(self.critic, futures)):
            self.planned += [(level[step], stored[step + 1], worth) for level in after.nodes]


def _values_to_go(critic: Critic, futures: Any) -> list[float]:
    """What the rest of one imagined plan is worth from each state on its way, as far as scores tell."""
    scores, values = check_scores(critic.score(futures), futures), []
    elapsed = getattr(futures, "elapsed", torch.arange(scores.shape[1])[None])
    for step in range(1, scores.shape[1]):
        since = elapsed[:, step:] - elapsed[:, step : step + 1]
        rest = SimpleNamespace(continue_prob=futures.continue_prob[:, step:], elapsed=since)
        try:
            values.append(float(critic.value(rest, scores[:, step:])[0]))
        except AttributeError:  # it needs the whole future
            break
    return values


def _log_prob(futures: Any) -> Tensor:
    found = getattr(futures, "log_prob", None)
    return torch.zeros_like(futures.continue_prob) if found is None else found


def _rewards(futures: Any) -> list[float | bytes]:
    """By future and step, a number or the bytes of several actors' numbers."""
    reward = futures.reward.float().cpu()
    if reward.dim() == 2:
        return reward.flatten().tolist()
    return [row.tobytes() for row in reward.flatten(0, 1).numpy()]


def _durations(futures: Any) -> list[int]:
    found = getattr(futures, "duration", None)
    return [1] * futures.continue_prob.numel() if found is None else found.flatten().tolist()
