"""Columns of a table as senses, action, rewards and ends: by LeRobot's names, or as `map` says.

A column is one of the roles below, a sense, or left out. What kind of sense it is shows in its first value: a picture
(see `pan_hf.pictures`), numbers or a text. Several columns of numbers with one name are one vector, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pan_hf.data.episodes import Episode
from pan_hf.data.importing.writing import as_text, make_episode
from pan_hf.images import as_rgb, fit, picture_layout

ROLES = ("action", "reward", "done", "truncated", "episode", "frame", "task", "pad")
# The names that LeRobot, and our own recordings, give to the roles.
USUAL = {"action": "action", "next.reward": "reward", "next.done": "done", "next.truncated": "truncated"}
USUAL |= {"episode_index": "episode", "frame_index": "frame", "task": "task", "action_is_pad": "pad"}
_MOST_NUMBERS = 4096  # of a vector; more are a picture that was not recognised
_PREFIXES = ("observation.images.", "observation.")


class Table(Protocol):
    """Episodes of named columns.

    Args:
        about, fps: see `writing.Source`.
        columns: their names.
    """

    about: dict
    fps: float
    columns: Sequence[str]

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
    found: dict[str, list[str]] = {}
    for column in [*mapping, *(name for name in columns if name not in mapping)]:
        target = mapping.get(column, _usual(column))
        if target:
            found.setdefault(target, []).append(column)
    for name, sources in found.items():
        if name in ROLES and name != "action" and len(sources) > 1:
            raise ValueError(f"{where}: {sources} are all mapped to {name!r}; leave all but one out with map COLUMN=")
        if name not in ROLES and not name.isidentifier():
            raise ValueError(f"{where}: {name!r} cannot name a sense (letters, digits and _ can); map {sources} anew")
    if "action" not in found:
        raise ValueError(f"{where}: no column is the action; say which of {list(columns)} with map COLUMN=action")
    if not set(found) - set(ROLES):
        raise ValueError(f"{where}: no column is a sense; say which of {list(columns)} with map COLUMN=SENSE")
    return found


def _usual(column: str) -> str:
    prefix = next((one for one in _PREFIXES if column.startswith(one)), None)
    return USUAL.get(column, "") if prefix is None else column.removeprefix(prefix).replace(".", "_")


# What one value is


@dataclass(frozen=True)
class Form:
    """How values of a column are described and converted."""

    feature: dict
    convert: Callable[[Any], Any]


def form_of(value: Any, image_size: int | None, crop: bool) -> Form:
    """What a sense is, by its first value.

    Raises:
        ValueError: it is neither a picture nor numbers nor a text.
    """
    if isinstance(value, str | bytes):
        return Form({"kind": "text", "every_step": True}, as_text)
    value = _array(value)
    if value.dtype.kind not in "iufb":
        raise ValueError(f"expected a picture, numbers or a text, got {value.dtype} {value!r:.80}")
    is_unit = bool(value.size and value.dtype.kind == "f" and value.min() >= 0 and value.max() <= 1)
    layout = picture_layout(value.shape, value.dtype, is_unit)
    return _vector_form(value.shape) if layout is None else _image_form(value, layout, image_size, crop)


def _array(value: Any) -> np.ndarray:
    """A value as an array; pictures as RGB."""
    if isinstance(value, Image.Image):
        return np.asarray(value.convert("RGB"))
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"expected numbers of one shape ({error})") from error


def _image_form(first: np.ndarray, layout: str, image_size: int | None, crop: bool) -> Form:
    def convert(value: Any) -> np.ndarray:
        image = _array(value)
        if image.shape != first.shape or image.dtype != first.dtype:
            raise ValueError(
                f"expected a picture like the first, {first.dtype} of shape {first.shape}, got {image.dtype} of "
                f"{image.shape}; bring them to one shape"
            )
        return fit(as_rgb(image, layout), image_size, crop)

    shape = list(convert(first).shape)
    return Form({"kind": "image", "shape": shape, "unit": "uint8 RGB"}, convert)


def _vector_form(shape: tuple[int, ...]) -> Form:
    dim = int(np.prod(shape))
    if not 1 <= dim <= _MOST_NUMBERS:
        raise ValueError(
            f"expected 1 to {_MOST_NUMBERS} numbers as a vector, got shape {shape}; pictures are uint8, or floats in "
            "[0, 1] with 1 or 3 channels"
        )

    def convert(value: Any) -> np.ndarray:
        numbers = _array(value).astype(np.float32)
        if numbers.shape != shape:
            raise ValueError(f"expected numbers of shape {shape}, as the first are, got {numbers.shape}")
        if not np.isfinite(numbers).all():
            raise ValueError(f"expected finite numbers, got {numbers.tolist()}")
        return numbers.reshape(-1)

    return Form({"kind": "vector", "dim": dim, "low": [None] * dim, "high": [None] * dim}, convert)


def action_form(value: Any, largest: Callable[[], int]) -> Form:
    """What an action is, by its first value: one whole number is a choice, other numbers are a vector.

    Args:
        value: the first.
        largest: gives the largest whole number among all, which says how many choices there are.
    """
    if isinstance(value, str | bytes):
        return Form({"kind": "text"}, as_text)
    value = _array(value)
    if value.dtype.kind not in "iub" or value.size != 1:
        return _vector_form(value.shape)
    num = largest() + 1

    def convert(action: Any) -> int:
        number = _array(action)
        if number.size != 1 or number.dtype.kind not in "iub" or not 0 <= number.item() < num:
            raise ValueError(f"expected a whole number in 0..{num - 1}, got {action!r}")
        return int(number.item())

    return Form({"kind": "discrete", "n": num}, convert)


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
            self._forms["task"] = Form({"kind": "text", "every_step": False}, as_text)
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
        return make_episode(
            where,
            self.environment["id"],
            number,
            observations,
            self._converted(where, "action", actions),
            **{f"{name}s": rows[name][: len(actions)] for name in ("reward", "done", "truncated") if name in rows},
            task=task or "",
        )

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
