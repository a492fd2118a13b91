"""Kills commands wherever they are, runs them again, and compares what there is with an undisturbed run.

    python benchmarks/kills.py                  # 1000 kills and a full disk at every write; more than an hour
    python benchmarks/kills.py --kills 40 --every 20    # minutes
    python benchmarks/kills.py --kills 90 --only "pan train"    # this row anew; the others stay as they are

Commands run in children forked after everything is imported, so that kills fall into the work. A kill is SIGKILL when
the command has had a share, drawn at random, of the processor's time that an undisturbed run takes; so they fall into
all of the work on a busy machine, too. What is counted is said in `docs/kills.md`.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import hashlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # also from a checkout that is not installed
import safetensors.torch  # noqa: E402
import transformers.modeling_utils  # noqa: E402
from datasets import Dataset  # noqa: E402
from hub_server import hub  # noqa: E402
from huggingface_hub import constants  # noqa: E402

from pan_hf.checkpoints import load, save_checkpoint  # noqa: E402
from pan_hf.cli import report  # noqa: E402
from pan_hf.data.importing.hf_dataset import import_dataset  # noqa: E402
from pan_hf.data.mirror import mirror  # noqa: E402
from pan_hf.data.record import record  # noqa: E402
from pan_hf.evaluation.evaluate import evaluate  # noqa: E402
from pan_hf.files import finish_writing  # noqa: E402
from pan_hf.publishing.push import push_checkpoint  # noqa: E402
from pan_hf.reporting.results import Record, read_records, write_records  # noqa: E402
from pan_hf.reporting.results import record as as_record  # noqa: E402
from pan_hf.training.pipeline import SHARES, train  # noqa: E402
from pan_hf.vocabulary import double  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "kills" / "kills.json"
FORK = multiprocessing.get_context("fork")
LEFT_OVER = (".*.tmp", ".*.ready", ".*.old", ".*.partial", "*.tmp")
TRAINED = ("senses", "dynamics")  # of the stages, those that make a checkpoint of numbers in seconds


@dataclass
class Command:
    """A command and what it makes.

    Args:
        name: in the table.
        work: does it in a folder; done twice it is as good as done once.
        result: what it makes, within the folder.
        is_whole: whether what lies there is the old content or the new at any moment, and not a part of the way.
        fills_disk: each so manyth of its writes is tried with a full disk, too.
        beside: what runs in a folder beside it, and is not killed.
    """

    name: str
    work: Callable[[Path], object]
    result: str = "run/checkpoint"
    is_whole: bool = True
    fills_disk: int = 1
    beside: Callable[[Path], contextlib.AbstractContextManager] = contextlib.nullcontext


# ---- the commands


def _record(folder: Path) -> None:
    record("CartPole-v1", folder / "recorded", frames=120, seed=3, progress=False)


def _import(folder: Path) -> None:
    rows = [{"observation.state": [0.1 * t, 0.2], "action": t % 2, "episode_index": t // 6} for t in range(60)]
    import_dataset(Dataset.from_list(rows), folder / "imported", progress=False)


def _train(folder: Path, run: str = "trained") -> None:
    overrides = {"senses": {"max_steps": 1}, "dynamics": {"max_steps": 4, "save_steps": 1, "save_strategy": "steps"}}
    skip = tuple(name for name in SHARES if name not in TRAINED)
    train(folder / run, folder / "run" / "data", backbone="debug", overrides=overrides, skip=skip, progress=False)


def _grow(folder: Path) -> None:
    model, processor = load(folder / "run")
    if not processor.tokenizer.has_word("lava"):
        model.grow("text", names=["lava"])
    save_checkpoint(folder / "run" / "checkpoint", model, processor)


def _grow_apart(folder: Path) -> None:
    model, processor = load(folder / "run")
    if not processor.tokenizer.has_word("lava"):
        model.grow("text", names=["lava"])
    model.save_pretrained(folder / "run" / "checkpoint")
    processor.save_pretrained(folder / "run" / "checkpoint")


def _double(folder: Path) -> None:
    double(folder / "run", ["text"])


def _mirror(folder: Path) -> None:
    turned = {"flips": ["horizontal"], "same": ["state"], "swaps": ["horizontal:0=1"]}
    mirror(folder / "run" / "data", folder / "mirrored", **turned, progress=False)


def _evaluate(folder: Path) -> None:
    evaluate(folder / "run", horizons=(1, 2), num_windows=8, progress=False)


def _report(folder: Path) -> None:
    os.chdir(folder)  # a report names its run as it was given
    report(run=Path("run"))


def _push(folder: Path) -> None:
    push_checkpoint(folder / "run", "user/pan")


@contextlib.contextmanager
def _hub_of(folder: Path) -> Iterator[None]:
    """A Hub of this machine whose repositories are folders in `folder`; huggingface_hub is told of it."""
    with hub(folder / "hub") as server:
        constants.ENDPOINT = server.endpoint
        constants.HUGGINGFACE_CO_URL_TEMPLATE = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE = True, False
        os.environ["HF_TOKEN"] = "any"
        yield


COMMANDS = (
    Command("pan record", _record, "recorded", is_whole=False),
    Command("pan import", _import, "imported"),
    Command("pan train", _train, "trained/checkpoint", fills_disk=7),  # it saves often, and starting it takes seconds
    Command("grow, save_checkpoint", _grow),
    Command("grow, model.save_pretrained, processor.save_pretrained", _grow_apart),
    Command("pan vocabulary --double", _double),
    Command("pan push", _push, "hub/models/user/pan/heads/main", is_whole=False, beside=_hub_of),
    Command("pan mirror", _mirror, "mirrored"),
    Command("pan evaluate", _evaluate, "run", is_whole=False),
    Command("pan report", _report, "run", is_whole=False),
)


# ---- what is killed, and what is compared


def make_base(folder: Path) -> Path:
    """A run with a recording and a checkpoint, in which commands work, and a file of the user's own."""
    record("CartPole-v1", folder / "run" / "data", frames=200, seed=0, progress=False)
    _train(folder, "run")
    (folder / "run" / "checkpoint" / "notes.md").write_text("mine")
    return folder


