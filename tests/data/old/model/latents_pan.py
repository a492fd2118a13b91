"""The latents that go with chosen codes: what their head is told, where it starts from, and how they are drawn.

Where a world is deterministic (level 0 is drawn in parallel) a code that is not the true one is a mistake, and latents
make up for it: those of images start from the image that is expected, and the head corrects them. Where futures
branch, a code that was drawn otherwise is another future, and latents must not pull it back: they start from nothing.

Shapes: N = rows, P = places of a sense, n = codes of a level, C = width of a condition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .belief_pan import State
from .places_pan import CodeTables
from .senses_pan import fold_places, unfold_places


def mends(config) -> bool:
    """Whether latents make up for codes that are not the true ones."""
    return config.level0_sampling == "parallel"


class LatentsMixin:
    """Conditions, starts and draws of the latent heads of [`PanModel`]."""

    @property
    def hedged_senses(self) -> list[str]:
        """The senses whose latents hedge: in deterministic worlds those of images start from what is expected."""
        senses = self.config.senses.items() if mends(self.config) else ()
        return [name for name, sense in senses if sense.kind == "image" and sense.latent_dim]

    def _shift_size(self, name: str) -> int:
        """How many numbers a place's shifts are, of all levels of a sense."""
        sense = self.config.senses[name]
        return sum(sense.codes_per_place) * sense.code_dim if name in self.hedged_senses else 0

    def latent_start(self, name: str, condition: Tensor, codes: list[Tensor]) -> Tensor:
        """What latents of a sense are before its head corrects them, `(N, P, latent_dim)`: those with which codes
        `(N, n)` come to the expected image, and nothing where codes are not hedged."""
        sense = self.config.senses[name]
        if name not in self.hedged_senses:
            return condition.new_zeros(*condition.shape[:2], sense.latent_dim)
        sizes = [count * sense.code_dim for count in sense.codes_per_place]
        parts = condition[..., -sum(sizes) :].split(sizes, -1)
        parts = [part.unflatten(2, (-1, sense.code_dim)) for part in parts]
        shifts = [unfold_places(part, sense, level) for level, part in enumerate(parts)]
        return self.senses[name].latents_expected(codes, shifts)

    def latent_condition(
        self,
        name: str,
        hidden: dict[str, Tensor],
        trunk: Tensor,
        following: State,
        tables: CodeTables,
        shifts: list[Tensor] | None = None,
    ) -> Tensor:
        """What the latent head of a sense is told, `(N, P, 4 * hidden_size + shifts)`: the hidden states of the
        sense's last pass, what its places hold now, and the next state's codes, so that latents are predicted *given
        the levels*; where codes are hedged, also the `shifts` of each level `(N, n, code_dim)` from the vectors of
        these codes to the expected ones."""
        sense = self.config.senses[name]
        last = [each for each in self.layout.passes if each.levels and each.levels[0] < sense.num_levels][-1]
        places = self.split_places(last, hidden[last.name], trunk)[name]
        codes = self.state_embeddings[name].codes(following.codes[name], tables.places[name], tables.sizes[name])
        parts = [places, codes]
        if name in self.hedged_senses:
            parts += [fold_places(shift, sense, level).flatten(2) for level, shift in enumerate(shifts)]
        return torch.cat([part.float() for part in parts], -1)

    @torch.no_grad()
    def sample_latents(self, sense: str, condition: Tensor, state: State, seed: int | None = None) -> Tensor:
        """Latents of a sense, `(..., P, latent_dim)`, from conditions `(..., P, C)` and states `(...,)` as `simulate`
        gives them."""
        leading = condition.shape[:-2]
        generator = None if seed is None else torch.Generator(device=condition.device).manual_seed(seed)
        flat = state.map(lambda tensor: tensor.flatten(0, len(leading) - 1))
        drawn = self.draw_latents(sense, condition.flatten(0, len(leading) - 1), flat, generator)
        return drawn.unflatten(0, leading)

    def draw_latents(
        self, name: str, condition: Tensor, state: State, generator: torch.Generator | None, rows: Tensor | None = None
    ) -> Tensor:
        """Latents `(N, P, latent_dim)` that go with the codes of a state `(N,)`, or with `rows` `(n,)` of it, given
        conditions of as many."""
        codes = state.codes[name] if rows is None else [level[rows] for level in state.codes[name]]
        return self.latent_heads[name].sample(condition, self.latent_start(name, condition, codes), generator)
