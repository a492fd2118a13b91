"""Recordings of the same senses and actions as one, whose episodes keep their split and get a number anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from pan_hf.data.episodes import SPLITS, episode_files, episode_path, open_table, read_info, write_table
from pan_hf.data.info import write_counted
from pan_hf.data.whole import write_whole
from pan_hf.features import feature_of
from pan_hf.files import whole_file


def join(
    sources: Sequence[str | Path], output: str | Path, left_out: Mapping[str | Path, Sequence[int]] | None = None
) -> dict:
    """Writes recordings as one. Run again, it goes on after an interruption. Files of the first one are linked where
    the disk can, so they take no room.

    Args:
        sources: folders of finished recordings, one or more; frames a second, actors and all else are the first one's.
        output: folder of the new recording, new or empty, or what the same recordings left there.
        left_out (*optional*): by source, numbers of episodes that are left out.

    Returns:
        What `meta/info.json` holds.

    Raises:
        FileNotFoundError: a source is no recording.
        ValueError: they have other senses, actions or actors, one is not finished, or `output` holds something else.
            Nothing is written then.
    """
    roots = [Path(source) for source in sources]
    infos = [read_info(root) for root in roots]
    first = infos[0]
    for root, info in zip(roots, infos, strict=True):
        if not info["complete"]:
            raise ValueError(f"The recording in {root} is not finished; finish it by the command that began it.")
        if info.get("actors") != first.get("actors"):
            raise ValueError(f"{root} has the actors {info.get('actors')}, {roots[0]} has {first.get('actors')}.")
    info = {key: value for key, value in first.items() if key != "requested"} | {"complete": False}
    info["features"] = _merged(roots, [each["features"] for each in infos])
    environments = {entry["id"]: entry for each in reversed(infos) for entry in each["environments"]}
    info["environments"] = list(environments.values())
    without = {str(Path(source)): sorted(numbers) for source, numbers in (left_out or {}).items()}
    info["source"] = {"kind": "joined", "of": [str(root) for root in roots], "left_out": without}
    write = partial(_write, roots, without, info=info)
    return write_whole(output, info, write, "these recordings", "the same")


def _merged(roots: list[Path], features: list[dict[str, dict]]) -> dict[str, dict]:
    """Features that hold for all: the wider bounds count."""
    kinds = [{name: feature_of(one) for name, one in each.items()} for each in features]
    common = [{name: one.common for name, one in each.items()} for each in kinds]
    for root, each in zip(roots, common, strict=True):
        if each != common[0]:
            raise ValueError(f"{root} has the senses and actions {each}, {roots[0]} has {common[0]}.")
    merged = dict(features[0])
    for others in kinds[1:]:
        merged = {name: feature_of(merged[name]).merged(other) for name, other in others.items()}
    return merged


def _write(roots: list[Path], left_out: Mapping[str, Sequence[int]], output: Path, info: dict) -> None:
    beyond = 0
    for root in roots:
        files = {split: episode_files(root, split) for split in SPLITS}
        for split, paths in files.items():
            for index, path in paths.items():
                target = episode_path(output, split, beyond + index)
                if index not in left_out.get(str(root), ()) and not target.exists():
                    _renumber(path, target, beyond + index) if beyond else _link(path, target)
        beyond += 1 + max((index for paths in files.values() for index in paths), default=-1)
    write_counted(output, info, info["features"], is_complete=True)


def _link(path: Path, target: Path) -> None:
    """The same file under another name; a copy where the disk has no links. Episodes are never written in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), target)
    except OSError:
        with whole_file(target) as temporary:
            shutil.copyfile(path, temporary)


def _renumber(path: Path, target: Path, index: int) -> None:
    table = open_table(path).read(use_threads=False)
    place = table.schema.get_field_index("episode_index")
    numbers = pa.array([index] * table.num_rows, table.schema.field(place).type)
    write_table(target, table.set_column(place, table.schema.field(place), numbers))
