"""Stable-Baselines3 in imagination: its `VecEnv` around an [`ImaginedVectorEnv`], and its PPO, which learns there.

The classes are made when they are first asked for, since Stable-Baselines3 is optional. A rollout always begins anew,
with all that is drawn in it given by the run's seed and the rollout's number. So a run that goes on after a rollout
needs no more than its weights and its optimizer to be, bit for bit, what it would have been.

Shapes: N = rows, that is imagined episodes side by side.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np
import torch

from pan_hf.agents.policy import FORBIDDEN, ActorCritic, FlatActions, mask_of
from pan_hf.envs.imagined import ImaginedVectorEnv
from pan_hf.extras import extra
from pan_hf.features import ACTION

PURPOSE = "Learning in imagination"


def as_vec_env(env: ImaginedVectorEnv, reward_scale: float = 1.0) -> Any:
    """A Stable-Baselines3 `VecEnv` of an imagined world, for any of its algorithms.

    Actions are those of [`FlatActions`]: one choice, or numbers in [-1, 1].

    Args:
        env ([`ImaginedVectorEnv`]): with `autoreset_mode="SameStep"` and `observation="state"`.
        reward_scale (`float`): what rewards are divided by.

    Raises:
        ImportError: Stable-Baselines3 is not installed; the message says how it is.
        ValueError: another mode or observation, or actions that are said.
    """
    if env.autoreset_mode.value != "SameStep" or env.imagination.features is None:
        raise ValueError(
            'Stable-Baselines3 takes an ImaginedVectorEnv of autoreset_mode="SameStep" and observation="state", got '
            f'"{env.autoreset_mode.value}" and "{env.imagination.settings.observation}".'
        )
    return vec_env_class()(env, reward_scale)


@cache
def vec_env_class() -> type:
    """The class of `as_vec_env`."""
    with extra("rl", PURPOSE):
        from stable_baselines3.common.vec_env import VecEnv

    class ImaginedVecEnv(VecEnv):
        """See `as_vec_env`."""

        def __init__(self, env: ImaginedVectorEnv, reward_scale: float):
            self.env, self.reward_scale = env, reward_scale
            self.flat = FlatActions(env.imagination.model.config)
            super().__init__(env.num_envs, env.single_observation_space, self.flat.space)
            self._actions: Any = None
            self._returns, self._lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, int)
            self._is_first = np.ones(env.num_envs, bool)  # whether a row is in its first episode since the last reset
            self._begun, self._entropy = time.time(), (0.0, 0)

        def reset(self) -> np.ndarray:
            seen, _ = self.env.reset(seed=self._seeds[0])
            self._reset_seeds()
            self._returns[:], self._lengths[:], self._is_first[:], self._entropy = 0.0, 0, True, (0.0, 0)
            return seen

        def mean_entropy(self) -> float:
            """Nats a step in what was predicted since the last reset; not a number where it is not measured."""
            total, count = self._entropy
            return total / count if count else float("nan")

        def step_async(self, actions: np.ndarray) -> None:
            self._actions = actions

        def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
            taken = self.flat.parts.split(self.flat.to_world(torch.as_tensor(self._actions)))
            columns = {name: part.numpy() for name, part in taken.items()}
            given = columns[ACTION] if set(columns) == {ACTION} else columns
            seen, rewards, terminated, truncated, told = self.env.step(given)
            infos: list[dict] = [{} for _ in range(self.num_envs)]
            self._returns, self._lengths = self._returns + rewards, self._lengths + 1
            for row in np.flatnonzero(terminated | truncated).tolist():
                infos[row] = self._end_of(row, told["final_obs"][row], bool(truncated[row]))
            if "entropy" in told:
                total, count = self._entropy
                self._entropy = (total + float(told["entropy"].sum()), count + self.num_envs)
            return seen, (rewards / self.reward_scale).astype(np.float32), terminated | truncated, infos

        def _end_of(self, row: int, seen: np.ndarray, was_truncated: bool) -> dict:
            """What is told of an episode that ends, which is then forgotten."""
            episode: dict[str, Any] = {"r": float(self._returns[row]), "l": int(self._lengths[row])}
            episode |= {"t": time.time() - self._begun, "truncated": was_truncated}
            episode["is_first"] = bool(self._is_first[row])
            self._returns[row], self._lengths[row], self._is_first[row] = 0.0, 0, False
            return {"terminal_observation": seen, "TimeLimit.truncated": was_truncated, "episode": episode}

        def close(self) -> None:
            self.env.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list:
            return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            if indices is not None:
                raise ValueError("Rows of an imagined world have no attributes of their own; set it for all.")
            setattr(self.env, attr_name, value)

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list:
            raise ValueError(f"Rows of an imagined world are no environments of their own to call {method_name!r} of.")

        def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
            return [False] * len(list(self._get_indices(indices)))

        def get_images(self) -> list[np.ndarray]:
            return self.env.imagination.frames()

    return ImaginedVecEnv


@cache
def _masked_policy_class() -> type:
    """A policy of Stable-Baselines3 that never chooses what the belief forbids."""
    with extra("rl", PURPOSE):
        from stable_baselines3.common.policies import ActorCriticPolicy
        from stable_baselines3.common.torch_layers import MlpExtractor

    class Extractor(MlpExtractor):
        """Passes on, behind what the policy's layers make of an observation, which choices it allows."""

        mask: slice

        def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
            return torch.cat([super().forward_actor(features), features[:, self.mask]], 1)

    class MaskedPolicy(ActorCriticPolicy):
        def __init__(self, *args: Any, mask: slice, **kwargs: Any):
            self.mask = mask
            super().__init__(*args, **kwargs)

        def _build_mlp_extractor(self) -> None:
            self.mlp_extractor = Extractor(
                self.features_dim, net_arch=self.net_arch, activation_fn=self.activation_fn, device=self.device
            )
            self.mlp_extractor.mask = self.mask

        def _get_action_dist_from_latent(self, latent_pi: torch.Tensor) -> Any:
            count = self.mask.stop - self.mask.start
            logits = self.action_net(latent_pi[:, :-count])
            allowed = latent_pi[:, -count:] > 0
            return self.action_dist.proba_distribution(action_logits=logits.masked_fill(~allowed, FORBIDDEN))

    return MaskedPolicy


