"""The cache on disk: SQLite in WAL mode, so that several processes read and write at once and a kill loses nothing.

| table | a row is |
|---|---|
| `spaces` | the scope that entries hold for: a model's weights, see `cache_scope` |
| `states` | a belief: digest of its exact key, the key itself, digests at coarser levels, features |
| `members` | one coarser digest of a state: which states are the same abstract state |
| `outcomes` | state and action -> a state that was met, how often, reward, continuation, log-probability, duration |
| `scores` | what one critic says of an outcome |
| `worth` | node (a digest at any level), task and action -> value, chance to reach the goal, a planner's return |
| `best` | node and task -> the largest of these |

Every write is a transaction of its own and a short one: what `commit` has returned from is there after any kill, and
what it has not is not there at all.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.agents.cache_keys import DIGEST, FEATURES
from pan_hf.agents.cache_scope import Scope

FILE = "cache.sqlite"
APPLICATION, VERSION = 0x50414E43, 1  # "PANC", in the file's header
_WAIT = 60.0  # seconds for another writer to end
_SCHEMA = """
CREATE TABLE spaces (id INTEGER PRIMARY KEY, salt BLOB NOT NULL, digest TEXT NOT NULL, rows TEXT NOT NULL,
  ledger TEXT NOT NULL, events INTEGER NOT NULL);
CREATE TABLE states (id INTEGER PRIMARY KEY, node BLOB NOT NULL UNIQUE, space INTEGER NOT NULL, raw BLOB NOT NULL,
  present INTEGER NOT NULL, nodes BLOB NOT NULL, text BLOB NOT NULL, features BLOB, is_expanded INTEGER NOT NULL,
  used INTEGER NOT NULL);
CREATE INDEX states_used ON states (space, used);
CREATE TABLE members (node BLOB NOT NULL, state BLOB NOT NULL, PRIMARY KEY (node, state)) WITHOUT ROWID;
CREATE TABLE outcomes (id INTEGER PRIMARY KEY, state BLOB NOT NULL, action BLOB NOT NULL, next BLOB NOT NULL,
  count INTEGER NOT NULL, reward, continue_prob REAL NOT NULL, log_prob REAL NOT NULL, duration INTEGER NOT NULL,
  events INTEGER NOT NULL, UNIQUE (state, action, next));
CREATE INDEX outcomes_next ON outcomes (next);
CREATE TABLE tasks (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, about TEXT NOT NULL);
CREATE TABLE scores (outcome INTEGER NOT NULL, task INTEGER NOT NULL, score REAL NOT NULL, reached INTEGER NOT NULL,
  PRIMARY KEY (outcome, task)) WITHOUT ROWID;
CREATE TABLE worth (node BLOB NOT NULL, task INTEGER NOT NULL, action BLOB NOT NULL, value REAL, reach REAL,
  planned REAL, PRIMARY KEY (node, task, action)) WITHOUT ROWID;
CREATE TABLE best (node BLOB NOT NULL, task INTEGER NOT NULL, value REAL NOT NULL, reach REAL NOT NULL,
  PRIMARY KEY (node, task)) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_STATEMENTS = [statement.strip() for statement in _SCHEMA.split(";") if statement.strip()]


@dataclass(frozen=True)
class StateRow:
    """A belief to be kept, see [`~pan_hf.agents.cache_keys.Filed`]; nodes, its digests from the exact one on."""

    nodes: Sequence[bytes]
    raw: bytes
    present: int
    text: bytes
    features: bytes | None


@dataclass(frozen=True)
class OutcomeRow:
    """An outcome to be kept: digests of both states, the action as bytes, and what was predicted.

    Args:
        count (`int`): how often it was drawn; 0 for the likeliest outcome, which counts as one however often it was
            asked for.
        reward: a number, or the bytes of float32 by actor.
        score, reached: what the critic says of it, if one was asked.
    """

    state: bytes
    action: bytes
    next: bytes
    count: int
    reward: float | bytes
    continue_prob: float
    log_prob: float
    duration: int
    score: float | None = None
    reached: bool = False


