"""`pan cache`: what a run's simulation cache holds, for how much of the recording it has an answer, what is stale; and
the cache as a data set of two parquet files.

`outcomes.parquet` has a row an outcome: `state`, `action` and `next` as bytes (whole keys, from which beliefs are made
again), `count`, `reward` (one number an actor), `continue_prob`, `log_prob`, `duration`. `planned.parquet` has what
planners expected: `state`, `action`, `planned`, and `task`, the digest of what was wanted. Their metadata says for
which model they hold. Values are not among them: they follow from the outcomes.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.cache_keys import Keys
from pan_hf.agents.cache_recorder import Recorded
from pan_hf.agents.cache_scope import Scope, scope_of
from pan_hf.agents.cache_store import OutcomeRow
from pan_hf.agents.critics import as_critic
from pan_hf.agents.world import FixedEffort
from pan_hf.arguments import checked, least
from pan_hf.checkpoints import find_checkpoint, find_recording, load, results_folder
from pan_hf.data.trajectories import Trajectories, load_trajectories
from pan_hf.data.windows import WindowReader
from pan_hf.evaluation.cache_picture import write_cache_picture
from pan_hf.evaluation.control import recorded_facts, reward_critic
from pan_hf.evaluation.precompute import CACHE
from pan_hf.files import whole_folder

_ABOUT = {"format": "pan-simulation-cache", "version": 1}  # in the metadata of the files of a data set
OUTCOMES, PLANNED = "outcomes.parquet", "planned.parquet"
_ROWS = 20_000  # of a parquet file, read and written at a time
_SCHEMA = pa.schema(
    {
        "state": pa.binary(),
        "action": pa.binary(),
        "next": pa.binary(),
        "count": pa.int64(),
        "reward": pa.list_(pa.float32()),
        "continue_prob": pa.float64(),
        "log_prob": pa.float64(),
        "duration": pa.int64(),
    }
)
_BOUNDS = {"count": (0, 2**31), "duration": (1, 2**31), "continue_prob": (0, 1)}
_PLANNED = pa.schema({"state": pa.binary(), "action": pa.binary(), "planned": pa.float64(), "task": pa.string()})


@checked(samples=least(0), check=least(0), seed=least(0))
def describe_cache(
    run: str | Path,
    data_root: str | Path | None = None,
    *,
    cache: str | Path | None = None,
    split: str = "test",
    samples: int = 200,
    check: int = 0,
    reward_threshold: float | None = None,
    critic=None,
    effort=None,
    seed: int = 0,
    pictures: str | Path | None = None,
) -> dict[str, Any]:
    """What a cache holds, and what it is good for.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, or a checkpoint.
        data_root (`str` or `Path`, *optional*): the recording; by default the one the checkpoint was trained on.
        cache (`str` or `Path`, *optional*): folder of the cache; `cache/` in the run by default.
        split (`str`): "test" or "train": of whose states the coverage is measured.
        samples (`int`): how many recorded states are looked up for it; 0: none.
        check (`int`): cached outcomes that are imagined anew, to see how many differ now; 0: none.
        reward_threshold (`float`, *optional*), critic (*optional*), effort (*optional*): as of `precompute`.
        seed (`int`): of the choice of states.
        pictures (`str` or `Path`, *optional*): folder for a picture of the graph of abstract states.

    Returns:
        `dict`: `entries`, `states`, `bytes`; `stale_entries`, those of other weights, and `stale`, their share;
        `hit_rate` and `hits` by level, of all look-ups so far; `coverage`, the share of recorded states that are
        answered, and `covered` by level; `differing`, the share of checked outcomes that differ; `picture`, its path.

    Raises:
        ValueError: the cache is damaged, or an argument is of another type or out of range.
        FileNotFoundError: no cache, no checkpoint or no recording.
    """
    model, processor, place, checkpoint = _opened(run, cache)
    world = model if effort is None else FixedEffort(model, effort)
    found = SimulationCache(place, create=False, on_stale="keep")
    found.store.check()
    size = sum(path.stat().st_size for path in place.glob(f"{found.store.path.name}*"))
    valid = [number for number, _, scope in found.store.spaces() if scope.holds_for(world)]
    counts = found.store.counters()
    entries = counts.get("entries", 0)
    fresh = sum(found.store.entries_of(number) for number in valid)
    hits = {name.removeprefix("hit "): value for name, value in counts.items() if name.startswith("hit ")}
    asked = sum(hits.values()) + counts.get("miss", 0)
    told: dict[str, Any] = {
        "entries": entries,
        "states": counts.get("states", 0),
        "bytes": size,
        "stale_entries": entries - fresh,
        "stale": (entries - fresh) / max(1, entries),
        "hit_rate": sum(hits.values()) / asked if asked else None,
        "hits": hits,
    }
    if samples and valid:
        root = find_recording(checkpoint, data_root)
        trajectories, facts = load_trajectories(root, split), recorded_facts(root)
        covered: Counter[str] = Counter()
        total = 0
        for id in sorted(set(trajectories.environments)):
            wanted = reward_critic(facts.get(id), reward_threshold) if critic is None else as_critic(critic)
            for belief in _recorded(world, processor, trajectories, id, samples, seed):
                answer = found.lookup(world, belief, wanted, counts=False)
                covered["none" if answer is None else answer.level] += 1
                total += 1
        told["coverage"] = 1 - covered.pop("none", 0) / max(1, total)
        if pictures is not None:
            told["picture"] = write_cache_picture(found, pictures)
        told["covered"] = {name: count / max(1, total) for name, count in covered.items()}
    if check and valid:
        told["differing"] = differing_share(world, found, valid[0], check, seed)
    found.close()
    return told


def _opened(run: str | Path, cache: str | Path | None) -> tuple[Any, Any, Path, Path]:
    """Model, processor, the cache's folder and the checkpoint."""
    checkpoint = find_checkpoint(run, adapters=True)
    place = Path(cache) if cache is not None else results_folder(run, None) / CACHE
    return *load(checkpoint), place, checkpoint


