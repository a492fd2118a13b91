"""The same random numbers for a row of the batch, in however many processes it is trained.

All processes have the same seed, so each would draw the same noise for its own first row, and none would train as one
process with the whole batch does. Here whatever is drawn with rows in front is drawn for the rows of all processes,
and each takes its own. That covers `torch.rand`, `randn`, `randint`, their `_like` forms, `multinomial` and dropout of
the default generator; a draw with a generator of its own is left alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_BY_SHAPE = {torch.rand, torch.randn}
_LIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}


def row_draws(accelerator, batch: dict) -> AbstractContextManager:
    """While it is open, draws are those of one process with the whole batch. Args: batch, of this process."""
    if accelerator.num_processes == 1:
        return nullcontext()
    return RowDraws(accelerator.process_index, accelerator.num_processes, _rows(batch))


def _rows(batch) -> int:
    """Rows of a batch: of its first tensor, however deep."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return len(batch)


class RowDraws(TorchFunctionMode):
    """Draws for the rows of all processes, and takes those of this one.

    Args:
        index, count (`int`): of this process, of all.
        rows (`int`): of a batch; a draw whose first size is a multiple of it is one for rows.
    """

    def __init__(self, index: int, count: int, rows: int):
        super().__init__()
        self.index, self.count, self.rows = index, count, rows

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if func in _BY_SHAPE:
            return self._by_shape(func, args, kwargs)
        if func in _LIKE:
            given = {"dtype": args[0].dtype, "device": args[0].device} | kwargs
            return self._by_shape(_LIKE[func], (args[0].shape,), given)
        if func is torch.randint:
            return self._randint(args, kwargs)
        if func is torch.multinomial and args[0].dim() == 2 and (kwargs.get("num_samples") or args[1]) == 1:
            return self._multinomial(args[0])
        if func is torch.nn.functional.dropout:
            return self._dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _is_for_rows(self, shape) -> bool:
        return len(shape) > 0 and shape[0] > 0 and shape[0] % self.rows == 0

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn.chunk(self.count)[self.index]

    def _by_shape(self, func, args: tuple, kwargs: dict) -> Tensor:
        shape = args[0] if args and isinstance(args[0], (tuple, list)) else args
        if not self._is_for_rows(shape):
            return func(*args, **kwargs)
        return self._own(func((shape[0] * self.count, *shape[1:]), **kwargs))

    def _randint(self, args: tuple, kwargs: dict) -> Tensor:
        *bounds, shape = args
        if not self._is_for_rows(shape):
            return torch.randint(*args, **kwargs)
        many = (shape[0] * self.count, *shape[1:])
        return self._own(torch.randint(*bounds, many, **kwargs))  # type: ignore[call-overload]

    def _multinomial(self, chances: Tensor) -> Tensor:
        """One draw a row, as `torch.multinomial` itself makes it: the largest of chances over exponential noise."""
        if not self._is_for_rows(chances.shape):
            return torch.multinomial(chances, 1)
        noise = torch.empty(len(chances) * self.count, chances.shape[1], dtype=chances.dtype, device=chances.device)
        return (chances / self._own(noise.exponential_())).argmax(1, keepdim=True)

    def _dropout(self, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not (training and p and self._is_for_rows(values.shape)):
            return torch.nn.functional.dropout(values, p, training, inplace)
        ones = torch.ones(len(values) * self.count, *values.shape[1:], dtype=values.dtype, device=values.device)
        return values * self._own(torch.nn.functional.dropout(ones, p))
