"""Noise on the context, against drift: in training a share of the states that predictions are made from have a few
wrong codes, as imagined states have, and the target is still the true next state.

A model that has only ever seen true states takes an object that it has itself drawn twice, or half a cell off, for a
fact, and carries it on for ever. The codes are wrong in a likely way: a cell of an image holds the code of a cell
beside it, or the code that another state of the batch has there, and vectors are a little off.

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
    """States of any leading shape, a share `context_noise` of them corrupted. Their latents become absent."""
    config = model.config
    if not config.training.context_noise:
        return state
    leading = state.tensors()[0].shape[:-1]
    flat = state.map(lambda tensor: tensor.flatten(0, len(leading) - 1))
    rows, device = len(flat.tensors()[0]), flat.tensors()[0].device
    is_corrupt = torch.rand(rows, device=device) < config.training.context_noise
    codes, latents = {}, {}
    for name, codec in model.senses.items():
        codes[name] = codec.corrupt(flat.codes[name], is_corrupt)
        if name in flat.latents:
            latents[name] = flat.latents[name].masked_fill(is_corrupt.view(-1, 1, 1), torch.nan)
    return State(codes, latents, flat.text).map(lambda tensor: tensor.unflatten(0, leading))


# ---- Training the readouts where something happens: on a square of patch tokens around a change, not on the whole
# frame.
#
# Of a frame in which a block is pushed a few cells change and the rest stands still, so a readout that is trained on
# whole frames spends nearly all of its time on learning that the background stands still. Here each transition shows
# its readouts one square of patch tokens, drawn mostly where codes change. Tokens that are drawn less often count for
# more (Horvitz and Thompson 1952), so the expected loss is that of the whole frame, and probabilities stay calibrated.
#
# Shapes: N = transitions, P = tokens of the frame, p = tokens of the square, n = codes of a level.


ANYWHERE = 0.25  # share of the squares that are drawn evenly: the background must be learned too


@dataclass
class ReadoutView:
    """What the readouts of one sense are trained on: whole frames, or a square of each.

    Args:
        sense: geometry of the frame or square.
        places `(N, p, C)`: hidden states of the tokens, see `StepLayout.split_tokens`.
        current, following: codes `(N, n)` a level.
        corner `(N, 2)`: row and column of the square's first token; None for whole frames.
        weight `(N, p)`: of each token in the losses, mean 1 in expectation; None where all count alike.
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
    """A square of `side` by `side` tokens of a whole frame, drawn for each transition by itself; the whole frame where
    that is no larger."""
    rows, columns = view.sense.token_grid
    if side >= min(rows, columns):
        return view
    changed = _num_changes(view).unflatten(1, (rows, columns))
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


def _num_changes(view: ReadoutView) -> Tensor:
    """How many codes of each token change, `(N, P)` float."""
    levels = enumerate(zip(view.current, view.following, strict=True))
    changes = ((level, (now != after) & (now >= 0) & (after >= 0)) for level, (now, after) in levels)
    counts = [group_by_token(changed.float(), view.sense, level).sum(-1) for level, changed in changes]
    return torch.stack(counts).sum(0)


def _draw_squares(changed: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Args: changed `(N, rows, columns)`. Returns: tokens of the square drawn for each row in raster order, and the
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
    # a token is seen in every square that it lies in
    grid = probability.view(count, 1, rows - side + 1, across)
    ones = torch.ones(1, 1, side, side, dtype=grid.dtype, device=grid.device)
    seen = nn.functional.conv_transpose2d(grid, ones).flatten(1)
    return index, seen.gather(1, index)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` `(N, p)` of `values` `(N, P, ...)`."""
    shape = index.shape + values.shape[2:]
    return values.gather(1, index.view(*index.shape, *[1] * (values.dim() - 2)).expand(shape))


def training_focus(config, change: dict[str, Tensor]) -> TokenSelection | None:
    """The tokens that one batch of training looks at: None is all; for a share `focus_share` of the batches, those
    that the change predictor picks at a random threshold, and some more. The true changes never decide, or being
    looked at would tell that something will change."""
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
            continue  # a number without its last digits is another number
        rows, device = len(codes[name][0]), codes[name][0].device
        is_dropped = torch.rand(rows, device=device) < config.training.block_dropout
        first = torch.randint(1, sense.num_levels, (rows,), device=device)  # the first level that is missing
        share = torch.rand(rows, 1, device=device).masked_fill(torch.rand(rows, 1, device=device) < 0.5, 1.0)
        tokens = torch.rand(rows, sense.num_state_tokens, device=device) < share
        levels = [codes[name][0]]
        for level in range(1, sense.num_levels):
            slots = group_by_token(codes[name][level], sense, level)
            is_absent = (is_dropped & (first <= level)).view(-1, 1) & tokens
            levels.append(ungroup_tokens(slots.masked_fill(is_absent.unsqueeze(-1), ABSENT), sense, level))
        codes[name] = levels
    return State(codes, state.latents, state.text)
