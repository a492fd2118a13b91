"""`pan`: everything from a shell. A command is a function of the library, see `pan_hf.commands`.

    pan train --stage dynamics.max_steps=5    train(..., overrides={"dynamics": {"max_steps": 5}})

What is written down here is what a shell adds: names of flags that differ from their parameter's, and `--run`, the
folder that a command reads from and writes to by default.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError
from typing import Annotated, Any

from pan_hf.commands import ORDER, app, command, library
from pan_hf.console import speak_to_users
from pan_hf.extras import extra

with extra("cli", "The command `pan`"):
    from cyclopts import App, Parameter
    from rich.console import Console

RUN = Path("runs/default")
Run = Annotated[Path, Parameter(help="folder of the run: a command finds there what it needs, and writes there.")]
Data = Annotated[
    str | None, Parameter(help="recording: a folder, or a Hub id, user/name@revision. `<run>/data` by default.")
]
Model = Annotated[str | None, Parameter(help="checkpoint: a folder, or a Hub id. `<run>/checkpoint` by default.")]
Output = Annotated[Path | None, Parameter(help="folder to write to. The run by default.")]
Effort = Annotated[
    str | None,
    Parameter(help="all, focused, coarsest, auto, blocks as camera.0,camera.1, or price=0.1,task=planning."),
]
Cache = Annotated[
    str | None, Parameter(help="simulation cache: a folder, or a Hub id, user/name. `<run>/cache` by default.")
]
Recipe = Annotated[
    str | None, Parameter(name="--config", help="YAML file of these flags, or name of a recipe. Flags override it.")
]


# ---- the commands


@command("pan_hf.quickstart:quickstart")
def quickstart(
    function: Callable,
    run: Run = Path("runs/quickstart"),
    seconds: Annotated[float | None, Parameter(help="training time, all stages together.")] = None,
    miniature: Annotated[bool, Parameter(help="seconds instead of minutes: shows that everything works.")] = False,
    **options: Any,
) -> None:
    budget = library(f"pan_hf.quickstart:{'MINIATURE' if miniature else 'FULL'}")
    budget = budget if seconds is None else replace(budget, seconds=seconds)
    print(f"Done. Open {function(run, budget, **options)}")


@command("pan_hf.data.record:record", env_ids="env", env_args="env-arg", wrappers="wrapper")
def record(
    function: Callable,
    run: Run = RUN,
    output: Output = None,
    frames: int | None = None,
    episodes: int | None = None,
    **options: Any,
) -> None:
    if frames is None and episodes is None:
        frames = 20_000
    if options.get("symbols") == ["none"]:
        options["symbols"] = []
    function(output=output or run / "data", frames=frames, episodes=episodes, **options)
    print(f"Done. The recording is in {output or run / 'data'}")
    if output is None:
        _next("train", run)


@command(
    "pan_hf.data.mirror:mirror",
    flips="flip",
    positions="position",
    directions="direction",
    swaps="swap",
    source="from",
)
def mirror(function: Callable, run: Run = RUN, output: Output = None, **options: Any) -> None:
    output = output or run / "data"
    info = function(output=output, **options)
    print(f"Done. {info['episodes']['train']} episodes to train on in {output}")


import_app = App(
    name="import",
    help="Imports a data set as a recording. Run again, it goes on after an interruption.",
    sort_key=next(ORDER),
)
app.command(import_app)


def _import(function: Callable, data: str, /, run: Run = RUN, output: Output = None, **options: Any) -> None:
    output = output or run / "data"
    info = function(data, output, **options)
    columns = [name for name in info["features"] if name.startswith("observation.")]
    senses = [name.removeprefix("observation.") for name in columns]
    counts = " and ".join(f"{number} {split}" for split, number in info["episodes"].items())
    print(f"Done. {counts} episodes, {info['frames']} frames of {', '.join(senses)} in {output}")


for _source, _module in (
    ("minari", "minari"),
    ("lerobot", "lerobot"),
    ("dataset", "hf_dataset"),
    ("videos", "videos"),
):
    command(f"pan_hf.data.importing.{_module}:import_{_source}", name=_source, group=import_app)(_import)


TRAINED: dict = {"sense_options": "sense", "config": "set", "overrides": "stage"}
TRAINED |= {"num_processes": "processes", "accelerate_config": "accelerate", "recipe": "config"}


@command("pan_hf.training.pipeline:train", **TRAINED)
def train(function: Callable, run: Run = RUN, recipe: Recipe = None, **options: Any) -> None:
    print(f"Done. The world model is in {function(run=run, **options)}")
    _next("evaluate", run)


@command("pan_hf.training.finetune:finetune", start="from")
def finetune(function: Callable, run: Run = RUN, **options: Any) -> None:
    print(f"Done. What was learned is in {function(run=run, **options)}")


@command("pan_hf.training.grow:grow", start="from", names="name")
def grow(function: Callable, run: Run = RUN, **options: Any) -> None:
    print(f"Done. The world model is in {function(run=run, **options)}")


@command("pan_hf.training.merge:merge", start="from", parts="part")
def merge(function: Callable, run: Run = RUN, **options: Any) -> None:
    print(f"Done. The model is in {function(run=run, **options)}")


MEASURED: dict = {"data_root": "data", "environments": "env"}


@command("pan_hf.evaluation.evaluate:evaluate", horizons="horizon", num_windows="windows", **MEASURED)
def evaluate(
    function: Callable,
    run: Run = RUN,
    model: Model = None,
    data_root: Data = None,
    output: Output = None,
    effort: Effort = None,
    **options: Any,
) -> None:
    where = _where(run, model, data_root, output) | {"effort": _effort(effort)}
    records = function(**where, **options)
    print(library("pan_hf.evaluation.summary:evaluation_summary")(records))
    print(f"Done. All figures are in {where['output'] / 'evaluation.json'}")
    _next("plan", run)


@app.command(show=False)
def futures(*_: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Moved to `benchmarks/moving_obstacles.py`."""
    raise ValueError(
        "`pan futures` is benchmarks/moving_obstacles.py of the repository now, with the same options: it checks one "
        "environment's own rules, so it is no part of the package."
    )


