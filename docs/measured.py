"""Keeps the numbers of a Markdown file equal to the result files: they are generated, and checked.

A table stands between two markers, and so does a single number in a sentence:

    <!-- results:quickstart/evaluation metric=exact,psnr horizon=1,10 rows=environment,metric columns=model,horizon -->
    ...generated...
    <!-- /results -->

    ten steps ahead <!-- results:quickstart/evaluation metric=exact horizon=10 model=pan -->90.5%<!-- /results --> ...

`quickstart/evaluation` is the file `evaluation.json` in the run folder of that name. Every other word selects records
by a field (a comma means "any of these") or, as `rows` and `columns`, lays out the table. A marker whose two ends
stand on one line takes exactly one record and shows its value only. With `show=hardware` (or `command`, `commit`) it
shows that field, in which all its records agree; with `show=minutes` it adds up records of seconds:

    in <!-- results:quickstart/timing metric=seconds show=minutes -->6.9 min<!-- /results --> on ...
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pan_hf.files import write_file
from pan_hf.reporting.results import FIELDS, Record, read_records
from pan_hf.reporting.tables import format_value, origin_lines, select, table

_BLOCK = re.compile(r"(<!-- results:(?P<spec>[^>]*?) -->)(?P<body>.*?)(<!-- /results -->)", re.DOTALL)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
# what reads like a measurement, as opposed to a size, a version or a count
_MEASURED = re.compile(r"\d+(?:[.,]\d+)?\s?(?:%|dB\b|GiB\b|bits\b|(?:steps|tokens|frames)?/s\b)")

_LAYOUT: dict[str, tuple[list[str], list[str]]] = {
    "evaluation": (["environment", "metric"], ["model", "horizon"]),
    "planning": (["environment", "metric"], ["model"]),
    "timing": (["model"], ["metric"]),
}


def update_page(page: str | os.PathLike, run_dirs: Iterable[str | os.PathLike]) -> bool:
    """Writes every marked table and number of `page` anew from the result files of `run_dirs`.

    Returns:
        `bool`: whether the file changed; a second call never changes it.

    Raises:
        FileNotFoundError: a marker names a run folder that is not in `run_dirs`, or a file that is not there.
        ValueError: a marker cannot be read, selects no record, or (on one line) more than one.
    """
    path = Path(page)
    before = path.read_text(encoding="utf-8")
    after = _generate(before, _by_name(run_dirs))
    if after != before:
        write_file(path, after)
    return after != before


def check_page(page: str | os.PathLike, run_dirs: Iterable[str | os.PathLike]) -> list[str]:
    """What in `page` does not come from the result files of `run_dirs`; an empty list if all does.

    Two kinds do not: a marked block that differs from what its file says, and a number with a unit of measurement
    (%, dB, GiB, bits, /s) outside of markers and code. Raises what `update_page` raises.
    """
    text = Path(page).read_text(encoding="utf-8")
    runs = _by_name(run_dirs)
    problems = []
    for block in _BLOCK.finditer(text):
        if block["body"] != _body(block, runs):
            line = text.count("\n", 0, block.start()) + 1
            problems.append(f"line {line}: `{block['spec']}` is not what its result file says; run update_page.")
    for line, number in _unmarked(text):
        problems.append(f"line {line}: {number!r} stands outside of a results marker; put it between markers.")
    return problems


def _unmarked(text: str) -> list[tuple[int, str]]:
    """Line and text of each measurement outside of markers and code."""

    def blank(match: re.Match) -> str:
        return re.sub(r"[^\n]", " ", match[0])  # keeps line numbers

    rest = _CODE.sub(blank, _BLOCK.sub(blank, text))
    return [(rest.count("\n", 0, match.start()) + 1, match[0]) for match in _MEASURED.finditer(rest)]


def _by_name(run_dirs: Iterable[str | os.PathLike]) -> dict[str, Path]:
    return {Path(run).resolve().name: Path(run) for run in run_dirs}


def _generate(text: str, runs: dict[str, Path]) -> str:
    return _BLOCK.sub(lambda block: block[1] + _body(block, runs) + block[4], text)


def _body(block: re.Match, runs: dict[str, Path]) -> str:
    source, where, layout = _parse(block["spec"])
    records = _chosen(source, where, runs)
    if "\n" in block["body"]:
        return f"\n{table(records, layout['rows'], layout['columns'])}\n\n{origin_lines(records)}\n"
    shown = _shown(records, layout["show"])
    if len(shown) != 1:
        raise ValueError(
            f"marker `{block['spec']}` selects {len(records)} records, expected one for a number in a sentence. "
            "Name more fields, or put the closing marker on a line of its own for a table."
        )
    return shown[0]


def _shown(records: list[Record], show: list[str]) -> list[str]:
    """What a marker on one line shows; it may show one thing only."""
    if show == ["minutes"]:
        return [f"{sum(entry.value for entry in records) / 60:.1f} min"]
    if show:
        return list(dict.fromkeys(getattr(entry, name) for entry in records for name in show))
    return [format_value(entry) for entry in records]


def _parse(spec: str) -> tuple[str, dict[str, Any], dict[str, list[str]]]:
    """Splits a marker's words: (run/file, fields to select, what is laid out and shown)."""
    source, *words = spec.split()
    rows, columns = _LAYOUT.get(source.rpartition("/")[2], (["environment", "metric"], ["model", "horizon"]))
    layout: dict[str, list[str]] = {"rows": rows, "columns": columns, "show": []}
    options: dict[str, list] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in (*FIELDS, *layout):
            raise ValueError(f"marker `{spec}`: {word!r} is not `field=value` with a field of {', '.join(FIELDS)}.")
        (layout if name in layout else options)[name] = value.split(",")
    if unknown := set(layout["show"]) - {"minutes", "command", "commit", "hardware"}:
        raise ValueError(f"marker `{spec}`: show={','.join(unknown)} is none of minutes, command, commit, hardware.")
    if "horizon" in options:
        options["horizon"] = [None if step == "none" else int(step) for step in options["horizon"]]
    return source, options, layout


def _chosen(source: str, where: dict[str, Any], runs: dict[str, Path]) -> list[Record]:
    run, slash, name = source.partition("/")
    if not slash or run not in runs:
        raise FileNotFoundError(f"marker `{source}`: expected <run>/<file> with a run of {sorted(runs)}.")
    path = runs[run] / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"marker `{source}`: there is no {path}. Run the command that writes it.")
    records = select(read_records(path), **where)
    if not records:
        raise ValueError(f"marker `{source}`: no record of {path} has {where}.")
    return _in_order(records, where)


def _in_order(records: list[Record], where: dict[str, Any]) -> list[Record]:
    """Sorts by the order in which the marker names its values, so that the author decides what comes first."""

    def position(entry: Record) -> tuple:
        return tuple(values.index(getattr(entry, name)) for name, values in where.items() if name != "seeds")

    return sorted(records, key=position)
