"""Noise on the context, against drift: in training a share of the states that predictions are made from are wrong in
a few places, as imagined states are, and what is to be predicted is still what truly follows.

A model that has only ever seen true states takes an object that it has itself drawn twice, or half a cell off, for a
fact, and carries it on for ever. What is wrong here is wrong in a likely way: cells of an image hold what stands
beside them, or what another state of the batch has there, and vectors are a little off.

Shapes: N = states, n = cells of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .effort_pan import likely_changes
from .layout_pan import TokenSelection, group_by_token, ungroup_tokens
from .state_pan import ABSENT, State


def corrupt_context(model, state: State) -> State:
    """A share `context_noise` of states of any leading shape, disturbed. Their latents become absent."""
    config = model.config
    if not config.training.context_noise:
        return state
    leading = state.tensors()[0].shape[:-1]
    flat = state.map(lambda tensor: tensor.flatten(0, len(leading) - 1))
    rows, device = len(flat.tensors()[0]), flat.tensors()[0].device
    is_disturbed = torch.rand(rows, device=device) < config.training.context_noise
    codes, latents = {}, {}
    for name, codec in model.senses.items():
        codes[name] = codec.corrupt(flat.codes[name], is_disturbed)
        if name in flat.latents:
            latents[name] = flat.latents[name].masked_fill(is_disturbed.view(-1, 1, 1), torch.nan)
    return State(codes, latents, flat.text).map(lambda tensor: tensor.unflatten(0, leading))


# ---- Training the readouts where something happens: on a square of places around what changes, not on the whole
# frame.
#
# Of a frame in which a block is pushed a few cells change and the rest stands still, so a readout that is trained on
# whole frames spends nearly all of its time on learning that what stands still stands still. Here each transition
# shows its readouts one square of places, drawn mostly where codes change. What is drawn less often counts for more
# (Horvitz and Thompson 1952), so the expected loss is that of the whole frame, and probabilities stay calibrated.
#
# Shapes: N = transitions, P = places of the frame, p = places of the square, n = codes of a level.


ANYWHERE = 0.25  # share of the squares that are drawn without a look at what changes


@dataclass
class ReadoutView:
    """What the readouts of one sense are trained on.

    Args:
        sense: geometry of what is shown; the sense itself, or one the size of the square.
        places `(N, p, C)`: see `StepLayout.split_tokens`.
        current, following: codes `(N, n)` a level.
        corner `(N, 2)`: row and column of the first place that is shown; None where that is the first of the frame.
        weight `(N, p)`: of each place in the losses, mean 1 in expectation; None where all count alike.
    """

    sense: Any
    places: Tensor
    current: list[Tensor]
    following: list[Tensor]
    corner: Tensor | None = None
    weight: Tensor | None = None

    def code_weight(self, level: int) -> Tensor | None:
        """`weight` by code of a level, `(N, n)`."""
        if self.weight is None:
            return None
        slots = self.weight.unsqueeze(-1).expand(-1, -1, self.sense.codes_per_token[level])
        return ungroup_tokens(slots, self.sense, level)


def crop(view: ReadoutView, side: int) -> ReadoutView:
    """A square of `side` by `side` places of a whole frame, drawn for each transition by itself; the whole frame where
    that is no larger."""
    rows, columns = view.sense.token_grid
    if side >= min(rows, columns):
        return view
    changed = _changed_places(view).unflatten(1, (rows, columns))
    index, chance = _draw_squares(changed, side)
    sense = view.sense.crop(side, side)

    def cut(codes: Tensor, level: int) -> Tensor:
        slots = group_by_token(codes, view.sense, level)
        return ungroup_tokens(_at(slots, index), sense, level)

    return ReadoutView(
        sense=sense,
        places=_at(view.places, index),
        current=[cut(codes, level) for level, codes in enumerate(view.current)],
        following=[cut(codes, level) for level, codes in enumerate(view.following)],
        corner=torch.stack([index[:, 0] // columns, index[:, 0] % columns], 1),
        weight=side**2 / (rows * columns) / chance * (1.0 if view.weight is None else _at(view.weight, index)),
    )


def _changed_places(view: ReadoutView) -> Tensor:
    """How many codes of each place change, `(N, P)` float."""
    counts: Tensor = 0.0  # type: ignore[assignment]  # one level at least is added
    for level, (now, after) in enumerate(zip(view.current, view.following, strict=True)):
        counts = counts + group_by_token(((now != after) & (now >= 0) & (after >= 0)).float(), view.sense, level).sum(
            -1
        )
    return counts


def _draw_squares(changed: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Args: changed `(N, rows, columns)`. Returns: places of the square drawn for each row in raster order, and the
    chance with which each of them was to be seen: both `(N, side * side)`."""
    count, rows, columns = changed.shape
    inside = nn.functional.avg_pool2d(changed.unsqueeze(1), side, 1).flatten(1)  # (N, squares)
    even = torch.full_like(inside, 1 / inside.shape[1])
    total = inside.sum(1, keepdim=True)
    drawn_for_change = torch.where(total > 0, inside / total.clamp(min=1e-12), even)
    probability = (1 - ANYWHERE) * drawn_for_change + ANYWHERE * even
    square = torch.multinomial(probability, 1)
    across = columns - side + 1
    first = square // across * columns + square % across
    span = torch.arange(side, device=changed.device)
    index = first + (span.unsqueeze(1) * columns + span).flatten()
    # a place is seen in every square that it lies in
    grid = probability.view(count, 1, rows - side + 1, across)
    ones = torch.ones(1, 1, side, side, dtype=grid.dtype, device=grid.device)
    seen = nn.functional.conv_transpose2d(grid, ones).flatten(1)
    return index, seen.gather(1, index)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` `(N, p)` of `values` `(N, P, ...)`."""
    shape = index.shape + values.shape[2:]
    return values.gather(1, index.view(*index.shape, *[1] * (values.dim() - 2)).expand(shape))


def training_focus(config, change: dict[str, Tensor]) -> TokenSelection | None:
    """What one batch of training looks at: everything, or, for a share `focus_share` of the batches, what the
    glance picks at a random threshold, and some more. It never depends on what did change, or being looked at would
    tell that something will."""
    if not change or torch.rand(()) >= config.training.focus_share:
        return None
    least = 10 ** float(torch.empty(()).uniform_(-2.3, -0.7))
    return likely_changes(config, {name: logits.detach() for name, logits in change.items()}, least, extra=0.05)


def nested_dropout(state: State, config) -> State:
    """Nested dropout (Rippel et al. 2014): of a share `block_dropout` of the rows, the finer levels of images
    are made absent from a random level on, everywhere or at random codes; so that any prefix of blocks is a state
    that the model can go on from. Args: state, of leading shape `(N,)`."""
    codes = dict(state.codes)
    for name, sense in config.coded_senses.items():
        if sense.has_digits or sense.num_levels < 2 or not config.training.block_dropout:
            continue  # without its last digits a number is another number
        rows, device = len(codes[name][0]), codes[name][0].device
        is_dropped = torch.rand(rows, device=device) < config.training.block_dropout
        first = torch.randint(1, sense.num_levels, (rows,), device=device)  # the first level that is missing
        share = torch.rand(rows, 1, device=device).masked_fill(torch.rand(rows, 1, device=device) < 0.5, 1.0)
        places = torch.rand(rows, sense.num_state_tokens, device=device) < share
        levels = [codes[name][0]]
        for level in range(1, sense.num_levels):
            slots = group_by_token(codes[name][level], sense, level)
            gone = (is_dropped & (first <= level)).view(-1, 1) & places
            levels.append(ungroup_tokens(slots.masked_fill(gone.unsqueeze(-1), ABSENT), sense, level))
        codes[name] = levels
    return State(codes, state.latents, state.text)
