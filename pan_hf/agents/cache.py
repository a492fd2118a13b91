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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.cache_graph import back_up, back_up_all, backs_up
from pan_hf.agents.cache_keys import Filed, Keys
from pan_hf.agents.cache_neighbours import Neighbours
from pan_hf.agents.cache_scope import Scope, fingerprint, scope_of, task_of, tensors_of
from pan_hf.agents.cache_store import CacheStore, OutcomeRow, StateRow
from pan_hf.agents.critics import Critic, RewardCritic, as_critic, check_scores
from pan_hf.agents.plan import Contradicted, Plan, compared_keys
from pan_hf.arguments import as_type
from pan_hf.modeling.state_pan import Actions
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
    """

    level: str
    action: bytes
    value: float
    reach: float
    distance: float
    plan: Plan


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
    parts: ActionParts
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
        self._note_use()
        self.store.close()

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
        parts = ActionParts(world.config)
        space, salt, scope, grown = self._space(world)
        self._bound = _Bound(
            keys=Keys(world, salt),
            space=space,
            salt=salt,
            events=scope.events,
            grown=scope if grown else None,
            tensors=(tensors := tensors_of(world)),
            fingerprint=fingerprint(tensors),
            task=self.store.task(digest, about),
            critic=wanted,
            parts=parts,
            accepts_partial=not parts.is_discrete or not math.isfinite(wanted.threshold),
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
            for number, salt, other in spaces:
                if other.holds_for(world):  # an ancestor's, whose rows are as they were
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
        counts: bool = True,
    ) -> Answer | None:
        """What to do in a belief, from the finest level that knows.

        Args:
            world ([`World`]): whose outcomes they are.
            belief: one row.
            critic ([`Critic`] or function of futures): what is wanted.
            mask (*optional*): which choices are allowed now, by part, as [`ActionParts.check_masks`] gives them.
            refuted ([`Contradicted`], *optional*): what the real world has shown to be wrong.
            counts (`bool`): whether it is counted as a hit or a miss, and its state as used.

        Returns:
            [`Answer`], or None for a miss: nothing that is known leads to the goal, or has a plan behind it.

        Raises:
            ValueError: as `bind`.
        """
        bound = self.bind(world, critic)
        filed = bound.keys.of_belief(belief, with_features=False)
        answer = None
        for number, (level, nodes) in enumerate(zip(bound.keys.levels, filed.nodes, strict=True)):
            least = self.least_reach if number == 0 else self.least_abstract_reach
            answer = self._answer(bound, level.name, nodes[0], least)
            if answer is not None:
                break
        if answer is None and self.radius > 0:
            answer = self._from_neighbours(bound, belief, filed)
        if answer is not None and not self._is_allowed(bound, world, belief, answer, mask, refuted):
            answer = None  # the values of all else count on it: a planner has to find the way round
        if not counts:
            return answer
        self._counts["miss" if answer is None else f"hit {answer.level}"] += 1
        self._touched.append(filed.nodes[0][0])
        if len(self._touched) >= _TOUCHED:
            self._note_use()
        return answer

    def _note_use(self) -> None:
        if self.writes and (self._touched or self._counts):
            self.store.touch(set(self._touched), self._counts)
        self._touched, self._counts = [], Counter()

    @staticmethod
    def _is_allowed(
        bound: _Bound, world: Any, belief: Any, answer: Answer, mask: Any, refuted: Contradicted | None
    ) -> bool:
        """Whether an action may be taken now, and is not refuted."""
        if mask and not bool(bound.parts.allows(mask, answer.plan.actions)[0]):
            return False
        wrong = set() if refuted is None else {*refuted.transitions, *refuted.goals}
        if not wrong or not bound.parts.is_discrete:
            return True
        key = belief.keys(**compared_keys(world, None))[0]
        return (key, int(bound.parts.numbers(answer.plan.actions)[0])) not in wrong

    def _answer(
        self, bound: _Bound, level: str, node: bytes, least_reach: float, distance: float = 0.0
    ) -> Answer | None:
        rows = self.store.query(
            "SELECT action, value, reach, planned FROM worth WHERE node=? AND task=?", (node, bound.task)
        )
        reaching = [row for row in rows if row[2] is not None and row[2] >= least_reach and row[2] > 0]
        planned = [row for row in rows if row[3] is not None] if bound.accepts_partial else []
        if math.isfinite(bound.critic.threshold) and reaching:
            action, value, reach, _ = max(reaching, key=lambda row: (row[1], row[2]))
        elif planned:
            action, value, reach, _ = max(planned, key=lambda row: row[3])
        else:
            return None
        state, reaches_goal = None, False
        if level == "exact":
            state, reaches_goal = self._likeliest(bound, node, action)
        plan = Plan(
            actions=bound.keys.actions([action]),
            expected_return=float(value if value is not None else max(row[3] for row in planned)),
            states=None if state is None else [state],
            num_simulated=0,
            seconds=0.0,
            reaches_goal=reaches_goal,
            parts=bound.parts,
        )
        return Answer(level, action, plan.expected_return, float(reach or 0.0), distance, plan)

    def _likeliest(self, bound: _Bound, node: bytes, action: bytes) -> tuple[bytes | None, bool]:
        """The present key of the state that was met most often, and whether the goal was reached there."""
        rows = self.store.query(
            "SELECT substr(n.raw, 1, n.present), c.reached FROM outcomes o JOIN states n ON n.node=o.next "
            "LEFT JOIN scores c ON c.outcome=o.id AND c.task=? WHERE o.state=? AND o.action=? "
            "ORDER BY o.count DESC, o.id LIMIT 1",
            (bound.task, node, action),
        )
        return (rows[0][0], bool(rows[0][1])) if rows else (None, False)

    def _from_neighbours(self, bound: _Bound, belief: Any, filed: Filed) -> Answer | None:
        features = bound.keys.features_of(belief)
        if features is None:
            return None
        for node, distance in self._index(bound).nearest(filed.text[0], features[0], _CANDIDATES):
            if distance > self.radius:
                return None
            answer = self._answer(bound, NEIGHBOURS, node, self.least_abstract_reach, distance)
            if answer is not None:
                return answer
        return None

    def _index(self, bound: _Bound) -> Neighbours:
        """The neighbours; read again when there are a tenth more entries."""
        entries = self.store.query("SELECT value FROM counters WHERE name='entries'")
        count = entries[0][0] if entries else 0
        if self._neighbours is None or count > 1.1 * self._neighbours[0] or count < 0.9 * self._neighbours[0]:
            self._neighbours = count, Neighbours(self.store, bound.space)
        return self._neighbours[1]

    # ---- filling

    @contextmanager
    def recording(self, world: Any, critic: Any) -> Iterator[Recorded]:
        """A world to plan in: what is imagined there is written when the block ends well.

        Every outcome of discrete actions is kept. Of others, which never repeat, hand the plan to
        [`Recorded.keep_plan`]."""
        recorded = Recorded(world, self.bind(world, critic))
        recorded.keeps_nothing = not self.writes
        yield recorded
        if self.writes:
            self.write(world, critic, recorded)

    def write(
        self,
        world: Any,
        critic: Any,
        recorded: Recorded,
        expanded: Sequence[bytes] = (),
        events: int | None = None,
    ) -> int:
        """Writes what was imagined, and backs values up. Returns how many entries are new. Args: expanded, nodes of
        which every action is there now; events, of the ledger of the other cache that it comes from."""
        bound, added = self.bind(world, critic), 0
        if bound.grown is not None:
            self.store.move_space(bound.space, bound.grown)
            bound.grown = None
        outcomes = list(recorded.outcomes.values())
        for first in range(0, max(1, len(outcomes)), _WRITTEN):
            some = outcomes[first : first + _WRITTEN]
            needed = {node for outcome in some for node in (outcome.state, outcome.next)}
            states = [recorded.states[node] for node in needed]
            done = expanded if first + _WRITTEN >= len(outcomes) else ()
            made = bound.events if events is None else events
            merges = events is not None
            added += self.store.write(bound.space, made, states, some, bound.task, done, merges)
        if recorded.planned:
            self.store.write_planned((node, bound.task, action, value) for node, action, value in recorded.planned)
        if bound.backs_up and recorded.backs_up and math.isfinite(bound.critic.threshold):
            for level in range(len(bound.keys.levels)):
                nodes = {recorded.states[outcome.state].nodes[level] for outcome in outcomes}
                back_up(self.store, bound.task, bound.critic, level, nodes)
        self._bound_size(bound)
        return added

    def _bound_size(self, bound: _Bound) -> None:
        surplus = self.store.counters().get("entries", 0) - self.max_entries
        if surplus > 0:  # a tenth more, so that not every write has to
            others = [number for number, _, _ in self.store.spaces() if number != bound.space]
            self.store.evict(others, surplus + self.max_entries // 10)

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


class Recorded:
    """A world that passes every question on, and remembers the outcomes that it imagined.

    Args:
        world, bound: what they are kept for.
        keeps_all (`bool`, *optional*): keep every outcome; by default where actions are discrete.
    """

    def __init__(self, world: Any, bound: _Bound, keeps_all: bool | None = None):
        self._model, self._bound, self.keys = world, bound, bound.keys
        self.keeps_all = bound.parts.is_discrete if keeps_all is None else keeps_all
        self.backs_up, self.keeps_nothing = True, False
        self.states: dict[bytes, StateRow] = {}
        self.outcomes: dict[tuple[bytes, bytes, bytes], OutcomeRow] = {}
        self.planned: list[tuple[bytes, bytes, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @torch.no_grad()
    def simulate(self, belief: Any, actions: Tensor | Actions, *args: Any, **kwargs: Any) -> Any:
        """`simulate` of the world."""
        futures = self._model.simulate(belief, actions, *args, **kwargs)
        if self.keeps_all and not self.keeps_nothing:
            rollouts = kwargs.get("num_rollouts", args[0] if args else 1)
            temperature = kwargs.get("temperature", args[1] if len(args) > 1 else 1.0)
            self._keep(belief, actions, futures, rollouts, drawn=temperature > 0)
        return futures

    def _keep(self, belief: Any, actions: Tensor | Actions, futures: Any, rollouts: int, drawn: bool) -> None:
        """Every transition of futures, up to where the episode has ended."""
        bound, keys = self._bound, self._bound.keys
        before, after = keys.of_belief(belief), keys.of_futures(futures)
        steps = actions.shape[1]
        flat = actions.flatten(0, 1)
        stored = keys.of_actions(flat)
        scores = check_scores(bound.critic.score(futures), futures)
        columns = [scores, bound.critic.reached(futures, scores), futures.continue_prob, _log_prob(futures)]
        score, reached, alive, log_prob = (column.flatten().tolist() for column in columns)
        rewards, durations = _rewards(futures), _durations(futures)
        for row in range(len(belief) * rollouts):
            state, at = before, row // rollouts
            for step in range(steps):
                place = row * steps + step
                start = self._file(state, at)
                end = self._file(after, place)
                action = stored[row // rollouts * steps + step]
                outcome = OutcomeRow(
                    start, action, end, int(drawn), rewards[place], alive[place], log_prob[place], durations[place],
                    score[place], bool(reached[place]),
                )  # fmt: skip
                known = self.outcomes.get((start, action, end))
                count = outcome.count + (0 if known is None else known.count)
                self.outcomes[start, action, end] = replace(outcome, count=count)
                if alive[place] < 0.5:
                    break
                state, at = after, place

    def _file(self, filed: Filed, row: int) -> bytes:
        node = filed.nodes[0][row]
        if node not in self.states:
            features = None if filed.features is None else filed.features[row].tobytes()
            nodes = [level[row] for level in filed.nodes]
            self.states[node] = StateRow(nodes, filed.raw[row], filed.present, filed.text[row], features)
        return node

    def file(self, belief: Any) -> list[bytes]:
        """Keeps the rows of a belief, without outcomes; returns their nodes."""
        filed = self._bound.keys.of_belief(belief)
        return [self._file(filed, row) for row in range(len(filed))]

    @torch.no_grad()
    def keep_plan(self, belief: Any, plan: Plan) -> None:
        """Keeps what a planner expects of its plan. Where not everything was recorded, the plan is imagined once more,
        and what is met on its way is kept."""
        if self.keeps_nothing:
            return
        keys, stored = self._bound.keys, self._bound.keys.of_actions(plan.actions)
        start = keys.of_belief(belief, with_features=False)
        self.planned += [(level[0], stored[0], plan.expected_return) for level in start.nodes]
        if self.keeps_all:
            return
        actions = (
            plan.actions.map(lambda part: part[None]) if isinstance(plan.actions, Actions) else plan.actions[None]
        )
        device = getattr(self._model, "device", torch.device("cpu"))
        futures = self._model.simulate(belief, actions.to(device), temperature=0.0)
        self._keep(belief, actions, futures, 1, drawn=False)
        after = keys.of_futures(futures, with_features=False)
        for step, worth in enumerate(_values_to_go(self._bound.critic, futures)):
            self.planned += [(level[step], stored[step + 1], worth) for level in after.nodes]


def _values_to_go(critic: Critic, futures: Any) -> list[float]:
    """What the rest of one imagined plan is worth from each state on its way, as far as scores tell."""
    scores, values = check_scores(critic.score(futures), futures), []
    for step in range(1, scores.shape[1]):
        elapsed = torch.arange(scores.shape[1] - step)
        rest = SimpleNamespace(continue_prob=futures.continue_prob[:, step:], elapsed=elapsed)
        try:
            values.append(float(critic.value(rest, scores[:, step:])[0]))
        except AttributeError:  # it needs the whole future
            break
    return values


def _log_prob(futures: Any) -> Tensor:
    found = getattr(futures, "log_prob", None)
    return torch.zeros_like(futures.continue_prob) if found is None else found


def _rewards(futures: Any) -> list[float | bytes]:
    """By future and step, a number or the bytes of several actors' numbers."""
    reward = futures.reward.float().cpu()
    if reward.dim() == 2:
        return reward.flatten().tolist()
    return [row.tobytes() for row in reward.flatten(0, 1).numpy()]


