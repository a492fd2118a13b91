"""How honest users get an argument wrong, or say it in another type: changes of one value.

Each function takes an argument's name and its right value, and returns what it may become, as a list of [`Change`].
Values are made when asked for. Names are those of which a refusal should hold one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fuzzing.outcomes import FREE, SAME, WRONG, Change

Made = tuple[str, str, Callable[[], Any]]  # in words, what may come of it, the value
NAN, INF = math.nan, math.inf
LEFT_OUT: Any = object()  # the right value of an argument that is not given


def listed(name: str, made: Sequence[Made], *names: str) -> list[Callable[[], Change]]:
    """Changes of an argument that are made when they are called."""

    def one(what: str, expects: str, make: Callable[[], Any]) -> Callable[[], Change]:
        def change() -> Change:
            value = make()
            return Change(f"{name} {what or f'= {said(value)}'}", expects, value, (name, *names))

        return change

    return [one(*each) for each in made]


@dataclass(frozen=True)
class Late:
    """A value that is made when it is asked for."""

    make: Callable[[], Any]


def given(same: Sequence = (), free: Sequence = (), wrong: Sequence = ()) -> list[Made]:
    """Plain values, which say themselves, by what may come of them."""
    expected = [*((SAME, value) for value in same), *((FREE, value) for value in free)]
    return _given(*expected, *((WRONG, value) for value in wrong))


def _given(*pairs: tuple[str, Any]) -> list[Made]:
    return [("", expects, _maker(value)) for expects, value in pairs]


def _maker(value: Any) -> Callable[[], Any]:
    return value.make if isinstance(value, Late) else lambda: value


def said(value: Any) -> str:
    """A value in a few letters."""
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim:
        return f"{type(value).__name__}({value.dtype}, {tuple(value.shape)})"
    return f"{value!r:.60}"


# ---- numbers and names


def count(name: str, value: int, least: int = 1, optional: bool = False, most: int | None = None):
    """A whole number of at least `least`."""
    made = _given((SAME, np.int64(value)), (SAME, np.int32(value)), (SAME, np.uint32(value)), (SAME, float(value)))
    made += _given((SAME, np.array(value)), (SAME, torch.tensor(value)))
    made += _given((WRONG, Fraction(value)), (WRONG, Decimal(value)))
    made += _given(
        (WRONG, least - 1), (WRONG, -7), (WRONG, "3"), (WRONG, "many"), (WRONG, value + 0.5), (WRONG, [value])
    )
    made += _given((WRONG, NAN), (WRONG, INF), (WRONG, -INF), (WRONG, np.array([1, 2])), (WRONG, {}), (WRONG, 3j))
    made += _given((FREE, True), (WRONG, False) if least > 0 else (FREE, False), (FREE if optional else WRONG, None))
    return listed(name, made + (_given((WRONG, most + 1)) if most is not None else []))


def number(name: str, value: float, low: float = -INF, high: float = INF, optional: bool = False, open_low=False):
    """A real number within `low` and `high`."""
    made = _given((SAME, np.float64(value)), (SAME, np.float32(value)), (SAME, torch.tensor(value)))
    made += _given((WRONG, Fraction(value)), (WRONG, Decimal(str(value))), (FREE, True), (SAME, np.array(value)))
    made += _given(
        (WRONG, NAN), (WRONG, np.float32(NAN)), (WRONG, "0.5"), (WRONG, "hot"), (WRONG, [value]), (WRONG, 1j)
    )
    made += _given(
        (WRONG, {"value": value}), (WRONG, torch.tensor([value, value])), (FREE if optional else WRONG, None)
    )
    if low > -INF:
        made += _given((WRONG, low - 0.5), (WRONG, -INF), *([(WRONG, low)] if open_low else []))
    if high < INF:
        made += _given((WRONG, high + 0.5), (WRONG, INF))
    return listed(name, made)


def seed(name: str, value: int = 3):
    """A seed, or None."""
    made = _given((SAME, np.int64(value)), (SAME, np.uint32(value)), (SAME, torch.tensor(value)), (SAME, float(value)))
    made += _given((FREE, -1), (FREE, 2**31), (FREE, 2**70), (FREE, True), (FREE, None), (FREE, 0))
    made += _given((WRONG, "3"), (WRONG, 1.5), (WRONG, [1, 2]), (WRONG, NAN), (WRONG, INF), (WRONG, {}))
    made += [
        ("= torch.Generator", WRONG, torch.Generator),
        ("= default_rng", WRONG, lambda: np.random.default_rng(0)),
        ("= RandomState", WRONG, lambda: np.random.RandomState(0)),
    ]
    return listed(name, made)


def choice(name: str, value: str, others: Sequence[str] = (), optional: bool = False):
    """One of some names."""
    made = _given(*[(FREE, other) for other in others], (FREE if optional else WRONG, None), (WRONG, value + "s"))
    made += _given((WRONG, value[:-1] or "x"), (WRONG, ""), (WRONG, f" {value}"), (WRONG, value.upper()), (WRONG, 0))
    made += _given((WRONG, [value, value]), (WRONG, value.encode()), (WRONG, {value: value}), (WRONG, "\udcff"))
    return listed(name, made)


def flag(name: str, value: bool):
    made = _given((SAME, np.bool_(value)), (FREE, int(value)), (FREE, not value), (FREE, None))
    return listed(name, made + _given((WRONG, "no"), (WRONG, [0]), (WRONG, NAN), (WRONG, np.array([True, False]))))


def texts(name: str, value: list[str], optional: bool = False):
    """A list of words."""
    made: list[Made] = [("as tuple", SAME, lambda: tuple(value)), ("as array", SAME, lambda: np.array(value))]
    made += [("as iterator", SAME, lambda: iter(value)), ("as object array", SAME, lambda: np.array(value, object))]
    made += _given((WRONG, value[0]), (WRONG, [3]), (WRONG, [None]), (WRONG, [b"a"]), (WRONG, 3), (WRONG, [["a"]]))
    made += _given((WRONG, [""]), (WRONG, [" "]), (FREE, ["\udcff"]), (FREE, ["\x00"]), (WRONG, {1: 2}), (FREE, []))
    return listed(name, made + _given((FREE if optional else WRONG, None)))


# ---- arrays


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def _strided(array: np.ndarray) -> np.ndarray:
    """The same numbers in twice the memory."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def array(value: np.ndarray, kind: str, num_axes: int) -> list[Made]:
    """What a user has in place of an array of frames ("image"), numbers ("vector") or choices ("discrete"), with time
    first and `num_axes` axes behind it."""
    made: list[Made] = [
        ("as list", SAME, value.tolist),
        ("as tuple of arrays", SAME, lambda: tuple(value)),
        ("as list of arrays", SAME, lambda: list(value)),
        ("as tensor", SAME, lambda: torch.from_numpy(value.copy())),
        ("as list of tensors", SAME, lambda: [torch.from_numpy(np.array(row)) for row in value]),
        ("as arrays and lists", SAME, lambda: [row if index else row.tolist() for index, row in enumerate(value)]),
        ("read-only", SAME, lambda: _read_only(value)),
        ("with a batch axis", SAME, lambda: value[None]),
        ("of big-endian", SAME, lambda: value.astype(value.dtype.newbyteorder(">"))),
        ("of objects", FREE, lambda: value.astype(object)),
        ("as dict", WRONG, lambda: {"value": value}),
        ("as set", WRONG, lambda: {1, 2}),
        ("as iterator", FREE, lambda: iter(value)),
        ("as text", WRONG, lambda: "left"),
        ("as bytes", WRONG, value.tobytes),
        ("of texts", WRONG, lambda: value.astype(str)),
        ("of complex numbers", WRONG, lambda: value.astype(complex)),
        ("of an axis more", WRONG, lambda: value[None, None]),
        ("of two axes more", WRONG, lambda: value[None, None, None]),
        ("ragged", WRONG, lambda: [*value.tolist(), [value[0].tolist()]]),
        ("empty", WRONG, lambda: value[:0]),
        ("an empty list", WRONG, lambda: []),
        ("an empty batch", WRONG, lambda: value[None][:0]),
        ("of two rows", WRONG, lambda: np.stack([value, value])),
        ("a path", WRONG, lambda: Path("frame.png")),
        ("a function", WRONG, lambda: print),
        ("on no device", WRONG, lambda: torch.empty(value.shape, device="meta")),
        ("sparse", FREE, lambda: torch.from_numpy(value.copy()).to_sparse()),
    ]
    if kind != "discrete":
        made += [
            ("cut short", WRONG, lambda: value[..., :-1]),
            ("too wide", WRONG, lambda: np.concatenate([value, value], -1)),
            ("strided", SAME, lambda: _strided(value)),
            ("in Fortran's order", SAME, lambda: np.asfortranarray(value)),
            ("a number", WRONG, lambda: 3),
        ]
    if kind == "discrete":  # an action may have this name
        made = [(what, FREE if what == "as text" else expects, make) for what, expects, make in made]
    return made + _OF_KIND[kind](value)


