"""Why an agent acted as it did: the ways that its last decision weighed, and what is imagined of each.

What was weighed is what the planner, the cache or the policy knew anyway. Futures are imagined, and frames decoded,
when they are first asked for: the likeliest future of each candidate, from the state in which the agent decided.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow
import torch
from torch import Tensor

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.plan import Candidate, Plan, Spread, best_candidates, device_of
from pan_hf.modeling.display_pan import as_pictures, picture_senses, strip_html
from pan_hf.modeling.state_pan import Actions

SHOWN = 8
"""Candidates of an explanation."""

SOURCES = {
    "search": "a search of this state",
    "plan": "the plan of an earlier step, gone on with",
    "branch": "what the strategy says of this outcome",
    "repair": "the plan of an earlier step, imagined anew after a surprise",
    "cache": "the simulation cache",
    "policy": "the policy, which was sure",
}
"""Where an action can come from."""

_SHOWN_ACTIONS = 6  # of each candidate, in `repr`


@dataclass(frozen=True, repr=False, eq=False)
class Explanation:
    """Why an agent took an action, see [`PanAgent.explain`].

    Args:
        action (`str`): that was taken, by name.
        source (`str`): where it comes from, one of `SOURCES`; of a cache with its level, as "cache (exact)".
        planner (`str`): which planner the agent has.
        candidates (`tuple[Candidate]`): the taken way first, then the best of the others.
        spread ([`Spread`], *optional*): of all sequences, where they were sampled.
        world ([`World`]), belief, parts ([`ActionParts`]): where it decided, to imagine in.
    """

    action: str
    source: str
    planner: str
    candidates: tuple[Candidate, ...]
    spread: Spread | None
    world: Any = field(repr=False)
    belief: Any = field(repr=False)
    parts: ActionParts = field(repr=False)

    @property
    def words(self) -> str:
        """Where the action comes from, for a person."""
        name, _, level = self.source.partition(" ")
        return f"{SOURCES[name]} {level}".strip()

    @cached_property
    def futures(self) -> Any:
        """The likeliest future of each candidate, a row each, as `simulate` gives it. A row goes on with its last
        action to the length of the longest; `lengths` says how much of it is the candidate's."""
        longest = max(self.lengths)
        padded = {
            name: torch.stack([self._column(each, name, longest) for each in self.candidates])
            for name in self.parts.parts
        }
        settings: dict[str, Any] = {"temperature": 0.0, "seed": 0}
        effort = getattr(self.world, "effort", None)
        if effort is not None:  # as the planner imagined, and no part of what planning costs
            settings["effort"] = effort
        start = self.belief.select(torch.zeros(len(self.candidates), dtype=torch.long))
        with torch.no_grad():
            return self.world.simulate(start, self.parts.join(padded).to(device_of(self.world)), **settings)

    @property
    def lengths(self) -> list[int]:
        """Actions of each candidate."""
        return [len(each.actions) for each in self.candidates]

    def _column(self, candidate: Candidate, part: str, length: int) -> Tensor:
        column = self.parts.split(candidate.actions)[part]
        return column[torch.arange(length).clamp(max=len(column) - 1)].cpu()

    def labels(self, candidate: Candidate) -> list[str]:
        """What each action of a candidate is called."""
        actions = candidate.actions
        return [self.parts.label(self.parts.to_environment(actions[index])) for index in range(len(actions))]

    def rows(self) -> list[dict[str, Any]]:
        """What is known of each candidate, by name: `actions`, `value`, `weight`, `reaches_goal`, `is_taken`; of its
        likeliest future, imagined now, `reward` (the sum), `continue_prob` (to its end) and, of a world that says it,
        `log_prob` (nats in all); and `outcomes`, as far as a search met them."""
        futures = self.futures
        rows: list[dict[str, Any]] = []
        for row, (candidate, length) in enumerate(zip(self.candidates, self.lengths, strict=True)):
            told: dict[str, Any] = {
                "actions": self.labels(candidate),
                "value": candidate.value,
                "weight": candidate.weight,
                "reaches_goal": candidate.reaches_goal,
                "is_taken": row == 0,
                "reward": float(futures.reward[row, :length].sum()),
                "continue_prob": float(futures.continue_prob[row, :length].prod()),
            }
            if hasattr(futures, "log_prob"):
                told["log_prob"] = float(futures.log_prob[row, :length].sum())
            names = ("probability", "score", "continue_prob", "value", "is_goal")
            told["outcomes"] = [{name: getattr(each, name) for name in names} for each in candidate.outcomes]
            rows.append(told)
        return rows

    def to_pandas(self) -> Any:
        """`rows` as a table, a line a candidate."""
        try:
            return pyarrow.Table.from_pylist(self.rows()).to_pandas()
        except ImportError as error:
            raise ImportError(f"`to_pandas` needs pandas: pip install pandas ({error})") from error

    def pictures(self) -> list[Tensor]:
        """What each candidate is imagined to look like in the first sense with pictures, uint8 `(1 + length, C, H, W)`
        each, the present first; none of a world without pictures."""
        if (sense := self._shown) is None:
            return []
        now, imagined = self._pictures(self.belief), as_pictures(self.world, sense, self.futures.decode(sense))
        return [torch.cat([now, frames[:length]]) for frames, length in zip(imagined, self.lengths, strict=True)]

    def outcome_pictures(self, candidate: Candidate) -> Tensor | None:
        """What may come of the first action of a candidate, uint8 `(outcomes, C, H, W)`; None of a world without
        pictures, or where a search met one outcome at most."""
        if self._shown is None or len(candidate.outcomes) < 2:
            return None
        return torch.cat([self._pictures(each.belief) for each in candidate.outcomes])

    @property
    def _shown(self) -> str | None:
        return next(iter(picture_senses(self.world)), None) if hasattr(self.world, "senses") else None

    @torch.no_grad()
    def _pictures(self, belief: Any) -> Tensor:
        return as_pictures(self.world, self._shown or "", belief.decode(self._shown))

    def label(self, candidate: Candidate) -> str:
        """A candidate in a line."""
        names = self.labels(candidate)
        told = ", ".join(names[:_SHOWN_ACTIONS]) + (
            f", ... ({len(names)} actions)" if len(names) > _SHOWN_ACTIONS else ""
        )
        value = "" if candidate.value is None else f"; value {candidate.value:.3g}"
        weight = "" if candidate.weight is None else f"; weight {candidate.weight:.0%}"
        goal = "; reaches the goal" if candidate.reaches_goal else ""
        chances = ", ".join(f"{each.probability:.0%}" for each in candidate.outcomes)
        outcomes = f"; outcomes {chances}" if len(candidate.outcomes) > 1 else ""
        return told + value + weight + goal + outcomes

    def __repr__(self) -> str:
        lines = [
            f"Explanation({self.action!r} from {self.words}; {len(self.candidates)} candidates of {self.planner})"
        ]
        for row, candidate in enumerate(self.candidates):
            lines.append(f"  {'->' if row == 0 else '  '} {self.label(candidate)}")
        if self.spread is not None:
            spread = self.spread
            lines.append(
                f"  of {spread.count} sequences: values {spread.mean:.3g} ± {spread.std:.2g}, "
                f"{spread.least:.3g} to {spread.most:.3g}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows: dict[str, Tensor] = {}
        for candidate, frames in zip(self.candidates, self.pictures(), strict=False):
            rows[self.label(candidate)] = frames[1:]
            if (outcomes := self.outcome_pictures(candidate)) is not None:
                rows[f"what may come of it: {self.label(candidate)}"] = outcomes
        return strip_html(rows, repr(self))


def explanation_of(
    plan: Plan,
    position: int,
    source: str,
    planner: Any,
    world: Any,
    belief: Any,
    parts: ActionParts,
    known: tuple[Candidate, ...] = (),
) -> Explanation:
    """Why action `position` of a plan was taken.

    Args:
        plan ([`Plan`]): that was followed.
        position (`int`): actions of it that were taken before.
        source (`str`), planner, world, belief, parts: see [`Explanation`].
        known (`tuple[Candidate]`): what was weighed, where the plan does not say it.
    """
    weighed = known or _still_possible(plan, position, parts)
    rest = Candidate(plan.actions[position:], plan.expected_return, reaches_goal=plan.reaches_goal)
    taken = next((each for each in weighed if _begins_alike(parts, each.actions, rest.actions)), rest)
    others = _various(parts, taken, best_candidates([each for each in weighed if each is not taken]))
    taken = replace(taken, actions=rest.actions, reaches_goal=plan.reaches_goal)
    action = parts.label(parts.to_environment(plan.actions[position]))
    spread = None if position else plan.spread
    shown = (taken, *others)[:SHOWN]
    return Explanation(action, source, type(planner).__name__, shown, spread, world, belief, parts)


def _various(parts: ActionParts, taken: Candidate, others: tuple[Candidate, ...]) -> list[Candidate]:
    """Other candidates, the best with each first action before those that begin like a better one."""
    met, first, again = [taken], list[Candidate](), list[Candidate]()
    for each in others:
        is_new = not any(_begins_alike(parts, each.actions[:1], other.actions) for other in met)
        (first if is_new else again).append(each)
        met += [each] * is_new
    return first + again


def _still_possible(plan: Plan, position: int, parts: ActionParts) -> tuple[Candidate, ...]:
    """The candidates of a plan that begin with the actions that were taken of it, and what is left of them."""
    if not position:
        return plan.candidates
    done = plan.actions[:position]
    left = [each for each in plan.candidates if len(each.actions) > position]
    return tuple(
        Candidate(each.actions[position:], each.value, each.weight, each.reaches_goal)
        for each in left
        if _begins_alike(parts, each.actions, done)
    )


def _begins_alike(parts: ActionParts, one: Tensor | Actions, other: Tensor | Actions) -> bool:
    """Whether the shorter of two ways is the beginning of the longer one."""
    length = min(len(one), len(other))
    columns = [parts.split(actions[:length]) for actions in (one, other)]
    return all(torch.equal(columns[0][name].cpu(), columns[1][name].cpu()) for name in parts.parts)
