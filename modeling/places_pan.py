"""From codes to the backbone and back: state embeddings, readouts, and the head that samples coherent futures.

A code enters the backbone through its own row of the vocabulary and is read out against its own row, so a new token is
a new row and nothing else. What is learned here is shared by all codes of a level: where a code sits inside its place,
and a local adapter that looks at a place's neighbours. One query a place reads *all* of the codes of that place, so a
step of a 64x64 image costs the backbone 16 query positions, not one for each of its 128 codes.

Shapes: B = batch, P = places, r = codes a place holds at a level, n = P * r, H = backbone width, A = adapter width,
K = capacity of the level's segment.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .senses_pan import fold_places, unfold_places


class PlaceEmbedding(nn.Module):
    """Adds up the vocabulary rows of the codes at each place, the projected latents, and the place's own embedding."""

    def __init__(self, sense, hidden_size: int):
        super().__init__()
        self.sense = sense
        self.place = nn.Parameter(torch.empty(sense.num_places, hidden_size))
        self.fold = nn.ModuleList(
            nn.Linear(per_place * hidden_size, hidden_size, bias=False) for per_place in sense.codes_per_place
        )
        self.latent = nn.Linear(sense.latent_dim, hidden_size, bias=False) if sense.latent_dim else None

    def reset_pan_parameters(self, std: float) -> None:
        init.normal_(self.place, std=std)

    def codes(self, rows: list[Tensor]) -> Tensor:
        """Rows of a prefix of levels, one `(B, n, H)` a level -> `(B, P, H)`, without the place's own embedding."""
        total = 0.0
        for level, level_rows in enumerate(rows):
            total = total + self.fold[level](fold_places(level_rows, self.sense, level).flatten(2))
        return total

    def forward(self, rows: list[Tensor], latents: Tensor | None = None) -> Tensor:
        """Args: rows of a prefix of levels `(B, n, H)`; latents `(B, P, latent_dim)`. Returns: `(B, P, H)`."""
        x = self.codes(rows) + self.place
        if latents is not None and self.latent is not None:
            x = x + self.latent(latents.to(x.dtype))
        return x