def _of_image(value: np.ndarray) -> list[Made]:
    pil = [Image.fromarray(frame) for frame in value]
    return [
        ("as PIL images", SAME, lambda: pil),
        ("as PIL and arrays", SAME, lambda: [pil[0], *value[1:]]),
        ("channels first", FREE, lambda: np.moveaxis(value, -1, -3)),
        ("as tensor, channels first", SAME, lambda: torch.from_numpy(np.moveaxis(value, -1, -3).copy())),
        ("as PIL images in grey", FREE, lambda: [each.convert("L") for each in pil]),
        ("as PIL images with alpha", FREE, lambda: [each.convert("RGBA") for each in pil]),
        ("as PIL images of another size", WRONG, lambda: [each.resize((9, 9)) for each in pil]),
        ("as PIL images of two sizes", WRONG, lambda: [pil[0], pil[0].resize((9, 9))]),
        ("as float in [0, 1]", WRONG, lambda: value / 255),
        ("as float32", WRONG, lambda: value.astype(np.float32)),
        ("as float tensor", WRONG, lambda: torch.from_numpy(value.copy()).float()),
        ("as bfloat16 tensor", WRONG, lambda: torch.from_numpy(value.copy()).bfloat16()),
        ("as NaN", WRONG, lambda: np.full(value.shape, NAN)),
        ("as int64", SAME, lambda: value.astype(np.int64)),
        ("as int8", WRONG, lambda: value.astype(np.int8)),
        ("as bool", WRONG, lambda: value > 127),
        ("with alpha", WRONG, lambda: np.concatenate([value, value[..., :1]], -1)),
        ("in grey", WRONG, lambda: value[..., 0]),
        ("of half the size", WRONG, lambda: value[:, ::2, ::2]),
        ("on its side", WRONG, lambda: value[:, :8]),
    ]


