"""Objects named in text: `module:name?field=value`, as flags and recordings write them."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Splits `"module:name?key=value&key=value"` into `"module:name"` and its keyword arguments.

    Values are Python literals where they read as one (`8`, `0.5`, `[1, 2]`, `true`), and strings otherwise.

    Raises:
        ValueError: a parameter is not of the form `key=value`, or is there twice.
    """
    target, mark, query = spec.partition("?")
    arguments = {}
    for pair in query.split("&") if mark else ():
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"{spec!r}: expected key=value after '?', got {pair!r}")
        if key in arguments:
            raise ValueError(f"{spec!r}: {key!r} is given twice; leave one out")
        arguments[key] = literal(value)
    return target, arguments


def literal(text: str) -> Any:
    """A Python literal where the text reads as one, the text itself otherwise."""
    text = {"true": "True", "false": "False", "none": "None"}.get(text, text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def import_object(target: str, what: str = "object") -> Any:
    """The object that `"module:name"` names; modules in the working directory are found too.

    Raises:
        ValueError: the text has no `:`, the module cannot be imported or has no such name.
    """
    module_name, colon, name = target.partition(":")
    if not colon or not module_name or not name:
        raise ValueError(f"Expected a {what} as 'module:name', got {target!r}")
    if "" not in sys.path:
        sys.path.append("")  # a console script does not look in the working directory; last, so it shadows nothing
    try:
        loaded = importlib.import_module(module_name)
        for part in name.split("."):
            loaded = getattr(loaded, part)
    except ImportError as error:
        raise ValueError(f"{what} {target!r}: cannot import {module_name!r}: {error}") from error
    except AttributeError as error:
        raise ValueError(f"{what} {target!r}: module {module_name!r} has no {name!r}") from error
    return loaded


def spelled(policy: str | Callable) -> str:
    """`"module:name"` of a callable; a text is returned as it is."""
    if isinstance(policy, str):
        return policy
    function = policy.func if isinstance(policy, partial) else policy
    name = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"
    arguments = policy.keywords if isinstance(policy, partial) else {}
    return "?".join(filter(None, [name, "&".join(f"{key}={value}" for key, value in arguments.items())]))


def load_callable(spec: str | Callable, what: str) -> Callable:
    """The callable that `"module:name?key=value"` names, with its parameters bound; a callable is returned as it is.

    Raises:
        ValueError: it cannot be found, cannot be called, or does not take such parameters.
    """
    if not isinstance(spec, str):
        return spec
    target, arguments = parse_spec(spec)
    loaded = import_object(target, what)
    if not callable(loaded):
        raise ValueError(f"{what} {spec!r}: {target!r} is a {type(loaded).__name__}, expected a callable or a class")
    try:
        inspect.signature(loaded).bind_partial(**arguments)
    except TypeError as error:
        raise ValueError(f"{what} {spec!r}: {error}; {target} takes {inspect.signature(loaded)}") from error
    return partial(loaded, **arguments) if arguments else loaded
