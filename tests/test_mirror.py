"""Mirror images of recorded episodes obey the world's laws, and nothing else about a recording changes."""

import json
import shutil

import numpy as np
import pytest
from tiny_worlds import Board, record_board

from pan_hf.cli import app
from pan_hf.data import mirror as module
from pan_hf.data.episodes import UNKNOWN_SEED, episode_files, read_info
from pan_hf.data.mirror import mirror
from pan_hf.data.trajectories import load_trajectories, read_episode
from pan_hf.publishing.data_card import recording_card

# the board tells row and column; its actions are stay, right, left, down, up
SWAPS = ["horizontal:1=2", "vertical:3=4", "diagonal:1=3", "diagonal:2=4"]
BOARD = {"positions": ["place=1,0"], "swaps": SWAPS, "progress": False}


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    return record_board(tmp_path_factory.mktemp("mirror") / "data", episodes=10)


def rows(trajectories):
    """By episode: actions without the last, and what was seen."""
    for start, length in zip(trajectories.episode_starts, trajectories.episode_lengths, strict=True):
        span = slice(start, start + length)
        seen = {name: values[span] for name, values in trajectories.observations.items()}
        yield trajectories.actions[span][:-1], seen


@pytest.mark.slow
def test_every_mirror_image_obeys_the_laws_of_the_board(board, tmp_path):
    info = mirror(board, tmp_path / "data", copies=7, **BOARD)
    recorded, mirrored = load_trajectories(board, "train"), load_trajectories(tmp_path / "data", "train")
    assert mirrored.num_episodes == 8 * recorded.num_episodes == info["episodes"]["train"]
    assert len(mirrored) == 8 * len(recorded)
    for actions, seen in rows(mirrored):
        place = seen["place"].astype(int)
        assert ((place[:-1] + np.array(Board.MOVES)[actions]).clip(0, Board.SIDE - 1) == place[1:]).all()
        cells = seen["camera"].max(1)[:, 2::4, 2::4]  # a pixel of each cell
        assert (np.argwhere(cells > 100)[:, 1:] == place).all()


def test_the_images_of_an_episode_differ_and_only_as_told(board, tmp_path):
    mirror(board, tmp_path / "data", flips=["horizontal"], **BOARD | {"swaps": SWAPS[:1]})
    actions, first = next(rows(load_trajectories(board, "train")))
    features, files = read_info(board)["features"], episode_files(tmp_path / "data", "train")
    index = min(files)
    beyond = min(each for each in files if each not in episode_files(board, "train"))
    image = read_episode(files[beyond], beyond, features)
    assert (np.array(image.observations["place"]) == [[row, 3 - column] for row, column in first["place"]]).all()
    assert (np.stack(image.observations["camera"]) == first["camera"].transpose(0, 2, 3, 1)[:, :, ::-1]).all()
    assert image.actions == [{1: 2, 2: 1}.get(action, action) for action in actions.tolist()]
    original = read_episode(files[index], index, features)
    assert (image.rewards, image.task, image.is_done) == (original.rewards, original.task, original.is_done)
    assert image.observations["mission"] == original.observations["mission"]
    assert image.seed == UNKNOWN_SEED != original.seed


def test_test_episodes_and_recorded_ones_stay_as_they_are(board, tmp_path):
    mirror(board, tmp_path / "data", copies=2, **BOARD)
    for split in ("train", "test"):
        before, after = load_trajectories(board, split), load_trajectories(tmp_path / "data", split)
        assert set(before.fingerprints) <= set(after.fingerprints)
        assert split == "train" or before.fingerprints == after.fingerprints


@pytest.mark.parametrize(
    "flips, place, motion",
    [
        (("horizontal",), (9, 2), (-3, 4)),
        (("vertical",), (1, 8), (3, -4)),
        (("diagonal",), (2, 1), (4, 3)),
        (("horizontal", "vertical", "diagonal"), (8, 9), (-4, -3)),
    ],
)
def test_places_are_mirrored_in_their_bounds_and_motions_at_nothing(flips, place, motion):
    feature = {"kind": "vector", "dim": 5, "low": [0, 0, -5, -5, 0], "high": [10, 10, 5, 5, 40]}
    features = {"observation.state": feature, "action": {"kind": "discrete", "n": 2}}
    settings = {"flips": flips, "positions": ["state"], "directions": ["state=2,3"], "same": ["action"]}
    found = module._mirrors(features, settings | {"swaps": [], "copies": 1})
    chosen = next(one for one in found if one.flips == flips)
    (image,) = chosen._values("state", [np.array([1, 2, 3, 4, 37], np.float32)])
    assert image.tolist() == [*place, *motion, 37]