class CacheStore:
    """The file of a cache.

    Args:
        folder: that holds `cache.sqlite`; made if absent.
        create (`bool`): make the file if there is none.

    Raises:
        FileNotFoundError: there is none, and none is to be made.
        ValueError: the file is damaged, or no cache, or one of another version.
    """

    def __init__(self, folder: str | os.PathLike, create: bool = True):
        self.path = Path(folder) / FILE
        if not create and not self.path.is_file():
            problem = f"{FILE} is missing, and `create` is False"
            raise FileNotFoundError(f"No simulation cache at {folder}: {problem}. `pan precompute` makes one.")
        self._local = threading.local()
        with self.guarded():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._check_or_make()

    # ---- the connection

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's own; one that was opened before a fork is not used after it."""
        if getattr(self._local, "process", None) != os.getpid():
            connection = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None, cached_statements=256)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("PRAGMA cache_size=-65536")  # kB
            self._local.connection, self._local.process = connection, os.getpid()
        return self._local.connection

    def close(self) -> None:
        """Closes this thread's connection; the next use opens one."""
        if getattr(self._local, "process", None) == os.getpid():
            self._local.connection.close()
        self._local.process = None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What SQLite raises, in words that say what to do. The file is as it was before the transaction."""
        try:
            yield
        except sqlite3.OperationalError as error:
            said = str(error)
            if "full" in said:
                message = (
                    f"the disk is full: {self.path} has no room for more. What was written is kept; make room and "
                )
                raise OSError(errno.ENOSPC, message + "run the same again") from error
            if "locked" in said or "busy" in said:
                raise OSError(
                    errno.EBUSY, f"{self.path} has been locked by another process for {_WAIT:g} s; end that one"
                ) from error
            raise OSError(errno.EIO, f"{self.path} cannot be used ({error})") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.path} is damaged, or no simulation cache ({error}). It is left as it is: restore it, or "
                "delete it and fill a new one with `pan precompute`."
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write that is there as a whole or not at all; other writers wait for it."""
        connection = self.connection
        with self.guarded():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _check_or_make(self) -> None:
        """Makes the tables if there are none. A file of somebody else's is looked at and left as it is."""
        if self.path.exists():
            with closing(sqlite3.connect(self.path, timeout=_WAIT)) as plain:
                if self._is_made(plain):
                    return
        with self.transaction() as connection:  # of two that make it, one waits and finds it made
            if not self._is_made(connection):
                for statement in _STATEMENTS:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id={APPLICATION}")
                connection.execute(f"PRAGMA user_version={VERSION}")

    def _is_made(self, connection: sqlite3.Connection) -> bool:
        """Whether the tables are there. Raises ValueError where others are, or those of another version."""
        found = {row[0] for row in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        if not found:
            return False
        names = ("application_id", "user_version")
        kind, version = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        if kind != APPLICATION:
            raise ValueError(f"{self.path} is no simulation cache but another's database; name another folder.")
        if version != VERSION:
            raise ValueError(f"{self.path} is of version {version}, this pan_hf reads {VERSION}; name another folder.")
        if found != set(_STATEMENTS):  # a trigger, perhaps
            raise ValueError(f"{self.path} has other tables than pan_hf makes; name another folder.")
        return True

    def query(self, text: str, values: Sequence[Any] = ()) -> list[tuple]:
        """Rows of a SELECT."""
        with self.guarded():
            return self.connection.execute(text, values).fetchall()

    def check(self) -> None:
        """Reads every page. Raises ValueError where the file is damaged."""
        found = self.query("PRAGMA quick_check(1)")[0][0]
        if found != "ok":
            raise ValueError(f"{self.path} is damaged ({found}); delete it and fill a new one with `pan precompute`.")

    # ---- spaces and tasks

    def spaces(self) -> list[tuple[int, bytes, Scope]]:
        """Number, salt and scope of every space, the newest first."""
        rows = self.query("SELECT id, salt, digest, rows, ledger, events FROM spaces ORDER BY id DESC")
        return [(row[0], row[1], Scope(row[2], json.loads(row[3]), row[4], row[5])) for row in rows]

    def add_space(self, scope: Scope) -> tuple[int, bytes]:
        """A new space for a scope, or the one that another process has just made for it: its number and salt."""
        with self.transaction() as connection:
            found = connection.execute("SELECT id, salt FROM spaces WHERE digest=?", (scope.digest,)).fetchone()
            if found:
                return found
            (number,) = connection.execute("SELECT coalesce(max(id), 0) FROM spaces").fetchone()
            salt = hashlib.blake2b(f"{scope.digest} {number}".encode(), digest_size=16).digest()
            values = (salt, scope.digest, json.dumps(scope.rows), scope.ledger, scope.events)
            cursor = connection.execute(
                "INSERT INTO spaces (salt, digest, rows, ledger, events) VALUES (?, ?, ?, ?, ?)", values
            )
            return int(cursor.lastrowid or 0), salt

    def move_space(self, space: int, scope: Scope) -> None:
        """From now on a space holds for a model that has grown from the one it held for."""
        values = (scope.digest, json.dumps(scope.rows), scope.ledger, scope.events, space)
        with self.transaction() as connection:
            connection.execute("UPDATE spaces SET digest=?, rows=?, ledger=?, events=? WHERE id=?", values)

    def task(self, digest: str, about: str) -> int:
        """The number of a task, made if absent."""
        found = self.query("SELECT id FROM tasks WHERE digest=?", (digest,))
        if found:
            return found[0][0]
        with self.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO tasks (digest, about) VALUES (?, ?)", (digest, about))
        return self.query("SELECT id FROM tasks WHERE digest=?", (digest,))[0][0]

    # ---- writing

    def write(
        self,
        space: int,
        events: int,
        states: Iterable[StateRow],
        outcomes: Iterable[OutcomeRow],
        task: int | None = None,
        expanded: Iterable[bytes] = (),
        merges: bool = False,
    ) -> int:
        """Keeps states and outcomes in one transaction; returns how many outcomes are new. Args: events, of the ledger
        of whoever writes them; expanded, states of which every action is there now; merges, counts are those of
        another cache, so of what is in both the larger one stays."""
        with self.transaction() as connection:
            clock = self._tick(connection)
            states = list(states)
            before = connection.total_changes
            connection.executemany(
                "INSERT OR IGNORE INTO states (node, space, raw, present, nodes, text, features, is_expanded, used) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)",
                [
                    (s.nodes[0], space, s.raw, s.present, b"".join(s.nodes[1:]), s.text, s.features, clock)
                    for s in states
                ],
            )
            _count(connection, "states", connection.total_changes - before)
            connection.executemany(
                "INSERT OR IGNORE INTO members VALUES (?, ?)",
                [(node, state.nodes[0]) for state in states for node in state.nodes[1:]],
            )
            added = self._write_outcomes(connection, events, list(outcomes), task, merges)
            connection.executemany("UPDATE states SET is_expanded=1 WHERE node=?", [(node,) for node in expanded])
            return added

    @staticmethod
    def _write_outcomes(
        connection: sqlite3.Connection, events: int, outcomes: list[OutcomeRow], task: int | None, merges: bool
    ) -> int:
        before = connection.total_changes
        connection.executemany(
            "INSERT OR IGNORE INTO outcomes (state, action, next, count, reward, continue_prob, log_prob, duration, "
            "events) VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?)",
            [(o.state, o.action, o.next, o.reward, o.continue_prob, o.log_prob, o.duration, events) for o in outcomes],
        )
        added = connection.total_changes - before
        _count(connection, "entries", added)
        connection.executemany(
            "UPDATE outcomes SET count = CASE WHEN ? THEN count + ? ELSE max(count, ?, 1) END "
            "WHERE state=? AND action=? AND next=?",
            [(o.count > 0 and not merges, o.count, o.count, o.state, o.action, o.next) for o in outcomes],
        )
        if task is not None:
            connection.executemany(
                "INSERT OR REPLACE INTO scores SELECT id, ?, ?, ? FROM outcomes WHERE state=? AND action=? AND next=?",
                [(task, o.score, int(o.reached), o.state, o.action, o.next) for o in outcomes if o.score is not None],
            )
        return added

    def write_planned(self, rows: Iterable[tuple[bytes, int, bytes, float]]) -> None:
        """Keeps what planners expect of actions, (node, task, action, return); the largest where there are several."""
        with self.transaction() as connection:
            connection.executemany(
                "INSERT INTO worth (node, task, action, planned) VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET planned = max(coalesce(planned, excluded.planned), excluded.planned)",
                list(rows),
            )

    def mark_expanded(self, space: int, num_actions: int) -> None:
        """Notes of which states of a space every action is there."""
        with self.transaction() as connection:
            connection.execute(
                "UPDATE states SET is_expanded=1 WHERE space=? AND is_expanded=0 AND "
                "(SELECT COUNT(DISTINCT action) FROM outcomes WHERE state=states.node) >= ?",
                (space, num_actions),
            )

    def touch(self, nodes: Iterable[bytes], counts: dict[str, int]) -> None:
        """Notes which states were of use, and how often what was found where."""
        with self.transaction() as connection:
            clock = self._tick(connection)
            connection.executemany("UPDATE states SET used=? WHERE node=?", [(clock, node) for node in nodes])
            for name, value in counts.items():
                _count(connection, name, value)

    def counters(self) -> dict[str, int]:
        """`entries`, `states`, and how often a look-up was answered at which level (`hit <level>`, `miss`)."""
        return dict(self.query("SELECT name, value FROM counters"))

    @staticmethod
    def _tick(connection: sqlite3.Connection) -> int:
        _count(connection, "clock", 1)
        return connection.execute("SELECT value FROM counters WHERE name='clock'").fetchone()[0]

    # ---- leaving out

    def evict(self, spaces: Sequence[int], surplus: int) -> int:
        """Forgets entries until `surplus` fewer are there: those of the first space first, and in it those of states
        that were of no use for longest. Returns how many are gone."""
        gone = 0
        for space in spaces:
            while gone < surplus and (some := self._oldest(space, surplus - gone)):
                gone += self._forget(some)
        return gone

    def drop_spaces(self, spaces: Sequence[int]) -> int:
        """Forgets all that holds for these; returns the number of entries that are gone."""
        gone = 0
        for space in spaces:
            while some := [row[0] for row in self.query("SELECT node FROM states WHERE space=? LIMIT 500", (space,))]:
                gone += self._forget(some, whole=True)
            with self.transaction() as connection:
                connection.execute("DELETE FROM spaces WHERE id=?", (space,))
        return gone

    def _oldest(self, space: int, entries: int) -> list[bytes]:
        """The states of a space, in the order of an index, that have so many entries; 500 of them at most."""
        rows = self.query(
            "SELECT node, (SELECT COUNT(*) FROM outcomes WHERE state=s.node) AS entries FROM states s "
            "WHERE space=? AND entries > 0 ORDER BY used LIMIT 500",
            (space,),
        )
        before = itertools.accumulate((count for _, count in rows), initial=0)
        return [node for (node, _), sum_before in zip(rows, before, strict=False) if sum_before < entries]

    def _forget(self, nodes: list[bytes], whole: bool = False) -> int:
        """Forgets the entries of a few states, and the states that nothing leads to; all of these if `whole`."""
        with self.transaction() as connection:
            connection.execute("CREATE TEMP TABLE IF NOT EXISTS gone (node BLOB PRIMARY KEY) WITHOUT ROWID")
            connection.execute("DELETE FROM gone")
            connection.executemany("INSERT OR IGNORE INTO gone VALUES (?)", [(node,) for node in nodes])
            connection.execute(
                "DELETE FROM scores WHERE outcome IN (SELECT id FROM outcomes WHERE state IN (SELECT node FROM gone))"
            )
            connection.execute(
                "INSERT OR IGNORE INTO gone SELECT o.next FROM outcomes o WHERE o.state IN (SELECT node FROM gone) "
                "AND NOT EXISTS (SELECT 1 FROM outcomes WHERE state=o.next)"
            )
            entries = connection.execute("DELETE FROM outcomes WHERE state IN (SELECT node FROM gone)").rowcount
            connection.execute("UPDATE states SET is_expanded=0 WHERE node IN (SELECT node FROM gone)")
            connection.execute("DELETE FROM worth WHERE node IN (SELECT node FROM gone)")
            connection.execute("DELETE FROM best WHERE node IN (SELECT node FROM gone)")
            if not whole:  # a state that something leads to stays, without entries
                connection.execute("DELETE FROM gone WHERE EXISTS (SELECT 1 FROM outcomes o WHERE o.next=gone.node)")
            coarser = connection.execute("SELECT s.nodes FROM states s JOIN gone g ON g.node=s.node").fetchall()
            abstract = {row[first : first + DIGEST] for (row,) in coarser for first in range(0, len(row), DIGEST)}
            states = connection.execute("DELETE FROM states WHERE node IN (SELECT node FROM gone)").rowcount
            for node in abstract:
                connection.execute("DELETE FROM members WHERE node=? AND state IN (SELECT node FROM gone)", (node,))
                if not connection.execute("SELECT 1 FROM members WHERE node=? LIMIT 1", (node,)).fetchone():
                    connection.execute("DELETE FROM worth WHERE node=?", (node,))
                    connection.execute("DELETE FROM best WHERE node=?", (node,))
            _count(connection, "entries", -entries)
            _count(connection, "states", -states)
            return entries

    # ---- reading

    def entries_of(self, space: int) -> int:
        """How many outcomes a space has; they are counted one by one."""
        query = "SELECT COUNT(*) FROM outcomes o JOIN states s ON s.node=o.state WHERE s.space=?"
        return self.query(query, (space,))[0][0]

    def features(self, space: int) -> tuple[np.ndarray, list[bytes], list[bytes]]:
        """Features float32 `(n, FEATURES)` of the states of a space that have entries, their nodes and texts."""
        rows = self.query(
            "SELECT features, node, text FROM states s WHERE space=? AND features IS NOT NULL "
            "AND EXISTS (SELECT 1 FROM outcomes WHERE state=s.node) ORDER BY id",
            (space,),
        )
        matrix = np.frombuffer(b"".join(row[0] for row in rows), np.float16).reshape(len(rows), FEATURES)
        return matrix.astype(np.float32), [row[1] for row in rows], [row[2] for row in rows]


def node_at(table: str, level: int) -> str:
    """SQL for the digest at a level of a row of `states`, by the name that the table has in a query."""
    return f"{table}.node" if level == 0 else f"substr({table}.nodes, {(level - 1) * DIGEST + 1}, {DIGEST})"


def _count(connection: sqlite3.Connection, name: str, change: int) -> None:
    connection.execute(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value", (name, change)
    )
