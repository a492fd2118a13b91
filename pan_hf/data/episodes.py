"""The recording's format, as it is written: episodes as parquet files, and `meta/info.json`."""

from __future__ import annotations

import json
import os
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pan_hf.features import ACTION, action_column, action_parts, feature_of
from pan_hf.files import read_json, write_file
from pan_hf.hub import address, on_disk

FORMAT = "pan-trajectories"
VERSION = 1
SPLITS = ("train", "test")
UNKNOWN_SEED = -1
_COLUMN = re.compile(r"observation\.\w+|action(\.\w+)?")
_MOST_ROWS = 2**22  # of an episode
_MARK = b"PANF"  # before a file's footer, then its CRC-32: parquet has checksums of pages only, and reads by offsets
_MARK_BYTES = len(_MARK) + 4
_END_BYTES = 8  # of a parquet file: the length of its footer, and "PAR1"


@dataclass
class Episode:
    """One episode as it is played: T + 1 observations, T actions and what followed each.

    Args:
        environment: id of the environment.
        index: number of the episode in its recording.
        seed: what the environment was reset with, or `UNKNOWN_SEED`.
        task: the text that holds for the whole episode, or "".
        observations: by sense, a list of uint8 `(H, W, 3)` images, float32 `(D,)` vectors or strings; None where an
            optional sense is absent.
        actions: ints, float32 `(D,)` vectors or strings; dicts of these where an action has several parts.
        rewards: reward after each action, of all actors together.
        is_done: whether the last action ended the episode in the world.
        is_truncated: whether the episode was cut short by a limit.
        action_masks: by part of the action, bool `(n,)` at each observation: the choices that are allowed there.
        actor_rewards: by actor, the reward after each action.
        actor_dones: by actor, whether its part of the episode has ended in the world.
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
    action_masks: dict[str, list[np.ndarray]] = field(default_factory=dict)
    actor_rewards: dict[str, list[float]] = field(default_factory=dict)
    actor_dones: dict[str, list[bool]] = field(default_factory=dict)

    def column(self, name: str) -> list:
        """The recorded values of `observation.<sense>`, `action` or `action.<part>`."""
        if name.startswith("observation."):
            return self.observations[name.removeprefix("observation.")]
        part = name.removeprefix(f"{ACTION}.")
        return self.actions if part == ACTION else [action[part] for action in self.actions]


def mask_columns(features: dict[str, dict]) -> dict[str, str]:
    """By column of masks, the column of the action that they are of. Args: features, as in `meta/info.json`."""
    columns = (action_column(part) for part, action in action_parts(features).items() if action.is_masked)
    return {name.replace(ACTION, "action_mask", 1): name for name in columns}


def episode_schema(features: dict[str, dict], actors: Sequence[str] = ()) -> pa.Schema:
    """The columns of an episode's file, with the metadata by which `datasets` knows images as images.

    Args:
        features: as in `meta/info.json`.
        actors: those who have a reward and an end of their own.
    """
    import datasets

    columns = {name: feature_of(described).column_type() for name, described in features.items()}
    for name, action in mask_columns(features).items():
        columns[name] = datasets.Sequence(datasets.Value("bool"), length=features[action]["n"])
    for names, kind in (
        (("next.reward", "timestamp", *(f"next.reward.{actor}" for actor in actors)), "float32"),
        (("next.done", *(f"next.done.{actor}" for actor in actors), "next.truncated", "action_is_pad"), "bool"),
        (("episode_index", "frame_index", "seed"), "int64"),
        (("task", "environment"), "string"),
    ):
        columns |= {name: datasets.Value(kind) for name in names}
    return datasets.Features(columns).arrow_schema


def episode_table(episode: Episode, features: dict[str, dict], schema: pa.Schema, fps: float) -> pa.Table:
    """An episode as `(T + 1)` rows of `schema`."""
    num_rows = len(episode.actions) + 1
    last = [False] * (num_rows - 2)
    columns: dict[str, Any] = {}
    for name, feature in ((name, feature_of(described)) for name, described in features.items()):
        # after the last observation nothing is done
        values = episode.column(name) + ([] if name.startswith("observation.") else [feature.blank()])
        columns[name] = [None if value is None else feature.stored(value) for value in values]
    columns |= _mask_rows(episode, features)
    for actor, rewards in episode.actor_rewards.items():
        columns |= {f"next.reward.{actor}": [*rewards, 0.0]}
        columns |= {f"next.done.{actor}": [*episode.actor_dones[actor], False]}
    columns |= {
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


def _mask_rows(episode: Episode, features: dict[str, dict]) -> dict[str, list[np.ndarray]]:
    """By column of masks, those of each row; where an environment told none, all is allowed."""
    parts = {name: action.removeprefix(f"{ACTION}.") for name, action in mask_columns(features).items()}
    if unexpected := sorted(set(episode.action_masks) - set(parts.values())):
        raise ValueError(
            f"{episode.environment}, episode {episode.index}: it told an action mask of {unexpected} and none after "
            "the first reset, which says what is recorded; tell one after every reset"
        )
    rows = {}
    for name, part in parts.items():
        told = episode.action_masks.get(part, [])
        missing = len(episode.actions) + 1 - len(told)
        rows[name] = [*told, *[np.ones(features[action_column(part)]["n"], bool)] * missing]
    return rows


def extremes(episode: Episode, features: dict[str, dict]) -> dict[str, list]:
    """What is known of each column without its rows, by name: of vectors the smallest and largest of each number."""
    columns = {name: [value for value in episode.column(name) if value is not None] for name in features}
    summaries = {name: feature_of(features[name]).summary(values) for name, values in columns.items() if values}
    return {name: summary for name, summary in summaries.items() if summary is not None}


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table to a parquet file that appears whole or not at all. Its pages and its footer have checksums: a
    flipped bit would else be read as other data."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_statistics=False, write_page_checksum=True)
    data = memoryview(sink.getvalue())
    end = len(data) - _END_BYTES - _footer_length(data[-_END_BYTES:])
    write_file(path, b"".join([data[:end], _mark(data[end:]), data[end:]]))


def _footer_length(end: bytes | memoryview) -> int:
    """Bytes of the footer of a parquet file, which its last `_END_BYTES` tell."""
    return int.from_bytes(end[:4], "little")


def _mark(footer: bytes | memoryview) -> bytes:
    """What stands before a footer, which is given with the end of the file."""
    return _MARK + zlib.crc32(footer).to_bytes(4, "little")


def read_metadata(path: Path) -> pq.FileMetaData:
    """The footer of an episode's file, verified. Files of before, and of other writers, have no checksum of it; that
    is said once.

    Raises:
        ValueError, OSError, pyarrow.ArrowException: the file is damaged.
    """
    with open(path, "rb") as file:
        size = file.seek(-_END_BYTES, os.SEEK_END) + _END_BYTES
        length = _footer_length(file.read()) + _END_BYTES
        file.seek(max(size - length - _MARK_BYTES, 0))
        rest = file.read()
    mark, footer = rest[:-length], rest[-length:]
    if not mark.startswith(_MARK):
        _warn_of_no_checksums(path.parents[2])
    elif mark != _mark(footer):
        raise ValueError("its footer does not fit the checksum of it")
    metadata = pq.read_metadata(pa.BufferReader(footer))
    if metadata.num_rows > _MOST_ROWS:  # a few bytes can stand for any number of equal rows
        raise ValueError(f"it says that it holds {metadata.num_rows} rows; expected at most {_MOST_ROWS}")
    return metadata


def open_table(path: Path) -> pq.ParquetFile:
    """A parquet file whose footer is verified now, and its pages as they are read, see `read_metadata`.

    Raises:
        ValueError, OSError, pyarrow.ArrowException: the file is damaged, here or when it is read.
    """
    return pq.ParquetFile(path, metadata=read_metadata(path), page_checksum_verification=True)


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of an episode's file, verified.

    Raises:
        ValueError: it is damaged, or lacks one of them.
    """
    try:
        # One thread a file: files are many and small.
        return open_table(path).read(list(columns), use_threads=False).select(list(columns)).combine_chunks()
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged or does not fit meta/info.json ({error}); record it again") from error


