"""`pan precompute`: fills a run's simulation cache before anybody has to decide.

Where actions are discrete and there is a goal, every action is imagined from every recorded state, then from every
state that was met so, and so on for `depth` rounds: each state once, whoever met it. Values are then backed up over
the whole graph. Elsewhere a planner plans from every recorded state, and the ways of its plans are kept.

A state that is done is marked in the same transaction as its outcomes, so a run that was killed goes on where it was,
and several workers do no work twice. What is imagined does not depend on how many there are.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pan_hf.agents.actions import MASK, ActionParts
from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.cache_recorder import Recorded
from pan_hf.agents.critics import Critic, as_critic
from pan_hf.agents.registry import make_planners
from pan_hf.agents.world import FixedEffort
from pan_hf.arguments import checked, least
from pan_hf.checkpoints import find_checkpoint, find_recording, load, results_folder
from pan_hf.console import Progress
from pan_hf.data.trajectories import Trajectories, load_trajectories
from pan_hf.data.windows import WindowReader
from pan_hf.evaluation.control import recorded_facts, reward_critic
from pan_hf.processes import end_with_parent

CACHE = "cache"  # the folder of it in a run
_BATCH = 32  # states whose actions are imagined in one call, at most
_TRANSITIONS = 1024  # imagined in one call, unless those of one state are more
_PERCEIVED = 64  # recorded frames perceived in one call


@dataclass
class _Job:
    """What a worker has to know.

    Args:
        checkpoint, folder: of the model and of the cache.
        critic: what is wanted; effort: of each imagined step; planner: its text, None to imagine every action.
    """

    checkpoint: Path
    folder: Path
    critic: Critic
    effort: Any
    planner: str | None
    max_entries: int
    seed: int


@checked(
    frames=least(1),
    depth=least(1),
    max_entries=least(1),
    workers=least(1),
    seed=least(0),
    time_limit=least(0, above=True),
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
    reward_threshold: float | None = None,
    critic=None,
    effort=None,
    max_entries: int = 1_000_000,
    workers: int = 1,
    seed: int = 0,
    time_limit: float | None = None,
    on_stale: str = "keep",
    progress: bool = True,
) -> dict[str, float]:
    """Fills a simulation cache from recorded states. Run again, it goes on after an interruption.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, or a checkpoint.
        data_root (`str` or `Path`, *optional*): the recording; by default the one the checkpoint was trained on.
        cache (`str` or `Path`, *optional*): folder of the cache; `cache/` in the run by default.
        frames (`int`): recorded states to begin from, at most, drawn at random.
        depth (`int`): rounds: how many steps beyond the recorded states everything is imagined.
        split (`str`): "train" or "test".
        environments (`Sequence[str]`, *optional*): ids of the recording; all by default.
        planner (`str`, *optional*): plan from the recorded states with this one instead of imagining every action, as
            in "cem?horizon=8"; by default "cem" where actions are not discrete or there is no goal.
        reward_threshold (`float`, *optional*): expected reward that counts as the goal; by default from the recording.
        critic (*optional*): what is wanted in place of the expected reward, see `pan_hf.agents.critics`.
        effort (*optional*): what an imagined step may spend, as [`PanModel.simulate`] takes it.
        max_entries (`int`): outcomes of these weights after which it ends.
        workers (`int`): processes; each loads the model.
        seed (`int`): of the choice of states, and of planners' draws.
        time_limit (`float`, *optional*): seconds after which it ends.
        on_stale (`str`): what to do with entries of other weights: "keep", "drop" or "refuse".
        progress (`bool`): show a line of progress.

    Returns:
        `dict`: `entries` and `states` in the cache, `new_entries`, `seconds`, and `answered`, the share of the
        recorded states for which an action is known now.

    Raises:
        ValueError: an argument of another type or out of range, an unknown environment or planner, a critic that
            workers cannot be handed, or a cache that is damaged or of other weights.
        FileNotFoundError: no checkpoint or no recording.
        OSError: the disk is full; what was written is kept.
    """
    start = time.perf_counter()
    deadline = math.inf if time_limit is None else start + time_limit
    folder = Path(cache) if cache is not None else results_folder(run, None) / CACHE
    checkpoint = find_checkpoint(run, adapters=True)
    root = find_recording(checkpoint, data_root)
    model, processor = load(checkpoint)
    trajectories = load_trajectories(root, split)
    facts = recorded_facts(root)
    names = sorted(set(trajectories.environments))
    if unknown := sorted(set(environments or ()) - set(names)):
        raise ValueError(f"{unknown} are not in the recording's {split} split, which has {names}; name some of those.")
    wishes = {
        id: reward_critic(facts.get(id), reward_threshold) if critic is None else as_critic(critic) for id in names
    }
    has_goal = all(math.isfinite(wish.threshold) for wish in wishes.values())
    name = planner or (None if ActionParts(model.config).is_discrete and has_goal else "cem")
    if name is not None:
        make_planners([name], model.config, critic is not None or has_goal)
    before, answered, total = -1, 0, 0
    for id in environments or names:
        job = _Job(checkpoint, folder, wishes[id], effort, name, max_entries, seed)
        filler = _Filler(job, model, on_stale if before < 0 else "keep")
        before = filler.entries if before < 0 else before
        nodes = filler.file_recorded(trajectories, processor, id, frames)
        try:
            with _workers(job, workers, filler) as work:
                filler.fill(nodes, depth if name is None else 1, work, deadline, Progress(id, 0, "states", progress))
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


class _Filler:
    """One process that fills a cache."""

    def __init__(self, job: _Job, model: Any, on_stale: str = "keep"):
        self.job = job
        self.world = model if job.effort is None else FixedEffort(model, job.effort)
        # it ends at its bound, so what it has filled is not evicted for what it fills next
        self.cache = SimulationCache(job.folder, max_entries=2 * job.max_entries + 100_000, on_stale=on_stale)
        self.bound = self.cache.bind(self.world, job.critic)
        self.stale = self.entries - self.cache.store.entries_of(self.bound.space)
        self.planner = None
        if job.planner is not None:
            (self.planner,) = make_planners([job.planner], model.config).values()

    @property
    def entries(self) -> int:
        return self.cache.store.counters().get("entries", 0)

    def file_recorded(self, trajectories: Trajectories, processor: Any, environment: str, frames: int) -> list[bytes]:
        """Perceives recorded states and files them; returns their nodes, each once."""
        context = self.world.config.context_steps
        rows = trajectories.windows(1, environment)
        offset = rows - trajectories.episode_starts[trajectories.episode[rows]]
        chosen = np.sort(np.random.default_rng(self.job.seed).permutation(len(rows))[:frames])
        nodes: dict[bytes, None] = {}
        for lead in range(context):  # at the beginning of an episode a belief holds fewer steps
            is_here = offset[chosen] >= lead if lead == context - 1 else offset[chosen] == lead
            some = rows[chosen[is_here]]
            reader = WindowReader(trajectories, processor, self.world, lead + 1)
            for first in range(0, len(some), _PERCEIVED):
                belief = reader.perceive(reader.batch(some[first : first + _PERCEIVED], 1))
                recorded = self._recorded()
                nodes |= dict.fromkeys(recorded.file(belief))
                store = self.cache.store
                store.write(self.bound.space, self.bound.events, recorded.states.values(), ())
        return list(nodes)

    def fill(self, nodes: list[bytes], depth: int, work: Any, deadline: float, line: Progress) -> None:
        """Does all states within `depth` rounds of `nodes`. Args: work, a function of batches of nodes that yields as
        each is done."""
        seen, frontier = set(nodes), list(nodes)
        with line:
            for number in range(depth):
                waiting = self._waiting(frontier)
                line.total += len(waiting)
                most = _TRANSITIONS // self.bound.keys.parts.num_choices
                size = min(_BATCH, max(1, most)) if self.planner is None else 1
                batches = [waiting[first : first + size] for first in range(0, len(waiting), size)]
                for done in work(self._until(batches, deadline)):
                    line.update(line.done + done, f"round {number + 1} of {depth}, {self.entries} entries")
                if self._is_over(deadline):
                    line.update(line.done, "the limit is reached; run it again with a larger one to go on")
                    return
                frontier = [node for node in self._successors(frontier) if node not in seen]
                seen.update(frontier)
                if not frontier:
                    return

    def _is_over(self, deadline: float) -> bool:
        return time.perf_counter() > deadline or self.entries - self.stale >= self.job.max_entries

    def _until(self, batches: list[list[bytes]], deadline: float) -> Iterator[list[bytes]]:
        for batch in batches:
            if self._is_over(deadline):
                return
            yield batch

    def _waiting(self, nodes: Iterable[bytes]) -> list[bytes]:
        """Those that are not done, by the length of their keys, in an order that is the same for everybody."""
        found = []
        for node in nodes:
            row = self.cache.store.query("SELECT length(raw), raw, is_expanded FROM states WHERE node=?", (node,))
            if row and not row[0][2]:
                found.append((row[0][0], row[0][1], node))
        return [node for _, _, node in sorted(found)]

    def _successors(self, nodes: list[bytes]) -> list[bytes]:
        """The states that these lead to, goals and ends aside."""
        found: dict[bytes, None] = {}
        for node in nodes:
            rows = self.cache.store.query(
                "SELECT o.next FROM outcomes o LEFT JOIN scores c ON c.outcome=o.id AND c.task=? "
                "WHERE o.state=? AND o.continue_prob >= 0.5 AND coalesce(c.reached, 0) = 0 ORDER BY o.id",
                (self.bound.task, node),
            )
            found |= dict.fromkeys(row[0] for row in rows)
        return list(found)

    def do(self, nodes: list[bytes]) -> int:
        """Imagines from some states, whose keys are of one length each; returns how many are done."""
        store = self.cache.store
        raws = {node: store.query("SELECT raw FROM states WHERE node=?", (node,))[0][0] for node in nodes}
        for length in sorted({len(raw) for raw in raws.values()}):
            some = [node for node, raw in raws.items() if len(raw) == length]
            belief = self.bound.keys.belief([raws[node] for node in some])
            recorded = self._recorded()
            if self.planner is None:
                self._imagine_all(recorded, belief)
            else:
                self._plan(recorded, belief, some[0])
            self.cache.write(self.world, self.job.critic, recorded, expanded=some)
        return len(nodes)

    def _recorded(self) -> Recorded:
        return Recorded(self.world, self.bound.keys, self.bound.critic)

    def _imagine_all(self, recorded: Recorded, belief: Any) -> None:
        """Every action that is allowed, from every row."""
        parts = self.bound.keys.parts
        count = parts.num_choices
        numbers = torch.arange(count).repeat(len(belief))
        rows = torch.arange(len(belief)).repeat_interleave(count)
        if parts.predicts_mask(self.world.config):
            is_allowed = (belief.decode(MASK) > 0.5).cpu().flatten()
            numbers, rows = numbers[is_allowed], rows[is_allowed]
        if len(rows):
            device = self.world.device
            actions = parts.of_numbers(numbers[:, None].to(device))
            recorded.simulate(belief.select(rows.to(device)), actions, temperature=0.0)

    def _plan(self, recorded: Recorded, belief: Any, node: bytes) -> None:
        assert self.planner is not None
        drawn = self.job.seed + int.from_bytes(node[:7], "big")  # whoever plans from it draws the same
        generator = torch.Generator().manual_seed(drawn)
        recorded.keep_plan(belief, self.planner.plan(recorded, belief, self.job.critic, generator=generator))

    def back_up(self) -> None:
        if self.bound.backs_up:
            self.cache.back_up(self.world, self.job.critic)

    def num_answered(self, nodes: list[bytes]) -> int:
        """For how many of these states an action is known."""
        partial = "OR w.planned IS NOT NULL" if self.bound.accepts_partial else ""
        query = f"SELECT 1 FROM worth w WHERE w.node=? AND w.task=? AND (w.reach >= ? {partial}) LIMIT 1"
        values = (self.bound.task, self.cache.least_reach)
        return sum(bool(self.cache.store.query(query, (node, *values))) for node in nodes)


# ---- in several processes

_mine: list[_Filler] = []  # of a worker


@contextmanager
def _workers(job: _Job, count: int, own: _Filler) -> Iterator[Any]:
    """A function of batches of nodes that yields the number done as each is: in this process, or in `count` others."""
    if count == 1:
        yield lambda batches: map(own.do, batches)
        return
    try:
        ForkingPickler.dumps(job)  # how processes are handed what they need; nothing of it is kept
    except Exception as error:
        raise ValueError(
            f"Workers cannot be handed this critic or effort ({error}); define its function at the top of a module, "
            "or use one worker."
        ) from error
    context = multiprocessing.get_context("spawn")
    given = (job, max(1, (os.cpu_count() or 1) // count))
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=given)
    try:
        yield partial(_in_turn, pool, 2 * count)
    except BrokenProcessPool as error:
        raise OSError(
            "A worker has died, for want of memory perhaps. What was written is kept; run it again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_turn(pool: ProcessPoolExecutor, ahead: int, batches: Iterable[list[bytes]]) -> Iterator[int]:
    """The number done of each batch, as they are; no more than `ahead` are handed out at a time."""
    waiting: set[Future] = set()
    for batch in batches:
        if len(waiting) >= ahead:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (each.result() for each in done)
        waiting.add(pool.submit(_do, batch))
    yield from (each.result() for each in as_completed(waiting))


def _begin(job: _Job, num_threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(num_threads)
    model, _ = load(job.checkpoint)
    _mine[:] = [_Filler(job, model)]


def _do(nodes: list[bytes]) -> int:
    return _mine[0].do(nodes)
