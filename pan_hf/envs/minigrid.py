"""MiniGrid: scripted policies, and random states to start from."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

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
    start: tuple = (x, y, int(grid_env.agent_dir), carried.color if carried else None, frozenset())
    queue: deque[tuple[tuple, int | None]] = deque([(start, None)])
    seen = {start}
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
    poses = []
    for x, y in free:
        for direction, (right, down) in enumerate(_STEPS):
            cell = world.grid.get(x + right, y + down)
            if cell is not None and cell.type in kinds:
                poses.append(((x, y), direction))
    return poses


def _is_open_door(cell: Any) -> bool:
    return cell.type == "door" and cell.is_open
