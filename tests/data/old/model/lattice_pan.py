"""The lattice code: a bounded vector as digits, coarse first (Theorem 1 of "Critiques of World Models", scale out).

Coordinate `x` in [low, high] is written in base `b` with `N` digits: digit `l` says in which of `b` equal parts of the
interval left by the digits before it `x` lies. Any prefix of digits decodes to the middle of its cell, so the error
after `n` digits is at most (high - low) / b**n / 2, and two vectors farther apart than a cell get different digits.
What the last digit leaves over is returned as a remainder in [-1, 1]: digits and remainder together are exact.

[`LatticeLanguage`] is the theorem itself, for whole sequences, with both constructions of its proof (appendix A):
*scale up*, one token a step from a vocabulary as large as it takes, and *scale out*, as many tokens as it takes from a
small one. Senses and actions use the second, with bounds for each coordinate; `VectorSense.within` chooses digits for
a precision.
"""

import math

import torch
from torch import Tensor, nn

from .sense_configuration_pan import VectorSense, cells_within, digits_for


class LatticeCodec(nn.Module):
    """Encodes and decodes vectors; nothing in it is learned.

    Args:
        sense (`VectorSense` or `VectorAction`): dimension, bounds, base and number of digits.
    """

    def __init__(self, sense: VectorSense):
        super().__init__()
        self.sense = sense
        self.base, self.num_levels = sense.base, sense.num_levels

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # made on the spot: a plain tensor attribute would stay on the meta device under from_pretrained
        low = torch.tensor(self.sense.low, device=like.device, dtype=torch.float32)
        high = torch.tensor(self.sense.high, device=like.device, dtype=torch.float32)
        return low, high

    def _pad(self, values: Tensor) -> Tensor:
        missing = self.sense.num_places * self.sense.group - self.sense.dim
        return nn.functional.pad(values, (0, missing))

    def encode(self, vector: Tensor) -> tuple[list[Tensor], Tensor]:
        """Args: vector (`(..., dim)` float). Returns: digits, `num_levels` tensors `(..., num_codes)` int64 in
        [0, base), most significant first; remainder `(..., num_places, group)` in [-1, 1]."""
        low, high = self._bounds(vector)
        unit = ((vector.float() - low) / (high - low)).clamp(0, 1)
        digits = []
        for _ in range(self.num_levels):
            scaled = unit * self.base
            digit = scaled.floor().clamp(max=self.base - 1)
            digits.append(self._pad(digit.long()))
            unit = scaled - digit
        remainder = self._pad(2 * unit - 1)
        return digits, remainder.unflatten(-1, (self.sense.num_places, self.sense.group))

    def remainder(self, vector: Tensor, digits: list[Tensor]) -> Tensor:
        """The remainder with which `digits`, all of them, come nearest to `vector`; args and result as for
        `encode`."""
        low, high = self._bounds(vector)
        unit = ((vector.float() - low) / (high - low)).clamp(0, 1)
        lower = digits_to_unit(digits, self.base, 0.0)[..., : self.sense.dim]
        remainder = self._pad((2 * (unit - lower) * self.base**self.num_levels - 1).clamp(-1, 1))
        return remainder.unflatten(-1, (self.sense.num_places, self.sense.group))

    def decode(self, digits: list[Tensor], remainder: Tensor | None = None) -> Tensor:
        """Args: digits, any prefix of those of `encode`; remainder, only with all of them, not a number
        where it is absent. Returns: `(..., dim)` float, the middle of the cell or, with the remainder, the vector
        itself."""
        low, high = self._bounds(digits[0])
        offset = 0.5
        if remainder is not None:
            offset = ((remainder.flatten(-2).float().clamp(-1, 1) + 1) / 2).nan_to_num(0.5)
        unit = digits_to_unit(digits, self.base, offset)
        return low + unit[..., : self.sense.dim] * (high - low)

    def decode_probabilities(self, probabilities: list[Tensor]) -> Tensor:
        """Expected vector under independent digit distributions `(..., num_codes, base)`, a level each;
        differentiable."""
        low, high = self._bounds(probabilities[0])
        values = torch.arange(self.base, device=low.device, dtype=torch.float32)
        unit, scale = 0.0, 1.0
        for distribution in probabilities:
            scale = scale / self.base
            unit = unit + scale * (distribution[..., : self.base].float() @ values)
        return low + (unit[..., : self.sense.dim] + 0.5 * scale) * (high - low)


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


def digits_to_unit(digits: list[Tensor], base: int, inside: float | Tensor = 0.5) -> Tensor:
    """A prefix of digits `(...)` -> where in [0, 1] their cell is, float32; `inside` 0.5 is its middle, 0 its lower
    end. An absent digit (below 0) counts as the middle of all digits."""
    fine = torch.zeros_like(digits[0], dtype=torch.float32)
    for digit in digits:
        fine = fine * base + torch.where(digit < 0, (base - 1) / 2, digit)
    return (fine + inside) / base ** len(digits)
