"""`pan quickstart`: the whole way once, from nothing to a report: record, train, evaluate, plan, show.

The default world is MiniGrid at 8x8 in full view: an empty room, four rooms, and a locked door with its key, mixed;
64x64 RGB and the mission's text. Everything lands in one run folder, and running it again goes on where it stopped.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pan_hf.reporting.timing import stage_timer

EMPTY, FOUR_ROOMS, DOOR_KEY = "MiniGrid-Empty-8x8-v0", "pan_hf/FourRooms-8x8-v0", "MiniGrid-DoorKey-8x8-v0"
RECORDING: dict = {
    "policy": ["random:0.6", "pan_hf.envs.minigrid:minigrid_expert?epsilon=0.3:0.4"],
    "start": "pan_hf.envs.minigrid:minigrid_random_state",
    "env_args": {"highlight": False},
    "wrappers": ["minigrid.wrappers:RGBImgObsWrapper?tile_size=8"],
    "keep": ["image", "mission"],
    "rename": {"image": "camera"},
    "max_episode_steps": 30,
}
PLANNER = "graph?actions=[0,1,2,3,5]"  # actions worth trying: not drop, not done
EFFORT = "focused"  # all codes where something is likely to change: whole steps find no other plan, in more time
MUON = {"optim": "muon"}  # benchmarks/optimizers.py tells why
OVERRIDES = {"senses": MUON, "dynamics": MUON}


@dataclass(frozen=True)
class Budget:
    """How much of everything: the full quickstart by default, `MINIATURE` for the tests.

    Args:
        frames: recorded, all environments together.
        seconds: of training, all stages together.
        windows: evaluated for each environment.
        episodes: planned in each environment, by name.
        plan_seconds: of planning, in each environment.
        cache_seconds: at most, of filling a simulation cache for the first one.
    """

    frames: int = 40_000
    seconds: float = 460.0
    windows: int = 96
    episodes: tuple[tuple[str, int], ...] = ((EMPTY, 100), (DOOR_KEY, 20))
    plan_seconds: float = 50.0
    cache_seconds: float = 30.0


FULL = Budget()
MINIATURE = Budget(frames=600, seconds=6.0, windows=4, episodes=((EMPTY, 2),), plan_seconds=5.0, cache_seconds=3.0)


def quickstart(
    run: str | Path = "runs/quickstart",
    budget: Budget | None = None,
    backbone: str = "tiny",
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """The whole way once: record, train, evaluate, plan, fill a cache, report (11 minutes on 2 cores).

    Args:
        run: folder that holds everything afterwards: `data/`, `checkpoint/`, `evaluation.json`, `planning.json`,
            `timing.json`, `cache/`, `report.html`.
        budget ([`Budget`], *optional*): how much of everything.
        backbone (`str`): see [`pan_hf.training.pipeline.train`].
        seed (`int`): of the recording and of training.
        workers (`int`): processes that record.
        progress (`bool`): show progress bars.

    Returns:
        the path of `report.html`.

    Raises:
        ValueError: no time, or an unknown backbone. Nothing has been recorded then.
    """
    from pan_hf.build import check_backbone
    from pan_hf.data.record import record
    from pan_hf.evaluation.evaluate import evaluate
    from pan_hf.modeling.validation_pan import real
    from pan_hf.publishing.card import write_card
    from pan_hf.reporting.report import write_report
    from pan_hf.training.pipeline import train

    run, budget = Path(run), budget or Budget()
    real("seconds", budget.seconds, 0, above=True)
    check_backbone(backbone)
    environments = [EMPTY, FOUR_ROOMS, DOOR_KEY]
    with stage_timer(run / "timing.json", "record", seeds=[seed], resume=(run / "data").exists()):
        record(
            environments,
            run / "data",
            frames=budget.frames,
            seed=seed,
            workers=workers,
            progress=progress,
            **RECORDING,
        )
    train(run, backbone=backbone, seconds=budget.seconds, seed=seed, overrides=OVERRIDES, progress=progress)
    with stage_timer(run / "timing.json", "evaluate", seeds=[seed]):
        evaluate(run, run / "data", num_windows=budget.windows, seeds=[seed], skip_trained=True, progress=progress)
    with stage_timer(run / "timing.json", "plan", seeds=[seed]):
        plan_each(run, run / "data", budget, progress)
    with stage_timer(run / "timing.json", "cache", seeds=[seed]):
        told = plan_with_cache(run, run / "data", budget, progress)
    with stage_timer(run / "timing.json", "report", seeds=[seed]):
        write_card(run)
        report = write_report(run)
    if progress:
        print(told, file=sys.stderr)
    return report


def plan_each(run: Path, data: Path, budget: Budget, progress: bool) -> None:
    """Plans in one environment after the other and joins their records in `planning.json`."""
    from pan_hf.evaluation.control import plan
    from pan_hf.reporting.results import write_records

    records = []
    for environment, episodes in budget.episodes:
        records += plan(
            run,
            data,
            planners=[PLANNER],
            environments=[environment],
            effort=EFFORT,
            episodes=episodes,
            time_limit=budget.plan_seconds,
            episode_time_limit=budget.plan_seconds / 2,
            progress=progress,
        )
    write_records(run / "planning.json", records)


def plan_with_cache(run: Path, data: Path, budget: Budget, progress: bool) -> str:
    """Fills a cache for the first environment, and plans with it on seeds that were planned without. Returns a line
    that says what it saves."""
    from pan_hf.evaluation.control import plan
    from pan_hf.evaluation.precompute import precompute
    from pan_hf.reporting.results import read_records
    from pan_hf.reporting.tables import select

    environment = budget.episodes[0][0]
    given: dict[str, Any] = {"environments": [environment], "effort": EFFORT, "progress": progress}
    precompute(run, data, frames=50, depth=64, time_limit=budget.cache_seconds, **given)
    with tempfile.TemporaryDirectory() as folder:
        cached = plan(
            run,
            data,
            planners=[PLANNER],
            episodes=5,
            cache=run / "cache",
            write_back=False,
            baseline=False,
            time_limit=budget.cache_seconds / 2,
            output=folder,
            **given,
        )
    before = select(read_records(run / "planning.json"), model="pan/graph", environment=environment)
    values = [{entry.metric: entry.value for entry in records} for records in (cached, before)]
    after, without = (1000 * each["seconds_per_decision"] for each in values)
    return (
        f"{environment}: {after:,.0f} ms a decision with the cache in {run / 'cache'}, which knew "
        f"{values[0]['recalled']:.0%} of the actions, and {without:,.0f} ms without"
    )
