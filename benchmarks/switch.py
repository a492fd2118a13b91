"""What the learned switch saves, and what it loses.

Takes finished runs (several: seeds of the same run), and on their held-out episodes sets quality against compute:

- `all`: every block, everywhere, latents too. `focused`: all codes, where something is likely to change. `coarsest`:
  the coarsest codes there. What anybody could fix by hand.
- `learned at <price>`: the switch, told the task and a price of a whole step's compute.
- `random at <price>`: the same blocks, dealt out to the rows at random, at as many places, but any: equal cost.
- `oracle at <price>`: for each row the best choice in hindsight, at the places that did change.

Distortion is 1 where a step is about as bad as standing still, see `imagination_pan.distortion`; compute is a
share of a whole step's; PSNR is that of the pixels that move. Then the agent plans with each, and steps a second are
timed side by side on one thread.

    make quickstart && python benchmarks/switch.py                             # some ten minutes on one thread
    python benchmarks/switch.py --run runs/quickstart --run runs/quickstart1   # over seeds
    python benchmarks/switch.py --quick                                        # a miniature, in seconds
"""

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf.agents.world import parse_effort  # noqa: E402
from pan_hf.checkpoints import trained_seeds  # noqa: E402
from pan_hf.data.windows import read_rows  # noqa: E402
from pan_hf.evaluation.control import plan  # noqa: E402
from pan_hf.evaluation.evaluate import across_seeds, load_for_evaluation  # noqa: E402
from pan_hf.metrics import FORMULAS, changed_pixels, moving_error  # noqa: E402
from pan_hf.modeling.effort_pan import (
    LEAST_CHANGE,
    BlockPlan,
    Effort,
    SwitchPlan,
    as_effort,
    block_plan,
    changed_tokens,
)  # noqa: E402
from pan_hf.modeling.imagination_pan import candidates, distortion, split_window  # noqa: E402
from pan_hf.modeling.simulation_pan import Simulator  # noqa: E402
from pan_hf.quickstart import DOOR_KEY, PLANNER  # noqa: E402
from pan_hf.reporting.figures import OTHER_COLOURS, SERIES_COLOURS, write_figure  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.tables import select, table  # noqa: E402
from pan_hf.training.windows import Windows  # noqa: E402

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "switch"
FIXED = ("all", "focused", "coarsest")
PRICES = (0.01, 0.1, 1.0)
TASKS = ("pixels", "moving", "planning")
PLANNED = ("all", "focused", "coarsest", "price=0.1,task=planning")
BATCHES = (1, 64)
HORIZON = 8  # steps in one timed call
PARTS = ("quality", "speed", "planning")


def main(
    run: Annotated[list[Path] | None, typer.Option(help="Finished runs, each trained with another seed.")] = None,
    part: Annotated[list[str] | None, typer.Option(help="quality, speed, planning; all by default.")] = None,
    windows: Annotated[int, typer.Option(help="Held-out transitions.")] = 512,
    episodes: Annotated[int, typer.Option(help="Planned for each effort.")] = 30,
    plan_seconds: Annotated[float, typer.Option(help="Planning stops after the episode at hand.")] = 60.0,
    seconds: Annotated[float, typer.Option(help="Time for each measurement of speed.")] = 6.0,
    threads: Annotated[int, typer.Option(help="OpenMP threads.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A quickstart in miniature, made here.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the records and the plot.")] = RESULTS,
) -> list[Record]:
    """Measures each run, pools them, writes `<part>.json` and a plot, and prints tables."""
    torch.set_num_threads(threads)
    runs, parts = run or [Path("runs/quickstart")], part or list(PARTS)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"There are the parts {PARTS}, got {unknown}.")
    if quick:
        runs, windows, episodes, plan_seconds, seconds = [common.miniature(output / "run")], 16, 1, 0.1, 0.0
    found = []
    for name in parts:
        measured = [measure(each, name, windows, episodes, plan_seconds, seconds) for each in runs]
        records = across_seeds(measured) if len(measured) > 1 else measured[0]
        write_records(output / f"{name}.json", records)
        if name == "quality":
            cost_plot(records, output / "quality.png")
        show(name, records)
        found += records
    return found


