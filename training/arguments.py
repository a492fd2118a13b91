"""The command line of a stage: a YAML file says how to train, flags say what is different this time.

    python -m pan_hf.training.align --config dynamics.yaml --max_steps 500

Every field of a stage's arguments is a flag and a key of the file. `--help` shows the stage's own first, then those of
`TrainingArguments`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
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
from pan_hf.training.budget import now
from pan_hf.training.optimizers import MUON
from pan_hf.training.tuning import TUNINGS, check_lora

CONFIGS = Path(__file__).parent / "configs"  # examples, installed with the package
# of `TrainingArguments`, what a run of a stage most often sets
COMMON = """output_dir max_steps learning_rate per_device_train_batch_size gradient_accumulation_steps seed
logging_steps save_strategy save_steps eval_steps report_to run_name bf16""".split()


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, and every default behind its flag."""


def parse(stage: Stage, variants: dict[str, Stage], command: list[str] | None = None) -> tuple[Stage, StageArguments]:
    """Reads a stage's command line.

    Args:
        stage: what the script runs.
        variants: other stages of the same script, by the flag (and key of a file) that asks for them.
        command (`list[str]`, *optional*): the command line; that of the process by default.

    Returns:
        the stage that is asked for, and its arguments.

    Raises:
        SystemExit: help was asked for, or the file or a flag says something that the stage does not know; the message
            names it, and what comes near.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    for name in variants:
        first.add_argument(f"--{name}", action="store_true")
    chosen, flags = first.parse_known_args(sys.argv[1:] if command is None else command)
    parser = _parser(stage, variants)
    try:
        settings = {} if chosen.config is None else read_config(chosen.config)
        for name, other in variants.items():
            if settings.pop(name, False) or getattr(chosen, name):
                stage = other
        parser = _parser(stage, variants)
        # the file's come first, because the last flag of a name is the one that counts
        values, unknown = parser.parse_known_args([*_as_flags(settings, parser, chosen.config), *flags])
        if unknown:
            raise ValueError(unknown_names(unknown, "flags", [field.name for field in fields(stage.arguments)]))
        for name in ("model", "data", "output_dir"):
            if not getattr(values, name):
                raise ValueError(f"--{name} is required")
        return stage, stage.arguments(**{name: value for name, value in vars(values).items() if name != "config"})
    except (OSError, ValueError) as error:
        return parser.error(str(error))  # which exits


def find_config(path: str | Path, flag: str = "--config") -> Path:
    """The file itself, or that of a recipe in [`CONFIGS`] by its name, as "pusht".

    Args:
        flag: by which it was given, for errors.

    Raises:
        FileNotFoundError: there is neither such a file nor such a recipe; the message lists the recipes.
    """
    path = Path(path)
    if path.suffix or len(path.parts) > 1 or path.is_file():  # no bare name
        return path
    recipes = {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}
    if path.name not in recipes:
        raise FileNotFoundError(f"{flag} {path}: no such file, and no recipe of {', '.join(recipes)}.")
    return recipes[path.name]


def read_config(path: str | Path, flag: str = "--config") -> dict[str, Any]:
    """A YAML file's keys and values. Args: see `find_config`.

    Raises:
        FileNotFoundError: see `find_config`.
        ValueError: it is no YAML, or no mapping of names to values.
    """
    path = find_config(path, flag)
    with extra("cli", "A file of settings"):
        import yaml
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{flag} {path} is not YAML: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise ValueError(f"{flag} {path}: expected lines of `name: value`, got {type(settings).__name__}.")
    return settings


def _as_flags(settings: dict[str, Any], parser: argparse.ArgumentParser, path: str | None) -> list[str]:
    """A file's values as flags, so that they are read just as flags are: YAML takes `1e-3` for text, and a flag would
    take `2.5` for no number of steps; both are then right."""
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    if unknown := [name for name in settings if name not in actions]:
        raise ValueError(f"--config {path}: {unknown_names(unknown, 'keys', list(actions))}")
    flags: list[str] = []
    for name, value in settings.items():
        if actions[name].nargs == "+" and value is not None:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        elif isinstance(value, list):
            raise ValueError(f"--config {path}: {name} is one value, got the list {value}.")
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def unknown_names(names: list[str], what: str, expected: list[str]) -> str:
    """Says which names are unknown, and which of the expected ones each is like."""
    texts = []
    for name in names:
        near = difflib.get_close_matches(name.lstrip("-").split("=")[0].replace("-", "_"), expected, 3)
        texts.append(f"{name!r} (near: {', '.join(near)})" if near else repr(name))
    return f"unknown {what}: {', '.join(texts)}. `--help` shows all there are."


def _parser(stage: Stage, variants: dict[str, Stage]) -> HfArgumentParser:
    """The parser of a stage, whose help begins with what the stage trains, on what, and with its own flags."""
    module = sys.modules[stage.make_data.__module__]
    parser = HfArgumentParser(
        stage.arguments,
        description="\n".join(
            [
                f"Stage {stage.name!r} trains the parameters that match {stage.trains!r}, on:",
                f"  {(stage.make_data.__doc__ or '').strip()}\n\n{(module.__doc__ or '').strip()}\n",
                *(f"--{name}: the stage {other.name!r} instead." for name, other in variants.items()),
                f"Example files: {CONFIGS}",
            ]
        ),
        formatter_class=_Help,
        allow_abbrev=False,
        usage="%(prog)s [--config FILE.yaml] --model DIR --data DIR --output_dir DIR [--NAME VALUE ...]",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file, or name of a recipe; flags come before it.")
    parser.set_defaults(**defaults(stage))
    inherited = {field.name for field in fields(TrainingArguments)} | {"help"}
    own, common, rest = (
        parser.add_argument_group(title)
        for title in ("this stage", "the Trainer, most used", "the Trainer, all else (transformers.TrainingArguments)")
    )
    for action in parser._actions:
        group = common if action.dest in COMMON else rest if action.dest in inherited else own
        group._group_actions.append(action)
    parser._action_groups = [own, common, rest]
    return parser


@dataclass
class StageArguments(TrainingArguments):
    """What every stage takes, beside all of `TrainingArguments`."""

    model: str = field(default="", metadata={"help": "Checkpoint to start from."})
    data: str = field(default="", metadata={"help": "Recording (`pan record`); only its train split is read."})
    seconds: float | None = field(
        default=None,
        metadata={
            "help": "Wall-clock budget, from reading to saving; turned into a number of steps after the first 30."
        },
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
    backbone: str | None = field(
        default=None,
        metadata={
            "help": "How a backbone is trained: lora, freeze or full; lora if it is pretrained, full if it is not."
        },
    )
    lora: dict | str | None = field(
        default=None, metadata={"help": 'Fields of a new adapter\'s LoraConfig, as JSON: {"r": 16}.'}
    )
    started: float = field(
        default=0.0, init=False, metadata={"help": "When the stage began; `seconds` count from it."}
    )

    def __post_init__(self):
        self.started = now()
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
        self.loss_weights = check_loss_weights(self.mapping("loss_weights"))
        self.lora = self.mapping("lora")
        check_lora(self.lora)
        if self.backbone not in (None, *TUNINGS):
            raise ValueError(f"`backbone` must be one of {TUNINGS}, got {self.backbone!r}.")
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
        if not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"`learning_rate` must be at least 0, got {self.learning_rate}.")
        self.check_least(max_steps=1, eval_windows=1, early_stopping_patience=1, stream_buffer=1, rollout_every=0)
        if self.streaming and self.dataloader_num_workers:
            raise ValueError("A stream is read where its place is known; leave `dataloader_num_workers` at 0.")

    def mapping(self, name: str) -> dict:
        """An argument that is a mapping, or one as JSON. Raises ValueError for anything else."""
        given = getattr(self, name)
        try:
            found = json.loads(given) if isinstance(given, str) else given or {}
        except json.JSONDecodeError as error:
            raise ValueError(f"`{name}` is not JSON ({error}): {given!r}.") from error
        if not isinstance(found, dict):
            raise ValueError(f"`{name}` takes values by name, got {given!r}.")
        return found

    def seconds_left(self, share: float = 1.0) -> float:
        """Seconds until a share of the time budget is spent, by this process's clock; infinite without a budget."""
        return math.inf if self.seconds is None else share * self.seconds - (now() - self.started)

    def check_least(self, **least: int) -> None:
        """Raises ValueError where an argument is below its least value."""
        for name, smallest in least.items():
            if getattr(self, name) is not None and getattr(self, name) < smallest:
                raise ValueError(f"`{name}` must be at least {smallest}, got {getattr(self, name)}.")


