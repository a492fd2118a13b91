"""What a stage trains on and is evaluated on: windows of the training episodes, in memory or streamed, and of some
episodes held out of them. Test episodes are never read."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from pan_hf.data.compat import check_reward_range
from pan_hf.data.episodes import episode_files, read_info
from pan_hf.data.trajectories import Trajectories, load_trajectories
from pan_hf.features import feature_of
from pan_hf.hub import on_disk
from pan_hf.modeling.state_pan import Actions, as_action
from pan_hf.training.arguments import last_checkpoint
from pan_hf.training.rollouts import make_rollouts
from pan_hf.training.sampling import WeightedRows
from pan_hf.training.streaming import STATE, WindowStream, as_they_are, dataset_stats, some_episodes

if TYPE_CHECKING:
    from pan_hf.training.arguments import Stage, StageArguments

logger = logging.getLogger(__name__)

ROWS_IN_MEMORY = 5  # frames for each window of a stream's buffer; about what the stream itself holds
SHOWN_STEPS = 8  # of a rollout that is shown


@dataclass
class StageData:
    """What a stage is trained on.

    Args:
        dataset: of training, map-style with a `sampler`, or a [`WindowStream`].
        held_out (*optional*): windows of episodes that are not trained on.
        in_memory (`list[tuple[str, str]]`): fingerprint and environment of the episodes in memory.
        rollouts (*optional*): observation and actions of windows held out, for [`RolloutImages`].
    """

    dataset: Dataset | IterableDataset
    sampler: WeightedRows | None
    held_out: Dataset | None
    in_memory: list[tuple[str, str]]
    rollouts: tuple[dict, Tensor | Actions] | None = None

    def trained_on(self) -> tuple[list[str], list[str]]:
        """Fingerprints and environments of every episode that training has looked at."""
        streamed = self.dataset.seen.values() if isinstance(self.dataset, WindowStream) else []
        fingerprints, environments = zip(*self.in_memory, *streamed, strict=True)
        return list(fingerprints), list(environments)


def make_stage_data(
    stage: Stage, args: StageArguments, model, processor, trajectories: Trajectories | None
) -> StageData:
    """The data of a stage.

    Args:
        trajectories (*optional*): the train split where it is in memory already.

    Raises:
        FileNotFoundError: there is no recording.
        ValueError: it does not fit the model, its rewards among others, or has too few episodes to hold some out.
    """
    if args.streaming:
        args.data = str(on_disk(args.data, "dataset", only=("meta/*", "data/train/*")))
        read_info(args.data)
    if args.streaming and stage.streams:
        return _streamed(stage, args, model, processor)
    if args.streaming:
        chosen = some_episodes(args.data, args.seed, ROWS_IN_MEMORY * args.stream_buffer)
        logger.warning(f"Stage {stage.name!r} reads {len(chosen)} episodes, drawn at random, into memory.")
        trajectories = load_trajectories(args.data, "train", episodes=chosen)
    trajectories = trajectories or load_trajectories(args.data, "train")
    check_reward_range(model.config, trajectories.rewards, trajectories.actor_rewards)
    in_memory = list(zip(trajectories.fingerprints, trajectories.environments, strict=True))
    trained, kept = trajectories, None
    if args.eval_fraction:
        first, last = split(list(range(trajectories.num_episodes)), args.eval_fraction, args.seed)
        trained, kept = trajectories.select(first), trajectories.select(last)
    dataset, weights = stage.make_data(model, processor, trained, args)
    stage.look(model, dataset)
    held_out, rollouts = _held_out(stage, args, model, processor, kept)
    return StageData(dataset, WeightedRows(weights, args.seed), held_out, in_memory, rollouts)


def split(episodes: list[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Episodes to train on, and a share `fraction` of them, at least one, that are held out, drawn at random.

    Raises:
        ValueError: nothing would be left to train on.
    """
    count = max(1, round(fraction * len(episodes)))
    if count >= len(episodes):
        raise ValueError(f"`eval_fraction` {fraction} of {len(episodes)} episodes leaves none to train on.")
    held_out = set(np.random.default_rng(seed).choice(episodes, count, replace=False).tolist())
    return [one for one in episodes if one not in held_out], sorted(held_out)


def _streamed(stage: Stage, args: StageArguments, model, processor) -> StageData:
    episodes, in_memory = list(episode_files(Path(args.data), "train")), []
    kept: Trajectories | None = None
    if args.eval_fraction:
        episodes, last = split(episodes, args.eval_fraction, args.seed)
        chosen = some_episodes(args.data, args.seed, ROWS_IN_MEMORY * args.stream_buffer, last)
        kept = load_trajectories(args.data, "train", episodes=chosen)
        in_memory = list(zip(kept.fingerprints, kept.environments, strict=True))
    still = as_they_are(model)
    stats, windows = dataset_stats(model, processor, args.data, episodes, args.seed)
    stage.look(model, windows)

    def of_episode(trajectories: Trajectories):
        return stage.make_data(still, processor, trajectories, None, stats)

    windows_a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    least_rows = model.config.context_steps + 1
    stream = WindowStream(args.data, episodes, of_episode, args.seed, args.stream_buffer, windows_a_step, least_rows)
    args.accelerator_config.dispatch_batches = False  # each process goes through the stream and keeps its own rows
    checkpoint = last_checkpoint(Path(args.output_dir))
    if checkpoint:
        stream.resume(json.loads((Path(checkpoint) / STATE).read_text()))
        args.ignore_data_skip = True  # the stream begins where the checkpoint was
    held_out, rollouts = _held_out(stage, args, model, processor, kept)
    return StageData(stream, None, held_out, in_memory, rollouts)


def _held_out(stage: Stage, args: StageArguments, model, processor, kept: Trajectories | None):
    """Windows held out, at most `eval_windows` of them, and what rollouts are shown of."""
    if kept is None:
        return None, None
    dataset, _ = stage.make_data(model, processor, kept, args)
    drawn = np.random.default_rng(args.seed).permutation(len(dataset))[: args.eval_windows]  # type: ignore[arg-type]  # of a map-style set
    rollouts = rollout_windows(model, processor, kept) if args.rollout_every else None
    return Subset(dataset, sorted(drawn.tolist())), rollouts


def rollout_windows(
    model, processor, trajectories: Trajectories, count: int = 2
) -> tuple[dict, Tensor | Actions] | None:
    """Observation and actions of the first windows of some episodes: what the model sees first, and `SHOWN_STEPS`
    steps, or as many as the longest episode has. None for a model without a sense that can be shown."""
    if not any(feature_of(sense).is_shown for sense in model.config.senses.values()):
        return None
    # no arguments of a Trainer: making some anew would forget which process this is
    windows, _ = make_rollouts(model, processor, trajectories, SimpleNamespace(horizon=SHOWN_STEPS))
    spread = np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(int).tolist()
    batch = windows.__getitems__(spread)
    return batch["observation"], as_action(batch["action"])
