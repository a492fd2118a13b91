"""What the model sees, does and believes: `Observation`, `Actions`, `State`, `Belief`.

A belief is the encoded current state plus the backbone's cache of what came before it; it is cheap to branch, because
the cache holds the trunk of earlier steps and never the current state itself, which enters together with an action.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import Tensor
from transformers import DynamicCache

from .display_pan import as_pictures, code_shapes, picture_senses, strip_html
from .sense_configuration_pan import ACTION
from .validation_pan import PRESENT, action_shape, action_tensor, has_action_shape, whole

if TYPE_CHECKING:
    from .modeling_pan import PanModel

Rows = TypeVar("Rows", Tensor, "Actions")

ABSENT = -1  # a code that is not known; absent latents are not a number


class Observation(Mapping):
    """What was observed, by sense, for a batch of B and T frames: tensors `(B, T, ...)`, and constant text
    `(B, max_length)`.

    A sense need not be there in every frame. Where it may be absent, `<sense>.present` `(B, T)` bool says in which
    frames it is there; its values in the others mean nothing. An observation is a mapping like the plain one that the
    processor returns, so whatever moves the one moves the other.

    Args:
        values: tensors by name.
        constant: names of the senses that hold for a whole episode and have no axis of time; by default those of two
            dimensions.
    """

    def __init__(self, values: Mapping[str, Tensor], constant: Collection[str] | None = None):
        self._values = dict(values)
        if constant is None:
            constant = [name for name in self.senses if self._values[name].dim() == 2]
        self.constant = frozenset(constant)

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def senses(self) -> list[str]:
        return [name for name in self._values if not name.endswith(PRESENT)]

    @property
    def changing(self) -> Observation:
        """Without the senses that hold for a whole episode."""
        return Observation({name: value for name, value in self.items() if name not in self.constant}, ())

    @property
    def shape(self) -> tuple[int, int]:
        """B and T, of the first sense that has frames."""
        batch, time = next(self._values[name].shape[:2] for name in self.senses if name not in self.constant)
        return batch, time

    def frames(self, start: int | None = None, stop: int | None = None) -> Observation:
        """The frames from `start` up to `stop`, as in a slice; constant text whole."""
        return self._map(lambda name, value: value if name in self.constant else value[:, start:stop])

    def rows(self, index: Tensor | slice) -> Observation:
        """Some rows."""
        return self._map(lambda _, value: value[index])

    def to(self, *args, **kwargs) -> Observation:
        """As of tensors."""
        return self._map(lambda _, value: value.to(*args, **kwargs))

    def _map(self, function: Callable[[str, Tensor], Tensor]) -> Observation:
        return Observation({name: function(name, value) for name, value in self.items()}, self.constant)

    def present(self, sense: str) -> Tensor | None:
        """In which frames a sense is there, `(B, T)` bool; None: in all of them."""
        return self._values.get(f"{sense}{PRESENT}")

    def seen(self, sense: str) -> Tensor:
        """The frames in which a sense is there, of all rows and times one after the other, `(N, ...)`."""
        values, mask = self._values[sense].flatten(0, 1), self.present(sense)
        return values if mask is None else values[mask.flatten()]

    def age(self, sense: str) -> Tensor:
        """How many frames ago a sense was last there, `(B, T)` int64: 0 where it is; where it has not been there yet,
        one more than there are frames before."""
        mask = self.present(sense)
        if mask is None:
            return torch.zeros(self.shape, dtype=torch.long, device=self._values[sense].device)
        index = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        return index - torch.where(mask, index, -1).cummax(1).values


class Actions:
    """Actions of several parts by name: tensors of one leading shape, `(B, T)` or `(B,)`, indexed, cut and flattened
    like a tensor, all parts alike. An action of one part is a plain tensor."""

    def __init__(self, parts: Mapping[str, Tensor]):
        self.parts = dict(sorted(parts.items()))

    def map(self, function: Callable[[Tensor], Tensor]) -> Actions:
        """Applies a function to every part."""
        return Actions({name: function(part) for name, part in self.parts.items()})

    def __getitem__(self, index) -> Actions:
        return self.map(lambda part: part[index])

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    @property
    def shape(self) -> tuple[int, ...]:
        """B and T."""
        return tuple(next(iter(self.parts.values())).shape[:2])

    @property
    def device(self) -> torch.device:
        return next(iter(self.parts.values())).device

    def to(self, device: torch.device) -> Actions:
        return self.map(lambda part: part.to(device))

    def flatten(self, start: int, end: int) -> Actions:
        return self.map(lambda part: part.flatten(start, end))

    def repeat_interleave(self, count: int, dim: int) -> Actions:
        return self.map(lambda part: part.repeat_interleave(count, dim))

    def new_zeros(self, rows: int, *_) -> Actions:
        return self.map(lambda part: part.new_zeros(rows, *part.shape[1:]))


@overload
def as_action(action: Tensor | Mapping[str, Tensor] | Actions) -> Tensor | Actions: ...
@overload
def as_action(action: None) -> None: ...
def as_action(action: Tensor | Mapping[str, Tensor] | Actions | None) -> Tensor | Actions | None:
    """Parts by name as [`Actions`]; one part, by its name or not, as a tensor. Arrays and lists of numbers become
    tensors. Raises ValueError for anything else."""
    if isinstance(action, Mapping):
        parts = {name: _as_tensor(part) for name, part in action.items()}
        return parts[ACTION] if set(parts) == {ACTION} else Actions(parts)
    return action if action is None or isinstance(action, Actions) else _as_tensor(action)


def _as_tensor(action: Any) -> Tensor:
    if isinstance(action, Tensor):
        return action
    try:
        return torch.as_tensor(action)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"An action is a tensor, got {type(action).__name__} ({error}); the processor makes one, also of names: "
            '`processor(action=...)["action"]`.'
        ) from error


def checked_actions(
    model: PanModel,
    what: str,
    actions: Tensor | Mapping[str, Tensor] | Actions,
    expected: str,
    rows: int,
    second: str = "H",
) -> Tensor | Actions:
    """Actions `(rows, H, ...)` as tensors on the model's device, those of several parts as [`Actions`]; arrays,
    nested lists and names of actions become tensors. Raises ValueError, with what is `expected`, unless they are
    those of the model."""
    described, parts = model.config.actions, actions.parts if isinstance(actions, Actions) else actions
    parts = parts if isinstance(parts, Mapping) else {ACTION: parts}
    if set(parts) != set(described):
        raise ValueError(f"`{what}` must have the parts {list(described)} by name, got {list(parts)}.")
    names = {name: f"`{what}`" if set(parts) == {ACTION} else f"`{what}[{name!r}]`" for name in parts}
    tensors = {name: action_tensor(names[name], described[name], part, model.device) for name, part in parts.items()}
    steps = {name: part.shape[1:2] for name, part in tensors.items()}
    for name, part in tensors.items():
        shape = f"{action_shape(described[name], second)} {expected}"
        if not has_action_shape(described[name], part) or len(part) != rows:
            raise ValueError(f"{names[name]} must be {shape}; got {tuple(part.shape)}.")
        if steps[name] != min(steps.values()):
            counts = {part: int(*size) for part, size in steps.items()}
            raise ValueError(f"{names[name]} must hold as many as any other part; actions a row are {counts}.")
        if not described[name].is_coded and part.numel():
            low, high, size = part.min().item(), part.max().item(), model.config.vocab_size
            if part.is_floating_point() or low < 0 or high >= size:
                raise ValueError(f"{names[name]} must be ids of words, from 0 to {size - 1}; got {low} to {high}.")
        try:
            described[name].check_values(part)
        except ValueError as error:
            raise ValueError(f"{names[name]}: {error}") from error
    return tensors[ACTION] if set(parts) == {ACTION} else Actions(tensors)


def action_tensors(action: Tensor | Actions | list[Tensor]) -> list[Tensor]:
    """The parts of an action, in order; a list of them passes through."""
    if isinstance(action, Actions):
        return list(action.parts.values())
    return action if isinstance(action, list) else [action]


def cat_actions(actions: list[Tensor | Actions]) -> Tensor | Actions:
    """Actions of several batches as one."""
    first = actions[0]
    if not isinstance(first, Actions):
        return torch.cat([action for action in actions if not isinstance(action, Actions)])
    several = [action for action in actions if isinstance(action, Actions)]
    return Actions({name: torch.cat([action.parts[name] for action in several]) for name in first.parts})


@dataclass
class State:
    """An encoded observation, with any leading shape (`(B,)` or `(B, T)`).

    Any prefix of blocks is a state: where only coarse levels are known, finer codes are `ABSENT`, code by code. A
    sense that was absent has `ABSENT` codes of every level, and an absent text `ABSENT` words.

    Args:
        codes: for each image or vector sense, a list over levels (coarse first) of int64 `(..., num_codes)`.
        latents: for each sense that has them, float `(..., num_state_tokens, latent_dim)`; may be empty.
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

    def present(self, sense: str) -> Tensor:
        """In which states a sense is there, of leading shape, bool: absent are states without any code of level 0."""
        coarsest = self.codes[sense][0] if sense in self.codes else self.text[sense]
        return (coarsest >= 0).any(-1)

    def without_latents(self) -> State:
        return replace(self, latents={})

    @staticmethod
    def combine(states: list[State], join: Callable[[list[Tensor]], Tensor]) -> State:
        """Joins the tensors of several states, e.g. with `torch.cat` or `torch.stack`. Latents that some of them lack
        are absent there."""
        first = states[0]
        examples = {name: latents for state in states for name, latents in state.latents.items()}
        return State(
            {
                name: [join([s.codes[name][level] for s in states]) for level in range(len(levels))]
                for name, levels in first.codes.items()
            },
            {name: join([s._latents_like(name, latents) for s in states]) for name, latents in examples.items()},
            {name: join([s.text[name] for s in states]) for name in first.text},
        )


