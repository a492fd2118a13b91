"""`pan`: everything from a shell. A command is a function of the library: its parameters are the flags, its docstring
is the help.

    pan train --stage dynamics.max_steps=5    train(..., overrides={"dynamics": {"max_steps": 5}})

What is written down here is what a shell adds: names of flags that differ from their parameter's, and `--run`, the
folder that a command reads from and writes to by default. Signatures and docstrings are read from the library's files,
so that `pan --help` and a mistyped flag are answered without importing torch.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from subprocess import CalledProcessError
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

RUN = Path("runs/default")
Run = Annotated[Path, Parameter(help="folder of the run: a command finds there what it needs, and writes there.")]
Data = Annotated[
    str | None, Parameter(help="recording: a folder, or a Hub id, user/name@revision. `<run>/data` by default.")
]
Model = Annotated[str | None, Parameter(help="checkpoint: a folder, or a Hub id. `<run>/checkpoint` by default.")]
Output = Annotated[Path | None, Parameter(help="folder to write to. The run by default.")]
Effort = Annotated[
    str | None,
    Parameter(help="all, focused, coarsest, auto, blocks as camera.0,camera.1, or price=0.1,task=planning."),
]
Cache = Annotated[Path | None, Parameter(help="folder of the simulation cache. `<run>/cache` by default.")]
Recipe = Annotated[
    str | None, Parameter(name="--config", help="YAML file of these flags, or name of a recipe. Flags override it.")
]

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
    default_parameter=Parameter(negative_iterable=(), allow_repeating=True, show_default=_default_text),
    config=_read_recipe,
    error_console=Console(stderr=True, soft_wrap=True),
    error_formatter=lambda error: Text(f"Error: {error}"),
    result_action="return_value",
)
ORDER = count()  # in which `pan --help` lists commands: that of this file


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
    numbers = []
    for token in tokens:
        if not re.fullmatch(r"[+-]?[0-9]+", token.value):
            raise ValueError(f"{token.keyword} takes a whole number, got {token.value!r}.")
        numbers.append(int(token.value))
    return numbers if any(get_origin(each) is list for each in _kinds(kind)[0]) else numbers[-1]


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


# ---- the commands


@command("pan_hf.quickstart:quickstart")
def quickstart(
    function: Callable,
    run: Run = Path("runs/quickstart"),
    seconds: Annotated[float | None, Parameter(help="training time, all stages together.")] = None,
    miniature: Annotated[bool, Parameter(help="seconds instead of minutes: shows that everything works.")] = False,
    **options: Any,
) -> None:
    budget = library(f"pan_hf.quickstart:{'MINIATURE' if miniature else 'FULL'}")
    budget = budget if seconds is None else replace(budget, seconds=seconds)
    print(f"Done. Open {function(run, budget, **options)}")


@command("pan_hf.data.record:record", env_ids="env", env_args="env-arg", wrappers="wrapper")
def record(
    function: Callable,
    run: Run = RUN,
    output: Output = None,
    frames: int | None = None,
    episodes: int | None = None,
    **options: Any,
) -> None:
    if frames is None and episodes is None:
        frames = 20_000
    function(output=output or run / "data", frames=frames, episodes=episodes, **options)
    print(f"Done. The recording is in {output or run / 'data'}")
    if output is None:
        _next("train", run)


@command(
    "pan_hf.data.mirror:mirror",
    flips="flip",
    positions="position",
    directions="direction",
    swaps="swap",
    source="from",
)
def mirror(function: Callable, run: Run = RUN, output: Output = None, **options: Any) -> None:
    output = output or run / "data"
    info = function(output=output, **options)
    print(f"Done. {info['episodes']['train']} episodes to train on in {output}")


import_app = App(
    name="import",
    help="Imports a data set as a recording. Run again, it goes on after an interruption.",
    sort_key=next(ORDER),
)
app.command(import_app)


def _import(function: Callable, data: str, /, run: Run = RUN, output: Output = None, **options: Any) -> None:
    output = output or run / "data"
    info = function(data, output, **options)
    columns = [name for name in info["features"] if name.startswith("observation.")]
    senses = [name.removeprefix("observation.") for name in columns]
    counts = " and ".join(f"{number} {split}" for split, number in info["episodes"].items())
    print(f"Done. {counts} episodes, {info['frames']} frames of {', '.join(senses)} in {output}")


for _source, _module in (
    ("minari", "minari"),
    ("lerobot", "lerobot"),
    ("dataset", "hf_dataset"),
    ("videos", "videos"),
):
    command(f"pan_hf.data.importing.{_module}:import_{_source}", name=_source, group=import_app)(_import)


TRAINED: dict = {"sense_options": "sense", "config": "set", "overrides": "stage"}
TRAINED |= {"num_processes": "processes", "accelerate_config": "accelerate", "recipe": "config"}


@command("pan_hf.training.pipeline:train", **TRAINED)
def train(function: Callable, run: Run = RUN, recipe: Recipe = None, **options: Any) -> None:
    print(f"Done. The world model is in {function(run=run, **options)}")
    _next("evaluate", run)


@command("pan_hf.training.finetune:finetune", start="from")
def finetune(function: Callable, run: Run = RUN, **options: Any) -> None:
    print(f"Done. What was learned is in {function(run=run, **options)}")


@command("pan_hf.training.grow:grow", start="from", names="name")
def grow(function: Callable, run: Run = RUN, **options: Any) -> None:
    print(f"Done. The world model is in {function(run=run, **options)}")


@command("pan_hf.training.merge:merge", start="from", parts="part")
def merge(function: Callable, run: Run = RUN, **options: Any) -> None:
    print(f"Done. The model is in {function(run=run, **options)}")


MEASURED: dict = {"data_root": "data", "environments": "env"}


@command("pan_hf.evaluation.evaluate:evaluate", horizons="horizon", num_windows="windows", **MEASURED)
def evaluate(
    function: Callable,
    run: Run = RUN,
    model: Model = None,
    data_root: Data = None,
    output: Output = None,
    effort: Effort = None,
    **options: Any,
) -> None:
    where = _where(run, model, data_root, output) | {"effort": _effort(effort)}
    records = function(**where, **options)
    print(library("pan_hf.evaluation.summary:evaluation_summary")(records))
    print(f"Done. All figures are in {where['output'] / 'evaluation.json'}")
    _next("plan", run)


@app.command(show=False)
def futures(*_: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Moved to `benchmarks/moving_obstacles.py`."""
    raise ValueError(
        "`pan futures` is benchmarks/moving_obstacles.py of the repository now, with the same options: it checks one "
        "environment's own rules, so it is no part of the package."
    )


