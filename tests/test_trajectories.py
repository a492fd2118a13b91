"""What is written is what is read, and a damaged recording is named rather than trained on."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pan_hf.data.episodes import (
    Episode,
    episode_path,
    episode_schema,
    episode_table,
    read_info,
    read_summary,
    write_info,
    write_table,
)
from pan_hf.data.trajectories import Trajectories, load_trajectories
from pan_hf.images import encode_png

FEATURES = {
    "observation.camera": {"kind": "image", "shape": [6, 8, 3], "unit": "uint8 RGB"},
    "observation.arm": {"kind": "vector", "dim": 2, "low": [-1, -1], "high": [1, 1]},
    "observation.heard": {"kind": "text", "every_step": True},
    "action": {"kind": "discrete", "n": 4},
}
LENGTHS = (3, 1, 5)  # actions of the episodes
ENVIRONMENTS = ("a", "b", "a")


def played(index: int, num_actions: int, action: dict = FEATURES["action"], seed: int = 0) -> Episode:
    """An episode of random frames."""
    rng = np.random.default_rng([seed, index])
    actions = {
        "discrete": lambda: int(rng.integers(4)),
        "vector": lambda: rng.random(2, np.float32),
        "text": lambda: "go" * int(rng.integers(1, 9)),
    }
    return Episode(
        environment=ENVIRONMENTS[index],
        index=index,
        seed=index + 70,
        task=f"task {index}",
        observations={
            "camera": list(rng.integers(0, 256, (num_actions + 1, 6, 8, 3), np.uint8)),
            "arm": list(rng.random((num_actions + 1, 2), np.float32)),
            "heard": [f"word {rng.integers(10**6)}" for _ in range(num_actions + 1)],
        },
        actions=[actions[action["kind"]]() for _ in range(num_actions)],
        rewards=rng.random(num_actions).tolist(),
        is_done=index != 1,
        is_truncated=index == 1,
    )


def write(root: Path, action: dict = FEATURES["action"], seed: int = 0, split: str = "train") -> list[Episode]:
    """A recording of three episodes."""
    features = FEATURES | {"action": action}
    episodes = [played(index, length, action, seed) for index, length in enumerate(LENGTHS)]
    schema = episode_schema(features)
    for episode in episodes:
        write_table(episode_path(root, split, episode.index), episode_table(episode, features, schema, fps=10))
    write_info(root, {"format": "pan-trajectories", "version": 1, "features": features})
    return episodes


@pytest.fixture
def recorded(tmp_path) -> tuple[Path, list[Episode]]:
    return tmp_path, write(tmp_path)


@pytest.mark.parametrize(
    "action",
    [FEATURES["action"], {"kind": "vector", "dim": 2, "low": [0, 0], "high": [1, 1]}, {"kind": "text"}],
    ids=lambda action: action["kind"],
)
def test_every_value_survives_the_disk(tmp_path, action):
    episodes = write(tmp_path, action)
    found = load_trajectories(tmp_path, "train")
    assert len(found) == sum(LENGTHS) + len(LENGTHS)
    for row, episode in enumerate(episodes):
        span = found.episode == row
        for sense, values in episode.observations.items():
            expected = np.stack(values).transpose(0, 3, 1, 2) if sense == "camera" else np.array(values)
            np.testing.assert_array_equal(found.observations[sense][span], expected)
        np.testing.assert_array_equal(found.actions[span][:-1], episode.actions)
        np.testing.assert_array_equal(found.rewards[span], np.float32([*episode.rewards, 0]))
        assert found.dones[span].tolist() == [False] * (LENGTHS[row] - 1) + [episode.is_done, False]
        assert found.truncateds[span].tolist() == [False] * (LENGTHS[row] - 1) + [episode.is_truncated, False]
    assert found.observations["camera"].dtype == np.uint8 and found.observations["arm"].dtype == np.float32
    assert found.actions.dtype.kind == {"discrete": "i", "vector": "f", "text": "U"}[action["kind"]]
    assert not np.any(found.actions[found.action_is_pad] != ("" if action["kind"] == "text" else 0))
    assert (found.tasks, found.seeds) == (["task 0", "task 1", "task 2"], [70, 71, 72])
    assert found.environments == list(ENVIRONMENTS)


def test_episodes_lie_one_after_another(recorded):
    found = load_trajectories(recorded[0], "train")
    assert found.episode_starts.tolist() == [0, 4, 6] and found.episode_lengths.tolist() == [4, 2, 6]
    assert np.flatnonzero(found.action_is_pad).tolist() == [3, 5, 11]
    assert found.episode.tolist() == [0] * 4 + [1] * 2 + [2] * 6


@pytest.mark.parametrize("environment", [None, "a", "b"])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5])
def test_a_window_never_crosses_an_episode(recorded, num_steps, environment):
    found = load_trajectories(recorded[0], "train")
    expected = [
        row
        for row in range(len(found) - num_steps)
        if found.episode[row] == found.episode[row + num_steps]
        and environment in (None, found.environments[found.episode[row]])
    ]
    if not expected:
        with pytest.raises(ValueError, match="longest"):
            found.windows(num_steps, environment)
    else:
        assert found.windows(num_steps, environment).tolist() == expected


def test_a_window_longer_than_every_episode_names_the_longest(recorded):
    found = load_trajectories(recorded[0], "train")
    with pytest.raises(ValueError, match="No episode has 6 transitions: the longest, episode 2 of a, has 5"):
        found.windows(6)


def test_an_environment_that_was_not_recorded_lists_those_that_were(recorded):
    with pytest.raises(ValueError, match=r"No episode of 'c'; there are episodes of \['a', 'b'\]"):
        load_trajectories(recorded[0], "train").windows(1, "c")


def fingerprints(root: Path) -> list[str]:
    return load_trajectories(root, "train").fingerprints


def test_fingerprints_follow_the_content(tmp_path, recorded):
    root, episodes = recorded
    write(tmp_path / "same")
    write(tmp_path / "other", seed=1)
    assert fingerprints(root) == fingerprints(tmp_path / "same")
    assert len({*fingerprints(root), *fingerprints(tmp_path / "other")}) == 6
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in fingerprints(root))
    episodes[0].observations["arm"][-1][0] += 0.5
    rewrite(root, episodes[0])
    changed = fingerprints(root)
    assert changed[0] != fingerprints(tmp_path / "same")[0] and changed[1:] == fingerprints(tmp_path / "same")[1:]


def test_a_fingerprint_does_not_depend_on_the_texts_of_other_episodes(tmp_path, recorded):
    root, episodes = recorded
    before = fingerprints(root)
    episodes[2].observations["heard"][1] = "long " * 50
    rewrite(root, episodes[2])
    assert fingerprints(root)[:2] == before[:2]


def rewrite(root: Path, episode: Episode) -> Path:
    path = episode_path(root, "train", episode.index)
    write_table(path, episode_table(episode, FEATURES, episode_schema(FEATURES), fps=10))
    return path


def test_a_summary_holds_rows_and_extremes_without_reading_the_rows(recorded):
    root, episodes = recorded
    rows, extremes = read_summary(episode_path(root, "train", 2))
    arm = np.array(episodes[2].observations["arm"])
    assert rows == 6
    np.testing.assert_allclose(extremes["observation.arm"], [arm.min(0), arm.max(0)])


# frames that are too many for memory


def test_many_frames_are_mapped_from_a_file_that_is_written_once(recorded, monkeypatch):
    root, episodes = recorded
    few, many = (load_trajectories(root, "train", in_memory) for in_memory in (12 * 144, 12 * 144 - 1))
    assert not isinstance(few.observations["camera"], np.memmap)
    assert isinstance(many.observations["camera"], np.memmap)
    np.testing.assert_array_equal(few.observations["camera"], many.observations["camera"])
    assert few.fingerprints == many.fingerprints
    many.observations["camera"][:] = 0  # which the file does not see
    with monkeypatch.context() as patch:
        patch.setattr("pan_hf.data.trajectories._decode", None)
        again = load_trajectories(root, "train", in_memory=0)
    np.testing.assert_array_equal(few.observations["camera"], again.observations["camera"])
    episodes[1].observations["camera"][0][:] = 7
    rewrite(root, episodes[1])
    changed = load_trajectories(root, "train", in_memory=0).observations["camera"]
    assert (changed[4] == 7).all() and len(list((root / "frames").iterdir())) == 1


def test_frames_that_cannot_be_kept_leave_no_file(recorded, monkeypatch):
    root, _ = recorded
    cut_short(episode_path(root, "train", 2))
    with pytest.raises(ValueError, match="damaged"):
        load_trajectories(root, "train", in_memory=0)
    write(root)
    with_column("observation.camera", [SMALL], PNG)(episode_path(root, "train", 2))
    with pytest.raises(ValueError, match="Episode 2, frame 0"):
        load_trajectories(root, "train", in_memory=0)
    monkeypatch.setattr("pan_hf.data.frame_store.shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="frames of this recording need 0 MiB.*make room"):
        load_trajectories(root, "train", in_memory=0)
    assert not list((root / "frames").iterdir())


# damage


def test_a_folder_without_a_recording_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="info.json is missing.*pan record"):
        load_trajectories(tmp_path, "train")


@pytest.mark.parametrize("split", ["validation", "tests", ""])
def test_an_unknown_split_is_refused(recorded, split):
    with pytest.raises(ValueError, match="'train' or 'test'"):
        load_trajectories(recorded[0], split)


def test_a_split_without_episodes_is_said(recorded):
    with pytest.raises(ValueError, match="no test episode"):
        load_trajectories(recorded[0], "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "damaged"), ("[]", "got list"), ('{"format": "pan-trajectories", "version": 9}', "version 1, got.*9")],
)
def test_a_damaged_info_is_named(recorded, content, message):
    (recorded[0] / "meta" / "info.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_info(recorded[0])


def test_bounds_that_were_never_measured_are_said(recorded):
    root, _ = recorded
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"]["observation.arm"]["high"][1] = None
    write_info(root, info)
    with pytest.raises(ValueError, match="stopped before the bounds.*observation.arm.*run it again"):
        load_trajectories(root, "train")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def without_last_row(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 1), path)


def without_column(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns("observation.arm"), path)


def with_column(name: str, values: list, kind: pa.DataType):
    def change(path: Path) -> None:
        table = pq.read_table(path)
        column = pa.array((values * len(table))[: len(table)], kind)
        pq.write_table(table.set_column(table.schema.get_field_index(name), name, column), path)

    return change


PNG = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SMALL = {"bytes": encode_png(np.zeros((4, 4, 3), np.uint8)), "path": None}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "damaged"),
        (without_last_row, "not one whole episode"),
        (without_column, "observation.arm"),
        (with_column("observation.arm", [[0.0, np.nan]], pa.list_(pa.float32(), 2)), "finite"),
        (with_column("observation.arm", [[0.0]], pa.list_(pa.float32(), 1)), r"'dim': 2"),
        (with_column("observation.heard", [None], pa.string()), "missing"),
        (with_column("action", [4], pa.int64()), r"0\.\.3, got 4"),
        (with_column("observation.camera", [SMALL], PNG), r"Episode 2, frame 0.*\[6, 8, 3\]"),
        (with_column("observation.camera", [{"bytes": b"no png", "path": None}], PNG), "Episode 2, frame 0"),
    ],
)
def test_a_damaged_episode_is_named(recorded, damage, message):
    path = episode_path(recorded[0], "train", 2)
    damage(path)
    with pytest.raises(ValueError, match=message):
        load_trajectories(recorded[0], "train")


def test_a_file_is_written_whole_or_not_at_all(recorded, monkeypatch):
    root, episodes = recorded
    path = episode_path(root, "train", 0)
    before = path.read_bytes()

    def stopped(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pan_hf.files.os.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        rewrite(root, episodes[0])
    assert path.read_bytes() == before and not list(root.rglob("*.tmp"))


def test_trajectories_say_how_many_rows_and_episodes_they_hold(recorded):
    found = load_trajectories(recorded[0], "train")
    assert isinstance(found, Trajectories) and len(found) == 12 and found.num_episodes == 3