def _of_vector(value: np.ndarray) -> list[Made]:
    def with_one(number: float) -> np.ndarray:
        changed = value.copy()
        changed.flat[0] = number
        return changed

    return [
        ("as float64", SAME, lambda: value.astype(np.float64)),
        ("as float16", FREE, lambda: value.astype(np.float16)),
        ("as tensor with grad", SAME, lambda: torch.from_numpy(value.copy()).requires_grad_()),
        ("as float64 tensor", SAME, lambda: torch.from_numpy(value.copy()).double()),
        ("as bfloat16 tensor", FREE, lambda: torch.from_numpy(value.copy()).bfloat16()),
        ("as whole numbers", FREE, lambda: np.rint(value).astype(int)),
        ("as bool", WRONG, lambda: value > 0),
        ("with NaN", WRONG, lambda: with_one(NAN)),
        ("with inf", WRONG, lambda: with_one(INF)),
        ("with None", WRONG, lambda: [[None] * value.shape[-1]] * len(value)),
        ("out of range", WRONG, lambda: with_one(1e6)),
        ("beyond float32", WRONG, lambda: with_one(1).astype(float) * 1e300),
    ]


def _of_discrete(value: np.ndarray) -> list[Made]:
    return [
        ("as int32", SAME, lambda: value.astype(np.int32)),
        ("as uint8", SAME, lambda: value.astype(np.uint8)),
        ("as float", SAME, lambda: value.astype(float)),
        ("as half numbers", WRONG, lambda: value + 0.5),
        ("as bool", WRONG, lambda: value > 0),
        ("with NaN", WRONG, lambda: np.full(value.shape, NAN)),
        ("below 0", WRONG, lambda: value - 100),
        ("too large", WRONG, lambda: value + 100),
        ("as uint64, too large", WRONG, lambda: value.astype(np.uint64) + np.uint64(2**63)),
        ("as names", FREE, lambda: ["stay"] * len(value)),
        ("as names that are none", WRONG, lambda: ["fly"] * len(value)),
        ("with None", WRONG, lambda: [None] * len(value)),
        ("as one-hot", WRONG, lambda: np.eye(4)[value]),
    ]


