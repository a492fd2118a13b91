"""`benchmarks/kills.py` in miniature: what writes a checkpoint, a recording or a report is killed or finds the disk
full, and loses nothing."""

import random

import pytest

from benchmarks import kills


@pytest.mark.slow
def test_a_kill_and_a_full_disk_lose_nothing(tmp_path):
    base, draw = kills.make_base(tmp_path / "base"), random.Random(0)
    together, apart, doubled = kills.COMMANDS[3:6]
    recorded, reported = kills.COMMANDS[0], kills.COMMANDS[-1]
    rows = {
        "together": kills.kill(base, together, 4, draw, tmp_path / "together"),
        "apart": kills.kill(base, apart, 4, draw, tmp_path / "apart"),
        "doubled": kills.kill(base, doubled, 2, draw, tmp_path / "doubled"),
        "two": kills.two_writers(base, 2, draw, tmp_path / "two"),
        "full": kills.fill_disk(base, together, tmp_path / "full", every=80),
        "recorded": kills.fill_disk(base, recorded, tmp_path / "recorded", every=20),
        "reported": kills.fill_disk(base, reported, tmp_path / "reported", every=5),
    }
    for name, counts in rows.items():
        assert not any(counts[key] for key in ("lost", "failed again", "other", "left over")), (name, counts)
        assert sum(counts[key] for key in ("before", "between", "after")) == counts["kills"] > 1
