"""A recording that is made of other data appears whole: written beside its folder, and renamed when all is in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pan_hf.data.episodes import SPLITS, episode_files, read_info, write_info
from pan_hf.files import missing_above, unmake

COUNTED = ("features", "episodes", "frames", "complete")  # of `meta/info.json`, what is known when all is written


def write_whole(output: str | Path, info: dict, write: Callable[[Path], None], what: str, again: str) -> dict:
    """Has a recording written into `output`, which appears when all is there.

    Args:
        output: folder of the recording, new or empty, or what the same settings left there.
        info: what `meta/info.json` holds before the first episode; the settings are all of it but `COUNTED`.
        write: writes into the folder it is given the episodes that are not there yet, and counts them into `info`.
        what, again: what is made, and what to run to go on, as messages name them.

    Returns:
        `info`, or, where the same was finished before, what is there.

    Raises:
        ValueError: `output` holds something else, or an episode is not as it must be; then nothing is left of it.
        KeyboardInterrupt: Ctrl-C; the finished episodes are kept beside `output`, and the same settings go on.
    """
    root = Path(output)
    before = _made_before(root, info, what)
    if before is not None:
        return before
    partial, above = root.with_name(f".{root.name}.partial"), missing_above(root)
    _begin(partial, info)
    try:
        write(partial)
    except (ValueError, FileNotFoundError):
        unmake(partial, above)
        raise
    except KeyboardInterrupt:
        done = sum(len(episode_files(partial, split)) for split in SPLITS)
        raise KeyboardInterrupt(f"Stopped after {done} episodes; run {again} again to go on") from None
    os.replace(partial, root)
    return info


def _made_before(root: Path, info: dict, what: str) -> dict | None:
    """What the same settings left in `root`, or None where there is nothing."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    if (root / "meta" / "info.json").is_file():
        before = read_info(root)
        if _settings(before) == _settings(info):
            return before
    raise ValueError(f"{root} holds something else than {what}; choose a new or empty folder")


def _settings(info: dict) -> dict:
    settings = {name: value for name, value in info.items() if name not in COUNTED}
    return json.loads(json.dumps(settings))  # as it is read from the file


def _begin(partial: Path, info: dict) -> None:
    """An empty folder to write into, or what the same settings left when they were interrupted."""
    if partial.exists() and not (
        (partial / "meta" / "info.json").is_file() and _settings(read_info(partial)) == _settings(info)
    ):
        shutil.rmtree(partial)
    for stale in partial.glob("data/*/.*.tmp"):
        stale.unlink()  # of a run that was killed while it wrote
    write_info(partial, info)
