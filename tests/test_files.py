"""A folder is what it was or what it becomes, wherever a process that writes it is killed; nobody else's files go."""

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from pan_hf import files
from pan_hf.files import finish_writing, whole_file, whole_folder, write_file

OLD = {"config.json": "old", "model-00001-of-00002.safetensors": "old", "model.safetensors.index.json": "old"}
NEW = {"config.json": "new", "model.safetensors": "new", "tokenizer.json": "new"}
MINE = {"notes.md": "mine", ".git/HEAD": "ref", "logs/run.csv": "1"}


def put(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path) -> None:
    with whole_folder(folder) as temporary:
        put(temporary, NEW)


def calls_of(folder: Path, monkeypatch, stop_at: int) -> int:
    """Writes the folder; call `stop_at` of `os.replace`, `unlink`, `rmdir` and `rmtree` raises, as a process ends."""
    count = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count > stop_at:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", counted(os.replace))
        patch.setattr(files.Path, "unlink", counted(Path.unlink))
        patch.setattr(files.Path, "rmdir", counted(Path.rmdir))
        patch.setattr(files.shutil, "rmtree", counted(files.shutil.rmtree))
        try:
            write(folder)
        except KeyboardInterrupt:
            pass
    return count


def test_a_folder_is_old_or_new_wherever_writing_it_ends(tmp_path, monkeypatch):
    put(tmp_path / "probe", OLD | MINE)
    steps = calls_of(tmp_path / "probe", monkeypatch, stop_at=99)
    assert content(tmp_path / "probe") == NEW | MINE and steps > 6
    seen = set()
    for stop_at in range(steps):
        folder = tmp_path / str(stop_at) / "folder"
        put(folder, OLD | MINE)
        calls_of(folder, monkeypatch, stop_at)
        if "config.json" in content(folder):  # what a reader without pan_hf would take for whole
            assert content(folder) in (OLD | MINE, NEW | MINE)
        finish_writing(folder)
        seen.add(content(folder)["config.json"])
        assert content(folder) in (OLD | MINE, NEW | MINE)
        write(folder)
        assert content(folder) == NEW | MINE and os.listdir(folder.parent) == ["folder"]
    assert seen == {"old", "new"}


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "new") as temporary:
        put(temporary, NEW)
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    write(tmp_path / "new")
    assert content(tmp_path / "new") == NEW and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path):
    host = files._HOST
    (tmp_path / f".folder.{host}.99999999.pan.tmp").mkdir()
    (tmp_path / f".file.json.{host}.99999999.pan.tmp").write_text("half")
    (tmp_path / f".other.{host}.{os.getppid()}.pan.tmp").write_text("of a process that runs")
    (tmp_path / f".other.{host}-2.99999999.pan.tmp").write_text("of another host, where it may run")
    (tmp_path / ".notes.12.tmp").write_text("of another program")
    write(tmp_path / "folder")
    kept = {f".other.{host}.{os.getppid()}.pan.tmp", f".other.{host}-2.99999999.pan.tmp", ".notes.12.tmp", "folder"}
    assert set(os.listdir(tmp_path)) == kept


def test_hidden_folders_that_somebody_made_stay(tmp_path):
    put(tmp_path / ".folder.old", MINE)
    put(tmp_path / ".folder.tmp", MINE)
    write(tmp_path / "folder")
    assert content(tmp_path / "folder") == NEW
    assert content(tmp_path / ".folder.old") == content(tmp_path / ".folder.tmp") == MINE
    put(tmp_path / ".folder.ready", MINE)
    finish_writing(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"\.folder\.ready is in the way of writing .*rename it"):
        write(tmp_path / "folder")
    assert content(tmp_path / "folder") == NEW and content(tmp_path / ".folder.ready") == MINE


@pytest.mark.parametrize("place", [".folder.ready", "folder"])
@pytest.mark.parametrize("name", ["sub/config.json", "../private/config.json"])
def test_a_stranger_cannot_have_files_moved_out_of_a_folder_or_into_it(place, name, tmp_path):
    put(tmp_path / "private", MINE | {"config.json": "mine"})
    put(tmp_path / "folder", OLD)
    told = {"names": [name, "model.safetensors"], "replaced": ["*"]}
    put(tmp_path / ".folder.ready", {".content.json": json.dumps(told), "model.safetensors": "new"})
    for folder in (tmp_path / "folder", tmp_path / ".folder.ready"):
        (folder / "sub").mkdir() if folder.name != place else (folder / "sub").symlink_to(tmp_path / "private")
    (tmp_path / ".folder.ready" / "sub" / "config.json").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"\.folder\.ready is not of pan_hf: .* leads out of it .*Remove it"):
        finish_writing(tmp_path / "folder")
    assert content(tmp_path) == before


def test_an_old_copy_of_an_older_version_is_put_back_first(tmp_path):
    put(tmp_path / ".folder.old", OLD)
    put(tmp_path / ".folder.tmp", {"config.json": "half"})
    finish_writing(tmp_path / "folder")
    assert content(tmp_path / "folder") == OLD and os.listdir(tmp_path) == ["folder"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    put(tmp_path / "there" / "folder", OLD)
    (tmp_path / "link").symlink_to(tmp_path / "there" / "folder")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and content(tmp_path / "there" / "folder") == NEW


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_named_and_nothing_changes(tmp_path, number):
    put(tmp_path / "folder", OLD)
    write_file(tmp_path / "file", "old")
    for writing in (whole_folder(tmp_path / "folder"), whole_file(tmp_path / "file")):
        with pytest.raises(OSError, match="the disk is full.*make room and run the same again"), writing as temporary:
            (temporary if temporary.suffix != ".tmp" or not temporary.is_dir() else temporary / "a").write_text("half")
            raise OSError(number, os.strerror(number))
    assert content(tmp_path) == {f"folder/{name}": text for name, text in OLD.items()} | {"file": "old"}


def _write_slowly(folder: Path, text: str, started) -> None:
    with whole_folder(folder) as temporary:
        started.set()
        for name in NEW:
            (temporary / name).write_text(text)
            time.sleep(0.02)


@pytest.mark.slow
def test_two_writers_wait_for_one_another_and_a_killed_one_holds_up_nobody(tmp_path):
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        events = [context.Event(), context.Event()]
        writers = [
            context.Process(target=_write_slowly, args=(tmp_path / "folder", text, event))
            for text, event in zip("ab", events, strict=True)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert len(set(content(tmp_path / "folder").values())) == 1
    started = context.Event()
    killed = context.Process(target=_write_slowly, args=(tmp_path / "folder", "c", started))
    killed.start()
    started.wait()
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    files._cleaned.clear()
    write(tmp_path / "folder")
    assert content(tmp_path / "folder") == NEW and os.listdir(tmp_path) == ["folder"]
