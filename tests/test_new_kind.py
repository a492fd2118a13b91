"""A kind of sense from one file outside the package does what pan_hf's own kinds do, and travels with checkpoints."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tiny_worlds import all_tensors, differing, outcomes
from waveform_kind import WaveformSense

from pan_hf import PanModel, PanProcessor
from pan_hf.build import build
from pan_hf.checkpoints import save_checkpoint
from pan_hf.custom_kinds import travelling
from pan_hf.data.record import record
from pan_hf.data.trajectories import load_trajectories
from pan_hf.evaluation.evaluate import evaluate
from pan_hf.reporting.report import write_report
from pan_hf.training.pipeline import train as train_run

ROOT = Path(__file__).resolve().parent.parent
KIND = Path(__file__).parent / "waveform_kind.py"


def tone(pitch, samples=64):
    """A sine with `pitch` periods, float32 `(samples,)`."""
    return (0.8 * np.sin(2 * np.pi * pitch * np.arange(samples) / samples)).astype(np.float32)


class Whistle(gymnasium.Env):
    """One hears a pitch of 1 to 5 and makes it lower, keeps it or makes it higher; at 5 the episode ends."""

    metadata = {"render_modes": [], "render_fps": 4}
    observation_space = spaces.Dict({"sound": spaces.Box(-1, 1, (64,), np.float32)})
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.pitch = int(self.np_random.integers(1, 4))
        return {"sound": tone(self.pitch)}, {}

    def step(self, action):
        self.pitch = min(max(self.pitch + int(action) - 1, 1), 5)
        return {"sound": tone(self.pitch)}, float(self.pitch == 5), self.pitch == 5, False, {}


gymnasium.register("TestPanWhistle-v0", entry_point=Whistle, max_episode_steps=12)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A recording of the whistle and an untrained model of it: folder, trajectories, model, processor."""
    folder = tmp_path_factory.mktemp("whistle")
    record("TestPanWhistle-v0", folder / "data", episodes=12, seed=0, test_fraction=0.2, progress=False)
    trajectories = load_trajectories(folder / "data", "train")
    model, processor = build(trajectories, "debug", sense_options={"sound": {"codebook_size": [4, 8]}}, adapter_dim=16)
    return folder, trajectories, train(model.train(), processor), processor


def heard(processor, *windows):
    """Observation and actions of windows of pitches, `(B, T)` and `(B, T - 1)`."""
    sound = np.stack([[tone(pitch) for pitch in pitches] for pitches in windows])
    batch = processor(observation={"sound": sound}, action=np.diff(windows) + 1)
    return batch["observation"], batch["action"]


def train(model, processor):
    """Some steps of stage 1 and of everything together, on pitches 1 to 4."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    observation, action = heard(processor, (1, 2, 3), (3, 2, 1), (2, 3, 4), (4, 4, 3), (1, 1, 1), (3, 4, 4))
    losses = []
    for objective in ["senses"] * 60 + ["joint"] * 20:
        given = {} if objective == "senses" else {"action": action, **outcomes(len(action), 2)}
        optimizer.zero_grad()
        losses.append(model(objective=objective, observation=observation, **given).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[59] < losses[0] - 2 and losses[-1] < losses[60]
    return model.eval()


def test_no_file_of_ours_knows_of_it():
    for folder in ("modeling", "tokenization", "training"):
        for file in (ROOT / folder).glob("*.py"):
            assert "waveform" not in file.read_text().lower(), file


def test_it_is_recorded_and_built_as_what_it_is(world):
    folder, trajectories, model, _ = world
    assert trajectories.features["observation.sound"] == {"kind": "waveform", "samples": 64}
    assert model.config.senses["sound"] == WaveformSense(samples=64, codebook_size=[4, 8])
    np.testing.assert_array_equal(trajectories.observations["sound"][0], tone(round(_pitch(trajectories, 0))))


def _pitch(trajectories, row):
    return np.abs(np.fft.rfft(trajectories.observations["sound"][row])).argmax()


def test_it_is_imagined_scored_and_written_in_tokens(world):
    *_, model, processor = world
    observation, action = heard(processor, (1, 2, 3), (3, 4, 4))
    belief = model.perceive({name: values[:, :1] for name, values in observation.items()})
    for effort in (None, "all", "coarsest", "focused", "auto"):
        sound = model.simulate(belief, action, num_rollouts=2, seed=0, effort=effort).decode("sound")
        assert sound.shape == (4, 2, 64) and sound.dtype == torch.float32 and sound.abs().max() <= 1
    later = {name: values[:, 1:] for name, values in observation.items()}
    assert torch.isfinite(model.log_prob(belief, action, later).total).all()
    ids = model.to_token_ids("sound", observation["sound"])
    assert ids.shape == (2, 3, 4) and model.from_token_ids("sound", ids).shape == (2, 3, 64)
    assert np.array_equal(processor.decode_observation(observation)["sound"], observation["sound"].numpy())


@pytest.mark.slow
def test_it_grows_codes_for_what_none_describes(world, tmp_path):
    *_, model, processor = world
    save_checkpoint(tmp_path / "before", model, processor)
    model, processor = PanModel.from_pretrained(tmp_path / "before"), PanProcessor.from_pretrained(tmp_path / "before")
    processor.attach(model.eval())
    square = np.sign(np.stack([[tone(9)] * 3] * 2)) * 0.9  # nothing like it was heard in training
    observation = processor(observation={"sound": square})["observation"]
    growths = [growth for growth in model.learn(observation, held_out=(observation, None)) if growth.accepted]
    assert growths and all(growth.segment.startswith("sound.") and growth.gain > 0 for growth in growths)
    save_checkpoint(tmp_path / "after", model, processor)
    assert differing(all_tensors(model), all_tensors(PanModel.from_pretrained(tmp_path / "after"))) == []


@pytest.mark.slow
def test_the_whole_pipeline_trains_evaluates_and_reports_it(world, tmp_path):
    train_run(tmp_path / "run", world[0] / "data", backbone="debug", seconds=20, progress=False)
    records = evaluate(tmp_path / "run", world[0] / "data", horizons=(1, 2), num_windows=8, skip_trained=True)
    assert {"rmse", "sound.0_code_accuracy", "reconstruction_rmse"} <= {record.metric for record in records}
    assert write_report(tmp_path / "run").is_file()


# it travels

LOOK = """
import sys, numpy, torch
if sys.argv[1] == "without":
    sys.modules["pan_hf"] = None
