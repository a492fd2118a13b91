"""Readers: how the values of one sense or action are checked, converted into arrays, and shown again.

A reader knows of its sense or action the dict its config's `to_dict` gives: `kind`, shape and range. Readers are found
by the kind's name; a new kind is a reader of its own, anywhere, and `register_reader`. Readers refuse what does not
fit instead of bending it: a float image or an action out of range is nearly always a mistake upstream, and a model
would answer it with plausible nonsense.

B = batch, T = time, L = text tokens, D = coordinates, C, H, W = channels, height, width.
"""

import numpy as np
import torch
from PIL import Image
from transformers.image_transforms import to_pil_image

SENSE, ACTION = "sense", "action"  # the two roles of a reader

_OUTSIDE = 1e-3  # of the range: rounding in a simulator, not a wrong unit
_COLOUR_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DEEP_MODES = ("I", "F")  # Pillow's modes of more than 8 bits begin so; converting one to colours saturates at white


class Reader:
    """Checks and converts the values of one kind, and back.

    Args:
        name (`str`): of the sense, or "action", for messages.
        spec (`dict`): what the configuration's `to_dict()` gives.
        tokenizer: the words.
        role (`str`): `SENSE` or `ACTION`.
    """

    roles: tuple[str, ...] = (SENSE,)
    needs: tuple[str, ...] = ()  # entries of the spec, in which processor and model must also agree
    compares: tuple[str, ...] = ()  # entries in which they must agree, and that may be missing
    is_constant = False  # holds for a whole episode: arrays have no axis of time

    def __init__(self, name: str, spec: dict, tokenizer, role: str):
        self.name, self.spec, self.tokenizer, self.role = name, spec, tokenizer, role

    def read(self, value) -> np.ndarray:
        """A user's value as `(B, T, ...)`; a missing batch or time has size 1. Raises ValueError for whatever does not
        fit, with what was given, what was expected and what to do."""
        raise NotImplementedError

    def blank(self, leading: tuple[int, ...]) -> np.ndarray:
        """What stands for a sense that is absent, of leading shape (batch, time), or (batch,) where it is constant."""
        raise NotImplementedError

    def write(self, array: np.ndarray, output_type: str):
        """The inverse, any leading dimensions kept. Args: output_type, "np" or, if that means anything, "pil"."""
        return array


READERS: dict[str, type[Reader]] = {}


def register_reader(kind: str, reader: type[Reader]) -> None:
    """Makes the processor read senses or actions of a kind (`reader.roles` says which of them).

    A file of its own that calls this travels with the processors that read such a kind.
    """
    READERS[kind] = reader


