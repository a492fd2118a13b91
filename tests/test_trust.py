"""A recording that somebody else made: what it may ask for, and what of it is noticed when it is damaged."""

import json
import shutil
from collections import Counter

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest

from pan_hf.data.episodes import episode_files, read_info, read_summary
from pan_hf.data.record import record
from pan_hf.data.trajectories import load_trajectories
from pan_hf.envs.environment import make_recorded_environment
from pan_hf.evaluation.acting import recorded_facts
from pan_hf.publishing.data_card import _counts

SIDES = {"id": "CartPole-v1"}


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    root = tmp_path_factory.mktemp("trust") / "data"
    record("CartPole-v1", root, episodes=4, seed=1, progress=False)
    return root


@pytest.mark.parametrize(
    "entry",
    [
        {"wrappers": ["os:system?command=touch"]},
        {"wrappers": ["builtins:exec"]},
        {"wrappers": ["unittest.mock:MagicMock"]},
        {"wrappers": ["gymnasium.wrappers:RecordVideo?video_folder=here"]},
        {"wrappers": ["pan_hf.data.wrapper:RecordTrajectories?folder=here"]},
        {"wrappers": ["antigravity:Wrapper"]},
        {"id": "antigravity/Game-v0"},
        {"id": "this:CartPole-v1"},
        {"id": "json.tool:Game-v0"},
        {"id": "GymV26Environment-v0", "env_args": {"env_id": "evil:Game-v0"}},
    ],
)
def test_what_a_recording_names_is_not_imported_or_called(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pan_hf.envs.environment.make_environment", lambda **entry: pytest.fail("it was made"))
    with pytest.raises(ValueError, match="asks to import and run .*--trust-recording"):
        make_recorded_environment({**SIDES, **entry})
    assert not list(tmp_path.iterdir())


def test_registered_environments_in_wrappers_of_known_packages_are_made():
    wrapped = {**SIDES, "wrappers": ["gymnasium.wrappers:TimeLimit?max_episode_steps=3"], "image_size": None}
    assert make_recorded_environment(wrapped).reset(seed=0)
    entry = {"id": "MiniGrid-Empty-5x5-v0", "wrappers": ["minigrid.wrappers:RGBImgObsWrapper?tile_size=8"]}
    assert make_recorded_environment(entry).reset(seed=0)


class Own(gymnasium.Wrapper):
    """A wrapper of a module that is imported already."""


def test_a_wrapper_that_is_imported_already_is_known(capsys):
    assert make_recorded_environment({**SIDES, "wrappers": [f"{__name__}:Own"]})
    assert not capsys.readouterr().err


def test_trust_shows_each_import_and_its_arguments(capsys):
    entry = {**SIDES, "wrappers": [f"{__name__}:unwrap?deep=1"]}
    with pytest.raises(ValueError, match="--trust-recording"):
        make_recorded_environment(entry)
    assert make_recorded_environment(entry, trust_recording=True)
    assert f"imports and runs {__name__}:unwrap?deep=1" in capsys.readouterr().err


def test_letters_that_move_the_cursor_hide_no_import(capsys):
    entry = {**SIDES, "wrappers": [f"{__name__}:unwrap?deep='\x1b[2K\\r'"]}
    make_recorded_environment(entry, trust_recording=True)
    shown = capsys.readouterr().err
    assert f"{__name__}:unwrap" in shown and "\\x1b[2K" in shown and "\x1b" not in shown


def unwrap(env, deep):
    return env.unwrapped


@pytest.mark.parametrize("entry", [{}, {"id": 3}, {"id": "CartPole-v1", "start": "os:system"}])
def test_an_entry_of_another_shape_is_refused(entry):
    with pytest.raises(ValueError, match="expected `id` and some of"):
        make_recorded_environment(entry)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"wrappers": [1]}, r"environments of the recording, wrappers\[0\]: expected a text, got int 1"),
        ({"env_args": "rows=3"}, "env_args: expected a dict"),
        ({"image_size": "64"}, "image_size: expected a whole number or None"),
    ],
)
def test_a_field_of_an_entry_that_is_of_another_type_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        make_recorded_environment({**SIDES, **fields})


def test_deep_json_is_a_sentence(cartpole, tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"info.json is damaged"):
        read_info(tmp_path)


def test_a_file_of_more_rows_than_an_episode_has_is_refused_unread(cartpole, tmp_path, monkeypatch):
    monkeypatch.setattr("pan_hf.data.episodes._MOST_ROWS", 5)
    with pytest.raises(ValueError, match=r"says that it holds \d+ rows; expected at most 5"):
        load_trajectories(cartpole, "train")


