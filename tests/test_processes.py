"""A command that is killed leaves no process behind."""

import os
import signal
from pathlib import Path

import pytest
from forked import is_gone, run_forked

from pan_hf.processes import call_in_fork


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are not listed in /proc")
def test_what_a_killed_process_had_called_in_a_fork_ends_with_it(tmp_path):
    def kill_parent():
        (tmp_path / "process").write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGKILL)

    assert run_forked(lambda: call_in_fork(kill_parent), tmp_path).returncode == -signal.SIGKILL
    assert is_gone(int((tmp_path / "process").read_text()))
