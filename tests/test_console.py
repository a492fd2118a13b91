"""What is said while something takes time: a line of it, and nothing that a user cannot act on."""

import sys
import warnings

import pytest

from pan_hf import console
from pan_hf.console import Progress, speak_to_users, track, without_bars


class Terminal:
    """stderr of a terminal, which remembers what was written."""

    def __init__(self):
        self.written = ""

    def write(self, text: str) -> None:
        self.written += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_line_at_the_end_and_no_carriage_return(capsys):
    assert list(track(range(3), "reading", "files")) == [0, 1, 2]
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("reading: 3 of 3 files, ")
    assert len(said.err.splitlines()) == 1 and "\r" not in said.err


def test_a_file_gets_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(console, "ELSEWHERE", 0.0)
    with Progress("reading", 9, "files", done=4) as line:
        line.update(5, "all well")
    assert [text.split(",")[0] for text in capsys.readouterr().err.splitlines()] == ["reading: 5 of 9 files"] * 2


def test_a_terminal_has_one_line_written_over(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(console, "IN_A_TERMINAL", 0.0)
    for _ in track(range(3), "reading", "files"):
        pass
    assert terminal.written.count("\r") == 3 and terminal.written.count("\n") == 1


def test_without_progress_nothing_is_said(capsys):
    list(track(range(3), "reading", "files", is_shown=False))
    assert capsys.readouterr() == ("", "")


def test_a_slow_task_says_how_long_one_takes(capsys):
    with Progress("planning", 4, "episodes") as line:
        line.begun -= 10
        line.update(2)
    assert capsys.readouterr().err == "planning: 2 of 4 episodes, 5 s each\n"


def test_where_nothing_is_done_yet_no_pace_is_told(capsys):
    Progress("planning", 4, "episodes").close()
    assert capsys.readouterr().err == "planning: 0 of 4 episodes\n"


def test_bars_are_off_inside_and_as_they_were_after():
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    with without_bars():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled() == was_on


@pytest.mark.slow
def test_a_command_warns_in_a_line_and_not_of_what_is_deprecated(tmp_path):
    from forked import run_forked

    def warn():
        speak_to_users()
        warnings.warn("the horizon is left out", stacklevel=1)
        warnings.warn("use another name", FutureWarning, stacklevel=1)

    assert run_forked(warn, tmp_path).said == "Warning: the horizon is left out\n"
