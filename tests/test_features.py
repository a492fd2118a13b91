"""Kinds of senses and actions on the side of the data: what is registered, what is reserved, a kind of one's own."""

import gymnasium
import numpy as np
import pyarrow as pa
import pytest
from datasets import Sequence, Value

from pan_hf.build import build
from pan_hf.data.importing import columns
from pan_hf.data.record import record
from pan_hf.data.trajectories import load_trajectories
from pan_hf.envs.environment import make_environment
from pan_hf.evaluation.evaluate import evaluate_model
from pan_hf.features import Feature, Form, View, base, feature_of, kinds, register_feature
from pan_hf.modeling import DiscreteAction, ImageSense, TextAction, TextSense, VectorAction, VectorSense


class Hum(gymnasium.Env):
    """Sounds a tone of which an action chooses the pitch; there is nothing to see."""

    observation_space = gymnasium.spaces.Dict({"sound": gymnasium.spaces.Box(-1, 1, (32,), np.float32)})
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._heard(0), {}

    def step(self, action):
        self.steps += 1
        return self._heard(action), float(action == 2), self.steps == 6, False, {}

    def _heard(self, pitch):
        return {"sound": np.sin(np.arange(32, dtype=np.float32) * (1 + pitch) / 4)}


class Waveform(Feature):
    """Sounds of a fixed length, kept in 16 bits."""

    kind = "hum"

    @classmethod
    def from_space(cls, space, view):
        is_sound = isinstance(space, gymnasium.spaces.Box) and space.shape == (32,)
        return Form({"kind": cls.kind, "length": 32}, np.asarray) if is_sound else None

    @classmethod
    def from_value(cls, value, view):
        is_sound = not isinstance(value, str) and value.shape == (32,)
        return Form({"kind": cls.kind, "length": 32}, np.asarray) if is_sound else None

    def space(self):
        return gymnasium.spaces.Box(-1, 1, (self.description["length"],), np.float32)

    def column_type(self):
        return Sequence(Value("int16"), length=self.description["length"])

    def stored(self, value):
        return np.round(np.asarray(value) * 32767).astype(np.int16)

    def read(self, column):
        self._check_type(column, pa.types.is_fixed_size_list(column.type))
        return column.combine_chunks().flatten().to_numpy().reshape(len(column), -1).astype(np.float32) / 32767


@pytest.fixture
def waveform(monkeypatch):
    ours = {"text", "image", "discrete", "vector"}  # another test's kind may be known to the process
    monkeypatch.setattr(base, "_FEATURES", {kind: known for kind, known in base._FEATURES.items() if kind in ours})
    gymnasium.register("TestPanHum-v0", Hum)
    yield register_feature(Waveform)
    del gymnasium.registry["TestPanHum-v0"]


def test_a_kind_of_ones_own_is_recorded_and_loaded(tmp_path, waveform):
    info = record("TestPanHum-v0", tmp_path / "data", episodes=3, progress=False)
    assert info["features"]["observation.sound"] == {"kind": "hum", "length": 32}
    found = load_trajectories(tmp_path / "data", "train")
    pitches = np.where(found.action_is_pad, 0, found.actions)[:6]
    heard = np.sin(np.arange(32) * (1 + pitches[:, None]) / 4)
    np.testing.assert_allclose(found.observations["sound"][1:7], heard, atol=1 / 32767)


def test_a_kind_of_ones_own_is_told_by_the_first_value_of_a_column(waveform):
    form = columns.form_of(np.zeros(32), View())
    assert form.feature["kind"] == "hum" and columns.form_of(np.zeros(31), View()).feature["kind"] == "vector"


def test_a_kind_that_nobody_registered_says_what_to_do(tmp_path, waveform):
    record("TestPanHum-v0", tmp_path / "data", episodes=3, progress=False)
    del base._FEATURES["hum"]
    with pytest.raises(ValueError, match="Unknown kind 'hum'.*Import the file that registers it"):
        load_trajectories(tmp_path / "data", "train")


def test_two_classes_of_one_kind_are_refused(waveform):
    other = type("Other", (Feature,), {"kind": "hum"})
    with pytest.raises(ValueError, match="'hum' is the kind of Waveform already"):
        register_feature(other)
    with pytest.raises(ValueError, match="expected `kind` to be a name"):
        register_feature(type("Nameless", (Feature,), {}))


