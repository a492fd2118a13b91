"""A simulation cache as a data set of two parquet files, on this machine and on a Hub.

`outcomes.parquet` has a row an outcome: `state`, `action` and `next` as bytes (whole keys, from which beliefs are made
again), `count`, `reward` (one number an actor), `continue_prob`, `log_prob`, `duration`. `planned.parquet` has what
planners expected: `state`, `action`, `planned`, and `task`, the digest of what was wanted. Their metadata says for
which model they hold. Values are not among them: they follow from the outcomes.

A cache of a Hub is such a data set. Its files are checked and copied into the run before anything is looked up.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.cache_keys import Keys
from pan_hf.agents.cache_recorder import Recorded
from pan_hf.agents.cache_scope import Scope, scope_of
from pan_hf.agents.cache_store import OutcomeRow
from pan_hf.agents.world import at_effort
from pan_hf.checkpoints import load, results_folder
from pan_hf.files import whole_folder
from pan_hf.hub import hub_id, on_disk

CACHE, COPIES = "cache", "caches"  # folders of a run: its own cache, and its copies of those on a Hub
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


def cache_folder(run: str | Path, cache: str | Path | None, output: str | Path | None, world: Any) -> Path:
    """The folder of a run's cache: `cache`, by default `cache/` in the run; of one on a Hub, the run's copy of that
    commit in `caches/`, which is made the first time.

    Args:
        run (`str` or `Path`), output (`str` or `Path`, *optional*): see [`~pan_hf.checkpoints.results_folder`].
        cache (`str` or `Path`, *optional*): a folder or a Hub id.
        world ([`PanModel`], at an effort): for which the entries of a copy have to hold.

    Raises:
        ValueError: no name, or what is on the Hub is damaged, of another format, or holds for another model.
        HubError: the Hub did not give it.
    """
    if cache is None:
        return results_folder(run, output) / CACHE
    if cache == "":
        raise ValueError("`cache` must be a folder or a Hub id, got ''; leave it out for the run's own.")
    published = hub_id(cache, "dataset")
    if published is None:
        return Path(cache)
    home = results_folder(run, output)
    there = on_disk(cache, "dataset", only=[OUTCOMES, PLANNED])
    place = home / COPIES / f"{published.id.replace('/', '--')}@{there.name[:12]}"
    if not place.exists():
        with whole_folder(place) as folder:
            if not place.exists():  # no other process has made it meanwhile
                _import(world, there, folder)
    return place


def export_cache(
    run: str | Path,
    target: str | Path,
    *,
    cache: str | Path | None = None,
    effort: Any = None,
    output: str | Path | None = None,
) -> Path:
    """Writes the entries that hold for a run's model as parquet files into a folder, whole or not at all.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, or a checkpoint.
        target (`str` or `Path`): the folder to write.
        cache (`str` or `Path`, *optional*), output (`str` or `Path`, *optional*): see `cache_folder`.
        effort (*optional*): what the imagined steps may have spent, as of `precompute`.

    Returns:
        `Path`: `target`.

    Raises:
        ValueError: nothing in the cache holds for the model.
        FileNotFoundError: no cache, or no checkpoint.
    """
    world = at_effort(load(run)[0], effort)
    place = cache_folder(run, cache, output, world)
    found = SimulationCache(place, create=False, on_stale="keep")
    spaces = [(number, scope) for number, _, scope in found.store.spaces() if scope.holds_for(world)]
    if not spaces:
        raise ValueError(
            f"Nothing in {place} holds for the model of {run} at effort {effort!r}, so there is nothing to export; "
            "give the effort that it was filled with, and the model."
        )
    number, scope = spaces[0]
    metadata = {"pan": json.dumps(_ABOUT | vars(scope))}
    with whole_folder(target) as folder:
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
    return Path(target)


def import_cache(
    run: str | Path,
    source: str | Path,
    *,
    cache: str | Path | None = None,
    effort: Any = None,
    output: str | Path | None = None,
) -> int:
    """Adds the entries of a folder that `export_cache` wrote, or of a Hub, to a run's cache; `pan precompute`,
    `pan plan`, or a look-up after `SimulationCache.back_up`, then values them.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, or a checkpoint.
        source (`str` or `Path`): the folder, or a Hub id.
        cache (`str` or `Path`, *optional*), output (`str` or `Path`, *optional*): see `cache_folder`.
        effort (*optional*): what the imagined steps may have spent, as of `precompute`.

    Returns:
        `int`: entries that were not there before.

    Raises:
        ValueError: the files are damaged, of another format, or hold for another model.
        FileNotFoundError: no such files, or no checkpoint.
        HubError: the Hub did not give them.
    """
    world = at_effort(load(run)[0], effort)
    there = on_disk(source, "dataset", only=[OUTCOMES, PLANNED])
    return _import(world, there, cache_folder(run, cache, output, world))


def _import(world: Any, source: Path, place: Path) -> int:
    paths = [source / name for name in (OUTCOMES, PLANNED)]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{source} lacks {missing}; a folder that `pan cache --export` wrote has them.")
    _check_files(paths, world)
    found = SimulationCache(place, on_stale="keep")
    bound = found.bind(world, found.any_critic)
    added = 0
    actors = getattr(world.config, "actors", None)
    for rows in _batches(paths[0], bound.keys, len(actors or [""])):
        recorded = Recorded(world, bound.keys, bound.critic)
        nodes = _file(recorded, [row["state"] for row in rows] + [row["next"] for row in rows])
        for row in rows:
            start, end, reward = nodes[row["state"]], nodes[row["next"]], row["reward"]
            told = reward[0] if actors is None else np.array(reward, np.float32).tobytes()
            recorded.outcomes[start, row["action"], end] = OutcomeRow(
                start, row["action"], end, row["count"], told, row["continue_prob"], row["log_prob"], row["duration"]
            )
        added += found.write(world, found.any_critic, recorded, merges=True)
    if bound.keys.parts.is_discrete:  # `precompute` need not do again what is whole
        found.store.mark_expanded(bound.space, bound.keys.parts.num_choices)
    for rows in _batches(paths[1], bound.keys):
        recorded = Recorded(world, bound.keys, bound.critic)
        nodes = _file(recorded, [row["state"] for row in rows])
        tasks = {digest: found.store.task(digest, "imported") for digest in {row["task"] for row in rows}}
        found.store.write_planned(
            (node, tasks[row["task"]], row["action"], row["planned"])
            for row in rows
            for node in recorded.states[nodes[row["state"]]].nodes
        )
    found.close()
    return added


def _check_files(paths: list[Path], world: Any) -> None:
    """Raises ValueError unless exported files are whole and hold for a model."""
    abouts = []
    for path, schema in zip(paths, (_SCHEMA, _PLANNED), strict=True):
        try:
            found = pq.read_schema(path)
            abouts.append(json.loads((found.metadata or {})[b"pan"]))
        except (pa.ArrowException, OSError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged, or was not written by `pan cache --export` ({error}).") from error
        if not found.remove_metadata().equals(schema):
            raise ValueError(f"{path} has other columns than `pan cache --export` writes, {schema.names}.")
    about = abouts[0]
    if about != abouts[1] or not isinstance(about, dict) or not _ABOUT.items() <= about.items():
        raise ValueError(f"{paths[0].parent}: expected files of one cache, {_ABOUT}; got {str(abouts):.200}.")
    fields: dict[str, Any] = {item.name: about.get(item.name) for item in dataclasses.fields(Scope)}
    scope = Scope(**fields)
    if not scope.holds_for(world):
        own = scope_of(world)
        raise ValueError(
            f"{paths[0].parent} holds for other weights, for another effort, or for a vocabulary that is no ancestor "
            f"of this model's (its ledger: {scope.ledger or 'none'}, this model's: {own.ledger or 'none'}); nothing "
            "was imported."
        )


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
        nodes |= dict(zip(some, recorded.file(recorded.keys.belief(some)), strict=True))
    return nodes


def _numbers(reward: float | bytes) -> list[float]:
    return np.frombuffer(reward, np.float32).tolist() if isinstance(reward, bytes) else [reward]
