"""What is pushed to a Hub and loaded again is the very same, with a vocabulary that grew and grows on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import hub
from tiny_worlds import build_board, record_board

from pan_hf.build import save_checkpoint
from pan_hf.trajectories import load_trajectories

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import sys, torch
from pan_hf import PanModel, PanProcessor

model, processor = PanModel.from_pretrained(sys.argv[1]).eval(), PanProcessor.from_pretrained(sys.argv[1])
processor.attach(model)
word, = model.grow("text", names=["icepick"])
model.grow("action.0", names=["jump"])
place = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [2.0, 3.0], [2.0, 2.0]]]).repeat(16, 1, 1)
assert model.merge("place", place, count=2)[-1].accepted

model.push_to_hub("user/pan")
processor.push_to_hub("user/pan")

from transformers import AutoModel, AutoProcessor
for trust in ({}, {"trust_remote_code": True}):
    loaded = AutoModel.from_pretrained("user/pan", **trust).eval()
    again = AutoProcessor.from_pretrained("user/pan", **trust)
    again.check_model(loaded)
    again.attach(loaded)
    assert again.vocabulary_digest == processor.vocabulary_digest
    assert again.tokenizer.merges.pairs == processor.tokenizer.merges.pairs
    prompt = torch.tensor([[5, word, 70, *model.processor.tokenizer.merges.pairs[0]]])
    assert torch.equal(loaded(prompt).logits, model(prompt).logits)
    before = dict(model.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())

loaded.grow("text", names=["crampon"])
loaded.push_to_hub("user/pan")
again.push_to_hub("user/pan")
last, its = PanModel.from_pretrained("user/pan"), PanProcessor.from_pretrained("user/pan")
its.check_model(last)
assert processor.vocabulary.is_ancestor_of(its.vocabulary) and its.tokenizer.has_word("crampon")
print("the same")
"""


@pytest.mark.slow
def test_a_grown_model_is_pushed_loaded_grown_and_pushed_again(tmp_path):
    trajectories = load_trajectories(record_board(tmp_path / "data", episodes=4), "train")
    save_checkpoint(tmp_path / "checkpoint", *build_board(trajectories))
    with hub(tmp_path / "hub") as endpoint:
        home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint, "HF_TOKEN": "any"}
        home |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "checkpoint")]
        done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("the same")
