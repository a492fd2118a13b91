"""One training stage from a shell or from `pan train`: load, choose what is trained, train, save whole.

A stage reads a checkpoint and a recording and leaves `<output_dir>/final`, a checkpoint like any other. Run again, it
finds that it is done; run again after a kill, it goes on from its last whole Trainer checkpoint, and ends where an
uninterrupted run would have ended.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from pan_hf.build import save_checkpoint
from pan_hf.modeling import PanModel
from pan_hf.modeling.configuration_pan import check_loss_weights
from pan_hf.tokenization import PanProcessor
from pan_hf.tracking import RolloutImages, check_trackers
from pan_hf.training.command_line import parse
from pan_hf.training.material import Material, gather_material
from pan_hf.training.optimizers import MUON
from pan_hf.training.shared_weights import check_can_be_shared_out, check_needs_no_whole_weights
from pan_hf.training.streaming import gather
from pan_hf.training.trainer import Budget, PanTrainer, last_checkpoint, write_text
from pan_hf.trajectories import Trajectories

TRAINING_DATA = "training_data.json"


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
        default="adamw_torch", metadata={"help": "An optimizer by its name in Transformers, or `muon` (muon.py)."}
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


@dataclass(frozen=True)
class Stage:
    """What a stage trains and on what.

    Args:
        name: of the stage and of its folder.
        objective: key of `objectives_pan.OBJECTIVES`.
        trains: pattern of the parameter names it trains; all others are frozen.
        make_data: `(model, processor, trajectories, arguments) -> (dataset, row weights)`; where the stage `streams`,
            it also takes a `survey`, and the trajectories are then a part of a recording.
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
            or, of a stream, of those that were surveyed.
        judge: `(model, dataset) -> None`, what the trained model notes of itself before it is saved.
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
    save: Callable[[Path, torch.nn.Module, PanProcessor, dict[str, str]], None] = save_checkpoint
    arguments: type[StageArguments] = StageArguments
    callbacks: Callable[[PanModel, Dataset, StageArguments], list[TrainerCallback]] = lambda model, data, args: []
    look: Callable[[PanModel, Dataset], None] = lambda model, dataset: None
    judge: Callable[[PanModel, Dataset], None] = lambda model, dataset: None
    averages: bool = True
    streams: bool = False


def arguments(stage: Stage, **given) -> StageArguments:
    """The stage's arguments with its defaults, and those of this machine."""
    return stage.arguments(**(defaults(stage) | given))


def defaults(stage: Stage) -> dict:
    """What a stage's arguments are unless they are given: its own, every stage's, this machine's."""
    return DEFAULTS | _machine(stage) | stage.defaults


def _machine(stage: Stage) -> dict:
    """`use_cpu` where there is no accelerator; bfloat16 where the stage bears it and the machine multiplies in it."""
    if torch.cuda.is_available():
        return {"bf16": stage.half and torch.cuda.is_bf16_supported()}
    multiplies = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return {"use_cpu": True, "bf16": stage.half and multiplies}


def main(stage: Stage, **variants: Stage) -> None:
    """The command line of a script: `stage`, or one of the `variants` where its flag is given."""
    stage, args = parse(stage, variants)
    try:
        run(stage, args)
    except KeyboardInterrupt as interruption:
        sys.exit(str(interruption) or "Interrupted.")


