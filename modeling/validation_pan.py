"""Configurations whose every field is checked by type and range: where they are built, loaded and changed.

Hugging Face's `type_validator` checks types; `bounded` adds a range. A configuration from elsewhere is bounded even
where no model would be: nothing may take all memory or hours before its tensors are looked at.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Iterator
from dataclasses import field, fields
from typing import Any

from huggingface_hub.dataclasses import type_validator

Number = int | float  # a type checker takes an int for a float, `type_validator` does not

# No configuration asks for more.
MOST_ROWS = 2**22  # of a codebook
MOST_WIDE = 2**16  # features, coordinates, tokens of a text
MOST_PIXELS = 2**28  # numbers of one frame


def bounded(default: Any, least: Number, most: Number) -> Any:
    """A dataclass field whose numbers, or each number of its lists and dicts, lie from `least` to `most`."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata={"bounds": (least, most)})
    return field(default=default, metadata={"bounds": (least, most)})


def checked(cls: type, name: str, value: Any) -> Any:
    """The value of a configuration's field as JSON has it: arrays and tuples become lists, NumPy's numbers Python's.

    Args:
        cls: a dataclass; the field's annotation and `bounded` say what is allowed. Infinity and NaN never are.

    Raises:
        ValueError: another type, or a number out of range.
    """
    value, item = _plain(value), cls.__dataclass_fields__[name]  # type: ignore[attr-defined]  # a dataclass
    hint = _hints(cls).get(name, Any) if isinstance(item.type, str) else item.type
    try:
        type_validator(name, value, hint)
    except TypeError:
        kind = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else hint
        raise ValueError(f"{cls.__name__}: `{name}` must be {kind}, got {value!r}.") from None
    least, most = item.metadata.get("bounds", (-math.inf, math.inf))
    if all(least <= number <= most and abs(number) < math.inf for number in _numbers(value)):  # NaN is not
        return value
    if (least, most) == (0, 1):
        raise ValueError(f"{cls.__name__}: `{name}` is a share, from 0 to 1; got {value!r}.")
    limits = f"at least {least} and at most {most}" if most < math.inf else "finite"
    raise ValueError(f"{cls.__name__}: `{name}` must be {limits}, got {value!r}.")


def check_fields(part: Any) -> None:
    """Checks every field of a frozen configuration, see `checked`."""
    for item in fields(part):
        object.__setattr__(part, item.name, checked(type(part), item.name, getattr(part, item.name)))
    kind = next((item.default for item in fields(part) if item.name == "kind"), None)
    if kind is not None and part.kind != kind:
        raise ValueError(f"{type(part).__name__}: its `kind` is {kind!r}, got {part.kind!r}.")


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays, tensors, and the numbers in them
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _numbers(value: Any) -> Iterator[Number]:
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)
    elif isinstance(value, Number) and not isinstance(value, bool):
        yield value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:  # a user's kind, whose annotations name what is imported for a type checker alone
        return {}


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)