class LevelReadout(nn.Module):
    """Logits over one level's codes from the hidden states of the places, the current codes and the coarser new ones.

    Args:
        sense: an image or vector sense.
        level (`int`): 0 is the coarsest.
        hidden_size, width (`int`): H and A.
        copy_bias (`float`): initial value of the scalar added to the current code's logit.
        autoregressive (`bool`): sample the codes one after the other (see [`SentenceHead`]).
    """

    def __init__(self, sense, level: int, hidden_size: int, width: int, copy_bias: float, autoregressive: bool):
        super().__init__()
        self.sense, self.level, self.initial_copy_bias = sense, level, copy_bias
        self.places = nn.Linear(3 * hidden_size, sense.codes_per_place[level] * width)
        self.current = nn.Linear(hidden_size, width, bias=False)
        self.coarser = nn.ModuleList(nn.Linear(hidden_size, width, bias=False) for _ in range(level))
        # vocabulary rows are a fiftieth of the size of hidden states, and would otherwise hardly be seen beside them
        self.row_norm = nn.LayerNorm(hidden_size)
        self.norm = nn.LayerNorm(width)
        self.neighbours = nn.Conv2d(width, width, 3, padding=1) if sense.kind == "image" else nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        num_codes = sense.num_places * sense.codes_per_place[level]
        self.sentence = SentenceHead(num_codes, hidden_size, width) if autoregressive else None
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, hidden_size)
        self.copy_bias = nn.Parameter(torch.empty(1))

    def reset_pan_parameters(self, _std: float) -> None:
        init.constant_(self.copy_bias, self.initial_copy_bias)

    def features(self, places: Tensor, current: Tensor, coarser: list[Tensor]) -> Tensor:
        """Args: places `(B, P, 3H)`, see `PanModel.split_places`; current, rows of the current codes `(B, n, H)`;
        coarser, rows of the new codes of each level before this one `(B, n_l, H)`. Returns: `(B, n, A)`."""
        per_place = self.sense.codes_per_place[self.level]
        hidden, now, action = places.chunk(3, -1)
        places = torch.cat([hidden, self.row_norm(now), self.row_norm(action)], -1)
        x = unfold_places(self.places(places).unflatten(-1, (per_place, -1)), self.sense, self.level)
        x = x + self.current(self.row_norm(current))
        for level, rows in enumerate(coarser):
            x = x + self._spread(self.coarser[level](self.row_norm(rows)), level)
        x = x + self._look_around(self.norm(x))
        return x + self.contract(nn.functional.gelu(self.expand(self.mlp_norm(x))))

    def _spread(self, x: Tensor, level: int) -> Tensor:
        """A coarser level's map `(B, n_l, A)` repeated onto this level's finer one `(B, n, A)`."""
        if self.sense.kind != "image":
            return x
        rows, columns = (size // self.sense.level_strides[level] for size in self.sense.patch_grid)
        factor = self.sense.level_strides[level] // self.sense.level_strides[self.level]
        if factor == 1:
            return x
        grid = x.reshape(len(x), rows, 1, columns, 1, -1).expand(-1, -1, factor, -1, factor, -1)
        return grid.reshape(len(x), rows * columns * factor**2, -1)

    def _look_around(self, x: Tensor) -> Tensor:
        if self.sense.kind != "image":
            return nn.functional.gelu(self.neighbours(x))
        rows, columns = (size // self.sense.level_strides[self.level] for size in self.sense.patch_grid)
        grid = x.transpose(1, 2).unflatten(2, (rows, columns))
        return nn.functional.gelu(self.neighbours(grid)).flatten(2).transpose(1, 2)

    def logits(self, features: Tensor, table: Tensor, live: Tensor, current_codes: Tensor) -> Tensor:
        """Args: features `(..., A)`; table, the segment's rows `(K, H)`; live `(K,)` bool; current_codes `(...)`.
        Returns: `(..., K)` float32, minus infinity at rows that are not live."""
        logits = (self.out(self.out_norm(features)) @ table.T).float()
        bias = self.copy_bias.float().expand(current_codes.shape).unsqueeze(-1)
        logits = logits.scatter_add(-1, current_codes.unsqueeze(-1), bias)
        return logits.masked_fill(~live, -torch.inf)


class SentenceHead(nn.Module):
    """A small causal transformer over the codes of one level, in raster order.

    Codes sampled in parallel from their marginals would mix two futures into one (an obstacle in two cells, or in
    none). This head makes level 0 a sentence: each code is drawn given those before it, the backbone having been run
    once for all of them. Sampling costs `n` steps of this head and no further backbone pass.
    """

    def __init__(self, num_codes: int, hidden_size: int, width: int, num_layers: int = 2, num_heads: int = 4):
        super().__init__()
        self.row_norm = nn.LayerNorm(hidden_size)
        self.previous = nn.Linear(hidden_size, width, bias=False)
        self.start = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(num_codes, width))
        self.layers = nn.ModuleList(_CausalLayer(width, num_heads) for _ in range(num_layers))

    def reset_pan_parameters(self, std: float) -> None:
        init.normal_(self.start, std=std)
        init.normal_(self.position, std=std)

    def forward(self, features: Tensor, rows: Tensor) -> Tensor:
        """Teacher forced. Args: features `(B, n, A)`; rows of the true codes `(B, n, H)`. Returns: `(B, n, A)`."""
        previous = torch.cat([self.start.expand(len(rows), 1, -1), self.previous(self.row_norm(rows[:, :-1]))], 1)
        x = features + previous + self.position
        for layer in self.layers:
            x = layer(x)
        return x

    def step(self, features: Tensor, previous_row: Tensor | None, index: int, cache: list) -> Tensor:
        """One position. Args: features `(B, A)` of it; previous_row `(B, H)` or None at the start; cache, a list that
        this call fills. Returns: `(B, A)`."""
        previous = self.start if previous_row is None else self.previous(self.row_norm(previous_row))
        x = (features + previous + self.position[index]).unsqueeze(1)
        cache = cache if cache else cache.extend({} for _ in self.layers) or cache
        for layer, memory in zip(self.layers, cache, strict=True):
            x = layer(x, memory)
        return x.squeeze(1)


class _CausalLayer(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, memory: dict | None = None) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        if memory is not None:
            if memory:
                key, value = torch.cat([memory["key"], key], 2), torch.cat([memory["value"], value], 2)
            memory["key"], memory["value"] = key, value
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=memory is None)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.contract(nn.functional.gelu(self.expand(self.mlp_norm(x))))
