"""Codes for what none describes, and words that a person names, born while a model is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers import TrainerCallback

from pan_hf.modeling import PanModel
from pan_hf.modeling.learning_pan import NOVEL, Growth
from pan_hf.training.arguments import StageArguments
from pan_hf.training.windows import Windows


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
        self.check_least(grow_every=1, grow_windows=1, max_new=1)
        if not self.threshold > 0:
            raise ValueError(f"`threshold` must be above 0, got {self.threshold}.")

    def named(self) -> dict[str, str]:
        """What `names` says: word -> what it means, in words that are known; the word's own pieces if it says none."""
        return {name: meaning or name for name, _, meaning in (text.partition("=") for text in self.names or [])}


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
        windows: Windows,
        candidates: np.ndarray,
        held_out: np.ndarray,
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
        # counted in the log, which outlives a kill
        tried = [entry["growth"] for entry in state.log_history if "growth" in entry]
        room = self.args.max_new - sum(len(growth["ids"]) for growth in tried if growth["reason"] == "novelty")
        if room < 1 and not self.args.prune:
            return
        generator = np.random.default_rng([self.args.seed, state.global_step])
        chosen = generator.choice(self.candidates, min(self.args.grow_windows, len(self.candidates)), replace=False)
        seen, held_out = (self.windows.__getitems__(list(rows)) for rows in (chosen, self.held_out))
        seen = send_to_device(seen["observation"], self.model.device)
        common: dict[str, Any] = {
            "held_out": send_to_device((held_out["observation"], held_out["action"]), self.model.device),
            "step": state.global_step,
        }
        growths = (
            self.model.learn(seen, threshold=self.args.threshold, max_new=room, will_train=True, **common)
            if room
            else []
        )
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
        state.log_history.append({"growth": asdict(growth), "gain": growth.gain, "step": state.global_step})


# ---- What growth and merges are accepted by: windows of episodes that are not trained on.


HELD_OUT = 10  # one in so many episodes is held out of growth
HELD_OUT_WINDOWS = 64  # of these episodes, by which growth is accepted


def in_last_episodes(trajectories, rows: np.ndarray) -> torch.Tensor:
    """Which rows are of the episodes that are held out of growth, the last tenth; `(len(rows),)` bool."""
    first = int(len(trajectories.episode_starts) * (1 - 1 / HELD_OUT))
    return torch.from_numpy(trajectories.episode[rows] >= max(first, 1))


def candidates_and_held_out(windows, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of windows to grow from, and of held-out windows by which growth is accepted. Raises ValueError where
    none is held out."""
    candidates, held_out = ((windows.is_held_out == which).nonzero().squeeze(1).numpy() for which in (False, True))
    if not len(held_out):
        raise ValueError("Growth is accepted by episodes held out, and the recording has one alone; record more.")
    count = min(HELD_OUT_WINDOWS, len(held_out))
    return candidates, np.random.default_rng(seed).choice(held_out, count, replace=False)
