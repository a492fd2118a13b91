"""Who acts while a recording is made, and where its episodes begin.

A policy is a callable `policy(env, observation, rng) -> action`, or a class: it is made once an episode as
`Policy(env)` and called as `policy(observation, rng)`, so that it can keep a plan from step to step. `env` is a
`SenseEnvironment`; a scripted policy looks into `env.unwrapped` for the simulator's own state. A start is a callable
`start(env, rng) -> observation or None` that changes the state after a reset. Both are named `"module:name"`, with
parameters as `"module:name?epsilon=0.3"`.
"""

from __future__ import annotations

import inspect
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pan_hf.environments import import_object, parse_spec

Policy = Callable[..., Any]


# Naming policies


def random(env: Any, observation: Any, rng: np.random.Generator) -> Any:
    """An action drawn from `env.action_space`, which the recorder seeds for every episode."""
    return env.action_space.sample()


@dataclass(frozen=True)
class PolicyMixture:
    """Policies with the share of episodes each of them plays.

    Args:
        names: how each was asked for, as text that identifies it.
        policies: the callables or classes.
        weights: positive shares that sum to 1.
    """

    names: tuple[str, ...]
    policies: tuple[Policy, ...]
    weights: tuple[float, ...]

    def for_episode(self, env: Any, rng: np.random.Generator) -> Callable[[Any, np.random.Generator], Any]:
        """Draws the policy of one episode; the result is called as `act(observation, rng)`."""
        policy = self.policies[rng.choice(len(self.policies), p=self.weights)]
        is_class = inspect.isclass(policy.func if isinstance(policy, partial) else policy)
        return policy(env) if is_class else partial(policy, env)


def load_policies(policy: str | Policy | Sequence[str | Policy]) -> PolicyMixture:
    """Finds the policies that texts such as `"random:0.7"` or `"module:callable?epsilon=0.3:0.5"` name.

    Args:
        policy: one policy or several. A text is `"random"` or `"module:callable"`, then optional `?key=value&...`,
            then an optional `:weight` (1 when left out). A callable has the weight 1.

    Raises:
        ValueError: nothing is given, a text names nothing that can be called, or a weight is not positive.
    """
    asked = [policy] if isinstance(policy, str) or callable(policy) else list(policy)
    if not asked:
        raise ValueError("policy: expected at least one, such as 'random' or 'module:callable', got none")
    names, policies, weights = zip(*(_load_policy(one) for one in asked), strict=True)
    total = sum(weights)
    return PolicyMixture(names, policies, tuple(weight / total for weight in weights))


def _load_policy(policy: str | Policy) -> tuple[str, Policy, float]:
    if not isinstance(policy, str):
        return spelled(policy), policy, 1.0
    spec, weight = re.fullmatch(r"(.+?)(?::(\d+(?:\.\d*)?|\.\d+))?", policy).groups()
    if weight is not None and float(weight) == 0:
        raise ValueError(f"policy {policy!r}: expected a weight above 0, got {weight}")
    return policy, random if spec == "random" else load_callable(spec, "policy"), float(weight or 1)


def spelled(policy: str | Callable) -> str:
    """`"module:name"` of a callable; a text is returned as it is."""
    if isinstance(policy, str):
        return policy
    function = policy.func if isinstance(policy, partial) else policy
    name = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"
    arguments = policy.keywords if isinstance(policy, partial) else {}
    return "?".join(filter(None, [name, "&".join(f"{key}={value}" for key, value in arguments.items())]))


def load_callable(spec: str | Callable, what: str) -> Callable:
    """The callable that `"module:name?key=value"` names, with its parameters bound; a callable is returned as it is.

    Raises:
        ValueError: it cannot be found, cannot be called, or does not take such parameters.
    """
    if not isinstance(spec, str):
        return spec
    target, arguments = parse_spec(spec)
    found = import_object(target, what)
    if not callable(found):
        raise ValueError(f"{what} {spec!r}: {target!r} is a {type(found).__name__}, expected a callable or a class")
    try:
        inspect.signature(found).bind_partial(**arguments)
    except TypeError as error:
        raise ValueError(f"{what} {spec!r}: {error}; {target} takes {inspect.signature(found)}") from error
    return partial(found, **arguments) if arguments else found


# MiniGrid

_LEFT, _RIGHT, _FORWARD, _PICKUP, _DROP, _TOGGLE = range(6)
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # by direction: right, down, left, up


def minigrid_expert(env: Any, observation: Any, rng: np.random.Generator, epsilon: float = 0.1) -> int:
    """The first action of a shortest way to the goal, or with probability `epsilon` a random one.

    Solves MiniGrid's Empty, FourRooms and DoorKey (any size) by breadth-first search over the simulator's state:
    position, direction, carried key, doors opened on the way. Other objects count as walls. Where no way is found
    the action is random.
    """
    if rng.random() < epsilon:
        return int(rng.integers(env.action_space.n))
    action = _first_action_to_goal(env.unwrapped)
    return int(rng.integers(env.action_space.n)) if action is None else action


