"""What becomes of wrong, odd and equivalent arguments: a hundred thousand calls of the public API and of `pan`.

    python benchmarks/fuzz.py                       # an hour on two cores
    python benchmarks/fuzz.py --cases 1000 --only PanModel.simulate
    python benchmarks/fuzz.py --singles             # every change once, by itself: a few minutes

Cases are those of `tests/fuzzing`; what is counted there as what stands in `tests/fuzzing/outcomes.py`. Every outcome
that is neither a right result nor a sentence is written to `--failures`, and ends this with status 1.
"""

import json
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # also from a checkout that is not installed
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
from pan_hf.reporting.results import record, write_records  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "fuzz" / "fuzz.json"
Row = tuple[str, str, str, str, str]  # kind, target, call, detail, place


def main(
    cases: Annotated[int, typer.Option(help="Calls, all workers together.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Of the draws; worker k has seed + k.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 2,
    only: Annotated[str, typer.Option(help="Targets whose names hold this.")] = "",
    singles: Annotated[bool, typer.Option("--singles", help="Every change once instead of `cases` draws.")] = False,
    failures: Annotated[Path, typer.Option(help="Where outcomes that are not good are written, a line each.")] = Path(
        "runs/fuzz.jsonl"
    ),
    output: Annotated[Path, typer.Option(help="Where the records go.")] = RESULTS,
) -> None:
    """Calls and counts; writes records and prints a table."""
    begun = time.monotonic()
    context = multiprocessing.get_context("spawn")
    shares = [(cases // workers + (number < cases % workers), seed + number, only) for number in range(workers)]
    with context.Pool(workers) as pool:
        if singles:
            found = pool.starmap(count_singles, [(number, workers, only) for number in range(workers)])
        else:
            found = pool.starmap(count, shares)
    counts = sum((Counter(part) for part, _ in found), Counter())
    bad: list[Row] = sorted({tuple(row) for _, rows in found for row in rows})
    failures.parent.mkdir(parents=True, exist_ok=True)
    failures.write_text("".join(json.dumps(row) + "\n" for row in bad))
    records = as_records(counts, [] if singles else list(range(seed, seed + workers)))
    write_records(output, records)
    for entry in records:
        if entry.environment == "all":
            print(f"{entry.metric:>10} {entry.value:>8.0f}")
    print(f"{len(bad)} different outcomes that are not good in {failures}; {time.monotonic() - begun:.0f} s.")
    raise typer.Exit(bool(bad))


def count(cases: int, seed: int, only: str) -> tuple[Counter, list[Row]]:
    """Draws and judges so many cases: counts by (target, outcome), and those that are not good."""
    from fuzzing.cases import cases as draw
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    chosen, tally = targets_of(only), Tally()
    part = 0
    while (missing := cases - sum(tally.counts.values())) > 0:  # Hypothesis stops where it finds nothing new
        limits = settings(
            max_examples=min(missing, 2000),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seeded(seed * 1_000_003 + part)(limits(given(draw(chosen))(tally.judge)))()
        part += 1
    return tally.counts, tally.bad


def count_singles(number: int, workers: int, only: str) -> tuple[Counter, list[Row]]:
    """Judges every `workers`-th change from the `number`-th on, each by itself."""
    from fuzzing.cases import singles

    tally = Tally()
    for case in islice(singles(targets_of(only)), number, None, workers):
        tally.judge(case)
    return tally.counts, tally.bad


def targets_of(only: str) -> tuple:
    """The targets whose names hold a text; prepares this process to call them."""
    import torch
    from fuzzing.cases import TARGETS

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    chosen = tuple(target for target in TARGETS if only in target.name)
    if not chosen:
        raise typer.BadParameter(f"--only {only}: no target of this name; there are {[t.name for t in TARGETS]}.")
    return chosen


class Tally:
    """Outcomes by (target, kind), and those that are not good."""

    def __init__(self) -> None:
        self.counts: Counter = Counter()
        self.bad: list[Row] = []

    def judge(self, case) -> None:
        """Calls, and counts what came of it."""
        from fuzzing.cases import run

        outcome = run(case)
        self.counts[outcome.target, outcome.kind] += 1
        if not outcome.is_good:
            self.bad.append((outcome.kind, outcome.target, outcome.call, outcome.detail, outcome.place))


def as_records(counts: Counter, seeds: list[int]) -> list:
    """Of each kind of outcome how often it came, of all targets and of each."""
    from fuzzing.outcomes import OUTCOMES

    kinds = ("all", *OUTCOMES)
    records = []
    for target in ("all", *sorted({target for target, _ in counts})):
        here = Counter({kind: n for (name, kind), n in counts.items() if name == target})
        if target == "all":
            here = sum((Counter({kind: n}) for (_, kind), n in counts.items()), Counter())
        here["all"] = here.total()
        where = {"environment": target, "split": "fuzz", "seeds": seeds}
        records += [record(f"{kind}_calls", here[kind], model="pan_hf", **where) for kind in kinds]
    return records


if __name__ == "__main__":
    typer.run(main)
