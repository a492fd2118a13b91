"""What the latent head learns from: latents that hold what the *chosen* codes lack.

Latents given the true codes say nothing of a code that is wrong. So where a world is deterministic (`latents_pan`)
the head learns on imagination: the model goes some steps by itself, taking the most likely codes, and the latents are
those that come from its codes to what was truly seen. Where futures branch, the codes are the true ones.

Shapes: B = windows, H = steps imagined, N = B * H.
"""

from operator import itemgetter

import torch
from torch import Tensor

from .belief_pan import State
from .image_codec_pan import LEAST_ERROR
from .latents_pan import mends
from .switch_objective_pan import split_window

CARRIED = 0.05  # share of the examples in which no code is predicted, so that latents alone tell what happens


def latents_given(model, frames: dict[str, Tensor], state: State) -> dict[str, Tensor]:
    """The latents with which codes come to frames `(N, ...)`, by sense that has a latent head: `(N, P, D)`."""
    return {name: model.senses[name].latents_given(frames[name], state.codes[name]) for name in model.latent_heads}


@torch.no_grad()
def latent_examples(model, observation: dict[str, Tensor], action: Tensor) -> list[dict]:
    """Imagines from the beginning of windows: what latent heads learn from, a batch of B for each of H steps.

    Args: observation `(B, context_steps + H, ...)`, constant text `(B, max_length)`; action, those between its frames.

    Returns: what objective `latent_head` takes, each by sense: `condition` `(B, P, C)`; `observation`, the frames to
        come to; `state`, the `latents` that lead there `(B, P, D)`, the `codes` they are given, and their `start` (see
        `PanModel.latent_start`).
    """
    nothing = torch.zeros(action.shape[:2], device=action.device)
    belief, actions, later = split_window(model, observation, action, nothing, nothing)
    tables, examples = model.code_tables(), []
    for index in range(actions.shape[1]):
        true = later.state.map(itemgetter((slice(None), index)))
        now, target = belief.state, None if mends(model.config) else true
        given = {"temperature": 0.0, "target": target, "tables": tables, "keeps_shifts": True}
        step, belief = model._advance(belief, actions[:, index], **given)
        state, shifts = (step.state, step.shifts) if target is not None else _partly_carried(step, now)
        frames, conditions, starts = {}, {}, {}
        for name in model.latent_heads:
            told = (step.hidden, step.trunk, state, tables, shifts.get(name))
            conditions[name] = model.latent_condition(name, *told)
            starts[name] = model.latent_start(name, conditions[name], state.codes[name])
            frames[name] = later.observation[name][:, index]
        coded = {"latents": latents_given(model, frames, state), "start": starts}
        coded["codes"] = {name: state.codes[name] for name in frames}
        examples.append({"condition": conditions, "observation": frames, "state": coded})
    return examples


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