def run(stage: Stage, args: StageArguments, trajectories: Trajectories | None = None) -> Path:
    """Runs a stage to its end and returns its `final` folder; a finished one returns at once.

    Raises:
        ValueError: checkpoint, recording and stage do not fit one another.
        KeyboardInterrupt: Ctrl-C; the last whole checkpoint is kept and the message says how to go on.
    """
    folder = Path(args.output_dir)
    final = folder / "final"
    if final.exists():
        return final
    if args.averaged_share and not stage.averages:
        raise ValueError(
            f"Stage {stage.name!r} changes more than weights, and the mean of its weights would not fit it. Leave "
            "`averaged_share` at 0."
        )
    check_trackers(args.report_to)
    set_seed(args.seed)
    model, processor = PanModel.from_pretrained(args.model), PanProcessor.from_pretrained(args.model)
    processor.check_model(model)
    if getattr(model, "is_quantized", False):
        raise ValueError(
            f"{args.model} is quantised, and stages train whole weights. Train the checkpoint that it was made from."
        )
    if not stage.is_needed(model, args):
        return Path(args.model)
    model.config.loss_weights = model.config.loss_weights | args.loss_weights
    if args.use_cpu:
        # at a few hundred positions the fused kernel is slower backwards than plain products
        model.set_attn_implementation("eager")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.match(stage.trains, name) is not None)
    material = gather_material(stage, args, model, processor, trajectories)
    finish = stage.prepare(model)
    if last_checkpoint(folder):  # the vocabulary may have grown since the stage began; the weights come with `_train`
        processor = PanProcessor.from_pretrained(last_checkpoint(folder))
        model.config.vocabulary_digest = processor.vocabulary_digest
    processor.attach(model)
    trainer = _trainer(stage, args, stage.wrap(model, args), processor, material)
    _train(trainer, stage.name, folder)
    trained = trainer.whole_model()
    finish(trained, material.dataset)
    if trainer.is_world_process_zero():
        stage.judge(trained, material.dataset)
        for parameter in trained.parameters():
            parameter.requires_grad_(True)
        write_text(folder / "log.json", json.dumps(trainer.state.log_history, indent=1))
        trained_on = {TRAINING_DATA: json.dumps(training_data(args, *material.trained_on()), indent=1)}
        stage.save(final, trained, processor, trained_on)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    trainer.accelerator.wait_for_everyone()
    return final


def _train(trainer: PanTrainer, name: str, folder: Path) -> None:
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    except KeyboardInterrupt:
        kept = last_checkpoint(folder)
        kept = f"{Path(kept).name} is kept" if kept else "it had not been saved yet"
        told = f"Stage {name!r} was interrupted at step {trainer.state.global_step}; {kept}. Run it again to go on."
        raise KeyboardInterrupt(told) from None


def _trainer(stage: Stage, args, model, processor, material: Material) -> PanTrainer:
    trainer = PanTrainer(
        model=model,
        args=args,
        train_dataset=material.dataset,
        eval_dataset=material.held_out,
        data_collator=gather,
        processing_class=processor,
        objective=stage.objective,
        sampler=material.sampler,
        budget=Budget(Path(args.output_dir), args.max_steps, args.seconds, args.averaged_share),
        slow=stage.slow,
    )
    check_needs_no_whole_weights(trainer)
    if trainer.is_fsdp_enabled:
        check_can_be_shared_out(model)
    trainer.remove_callback(PrinterCallback)
    for callback in [*stage.callbacks(model, material.dataset, args), *_watching(args, material)]:
        trainer.add_callback(callback)
    if args.progress:
        trainer.add_callback(_progress(stage.name))
    return trainer


def _watching(args: StageArguments, material: Material) -> list[TrainerCallback]:
    """The callbacks that look at episodes held out."""
    found: list[TrainerCallback] = []
    if args.early_stopping_patience is not None:
        found.append(EarlyStoppingCallback(args.early_stopping_patience))
    if args.rollout_every and material.rollouts is not None:
        found.append(RolloutImages(*material.rollouts, every=args.rollout_every))
    return found


def _progress(name: str):
    from transformers.trainer_callback import TrainerCallback

    class Progress(TrainerCallback):
        """One line a stage: steps, loss, time left."""

        def on_train_begin(self, args, state, control, **kwargs):
            from tqdm.auto import tqdm

            is_shown = state.is_world_process_zero
            self.bar = tqdm(total=state.max_steps, desc=name, unit="step", disable=not is_shown, mininterval=5)
            self.bar.update(state.global_step)

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.total = state.max_steps
            self.bar.update(state.global_step - self.bar.n)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                self.bar.set_postfix(loss=f"{float(logs['loss']):.4f}", refresh=False)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.total = state.global_step
            self.bar.close()

    return Progress()


def training_data(args: StageArguments, fingerprints: list[str], environments: list[str]) -> dict:
    """The episodes trained on, with those the checkpoint was already trained on; evaluation refuses them all."""
    known = {"fingerprints": [], "environments": []}
    path = Path(args.model) / TRAINING_DATA
    if path.exists():
        known = json.loads(path.read_text())
    return {
        "fingerprints": sorted({*known["fingerprints"], *fingerprints}),
        "environments": sorted({*known["environments"], *environments}),
    }
