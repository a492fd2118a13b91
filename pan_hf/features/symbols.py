"""Symbols: one of so many values, or an array of them, such as a grid of cells; kept as whole numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pan_hf.features.base import Feature, Form, Measures, View, register_feature
from pan_hf.features.vector import whole_bounds
from pan_hf.images import WIDEST_GRID, are_symbols, has_picture_shape, taken_as_symbols

if TYPE_CHECKING:
    from gymnasium import spaces
    from torch import Tensor

_MOST_VALUES = 4096  # that one number can have; more are a measure
_FEW_VALUES = 64  # of a grid that is declared as a box of whole numbers
_MOST_CHANNELS = 16  # of a cell
_BYTE_VALUES = 256
_MOST_TOKENS = 256  # state tokens of a grid, from which on several cells share one


@register_feature
class SymbolsFeature(Feature):
    """`{"kind": "symbols", "dims": [...], "num_values": [...], "start": [...]}`, as in `DiscreteSense`."""

    kind = "symbols"
    is_symbolic = True
    card_fields = ("dims", "num_values", "start")

    @classmethod
    def of_bounds(cls, low: np.ndarray, high: np.ndarray) -> SymbolsFeature:
        """The feature of whole numbers within bounds of any shape: a row, where those of a grid differ by cell."""
        low, high = np.asarray(low, np.int64), np.asarray(high, np.int64)
        shape = low.shape if _is_even(low) and _is_even(high) and low.ndim <= 3 else (low.size,)
        kinds = shape[-1] if len(shape) in (1, 3) else 1
        low, high = (bound.reshape(-1, kinds)[0] for bound in (low, high))
        return cls(
            {
                "kind": cls.kind,
                "dims": list(shape),
                "num_values": (high - low + 1).tolist(),
                "start": low.tolist(),
            }
        )

    @classmethod
    def describe(cls, part: Any) -> dict[str, Any]:
        return {
            "kind": cls.kind,
            "dims": list(part.dims),
            "num_values": list(part.num_values),
            "start": list(part.start),
        }

    # ---- From an environment or a table

    @classmethod
    def from_space(cls, space: spaces.Space, view: View) -> Form | None:
        bounds = None if view.symbols is False else _bounds(space, is_asked_for=view.symbols is True)
        if bounds is None and view.symbols:
            raise ValueError(
                f"{space} cannot be symbols, which are whole numbers of at most {_MOST_VALUES} values; leave it out "
                "of symbols"
            )
        return None if bounds is None else cls._form(*bounds, str(space))

    @classmethod
    def from_value(cls, value: Any, view: View) -> Form | None:
        # what has the shape of no picture is a vector: a table does not say that its numbers are names
        if view.symbols is False or isinstance(value, str):
            return None
        if not (has_picture_shape(value.shape) and are_symbols(value)):
            return None
        warnings.warn(
            f"{taken_as_symbols(value)} if they are dark colours, make them floats within 0..1", stacklevel=2
        )
        bounds = np.zeros(value.shape, int), np.full(value.shape, _BYTE_VALUES - 1)
        return cls._form(*bounds, f"as the first, {value.dtype} of shape {value.shape}")

    @classmethod
    def _form(cls, low: np.ndarray, high: np.ndarray, where: str) -> Form:
        """Converts arrays of one shape. Args: where, for errors, what was declared."""
        shape, is_first = np.shape(low), _has_channels_first(np.shape(low))
        if is_first:
            low, high = np.moveaxis(low, 0, -1), np.moveaxis(high, 0, -1)
        feature = cls.of_bounds(low, high)

        def convert(value: Any) -> Any:
            value = np.asarray(value)
            if value.shape != shape or value.dtype.kind not in "iub":
                raise ValueError(f"expected whole numbers of shape {shape} ({where}), got {value.dtype} {value.shape}")
            value = np.moveaxis(value, 0, -1) if is_first else value
            if np.any(value < low) or np.any(value > high):
                raise ValueError(f"expected values within {where}, got {value.min()} to {value.max()}")
            return feature.kept(value)

        return Form(feature.description, convert)

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(self.description["dims"])

    # a reader of the processor says the same: it travels with a checkpoint, and importing it here would import torch
    @property
    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest value, int64, broadcast to the shape of a value."""
        low, count = (np.array(self.description[key]) for key in ("start", "num_values"))
        low, count = (low, count) if self._dims else (low[0], count[0])
        return low, low + count - 1

    @property
    def _dtype(self) -> type:
        """What values are kept as."""
        low, high = self._limits
        return np.uint8 if low.min() >= 0 and high.max() < _BYTE_VALUES else np.int64

    def kept(self, value: np.ndarray) -> Any:
        """A value as it is recorded: an int, or an array in its shape."""
        return np.ascontiguousarray(value, self._dtype).reshape(self._dims) if self._dims else int(value)

    def space(self) -> spaces.Space:
        from gymnasium.spaces import Box, Discrete, MultiDiscrete

        low, high = self._limits
        if not self._dims:
            return Discrete(int(high - low + 1), start=int(low))
        if len(self._dims) == 1:
            return MultiDiscrete(high - low + 1, start=low)
        low, high = (np.broadcast_to(bound, self._dims).astype(self._dtype) for bound in (low, high))
        return Box(low, high, dtype=self._dtype)

    # ---- To and from parquet

    def column_type(self) -> Any:
        import datasets

        value = datasets.Value(np.dtype(self._dtype).name)
        return datasets.Sequence(value, length=int(np.prod(self._dims))) if self._dims else value

    def stored(self, value: Any) -> Any:
        return np.ravel(value) if self._dims else value

    def blank(self) -> Any:
        return self.kept(np.broadcast_to(self._limits[0], self._dims))

    def read(self, column: pa.ChunkedArray) -> np.ndarray:
        kind, size = column.type, int(np.prod(self._dims))
        fits = pa.types.is_fixed_size_list(kind) and kind.list_size == size if self._dims else True
        self._check_type(column, fits and pa.types.is_integer(kind.value_type if self._dims else kind))
        values = column.combine_chunks()
        rows = (values.flatten() if self._dims else values).to_numpy(zero_copy_only=False)
        rows = rows.reshape(len(column), *self._dims)
        low, high = self._limits
        if np.any(rows < low) or np.any(rows > high):
            raise ValueError(f"expected values of {self.words()}, got {rows.min()} to {rows.max()}")
        return rows

    def recorded(self, rows: Any) -> list:
        return list(rows) if self._dims else rows.tolist()

    # ---- To a model

    def make_sense(self, name: str, values: np.ndarray, episode: np.ndarray, tokenizer: Any, options: dict) -> Any:
        from pan_hf.modeling import DiscreteSense

        fields = {key: self.description[key] for key in ("dims", "num_values", "start")}
        return DiscreteSense(**(fields | {"spatial_merge_size": _merge_size(self._dims)} | options))

    # ---- Compared

    def measures(self, predicted: Tensor, true: Tensor, last_seen: Tensor, reference: Any) -> Measures:
        import torch

        from pan_hf import metrics

        right, changed = (predicted == true).reshape(len(true), -1), (true != last_seen).reshape(len(true), -1)
        return {
            "exact_observation": metrics.mean_of(right.all(1)),
            "value_accuracy": ("mean", torch.stack([right.sum(1), torch.ones_like(right).sum(1)], -1)),
            "value_accuracy_changed": ("mean", torch.stack([(right & changed).sum(1), changed.sum(1)], -1)),
        }

    def error(self, predicted: Tensor, true: Tensor) -> Tensor:
        return (predicted != true).float().reshape(len(true), -1).mean(1)

    # ---- Shown

    @property
    def is_shown(self) -> bool:
        return len(self._dims) >= 2 and self._dims[0] > 1

    def to_frames(self, values: Tensor) -> np.ndarray:
        from pan_hf.modeling import DiscreteSense
        from pan_hf.modeling.codecs_pan import build_codec

        codec = build_codec(DiscreteSense(**self.description))
        return codec.to_picture(values).movedim(-3, -1).cpu().numpy()

    def label(self, value: Any) -> str:
        values = np.ravel(value).tolist()
        return "(" + ", ".join(map(str, values)) + ")" if self._dims else str(values[0])

    def words(self) -> str:
        return self.sense_words(self.description)

    @classmethod
    def sense_words(cls, config: Mapping[str, Any]) -> str:
        low, count = config["start"], config["num_values"]
        spans = dict.fromkeys(f"{first} to {first + many - 1}" for first, many in zip(low, count, strict=True))
        shown = list(spans) if len(spans) <= 4 else [*list(spans)[:3], "..."]
        where = f"{'x'.join(map(str, config['dims']))} symbols" if config["dims"] else "a symbol"
        return f"{where} of {', '.join(shown)}"

    @classmethod
    def blank_sense(cls, config: Mapping[str, Any]) -> str:
        start = config["start"] if len(set(config["start"])) > 1 else config["start"][0]
        return f"np.full({tuple(config['dims'])}, {start})"


