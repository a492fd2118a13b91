"""Training on imagination: a window is split into its beginning and the true steps after it, and steps are imagined.

From these come the examples of the latent heads, and the losses of the switch (section 5.3).

Shapes: B = windows, G = rollouts of each, H = steps imagined, N = B * G or B * H, K = blocks, P = state tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .blocks_pan import StepDraft
from .effort_pan import LEAST_PRICE, MOST_PRICE, TASKS, Effort, SwitchInput, SwitchPlan
from .embedding_pan import shared_mean
from .image_codec_pan import LEAST_ERROR
from .latent_head_pan import SenseLatents, reconstructs_latents
from .simulation_pan import Futures, Simulator
from .state_pan import Actions, Belief, Observation, State, as_action
from .step_pan import StepPredictor, Transition

if TYPE_CHECKING:
    from .modeling_pan import PanModel


@dataclass
class Later:
    """The true steps after the beginning of a window, `(B, H, ...)` each.

    Args:
        observation: true frames by sense; state: the same encoded; before: the frames that the steps start from.
        reward, done: of the transitions.
    """

    observation: Observation
    before: Observation
    state: State
    reward: Tensor
    done: Tensor

    def repeat(self, count: int) -> Later:
        """Each row `count` times, one after the other."""

        def again(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(count, 0)

        rows = torch.arange(len(self.reward)).repeat_interleave(count)
        return Later(
            self.observation.rows(rows),
            self.before.rows(rows),
            self.state.map(again),
            again(self.reward),
            again(self.done),
        )


def split_window(
    model: PanModel,
    observation: Mapping[str, Tensor],
    action: Tensor | Actions,
    reward: Tensor | None = None,
    done: Tensor | None = None,
) -> tuple[Belief, Tensor | Actions, Later]:
    """A window as the belief after its first `context_steps` frames, the actions from there on, and the true steps
    after it; rewards and ends are zero if they are not given."""
    observation, action = Observation(observation, model.config.prefix_senses), as_action(action)
    seen, end = model.config.context_steps, action.shape[1]
    zeros = torch.zeros(action.shape[:2], device=action.device)
    reward, done = (zeros if each is None else each for each in (reward, done))
    belief = model.perceive(observation.frames(0, seen), action[:, : seen - 1])
    after = observation.changing.frames(seen, end + 1)
    later = Later(
        observation=after,
        before=observation.changing.frames(seen - 1, end),
        state=model.encode(after),
        reward=reward[:, seen - 1 : end],
        done=done[:, seen - 1 : end],
    )
    return belief, action[:, seen - 1 : end], later


# ---- Examples for the latent head: latents that hold what the *chosen* codes lack.
#
# Latents that go with the true codes say nothing of a code that is wrong. So where a world is deterministic
# (`latent_head_pan`) the head learns on imagination: the model goes some steps by itself, taking the most likely
# codes, and the latents are those that come from its codes to the true frames. Where futures branch, the codes are the
# true ones.


CARRIED = 0.05  # share of the examples in which no code is predicted, so that latents alone tell what happens


def latents_given(model: PanModel, frames: dict[str, Tensor], state: State) -> dict[str, Tensor]:
    """The latents with which codes come to frames `(N, ...)`, by sense that has a latent head: `(N, P, D)`."""
    return {name: model.senses[name].latents_given(frames[name], state.codes[name]) for name in model.latent_heads}


@torch.no_grad()
def latent_examples(model: PanModel, observation: Mapping[str, Tensor], action: Tensor | Actions) -> list[dict]:
    """Imagines from the beginning of windows: the examples of latent heads, a batch of B for each of H steps.

    Args: observation `(B, context_steps + H, ...)`, constant text `(B, max_length)`; action, those between its frames.

    Returns: the inputs of objective `latent_head`, each by sense: `condition` `(B, P, C)`; `observation`, the frames
        to come to; `state`, the `latents` that lead there `(B, P, D)`, the `codes` they go with, and their `start`
        (see `SenseLatents.start`).
    """
    belief, actions, later = split_window(model, observation, action)
    predictor, examples = StepPredictor(model, temperature=0.0), []
    for index in range(actions.shape[1]):
        true = later.state.map(itemgetter((slice(None), index)))
        now, target = belief.state, None if reconstructs_latents(model.config) else true
        step = predictor.step(belief, actions[:, index], target, has_outcome=False)
        belief = step.belief
        state, shifts = (step.state, step.shifts) if target is not None else _partly_carried(step, now)
        frames, conditions, starts = {}, {}, {}
        for name in model.latent_heads:
            latents = SenseLatents(model, name)
            conditions[name] = latents.condition(step.hidden, step.trunk, state, predictor.tables, shifts.get(name))
            starts[name] = latents.start(conditions[name], state.codes[name])
            frames[name] = later.observation[name][:, index]
        coded: dict = {"latents": latents_given(model, frames, state), "start": starts}
        coded["codes"] = {name: state.codes[name] for name in frames}
        masks = {name: later.observation.present(name) for name in frames}
        if present := {name: mask[:, index] for name, mask in masks.items() if mask is not None}:
            coded["present"] = present
        examples.append({"condition": conditions, "observation": frames, "state": coded})
    return examples


@torch.no_grad()
def update_latents_help(model: PanModel, observation: Mapping[str, Tensor], action: Tensor | Actions) -> None:
    """Notes, for each image sense, whether imagined frames come closer to the true ones with latents than by codes
    alone: in decibels, frame by frame, with moving pixels counted as much as in training. Where codes say everything,
    latents add their noise alone, and a few frames with a great error that they make a little smaller are no gain.

    Args: as for `latent_examples`.
    """
    belief, actions, later = split_window(model, observation, action)
    futures = model.simulate(belief, actions, temperature=0.0, seed=0)
    for name in model.latent_heads:
        if model.senses[name].is_exact:
            continue
        codec, seen = model.senses[name], later.observation[name].flatten(0, 1)
        moves = codec.differing(seen, later.before[name].flatten(0, 1))  # type: ignore[operator]  # none is exact
        weight = 1 + model.config.training.motion_weight * moves
        errors, is_present = [], later.state.present(name).flatten()
        for latents in (True, False):
            imagined = codec.to_float(futures.decode(name, latents=latents).flatten(0, 1))
            error = (weight * (imagined - codec.to_float(seen)).square()).flatten(1).mean(1)
            errors.append((error[is_present] + LEAST_ERROR).log().mean())
        assert isinstance(codec.latents_help, Tensor)  # a buffer, unless the codec is exact
        codec.latents_help.fill_(bool(errors[0] < errors[1]))


def _partly_carried(step: Transition, now: State) -> tuple[State, dict[str, list[Tensor]]]:
    """The state `(B,)` of a step, in some rows as it was before; and its shifts, none there."""
    first = now.tensors()[0]
    stays = torch.rand(len(first), 1, device=first.device) < CARRIED

    def mixed(levels: list[Tensor], before: list[Tensor]) -> list[Tensor]:
        return [torch.where(stays, old, new) for new, old in zip(levels, before, strict=True)]

    codes = {name: mixed(levels, now.codes[name]) for name, levels in step.state.codes.items()}
    shifts = {name: [part * ~stays.unsqueeze(-1) for part in levels] for name, levels in step.shifts.items()}
    return State(codes, {}, step.state.text), shifts


# ---- Training of the switch: by example first, then by group-relative policy gradient.
#
# The error of a step is its *distortion*, by task; its cost is its share of a whole step's compute times a price.
# Blocks are discrete choices, so no gradient goes through them. The warm-up knows the cost of every candidate set of
# blocks that is kept for some steps, and makes the expected cost least. The policy gradient compares several rollouts
# of the same beginning with one another (Shao et al. 2024, GRPO), with no value network. Only the switch learns; tasks
# and prices are drawn at random.


GROUP = 8  # rollouts of the same beginning that are compared
MOST_CANDIDATES = 12  # sets of blocks that the warm-up chooses among
CACHED = ("trunk", "queries", "chosen", "changed", "focus")  # fields of `SwitchInput` but price and task
ENTROPY_WEIGHT = 0.003  # keeps choices open that have not been tried enough
LEAST_MOVE = 1e-3  # squared error of standing still, as a share of the range, from which on a pixel moves
LEAST_STILL = 1e-6  # least mean squared error of standing still that is divided by
MOST_DISTORTION = 2.0  # of what moves in a row: twice that of standing still


@torch.no_grad()
def distortion(model: PanModel, futures: Futures, later: Later, task: str) -> Tensor:
    """The distortion of imagined steps, `(N, H)`, by task; 1 is about as bad as standing still.

    `pixels`: squared error of every sense, over that of standing still in the batch. `moving`: the same of the pixels
    that do move, row by row. `outcome`: error of reward and continuation. `planning`: the share of each sense's levels
    that are not all right, and the outcome; a plan goes on from the states it reaches, and an error in one is an error
    in all behind it, however long the plan is.
    """
    missed = (futures.reward - later.reward).abs()
    missed = missed.mean(2) if model.config.actors else missed
    outcome = missed + (futures.continue_prob - (1 - later.done)).abs()
    if task == "outcome":
        return outcome
    if task == "planning" or not model.config.coded_senses:  # words alone have no distance: they are right or wrong
        pairs = zip(futures.state.tensors(), later.state.tensors(), strict=True)
        # an absent code is nothing that could be predicted
        wrong = [((imagined != true) & (true >= 0)).any(-1) for imagined, true in pairs]
        return torch.stack(wrong).float().mean(0) + (outcome if task == "planning" else 0.0)
    parts = [_observation_error(model, name, futures, later, task == "moving") for name in model.senses]
    return torch.stack(parts).mean(0)


def _observation_error(model: PanModel, name: str, futures: Futures, later: Later, is_moving: bool) -> Tensor:
    codec = model.senses[name]
    true, is_present = later.observation[name], later.state.present(name).unsqueeze(2)
    others = futures.decode(name), later.before[name]
    error, still = (is_present * codec.squared_shares(other, true) for other in others)
    if not is_moving or codec.sense.num_scalars:  # numbers move, or stand still, together
        error, still = error.mean(2), still.mean(2)
        return error / still.mean().clamp(min=LEAST_STILL)
    moves = still > LEAST_MOVE
    per_row = (still * moves).sum(2)
    usual = per_row.sum() / (per_row > 0).sum().clamp(min=1)
    where = moves | (per_row == 0).unsqueeze(2)  # where nothing moves, nothing should
    against = torch.where(per_row > 0, per_row, usual.clamp(min=LEAST_STILL))
    return ((error * where).sum(2) / against).clamp(max=MOST_DISTORTION)


def candidates(model: PanModel) -> list[tuple[str, ...]]:
    """Sets of blocks to choose among: every prefix of every sense, combined; where these are too many, every prefix of
    all blocks in their order."""
    by_sense: dict[str, list[str]] = {}
    for block in model.blocks:
        by_sense.setdefault(block.sense, []).append(block.name)
    prefixes = [[names[:count] for count in range(len(names) + 1)] for names in by_sense.values()]
    if math.prod(map(len, prefixes)) <= MOST_CANDIDATES:
        return [tuple(itertools.chain.from_iterable(chosen)) for chosen in itertools.product(*prefixes)]
    names = [block.name for block in model.blocks]
    return [tuple(names[:count]) for count in range(len(names) + 1)]


def _drawn_effort() -> Effort:
    price = math.exp(float(torch.empty(()).uniform_(math.log(LEAST_PRICE), math.log(MOST_PRICE))))
    return Effort(price=price, task=TASKS[int(torch.randint(len(TASKS), ()))])


class RecordedPlan(SwitchPlan):
    """A plan that notes every choice, sampled from the switch or fixed.

    Args:
        effort ([`Effort`]): whose price and task the switch gets.
        follows (names of blocks, *optional*): the blocks to choose, whatever the switch says.

    Attributes:
        decisions: by step, a list of the inputs of the switch, the rows `(n,)` and their choices `(n,)`.
    """

    def __init__(self, effort: Effort, follows: Collection[str] | None = None):
        super().__init__(effort)
        self.follows = follows
        self.decisions: list = []

    def begin(self, draft: StepDraft) -> None:
        super().begin(draft)
        self.decisions.append([])

    def choose(self, number: int, rows: Tensor | None, draft: StepDraft) -> Tensor:
        inputs, blocks = self.inputs(rows, draft), draft.model.blocks
        if self.follows is None:
            share = draft.model.switch(inputs).softmax(-1)
            choice = torch.multinomial(share, 1, generator=draft.generator).squeeze(1)
        else:
            following = (k for k, block in enumerate(blocks) if k > number and block.name in self.follows)
            choice = torch.full_like(inputs.task, next(following, len(blocks)))
        rows = torch.arange(draft.num_rows, device=choice.device) if rows is None else rows
        self.decisions[-1].append((inputs, rows, choice))
        return choice


@torch.no_grad()
def imagine(
    model: PanModel, beginning: Belief, actions: Tensor | Actions, effort: Effort, blocks: tuple[str, ...] | None
) -> tuple[Futures, RecordedPlan]:
    """Imagines with the switch's sampled choices, or with `blocks`; also the plan, which has noted each choice."""
    plan, seed = RecordedPlan(effort, blocks), int(torch.randint(2**31, ()))
    return Simulator(model).rollout(beginning, actions, plan, temperature=0.0, seed=seed), plan


