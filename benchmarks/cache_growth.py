"""How far a simulation cache reaches as it fills, and what growth of the vocabulary leaves of it.

    make quickstart && python benchmarks/cache_growth.py     # minutes on two cores
    python benchmarks/cache_growth.py --quick                # the same on a miniature, in seconds

*Filled*: every action is imagined from states of training episodes, and from what is met so, up to a number of
entries. `answered_share` is of states of held-out episodes those for which an action is known, by how many of the
entries there were. *Grown*: the vocabulary gains a hundred words, then an action, then codes for rooms with balls and
boxes, then merged tokens. `stale_share` is of entries those that no longer hold, `differing_share` of the likeliest
outcomes those whose next state is another when they are imagined anew.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf.agents.cache import SimulationCache  # noqa: E402
from pan_hf.checkpoints import load  # noqa: E402
from pan_hf.data.record import record as record_episodes  # noqa: E402
from pan_hf.data.trajectories import load_trajectories  # noqa: E402
from pan_hf.evaluation.cache_summary import describe_cache, differing_share  # noqa: E402
from pan_hf.evaluation.precompute import precompute  # noqa: E402
from pan_hf.quickstart import DOOR_KEY, EMPTY, RECORDING  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.tables import table  # noqa: E402

ROOMS = "pan_hf/Scattered-8x8-v0"
RESULTS = common.VOCABULARY.parent / "cache" / "growth.json"
POINTS = (0.1, 0.25, 0.5, 1.0)  # shares of the entries


def main(
    run: Annotated[Path, typer.Option(help="A finished quickstart; it is left as it is.")] = Path("runs/quickstart"),
    entries: Annotated[int, typer.Option(help="Entries of each world's cache.")] = 3000,
    samples: Annotated[int, typer.Option(help="Held-out states that are looked up in each world.")] = 200,
    checks: Annotated[int, typer.Option(help="Outcomes that are imagined anew after each growth.")] = 400,
    quick: Annotated[bool, typer.Option("--quick", help="A miniature, made where the run is absent.")] = False,
    output: Annotated[Path, typer.Option(help="Where the records go.")] = RESULTS,
) -> list[Record]:
    """Fills, grows and measures; writes the records and prints them as tables."""
    if quick:
        run, entries, samples, checks = common.miniature(run), 60, 4, 10
    records: list[Record] = []
    with TemporaryDirectory() as folder:
        for world in (EMPTY, DOOR_KEY):
            place = Path(folder) / world.replace("/", "-")
            where = {"cache": place, "environments": [world]}
            precompute(run, run / "data", max_entries=entries, frames=500, progress=not quick, **where)
            told = describe_cache(run, run / "data", samples=samples, **where)
            records += filled(world, told)
        records += grown(run, place, checks, Path(folder) / "rooms")
    write_records(output, records)
    print(table(records, rows=["environment", "metric"], columns="model"))
    return records


def filled(world: str, told: dict) -> list[Record]:
    """Size, and the share that is answered by how many entries there were."""
    growth, where = told["growth"], {"environment": world, "split": "test", "seeds": [common.SEED]}
    records = []
    for share in POINTS:
        at = round(share * (len(growth["entries"]) - 1))
        model, size = f"{share:.0%} of the entries", told["bytes"] * growth["entries"][at] / told["entries"] / 2**20
        levels = {f"answered_at_{level}_share": shares[at] for level, shares in growth["levels"].items()}
        numbers = {
            "entries": growth["entries"][at],
            "size_mib": size,
            "answered_share": sum(levels.values()),
            **levels,
        }
        records += [record(metric, value, model=model, **where) for metric, value in numbers.items()]
    return records


def grown(run: Path, place: Path, checks: int, rooms: Path) -> list[Record]:
    """Stale and differing entries of a cache, after one growth upon the other."""
    model, processor = load(run)
    record_episodes([ROOMS], rooms, frames=400, **(RECORDING | {"seed": 1000, "progress": False}))
    shown = load_trajectories(rooms, "train")
    rows = np.random.default_rng(common.SEED).permutation(shown.windows(0, ROOMS))[:64]
    camera = shown.observations["camera"][rows][:, None].transpose(0, 1, 3, 4, 2)
    mission = shown.observations["mission"][rows].tolist()
    seen = processor(observation={"camera": camera, "mission": mission})["observation"]
    growths = {
        "as it was": lambda: None,
        "100 words": lambda: model.grow("text", names=[f"concept {number}" for number in range(100)]),
        "an action": lambda: model.grow("action.0", names=["throw"]),
        "codes of new things": lambda: model.learn(seen),
        "merged tokens": lambda: model.merge("camera", seen["camera"]),
    }
    records, where = [], {"environment": DOOR_KEY, "split": "test", "seeds": [common.SEED]}
    for name, grow in growths.items():
        grow()
        cache = SimulationCache(place, create=False, on_stale="keep")
        valid = [number for number, _, scope in cache.store.spaces() if scope.holds_for(model)]
        records.append(record("stale_share", 0.0 if valid else 1.0, model=name, **where))
        if valid:
            share = differing_share(model, cache, valid[0], checks, common.SEED)
            error = (share * (1 - share) / checks) ** 0.5
            records.append(record("differing_share", share, stderr=error, model=name, **where))
        cache.close()
    return records


if __name__ == "__main__":
    typer.run(main)
