"""The language model in the middle: how it is run, what it must be able to do, and how its rows for codes begin.

A step of the world is laid out in its sequence with a mask and positions of our own (`layout_pan.py`): states look at
themselves both ways, and queries stand between two states that must not notice them. Most causal language models take
both. Models without attention (Mamba), or whose attention reads distances off the order of the keys (ALiBi), do not,
and would quietly learn another world than the one they simulate: whether a backbone fits is tried out, not looked up.
"""

import functools
import inspect
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .layout_pan import additive
from .table_pan import tables_of

# Of the spread of the hidden states: rounding, not another position. In float32 even untrained attention is above it.
_TOLERANCE = {torch.float32: 1e-4}
_TOLERANCE_HALF = 0.05


@functools.cache
def cache_argument(kind: type) -> str:
    """What a model's forward calls its cache: newer Transformers say `cache`, older ones and code from the Hub
    `past_key_values`."""
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


@dataclass(frozen=True)
class TrunkCall:
    """What a kind of language model calls its cache, and the kinds of layers that want a mask by name, if any
    do; known once, so that a compiled step need not look it up."""

    cache_argument: str
    mask_kinds: tuple[str, ...]


def trunk_call(language_model: PreTrainedModel) -> TrunkCall:
    """How a language model is called by `run_trunk`."""
    kinds = set(getattr(language_model.config, "layer_types", None) or [])
    mask_kinds = tuple(sorted(kinds)) if kinds - {"full_attention"} else ()
    return TrunkCall(cache_argument(type(language_model.base_model)), mask_kinds)


def run_trunk(
    language_model: PreTrainedModel, call: TrunkCall, embeddings: Tensor, mask: Tensor, positions: Tensor, cache
) -> Tensor:
    """A language model without its head. Args: embeddings `(B, L, H)`; mask bool `(1 or B, 1, L, keys)`; positions
    `(L,)`, or `(B, L)` if rows differ; cache, appended to if given. Returns: `(B, L, H)`."""
    mask = additive(mask, embeddings.dtype).expand(len(embeddings), -1, -1, -1)
    if call.mask_kinds:
        mask = dict.fromkeys(call.mask_kinds, mask)
    return language_model.base_model(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=positions.expand(len(embeddings), -1),
        use_cache=cache is not None,
        **{call.cache_argument: cache},
    ).last_hidden_state


@torch.no_grad()
def check_backbone(backbone: PreTrainedModel) -> None:
    """Raises ValueError unless a language model keeps to a mask and to positions that it is given.

    Three embeddings, the second hidden from the others, must leave the others as they are without it; and the first
    must see the last.
    """
    was_training, name = backbone.training, type(backbone).__name__
    backbone.eval()
    try:
        with_hidden, without, other = _tried(backbone)
    except Exception as error:
        raise ValueError(_misfit(name, f"a forward with a mask of its own failed ({error})")) from error
    finally:
        backbone.train(was_training)
    spread = without.std().clamp(min=1e-12)
    tolerance = _TOLERANCE.get(backbone.dtype, _TOLERANCE_HALF)
    if float((with_hidden - without).abs().max() / spread) > tolerance:
        raise ValueError(_misfit(name, "what is hidden from a position still moves or reaches it"))
    if torch.equal(other[0], without[0]):
        raise ValueError(_misfit(name, "no position can look at a later one"))


def _tried(backbone: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states `(2, H)` of a first and a last position: with a hidden one between them, without, and without
    where the last holds something else."""
    table = backbone.get_input_embeddings()
    ids = torch.tensor([3, 1, 2, 0], device=table.weight.device) % len(table.weight)
    first, hidden, last, other = table(ids)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool, device=ids.device)
    mask[..., [0, 2], 1] = False
    positions = torch.tensor([0, 1, 1], device=ids.device)
    call, three = trunk_call(backbone), torch.stack([first, hidden, last]).unsqueeze(0)
    found = run_trunk(backbone, call, three, mask, positions, None)[0].float()
    pairs = torch.stack([torch.stack([first, last]), torch.stack([first, other])])
    without, changed = run_trunk(backbone, call, pairs, mask[..., :2, [0, 2]], positions[:2], None).float()
    return found[[0, 2]], without, changed


def _misfit(name: str, reason: str) -> str:
    return (
        f"{name} cannot be the backbone of a world model: {reason}. Use a model whose every layer is attention that "
        "takes a 4-D mask and position ids (Llama, Qwen, Gemma, Mistral, Phi, GPT-2, GPT-NeoX and most others), with "
        "attn_implementation 'sdpa' or 'eager'."
    )


def keep_weights(model: PreTrainedModel) -> None:
    """Marks a model as initialised, so that `post_init` of the model around it leaves its weights alone."""
    for module in model.modules():
        module._is_hf_initialized = True
    for parameter in model.parameters():
        parameter._is_hf_initialized = True


@torch.no_grad()
def fill_new_rows(backbone: PreTrainedModel, first: int, std: float) -> None:
    """Rows behind the backbone's own words start as spread out as its words are."""
    for table in tables_of(backbone):
        table[first:].normal_(std=std)
