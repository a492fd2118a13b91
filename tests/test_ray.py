"""Two workers of a real Ray cluster. Skipped where Ray is not installed; `make test-extras` has it."""

import pytest
from test_precompute import GOAL, content
from tiny_worlds import board_world

from pan_hf.evaluation.precompute import precompute

pytest.importorskip("ray", reason="Ray is not here: pip install 'pan_hf[ray]'")


@pytest.mark.slow
def test_ray_gives_the_same_content_as_one_process_and_is_told_when_it_is_not_there(tmp_path):
    board = board_world(tmp_path)
    where = {"frames": 8, "depth": 2, "progress": False, **GOAL}
    one = precompute(board.model, board.data, cache=tmp_path / "one", **where)
    two = precompute(board.model, board.data, cache=tmp_path / "two", workers=2, ray="local", **where)
    assert content(tmp_path / "one") == content(tmp_path / "two") and one["entries"] == two["entries"] > 0
    again = precompute(board.model, board.data, cache=tmp_path / "two", workers=2, ray="local", **where)
    assert again["new_entries"] == 0
    for place in ("auto", "127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(OSError, match="no Ray cluster"):
            precompute(board.model, board.data, cache=tmp_path / "none", ray=place, **where)
    with pytest.raises(ValueError, match="no address of a cluster"):
        precompute(board.model, board.data, cache=tmp_path / "none", ray="nonsense", **where)
