"""What an agent meets when it acts: how it is recorded, what a model can learn from it, how much it surprised one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pan_hf.agents.agent import PanAgent
from pan_hf.checkpoints import load
from pan_hf.data.compat import check_fits
from pan_hf.data.starts import RecordedStarts
from pan_hf.data.trajectories import Trajectories, load_trajectories
from pan_hf.data.windows import WindowReader

_MEASURED = 256  # steps whose surprise is measured
_BATCH = 32  # of them at once


def record_arguments(entry: dict) -> dict[str, Any]:
    """Arguments of `record` that make an environment of a recording again.

    Raises:
        ValueError: they cannot.
    """
    if entry.get("crop"):
        raise ValueError(f"{entry['id']} was recorded with `crop`, which `pan record` does not; record it without.")
    return {name: value for name, value in entry.items() if name not in ("id", "crop")}


def acting(agent_in: Callable[[Any], PanAgent]) -> type:
    """A policy for [`~pan_hf.data.record.record`] by which an agent acts. Args: agent_in, makes the agent for an
    environment; it plays all episodes."""
    made: list[PanAgent] = []

    class Acting:
        def __init__(self, env: Any):
            if not made:
                made.append(agent_in(env))
            self.env, self.agent, self.steps = env, made[0], 0

        def __call__(self, observation: dict, rng: np.random.Generator) -> Any:
            if not self.steps:
                self.agent.reset(seed=int(rng.integers(2**31)))
            reward = float(self.env.outcome.reward) if self.steps else None
            self.steps += 1
            return self.agent.act(observation, reward, mask=self.env.action_masks or None)

    return Acting


def misfits(config: Any, processor: Any, trajectories: Trajectories) -> list[int]:
    """Episodes (0 to E - 1) that a model cannot learn from: numbers beyond its range, texts that are too long."""
    wrong = []
    for episode in range(trajectories.num_episodes):
        try:
            check_fits(config, processor, trajectories.select([episode]))
        except ValueError:
            wrong.append(episode)
    return wrong


@torch.no_grad()
def surprise_at(checkpoint: Path, data: Path) -> dict[str, float]:
    """How little a model had expected of what was recorded, over the episodes that fit it.

    Returns:
        `surprise`, nats a step, all senses together, over some steps drawn at random, and `met_steps`, the number of
        recorded steps; nothing where no episode fits.
    """
    model, processor = load(checkpoint)
    trajectories = load_trajectories(data, "train")
    wrong = misfits(model.config, processor, trajectories)
    fitting = [episode for episode in range(trajectories.num_episodes) if episode not in wrong]
    if not fitting:
        return {}
    trajectories = trajectories.select(fitting)
    starts, reader = RecordedStarts(trajectories, processor, model), WindowReader(trajectories, processor, model, 1)
    chosen, found = np.sort(np.random.default_rng(0).permutation(len(starts))[:_MEASURED]), []
    for first in range(0, len(chosen), _BATCH):
        some = chosen[first : first + _BATCH]
        batch = reader.batch(starts.rows[some], 1)
        seen = {name: x[:, 1:] for name, x in batch["observation"].items() if reader.changes(name)}
        found.append(-model.log_prob(starts.beliefs(some), batch["action"], seen).codes[:, 0])
    return {"surprise": float(torch.cat(found).mean()), "met_steps": len(starts)}
