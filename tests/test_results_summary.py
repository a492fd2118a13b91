"""What `pan evaluate` and `pan plan` say in the end: a table that fits a terminal."""

import pytest

from pan_hf.evaluation.summary import evaluation_summary, planning_summary
from pan_hf.reporting.results import record


def measured(metric, by_horizon, model="pan", environment="all"):
    where = {"environment": environment, "split": "test", "seeds": [0], "model": model}
    return [record(metric, value, stderr=0.01, horizon=horizon, **where) for horizon, value in by_horizon.items()]


@pytest.fixture
def records():
    entries = []
    for environment in ("A-v0", "all"):
        for model, share in (("pan", 0.9), ("copy_last", 0.2)):
            where = {"model": model, "environment": environment}
            entries += measured("exact_frame", {1: share, 5: share / 2}, **where)
            entries += measured("teacher_forced_exact_frame", {1: share, 5: share}, **where)
            entries += measured("action_sensitivity_exact_state", {1: share}, **where)
        entries += measured("reconstruction_psnr", {None: 6.94}, environment=environment)
    return entries


def test_an_evaluation_ends_in_a_row_a_model_and_a_column_a_horizon(records):
    lines = evaluation_summary(records).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["steps", "ahead", "1", "5"],
        ["exact", "frame", "pan", "90.0", "±", "1.0%", "45.0", "±", "1.0%"],
        ["copy_last", "20.0", "±", "1.0%", "10.0", "±", "1.0%"],
    ]
    assert lines[3:] == ["Frames reconstruct at 6.9 ± 0.0 dB: give the senses stage more time."]


def test_an_evaluation_at_an_effort_of_one_environment_has_its_table_too():
    predicted = measured("exact_frame", {1: 0.9, 5: 0.5}, environment="A-v0")
    cost = measured("compute_per_step", {None: 0.4})  # over all environments, at no horizon
    rebuilt = measured("reconstruction_psnr", {None: 6.94}, environment="A-v0")
    lines = evaluation_summary([*cost, *predicted, *rebuilt]).splitlines()
    assert lines[0].split() == ["steps", "ahead", "1", "5"] and lines[1].startswith("exact frame")
    assert lines[-1].startswith("Frames reconstruct")
    assert "Nothing" in evaluation_summary(cost)


def test_planning_ends_in_a_row_a_policy_with_success_first_where_it_is_defined():
    entries = []
    for model, won in (("pan/graph", 1.0), ("random_policy", 0.25)):
        where = {"model": model, "environment": "A-v0", "split": "unseen_seeds", "seeds": [0]}
        entries += [record("return", won, **where), record("steps", 10, **where), record("success", won, **where)]
    lines = [line.split() for line in planning_summary(entries).splitlines()]
    assert lines[0] == ["A-v0", "success", "return", "steps"] and lines[2][:2] == ["random_policy", "25.0%"]
    assert len(lines) == 3


def test_nothing_measured_is_said():
    assert "Nothing" in evaluation_summary([]) and "No episode" in planning_summary(None)
