"""Runs the common tests against our classes: where they come from, which are left out, and what is counted."""

import os
import sys
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before Transformers is imported: nothing is fetched from a hub

import pytest  # noqa: E402
from left_out import LEFT_OUT  # noqa: E402
from source import VERSION, tests_folder  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(tests_folder()), str(ROOT / "tests")]  # the mixins, as the package `tests`; and `tiny_worlds`

_outcomes: dict[str, tuple[str, str]] = {}  # by test, what became of it and, where it was skipped, why


MARKERS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "is_training_test")
MARKERS += ("torch_compile_test", "order")


def pytest_configure(config):
    for name in MARKERS:
        config.addinivalue_line("markers", f"{name}: of Transformers' own tests")


def pytest_addoption(parser):
    parser.addoption("--record", help="file to write the counts to")


def pytest_collection_modifyitems(items):
    """Leaves out what `left_out` names. Raises UsageError for a name that no test has."""
    unused = {(kind, name) for kind, reasons in LEFT_OUT.items() for name in reasons}
    whole = {item.cls.__name__ for item in items}
    for item in items:
        key = (item.cls.__name__, item.originalname or item.name)
        if key in unused or key[1] in LEFT_OUT.get(key[0], {}):
            unused.discard(key)
            item.add_marker(pytest.mark.skip(reason=LEFT_OUT[key[0]][key[1]]))
    stale = sorted(f"{kind}.{name}" for kind, name in unused if kind in whole)
    if stale:
        raise pytest.UsageError(f"left_out.py names tests that do not exist: {stale}")


def pytest_runtest_logreport(report):
    """The worst that became of a test counts, sub-tests included."""
    order = ("passed", "skipped", "failed")
    if report.outcome == "passed" and report.when != "call":
        return
    before = _outcomes.get(report.nodeid, ("passed", ""))
    if order.index(report.outcome) >= order.index(before[0]):
        reason = report.longrepr[2] if report.outcome == "skipped" and isinstance(report.longrepr, tuple) else ""
        _outcomes[report.nodeid] = (report.outcome, reason)


def pytest_sessionfinish(session):
    target = session.config.getoption("--record")
    if target is None or hasattr(session.config, "workerinput"):
        return
    from pan_hf.reporting.results import record, write_records

    ours = {f"Skipped: {reason}" for reasons in LEFT_OUT.values() for reason in reasons.values()}
    counts: dict[str, Counter] = {}
    for test, (outcome, reason) in _outcomes.items():
        kind = test.split("::")[1]
        outcome = "left_out" if outcome == "skipped" and reason in ours else outcome
        counts.setdefault(kind, Counter())[outcome] += 1
    records = [
        record(
            outcome,
            counts[kind][outcome],
            model=kind,
            environment=f"transformers {VERSION}",
            split="common tests",
            seeds=[],
            command="make test-upstream",
        )
        for kind in sorted(counts)
        for outcome in ("passed", "left_out", "skipped", "failed")
    ]
    write_records(target, records)
