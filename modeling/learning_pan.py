"""What a model finds by itself: codes for what none describes, and codes that nothing needs (sections 4.2 and 5.2 of
"Critiques of World Models"). No gradient is taken.

A change stays only if what was held out then takes fewer bits, code tokens included; if not, the model is bit for bit
what it was.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from .embedding_pan import broadcast_from_main
from .growth_pan import VocabularyGrowth
from .image_codec_pan import LEAST_DISTANCE
from .simulation_pan import Simulator
from .state_pan import Actions, Observation
from .validation_pan import check_observation, check_values, real, truth, whole

if TYPE_CHECKING:
    from .image_codec_pan import Codebook, CodebookCodec
    from .modeling_pan import PanModel

# an observation, and the actions between its frames
HeldOut: TypeAlias = "tuple[Mapping[str, Tensor], Tensor | Mapping[str, Tensor] | Actions | None]"

logger = logging.getLogger(__name__)

NOVEL = 0.05  # default threshold, see `find_novelties`
TOO_MANY = 0.5  # share of novel pieces from which the threshold is doubted aloud
ACTIONS_TRIED = 4  # for each observation, to see which codes stay where they are
BITS_A_NUMBER = 8  # of a new code's vector and corrections, where nothing is held out
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
            nothing was scored.
        ids (`tuple[int, ...]`): of the tokens that became active, or retired.
    """

    segment: str
    reason: str
    tried: int
    accepted: bool
    bits_before: float | None
    bits_after: float | None
    ids: tuple[int, ...] = ()

    @property
    def gain(self) -> float | None:
        """Bits an observation that the tokens save, or would have saved; negative where they cost, None where nothing
        was scored."""
        if self.bits_before is None or self.bits_after is None:
            return None
        return self.bits_before - self.bits_after


