"""A world of several actions and actors, and of senses that come seldom, is learned from a recording end to end."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tiny_worlds import CAMERA

from pan_hf import PanModel, PanProcessor
from pan_hf.build import build, recorded_texts
from pan_hf.checkpoints import save_checkpoint
from pan_hf.data.record import record
from pan_hf.data.trajectories import load_trajectories
from pan_hf.data.windows import read_rows
from pan_hf.modeling.state_pan import ABSENT
from pan_hf.training import align, merge, pretrain_latent_head, pretrain_senses, reinforce
from pan_hf.training.arguments import arguments
from pan_hf.training.sampling import make_encoded
from pan_hf.training.stage import run
from pan_hf.training.windows import Windows

STAGES = [pretrain_senses.STAGE, align.DYNAMICS, pretrain_latent_head.STAGE, align.JOINT]
STAGES += [reinforce.WARM_UP, reinforce.REINFORCE]


class Duet(gymnasium.Env):
    """One walks and speaks, another pushes; each has a reward. A camera looks every second step, a bell rings at every
    third."""

    actors = ["walker", "pusher"]
    metadata = {"render_fps": 4}

    def __init__(self):
        self.observation_space = spaces.Dict(
            {
                "place": spaces.Box(0, 3, (1,), np.float32),
                "camera": spaces.Box(0, 255, (16, 16, 3), np.uint8),
                "bell": spaces.Text(8),
            }
        )
        self.action_space = spaces.Dict(
            {"legs": spaces.Discrete(2), "push": spaces.Box(-1, 1, (1,), np.float32), "say": spaces.Text(3)}
        )

    def _look(self):
        camera = np.zeros((16, 16, 3), np.uint8)
        camera[:, 4 * self.place : 4 * self.place + 4] = (250, 30, 90)
        return {
            "place": np.array([self.place], np.float32),
            "camera": camera if self.steps % 2 == 0 else None,
            "bell": "ding" if self.steps % 3 == 0 else None,
        }, {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(4)), 0
        return self._look()

    def step(self, action):
        self.place, self.steps = (self.place + 2 * int(action["legs"]) - 1) % 4, self.steps + 1
        rewards = {"walker": float(self.place == 3), "pusher": float(action["push"][0])}
        look, info = self._look()
        return look, rewards, {"walker": False, "pusher": False}, self.steps == 8, info


gymnasium.register("parts/Duet-v0", Duet, disable_env_checker=True)


def speak(env, observation, rng):
    push = rng.uniform(-1, 1, 1).astype(np.float32)
    return {"legs": int(rng.integers(2)), "push": push, "say": str(rng.choice(["hey", "ho"]))}


@pytest.fixture(scope="module")
def duet(tmp_path_factory):
    root = tmp_path_factory.mktemp("duet")
    record("parts/Duet-v0", root / "data", episodes=6, policy=speak, optional=["camera", "bell"], progress=False)
    seen = load_trajectories(root / "data", "train")
    small = {key: CAMERA[key] for key in ("code_dim", "hidden_size", "num_blocks", "latent_dim")}
    small |= {"codebook_size": [8, 8], "codebook_capacity": [16, 16]}
    options = {"camera": small, "action.push": {"base": 4, "num_levels": 2}}
    model, processor = build(seen, "debug", options, adapter_dim=16, context_steps=2)
    save_checkpoint(root / "model", model, processor)
    return root, seen


def test_a_model_has_the_parts_and_the_actors_of_its_recording(duet):
    root, seen = duet
    config = PanModel.from_pretrained(root / "model").config
    assert set(config.actions) == {"legs", "push", "say"} and config.actors == ["walker", "pusher"]
    assert config.actions["push"].num_levels == 2 and recorded_texts(seen) == ["ding", "hey", "ho"]


def test_windows_hold_parts_rewards_by_actor_and_what_was_there(duet):
    root, seen = duet
    model, processor = PanModel.from_pretrained(root / "model"), PanProcessor.from_pretrained(root / "model")
    windows, weights = make_encoded(model, processor, seen)
    batch = windows.__getitems__([0, 5])
    frames = windows.rows[[0, 5]].unsqueeze(1) + torch.arange(3)
    assert set(batch["action"]) == {"legs", "push", "say"} and batch["action"]["push"].shape == (2, 2, 1)
    rewards = np.stack([seen.actor_rewards[name] for name in model.config.actors], 1)
    assert torch.equal(batch["reward"], torch.from_numpy(rewards)[frames[:, :2]])
    for name in ("camera", "bell"):
        there = torch.from_numpy(seen.present[name])[frames]
        codes = batch["state"]["codes"][name][0] if name == "camera" else batch["state"]["text"][name]
        assert torch.equal((codes != ABSENT).all(-1), there) and torch.equal((codes == ABSENT).all(-1), ~there)
    tensors, actions = read_rows(seen, processor)
    raw = Windows(seen, tensors, actions, 2, False, set(), model.config.actors).__getitems__([0, 5])
    state = model.encode(raw["observation"])
    for name, levels in batch["state"]["codes"].items():
        assert all(torch.equal(one, other) for one, other in zip(levels, state.codes[name], strict=True)), name
    assert (weights > 0).all()


def test_a_camera_is_learned_from_the_frames_that_it_saw(duet):
    root, seen = duet
    model, processor = PanModel.from_pretrained(root / "model"), PanProcessor.from_pretrained(root / "model")
    frames, weights = pretrain_senses.make_data(model, processor, seen)
    assert torch.equal(weights > 0, torch.from_numpy(seen.present["camera"]))
    assert frames.__getitems__([0, 1])["observation"]["camera.present"].tolist() == [[True] * 3, [False] * 3]


def test_actors_that_a_recording_does_not_reward_are_named(duet):
    root, seen = duet
    processor = PanProcessor.from_pretrained(root / "model")
    with pytest.raises(ValueError, match=r"actors \['judge'\] are not rewarded .* \['pusher', 'walker'\]"):
        Windows(seen, *read_rows(seen, processor), 2, False, set(), ["walker", "judge"])


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_every_stage_trains_on_it_and_the_model_imagines(duet, streaming, few_examples, tmp_path):
    root, seen = duet
    current = root / "model"
    quick = {
        "max_steps": 2,
        "stream_buffer": 24,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "progress": False,
        "bf16": False,
    }
    for stage in STAGES:
        given = {"model": str(current), "data": str(root / "data"), "output_dir": str(tmp_path / stage.name)}
        current = run(stage, arguments(stage, **given, **quick, streaming=streaming))
        log = json.loads((tmp_path / stage.name / "log.json").read_text())
        losses = [entry["loss"] for entry in log if "loss" in entry]
        assert len(losses) == 2 and np.isfinite(losses).all(), stage.name
    model, processor = PanModel.from_pretrained(current), PanProcessor.from_pretrained(current)
    processor.check_model(model)
    belief = model.perceive(
        **processor(
            observation={"place": [[0.0]] * 2, "camera": None, "bell": ["ding", None]},
            action={"legs": [1], "push": [[0.5]], "say": ["ho"]},
        )
    )
    plan = processor(action={"legs": [1, 0], "push": [[0.5], [-1.0]], "say": ["ho", "hey"]})["action"]
    futures = model.simulate(belief, plan, num_rollouts=3, seed=0)
    assert futures.reward.shape == (3, 2, 2) and futures.decode("camera").shape == (3, 2, 3, 16, 16)


@pytest.mark.slow
def test_its_parts_are_written_as_sentences(duet, tmp_path):
    root, seen = duet
    given = {"model": str(root / "model"), "data": str(root / "data"), "output_dir": str(tmp_path / "s")}
    args = arguments(merge.STAGE, **given, max_steps=1, merge_count=0, progress=False, parts=["place", "action.legs"])
    assert (run(merge.STAGE, args, seen) / "model.safetensors").exists()
