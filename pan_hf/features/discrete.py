"""Discrete actions: one of `n` choices, numbered from 0, of which some may not be allowed now."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pan_hf.features.base import ACTION, ActionForm, Feature, Form, register_feature
from pan_hf.features.vector import whole_bounds

if TYPE_CHECKING:
    from gymnasium import spaces

# A product of several discrete choices becomes one choice up to this size, and a vector of rounded numbers beyond it.
_MAX_JOINT_CHOICES = 256


@register_feature
class DiscreteFeature(Feature):
    """`{"kind": "discrete", "n": N}`, with `names` where the choices have some, and `masked` where the environment
    says at every step which of them it allows."""

    kind = "discrete"
    is_discrete = True
    card_fields = ("num_actions",)

    @classmethod
    def describe(cls, part: Any) -> dict[str, Any]:
        names = getattr(part, "names", None)
        names = {"names": list(names)} if names else {}
        return {"kind": cls.kind, "n": part.num_actions, **names}

    def mask(self, told: Any, sizes: Sequence[int] | None = None) -> np.ndarray:
        """One mask for all choices; or one for each of several that are counted as one, as a tuple. Args: sizes, of
        these, where they are known."""
        is_several = isinstance(told, tuple | list) and any(map(np.ndim, told))
        masks = [np.ravel(one) for one in told] if is_several else [np.asarray(told)]
        is_binary = all(one.ndim == 1 and one.dtype.kind in "iufb" and np.isin(one, (0, 1)).all() for one in masks)
        lengths = list(map(np.size, masks))
        fits = math.prod(lengths) == self.description["n"] and (not is_several or sizes is None or lengths == [*sizes])
        if not is_binary or not fits:
            raise ValueError(f"expected {self.description['n']} numbers of 0 or 1, got {told!r:.200}")
        return reduce(np.multiply.outer, masks).ravel().astype(bool)

    # ---- From an environment or a table

    @classmethod
    def action_from_space(cls, space: spaces.Space) -> ActionForm | None:
        bounds = whole_bounds(space)
        if bounds is None:
            return None
        low, high = bounds
        num_choices = np.prod(high - low + 1, dtype=float)
        return Choices(space, low, high) if low.ndim == 0 or num_choices <= _MAX_JOINT_CHOICES else None

    @classmethod
    def action_from_value(cls, value: Any, largest: Callable[[], int]) -> Form | None:
        if isinstance(value, str) or not _is_whole(value):
            return None
        num = largest() + 1

        def convert(number: Any) -> int:
            if not _is_whole(number) or not 0 <= number.item() < num:
                raise ValueError(f"expected a whole number in 0..{num - 1}, got {number.tolist()!r}")
            return int(number.item())

        return Form({"kind": cls.kind, "n": num}, convert)

    def space(self) -> spaces.Space:
        from gymnasium.spaces import Discrete

        return Discrete(self.description["n"])

    # ---- To and from parquet

    def column_type(self) -> Any:
        import datasets

        return datasets.Value("int64")

    def blank(self) -> int:
        return 0

    def read(self, column: pa.ChunkedArray) -> np.ndarray:
        self._check_type(column, pa.types.is_integer(column.type))
        numbers, num = column.to_numpy(), self.description["n"]
        if numbers.min() < 0 or numbers.max() >= num:
            raise ValueError(f"expected numbers in 0..{num - 1}, got {numbers.min()} to {numbers.max()}")
        return numbers

    # ---- What a recording says of a column as a whole

    @property
    def is_masked(self) -> bool:
        return bool(self.description.get("masked"))

    @property
    def common(self) -> dict[str, Any]:
        return {"kind": self.kind, "n": self.description["n"]}

    def merged(self, other: Feature) -> dict[str, Any]:
        """Names of actions are left out where they differ; a world without a mask allows all."""
        both = self.description, other.description
        names = {"names": both[0]["names"]} if both[0].get("names") == both[1].get("names") is not None else {}
        return self.common | names | ({"masked": True} if any(one.get("masked") for one in both) else {})

    # ---- To a model

    def make_action(self, values: np.ndarray, tokenizer: Any, options: dict) -> Any:
        from pan_hf.modeling import DiscreteAction

        described = {"num_actions": self.description["n"], "names": self.description.get("names")}
        return DiscreteAction(**(described | options))

    def check_action(self, action: Any, values: np.ndarray, processor: Any) -> None:
        if self.description["n"] != action.num_actions:
            raise ValueError(
                f"The recording has {self.description['n']} actions, the model {action.num_actions}. A number means "
                "the same in both only where there are as many; new actions are born with "
                "model.grow('action.0', names=[...])."
            )

    def is_playable(self, action: Feature) -> bool:
        """A model may have grown actions that the environment does not know."""
        return self.description["n"] <= action.description["n"]

    # ---- Shown

    def label(self, value: Any) -> str:
        names = self.description.get("names")
        return names[int(value)] if names else str(value)

    def words(self) -> str:
        names = self.description.get("names")
        return f"one of {self.description['n']} actions" + (f": {', '.join(names)}" if names else "")

    @classmethod
    def action_words(cls, config: Mapping[str, Any]) -> str:
        return f"one of {config['num_actions']} actions"

    @classmethod
    def blank_actions(cls, config: Mapping[str, Any]) -> str:
        return "torch.zeros(1, 5, dtype=torch.long)"

    # ---- Mirrored

    def needs_mirror_rule(self, has_swaps: bool) -> bool:
        return not has_swaps

    def mirrored(self, values: list, flips: Sequence[str], rule: np.ndarray | None) -> list:
        """Args: rule, what becomes of each choice `(n,)`."""
        return values if rule is None else rule[values].tolist()


def _is_whole(value: np.ndarray) -> bool:
    return value.size == 1 and value.dtype.kind in "iub"


class Choices(ActionForm):
    """Actions that are one whole number, or several that are counted as one.

    Args:
        low, high: bounds in the shape of the space.
    """

    def __init__(self, space: spaces.Space, low: np.ndarray, high: np.ndarray):
        from gymnasium.spaces import Discrete

        self.raw_space, self._low = space, low
        self._sizes = tuple(int(size) for size in np.ravel(high - low + 1))
        self._num_choices = int(np.prod(self._sizes))
        self.space = Discrete(self._num_choices)
        self.feature = {"kind": DiscreteFeature.kind, "n": self._num_choices}

    def masks(self, action_mask: Any) -> dict[str, np.ndarray]:
        try:
            return {ACTION: DiscreteFeature(self.feature).mask(action_mask, self._sizes)}
        except ValueError as error:
            raise ValueError(f"action_mask: {error}") from error

    def check(self, action: Any) -> int:
        value = np.asarray(action)
        is_number = value.size == 1 and value.dtype.kind in "iufb"
        if not is_number or not 0 <= value.item() < self._num_choices or value % 1 != 0:
            raise ValueError(f"Expected a whole action in 0..{self._num_choices - 1}, got {action!r}")
        return int(value.item())

    def to_environment(self, action: int) -> Any:
        if self._low.ndim == 0:
            return action + int(self._low)
        digits = np.array(np.unravel_index(action, self._sizes))
        return (digits.reshape(self._low.shape) + self._low).astype(self.raw_space.dtype)

    def from_environment(self, action: Any) -> int:
        value = np.asarray(action)
        is_whole = value.shape == self._low.shape and value.dtype.kind in "iub"
        digits = value - self._low if is_whole else value
        if not is_whole or np.any(digits < 0) or np.any(np.ravel(digits) >= self._sizes):
            raise ValueError(f"Expected an action within {self.raw_space}, got {action!r}")
        return int(np.ravel_multi_index(tuple(np.ravel(digits)), self._sizes))
