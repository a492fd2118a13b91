"""A distilled planner: a policy that learns to act as the cached plans of a simulation cache do.

    <run>/distilled                  the policy, see `pan_hf/agents/policy.py`; how it came to be: log.json, curves.svg
    <run>/distilled.settings.json    what it was begun with

It is the policy of `pan imagine`, and learns by behaviour cloning. In every state of the cache the teacher is what the
cache would answer; where several actions are worth the same, each of them is right. A tenth of the states is held out,
and tells how often policy and teacher agree. Run again, learning goes on after what was written last and ends, bit for
bit, where it would have ended; of a cache that holds other decisions by now it begins anew.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.cache_scope import digest_of
from pan_hf.agents.critics import Critic, as_critic
from pan_hf.agents.policy import CONFIDENCE, TOLERANCE, ActorCritic, FlatActions, Policy, check_hidden, mask_of
from pan_hf.agents.teacher import Decisions
from pan_hf.agents.world import at_effort
from pan_hf.arguments import a_seed, checked, least
from pan_hf.checkpoints import find_checkpoint, find_recording, load, results_folder
from pan_hf.console import Progress
from pan_hf.envs.state_features import StateFeatures
from pan_hf.evaluation.acting import recorded_facts, reward_critic
from pan_hf.evaluation.cache_dataset import cache_folder
from pan_hf.training.policy_state import SAVE_SECONDS, resume_training, save_training
from pan_hf.training.run_folder import keeping_settings, stable_repr

DISTILLED = "distilled"  # the folder of the policy in a run
_NOTED = 250  # steps between two measurements
_LEAST_SPREAD = 0.05  # of a number of a belief: what varies less is not made larger than this makes it
_MEASURED = 2048  # decisions of each split that are measured, drawn once
_STORY = """# A distilled planner

A policy that imitates the plans of a simulation cache: {decisions} states, of which a tenth was held out. The
agreement below says in which share of the held-out states it does what the cache would answer. They are states of the
same cache, so they may be neighbours of those learned from. It has not acted in the world yet:
`pan plan --policy <this folder>` measures how it does there, with a search where it is unsure."""


@checked(
    steps=least(1),
    learning_rate=least(0, above=True),
    batch_size=least(1),
    seed=a_seed,
    time_limit=least(0, above=True),
)
def distil(
    run: str | Path,
    data_root: str | Path | None = None,
    *,
    cache: str | Path | None = None,
    steps: int = 3000,
    environments: Sequence[str] | None = None,
    reward_threshold: float | None = None,
    critic=None,
    effort=None,
    learning_rate: float = 1e-3,
    batch_size: int = 256,
    hidden: Sequence[int] = (256, 256),
    time_limit: float | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Trains a policy to act as a simulation cache answers.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, or a checkpoint, or its Hub id.
        data_root (`str` or `Path`, *optional*): the recording, which says what the goal is; by default the one the
            checkpoint was trained on.
        cache (`str` or `Path`, *optional*): folder or Hub id of the cache; `cache/` in the run by default. Values for
            what is wanted are backed up if it has none.
        steps (`int`): batches to learn from. Run again with more of them, learning goes on.
        environments (`Sequence[str]`, *optional*): ids of the recording, whose goals count; all by default.
        reward_threshold (`float`, *optional*): expected reward that counts as the goal; by default from the recording.
        critic (*optional*): what is wanted in place of the expected reward, see `pan_hf.agents.critics`.
        effort (*optional*): with which the cache was filled, as [`PanModel.simulate`] takes it.
        learning_rate (`float`): of Adam.
        batch_size (`int`): states in a batch.
        hidden (`Sequence[int]`): widths of the layers of policy and value.
        time_limit (`float`, *optional*): seconds of learning after which it ends.
        seed (`int`): of weights and batches.
        output (`str` or `Path`, *optional*): folder to write into; the run folder by default.
        progress (`bool`): show a line of progress.

    Returns:
        the folder of the policy. The last entry of its `log.json` says how often policy and teacher agree.

    Raises:
        FileNotFoundError: there is no checkpoint, no recording or no cache.
        ValueError: an argument is out of its range, the world's actions are said, the cache is of other weights or
            knows no action for this goal, or the policy in the folder was begun with other settings.
    """
    widths = check_hidden(hidden)
    results = results_folder(run, output)
    model, _ = load(run)
    model.requires_grad_(False)
    wishes = _wishes(run, data_root, environments, reward_threshold, critic)
    world = at_effort(model, effort)
    kept = SimulationCache(cache_folder(run, cache, output, world), create=False, writes=False)
    with contextlib.closing(kept):
        decisions = _decisions(kept, world, StateFeatures(model), wishes)
    folder = results / DISTILLED
    settings = {"learning_rate": learning_rate, "batch_size": batch_size, "hidden": widths, "seed": seed}
    settings |= {"goals": [stable_repr(wish) for wish in wishes], "weights": digest_of(model, None)}
    with keeping_settings(folder.with_name(f"{DISTILLED}.settings.json"), settings, begun=folder):
        learner = _Learner(decisions, folder, settings | {"checkpoint": str(run)})
        learner.learn(steps, time_limit, progress)
    return folder


