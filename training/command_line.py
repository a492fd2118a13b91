"""The command line of a stage: a YAML file says how to train, flags say what is different this time.

    python -m pan_hf.training.align --config dynamics.yaml --max_steps 500

Every field of a stage's arguments is a flag and a key of the file. `--help` shows the stage's own first, then those of
`TrainingArguments`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

if TYPE_CHECKING:
    from pan_hf.training.stage import Stage, StageArguments

CONFIGS = Path(__file__).parent / "configs"  # examples, installed with the package
# of `TrainingArguments`, what a run of a stage most often sets
COMMON = ("output_dir", "max_steps", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps")
COMMON += ("seed", "logging_steps", "save_strategy", "save_steps", "eval_steps", "report_to", "run_name", "bf16")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, and every default behind its flag."""


def parse(stage: Stage, variants: dict[str, Stage], given: list[str] | None = None) -> tuple[Stage, StageArguments]:
    """Reads a stage's command line.

    Args:
        stage: what the script runs.
        variants: other stages of the same script, by the flag (and key of a file) that asks for them.
        given (`list[str]`, *optional*): the command line; that of the process by default.

    Returns:
        the stage that is asked for, and its arguments.

    Raises:
        SystemExit: help was asked for, or the file or a flag says something that the stage does not know; the message
            names it, and what comes near.
    """
    given = sys.argv[1:] if given is None else given
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    for name in variants:
        first.add_argument(f"--{name}", action="store_true")
    chosen, rest = first.parse_known_args(given)
    try:
        told = {} if chosen.config is None else read_config(chosen.config)
    except (OSError, ValueError) as error:
        _parser(stage, variants).error(str(error))
    for name, other in variants.items():
        if told.pop(name, False) or getattr(chosen, name):
            stage = other
    parser = _parser(stage, variants)
    try:
        parser.set_defaults(**_as_flags(told, parser, chosen.config))
    except ValueError as error:
        parser.error(str(error))
    known, unknown = parser.parse_known_args(rest)
    if unknown:
        parser.error(unknown_names(unknown, "flags", [field.name for field in fields(stage.arguments)]))
    for name in ("model", "data", "output_dir"):
        if not getattr(known, name):
            parser.error(f"--{name} is required")
    try:
        arguments = stage.arguments(**{name: v for name, v in vars(known).items() if name != "config"})
    except ValueError as error:
        parser.error(str(error))
    return stage, arguments


def read_config(path: str | Path) -> dict[str, Any]:
    """A YAML file's keys and values.

    Raises:
        ValueError: it is no YAML, or no mapping of names to values.
    """
    try:
        told = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from error
    if told is None:
        return {}
    if not isinstance(told, dict) or not all(isinstance(name, str) for name in told):
        raise ValueError(f"--config {path}: expected lines of `name: value`, got {type(told).__name__}.")
    return told


def _as_flags(told: dict[str, Any], parser: argparse.ArgumentParser, path: str | None) -> dict[str, Any]:
    """A file's values as defaults of the parser: numbers as text, so that they are read just as flags are. YAML takes
    `1e-3` for text, and a flag would take `2.5` for no number of steps; both are then right."""
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    unknown = [name for name in told if name not in actions]
    if unknown:
        raise ValueError(f"--config {path}: {unknown_names(unknown, 'keys', list(actions))}")
    found = {}
    for name, value in told.items():
        takes_many = actions[name].nargs == "+"
        if takes_many and value is not None:
            read = actions[name].type or str
            found[name] = [read(str(one)) for one in (value if isinstance(value, list) else [value])]
        elif isinstance(value, list):
            raise ValueError(f"--config {path}: {name} is one value, got the list {value}.")
        elif isinstance(value, dict):
            found[name] = json.dumps(value)
        else:
            found[name] = value if value is None or isinstance(value, bool) else str(value)
    return found


def unknown_names(names: list[str], what: str, known: list[str]) -> str:
    """Says which names are unknown, and which known ones each is like."""
    told = []
    for name in names:
        near = difflib.get_close_matches(name.lstrip("-").split("=")[0].replace("-", "_"), known, 3)
        told.append(f"{name!r} (near: {', '.join(near)})" if near else repr(name))
    return f"unknown {what}: {', '.join(told)}. `--help` shows all there are."


def _parser(stage: Stage, variants: dict[str, Stage]) -> HfArgumentParser:
    """The parser of a stage, whose help begins with what is the stage's own."""
    from pan_hf.training.stage import defaults

    parser = HfArgumentParser(
        stage.arguments,
        description=_description(stage, variants),
        formatter_class=_Help,
        allow_abbrev=False,
        usage="%(prog)s [--config FILE.yaml] --model DIR --data DIR --output_dir DIR [--NAME VALUE ...]",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these names; flags come before it.")
    parser.set_defaults(**defaults(stage))
    inherited = {field.name for field in fields(TrainingArguments)}
    own, common, rest = (
        parser.add_argument_group(title)
        for title in ("this stage", "the Trainer, most used", "the Trainer, all else (transformers.TrainingArguments)")
    )
    for action in parser._actions:
        is_common = action.dest in COMMON
        group = own if action.dest not in inherited and action.dest != "help" else common if is_common else rest
        group._group_actions.append(action)
    parser._action_groups = [own, common, rest]
    return parser


def _description(stage: Stage, variants: dict[str, Stage]) -> str:
    """What the stage trains and on what, its script's own words, and an example."""
    module = sys.modules[stage.make_data.__module__]
    told = [f"Stage {stage.name!r} trains the parameters that match {stage.trains!r}, on:"]
    told += [f"  {(stage.make_data.__doc__ or '').strip()}", "", (module.__doc__ or "").strip(), ""]
    told += [f"--{name}: the stage {other.name!r} instead." for name, other in variants.items()]
    told += [f"Example files: {CONFIGS}"]
    return "\n".join(told)
