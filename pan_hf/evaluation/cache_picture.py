"""Pictures of what a cache knows: how its answers came with its entries, and the graph of its abstract states, nearer
to the goal the farther right.

Each point is all states that are equal at the coarsest level. Its place to the right is its backed-up value, its
height the first principal component of its states' features, its size how many states it is, its colour the chance to
reach the goal. A line is an outcome that was met between two of them.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.cache_keys import FEATURES
from pan_hf.agents.cache_store import node_at
from pan_hf.extras import extra
from pan_hf.files import write_file

with extra("report", "A picture of a cache"):
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

MOST_NODES = 400


def write_cache_picture(cache: SimulationCache, folder: str | Path, name: str = "cache") -> Path | None:
    """Draws the graph that a cache holds for what was looked up last.

    Args:
        cache ([`SimulationCache`]): bound to a world and a critic.
        folder (`str` or `Path`): for `<name>.png`, and a JSON with its title and caption, as a report shows them.

    Returns:
        `Path`: the picture; None where no value is backed up.
    """
    bound = cache.bound
    if bound is None:
        return None
    level = len(bound.keys.levels) - 1
    places = _nodes(cache, bound.space, bound.task, level)
    if not places:
        return None
    number = {node: index for index, node in enumerate(places)}
    points = np.array([values[:4] for values in places.values()], float)  # value, reach, count, height
    edges = _edges(cache, bound.space, level)
    lines = [(number[one], number[other]) for one, other in edges if one in number and other in number]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    segments = [[points[one, [0, 3]], points[other, [0, 3]]] for one, other in lines if one != other]
    axes.add_collection(LineCollection(segments, colors="#9a8c7c", linewidths=0.4, alpha=0.4, zorder=1))
    sizes = 12 + 90 * points[:, 2] / points[:, 2].max()
    drawn = axes.scatter(points[:, 0], points[:, 3], s=sizes, c=points[:, 1], vmin=0, vmax=1, cmap="viridis", zorder=2)
    figure.colorbar(drawn, label="chance to reach the goal")
    axes.set(xlabel="value", ylabel="how its states look (first component)", yticks=[])
    named = bound.keys.levels[level]
    about = {
        "title": "What the cache knows",
        "caption": f"{len(places)} abstract states (equal at {named.name}; that leaves out {named.leaves_out}) and "
        f"{len(lines)} ways between them, as their outcomes were imagined.",
    }
    return _write(figure, about, Path(folder) / f"{name}.png")


def write_growth_picture(growth: dict[str, Any], folder: str | Path, name: str = "cache_growth") -> Path:
    """Draws which share of look-ups is answered by how many entries there are.

    Args:
        growth (`dict`): see [`~pan_hf.evaluation.cache_summary.coverage_growth`].
        folder (`str` or `Path`): for `<name>.png`, and a JSON with its title and caption, as a report shows them.
    """
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    levels = growth["levels"]
    if levels:
        axes.stackplot(growth["entries"], *levels.values(), labels=list(levels), alpha=0.7)
        axes.legend(loc="upper left", title="found at")
    axes.set(xlabel="entries in the cache", ylabel="recorded states answered", ylim=(0, 1))
    about = {
        "title": "How the cache came to its answers",
        "caption": "Share of held-out recorded states for which the cache knows an action, by how many of its entries "
        "there were, oldest first.",
    }
    return _write(figure, about, Path(folder) / f"{name}.png")


def _write(figure: Figure, about: dict[str, str], path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())
    write_file(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    return path


def _nodes(cache: SimulationCache, space: int, task: int, level: int) -> dict[bytes, list[float]]:
    """Value, chance, number of states and height of the nodes of a level that have most states."""
    rows = cache.store.query(
        "SELECT b.node, b.value, b.reach, COUNT(*), MIN(s.features) FROM states s "
        f"JOIN best b ON b.node={node_at('s', level)} AND b.task=? WHERE s.space=? "
        "GROUP BY b.node ORDER BY COUNT(*) DESC, b.node LIMIT ?",
        (task, space, MOST_NODES),
    )
    if not rows:
        return {}
    features = np.stack([np.frombuffer(row[4] or bytes(2 * FEATURES), np.float16) for row in rows]).astype(np.float64)
    centred = features - features.mean(0)
    heights = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    return {row[0]: [*row[1:4], height] for row, height in zip(rows, heights.tolist(), strict=True)}


def _edges(cache: SimulationCache, space: int, level: int) -> list[tuple[bytes, bytes]]:
    """Pairs of nodes between which an outcome was met."""
    return cache.store.query(
        f"SELECT DISTINCT {node_at('s', level)}, {node_at('n', level)} FROM outcomes o "
        "JOIN states s ON s.node=o.state JOIN states n ON n.node=o.next WHERE s.space=?",
        (space,),
    )