def child(work: Callable[[], object], quiet: bool = True) -> multiprocessing.Process:
    """Begins a piece of work in a copy of this process."""

    def run() -> None:
        if quiet:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
        work()

    process = FORK.Process(target=run)
    process.start()
    return process


def content(path: Path) -> str:
    """A digest of a file, or of all files of a folder; "" where there is nothing."""
    if path.is_file():
        return _commit(path) if path.parent.name == "heads" else hashlib.sha256(path.read_bytes()).hexdigest()
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + hashlib.sha256((path / name).read_bytes()).digest())
    return digest.hexdigest() if names else ""


def _commit(head: Path) -> str:
    return content(head.parent.parent / head.read_text())


def left_over(folder: Path) -> list[str]:
    """Temporary files and folders below a folder."""
    return sorted({str(path.relative_to(folder)) for pattern in LEFT_OVER for path in folder.rglob(pattern)})


def finished(folder: Path, command: Command, counts: Counter, expected: str) -> None:
    """Runs a command to its end, and counts what differs from an undisturbed run."""
    with command.beside(folder):
        again = child(partial(command.work, folder))
        again.join()
    counts["failed again"] += again.exitcode != 0
    counts["other"] += content(folder / command.result) != expected
    counts["left over"] += bool(left_over(folder))


def state(folder: Path, command: Command, before: str, after: str) -> str:
    """What lies there now: "before", "after", "between" or "lost"."""
    if command.is_whole:
        finish_writing(folder / command.result)
    now = content(folder / command.result)
    if now in (before, after):
        return "after" if now == after else "before"
    return "lost" if command.is_whole else "between"


