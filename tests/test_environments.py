"""Any environment becomes named senses and one kind of action, and what does not fit is said at once."""

import re

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from pan_hf.envs.environment import EnvironmentFailure, SenseEnvironment, describe_environment, make_environment
from pan_hf.envs.minigrid import minigrid_expert, minigrid_random_state
from pan_hf.envs.policies import load_policies
from pan_hf.specs import import_object, load_callable, parse_spec

GRID = {"wrappers": ["minigrid.wrappers:RGBImgObsWrapper?tile_size=8"], "keep": ["image", "mission"]}
MINIGRID_ACTIONS = ["left", "right", "forward", "pickup", "drop", "toggle", "done"]
QUICKSTART = ["MiniGrid-Empty-8x8-v0", "pan_hf/FourRooms-8x8-v0", "MiniGrid-DoorKey-8x8-v0"]


class Spaced(gymnasium.Env):
    """An environment of any two spaces; it shows what it is given and remembers the last action."""

    def __init__(self, observation_space=None, action_space=None, observation=None, reward=0.0):
        self.observation_space = observation_space or spaces.Discrete(3)
        self.action_space = action_space or spaces.Discrete(2)
        self.observation = observation
        self.reward = reward
        self.action = None

    def _get_obs(self):
        return self.observation_space.sample() if self.observation is None else self.observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._get_obs(), {}

    def step(self, action):
        self.action = action
        return self._get_obs(), self.reward, False, False, {}


def sensed(observation_space=None, action_space=None, observation=None, **options):
    return SenseEnvironment(Spaced(observation_space, action_space, observation), **options)


# specs


def test_a_spec_holds_python_literals():
    target, arguments = parse_spec("a.b:C?size=8&rate=0.5&on=true&names=[1,2]&kind=red")
    assert target == "a.b:C"
    assert arguments == {"size": 8, "rate": 0.5, "on": True, "names": [1, 2], "kind": "red"}


@pytest.mark.parametrize(
    ("spec", "message"), [("a", "module:name"), ("no_such_module:x", "cannot import"), ("math:no", "has no 'no'")]
)
def test_a_spec_that_names_nothing_says_which_part_is_wrong(spec, message):
    with pytest.raises(ValueError, match=message):
        import_object(spec)


@pytest.mark.parametrize("spec", ["cem?", "cem?horizon=3&", "cem?horizon"])
def test_a_spec_that_was_cut_short_is_refused(spec):
    with pytest.raises(ValueError, match=f"'{re.escape(spec)}': expected key=value after '.'"):
        parse_spec(spec)


def test_a_wrapper_that_refuses_its_arguments_is_named():
    spec = "gymnasium.wrappers:ResizeObservation?shape=[1,2,3]"
    with pytest.raises(ValueError, match=f"wrapper '{re.escape(spec)}' does not fit"):
        make_environment("CartPole-v1", wrappers=[spec])


# making


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("CartPole-v11", "did you mean CartPole-v1"),
        ("no_such_module:Thing-v0", "no_such_module"),
        ("no_such_package/Thing-v0", "'no_such_package', which is not installed"),
    ],
)
def test_an_unknown_environment_is_one_clear_error(id, message):
    with pytest.raises(ValueError, match=message):
        make_environment(id)


def test_an_argument_the_environment_does_not_take_is_named():
    with pytest.raises(ValueError, match="CartPole-v1.*gravity_of_moon"):
        make_environment("CartPole-v1", {"gravity_of_moon": 1})


def test_an_argument_the_wrapper_does_not_take_is_named():
    with pytest.raises(ValueError, match="RGBImgObsWrapper.*colour"):
        make_environment("MiniGrid-Empty-5x5-v0", wrappers=["minigrid.wrappers:RGBImgObsWrapper?colour=1"])


def test_a_kept_observation_that_is_not_there_lists_those_that_are():
    with pytest.raises(ValueError, match=r"keep names \['picture'\].*direction.*image.*mission"):
        make_environment("MiniGrid-Empty-5x5-v0", keep=["picture"])


