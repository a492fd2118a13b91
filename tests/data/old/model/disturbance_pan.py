"""Noise on the context, against drift: in training a share of the states that predictions are made from are wrong in
a few places, as imagined states are, and what is to be predicted is still what truly follows.

A model that has only ever seen true states takes an object that it has itself drawn twice, or half a cell off, for a
fact, and carries it on for ever. What is wrong here is wrong in a likely way: cells of an image hold what stands
beside them, or what another state of the batch has there, and vectors are a little off.

Shapes: N = states, n = cells of an image.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .belief_pan import State
from .senses_pan import fold_places, unfold_places

MOST_CELLS = 0.1  # of an image that are wrong in a disturbed state, at most
VECTOR_NOISE = 0.01  # standard deviation, as a share of a coordinate's range


def disturb(model, state: State) -> State:
    """A share `config.context_noise` of states of any leading shape, disturbed. Their latents become absent."""
    config = model.config
    if not config.context_noise:
        return state
    leading = state.tensors()[0].shape[:-1]
    flat = state.map(lambda tensor: tensor.flatten(0, len(leading) - 1))
    rows, device = len(flat.tensors()[0]), flat.tensors()[0].device
    is_disturbed = torch.rand(rows, device=device) < config.context_noise
    codes, latents = {}, {}
    for name, sense in config.place_senses.items():
        if sense.kind == "image":
            codes[name] = _misplaced(flat.codes[name], sense, is_disturbed)
        else:
            codes[name] = _jittered(model.senses[name], flat.codes[name], is_disturbed)
        if name in flat.latents:
            latents[name] = flat.latents[name].masked_fill(is_disturbed.view(-1, 1, 1), torch.nan)
    return State(codes, latents, flat.text).map(lambda tensor: tensor.unflatten(0, leading))


def _misplaced(levels: list[Tensor], sense, is_disturbed: Tensor) -> list[Tensor]:
    """Codes `(N, num_codes)` a level, with those of some cells, all levels of each, taken from elsewhere."""
    cells = replace(sense, place_stride=sense.level_strides[0])  # a cell is what one of the coarsest codes covers
    (rows, columns), device = cells.place_grid, is_disturbed.device
    shape = (len(is_disturbed), rows * columns)
    share = MOST_CELLS * torch.rand(shape[0], 1, device=device) * is_disturbed.unsqueeze(1)
    is_wrong = torch.rand(shape, device=device) < share
    cell, step = torch.arange(shape[1], device=device), torch.randint(-1, 2, (2, *shape), device=device)
    down, right = (cell // columns + step[0]).clamp(0, rows - 1), (cell % columns + step[1]).clamp(0, columns - 1)
    other = torch.randint(shape[0], shape, device=device)
    is_beside = torch.rand(shape, device=device) < 0.5
    frame = torch.where(is_beside, torch.arange(shape[0], device=device).unsqueeze(1), other)
    place = torch.where(is_beside, down * columns + right, cell)
    found = []
    for level, codes in enumerate(levels):
        slots = fold_places(codes, cells, level)  # (N, n, codes a cell)
        found.append(unfold_places(torch.where(is_wrong.unsqueeze(-1), slots[frame, place], slots), cells, level))
    return found


def _jittered(codec, digits: list[Tensor], is_disturbed: Tensor) -> list[Tensor]:
    """Digits of vectors that are a little off."""
    vectors = codec.decode(digits)
    low, high = (torch.tensor(bound, device=vectors.device) for bound in (codec.sense.low, codec.sense.high))
    moved = vectors + VECTOR_NOISE * (high - low) * torch.randn_like(vectors)
    found, _ = codec.encode(moved.clamp(low, high))
    return [torch.where(is_disturbed.unsqueeze(1), new, old) for new, old in zip(found, digits, strict=True)]