def cost_plot(records: Sequence[Record], path: str | os.PathLike) -> Path:
    """Quality against compute, a panel a task, written in the format of `path`'s ending.

    Args:
        records: metrics "distortion" and "compute" by model and task (in `environment`); models "<name> at <price>"
            are points of one line, "<name>".

    Raises:
        ValueError: no model has both.
    """
    both = {(entry.environment, entry.model) for entry in select(records, metric="compute")}
    both &= {(entry.environment, entry.model) for entry in select(records, metric="distortion")}
    tasks = list(dict.fromkeys(entry.environment for entry in records if (entry.environment, entry.model) in both))
    if not tasks:
        raise ValueError(f"none of {len(records)} records is of a model with a distortion and a compute.")
    figure = Figure(figsize=(4.6 * len(tasks), 3.6), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        lines: dict[str, list[tuple[Record, Record]]] = {}
        for entry in select(records, metric="compute", environment=task):
            lost = select(records, metric="distortion", environment=task, model=entry.model)
            if lost:
                lines.setdefault(entry.model.split(" at ")[0], []).append((entry, lost[0]))
        for (name, points), colour in zip(lines.items(), (*OTHER_COLOURS, *SERIES_COLOURS.values()), strict=False):
            points = sorted(points, key=lambda pair: pair[0].value)
            x, y = (np.array([pair[side].value for pair in points]) for side in (0, 1))
            dx, dy = (np.array([pair[side].stderr or 0.0 for pair in points]) for side in (0, 1))
            axes.errorbar(100 * x, y, dy, 100 * dx, "o-", color=colour, label=name, markersize=4, linewidth=1.4)
        axes.set_title(task, fontsize=9)
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("compute (% of a whole step)")
        axes.set_ylabel("distortion (1: about as standing still)")
        axes.spines[["top", "right"]].set_visible(False)
    return write_figure(figure, path)


def measure(run: Path, part: str, windows: int, episodes: int, plan_seconds: float, seconds: float) -> list[Record]:
    """The records of one part and run."""
    (seed,) = trained_seeds(run)
    if part == "planning":
        return [each for effort in PLANNED for each in planned(run, DOOR_KEY, effort, episodes, plan_seconds, seed)]
    model, processor, trajectories, _ = load_for_evaluation(run, run / "data", skip_trained=True)
    if part == "speed":
        return speed(model, processor, trajectories, seconds, seed)
    given = (model, processor, trajectories)
    return [each for task in TASKS for each in against_compute(*given, task, windows, seed)]


def _beginnings(model, processor, trajectories, count: int, steps: int = 1):
    """Held-out windows, as [`split_window`] gives them."""
    tensors, actions = read_rows(trajectories, processor)
    length = model.config.context_steps - 1 + steps
    held_out = Windows(trajectories, tensors, actions, length, False, set(model.config.prefix_senses))
    chosen = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(common.SEED))[:count]
    batch = held_out.__getitems__(chosen.tolist())
    return split_window(model, batch["observation"], batch["action"], batch["reward"], batch["done"])


# --------------------------------------------------------------------------------------------- quality against compute


class _Random(BlockPlan):
    """Looks at as many places as it would, but at any."""

    def select(self, model, change):
        generator = torch.Generator().manual_seed(common.SEED)
        order = {name: torch.rand(logits.shape, generator=generator).argsort(1) for name, logits in change.items()}
        return super().select(model, {name: logits.gather(1, order[name]) for name, logits in change.items()})


class _Oracle(BlockPlan):
    """Looks at the places that will change."""

    def __init__(self, names, now, after):
        super().__init__(names, LEAST_CHANGE)
        self.now, self.after = now, after

    def select(self, model, change):
        senses = model.config.senses
        will = {name: changed_tokens(senses[name], self.now[name], self.after[name]) for name in change}
        return super().select(model, {name: torch.where(found, 99.0, -99.0) for name, found in will.items()})


@torch.no_grad()
def against_compute(model, processor, trajectories, task: str, count: int, seed: int) -> list[Record]:
    """Distortion and compute of one step, by who decides."""
    beginning, actions, later = _beginnings(model, processor, trajectories, count)
    following = {name: [level[:, 0] for level in levels] for name, levels in later.state.codes.items()}

    def spend(plan: BlockPlan) -> tuple[torch.Tensor, torch.Tensor]:
        """By row its distortion, compute, squared error and number of moving pixels `(N, 4)`; what was chosen."""
        futures = Simulator(model).rollout(beginning, actions, plan, temperature=0.0, seed=0)
        lost, paid = distortion(model, futures, later, task)[:, 0], futures.cost.compute[:, 0]
        return torch.cat([torch.stack([lost, paid], 1), _moving(model, futures, later)], 1), futures.switch[:, 0]

    found = {name: spend(block_plan(as_effort(name, model), model))[0] for name in FIXED}
    learned = {price: spend(SwitchPlan(Effort(price=price, task=task))) for price in PRICES}
    chosen = {price: _sets(model, used) for price, (_, used) in learned.items()}
    sets = list(dict.fromkeys([*candidates(model), *itertools.chain.from_iterable(chosen.values())]))
    at_random = {blocks: spend(_Random(blocks, LEAST_CHANGE))[0] for blocks in sets}
    knowing = [spend(_Oracle(blocks, beginning.codes, following))[0] for blocks in sets]
    knowing = torch.stack(knowing)
    dealing = torch.randperm(count, generator=torch.Generator().manual_seed(common.SEED)).tolist()
    for price in PRICES:
        found[f"learned at {price:g}"] = learned[price][0]
        dealt = [at_random[chosen[price][other]][row] for row, other in enumerate(dealing)]
        found[f"random at {price:g}"] = torch.stack(dealt)
        best = (knowing[..., 0] + price * knowing[..., 1]).argmin(0)
        found[f"oracle at {price:g}"] = knowing[best, torch.arange(count)]
    records = []
    for name, values in found.items():
        where = {"model": name, "environment": task, "split": "test", "seeds": [seed], "horizon": 1}
        for metric, column in (("distortion", values[:, 0]), ("compute", values[:, 1])):
            stderr = float(column.std()) / len(column) ** 0.5
            records.append(record(metric, float(column.mean()), stderr=stderr, **where))
        if bool(values[:, 3].any()):
            records.append(record("psnr_moving", float(FORMULAS["psnr"](values[:, 2:].sum(0).numpy())), **where))
    return records


