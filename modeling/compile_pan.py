"""An imagined step, called as it is or compiled.

How a step goes on depends on what was found: how many places are looked at, which rows go on. Between these decisions
lie pure functions of tensors: the change predictor, a run of the backbone, the readout of a level, the outcome. They
are all of the arithmetic, and each of them is one graph without a break. What they are given is of two kinds: sizes of
the model, which are fixed in a graph, and sizes of the moment (rows, selected tokens, what is cached), which are
symbols in it, so that a graph is made once for one row and once for several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from transformers import DynamicCache

from .layout_pan import TokenSelection
from .state_pan import State

LEAST_SIZE = 2  # compiled, one of something that varies is another graph than several


class CompiledStep:
    """Calls the functions that a step is made of, see [`PanModel.compile_step`].

    Args:
        options: of `torch.compile`; None to call every function as it is.
    """

    def __init__(self, options: dict | None = None):
        self.options = options
        self._compiled: dict[tuple, Callable] = {}

    @property
    def is_compiled(self) -> bool:
        return self.options is not None

    @property
    def least_size(self) -> int:
        """The least size that something of the moment is given: what it has, unless that costs a graph of its own."""
        return LEAST_SIZE if self.is_compiled else 1

    def __call__(
        self, function: Callable, *args, which: tuple = (), rows: int = 1, sizes: Iterable[tuple[Tensor, int]] = ()
    ):
        """What `function(*args)` gives.

        Args:
            which: what tells this use of the function from others, whose graphs are their own.
            rows (`int`): N; tensors with so many rows can have any number of them, from two on.
            sizes: `(tensor, dimension)`, what else is a size of the moment.
        """
        if self.options is None:
            return function(*args)
        key = (function, *which)
        if key not in self._compiled:
            options = {"fullgraph": True, "isolate_recompiles": True} | self.options
            self._compiled[key] = torch.compile(function, **options)
        varying = {id(tensor): dimension for tensor, dimension in sizes}
        return self._compiled[key](*(_as_wanted(given, rows, varying) for given in args))

    def __getstate__(self) -> dict:
        return {"options": self.options, "_compiled": {}}  # graphs are made anew by whoever gets a copy


def _as_wanted(given, rows: int, varying: dict[int, int]):
    """An argument with every size of the moment marked as one: rows, and of some tensors, by id, another dimension.
    None is a view, of which the sizes of what it looks into would count too."""
    if isinstance(given, Tensor):
        return _marked(given, {0: rows} | ({varying[id(given)]: None} if id(given) in varying else {}))
    if isinstance(given, dict):
        return {name: _as_wanted(part, rows, varying) for name, part in given.items()}
    if isinstance(given, (list, tuple)):
        return type(given)(_as_wanted(part, rows, varying) for part in given)
    if isinstance(given, State):
        return given.map(lambda tensor: _as_wanted(tensor, rows, varying))
    if isinstance(given, TokenSelection):
        return TokenSelection(*_as_wanted((given.index, given.valid), rows, varying))
    if isinstance(given, DynamicCache):  # a fork of the belief's
        for layer in given.layers:
            layer.keys, layer.values = _as_wanted((layer.keys, layer.values), rows, varying)
    return given


def _marked(tensor: Tensor, sizes: dict[int, int | None]) -> Tensor:
    """The tensor with some dimensions marked, those whose size is the one that is given, or any from two on."""
    if tensor._is_view():
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    for dimension, size in sizes.items():
        if dimension < tensor.dim() and LEAST_SIZE <= tensor.shape[dimension] == (size or tensor.shape[dimension]):
            torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    return tensor
