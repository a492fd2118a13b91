"""Ways to act with one world model, side by side: planning, a policy, and a cache before either.

All rows are of the same run, environment and seeds, which the recording did not use:

- `search`: the planner alone (graph search where actions are discrete and there is a goal, iCEM elsewhere), and
  beside it `random_policy`
- `cache`: the simulation cache alone; where it knows nothing, an action is drawn at random
- `cache+search`, `cache+policy`: the cache, and the planner or the policy where it knows nothing
- `cache+policy+search`: the cache, the policy where it is sure, and else the planner
- `policy`: learned in imagination or from a cache, see `pan imagine` and `pan distil`; only where the run has one

The cache is filled by `pan precompute` from training episodes alone and stays as it is: what is searched for one seed
helps no other. Playing, and most metrics, are those of `pan plan`, see `pan_hf/evaluation/control.py`. Besides:

| metric | what it is |
|---|---|
| `recorded_steps` | steps of the real world that the row has learned from |
| `imagined_before` | steps imagined before the first episode: entries of the cache, or what the policy learned from |
| `lost_to_search` | episodes that fail here and not by search alone; `seeds` are theirs |
| `recorded_layouts` | share of the seeds whose world begins as one of the training episodes' worlds does, the agent \
aside: its grid, where it has one (MiniGrid), or else what is seen first |

    make quickstart && python benchmarks/agents.py --effort focused --planner 'graph?actions=[0,1,2,3,5]'
    python benchmarks/agents.py --env pan_hf/FourRooms-8x8-v0 --episodes 100 --seed 10000 --seed 20000
    python benchmarks/agents.py --row search --row cache    # these anew; the others stay as they were measured

A cache that is not there is filled first: `agents/` of a run has one for each environment. With several runs (other
training seeds of one recipe) or seeds, records are means over them.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # also from a checkout that is not installed
from pan_hf.agents.cache import SimulationCache  # noqa: E402
from pan_hf.agents.policy import DESCRIPTION  # noqa: E402
from pan_hf.agents.world import parse_effort  # noqa: E402
from pan_hf.checkpoints import find_checkpoint, find_recording  # noqa: E402
from pan_hf.data.episodes import episode_files, read_columns, read_info  # noqa: E402
from pan_hf.envs.environment import make_recorded_environment  # noqa: E402
from pan_hf.evaluation.acting import recorded_facts, reward_critic  # noqa: E402
from pan_hf.evaluation.control import RANDOM, plan  # noqa: E402
from pan_hf.evaluation.evaluate import across_seeds  # noqa: E402
from pan_hf.evaluation.precompute import precompute  # noqa: E402
from pan_hf.features import action_parts  # noqa: E402
from pan_hf.files import read_json  # noqa: E402
from pan_hf.quickstart import DOOR_KEY  # noqa: E402
from pan_hf.reporting.results import Record, read_records, record, write_records  # noqa: E402
from pan_hf.reporting.tables import select, table  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "agents" / "agents.json"
SEARCH, CACHED, LOST = "search", "cache", "lost_to_search"
ROWS = (SEARCH, CACHED, "cache+search", "policy", "cache+policy", "cache+policy+search")
AT_RANDOM = "random_shooting?num_samples=1&horizon=1"  # any kind of action, masks and all
SHOWN = ("success", "steps", "simulated_per_decision", "median_decision_ms", "seconds_per_decision", LOST)


@dataclass
class Setting:
    """One run in one environment.

    Args:
        planner: of the rows that search; None for the one that fits.
        play: arguments of [`plan`] that all rows share.
        fill: arguments of [`precompute`].
    """

    run: Path
    environment: str
    planner: str | None
    play: dict[str, Any]
    fill: dict[str, Any]

    def __post_init__(self):
        self.root = find_recording(find_checkpoint(self.run), None)
        info, facts = read_info(self.root), recorded_facts(self.root)
        entries = {entry["id"]: entry for entry in info["environments"]}
        if self.environment not in entries:
            raise ValueError(f"{self.environment} is not in the recording, which has {sorted(entries)}; name one.")
        self.entry = entries[self.environment]
        self.recorded_steps = sum(each.num_steps or 0 for each in facts.values())
        is_discrete = all(part.is_discrete for part in action_parts(info["features"]).values())
        has_goal = math.isfinite(reward_critic(facts.get(self.environment)).threshold)
        self.fills_with = None if is_discrete and has_goal else self.planner or "icem"
        self.planner = self.planner or ("graph" if self.fills_with is None else "icem")

    @property
    def cache(self) -> Path:
        return self.run / "agents" / self.environment.replace("/", "--")

    @property
    def policy(self) -> Path:
        return self.run / "policy"


def main(
    run: Annotated[list[Path] | None, typer.Option(help="Finished runs, each trained with another seed.")] = None,
    env: Annotated[str, typer.Option(help="Id of a recorded environment.")] = DOOR_KEY,
    episodes: Annotated[int, typer.Option(help="Of each row, for each run and seed.")] = 50,
    seed: Annotated[list[int], typer.Option(help="Of the first episode; the next one has one more.")] = [10_000],  # noqa: B006
    planner: Annotated[str | None, typer.Option(help="By default the one that fits the action and the goal.")] = None,
    effort: Annotated[str | None, typer.Option(help="As in pan plan --effort.")] = None,
    success: Annotated[str | None, typer.Option(help="As in pan plan --success.")] = None,
    row: Annotated[list[str] | None, typer.Option(help=f"Some of {', '.join(ROWS)}; all by default.")] = None,
    frames: Annotated[int, typer.Option(help="As in pan precompute, where there is no cache yet.")] = 2000,
    depth: Annotated[int, typer.Option(help="As in pan precompute.")] = 8,
    fill_seconds: Annotated[float | None, typer.Option(help="Filling the cache ends after so long.")] = None,
    episode_seconds: Annotated[float, typer.Option(help="An episode that takes longer is a failure.")] = 60.0,
    output: Annotated[Path, typer.Option(help="JSON file of the records.")] = RESULTS,
) -> list[Record]:
    """Measures rows, writes them beside those that were measured before, and prints a table."""
    rows = row or list(ROWS)
    if unknown := sorted(set(rows) - set(ROWS)):
        raise ValueError(f"There are the rows {ROWS}, got {unknown}.")
    spent = None if effort is None else parse_effort(effort)
    play = {"episodes": episodes, "effort": spent, "success": success}
    play |= {"time_limit": None, "episode_time_limit": episode_seconds}
    fill = {"frames": frames, "depth": depth, "time_limit": fill_seconds, "effort": spent}
    settings = [
        Setting(each, env, planner, play | {"seed": first}, fill)
        for each, first in itertools.product(run or [Path("runs/quickstart")], seed)
    ]
    measured = read_records(output) if output.exists() else []
    for name in rows:
        found = [measure(setting, name) for setting in settings]
        new = across_seeds(found) if len(found) > 1 else found[0]
        models = {entry.model for entry in new}
        others = [entry for entry in measured if entry.environment != env]
        here = [entry for entry in measured if entry.environment == env and entry.model not in models] + new
        here = [entry for entry in here if entry.metric != LOST]
        measured = [*others, *here, *lost_to_search(here)]
        write_records(output, measured)
    shown = select(measured, environment=env, metric=SHOWN)
    print(table(shown, "model", "metric"))
    return measured


def measure(setting: Setting, row: str) -> list[Record]:
    """The records of one row, and of the random policy beside search; none where the run lacks the policy of a row."""
    if "policy" in row and not (setting.policy / DESCRIPTION).exists():
        print(f"{row}: no policy in {setting.policy}; `pan imagine --run {setting.run}` trains one", flush=True)
        return []
    if row.startswith(CACHED) and not setting.cache.exists():
        fill = setting.fill | {"environments": [setting.environment]}
        precompute(setting.run, setting.root, cache=setting.cache, planner=setting.fills_with, **fill)
    records = [_named(entry, row) for entry in played(setting, row)]
    where = {"environment": setting.environment, "split": "unseen_seeds", "seeds": records[0].seeds}
    learned = {"recorded_steps": setting.recorded_steps, "imagined_before": imagined_before(setting, row)}
    if row.startswith(CACHED):
        learned["recorded_layouts"] = recorded_layouts(setting, records[0].seeds)
    return [*records, *(record(metric, value, model=row, **where) for metric, value in learned.items())]


def _named(entry: Record, row: str) -> Record:
    return entry if entry.model == RANDOM else replace(entry, model=row)


def played(setting: Setting, row: str) -> list[Record]:
    """What `pan plan` says of a row."""
    planners = {CACHED: AT_RANDOM, "policy": f"policy?folder={setting.policy}"}
    *first, last = row.split("+")
    planner = planners.get(last, setting.planner)
    known: dict[str, Any] = {"cache": setting.cache, "write_back": False} if row.startswith(CACHED) else {}
    known |= {"policy": setting.policy} if "policy" in first else {}
    with tempfile.TemporaryDirectory() as folder:
        where: dict[str, Any] = {"environments": [setting.environment], "output": folder, "baseline": row == SEARCH}
        return plan(setting.run, setting.root, planners=[planner], **where, **known, **setting.play)


def imagined_before(setting: Setting, row: str) -> int:
    """Steps imagined before the first episode, in all."""
    steps = 0
    if row.startswith(CACHED):
        cache = SimulationCache(setting.cache, create=False)
        steps += cache.store.counters().get("entries", 0)
        cache.close()
    if "policy" in row:
        steps += read_json(setting.policy / DESCRIPTION)["about"].get("steps", 0)
    return steps


def lost_to_search(records: Sequence[Record]) -> list[Record]:
    """How many seeds each row has lost that search has won, in one environment; nothing where they have not played the
    same ones, or several runs have played them."""
    won, lost = ({entry.model: entry for entry in select(records, metric=name)} for name in ("success", "failures"))
    found = []
    for model in [model for model in lost if SEARCH in lost and model != SEARCH]:
        both = [lost[model], lost[SEARCH]]
        if won[model].seeds != won[SEARCH].seeds or any(len(each.seeds) != each.value for each in both):
            continue
        seeds = sorted(set(lost[model].seeds) - set(lost[SEARCH].seeds))
        where: dict = {"environment": lost[model].environment, "split": lost[model].split, "seeds": seeds}
        found.append(record(LOST, len(seeds), model=model, **where))
    return found


def recorded_layouts(setting: Setting, seeds: Iterable[int]) -> float:
    """Share of the seeds whose world begins as that of a training episode does."""
    env = make_recorded_environment(setting.entry)
    try:
        recorded = {_layout(env, seed) for seed in training_seeds(setting)}
        return float(np.mean([_layout(env, seed) in recorded for seed in seeds]))
    finally:
        env.close()


def _layout(env: Any, seed: int) -> bytes:
    observation, _ = env.reset(seed=seed)
    grid = getattr(env.unwrapped, "grid", None)
    if hasattr(grid, "encode"):
        return grid.encode().tobytes()
    return b"".join(np.asarray(value).tobytes() for _, value in sorted(observation.items()))


def training_seeds(setting: Setting) -> set[int]:
    """Of the training episodes in the environment."""
    tables = [read_columns(path, ["environment", "seed"]) for path in episode_files(setting.root, "train").values()]
    return {int(each["seed"][0].as_py()) for each in tables if each["environment"][0].as_py() == setting.environment}


if __name__ == "__main__":
    typer.run(main)
