"""The command line, in process: `cli.main` with arguments that are right, and what users type in their place.

A command runs in a folder of its own with a finished run in it, `mine`: a recording and an untrained checkpoint. Those
that would take long are called with something wrong alone, which must be refused before they begin.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from unittest import mock

from fuzzing.outcomes import FREE, WRONG, Change, TookLong, digest
from fuzzing.targets import TARGETS, Call, Target, board, new_folder
from fuzzing.worlds import World

MOST_SECONDS = 5  # of the processor, of a command; what is wrong is said sooner
PATIENCE = 20  # of the clock, a busy machine takes so many times as long at most
COUNT = ["0", "-1", "2.5", "x", "", "nan", "None", "[1]", "1e3", "³"]
WHOLE = ["-1", "2.5", "x", "", "nan", "None", "1e3"]  # where 0 is right
NUMBER = ["-1", "x", "", "nan", "1,5", "None", "-inf", "[1]"]
POSITIVE = ["0", *NUMBER]
IF_GIVEN = [text for text in POSITIVE if text != "None"]  # where None is the default
FOLDER = ["missing", "", "file.txt", "/proc/none", "x" * 5000, "\udcff", "user/missing@main"]
NAMES = ["missing", "", "3", "\udcff", " "]
FIELDS = ["", "x", "=3", "camera", "camera=3", "camra.patch_size=4", "camera.patchsize=4", "camera.patch_size=x"]
FIELDS += ["camera.patch_size=0", "camera.patch_size=", ".patch_size=4", "camera.=4"]
STAGES = ["", "x", "=3", "dynamics=3", "dynamic.max_steps=3", "dynamics.max_step=3", "dynamics.max_steps=x"]
STAGES += ["dynamics.max_steps=-1", "dynamics.max_steps=0", "dynamics.seconds=nan"]
STAGES += ["dynamics.learning_rate=x", "dynamics.learning_rate=-1"]
SETTINGS = [
    "",
    "x",
    "=3",
    "context_step=3",
    "context_steps=x",
    "context_steps=0",
    "adapter_dim=-3",
    "reward_bound=nan",
]
EFFORTS = ["everything", "", "price=x", "price=nan", "cost=3", "camera.9", "price=1,cap=1", "task=none"]
PLANNERS = ["cme", "", "cem?horizons=3", "cem?horizon=0", "cem?horizon=x", "cem?", "cem?horizon", "os:system"]
WORLD = ["Missing-v0", "", "missing_module:Env-v0", "TestPanBoard-v9", "os:system"]

# by command: words that are right, whether they run in a moment, and what is wrong for each flag
COMMANDS: dict[str, tuple[str, bool, dict[str, list[str]]]] = {
    "configs": ("configs", True, {}),
    "vocabulary": (
        "vocabulary --run mine",
        True,
        {"--run": FOLDER, "--model": FOLDER, "--double": ["camra.0", "", "camera", "camera.9", "place.0", "3"]},
    ),
    "record": (
        "record --env TestPanBoard-v0 --episodes 2 --test-fraction 0.5 --run new --no-progress",
        True,
        {
            "--env": WORLD,
            "--episodes": COUNT,
            "--frames": COUNT,
            "--policy": ["radnom", "", "os:missing", "random:x", "random:-1", "random:nan", "os:getcwd"],
            "--explore-steps": WHOLE,
            "--start": ["missing:f", "x", "os:sep"],
            "--env-arg": ["size=3", "x", "=3", ""],
            "--wrapper": ["missing:W", "x", "os:getcwd", ""],
            "--keep": ["palce", ""],
            "--rename": ["palce=where", "place", "place=", "=where", "place=my place", "place=action"],
            "--image-size": COUNT,
            "--seed": WHOLE,
            "--test-fraction": [*NUMBER, "0.7", "2"],
            "--fps": IF_GIVEN,
            "--workers": COUNT,
            "--max-episode-steps": COUNT,
            "--output": ["file.txt", "/proc/none", "x" * 5000, "mine"],
        },
    ),
    "mirror": (
        "mirror --from mine --run new --no-progress --flip horizontal --position place --swap horizontal:1=2",
        False,
        {
            "--from": FOLDER,
            "--flip": ["horizontl", "", "3"],
            "--position": ["palce", "", "place=x", "place=0", "place=0,9"],
            "--direction": ["palce", "place=0,0"],
            "--same": ["palce", ""],
            "--swap": ["left=right", "", "horizontal:left", "horizontal:8=9"],
            "--copies": COUNT,
            "--seed": WHOLE,
        },
    ),
    "import videos": ("import videos missing --run new", False, {"": FOLDER}),
    "import lerobot": ("import lerobot missing --run new", False, {"": FOLDER}),
    "import minari": ("import minari missing --run new", False, {"": FOLDER}),
    "import dataset": (
        "import dataset mine/data/data/train --run new --no-progress",
        False,
        {
            "": FOLDER,
            "--map": ["x", "=x", "palce=where", "action=my action", ""],
            "--image-size": COUNT,
            "--fps": IF_GIVEN,
            "--test-fraction": [*NUMBER, "0.7"],
        },
    ),
    "train": (
        "train --run mine --backbone debug --no-progress",
        False,
        {
            "--run": FOLDER,
            "--data": FOLDER,
            "--backbone": ["missing/model", "", "debgu", "file.txt"],
            "--seconds": POSITIVE,
            "--sense": FIELDS,
            "--set": SETTINGS,
            "--stage": STAGES,
            "--skip": ["dynamic", "", "3"],
            "--processes": COUNT,
            "--accelerate": ["missing.yaml", "file.txt"],
            "--seed": WHOLE,
            "--config": ["missing", "file.txt", ""],
        },
    ),
    "finetune": (
        "finetune --from mine --data mine/data --run new --max-steps 1 --no-progress",
        False,
        {
            "--from": FOLDER,
            "--data": FOLDER,
            "--adapter": ["lroa", "", "3"],
            "--rank": COUNT,
            "--seconds": POSITIVE,
            "--max-steps": COUNT,
            "--learning-rate": IF_GIVEN,
            "--seed": WHOLE,
        },
    ),
    "grow": (
        "grow --from mine --data mine/data --run new --max-steps 1 --no-progress",
        False,
        {
            "--from": FOLDER,
            "--data": FOLDER,
            "--seconds": POSITIVE,
            "--max-steps": COUNT,
            "--every": COUNT,
            "--threshold": IF_GIVEN,
            "--max-new": COUNT,
            "--name": ["", "=x"],
            "--seed": WHOLE,
        },
    ),
    "merge": (
        "merge --from mine --data mine/data --run new --max-steps 1 --no-progress",
        False,
        {
            "--from": FOLDER,
            "--data": FOLDER,
            "--part": ["palce", "", "mission"],
            "--chunk": COUNT,
            "--window": COUNT,
            "--seconds": POSITIVE,
            "--max-steps": COUNT,
            "--every": COUNT,
            "--count": WHOLE,
            "--trial-steps": COUNT,
            "--seed": WHOLE,
        },
    ),
    "evaluate": (
        "evaluate --run mine --windows 2 --horizon 1 --no-progress",
        False,
        {
            "--run": FOLDER,
            "--model": FOLDER,
            "--data": FOLDER,
            "--horizon": [*COUNT, "999"],
            "--windows": COUNT,
            "--batch-size": COUNT,
            "--temperature": NUMBER,
            "--env": WORLD,
            "--seed": ["2.5", "x", "", "nan", "None"],
            "--effort": EFFORTS,
            "--reencode": WHOLE,
            "--context": COUNT,
            "--device": ["gpu", "", "cuda:99", "tpu"],
            "--reward-threshold": NUMBER,
        },
    ),
    "plan": (
        "plan --run mine --episodes 1 --max-steps 2 --planner random_shooting?num_samples=2&horizon=1 --no-progress",
        False,
        {
            "--run": FOLDER,
            "--model": FOLDER,
            "--data": FOLDER,
            "--planner": PLANNERS,
            "--env": WORLD,
            "--episodes": COUNT,
            "--seed": ["-1", "2.5", "x", ""],
            "--max-steps": COUNT,
            "--time-limit": IF_GIVEN,
            "--episode-time-limit": IF_GIVEN,
            "--success": ["missing:f", "x", "os:sep", ""],
            "--effort": EFFORTS,
            "--replan": ["alway", "", "3"],
            "--reward-threshold": ["x", "nan", ""],
        },
    ),
    "pool": ("pool mine mine --output new", False, {"": FOLDER}),
    "report": ("report --run mine", False, {"--run": ["missing", "file.txt", "/proc/none"]}),
    "push": (
        "push --repo user/name --run mine",
        False,
        {"--repo": ["", "a b", "a/b/c", "-x", "x" * 200], "--run": FOLDER, "--license": [""]},
    ),
    "quickstart": ("quickstart --run new --seconds 1", False, {"--seconds": IF_GIVEN, "--backbone": ["debgu", ""]}),
}


@cache
def _finished() -> Path:
    """A folder with a run, `mine`, and a file that is none."""
    folder = new_folder()
    shutil.copytree(board().data, folder / "mine" / "data")
    shutil.copytree(board().model, folder / "mine" / "checkpoint")
    (folder / "mine" / "checkpoint" / "training_data.json").write_text(
        '{"root": "../data", "fingerprints": [], "environments": []}'
    )
    (folder / "file.txt").write_text("neither yaml: [nor\x00 a checkpoint")
    return folder


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    """Raises TookLong from inside where the processor takes longer, or where it waits for `PATIENCE` times as long."""

    def stop(*_):
        raise TookLong(f"took more than {seconds} s")

    timers = {signal.ITIMER_PROF: (signal.SIGPROF, seconds), signal.ITIMER_REAL: (signal.SIGALRM, PATIENCE * seconds)}
    before = {number: signal.signal(number, stop) for number, _ in timers.values()}
    for timer, (_, most) in timers.items():
        signal.setitimer(timer, most)
    try:
        yield
    finally:
        for timer, (number, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def pan(words: list[str], folder: Path) -> str:
    """Runs a command in a folder; returns what it printed, or raises the error behind its message.

    Raises:
        AssertionError: it ended with status 1 and without a message.
    """
    from pan_hf import cli

    said, printed, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed), _within(MOST_SECONDS):
            with mock.patch.object(sys, "argv", ["pan", *words]):
                cli.main()
    except SystemExit as exit:
        if exit.code not in (0, None):
            assert "Error" in said.getvalue() or exit.code == 2, f"status {exit.code} and no message"
            raise exit.__context__ or AssertionError(said.getvalue()) from None
    finally:
        os.chdir(before)
    return "done"


def _changes(words: list[str], flag: str, value: str, is_place: bool) -> list[str]:
    if is_place:  # the last word that is not behind a flag
        at = next(index for index, word in enumerate(words) if word.startswith(("missing", "mine")))
        return [*words[:at], value, *words[at + 1 :]]
    if flag in words:
        at = words.index(flag)
        return [*words[: at + 1], value, *words[at + 2 :]]
    return [*words, flag, value]


def _command_target(name: str, right: str, is_quick: bool, flags: dict[str, list[str]]) -> Target:
    words = right.split()

    def make(world: World, number: int) -> Call:
        folder = _folder()

        def changed(flag: str, value: str) -> Callable[[], Change]:
            given = _changes(words, flag, value, not flag)
            names = [flag, flag.lstrip("-"), flag.lstrip("-").replace("-", "_"), value, Path(value).name, "argument"]
            names += [value.partition("=")[0].rpartition(".")[2], "PanConfig" if flag == "--set" else flag]  # a field
            names += [value.partition("@")[0], repr(value), repr(value)[1:-1]]  # of a Hub; as Python shows it
            return lambda: Change(f"{flag} {value!r:.40}", WRONG, given, tuple(names))

        made = [changed(flag, value) for flag, values in flags.items() for value in values]
        typed = {
            "a misspelt flag": [*words, "--rnu", "x"],
            "a flag without a value": [*words, "--run"],
            "a word too many": [*words, "more"],
            "a misspelt command": [words[0] + "s", *words[1:]],
        }
        made += [partial(Change, what, WRONG, given, (*given, "argument", "command")) for what, given in typed.items()]
        if is_quick:
            made += [lambda: Change("--help", FREE, [*words, "--help"], ())]
        right_words = words if is_quick else [*words, "--help"]
        return Call(lambda words: pan(words, folder), {"words": (right_words, made)}, state=(folder,), is_pure=False)

    return Target(f"pan {name}", ("discrete",), make, weight=1, numbers=1)


_last: list = []


def _folder() -> Path:
    """A copy of the finished run; the last one, while nothing was written into it."""
    if _last and digest(_last[0]) == _last[1]:
        return _last[0]
    if _last:
        shutil.rmtree(_last[0], ignore_errors=True)
    folder = new_folder() / "here"
    shutil.copytree(_finished(), folder)
    _last[:] = [folder, digest(folder)]
    return folder


TARGETS += [_command_target(name, *told) for name, told in COMMANDS.items()]
