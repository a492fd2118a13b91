"""The recording's format, as it is written: episodes as parquet files, and `meta/info.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pan_hf.features import feature_of, is_reserved
from pan_hf.files import write_file
from pan_hf.hub import address, on_disk

FORMAT = "pan-trajectories"
VERSION = 1
SPLITS = ("train", "test")
UNKNOWN_SEED = -1


@dataclass
class Episode:
    """One episode as it is played: T + 1 observations, T actions and what followed each.

    Args:
        environment: id of the environment.
        index: number of the episode in its recording.
        seed: what the environment was reset with, or `UNKNOWN_SEED`.
        task: the text that holds for the whole episode, or "".
        observations: by sense, a list of uint8 `(H, W, 3)` images, float32 `(D,)` vectors or strings.
        actions: ints, float32 `(D,)` vectors or strings.
        rewards: reward after each action.
        is_done: whether the last action ended the episode in the world.
        is_truncated: whether the episode was cut short by a limit.
    """

    environment: str
    index: int
    seed: int
    task: str = ""
    observations: dict[str, list] = field(default_factory=dict)
    actions: list = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    is_done: bool = False
    is_truncated: bool = False


def episode_schema(features: dict[str, dict]) -> pa.Schema:
    """The columns of an episode's file, with the metadata by which `datasets` knows images as images."""
    import datasets

    columns = {name: feature_of(described).column_type() for name, described in features.items()}
    for names, kind in (
        (("next.reward", "timestamp"), "float32"),
        (("next.done", "next.truncated", "action_is_pad"), "bool"),
        (("episode_index", "frame_index", "seed"), "int64"),
        (("task", "environment"), "string"),
    ):
        columns |= {name: datasets.Value(kind) for name in names}
    return datasets.Features(columns).arrow_schema


def episode_table(episode: Episode, features: dict[str, dict], schema: pa.Schema, fps: float) -> pa.Table:
    """An episode as `(T + 1)` rows of `schema`."""
    num_rows = len(episode.actions) + 1
    last = [False] * (num_rows - 2)
    kinds = {name: feature_of(described) for name, described in features.items()}
    columns: dict[str, Any] = {
        f"observation.{sense}": [kinds[f"observation.{sense}"].stored(value) for value in values]
        for sense, values in episode.observations.items()
    }
    action = kinds["action"]
    columns |= {
        "action": [*(action.stored(value) for value in episode.actions), action.stored(action.blank())],
        "next.reward": [*episode.rewards, 0.0],
        "next.done": [*last, episode.is_done, False],
        "next.truncated": [*last, episode.is_truncated, False],
        "action_is_pad": [False] * (num_rows - 1) + [True],
        "task": [episode.task] * num_rows,
        "episode_index": [episode.index] * num_rows,
        "frame_index": np.arange(num_rows),
        "timestamp": (np.arange(num_rows) / fps).astype(np.float32),
        "environment": [episode.environment] * num_rows,
        "seed": [episode.seed] * num_rows,
    }
    metadata = {**schema.metadata, b"pan": json.dumps(extremes(episode, features)).encode()}
    table = pa.table({column.name: pa.array(columns[column.name], column.type) for column in schema})
    return table.replace_schema_metadata(metadata)


def extremes(episode: Episode, features: dict[str, dict]) -> dict[str, list]:
    """What is known of each column without its rows, by name: of vectors the smallest and largest of each number."""
    summaries = {
        name: feature_of(described).summary(
            episode.actions if name == "action" else episode.observations[name.removeprefix("observation.")]
        )
        for name, described in features.items()
    }
    return {name: summary for name, summary in summaries.items() if summary is not None}


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table to a parquet file that appears whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_statistics=False)
    write_file(path, sink.getvalue())


def write_info(root: Path, info: dict) -> None:
    """Writes `meta/info.json`."""
    write_file(root / "meta" / "info.json", (json.dumps(info, indent=2, allow_nan=False) + "\n").encode())


def read_info(root: str | Path) -> dict:
    """Reads `meta/info.json`.

    Raises:
        FileNotFoundError: the folder holds no recording.
        ValueError: the file is damaged or of another format or version.
    """
    path = Path(root) / "meta" / "info.json"
    if not path.is_file():
        if published := address(root):
            raise FileNotFoundError(f"{published} is no recording, or is still being pushed")
        raise FileNotFoundError(f"{root} is no recording: {path} is missing. Make one by `pan record` or `pan import`")
    try:
        info = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or record again into another folder") from error
    found = (info.get("format"), info.get("version")) if isinstance(info, dict) else type(info).__name__
    if found != (FORMAT, VERSION):
        raise ValueError(f"{path}: expected format {FORMAT!r} version {VERSION}, got {found}")
    if reserved := [name for name in info.get("features", ()) if is_reserved(name)]:
        raise ValueError(f"{path}: the columns {reserved} are of a newer pan_hf; install it to read this recording")
    return info


def recording_folder(data: str | Path) -> Path:
    """The folder of a recording: `data` itself, or `data/` in it; what a Hub holds under that id, downloaded."""
    found = on_disk(data, "dataset")
    inside = found / "data"
    return inside if (inside / "meta" / "info.json").is_file() else found


def episode_path(root: Path, split: str, index: int) -> Path:
    """Where the episode of that number lies."""
    return root / "data" / split / f"episode_{index:06d}.parquet"


def episode_files(root: Path, split: str) -> dict[int, Path]:
    """The finished episodes of a split, by number, in order; also where a Hub made folders of many."""
    paths = (root / "data" / split).rglob("episode_*.parquet")
    return dict(sorted((int(path.stem.removeprefix("episode_")), path) for path in paths))


def read_summary(path: Path) -> tuple[int, dict[str, list[list[float]]]]:
    """Rows of an episode's file and the extremes of its vectors by column, without reading the rows.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        metadata = pq.read_metadata(path)
        return metadata.num_rows, json.loads(metadata.metadata[b"pan"])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run the same recording again") from error
