"""What `pan train` says at its end, and recordings that are as small as they can be."""

import gymnasium
import numpy as np
import pytest
from tiny_worlds import BOARD_OPTIONS, Board, board_world

from pan_hf.checkpoints import load
from pan_hf.console import without_bars
from pan_hf.data import record as recording
from pan_hf.data.record import record
from pan_hf.training import summary as summaries
from pan_hf.training.pipeline import SHARES, train
from pan_hf.training.summary import summary

gymnasium.register("TestPanBlink-v0", Board, max_episode_steps=1)
STEP = {name: {"max_steps": 1} for name in SHARES if name != "sentences"}
TINY = {"backbone": "debug", "sense_options": BOARD_OPTIONS, "overrides": STEP}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return board_world(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
def test_a_line_a_sense_says_how_well_it_is_rebuilt_and_imagined_and_what_would_help(world):
    model, processor = load(world.model)
    lines = summary(model, processor, world.trajectories)
    assert [line.split(":")[0] for line in lines] == ["camera", "place"]
    assert (
        "frames reconstruct at" in lines[0] and "give the senses more time (`--stage senses.seconds=...`)" in lines[0]
    )
    assert "off by" in lines[1] and "%" in lines[1] and summary(model, processor, world.trajectories) == lines


def test_decibels_are_those_of_the_squared_error():
    assert summaries._psnr(0.2**2) == pytest.approx(-20 * np.log10(0.2)) and summaries._psnr(0.0) < 60


@pytest.mark.slow
@pytest.mark.parametrize(
    "recorded", [{"env": "TestPanBlink-v0", "episodes": 6}, {"env": "TestPanBoard-v0", "episodes": 2}]
)
def test_recordings_of_one_step_episodes_and_of_one_episode_are_trained_on(recorded, few_examples, tmp_path, capsys):
    env = recorded.pop("env")
    record(env, tmp_path / "data", progress=False, test_fraction=0.0, **recorded)
    checkpoint = train(tmp_path, progress=True, **TINY)
    assert (checkpoint / "model.safetensors").exists()
    told = capsys.readouterr().err
    assert "camera: frames reconstruct at" in told and "%|" not in told


def test_episodes_too_short_for_the_context_are_refused_before_anything_is_written(tmp_path):
    record("TestPanBlink-v0", tmp_path / "data", episodes=2, progress=False)
    with pytest.raises(ValueError, match="No episode has 3 transitions: the longest, .* has 1"):
        train(tmp_path, progress=False, config={"context_steps": 3}, **TINY)
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] in ([], ["stages"])
    assert not list(tmp_path.glob("stages/*"))


def test_bars_of_downloads_are_off_where_no_progress_is_to_be_shown():
    import datasets
    from huggingface_hub import utils

    before = utils.are_progress_bars_disabled(), datasets.are_progress_bars_disabled()
    with without_bars(downloads=True):
        assert utils.are_progress_bars_disabled() and datasets.are_progress_bars_disabled()
    assert (utils.are_progress_bars_disabled(), datasets.are_progress_bars_disabled()) == before


def test_a_recording_process_that_is_killed_is_told_in_a_sentence(tmp_path, monkeypatch):
    def killed(*_):
        raise recording.BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(recording, "record_streams", killed)
    with pytest.raises(OSError, match="A recording process ended at once: killed .*run the same again"):
        record("TestPanBoard-v0", tmp_path / "data", episodes=2, progress=False)
