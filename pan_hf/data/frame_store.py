"""All frames of a split as one array: in memory where they are few, mapped from a file where they are many.

Episodes keep their frames as PNG; decoding them costs more than a training step can spare, so they are decoded once.
A large recording's frames then stand in `<recording>/frames/<split>-<sense>-<digest>.npy`, 12 KiB for one of 64x64;
the operating system keeps in memory what is being used and drops it when memory is short. The digest is of the
episodes' files, so that a file is used only for the very recording it was made from.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# Frames of a split up to this many bytes are held in memory.
IN_MEMORY_BYTES = 2**30


class FrameArrays:
    """The arrays of a split's image senses.

    Args:
        root: folder of the recording; split: of it.
        files: of the split's episodes, in order.
        kinds: shape `(N, C, H, W)` and type by sense.
        in_memory: bytes of all together up to which they are held in memory.
    """

    def __init__(self, root: Path, split: str, files: Iterable[Path], kinds: Mapping[str, tuple], in_memory: int):
        self._kinds = dict(kinds)
        self._paths: dict[str, Path] = {}
        if sum(num_bytes(*kind) for kind in kinds.values()) > in_memory:
            digest = _digest(files)
            self._paths = {name: root / "frames" / f"{split}-{name}-{digest}.npy" for name in kinds}

    @contextmanager
    def filling(self) -> Iterator[dict[str, np.ndarray]]:
        """Arrays that are still to be filled, by sense; those whose file is there already are not among them. What
        was filled is kept when the body ends well, and forgotten when it raises.

        Raises:
            OSError: the disk is too small for them.
        """
        self.arrays: dict[str, np.ndarray] = {}
        temporary = {}
        try:
            for name, kind in self._kinds.items():
                path = self._paths.get(name)
                if path is None:
                    self.arrays[name] = np.empty(*kind)
                elif not path.exists():
                    temporary[name] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                    self.arrays[name] = _create(temporary[name], *kind)
            yield self.arrays
            for name, path in temporary.items():
                self.arrays.pop(name).flush()  # type: ignore[attr-defined]  # a memmap
                self._replace(name, path)
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)
        # copy-on-write: nothing that is done to the array reaches the file
        self.arrays |= {name: np.load(path, mmap_mode="c") for name, path in self._paths.items()}

    def _replace(self, name: str, temporary: Path) -> None:
        """Gives a filled file its name, and removes what was made from the recording as it was before."""
        path = self._paths[name]
        for stale in path.parent.glob(f"{path.name.rpartition('-')[0]}-*.npy"):
            stale.unlink()
        os.replace(temporary, path)


def num_bytes(shape: tuple[int, ...], dtype: type) -> int:
    """Of an array."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _create(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    """A file of that shape whose bytes are all there: writing to a mapped file that the disk cannot hold would end the
    process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = num_bytes(shape, dtype), shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the frames of this recording need {needed / 2**20:.0f} MiB in {path.parent}, and {free / 2**20:.0f} MiB "
            "are free; make room, or hold them in memory: load_trajectories(..., in_memory=BYTES)",
        )
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    return array


def _digest(files: Iterable[Path]) -> str:
    """Of the names, sizes and times of files."""
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
