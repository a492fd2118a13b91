"""The actions of a world as planners see them: one part or several by name, drawn, counted, named, and masked."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pan_hf.features import feature_class, feature_of
from pan_hf.modeling.sense_configuration_pan import ACTION
from pan_hf.modeling.state_pan import Actions, as_action

MASK = "action_mask"
"""Which actions are allowed now: a key of `info`, as in Gymnasium's Taxi, or an observation, as in PettingZoo."""


class ActionParts:
    """The parts of a world's action.

    A part is proposed by itself. Where all parts are discrete, every combination of choices has one number, and a
    search over numbers tries every combination.

    Args:
        config: of a world: `actions` by name, or one `action`.
    """

    def __init__(self, config: Any):
        self.parts: dict[str, Any] = dict(getattr(config, "actions", None) or {ACTION: config.action})
        self.is_discrete = all(feature_class(part.kind).is_discrete for part in self.parts.values())
        self._sizes = [part.num_actions for part in self.parts.values()] if self.is_discrete else []

    @property
    def num_choices(self) -> int:
        """Combinations of the choices of all parts, where all are discrete."""
        return math.prod(self._sizes)

    def join(self, parts: Mapping[str, Tensor]) -> Tensor | Actions:
        """Parts by name as the world takes them: several as [`Actions`], one as a tensor."""
        return as_action(parts)

    def split(self, actions: Tensor | Actions) -> dict[str, Tensor]:
        """The inverse of `join`."""
        return actions.parts if isinstance(actions, Actions) else {next(iter(self.parts)): actions}

    def of_numbers(self, numbers: Tensor) -> Tensor | Actions:
        """The combinations of these numbers, `(...)` int64 each part."""
        return self.join(dict(zip(self.parts, torch.unravel_index(numbers, self._sizes), strict=True)))

    def numbers(self, actions: Tensor | Actions) -> Tensor:
        """The inverse of `of_numbers`."""
        choices = iter(self.split(actions).values())
        numbers = next(choices)
        for size, choice in zip(self._sizes[1:], choices, strict=True):
            numbers = numbers * size + choice
        return numbers

    def number_of(self, name: int | str) -> int:
        """The number of a choice that is given by number or, in a world with one part, by name.

        Raises:
            ValueError: there is no such choice.
        """
        names = (getattr(next(iter(self.parts.values())), "names", None) or []) if len(self.parts) == 1 else []
        if isinstance(name, str) and name in names:
            return names.index(name)
        if isinstance(name, str) or not 0 <= name < self.num_choices:
            known = f"0..{self.num_choices - 1}" + (f", named {names}" if names else "")
            raise ValueError(f"This world has the actions {known}, got {name!r}.")
        return int(name)

    def label(self, action: Any) -> str:
        """What a person reads for an action as an environment takes it, such as "forward" or "[0.1, -0.3]"."""
        values = action if isinstance(action, Mapping) else dict.fromkeys(self.parts, action)
        texts = []
        for name, part in self.parts.items():
            value = np.asarray(values[name])
            texts.append(feature_of(part).label(value.round(3).tolist() if value.ndim else value.item()))
        return "+".join(texts)

    def stack(self, actions: Sequence[Any], device: torch.device) -> Tensor | Actions:
        """T actions as an environment takes them, as the world takes them: `(1, T, ...)`."""
        by_part = [action if isinstance(action, Mapping) else dict.fromkeys(self.parts, action) for action in actions]
        columns = {name: np.stack([action[name] for action in by_part]) for name in self.parts}
        return self.join({name: torch.as_tensor(column)[None].to(device) for name, column in columns.items()})

    def to_environment(self, action: Tensor | Actions) -> Any:
        """One action as an environment takes it: `int`, float32 `(D,)`, or a dict of these by part."""
        values = {
            name: int(value) if feature_class(self.parts[name].kind).is_discrete else value.cpu().numpy()
            for name, value in self.split(action).items()
        }
        return values[ACTION] if set(values) == {ACTION} else values

    def check_masks(self, told: Any) -> dict[str, Tensor]:
        """By part, which choices are allowed, bool `(num_actions,)`; parts that are left out may do anything.

        Args:
            told: as an environment gives it, of an action of one part; these by part; or None.

        Raises:
            ValueError: a mask does not fit its part, allows nothing, or is of a part that is not discrete.
        """
        by_part = told if isinstance(told, Mapping) else {next(iter(self.parts)): told}
        if unknown := sorted(set(by_part) - set(self.parts)):
            raise ValueError(f"A mask is of some of the parts {list(self.parts)}, got {unknown}.")
        masks = {}
        for name, mask in by_part.items():
            if mask is None:
                continue
            try:
                masks[name] = torch.as_tensor(feature_of(self.parts[name]).mask(mask))
            except ValueError as error:
                raise ValueError(f"The mask of {name!r} does not fit: {error}") from error
            if not masks[name].any():
                raise ValueError(f"The mask of {name!r} allows no action, so there is nothing to plan.")
        return masks

    def allows(self, masks: Mapping[str, Tensor], actions: Tensor | Actions) -> Tensor:
        """Which actions `(...)` the masks allow in every part, bool `(...)`. There is a mask at least."""
        parts = self.split(actions)
        return torch.stack([mask[parts[name].cpu()] for name, mask in masks.items()]).all(0)

    def redrawn(
        self, drawn: Mapping[str, Tensor], masks: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """Actions `(N, ...)` by part in which choices that the masks forbid are replaced by random ones they allow."""
        result = dict(drawn)
        for name, mask in masks.items():
            others = torch.multinomial(mask.float(), len(drawn[name]), replacement=True, generator=generator)
            result[name] = torch.where(mask[drawn[name]], drawn[name], others)
        return result

    def predicts_mask(self, config: Any) -> bool:
        """Whether the world has the mask as a sense, so that it is known in imagined states too."""
        sense = getattr(config, "senses", {}).get(MASK)
        return self.is_discrete and sense is not None and tuple(sense.shape) == (self.num_choices,)


def find_mask(observation: Mapping[str, Any]) -> Any:
    """The mask of allowed actions that an observation gives; None where it gives none."""
    return observation.get(MASK)
