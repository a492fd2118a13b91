"""Processes beside this one, which end when it ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any

_held: Callable[[], Any]  # of a process that `call_in_fork` began


def is_forked() -> bool:
    """Whether a new process begins as a copy of this one (Linux, before Python 3.14)."""
    return multiprocessing.get_context().get_start_method() == "fork"


def call_in_fork(function: Callable[[], Any]) -> Any:
    """What `function` returns, called in a copy of this process."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, context, _hold, (function,)) as pool:
        return pool.submit(_call_held).result()


def _hold(function: Callable[[], Any]) -> None:
    global _held
    end_with_parent()
    _held = function


def _call_held() -> Any:
    return _held()


def end_with_parent() -> None:
    """Called in a worker: it ends at once when the process that began it is killed. A pool's workers would else wait
    for work for ever, for they hold the writing end of its queue themselves."""
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # a worker has one
    wait([parent.sentinel])
    os._exit(1)