_OF_KIND = {"image": _of_image, "vector": _of_vector, "discrete": _of_discrete}


def words(value: str | list[str]) -> list[Made]:
    """What a user has in place of a text, or of one text a step."""
    many = [value] if isinstance(value, str) else value
    made: list[Made] = [
        ("as array", SAME, lambda: np.array(value)),
        ("as object array", FREE, lambda: np.array(value, object)),
        ("as tuple", FREE, lambda: tuple(many)),
        ("as bytes", WRONG, lambda: [each.encode() for each in many]),
        ("as number", WRONG, lambda: 3),
        ("as numbers", WRONG, lambda: [3] * len(many)),
        ("of a number", WRONG, lambda: [*many[1:], 3]),
        ("too long", WRONG, lambda: [" ".join(["key"] * 50)] * len(many)),
        ("empty", FREE, lambda: [""] * len(many)),
        ("not of UTF-8", FREE, lambda: ["\udcff\ud800"] * len(many)),
        ("of a code's name", FREE, lambda: ["<camera.0:1>"] * len(many)),
        ("of a null byte", FREE, lambda: ["\x00"] * len(many)),
        ("as ids", WRONG, lambda: torch.ones(len(many), 8, dtype=torch.long)),
        ("no list item", WRONG, lambda: []),
        ("nested deeply", WRONG, lambda: [[[each] for each in many]]),
        ("as dict", WRONG, lambda: {"text": value}),
        ("as path", WRONG, lambda: Path("mission.txt")),
        ("as NaN", WRONG, lambda: [NAN] * len(many)),
    ]
    return made


_OF_ROWS = {"without batch", "of an axis more", "of other rows", "an empty batch", "no steps", "with NaN", "with inf"}


def tensor(value: torch.Tensor, kind: str, has_time: bool, any_rows: bool = False) -> list[Made]:
    """What a user gives a model in place of the processor's tensor `(B, T, ...)`. Args: any_rows, where leading axes
    are free."""
    made = _tensor(value, kind, has_time)
    if any_rows and kind != "vector":  # fewer words or actions, and numbers that nothing checks once more
        free = ("cut short", "as int64 out of range", *(["as number"] if kind == "discrete" else []))
        made = [(what, FREE if what in free else expects, make) for what, expects, make in made]
    return [(what, FREE if any_rows and what in _OF_ROWS else expects, make) for what, expects, make in made]


def _tensor(value: torch.Tensor, kind: str, has_time: bool) -> list[Made]:
    made: list[Made] = [
        ("as array", SAME, value.numpy),
        ("as list", SAME, value.tolist),
        ("as tuple", FREE, lambda: tuple(value)),
        ("strided", SAME, lambda: torch.stack([value, value], -1)[..., 0]),
        ("as parameter's clone", SAME, lambda: value.clone()),
        ("without batch", WRONG, lambda: value[0]),
        ("of an axis more", WRONG, lambda: value[None]),
        ("cut short", WRONG, lambda: value[..., :-1] if value.dim() > 2 or not has_time else value[..., :0]),
        ("an empty batch", WRONG, lambda: value[:0]),
        ("of other rows", WRONG, lambda: torch.cat([value, value, value])),
        ("on no device", WRONG, lambda: value.to("meta")),
        ("of complex numbers", WRONG, lambda: value.to(torch.complex64)),
        ("as text", WRONG, lambda: "left"),
        ("as None", WRONG, lambda: None),
        ("as number", WRONG, lambda: 3),
        ("as dict", WRONG, lambda: {"value": value}),
        ("of texts", WRONG, lambda: np.full(tuple(value.shape), "left")),
        ("as float64", SAME if value.is_floating_point() else FREE, value.double),
        ("sparse", FREE, value.to_sparse),
    ]
    if has_time:
        made += [("no steps", WRONG, lambda: value[:, :0])]
    if value.is_floating_point():
        made += [
            ("with grad", SAME, lambda: value.clone().requires_grad_()),
            ("as bfloat16", FREE, value.bfloat16),
            ("as float16", FREE, value.half),
            ("as whole numbers", FREE, value.long),
            ("with NaN", WRONG, lambda: torch.full_like(value, NAN)),
            ("with a NaN", WRONG, lambda: torch.cat([value[..., :-1], torch.full_like(value[..., -1:], NAN)], -1)),
            ("with inf", WRONG, lambda: torch.full_like(value, INF)),
            ("out of range", FREE, lambda: value + 1e6),
        ]
    else:
        made += [("as bool", WRONG, lambda: value > 0), ("as int32", SAME, value.int)]
        made += [("as int16", SAME, lambda: value.to(torch.int16))]
    if kind == "discrete":  # its names may be these
        made = [(what, FREE if what in ("of texts", "as text") else expects, make) for what, expects, make in made]
        made += [("below 0", WRONG, lambda: value - 100), ("too large", WRONG, lambda: value + 100)]
        made += [("as half numbers", WRONG, lambda: value + 0.5)]
    if kind == "text":
        made += [
            ("of no words", FREE, lambda: value * 0 - 1),
            ("below 0", FREE, lambda: value - 1000),
            ("too large", WRONG, lambda: value + 10**7),
        ]
    if kind == "image":
        made += [
            ("channels last", WRONG, lambda: value.movedim(-3, -1)),
            ("as float in 0 to 255", WRONG, lambda: value.float() + 2),
            ("as NaN", WRONG, lambda: torch.full(value.shape, NAN)),
            ("in grey", WRONG, lambda: value[:, :, :1]),
            ("of half the size", WRONG, lambda: value[..., ::2, ::2]),
            ("as int64 out of range", WRONG, lambda: value.long() + 1000),
        ]
    return made


