"""Beam search over what a world model imagines: the best few ways of each length go on.

Unlike a search over states it takes any action: of more actions than it tries, and of numbers, it draws some for each
state. Unlike shooting it gives up a bad beginning after one step.
"""

import heapq
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.plan import MOST_CANDIDATES, Candidate, Plan, best_candidates, check_numbers
from pan_hf.agents.planner import Planner, Problem, check_counts
from pan_hf.agents.strategy import stacked
from pan_hf.agents.successors import Successors, imagine_step
from pan_hf.modeling.state_pan import Actions
from pan_hf.modeling.validation_pan import real


@dataclass(frozen=True)
class BeamSearch(Planner):
    """Beam search; of equal states only the best way to each goes on.

    A way is worth the scores on it, and what its last state promises for the rest of `horizon`, both as the critic
    says.

    Args:
        beam_size (`int`): ways that go on from each length to the next.
        horizon (`int`): longest way.
        num_actions (`int`): actions tried in a state: all of them where the world has no more, else some at random.
        temperature (`float`): of sampled codes; 0 takes the most likely ones.
        batch_size (`int`): ways imagined in one call.
        key_levels (`int`, *optional*): see [`GraphSearch`].

    Raises:
        ValueError: a setting is no number of its range.
    """

    beam_size: int = 16
    horizon: int = 30
    num_actions: int = 16
    temperature: float = 0.0
    batch_size: int = 256
    key_levels: int | None = None

    def __post_init__(self):
        check_counts(self, "beam_size", "horizon", "num_actions", "batch_size")
        check_numbers(self, real, "temperature", least=0)

    def _search(self, problem: Problem) -> Plan | None:
        """The best way, or the first that reaches the goal; what is refuted is kept away from where actions are
        discrete."""
        beam = _Beam(self, problem)
        way = beam.run()
        if way is None:
            return None
        return Plan(
            actions=stacked(way.actions),
            expected_return=way.worth,
            states=way.states,
            reaches_goal=way.is_goal,
            num_folded=beam.num_folded,
            parts=problem.parts,
            candidates=best_candidates([way.candidate, *(end.candidate for end in beam.runners_up(way))]),
        )


@dataclass(frozen=True)
class _Way:
    """Actions from the root, and the states they lead to.

    Args:
        scores, passes: of each step, and the share of what follows it that counts before it.
        worth: of the scores, and of what the last state promises.
        row: of the belief after the last action.
    """

    actions: list[Tensor | Actions]
    states: list[bytes]
    scores: list[float]
    passes: list[float]
    worth: float = float("-inf")
    row: int = 0
    key: bytes = b""
    is_goal: bool = False
    is_over: bool = False

    @property
    def candidate(self) -> Candidate:
        return Candidate(stacked(self.actions), self.worth, reaches_goal=self.is_goal)


