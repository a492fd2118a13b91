"""Learning in imagination (equation 9): a policy that is trained on imagined experience alone.

    <run>/policy                  the policy, see `pan_hf/agents/policy.py`; how it came to be: log.json, curves.svg
    <run>/policy.settings.json    what it was begun with

PPO of Stable-Baselines3 acts in many imagined episodes at once. Every rollout begins anew at recorded steps and is as
long as the horizon. The policy reads what the model believes, so it needs no frames, and acts in the world by the same
beliefs. Run again, training goes on after its last whole rollout and ends, bit for bit, where it would have ended.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pan_hf.agents.cache_scope import digest_of
from pan_hf.agents.policy import Policy, check_hidden
from pan_hf.agents.stable_baselines import as_vec_env, make_ppo, network_of, ppo_class
from pan_hf.arguments import a_seed, checked, least
from pan_hf.checkpoints import results_folder
from pan_hf.console import Progress
from pan_hf.envs.imagined import HORIZON, ImaginedVectorEnv
from pan_hf.imagined_worlds import load_imagined
from pan_hf.modeling import PanModel
from pan_hf.modeling.validation_pan import real, whole
from pan_hf.training.policy_state import SAVE_SECONDS, resume_training, save_training
from pan_hf.training.run_folder import keeping_settings

_STORY = """# A policy that was learned in imagination

{steps} imagined steps of the world model below, by PPO (Stable-Baselines3), in {seconds:.0f} s.
It has not acted in the world yet: `pan plan --planner 'policy?folder=<this folder>'` measures how it does there."""


@checked(
    steps=least(1),
    horizon=least(1),
    num_envs=least(1),
    temperature=least(0),
    uncertainty_penalty=least(0),
    learning_rate=least(0, above=True),
    entropy_weight=least(0),
    epochs=least(1),
    batch_size=least(2),
    seed=a_seed,
)
def imagine(
    run: str | Path,
    data_root: str | Path | None = None,
    *,
    steps: int = 200_000,
    horizon: int = HORIZON,
    num_envs: int = 64,
    temperature: float = 1.0,
    uncertainty_penalty: float = 0.0,
    discount: float = 0.99,
    learning_rate: float = 3e-4,
    entropy_weight: float = 0.01,
    epochs: int = 4,
    batch_size: int = 256,
    hidden: Sequence[int] = (256, 256),
    environment: str | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Trains a policy in the imagination of a world model, by PPO of Stable-Baselines3.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, or a checkpoint, or its Hub id.
        data_root (`str` or `Path`, *optional*): the recording, whose training episodes hold the steps to begin at; by
            default the one the checkpoint was trained on.
        steps (`int`): imagined steps in all, rounded up to whole rollouts. Run again with more of them, training goes
            on.
        horizon (`int`): steps after which an imagined episode is cut.
        num_envs (`int`): episodes that are imagined side by side.
        temperature (`float`): of what is imagined; 0 takes the likeliest.
        uncertainty_penalty (`float`): taken from the reward for each nat of entropy in what is predicted.
        discount (`float`): of rewards, a step; in (0, 1].
        learning_rate (`float`): of Adam.
        entropy_weight (`float`): what a nat of the policy's own entropy is worth, which keeps choices open.
        epochs (`int`): times a rollout is learned from.
        batch_size (`int`): steps in a batch.
        hidden (`Sequence[int]`): widths of the layers of policy and value.
        environment (`str`, *optional*): id, to begin in its episodes only.
        seed (`int`): of everything random.
        output (`str` or `Path`, *optional*): folder to write into; the run folder by default.
        progress (`bool`): show a line of progress.

    Returns:
        the folder of the policy.

    Raises:
        FileNotFoundError: there is no checkpoint, or no recording.
        ImportError: Stable-Baselines3 is not installed; the message says how it is.
        ValueError: an argument is out of its range, the world's actions are said, or the policy in the folder was
            begun with other settings.
    """
    ppo_class()  # or what to install is said at once
    widths, discount = check_hidden(hidden), real("discount", discount, 0, 1, above=True)
    num_envs = whole("num_envs", num_envs, 2 if horizon == 1 else 1)  # advantages are normalised over a rollout
    folder = results_folder(run, output) / "policy"
    model, processor, starts = load_imagined(run, data_root, environment)
    model.requires_grad_(False)
    imagined = {"horizon": horizon, "temperature": temperature, "uncertainty_penalty": uncertainty_penalty}
    env = ImaginedVectorEnv(
        model, processor, starts, num_envs, "SameStep", observation="state", measures_entropy=True, **imagined
    )
    rewards = np.abs(starts.trajectories.all_rewards())
    scale = float(rewards.max()) or 1.0
    learned = {"gamma": discount, "learning_rate": learning_rate, "ent_coef": entropy_weight, "n_epochs": epochs}
    ppo = make_ppo(as_vec_env(env, scale), widths, seed, batch_size=batch_size, **learned)
    settings = imagined | learned | {"num_envs": num_envs, "batch_size": batch_size, "hidden": widths}
    settings |= {"environment": environment, "seed": seed, "weights": digest_of(model, None)}
    about = settings | {"reward_scale": scale, "checkpoint": str(run)}
    with keeping_settings(folder.with_name("policy.settings.json"), settings, begun=folder):
        _learn(ppo, steps, folder, model, about, progress)
    return folder


