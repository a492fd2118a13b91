"""What came of a call, decided from its result, its exception, and the state before and after."""

import dis
import hashlib
import json
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from numbers import Number
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from cyclopts import CycloptsError
from huggingface_hub.errors import StrictDataclassError

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = tuple(f"{ROOT / name}/" for name in ("modeling", "tokenization", "training", "pan_hf"))

# Good outcomes, and the others in the order of their harm.
RIGHT = "right"  # a result, and it is what it should be
REFUSED = "refused"  # a sentence that names what was given
WRONG_RESULT = "wrong"  # another result than with clean types, or one that is not finite or has another shape
CHANGED = "changed"  # a refused call left another state behind
UNUSED = "unused"  # what cannot mean anything was taken, and changed nothing
ACCEPTED = "accepted"  # what cannot mean anything was taken, and changed the result
RAW = "raw"  # an error that none of our sentences is in
VAGUE = "vague"  # a sentence of ours that names neither the argument nor what was given
OUTCOMES = (RIGHT, REFUSED, WRONG_RESULT, CHANGED, UNUSED, ACCEPTED, RAW, VAGUE)
GOOD = (RIGHT, REFUSED)

LEAST_WORDS = 5  # of a sentence
TOLERANCE = 1e-5  # between a result and the same with clean types: numpy and torch add up in other orders


@dataclass(frozen=True)
class Outcome:
    """What came of one call.

    Args:
        kind (`str`): one of `OUTCOMES`.
        target (`str`): the function.
        call (`str`): the changes to its arguments, in words.
        detail (`str`): the error or the difference.
        place (`str`): `file:line function` of the innermost frame of ours, "" without an error.
    """

    kind: str
    target: str
    call: str
    detail: str = ""
    place: str = ""

    @property
    def is_good(self) -> bool:
        return self.kind in GOOD

    def __str__(self) -> str:
        return f"{self.kind}: {self.target} with {self.call or 'nothing changed'}\n  {self.detail}  [{self.place}]"


# ---- errors


class TookLong(BaseException):
    """What was given was taken, and work began that nobody waits for here. No `except Exception` catches it."""


def is_ours(frame) -> bool:
    return frame.f_code.co_filename.startswith(OURS)


