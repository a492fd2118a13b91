"""Seconds and steps as a budget: how many steps fit, how the rate follows them, and what each stage gets."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from pan_hf.training import budget as budgets
from pan_hf.training import pipeline, reinforce, rollouts, trainer
from pan_hf.training.arguments import arguments
from pan_hf.training.pipeline import SHARES


def test_the_learning_rate_warms_up_stays_and_falls(tmp_path):
    budget = budgets.Budget(tmp_path, 200, None)
    assert budget.rate(0) == 0.05 and budget.rate(19) == budget.rate(100) == 1.0
    assert budget.rate(150) == 0.5 and budget.rate(200) == 0.05
    undecided = budgets.Budget(tmp_path, 10**6, 60.0)
    assert undecided.rate(5000) == 1.0
    undecided.decide(300)
    assert budgets.Budget(tmp_path, 10**6, 60.0).max_steps == 300  # written down


@pytest.mark.parametrize("first_step, expected", [(0, range(5700, 5731)), (1, range(100, 101))])
def test_steps_that_become_faster_are_more_while_the_rate_is_constant(tmp_path, monkeypatch, first_step, expected):
    """Thirty steps a second apart, then ten a second: ten minutes are worth 5730 steps, found before the learning
    rate begins to fall; a resumed run takes no more than was written down."""
    now = [0.0]
    monkeypatch.setattr(budgets, "time", SimpleNamespace(monotonic=lambda: now[0]))
    budget = budgets.Budget(tmp_path, 10**6, 600.0)
    if first_step:
        budget.decide(100)
    callback, control = trainer.BudgetCallback(budget), TrainerControl()
    state, rates = TrainerState(global_step=first_step, is_world_process_zero=True), []
    callback.on_train_begin(None, state, control)
    while not control.should_training_stop:
        state.global_step += 1
        now[0] += 1.0 if state.global_step <= 30 else 0.1
        callback.on_step_end(None, state, control)
        rates.append(budget.rate(state.global_step))
    assert state.global_step in expected and budget.max_steps == state.global_step == state.max_steps
    assert now[0] <= 600.0 and all(abs(one - other) < 0.1 for one, other in itertools.pairwise(rates[20:]))


def test_what_came_before_the_first_step_and_comes_after_the_last_is_in_the_budget(tmp_path, monkeypatch):
    now = [8.0]  # when training begins; 1 second a step
    monkeypatch.setattr(budgets, "time", SimpleNamespace(monotonic=lambda: now[0]))
    budget = budgets.Budget(tmp_path, 10**6, 60.0, started=0.0, reserve=5.0)
    callback, control, state = trainer.BudgetCallback(budget), TrainerControl(), TrainerState(global_step=0)
    callback.on_train_begin(None, state, control)
    while not control.should_training_stop:
        now[0], state.global_step = now[0] + 1, state.global_step + 1
        callback.on_step_end(None, state, control)
    assert now[0] == 55.0 and state.global_step == 47


def test_several_processes_tell_the_time_by_one_number_at_every_step(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(budgets, "are_several", lambda: True)
    monkeypatch.setattr(budgets, "broadcast_from_main", lambda moment: sent.append(moment) or moment + 1)
    callback = trainer.BudgetCallback(budgets.Budget(tmp_path, 10, 60.0))
    args, state = SimpleNamespace(device="cpu"), TrainerState(global_step=0)
    callback.on_train_begin(args, state, TrainerControl())
    callback.on_step_end(args, state, TrainerControl())
    assert len(sent) == 2 and all(moment.dtype == torch.float64 and moment.ndim == 0 for moment in sent)
    assert callback.started == float(sent[0]) + 1


def test_examples_are_made_as_long_as_their_share_of_the_budget_lasts(monkeypatch):
    now, rows = [0.0], torch.arange(1000)
    monkeypatch.setattr(budgets, "time", SimpleNamespace(monotonic=lambda: now[0]))
    args = arguments(reinforce.WARM_UP, output_dir="o", seconds=10.0)
    batches = []
    for batch in rollouts.affordable(rows, args):
        batches.append(batch)
        now[0] += 0.01 * len(batch)
    made = torch.cat(batches)
    assert torch.equal(made, rows[: len(made)]) and len(batches[0]) == rollouts.FEW
    assert 200 <= len(made) <= 400  # 4 seconds are worth 400
    args.seconds = None
    assert [len(batch) for batch in rollouts.affordable(rows, args)] == [64] * 15 + [40]


def test_stages_share_what_is_left_of_the_time():
    shared, left = [name for name in SHARES if SHARES[name]], 100.0
    for name in shared:
        given = pipeline._seconds_of(name, shared, 100.0, left)
        assert given <= 100.0 * SHARES[name] + pipeline.SAVING
        left -= given + (30.0 if name == "senses" else 0.0)  # which took longer than it was given
    assert left > -pipeline.SAVING
    assert pipeline._seconds_of("reinforce", shared, 100.0, -20.0) == pipeline.SAVING


def test_the_rate_stays_where_weights_are_averaged_and_the_last_steps_count(tmp_path):
    budget = budgets.Budget(tmp_path, 1000, None, averaged_share=0.25)
    assert [budget.rate(step) for step in (0, 19, 500, 999)] == [0.05, 1, 1, 1]
    assert [step for step in range(1, 1001) if budget.is_averaged(step)] == [*range(751, 1001)]
    timed = budgets.Budget(tmp_path, 1000, 60.0, averaged_share=1.0)
    assert not timed.is_averaged(1000)  # nobody knows yet which are the last
