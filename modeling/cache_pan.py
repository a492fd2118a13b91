"""Keys and values of what came before: made when they are first asked for, shared, and chosen by row.

Shapes: L = positions, D = width of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor
from transformers import DynamicCache


class FilledOnUse:
    """A field that holds a cache, or a function that fills one and is called when the field is first read: whoever
    only looks up what it sees runs no backbone."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, holder: object | None, owner: type | None = None) -> DynamicCache | None:
        if holder is None:
            raise AttributeError(self._name)  # so the field of a dataclass has no default
        held = vars(holder)[self._name]
        if callable(held):
            held = vars(holder)[self._name] = held()
        return held

    def __set__(self, holder: object, held: DynamicCache | Callable[[], DynamicCache | None] | None) -> None:
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


def padded_from(values: Tensor | None, like: Tensor, rows: int, start: int) -> Tensor:
    """Keys or values `(rows, heads, L, D)` with zeros behind the first `start` positions, so that there are as many
    positions as in `like`; all zeros without any."""
    padded = like.new_zeros(rows, *like.shape[1:])
    if values is not None:
        padded[:, :, :start] = values[:, :, :start]
        padded[:, :, padded.shape[2] - (values.shape[2] - start) :] = values[:, :, start:]
    return padded