def _innermost(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def was_raised_by_us(error: BaseException) -> bool:
    """Whether a `raise` statement of ours made the error: its innermost frame is ours, and was raising. The `KeyError`
    of a dict has a frame of ours innermost too, and is no sentence. Nor is a failed `assert`."""
    last = _innermost(error.__traceback__)
    if last is None or not is_ours(last.tb_frame) or isinstance(error, AssertionError):
        return False
    code = last.tb_frame.f_code
    return next(each.opname for each in dis.get_instructions(code) if each.offset == last.tb_lasti) == "RAISE_VARARGS"


def is_sentence(error: BaseException) -> bool:
    """Whether we raised it, or a library did so from an error of ours; or who names what was given in words of their
    own: the libraries that check configurations and command lines, the system of a path, Python of a keyword."""
    if isinstance(error, CycloptsError):
        return True
    if len(str(error).split()) < LEAST_WORDS:
        return False
    if isinstance(error, StrictDataclassError) or was_raised_by_us(error):
        return True
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return True
    if isinstance(error, TypeError) and "got an unexpected keyword argument" in str(error):
        return True
    return error.__cause__ is not None and is_sentence(error.__cause__) and str(error.__cause__) in str(error)


def place_of(error: BaseException) -> str:
    """`file:line function` of the innermost frame of ours."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(OURS)]
    if not frames:
        return "none of ours"
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno} {frames[-1].name}"


def mentions(message: str, names: Collection[str], value: Any) -> bool:
    """Whether a message names an argument, or says what was given for it: its type, its shape or itself."""
    told = {type(value).__name__, *names}
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        told |= {str(tuple(value.shape)), str(value.dtype), str(value.dtype).removeprefix("torch.")}
    if isinstance(value, str | int | float | type(None)):
        told |= {repr(value), str(value)}
    elif isinstance(value, Mapping):
        told |= set(map(str, value))
    return any(each and each.casefold() in message.casefold() for each in told)


# ---- results and state, compared

_TIMES = {"seconds", "elapsed", "duration_seconds"}
_PASSED_OVER = {"model", "belief", "pasts", "cost", "growths", "conditions"} | _TIMES


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A result as arrays, numbers and texts by path; models, clocks and what follows from the rest are left out."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return {name: (value.float() if value.is_floating_point() else value).numpy()}
    if isinstance(value, np.ndarray | np.generic):
        return {name: np.asarray(value)}
    if isinstance(value, Mapping) or hasattr(value, "data") and isinstance(value.data, dict):
        pairs = dict(value).items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    elif is_dataclass(value) and not isinstance(value, type):
        pairs = [(each.name, getattr(value, each.name)) for each in fields(value) if each.name not in _PASSED_OVER]
    elif isinstance(value, str | bytes | Number | None | Path):
        return {name: value}
    else:
        return {}
    return {path: leaf for key, item in pairs for path, leaf in flat(item, f"{name}.{key}").items()}


def difference(one: Any, other: Any) -> str:
    """Where two results differ first; "" where they are equal."""
    left, right = flat(one), flat(other)
    if left.keys() != right.keys():
        return f"has {sorted(left)[:6]}, expected {sorted(right)[:6]}"
    for path, value in left.items():
        expected = right[path]
        if isinstance(value, np.ndarray) and isinstance(expected, np.ndarray):
            if value.shape != expected.shape:
                return f"{path} has shape {value.shape}, expected {expected.shape}"
            if value.dtype.kind in "fc" and expected.dtype.kind in "fc":
                is_equal = np.allclose(value, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
            else:
                is_equal = np.array_equal(value, expected)
            if not is_equal:
                return f"{path} has other values"
        elif not _is_equal(value, expected):
            return f"{path} is {value!r:.60}, expected {expected!r:.60}"
    return ""


def _is_equal(one: Any, other: Any) -> bool:
    """Of numbers and texts, one of which may be an array of one number; not a number equals itself."""
    if isinstance(one, np.ndarray | Number) and isinstance(other, np.ndarray | Number) and not isinstance(one, bool):
        one, other = (np.asarray(value, complex) for value in (one, other))
        return one.shape == other.shape and np.allclose(one, other, rtol=TOLERANCE, equal_nan=True)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.shape(one) == np.shape(other) and np.array_equal(one, other)
    return one == other or (one != one and other != other)


def not_finite(result: Any) -> str:
    """Which part of a result is not finite; "" where all are. Latents that are absent are not a number."""
    for path, value in flat(result).items():
        is_number = isinstance(value, float) or isinstance(value, np.ndarray) and value.dtype.kind == "f"
        if is_number and "latents" not in path and not np.isfinite(value).all():
            return f"{path} is not finite"
    return ""


def digest(*states: Any) -> str:
    """Of models (every tensor and the configuration), folders (names and bytes) and whatever `flat` takes apart."""
    found = hashlib.blake2b(digest_size=12)
    for state in states:
        for name, part in _parts(state):
            found.update(name.encode(errors="surrogatepass"))
            found.update(part)
    return found.hexdigest()


def _parts(state: Any):
    if isinstance(state, torch.nn.Module):
        tensors = [*state.named_parameters(), *state.named_buffers()]
        yield "names", repr([name for name, _ in tensors]).encode()
        for dtype in {tensor.dtype: None for _, tensor in tensors}:
            whole = torch.cat([tensor.detach().reshape(-1) for _, tensor in tensors if tensor.dtype == dtype])
            yield str(dtype), memoryview(whole.view(torch.uint8).numpy())
        yield "training", str((state.training, id(state.processor))).encode()
        yield "config", json.dumps(state.config.to_dict(), sort_keys=True, default=str).encode()
    elif isinstance(state, Path):
        for path in sorted(state.rglob("*")):
            yield str(path.relative_to(state)), path.read_bytes() if path.is_file() else b"folder"
    elif callable(state):
        yield from _parts(state())
    else:
        for path, leaf in flat(state).items():
            is_plain = isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "OU"
            yield path, np.ascontiguousarray(leaf).tobytes() if is_plain else repr(leaf).encode(errors="surrogatepass")


# ---- the verdict

SAME, FREE, WRONG = "same", "free", "wrong"  # what may come of a change


@dataclass(frozen=True)
class Change:
    """One argument changed.

    Args:
        what (`str`): in words, `temperature=nan`.
        expects (`str`): `SAME`, `FREE` or `WRONG`.
        value: what is given now.
        names (`tuple[str]`): of which a refusal must hold one, or say what was given.
    """

    what: str
    expects: str
    value: Any
    names: tuple[str, ...]


def judge(
    target: str,
    call: Callable[[], Any],
    changes: list[Change],
    clean: Callable[[], Any],
    check: Callable[[Any], str],
    state: tuple,
    is_pure: bool,
) -> Outcome:
    """Calls, and says what came of it.

    Args:
        target (`str`), changes: for the report, and what they allow.
        call: with the changed arguments.
        clean: the result with the arguments as they were; asked for only where results are compared.
        check: what is wrong with a result of other arguments, "" if nothing is.
        state: what a refused call must leave as it is, see `digest`.
        is_pure (`bool`): an accepted call must leave it too.
    """
    said, before = ", ".join(change.what for change in changes), digest(*state)

    def outcome(kind: str, detail: str = "", error: BaseException | None = None) -> Outcome:
        return Outcome(kind, target, said, detail, "" if error is None else place_of(error))

    try:
        result = call()
    except TookLong as error:
        return outcome(ACCEPTED if changes else WRONG_RESULT, str(error))
    except Exception as error:
        told = f"{type(error).__name__}: {str(error)[:300]}"
        if digest(*state) != before:
            return outcome(CHANGED, told, error)
        if not is_sentence(error):
            return outcome(RAW, told, error)
        if not changes:
            return outcome(WRONG_RESULT, f"refused though nothing was changed: {told}", error)
        if not any(mentions(str(error), change.names, change.value) for change in changes):
            return outcome(VAGUE, told, error)
        return outcome(REFUSED, told, error)
    if is_pure and digest(*state) != before:
        return outcome(CHANGED, "accepted, and its arguments or the model are not what they were")
    if any(change.expects == WRONG for change in changes):
        is_unused = len(changes) == 1 and not difference(result, clean())
        return outcome(UNUSED if is_unused else ACCEPTED, not_finite(result))
    if all(change.expects == SAME for change in changes):
        unequal = difference(result, clean())
        return outcome(WRONG_RESULT, unequal) if unequal else outcome(RIGHT)
    problem = not_finite(result) or check(result)
    return outcome(WRONG_RESULT, problem) if problem else outcome(RIGHT)
