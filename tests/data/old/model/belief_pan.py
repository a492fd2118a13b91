"""What the model believes and what it imagines: `State`, `Belief`, `Futures`, `LogProb`.

A belief is the encoded current state plus the backbone's cache of what came before it; it is cheap to branch, because
the cache holds the trunk of earlier steps and never the current state itself, which enters together with an action.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import DynamicCache

ABSENT = -1  # a code of which nothing is known but the coarser codes; latents that are absent are not a number


@dataclass
class State:
    """An encoded observation, with any leading shape (`(B,)` or `(B, T)`).

    Any prefix of blocks is a state: where only coarse levels are known, finer codes are `ABSENT`, code by code.

    Args:
        codes: for each image or vector sense, a list over levels (coarse first) of int64 `(..., num_codes)`.
        latents: for each sense that has them, float `(..., num_places, latent_dim)`; may be empty.
        text: for each text sense that changes with time, token ids `(..., max_length)`.
    """

    codes: dict[str, list[Tensor]]
    latents: dict[str, Tensor] = field(default_factory=dict)
    text: dict[str, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """Applies a function to every tensor."""
        return State(
            {name: [function(level) for level in levels] for name, levels in self.codes.items()},
            {name: function(latents) for name, latents in self.latents.items()},
            {name: function(ids) for name, ids in self.text.items()},
        )

    def tensors(self, levels: int | None = None) -> list[Tensor]:
        """Every discrete tensor, in a fixed order: codes by sense and level, of so many levels, the coarsest first
        (all by default), then text."""
        return [code for codes in self.codes.values() for code in codes[:levels]] + list(self.text.values())

    def _latents_like(self, name: str, other: Tensor) -> Tensor:
        """The latents of a sense, absent ones if there are none; `other` tells their shape."""
        leading = self.codes[name][0].shape[:-1]
        return self.latents.get(name, other.new_full((*leading, *other.shape[-2:]), torch.nan))

    def without_latents(self) -> State:
        return replace(self, latents={})

    @staticmethod
    def combine(states: list[State], join: Callable[[list[Tensor]], Tensor]) -> State:
        """Joins the tensors of several states, e.g. with `torch.cat` or `torch.stack`. Latents that some of them lack
        are absent there."""
        first = states[0]
        known = {name: latents for state in states for name, latents in state.latents.items()}
        return State(
            {
                name: [join([s.codes[name][level] for s in states]) for level in range(len(levels))]
                for name, levels in first.codes.items()
            },
            {name: join([s._latents_like(name, latents) for s in states]) for name, latents in known.items()},
            {name: join([s.text[name] for s in states]) for name in first.text},
        )


def select_cache(cache: DynamicCache | None, index: Tensor) -> DynamicCache | None:
    """A new cache with the chosen rows of the batch; the old one is left as it was."""
    if cache is None:
        return None
    chosen = fork_cache(cache)
    for layer in chosen.layers:
        layer.keys, layer.values = layer.keys[index], layer.values[index]
    return chosen


def fork_cache(cache: DynamicCache | None) -> DynamicCache:
    """A cache that can be appended to while the old one stays as it is; tensors are shared until then."""
    forked = DynamicCache()
    if cache is not None:
        forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked


@dataclass
class Belief:
    """What the model holds of the present, for a batch of B.

    Args:
        state: the current state, leading shape `(B,)`.
        history: the earlier steps in the cache, oldest first: their states `(B,)` and encoded actions.
        prefix: ids of the episode's constant text `(B, prefix_length)`, or None.
        cache: keys and values of the prefix and of the earlier steps; None where there is neither.
        model: who believes it, for `decode`.
        growths: what [`PanModel.observe`] tried to learn.
    """

    state: State
    history: list[tuple[State, Tensor]]
    prefix: Tensor | None
    cache: DynamicCache | None
    model: object = field(repr=False, default=None)
    growths: list = field(repr=False, default_factory=list)

    def __len__(self) -> int:
        return len(self.state.tensors()[0])

    @property
    def codes(self) -> dict[str, list[Tensor]]:
        return self.state.codes

    def keys(self, levels: int | None = None) -> list[bytes]:
        """One hashable code state a row: equal keys if and only if all discrete codes (and words) are equal, or, with
        `levels`, those of so many levels, the coarsest first: equal ones are the same abstract state."""
        flat = torch.cat([tensor.flatten(1) for tensor in self.state.tensors(levels)], 1)
        return [row.tobytes() for row in flat.to(torch.int32).cpu().numpy()]

    def select(self, index: Tensor) -> Belief:
        """The rows `index` (int64 `(N,)`, repeats allowed) as a belief of its own."""
        index = torch.as_tensor(index)
        if index.dtype == torch.bool:
            raise ValueError("Select rows by their numbers, not by a mask; `mask.nonzero().squeeze(-1)` makes them.")
        index = index.long()
        return replace(
            self,
            state=self.state.map(lambda tensor: tensor[index]),
            history=[(state.map(lambda tensor: tensor[index]), action[index]) for state, action in self.history],
            prefix=None if self.prefix is None else self.prefix[index],
            cache=select_cache(self.cache, index),
        )

    def repeat(self, count: int) -> Belief:
        """Each row `count` times, one after the other: row `b` becomes rows `b * count` to `(b + 1) * count - 1`."""
        return self.select(torch.arange(len(self)).repeat_interleave(count))

    @staticmethod
    def cat(beliefs: list[Belief]) -> Belief:
        """Beliefs with equally long histories as one batch. Raises ValueError where the histories differ."""
        lengths = {len(belief.history) for belief in beliefs}
        if len(lengths) > 1:
            raise ValueError(f"Beliefs to join must hold equally many earlier steps, got {sorted(lengths)}.")
        first, cache = beliefs[0], None
        if first.cache is not None:
            cache = DynamicCache()
            for number in range(len(first.cache.layers)):
                layers = [belief.cache.layers[number] for belief in beliefs]
                cache.update(torch.cat([la.keys for la in layers]), torch.cat([la.values for la in layers]), number)
        history = [
            (State.combine([state for state, _ in steps], torch.cat), torch.cat([action for _, action in steps]))
            for steps in zip(*(belief.history for belief in beliefs), strict=True)
        ]
        prefixes = [belief.prefix for belief in beliefs if belief.prefix is not None]
        state = State.combine([belief.state for belief in beliefs], torch.cat)
        prefix = torch.cat(prefixes) if prefixes else None
        return replace(first, state=state, history=history, prefix=prefix, cache=cache)

    def decode(self, sense: str, num_levels: int | None = None, latents: bool | None = None) -> Tensor:
        """The current observation in one sense; see [`PanModel.decode`]."""
        return self.model.decode(self.state, sense, num_levels=num_levels, latents=latents)


@dataclass
class Futures:
    """Imagined trajectories: N rows of H steps.

    Args:
        state: the states after each action, leading shape `(N, H)`.
        log_prob: log probability of each step's discrete blocks under the model, nats `(N, H)`.
        reward: expected reward of each transition, `(N, H)`.
        continue_prob: probability that the episode goes on after it, `(N, H)`.
        belief: the belief after the last action, batch N.
        conditions: what the latent head needs to fill in each sense's latents, `(N, H, P, C)`.
        seed: of the latents, drawn only when something is decoded.
        switch: which blocks were predicted, `(N, H, len(model.blocks))` bool, where `simulate` was given an effort;
        focus, which places were looked at, `(N, H, places of all senses)` bool; cost, an `effort_pan.Cost`.
        expected: images that `simulate` was asked to expect, uint8 `(N, steps asked for, C, height, width)` a sense.
    """

    state: State
    log_prob: Tensor
    reward: Tensor
    continue_prob: Tensor
    belief: Belief
    conditions: dict[str, Tensor]
    seed: int | None = None
    switch: Tensor | None = None
    focus: Tensor | None = None
    cost: object = None
    expected: dict[str, Tensor] = field(default_factory=dict)

    @property
    def codes(self) -> dict[str, list[Tensor]]:
        return self.state.codes

    def __len__(self) -> int:
        return len(self.log_prob)

    def keys(self, levels: int | None = None) -> list[list[bytes]]:
        """Hashable code states, `[row][step]`; levels, as for [`Belief.keys`]."""
        flat = torch.cat([tensor.flatten(2) for tensor in self.state.tensors(levels)], 2)
        return [[step.tobytes() for step in row] for row in flat.to(torch.int32).cpu().numpy()]

    def decode(self, sense: str, num_levels: int | None = None, latents: bool | None = None) -> Tensor:
        """The imagined observations in one sense, `(N, H, ...)`. `latents`: draw them, once, and use them; by default
        where they help (see [`PanModel.decode`]), and with an effort wherever it predicted them."""
        model = self.belief.model
        if latents is None and self.switch is not None:
            latents = True
        is_open = sense in self.conditions and sense not in self.state.latents
        if is_open and (model.senses[sense].latents_help if latents is None else latents):
            self.state.latents[sense] = model.sample_latents(sense, self.conditions[sense], self.state, self.seed)
        return model.decode(self.state, sense, num_levels=num_levels, latents=latents)


@dataclass
class LogProb:
    """log p(o' | o, a) of true next observations, nats `(B, H)` a part: exact for the discrete codes, lower bounds for
    latents and observation (see [`PanModel.log_prob`])."""

    codes: Tensor
    latents: Tensor
    observation: Tensor

    @property
    def total(self) -> Tensor:
        return self.codes + self.latents + self.observation

    @property
    def bits_per_observation(self) -> Tensor:
        return -self.total / torch.log(torch.tensor(2.0))
