"""Explanations of single decisions, as `pan plan --explain 0,5,last` writes them for the report.

An explanation is a JSON: title, environment, where the action comes from, and of each candidate what is known; beside
it, of a world with pictures, an `.npz` with `candidate_<n>`, the present and the imagined frames after it, and
`outcomes_<n>`, what may come of its first action; uint8 `(T, H, W, 3)`.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.agents.explain import Explanation
from pan_hf.files import write_file
from pan_hf.modeling.display_pan import to_rgb

LAST = "last"
_LONGEST = 12  # imagined frames shown of a candidate


@dataclass
class Explained:
    """Which decisions of an episode are explained, and what is said of them.

    Args:
        steps (`frozenset[int]`): from 0.
        has_last (`bool`): the last one, too.
    """

    steps: frozenset[int]
    has_last: bool
    found: dict[int, Explanation] = field(default_factory=dict)
    _latest: int | None = None

    def note(self, step: int, agent: Any) -> None:
        """Keeps why an agent took the action of a step, if that is asked for."""
        if step in self.steps or self.has_last:
            self.found[step] = agent.explain()
        if self._latest is not None and self._latest not in self.steps:
            self.found.pop(self._latest, None)  # it was not the last one
        self._latest = step


def explained_steps(asked: str | Sequence[str] | None) -> tuple[frozenset[int], bool]:
    """Steps to explain, from "0,5,last" or a list of such: their numbers, and whether the last one is asked for.

    Raises:
        ValueError: neither a number from 0 on nor "last".
    """
    texts = [asked] if isinstance(asked, str) else list(asked or ())
    words = [word.strip() for text in texts for word in str(text).split(",")]
    if wrong := [word for word in words if word != LAST and not word.isdecimal()]:
        raise ValueError(f"`explain` names steps from 0 on, or {LAST!r}, as in '0,5,{LAST}'; got {wrong[0]!r}.")
    return frozenset(int(word) for word in words if word != LAST), LAST in words


def write_explanations(explained: Explained, environment: str, planner: str, folder: Path) -> list[Path]:
    """Writes what was explained of one planner in one environment, in place of what an earlier run wrote of it."""
    stem = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{environment}-{planner}")
    for stale in (*folder.glob(f"{stem}-step-*.json"), *folder.glob(f"{stem}-step-*.npz")):
        stale.unlink(missing_ok=True)
    written = []
    for step, explanation in sorted(explained.found.items()):
        path = folder / f"{stem}-step-{step}.json"
        if frames := _frames(explanation):
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **frames)  # type: ignore[arg-type]  # no row is called allow_pickle
            write_file(path.with_suffix(".npz"), buffer.getvalue())
        title = f"{environment}: {planner.replace('_', ' ')}, step {step}: {explanation.action}"
        about = _about(explanation) | {"title": title, "environment": environment, "step": step}
        written.append(write_file(path, json.dumps(about, indent=2, allow_nan=False) + "\n"))
    return written


def _frames(explanation: Explanation) -> dict[str, np.ndarray]:
    frames = {}
    for number, (candidate, pictures) in enumerate(zip(explanation.candidates, explanation.pictures(), strict=False)):
        frames[f"candidate_{number}"] = to_rgb(pictures[: _LONGEST + 1]).numpy()
        if (outcomes := explanation.outcome_pictures(candidate)) is not None:
            frames[f"outcomes_{number}"] = to_rgb(outcomes).numpy()
    return frames


def _about(explanation: Explanation) -> dict[str, Any]:
    return {
        "action": explanation.action,
        "source": explanation.words,
        "candidates": _finite(explanation.rows()),
        "spread": None if explanation.spread is None else _finite(asdict(explanation.spread)),
    }


def _finite(value: Any) -> Any:
    """A value without numbers that JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
