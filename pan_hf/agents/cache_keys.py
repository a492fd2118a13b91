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

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.cache_scope import model_of
from pan_hf.modeling.backbone_pan import fill_cache
from pan_hf.modeling.state_pan import Actions, Belief, State, action_tensors, as_action

FEATURES = 64  # numbers by which neighbours are compared
_DIGEST = 16  # bytes of a digest: among 2^32 states two would be alike once in 10^19 caches


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

    def features_of(self, belief: Any) -> np.ndarray | None:
        """Features of the rows of a belief; None where the world embeds nothing."""
        if getattr(belief, "state", None) is None or not hasattr(self.world, "embed_state"):
            return None
        return self._features(belief.state)

    def _filed(self, by_level: list[list[bytes]], belief: Any, state: Any) -> Filed:
        texts, steps = [b""] * len(belief), len(by_level[0]) // len(belief)
        if getattr(belief, "prefix", None) is not None:
            texts = [row.tobytes() for row in belief.prefix.to(torch.int32).cpu().numpy()]
        texts = [self._digest(b"text", text, 8) for text in texts]
        names = [level.name.encode() for level in self.levels]
        return Filed(
            raw=by_level[0],
            present=len(by_level[1 if sees_past(self.world) else 0][0]),
            nodes=[[self._digest(name, key) for key in keys] for name, keys in zip(names, by_level, strict=True)],
            text=[text for text in texts for _ in range(steps)],
            features=None if state is None or not hasattr(self.world, "embed_state") else self._features(state),
        )

    def _digest(self, level: bytes, key: bytes, size: int = _DIGEST) -> bytes:
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

    def belief(self, raws: list[bytes], fills: bool = True) -> Belief:
        """The beliefs of whole keys that hold equally many earlier steps, without latents, as imagined ones are.

        Args:
            fills (`bool`): run the earlier steps into the backbone's cache; otherwise nothing can be imagined.

        Raises:
            ValueError: the keys are not of this world.
        """
        model, config = self.world, self.world.config
        shapes = [
            (sense.num_state_tokens * count,)
            for sense in config.coded_senses.values()
            for count in sense.codes_per_token
        ] + [(sense.max_length,) for sense in config.text_senses.values()]
        prefix_length = model.layout.prefix_length if config.prefix_senses else 0
        parts = dict(sorted(config.actions.items())) if len(config.actions) > 1 else config.actions
        actions = {name: int(np.prod(part.shape, dtype=int)) for name, part in parts.items()}
        state_size = sum(shape[0] for shape in shapes)
        now, past = state_size + prefix_length, state_size + sum(actions.values())
        sizes = {len(raw) for raw in raws}
        if len(sizes) != 1 or (min(sizes) // 4 - now) % past or min(sizes) // 4 < now:
            raise ValueError(f"Keys of {sorted(sizes)} bytes are not of this world, whose state takes {4 * now}.")
        rows = torch.from_numpy(np.frombuffer(b"".join(raws), np.int32).reshape(len(raws), -1).copy())
        history = []
        for start in range(now, rows.shape[1], past):  # the newest first
            state = self._state(rows[:, start : start + state_size])
            history.append((state, self._actions(rows[:, start + state_size : start + past], parts, actions)))
        prefix = rows[:, state_size:now].long().to(model.device) if prefix_length else None
        belief = Belief(self._state(rows[:, :state_size]), history[::-1], prefix, None, model_of(model))
        return fill_cache(belief.model, belief, model.table.code_tables()) if fills else belief

    def _state(self, rows: Tensor) -> State:
        """Ids `(N, state_size)` as a state `(N,)`."""
        config, rows = self.world.config, rows.long().to(self.world.device)
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

    def _actions(self, rows: Tensor, parts: Mapping[str, Any], sizes: Mapping[str, int]) -> Tensor | Actions:
        first, values = 0, {}
        for name, part in parts.items():
            piece = rows[:, first : first + sizes[name]].contiguous()
            numbers = piece.view(torch.float32) if _is_float(part) else piece.long()
            values[name] = numbers.reshape(len(rows), *part.shape).to(self.world.device)
            first += sizes[name]
        return as_action(values)

    # ---- actions

    def of_actions(self, actions: Tensor | Actions) -> list[bytes]:
        """Actions `(N, ...)` as bytes: every part's numbers as they are."""
        rows = []
        for part in action_tensors(actions):
            flat = part.reshape(len(part), -1)
            flat = (flat.float() + 0.0).view(torch.int32) if flat.is_floating_point() else flat.to(torch.int32)
            rows.append(flat)
        return [row.tobytes() for row in torch.cat(rows, 1).cpu().numpy()]

    def actions(self, stored: list[bytes]) -> Tensor | Actions:
        """The inverse of `of_actions`, `(N, ...)` on the CPU."""
        parts = dict(sorted(self.parts.parts.items())) if len(self.parts.parts) > 1 else self.parts.parts
        sizes = {name: int(np.prod(part.shape, dtype=int)) for name, part in parts.items()}
        rows = torch.from_numpy(np.frombuffer(b"".join(stored), np.int32).reshape(len(stored), -1).copy())
        first, values = 0, {}
        for name, part in parts.items():
            piece = rows[:, first : first + sizes[name]].contiguous()
            numbers = piece.view(torch.float32) if _is_float(part) else piece.long()
            values[name] = numbers.reshape(len(rows), *part.shape)
            first += sizes[name]
        return self.parts.join(values)


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


def _is_float(part: Any) -> bool:
    """Whether the numbers of a part are coordinates; choices and words are whole."""
    return part.kind != "text" and part.shape != ()
