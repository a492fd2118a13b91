"""The model card of a run: every number in it is read from the result files.

A card is Markdown with the Hub's metadata on top: at most six headline metrics, rounded (`model-index`), and the tags
that people search for. Its tables show the same metrics beside the baseline; all other figures stay in the result
files, to which it links. What a card says of the checkpoint itself is in `checkpoint.json`, which is published with
the result files, so that anyone can make the card anew from them and compare: `check_card`.
"""

import difflib
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pan_hf.features import feature_class
from pan_hf.files import read_json, write_file
from pan_hf.hub import address, hub_id
from pan_hf.reporting.figures import CURVE_METRICS, series_name
from pan_hf.reporting.report import (
    RANDOM,
    best_plans,
    by_environment,
    origins,
    read_results,
    success_interval,
    timing_table,
)
from pan_hf.reporting.results import Record
from pan_hf.reporting.tables import format_value, metric_label, origin_lines, seeds_text, select, table, unit_of
from pan_hf.reporting.templates import Markdown, code, escaped, quoted, template

FACTS = "checkpoint.json"
RESULTS = "results"  # where `pan push` lays the result files, as seen from the card
OWN_LICENSE = "apache-2.0"  # of a model that began with random weights
TAGS = ("world-model", "pan", "model-based-reinforcement-learning", "planning")
MAX_HEADLINES = 6  # metrics that the Hub shows beside a model
# How well a model predicts, the most telling first; in _SAID_BY a metric -> the one that says the same better.
_PREDICTED = ("exact_frame", "exact_state", "psnr_moving", "rmse_normalised", "psnr")
_SAID_BY = {"exact_state": "exact_frame", "psnr_moving": "exact_frame", "psnr": "psnr_moving"}
_SAMPLED = ("coherent_futures", "calibration_within_3se")
_HORIZONS = (1, 10)
_PLANNED = ("success", "success_low", "success_high", "return", "episodes", "given_up", "seconds_per_decision")
_PLAYED = ("return", "steps", "episodes", "given_up", "seconds_per_decision")  # where no goal is defined
_SMALLER_IS_BETTER = ("bits_per_observation", "rmse_normalised")  # of the CURVE_METRICS


