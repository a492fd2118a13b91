"""Other people's data become recordings with nothing changed on the way, and what is wrong with them is named.

Each source is a small real data set: what its own library writes or, for LeRobot, its published layout.
"""

import json
from fractions import Fraction
from pathlib import Path

import av
import datasets
import minari
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from pan_hf.cli import app
from pan_hf.data.importing import columns, import_dataset, import_lerobot, import_minari, import_videos, writing
from pan_hf.data.trajectories import load_trajectories
from pan_hf.features import View
from pan_hf.images import encode_png

LENGTHS = (4, 6, 5)  # frames of the episodes
ACTIONS = ([0, 2, 1, 1], [1, 0, 0, 2, 2, 1], [2, 2, 0, 1, 0])  # one a frame
REWARDS = ([0, 0, 0, 1], [0, 0.5, 0, 0, 0, 0.5], [0, 0, 1, 0, 0])
WHOLE = {"test_fraction": 0, "progress": False}
TASKS = ("open the door", "close the door", "open the door")


def frames_of(episode: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Smooth frames, which a video codec hardly changes: uint8 `(T, H, W, 3)`."""
    time, row, column = np.meshgrid(np.arange(LENGTHS[episode]), np.arange(height), np.arange(width), indexing="ij")
    return np.stack([30 * time, 5 * row + 20 * episode, 5 * column], -1).astype(np.uint8)


def states_of(episode: int) -> np.ndarray:
    return np.random.default_rng(episode).random((LENGTHS[episode], 2), np.float32)


def write_video(path: Path, frames: np.ndarray, fps: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "1", "g": "3"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv444p"
        for index, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            shown.pts, shown.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(shown))
        container.mux(stream.encode())


def is_shown(found: np.ndarray, frames: np.ndarray) -> bool:
    """Whether `(T, 3, H, W)` frames are those that were encoded, but for what the codec lost."""
    return found.shape[0] == len(frames) and np.abs(found.astype(int) - frames.transpose(0, 3, 1, 2)).mean() < 3


def check_episodes(root: Path) -> None:
    """What every source of the same three episodes must have led to, one action an observation having been given."""
    found = load_trajectories(root, "train")
    assert found.episode_lengths.tolist() == list(LENGTHS)
    for episode, rewards in enumerate(REWARDS):
        span = found.episode == episode
        assert found.actions[span][:-1].tolist() == ACTIONS[episode][:-1]
        # the last action led nowhere that was seen: what it earned is counted to the one before it
        expected = [*rewards[:-2], rewards[-2] + rewards[-1], 0]
        np.testing.assert_allclose(found.rewards[span], np.float32(expected))
        assert found.dones[span].tolist() == [False] * (LENGTHS[episode] - 2) + [episode != 1, False]
        assert found.truncateds[span].tolist() == [False] * (LENGTHS[episode] - 2) + [episode == 1, False]


# -------------------------------------------------------------------------------------------------------- the sources


def rows_of(episode: int) -> dict[str, list]:
    length = LENGTHS[episode]
    return {
        "observation.state": list(states_of(episode)),
        "action": ACTIONS[episode],
        "next.reward": REWARDS[episode],
        "next.done": [False] * (length - 1) + [episode != 1],
        "episode_index": [episode] * length,
        "frame_index": list(range(length)),
    }


def joined_rows(episodes) -> dict[str, list]:
    rows = [rows_of(episode) for episode in episodes]
    return {name: [value for one in rows for value in one[name]] for name in rows[0]}


def lerobot_set(root: Path) -> Path:
    """Three episodes in two data files and one video, as lerobot's writer lays them out."""
    rows = joined_rows(range(3))
    camera = {"dtype": "video", "shape": [24, 32, 3], "names": ["height", "width", "channels"]}
    features = {"observation.images.top": camera, "observation.state": {"dtype": "float32", "shape": [2]}}
    features |= {"action": {"dtype": "int64", "shape": [1]}, "next.reward": {"dtype": "float32", "shape": [1]}}
    features |= {"next.done": {"dtype": "bool", "shape": [1]}}
    features |= {name: {"dtype": "int64", "shape": [1]} for name in ("episode_index", "frame_index", "task_index")}
    place, video = "chunk-{chunk_index:03d}/file-{file_index:03d}", "videos/observation.images.top/"
    info = {"codebase_version": "v3.0", "fps": 5, "features": features, "total_episodes": 3}
    info |= {"data_path": f"data/{place}.parquet", "video_path": "videos/{video_key}/" + f"{place}.mp4"}
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    tasks = sorted(set(TASKS))
    pd.DataFrame({"task_index": range(len(tasks))}, index=tasks).to_parquet(root / "meta" / "tasks.parquet")
    write_video(root / video / "chunk-000" / "file-000.mp4", np.concatenate([frames_of(one) for one in range(3)]))
    starts = np.cumsum([0, *LENGTHS])
    episodes = [
        {
            "episode_index": episode,
            "tasks": [TASKS[episode]],
            "length": LENGTHS[episode],
            "data/chunk_index": 0,
            "data/file_index": int(episode == 2),
            "dataset_from_index": starts[episode],
            "dataset_to_index": starts[episode + 1],
            f"{video}chunk_index": 0,
            f"{video}file_index": 0,
            f"{video}from_timestamp": starts[episode] / 5,
            f"{video}to_timestamp": starts[episode + 1] / 5,
            "stats/action/max": [2],
        }
        for episode in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(episodes), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    rows["task_index"] = [tasks.index(TASKS[episode]) for episode in rows["episode_index"]]
    (root / "data" / "chunk-000").mkdir(parents=True)
    table, cut = pa.table(rows), starts[2]
    pq.write_table(table.slice(0, cut), root / "data" / "chunk-000" / "file-000.parquet")
    pq.write_table(table.slice(cut), root / "data" / "chunk-000" / "file-001.parquet")
    return root


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory) -> Path:
    return lerobot_set(tmp_path_factory.mktemp("lerobot"))


def test_a_lerobot_data_set_is_read_from_files_of_many_episodes(lerobot, tmp_path):
    info = import_lerobot(lerobot, tmp_path / "data", **WHOLE)
    check_episodes(tmp_path / "data")
    found = load_trajectories(tmp_path / "data", "train")
    assert found.tasks == list(TASKS) and set(found.observations) == {"top", "state", "task"}
    assert info["fps"] == 5 and found.features["observation.task"] == {"kind": "text", "every_step": False}
    for episode in range(3):
        span = found.episode == episode
        assert is_shown(found.observations["top"][span], frames_of(episode))
        np.testing.assert_array_equal(found.observations["state"][span], states_of(episode))
    bounds = info["features"]["observation.state"]
    assert np.all(np.array(bounds["low"]) < found.observations["state"].min(0))


def dataset_of(episodes=range(3), **changed) -> datasets.Dataset:
    """Rows of LeRobot's names with pictures in them, as `datasets` holds them."""
    pictures = [{"bytes": encode_png(frame), "path": None} for episode in episodes for frame in frames_of(episode)]
    rows = joined_rows(episodes) | {"observation.image": pictures} | changed
    features = datasets.Features(
        {
            name: {
                "observation.image": datasets.Image(),
                "observation.state": datasets.Sequence(datasets.Value("float32")),
                "next.done": datasets.Value("bool"),
                "next.reward": datasets.Value("float32"),
            }.get(name, datasets.Value("string" if isinstance(rows[name][0], str) else "int64"))
            for name in rows
        }
    )
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def dataset() -> datasets.Dataset:
    return dataset_of()


@pytest.mark.parametrize("form", ["object", "folder", "parquet"])
def test_a_dataset_is_imported_from_memory_from_its_folder_and_from_parquet(dataset, form, tmp_path):
    # in any order: episodes are told apart by one column, and their frames put in order by another
    mixed = dataset.select(np.random.default_rng(0).permutation(len(dataset))) if form == "object" else dataset
    source = {"object": mixed, "folder": str(tmp_path / "in"), "parquet": str(tmp_path / "in.parquet")}[form]
    if form == "folder":
        dataset.save_to_disk(tmp_path / "in")
    if form == "parquet":
        dataset.to_parquet(tmp_path / "in.parquet")
    import_dataset(source, tmp_path / "data", map={"observation.image": "camera"}, **WHOLE)
    found = load_trajectories(tmp_path / "data", "train")
    assert set(found.observations) == {"camera", "state"}
    if form != "object":
        check_episodes(tmp_path / "data")
    whole = {len(frames_of(one)): frames_of(one).transpose(0, 3, 1, 2) for one in range(3)}
    for start, length in zip(found.episode_starts, found.episode_lengths, strict=True):
        np.testing.assert_array_equal(found.observations["camera"][start : start + length], whole[length])


def test_a_row_may_be_an_episode_and_columns_may_have_any_name(tmp_path):
    rows = {
        "obs": [states_of(episode).tolist() for episode in range(3)],
        "pixels": [frames_of(episode, 8, 8).tolist() for episode in range(3)],
        "moves": [[[a / 2, -a / 2] for a in ACTIONS[episode][:-1]] for episode in range(3)],
        "said": [[f"word {episode}"] * LENGTHS[episode] for episode in range(3)],
    }
    pixel = datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))))
    number = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
    kinds = {"obs": number, "pixels": pixel, "moves": number, "said": datasets.Sequence(datasets.Value("string"))}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    mapping = {"obs": "joints", "pixels": "camera", "moves": "action", "said": "heard"}
    with pytest.warns(UserWarning, match="no rewards: all are 0"):
        import_dataset(data, tmp_path / "data", map=mapping, **WHOLE)
    found = load_trajectories(tmp_path / "data", "train")
    np.testing.assert_array_equal(found.observations["joints"], np.concatenate([states_of(one) for one in range(3)]))
    assert found.observations["camera"].shape == (15, 3, 8, 8) and found.actions.dtype == np.float32
    assert found.observations["heard"][-1] == "word 2" and not found.rewards.any()
    assert found.truncateds.sum() == 3 and not found.dones.any()  # data that name no end are cut short


