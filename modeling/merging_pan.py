"""Token ids of codes, and merging what often stands together in them into one token (section 5.2 of "Critiques of
World Models").

The causal language model reads codes as a sequence of token ids where the parallel way of `simulation_pan.py` reads
state tokens: level 0 of a frame in raster order, or all digits of a chunk of vectors, coarse ones first and those of
one coordinate side by side, so that what changes slowly repeats. Merged tokens make a sequence shorter and lose
nothing.

B = batch, T = time, S = T // chunk sequences.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .embedding_pan import part_codec
from .learning_pan import Growth, logged
from .sense_configuration_pan import MERGES
from .validation_pan import action_shape, action_tensor, has_action_shape, whole

if TYPE_CHECKING:
    from .codecs_pan import Codec
    from .modeling_pan import PanModel


class TokenMerging:
    """What a model has seen and done as token ids, and merged tokens that make them fewer.

    Args:
        model ([`PanModel`]): asked for its modules at every call; attached to its processor where tokens are merged.
    """

    def __init__(self, model: PanModel):
        self.model = model

    @torch.no_grad()
    def to_token_ids(self, part: str, values: Tensor, chunk: int = 1) -> Tensor:
        """Writes what was seen or done as ids of codes; `tokenizer.merges.merge` then makes them fewer.

        Args:
            part (`str`): a sense that is no text, or "action".
            values: as the processor makes them, `(B, T, ...)`; of an image T frames, each a sequence of level 0.
            chunk (`int`): steps that make one sequence of a vector or a discrete action; T must be a multiple.

        Returns:
            `(B, S, length)` int64.

        Raises:
            ValueError: no such part, or values and chunk that do not fit.
        """
        codec, chunk = self._codec(part, chunk), operator.index(chunk)
        values = self._checked_values(part, values)
        if values.shape[1] % chunk:
            raise ValueError(f"{values.shape[1]} steps of {part!r} make no whole chunks of {chunk}.")
        values = values.unflatten(1, (-1, chunk))  # (B, S, chunk, ...)
        levels = codec.to_sequence(values.flatten(0, 1))
        ids = [self.model.table.segment_rows(part, level)[codes] for level, codes in enumerate(levels)]
        return torch.cat(ids, 1).unflatten(0, values.shape[:2])

    @torch.no_grad()
    def from_token_ids(self, part: str, ids: Tensor, chunk: int = 1) -> Tensor:
        """Reads ids of codes, the inverse of `to_token_ids`: `(B, S, length)` -> values `(B, T, ...)`; images in
        [-1, 1], as their level 0 alone decodes them, vectors to within their last digit.

        Raises:
            ValueError: no such part, a wrong length, or ids that are not codes of the part where they stand.
        """
        codec, chunk = self._codec(part, chunk), operator.index(chunk)
        ids = action_tensor("`ids`", self.model.config.coded_parts()[part], ids, self.model.device)
        if ids.dim() != 3 or ids.is_floating_point() or ids.is_complex() or 0 in ids.shape:
            raise ValueError(f"`ids` must be whole numbers (B, S, length), got {ids.dtype} of {tuple(ids.shape)}.")
        ids = ids.long()
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.model.config.vocab_size:
            raise ValueError(f"`ids` go from 0 to {self.model.config.vocab_size - 1}, got {ids.min()} to {ids.max()}.")
        levels = self._codes_of(part, ids, codec.sequence_lengths(chunk))
        return codec.from_sequence(levels, chunk).unflatten(0, ids.shape[:2]).flatten(1, 2)

    def _codes_of(self, part: str, ids: Tensor, lengths: list[int]) -> list[Tensor]:
        """Codes `(B * S, length)` of each level that stands in sequences `(B, S, sum of lengths)` of a part."""
        if ids.shape[2] != sum(lengths):
            expected = f"A sequence of {part!r} has {sum(lengths)} codes"
            raise ValueError(f"{expected}, got {ids.shape[2]} `ids`: another `chunk`, or merged tokens to split.")
        codes_by_id = torch.full((self.model.config.vocab_size,), -1, device=ids.device)
        levels = []
        for level, level_ids in enumerate(ids.flatten(0, 1).split(lengths, 1)):
            rows = self.model.table.segment_rows(part, level)
            codes_by_id[rows] = torch.arange(len(rows), device=ids.device)
            levels.append(codes_by_id[level_ids])
            codes_by_id[rows] = -1
        if any(bool((codes < 0).any()) for codes in levels):
            raise ValueError(f"Some ids are not codes of {part!r}, or stand where codes of another level belong.")
        return levels

    def _codec(self, part: str, chunk: int) -> Codec:
        parts = self.model.config.coded_parts()
        if not isinstance(part, str) or part not in parts:
            raise ValueError(f"No part {part!r} is written in codes; expected one of {', '.join(parts)}.")
        if whole("chunk", chunk, 1) > 1 and not parts[part].joins_steps:
            raise ValueError(f"Each frame of {part!r} is a sequence; `chunk` must be 1 for it, got {chunk}.")
        return part_codec(self.model, part)

    def _checked_values(self, part: str, values: Tensor) -> Tensor:
        """Observations or actions as a tensor `(B, T, ...)`. Raises ValueError where they do not fit the part."""
        described = self.model.config.coded_parts()[part]
        values = action_tensor("`values`", described, values, self.model.device)
        if not has_action_shape(described, values) or 0 in values.shape[:2]:
            raise ValueError(f"`values` must be {action_shape(described, 'T')}, got {tuple(values.shape)}.")
        try:
            described.check_values(values)
        except ValueError as error:
            raise ValueError(f"`values` of {part!r}: {error}") from error
        return values

    def merge(
        self,
        part: str,
        values: Tensor,
        chunk: int = 1,
        held_out: Tensor | None = None,
        count: int = 64,
        min_count: int = 2,
        step: int = 0,
    ) -> list[Growth]:
        """Merges what often stands side by side in a part's token ids, without a gradient.

        Merges stay if they make held-out sequences shorter to describe, each token at the cost of how often it occurs
        in `values`; if `count` of them do not, half of them are tried, and so on. Rows of merged tokens start as the
        mean of their parts', so the language model has yet to learn to read them (`training/merge_callback.py`, which
        tries merges by the model's own bits).

        Args:
            part, values, chunk: as for `to_token_ids`; what to find pairs in.
            held_out: values whose bits decide on merges. Without, those of `values` decide, and the bits it takes to
                write the pairs down count too.
            count (`int`): merged tokens at most.
            min_count (`int`): how often a pair must occur.
            step (`int`): training step, for the ledger.

        Returns:
            what was tried, in order; bits a sequence.

        Raises:
            ValueError: no processor attached, no such part, no room for a single merge, or values that do not fit.
        """
        ledger, segment, step = self.model.ledger(), f"{part}.{MERGES}", whole("step", step)
        count, min_count = whole("count", count, 1), whole("min_count", min_count, 1)
        seen = self.to_token_ids(part, values, chunk).flatten(0, 1).tolist()
        scored = seen if held_out is None else self.to_token_ids(part, held_out, chunk).flatten(0, 1).tolist()
        old, growths = self.model.processor.tokenizer.merges, []
        before = bits_per_sequence(old.merge(seen), old.merge(scored))
        pairs = old.find(seen, self.free_ids(part, count), min_count)
        while pairs:
            tried = old.extended(pairs)
            after = bits_per_sequence(tried.merge(seen), tried.merge(scored))
            if held_out is None:
                after += 2 * len(pairs) * math.log2(sum(map(ledger.born, ledger.segments))) / len(scored)
            growth = Growth(segment, "merge", len(pairs), after < before, before, after)
            if growth.accepted:
                growth.ids = self.add(part, pairs, step)
            growths.append(logged(growth))
            if growth.accepted:
                break
            pairs = pairs[: len(pairs) // 2]
        return growths

    def free_ids(self, part: str, count: int) -> list[int]:
        """The ids that a part's next merged tokens get, `count` at most. Raises ValueError where none is left."""
        ledger, segment = self.model.ledger(), f"{part}.{MERGES}"
        if segment not in ledger.segments:
            raise ValueError(
                f"{part!r} has no rows for merged tokens; a sense or action is given them by `merge_capacity` when a "
                f"model is built. Segments: {', '.join(ledger.segments)}."
            )
        ledger.check_room(segment, 1)
        born = ledger.born(segment)
        return self.model.table.segment_rows(part, MERGES)[born : born + count].tolist()

    @torch.no_grad()
    def add(self, part: str, pairs: Sequence[tuple[int, int, int]], step: int = 0) -> tuple[int, ...]:
        """Makes merged tokens active, whatever they save.

        Args:
            part (`str`): whose codes they are.
            pairs: (left, right, merged) ids, as `Merges.find` returns them; merged ids from `free_ids`.
            step (`int`): training step, for the ledger.

        Returns:
            the merged ids.

        Raises:
            ValueError: no processor attached, parents of another sense, other ids than the next ones, or no room.
                Nothing has changed then.
        """
        ledger, ids = self.model.ledger(), [merged for _, _, merged in pairs]
        if ids != self.free_ids(part, len(ids)):
            raise ValueError(f"The next merged tokens of {part!r} are {self.free_ids(part, len(ids))}, got {ids}.")
        owners = {parent: ledger.segment_of(parent)[0] for *parents, _ in pairs for parent in parents}
        strangers = {parent: owner for parent, owner in owners.items() if owner.rpartition(".")[0] != part}
        if strangers:
            raise ValueError(
                f"Tokens of {part!r} are merged with one another alone; these belong elsewhere: {strangers}."
            )
        inactive = [parent for parent in owners if not self.model.table.active[parent] and parent not in ids]
        if inactive:
            raise ValueError(f"Only tokens that live are merged; {inactive} do not.")
        self.start_rows(pairs)
        ledger.grow(f"{part}.{MERGES}", len(ids), "merge", step, parents=[pair[:2] for pair in pairs])
        self.model.config.vocabulary_digest = ledger.digest()
        return tuple(ids)

    @torch.no_grad()
    def start_rows(self, pairs: Sequence[tuple[int, int, int]]) -> None:
        """Makes the rows of merged tokens active; they start as the mean of their parts' rows."""
        for weight in self.model.table.weights():
            for left, right, merged in pairs:
                weight[merged] = (weight[left] + weight[right]) / 2
        self.model.table.activate([merged for _, _, merged in pairs])


def bits_per_sequence(seen: Sequence[Sequence[int]], scored: Sequence[Sequence[int]]) -> float:
    """Bits a sequence of `scored` takes when every token costs minus the logarithm of its share of `seen` (half a
    count added to each, and to what does not occur)."""
    counts = Counter(item for ids in seen for item in ids)
    total = sum(counts.values()) + 0.5 * (len(counts) + 1)
    bits = sum(math.log2(total / (counts[item] + 0.5)) for ids in scored for item in ids)
    return bits / max(1, len(scored))