def _as_int32(values: Tensor) -> Tensor:
    """Ids `(B, ...)`, or the bits of floats, as rows `(B, n)`; minus zero is zero."""
    values = values.reshape(len(values), -1)
    return (values.float() + 0.0).view(torch.int32) if values.is_floating_point() else values.to(torch.int32)


class LazyCache:
    """A field that holds a cache, or a function of its belief that fills one and is called when the field is first
    read: whoever only looks up what it sees runs no backbone."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, holder: object | None, owner: type | None = None) -> DynamicCache | None:
        if holder is None:
            raise AttributeError(self._name)  # so the field of a dataclass has no default
        held = vars(holder)[self._name]
        if callable(held):
            held = vars(holder)[self._name] = held(holder)
        return held

    def __set__(self, holder: object, held: DynamicCache | Callable[[Belief], DynamicCache | None] | None) -> None:
        vars(holder)[self._name] = held


def select_cache(cache: DynamicCache | None, index: Tensor) -> DynamicCache | None:
    """A new cache with the chosen rows of the batch; the old one is left as it was."""
    if cache is None:
        return None
    selected = fork_cache(cache)
    for layer in selected.layers:
        layer.keys, layer.values = layer.keys[index], layer.values[index]
    return selected


def fork_cache(cache: DynamicCache | None) -> DynamicCache:
    """A cache that can be appended to while the old one stays as it is; tensors are shared until then."""
    forked = DynamicCache()
    if cache is not None:
        forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked


def _blank_rows(rows: int, like: Rows) -> Rows:
    """Zeros of another number of rows."""
    return like.new_zeros(rows, *like.shape[1:])


def _as_rows(index: Any, count: int) -> Tensor:
    """Numbers of rows, int64 `(n,)` from 0 to `count - 1`; negative ones count from the end. Raises ValueError for
    anything else."""
    given = index
    try:
        index = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"Rows are selected by their numbers, an index `(n,)`, got {index!r:.60}.") from error
    if index.dtype == torch.bool:
        raise ValueError("Select rows by their numbers, not by a mask; `mask.nonzero().squeeze(-1)` makes them.")
    is_index = index.dim() == 1 and not (index.is_floating_point() or index.is_complex())
    if index.numel() and not (is_index and -count <= int(index.min()) <= int(index.max()) < count):
        raise ValueError(
            f"Rows are whole numbers `(n,)` from 0 to {count - 1}, or from -1 to {-count} counted from the end; got "
            f"{given!r:.60}."
        )
    return index.long() % count


def _padded_from(values: Tensor | None, like: Tensor, rows: int, start: int) -> Tensor:
    """Keys or values `(rows, heads, L, D)` with zeros behind the first `start` positions, so that there are as many
    positions as in `like`; all zeros without any."""
    padded = _blank_rows(rows, like)
    if values is not None:
        padded[:, :, :start] = values[:, :, :start]
        padded[:, :, padded.shape[2] - (values.shape[2] - start) :] = values[:, :, start:]
    return padded


@dataclass(repr=False)
class Belief:
    """The encoded current state and the memory of earlier steps, for a batch of B.

    Rows may be of different age: some hold fewer earlier steps than others, as after an episode that began anew. Their
    `history` and their cache are padded on the left, and no row attends to the padding.

    Args:
        state: the current state, leading shape `(B,)`.
        history: the earlier steps in the cache, oldest first: their states `(B,)` and encoded actions.
        prefix: ids of the episode's constant text `(B, prefix_length)`, or None.
        cache: keys and values of the prefix and of the earlier steps; None where there is neither. It may be given as
            a function of the belief that makes them, which is called when they are first asked for.
        model: the model that holds it, for `decode`.
        growths: outcomes of the learning that [`PanModel.observe`] tried.
        ages: how many earlier steps each row holds, the newest of `history`, `(B,)` int64 with a maximum of
            `len(history)`; None where all rows hold all of them.
    """

    state: State
    history: list[tuple[State, Tensor | Actions]]
    prefix: Tensor | None
    cache: LazyCache = LazyCache()
    model: PanModel = field(repr=False, default=None)  # type: ignore[assignment]  # beliefs are made by models
    growths: list = field(repr=False, default_factory=list)
    ages: Tensor | None = None

    def __len__(self) -> int:
        return len(self.state.tensors()[0])

    def __repr__(self) -> str:
        texts = "".join(f", {name} in words" for name in self.state.text)
        mission = "" if self.prefix is None else f", a constant text of {self.prefix.shape[1]} tokens"
        return (
            f"Belief({len(self)} rows: {code_shapes(self.codes)}{texts}{mission}; "
            f"{len(self.history)} earlier steps in {self.num_cached} cached positions)"
        )

    def _repr_html_(self) -> str:
        names = picture_senses(self.model)
        return strip_html({name: as_pictures(self.model, name, self.decode(name)) for name in names}, repr(self))

    @property
    def codes(self) -> dict[str, list[Tensor]]:
        return self.state.codes

    def keys(self, levels: int | None = None, steps: int | None = None) -> list[bytes]:
        """One hashable key a row. Two keys are equal if and only if everything discrete that a prediction depends on
        is equal: the codes and the words of the current state, the constant text, and the states and actions of the
        earlier steps that are held. Latents are left out, since what is imagined has none.

        Args:
            levels (`int`, *optional*): a coarser key, of so many levels, the coarsest first; it leaves out the finer
                codes of the current and of the earlier states. Equal keys are the same abstract state.
            steps (`int`, *optional*): a coarser key, of the newest so many earlier steps; it leaves out the older
                ones. 0: the present alone, whatever led there.
        """
        levels = None if levels is None else whole("levels", levels, 1)
        steps = len(self.history) if steps is None else whole("steps", steps)
        held = self.history[max(0, len(self.history) - steps) :]
        now = self.state.tensors(levels) + ([] if self.prefix is None else [self.prefix])
        before = [[*state.tensors(levels), *action_tensors(action)] for state, action in reversed(held)]
        present, *past = (torch.cat([_as_int32(part) for part in parts], 1) for parts in [now, *before])
        rows = torch.cat([present, *past], 1).cpu().numpy()
        if self.ages is None or not held:
            return [row.tobytes() for row in rows]
        counts = self.ages.clamp(max=len(held)).tolist()
        ends = [present.shape[1] + count * past[0].shape[1] for count in counts]
        return [row[:end].tobytes() for row, end in zip(rows, ends, strict=True)]

    # ---- what is cached

    @property
    def num_cached(self) -> int:
        """Positions in the cache."""
        return 0 if self.cache is None else self.cache.get_seq_length()

    @property
    def _prefix_length(self) -> int:
        return 0 if self.prefix is None else self.prefix.shape[1]

    @property
    def _step_length(self) -> int:
        """Positions of an earlier step in the cache."""
        return (self.num_cached - self._prefix_length) // max(1, len(self.history))

    def visible(self, pad_token_id: int) -> Tensor | None:
        """Which of the first cached positions a row attends to, bool `(B, prefix_length)`, or `(B, num_cached)` where
        rows are of different age; all rows attend to the positions behind these. None: to every position."""
        words = None if self.prefix is None else self.prefix != pad_token_id
        if self.ages is None:
            return words
        steps = self._is_held().repeat_interleave(self._step_length, 1)
        return steps if words is None else torch.cat([words, steps], 1)

    def next_position(self) -> int | Tensor:
        """The first position id behind the cache, `(B, 1)` where rows are of different age."""
        if self.ages is None:
            return self.num_cached
        return (self._prefix_length + self.ages * self._step_length).unsqueeze(1)

    def _is_held(self) -> Tensor:
        """Which steps of the history each row holds, `(B, len(history))` bool."""
        assert self.ages is not None  # or all rows hold all of them
        index = torch.arange(len(self.history), device=self.ages.device)
        return index >= len(self.history) - self.ages.unsqueeze(1)

    # ---- rows

    def select(self, index: Tensor) -> Belief:
        """The rows `index` (int64 `(N,)`, repeats allowed, negative numbers from the end) as a belief of its own.

        Raises:
            ValueError: there is no such row.
        """
        index = _as_rows(index, len(self))
        chosen = replace(
            self,
            state=self.state.map(lambda tensor: tensor[index]),
            history=[(state.map(lambda tensor: tensor[index]), action[index]) for state, action in self.history],
            prefix=None if self.prefix is None else self.prefix[index],
            cache=select_cache(self.cache, index),
            ages=None if self.ages is None else self.ages[index],
        )
        return chosen._without_what_nobody_holds()

    def _without_what_nobody_holds(self) -> Belief:
        """The same with a history as long as the oldest row's."""
        if self.ages is None or len(self.ages) == 0:
            return self
        youngest, oldest = (int(age) for age in self.ages.aminmax())
        dropped, cache = len(self.history) - oldest, self.cache
        if dropped and cache is not None:
            start, cache = self._prefix_length, fork_cache(cache)
            end = start + dropped * self._step_length
            for layer in cache.layers:
                layer.keys, layer.values = (
                    torch.cat([part[:, :, :start], part[:, :, end:]], 2) for part in (layer.keys, layer.values)
                )
            cache = cache if end < self.num_cached or start else None
        ages = None if youngest == oldest else self.ages
        return replace(self, history=self.history[dropped:], cache=cache, ages=ages)

    def repeat(self, count: int) -> Belief:
        """Each row `count` times, one after the other: row `b` becomes rows `b * count` to `(b + 1) * count - 1`."""
        return self.select(torch.arange(len(self)).repeat_interleave(whole("count", count, 1)))

    def put(self, rows: Tensor, other: Belief) -> Belief:
        """This belief with other rows in some places: where an episode of a batch has ended, another begins.

        Args:
            rows (int64 `(n,)`): the rows to replace, each once; negative numbers count from the end.
            other: their replacements, n rows of the same model, however many earlier steps they hold.

        Raises:
            ValueError: a row is out of range or named twice, or `other` has another number of rows.
        """
        if not isinstance(other, Belief) or other.model is not self.model:
            raise ValueError(f"`other` must be a belief of the same model, got {other!r}.")
        rows = _as_rows(rows, len(self))
        if not len(rows) == len(other) == len(set(rows.tolist())):
            raise ValueError(
                f"`rows` must name {len(other)} different rows, one for each of the other belief; got {rows.tolist()}."
            )
        index = torch.arange(len(self), device=rows.device)
        index[rows] = len(self) + torch.arange(len(other), device=rows.device)
        return Belief.cat([self, other]).select(index)

    @staticmethod
    def cat(beliefs: list[Belief]) -> Belief:
        """Beliefs of one model as one batch. Where some hold fewer earlier steps than others, rows are of different
        age."""
        longest = max(beliefs, key=lambda belief: belief.num_cached)
        padded = [belief._padded_like(longest) for belief in beliefs]
        cache = None
        if longest.cache is not None:
            cache = DynamicCache()
            for number in range(len(longest.cache.layers)):
                layers = [belief.cache.layers[number] for belief in padded if belief.cache is not None]
                cache.update(torch.cat([la.keys for la in layers]), torch.cat([la.values for la in layers]), number)
        history = [
            (State.combine([state for state, _ in steps], torch.cat), cat_actions([action for _, action in steps]))
            for steps in zip(*(belief.history for belief in padded), strict=True)
        ]
        prefixes = [belief.prefix for belief in padded if belief.prefix is not None]
        state = State.combine([belief.state for belief in padded], torch.cat)
        prefix, ages = (
            torch.cat(prefixes) if prefixes else None,
            torch.cat([belief.ages for belief in padded if belief.ages is not None]),
        )
        joined = replace(longest, state=state, history=history, prefix=prefix, cache=cache, ages=ages)
        return joined._without_what_nobody_holds()

    def _padded_like(self, longest: Belief) -> Belief:
        """This belief with as long a history and cache as another, and with ages."""
        rows, missing = len(self), len(longest.history) - len(self.history)
        ages = self.ages
        if ages is None:
            ages = torch.full((rows,), len(self.history), device=self.state.tensors()[0].device)
        if missing == 0:
            return replace(self, ages=ages)
        fillers = [
            (state.map(partial(_blank_rows, rows)), _blank_rows(rows, action))  # type: ignore[type-var]  # either of the two
            for state, action in longest.history[:missing]
        ]
        start, cache = self._prefix_length, fork_cache(longest.cache)
        for number, layer in enumerate(cache.layers):
            own = None if self.cache is None else self.cache.layers[number]
            layer.keys = _padded_from(None if own is None else own.keys, layer.keys, rows, start)
            layer.values = _padded_from(None if own is None else own.values, layer.values, rows, start)
        return replace(self, history=[*fillers, *self.history], cache=cache, ages=ages)

    def decode(self, sense: str, num_levels: int | None = None, latents: bool | None = None) -> Tensor:
        """The current observation in one sense; see [`PanModel.decode`]."""
        return self.model.decode(self.state, sense, num_levels=num_levels, latents=latents)
