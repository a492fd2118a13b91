"""The lattice code: a bounded vector as digits, coarse first (Theorem 1 of "Critiques of World Models", scale out).

Coordinate `x` in [low, high] is written in base `b` with `N` digits: digit `l` says in which of `b` equal parts of the
interval left by the digits before it `x` lies. Any prefix of digits decodes to the middle of its cell, so the error
after `n` digits is at most (high - low) / b**n / 2, and two vectors farther apart than a cell get different digits.
What the last digit leaves over is returned as a remainder in [-1, 1]: digits and remainder together are exact.
"""

import torch
from torch import Tensor, nn

from .sense_configuration_pan import VectorSense


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

    def decode(self, digits: list[Tensor], remainder: Tensor | None = None) -> Tensor:
        """Args: digits, any prefix of those of `encode`; remainder, only with all of them. Returns: `(..., dim)`
        float, the middle of the cell or, with the remainder, the vector itself."""
        low, high = self._bounds(digits[0])
        offset = 0.5 if remainder is None else (remainder.flatten(-2).float().clamp(-1, 1) + 1) / 2
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


def digits_to_unit(digits: list[Tensor], base: int, inside: float | Tensor = 0.5) -> Tensor:
    """A prefix of digits `(...)` -> where in [0, 1] their cell is, float32; `inside` 0.5 is its middle, 0 its lower
    end."""
    fine = torch.zeros_like(digits[0], dtype=torch.float32)
    for digit in digits:
        fine = fine * base + digit
    return (fine + inside) / base ** len(digits)