@pytest.mark.parametrize("id", QUICKSTART)
def test_quickstart_worlds_are_64_pixel_frames_and_a_mission(id):
    env = make_environment(id, rename={"image": "camera"}, **GRID)
    observation, _ = env.reset(seed=0)
    assert observation["camera"].shape == (64, 64, 3) and observation["camera"].dtype == np.uint8
    assert isinstance(observation["mission"], str)
    assert describe_environment(env) == {
        "observation.camera": {"kind": "image", "shape": [64, 64, 3], "unit": "uint8 RGB"},
        "observation.mission": {"kind": "text", "every_step": False},
        "action": {"kind": "discrete", "n": 7, "names": MINIGRID_ACTIONS},
    }


def test_actions_have_the_names_that_a_list_gives_them_and_none_where_not_all_have_one():
    env = sensed(action_space=spaces.Discrete(2))
    env.unwrapped.get_action_meanings = lambda: ["NOOP", "FIRE"]
    assert env.features["action"] == {"kind": "discrete", "n": 2, "names": ["NOOP", "FIRE"]}
    env.unwrapped.get_action_meanings = lambda: ["NOOP"]
    assert env.features["action"] == {"kind": "discrete", "n": 2}


def test_render_adds_a_camera_where_no_observation_is_an_image():
    env = make_environment("CartPole-v1", render=True, image_size=32)
    observation, _ = env.reset(seed=0)
    assert observation["camera"].shape == (32, 32, 3)
    assert observation["state"].shape == (4,)
    assert env.features["observation.camera"]["shape"] == [32, 32, 3]
    assert set(make_environment("CartPole-v1", render=True, keep=["camera"]).reset(seed=0)[0]) == {"camera"}


def test_an_environment_that_cannot_render_is_refused():
    with pytest.raises(ValueError, match=r"render\(\)"):
        sensed(render=True)