def write_card(run_dir: str | os.PathLike, path: str | os.PathLike | None = None, **facts: str | None) -> Path:
    """Writes the model card of a run.

    Args:
        run_dir (`str` or `Path`): the run folder, with `checkpoint/` and the result files, or a folder of published
            results with `checkpoint.json`; what is absent is said to be so in the card.
        path (`str` or `Path`, *optional*): where to write; `README.md` in the checkpoint by default.
        facts: what [`checkpoint_facts`] cannot see.

    Returns:
        `Path`: the file.

    Raises:
        NotADirectoryError: `run_dir` is not a folder.
        ValueError: a result file is malformed; the message names it.
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise NotADirectoryError(f"{run} is not a run folder. Give the folder that `pan train` wrote.")
    return write_file(path or run / "checkpoint" / "README.md", card_text(checkpoint_facts(run, **facts), run))


def checkpoint_facts(
    run: Path,
    *,
    model_id: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
) -> dict[str, Any]:
    """What a card says of a checkpoint, beside what was measured; plain JSON.

    Args:
        run (`Path`): a run folder, a checkpoint, or a folder of published results with `checkpoint.json`.
        model_id (`str`, *optional*): the name to load it by, "user/name" on the Hub; the checkpoint's path by default.
        base_model (`str`, *optional*): Hub name of what it began as; read off the run by default.
        dataset (`str`, *optional*): Hub name of the recording it was trained on.
        license (`str`, *optional*): as the Hub names it. By default ours where the model began with random weights,
            and none otherwise, since the license of what it began as holds on.
    """
    named = {"model_id": model_id, "base_model": base_model, "dataset": dataset, "license": license}
    named = {name: value for name, value in named.items() if value is not None}
    if (run / FACTS).exists():
        return read_json(run / FACTS) | named
    folder = run / "checkpoint" if (run / "checkpoint").exists() or not (run / "config.json").exists() else run
    config, trained = (read_json(folder / name, may_lack=True) for name in ("config.json", "training_data.json"))
    began_as, is_fresh = _beginning(run)
    model_id = model_id or str(folder)
    others = config.get("actions") or {}  # parts of the action beside that of the name "action"
    facts = {
        "name": model_id.rpartition("/")[2] if model_id.count("/") == 1 else run.resolve().name,
        "model_id": model_id,
        "senses": {name: _shape(sense) for name, sense in config.get("senses", {}).items()},
        "action": _shape(config.get("action") or {}),
        **({"actions": {name: _shape(part) for name, part in others.items()}} if others else {}),
        "episodes": len(trained.get("fingerprints", [])),
        "environments": list(dict.fromkeys(trained.get("environments", []))),
        "base_model": began_as,
        "dataset": None,
        "results": RESULTS,
        "license": OWN_LICENSE if is_fresh and base_model is None else None,
    }
    return facts | named


def _shape(part: dict[str, Any]) -> dict[str, Any]:
    """What the card tells of a sense's or an action's configuration.

    Raises:
        ValueError: a field is a text with more in it than a word, which the card's snippet would run.
    """
    if not part:
        return {}
    fields = feature_class(part["kind"]).card_fields
    shape = {name: value for name, value in part.items() if fields is None or name in ("kind", *fields)}
    for name, value in shape.items():
        if isinstance(value, str) and not re.fullmatch(r"[\w.:-]*", value):
            raise ValueError(f"config.json: `{name}` of a {part['kind']!r} is {value!r}, expected a number or a word.")
    return shape


def _beginning(run: Path) -> tuple[str | None, bool]:
    """Hub name of what a run began as, if it has one, and whether that was random weights."""
    settings = read_json(run / "stages" / "settings.json", may_lack=True)
    for grown in sorted((run / "stages").glob("*.settings.json")):
        settings = {"backbone": read_json(grown)["model"]}
    backbone = settings.get("backbone")
    if backbone is None:
        return None, True
    published = hub_id(address(backbone) or backbone)
    if published is not None:
        return published.id, False
    from pan_hf.build import PRESETS

    named = None if backbone in PRESETS or Path(backbone).exists() else backbone
    return named, backbone in PRESETS


def card_text(facts: dict[str, Any], results: str | os.PathLike) -> str:
    """The card, metadata included, from [`checkpoint_facts`] and a folder of result files. The same from the same.

    Raises:
        ValueError: a result file is malformed; the message names it.
    """
    records = read_results(Path(results))
    folder = facts.get("results", RESULTS)
    if not re.fullmatch(r"(\.\./)?\w[\w.-]*(/\w[\w.-]*)*", str(folder)):
        raise ValueError(f"{FACTS}: `results` is {folder!r}, expected the path of a folder beside the card.")
    content = template("model_card.md.jinja").render(
        facts,
        card_data=Markdown(_card_data(facts, records).to_yaml()),
        senses=Markdown(", ".join(f"{code(name)} ({_words(sense)})" for name, sense in facts["senses"].items())),
        action=_action_words(facts),
        snippet=Markdown(_snippet(facts)),
        training=origins(records["timing"]),
        timing=timing_table(records["timing"]),
        evaluation=_predicted(records["evaluation"]),
        futures=_sampled(records["futures"]),
        planning=_planned(records["planning"]),
        measured={part: origin_lines(records[part]) for part in ("evaluation", "futures", "planning")},
        files=Markdown(", ".join(f"[{name}.json]({folder}/{name}.json)" for name in records if records[name])),
        copy_last=series_name("copy_last"),
        failures=[
            *_not_better_than_copying(records["evaluation"]),
            *_unsolved(records["planning"]),
            *_not_better_than_chance(records["planning"]),
        ],
    )
    ModelCard(content)  # raises if the metadata on top cannot be read back
    return content


def check_card(path: str | os.PathLike, results: str | os.PathLike) -> list[str]:
    """What in a card does not come from the result files in a folder; an empty list if all does.

    Args:
        path (`str` or `Path`): the card.
        results (`str` or `Path`): a folder with `checkpoint.json` and result files, as `docs/results/quickstart`, or
            `results` in a repository that `pan push` made.

    Raises:
        FileNotFoundError: there is no card, or no `checkpoint.json`.
    """
    facts = read_json(Path(results) / FACTS)
    expected = card_text(facts, results).splitlines()
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    problems = []
    for kind, *_, first, last in difflib.SequenceMatcher(None, expected, lines, autojunk=False).get_opcodes():
        if kind == "delete":
            problems.append(f"line {first + 1}: something that the result files say is missing here.")
        elif kind != "equal":
            problems += [f"line {n + 1}: {lines[n]!r} is not what the result files say." for n in range(first, last)]
    return problems


# ------------------------------------------------------------------------------------------------------------ metadata


def _card_data(facts: dict[str, Any], records: dict[str, list[Record]]) -> ModelCardData:
    moves = any(feature_class(part["kind"]).is_numeric for part in _actions(facts).values())
    return ModelCardData(
        license=facts["license"],
        library_name="transformers",
        pipeline_tag="robotics" if moves else "reinforcement-learning",
        tags=[*TAGS, "reinforcement-learning" if moves else "gymnasium"],
        base_model=facts["base_model"],
        datasets=[facts["dataset"]] if facts["dataset"] else None,
        model_name=facts["name"],
        eval_results=_eval_results(records) or None,
    )


def _eval_results(records: dict[str, list[Record]]) -> list[EvalResult]:
    """The headline metrics as entries of the Hub's model-index."""
    sampled = select(records["futures"], metric=_SAMPLED, model="pan")
    several_seeds = len({tuple(entry.seeds) for entry in sampled}) > 1
    results = [_eval_result(entry, "reinforcement-learning") for entry in best_plans(records["planning"])]
    results += [_eval_result(entry, "any-to-any", several_seeds) for entry in _in_order(sampled, _SAMPLED)]
    results += [_eval_result(entry, "any-to-any") for entry in _headline_predictions(records["evaluation"])]
    return results[:MAX_HEADLINES]


