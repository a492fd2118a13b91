"""A recording depends on its settings alone, loses no finished episode, and says at once what cannot be recorded."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
from forked import run_forked
from gymnasium import spaces

from pan_hf import files
from pan_hf.data.episodes import episode_files, read_info
from pan_hf.data.info import is_test_episode
from pan_hf.data.record import _merged, record
from pan_hf.data.recorder import Stream
from pan_hf.data.trajectories import load_trajectories

GRID = {
    "wrappers": ["minigrid.wrappers:RGBImgObsWrapper?tile_size=8"],
    "keep": ["image", "mission"],
    "rename": {"image": "camera"},
    "progress": False,
}


class Teller(gymnasium.Env):
    """Counts up without bounds and says the number; ends at `length`, breaks at `broken_at`."""

    metadata = {"render_modes": [], "render_fps": 4}

    def __init__(self, length=6, broken_at=None, high=np.inf, actions=None):
        self.length, self.broken_at = length, broken_at
        self.observation_space = spaces.Dict(
            {"count": spaces.Box(0, high, (2,), np.float32), "word": spaces.Text(20, charset="0123456789")}
        )
        self.action_space = actions or spaces.Text(3, charset="ab")

    def _look(self):
        value = np.nan if self.count == self.broken_at else self.count
        return {"count": np.array([value, 100], np.float32), "word": str(self.count)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._look(), {}

    def step(self, action):
        self.count += 1
        return self._look(), float(self.count), self.count == self.length, False, {}


class Other(Teller):
    """The same with other actions."""

    def __init__(self, **kwargs):
        super().__init__(actions=spaces.Box(-1, 1, (3,)), **kwargs)


gymnasium.register("TestPanTeller-v0", entry_point=Teller)
gymnasium.register("TestPanOther-v0", entry_point=Other)


def digest(root: Path) -> dict[str, str]:
    """What each recorded file holds."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.parquet"))
    }


def stopping_after(num_steps: int, error: BaseException):
    """A random policy that raises after so many steps."""
    steps = iter(range(num_steps))

    def policy(env, observation, rng):
        if next(steps, None) is None:
            raise error
        return env.action_space.sample()

    policy.__qualname__, policy.__module__ = "random", "pan_hf.envs.policies"
    return policy


# what is recorded


def test_an_episode_has_one_row_more_than_actions(tmp_path):
    record("TestPanTeller-v0", tmp_path, episodes=2, progress=False)
    table = pq.read_table(tmp_path / "data" / "train" / "episode_000000.parquet").to_pydict()
    assert table["observation.word"] == list("0123456")
    assert table["observation.count"] == [[float(n), 100.0] for n in range(7)]
    assert table["next.reward"] == [1, 2, 3, 4, 5, 6, 0]
    assert table["next.done"] == [False] * 5 + [True, False]
    assert table["next.truncated"] == [False] * 7
    assert table["action_is_pad"] == [False] * 6 + [True]
    assert all(set(action) <= set("ab") and action for action in table["action"][:6]) and table["action"][6] == ""
    assert table["frame_index"] == list(range(7))
    assert table["timestamp"] == pytest.approx([n / 4 for n in range(7)])
    assert set(table["environment"]) == {"TestPanTeller-v0"} and set(table["episode_index"]) == {0}
    assert len(set(table["seed"])) == 1 and set(table["task"]) == {""}


def test_a_mission_is_recorded_as_sense_and_as_task(tmp_path):
    record("MiniGrid-Empty-5x5-v0", tmp_path, episodes=2, max_episode_steps=5, **GRID)
    found = load_trajectories(tmp_path, "train")
    assert found.tasks == ["get to the green goal square"]
    assert set(found.observations["mission"]) == set(found.tasks)


def test_datasets_reads_the_files_with_images_as_images(tmp_path):
    datasets = pytest.importorskip("datasets")
    record("MiniGrid-Empty-5x5-v0", tmp_path / "data", episodes=2, max_episode_steps=5, **GRID)
    files = {split: str(tmp_path / "data" / "data" / split / "*.parquet") for split in ("train", "test")}
    read = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert isinstance(read["train"].features["observation.camera"], datasets.Image)
    frames = np.stack([np.asarray(image) for image in read["train"]["observation.camera"]])
    loaded = load_trajectories(tmp_path / "data", "train").observations["camera"]
    np.testing.assert_array_equal(frames.transpose(0, 3, 1, 2), loaded)


