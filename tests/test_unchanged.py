"""`benchmarks/unchanged.py` sees any difference between two runs, and none where there is none."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import unchanged

LOG = [{"loss": 2.5, "grad_norm": 0.1, "step": 1}, {"loss": 2.25, "grad_norm": 0.2, "step": 2}]
TENSORS = {"senses.camera.weight": torch.tensor([1.0, 0.0]), "queries.camera": torch.tensor([[1.0]])}
END = {"train_runtime": 3.0, "step": 2}  # of times, which nobody expects to be equal


def save_run(folder, log=LOG, tensors=TENSORS, codes=(3, 1), runtime=3.0, stage="1-senses"):
    """A run as `pan train` leaves it, with one stage of two steps."""
    for place in ("stages/0-init", f"stages/{stage}/final", "checkpoint"):
        (folder / place).mkdir(parents=True)
        save_file(tensors if place != "stages/0-init" else TENSORS, folder / place / "model.safetensors")
    (folder / "stages" / stage / "log.json").write_text(json.dumps([*log, END | {"train_runtime": runtime}]))
    save_file({"None/camera.0": torch.tensor(codes)}, folder / "futures.safetensors")
    return unchanged.read(folder)


@pytest.fixture
def base(tmp_path):
    return save_run(tmp_path / "base")


def test_equal_runs_are_equal_however_long_they_took(base, tmp_path, capsys):
    here = save_run(tmp_path / "here", runtime=9.0)
    assert unchanged.print_table("world", base, here) == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["0-init", "1-senses", "checkpoint", "futures"]
    assert lines[3].split() == ["1-senses", "2", "2.5", "2.25", "2", "equal"]


def in_log(step, **entries):
    log = copy.deepcopy(LOG)
    log[step] |= entries
    return {"log": log}


PLANTED = {
    "a loss by its last digit": (in_log(1, loss=2.25000000001), "step 2: loss 2.25 -> 2.25000000001"),
    "a loss that is new": (in_log(0, **{"loss/text": 1.0}), "step 1: loss/text None -> 1.0"),
    "a gradient": (in_log(0, grad_norm=0.2), "step 1: grad_norm 0.1 -> 0.2"),
    "fewer steps": ({"log": LOG[:1]}, "2 -> 1 steps"),
    "the sign of zero": (
        {"tensors": TENSORS | {"senses.camera.weight": torch.tensor([1.0, -0.0])}},
        "tensor senses.camera.weight has other values",
    ),
    "a type": (
        {"tensors": TENSORS | {"queries.camera": torch.tensor([[1.0]]).half()}},
        "tensor queries.camera is F32 (1, 1) -> F16 (1, 1)",
    ),
    "a shape": (
        {"tensors": TENSORS | {"queries.camera": torch.tensor([1.0])}},
        "tensor queries.camera is F32 (1, 1) -> F32 (1,)",
    ),
    "a name": (
        {"tensors": {"queries.camera": TENSORS["queries.camera"], "senses.weight": torch.ones(2)}},
        "tensor senses.camera.weight is only in the base",
    ),
    "a code": ({"codes": (3, 2)}, "tensor None/camera.0 has other values"),
    "a stage": ({"stage": "1-sense"}, "only in the base"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_difference_is_said(what, base, tmp_path, capsys):
    changed, difference = PLANTED[what]
    found = unchanged.print_table("world", base, save_run(tmp_path / "here", **changed))
    assert found and found[0] == difference
    assert difference in capsys.readouterr().out
