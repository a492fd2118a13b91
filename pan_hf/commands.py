"""How a function of the library becomes a command of `pan`: its parameters are the flags, its docstring is the help.

Signatures and docstrings are read from the library's files, so that `pan --help` and a mistyped flag are answered
without importing torch.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pan_hf import __path__ as roots
from pan_hf.console import speak_to_users
from pan_hf.extras import extra
from pan_hf.specs import literal

with extra("cli", "The command `pan`"):
    from cyclopts import App, Parameter, Token
    from cyclopts.argument import ArgumentCollection
    from rich.console import Console
    from rich.text import Text

FIELD, PART_FIELD = "NAME=VALUE", "NAME.FIELD=VALUE"  # how a flag that is given once or more makes a mapping
DEPTHS = {FIELD: 1, PART_FIELD: 2}


def _default_text(value: Any) -> str | None:
    """A default, as the help shows it; None where leaving the flag out leaves something out."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or None
    return None if value is None or value is False else str(value)


def _read_recipe(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Gives a command the values in the file of `--config`, as if they were flags. A flag that is given replaces the
    file's value; of fields (`--stage dynamics.max_steps=5`) it replaces only the same one.

    Raises:
        ValueError: a key of the file is no flag of the command.
    """
    by_flag = {name.removeprefix("--"): argument for argument in arguments for name in argument.names}
    recipe = by_flag.pop("config", None)
    if recipe is None or not recipe.tokens:
        return
    from pan_hf.training.arguments import read_config, unknown_names

    path = recipe.tokens[0].value
    values = {name.strip("_").replace("_", "-"): value for name, value in read_config(path).items()}
    if unknown := [name for name in values if name not in by_flag]:
        raise ValueError(f"--config {path}: {unknown_names(unknown, 'keys', list(by_flag))}")
    for name, value in values.items():
        argument = by_flag[name]
        depth = DEPTHS.get(argument.parameter.metavar or "", 0)
        if depth or not argument.tokens:
            texts = [*_as_texts(value, depth), *(token.value for token in argument.tokens)]
            argument.tokens = [
                Token(keyword=f"--{name}", value=text, source=path, index=index) for index, text in enumerate(texts)
            ]


def _check_folders(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Raises ValueError for a folder without a name, which `Path` would take for the working directory."""
    for argument in arguments:
        kinds = _kinds(argument.hint)[0]
        is_folder = Path in [*kinds, *(item for kind in kinds for item in get_args(kind))]
        if is_folder and any(token.value == "" for token in argument.tokens):
            raise ValueError(f"{argument.name} takes a folder, got ''; the working directory is '.'.")


def _as_texts(value: Any, depth: int) -> list[str]:
    """`{"a": {"b": 1}}` as `["a.b=1"]` where the names are 2 deep; a list's items; one value as a list of it."""
    if not depth or not isinstance(value, dict):
        return list(map(str, value)) if isinstance(value, list) else [str(value)]
    if depth == 1:
        return [f"{name}={inner}" for name, inner in value.items()]
    return [f"{name}.{text}" for name, inner in value.items() for text in _as_texts(inner, depth - 1)]


# ---- what the library declares


class Declarations(dict):
    """Names that the signatures of a module mention, read from its file: constants, and types of the standard library.

    A name that is neither is missing, so a parameter of such a type is no flag.
    """

    def __init__(self, module: str):
        super().__init__()
        files = (Path(root, *module.split(".")[1:]).with_suffix(".py") for root in roots)
        source = next(file for file in files if file.exists()).read_text(encoding="utf-8")
        self.functions: dict[str, ast.FunctionDef] = {}
        self.nodes: dict[str, ast.stmt] = {}
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef):
                self.functions[node.name] = node
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self.nodes |= {alias.asname or alias.name: node for alias in node.names}
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.nodes[node.targets[0].id] = node

    def __missing__(self, name: str) -> Any:
        node = self.nodes.get(name)
        if isinstance(node, ast.Assign):
            value = ast.literal_eval(node.value)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pan_hf."):
            value = declarations(node.module)[name]
        elif isinstance(node, ast.ImportFrom) and node.module in ("collections.abc", "pathlib", "typing"):
            value = getattr(importlib.import_module(node.module), name)
        elif isinstance(node, ast.Import) and name in sys.stdlib_module_names:
            value = importlib.import_module(name)
        else:
            value = vars(builtins)[name]
        self[name] = value
        return value

    def evaluate(self, node: ast.expr) -> Any:
        """The value of an annotation or a default; `None` of one that mentions what only an import would tell."""
        try:
            return eval(compile(ast.Expression(node), "<signature>", "eval"), {}, self)
        except (NameError, KeyError, ValueError, AttributeError):
            return None

    def signature(self, name: str) -> inspect.Signature:
        """The signature of a function, with the annotations and defaults that its file declares."""
        declared = self.functions[name].args
        positional = [*declared.posonlyargs, *declared.args]
        defaults = [None] * (len(positional) - len(declared.defaults)) + [*declared.defaults, *declared.kw_defaults]
        kinds = [
            *[inspect.Parameter.POSITIONAL_OR_KEYWORD] * len(positional),
            *[inspect.Parameter.KEYWORD_ONLY] * len(declared.kwonlyargs),
        ]
        return inspect.Signature(
            [
                inspect.Parameter(
                    argument.arg,
                    kind,
                    default=inspect.Parameter.empty if default is None else self.evaluate(default),
                    annotation=None if argument.annotation is None else self.evaluate(argument.annotation),
                )
                for argument, kind, default in zip([*positional, *declared.kwonlyargs], kinds, defaults, strict=True)
            ]
        )