@torch.no_grad()
def switch_examples(model: PanModel, beginning: Belief, actions: Tensor | Actions, later: Later) -> dict[str, Tensor]:
    """The examples of the warm-up, made once: every candidate, kept for all H steps.

    Returns:
        `distortion` `(B, C, tasks)` and `compute` `(B, C)`, means over the steps of each of C candidates; and of each
        candidate's choices in the first step, D at most: the inputs of the switch (the fields of [`SwitchInput`] but
        price and task, `(B, C, D, ...)`) and `choice` `(B, C, D)`, -1 where there is none.
    """
    parts: dict[str, list[Tensor]] = {}
    for blocks in candidates(model):
        futures, plan = imagine(model, beginning, actions, Effort(), blocks)
        errors = [distortion(model, futures, later, task).mean(1) for task in TASKS]
        assert futures.cost is not None  # an effort has one
        example = {"distortion": torch.stack(errors, 1), "compute": futures.cost.compute.mean(1)}
        example |= _first_choices(plan, len(actions), len(model.blocks) + 1)
        for name, values in example.items():
            parts.setdefault(name, []).append(values)
    return {name: torch.stack(values, 1) for name, values in parts.items()}


def _first_choices(plan: RecordedPlan, rows: int, most: int) -> dict[str, Tensor]:
    """The choices of the first step by row, `(B, D, ...)`."""
    choices: dict[str, Tensor] = {}
    count = torch.zeros(rows, dtype=torch.long, device=plan.decisions[0][0][1].device)
    for inputs, row, choice in plan.decisions[0]:
        fields = {name: getattr(inputs, name) for name in CACHED} | {"choice": choice}
        for name, values in fields.items():
            empty = values.new_full((rows, most, *values.shape[1:]), -1 if name == "choice" else 0)
            choices.setdefault(name, empty)[row, count[row]] = values
        count[row] += 1
    return choices