def test_pictures_are_cut_to_their_middle_square_and_averaged(dataset, tmp_path):
    import_dataset(dataset, tmp_path / "data", image_size=8, crop=True, **WHOLE)
    found = load_trajectories(tmp_path / "data", "train").observations["image"]
    middle = frames_of(0)[:, :, 4:28].reshape(4, 8, 3, 8, 3, 3).mean((2, 4))
    assert np.abs(found[:4] - middle.transpose(0, 3, 1, 2)).max() <= 0.5


def videos_in(folder: Path, lengths=LENGTHS) -> Path:
    for episode, length in enumerate(lengths):
        write_video(folder / f"{episode}.mp4", frames_of(episode)[:length])
    rows = joined_rows(range(3))
    rows = {"video": [f"{one}.mp4" for one in rows["episode_index"]], "move": rows["action"], "won": rows["next.done"],
            "earned": rows["next.reward"], "x": [s[0] for s in rows["observation.state"]]}  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "actions.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return videos_in(tmp_path_factory.mktemp("videos"))


def test_videos_with_a_csv_become_episodes_from_the_shell(videos, tmp_path, capsys):
    command = ["import", "videos", str(videos), "--output", str(tmp_path / "data"), "--test-fraction", "0"]
    command += ["--map", "move=action", "--map", "won=done", "--map", "earned=reward", "--map", "x=place"]
    app(command)
    assert "3 train and 0 test episodes, 15 frames of camera, place" in capsys.readouterr().out
    check_episodes(tmp_path / "data")
    found = load_trajectories(tmp_path / "data", "train")
    assert is_shown(found.observations["camera"][found.episode == 2], frames_of(2))
    assert found.observations["place"].shape == (15, 1)


