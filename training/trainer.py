"""The Trainer of every stage: named losses in the log, a time budget that is turned into a number of steps,
checkpoints that count only once they are whole."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback

from pan_hf.modeling.processes_pan import are_several
from pan_hf.training.averaging import WeightAverage
from pan_hf.training.optimizers import build_optimizer
from pan_hf.training.row_draws import row_draws
from pan_hf.training.shared_weights import read_training_state, read_weights, whole_tensors, write_training_state
from pan_hf.training.streaming import WindowStream, write_state

COMPLETE = "complete"
MEASURED_STEPS = (10, 30)  # steps timed to turn seconds into steps: the first ones warm up
CHECK_EVERY = 10  # steps between looks at the clock


class Budget:
    """How many steps a stage has, given or derived from seconds.

    The learning rate is constant for the first half and then falls linearly to a twentieth, so the number of steps
    need not be known while it is being measured, and may grow during the first half. It stays where weights are
    averaged: those of the last steps, `averaged_share` of all. What was decided is written down, and a resumed run
    never takes more.
    """

    def __init__(self, folder: Path, max_steps: int, seconds: float | None, averaged_share: float = 0.0):
        self.path, self.averaged_share = folder / "budget.json", averaged_share
        self.most, self.max_steps, self.seconds, self.is_final = max_steps, max_steps, seconds, seconds is None
        if seconds is not None and self.path.exists():
            self.max_steps, self.is_final = json.loads(self.path.read_text())["max_steps"], True

    def decide(self, max_steps: int, is_written: bool = True) -> None:
        """Fixes the number of steps and, in one process of several, writes it down."""
        self.max_steps, self.is_final = min(self.most, max_steps), True
        if not is_written:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps({"max_steps": self.max_steps, "seconds": self.seconds}))

    def rate(self, step: int, warmup: int = 20) -> float:
        """Share of the peak learning rate at a step."""
        if not self.is_final or self.averaged_share:
            return min(1.0, (step + 1) / warmup)
        left = (self.max_steps - step) / max(1, self.max_steps / 2)
        return min(1.0, (step + 1) / warmup, max(0.05, left))

    def is_averaged(self, step: int) -> bool:
        """Whether the weights after so many steps are among those averaged; the last ones always are."""
        return self.is_final and step > min(self.max_steps - 1, (1 - self.averaged_share) * self.max_steps)


class BudgetCallback(TrainerCallback):
    """Times some steps, fixes their number, and asks for a checkpoint every `save_seconds`."""

    def __init__(self, budget: Budget, save_seconds: float = 60.0):
        self.budget, self.save_seconds = budget, save_seconds
        self.started = self.saved = time.monotonic()
        self.mark, self.first_step = (self.started, 0), 0  # time and step that the pace is counted from

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = self.saved = _agreed(time.monotonic())
        self.first_step, self.mark = state.global_step, (self.started, state.global_step)
        state.max_steps = self.budget.max_steps

    def on_step_end(self, args, state, control, **kwargs):
        now = _agreed(time.monotonic())
        if not self.budget.is_final:
            self._measure(state, now)
        elif self.budget.seconds is not None and state.global_step % CHECK_EVERY == 0:
            self._keep_to_time(state, now)
        if now - self.saved > self.save_seconds:
            control.should_save, self.saved = True, now
        if state.global_step >= self.budget.max_steps:
            control.should_training_stop = True
        return control

    def _measure(self, state, now: float) -> None:
        """Turns seconds into steps once enough of this run's steps have been timed, or at once if time is up."""
        (first, last), done = MEASURED_STEPS, state.global_step - self.first_step
        left = self.budget.seconds - (now - self.started)
        if left <= 0:
            self._decide(state, state.global_step)
        elif done == last:
            self._decide(state, self._affordable(state, now))
        if done in (first, last):
            self.mark = now, state.global_step

    def _decide(self, state, max_steps: int) -> None:
        self.budget.decide(max_steps, is_written=state.is_world_process_zero)
        state.max_steps = self.budget.max_steps

    def _affordable(self, state, now: float) -> int:
        """Steps that the seconds are worth at the pace since the mark."""
        since, step = self.mark
        left = self.budget.seconds - (now - self.started)
        return state.global_step + int(max(0.0, left) * (state.global_step - step) / (now - since))

    def _keep_to_time(self, state, now: float) -> None:
        """Takes steps away where the machine has become slower than it was when they were counted, and adds some
        where it has become faster, while the learning rate does not depend on their number yet."""
        affordable = self._affordable(state, now)
        is_open = self.first_step == 0 and state.global_step < self.budget.max_steps / 2
        if affordable < 0.97 * self.budget.max_steps or (is_open and affordable > 1.03 * self.budget.max_steps):
            self._decide(state, affordable)


def _agreed(seconds: float) -> float:
    """The first process's clock: processes that decide by their own part ways, and then wait for each other for
    ever."""
    if not are_several():
        return seconds
    told = [seconds]
    dist.broadcast_object_list(told, src=0)
    return told[0]


