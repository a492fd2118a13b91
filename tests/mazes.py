"""Worlds small enough to know the right answer, and an agent that walks in them."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch

from pan_hf.modeling import DiscreteAction, VectorAction, VectorSense

# S start, G goal, # wall. The way from S to G is 11 steps: down, round the wall, and up again.
MAZE = """
S.#G.
..#..
..#..
..#..
.....
"""
MOVES = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1], [0, 0]])  # up, down, left, right, stay


@dataclass
class GridBelief:
    cells: torch.Tensor  # (N, 2) row and column

    def __len__(self):
        return len(self.cells)

    def keys(self, steps=None):
        return [bytes(cell) for cell in self.cells.tolist()]

    def select(self, index):
        return GridBelief(self.cells[index])

    @staticmethod
    def cat(beliefs):
        return GridBelief(torch.cat([belief.cells for belief in beliefs]))


class GridWorld:
    """An exact model of a maze; `lies` are cells that claim a reward when imagined one step at a time."""

    def __init__(self, maze=MAZE, lies=(), hidden_doors=()):
        rows = maze.split()
        self.wall = torch.tensor([[mark == "#" for mark in row] for row in rows])
        self.goal = torch.tensor([[mark == "G" for mark in row] for row in rows])
        for door in hidden_doors:  # the model believes that one can walk here
            self.wall[door] = False
        self.start = torch.tensor([next((r, row.index("S")) for r, row in enumerate(rows) if "S" in row)])
        self.lies, self.calls = {tuple(cell) for cell in lies}, 0
        senses = {"camera": SimpleNamespace(kind="image")}
        action = DiscreteAction(len(MOVES))
        self.config = SimpleNamespace(action=action, senses=senses, context_steps=1)
        self.device = torch.device("cpu")

    def root(self):
        return GridBelief(self.start)

    def perceive(self, observation, action=None):
        return GridBelief(torch.as_tensor(observation["camera"])[:, -1])

    def step(self, cells, actions):
        wanted = cells + MOVES[actions]
        limits = torch.tensor(self.wall.shape)
        inside = ((wanted >= 0) & (wanted < limits)).all(dim=1)
        clamped = wanted.clamp(min=torch.zeros(2, dtype=torch.long), max=limits - 1)
        free = inside & ~self.wall[clamped[:, 0], clamped[:, 1]]
        return torch.where(free[:, None], clamped, cells)

    def simulate(self, belief, actions, num_rollouts=1, temperature=1.0, seed=None):
        self.calls += 1
        cells, trace = belief.cells.repeat_interleave(num_rollouts, 0), []
        for step in actions.repeat_interleave(num_rollouts, 0).T:
            cells = self.step(cells, step)
            trace.append(cells)
        visited = torch.stack(trace, dim=1)  # (N, H, 2)
        reward = self.goal[visited[..., 0], visited[..., 1]].float()
        lied = torch.tensor([[tuple(cell) in self.lies for cell in row] for row in visited.tolist()])
        told = torch.where(lied, 1.0, reward) if actions.shape[1] == 1 else reward
        return SimpleNamespace(
            reward=told,
            continue_prob=1 - reward,
            belief=GridBelief(cells),
            codes={"camera": [visited]},
            keys=lambda: [[bytes(cell) for cell in row] for row in visited.tolist()],
        )


class Batch(dict):
    def to(self, device):
        return self


def processor(observation, action=None):
    return Batch(observation=observation, action=action)


def carry_out(world, actions):
    cells = world.start
    for action in actions:
        cells = world.step(cells, action[None])
    return tuple(cells[0].tolist())


class DoubtingWorld(GridWorld):
    """A model that believes a door shut, more likely than not: a sampled future goes through in 2 of 5 cases."""

    def __init__(self, maze, door):
        super().__init__(maze)
        self.shut, self.open, self.temperatures = self.wall, self.wall.clone(), []
        self.open[door] = False

    def simulate(self, belief, actions, num_rollouts=1, temperature=1.0, seed=None):
        self.temperatures.append(temperature)
        opens = temperature > 0 and torch.rand((), generator=torch.Generator().manual_seed(seed)) < 0.4
        self.wall = self.open if opens else self.shut
        return super().simulate(belief, actions, num_rollouts, temperature, seed)


DOOR = """
S.#.G
..#..
"""


class PointWorld:
    """A point that moves by a vector action; reward grows towards (3, -1)."""

    target = torch.tensor([3.0, -1.0])

    def __init__(self):
        action = VectorAction(dim=2, low=[-1.0, -1.0], high=[1.0, 0.5])
        self.config = SimpleNamespace(action=action, senses={"at": SimpleNamespace(kind="vector")}, context_steps=1)
        self.largest = 0.0

    def simulate(self, belief, actions, num_rollouts=1, temperature=1.0, seed=None):
        low, high = torch.tensor(self.config.action.low), torch.tensor(self.config.action.high)
        assert ((actions >= low) & (actions <= high)).all()
        places = belief.cells[:, None] + actions.cumsum(dim=1)
        reward = -(places - self.target).norm(dim=-1)
        return SimpleNamespace(
            reward=reward,
            continue_prob=torch.ones_like(reward),
            belief=GridBelief(places[:, -1]),
            decode={"at": places}.__getitem__,
        )


def not_a_number(futures):
    return torch.where(futures.reward > 0, futures.reward, torch.nan)


class TwoWalkers(GridWorld):
    """Two walkers in one maze, moved at once by one action of two parts; each is rewarded at the goal."""

    def __init__(self, maze):
        super().__init__(maze)
        names = ["up", "down", "left", "right", "stay"]
        self.config.action, self.config.actors = None, ["first", "second"]
        self.config.actions = {name: DiscreteAction(5, names=names) for name in self.config.actors}

    def root(self):
        return GridBelief(torch.cat([self.start, self.start], 1))

    def perceive(self, observation, action=None):
        assert action is None or set(action) == {"first", "second"}
        return GridBelief(torch.as_tensor(observation["camera"])[:, -1])

    def simulate(self, belief, actions, num_rollouts=1, temperature=1.0, seed=None):
        pairs = [
            super(TwoWalkers, self).simulate(GridBelief(cells), part)
            for cells, part in zip(belief.cells.split(2, 1), actions.parts.values(), strict=True)
        ]
        reward = torch.stack([pair.reward for pair in pairs], -1)
        visited = torch.cat([pair.codes["camera"][0] for pair in pairs], -1)
        belief = GridBelief(visited[:, -1])
        belief.model = SimpleNamespace(config=self.config)
        return SimpleNamespace(
            reward=reward,
            continue_prob=torch.ones_like(reward[..., 0]),
            belief=belief,
            codes={"camera": [visited]},
            keys=lambda: [[bytes(cell) for cell in row] for row in visited.tolist()],
        )


@dataclass
class MaskedBelief(GridBelief):
    world: "MaskedWorld"

    def decode(self, name):
        return self.world.mask(self.cells)

    def select(self, index):
        return MaskedBelief(self.cells[index], self.world)

    @staticmethod
    def cat(beliefs):
        return MaskedBelief(GridBelief.cat(beliefs).cells, beliefs[0].world)


class MaskedWorld(GridWorld):
    """A maze that says which moves do not run into a wall, as a sense; `tried` are the cells and actions imagined."""

    def __init__(self, maze):
        super().__init__(maze)
        self.tried = []
        self.config.senses["action_mask"] = VectorSense(dim=5, low=0.0, high=1.0)

    def mask(self, cells):
        moves = torch.arange(5)
        return torch.stack([(self.step(cell.expand(5, 2), moves) != cell).any(-1) for cell in cells]).float()

    def simulate(self, belief, actions, *args, **kwargs):
        self.tried.append((belief.cells, actions))
        futures = super().simulate(belief, actions, *args, **kwargs)
        futures.belief = MaskedBelief(futures.belief.cells, self)
        visited = futures.codes["camera"][0]
        masks = self.mask(visited.flatten(0, 1)).view(*visited.shape[:2], 5)
        futures.decode = {"action_mask": masks}.__getitem__
        return futures

    def root(self):
        return MaskedBelief(self.start, self)


# --- The agent


def walk(agent, world, limit=60):
    """Carries the agent out in the true world; returns (steps, cell it ended on)."""
    cells, reward = world.start, 0.0
    for step in range(limit):
        action = agent.act({"camera": cells[0].numpy(), "unknown": 0}, reward)
        cells = world.step(cells, torch.tensor([action]))
        reward = float(world.goal[tuple(cells[0])])
        if reward:
            return step + 1, tuple(cells[0].tolist())
    return limit, tuple(cells[0].tolist())


def _with(simulate, continue_prob, reward=None):
    """`simulate` whose futures never end, or always do, and are paid alike."""

    def changed(*args, **kwargs):
        futures = simulate(*args, **kwargs)
        futures.continue_prob = torch.full_like(futures.continue_prob, continue_prob)
        futures.reward = futures.reward if reward is None else torch.full_like(futures.reward, reward)
        return futures

    return changed
