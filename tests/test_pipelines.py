"""Transformers' pipelines on a checkpoint: text as with any model, and imagining from raw observations."""

import numpy as np
import pytest
import torch
from tiny_worlds import build_board, record_board, world_model
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from pan_hf import PanModel, SimulationPipeline
from pan_hf.checkpoints import save_checkpoint
from pan_hf.data.trajectories import load_trajectories


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of the board."""
    folder = tmp_path_factory.mktemp("board")
    model, processor = build_board(load_trajectories(record_board(folder / "data", episodes=4), "train"))
    save_checkpoint(folder / "checkpoint", model.eval(), processor)
    return str(folder / "checkpoint")


@pytest.fixture(scope="module")
def imagine(folder):
    return pipeline("pan-simulate", model=folder, device="cpu")


FRAME = (np.arange(16 * 16 * 3) % 251).astype("uint8").reshape(16, 16, 3)
SEEN = {"camera": FRAME, "place": [1.0, 2.0], "mission": "go to the corner"}


def test_a_folder_is_enough_to_imagine(imagine):
    assert isinstance(imagine, SimulationPipeline)
    found = imagine({"observation": SEEN, "actions": [0, 1, 2]}, num_rollouts=2, seed=0)
    assert found["observation"]["camera"].shape == (2, 3, 16, 16, 3)
    assert found["observation"]["camera"].dtype == np.uint8
    assert found["observation"]["place"].shape == (2, 3, 2) and set(found["observation"]) == {"camera", "place"}
    for name in ("reward", "continuation", "log_prob"):
        assert found[name].shape == (2, 3) and np.isfinite(found[name]).all()
    assert ((found["continuation"] >= 0) & (found["continuation"] <= 1)).all()


def test_it_imagines_what_the_model_does(imagine):
    model, processor = imagine.model, imagine.processor
    futures = model.simulate(model.perceive(**processor(observation=SEEN)), torch.tensor([[3, 4]]), seed=5)
    found = imagine({"observation": SEEN, "actions": [3, 4]}, seed=5)
    expected = processor.decode_observation({"camera": futures.decode("camera")})["camera"]
    assert np.array_equal(found["observation"]["camera"], expected)
    np.testing.assert_array_equal(found["reward"], futures.reward.numpy())


def test_lists_batches_and_a_past_are_taken(imagine):
    several = imagine([{"observation": SEEN, "actions": [0]}, {"observation": SEEN, "actions": [1, 2]}], seed=0)
    assert [len(found["reward"][0]) for found in several] == [1, 2]
    frames = np.stack([FRAME] * 6).reshape(2, 3, 16, 16, 3)
    batch = {"camera": frames, "place": np.ones((2, 3, 2)), "mission": "go to the corner"}
    given = {"observation": batch, "past_actions": [[0, 1], [2, 3]], "actions": [4, 4]}
    images = imagine(given, num_rollouts=3, output_type="pil")["observation"]["camera"]
    assert len(images) == 6 and len(images[0]) == 2 and images[0][0].size == (16, 16)


def test_what_it_cannot_use_is_said(imagine):
    with pytest.raises(ValueError, match=r"a dict with observation, actions and maybe past_actions, got \['action"):
        imagine({"observation": SEEN, "action": [0]})
    with pytest.raises(ValueError, match="expected uint8"):
        imagine({"observation": SEEN | {"camera": FRAME / 255.0}, "actions": [0]})
    with pytest.raises(ValueError, match=r"knows no \['rollouts'\]"):
        imagine({"observation": SEEN, "actions": [0]}, rollouts=3)
    with pytest.raises(ValueError, match="takes a batch as one input"):
        imagine([{"observation": SEEN, "actions": [0]}] * 2, batch_size=2)
    with pytest.raises(ValueError, match="needs a world model"):
        SimulationPipeline(PanModel.from_backbone(world_model(()).language_model), processor=imagine.processor)
    with pytest.raises(ValueError, match="does not belong to this model"):
        SimulationPipeline(world_model(("camera",)), processor=imagine.processor)


def test_text_generation_continues_text_and_codes_if_asked(folder, caplog):
    write = pipeline("text-generation", model=folder, device="cpu")
    assert "not supported" not in caplog.text
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    settings = {"max_new_tokens": 4, "do_sample": False}
    for asked in (False, True):
        given = {"tokenizer_encode_kwargs": {"codes_in_text": asked}, "codes_in_text": asked, **settings}
        found = write("go <camera.0:3>", return_tensors=True, **given)[0]["generated_token_ids"]
        ids = tokenizer("go <camera.0:3>", return_tensors="pt", codes_in_text=asked)
        assert found == model.generate(**ids, codes_in_text=asked, **settings)[0].tolist()
        assert (max(found) >= model.config.text_capacity) == asked
    assert write("go", max_new_tokens=2, do_sample=False)[0]["generated_text"].startswith("go")