def _moving(model, futures, later) -> torch.Tensor:
    """Squared error and number of moving pixels of the first step, all image senses together, `(N, 2)`."""
    total = torch.zeros(len(futures), 2)
    for name, sense in model.config.senses.items():
        if sense.kind == "image":
            before, after, found = (each[:, 0] for each in (later.before[name], later.observation[name],
                                                            futures.decode(name)))  # fmt: skip
            total += moving_error(found, after, changed_pixels(before, after, sense.patch_size))
    return total


def _sets(model, used: torch.Tensor) -> list[tuple[str, ...]]:
    """Names of the blocks that each row predicts, of `(N, K)` bool; a switch may also choose what no candidate is, as
    latents without codes."""
    names = [block.name for block in model.blocks]
    return [tuple(name for name, is_used in zip(names, row, strict=True) if is_used) for row in used.tolist()]


# -------------------------------------------------------------------------------------------------- speed and planning


def speed(model, processor, trajectories, seconds: float, seed: int) -> list[Record]:
    """Steps a second of `simulate` from held-out states, each effort in turn, and how much faster than `all`."""
    records = []
    efforts = {name: name for name in FIXED} | {"learned at 0.1": Effort(price=0.1, task="planning")}
    for batch in BATCHES:
        beginning, actions, _ = _beginnings(model, processor, trajectories, batch, HORIZON)

        def imagine(effort, beginning=beginning, actions=actions):
            return lambda: model.simulate(beginning, actions, temperature=0.0, seed=0, effort=effort)

        runs = {name: imagine(effort) for name, effort in efforts.items()} | {"no effort": imagine(None)}
        times = common.side_by_side(runs, seconds, repeats=4)
        where = {"environment": "held_out_states", "split": f"batch {batch}", "seeds": [seed]}
        for name, taken in times.items():
            rates = [len(actions) * HORIZON / each for each in taken]
            ratios = [slow / fast for slow, fast in zip(times["all"], taken, strict=True)]
            for metric, values in (("steps_per_second", rates), ("speedup_over_all", ratios)):
                value, stderr = common.median_stderr(values)
                records.append(record(metric, value, stderr=stderr, model=name, **where))
    return records


def planned(run: Path, environment: str, effort: str, episodes: int, plan_seconds: float, seed: int) -> list[Record]:
    """Success of graph search at one effort, and what a simulated step cost."""
    records = plan(
        run,
        run / "data",
        planners=[PLANNER],
        environments=[environment],
        episodes=episodes,
        effort=parse_effort(effort),
        time_limit=plan_seconds,
        episode_time_limit=plan_seconds / 2,
        output=run / "effort",
        progress=False,
    )
    kept = ("success", "success_low", "episodes", "seconds_per_decision", "compute_per_simulated_step")
    name = effort if effort in FIXED else "learned at 0.1"
    return [
        record(each.metric, each.value, stderr=each.stderr, model=name, environment=environment,
               split="unseen_seeds", seeds=[seed])
        for each in records
        if each.metric in kept and each.model != "random_policy"
    ]  # fmt: skip


def show(part: str, records: list[Record]) -> None:
    """Prints the records of a part as a Markdown table."""
    titles = {
        "quality": ("Distortion and compute of one step", ["environment", "metric"]),
        "speed": ("Steps a second", ["split", "metric"]),
        "planning": ("Planning", ["environment", "metric"]),
    }
    title, columns = titles[part]
    print(f"\n{title}\n\n{table(records, 'model', columns)}")


if __name__ == "__main__":
    typer.run(main)
