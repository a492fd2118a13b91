"""A world of nothing but words is recorded, trained by defaults, imagined and acted in."""

import gymnasium
import pytest
from gymnasium import spaces

from pan_hf.checkpoints import load
from pan_hf.cli import app
from pan_hf.data.record import record

LETTERS = "abcdefghijklmnopqrstuvwxyz "
ROOMS = ("hall", "kitchen", "garden", "cellar")


class Rooms(gymnasium.Env):
    """Four rooms in a row, told in words; what is done is said, or chosen. The last room ends the episode."""

    metadata = {"render_modes": [], "render_fps": 1}
    COMMANDS = ("go back", "go on")

    def __init__(self, is_said):
        self.is_said = is_said
        self.observation_space = spaces.Text(40, charset=LETTERS)
        self.action_space = spaces.Text(10, charset=LETTERS) if is_said else spaces.Discrete(2)

    def _look(self):
        return f"you are in the {ROOMS[self.room]}", {"admissible_commands": self.COMMANDS} if self.is_said else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.room = int(self.np_random.integers(3))
        return self._look()

    def step(self, action):
        is_on = action == "go on" if self.is_said else action == 1
        self.room = min(max(self.room + (1 if is_on else -1), 0), 3)
        seen, info = self._look()
        return seen, float(self.room == 3), self.room == 3, False, info


gymnasium.register("TestPanRooms-v0", entry_point=Rooms, max_episode_steps=12)


@pytest.mark.slow
@pytest.mark.parametrize(("is_said", "on"), [(False, 1), (True, "go on")])
def test_a_world_of_words_alone_is_trained_by_defaults_and_imagined(is_said, on, tmp_path):
    record("TestPanRooms-v0", tmp_path / "data", frames=300, env_args={"is_said": is_said}, progress=False)
    app(
        [
            "train",
            "--run",
            str(tmp_path),
            "--backbone",
            "debug",
            "--seconds",
            "10",
            "--stage",
            "dynamics.max_steps=200",
            "--no-progress",
        ]
    )
    model, processor = load(tmp_path)
    belief = model.perceive(**processor(observation={"text": "you are in the hall"}))
    actions = processor(action=[[on, on]])["action"]
    futures = model.simulate(belief, actions, num_rollouts=4, seed=0)
    texts = processor.decode_observation({"text": futures.decode("text")})["text"]
    assert texts == [["you are in the kitchen", "you are in the garden"]] * 4
    if is_said:
        with pytest.raises(ValueError, match=r"no action 'go on'; what is said becomes ids of words by `processor\("):
            model.simulate(belief, [["go on"]])
