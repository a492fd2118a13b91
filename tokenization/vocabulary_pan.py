"""The ledger: which rows of the one embedding table are live, and how each of them came to be.

Words and codes share one table whose rows are all reserved when a model is built: words from 0, then one *segment* for
each level of each sense and of the action. A token is *born* when a reserved row of its segment goes live, and
*retired* when it goes dead again; no shape ever changes. An id, once born, never changes meaning or place. A segment
that is full is *extended*, offline, by rows behind all others. Births, retirements and extensions are events of an
append-only list, so one ledger is the ancestor of another exactly when its events are the first of the other's. The
digest of a ledger is what a model and a processor compare.

Events are plain dicts, not classes: code loaded from the Hub may hold this module twice, and the same event must be
equal in both.
"""

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

FILE_NAME = "vocabulary.json"
FORMAT, VERSION = "pan-vocabulary", 1
TEXT = "text"
MOST_ROWS = 2**23  # of a table; ten times the words of the largest tokenizers. More would be a list that fills memory
BIRTH_REASONS = ("start", "named", "novelty", "merge")


class Vocabulary:
    """The ledger of one embedding table. Make one with [`Vocabulary.build`], [`Vocabulary.load`] or `from_dict`.

    Args:
        text_capacity (`int`): rows reserved for words; code ids start here.
        segments (`dict[str, tuple[int, int]]`): name of a code segment ("camera.0", "action.0") -> (offset, capacity),
            in rows, one behind the other from `text_capacity`.

    Attributes:
        text_capacity (`int`): as above.
        segments (`dict[str, tuple[int, int]]`): as above, without extensions (see `runs`); words are the segment
            "text", which is not listed here.

    Raises:
        ValueError: segments that overlap, leave gaps, or are empty; or more than `MOST_ROWS` rows.
    """

    def __init__(self, text_capacity: int, segments: Mapping[str, Sequence[int]] | None = None):
        self.text_capacity = int(text_capacity)
        rows = sorted((segments or {}).items(), key=lambda item: item[1][0])  # JSON written elsewhere sorts by name
        self.segments = {name: (int(offset), int(capacity)) for name, (offset, capacity) in rows}
        self._events: list[dict] = []
        self._born = dict.fromkeys([TEXT, *self.segments], 0)
        self._retired: dict[str, set[int]] = {name: set() for name in self._born}
        self._extensions: dict[str, list[tuple[int, int]]] = {name: [] for name in [TEXT, *self.segments]}
        self._names: dict[str, set[str]] = {name: set() for name in self._born}
        self._check_layout()

    @classmethod
    def build(
        cls, text_size: int, text_capacity: int, segments: Mapping[str, tuple[int, int]] | None = None
    ) -> "Vocabulary":
        """A ledger in which nothing has happened but the start.

        Args:
            text_size (`int`): words the backbone knows, live from the start.
            text_capacity (`int`): rows for words, those to come included; at least `text_size`.
            segments (`dict[str, tuple[int, int]]`): name -> (capacity, live), in the order of their rows.

        Raises:
            ValueError: a segment with more live tokens than rows, or a name that is not allowed.
        """
        offset, layout = text_capacity, {}
        for name, (capacity, _) in (segments or {}).items():
            layout[name] = (offset, capacity)
            offset += capacity
        vocabulary = cls(text_capacity, layout)
        for name, live in [(TEXT, text_size), *((name, live) for name, (_, live) in (segments or {}).items())]:
            if live:
                vocabulary.grow(name, live, "start", step=0)
        return vocabulary

    # -- what is where

    @property
    def size(self) -> int:
        """Rows of the table, live or not: words and codes."""
        return self.capacity(TEXT) + self.code_capacity

    @property
    def code_capacity(self) -> int:
        """Rows reserved for codes, behind the words that there was room for at first."""
        return sum(self.capacity(name) for name in self.segments)

    @property
    def events(self) -> tuple[dict, ...]:
        """Everything that happened, in order: births, retirements and extensions as JSON-able dicts (not to be
        edited)."""
        return tuple(self._events)

    @property
    def births(self) -> tuple[dict, ...]:
        """The births among `events`: {event, first, count, segment, reason, step, parents?, names?}."""
        return tuple(event for event in self._events if event["event"] == "birth")

    def offset(self, segment: str) -> int:
        """First row of `segment` ("text" included). Raises ValueError for an unknown name, as all methods do."""
        return self._run_of(segment)[0]

    def capacity(self, segment: str) -> int:
        """Rows reserved for `segment`, extensions included."""
        return sum(capacity for _, capacity in self.runs(segment))

    def runs(self, segment: str) -> list[tuple[int, int]]:
        """The (offset, capacity) of each run of rows that `segment` has: its own, and its extensions behind it."""
        return [self._run_of(segment), *self._extensions.get(segment, [])]

    def born(self, segment: str) -> int:
        """Tokens of `segment` that were ever born, retired ones included; the next one is code `born(segment)`."""
        self._run_of(segment)
        return self._born[segment]

    def live(self, segment: str) -> int:
        """Tokens of `segment` that are live: born and not retired."""
        return self.born(segment) - len(self._retired[segment])

    def live_mask(self, segment: str) -> np.ndarray:
        """Bool array of shape `(capacity,)`: `True` where the code is live."""
        mask = np.arange(self.capacity(segment)) < self._born[segment]
        mask[sorted(self._retired[segment])] = False
        return mask

    def id_of(self, segment: str, code: int) -> int:
        """Id of the `code`-th token of `segment`, retired or not. Raises ValueError when it is not born."""
        if not 0 <= code < self.born(segment):
            raise ValueError(f"{segment} has no token {code}: {self._born[segment]} were born, counted from 0.")
        return self.row_of(segment, int(code))

    def ids_of(self, birth: Mapping) -> list[int]:
        """The ids of one of `births`; not always neighbours, where a segment was extended."""
        segment, first = self.segment_of(birth["first"])
        return [self.row_of(segment, first + index) for index in range(birth["count"])]

    def segment_of(self, token_id: int) -> tuple[str, int]:
        """The segment and the code behind an id, born or reserved. Raises ValueError outside `[0, size)`."""
        for name in [TEXT, *self.segments]:
            before = 0
            for offset, capacity in self.runs(name):
                if offset <= token_id < offset + capacity:
                    return name, before + int(token_id) - offset
                before += capacity
        raise ValueError(f"Id {token_id} is outside this vocabulary of {self.size} rows.")

    def merged_pairs(self) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Ids of all codes that were ever born and are no merges; and of each merged token that lives (left, right,
        itself), in the order of their births."""
        codes, pairs = [], []
        for birth in self.births:
            if birth["reason"] == "merge":
                pairs += [(*parents, item) for parents, item in zip(birth["parents"], self.ids_of(birth), strict=True)]
            elif birth["segment"] != TEXT:
                codes += self.ids_of(birth)
        return codes, [pair for pair in pairs if self._is_live(*self.segment_of(pair[-1]))]

    # -- what happens

    def grow(
        self,
        segment: str,
        count: int,
        reason: str,
        step: int,
        parents: Sequence[Sequence[int]] | None = None,
        names: Sequence[str] | None = None,
    ) -> list[int]:
        """Makes the next `count` reserved rows of `segment` live.

        Args:
            segment (`str`): "text" or a code segment.
            count (`int`): how many, at least 1.
            reason (`str`): "start", "named" (a person or a concept), "novelty" (an observation unlike every code) or
                "merge" (a pair became one token).
            step (`int`): training step at which it happened.
            parents (`list` of lists of ids, *optional*): what each new token was merged from; required for "merge".
            names (`list[str]`, *optional*): what each new token is called; all of a segment's names differ.

        Returns:
            `list[int]`: the new ids.

        Raises:
            ValueError: an unknown segment or reason, no room left, or parents and names that do not fit.
        """
        self.check_room(segment, count)
        born = self._born[segment]
        ids = [self.row_of(segment, code) for code in range(born, born + count)]
        event = {"event": "birth", "first": ids[0], "count": int(count), "segment": segment, "reason": reason}
        event["step"] = int(step)
        if parents is not None:
            event["parents"] = [[int(parent) for parent in group] for group in parents]
        if names is not None:
            event["names"] = [str(name) for name in names]
        self._apply(event)
        return ids

    def check_room(self, segment: str, count: int) -> None:
        """Raises ValueError, saying what to do, unless `count` more tokens fit into `segment`."""
        if count < 1:
            raise ValueError(f"Growing {segment} needs a count of at least 1, got {count}.")
        capacity = self.capacity(segment)
        free = capacity - self._born[segment]
        if count > free:
            told = f"{segment} is full: {count} more tokens asked for, {free} of {capacity} rows left."
            raise ValueError(f"{told} {self.full_help(segment)}")

    @staticmethod
    def full_help(segment: str) -> str:
        """What to do about a segment without room."""
        return f"Run `pan vocabulary --double {segment}`, which doubles its rows in a checkpoint."

    def extend(self, segment: str, capacity: int, step: int = 0) -> tuple[int, int]:
        """Reserves `capacity` more rows for a segment, behind all others. Returns their (offset, capacity).

        Raises:
            ValueError: no such segment, or no rows.
        """
        first, capacity = self.size, int(capacity)
        event = {"event": "extension", "segment": segment, "first": first, "capacity": capacity, "step": int(step)}
        self._apply(event)
        return first, capacity

    def retire(self, ids: Iterable[int], reason: str, step: int, into: int | None = None) -> None:
        """Makes live tokens dead. Their ids stay reserved for ever.

        Args:
            ids (`list[int]`): tokens of one code segment.
            reason (`str`): for the reader, e.g. "unused" or "indistinguishable".
            step (`int`): training step at which it happened.
            into (`int`, *optional*): the live token of the same segment that stands for them from now on.

        Raises:
            ValueError: ids that are not live, of several segments or words, or a wrong `into`.
        """
        event = {"event": "retirement", "ids": sorted(int(item) for item in ids), "reason": reason, "step": int(step)}
        if into is not None:
            event["into"] = int(into)
        self._apply(event)

    # -- comparing

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the ledger's canonical JSON."""
        return _digest(self._content())

    def difference(self, other: "Vocabulary", here: str = "here", there: str = "there") -> str:
        """What differs between two ledgers, for a person to read: layout, counts by segment, first differing event.

        Args:
            other (`Vocabulary`): the ledger to compare with.
            here, there (`str`): what the two are called, e.g. "the processor" and "the model".

        Returns:
            `str`: one line a difference; "" when the ledgers are equal.
        """
        lines = []
        if self.text_capacity != other.text_capacity:
            lines.append(f"rows for words: {self.text_capacity} {here}, {other.text_capacity} {there}")
        for name in dict.fromkeys([TEXT, *self.segments, *other.segments]):
            mine, theirs = _describe_segment(self, name), _describe_segment(other, name)
            if mine != theirs:
                lines.append(f"segment {name}: {mine} {here}, {theirs} {there}")
        for index in range(max(len(self.events), len(other.events))):
            mine, theirs = _describe_event(self.events, index), _describe_event(other.events, index)
            if self.events[index : index + 1] != other.events[index : index + 1]:
                lines.append(f"first differing event is number {index}: {mine} {here}, {theirs} {there}")
                break
        return "\n".join(lines)

    def is_ancestor_of(self, other: "Vocabulary") -> bool:
        """Whether `other` is this ledger, or this ledger and what happened after it: same rows, same first events."""
        same_rows = self.text_capacity == other.text_capacity and self.segments == other.segments
        return same_rows and self.events == other.events[: len(self.events)]

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {self.live(name)}/{self.capacity(name)}" for name in self._born)
        return f"Vocabulary({counts}; digest {self.digest()})"

    # -- keeping

    def to_dict(self) -> dict:
        """JSON-able content, digest included; [`Vocabulary.from_dict`] is its inverse."""
        content = copy.deepcopy(self._content())
        return {**content, "digest": _digest(content)}

    @classmethod
    def from_dict(cls, values: Mapping, source: str = "vocabulary") -> "Vocabulary":
        """Rebuilds a ledger by letting everything happen again.

        Args:
            values (`dict`): what `to_dict` returned.
            source (`str`): what to call it in an error, e.g. a path.

        Raises:
            ValueError: another format, an event that cannot have happened, or content that does not match its digest.
        """
        if values.get("format") != FORMAT or values.get("version") != VERSION:
            found = f"{values.get('format')!r} version {values.get('version')!r}"
            raise ValueError(f"{source}: expected a {FORMAT!r} of version {VERSION}, got {found}.")
        try:
            layout = {item["name"]: (item["offset"], item["capacity"]) for item in values["segments"]}
            vocabulary = cls(values["text_capacity"], layout)
            for event in values["events"]:
                vocabulary._apply(json.loads(json.dumps(event)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{source}: not a ledger that can have grown ({type(error).__name__}: {error}). {_RESTORE}"
            ) from error
        if vocabulary.digest() != values.get("digest"):
            raise ValueError(
                f"{source}: its content has digest {vocabulary.digest()} but it says {values.get('digest')}; "
                f"it was edited or damaged. {_RESTORE}"
            )
        return vocabulary

    def check_replaces(self, folder: str | os.PathLike) -> None:
        """Raises ValueError where `folder` holds this very vocabulary grown otherwise: what another process wrote
        there since this one was loaded would be lost. A vocabulary with other rows is another model's, and may be."""
        path = os.path.join(folder, FILE_NAME)
        if not os.path.exists(path):
            return
        there = Vocabulary.load(path)
        same_rows = self.text_capacity == there.text_capacity and self.segments == there.segments
        if same_rows and not there.is_ancestor_of(self):
            raise ValueError(
                f"{folder} holds this vocabulary as another process grew it, which would be lost:\n"
                + self.difference(there, "to be saved", "in the folder")
                + "\nLoad the checkpoint again and grow that, or save to another folder."
            )

    def save(self, folder: str | os.PathLike) -> str:
        """Writes `vocabulary.json` into `folder` (made if absent), whole or not at all. Returns the file's path.

        Raises ValueError as `check_replaces`."""
        self.check_replaces(folder)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, FILE_NAME)
        temporary = f"{path}.{os.getpid()}.tmp"
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(self.to_dict(), file, indent=1, ensure_ascii=False)
                file.write("\n")
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Vocabulary":
        """Reads `vocabulary.json` in the folder `path`, or the file `path`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a ledger, or was edited by hand.
        """
        path = os.path.join(path, FILE_NAME) if os.path.isdir(path) else os.fspath(path)
        if not os.path.exists(path):
            raise FileNotFoundError(f"No vocabulary at {path}. Expected the {FILE_NAME} that `save` writes.")
        with open(path, encoding="utf-8") as file:
            text = file.read()
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON ({error}); it was truncated or damaged. {_RESTORE}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}. {_RESTORE}")
        return cls.from_dict(values, source=path)

    # -- inside

    def _content(self) -> dict:
        segments = [{"name": name, "offset": row, "capacity": room} for name, (row, room) in self.segments.items()]
        return {
            "format": FORMAT,
            "version": VERSION,
            "text_capacity": self.text_capacity,
            "segments": segments,
            "events": list(self._events),
        }

    def _check_layout(self) -> None:
        if self.text_capacity < 1:
            raise ValueError(f"A vocabulary needs room for words: text_capacity is {self.text_capacity}.")
        expected = self.text_capacity
        for name, (offset, capacity) in self.segments.items():
            if name == TEXT or not name or any(mark in name for mark in "<>: \n"):
                raise ValueError(f"{name!r} cannot name a code segment; use a name such as 'camera.0'.")
            if offset != expected or capacity < 1:
                raise ValueError(
                    f"Segment {name}: expected at least one row from row {expected} on, "
                    f"got {capacity} rows from row {offset}."
                )
            expected += capacity
        if expected > MOST_ROWS:
            raise ValueError(f"A vocabulary has at most {MOST_ROWS} rows, got {expected}.")

    def _run_of(self, segment: str) -> tuple[int, int]:
        if segment == TEXT:
            return 0, self.text_capacity
        if not isinstance(segment, str) or segment not in self.segments:
            raise ValueError(f"Unknown segment {segment!r}. Known segments: {', '.join([TEXT, *self.segments])}.")
        return self.segments[segment]

    def _apply(self, event: dict) -> None:
        """Checks one event against what happened before, then lets it happen."""
        kinds = {"birth": self._apply_birth, "retirement": self._apply_retirement}
        kinds |= {"extension": self._apply_extension}
        if event["event"] not in kinds:
            raise ValueError(f"Unknown event {event['event']!r}; expected one of {', '.join(kinds)}.")
        kinds[event["event"]](event)
        self._events.append(event)

    def _apply_birth(self, event: dict) -> None:
        segment, count = event["segment"], event["count"]
        capacity = self.capacity(segment)
        if event["reason"] not in BIRTH_REASONS:
            raise ValueError(f"Unknown reason {event['reason']!r}; expected one of {', '.join(BIRTH_REASONS)}.")
        born = self._born[segment]
        if not 1 <= count <= capacity - born or event["first"] != self.row_of(segment, born):
            raise ValueError(
                f"{count} tokens cannot be born at id {event['first']} of {segment}: "
                f"{born} of its {capacity} rows, from {self.offset(segment)} on, are taken."
            )
        self._check_parents(event)
        self._check_names(event)
        self._born[segment] += count

    def _check_parents(self, event: dict) -> None:
        parents = event.get("parents")
        if parents is None and event["reason"] != "merge":
            return
        if parents is None or len(parents) != event["count"] or not all(parents):
            raise ValueError(
                f"{event['count']} tokens of {event['segment']} need one list of parents each, got {parents}."
            )
        segment, first = self.segment_of(event["first"])
        for number, group in enumerate(parents):
            for parent in group:
                owner, code = self.segment_of(parent)
                if owner != segment or not first <= code < first + number:  # else a token born just before this one
                    self.id_of(owner, code)  # says so when the parent was never born

    def _check_names(self, event: dict) -> None:
        names = event.get("names")
        if names is None:
            return
        taken = sorted(self._names[event["segment"]].intersection(names))
        if len(names) != event["count"] or len(set(names)) != len(names) or taken:
            raise ValueError(
                f"{event['count']} tokens of {event['segment']} need as many new names, got {names}, of which {taken} "
                "are taken."
            )
        self._names[event["segment"]].update(names)

    def _apply_retirement(self, event: dict) -> None:
        ids = event["ids"]
        owners = {self.segment_of(item)[0] for item in ids}
        if len(owners) != 1 or TEXT in owners or len(set(ids)) != len(ids):
            raise ValueError(f"Retire different tokens of one code segment at a time, got {ids} of {sorted(owners)}.")
        (segment,) = owners
        codes = {self.segment_of(item)[1] for item in ids}
        dead = sorted(code for code in codes if not self._is_live(segment, code))
        if dead:
            raise ValueError(f"{segment} has no live tokens {dead} to retire.")
        if "into" in event:
            owner, code = self.segment_of(event["into"])
            if owner != segment or code in codes or not self._is_live(segment, code):
                raise ValueError(f"Tokens of {segment} fold into a live token of {segment}, got id {event['into']}.")
        self._retired[segment] |= codes

    def _apply_extension(self, event: dict) -> None:
        segment, capacity = event["segment"], event["capacity"]
        if segment not in self._born or not 1 <= capacity <= MOST_ROWS - self.size or event["first"] != self.size:
            raise ValueError(
                f"{segment} cannot have {capacity} more rows from row {event['first']}: expected one of "
                f"{', '.join(self._born)}, and at least one row from row {self.size}, {MOST_ROWS} rows in all."
            )
        self._extensions[segment].append((event["first"], capacity))

    def row_of(self, segment: str, code: int) -> int:
        """The row that is or will be a token's id, born or not. Raises ValueError beyond the segment's capacity."""
        for offset, capacity in self.runs(segment):
            if code < capacity:
                return offset + code
            code -= capacity
        raise ValueError(f"{segment} has {self.capacity(segment)} rows.")

    def _is_live(self, segment: str, code: int) -> bool:
        return code < self._born[segment] and code not in self._retired[segment]


_RESTORE = "Restore the file from the checkpoint it came from; a ledger is never edited by hand."


def _digest(content: dict) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _describe_segment(vocabulary, name: str) -> str:
    if name != TEXT and name not in vocabulary.segments:
        return "absent"
    return f"{vocabulary.live(name)} live of {vocabulary.capacity(name)} from row {vocabulary.offset(name)}"


def _describe_event(events: Sequence[dict], index: int) -> str:
    if index >= len(events):
        return "none"
    event = events[index]
    if event["event"] == "birth":
        return f"{event['count']} born in {event['segment']} ({event['reason']}, step {event['step']})"
    if event["event"] == "extension":
        return f"{event['capacity']} rows more for {event['segment']} (step {event['step']})"
    return f"{len(event['ids'])} retired from id {event['ids'][0]} ({event['reason']}, step {event['step']})"
