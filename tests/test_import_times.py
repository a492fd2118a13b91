"""Times and frame numbers of an import: order is not taken for time, and what is missing is named or resampled."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_importing import WHOLE, frames_of, is_shown, lerobot_set, steps

from pan_hf.data.importing import import_dataset, import_lerobot
from pan_hf.data.importing.times import steps_of
from pan_hf.data.trajectories import load_trajectories


def with_rows(root: Path, number: int, change) -> None:
    path = root / "data" / "chunk-000" / f"file-{number:03d}.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def lerobot_with_times(root: Path, drop: tuple[int, ...] = ()) -> Path:
    """A LeRobot data set whose rows have times, and whose video lacks some frames (of all episodes together)."""
    lerobot_set(root)
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"] |= {"timestamp": {"dtype": "float32", "shape": [1]}}
    (root / "meta" / "info.json").write_text(json.dumps(info))
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        times = pa.array((np.asarray(table["frame_index"]) / 5).astype(np.float32))
        pq.write_table(table.append_column("timestamp", times), path)
    video = root / "videos" / "observation.images.top" / "chunk-000" / "file-000.mp4"
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "1", "g": "3"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, frame in enumerate(frames):
            if index not in drop:
                shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
                shown.pts, shown.time_base = index * 200, Fraction(1, 1000)
                container.mux(stream.encode(shown))
        container.mux(stream.encode())
    return root


@pytest.mark.slow
def test_a_dropped_frame_is_named_with_its_row_and_resampled_where_that_is_asked_for(tmp_path):
    root = lerobot_with_times(tmp_path / "in", drop=(6,))  # of episode 1, row 2
    with pytest.raises(ValueError, match=r"file-000.mp4 has no frame at 1.200 s, row 2 of the episode.*--resample"):
        import_lerobot(root, tmp_path / "data", **WHOLE)
    import_lerobot(root, tmp_path / "data", resample=True, **WHOLE)
    found = load_trajectories(tmp_path / "data", "train")
    frames = frames_of(1)
    frames[2] = frames[1]  # the one before is repeated, and those behind stay where they were
    assert is_shown(found.observations["top"][found.episode == 1], frames)
    whole = lerobot_with_times(tmp_path / "whole")
    import_lerobot(whole, tmp_path / "all", **WHOLE)
    assert len(load_trajectories(tmp_path / "all", "train")) == len(found)


@pytest.mark.filterwarnings("ignore:.*resampled to")
def test_rows_out_of_order_keep_their_own_frames_of_a_video(tmp_path):
    root = lerobot_with_times(tmp_path / "in")
    import_lerobot(root, tmp_path / "whole", **WHOLE)
    with_rows(root, 0, lambda table: table.take([0, 2, 1, *range(3, len(table))]))
    with pytest.raises(ValueError, match="episode 0, row 1: its frame number is 2 steps after"):
        import_lerobot(root, tmp_path / "data", **WHOLE)
    import_lerobot(root, tmp_path / "data", resample=True, **WHOLE)
    whole, found = (load_trajectories(tmp_path / name, "train").observations for name in ("whole", "data"))
    assert all((found[name] == whole[name]).all() for name in whole)


def test_times_and_frame_numbers_that_jump_are_named(tmp_path):
    root = lerobot_with_times(tmp_path / "in")

    def late(table):
        times = np.asarray(table["timestamp"]) + np.float32([0, 0, 3, 3] + [0] * (len(table) - 4))
        return table.set_column(table.column_names.index("timestamp"), "timestamp", pa.array(times))

    with_rows(root, 0, late)
    with pytest.raises(ValueError, match=r"episode 0, row 2: its time is 16 steps after .* at 5 frames a second"):
        import_lerobot(root, tmp_path / "data", **WHOLE)


@pytest.mark.parametrize("frames", [[0, 1, 2, 4, 5], [0, 1, 1, 2, 3]])
def test_missing_and_doubled_rows_are_refused_or_resampled(frames, tmp_path, recwarn):
    rows = [row | {"next.reward": 2.0**number, "next.done": number == 4} for number, row in enumerate(steps(frames))]
    with pytest.raises(ValueError, match=r"row \d: its frame number is [02] steps after"):
        import_dataset(rows, tmp_path / "data", **WHOLE)
    import_dataset(rows, tmp_path / "data", resample=True, **WHOLE)
    found = load_trajectories(tmp_path / "data", "train")
    state = found.observations["state"][:, 0]
    assert state.tolist() == ([0, 1, 2, 2, 4, 5] if 4 in frames else [0, 1, 2, 3])
    assert any("resampled to" in str(warning.message) for warning in recwarn.list)
    # each reward counts once; the last two fall on the last action whose outcome was seen
    assert found.rewards.tolist() == ([1, 2, 0, 4, 24, 0] if 4 in frames else [1, 6, 24, 0])
    assert np.flatnonzero(found.dones).tolist() == [len(found) - 2]


@pytest.mark.parametrize("has_action", [True, False])
def test_the_last_row_stands_once_at_the_end_whatever_its_time(has_action):
    made = steps_of("episode 0", None, [0, 1, 1.2, 2.6], 1, True)
    assert made.shown([0, 1, 2, 3]) == [0, 1, 2, 3] and made.rows.tolist()[-1] == 3
    made = steps_of("episode 0", None, [0, 1, 2.6], 1, True)
    assert made.shown([0, 1, 2]) == [0, 1, 1, 2]
    values = [1, 2, 4][: 2 + has_action]
    assert made.shown(values) == [1, 2, 2, 4][: 3 + has_action]
    assert made.summed(np.array(values, float)) == [1, 0, 2, 4][: 3 + has_action]
    assert made.any([False, True, False][: 2 + has_action]) == [False, False, True, False][: 3 + has_action]


def test_the_rate_is_read_off_the_times(tmp_path):
    rows = steps(range(5), [0.0, 0.033, 0.067, 0.1, 0.133])
    assert import_dataset(rows, tmp_path / "data", **WHOLE)["fps"] == pytest.approx(30, abs=0.5)
    with pytest.raises(ValueError, match="at 10 frames a second; expected 1"):
        import_dataset(rows, tmp_path / "more", fps=10, **WHOLE)
