"""Files and folders that are written whole or not at all, by one process at a time.

A file is written beside its place and renamed. A folder that exists takes three steps, and a kill may fall into any:

1. Everything is written into `.NAME.HOST.PID.pan.tmp` beside the folder. A full disk ends here, and nothing
   has changed.
2. That becomes `.NAME.ready`, in one rename. From now on the new content counts.
3. Its files move into the folder. The files that say what the folder is (`config.json`) go first and come last, so
   that no reader takes new weights for those of an old configuration.

Whoever opens or writes the folder next goes on with step 3 (`finish_writing`). A new folder is a single rename. What
else lies in a folder, notes or `.git`, stays. Writers wait for one another; the system ends the wait if one dies.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

if TYPE_CHECKING:
    import pyarrow as pa

try:
    import fcntl
except ImportError:  # Windows; writers do not wait for one another there
    fcntl = None  # type: ignore[assignment]  # a module

CONFIGURATIONS = ("config.json", "processor_config.json", "adapter_config.json")
# weights that lack in the new content would be loaded in the place of the new ones
WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json")
_CONTENT = ".content.json"  # names of all files of a folder that is ready
_HOST = re.sub(r"\W", "-", socket.gethostname())
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_writing: set[Path] = set()  # temporary folders of this process
_locks: set[Path] = set()  # parents that this process has locked
_turn = threading.RLock()
_cleaned: set[Path] = set()  # folders in which this process has looked for what others left


def missing_above(folder: Path) -> list[Path]:
    """The folders that one would lie in and that are not there yet, the innermost first."""
    return [above for above in folder.absolute().parents if not above.exists()]


def unmake(folder: Path, above: Sequence[Path]) -> None:
    """Removes a folder, and those `above` it that then hold nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # one holds something else
        for parent in above:
            parent.rmdir()


def read_json(path: str | os.PathLike, kind: type = dict, may_lack: bool = False) -> Any:
    """The content of a JSON file, a dict or what else `kind` says; an empty one where the file `may_lack` and does.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is not JSON, is nested too deeply, or holds something else; the message names the file.
    """
    path = Path(path)
    if may_lack and not path.exists():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # brackets nested a thousand deep exhaust the parser
        raise ValueError(f"{path} is damaged: it is not JSON ({error}). Restore it, or write it anew.") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path}: expected a {kind.__name__}, got {type(content).__name__}.")
    return content


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


def holds_nothing(folder: str | os.PathLike) -> bool:
    """Whether a folder is absent or without files; those that a killed process did not finish are none."""
    folder = Path(folder)
    within = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return not folder.is_file() and all(fnmatch.fnmatch(path.name, ".*.pan.tmp") for path in within)


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file to fill, which then takes the name `path`: a reader never sees half a file. If filling it
    fails, all stays as it was.

    Raises:
        OSError: it cannot be written; a full disk is named as such.
    """
    path = Path(path)
    temporary = _temporary(path)
    with _naming_a_full_disk(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(path.parent)
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: str | os.PathLike, replaced: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder to fill, whose files then take their places in `folder`; if filling it fails, all stays as it
    was. A second process that writes the same folder waits meanwhile.

    Args:
        folder: made if absent; files in it that the new content lacks stay, weights of a model apart.
        replaced: patterns of names of further files that go where the new content lacks them.

    Raises:
        ValueError: `folder` is a file, or `.NAME.ready` beside it is somebody's own.
        OSError: it cannot be written; a full disk is named as such.
    """
    folder = Path(os.path.realpath(folder))
    if folder in _writing:  # whoever fills a temporary folder calls what fills folders
        yield folder
        return
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent), _naming_a_full_disk(folder):
        _finish(folder)
        if (ready := _beside(folder, "ready")).exists():
            raise ValueError(f"{ready} is in the way of writing {folder}, and is not of pan_hf; rename it.")
        _remove_stale(folder.parent)
        temporary = _temporary(folder)
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had the same number
        temporary.mkdir()
        _writing.add(temporary)
        try:
            yield temporary
            if not folder.exists() or not any(folder.iterdir()):
                os.replace(temporary, folder)
                return
            names = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
            content = json.dumps({"names": names, "replaced": [*WEIGHTS, *replaced]})
            (temporary / _CONTENT).write_text(content)
            os.replace(temporary, ready)
            _finish(folder)
        finally:
            _writing.discard(temporary)
            shutil.rmtree(temporary, ignore_errors=True)


