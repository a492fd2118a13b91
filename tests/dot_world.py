"""A world small enough to know every metric by hand: a white dot on a grid of 3x3 cells of 8x8 pixels.

Actions: 0 stays, 1 and 2 move right and left, 3 and 4 down and up, not beyond the edge. Stepping into the lower right
corner gives reward 1 and ends the episode. `DotModel` knows these rules and stands in for a trained [`PanModel`]: its
codes are the dot's row (level 0) and column (level 1), and it can be told to make one kind of mistake.
"""

from types import SimpleNamespace

import numpy as np
import torch

from pan_hf.data.trajectories import Trajectories
from pan_hf.modeling.sense_configuration_pan import DiscreteAction, ImageSense, TextSense, VectorSense
from pan_hf.modeling.simulation_pan import Futures, LogProb
from pan_hf.modeling.state_pan import Belief, State

SIDE, PATCH = 3, 8
MOVES = torch.tensor([[0, 0], [0, 1], [0, -1], [1, 0], [-1, 0]])
CORNER = torch.tensor([SIDE - 1, SIDE - 1])


def step(places, actions):
    """Places `(..., 2)` of the dot (row, column) after one action `(...)`."""
    return (places + MOVES[actions]).clamp(0, SIDE - 1)


def draw(places):
    """Frames uint8 `(..., 3, 24, 24)` of a dot at `places` `(..., 2)`."""
    cells = torch.zeros(*places.shape[:-1], SIDE, SIDE)
    flat = (places[..., 0] * SIDE + places[..., 1]).unsqueeze(-1)
    cells.flatten(-2).scatter_(-1, flat, 255.0)
    pixels = cells.repeat_interleave(PATCH, -1).repeat_interleave(PATCH, -2)
    return pixels.unsqueeze(-3).expand(*places.shape[:-1], 3, -1, -1).to(torch.uint8)


def record_dots(num_episodes=6, length=12, seed=0, environments=("dots", "more-dots")):
    """Random episodes as [`Trajectories`]; an episode ends in the corner or after `length` actions."""
    generator = torch.Generator().manual_seed(seed)
    episodes = [_episode(length, generator) for _ in range(num_episodes)]
    lengths = np.array([len(places) for places, *_ in episodes])
    places, actions, rewards, dones = (torch.cat(column) for column in zip(*episodes, strict=True))
    is_pad = np.zeros(len(actions), dtype=bool)
    is_pad[np.cumsum(lengths) - 1] = True
    return Trajectories(
        features={
            "observation.camera": {"kind": "image", "shape": [SIDE * PATCH, SIDE * PATCH, 3], "unit": "uint8 RGB"},
            "observation.place": {"kind": "vector", "dim": 2, "low": [0, 0], "high": [2, 2]},
            "observation.mission": {"kind": "text", "every_step": False},
            "action": {"kind": "discrete", "n": 5},
        },
        observations={
            "camera": draw(places).numpy(),
            "place": places.float().numpy(),
            "mission": np.full(len(actions), "go to the corner"),
        },
        actions=actions.numpy(),
        rewards=rewards.numpy(),
        dones=dones.numpy(),
        truncateds=np.zeros(len(actions), dtype=bool),
        action_is_pad=is_pad,
        episode=np.repeat(np.arange(num_episodes), lengths),
        episode_starts=np.cumsum(lengths) - lengths,
        episode_lengths=lengths,
        episode_indices=np.arange(num_episodes) + 100,
        tasks=["go to the corner"] * num_episodes,
        environments=[environments[index % len(environments)] for index in range(num_episodes)],
        seeds=list(range(num_episodes)),
        fingerprints=[f"{index:016x}" for index in range(num_episodes)],
    )


def _episode(length, generator):
    places = [torch.zeros(2, dtype=torch.long)]
    actions, rewards, dones = [], [], []
    while len(actions) < length and not (dones and dones[-1]):
        actions.append(int(torch.randint(0, len(MOVES), (), generator=generator)))
        places.append(step(places[-1], actions[-1]))
        dones.append(bool((places[-1] == CORNER).all()))
        rewards.append(float(dones[-1]))
    # the last row: the final observation and no action
    pads = torch.tensor([*actions, 0]), torch.tensor([*rewards, 0.0]), torch.tensor([*dones, False])
    return torch.stack(places), *pads


