"""Values that are names (gymnasium's `Discrete` and the like, grids of symbols) are codes of their own, from a space
to an imagined observation."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tiny_worlds import outcomes

from pan_hf import DiscreteSense, GoalCritic, RecordTrajectories
from pan_hf.build import build
from pan_hf.data.episodes import read_info
from pan_hf.data.record import record
from pan_hf.data.starts import RecordedStarts
from pan_hf.data.trajectories import load_trajectories
from pan_hf.envs.environment import SenseEnvironment, make_environment, make_recorded_environment
from pan_hf.envs.imagined import ImaginedEnv
from pan_hf.envs.state_features import StateFeatures
from pan_hf.evaluation.evaluate import evaluate_model
from pan_hf.features import feature_of
from pan_hf.modeling.codecs_pan import build_codec
from pan_hf.training.pipeline import train
from pan_hf.training.summary import summary

BOARD = spaces.Box(0, 3, (3, 4, 2), np.int8)


class Ring(gymnasium.Env):
    """Six places in a ring, of which the last is never reached; a piece on a board stands where one is."""

    metadata = {"render_modes": [], "render_fps": 4}
    observation_space = spaces.Dict(
        {"place": spaces.Discrete(6, start=-2), "board": BOARD, "bits": spaces.MultiBinary(3)}
    )
    action_space = spaces.Discrete(2)

    def look(self):
        board = np.zeros((3, 4, 2), np.int8)
        board[self.at % 3, self.at % 4] = 3, 1
        bits = np.array([self.at >> bit & 1 for bit in range(3)], np.int8)
        return {"place": np.int64(self.at - 2), "board": board, "bits": bits}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.steps = int(self.np_random.integers(5)), 0
        return self.look(), {}

    def step(self, action):
        self.at, self.steps = (self.at + (1 if action else 4)) % 5, self.steps + 1
        return self.look(), float(self.at == 0), False, self.steps == 8, {}


gymnasium.register("symbols/Ring-v0", Ring, disable_env_checker=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A recording of the ring and an untrained model of it: folder, trajectories, model, processor."""
    folder = tmp_path_factory.mktemp("ring") / "data"
    record("symbols/Ring-v0", folder, episodes=12, test_fraction=0.25, progress=False)
    trajectories = load_trajectories(folder, "train")
    model, processor = build(trajectories, "debug", adapter_dim=16)
    return folder, trajectories, model.eval(), processor


class Shown(gymnasium.Env):
    """Shows samples of any space."""

    action_space = spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}


# ---- a sense and its codec

SENSES = [
    DiscreteSense(num_values=500),
    DiscreteSense(num_values=3, start=-1),
    DiscreteSense(dims=[2], num_values=[3, 5], start=[-1, 10]),
    DiscreteSense(dims=[7], num_values=[3, 3, 5, 5, 5, 2, 2]),
    DiscreteSense(dims=[20], num_values=[2] * 3 + [3] * 17),
    DiscreteSense(dims=[64]),
    DiscreteSense(dims=[4, 6], num_values=9, spatial_merge_size=2),
    DiscreteSense(dims=[7, 7, 3], num_values=[11, 6, 4]),
]
NAMES = ["taxi", "from -1", "two", "mixed", "many mixed", "bits", "grid", "minigrid"]


def drawn(sense, *leading):
    """Random values of a sense, `(*leading, *shape)` int64; the least and the greatest are among them."""
    low, high = sense.limits()
    shape = (*leading, *(sense.shape or (1,)))
    values = low + (torch.rand(shape) * (high - low + 1)).long()
    values[0, 0], values[0, 1] = low, high
    return values.view(*leading, *sense.shape)


@pytest.mark.parametrize("sense", SENSES, ids=NAMES)
def test_codes_are_the_values(sense):
    codec, values = build_codec(sense), drawn(sense, 3, 4)
    sense.check_values(values)
    codes, latents = codec.encode(values)
    assert latents is None and len(codes) == sense.num_levels
    for level, level_codes in enumerate(codes):
        assert level_codes.shape == (3, 4, sense.num_state_tokens * sense.codes_per_token[level])
        assert 0 <= level_codes.min() and level_codes.max() == sense.codebook_size[level] - 1
    flat = [level_codes.flatten(0, 1) for level_codes in codes]
    assert torch.equal(codec.decode(flat).unflatten(0, (3, 4)), values)
    sequences = codec.to_sequence(values)
    assert [each.shape[1] for each in sequences] == codec.sequence_lengths(4)
    assert torch.equal(codec.from_sequence(sequences, 4), values)
    certain = codec.decode_probabilities(
        [torch.nn.functional.one_hot(each, count) for each, count in zip(flat, sense.codebook_size, strict=True)]
    )
    assert codec.error(certain, values.flatten(0, 1)).abs().max() == 0


