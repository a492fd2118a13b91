"""One training stage from a shell or from `pan train`: load, choose what is trained, train, save whole.

A stage reads a checkpoint and a recording and leaves `<output_dir>/final`, a checkpoint like any other. Run again, it
finds that it is done; run again after a kill, it goes on from its last whole Trainer checkpoint, and ends where an
uninterrupted run would have ended.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, set_seed

from pan_hf.console import Progress, without_bars
from pan_hf.data.trajectories import Trajectories
from pan_hf.files import read_json, write_file
from pan_hf.modeling import PanModel
from pan_hf.reporting.tracking import RolloutImages, check_trackers
from pan_hf.tokenization import PanProcessor
from pan_hf.training.arguments import Stage, StageArguments, last_checkpoint, parse
from pan_hf.training.budget import Budget, now
from pan_hf.training.datasets import StageData, make_stage_data
from pan_hf.training.distributed import check_can_be_shared_out, check_needs_no_whole_weights
from pan_hf.training.streaming import collate
from pan_hf.training.trainer import PanTrainer
from pan_hf.training.tuning import Tuning, base_folder, save_adapted, tune

TRAINING_DATA = "training_data.json"
CALIBRATION = 0.05  # share of a time budget that is kept for it


def main(stage: Stage, **variants: Stage) -> None:
    """The command line of a script: `stage`, or one of the `variants` where its flag is given."""
    stage, args = parse(stage, variants)
    try:
        run(stage, args)
    except KeyboardInterrupt as interruption:
        sys.exit(str(interruption) or "Interrupted.")


@without_bars()
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
    before = now()
    start = base_folder(args.model)
    model, processor = PanModel.from_pretrained(start), PanProcessor.from_pretrained(start)
    reserve = now() - before  # saving takes about as long as loading
    processor.check_model(model)
    if getattr(model, "is_quantized", False):
        raise ValueError(
            f"{args.model} is quantised, and stages train whole weights. Train the checkpoint that it was made from."
        )
    if not stage.is_needed(model, args):
        return Path(args.model)
    model.config.training.loss_weights = model.config.training.loss_weights | args.loss_weights
    if args.use_cpu:
        # at a few hundred positions the fused kernel is slower backwards than plain products
        model.set_attn_implementation("eager")
    tuning = tune(model, processor, args.model, stage.trains, args.backbone, args.mapping("lora"))
    data = make_stage_data(stage, args, model, processor, trajectories)
    finish = stage.prepare(model, args)
    if checkpoint := last_checkpoint(folder):
        # the vocabulary may have grown since the stage began; the weights come with `_train`
        processor = PanProcessor.from_pretrained(checkpoint)
        model.config.vocabulary_digest = processor.vocabulary_digest
    processor.attach(model)
    if stage.calibrate is not None and args.seconds is not None:
        reserve += CALIBRATION * args.seconds
    budget = Budget(folder, args.max_steps, args.seconds, args.averaged_share, args.started, reserve)
    trainer = _trainer(stage, args, stage.wrap(model, args), processor, data, budget, tuning)
    _train(trainer, stage.name, folder)
    trained = trainer.whole_model()
    finish(trained, data.dataset)
    if trainer.is_world_process_zero():
        if stage.calibrate is not None:
            stage.calibrate(trained, data.dataset, args)
        for parameter in trained.parameters():
            parameter.requires_grad_(True)
        write_file(folder / "log.json", json.dumps(trainer.state.log_history, indent=1))
        trained_on = {TRAINING_DATA: json.dumps(training_data(args, *data.trained_on()), indent=1)}
        if tuning.adapted is not None:
            save_adapted(final, tuning.adapted, processor, trained_on, start)
        else:
            stage.save(final, trained, processor, trained_on, start)
        for left in folder.glob("checkpoint-*"):
            shutil.rmtree(left)
    trainer.accelerator.wait_for_everyone()
    return final


def _train(trainer: PanTrainer, name: str, folder: Path) -> None:
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    except KeyboardInterrupt:
        kept = last_checkpoint(folder)
        kept = f"{Path(kept).name} is kept" if kept else "it had not been saved yet"
        raise KeyboardInterrupt(
            f"Stage {name!r} was interrupted at step {trainer.state.global_step}; {kept}. Run it again to go on."
        ) from None


def _trainer(stage: Stage, args, model, processor, data: StageData, budget: Budget, tuning: Tuning) -> PanTrainer:
    trainer = PanTrainer(
        model=model,
        args=args,
        train_dataset=data.dataset,
        eval_dataset=data.held_out,
        data_collator=collate,
        processing_class=processor,
        objective=stage.objective,
        sampler=data.sampler,
        budget=budget,
        slow=stage.slow | tuning.slow,
        tuning=tuning,
    )
    check_needs_no_whole_weights(trainer, tuning.kind)
    if trainer.is_fsdp_enabled:
        check_can_be_shared_out(model)
    trainer.remove_callback(PrinterCallback)
    callbacks: list[TrainerCallback] = [*stage.callbacks(model, data.dataset, args)]
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    if args.rollout_every and data.rollouts is not None:
        callbacks.append(RolloutImages(*data.rollouts, every=args.rollout_every))
    if args.progress:
        callbacks.append(ProgressLine(stage.name))
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


class ProgressLine(TrainerCallback):
    """One line a stage: steps and loss."""

    def __init__(self, name: str):
        self.name = name

    def on_train_begin(self, args, state, control, **kwargs):
        is_shown = state.is_world_process_zero
        self.line = Progress(f"training {self.name}", state.max_steps, "steps", is_shown, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.line.total = state.max_steps
        self.line.update(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.line.note = f"loss {float(logs['loss']):.4g}"

    def on_train_end(self, args, state, control, **kwargs):
        self.line.total = state.global_step
        self.line.close()


def training_data(args: StageArguments, fingerprints: list[str], environments: list[str]) -> dict:
    """The episodes trained on, with those the checkpoint was already trained on; evaluation refuses them all."""
    path = Path(args.model) / TRAINING_DATA
    before = read_json(path) if path.exists() else {"fingerprints": [], "environments": []}
    return {
        "fingerprints": sorted({*before["fingerprints"], *fingerprints}),
        "environments": sorted({*before["environments"], *environments}),
    }
