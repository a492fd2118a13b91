"""What an optimizer is worth: a stage of a finished run again, with each, in the same seconds.

All start from the checkpoint that the run had before that stage, and are evaluated on its held-out episodes: `senses`
by frames that come back through all codes, `dynamics` by states one step ahead. A seed draws the stage's batches;
optimizers take turns, so that a slow minute of the machine meets each.

    python benchmarks/optimizers.py --run runs/quickstart                  # `dynamics`, a quarter of an hour
    python benchmarks/optimizers.py --run runs/quickstart --stage senses
    python benchmarks/optimizers.py --quick                 # a quickstart in miniature, two steps each, in seconds
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf.data.trajectories import load_trajectories  # noqa: E402
from pan_hf.evaluation.evaluate import across_seeds, evaluate_model, load_for_evaluation  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.tables import table  # noqa: E402
from pan_hf.training import pretrain_senses  # noqa: E402
from pan_hf.training.align import DYNAMICS  # noqa: E402
from pan_hf.training.arguments import arguments  # noqa: E402
from pan_hf.training.stage import run  # noqa: E402

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "optimizers"
STAGES = {
    "senses": (pretrain_senses.STAGE, ("reconstruction_psnr", "reconstruction_exact_frame")),
    "dynamics": (DYNAMICS, ("exact_state", "exact_state_changed", "codes_bits")),
}


def main(
    run_folder: Annotated[Path, typer.Option("--run", help="A finished `pan train`.")] = Path("runs/quickstart"),
    stage: Annotated[str, typer.Option(help=f"One of {list(STAGES)}.")] = "dynamics",
    optim: Annotated[list[str] | None, typer.Option(help="As a stage takes them; AdamW and Muon by default.")] = None,
    seconds: Annotated[float, typer.Option(help="Training time of each.")] = 60.0,
    seeds: Annotated[int, typer.Option(help="Trainings with each.")] = 3,
    windows: Annotated[int, typer.Option(help="Held-out windows for each environment.")] = 256,
    threads: Annotated[int, typer.Option(help="OpenMP threads.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="A quickstart in miniature, made here.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the records.")] = RESULTS,
) -> list[Record]:
    """Trains, evaluates, writes `<stage>.json` and prints a table.

    Raises:
        ValueError: a stage that is not in `STAGES`.
        FileNotFoundError: the run has no such stage.
    """
    if stage not in STAGES:
        raise ValueError(f"Optimizers are compared in one of the stages {list(STAGES)}, got {stage!r}.")
    torch.set_num_threads(threads)
    lasting: dict = {"seconds": seconds}
    if quick:
        run_folder, windows, seeds, lasting = common.miniature(output / "run"), 4, 1, {"max_steps": 2}
    start, data, measured = before(run_folder, stage), run_folder / "data", []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            by_name = [
                measure(stage, start, data, Path(folder), name, seed, windows, lasting)
                for name in optim or ["adamw_torch", "muon"]
            ]
            measured.append([entry for entries in by_name for entry in entries])
    found = across_seeds(measured) if seeds > 1 else measured[0]
    write_records(output / f"{stage}.json", found)
    print(table([entry for entry in found if entry.environment == "all"], "model", "metric"))
    return found


def before(run_folder: Path, stage: str) -> Path:
    """The checkpoint that a stage of a run started from."""
    stages = run_folder / "stages"
    begun = next(stages.glob(f"*-{stage}"), None)
    if begun is None:
        raise FileNotFoundError(f"{run_folder} has no stage `{stage}`; give a finished run of `pan train` as --run.")
    earlier = sorted(path for path in stages.glob("*-*/final") if path.parent.name < begun.name)
    return earlier[-1] if earlier else stages / "0-init"


def measure(
    stage: str, start: Path, data: Path, folder: Path, optim: str, seed: int, windows: int, lasting: dict
) -> list[Record]:
    """Steps taken with one optimizer, and how good the model is after them."""
    trained, metrics = STAGES[stage]
    final = folder / f"{optim}-{seed}" / "final"
    told = {"model": str(start), "data": str(data), "output_dir": str(final.parent), "encoded": str(folder)}
    args = arguments(trained, optim=optim, seed=seed, progress=False, **told, **lasting)
    run(trained, args, load_trajectories(data, "train"))
    model, processor, trajectories, skipped = load_for_evaluation(final, data, skip_trained=True)
    settings = {"horizons": (1,), "num_windows": windows, "seed": common.SEED, "skip": skipped, "progress": False}
    where = {"model": optim, "seeds": [seed]}
    found = [
        record(entry.metric, entry.value, horizon=entry.horizon, environment=entry.environment, split="test", **where)
        for entry in evaluate_model(model, processor, trajectories, **settings)
        if entry.model == "pan" and entry.metric in metrics and entry.horizon in (1, None)
    ]
    steps = max(entry["step"] for entry in json.loads((final.parent / "log.json").read_text()))
    return [*found, record("steps", steps, environment="all", split="train", **where)]


if __name__ == "__main__":
    typer.run(main)
