"""Did a refactoring change nothing? Trains the same small models with two revisions of the code and compares them.

    python benchmarks/unchanged.py --base HEAD~3     # a checkout of that revision against the working tree

In each tree a tiny world is recorded, every stage is trained for a few steps and the result imagines futures, on one
thread of the CPU, by public commands alone: what is compared must outlive the layout of the code. Equal means:

- losses, gradient norms and learning rates of every step of every stage, to the last digit logged;
- names, types, shapes and bytes of all tensors that each stage saved;
- codes, rewards, log probabilities and pictures of imagined futures.

Ends with status 1 where anything differs, and says what came first.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import gymnasium
import numpy as np
import typer
from gymnasium import spaces
from safetensors import deserialize

ROOT = Path(__file__).resolve().parent.parent
STEPS = {"senses": 6, "backbone": 3, "sentences": 3, "dynamics": 6, "latent_head": 3, "joint": 3}
STEPS |= {"switch": 3, "reinforce": 3}
SMALL = ["--sense", "camera.codebook_size=[16,16]", "--sense", "camera.codebook_capacity=[24,24]"]
SMALL += ["--sense", "camera.hidden_size=16", "--sense", "camera.num_blocks=1"]
# by world: options of `pan train`, chosen so that together they reach most of the model
WORLDS = {
    "Unchanged-v0": SMALL,
    "UnchangedVector-v0": [
        *SMALL,
        *("--set", "level0_sampling=autoregressive", "--set", "context_steps=2", "--set", "fold_levels=False"),
        *("--set", "context_noise=0.2", "--set", "latent_feedback=True"),
        *("--skip", "backbone", "--skip", "sentences", "--skip", "switch", "--skip", "reinforce"),
    ],
}


class Board(gymnasium.Env):
    """A bright cell on a 4x4 board, seen, felt and spoken of; moved by one of five actions or by a vector."""

    metadata = {"render_modes": [], "render_fps": 4}
    MOVES = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))

    def __init__(self, is_vector: bool = False):
        self.is_vector = is_vector
        camera, place = spaces.Box(0, 255, (16, 16, 3), np.uint8), spaces.Box(0, 3, (2,), np.float32)
        texts = {"mission": spaces.Text(30), "heard": spaces.Text(30)}
        self.observation_space = spaces.Dict({"camera": camera, "place": place, **texts})
        self.action_space = spaces.Box(-1, 1, (2,), np.float32) if is_vector else spaces.Discrete(len(self.MOVES))

    def _look(self) -> dict:
        camera = np.full((4, 4, 3), 20, np.uint8)
        camera[tuple(self.place)] = self.color
        heard = "near the goal" if self.place.sum() >= 4 else "far"
        seen = {"camera": camera.repeat(4, 0).repeat(4, 1), "place": self.place.astype(np.float32)}
        return seen | {"mission": f"take {self.color[0]} to the corner", "heard": heard}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.integers(0, 3, 2)
        self.color = [(250, 200, 30), (40, 90, 240)][self.np_random.integers(2)]
        return self._look(), {}

    def step(self, action):
        move = np.rint(action).astype(int) if self.is_vector else np.array(self.MOVES[action])
        self.place = (self.place + move).clip(0, 3)
        is_corner = bool((self.place == 3).all())
        return self._look(), float(is_corner), is_corner, False, {}


gymnasium.register("Unchanged-v0", entry_point=Board, max_episode_steps=10)
gymnasium.register("UnchangedVector-v0", entry_point=Board, max_episode_steps=10, kwargs={"is_vector": True})

# imagines futures with the checkpoint of a run and keeps all that is known of them; `argv`: run, world, tree
IMAGINE = """
import sys, pathlib, gymnasium, numpy, torch, pan_hf, unchanged
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor
run, world, tree = sys.argv[1:]
assert pathlib.Path(pan_hf.__file__).is_relative_to(tree), f"{pan_hf.__file__} is not of {tree}"
model = AutoModel.from_pretrained(f"{run}/checkpoint").eval()
processor = AutoProcessor.from_pretrained(f"{run}/checkpoint")
env = gymnasium.make(world)
env.action_space.seed(7)
actions = numpy.stack([env.action_space.sample() for _ in range(4)])
actions = processor(action=actions[None])["action"]
belief = model.perceive(**processor(observation=env.reset(seed=7)[0]))
told = {}
for effort in (None, "coarsest", "auto") if model.config.level0_sampling == "parallel" else (None,):
    futures = model.simulate(belief, actions, num_rollouts=4, seed=3, effort=effort)
    found = {f"{name}.{level}": codes for name, parts in futures.codes.items() for level, codes in enumerate(parts)}
    found |= futures.state.text | {"reward": futures.reward, "continue": futures.continue_prob}
    found |= {"log_prob": futures.log_prob, "seen": futures.decode("camera"), "felt": futures.decode("place")}
    told |= {f"{effort}/{name}": tensor.contiguous() for name, tensor in found.items()}
save_file(told, f"{run}/futures.safetensors")
"""


@dataclass
class Result:
    """What a stage left: its log, an entry a step, and its tensors as (type, shape, bytes) by name."""

    log: list[dict] = field(default_factory=list)
    tensors: dict[str, tuple] = field(default_factory=dict)


def main(
    base: Annotated[str, typer.Option(help="Revision to compare the working tree with.")] = "HEAD",
    keep: Annotated[Path | None, typer.Option(help="Keep both sides' runs in this new folder.")] = None,
) -> None:
    """Trains both sides, prints a table and ends with status 1 on any difference."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if keep is None else keep.resolve()
        with checkout(base, Path(temporary) / "tree") as tree:
            sides = [run_all(tree, folder / "base"), run_all(ROOT, folder / "here")]
        is_equal = True
        for world in WORLDS:
            differences = print_table(world, *(read(side / world) for side in sides))
            is_equal = is_equal and not differences
    print("Nothing changed." if is_equal else f"Something changed since {base}.")
    raise typer.Exit(not is_equal)


