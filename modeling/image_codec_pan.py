"""Learned codes on a pyramid of grids, plus continuous latents: the sensory encoder h and decoder g of one camera.

[`CodebookCodec`] turns a map of features into codes and back. Level 0 describes blocks of cells; each finer level
quantises what the levels before it leave over, so any prefix of levels decodes. What no level holds goes into
`latent_dim` continuous numbers a patch token. [`ImageCodec`] makes the map: a frame is cut into patches, each encoded
where it stands. Every normalisation is over the channels of *one* position, never over the map, because a map-wide
norm makes one moving cell change the codes of cells that did not move.

Shapes: B = batch, (R, S) = the finest grid, W = hidden size, P = patch tokens, K = capacity of a level.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .codecs_pan import Codec, PositionBlock, as_bytes, fold_grid, register_sense, unfold_grid, value_log_prob
from .embedding_pan import (
    all_gather_rows,
    all_reduce_sum,
    broadcast_from_main,
    log_of_mean,
    module_list,
    shared_mean,
    variance,
    without_autocast,
)
from .layout_pan import fold_cells, unfold_cells
from .sense_configuration_pan import CodedPart, ImageSense

LATENT_BLUR = 0.1  # noise on unit-scale latents that the decoder is trained to bear
LEAST_SCALE = 1e-3  # of a decoded pixel's error, in [-1, 1]
LEAST_ERROR = 1e-6  # weighted squared error below which nothing is gained: 60 dB
LEAST_DIFFERENCE = 0.02  # between two numbers in [-1, 1], from which on they count as different


class CodebookCodec(Codec):
    """Codes of a growable [`Codebook`] a level, and latents, for a map of features.

    A subclass calls `build_codes`, and has `features`, `render`, and `to_float` and `as_output` where observations are
    no floats in [-1, 1]. Its sense has, beside what any `CodedPart` has, `code_dim`, and `can_grow` is True.

    Args:
        sense (`CodedPart`): shape, levels, grids and sizes.
    """

    num_values: int = 256  # values of one number of an observation, evenly over [-1, 1]; `log_prob` is of these
    notes = ("refinements", "latents_help")
    residual_scale: Tensor
    latents_help: Tensor
    latent_scale: Tensor

    def __init__(self, sense: CodedPart):
        super().__init__(sense)
        self.register_buffer("residual_scale", torch.ones(2))
        # whether imagined observations come closer with latents; taken for granted until that is measured
        self.register_buffer("latents_help", torch.ones(1, dtype=torch.bool))

    def build_codes(self, width: int, piece: int) -> None:
        """Makes codebooks and latents.

        Args:
            width (`int`): W, of the map.
            piece (`int`): numbers of the observation that one cell of the finest grid covers.
        """
        sense, cells = self.sense, [math.prod(self._factor(level)) for level in range(self.sense.num_levels)]
        finer = [cell // below for cell, below in zip(cells, cells[1:], strict=False)] + [0]
        books = zip(sense.codebook_size, sense.codebook_capacity, cells, finer, strict=True)
        self.codebooks = module_list(
            Codebook(size, room, sense.code_dim, piece * covered, below) for size, room, covered, below in books
        )
        self.to_code = module_list(nn.Linear(covered * width, sense.code_dim) for covered in cells)
        self.from_code = module_list(nn.Linear(sense.code_dim, covered * width) for covered in cells)
        if sense.latent_dim:
            fold = math.prod(self._covered(self.sense.token_grid))
            self.to_latent = nn.Linear(2 * fold * width, sense.latent_dim)
            self.from_latent = nn.Linear(sense.latent_dim, fold * width)
            self.register_buffer("latent_scale", torch.ones(sense.latent_dim))

    def reset_pan_parameters(self, _std: float) -> None:
        for scale in self.buffers(recurse=False):
            init.ones_(scale)

    def features(self, values: Tensor) -> Tensor:
        """Observations `(B, *shape)`, or crops of whole patch tokens -> the map `(B, R, S, W)`."""
        raise NotImplementedError

    def render(self, x: Tensor, corrections: Tensor) -> Tensor:
        """The inverse: the map, and the corrections of codes to each cell, `(B, R, S, piece)` or a scalar 0 ->
        observations `(B, *shape)` float, nominally in [-1, 1]."""
        raise NotImplementedError

    def pieces(self, values: Tensor) -> Tensor:
        """Observations, as `render` gives them, cut up: `(B, *shape)` -> `(B, R, S, piece)`."""
        raise NotImplementedError

    def _factor(self, level: int) -> tuple[int, int]:
        """Rows and columns of the finest grid that a code of a level covers."""
        return self._covered(self.sense.level_grid(level))

    def _covered(self, grid: tuple[int, int]) -> tuple[int, int]:
        rows, columns = self.sense.level_grid(self.sense.num_levels - 1)
        return rows // grid[0], columns // grid[1]

    def _quantize(self, features: Tensor, update: bool):
        """Codes a level `(B, r, s)`, the map their vectors add up to, one map a prefix, and the commitment loss."""
        total, prefixes, codes, commitment = torch.zeros_like(features), [], [], 0.0
        for level in range(self.sense.num_levels):
            residual = fold_grid(features - total, self._factor(level))
            level_codes, vectors, loss = self.codebooks[level](self.to_code[level](residual), update)
            total = total + unfold_grid(self.from_code[level](vectors), self._factor(level))
            prefixes.append(total)
            codes.append(level_codes)
            commitment = commitment + loss
        return codes, prefixes, commitment

    @without_autocast
    def code_inputs(self, values: Tensor, level: int) -> Tensor:
        """The inputs of the codebook of a level, `(B, r, s, code_dim)`: what the levels before it leave over of
        observations `(B, *shape)`."""
        features = self.features(values)
        total = torch.zeros_like(features) if level == 0 else self._quantize(features, update=False)[1][level - 1]
        return self.to_code[level](fold_grid(features - total, self._factor(level))).float()

    def _latents(self, features: Tensor, coded: Tensor) -> Tensor:
        factor = self._covered(self.sense.token_grid)
        return self.to_latent(torch.cat([fold_grid(features, factor), fold_grid(coded, factor)], -1))  # not yet scaled

    @without_autocast
    def encode(self, values: Tensor) -> tuple[list[Tensor], Tensor | None]:
        leading = values.shape[: -len(self.sense.shape)]
        features = self.features(values.flatten(0, len(leading) - 1))
        grids, prefixes, _ = self._quantize(features, update=False)
        codes = [grid.flatten(1).unflatten(0, leading) for grid in grids]
        if not self.sense.latent_dim:
            return codes, None
        latents = self._latents(features, prefixes[-1]).flatten(1, 2) / self.latent_scale
        return codes, latents.unflatten(0, leading)

    @without_autocast
    def latents_given(self, values: Tensor, codes: list[Tensor]) -> Tensor:
        coded = self._code_map([book.lookup(c) for book, c in zip(self.codebooks, codes, strict=True)], codes)
        return self._latents(self.features(values), coded).flatten(1, 2) / self.latent_scale

    def latents_expected(self, codes: list[Tensor], shifts: list[Tensor]) -> Tensor:
        """The latents `(B, P, latent_dim)` with which codes come to the observation that their vectors give when moved
        by their shifts `(B, n, code_dim)`. Args: codes as for `decode`, of all levels."""
        vectors = [book.lookup(c) + s for book, c, s in zip(self.codebooks, codes, shifts, strict=True)]
        return self.latents_given(self._decode_vectors(vectors, codes, None), codes)

    def note_refinements(self, codes: list[Tensor]) -> None:
        """Keeps which codes of each level most often stand under each code of the level before it, of codes of all
        levels `(N, n)`; a code that does not occur keeps its refinements."""
        for level, book in enumerate(self.codebooks[:-1]):
            finer = self.commonest_refinements(codes, level)
            assert book.refinements is not None  # of every level but the last
            book.refinements.copy_(torch.where(finer >= 0, finer + 1, book.refinements))

    def commonest_refinements(self, codes: list[Tensor], level: int) -> Tensor:
        """The code of the next level that stands most often at each cell under each code of a level, in raster order,
        `(capacity, slots)`; below 0 where a code does not occur. Args: codes of all levels, `(N, n)`."""
        finer, coarser = self.sense.level_grid(level + 1), self.sense.level_grid(level)
        rows, size = (len(self.codebooks[at].live) for at in (level, level + 1))
        slots = math.prod(finer) // math.prod(coarser)
        counts = torch.zeros(rows * slots * size, dtype=torch.long, device=codes[level].device)
        for coarse, fine in zip(codes[level].split(4096), codes[level + 1].split(4096), strict=True):
            row = coarse.long().unsqueeze(-1) * slots + torch.arange(slots, device=coarse.device)
            below = fold_cells(fine.long(), finer, coarser)
            counts += (row * size + below).flatten().bincount(minlength=len(counts))
        most, commonest = counts.view(rows, slots, size).max(-1)
        return commonest.masked_fill(most == 0, -1)

    def usual_refinements(self, coarser: Tensor, level: int) -> Tensor:
        refinements = self.codebooks[level - 1].refinements
        assert refinements is not None  # of every level but the last
        usual = nn.functional.embedding(coarser.clamp(min=0), refinements) - 1
        usual = torch.where((coarser >= 0).unsqueeze(-1) & self.codebooks[level].live[usual], usual, -1)
        return unfold_cells(usual, self.sense.level_grid(level), self.sense.level_grid(level - 1))

    def _code_map(self, vectors: list[Tensor], chosen: list[Tensor]) -> Tensor:
        """The map that the code vectors of a prefix of levels add up to; a code that is absent adds nothing, so each
        cell is what its own prefix says."""
        total: Tensor = 0.0  # type: ignore[assignment]  # one level at least is added
        for level, level_vectors in enumerate(vectors):
            grid = self.from_code[level](level_vectors.unflatten(1, self.sense.level_grid(level)))
            if level and not chosen[level].is_floating_point():
                grid = grid * (chosen[level] >= 0).unflatten(1, self.sense.level_grid(level)).unsqueeze(-1)
            total = total + unfold_grid(grid, self._factor(level))
        return total

    def _latent_map(self, grid: Tensor, is_present: Tensor | bool = True) -> Tensor:
        """The map of latents `(B, rows, columns, D)`, 0 where they are absent, `(B, rows, columns, 1)` bool."""
        return unfold_grid(self.from_latent(grid) * is_present, self._covered(self.sense.token_grid))

    def _corrections(self, grids: list[Tensor], num_levels: Tensor | None = None) -> Tensor:
        """The corrections of codes (see `Codebook`): maps `(B, r, s)` of codes, or `(B, r, s, K)` of their
        probabilities, one a level -> `(B, R, S, piece)`, or a scalar 0 where no code has any. `num_levels` `(B,)`: how
        many levels of each row count; all if None."""
        total = torch.zeros((), device=self.residual_scale.device)
        for level, grid in enumerate(grids):
            table = self.codebooks[level].corrections
            if not bool(table.any()):
                continue
            if grid.is_floating_point():
                pieces = grid @ table[: grid.shape[-1]]
            else:
                pieces = nn.functional.embedding(grid.clamp(min=0), table) * (grid >= 0).unsqueeze(-1)
            pieces = unfold_grid(pieces, self._factor(level))
            total = total + (pieces if num_levels is None else pieces * (num_levels > level).view(-1, 1, 1, 1))
        return total

    @without_autocast
    def lacking(self, values: Tensor, codes: list[Tensor], level: int) -> Tensor:
        """Observations `(B, *shape)` less what their codes decode to, by code of a level: `(B, n, piece of a code)`.
        Args: codes as for `decode`."""
        pieces = self.pieces(self.to_float(values) - self.decode(codes))
        return fold_grid(pieces, self._factor(level)).flatten(1, 2)

    def decode(self, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        vectors = [book.lookup(c) for book, c in zip(self.codebooks, codes, strict=False)]
        return self._decode_vectors(vectors, codes, latents)

    def _decode_vectors(self, vectors: list[Tensor], chosen: list[Tensor], latents: Tensor | None) -> Tensor:
        """Args: vectors `(B, n, dim)` a level; chosen, the codes `(B, n)` they are of, or the probabilities
        `(B, n, K)` they are the mean under; latents as for `decode`."""
        x = self._code_map(vectors, chosen)
        if latents is not None:
            is_present = ~latents[..., :1].isnan().unflatten(1, self.sense.token_grid)
            scaled = (latents.nan_to_num() * self.latent_scale).unflatten(1, self.sense.token_grid)
            x = x + self._latent_map(scaled, is_present)
        grids = [part.unflatten(1, self.sense.level_grid(level)) for level, part in enumerate(chosen)]
        return self.render(x, self._corrections(grids))

    def decode_probabilities(self, probabilities: list[Tensor], latents: Tensor | None = None) -> Tensor:
        vectors = [book.mean(p) for p, book in zip(probabilities, self.codebooks, strict=True)]
        return self._decode_vectors(vectors, probabilities, latents)

    def describe(self) -> list[tuple[Tensor, Tensor]]:
        return [(book.vectors, book.describes()) for book in self.codebooks]

    def log_prob(self, true: Tensor, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """A Gaussian of the decoder's running error, integrated over each value that a number can have."""
        scale = self.error_scale(latents=latents is not None)
        return value_log_prob(self.decode(codes, latents), self.to_float(true), scale, self.num_values)

    def weight(self, values: Tensor, neighbours: Tensor, usual: Tensor | None, motion: float, rarity: float) -> Tensor:
        """Weight of each number of observations, mean 1: 1, plus `motion` where they differ from their neighbours in
        time, plus `rarity` where they differ from the usual one."""
        weight = 1 + motion * self.differing(values, neighbours)
        weight = weight if usual is None else weight + rarity * self.differing(values, usual)
        return weight / shared_mean(weight.mean())

    def differing(self, values: Tensor, others: Tensor) -> Tensor:
        """Where observations differ from others, of 0 and 1, broadcast to `(B, *shape)`."""
        return ((self.to_float(values) - self.to_float(others)).abs() > LEAST_DIFFERENCE).float()

    def losses(
        self,
        values: Tensor,
        neighbours: Tensor,
        usual: Tensor | None,
        motion: float,
        rarity: float,
        update: bool = True,
    ) -> dict[str, Tensor]:
        """Losses of stage 1, with codebooks and scales moved along if `update`. Nested dropout: each observation is
        decoded from all codes, and in another way as well, see `_another_way`; so that every prefix of blocks decodes.

        Args: observations, their neighbours in time and the usual observation, `(B, *shape)`, or crops of whole patch
        tokens. Returns: `reconstruction`, `commitment`."""
        target = self.to_float(values)
        features = self.features(values)
        grids, prefixes, commitment = self._quantize(features, update)
        weight = self.weight(values, neighbours, usual, motion, rarity)
        way, other, other_grids, num_levels = self._another_way(features, grids, prefixes, neighbours, update)
        num_levels = torch.cat([torch.full_like(num_levels, len(grids)), num_levels])
        pairs = [torch.cat(pair) for pair in zip(grids, other_grids, strict=True)]
        decoded = self.render(torch.cat([prefixes[-1], other]), self._corrections(pairs, num_levels))
        error, other_error = (decoded - torch.cat([target, target])).square().chunk(2)
        if self.training:
            self._track_scales(error, other_error[way == len(grids) - 1])

        def scaled(mean: Tensor) -> Tensor:
            # in logarithms, as decibels are, the large error of a coarse prefix does not drown that of the full code
            return log_of_mean(mean, LEAST_ERROR) if update else mean

        full, others = scaled((weight * error).mean()), torch.zeros((), device=error.device)
        by_row = (weight * other_error).flatten(1).mean(1)
        for kind in range(self._num_ways(len(grids))):
            is_kind = (way == kind).float()
            share = shared_mean(is_kind.mean())
            if share > 0:
                others = others + share * scaled((is_kind * by_row).mean() / share)
        return {"reconstruction": full + 0.2 * others, "commitment": commitment}

    def _num_ways(self, num_levels: int) -> int:
        """Ways to tell an observation beside all of its codes, see `_another_way`."""
        return num_levels + 1 if self.sense.latent_dim else max(1, num_levels - 1)

    def _another_way(
        self, features: Tensor, grids: list[Tensor], prefixes: list[Tensor], neighbours: Tensor, update: bool
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """For each row another way to tell it, drawn at random. With L levels, the ways are: `0` to `L - 2`, that
        many levels and one; `L - 1`, all codes and noisy latents; `L`, the codes of its neighbour in time and noisy
        latents that lead from these to the observation; without latents, all codes where there is no shorter prefix.

        Returns: way `(B,)`; the map `(B, R, S, W)`; the codes, a grid `(B, r, s)` a level, and how many levels of them
        count, `(B,)`."""
        last, device = len(prefixes) - 1, features.device
        way = torch.randint(self._num_ways(len(prefixes)), (len(features),), device=device)
        level = way.clamp(max=last)
        coded = torch.stack(prefixes)[level, torch.arange(len(features), device=device)]
        if not self.sense.latent_dim:
            return way, coded, grids, level + 1
        has_neighbour, has_latents = way > last, way >= last
        if has_neighbour.any():
            with torch.no_grad():
                others, maps, _ = self._quantize(self.features(neighbours[has_neighbour]), update=False)
            mask = has_neighbour.view(-1, 1, 1)
            coded = coded.masked_scatter(mask.unsqueeze(-1), maps[-1])
            grids = [grid.masked_scatter(mask, other) for grid, other in zip(grids, others, strict=True)]
        latents = self._latents(features, coded.detach())  # of all rows: in each of several processes they take part
        if update:
            if all_reduce_sum(has_latents.sum()) > 0:
                with torch.no_grad():
                    spread = variance(latents.detach()[has_latents].flatten(0, 2)).sqrt().clamp(min=1e-3)
                    self.latent_scale.lerp_(spread, 0.05)
            # only while the scale follows: against noise of a fixed size, latents would learn to grow for ever
            latents = latents + LATENT_BLUR * self.latent_scale.clone() * torch.randn_like(latents)
        coded = coded + self._latent_map(latents) * has_latents.view(-1, 1, 1, 1)
        return way, coded, grids, level + 1

    def error_scale(self, latents: bool = False) -> Tensor:
        """Standard deviation of a decoded number, without or with latents, as far as training told; a scalar."""
        return self.residual_scale[int(latents)].clamp(min=LEAST_SCALE)

    @torch.no_grad()
    def _track_scales(self, error: Tensor, with_latents: Tensor) -> None:
        """Moving root mean square error without and with latents: the decoder's noise scale in `log_prob`."""
        for index, squares in enumerate((error, with_latents)):
            count = all_reduce_sum(error.new_tensor(squares.numel()))
            if count > 0:
                scale = (all_reduce_sum(squares.sum()) / count).sqrt()
                self.residual_scale[index].lerp_(scale.to(self.residual_scale.dtype), 0.02)


class ImageCodec(CodebookCodec):
    """Encoder, codebooks, latents and decoder of an image sense; observations are frames `(B, C, height, width)`:
    uint8, int32 in the sense's range where it has more than 8 bits, or float in [-1, 1].

    Args:
        sense (`ImageSense`): shape, levels and sizes.
    """

    sense: ImageSense

    def __init__(self, sense: ImageSense):
        super().__init__(sense)
        low, high = sense.value_range
        self.num_values = high - low + 1
        width, pixels = sense.hidden_size, sense.channels * sense.patch_size**2
        self.stem = nn.Linear(pixels, width)
        self.encoder = module_list(PositionBlock(width, sense.kernel_size) for _ in range(sense.num_blocks))
        self.encoder_norm = nn.LayerNorm(width)
        self.build_codes(width, pixels)
        kernel_size = sense.decoder_kernel_size or sense.kernel_size
        self.decoder = module_list(PositionBlock(width, kernel_size) for _ in range(sense.num_blocks))
        self.decoder_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, pixels)

    def to_float(self, values: Tensor) -> Tensor:
        if values.dtype == torch.uint8 and not self.sense.is_deep:
            return values.float() / 127.5 - 1
        if values.is_floating_point():
            return values.float()
        low, high = self.sense.value_range
        return (values.float().clamp(low, high) - low) / ((high - low) / 2) - 1

    def as_output(self, decoded: Tensor) -> Tensor:
        if not self.sense.is_deep:
            return as_bytes(decoded)
        low, high = self.sense.value_range
        return ((decoded.clamp(-1, 1) + 1) * ((high - low) / 2) + low).round().to(torch.int32)

    def to_picture(self, values: Tensor) -> Tensor:
        return values if values.dtype == torch.uint8 else as_bytes(self.to_float(values))

    def span(self, device: torch.device) -> Tensor:
        low, high = self.sense.value_range
        return torch.tensor(float(high - low), device=device)

    def pieces(self, values: Tensor) -> Tensor:
        return fold_grid(values.permute(0, 2, 3, 1), self.sense.patch_size)  # (B, R, S, pixels)

    def features(self, values: Tensor) -> Tensor:
        x = self.stem(self.pieces(self.to_float(values)))
        for block in self.encoder:
            x = block(x)
        return self.encoder_norm(x)  # (B, R, S, W)

    def render(self, x: Tensor, corrections: Tensor) -> Tensor:
        for block in self.decoder:
            x = block(x)
        x = self.head(self.decoder_norm(x)) + corrections
        return unfold_grid(x, self.sense.patch_size).permute(0, 3, 1, 2)

    def differing(self, values: Tensor, others: Tensor) -> Tensor:
        """Where frames differ from others in any channel, `(B, 1, height, width)` of 0 and 1, widened to squares of
        half a patch: where something has just left counts too."""
        mask = (self.to_float(values) - self.to_float(others)).abs().amax(1, keepdim=True) > LEAST_DIFFERENCE
        size = max(1, self.sense.patch_size // 2)
        pooled = nn.functional.max_pool2d(mask.float(), size, ceil_mode=True)  # half of an odd patch tiles no frame
        widened = nn.functional.interpolate(pooled, scale_factor=size)
        return widened[..., : mask.shape[-2], : mask.shape[-1]]


register_sense(ImageSense, ImageCodec)


PARKED = 1e3  # where a live row waits that has nothing to describe
FORGOTTEN = 1e-4  # usage below which a row describes nothing any more: unseen for some 120 to 270 batches
LEAST_DISTANCE = 1e-3  # squared, as a share of the inputs' variance: what is closer counts as the same thing


class Codebook(nn.Module):
    """One level's table of code vectors, which follow the mean of what they code (EMA; van den Oord et al. 2017, A.1).

    Unusual here: the table is allocated at its full *capacity*, and only the rows marked `live` can be chosen, so that
    a new code is a row made live and no shape ever changes. Codes that are hardly in use are revived.

    Args:
        size (`int`): live codes at birth.
        capacity (`int`): rows of the table.
        dim (`int`): width of a row.
        picture_dim (`int`): numbers of the piece of picture that a code covers. Each row keeps in `corrections` what
            its decoded picture lacked when it was born from an observation; zero for codes of training.
        refined_by (`int`): codes of the next level that a code covers. Each row keeps in `refinements` which ones
            these usually are, counted from 1; 0 where none is known.
    """

    decay = 0.95  # of the moving averages
    revive_below = 0.03  # times a batch, on average: a live code used less is moved onto what is described badly
    vectors: Tensor
    live: Tensor
    usage: Tensor
    sums: Tensor
    corrections: Tensor
    refinements: Tensor | None
    started: Tensor

    def __init__(self, size: int, capacity: int, dim: int, picture_dim: int = 0, refined_by: int = 0):
        super().__init__()
        self.size = size
        self.register_buffer("vectors", torch.zeros(capacity, dim))
        self.register_buffer("live", torch.zeros(capacity, dtype=torch.bool))
        self.register_buffer("usage", torch.zeros(capacity))
        self.register_buffer("sums", torch.zeros(capacity, dim))
        self.register_buffer("corrections", torch.zeros(capacity, picture_dim))
        refinements = torch.zeros(capacity, refined_by, dtype=torch.long) if refined_by else None
        self.register_buffer("refinements", refinements)
        self.register_buffer("started", torch.zeros(1, dtype=torch.bool))

    def reset_pan_parameters(self, _std: float) -> None:
        init.normal_(self.vectors, std=1.0)
        init.copy_(self.live, torch.arange(len(self.live)) < self.size)
        for buffer in filter(
            torch.is_tensor, (self.usage, self.sums, self.corrections, self.refinements, self.started)
        ):
            init.zeros_(buffer)

    def distances(self, inputs: Tensor) -> Tensor:
        """Squared distance of `(..., dim)` to every row, `(..., capacity)`; infinite for rows that are not live."""
        vectors = self.vectors
        distance = inputs.square().sum(-1, keepdim=True) - 2 * inputs @ vectors.T + vectors.square().sum(-1)
        return distance.masked_fill(~self.live, torch.inf)

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors of codes: `(...)` int64 -> `(..., dim)`; zero for what is absent (below 0)."""
        return nn.functional.embedding(codes.clamp(min=0), self.vectors) * (codes >= 0).unsqueeze(-1)

    def mean(self, probabilities: Tensor) -> Tensor:
        """Mean vector under probabilities `(..., K)` of the first K codes, `(..., dim)`, differentiable. Codes that
        describe nothing count as 0 and not as what they are parked on, or the least probability would move it far."""
        vectors = self.vectors.masked_fill(self.vectors[:, :1] >= PARKED, 0.0)[: probabilities.shape[-1]]
        return probabilities.to(vectors.dtype) @ vectors

    def shift(self, logits: Tensor, codes: Tensor) -> Tensor:
        """The expected vectors under logits `(..., K)` of the first K codes, less the vectors of codes `(...)`,
        `(..., dim)`."""
        return self.mean(logits.softmax(-1)) - self.lookup(codes)

    def describes(self) -> Tensor:
        """`(capacity,)` bool: live rows that describe something; none before training has begun."""
        return self.live & (self.vectors[:, 0] < PARKED) & self.started

    def spread(self) -> Tensor:
        """Variance of the codes in use, weighted by usage and summed over dimensions: a scalar, 0 before training."""
        used = self.usage * self.describes()
        share = (used / used.sum().clamp(min=1e-12)).unsqueeze(1)
        mean = (share * self.vectors).sum(0)
        return (share * (self.vectors - mean).square()).sum()

    def add(self, codes: range, vectors: Tensor) -> None:
        """Makes reserved rows live: codes that stand for `vectors` `(len(codes), dim)`."""
        rows = slice(codes.start, codes.stop)
        self.vectors[rows] = self.sums[rows] = vectors.to(self.vectors.dtype)
        self.usage[rows], self.live[rows] = 1.0, True
        self.corrections[rows] = 0.0
        if self.refinements is not None:
            self.refinements[rows] = 0

    def reserve(self, rows: int) -> None:
        """Appends dead rows."""
        for name, buffer in list(self.named_buffers()):
            if name != "started":
                more = torch.zeros(rows, *buffer.shape[1:], dtype=buffer.dtype, device=buffer.device)
                setattr(self, name, torch.cat([buffer, more.normal_() if name == "vectors" else more]))

    def forward(self, inputs: Tensor, update: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Args: inputs `(..., dim)`; update: move the codebook towards them. Returns: codes `(...)`; their vectors
        `(..., dim)` with a straight-through gradient; the commitment loss, a scalar."""
        inputs = inputs.float()
        if update and not bool(self.started):
            self._start(inputs.detach().flatten(0, -2))
        with torch.no_grad():
            distance, codes = self.distances(inputs).min(-1)
        vectors = self.lookup(codes)
        if update:
            self._follow(inputs.detach().flatten(0, -2), codes.flatten(), distance.flatten())
        commitment = nn.functional.mse_loss(inputs, vectors)
        return codes, inputs + (vectors - inputs).detach(), commitment

    @torch.no_grad()
    def _start(self, inputs: Tensor) -> None:
        """Places the live rows on inputs of the first batch, far from one another (k-means++ seeding); rows for which
        nothing different is left are parked far away until something is."""
        inputs = all_gather_rows(inputs)
        inputs = inputs[torch.randperm(len(inputs))[:8192]]
        chosen = [inputs[:1]]
        distance = torch.cdist(inputs, chosen[0]).squeeze(-1).square()
        least = LEAST_DISTANCE * inputs.var(0).sum()
        for _ in range(int(self.live.sum()) - 1):
            distance = torch.where(distance > least, distance, torch.zeros_like(distance))
            if not bool(distance.any()):
                break
            chosen.append(inputs[torch.multinomial(distance, 1)])
            distance = torch.minimum(distance, torch.cdist(inputs, chosen[-1]).squeeze(-1).square())
        placed = torch.full_like(self.vectors[self.live], PARKED)
        placed[: len(chosen)] = torch.cat(chosen)
        placed = broadcast_from_main(placed)
        self.vectors[self.live] = self.sums[self.live] = placed
        self.usage[self.live] = (placed[:, 0] < PARKED).float()
        self.started.fill_(True)

    @torch.no_grad()
    def _follow(self, inputs: Tensor, codes: Tensor, distance: Tensor) -> None:
        usage = torch.bincount(codes, minlength=len(self.usage)).to(self.usage.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, inputs)
        usage, sums = all_reduce_sum(usage), all_reduce_sum(sums)
        self.usage.lerp_(usage, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        used = self.usage >= FORGOTTEN
        self.vectors[used] = self.sums[used] / self.usage[used].unsqueeze(-1)
        least = LEAST_DISTANCE * variance(inputs).sum()
        self._merge_twins(least)
        self._park(torch.nonzero(self.live & (self.usage < FORGOTTEN)).squeeze(-1))
        self._revive(inputs, distance, least)

    def _merge_twins(self, least: Tensor) -> None:
        """Parks each row that has come closer than `least` to a row used more: the encoder moves, and rows that once
        described different things end up on the same one, where the least movement turns one code into the other."""
        rows = torch.nonzero(self.live & (self.usage > 0)).squeeze(-1)
        rows = rows[self.usage[rows].argsort(descending=True, stable=True)]
        distance = torch.cdist(self.vectors[rows], self.vectors[rows]).square()
        self._park(rows[(distance < least).triu(1).any(0)])

    def _park(self, rows: Tensor) -> None:
        self.vectors[rows] = PARKED
        for buffer in (self.usage, self.sums, self.corrections):
            buffer[rows] = 0.0

    def _revive(self, inputs: Tensor, distance: Tensor, least: Tensor) -> None:
        """Moves one live code that hardly anything uses, the least used, onto an input drawn in proportion to how
        badly it is described; one a batch, since two at once could land on the same thing. While all is described
        well each keeps what it describes: what is rare comes back."""
        dead = torch.nonzero(self.live & (self.usage < self.revive_below)).squeeze(-1)
        if len(dead) == 0:
            return
        inputs, distance = all_gather_rows(inputs), all_gather_rows(distance)
        badly = torch.where(distance > least, distance, torch.zeros_like(distance))
        fresh = inputs[torch.multinomial(badly, 1)[0]] if badly.any() else torch.full_like(inputs[0], PARKED)
        fresh = broadcast_from_main(fresh)
        if bool(fresh[0] < PARKED):
            row = dead[self.usage[dead].argmin()]
            self.vectors[row], self.sums[row], self.usage[row] = fresh, fresh, 1.0
            self.corrections[row] = 0.0
