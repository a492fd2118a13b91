"""The losses of each training stage (section 5.3 of "Critiques of World Models"): every part by name.

`senses` trains encoder, codes and decoder of each sense alone; `text` the backbone on words alone, `sentences` on
words and codes, token by token; `dynamics` the backbone and the agent's heads on encoded trajectories; `latent_head`
the diffusion head on cached conditions; `joint` all of it together from raw observations, with the generative loss of
equation 8, which reaches encoder, backbone and head.

Shapes: B = batch, T = transitions of a window, N = B * T, P = state tokens of one sense or of all, n = codes of a
level, K = codes of a segment, H = backbone width.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .augmentation_pan import ReadoutView, corrupt_context, crop, nested_dropout, training_focus
from .backbone_pan import check_labels, embed_queries, embed_step
from .codecs_pan import encode_observation
from .effort_pan import changed_tokens
from .embedding_pan import CodeTables, log_of_mean, part_codec, shared_mean
from .heads_pan import check_rewards, two_hot
from .image_codec_pan import LEAST_ERROR
from .imagination_pan import latents_given, switch_losses, switch_warm_up_losses
from .latent_head_pan import SenseLatents, hedged_senses, reconstructs_latents
from .layout_pan import hide_padding
from .readout_pan import readout_scalars, window_numbers
from .state_pan import Actions, Observation, State, action_tensors, as_action, checked_actions
from .validation_pan import check_dense, check_observation, check_values

if TYPE_CHECKING:
    from .configuration_pan import PanConfig
    from .image_codec_pan import Codebook
    from .latent_head_pan import LatentHead
    from .modeling_pan import PanModel

STILL = 0.002  # least change of code vectors that is divided by, as a share of their spread


@dataclass
class PanOutput(ModelOutput):
    """A training stage's result.

    Args:
        loss: the weighted sum.
        losses: every part, unweighted, by name, e.g. `camera.0` (code negative log-likelihood of a level, nats a
            code), `camera.0.vectors` (see `_vector_loss`), `reward`, `continuation`, `inverse_dynamics`,
            `camera.latents`, `camera.latent_reconstruction`, `camera.generative`.
        metrics: detached figures to log, e.g. `camera.0.accuracy`.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    metrics: dict[str, Tensor] | None = None


class LossWithoutLabels(type):
    """Makes a class whose models give a loss for batches without `labels`, and lets a `Trainer` know.

    A Trainer asks the class for the names of labels, and evaluates no loss for a batch that lacks one of them; windows
    of a world have none. It asks the model which columns it takes, and `labels` is one, of texts. So the signature of
    `forward` that the class shows names no labels, and `return_loss` in their place.
    """

    @property
    def forward(cls) -> Callable:
        function = next(vars(base)["forward"] for base in cls.__mro__ if "forward" in vars(base))

        @functools.wraps(function)
        def shown(*args, **kwargs):
            return function(*args, **kwargs)

        given = inspect.signature(function).parameters
        returns_loss = inspect.Parameter("return_loss", inspect.Parameter.KEYWORD_ONLY, default=True)
        parameters = [*(parameter for name, parameter in given.items() if name != "labels"), returns_loss]
        parameters.sort(key=lambda parameter: parameter.kind)
        shown.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # of any function
        return shown


@dataclass
class _Window:
    """One teacher-forced pass over a window: its inputs, and the hidden states that came out."""

    current: State  # (N,)
    following: State  # (N,)
    trunk: Tensor  # (N, trunk_length, H), embeddings of state and action
    change: dict[str, Tensor]  # by sense (N, P), logits of a change at each state token
    changed: dict[str, Tensor]  # by sense (N, P) bool, where there was one
    seen: Tensor | None  # (N, P of all senses) bool, the tokens that were looked at; None: all of them
    hidden: dict[str, Tensor]  # by pass (N, length, H), and "action": (N, H)
    tables: CodeTables
    numbers: Tensor | None  # (N, V), see `scalar_features`


def _sum_up(model: PanModel, losses: dict[str, Tensor], metrics: dict[str, Tensor] | None = None) -> PanOutput:
    weights = model.config.training.loss_weights
    total: Tensor = 0.0  # type: ignore[assignment]  # there is a loss at least
    for name, value in losses.items():
        last = name.rsplit(".", 1)[-1]
        total = total + value * weights["codes" if last.isdigit() else last]
    return PanOutput(loss=total, losses=losses, metrics=metrics or {})