@cache
def ppo_class() -> type:
    """Stable-Baselines3's PPO, of which every rollout begins anew and is drawn from a seed of its own."""
    with extra("rl", PURPOSE):
        from stable_baselines3 import PPO

    class ImaginedPPO(PPO):
        """Args: as PPO's; the environment is an `as_vec_env`, `n_steps` its horizon."""

        def collect_rollouts(self, env: Any, *args: Any, **kwargs: Any) -> bool:
            self.set_random_seed(int(np.random.SeedSequence([self.seed, self.num_timesteps]).generate_state(1)[0]))
            self._last_obs = env.reset()
            self._last_episode_starts = np.ones(env.num_envs, bool)
            return super().collect_rollouts(env, *args, **kwargs)

    return ImaginedPPO


def _silent_logger() -> Any:
    """What is noted is read from it; the default one makes a folder in /tmp."""
    with extra("rl", PURPOSE):
        from stable_baselines3.common.logger import Logger
    return Logger(folder=None, output_formats=[])


def make_ppo(env: Any, hidden: list[int], seed: int, **settings: Any) -> Any:
    """PPO of a policy that [`Policy`] can read.

    Args:
        env: of `as_vec_env`.
        hidden: widths of the layers of policy and value.
        settings: of `stable_baselines3.PPO`.
    """
    imagination = env.env.imagination
    mask = mask_of(imagination.features, env.flat)
    policy: Any = "MlpPolicy" if mask is None else _masked_policy_class()
    built: dict = {"net_arch": {"pi": hidden, "vf": hidden}, "activation_fn": torch.nn.Tanh}
    built |= {} if mask is None else {"mask": mask}
    horizon = imagination.settings.horizon
    # what ended in the last rollout is what is told of it
    settings = {"device": "cpu", "n_steps": horizon, "stats_window_size": horizon * env.num_envs} | settings
    ppo = ppo_class()(policy, env, seed=seed, policy_kwargs=built, **settings)
    ppo.set_logger(_silent_logger())
    return ppo


def network_of(ppo: Any) -> ActorCritic:
    """What PPO has trained, as a network of our own."""
    env = ppo.get_env()
    features, flat = env.env.imagination.features, env.flat
    hidden = ppo.policy.net_arch["pi"]
    network = ActorCritic(features.size, hidden, flat.size, flat.is_discrete, mask_of(features, flat))
    network.load_state_dict(ppo.policy.state_dict())
    return network
