"""`pan cache`: what a run's simulation cache holds, for how much of the recording it has an answer, what is stale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pan_hf.agents.cache import Answer, SimulationCache
from pan_hf.agents.critics import as_critic
from pan_hf.agents.world import at_effort
from pan_hf.arguments import a_seed, checked, least
from pan_hf.checkpoints import find_checkpoint, find_recording, load
from pan_hf.data.trajectories import load_trajectories
from pan_hf.evaluation.acting import recorded_facts, reward_critic
from pan_hf.evaluation.cache_dataset import cache_folder
from pan_hf.evaluation.cache_picture import write_cache_picture, write_growth_picture
from pan_hf.evaluation.precompute import recorded_states

_POINTS = 21  # of a curve


@checked(samples=least(0), check=least(0), seed=a_seed)
def describe_cache(
    run: str | Path,
    data_root: str | Path | None = None,
    *,
    cache: str | Path | None = None,
    split: str = "test",
    environments: Sequence[str] | None = None,
    samples: int = 200,
    check: int = 0,
    reward_threshold: float | None = None,
    critic=None,
    effort=None,
    seed: int = 0,
    pictures: str | Path | None = None,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """What a cache holds, and what it is good for.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, or a checkpoint.
        data_root (`str` or `Path`, *optional*): the recording; by default the one the checkpoint was trained on.
        cache (`str` or `Path`, *optional*): folder of the cache, or its Hub id; `cache/` in the run by default.
        split (`str`): "test" or "train": of whose states the coverage is measured.
        environments (`Sequence[str]`, *optional*): ids of the recording, whose states those are; all by default.
        samples (`int`): how many recorded states of each are looked up for it; 0: none.
        check (`int`): cached outcomes that are imagined anew, to see how many differ now; 0: none.
        reward_threshold (`float`, *optional*), critic (*optional*), effort (*optional*): as of `precompute`.
        seed (`int`): of the choice of states.
        pictures (`str` or `Path`, *optional*): folder for pictures of the graph of abstract states, and of how the
            coverage grew.
        output (`str` or `Path`, *optional*): the run folder, where `run` is a checkpoint of elsewhere.

    Returns:
        `dict`: `entries`, `states`, `bytes`; `stale_entries`, those of other weights, and `stale`, their share;
        `hit_rate` and `hits` by level, of all look-ups so far; `coverage`, the share of recorded states that are
        answered, and `covered` by level; `growth`, the same by how many of the `entries` there were, oldest first;
        `differing`, the share of checked outcomes that differ; `picture`, the path of the graph's.

    Raises:
        ValueError: the cache is damaged, or an argument is of another type or out of range.
        FileNotFoundError: no cache, no checkpoint or no recording.
    """
    checkpoint = find_checkpoint(run, adapters=True)
    model, processor = load(checkpoint)
    world = at_effort(model, effort)
    place = cache_folder(run, cache, output, world)
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
        answers: list[Answer | None] = []
        for id in environments or sorted(set(trajectories.environments)):
            wanted = reward_critic(facts.get(id), reward_threshold) if critic is None else as_critic(critic)
            for reader, rows in recorded_states(world, processor, trajectories, id, samples, seed):
                beliefs = (reader.perceive(reader.batch(row, 1)) for row in rows[:, None])
                answers += [found.lookup(world, belief, wanted, counts=False) for belief in beliefs]
        told |= coverage_growth(found, answers)
        if pictures is not None:
            told["picture"] = write_cache_picture(found, pictures)
            write_growth_picture(told["growth"], pictures)
    if check and valid:
        told["differing"] = differing_share(world, found, valid[0], check, seed)
    found.close()
    return told


def coverage_growth(cache: SimulationCache, answers: Sequence[Answer | None]) -> dict[str, Any]:
    """Which share of look-ups is answered, and how it came to that as entries did: an answer counts from the first
    entry of the state, or abstract state, that it is of; from the beginning where those were evicted.

    Returns:
        `dict`: `coverage`; `covered` by level; `growth`: `entries`, `_POINTS` counts of them, and by level the shares
        that were answered with so many.
    """
    ids = np.array([row[0] for row in cache.store.query("SELECT id FROM outcomes ORDER BY id")], np.int64)
    came: dict[str, list[int]] = {}
    for answer in filter(None, answers):
        first = cache.store.query(
            "SELECT coalesce(MIN(id), 0) FROM outcomes "
            "WHERE state=? OR state IN (SELECT state FROM members WHERE node=?)",
            (answer.node, answer.node),
        )[0][0]
        came.setdefault(answer.level, []).append(int(np.searchsorted(ids, first)) + 1)
    counts = np.unique(np.linspace(0, len(ids), _POINTS).round().astype(int))
    total = max(1, len(answers))
    shares = {
        level: (np.searchsorted(np.sort(places), counts, side="right") / total).tolist()
        for level, places in came.items()
    }
    return {
        "coverage": sum(map(len, came.values())) / total,
        "covered": {level: len(places) / total for level, places in came.items()},
        "growth": {"entries": counts.tolist(), "levels": shares},
    }


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
        half = sum(shares[len(shares) // 2] for shares in told["growth"]["levels"].values())
        lines.append(f"with the older half of the entries it were {half:.0%}")
    if "differing" in told:
        lines.append(f"imagined anew, {told['differing']:.1%} of the checked outcomes differ")
    return "\n".join(lines)
