"""One vocabulary that grows: reserved rows become active, in training and at inference (sections 4.2 and 5.2 of
"Critiques of World Models").

Growth changes no shape: it writes reserved rows and marks them active, so optimizer states, adapters, compiled graphs
and caches stay valid. The ledger of the processor that is attached to the model (`PanProcessor.attach`) records every
new token, and the two stay together. What a model finds by itself is in `learning_pan.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .sense_configuration_pan import ACTION, MERGES
from .validation_pan import strings, whole

if TYPE_CHECKING:
    from .modeling_pan import PanModel
    from .sense_configuration_pan import Part


@dataclass
class Trial:
    """A change of one level's codes, undone at its end unless it was accepted."""

    accepted: bool = False


class VocabularyGrowth:
    """Words, actions and codes of a model that become active or retire by a person's hand.

    Args:
        model ([`PanModel`]): attached to its processor. It is asked for its modules at every call.
    """

    def __init__(self, model: PanModel):
        self.model = model

    @torch.no_grad()
    def grow(
        self,
        segment: str,
        names: Sequence[str] | None = None,
        descriptions: Sequence[str] | None = None,
        vectors: Tensor | None = None,
        step: int = 0,
    ) -> tuple[int, ...]:
        """Makes tokens active: words, actions or codes that a person names.

        Args:
            segment (`str`): "text"; "action.0" of discrete actions, "action.<name>.0" of a named part of them; or a
                level of an image sense, "camera.0".
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
        model, step = self.model, whole("step", step)
        model.ledger().capacity(segment)  # says so if there is no such segment
        names = None if names is None else strings("names", names)
        descriptions = None if descriptions is None else strings("descriptions", descriptions)
        vectors = None if vectors is None else _as_vectors(vectors)
        _check_given(segment, names, descriptions, vectors)
        if segment == "text":
            return self._grow_words(names or [], descriptions)
        part, level = segment.rsplit(".", 1)
        if level == MERGES:
            raise ValueError(f"{segment} holds merged tokens, which are made of others: see `PanModel.merge`.")
        if part in model.senses and model.senses[part].can_grow:
            return self.grow_codes(part, int(level), vectors, names, "named", step)
        if part in model.config.action_parts and model.config.action_parts[part].is_token:
            return self._grow_actions(part, names or (), descriptions, step)
        raise ValueError(
            f"{segment} holds the digits of a lattice, which are complete; give the vector a larger `base` or more "
            "levels, or merge its digits."
        )

    @torch.no_grad()
    def grow_codes(
        self, name: str, level: int, vectors: Tensor | None, names: Sequence[str] | None, reason: str, step: int
    ) -> tuple[int, ...]:
        """`grow` for a level of an image sense, whatever the ledger's `reason`; corrections are zero."""
        model, ledger, segment = self.model, self.model.ledger(), f"{name}.{level}"
        dim = model.config.senses[name].code_dim
        if vectors is None or vectors.shape[1] != dim:
            shape = None if vectors is None else tuple(vectors.shape)
            raise ValueError(f"Codes of {segment} need finite `vectors` (count, {dim}), got {shape}.")
        if not bool(model.senses[name].codebooks[level].started):
            raise ValueError(f"{segment} stands for nothing yet; train the senses first, codes would be moved.")
        first = ledger.born(segment)
        with self.trial(name, level) as trial:
            ledger.check_room(segment, len(vectors))
            self.write_codes(name, level, range(first, first + len(vectors)), vectors)
            ids = ledger.grow(segment, len(vectors), reason, step, names=names)
            trial.accepted = True
        model.config.vocabulary_digest = ledger.digest()
        return tuple(ids)

    @torch.no_grad()
    def retire(
        self, segment: str, codes: Sequence[int], reason: str = "unused", into: int | None = None, step: int = 0
    ) -> None:
        """Retires codes: they are neither chosen nor predicted any more, and their ids stay reserved.

        Args:
            segment (`str`): a level of an image sense, "camera.0", or merged tokens, "camera.merges".
            codes (`list[int]`): which, counted within the segment.
            reason (`str`): for the ledger, e.g. "unused", "indistinguishable".
            into (`int`, *optional*): the code that stands for them from now on.
            step (`int`): training step, for the ledger.

        Raises:
            ValueError: no such codes, all of a level, or parts of merged tokens that stay. Nothing has changed then.
        """
        model, ledger, step = self.model, self.model.ledger(), whole("step", step)
        ledger.capacity(segment)  # says so if there is no such segment
        part, _, level = segment.rpartition(".")
        if isinstance(codes, str) or not isinstance(codes, Iterable):
            raise ValueError(f"`codes` must be a list of numbers within {segment}, got {codes!r}.")
        codes = sorted({whole("codes", code) for code in codes})
        if not codes:
            raise ValueError(f"`codes` names no token of {segment} to retire.")
        into = None if into is None else whole("into", into)
        ids, book = [ledger.id_of(segment, code) for code in codes], None
        if level == MERGES:
            _, pairs = ledger.merged_pairs()
            wholes = sorted(whole for *parts, whole in pairs if set(parts) & set(ids) and whole not in ids)
            if wholes:
                raise ValueError(f"Tokens {ids} are parts of the merged tokens {wholes}, which must be retired first.")
        elif part in model.senses and model.senses[part].can_grow:
            book = model.senses[part].codebooks[int(level)]
            if len(codes) >= ledger.live(segment):
                raise ValueError(f"{segment} has {ledger.live(segment)} live codes; at least one must stay.")
        else:
            raise ValueError(f"Only codes of image senses and merged tokens retire; {segment!r} is neither.")
        ledger.retire(ids, reason, step, into=None if into is None else ledger.id_of(segment, into))
        model.table.deactivate(ids)
        if book is not None:
            book.live[codes] = False
        model.config.vocabulary_digest = ledger.digest()

    def start_added_words(self, num_words: int | None) -> None:
        """Makes the words active that the tokenizer was given by `add_tokens` and the model has not; there are
        `num_words` of them with the older ones.

        Raises:
            ValueError: more words than reserved rows, or words that no attached tokenizer knows.
        """
        if num_words is None or whole("new_num_tokens", num_words, 1) <= int(self.model.table.active_words().sum()):
            return
        ledger = self.model.ledger()
        if num_words > sum(ledger.runs("text")[-1]):
            raise ValueError(
                f"{num_words} words do not fit the {ledger.capacity('text')} rows reserved for words; ids of codes "
                f"lie behind them and never move. {ledger.full_help('text')}"
            )
        last = ledger.id_of("text", ledger.born("text") - 1)
        if last + 1 < num_words:  # `len(tokenizer)` counts the ids of codes where words go on behind them
            raise ValueError(
                f"The attached tokenizer has words up to id {last}, not {num_words} of them; add words with "
                "`tokenizer.add_tokens([...])` first, or use `model.grow('text', names=[...])`."
            )
        self._start_words(self._waiting_words(), None)

    # ---- codes of one level, for what grows and learns

    @contextmanager
    def trial(self, name: str, level: int) -> Iterator[Trial]:
        """What is changed of one level inside is undone, bit for bit, unless the trial is accepted."""
        table, rows = self.model.table, self.model.table.segment_rows(name, level)
        changed: list[tuple[Tensor, Tensor | slice]]
        changed = [(each.detach(), rows) for each in [*table.weights(), table.active, table.ever_active]]
        changed += [(buffer, slice(None)) for buffer in self.model.senses[name].codebooks[level].buffers()]
        kept, trial = [tensor[where].clone() for tensor, where in changed], Trial()
        try:
            yield trial
        finally:
            if not trial.accepted:
                for (tensor, where), old in zip(changed, kept, strict=True):
                    tensor[where] = old

    def write_codes(self, name: str, level: int, codes: range, vectors: Tensor) -> None:
        """Writes new codes: codebook rows, vocabulary rows of the nearest code there is, and the marks that they are
        active."""
        book, table = self.model.senses[name].codebooks[level], self.model.table
        vectors = vectors.to(book.vectors)
        distance = torch.cdist(vectors, book.vectors).masked_fill(~book.describes(), torch.inf)
        book.add(codes, vectors)
        self.copy_rows(name, level, codes, distance.argmin(1))
        table.activate(table.segment_rows(name, level)[codes.start : codes.stop])

    def copy_rows(self, name: str, level: int, codes: range, models: Tensor) -> None:
        """Writes the vocabulary rows of codes, from those of the codes `models` `(len(codes),)`."""
        rows = self.model.table.segment_rows(name, level)
        for weight in self.model.table.weights():
            weight.detach()[rows[codes.start : codes.stop]] = weight.detach()[rows[models.to(rows.device)]]

    # ---- words and actions

    def _waiting_words(self) -> list[int]:
        """Ids of words that the tokenizer was given and the model has not started yet."""
        ledger, active = self.model.ledger(), self.model.table.active
        runs = [torch.arange(first, first + count) for first, count in ledger.runs("text")]
        ids = torch.cat(runs)[: ledger.born("text")].to(active.device)
        return ids[~active[ids]].tolist()

    def _grow_words(self, names: list[str], descriptions: Sequence[str] | None) -> tuple[int, ...]:
        tokenizer = self.model.processor.tokenizer
        taken = [name for name in names if tokenizer.has_word(name)]
        if taken:
            raise ValueError(f"{taken} are words already; choose other names.")
        odd = [name for name in names if not name or name != name.strip() or tokenizer.is_code(name)]
        if odd:
            raise ValueError(f"{odd} cannot be words: empty, with space around them, or spelled like codes.")
        groups, waiting = self._words_of(descriptions), self._waiting_words()
        self.model.ledger().check_room("text", len(names))  # before anything changes
        if waiting:
            self._start_words(waiting, None)
        tokenizer.add_tokens(names)
        ids = tokenizer.convert_tokens_to_ids(names)
        self._start_words(ids, groups)
        return tuple(ids)

    def _words_of(self, descriptions: Sequence[str] | None) -> list[list[int]] | None:
        if descriptions is None:
            return None
        groups = self.model.processor.tokenizer.text_ids(list(descriptions))
        if not all(groups):
            raise ValueError(f"Descriptions must hold words, got {list(descriptions)}.")
        return groups

    def _start_words(self, ids: list[int], groups: list[list[int]] | None) -> None:
        self._write_rows(ids, self._means(len(ids), groups, self.model.table.active_words()))
        self.model.config.vocabulary_digest = self.model.ledger().digest()

    @torch.no_grad()
    def _means(self, count: int, groups: list[list[int]] | None, others: Tensor) -> list[Tensor]:
        """For each table `(count, H)`: means of the rows of groups of words, or of the rows that `others` marks."""
        means = []
        for weight in self.model.table.weights():
            if groups:
                rows = [weight[group].float().mean(0) for group in groups]
            else:  # a product, not a gather: the table is not copied
                rows = [others.to(weight.dtype) @ weight[: len(others)] / others.sum()]
            means.append(torch.stack(rows).to(weight.dtype).expand(count, -1))
        return means

    @torch.no_grad()
    def _write_rows(self, ids: list[int], rows: list[Tensor]) -> None:
        """Rows of each table; they become active."""
        for weight, new in zip(self.model.table.weights(), rows, strict=True):
            weight[ids] = new
        self.model.table.activate(ids)

    def _grow_actions(
        self, part: str, names: Sequence[str], descriptions: Sequence[str] | None, step: int
    ) -> tuple[int, ...]:
        model, ledger, action = self.model, self.model.ledger(), self.model.config.action_parts[part]
        older = action.names or [str(number) for number in range(action.num_actions)]
        taken = sorted(set(names) & set(older))
        if taken:
            raise ValueError(f"{taken} are actions already; choose other names.")
        groups = self._words_of(descriptions)
        others = torch.zeros_like(model.table.active)
        others[model.table.segment_rows(part, 0)[model.table.active_codes(part, 0)]] = True
        means = self._means(len(names), groups, others)
        ids = ledger.grow(f"{part}.0", len(names), "named", step, names=names)
        self._write_rows(ids, means)
        grown = action.to_dict() | {"num_actions": action.num_actions + len(names), "names": [*older, *names]}
        set_part(model, part, type(action)(**grown))
        model.config.vocabulary_digest = ledger.digest()
        return tuple(ids)


