"""A kind of thing a model was never shown: how much of it is learned at once, without a gradient, and in training?

Two worlds of `pan_hf/Scattered-8x8-v0`: with balls and boxes, and with keys as well. One model is trained on the
first, a reference on the second, with the same budget. Then the first one is shown frames of the second.

    python benchmarks/novelty.py            # about a quarter of an hour on two quiet cores
    python benchmarks/novelty.py --quick    # a minute: the same path in miniature

*New* places are those whose patch of pixels occurs nowhere in the first world's recording; *old* ones all others. All
figures are of held-out episodes of the world with keys (`psnr_old_world`: of the world without).

- `without growth`: the model as it was trained.
- `grown, n observations`: after `model.learn` on n frames, at most 32 codes; no gradient is taken.
- `grown in training`: after `pan grow` on the recording with keys.
- `trained with it`: the reference.

`imagined_psnr_new` is of the frame imagined one step ahead. `next_state_new` is the share of new places whose codes
are all predicted right one step ahead; each model is judged by its own codes, so one that takes a key for a ball may
be right about it.
"""

import copy
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
from pan_hf.checkpoints import load  # noqa: E402
from pan_hf.data.record import record as record_episodes  # noqa: E402
from pan_hf.data.trajectories import load_trajectories  # noqa: E402
from pan_hf.quickstart import RECORDING  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.tables import table  # noqa: E402
from pan_hf.training.grow import grow  # noqa: E402
from pan_hf.training.pipeline import train  # noqa: E402

WORLD = "pan_hf/Scattered-8x8-v0"
KINDS = {"old": ("ball", "box"), "new": ("ball", "box", "key")}
OBSERVATIONS = (1, 2, 4, 8, 16, 32, 64, 128)
MAX_NEW = 32
RESULTS = common.VOCABULARY / "novelty.json"
JUDGED = 512  # held-out transitions


def main(
    run: Annotated[Path, typer.Option(help="Folder for recordings and models.")] = Path("runs/novelty"),
    frames: Annotated[int, typer.Option(help="Recorded of each world.")] = 20_000,
    seconds: Annotated[float, typer.Option(help="Training time of each of the two models.")] = 240.0,
    grow_steps: Annotated[int, typer.Option(help="Steps of growth in training.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    threads: Annotated[int, typer.Option(help="OpenMP threads.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="A minute: the same path in miniature.")] = False,
    output: Annotated[Path, typer.Option(help="Where the records and the plot go.")] = RESULTS,
) -> list[Record]:
    """Records, trains, grows, measures, writes records and a plot, and prints a table."""
    torch.set_num_threads(threads)
    observations, judged, training = OBSERVATIONS, JUDGED, {"seconds": seconds}
    if quick:
        frames, grow_steps, observations, judged = 400, 2, (1, 8), 64
        stages = ("senses", "backbone", "dynamics", "joint")
        training = {"backbone": "debug", "overrides": {stage: {"max_steps": 2} for stage in stages}}
    for name, kinds in KINDS.items():
        settings = RECORDING | {"env_args": RECORDING["env_args"] | {"kinds": kinds}, "policy": ["random"]}
        settings = {key: value for key, value in settings.items() if key != "start"}
        record_episodes([WORLD], run / name / "data", frames=frames, seed=seed, workers=2, progress=False, **settings)
        train(run / name, seed=seed, progress=False, skip=("latent_head", "switch", "reinforce"), **training)
    grow(run / "grown", run / "old", run / "new" / "data", max_steps=grow_steps, seed=seed, progress=False)
    judge = Judge(run, judged)
    results = {"without growth": judge(load(run / "old")[0]), "trained with it": judge(load(run / "new")[0])}
    for count in observations:
        results[f"grown, {count} observations"] = judge(learned(run, judge, count, seed))
    results["grown in training"] = judge(load(run / "grown")[0])
    records = [
        record(metric, value, model=model, environment=WORLD, split="test", seeds=[seed])
        for model, found in results.items()
        for metric, value in found.items()
    ]
    write_records(output, records)
    plot(results, observations, output.with_suffix(".png"))
    print(table(records, rows="model", columns="metric"))
    print(json.dumps(json.loads((run / "grown" / "growth.json").read_text()), indent=1))
    return records


def learned(run: Path, judge: "Judge", count: int, seed: int):
    """The first world's model after seeing `count` training frames of the second."""
    model, processor = load(run / "old")
    shown = load_trajectories(run / "new" / "data", "train")
    rows = np.random.default_rng(seed).permutation(len(shown))[:count]  # more observations hold the fewer
    model.learn(judge.observation(model, processor, shown, rows[:, None]), max_new=MAX_NEW)
    return model