def _bounds(space: spaces.Space, is_asked_for: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """The least and the greatest values of a space of symbols, in its own shape; None for any other.

    Args:
        is_asked_for: of a box, too, that says of itself no more than that it holds whole numbers.
    """
    from gymnasium.spaces import Box

    bounds = whole_bounds(space)
    if bounds is None and isinstance(space, Box) and space.dtype.kind in "iub":
        is_grid = is_asked_for or _is_declared_grid(space)
        bounds = (space.low.astype(np.int64), space.high.astype(np.int64)) if is_grid else None
    if bounds is None or not np.size(bounds[0]):
        return None
    return None if (bounds[1].astype(float) - bounds[0] >= _MOST_VALUES).any() else bounds


def _is_declared_grid(box: spaces.Box) -> bool:
    """Whether a box of whole numbers is a grid of few values by what it says of itself; of bytes from 0 to 1, black
    and white, and of bytes to 255 it is not."""
    shape, low, high = box.shape, box.low.astype(float), box.high.astype(float)
    shape = (*shape[1:], shape[0]) if _has_channels_first(shape) else shape
    if len(shape) not in (2, 3) or max(shape[:2]) > WIDEST_GRID or max(shape[2:], default=1) > _MOST_CHANNELS:
        return False
    is_two_toned = box.dtype == np.uint8 and (low.min(), high.max()) == (0, 1) and shape[2:] in ((), (1,), (3,))
    return (high - low < _FEW_VALUES).all() and not is_two_toned


def _has_channels_first(shape: Sequence[int]) -> bool:
    """Whether the first of three axes is that of channels, the smallest by far."""
    return len(shape) == 3 and shape[0] <= _MOST_CHANNELS and 2 * shape[0] <= min(shape[1:])


def _is_even(bounds: np.ndarray) -> bool:
    """Whether bounds are the same in all cells of a grid, or in all cells of each channel."""
    cells = bounds.reshape(-1, bounds.shape[-1]) if bounds.ndim == 3 else bounds.reshape(-1, 1)
    return bounds.ndim < 2 or bool((cells == cells[0]).all())


def _merge_size(dims: Sequence[int]) -> int:
    """Cells on the side of a state token: 1, or as few as keep a large grid small."""
    if len(dims) < 2:
        return 1
    sides = (side for side in range(1, min(dims[:2]) + 1) if not (dims[0] % side or dims[1] % side))
    return next((side for side in sides if dims[0] * dims[1] <= _MOST_TOKENS * side**2), 1)
