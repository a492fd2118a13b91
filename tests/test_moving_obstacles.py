"""Reading MiniGrid frames back, stepping the true world, and telling calibrated futures from others."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.moving_obstacles import (
    UNRECOGNISED,
    MinigridOracle,
    Outcomes,
    Start,
    agents,
    compare_futures,
    is_coherent,
    is_recognised,
    moving_kinds,
    named_outcomes,
    sample_futures,
    things,
    total_variation,
    z_score,
)
from pan_hf import DiscreteAction, ImageSense

gymnasium = pytest.importorskip("gymnasium")
minigrid = pytest.importorskip("minigrid")
ENVIRONMENT = "MiniGrid-Dynamic-Obstacles-8x8-v0"
LEFT, FORWARD = 0, 2


@pytest.fixture(scope="module")
def world():
    return MinigridOracle(gymnasium.make(ENVIRONMENT), (64, 64))


@pytest.fixture(scope="module")
def played():
    """Frames `(N, 3, 64, 64)` of random play, and in each where the agent is and looks, and the balls."""
    env = minigrid.wrappers.RGBImgObsWrapper(gymnasium.make(ENVIRONMENT), tile_size=8)
    frames, facts, generator = [], [], np.random.default_rng(0)
    is_over = True
    for step in range(60):
        if is_over:
            observation, _ = env.reset(seed=step)
        else:
            observation, _, ended, cut, _ = env.step(int(generator.integers(3)))
        is_over = not is_over and (ended or cut)
        inner = env.unwrapped
        frames.append(observation["image"].transpose(2, 0, 1))
        balls = {tuple(int(part) for part in ball.cur_pos) for ball in inner.obstacles}
        facts.append((tuple(int(part) for part in inner.agent_pos), int(inner.agent_dir), balls))
    return np.array(frames), facts


@pytest.fixture(scope="module")
def crowded(world, played):
    """A played state in which a ball is beside another one or the agent."""
    frames, _ = played
    return next(state for state in world.parse(frames) if _closest_balls(state, world) == 1)


def _closest_balls(state, world):
    balls = np.argwhere(things(state) == world.kinds.index("blue-ball"))
    return min(abs(a - b).max() for i, a in enumerate(balls) for b in balls[:i])


def test_frames_are_read_back_exactly(world, played):
    frames, facts = played
    states = world.parse(frames)
    assert is_recognised(states).all()
    for state, (position, direction, balls) in zip(states, facts, strict=True):
        ((row, column),) = np.argwhere(agents(state) > 0)
        assert ((column, row), agents(state)[row, column] - 1) == (position, direction)
        assert {(x, y) for y, x in np.argwhere(things(state) == world.kinds.index("blue-ball"))} == balls


def test_reading_survives_small_noise_and_refuses_mixtures(world, played):
    frames, _ = played
    noise = np.random.default_rng(0).integers(-6, 7, frames.shape)
    noisy = np.clip(frames.astype(int) + noise, 0, 255).astype(np.uint8)
    assert (world.parse(noisy) == world.parse(frames)).all()
    ball = np.argwhere(things(world.parse(frames[:1]))[0] == world.kinds.index("blue-ball"))[0]
    faint = frames[:1].astype(int)
    (row, column) = ball * 8
    empty = faint[0, :, 8 * 1 : 8 * 2, 8 * 4 : 8 * 5].copy()
    tile = (slice(0, 1), slice(None), slice(row, row + 8), slice(column, column + 8))
    faint[tile] = (faint[tile] + empty) // 2
    states = world.parse(faint.astype(np.uint8))
    assert states[0, ball[0], ball[1]] == UNRECOGNISED and not is_recognised(states)[0]


def test_a_half_drawn_ball_is_not_recognised(world, played):
    frames, _ = played
    (row, column) = np.argwhere(things(world.parse(frames[:1]))[0] == world.kinds.index("blue-ball"))[0]
    cut = frames[:1].copy()
    cut[0, :, row * 8 : row * 8 + 4, column * 8 : column * 8 + 8] = 0
    assert world.parse(cut)[0, row, column] == UNRECOGNISED


def test_obstacles_move_at_random_and_nothing_else_does(world, played):
    states = world.parse(played[0])
    after, ended = world.outcomes(states[0], LEFT, 300)
    assert not ended.any() and is_coherent(after, after).all()
    assert (agents(after) == agents(after[0])).all()
    assert len(np.unique(after, axis=0)) > 100
    assert moving_kinds([_start(states[0], after, ended, {})]) == [world.kinds.index("blue-ball")]


def test_walking_into_a_ball_ends_the_episode(world, crowded):
    state = crowded.copy()
    row, column = np.argwhere(things(state) == world.kinds.index("blue-ball"))[0]
    state[agents(state) > 0] = 0
    beside = [(row, column - 1, 1), (row, column + 1, 3), (row - 1, column, 2), (row + 1, column, 4)]
    y, x, facing = next(place for place in beside if state[place[0], place[1]] == 0)
    state[y, x] = facing
    _, ended = world.outcomes(state, FORWARD, 20)
    assert ended.all()
    _, ended = world.outcomes(state, LEFT, 20)
    assert not ended.any()


def test_another_kind_of_world_is_refused():
    with pytest.raises(ValueError, match="not a MiniGrid environment"):
        MinigridOracle(gymnasium.make("CartPole-v1"), (64, 64))
    with pytest.raises(ValueError, match="Frames of 60x60 pixels"):
        MinigridOracle(gymnasium.make(ENVIRONMENT), (60, 60))


def test_doubled_missing_and_unrecognised_objects_are_incoherent(world, crowded):
    true, _ = world.outcomes(crowded, LEFT, 50)
    assert is_coherent(true, true).all()
    broken = np.repeat(true[:1], 4, 0)
    floor, ball = np.argwhere(true[0] == 0), np.argwhere(things(true[0]) == world.kinds.index("blue-ball"))
    broken[0][tuple(floor[0])] = broken[0][tuple(ball[0])]  # a fifth ball
    broken[1][tuple(ball[0])] = 0  # one ball less
    broken[2][tuple(floor[0])] = 1  # a second agent
    broken[3][tuple(floor[0])] = UNRECOGNISED
    assert not is_coherent(broken, true).any()
    moved = true[:1].copy()
    moved[0][tuple(floor[0])], moved[0][tuple(ball[0])] = moved[0][tuple(ball[0])], 0
    assert is_coherent(moved, true).all()


def _start(state, states, ended, sampled, episode=0):
    return Start(0, episode, state, LEFT, Outcomes(states, ended), sampled)


@pytest.fixture(scope="module")
def judged(world, played):
    """Four ways to sample, judged together: the truth, each cell on its own, one-sided, and always the same."""
    starts = []
    for episode, state in enumerate(world.parse(played[0])[:12]):
        true, ended = world.outcomes(state, LEFT, 600)
        fresh, fresh_ended = world.outcomes(state, LEFT, 100)
        generator = np.random.default_rng(episode)
        rows, columns = np.indices(state.shape)
        independent = true[generator.integers(len(true), size=(100, *state.shape)), rows, columns]
        one_sided = true[np.argsort(_ball_column(world, true))[:100]]
        sampled = {
            "truth": Outcomes(fresh, fresh_ended),
            "independent": Outcomes(independent, fresh_ended),
            "one_sided": Outcomes(one_sided, fresh_ended),
            "copied": Outcomes(np.repeat(state[None], 100, 0), fresh_ended),
        }
        starts.append(_start(state, true, ended, sampled, episode))
    return {(model, metric): (value, stderr) for model, metric, value, stderr in compare_futures(starts, world.kinds)}


def _ball_column(world, states):
    is_ball = things(states) == world.kinds.index("blue-ball")
    return (is_ball * np.arange(states.shape[2])).sum((1, 2))


@pytest.mark.slow
def test_the_truth_is_coherent_and_calibrated(judged):
    assert judged["truth", "coherent_futures"] == (1.0, 0.0)
    assert judged["truth", "calibration_within_3se"][0] == 1.0
    assert judged["truth", "cell_calibration_within_3se"][0] > 0.98
    assert judged["truth", "calibration_outcomes"][0] >= 8  # the eight ways a ball can go


@pytest.mark.slow
def test_cells_sampled_on_their_own_are_calibrated_but_not_coherent(judged):
    """Right marginals are not enough: balls double and vanish."""
    assert judged["independent", "cell_calibration_within_3se"][0] > 0.97
    assert judged["independent", "coherent_futures"][0] < 0.6
    assert judged["independent", "outcome_total_variation"][0] > judged["truth", "outcome_total_variation"][0]


@pytest.mark.slow
def test_possible_futures_of_wrong_frequency_are_coherent_but_not_calibrated(judged):
    assert judged["one_sided", "coherent_futures"][0] == 1.0
    assert judged["one_sided", "calibration_max_z"][0] > 5
    assert judged["one_sided", "calibration_within_3se"][0] < 0.7
    assert judged["copied", "coherent_futures"][0] == 1.0
    assert judged["copied", "calibration_max_z"][0] > 20


@pytest.mark.slow
def test_frequencies_of_outcomes_add_up(world, judged):
    ways = [f"outcome:blue-ball {down:+d}{right:+d}" for down in (-1, 0, 1) for right in (-1, 0, 1)]
    assert sum(judged["copied", way][0] for way in ways) >= 1
    assert judged["truth", "outcome:agent turned 3"][0] == 1.0  # one to the left is three to the right
    assert judged["truth", "outcome:end"][0] == 0.0
    value, stderr = judged["truth", "outcome:blue-ball -1+0"]
    # 12 states, 100 samples of 4 balls each; the balls of one sample are not quite independent
    assert stderr == pytest.approx(np.sqrt(value * (1 - value) / (12 * 100 * 4)), rel=0.2)


def test_outcomes_are_named_relative_to_where_things_were(world):
    state = np.zeros((4, 4), dtype=int)
    state[1, 1], state[3, 3] = 10, 1
    after = np.zeros((2, 4, 4), dtype=int)
    after[0, 2, 0], after[0, 3, 3] = 10, 2
    after[1, 1, 1], after[1, 2, 3] = 10, 1
    found = named_outcomes(state, Outcomes(after, np.array([0.25, 1.0])), {2: "ball"})
    assert found["ball +1-1"].tolist() == [1, 0] and found["ball +0+0"].tolist() == [0, 1]
    assert found["agent +0+0"].tolist() == [1, 0] and found["agent -1+0"].tolist() == [0, 1]
    assert found["agent turned 1"].tolist() == [1, 0] and found["end"].tolist() == [0.25, 1.0]


@pytest.mark.slow
def test_z_scores_of_the_truth_are_standard_normal():
    generator = np.random.default_rng(0)
    chances = generator.uniform(0.1, 0.9, 10)
    scores = [
        z_score([generator.random(100) < p for p in chances], [generator.random(1000) < p for p in chances])
        for _ in range(2000)
    ]
    assert np.mean(scores) == pytest.approx(0, abs=0.1)  # 4 standard errors of 1 / sqrt(2000)
    assert np.std(scores) == pytest.approx(1, abs=0.07)


def test_an_outcome_never_sampled_is_judged_by_the_truth():
    """No sample has it, yet the standard error is not zero, and rare outcomes are not tested."""
    true = np.arange(1000) < 100
    pooled = 100 / 1200
    error = np.sqrt(pooled * (1 - pooled) * (1 / 200 + 1 / 1000))
    assert z_score([np.zeros(200)], [true]) == pytest.approx(-0.1 / error)
    assert z_score([np.zeros(200)], [np.arange(1000) < 2]) is None
    assert z_score([np.ones(200)], [np.ones(1000)]) is None


def test_total_variation_counts_whole_states():
    one, other = np.array([[[0, 1]], [[0, 1]]]), np.array([[[0, 1]], [[1, 0]]])
    assert total_variation(one, one) == 0
    assert total_variation(one, other) == 0.5


@pytest.mark.slow
def test_a_model_that_is_the_simulator_is_coherent_and_calibrated(world, played):
    """The whole way: frames in, futures decoded, read back, judged. The model here is the simulator with a painter."""
    frames, facts = played
    rows = np.arange(20)
    actions = np.full(len(frames), LEFT)
    reader = SimpleNamespace(
        trajectories=SimpleNamespace(observations={"camera": frames}, actions=actions, episode=np.arange(len(frames))),
        model=_PaintedSimulator(world),
        batch=lambda rows, steps: {"observation": {"camera": torch.as_tensor(frames[rows][:, None])}, "action": None},
        perceive=lambda batch: world.parse(batch["observation"]["camera"][:, 0].numpy()),
    )
    settings = {"num_samples": 50, "num_true": 300, "batch_size": 400, "progress": False}
    starts = sample_futures(reader, world, rows, **settings)
    assert [start.row for start in starts] == rows.tolist()
    found = {(model, metric): value for model, metric, value, _ in compare_futures(starts, world.kinds)}
    assert found["pan", "coherent_futures"] == found["simulator", "coherent_futures"] == 1
    assert found["pan", "calibration_within_3se"] == 1


class _PaintedSimulator:
    """`simulate` by the true rules from states read off frames, `decode` by the simulator's own drawings."""

    config = SimpleNamespace(senses={"camera": ImageSense(size=64)}, action=DiscreteAction(3))

    def __init__(self, world):
        self.world = world

    def simulate(self, states, actions, num_rollouts, temperature, seed):
        outcomes = [self.world.outcomes(state, LEFT, num_rollouts) for state in states]
        after, ended = (np.concatenate(column) for column in zip(*outcomes, strict=True))
        frames = np.array([self._paint(state) for state in after])
        return SimpleNamespace(
            decode=lambda sense: torch.as_tensor(frames)[:, None],
            continue_prob=1 - torch.as_tensor(ended).float()[:, None],
        )

    def _paint(self, state):
        drawing = {int(tile): look for tile, look in zip(self.world._tiles, self.world._templates, strict=True)}
        tiles = np.array([[drawing[int(tile)].reshape(8, 8, 3) for tile in row] for row in state])
        return tiles.transpose(4, 0, 2, 1, 3).reshape(3, 64, 64).astype(np.uint8)