class CodeLearning:
    """Codes that a model finds by itself in what it observes, and codes that it retires.

    Args:
        model ([`PanModel`]): attached to its processor. It is asked for its modules at every call.
    """

    def __init__(self, model: PanModel):
        self.model, self.growth = model, VocabularyGrowth(model)

    @torch.no_grad()
    def learn(
        self,
        observation: Mapping[str, Tensor],
        action: Tensor | Mapping[str, Tensor] | Actions | None = None,
        held_out: HeldOut | None = None,
        threshold: float = NOVEL,
        max_new: int = 32,
        step: int = 0,
        will_train: bool = False,
    ) -> list[Growth]:
        """Grows codes for what an observation holds and no code describes, without a gradient.

        Args:
            observation: per sense `(B, T, ...)`, as the processor makes it.
            action: the T - 1 actions between the frames, `(B, T - 1, ...)`, if known.
            held_out: observation and actions whose description length decides on new codes (see
                `description_length`). Without, that of what was observed decides, and the bits it takes to write the
                codes down count too.
            threshold (`float`): distance from which a piece of an image is novel, see `learning_pan.find_novelties`.
            max_new (`int`): codes at most, all levels of a sense together.
            step (`int`): training step, for the ledger.
            will_train (`bool`): new codes start as suits training, see `learning_pan.find_models`.

        Returns:
            one [`Growth`] for each level that was tried.

        Raises:
            ValueError: no processor attached, an observation that does not fit, or a threshold not above 0.
        """
        threshold, max_new = real("threshold", threshold, 0, above=True), whole("max_new", max_new, 1)
        step, will_train = whole("step", step), truth("will_train", will_train)
        growths, seen = [], self._checked(observation, action, held_out)
        for name, codec in self._learned_codecs().items():
            frames, room = Observation(observation).seen(name), max_new
            if not len(frames):  # absent throughout
                continue
            for level in range(len(codec.codebooks)):
                vectors = self._novel_vectors(name, level, frames, threshold, room)
                if len(vectors):
                    persistence = self.persistence(observation, name, level) if will_train else None
                    growths.append(self._try(name, level, vectors, frames, seen, held_out, step, persistence))
                    room -= len(growths[-1].ids)
        return growths

    @torch.no_grad()
    def prune(
        self,
        observation: Mapping[str, Tensor],
        action: Tensor | Mapping[str, Tensor] | Actions | None = None,
        held_out: HeldOut | None = None,
        step: int = 0,
    ) -> list[Growth]:
        """Retires codes of images that nothing uses, and codes that stand for the same thing as a more used one.

        Args:
            observation, action: as for `learn`; a code that occurs in it counts as used.
            held_out: as for `learn`. Without, the description length of what was observed decides.
            step (`int`): training step, for the ledger.

        Returns:
            one [`Growth`] for each retirement that was tried, with the ids that were retired.

        Raises:
            ValueError: no processor attached, or an observation that does not fit.
        """
        step = whole("step", step)
        growths, seen = [], self._checked(observation, action, held_out)
        for name, codec in self._learned_codecs().items():
            frames = Observation(observation).seen(name)
            if not len(frames):  # absent throughout, which says nothing of its codes
                continue
            for level, book in enumerate(codec.codebooks):
                used, _ = codec.encode(frames)
                for reason, codes, into in broadcast_from_main(find_idle(book, used[level])):
                    bits = self.held_out_bits(seen, held_out), self._bits_without(name, level, codes, seen, held_out)
                    before, after = broadcast_from_main(bits)
                    ids = ()
                    if after < before:
                        ids = tuple(self.model.table.segment_rows(name, level)[codes].tolist())
                        self.growth.retire(f"{name}.{level}", codes, reason, into, step)
                    growth = Growth(f"{name}.{level}", reason, len(codes), after < before, before, after, ids)
                    growths.append(logged(growth))
        return growths

    @torch.no_grad()
    def description_length(
        self, observation: Mapping[str, Tensor], action: Tensor | Mapping[str, Tensor] | Actions | None = None
    ) -> float:
        """Bits an observation takes, code tokens included (minimum description length, Rissanen 1978).

        With actions: each frame after the first given those before it, by the model's own probabilities (`log_prob`
        without latents). Without: each frame by itself, its codes equally likely among the active ones of their level.
        Either way pixels cost what the decoder gets wrong.

        Args: observation `(B, T, ...)` and action `(B, T - 1, ...)` as for `perceive`.
        """
        model = self.model
        observation, action = self._as_past(observation, action)
        steps = observation.shape[1] - 1
        if action is not None and steps:
            belief, action = model.perceive(observation.frames(0, 1)), action[:, :steps]
            likely = model.log_prob(belief, action, observation.frames(1), latents=False)
            return float(likely.bits_per_observation.mean())
        bits = 0.0
        for name, codec in self._learned_codecs().items():
            frames = observation.seen(name)
            if not len(frames):
                continue
            codes, _ = codec.encode(frames)
            for level, level_codes in enumerate(codes):
                bits += level_codes.shape[1] * math.log2(int(model.table.active_codes(name, level).sum()))
            bits -= float(codec.log_prob(frames, codes).mean()) / math.log(2)
        return bits

    def _as_past(
        self, observation: Mapping[str, Tensor], action: Tensor | Mapping[str, Tensor] | Actions | None
    ) -> tuple[Observation, Tensor | Actions | None]:
        """An observation, and the actions between its frames, if they are known. Raises ValueError as `perceive`."""
        config, simulator = self.model.config, Simulator(self.model)
        if action is not None:
            action = simulator.check_past(observation, action)
        else:
            check_observation(config, observation)
            check_values(config, observation)
        return Observation(observation, config.prefix_senses), action

    def _checked(self, observation, action, held_out: HeldOut | None) -> tuple:
        """Arguments of `learn` and `prune`, before anything has changed."""
        self.model.ledger()
        if held_out is not None:
            if not isinstance(held_out, tuple | list) or len(held_out) != 2:
                raise ValueError(f"`held_out` must be (observation, action), got {type(held_out).__name__}.")
            self._as_past(*held_out)
        return self._as_past(observation, action)

    def held_out_bits(self, seen: HeldOut, held_out: HeldOut | None) -> float:
        """Description length of what was held out, or of what was seen where nothing was."""
        with evaluating(self.model):
            return self.model.description_length(*(held_out or seen))

    def persistence(self, observation: Mapping[str, Tensor], name: str, level: int) -> Tensor | None:
        """For each code of a level the share of cells where it is predicted to stay for one step, 0 where it is not
        seen; `(capacity,)`, or None where actions cannot be drawn at random."""
        model, action = self.model, self.model.config.action
        if action is None or len(model.config.actions) > 1 or not action.is_coded:
            return None
        last = Observation(observation, model.config.prefix_senses).frames(-1)
        last = last.rows(torch.arange(last.shape[0]).repeat(ACTIONS_TRIED))
        drawn = action.random((len(last[name]), 1), torch.Generator().manual_seed(0)).to(model.device)
        size = len(model.table.active_codes(name, level))
        stays, seen = torch.zeros(2, size, device=model.device)
        with evaluating(model):
            for rows in torch.arange(len(drawn), device=model.device).split(IMAGINED):
                belief = model.perceive(last.rows(rows))
                imagined = model.simulate(belief, drawn[rows], temperature=0.0).codes[name][level].flatten()
                now = belief.state.codes[name][level].flatten()
                imagined, now = imagined[now >= 0], now[now >= 0]
                seen = seen + torch.bincount(now, minlength=size)
                stays = stays + torch.bincount(now[now == imagined], minlength=size)
        return stays / seen.clamp(min=1)

    # ---- inside

    def _learned_codecs(self) -> dict[str, CodebookCodec]:
        return {name: codec for name, codec in self.model.senses.items() if codec.can_grow}  # type: ignore[misc]  # see `can_grow`

    def _novel_vectors(self, name: str, level: int, frames: Tensor, threshold: float, room: int) -> Tensor:
        """Vectors for what no code of a level describes, `room` of them at most; warns where they are suspiciously
        many, or the level is full."""
        ledger, segment = self.model.ledger(), f"{name}.{level}"
        free = ledger.capacity(segment) - ledger.born(segment)
        novelties = find_novelties(self._learned_codecs()[name], frames, level, threshold, min(room, free))
        vectors, share = broadcast_from_main(novelties)
        if share > TOO_MANY:
            logger.warning(
                f"{share:.0%} of {segment} is farther than threshold={threshold} from every code; {len(vectors)} "
                f"codes are tried (at most {min(room, free)}). If this is no new world, raise the threshold."
            )
        if free == 0 and share > 0:
            fullness = f"{segment} is full, and {share:.1%} of what it should describe is novel."
            logger.warning(f"{fullness} {ledger.full_help(segment)}")
        return vectors

    def _try(
        self,
        name: str,
        level: int,
        vectors: Tensor,
        frames: Tensor,
        seen: HeldOut,
        held_out: HeldOut | None,
        step: int,
        persistence: Tensor | None,
    ) -> Growth:
        """Codes for `vectors`, kept if they pay."""
        model, ledger, segment = self.model, self.model.ledger(), f"{name}.{level}"
        codec, first = self._learned_codecs()[name], ledger.born(segment)
        codes = range(first, first + len(vectors))
        before = self.held_out_bits(seen, held_out)
        with self.growth.trial(name, level) as trial:
            self.growth.write_codes(name, level, codes, vectors)
            models = find_models(codec, frames, level, codes, persistence)
            self.growth.copy_rows(name, level, codes, broadcast_from_main(models))
            codec.codebooks[level].corrections[codes.start : codes.stop] = broadcast_from_main(
                find_corrections(codec, frames, level, codes)
            )
            after = self.held_out_bits(seen, held_out)
            if held_out is None:
                numbers = vectors.numel() + codec.codebooks[level].corrections[0].numel() * len(vectors)
                after += BITS_A_NUMBER * numbers / len(frames)
            before, after = broadcast_from_main((before, after))
            ids = tuple(ledger.grow(segment, len(vectors), "novelty", step)) if after < before else ()
            trial.accepted = bool(ids)
        model.config.vocabulary_digest = ledger.digest()
        return logged(Growth(segment, "novelty", len(vectors), trial.accepted, before, after, ids))

    def _bits_without(self, name: str, level: int, codes: list[int], seen: HeldOut, held_out: HeldOut | None) -> float:
        """Description length were some codes retired; nothing has changed afterwards."""
        with self.growth.trial(name, level):
            table = self.model.table
            table.deactivate(table.segment_rows(name, level)[codes])
            self.model.senses[name].codebooks[level].live[codes] = False
            return self.held_out_bits(seen, held_out)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout inside, whatever the mode outside."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def logged(growth: Growth) -> Growth:
    """The growth itself, after it has been told to the log."""
    logger.info(f"{growth}, gain {growth.gain:.1f} bits an observation")
    return growth


