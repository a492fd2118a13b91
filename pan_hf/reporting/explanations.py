"""Why an agent took an action, as `report.html` shows it: a table of what was weighed, and what was imagined of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.files import read_json
from pan_hf.reporting.figures import load_frames
from pan_hf.reporting.results import MISSING

_SHOWN_ACTIONS = 8
COLUMNS = {
    "value": "value",
    "weight": "weight",
    "reward": "imagined reward",
    "continue_prob": "goes on",
    "log_prob": "log-probability",
}
"""What is shown of each candidate, and how it is called."""


@dataclass(frozen=True)
class ExplainedStep:
    """One decision, as `pan plan --explain` wrote it.

    Args:
        title (`str`), source (`str`): for a person.
        candidates (`list[dict]`): the taken one first.
        spread (`dict`, *optional*): of what all sampled sequences were worth.
        frames (`dict[str, np.ndarray]`): by `candidate_<n>` and `outcomes_<n>`, uint8 `(T, H, W, 3)`.
    """

    title: str
    source: str
    candidates: list[dict[str, Any]]
    spread: dict[str, float] | None
    frames: dict[str, np.ndarray]

    def label(self, number: int) -> str:
        """The actions of a candidate."""
        names = list(map(str, self.candidates[number].get("actions", [])))
        more = f", ... ({len(names)} actions)" if len(names) > _SHOWN_ACTIONS else ""
        return ", ".join(names[:_SHOWN_ACTIONS]) + more

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and body; columns of which nothing is known are left out."""
        known = [name for name in COLUMNS if any(each.get(name) is not None for each in self.candidates)]
        body = []
        for number, each in enumerate(self.candidates):
            goal = "reaches the goal" if each.get("reaches_goal") else ""
            notes = ", ".join(filter(None, ["taken" if each.get("is_taken") else "", goal]))
            body.append([self.label(number), *(_shown(each.get(name)) for name in known), notes])
        return ["candidate", *(COLUMNS[name] for name in known), ""], body

    def rows(self) -> list[tuple[str, np.ndarray, list[str]]]:
        """Of each candidate its label, frames, and what stands over each of them; and so of its outcomes."""
        rows = []
        for number, each in enumerate(self.candidates):
            if (frames := self.frames.get(f"candidate_{number}")) is not None:
                over = ["now", *map(str, each.get("actions", []))]
                rows.append((f"candidate {number + 1}", frames, over[: len(frames)]))
            if (outcomes := self.frames.get(f"outcomes_{number}")) is not None:
                chances = [f"{100 * float(one['probability']):.0f}%" for one in each["outcomes"]]
                rows.append((f"outcomes of {number + 1}", outcomes, chances))
        return rows

    @property
    def spread_words(self) -> str:
        """What all sampled sequences were worth."""
        if self.spread is None:
            return ""
        told = {name: _shown(value) for name, value in self.spread.items()}
        return "{count} sequences were sampled, worth {mean} ± {std}, {least} to {most}.".format(**told)


def _shown(value: Any) -> str:
    return MISSING if value is None else f"{value:.4g}"


def load_explanation(path: Path) -> ExplainedStep:
    """Reads a JSON that `pan plan --explain` wrote, and the frames beside it, if there are any.

    Raises:
        ValueError: the file is malformed; the message names it.
    """
    about, stored = read_json(path), path.with_suffix(".npz")
    frames = load_frames(stored) if stored.exists() else {}
    try:
        step = ExplainedStep(
            str(about["title"]), str(about["source"]), list(about["candidates"]), about.get("spread"), frames
        )
        step.table(), step.rows(), step.spread_words  # noqa: B018  # whether it can be shown
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is no explanation that `pan plan --explain` wrote ({error!r}).") from error
    return step
