"""Does a vocabulary that has grown or merged keep what the quickstart reached?

Starts from a finished quickstart, changes its vocabulary in three ways, and evaluates and plans with each result as
the quickstart does, on the same held-out episodes and unseen seeds.

    make quickstart && python benchmarks/kept.py     # a quarter of an hour on two quiet cores
    python benchmarks/kept.py --quick                # a miniature of both, in seconds

- `quickstart`: as it was.
- `grown`: a hundred words, an action, codes for rooms with balls and boxes (which the quickstart never shows), merged
  tokens, all without a gradient.
- `grown in training`: `pan grow` on a recording of the quickstart's worlds and of such rooms.
- `merged before dynamics`: trained anew on the same recording within the same time, with a stage in which the language
  model learns sentences of codes and merges them.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf.checkpoints import (
    load,  # noqa: E402
    save_checkpoint,  # noqa: E402
)
from pan_hf.data.record import record as record_episodes  # noqa: E402
from pan_hf.data.trajectories import load_trajectories  # noqa: E402
from pan_hf.evaluation.evaluate import evaluate  # noqa: E402
from pan_hf.quickstart import DOOR_KEY, EMPTY, FOUR_ROOMS, MINIATURE, RECORDING, Budget, plan_each  # noqa: E402
from pan_hf.reporting.results import Record, read_records, write_records  # noqa: E402
from pan_hf.reporting.tables import select, table  # noqa: E402
from pan_hf.training.grow import grow  # noqa: E402
from pan_hf.training.pipeline import train  # noqa: E402
from pan_hf.training.stage import TRAINING_DATA  # noqa: E402

WORLDS = [EMPTY, FOUR_ROOMS, DOOR_KEY]
ROOMS = "pan_hf/Scattered-8x8-v0"
RESULTS = common.VOCABULARY / "kept.json"
SENTENCES = 40.0  # seconds of the quickstart's training that go to sentences where codes are merged
METRICS = ["exact_state", "exact_frame", "psnr", "reconstruction_psnr", "bits_per_observation"]
PLANNED = ["success", "success_low", "episodes"]
NEW_WORLD_SEED = 1000  # none of the quickstart's episodes is recorded again


def main(
    run: Annotated[Path, typer.Option(help="A finished quickstart; it is left as it is.")] = Path("runs/quickstart"),
    into: Annotated[Path, typer.Option(help="Folder for what it becomes.")] = Path("runs/kept"),
    grow_steps: Annotated[int, typer.Option(help="Steps of growth in training.")] = 150,
    seed: Annotated[int, typer.Option(help="Seed of training.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Everything in miniature.")] = False,
    output: Annotated[Path, typer.Option(help="Where the records go.")] = RESULTS,
) -> list[Record]:
    """Grows, merges, evaluates and plans; writes records and prints a table."""
    budget, frames, sentences = (MINIATURE, 400, 2.0) if quick else (Budget(), 10_000, SENTENCES)
    settings = RECORDING | {"workers": 2, "progress": False, "seed": NEW_WORLD_SEED}
    mixed = into / "mixed" / "data"
    record_episodes([*WORLDS, ROOMS], mixed, frames=frames, **settings)

    model = grown(run, mixed)
    trained_on = {TRAINING_DATA: (run / "checkpoint" / TRAINING_DATA).read_text()}
    save_checkpoint(into / "grown" / "checkpoint", model, model.processor, trained_on)
    grow(into / "trained", run, mixed, max_steps=2 if quick else grow_steps, seed=seed, progress=False)
    stages = {"sentences": {"seconds": sentences}}
    seconds = budget.seconds - sentences
    train(into / "merged", run / "data", seconds=seconds, overrides=stages, seed=seed, progress=False)

    records = reached(run, "quickstart")
    folders = {"grown": "grown", "grown in training": "trained", "merged before dynamics": "merged"}
    for name, folder in folders.items():
        evaluate(into / folder, run / "data", num_windows=budget.windows, skip_trained=True, progress=False)
        plan_each(into / folder, run / "data", budget, progress=False)
        records += reached(into / folder, name)
    write_records(output, records)
    print(table(records, rows=["environment", "metric", "horizon"], columns="model"))
    return records


def grown(run: Path, mixed: Path):
    """The quickstart's model with new words, an action, codes for what it never saw, and merged tokens."""
    model, processor = load(run)
    model.grow("text", names=[f"concept {number}" for number in range(100)])
    model.grow("action.0", names=["throw"])
    shown = load_trajectories(mixed, "train")
    rows = np.random.default_rng(common.SEED).permutation(shown.windows(0, ROOMS))[:64]
    camera = shown.observations["camera"][rows][:, None].transpose(0, 1, 3, 4, 2)
    mission = shown.observations["mission"][rows].tolist()
    seen = processor(observation={"camera": camera, "mission": mission})["observation"]
    model.learn(seen)
    model.merge("camera", seen["camera"])
    return model


def reached(run: Path, model: str) -> list[Record]:
    """What a run measured of itself, under another model's name."""
    found = select(read_records(run / "evaluation.json"), model="pan", metric=METRICS, horizon=[None, 1, 10])
    found += [entry for entry in read_records(run / "planning.json") if entry.metric in PLANNED and "/" in entry.model]
    return [replace(entry, model=model) for entry in found]


if __name__ == "__main__":
    typer.run(main)
