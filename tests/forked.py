"""Code in a process of its own that has already imported what costs seconds to import: a fork of the test's process.

What belongs to a fresh interpreter (imports, installation, remote code) is tested in one; everything else need not pay
for it.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pan_hf.training.pipeline  # noqa: F401  once, for all that is forked


@dataclass
class Done:
    """A finished process: exit code and what it said, both streams in one."""

    returncode: int
    said: str


def run_forked(function: Callable[[], object], folder: Path) -> Done:
    """Calls `function()` in `folder`, in a process of its own."""
    told = folder / ".told.txt"
    process = multiprocessing.get_context("fork").Process(target=_call, args=(function, folder, told))
    process.start()
    process.join()
    return Done(process.exitcode, told.read_text())


def run_in_two(function: Callable[[], object], folder: Path) -> None:
    """Calls `function()` in `folder`, in two processes of one group, as `accelerate launch` tells them of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def in_group(rank: int) -> None:
        from accelerate.state import AcceleratorState

        os.environ |= group | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
        AcceleratorState._reset_state(reset_partial_state=True)  # of what this process was
        function()

    told = [folder / f".told{rank}.txt" for rank in (0, 1)]
    fork = multiprocessing.get_context("fork").Process
    processes = [fork(target=_call, args=(partial(in_group, rank), folder, told[rank])) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert not any(process.exitcode for process in processes), "\n".join(file.read_text()[-3000:] for file in told)


def run_pan(*arguments: str, cwd: Path) -> Done:
    """`pan ARGUMENTS` in a folder."""

    def main():
        from pan_hf import cli

        sys.argv = ["pan", *arguments]
        cli.main()

    return run_forked(main, cwd)


def is_gone(process: int) -> bool:
    """Whether a process ends within seconds; one that nobody has waited for counts as ended."""
    for _ in range(100):
        status = Path(f"/proc/{process}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    return False


def _call(function: Callable[[], object], folder: Path, told: Path) -> None:
    os.chdir(folder)
    os.environ["HOME"] = str(folder)
    with told.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            function()
        except SystemExit:
            raise
        except BaseException:
            traceback.print_exc()
            raise
