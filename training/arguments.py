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
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import HfArgumentParser, TrainerCallback, TrainingArguments

from pan_hf.checkpoints import save_checkpoint
from pan_hf.extras import extra
from pan_hf.modeling import PanModel
from pan_hf.modeling.configuration_pan import check_loss_weights
from pan_hf.training.optimizers import MUON

CONFIGS = Path(__file__).parent / "configs"  # examples, installed with the package
# of `TrainingArguments`, what a run of a stage most often sets
COMMON: tuple[str, ...] = (
    "output_dir",
    "max_steps",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)
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

    Args:
        path: the file, or the name of a recipe in [`CONFIGS`], as "pusht".

    Raises:
        FileNotFoundError: there is neither such a file nor such a recipe; the message lists the recipes.
        ValueError: it is no YAML, or no mapping of names to values.
    """
    path = _recipe(path)
    with extra("cli", "A file of settings"):
        import yaml
    try:
        told = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from error
    if told is None:
        return {}
    if not isinstance(told, dict) or not all(isinstance(name, str) for name in told):
        raise ValueError(f"--config {path}: expected lines of `name: value`, got {type(told).__name__}.")
    return told


def _recipe(path: str | Path) -> Path:
    """The file that is meant: a bare name without an ending is a recipe's."""
    path = Path(path)
    if path.suffix or len(path.parts) > 1 or path.exists():
        return path
    recipes = {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}
    if path.name not in recipes:
        raise FileNotFoundError(f"--config {path}: no such file, and no recipe of {', '.join(recipes)}.")
    return recipes[path.name]


def _as_flags(told: dict[str, Any], parser: argparse.ArgumentParser, path: str | None) -> dict[str, Any]:
    """A file's values as defaults of the parser: numbers as text, so that they are read just as flags are. YAML takes
    `1e-3` for text, and a flag would take `2.5` for no number of steps; both are then right."""
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    unknown = [name for name in told if name not in actions]
    if unknown:
        raise ValueError(f"--config {path}: {unknown_names(unknown, 'keys', list(actions))}")
    found: dict[str, Any] = {}
    for name, value in told.items():
        takes_many = actions[name].nargs == "+"
        if takes_many and value is not None:
            read = actions[name].type or str
            found[name] = [read(str(one)) for one in (value if isinstance(value, list) else [value])]  # type: ignore[operator]  # a class
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

    parser = HfArgumentParser(
        stage.arguments,
        description=_description(stage, variants),
        formatter_class=_Help,
        allow_abbrev=False,
        usage="%(prog)s [--config FILE.yaml] --model DIR --data DIR --output_dir DIR [--NAME VALUE ...]",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file, or name of a recipe; flags come before it.")
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


@dataclass
class StageArguments(TrainingArguments):
    """What every stage takes, beside all of `TrainingArguments`."""

    model: str = field(default="", metadata={"help": "Checkpoint to start from."})
    data: str = field(default="", metadata={"help": "Recording (`pan record`); only its train split is read."})
    seconds: float | None = field(
        default=None, metadata={"help": "Wall-clock budget; turned into a number of steps after the first 30."}
    )
    encoded: str | None = field(
        default=None, metadata={"help": "Folder that keeps what the senses make of the recording, for the next stage."}
    )
    optim: str = field(
        default="adamw_torch",
        metadata={"help": "An optimizer by its name in Transformers, or `muon`."},
    )
    progress: bool = field(default=True, metadata={"help": "Show a progress bar."})
    eval_fraction: float = field(
        default=0.0,
        metadata={"help": "Share of the training episodes that are held out, to log the loss on them (`eval_loss`)."},
    )
    eval_windows: int = field(default=256, metadata={"help": "Windows of them that are evaluated."})
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations no better than the best, and keep the best weights."},
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the recording while training on it, not into memory first."}
    )
    stream_buffer: int = field(default=2048, metadata={"help": "Windows in memory that a stream draws from."})
    rollout_every: int = field(
        default=0, metadata={"help": "Steps between pictures of imagined beside real frames, for trackers; 0: none."}
    )
    averaged_share: float = field(
        default=0.0,
        metadata={"help": "Save the mean of the weights of the last steps, so large a share of all; the rate stays."},
    )
    loss_weights: dict | str | None = field(
        default=None,
        metadata={"help": 'Weights of losses from this stage on, as JSON: {"reward": 0.5}. Others stay as they are.'},
    )

    def __post_init__(self):
        if self.early_stopping_patience is not None or self.eval_fraction:
            self.eval_strategy = "steps"
        if self.early_stopping_patience is not None:  # the best weights so far are the last whole checkpoint
            self.save_strategy, self.load_best_model_at_end = "best", True
            self.restore_callback_states_from_checkpoint = True
        with_muon = self.optim == MUON  # which Transformers does not know
        if with_muon:
            self.optim = "adamw_torch"
        super().__post_init__()
        if with_muon:
            self.optim = MUON
        self.loss_weights = read_loss_weights(self.loss_weights)
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"`eval_fraction` must be at least 0 and below 1, got {self.eval_fraction}.")
        if not 0 <= self.averaged_share <= 1:
            raise ValueError(f"`averaged_share` must be a share from 0 to 1, got {self.averaged_share}.")
        if self.averaged_share and self.early_stopping_patience is not None:
            raise ValueError(
                "Early stopping keeps the weights of one step, `averaged_share` the mean of many; give one of them."
            )
        if not self.eval_fraction and (self.early_stopping_patience is not None or self.rollout_every):
            raise ValueError(
                "Early stopping and pictures of rollouts need episodes held out; give `eval_fraction`, e.g. 0.1."
            )
        least = {"eval_windows": 1, "early_stopping_patience": 1, "stream_buffer": 1, "rollout_every": 0}
        for name, smallest in least.items():
            if getattr(self, name) is not None and getattr(self, name) < smallest:
                raise ValueError(f"`{name}` must be at least {smallest}, got {getattr(self, name)}.")
        if self.streaming and self.dataloader_num_workers:
            raise ValueError("A stream is read where its place is known; leave `dataloader_num_workers` at 0.")


