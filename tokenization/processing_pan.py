"""Observations, actions and texts in, tensors out: everything a user hands to a model is checked here, once.

What the processor knows of a sense or an action is the dict its config's `to_dict` gives: `kind`, shape and range.
Each kind has one [`Reader`], found by the kind's name; a new kind is a reader of its own, anywhere, and
`register_reader`. Readers refuse what does not fit instead of bending it: a float image or an action out of range is
nearly always a mistake upstream, and a model would answer it with plausible nonsense.

B = batch, T = time, L = text tokens, D = coordinates, C, H, W = channels, height, width.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.image_transforms import to_pil_image

from .tokenization_pan import PanTokenizer
from .vocabulary_pan import Vocabulary

# What saving calls with the folder, and with the readers of the kinds that are read; see `pan_hf.custom_kinds`.
ON_SAVE: list[Callable[[str, list[type]], None]] = []

_PRESENT = ".present"  # behind the name of a sense: in which frames it is there
_OUTSIDE = 1e-3  # of the range: rounding in a simulator, not a wrong unit
_IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class PanBatch(BatchFeature):
    """A `BatchFeature` whose `to` also reaches the tensors inside `observation`."""

    def to(self, *args, **kwargs) -> "PanBatch":
        """Moves (and casts, floats only) every tensor in place; arguments as for `torch.Tensor.to`. Returns itself."""
        nested = {key: PanBatch(value).to(*args, **kwargs).data for key, value in self.items() if _is_mapping(value)}
        super().to(*args, **kwargs)
        self.data.update(nested)
        return self


class PanProcessor(ProcessorMixin):
    """Turns what an agent sees, does and says into the tensors of [`PanModel`], and back.

    Args:
        tokenizer ([`PanTokenizer`] or any fast tokenizer): the words; another fast tokenizer is wrapped.
        senses (`dict[str, dict]`, *optional*): name -> what the sense's `to_dict()` gives. Keys that are read: `kind`;
            image: `height`, `width`, `channels`; vector: `dim`, `low`, `high`; text: `max_length`, `every_step`;
            and `clip` (vector: clip to the range; text: cut at `max_length`) in place of an error.
        action (`dict`, *optional*): likewise; `num_actions` for a discrete one.
        actions (`dict[str, dict]`, *optional*): the parts of an action of several, by name.
        vocabulary ([`Vocabulary`] or `dict`, *optional*): the ledger to attach to the tokenizer. It is kept there and
            saved once, as `vocabulary.json`.
        chat_template (`str`, *optional*): the tokenizer's own by default.

    Raises:
        ValueError: no tokenizer, an unknown kind, a missing key, or a ledger that contradicts the tokenizer's.
    """

    def __init__(self, tokenizer=None, senses=None, action=None, vocabulary=None, chat_template=None, actions=None):
        if tokenizer is None:
            raise ValueError(
                "PanProcessor needs a tokenizer: the backbone's (PanTokenizer.from_backbone) or a small new one "
                "(PanTokenizer.train)."
            )
        tokenizer = tokenizer if hasattr(tokenizer, "attach") else PanTokenizer.from_backbone(tokenizer)
        self.senses = {name: _checked(f"Sense {name!r}", spec, SENSE) for name, spec in (senses or {}).items()}
        parts = {name: _checked(f"Action {name!r}", spec, ACTION) for name, spec in (actions or {}).items()}
        self.action = parts.pop(ACTION, None) if action is None else _checked("The action", action, ACTION)
        self.actions = parts or None  # the other ones
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template)
        if vocabulary is not None:
            self._attach(vocabulary)

    @classmethod
    def _load_tokenizer_from_pretrained(
        cls, sub_processor_type, pretrained_model_name_or_path, subfolder="", **kwargs
    ):
        """Loads the class beside this one: `AutoTokenizer` would ask for trust in code that is already running."""
        return PanTokenizer.from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in any processor. Raises ValueError, before anything is written, as `Vocabulary.check_replaces`; and for
        a kind whose file cannot travel."""
        if self.vocabulary is not None:
            self.vocabulary.check_replaces(save_directory)
        files = super().save_pretrained(save_directory, *args, **kwargs)
        described = [*self.senses.values(), *([self.action] if self.action else [])]
        for write in ON_SAVE:
            write(save_directory, list({READERS[spec["kind"]] for spec in described}))
        return files

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The tokenizer's ledger, or `None`."""
        return self.tokenizer.vocabulary

    @property
    def vocabulary_digest(self) -> str | None:
        """Digest of the ledger; the model it belongs to has the same in its config."""
        return self.tokenizer.vocabulary_digest

    def _attach(self, vocabulary) -> None:
        vocabulary = Vocabulary.from_dict(vocabulary) if _is_mapping(vocabulary) else vocabulary
        current = self.tokenizer.vocabulary
        if current is not None and not current.is_ancestor_of(vocabulary):
            raise ValueError(
                "The tokenizer already has another vocabulary, which the given one did not grow from:\n"
                + current.difference(vocabulary, "in the tokenizer", "in the given one")
            )
        self.tokenizer.attach(vocabulary)

    def __call__(
        self,
        observation=None,
        action=None,
        text=None,
        return_tensors: str = "pt",
        partial: bool = False,
        **text_settings,
    ) -> PanBatch:
        """Checks and converts; nothing is resized, rescaled or reordered in time.

        Args:
            observation (`dict[str, ...]`, *optional*): one entry for every sense; None where a sense is absent, either
                the whole entry or items of a list. Or `<sense>.present`, bool `(T,)` or `(B, T)`, says in which frames
                it is there, and what stands in the others is passed over.
                Image: uint8, `(H, W, C)` for one frame, `(T, H, W, C)` or `(B, T, H, W, C)`; numpy, torch (channels
                first too), PIL, or lists of them.
                Vector: numbers within `low`..`high`, `(D,)`, `(T, D)` or `(B, T, D)`.
                Text: with `every_step`, a string, a list of T, or B lists of T; without, one string for the whole
                batch or a list of B.
            action (*optional*): the actions between the frames: T - 1 of them when `observation` is given too. A dict
                by name where they have several parts.
                Discrete: ints, one, `(T,)` or `(B, T)`. Vector: as above. Text: as above with `every_step`.
            text (`str` or `list[str]`, *optional*): plain text for `generate`; its codes (`<camera.0:17>`) count.
            return_tensors (`str`): "pt" or "np".
            partial (`bool`): senses may be missing, for a goal that is about some of them only.
            text_settings: for the tokenizer, `padding` or `max_length` say; `apply_chat_template` hands them on.

        Returns:
            [`PanBatch`] with the keys that were asked for: `observation`, a dict of image uint8 `(B, T, C, H, W)`,
            vector float32 `(B, T, D)` and text int64 `(B, T, L)` or `(B, L)`, padded, and for a sense that is absent
            somewhere `<sense>.present` bool `(B, T)`; `action`, int64 `(B, T)`, float32 `(B, T, D)` or int64
            `(B, T, L)`, by name where it has several parts; `input_ids` and `attention_mask`, int64.

        Raises:
            ValueError: whatever does not fit, with what was given, what was expected and what to do.
        """
        if return_tensors not in ("pt", "np"):
            raise ValueError(f"return_tensors must be 'pt' or 'np', got {return_tensors!r}.")
        if observation is None and action is None and text is None:
            raise ValueError("Nothing to process: give at least one of observation, action and text.")
        arrays: dict = {}
        if observation is not None:
            arrays["observation"] = self._read_observation(observation, partial)
        if action is not None:
            arrays["action"] = self._read_action(action)
        _check_lengths(arrays, {name: self._reader(name) for name in self.senses})
        settings = _text_settings(text, text_settings)
        if text is not None:
            arrays |= self.tokenizer(text if isinstance(text, list) else [text], **settings, return_tensors="np")
        return PanBatch(_convert(arrays, torch.tensor if return_tensors == "pt" else np.array))

    def read_columns(self, columns: Mapping) -> dict[str, torch.Tensor]:
        """Columns of a recording as a call gives them, all rows at once, without axes of batch and time.

        Args:
            columns (`dict[str, ...]`): by sense, and under `action`, what a call takes for N steps; of a constant text
                N strings.

        Returns:
            N rows by name: image uint8 `(N, C, H, W)`, in the memory of the array that was given where that is laid
            out so; vector float32 `(N, D)`; text int64 `(N, L)`, padded; discrete action int64 `(N,)`.

        Raises:
            ValueError: as for a call.
        """
        unknown = [name for name in columns if name not in self.senses and name != ACTION]
        if unknown:
            raise ValueError(f"Unknown senses {', '.join(unknown)}; known: {', '.join(self.senses) or 'none'}.")
        rows = {}
        for name, values in columns.items():
            array = self._read_action(values) if name == ACTION else self._reader(name).read(values)
            is_constant = name != ACTION and self._reader(name).is_constant
            rows[name] = torch.from_numpy(array if is_constant else array[0])  # type: ignore[index]  # an array
        return rows

    def _read_observation(self, observation, partial: bool) -> dict[str, np.ndarray]:
        known = ", ".join(self.senses) or "none"
        if not _is_mapping(observation):
            given = type(observation).__name__
            raise ValueError(f"observation must be a dict with one entry a sense ({known}), got {given}.")
        values, present = _without_gaps(observation)
        unknown = [name for name in [*values, *present] if name not in self.senses]
        missing = [name for name in self.senses if name not in values and not partial]
        if unknown or missing:
            raise ValueError(
                f"observation has {', '.join(observation) or 'nothing'}; expected exactly the senses {known} "
                f"(unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'})."
            )
        readers = {name: self._reader(name) for name in values}
        arrays = {name: readers[name].read(value) for name, value in values.items() if value is not None}
        batch = max((len(array) for array in arrays.values()), default=1)
        steps = next((array.shape[1] for name, array in arrays.items() if not readers[name].is_constant), 1)
        for name, reader in readers.items():
            if values[name] is None:
                arrays[name] = reader.blank((batch,) if reader.is_constant else (batch, steps))
            elif reader.is_constant and isinstance(values[name], str):
                arrays[name] = np.repeat(arrays[name], batch, axis=0)
        for name, mask in present.items():
            if not readers[name].is_constant:
                arrays[name + _PRESENT] = _mask(name, mask, arrays[name].shape[:2])
        return arrays

    def _read_action(self, action) -> np.ndarray | dict[str, np.ndarray]:
        readers = self._action_readers()
        if not readers:
            raise ValueError("Got an action, but this processor has none; pass `action=` when building it.")
        return _by_part(readers, action, lambda reader, value: reader.read(value))

    def _reader(self, name: str) -> "Reader":
        """The reader of a sense, as it is described now."""
        spec = self.senses[name]
        return READERS[spec["kind"]](name, spec, self.tokenizer, SENSE)

    def _action_readers(self) -> dict[str, "Reader"]:
        """The readers of the parts of the action, by name."""
        specs = ({} if self.action is None else {ACTION: self.action}) | (self.actions or {})
        return {
            name: READERS[spec["kind"]](_part_name(name), spec, self.tokenizer, ACTION) for name, spec in specs.items()
        }

    def decode_observation(self, observation: Mapping, output_type: str = "np") -> dict:
        """The inverse: tensors (of `futures.decode`, say) as something to look at, leading dimensions kept.

        Args:
            observation (`dict[str, torch.Tensor]`): some of the senses; image uint8 `(..., C, H, W)`, vector
                `(..., D)`, text ids `(..., L)`.
            output_type (`str`): "np", or "pil" for images as (nested lists of) PIL images.

        Returns:
            `dict`: image uint8 `(..., H, W, C)` array or PIL images; vector float32 array; text as (nested lists of)
            `str`, each up to its first padding.

        Raises:
            ValueError: an unknown sense or output type.
        """
        if output_type not in ("np", "pil"):
            raise ValueError(f"output_type must be 'np' or 'pil', got {output_type!r}.")
        unknown = [name for name in observation if name not in self.senses]
        if unknown:
            raise ValueError(f"Unknown senses {', '.join(unknown)}; known: {', '.join(self.senses) or 'none'}.")
        return {name: self._reader(name).write(_as_array(value), output_type) for name, value in observation.items()}

    def decode_action(self, action):
        """Actions as `perceive` and `simulate` take them, for an environment: an array, or (lists of) `str`; by name
        where they have several parts."""
        readers = self._action_readers()
        if not readers:
            raise ValueError("This processor was built without an action.")
        return _by_part(readers, action, lambda reader, value: reader.write(_as_array(value), "np"))

    def attach(self, model) -> None:
        """Lets `model` (a [`PanModel`]) grow: from now on its new tokens are written into this processor's ledger.
        Save the two together. Raises ValueError as `check_model`."""
        self.check_model(model)
        model.attach(self)

    def check_model(self, model) -> None:
        """Raises ValueError, saying what differs, unless this processor belongs to `model` (a [`PanModel`])."""
        differences = []
        digest = getattr(model.config, "vocabulary_digest", None)
        if digest != self.vocabulary_digest:
            attached = getattr(model, "processor", None)
            differences.append(f"vocabulary digest: {self.vocabulary_digest} in the processor, {digest} in the model")
            if attached is not None and attached.vocabulary is not None and self.vocabulary is not None:
                differences.append(self.vocabulary.difference(attached.vocabulary, "in the processor", "in the model"))
        parts = {ACTION: self.action, **(self.actions or {})}
        mine = self.senses | {_part_name(name): spec for name, spec in parts.items()}
        action = {ACTION: getattr(model.config, "action", None)}  # all that a model of before had
        theirs = (getattr(model.config, "senses", None) or {}) | getattr(model.config, "action_parts", action)
        for name in dict.fromkeys([*mine, *theirs]):
            differences += _compare(name, _as_dict(mine.get(name)), _as_dict(theirs.get(name)))
        if differences:
            raise ValueError(
                "This processor does not belong to this model; load both from the same checkpoint.\n"
                + "\n".join(item for item in differences if item)
            )


