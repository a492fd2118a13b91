"""The world model as a language model: words in, words out, as its backbone says them.

Words and codes are rows of one table, so a plain softmax over it would give codes a share of every next word, trained
or not. So codes are possible where they are asked for (`codes_in_text`), and else the head reads the rows of words
alone: the product of the backbone's own words has the shape it has in the bare backbone, and therefore its bits.

Shapes: B = batch, L = positions, V = rows of the table.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel

from .embedding_pan import extent

if TYPE_CHECKING:
    from .modeling_pan import PanModel


def words_alone(model: PanModel, words: Tensor) -> tuple[PreTrainedModel, int]:
    """The backbone with a head of its first rows, as far as words go, and how many rows these are.

    The backbone itself stays as it is, since another thread may be running it. A head that an adapter, a quantiser or
    a library that moves weights has changed stays whole, and so does any head while a graph is compiled.

    Args:
        words `(rows,)` bool: see `EmbeddingTable.active_words`.
    """
    backbone, num_words = model.language_model, extent(words)
    head = backbone.get_output_embeddings()
    names = [name for name, module in backbone._modules.items() if module is head]
    is_plain = type(head) is nn.Linear and type(head.weight) is nn.Parameter
    is_plain = is_plain and not (head._forward_pre_hooks or head._forward_hooks)
    if torch.compiler.is_compiling() or not (is_plain and names):
        return backbone, num_words
    view = copy.copy(backbone)
    narrow = _WordHead(head, model.config.text_size, num_words, len(words))
    view._modules = backbone._modules | dict.fromkeys(names, narrow)
    return view, num_words


class _WordHead(nn.Module):
    """The first rows of a head. Words that the vocabulary has grown by are a product of their own, with those that
    are still reserved: growth changes no older logit by a bit.

    Args:
        head: whose rows.
        known (`int`): words of the bare backbone.
        num_words (`int`): rows that are read out.
        reserved (`int`): rows up to the last reserved for words.
    """

    def __init__(self, head: nn.Linear, known: int, num_words: int, reserved: int):
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.known, self.num_words, self.reserved = known, num_words, reserved

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(B, L, H)` -> `(B, L, num_words)`."""
        logits = self._product(hidden_states, slice(self.known))
        if self.num_words == self.known:
            return logits
        grown = self._product(hidden_states, slice(self.known, self.reserved))
        return torch.cat([logits, grown[..., : self.num_words - self.known]], -1)

    def _product(self, hidden_states: Tensor, rows: slice) -> Tensor:
        bias = None if self.bias is None else self.bias[rows]
        return nn.functional.linear(hidden_states, self.weight[rows], bias)


def check_labels(labels: Tensor | None, words: Tensor) -> None:
    """Raises ValueError unless labels (below 0: none) are among `words` `(rows,)` bool. Compiled, nothing is read."""
    if labels is None or torch.compiler.is_compiling():
        return
    ids = labels[labels >= 0].to(words.device)
    wrong = ids[(ids >= len(words)) | ~words[ids.clamp(max=len(words) - 1)]]
    if len(wrong):
        raise ValueError(
            f"Labels must be words, got id {int(wrong[0])}, which is a code or no token. This is the loss of a "
            "language model of words; where codes are predicted too, give `codes_in_text=True`, or the objective "
            "'sentences'."
        )


class WordGenerationMixin(GenerationMixin):
    """`generate` with logits of words alone: their number is the backbone's, so a seed draws what it draws there."""

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args, **kwargs):
        return {"over_all_rows": False} | super().prepare_inputs_for_generation(*args, **kwargs)

    @functools.wraps(GenerationMixin.compute_transition_scores)
    def compute_transition_scores(self, sequences, scores, *args, **kwargs):
        rows = self.config.vocab_size  # what Transformers takes each row of scores for
        scores = [nn.functional.pad(each, (0, rows - each.shape[-1]), value=-torch.inf) for each in scores]
        return super().compute_transition_scores(sequences, scores, *args, **kwargs)