def _recorded(
    world: Any, processor: Any, trajectories: Trajectories, environment: str, count: int, seed: int
) -> Iterator[Any]:
    """Beliefs of recorded states, one row each, with as much of the past as the model sees where there is as much."""
    rows = trajectories.windows(1, environment)
    offset = rows - trajectories.episode_starts[trajectories.episode[rows]]
    for index in np.random.default_rng(seed).permutation(len(rows))[:count]:
        lead = min(int(offset[index]), world.config.context_steps - 1)
        reader = WindowReader(trajectories, processor, world, lead + 1)
        yield reader.perceive(reader.batch(rows[index : index + 1], 1))


@torch.no_grad()
def differing_share(world: Any, cache: SimulationCache, space: int, count: int, seed: int = 0) -> float:
    """The share of cached outcomes, among those that were taken for the likeliest, whose next state differs when they
    are imagined by the model as it is now. After growth that is what the new tokens have changed."""
    rows = cache.store.query(
        "SELECT s.raw, o.action, n.raw FROM outcomes o JOIN states s ON s.node=o.state JOIN states n ON n.node=o.next "
        "WHERE s.space=? AND o.count=1",
        (space,),
    )
    chosen = [rows[index] for index in np.random.default_rng(seed).permutation(len(rows))[:count]]
    keys, differing = cache.bind(world, cache.any_critic).keys, 0
    for length in {len(row[0]) for row in chosen}:
        some = [row for row in chosen if len(row[0]) == length]
        belief = keys.belief([row[0] for row in some])
        actions = keys.actions([row[1] for row in some])
        futures = world.simulate(belief, actions[:, None].to(world.device), temperature=0.0)
        after = [row[0] for row in futures.keys()]
        differing += sum(key != row[2] for key, row in zip(after, some, strict=True))
    return differing / max(1, len(chosen))


# ---- as a data set


