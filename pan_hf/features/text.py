"""Texts: a mission that holds for a whole episode, words that change from step to step, actions that are said."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pan_hf.features.base import ActionForm, Feature, Form, Measures, View, register_feature

if TYPE_CHECKING:
    from gymnasium import spaces
    from torch import Tensor

LONGEST_TEXT = 64  # tokens that a model is given room for, unless it is told otherwise


@register_feature
class TextFeature(Feature):
    """`{"kind": "text", "every_step": bool}`; an action is `{"kind": "text"}`."""

    kind = "text"
    bare_name = "text"
    is_text = True
    card_fields = ()

    @classmethod
    def describe(cls, part: Any) -> dict[str, Any]:
        return {"kind": cls.kind, "every_step": getattr(part, "every_step", True)}

    # ---- From an environment or a table

    @classmethod
    def from_space(cls, space: spaces.Space, view: View) -> Form | None:
        from gymnasium.spaces import Text

        if not (_is_mission(space) or isinstance(space, Text)):
            return None

        def convert(value: Any) -> str:
            if not isinstance(value, str):
                raise ValueError(f"expected a string ({space}), got {type(value).__name__} {value!r}")
            return value

        return Form({"kind": cls.kind, "every_step": not _is_mission(space)}, convert)

    @classmethod
    def from_value(cls, value: Any, view: View) -> Form | None:
        return Form({"kind": cls.kind, "every_step": True}, str) if isinstance(value, str) else None

    @classmethod
    def action_from_space(cls, space: spaces.Space) -> ActionForm | None:
        from gymnasium.spaces import Text

        return Words(space) if isinstance(space, Text) else None

    @classmethod
    def action_from_value(cls, value: Any, largest: Callable[[], int]) -> Form | None:
        return Form({"kind": cls.kind}, str) if isinstance(value, str) else None

    def space(self) -> spaces.Space:
        from gymnasium.spaces import Text

        return Text(4096)

    # ---- To and from parquet

    def column_type(self) -> Any:
        import datasets

        return datasets.Value("string")

    def blank(self) -> str:
        return ""

    def read(self, column: pa.ChunkedArray) -> np.ndarray:
        self._check_type(column, pa.types.is_string(column.type))
        return np.array(column.to_pylist(), dtype=np.str_)

    @property
    def is_task(self) -> bool:
        return not self.description.get("every_step", True)

    # ---- To a model

    def make_sense(self, name: str, values: np.ndarray, episode: np.ndarray, tokenizer: Any, options: dict) -> Any:
        from pan_hf.modeling import TextSense

        # what is heard at some steps alone changes, even where it is always the same words
        changes = self.is_optional or bool(((episode[1:] == episode[:-1]) & (values[1:] != values[:-1])).any())
        room = _room(f"Sense {name!r}", name, values, tokenizer, options, has_spare=changes)
        return TextSense(**({"max_length": room, "every_step": changes} | options))

    def make_action(self, values: np.ndarray, tokenizer: Any, options: dict) -> Any:
        from pan_hf.modeling import TextAction

        return TextAction(**({"max_length": _room("The action", "action", values, tokenizer, options)} | options))

    def to_processor(self, values: np.ndarray) -> list:
        return values.tolist()

    def texts(self, values: np.ndarray) -> list[str]:
        return np.unique(values).tolist()

    @classmethod
    def sequence(cls, name: str, part: Any, values: Sequence[str]) -> Any:
        return values[-1] if cls(cls.describe(part)).is_task else [list(values)]

    def check_sense(self, name: str, sense: Any, values: np.ndarray, processor: Any) -> None:
        processor(observation={name: self.texts(values)}, partial=True)

    def check_action(self, action: Any, values: np.ndarray, processor: Any) -> None:
        processor(action=self.texts(values))

    def is_playable(self, action: Feature) -> bool:
        return True

    # ---- Compared, as ids (n, length)

    def reference(self, sense: Any, values: np.ndarray, pad_token_id: int) -> int:
        return pad_token_id

    def measures(self, predicted: Tensor, true: Tensor, last_seen: Tensor, reference: int) -> Measures:
        from pan_hf import metrics

        return {"token_accuracy": metrics.token_accuracy(predicted, true, reference)}

    def error(self, predicted: Tensor, true: Tensor) -> Tensor:
        return (predicted != true).double().mean(1)

    # ---- Shown

    @classmethod
    def blank_sense(cls, config: Mapping[str, Any]) -> str:
        return '"say what is wanted here"'

    @classmethod
    def blank_actions(cls, config: Mapping[str, Any]) -> str:
        return 'processor(action=[["go"] * 5])["action"]'

    # ---- Mirrored: texts stay as they are

    def needs_mirror_rule(self, has_swaps: bool) -> bool:
        return False


def _is_mission(space: spaces.Space) -> bool:
    """MiniGrid's missions are drawn once an episode: text that does not change from step to step."""
    return any(kind.__name__ == "MissionSpace" for kind in type(space).__mro__)


def _room(what: str, name: str, values: np.ndarray, tokenizer: Any, options: dict, has_spare: bool = False) -> int:
    """Tokens that a model is given for each of the texts: those of the longest, and a quarter more where texts change
    from step to step, since one that was not recorded may be longer. Warns of texts that `clip` cuts.

    Raises:
        ValueError: the longest has more than `LONGEST_TEXT`, or than `options` give, and none of them says to cut it.
    """
    texts = np.unique(values).tolist()
    lengths = [len(ids) for ids in tokenizer.text_ids(texts)]
    longest, most = max(lengths), options.get("max_length", LONGEST_TEXT)
    room = longest + (max(2, longest // 4) if has_spare else 0)
    if longest > most and not options.get("clip"):
        text = textwrap.shorten(texts[lengths.index(longest)], 80)
        raise ValueError(
            f"{what}: {text!r} is {longest} tokens long, expected at most {most}. Build the model with "
            f"max_length={room} (`--sense {name}.max_length={room}`), or with clip=True "
            f"(`--sense {name}.clip=true`), which cuts longer texts."
        )
    if longest > most:
        num_cut = sum(length > most for length in lengths)
        warnings.warn(
            f"{what}: {num_cut} of {len(texts)} texts have more than {most} tokens and are cut", stacklevel=3
        )
    return max(1, min(most, room))


class Words(ActionForm):
    """Actions that are said."""

    def __init__(self, space: spaces.Space):
        self.raw_space = self.space = space
        self.feature = {"kind": TextFeature.kind}

    def check(self, action: Any) -> str:
        if not isinstance(action, str) or not self.raw_space.contains(action):
            raise ValueError(f"Expected a text action within {self.raw_space}, got {action!r}")
        return action

    def to_environment(self, action: str) -> str:
        return str(action)
