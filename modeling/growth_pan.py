"""One vocabulary that grows: reserved rows go live, in training and at inference (sections 4.2 and 5.2 of "Critiques
of World Models").

Growth changes no shape: it writes reserved rows and marks them live, so optimizer states, adapters, compiled graphs
and caches stay valid. What was born is told to the ledger of the processor that is attached to the model
(`PanProcessor.attach`), and the two stay together. Codes that a model finds by itself stay only if what was held out
then takes fewer bits, code tokens included; if not, the model is bit for bit what it was.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .belief_pan import Belief
from .checks_pan import check_observation
from .novelty_pan import find_corrections, find_idle, find_models, find_novelties
from .sense_configuration_pan import MERGES
from .simulation_pan import pixel_log_prob

logger = logging.getLogger(__name__)

NOVEL = 0.05  # default threshold, see `find_novelties`
TOO_MANY = 0.5  # share of novel pieces from which the threshold is doubted aloud
ACTIONS_TRIED = 4  # for each observation, to see which codes stay where they are
BITS_A_NUMBER = 8  # of a new code's vector and corrections, where nothing is held out to judge it by


@dataclass
class Growth:
    """One attempt to grow, as it is logged.

    Args:
        segment (`str`): "camera.0", say.
        reason (`str`): as in the ledger.
        tried (`int`): tokens that were tried.
        accepted (`bool`): whether it stays so.
        bits_before, bits_after (`float`): description length of what was held out, bits an observation.
        ids (`tuple[int, ...]`): of the tokens that were born, or retired.
    """

    segment: str
    reason: str
    tried: int
    accepted: bool
    bits_before: float
    bits_after: float
    ids: tuple[int, ...] = ()

    @property
    def gain(self) -> float:
        """Bits an observation that the tokens save, or would have saved; negative where they cost."""
        return self.bits_before - self.bits_after


class GrowthMixin:
    """`grow`, `retire`, `learn`, `prune`, `observe` and `description_length` of [`PanModel`]."""

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

    # ---- by hand

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
        is_image = part in self.senses and hasattr(self.senses[part], "codebooks")
        ledger.capacity(segment)  # says so if there is no such segment
        if level != MERGES and not is_image:
            raise ValueError(f"Only codes of image senses and merged tokens retire; {segment!r} is neither.")
        codes = sorted({int(code) for code in codes})
        if level != MERGES and len(codes) >= ledger.live(segment):
            raise ValueError(f"{segment} has {ledger.live(segment)} live codes; at least one must stay.")
        ids = [ledger.id_of(segment, code) for code in codes]
        _, pairs = ledger.merged_pairs()
        wholes = sorted(merged for *parts, merged in pairs if set(parts) & set(ids) and merged not in ids)
        if level == MERGES and wholes:
            raise ValueError(f"Tokens {ids} are parts of the merged tokens {wholes}, which must be retired first.")
        ledger.retire(ids, reason, step, into=None if into is None else ledger.id_of(segment, into))
        self.live_rows[ids] = False
        if level != MERGES:
            self.senses[part].codebooks[int(level)].live[codes] = False
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
        if new_num_tokens > self.config.text_capacity:
            raise ValueError(
                f"{new_num_tokens} words do not fit the {self.config.text_capacity} rows reserved for words; ids of "
                "codes lie behind them and never move. Build the model with a larger `text_reserve`."
            )
        born = self.ledger().born("text")
        if born < new_num_tokens:
            raise ValueError(
                f"The attached tokenizer has {born} words, not {new_num_tokens}; add words with "
                "`tokenizer.add_tokens([...])` first, or use `model.grow('text', names=[...])`."
            )
        self._start_words(self._waiting_words(), None)
        return self.get_input_embeddings()

    def _waiting_words(self) -> list[int]:
        """Words that the tokenizer was given and the model has not started yet."""
        return (~self.live_words()[: self.ledger().born("text")]).nonzero().squeeze(1).tolist()

    # ---- by itself

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
        frames = next(values.shape[1] for sense, values in observation.items() if sense not in prefix)
        rows = torch.arange(ACTIONS_TRIED * len(observation[name]), device=self.device) % len(observation[name])
        last = {n: v[rows] if n in prefix else v[rows][:, frames - 1 :] for n, v in observation.items()}
        generator = torch.Generator().manual_seed(0)
        if action.kind == "discrete":
            drawn = torch.randint(action.num_actions, (len(rows), 1), generator=generator)
        else:
            low, high = torch.tensor(action.low), torch.tensor(action.high)
            drawn = low + (high - low) * torch.rand(len(rows), 1, action.dim, generator=generator)
        training, stays, seen = [module for module in self.modules() if module.training], 0.0, 0.0
        self.eval()
        size = len(self.live_codes(name, level))
        for part in torch.arange(len(rows), device=self.device).split(64):
            belief = self.perceive({n: v[part] for n, v in last.items()})
            imagined = self.simulate(belief, drawn.to(self.device)[part], temperature=0.0).codes[name][level]
            now = belief.state.codes[name][level].flatten()
            seen = seen + torch.bincount(now, minlength=size)
            stays = stays + torch.bincount(now[now == imagined.flatten()], minlength=size)
        for module in training:
            module.training = True
        return stays / seen.clamp(min=1)

    def _bits_without(self, name: str, level: int, codes: list[int], seen: tuple, held_out) -> float:
        """Description length were some codes dead; nothing has changed afterwards."""
        with self._trial(name, level):
            self.live_rows[self.segment_rows(name, level)[codes]] = False
            self.senses[name].codebooks[level].live[codes] = False
            return self._judge(seen, held_out)

    def _judge(self, seen: tuple, held_out: tuple | None) -> float:
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            return self.description_length(*(held_out or seen))
        finally:
            for module in training:
                module.training = True

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


def logged(growth: Growth) -> Growth:
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
