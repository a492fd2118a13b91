"""The arguments of a function, checked by its annotations before it begins.

    @checked(frames=least(1))
    def record(env_ids: str | Sequence[str], frames: int | None = None): ...

What is meant all the same is taken: NumPy's numbers, and tensors and arrays of one number, become Python's. What is
not raises ValueError with the name, what was expected and what was given.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, TypeVar

from pan_hf.modeling.validation_pan import real, scalar, whole

_MOST_SEED = 2**32 - 1
F = TypeVar("F", bound=Callable)
Bound = Callable[[Any], "str | None"]
"""What is wrong with a value of the right type, as "at least 1"; None for nothing."""


def least(lowest: float, above: bool = False) -> Bound:
    """Numbers from `lowest` on, or above it."""
    words = f"more than {lowest:g}" if above else f"at least {lowest:g}"
    return lambda value: None if (value > lowest if above else value >= lowest) else words


def a_seed(value: int) -> str | None:
    """Numbers that Python, NumPy and torch all take as a seed."""
    return None if 0 <= value <= _MOST_SEED else f"a seed from 0 to {_MOST_SEED}"


def named(value: str) -> str | None:
    """Texts that name something."""
    return None if value.strip() else "a name"


def checked(**bounds: Bound) -> Callable[[F], F]:
    """Checks what a function is called with: by its annotations, and by `bounds` of its arguments."""

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                arguments = signature.bind(*args, **kwargs)
            except TypeError as error:
                names = ", ".join(signature.parameters)
                raise TypeError(f"{function.__qualname__}: {error}; it takes {names}") from None
            hints = _hints(function)
            for name, value in arguments.arguments.items():
                if name in hints:
                    arguments.arguments[name] = as_type(name, value, hints[name], bounds.get(name))
            return function(*arguments.args, **arguments.kwargs)

        return typing.cast(F, call)

    return decorate


@functools.cache
def _hints(function: Callable) -> dict[str, Any]:
    return typing.get_type_hints(function)


def as_type(name: str, value: Any, hint: Any, bound: Bound | None = None) -> Any:
    """A value as an annotation says, see `checked`.

    Raises:
        ValueError: it is of another type, no finite number, out of bounds, or no path.
    """
    kinds = list(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, UnionType) else [hint]
    for kind in sorted(kinds, key=_is_path, reverse=True):  # of a text that may be a path more is known
        taken = _taken(name, value, kind)
        if taken is not _OTHER:
            wrong = None if bound is None or taken is None else bound(taken)
            if wrong is not None:
                raise ValueError(f"{name}: expected {wrong}, got {value!r}")
            return taken
    expected = " or ".join(dict.fromkeys(_words(kind) for kind in kinds))
    raise ValueError(f"{name}: expected {expected}, got {type(value).__name__} {value!r:.80}")


_OTHER = object()  # a value of another type


def _taken(name: str, value: Any, kind: Any) -> Any:
    """The value as one type, `_OTHER` where it is of another."""
    origin = typing.get_origin(kind) or kind
    if origin is Any:
        return value
    if origin in _PLAIN:
        return _PLAIN[origin](value)
    if origin in (Callable, Mapping, dict, Sequence, Iterable, list, tuple):
        return _several(name, value, origin, typing.get_args(kind))
    if _is_path(origin):
        return _path(name, value) if isinstance(value, os.PathLike | str) else _OTHER
    return value if not isinstance(origin, type) or isinstance(value, origin) else _OTHER


def _several(name: str, value: Any, origin: Any, inner: tuple) -> Any:
    if origin is Callable:
        return value if callable(value) else _OTHER
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            return _OTHER
        return {_item(name, key, inner, 0): _item(f"{name}[{key!r}]", one, inner, 1) for key, one in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return _OTHER
    return [_item(f"{name}[{index}]", one, inner, 0) for index, one in enumerate(value)]


def _item(name: str, value: Any, inner: tuple, index: int) -> Any:
    return as_type(name, value, inner[index]) if index < len(inner) else value


def _number(check: Callable[..., Any]) -> Callable[[Any], Any]:
    """Takes what `whole` or `real` takes."""

    def take(value: Any) -> Any:
        try:
            return check("", value)
        except ValueError:
            return _OTHER

    return take


def _as_bool(value: Any) -> Any:
    value = scalar(value)
    return value if isinstance(value, bool) else _OTHER


_PLAIN: dict[Any, Callable[[Any], Any]] = {
    int: _number(functools.partial(whole, least=-sys.maxsize)),
    float: _number(real),
    bool: _as_bool,
    str: lambda value: str(value) if isinstance(value, str) else _OTHER,
    NoneType: lambda value: None if value is None else _OTHER,
}


def _path(name: str, value: Any) -> Any:
    if value == "":  # which as a path would be the working directory
        raise ValueError(f"{name}: expected a path, got ''; name one, '.' for the working directory")
    try:
        os.lstat(value)
    except FileNotFoundError:
        pass  # it may be made, or named on a Hub
    except (OSError, ValueError) as error:  # too long, a null byte, below a file, no permission
        raise ValueError(f"{name}: {str(value)[:300]!r} cannot be used as a path ({error})") from error
    return value


def _words(kind: Any) -> str:
    origin = typing.get_origin(kind) or kind
    names: dict[Any, str] = {
        int: "a whole number",
        float: "a finite number",
        bool: "True or False",
        str: "a text",
        NoneType: "None",
    }
    names |= {Callable: "a callable", Mapping: "a dict", dict: "a dict"}
    names |= dict.fromkeys((Sequence, Iterable, list, tuple), "a list")
    if origin in names:
        return names[origin]
    return "a path" if _is_path(origin) else getattr(origin, "__name__", str(origin))


def _is_path(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, os.PathLike)
