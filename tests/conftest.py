"""One thread a process: pytest-xdist already fills the cores, and OpenMP teams that share them wait for each other."""

import os
from pathlib import Path

import pytest

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def miniature(tmp_path_factory) -> Path:
    """The run folder of a quickstart in miniature, made once for all test processes: read it, or copy it."""
    from filelock import FileLock
    from forked import run_pan

    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "miniature"
    run = shared / "runs" / "quickstart"
    with FileLock(f"{shared}.lock"):
        if not (run / "report.html").exists():
            shared.mkdir(exist_ok=True)
            done = run_pan("quickstart", "--miniature", "--backbone", "debug", cwd=shared)
            assert done.returncode == 0, done.said[-3000:]
    return run
