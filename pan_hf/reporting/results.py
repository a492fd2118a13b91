"""Results are data: every number this project publishes is a `Record` in a JSON list, and nothing is typed by hand.

A record is tidy, one number a row: what was measured (`metric`, `horizon`), of what (`model`, `environment`, `split`,
`seeds`) and how it came to be (`command`, `commit`, `hardware`). A baseline is a record like any other, with `model`
"copy_last" or "random_policy". Tables, plots, the report and the model card are all made from such files.
"""

import importlib.metadata
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from pan_hf.extras import extra
from pan_hf.files import read_json, write_file

with extra("report", "A record of results"):
    import psutil

MISSING = "–"


@dataclass(frozen=True)
class Record:
    """One measured number.

    Args:
        metric (`str`): what was measured, for example "psnr" or "success".
        value (`float`): the number; NaN where the metric is undefined (written as null).
        stderr (`float`, *optional*): standard error of `value`, in its unit; None for a single measurement.
        horizon (`int`, *optional*): steps ahead of the last observed frame; None where that has no meaning.
        model (`str`): "pan", a baseline, or in timing.json the stage that was timed.
        environment (`str`): gymnasium id, or "all".
        split (`str`): which episodes it was measured on.
        seeds (`list[int]`): every seed behind the number.
        command (`str`), commit (`str`), hardware (`str`): where it comes from, see `provenance`.
    """

    metric: str
    value: float
    stderr: float | None
    horizon: int | None
    model: str
    environment: str
    split: str
    seeds: list[int]
    command: str
    commit: str
    hardware: str


FIELDS = tuple(field.name for field in fields(Record))


def record(
    metric: str,
    value: float,
    *,
    stderr: float | None = None,
    horizon: int | None = None,
    model: str = "pan",
    environment: str,
    split: str,
    seeds: Iterable[int],
    **origin: str,
) -> Record:
    """Makes a `Record` of plain Python numbers; `origin` overrides single entries of `provenance()`.

    Raises:
        TypeError: `origin` has a name that is not "command", "commit" or "hardware".
    """
    if unknown := set(origin) - {"command", "commit", "hardware"}:
        raise TypeError(f"record() got {sorted(unknown)}; provenance is `command`, `commit` and `hardware`.")
    return Record(
        metric=metric,
        value=float(value),
        stderr=None if stderr is None else float(stderr),
        horizon=None if horizon is None else int(horizon),
        model=model,
        environment=environment,
        split=split,
        seeds=[int(seed) for seed in seeds],
        **(provenance() | origin),
    )


# ------------------------------------------------------------------------------------------------ where it comes from


@cache
def provenance() -> dict[str, str]:
    """What produced the numbers of this process: {"command", "commit", "hardware"}, looked up once.

    `commit` is the checkout's short hash, "-dirty" if a tracked file differs from it; the installed version where
    there is no checkout.
    """
    return {"command": _command(), "commit": _commit(), "hardware": _hardware()}


def _command() -> str:
    program, *arguments = sys.argv or [""]
    name = Path(program).name
    if name == "pan":
        return shlex.join(["pan", *arguments])
    if name == "__main__.py" or sys.orig_argv[1:2] == ["-m"]:
        name = f"-m {sys.orig_argv[2] if len(sys.orig_argv) > 2 else name}"
    else:
        root, script = Path(__file__).resolve().parents[2], Path(program).resolve()
        name = str(script.relative_to(root)) if script.is_relative_to(root) else name  # as typed in the checkout
    return f"python {name} {shlex.join(arguments)}".strip()


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").exists():
        try:
            commit = _git(root, "rev-parse", "--short", "HEAD")
            return commit + ("-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
        except (OSError, subprocess.SubprocessError):
            pass  # no git here, or no commit yet: the version says what it can
    try:
        return importlib.metadata.version("pan_hf")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def _hardware() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total / 2**30
    parts = [_processor(), f"{cores} core{'s' * (cores != 1)}", f"{memory:.0f} GiB"]
    torch = sys.modules.get("torch")  # a process that never imported torch used no GPU
    if torch is not None and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown processor"


# -------------------------------------------------------------------------------------------------------------- files


def write_records(path: str | os.PathLike, records: Iterable[Record]) -> Path:
    """Writes `records` as a JSON list with sorted keys, one record a line, whole or not at all.

    JSON has no NaN or infinity: a value or standard error that is not finite is written as null.
    """
    lines = []
    for entry in records:
        row = asdict(entry) | {"value": _finite(entry.value), "stderr": _finite(entry.stderr)}
        lines.append(json.dumps(row, sort_keys=True, allow_nan=False, ensure_ascii=False))
    return write_file(path, "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n")


def read_records(path: str | os.PathLike) -> list[Record]:
    """Reads what `write_records` wrote; a null value comes back as NaN.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a JSON list of records; the message names the file and what is wrong with it.
    """
    rows = read_json(path, list)
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) != set(FIELDS):
            got = sorted(row) if isinstance(row, dict) else row
            raise ValueError(f"{path}: entry {index} has {got}, expected exactly the fields {sorted(FIELDS)}.")
    return [Record(**(row | {"value": math.nan if row["value"] is None else row["value"]})) for row in rows]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# ---------------------------------------------------------------------------------------------------- spread and time


def mean_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error (sample deviation over root n; None for a single value).

    Raises:
        ValueError: `values` is empty.
    """
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError("mean_stderr() got no values, expected at least one.")
    spread = statistics.stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else None
    return statistics.fmean(numbers), spread


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, (low, high) in [0, 1]; (0, 1) when nothing was tried.

    Unlike `p ± 1.96 stderr` it stays in [0, 1] and does not shrink to a point at 0 or n successes.

    Raises:
        ValueError: not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson() got {successes} successes of {n}, expected 0 <= successes <= n.")
    if n == 0:
        return 0.0, 1.0
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # at 0 and n the bound is 0 or 1 exactly, but for rounding
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)