def senses_objective(model: PanModel, observation: Mapping[str, Tensor], **_) -> PanOutput:
    """Stage 1. `observation`: `(B, 3, ...)` a sense: the neighbour in time (which tells what moves), the frame, and
    the usual frame there (which tells what is rare); whole frames or crops of whole patches."""
    return _sum_up(model, _senses_losses(model, observation, update=model.training))


def _senses_losses(model: PanModel, observation: Mapping[str, Tensor], update: bool) -> dict[str, Tensor]:
    settings, observation = model.config.training, Observation(observation)
    weights = (settings.motion_weight, settings.rarity_weight)
    losses: dict[str, Tensor] = {}
    for name, codec in model.senses.items():
        frames, is_present = observation[name], observation.present(name)
        if is_present is not None:
            frames = frames[is_present.all(1)]
        if len(frames):
            usual = frames[:, 2] if frames.shape[1] > 2 else None
            parts = codec.losses(frames[:, 1], frames[:, 0], usual, *weights, update)
            losses |= {f"{name}.{part}": value for part, value in parts.items()}
    return losses


def text_objective(
    model: PanModel, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None, **_
) -> PanOutput:
    """Stage 2: the next word of a text. `input_ids`, `labels` (-100 where nothing is to be said) `(B, L)`."""
    if model.is_world_model:
        check_labels(labels, model.table.active_words())
    return _next_token(model, input_ids, labels, attention_mask, codes_in_text=False)


def sentences_objective(
    model: PanModel, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None, **_
) -> PanOutput:
    """The next token of sentences of codes, words among them. `input_ids`, `labels` `(B, L)` as in stage 2."""
    return _next_token(model, input_ids, labels, attention_mask, codes_in_text=True)


def _next_token(
    model: PanModel, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None, codes_in_text: bool
) -> PanOutput:
    given = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    logits = model(**given, codes_in_text=codes_in_text).logits
    count = shared_mean((labels[:, 1:] != -100).sum().float())
    sizes = {"vocab_size": logits.shape[-1], "num_items_in_batch": count}
    return _sum_up(model, {"text": model.loss_function(logits=logits, labels=labels, **sizes)})


def dynamics_objective(
    model: PanModel, state: dict, action: Tensor | Actions, reward: Tensor, done: Tensor, importance=None, **_
) -> PanOutput:
    """Stage 4, on encoded trajectories: text and level negative log-likelihood, reward, continuation, inverse.
    `importance` `(B,)` undoes in the codes' loss that the sampler draws some windows more often than others."""
    encoded = State(state["codes"], state.get("latents", {}), state.get("text", {}))
    window = _teacher_forced(model, encoded, action, state.get("prefix"), may_focus=model.training)
    crop_tokens = model.config.training.crop_tokens if model.training else 0
    importance = _by_transition(importance, action)
    losses, metrics, _ = _code_losses(model, window, importance, crop_tokens)
    losses |= _change_losses(window, importance)
    losses |= _text_losses(model, window) | _agent_losses(model, window, action, reward, done)
    return _sum_up(model, losses, metrics)


def latent_head_objective(
    model: PanModel, condition: dict[str, Tensor], state: dict, observation: Mapping[str, Tensor], **_
) -> PanOutput:
    """Stage 3, on cached `latent_examples`: `condition[name]`; `state`, their `latents`, `start` and `codes`;
    `observation[name]`, the frames they come to. `latent_reconstruction` is the generative loss of images decoded from
    codes and latents, in logarithms as in stage 1: some latents count for much in the image, and others hardly."""
    losses = {}
    for name, head in model.latent_heads.items():
        is_present, codec = state.get("present", {}).get(name), model.senses[name]
        latents, start = state["latents"][name], state["start"][name]
        losses[f"{name}.latents"], drawn = _flow_loss(head, latents, condition[name], start, is_present)
        if not codec.is_exact:
            imagined = codec.decode(state["codes"][name], drawn)
            error = _generative_loss(model, name, imagined, observation[name], _present_importance(is_present, None))
            losses[f"{name}.latent_reconstruction"] = log_of_mean(error, LEAST_ERROR)
    return _sum_up(model, losses)


