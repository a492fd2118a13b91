"""What is refused: fields of configurations, arguments of functions, observations and actions that do not fit.

Every field of a configuration is checked by type and range, where it is built, loaded and changed. Hugging Face's
`type_validator` checks types; `bounded` adds a range. A configuration from elsewhere is bounded even
where no model would be: nothing may take all memory or hours before its tensors are looked at.
"""

from __future__ import annotations

import functools
import math
import operator
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub.dataclasses import type_validator
from torch import Tensor

if TYPE_CHECKING:
    from .sense_configuration_pan import Part
    from .state_pan import State

Number = int | float  # a type checker takes an int for a float, `type_validator` does not

PRESENT = ".present"  # behind the name of a sense: in which frames it is there

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


# ---- arguments of functions: NumPy's and tensors' numbers become Python's, and what is no such number is refused


def scalar(value: Any) -> Any:
    """A NumPy scalar, or an array or tensor without dimensions, as a Python number; anything else as it is."""
    return value.item() if hasattr(value, "item") and not getattr(value, "ndim", 1) else value


def whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """An argument that counts. Raises ValueError for anything but a whole number from `least` to `most`."""
    try:
        plain = scalar(value)
        number = least - 1 if isinstance(plain, bool) else operator.index(plain)
    except (TypeError, RuntimeError):  # the latter from tensors that hold nothing
        number = least - 1
    if number < least or (most is not None and number > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"`{name}` must be a whole number {limits}, got {value!r}.")
    return number


def real(
    name: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    above: bool = False,
    infinite: bool = False,
) -> float:
    """An argument that measures. Raises ValueError for anything but a finite number from `least` to `most`; `above`:
    for `least` itself, too; `infinite`: an infinite one is taken, too."""
    try:
        plain = scalar(value)
        is_number = isinstance(plain, int | float | np.floating) and not isinstance(plain, bool)
        number = float(plain) if is_number else math.nan
    except (OverflowError, RuntimeError):  # the latter from tensors that hold nothing
        number = math.nan
    is_taken = infinite or math.isfinite(number)
    if not (is_taken and least <= number <= most) or (above and number == least):
        limits = f"above {least}" if above else f"at least {least}" if least > -math.inf else "finite"
        limits += f" and at most {most}" if most < math.inf else ""
        expected = "a number" if infinite else f"{limits}, a number"
        raise ValueError(f"`{name}` must be {expected}; got {value!r}.")
    return number


def truth(name: str, value: Any) -> bool:
    """An argument that is so or not. Raises ValueError for anything but True and False, 1 and 0."""
    plain = scalar(value)
    if not (isinstance(plain, int) and plain in (0, 1)):
        raise ValueError(f"`{name}` must be True or False, got {value!r}.")
    return bool(plain)


def strings(name: str, value: Any) -> list[str]:
    """An argument of several texts. Raises ValueError for one text, and for items that are none."""
    if isinstance(value, str):
        raise ValueError(f"`{name}` must be a list of strings, got {value!r}; pass [{value!r}].")
    items = list(value) if isinstance(value, Iterable) and not isinstance(value, dict) else [value]
    if not all(isinstance(item, str) for item in items):
        raise ValueError(f"`{name}` must be a list of strings, got {value!r}.")
    return [str(item) for item in items]  # NumPy's are a kind of their own


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


# ---- What a model refuses: observations and actions that do not fit its configuration.
#
# The processor says more, and sooner; these checks are for tensors that did not come from one. They look at shapes and
# values: an action out of range would quietly read another token's row, a vector would be clipped.


def check_observation(config, observation: Mapping[str, Tensor], needs_prefix: bool = False) -> None:
    """Raises ValueError unless every sense is there, in its shape and with equally many frames, and with masks
    (`<sense>.present`) that fit.

    Args:
        config (`PanConfig`): its senses.
        observation: by sense, with leading shape `(B, T)`, constant text `(B,)`.
        needs_prefix (`bool`): whether constant text must be there too.
    """
    if not isinstance(observation, Mapping) or not all(isinstance(name, str) for name in observation):
        got = sorted(map(str, observation)) if isinstance(observation, Mapping) else type(observation).__name__
        raise ValueError(f"The observation must be a dict of tensors by the names {sorted(config.senses)}, got {got}.")
    masks = {name: values for name, values in observation.items() if name.endswith(PRESENT)}
    observation = {name: values for name, values in observation.items() if name not in masks}
    senses = set(config.senses)
    missing = sorted((senses if needs_prefix else senses - set(config.prefix_senses)) - set(observation))
    unknown = sorted(set(observation) - senses)
    if missing or unknown:
        raise ValueError(
            f"The observation must hold the senses {sorted(senses)}; missing {missing}, unknown {unknown}."
        )
    for name, values in observation.items():
        sense = config.senses[name]
        leading_axes = ("B",) if sense.is_constant else ("B", "T")
        expected = f"({', '.join(map(str, (*leading_axes, *sense.shape)))})"
        if not isinstance(values, Tensor):
            kind = type(values).__name__
            raise ValueError(f"Sense {name!r}: expected a tensor {expected}, got {kind}; the processor makes one.")
        check_dense(f"Sense {name!r}", values)
        is_empty = 0 in values.shape[: len(leading_axes)]
        if is_empty or values.dim() < len(leading_axes) or values.shape[len(leading_axes) :] != sense.shape:
            raise ValueError(f"Sense {name!r}: expected a tensor {expected}, got {tuple(values.shape)}.")
    leading = {n: tuple(v.shape[:2]) for n, v in observation.items() if n not in config.prefix_senses}
    if len(set(leading.values())) > 1:
        raise ValueError(f"Every sense needs equally many rows and frames, got (B, T) of {leading}.")
    for name, mask in masks.items():
        shape = leading.get(name.removesuffix(PRESENT))
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
            kind = f"{mask.dtype} of {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"{name!r} says in which frames a sense that changes is there: bool (B, T) of {shape}, got {kind}; the"
                f" senses that change are {sorted(leading)}."
            )
    rows = {name: len(values) for name, values in observation.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"Constant text needs a row for each of the batch, got batches of {rows}.")
    for name, values in observation.items():
        is_there = masks.get(f"{name}{PRESENT}")
        seen = values if is_there is None else values[is_there]
        if seen.is_floating_point() and not bool(seen.isfinite().all()):
            problem = f"holds numbers that are not finite; `{name}{PRESENT}` is to say in which frames it is absent"
            raise ValueError(f"Sense {name!r} {problem}.")