SPACE = spaces.Dict({"camera": spaces.Box(0, 255, (24, 32, 3), np.uint8), "state": spaces.Box(0, 1, (2,))})


def minari_set(folder: Path, monkeypatch, lengths: dict | None = None) -> Path:
    """Three episodes as Minari's own writer keeps them: one observation more than actions."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    buffers = [
        EpisodeBuffer(
            id=episode,
            seed=70 + episode,
            observations={"camera": list(frames_of(episode)), "state": list(states_of(episode))},
            actions=ACTIONS[episode][: LENGTHS[episode] - 1],
            rewards=REWARDS[episode][: LENGTHS[episode] - 1],
            terminations=[False] * (LENGTHS[episode] - 2) + [episode != 1],
            truncations=[False] * (LENGTHS[episode] - 2) + [episode == 1],
        )
        for episode in range(3)
    ]
    shape = {"observation_space": SPACE, "action_space": spaces.Discrete(3), "jpeg_encoding": False}
    about = {"author": "a", "author_email": "b", "code_permalink": "c", "description": "d", "algorithm_name": "e"}
    minari.create_dataset_from_buffers("doors/random-v0", buffers, **shape, **about)
    return folder / "doors" / "random-v0"


@pytest.mark.slow
def test_a_minari_data_set_is_imported_by_id_and_by_folder(tmp_path, monkeypatch):
    folder = minari_set(tmp_path / "sets", monkeypatch)
    import_minari("doors/random-v0", tmp_path / "by_id", map={"state": "joints"}, **WHOLE)
    import_minari(folder, tmp_path / "by_folder", map={"camera": ""}, **WHOLE)
    found = load_trajectories(tmp_path / "by_id", "train")
    assert found.seeds == [70, 71, 72] and set(found.observations) == {"camera", "joints"}
    assert found.features["observation.joints"]["high"] == [1, 1]  # the space's, not the data's
    for episode in range(3):
        span = found.episode == episode
        np.testing.assert_array_equal(found.observations["camera"][span], frames_of(episode).transpose(0, 3, 1, 2))
        assert found.actions[span][:-1].tolist() == ACTIONS[episode][:-1]
        np.testing.assert_allclose(found.rewards[span][:-1], REWARDS[episode][:-1])
        assert found.dones[span][-2] == (episode != 1) and found.truncateds[span][-2] == (episode == 1)
    assert set(load_trajectories(tmp_path / "by_folder", "train").observations) == {"state"}


# ------------------------------------------------------------------------------------------------- interrupted


def test_an_interrupted_import_goes_on_and_shows_nothing_before_it_is_whole(dataset, tmp_path, monkeypatch):
    written, write = [], writing.write_table

    def stop_at_second(path, table):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, table)

    monkeypatch.setattr(writing, "write_table", stop_at_second)
    with pytest.raises(KeyboardInterrupt, match="after 1 episodes; run the same import again"):
        import_dataset(dataset, tmp_path / "data", **WHOLE)
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr(writing, "write_table", lambda path, table: (written.append(path.name), write(path, table)))
    import_dataset(dataset, tmp_path / "data", **WHOLE)
    assert written == [f"episode_00000{index}.parquet" for index in range(3)]  # none of them twice
    check_episodes(tmp_path / "data")
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
    import_dataset(dataset, tmp_path / "data", **WHOLE)  # finished: nothing to do
    assert len(written) == 3
    with pytest.raises(ValueError, match="holds something else"):
        import_dataset(dataset, tmp_path / "data", image_size=8, **WHOLE)


# ---------------------------------------------------------------------------------------------------- bad input


def no_state_in_episode_1() -> dict:
    states = [list(row) for episode in range(3) for row in states_of(episode)]
    states[LENGTHS[0] + 2] = [0.0]
    return {"observation.state": states}


def one_smaller_picture() -> dict:
    frames = [frame for episode in range(3) for frame in frames_of(episode)]
    frames[LENGTHS[0] + 2] = frames[0][:20]
    return {"observation.image": [{"bytes": encode_png(frame), "path": None} for frame in frames]}


@pytest.mark.parametrize(
    ("changed", "given", "message"),
    [
        ({}, {"map": {"pixels": "camera"}}, r"map names the columns \['pixels'\], which are not there; there are"),
        ({}, {"map": {"action": ""}}, "no column is the action; say which of .* with map COLUMN=action"),
        ({}, {"map": {"observation.image": "", "observation.state": ""}}, "no column is a sense"),
        ({}, {"map": {"observation.state": "joint angles"}}, "'joint angles' cannot name a sense"),
        (no_state_in_episode_1(), {}, r"episode 1 .*'observation.state', row 2: expected numbers of shape \(2,\)"),
        (one_smaller_picture(), {}, r"episode 1 .*'observation.image', row 2: expected a picture like the first"),
        ({"next.done": [True] * 15}, {}, "episode 0 .*'done' is set at step 0 of 4.*the right one"),
        ({"action": [-1] * 15}, {}, r"row 0: expected a whole number in 0"),
        ({"next.reward": [float("nan")] * 15}, {}, "episode 0 .*a finite number as the reward"),
        ({"task": ["a", "b"] * 7 + ["a"]}, {}, r"expected one task for the whole episode, got \['a', 'b'\]"),
        ({}, {"map": {"episode_index": ""}}, "expected a list over the steps, because no column tells episodes apart"),
        ({"episode_index": [0] * 15}, {"test_fraction": 0.1}, "has 1 episodes; .* or keep none for testing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_dataset_that_does_not_fit_is_named_and_nothing_is_written(changed, given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        import_dataset(dataset_of(**changed), tmp_path / "data", **(WHOLE | given))
    assert not list(tmp_path.iterdir())


def test_a_data_set_without_rows_is_refused_as_one(tmp_path):
    data = datasets.Dataset.from_dict({"observation.at": [[0.5]], "action": [0], "episode_index": [0]}).select([])
    with pytest.raises(ValueError, match="dataset holds no rows, so no episode to import"):
        import_dataset(data, tmp_path / "data", **WHOLE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"obs": 5, "act": 5, "more": 4}, r"every sense needs as many observations as the others, got .*'more': 4"),
        ({"obs": 5, "act": 2, "more": 5}, "5 observations need 4 actions .* got 2"),
        ({"obs": 1, "act": 1, "more": 1}, "needs two observations at least, got 1"),
        ({"obs": 5, "act": 5, "more": 5, "rew": 3}, r"one value for each of the 5 actions, got \{'rewards': 3\}"),
    ],
)
def test_a_ragged_episode_is_named(lengths, message, tmp_path):
    rows = {name: [[0.5] * length] for name, length in lengths.items()}
    data = datasets.Dataset.from_dict(rows)
    mapping = {"obs": "obs", "more": "more", "act": "action", "rew": "reward"}
    with pytest.raises(ValueError, match=f"episode 0.*{message}"):
        import_dataset(data, tmp_path / "data", map={name: mapping[name] for name in lengths}, **WHOLE)
    assert not list(tmp_path.iterdir())


def drop_rows(root: Path) -> None:
    path = root / "data" / "chunk-000" / "file-001.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def drop_column(root: Path) -> None:
    path = root / "data" / "chunk-000" / "file-001.parquet"
    pq.write_table(pq.read_table(path).drop_columns("observation.state"), path)


def shorten_video(root: Path) -> None:
    frames = np.concatenate([frames_of(one) for one in range(3)])
    write_video(root / "videos" / "observation.images.top" / "chunk-000" / "file-000.mp4", frames[:-2])


def no_video(root: Path) -> None:
    (root / "videos" / "observation.images.top" / "chunk-000" / "file-000.mp4").unlink()


def older(root: Path) -> None:
    info = json.loads((root / "meta" / "info.json").read_text())
    (root / "meta" / "info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_rows, r"file-001.parquet, episode 2: expected 5 rows, as meta/episodes says, got 4"),
        (drop_column, r"file-001.parquet, episode 2: the column 'observation.state' is missing"),
        (shorten_video, r"file-000.mp4 has 3 frames from 2.000 s on, and 5 are needed"),
        (no_video, r"the video .*file-000.mp4 is missing"),
        (older, r"expected format v3, got v2.1; convert it with lerobot's own script"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_lerobot_data_set_is_named_and_nothing_is_written(damage, message, tmp_path):
    root = lerobot_set(tmp_path / "in")
    damage(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        import_lerobot(root, tmp_path / "data", **WHOLE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("1.mp4", lambda rows: rows.drop(index=[5, 6]), "1.mp4: .* 4 rows for it, .*video has 6 frames.*in the CSV"),
        ("1.mp4", lambda rows: pd.concat([rows, rows.iloc[[9]]]), "1.mp4: .* has 7 rows .*missing in the video"),
        ("", lambda rows: rows.drop(columns="video"), "actions.csv: expected rows with a column 'video'"),
        ("", lambda rows: rows.replace({"0.mp4": "9.mp4"}), r"names the videos \['9.mp4'\], which are not in"),
        ("", lambda rows: rows.rename(columns={"move": "camera"}), "'camera' has the name of the videos' frames"),
    ],
)
def test_a_csv_that_does_not_fit_its_videos_is_named(videos, name, change, message, tmp_path):
    rows = change(pd.read_csv(videos / "actions.csv"))
    rows.to_csv(tmp_path / "actions.csv", index=False)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        import_videos(videos, tmp_path / "data", actions=tmp_path / "actions.csv", map={"move": "action"}, **WHOLE)
    assert not (tmp_path / "data").exists()


def test_a_damaged_video_and_a_missing_library_are_named(videos, tmp_path, monkeypatch):
    (tmp_path / "0.mp4").write_bytes(b"no video")
    (tmp_path / "actions.csv").write_text("video,action\n0.mp4,1\n0.mp4,1\n")
    with pytest.raises(ValueError, match="0.mp4 cannot be read as a video"):
        import_videos(tmp_path, tmp_path / "data", **WHOLE)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'pan_hf\[data\]'"):
        import_videos(videos, tmp_path / "data", map={"move": "action"}, **WHOLE)
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(ImportError, match=r"pip install 'pan_hf\[data\]'"):
        import_minari("doors/random-v0", tmp_path / "data", **WHOLE)
    assert not (tmp_path / "data").exists()


def test_a_picture_that_is_no_picture_is_said():
    with pytest.raises(ValueError, match="expected 1 to 4096 numbers as a vector"):
        columns.form_of(np.full((64, 65), 300.0), View())


def steps(frames, times=None):
    rows = [
        {"observation.state": [float(frame)], "action": row % 2, "episode_index": 0, "frame_index": frame}
        for row, frame in enumerate(frames)
    ]
    for row, time in zip(rows, times or (), strict=False):
        row["timestamp"] = time
    return rows


def test_videos_of_two_rates_are_not_one_recording(videos, tmp_path):
    for name in ("0.mp4", "1.mp4", "2.mp4"):
        (tmp_path / name).write_bytes((videos / name).read_bytes())
    write_video(tmp_path / "1.mp4", frames_of(1), fps=10)
    with pytest.raises(ValueError, match="1.mp4 has 10 frames a second, 0.mp4 5: one recording"):
        import_videos(tmp_path, tmp_path / "data", actions=videos / "actions.csv", map={"move": "action"}, **WHOLE)


# ------------------------------------------------------------------------------------------ data of other classes


def test_rows_in_memory_are_imported_whatever_holds_them(tmp_path):
    rows = steps(range(4))
    columns_ = {name: [row[name] for row in rows] for name in rows[0]}
    seen = []
    for number, data in enumerate((rows, columns_, pd.DataFrame(rows), datasets.Dataset.from_list(rows))):
        import_dataset(data, tmp_path / str(number), **WHOLE)
        seen.append(load_trajectories(tmp_path / str(number), "train").fingerprints)
    assert seen.count(seen[0]) == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "expected a datasets.Dataset, a DataFrame.*got NoneType"),
        ([], "got list"),
        (3.5, "got float"),
        (datasets.Dataset.from_list(steps(range(4))).to_iterable_dataset(), "IterableDataset.*without streaming"),
        ({"action": [1, "a"]}, "no table of columns of one type"),
    ],
)
def test_data_of_another_class_is_a_sentence(data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        import_dataset(data, tmp_path / "data", **WHOLE)
    for importer in (import_lerobot, import_videos, import_minari):
        if data is None:
            with pytest.raises(ValueError, match="data: expected a text or a path, got NoneType"):
                importer(data, tmp_path / "data", **WHOLE)


def test_letters_of_another_encoding_are_read_where_it_is_named(tmp_path):
    text = "observation.said,action,episode_index\n" + "".join(f"grün {k},{k % 2},0\n" for k in range(3))
    (tmp_path / "steps.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="cannot be read as csv in utf-8.*--encoding latin-1"):
        import_dataset(tmp_path / "steps.csv", tmp_path / "data", **WHOLE)
    import_dataset(tmp_path / "steps.csv", tmp_path / "data", encoding="latin-1", **WHOLE)
    assert load_trajectories(tmp_path / "data", "train").observations["said"][0] == "grün 0"


def test_short_episodes_are_left_out_where_that_is_asked_for(tmp_path, recwarn):
    rows = steps(range(4)) + [row | {"episode_index": 1} for row in steps([0])]
    with pytest.raises(ValueError, match="needs two observations at least, got 1; .*--skip-short"):
        import_dataset(rows, tmp_path / "data", **WHOLE)
    assert import_dataset(rows, tmp_path / "data", skip_short=True, **WHOLE)["episodes"]["train"] == 1
    assert any("1 episodes of fewer than two" in str(warning.message) for warning in recwarn.list)


def test_parts_and_absent_senses_come_from_tables_too(tmp_path):
    rows = [
        {"observation.state": [float(k)], "observation.seldom": [1.0 + k] if k % 2 else None, "legs": k % 2,
         "arm": [0.5 * k], "episode_index": 0}
        for k in range(5)
    ]  # fmt: skip
    parts = {"legs": "action.legs", "arm": "action.arm"}
    import_dataset(rows, tmp_path / "data", map=parts, optional=["seldom"], **WHOLE)
    found = load_trajectories(tmp_path / "data", "train")
    assert found.actions["legs"].tolist()[:4] == [0, 1, 0, 1] and found.actions["arm"].shape == (5, 1)
    assert found.present["seldom"].tolist() == [False, True, False, True, False]
    with pytest.raises(ValueError, match=r"row 0: expected a value, got none.*--optional|first row.*--optional"):
        import_dataset(rows, tmp_path / "more", map=parts, **WHOLE)


def test_hdf5_files_of_robomimic_and_of_flat_columns_are_imported(tmp_path):
    import h5py

    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        for episode in range(3):
            group = file.create_group(f"data/demo_{episode}")
            group["obs/camera"], group["obs/state"] = frames_of(episode), states_of(episode)
            group["actions"], group["rewards"] = np.array(ACTIONS[episode]), np.array(REWARDS[episode], float)
            group["dones"] = np.array([0] * (LENGTHS[episode] - 1) + [episode != 1])
    import_dataset(tmp_path / "demos.hdf5", tmp_path / "data", **WHOLE)
    check_episodes(tmp_path / "data")
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["ep_len"], file["ep_offset"] = np.array(LENGTHS), np.array([0, 4, 10])
        file["pixels"] = np.concatenate([frames_of(episode) for episode in range(3)])
        file["action"] = np.concatenate([np.array(one) for one in ACTIONS])
    import_dataset(tmp_path / "flat.h5", tmp_path / "flat", map={"pixels": "camera"}, **WHOLE)
    seen, flat = (load_trajectories(tmp_path / name, "train") for name in ("data", "flat"))
    assert (seen.observations["camera"] == flat.observations["camera"]).all()
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["ep_len"], file["action"] = np.zeros(0, int), np.zeros((0, 1))
    with pytest.raises(ValueError, match=r"empty\.h5 holds no rows, so no episode to import"):
        import_dataset(tmp_path / "empty.h5", tmp_path / "more", **WHOLE)
    with h5py.File(tmp_path / "diamond.hdf5", "w") as file:
        file["frame_0_x"] = np.zeros((3, 3))
    with pytest.raises(ValueError, match=r"holds \['frame_0_x'\]; expected groups data/demo_0.*pan import videos"):
        import_dataset(tmp_path / "diamond.hdf5", tmp_path / "more", **WHOLE)