class ImageReader(Reader):
    """Pictures `(H, W, C)`, with batch and time in front: uint8 colours, or whole numbers of up to 16 bits within a
    range, such as depth. Arrays, tensors (channels first too), PIL images, and lists that mix them."""

    needs = ("height", "width", "channels")
    compares = ("bits", "low", "high")

    def __init__(self, name: str, spec: dict, tokenizer, role: str):
        super().__init__(name, spec, tokenizer, role)
        size = (spec["height"], spec["width"])
        self.channels_last, self.channels_first = (*size, spec["channels"]), (spec["channels"], *size)
        self.is_deep = spec.get("bits", 8) > 8

    def read(self, value) -> np.ndarray:
        array = self._frames(value)
        if self.is_deep:
            array = self._within_range(array)
        elif array.dtype != np.uint8:
            raise ValueError(f"{self.name}: expected uint8 in 0..255, got {array.dtype}; {_to_uint8(array)}.")
        if array.shape[-3:] == self.channels_last != self.channels_first:
            array = np.moveaxis(array, -1, -3)
        if array.shape[-3:] != self.channels_first or array.ndim > 5:
            raise ValueError(
                f"{self.name}: expected frames of {self.channels_last} (height, width, channels), after (time,) or "
                f"(batch, time), got shape {array.shape}; resize the frames or fix the sense."
            )
        return with_batch_and_time(self.name, array, 3)

    def _frames(self, value) -> np.ndarray:
        """`value` as one array, its frames channels first as far as that is told by their shape. Each item of a list
        is turned by itself, since tensors mostly have their channels first and arrays mostly last."""
        if isinstance(value, (list, tuple)) and value:
            return _stacked(self.name, [self._frames(item) for item in value])
        array = self._pixels(value) if _is_pil(value) else as_array(value, self.name)
        orders = [self.channels_last, self.channels_first]
        if isinstance(value, torch.Tensor):
            orders.reverse()
        layout = next((order for order in orders if array.shape[-3:] == order), None)
        if layout is None and self.spec["channels"] == 1 and array.shape[-2:] == self.channels_last[:2]:
            return array[..., None, :, :]  # grey pictures come without their one channel
        return np.moveaxis(array, -1, -3) if layout == self.channels_last else array

    def _pixels(self, image) -> np.ndarray:
        """A PIL image as an array, `(H, W)` or `(H, W, C)`; nothing of its meaning is lost."""
        if self.is_deep:
            return np.asarray(image)
        if image.mode.startswith(_DEEP_MODES):
            raise ValueError(
                f"{self.name}: expected 8-bit colours, got a picture of mode {image.mode!r}, whose numbers are no "
                "colours; scale it to 0..255, or make it a sense of 16 bits with a range, ImageSense(channels=1, "
                "bits=16, low=..., high=...)."
            )
        mode = _COLOUR_MODES.get(self.spec["channels"], image.mode)
        if image.has_transparency_data and mode != "RGBA" and image.convert("RGBA").getextrema()[3][0] < 255:
            raise ValueError(
                f"{self.name}: the picture (mode {image.mode!r}) is transparent in places, which {mode} cannot say; "
                "paste it onto a background first, or build the sense with channels=4."
            )
        return np.asarray(image.convert(mode))

    def _within_range(self, array: np.ndarray) -> np.ndarray:
        low, high = self._range()
        unit = f" {self.spec['unit']}" if self.spec.get("unit") else ""
        if array.dtype.kind not in "iu":
            raise ValueError(
                f"{self.name}: expected whole numbers in {low}..{high}{unit}, got {array.dtype}; multiply by what one "
                "step is worth, and round."
            )
        if array.size and not self.spec.get("clip") and (array.min() < low or array.max() > high):
            raise ValueError(
                f"{self.name}: expected {low}..{high}{unit}, got {array.min()}..{array.max()}; check the unit, widen "
                "the sense's range, or set clip=True."
            )
        return np.clip(array, low, high).astype(np.int32)

    def _range(self) -> tuple[int, int]:
        low, high = self.spec.get("low"), self.spec.get("high")
        return 0 if low is None else low, 2 ** self.spec["bits"] - 1 if high is None else high

    def blank(self, leading: tuple[int, ...]) -> np.ndarray:
        if self.is_deep:
            return np.full((*leading, *self.channels_first), self._range()[0], np.int32)
        return np.zeros((*leading, *self.channels_first), np.uint8)

    def write(self, array: np.ndarray, output_type: str):
        if array.shape[-3:] != self.channels_first or array.dtype.kind not in "iu":
            raise ValueError(
                f"{self.name}: expected frames (..., *{self.channels_first}) of whole numbers, got {array.dtype} of "
                f"shape {array.shape}."
            )
        frames = np.ascontiguousarray(np.moveaxis(array, -3, -1))
        if output_type == "np":
            return frames
        return _nest(frames, 3, _to_pil)