def test_a_row_has_levels_by_number_of_values_and_few_tokens():
    mixed = SENSES[NAMES.index("mixed")]
    assert (mixed.codebook_size, mixed.num_state_tokens, mixed.codes_per_token) == ([3, 2, 5], 3, [1, 1, 1])
    assert [mixed.entries(level) for level in range(3)] == [[0, 1], [5, 6], [2, 3, 4]]
    many = SENSES[NAMES.index("many mixed")]
    assert (many.codebook_size, many.num_state_tokens, many.codes_per_token) == ([2, 3], 8, [1, 3])


def test_channels_of_a_cell_share_its_state_token():
    sense = SENSES[NAMES.index("minigrid")]
    assert sense.is_grid and sense.token_grid == (7, 7) and sense.codes_per_token == [1, 1, 1]
    assert sense.segments == {"0": (11, 11), "1": (6, 6), "2": (4, 4), "merges": (128, 0)}
    grid = SENSES[NAMES.index("grid")]
    assert (grid.token_grid, grid.codes_per_token, grid.crop(1, 2).shape) == ((2, 3), [4], (2, 4))


def test_an_absent_code_is_the_least_value_and_a_wrong_one_is_wrong_by_the_whole_range():
    codec = build_codec(SENSES[2])
    codes = [torch.tensor([[-1]]), torch.tensor([[4]])]
    assert codec.decode(codes).tolist() == [[-1, 14]] and codec.decode(codes[:1]).tolist() == [[-1, 10]]
    assert codec.squared_shares(torch.tensor([[0, 10]]), torch.tensor([[1, 10]])).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dims": [2, 2, 2, 2]}, r"expected \[\], \[entries\], \[height, width\].*flatten"),
        ({"dims": [3], "num_values": [2, 2]}, "expected 3 of `num_values` or one for all, got 2"),
        ({"dims": [70], "num_values": list(range(1, 71))}, "70 channels, or entries.*at most 64"),
        ({"dims": [3, 4], "spatial_merge_size": 2}, "spatial_merge_size=2 must divide the height and width"),
        ({"dims": [4], "spatial_merge_size": 2}, "only a grid has one"),
        ({"num_values": 0}, "`num_values` must be at least 1"),
    ],
)
def test_a_sense_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DiscreteSense(**fields)


# ---- from a space to a recording


@pytest.mark.parametrize(
    ("space", "dims", "num_values", "start"),
    [
        (spaces.Discrete(3, start=-1), [], [3], [-1]),
        (spaces.MultiDiscrete([2, 5], start=[0, 7]), [2], [2, 5], [0, 7]),
        (spaces.MultiDiscrete([[2, 5], [3, 4]]), [4], [2, 5, 3, 4], [0] * 4),
        (spaces.MultiBinary(3), [3], [2] * 3, [0] * 3),
        (spaces.MultiBinary([2, 3]), [2, 3], [2], [0]),
        (spaces.Box(0, 9, (9, 9), np.int64), [9, 9], [10], [0]),
        (spaces.Box(0, 1, (10, 10, 4), bool), [10, 10, 4], [2] * 4, [0] * 4),
        (spaces.Box(0, 1, (4, 10, 10), bool), [10, 10, 4], [2] * 4, [0] * 4),
        (spaces.Box(0, 15, (8, 8), np.uint8), [8, 8], [16], [0]),
    ],
)
def test_spaces_of_whole_numbers_that_are_names_become_symbols(space, dims, num_values, start):
    env = SenseEnvironment(Shown(space))
    assert env.features["observation.state"] == {
        "kind": "symbols",
        "dims": dims,
        "num_values": num_values,
        "start": start,
    }
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation) and env.symbols == ["state"]
    space.seed(0)
    raw = np.asarray(space.sample(), np.int64)
    raw = raw.transpose(1, 2, 0) if space.shape == (4, 10, 10) else raw
    assert np.array_equal(np.asarray(observation["state"]).ravel(), raw.ravel())


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        (spaces.Box(0, 5, (4,), np.int64), "vector"),  # a row of counters
        (spaces.Box(0, 2**16, (4, 4), np.int64), "vector"),
        (spaces.Discrete(10**6), "vector"),
        (spaces.Box(0, 1, (16, 16, 3), np.uint8), "image"),  # black and white
        (spaces.Box(0, 255, (16, 16, 3), np.uint8), "image"),
        (spaces.Box(0, 255, (64, 64, 3), np.uint8), "image"),
    ],
)
def test_numbers_that_measure_and_pictures_stay_what_they_are(space, kind):
    (described,) = (one for name, one in SenseEnvironment(Shown(space)).features.items() if name != "action")
    assert described["kind"] == kind