def _learn(ppo: Any, steps: int, folder: Path, model: PanModel, about: dict[str, Any], progress: bool) -> None:
    """Rollout, update, and so on, from where the folder has come to."""
    log: list[dict[str, Any]] = []
    if kept := resume_training(folder, ppo.policy, ppo.policy.optimizer):
        (ppo.num_timesteps, ppo._n_updates), log = kept
    begun, saved = time.monotonic(), time.monotonic()
    before = log[-1]["seconds"] if log else 0.0
    with Progress("learning in imagination", steps, "steps", progress, ppo.num_timesteps) as line:
        while ppo.num_timesteps < steps:
            ppo.learn(1, reset_num_timesteps=False, log_interval=None)  # one rollout and its update
            log.append(_note(ppo, before + time.monotonic() - begun))
            line.update(ppo.num_timesteps, f"return {log[-1]['return']:.3g}, {log[-1]['length']:.3g} steps an episode")
            if ppo.num_timesteps >= steps or time.monotonic() - saved > SAVE_SECONDS:
                _save(ppo, folder, model, about, log)
                saved = time.monotonic()


def _note(ppo: Any, seconds: float) -> dict[str, Any]:
    """What the last rollout and its update have shown, numbers that are finite."""
    told, num_episodes = ppo.logger.name_to_value, len(ppo.ep_info_buffer)
    # each row's first: of the episodes that begin within a rollout, only short ones end in it
    episodes = [episode for episode in ppo.ep_info_buffer if episode["is_first"]]
    ppo.ep_info_buffer.clear()
    noted = {
        "return": np.mean([episode["r"] for episode in episodes]),
        "length": np.mean([episode["l"] for episode in episodes]),
        "ended": np.mean([not episode["truncated"] for episode in episodes]),
        "entropy": ppo.env.mean_entropy(),
        "policy_entropy": -told["train/entropy_loss"],
        "value_loss": told["train/value_loss"],
        "approx_kl": told["train/approx_kl"],
        "explained_variance": told["train/explained_variance"],
        "seconds": seconds,
    }
    finite = {name: float(value) for name, value in noted.items() if np.isfinite(value)}
    return {"steps": ppo.num_timesteps, "episodes": num_episodes, **finite}


def _save(ppo: Any, folder: Path, model: PanModel, about: dict[str, Any], log: list[dict]) -> None:
    env = ppo.env
    facts = about | {"steps": ppo.num_timesteps, "seconds": log[-1]["seconds"]}
    policy = Policy(model, network_of(ppo), env.env.imagination.features, env.flat, facts)
    counts, story = [ppo.num_timesteps, ppo._n_updates], _STORY.format(**facts)
    save_training(folder, policy, ppo.policy, ppo.policy.optimizer, counts, log, story, "imagined steps")
