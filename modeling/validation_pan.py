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

import torch
from huggingface_hub.dataclasses import type_validator

Number = int | float  # a type checker takes an int for a float, `type_validator` does not

# No configuration asks for more.
MOST_ROWS = 2**22  # of a codebook
MOST_WIDE = 2**16  # features, coordinates, tokens of a text
MOST_PIXELS = 2**28  # numbers of one frame
MOST_LAYERS = 4096  # of a backbone
MOST_SIZE = 2**24  # of anything else of a backbone

# More new parameters than this, and than the backbone has, come from one mistaken sense, not from a large world.
MOST_NEW = 2**28
WIDE_TOKEN, LARGE_TABLE = 128, 2**20  # codes of a state token, rows of codes: from here on parameters are counted


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
    if hint is object:  # a configuration of its own
        return value
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


# ---- Sizes, before anything is allocated


def check_backbone_sizes(text_config: Any) -> None:
    """Raises ValueError where the dict of a backbone's configuration asks for more layers, or wider ones, than any
    model has: building one would take hours, or all memory. Loading also compares it with the files."""
    for name, value in text_config.items() if isinstance(text_config, dict) else ():
        most = MOST_LAYERS if "layer" in name else MOST_SIZE
        is_size = any(word in name for word in ("layer", "size", "dim", "heads", "experts", "inner", "embd"))
        if is_size and isinstance(value, int) and not -1 <= value <= most:
            raise ValueError(
                f"text_config: `{name}` must be at most {most}, got {value}; no checkpoint is that large."
            )


def check_new_parameters(config: Any, build: Any) -> None:
    """Raises ValueError where a world around a backbone would be larger than any that was meant, and names the part
    that makes it so. Parameters are counted on the meta device, and only where a part looks large.

    Args:
        config (`PanConfig`): complete, its table as large as it will be; build: makes the model of it.
    """
    parts = config.coded_parts()
    if config.code_capacity <= LARGE_TABLE and all(sum(p.codes_per_token) <= WIDE_TOKEN for p in parts.values()):
        return
    with torch.device("meta"):
        model = build(config)
    backbone = sum(parameter.numel() for parameter in model.language_model.parameters())
    new = sum(parameter.numel() for parameter in model.parameters()) - backbone
    rows = config.code_capacity * config.text_config.hidden_size
    if max(new, rows) <= max(MOST_NEW, backbone - rows):
        return
    largest = max(parts, key=lambda name: sum(parts[name].codes_per_token) + sum(parts[name].codebook_capacity))
    part = parts[largest]
    raise ValueError(
        f"This model would have {new / 1e9:.3g} billion parameters around a backbone of {backbone / 1e6:.3g} million, "
        f"because of {largest!r}: shape {tuple(part.shape)}, {sum(part.codes_per_token)} codes a state token. A "
        "picture is a sense of its own (uint8 frames, ImageSense); split a long vector into several senses."
    )
