"""When an episode has reached its goal: only where an end is one."""

from types import SimpleNamespace

import numpy as np
import pytest

from pan_hf.evaluation.success import Ending, success_rule


def ending(environment="A-v0", reward=1.0, terminated=True, truncated=False, total=1.0, **info):
    return Ending(environment, SimpleNamespace(), reward, terminated, truncated, info, total)


def test_falling_over_is_no_success_though_the_last_step_is_paid():
    assert success_rule(None)(ending("CartPole-v1")) is None


@pytest.mark.parametrize("key", ["is_success", "success"])
@pytest.mark.parametrize("value", [True, False, 0.0, np.array([True])])
def test_what_the_environment_says_comes_first(key, value):
    assert success_rule(None)(ending("MiniGrid-Empty-8x8-v0", reward=0.0, **{key: value})) is bool(np.all(value))


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        ("MiniGrid-Empty-8x8-v0", {"reward": 0.9}, True),
        ("minigrid:MiniGrid-Empty-8x8-v0", {"reward": 0.9}, True),
        ("MiniGrid-Dynamic-Obstacles-8x8-v0", {"reward": -1.0}, False),
        ("FrozenLake-v1", {"reward": 0.0}, False),
        ("MountainCar-v0", {"reward": -1.0}, True),
        ("MountainCar-v0", {"reward": -1.0, "terminated": False, "truncated": True}, False),
        ("LunarLander-v3", {"reward": 100.0}, None),
    ],
)
def test_known_environments_end_at_their_goals(environment, given, expected):
    assert success_rule(None)(ending(environment, **given)) is expected


@pytest.mark.parametrize(
    ("asked", "given", "expected"),
    [
        ("terminated", {}, True),
        ("truncated", {}, False),
        ("truncated", {"terminated": False, "truncated": True}, True),
        ("reward>0", {"reward": 0.0}, False),
        ("reward >= 0", {"reward": 0.0}, True),
        ("return>=475", {"total": 500.0}, True),
        ("return>=475", {"total": 474.0}, False),
        ("return>-200", {"total": -110.5}, True),
        ("info.landed", {"landed": 1}, True),
        ("info.landed", {"landed": 0}, False),
        ("info.landed", {}, None),
        (lambda env, reward, terminated, info: reward > 3, {"reward": 4.0}, True),
    ],
)
def test_a_user_says_what_success_is(asked, given, expected):
    assert success_rule(asked)(ending(**given)) is expected


@pytest.mark.parametrize("asked", ["won", "return>=", "return>high", "reward=1", "module:"])
def test_what_says_no_success_is_refused_with_the_forms_there_are(asked):
    with pytest.raises(ValueError, match="return>=475|module:name"):
        success_rule(asked)
