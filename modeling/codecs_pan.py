"""The codec of each kind of sense, under one interface.

A codec has `encode(observation) -> (codes, latents)`, `decode(codes, latents)`, `latents_help`, `decode_probabilities`
and `describe`; a new kind of sense is one more entry in `CODECS`. Vectors use the lattice, whose remainder is the
latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .image_codec_pan import ImageCodec
from .sense_configuration_pan import VectorSense


class VectorCodec(nn.Module):
    """The lattice behind the interface of a codec; nothing to train, so its stage-1 losses are empty."""

    latents_help = True  # they are what digits leave over

    def __init__(self, sense):
        super().__init__()
        self.sense = sense
        self.lattice = LatticeCodec(sense)

    def encode(self, vectors: Tensor) -> tuple[list[Tensor], Tensor]:
        """`(B, dim)` float -> digits, one `(B, num_codes)` a level, and the remainder `(B, P, group)` in [-1, 1]."""
        return self.lattice.encode(vectors)

    def latents_given(self, vectors: Tensor, codes: list[Tensor]) -> Tensor:
        """What digits lack of vectors `(B, dim)`: the remainder that is nearest, `(B, P, group)` in [-1, 1]."""
        return self.lattice.remainder(vectors, codes)

    def unit(self, codes: list[Tensor]) -> Tensor:
        """Digits `(..., num_codes)`, one a level -> where between the bounds each coordinate is, in [-1, 1]."""
        return 2 * digits_to_unit(codes, self.sense.base) - 1

    def usual_refinements(self, coarser: Tensor, level: int) -> Tensor:
        """No digit is usual below 0: the middle of a cell, what its digits alone decode to, is the better guess."""
        return torch.full_like(coarser, -1)

    def decode(self, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Any prefix of digits -> `(B, dim)` float; with all of them, latents make it exact."""
        return self.lattice.decode(codes, latents if len(codes) == self.sense.num_levels else None)

    def decode_probabilities(self, probabilities: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Expected vector `(B, dim)`, the latents' share of the last cell added."""
        vector = self.lattice.decode_probabilities(probabilities)
        if latents is None:
            return vector
        span = torch.tensor(self.sense.high, device=vector.device) - torch.tensor(self.sense.low, device=vector.device)
        cell = span / self.sense.base**self.sense.num_levels
        return vector + latents.flatten(1)[:, : self.sense.dim] * cell / 2

    def describe(self) -> list[tuple[Tensor, Tensor]]:
        """For each level `(base, base)` and `(base,)` bool: what each digit stands for, and that it does."""
        digits = describe_digits(self.sense.base)
        return [(digits, torch.ones(len(digits), dtype=torch.bool))] * self.sense.num_levels

    def losses(self, *_args) -> dict[str, Tensor]:
        return {}


CODECS = {"image": ImageCodec, "vector": VectorCodec}


def build_codec(sense) -> nn.Module:
    """The codec for a sense's kind. Raises ValueError for a kind without one."""
    if sense.kind not in CODECS:
        raise ValueError(f"No codec for senses of kind {sense.kind!r}; known kinds are {sorted(CODECS)}.")
    return CODECS[sense.kind](sense)


# ---- The lattice code: a bounded vector as digits, coarse first (Theorem 1 of "Critiques of World Models", scale
# out).
#
# Coordinate `x` in [low, high] is written in base `b` with `N` digits: digit `l` says in which of `b` equal parts of
# the interval left by the digits before it `x` lies. Any prefix of digits decodes to the middle of its cell, so the
# error after `n` digits is at most (high - low) / b**n / 2, and two vectors farther apart than a cell get different
# digits. What the last digit leaves over is returned as a remainder in [-1, 1]: digits and remainder together are
# exact. `VectorSense.within` chooses digits for a precision.


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


def digits_to_unit(digits: list[Tensor], base: int, inside: float | Tensor = 0.5) -> Tensor:
    """A prefix of digits `(...)` -> where in [0, 1] their cell is, float32; `inside` 0.5 is its middle, 0 its lower
    end. An absent digit (below 0) counts as the middle of all digits."""
    fine = torch.zeros_like(digits[0], dtype=torch.float32)
    for digit in digits:
        fine = fine * base + torch.where(digit < 0, (base - 1) / 2, digit)
    return (fine + inside) / base ** len(digits)


DIGIT_WIDTH = 1.5  # digits this far apart are still alike


def describe_digits(base: int) -> Tensor:
    """`(base, base)`: each digit of a lattice as a bump over the digits around it."""
    digits = torch.arange(base, dtype=torch.float32)
    return torch.exp(-((digits - digits.unsqueeze(1)) / DIGIT_WIDTH).square() / 2)