@command("pan_hf.evaluation.control:plan", planners="planner", **MEASURED)
def plan(
    function: Callable,
    run: Run = RUN,
    model: Model = None,
    data_root: Data = None,
    output: Output = None,
    effort: Effort = None,
    episodes: int = 20,
    **options: Any,
) -> None:
    where = _where(run, model, data_root, output) | {"effort": _effort(effort)}
    records = function(**where, episodes=episodes, **options)
    print(library("pan_hf.evaluation.summary:planning_summary")(records))
    print(f"Done. All figures are in {where['output'] / 'planning.json'}")
    _next("report", run)


@command("pan_hf.evaluation.precompute:precompute", **MEASURED)
def precompute(
    function: Callable,
    run: Run = RUN,
    model: Model = None,
    data_root: Data = None,
    cache: Cache = None,
    effort: Effort = None,
    ray: Annotated[
        str | bool,
        Parameter(help="workers of a Ray cluster: its address, auto; alone: RAY_ADDRESS or one here.", negative=()),
    ] = False,
    **options: Any,
) -> None:
    where = _where(run, model, data_root, None) | {"effort": _effort(effort)}
    told = function(**where, cache=cache, ray=ray, **options)
    print(
        f"Done. {told['entries']} entries ({told['new_entries']} of them new) are in "
        f"{cache or where['output'] / 'cache'}; for "
        f"{told['answered']:.0%} of the recorded states an action is known"
    )
    _next("cache", run)