def test_what_was_interrupted_goes_on_and_shows_nothing_before_it_is_whole(board, tmp_path, monkeypatch):
    written = []

    def interrupted(path, table):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        module_write(path, table)

    module_write = module.write_table
    monkeypatch.setattr(module, "write_table", interrupted)
    with pytest.raises(KeyboardInterrupt, match="run the same again"):
        mirror(board, tmp_path / "data", copies=3, **BOARD)
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr(module, "write_table", lambda path, table: (written.append(path), module_write(path, table)))
    info = mirror(board, tmp_path / "data", copies=3, **BOARD)
    assert len(written) == len(set(written)) == sum(info["episodes"].values())
    assert mirror(board, tmp_path / "data", copies=3, **BOARD) == info  # there already
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    with pytest.raises(ValueError, match="something else than these mirror images"):
        mirror(board, tmp_path / "data", copies=2, **BOARD)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"flips": ["sideways"]}, r"flips: expected some of \['horizontal', 'vertical', 'diagonal'\], got"),
        ({"flips": []}, "flips: expected some of"),
        ({"positions": []}, r"What becomes of \['place'\] in a mirror"),
        ({"swaps": []}, r"What becomes of \['action'\] in a mirror"),
        ({"positions": ["camera"]}, r"'camera' is no vector of this recording, which has \['place'\]"),
        ({"positions": ["place=0,2"]}, "expected NAME or NAME=ACROSS,DOWN, two of the 2 numbers, got 'place=0,2'"),
        ({"positions": ["place", "place=1,0"]}, "A number of 'place' is told to be two things"),
        ({"directions": ["place"], "positions": []}, "a direction has the same bounds forwards and backwards"),
        ({"same": ["place"]}, r"same: expected some of \[\], got \['place'\]"),
        ({"swaps": ["horizontal:1=9"]}, "expected FLIP:ONE=OTHER of .* and actions 0 to 4, got .horizontal:1=9"),
        ({"swaps": ["horizontal:1"]}, "expected FLIP:ONE=OTHER"),
        ({"copies": 8}, r"copies: .* make 1 to 7 images, got 8"),
    ],
)
def test_settings_that_do_not_fit_are_named_and_nothing_is_written(given, message, board, tmp_path):
    with pytest.raises(ValueError, match=message):
        mirror(board, tmp_path / "data", **BOARD | given)
    assert not list(tmp_path.iterdir())


def test_a_recording_that_is_not_finished_is_refused(board, tmp_path):
    shutil.copytree(board, tmp_path / "begun")
    info = read_info(tmp_path / "begun")
    (tmp_path / "begun" / "meta" / "info.json").write_text(json.dumps(info | {"complete": False}))
    with pytest.raises(ValueError, match="is not finished"):
        mirror(tmp_path / "begun", tmp_path / "data", **BOARD)


def test_pan_mirror_takes_a_run_and_its_card_says_what_was_done(board, tmp_path, capsys):
    shutil.copytree(board, tmp_path / "recorded" / "data")
    order = ["mirror", "--from", str(tmp_path / "recorded"), "--run", str(tmp_path / "run"), "--position", "place=1,0"]
    order += ["--copies", "2", *(word for swap in SWAPS for word in ("--swap", swap))]
    app(order)
    assert "24 episodes to train on" in capsys.readouterr().out
    card = recording_card(tmp_path / "run" / "data", "someone/board")
    assert "Beside each training episode stand 2 mirror images of it (horizontal, vertical, diagonal)" in card
    with pytest.raises(ValueError, match="was not recorded by `pan record`"):
        record_board(tmp_path / "run" / "data")