def undisturbed(base: Path, command: Command, folder: Path) -> tuple[str, str, float]:
    """Content before and after a command, and the processor's seconds it takes."""
    seconds = []
    for number in range(2):  # twice: what a command makes depends on nothing but what it is given
        shutil.copytree(base, folder / str(number))
        before, start = content(folder / str(number) / command.result), _seconds_of_children()
        with command.beside(folder / str(number)):
            process = child(partial(command.work, folder / str(number)), quiet=False)
            process.join()
        assert process.exitcode == 0, f"{command.name} fails undisturbed"
        seconds.append(_seconds_of_children() - start)
    first, second = (content(folder / str(number) / command.result) for number in range(2))
    assert first == second, f"{command.name} makes something else each time"
    return before, first, min(seconds)


def _seconds_of_children() -> float:
    """The processor's, of all that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def kill_after(process: multiprocessing.Process, seconds: float) -> None:
    """Kills a process when the processor has worked for it so long; does nothing where it ends before."""
    worker = psutil.Process(process.pid)
    while process.is_alive() and sum(worker.cpu_times()[:2]) < seconds:
        time.sleep(0.001)
    process.kill()


def kill(base: Path, command: Command, times: int, draw: random.Random, scratch: Path) -> Counter:
    """Kills a command so many times, each in a fresh copy of the base."""
    before, after, seconds = undisturbed(base, command, scratch / "undisturbed")
    counts: Counter = Counter(kills=times)
    for number in range(times):
        folder = shutil.copytree(base, scratch / f"kill-{number}")
        with command.beside(folder):
            process = child(partial(command.work, folder))
            kill_after(process, draw.random() * seconds)
            process.join()
        counts[state(folder, command, before, after)] += 1
        finished(folder, command, counts, after)
        shutil.rmtree(folder)
    return counts


def two_writers(base: Path, times: int, draw: random.Random, scratch: Path) -> Counter:
    """Two processes save different models to one folder, by different calls, and one is killed."""
    counts: Counter = Counter(kills=times)
    saving = next(command for command in COMMANDS if command.work is _grow)
    _, _, seconds = undisturbed(base, saving, scratch / "undisturbed")

    def write(folder: Path, bias: float, apart: bool) -> None:
        """Saves one of the two models, together with its processor or by two calls."""
        model, processor = load(base / "run")
        model.config.copy_bias = bias
        if apart:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        else:
            save_checkpoint(folder, model, processor)

    made = {}
    for bias, apart in ((1.5, False), (2.5, True)):
        folder = shutil.copytree(base / "run" / "checkpoint", scratch / f"whole-{bias}")
        child(partial(write, folder, bias, apart)).join()
        made[bias] = content(folder)
    known = {content(base / "run" / "checkpoint"): "before"} | dict.fromkeys(made.values(), "after")
    assert len(known) == 3
    for number in range(times):
        folder = shutil.copytree(base / "run" / "checkpoint", scratch / f"two-{number}" / "checkpoint")
        writers = [child(partial(write, folder, 1.5, False)), child(partial(write, folder, 2.5, True))]
        kill_after(writers[number % 2], draw.random() * seconds)
        for writer in writers:
            writer.join()
        finish_writing(folder)
        counts[known.get(content(folder), "lost")] += 1
        last = child(partial(write, folder, 1.5, False))
        last.join()
        counts["failed again"] += last.exitcode != 0
        counts["other"] += content(folder) != made[1.5]
        counts["left over"] += bool(left_over(folder.parent))
        shutil.rmtree(folder.parent)
    return counts


# ---- a full disk


@contextlib.contextmanager
def full_at(number: int) -> Iterator[Counter]:
    """The call number `number` that writes finds the disk full: opening to write, folders, renames, tensors."""
    calls: Counter = Counter()
    kept = [(builtins, "open"), (io, "open"), (os, "replace"), (os, "mkdir"), (safetensors.torch, "save_file")]
    kept = [(holder, name, getattr(holder, name)) for holder, name in kept]
    kept.append((transformers.modeling_utils, "safe_save_file", transformers.modeling_utils.safe_save_file))

    def failing(function: Callable, opens: bool) -> Callable:
        def call(*args, **kwargs):
            mode = kwargs.get("mode", args[1] if len(args) > 1 else "r")
            if not opens or (isinstance(mode, str) and set(mode) & set("wax+")):
                calls["writes"] += 1
                if calls["writes"] == number:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return call

    try:
        for holder, name, function in kept:
            setattr(holder, name, failing(function, name == "open"))
        yield calls
    finally:
        for holder, name, function in kept:
            setattr(holder, name, function)


def num_writes(base: Path, command: Command, folder: Path) -> int:
    """How many writes a command makes."""
    shutil.copytree(base, folder)
    told = FORK.Value("i", 0)

    def work() -> None:
        with full_at(-1) as calls:
            command.work(folder)
        told.value = calls["writes"]

    with command.beside(folder):
        child(work).join()
    return told.value


def fill_disk(base: Path, command: Command, scratch: Path, every: int = 1) -> Counter:
    """Lets each write of a command in turn find the disk full (each `every`-th, and as many sizes of files)."""
    before, after, _ = undisturbed(base, command, scratch / "undisturbed")
    writes = range(1, num_writes(base, command, scratch / "counted") + 1, every * command.fills_disk)
    sizes = [2**power for power in range(4, 24, 2 * every)]
    counts: Counter = Counter()
    for size, number in [*((size, -1) for size in sizes), *((resource.RLIM_INFINITY, number) for number in writes)]:
        folder = shutil.copytree(base, scratch / f"full-{size}-{number}")

        def work(size=size, number=number, folder=folder) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            with full_at(number):
                command.work(folder)

        with command.beside(folder):
            child(work).join()
        counts["kills"] += 1
        counts[state(folder, command, before, after)] += 1
        finished(folder, command, counts, after)
        shutil.rmtree(folder)
    return counts


# ---- the table

COUNTED = ("kills", "before", "between", "after", "lost", "failed again", "other", "left over")


def measure(kills: int, seed: int, scratch: Path, every: int = 1, only: str = "") -> Iterator[tuple[str, Counter]]:
    """Names and counts of the rows: `kills` in all, then a full disk at every `every`-th write; 0 leaves them out."""
    base = make_base(scratch / "base")
    killed = {command.name: partial(kill, base, command) for command in COMMANDS}
    killed["two writers, one killed"] = partial(two_writers, base)
    chosen = [name for name in killed if only in name]
    for number, name in enumerate(chosen):
        if times := kills // len(chosen) + (number < kills % len(chosen)):
            yield name, killed[name](times, random.Random(f"{seed} {name}"), scratch / f"kills-{number}")
    for number, command in enumerate(COMMANDS):
        if every and only in (name := f"full disk: {command.name}"):
            yield name, fill_disk(base, command, scratch / f"full-{number}", every)


def as_records(name: str, counts: Counter, seed: int) -> list[Record]:
    """What is counted, a record each."""
    where = {"environment": name, "split": "kills", "seeds": [seed]}
    return [as_record(kind.replace(" ", "_"), counts[kind], model="pan_hf", **where) for kind in COUNTED]


def main(
    kills: Annotated[int, typer.Option(help="Kills in all, divided among the commands.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    every: Annotated[int, typer.Option(help="Fill the disk at each so manyth write; 0 for never.")] = 1,
    only: Annotated[str, typer.Option(help="Rows whose names hold this; others stay as they were measured.")] = "",
    output: Annotated[Path, typer.Option(help="Where the records go.")] = RESULTS,
) -> None:
    """Kills, counts, and writes records after every row; ends with 1 where anything was lost or differs."""
    torch.set_num_threads(1)
    measured = read_records(output) if only and output.exists() else []
    is_bad = False
    with tempfile.TemporaryDirectory() as scratch:
        for name, counts in measure(kills, seed, Path(scratch), every, only):
            print(name, {kind: counts[kind] for kind in COUNTED}, flush=True)
            measured = [entry for entry in measured if entry.environment != name] + as_records(name, counts, seed)
            write_records(output, measured)
            is_bad |= any(counts[kind] for kind in ("lost", "failed again", "other", "left over"))
    raise typer.Exit(is_bad)


if __name__ == "__main__":
    typer.run(main)