def entries(
    name: str,
    value: Mapping,
    made: Mapping[str, list[Made]],
    may_lack: bool = False,
    may_have_more: bool = False,
) -> list[Callable[[], Change]]:
    """Changes of a mapping: of its entries (by name), and of which there are. Args: may_lack, not all are needed;
    may_have_more, others are passed over."""

    def inside(entry: str, what: str, expects: str, make: Callable[[], Any]) -> Callable[[], Change]:
        return lambda: _entry(name, value, entry, what, expects, make())

    changes = [inside(entry, *each) for entry, several in made.items() for each in several]
    first = next(iter(value))

    def without(key: str) -> dict:
        return {entry: each for entry, each in value.items() if entry != key}

    def misspelt(entry: str) -> Made:
        return f"with {entry!r} misspelt", WRONG, lambda: {**without(entry), f"{entry}s": value[entry]}

    whole: list[Made] = [
        *map(misspelt, value),
        ("with an entry more", FREE if may_have_more else WRONG, lambda: {**value, "rgb": value[first]}),
        ("with one entry less", FREE if may_lack else WRONG, lambda: without(first)),
        ("empty", WRONG, dict),
        ("as list", WRONG, lambda: list(value.values())),
        ("as pairs", WRONG, lambda: list(value.items())),
        ("its first entry alone", WRONG, lambda: value[first]),
        ("as text", WRONG, lambda: "observation"),
        ("as number", WRONG, lambda: 3),
        ("with a number for a key", FREE if may_have_more else WRONG, lambda: {**value, 3: value[first]}),
        ("in another order", SAME, lambda: dict(reversed(value.items()))),
        ("nested", WRONG, lambda: {"inner": value}),
    ]
    return changes + listed(name, whole, *value)


def _entry(name: str, value: Mapping, entry: str, what: str, expects: str, given: Any) -> Change:
    return Change(f"{name}[{entry}] {what}", expects, {**value, entry: given}, (entry, type(given).__name__))


# ---- paths


def folder(name: str, value: Path, missing: Path) -> list[Callable[[], Change]]:
    """A folder that exists."""
    file = next(path for path in value.rglob("*") if path.is_file())
    made: list[Made] = [
        ("as text", SAME, lambda: str(value)),
        ("with a slash behind", SAME, lambda: f"{value}/"),
        ("with dots in it", SAME, lambda: value / ".." / value.name),
        ("that is not there", WRONG, lambda: missing),
        ("that is a file", WRONG, lambda: file),
        ("of a null byte", WRONG, lambda: "\0"),
        ("of endless length", WRONG, lambda: "x" * 5000),
        ("that is none", WRONG, lambda: 3),
        ("of two", WRONG, lambda: [value, value]),
        ("as bytes", FREE, lambda: str(value).encode()),
        ("empty", WRONG, lambda: ""),
    ]
    return listed(name, made, str(value), "missing", "xxx", "\0")
