"""What a belief is filed under: its exact key, and coarser ones that leave something out and say what.

Ids of codes are permanent, so equal codes are the same state for ever. From the finest on:

| level | equal there means | leaves out |
|---|---|---|
| `exact` | everything discrete that a prediction depends on | latents |
| `present` | the current state, whatever led there | the earlier steps that the model sees |
| `levels=k` | the k coarsest codes of every sense | finer codes, and the earlier steps |

The constant text (a mission) is part of every level. Beneath them are neighbours, which are near and not equal: the
rows of a state, embedded as the model reads it, projected to `FEATURES` numbers.

Shapes: N = rows, H = steps ahead.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.cache_scope import model_of
from pan_hf.features import feature_class
from pan_hf.modeling.backbone_pan import filled_cache
from pan_hf.modeling.state_pan import ABSENT, Actions, Belief, State, action_tensors

FEATURES = 64  # numbers by which neighbours are compared
_ANY = 2**31  # above every number of 32 bits: of floats all bits are right
_KEPT = 4096  # actions that are kept decoded: decoding one takes as long as the rest of a look-up
DIGEST = 16  # bytes of a digest: among 2^32 states two would be alike once in 10^19 caches


@dataclass(frozen=True)
class Level:
    """One level of abstraction: its name, arguments of `Belief.keys`, and what equal keys may differ in."""

    name: str
    arguments: Mapping[str, int]
    leaves_out: str


@dataclass
class Filed:
    """N beliefs as they are filed.

    Args:
        raw: the whole key of each, from which [`Keys.belief`] makes a belief again.
        present: bytes of it that are about now; the earlier steps are behind them.
        nodes: by level, finest first, the digests of all rows.
        text: digest of each constant text, within which neighbours are looked for.
        features: float16 `(N, FEATURES)`; None where the world embeds nothing.
    """

    raw: list[bytes]
    present: int
    nodes: list[list[bytes]]
    text: list[bytes]
    features: np.ndarray | None

    def __len__(self) -> int:
        return len(self.raw)


class Keys:
    """Files the beliefs and actions of one world.

    Args:
        world ([`World`]): a [`PanModel`], one that is wrapped, or an exact simulator, which has the exact level alone.
        salt (`bytes`): keeps the digests of one space apart from those of others.
    """

    def __init__(self, world: Any, salt: bytes):
        self.world, self.salt = world, salt
        self.parts = ActionParts(world.config)
        self.levels = levels_of(world)
        self._projection: Tensor | None = None
        self._known_actions: dict[bytes, Tensor | Actions] = {}

    # ---- beliefs

    def of_belief(self, belief: Any, with_features: bool = True) -> Filed:
        """The rows of a belief, filed."""
        by_level = [belief.keys(**level.arguments) for level in self.levels]
        return self._filed(by_level, belief, getattr(belief, "state", None) if with_features else None)

    def of_futures(self, futures: Any, with_features: bool = True) -> Filed:
        """The beliefs after every step of futures, `N * H` rows, those of a row one after the other."""
        by_level = [[key for row in futures.keys(**level.arguments) for key in row] for level in self.levels]
        state = getattr(futures, "state", None) if with_features else None
        state = None if state is None else state.map(lambda tensor: tensor.flatten(0, 1))
        return self._filed(by_level, futures.belief, state)

    def nodes(self, belief: Any) -> Iterator[tuple[Level, bytes]]:
        """The digests of a belief of one row, finest level first, each made when it is asked for."""
        for level in self.levels:
            yield level, self._digest(level.name.encode(), belief.keys(**level.arguments)[0])

    def texts(self, belief: Any) -> list[bytes]:
        """The digests of the constant texts of a belief, by row."""
        prefix = getattr(belief, "prefix", None)
        words = [b""] * len(belief) if prefix is None else prefix.to(torch.int32).cpu().numpy()
        return [self._digest(b"text", bytes(row), 8) for row in words]

    def features_of(self, belief: Any) -> np.ndarray | None:
        """Features of the rows of a belief; None where the world embeds nothing."""
        if getattr(belief, "state", None) is None or not hasattr(self.world, "embed_state"):
            return None
        return self._features(belief.state)

    def _filed(self, by_level: list[list[bytes]], belief: Any, state: Any) -> Filed:
        steps = len(by_level[0]) // len(belief)
        names = [level.name.encode() for level in self.levels]
        return Filed(
            raw=by_level[0],
            present=len(by_level[1 if sees_past(self.world) else 0][0]),
            nodes=[[self._digest(name, key) for key in keys] for name, keys in zip(names, by_level, strict=True)],
            text=[text for text in self.texts(belief) for _ in range(steps)],
            features=None if state is None or not hasattr(self.world, "embed_state") else self._features(state),
        )

    def _digest(self, level: bytes, key: bytes, size: int = DIGEST) -> bytes:
        return hashlib.blake2b(key, digest_size=size, key=self.salt, person=level[:16]).digest()

    @torch.no_grad()
    def _features(self, state: State) -> np.ndarray:
        """States `(N,)`, embedded without latents and projected, float16 `(N, FEATURES)`."""
        embedded = self.world.embed_state(state.without_latents()).float().flatten(1)
        if self._projection is None:
            noise = torch.Generator().manual_seed(0)
            drawn = torch.randn(embedded.shape[1], FEATURES, generator=noise) / embedded.shape[1] ** 0.5
            self._projection = drawn.to(embedded.device)
        return (embedded @ self._projection).cpu().numpy().astype(np.float16)

    # ---- and back

    def belief(self, raws: list[bytes]) -> Belief:
        """The beliefs of whole keys that hold equally many earlier steps, without latents, as imagined ones are.

        Raises:
            ValueError: the keys are not of this world.
        """
        model, config, state, action = self.world, self.world.config, self._state_limits, self._action_limits(True)
        prefix_length = model.layout.prefix_length if config.prefix_senses else 0
        now, past = len(state) + prefix_length, len(state) + len(action)
        sizes = {len(raw) for raw in raws}
        steps, rest = divmod(min(sizes) // 4 - now, past)
        if len(sizes) != 1 or min(sizes) % 4 or rest or not 0 <= steps < config.context_steps:
            raise ValueError(f"Keys of {sorted(sizes)} bytes are not of this world, whose state takes {4 * now}.")
        words = np.full(prefix_length, config.vocab_size)
        rows = self._ids(raws, np.concatenate([state, words, *[state, action] * steps])).to(model.device)
        history = []
        for start in range(now, rows.shape[1], past):  # the newest first
            middle, end = start + len(state), start + past
            history.append((self._state(rows[:, start:middle]), self._actions(rows[:, middle:end])))
        prefix = rows[:, len(state) : now].long() if prefix_length else None
        return Belief(self._state(rows[:, : len(state)]), history[::-1], prefix, filled_cache, model_of(model))

    @functools.cached_property
    def _state_limits(self) -> np.ndarray:
        """What the ids of a state are below, each by its place."""
        config = self.world.config
        limits = [
            np.full(sense.num_state_tokens * count, capacity)
            for sense in config.coded_senses.values()
            for count, capacity in zip(sense.codes_per_token, sense.codebook_capacity, strict=True)
        ]
        limits += [np.full(sense.max_length, config.vocab_size) for sense in config.text_senses.values()]
        return np.concatenate(limits)

    def _action_limits(self, is_past: bool) -> np.ndarray:
        """What the numbers of an action are below. Args: is_past, it may be one that the world has no more."""
        limits = []
        for part in self._parts.values():
            feature = feature_class(part.kind)
            if feature.is_discrete:
                limit = part.capacity if is_past else part.num_actions
            else:
                limit = _ANY if feature.is_numeric else self.world.config.vocab_size
            limits.append(np.full(int(np.prod(part.shape, dtype=int)), limit))
        return np.concatenate(limits)

    @staticmethod
    def _ids(stored: list[bytes], limits: np.ndarray) -> Tensor:
        """Stored numbers as int32 `(N, len(limits))`. Raises ValueError for others than this world's."""
        if {len(row) for row in stored} != {4 * len(limits)}:
            raise ValueError(f"Expected {4 * len(limits)} bytes a row, got {sorted({len(row) for row in stored})}.")
        rows = np.frombuffer(b"".join(stored), np.int32).reshape(len(stored), -1)
        if ((rows >= limits) | (rows < ABSENT) & (limits < _ANY)).any():
            raise ValueError("Some ids are not of this world: a file of another model, or a damaged one.")
        return torch.from_numpy(rows.copy())

    def _state(self, rows: Tensor) -> State:
        """Ids `(N, state_size)` as a state `(N,)`."""
        config, rows = self.world.config, rows.long()
        first = 0
        codes: dict[str, list[Tensor]] = {}
        text: dict[str, Tensor] = {}
        for name, sense in config.coded_senses.items():
            codes[name] = []
            for count in sense.codes_per_token:
                size = sense.num_state_tokens * count
                codes[name].append(rows[:, first : first + size])
                first += size
        for name, sense in config.text_senses.items():
            text[name] = rows[:, first : first + sense.max_length]
            first += sense.max_length
        return State(codes, {}, text)

    def _actions(self, rows: Tensor) -> Tensor | Actions:
        first, values = 0, {}
        for name, part in self._parts.items():
            end = first + int(np.prod(part.shape, dtype=int))
            piece, first, feature = rows[:, first:end].contiguous(), end, feature_class(part.kind)
            numbers = piece.view(torch.float32) if feature.is_numeric else piece.long()
            if not numbers.isfinite().all() or (feature.is_discrete and (numbers < 0).any()):
                raise ValueError("Some actions are not of this world: a file of another model, or a damaged one.")
            values[name] = numbers.reshape(len(rows), *part.shape)
        return self.parts.join(values)

    # ---- actions

    @property
    def _parts(self) -> dict[str, Any]:
        """The parts of an action in the order of [`Actions`]."""
        return dict(sorted(self.parts.parts.items()))

    def of_actions(self, actions: Tensor | Actions) -> list[bytes]:
        """Actions `(N, ...)` as bytes: every part's numbers as they are."""
        rows = []
        for part in action_tensors(actions):
            flat = part.reshape(len(part), -1)
            flat = (flat.float() + 0.0).view(torch.int32) if flat.is_floating_point() else flat.to(torch.int32)
            rows.append(flat)
        return [row.tobytes() for row in torch.cat(rows, 1).cpu().numpy()]

    def actions(self, stored: list[bytes]) -> Tensor | Actions:
        """The inverse of `of_actions`, `(N, ...)` on the CPU. Raises ValueError for an action that is none here."""
        return self._actions(self._ids(stored, self._action_limits(False)))

    def action(self, stored: bytes) -> Tensor | Actions:
        """One of them, `(1, ...)`, not to be changed: it is given again the next time."""
        if stored not in self._known_actions:
            if len(self._known_actions) >= _KEPT:
                self._known_actions.clear()
            self._known_actions[stored] = self.actions([stored])
        return self._known_actions[stored]


def levels_of(world: Any) -> list[Level]:
    """The levels at which the beliefs of a world are filed, finest first; three below the exact one at most."""
    senses = getattr(world.config, "coded_senses", None)
    if senses is None:
        return [Level("exact", {}, "nothing")]
    levels = [Level("exact", {}, "latents")]
    if sees_past(world):
        levels.append(Level("present", {"steps": 0}, "the earlier steps that the model sees"))
    deepest = max((sense.num_levels for sense in senses.values()), default=1)
    coarser = sorted({deepest - 1, 1} - {0, deepest}, reverse=True)
    without = "finer codes" + (", and the earlier steps" if len(levels) > 1 else "")
    return levels + [Level(f"levels={count}", {"levels": count, "steps": 0}, without) for count in coarser]


def sees_past(world: Any) -> bool:
    """Whether a key may hold earlier steps."""
    return getattr(world.config, "coded_senses", None) is not None and world.config.context_steps > 1
