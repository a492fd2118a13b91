"""What a model finds by itself: codes for what none describes, and codes that nothing needs (sections 4.2 and 5.2 of
"Critiques of World Models"). No gradient is taken.

A change stays only if what was held out then takes fewer bits, code tokens included; if not, the model is bit for bit
what it was.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .belief_pan import Belief
from .checks_pan import check_observation
from .novelty_pan import find_corrections, find_idle, find_models, find_novelties
from .sense_configuration_pan import random_actions
from .simulation_pan import pixel_log_prob

logger = logging.getLogger(__name__)

NOVEL = 0.05  # default threshold, see `find_novelties`
TOO_MANY = 0.5  # share of novel pieces from which the threshold is doubted aloud
ACTIONS_TRIED = 4  # for each observation, to see which codes stay where they are
BITS_A_NUMBER = 8  # of a new code's vector and corrections, where nothing is held out to judge it by
IMAGINED = 64  # observations at once


@dataclass
class Growth:
    """One attempt to grow, as it is logged.

    Args:
        segment (`str`): "camera.0", say.
        reason (`str`): as in the ledger.
        tried (`int`): tokens that were tried.
        accepted (`bool`): whether it stays so.
        bits_before, bits_after (`float`): description length of what was held out, bits an observation; None where
            nothing was judged.
        ids (`tuple[int, ...]`): of the tokens that were born, or retired.
    """

    segment: str
    reason: str
    tried: int
    accepted: bool
    bits_before: float | None
    bits_after: float | None
    ids: tuple[int, ...] = ()

    @property
    def gain(self) -> float:
        """Bits an observation that the tokens save, or would have saved; negative where they cost."""
        return self.bits_before - self.bits_after


class LearningMixin:
    """`observe`, `learn`, `prune` and `description_length` of [`PanModel`]."""

    @torch.no_grad()
    def observe(
        self, observation: dict[str, Tensor], action: Tensor | None = None, learn: bool = False, **options
    ) -> Belief:
        """`perceive`, after growing codes for what no code describes if `learn`; the belief's `growths` say what was
        tried. Args: observation, action as for `perceive`; options as for `learn`."""
        self._check_past(observation, action)
        growths = self.learn(observation, action, **options) if learn else []
        belief = self.perceive(observation, action)
        belief.growths = growths
        return belief

    @torch.no_grad()
    def learn(
        self,
        observation: dict[str, Tensor],
        action: Tensor | None = None,
        held_out: tuple[dict[str, Tensor], Tensor | None] | None = None,
        threshold: float = NOVEL,
        max_new: int = 32,
        step: int = 0,
        will_train: bool = False,
    ) -> list[Growth]:
        """Grows codes for what an observation holds and no code describes, without a gradient.

        Args:
            observation: per sense `(B, T, ...)`, as the processor makes it.
            action: the T - 1 actions between the frames, `(B, T - 1, ...)`, if known.
            held_out: observation and actions by which new codes are judged (see `description_length`). Without, they
                are judged by what was observed, and the bits it takes to write the codes down count too.
            threshold (`float`): distance from which a piece of an image is novel, see `novelty_pan.find_novelties`.
            max_new (`int`): codes at most, all levels of a sense together.
            step (`int`): training step, for the ledger.
            will_train (`bool`): new codes start as suits training, see `novelty_pan.find_models`.

        Returns:
            one [`Growth`] for each level that was tried.

        Raises:
            ValueError: no processor attached, an observation that does not fit, or a threshold not above 0.
        """
        ledger = self.ledger()
        check_observation(self.config, observation)
        if threshold <= 0 or max_new < 1:
            raise ValueError(f"`threshold` must be above 0 and `max_new` at least 1, got {threshold} and {max_new}.")
        growths = []
        for name, codec in self.senses.items():
            if not hasattr(codec, "codebooks"):
                continue
            frames, room = observation[name].flatten(0, 1), max_new
            for level in range(len(codec.codebooks)):
                segment = f"{name}.{level}"
                free = ledger.capacity(segment) - ledger.born(segment)
                vectors, share = find_novelties(codec, frames, level, threshold, min(room, free))
                vectors, share = from_first((vectors, share))
                if share > TOO_MANY:
                    logger.warning(
                        f"{share:.0%} of {segment} is farther than threshold={threshold} from every code; "
                        f"{len(vectors)} codes are tried (at most {min(room, free)}). If this is no new world, raise "
                        "the threshold."
                    )
                if free == 0 and share > 0:
                    told = f"{segment} is full, and {share:.1%} of what it should describe is novel."
                    logger.warning(f"{told} {ledger.full_help(segment)}")
                if len(vectors):
                    seen = observation, action
                    persistence = self._persistence(observation, name, level) if will_train else None
                    growths.append(self._try(name, level, vectors, frames, seen, held_out, step, persistence))
                    room -= len(growths[-1].ids)
        return growths

    @torch.no_grad()
    def prune(
        self,
        observation: dict[str, Tensor],
        action: Tensor | None = None,
        held_out: tuple[dict[str, Tensor], Tensor | None] | None = None,
        step: int = 0,
    ) -> list[Growth]:
        """Retires codes of images that nothing uses, and codes that stand for the same thing as a more used one.

        Args:
            observation, action: as for `learn`; a code that occurs in it counts as used.
            held_out: as for `learn`. Without, retirement is judged by what was observed.
            step (`int`): training step, for the ledger.

        Returns:
            one [`Growth`] for each retirement that was tried, with the ids that were retired.

        Raises:
            ValueError: no processor attached, or an observation that does not fit.
        """
        self.ledger()
        check_observation(self.config, observation)
        growths = []
        for name, codec in self.senses.items():
            if not hasattr(codec, "codebooks"):
                continue
            for level, book in enumerate(codec.codebooks):
                used, _ = codec.encode(observation[name].flatten(0, 1))
                for reason, codes, into in from_first(find_idle(book, used[level])):
                    before = self._judge((observation, action), held_out)
                    after = self._bits_without(name, level, codes, (observation, action), held_out)
                    before, after = from_first((before, after))
                    ids = ()
                    if after < before:
                        ids = tuple(self.segment_rows(name, level)[codes].tolist())
                        self.retire(f"{name}.{level}", codes, reason, into, step)
                    growth = Growth(f"{name}.{level}", reason, len(codes), after < before, before, after, ids)
                    growths.append(logged(growth))
        return growths

    @torch.no_grad()
    def description_length(self, observation: dict[str, Tensor], action: Tensor | None = None) -> float:
        """Bits an observation takes, code tokens included (minimum description length, Rissanen 1978).

        With actions: each frame after the first given those before it, by the model's own probabilities (`log_prob`
        without latents). Without: each frame by itself, its codes equally likely among the live ones of their level.
        Either way pixels cost what the decoder gets wrong.

        Args: observation `(B, T, ...)` and action `(B, T - 1, ...)` as for `perceive`.
        """
        frames = next(v.shape[1] for n, v in observation.items() if n not in self.config.prefix_senses)
        if action is not None and frames > 1:
            action = action[:, : frames - 1]
            first = {n: v if n in self.config.prefix_senses else v[:, :1] for n, v in observation.items()}
            later = {n: v if n in self.config.prefix_senses else v[:, 1:] for n, v in observation.items()}
            found = self.log_prob(self.perceive(first), action, later, latents=False)
            return float(found.bits_per_observation.mean())
        bits = 0.0
        for name, codec in self.senses.items():
            if not hasattr(codec, "codebooks"):
                continue
            frames = observation[name].flatten(0, 1)
            codes, _ = codec.encode(frames)
            for level, level_codes in enumerate(codes):
                bits += level_codes.shape[1] * math.log2(int(self.live_codes(name, level).sum()))
            seen = pixel_log_prob(codec.decode(codes), codec.to_float(frames), codec.error_scale())
            bits -= float(seen.mean()) / math.log(2)
        return bits

    # ---- inside

    def _try(self, name, level, vectors: Tensor, frames: Tensor, seen: tuple, held_out, step, persistence) -> Growth:
        """Codes for `vectors`, kept if they pay."""
        ledger, segment = self.ledger(), f"{name}.{level}"
        codec, first = self.senses[name], ledger.born(segment)
        codes = range(first, first + len(vectors))
        before = self._judge(seen, held_out)
        with self._trial(name, level) as trial:
            self._write_codes(name, level, codes, vectors)
            models = find_models(codec, frames, level, codes, persistence)
            self._copy_rows(name, level, codes, from_first(models))
            codec.codebooks[level].corrections[codes.start : codes.stop] = from_first(
                find_corrections(codec, frames, level, codes)
            )
            after = self._judge(seen, held_out)
            if held_out is None:
                numbers = vectors.numel() + codec.codebooks[level].corrections[0].numel() * len(vectors)
                after += BITS_A_NUMBER * numbers / len(frames)
            before, after = from_first((before, after))
            ids = tuple(ledger.grow(segment, len(vectors), "novelty", step)) if after < before else ()
            trial.accepted = bool(ids)
        self.config.vocabulary_digest = ledger.digest()
        return logged(Growth(segment, "novelty", len(vectors), trial.accepted, before, after, ids))

    def _persistence(self, observation: dict[str, Tensor], name: str, level: int) -> Tensor | None:
        """For each code of a level the share of places where it is predicted to stay for one step, 0 where it is not
        seen; `(capacity,)`, or None where actions cannot be drawn at random."""
        action, prefix = self.config.action, self.config.prefix_senses
        if action.kind == "text":
            return None
        last = {n: v if n in prefix else v[:, -1:] for n, v in observation.items()}
        last = {n: v.repeat(ACTIONS_TRIED, *[1] * (v.ndim - 1)) for n, v in last.items()}
        drawn = random_actions(action, (len(last[name]), 1), torch.Generator().manual_seed(0)).to(self.device)
        size, stays, seen = len(self.live_codes(name, level)), 0.0, 0.0
        with self._evaluating():
            for rows in torch.arange(len(drawn), device=self.device).split(IMAGINED):
                belief = self.perceive({n: v[rows] for n, v in last.items()})
                imagined = self.simulate(belief, drawn[rows], temperature=0.0).codes[name][level].flatten()
                now = belief.state.codes[name][level].flatten()
                seen = seen + torch.bincount(now, minlength=size)
                stays = stays + torch.bincount(now[now == imagined], minlength=size)
        return stays / seen.clamp(min=1)

    def _bits_without(self, name: str, level: int, codes: list[int], seen: tuple, held_out) -> float:
        """Description length were some codes dead; nothing has changed afterwards."""
        with self._trial(name, level):
            self.live_rows[self.segment_rows(name, level)[codes]] = False
            self.senses[name].codebooks[level].live[codes] = False
            return self._judge(seen, held_out)

    def _judge(self, seen: tuple, held_out: tuple | None) -> float:
        with self._evaluating():
            return self.description_length(*(held_out or seen))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout inside, whatever the mode outside."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def logged(growth: Growth) -> Growth:
    """The growth itself, after it has been told to the log."""
    logger.info(f"{growth}, gain {growth.gain:.1f} bits an observation")
    return growth


def from_first(value):
    """The first process's value, so that all grow alike."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value
    parts = value if isinstance(value, tuple) else (value,)
    parts = tuple(part.cpu() if isinstance(part, Tensor) else part for part in parts)
    told = [parts if isinstance(value, tuple) else parts[0]]
    dist.broadcast_object_list(told, src=0)
    return told[0]