def test_an_unbounded_vector_gets_a_tenth_beyond_the_data(tmp_path):
    info = record("TestPanTeller-v0", tmp_path, episodes=2, progress=False)
    feature = info["features"]["observation.count"]
    assert feature["low"] == [0, 0]  # the environment's own
    np.testing.assert_allclose(feature["high"], [6 + 0.6, 100 + 10])
    assert read_info(tmp_path) == info


def test_bounds_that_the_data_break_are_widened_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="observation.count left the bounds"):
        info = record("TestPanTeller-v0", tmp_path, episodes=2, env_args={"high": 3.0}, progress=False)
    assert info["features"]["observation.count"]["high"] == [6, 100]


def test_an_episode_that_is_cut_is_truncated_and_not_done(tmp_path):
    record("TestPanTeller-v0", tmp_path, episodes=2, max_episode_steps=3, progress=False)
    found = load_trajectories(tmp_path, "train")
    assert found.truncateds.tolist() == [False, False, True, False] and not found.dones.any()


def test_unrecorded_steps_vary_where_episodes_begin_but_not_their_length(tmp_path):
    record("TestPanOther-v0", tmp_path, episodes=30, explore_steps=4, max_episode_steps=2, progress=False)
    found = load_trajectories(tmp_path, "train")
    assert set(found.observations["count"][found.episode_starts, 0]) == {0, 1, 2, 3, 4}
    assert set(found.episode_lengths) == {3}


@pytest.mark.slow
def test_environments_share_the_frames_equally(tmp_path):
    ids = ["MiniGrid-Empty-5x5-v0", "MiniGrid-DoorKey-5x5-v0", "pan_hf/FourRooms-8x8-v0"]
    info = record(ids, tmp_path, frames=300, max_episode_steps=19, image_size=16, **GRID)
    both = [load_trajectories(tmp_path, split) for split in ("train", "test")]
    for id in ids:
        rows = sum(found.episode_lengths[found.episodes_of(id)].sum() for found in both)
        assert 100 <= rows < 120
    assert info["frames"] == sum(map(len, both))
    assert info["episodes"] == {"train": both[0].num_episodes, "test": both[1].num_episodes}


@pytest.mark.parametrize(("fraction", "tested"), [(0.1, [1, 11, 21]), (0.25, [1, 5, 9]), (0.5, [1, 3, 5]), (0, [])])
def test_every_so_manyth_episode_of_an_environment_is_for_testing(fraction, tested):
    assert [number for number in range(30) if is_test_episode(number, fraction)][:3] == tested
    assert sum(is_test_episode(number, fraction) for number in range(100)) == 100 * fraction
    assert is_test_episode(0, 1.0)


def test_every_environment_has_a_test_episode(tmp_path):
    ids = ["MiniGrid-Empty-5x5-v0", "MiniGrid-DoorKey-5x5-v0"]
    record(ids, tmp_path, frames=1, max_episode_steps=3, **GRID)
    assert load_trajectories(tmp_path, "test").environments == ids


# the same set, however it came about


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A recording of CartPole that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    record("CartPole-v1", root, frames=400, progress=False)
    return root


@pytest.mark.slow
def test_the_number_of_processes_does_not_change_what_is_recorded(tmp_path, whole):
    assert read_info(whole) == record("CartPole-v1", tmp_path, frames=400, workers=2, progress=False)
    assert digest(tmp_path) == digest(whole)


def test_another_seed_records_something_else(tmp_path, whole):
    record("CartPole-v1", tmp_path, frames=400, seed=1, progress=False)
    assert not set(digest(tmp_path).values()) & set(digest(whole).values())