def test_a_flipped_bit_is_never_read_as_other_data(cartpole):
    """Bytes of the footer, which says where the data are and what they mean, and of the data themselves."""
    (index, path), *_ = episode_files(cartpole, "train").items()
    whole, data = load_trajectories(cartpole, "train", episodes=[index]), path.read_bytes()
    footer = len(data) - 16 - int.from_bytes(data[-8:-4], "little")
    generator, num_noticed = np.random.default_rng(0), Counter()
    try:
        for offset in [*range(4, footer, 12), *range(footer, len(data), 9)]:
            damaged = bytearray(data)
            damaged[offset] ^= 1 << int(generator.integers(8))
            path.write_bytes(damaged)
            try:
                rows, extremes = read_summary(path)
                read = load_trajectories(cartpole, "train", episodes=[index])
            except ValueError as error:
                assert "damaged" in str(error) or "not one whole episode" in str(error)
                num_noticed[offset >= footer] += 1
                continue
            assert (
                offset < footer + 4
            )  # of the footer and its checksum every bit is noticed, but not of the mark before
            assert read.fingerprints == whole.fingerprints and (read.rewards == whole.rewards).all()
            assert all((read.observations[name] == whole.observations[name]).all() for name in whole.observations)
    finally:
        path.write_bytes(data)
    assert min(num_noticed[False], num_noticed[True]) > 40


def test_a_damaged_footer_is_not_taken_for_bounds(cartpole, tmp_path):
    path = next(iter(episode_files(cartpole, "train").values()))
    rows, bounds = read_summary(path)
    name, ((number, *_), _) = next(iter(bounds.items()))
    digits = str(number).encode()
    damaged = tmp_path / "data" / "train" / path.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(path.read_bytes().replace(digits, digits[:-1] + (b"1" if digits[-1:] != b"1" else b"2")))
    with pytest.raises(ValueError, match="its footer does not fit the checksum"):
        read_summary(damaged)


@pytest.mark.parametrize("reader", [_counts, recorded_facts])
def test_a_flipped_bit_is_noticed_by_what_reads_some_columns(reader, cartpole, tmp_path):
    root = shutil.copytree(cartpole, tmp_path / "data")
    path = next(iter(episode_files(root, "test").values()))
    whole, data = str(reader(root)), path.read_bytes()
    metadata = pq.read_metadata(path)
    chunks = map(metadata.row_group(0).column, range(metadata.num_columns))
    chunk = next(one for one in chunks if one.path_in_schema == "environment")
    num_noticed, start = 0, chunk.dictionary_page_offset
    for offset in range(start, start + chunk.total_compressed_size, 3):
        damaged = bytearray(data)
        damaged[offset] ^= 1
        path.write_bytes(damaged)
        try:
            assert str(reader(root)) == whole
        except ValueError as error:
            assert "damaged" in str(error)
            num_noticed += 1
    assert num_noticed > 10


def test_a_recording_of_before_has_no_checksums_and_says_so_once(cartpole, tmp_path, recwarn):
    for split in ("train", "test"):
        for path in episode_files(cartpole, split).values():
            table = pq.read_table(path)
            target = tmp_path / path.relative_to(cartpole)
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, target)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text(json.dumps(read_info(cartpole)))
    for _ in range(2):
        load_trajectories(tmp_path, "train")
    assert sum("without a checksum" in str(warning.message) for warning in recwarn.list) == 1


@pytest.mark.parametrize(
    "features",
    [{"observation.../../evil": {"kind": "vector"}}, {"observation.a/b": {"kind": "vector"}}, {"rows": {}}, [], None],
)
def test_a_sense_s_name_is_a_word_since_it_names_files(features, tmp_path):
    (tmp_path / "meta").mkdir()
    info = {"format": "pan-trajectories", "version": 1, "features": features}
    (tmp_path / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"`features` has .*expected observation.<word>"):
        read_info(tmp_path)


@pytest.mark.parametrize("feature", [3, None, [], {}, {"kind": 3}])
def test_a_column_without_a_kind_is_named(feature, tmp_path):
    (tmp_path / "meta").mkdir()
    info = {"format": "pan-trajectories", "version": 1, "features": {"observation.state": feature}}
    (tmp_path / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"`features` tells no kind of \['observation.state'\]"):
        read_info(tmp_path)


def test_no_room_is_made_for_pictures_that_are_not_there(tmp_path, monkeypatch):
    record("CartPole-v1", tmp_path / "data", episodes=2, render=True, keep=["camera"], image_size=16, progress=False)
    path = tmp_path / "data" / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.camera"]["shape"] = [8192, 8192, 3]
    path.write_text(json.dumps(info))
    monkeypatch.setattr("pan_hf.data.trajectories.FrameArrays", lambda *kinds: pytest.fail("room was made"))
    with pytest.raises(ValueError, match="frame 0: .*a picture of 16x16 pixels, expected 8192x8192"):
        load_trajectories(tmp_path / "data", "train")