def set_part(model: Any, part: str, described: Part) -> None:
    """Lets a model and its processor know how a sense, or a part of the action, is described from now on."""
    config, processor, name = model.config, model.processor, part.removeprefix(f"{ACTION}.")
    if part in model.senses:
        config.senses[part] = model.senses[part].sense = described
        processor.senses[part] = described.to_dict()
    elif name == ACTION:
        config.action, processor.action = described, described.to_dict()
    else:
        config.actions = config.actions | {name: described}
        processor.actions = processor.actions | {name: described.to_dict()}


def _as_vectors(vectors: Any) -> Tensor:
    try:
        vectors = torch.as_tensor(vectors)
        if vectors.ndim == 2 and vectors.is_floating_point() and bool(vectors.isfinite().all()):
            return vectors.float()
    except (TypeError, ValueError, RuntimeError):
        pass  # no numbers at all
    got = f"{vectors.dtype} of {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else f"{vectors!r:.60}"
    raise ValueError(f"Codes need finite `vectors` (count, code_dim), got {got}.")


def _check_given(
    segment: str, names: list[str] | None, descriptions: list[str] | None, vectors: Tensor | None
) -> None:
    needs_names = segment == "text" or segment.startswith("action.")
    if needs_names and vectors is not None:
        raise ValueError(f"Tokens of {segment} have no `vectors`; describe them in words, with `descriptions`.")
    count = len(names or ()) if vectors is None else len(vectors)
    if count < 1 or (needs_names and not names):
        raise ValueError(f"Nothing to grow {segment} by: give `names`{'' if needs_names else ' or `vectors`'}.")
    for what, items in (("names", names), ("descriptions", descriptions)):
        if items is not None and len(items) != count:
            given = "names" if vectors is None else "vectors"
            raise ValueError(f"{count} {given} of {segment} need as many {what}, got {len(items)}: {items}.")
    if blank := [name for name in names or () if not name.strip()]:
        raise ValueError(f"`names` {blank} cannot be words: they are empty, or of spaces alone.")
    if names is not None and len(set(names)) != len(names):
        raise ValueError(f"`names` must differ, got {list(names)}.")