@app.command(name="cache", sort_key=next(ORDER))
def show_cache(
    run: Run = RUN,
    *,
    model: Model = None,
    data: Data = None,
    cache: Cache = None,
    samples: int = 200,
    check: int = 0,
    reward_threshold: float | None = None,
    effort: Effort = None,
    export: Path | None = None,
    take: Annotated[str | None, Parameter(name="--import")] = None,
) -> None:
    """Shows what a simulation cache holds and what it is good for, with a picture; or takes it in and out as a data
    set.

    Args:
        samples: recorded states that are looked up, to tell how many have an answer.
        check: cached outcomes that are imagined anew, to tell how many differ by now.
        reward_threshold: expected reward that counts as the goal; from the recording by default.
        export: folder to write the entries to, as parquet files.
        take: folder that --export wrote, or Hub id, whose entries are added.
    """
    where = _where(run, model, data, None)
    place: dict[str, Any] = {"cache": cache, "effort": _effort(effort), "output": where["output"]}
    if take is not None:
        added = library("pan_hf.evaluation.cache_dataset:import_cache")(where["run"], take, **place)
        print(f"Done. {added} entries were not there before; pan precompute values them")
    if export is not None:
        library("pan_hf.evaluation.cache_dataset:export_cache")(where["run"], export, **place)
        print(f"Done. The entries are in {export}")
    if take is None and export is None:
        settings: dict[str, Any] = {"samples": samples, "check": check, "reward_threshold": reward_threshold}
        told = library("pan_hf.evaluation.cache_summary:describe_cache")(
            where["run"],
            where["data_root"],
            pictures=where["output"] / "report" / "codes",
            **place,
            **settings,
        )
        print(library("pan_hf.evaluation.cache_summary:cache_summary")(told))
        if told.get("picture"):
            print(f"A picture of it, which pan report shows: {told['picture']}")


@command("pan_hf.training.imagine:imagine", data_root="data", environment="env")
def imagine(
    function: Callable,
    run: Run = RUN,
    model: Model = None,
    data_root: Data = None,
    output: Output = None,
    **options: Any,
) -> None:
    policy = function(**_where(run, model, data_root, output), **options)
    print(f"Done. The policy is in {policy}")
    _next("plan", run, "--planner", shlex.quote(f"policy?folder={policy}"))


@command("pan_hf.training.distil:distil", **MEASURED)
def distil(
    function: Callable,
    run: Run = RUN,
    model: Model = None,
    data_root: Data = None,
    output: Output = None,
    cache: Cache = None,
    effort: Effort = None,
    **options: Any,
) -> None:
    where = _where(run, model, data_root, output)
    policy = function(**where, cache=cache, effort=_effort(effort), **options)
    last = library("pan_hf.files:read_json")(policy / "log.json", list)[-1]
    told = {"agreement": "of the states held out", "learned": "of those it learned from"}
    shares = [f"{last[name]:.1%} {what}" for name, what in told.items() if name in last]
    print(f"Done. The policy is in {policy}; it does what the cache would do in {' and '.join(shares)}")
    _next("plan", run, "--policy", shlex.quote(str(policy)))


@command("pan_hf.training.value:learn_value", name="value", data_root="data", environment="env")
def learn_value(
    function: Callable,
    run: Run = RUN,
    model: Model = None,
    data_root: Data = None,
    output: Output = None,
    **options: Any,
) -> None:
    folder = function(**_where(run, model, data_root, output), **options)
    told = library("pan_hf.files:read_json")(folder / "value.json")["about"]
    explained = told.get("explained_variance")
    if explained is not None:
        print(
            f"It explains {explained:.0%} of the variance of the returns of {told['held_out_states']} held-out states"
        )
    print(f"Done. The value is in {folder}")
    _next("plan", run, "--value", shlex.quote(str(folder)))


@command("pan_hf.training.improve:improve", **MEASURED)
def improve(
    function: Callable,
    run: Run = RUN,
    model: Model = None,
    data_root: Data = None,
    output: Output = None,
    effort: Effort = None,
    **options: Any,
) -> None:
    where = _where(run, model, data_root, output)
    last = function(**where, effort=_effort(effort), **options)
    records = library("pan_hf.reporting.results:read_records")(where["output"] / "improvement.json")
    print(library("pan_hf.evaluation.summary:improvement_summary")(records))
    print(f"Done. The last round is the run {last}; all figures are in {where['output'] / 'improvement.json'}")
    _next("report", run)


def _next(name: str, run: Path, *words: str) -> None:
    """Says the command that usually follows."""
    print("Next: pan", name, *([] if run == RUN else ["--run", shlex.quote(str(run))]), *words)


def _where(run: Path, model: str | None, data: str | Path | None, output: Path | None) -> dict[str, Any]:
    """Checkpoint, recording and folder of results: the run's own, unless they are given. Of a model of elsewhere the
    recording is the one that it names, where the run has none."""
    if data is None and (model is None or (run / "data").exists()):
        data = run / "data"
    output = output or library("pan_hf.checkpoints:results_folder")(run, None if model is None else run)
    return {"run": run if model is None else model, "data_root": data, "output": output}


