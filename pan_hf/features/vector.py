"""Vectors: float32 numbers within bounds, as senses and as actions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pan_hf.features.base import ActionForm, Feature, Form, Measures, View, register_feature

if TYPE_CHECKING:
    from gymnasium import spaces
    from torch import Tensor

FLIPS = ("horizontal", "vertical", "diagonal")

# A bound beyond this says "unbounded" (older environments write float32's maximum for infinity).
_UNBOUNDED = 1e30
# What an unbounded vector is given beyond the recorded values, as a share of their range.
_MARGIN = 0.1
_MOST_NUMBERS = 4096  # of a vector; more are a picture that was not recognised
# Relative to the width of the range: what float32 arithmetic in a policy may overshoot.
_ACTION_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pair:
    """Two numbers of a vector that are a place in the picture, or a motion in it.

    Args:
        across, down (`int`): which number points along the picture's rows, and which along its columns.
        around (`tuple[float, float]`): twice the middle that each of them is mirrored at; 0 for a motion.
    """

    across: int
    down: int
    around: tuple[float, float]


@register_feature
class VectorFeature(Feature):
    """`{"kind": "vector", "dim": D, "low": [...], "high": [...]}`; a bound that is not known yet is None."""

    kind = "vector"
    is_numeric = True
    card_fields = ("dim",)

    @classmethod
    def of_bounds(cls, low: np.ndarray, high: np.ndarray) -> VectorFeature:
        """The feature of numbers within bounds of any shape, flat; an unbounded side is None."""

        def bounds(values: np.ndarray) -> list[float | None]:
            return [None if not abs(value) < _UNBOUNDED else float(value) for value in np.ravel(values)]

        return cls({"kind": cls.kind, "dim": int(np.size(low)), "low": bounds(low), "high": bounds(high)})

    @classmethod
    def describe(cls, part: Any) -> dict[str, Any]:
        return {"kind": cls.kind, "dim": len(part.low), "low": list(part.low), "high": list(part.high)}

    # ---- From an environment or a table

    @classmethod
    def from_space(cls, space: spaces.Space, view: View) -> Form | None:
        from gymnasium.spaces import Box

        # A bare Discrete has no axes; as a sense it is a vector of one number.
        bounds = (space.low, space.high) if isinstance(space, Box) else whole_bounds(space)
        if bounds is None:
            return None
        shape = np.shape(bounds[0])
        if np.size(bounds[0]) > _MOST_NUMBERS:
            raise ValueError(
                f"{space} has {np.size(bounds[0])} numbers; expected at most {_MOST_NUMBERS} in a vector. Pictures "
                "are uint8, or floats within 0..1, -1..1 or 0..255 with 1 or 3 channels; depth has an axis (..., 1). "
                "Make it one by a wrapper, or leave it out with keep"
            )

        def convert(value: Any) -> np.ndarray:
            value = np.asarray(value, dtype=np.float32)
            if value.shape != shape:
                raise ValueError(f"expected shape {shape} ({space}), got {value.shape}")
            if not np.isfinite(value).all():
                raise ValueError(f"expected finite numbers ({space}), got {value.tolist()}")
            return value.reshape(-1)

        return Form(cls.of_bounds(*bounds).description, convert)

    @classmethod
    def from_value(cls, value: Any, view: View) -> Form | None:
        if isinstance(value, str):
            return None
        shape, dim = value.shape, int(np.prod(value.shape))
        if not 1 <= dim <= _MOST_NUMBERS:
            raise ValueError(
                f"expected 1 to {_MOST_NUMBERS} numbers as a vector, got shape {shape}; pictures are uint8, or floats "
                "in [0, 1] with 1 or 3 channels"
            )

        def convert(numbers: Any) -> np.ndarray:
            numbers = numbers.astype(np.float32)
            if numbers.shape != shape:
                raise ValueError(f"expected numbers of shape {shape}, as the first are, got {numbers.shape}")
            if not np.isfinite(numbers).all():
                raise ValueError(f"expected finite numbers, got {numbers.tolist()}")
            return numbers.reshape(-1)

        unbounded = np.full(dim, np.inf)
        return Form(cls.of_bounds(-unbounded, unbounded).description, convert)

    @classmethod
    def action_from_space(cls, space: spaces.Space) -> ActionForm | None:
        from gymnasium.spaces import Box

        if isinstance(space, Box):
            return Numbers(space, space.low, space.high, is_whole=np.issubdtype(space.dtype, np.integer))
        bounds = whole_bounds(space)  # more choices together than one choice holds
        return None if bounds is None else Numbers(space, *bounds, is_whole=True)

    @classmethod
    def action_from_value(cls, value: Any, largest: Callable[[], int]) -> Form | None:
        return cls.from_value(value, View())

    def space(self) -> spaces.Space:
        from gymnasium.spaces import Box

        return Box(*self._limits(), dtype=np.float32)

    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The bounds, infinite where none is known; float32 `(D,)` each."""
        low, high = (
            np.array([unknown if bound is None else bound for bound in self.description[side]], np.float32)
            for side, unknown in (("low", -np.inf), ("high", np.inf))
        )
        return low, high

    # ---- To and from parquet

    def column_type(self) -> Any:
        import datasets

        return datasets.Sequence(datasets.Value("float32"), length=self.description["dim"])

    def blank(self) -> np.ndarray:
        return np.clip(np.zeros(self.description["dim"], np.float32), *self._limits())

    def read(self, column: pa.ChunkedArray) -> np.ndarray:
        dim = self.description["dim"]
        is_list = pa.types.is_fixed_size_list(column.type)
        self._check_type(column, is_list and column.type.list_size == dim)
        values = column.combine_chunks()
        vectors = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), dim)
        if not np.isfinite(vectors).all():
            raise ValueError("expected finite numbers, got NaN or infinity")
        return vectors

    # ---- What a recording says of a column as a whole

    @property
    def is_measured(self) -> bool:
        return None not in [*self.description.get("low", []), *self.description.get("high", [])]

    def summary(self, values: Sequence) -> list:
        """Smallest and largest value of each number: the data's bounds without its rows."""
        return [np.min(values, 0).tolist(), np.max(values, 0).tolist()]

    def joined(self, summaries: Sequence[list]) -> list:
        lowest, highest = zip(*summaries, strict=True)
        return [np.min(lowest, 0).tolist(), np.max(highest, 0).tolist()]

    def bounded(self, name: str, summary: list) -> dict[str, Any]:
        """With the bounds that were declared, and a tenth beyond the data where there are none."""
        lowest, highest = map(np.array, summary)
        width = highest - lowest
        margin = np.where(width > 0, _MARGIN * width, np.maximum(_MARGIN * np.abs(highest), _MARGIN))
        low, high = (
            [float(value) if bound is None else bound for bound, value in zip(declared, values, strict=True)]
            for declared, values in (
                (self.description["low"], lowest - margin),
                (self.description["high"], highest + margin),
            )
        )
        # float32 rounding of a declared bound is no breach of it
        slack = 1e-6 * np.maximum(1, np.abs([*low, *high])).max()
        if np.any(lowest < np.array(low) - slack) or np.any(highest > np.array(high) + slack):
            warnings.warn(
                f"{name} left the bounds its environment declares ({low} to {high}): recorded {lowest.tolist()} to "
                f"{highest.tolist()}; the bounds in meta/info.json are widened to hold it",
                stacklevel=5,
            )
        bounds = {"low": np.minimum(low, lowest).tolist(), "high": np.maximum(high, highest).tolist()}
        return self.description | bounds

    @property
    def common(self) -> dict[str, Any]:
        return {key: value for key, value in self.description.items() if key not in ("low", "high")}

    def merged(self, other: Feature) -> dict[str, Any]:
        def wider(side: str, among: Callable) -> list[float | None]:
            pairs = zip(self.description[side], other.description[side], strict=True)
            return [None if None in pair else among(pair) for pair in pairs]

        return self.description | {"low": wider("low", min), "high": wider("high", max)}

    # ---- To a model

    def make_sense(self, name: str, values: np.ndarray, episode: np.ndarray, tokenizer: Any, options: dict) -> Any:
        from pan_hf.modeling import VectorSense

        return VectorSense(**(self._fields() | options))

    def make_action(self, values: np.ndarray, tokenizer: Any, options: dict) -> Any:
        from pan_hf.modeling import VectorAction

        return VectorAction(**(self._fields() | options))

    def _fields(self) -> dict[str, Any]:
        return {key: self.description[key] for key in ("dim", "low", "high", "unit") if key in self.description}

    def is_playable(self, action: Feature) -> bool:
        return self.description["dim"] == action.description["dim"]

    # ---- Compared

    def reference(self, sense: Any, values: np.ndarray, pad_token_id: int) -> Tensor:
        """What a coordinate is divided by for `rmse_normalised`: its standard deviation, 1 where it never changes."""
        import torch

        spread = np.asarray(values, dtype=np.float32).std(0)
        return torch.as_tensor(np.where(spread > 0, spread, 1.0), dtype=torch.float)

    def measures(self, predicted: Tensor, true: Tensor, last_seen: Tensor, reference: Tensor) -> Measures:
        from pan_hf import metrics

        normalised = metrics.rmse(predicted, true, reference.to(true.device))
        return {"rmse": metrics.rmse(predicted, true), "rmse_normalised": normalised}

    def reconstruction(self, rebuilt: Tensor, true: Tensor) -> Measures:
        from pan_hf import metrics

        return {"reconstruction_rmse": metrics.rmse(rebuilt, true)}

    # ---- Shown

    def label(self, value: Any) -> str:
        return "(" + ", ".join(f"{number:.3g}" for number in np.ravel(value).tolist()) + ")"

    def words(self) -> str:
        low, high = (", ".join(f"{bound:.4g}" for bound in self.description.get(side, ())) for side in ("low", "high"))
        return f"vector of {self.description['dim']}, float32" + (f", from ({low}) to ({high})" if low else "")

    @classmethod
    def sense_words(cls, config: Mapping[str, Any]) -> str:
        return f"vector of {config['dim']}"

    @classmethod
    def action_words(cls, config: Mapping[str, Any]) -> str:
        return f"a vector of {config['dim']}"

    @classmethod
    def blank_sense(cls, config: Mapping[str, Any]) -> str:
        return f"np.zeros({config['dim']}, np.float32)"

    @classmethod
    def blank_actions(cls, config: Mapping[str, Any]) -> str:
        return f"torch.zeros(1, 5, {config['dim']})"

    # ---- Mirrored

    def mirrored(self, values: list, flips: Sequence[str], rule: Sequence[Pair] | None) -> list:
        """Args: rule, the pairs of numbers that are mirrored; all others stay as they are."""
        rows = np.array(values, np.float32)  # (T, D)
        for pair in rule or ():
            for flip, axis, around in zip(FLIPS, (pair.across, pair.down), pair.around, strict=False):
                if flip in flips:
                    rows[:, axis] = np.float32(around) - rows[:, axis]
            if "diagonal" in flips:
                rows[:, [pair.across, pair.down]] = rows[:, [pair.down, pair.across]]
        return list(rows)


