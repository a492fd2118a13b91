"""MISSING DOC of benchmarks.theorem1."""

import math

import torch
from torch import Tensor

from pan_hf.modeling.sense_configuration_pan import cells_within, digits_for


class LatticeLanguage:
    """A language L_eps = (V, N, f) of Theorem 1: sequences farther apart than epsilon are different sentences.

    Every number in [-bound, bound] is one of `num_cells` equal cells, at most epsilon / sqrt(T * D) wide.

    Args:
        length (`int`): T, vectors of a sequence.
        dim (`int`): D, numbers of a vector.
        bound (`float`): no number is larger in size (a bound on the norm of a vector is one).
        epsilon (`float`): Euclidean distance, over the whole sequence, that must make a difference.
        base (`int`, *optional*): size of the vocabulary, of which sentences are as long as it takes (scale out).
            Without, sentences are T tokens long and the vocabulary is as large as it takes (scale up).

    Attributes:
        vocab_size (`int`): |V|, `num_cells ** D` or `base`.
        num_tokens (`int`): N, `T` or `T * D * ceil(log_base num_cells)`.

    Raises:
        ValueError: sizes below 1, a bound or epsilon that is not positive and finite, a base below 2, or a vocabulary
            whose ids do not fit 62 bits, or an epsilon finer than numbers are.
    """

    def __init__(self, length: int, dim: int, bound: float, epsilon: float, base: int | None = None):
        if length < 1 or dim < 1 or not (0 < bound < math.inf and 0 < epsilon < math.inf):
            raise ValueError(
                "A lattice needs length and dim of at least 1 and a positive, finite bound and epsilon; got "
                f"{length}, {dim}, {bound}, {epsilon}."
            )
        if base is not None and base < 2:
            raise ValueError(f"`base` must be at least 2, got {base}.")
        self.length, self.dim, self.bound, self.epsilon, self.base = length, dim, bound, epsilon, base
        self.num_cells = cells_within(2 * bound, epsilon / math.sqrt(length * dim))
        self.num_digits = 1 if base is None else digits_for(self.num_cells, base)
        self.vocab_size = self.num_cells**dim if base is None else base
        self.num_tokens = length if base is None else length * dim * self.num_digits
        if self.num_cells > 2**50:
            raise ValueError(f"An epsilon of {epsilon} is finer than float64 can tell within {bound}.")
        if self.vocab_size >= 2**62:
            raise ValueError(
                f"Scaling up takes {self.num_cells} ** {dim} tokens, more than ids can count; give a `base` to scale "
                "out."
            )

    def encode(self, x: Tensor) -> Tensor:
        """Sequences `(..., T, D)` -> sentences `(..., N)` int64. Raises ValueError beyond the bound."""
        x = x.double()
        if not bool((x.abs() <= self.bound).all()):
            raise ValueError(f"Numbers must be within {self.bound} in size, got up to {float(x.abs().max())}.")
        cells = ((x + self.bound) * (self.num_cells / (2 * self.bound))).floor().clamp(0, self.num_cells - 1).long()
        if self.base is None:
            return (cells * self._weights(self.num_cells, self.dim, x.device)).sum(-1)
        weights = self._weights(self.base, self.num_digits, x.device)
        return (cells.unsqueeze(-1) // weights % self.base).flatten(-3)

    def decode(self, sentences: Tensor) -> Tensor:
        """Sentences `(..., N)` -> the middles of their cells, `(..., T, D)` float64, at most epsilon / 2 away."""
        if self.base is None:
            weights = self._weights(self.num_cells, self.dim, sentences.device)
            cells = sentences.unsqueeze(-1) // weights % self.num_cells
        else:
            digits = sentences.unflatten(-1, (self.length, self.dim, self.num_digits))
            cells = (digits * self._weights(self.base, self.num_digits, sentences.device)).sum(-1)
        return (cells.double() + 0.5) * (2 * self.bound / self.num_cells) - self.bound

    @staticmethod
    def _weights(base: int, count: int, device) -> Tensor:
        return torch.tensor([base**power for power in reversed(range(count))], device=device)
