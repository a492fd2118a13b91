"""How far imagination stays near the world over a hundred steps, with control of drift and without.

Takes finished runs trained with noise on the context (`--run`, several: seeds) and runs trained without (`--without`),
and imagines a hundred steps from held-out states, going on from what was imagined, from what was imagined *encoded
anew* after every step, and from what was imagined *in focus*, where something is likely to change. Beside them stands
the last frame seen.

    pan quickstart
    pan train --run runs/noise --data runs/quickstart/data --seconds 300 --set context_noise=0.2
    python benchmarks/drift.py --run runs/noise --without runs/quickstart          # MiniGrid; records long episodes
    python benchmarks/drift.py --run runs/pusht_noise --without runs/pusht --data runs/pusht_long/data --name pusht
    python benchmarks/drift.py --quick                                             # a miniature, in seconds
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf.agents.world import at_effort  # noqa: E402
from pan_hf.checkpoints import trained_seeds  # noqa: E402
from pan_hf.data.record import record as record_episodes  # noqa: E402
from pan_hf.evaluation.evaluate import across_seeds, evaluate_model, load_for_evaluation  # noqa: E402
from pan_hf.quickstart import DOOR_KEY, EMPTY, FOUR_ROOMS, RECORDING  # noqa: E402
from pan_hf.reporting.figures import horizon_plot  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.tables import select, table  # noqa: E402

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "drift"
HORIZONS = (1, 5, 10, 20, 30, 50, 75, 100)
METRICS = ("psnr", "psnr_moving", "exact_state")
WAYS = {"": (None, 0), ", encoded anew": (None, 1), ", in focus": ("focused", 0)}  # effort and `reencode`
LONG = {"policy": ["random"], "max_episode_steps": 120, "test_fraction": 1.0, "seed": 1000}


def main(
    run: Annotated[list[Path] | None, typer.Option(help="Runs with noise, each trained with another seed.")] = None,
    without: Annotated[list[Path] | None, typer.Option(help="Runs without noise.")] = None,
    data: Annotated[Path | None, typer.Option(help="Recording of long episodes; MiniGrid's is made here.")] = None,
    frames: Annotated[int, typer.Option(help="Recorded, if a recording is made here.")] = 24_000,
    windows: Annotated[int, typer.Option(help="Held-out windows for each environment and horizon.")] = 64,
    threads: Annotated[int, typer.Option(help="OpenMP threads.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A quickstart in miniature, made here.")] = False,
    name: Annotated[str, typer.Option(help="Of the files.")] = "minigrid",
    output: Annotated[Path, typer.Option(help="Folder for the records and the plot.")] = RESULTS,
) -> list[Record]:
    """Measures each run, pools seeds, writes `<name>.json` and a plot, and prints tables."""
    torch.set_num_threads(threads)
    groups, horizons, long = {"noise": run or [], "no noise": without or []}, HORIZONS, LONG
    if quick:
        groups, horizons, windows, frames = {"noise": [common.miniature(output / "run")]}, (1, 5), 4, 300
        long = LONG | {"max_episode_steps": 12}
    if not any(groups.values()):
        raise ValueError("Nothing to measure: name finished runs with --run and --without.")
    if data is None:
        data = output / "data" if quick else Path("runs/long_episodes")
        record_episodes([EMPTY, FOUR_ROOMS, DOOR_KEY], data, frames=frames, progress=not quick, **(RECORDING | long))
    found = []
    for group, runs in groups.items():
        measured = [measure(each, data, group, horizons, windows) for each in runs]
        found += across_seeds(measured) if len(measured) > 1 else sum(measured, [])
    found = _once(found)
    found += crossings(found)
    write_records(output / f"{name}.json", found)
    horizon_plot(select(found, metric=METRICS), output / f"{name}.png")
    for metric in (*METRICS, "steps_above_copy_last"):
        print(f"\n{metric}\n\n{table(select(found, metric=metric), 'model', ['environment', 'horizon'])}")
    return found


def measure(run: Path, data: Path, group: str, horizons: tuple[int, ...], windows: int) -> list[Record]:
    """The horizon curves of one run, by how it goes on."""
    model, processor, trajectories, skipped = load_for_evaluation(run, data, skip_trained=True)
    records = []
    for ending, (effort, reencode) in WAYS.items():
        measured = evaluate_model(
            at_effort(model, effort),
            processor,
            trajectories,
            horizons=horizons,
            num_windows=windows,
            seeds=trained_seeds(run),
            skip=skipped,
            reencode=reencode,
            progress=False,
        )
        names = {"pan": group + ending, "copy_last": "copy_last"}
        for entry in select(measured, metric=METRICS, model=set(names)):
            if entry.model != "copy_last" or not ending:
                records.append(replace(entry, model=names[entry.model]))
    return records


def _once(records: list[Record]) -> list[Record]:
    """Each group measured the last frame seen, on the same windows; once is enough."""
    kept = {(each.metric, each.horizon, each.model, each.environment): each for each in reversed(records)}
    return list(reversed(kept.values()))


def crossings(records: list[Record]) -> list[Record]:
    """The last horizon measured up to which moving regions are nearer than in the last frame seen."""
    found = []
    moving = select(records, metric="psnr_moving")
    for environment in dict.fromkeys(each.environment for each in moving):
        here = select(moving, environment=environment)
        last_seen = {each.horizon: each.value for each in select(here, model="copy_last")}
        for model in dict.fromkeys(each.model for each in here if each.model != "copy_last"):
            curve = sorted(select(here, model=model), key=lambda each: each.horizon)
            above = 0
            for each in curve:
                if each.value <= last_seen[each.horizon]:
                    break
                above = each.horizon
            where = {"environment": environment, "split": "test", "seeds": curve[0].seeds}
            found.append(record("steps_above_copy_last", float(above), model=model, **where))
    return found


if __name__ == "__main__":
    typer.run(main)
