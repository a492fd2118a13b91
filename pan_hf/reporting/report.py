"""One file a person can look at and believe: `report.html`, made only from what lies in a run folder.

Everything is inside the file: pictures as base64, curves as SVG, style as CSS; no link, no script. A part that has not
been run is named together with the command that runs it.

What is read of a run folder:
    evaluation.json, futures.json, planning.json, improvement.json, timing.json
                                                  records, see `pan_hf.reporting.results`
    report/strips/*.npz + .json                   `figures.load_strip`
    report/films/*.npz + .json                    `figures.load_film`
    report/explanations/*.json (+ .npz)           `explanations.load_explanation`
    report/codes/*.png (+ .json with "title", "caption")
"""

import base64
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pan_hf.extras import extra
from pan_hf.files import read_json, write_file
from pan_hf.metrics import EXACT_TOLERANCE
from pan_hf.reporting.explanations import ExplainedStep, load_explanation
from pan_hf.reporting.figures import (
    CURVE_METRICS,
    Film,
    Strip,
    calibration_svg,
    curve_svg,
    curves,
    load_film,
    load_strip,
    reliability_pairs,
    reliability_svg,
    row_png,
    series_name,
)
from pan_hf.reporting.learning import learning_curves
from pan_hf.reporting.results import Record, read_records, wilson
from pan_hf.reporting.tables import distinct_origins, format_value, metric_label, pivot, seeds_text, select
from pan_hf.reporting.templates import template

with extra("report", "A report"):
    from markupsafe import Markup

# result file -> the command that writes it; None for what only some runs have
RESULT_FILES = {"evaluation": "evaluate", "futures": None, "planning": "plan", "improvement": None, "timing": "train"}
_HEADLINE_HORIZONS = (1, 10)
_DRAWN_METRICS = (
    "exact_state",
    "psnr_moving",
    "rmse_normalised",
    "value_accuracy_changed",
    "token_accuracy",
)  # others follow these closely
RANDOM = "random_policy"  # which every planner is measured beside
_HEADLINE_FUTURES = ("coherent_futures", "calibration_max_z")


