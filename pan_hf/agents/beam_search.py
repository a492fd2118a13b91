"""Beam search over what a world model imagines: the best few ways of each length go on.

Unlike a search over states it takes any action: of more actions than it tries, and of numbers, it draws some for each
state. Unlike shooting it gives up a bad beginning after one step.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.actions import MASK, ActionParts
from pan_hf.agents.critics import Critic, as_critic
from pan_hf.agents.plan import (
    Contradicted,
    Plan,
    check_drawable,
    check_numbers,
    check_one_row,
    compared_keys,
    device_of,
    draw_seed,
)
from pan_hf.agents.strategy import stacked
from pan_hf.agents.successors import Successors, imagine_step
from pan_hf.agents.world import World
from pan_hf.modeling.state_pan import Actions
from pan_hf.modeling.validation_pan import real, whole


@dataclass(frozen=True)
class BeamSearch:
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
        counts = ["beam_size", "horizon", "num_actions", "batch_size"] + ["key_levels"] * (self.key_levels is not None)
        check_numbers(self, whole, *counts, least=1)
        check_numbers(self, real, "temperature", least=0)

    def check_world(self, config: Any) -> None:
        """Raises ValueError where a part of the action cannot be drawn."""
        check_drawable(ActionParts(config))

    @torch.no_grad()
    def plan(
        self,
        world: World,
        belief,
        critic,
        *,
        generator: torch.Generator | None = None,
        refuted: Contradicted | None = None,
        mask=None,
    ) -> Plan:
        """The best way, or the first that reaches the goal. Arguments and errors as for [`RandomShooting.plan`]; what
        is `refuted` is kept away from where actions are discrete."""
        check_one_row(belief, generator)
        self.check_world(world.config)
        start, critic, refuted = time.perf_counter(), as_critic(critic), refuted or Contradicted()
        beam = _Beam(self, world, belief, critic, refuted, ActionParts(world.config).check_masks(mask), generator)
        way = beam.run()
        if way is None:  # every way out is refuted: believe the model again
            return self.plan(world, belief, critic, generator=generator, mask=mask)
        return Plan(
            actions=stacked(way.actions),
            expected_return=way.worth,
            states=way.states,
            num_simulated=beam.num_simulated,
            seconds=time.perf_counter() - start,
            reaches_goal=way.is_goal,
            num_folded=beam.num_folded,
            parts=beam.parts,
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


class _Beam:
    """One run of [`BeamSearch`]."""

    def __init__(
        self,
        config: BeamSearch,
        world: World,
        belief,
        critic: Critic,
        refuted: Contradicted,
        masks: dict[str, Tensor],
        generator: torch.Generator | None,
    ):
        self.config, self.world, self.root, self.critic, self.refuted = config, world, belief, critic, refuted
        self.masks, self.generator, self.parts = masks, generator, ActionParts(world.config)
        self.folded_by = {} if config.key_levels is None else {"levels": config.key_levels}
        self.compared_by = compared_keys(world, config.key_levels)
        self.root_key = belief.keys(**self.compared_by)[0]
        self.seen = {belief.keys(**self.folded_by)[0]}
        self.num_simulated = self.num_folded = 0
        self.has_goal = True

    def run(self) -> _Way | None:
        beliefs, ways = self.root, [_Way([], [], [], [])]
        ends: list[_Way] = []
        for _ in range(self.config.horizon):
            grown, beliefs = self._grow(beliefs, ways)
            if not grown:  # nothing is allowed anywhere
                break
            grown = [way if not way.is_goal or self._is_confirmed(way) else self._disbelieved(way) for way in grown]
            if goals := [way for way in grown if way.is_goal]:
                return max(goals, key=lambda way: way.worth)
            # of ways that bring rewards, those that could go on are worth less than is known
            over = [way for way in ends if way.is_over or self.critic.scores_states]
            ends = [*over, *grown]
            ways = self._chosen(grown)
            if not ways:
                break
            beliefs = beliefs.select(torch.tensor([way.row for way in ways]))
        return max(ends, key=lambda way: way.worth, default=None)

    def _grow(self, beliefs, ways: list[_Way]) -> tuple[list[_Way], Any]:
        """Every way one action longer, and their beliefs."""
        rows, actions = self._moves(beliefs, ways)
        grown: list[_Way] = []
        after = []
        for first in range(0, len(rows), self.config.batch_size):
            some = rows[first : first + self.config.batch_size]
            taken = actions[first : first + self.config.batch_size]
            drawn: dict[str, Any] = {"temperature": self.config.temperature}
            drawn |= {"seed": draw_seed(self.generator)} if self.config.temperature else {}
            parents = beliefs.select(torch.tensor(some))
            keys, step = (self.folded_by, self.compared_by), taken.to(device_of(self.world))
            edges = [(row, 0) for row in some]
            successors = imagine_step(self.world, parents, step[:, None], edges, self.critic, *keys, **drawn)
            self.num_simulated += len(some)
            if not ways[0].actions and len(rows) > 1 and len(some) == len(rows) and all(successors.claims):
                self.has_goal = False  # whatever is done reaches this "goal", as a reward for every step does
            grown += [
                self._longer(ways[row], taken[index], successors, index, first) for index, row in enumerate(some)
            ]
            after.append(successors.belief)
        return grown, (type(self.root).cat(after) if len(after) > 1 else after[0]) if after else None

    def _longer(self, way: _Way, action: Tensor | Actions, successors: Successors, index: int, first: int) -> _Way:
        score, going_on = successors.scores[index], successors.going_on[index]
        is_goal = self.has_goal and successors.claims[index] and not self._is_refuted(way, action, "goals")
        share = self.critic.discount ** successors.durations[index] * successors.continue_probs[index]
        scores, passes = [*way.scores, score], [*way.passes, share]
        left = self.config.horizon - len(scores)
        promised = self.critic.outlook(score, left) if going_on and not is_goal else 0.0
        return _Way(
            actions=[*way.actions, action],
            states=[*way.states, successors.states[index]],
            scores=scores,
            passes=passes,
            worth=self._worth(scores, passes, promised),
            row=first + index,
            key=successors.keys[index],
            is_goal=is_goal,
            is_over=not going_on,
        )

    def _worth(self, scores: list[float], passes: list[float], promised: float) -> float:
        for score, passed in zip(reversed(scores), reversed(passes), strict=True):
            promised = float(self.critic.combine(score, passed * promised))
        return promised

    def _disbelieved(self, way: _Way) -> _Way:
        """A way whose goal was not confirmed, so its score is not believed either; it goes on like any other."""
        scores = [*way.scores[:-1], 0.0]
        return replace(way, scores=scores, worth=self._worth(scores, way.passes, 0.0), is_goal=False)

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
        num_all = self.parts.num_choices if self.parts.is_discrete else None
        if num_all is not None and num_all <= self.config.num_actions:
            rows = torch.arange(len(ways)).repeat_interleave(num_all)
            actions = self.parts.of_numbers(torch.arange(num_all).repeat(len(ways)))
        else:
            rows = torch.arange(len(ways)).repeat_interleave(self.config.num_actions)
            drawn = {n: part.random((len(rows),), self.generator) for n, part in self.parts.parts.items()}
            masks = {} if ways[0].actions else self.masks
            actions = self.parts.join(self.parts.redrawn(drawn, masks, self.generator))
        wanted = self._allowed(beliefs, ways, rows, actions)
        return rows[wanted].tolist(), actions[wanted]

    def _allowed(self, beliefs, ways: list[_Way], rows: Tensor, actions: Tensor | Actions) -> Tensor:
        """Which of the actions are allowed, bool `(len(rows),)`."""
        wanted = torch.ones(len(rows), dtype=torch.bool)
        if not ways[0].actions and self.masks:
            wanted &= self.parts.allows(self.masks, actions)
        elif ways[0].actions and self.parts.predicts_mask(self.world.config):
            mask = (beliefs.decode(MASK) > 0.5).cpu()
            wanted &= mask[rows, self.parts.numbers(actions)]
        if self.refuted.transitions:
            wanted &= torch.tensor(
                [
                    not self._is_refuted(ways[row], actions[index], "transitions")
                    for index, row in enumerate(rows.tolist())
                ]
            )
        return wanted

    def _is_refuted(self, way: _Way, action: Tensor | Actions, what: str) -> bool:
        if not self.parts.is_discrete:
            return False
        state = way.states[-1] if way.states else self.root_key
        return (state, int(self.parts.numbers(action))) in getattr(self.refuted, what)

    def _is_confirmed(self, way: _Way) -> bool:
        if self.config.temperature:  # the likely future need not lead there: the world has to tell
            return True
        self.num_simulated += len(way.actions)
        return self.critic.confirms(self.world, self.root, stacked(way.actions).to(device_of(self.world)))
