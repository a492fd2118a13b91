"""`pan`: everything from a shell. Each command is one function of the library with the same names for its
arguments."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="pan",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="World models from any causal language model: record, train, evaluate, plan.",
)

RUN = Annotated[Path, typer.Option("--run", help="Folder of the run; everything a command needs and makes is in it.")]
DATA = Annotated[
    str | None, typer.Option("--data", help="Recording, if not <run>/data: a folder, or a Hub id, user/name@revision.")
]
MODEL = Annotated[
    str | None, typer.Option("--model", help="Checkpoint, if not <run>/checkpoint: a folder, or a Hub id.")
]
SEED = Annotated[int, typer.Option(help="Seed of everything random.")]
ENVIRONMENTS = Annotated[list[str] | None, typer.Option("--env", help="Only these of the recorded environments.")]
EFFORT = Annotated[
    str | None,
    typer.Option(help="all, focused, coarsest, auto, blocks as camera.0,camera.1, or price=0.1,task=planning."),
]
DEFAULT_RUN = Path("runs/default")


def _recording(run: Path, model: str | None, data: str | None) -> str | Path | None:
    """The recording asked for; that of the run, or else the one that a model of elsewhere names."""
    own = run / "data"
    return data or (own if model is None or own.exists() else None)


def _results(run: Path, model: str | None) -> Path:
    """The folder that results go to: of a run's own checkpoint, where that lies; of another's, the run."""
    from pan_hf.checkpoints import results_folder

    return results_folder(run, None if model is None else run)


def _effort(given: str | None):
    from pan_hf.agents.world import parse_effort

    return None if given is None else parse_effort(given)


def _pairs(given: list[str] | None, what: str) -> dict:
    """`["a=1", "b=x"]` as `{"a": 1, "b": "x"}`; values are Python literals or plain text."""
    pairs = {}
    for item in given or []:
        name, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"{what} {item!r} must be NAME=VALUE.")
        try:
            pairs[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pairs[name] = value
    return pairs


def _nested(given: list[str] | None, what: str) -> dict[str, dict]:
    """`["camera.patch_size=4"]` as `{"camera": {"patch_size": 4}}`."""
    nested: dict[str, dict] = {}
    for name, value in _pairs(given, what).items():
        first, separator, second = name.partition(".")
        if not separator:
            raise ValueError(f"{what} {name!r} must be NAME.FIELD=VALUE.")
        nested.setdefault(first, {})[second] = value
    return nested


def _settings(context: typer.Context, path: Path | None) -> Path | None:
    """Reads a YAML file of a command's options as their defaults, so that flags come before it. `stage: {dynamics:
    {max_steps: 9}}` is `--stage dynamics.max_steps=9`."""
    if path is None:
        return None
    from pan_hf.training.arguments import read_config, unknown_names

    told = {name.rstrip("_"): value for name, value in read_config(path).items()}
    known = {parameter.name.rstrip("_"): parameter for parameter in context.command.params}
    unknown = [name for name in told if name not in known]
    if unknown:
        raise ValueError(f"--config {path}: {unknown_names(unknown, 'keys', list(known))}")
    listed = {name: _listed(value) if known[name].multiple else value for name, value in told.items()}
    context.default_map = {known[name].name: value for name, value in listed.items()}
    return path


def _listed(value) -> list[str]:
    """`{"a": {"b": 1}}` as `["a.b=1"]`, `{"a": 1}` as `["a=1"]`; a list stays, one value becomes a list of it."""
    if not isinstance(value, dict):
        return list(map(str, value)) if isinstance(value, list) else [str(value)]
    found = []
    for name, inner in value.items():
        deeper = _listed(inner) if isinstance(inner, dict) else None
        found += [f"{name}.{one}" for one in deeper] if deeper is not None else [f"{name}={inner}"]
    return found


@app.command()
def quickstart(
    run: RUN = Path("runs/quickstart"),
    seed: SEED = 0,
    workers: Annotated[int, typer.Option(help="Processes that record.")] = 2,
    backbone: Annotated[str, typer.Option(help="Preset (debug, tiny, small) or any causal LM.")] = "tiny",
    seconds: Annotated[float | None, typer.Option(help="Training time, all stages together.")] = None,
    miniature: Annotated[bool, typer.Option(help="Seconds instead of minutes: shows that everything works.")] = False,
) -> None:
    """The whole way once: record, train, evaluate, plan, report (10 minutes on 2 cores)."""
    from dataclasses import replace

    from pan_hf.quickstart import MINIATURE, Budget
    from pan_hf.quickstart import quickstart as run_quickstart

    budget = MINIATURE if miniature else Budget()
    budget = replace(budget, seconds=seconds) if seconds is not None else budget
    report = run_quickstart(run, budget, backbone, seed, workers)
    typer.echo(f"Done. Open {report}")


@app.command()
def record(
    env: Annotated[list[str], typer.Option("--env", help="gymnasium id, or module:Id; several share the frames.")],
    run: RUN = DEFAULT_RUN,
    output: Annotated[Path | None, typer.Option(help="Where to record to, if not <run>/data.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames to record at least (20000 if neither is given).")] = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes to record at least.")] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="random, module:callable, or several as NAME:WEIGHT.")
    ] = None,
    explore_steps: Annotated[int, typer.Option(help="Each episode starts after 0 to this many random steps.")] = 0,
    start: Annotated[str | None, typer.Option(help="module:callable(env, rng) that sets a starting state.")] = None,
    env_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the environment.")] = None,
    wrapper: Annotated[list[str] | None, typer.Option(help="module:Class?name=value, innermost first.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Only these senses.")] = None,
    rename: Annotated[list[str] | None, typer.Option(help="OLD=NEW name of a sense.")] = None,
    render: Annotated[bool, typer.Option(help="Add what the environment renders as the sense camera.")] = False,
    image_size: Annotated[int | None, typer.Option(help="Resize images to this many pixels a side.")] = None,
    seed: SEED = 0,
    test_fraction: Annotated[float, typer.Option(help="Share of the episodes held out for evaluation.")] = 0.1,
    fps: Annotated[float | None, typer.Option(help="Frames a second, if the environment does not say.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that record.")] = 1,
    max_episode_steps: Annotated[int | None, typer.Option(help="Cut episodes after this many steps.")] = None,
) -> None:
    """Record trajectories of any gymnasium environment; run it again to go on after an interruption."""
    from pan_hf.data.record import record as run_record

    run_record(
        env,
        output or run / "data",
        frames=frames if frames or episodes else 20_000,
        episodes=episodes,
        policy=policy or "random",
        explore_steps=explore_steps,
        start=start,
        env_args=_pairs(env_arg, "--env-arg"),
        wrappers=wrapper or (),
        keep=keep or (),
        rename=rename or (),
        render=render,
        image_size=image_size,
        seed=seed,
        test_fraction=test_fraction,
        fps=fps,
        workers=workers,
        max_episode_steps=max_episode_steps,
    )


@app.command()
def mirror(
    start: Annotated[str, typer.Option("--from", help="Run or recording to start from, or a Hub id; left as it is.")],
    run: RUN = DEFAULT_RUN,
    output: Annotated[Path | None, typer.Option(help="Where to write to, if not <run>/data.")] = None,
    flip: Annotated[
        list[str] | None, typer.Option(help="horizontal, vertical, diagonal: what the world is blind to; all three.")
    ] = None,
    position: Annotated[
        list[str] | None, typer.Option(help="A vector sense, or action, that is a place: NAME, or NAME=ACROSS,DOWN.")
    ] = None,
    direction: Annotated[list[str] | None, typer.Option(help="The same of one that is a motion.")] = None,
    same: Annotated[list[str] | None, typer.Option(help="A sense, or action, that no mirror changes.")] = None,
    swap: Annotated[
        list[str] | None, typer.Option(help="FLIP:ONE=OTHER, discrete actions that change places.")
    ] = None,
    copies: Annotated[int, typer.Option(help="Mirror images of each training episode.")] = 1,
    seed: SEED = 0,
) -> None:
    """Write a recording anew with mirror images of its training episodes, where the world knows no left and right."""
    from pan_hf.data.mirror import FLIPS
    from pan_hf.data.mirror import mirror as run_mirror

    info = run_mirror(
        start,
        output or run / "data",
        flips=flip or FLIPS,
        positions=position or (),
        directions=direction or (),
        same=same or (),
        swaps=swap or (),
        copies=copies,
        seed=seed,
    )
    typer.echo(f"Done. {info['episodes']['train']} episodes to train on in {output or run / 'data'}")


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="minari, lerobot, dataset or videos.")],
    path: Annotated[str, typer.Argument(help="Its folder, file or name; for videos, their folder.")],
    run: RUN = DEFAULT_RUN,
    output: Annotated[Path | None, typer.Option(help="Where to write to, if not <run>/data.")] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", help="COLUMN=SENSE, or =action, =reward, =done, =episode, ...; COLUMN= leaves it out."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Average images to this many pixels a side.")] = None,
    crop: Annotated[bool, typer.Option("--crop", help="Cut images to their middle square first.")] = False,
    split: Annotated[str, typer.Option(help="Which split, of a dataset.")] = "train",
    actions: Annotated[Path | None, typer.Option(help="The CSV of videos, if not actions.csv beside them.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second, of minari and dataset.")] = None,
    test_fraction: Annotated[float, typer.Option(help="Share of the episodes held out for evaluation.")] = 0.1,
) -> None:
    """Import a data set as a recording; run it again to go on after an interruption."""
    from pan_hf.data import importing

    given = {"map": _targets(map_), "image_size": image_size, "crop": crop, "test_fraction": test_fraction}
    own = {"split": split} if source == "dataset" else {"actions": actions} if source == "videos" else {}
    own |= {"fps": fps} if fps is not None and source in ("dataset", "minari") else {}
    if source not in ("minari", "lerobot", "dataset", "videos"):
        raise ValueError(f"Unknown source {source!r}; there are minari, lerobot, dataset and videos.")
    info = getattr(importing, f"import_{source}")(path, output or run / "data", **given, **own)
    senses = [name.removeprefix("observation.") for name in info["features"] if name != "action"]
    counts = " and ".join(f"{number} {split}" for split, number in info["episodes"].items())
    typer.echo(f"Done. {counts} episodes, {info['frames']} frames of {', '.join(senses)} in {output or run / 'data'}")


def _targets(given: list[str] | None) -> dict[str, str]:
    """`["a=b", "c="]` as `{"a": "b", "c": ""}`."""
    wrong = [item for item in given or [] if "=" not in item]
    if wrong:
        raise ValueError(f"--map {wrong[0]!r} must be COLUMN=NAME, or COLUMN= to leave it out.")
    return dict(item.rsplit("=", 1) for item in given or [])


@app.command()
def train(
    run: RUN = DEFAULT_RUN,
    data: DATA = None,
    backbone: Annotated[
        str, typer.Option(help="Preset (debug, tiny, small), or name or folder of any causal LM.")
    ] = "tiny",
    seconds: Annotated[float, typer.Option(help="Time budget of all stages together.")] = 400.0,
    sense: Annotated[list[str] | None, typer.Option(help="SENSE.FIELD=VALUE, e.g. camera.patch_size=4.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE of the model's config.")] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="STAGE.FIELD=VALUE, e.g. dynamics.learning_rate=1e-3.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Stages to leave out.")] = None,
    processes: Annotated[int, typer.Option(help="More than 1 runs the stages under accelerate launch.")] = 1,
    accelerate: Annotated[Path | None, typer.Option(help="File of `accelerate config` to launch them with.")] = None,
    seed: SEED = 0,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with any of these; flags come before it.", callback=_settings, is_eager=True),
    ] = None,
) -> None:
    """Train a world model on a recording, stage by stage; run it again to go on after an interruption."""
    from pan_hf.training.pipeline import train as run_train

    checkpoint = run_train(
        run,
        data,
        backbone=backbone,
        seconds=seconds,
        sense_options=_nested(sense, "--sense"),
        config=_pairs(set_, "--set"),
        overrides=_nested(stage, "--stage"),
        skip=tuple(skip or ()),
        num_processes=processes,
        accelerate_config=accelerate,
        seed=seed,
    )
    typer.echo(f"Done. The world model is in {checkpoint}")


@app.command()
def finetune(
    start: Annotated[str, typer.Option("--from", help="Run, checkpoint or Hub model to start from; left as it is.")],
    run: RUN = DEFAULT_RUN,
    data: Annotated[
        str | None, typer.Option("--data", help="Recording, a run with one, or a Hub id, if not <run>/data.")
    ] = None,
    adapter: Annotated[str, typer.Option(help="lora, dora, ia3, or none to train the whole model.")] = "lora",
    rank: Annotated[int, typer.Option(help="Rank of lora and dora.")] = 8,
    seconds: Annotated[float, typer.Option(help="Time budget.")] = 60.0,
    max_steps: Annotated[int | None, typer.Option(help="Steps, in place of a time budget.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Its peak, if not the stage's own.")] = None,
    merge: Annotated[bool, typer.Option(help="Also write the merged model as a checkpoint.")] = False,
    seed: SEED = 0,
) -> None:
    """Train a finished world model on a recording of your own: writes an adapter of a few MB."""
    from pan_hf.training.finetune import finetune as run_finetune

    given = {"adapter": adapter, "rank": rank, "seconds": seconds, "max_steps": max_steps}
    found = run_finetune(run, start, data, **given, learning_rate=learning_rate, merge=merge, seed=seed)
    typer.echo(f"Done. What was learned is in {found}")


@app.command()
def grow(
    start: Annotated[str, typer.Option("--from", help="Run, checkpoint or Hub id to start from; it stays as it is.")],
    run: RUN = DEFAULT_RUN,
    data: DATA = None,
    seconds: Annotated[float, typer.Option(help="Time budget.")] = 60.0,
    max_steps: Annotated[int | None, typer.Option(help="Steps, in place of a time budget.")] = None,
    every: Annotated[int, typer.Option(help="Steps between attempts to grow.")] = 50,
    threshold: Annotated[float | None, typer.Option(help="Distance from which a piece of an image is novel.")] = None,
    max_new: Annotated[int, typer.Option(help="Codes at most.")] = 32,
    prune: Annotated[bool, typer.Option(help="Also retire codes that are unused, or twins of others.")] = False,
    name: Annotated[list[str] | None, typer.Option(help="A word to make live: WORD, or 'WORD=what it means'.")] = None,
    seed: SEED = 0,
) -> None:
    """Train on a recording with something new in it, growing codes for what none describes: writes growth.json."""
    from pan_hf.training.grow import grow as run_grow

    schedule = {"every": every, "threshold": threshold, "max_new": max_new, "prune": prune, "names": name}
    checkpoint = run_grow(run, start, data, seconds=seconds, max_steps=max_steps, seed=seed, **schedule)
    typer.echo(f"Done. The world model is in {checkpoint}")


@app.command()
def merge(
    start: Annotated[str, typer.Option("--from", help="Run, checkpoint or Hub id to start from; it stays as it is.")],
    run: RUN = DEFAULT_RUN,
    data: DATA = None,
    part: Annotated[list[str] | None, typer.Option(help="Sense or `action`; all that have codes by default.")] = None,
    chunk: Annotated[int, typer.Option(help="Steps of vectors and actions in a sentence.")] = 1,
    window: Annotated[int, typer.Option(help="Sentences of each part that are read together.")] = 2,
    seconds: Annotated[float, typer.Option(help="Time budget, trials included.")] = 60.0,
    max_steps: Annotated[int | None, typer.Option(help="Steps, in place of a time budget.")] = None,
    every: Annotated[int, typer.Option(help="Steps between attempts to merge.")] = 200,
    count: Annotated[int, typer.Option(help="Merged tokens of a part in an attempt.")] = 16,
    trial_steps: Annotated[int, typer.Option(help="How long each side of a trial is trained.")] = 50,
    seed: SEED = 0,
) -> None:
    """Train the language model on sentences of codes, merging pairs of them where that saves bits: writes growth.json.

    This moves the backbone's weights: train the dynamics of a world model after it, not before.
    """
    from pan_hf.training.merge import merge as run_merge

    sentences = {"parts": part, "chunk": chunk, "window": window, "every": every, "count": count}
    sentences |= {"trial_steps": trial_steps}
    checkpoint = run_merge(run, start, data, seconds=seconds, max_steps=max_steps, seed=seed, **sentences)
    typer.echo(f"Done. The model is in {checkpoint}")


@app.command()
def evaluate(
    run: RUN = DEFAULT_RUN,
    model: MODEL = None,
    data: DATA = None,
    horizon: Annotated[list[int] | None, typer.Option(help="Steps ahead (1, 5, 10, 20 by default).")] = None,
    windows: Annotated[int, typer.Option(help="Windows for each environment and horizon.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: the most likely future; above: sampled ones.")] = 0.0,
    env: ENVIRONMENTS = None,
    seed: SEED = 0,
    effort: EFFORT = None,
    reencode: Annotated[int, typer.Option(help="Encode what is imagined anew every so many steps; 0: never.")] = 0,
    skip_trained: Annotated[bool, typer.Option(help="Leave out held-out episodes that equal trained ones.")] = False,
) -> None:
    """Measure a world model on held-out episodes: writes evaluation.json and horizon.png."""
    from pan_hf.evaluation.evaluate import HORIZONS
    from pan_hf.evaluation.evaluate import evaluate as run_evaluate

    output = _results(run, model)
    run_evaluate(
        model or run,
        _recording(run, model, data),
        output=output,
        horizons=horizon or HORIZONS,
        num_windows=windows,
        temperature=temperature,
        environments=env,
        seed=seed,
        effort=_effort(effort),
        reencode=reencode,
        skip_trained=skip_trained,
    )
    typer.echo(f"Done. See {output / 'evaluation.json'}")


@app.command()
def futures(
    run: RUN = DEFAULT_RUN,
    model: MODEL = None,
    data: DATA = None,
    states: Annotated[int, typer.Option(help="Held-out states to start from.")] = 64,
    samples: Annotated[int, typer.Option(help="Futures sampled from each.")] = 128,
    true: Annotated[int, typer.Option(help="Steps the simulator takes from each.")] = 1000,
    env: ENVIRONMENTS = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Draws states, samples, truth; each is tested by itself (0 by default).")
    ] = None,
    skip_trained: Annotated[bool, typer.Option(help="Leave out held-out episodes that equal trained ones.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where to write, if not into the run.")] = None,
) -> None:
    """Check sampled futures of a stochastic MiniGrid world against its simulator: writes futures.json."""
    from pan_hf.evaluation.calibration import evaluate_futures

    output = output or _results(run, model)
    evaluate_futures(
        model or run,
        _recording(run, model, data),
        output=output,
        num_states=states,
        num_samples=samples,
        num_true=true,
        environments=env,
        seeds=seed or (0,),
        skip_trained=skip_trained,
    )
    typer.echo(f"Done. See {output / 'futures.json'}")


@app.command()
def plan(
    run: RUN = DEFAULT_RUN,
    model: MODEL = None,
    data: DATA = None,
    planner: Annotated[
        list[str] | None, typer.Option(help="graph, cem, random_shooting, as NAME?field=value.")
    ] = None,
    env: ENVIRONMENTS = None,
    episodes: Annotated[int, typer.Option(help="Episodes of each environment and planner.")] = 20,
    seed: Annotated[int, typer.Option(help="First environment seed; must be unseen in training.")] = 10_000,
    max_steps: Annotated[int | None, typer.Option(help="Cut episodes after this many steps.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Stop after the episode at hand once this is spent.")
    ] = None,
    episode_time_limit: Annotated[float | None, typer.Option(help="Give an episode up after this long.")] = None,
    success: Annotated[str | None, typer.Option(help="module:callable(env, reward, terminated, info).")] = None,
    effort: EFFORT = None,
    output: Annotated[Path | None, typer.Option(help="Where to write, if not into the run.")] = None,
) -> None:
    """Plan with a world model in the real environments, on unseen seeds: writes planning.json."""
    from pan_hf.evaluation.control import plan as run_plan

    output = output or _results(run, model)
    run_plan(
        model or run,
        _recording(run, model, data),
        planners=planner,
        environments=env,
        episodes=episodes,
        seed=seed,
        max_steps=max_steps,
        time_limit=time_limit,
        episode_time_limit=episode_time_limit,
        success=success,
        effort=_effort(effort),
        output=output,
    )
    typer.echo(f"Done. See {output / 'planning.json'}")


@app.command()
def pool(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, each evaluated and trained with another seed.")],
    output: Annotated[Path, typer.Option(help="Folder for the pooled evaluation.json.")],
) -> None:
    """The mean of several evaluated runs, and its standard error over their seeds."""
    from pan_hf.evaluation.evaluate import pool as pool_runs

    pool_runs(runs, output)
    typer.echo(f"Done. See {output / 'evaluation.json'}")


@app.command()
def vocabulary(
    run: RUN = DEFAULT_RUN,
    model: MODEL = None,
    double: Annotated[
        list[str] | None, typer.Option(help="Give this segment twice the rows, e.g. camera.0; ids stay.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the picture, or the larger checkpoint, goes, if not into the run.")
    ] = None,
) -> None:
    """Show a checkpoint's vocabulary: what lives, how it is used, what is new; writes vocabulary.png."""
    from rich.console import Console

    from pan_hf import vocabulary as vocabularies

    if double:
        typer.echo(f"Done. The larger checkpoint is in {vocabularies.double(model or run, double, output)}")
        return
    tables, picture = vocabularies.show(model or run, output or (run if model else None))
    console = Console()
    for table in tables:
        console.print(table)
    if picture is not None:
        typer.echo(f"What each image code decodes to: {picture}")


@app.command()
def push(
    repo: Annotated[str, typer.Option(help="Where to on the Hub: user/name. Made if absent.")],
    run: RUN = DEFAULT_RUN,
    data: Annotated[bool, typer.Option("--data", help="Push the recording, as a data set.")] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="Push <run>/adapter, or the run if it is one.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Only you and those you let in can see it.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to, made if absent.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hub id of the recording a model was trained on.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id of what it began as, if not known.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="As the Hub names it, e.g. apache-2.0.")] = None,
) -> None:
    """Publish a run on the Hub: its model with processor and card, or its recording, or an adapter."""
    from pan_hf.publishing import push as pushing

    common = {"private": private, "revision": revision, "license": license_}
    if data and adapter:
        raise ValueError("--data and --adapter go to repositories of their own; push them one after the other.")
    if data:
        commit = pushing.push_recording(run, repo, **common)
    elif adapter:
        commit = pushing.push_adapter(run, repo, base_model=base_model, **common)
    else:
        commit = pushing.push_checkpoint(run, repo, dataset=dataset, base_model=base_model, **common)
    typer.echo(f"Done. {commit.repo_url} at {commit.oid}")


@app.command()
def configs() -> None:
    """Show where the example files for `--config` and for `accelerate launch --config_file` are."""
    from pan_hf.training.arguments import CONFIGS

    for path in sorted(CONFIGS.glob("*.yaml")):
        typer.echo(str(path))


@app.command()
def report(run: RUN = DEFAULT_RUN) -> None:
    """Write report.html and the model card from what the run holds."""
    from pan_hf.publishing.card import write_card
    from pan_hf.reporting.report import write_report

    if (run / "checkpoint").exists():
        write_card(run)
    typer.echo(f"Done. Open {write_report(run)}")


def main() -> None:
    """Runs `pan`; what a user can do wrong ends in one line, not in a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        typer.secho(
            "Interrupted. What was finished is kept; run the same command again to go on.", fg="yellow", err=True
        )
        sys.exit(130)
    except (ValueError, FileNotFoundError, ImportError, OSError) as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
