"""`pan_hf/Imagined-v0`: the imagined world of a checkpoint, named by its folder or Hub id. Episodes begin at steps of
the recording that it was trained on.

    gymnasium.make("pan_hf.envs.environment:pan_hf/Imagined-v0", checkpoint="runs/quickstart")
    gymnasium.make_vec("pan_hf.envs.environment:pan_hf/Imagined-v0", num_envs=64, checkpoint="runs/quickstart")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pan_hf.checkpoints import find_checkpoint, find_recording, load
from pan_hf.data.starts import RecordedStarts
from pan_hf.data.trajectories import load_trajectories
from pan_hf.envs.imagined import ImaginedEnv, ImaginedVectorEnv
from pan_hf.modeling import PanModel
from pan_hf.tokenization import PanProcessor


def load_imagined(
    checkpoint: str | Path, data: str | Path | None = None, environment: str | None = None
) -> tuple[PanModel, PanProcessor, RecordedStarts]:
    """A checkpoint, and the steps of its training episodes to begin from.

    Args:
        checkpoint: a run folder, a checkpoint, or its Hub id.
        data (*optional*): the recording, a folder or a Hub id; the one that the checkpoint was trained on by default.
        environment (`str`, *optional*): id, to begin in its episodes only.

    Raises:
        FileNotFoundError: there is no checkpoint, or no recording.
        ValueError: the recording lacks a sense of the model, or has no episode of `environment`.
    """
    root = find_recording(find_checkpoint(checkpoint, adapters=True), data)
    model, processor = load(checkpoint)
    return model, processor, RecordedStarts(load_trajectories(root, "train"), processor, model, environment)


def make_imagined_env(
    checkpoint: str | Path, data: str | Path | None = None, environment: str | None = None, **settings: Any
) -> ImaginedEnv:
    """One imagined episode at a time. Args: see `load_imagined`; settings, of [`ImaginedEnv`]."""
    return ImaginedEnv(*load_imagined(checkpoint, data, environment), **settings)


def make_imagined_vector_env(
    num_envs: int,
    checkpoint: str | Path,
    data: str | Path | None = None,
    environment: str | None = None,
    max_episode_steps: int | None = None,
    **settings: Any,
) -> ImaginedVectorEnv:
    """Many imagined episodes in one batch. Args: see `make_imagined_env`; max_episode_steps, the horizon by
    gymnasium's name."""
    horizon = {} if max_episode_steps is None else {"horizon": max_episode_steps}
    return ImaginedVectorEnv(*load_imagined(checkpoint, data, environment), num_envs=num_envs, **(settings | horizon))
