"""A compiled step: the same futures, whole graphs, and none made anew."""

import copy

import pytest
import torch
from tiny_worlds import BACKBONES, CAMERA, acts, observe
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

from pan_hf import DiscreteAction, ImageSense, PanModel, TextSense, VectorAction, VectorSense
from pan_hf.modeling.backbone_pan import embed_step

# graphs add up in another order, and fuse: some units in the last of float32's 7 digits
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def small(senses, action, **config):
    """A world model with one layer of everything: graphs take seconds to make."""
    torch.manual_seed(0)
    shape = BACKBONES["qwen3"] | {"num_hidden_layers": 1, "vocab_size": 90, "initializer_range": 0.1}
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **shape))
    return PanModel.from_backbone(backbone, senses, action, text_reserve=10, adapter_dim=8, **config).eval()


@pytest.fixture(scope="module")
def glancing():
    """Looks at about one place in eight, at none in some states."""
    model = small({"camera": ImageSense(**CAMERA), "mission": TextSense(max_length=5)}, DiscreteAction(4))
    with torch.no_grad():
        model.glances["camera"].change.weight.mul_(10)
        model.glances["camera"].inventory.weight.normal_(std=0.05)
        state = model.perceive(observe(model, 64)).state
        _, change = embed_step(model, state, model.embed_state(state), model.embed_action(acts(model, 64)[:, 0]))
        model.glances["camera"].change.bias -= change["camera"].quantile(0.8) + 5.3
    return model


def both(model, batch, steps, effort=None):
    """Futures as they are, and those of a compiled step."""
    belief, actions, compiled = model.perceive(observe(model, batch)), acts(model, batch, steps), model.compiled_step
    model.compile_step(disable=True)
    expected = model.simulate(belief, actions, seed=1, effort=effort)
    model.compiled_step = compiled
    return expected, model.simulate(belief, actions, seed=1, effort=effort)


def assert_same(expected, found):
    assert all(map(torch.equal, expected.state.tensors(), found.state.tensors()))
    for name in ("log_prob", "reward", "continue_prob"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), **CLOSE)


@pytest.mark.slow
def test_compiled_steps_imagine_the_same_and_nothing_is_compiled_again(glancing):
    glancing.compile_step(backend="eager")  # every function is captured whole, or it would raise
    torch._dynamo.reset()
    for batch in (1, 16):
        expected, found = both(glancing, batch, 4, "coarsest")
        assert_same(expected, found)
        assert torch.equal(expected.cost.tokens, found.cost.tokens)
    looked_at = expected.focus.sum(-1)
    assert looked_at.min() == 0 and looked_at.max() > 2  # of both kinds of graph
    graphs = counters["stats"]["unique_graphs"]
    new = glancing.table.segment_rows("camera", 0)[~glancing.table.active_codes("camera", 0)][:1]
    glancing.live_rows[new] = glancing.born_rows[new] = True  # what growth writes
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_same(*both(glancing, 1, 6, "coarsest"))
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
def test_a_longer_memory_compiles_nothing_anew():
    touch = VectorSense(dim=2, low=-1, high=1, base=4, num_levels=1)
    action = VectorAction(dim=1, low=-1, high=1, base=4, num_levels=1)
    model = small({"touch": touch, "mission": TextSense(max_length=3)}, action, context_steps=5)
    model.compile_step(backend="eager")
    torch._dynamo.reset()
    both(model, 2, 2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_same(*both(model, 3, 7))


def test_a_copy_compiles_for_itself_and_compiling_can_be_left(glancing):
    glancing.compile_step(backend="eager", mode="default")
    twin = copy.deepcopy(glancing)
    assert twin.compiled_step.options == {"backend": "eager", "mode": "default"}
    assert twin.compiled_step is not glancing.compiled_step
    glancing.compile_step(disable=True)
    assert not glancing.compiled_step.is_compiled and twin.compiled_step.is_compiled


def test_calls_between_kernels_are_cpp_on_a_cpu_unless_something_else_is_asked_for(glancing):
    glancing.compile_step()
    assert glancing.compiled_step.options == {"options": {"cpp_wrapper": True}}
    glancing.compile_step(mode="default")
    assert glancing.compiled_step.options == {"mode": "default"}
    glancing.compile_step(disable=True)


def test_what_a_compiled_step_decides_itself_is_not_the_callers(glancing):
    with pytest.raises(ValueError, match=r"decides on \['dynamic', 'fullgraph'\] itself"):
        glancing.compile_step(fullgraph=False, dynamic=True)
