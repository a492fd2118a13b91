"""A codebook with room to grow: vector quantisation with moving averages, and revival of codes that are hardly used.

Nearest-neighbour codes with a straight-through gradient (van den Oord et al. 2017) and codebook vectors that follow
the mean of what they code (EMA, its appendix A.1). Unusual here: the table is allocated at its full *capacity*, and
only the rows marked `live` can be chosen, so that a new code is a row made live and no shape ever changes.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .processes_pan import gathered, summed, told_by_first, variance

PARKED = 1e3  # where a live row waits that has nothing to describe
FORGOTTEN = 1e-4  # usage below which a row describes nothing any more: unseen for some 120 to 270 batches
LEAST_DISTANCE = 1e-3  # squared, as a share of the inputs' variance: what is closer counts as the same thing


class Codebook(nn.Module):
    """One level's table of code vectors.

    Args:
        size (`int`): live codes at birth.
        capacity (`int`): rows of the table.
        dim (`int`): width of a row.
        picture_dim (`int`): numbers of the piece of picture that a code covers. Each row keeps in `corrections` what
            the decoder's picture of it lacked when it was born from an observation; zero for codes of training.
        refined_by (`int`): codes of the next level that a code covers. Each row keeps in `refinements` which ones
            these usually are, counted from 1; 0 where that is not known.
        decay (`float`): of the moving averages.
        revive_below (`float`): a live code used less than this many times a batch, on average, is moved onto an
            encoder output that the codebook describes badly, where there is one.
    """

    vectors: Tensor

    def __init__(
        self,
        size: int,
        capacity: int,
        dim: int,
        picture_dim: int = 0,
        refined_by: int = 0,
        decay: float = 0.95,
        revive_below: float = 0.03,
    ):
        super().__init__()
        self.size, self.decay, self.revive_below = size, decay, revive_below
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
        for buffer in (self.usage, self.sums, self.corrections, self.refinements, self.started):
            if buffer is not None:
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
        """What leads from the vectors of codes `(...)` to the expected ones under logits `(..., K)` of the first K
        codes, `(..., dim)`."""
        return self.mean(logits.softmax(-1)) - self.lookup(codes)

    def describes(self) -> Tensor:
        """`(capacity,)` bool: live rows that describe something; none before training has begun."""
        return self.live & (self.vectors[:, 0] < PARKED) & self.started

    def description(self) -> tuple[Tensor, Tensor]:
        """`(capacity, dim)` and `(capacity,)` bool: what each code stands for, and whether it does so yet."""
        return self.vectors, self.describes()

    def spread(self) -> Tensor:
        """Mean squared distance of what is coded to its mean, as far as the codes in use tell: a scalar, 0
        before training."""
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
        inputs = gathered(inputs)
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
        told_by_first(placed)
        self.vectors[self.live] = self.sums[self.live] = placed
        self.usage[self.live] = (placed[:, 0] < PARKED).float()
        self.started.fill_(True)

    @torch.no_grad()
    def _follow(self, inputs: Tensor, codes: Tensor, distance: Tensor) -> None:
        usage = torch.bincount(codes, minlength=len(self.usage)).to(self.usage.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, inputs)
        usage, sums = summed(usage), summed(sums)
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
        inputs, distance = gathered(inputs), gathered(distance)
        badly = torch.where(distance > least, distance, torch.zeros_like(distance))
        fresh = inputs[torch.multinomial(badly, 1)[0]] if badly.any() else torch.full_like(inputs[0], PARKED)
        told_by_first(fresh)
        if bool(fresh[0] < PARKED):
            row = dead[self.usage[dead].argmin()]
            self.vectors[row], self.sums[row], self.usage[row] = fresh, fresh, 1.0
            self.corrections[row] = 0.0