@cache
def _warn_of_no_checksums(root: Path) -> None:
    warnings.warn(
        f"{root} has episodes without a checksum of their footer, as earlier versions and other programs write: a "
        "flipped bit in them may not be noticed. Record or import it again to have them",
        stacklevel=5,
    )


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
    info = read_json(path)
    version = info.get("format"), info.get("version")
    if version != (FORMAT, VERSION):
        raise ValueError(f"{path}: expected format {FORMAT!r} version {VERSION}, got {version}")
    features = info.get("features")
    # names of senses become names of files
    if not isinstance(features, dict) or (wrong := [name for name in features if not _COLUMN.fullmatch(name)]):
        names = "no dict" if not isinstance(features, dict) else wrong
        raise ValueError(f"{path}: `features` has {names}; expected observation.<word>, action or action.<word>")
    kinds = {name: isinstance(one, dict) and one.get("kind") for name, one in features.items()}
    if wrong := [name for name, kind in kinds.items() if not isinstance(kind, str)]:
        raise ValueError(f"{path}: `features` tells no kind of {wrong}; expected a dict with `kind`, such as 'vector'")
    return info


def recording_folder(data: str | Path) -> Path:
    """The folder of a recording: `data` itself, or `data/` in it; what a Hub holds under that id, downloaded."""
    folder = on_disk(data, "dataset")
    inside = folder / "data"
    return inside if (inside / "meta" / "info.json").is_file() else folder


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
        metadata = read_metadata(path)
        return metadata.num_rows, json.loads(metadata.metadata[b"pan"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run the same recording again") from error
