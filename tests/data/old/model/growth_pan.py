"""One vocabulary that grows: reserved rows go live, in training and at inference (sections 4.2 and 5.2 of "Critiques
of World Models").

Growth changes no shape: it writes reserved rows and marks them live, so optimizer states, adapters, compiled graphs
and caches stay valid. What was born is told to the ledger of the processor that is attached to the model
(`PanProcessor.attach`), and the two stay together. What a model finds by itself is in `learning_pan.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .sense_configuration_pan import MERGES


class GrowthMixin:
    """`grow` and `retire` of [`PanModel`]: what is born and dies by a person's hand."""

    processor = None
    base_events, base_digest = 0, None  # of the ledger when it was attached

    def attach(self, processor) -> None:
        """Ties the model to the processor it was saved with; see `PanProcessor.attach`, which checks first."""
        ledger, is_another = processor.vocabulary, processor is not self.processor
        self.processor = processor
        if ledger is not None and is_another:
            self.base_events, self.base_digest = len(ledger.events), ledger.digest()

    def ledger(self):
        """The ledger of the attached processor. Raises ValueError without one."""
        if self.processor is None or self.processor.vocabulary is None:
            raise ValueError(
                "This model has no ledger to write new tokens into; call `processor.attach(model)` with the processor "
                "it was saved with. The two grow together, and are saved together."
            )
        return self.processor.vocabulary

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in any model. Raises ValueError, before anything is written, where another process has grown the
        vocabulary in `save_directory` otherwise than the one this model is attached to."""
        if self.processor is not None and self.processor.vocabulary is not None:
            self.processor.vocabulary.check_replaces(save_directory)
        return super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def grow(
        self,
        segment: str,
        names: Sequence[str] | None = None,
        descriptions: Sequence[str] | None = None,
        vectors: Tensor | None = None,
        step: int = 0,
    ) -> tuple[int, ...]:
        """Makes tokens live: words, actions or codes that a person names.

        Args:
            segment (`str`): "text"; "action.0" of discrete actions; or a level of an image sense, "camera.0".
            names (`list[str]`): what the tokens are called; may be left out for codes.
            descriptions (`list[str]`, *optional*): what each word or action means, in words the model knows: its row
                starts as the mean of theirs. Without, as the mean of its segment.
            vectors (`Tensor`, *optional*): for codes, what each stands for, `(count, code_dim)`; see `learn` for codes
                from observations.
            step (`int`): training step, for the ledger.

        Returns:
            the new ids.

        Raises:
            ValueError: no processor attached, no such segment, names that are taken or do not fit, a segment that
                cannot grow or is full. Nothing has changed then.
        """
        ledger = self.ledger()
        ledger.capacity(segment)  # says so if there is no such segment
        count = len(vectors) if vectors is not None else len(names or ())
        _check_given(segment, count, names, descriptions)
        if segment == "text":
            return self._grow_words(list(names), descriptions)
        part, level = segment.rsplit(".", 1)
        if level == MERGES:
            raise ValueError(f"{segment} holds merged tokens, which are made of others: see `merge` and `add_merges`.")
        if part in self.senses and hasattr(self.senses[part], "codebooks"):
            return self.grow_codes(part, int(level), vectors, names, "named", step)
        if part == "action" and self.config.action.kind == "discrete":
            return self._grow_actions(names, descriptions, step)
        raise ValueError(
            f"{segment} holds the digits of a lattice, which are complete; give the vector a larger `base` or more "
            "levels, or merge its digits."
        )

    def grow_codes(
        self, name: str, level: int, vectors: Tensor, names: Sequence[str] | None, reason: str, step: int
    ) -> tuple[int, ...]:
        """`grow` for a level of an image sense, whatever the ledger's `reason`; corrections are zero."""
        ledger, segment = self.ledger(), f"{name}.{level}"
        dim = self.config.senses[name].code_dim
        if vectors is None or vectors.ndim != 2 or vectors.shape[1] != dim or not bool(vectors.isfinite().all()):
            shape = None if vectors is None else tuple(vectors.shape)
            raise ValueError(f"Codes of {segment} need finite `vectors` (count, {dim}), got {shape}.")
        if not bool(self.senses[name].codebooks[level].started):
            raise ValueError(f"{segment} stands for nothing yet; train the senses first, codes would be moved.")
        first = ledger.born(segment)
        with self._trial(name, level) as trial:
            ledger.check_room(segment, len(vectors))
            self._write_codes(name, level, range(first, first + len(vectors)), vectors)
            ids = ledger.grow(segment, len(vectors), reason, step, names=names)
            trial.accepted = True
        self.config.vocabulary_digest = ledger.digest()
        return tuple(ids)

    def retire(
        self, segment: str, codes: Sequence[int], reason: str = "unused", into: int | None = None, step: int = 0
    ) -> None:
        """Makes codes dead: they are neither chosen nor predicted any more, and their ids stay reserved.

        Args:
            segment (`str`): a level of an image sense, "camera.0", or merged tokens, "camera.merges".
            codes (`list[int]`): which, counted within the segment.
            reason (`str`): for the ledger, e.g. "unused", "indistinguishable".
            into (`int`, *optional*): the code that stands for them from now on.
            step (`int`): training step, for the ledger.

        Raises:
            ValueError: no such codes, all of a level, or parts of merged tokens that stay. Nothing has changed then.
        """
        ledger, (part, _, level) = self.ledger(), segment.rpartition(".")
        codes = sorted({int(code) for code in codes})
        ids, book = [ledger.id_of(segment, code) for code in codes], None
        if level == MERGES:
            _, pairs = ledger.merged_pairs()
            wholes = sorted(whole for *parts, whole in pairs if set(parts) & set(ids) and whole not in ids)
            if wholes:
                raise ValueError(f"Tokens {ids} are parts of the merged tokens {wholes}, which must be retired first.")
        elif part in self.senses and hasattr(self.senses[part], "codebooks"):
            book = self.senses[part].codebooks[int(level)]
            if len(codes) >= ledger.live(segment):
                raise ValueError(f"{segment} has {ledger.live(segment)} live codes; at least one must stay.")
        else:
            raise ValueError(f"Only codes of image senses and merged tokens retire; {segment!r} is neither.")
        ledger.retire(ids, reason, step, into=None if into is None else ledger.id_of(segment, into))
        self.live_rows[ids] = False
        if book is not None:
            book.live[codes] = False
        self.config.vocabulary_digest = ledger.digest()

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        """As Transformers' users call it after `tokenizer.add_tokens`: the words that the tokenizer has and the model
        has not go live. The table has its rows already, so nothing is resized and no id moves.

        Args:
            new_num_tokens (`int`, *optional*): words, `len(tokenizer)`.
            pad_to_multiple_of, mean_resizing: have no meaning here and are ignored.

        Returns:
            the input embeddings.

        Raises:
            ValueError: more words than reserved rows, or words that no attached tokenizer knows.
        """
        if not self.is_world_model:
            return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        live = int(self.live_words().sum())
        if new_num_tokens is None or new_num_tokens <= live:
            return self.get_input_embeddings()
        ledger = self.ledger()
        if new_num_tokens > sum(ledger.runs("text")[-1]):
            raise ValueError(
                f"{new_num_tokens} words do not fit the {ledger.capacity('text')} rows reserved for words; ids of "
                f"codes lie behind them and never move. {ledger.full_help('text')}"
            )
        last = ledger.id_of("text", ledger.born("text") - 1)
        if last + 1 < new_num_tokens:  # `len(tokenizer)` counts the ids of codes where words go on behind them
            raise ValueError(
                f"The attached tokenizer has words up to id {last}, not {new_num_tokens} of them; add words with "
                "`tokenizer.add_tokens([...])` first, or use `model.grow('text', names=[...])`."
            )
        self._start_words(self._waiting_words(), None)
        return self.get_input_embeddings()

    def _waiting_words(self) -> list[int]:
        """Ids of words that the tokenizer was given and the model has not started yet."""
        ledger = self.ledger()
        runs = [torch.arange(first, first + count) for first, count in ledger.runs("text")]
        born = torch.cat(runs)[: ledger.born("text")].to(self.live_rows.device)
        return born[~self.live_rows[born]].tolist()

    # ---- inside

    @contextmanager
    def _trial(self, name: str, level: int) -> Iterator["_Trial"]:
        """What is changed of one level inside is undone, bit for bit, unless the trial is accepted."""
        rows = self.segment_rows(name, level)
        changed = [(table.detach(), rows) for table in [*self.embedding_tables(), self.live_rows, self.born_rows]]
        changed += [(buffer, slice(None)) for buffer in self.senses[name].codebooks[level].buffers()]
        kept, trial = [tensor[where].clone() for tensor, where in changed], _Trial()
        try:
            yield trial
        finally:
            if not trial.accepted:
                for (tensor, where), old in zip(changed, kept, strict=True):
                    tensor[where] = old

    def _write_codes(self, name: str, level: int, codes: range, vectors: Tensor) -> None:
        """Codebook rows, vocabulary rows of the nearest code that lives, and the marks that they live."""
        book, new = self.senses[name].codebooks[level], self.segment_rows(name, level)[codes.start : codes.stop]
        vectors = vectors.to(book.vectors)
        distance = torch.cdist(vectors, book.vectors).masked_fill(~book.describes(), torch.inf)
        book.add(codes, vectors)
        self._copy_rows(name, level, codes, distance.argmin(1))
        self.live_rows[new] = self.born_rows[new] = True

    def _grow_words(self, names: list[str], descriptions: Sequence[str] | None) -> tuple[int, ...]:
        tokenizer = self.processor.tokenizer
        taken = [name for name in names if tokenizer.has_word(name)]
        if taken:
            raise ValueError(f"{taken} are words already; choose other names.")
        odd = [name for name in names if not name or name != name.strip() or tokenizer.is_code(name)]
        if odd:
            raise ValueError(f"{odd} cannot be words: empty, with space around them, or spelled like codes.")
        groups, waiting = self._words_of(descriptions), self._waiting_words()
        if waiting:
            self._start_words(waiting, None)
        tokenizer.add_tokens(names)
        ids = tokenizer.convert_tokens_to_ids(names)
        self._start_words(ids, groups)
        return tuple(ids)

    def _copy_rows(self, name: str, level: int, codes: range, models: Tensor) -> None:
        """Rows of codes from those of the codes `models`."""
        rows = self.segment_rows(name, level)
        for table in self.embedding_tables():
            table.detach()[rows[codes.start : codes.stop]] = table.detach()[rows[models.to(rows.device)]]

    def _words_of(self, descriptions: Sequence[str] | None) -> list[list[int]] | None:
        if descriptions is None:
            return None
        groups = self.processor.tokenizer.text_ids(list(descriptions))
        if not all(groups):
            raise ValueError(f"Descriptions must hold words, got {list(descriptions)}.")
        return groups

    def _start_words(self, ids: list[int], groups: list[list[int]] | None) -> None:
        self._write_rows(ids, self._means(len(ids), groups, self.live_words()))
        self.config.vocabulary_digest = self.ledger().digest()

    @torch.no_grad()
    def _means(self, count: int, groups: list[list[int]] | None, others: Tensor) -> list[Tensor]:
        """For each table `(count, H)`: means of the rows of groups of words, or of the rows that `others` marks."""
        means = []
        for table in self.embedding_tables():
            if groups:
                found = [table[group].float().mean(0) for group in groups]
            else:  # a product, not a gather: the table is not copied
                found = [others.to(table.dtype) @ table[: len(others)] / others.sum()]
            means.append(torch.stack(found).to(table.dtype).expand(count, -1))
        return means

    @torch.no_grad()
    def _write_rows(self, ids: list[int], rows: list[Tensor]) -> None:
        """Rows of each table; they go live."""
        for table, new in zip(self.embedding_tables(), rows, strict=True):
            table[ids] = new
        self.live_rows[ids] = self.born_rows[ids] = True

    def _grow_actions(self, names, descriptions, step: int) -> tuple[int, ...]:
        ledger, action = self.ledger(), self.config.action
        known = action.names or [str(number) for number in range(action.num_actions)]
        taken = sorted(set(names) & set(known))
        if taken:
            raise ValueError(f"{taken} are actions already; choose other names.")
        groups = self._words_of(descriptions)
        others = torch.zeros_like(self.live_rows)
        others[self.segment_rows("action", 0)[self.live_codes("action", 0)]] = True
        means = self._means(len(names), groups, others)
        ids = ledger.grow("action.0", len(names), "named", step, names=names)
        self._write_rows(ids, means)
        grown = action.to_dict() | {"num_actions": action.num_actions + len(names), "names": [*known, *names]}
        self.config.action = type(action)(**grown)
        self.processor.action = self.config.action.to_dict()
        self.config.vocabulary_digest = ledger.digest()
        return tuple(ids)


@dataclass
class _Trial:
    accepted: bool = False


def _check_given(segment: str, count: int, names, descriptions) -> None:
    needs_names = segment == "text" or segment.startswith("action.")
    if count < 1 or (needs_names and not names):
        raise ValueError(f"Nothing to grow {segment} by: give `names`{'' if needs_names else ' or `vectors`'}.")
    for what, given in (("names", names), ("descriptions", descriptions)):
        if isinstance(given, str):
            raise ValueError(f"`{what}` must be a list of strings, got {given!r}; pass [{given!r}].")
        if given is not None and len(given) != count:
            raise ValueError(f"{count} tokens of {segment} need as many {what}, got {len(given)}.")
    if names is not None and len(set(names)) != len(names):
        raise ValueError(f"`names` must differ, got {list(names)}.")
