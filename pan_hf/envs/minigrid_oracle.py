"""MiniGrid worlds as ground truth: read off full-view frames, set up again, and stepped as often as one likes.

A frame is cut into tiles and each is matched with the simulator's own drawing of every object, with and without the
agent on it, seen and unseen. The grid of objects found is a state that the simulator can be put into, which gives the
true distribution of what an action does there.
"""

import copy

import numpy as np

AGENT_VIEWS = 5  # no agent, or the agent looking right, down, left, up
UNRECOGNISED = -1


class MinigridOracle:
    """A MiniGrid environment in full view.

    A state is an int array `(rows, columns)`: each tile is `object * 5 + agent`, with `object` an index into `kinds`
    (0 is empty) and `agent` 0 where the agent is not, else 1 + its direction.

    Args:
        environment (`gymnasium.Env`): a MiniGrid environment, with any wrappers.
        frame_size (`tuple[int, int]`): height and width of the frames to read, in pixels.
        seed (`int`): of the resets that show which objects there are, and of every step taken.

    Raises:
        ValueError: not a MiniGrid environment, or the frames are not a whole number of pixels a tile.
    """

    def __init__(self, environment, frame_size: tuple[int, int], seed: int = 0):
        self.env = environment.unwrapped
        if not hasattr(self.env, "grid") or not hasattr(self.env, "agent_dir"):
            raise ValueError(
                f"{environment} is not a MiniGrid environment, so its frames cannot be read tile by tile. Pass a "
                "`world` of your own with `parse` and `outcomes`."
            )
        self.objects = [None, *self._objects(seed)]
        self.kinds = ["empty"] + ["-".join([thing.color, thing.type]) for thing in self.objects[1:]]
        self._index = {thing.encode(): index for index, thing in enumerate(self.objects) if thing is not None}
        grid = self.env.grid
        self.tile_size = frame_size[0] // grid.height
        if frame_size != (grid.height * self.tile_size, grid.width * self.tile_size):
            raise ValueError(
                f"Frames of {frame_size[0]}x{frame_size[1]} pixels do not show a grid of {grid.height}x{grid.width} "
                "square tiles; record with minigrid.wrappers:RGBImgObsWrapper?tile_size=8."
            )
        self._tiles, self._templates = self._draw_templates()
        self._reach = self._distance_to_others() / 3
        self._rng = np.random.default_rng(seed)
        # the simulator's own partial view is not looked at, and costs most of a step
        self.env.gen_obs = lambda: None

    def _objects(self, seed: int, num_resets: int = 5) -> list:
        found: dict[tuple, object] = {}
        for number in range(num_resets):
            self.env.reset(seed=seed + number)
            found |= {thing.encode(): thing for thing in self.env.grid.grid if thing is not None}
        return [found[code] for code in sorted(found)]

    def _draw_templates(self) -> tuple[np.ndarray, np.ndarray]:
        """Tile numbers `(n,)` and drawings `(n, tile_size * tile_size * 3)`; a tile has several drawings."""
        tiles, drawings = [], []
        for index, thing in enumerate(self.objects):
            stands_on = thing is None or thing.can_overlap()
            for agent in range(AGENT_VIEWS if stands_on else 1):
                for highlight in (False, True):
                    direction = agent - 1 if agent else None
                    drawing = self.env.grid.render_tile(thing, direction, highlight, self.tile_size)
                    tiles.append(index * AGENT_VIEWS + agent)
                    drawings.append(drawing.reshape(-1))
        return np.array(tiles), np.array(drawings, dtype=np.float32)

    def _distance_to_others(self) -> np.ndarray:
        """For each drawing, the smallest root mean squared difference to one of another tile, `(n,)`."""
        distances = _distances(self._templates, self._templates)
        return np.where(self._tiles[:, None] != self._tiles[None], distances, np.inf).min(1)

    def parse(self, frames: np.ndarray) -> np.ndarray:
        """What uint8 frames `(N, 3, height, width)` show, as states `(N, rows, columns)`.

        A tile is what the nearest drawing shows (in root mean squared difference), if that is nearer than a third of
        the way to the nearest drawing of anything else; otherwise it is `UNRECOGNISED`: two objects that share a tile,
        a faint one, half of one.
        """
        parts = [self._parse(frames[start : start + 256]) for start in range(0, len(frames), 256)]
        return np.concatenate(parts)

    def _parse(self, frames: np.ndarray) -> np.ndarray:
        count, size = len(frames), self.tile_size
        rows, columns = self.env.grid.height, self.env.grid.width
        cells = frames.reshape(count, 3, rows, size, columns, size).transpose(0, 2, 4, 3, 5, 1)
        distances = _distances(cells.reshape(count * rows * columns, -1).astype(np.float32), self._templates)
        nearest = distances.argmin(1)
        known = distances[np.arange(len(nearest)), nearest] <= self._reach[nearest]
        return np.where(known, self._tiles[nearest], UNRECOGNISED).reshape(count, rows, columns)

    def outcomes(self, state: np.ndarray, action: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """What the simulator does after `action` in `state`, `count` times with fresh randomness.

        A frame does not show in which order obstacles move, so every step draws one.

        Returns:
            states `(count, rows, columns)`, and whether the episode ended `(count,)`.
        """
        after, ended = [], np.zeros(count, dtype=bool)
        for number in range(count):
            self._set_up(state)
            _, _, ended[number], _, _ = self.env.step(action)
            after.append(self._state())
        return np.array(after), ended

    def _set_up(self, state: np.ndarray) -> None:
        env, obstacles = self.env, []
        moving = {thing.type for thing in getattr(env, "obstacles", [])}
        env.grid.grid = [self.objects[tile // AGENT_VIEWS] for tile in state.flat]
        for cell, thing in enumerate(env.grid.grid):
            if thing is not None and thing.type in moving:
                env.grid.grid[cell] = thing = copy.copy(thing)
                thing.init_pos = thing.cur_pos = (cell % env.grid.width, cell // env.grid.width)
                obstacles.append(thing)
        ((row, column),) = np.argwhere(state % AGENT_VIEWS > 0)
        env.agent_pos, env.agent_dir = (int(column), int(row)), int(state[row, column] % AGENT_VIEWS) - 1
        env.carrying, env.step_count = None, 0
        if moving:
            env.obstacles = [obstacles[index] for index in self._rng.permutation(len(obstacles))]

    def _state(self) -> np.ndarray:
        grid = self.env.grid
        tiles = [0 if thing is None else self._index[thing.encode()] * AGENT_VIEWS for thing in grid.grid]
        state = np.array(tiles).reshape(grid.height, grid.width)
        column, row = self.env.agent_pos
        state[row, column] += self.env.agent_dir + 1
        return state


def agents(states: np.ndarray) -> np.ndarray:
    """0 where the agent is not, else 1 + its direction; the shape of `states`."""
    return np.where(states == UNRECOGNISED, 0, states % AGENT_VIEWS)


def things(states: np.ndarray) -> np.ndarray:
    """The object at each tile, under the agent too, as an index of `kinds`; `UNRECOGNISED` where nothing is known."""
    return np.where(states == UNRECOGNISED, UNRECOGNISED, states // AGENT_VIEWS)


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Root mean squared differences `(n, m)` of rows `(n, d)` and `(m, d)`."""
    squares = np.square(one).sum(1)[:, None] + np.square(other).sum(1)[None] - 2 * one @ other.T
    return np.sqrt(squares.clip(min=0) / one.shape[1])