def _durations(futures: Any) -> list[int]:
    found = getattr(futures, "duration", None)
    return [1] * futures.continue_prob.numel() if found is None else found.flatten().tolist()


def _stored_futures(world: Any, keys: Keys, rows: list[tuple]) -> Any:
    """Futures of one step, as far as they are stored: states, rewards, continuation, duration."""
    rewards = [
        row[2] if not isinstance(row[2], bytes) else torch.frombuffer(bytearray(row[2]), dtype=torch.float32).tolist()
        for row in rows
    ]
    device = getattr(world, "device", torch.device("cpu"))
    told = {
        "reward": torch.tensor(rewards, device=device)[:, None],
        "continue_prob": torch.tensor([row[3] for row in rows], device=device)[:, None],
        "duration": torch.tensor([row[4] for row in rows], device=device)[:, None],
    }
    if not hasattr(world, "embed_state"):
        return SimpleNamespace(**told)
    belief = keys.belief([row[1] for row in rows], fills=False)
    state = belief.state.map(lambda tensor: tensor[:, None])

    def decode(sense: str, *args: Any, **kwargs: Any) -> Tensor:
        return world.decode(state, sense, *args, **kwargs)

    return SimpleNamespace(**told, belief=belief, state=state, codes=state.codes, decode=decode)
