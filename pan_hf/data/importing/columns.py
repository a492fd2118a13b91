"""Columns of a table as senses, action, rewards and ends: by LeRobot's names, or as `map` says.

A column is one of the roles below, a part of the action (`action.<part>`), a sense, or left out. What kind of sense it
is shows in its first value: a picture (see `pan_hf.images`), numbers or a text. A text that names a picture file is
that picture. Several columns of numbers with one name are one vector, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pan_hf.data.episodes import Episode
from pan_hf.data.importing.frames import Root, as_image
from pan_hf.data.importing.times import Steps, steps_of
from pan_hf.data.importing.writing import as_rewards, as_text, make_episode
from pan_hf.features import ACTION, Form, TextFeature, View, check_sense_name, is_reserved, kinds
from pan_hf.images import SUFFIXES, pixels

ROLES = (ACTION, "reward", "done", "truncated", "episode", "frame", "time", "task", "pad")
# The names that LeRobot, and our own recordings, give to the roles.
USUAL = {"action": ACTION, "next.reward": "reward", "next.done": "done", "next.truncated": "truncated"}
USUAL |= {"episode_index": "episode", "frame_index": "frame", "timestamp": "time", "task": "task"}
USUAL |= {"action_is_pad": "pad"}
_PREFIXES = ("observation.images.", "observation.")
_VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm")


@dataclass(frozen=True)
class Taking:
    """How the values of a table are taken.

    Args:
        view: how pictures are brought to size.
        optional: senses that may be missing in some rows.
        resample: bring rows that are missing, doubled or of another rate to equal steps, instead of refusing them.
    """

    view: View = View()
    optional: Sequence[str] = ()
    resample: bool = False


class Table(Protocol):
    """Episodes of named columns.

    Args:
        about, fps: see `writing.Source`.
        columns: their names.
        root: where the files lie that values name, see `as_image`.
    """

    @property
    def about(self) -> dict: ...
    @property
    def fps(self) -> float: ...
    @property
    def columns(self) -> Sequence[str]: ...
    @property
    def root(self) -> Root: ...

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
        mapping: column -> role of `ROLES`, `action.<part>`, name of a sense, or "" to leave it out.
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
            "next.done.<actor>); say what they are with map, as in map COLUMN=action or COLUMN=action.PART, or leave "
            "them out with map COLUMN="
        )
    roles: dict[str, list[str]] = {}
    for column in [*mapping, *(name for name in columns if name not in mapping)]:
        target = mapping.get(column, _usual(column))
        if target:
            roles.setdefault(target, []).append(column)
    for name, sources in roles.items():
        if name in ROLES and name != ACTION and len(sources) > 1:
            raise ValueError(f"{where}: {sources} are all mapped to {name!r}; leave all but one out with map COLUMN=")
        if name not in ROLES and not _is_part(name):
            _check_sense(where, name, sources)
    parts = [name for name in roles if name == ACTION or _is_part(name)]
    if not parts or (ACTION in parts and len(parts) > 1):
        raise ValueError(
            f"{where}: {'no column is' if not parts else f'{parts} are'} the action; say which of {list(columns)} is "
            "with map COLUMN=action, or all of its parts with map COLUMN=action.PART"
        )
    if not set(roles) - {*ROLES, *parts}:
        raise ValueError(f"{where}: no column is a sense; say which of {list(columns)} with map COLUMN=SENSE")
    return roles


def _is_part(name: str) -> bool:
    return name.startswith(f"{ACTION}.") and name.removeprefix(f"{ACTION}.").isidentifier()


def _check_sense(where: str, name: str, sources: list[str]) -> None:
    try:
        check_sense_name(name, f"map {sources} anew")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _usual(column: str) -> str:
    prefix = next((one for one in _PREFIXES if column.startswith(one)), None)
    return USUAL.get(column, "") if prefix is None else column.removeprefix(prefix).replace(".", "_")


# What one value is


def form_of(value: Any, view: View, root: Root = None) -> Form:
    """What a sense is, by its first value.

    Args:
        view: how pictures are brought to size.
        root: see `as_image`.

    Raises:
        ValueError: it is neither a picture nor numbers nor a text, or a picture whose numbers have no known meaning.
    """
    opened = _opener(value, root)
    shown = opened(value)
    first = _plain(shown, root)
    if shown is not value or isinstance(shown, Image.Image | Mapping):  # a picture holds colours, however dark
        view = replace(view, symbols=False)
    if not isinstance(first, str) and first.dtype.kind not in "iufb":
        raise ValueError(f"expected a picture, numbers or a text, got {first.dtype} {first!r:.80}")
    form = _form(first, (kind.from_value(first, view) for kind in kinds()), root)
    return Form(form.feature, lambda value: form.convert(opened(value)))


def _opener(value: Any, root: Root) -> Callable[[Any], Any]:
    """Turns the name of a picture file into its pixels; other values stay as they are."""
    suffix = Path(value).suffix.lower() if isinstance(value, str) else ""
    if suffix in _VIDEOS:
        raise ValueError(
            f"{value!r} names a video; `pan import videos` imports a folder of them with a CSV of actions"
        )
    if suffix not in SUFFIXES:
        return lambda value: value
    if root is None:
        raise ValueError(
            f"{value!r} names a picture, and it is not known in which folder; import the file that names it, or load "
            "the column as pictures (data.cast_column(COLUMN, datasets.Image()))"
        )
    return lambda value: as_image({"path": value}, root)


def action_form(value: Any, largest: Callable[[], int]) -> Form:
    """What an action is, by its first value: one whole number is a choice, other numbers are a vector.

    Args:
        value: the first.
        largest: gives the largest whole number among all, which says how many choices there are.
    """
    first = _plain(value)
    return _form(first, (kind.action_from_value(first, largest) for kind in kinds()))


def _form(first: str | np.ndarray, offered: Iterable[Form | None], root: Root = None) -> Form:
    """The first form that a kind offers, for values as they stand in the table: the last kind takes any numbers."""
    form = next(form for form in offered if form is not None)
    plain = as_text if isinstance(first, str) else partial(_array, root=root)
    return Form(form.feature, lambda value: form.convert(plain(value)))


def _plain(value: Any, root: Root = None) -> str | np.ndarray:
    return as_text(value) if isinstance(value, str | bytes) else _array(value, root)


def _array(value: Any, root: Root = None) -> np.ndarray:
    """A value as an array; pictures as their pixels. Args: root, see `as_image`."""
    if isinstance(value, Image.Image):
        return pixels(value)
    if isinstance(value, Mapping) and {"bytes", "path"} >= set(value):
        return as_image(value, root)
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
        taking: how their values are taken.

    Raises:
        ValueError: see `assign`; the table has no rows; or a column's first value is no sense.
    """

    def __init__(self, table: Table, mapping: Mapping[str, str], taking: Taking):
        self._table, self._taking, self.fps = table, taking, table.fps
        view = taking.view
        self.about = {**table.about, "map": dict(mapping), "image_size": view.image_size, "crop": view.crop}
        rare = {"optional": list(taking.optional), "resample": taking.resample}
        rare |= {"depth_scale": view.depth_scale, "depth_unit": view.depth_unit}
        self.about |= {name: value for name, value in rare.items() if value}
        if not len(table):
            raise ValueError(
                f"{table.about['path']} holds no rows, so no episode to import; check the file, or the split"
            )
        self.environment = {"id": table.about["path"]}
        self._roles = assign(table.columns, mapping, table.about["path"])
        self.has_rewards = "reward" in self._roles
        self._actions = [name for name in self._roles if name == ACTION or _is_part(name)]
        self._senses = [name for name in self._roles if name not in ROLES and name not in self._actions]
        if unknown := sorted(set(taking.optional) - set(self._senses)):
            raise ValueError(f"optional names {unknown}, which are no senses of {table.about['path']}: {self._senses}")
        first = self._first_values()
        self._forms = {name: self._form(name, first[name]) for name in [*self._senses, *self._actions]}
        if "task" in self._roles:
            self._forms["task"] = Form({"kind": TextFeature.kind, "every_step": False}, as_text)
        senses = {f"observation.{name}": f.feature for name, f in self._forms.items() if name not in self._actions}
        for name in taking.optional:
            senses[f"observation.{name}"] = senses[f"observation.{name}"] | {"optional": True}
        self.features = senses | {name: self._forms[name].feature for name in self._actions}

    def __len__(self) -> int:
        return len(self._table)

    def _first_values(self) -> dict[str, Any]:
        """The first value of each column; an optional sense may be missing in some rows."""
        values = {}
        for name, rows in self._read(0).items():
            is_optional = name in self._taking.optional
            values[name] = next((one for one in rows if one is not None or not is_optional), None)
        return values

    def _form(self, name: str, value: Any) -> Form:
        columns = self._roles[name]
        try:
            if value is None:
                raise ValueError(
                    "expected a value in the first row, got none; a sense that comes seldom is optional (--optional)"
                )
            if name in self._actions:
                return action_form(value, lambda: self._table.largest(columns[0]))
            return form_of(value, self._taking.view, self._table.root)
        except (ValueError, OSError) as error:
            raise ValueError(f"{self._table.where(0)}, column {_named(columns)}: {error}") from error

    def episode(self, number: int) -> Episode:
        """The `number`-th episode; ValueError names file, episode, column and what was expected."""
        where = self._table.where(number)
        columns = self._read(number)
        rows = {name: list(values) for name, values in columns.items() if name not in self._senses}
        steps = steps_of(where, rows.pop("frame", None), rows.pop("time", None), self.fps, self._taking.resample)
        num_padding = int(np.sum(rows.pop("pad", [])))
        task = self._task(where, rows.pop("task", []))
        rows = {name: values[: len(values) - num_padding] for name, values in rows.items()}
        observations = {name: self._converted(where, name, columns[name]) for name in self._senses}
        parts = {name: rows[name] for name in self._actions}
        num_frames = max(len(values) for values in observations.values())
        while num_frames and all(len(values) == num_frames and values[-1] is None for values in parts.values()):
            parts = {name: values[:-1] for name, values in parts.items()}  # an empty last action is padding too
        num_actions = min(len(values) for values in parts.values())
        outcomes: dict = {
            f"{name}s": rows[name][:num_actions] for name in ("reward", "done", "truncated") if name in rows
        }
        if steps is not None:
            observations, parts, outcomes = _resampled(where, steps, observations, parts, outcomes)
        if task is not None:
            observations["task"] = [task] * max(len(values) for values in observations.values())
        converted = {name: self._converted(where, name, values) for name, values in parts.items()}
        if len({len(values) for values in converted.values()}) > 1:
            raise ValueError(f"{where}: the parts {self._actions} of the action differ in length")
        actions = converted.get(ACTION) or _steps(converted)
        return make_episode(where, self.environment["id"], number, observations, actions, **outcomes, task=task or "")

    def _read(self, number: int) -> dict[str, Iterable]:
        """By role or sense, the rows of an episode; several columns of one name side by side."""
        wanted = {name: columns for name, columns in self._roles.items() if name != "episode"}
        values = self._table.read(number, [column for columns in wanted.values() for column in columns])
        return {
            name: values[columns[0]] if len(columns) == 1 else _side_by_side(values, columns)
            for name, columns in wanted.items()
        }

    def _converted(self, where: str, name: str, values: Iterable) -> list:
        converted: list = []
        for value in values:
            try:
                if value is None and name not in self._taking.optional:
                    raise ValueError("expected a value, got none; a sense that comes seldom is optional (--optional)")
                converted.append(None if value is None else self._forms[name].convert(value))
            except (ValueError, OSError) as error:
                row = f"{where}, column {_named(self._roles[name])}, row {len(converted)}"
                raise ValueError(f"{row}: {error}") from error
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