class _Beam:
    """One run of [`BeamSearch`]."""

    def __init__(self, config: BeamSearch, problem: Problem):
        self.config, self.problem, self.critic, self.parts = config, problem, problem.critic, problem.parts
        root, self.root_state = problem.root_keys()
        self.seen = {root}
        self.num_folded = 0
        self.has_goal = True
        self.ends: list[_Way] = []  # what the search may end with, the best of the last length among them

    def runners_up(self, chosen: _Way) -> list[_Way]:
        """The best of the ways that were not chosen."""
        others = [way for way in self.ends if way is not chosen and not way.is_goal]
        return heapq.nlargest(MOST_CANDIDATES - 1, others, key=lambda way: way.worth)

    def run(self) -> _Way | None:
        beliefs, ways = self.problem.belief, [_Way([], [], [], [])]
        for _ in range(self.config.horizon):
            grown, beliefs = self._grow(beliefs, ways)
            if not grown:  # nothing is allowed anywhere
                break
            for way in sorted((way for way in grown if way.is_goal), key=lambda way: -way.worth):
                if self._is_confirmed(way):
                    self.ends += grown
                    return way
            grown = [self._disbelieved(way) if way.is_goal else way for way in grown]
            # of ways that bring rewards, those that could go on are worth less than is known
            over = [way for way in self.ends if way.is_over or self.critic.scores_states]
            self.ends = [*over, *grown]
            ways = self._chosen(grown)
            if not ways:
                break
            beliefs = beliefs.select(torch.tensor([way.row for way in ways]))
        return max(self.ends, key=lambda way: way.worth, default=None)

    def _grow(self, beliefs, ways: list[_Way]) -> tuple[list[_Way], Any]:
        """Every way one action longer, and their beliefs."""
        rows, actions = self._moves(beliefs, ways)
        if not rows:
            return [], None
        size, after = self.config.batch_size, []
        for first in range(0, len(rows), size):
            parents = beliefs.select(torch.tensor(rows[first : first + size]))
            after.append(imagine_step(self.problem, parents, actions[first : first + size], self.config.temperature))
        if not ways[0].actions and len(rows) > 1 and all(all(successors.claims) for successors in after):
            self.has_goal = False  # whatever is done reaches this "goal", as a reward for every step does
        ends = [(successors, index) for successors in after for index in range(len(successors.keys))]
        grown = [self._longer(ways[row], actions[number], *ends[number], number) for number, row in enumerate(rows)]
        imagined = [successors.belief for successors in after]
        return grown, type(beliefs).cat(imagined) if len(imagined) > 1 else imagined[0]

    def _longer(self, way: _Way, action: Tensor | Actions, successors: Successors, index: int, row: int) -> _Way:
        score, going_on = successors.scores[index], successors.going_on[index]
        is_goal = self.has_goal and successors.claims[index] and not self._is_refuted(way, action, "goals")
        share = self.critic.discount ** successors.durations[index] * successors.continue_probs[index]
        scores, passes = [*way.scores, score], [*way.passes, share]
        left = self.config.horizon - len(scores)
        promised = successors.outlook(self.critic, index, score, left) if going_on and not is_goal else 0.0
        return _Way(
            actions=[*way.actions, action],
            states=[*way.states, successors.states[index]],
            scores=scores,
            passes=passes,
            worth=self.critic.combined(scores, passes, promised),
            row=row,
            key=successors.keys[index],
            is_goal=is_goal,
            is_over=not going_on,
        )

    def _disbelieved(self, way: _Way) -> _Way:
        """A way whose goal was not confirmed, so its score is not believed either; it goes on like any other."""
        scores = [*way.scores[:-1], 0.0]
        return replace(way, scores=scores, worth=self.critic.combined(scores, way.passes, 0.0), is_goal=False)

    def _chosen(self, grown: list[_Way]) -> list[_Way]:
        """The best ways to states that none has led to before."""
        chosen: list[_Way] = []
        for way in sorted(grown, key=lambda way: -way.worth):
            if way.is_over:
                continue
            if way.key in self.seen:
                self.num_folded += 1
            elif len(chosen) < self.config.beam_size:
                self.seen.add(way.key)
                chosen.append(way)
        return chosen

    def _moves(self, beliefs, ways: list[_Way]) -> tuple[list[int], Tensor | Actions]:
        """Rows of the ways, and an action each; those that are not allowed or refuted are left out."""
        is_first, tried = not ways[0].actions, self.config.num_actions
        if self.parts.is_discrete and self.parts.num_choices <= tried:
            tried = self.parts.num_choices
            actions = self.parts.of_numbers(torch.arange(tried).repeat(len(ways)))
        else:
            actions = self.problem.random_actions(len(ways) * tried, self.problem.masks if is_first else {})
        rows = torch.arange(len(ways)).repeat_interleave(tried)
        wanted = self._allowed(beliefs, rows, actions, is_first)
        if self.problem.refuted.transitions:
            wanted &= torch.tensor(
                [
                    not self._is_refuted(ways[row], actions[index], "transitions")
                    for index, row in enumerate(rows.tolist())
                ]
            )
        return rows[wanted].tolist(), actions[wanted]

    def _allowed(self, beliefs, rows: Tensor, actions: Tensor | Actions, is_first: bool) -> Tensor:
        """Which of the actions are allowed, bool `(len(rows),)`."""
        if is_first and self.problem.masks:
            return self.parts.allows(self.problem.masks, actions)
        allowed = None if is_first else self.problem.allowed_in(beliefs)
        if allowed is None:
            return torch.ones(len(rows), dtype=torch.bool)
        return allowed[rows, self.parts.numbers(actions)]

    def _is_refuted(self, way: _Way, action: Tensor | Actions, what: str) -> bool:
        if not self.parts.is_discrete:
            return False
        state = way.states[-1] if way.states else self.root_state
        return (state, int(self.parts.numbers(action))) in getattr(self.problem.refuted, what)

    def _is_confirmed(self, way: _Way) -> bool:
        if self.config.temperature:  # the likely future need not lead there: the world has to tell
            return True
        return self.problem.confirms(stacked(way.actions))
