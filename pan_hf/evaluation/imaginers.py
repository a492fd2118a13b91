"""Who imagines for `pan precompute`: this process, several on this machine, or those of a Ray cluster.

A unit of work is a few states as whole keys. What comes back are rows, which the process that asked for them writes:
workers need the model and no cache, so they may be on other machines.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any
from urllib.parse import urlsplit

import torch

from pan_hf.agents.actions import MASK
from pan_hf.agents.cache_keys import Keys
from pan_hf.agents.cache_recorder import Recorded, Rows
from pan_hf.agents.critics import Critic
from pan_hf.agents.registry import make_planners
from pan_hf.agents.world import at_effort
from pan_hf.checkpoints import load
from pan_hf.extras import extra
from pan_hf.processes import end_with_parent

States = list[tuple[bytes, bytes]]
"""States to imagine from: digest and whole key of each."""

_REACHED_WITHIN = 5.0  # seconds for a cluster's machine to answer, which Ray itself waits minutes for


@dataclass(frozen=True)
class Job:
    """What a worker has to know.

    Args:
        checkpoint (`str`): of the model, a folder or a Hub id.
        salt (`bytes`): of the cache's digests.
        critic: what is wanted; effort: of each imagined step; planner: its text, None to imagine every action.
        seed (`int`): of planners' draws.
    """

    checkpoint: str
    salt: bytes
    critic: Critic
    effort: Any
    planner: str | None
    seed: int


@dataclass
class Imagined:
    """What was imagined from some states, and the seconds it took."""

    states: States
    rows: Rows
    seconds: float


Work = Callable[[Iterable[States]], Iterator[Imagined]]
"""Does units of work; yields as each is done."""


class Imaginer:
    """Imagines from states: every action, or a planner's plan.

    Args:
        job ([`Job`]), model ([`PanModel`]): of the job's checkpoint.
    """

    def __init__(self, job: Job, model: Any):
        self.job = job
        self.world = at_effort(model, job.effort)
        self.keys = Keys(self.world, job.salt)
        self.planner = None
        if job.planner is not None:
            (self.planner,) = make_planners([job.planner], model.config).values()

    def imagine(self, states: States) -> Imagined:
        """The rows of what follows from some states."""
        start, recorded = time.perf_counter(), self.recorded()
        for length in sorted({len(raw) for _, raw in states}):
            some = [(node, raw) for node, raw in states if len(raw) == length]
            belief = self.keys.belief([raw for _, raw in some])
            if self.planner is None:
                self._imagine_all(recorded, belief)
            else:
                self._plan(recorded, belief, [node for node, _ in some])
        return Imagined(states, recorded.rows, time.perf_counter() - start)

    def recorded(self, keeps_all: bool = False) -> Recorded:
        """The world, remembering what it is asked."""
        return Recorded(self.world, self.keys, self.job.critic, keeps_all=keeps_all)

    def _imagine_all(self, recorded: Recorded, belief: Any) -> None:
        """Every action that is allowed, from every row."""
        parts = self.keys.parts
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

    def _plan(self, recorded: Recorded, belief: Any, nodes: list[bytes]) -> None:
        assert self.planner is not None
        for row, node in enumerate(nodes):
            drawn = self.job.seed + int.from_bytes(node[:7], "big")  # whoever plans from it draws the same
            generator, one = torch.Generator().manual_seed(drawn), belief.select(torch.tensor([row]))
            recorded.keep_plan(one, self.planner.plan(recorded, one, self.job.critic, generator=generator))


@contextmanager
def imaginers(job: Job, own: Imaginer, count: int, ray: str | bool) -> Iterator[Work]:
    """Whoever does the work: this process, or `count` others, on a Ray cluster if `ray` is True or its address.

    Raises:
        ValueError: the job cannot be handed to others, or `ray` is no address.
        ImportError: Ray is not installed.
        OSError: there is no such cluster, or a worker has died.
    """
    if count == 1 and not ray:
        yield partial(map, own.imagine)
        return
    try:
        ForkingPickler.dumps(job)  # how processes are handed what they need; nothing of it is kept
    except Exception as error:
        raise ValueError(
            f"Workers cannot be handed this critic or effort ({error}); define its function at the top of a module, "
            "or use one worker."
        ) from error
    with _cluster(job, count, ray) if ray else _processes(job, count) as submit:
        yield partial(_in_turn, submit, 2 * count)


def _in_turn(submit: Callable[[States], Future], ahead: int, units: Iterable[States]) -> Iterator[Imagined]:
    """What is done, as it is; no more than `ahead` units are handed out at a time."""
    waiting: set[Future] = set()
    for unit in units:
        waiting.add(submit(unit))
        while len(waiting) >= ahead:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (each.result() for each in done)
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (each.result() for each in done)


# ---- processes of this machine

_mine: list[Imaginer] = []  # of a worker


@contextmanager
def _processes(job: Job, count: int) -> Iterator[Callable[[States], Future]]:
    context = multiprocessing.get_context("spawn")
    given = (job, max(1, (os.cpu_count() or 1) // count))
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=given)
    try:
        yield partial(pool.submit, _imagine)  # type: ignore[call-arg]  # mypy takes a partial `submit` for the whole
    except BrokenProcessPool as error:
        raise OSError(
            "A worker has died, for want of memory perhaps. What was written is kept; run it again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(job: Job, num_threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(num_threads)
    _mine[:] = [Imaginer(job, load(job.checkpoint)[0])]


def _imagine(states: States) -> Imagined:
    return _mine[0].imagine(states)


# ---- of a Ray cluster


class _Remote:
    """A worker of a cluster. It loads the model with its first work, whose error is then told."""

    def __init__(self, job: Job):
        self.job = job
        self.imaginer: Imaginer | None = None

    def imagine(self, states: States) -> Imagined:
        if self.imaginer is None:
            self.imaginer = Imaginer(self.job, load(self.job.checkpoint)[0])
        return self.imaginer.imagine(states)


@contextmanager
def _cluster(job: Job, count: int, address: str | bool) -> Iterator[Callable[[States], Future]]:
    """Workers with one CPU each, of which the one with the least to do is given the next unit."""
    with extra("ray", "`pan precompute --ray`"):
        import ray
    was_there = ray.is_initialized()
    if not was_there:
        _connect(ray, None if address is True else str(address))
    workers = [ray.remote(num_cpus=1)(_Remote).remote(job) for _ in range(count)]
    busy = [0] * count

    def submit(states: States) -> Future:
        index = busy.index(min(busy))
        busy[index] += 1
        future = workers[index].imagine.remote(states).future()
        future.add_done_callback(lambda _: busy.__setitem__(index, busy[index] - 1))
        return future

    try:
        yield submit
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise OSError(
            f"A worker on the Ray cluster has died ({error}). What was written is kept; run it again"
        ) from error
    finally:
        for worker in workers:
            ray.kill(worker)
        if not was_there:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    """Joins a cluster; begins one on this machine for "local", or None where RAY_ADDRESS names none."""
    advice = "Start one with `ray start --head`, name its address, or leave the address out for one on this machine"
    parts = urlsplit(address if address and "//" in address else f"//{address or ''}")
    try:
        if parts.port is not None:
            socket.create_connection((parts.hostname, parts.port), _REACHED_WITHIN).close()
        ray.init(
            address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=None if address else False
        )
    except (OSError, RuntimeError) as error:  # ConnectionError is one
        raise OSError(f"There is no Ray cluster at {address or 'RAY_ADDRESS'} ({error}). {advice}") from error
    except ValueError as error:
        raise ValueError(f"`ray` is {address!r}, which is no address of a cluster ({error}). {advice}.") from error
