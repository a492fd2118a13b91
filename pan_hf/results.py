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
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

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
        root, script = Path(__file__).resolve().parent.parent, Path(program).resolve()
        name = str(script.relative_to(root)) if script.is_relative_to(root) else name  # as typed in the checkout
    return f"python {name} {shlex.join(arguments)}".strip()


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
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
    return write_text(path, "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n")


def read_records(path: str | os.PathLike) -> list[Record]:
    """Reads what `write_records` wrote; a null value comes back as NaN.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a JSON list of records; the message names the file and what is wrong with it.
    """
    path = Path(path)
    try:
        rows = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}). Run the command that writes it again.") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a {type(rows).__name__}, expected a list of records.")
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) != set(FIELDS):
            got = sorted(row) if isinstance(row, dict) else row
            raise ValueError(f"{path}: entry {index} has {got}, expected exactly the fields {sorted(FIELDS)}.")
    return [Record(**(row | {"value": math.nan if row["value"] is None else row["value"]})) for row in rows]


def write_text(path: str | os.PathLike, text: str) -> Path:
    """`write_bytes` of UTF-8."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Writes `content` to a temporary file beside `path`, then renames it: a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


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


# ----------------------------------------------------------------------------------------------- choosing and showing


def select(records: Iterable[Record], **where: Any) -> list[Record]:
    """The records whose fields equal `where`; a list, tuple or set stands for "any of these".

    Raises:
        TypeError: a name that is not a field of `Record`.
    """
    if unknown := set(where) - set(FIELDS):
        raise TypeError(f"select() got {sorted(unknown)}, expected fields of Record: {', '.join(FIELDS)}.")
    return [entry for entry in records if all(_matches(getattr(entry, name), want) for name, want in where.items())]


def _matches(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple | set) and not isinstance(value, list):
        return value in wanted
    return value == wanted


# metric (or the end of its name) -> unit, factor, digits. The first that fits is taken.
_UNITS: tuple[tuple[tuple[str, ...], str, float, int], ...] = (
    (("steps_to_success", "steps", "episodes"), "", 1, 1),
    (("psnr", "psnr_moving", "db"), " dB", 1, 1),
    (("ssim",), "", 1, 3),
    (("exact", "exact_state", "exact_coarse_state", "exact_frame"), "%", 100, 1),
    (("changed", "accuracy", "f1", "precision", "recall"), "%", 100, 1),
    (("success", "success_low", "success_high", "share", "futures", "3se", "rate", "compute"), "%", 100, 1),
    (("compute_per_simulated_step",), "%", 100, 1),
    (("bits_per_observation", "bits"), " bits", 1, 1),
    (("seconds", "seconds_per_decision", "time_per_decision"), " s", 1, 2),
    (("gib",), " GiB", 1, 2),
    (("steps_per_second", "tokens_per_second"), "/s", 1, 0),
    (("speedup_over_all",), "x", 1, 2),
)


def format_value(entry: Record) -> str:
    """A record's value with its unit and, after "±", its standard error: "98.3 ± 0.2%", "31.2 dB", "–" for NaN."""
    if not math.isfinite(entry.value):
        return MISSING
    unit, factor, digits = unit_of(entry.metric)
    text = _number(entry.value * factor, digits)
    if entry.stderr is not None and math.isfinite(entry.stderr):
        text += f" ± {entry.stderr * factor:.2g}" if digits is None else f" ± {_number(entry.stderr * factor, digits)}"
    return text + unit


def unit_of(metric: str) -> tuple[str, float, int | None]:
    """How a metric is shown: (unit, factor to multiply by, digits after the point or None for four significant)."""
    if metric.startswith(("outcome:", "exact_state_after:")):  # how frequent it is
        return "%", 100, 1
    for endings, unit, factor, digits in _UNITS:
        if any(metric == ending or metric.endswith((f"_{ending}", f".{ending}")) for ending in endings):
            return unit, factor, digits
    return "", 1, None