def test_ctrl_c_keeps_what_is_finished_and_the_same_call_goes_on(tmp_path, whole):
    policy = stopping_after(200, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt, match="finished episodes are kept.*run the same again"):
        record("CartPole-v1", tmp_path, frames=400, policy=policy, progress=False)
    kept = digest(tmp_path)
    info = read_info(tmp_path)
    assert kept and kept.items() < digest(whole).items()
    assert not info["complete"] and sum(info["episodes"].values()) == len(kept)
    assert load_trajectories(tmp_path, "train").num_episodes == info["episodes"]["train"]  # usable as it is
    record("CartPole-v1", tmp_path, frames=400, policy=stopping_after(10**6, AssertionError()), progress=False)
    assert digest(tmp_path) == digest(whole)


def test_a_finished_recording_is_not_touched_by_running_it_again(tmp_path, whole):
    times = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    record("CartPole-v1", whole, frames=400, progress=False)
    assert times == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}


def test_more_frames_may_be_asked_for_later(tmp_path, whole):
    record("CartPole-v1", tmp_path, frames=150, progress=False)
    before = digest(tmp_path)
    assert before.items() < digest(whole).items()
    record("CartPole-v1", tmp_path, frames=400, progress=False)
    assert digest(tmp_path) == digest(whole)


def test_an_episode_that_was_damaged_is_recorded_again(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "copy")
    path = episode_files(tmp_path / "copy", "train")[0]
    path.write_bytes(path.read_bytes()[:-100])
    info = read_info(whole)
    with pytest.warns(UserWarning, match="damaged.*recorded again"):
        assert record("CartPole-v1", tmp_path / "copy", frames=400, progress=False) == info
    assert digest(tmp_path / "copy") == digest(whole)


