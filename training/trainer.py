"""The Trainer of every stage: named losses in the log, a time budget that is turned into a number of steps,
checkpoints that count only once they are whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from pan_hf.files import write_file
from pan_hf.modeling import PanModel
from pan_hf.training.arguments import COMPLETE
from pan_hf.training.budget import Budget, BudgetCallback
from pan_hf.training.distributed import (
    read_training_state,
    read_weights,
    whole_tensors,
    write_training_state,
)
from pan_hf.training.optimizers import WeightAverage, build_optimizer
from pan_hf.training.streaming import WindowStream, write_state
from pan_hf.training.tuning import FULL, Tuning


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
        rounded = {name: round(mean, 6) for name, mean in zip(self._sums, means, strict=True)}
        self._sums, self._count = {}, 0
        return rounded


def noise_seed(seed: int, step: int, micro: int, process: int) -> int:
    """Of what a process draws in a part (`micro`) of a step: another one in each process, since each has other rows.
    What all have to draw alike, codebooks for one, the first process draws."""
    return hash((seed, step, micro)) + process


class PanTrainer(Trainer):
    """Trains one objective of [`PanModel`].

    Args:
        objective (`str`): a key of `objectives_pan.OBJECTIVES`.
        sampler: of the rows of the training set.
        budget ([`Budget`]): number of steps and the learning rate's shape.
        slow (`dict[str, float]`, *optional*): share of the learning rate by the beginning of a parameter's name.
        tuning ([`Tuning`], *optional*): how the backbone is trained. Where it is kept, a checkpoint of the Trainer
            holds only what the stage changes; the rest is in what it started from.

    Where `budget` says that weights are averaged, they are (see [`WeightAverage`]).
    """

    lr_scheduler: LambdaLR | None

    def __init__(
        self,
        *args,
        objective: str,
        sampler,
        budget: Budget,
        slow: dict[str, float] | None = None,
        tuning: Tuning | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.objective, self.sampler, self.budget, self.slow = objective, sampler, budget, slow or {}
        self.tuning = tuning or Tuning(FULL)
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
            decays -= self.tuning.tables
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

    def _run_epoch(self, **kwargs) -> None:
        if self.state.global_step >= self.budget.max_steps:  # killed between the last checkpoint and the end
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """What is drawn at random in a step depends on the seed, the step and the process alone."""
        step, micro = self._micro_step
        self._micro_step = step, micro = self.state.global_step, micro + 1 if step == self.state.global_step else 0
        torch.manual_seed(noise_seed(self.args.seed, step, micro, self.args.process_index))
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

    def whole_model(self) -> PanModel:
        """The trained model with all of its weights; where processes share them out, a copy, in the first process."""
        model = self.accelerator.unwrap_model(self.model)
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return model
        # every process takes part in gathering the weights, or the others would wait for ever
        of_all = (
            self.accelerator.get_state_dict(self.model_wrapped)
            if self.is_deepspeed_enabled
            else whole_tensors(self.model)
        )
        whole = type(model)._from_config(model.config)
        if self.is_world_process_zero():
            whole.load_state_dict(of_all)
        return whole

    def save_model(self, output_dir=None, _internal_call=False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        whole = self.whole_model()  # what Accelerate gathers leaves tied weights shared out
        if self.args.should_save:
            whole.save_pretrained(output_dir or self.args.output_dir)
            self.processing_class.save_pretrained(output_dir or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if state_dict is None and self.tuning.kind != FULL:
            kept = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
            kept |= set(self.model.all_tied_weights_keys)
            state_dict = {name: value for name, value in self.model.state_dict().items() if name not in kept}
        super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result) -> None:
        if self.tuning.kind == FULL:  # otherwise most weights are missing, as they should
            super()._issue_warnings_after_load(load_result)

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
            write_file(saved / COMPLETE, "")
            best = Path(self.state.best_model_checkpoint or saved)
            for other in set(folder.glob("checkpoint-*")) - {saved, best}:
                shutil.rmtree(other)
