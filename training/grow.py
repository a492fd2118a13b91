"""Growth in training: a recording that holds something new, codes for it on a schedule, and a model that learns them.
Words that a person names are born at the first attempt.

It is the joint stage, in which new codes are tried every so many steps and stay if they make held-out windows shorter
to describe. The last tenth of the training episodes is held out for that; no gradient is taken on it.

    python -m pan_hf.training.grow --model DIR --data DIR --output_dir DIR --seconds 60 --grow_every 50
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from pan_hf.data.trajectories import Trajectories
from pan_hf.modeling import PanModel
from pan_hf.modeling.learning_pan import NOVEL, Growth
from pan_hf.tokenization import PanProcessor
from pan_hf.training.arguments import Stage, StageArguments, last_checkpoint
from pan_hf.training.datasets import candidates_and_held_out, in_last_episodes
from pan_hf.training.rollouts import choose_latents
from pan_hf.training.run_folder import run_growing_stage
from pan_hf.training.sampling import make_raw
from pan_hf.training.stage import main


@dataclass
class GrowthArguments(StageArguments):
    """What the growth stage takes beside what every stage takes."""

    grow_every: int = field(default=50, metadata={"help": "Steps between attempts to grow; the first is at step 1."})
    grow_windows: int = field(default=256, metadata={"help": "Windows of training looked at in an attempt."})
    threshold: float = field(default=NOVEL, metadata={"help": "Distance from which a piece of an image is novel."})
    prune: bool = field(default=False, metadata={"help": "Also try to retire codes that are unused or twins."})
    max_new: int = field(default=32, metadata={"help": "Codes at most, in the whole stage."})
    names: list[str] | None = field(
        default=None, metadata={"help": "Words to make live at the first attempt: WORD, or 'WORD=what it means'."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not all(self.named()):
            raise ValueError(f"`names` must be words, or 'WORD=what it means', got {self.names}.")
        for name in ("grow_every", "grow_windows", "max_new"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not self.threshold > 0:
            raise ValueError(f"`threshold` must be above 0, got {self.threshold}.")

    def named(self) -> dict[str, str]:
        """What `names` says: word -> what it means, in words that are known; the word's own pieces if it says none."""
        return {name: meaning or name for name, _, meaning in (given.partition("=") for given in self.names or [])}


class GrowthCallback(TrainerCallback):
    """Lets a model grow while it is trained, on a schedule.

    Every process grows alike, since the first one decides. Attempts are kept in the Trainer's log, by step: what was
    tried, accepted or rejected, and the bits an observation it saves.

    Args:
        model ([`PanModel`]): attached to its processor.
        windows: raw windows of training, with `__getitems__`; a batch has `observation` and `action`.
        candidates, held_out (`list[int]`): indices of windows to learn from, and to decide by.
        args ([`GrowthArguments`]): schedule, and what is tried.
    """

    def __init__(
        self,
        model: PanModel,
        windows: Dataset,
        candidates: Sequence[int],
        held_out: Sequence[int],
        args: GrowthArguments,
    ):
        self.model, self.windows, self.candidates, self.held_out = model, windows, candidates, held_out
        self.args, self.named = args, args.named()

    def on_step_end(self, args, state, control, **kwargs):
        if (state.global_step - 1) % self.args.grow_every == 0:
            self.grow(state)

    def grow(self, state) -> None:
        """One attempt."""
        self._name(state)
        room = self.args.max_new - self._grown(state)
        if room < 1 and not self.args.prune:
            return
        generator = np.random.default_rng([self.args.seed, state.global_step])
        chosen = generator.choice(self.candidates, min(self.args.grow_windows, len(self.candidates)), replace=False)
        seen, held_out = (self.windows.__getitems__(list(rows)) for rows in (chosen, self.held_out))
        seen = self._on_device(seen["observation"])
        common = {
            "held_out": (self._on_device(held_out["observation"]), held_out["action"].to(self.model.device)),
            "step": state.global_step,
        }
        growths = self._learn(seen, room, common) if room else []
        growths += self.model.prune(seen, **common) if self.args.prune else []
        state.log_history += [
            {"growth": asdict(growth), "gain": growth.gain, "step": state.global_step} for growth in growths
        ]

    def _name(self, state) -> None:
        """Words of `named` that are none yet. A person wants them, so whatever they save they stay."""
        fresh = [name for name in self.named if not self.model.processor.tokenizer.has_word(name)]
        if not fresh:
            return
        meanings = [self.named[name] for name in fresh]
        ids = self.model.grow("text", names=fresh, descriptions=meanings, step=state.global_step)
        growth = Growth("text", "named", len(fresh), True, None, None, ids)  # bits that nobody has counted
        state.log_history.append({"growth": asdict(growth), "gain": None, "step": state.global_step})

    def _learn(self, seen: dict[str, torch.Tensor], room: int, common: dict[str, Any]) -> list[Growth]:
        return self.model.learn(seen, threshold=self.args.threshold, max_new=room, will_train=True, **common)

    def _grown(self, state) -> int:
        """Codes that this run has grown so far; the log outlives a kill."""
        growths = [entry["growth"] for entry in state.log_history if "growth" in entry]
        return sum(len(growth["ids"]) for growth in growths if growth["reason"] == "novelty")

    def _on_device(self, observation: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: values.to(self.model.device) for name, values in observation.items()}