def switch_warm_up_losses(model: PanModel, condition: dict[str, Tensor]) -> tuple[dict, dict]:
    """The expected cost of the switch's choice among the candidates, of which every cost is known, beyond that of the
    best, at a task and a price drawn for each row. condition: see `switch_examples`.

    Imitating each row's best choice instead teaches what is best most often: blocks that are needed seldom, and badly,
    are then never predicted."""
    compute, choice = condition["compute"], condition["choice"]
    (rows, count, most), device = choice.shape, compute.device
    task = torch.randint(len(TASKS), (rows,), device=device)
    price = (torch.rand(rows, device=device) * math.log(MOST_PRICE / LEAST_PRICE)).exp() * LEAST_PRICE
    lost = condition["distortion"].gather(2, task.view(-1, 1, 1).expand(-1, count, 1)).squeeze(2)
    total = lost + price.unsqueeze(1) * compute  # (B, C)
    is_choice = choice >= 0
    drawn = {"task": task.view(-1, 1, 1).expand_as(choice), "price": price.view(-1, 1, 1).expand_as(choice)}
    fields = {name: values[is_choice] for name, values in (condition | drawn).items() if name in (*CACHED, *drawn)}
    chosen = -nn.functional.cross_entropy(model.switch(SwitchInput(**fields)), choice[is_choice], reduction="none")
    log_prob = torch.zeros(rows, count, most, device=device).masked_scatter(is_choice, chosen).sum(2)
    share = log_prob.softmax(1)  # candidates are not all there is to choose
    regret = total - total.amin(1, keepdim=True)
    expected = (share * regret).sum(1)
    entropy = -(share * share.clamp(min=1e-9).log()).sum(1).mean()
    metrics = {"switch.regret": expected.mean(), "switch.oracle": total.amin(1).mean(), "switch.entropy": entropy}
    return {"switch": expected.mean() / shared_mean(regret.mean()).clamp(min=1e-6)}, metrics