def _wishes(run: Any, data: Any, environments: Sequence[str] | None, threshold: float | None, critic: Any) -> list:
    """What is wanted: a critic, or one for the reward of each environment of the recording."""
    if critic is not None:
        return [as_critic(critic)]
    facts = recorded_facts(find_recording(find_checkpoint(run, adapters=True), data))
    if unknown := sorted(set(environments or ()) - set(facts)):
        raise ValueError(f"{unknown} are not in the recording, which has {sorted(facts)}; name some of those.")
    return [reward_critic(facts[id], threshold) for id in environments or sorted(facts)]


def _decisions(cache: SimulationCache, world: Any, features: StateFeatures, wishes: Sequence[Critic]) -> Decisions:
    decisions = Decisions(features, FlatActions(world.config), cache.bind(world, wishes[0]).keys)
    for wish in wishes:
        if not cache.is_valued(world, wish):
            cache.back_up(world, wish)
        decisions.add(cache, world, wish)
    if not len(decisions):
        raise ValueError(f"{cache.store.path.parent} knows no action for this goal; `pan precompute` fills it.")
    return decisions


class _Learner:
    """Learns decisions, and keeps what it has learned in a folder.

    Args:
        decisions ([`Decisions`]): to learn.
        folder: of the policy.
        about (`dict`): what is written of the policy's training.
    """

    def __init__(self, decisions: Decisions, folder: Path, about: dict[str, Any]):
        self.decisions, self.folder = decisions, folder
        self.learned, self.held_out = decisions.split()
        if not len(self.learned):
            raise ValueError(f"There is nothing to learn from {len(decisions)} decisions; fill the cache further.")
        self.scale = float(np.abs(decisions.values).max()) or 1.0
        self.about = about | {"reward_scale": self.scale, "decisions": len(decisions)}
        self.seed, self.digest = about["seed"], decisions.digest()
        self._begin()
        self._resume()

    def _begin(self) -> None:
        features, flat, device = self.decisions.features, self.decisions.flat, self.decisions.features.model.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = ActorCritic(
                features.size, self.about["hidden"], flat.size, flat.is_discrete, mask_of(features, flat)
            ).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.about["learning_rate"])
        self.mean, self.spread = self._measured_inputs()
        self.steps, self.log = 0, list[dict]()

    def _measured_inputs(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each number of a belief. What hardly ever changes, as a single patch that
        shows where the agent is, would otherwise be learned late."""
        some = np.random.default_rng(self.seed).permutation(self.learned)[:_MEASURED]
        parts = [self.decisions.batch(some[first : first + 256]).x for first in range(0, len(some), 256)]
        x = torch.cat(parts)
        mask = self.network.mask or slice(0, 0)
        mean, spread = x.mean(0), x.std(0, correction=0)
        mean[mask], spread[mask] = 0.0, 1.0  # which is read as it is
        return mean, spread

    def _scaled(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.spread.clamp(min=_LEAST_SPREAD)

    def _resume(self) -> None:
        """Takes up what was kept, unless that was learned from other decisions."""
        kept = resume_training(self.folder, self.network, self.optimizer)
        if kept is not None and kept[0]["decisions"] == self.digest:
            self.steps, self.log = kept[0]["steps"], kept[1]
        elif kept is not None:
            self._begin()

    def learn(self, steps: int, time_limit: float | None, progress: bool) -> None:
        """Goes on until there are so many steps, or the time is up."""
        begun, saved, before = time.monotonic(), time.monotonic(), self.log[-1]["seconds"] if self.log else 0.0
        end = math.inf if time_limit is None else begun + time_limit
        with Progress("distilling the cache", steps, "steps", progress, self.steps) as line:
            while self.steps < steps:
                loss = self._step()
                is_over = self.steps >= steps or time.monotonic() > end
                if self.steps % _NOTED and not is_over:
                    continue
                self.log.append(self._note(loss, before + time.monotonic() - begun))
                line.update(self.steps, f"agreement {self.log[-1].get('agreement', self.log[-1]['learned']):.3f}")
                if is_over or time.monotonic() - saved > SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
                if is_over:
                    return

    def _step(self) -> float:
        rng = np.random.default_rng([self.seed, self.steps])
        batch = self.decisions.batch(rng.choice(self.learned, self.about["batch_size"]))
        self.steps += 1
        if not len(batch.x):
            return 0.0
        x = self._scaled(batch.x)
        error = self.network.values(x) - batch.values / self.scale
        loss = _cloning_loss(self.network, self.network.outputs(x), batch.right) + error.square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    @property
    def policy(self) -> Policy:
        """What was learned so far, of beliefs as they are: their scales are in the first layers."""
        network = copy.deepcopy(self.network)
        with torch.no_grad():
            for layers in network.mlp_extractor.values():
                first = next(layer for layer in layers.modules() if isinstance(layer, nn.Linear))
                first.weight.div_(self.spread.clamp(min=_LEAST_SPREAD))
                first.bias.sub_(first.weight @ self.mean)
        about = self.about | {"steps": self.steps}
        return Policy(self.decisions.features.model, network, self.decisions.features, self.decisions.flat, about)

    def _note(self, loss: float, seconds: float) -> dict[str, Any]:
        noted: dict[str, Any] = {"steps": self.steps, "loss": loss, "learned": self._agreement(self.learned)[0]}
        if len(self.held_out):
            noted["agreement"], noted["confident"], sure = self._agreement(self.held_out)
            noted |= {} if sure is None else {"agreement_confident": sure}
        return noted | {"seconds": seconds}

    @torch.no_grad()
    def _agreement(self, numbers: np.ndarray) -> tuple[float, float, float | None]:
        """In how many decisions policy and teacher agree, in how many the policy is sure, and how many of these agree;
        None where it is never sure."""
        some = np.random.default_rng(self.seed).permutation(numbers)[:_MEASURED]
        agrees, is_sure, policy = [], [], self.policy
        for first in range(0, len(some), 256):
            batch = self.decisions.batch(some[first : first + 256])
            outputs = self.network.outputs(self._scaled(batch.x))
            agrees.append(_agrees(outputs, batch.right))
            is_sure.append(policy.sureness(outputs) >= CONFIDENCE)
        agreed, sure = torch.cat(agrees), torch.cat(is_sure)
        return (
            float(agreed.float().mean()),
            float(sure.float().mean()),
            (float(agreed[sure].float().mean()) if sure.any() else None),
        )

    def _save(self) -> None:
        policy, counts = self.policy, {"steps": self.steps, "decisions": self.digest}
        story = _STORY.format(**policy.about)
        save_training(self.folder, policy, self.network, self.optimizer, counts, self.log, story, "steps of learning")


def _cloning_loss(network: ActorCritic, outputs: Tensor, right: Tensor) -> Tensor:
    """-log p of what the teacher does: that any of its best choices is taken; or of its numbers, under a Gaussian."""
    if right.dtype == torch.bool:
        return -outputs.log_softmax(-1).masked_fill(~right, -torch.inf).logsumexp(-1).mean()
    return -torch.distributions.Normal(outputs, network.log_std.exp()).log_prob(right).sum(-1).mean()


def _agrees(outputs: Tensor, right: Tensor) -> Tensor:
    """Where the likeliest choice is one of the teacher's, or every number is as near to the teacher's as counts as the
    same, bool `(N,)`."""
    if right.dtype == torch.bool:
        return right.gather(1, outputs.argmax(-1, keepdim=True)).squeeze(1)
    return ((outputs.clamp(-1, 1) - right).abs() <= TOLERANCE).all(-1)
