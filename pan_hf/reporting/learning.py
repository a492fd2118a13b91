"""Curves of a policy as it learns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from pan_hf.extras import extra

with extra("report", "A picture of learning curves"):
    from matplotlib import rc_context
    from matplotlib.figure import Figure

CURVES = {
    "return": "return of an imagined episode",
    "length": "length of an imagined episode (steps)",
    "ended": "share of episodes that terminate",
    "entropy": "entropy of the predictions (nats a step)",
    "policy_entropy": "entropy of the policy (nats)",
    "explained_variance": "explained variance of the returns",
    "success": "success on seeds held out",
    "surprise": "surprise at what was met (nats a step)",
    "surprises_per_episode": "surprises an episode, seeds held out",
    "seconds_per_decision": "seconds a decision",
    "recalled": "share of actions from the cache",
    "by_policy": "share of actions by the policy",
    "loss": "loss",
    "agreement": "agreement with the teacher, states held out",
    "confident": "share of them in which the policy is sure",
    "agreement_confident": "agreement in these",
}


def learning_curves(log: Sequence[dict[str, Any]], steps: str = "imagined steps") -> bytes:
    """Draws what was noted against the steps so far, one small plot a metric, as SVG.

    Args:
        log: of a policy, `log.json`.
        steps (`str`): what a step is.
    """
    shown = [name for name in CURVES if any(np.isfinite(entry.get(name, np.nan)) for entry in log)]
    columns = 3
    rows = max(1, -(-len(shown) // columns))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "learning", "font.size": 8}):
        figure = Figure(figsize=(3.2 * columns, 2.1 * rows), layout="constrained")
        places = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, name in zip(places, shown, strict=False):
            axes.plot([entry["steps"] for entry in log], [entry.get(name, np.nan) for entry in log], linewidth=1.2)
            axes.set_title(CURVES[name], fontsize=8)
            axes.set_xlabel(steps)
            axes.spines[["top", "right"]].set_visible(False)
        for axes in places[len(shown) :]:
            axes.set_axis_off()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