@dataclass
class RolloutArguments(StageArguments):
    """What the stages that imagine take."""

    horizon: int = field(default=8, metadata={"help": "Steps imagined in a rollout, where episodes are as long."})

    def __post_init__(self):
        super().__post_init__()
        self.check_least(horizon=1)


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
    if torch.cuda.is_available():
        machine = {"bf16": stage.half and torch.cuda.is_bf16_supported()}
    else:  # a CPU that only emulates bfloat16 is slower in it
        multiplies = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        machine = {"use_cpu": True, "bf16": stage.half and multiplies}
    return DEFAULTS | machine | stage.defaults


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
        prepare: `(model, arguments) -> (model, dataset) -> None`, called with the model before training, and what it
            returns with the model after it.
        wrap: `(model, arguments) -> model`, what the Trainer gets in its place, e.g. the model with an adapter on it.
        save: `(folder, what wrap gave, processor, files, before)`, how the result is saved, see [`save_checkpoint`].
        arguments: the class of its arguments.
        callbacks: `(model, dataset, arguments) -> callbacks` of the Trainer.
        look: `(model, dataset) -> None`, what the model notes of a recording before it trains on it: of all windows,
            or, of a stream, of those that its `stats` are of.
        calibrate (*optional*): `(model, dataset, arguments) -> None`, what the trained model sets by how it does on
            some windows, before it is saved.
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
    prepare: Callable[..., Callable[[PanModel, Dataset], None]] = lambda model, args: lambda trained, dataset: None
    wrap: Callable[[PanModel, StageArguments], torch.nn.Module] = lambda model, args: model
    save: Callable[..., None] = save_checkpoint
    arguments: type[StageArguments] = StageArguments
    callbacks: Callable[..., list[TrainerCallback]] = lambda model, data, args: []
    look: Callable[..., None] = lambda model, dataset: None
    calibrate: Callable[..., None] | None = None
    averages: bool = True
    streams: bool = False


COMPLETE = "complete"


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint in a stage's folder; one that a kill cut short lacks its last file."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None
