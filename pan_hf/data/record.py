"""Records trajectories of any gymnasium environment, as `pan record` does.

What is recorded depends on the settings alone: a set is the same, file by file, whatever the number of processes and
however often the recording was interrupted (see `pan_hf.recorder`). Running the same again goes on from the finished
episodes, and more frames or episodes may be asked for later; the ones that are there stay as they are.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from pan_hf.arguments import a_seed, checked, least
from pan_hf.console import Progress
from pan_hf.data.episodes import SPLITS, episode_files, episode_schema, read_info, read_summary, write_info
from pan_hf.data.info import PICTURES, begun_with, check_test_fraction, new_info, rare_options, write_counted
from pan_hf.data.recorder import RecordingJob, Stream, record_streams, recording_processes
from pan_hf.envs.environment import describe_environment, make_environment
from pan_hf.envs.policies import load_policies
from pan_hf.features import feature_of
from pan_hf.files import holds_nothing, missing_above, unmake
from pan_hf.processes import call_in_fork, is_forked
from pan_hf.specs import load_callable, spelled

# Disk space that is left alone, and what a frame may take beyond what the first one does.
_DISK_RESERVE = 64 * 2**20
_DISK_MARGIN = 1.5


@checked(
    frames=least(1),
    episodes=least(1),
    workers=least(1),
    max_episode_steps=least(1),
    explore_steps=least(0),
    seed=a_seed,
    fps=least(0, above=True),
    **PICTURES,
)
def record(
    env_ids: str | Sequence[str],
    output: str | Path,
    *,
    frames: int | None = None,
    episodes: int | None = None,
    policy: str | Callable | Sequence[str | Callable] = "random",
    explore_steps: int = 0,
    start: str | Callable | None = None,
    env_args: Mapping[str, Any] | None = None,
    wrappers: Sequence[str] = (),
    keep: Sequence[str] = (),
    rename: Mapping[str, str] | Sequence[str] = (),
    render: bool = False,
    image_size: int | None = None,
    optional: Sequence[str] = (),
    depth_scale: float | None = None,
    depth_unit: str = "",
    symbols: Sequence[str] | None = None,
    seed: int = 0,
    test_fraction: float = 0.1,
    fps: float | None = None,
    workers: int = 1,
    max_episode_steps: int | None = None,
    progress: bool = True,
) -> dict:
    """Records whole episodes into `output`, and goes on where the same recording was interrupted.

    Args:
        env_ids: gymnasium ids (or `"module:Id"`), which share the frames equally and must have the same senses and
            actions.
        output: folder of the recording, new, empty or begun with the same settings.
        frames: observations to record at least, over all environments and both splits. Episodes are never cut for it.
        episodes: episodes to record at least; give this or `frames`. At least two an environment where there is a
            test split.
        policy: `"random"`, `"module:callable"`, a callable, or several with weights (`["random:0.7",
            "pan_hf.envs.minigrid:minigrid_expert?epsilon=0.2:0.3"]`), of which each episode draws one. See
            `pan_hf.envs.policies`.
        explore_steps: every episode begins after 0 to this many random steps that are not recorded.
        start: `"module:callable"` or a callable `(env, rng)` that sets a starting state after each reset.
        env_args: keyword arguments of the environments.
        wrappers: `"module:Class?key=value"` each, innermost first.
        keep: observations to keep, all when empty.
        rename: sense name by observation name, or `"observation=sense"` texts.
        render: record `env.render()` as the sense `camera` when no observation is an image.
        image_size: side in pixels that images are averaged to.
        optional: observations that may be None or missing at some steps.
        depth_scale: what numbers of a picture that are no colours, such as depth, are multiplied with to be whole
            numbers of 16 bits: 1000 makes metres millimetres. Whole numbers need none.
        depth_unit: the unit that they have then, e.g. `"mm"`.
        symbols: observations of whole numbers that are names and no measures, by the environment's names: each value
            gets a code. All that seem to be (`Discrete` and the like, small grids of few numbers) when None. With an
            empty list (`--symbols none`) whole numbers are vectors, or pictures.
        seed: of the whole recording.
        test_fraction: share of each environment's episodes that is kept for testing, in [0, 0.5], or 1.
        fps: frames a second, for timestamps; what the environment says, or 10, when None.
        workers: processes that play episodes. Where processes are not forked (macOS, Windows), a script that asks for
            more than one needs `if __name__ == "__main__":`.
        max_episode_steps: recorded steps of an episode at most; the environment's own limit, or 1000, when None.
        progress: show it, on stderr.

    Returns:
        What `meta/info.json` holds.

    Raises:
        ValueError: a setting is wrong, `output` holds something else or a recording with other settings, an
            environment or a policy gave something it may not.
        OSError: the disk is full or too small.
        KeyboardInterrupt: Ctrl-C; the finished episodes are kept and the message says how to go on.
    """
    entry = {
        "env_args": dict(env_args or {}),
        "wrappers": list(wrappers or ()),
        "render": bool(render),
        "keep": list(keep or ()),
        "rename": _rename(rename),
        "image_size": image_size,
        **rare_options(optional, depth_scale, depth_unit),
    }
    ids = [env_ids] if isinstance(env_ids, str) else list(env_ids)
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"env_ids: expected one or more different environment ids, got {ids}")
    if (frames is None) == (episodes is None):
        raise ValueError(f"Give either frames or episodes, got frames={frames} and episodes={episodes}")
    check_test_fraction(test_fraction)
    root = Path(output)
    environments = [{"id": id, **entry} for id in ids]
    policies = load_policies(policy)
    set_start = load_callable(start, "start") if start else None
    look = partial(_look_at, environments, set_start, begun_with(root, symbols))
    # What drawing sets up (EGL contexts) does not survive a fork, so it is not set up here.
    seen = call_in_fork(look) if workers > 1 and is_forked() else look()
    features, actors, env_fps, bytes_per_frame, found = seen
    environments = [
        entry | rare_options((), None, "", names) for entry, names in zip(environments, found, strict=True)
    ]
    job = RecordingJob(
        root=root,
        environments=environments,
        features=features,
        schema=episode_schema(features, actors),
        actors=actors,
        policies=policies,
        start=set_start,
        seed=seed,
        test_fraction=test_fraction,
        fps=float(fps or env_fps),
        explore_steps=explore_steps,
        max_episode_steps=max_episode_steps,
    )
    info = _new_info(job, start, {"frames": frames, "episodes": episodes})
    before = _check_settings(root, info)
    streams = _streams(job, frames, episodes)
    if before and before["complete"] and all(stream.is_reached for stream in streams):
        return before
    _check_disk(root, streams, bytes_per_frame)
    above = missing_above(root)
    write_info(root, info if before is None else {**before, "requested": info["requested"], "complete": False})
    try:
        return _run(job, info, streams, workers, progress)
    except ValueError:
        if before is None and not any(info["episodes"].values()):
            unmake(root, above)  # nothing was recorded: as if it had not been begun
        raise


def _run(job: RecordingJob, info: dict, streams: list[Stream], workers: int, progress: bool) -> dict:
    try:
        with recording_processes(job, workers) as executor, _shown_progress(streams, progress) as report:
            # One episode more than there are processes, so that none waits for its next.
            record_streams(executor, streams, 1 if workers == 1 else workers + 1, report)
    except BaseException as error:
        with suppress(OSError):  # on a full disk there is no room for this either
            _finish(job, info, streams, is_complete=False)
        num_kept = sum(info["episodes"].values())
        kept = f"{num_kept} finished episodes are kept in {job.root}; run the same again to go on"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"Stopped. {kept}") from None
        if isinstance(error, BrokenProcessPool):
            raise ChildProcessError(  # an OSError, which the command line tells in a line
                "A recording process ended at once: killed (out of memory?), or started by a script without "
                f"`if __name__ == '__main__':`. {kept}, with fewer workers"
            ) from error
        raise
    _finish(job, info, streams, is_complete=True)
    return info


# Before


def _rename(rename: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    if isinstance(rename, Mapping):
        return dict(rename)
    wrong = [pair for pair in rename or () if pair.count("=") != 1]
    if wrong:
        raise ValueError(f"rename: expected 'observation=sense', got {wrong}")
    return dict(pair.split("=") for pair in rename or ())


def _look_at(
    environments: list[dict], start: Callable | None, symbols: Sequence[str] | None
) -> tuple[dict[str, dict], list[str], float, int, list[list[str]]]:
    """Makes every environment once: their shared features, their actors, frames a second, about how many bytes a
    frame takes, and the observations of each that are symbols."""
    features: dict[str, dict] = {}
    actors, size, found = [], 0, []
    for entry in environments:
        env = make_environment(**entry, symbols=symbols, start=start)
        try:
            observation = env.look(seed=0)
            described = describe_environment(env)
            features = _merged(features, described, environments[0]["id"], entry["id"]) if features else described
            actors.append(env.actors)
            found.append(env.symbols)
            fps = env.metadata.get("render_fps") or 10
        finally:
            env.close()
        seen = {name: value for name, value in observation.items() if value is not None}
        size = max(size, sum(feature_of(described[f"observation.{n}"]).num_bytes(v) for n, v in seen.items()))
    if any(names != actors[0] for names in actors):
        raise ValueError(f"Environments of one recording need the same actors, got {actors}. Record them apart")
    return features, actors[0], fps, size + 100, found  # 100: the other columns


def _merged(features: dict[str, dict], others: dict[str, dict], id: str, other_id: str) -> dict[str, dict]:
    """Features that hold for two environments: the same but for the bounds of vectors, of which the wider count, and
    for names of actions, which are left out where they differ."""
    kinds, other_kinds = ({name: feature_of(one) for name, one in both.items()} for both in (features, others))
    common, other_common = ({name: one.common for name, one in both.items()} for both in (kinds, other_kinds))
    if common != other_common:
        raise ValueError(
            f"Environments of one recording need the same senses and actions: {id} has {common}, {other_id} has "
            f"{other_common}. Record them apart, or choose with keep, rename and image_size."
        )
    return {name: feature.merged(other_kinds[name]) for name, feature in kinds.items()}


def _new_info(job: RecordingJob, start: str | Callable | None, requested: dict[str, int | None]) -> dict:
    settings = {
        "policy": list(job.policies.names),
        "start": spelled(start) if start else None,
        "explore_steps": job.explore_steps,
        "max_episode_steps": job.max_episode_steps,
    }
    about = {"seed": job.seed, "recording": settings, "requested": requested}
    about |= {"actors": job.actors} if job.actors else {}
    return new_info(job.fps, job.features, job.environments, job.test_fraction, **about)


def _check_settings(root: Path, info: dict) -> dict | None:
    """What an earlier run of this recording wrote into `meta/info.json`, or None when there was none."""
    if holds_nothing(root):
        return None
    if not (root / "meta" / "info.json").is_file():
        raise ValueError(f"{root} holds something else than a recording; choose a new or empty folder")
    before = read_info(root)
    if "requested" not in before:
        raise ValueError(f"{root} was not recorded by `pan record` but from {before['source']}; use another folder")
    settings = ("environments", "recording", "seed", "test_fraction", "fps")
    differing = [
        f"{name}: {_brief(before.get(name), info[name])} there, {_brief(info[name], before.get(name))} now"
        for name in settings
        if before.get(name) != info[name]
    ]
    asked, had = info["requested"], before["requested"]
    differing += [
        f"{name}: {had[name]} there, {asked[name]} now"
        for name in ("frames", "episodes")
        if (had[name] is None) != (asked[name] is None) or (asked[name] or 0) < (had[name] or 0)
    ]
    if differing:
        raise ValueError(
            f"{root} was recorded with other settings: {'; '.join(differing)}. Use the same settings to go on (frames "
            "or episodes may grow), or another output folder."
        )
    return before


def _brief(value: Any, other: Any) -> Any:
    """Of a dict, only what differs from another."""
    if isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
        return [_brief(one, two) for one, two in zip(value, other, strict=True) if one != two]
    if isinstance(value, dict) and isinstance(other, dict):
        return {key: one for key, one in value.items() if one != other.get(key)}
    return value


def _streams(job: RecordingJob, frames: int | None, episodes: int | None) -> list[Stream]:
    """What is to be recorded of each environment, and what is there."""
    num = len(job.environments)
    least = 2 if 0 < job.test_fraction < 1 else 1
    streams = [
        Stream(environment, math.ceil((frames or 0) / num), max(least, math.ceil((episodes or 0) / num)))
        for environment in range(num)
    ]
    for split in SPLITS:
        for stale in (job.root / "data" / split).glob(".*.tmp"):
            stale.unlink()  # of a run that was killed while it wrote
        for index, path in episode_files(job.root, split).items():
            number, environment = divmod(index, num)
            try:
                streams[environment].finish(number, read_summary(path)[0])
            except ValueError as error:
                warnings.warn(f"{error}; it is recorded again", stacklevel=4)
    return streams


def _check_disk(root: Path, streams: list[Stream], bytes_per_frame: int) -> None:
    missing = sum(max(stream.frames - stream.total_rows, stream.episodes) for stream in streams)
    needed = int(missing * bytes_per_frame * _DISK_MARGIN) + _DISK_RESERVE
    folder = next(parent for parent in (root.absolute(), *root.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"Recording into {root} needs about {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free on that "
            "disk. Make room, ask for fewer frames or smaller images, or choose another output folder."
        )


# After


def _finish(job: RecordingJob, info: dict, streams: list[Stream], is_complete: bool) -> None:
    """Writes counts and bounds into `meta/info.json`."""
    if is_complete:
        _remove_surplus(job.root, streams)
    write_counted(job.root, info, job.features, is_complete)


def _remove_surplus(root: Path, streams: list[Stream]) -> None:
    """Several processes may have played past what was needed; what is kept must not depend on it."""
    for split in SPLITS:
        for index, path in episode_files(root, split).items():
            number, environment = divmod(index, len(streams))
            if number >= streams[environment].num_needed:
                path.unlink()


# Progress


@contextmanager
def _shown_progress(streams: list[Stream], is_shown: bool) -> Iterator[Callable[[], None]]:
    """A line that counts frames, or episodes where those were asked for; yields what is to be called after each."""
    by_frames = any(stream.frames for stream in streams)

    def counted() -> int:
        if by_frames:
            return sum(min(stream.total_rows, stream.frames) for stream in streams)
        return sum(min(len(stream.rows), stream.episodes) for stream in streams)

    total = sum(stream.frames if by_frames else stream.episodes for stream in streams)
    with Progress("recording", total, "frames" if by_frames else "episodes", is_shown, counted()) as line:
        yield lambda: line.update(counted())
