"""Learning a value: what rewards may be expected from a state on, from recorded and imagined experience.

    <run>/value    what was learned, see `pan_hf/agents/value.py`

Each network learns the returns of another sample of the recorded episodes. Where an episode, or an imagined window, is
cut before its end, the network's own value of the last state stands for what would have come after it.

Shapes: N = states, M = windows, K = networks, D = numbers of a belief.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pan_hf.agents.cache_scope import digest_of
from pan_hf.agents.critics import RewardCritic
from pan_hf.agents.policy import check_hidden
from pan_hf.agents.value import LearnedValue, total_duration
from pan_hf.arguments import a_seed, checked, least
from pan_hf.checkpoints import find_checkpoint, find_recording, results_folder
from pan_hf.console import track
from pan_hf.data.episodes import episode_files
from pan_hf.data.starts import RecordedStarts
from pan_hf.data.trajectories import Trajectories, load_trajectories
from pan_hf.data.windows import WindowReader
from pan_hf.envs.state_features import StateFeatures
from pan_hf.imagined_worlds import load_imagined
from pan_hf.modeling.state_pan import as_action
from pan_hf.modeling.validation_pan import real

_BATCH = 64  # states perceived, or windows imagined, in one call
_REFRESHED = 50  # updates between two looks at the values of last states


@dataclass
class Experience:
    """What the networks learn from.

    Args:
        features: of states, float32 `(N, D)`.
        states, ends: rows of `features`, `(M,)`: where a window begins, and where it is cut.
        returns: discounted rewards of each window, `(M,)`.
        passes: the share of the value at its end that counts at its beginning, `(M,)`; 0 where nothing comes after.
        episodes: number of the episode that each window is from, `(M,)`.
    """

    features: Tensor
    states: Tensor
    ends: Tensor
    returns: Tensor
    passes: Tensor
    episodes: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def joined(self, other: Experience) -> Experience:
        """Both together."""
        moved = [other.states + len(self.features), other.ends + len(self.features)]
        return Experience(
            torch.cat([self.features, other.features]),
            torch.cat([self.states, moved[0]]),
            torch.cat([self.ends, moved[1]]),
            torch.cat([self.returns, other.returns]),
            torch.cat([self.passes, other.passes]),
            torch.cat([self.episodes, other.episodes]),
        )


@checked(
    states=least(1),
    imagined=least(0),
    horizon=least(1),
    members=least(2),
    steps=least(1),
    batch_size=least(1),
    learning_rate=least(0, above=True),
    seed=a_seed,
)
def learn_value(
    run: str | Path,
    data_root: str | Path | None = None,
    *,
    states: int = 10_000,
    imagined: int = 0,
    horizon: int = 8,
    discount: float = 0.99,
    members: int = 5,
    hidden: Sequence[int] = (64, 64),
    steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    environment: str | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Learns what rewards may be expected from a state on, as the recording went on from there, with an interval.

    Planners take it for what comes after the end of what they imagine: `pan plan --value`. It takes a minute or two,
    and begins anew after an interruption.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, or a checkpoint, or its Hub id.
        data_root (`str` or `Path`, *optional*): the recording, whose training episodes it learns from; by default the
            one the checkpoint was trained on.
        states (`int`): recorded states to learn from: whole episodes, drawn at random, until there are so many.
        imagined (`int`): windows to learn from that are imagined: what else may come of the recorded actions.
        horizon (`int`): actions in each of them.
        discount (`float`): of rewards, a step; in (0, 1].
        members (`int`): networks, whose differences tell how sure the value is.
        hidden (`Sequence[int]`): widths of their layers.
        steps (`int`): updates.
        batch_size (`int`): windows in each.
        learning_rate (`float`): of AdamW.
        environment (`str`, *optional*): id, to learn from its episodes only.
        seed (`int`): of everything random.
        output (`str` or `Path`, *optional*): folder to write into; the run folder by default.
        progress (`bool`): show a line of progress.

    Returns:
        the folder of the value.

    Raises:
        FileNotFoundError: there is no checkpoint, or no recording.
        ValueError: an argument is out of its range; no recorded reward is known, or no episode is long enough.
    """
    widths, discount = check_hidden(hidden), real("discount", discount, 0, 1, above=True)
    folder = results_folder(run, output) / "value"
    model, _, starts = load_imagined(run, data_root, environment)
    features, rng = StateFeatures(model), np.random.default_rng(seed)
    drawn = rng.permutation(starts.trajectories.episodes_of(environment))
    chosen = _with_steps(starts.trajectories, drawn, states)
    experience = recorded_experience(starts, features, chosen, discount, progress)
    if imagined:
        experience = experience.joined(
            imagined_experience(starts, features, chosen, imagined, horizon, discount, rng, progress)
        )
    about: dict[str, Any] = {"states": len(experience), "imagined": imagined, "horizon": horizon, "seed": seed}
    about |= {"steps": steps, "environment": environment, "checkpoint": str(run), "weights": digest_of(model, None)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = LearnedValue(features.sizes, features.scales, widths, members, discount, about).to(model.device)
    fit(value, experience, steps, batch_size, learning_rate, seed, progress)
    root = find_recording(find_checkpoint(run, adapters=True), data_root)
    value.about |= _held_out(value, starts, root, environment, features, states, progress)
    value.save(folder)
    return folder


def _with_steps(trajectories: Trajectories, episodes: np.ndarray, states: int) -> np.ndarray:
    """The first of some episodes that have so many steps together, or all, ascending."""
    counts = (trajectories.episode_lengths[episodes] - 1).cumsum()
    return np.sort(episodes[: 1 + int((counts < states).sum())])


def recorded_experience(
    starts: RecordedStarts, features: StateFeatures, episodes: np.ndarray, discount: float, progress: bool = True
) -> Experience:
    """The returns of every step of some episodes. Of an episode that was cut, the last step tells no return: its
    state's value stands for what would have come after the others.

    Raises:
        ValueError: all of the episodes were cut after a step.
    """
    told = starts.trajectories
    numbers = np.flatnonzero(np.isin(told.episode[starts.rows], episodes))
    batches = [numbers[first : first + _BATCH] for first in range(0, len(numbers), _BATCH)]
    read = [features(starts.beliefs(some)) for some in track(batches, "perceiving", "batches", progress)]
    columns: list[tuple[np.ndarray, ...]] = []
    place = 0
    for episode in episodes:
        length = int(told.episode_lengths[episode]) - 1
        rows = told.episode_starts[episode] + np.arange(length)
        has_ended = bool(told.dones[rows[-1]]) if length else True
        counted = length if has_ended else length - 1
        if counted > 0:
            passes = np.zeros(counted) if has_ended else discount ** np.arange(counted, 0, -1)
            where = place + np.arange(counted)
            rewards = returns_of(told.rewards[rows[:counted]], discount)
            columns.append((where, np.full(counted, place + length - 1), rewards, passes, np.full(counted, episode)))
        place += length
    if not columns:
        raise ValueError("Every recorded episode was cut after one step, so no return is known; record longer ones.")
    joined = [torch.as_tensor(np.concatenate(column)) for column in zip(*columns, strict=True)]
    return Experience(torch.cat(read), joined[0], joined[1], joined[2].float(), joined[3].float(), joined[4])


def returns_of(rewards: np.ndarray, discount: float) -> np.ndarray:
    """The discounted sum of the rewards from each step on, `(T,)`."""
    returns, after = np.zeros(len(rewards)), 0.0
    for step in range(len(rewards) - 1, -1, -1):
        returns[step] = after = float(rewards[step]) + discount * after
    return returns


@torch.no_grad()
def imagined_experience(
    starts: RecordedStarts,
    features: StateFeatures,
    episodes: np.ndarray,
    count: int,
    horizon: int,
    discount: float,
    rng: np.random.Generator,
    progress: bool = True,
) -> Experience:
    """What else may come of recorded actions: windows of some episodes, drawn with replacement and imagined.

    Raises:
        ValueError: none of the episodes has so many actions.
    """
    told, model = starts.trajectories, starts.model
    reader = WindowReader(told, starts.processor, model)
    rows = told.windows(reader.lead + horizon) + reader.lead
    rows = rows[np.isin(told.episode[rows], episodes)]
    if not len(rows):
        raise ValueError(f"No chosen episode has {reader.lead + horizon} actions; imagine a shorter `horizon`.")
    drawn = np.sort(rng.choice(rows, count))
    critic, parts = RewardCritic(discount=discount), []
    batches = [drawn[first : first + _BATCH] for first in range(0, count, _BATCH)]
    for some in track(batches, "imagining", "batches", progress):
        batch = reader.batch(some, horizon)
        belief, actions = reader.perceive(batch), as_action(batch["action"])[:, reader.lead :]
        futures = model.simulate(belief, actions, temperature=1.0, seed=int(rng.integers(2**31)))
        scores = critic.score(futures)
        passes = futures.continue_prob.prod(1) * discount ** total_duration(futures, scores)
        parts.append((features(belief), features(futures.belief), critic.value(futures, scores), passes))
    first, last, returns, passes = (torch.cat(each) for each in zip(*parts, strict=True))
    states, numbers = torch.arange(count), torch.as_tensor(told.episode[drawn])
    return Experience(torch.cat([first, last]), states, states + count, returns.cpu(), passes.float().cpu(), numbers)


def fit(
    value: LearnedValue,
    experience: Experience,
    steps: int,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Trains the networks, each on a sample of as many episodes, with replacement."""
    generator = torch.Generator().manual_seed(seed)
    value.center.fill_(float(experience.returns.mean()))
    value.spread.fill_(float(experience.returns.std(correction=0)) or 1.0)
    names, episode = experience.episodes.unique(return_inverse=True)
    drawn = torch.randint(len(names), (len(value.members), len(names)), generator=generator)
    weights = torch.stack([torch.bincount(each, minlength=len(names)) for each in drawn]).float()
    optimizer = torch.optim.AdamW(value.parameters(), lr=learning_rate, weight_decay=1e-3)
    x = experience.features
    value.train()
    for step in track(range(steps), "learning a value", "updates", progress):
        if step % _REFRESHED == 0:
            targets = _targets(value, experience)  # (K, M)
        some = torch.randint(len(experience), (batch_size,), generator=generator)
        wrong = (value(x[experience.states[some]]) - targets[:, some].to(x.device)) / value.spread
        loss = torch.nn.functional.huber_loss(wrong, torch.zeros_like(wrong), reduction="none")
        counted = weights[:, episode[some]].to(x.device)
        optimizer.zero_grad()
        (loss * counted).sum(1).div(counted.sum(1).clamp(min=1)).sum().backward()
        optimizer.step()
    value.eval()


@torch.no_grad()
def _targets(value: LearnedValue, experience: Experience) -> Tensor:
    """What each network is to expect at the beginning of each window, `(K, M)`."""
    ends, places = experience.ends.unique(return_inverse=True)
    after = value(experience.features[ends]).cpu()[:, places]
    return experience.returns + experience.passes * after


def _held_out(
    value: LearnedValue,
    starts: RecordedStarts,
    root: Path,
    environment: str | None,
    features: StateFeatures,
    states: int,
    progress: bool,
) -> dict[str, Any]:
    """How well it tells the returns of episodes that were recorded for testing, those that were cut with its own value
    of their last state: the share of their variance that it explains, and of how many states. Nothing where there is
    none."""
    if not episode_files(root, "test"):
        return {}
    test = load_trajectories(root, "test")
    if environment is not None and environment not in test.environments:
        return {}
    known = set(starts.trajectories.fingerprints)
    long_enough = [each for each in test.episodes_of(environment) if test.episode_lengths[each] > 2]
    episodes = [each for each in long_enough if test.fingerprints[each] not in known]
    if not episodes:
        return {}
    told = RecordedStarts(test, starts.processor, starts.model, environment)
    some = _with_steps(test, np.array(episodes), max(1, states // 4))
    experience = recorded_experience(told, features, some, value.discount, progress)
    returns = _targets(value, experience).mean(0)
    with torch.no_grad():
        said = value(experience.features[experience.states]).mean(0).cpu()
    variance = float(returns.var(correction=0))
    explained = 1 - float((returns - said).square().mean()) / variance if variance else None
    return {"held_out_states": len(returns), "explained_variance": explained}
