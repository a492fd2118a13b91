"""The codec of each kind of sense, under one interface.

A codec has `encode(observation) -> (codes, latents)`, `decode(codes, latents)`, `latents_help`, `decode_probabilities`
and `describe`; a new kind of sense is one more entry in `CODECS`. Vectors use the lattice, whose remainder is the
latent.
"""

import torch
from torch import Tensor, nn

from .image_codec_pan import ImageCodec
from .lattice_pan import LatticeCodec, digits_to_unit
from .rows_pan import describe_digits


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


def with_absent(rows: Tensor) -> Tensor:
    """Rows `(K, ...)` and one more of zeros, the row of a code that is absent: `codes % (K + 1)` finds it."""
    return nn.functional.pad(rows, (0, 0, 0, 1))


def fold_places(codes: Tensor, sense, level: int) -> Tensor:
    """Codes of one level by place: `(B, num_codes, ...)` -> `(B, P, codes_per_place, ...)`, raster order inside."""
    per_place = sense.codes_per_place[level]
    if sense.kind != "image" or per_place == 1:
        return codes.unflatten(1, (-1, per_place))
    factor = int(per_place**0.5)
    rows, columns = sense.place_grid
    rest = codes.shape[2:]
    x = codes.reshape(len(codes), rows, factor, columns, factor, *rest).transpose(2, 3)
    return x.reshape(len(codes), rows * columns, per_place, *rest)


def unfold_places(codes: Tensor, sense, level: int) -> Tensor:
    """The inverse of `fold_places`: `(B, P, codes_per_place, ...)` -> `(B, num_codes, ...)`."""
    per_place = sense.codes_per_place[level]
    if sense.kind != "image" or per_place == 1:
        return codes.flatten(1, 2)
    factor = int(per_place**0.5)
    rows, columns = sense.place_grid
    rest = codes.shape[3:]
    x = codes.reshape(len(codes), rows, columns, factor, factor, *rest).transpose(2, 3)
    return x.reshape(len(codes), rows * columns * per_place, *rest)


def spread_codes(values: Tensor, sense, coarse: int, fine: int) -> Tensor:
    """What is said of each code of a coarser level, `(N, num_codes)`, said of the codes of a finer one that lie in
    it."""
    if sense.kind != "image" or sense.level_strides[coarse] == sense.level_strides[fine]:
        return values
    factor = sense.level_strides[coarse] // sense.level_strides[fine]
    grid = values.unflatten(1, sense.level_grid(coarse))
    return grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2).flatten(1)