@pytest.mark.parametrize(
    "part, description",
    [
        (ImageSense(size=[16, 32]), {"kind": "image", "shape": [16, 32, 3], "unit": "uint8 RGB"}),
        (VectorSense(2, low=-1, high=[1, 3]), {"kind": "vector", "dim": 2, "low": [-1, -1], "high": [1, 3]}),
        (VectorAction(1, low=0, high=1), {"kind": "vector", "dim": 1, "low": [0], "high": [1]}),
        (TextSense(), {"kind": "text", "every_step": False}),
        (TextAction(), {"kind": "text", "every_step": True}),
        (DiscreteAction(2, names=["a", "b"]), {"kind": "discrete", "n": 2, "names": ["a", "b"]}),
    ],
)
def test_a_models_sense_is_described_as_a_recording_describes_it(part, description):
    assert feature_of(part).description == description


def test_a_bounded_vector_is_no_picture_and_a_picture_no_vector():
    assert [kind.kind for kind in kinds() if kind.__module__.startswith("pan_hf.")] == [
        "text",
        "symbols",
        "image",
        "discrete",
        "vector",
    ]


class Crowd(Hum):
    """Its observations have names that a recording keeps for itself."""

    observation_space = gymnasium.spaces.Dict({"next.reward.other": gymnasium.spaces.Box(-1, 1, (2,), np.float32)})


def test_a_reserved_name_is_refused(tmp_path):
    gymnasium.register("TestPanCrowd-v0", Crowd)
    with pytest.raises(ValueError, match=r"'next.reward.other' cannot name a sense: recordings reserve.*rename"):
        make_environment("TestPanCrowd-v0")
    renamed = make_environment("TestPanCrowd-v0", rename={"next.reward.other": "other"})
    assert list(renamed.observation_space) == ["other"]
    del gymnasium.registry["TestPanCrowd-v0"]
    with pytest.raises(ValueError, match=r"here: the columns \['action.left'\] have names that recordings reserve"):
        columns.assign(["observation.state", "action", "action.left"], {}, "here")
    with pytest.raises(ValueError, match="'next.done.me' cannot name a sense: recordings reserve"):
        columns.assign(["observation.next.done.me", "action"], {"observation.next.done.me": "next.done.me"}, "here")
    joined = columns.assign(
        ["observation.state", "action.right", "action.left"], dict.fromkeys(LEFT_RIGHT, "action"), ""
    )
    assert joined["action"] == LEFT_RIGHT


LEFT_RIGHT = ["action.left", "action.right"]


class Speaker(gymnasium.Env):
    """Says what is done to it, or shows it as two numbers; there is no picture."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, says: bool):
        self.says = says
        words = gymnasium.spaces.Text(16, charset="abcdefghijklmnopqrstuvwxyz ")
        self.observation_space = words if says else gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(0), {}

    def step(self, action):
        self.steps += 1
        return self._observation(action), float(action), self.steps == 8, False, {}

    def _observation(self, action):
        return ("no", "yes")[action] if self.says else np.array([action, -action], np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("sense, metric", [("text", "token_accuracy"), ("state", "rmse")])
def test_a_model_of_one_sense_that_is_no_picture_is_evaluated(tmp_path, sense, metric):
    gymnasium.register("TestPanSpeaker-v0", Speaker)
    env = {"env_args": {"says": sense == "text"}}
    record("TestPanSpeaker-v0", tmp_path, **env, episodes=6, test_fraction=0.5, progress=False)
    del gymnasium.registry["TestPanSpeaker-v0"]
    model, processor = build(load_trajectories(tmp_path, "train"), "debug")
    assert list(model.config.senses) == [sense]
    held_out = load_trajectories(tmp_path, "test")
    records = evaluate_model(
        model.eval(), processor, held_out, horizons=[1, 2], num_windows=4, strips=tmp_path / "strips", progress=False
    )
    assert {metric, "exact_state", "reward_mae"} <= {entry.metric for entry in records}
    assert not (tmp_path / "strips").exists()