class Judge:
    """Measures models on held-out episodes, at places that are new and at places that are not."""

    def __init__(self, run: Path, judged: int):
        known = load_trajectories(run / "old" / "data", "train").observations["camera"]
        self.tests = {name: load_trajectories(run / name / "data", "test") for name in KINDS}
        model, _ = load(run / "old")
        self.size = model.config.senses["camera"].patch_size
        distinct = np.unique(self.patches(known).reshape(-1, 3 * self.size**2), axis=0)
        self.known = {patch.tobytes() for patch in distinct}
        starts = self.tests["new"].windows(1)
        self.rows = np.random.default_rng(common.SEED).permutation(starts)[:judged]

    def patches(self, frames: np.ndarray) -> np.ndarray:
        """Frames `(N, 3, h, w)` -> `(N, places, 3 * size * size)`."""
        count, channels, height, width = frames.shape
        rows, columns = height // self.size, width // self.size
        cut = frames.reshape(count, channels, rows, self.size, columns, self.size).transpose(0, 2, 4, 1, 3, 5)
        return np.ascontiguousarray(cut.reshape(count, rows * columns, -1))

    def is_new(self, frames: np.ndarray) -> torch.Tensor:
        """`(N, places)`: patches that the first world never showed."""
        patches = self.patches(frames)
        return torch.tensor([[patch.tobytes() not in self.known for patch in frame] for frame in patches])

    def observation(self, model, processor, trajectories, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Frames `rows` `(N, T)` as the processor gives them."""
        camera = trajectories.observations["camera"][rows].transpose(0, 1, 3, 4, 2)
        mission = trajectories.observations["mission"][rows[:, 0]].tolist()
        return processor(observation={"camera": camera, "mission": mission})["observation"]

    @torch.no_grad()
    def __call__(self, model) -> dict[str, float]:
        """PSNR through the codes at new and old places, next-state accuracy at both, and codes that live."""
        trajectories = self.tests["new"]
        rows = self.rows[:, None] + np.arange(2)
        seen = self.observation(model, model.processor, trajectories, rows)
        state = model.encode(seen)
        after = copy.copy(state).map(lambda codes: codes[:, 1])
        frames = trajectories.observations["camera"][rows[:, 1]]
        is_new = self.is_new(frames)
        rebuilt = model.decode(state, "camera", latents=False)[:, 1].numpy()
        error = (self.patches(rebuilt).astype(float) - self.patches(frames)) / 255
        error = torch.from_numpy(error).square().mean(-1)
        belief = model.perceive({"camera": seen["camera"][:, :1], "mission": seen["mission"]})
        actions = torch.from_numpy(trajectories.actions[rows[:, :1]])
        imagined = model.simulate(belief, actions, temperature=0.0)
        pairs = zip(imagined.codes["camera"], after.codes["camera"], strict=True)
        painted = self.patches(imagined.decode("camera", latents=False)[:, 0].numpy()).astype(float)
        imagined_error = torch.from_numpy((painted - self.patches(frames)) / 255).square().mean(-1)
        right = torch.stack([guess[:, 0] == true for guess, true in pairs]).all(0)
        old = self.observation(model, model.processor, self.tests["old"], self.old_rows()[:, None])
        back = model.decode(model.encode(old), "camera", latents=False)
        old_error = ((back.float() - old["camera"].float()) / 255).square().mean()
        return {
            "psnr_new": psnr(error[is_new].mean()),
            "psnr_old": psnr(error[~is_new].mean()),
            "psnr_old_world": psnr(old_error),
            "imagined_psnr_new": psnr(imagined_error[is_new].mean()),
            "next_state_new": float(right[is_new].float().mean()),
            "next_state_old": float(right[~is_new].float().mean()),
            "live_codes": float(sum(model.table.active_codes("camera", level).sum() for level in range(2))),
            "new_places": float(is_new.float().mean()),
        }

    def old_rows(self) -> np.ndarray:
        """Held-out frames of the first world."""
        return np.random.default_rng(common.SEED).permutation(len(self.tests["old"]))[: len(self.rows)]


def psnr(error: torch.Tensor) -> float:
    """Of a mean squared error, at most 100 dB."""
    return float(-10 * error.clamp(min=1e-10).log10())


def plot(results: dict[str, dict[str, float]], observations: tuple[int, ...], path: Path) -> None:
    """PSNR and next-state accuracy at new places over observations seen."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = {"without growth": "#9a8c7c", "grown in training": "#16a34a", "trained with it": "#8b5cf6"}
    panels = {
        "psnr_new": "PSNR at new places, dB",
        "imagined_psnr_new": "the same, imagined one step ahead",
        "next_state_new": "next state right at new places",
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(13, 3.4), constrained_layout=True)
    for axis, (metric, title) in zip(axes, panels.items(), strict=True):
        values = [results[f"grown, {count} observations"][metric] for count in observations]
        axis.plot(observations, values, "o-", color="#3b82f6", label="grown, no gradient")
        for model, colour in lines.items():
            axis.axhline(results[model][metric], color=colour, linestyle="--", label=model)
        axis.set(title=title, xlabel="observations seen", xscale="log")
        axis.set_xticks(observations, [str(count) for count in observations])
        axis.minorticks_off()
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