class DotProcessor:
    """The shapes of [`PanProcessor`], for arrays that are right already."""

    tokenizer = SimpleNamespace(pad_token_id=0)
    senses = ("camera", "place", "mission")

    def __call__(self, observation, action):
        batch = {
            "observation": {
                "camera": torch.as_tensor(observation["camera"]).permute(0, 1, 4, 2, 3),
                "place": torch.as_tensor(observation["place"]),
                "mission": torch.ones(len(observation["mission"]), 2, dtype=torch.long),
            },
            "action": torch.as_tensor(action),
        }
        return _Batch(batch)


class _Batch(dict):
    def to(self, device):
        return self


class DotModel:
    """The rules of the world behind the interface of [`PanModel`].

    Args:
        mistake (`str`, *optional*): "frozen" (nothing moves), "deaf" (every action is read as "right"), "dim" (draws a
            dot of 155 in place of 255) or "late" (never expects reward or end).
    """

    device = torch.device("cpu")

    def __init__(self, mistake=None):
        self.mistake = mistake
        self.simulated = 0
        self.config = SimpleNamespace(
            senses={
                "camera": ImageSense(size=SIDE * PATCH, level_strides=[1, 1], spatial_merge_size=1),
                "place": VectorSense(dim=2, low=0, high=2),
                "mission": TextSense(),
            },
            action=DiscreteAction(5, names=["stay", "right", "left", "down", "up"]),
            context_steps=2,
        )
        self.senses = self.config.senses  # of which only the names are asked for

    def encode(self, observation):
        cells = observation["camera"][..., 0, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]
        index = cells.flatten(-2).argmax(-1, keepdim=True)
        return State({name: [index // SIDE, index % SIDE] for name in ("camera", "place")})

    def decode(self, state, sense, num_levels=None, latents=True):
        if num_levels == 1:  # of the row alone: the dot in its first column
            state = State({"camera": [state.codes["camera"][0], torch.zeros_like(state.codes["camera"][0])]})
        places = torch.cat(state.codes["camera"], -1)
        if sense == "place":
            return places.float()
        frames = draw(places)
        return frames.clamp(max=155) if self.mistake == "dim" else frames

    def perceive(self, observation, action=None):
        steps = observation["camera"].shape[1]
        assert steps <= self.config.context_steps
        assert (0 if action is None else action.shape[1]) == steps - 1
        return Belief(self.encode(observation).map(lambda codes: codes[:, -1]), [], None, None, self)

    def simulate(self, belief, actions, num_rollouts=1, temperature=1.0, seed=None, expected=()):
        assert num_rollouts == 1
        self.simulated += actions.numel()
        before, states, ends = torch.cat(belief.state.codes["camera"], -1), [], []
        for action in actions.unbind(1):
            action = {"frozen": action * 0, "deaf": action * 0 + 1}.get(self.mistake, action)
            after = step(before, action)
            ends.append((after == CORNER).all(-1) & (after != before).any(-1) & (self.mistake != "late"))
            states.append(after)
            before = after
        places, ends = torch.stack(states, 1), torch.stack(ends, 1).float()
        state = State({name: list(places.split(1, -1)) for name in ("camera", "place")})
        belief = Belief(state, [], None, None, self)
        shown = state.map(lambda codes: codes[:, sorted(expected)])
        images = {"camera": self.decode(shown, "camera")} if expected else {}
        return Futures(state, torch.zeros_like(ends), ends, 1 - ends, belief, {}, seed, images)

    def log_prob(self, belief, actions, observations):
        """One bit for the codes, none for latents, two for the pixels."""
        assert set(observations) == {"camera", "place"}
        nats = torch.full(actions.shape, -np.log(2.0))
        return LogProb(nats, 0 * nats, 2 * nats)