def joint_objective(
    model: PanModel, observation: Mapping[str, Tensor], action: Tensor | Actions, reward: Tensor | None = None,
    done: Tensor | None = None, importance: Tensor | None = None, **_,
) -> PanOutput:  # fmt: skip
    """Stage 4, from raw observations: everything, plus the generative loss of equation 8 on the decoder's output.
    Without rewards or ends their heads are left alone."""
    observation = Observation(observation, model.config.prefix_senses)
    # the codebooks are not updated: by now each code has a row, and an id never changes its meaning
    alone = _senses_losses(model, observation.frames(-2), update=False)
    state = encode_observation(model, observation)  # codes are constants, latents carry gradients to the encoder
    window = _teacher_forced(model, state, action, model.prefix_ids(observation))
    importance = _by_transition(importance, action)
    losses, metrics, logits = _code_losses(model, window, importance)
    losses |= _change_losses(window, importance)
    losses |= _text_losses(model, window) | _agent_losses(model, window, action, reward, done)
    true = {name: observation[name][:, 1:].flatten(0, 1) for name in model.senses}
    target = window.following
    if reconstructs_latents(model.config):
        chosen = {name: [level.argmax(-1) for level in logits[name]] for name in model.senses}
        target = State(chosen, latents_given(model, true, State(chosen)), window.following.text)
    for name, codec in model.senses.items():
        imagined = [codec.decode_probabilities([level.softmax(-1) for level in logits[name]])]
        is_present = observation.frames(1).present(name)
        is_present = None if is_present is None else is_present.flatten()
        if name in model.latent_heads:
            losses[f"{name}.latents"], drawn = _latent_loss(model, name, window, target, logits[name], is_present)
            imagined.append(codec.decode(target.codes[name], drawn))
        counts = _present_importance(is_present, importance)
        errors = [_generative_loss(model, name, frames, true[name], counts) for frames in imagined]
        losses[f"{name}.generative"] = torch.stack(errors).mean()
    return _sum_up(model, losses | alone, metrics)