def _headline_predictions(records: Sequence[Record]) -> list[Record]:
    """The model's own headline metrics, over all environments together where that was measured."""
    ours = select(_shown(records), model="pan")
    return _in_order(select(ours, environment="all") or ours, _PREDICTED)


def _in_order(records: Iterable[Record], metrics: Sequence[str]) -> list[Record]:
    return sorted(records, key=lambda entry: (metrics.index(entry.metric), entry.horizon or 0))


def _eval_result(entry: Record, task: str, tell_seeds: bool = False) -> EvalResult:
    """A record as an entry of the Hub's model-index, its seeds in its name where they tell it apart."""
    name = metric_label(entry.metric)
    if entry.model != "pan":
        name += f", {series_name(entry.model)}"
    if entry.horizon is not None:
        name += f", {entry.horizon} step{'s' * (entry.horizon != 1)} ahead"
    if tell_seeds:
        name += f", {seeds_text(entry.seeds)}"
    return EvalResult(
        task_type=task,
        dataset_type=entry.environment,
        dataset_name=entry.environment,
        dataset_split=entry.split,
        metric_type=entry.metric,
        metric_name=name,
        metric_value=rounded(entry.value, entry.metric),
        metric_args=None if entry.horizon is None else {"horizon": entry.horizon},
    )


def rounded(value: float, metric: str) -> float:
    """A value to the digits that a table shows of its metric: a share of 0.99432 is 0.994, as 99.4%."""
    _, factor, digits = unit_of(metric)
    return float(f"{value:.4g}") if digits is None else round(value, digits + round(math.log10(factor)))


# ---------------------------------------------------------------------------------------------------------------- text


def _shown(records: Iterable[Record]) -> list[Record]:
    """The headline metrics of the model and of its baseline, at the horizons that a card shows. A metric that is zero
    throughout is none (in a continuous world no frame is exact)."""
    shown = select(records, metric=_PREDICTED, model=["pan", "copy_last"])
    shown = select(shown, horizon=_HORIZONS) or shown
    measured = {entry.metric for entry in shown if entry.model == "pan" and entry.value and math.isfinite(entry.value)}
    telling = [metric for metric in measured if _SAID_BY.get(metric) not in measured]
    return [entry for entry in select(shown, metric=telling) if math.isfinite(entry.value)]


def _predicted(records: Sequence[Record]) -> str:
    named = [replace(entry, model=series_name(entry.model)) for entry in _in_order(_shown(records), _PREDICTED)]
    named = [entry for _, group in by_environment(named) for entry in group]
    return table(named, ["environment", "metric"], ["horizon", "model"])


def _sampled(records: Sequence[Record]) -> str:
    metrics = (*_SAMPLED, "calibration_outcomes", "calibration_max_z")
    shown = _in_order(select(records, metric=metrics, model=["pan", "simulator"]), metrics)
    named = [replace(entry, model=series_name(entry.model)) for entry in shown]
    return table(named, ["environment", "model", "seeds"], "metric")