@dataclass
class RolloutArguments(StageArguments):
    """What the stages that imagine take."""

    horizon: int = field(default=8, metadata={"help": "Steps imagined in a rollout, where episodes are as long."})


def read_loss_weights(given: dict | str | None) -> dict[str, float]:
    """Weights by name of the loss, from JSON where they come from a shell. Raises ValueError: no such weights."""
    try:
        return check_loss_weights(json.loads(given) if isinstance(given, str) else given or {})
    except json.JSONDecodeError as error:
        raise ValueError(f"`loss_weights` is not JSON ({error}): {given!r}.") from error


# what differs from Transformers' defaults, for every stage
DEFAULTS = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "eval_steps": 200,
    "metric_for_best_model": "loss",
    "greater_is_better": False,
    "max_steps": 100_000,
    "logging_steps": 50,
    "save_strategy": "no",  # BudgetCallback asks for checkpoints by the clock
    "report_to": "none",
    "remove_unused_columns": False,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "adam_beta2": 0.98,
    "disable_tqdm": True,
    "seed": 0,
    "dataloader_pin_memory": False,
    "ddp_find_unused_parameters": False,
}


def arguments(stage: Stage, **given) -> StageArguments:
    """The stage's arguments with its defaults, and those of this machine."""
    return stage.arguments(**(defaults(stage) | given))


def defaults(stage: Stage) -> dict:
    """What a stage's arguments are unless they are given: its own, every stage's, this machine's."""
    return DEFAULTS | _machine(stage) | stage.defaults


@dataclass(frozen=True)
class Stage:
    """What a stage trains and on what.

    Args:
        name: of the stage and of its folder.
        objective: key of `objectives_pan.OBJECTIVES`.
        trains: pattern of the parameter names it trains; all others are frozen.
        make_data: `(model, processor, trajectories, arguments) -> (dataset, row weights)`; where the stage `streams`,
            it also takes `stats` ([`DatasetStats`]), and the trajectories are then a part of a recording.
        defaults: differences from `DEFAULTS`.
        slow: share of the learning rate by the beginning of a parameter's name.
        half: whether it trains in bfloat16 (autocast) on a machine that is faster in it.
        is_needed: whether a model has anything for this stage to train.
        prepare: `(model) -> (model, dataset) -> None`, called with the model before training, and what it returns with
            the model after it.
        wrap: `(model, arguments) -> model`, what the Trainer gets in its place, e.g. the model with an adapter on it.
        save: `(folder, what wrap gave, processor, files)`, how the result is saved, see [`save_checkpoint`].
        arguments: the class of its arguments.
        callbacks: `(model, dataset, arguments) -> callbacks` of the Trainer.
        look: `(model, dataset) -> None`, what the model notes of a recording before it trains on it: of all windows,
            or, of a stream, of those that its `stats` are of.
        calibrate: `(model, dataset) -> None`, what the trained model sets by how it does on some windows, before it is
            saved.
        averages: whether the mean of its weights over many steps is a model: not where something beside the weights
            changes with them, codebooks or vocabulary.
        streams: whether it can go through a recording window by window. Other stages need few windows; with
            `streaming` they get those of some episodes, drawn at random.
    """

    name: str
    objective: str
    trains: str
    make_data: Callable[..., tuple[Dataset, torch.Tensor]]
    defaults: dict = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    half: bool = False
    is_needed: Callable[[PanModel, StageArguments], bool] = lambda model, args: True
    prepare: Callable[[PanModel], Callable[[PanModel, Dataset], None]] = lambda model: lambda trained, dataset: None
    wrap: Callable[[PanModel, StageArguments], torch.nn.Module] = lambda model, args: model
    save: Callable[..., None] = save_checkpoint
    arguments: type[StageArguments] = StageArguments
    callbacks: Callable[..., list[TrainerCallback]] = lambda model, data, args: []
    look: Callable[..., None] = lambda model, dataset: None
    calibrate: Callable[..., None] = lambda model, dataset: None
    averages: bool = True
    streams: bool = False


def _machine(stage: Stage) -> dict:
    """`use_cpu` where there is no accelerator; bfloat16 where the stage bears it and the machine multiplies in it."""
    if torch.cuda.is_available():
        return {"bf16": stage.half and torch.cuda.is_bf16_supported()}
    multiplies = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return {"use_cpu": True, "bf16": stage.half and multiplies}


COMPLETE = "complete"


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint in a stage's folder; one that a kill cut short lacks its last file."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None
