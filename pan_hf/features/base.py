"""What a kind of sense or action is to the data: where its values come from, how they are kept, compared and shown.

`meta/info.json` describes every column as a dict with `kind`; a model's configuration describes every sense and its
action. `feature_of` makes the same object of either, and whoever handles values asks that object and compares no kind.
A new kind is one class in a file of its own:

    @register_feature
    class WaveformFeature(Feature):
        kind = "waveform"

Names by which a value goes: *raw* as an environment or a table gives it; *recorded* as an `Episode` holds it (an image
is uint8 `(H, W, 3)`); *column* as `Trajectories` holds all of them (an image is uint8 `(N, 3, H, W)`), which is also
what the model takes, as a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from gymnasium import spaces
    from torch import Tensor

    from pan_hf.tokenization import PanProcessor, PanTokenizer

ACTION = "action"  # the column of an action of one part, and what that part is called

Measures = dict[str, "tuple[str, Tensor]"]
"""By metric, its formula and its components `(n, k)`, see `pan_hf.metrics`."""

# Columns of several actions a step, and of the reward and the end of each actor.
_RESERVED = re.compile(r"action\..+|next\.(reward|done)\..+")


@dataclass(frozen=True)
class View:
    """How pictures are brought to size on their way in.

    Args:
        image_size (`int`, *optional*): side in pixels that pictures are averaged to; as they are when None.
        crop (`bool`): whether they are cut to their middle square before that.
        depth_scale (`float`, *optional*): what numbers that are no colours, such as depth, are multiplied with to be
            whole numbers; floats need it.
        depth_unit (`str`): the unit of those whole numbers.
        symbols (`bool`, *optional*): whether whole numbers are taken as symbols; where they seem to be when None.
    """

    image_size: int | None = None
    crop: bool = False
    depth_scale: float | None = None
    depth_unit: str = ""
    symbols: bool | None = None


@dataclass(frozen=True)
class Form:
    """How raw values of one source are described and converted.

    Args:
        feature (`dict`): as in `meta/info.json`.
        convert: raw value -> recorded value; ValueError for one that does not fit.
        check: ValueError for a first raw value that means something else than it seems to.
        may_be_symbols: the source leaves open whether its values are symbols; a first one tells.
    """

    feature: dict
    convert: Callable[[Any], Any]
    check: Callable[[Any], None] = lambda value: None
    may_be_symbols: bool = False


class ActionForm:
    """Between the action that is recorded (an integer, a float vector, a text, or a dict of these by part) and the one
    an environment takes.

    Args:
        raw_space: the environment's own action space.

    Attributes:
        space: gymnasium space of recorded actions.
        feature (`dict`): of an action of one part, as in `meta/info.json`.
    """

    raw_space: spaces.Space
    space: spaces.Space
    feature: dict

    @property
    def features(self) -> dict[str, dict]:
        """By column, what is recorded of an action."""
        return {ACTION: self.feature}

    def masks(self, action_mask: Any) -> dict[str, np.ndarray]:
        """By part, which choices are allowed now, bool `(n,)`; a part that is no choice is left out.

        Args:
            action_mask: as the environment gives it.

        Raises:
            ValueError: it does not fit the choices there are.
        """
        return {}

    def sample(self, masks: Mapping[str, np.ndarray]) -> Any:
        """A random action of `space` that `masks` allow."""
        return self.space.sample(masks[ACTION].astype(np.int8)) if ACTION in masks else self.space.sample()

    def check(self, action: Any) -> Any:
        """The recorded form of an action that may be of another type; ValueError where it does not lie in `space`."""
        raise NotImplementedError

    def to_environment(self, action: Any) -> Any:
        """What the environment takes for a recorded action."""
        raise NotImplementedError

    def from_environment(self, action: Any) -> Any:
        """The recorded form of what the environment takes; ValueError where that does not lie in its space."""
        return self.check(action)


class Feature:
    """One column of a recording, or what a model's sense or action asks of one. A subclass is a kind.

    What is not overridden means: values are kept as they are, no source offers them, they have no metric and no
    picture, and nobody knows their mirror image.

    Args:
        description (`Mapping`): as in `meta/info.json`, `kind` included.
    """

    kind: ClassVar[str]
    bare_name: ClassVar[str] = "state"  # of an observation without a name of its own
    is_discrete: ClassVar[bool] = False  # an action that is one of `n` choices
    is_numeric: ClassVar[bool] = False  # numbers with bounds `low` and `high`, `dim` of them
    is_text: ClassVar[bool] = False
    card_fields: ClassVar[tuple[str, ...] | None] = None  # of a configuration, what a model's card tells; None: all
    is_picture: ClassVar[bool] = False  # its values are frames to look at: see `to_frames`
    is_symbolic: ClassVar[bool] = False  # its values are right or wrong, and never nearly right

    def __init__(self, description: Mapping[str, Any]):
        self.description = dict(description)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.description})"

    @classmethod
    def describe(cls, part: Any) -> dict[str, Any]:
        """The description of what a model's sense or action (its configuration) takes."""
        return part.to_dict()

    def mask(self, told: Any, sizes: Sequence[int] | None = None) -> np.ndarray:
        """Which choices of an action are allowed, bool `(n,)`, from what an environment gives. Raises ValueError where
        it does not fit, or there are no choices."""
        raise ValueError(f"an action of kind {self.kind!r} has no choices to allow")

    # ---- From an environment or a table

    @classmethod
    def from_space(cls, space: spaces.Space, view: View) -> Form | None:
        """How observations of a gymnasium space become values of this kind, None where they are of another.

        Raises:
            ValueError: it is of this kind, and cannot be recorded.
        """
        return None

    @classmethod
    def from_value(cls, value: Any, view: View) -> Form | None:
        """The same, told by the first value of a column: a text or an array."""
        return None

    @classmethod
    def action_from_space(cls, space: spaces.Space) -> ActionForm | None:
        """How actions of a gymnasium space become values of this kind, None where they are of another."""
        return None

    @classmethod
    def action_from_value(cls, value: Any, largest: Callable[[], int]) -> Form | None:
        """The same, told by the first action of a column. Args: largest, gives the largest whole number in it."""
        return None

    def space(self) -> spaces.Space:
        """Gymnasium space of recorded values."""
        raise NotImplementedError(f"{type(self).__name__} has no space()")

    # ---- To and from parquet

    def column_type(self) -> Any:
        """The column's type, as the `datasets` library names it."""
        raise NotImplementedError(f"{type(self).__name__} has no column_type()")

    def stored(self, value: Any) -> Any:
        """A recorded value as pyarrow takes it for a column of `column_type`."""
        return value

    def blank(self) -> Any:
        """What stands where there is no value: the action after the last observation."""
        raise NotImplementedError(f"{type(self).__name__} has no blank()")

    def num_bytes(self, value: Any) -> int:
        """About how many bytes a recorded value takes on the disk."""
        return np.asarray(value).nbytes

    def read(self, column: pa.ChunkedArray) -> Any:
        """A column of a file as an array of rows; as a list of cells for `decode` where there is a `row_shape`.

        Raises:
            ValueError: the column has another type, or values that do not fit the description.
        """
        raise NotImplementedError(f"{type(self).__name__} has no read()")

    @property
    def is_optional(self) -> bool:
        """Whether a sense may be absent at some steps: missing cells of its column."""
        return bool(self.description.get("optional"))

    def filled(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """A column with its missing cells filled: by the cell before, or the first there is; by `blank` where there is
        none. So what stands there lies within the bounds."""
        import pyarrow.compute as pc

        is_valid = column.is_valid().to_numpy()
        if not is_valid.any():
            return pa.chunked_array([pa.array([self.stored(self.blank())] * len(column), column.type)])
        rows = np.maximum.accumulate(np.where(is_valid, np.arange(len(column)), -1))
        return pc.take(column, pa.array(np.where(rows < 0, np.argmax(is_valid), rows)))

    @property
    def row_shape(self) -> tuple[int, ...] | None:
        """Shape of a row, of `row_dtype`, where cells are compressed one by one: all may be more than memory holds."""
        return None

    @property
    def row_dtype(self) -> type:
        """Of rows of `row_shape`."""
        return np.uint8

    def decode(self, cell: Any) -> np.ndarray:
        """One cell of `read` as a row of `row_shape`; OSError, TypeError or ValueError where it is none."""
        raise NotImplementedError(f"{type(self).__name__} has no decode()")

    def recorded(self, rows: Any) -> list:
        """Rows of a column as recorded values."""
        return rows.tolist()

    def _check_type(self, column: pa.ChunkedArray, fits: bool) -> None:
        if column.null_count or not fits:
            raise ValueError(f"expected {self.description}, got {column.type} with {column.null_count} missing")

    # ---- What a recording says of a column as a whole

    @property
    def is_measured(self) -> bool:
        """Whether the description holds all that `bounded` adds."""
        return True

    def summary(self, values: Sequence) -> list | None:
        """What an episode's file says of its recorded values without its rows, as JSON; None for nothing."""
        return None

    def joined(self, summaries: Sequence[list]) -> list:
        """The summary of several episodes together."""
        raise NotImplementedError(f"{type(self).__name__} has a summary() and no joined()")

    def bounded(self, name: str, summary: list) -> dict[str, Any]:
        """The description with what the summary of all episodes adds. Args: name, of the column, for warnings."""
        return self.description

    @property
    def common(self) -> dict[str, Any]:
        """The part of the description in which the environments of one recording have to agree."""
        return self.description

    def merged(self, other: Feature) -> dict[str, Any]:
        """A description that holds for this and for another of the same `common`."""
        return self.description

    @property
    def is_masked(self) -> bool:
        """Whether an action's recording says at every step which choices are allowed."""
        return False

    @property
    def is_task(self) -> bool:
        """Whether it is a text that holds for a whole episode."""
        return False

    # ---- To a model

    def make_sense(self, name: str, values: np.ndarray, episode: np.ndarray, tokenizer: PanTokenizer, options: dict):
        """The configuration of a sense that takes these values.

        Args:
            name: of the sense, for errors.
            values: the column `(N, ...)`; episode: int64 `(N,)`, the episode of each row.
            tokenizer: the backbone's words.
            options: fields that override what the values suggest.

        Raises:
            ValueError: no configuration takes them. TypeError: a field that it does not have.
        """
        raise ValueError(f"A model cannot have the sense {name!r}: {self.kind} is not a kind of sense.")

    def make_action(self, values: np.ndarray, tokenizer: PanTokenizer, options: dict):
        """The configuration of an action that takes these values; arguments and errors as for `make_sense`."""
        raise ValueError(f"A model cannot act so: {self.kind} is not a kind of action.")

    def to_processor(self, values: np.ndarray) -> Any:
        """Rows of a column `(..., row)`, as the processor takes them."""
        return values

    def texts(self, values: np.ndarray) -> list[str]:
        """What is said in a column, each text once; nothing in one of another kind."""
        return []

    @classmethod
    def sequence(cls, name: str, part: Any, values: Sequence) -> Any:
        """Recorded values of T steps of a model's sense or action, as the processor takes a batch of one:
        `(1, T, ...)`, of a text that holds for the whole episode the last one.

        Raises:
            ValueError: steps that are no arrays, or of more than one shape; it says `name`.
        """
        if any(value is None for value in values):
            return [list(values)]  # absent at some steps, which the processor reads off the list
        try:
            arrays = [np.asarray(value) for value in values]
        except (TypeError, ValueError, RuntimeError) as error:  # ragged, or a tensor of a type that numpy lacks
            raise ValueError(f"{name!r}: a step of it is no array ({error}).") from error
        if len({array.shape for array in arrays}) > 1:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise ValueError(f"{name!r}: expected steps of one shape, got {shapes}.")
        return np.stack(arrays)[None]

    def check_sense(self, name: str, sense: Any, values: np.ndarray, processor: PanProcessor) -> None:
        """Raises ValueError where the column `values` does not fit a model's `sense` of this kind."""
        processor(observation={name: values}, partial=True)

    def check_action(self, action: Any, values: np.ndarray, processor: PanProcessor) -> None:
        """Raises ValueError where the actions `values` do not fit a model's `action` of this kind."""
        processor(action=values)

    def is_playable(self, action: Feature) -> bool:
        """Whether an environment that takes this action can be played by a model of that `action`, this kind's."""
        return self.description == action.description

    # ---- Compared. `shown` and the like are tensors (n, ...), as the model takes and decodes them.

    def reference(self, sense: Any, values: np.ndarray, pad_token_id: int) -> Any:
        """What `measures` needs beside the values; made once from a model's sense and the recorded column."""
        return None

    def measures(self, predicted: Tensor, true: Tensor, last_seen: Tensor, reference: Any) -> Measures:
        """Metrics of predicted values against true ones; "moving" is since `last_seen`."""
        return {}

    def reconstruction(self, rebuilt: Tensor, true: Tensor) -> Measures:
        """Metrics of values that went through the codes and back."""
        return {}

    def moving_error(self, predicted: Tensor, true: Tensor, last_seen: Tensor, reference: Any) -> Tensor | None:
        """Components `(n, 2)` of `psnr_moving`, for kinds with a PSNR."""
        return None

    def error(self, predicted: Tensor, true: Tensor) -> Tensor:
        """How far a prediction is off, `(n,)`: strips are chosen by its rank."""
        return (predicted.float() - true.float()).square().flatten(1).mean(1)

    # ---- Shown

    @property
    def is_shown(self) -> bool:
        """Whether its values can be looked at, see `to_frames`."""
        return self.is_picture

    def to_frames(self, values: Tensor) -> np.ndarray:
        """Values `(T, ...)`, as the model decodes them, as RGB pictures uint8 `(T, H, W, 3)`."""
        raise NotImplementedError(f"{type(self).__name__} has no to_frames()")

    def label(self, value: Any) -> str:
        """What a person reads for one recorded value."""
        return str(value)

    def words(self) -> str:
        """What a column is, for the card of a recording."""
        return self.kind

    @classmethod
    def sense_words(cls, config: Mapping[str, Any]) -> str:
        """What a sense is, for the card of a model. Args: config, the `card_fields` of its configuration."""
        return cls.kind

    @classmethod
    def action_words(cls, config: Mapping[str, Any]) -> str:
        """What an action is, for the card of a model."""
        return f"a {cls.kind}"

    @classmethod
    def blank_sense(cls, config: Mapping[str, Any]) -> str:
        """Python code of an observation to try a model with; it may use `np`."""
        raise NotImplementedError(f"{cls.__name__} has no blank_sense()")

    @classmethod
    def blank_actions(cls, config: Mapping[str, Any]) -> str:
        """Python code of actions of shape (1, 5, ...) to try a model with; it may use `torch` and `processor`."""
        raise NotImplementedError(f"{cls.__name__} has no blank_actions()")

    # ---- Mirrored

    def needs_mirror_rule(self, has_swaps: bool) -> bool:
        """Whether whoever mirrors a recording has to say what becomes of it. Args: has_swaps, of actions."""
        return True

    def check_mirror(self, name: str, flips: Sequence[str]) -> None:
        """Raises ValueError where values cannot be flipped so."""

    def mirrored(self, values: list, flips: Sequence[str], rule: Any) -> list:
        """Recorded values, flipped. Args: rule, what becomes of them, see `pan_hf.data.mirror`; None for nothing."""
        return values


# ---- By name

_FEATURES: dict[str, type[Feature]] = {}


def register_feature(feature: type[Feature]) -> type[Feature]:
    """Makes a kind known; usable as a decorator. Kinds that come later are asked first what a space or a value is.

    Raises:
        ValueError: it has no `kind`, or another class has it.
    """
    kind = getattr(feature, "kind", None)
    if not isinstance(kind, str) or not kind.isidentifier():
        raise ValueError(f"{feature.__name__}: expected `kind` to be a name, such as 'waveform', got {kind!r}.")
    before = _FEATURES.get(kind)
    # the same class again is a module that was loaded anew
    if before is not None and (before.__module__, before.__qualname__) != (feature.__module__, feature.__qualname__):
        raise ValueError(f"{feature.__name__}: {kind!r} is the kind of {before.__name__} already; choose another.")
    _FEATURES[kind] = feature
    return feature


def kinds() -> list[type[Feature]]:
    """All kinds, in the order in which they are asked."""
    return list(reversed(_FEATURES.values()))


def feature_class(kind: str) -> type[Feature]:
    """The class of a kind.

    Raises:
        ValueError: nobody has registered it.
    """
    if kind not in _FEATURES:
        raise ValueError(
            f"Unknown kind {kind!r}; expected one of {sorted(_FEATURES)}. Import the file that registers it "
            "(`register_feature`) first."
        )
    return _FEATURES[kind]


def feature_of(described: Any) -> Feature:
    """The feature that a dict of `meta/info.json` describes, or that a model's sense or action takes.

    Raises:
        ValueError: nobody has registered its kind.
    """
    if isinstance(described, Mapping):
        return feature_class(described["kind"])(described)
    kind = feature_class(described.kind)
    return kind(kind.describe(described))


def action_column(part: str) -> str:
    """The column of a part of the action: `action` for the one of an action of one part, else `action.<part>`."""
    return part if part == ACTION else f"{ACTION}.{part}"


def action_parts(features: Mapping[str, dict]) -> dict[str, Feature]:
    """By part of the action, what its column holds. Args: features, as in `meta/info.json`."""
    return {
        name.removeprefix(f"{ACTION}."): feature_of(described)
        for name, described in features.items()
        if name == ACTION or name.startswith(f"{ACTION}.")
    }


def task_of(observation: Mapping[str, Any], features: Mapping[str, dict]) -> str:
    """The first text of an observation that holds for the whole episode, or "".

    Args:
        observation: recorded values by sense.
        features: as in `meta/info.json`.
    """
    tasks = (value for sense, value in observation.items() if feature_of(features[f"observation.{sense}"]).is_task)
    return next(tasks, "")


def is_reserved(name: str) -> bool:
    """Whether the format keeps a name: `action.<name>`, `next.reward.<actor>` and `next.done.<actor>`."""
    return _RESERVED.fullmatch(name) is not None


def check_sense_name(name: str, remedy: str) -> None:
    """Raises ValueError for a name that no sense may have: reserved, the action's, or no word.

    Args:
        remedy: what to do, for the message.
    """
    if is_reserved(name):
        raise ValueError(
            f"{name!r} cannot name a sense: recordings reserve action.<name>, next.reward.<actor> and "
            f"next.done.<actor> for several actions and actors; {remedy}"
        )
    if name == "action":
        raise ValueError(f"'action' cannot name a sense, it is the action's own column; {remedy}")
    if not name.isidentifier():
        raise ValueError(f"{name!r} cannot name a sense (letters, digits and _ can): {remedy}")
