"""Columns of a table as senses, action, rewards and ends: by LeRobot's names, or as `map` says.

A column is one of the roles below, a sense, or left out. What kind of sense it is shows in its first value: a picture
(see `pan_hf.images`), numbers or a text. Several columns of numbers with one name are one vector, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pan_hf.data.episodes import Episode
from pan_hf.data.importing.writing import as_text, make_episode
from pan_hf.features import Form, TextFeature, View, check_sense_name, is_reserved, kinds

ROLES = ("action", "reward", "done", "truncated", "episode", "frame", "task", "pad")
# The names that LeRobot, and our own recordings, give to the roles.
USUAL = {"action": "action", "next.reward": "reward", "next.done": "done", "next.truncated": "truncated"}
USUAL |= {"episode_index": "episode", "frame_index": "frame", "task": "task", "action_is_pad": "pad"}
_PREFIXES = ("observation.images.", "observation.")


class Table(Protocol):
    """Episodes of named columns.

    Args:
        about, fps: see `writing.Source`.
        columns: their names.
    """

    @property
    def about(self) -> dict: ...
    @property
    def fps(self) -> float: ...
    @property
    def columns(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def where(self, number: int) -> str:
        """The file and the episode in it, for errors."""

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Iterable]:
        """The values of an episode by column, one a row; pictures one by one as they are asked for."""

    def largest(self, column: str) -> int:
        """The largest whole number in a column."""


def assign(columns: Sequence[str], mapping: Mapping[str, str], where: str) -> dict[str, list[str]]:
    """Which columns are what: role or sense -> columns, in the order of `mapping` and then of the table.

    Args:
        columns: there are.
        mapping: column -> role of `ROLES`, name of a sense, or "" to leave it out.
        where: what an error names.

    Raises:
        ValueError: a column that is not there, a role twice, no action, no sense, or a name that cannot name one.
    """
    unknown = [name for name in mapping if name not in columns]
    if unknown:
        raise ValueError(f"{where}: map names the columns {unknown}, which are not there; there are {list(columns)}")
    if reserved := [name for name in columns if is_reserved(name) and name not in mapping]:
        raise ValueError(
            f"{where}: the columns {reserved} have names that recordings reserve (action.<name>, next.reward.<actor>, "
            "next.done.<actor>); say what they are with map, as in map COLUMN=action, or leave them out with map "
            "COLUMN="
        )
    found: dict[str, list[str]] = {}
    for column in [*mapping, *(name for name in columns if name not in mapping)]:
        target = mapping.get(column, _usual(column))
        if target:
            found.setdefault(target, []).append(column)
    for name, sources in found.items():
        if name in ROLES and name != "action" and len(sources) > 1:
            raise ValueError(f"{where}: {sources} are all mapped to {name!r}; leave all but one out with map COLUMN=")
        if name not in ROLES:
            _check_sense(where, name, sources)
    if "action" not in found:
        raise ValueError(f"{where}: no column is the action; say which of {list(columns)} with map COLUMN=action")
    if not set(found) - set(ROLES):
        raise ValueError(f"{where}: no column is a sense; say which of {list(columns)} with map COLUMN=SENSE")
    return found


def _check_sense(where: str, name: str, sources: list[str]) -> None:
    try:
        check_sense_name(name, f"map {sources} anew")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _usual(column: str) -> str:
    prefix = next((one for one in _PREFIXES if column.startswith(one)), None)
    return USUAL.get(column, "") if prefix is None else column.removeprefix(prefix).replace(".", "_")


# What one value is


def form_of(value: Any, image_size: int | None, crop: bool) -> Form:
    """What a sense is, by its first value.

    Raises:
        ValueError: it is neither a picture nor numbers nor a text.
    """
    first, view = _plain(value), View(image_size, crop)
    if not isinstance(first, str) and first.dtype.kind not in "iufb":
        raise ValueError(f"expected a picture, numbers or a text, got {first.dtype} {first!r:.80}")
    return _form(first, (kind.from_value(first, view) for kind in kinds()))


def action_form(value: Any, largest: Callable[[], int]) -> Form:
    """What an action is, by its first value: one whole number is a choice, other numbers are a vector.

    Args:
        value: the first.
        largest: gives the largest whole number among all, which says how many choices there are.
    """
    first = _plain(value)
    return _form(first, (kind.action_from_value(first, largest) for kind in kinds()))


def _form(first: str | np.ndarray, offered: Iterable[Form | None]) -> Form:
    """The first form that a kind offers, for values as they stand in the table: the last kind takes any numbers."""
    form = next(form for form in offered if form is not None)
    plain = as_text if isinstance(first, str) else _array
    return Form(form.feature, lambda value: form.convert(plain(value)))


def _plain(value: Any) -> str | np.ndarray:
    return as_text(value) if isinstance(value, str | bytes) else _array(value)


def _array(value: Any) -> np.ndarray:
    """A value as an array; pictures as RGB."""
    if isinstance(value, Image.Image):
        return np.asarray(value.convert("RGB"))
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"expected numbers of one shape ({error})") from error


# The source


class TableSource:
    """Episodes of a table, see `writing.Source`.

    Args:
        table: where they are read from.
        mapping: column -> role or sense, see `assign`.
        image_size: side in pixels that pictures are averaged to; as they are when None.
        crop: whether pictures are cut to their middle square before that.

    Raises:
        ValueError: see `assign`; or a column's first value is no sense.
    """

    def __init__(self, table: Table, mapping: Mapping[str, str], image_size: int | None, crop: bool):
        self._table, self.fps = table, table.fps
        self.about = {**table.about, "map": dict(mapping), "image_size": image_size, "crop": crop}
        self.environment = {"id": table.about["path"]}
        self._roles = assign(table.columns, mapping, table.about["path"])
        self.has_rewards = "reward" in self._roles
        self._senses = [name for name in self._roles if name not in ROLES]
        if not len(table):
            raise ValueError(f"{table.about['path']} has no episode")
        first = {name: next(iter(rows), None) for name, rows in self._read(0).items()}
        self._forms = {name: self._form(name, first[name], image_size, crop) for name in self._senses}
        self._forms["action"] = self._form("action", first["action"], image_size, crop)
        if "task" in self._roles:
            self._forms["task"] = Form({"kind": TextFeature.kind, "every_step": False}, as_text)
        self.features = {
            name if name == "action" else f"observation.{name}": form.feature
            for name, form in sorted(self._forms.items(), key=lambda item: item[0] == "action")
        }

    def __len__(self) -> int:
        return len(self._table)

    def _form(self, name: str, value: Any, image_size: int | None, crop: bool) -> Form:
        columns = self._roles[name]
        try:
            if value is None:
                raise ValueError("expected a value in the first row, got none")
            if name == "action":
                return action_form(value, lambda: self._table.largest(columns[0]))
            return form_of(value, image_size, crop)
        except ValueError as error:
            raise ValueError(f"{self._table.where(0)}, column {_named(columns)}: {error}") from error

    def episode(self, number: int) -> Episode:
        """The `number`-th episode; ValueError names file, episode, column and what was expected."""
        where = self._table.where(number)
        read = self._read(number)
        rows = {name: list(values) for name, values in read.items() if name not in self._senses}
        num_padding = int(np.sum(rows.pop("pad", [])))
        task = self._task(where, rows.pop("task", []))
        rows = {name: values[: len(values) - num_padding] for name, values in rows.items()}
        observations = {name: self._converted(where, name, read[name]) for name in self._senses}
        lengths = {name: len(values) for name, values in observations.items()}
        if task is not None:
            observations["task"] = [task] * max(lengths.values())
        actions = rows["action"]
        while len(actions) == max(lengths.values()) and actions[-1] is None:
            actions.pop()  # an empty last action is padding too
        told: dict = {
            f"{name}s": rows[name][: len(actions)] for name in ("reward", "done", "truncated") if name in rows
        }
        actions = self._converted(where, "action", actions)
        return make_episode(where, self.environment["id"], number, observations, actions, **told, task=task or "")

    def _read(self, number: int) -> dict[str, Iterable]:
        """By role or sense, the rows of an episode; several columns of one name side by side."""
        wanted = {name: columns for name, columns in self._roles.items() if name not in ("episode", "frame")}
        found = self._table.read(number, [column for columns in wanted.values() for column in columns])
        return {name: found[columns[0]] if len(columns) == 1 else _side_by_side(found, columns)
                for name, columns in wanted.items()}  # fmt: skip

    def _converted(self, where: str, name: str, values: Iterable) -> list:
        converted = []
        for value in values:
            try:
                if value is None:
                    raise ValueError("expected a value, got none")
                converted.append(self._forms[name].convert(value))
            except ValueError as error:
                place = f"{where}, column {_named(self._roles[name])}, row {len(converted)}"
                raise ValueError(f"{place}: {error}") from error
        return converted

    def _task(self, where: str, texts: list) -> str | None:
        if "task" not in self._roles:
            return None
        distinct = sorted({as_text(text) for text in texts})
        if len(distinct) != 1:
            raise ValueError(
                f"{where}, column {_named(self._roles['task'])}: expected one task for the whole episode, got "
                f"{distinct[:3]}; a text that changes is a sense, say map COLUMN=NAME"
            )
        return distinct[0]


def _named(columns: list[str]) -> str:
    return repr(columns[0]) if len(columns) == 1 else repr(columns)


def _side_by_side(found: dict[str, Iterable], columns: list[str]) -> Iterator:
    rows = {column: list(found[column]) for column in columns}
    if len({len(values) for values in rows.values()}) > 1:
        raise ValueError(f"expected columns of one length, got { ({name: len(one) for name, one in rows.items()}) }")
    for values in zip(*rows.values(), strict=True):
        yield None if any(value is None for value in values) else np.concatenate([np.ravel(v) for v in values])