@contextmanager
def checkout(revision: str, folder: Path) -> Iterator[Path]:
    """A git worktree of a revision, for a while. Raises `typer.BadParameter` where there is no such revision."""
    git = ["git", "-C", str(ROOT), "worktree"]
    done = subprocess.run([*git, "add", "--detach", str(folder), revision], capture_output=True, text=True)
    if done.returncode:
        raise typer.BadParameter(f"--base {revision}: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def run_all(tree: Path, folder: Path) -> Path:
    """Records, trains and imagines every world with the code of a tree, into a run folder of the world's name."""
    folder.mkdir(parents=True)
    shutil.copy(__file__, folder / "unchanged.py")  # so that both sides find the worlds: the base may not have them
    begun = time.monotonic()
    for world, options in WORLDS.items():
        pan = [sys.executable, "-m", "pan_hf.cli"]
        amount = ["--episodes", "10", "--test-fraction", "0.2"]
        run(tree, folder, [*pan, "record", "--env", f"unchanged:{world}", "--run", world, *amount])
        run(tree, folder, [*pan, "train", "--run", world, "--backbone", "debug", *stage_options(), *options])
        run(tree, folder, [sys.executable, "-c", IMAGINE, world, world, str(tree)])
    print(f"{tree}: {time.monotonic() - begun:.0f} s")
    return folder


def stage_options() -> list[str]:
    """Every stage takes so many steps, however long they last, and logs each."""
    fields = {"seconds": None, "logging_steps": 1, "per_device_train_batch_size": 4, "progress": False}
    told = {f"{name}.{key}": value for name in STEPS for key, value in fields.items()}
    told |= {f"{name}.max_steps": steps for name, steps in STEPS.items()}
    told |= {"sentences.merge_every": 2, "sentences.merge_count": 4, "sentences.trial_steps": 1}
    return [item for key, value in told.items() for item in ("--stage", f"{key}={value}")]


def run(tree: Path, folder: Path, command: list[str]) -> None:
    """Runs a command in `folder` with the code of `tree`. Raises RuntimeError with what it said if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with the code of {tree}:\n{done.stdout}{done.stderr}"[-4000:])


def read(run: Path) -> dict[str, Result]:
    """What a run holds, by stage, with the untrained model before them and the futures after them."""
    found = {}
    for stage in sorted((run / "stages").glob("[0-9]-*")):
        log = stage / "log.json"
        text = log.read_text() if log.exists() else "[]"
        entries = json.loads(text.replace(".mended", ".latent_reconstruction"))  # its name before 0.3
        curve = [entry for entry in entries if "loss" in entry]  # the last entry is of times
        found[stage.name] = Result(curve, read_tensors(stage / "final" if log.exists() else stage))
    found["checkpoint"] = Result(tensors=read_tensors(run / "checkpoint"))
    found["futures"] = Result(tensors=read_tensors(run))
    return found


def read_tensors(folder: Path) -> dict[str, tuple]:
    """Of all safetensors files in a folder: name -> (type, shape, bytes)."""
    tensors = [tensor for path in sorted(folder.glob("*.safetensors")) for tensor in deserialize(path.read_bytes())]
    return {name: (about["dtype"], tuple(about["shape"]), bytes(about["data"])) for name, about in tensors}


def compare(base: Result | None, here: Result | None) -> str:
    """The first difference in words; empty where there is none."""
    if base is None or here is None:
        return "only here" if base is None else "only in the base"
    for one, other in zip(base.log, here.log, strict=False):
        for name in sorted(one | other):
            if one.get(name) != other.get(name):
                return f"step {one['step']}: {name} {one.get(name)} -> {other.get(name)}"
    if len(base.log) != len(here.log):
        return f"{len(base.log)} -> {len(here.log)} steps"
    for name in sorted(base.tensors | here.tensors):
        (one, other) = (side.tensors.get(name) for side in (base, here))
        if one is None or other is None:
            return f"tensor {name} is only {'here' if one is None else 'in the base'}"
        if one[:2] != other[:2]:
            return f"tensor {name} is {one[0]} {one[1]} -> {other[0]} {other[1]}"
        if one[2] != other[2]:
            return f"tensor {name} has other values"
    return ""


def print_table(world: str, base: dict[str, Result], here: dict[str, Result]) -> list[str]:
    """A line a stage; returns the differences."""
    print(f"\n{world:<16} {'steps':>5} {'first loss':>12} {'last loss':>12} {'tensors':>8}  difference")
    differences = []
    for name in [*base, *(name for name in here if name not in base)]:
        difference = compare(base.get(name), here.get(name))
        shown = base.get(name) or here[name]
        first, last = (f"{shown.log[at]['loss']}" if shown.log else "" for at in (0, -1))
        print(
            f"{name:<16} {len(shown.log) or '':>5} {first:>12.12} {last:>12.12} {len(shown.tensors):>8}  "
            f"{difference or 'equal'}"
        )
        differences += [difference] if difference else []
    return differences


if __name__ == "__main__":
    typer.run(main)
