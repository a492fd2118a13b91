"""A belief as one vector of numbers: what a small policy reads of a world, the same whether it is seen or imagined.

Nothing is decoded. A sense with learned codes is the vectors of its codes, numbers are their digits' value in [-1, 1],
symbols are one number a value (1 for the one that is there), a text is the mean of the model's rows of its words (so
their order is lost), and a sense that is absent is zero. Of a world of which the model sees several steps, the vector
tells the last one.

Shapes: N = rows, D = numbers of the vector, n = codes of a level, P = state tokens of a sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pan_hf.extras import extra

if TYPE_CHECKING:
    from gymnasium import spaces

    from pan_hf.modeling import Belief, PanModel

WORDS = "constant texts"  # of an episode, together; a sense has no name with a space
LIMIT = 10.0  # beyond which no number goes, in standard deviations of a code's vectors or of the words' rows


class StateFeatures:
    """Reads beliefs of one model as vectors.

    Args:
        model ([`PanModel`]): with senses.
        scales (`Mapping[str, float]`, *optional*): by sense, what its numbers are divided by; measured where they are
            not given. They are kept with a policy, since a vocabulary that has grown would measure others.

    Attributes:
        sizes (`dict[str, int]`): by sense, numbers of the vector; `WORDS` are those of constant texts.

    Raises:
        ValueError: `scales` are of other senses than the model's.
    """

    def __init__(self, model: PanModel, scales: Mapping[str, float] | None = None):
        self.model = model
        self.sizes = self._measure_sizes()
        self.scales = self._measure_scales() if scales is None else dict(scales)
        if set(self.scales) != set(self.sizes):
            raise ValueError(
                f"The policy reads the senses {sorted(self.scales)}, the model has {sorted(self.sizes)}; take the "
                "model that the policy was trained in."
            )

    @property
    def size(self) -> int:
        """D."""
        return sum(self.sizes.values())

    @property
    def space(self) -> spaces.Space:
        """The gymnasium space of one row's vector."""
        with extra("envs", "A space"):
            from gymnasium.spaces import Box
        return Box(-LIMIT, LIMIT, (self.size,), np.float32)

    def slice_of(self, sense: str) -> slice:
        """Where the numbers of a sense stand in the vector."""
        names = list(self.sizes)
        start = sum(self.sizes[name] for name in names[: names.index(sense)])
        return slice(start, start + self.sizes[sense])

    @torch.no_grad()
    def __call__(self, belief: Belief) -> Tensor:
        """The vectors of a belief, float32 `(N, D)`, on the model's device."""
        parts = [(self._part(name, belief) / self.scales[name]).clamp(-LIMIT, LIMIT) for name in self.sizes]
        return torch.cat(parts, 1)

    def _part(self, name: str, belief: Belief) -> Tensor:
        if name == WORDS:
            assert belief.prefix is not None  # the model has constant texts
            return self._mean_row(belief.prefix)
        if name in belief.state.text:
            return self._mean_row(belief.state.text[name])
        codec, codes = self.model.senses[name], belief.state.codes[name]
        if codec.can_grow:
            vectors = [book.lookup(level) for book, level in zip(codec.codebooks, codes, strict=True)]
            return torch.cat([level.flatten(1) for level in vectors], 1).float()
        is_present = belief.state.present(name).unsqueeze(1)
        known = [level.clamp(min=0) for level in codes]
        return torch.where(is_present, codec.readings(known), 0.0)

    def _mean_row(self, ids: Tensor) -> Tensor:
        """The mean of the rows of words `(N, length)`, padding and absent ones aside; zero where there is none."""
        is_word = ((ids != self.model.config.pad_token_id) & (ids >= 0)).unsqueeze(-1)
        rows = self.model.table.word_rows(ids).float() * is_word
        return rows.sum(1) / is_word.sum(1).clamp(min=1)

    def _measure_sizes(self) -> dict[str, int]:
        config, width = self.model.config, self.model.config.text_config.hidden_size
        sizes = {name: self._coded_size(name) for name in config.coded_senses}
        return sizes | dict.fromkeys(config.text_senses, width) | ({WORDS: width} if config.prefix_senses else {})

    def _coded_size(self, name: str) -> int:
        codec = self.model.senses[name]
        if codec.can_grow:
            counts = [codec.sense.num_state_tokens * count for count in codec.sense.codes_per_token]
            return sum(counts) * codec.sense.code_dim
        return codec.num_readings

    @torch.no_grad()
    def _measure_scales(self) -> dict[str, float]:
        return {name: self._scale(name) or 1.0 for name in self.sizes}

    def _scale(self, name: str) -> float:
        """The usual size of a sense's numbers; 0 where they are all 0, or there are none."""
        if name not in self.model.config.coded_senses:
            rows = self.model.table.word_rows(torch.arange(self.model.config.text_size, device=self.model.device))
            return float(rows.float().square().mean().sqrt())
        codec = self.model.senses[name]
        if codec.can_grow:
            described = [vectors[is_told].flatten() for vectors, is_told in codec.describe()]
            return float(torch.cat(described).float().square().mean().nan_to_num().sqrt())
        return 1.0 if codec.sense.num_scalars else float(codec.span(self.model.device).max())