def _planned(records: Sequence[Record]) -> Markdown:
    """A table of the environments with a goal, and one of the others."""
    with_goal = {entry.environment for entry in select(records, metric="success")}
    tables = []
    for metrics, has_goal in ((_PLANNED, True), (_PLAYED, False)):
        shown = [entry for entry in select(records, metric=metrics) if (entry.environment in with_goal) == has_goal]
        named = [replace(entry, model=series_name(entry.model)) for entry in _in_order(shown, metrics)]
        tables.append(table(named, ["environment", "model"], "metric"))
    return Markdown("\n\n".join(filter(None, tables)))


def _not_better_than_copying(records: Sequence[Record]) -> list[str]:
    """A sentence for each metric in which the model does not beat repeating the last frame, with the horizons."""
    lost: dict[tuple[str, str], list[str]] = {}
    for entry in select(records, model="pan", metric=list(CURVE_METRICS)):
        where = {"metric": entry.metric, "horizon": entry.horizon, "environment": entry.environment}
        for copied in select(records, model="copy_last", split=entry.split, **where):
            sign = -1 if entry.metric.endswith(_SMALLER_IS_BETTER) else 1
            says_something = entry.value or copied.value  # where nothing is ever exact, neither is right nor wrong
            if says_something and sign * entry.value <= sign * copied.value:
                numbers = f"at horizon {entry.horizon} {format_value(entry)} against {format_value(copied)}"
                lost.setdefault((entry.environment, entry.metric), []).append(numbers)
    return [
        f"{environment}: no better than copying the last frame in {metric_label(metric)}: {'; '.join(numbers)}."
        for (environment, metric), numbers in lost.items()
    ]


def _unsolved(records: Sequence[Record]) -> list[str]:
    """A sentence for each environment with a goal that no planner always reaches: the best rate and its interval."""
    sentences = []
    for best in select(best_plans(records), metric="success"):
        if best.value < 1:
            low, high = success_interval(best, records) or (best.value, best.value)
            sentences.append(
                f"{best.environment}: the best planner ({series_name(best.model)}) solves {100 * best.value:.1f}% of "
                f"unseen starts (95% interval {100 * low:.1f} to {100 * high:.1f}%)."
            )
    return sentences


def _not_better_than_chance(records: Sequence[Record]) -> list[str]:
    """A sentence for each environment in which random play does as well as the best planner."""
    return [
        f"{best.environment}: the best planner ({series_name(best.model)}) is no better than random play in "
        f"{metric_label(best.metric)}: {format_value(best)} against {format_value(chance)}."
        for best in best_plans(records)
        for chance in select(records, metric=best.metric, model=RANDOM, environment=best.environment)
        if chance.value >= best.value
    ]


# ------------------------------------------------------------------------------------------------------- what it takes


def _words(part: dict[str, Any]) -> str:
    return escaped(feature_class(part["kind"]).sense_words(part))


def _actions(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of the action by name."""
    return ({"action": facts["action"]} if facts["action"] else {}) | facts.get("actions", {})


def _action_words(facts: dict[str, Any]) -> Markdown:
    words = {name: escaped(feature_class(part["kind"]).action_words(part)) for name, part in _actions(facts).items()}
    if list(words) == ["action"]:
        return words["action"]
    return Markdown(" and ".join(f"{word} ({code(name)})" for name, word in words.items()) or "an action")


def _snippet(facts: dict[str, Any]) -> str:
    """Code that runs as it stands: blank observations and actions of the right shape, to be replaced by real ones."""
    model_id = quoted(facts["model_id"])
    senses = facts["senses"] or {"camera": {"kind": "image", "height": 64, "width": 64, "channels": 3}}
    parts = [f"{quoted(name)}: {feature_class(sense['kind']).blank_sense(sense)}" for name, sense in senses.items()]
    blanks = {name: feature_class(part["kind"]).blank_actions(part) for name, part in _actions(facts).items()}
    actions = "{" + ", ".join(f"{quoted(name)}: {blank}" for name, blank in blanks.items()) + "}"
    if not set(blanks) - {"action"}:
        actions = blanks.get("action") or feature_class("discrete").blank_actions({})
    seen = next(iter(senses))
    return f"""import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained({model_id}, trust_remote_code=True)
model = AutoModel.from_pretrained({model_id}, trust_remote_code=True).eval()
observation = {{{", ".join(parts)}}}
belief = model.perceive(**processor(observation=observation))
actions = {actions}  # (batch, steps)
futures = model.simulate(belief, actions, num_rollouts=4, seed=0)
print(futures.decode({quoted(seen)}).shape)  # (rollouts, steps, ...)
print(futures.reward.mean(0), futures.log_prob.sum(1))"""