@command("pan_hf.evaluation.control:plan", planners="planner", **MEASURED)
def plan(
    function: Callable,
    run: Run = RUN,
    model: Model = None,
    data_root: Data = None,
    output: Output = None,
    effort: Effort = None,
    episodes: int = 20,
    **options: Any,
) -> None:
    where = _where(run, model, data_root, output) | {"effort": _effort(effort)}
    records = function(**where, episodes=episodes, **options)
    print(library("pan_hf.evaluation.summary:planning_summary")(records))
    print(f"Done. All figures are in {where['output'] / 'planning.json'}")
    _next("report", run)


@command("pan_hf.evaluation.precompute:precompute", **MEASURED)
def precompute(
    function: Callable,
    run: Run = RUN,
    model: Model = None,
    data_root: Data = None,
    cache: Cache = None,
    effort: Effort = None,
    **options: Any,
) -> None:
    where = _where(run, model, data_root, None) | {"effort": _effort(effort)}
    output = where.pop("output")
    cache = cache or output / "cache"
    told = function(**where, cache=cache, **options)
    print(
        f"Done. {told['entries']} entries ({told['new_entries']} of them new) are in {cache}; for "
        f"{told['answered']:.0%} of the recorded states an action is known"
    )
    _next("cache", run)


@app.command(name="cache", sort_key=next(ORDER))
def show_cache(
    run: Run = RUN,
    *,
    model: Model = None,
    data: Data = None,
    cache: Cache = None,
    samples: int = 200,
    check: int = 0,
    reward_threshold: float | None = None,
    effort: Effort = None,
    export: Path | None = None,
    take: Annotated[Path | None, Parameter(name="--import")] = None,
) -> None:
    """Shows what a simulation cache holds and what it is good for, with a picture; or takes it in and out as a data
    set.

    Args:
        samples: recorded states that are looked up, to tell how many have an answer.
        check: cached outcomes that are imagined anew, to tell how many differ by now.
        reward_threshold: expected reward that counts as the goal; from the recording by default.
        export: folder to write the entries to, as parquet files.
        take: folder that --export wrote, whose entries are added.
    """
    where = _where(run, model, data, None)
    place = cache or where["output"] / "cache"
    if take is not None:
        added = library("pan_hf.evaluation.cache_summary:import_cache")(where["run"], take, cache=place)
        print(f"Done. {added} entries were not in {place} before; pan precompute values them")
    if export is not None:
        library("pan_hf.evaluation.cache_summary:export_cache")(where["run"], export, cache=place)
        print(f"Done. The entries are in {export}")
    if take is None and export is None:
        settings: dict[str, Any] = {"samples": samples, "check": check, "reward_threshold": reward_threshold}
        told = library("pan_hf.evaluation.cache_summary:describe_cache")(
            where["run"],
            where["data_root"],
            cache=place,
            effort=_effort(effort),
            pictures=where["output"] / "report" / "codes",
            **settings,
        )
        print(library("pan_hf.evaluation.cache_summary:cache_summary")(told))
        if told.get("picture"):
            print(f"A picture of it, which pan report shows: {told['picture']}")