def _latent_loss(
    model: PanModel, name: str, window: _Window, target: State, logits: list[Tensor], is_present: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Flow matching of the latents of a state `(N,)`, as far as the sense is there, and those that one step of
    diffusion draws, `(N, P, D)`. The gradient reaches the backbone through the condition, and not through the start of
    the latents."""
    codes, shifts = target.codes[name], None
    if name in hedged_senses(model.config):
        levels = zip(model.senses[name].codebooks, logits, codes, strict=True)
        shifts = [book.shift(level.detach(), chosen) for book, level, chosen in levels]
    latents = SenseLatents(model, name)
    condition = latents.condition(window.hidden, window.trunk, target, window.tables, shifts)
    with torch.no_grad():
        start = latents.start(condition, codes)
    return _flow_loss(model.latent_heads[name], target.latents[name].detach(), condition, start, is_present)


def _flow_loss(
    head: LatentHead, latents: Tensor, condition: Tensor, start: Tensor, is_present: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Flow matching of the latents `(N, P, D)` that are there, `(N,)` bool or None for all; and those drawn, of all
    rows."""
    if is_present is None:
        return head.loss(latents, condition, start)
    loss, drawn_present = head.loss(latents[is_present], condition[is_present], start[is_present])
    drawn = drawn_present.new_zeros(latents.shape).masked_scatter(is_present.view(-1, 1, 1), drawn_present)
    return (loss if len(drawn_present) else drawn.sum()), drawn  # a mean over nothing would not be a number


def _present_importance(is_present: Tensor | None, importance: Tensor | None) -> Tensor | None:
    """The importance of transitions `(N,)`, none of those that are not there; None where all count alike."""
    if is_present is None:
        return importance
    return is_present.float() if importance is None else is_present * importance


def _by_transition(importance: Tensor | None, action: Tensor | Actions) -> Tensor | None:
    """Importance of windows `(B,)` as that of their transitions `(N,)`."""
    return None if importance is None else importance.repeat_interleave(action.shape[1])


def _generative_loss(model: PanModel, name: str, imagined: Tensor, after: Tensor, importance: Tensor | None) -> Tensor:
    """|| g(f(h(o), a)) - o' ||, squared, of observations imagined and true `(N, ...)`. Every pixel counts as much as
    any other, and every transition as much as its `importance` `(N,)`: more weight where something did change would
    teach the codes' probabilities that much more change."""
    error = model.senses[name].error(imagined, after).square().flatten(1).mean(1)
    if importance is None:
        return error.mean()
    return (importance * error).sum() / shared_mean(importance.sum()).clamp(min=1e-6)


def _teacher_forced(
    model: PanModel, state: State, action: Tensor | Actions, prefix: Tensor | None, may_focus: bool = False
) -> _Window:
    """Lays a window out as `[prefix] S_0 A_0 | Q_0 | S_1 A_1 | Q_1 ...` and runs the backbone once. Args: state, of
    leading shape `(B, T + 1)`; action `(B, T, ...)`; may_focus, whether it may look at a part of the state tokens
    alone ([`ChangePredictor`])."""
    batch, steps = action.shape[:2]
    seen = corrupt_context(model, state) if model.training else state
    current = seen.map(lambda tensor: tensor[:, :steps].flatten(0, 1))
    following = state.map(lambda tensor: tensor[:, 1 : steps + 1].flatten(0, 1))
    # of the current state before any dropout: a token whose finer codes are left out has not changed
    changed = {
        name: changed_tokens(model.config.senses[name], current.codes[name], following.codes[name])
        for name in model.glances
    }
    if model.training:
        current = nested_dropout(current, model.config)
    tables = model.table.code_tables()
    embedded = model.embed_state(_trunk_latents(model, current), tables)
    queries = _queries(model, embedded, following, tables)
    trunk, change = embed_step(model, current, embedded, model.embed_action(action.flatten(0, 1), tables), tables)
    focus = training_focus(model.config, change) if may_focus else None
    x, layout = torch.cat([trunk, *queries], 1), model.layout
    tokens = None if focus is None else layout.tokens(focus, layout.passes, trunk=True)
    mask, positions = layout.window(steps, tokens, x.device)
    x = x if tokens is None else tokens.take(x)
    x = x.unflatten(0, (batch, steps)).flatten(1, 2)
    if prefix is not None:
        x = torch.cat([model.get_input_embeddings()(prefix), x], 1)
        mask = hide_padding(mask, prefix, model.config.pad_token_id)
    hidden = model.run_backbone(x, mask, positions)
    hidden = hidden[:, layout.prefix_length :].unflatten(1, (steps, -1)).flatten(0, 1)
    hidden = hidden if tokens is None else tokens.put_back(hidden)
    return _Window(
        current=current,
        following=following,
        trunk=trunk,
        change=change,
        changed=changed,
        seen=None if focus is None else focus.mask(layout.num_state_tokens),
        hidden={"action": hidden[:, layout.trunk_length - 1]}
        | {each.name: hidden[:, layout.starts[each.name] :][:, : each.length] for each in layout.passes},
        tables=tables,
        numbers=window_numbers(model, seen, action),
    )


def _trunk_latents(model: PanModel, state: State) -> State:
    """Latents as the trunk sees them: noisy and often absent in training, so that imagined ones can be borne."""
    if not model.training or not state.latents:
        return state
    settings, latents = model.config.training, {}
    for name, value in state.latents.items():
        keep = (torch.rand(len(value), 1, 1, device=value.device) >= settings.latent_dropout).to(value.dtype)
        latents[name] = keep * (value + settings.latent_noise * torch.randn_like(value))
    return State(state.codes, latents, state.text)


def _queries(model: PanModel, embedded: Tensor, following: State, tables: CodeTables) -> list[Tensor]:
    """The queries of every pass, the coarser levels' true codes given."""
    parts = []
    for each in model.layout.passes:
        if each.levels:
            parts.append(embed_queries(model, each, embedded, following.codes, tables))
        else:
            words = model.table.word_rows(following.text[each.name][:, :-1])
            parts.append(torch.cat([model.text_start.expand(len(words), 1, -1), words], 1))
    return parts


def _code_losses(
    model: PanModel, window: _Window, importance: Tensor | None, crop_tokens: int = 0
) -> tuple[dict, dict, dict[str, list[Tensor]]]:
    """Cross-entropy of every level, changed codes weighted by `change_weight`; also the logits, by sense and level.
    `crop_tokens`: side of the square of patches that readouts of images are shown (`augmentation_pan`); 0: whole
    frames."""
    losses: dict[str, Tensor] = {}
    metrics: dict[str, Tensor] = {}
    logits: dict[str, list[Tensor]] = {name: [] for name in window.current.codes}
    for each in model.layout.passes:
        if not each.levels:
            continue
        drawn = {name: levels[: each.levels[-1] + 1] for name, levels in window.following.codes.items()}
        for name, tokens in model.layout.split_tokens(each, window.hidden[each.name], window.trunk).items():
            sense = model.config.senses[name]
            numbers = readout_scalars(model, name, window.numbers, drawn)
            seen = None if window.seen is None else model.layout.of_sense(name, window.seen).float()
            view = ReadoutView(sense, tokens, window.current.codes[name], window.following.codes[name], weight=seen)
            if crop_tokens and sense.is_grid:
                view = crop(view, crop_tokens)
            for level in each.levels[: sense.num_levels]:
                logits[name].append(teacher_forced_logits(model, name, level, view, window.tables, numbers))
                parts = _level_losses(model, name, level, logits[name][-1], view, importance)
                losses, metrics = losses | parts[0], metrics | parts[1]
    return losses, metrics, logits


def _level_losses(
    model: PanModel, name: str, level: int, logits: Tensor, view: ReadoutView, importance: Tensor | None
) -> tuple[dict, dict]:
    """Losses and metrics of one level; a code that was absent is new, not changed, and one that is absent counts for
    nothing. importance `(N,)`, of transitions."""
    now, target, change_weight = view.current[level], view.following[level], model.config.training.change_weight
    weight = view.code_weight(level)
    share = torch.ones_like(now, dtype=logits.dtype) if weight is None else weight
    share = share if importance is None else share * importance.unsqueeze(1)
    share, changed = share * (target >= 0), (now != target) & (now >= 0) & (target >= 0)
    target = target.clamp(min=0)
    weight = (1 + (change_weight - 1) * changed) * share
    losses = {f"{name}.{level}": _change_weighted(logits, now, target, weight.flatten(), change_weight)}
    if model.senses[name].can_grow:
        book = model.senses[name].codebooks[level]
        losses[f"{name}.{level}.vectors"] = _vector_loss(book, logits, now, target, share)
    right = logits.detach().argmax(-1) == target
    metrics = {
        f"{name}.{level}.accuracy": (share * right).sum() / share.sum().clamp(min=1e-6),
        f"{name}.{level}.accuracy_changed": (right & changed & (share > 0)).sum()
        / (changed & (share > 0)).sum().clamp(min=1),
    }
    return losses, metrics


def _vector_loss(book: Codebook, logits: Tensor, now: Tensor, target: Tensor, share: Tensor) -> Tensor:
    """Squared error of the expected code vector of a codebook, over that of standing still.

    For cross-entropy a code that looks nearly right is as wrong as any other. This loss is least at the mean under the
    true probabilities, so it draws them nowhere else; it is the generative loss of equation 8 before the decoder.
    logits `(N, n, K)`; now, target `(N, n)`; share `(N, n)`, the weight of each code."""
    true = book.lookup(target)
    error = (share * (book.mean(logits.softmax(-1)) - true).square().sum(2)).sum()
    still = (share * (book.lookup(now) - true).square().sum(2)).sum()
    least = STILL * book.spread() * target.numel()  # where next to nothing changes, nothing much is to be learned
    return error / shared_mean(still).clamp(min=1e-6).maximum(least)


def _change_weighted(logits: Tensor, now: Tensor, target: Tensor, weight: Tensor, change_weight: float) -> Tensor:
    """Weighted cross-entropy whose optimum is nevertheless the true distribution.

    Changed codes that count `change_weight` times teach probabilities in which change is that much more likely. So the
    loss is taken on logits shifted by just that (logit adjustment, Menon et al. 2021): `logits` themselves stay
    calibrated, for sampling and for `log_prob`. logits `(N, n, K)`; now, target `(N, n)`; weight `(N * n,)`."""
    shift = -math.log(change_weight) * (now >= 0).to(logits.dtype)
    adjusted = logits.scatter_add(-1, now.clamp(min=0).unsqueeze(-1), shift.unsqueeze(-1))
    nll = nn.functional.cross_entropy(adjusted.flatten(0, 1), target.flatten(), reduction="none")
    return (weight * nll).sum() / shared_mean(weight.sum()).clamp(min=1e-6)


def teacher_forced_logits(
    model: PanModel, name: str, level: int, view: ReadoutView, tables: CodeTables, numbers: Tensor | None
) -> Tensor:
    """Logits `(N, num_codes, K)` of one level, given the true coarser codes of the following state."""
    readout, table, coarser = model.readouts[name][level], tables.levels[name][level], view.following[:level]
    inputs = (view.places, view.current[level], coarser, table, numbers, view.sense, view.corner)
    features = readout.features(*inputs)
    if readout.sentence is not None:
        features = readout.sentence(features, view.following[level].clamp(min=0), table.drawn)
    return readout.logits(features, table, view.current, coarser, numbers)


def _change_losses(window: _Window, importance: Tensor | None) -> dict:
    """Binary cross-entropy of the change predictors: whether anything will change at a state token."""
    losses = {}
    for name, logits in window.change.items():
        weight = torch.ones_like(logits) if importance is None else importance.unsqueeze(1).expand_as(logits)
        weight = weight * window.following.present(name).unsqueeze(1)
        target = window.changed[name].float()
        losses[f"{name}.change"] = nn.functional.binary_cross_entropy_with_logits(logits, target, weight)
    return losses


def _text_losses(model: PanModel, window: _Window) -> dict[str, Tensor]:
    losses = {}
    for name, target in window.following.text.items():
        logits = model.table.word_logits(window.hidden[name])
        nll = nn.functional.cross_entropy(logits.flatten(0, 1), target.clamp(min=0).flatten(), reduction="none")
        counts = (text_counts(target, model.config.pad_token_id) * (target >= 0)).flatten()
        losses[f"{name}.text"] = (nll * counts).sum() / shared_mean(counts.sum()).clamp(min=1e-6)
    return losses


def text_counts(ids: Tensor, pad_token_id: int) -> Tensor:
    """1 for the words of a text and for the first padding, which ends it; 0 behind. `(..., L)` -> float `(..., L)`."""
    padding = (ids == pad_token_id).long()
    return ((padding.cumsum(-1) - padding) == 0).float()


def by_actor(config: PanConfig, reward: Tensor | Mapping[str, Tensor] | None) -> Tensor | None:
    """Rewards of several actors side by side, `(B, T, A)`, from rewards `(B, T)` by name; others pass through. Raises
    ValueError for other names, or another number of actors, than the configuration has."""
    actors = config.actors or []
    if isinstance(reward, Mapping):
        if set(reward) != set(actors):
            raise ValueError(f"`reward` must be by actor for {actors}, got {sorted(reward)}.")
        rewards = [_as_numbers(f"reward[{name!r}]", reward[name]) for name in actors]
        if len({each.shape for each in rewards}) != 1 or rewards[0].dim() != 2:
            raise ValueError(f"`reward` must be (B, T) for each actor, got {[tuple(each.shape) for each in rewards]}.")
        return torch.stack(rewards, -1)
    if reward is None:
        return None
    reward = _as_numbers("reward", reward)
    expected = f"(B, T, {len(actors)}), by actor" if actors else "(B, T); several rewards need `actors`"
    if reward.dim() != (3 if actors else 2) or (actors and reward.shape[2] != len(actors)):
        raise ValueError(f"`reward` must be {expected}; got {tuple(reward.shape)}.")
    return reward


def _as_numbers(name: str, values: Any) -> Tensor:
    try:
        values = torch.as_tensor(values)
        check_dense(f"`{name}`", values)
        return values
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be numbers (B, T), got {type(values).__name__}: {error}") from error


def _agent_losses(
    model: PanModel, window: _Window, action: Tensor | Actions, reward: Tensor | None, done: Tensor | None
) -> dict[str, Tensor]:
    # latents are left out, since the states that the heads read in a simulation have none
    before = model.embed_state(window.current.without_latents(), window.tables)
    after = model.embed_state(window.following.without_latents(), window.tables)
    reward_logits, continue_logit = model.outcome(before, after, window.hidden["action"])
    losses = {}
    if reward is not None:
        target = two_hot(reward.flatten(0, 1), model.config.reward_bound)
        losses["reward"] = -(target * reward_logits.log_softmax(-1)).sum(-1).mean()
    if done is not None:
        goes_on = 1 - done.flatten().float()
        losses["continuation"] = nn.functional.binary_cross_entropy_with_logits(continue_logit, goes_on)
    slots, inverse = model.inverse_dynamics(before, after), []
    for part, values in zip(model.config.action_parts, action_tensors(action.flatten(0, 1)), strict=True):
        for codes, table, active in part_codec(model, part).tokens(values, model, part):
            queries, slots = slots[:, : codes.shape[1]], slots[:, codes.shape[1] :]
            logits = (queries @ table.T).float().masked_fill(~active, -torch.inf)
            inverse.append(nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten()))
    losses["inverse_dynamics"] = torch.stack(inverse).mean()
    return losses


