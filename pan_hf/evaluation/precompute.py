"""`pan precompute`: fills a run's simulation cache before anybody has to decide.

Where actions are discrete and there is a goal, every action is imagined from every recorded state, then from every
state that was met so, and so on for `depth` rounds: each state once, whoever met it. Values are then backed up over
the whole graph. Elsewhere a planner plans from every recorded state, and the ways of its plans are kept. A policy goes
first: what it would visit from the recorded states, by its likeliest actions and their likeliest outcomes, is imagined
from in the same way.

A state that is done is marked in the same transaction as its outcomes, so a run that was killed goes on where it was,
and no work is done twice. What is imagined does not depend on how many workers there are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.critics import Critic, as_critic
from pan_hf.agents.policy import Policy
from pan_hf.agents.registry import make_planners
from pan_hf.agents.world import at_effort
from pan_hf.arguments import a_seed, checked, least
from pan_hf.checkpoints import find_checkpoint, find_recording, load
from pan_hf.console import Progress
from pan_hf.data.trajectories import Trajectories, load_trajectories
from pan_hf.data.windows import WindowReader
from pan_hf.evaluation.acting import recorded_facts, reward_critic
from pan_hf.evaluation.cache_dataset import cache_folder
from pan_hf.evaluation.imaginers import Imagined, Imaginer, Job, States, Work, imaginers
from pan_hf.hub import address

_SECONDS = 1.0  # that a unit of work shall take, so that a time limit is kept and progress is seen
_STATES = 32  # in a unit of work, at most
_TRANSITIONS = 1024  # imagined in one call, at most; of more actions than these a planner chooses
_BACKED_UP = 5e-5  # seconds an entry and level takes at the end, which a time limit has to hold
_PERCEIVING = 0.25  # share of the time for perceiving recorded states; others wait for a longer run
_PERCEIVED = 64  # recorded frames perceived in one call, at most


@checked(
    frames=least(1),
    depth=least(1),
    max_entries=least(1),
    workers=least(1),
    seed=a_seed,
    time_limit=least(0, above=True),
    policy_steps=least(1),
)
def precompute(
    run: str | Path,
    data_root: str | Path | None = None,
    *,
    cache: str | Path | None = None,
    frames: int = 2000,
    depth: int = 8,
    split: str = "train",
    environments: Sequence[str] | None = None,
    planner: str | None = None,
    policy: str | Path | None = None,
    policy_steps: int = 32,
    reward_threshold: float | None = None,
    critic=None,
    effort=None,
    max_entries: int = 1_000_000,
    workers: int = 1,
    ray: str | bool = False,
    seed: int = 0,
    time_limit: float | None = None,
    on_stale: str = "keep",
    output: str | Path | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Fills a simulation cache from recorded states. Run again, it goes on after an interruption.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, or a checkpoint.
        data_root (`str` or `Path`, *optional*): the recording; by default the one the checkpoint was trained on.
        cache (`str` or `Path`, *optional*): folder of the cache, `cache/` in the run by default; or the Hub id of one,
            of which the run's copy is filled.
        frames (`int`): recorded states to begin from, at most, drawn at random.
        depth (`int`): rounds: how many steps beyond the recorded states everything is imagined.
        split (`str`): "train" or "test".
        environments (`Sequence[str]`, *optional*): ids of the recording; all by default.
        planner (`str`, *optional*): plan from the recorded states with this one instead of imagining every action, as
            in "cem?horizon=8"; by default "cem" where actions are not discrete, or very many, or there is no goal.
        policy (`str` or `Path`, *optional*): a policy of `pan imagine`, its folder or Hub id, that begins in the
            recorded states too.
        policy_steps (`int`): how many steps of it are followed from each.
        reward_threshold (`float`, *optional*): expected reward that counts as the goal; by default from the recording.
        critic (*optional*): what is wanted in place of the expected reward, see `pan_hf.agents.critics`.
        effort (*optional*): what an imagined step may spend, as [`PanModel.simulate`] takes it.
        max_entries (`int`): outcomes of these weights after which it ends.
        workers (`int`): processes; each loads the model.
        ray (`str` or `bool`): the workers are those of a Ray cluster: its address, "auto" for the one that runs here,
            True for that of RAY_ADDRESS or a new one on this machine. A checkpoint in a folder has to be at the same
            place on all its machines; of one on a Hub they ask the Hub.
        seed (`int`): of the choice of states, and of planners' draws.
        time_limit (`float`, *optional*): seconds after which it ends; environments have equal parts of it.
        on_stale (`str`): what to do with entries of other weights: "keep", "drop" or "refuse".
        output (`str` or `Path`, *optional*): the run folder, where `run` is a checkpoint of elsewhere.
        progress (`bool`): show a line of progress.

    Returns:
        `dict`: `entries` and `states` in the cache, `new_entries`, `seconds`, and `answered`, the share of the
        recorded states for which an action is known now.

    Raises:
        ValueError: an argument of another type or out of range, an unknown environment or planner, a policy of
            another model, a critic that workers cannot be handed, or a cache that is damaged or of other weights.
        FileNotFoundError: no checkpoint, no recording or no policy.
        ImportError: Ray is asked for and not installed; the message says how it is.
        OSError: the disk is full, there is no such cluster, or a worker has died; what was written is kept.
    """
    start = time.perf_counter()
    deadline = math.inf if time_limit is None else start + time_limit
    checkpoint = find_checkpoint(run, adapters=True)
    root = find_recording(checkpoint, data_root)
    model, processor = load(checkpoint)
    trajectories = load_trajectories(root, split)
    facts = recorded_facts(root)
    names = sorted(set(trajectories.environments))
    if unknown := sorted(set(environments or ()) - set(names)):
        raise ValueError(f"{unknown} are not in the recording's {split} split, which has {names}; name some of those.")
    chosen = list(environments or names)
    wishes = {
        id: reward_critic(facts.get(id), reward_threshold) if critic is None else as_critic(critic) for id in chosen
    }
    has_goal = all(math.isfinite(wish.threshold) for wish in wishes.values())
    parts = ActionParts(model.config)
    tries_all = parts.is_discrete and parts.num_choices <= _TRANSITIONS and has_goal
    name = "cem" if planner is None and not tries_all else planner
    if name is not None:
        make_planners([name], model.config, critic is not None or has_goal)
    followed = None if policy is None else Policy.load(policy, model)
    folder = cache_folder(run, cache, output, at_effort(model, effort))
    before, answered, total = -1, 0, 0
    for number, id in enumerate(chosen):
        until = _share(deadline, 1 / (len(chosen) - number))
        wish = (wishes[id], effort, name, seed)
        filler = _Filler(folder, model, str(address(checkpoint) or checkpoint), *wish, max_entries, on_stale)
        before, on_stale = filler.entries if before < 0 else before, "keep"
        nodes = filler.file_recorded(trajectories, processor, id, frames, _share(until, _PERCEIVING), progress)
        try:
            with imaginers(filler.job, filler.imaginer, workers, ray) as work:
                if followed is not None:
                    line = Progress(f"{id}, along the policy", 0, "states", progress)
                    filler.fill(nodes, policy_steps, work, until, line, partial(filler.visited, followed, until))
                line = Progress(id, 0, "states", progress)
                filler.fill(nodes, depth if name is None else 1, work, until, line, filler.successors)
        finally:
            filler.back_up()
        answered, total = answered + filler.num_answered(nodes), total + len(nodes)
    counts = filler.cache.store.counters()
    filler.cache.close()
    return {
        "entries": counts.get("entries", 0),
        "states": counts.get("states", 0),
        "new_entries": counts.get("entries", 0) - before,
        "answered": answered / max(1, total),
        "seconds": time.perf_counter() - start,
    }