def export_cache(run: str | Path, output: str | Path, *, cache: str | Path | None = None) -> Path:
    """Writes the entries that hold for a run's model as parquet files into a folder, whole or not at all.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: nothing in the cache holds for the model.
        FileNotFoundError: no cache, or no checkpoint.
    """
    model, _, place, _ = _opened(run, cache)
    found = SimulationCache(place, create=False, on_stale="keep")
    spaces = [(number, scope) for number, _, scope in found.store.spaces() if scope.holds_for(model)]
    if not spaces:
        raise ValueError(f"Nothing in {place} holds for the model of {run}, so there is nothing to export.")
    number, scope = spaces[0]
    metadata = {"pan": json.dumps(_ABOUT | vars(scope))}
    with whole_folder(output) as folder:
        outcomes = (
            "SELECT s.raw, o.action, n.raw, o.count, o.reward, o.continue_prob, o.log_prob, o.duration, o.id "
            "FROM outcomes o JOIN states s ON s.node=o.state JOIN states n ON n.node=o.next "
            "WHERE s.space=? AND o.id > ? ORDER BY o.id LIMIT ?"
        )
        with pq.ParquetWriter(folder / OUTCOMES, _SCHEMA.with_metadata(metadata)) as writer:
            last = 0
            while rows := found.store.query(outcomes, (number, last, _ROWS)):
                last = rows[-1][-1]
                columns = list(zip(*rows, strict=True))[:-1]
                columns[4] = tuple(_numbers(reward) for reward in columns[4])
                writer.write_table(pa.table([list(column) for column in columns], schema=_SCHEMA))
        planned = found.store.query(
            "SELECT s.raw, w.action, w.planned, t.digest FROM worth w JOIN states s ON s.node=w.node "
            "JOIN tasks t ON t.id=w.task WHERE s.space=? AND w.planned IS NOT NULL ORDER BY s.id, w.action",
            (number,),
        )
        arrays = [[row[column] for row in planned] for column in range(len(_PLANNED))]
        pq.write_table(pa.table(arrays, schema=_PLANNED.with_metadata(metadata)), folder / PLANNED)
    return Path(output)


def import_cache(run: str | Path, source: str | Path, *, cache: str | Path | None = None) -> int:
    """Adds the entries of a folder that `export_cache` wrote to a run's cache; `pan precompute`, or a look-up after
    `SimulationCache.back_up`, then values them.

    Returns:
        `int`: entries that were not there before.

    Raises:
        ValueError: the files are damaged, of another format, or hold for another model.
        FileNotFoundError: no such files, or no checkpoint.
    """
    model, _, place, _ = _opened(run, cache)
    paths = [Path(source) / name for name in (OUTCOMES, PLANNED)]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{source} lacks {missing}; a folder that `pan cache --export` wrote has them.")
    scope, task_digests = _checked_files(paths, model), {}
    found = SimulationCache(place, on_stale="keep")
    bound = found.bind(model, found.any_critic)
    added = 0
    actors = getattr(model.config, "actors", None)
    for rows in _batches(paths[0], bound.keys, len(actors or [""])):
        recorded = Recorded(model, bound.keys, bound.critic)
        nodes = _file(recorded, [row["state"] for row in rows] + [row["next"] for row in rows])
        for row in rows:
            start, end, reward = nodes[row["state"]], nodes[row["next"]], row["reward"]
            told = reward[0] if actors is None else np.array(reward, np.float32).tobytes()
            recorded.outcomes[start, row["action"], end] = OutcomeRow(
                start, row["action"], end, row["count"], told, row["continue_prob"], row["log_prob"], row["duration"]
            )
        added += found.write(model, found.any_critic, recorded, events=scope.events)
    if bound.keys.parts.is_discrete:  # `precompute` need not do again what is whole
        found.store.mark_expanded(bound.space, bound.keys.parts.num_choices)
    for rows in _batches(paths[1], bound.keys):
        recorded = Recorded(model, bound.keys, bound.critic)
        nodes = _file(recorded, [row["state"] for row in rows])
        for row in rows:
            if row["task"] not in task_digests:
                task_digests[row["task"]] = found.store.task(row["task"], "imported")
        found.store.write_planned(
            (node, task_digests[row["task"]], row["action"], row["planned"])
            for row in rows
            for node in recorded.states[nodes[row["state"]]].nodes
        )
    found.close()
    return added