from transformers import AutoModel, AutoProcessor
folder, *copies = sys.argv[2:]
while True:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    processor.check_model(model)
    batch = processor(observation={"sound": numpy.sin(numpy.arange(64.0) / 5)})
    futures = model.simulate(model.perceive(**batch), torch.tensor([[2, 1, 0]]), num_rollouts=3, seed=5)
    print([key.hex() for row in futures.keys() for key in row], futures.decode("sound").sum().item(), end=" ")
    print(type(model.senses["sound"]).__module__.split(".")[0])
    if not copies:
        break
    folder = copies.pop()
    model.save_pretrained(folder), processor.save_pretrained(folder)
"""


def look(how, tmp_path, *folders):
    """What a fresh process says of a checkpoint, loaded as remote code, and of the copy that it saves."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    environment["PYTHONPATH"] = str(ROOT) if how == "with" else ""
    command = [sys.executable, "-P", "-c", LOOK, how, *map(str, folders)]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout.splitlines()


@pytest.mark.slow
def test_a_checkpoint_carries_it_where_pan_hf_is_installed_and_where_it_is_not(world, tmp_path):
    *_, model, processor = world
    save_checkpoint(tmp_path / "checkpoint", model, processor)
    here, again = look("without", tmp_path, tmp_path / "checkpoint", tmp_path / "again")
    assert here.endswith("transformers_modules")
    assert [here] == [again] == look("with", tmp_path, tmp_path / "checkpoint")
    own = [file.name for file in (tmp_path / "again").glob("waveform_kind*.py")]
    assert (
        len(own) == 2
        and differing(all_tensors(model), all_tensors(PanModel.from_pretrained(tmp_path / "again"))) == []
    )


@pytest.mark.slow
def test_a_process_that_does_not_know_it_is_told_what_to_do(world, tmp_path):
    *_, model, processor = world
    save_checkpoint(tmp_path / "checkpoint", model, processor)
    script = "import sys, pan_hf, transformers\n"
    script += "for auto in (transformers.AutoModel, transformers.AutoProcessor):\n"
    script += "    try:\n        auto.from_pretrained(sys.argv[1])\n"
    script += "    except ValueError as error:\n        print(str(error).replace('\\n', ' '))\n"
    command = [sys.executable, "-P", "-c", script, str(tmp_path / "checkpoint")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 2
    for said in done.stdout.splitlines():
        assert "unknown kind 'waveform'" in said and "Import the file that registers it" in said


@pytest.mark.slow
def test_a_file_travels_without_what_needs_pan_hf():
    senses = travelling(str(KIND), "modeling", ["WaveformSense", "WaveformCodec"])
    assert "from .image_codec_pan import CodebookCodec, PositionBlock" in senses
    assert not any(name in senses for name in ("from pan_hf", "Reader", "Feature(", "import pyarrow"))
    assert "class WaveformReader(Reader)" in travelling(str(KIND), "tokenization", ["WaveformReader"])


@pytest.mark.parametrize(
    "line, message",
    [
        ("from .helpers import x\n\n\nclass Codec:\n    y = x", "line 1: .helpers does not travel with a checkpoint"),
        (
            "import no_such_package\n\n\nclass Codec:\n    y = no_such_package",
            "line 1: no_such_package does not travel",
        ),
        (
            "from pan_hf import metrics\n\n\nclass Codec:\n    loss = metrics.rmse",
            "Codec needs pan_hf, which does not",
        ),
        ("class Codec:\n    def f(self):\n        import pan_hf", "line 3: pan_hf does not travel"),
        ("", "Codec is not defined at the top"),
    ],
)
def test_what_cannot_travel_is_said(line, message, tmp_path):
    file = tmp_path / "kind.py"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        travelling(str(file), "modeling", ["Codec"])
