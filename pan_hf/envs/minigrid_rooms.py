"""`pan_hf/FourRooms-8x8-v0`: minigrid's FourRooms, small. Imported when one is made, since minigrid is optional."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pan_hf.extras import extra

with extra("envs", "A world of MiniGrid"):
    from minigrid.core.constants import COLOR_NAMES
    from minigrid.core.grid import Grid
    from minigrid.core.mission import MissionSpace
    from minigrid.core.world_object import Ball, Box, Goal, Key
    from minigrid.minigrid_env import MiniGridEnv


class FourRoomsEnv(MiniGridEnv):
    """Four rooms joined by a gap in each of the four walls; agent and goal anywhere.

    Args:
        size (`int`): cells on a side.
        max_steps (`int`): an episode's longest length.
        kwargs: of `MiniGridEnv`.
    """

    def __init__(self, size: int = 8, max_steps: int = 100, **kwargs: Any):
        mission_space = MissionSpace(mission_func=self._gen_mission)
        super().__init__(mission_space=mission_space, grid_size=size, max_steps=max_steps, **kwargs)

    @staticmethod
    def _gen_mission() -> str:
        return "reach the goal"

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        middle_x, middle_y = width // 2, height // 2
        self.grid.vert_wall(middle_x, 0)
        self.grid.horz_wall(0, middle_y)
        for low, high in ((1, middle_y), (middle_y + 1, height - 1)):
            self.grid.set(middle_x, self._rand_int(low, high), None)
        for low, high in ((1, middle_x), (middle_x + 1, width - 1)):
            self.grid.set(self._rand_int(low, high), middle_y, None)
        self.place_agent()
        self.place_obj(Goal())
        self.mission = self._gen_mission()


# ---- `pan_hf/Scattered-8x8-v0`: a room with things in it. Imported when one is made, since minigrid is optional.


KINDS = {"ball": Ball, "box": Box, "key": Key}


class ScatteredEnv(MiniGridEnv):
    """Things of some kinds and any colour anywhere in a room, to be picked up and put down, and a goal.

    Args:
        size (`int`): cells on a side.
        kinds (`list[str]`): of "ball", "box", "key"; leaving one out makes a world in which it is new.
        count (`int`): things in the room.
        max_steps (`int`): an episode's longest length.
        kwargs: of `MiniGridEnv`.

    Raises:
        ValueError: an unknown kind.
    """

    def __init__(
        self,
        size: int = 8,
        kinds: Sequence[str] = tuple(KINDS),
        count: int = 5,
        max_steps: int = 100,
        **kwargs: Any,
    ):
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown or not kinds:
            raise ValueError(f"`kinds` must be some of {sorted(KINDS)}, got {list(kinds)}.")
        self.kinds, self.count = tuple(kinds), count
        mission_space = MissionSpace(mission_func=self._gen_mission)
        super().__init__(mission_space=mission_space, grid_size=size, max_steps=max_steps, **kwargs)

    @staticmethod
    def _gen_mission() -> str:
        return "reach the goal"

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.place_agent()
        self.place_obj(Goal())
        for _ in range(self.count):
            self.place_obj(KINDS[self._rand_elem(self.kinds)](self._rand_elem(COLOR_NAMES)))
        self.mission = self._gen_mission()