declarations = cache(Declarations)  # of a module, by its name


app = App(
    name="pan",
    version=declarations("pan_hf.modeling.configuration_pan")["VERSION"],
    help="World models from any causal language model: record, train, evaluate, plan.",
    default_parameter=Parameter(
        negative_iterable=(), allow_repeating=True, json_list=False, show_default=_default_text
    ),
    config=(_read_recipe, _check_folders),
    error_console=Console(stderr=True, soft_wrap=True),
    error_formatter=lambda error: Text(f"Error: {error}"),
    result_action="return_value",
)
ORDER = count()  # in which `pan --help` lists commands: that in which they are made


# ---- how a function of the library becomes a command


def command(target: str, name: str | None = None, group: App = app, **flags: str) -> Callable[[Callable], Callable]:
    """Makes a command of the function below it, which calls a function of the library.

    The function below is given the library's as its first argument. Its own parameters are flags. Those of the
    library's that it does not name are flags too, and come to it as `**options`.

    Args:
        target (`str`): the library's function, "module:name". Its module is imported when the command runs.
        name (`str`, *optional*): of the command; that of the function below by default.
        group: what the command is below.
        flags: the flag of a parameter, where it is not the parameter's name.
    """

    def register(function: Callable) -> Callable:
        command_name = name or function.__name__
        group.command(_build(function, target, flags), name=command_name, sort_key=next(ORDER))
        function.__doc__ = function.__doc__ or f"`pan {command_name}` calls `{target}`."
        return function

    return register


def library(target: str) -> Any:
    """What a command calls, "module:name"."""
    if "pan_hf.registration" not in sys.modules:  # this is the command line, and its first use of the library
        importlib.import_module("pan_hf.registration")
        speak_to_users()
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _build(function: Callable, target: str, flags: dict[str, str]) -> Callable:
    """A function with the parameters of both as flags, and the library's docstring."""
    module, _, library_name = target.partition(":")
    inherited = declarations(module).signature(library_name).parameters
    own = dict(list(inspect.signature(function).parameters.items())[1:-1])  # without the library's, and `options`
    hints = {name: parameter.annotation for name, parameter in inherited.items()}
    hints |= get_type_hints(function, include_extras=True)
    parameters = []
    for name in [*(name for name in own if name not in inherited), *inherited]:
        parameter = own[name] if name in own else inherited[name]
        is_place = parameter.kind == parameter.POSITIONAL_ONLY
        annotation = _annotation(hints.get(name), None if is_place else flags.get(name, name))
        if annotation is not None:
            if isinstance(parameter.default, str) and any(get_origin(kind) is list for kind in _kinds(annotation)[0]):
                parameter = parameter.replace(default=(parameter.default,))  # its help shows a list's items
            kind = parameter.kind if is_place else parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=annotation, kind=kind))

    def run(*places: str, **options: Any) -> None:
        values = {name: _value(value, hints[name], flags.get(name, name)) for name, value in options.items()}
        function(library(target), *places, **values)

    signature = inspect.Signature(sorted(parameters, key=lambda parameter: parameter.kind))
    run.__signature__ = signature  # type: ignore[attr-defined]  # a function's own, which `inspect` asks for
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = _as_help(ast.get_docstring(declarations(module).functions[library_name]) or "", flags)
    return run


