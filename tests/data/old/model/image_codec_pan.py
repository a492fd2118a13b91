"""Images as codes on a pyramid of grids, plus continuous latents: the sensory encoder h and decoder g of one camera.

A frame is cut into patches, each patch encoded where it stands: every normalisation is over the channels of *one*
position, never over the map, because a map-wide norm makes one moving cell change the codes of cells that did not
move. Level 0 describes blocks of patches; each finer level quantises what the levels before it leave over, so any
prefix of levels decodes. What no level holds goes into `latent_dim` continuous numbers a place.

Shapes: B = batch, (R, S) = the finest grid, W = hidden size, P = places, K = capacity of a level.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .latent_head_pan import LATENT_BLUR
from .processes_pan import log_of_mean, shared_mean, summed, variance
from .quantizer_pan import Codebook
from .sense_configuration_pan import ImageSense

LEAST_SCALE = 1e-3  # of a decoded pixel's error, in [-1, 1]
LEAST_ERROR = 1e-6  # weighted squared error below which nothing is gained: 60 dB


class PositionBlock(nn.Module):
    """Residual block on a channels-last map `(B, R, S, W)`, normalised at each position."""

    def __init__(self, width: int, kernel_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2) if kernel_size > 1 else None
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        if self.mix is not None:
            hidden = nn.functional.gelu(self.mix(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x + self.contract(nn.functional.gelu(self.expand(hidden)))


def fold_grid(x: Tensor, factor: int) -> Tensor:
    """Space to depth: `(B, R, S, W)` -> `(B, R/f, S/f, f*f*W)`."""
    if factor == 1:
        return x
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows // factor, factor, columns // factor, factor, width)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows // factor, columns // factor, factor * factor * width)


def unfold_grid(x: Tensor, factor: int) -> Tensor:
    """Depth to space, the inverse of `fold_grid`: `(B, R, S, f*f*W)` -> `(B, R*f, S*f, W)`."""
    if factor == 1:
        return x
    batch, rows, columns, width = x.shape
    width = width // factor**2
    x = x.reshape(batch, rows, columns, factor, factor, width).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * factor, columns * factor, width)


def as_bytes(frames: Tensor) -> Tensor:
    """Decoded frames, nominally in [-1, 1], as uint8."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class ImageCodec(nn.Module):
    """Encoder, codebooks, latents and decoder of an image sense.

    Args:
        sense (`ImageSense`): shape, levels and sizes.
    """

    def __init__(self, sense: ImageSense):
        super().__init__()
        self.sense = sense
        width, dim = sense.hidden_size, sense.code_dim
        pixels = sense.channels * sense.patch_size**2
        self.stem = nn.Linear(pixels, width)
        self.encoder = nn.ModuleList(PositionBlock(width, sense.kernel_size) for _ in range(sense.num_blocks))
        self.encoder_norm = nn.LayerNorm(width)
        finer = [*sense.level_strides[1:], None]
        self.codebooks = nn.ModuleList(
            Codebook(size, capacity, dim, pixels * stride**2, (stride // below) ** 2 if below else 0)
            for size, capacity, stride, below in zip(
                sense.codebook_size, sense.codebook_capacity, sense.level_strides, finer, strict=True
            )
        )
        self.to_code = nn.ModuleList(nn.Linear(stride**2 * width, dim) for stride in sense.level_strides)
        self.from_code = nn.ModuleList(nn.Linear(dim, stride**2 * width) for stride in sense.level_strides)
        if sense.latent_dim:
            fold = sense.place_stride**2
            self.to_latent = nn.Linear(2 * fold * width, sense.latent_dim)
            self.from_latent = nn.Linear(sense.latent_dim, fold * width)
            self.register_buffer("latent_scale", torch.ones(sense.latent_dim))
        self.decoder = nn.ModuleList(PositionBlock(width, sense.decoder_kernel_size) for _ in range(sense.num_blocks))
        self.decoder_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, pixels)
        self.register_buffer("residual_scale", torch.ones(2))
        # whether what is imagined comes closer with latents, see `judge_latents`; taken for granted until it is judged
        self.register_buffer("latents_help", torch.ones(1, dtype=torch.bool))

    def reset_pan_parameters(self, _std: float) -> None:
        if self.sense.latent_dim:
            init.ones_(self.latent_scale)
        init.ones_(self.residual_scale)
        init.ones_(self.latents_help)

    @staticmethod
    def to_float(frames: Tensor) -> Tensor:
        """uint8 frames in [0, 255] -> float in [-1, 1]; float frames pass."""
        return frames.float() / 127.5 - 1 if frames.dtype == torch.uint8 else frames

    def _features(self, frames: Tensor) -> Tensor:
        x = fold_grid(self.to_float(frames).permute(0, 2, 3, 1), self.sense.patch_size)  # (B, R, S, pixels)
        x = self.stem(x)
        for block in self.encoder:
            x = block(x)
        return self.encoder_norm(x)  # (B, R, S, W)

    def _quantize(self, features: Tensor, update: bool):
        """Codes a level `(B, r, s)`, the map their vectors add up to, one map a prefix, and the commitment loss."""
        total, prefixes, codes, commitment = torch.zeros_like(features), [], [], 0.0
        for level, stride in enumerate(self.sense.level_strides):
            left_over = fold_grid(features - total, stride)
            level_codes, vectors, loss = self.codebooks[level](self.to_code[level](left_over), update)
            total = total + unfold_grid(self.from_code[level](vectors), stride)
            prefixes.append(total)
            codes.append(level_codes)
            commitment = commitment + loss
        return codes, prefixes, commitment

    def code_inputs(self, frames: Tensor, level: int) -> Tensor:
        """What the codebook of a level is asked to describe, `(B, r, s, code_dim)`: what the levels before it leave
        over of frames `(B, C, height, width)`."""
        features = self._features(frames)
        total = torch.zeros_like(features) if level == 0 else self._quantize(features, update=False)[1][level - 1]
        return self.to_code[level](fold_grid(features - total, self.sense.level_strides[level])).float()

    def _latents(self, features: Tensor, coded: Tensor) -> Tensor:
        stride = self.sense.place_stride
        return self.to_latent(torch.cat([fold_grid(features, stride), fold_grid(coded, stride)], -1))  # not yet scaled

    def encode(self, frames: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Args: frames `(B, C, height, width)`, uint8 or float in [-1, 1]. Returns: codes, one `(B, num_codes)` int64
        a level in raster order, coarse first; latents `(B, P, latent_dim)` at unit scale, or None."""
        features = self._features(frames)
        grids, prefixes, _ = self._quantize(features, update=False)
        codes = [grid.flatten(1) for grid in grids]
        if not self.sense.latent_dim:
            return codes, None
        return codes, self._latents(features, prefixes[-1]).flatten(1, 2) / self.latent_scale

    def latents_given(self, frames: Tensor, codes: list[Tensor]) -> Tensor:
        """What codes lack of frames, `(B, P, latent_dim)` at unit scale: with codes of other frames, as imagined ones
        are, latents mend them. Args: frames as for `encode`; codes as for `decode`, of all levels."""
        vectors = [book.lookup(c) for book, c in zip(self.codebooks, codes, strict=True)]
        coded = self._code_map(vectors, codes)
        return self._latents(self._features(frames), coded).flatten(1, 2) / self.latent_scale

    def latents_expected(self, codes: list[Tensor], shifts: list[Tensor]) -> Tensor:
        """The latents `(B, P, latent_dim)` with which codes come to the frame that their vectors give when moved by
        their shifts `(B, n, code_dim)`. Args: codes as for `decode`, of all levels."""
        vectors = [book.lookup(c) + s for book, c, s in zip(self.codebooks, codes, shifts, strict=True)]
        return self.latents_given(self._decode_vectors(vectors, codes, None), codes)

    def note_refinements(self, codes: list[Tensor]) -> None:
        """Keeps which codes of each level most often stand under each code of the level before it, of codes of all
        levels `(N, n)`; what is known of a code that does not occur stays."""
        for level, book in enumerate(self.codebooks[:-1]):
            found = self.commonest_refinements(codes, level)
            book.refinements.copy_(torch.where(found >= 0, found + 1, book.refinements))

    def commonest_refinements(self, codes: list[Tensor], level: int) -> Tensor:
        """The code of the next level that stands most often at each cell under each code of a level, in raster order,
        `(capacity, slots)`; below 0 where a code does not occur. Args: codes of all levels, `(N, n)`."""
        factor = self.sense.level_strides[level] // self.sense.level_strides[level + 1]
        rows, size, slots = (*(len(self.codebooks[at].live) for at in (level, level + 1)), factor**2)
        counts = torch.zeros(rows * slots * size, dtype=torch.long, device=codes[level].device)
        for coarse, fine in zip(codes[level].split(4096), codes[level + 1].split(4096), strict=True):
            grid = fine.long().unflatten(1, self.sense.level_grid(level + 1)).unsqueeze(-1)
            row = coarse.long().unsqueeze(-1) * slots + torch.arange(slots, device=coarse.device)
            counts += (row * size + fold_grid(grid, factor).flatten(1, 2)).flatten().bincount(minlength=len(counts))
        most, found = counts.view(rows, slots, size).max(-1)
        return found.masked_fill(most == 0, -1)

    def usual_refinements(self, coarser: Tensor, level: int) -> Tensor:
        """The codes of a level that usually stand under codes of the level before it, `(N, n')` -> `(N, n)`; below 0
        where that is not known, or the usual code lives no more."""
        found = nn.functional.embedding(coarser.clamp(min=0), self.codebooks[level - 1].refinements) - 1
        found = torch.where((coarser >= 0).unsqueeze(-1) & self.codebooks[level].live[found], found, -1)
        factor = int(found.shape[-1] ** 0.5)
        return unfold_grid(found.unflatten(1, self.sense.level_grid(level - 1)), factor).flatten(1)

    def _code_map(self, vectors: list[Tensor], chosen: list[Tensor]) -> Tensor:
        """The map that the code vectors of a prefix of levels add up to; a code that is absent adds nothing, so each
        cell is what its own prefix says."""
        total: Tensor = 0.0
        for level, level_vectors in enumerate(vectors):
            grid = self.from_code[level](level_vectors.unflatten(1, self.sense.level_grid(level)))
            if level and not chosen[level].is_floating_point():
                grid = grid * (chosen[level] >= 0).unflatten(1, self.sense.level_grid(level)).unsqueeze(-1)
            total = total + unfold_grid(grid, self.sense.level_strides[level])
        return total

    def _latent_map(self, grid: Tensor, known: Tensor | None = None) -> Tensor:
        """The map of latents `(B, rows, columns, D)`, where they are `known` `(B, rows, columns, 1)`."""
        found = self.from_latent(grid)
        return unfold_grid(found if known is None else found * known, self.sense.place_stride)

    def _corrections(self, grids: list[Tensor], num_levels: Tensor | None = None) -> Tensor:
        """Pixels that codes add by themselves (see `Codebook`): maps `(B, r, s)` of codes, or `(B, r, s, K)` of their
        probabilities, one a level -> `(B, R, S, pixels)`, or a scalar 0 where no code adds any. `num_levels` `(B,)`:
        how many levels of each frame count; all if None."""
        total = torch.zeros((), device=self.residual_scale.device)
        for level, grid in enumerate(grids):
            table = self.codebooks[level].corrections
            if not bool(table.any()):
                continue
            if grid.is_floating_point():
                found = grid @ table[: grid.shape[-1]]
            else:
                found = nn.functional.embedding(grid.clamp(min=0), table) * (grid >= 0).unsqueeze(-1)
            found = unfold_grid(found, self.sense.level_strides[level])
            total = total + (found if num_levels is None else found * (num_levels > level).view(-1, 1, 1, 1))
        return total

    def _render(self, x: Tensor, corrections: Tensor) -> Tensor:
        """Maps `(B, R, S, W)` and what codes add by themselves -> frames `(B, C, height, width)`."""
        for block in self.decoder:
            x = block(x)
        x = self.head(self.decoder_norm(x)) + corrections
        return unfold_grid(x, self.sense.patch_size).permute(0, 3, 1, 2)

    def decode(self, codes: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Args: codes, any prefix of levels, absent ones below 0; latents at unit scale, optional, absent ones not a
        number. Returns: frames `(B, C, height, width)` float, nominally in [-1, 1]."""
        vectors = [book.lookup(c) for book, c in zip(self.codebooks, codes, strict=False)]
        return self._decode_vectors(vectors, codes, latents)

    def _decode_vectors(self, vectors: list[Tensor], chosen: list[Tensor], latents: Tensor | None) -> Tensor:
        """Args: vectors `(B, n, dim)` a level; chosen, the codes `(B, n)` they are of, or the probabilities
        `(B, n, K)` they are the mean under; latents as for `decode`."""
        x = self._code_map(vectors, chosen)
        if latents is not None:
            known = ~latents[..., :1].isnan().unflatten(1, self.sense.place_grid)
            scaled = (latents.nan_to_num() * self.latent_scale).unflatten(1, self.sense.place_grid)
            x = x + self._latent_map(scaled, known)
        grids = [part.unflatten(1, self.sense.level_grid(level)) for level, part in enumerate(chosen)]
        return self._render(x, self._corrections(grids))

    def decode_probabilities(self, probabilities: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Frames of the expected code vectors under distributions `(B, num_codes, K)` over the first K codes, one a
        level; differentiable, so that the generative loss of equation 8 reaches whatever made the distributions."""
        vectors = [book.mean(p) for p, book in zip(probabilities, self.codebooks, strict=True)]
        return self._decode_vectors(vectors, probabilities, latents)

    def describe(self) -> list[tuple[Tensor, Tensor]]:
        """For each level `(K, code_dim)` and `(K,)` bool: what each code stands for, and whether it does so yet."""
        return [book.description() for book in self.codebooks]

    def pixel_weight(
        self, frames: Tensor, neighbours: Tensor, usual: Tensor | None, motion: float, rarity: float
    ) -> Tensor:
        """Weight of each pixel, `(B, 1, height, width)`, mean 1: 1, plus `motion` where the frame differs from its
        neighbour in time, plus `rarity` where it differs from the usual frame."""
        weight = 1 + motion * self.differing(frames, neighbours)
        if usual is not None:
            weight = weight + rarity * self.differing(frames, usual)
        return weight / shared_mean(weight.mean())

    def differing(self, frames: Tensor, others: Tensor) -> Tensor:
        """Where frames differ from others, `(B, 1, height, width)` of 0 and 1."""
        return self._widened((self.to_float(frames) - self.to_float(others)).abs().amax(1, keepdim=True) > 0.02)

    def _widened(self, mask: Tensor) -> Tensor:
        """A pixel mask widened to the half patches it touches: where something has just left counts too."""
        size = max(1, self.sense.patch_size // 2)
        pooled = nn.functional.max_pool2d(mask.float(), size)
        return nn.functional.interpolate(pooled, scale_factor=size)

    def losses(
        self,
        frames: Tensor,
        neighbours: Tensor,
        usual: Tensor | None,
        motion: float,
        rarity: float,
        update: bool = True,
    ) -> dict[str, Tensor]:
        """Losses of stage 1, with codebooks and scales moved along if `update`. Nested dropout: each frame is decoded
        from all codes, and in another way as well, see `_another_way`; so that every prefix of blocks decodes.

        Args: frames, their neighbours in time and what is usually seen there, `(B, C, h, w)`: whole frames, or crops
        of whole places. Returns: `reconstruction`, `commitment`."""
        target = self.to_float(frames)
        features = self._features(frames)
        grids, prefixes, commitment = self._quantize(features, update)
        weight = self.pixel_weight(frames, neighbours, usual, motion, rarity)
        way, other, other_grids, num_levels = self._another_way(features, grids, prefixes, neighbours, update)
        num_levels = torch.cat([torch.full_like(num_levels, len(grids)), num_levels])
        pairs = [torch.cat(pair) for pair in zip(grids, other_grids, strict=True)]
        decoded = self._render(torch.cat([prefixes[-1], other]), self._corrections(pairs, num_levels))
        error, other_error = (decoded - torch.cat([target, target])).square().chunk(2)
        if self.training:
            self._track_scales(error, other_error[way == len(grids) - 1])
        full = self._summed((weight * error).mean(), update)
        kinds, by_row = 0.0, (weight * other_error).flatten(1).mean(1)
        for kind in range(self._num_ways(len(grids))):
            is_kind = (way == kind).float()
            share = shared_mean(is_kind.mean())
            if share > 0:
                kinds = kinds + share * self._summed((is_kind * by_row).mean() / share, update)
        return {"reconstruction": full + 0.2 * kinds, "commitment": commitment}

    @staticmethod
    def _summed(error: Tensor, in_decibels: bool) -> Tensor:
        """A mean squared error; in logarithms, as decibels are, a coarse prefix's large error does not drown what the
        full code lacks."""
        return log_of_mean(error, LEAST_ERROR) if in_decibels else error

    def _num_ways(self, num_levels: int) -> int:
        """Of telling a frame beside all of its codes, see `_another_way`."""
        return num_levels + 1 if self.sense.latent_dim else max(1, num_levels - 1)

    def _another_way(
        self, features: Tensor, grids: list[Tensor], prefixes: list[Tensor], neighbours: Tensor, update: bool
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """For each frame another way to tell it, drawn at random. With L levels, the ways are: `0` to `L - 2`, that
        many levels and one; `L - 1`, all codes and noisy latents; `L`, the codes of its neighbour in time and the
        noisy latents that mend them; without latents, all codes where there is no shorter prefix.

        Returns: way `(B,)`; the map `(B, R, S, W)`; the codes, a grid `(B, r, s)` a level, and how many levels of them
        count, `(B,)`."""
        last, device = len(prefixes) - 1, features.device
        way = torch.randint(self._num_ways(len(prefixes)), (len(features),), device=device)
        level = way.clamp(max=last)
        found = torch.stack(prefixes)[level, torch.arange(len(features), device=device)]
        if not self.sense.latent_dim:
            return way, found, grids, level + 1
        is_mended, has_latents = way > last, way >= last
        if is_mended.any():
            with torch.no_grad():
                others, maps, _ = self._quantize(self._features(neighbours[is_mended]), update=False)
            found = found.masked_scatter(is_mended.view(-1, 1, 1, 1), maps[-1])
            grids = [grid.masked_scatter(is_mended.view(-1, 1, 1), o) for grid, o in zip(grids, others, strict=True)]
        latents = self._latents(features, found.detach())  # of all frames: in each of several processes they take part
        if update:
            if summed(has_latents.sum()) > 0:
                with torch.no_grad():
                    spread = variance(latents.detach()[has_latents].flatten(0, 2)).sqrt().clamp(min=1e-3)
                    self.latent_scale.lerp_(spread, 0.05)
            # only while the scale follows: against noise of a fixed size, latents would learn to grow for ever
            latents = latents + LATENT_BLUR * self.latent_scale.clone() * torch.randn_like(latents)
        found = found + self._latent_map(latents) * has_latents.view(-1, 1, 1, 1)
        return way, found, grids, level + 1

    def error_scale(self, latents: bool = False) -> Tensor:
        """Standard deviation of a decoded pixel, without or with latents, as far as training told; a scalar."""
        return self.residual_scale[int(latents)].clamp(min=LEAST_SCALE)
    @torch.no_grad()
    def _track_scales(self, error: Tensor, with_latents: Tensor) -> None:
        """Moving root mean square error without and with latents: the decoder's noise scale in `log_prob`."""
        for index, found in enumerate((error, with_latents)):
            count = summed(error.new_tensor(found.numel()))
            if count > 0:
                scale = (summed(found.sum()) / count).sqrt()
                self.residual_scale[index].lerp_(scale.to(self.residual_scale.dtype), 0.02)