@pytest.mark.parametrize(
    ("space", "shown", "message"),
    [
        (spaces.Discrete(3), 3, r"sense 'state': expected values within Discrete\(3\), got 3 to 3"),
        (spaces.Discrete(3), 1.0, "expected whole numbers of shape .*got float64"),
        (spaces.MultiBinary(3), np.zeros(4, np.int8), r"of shape \(3,\).*got int8 \(4,\)"),
    ],
)
def test_an_observation_that_is_none_of_its_space_is_said(space, shown, message):
    env = Shown(space)
    env.reset = lambda **_: (shown, {})
    with pytest.raises(ValueError, match=message):
        SenseEnvironment(env).reset()


def test_what_is_recorded_is_read_as_it_was(world):
    folder, trajectories, *_ = world
    assert trajectories.features["observation.board"]["dims"] == [3, 4, 2]
    assert read_info(folder)["environments"][0]["symbols"] == ["bits", "board", "place"]
    seen, env = trajectories.observations, Ring()
    assert seen["board"].shape[1:] == (3, 4, 2) and seen["board"].dtype == np.uint8
    for row in range(20):
        env.at = int(seen["place"][row]) + 2
        for name, value in env.look().items():
            assert np.array_equal(seen[name][row], value), name


def test_a_recording_of_before_is_played_in_vectors():
    entry = {"id": "symbols/Ring-v0", "keep": ["place", "bits"]}
    env = make_recorded_environment(entry)
    assert {one["kind"] for name, one in env.features.items() if name != "action"} == {"vector"}
    assert env.reset(seed=0)[0]["bits"].dtype == np.float32
    entry["symbols"] = ["place"]
    assert make_recorded_environment(entry).features["observation.place"]["kind"] == "symbols"


def test_a_recording_of_before_goes_on_as_it_was_begun(tmp_path):
    before = {"test_fraction": 0, "symbols": [], "progress": False}
    record("symbols/Ring-v0", tmp_path / "data", episodes=2, **before)
    assert "symbols" not in read_info(tmp_path / "data")["environments"][0]
    info = record("symbols/Ring-v0", tmp_path / "data", episodes=4, test_fraction=0, progress=False)
    assert info["features"]["observation.bits"]["kind"] == "vector" and info["episodes"]["train"] == 4
    env = RecordTrajectories(gymnasium.make("symbols/Ring-v0"), tmp_path / "loop", symbols=["bits"])
    for _ in range(2):
        env.reset(seed=0)
        env.step(0)
        env.close()
        env = RecordTrajectories(gymnasium.make("symbols/Ring-v0"), tmp_path / "loop")
    assert env.features["observation.bits"]["kind"] == "symbols"
    assert env.features["observation.place"]["kind"] == "vector"


def test_values_that_were_not_recorded_are_no_values(world, tmp_path):
    feature = feature_of({"kind": "symbols", "dims": [2], "num_values": [2, 3], "start": [0, 0]})
    import pyarrow as pa

    column = pa.chunked_array([pa.FixedSizeListArray.from_arrays(pa.array([0, 3], pa.uint8()), 2)])
    with pytest.raises(ValueError, match="expected values of 2 symbols of 0 to 1, 0 to 2, got 0 to 3"):
        feature.read(column)


# ---- a model


def test_a_model_has_a_row_for_every_value_met_or_not(world):
    _, trajectories, model, processor = world
    assert model.config.senses["place"] == DiscreteSense(num_values=6, start=-2)
    assert trajectories.observations["place"].max() == 2  # the space has 3
    observation = {"place": np.array([3]), "board": np.full((1, 3, 4, 2), 3), "bits": np.ones((1, 3), bool)}
    state = model.encode(processor(observation=observation)["observation"])
    assert state.codes["place"][0].item() == 5
    assert torch.equal(model.decode(state, "board"), torch.full((1, 1, 3, 4, 2), 3))
    assert bool(model.table.active_codes("place", "0").all()) and len(model.table.active_codes("place", "0")) == 6