def switch_objective(
    model: PanModel, observation: Mapping[str, Tensor], action: Tensor | Actions, reward: Tensor, done: Tensor, **_
) -> PanOutput:
    """Stage 5, from raw observations: the switch alone, see `imagination_pan`."""
    return _sum_up(model, *switch_losses(model, observation, action, reward, done))


def switch_warm_up_objective(model: PanModel, condition: dict[str, Tensor], **_) -> PanOutput:
    """Before it: the switch learns from the known cost of every choice, from cached `switch_examples`."""
    return _sum_up(model, *switch_warm_up_losses(model, condition))


OBJECTIVES: dict[str, Callable[..., PanOutput]] = {
    "senses": senses_objective,
    "text": text_objective,
    "sentences": sentences_objective,
    "dynamics": dynamics_objective,
    "latent_head": latent_head_objective,
    "joint": joint_objective,
    "switch_warm_up": switch_warm_up_objective,
    "switch": switch_objective,
}

# what each needs: the arguments without a default
NEEDS = {
    name: [each.name for each in inspect.signature(stage).parameters.values() if each.default is each.empty][1:-1]
    for name, stage in OBJECTIVES.items()
}
# what Transformers, Accelerate and PEFT pass to any model
PASSED_OVER = {"return_dict", "output_attentions", "output_hidden_states", "num_items_in_batch", "task_ids"}


