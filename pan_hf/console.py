"""What commands and functions say while they work: one line on stderr for each thing that takes time.

In a terminal the line is written over itself. In a file or a pipe it is written every ten seconds, and at the end.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

IN_A_TERMINAL, ELSEWHERE = 0.2, 10.0  # seconds between two writes of a line


class Progress:
    """How far a task is: `task: 12 of 40 unit, 3.1 a second, note`, or `..., 3.1 s each, note` where it is slow.

    Args:
        task (`str`): what is done, as in "recording".
        total (`int`): of how many it is done.
        unit (`str`): what is counted, in the plural.
        is_shown (`bool`): nothing is written otherwise.
        done (`int`): what was done before.
    """

    def __init__(self, task: str, total: int, unit: str, is_shown: bool = True, done: int = 0):
        self.task, self.total, self.unit, self.is_shown = task, total, unit, is_shown
        self.first = self.done = done
        self.note = ""
        self.begun = self.written = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def update(self, done: int, note: str | None = None) -> None:
        """Says how many are done, and what else is worth a word; writes it when it is time to."""
        self.done, self.note = done, self.note if note is None else note
        if time.monotonic() - self.written >= (IN_A_TERMINAL if sys.stderr.isatty() else ELSEWHERE):
            self._write("\r" if sys.stderr.isatty() else "\n")

    def close(self) -> None:
        """Writes the line for the last time."""
        self._write("\n")

    def _write(self, end: str) -> None:
        if not self.is_shown:
            return
        self.written = time.monotonic()
        rate = (self.done - self.first) / max(self.written - self.begun, 1e-9)
        pace = f", {1 / rate:.3g} s each" if 0 < rate < 1 else f", {rate:.3g} a second"
        line = f"{self.task}: {self.done} of {self.total} {self.unit}{pace if rate > 0 else ''}"  # none is done yet
        line += f", {self.note}" if self.note else ""
        if sys.stderr.isatty():
            line = f"{line[: shutil.get_terminal_size().columns - 1]}\x1b[K"  # and clear what was longer before
        print(line, end=end, file=sys.stderr, flush=True)


def track(items: Collection[Item], task: str, unit: str, is_shown: bool = True) -> Iterator[Item]:
    """The items, with a line that counts them."""
    with Progress(task, len(items), unit, is_shown) as progress:
        for number, item in enumerate(items, start=1):
            yield item
            progress.update(number)


@contextmanager
def without_bars(downloads: bool = False) -> Iterator[None]:
    """Transformers shows no bar inside: reading or writing a checkpoint takes a moment, and has no line of its own.

    Args:
        downloads (`bool`): nor do huggingface_hub and datasets, whose bars are of what may take long.
    """
    from huggingface_hub import utils as hub
    from transformers.utils import logging as transformers  # with torch, which `pan --help` does without

    bars = [
        (transformers.is_progress_bar_enabled(), transformers.disable_progress_bar, transformers.enable_progress_bar)
    ]
    if downloads:
        bars.append((not hub.are_progress_bars_disabled(), hub.disable_progress_bars, hub.enable_progress_bars))
    if downloads and (
        datasets := sys.modules.get("datasets")
    ):  # it takes a second to import, which nobody has to wait
        is_on = not datasets.are_progress_bars_disabled()
        bars.append((is_on, datasets.disable_progress_bars, datasets.enable_progress_bars))
    bars = [bar for bar in bars if bar[0]]  # those that are off already stay so
    for _, disable, _ in bars:
        disable()
    try:
        yield
    finally:
        for _, _, enable in bars:
            enable()


def speak_to_users() -> None:
    """Makes this process say what its user can act on: a warning is a line without the code that gave it, and what is
    deprecated among libraries is between them and us. For commands, not for a library in another's process."""
    warnings.showwarning = lambda message, *_where, **_how: print(f"Warning: {message}", file=sys.stderr, flush=True)
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    for handler in logging.getLogger("transformers").handlers:  # on the handler: its loggers hand their records up
        handler.addFilter(lambda record: "deprecated" not in record.getMessage())
