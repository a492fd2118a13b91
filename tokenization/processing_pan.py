"""Observations, actions and texts in, tensors out: everything a user hands to a model is checked here, once.

Each sense and each part of the action has one [`Reader`] (`readers_pan.py`), which knows its kind. The processor puts
together what they read: senses that are absent, one batch size, one number of frames and the actions between them.

B = batch, T = time, L = text tokens, D = coordinates, C, H, W = channels, height, width.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from .readers_pan import ACTION, READERS, SENSE, Reader, as_array

# files of users' own kinds import these from here
from .readers_pan import as_numbers as as_numbers
from .readers_pan import register_reader as register_reader
from .readers_pan import with_batch_and_time as with_batch_and_time
from .tokenization_pan import PanTokenizer, found
from .vocabulary_pan import Vocabulary

# What saving calls with the folder, and with the readers of the kinds that are read; see `pan_hf.custom_kinds`.
ON_SAVE: list[Callable[[str, list[type]], None]] = []

# How a folder is written, and made whole after a kill: pan_hf puts the functions of `pan_hf.files` here. Code that
# travels alone writes one file after the other, as any processor of Transformers.
WHOLE_FOLDER: Callable[[Any], AbstractContextManager] = nullcontext
FINISH_WRITING: Callable[[Any], object] = str

_PRESENT = ".present"  # behind the name of a sense: in which frames it is there


def _config_in(folder) -> tuple[Path, bytes] | None:
    """Where a folder's `config.json` is, and its content; None where there is none."""
    path = Path(folder).resolve() / "config.json"
    return (path, path.read_bytes()) if path.is_file() else None


class PanBatch(BatchFeature):
    """A `BatchFeature` whose `to` also reaches the tensors inside `observation`."""

    def to(self, *args, **kwargs) -> "PanBatch":
        """Moves (and casts, floats only) every tensor in place; arguments as for `torch.Tensor.to`. Returns itself."""
        parts = {key: value for key, value in self.items() if isinstance(value, Mapping)}
        nested = {key: PanBatch(value).to(*args, **kwargs).data for key, value in parts.items()}
        super().to(*args, **kwargs)
        self.data.update(nested)
        return self