def run_objective(model: PanModel, objective: str, inputs: dict, others: Mapping) -> PanOutput:
    """One of `OBJECTIVES` of its inputs, which are None where they are not given.

    Raises:
        ValueError: there is no such objective, the model has no senses, or inputs are missing, unknown (`others`), or
            do not fit one another.
    """
    if not isinstance(objective, str) or objective not in OBJECTIVES:
        raise ValueError(f"Unknown objective {objective!r}; expected one of {sorted(OBJECTIVES)}.")
    if objective != "text" and not model.is_world_model:
        raise ValueError(f"Objective {objective!r} trains a world model, and this one has no senses; use 'text'.")
    given = {name: value for name, value in inputs.items() if value is not None}
    if not set(NEEDS[objective]) <= set(given):
        hint = "" if objective == "joint" else " 'joint' takes the observation and action that a processor returns."
        raise ValueError(f"Objective {objective!r} needs {NEEDS[objective]}, got {sorted(given)}.{hint}")
    if unknown := sorted(name for name, value in others.items() if value is not None and name not in PASSED_OVER):
        raise ValueError(f"Objectives take no {unknown}, only {sorted(inputs)}.")
    inputs = inputs | {"reward": by_actor(model.config, inputs["reward"])}
    inputs["done"] = None if inputs["done"] is None else _as_numbers("done", inputs["done"])
    if objective in ("joint", "switch"):  # what is not raw comes from our own stages
        inputs["action"] = _checked_window(model, given["observation"], given["action"], inputs)
    else:
        inputs["action"] = as_action(inputs["action"])
    return OBJECTIVES[objective](model, **inputs)