class Failing(gymnasium.Env):
    """Fails where it is told to."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    render_mode = "rgb_array"

    def __init__(self, where):
        self.where = where

    def reset(self, *, seed=None, options=None):
        if self.where == "reset":
            raise RuntimeError("no room")
        return np.zeros(2, np.float32), {}

    def render(self):
        raise RuntimeError("no screen")


@pytest.mark.parametrize(("where", "message"), [("reset", "no room"), ("render", "no screen")])
def test_an_environment_that_fails_while_its_camera_is_looked_at_is_named(where, message):
    with pytest.raises(EnvironmentFailure, match=rf"{where}\(\) of the environment raised RuntimeError: {message}"):
        SenseEnvironment(Failing(where), render=True)


# senses


def test_nested_observations_become_one_flat_dict():
    space = spaces.Dict(
        {
            "arm": spaces.Dict({"joints": spaces.Box(-1, 1, (2, 3), np.float64), "grip": spaces.Discrete(2)}),
            "said": spaces.Text(5),
        }
    )
    env = sensed(space)
    observation, _ = env.reset()
    assert {name: getattr(value, "shape", type(value)) for name, value in observation.items()} == {
        "arm_joints": (6,),
        "arm_grip": int,
        "said": str,
    }
    assert env.observation_space.contains(observation)
    assert env.features["observation.said"] == {"kind": "text", "every_step": True}


def test_a_tuple_of_discrete_numbers_becomes_numbered_symbols():
    observation, _ = sensed(spaces.Tuple((spaces.Discrete(3), spaces.Discrete(4, start=-1)))).reset()
    assert sorted(observation) == ["state_0", "state_1"]


@pytest.mark.parametrize(
    ("space", "low", "high"),
    [
        (spaces.Discrete(3, start=-1), [-1], [1]),
        (spaces.MultiDiscrete([2, 5]), [0, 0], [1, 4]),
        (spaces.MultiBinary(2), [0, 0], [1, 1]),
        (spaces.Box(np.array([-1, -np.inf]), np.array([3.4e38, np.inf]), dtype=np.float64), [-1, None], [None, None]),
    ],
)
def test_bounds_of_vectors_are_the_spaces_own_and_none_where_there_are_none(space, low, high):
    feature = sensed(space, symbols=[]).features["observation.state"]
    assert feature == {"kind": "vector", "dim": len(low), "low": low, "high": high}


def test_images_of_every_layout_become_rgb_bytes():
    image = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    layouts = {
        (8, 9, 3): image,
        (3, 8, 9): image.transpose(2, 0, 1),
    }
    for shape, shown in layouts.items():
        observation, _ = sensed(spaces.Box(0, 255, shape, np.uint8), observation=shown).reset()
        np.testing.assert_array_equal(observation["camera"], image)
    for shape in ((8, 9), (8, 9, 1)):
        shown = image[..., 0].reshape(shape)
        observation, _ = sensed(spaces.Box(0, 255, shape, np.uint8), observation=shown).reset()
        np.testing.assert_array_equal(observation["camera"], image[..., :1].repeat(3, -1))
    unit = (image / 255).astype(np.float32)
    observation, _ = sensed(spaces.Box(0, 1, (8, 9, 3), np.float32), observation=unit).reset()
    np.testing.assert_array_equal(observation["camera"], image)


def test_stacked_frames_are_refused_with_advice():
    with pytest.raises(ValueError, match=r"1 or 3 channels.*\(84, 84, 4\)"):
        sensed(spaces.Box(0, 255, (84, 84, 4), np.uint8))


@pytest.mark.parametrize(
    "space", [spaces.Sequence(spaces.Discrete(2)), spaces.Graph(spaces.Box(0, 1, (1,)), spaces.Discrete(2))]
)
def test_an_unsupported_observation_names_its_space(space):
    with pytest.raises(ValueError, match=f"'things'.*{type(space).__name__}"):
        sensed(spaces.Dict({"things": space}))


@pytest.mark.parametrize(
    ("space", "shown", "message"),
    [
        (spaces.Box(-1, 1, (2,)), np.array([0, np.nan], np.float32), "finite"),
        (spaces.Box(-1, 1, (2,)), np.zeros(3, np.float32), r"shape \(2,\).*got \(3,\)"),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.float32), "uint8.*got float32"),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8), r"got uint8 of \(9, 8, 3\)"),
        (spaces.Box(0, 1, (8, 8, 3), np.float32), np.full((8, 8, 3), 2, np.float32), r"in \[0, 1\]"),
        (spaces.Text(9), 7, "a string"),
    ],
)
def test_an_observation_that_does_not_fit_its_sense_is_an_error(space, shown, message):
    with pytest.raises(ValueError, match=message):
        sensed(space, observation=shown).reset()


def test_a_reward_that_is_no_number_is_an_error():
    env = SenseEnvironment(Spaced(reward=float("nan")))
    env.reset()
    with pytest.raises(ValueError, match="reward nan"):
        env.step(0)


def test_two_senses_of_one_name_are_refused():
    space = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Discrete(2)})
    with pytest.raises(ValueError, match="one name"):
        sensed(space, rename={"a": "b"})


# actions


def test_discrete_actions_count_from_zero():
    env = sensed(action_space=spaces.Discrete(3, start=5))
    assert env.action_space == spaces.Discrete(3)
    env.step(np.int64(2))
    assert env.unwrapped.action == 7


@pytest.mark.parametrize("action", [3, -1, 0.5, "left", [0, 1], None, float("nan")])
def test_a_discrete_action_out_of_range_is_an_error(action):
    with pytest.raises(ValueError, match=r"0\.\.2, got"):
        sensed(action_space=spaces.Discrete(3)).step(action)


def test_a_few_joint_choices_become_one_choice():
    env = sensed(action_space=spaces.MultiDiscrete([2, 3], start=[0, 10]))
    assert env.features["action"] == {"kind": "discrete", "n": 6}
    taken = set()
    for action in range(6):
        env.step(action)
        assert env.unwrapped.action_space.contains(env.unwrapped.action)
        taken.add(tuple(env.unwrapped.action))
    assert len(taken) == 6


def test_many_joint_choices_become_a_vector_of_whole_numbers():
    env = sensed(action_space=spaces.MultiDiscrete([100, 100]))
    assert env.features["action"] == {"kind": "vector", "dim": 2, "low": [0, 0], "high": [99, 99]}
    env.step([3.4, 98.7])
    np.testing.assert_array_equal(env.unwrapped.action, [3, 99])
    np.testing.assert_array_equal(env.check_action([3.4, 98.7]), [3, 99])  # what is recorded is what was done


def test_a_box_action_keeps_the_environments_shape_and_type():
    env = sensed(action_space=spaces.Box(-1, 1, (2, 2), np.float64))
    env.step(np.array([0, 0.5, -1, 1]))
    assert env.unwrapped.action_space.contains(env.unwrapped.action)


def test_rounding_past_a_bound_is_clipped():
    env = sensed(action_space=spaces.Box(0, 512, (1,)))
    assert env.check_action([512.01]) == 512


@pytest.mark.parametrize(
    ("action", "message"), [([1.5, 0], "within"), ([np.nan, 0], "finite"), ([0], "2 numbers"), ([np.inf, 0], "finite")]
)
def test_a_box_action_that_does_not_fit_is_an_error(action, message):
    with pytest.raises(ValueError, match=message):
        sensed(action_space=spaces.Box(-1, 1, (2,))).step(action)


def test_an_unbounded_action_must_be_finite_only():
    env = sensed(action_space=spaces.Box(-np.inf, np.inf, (1,)))
    assert env.features["action"]["low"] == [None]
    assert env.check_action([1e6]) == [1e6]
    with pytest.raises(ValueError, match="finite"):
        env.check_action([np.inf])


def test_a_text_action_must_be_a_text_of_the_space():
    env = sensed(action_space=spaces.Text(4, charset="abc"))
    env.step("abc")
    assert env.unwrapped.action == "abc"
    for action in ("xyz", "aaaaa", 3):
        with pytest.raises(ValueError, match="text action"):
            env.step(action)


def test_an_unsupported_action_space_is_named():
    with pytest.raises(ValueError, match="Graph.*not supported"):
        sensed(action_space=spaces.Dict({"a": spaces.Graph(spaces.Discrete(2), None)}))


# starts and policies


def test_a_start_reaches_the_first_frame():
    plain = make_environment("MiniGrid-Empty-8x8-v0", **GRID)
    moved = make_environment("MiniGrid-Empty-8x8-v0", start=minigrid_random_state, **GRID)
    frames = [moved.reset(seed=seed)[0]["image"] for seed in range(8)]
    assert len({frame.tobytes() for frame in frames}) > 4
    np.testing.assert_array_equal(frames[3], moved.reset(seed=3)[0]["image"])
    assert plain.reset(seed=3)[0]["image"].tobytes() == plain.reset(seed=4)[0]["image"].tobytes()


def test_random_states_can_be_a_share_of_the_starts():
    spec = "pan_hf.envs.minigrid:minigrid_random_state?share=0.5"
    mixed = make_environment("MiniGrid-Empty-8x8-v0", start=load_callable(spec, "start"), **GRID)
    usual = make_environment("MiniGrid-Empty-8x8-v0", **GRID).reset(seed=0)[0]["image"].tobytes()
    is_usual = [mixed.reset(seed=seed)[0]["image"].tobytes() == usual for seed in range(40)]
    assert 10 < sum(is_usual) < 32


def test_a_start_that_returns_nothing_is_looked_at():
    env = make_environment("MiniGrid-Empty-8x8-v0", start=lambda env, rng: setattr(env.unwrapped, "agent_dir", 3))
    assert env.reset(seed=0)[0]["direction"] == 3


def test_random_states_of_doorkey_are_often_late_in_the_task():
    env = make_environment("MiniGrid-DoorKey-8x8-v0", start=minigrid_random_state)
    carrying, opened, shut, facing = [], [], [], []
    for seed in range(100):
        env.reset(seed=seed)
        world = env.unwrapped
        (door,) = [cell for cell in world.grid.grid if cell is not None and cell.type == "door"]
        carrying.append(world.carrying is not None)
        opened.append(door.is_open)
        shut.append(not door.is_open and not door.is_locked)
        before = world.grid.get(*world.front_pos)
        facing.append(before is not None and before.type in ("key", "door"))
        here = world.grid.get(*world.agent_pos)
        assert here is None or here.type == "door" and here.is_open
        assert carrying[-1] != any(cell is not None and cell.type == "key" for cell in world.grid.grid)
    assert 30 < sum(carrying) < 75 and 8 < sum(opened) < 35 and 8 < sum(shut) < 35 and 35 < sum(facing) < 75


@pytest.mark.parametrize("id", QUICKSTART)
@pytest.mark.parametrize("start", [None, minigrid_random_state])
def test_the_expert_reaches_the_goal(id, start):
    env = make_environment(id, start=start)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        observation, _ = env.reset(seed=seed)
        is_done = is_truncated = False
        while not (is_done or is_truncated):
            observation, reward, is_done, is_truncated, _ = env.step(minigrid_expert(env, observation, rng))
        assert reward > 0


def test_the_expert_without_chance_takes_a_shortest_way():
    env = make_environment("MiniGrid-Empty-8x8-v0")
    observation, _ = env.reset(seed=0)
    actions = []
    for _ in range(11):  # five cells east, a turn, five cells south
        actions.append(minigrid_expert(env, observation, np.random.default_rng(0), epsilon=0))
        observation, reward, is_done, _, _ = env.step(actions[-1])
    assert is_done and reward > 0


@pytest.mark.slow
def test_the_risk_taker_goes_where_a_ball_may_come_more_often_than_chance():
    env = make_environment("MiniGrid-Dynamic-Obstacles-8x8-v0", env_args={"agent_start_pos": None})

    def risked(policy: str) -> float:
        """Share of steps that go forward with a ball in the cell ahead or beside it."""
        rng, risks = np.random.default_rng(0), []
        act = load_policies(policy).for_episode(env, rng)
        env.action_space.seed(0)
        observation, _ = env.reset(seed=0)
        for step in range(600):
            x, y = env.unwrapped.front_pos
            balls = [ball.cur_pos for ball in env.unwrapped.obstacles]
            action = act(observation, rng)
            risks.append(action == 2 and any(max(abs(u - x), abs(v - y)) <= 1 for u, v in balls))
            observation, _, is_done, is_truncated, _ = env.step(action)
            if is_done or is_truncated:
                observation, _ = env.reset(seed=step)
        return float(np.mean(risks))

    assert risked("pan_hf.envs.minigrid:minigrid_risk_taker") > 0.35 > 1.5 * risked("random")


def test_four_rooms_are_four_rooms():
    env = make_environment("pan_hf/FourRooms-8x8-v0")
    env.reset(seed=1)
    grid = env.unwrapped.grid
    assert (grid.width, grid.height) == (8, 8)
    for line in ([grid.get(4, y) for y in range(8)], [grid.get(x, 4) for x in range(8)]):
        assert sum(cell is None or cell.type != "wall" for cell in line) == 2
    outer = [grid.get(*cell) for k in range(8) for cell in ((k, 0), (k, 7), (0, k), (7, k))]
    assert all(cell is not None and cell.type == "wall" for cell in outer)


@pytest.mark.slow
def test_the_pusher_moves_the_block_more_often_than_chance():
    env = make_environment("gym_pusht/PushT-v0")

    def moved(policy: str) -> float:
        rng = np.random.default_rng(0)
        act = load_policies(policy).for_episode(env, rng)
        env.action_space.seed(0)
        observation, _ = env.reset(seed=0)
        blocks = [observation["state"][2:]]
        for _ in range(150):
            observation, *_ = env.step(act(observation, rng))
            blocks.append(observation["state"][2:])
        return float(np.mean(np.abs(np.diff(blocks, axis=0)).max(-1) > 0.5))

    assert moved("pan_hf.envs.pusht:pusht_pusher") > 0.25 > moved("random")


def test_policies_are_drawn_by_weight():
    policies = load_policies(["random:0.7", "pan_hf.envs.minigrid:minigrid_expert?epsilon=0.5:.3"])
    assert policies.weights == pytest.approx((0.7, 0.3))
    assert policies.policies[1].keywords == {"epsilon": 0.5}
    assert load_policies("random").weights == (1.0,)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ([], "at least one"),
        ("random:0", "above 0"),
        ("pan_hf.envs.policies:nobody", "has no 'nobody'"),
        ("pan_hf.envs.minigrid:minigrid_expert?speed=3", "speed"),
        ("pan_hf.data.episodes:FORMAT", "expected a callable"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused_before_anything_runs(policy, message):
    with pytest.raises(ValueError, match=message):
        load_policies(policy)


def test_a_policy_class_is_made_anew_for_every_episode():
    class Counter:
        def __init__(self, env):
            self.count = 0

        def __call__(self, observation, rng):
            self.count += 1
            return self.count

    rng = np.random.default_rng(0)
    policies = load_policies(Counter)
    first, second = policies.for_episode(None, rng), policies.for_episode(None, rng)
    assert [first({}, rng), first({}, rng), second({}, rng)] == [1, 2, 1]
    assert load_callable(Counter, "policy") is Counter
