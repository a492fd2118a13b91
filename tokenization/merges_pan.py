"""Merged codes: pairs that often stand next to one another become one token, as byte-pair encoding does for text
(section 5.2 of "Critiques of World Models"; Sennrich et al. 2016).

A *sentence* is a list of ids of codes: level 0 of a frame in raster order, or the digits of a chunk of vectors.
Merging makes it shorter and loses nothing: `split` gives the very codes back. Both the search for pairs and their use
are the `tokenizers` library's, over an alphabet in which every id is a character.
"""

import json
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, models, trainers

_FIRST = 0x10000  # the characters behind the basic plane: room for a million ids, and no surrogates
_ROOM = 0x110000 - _FIRST


class Merges:
    """Merged tokens, in the order in which they were found; that is the order in which they apply.

    Args:
        alphabet (iterable of `int`): every id that a sentence may hold before merging.
        pairs (`list[tuple[int, int, int]]`): (left, right, merged) ids; left and right are of the alphabet, or merged
            before.

    Raises:
        ValueError: a pair of unknown ids, a merged id that is taken, or two merged tokens for the same codes.
    """

    def __init__(self, alphabet: Iterable[int], pairs: Sequence[tuple[int, int, int]] = ()):
        self.pairs = [(int(left), int(right), int(merged)) for left, right, merged in pairs]
        self._parts: dict[int, tuple[int, ...]] = {
            int(item): (int(item),) for item in alphabet
        }  # what each id stands for
        self._index = {item: number for number, item in enumerate(self._parts)}
        if len(self._index) > _ROOM:
            raise ValueError(f"Merging knows {_ROOM} different codes at most, got {len(self._index)}.")
        for left, right, merged in self.pairs:
            if left not in self._parts or right not in self._parts or merged in self._parts:
                raise ValueError(f"{left} and {right} cannot become {merged}: unknown parts, or an id that is taken.")
            self._parts[merged] = self._parts[left] + self._parts[right]
        if len(set(self._parts.values())) < len(self._parts):
            raise ValueError("Two merged tokens stand for the same codes; keep one of them.")
        self._ids = list(self._parts)
        vocab = {self._spell(item): number for number, item in enumerate(self._ids)}
        merges = [(self._spell(left), self._spell(right)) for left, right, _ in self.pairs]
        self._backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))

    def _spell(self, item: int) -> str:
        return "".join(chr(_FIRST + self._index[code]) for code in self._parts[item])

    def __len__(self) -> int:
        return len(self.pairs)

    def extended(self, pairs: Sequence[tuple[int, int, int]]) -> "Merges":
        """These merges, and more behind them."""
        return Merges([item for item, codes in self._parts.items() if len(codes) == 1], [*self.pairs, *pairs])

    def split(self, ids: Iterable[int]) -> list[int]:
        """The codes that ids stand for; an id that is no merged token stays as it is."""
        return [code for item in ids for code in self._parts.get(int(item), (int(item),))]

    def merge(self, sentences: Iterable[Iterable[int]]) -> list[list[int]]:
        """Each sentence in as few tokens as the pairs make of it; no pair reaches from one sentence to the next.

        Raises:
            ValueError: an id that is no code.
        """
        try:
            texts = ["".join(self._spell(int(item)) for item in sentence) for sentence in sentences]
        except KeyError as error:
            raise ValueError(f"Id {error} is no code; sentences to merge hold codes alone.") from None
        found = self._backend.encode_batch(texts, add_special_tokens=False)
        return [[self._ids[number] for number in encoding.ids] for encoding in found]

    def find(
        self, sentences: Iterable[Iterable[int]], new_ids: Sequence[int], min_count: int = 2
    ) -> list[tuple[int, int, int]]:
        """What byte-pair encoding would merge next: (left, right, merged) ids, the most frequent pair first.

        Args:
            sentences: of codes.
            new_ids (`list[int]`): ids for new tokens; there are no more of these than those.
            min_count (`int`): how often a pair must occur.
        """
        merged = self.merge(sentences)
        order = sorted({item for sentence in merged for item in sentence})
        ids = {chr(_FIRST + number): item for number, item in enumerate(order)}
        spelled = {item: text for text, item in ids.items()}
        backend = Tokenizer(models.BPE())
        size = len(order) + len(new_ids)
        trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=min_count, special_tokens=[], show_progress=False)
        backend.train_from_iterator(("".join(map(spelled.__getitem__, sentence)) for sentence in merged), trainer)
        taken, pairs, free = set(self._parts.values()), [], list(reversed(new_ids))
        parts = dict(self._parts)
        for left, right in json.loads(backend.to_str())["model"]["merges"]:
            if left not in ids or right not in ids or not free:  # a half of it was left out
                continue
            whole = parts[ids[left]] + parts[ids[right]]
            if whole in taken:  # the same codes, cut elsewhere
                continue
            new = ids[left + right] = free.pop()
            parts[new] = whole
            taken.add(whole)
            pairs.append((ids[left], ids[right], new))
        return pairs