def check_dense(what: str, values: Tensor) -> None:
    """Raises ValueError for tensors that hold nothing, or no plain numbers."""
    if values.is_meta or values.layout != torch.strided or values.is_complex():
        kind = "nothing (meta)" if values.is_meta else f"{values.layout} {values.dtype}"
        raise ValueError(f"{what}: expected a dense tensor of real numbers, got {kind} of {tuple(values.shape)}.")


def check_values(config, observation: Mapping[str, Tensor]) -> None:
    """Raises ValueError where values of an observation that fits are beyond their sense's range. Args: as above."""
    for name, values in observation.items():
        if name.endswith(PRESENT):
            continue
        mask, sense = observation.get(f"{name}{PRESENT}"), config.senses[name]
        try:
            if sense.is_coded:
                sense.check_values(values if mask is None else values[mask])
            else:
                _check_words(values, config.vocab_size, may_lack=not sense.is_constant)
        except ValueError as error:
            raise ValueError(f"Sense {name!r}: {error}") from error


def _check_words(ids: Tensor, size: int, may_lack: bool) -> None:
    least, most = (bound.item() for bound in ids.aminmax())
    if ids.dtype != torch.long or not (-1 if may_lack else 0) <= least <= most < size:
        absent = " (-1 where there is none)" if may_lack else ""
        expected = f"ids of words, int64 from 0 to {size - 1}{absent}"
        raise ValueError(f"expected {expected}, got {ids.dtype} from {least} to {most}.")


def check_decodes(senses, state: State, sense: str, num_levels: int | None, latents: bool | None) -> None:
    """Raises ValueError unless these are arguments of [`PanModel.decode`]. Args: senses, the codecs by name."""
    if not hasattr(state, "codes") or not hasattr(state, "text"):
        raise ValueError(f"`state` must be a State, as `encode` returns it, got {type(state).__name__}.")
    names = sorted([*(set(senses) & set(state.codes)), *state.text])
    if not isinstance(sense, str) or sense not in names:
        raise ValueError(f"No sense {sense!r} to decode; there are {names}.")
    if num_levels is not None:
        count = len(state.codes.get(sense, ()))
        if not count:
            raise ValueError(f"{sense!r} is a text, which has no levels; leave `num_levels` out.")
        try:
            whole("num_levels", num_levels, 1, count)
        except ValueError as error:
            raise ValueError(f"{sense!r} has levels 1 to {count}; got num_levels={num_levels!r}.") from error
    if latents is not None:
        truth("latents", latents)


def action_shape(action: Part, second: str = "H") -> str:
    """How a tensor of actions looks, for messages; `second` names the axis of time."""
    return f"({', '.join(map(str, ('B', second, *action.shape)))})"


def has_action_shape(action: Part, actions: Tensor) -> bool:
    """Whether actions are `(B, T, *action.shape)`."""
    return actions.dim() == 2 + len(action.shape) and actions.shape[2:] == action.shape


def action_tensor(what: str, described: Part, values, device: torch.device) -> Tensor:
    """One part of actions as a tensor: of an array, of nested lists of numbers, or of names where its actions have
    any. Raises ValueError for anything else. Args: what, the part in messages."""
    if isinstance(values, Tensor):
        check_dense(what, values)
        if values.dtype == torch.bool:
            raise ValueError(f"{what}: actions are numbers, got {values.dtype} of {tuple(values.shape)}.")
        is_index = described.shape == () or not described.is_coded  # a choice, or words
        return values.to(device, torch.long) if is_index and not values.is_floating_point() else values.to(device)
    names = list(getattr(described, "names", None) or [])

    def numbered(value: Any) -> Any:
        if isinstance(value, str):
            if names.count(value) != 1:
                known = f"its actions are {names}" if names else "its actions have no names here; give numbers"
                if not described.is_coded:
                    known = 'what is said becomes ids of words by `processor(action=...)["action"]`'
                problem = "there is no action" if value not in names else "more than one action is called"
                raise ValueError(f"{what}: {problem} {value!r}; {known}.")
            return names.index(value)
        return [numbered(each) for each in value] if isinstance(value, (list, tuple)) else value

    values = values.tolist() if hasattr(values, "tolist") else values  # an array
    is_row_of_names = isinstance(values, (list, tuple)) and any(isinstance(value, str) for value in values)
    numbers = numbered(values)
    try:
        tensor = torch.as_tensor(numbers, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} must be a tensor, an array or nested lists of equal lengths: {error}.") from error
    return tensor.unsqueeze(0) if is_row_of_names else tensor