def _checked_files(paths: list[Path], model: Any) -> Scope:
    """The scope of exported files. Raises ValueError unless they are whole and hold for a model."""
    abouts = []
    for path, schema in zip(paths, (_SCHEMA, _PLANNED), strict=True):
        try:
            found = pq.read_schema(path)
            abouts.append(json.loads((found.metadata or {})[b"pan"]))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged, or was not written by `pan cache --export` ({error}).") from error
        if not found.remove_metadata().equals(schema):
            raise ValueError(f"{path} has other columns than `pan cache --export` writes, {schema.names}.")
    about = abouts[0]
    if about != abouts[1] or not isinstance(about, dict) or not _ABOUT.items() <= about.items():
        raise ValueError(f"{paths[0].parent}: expected files of one cache, {_ABOUT}; got {str(abouts):.200}.")
    fields: dict[str, Any] = {item.name: about.get(item.name) for item in dataclasses.fields(Scope)}
    scope = Scope(**fields)
    if not scope.holds_for(model):
        own = scope_of(model)
        raise ValueError(
            f"{paths[0].parent} holds for other weights, or for a vocabulary that is no ancestor of this model's (its "
            f"ledger: {scope.ledger or 'none'}, this model's: {own.ledger or 'none'}); nothing was imported."
        )
    return scope


def _batches(path: Path, keys: Keys, num_rewards: int = 0) -> Iterator[list[dict]]:
    """Rows of an exported file. Raises ValueError where they are none of this world's."""
    try:
        for batch in pq.ParquetFile(path).iter_batches(_ROWS):
            _check_rows(batch, num_rewards)
            keys.actions(batch.column("action").unique().to_pylist())
            yield batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); what came before is imported, export it again.") from error


def _check_rows(batch: pa.RecordBatch, num_rewards: int) -> None:
    """Raises ValueError unless rows are whole and their numbers are what can be stored and counted with."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    numbers = {name: each for name, each in columns.items() if each.type in (pa.int64(), pa.float64())}
    if "reward" in columns:
        numbers["reward"] = columns["reward"].flatten()
        if set(columns["reward"].value_lengths().to_pylist()) - {num_rewards}:
            raise ValueError(f"expected {num_rewards} rewards a row")
    if any(column.null_count for column in [*columns.values(), *numbers.values()]):
        raise ValueError("a value is missing")
    for name, column in numbers.items():
        least, most = _BOUNDS.get(name, (-np.inf, np.inf))
        values = column.to_numpy()
        if not (np.isfinite(values) & (values >= least) & (values <= most)).all():
            raise ValueError(f"a `{name}` is not a number from {least} to {most}")


def _file(recorded: Recorded, raws: list[bytes]) -> dict[bytes, bytes]:
    """Files whole keys; returns the node of each."""
    nodes: dict[bytes, bytes] = {}
    for length in {len(raw) for raw in raws}:
        some = list(dict.fromkeys(raw for raw in raws if len(raw) == length))
        nodes |= dict(zip(some, recorded.file(recorded.keys.belief(some, fills=False)), strict=True))
    return nodes


def _numbers(reward: float | bytes) -> list[float]:
    return np.frombuffer(reward, np.float32).tolist() if isinstance(reward, bytes) else [reward]


def cache_summary(told: dict[str, Any]) -> str:
    """Lines for a person to read of what `describe_cache` found."""
    lines = [
        f"{told['entries']} entries of {told['states']} states, {told['bytes'] / 2**20:.1f} MiB",
        f"stale: {told['stale_entries']} entries ({told['stale']:.0%}) are of other weights",
    ]
    if told["hit_rate"] is None:
        lines.append("no look-up yet")
    else:
        levels = ", ".join(f"{name} {count}" for name, count in told["hits"].items())
        lines.append(f"answered so far: {told['hit_rate']:.0%} of look-ups ({levels or 'none'})")
    if "coverage" in told:
        levels = ", ".join(f"{name} {share:.0%}" for name, share in told["covered"].items())
        lines.append(f"of recorded states {told['coverage']:.0%} are answered ({levels or 'none'})")
    if "differing" in told:
        lines.append(f"imagined anew, {told['differing']:.1%} of the checked outcomes differ")
    return "\n".join(lines)
