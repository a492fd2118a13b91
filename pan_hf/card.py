"""The model card of a run, written by the run: every number in it is read from the result files.

The card is Markdown with the Hub's metadata on top (`model-index`), so that a published model shows its evaluation.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pan_hf.figures import CURVE_METRICS, TEACHER_FORCED, series_name
from pan_hf.report import by_environment, origins, read_results, success_interval, template, tidy_tables, timing_table
from pan_hf.results import Record, format_value, markdown_table, metric_label, select, write_text

BASELINES = ("copy_last", "random_policy", "simulator")
_SMALLER_IS_BETTER = ("bits_per_observation", "rmse_normalised")  # of the CURVE_METRICS


def write_card(
    run_dir: str | os.PathLike,
    path: str | os.PathLike | None = None,
    *,
    model_id: str | None = None,
    base_model: str | None = None,
) -> Path:
    """Writes the model card of a run.

    Args:
        run_dir (`str` or `Path`): the run folder, with `checkpoint/` and the result files; what is absent is said to
            be so in the card.
        path (`str` or `Path`, *optional*): where to write; `README.md` in the checkpoint by default.
        model_id (`str`, *optional*): the name to load it by, "user/name" on the Hub; the checkpoint's path by default.
        base_model (`str`, *optional*): Hub name of the pretrained backbone, if there was one.

    Returns:
        `Path`: the file.

    Raises:
        NotADirectoryError: `run_dir` is not a folder.
        ValueError: a result file is malformed; the message names it.
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise NotADirectoryError(f"{run} is not a run folder. Give the folder that `pan train` wrote.")
    records = read_results(run)
    config = _read_json(run / "checkpoint" / "config.json")
    model_id = model_id or str(run / "checkpoint")
    name = model_id.rpartition("/")[2] if model_id.count("/") == 1 else run.resolve().name
    content = template("model_card.md.jinja").render(
        card_data=_card_data(name, records, base_model).to_yaml(),
        name=name,
        senses=[_sense_words(*item) for item in config.get("senses", {}).items()],
        action=_action_words(config.get("action") or {}),
        snippet=_snippet(model_id, config),
        data=_data(_read_json(run / "checkpoint" / "training_data.json")),
        training=origins(records["timing"]),
        timing=_markdown(timing_table(records["timing"])),
        evaluation=_tables(records["evaluation"]),
        futures=_tables(records["futures"]),
        planning=_tables(records["planning"]),
        measured={part: origins(records[part]) for part in ("evaluation", "futures", "planning")},
        copy_last=series_name("copy_last"),
        failures=[*_not_better_than_copying(records["evaluation"]), *_unsolved(records["planning"])],
    )
    ModelCard(content)  # raises if the metadata on top cannot be read back
    return write_text(path or run / "checkpoint" / "README.md", content)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


# ------------------------------------------------------------------------------------------------------------ metadata


def _card_data(name: str, records: dict[str, list[Record]], base_model: str | None) -> ModelCardData:
    results = [_eval_result(entry, "any-to-any") for entry in _shown(records["evaluation"])]
    results += [_eval_result(entry, "any-to-any") for entry in _shown(records["futures"])]
    results += [_eval_result(entry, "reinforcement-learning") for entry in records["planning"]]
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="any-to-any",
        tags=["world-model", "pan"],
        base_model=base_model,
        model_name=name,
        eval_results=[result for result in results if result is not None] or None,
    )


def _eval_result(entry: Record, task: str) -> EvalResult | None:
    """A record as an entry of the Hub's model-index; None for a baseline and for an undefined value."""
    if entry.model in BASELINES or not math.isfinite(entry.value):
        return None
    name = metric_label(entry.metric)
    if entry.model != "pan":
        name += f", {series_name(entry.model)}"
    if entry.horizon is not None:
        name += f", {entry.horizon} step{'s' * (entry.horizon != 1)} ahead"
    return EvalResult(
        task_type=task,
        dataset_type=entry.environment,
        dataset_name=entry.environment,
        dataset_split=entry.split,
        metric_type=entry.metric,
        metric_name=name,
        metric_value=entry.value,
        metric_args=None if entry.stderr is None else {"stderr": entry.stderr},
    )


# ---------------------------------------------------------------------------------------------------------------- text