def _checked_window(model: PanModel, observation: Mapping[str, Tensor], action: Any, inputs: dict) -> Tensor | Actions:
    """The actions of windows as tensors. Raises ValueError unless frames, actions, rewards and ends fit."""
    check_observation(model.config, observation, needs_prefix=True)
    check_values(model.config, observation)
    rows, frames = Observation(observation, model.config.prefix_senses).shape
    expected = f"with B = {rows} and T = {frames - 1}, one between two frames"
    action = checked_actions(model, "action", action, expected, rows, "T")
    shapes = {name: tuple(inputs[name].shape) for name in ("reward", "done") if inputs[name] is not None}
    for name in shapes:
        if not bool(inputs[name].isfinite().all()):
            raise ValueError(f"`{name}` holds numbers that are not finite, and so would the loss.")
    if "reward" in shapes:
        check_rewards(inputs["reward"], model.config.reward_bound)
    if model.config.actors and "reward" in shapes:  # beside them stand actors
        shapes["reward"] = shapes["reward"][:2]
    shapes["action"] = tuple(action.shape[:2])
    if wrong := {name: shape for name, shape in shapes.items() if shape != (rows, frames - 1)}:
        raise ValueError(f"Windows of {frames} frames have (B, T) = {(rows, frames - 1)} transitions, got {wrong}.")
    return action