def make_data(
    model: PanModel, processor: PanProcessor, trajectories: Trajectories, _args: GrowthArguments | None = None
):
    """Raw windows; those of the last episodes are never drawn."""
    windows, weights = make_raw(model, processor, trajectories)
    windows.is_held_out = in_last_episodes(trajectories, windows.rows.numpy())
    return windows, weights * ~windows.is_held_out


def callbacks(model: PanModel, windows: Dataset, args: GrowthArguments) -> list[TrainerCallback]:
    """The one that grows. Raises ValueError for names that are words already, unless this run gave them."""
    taken = [name for name in args.named() if model.processor.tokenizer.has_word(name)]
    if taken and not last_checkpoint(Path(args.output_dir)):
        raise ValueError(f"{taken} are words already; choose other names.")
    return [GrowthCallback(model, windows, *candidates_and_held_out(windows, args.seed), args)]


STAGE = Stage(
    name="growth",
    objective="joint",
    trains=r"(?!switch\.)",
    make_data=make_data,
    callbacks=callbacks,
    calibrate=choose_latents,
    arguments=GrowthArguments,
    defaults={"learning_rate": 2e-4, "per_device_train_batch_size": 16},
    slow={"senses.": 0.01},
    averages=False,
)


def grow(
    run: str | Path,
    start: str | Path,
    data: str | Path | None = None,
    *,
    seconds: float = 60.0,
    max_steps: int | None = None,
    every: int = 50,
    threshold: float | None = None,
    max_new: int = 32,
    prune: bool = False,
    names: list[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Trains on a recording with something new in it, growing codes for what none describes: writes growth.json.

    Args:
        run: folder of the new run; holds everything afterwards.
        start: the run or checkpoint to start from, or its Hub id; it is left as it is.
        data: the recording, a folder or a Hub id; `<run>/data` by default.
        seconds (`float`): how long to train.
        max_steps (`int`, *optional*): how long to train, in steps; a run is then independent of the machine's speed.
        every (`int`): steps between attempts to grow.
        threshold (`float`, *optional*): distance from which a piece of an image is novel, see [`PanModel.learn`].
        max_new (`int`): codes at most.
        names (`list[str]`, *optional*): words to make live, each a word or "word=what it means", in known words.
        prune (`bool`): also try to retire codes that are unused, or twins of others.
        seed (`int`): of everything random.
        progress (`bool`): show progress bars.

    Returns:
        the folder of the finished checkpoint.

    Raises:
        FileNotFoundError: there is no checkpoint, or no recording.
        ValueError: the recording does not fit the model, the run was begun with other settings or would overwrite what
            it starts from.
    """
    settings = {"grow_every": every, "threshold": threshold, "max_new": max_new, "prune": prune, "names": names}
    settings |= {"seconds": seconds, "max_steps": max_steps, "seed": seed}
    return run_growing_stage(STAGE, Path(run), start, data, settings, progress)


if __name__ == "__main__":
    main(STAGE)