def _share(deadline: float, share: float) -> float:
    """The moment when a share of the time that is left is over."""
    now = time.perf_counter()
    return now + share * (deadline - now)


def recorded_states(
    world: Any, processor: Any, trajectories: Trajectories, environment: str, count: int, seed: int
) -> Iterator[tuple[WindowReader, np.ndarray]]:
    """Rows of recorded states, drawn at random, and what reads them with as many steps before them as the model sees.
    At the beginning of an episode there are fewer."""
    rows = trajectories.windows(1, environment)
    chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:count])
    offset = chosen - trajectories.episode_starts[trajectories.episode[chosen]]
    leads = np.minimum(offset, world.config.context_steps - 1)
    for lead in range(world.config.context_steps):
        yield WindowReader(trajectories, processor, world, lead + 1), chosen[leads == lead]


class _Pace:
    """How many to do in one call, so that it takes about a second."""

    def __init__(self, most: int):
        self.most, self.size = most, 1

    def note(self, count: int, seconds: float) -> None:
        """Tells what a call took."""
        self.size = min(self.most, max(1, int(count * _SECONDS / max(seconds, 1e-9))))


def _paced(items: Any, deadline: float) -> Iterator[Any]:
    """Slices of items, one after the other, each of as many as take a second, until the end or the time is over."""
    pace, first = _Pace(_PERCEIVED), 0
    while first < len(items) and time.perf_counter() < deadline:
        start, some = time.perf_counter(), items[first : first + pace.size]
        yield some
        first += len(some)
        pace.note(len(some), time.perf_counter() - start)


