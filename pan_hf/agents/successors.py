"""One imagined step of many actions at once: what every search over states asks of a world."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.critics import Critic, check_promises, check_scores
from pan_hf.agents.plan import device_of
from pan_hf.agents.planner import Problem
from pan_hf.modeling.state_pan import Actions


@dataclass
class Successors:
    """The states after one imagined step of each row.

    Args:
        belief: of N rows.
        keys: of the beliefs, which fold if they are equal.
        states: keys of what would be seen.
        scores: of the critic.
        claims: whether the critic takes a row for the goal.
        continue_probs: probabilities that the episode goes on.
        going_on: whether that is likely.
        durations: in steps.
        log_probs: of the states, in nats; None of a world that does not say them.
        promised: what the critic promises of the states; None where it knows no more than their scores.
    """

    belief: Any
    keys: list[bytes]
    states: list[bytes]
    scores: list[float]
    claims: list[bool]
    continue_probs: list[float]
    going_on: list[bool]
    durations: list[int]
    log_probs: list[float] | None
    promised: list[float] | None

    def outlook(self, critic: Critic, row: int, score: float, steps: int) -> float:
        """What the future of a row is taken to be worth before it is imagined. Args: score, as it is believed; steps,
        that are left."""
        return critic.outlook(score, steps) if self.promised is None else self.promised[row]


def imagine_step(problem: Problem, belief, actions: Tensor | Actions, temperature: float = 0.0) -> Successors:
    """What follows from one action a row.

    Args:
        problem ([`Problem`]): whose world imagines, and whose critic scores.
        belief: N rows.
        actions: `(N, ...)`.
        temperature: of drawn codes; 0 takes the most likely ones.

    Raises:
        ValueError: scores that are not numbers.
    """
    one_step = actions.to(device_of(problem.world))[:, None]
    futures = problem.world.simulate(belief, one_step, **problem.drawn(temperature))
    scores = check_scores(problem.critic.score(futures), futures)
    promised = problem.critic.promises(futures.belief)
    has_duration, has_log_prob = (hasattr(futures, name) for name in ("duration", "log_prob"))
    return Successors(
        belief=futures.belief,
        keys=futures.belief.keys(**problem.folded_by),
        states=futures.belief.keys(**problem.compared_by),
        scores=scores[:, 0].tolist(),
        claims=problem.critic.reached(futures, scores)[:, 0].tolist(),
        continue_probs=futures.continue_prob[:, 0].tolist(),
        going_on=(futures.continue_prob[:, 0] >= 0.5).tolist(),
        durations=futures.duration[:, 0].tolist() if has_duration else [1] * len(scores),
        log_probs=futures.log_prob[:, 0].tolist() if has_log_prob else None,
        promised=None if promised is None else check_promises(promised, len(scores)),
    )


def gather(rows: list[tuple[Any, int] | None]) -> Any:
    """Rows of several beliefs, in order, as one belief. Args: rows, (belief, row)."""
    batches: dict[int, tuple[Any, list[int], list[int]]] = {}
    for place, held in enumerate(rows):
        assert held is not None  # none is dropped while it is needed
        belief, row = held
        _, places, wanted = batches.setdefault(id(belief), (belief, [], []))
        places.append(place)
        wanted.append(row)
    parts = [belief.select(torch.tensor(wanted)) for belief, _, wanted in batches.values()]
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([place for _, places, _ in batches.values() for place in places]).argsort()
    return type(parts[0]).cat(parts).select(order)
