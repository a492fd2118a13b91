"""A backbone's tokenizer that can also write codes, and read them where it is asked to.

Words stay what they are in the backbone's fast tokenizer: same ids, same merges, same chat template. Codes are not
added to it: 65 536 added tokens cost 12 MB of JSON and 4 to 7 s at every load. Instead the ledger says which ids are
codes, and this class spells them: id 1041 is `<camera.0:17>` when segment `camera.0` starts at row 1024. A text that
spells a code is words all the same, unless it is read with `codes_in_text=True`: anybody may write a text. The ledger
travels as `vocabulary.json` beside `tokenizer.json`. Only where words outgrew the rows in front of the codes does the
tokenizer count on behind them: unspeakable tokens then stand for the ids in between.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, SupportsIndex

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import PaddingStrategy, cached_file

from .vocabulary_pan import FILE_NAME, TEXT, Vocabulary

_SPECIAL_TOKENS: dict[str, Any] = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
_UNSPEAKABLE = "\U000f0000"  # of a plane that Unicode keeps for private use
_SETTINGS = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "model_input_names",
    "chat_template",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
    "extra_special_tokens",
)
_PLACE = ("subfolder", "revision", "token", "cache_dir", "local_files_only")


class PanTokenizer(PreTrainedTokenizerFast):
    """Any fast tokenizer plus the codes of a [`Vocabulary`]. Make one with `from_backbone` or `train`.

    Args:
        vocabulary (`Vocabulary` or `dict`, *optional*): the ledger; without one this is the backbone's tokenizer.
        vocabulary_file (`str`, *optional*): path of a `vocabulary.json`; `from_pretrained` fills it in.
        codes_in_text (`bool`): whether a text that spells a code is read as that code where a call does not say. By
            default `<camera.0:17>` in a text is words; in what is decoded codes are spelled either way.

    Raises:
        ValueError: the ledger is damaged, or the tokenizer has words that are not live in it.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "vocabulary_file": FILE_NAME}
    _vocabulary: Vocabulary | None = None
    _merges: "tuple[int, Merges | None]" = (-1, None)  # and how many events the ledger had then

    def __init__(
        self, *args, vocabulary=None, vocabulary_file: str | None = None, codes_in_text: bool = False, **kwargs
    ):
        super().__init__(*args, codes_in_text=codes_in_text, **kwargs)
        self.codes_in_text = codes_in_text
        if vocabulary is None and vocabulary_file is not None:
            vocabulary = Vocabulary.load(vocabulary_file)
        if vocabulary is not None:
            self.attach(vocabulary)

    @classmethod
    def convert_to_native_format(cls, **kwargs):
        """Loads tokenizer.json whole; the inherited way would rebuild it from merges, as for classes of one model."""
        return PreTrainedTokenizerFast.convert_to_native_format(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in any tokenizer. Raises FileNotFoundError where there is none, see `found`."""
        with found(pretrained_model_name_or_path, kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_backbone(cls, tokenizer, vocabulary=None) -> "PanTokenizer":
        """The tokenizer of a backbone, ids unchanged.

        A tokenizer without a padding token pads with its end-of-text token, as is usual for GPT-2 and Llama.

        Args:
            tokenizer (`PreTrainedTokenizerFast` or `str`): a fast tokenizer, or a folder or Hub name to load one from.
            vocabulary (`Vocabulary` or `dict`, *optional*): the ledger to attach.

        Raises:
            ValueError: the tokenizer is not a fast one, or there is none of that name.
        """
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = _load(tokenizer)
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ValueError(
                f"Expected a fast tokenizer (one with a `backend_tokenizer`), got {type(tokenizer).__name__}; "
                "convert it to a tokenizer.json first."
            )
        named = {name: getattr(tokenizer, name, None) for name in _SETTINGS}
        settings: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        special: dict[str, Any] = {
            name: token for name, token in tokenizer._special_tokens_map.items() if token is not None
        }
        if "pad_token" not in special and "eos_token" in special:
            special["pad_token"] = special["eos_token"]
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()  # left over from the last call, it would be saved as a setting
        backend.no_padding()
        return cls(tokenizer_object=backend, vocabulary=vocabulary, **settings, **special)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 512, vocabulary=None) -> "PanTokenizer":
        """A small byte-level BPE tokenizer, made in process; it can write any text, seen or not.

        Args:
            texts (iterable of `str`): what to learn merges from.
            vocab_size (`int`): words at most, 3 special tokens and the 256 bytes included.
            vocabulary (`Vocabulary` or `dict`, *optional*): the ledger to attach.

        Raises:
            ValueError: `vocab_size` is no whole number from 259 up, `texts` is one string or holds what is no text.
        """
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise ValueError(f"`texts` must be a list of texts to train on, got {texts!r:.60}; pass [text].")
        smallest = len(_SPECIAL_TOKENS) + 256  # and every byte
        is_number = isinstance(vocab_size, SupportsIndex) and not getattr(vocab_size, "ndim", False)
        if not is_number or int(vocab_size) < smallest:
            raise ValueError(f"`vocab_size` must be a whole number of at least {smallest}, got {vocab_size!r}.")
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=int(vocab_size),
            special_tokens=list(_SPECIAL_TOKENS.values()),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(map(_as_text, texts), trainer)
        return cls(tokenizer_object=backend, vocabulary=vocabulary, **_SPECIAL_TOKENS)

    # -- the ledger

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The ledger, or `None`."""
        return self._vocabulary

    @property
    def _ledger(self) -> Vocabulary:
        assert self._vocabulary is not None  # there are codes to read or write
        return self._vocabulary

    @property
    def vocabulary_digest(self) -> str | None:
        """Digest of the ledger as it is now, or `None`."""
        return None if self._vocabulary is None else self._vocabulary.digest()

    def attach(self, vocabulary) -> None:
        """Sets the ledger, replacing any before it.

        Args:
            vocabulary (`Vocabulary` or `dict`): the ledger, or its `to_dict()`. An object is shared, not copied.

        Raises:
            ValueError: the tokenizer has words that are not live in it.
        """
        vocabulary = Vocabulary.from_dict(vocabulary) if isinstance(vocabulary, Mapping) else vocabulary
        num_words = _num_words(vocabulary, max(self.get_vocab().values(), default=-1) + 1)
        if num_words > vocabulary.born(TEXT):
            raise ValueError(
                f"The tokenizer has words up to id {num_words - 1}, but only {vocabulary.born(TEXT)} of the "
                f"vocabulary's {vocabulary.capacity(TEXT)} rows for words are live; build it with "
                f"text_size={num_words} or more."
            )
        self._vocabulary, self._merges = vocabulary, (-1, None)
        names = "|".join(re.escape(name) for name in vocabulary.segments)
        self._code_pattern = re.compile(f"<({names}):([0-9]+)>") if names else None

    def _add_tokens(self, new_tokens, special_tokens: bool = False) -> int:
        """New words take the next rows for words; the ledger gives birth to those it lacks."""
        if self._vocabulary is None:
            return super()._add_tokens(new_tokens, special_tokens=special_tokens)
        if codes := [str(token) for token in new_tokens if self.is_code(str(token))]:
            raise ValueError(f"{codes} are names of codes, which cannot be words; choose other names.")
        fresh = [name for name in dict.fromkeys(map(str, new_tokens)) if not self.has_word(name)]
        first = _num_words(self._vocabulary, self._next_id())
        free = self._vocabulary.capacity(TEXT) - first
        if len(fresh) > free:
            raise ValueError(
                f"No room for {len(fresh)} more words: {free} of {self._vocabulary.capacity(TEXT)} rows are left. "
                + self._vocabulary.full_help(TEXT)
            )
        given = {str(token): token for token in reversed(new_tokens)}
        for names in self._by_run(self._vocabulary, fresh, first):
            self._skip_to(self._vocabulary.row_of(TEXT, first + fresh.index(names[0])))
            super()._add_tokens([given.pop(name) for name in names], special_tokens=special_tokens)
        if given:  # words that may become special ones; each call, even without tokens, costs a look at all added ones
            super()._add_tokens([*given.values()], special_tokens=special_tokens)
        unborn = range(self._vocabulary.born(TEXT), first + len(fresh))
        if unborn:
            names = [fresh[number - first] for number in unborn]
            self._vocabulary.grow(TEXT, len(unborn), "named", step=0, names=names)
        return len(fresh)

    def _by_run(self, vocabulary: Vocabulary, names: list[str], first: int) -> Iterator[list[str]]:
        """New words, of which the first is word number `first`, by the run of rows that they fall into."""
        end = 0
        for _, capacity in vocabulary.runs(TEXT):
            start, end = end, end + capacity
            within = names[max(start - first, 0) : max(end - first, 0)]
            if within:
                yield within

    def _skip_to(self, token_id: int) -> None:
        """Makes the backend's next id `token_id`, with tokens that no text holds."""
        skipped = [f"{_UNSPEAKABLE}{item}" for item in range(self._next_id(), token_id)]
        if skipped:
            super()._add_tokens(skipped)

    def _next_id(self) -> int:
        return max(self.vocab_size, max(self.added_tokens_decoder, default=-1) + 1)

    @property
    def merges(self) -> "Merges":
        """The merged tokens that live, as of now. Raises ValueError without a ledger."""
        if self._vocabulary is None:
            raise ValueError("This tokenizer has no ledger, so no codes to merge; attach one.")
        at, merges = self._merges
        if merges is None or at != len(self._vocabulary.events):
            merges = Merges(*self._vocabulary.merged_pairs())
            self._merges = (len(self._vocabulary.events), merges)
        return merges

    # -- reading and writing codes

    def text_ids(self, texts: list[str]) -> list[list[int]]:
        """Word ids of texts that came from outside: no special tokens around them, and `<camera.0:17>` stays words.
        Raises ValueError for what is no text."""
        texts = [_as_text(text) for text in texts]
        return super()._encode_plus(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _encode_plus(self, text, text_pair=None, codes_in_text: bool | None = None, **kwargs):
        texts = text if isinstance(text, (list, tuple)) else [text]
        reads_codes = self.codes_in_text if codes_in_text is None else codes_in_text
        if not reads_codes or not any(self._has_code(item) for item in (*texts, text_pair)):
            return super()._encode_plus(text, text_pair=text_pair, **kwargs)
        options = ("is_split_into_words", "return_offsets_mapping", "return_overflowing_tokens")
        unsupported = [name for name in options if kwargs.get(name)] + ["text_pair"] * (text_pair is not None)
        if unsupported:
            raise ValueError(f"Text with codes such as <camera.0:17> cannot be encoded with {', '.join(unsupported)}.")
        return self._encode_with_codes(text, **kwargs)

    def _encode_with_codes(
        self,
        text: str | list[str],
        add_special_tokens: bool = True,
        padding_strategy=PaddingStrategy.DO_NOT_PAD,
        truncation_strategy=None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        **_,
    ):
        is_batched = isinstance(text, (list, tuple))
        before, after = self._ids_around() if add_special_tokens else ([], [])
        texts = [text] if isinstance(text, str) else text
        ids = [self._mixed_ids(item) for item in texts]
        if max_length is not None and getattr(truncation_strategy, "value", "do_not_truncate") != "do_not_truncate":
            room = max(max_length - len(before) - len(after), 0)
            ids = [item[:room] if self.truncation_side == "right" else item[len(item) - room :] for item in ids]
        ids = [before + item + after for item in ids]
        return self.pad(
            {"input_ids": ids if is_batched or return_tensors else ids[0]},
            padding=padding_strategy,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    def has_word(self, text: str) -> bool:
        """Whether a text is one of the words, as it stands."""
        return self._tokenizer.token_to_id(text) is not None

    def is_code(self, text: str) -> bool:
        """Whether a text is spelled like a code, `<camera.0:17>`."""
        codes = self._find_codes(text) if self._has_code(text) else []
        return bool(codes) and codes[0][0] == text

    def _has_code(self, text) -> bool:
        return self._vocabulary is not None and isinstance(text, str) and bool(self._find_codes(text))

    def _find_codes(self, text: str) -> list[re.Match]:
        return list(self._code_pattern.finditer(text)) if self._code_pattern else []

    def _mixed_ids(self, text: str) -> list[int]:
        """Ids of one text, its codes included. Raises ValueError for a code that was never born."""
        ids, start = [], 0
        for match in self._find_codes(text):
            ids += self.text_ids([text[start : match.start()]])[0]
            ids.append(self._ledger.id_of(match[1], int(match[2])))
            start = match.end()
        return ids + self.text_ids([text[start:]])[0]

    def _ids_around(self) -> tuple[list[int], list[int]]:
        """The special ids that the backend puts before and after a text, found by encoding one."""
        bare = self.text_ids(["a"])[0]
        whole = super()._encode_plus("a", add_special_tokens=True)["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]

    def _spell(self, token_id: int) -> str:
        segment, code = self._ledger.segment_of(token_id)
        return f"<{segment}:{code}>"

    def _is_code(self, token_id: int) -> bool:
        if self._vocabulary is None or token_id < self._vocabulary.text_capacity:
            return False
        return self._vocabulary.segment_of(token_id)[0] != TEXT

    def _decode(self, token_ids, skip_special_tokens: bool = False, **kwargs) -> str:
        token_ids = token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        pieces = []
        for is_code, group in groupby(token_ids, key=self._is_code):
            run = list(group)
            pieces.append(
                "".join(map(self._spell, run)) if is_code else super()._decode(run, skip_special_tokens, **kwargs)
            )
        return "".join(pieces)

    def convert_ids_to_tokens(self, ids, skip_special_tokens: bool = False):
        if isinstance(ids, int):
            return self._spell(ids) if self._is_code(ids) else super().convert_ids_to_tokens(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.convert_ids_to_tokens(int(item)) for item in ids if int(item) not in skipped]

    def _convert_token_to_id_with_added_voc(self, token: str) -> int:
        if self.is_code(token):
            return self._mixed_ids(token)[0]
        return super()._convert_token_to_id_with_added_voc(token)

    def tokenize(
        self,
        text: str,
        pair: str | None = None,
        add_special_tokens: bool = False,
        codes_in_text: bool | None = None,
        **kwargs,
    ) -> list[str]:
        reads_codes = self.codes_in_text if codes_in_text is None else codes_in_text
        if not (reads_codes and self._has_code(text)):
            return super().tokenize(text, pair=pair, add_special_tokens=add_special_tokens, **kwargs)
        kwargs |= {"add_special_tokens": add_special_tokens, "codes_in_text": True}
        return self.convert_ids_to_tokens(self.encode(text, pair, **kwargs))

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in any tokenizer. Raises ValueError, before anything is written, as `Vocabulary.check_replaces`."""
        if self._vocabulary is not None:
            self._vocabulary.check_replaces(save_directory)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _save_pretrained(self, save_directory, file_names, legacy_format=None, filename_prefix=None):
        files = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        return files if self._vocabulary is None else (*files, self._vocabulary.save(save_directory))


@contextmanager
def found(name, where: Mapping) -> Iterator[None]:
    """Raises FileNotFoundError where loading fails because neither a folder nor a Hub has a tokenizer of that name.
    Args: where, arguments of `from_pretrained`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        try:
            cached_file(str(name), "tokenizer.json", **{key: where[key] for key in _PLACE if key in where})
        except (OSError, ValueError) as missing:
            raise FileNotFoundError(
                f"{str(name)!r} is neither a folder with tokenizer.json nor the name of one on a Hub that can be "
                f"reached; check the name and the network. {missing}"
            ) from error
        raise


def _load(name):
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"`tokenizer` {str(name)!r} is neither a folder with a tokenizer nor the name of one on a Hub that can be "
            f"reached; check the name and the network. {error}"
        ) from error


def _as_text(text: str) -> str:
    """The text. Raises ValueError for what is none, or cannot be written in UTF-8."""
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise ValueError(f"Expected a text that UTF-8 can write, got {text!r:.80} ({error}).") from error
    return text


def _num_words(vocabulary: Vocabulary, next_id: int) -> int:
    """Words of a backend whose next id is `next_id`, counted as the ledger counts them."""
    if not vocabulary.text_capacity < next_id <= vocabulary.size:
        return next_id
    owner, number = vocabulary.segment_of(next_id - 1)
    return number + 1 if owner == TEXT else next_id  # the latter for a tokenizer that this ledger is not of


PanTokenizer.register_for_auto_class("AutoTokenizer")


# ---- Merged codes: pairs that often stand next to one another become one token, as byte-pair encoding does for text
# (section 5.2 of "Critiques of World Models"; Sennrich et al. 2016).
#
# A *sentence* is a list of ids of codes: level 0 of a frame in raster order, or the digits of a chunk of vectors.
# Merging makes it shorter and loses nothing: `split` gives the very codes back. The `tokenizers` library searches for
# pairs and applies them, over an alphabet in which every id is a character.


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
