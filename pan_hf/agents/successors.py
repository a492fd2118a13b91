"""One imagined step of many actions at once: what every search over states asks of a world."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.critics import Critic, check_scores
from pan_hf.agents.world import World
from pan_hf.modeling.state_pan import Actions


@dataclass
class Successors:
    """The states after one imagined step, a row an edge.

    Args:
        belief: of N rows.
        edges: (number of the node that a row comes from, number of the action).
        keys: of the beliefs, which fold if they are equal.
        states: keys of what would be seen.
        scores: of the critic.
        claims: whether the critic takes a row for the goal.
        continue_probs: probabilities that the episode goes on.
        durations: in steps.
        log_probs: of the states, in nats; None of a world that does not say them.
    """

    belief: Any
    edges: list[tuple[int, int]]
    keys: list[bytes]
    states: list[bytes]
    scores: list[float]
    claims: list[bool]
    continue_probs: list[float]
    durations: list[int]
    log_probs: list[float] | None

    @property
    def going_on(self) -> list[bool]:
        return [probability >= 0.5 for probability in self.continue_probs]


def imagine_step(
    world: World,
    belief,
    actions: Tensor | Actions,
    edges: list[tuple[int, int]],
    critic: Critic,
    folded_by: dict[str, int],
    compared_by: dict[str, int],
    **drawn: Any,
) -> Successors:
    """What follows from one action a row.

    Args:
        world ([`World`]): imagines.
        belief: N rows.
        actions: `(N, 1, ...)`.
        edges: what a row is, for whoever reads the result.
        critic ([`Critic`]): scores it.
        folded_by, compared_by: arguments of `keys`, see [`Successors`].
        drawn: temperature and seed, as `simulate` takes them.

    Raises:
        ValueError: scores that are not numbers.
    """
    futures = world.simulate(belief, actions, **drawn)
    scores = check_scores(critic.score(futures), futures)
    has_duration, has_log_prob = (hasattr(futures, name) for name in ("duration", "log_prob"))
    return Successors(
        belief=futures.belief,
        edges=edges,
        keys=futures.belief.keys(**folded_by),
        states=futures.belief.keys(**compared_by),
        scores=scores[:, 0].tolist(),
        claims=critic.reached(futures, scores)[:, 0].tolist(),
        continue_probs=futures.continue_prob[:, 0].tolist(),
        durations=futures.duration[:, 0].tolist() if has_duration else [1] * len(edges),
        log_probs=futures.log_prob[:, 0].tolist() if has_log_prob else None,
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