# ---- What an image codec cannot say yet: pieces of pictures farther than a threshold from every code, and codes for
# them.
#
# Nothing here takes a gradient. A new code's vector is where the encoder puts the new thing; since the decoder never
# learned to paint from there, the code also keeps what the decoder's picture of it lacks (`Codebook.corrections`), the
# mean over all cells where it was seen.
#
# Shapes: B = frames, n = codes of a level in a frame, D = `code_dim`, M = new codes.


UNUSED = 0.01  # times a batch, on average, below which a code counts as unused
MANY = 4096  # novel pieces that are compared with one another at most
COMMON = 0.1  # share of all cells from which a code is a background, not a thing
PERSISTENT = 0.9  # share of cells where a thing is still there a step later
ALIKE = 0.1  # pieces closer than this share of the threshold (squared distances) become one code


def find_novelties(
    codec: CodebookCodec, frames: Tensor, level: int, threshold: float, max_new: int
) -> tuple[Tensor, float]:
    """Vectors for what no active code of a level describes, the most frequent first.

    Args:
        codec (`CodebookCodec`): trained.
        frames `(B, C, height, width)`: what was observed.
        level (`int`): 0 is the coarsest; the levels before it are taken as they are now.
        threshold (`float`): squared distance to the nearest code from which a piece is novel, as a share of the
            squared spread of the codes in use.
        max_new (`int`): M at most.

    Returns:
        vectors `(M, D)`, and the share of all pieces that were novel.
    """
    book = codec.codebooks[level]
    inputs = codec.code_inputs(frames, level).flatten(0, -2)
    least = threshold * book.spread()
    if not least > 0:  # nothing is known yet, so nothing is new
        return inputs.new_zeros(0, inputs.shape[1]), 0.0
    novel = inputs[book.distances(inputs).amin(-1) > least]
    share = len(novel) / len(inputs)
    if len(novel) > MANY:
        novel = novel[:: -(-len(novel) // MANY)]
    vectors: list[Tensor] = []
    while len(novel) and len(vectors) < max_new:
        alike = torch.cdist(novel, novel).square() < ALIKE * least
        members = alike[alike.sum(1).argmax()]
        vectors.append(novel[members].mean(0))
        novel = novel[~members]
    return torch.stack(vectors) if vectors else inputs.new_zeros(0, inputs.shape[1]), share


def find_models(
    codec: CodebookCodec, frames: Tensor, level: int, codes: range, persistence: Tensor | None = None
) -> Tensor:
    """Which older code each new one is taken to behave like, `(len(codes),)`: the nearest of those that the next level
    continues in the same way.

    Rows of the vocabulary are all that a backbone knows of a code. A new code gets those of its model, and with them
    the model's future. Where the finer codes under it are not those under its model, the model's future would be wrong
    in these; so they come first, as far as `frames` show them, and distance second.

    With `persistence`, codes are left out that stand nearly everywhere (what is left where something goes) or move
    away, if any others are known: a new thing then starts as a thing that stays, whatever is under it. That is the
    better start where a gradient follows: what it says of finer levels is soon unlearned, a floor's future is not.

    Args:
        frames `(B, C, height, width)`: what was observed, the new codes in it.
        level (`int`), codes: of the new codes, which are active already.
        persistence (`(capacity,)`, *optional*): share of cells where a code is predicted to be still there one step
            later, 0 where it was not seen.
    """
    book = codec.codebooks[level]
    old = book.describes()
    old[codes.start :] = False
    new = book.vectors[codes.start : codes.stop]
    used, _ = codec.encode(frames)
    if persistence is not None:
        share = torch.bincount(used[level].flatten(), minlength=len(old)) / used[level].numel()
        things = old & (share < COMMON) & (persistence > PERSISTENT)
        old = things if bool(things.any()) else old
    distance = torch.cdist(new, book.vectors).masked_fill(~old, torch.inf)
    if level + 1 == len(codec.codebooks):
        return distance.argmin(1)
    usual = codec.commonest_refinements(used, level)[:, 0]
    alike = (usual[codes.start : codes.stop].unsqueeze(1) == usual) & (usual >= 0)
    return (distance + distance[:, old].max() * ~alike).argmin(1)


def find_idle(book: Codebook, used: Tensor) -> list[tuple[str, list[int], int | None]]:
    """Codes to retire: (reason, codes, the code that stands for them) of each group.

    Args:
        book (`Codebook`): of one level.
        used: codes of some observations, any shape; what occurs there is not idle.
    """
    seen = torch.bincount(used.flatten(), minlength=len(book.live)) > 0
    unused = book.live & ~seen & (book.usage < UNUSED)
    groups = [("unused", unused.nonzero().squeeze(1).tolist(), None)]
    rows = (book.describes() & ~unused).nonzero().squeeze(1)
    rows = rows[book.usage[rows].argsort(descending=True, stable=True)]
    twins = (torch.cdist(book.vectors[rows], book.vectors[rows]).square() < LEAST_DISTANCE * book.spread()).triu(1)
    gone: set[int] = set()
    for index, row in enumerate(rows.tolist()):
        group = [code for code in rows[twins[index]].tolist() if code not in gone]
        if row not in gone and group:
            groups.append(("indistinguishable", group, row))
            gone.update(group)
    return [group for group in groups if 0 < len(group[1]) < int(book.live.sum())]


def find_corrections(codec: CodebookCodec, frames: Tensor, level: int, codes: range) -> Tensor:
    """What the pictures of some codes of a level lack, `(len(codes), picture_dim)`: the mean of (frame - decoded) over
    where they are used in `frames`, zero where they are not."""
    used, _ = codec.encode(frames)
    pieces, index = codec.lacking(frames, used, level).flatten(0, 1), used[level].flatten() - codes.start
    is_new = (index >= 0) & (index < len(codes))
    pieces, index = pieces[is_new], index[is_new]
    total = pieces.new_zeros(len(codes), pieces.shape[1]).index_add_(0, index, pieces)
    return total / torch.bincount(index, minlength=len(codes)).clamp(min=1).unsqueeze(1)
