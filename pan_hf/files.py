"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa


def write_file(path: str | os.PathLike, content: str | bytes | pa.Buffer) -> Path:
    """Writes a file whole or not at all; a text is written as UTF-8.

    Returns:
        `Path`: the file.

    Raises:
        OSError: it cannot be written; a full disk is named as such.
    """
    with whole_file(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file to fill, which then takes the name `path`: a reader never sees half a file. If filling it
    fails, all stays as it was.

    Raises:
        OSError: it cannot be written; a full disk is named as such.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        message = f"the disk is full: {path} does not fit, and {free} bytes are free. "
        message += "What was finished is kept; make room and run the same again"
        raise OSError(error.errno, message) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder to fill, which then takes the name `folder`; if filling it fails, all stays as it was."""
    folder = Path(folder)
    temporary, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    for stale in (temporary, old):
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
