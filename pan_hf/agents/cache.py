"""The simulation cache: what was imagined once is looked up the next time (sections 4.5 and 5.4).

    belief and action  ->  the outcomes that were met: next belief, how often, reward, continuation, log-probability

Outcomes are the model's and serve every goal. Values are a critic's and are kept by goal and critic. A look-up goes
from the exact key down: the same codes, the same coarser codes, the nearest neighbours; a miss is left to a planner,
and what the planner imagines is written back. Codes that a vocabulary gains later change none of the older keys, so a
cache outlives growth.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.cache_graph import back_up, back_up_all, backs_up
from pan_hf.agents.cache_keys import Keys
from pan_hf.agents.cache_neighbours import Neighbours
from pan_hf.agents.cache_recorder import Recorded, Rows
from pan_hf.agents.cache_scope import Scope, fingerprint, scope_of, task_of, tensors_of
from pan_hf.agents.cache_store import CacheStore
from pan_hf.agents.critics import Critic, RewardCritic, as_critic, check_scores
from pan_hf.agents.plan import Candidate, Contradicted, Plan, best_candidates, compared_keys, device_of
from pan_hf.arguments import as_type
from pan_hf.modeling.validation_pan import real, truth, whole

ON_STALE = ("refuse", "keep", "drop")
NEIGHBOURS = "neighbours"
_WRITTEN = 2000  # outcomes in one transaction, so that other writers wait for a few hundredths of a second
_TOUCHED = 256  # look-ups after which it is noted which states were of use
_CANDIDATES = 8  # neighbours that are asked, the nearest first


@dataclass(frozen=True)
class Answer:
    """What a cache knows of a belief.

    Args:
        level (`str`): where it was found, see [`SimulationCache.levels`].
        action (`bytes`): as it is stored; `plan` has it as the world takes it.
        value (`float`), reach (`float`): what the action is worth to the critic, and the chance that it leads to the
            goal.
        distance (`float`): to the neighbour, as a share of the typical distance between states; 0 at other levels.
        plan ([`Plan`]): this one action; with the state expected after it where the key is exact.
        node (`bytes`): of the state in which it was found.
    """

    level: str
    action: bytes
    value: float
    reach: float
    distance: float
    plan: Plan
    node: bytes


@dataclass
class _Bound:
    """What a cache keeps for one world and one wish."""

    keys: Keys
    space: int
    salt: bytes
    events: int
    grown: Scope | None  # what the space holds for once this world has written to it, where it is an ancestor's
    tensors: list[Tensor]
    fingerprint: int
    task: int
    critic: Critic
    accepts_partial: bool  # where no action is known to lead to a goal, that of the best planned return counts
    backs_up: bool


class SimulationCache:
    """Outcomes of actions in beliefs, and what they are worth, in a folder that any number of processes share.

    Args:
        path (`str` or `Path`): the folder; made if absent.
        max_entries (`int`): outcomes that are kept; beyond them those of other weights go first, and then those of
            states that were of no use for longest.
        radius (`float`): how near a neighbour has to be, as a share of the typical distance between cached states; 0:
            none is asked.
        least_reach (`float`): chance to reach the goal from which on an exact answer counts; at coarser levels
            `least_abstract_reach` (`float`).
        on_stale (`str`): what to do with a cache that holds nothing but entries of other weights: "refuse" it, "keep"
            them beside the new ones, or "drop" them.
        create (`bool`): make the cache if there is none.
        writes (`bool`): keep what planners imagine, and count look-ups; off, entries stay as they were filled.
        scope (`str`, *optional*): names a world without weights; it has to change whenever the world does.
        task (`str`, *optional*): names what is wanted, for critics that cannot be told apart by their fields.

    Raises:
        ValueError: a setting out of range, or a file that is damaged or no cache.
        FileNotFoundError: there is no cache, and `create` is off.
        OSError: the disk is full or the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        max_entries: int = 1_000_000,
        radius: float = 0.1,
        least_reach: float = 0.5,
        least_abstract_reach: float = 0.9,
        on_stale: str = "refuse",
        create: bool = True,
        writes: bool = True,
        scope: str | None = None,
        task: str | None = None,
    ):
        if on_stale not in ON_STALE:
            raise ValueError(f"`on_stale` must be one of {ON_STALE}, got {on_stale!r}.")
        for name, text in {"scope": scope, "task": task}.items():
            if text is not None and (not isinstance(text, str) or not text):
                raise ValueError(f"`{name}` must be a name or None, got {text!r}.")
        self.max_entries = whole("max_entries", max_entries, 1)
        self.radius = real("radius", radius, 0)
        self.least_reach = real("least_reach", least_reach, 0, 1)
        self.least_abstract_reach = real("least_abstract_reach", least_abstract_reach, 0, 1)
        self.writes = truth("writes", writes)
        self.on_stale, self.scope, self.task_name = on_stale, scope, task
        self.store = CacheStore(as_type("path", path, str | os.PathLike), truth("create", create))
        self._bound: _Bound | None = None
        self._asked: tuple[Any, Any] = (None, None)
        self._neighbours: tuple[int, Neighbours] | None = None
        self._touched: list[bytes] = []
        self._counts: Counter[str] = Counter()
        self._noting: threading.Thread | None = None

    def __repr__(self) -> str:
        counts = self.store.counters()
        return (
            f"SimulationCache({self.store.path.parent}: {counts.get('entries', 0)} entries of "
            f"{counts.get('states', 0)} states)"
        )

    @property
    def levels(self) -> list[tuple[str, str]]:
        """The levels of the world that was looked up last, finest first: name, and what it leaves out."""
        if self._bound is None:
            return []
        named = [(level.name, level.leaves_out) for level in self._bound.keys.levels]
        return [*named, (NEIGHBOURS, "that the two states differ")]

    @property
    def bound(self) -> _Bound | None:
        """What is kept for the world and the critic that were asked about last."""
        return self._bound

    @property
    def any_critic(self) -> Critic:
        """What was wanted last; a reward where nothing was."""
        return RewardCritic() if self._bound is None else self._bound.critic

    def close(self) -> None:
        """Writes down what was of use, and closes the file."""
        self._wait_for_notes()
        self._note_use()
        self._wait_for_notes()
        self.store.close()

    def _wait_for_notes(self) -> None:
        if self._noting is not None:
            self._noting.join()

    # ---- whose entries

    def bind(self, world: Any, critic: Any) -> _Bound:
        """Finds the entries that hold for a world as it is now, and the values of what is wanted. It is called by
        everything below, and takes microseconds while neither has changed.

        Raises:
            ValueError: the cache holds entries of other weights, or of a vocabulary that has grown beyond this one's
                (with `on_stale="refuse"`); or a world or critic that nothing tells from others.
        """
        bound, asked = self._bound, self._asked
        if bound is not None and asked[0] is world and asked[1] is critic:
            if fingerprint(bound.tensors) == bound.fingerprint:
                return bound
        wanted = as_critic(critic)
        about = repr(wanted)[:2000] if self.task_name is None else self.task_name
        digest = task_of(wanted, self.task_name)
        space, salt, scope, grown = self._space(world)
        keys = Keys(world, salt)
        self._bound = _Bound(
            keys=keys,
            space=space,
            salt=salt,
            events=scope.events,
            grown=scope if grown else None,
            tensors=(tensors := tensors_of(world)),
            fingerprint=fingerprint(tensors),
            task=self.store.task(digest, about),
            critic=wanted,
            accepts_partial=not keys.parts.is_discrete or not math.isfinite(wanted.threshold),
            backs_up=backs_up(wanted),
        )
        if bound is None or bound.space != space:
            self._neighbours = None
        self._asked = (world, critic)
        return self._bound

    def _space(self, world: Any) -> tuple[int, bytes, Scope, bool]:
        """Number and salt of the space that holds for a world, the world's scope, and whether it has grown since."""
        scope, spaces = scope_of(world, self.scope), self.store.spaces()
        for number, salt, other in spaces:
            if other.digest == scope.digest:
                return number, salt, scope, False
        if self.scope is None:
            for number, salt, other in spaces:  # over the same rows the digest is another: a stale one
                if other.rows != scope.rows and other.holds_for(world):  # an ancestor's, whose rows are as they were
                    return number, salt, scope, True
        if spaces and self.on_stale == "refuse":
            raise ValueError(self._stale_message(world, [each for _, _, each in spaces], scope.ledger))
        if spaces and self.on_stale == "drop":
            self.store.drop_spaces([number for number, _, _ in spaces])
        number, salt = self.store.add_space(scope)
        return number, salt, scope, False

    def _stale_message(self, world: Any, others: list[Any], ledger: str) -> str:
        model_events = getattr(getattr(world, "processor", None), "vocabulary", None)
        has_grown = any(
            other.ledger and model_events is not None and other.events > len(model_events.events) for other in others
        )
        what = "a vocabulary that has grown beyond this model's" if has_grown else "a model with other weights"
        return (
            f"The cache at {self.store.path.parent} holds entries of {what} (its ledger: {others[0].ledger or 'none'},"
            f" this model's: {ledger or 'none'}), so none of them holds. Load the model that it was filled with, use "
            'another folder, or give `on_stale="keep"` to begin beside them or "drop" to forget them.'
        )

    # ---- looking up

    @torch.no_grad()
    def lookup(
        self,
        world: Any,
        belief: Any,
        critic: Any,
        *,
        mask: Mapping[str, Tensor] | None = None,
        refuted: Contradicted | None = None,
        key_levels: int | None = None,
        counts: bool = True,
    ) -> Answer | None:
        """What to do in a belief, from the finest level that knows.

        Args:
            world ([`World`]): whose outcomes they are.
            belief: one row.
            critic ([`Critic`] or function of futures): what is wanted.
            mask (*optional*): which choices are allowed now, by part, as [`ActionParts.check_masks`] gives them.
            refuted ([`Contradicted`], *optional*): what the real world has shown to be wrong.
            key_levels (`int`, *optional*): levels by which the agent compares states, see [`GraphSearch`]; all by
                default.
            counts (`bool`): whether it is counted as a hit or a miss, and its state as used.

        Returns:
            [`Answer`], or None for a miss: nothing that is known leads to the goal, or has a plan behind it.

        Raises:
            ValueError: as `bind`.
        """
        bound = self.bind(world, critic)
        compared_by, nodes = compared_keys(world, key_levels), bound.keys.nodes(belief)
        level, exact = next(nodes)
        answer = self._answer(bound, level.name, exact, self.least_reach)
        if answer is not None:
            answer = self._with_next_state(bound, exact, answer, compared_by)
        coarser = (self._answer(bound, level.name, node, self.least_abstract_reach) for level, node in nodes)
        answer = answer or next(filter(None, coarser), None) or self._from_neighbours(bound, belief)
        if answer is not None and not _is_allowed(bound, answer, mask, refuted, lambda: belief.keys(**compared_by)[0]):
            answer = None  # the values of all else count on it: a planner has to find the way round
        if not counts:
            return answer
        self._counts["miss" if answer is None else f"hit {answer.level}"] += 1
        self._touched.append(exact)
        if len(self._touched) >= _TOUCHED:
            self._note_use()
        return answer

    def _note_use(self) -> None:
        """Writes down which states were of use, in a thread: no look-up waits for the disk or for another writer."""
        if self._noting is not None and self._noting.is_alive():
            return  # there will be more to write with the next look-up
        if self.writes and (self._touched or self._counts):
            self._noting = threading.Thread(target=self._write_use, args=(set(self._touched), self._counts))
            self._noting.start()
        self._touched, self._counts = [], Counter()

    def _write_use(self, nodes: set[bytes], counts: Counter[str]) -> None:
        try:
            self.store.touch(nodes, counts)
        except (OSError, ValueError) as error:
            warnings.warn(f"What was looked up was not counted: {error}", stacklevel=2)
        finally:
            self.store.close()  # this thread's connection

    def _answer(
        self, bound: _Bound, level: str, node: bytes, least_reach: float, distance: float = 0.0
    ) -> Answer | None:
        best = self.best_rows(bound, node, least_reach)
        if not best:
            return None
        action, value, reach, planned = best[0]
        try:
            actions = bound.keys.action(action)
        except ValueError:  # one that the model has, and this world does without, see `FewerActions`
            return None
        plan = Plan(
            actions=actions,
            expected_return=float(planned if value is None else value),
            states=None,
            parts=bound.keys.parts,
        )
        return Answer(level, action, plan.expected_return, float(reach or 0.0), distance, plan, node)

    def candidates(self, world: Any, critic: Any, answer: Answer) -> tuple[Candidate, ...]:
        """The actions of which something is known in the state of an answer, the best first. Where no chance to reach
        the goal is known, an action is worth what the plan that began with it was expected to bring."""
        bound = self.bind(world, critic)
        found: list[Candidate] = []
        rows = self.store.query(
            "SELECT action, value, reach, planned FROM worth WHERE node=? AND task=?", (answer.node, bound.task)
        )
        for action, value, reach, planned in rows:
            worth = planned if value is None or (planned is not None and not reach) else value
            with suppress(ValueError):  # one that the model has, and this world does without, see `FewerActions`
                found.append(Candidate(bound.keys.actions([action]), worth, reaches_goal=(reach or 0) >= 0.5))
        return best_candidates(found)

    def best_rows(self, bound: _Bound, node: bytes, least_reach: float, tolerance: float = 0.0) -> list[tuple]:
        """Of the actions of a state, those that are worth most: action, value, reach and a planner's return each, the
        best first. None where too little is known. Args: tolerance, how much less one may be worth, as a share."""
        rows = self.store.query(
            "SELECT action, value, reach, planned FROM worth WHERE node=? AND task=?", (node, bound.task)
        )
        reaching = [row for row in rows if row[2] is not None and row[2] >= least_reach and row[2] > 0]
        planned = [row for row in rows if row[3] is not None] if bound.accepts_partial else []
        if math.isfinite(bound.critic.threshold) and reaching:
            ranked = sorted(reaching, key=lambda row: (row[1], row[2]), reverse=True)
            return [row for row in ranked if row[1] >= ranked[0][1] - tolerance * abs(ranked[0][1])]
        ranked = sorted(planned, key=lambda row: row[3], reverse=True)
        return [row for row in ranked if row[3] >= ranked[0][3] - tolerance * abs(ranked[0][3])]

    def _with_next_state(self, bound: _Bound, node: bytes, answer: Answer, compared_by: Mapping[str, int]) -> Answer:
        """An exact answer with the state that was met most often after its action, as an agent compares states."""
        rows = self.store.query(
            "SELECT n.raw, n.present, c.reached FROM outcomes o JOIN states n ON n.node=o.next "
            "LEFT JOIN scores c ON c.outcome=o.id AND c.task=? WHERE o.state=? AND o.action=? "
            "ORDER BY o.count DESC, o.id LIMIT 1",
            (bound.task, node, answer.action),
        )
        if not rows:
            return answer
        raw, present, reached = rows[0]
        coarse = "levels" in compared_by
        key = bound.keys.belief([raw]).keys(**compared_by)[0] if coarse else raw[:present]
        return replace(answer, plan=replace(answer.plan, states=[key], reaches_goal=bool(reached)))

    def _from_neighbours(self, bound: _Bound, belief: Any) -> Answer | None:
        features = bound.keys.features_of(belief) if self.radius > 0 else None
        if features is None:
            return None
        for node, distance in self._index(bound).nearest(bound.keys.texts(belief)[0], features[0], _CANDIDATES):
            if distance > self.radius:
                return None
            answer = self._answer(bound, NEIGHBOURS, node, self.least_abstract_reach, distance)
            if answer is not None:
                return answer
        return None

    def _index(self, bound: _Bound) -> Neighbours:
        """The neighbours; read again when there are a tenth more entries."""
        count = self.store.counters().get("entries", 0)
        if self._neighbours is None or count > 1.1 * self._neighbours[0] or count < 0.9 * self._neighbours[0]:
            self._neighbours = count, Neighbours(self.store, bound.space)
        return self._neighbours[1]

    # ---- filling

    @contextmanager
    def recording(self, world: Any, critic: Any) -> Iterator[Recorded]:
        """A world to plan in, see [`~pan_hf.agents.cache_recorder.Recorded`]: what is imagined there is written when
        the block ends well, and values are backed up from it."""
        bound = self.bind(world, critic)
        recorded = Recorded(world, bound.keys, bound.critic, keeps=self.writes)
        yield recorded
        if not self.writes:
            return
        self.write(world, critic, recorded)
        if bound.backs_up and math.isfinite(bound.critic.threshold):
            for level in range(len(bound.keys.levels)):
                nodes = {recorded.states[outcome.state].nodes[level] for outcome in recorded.outcomes.values()}
                back_up(self.store, bound.task, bound.critic, level, nodes)

    def write(
        self,
        world: Any,
        critic: Any,
        recorded: Rows,
        expanded: Sequence[bytes] = (),
        merges: bool = False,
    ) -> int:
        """Writes what was imagined. Returns how many entries are new. Args: expanded, nodes that are done, which is
        noted last; merges, it comes from another cache, see [`CacheStore.write`]."""
        bound, added = self.bind(world, critic), 0
        if bound.grown is not None:
            self.store.move_space(bound.space, bound.grown)
            bound.grown = None
        if recorded.planned:
            self.store.write_planned((node, bound.task, action, value) for node, action, value in recorded.planned)
        outcomes = list(recorded.outcomes.values())
        for first in range(0, max(1, len(outcomes)), _WRITTEN):
            some = outcomes[first : first + _WRITTEN]
            needed = {node for outcome in some for node in (outcome.state, outcome.next)}
            states = [recorded.states[node] for node in needed]
            done = expanded if first + _WRITTEN >= len(outcomes) else ()
            added += self.store.write(bound.space, bound.events, states, some, bound.task, done, merges)
        self._bound_size(bound)
        return added

    def _bound_size(self, bound: _Bound) -> None:
        surplus = self.store.counters().get("entries", 0) - self.max_entries
        if surplus > 0:  # a tenth more, so that not every write has to
            others = [number for number, _, _ in self.store.spaces() if number != bound.space]
            self.store.evict([*others, bound.space], surplus + self.max_entries // 10)

    def is_valued(self, world: Any, critic: Any) -> bool:
        """Whether values are backed up for a goal, or can never be."""
        bound = self.bind(world, critic)
        known = "SELECT 1 FROM worth WHERE task=? AND value IS NOT NULL LIMIT 1"
        return not bound.backs_up or bool(self.store.query(known, (bound.task,)))

    def back_up(self, world: Any, critic: Any) -> int:
        """Backs up the values of everything that is there, for a goal that may be new: outcomes that its critic has
        not seen are scored first, from what is stored. Returns the number of values.

        Raises:
            ValueError: the critic's `value` needs more than scores; or scores that are not numbers.
        """
        bound = self.bind(world, critic)
        if not bound.backs_up:
            raise ValueError(f"{type(bound.critic).__name__}.value needs more than scores, so nothing is backed up.")
        self._score_missing(world, bound)
        levels = range(len(bound.keys.levels))
        return sum(back_up_all(self.store, bound.space, bound.task, bound.critic, level) for level in levels)

    @torch.no_grad()
    def _score_missing(self, world: Any, bound: _Bound) -> None:
        while rows := self.store.query(
            "SELECT o.id, n.raw, o.reward, o.continue_prob, o.duration FROM outcomes o JOIN states n ON n.node=o.next "
            "JOIN states s ON s.node=o.state LEFT JOIN scores c ON c.outcome=o.id AND c.task=? "
            "WHERE s.space=? AND c.outcome IS NULL LIMIT 4096",
            (bound.task, bound.space),
        ):
            scored: list[tuple] = []
            for size in {len(row[1]) for row in rows}:
                same = [row for row in rows if len(row[1]) == size]
                futures = _stored_futures(world, bound.keys, same)
                scores = check_scores(bound.critic.score(futures), futures)
                reached = bound.critic.reached(futures, scores)
                columns = (scores[:, 0].tolist(), reached[:, 0].tolist())
                scored += [
                    (row[0], bound.task, *each) for row, each in zip(same, zip(*columns, strict=True), strict=True)
                ]
            with self.store.transaction() as connection:
                connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", scored)


def _is_allowed(
    bound: _Bound, answer: Answer, mask: Any, refuted: Contradicted | None, key: Callable[[], bytes]
) -> bool:
    """Whether an action may be taken now, and is not refuted in the state of a key, which is asked for if need be."""
    parts, actions = bound.keys.parts, answer.plan.actions
    if mask and not bool(parts.allows(mask, actions)[0]):
        return False
    wrong = set() if refuted is None else {*refuted.transitions, *refuted.goals}
    return not wrong or not parts.is_discrete or (key(), int(parts.numbers(actions)[0])) not in wrong


def _stored_futures(world: Any, keys: Keys, rows: list[tuple]) -> Any:
    """Futures of one step, as far as they are stored: states, rewards, continuation, duration."""
    rewards = [
        row[2] if not isinstance(row[2], bytes) else torch.frombuffer(bytearray(row[2]), dtype=torch.float32).tolist()
        for row in rows
    ]
    device = device_of(world)
    told = {
        "reward": torch.tensor(rewards, device=device)[:, None],
        "continue_prob": torch.tensor([row[3] for row in rows], device=device)[:, None],
        "duration": torch.tensor([row[4] for row in rows], device=device)[:, None],
    }
    if not hasattr(world, "embed_state"):
        return SimpleNamespace(**told)
    belief = keys.belief([row[1] for row in rows])
    state = belief.state.map(lambda tensor: tensor[:, None])

    def decode(sense: str, *args: Any, **kwargs: Any) -> Tensor:
        return world.decode(state, sense, *args, **kwargs)

    return SimpleNamespace(**told, belief=belief, state=state, codes=state.codes, decode=decode)
