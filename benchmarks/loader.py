"""What windows of a recording cost: seconds a batch beside a training step, and memory by where frames are held.

Each stage's own data set and sampler, its batch size and a whole training step (forward, backward, AdamW) on the
quickstart's shapes: 64x64 RGB, 14 words, 7 actions, the tiny backbone. Loading and training are timed in turn. Memory
is what a fresh process holds for itself while it draws windows: pages that are mapped from a file are not in it,
because the operating system may drop them.

    python benchmarks/loader.py            # about three minutes on one thread
    python benchmarks/loader.py --quick    # seconds: the same path in miniature
"""

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf.build import build  # noqa: E402
from pan_hf.data.episodes import (  # noqa: E402
    FORMAT,
    VERSION,
    Episode,
    episode_path,
    episode_schema,
    episode_table,
    write_info,
    write_table,
)
from pan_hf.data.trajectories import load_trajectories  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.tables import select, table  # noqa: E402
from pan_hf.training import align, pretrain_senses  # noqa: E402
from pan_hf.training.arguments import Stage, arguments  # noqa: E402
from pan_hf.training.sampling import WeightedRows  # noqa: E402
from pan_hf.training.windows import Windows  # noqa: E402

STAGES = {"senses": pretrain_senses.STAGE, "dynamics": align.DYNAMICS, "joint": align.JOINT}
HELD = {"in memory": 2**40, "mapped": 0}  # bytes up to which frames are held in memory
TARGET = 0.1
STEPS_OF_AN_EPISODE = 99
FEATURES = {
    "observation.camera": {"kind": "image", "shape": [64, 64, 3], "unit": "uint8 RGB"},
    "observation.mission": {"kind": "text", "every_step": False},
    "action": {"kind": "discrete", "n": 7},
}


def main(
    threads: Annotated[int, typer.Option(help="OpenMP threads.")] = 1,
    frames: Annotated[int, typer.Option(help="Frames of the recording whose memory is measured.")] = 40_000,
    seconds: Annotated[float, typer.Option(help="Time for each measurement, at the least.")] = 15.0,
    repeats: Annotated[int, typer.Option(help="Rounds of each measurement, at the least.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="The debug backbone and 200 frames, in seconds.")] = False,
    output: Annotated[Path, typer.Option(help="Where the records go.")] = common.RESULTS / "loader.json",
) -> list[Record]:
    """Measures, writes the records and prints them as tables."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        few = write_recording(Path(folder) / "few", 200 if quick else 2000)
        many = write_recording(Path(folder) / "many", 200 if quick else frames)
        records = measure_shares(few, "debug" if quick else "tiny", seconds, repeats)
        records += [entry for held in HELD for entry in measure_memory(many, held, threads)]
    write_records(output, records)
    print("\nTime of a batch and of a training step\n")
    print(table(select(records, metric=["batch_ms", "step_ms", "loader_share"]), ["split", "model"], "metric"))
    print("\nMemory of a process that draws windows, beyond what its imports take\n")
    print(table(select(records, metric=["frames_gib", "private_gib"]), "split", "metric"))
    return records


def write_recording(root: Path, frames: int) -> Path:
    """A recording of coloured cells, a few of which change at each step."""
    generator, schema = np.random.default_rng(common.SEED), episode_schema(FEATURES)
    for index in range(max(1, frames // (STEPS_OF_AN_EPISODE + 1))):
        cells, shown = generator.integers(0, 256, (8, 8, 3), np.uint8), []
        for _ in range(STEPS_OF_AN_EPISODE + 1):
            cells[tuple(generator.integers(0, 8, 2))] = generator.integers(0, 256, 3)
            shown.append(cells.repeat(8, 0).repeat(8, 1))
        episode = Episode(environment="cells", index=index, seed=index, task="reach the green square")
        episode.observations = {"camera": shown, "mission": [episode.task] * len(shown)}
        episode.actions = generator.integers(0, 7, STEPS_OF_AN_EPISODE).tolist()
        episode.rewards, episode.is_done = [0.0] * STEPS_OF_AN_EPISODE, True
        write_table(episode_path(root, "train", index), episode_table(episode, FEATURES, schema, fps=10))
    write_info(root, {"format": FORMAT, "version": VERSION, "features": FEATURES})
    return root


# -------------------------------------------------------------------------------------------------------------- time


def measure_shares(root: Path, backbone: str, seconds: float, repeats: int) -> list[Record]:
    """For each stage and place of the frames, time of a batch and of a step, and the one over the other."""
    records = []
    for held, in_memory in HELD.items():
        trajectories = load_trajectories(root, "train", in_memory)
        model, processor = build(trajectories, backbone, seed=common.SEED)
        for name, stage in STAGES.items():
            batches, train = make_stage(stage, model, processor, trajectories)
            given: list[dict] = []
            load = lambda batches=batches, given=given: given.append(next(batches))  # noqa: E731
            runs = {"batch": load, "step": lambda train=train, given=given: train(given.pop())}
            times = common.side_by_side(runs, seconds / len(HELD), repeats)
            shares = [one / other for one, other in zip(times["batch"], times["step"], strict=True)]
            for metric, values in (("batch_ms", times["batch"]), ("step_ms", times["step"]), ("loader_share", shares)):
                scaled = [1000 * value for value in values] if metric.endswith("_ms") else values
                records.append(_record(metric, *common.median_stderr(scaled), name, held))
    return [*records, _record("loader_share_target", TARGET, None, "all", "all")]


def _record(metric: str, value: float, stderr: float | None, model: str, split: str) -> Record:
    where = {"environment": common.ENVIRONMENT, "split": split, "seeds": [common.SEED]}
    return record(metric, value, stderr=stderr, model=model, **where)


def make_stage(stage: Stage, model, processor, trajectories) -> tuple[Iterator[dict], Callable[[dict], None]]:
    """A stage's batches, as its Trainer draws them, and its training step."""
    args = arguments(stage, output_dir="unused")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.match(stage.trains, name) is not None)
    dataset, weights = stage.make_data(model.eval(), processor, trajectories, args)
    rows = WeightedRows(weights, common.SEED)
    loader = DataLoader(dataset, args.per_device_train_batch_size, sampler=rows, collate_fn=_as_it_is)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-4)
    model.set_attn_implementation("eager")
    model.train()

    def train(batch: dict) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = model(objective=stage.objective, **batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return iter(loader), train


def _as_it_is(batch: dict) -> dict:
    return batch


# ------------------------------------------------------------------------------------------------------------- memory


def measure_memory(root: Path, held: str, threads: int) -> list[Record]:
    """GiB of frames drawn from, and of memory that a process needs for itself to do so."""
    drawn, private = common.in_fresh_process(draw_windows, root, HELD[held], threads=threads)
    return [_record("frames_gib", drawn, None, "all", held), _record("private_gib", private, None, "all", held)]


def draw_windows(root: Path, in_memory: int, batches: int = 200) -> tuple[float, float]:
    """Loads a recording and draws windows all over it."""
    before = _private_gib()
    trajectories = load_trajectories(root, "train", in_memory)
    camera = torch.from_numpy(trajectories.observations["camera"])
    windows = Windows(trajectories, {"camera": camera}, torch.from_numpy(trajectories.actions), 2, False, set())
    rows = iter(WeightedRows(torch.ones(len(windows)), common.SEED))
    for _ in range(batches):
        windows.__getitems__([next(rows) for _ in range(32)])
    return camera.numel() / 2**30, _private_gib() - before


def _private_gib() -> float:
    """Memory that is in no file; Linux only."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 2**20


if __name__ == "__main__":
    typer.run(main)