def _shown(records: Iterable[Record]) -> list[Record]:
    """The records a card shows: not those with true frames shown, nor those of single levels or outcomes."""
    hidden = (TEACHER_FORCED, "levels_", "outcome:")
    return [e for e in records if not e.metric.startswith(hidden) and "." not in e.metric]


def _tables(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    groups = by_environment(_shown(records))
    return [(name, [markdown_table(*grid) for grid in tidy_tables(group)]) for name, group in groups]


def _markdown(grid: tuple[list[str], list[list[str]]] | None) -> str:
    return "" if grid is None else markdown_table(*grid)


def _data(training_data: dict[str, Any]) -> dict[str, Any] | None:
    if not training_data.get("fingerprints"):
        return None
    environments = list(dict.fromkeys(training_data.get("environments", [])))
    return {"episodes": len(training_data["fingerprints"]), "environments": environments}


def _not_better_than_copying(records: Sequence[Record]) -> list[str]:
    """A sentence for each metric in which the model does not beat repeating the last frame, with the horizons."""
    lost: dict[tuple[str, str], list[str]] = {}
    for entry in select(records, model="pan", metric=list(CURVE_METRICS)):
        where = {"metric": entry.metric, "horizon": entry.horizon, "environment": entry.environment}
        for copied in select(records, model="copy_last", split=entry.split, **where):
            sign = -1 if entry.metric.endswith(_SMALLER_IS_BETTER) else 1
            if sign * entry.value <= sign * copied.value:
                numbers = f"at horizon {entry.horizon} {format_value(entry)} against {format_value(copied)}"
                lost.setdefault((entry.environment, entry.metric), []).append(numbers)
    return [
        f"{environment}: no better than copying the last frame in {metric_label(metric)}: {'; '.join(numbers)}."
        for (environment, metric), numbers in lost.items()
    ]


def _unsolved(records: Sequence[Record]) -> list[str]:
    """A sentence for each environment that no planner always solves, with the best planner's rate and interval."""
    sentences = []
    for environment, group in by_environment(records):
        rates = [entry for entry in select(group, metric="success") if entry.model not in BASELINES]
        if rates and (best := max(rates, key=lambda entry: entry.value)).value < 1:
            low, high = success_interval(best, group) or (best.value, best.value)
            sentences.append(
                f"{environment}: the best planner ({series_name(best.model)}) solves {100 * best.value:.1f}% of "
                f"unseen starts (95% interval {100 * low:.1f} to {100 * high:.1f}%)."
            )
    return sentences


# ------------------------------------------------------------------------------------------------------- what it takes


def _sense_words(name: str, sense: dict[str, Any]) -> str:
    size = {"image": "{height}x{width} image", "vector": "vector of {dim}", "text": "text"}
    return f"`{name}` ({size.get(sense.get('kind', ''), '{kind}').format(**sense)})"


def _action_words(action: dict[str, Any]) -> str:
    words = {"discrete": "one of {num_actions} actions", "vector": "a vector of {dim}", "text": "a text"}
    return words.get(action.get("kind", ""), "an action").format(**action)


def _snippet(model_id: str, config: dict[str, Any]) -> str:
    """Code that runs as it stands: blank observations and actions of the right shape, to be replaced by real ones."""
    blank = {
        "image": "np.zeros(({height}, {width}, {channels}), np.uint8)",
        "vector": "np.zeros({dim}, np.float32)",
        "text": '"say what is wanted here"',
    }
    senses = config.get("senses") or {"camera": {"kind": "image", "height": 64, "width": 64, "channels": 3}}
    parts = [f'"{name}": {blank[sense["kind"]].format(**sense)}' for name, sense in senses.items()]
    action = config.get("action") or {"kind": "discrete"}
    actions = {
        "discrete": "torch.zeros(1, 5, dtype=torch.long)",
        "vector": "torch.zeros(1, 5, {dim})",
        "text": 'processor(action=[["go"] * 5])["action"]',
    }[action["kind"]].format(**action)
    seen = next(iter(senses))
    return f"""import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("{model_id}", trust_remote_code=True)
model = AutoModel.from_pretrained("{model_id}", trust_remote_code=True).eval()

observation = {{{", ".join(parts)}}}
belief = model.perceive(**processor(observation=observation))
actions = {actions}  # (batch, steps)
futures = model.simulate(belief, actions, num_rollouts=4, seed=0)
imagined = futures.decode("{seen}")  # (rollouts, steps, ...)
print(imagined.shape, futures.reward.mean(0), futures.log_prob.sum(1))"""