def _resampled(where: str, steps: Steps, observations: dict, parts: dict, outcomes: dict) -> tuple[dict, dict, dict]:
    """What is seen and done at each step is a row's; what followed is that of all rows that fall into it."""
    counted = {
        name: steps.summed(as_rewards(where, values)) if name == "rewards" else steps.any(values)
        for name, values in outcomes.items()
    }
    seen = {name: steps.shown(values) for name, values in observations.items()}
    return seen, {name: steps.shown(values) for name, values in parts.items()}, counted


def _steps(parts: Mapping[str, list]) -> list[dict]:
    """Columns `action.<part>` as one dict a step."""
    names = [name.removeprefix(f"{ACTION}.") for name in parts]
    return [dict(zip(names, step, strict=True)) for step in zip(*parts.values(), strict=True)]


def _named(columns: list[str]) -> str:
    return repr(columns[0]) if len(columns) == 1 else repr(columns)


def _side_by_side(values: dict[str, Iterable], columns: list[str]) -> Iterator:
    rows = {column: list(values[column]) for column in columns}
    if len({len(column) for column in rows.values()}) > 1:
        raise ValueError(f"expected columns of one length, got { ({name: len(one) for name, one in rows.items()}) }")
    for row in zip(*rows.values(), strict=True):
        yield None if any(value is None for value in row) else np.concatenate([np.ravel(value) for value in row])
