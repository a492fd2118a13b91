"""What is a number in a step, told to the readouts as a number.

Codes are good at naming things and poor at arithmetic. Where a coordinate is, how it has just changed and which way a
vector action points are known exactly, so the readouts get them beside the hidden states: displacements follow nearly
linear rules (`digit_density_pan`), and a picture that is told where the vectors of its own future are agrees with
them.
"""

import torch
from torch import Tensor, nn

from .belief_pan import State

OCTAVES = 6  # the highest has a period of a thirty-second of the range


def _vectors(config) -> dict:
    return {name: sense for name, sense in config.senses.items() if sense.kind == "vector"}


def num_step_numbers(config) -> int:
    """V, the width of `step_numbers`; 0 where nothing is a number."""
    senses = sum(2 * sense.dim for sense in _vectors(config).values())
    return senses + bool(senses) + (config.action.dim if config.action.kind == "vector" else 0)


def num_readout_numbers(config, sense: str) -> int:
    """Width of `readout_numbers` of one sense."""
    told = drawn_numbers(config, sense)
    return num_step_numbers(config) + (told.stop - told.start) * (1 + 2 * OCTAVES)


def drawn_numbers(config, sense: str) -> slice:
    """Which of the `readout_numbers` of a sense say where the vectors will be, in [-1, 1]; none but for images."""
    first, is_image = num_step_numbers(config), config.senses[sense].kind == "image"
    return slice(first, first + is_image * sum(vector.dim for vector in _vectors(config).values()))


def step_numbers(model, now: State, before: State | None, action: Tensor) -> Tensor | None:
    """Every vector sense in [-1, 1], its change since the step before, whether that is known, and a vector action:
    `(N, V)` float32, or None where nothing is a number.

    Args:
        now, before: states of leading shape `(N,)`; `before` is None where no step before is remembered.
        action: `(N, ...)`.
    """
    unit = _units(model, now.codes)
    if unit is None:
        return _joined(model.config, [], action)
    change = torch.zeros_like(unit) if before is None else unit - _units(model, before.codes)
    known = torch.full_like(unit[..., :1], float(before is not None))
    return _joined(model.config, [unit, change, known], action)


def window_numbers(model, state: State, action: Tensor) -> Tensor | None:
    """`step_numbers` of all transitions of windows, each window's first without a step before. Args: state, of leading
    shape `(B, T + 1)`; action `(B, T, ...)`. Returns: `(B * T, V)` or None."""
    unit = _units(model, state.codes)
    if unit is None:
        return _joined(model.config, [], action.flatten(0, 1))
    unit = unit[:, : action.shape[1]]
    change = nn.functional.pad(unit.diff(dim=1), (0, 0, 1, 0))
    known = nn.functional.pad(torch.ones_like(unit[:, 1:, :1]), (0, 0, 1, 0))
    return _joined(model.config, [part.flatten(0, 1) for part in (unit, change, known)], action.flatten(0, 1))


def _units(model, codes: dict[str, list[Tensor]]) -> Tensor | None:
    """All vector senses side by side, in [-1, 1]: `(..., sum of dim)`, or None where there are none."""
    vectors = _vectors(model.config)
    parts = [model.senses[name].unit(codes[name])[..., : sense.dim] for name, sense in vectors.items()]
    return torch.cat(parts, -1) if parts else None


def _joined(config, parts: list[Tensor], action: Tensor) -> Tensor | None:
    """Parts and, if it is one, a vector action in [-1, 1]."""
    if config.action.kind == "vector":
        low, high = (torch.tensor(bound, device=action.device) for bound in (config.action.low, config.action.high))
        parts = [*parts, (2 * (action.float() - low) / (high - low) - 1).clamp(-1, 1)]
    return torch.cat(parts, 1) if parts else None


def readout_numbers(model, sense: str, numbers: Tensor | None, drawn: dict[str, list[Tensor]]) -> Tensor | None:
    """What the readouts of one sense are told, `(N, num_readout_numbers)`: the step's numbers, and for an image also
    where the vectors will be.

    Args:
        numbers: see `step_numbers`.
        drawn: the next state's codes `(N, n)` a level, of all vector senses as far as they are drawn.
    """
    if model.config.senses[sense].kind != "image" or not _vectors(model.config):
        return numbers
    return torch.cat([numbers, _waves(_units(model, drawn))], 1)


def _waves(unit: Tensor) -> Tensor:
    """Numbers `(..., dim)` with their sines and cosines at `OCTAVES` octaves, so that a layer can tell close ones
    apart."""
    phases = (unit.unsqueeze(-1) * torch.pi * 2.0 ** torch.arange(OCTAVES, device=unit.device)).flatten(-2)
    return torch.cat([unit, phases.sin(), phases.cos()], -1)


class Bearings(nn.Module):
    """How far each number is from each row and each column of a picture's codes.

    Where a number is a coordinate of what the picture shows, something stands where it says. That is a matter of
    differences between number and place, which layers that see both side by side learn slowly: PushT's agent was drawn
    at 15.7 dB with its position known to half a pixel. So the differences are told, as waves, to each row and each
    column; what rows and columns say is added up, and the perceptrons behind make a spot of it.

    Args:
        num_numbers (`int`): D, numbers in [-1, 1], taken for places between one border of the picture and the other.
        width (`int`): A.
    """

    def __init__(self, num_numbers: int, width: int):
        super().__init__()
        told = num_numbers * (1 + 2 * OCTAVES)
        self.rows, self.columns = nn.Linear(told, width, bias=False), nn.Linear(told, width, bias=False)

    def forward(self, numbers: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Args: numbers `(N, D)`; rows `(N or 1, R)` and columns `(N or 1, C)`, where the middles of codes are, in
        [-1, 1]. Returns: `(N, R * C, A)`."""
        dtype = self.rows.weight.dtype  # distances and waves in float32: the finest wave would be lost below it
        down = self.rows(_waves(numbers.unsqueeze(1) - rows.unsqueeze(-1)).to(dtype))  # (N, R, A)
        across = self.columns(_waves(numbers.unsqueeze(1) - columns.unsqueeze(-1)).to(dtype))  # (N, C, A)
        return (down.unsqueeze(2) + across.unsqueeze(1)).flatten(1, 2)
