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
from transformers import HfArgumentParser, PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from pan_hf.build import save_checkpoint
from pan_hf.modeling import PanModel
from pan_hf.tokenization import PanProcessor
from pan_hf.training.trainer import Budget, PanTrainer, last_checkpoint, write_text
from pan_hf.trajectories import Trajectories, load_trajectories

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
    progress: bool = field(default=True, metadata={"help": "Show a progress bar."})


# what differs from Transformers' defaults, for every stage
DEFAULTS = {
    "per_device_train_batch_size": 32,
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
        make_data: `(model, processor, trajectories, arguments) -> (dataset, row weights)`.
        defaults: differences from `DEFAULTS`.
        slow: share of the learning rate by the beginning of a parameter's name.
        half: whether it trains in bfloat16 (autocast) on a machine that is faster in it.
        is_needed: whether a model has anything for this stage to train.
        prepare: `(model) -> (model) -> None`, called with the model before training and what it returns with the model
            after it.
        wrap: `(model, arguments) -> model`, what the Trainer gets in its place, e.g. the model with an adapter on it.
        save: `(folder, what wrap gave, processor, files)`, how the result is saved, see [`save_checkpoint`].
        arguments: the class of its arguments.
        callbacks: `(model, dataset, arguments) -> callbacks` of the Trainer.
    """

    name: str
    objective: str
    trains: str
    make_data: Callable[[PanModel, PanProcessor, Trajectories, StageArguments], tuple[Dataset, torch.Tensor]]
    defaults: dict = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    half: bool = False
    is_needed: Callable[[PanModel], bool] = lambda model: True
    prepare: Callable[[PanModel], Callable[[PanModel], None]] = lambda model: lambda trained: None
    wrap: Callable[[PanModel, StageArguments], torch.nn.Module] = lambda model, args: model
    save: Callable[[Path, torch.nn.Module, PanProcessor, dict[str, str]], None] = save_checkpoint
    arguments: type[StageArguments] = StageArguments
    callbacks: Callable[[PanModel, Dataset, StageArguments], list[TrainerCallback]] = lambda model, data, args: []


def arguments(stage: Stage, **given) -> StageArguments:
    """The stage's arguments with its defaults, and those of this machine."""
    return stage.arguments(**(DEFAULTS | _machine(stage) | stage.defaults | given))


def _machine(stage: Stage) -> dict:
    """`use_cpu` where there is no accelerator; bfloat16 where the stage bears it and the machine multiplies in it."""
    if torch.cuda.is_available():
        return {"bf16": stage.half and torch.cuda.is_bf16_supported()}
    multiplies = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return {"use_cpu": True, "bf16": stage.half and multiplies}


def main(stage: Stage) -> None:
    """The command line of a stage: every field of its arguments is a flag."""
    parser = HfArgumentParser(stage.arguments, description=(stage.make_data.__doc__ or stage.name).strip())
    parser.set_defaults(**(DEFAULTS | _machine(stage) | stage.defaults))
    (parsed,) = parser.parse_args_into_dataclasses()
    for name in ("model", "data"):
        if not getattr(parsed, name):
            parser.error(f"--{name} is required")
    try:
        run(stage, parsed)
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
    set_seed(args.seed)
    model, processor = PanModel.from_pretrained(args.model), PanProcessor.from_pretrained(args.model)
    processor.check_model(model)
    trajectories = trajectories or load_trajectories(args.data, "train")
    if not stage.is_needed(model):
        return Path(args.model)
    if args.use_cpu:
        # at a few hundred positions the fused kernel is slower backwards than plain products
        model.set_attn_implementation("eager")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.match(stage.trains, name) is not None)
    dataset, weights = stage.make_data(model, processor, trajectories, args)
    finish = stage.prepare(model)
    if last_checkpoint(folder):  # the vocabulary may have grown since the stage began; the weights come with `_train`
        processor = PanProcessor.from_pretrained(last_checkpoint(folder))
        model.config.vocabulary_digest = processor.vocabulary_digest
    processor.attach(model)
    trainer = _trainer(stage, args, stage.wrap(model, args), processor, dataset, weights)
    _train(trainer, stage.name, folder)
    finish(trainer.accelerator.unwrap_model(trainer.model))
    if trainer.is_world_process_zero():
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        write_text(folder / "log.json", json.dumps(trainer.state.log_history, indent=1))
        trained_on = {TRAINING_DATA: json.dumps(training_data(args, trajectories), indent=1)}
        stage.save(final, trainer.accelerator.unwrap_model(trainer.model), processor, trained_on)
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


def _trainer(stage: Stage, args, model, processor, dataset, weights) -> PanTrainer:
    from pan_hf.training.windows import WeightedRows

    trainer = PanTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=_as_it_is,
        processing_class=processor,
        objective=stage.objective,
        sampler=WeightedRows(weights, args.seed),
        budget=Budget(Path(args.output_dir), args.max_steps, args.seconds),
        slow=stage.slow,
    )
    trainer.remove_callback(PrinterCallback)
    for callback in stage.callbacks(model, dataset, args):
        trainer.add_callback(callback)
    if args.progress:
        trainer.add_callback(_progress(stage.name))
    return trainer


def _as_it_is(batch):
    """The data sets gather whole batches, so there is nothing to collate."""
    return batch


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


def training_data(args: StageArguments, trajectories: Trajectories) -> dict:
    """The episodes trained on, with those the checkpoint was already trained on; evaluation refuses them all."""
    known = {"fingerprints": [], "environments": []}
    path = Path(args.model) / TRAINING_DATA
    if path.exists():
        known = json.loads(path.read_text())
    return {
        "fingerprints": sorted({*known["fingerprints"], *trajectories.fingerprints}),
        "environments": sorted({*known["environments"], *trajectories.environments}),
    }