class NamedMeans:
    """Means by name since they were last taken, over batches and processes."""

    def __init__(self):
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
        self._count += 1

    def take(self, accelerator) -> dict[str, float]:
        """Means, rounded; in every process the same."""
        if not self._count:
            return {}
        sums = torch.stack([*self._sums.values()]) / self._count
        means = accelerator.reduce(sums, "mean").tolist()
        found = {name: round(mean, 6) for name, mean in zip(self._sums, means, strict=True)}
        self._sums, self._count = {}, 0
        return found


class PanTrainer(Trainer):
    """Trains one objective of [`PanModel`].

    Args:
        objective (`str`): a key of `objectives_pan.OBJECTIVES`.
        sampler: of the rows of the training set.
        budget ([`Budget`]): number of steps and the learning rate's shape.
        slow (`dict[str, float]`, *optional*): share of the learning rate by the beginning of a parameter's name.

    Where `budget` says that weights are averaged, they are (see [`WeightAverage`]).
    """

    lr_scheduler: LambdaLR | None

    def __init__(self, *args, objective: str, sampler, budget: Budget, slow: dict[str, float] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.objective, self.sampler, self.budget, self.slow = objective, sampler, budget, slow or {}
        self._sums = {"loss": NamedMeans(), "eval_loss": NamedMeans()}
        self._micro_step = (-1, 0)
        self.add_callback(BudgetCallback(budget))
        self.average = None
        if budget.averaged_share:
            self.average = WeightAverage(self.model, budget, Path(self.args.output_dir))
            self.add_callback(self.average)

    def _get_train_sampler(self, *_):
        return self.sampler

    def floating_point_ops(self, inputs) -> int:
        return 0  # the estimate assumes `input_ids`

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            args, groups = self.args, {}
            decays = set(self.get_decay_parameter_names(self.model)) if args.weight_decay else set()
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    share = next((share for start, share in self.slow.items() if name.startswith(start)), 1.0)
                    groups.setdefault((share, name in decays), {})[name] = parameter
            named = [
                {"params": group, "lr": args.learning_rate * share, "weight_decay": args.weight_decay * is_decayed}
                for (share, is_decayed), group in groups.items()
            ]
            self.optimizer = build_optimizer(self.model, args, named)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.budget.rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """What is drawn at random in a step depends on the seed and the step alone; of several processes, each takes
        the rows that it has of what one alone would draw (`row_draws.py`)."""
        step, micro = self._micro_step
        self._micro_step = step, micro = self.state.global_step, micro + 1 if step == self.state.global_step else 0
        torch.manual_seed(hash((self.args.seed, step, micro)))
        with row_draws(self.accelerator, inputs):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(objective=self.objective, **inputs)
        self._sums["loss" if model.training else "eval_loss"].add({**output.losses, **output.metrics})
        return (output.loss, output) if return_outputs else output.loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss alone: an objective's batch has no labels to look for."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach().mean(), None, None

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Draws the same each time, so that evaluations differ by what was learned alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed)
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name, means in self._sums.items():
            if name in logs:
                logs |= {f"{name}/{part}": value for part, value in means.take(self.accelerator).items()}
        super().log(logs, start_time)

    def whole_model(self) -> torch.nn.Module:
        """The trained model with all of its weights; where processes share them out, a copy, in the first process."""
        model = self.accelerator.unwrap_model(self.model)
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return model
        tensors = self._whole_tensors()
        whole = type(model)._from_config(model.config)
        if self.is_world_process_zero():
            whole.load_state_dict(tensors)
        return whole

    def _whole_tensors(self) -> dict[str, torch.Tensor]:
        """All weights; every process takes part in gathering them, or the others would wait for ever."""
        if self.is_deepspeed_enabled:
            return self.accelerator.get_state_dict(self.model_wrapped)
        return whole_tensors(self.model)

    def save_model(self, output_dir=None, _internal_call=False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        whole = self.whole_model()  # what Accelerate gathers leaves tied weights shared out
        if self.args.should_save:
            whole.save_pretrained(output_dir or self.args.output_dir)
            self.processing_class.save_pretrained(output_dir or self.args.output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            write_training_state(self.model, self.optimizer, self.lr_scheduler, output_dir)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.is_fsdp_enabled and checkpoint is not None:
            read_training_state(self.model, self.optimizer, self.lr_scheduler, checkpoint)
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.is_fsdp_enabled:
            read_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            read_weights(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _save_checkpoint(self, model, trial) -> None:
        """The mark of a whole checkpoint comes last, and only then do older checkpoints go."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial))
            saved = folder / f"checkpoint-{self.state.global_step}"
            if isinstance(self.train_dataset, WindowStream):
                windows_a_step = self.train_dataset.keep_every
                write_state(saved, self.train_dataset, self.state.global_step * windows_a_step)
            if self.average is not None:
                self.average.save(saved)
            write_text(saved / COMPLETE, "")
            best = Path(self.state.best_model_checkpoint or saved)
            for other in set(folder.glob("checkpoint-*")) - {saved, best}:
                shutil.rmtree(other)


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint in a stage's folder; one that a kill cut short lacks its last file."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