def switch_losses(
    model: PanModel, observation: Mapping[str, Tensor], action: Tensor | Actions, reward: Tensor, done: Tensor
) -> tuple[dict, dict]:
    """The policy gradient. `observation` `(B, T + 1, ...)`: what follows the first `context_steps` frames is
    imagined."""
    beginning, actions, later = split_window(model, observation, action, reward, done)
    effort, beginning = _drawn_effort(), beginning.repeat(GROUP)
    actions, later = actions.repeat_interleave(GROUP, 0), later.repeat(GROUP)
    futures, plan = imagine(model, beginning, actions, effort, None)
    assert futures.cost is not None and effort.price is not None  # an effort has a cost; the price was drawn
    lost, paid = distortion(model, futures, later, effort.task), futures.cost.compute
    value = -(lost + effort.price * paid).mean(1).unflatten(0, (-1, GROUP))  # (B, G)
    advantage = (value - value.mean(1, keepdim=True)) / (value.std(1, keepdim=True) + 1e-3)
    log_prob, entropy, count = torch.zeros(len(lost), device=lost.device), 0.0, 0
    for inputs, rows, choice in itertools.chain.from_iterable(plan.decisions):
        logits = model.switch(inputs)
        chosen = nn.functional.cross_entropy(logits, choice, reduction="none")
        log_prob = log_prob.index_add(0, rows, -chosen)
        share = logits.softmax(-1)
        entropy, count = entropy - (share * share.clamp(min=1e-9).log()).sum(), count + len(rows)
    entropy = entropy / count
    loss = -(advantage.flatten() * log_prob).mean() - ENTROPY_WEIGHT * entropy
    metrics = {"switch.distortion": lost.mean(), "switch.compute": paid.mean(), "switch.value": value.mean()}
    return {"switch": loss}, metrics | {"switch.entropy": entropy}
