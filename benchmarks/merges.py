"""Merged tokens: how much shorter do sentences of codes get, and what does a language model make of them?

The same small language model (Qwen3, the preset `tiny`) learns sentences of codes twice for the same time, from the
same weights: with merges that `model.merge` found in the training episodes, and without. Both are judged on held-out
episodes.

    python benchmarks/merges.py            # about half an hour on two threads
    python benchmarks/merges.py --quick    # half a minute: the same path in miniature

- `tokens`: of a step (a frame's level 0 and an action; the digits of 16 vectors), on average.
- `bits`: of a step, given the one before it.
- `distortion`: of what comes back out of the tokens (of frames and vectors), root mean square, as a share of
  the range.
- `speedup`: steps of training a second, each of 32 windows, over those without merges.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf.build import build  # noqa: E402
from pan_hf.checkpoints import (
    load,  # noqa: E402
    save_checkpoint,  # noqa: E402
)
from pan_hf.data.record import record as record_episodes  # noqa: E402
from pan_hf.data.trajectories import load_trajectories  # noqa: E402
from pan_hf.quickstart import RECORDING  # noqa: E402
from pan_hf.reporting.results import Record, mean_stderr, record, write_records  # noqa: E402
from pan_hf.reporting.tables import select, table  # noqa: E402
from pan_hf.training.growth_callback import in_last_episodes  # noqa: E402
from pan_hf.training.merge import merge  # noqa: E402
from pan_hf.training.merge_callback import held_out_bits  # noqa: E402
from pan_hf.training.pipeline import train  # noqa: E402
from pan_hf.training.token_windows import SentenceWindows  # noqa: E402

RESULTS = common.VOCABULARY / "merges.json"
JUDGED = 512  # held-out windows
FOUND_IN = 4096  # sentences that merges are looked for in
DOORKEY, PUSHT = "MiniGrid-DoorKey-8x8-v0", "gym_pusht/PushT-v0"
# what is written out: environment, parts, steps of a sentence, merged tokens at most of a part
TASKS = {
    "frames": (DOORKEY, ("camera", "action"), 1, 16),
    "positions": (PUSHT, ("agent_pos",), 16, 128),
    "actions": (PUSHT, ("action",), 16, 128),
}
PUSHES = ["random:0.2", "pan_hf.envs.pusht:pusht_pusher:0.8"]


def main(
    run: Annotated[Path, typer.Option(help="Folder for recordings and models.")] = Path("runs/merges"),
    frames: Annotated[int, typer.Option(help="Recorded of each environment.")] = 10_000,
    seconds: Annotated[float, typer.Option(help="Training time of each model.")] = 60.0,
    seeds: Annotated[int, typer.Option(help="Of windows and their order.")] = 3,
    threads: Annotated[int, typer.Option(help="OpenMP threads.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Half a minute: the same path in miniature.")] = False,
    output: Annotated[Path, typer.Option(help="Where the records and the plot go.")] = RESULTS,
) -> list[Record]:
    """Records, trains, measures, writes records and a plot, and prints a table."""
    torch.set_num_threads(threads)
    most = max(count for *_, count in TASKS.values())
    backbone, senses, sentences, judged = "tiny", {"seconds": 60.0}, {"seconds": seconds}, JUDGED
    if quick:
        frames, seeds, most, judged, backbone = 800, 1, 16, 64, "debug"
        senses, sentences = {"overrides": {"senses": {"max_steps": 5}}}, {"max_steps": 2}
    prepare(run, frames, backbone, senses)
    found = {task: [measure(run, task, seed, sentences, most, judged) for seed in range(seeds)] for task in TASKS}
    records = []
    for task, results in found.items():
        for model in results[0]:
            for metric in results[0][model]:
                value, stderr = mean_stderr([result[model][metric] for result in results])
                where = {"environment": f"{task}, {TASKS[task][0]}", "split": "test", "seeds": list(range(seeds))}
                records.append(record(metric, value, stderr=stderr, model=model, **where))
    write_records(output, records)
    plot(records, output.with_suffix(".png"))
    print(table(records, rows=["environment", "metric"], columns="model"))
    return records


def prepare(run: Path, frames: int, backbone: str, lasting: dict) -> None:
    """Recordings, and models of which only the senses are trained, as long as `lasting` tells, where there are any."""
    settings = {"frames": frames, "seed": common.SEED, "workers": 2, "progress": False}
    record_episodes([DOORKEY], run / DOORKEY / "data", **(RECORDING | settings))
    pixels = {"env_args": {"obs_type": "pixels_agent_pos"}, "rename": {"pixels": "camera"}, "keep": ["agent_pos"]}
    record_episodes([PUSHT], run / PUSHT / "data", policy=PUSHES, **(pixels | settings))
    skip = ("backbone", "dynamics", "latent_head", "joint", "switch", "reinforce")
    train(run / DOORKEY, backbone=backbone, seed=common.SEED, progress=False, skip=skip, **lasting)
    if not (run / PUSHT / "checkpoint").exists():
        save_checkpoint(run / PUSHT / "checkpoint", *build(load_trajectories(run / PUSHT / "data", "train"), backbone))


def measure(run: Path, task: str, seed: int, lasting: dict, most: int, judged: int) -> dict[str, dict[str, float]]:
    """One seed of one task, with at most `most` merges and without, trained as long as `lasting` tells."""
    environment, parts, chunk, count = TASKS[task]
    data, results = run / environment / "data", {}
    starts = {"without merges": run / environment, "with merges": run / task / "merged"}
    if not starts["with merges"].exists():
        model, processor = load(run / environment)
        find_merges(model, load_trajectories(data, "train"), parts[0], chunk, min(count, most))
        save_checkpoint(starts["with merges"] / "checkpoint", model, processor)
    for name, start in starts.items():
        folder = run / task / f"{name.replace(' ', '_')}_{seed}"
        sentences = {"parts": list(parts), "chunk": chunk, "count": 0}
        merge(folder, start, data, seed=seed, progress=False, **sentences, **lasting)
        log = json.loads((folder / "stages" / "sentences" / "log.json").read_text())
        trained = next(entry for entry in log if "train_runtime" in entry)
        results[name] = held_out(folder, data, parts, chunk, judged) | {
            "speedup": trained["step"] / trained["train_runtime"]
        }
        print(task, seed, name, results[name], flush=True)
    slow = results["without merges"]["speedup"]
    for found in results.values():
        found["speedup"] /= slow
    return results


def find_merges(model, trajectories, part: str, chunk: int, count: int) -> None:
    """Merges of a part, found in the first nine tenths of the episodes and judged by the rest."""
    rows = trajectories.windows(chunk)
    is_held_out = in_last_episodes(trajectories, rows).numpy()
    values = trajectories.actions if part == "action" else trajectories.observations[part]
    shuffled = (np.random.default_rng(common.SEED).permutation(rows[which]) for which in (~is_held_out, is_held_out))
    seen, judged = (torch.from_numpy(values[some[:FOUND_IN, None] + np.arange(chunk)]) for some in shuffled)
    for growth in model.merge(part, seen, chunk, held_out=judged, count=count):
        print(growth, flush=True)


@torch.no_grad()
def held_out(folder: Path, data: Path, parts: tuple[str, ...], chunk: int, judged: int) -> dict[str, float]:
    """What a finished model makes of held-out episodes."""
    model, processor = load(folder)
    trajectories = load_trajectories(data, "test")
    windows, part = SentenceWindows(model, processor, trajectories, parts, chunk), parts[0]
    chosen = np.random.default_rng(common.SEED).permutation(len(windows))[:judged]
    merges = processor.tokenizer.merges
    found = held_out_bits(model, windows, chosen, merges)
    values = trajectories.actions if part == "action" else trajectories.observations[part]
    rows = windows.rows[chosen][:, None] + np.arange(chunk)
    values = torch.from_numpy(values[rows])
    ids = model.to_token_ids(part, values, chunk)
    back = [merges.split(sentence) for sentence in merges.merge(ids.flatten(0, 1).tolist())]
    back = model.from_token_ids(part, torch.tensor(back).view(ids.shape), chunk)
    if model.config.coded_parts()[part].kind == "image":
        error = (back - model.senses[part].to_float(values)) / 2
    else:
        described = model.config.coded_parts()[part]
        error = (back - values) / (torch.tensor(described.high) - torch.tensor(described.low))
    return {"tokens": found.tokens, "bits": found.bits, "distortion": float(error.square().mean().sqrt())}


def plot(records: list[Record], path: Path) -> None:
    """Tokens and bits of each task, with merges and without."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for axis, metric, title in zip(axes, ("tokens", "bits"), ("tokens a step", "held-out bits a step"), strict=True):
        for number, (model, colour) in enumerate((("without merges", "#94a3b8"), ("with merges", "#3b82f6"))):
            found = select(records, metric=metric, model=model)
            places = np.arange(len(found)) + 0.4 * number - 0.2
            errors = [entry.stderr or 0 for entry in found]
            axis.bar(places, [entry.value for entry in found], 0.36, yerr=errors, color=colour, label=model)
            for place, entry in zip(places, found, strict=True):
                axis.text(place, entry.value, f"{entry.value:.3g}", ha="center", va="bottom", fontsize=8)
        axis.set_xticks(range(len(TASKS)), [f"{task}\n{TASKS[task][0].split('/')[-1]}" for task in TASKS], fontsize=8)
        axis.set_title(title)
        axis.margins(y=0.15)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