def write_report(run_dir: str | os.PathLike, path: str | os.PathLike | None = None) -> Path:
    """Writes the report of a run, whole or not at all.

    Args:
        run_dir (`str` or `Path`): the run folder.
        path (`str` or `Path`, *optional*): where to write; `report.html` in the run folder by default.

    Returns:
        `Path`: the file.

    Raises:
        NotADirectoryError: `run_dir` is not a folder.
        ValueError: a result file or an array in it is malformed; the message names it.
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise NotADirectoryError(f"{run} is not a run folder. Give the folder that `pan train` wrote.")
    records = read_results(run)
    prediction = [entry for entry in records["evaluation"] if math.isfinite(entry.value)]
    content = template("report.html.jinja").render(
        title=run.resolve().name,
        run=str(run_dir),
        missing={name: f"pan {command} --run {run_dir}" for name, command in RESULT_FILES.items() if command},
        exact_tolerance=EXACT_TOLERANCE,
        headlines=_headlines(prediction, records["futures"], records["planning"]),
        strips=[_strip_view(load_strip(file)) for file in _material(run, "strips", "npz")],
        films=[_film_view(load_film(file)) for file in _material(run, "films", "npz")],
        explanations=[_explanation_view(load_explanation(file)) for file in _material(run, "explanations", "json")],
        codes=[_picture(file) for file in _material(run, "codes", "png")],
        curves=_curve_groups(prediction),
        certainty=_certainty(prediction),
        evaluation=[(name, tidy_tables(rows)) for name, rows in by_environment(records["evaluation"])],
        futures=_futures(records["futures"]),
        planning=[(name, success_bars(rows), tidy_tables(rows)) for name, rows in by_environment(records["planning"])],
        improvement=[
            (name, rounds_svg(rows), tidy_tables(rows)) for name, rows in by_environment(records["improvement"])
        ],
        timing=timing_table(records["timing"]),
        origins=[(f"{name}.json", origin) for name, entries in records.items() for origin in origins(entries)],
    )
    return write_file(path or run / "report.html", content)


def read_results(run: Path) -> dict[str, list[Record]]:
    """The records of each result file of a run; an empty list for a file that is not there."""
    files = {name: run / f"{name}.json" for name in RESULT_FILES}
    return {name: read_records(file) if file.exists() else [] for name, file in files.items()}


# ------------------------------------------------------------------------------------------------------------- tables


def by_environment(records: Iterable[Record]) -> list[tuple[str, list[Record]]]:
    """Records grouped by environment, in order of first appearance."""
    groups: dict[str, list[Record]] = {}
    for entry in records:
        groups.setdefault(entry.environment, []).append(entry)
    return list(groups.items())


def several_seeds(records: Iterable[Record]) -> bool:
    """Whether some of the records were measured with other seeds than others were."""
    return len({tuple(entry.seeds) for entry in records}) > 1


def tidy_tables(records: Sequence[Record]) -> list[tuple[list[str], list[list[str]]]]:
    """`pivot` with a row for each metric and a column for each horizon and model, in words; what has no horizon makes
    a table of its own. Split and seeds join the columns only where they are needed to tell two records apart."""
    with_horizon = sorted((e for e in records if e.horizon is not None), key=lambda e: e.horizon or 0)
    without = [e for e in records if e.horizon is None]
    tables = []
    for part in (with_horizon, without):
        if part:
            named = [replace(e, model=series_name(e.model)) for e in part]
            header, body = pivot(named, "metric", ["horizon", "model", *_telling_apart(part)])
            tables.append((["", *header[1:]], body))
    return tables


def _telling_apart(records: Sequence[Record]) -> list[str]:
    """The fields besides metric, horizon and model that it takes to tell every record from every other."""
    for names in ([], ["split"], ["seeds"], ["split", "seeds"]):
        keys = {(e.metric, e.horizon, e.model, *(str(getattr(e, name)) for name in names)) for e in records}
        if len(keys) == len(records):
            break
    return names


def rounds_svg(records: Sequence[Record]) -> Any:
    """What the rounds of `pan improve` have come to in one environment, as curves."""
    log: dict[str, dict[str, Any]] = {}
    for entry in records:
        number = int(entry.model.removeprefix("round "))
        log.setdefault(entry.model, {"steps": number})[entry.metric] = entry.value
    drawn = learning_curves(list(log.values()), "round").decode()
    return Markup(drawn[drawn.index("<svg") :])


def timing_table(records: Sequence[Record]) -> tuple[list[str], list[list[str]]] | None:
    """Seconds and peak memory of each stage, and at the bottom their sum and maximum; None if nothing was timed."""
    if not records:
        return None
    header, body = pivot(records, "model", "metric")
    seconds = sum(entry.value for entry in select(records, metric="seconds"))
    memory = max((entry.value for entry in select(records, metric="peak_memory_gib")), default=0.0)
    return ["stage", *header[1:]], [*body, ["all", f"{seconds / 60:.1f} min", f"{memory:.2f} GiB at most"]]


def best_plans(records: Iterable[Record]) -> list[Record]:
    """Of each environment what its best planner reached: the success rate where a goal is defined, else the return."""
    best = []
    for _, group in by_environment(records):
        rates = select(group, metric="success") or select(group, metric="return")
        ours = [entry for entry in rates if entry.model != RANDOM]
        best += [max(ours, key=lambda entry: entry.value)] if ours else []
    return best


def success_interval(entry: Record, records: Sequence[Record]) -> tuple[float, float] | None:
    """95% interval of a success rate: as measured beside it (`<metric>_low`, `<metric>_high`), else Wilson's with the
    number of `episodes` beside it, else 1.96 standard errors; None if nothing is known."""
    beside = {
        other.metric: other.value
        for other in select(records, model=entry.model, environment=entry.environment, split=entry.split)
    }
    low, high = beside.get(f"{entry.metric}_low"), beside.get(f"{entry.metric}_high")
    if low is not None and high is not None:
        return low, high
    if episodes := beside.get("episodes"):
        return wilson(round(entry.value * episodes), round(episodes))
    if entry.stderr is not None:
        return max(0.0, entry.value - 1.96 * entry.stderr), min(1.0, entry.value + 1.96 * entry.stderr)
    return None


def success_bars(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Each planner's success rate with its interval, in percent, best first."""
    bars = []
    for entry in select(records, metric="success"):
        low, high = success_interval(entry, records) or (entry.value, entry.value)
        bars.append(
            {
                "name": series_name(entry.model),
                "baseline": entry.model == RANDOM,
                "value": 100 * entry.value,
                "low": 100 * low,
                "high": 100 * high,
            }
        )
    return sorted(bars, key=lambda bar: -bar["value"])


# ---------------------------------------------------------------------------------------------------------- headlines


def _headlines(
    prediction: Sequence[Record], futures: Sequence[Record], planning: Sequence[Record]
) -> list[dict[str, Any]]:
    """For each environment a card of (value, what, the baseline's value)."""
    cards: dict[str, list[tuple[str, str, str]]] = {}
    for metric in CURVE_METRICS[:2]:
        for entry in select(prediction, metric=metric, model="pan", horizon=_HEADLINE_HORIZONS):
            what = f"{metric_label(metric)}, {entry.horizon} step{'s' * (entry.horizon != 1)} ahead"
            cards.setdefault(entry.environment, []).append(_headline(entry, what, prediction, "copy_last"))
    drawn_anew = several_seeds(futures)
    for entry in select(futures, metric=_HEADLINE_FUTURES, model="pan"):
        what = metric_label(entry.metric) + (f", {seeds_text(entry.seeds)}" if drawn_anew else "")
        line = _headline(entry, what, select(futures, seeds=entry.seeds), "simulator")
        cards.setdefault(entry.environment, []).append(line)
    for best in best_plans(planning):
        what = {"success": "of unseen starts solved by", "return": "mean return of"}[best.metric]
        line = _headline(best, f"{what} {series_name(best.model)}", planning, RANDOM)
        cards.setdefault(best.environment, []).append(line)
    return [{"environment": environment, "lines": lines} for environment, lines in cards.items()]