def _number(value: float, digits: int | None) -> str:
    return f"{value:.4g}" if digits is None else f"{value:z.{digits}f}"  # z: no minus before a rounded zero


def metric_label(metric: str) -> str:
    """A metric's name as a person reads it: "psnr_moving" is "PSNR moving"."""
    words = [word.upper() if word in ("psnr", "ssim", "f1", "mae", "rmse") else word for word in metric.split("_")]
    return " ".join(word for word in words if word != "gib")


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds in words; of many only how many and from where to where."""
    if not seeds:
        return "no seed"
    if len(seeds) > 6:
        return f"{len(seeds)} seeds from {min(seeds)} to {max(seeds)}"
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


def distinct_origins(records: Iterable[Record]) -> list[tuple[str, str, str, str]]:
    """Every distinct (command, commit, hardware, seeds in words). Where one command measured several seeds each by
    itself, they make one origin."""
    found: dict[tuple, list[list[int]]] = {}
    for entry in records:
        groups = found.setdefault((entry.command, entry.commit, entry.hardware), [])
        if entry.seeds not in groups:
            groups.append(entry.seeds)
    origins = []
    for origin, groups in found.items():
        alone = sorted({seed for seeds in groups if len(seeds) == 1 for seed in seeds})
        told = [seeds for seeds in groups if len(seeds) != 1] + ([alone] if alone else [])
        origins += [(*origin, seeds_text(seeds)) for seeds in told]
    return origins


def pivot(
    records: Sequence[Record], rows: str | Sequence[str], columns: str | Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Lays records out as a table: (header, body), both of text. Order is that of first appearance.

    Args:
        rows, columns (`str` or list of `str`): fields of `Record`; each combination that occurs is a row or a column.

    Raises:
        ValueError: two records fall into one cell; the message says which, so that `rows` or `columns` can be widened.
    """
    rows, columns = _names(rows), _names(columns)
    cells: dict[tuple, Record] = {}
    for entry in records:
        key = (_key(entry, rows), _key(entry, columns))
        if key in cells:
            raise ValueError(
                f"two records fall into the cell {key[0]} x {key[1]} of a table with rows {rows} and columns "
                f"{columns}: {cells[key]} and {entry}. Add a field that tells them apart, or select fewer records."
            )
        cells[key] = entry
    row_keys = list(dict.fromkeys(row for row, _ in cells))
    column_keys = list(dict.fromkeys(column for _, column in cells))
    header = rows + [_heading(columns, key) for key in column_keys]
    body = [
        [_show(name, part) for name, part in zip(rows, row, strict=True)]
        + [format_value(cells[row, column]) if (row, column) in cells else MISSING for column in column_keys]
        for row in row_keys
    ]
    return header, body


def table(records: Sequence[Record], rows: str | Sequence[str], columns: str | Sequence[str]) -> str:
    """`pivot` as a Markdown table; the empty string if there are no records."""
    if not records:
        return ""
    return markdown_table(*pivot(records, rows, columns), lead=len(_names(rows)))


def markdown_table(header: Sequence[str], body: Iterable[Sequence[str]], lead: int = 1) -> str:
    """Text cells as a Markdown table; the columns after the first `lead` are numbers and stand to the right."""
    rule = ["---"] * lead + ["---:"] * (len(header) - lead)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *body])


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _key(entry: Record, names: Sequence[str]) -> tuple:
    parts = (getattr(entry, name) for name in names)
    return tuple("" if part is None else tuple(part) if isinstance(part, list) else part for part in parts)


def _heading(columns: Sequence[str], key: tuple) -> str:
    return ", ".join(_show(name, part) for name, part in zip(columns, key, strict=True) if part != "")


def _show(name: str, part: Any) -> str:
    if name == "metric":
        return metric_label(part)
    if name == "horizon" and part != "":
        return f"{part} step{'s' * (part != 1)}"
    if name == "seeds":
        return seeds_text(part)
    return str(part)
