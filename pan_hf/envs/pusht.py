"""PushT: a scripted policy that pushes the block."""

from __future__ import annotations

from typing import Any

import numpy as np


class PushtPusher:
    """Pushes PushT's block about: goes beside the block, then sweeps through it, at a speed drawn anew every time.

    The agent follows its target with a delay, so a target that moves `speed` pixels a step moves the agent smoothly.

    Args:
        env: a `gym_pusht/PushT-v0` environment.
        min_speed: slowest motion of the target, in pixels (of 512) a step.
        max_speed: fastest motion of the target, in pixels a step.
        noise: standard deviation of the jitter of the target, in pixels.
        inward: share of pushes that go towards the middle, which keeps the block off the walls.
    """

    def __init__(
        self, env: Any, min_speed: float = 8.0, max_speed: float = 36.0, noise: float = 2.0, inward: float = 0.5
    ):
        self._world = env.unwrapped
        self._speeds = (min_speed, max_speed)
        self._noise = noise
        self._inward = inward
        self._way: list[np.ndarray] = []
        self._speed = max_speed
        self._target: np.ndarray | None = None

    def __call__(self, observation: Any, rng: np.random.Generator) -> np.ndarray:
        """The next target position of the agent, `(2,)` float32 in [0, 512]."""
        if self._target is None:
            self._target = np.array(self._world.agent.position)
        if not self._way:
            self._way = self._new_push(rng)
            self._speed = rng.uniform(*self._speeds)
        offset = self._way[0] - self._target
        distance = np.linalg.norm(offset)
        if distance <= self._speed:
            self._target = self._way.pop(0)
        else:
            self._target = self._target + offset * (self._speed / distance)
        return np.clip(self._target + rng.normal(0, self._noise, 2), 0, 512).astype(np.float32)

    def _new_push(self, rng: np.random.Generator) -> list[np.ndarray]:
        """A point beside the block and one beyond it, on a line that passes near its middle."""
        shapes = self._world.block.shapes
        corners = [shape.body.local_to_world(vertex) for shape in shapes for vertex in shape.get_vertices()]
        middle = np.mean(corners, axis=0)
        angle = rng.uniform(-np.pi, np.pi)
        if rng.random() < self._inward:
            angle = np.arctan2(*(256 - middle)[::-1]) + rng.normal(0, 0.5)
        direction = np.array([np.cos(angle), np.sin(angle)])
        aside = np.array([-direction[1], direction[0]]) * rng.normal(0, 30)
        before = middle - direction * rng.uniform(70, 120) + aside
        beyond = middle + direction * rng.uniform(0, 110) + aside
        return [np.clip(before, 15, 497), np.clip(beyond, 15, 497)]


pusht_pusher = PushtPusher  # the name used in "pan_hf.envs.pusht:pusht_pusher"