def test_it_is_imagined_scored_and_written_in_tokens(world):
    _, trajectories, model, processor = world
    rows = {name: values[:3][None] for name, values in trajectories.observations.items()}
    observation = processor(observation=rows)["observation"]
    belief = model.perceive({name: values[:, :1] for name, values in observation.items()})
    action = torch.tensor([[1, 0]])
    for effort in (None, "all", "coarsest", "focused", "auto"):
        futures = model.simulate(belief, action, num_rollouts=3, seed=0, effort=effort)
        for name, sense in model.config.senses.items():
            imagined = futures.decode(name)
            assert imagined.shape == (3, 2, *sense.shape) and imagined.dtype == torch.int64
            sense.check_values(imagined)
    later = {name: values[:, 1:] for name, values in observation.items()}
    assert torch.isfinite(model.log_prob(belief, action, later).total).all()
    for name, values in observation.items():
        ids = model.to_token_ids(name, values)
        assert torch.equal(model.from_token_ids(name, ids), values.long()), name
    ids = model.to_token_ids("bits", observation["bits"], chunk=3)
    assert torch.equal(model.from_token_ids("bits", ids, chunk=3), observation["bits"].long())


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"place": 4}, r"place: expected values within -2..3, got 4; .*--sense place.num_values"),
        ({"place": 0.5}, "place: expected whole numbers, which name what is there, got float64"),
        (
            {"board": np.zeros((4, 3, 2), int)},
            r"board: expected one value of shape \(3, 4, 2\).*got shape \(4, 3, 2\)",
        ),
        ({"bits": [0, 1, 2]}, "bits: expected values within 0..1, got 2"),
    ],
)
def test_the_processor_says_what_does_not_fit(world, observation, message):
    with pytest.raises(ValueError, match=message):
        world[3](observation=observation)


def test_a_tensor_out_of_range_is_refused_by_the_model_too(world):
    _, trajectories, model, processor = world
    rows = {name: values[:1][None] for name, values in trajectories.observations.items()}
    observation = dict(processor(observation=rows)["observation"])
    with pytest.raises(ValueError, match="'place': expected values of -2 to 3, got 9"):
        model.encode({**observation, "place": torch.tensor([[9]])})
    with pytest.raises(ValueError, match="'place': expected whole numbers.*float32"):
        model.encode({**observation, "place": torch.tensor([[0.5]])})


def test_an_absent_sense_is_filled_and_told(world):
    *_, model, processor = world
    observation = {"place": [0, None], "board": np.zeros((2, 3, 4, 2), int), "bits": None}
    batch = processor(observation=observation)["observation"]
    assert batch["place.present"].tolist() == [[True, False]] and batch["bits"].tolist() == [[[0] * 3] * 2]
    assert model.encode(batch).codes["place"][0].tolist() == [[[2], [-1]]]


def test_a_goal_is_about_values_and_a_policy_reads_one_number_a_value(world):
    _, trajectories, model, processor = world
    goal = {"place": -2, "bits": [0, 0, 0]}
    critic = GoalCritic.from_observation(model, processor, goal)
    rows = {name: values[:1][None] for name, values in trajectories.observations.items()}
    belief = model.perceive(**processor(observation=rows))
    scores = critic.score(model.simulate(belief, torch.tensor([[0]]), seed=0))
    assert scores.shape == (1, 1) and 0 <= scores <= 1
    features = StateFeatures(model)
    vector = features(belief)[0, features.slice_of("place")]
    assert vector.tolist() == [float(number == rows["place"].item() + 2) for number in range(6)]
    assert features.sizes == {"bits": 6, "board": 3 * 4 * 8, "place": 6}