def whole_bounds(space: spaces.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """Lowest and highest values of a space of whole choices, in its own shape; None for any other space."""
    from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete

    if isinstance(space, Discrete):
        return np.asarray(space.start), np.asarray(space.start + space.n - 1)
    if isinstance(space, MultiDiscrete):
        return np.asarray(space.start), np.asarray(space.start + space.nvec - 1)
    if isinstance(space, MultiBinary):
        return np.zeros(space.shape, np.int64), np.ones(space.shape, np.int64)
    return None


class Numbers(ActionForm):
    """Actions that are several numbers.

    Args:
        low, high: bounds in the shape of the space.
        is_whole: whether the environment takes whole numbers; actions are rounded then.
    """

    def __init__(self, space: spaces.Space, low: np.ndarray, high: np.ndarray, is_whole: bool):
        from gymnasium.spaces import Box

        self.raw_space, self._is_whole = space, is_whole
        self._low, self._high = (np.ravel(bound).astype(np.float32) for bound in (low, high))
        width = self._high - self._low
        self._slack = np.where(np.isfinite(width), width * _ACTION_TOLERANCE, 0)
        self.space = Box(self._low, self._high, dtype=np.float32)
        self.feature = VectorFeature.of_bounds(low, high).description

    def check(self, action: Any) -> np.ndarray:
        value = np.asarray(action, dtype=np.float32).reshape(-1)
        if value.shape != self._low.shape:
            raise ValueError(f"Expected an action of {self._low.size} numbers ({self.raw_space}), got {action!r}")
        inside = (value >= self._low - self._slack) & (value <= self._high + self._slack) & np.isfinite(value)
        if not inside.all():
            raise ValueError(f"Expected a finite action within {self.raw_space}, got {value.tolist()}")
        value = np.clip(value, self._low, self._high)
        return np.round(value) if self._is_whole else value

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        return action.reshape(self.raw_space.shape).astype(self.raw_space.dtype)
