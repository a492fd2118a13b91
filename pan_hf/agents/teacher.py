"""What a simulation cache would answer in each of its states: what a policy that imitates it learns from.

Shapes: N = rows, D = numbers of a belief, K = choices, or numbers of an action, as in `pan_hf.agents.policy`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.cache_keys import Keys
from pan_hf.agents.policy import FlatActions, mask_of
from pan_hf.envs.state_features import StateFeatures

HELD_OUT = 10  # every so many of the states that can be told apart is kept for testing
_SAME = 1e-3  # as a share: actions that differ by less are worth the same, and each of them is right
_STATES = 1000  # read from the cache at once


@dataclass
class Batch:
    """Decisions as a network learns them.

    Args:
        x (`torch.Tensor`): beliefs, `(N, D)`.
        right (`torch.Tensor`): of choices bool `(N, K)`, those that the teacher thinks best; of numbers its own, float
            `(N, K)`.
        values (`torch.Tensor`): what they are worth, `(N,)`.
    """

    x: Tensor
    right: Tensor
    values: Tensor


@dataclass
class Decisions:
    """States of a cache, what is best there, and what that is worth. A state is what is seen now: of a model that sees
    several steps the earlier ones are left out, as a policy reads none of them.

    Args:
        features ([`StateFeatures`]), flat ([`FlatActions`]): of the model.
        keys ([`Keys`]): by which beliefs are made of what is stored.
    """

    features: StateFeatures
    flat: FlatActions
    keys: Keys
    seen: list[bytes] = field(default_factory=list)
    actions: list[list[bytes]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.seen)

    def add(self, cache: SimulationCache, world: Any, critic: Any) -> int:
        """Adds what a cache would answer, at the exact level, to what is wanted, in states of which nothing was known
        before. Returns how many there are now."""
        bound, store, known, last = cache.bind(world, critic), cache.store, set(self.seen), -1
        text = "SELECT id, node, substr(raw, 1, present) FROM states WHERE space=? AND id>? ORDER BY id LIMIT ?"
        while states := store.query(text, (bound.space, last, _STATES)):
            for _, node, seen in states:
                rows = [] if seen in known else cache.best_rows(bound, node, cache.least_reach, _SAME)
                if rows:
                    _, value, _, planned = rows[0]
                    self.seen.append(seen)
                    self.actions.append([row[0] for row in rows])
                    self.values.append(planned if value is None else value)
            last = states[-1][0]
        return len(self)

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the decisions to learn, and of those held out: a tenth of the states, the same in every cache."""
        digests = (hashlib.sha256(seen).digest() for seen in self.seen)
        held_out = np.array([int.from_bytes(digest[:4], "big") % HELD_OUT == 0 for digest in digests], bool)
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def digest(self) -> str:
        """Tells these decisions from others."""
        digest = hashlib.sha256()
        for seen, actions, value in zip(self.seen, self.actions, self.values, strict=True):
            digest.update(b"".join([seen, *actions, np.float32(value).tobytes()]))
        return digest.hexdigest()[:32]

    @torch.no_grad()
    def batch(self, numbers: Iterable[int]) -> Batch:
        """Some of the decisions."""
        chosen = list(numbers)
        x = self.features(self.keys.belief([self.seen[number] for number in chosen]))
        given = [(row, action) for row, number in enumerate(chosen) for action in self.actions[number]]
        flat = self.flat.of_world(self.keys.actions([action for _, action in given])).to(x.device)
        values = torch.tensor([self.values[number] for number in chosen], device=x.device)
        if not self.flat.is_discrete:
            firsts = np.searchsorted([row for row, _ in given], np.arange(len(chosen)))
            return Batch(x, flat[torch.as_tensor(firsts, device=x.device)], values)
        right = torch.zeros(len(chosen), self.flat.size, dtype=torch.bool, device=x.device)
        right[[row for row, _ in given], flat] = True
        mask = mask_of(self.features, self.flat)
        right = right if mask is None else right & (x[:, mask] > 0)  # what the belief forbids is never right
        kept = right.any(1)
        return Batch(x[kept], right[kept], values[kept])
