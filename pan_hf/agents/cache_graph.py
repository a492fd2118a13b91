"""Values on the graph of states that a cache holds, backed up from the outcomes that were met.

    Q(s, a) = sum over outcomes of p(outcome) * worth(outcome),    V(s) = max over a of Q(s, a)

An outcome is worth what the critic's own `value` says of a future of two steps: its score, and then V of the state it
leads to; of one step where it has reached the goal or leads to what is not known yet. The chance to reach the goal is
backed up beside it, undiscounted. At a coarser level a node is all states that are equal there: their outcomes are
pooled, and lead to nodes of that level, so that ways which no single rollout went join up.

`back_up` goes backwards from the nodes whose outcomes are new, as far as anything changes. `back_up_all` does the
whole graph at once, in memory.

Shapes: E = outcomes, A = pairs of node and action.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pan_hf.agents.cache_store import CacheStore, node_at
from pan_hf.agents.critics import Critic

TOLERANCE = 1e-4  # changes of a value below this go no further
MOST_SWEEPS = 1000  # in memory
MOST_ROUNDS = 200  # on disk: a dense reward that goes round in circles is left to the next sweep over everything


class Edges:
    """Outcomes as arrays of E: of which pair (node, action), where to, and what is known of them.

    Args:
        rows: node, action, next node, count, score, reached, continuation, duration.
    """

    def __init__(self, rows: list[tuple]):
        pairs: dict[tuple[bytes, bytes], int] = {}
        nodes: dict[bytes, int] = {}
        self.pair = np.array([pairs.setdefault((row[0], row[1]), len(pairs)) for row in rows], np.int64)
        self.pairs = list(pairs)
        self.node_of_pair = np.array([nodes.setdefault(node, len(nodes)) for node, _ in self.pairs], np.int64)
        self.nodes = list(nodes)
        self.next = [row[2] for row in rows]
        counts, self.score, reached, self.alive, self.duration = (
            np.array([row[column] for row in rows], np.float64) for column in range(3, 8)
        )
        self.is_reached = reached > 0
        totals = np.bincount(self.pair, counts, len(pairs)) if rows else np.zeros(0)
        self.share = counts / totals[self.pair]

    def __len__(self) -> int:
        return len(self.pair)

    def action_values(
        self, critic: Critic, value: np.ndarray, reach: np.ndarray, is_known: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Value and chance to reach the goal of every pair, `(A,)`. Args: those of the next states, `(E,)`, and
        whether they are known."""
        goes_on = is_known & ~self.is_reached
        worth = np.where(
            goes_on,
            future_value(critic, [self.score, value], self.alive, self.duration),
            future_value(critic, [self.score], self.alive, self.duration),
        )
        reaching = np.where(self.is_reached, 1.0, np.where(is_known, self.alive * reach, 0.0))
        sums = [np.bincount(self.pair, self.share * each, len(self.pairs)) for each in (worth, reaching)]
        return sums[0], sums[1]

    def best(self, values: np.ndarray, reaches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of every node the largest value, and the chance that goes with it."""
        order = np.lexsort((reaches, values, self.node_of_pair))
        last = np.append(np.diff(self.node_of_pair[order]) > 0, True) if len(order) else np.zeros(0, bool)
        chosen = order[last]  # nodes are numbered in order, so this is one a node
        return values[chosen], reaches[chosen]


def future_value(critic: Critic, scores: list[np.ndarray], alive: np.ndarray, duration: np.ndarray) -> np.ndarray:
    """What the critic's `value` says of futures of one or two steps with these scores, `(E,)`.

    Raises:
        ValueError: its value needs more of a future than scores, continuation and time.
    """
    steps = len(scores)
    futures = SimpleNamespace(
        continue_prob=torch.from_numpy(np.stack([alive, np.ones_like(alive)][:steps], 1)),
        elapsed=torch.from_numpy(np.stack([np.zeros_like(duration), duration][:steps], 1)),
    )
    try:
        return critic.value(futures, torch.from_numpy(np.stack(scores, 1))).double().numpy()
    except AttributeError as error:
        raise ValueError(
            f"{type(critic).__name__}.value needs more than scores, so nothing is backed up: {error}"
        ) from error


def backs_up(critic: Critic) -> bool:
    """Whether a critic's values can be backed up, see `future_value`."""
    one = np.ones(1)
    try:
        future_value(critic, [one, one], one, one)
    except ValueError:
        return False
    return True


# ---- incrementally


def back_up(store: CacheStore, task: int, critic: Critic, level: int, nodes: Iterable[bytes]) -> int:
    """Values of nodes whose outcomes are new, and then of whatever leads to them, as far as it changes.

    Args:
        task (`int`): the critic's number in the store.
        level (`int`): number of the level, 0 the exact one.
        nodes: digests at that level.

    Returns:
        `int`: values computed.
    """
    waiting, computed = set(nodes), 0
    for _ in range(MOST_ROUNDS):
        if not waiting:
            break
        computed += len(waiting)
        waiting = _sweep(store, task, critic, level, waiting)
    return computed


def _sweep(store: CacheStore, task: int, critic: Critic, level: int, nodes: set[bytes]) -> set[bytes]:
    """One round; returns the nodes that lead to those whose value has changed."""
    with store.transaction() as connection:
        _mark(connection, nodes)
        next_node, joined = node_at("n", level), _members_of(level)
        rows = connection.execute(
            f"SELECT w.node, o.action, {next_node}, o.count, c.score, c.reached, o.continue_prob, o.duration, "
            f"b.value, b.reach FROM waiting w {joined} JOIN outcomes o ON o.state=s.node "
            "JOIN scores c ON c.outcome=o.id AND c.task=? JOIN states n ON n.node=o.next "
            f"LEFT JOIN best b ON b.node={next_node} AND b.task=?",
            (task, task),
        ).fetchall()
        if not rows:
            return set()
        edges = Edges([row[:8] for row in rows])
        is_known = np.array([row[8] is not None for row in rows])
        value, reach = (np.array([row[column] or 0.0 for row in rows]) for column in (8, 9))
        values, reaches = edges.action_values(critic, value, reach, is_known)
        _write_values(connection, task, _pairs(edges, values, reaches))
        changed = _write_best(connection, task, edges.nodes, *edges.best(values, reaches))
        if not changed:
            return set()
        _mark(connection, changed)
        target = "o.next=w.node" if level == 0 else "o.next=m.state"
        through = "" if level == 0 else "JOIN members m ON m.node=w.node"
        found = connection.execute(
            f"SELECT DISTINCT {node_at('s', level)} FROM waiting w {through} JOIN outcomes o ON {target} "
            "JOIN states s ON s.node=o.state"
        )
        return {row[0] for row in found}


def _mark(connection: sqlite3.Connection, nodes: Iterable[bytes]) -> None:
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS waiting (node BLOB PRIMARY KEY) WITHOUT ROWID")
    connection.execute("DELETE FROM waiting")
    connection.executemany("INSERT OR IGNORE INTO waiting VALUES (?)", [(node,) for node in nodes])


def _members_of(level: int) -> str:
    """The states of a waiting node."""
    if level == 0:
        return "JOIN states s ON s.node=w.node"
    return "JOIN members m ON m.node=w.node JOIN states s ON s.node=m.state"


def _pairs(edges: Edges, values: np.ndarray, reaches: np.ndarray) -> list[tuple]:
    """Node, action, value and chance of every pair."""
    columns = zip(edges.pairs, values.tolist(), reaches.tolist(), strict=True)
    return [(node, action, value, reach) for (node, action), value, reach in columns]


def _write_values(connection: sqlite3.Connection, task: int, pairs: list[tuple]) -> None:
    connection.executemany(
        f"INSERT INTO worth (task, node, action, value, reach) VALUES ({task:d}, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET value=excluded.value, reach=excluded.reach",
        pairs,
    )


def _write_best(
    connection: sqlite3.Connection, task: int, nodes: list[bytes], values: np.ndarray, reaches: np.ndarray
) -> list[bytes]:
    """Writes what has changed; returns those nodes."""
    known = dict(
        (row[0], row[1:])
        for row in connection.execute(
            "SELECT b.node, b.value, b.reach FROM waiting w JOIN best b ON b.node=w.node AND b.task=?", (task,)
        )
    )
    changed = []
    for node, value, reach in zip(nodes, values.tolist(), reaches.tolist(), strict=True):
        before = known.get(node)
        if before is None or abs(before[0] - value) > TOLERANCE or abs(before[1] - reach) > TOLERANCE:
            changed.append((node, task, value, reach))
    connection.executemany("INSERT OR REPLACE INTO best VALUES (?, ?, ?, ?)", changed)
    return [row[0] for row in changed]


# ---- all at once


def back_up_all(store: CacheStore, space: int, task: int, critic: Critic, level: int) -> int:
    """Values of every node of a level from the outcomes that are there, by sweeps over all of them in memory, until
    nothing changes; written in transactions of 20 000. Returns the number of pairs of node and action."""
    edges = Edges(
        store.query(
            f"SELECT {node_at('s', level)}, o.action, {node_at('n', level)}, o.count, c.score, c.reached, "
            "o.continue_prob, o.duration FROM outcomes o JOIN scores c ON c.outcome=o.id AND c.task=? "
            "JOIN states s ON s.node=o.state JOIN states n ON n.node=o.next WHERE s.space=?",
            (task, space),
        )
    )
    if not len(edges):
        return 0
    number = {node: index for index, node in enumerate(edges.nodes)}
    next_number = np.array([number.get(node, -1) for node in edges.next])
    is_known = next_number >= 0
    value = reach = np.zeros(len(edges.nodes))
    knows = np.zeros(len(edges.nodes), bool)
    for _ in range(MOST_SWEEPS):
        values, reaches = edges.action_values(
            critic, value[next_number], reach[next_number], is_known & knows[next_number]
        )
        best, chance = edges.best(values, reaches)
        is_settled = knows.all() and max(np.abs(best - value).max(), np.abs(chance - reach).max()) <= TOLERANCE
        value, reach, knows = best, chance, np.ones(len(best), bool)
        if is_settled:
            break
    _write_all(store, task, edges, values, reaches, value, reach)
    return len(edges.pairs)


def _write_all(store: CacheStore, task: int, edges: Edges, values: Any, reaches: Any, value: Any, reach: Any) -> None:
    pairs = _pairs(edges, values, reaches)
    for first in range(0, len(pairs), 20_000):
        with store.transaction() as connection:
            _write_values(connection, task, pairs[first : first + 20_000])
    best = list(zip(edges.nodes, [task] * len(edges.nodes), value.tolist(), reach.tolist(), strict=True))
    for first in range(0, len(best), 20_000):
        with store.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO best VALUES (?, ?, ?, ?)", best[first : first + 20_000])