class PanProcessor(ProcessorMixin):
    """Turns what an agent sees, does and says into the tensors of [`PanModel`], and back.

    Args:
        tokenizer ([`PanTokenizer`] or any fast tokenizer): the words; another fast tokenizer is wrapped.
        senses (`dict[str, dict]`, *optional*): name -> what the sense's `to_dict()` gives. Keys that are read: `kind`;
            image: `height`, `width`, `channels`, and `bits`, `low`, `high` where it is no colour picture; vector:
            `dim`, `low`, `high`; text: `max_length`, `every_step`; and `clip` (numbers: clip to the range; text: cut
            at `max_length`) in place of an error.
        action (`dict`, *optional*): likewise; `num_actions` for a discrete one, and `names` of these.
        actions (`dict[str, dict]`, *optional*): the parts of an action of several, by name.
        vocabulary ([`Vocabulary`] or `dict`, *optional*): the ledger to attach to the tokenizer. It is kept there and
            saved once, as `vocabulary.json`.
        chat_template (`str`, *optional*): the tokenizer's own by default.

    Raises:
        ValueError: no tokenizer, an unknown kind, a missing key, or a ledger that contradicts the tokenizer's.
    """

    _model: tuple[Path | None, bytes] = (None, b"")  # config.json of the model that was saved with this processor

    def __init__(self, tokenizer=None, senses=None, action=None, vocabulary=None, chat_template=None, actions=None):
        if tokenizer is None:
            raise ValueError(
                "PanProcessor needs a tokenizer: the backbone's (PanTokenizer.from_backbone) or a small new one "
                "(PanTokenizer.train)."
            )
        tokenizer = tokenizer if hasattr(tokenizer, "attach") else PanTokenizer.from_backbone(tokenizer)
        for what, specs in (("senses", senses), ("actions", actions)):
            if not isinstance(specs or {}, Mapping):
                raise ValueError(f"{what} must be a dict by name, got {type(specs).__name__}.")
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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in any processor. Raises FileNotFoundError where neither a folder nor a Hub has one."""
        FINISH_WRITING(pretrained_model_name_or_path)
        with found(pretrained_model_name_or_path, kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in any processor, except that `save_directory` changes whole or not at all.

        Raises:
            ValueError: as `Vocabulary.check_replaces`; a kind whose file cannot travel; or the model there is no more
                the one that was saved with this processor. Nothing has been written then.
        """
        is_pushed = kwargs.get("push_to_hub") or (args and args[0])  # a push looks at the folder itself
        with nullcontext(save_directory) if is_pushed else WHOLE_FOLDER(save_directory) as folder:
            if self.vocabulary is not None:
                self.vocabulary.check_replaces(save_directory)
            config = _config_in(save_directory)
            if config is not None and config[0] == self._model[0] and config != self._model:
                raise ValueError(
                    f"{save_directory} holds another model than the one that was saved there with this processor: "
                    "another process wrote it since. Save both again, or to another folder."
                )
            files = super().save_pretrained(folder, *args, **kwargs)
            if not is_pushed:
                self._write_kinds(folder)
        return [str(file).replace(str(folder), str(save_directory)) for file in files or ()]

    def note_model(self, folder, final) -> None:
        """Remembers the model that was written into a folder together with this processor, and will stand in
        `final`."""
        self._model = Path(final).resolve() / "config.json", (Path(folder) / "config.json").read_bytes()

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        """What `save_pretrained(push_to_hub=True)` ends with: the files of kinds that are not ours must be there."""
        self._write_kinds(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _write_kinds(self, folder) -> None:
        specs = [*self.senses.values(), *self._action_specs().values()]
        for write in ON_SAVE:
            write(folder, list({READERS[spec["kind"]] for spec in specs}))

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The tokenizer's ledger, or `None`."""
        return self.tokenizer.vocabulary

    @property
    def vocabulary_digest(self) -> str | None:
        """Digest of the ledger; the model it belongs to has the same in its config."""
        return self.tokenizer.vocabulary_digest

    def _attach(self, vocabulary) -> None:
        vocabulary = Vocabulary.from_dict(vocabulary) if isinstance(vocabulary, Mapping) else vocabulary
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
        partial: bool = True,
        **text_settings,
    ) -> PanBatch:
        """Checks and converts; nothing is resized, rescaled or reordered in time.

        Args:
            observation (`dict[str, ...]`, *optional*): one entry a sense. A goal may be about some senses only;
                `perceive` needs an entry for every sense, None where a sense is absent, either the whole entry or
                items of a list. Or `<sense>.present`, bool `(T,)` or `(B, T)`, says in which frames it is there, and
                what stands in the others is passed over.
                Image: uint8, `(H, W, C)` for one frame, `(T, H, W, C)` or `(B, T, H, W, C)`; numpy, torch (channels
                first too), PIL, or lists of them. Whole numbers in the sense's range where it has `bits=16`.
                Vector: numbers within `low`..`high`, `(D,)`, `(T, D)` or `(B, T, D)`.
                Symbols: whole numbers `(*dims)`, with `(T,)` or `(B, T)` in front.
                Text: with `every_step`, a string, a list of T, or B lists of T; without, one string for the whole
                batch or a list of B.
            action (*optional*): the actions between the frames: T - 1 of them when `observation` is given too. A dict
                by name where they have several parts.
                Discrete: ints or names, one, `(T,)` or `(B, T)`. Vector: as above. Text: as above with `every_step`.
            text (`str` or `list[str]`, *optional*): plain text for `generate`. What is spelled like a code
                (`<camera.0:17>`) is words, unless `codes_in_text=True` is among the settings.
            return_tensors (`str`): "pt" or "np".
            partial (`bool`): senses may be missing; False refuses that here.
            text_settings: for the tokenizer, `padding`, `max_length` or `codes_in_text` say; `apply_chat_template`
                hands them on.

        Returns:
            [`PanBatch`] with the keys that were asked for: `observation`, a dict of image uint8 `(B, T, C, H, W)`
            (int32 with `bits=16`), vector float32 `(B, T, D)`, symbols `(B, T, *dims)`, uint8 if they fit and int64 if
            not, and text int64 `(B, T, L)` or `(B, L)`, padded, and for
            a sense that is absent somewhere `<sense>.present` bool `(B, T)`; `action`, int64 `(B, T)`, float32
            `(B, T, D)` or int64 `(B, T, L)`, by name where it has several parts; `input_ids` and `attention_mask`,
            int64.

        Raises:
            ValueError: whatever does not fit, with what was given, what was expected and what to do.
        """
        if not isinstance(return_tensors, str) or return_tensors not in ("pt", "np"):
            raise ValueError(f"return_tensors must be 'pt' or 'np', got {return_tensors!r}.")
        if not isinstance(partial, (bool, np.bool_)):
            raise ValueError(f"partial must be True or False, got {partial!r}.")
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
            arrays |= self._read_text(text, settings)
        return PanBatch(_convert(arrays, torch.tensor if return_tensors == "pt" else np.array))

    def _read_text(self, text, settings: dict) -> dict[str, np.ndarray]:
        texts = text if isinstance(text, list) else [text]
        if not texts or not all(isinstance(item, str) for item in texts):
            raise ValueError(f"text must be a string or a list of strings, got {text!r:.80}.")
        try:
            return self.tokenizer(texts, **settings, return_tensors="np")
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"The tokenizer does not read text {text!r:.80} with {settings}: {error}") from error

    def read_columns(self, columns: Mapping) -> dict[str, Any]:
        """Columns of a recording as a call gives them, all rows at once, without axes of batch and time.

        Args:
            columns (`dict[str, ...]`): by sense, and under `action`, what a call takes for N steps; of a constant text
                N strings, or one of which one row is made.

        Returns:
            N rows by name: image uint8 `(N, C, H, W)`, in the memory of the array that was given where that is laid
            out so; vector float32 `(N, D)`; text int64 `(N, L)`, padded; discrete action int64 `(N,)`;
            an action of several parts as a dict of these.

        Raises:
            ValueError: as for a call.
        """
        self._check_names("columns", columns, {*self.senses, ACTION})
        rows: dict[str, Any] = {}
        for name, values in columns.items():
            if name == ACTION:
                rows |= _convert({name: self._read_action(values)}, lambda array: _only_row(ACTION, array))
                continue
            reader = self._reader(name)
            array = reader.read(values)
            rows[name] = torch.from_numpy(array) if reader.is_constant else _only_row(name, array)
        parts = {name: next(iter(each.values())) if isinstance(each, dict) else each for name, each in rows.items()}
        counts = {name: len(part) for name, part in parts.items() if not isinstance(columns[name], str)}
        if len(set(counts.values())) > 1:
            raise ValueError(f"columns are of one recording, so of equally many rows; got {counts}.")
        return rows

    def _read_observation(self, observation, partial: bool) -> dict[str, np.ndarray]:
        senses = ", ".join(self.senses) or "none"
        if not isinstance(observation, Mapping) or not all(isinstance(name, str) for name in observation):
            raise ValueError(
                f"observation must be a dict with one entry a sense ({senses}), got {type(observation).__name__}."
            )
        values, present = _without_gaps(observation)
        unknown = [name for name in values if name not in self.senses]
        unknown += [f"{name}{_PRESENT}" for name in present if name not in values]
        missing = [name for name in self.senses if name not in values and not partial]
        if unknown or missing or not values:
            raise ValueError(
                f"observation has {', '.join(observation) or 'nothing'}; expected exactly the senses {senses} "
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

    def _reader(self, name: str) -> Reader:
        """The reader of a sense, as it is described now."""
        spec = self.senses[name]
        return READERS[spec["kind"]](name, spec, self.tokenizer, SENSE)

    def _action_specs(self) -> dict[str, dict]:
        """The descriptions of the parts of the action, by name."""
        return ({} if self.action is None else {ACTION: self.action}) | (self.actions or {})

    def _action_readers(self) -> dict[str, Reader]:
        """The readers of the parts of the action, by name."""
        return {
            name: READERS[spec["kind"]](_part_name(name), spec, self.tokenizer, ACTION)
            for name, spec in self._action_specs().items()
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
        if not isinstance(output_type, str) or output_type not in ("np", "pil"):
            raise ValueError(f"output_type must be 'np' or 'pil', got {output_type!r}.")
        self._check_names("observation", observation, self.senses)
        return {
            name: self._reader(name).write(as_array(value, name), output_type) for name, value in observation.items()
        }

    def _check_names(self, what: str, values, names) -> None:
        """Raises ValueError unless values are a mapping by some of the names."""
        if not isinstance(values, Mapping):
            raise ValueError(f"{what} must be a dict by sense, got {type(values).__name__}.")
        unknown = [str(name) for name in values if name not in names]
        if unknown or not values:
            given = f"Unknown senses {', '.join(unknown)}" if unknown else f"{what} is empty"
            raise ValueError(f"{given}; known: {', '.join(self.senses) or 'none'}.")

    def decode_action(self, action):
        """Actions as `perceive` and `simulate` take them, for an environment: an array, or (lists of) `str`; by name
        where they have several parts."""
        readers = self._action_readers()
        if not readers:
            raise ValueError("This processor was built without an action.")
        return _by_part(readers, action, lambda reader, value: reader.write(as_array(value, reader.name), "np"))

    def attach(self, model) -> None:
        """Lets `model` (a [`PanModel`]) grow: from now on its new tokens are written into this processor's ledger.
        Save the two together. Raises ValueError as `check_model`."""
        self.check_model(model)
        model.attach(self)

    def check_model(self, model) -> None:
        """Raises ValueError, saying what differs, unless this processor belongs to `model` (a [`PanModel`])."""
        differences = []
        if not hasattr(model, "config"):
            raise ValueError(f"Expected a model, a PanModel, got {model!r:.80}.")
        digest = getattr(model.config, "vocabulary_digest", None)
        if digest != self.vocabulary_digest:
            attached = getattr(model, "processor", None)
            differences.append(f"vocabulary digest: {self.vocabulary_digest} in the processor, {digest} in the model")
            if attached is not None and attached.vocabulary is not None and self.vocabulary is not None:
                differences.append(self.vocabulary.difference(attached.vocabulary, "in the processor", "in the model"))
        mine = self.senses | {_part_name(name): spec for name, spec in self._action_specs().items()}
        action = {ACTION: getattr(model.config, "action", None)}  # all that a model of before had
        theirs = (getattr(model.config, "senses", None) or {}) | getattr(model.config, "action_parts", action)
        for name in dict.fromkeys([*mine, *theirs]):
            differences += _compare(name, _as_dict(mine.get(name)), _as_dict(theirs.get(name)))
        if differences:
            raise ValueError(
                "This processor does not belong to this model; load both from the same checkpoint.\n"
                + "\n".join(item for item in differences if item)
            )


# -- inside


def _checked(what: str, spec, role: str) -> dict:
    """`spec` as a dict of a known kind with the keys that its reader needs."""
    spec = _as_dict(spec)
    if not isinstance(spec, Mapping):
        raise ValueError(f"{what} must be a dict, what its `to_dict()` gives, got {spec!r:.80}.")
    spec = dict(spec)
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
            present[name.removesuffix(_PRESENT)] = as_array(value, name)
            continue
        values[name], there = _filled(value)
        if there is not None:
            present[name] = there
    for name in present.keys() & values.keys():
        values[name] = _over_gaps(values[name], present[name])
    return values, present


def _over_gaps(value, there: np.ndarray):
    """An array with its first present frame in place of the absent ones, where anything may stand."""
    if not hasattr(value, "shape") or there.dtype != bool or tuple(value.shape[: there.ndim]) != there.shape:
        return value  # a list, or a mask that does not fit, which is said later
    if there.all() or not there.any():
        return value
    filled = value.clone() if isinstance(value, torch.Tensor) else np.array(value)
    filled[~there if isinstance(filled, np.ndarray) else torch.from_numpy(~there)] = value[
        tuple(np.argwhere(there)[0])
    ]
    return filled


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
        if len({len(row) for row in value}) > 1:
            raise ValueError(f"Rows with gaps need one number of steps, got {sorted({len(row) for row in value})}.")
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


def _only_row(name: str, array: np.ndarray) -> torch.Tensor:
    if len(array) > 1:
        raise ValueError(f"{name}: a column has no batch, got one of {len(array)} rows.")
    return torch.from_numpy(array[0])


def _check_lengths(arrays: dict, readers: Mapping) -> None:
    """One batch size everywhere, one number of frames, and the actions between them. Args: readers, by sense."""
    observation = {name: array for name, array in arrays.get("observation", {}).items() if name in readers}
    sizes = {name: array.shape[0] for name, array in observation.items()}
    steps = {name: array.shape[1] for name, array in observation.items() if not readers[name].is_constant}
    action = arrays.get("action", {})
    parts = action if isinstance(action, Mapping) else {ACTION: action}
    sizes |= {name: array.shape[0] for name, array in parts.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Batch sizes differ: {sizes}. Give every sense (and the action) the same batch.")
    if len(set(steps.values())) > 1:
        raise ValueError(f"Numbers of frames differ: {steps}. Give every sense the same number of time steps.")
    counts = {name: array.shape[1] for name, array in parts.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"Numbers of actions differ: {counts}. Give every part of the action the same number of steps."
        )
    for array in parts.values() if steps else ():
        frames, actions = next(iter(steps.values())), array.shape[1]
        if actions != frames - 1:
            raise ValueError(
                f"{frames} frames have {frames - 1} actions between them, got {actions}. To convert actions that are "
                "still to come, call the processor with `action=` alone."
            )


def _part_name(name: str) -> str:
    """What a part of the action is called in messages, and in the segments of its codes."""
    return name if name == ACTION else f"{ACTION}.{name}"


def _by_part(readers: dict, action, function):
    """A function of the reader and the value of every part of an action, by name; of the one part alone, which needs
    no name. Raises ValueError for other parts than there are readers."""
    if set(readers) == {ACTION} and not isinstance(action, Mapping):
        return function(readers[ACTION], action)
    if not isinstance(action, Mapping) or set(action) != set(readers):
        parts = sorted(map(str, action)) if isinstance(action, Mapping) else type(action).__name__
        raise ValueError(f"action must be a dict with the parts {', '.join(readers)}, got {parts}.")
    values = {name: function(reader, action[name]) for name, reader in readers.items()}
    return values[ACTION] if set(values) == {ACTION} else values


def _convert(arrays: dict, copy) -> dict:
    """Every array through `copy`: what was given may be written to again, as environments do with their frames."""
    return {key: _convert(item, copy) if isinstance(item, dict) else copy(item) for key, item in arrays.items()}


def _as_dict(spec) -> dict:
    return spec.to_dict() if hasattr(spec, "to_dict") else (spec or {})


def _compare(name: str, mine: dict, theirs: dict) -> list[str]:
    if not mine or not theirs:
        only = "processor" if mine else "model"
        return [f"{name}: only the {only} has it"] if mine or theirs else []
    reader = READERS[mine["kind"]]
    pairs = [(key, mine.get(key), theirs.get(key)) for key in ("kind", *reader.needs, *reader.compares)]
    return [f"{name}.{key}: {a} in the processor, {b} in the model" for key, a, b in pairs if a != b]


PanProcessor.register_for_auto_class("AutoProcessor")
