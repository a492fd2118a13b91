"""Seconds and peak memory of a stage, written into a run's `timing.json`."""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pan_hf.extras import extra
from pan_hf.reporting.results import read_records, record, write_records
from pan_hf.reporting.tables import select

with extra("report", "Timing a stage"):
    import psutil


@contextmanager
def stage_timer(
    path: str | os.PathLike,
    stage: str,
    *,
    environment: str = "all",
    seeds: Iterable[int] = (),
    resume: bool = False,
) -> Iterator[None]:
    """Times the block and keeps its seconds and peak memory in `path` (timing.json), also if it fails or is stopped.

    Two records, `metric` "seconds" and "peak_memory_gib", with `model=stage` and `split="run"`. Memory is the resident
    set of the process and its children, sampled four times a second; pages they share count once for each.

    Args:
        path (`str` or `Path`): the file of records; created if absent, records of other stages are kept.
        stage (`str`): the name of the stage.
        resume (`bool`): the block goes on with a stage begun earlier: seconds add up and the higher peak stays.
            Otherwise what the file said of this stage is replaced.
    """
    seeds = list(seeds)
    start = time.perf_counter()
    with _PeakMemory() as memory:
        try:
            yield
        finally:
            seconds, peak = time.perf_counter() - start, memory.read()
            others = read_records(path) if Path(path).exists() else []
            if resume:
                seconds += sum(entry.value for entry in select(others, model=stage, metric="seconds"))
                peak = max([peak, *(entry.value for entry in select(others, model=stage, metric="peak_memory_gib"))])
            where: dict[str, Any] = {"model": stage, "environment": environment, "split": "run", "seeds": seeds}
            mine = [record("seconds", seconds, **where), record("peak_memory_gib", peak, **where)]
            write_records(path, [entry for entry in others if entry.model != stage] + mine)


class _PeakMemory:
    """Highest resident memory of this process and its children, in GiB, while the context is open."""

    def __enter__(self) -> "_PeakMemory":
        self.peak = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def read(self) -> float:
        """Takes one more sample and returns the peak so far, so that a short block is measured too."""
        self.peak = max(self.peak, _resident_gib())
        return self.peak

    def _sample(self) -> None:
        while not self._stop.wait(0.25):
            self.read()


def _resident_gib() -> float:
    this = psutil.Process()
    total = 0
    for process in [this, *this.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue  # a child that has ended meanwhile
    return total / 2**30
