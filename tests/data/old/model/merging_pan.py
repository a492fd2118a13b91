"""Sentences of codes, and merging what often stands together in them into one token (section 5.2 of "Critiques of
World Models").

A sentence is what the causal language model reads where the parallel way of `simulation_pan.py` reads places: level 0
of a frame in raster order, or all digits of a chunk of vectors, coarse ones first and those of one coordinate side by
side, so that what changes slowly repeats. Merged tokens make sentences shorter and lose nothing.

B = batch, T = time, S = T // chunk sentences.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from .learning_pan import Growth, logged
from .sense_configuration_pan import MERGES


class MergeMixin:
    """`write_sentences`, `read_sentences` and `merge` of [`PanModel`]."""

    @torch.no_grad()
    def write_sentences(self, part: str, values: Tensor, chunk: int = 1) -> Tensor:
        """What was seen or done, as ids of codes; `tokenizer.merges.merge` then makes them shorter.

        Args:
            part (`str`): a sense that is no text, or "action".
            values: as the processor makes them, `(B, T, ...)`; of an image T frames, each a sentence of level 0.
            chunk (`int`): steps that make one sentence of a vector or a discrete action; T must be a multiple.

        Returns:
            `(B, S, length)` int64.

        Raises:
            ValueError: no such part, or values and chunk that do not fit.
        """
        described = self._sentence_part(part, chunk)
        if described.kind == "image":
            codes, _ = self.senses[part].encode(values.flatten(0, 1))
            return self.segment_rows(part, 0)[codes[0]].unflatten(0, values.shape[:2])
        if values.shape[1] % chunk:
            raise ValueError(f"{values.shape[1]} steps of {part!r} make no whole chunks of {chunk}.")
        values = values.unflatten(1, (-1, chunk))  # (B, S, chunk, ...)
        if described.kind == "discrete":
            return self.segment_rows(part, 0)[values]
        codec = self.action_codec if part == "action" else self.senses[part]
        levels, _ = codec.encode(values.flatten(0, 2))
        ids = [self.segment_rows(part, level)[codes[:, : described.dim]] for level, codes in enumerate(levels)]
        ids = torch.stack(ids).unflatten(1, values.shape[:3])  # (levels, B, S, chunk, dim)
        return ids.permute(1, 2, 0, 4, 3).flatten(2)

    @torch.no_grad()
    def read_sentences(self, part: str, ids: Tensor, chunk: int = 1) -> Tensor:
        """The inverse of `write_sentences`: ids of codes `(B, S, length)` -> values `(B, T, ...)`; images in [-1, 1],
        as their level 0 alone decodes them, vectors to within their last digit.

        Raises:
            ValueError: no such part, a wrong length, or ids that are not codes of the part where they stand.
        """
        described, leading = self._sentence_part(part, chunk), ids.shape[:2]
        numbers = torch.full((self.config.vocab_size,), -1, device=ids.device)
        is_vector = described.kind == "vector"
        num_levels = described.num_levels if is_vector else 1
        width = described.dim * chunk if is_vector else chunk
        if described.kind == "image":
            width = described.num_places * described.codes_per_place[0]
        if ids.shape[2] != num_levels * width:
            expected = f"A sentence of {part!r} has {num_levels * width} codes"
            raise ValueError(f"{expected}, got {ids.shape[2]}; split merged tokens first.")
        levels = []
        for level, part_ids in enumerate(ids.flatten(0, 1).split(width, 1)):
            rows = self.segment_rows(part, level)
            numbers[rows] = torch.arange(len(rows), device=ids.device)
            levels.append(numbers[part_ids])
            numbers[rows] = -1
        if any(bool((codes < 0).any()) for codes in levels):
            raise ValueError(f"No sentences of {part!r}: some ids are not codes of it, or stand in another's place.")
        if described.kind == "image":
            return self.senses[part].decode(levels).unflatten(0, leading)
        if not is_vector:
            return levels[0].view(*leading, chunk).flatten(1, 2)
        shape = (*leading, described.dim, chunk)
        missing = described.num_places * described.group - described.dim
        digits = [codes.view(shape).transpose(2, 3).flatten(1, 2) for codes in levels]  # (B, T, dim)
        digits = [torch.nn.functional.pad(codes, (0, missing)) for codes in digits]
        codec = self.action_codec if part == "action" else self.senses[part]
        return codec.decode([codes.flatten(0, 1) for codes in digits]).unflatten(0, digits[0].shape[:2])

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
        """Merges what often stands side by side in a part's sentences, without a gradient.

        Merges stay if they make held-out sentences shorter to describe, each token at the cost of how often it occurs
        in `values`; if `count` of them do not, half of them are tried, and so on. Rows of merged tokens start as the
        mean of their parts', so the language model has yet to learn to read them (`training/sentences.py`, which tries
        merges by the model's own bits).

        Args:
            part, values, chunk: as for `write_sentences`; what to find pairs in.
            held_out: values by which merges are judged. Without, they are judged by `values`, and the bits it takes to
                write the pairs down count too.
            count (`int`): merged tokens at most.
            min_count (`int`): how often a pair must occur.
            step (`int`): training step, for the ledger.

        Returns:
            what was tried, in order; bits a sentence.

        Raises:
            ValueError: no processor attached, no such part, no room for a single merge, or values that do not fit.
        """
        ledger, segment = self.ledger(), f"{part}.{MERGES}"
        seen = self.write_sentences(part, values, chunk).flatten(0, 1).tolist()
        judged = seen if held_out is None else self.write_sentences(part, held_out, chunk).flatten(0, 1).tolist()
        old, growths = self.processor.tokenizer.merges, []
        before = sentence_length(old.merge(seen), old.merge(judged))
        found = old.find(seen, self.free_merges(part, count), min_count)
        while found:
            tried = old.extended(found)
            after = sentence_length(tried.merge(seen), tried.merge(judged))
            if held_out is None:
                after += 2 * len(found) * math.log2(sum(map(ledger.born, ledger.segments))) / len(judged)
            growth = Growth(segment, "merge", len(found), after < before, before, after)
            if growth.accepted:
                growth.ids = self.add_merges(part, found, step)
            growths.append(logged(growth))
            if growth.accepted:
                break
            found = found[: len(found) // 2]
        return growths

    def free_merges(self, part: str, count: int) -> list[int]:
        """The ids that a part's next merged tokens get, `count` at most. Raises ValueError where none is left."""
        ledger, segment = self.ledger(), f"{part}.{MERGES}"
        if segment not in ledger.segments:
            raise ValueError(
                f"{part!r} has no rows for merged tokens; a sense or action is given them by `merge_capacity` when a "
                f"model is built. Segments: {', '.join(ledger.segments)}."
            )
        ledger.check_room(segment, 1)
        born = ledger.born(segment)
        return self.segment_rows(part, MERGES)[born : born + count].tolist()

    @torch.no_grad()
    def add_merges(self, part: str, pairs: Sequence[tuple[int, int, int]], step: int = 0) -> tuple[int, ...]:
        """Gives birth to merged tokens, unjudged.

        Args:
            part (`str`): whose codes they are.
            pairs: (left, right, merged) ids, as `Merges.find` returns them; merged ids from `free_merges`.
            step (`int`): training step, for the ledger.

        Returns:
            the merged ids.

        Raises:
            ValueError: no processor attached, parents of another sense, other ids than the next ones, or no room.
                Nothing has changed then.
        """
        ledger, ids = self.ledger(), [merged for _, _, merged in pairs]
        if ids != self.free_merges(part, len(ids)):
            raise ValueError(f"The next merged tokens of {part!r} are {self.free_merges(part, len(ids))}, got {ids}.")
        owners = {parent: ledger.segment_of(parent)[0] for *parents, _ in pairs for parent in parents}
        strangers = {parent: owner for parent, owner in owners.items() if owner.rpartition(".")[0] != part}
        if strangers:
            raise ValueError(
                f"Tokens of {part!r} are merged with one another alone; these belong elsewhere: {strangers}."
            )
        unborn = [parent for parent in owners if not self.live_rows[parent] and parent not in ids]
        if unborn:
            raise ValueError(f"Only tokens that live are merged; {unborn} do not.")
        self.start_merges(pairs)
        ledger.grow(f"{part}.{MERGES}", len(ids), "merge", step, parents=[pair[:2] for pair in pairs])
        self.config.vocabulary_digest = ledger.digest()
        return tuple(ids)

    @torch.no_grad()
    def start_merges(self, pairs: Sequence[tuple[int, int, int]]) -> None:
        """Rows of merged tokens start as the mean of their parts' and go live."""
        for table in self.embedding_tables():
            for left, right, merged in pairs:
                table[merged] = (table[left] + table[right]) / 2
        ids = [merged for _, _, merged in pairs]
        self.live_rows[ids] = self.born_rows[ids] = True

    def _sentence_part(self, part: str, chunk: int):
        parts = self.config.coded_parts()
        if part not in parts:
            raise ValueError(f"No part {part!r} is written in codes; expected one of {', '.join(parts)}.")
        if chunk < 1 or (chunk > 1 and parts[part].kind == "image"):
            raise ValueError(f"Frames of {part!r} are sentences each; `chunk` must be 1 for them, got {chunk}.")
        return parts[part]


def sentence_length(seen: Sequence[Sequence[int]], judged: Sequence[Sequence[int]]) -> float:
    """Bits a sentence of `judged` takes when every token costs minus the logarithm of its share of `seen` (half a
    count added to each, and to what does not occur)."""
    counts = Counter(item for sentence in seen for item in sentence)
    total = sum(counts.values()) + 0.5 * (len(counts) + 1)
    bits = sum(math.log2(total / (counts[item] + 0.5)) for sentence in judged for item in sentence)
    return bits / max(1, len(judged))