# -- one reader a kind

SENSE, ACTION = "sense", "action"  # what a reader is of


class Reader:
    """Checks and converts what is seen or done of one kind, and back.

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
        """What a user gives, as `(B, T, ...)`; a missing batch or time has size 1. Raises ValueError for whatever does
        not fit, with what was given, what was expected and what to do."""
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
    """Pictures: uint8, `(H, W, C)` and with batch and time in front; PIL images and torch tensors too."""

    needs = ("height", "width", "channels")

    def read(self, value) -> np.ndarray:
        name, spec = self.name, self.spec
        channels_last = (spec["height"], spec["width"], spec["channels"])
        channels_first = (spec["channels"], spec["height"], spec["width"])
        array = _as_array(value, name, _IMAGE_MODES.get(spec["channels"]))
        if array.dtype != np.uint8:
            hint = "multiply by 255, round and convert to uint8" if array.dtype.kind == "f" else "convert it to uint8"
            raise ValueError(f"{name}: expected uint8 in 0..255, got {array.dtype}; {hint}.")
        preferred = (channels_first, channels_last) if _holds_tensor(value) else (channels_last, channels_first)
        layout = next((shape for shape in preferred if array.shape[-3:] == shape), None)
        if layout is None or array.ndim > 5:
            raise ValueError(
                f"{name}: expected frames of {channels_last} (height, width, channels), after (time,) or "
                f"(batch, time), got shape {array.shape}; resize the frames or fix the sense."
            )
        array = array if layout == channels_first else np.moveaxis(array, -1, -3)
        return with_batch_and_time(name, array, 3)

    def blank(self, leading: tuple[int, ...]) -> np.ndarray:
        spec = self.spec
        return np.zeros((*leading, spec["channels"], spec["height"], spec["width"]), np.uint8)

    def write(self, array: np.ndarray, output_type: str):
        frames = np.ascontiguousarray(np.moveaxis(array, -3, -1))
        return frames if output_type == "np" else _nest(frames, 3, _to_pil)


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
        bounds = (np.asarray(self.spec[bound], dtype=np.float64) for bound in ("low", "high"))
        low, high = (np.broadcast_to(bound, (dim,)) for bound in bounds)
        if not self.spec.get("clip"):
            _check_range(name, array, low, high)
        return with_batch_and_time(name, np.clip(array, low, high).astype(np.float32), 1)

    def blank(self, leading: tuple[int, ...]) -> np.ndarray:
        return np.zeros((*leading, self.spec["dim"]), np.float32)


class DiscreteReader(Reader):
    """One of several actions, by its number."""

    roles = (ACTION,)
    needs = ("num_actions",)

    def read(self, value) -> np.ndarray:
        name, count = self.name, self.spec["num_actions"]
        array = _as_array(value, name)
        array = array.astype(np.int64) if array.size == 0 else array
        if array.dtype.kind not in "iu" or array.ndim > 2:
            raise ValueError(
                f"{name}: expected integers, one, (time,) or (batch, time), got {array.dtype} of shape {array.shape}."
            )
        wrong = array[(array < 0) | (array >= count)]
        if wrong.size:
            raise ValueError(f"{name}: expected integers in 0..{count - 1}, got {int(wrong.flat[0])}.")
        return with_batch_and_time(name, array.astype(np.int64), 0)


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
        return ids.reshape(-1, ids.shape[-1])

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
        for row, text, ids in zip(table, number, self.tokenizer.text_ids(list(number)), strict=True):
            if len(ids) > length and not self.spec.get("clip"):
                raise ValueError(
                    f"{name}: {_brief(text)} is {len(ids)} tokens long, expected at most {length}; shorten it, or "
                    "build the model with a larger max_length, or with clip=True, which cuts longer texts."
                )
            row[: len(ids)] = ids[:length]
        ids = table[[number[text] for text in texts.flat]]
        return ids.reshape(*texts.shape, length)

    def blank(self, leading: tuple[int, ...]) -> np.ndarray:
        return np.full((*leading, self.spec["max_length"]), self.tokenizer.pad_token_id, np.int64)

    def write(self, array: np.ndarray, output_type: str):
        return _nest(array, 1, self._text)

    def _text(self, ids: np.ndarray) -> str:
        padding = np.flatnonzero((ids == self.tokenizer.pad_token_id) | (ids < 0))  # below 0: absent
        return self.tokenizer.decode(ids[: padding[0]] if len(padding) else ids, skip_special_tokens=True)


register_reader("image", ImageReader)
register_reader("discrete", DiscreteReader)
register_reader("vector", VectorReader)
register_reader("text", TextReader)


# -- inside


def _checked(what: str, spec, role: str) -> dict:
    """`spec` as a dict of a known kind with the keys that its reader needs."""
    spec = dict(_as_dict(spec))
    kind, kinds = spec.get("kind"), [kind for kind, reader in READERS.items() if role in reader.roles]
    if kind not in kinds:
        raise ValueError(
            f"{what} has the unknown kind {kind!r}; expected one of {', '.join(kinds)}. Import the file that "
            "registers it first, or load the processor with trust_remote_code=True where pan_hf is not imported, to "
            "run the code it came with."
        )
    missing = sorted(set(READERS[kind].needs) - set(spec))
    if missing:
        raise ValueError(f"{what} of kind {kind!r} lacks {', '.join(missing)}; pass what its `to_dict()` gives.")
    return spec


def _text_settings(text, settings: dict) -> dict:
    """What the tokenizer is told; chat templates name other modalities too, as None where a message has none."""
    settings = {name: value for name, value in settings.items() if value is not None}
    foreign = sorted({"images", "videos", "audio"} & set(settings))
    if foreign:
        raise ValueError(f"Got {', '.join(foreign)}: what is seen or heard is given by sense, as `observation`.")
    if settings and text is None:
        raise ValueError(f"Got {', '.join(sorted(settings))} without text; these are settings of the tokenizer.")
    return {"padding": True} | settings


def _without_gaps(observation: Mapping) -> tuple[dict, dict]:
    """An observation with what is None filled up (an entry that is None altogether stays so), and by sense with gaps
    in which frames it is there."""
    values, present = {}, {}
    for name, value in observation.items():
        if name.endswith(_PRESENT):
            present[name.removesuffix(_PRESENT)] = _as_array(value, name)
            continue
        values[name], there = _filled(value)
        if there is not None:
            present[name] = there
    return values, present


def _filled(value) -> tuple:
    """A list without None, which the first other item stands in for, and a mask of the items that were not None; the
    mask is None without gaps, and the list where nothing is left. Lists of lists row by row."""
    if value is None:
        return None, np.array(False)
    if not isinstance(value, (list, tuple)):
        return value, None
    if all(isinstance(item, (list, tuple)) for item in value):
        parts = [_filled(item) for item in value]
        if all(there is None for _, there in parts):
            return value, None
        masks = [
            np.broadcast_to(True if mask is None else mask, len(row))
            for row, (_, mask) in zip(value, parts, strict=True)
        ]
        items, there = [item for item, _ in parts], np.stack(masks)
    elif any(item is None for item in value):
        items, there = list(value), np.array([item is not None for item in value])
    else:
        return value, None
    filler = next((item for item in items if item is not None), None)
    return (None if filler is None else [filler if item is None else item for item in items]), there


def _mask(name: str, mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """In which of `shape` (batch, time) frames a sense is there."""
    if mask.dtype != bool or (mask.ndim and mask.shape not in (shape, shape[1:])):
        raise ValueError(
            f"{name}{_PRESENT}: expected bool of shape (time,) or (batch, time) = {shape}, got {mask.dtype} of shape "
            f"{mask.shape}. A sense is absent in whole frames: give None in place of a frame."
        )
    return np.array(np.broadcast_to(mask, shape))


def _check_lengths(arrays: dict, readers: Mapping) -> None:
    """One batch size everywhere, one number of frames, and the actions between them. Args: readers, by sense."""
    observation = {name: array for name, array in arrays.get("observation", {}).items() if name in readers}
    sizes = {name: array.shape[0] for name, array in observation.items()}
    steps = {name: array.shape[1] for name, array in observation.items() if not readers[name].is_constant}
    action = arrays.get("action", {})
    parts = action if _is_mapping(action) else {ACTION: action}
    sizes |= {name: array.shape[0] for name, array in parts.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Batch sizes differ: {sizes}. Give every sense (and the action) the same batch.")
    if len(set(steps.values())) > 1:
        raise ValueError(f"Numbers of frames differ: {steps}. Give every sense the same number of time steps.")
    for array in parts.values() if steps else ():
        frames, actions = next(iter(steps.values())), array.shape[1]
        if actions != frames - 1:
            raise ValueError(
                f"{frames} frames have {frames - 1} actions between them, got {actions}. To convert actions that are "
                "still to come, call the processor with `action=` alone."
            )


def _check_range(name: str, array: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    margin = _OUTSIDE * (high - low)
    outside = (array < low - margin) | (array > high + margin)
    if not outside.any():
        return
    axes = tuple(range(array.ndim - 1))
    coordinate = int(np.flatnonzero(outside.any(axis=axes))[0])
    given = array[..., coordinate]
    raise ValueError(
        f"{name}: coordinate {coordinate} is within {given.min():.6g}..{given.max():.6g}, "
        f"expected {low[coordinate]:.6g}..{high[coordinate]:.6g}; check its unit, widen the range, or set clip=True."
    )


def _part_name(name: str) -> str:
    """What a part of the action is called in messages, and in the segments of its codes."""
    return name if name == ACTION else f"{ACTION}.{name}"


def _by_part(readers: dict, action, function):
    """A function of the reader and the value of every part of an action, by name; of the one part alone, which needs
    no name. Raises ValueError for other parts than there are readers."""
    if set(readers) == {ACTION} and not _is_mapping(action):
        return function(readers[ACTION], action)
    if not _is_mapping(action) or set(action) != set(readers):
        given = sorted(action) if _is_mapping(action) else type(action).__name__
        raise ValueError(f"action must be a dict with the parts {', '.join(readers)}, got {given}.")
    values = {name: function(reader, action[name]) for name, reader in readers.items()}
    return values[ACTION] if set(values) == {ACTION} else values


def with_batch_and_time(name: str, array: np.ndarray, num_inner: int) -> np.ndarray:
    """`array` as (B, T, ...), contiguous; a missing batch or time has size 1."""
    lead = array.ndim - num_inner
    array = array.reshape((1,) * (2 - lead) + array.shape)
    may_be_none = name.partition(".")[0] == ACTION  # one frame has no actions: (B, 0) is right
    if len(array) == 0 or (array.shape[1] == 0 and not may_be_none):
        raise ValueError(f"{name}: nothing in it (shape {array.shape}).")
    return np.ascontiguousarray(array)


def as_numbers(name: str, value) -> np.ndarray:
    """`value` as an array of numbers. Raises ValueError for anything else."""
    array = _as_array(value, name)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected numbers, got {array.dtype}; convert it to float32.")
    return array


def _as_array(value, name: str = "value", image_mode: str | None = None) -> np.ndarray:
    """Arrays, tensors, PIL images, numbers and nested lists of them as one array."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    if image_mode is not None and hasattr(value, "convert"):
        pixels = np.asarray(value.convert(image_mode))
        return pixels[..., None] if pixels.ndim == 2 else pixels
    if not isinstance(value, (list, tuple)):
        return np.asarray(value)
    parts = [_as_array(item, name, image_mode) for item in value]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"{name}: expected items of one shape, got {', '.join(map(str, sorted(shapes)))}.")
    return np.stack(parts) if parts else np.zeros(0)