def _headline(ours: Record, what: str, records: Sequence[Record], baseline: str) -> tuple[str, str, str]:
    where = {"metric": ours.metric, "horizon": ours.horizon, "environment": ours.environment, "split": ours.split}
    theirs = select(records, model=baseline, **where)
    return format_value(ours), what, f"{series_name(baseline)}: {format_value(theirs[0])}" if theirs else ""


# ----------------------------------------------------------------------------------------------------------- pictures


def _material(run: Path, kind: str, suffix: str) -> list[Path]:
    files = (run / "report" / kind).glob(f"*.{suffix}")
    return sorted(file for file in files if not file.name.startswith("."))  # not those still being written


def _strip_view(strip: Strip) -> dict[str, Any]:
    rows = [(label, data_uri(row_png(frames), "image/png")) for label, frames in strip.rows()]
    is_same = bool((strip.real == strip.imagined).all())
    return {"strip": strip, "rows": rows, "steps": strip.steps(), "verdicts": strip.verdicts(), "is_same": is_same}


def _film_view(film: Film) -> dict[str, Any]:
    outcome = {True: "reached the goal", False: "did not reach the goal", None: ""}[film.success]
    return {
        "film": film,
        "outcome": outcome,
        "uri": data_uri(film.webp(), "image/webp"),
        "strip": _strip_view(film.strip()),
    }


def _explanation_view(step: ExplainedStep) -> dict[str, Any]:
    rows = [(label, data_uri(row_png(frames), "image/png"), over) for label, frames, over in step.rows()]
    most = max((len(over) for *_, over in rows), default=0)
    return {"step": step, "table": step.table(), "rows": rows, "most": most}


def _picture(path: Path) -> dict[str, str]:
    about = read_json(path.with_suffix(".json"), may_lack=True)
    return {
        "uri": data_uri(path.read_bytes(), "image/png"),
        "title": about.get("title", path.stem.replace("_", " ")),
        "caption": about.get("caption", ""),
    }


def data_uri(content: bytes, media_type: str) -> str:
    """`content` as a `data:` address, so that a page needs no second file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _curve_groups(records: Sequence[Record]) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """(heading, [(caption, SVG)]) of the curves that say different things: a group for each metric; of one environment
    a single group. Of several environments the curve of all of them together is drawn; tables have each."""
    groups: dict[str, list[tuple[str, Markup]]] = {}
    pairs = [pair for pair in curves(records) if pair[0].endswith(_DRAWN_METRICS)] or curves(records)
    together = [pair for pair in pairs if pair[1] == "all"]
    pairs = together or pairs
    several = len({environment for _, environment in pairs}) > 1
    for metric, environment in pairs:
        svg = Markup(curve_svg(records, metric, environment))  # our own drawing; matplotlib escapes the text in it
        heading, caption = (metric_label(metric), environment) if several else (environment, metric_label(metric))
        groups.setdefault(heading, []).append((caption, svg))
    return list(groups.items())


def _certainty(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each environment (all of them together where that was measured) whether the model knows when it is right:
    reliability as SVG, how far it is off, and how well entropy tells errors, as tables; None for what is not known."""
    told = [entry for entry in records if entry.metric.endswith(("entropy_auroc", "calibration_error"))]
    together = select(told, environment="all") or told
    views = []
    for environment, own in by_environment(together):
        entropy = [entry for entry in own if entry.metric.endswith("entropy_auroc")]
        error = next((entry for entry in own if entry.metric.endswith("calibration_error")), None)
        is_drawn = bool(reliability_pairs(select(records, environment=environment)))
        views.append(
            {
                "environment": environment,
                "reliability": Markup(reliability_svg(records, environment)) if is_drawn else None,
                "error": None if error is None else format_value(error),
                "entropy": tidy_tables(entropy),
            }
        )
    return views


def _futures(records: Sequence[Record]) -> list[tuple[str, Markup, list]]:
    """(environment, calibration as SVG, tables) of what was measured on many futures from one state."""
    return [
        (environment, Markup(calibration_svg(group, environment)), tidy_tables(group))
        for environment, group in by_environment(records)
    ]


def origins(records: Iterable[Record]) -> list[dict[str, str]]:
    """Every distinct origin of some records, seeds in words."""
    names = ("command", "commit", "hardware", "seeds")
    return [dict(zip(names, origin, strict=True)) for origin in distinct_origins(records)]
