"""What `pan evaluate` and `pan plan` say in the end: a small table, and what to do next."""

from collections.abc import Iterable, Sequence

from pan_hf.reporting.results import MISSING, Record
from pan_hf.reporting.tables import format_value, metric_label, select

PREDICTED = ("exact_frame", "psnr", "exact_state", "rmse_normalised", "value_accuracy", "token_accuracy", "reward_mae")
"""What the summary of an evaluation shows, where it was measured."""

PLANNED = ("success", "return", "steps", "recalled", "by_policy", "searched", "episodes", "given_up")

IMPROVED = ("success", "return", "surprises_per_episode", "surprise", "seconds_per_decision", "recalled", "by_policy")
"""What is told of each round of `pan improve`, where it was measured."""

_LEFT_OUT = ("teacher_forced_", "action_sensitivity_")
_POOR_RECONSTRUCTION = 20.0  # dB, below which codes hide more of a frame than dynamics can get wrong


def evaluation_summary(records: Sequence[Record] | None) -> str:
    """The records of an evaluation as a table: a row a metric and model, a column a horizon; and what stands out."""
    everywhere = _everywhere(entry for entry in records or () if entry.horizon is not None)
    if not everywhere:
        return "Nothing was measured."
    horizons = sorted({entry.horizon for entry in everywhere if entry.horizon is not None})
    rows = [["steps ahead", "", *map(str, horizons)]]
    for entry in select(everywhere, model="pan", horizon=horizons[0]):
        if not entry.metric.endswith(PREDICTED) or entry.metric.removeprefix("sampled_").startswith(_LEFT_OUT):
            continue
        for model in ("pan", "copy_last"):
            cells = select(everywhere, metric=entry.metric, model=model, environment=entry.environment)
            values = {cell.horizon: format_value(cell) for cell in cells}
            label = metric_label(entry.metric) if model == "pan" else ""
            rows.append([label, model, *(values.get(horizon, MISSING) for horizon in horizons)])
    return "\n".join([_aligned(rows), *_advice(records or ())])


def planning_summary(records: Sequence[Record] | None) -> str:
    """The records of planning as a table: a row a policy, beside random play on the same seeds."""
    if not records:
        return "No episode was played."
    tables = []
    for environment in dict.fromkeys(entry.environment for entry in records):
        own = select(records, environment=environment)
        metrics = [metric for metric in PLANNED if select(own, metric=metric)]
        if not {"recalled", "by_policy"} & set(metrics):  # then what is not searched goes on with a plan
            metrics = [metric for metric in metrics if metric != "searched"]
        tables.append(_by_model(environment, own, metrics))
        tables += filter(None, (_claims(select(own, model=model)) for model in dict.fromkeys(e.model for e in own)))
        if "success" not in metrics:
            tables.append(
                "Nothing says when an episode has reached a goal; `--success` can, e.g. 'return>=475', or 'info.KEY' "
                "with a key that `info` has."
            )
    return "\n".join(tables)


def _claims(records: Sequence[Record]) -> str:
    """How far the goals that a planner's searches found were there, in a line."""
    values = {entry.metric: format_value(entry) for entry in records}
    told = []
    if "claims" in values:
        told.append(f"{values['claims']} found, {values['claims_refused']} refused on a second look")
    if "claims_false" in values:
        interval = f"{values['claims_false_low']} to {values['claims_false_high']}"
        told.append(f"{values['claims_acted_on']} acted on, {values['claims_false']} were not there ({interval})")
    return f"{records[0].model}, ways to the goal: {'; '.join(told)}" if told else ""


def improvement_summary(records: Sequence[Record]) -> str:
    """The records of `pan improve` as a table: a row a round and environment."""
    tables = []
    for environment in dict.fromkeys(entry.environment for entry in records):
        own = select(records, environment=environment)
        tables.append(_by_model(environment, own, [metric for metric in IMPROVED if select(own, metric=metric)]))
    return "\n".join(tables)


def _by_model(environment: str, records: Sequence[Record], metrics: Sequence[str]) -> str:
    """A table of an environment: a row a model, a column a metric."""
    rows = [[environment, *map(metric_label, metrics)]]
    for model in dict.fromkeys(entry.model for entry in records):
        values = {entry.metric: format_value(entry) for entry in select(records, model=model)}
        rows.append([model, *(values.get(metric, MISSING) for metric in metrics)])
    return _aligned(rows)


def _advice(records: Sequence[Record]) -> list[str]:
    """What to do about a model whose frames do not come back from their codes."""
    rebuilt = [entry for entry in records if entry.metric.endswith("reconstruction_psnr")]
    whole = [entry for entry in rebuilt if "levels_" not in entry.metric and "latents_" not in entry.metric]
    poor = [entry for entry in _everywhere(whole) if entry.value < _POOR_RECONSTRUCTION]
    return [f"Frames reconstruct at {format_value(entry)}: give the senses stage more time." for entry in poor]


def _everywhere(records: Iterable[Record]) -> list[Record]:
    """Those over all environments together; all, where there is one environment."""
    records = list(records)
    return select(records, environment="all") or records


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns of equal width; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