@command("pan_hf.training.imagine:imagine", data_root="data", environment="env")
def imagine(
    function: Callable,
    run: Run = RUN,
    model: Model = None,
    data_root: Data = None,
    output: Output = None,
    **options: Any,
) -> None:
    policy = function(**_where(run, model, data_root, output), **options)
    print(f"Done. The policy is in {policy}")
    print(
        f"Next: pan plan{'' if run == RUN else f' --run {shlex.quote(str(run))}'} --planner 'policy?folder={policy}'"
    )


def _next(name: str, run: Path) -> None:
    """Says the command that usually follows."""
    print(f"Next: pan {name}{'' if run == RUN else f' --run {shlex.quote(str(run))}'}")


def _where(run: Path, model: str | None, data: str | Path | None, output: Path | None) -> dict[str, Any]:
    """Checkpoint, recording and folder of results: the run's own, unless they are given. Of a model of elsewhere the
    recording is the one that it names, where the run has none."""
    if data is None and (model is None or (run / "data").exists()):
        data = run / "data"
    output = output or library("pan_hf.checkpoints:results_folder")(run, None if model is None else run)
    return {"run": model or run, "data_root": data, "output": output}


def _effort(text: str | None) -> Any:
    return None if text is None else library("pan_hf.agents.world:parse_effort")(text)


@app.command(sort_key=next(ORDER))
def pool(runs: list[Path], /, *, output: Path) -> None:
    """The mean of several evaluated runs, and its standard error over their seeds.

    Args:
        runs: run folders, each evaluated and trained with another seed.
        output: folder for the pooled evaluation.json.
    """
    library("pan_hf.evaluation.evaluate:pool")(runs, output)
    print(f"Done. See {output / 'evaluation.json'}")


@app.command(sort_key=next(ORDER))
def vocabulary(
    *, run: Run = RUN, model: Model = None, double: list[str] | None = None, output: Path | None = None
) -> None:
    """Shows a checkpoint's vocabulary: what lives, how it is used, what is new; writes vocabulary.png.

    Args:
        double: give this segment twice the rows, e.g. camera.0; ids stay.
        output: where the picture, or the larger checkpoint, goes, if not into the run.
    """
    if double:
        larger = library("pan_hf.vocabulary:double")(model or run, double, output)
        print(f"Done. The larger checkpoint is in {larger}")
        return
    tables, picture = library("pan_hf.vocabulary:show")(model or run, output or (run if model else None))
    console = Console(markup=False, emoji=False, highlight=False)  # names are shown as they are
    for table in tables:
        console.print(table)
    if picture is not None:
        print(f"What each image code decodes to: {picture}")


@command("pan_hf.publishing.push:push_checkpoint", name="push", repo_id="repo")
def push(
    function: Callable,
    run: Run = RUN,
    data: Annotated[bool, Parameter(help="push the recording, as a data set.", negative=())] = False,
    adapter: Annotated[bool, Parameter(help="push `<run>/adapter`, or the run if it is one.", negative=())] = False,
    dataset: str | None = None,
    base_model: str | None = None,
    **options: Any,
) -> None:
    if data and adapter:
        raise ValueError("--data and --adapter go to repositories of their own; push them one after the other.")
    if data:
        commit = library("pan_hf.publishing.push:push_recording")(run, **options)
    elif adapter:
        commit = library("pan_hf.publishing.push:push_adapter")(run, base_model=base_model, **options)
    else:
        commit = function(run, dataset=dataset, base_model=base_model, **options)
    print(f"Done. {commit.repo_url} at {commit.oid}")


@app.command(sort_key=next(ORDER))
def configs() -> None:
    """Shows where the recipes for `--config` and the example files for `accelerate launch --config_file` are."""
    for path in sorted(library("pan_hf.training.arguments:CONFIGS").glob("*.yaml")):
        print(path)


@app.command(sort_key=next(ORDER))
def report(*, run: Run = RUN) -> None:
    """Writes report.html and the model card from what the run holds."""
    if (run / "checkpoint").exists():
        library("pan_hf.publishing.card:write_card")(run)
    print(f"Done. Open {library('pan_hf.reporting.report:write_report')(run)}")


def main() -> None:
    """Runs `pan`; what a user can do wrong ends in one line, not in a traceback."""
    speak_to_users()
    try:
        app()
    except KeyboardInterrupt:
        print("Interrupted. What was finished is kept; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, ImportError, OSError, CalledProcessError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
