"""What continuous latents add to codes, and how many steps of diffusion they take.

Takes finished runs (several: seeds of the same run), and on their held-out episodes imagines the same futures with the
most likely codes alone, with these codes and latents drawn in 1 to 8 steps, with other schedulers of diffusers, and
with latents alone: codes stay what they were at the beginning, and latents tell what has become of them. Vectors are
predicted in codes everywhere.

    python benchmarks/latents.py --run runs/pusht          # some minutes
    python benchmarks/latents.py --quick                   # a quickstart in miniature, in seconds
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf import metrics  # noqa: E402
from pan_hf.checkpoints import trained_seeds  # noqa: E402
from pan_hf.data.windows import WindowReader, choose_windows  # noqa: E402
from pan_hf.evaluation.evaluate import across_seeds, load_for_evaluation  # noqa: E402
from pan_hf.modeling.effort_pan import Effort  # noqa: E402
from pan_hf.modeling.latent_head_pan import SCHEDULERS, SenseLatents  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.tables import select, table  # noqa: E402

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "latents"
HORIZONS = (1, 10)
STEPS = (1, 2, 4, 8)
USUAL, *OTHERS = SCHEDULERS
BATCH_SIZE = 32


def main(
    run: Annotated[list[Path] | None, typer.Option(help="Finished runs, each trained with another seed.")] = None,
    data: Annotated[Path | None, typer.Option(help="Recording, if not <run>/data.")] = None,
    windows: Annotated[int, typer.Option(help="Held-out windows for each environment and horizon.")] = 400,
    threads: Annotated[int, typer.Option(help="OpenMP threads.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A quickstart in miniature, made here.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the records.")] = RESULTS,
) -> list[Record]:
    """Measures each run, pools them, writes `latents.json` and prints tables."""
    torch.set_num_threads(threads)
    runs = run or [Path("runs/pusht")]
    if quick:
        runs, windows = [common.miniature(output / "run")], 4
    measured = [measure(each, data or each / "data", windows) for each in runs]
    found = across_seeds(measured) if len(measured) > 1 else measured[0]
    write_records(output / "latents.json", found)
    for metric in ("psnr_moving", "psnr"):
        print(f"\n{metric}\n\n{table(select(found, metric=metric), 'model', ['environment', 'horizon'])}")
    return found


@torch.inference_mode()
def measure(run: Path, data: Path, windows: int) -> list[Record]:
    """PSNR of one run's imagined images, by what tells them."""
    model, processor, trajectories, skipped = load_for_evaluation(run, data, skip_trained=True)
    reader = WindowReader(trajectories, processor, model)
    records = []
    for environment in dict.fromkeys(trajectories.environments):
        chosen = choose_windows(trajectories, environment, HORIZONS, windows, common.SEED, skipped, reader.lead)
        tallies: dict[tuple[str, int], metrics.MetricAccumulator] = {}
        for horizon, rows in chosen.items():
            for part in np.array_split(rows, max(1, len(rows) // BATCH_SIZE)):
                for name, measures in imagined(reader, part, horizon).items():
                    tally = tallies.setdefault((name, horizon), metrics.MetricAccumulator(seed=common.SEED))
                    tally.update(measures, trajectories.episode[part])
        where = {"environment": environment, "split": "test", "seeds": trained_seeds(run)}
        for (name, horizon), tally in tallies.items():
            for metric in tally.metrics():
                value, stderr = tally.result(metric)
                records.append(record(metric, value, stderr=stderr, horizon=horizon, model=name, **where))
    return records


def imagined(reader: WindowReader, rows: np.ndarray, horizon: int) -> dict[str, dict]:
    """`metric: (formula, components)` of the images `horizon` steps after `rows`, by what tells them."""
    model, batch = reader.model, reader.batch(rows, horizon)
    name = next(name for name, sense in model.config.senses.items() if sense.kind == "image")
    actions, frames = batch["action"][:, reader.lead :], batch["observation"][name]
    before, after = frames[:, reader.lead], frames[:, reader.lead + horizon]
    moving = metrics.changed_pixels(before, after, model.config.senses[name].patch_size)
    belief = reader.perceive(batch)
    futures = model.simulate(belief, actions, temperature=0.0, seed=common.SEED)
    told, state = futures.conditions[name][:, -1], futures.state.map(lambda tensor: tensor[:, -1])

    def drawn(scheduler: str, steps: int) -> torch.Tensor:
        with sampling(model, scheduler, steps):
            latents = {name: SenseLatents(model, name).sample(told, state, common.SEED)}
        return model.decode(type(state)(state.codes, latents), name, latents=True)

    others = [block.name for block in model.blocks if block.sense != name and block.is_discrete]
    alone = Effort((*others, f"{name}.latents"), least_change=None)
    found = {"copy_last": before, "codes": model.decode(state, name, latents=False)}
    found |= {f"codes and latents, {steps} steps": drawn(USUAL, steps) for steps in STEPS}
    found |= {f"codes and latents, 4 steps of {kind}": drawn(kind, 4) for kind in OTHERS}
    for steps in STEPS:
        with sampling(model, USUAL, steps):
            by_latents = model.simulate(belief, actions, temperature=0.0, seed=common.SEED, effort=alone)
        found[f"latents alone, {steps} steps"] = by_latents.decode(name)[:, -1]
    return {
        model_name: {
            "psnr": metrics.psnr(image, after),
            "psnr_moving": ("psnr", metrics.moving_error(image, after, moving)),
        }
        for model_name, image in found.items()
    }


@contextmanager
def sampling(model, scheduler: str, steps: int) -> Iterator[None]:
    """Latents are drawn by so many steps of a scheduler meanwhile."""
    before = [head.settings for head in model.latent_heads.values()]
    for head in model.latent_heads.values():
        head.settings = head.settings | {"scheduler": {"_class_name": scheduler}, "num_inference_steps": steps}
    try:
        yield
    finally:
        for head, settings in zip(model.latent_heads.values(), before, strict=True):
            head.settings = settings


if __name__ == "__main__":
    typer.run(main)