def test_a_grid_is_shown_as_coloured_cells_with_a_stripe_a_channel(world):
    _, trajectories, model, processor = world
    feature = feature_of(model.config.senses["board"])
    assert feature.is_shown and not feature.is_picture and not feature_of(model.config.senses["place"]).is_shown
    board = np.zeros((1, 3, 4, 2), np.uint8)
    board[0, 1, 2] = 3, 0
    (frame,) = feature.to_frames(torch.from_numpy(board))
    assert frame.shape == (36, 48, 3) and frame.dtype == np.uint8
    is_dark = (frame == frame[0, 0]).all(-1)
    assert not is_dark[12:24, 24:30].any() and is_dark[12:24, 30:36].all() and is_dark.sum() == 36 * 48 - 72
    rows = {name: values[:1][None] for name, values in trajectories.observations.items()}
    futures = model.simulate(model.perceive(**processor(observation=rows)), torch.tensor([[0, 1]]), seed=0)
    assert "48x36" in repr(futures.film("board")) or len(futures.film()) == 2
    assert "board" in futures._repr_html_() and "board" in trajectories._repr_html_()


def test_measures_say_how_many_values_are_right_beside_those_that_stay(world):
    _, trajectories, model, processor = world
    records = evaluate_model(model, processor, trajectories, horizons=(1, 2), num_windows=8, progress=False)
    found = {(entry.metric, entry.model) for entry in records}
    for metric in ("place_value_accuracy", "board_exact_observation", "bits_value_accuracy_changed"):
        assert {(metric, "pan"), (metric, "copy_last")} <= found
    copied = {entry.metric: entry.value for entry in records if entry.model == "copy_last"}
    assert copied["place_value_accuracy_changed"] == 0
    lines = summary(model, processor, trajectories, num_windows=4)
    assert any(line.startswith("board: ") and "symbols imagined one step ahead are right" in line for line in lines)


def test_a_world_of_symbols_is_learned_to_the_last_value(tmp_path):
    record("symbols/Ring-v0", tmp_path / "data", episodes=12, keep=["place"], test_fraction=0, progress=False)
    trajectories = load_trajectories(tmp_path / "data", "train")
    model, _ = build(trajectories, "debug", adapter_dim=16)
    rows = torch.from_numpy(trajectories.windows(1)[:32])
    place = torch.from_numpy(trajectories.observations["place"])
    observation = {"place": torch.stack([place[rows], place[rows + 1]], 1)}
    action = torch.from_numpy(trajectories.actions)[rows].unsqueeze(1)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.train().parameters(), 5e-3)
    given = {"observation": observation, "action": action, **outcomes(len(rows), 1)}
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(objective="joint", **given).loss
        loss.backward()
        optimizer.step()
    model.eval()
    belief = model.perceive({"place": observation["place"][:, :1]})
    futures = model.simulate(belief, action, temperature=0.0, seed=0)
    assert torch.equal(futures.decode("place"), observation["place"][:, 1:])


def test_a_dream_of_it_is_a_gymnasium_world(world):
    _, trajectories, model, processor = world
    starts = RecordedStarts(trajectories, processor, model)
    env = ImaginedEnv(model, processor, starts, horizon=3)
    observation, _ = env.reset(seed=0)
    for _ in range(2):
        assert env.observation_space.contains(observation)
        observation, *_ = env.step(1)
    assert env.observation_space["place"] == spaces.Discrete(6, start=-2)
    assert env.observation_space["board"] == spaces.Box(0, 3, (3, 4, 2), np.uint8)


@pytest.mark.slow
def test_the_whole_pipeline_trains_evaluates_and_shows_it(world, tmp_path):
    from pan_hf.evaluation.evaluate import evaluate
    from pan_hf.reporting.report import write_report

    train(tmp_path / "run", world[0], backbone="debug", seconds=20, progress=False)
    records = evaluate(tmp_path / "run", world[0], horizons=(1, 2), num_windows=8, skip_trained=True)
    assert {"board_value_accuracy", "place.0_code_accuracy"} <= {entry.metric for entry in records}
    assert list((tmp_path / "run" / "report" / "strips").glob("*.npz"))
    assert write_report(tmp_path / "run").is_file()


def test_gymnasium_worlds_need_no_flag():
    found = {}
    for id in ("FrozenLake-v1", "Taxi-v4", "Blackjack-v1", "CliffWalking-v1"):
        env = make_environment(id)
        found[id] = [
            one["num_values"][0] for name, one in env.features.items() if name != "action" and one["kind"] == "symbols"
        ]
        assert env.observation_space.contains(env.reset(seed=0)[0])
    expected = {"FrozenLake-v1": [16], "Taxi-v4": [500], "Blackjack-v1": [32, 11, 2], "CliffWalking-v1": [48]}
    assert found == expected