def minigrid_risk_taker(env: Any, observation: Any, rng: np.random.Generator, share: float = 0.8) -> int:
    """Forward with probability `share` where a ball is in the cell ahead or beside it, otherwise a random action.

    In Dynamic-Obstacles, where balls move by chance, it is open then whether the agent can go; of random actions few
    meet such a moment, so a model learns from this policy sooner how likely it is.
    """
    world = env.unwrapped
    x, y = (int(number) for number in world.front_pos)
    around = [(x + right, y + down) for right in (-1, 0, 1) for down in (-1, 0, 1)]
    inside = [(column, row) for column, row in around if 0 <= column < world.width and 0 <= row < world.height]
    is_near = any(cell is not None and cell.type == "ball" for cell in (world.grid.get(*place) for place in inside))
    if is_near and rng.random() < share:
        return _FORWARD
    return int(rng.integers(env.action_space.n))


def _first_action_to_goal(grid_env: Any) -> int | None:
    """Breadth-first search from the present state; None when no goal can be reached.

    A search state is (x, y, direction, colour of the carried key, cells cleared), where a cleared cell held a key that
    was taken or a door that was opened.
    """
    carried = grid_env.carrying
    if carried is not None and carried.type != "key":
        return _DROP if grid_env.grid.get(*grid_env.front_pos) is None else None
    cells = {
        (index % grid_env.width, index // grid_env.width): cell
        for index, cell in enumerate(grid_env.grid.grid)
        if cell is not None
    }
    x, y = (int(number) for number in grid_env.agent_pos)
    start = (x, y, int(grid_env.agent_dir), carried.color if carried else None, frozenset())
    queue, seen = deque([(start, None)]), {start}
    while queue:
        state, first = queue.popleft()
        for action, following in _successors(state, cells):
            if following is None:
                return action if first is None else first
            if following not in seen:
                seen.add(following)
                queue.append((following, action if first is None else first))
    return None


def _successors(state: tuple, cells: dict) -> list[tuple[int, tuple | None]]:
    """Useful actions in a search state and what follows each; None stands for the goal."""
    x, y, direction, key, cleared = state
    turns: list[tuple[int, tuple | None]] = [
        (_LEFT, (x, y, (direction - 1) % 4, key, cleared)),
        (_RIGHT, (x, y, (direction + 1) % 4, key, cleared)),
    ]
    step = _STEPS[direction]
    front = (x + step[0], y + step[1])
    cell = None if front in cleared else cells.get(front)
    forward = (*front, direction, key, cleared)
    if cell is None or (cell.type == "door" and cell.is_open) or cell.type == "floor":
        return [(_FORWARD, forward), *turns]
    if cell.type == "goal":
        return [(_FORWARD, None)]
    if cell.type == "key" and key is None:
        return [(_PICKUP, (x, y, direction, cell.color, cleared | {front})), *turns]
    if cell.type == "door" and (not cell.is_locked or key == cell.color):
        return [(_TOGGLE, (x, y, direction, key, cleared | {front})), *turns]
    return turns


def minigrid_random_state(
    env: Any,
    rng: np.random.Generator,
    carried: float = 0.35,
    opened: float = 0.35,
    shut: float = 0.5,
    facing: float = 0.5,
    share: float = 1.0,
) -> dict:
    """A start: the agent anywhere, turned anyhow, and in worlds with a key and a door often late in the task, or where
    there is something to do.

    Args:
        env: a MiniGrid environment after a reset.
        rng: source of chance.
        carried: probability that the agent has the key already.
        opened: probability that the door is unlocked; the key is then as likely on the floor as in the hand.
        shut: probability that a door which is unlocked is shut all the same.
        facing: probability that the agent stands before the key or the door and looks at it, where there is one.
        share: of episodes that begin so; the others begin as the environment has it.

    Returns:
        The simulator's observation of the new state.
    """
    world = env.unwrapped
    if share < 1 and rng.random() >= share:
        return world.gen_obs()
    cells = [(index % world.width, index // world.width, cell) for index, cell in enumerate(world.grid.grid)]
    keys = [cell for cell in cells if cell[2] is not None and cell[2].type == "key"]
    doors = [cell for _, _, cell in cells if cell is not None and cell.type == "door"]
    draw = rng.random()
    is_open = bool(doors) and carried <= draw < carried + opened
    if is_open:
        doors[0].is_locked, doors[0].is_open = False, rng.random() >= shut
    if keys and world.carrying is None and (draw < carried or (is_open and rng.random() < 0.5)):
        x, y, key = keys[0]
        world.carrying, key.cur_pos = key, np.array([-1, -1])
        world.grid.set(x, y, None)
    free = [(x, y) for x, y, _ in cells if world.grid.get(x, y) is None or _is_open_door(world.grid.get(x, y))]
    before = _standing_before(("key", "door"), world, free)
    if before and rng.random() < facing:
        world.agent_pos, world.agent_dir = before[rng.integers(len(before))]
    else:
        world.agent_pos, world.agent_dir = free[rng.integers(len(free))], int(rng.integers(4))
    return world.gen_obs()


def _standing_before(kinds: tuple[str, ...], world: Any, free: list[tuple[int, int]]) -> list[tuple]:
    """Every free cell and direction from which a thing of these kinds is looked at from beside it."""
    found = []
    for x, y in free:
        for direction, (right, down) in enumerate(_STEPS):
            cell = world.grid.get(x + right, y + down)
            if cell is not None and cell.type in kinds:
                found.append(((x, y), direction))
    return found


def _is_open_door(cell: Any) -> bool:
    return cell.type == "door" and cell.is_open


# PushT


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


pusht_pusher = PushtPusher  # the name used in "pan_hf.policies:pusht_pusher"
