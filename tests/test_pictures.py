"""Pictures are taken for what they are: colours of any range, depth, symbols, transparent ones, files; or refused."""

import io
import re
import warnings

import datasets
import gymnasium
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium import spaces
from huggingface_hub import constants
from PIL import Image

from pan_hf import RecordTrajectories
from pan_hf.data.episodes import read_info
from pan_hf.data.importing import import_dataset
from pan_hf.data.record import record
from pan_hf.data.trajectories import load_trajectories
from pan_hf.envs.environment import make_environment
from pan_hf.features import ImageFeature, SymbolsFeature, View, feature_of
from pan_hf.images import MOST_PIXELS, check_colours, fit, read_picture

WHOLE = {"test_fraction": 0, "progress": False}


class Picture(gymnasium.Env):
    """Shows one picture of the kind that is asked for, a little brighter at every step."""

    action_space = spaces.Discrete(2)
    KINDS = {
        "float255": ((16, 24, 3), np.float32, 0, 255),
        "float255chw": ((3, 16, 24), np.float32, 0, 255),
        "minus1to1": ((16, 24, 3), np.float32, -1, 1),
        "unit64": ((16, 24, 3), np.float64, 0, 1),
        "int32": ((16, 24, 3), np.int32, 0, 255),
        "unbounded": ((16, 24, 3), np.float32, -np.inf, np.inf),
        "many": ((80, 60, 1, 1), np.float32, 0, 1),
        "depth16": ((16, 24), np.uint16, 0, 65535),
        "depthmetres": ((16, 24, 1), np.float32, 0, 10),
        "symbols": ((7, 7, 3), np.uint8, 0, 255),
        "letters": ((21, 79), np.uint8, 0, 255),
        "sixteen": ((21, 79), np.uint8, 0, 15),
        "twotone": ((16, 16, 3), np.uint8, 0, 1),
        "dark": ((16, 16, 3), np.float32, 0, 1),
        "night": ((16, 16, 3), np.uint8, 0, 255),
        "row": ((4, 100), np.uint8, 0, 255),
    }
    # numbers, the second at a third of places
    TWO = {"letters": (ord(" "), ord("@")), "dark": (0, 4 / 255), "twotone": (0, 1), "night": (0, 5)}

    def __init__(self, kind):
        self.kind, (shape, dtype, low, high) = kind, self.KINDS[kind]
        self.observation_space = spaces.Box(low, high, shape, dtype)

    def _look(self):
        space = self.observation_space
        if self.kind in self.TWO:
            is_second = np.arange(np.prod(space.shape)).reshape(space.shape) % 3 == 0
            return np.where(is_second, *reversed(self.TWO[self.kind])).astype(space.dtype)
        if self.kind == "symbols":
            return np.broadcast_to(np.array([[2, 5, 0]], np.uint8), (7, 7, 3)) * (np.arange(7)[:, None, None] % 2)
        low, high = (0, 1) if self.kind == "unbounded" else (space.low.astype(float), space.high.astype(float))
        return (low + (high - low) * (self.step_number % 5) / 5 * np.ones(space.shape)).astype(space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        return self._look(), {}

    def step(self, action):
        self.step_number += 1
        return self._look(), 0.0, False, self.step_number == 4, {}


gymnasium.register("pictures/Picture-v0", Picture, disable_env_checker=True)


def recorded(kind, root, **settings):
    settings = {"env_args": {"kind": kind}, "episodes": 1, **WHOLE} | settings
    return record("pictures/Picture-v0", root, **settings)["features"]


@pytest.mark.parametrize("kind", ["float255", "float255chw", "minus1to1", "unit64", "int32"])
def test_colours_of_a_known_range_become_bytes(kind, tmp_path):
    features = recorded(kind, tmp_path / "data")
    assert features["observation.camera"] == {"kind": "image", "shape": [16, 24, 3], "unit": "uint8 RGB"}
    frames = load_trajectories(tmp_path / "data", "train").observations["camera"]
    assert frames[:, 0, 0, 0].tolist() == [0, 51, 102, 153, 204]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unbounded", "looks like a picture, and it is not known which numbers are black.*RescaleObservation"),
        ("many", "has 4800 numbers; expected at most 4096 in a vector"),
        ("depthmetres", "floats from .* say what to multiply them with.*--depth-scale 1000"),
        ("letters", "grid of letters, not of colours.*--symbols NAME.*floats within 0..1"),
        ("sixteen", r"of shape \(21, 79\) that is declared from 0 to 15 holds symbols.*--symbols NAME.*floats within"),
    ],
)
def test_a_picture_of_unknown_meaning_is_said_before_anything_is_recorded(kind, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        recorded(kind, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind", ["symbols", "night"])
def test_a_grid_that_begins_with_few_numbers_is_symbols_which_is_said(kind, tmp_path):
    with pytest.warns(UserWarning, match="camera: .*x3 whole numbers up to 5 are taken as symbols.*--symbols"):
        features = recorded(kind, tmp_path / "data")
    shape = list(Picture.KINDS[kind][0])
    described = {"kind": "symbols", "dims": shape, "num_values": [256] * 3, "start": [0] * 3}
    assert features["observation.camera"] == described
    assert read_info(tmp_path / "data")["environments"][0]["symbols"] == ["camera"]
    env = make_environment("pictures/Picture-v0", {"kind": kind}, symbols=["camera"])
    assert (load_trajectories(tmp_path / "data", "train").observations["camera"][0] == env.reset()[0]["camera"]).all()
    with pytest.warns(UserWarning, match="taken as symbols"):
        env = RecordTrajectories(env.env, tmp_path / "loop")
    assert env.features == features


def test_whoever_says_that_a_dark_picture_is_one_has_one(tmp_path):
    assert recorded("night", tmp_path / "data", symbols=[])["observation.camera"]["kind"] == "image"
    with pytest.raises(ValueError, match="float32. cannot be symbols, which are whole numbers"):
        recorded("dark", tmp_path / "more", symbols=["camera"])
    with pytest.raises(ValueError, match="symbols names .*'lens'.* which the environment has not"):
        recorded("night", tmp_path / "more", symbols=["lens"])


def test_dark_and_uniform_pictures_are_no_symbols():
    check_colours(np.zeros((16, 16, 3), np.uint8))  # a dark frame is no symbol
    check_colours(np.full((64, 64, 3), 7, np.uint8))


@pytest.mark.parametrize("kind", ["letters", "sixteen"])
def test_pictures_that_look_like_something_else_are_taken_as_the_advice_says(kind, tmp_path):
    with pytest.raises(ValueError, match="--wrapper") as refused:
        recorded(kind, tmp_path / "data")
    wrappers = re.findall(r"--wrapper '(.*?)'", str(refused.value))
    height, width = Picture.KINDS[kind][0][:2]
    features = recorded(kind, tmp_path / "data", wrappers=wrappers)
    assert features["observation.camera"]["shape"] == [height, width, 3]
    frames = load_trajectories(tmp_path / "data", "train").observations["camera"]
    env, first = Picture(kind), frames[0].transpose(1, 2, 0)
    drawn = env.reset()[0].reshape(height, width, -1)
    assert np.array_equal(first, np.broadcast_to(drawn * (255 // env.observation_space.high.max()), first.shape))


@pytest.mark.parametrize(("kind", "high"), [("dark", 4), ("twotone", 255)])
def test_dark_and_two_toned_pictures_are_what_they_are_declared_to_be(kind, high, tmp_path):
    recorded(kind, tmp_path / "data")
    frames = load_trajectories(tmp_path / "data", "train").observations["camera"]
    assert set(frames.ravel().tolist()) == {0, high}


def test_a_strip_of_few_rows_is_no_picture():
    env = make_environment("pictures/Picture-v0", {"kind": "row"})
    assert env.features["observation.state"]["kind"] == "vector" and env.features["observation.state"]["dim"] == 400


def test_a_column_of_no_picture_is_told_how_it_is_left_out():
    many = np.zeros((16, 16, 4), np.uint8)
    with pytest.raises(ValueError, match="1 or 3 channels.*leave the column out with map COLUMN="):
        ImageFeature.from_value(many, View())
    grid = np.zeros((7, 7, 3), np.uint8)
    grid[::2] = 2, 5, 0
    with pytest.warns(UserWarning, match="7x7x3 whole numbers up to 5 are taken as symbols"):
        assert SymbolsFeature.from_value(grid, View()).feature["dims"] == [7, 7, 3]
    assert SymbolsFeature.from_value(grid[:5, :5, 0], View()) is None  # a table does not say that these are names


def test_depth_keeps_its_bits_its_range_and_its_unit(tmp_path):
    features = recorded("depth16", tmp_path / "whole", depth_unit="mm")
    described = {"kind": "image", "shape": [16, 24, 1], "unit": "mm", "bits": 16, "low": 0, "high": 52428}
    assert features["observation.camera"] == described
    frames = load_trajectories(tmp_path / "whole", "train").observations["camera"]
    assert frames.dtype == np.uint16 and frames.shape == (5, 1, 16, 24)
    assert frames[:, 0, 0, 0].tolist() == [0, 13107, 26214, 39321, 52428]
    mapped = load_trajectories(tmp_path / "whole", "train", in_memory=0).observations["camera"]
    assert mapped.dtype == np.uint16 and (mapped == frames).all()


def test_metres_become_whole_millimetres(tmp_path):
    features = recorded("depthmetres", tmp_path / "data", depth_scale=1000, depth_unit="mm", image_size=8)
    assert features["observation.camera"]["shape"] == [8, 8, 1]
    frames = load_trajectories(tmp_path / "data", "train").observations["camera"]
    assert frames[:, 0, 0, 0].tolist() == [0, 2000, 4000, 6000, 8000]
    assert read_info(tmp_path / "data")["environments"][0]["depth_scale"] == 1000


def test_depth_is_looked_at_as_grey_levels_and_compared_in_its_unit():
    feature = ImageFeature({"kind": "image", "shape": [2, 2, 1], "unit": "mm", "bits": 16, "low": 400, "high": 4000})
    frames = torch.tensor([400, 2200, 4000, 5000], dtype=torch.int32).view(1, 1, 2, 2)
    assert feature.to_frames(frames)[0, ..., 0].tolist() == [[0, 127], [255, 255]]
    measures = feature.measures(frames, frames - 36, frames, 2)
    assert float(measures["rmse"][1][0, 0]) == 36**2
    assert "400 to 4000 mm" in feature.words()


def test_the_nearest_depth_is_taken_where_a_mean_was_never_measured():
    picture = np.array([[[0], [0], [8000], [8000]]] * 4, np.uint16)
    assert sorted(np.unique(fit(picture, 3))) == [0, 8000]


# ------------------------------------------------------------------------------------------------------ from tables


def rows_of(pictures):
    return [{"observation.camera": one, "action": step % 2, "episode_index": 0} for step, one in enumerate(pictures)]


def imported(pictures, output, **settings):
    from datasets import Dataset, Features, Value
    from datasets import Image as Column

    features = Features({"observation.camera": Column(), "action": Value("int64"), "episode_index": Value("int64")})
    import_dataset(Dataset.from_list(rows_of(pictures), features=features), output, **WHOLE | settings)
    return load_trajectories(output, "train").observations["camera"]


RAMP = np.broadcast_to(np.linspace(400, 4000, 16).astype(np.uint16), (16, 16)).copy()


@pytest.mark.parametrize("picture", [RAMP, RAMP.astype(np.int32), (RAMP / 1000).astype(np.float32)])
@pytest.mark.filterwarnings("ignore:The data have no rewards")
def test_pictures_of_more_than_8_bits_are_imported_as_depth(picture, tmp_path):
    scale = {"depth_scale": 1000.0} if picture.dtype == np.float32 else {}
    frames = imported([Image.fromarray(picture)] * 3, tmp_path / "data", depth_unit="mm", **scale)
    np.testing.assert_allclose(frames[0, 0], RAMP, atol=1)
    if scale:
        with pytest.raises(ValueError, match="--depth-scale"):
            imported([Image.fromarray(picture)] * 3, tmp_path / "more")


@pytest.mark.filterwarnings("ignore:The data have no rewards")
def test_transparent_pixels_are_refused_and_opaque_ones_are_colours(tmp_path):
    picture = np.full((16, 16, 4), 255, np.uint8)
    assert (imported([Image.fromarray(picture)] * 3, tmp_path / "data") == 255).all()
    picture[:, 3:8, 3] = 10
    with pytest.raises(ValueError, match="row 0: .*transparent in places.*alpha_composite|transparent in places"):
        imported([Image.fromarray(picture)] * 3, tmp_path / "more")


@pytest.mark.filterwarnings("ignore:The data have no rewards")
def test_pictures_of_several_sizes_are_brought_to_one(tmp_path):
    pictures = [Image.new("RGB", size, "white") for size in ((16, 16), (20, 30), (16, 16))]
    assert imported(pictures, tmp_path / "data", image_size=16).shape == (3, 3, 16, 16)
    with pytest.raises(ValueError, match="row 1: expected a picture like the first.*--image-size"):
        imported(pictures, tmp_path / "more")


@pytest.mark.filterwarnings("ignore:The data have no rewards")
def test_a_column_of_file_names_is_opened(tmp_path):
    for step in range(3):
        Image.new("RGB", (16, 16), (50 * step + 20, 0, 0)).save(tmp_path / f"{step}.png")
    table = tmp_path / "steps.csv"
    table.write_text("observation.camera,action,episode_index\n" + "".join(f"{k}.png,{k % 2},0\n" for k in range(3)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*symbols")  # a dark picture is a picture
        info = import_dataset(table, tmp_path / "data", **WHOLE)
    assert info["features"]["observation.camera"]["kind"] == "image"
    assert load_trajectories(tmp_path / "data", "train").observations["camera"][:, 0, 0, 0].tolist() == [20, 70, 120]
    table.write_text(table.read_text().replace("1.png", "9.png"))
    with pytest.raises(ValueError, match=r"row 1: the picture .*9.png is missing"):
        import_dataset(table, tmp_path / "more", **WHOLE)
    table.write_text(table.read_text().replace("9.png", "../1.png"))
    with pytest.raises(ValueError, match="lies outside"):
        import_dataset(table, tmp_path / "more", **WHOLE)
    rows = [{"observation.camera": f"{k}.png", "action": 0, "episode_index": 0} for k in range(3)]
    with pytest.raises(ValueError, match="names a picture, and it is not known in which folder"):
        import_dataset(rows, tmp_path / "more", **WHOLE)


@pytest.mark.filterwarnings("ignore:The data have no rewards")
def test_a_cell_that_names_a_file_opens_it_only_beside_its_table(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "private.png"
    inside.mkdir()
    for path in (outside, inside / "0.png"):
        Image.new("RGB", (16, 16), (90, 0, 0)).save(path)

    def naming(path):
        rows = [{"observation.camera": {"bytes": None, "path": path}, "action": k, "episode_index": 0} for k in (0, 1)]
        cells = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        columns = {"observation.camera": cells, "action": pa.int64(), "episode_index": pa.int64()}
        pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), inside / "rows.parquet")
        return inside / "rows.parquet"

    for name, told in ((str(outside), "lies outside"), ("../private.png", "lies outside"), (None, "got neither")):
        with pytest.raises(ValueError, match=f"column 'observation.camera': .*{told}"):
            import_dataset(naming(name), tmp_path / "data", **WHOLE)
    import_dataset(naming("0.png"), tmp_path / "data", **WHOLE)
    assert (load_trajectories(tmp_path / "data", "train").observations["camera"][:, 0] == 90).all()
    import_dataset(datasets.Dataset.from_parquet(str(naming(str(outside)))), tmp_path / "own", **WHOLE)


@pytest.mark.filterwarnings("ignore:The data have no rewards")
def test_a_data_set_of_the_hub_names_files_of_its_caches_wherever_they_are(tmp_path, monkeypatch):
    for folder in ("hub", "datasets", "elsewhere"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (16, 16), (90, 0, 0)).save(tmp_path / folder / "0.png")

    def imported(folder):
        cell = {"bytes": None, "path": str(tmp_path / folder / "0.png")}
        rows = [{"observation.camera": cell, "action": k, "episode_index": 0} for k in (0, 1)]
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
        import_dataset("user/pictures", tmp_path / "data" / folder, **WHOLE)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    imported("hub")
    imported("datasets")
    with pytest.raises(ValueError, match="lies outside .*hub and .*datasets, and"):
        imported("elsewhere")


# --------------------------------------------------------------------------------------------------- of a stranger's


def file_of(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_formats_that_run_other_programs_are_never_opened():
    with pytest.raises(OSError):
        read_picture(file_of(Image.new("RGB", (8, 8)), "EPS"))
    feature = feature_of({"kind": "image", "shape": [8, 8, 3], "unit": "uint8 RGB"})
    assert feature.decode(file_of(Image.new("RGB", (8, 8)), "PNG")).shape == (3, 8, 8)
    for kind in ("EPS", "TIFF", "GIF"):  # a recording holds PNG and nothing else
        with pytest.raises(OSError):
            feature.decode(file_of(Image.new("RGB", (8, 8)), kind))


def test_sizes_are_fixed_before_pixels_are_read():
    header = file_of(Image.new("L", (8, 8)), "PNG")
    side = int(MOST_PIXELS**0.5) + 1
    huge = header[:16] + side.to_bytes(4, "big") * 2 + header[24:]  # claims to be huge, and its checksum is wrong
    feature = feature_of({"kind": "image", "shape": [8, 8, 3], "unit": "uint8 RGB"})
    with pytest.raises((ValueError, OSError)):
        read_picture(huge)
    with pytest.raises(ValueError, match="a picture of 9x8 pixels, expected 8x8"):
        feature.decode(file_of(Image.new("RGB", (8, 9)), "PNG"))
    with pytest.raises(ValueError, match=f"expected at most {MOST_PIXELS}"):
        read_picture(file_of(Image.new("1", (side, side)), "PNG"))
