"""The time budget of a stage, turned into a number of steps."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from pan_hf.files import write_file
from pan_hf.modeling.embedding_pan import are_several, broadcast_from_main

MEASURED_STEPS = (10, 30)  # steps timed to turn seconds into steps: the first ones warm up
CHECK_EVERY = 10  # steps between corrections of their number


def now() -> float:
    """Seconds on a clock that is never set."""
    return time.monotonic()


class Budget:
    """How many steps a stage has, given or derived from seconds.

    The learning rate is constant for the first half and then falls linearly to a twentieth, so the number of steps
    need not be known while it is being measured, and may grow during the first half. It stays where weights are
    averaged: those of the last steps, `averaged_share` of all. What was decided is written down, and a resumed run
    never takes more.

    Args:
        folder: of the stage; holds `budget.json`.
        max_steps (`int`): steps at most.
        seconds (`float`, *optional*): of the whole stage, from `started` on: what is read and encoded before the first
            step counts, too.
        averaged_share (`float`): see above.
        started (`float`, *optional*): when the stage began, as `now` says; when training begins by default.
        reserve (`float`): seconds of them that are kept for what comes after the last step: calibrating and saving.
    """

    def __init__(
        self,
        folder: Path,
        max_steps: int,
        seconds: float | None,
        averaged_share: float = 0.0,
        started: float | None = None,
        reserve: float = 0.0,
    ):
        self.path, self.averaged_share = folder / "budget.json", averaged_share
        self.most, self.max_steps, self.seconds, self.is_final = max_steps, max_steps, seconds, seconds is None
        self.started, self.reserve = started, reserve
        if seconds is not None and self.path.exists():
            self.max_steps, self.is_final = json.loads(self.path.read_text())["max_steps"], True

    def decide(self, max_steps: int, is_written: bool = True) -> None:
        """Fixes the number of steps and, in one process of several, writes it down."""
        self.max_steps, self.is_final = min(self.most, max_steps), True
        if is_written:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, json.dumps({"max_steps": self.max_steps, "seconds": self.seconds}))

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

    def on_train_begin(self, args, state, control, **kwargs):
        begun = self.saved = _of_main(now(), args)
        started = self.budget.started
        self.started = begun if started is None else _of_main(started, args)
        self.first_step, self.mark = state.global_step, (begun, state.global_step)  # that the pace is counted from
        state.max_steps = self.budget.max_steps

    def on_step_end(self, args, state, control, **kwargs):
        moment, step, budget = _of_main(now(), args), state.global_step, self.budget
        if budget.seconds is not None:
            left = budget.seconds - budget.reserve - (moment - self.started)
            pace = (moment - self.mark[0]) / max(1, step - self.mark[1])  # seconds a step
            if left < pace and step < budget.max_steps:
                self._decide(state, step)  # there is no time for another step
            elif not budget.is_final and step - self.first_step == MEASURED_STEPS[1]:
                self._decide(state, step + int(left / pace))
            elif budget.is_final and step % CHECK_EVERY == 0:
                self._correct(state, step + int(left / pace))
            if step - self.first_step in MEASURED_STEPS:
                self.mark = moment, step
        if moment - self.saved > self.save_seconds:
            control.should_save, self.saved = True, moment
        if step >= budget.max_steps:
            control.should_training_stop = True
        return control

    def _decide(self, state, max_steps: int) -> None:
        self.budget.decide(max_steps, is_written=state.is_world_process_zero)
        state.max_steps = self.budget.max_steps

    def _correct(self, state, affordable: int) -> None:
        """Takes steps away where the machine has become slower than it was when they were counted, and adds some
        where it has become faster, while the learning rate does not depend on their number yet."""
        is_open = self.first_step == 0 and state.global_step < self.budget.max_steps / 2
        if affordable < 0.97 * self.budget.max_steps or (is_open and affordable > 1.03 * self.budget.max_steps):
            self._decide(state, affordable)


def _of_main(moment: float, args) -> float:
    """A moment on the first process's clock: processes that decide by their own part ways, and wait for each other for
    ever. A tensor of one number is sent, since this is done at every step. Args: args, of the Trainer."""
    if not are_several():
        return moment
    return float(broadcast_from_main(torch.tensor(moment, dtype=torch.float64, device=args.device)))