class _Filler:
    """Fills a cache for one wish."""

    def __init__(
        self,
        folder: Path,
        model: Any,
        checkpoint: str,
        critic: Critic,
        effort: Any,
        planner: str | None,
        seed: int,
        max_entries: int,
        on_stale: str,
    ):
        self.world = at_effort(model, effort)
        self.critic, self.max_entries, self.seed = critic, max_entries, seed
        # it ends at its bound, so what it has filled is not evicted for what it fills next
        self.cache = SimulationCache(folder, max_entries=2 * max_entries + 100_000, on_stale=on_stale)
        self.bound = self.cache.bind(self.world, critic)
        self.store = self.cache.store
        self.stale = self.entries - self.store.entries_of(self.bound.space)
        self.job = Job(checkpoint, self.bound.salt, critic, effort, planner, seed)
        self.imaginer = Imaginer(self.job, model)
        most = _TRANSITIONS // self.bound.keys.parts.num_choices if planner is None else 1
        self.pace = _Pace(min(_STATES, max(1, most)))

    @property
    def entries(self) -> int:
        return self.store.counters().get("entries", 0)

    def file_recorded(
        self,
        trajectories: Trajectories,
        processor: Any,
        environment: str,
        frames: int,
        deadline: float,
        progress: bool,
    ) -> list[bytes]:
        """Perceives recorded states and files them; returns their nodes, each once."""
        parts = list(recorded_states(self.world, processor, trajectories, environment, frames, self.seed))
        nodes: dict[bytes, None] = {}
        with Progress(
            f"perceiving {environment}", sum(len(rows) for _, rows in parts), "recorded states", progress
        ) as line:
            for reader, rows in parts:
                for some in _paced(rows, deadline):
                    recorded = self.imaginer.recorded()
                    nodes |= dict.fromkeys(recorded.file(reader.perceive(reader.batch(some, 1))))
                    self.store.write(self.bound.space, self.bound.events, recorded.states.values(), ())
                    line.update(line.done + len(some))
        return list(nodes)

    def fill(
        self,
        nodes: list[bytes],
        rounds: int,
        work: Work,
        deadline: float,
        line: Progress,
        follow: Callable[[list[bytes]], list[bytes]],
    ) -> None:
        """Does all states within some rounds of `nodes`. Args: follow, to which states those of a round lead."""
        seen, frontier = set(nodes), list(nodes)
        with line:
            for number in range(rounds):
                waiting = self._waiting(frontier)
                line.total += len(waiting)
                for done in work(self._until(waiting, deadline)):
                    self._keep(done)
                    line.update(
                        line.done + len(done.states), f"round {number + 1} of {rounds}, {self.entries} entries"
                    )
                if self._is_over(deadline):
                    line.update(line.done, "the limit is reached; run it again with a larger one to go on")
                    return
                frontier = [node for node in follow(frontier) if node not in seen]
                seen.update(frontier)
                if not frontier:
                    return

    def _keep(self, done: Imagined) -> None:
        """Writes what was imagined, and that its states are done."""
        self.pace.note(len(done.states), done.seconds)
        self.cache.write(self.world, self.critic, done.rows, expanded=[node for node, _ in done.states])

    def _is_over(self, deadline: float) -> bool:
        entries = self.entries
        backing_up = _BACKED_UP * entries * len(self.bound.keys.levels) if self.bound.backs_up else 0.0
        return time.perf_counter() + backing_up > deadline or entries - self.stale >= self.max_entries

    def _until(self, waiting: States, deadline: float) -> Iterator[States]:
        """Units of work, until all or the limit is reached."""
        first = 0
        while first < len(waiting) and not self._is_over(deadline):
            yield waiting[first : (first := first + self.pace.size)]

    def _waiting(self, nodes: Iterable[bytes]) -> States:
        """Those that are not done, by the length of their keys, in an order that is the same for everybody."""
        found = []
        for node in nodes:
            row = self.store.query("SELECT length(raw), raw, is_expanded FROM states WHERE node=?", (node,))
            if row and not row[0][2]:
                found.append((row[0][0], row[0][1], node))
        return [(node, raw) for _, raw, node in sorted(found)]

    def successors(self, nodes: list[bytes], actions: Mapping[bytes, bytes] | None = None) -> list[bytes]:
        """The states that these lead to, goals and ends aside; by one action each where `actions` names it."""
        found: dict[bytes, None] = {}
        for node in nodes:
            action = None if actions is None else actions[node]
            rows = self.store.query(
                "SELECT o.next FROM outcomes o LEFT JOIN scores c ON c.outcome=o.id AND c.task=? "
                "WHERE o.state=? AND o.action=coalesce(?, o.action) AND o.continue_prob >= 0.5 "
                "AND coalesce(c.reached, 0)=0 ORDER BY o.id",
                (self.bound.task, node, action),
            )
            found |= dict.fromkeys(row[0] for row in rows)
        return list(found)

    def visited(self, policy: Policy, deadline: float, nodes: list[bytes]) -> list[bytes]:
        """The states that a policy goes to from these. Its action is among those that were imagined from them; where a
        planner has chosen these, it is imagined now."""
        raws = [(node, self.store.query("SELECT raw FROM states WHERE node=?", (node,))[0][0]) for node in nodes]
        taken: dict[bytes, bytes] = {}
        for length in sorted({len(raw) for _, raw in raws}):
            for some in _paced([pair for pair in raws if len(pair[1]) == length], deadline):
                taken |= self._act(policy, some)
        return self.successors(list(taken), taken)

    def _act(self, policy: Policy, states: States) -> dict[bytes, bytes]:
        """What a policy does in some states, by their node."""
        is_imagined, keys = self.job.planner is None, self.bound.keys
        belief = keys.belief([raw for _, raw in states])
        actions = policy.act(belief)
        if not is_imagined:
            recorded = self.imaginer.recorded(keeps_all=True)
            recorded.simulate(belief, actions[:, None], temperature=0.0)
            self.cache.write(self.world, self.critic, recorded)
        return dict(zip([node for node, _ in states], keys.of_actions(actions), strict=True))

    def back_up(self) -> None:
        if self.bound.backs_up:
            self.cache.back_up(self.world, self.critic)

    def num_answered(self, nodes: list[bytes]) -> int:
        """For how many of these states an action is known."""
        planned = "OR w.planned IS NOT NULL" if self.bound.accepts_partial else ""
        query = f"SELECT 1 FROM worth w WHERE w.node=? AND w.task=? AND (w.reach >= ? {planned}) LIMIT 1"
        values = (self.bound.task, self.cache.least_reach)
        return sum(bool(self.store.query(query, (node, *values))) for node in nodes)