@pytest.mark.parametrize("call", [(files, "open"), (files.os, "replace")])
def test_a_recording_that_was_killed_while_it_wrote_its_first_file_begins_anew(tmp_path, call):
    def killed():
        setattr(*call, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        record("TestPanTeller-v0", "out", episodes=2, progress=False)

    assert run_forked(killed, tmp_path).returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["meta"]
    record("TestPanTeller-v0", tmp_path / "out", episodes=2, progress=False)
    record("TestPanTeller-v0", tmp_path / "undisturbed", episodes=2, progress=False)
    assert digest(tmp_path / "out") == digest(tmp_path / "undisturbed")
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_recording_goes_on_and_leaves_no_process_behind(tmp_path, sent):
    def call():
        # a suite started in the background ignores Ctrl-C, and what it forks would inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
        record("CartPole-v1", root, frames=3000, workers=2, progress=False)

    root = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    deadline = time.monotonic() + 120
    while len(list(root.glob("data/*/*.parquet"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, sent)
    process.join(60)
    assert process.exitcode not in (0, None)
    time.sleep(1)
    kept = digest(root)
    assert len(kept) >= 20
    time.sleep(0.5)
    assert digest(root) == kept  # nobody writes any more
    record("CartPole-v1", root, frames=3000, progress=False)
    again = tmp_path / "again"
    record("CartPole-v1", again, frames=3000, progress=False)
    assert digest(root) == digest(again) and not list(root.rglob("*.tmp"))


def test_episodes_played_ahead_do_not_count_before_the_gap_is_closed():
    stream = Stream(environment=0, frames=20, episodes=1)
    numbers = [stream.begin() for _ in range(3)]
    stream.finish(numbers[2], 30)
    assert not stream.is_reached
    stream.finish(numbers[0], 12)
    stream.finish(numbers[1], 12)
    assert stream.is_reached and stream.num_needed == 2


# what is refused


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 3}, "seed: 0 there, 3 now"),
        ({"policy": "pan_hf.envs.policies:random"}, "policy"),
        ({"explore_steps": 2}, "explore_steps"),
        ({"env_args": {"length": 9}}, "length"),
        ({"episodes": 2}, "episodes: 4 there, 2 now"),
        ({"episodes": None, "frames": 3}, "episodes: 4 there, None now"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_and_named(tmp_path, changed, message):
    settings = {"episodes": 4, "progress": False}
    record("TestPanTeller-v0", tmp_path, **settings)
    before = digest(tmp_path), (tmp_path / "meta" / "info.json").read_text()
    with pytest.raises(ValueError, match=f"other settings.*{message}"):
        record("TestPanTeller-v0", tmp_path, **{**settings, **changed})
    assert before == (digest(tmp_path), (tmp_path / "meta" / "info.json").read_text())


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="something else"):
        record("TestPanTeller-v0", tmp_path, episodes=2, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either frames or episodes"),
        ({"frames": 3, "episodes": 3}, "either frames or episodes"),
        ({"frames": 0}, "frames: expected at least 1, got 0"),
        ({"frames": 3, "workers": 0}, "workers"),
        ({"frames": 3, "explore_steps": -1}, "explore_steps"),
        ({"frames": 3, "seed": -1}, "seed"),
        ({"frames": 3, "test_fraction": 0.7}, "test_fraction"),
        ({"frames": 3, "rename": ["count"]}, "observation=sense"),
        ({"frames": 3, "policy": "nowhere:policy"}, "nowhere"),
        ({"frames": 3, "start": "nowhere:start"}, "start 'nowhere:start'"),
        ({"frames": 3, "keep": ["sound"]}, "sound"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        record("TestPanTeller-v0", tmp_path / "new", progress=False, **settings)
    assert not (tmp_path / "new").exists()


def test_an_unknown_environment_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="Unknown environment id 'CartPole-v9'"):
        record("CartPole-v9", tmp_path / "new", frames=3)
    assert not (tmp_path / "new").exists()


def test_environments_with_different_actions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same senses and actions: TestPanTeller-v0 has .*TestPanOther-v0"):
        record(["TestPanTeller-v0", "TestPanOther-v0"], tmp_path / "new", frames=3)


def test_names_of_actions_are_left_out_where_two_environments_call_them_otherwise():
    one, other = ({"action": {"kind": "discrete", "n": 2, "names": names}} for names in (["a", "b"], ["a", "c"]))
    assert _merged(one, one, "One-v0", "Two-v0") == one
    assert _merged(one, other, "One-v0", "Two-v0") == {"action": {"kind": "discrete", "n": 2}}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_action_out_of_range_names_the_episode_and_the_step(tmp_path, workers):
    with pytest.raises(ValueError, match=r"CartPole-v1, episode \d \(seed \d+\), step 0: Expected.*0\.\.1, got 7"):
        record("CartPole-v1", tmp_path, frames=9, policy=lambda *_: 7, workers=workers, progress=False)


def test_an_observation_that_breaks_names_the_sense_and_the_step(tmp_path):
    with pytest.raises(ValueError, match="step 3: sense 'count': expected finite.*nan"):
        record("TestPanTeller-v0", tmp_path, frames=9, env_args={"broken_at": 4}, progress=False)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("pan_hf.data.record.shutil.disk_usage", lambda _: SimpleNamespace(free=10 * 2**20))
    with pytest.raises(OSError, match="needs about .* MiB, and 10 MiB are free"):
        record("TestPanTeller-v0", tmp_path / "new", frames=10**6, progress=False)
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_keeps_the_finished_episodes(tmp_path, monkeypatch):
    replace, written = os.replace, []

    def fills_up(source, target):
        written.append(target)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fills_up)
    with pytest.raises(OSError, match="the disk is full.*kept; make room and run the same again") as caught:
        record("TestPanTeller-v0", tmp_path, episodes=8, progress=False)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert len(digest(tmp_path)) == 3  # and info.json
    assert not list(tmp_path.rglob("*.tmp"))
    info = record("TestPanTeller-v0", tmp_path, episodes=8, progress=False)
    assert info["complete"] and len(digest(tmp_path)) == 8


def test_progress_is_told_in_lines_where_there_is_no_terminal(tmp_path, capsys):
    record("TestPanTeller-v0", tmp_path, episodes=3)
    assert "recording: 3 of 3 episodes" in capsys.readouterr().err


def test_the_environments_in_info_make_the_same_environments(tmp_path):
    from pan_hf.envs.environment import make_environment

    info = record("MiniGrid-Empty-5x5-v0", tmp_path, episodes=2, max_episode_steps=3, image_size=20, **GRID)
    entry = json.loads(json.dumps(info["environments"][0]))
    assert make_environment(**entry).features == info["features"]