def finish_writing(folder: str | os.PathLike) -> None:
    """Goes on where a process was killed while it wrote a folder; does nothing where none was."""
    folder = Path(os.path.realpath(folder))
    if folder not in _writing and (_beside(folder, "ready").exists() or _beside(folder, "old").exists()):
        with _locked(folder.parent):
            _finish(folder)


def _finish(folder: Path) -> None:
    """The last step of writing a folder, from wherever it had come to. Somebody's own folders of such names stay."""
    old, ready = _beside(folder, "old"), _beside(folder, "ready")
    # of versions before 0.2, which moved the old folder out of the way of the new one
    if any((old / name).is_file() for name in CONFIGURATIONS):
        shutil.rmtree(old) if folder.exists() else os.replace(old, folder)
        shutil.rmtree(_beside(folder, "tmp"), ignore_errors=True)
    if (ready / _CONTENT).is_file():
        _move(ready, folder, read_json(ready / _CONTENT))
        for emptied in filter(Path.is_dir, ready.iterdir()):
            shutil.rmtree(emptied)
        (ready / _CONTENT).unlink()
    if ready.is_dir() and not any(ready.iterdir()):
        ready.rmdir()


def _move(ready: Path, folder: Path, content: dict[str, Any]) -> None:
    """Moves what a kill has left in `ready` of its content into the folder.

    Raises:
        ValueError: a link, or a name such as `../x`, leads out of one of the two, as in a stranger's archive. Nothing
            has been moved then.
    """
    for name in content["names"]:
        if not all((place / name).parent.resolve().is_relative_to(place) for place in (ready, folder)):
            raise ValueError(f"{ready} is not of pan_hf: its {name!r} leads out of it or of {folder}. Remove it.")
    names = [path for path in content["names"] if (ready / path).exists()]
    configurations = [name for name in names if name in CONFIGURATIONS]
    for name in configurations:
        (folder / name).unlink(missing_ok=True)
    if any(_matches(name, WEIGHTS) for name in content["names"]):
        for path in folder.glob("*"):
            if _matches(path.name, content["replaced"]) and path.name not in content["names"]:
                path.unlink()
    for name in [*(name for name in names if name not in configurations), *configurations]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(ready / name, folder / name)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")


def _temporary(path: Path) -> Path:
    return _beside(path, f"{_HOST}.{os.getpid()}.pan.tmp")


def _remove_stale(folder: Path) -> None:
    """Removes what killed processes of this host left in a folder; those of other hosts may be at work."""
    if folder in _cleaned:  # a recording has thousands of episodes in one folder
        return
    _cleaned.add(folder)
    for stale in folder.glob(f".*.{_HOST}.*.pan.tmp"):
        process = stale.name.split(".")[-3]
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes other processes wait that lock the same folder. The lock is on the folder itself, so no file is left."""
    with _turn:
        if fcntl is None or folder in _locks:
            yield
            return
        descriptor = os.open(folder, os.O_RDONLY)
        _locks.add(folder)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks on folders
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            _locks.discard(folder)
            os.close(descriptor)


@contextmanager
def _naming_a_full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
            number = int(found[1])
        if number not in _FULL:
            raise
        free = shutil.disk_usage(path.parent).free
        message = f"the disk is full ({os.strerror(number)}): {path} does not fit, and {free} bytes are free. "
        message += "What was finished is kept; make room and run the same again"
        raise OSError(number, message) from error
