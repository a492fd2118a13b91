"""What the latent head learns from: latents that hold what the *chosen* codes lack.

Where a world is deterministic (level 0 is drawn in parallel) a code that is not the true one is a mistake, and latents
given the true codes say nothing of it. So the head learns on imagination: the model goes some steps by itself, taking
the most likely codes, and the latents are those that come from its codes to what was truly seen. Where futures branch,
a code that was drawn otherwise is another future, and latents must not pull it back: there the codes are the true
ones.

Shapes: B = windows, H = steps imagined, N = B * H.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .belief_pan import State
from .image_codec_pan import LEAST_ERROR
from .switch_objective_pan import split_window

CARRIED = 0.05  # share of the examples in which no code is predicted, so that latents alone tell what happens


def mends(config) -> bool:
    """Whether latents make up for codes that are not the true ones."""
    return config.level0_sampling == "parallel"


def latents_given(model, frames: dict[str, Tensor], state: State) -> dict[str, Tensor]:
    """The latents with which codes come to frames `(N, ...)`, by sense that has a latent head: `(N, P, D)`."""
    return {name: model.senses[name].latents_given(frames[name], state.codes[name]) for name in model.latent_heads}


@dataclass
class LatentExamples:
    """What latent heads learn from, by sense: conditions `(N, P, C)`, and what latents are before the head corrects
    them, `(N, P, D)` (see `PanModel.latent_start`); the latents they should lead to, `(N, P, D)`; and the codes that
    these are given and the frames they come to, `(N, ...)`."""

    condition: dict[str, Tensor]
    start: dict[str, Tensor]
    latents: dict[str, Tensor]
    codes: dict[str, list[Tensor]]
    frames: dict[str, Tensor]

    @staticmethod
    def cat(parts: list[LatentExamples]) -> LatentExamples:
        """All of several."""

        def joined(values: list):
            if isinstance(values[0], Tensor):
                return torch.cat(values)
            if isinstance(values[0], list):
                return [joined(list(level)) for level in zip(*values, strict=True)]
            return {name: joined([value[name] for value in values]) for name in values[0]}

        names = [each.name for each in fields(LatentExamples)]
        return LatentExamples(*(joined([getattr(part, name) for part in parts]) for name in names))


@torch.no_grad()
def latent_examples(model, observation: dict[str, Tensor], action: Tensor) -> LatentExamples:
    """Imagines from the beginning of windows, and tells what latents would have had to add.

    Args: observation `(B, context_steps + H, ...)`, constant text `(B, max_length)`; action, those between its frames.
    """
    nothing = torch.zeros(action.shape[:2], device=action.device)
    belief, actions, later = split_window(model, observation, action, nothing, nothing)
    tables, found = model.code_tables(), []
    for index in range(actions.shape[1]):
        true = later.state.map(lambda tensor, i=index: tensor[:, i])
        now = belief.state
        target = None if mends(model.config) else true
        given = {"temperature": 0.0, "target": target, "tables": tables, "keeps_shifts": True}
        step, belief = model._advance(belief, actions[:, index], **given)
        codes, shifts = (step.state, step.shifts) if target is not None else _partly_carried(step, now)
        condition = {
            name: model.latent_condition(name, step.hidden, step.trunk, codes, tables, shifts.get(name))
            for name in model.latent_heads
        }
        start = {name: model.latent_start(name, told, codes.codes[name]) for name, told in condition.items()}
        frames = {name: later.observation[name][:, index] for name in model.latent_heads}
        latents = latents_given(model, frames, codes)
        found.append(LatentExamples(condition, start, latents, {name: codes.codes[name] for name in frames}, frames))
    return LatentExamples.cat(found)


@torch.no_grad()
def judge_latents(model, observation: dict[str, Tensor], action: Tensor) -> None:
    """Notes, for each image sense, whether what is imagined comes closer to what was seen with latents than by codes
    alone: in decibels, frame by frame, with what moves counted as much as in training. Where codes say everything, the
    noise that latents bear is all that they add, and is not made up for by a few frames with a great error that they
    make a little smaller.

    Args: as for `latent_examples`.
    """
    nothing = torch.zeros(action.shape[:2], device=action.device)
    belief, actions, later = split_window(model, observation, action, nothing, nothing)
    futures = model.simulate(belief, actions, temperature=0.0, seed=0)
    for name in model.latent_heads:
        if model.config.senses[name].kind != "image":
            continue
        codec, seen = model.senses[name], later.observation[name].flatten(0, 1)
        weight = 1 + model.config.motion_weight * codec.differing(seen, later.before[name].flatten(0, 1))
        errors = []
        for latents in (True, False):
            found = codec.to_float(futures.decode(name, latents=latents).flatten(0, 1))
            error = (weight * (found - codec.to_float(seen)).square()).flatten(1).mean(1)
            errors.append((error + LEAST_ERROR).log().mean())
        codec.latents_help.fill_(bool(errors[0] < errors[1]))


def _partly_carried(step, now: State) -> tuple[State, dict[str, list[Tensor]]]:
    """The state `(B,)` of a step, in some rows as it was before; and its shifts, none there."""
    first = now.tensors()[0]
    stays = torch.rand(len(first), 1, device=first.device) < CARRIED

    def mixed(levels: list[Tensor], before: list[Tensor]) -> list[Tensor]:
        return [torch.where(stays, old, new) for new, old in zip(levels, before, strict=True)]

    codes = {name: mixed(levels, now.codes[name]) for name, levels in step.state.codes.items()}
    shifts = {name: [part * ~stays.unsqueeze(-1) for part in levels] for name, levels in step.shifts.items()}
    return State(codes, {}, step.state.text), shifts