class VectorReader(Reader):
    """Numbers within their bounds, `(D,)` and with batch and time in front."""

    roles = (SENSE, ACTION)
    needs = ("dim", "low", "high")

    def read(self, value) -> np.ndarray:
        name, dim = self.name, self.spec["dim"]
        array = as_numbers(name, value)
        array = array.reshape(1) if array.ndim == 0 and dim == 1 else array
        array = array.reshape(0, dim) if array.shape == (0,) else array  # `[]`: the actions of a single frame
        if array.ndim not in (1, 2, 3) or array.shape[-1] != dim:
            expected = f"({dim},), (time, {dim}) or (batch, time, {dim})"
            raise ValueError(f"{name}: expected {expected}, got shape {array.shape}.")
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            count = np.count_nonzero(~np.isfinite(array))
            raise ValueError(f"{name}: expected finite numbers, got {count} NaN or inf.")
        low, high = (np.broadcast_to(np.asarray(self.spec[key], np.float64), (dim,)) for key in ("low", "high"))
        if not self.spec.get("clip"):
            _check_range(name, array, low, high)
        return with_batch_and_time(name, np.clip(array, low, high).astype(np.float32), 1)

    def blank(self, leading: tuple[int, ...]) -> np.ndarray:
        return np.zeros((*leading, self.spec["dim"]), np.float32)

    def write(self, array: np.ndarray, output_type: str):
        if array.shape[-1:] != (self.spec["dim"],) or array.dtype.kind not in "iuf":
            expected = f"numbers (..., {self.spec['dim']})"
            raise ValueError(f"{self.name}: expected {expected}, got {array.dtype} of shape {array.shape}.")
        is_absent = np.isnan(array).all(-1) & (self.role == SENSE)
        if not np.isfinite(array[~is_absent]).all():
            raise ValueError(f"{self.name}: expected finite numbers, got NaN or inf.")
        return array


class DiscreteReader(Reader):
    """One of several actions, by its number, or by its name where the actions have names."""

    roles = (ACTION,)
    needs = ("num_actions",)

    def read(self, value) -> np.ndarray:
        name, count = self.name, self.spec["num_actions"]
        array = as_array(value, name)
        array = array.astype(np.int64) if array.size == 0 else array
        if array.dtype.kind in "UO" and all(isinstance(item, str) for item in array.flat):
            array = self._numbers(array)
        if array.dtype.kind not in "iu" or array.ndim > 2:
            raise ValueError(
                f"{name}: expected integers, one, (time,) or (batch, time), got {array.dtype} of shape {array.shape}."
            )
        wrong = array[(array < 0) | (array >= count)]
        if wrong.size:
            raise ValueError(f"{name}: expected integers in 0..{count - 1}, got {int(wrong.flat[0])}.")
        return with_batch_and_time(name, array.astype(np.int64), 0)

    def write(self, array: np.ndarray, output_type: str):
        count = self.spec["num_actions"]
        if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() < count):
            raise ValueError(
                f"{self.name}: expected integers in 0..{count - 1}, got {array.dtype} of shape {array.shape}."
            )
        return array

    def _numbers(self, words: np.ndarray) -> np.ndarray:
        names = self.spec.get("names")
        if not names:
            raise ValueError(
                f"{self.name}: expected integers in 0..{self.spec['num_actions'] - 1}, got {str(words.flat[0])!r}; "
                "these actions have no names."
            )
        number = {word: index for index, word in enumerate(names) if names.count(word) == 1}
        unknown = sorted({str(word) for word in words.flat} - set(number))
        if unknown:
            raise ValueError(
                f"{self.name}: there is no one action {', '.join(map(repr, unknown))}; there are {names}."
            )
        return np.array([number[str(word)] for word in words.flat], np.int64).reshape(words.shape)