def _effort(text: str | None) -> Any:
    return None if text is None else library("pan_hf.agents.world:parse_effort")(text)


@app.command(sort_key=next(ORDER))
def pool(runs: list[Path], /, *, output: Path) -> None:
    """The mean of several evaluated runs, and its standard error over their seeds.

    Args:
        runs: run folders, each evaluated and trained with another seed.
        output: folder for the pooled evaluation.json.
    """
    library("pan_hf.evaluation.evaluate:pool")(runs, output)
    print(f"Done. See {output / 'evaluation.json'}")


@app.command(sort_key=next(ORDER))
def vocabulary(
    *, run: Run = RUN, model: Model = None, double: list[str] | None = None, output: Path | None = None
) -> None:
    """Shows a checkpoint's vocabulary: what lives, how it is used, what is new; writes vocabulary.png.

    Args:
        double: give this segment twice the rows, e.g. camera.0; ids stay.
        output: where the picture, or the larger checkpoint, goes, if not into the run.
    """
    shown = run if model is None else model
    if double:
        larger = library("pan_hf.vocabulary:double")(shown, double, output)
        print(f"Done. The larger checkpoint is in {larger}")
        return
    tables, picture = library("pan_hf.vocabulary:show")(shown, output or (None if model is None else run))
    console = Console(markup=False, emoji=False, highlight=False)  # names are shown as they are
    for table in tables:
        console.print(table)
    if picture is not None:
        print(f"What each image code decodes to: {picture}")


@command("pan_hf.publishing.push:push_checkpoint", name="push", repo_id="repo")
def push(
    function: Callable,
    run: Run = RUN,
    data: Annotated[bool, Parameter(help="push the recording, as a data set.", negative=())] = False,
    adapter: Annotated[bool, Parameter(help="push `<run>/adapter`, or the run if it is one.", negative=())] = False,
    cache: Annotated[
        str | bool, Parameter(help="push `<run>/cache`, or the one in a folder, as a data set.", negative=())
    ] = False,
    model: Annotated[str | None, Parameter(help="Hub id of the model that the cache is of, for its card.")] = None,
    effort: Annotated[str | None, Parameter(help="that the cache was filled with, as of `pan precompute`.")] = None,
    dataset: str | None = None,
    base_model: str | None = None,
    **options: Any,
) -> None:
    if data + adapter + bool(cache) > 1:
        raise ValueError("--data, --adapter and --cache go to repositories of their own; push one after the other.")
    if (model is not None or effort is not None) and not cache:
        raise ValueError("--model and --effort say what a cache is of; give --cache with it.")
    if data:
        commit = library("pan_hf.publishing.push:push_recording")(run, **options)
    elif adapter:
        commit = library("pan_hf.publishing.push:push_adapter")(run, base_model=base_model, **options)
    elif cache:
        folder = None if cache is True else cache
        settings = {"cache": folder, "model": model, "effort": _effort(effort)}
        commit = library("pan_hf.publishing.push_cache:push_cache")(run, **settings, **options)
    else:
        commit = function(run, dataset=dataset, base_model=base_model, **options)
    print(f"Done. {commit.repo_url} at {commit.oid}")


@app.command(sort_key=next(ORDER))
def configs() -> None:
    """Shows where the recipes for `--config` and the example files for `accelerate launch --config_file` are."""
    for path in sorted(library("pan_hf.training.arguments:CONFIGS").glob("*.yaml")):
        print(path)


@app.command(sort_key=next(ORDER))
def report(*, run: Run = RUN) -> None:
    """Writes report.html and the model card from what the run holds."""
    if (run / "checkpoint").exists():
        library("pan_hf.publishing.card:write_card")(run)
    print(f"Done. Open {library('pan_hf.reporting.report:write_report')(run)}")


def main() -> None:
    """Runs `pan`; what a user can do wrong ends in one line, not in a traceback."""
    speak_to_users()
    try:
        app()
    except KeyboardInterrupt:
        print("Interrupted. What was finished is kept; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, ImportError, OSError, CalledProcessError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