def _as_help(docstring: str, flags: dict[str, str]) -> str:
    """A docstring that names flags where it names parameters, and marks no links."""
    plain = re.sub(r"\[`(?:~[\w.]*\.)?([^`]*)`\]", r"`\1`", docstring)
    for name, flag in flags.items():
        plain = plain.replace(f"`{name}`", f"`--{flag}`")
    return plain


def _annotation(hint: Any, flag: str | None) -> Any:
    """What cyclopts has to know of a parameter of this type; None where text cannot say what it takes."""
    kinds, extras = _kinds(hint)
    mapping = next(filter(_is_mapping, kinds), None)
    several = next((kind for kind in kinds if get_origin(kind) in (Sequence, Iterable, list, tuple)), None)
    single = (kind for kind in kinds if kind in (bool, int, float, str, Path) or get_origin(kind) is Literal)
    if mapping is not None:
        taken: Any = list[str]
    elif several is not None:
        taken = list[_kinds(get_args(several)[0])[0][0]]  # type: ignore[misc]  # a type that is known when it runs
    elif str in kinds and bool in kinds:
        taken = str | bool  # a flag that may be given alone
    else:
        taken = next(single, None)
    if taken is None:
        return None
    metavar = None if mapping is None else PART_FIELD if get_args(mapping)[1:] == (dict,) else FIELD
    name = None if flag is None else f"--{flag.replace('_', '-')}"
    convert = _whole_numbers if taken in (int, list[int]) else None  # cyclopts would cut 2.5 to 2
    parameter = Parameter(name=name, metavar=metavar, converter=convert)
    return Annotated[taken | None if NoneType in kinds else taken, parameter, *extras]


def _whole_numbers(kind: Any, tokens: Sequence[Token]) -> Any:
    """What was typed, as an int or a list of them. Raises ValueError for anything else."""
    numbers, are_several = [], any(get_origin(each) is list for each in _kinds(kind)[0])
    for token in tokens:
        if not re.fullmatch(r"[+-]?[0-9]+", token.value):
            more = f"; for several give {token.keyword} once for each" if are_several else ""
            raise ValueError(f"{token.keyword} takes a whole number, got {token.value!r}{more}.")
        numbers.append(int(token.value))
    return numbers if are_several else numbers[-1]


def _kinds(hint: Any) -> tuple[list, tuple]:
    """The types of a union, or the one type; and what `Annotated` adds."""
    extras = getattr(hint, "__metadata__", ())
    plain = get_args(hint)[0] if extras else hint
    return list(get_args(plain)) if get_origin(plain) in (Union, UnionType) else [plain], extras


def _is_mapping(kind: Any) -> bool:
    return kind is dict or get_origin(kind) in (dict, Mapping)


def _value(value: Any, hint: Any, flag: str) -> Any:
    """`["a=1", "b=x"]` as `{"a": 1, "b": "x"}` where the parameter is a mapping; other values as they are.

    Raises:
        ValueError: a text is not of this form.
    """
    mapping = next(filter(_is_mapping, _kinds(hint)[0]), None)
    if mapping is None or value is None:
        return value
    inner = get_args(mapping)[1:]
    result: dict[str, Any] = {}
    for text in value:
        name, equals, field = text.rpartition("=") if inner == (str,) else text.partition("=")
        first, dot, second = name.partition(".") if inner == (dict,) else (name, ".", None)
        if not equals or not dot:
            form = PART_FIELD if inner == (dict,) else FIELD
            raise ValueError(f"--{flag} {text!r} must be {form}.")
        if second is None:
            result[first] = field if inner == (str,) else literal(field)
        else:
            result.setdefault(first, {})[second] = literal(field)
    return result