class SymbolsReader(Reader):
    """Whole numbers that are names: one, or an array of the sense's shape, with batch and time in front."""

    needs = ("dims", "num_values", "start")

    def read(self, value) -> np.ndarray:
        name, dims = self.name, tuple(self.spec["dims"])
        array = as_array(value, name)
        if array.dtype.kind not in "iub":
            raise ValueError(
                f"{name}: expected whole numbers, which name what is there, got {array.dtype}; convert them to "
                "integers, or make the sense a vector if they measure something."
            )
        num_leading = array.ndim - len(dims)
        if not 0 <= num_leading <= 2 or array.shape[num_leading:] != dims:
            shapes = f"one value of shape {dims}" if dims else "one number"
            raise ValueError(f"{name}: expected {shapes}, after (time,) or (batch, time), got shape {array.shape}.")
        low, high = self._limits()
        wrong = array[(array < low) | (array > high)]
        if wrong.size:
            spans = ", ".join(sorted({f"{least}..{most}" for least, most in np.stack([low, high], -1).reshape(-1, 2)}))
            raise ValueError(
                f"{name}: expected values within {spans}, got {int(wrong[0])}; build the sense with more values "
                f"(`--sense {name}.num_values=...`), or map the value to one of these."
            )
        return with_batch_and_time(name, array.astype(self._dtype()), len(dims))

    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest value, broadcast to the shape of an observation."""
        low, count = (np.array(self.spec[key]) for key in ("start", "num_values"))
        low, count = (low, count) if self.spec["dims"] else (low[0], count[0])
        return low, low + count - 1

    def _dtype(self) -> type:
        low, high = self._limits()
        return np.uint8 if low.min() >= 0 and high.max() <= 255 else np.int64

    def blank(self, leading: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(self._limits()[0], (*leading, *self.spec["dims"])).astype(self._dtype())

    def write(self, array: np.ndarray, output_type: str):
        dims = tuple(self.spec["dims"])
        if array.dtype.kind not in "iu" or array.ndim < len(dims) or array.shape[array.ndim - len(dims) :] != dims:
            expected = f"whole numbers (..., {', '.join(map(str, dims))})" if dims else "whole numbers (...)"
            raise ValueError(f"{self.name}: expected {expected}, got {array.dtype} of shape {array.shape}.")
        return array


class TextReader(Reader):
    """A text with time, the sense of a world that talks or an action in words; or a sense that is constant."""

    roles = (SENSE, ACTION)
    needs = ("max_length",)
    compares = ("every_step",)

    @property
    def is_constant(self) -> bool:  # type: ignore[override]  # of a reader, not of its class
        return self.role == SENSE and not self.spec.get("every_step", False)

    def read(self, value) -> np.ndarray:
        if not self.is_constant:
            return with_batch_and_time(self.name, self._ids(value, max_ndim=2), 1)
        ids = self._ids(value, max_ndim=1)
        return with_batch_and_time(self.name, ids.reshape(1, -1, ids.shape[-1]), 1)[0]

    def _ids(self, value, max_ndim: int) -> np.ndarray:
        name, length, pad = self.name, self.spec["max_length"], self.tokenizer.pad_token_id
        texts = np.asarray(value.tolist() if isinstance(value, np.ndarray) else value, dtype=object)
        if texts.ndim > max_ndim or not all(isinstance(text, str) for text in texts.flat):
            expected = "a string, a list or a list of lists of equal length" if max_ndim == 2 else "a string or a list"
            raise ValueError(f"{name}: expected {expected} of strings, got {_brief(value)}.")
        if pad is None:
            raise ValueError(f"{name}: the tokenizer has no padding token; set `tokenizer.pad_token`.")
        number = {text: index for index, text in enumerate(dict.fromkeys(texts.flat))}  # a mission is in every row
        table = np.full((len(number), length), pad, np.int64)
        try:
            words = self.tokenizer.text_ids(list(number))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        for row, text, ids in zip(table, number, words, strict=True):
            if len(ids) > length and not self.spec.get("clip"):
                raise ValueError(
                    f"{name}: {_brief(text)} is {len(ids)} tokens long, expected at most {length}; shorten it, or "
                    f"build the model with a larger max_length (`--sense {name}.max_length={len(ids)}`), or with "
                    f"clip=True, which cuts longer texts (`--sense {name}.clip=true`)."
                )
            row[: len(ids)] = ids[:length]
        ids = table[[number[text] for text in texts.flat]]
        return ids.reshape(*texts.shape, length)

    def blank(self, leading: tuple[int, ...]) -> np.ndarray:
        return np.full((*leading, self.spec["max_length"]), self.tokenizer.pad_token_id, np.int64)

    def write(self, array: np.ndarray, output_type: str):
        if array.ndim < 1 or array.dtype.kind not in "iu":
            raise ValueError(
                f"{self.name}: expected ids of words (..., length), got {array.dtype} of shape {array.shape}."
            )
        try:
            return _nest(array, 1, self._text)
        except (ValueError, OverflowError, IndexError) as error:
            raise ValueError(f"{self.name}: expected ids of words, got up to {array.max()}: {error}") from error

    def _text(self, ids: np.ndarray) -> str:
        padding = np.flatnonzero((ids == self.tokenizer.pad_token_id) | (ids < 0))  # below 0: absent
        return self.tokenizer.decode(ids[: padding[0]] if len(padding) else ids, skip_special_tokens=True)


register_reader("image", ImageReader)
register_reader("discrete", DiscreteReader)
register_reader("symbols", SymbolsReader)
register_reader("vector", VectorReader)
register_reader("text", TextReader)


# ---- Arrays of whatever a user gives


def with_batch_and_time(name: str, array: np.ndarray, num_inner: int) -> np.ndarray:
    """`array` as (B, T, ...), contiguous; a missing batch or time has size 1. Raises ValueError for an empty one."""
    lead = array.ndim - num_inner
    array = array.reshape((1,) * (2 - lead) + array.shape)
    may_be_none = name.partition(".")[0] == ACTION  # one frame has no actions: (B, 0) is right
    if len(array) == 0 or (array.shape[1] == 0 and not may_be_none):
        raise ValueError(f"{name}: nothing in it (shape {array.shape}); give at least one row and one step.")
    return np.ascontiguousarray(array)


def as_numbers(name: str, value) -> np.ndarray:
    """`value` as an array of numbers. Raises ValueError for anything else."""
    array = as_array(value, name)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected numbers, got {array.dtype}; convert it to float32.")
    return array


def as_array(value, name: str = "value") -> np.ndarray:
    """Arrays, tensors, numbers and nested lists of them as one array. Raises ValueError for several shapes."""
    if isinstance(value, torch.Tensor):
        if value.is_meta or value.layout != torch.strided:
            kind = "a tensor without values (meta)" if value.is_meta else str(value.layout)
            raise ValueError(f"{name}: expected a dense tensor, got {kind} of shape {tuple(value.shape)}.")
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, (list, tuple)) and value:
        return _stacked(name, [as_array(item, name) for item in value])
    return np.asarray(value)


def _stacked(name: str, parts: list[np.ndarray]) -> np.ndarray:
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"{name}: expected items of one shape, got {', '.join(map(str, sorted(shapes)))}.")
    return np.stack(parts)


def _is_pil(value) -> bool:
    return hasattr(value, "convert") and hasattr(value, "mode")


def _to_uint8(array: np.ndarray) -> str:
    """What makes 8-bit colours of other numbers, as far as their range tells."""
    if array.dtype.kind != "f" or not array.size:
        return "convert it to uint8"
    least, most = array.min(), array.max()
    if not np.isfinite([least, most]).all():
        return "it holds NaN or inf"
    if least < 0:
        return "add 1, multiply by 127.5, round and convert to uint8" if least >= -1 and most <= 1 else "rescale it"
    return ("multiply by 255, round" if most <= 1 else "round it") + " and convert to uint8"


def _check_range(name: str, array: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    margin = _OUTSIDE * (high - low)
    outside = (array < low - margin) | (array > high + margin)
    if not outside.any():
        return
    axes = tuple(range(array.ndim - 1))
    coordinate = int(np.flatnonzero(outside.any(axis=axes))[0])
    numbers = array[..., coordinate]
    raise ValueError(
        f"{name}: coordinate {coordinate} is within {numbers.min():.6g}..{numbers.max():.6g}, "
        f"expected {low[coordinate]:.6g}..{high[coordinate]:.6g}; check its unit, widen the range, or set clip=True."
    )


def _nest(array: np.ndarray, num_inner: int, function):
    """`function` of every inner array, as nested lists."""
    return function(array) if array.ndim == num_inner else [_nest(item, num_inner, function) for item in array]


def _to_pil(frame: np.ndarray):
    if frame.dtype == np.int32:
        return Image.fromarray(frame[..., 0])  # of mode I: `to_pil_image` knows 8 bits only
    return to_pil_image(frame, do_rescale=False, input_data_format="channels_last")


def _brief(value) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