def _holds_tensor(value) -> bool:
    return _holds_tensor(value[0]) if isinstance(value, (list, tuple)) and value else isinstance(value, torch.Tensor)


def _is_mapping(value) -> bool:
    return isinstance(value, Mapping)


def _convert(arrays: dict, copy) -> dict:
    """Every array through `copy`: what was given may be written to again, as environments do with their frames."""
    return {key: _convert(item, copy) if isinstance(item, dict) else copy(item) for key, item in arrays.items()}


def _nest(array: np.ndarray, num_inner: int, function):
    """`function` of every inner array, as nested lists."""
    return function(array) if array.ndim == num_inner else [_nest(item, num_inner, function) for item in array]


def _to_pil(frame: np.ndarray):
    return to_pil_image(frame, do_rescale=False, input_data_format="channels_last")


def _as_dict(spec) -> dict:
    return spec.to_dict() if hasattr(spec, "to_dict") else (spec or {})


def _compare(name: str, mine: dict, theirs: dict) -> list[str]:
    if not mine or not theirs:
        only = "processor" if mine else "model"
        return [f"{name}: only the {only} has it"] if mine or theirs else []
    reader = READERS[mine["kind"]]
    pairs = [(key, mine.get(key), theirs.get(key)) for key in ("kind", *reader.needs, *reader.compares)]
    return [f"{name}.{key}: {a} in the processor, {b} in the model" for key, a, b in pairs if a != b]


def _brief(value) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


PanProcessor.register_for_auto_class("AutoProcessor")
