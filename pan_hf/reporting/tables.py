"""Records as tables: which are chosen, how values are written, how rows and columns are made."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pan_hf.reporting.results import FIELDS, MISSING, Record
from pan_hf.reporting.templates import Markdown, code, escaped

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
UNITS: tuple[tuple[tuple[str, ...], str, float, int], ...] = (
    (("steps_to_success", "steps"), "", 1, 1),
    (("episodes", "given_up", "failures", "lost_to_search", "imagined_before", "claims", "acted_on"), "", 1, 0),
    (("calibration_error",), "%", 100, 1),
    (("refused", "false", "false_low", "false_high", "unconfirmed", "searched", "by_policy"), "%", 100, 1),
    (("psnr", "psnr_moving", "db"), " dB", 1, 1),
    (("ssim",), "", 1, 3),
    (("exact", "exact_state", "exact_coarse_state", "exact_frame", "exact_observation"), "%", 100, 1),
    (("changed", "accuracy", "f1", "precision", "recall"), "%", 100, 1),
    (("success", "success_low", "success_high", "share", "futures", "3se", "rate", "compute"), "%", 100, 1),
    (("compute_per_simulated_step", "layouts", "continued_alike"), "%", 100, 1),
    (("bits_per_observation", "bits"), " bits", 1, 1),
    (("seconds", "seconds_per_decision", "time_per_decision"), " s", 1, 2),
    (("decision_ms",), " ms", 1, 1),
    (("gib",), " GiB", 1, 2),
    (("steps_per_second", "tokens_per_second"), "/s", 1, 0),
    (("speedup_over_all",), "x", 1, 2),
)
_FREQUENCIES = ("outcome:", "exact_state_after:", "recalled", "reliability:")  # beginnings of metrics, shown in %


def format_value(entry: Record) -> str:
    """A record's value with its unit and, after "±", its standard error: "98.3 ± 0.2%", "31.2 dB", "–" for NaN."""
    if not math.isfinite(entry.value):
        return MISSING
    unit, factor, digits = unit_of(entry.metric)
    text = number(entry.value * factor, digits)
    if entry.stderr is not None and math.isfinite(entry.stderr):
        text += f" ± {entry.stderr * factor:.2g}" if digits is None else f" ± {number(entry.stderr * factor, digits)}"
    return text + unit


def unit_of(metric: str) -> tuple[str, float, int | None]:
    """How a metric is shown: (unit, factor to multiply by, digits after the point or None for four significant)."""
    if metric.removeprefix("sampled_").startswith(_FREQUENCIES):
        return "%", 100, 1
    for endings, unit, factor, digits in UNITS:
        if any(metric == ending or metric.endswith((f"_{ending}", f".{ending}")) for ending in endings):
            return unit, factor, digits
    return "", 1, None


def number(value: float, digits: int | None) -> str:
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
    itself, they make one origin. Of failures only those that failed are named, so they make none."""
    by_origin: dict[tuple, list[list[int]]] = {}
    for entry in records:
        if entry.metric in ("failures", "lost_to_search"):
            continue
        groups = by_origin.setdefault((entry.command, entry.commit, entry.hardware), [])
        if entry.seeds not in groups:
            groups.append(entry.seeds)
    origins = []
    for origin, groups in by_origin.items():
        alone = sorted({seed for seeds in groups if len(seeds) == 1 for seed in seeds})
        together = [seeds for seeds in groups if len(seeds) != 1] + ([alone] if alone else [])
        origins += [(*origin, seeds_text(seeds)) for seeds in together]
    return origins


def origin_lines(records: Sequence[Record]) -> Markdown:
    """One line of Markdown a distinct origin: the command, the commit, the hardware and the seeds."""
    return Markdown(
        "\n".join(
            f"{code(command)} at {escaped(commit)} on {escaped(hardware)}; {seeds}."
            for command, commit, hardware, seeds in distinct_origins(records)
        )
    )


def pivot(
    records: Sequence[Record], rows: str | Sequence[str], columns: str | Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Lays records out as a table: (header, body), both of text. Order is that of first appearance.

    Args:
        rows, columns (`str` or list of `str`): fields of `Record`; each combination that occurs is a row or a column.

    Raises:
        ValueError: two records fall into one cell; the message says which, so that `rows` or `columns` can be widened.
    """
    rows, columns = names(rows), names(columns)
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


def table(records: Sequence[Record], rows: str | Sequence[str], columns: str | Sequence[str]) -> Markdown:
    """`pivot` as a Markdown table; the empty string if there are no records."""
    if not records:
        return Markdown()
    return markdown_table(*pivot(records, rows, columns), lead=len(names(rows)))


def markdown_table(header: Sequence[str], body: Iterable[Sequence[str]], lead: int = 1) -> Markdown:
    """Text cells as a Markdown table; the columns after the first `lead` are numbers and stand to the right."""
    rule = [Markdown("---")] * lead + [Markdown("---:")] * (len(header) - lead)
    return Markdown("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in [header, rule, *body]))


def _cell(text: str) -> str:
    # a table is cut at bars before code is looked for, so a bar in code needs its backslash, too
    return text.replace("|", r"\|") if isinstance(text, Markdown) else escaped(text)


def names(names: str | Sequence[str]) -> list[str]:
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
