"""The simulation cache at a million entries: look-ups, neighbours, memory, two processes, and kills while writing.

    python benchmarks/cache.py                       # a million entries; minutes, and about 1 GB of disk
    python benchmarks/cache.py --entries 20000       # seconds

States are random codes as a 64x64 camera of two levels has them (80 codes), in clusters, since what an agent meets is
alike; seven actions a state. An *exact look-up* is `SimulationCache.lookup` of a state that is there, as an agent asks
it, with every 256th beginning a note of what was of use; the keys of the model's own beliefs are not in it. The clock
of a busy machine tells of all that runs there: `processor_` is the time that the thread itself had. A *neighbour* is
right if no state is nearer (a plain scan tells). A *kill* is SIGKILL at a random moment of a process that writes;
what it had said was written has to be there, whole, and the file has to pass SQLite's own check.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # also from a checkout that is not installed

from pan_hf.agents.cache import SimulationCache  # noqa: E402
from pan_hf.agents.cache_keys import FEATURES, Keys  # noqa: E402
from pan_hf.agents.cache_neighbours import Neighbours  # noqa: E402
from pan_hf.agents.cache_scope import scope_of, task_of  # noqa: E402
from pan_hf.agents.cache_store import CacheStore, OutcomeRow, StateRow  # noqa: E402
from pan_hf.agents.critics import RewardCritic  # noqa: E402
from pan_hf.modeling import DiscreteAction  # noqa: E402

ACTIONS, CODES, CLUSTERS = 7, 80, 2000
MIDDLES = np.random.default_rng(0).normal(size=(CLUSTERS, FEATURES))
BATCH = 500  # states in one transaction
FORK = multiprocessing.get_context("fork")
NAME, CRITIC = "benchmark", RewardCritic()
WORLD = SimpleNamespace(config=SimpleNamespace(action=DiscreteAction(ACTIONS), context_steps=1))


class Belief:
    """A belief in the state of a number."""

    def __init__(self, index: int):
        self.index = index

    def __len__(self) -> int:
        return 1

    def keys(self) -> list[bytes]:
        return [self.index.to_bytes(8, "big")]


@functools.cache
def keys() -> Keys:
    """As the first space of any cache has them."""
    with tempfile.TemporaryDirectory() as folder:
        _, salt = CacheStore(folder).add_space(scope_of(None, NAME))
    return Keys(WORLD, salt)


def node_of(index: int) -> bytes:
    return keys().of_belief(Belief(index)).nodes[0][0]


def state_of(index: int) -> StateRow:
    """A random state near the middle of one of the clusters."""
    rng, node = np.random.default_rng(index), node_of(index)
    features = (MIDDLES[index % CLUSTERS] + 0.3 * rng.normal(size=FEATURES)).astype(np.float16)
    codes = rng.integers(0, 128, CODES).astype(np.int32).tobytes()
    return StateRow([node, node[:12] + b"0000"], codes, len(codes), b"", features.tobytes())


def outcomes_of(index: int, count: int) -> list[OutcomeRow]:
    """Every action of a state; half of them change nothing."""
    rng, node = np.random.default_rng(index), node_of(index)
    targets = [index if rng.random() < 0.5 else int(rng.integers(count)) for _ in range(ACTIONS)]
    return [
        OutcomeRow(node, action.to_bytes(4, "little"), node_of(target), 0, 0.0, 1.0, -0.1, 1, 0.0, False)
        for action, target in enumerate(targets)
    ]


def fill(folder: Path, entries: int) -> float:
    """Writes so many entries and a value for each; returns the seconds it took."""
    store, count, start = CacheStore(folder), entries // ACTIONS, time.perf_counter()
    space, _ = store.add_space(scope_of(None, NAME))
    task = store.task(task_of(CRITIC), "")
    for first in range(0, count, BATCH):
        some = range(first, min(first + BATCH, count))
        outcomes = [outcome for index in some for outcome in outcomes_of(index, count)]
        store.write(space, 0, [state_of(index) for index in some], outcomes, task)
        values = [(o.state, task, o.action, 0.5, 1.0) for o in outcomes]
        with store.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO worth (node, task, action, value, reach) VALUES (?, ?, ?, ?, ?)", values
            )
    store.close()
    return time.perf_counter() - start


def look_up(folder: Path, entries: int, number: int = 20_000, seed: int = 0) -> dict[str, float]:
    """Exact look-ups of random states, in microseconds by the clock and by this thread's use of the processor."""
    cache, times = SimulationCache(folder, scope=NAME), []
    for index in np.random.default_rng(seed).integers(entries // ACTIONS, size=number):
        belief = Belief(int(index))
        start, busy = time.perf_counter(), time.thread_time()
        answer = cache.lookup(WORLD, belief, CRITIC)
        times.append((time.perf_counter() - start, time.thread_time() - busy))
        assert answer is not None and answer.level == "exact"
    cache.close()
    elapsed, used = 1e6 * np.array(times[len(times) // 10 :]).T  # the first ones bring pages in
    shares = {"median": 50, "percentile_99": 99, "longest": 100}
    told = {name: float(np.percentile(elapsed, share)) for name, share in shares.items()}
    return told | {f"processor_{name}": float(np.percentile(used, share)) for name, share in shares.items()}


def find_neighbours(folder: Path, number: int = 300) -> dict[str, float]:
    """Neighbours of states that are not there, in milliseconds, and how often the first one is the nearest."""
    store, start = CacheStore(folder), time.perf_counter()
    neighbours = Neighbours(store, 1)
    loading = time.perf_counter() - start
    matrix = next(iter(neighbours._matrices.values()))
    times, right = [], 0
    for index in range(number):
        query = np.frombuffer(state_of(10**8 + index).features or b"", np.float16).astype(np.float32)
        start = time.perf_counter()
        found = neighbours.nearest(b"", query)
        times.append(time.perf_counter() - start)
        nearest = int((matrix.squares - 2 * (matrix.features @ query)).argmin())
        right += found[0][0] == matrix.nodes[nearest]
    return {
        "states": len(neighbours),
        "median_ms": 1e3 * float(np.median(times)),
        "percentile_99_ms": 1e3 * float(np.percentile(times, 99)),
        "recall_at_1": right / number,
        "loading_s": loading,
        "with_faiss": matrix.index is not None,
    }


def resident_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def in_a_process(function, *arguments):
    """A process that calls a function, and where what it returns comes from, with the memory that it holds then."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: sender.send((function(*arguments), resident_mib())))
    process.start()
    sender.close()  # so that one that fails is noticed
    return process, receiver


def both(folder: Path, entries: int) -> tuple[dict, float]:
    """Look-ups and neighbours in one process, and its memory."""

    def work():
        return look_up(folder, entries, seed=os.getpid()) | find_neighbours(folder)

    process, receiver = in_a_process(work)
    result = receiver.recv()
    process.join()
    return result


def two_processes(folder: Path, entries: int) -> dict[str, float]:
    """Look-ups in one process while another writes 2000 states more."""

    def write():
        store, times = CacheStore(folder), []
        for index in range(10**7, 10**7 + 2000, 10):
            some = range(index, index + 10)
            states = [state_of(each) for each in some]
            outcomes = [outcome for each in some for outcome in outcomes_of(each, 10**7)]
            start = time.perf_counter()
            store.write(1, 0, states, outcomes, 1)
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    writing, written = in_a_process(write)
    reading, read = in_a_process(look_up, folder, entries)
    (told, memory), (seconds, others) = read.recv(), written.recv()
    writing.join()
    reading.join()
    return told | {"write_of_70_ms": 1e3 * seconds, "resident_mib": memory + others}


def kills(folder: Path, number: int, seed: int = 0) -> dict[str, int]:
    """Kills a writer so many times; counts what went wrong."""
    draw, lost, torn, acknowledged = random.Random(seed), 0, 0, 0
    for turn in range(number):
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_write_and_say, args=(folder, turn, sender))
        process.start()
        sender.close()
        receiver.recv()  # it has begun
        time.sleep(draw.random() * 0.15)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        said = []
        while receiver.poll():
            try:
                said.append(receiver.recv())
            except EOFError:
                break
        store = CacheStore(folder)
        acknowledged += len(said)
        for index in said:
            rows = store.query("SELECT COUNT(*) FROM outcomes WHERE state=?", (node_of(index),))
            lost += rows[0][0] != ACTIONS
        query = "SELECT COUNT(*) FROM outcomes GROUP BY state HAVING COUNT(*) != ?"
        torn += len(store.query(query, (ACTIONS,)))
        store.check()
        counted = store.query("SELECT COUNT(*) FROM outcomes")[0][0]
        torn += counted != store.counters().get("entries", 0)
        store.close()
    return {"kills": number, "acknowledged": acknowledged * ACTIONS, "lost": lost, "torn": torn}


def _write_and_say(folder: Path, turn: int, sender) -> None:
    store = CacheStore(folder)
    space, _ = store.add_space(scope_of(None, NAME))
    sender.send(-1)
    for index in range(turn * 10**6, turn * 10**6 + 10**5):
        store.write(space, 0, [state_of(index)], outcomes_of(index, 1 + index))
        sender.send(index)


def main(
    entries: int = 1_000_000,
    kill: Annotated[int, typer.Option(help="times a writer is killed.")] = 50,
    folder: Annotated[Path | None, typer.Option(help="where the cache is made; kept if given.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        told: dict = {"entries": entries, "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))}
        if not (place / "full").exists():
            told["fill_s"] = fill(place / "full", entries)
        told["disk_mib"] = sum(path.stat().st_size for path in (place / "full").iterdir()) / 2**20
        told["alone"], told["resident_mib"] = both(place / "full", entries)
        told["beside_a_writer"] = two_processes(place / "full", entries)
        told["kills"] = kills(place / "kills", kill)
        text = json.dumps(told, indent=1)
        print(text)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
