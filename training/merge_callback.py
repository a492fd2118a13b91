"""The trial of merged tokens in training: with them and without them, from the same weights, reading equally much."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from transformers import TrainerCallback

from pan_hf.modeling import PanModel
from pan_hf.modeling.embedding_pan import broadcast_from_main
from pan_hf.modeling.learning_pan import Growth, logged
from pan_hf.modeling.merging_pan import TokenMerging
from pan_hf.modeling.sense_configuration_pan import MERGES
from pan_hf.tokenization.tokenization_pan import Merges
from pan_hf.training.optimizers import build_optimizer
from pan_hf.training.token_windows import SentenceArguments, SentenceWindows

logger = logging.getLogger(__name__)

FIND_IN = 20_000  # windows whose sentences pairs are looked for in
WARMUP = 0.1  # share of a trial


@dataclass
class Arm:
    """What one side of a trial came to.

    Args:
        bits (`float`): held-out bits a step of a window, given the steps before it.
        tokens (`float`): tokens a held-out step takes.
        windows (`int`): of training, that were read.
        seconds (`float`): that it took.
    """

    bits: float
    tokens: float
    windows: int = 0
    seconds: float = 0.0


@torch.no_grad()
def held_out_bits(
    model: PanModel, windows: SentenceWindows, indices: np.ndarray, merges: Merges, batch_size: int = 32
) -> Arm:
    """Bits and tokens of held-out windows as the model reads them now."""
    was_training, bits = model.training, 0.0
    model.eval()
    for some in np.array_split(indices, max(1, len(indices) // batch_size)):
        batch = {n: v.to(model.device) for n, v in windows.batch(some, merges, scored_only=True).items()}
        labels = batch.pop("labels")[:, 1:].flatten()
        logits = model(**batch, use_cache=False, codes_in_text=True).logits
        nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels, reduction="sum")
        bits += float(nll) / math.log(2)
    model.train(was_training)
    return Arm(bits / len(indices) / (windows.window - 1), windows.tokens_per_step(indices, merges))


def train_arm(
    model: PanModel,
    windows: SentenceWindows,
    candidates: np.ndarray,
    merges: Merges,
    tokens: int,
    args: SentenceArguments,
    seed: list[int],
) -> tuple[int, float]:
    """Trains what is trained until so many tokens have been read; windows read and seconds. The rate rises, and falls
    to 0 at the end, so that both sides of a trial are scored when they have settled."""
    generator = np.random.default_rng(seed)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    group = {"params": trained, "lr": args.learning_rate, "weight_decay": args.weight_decay}
    optimizer = build_optimizer(model, args, [group])
    was_training, start, done, seen = model.training, time.perf_counter(), 0, 0
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(int(generator.integers(2**31)))
        while done < tokens:
            rate = min((done / tokens + 0.01) / WARMUP, 1 - done / tokens, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * rate
            drawn = generator.choice(candidates, args.per_device_train_batch_size)
            batch = {n: v.to(model.device) for n, v in windows.batch(drawn, merges).items()}
            optimizer.zero_grad()
            model(objective="sentences", **batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), args.max_grad_norm)
            optimizer.step()
            done, seen = done + int(batch["attention_mask"].sum()), seen + len(drawn)
    optimizer.zero_grad()
    model.train(was_training)
    return seen, time.perf_counter() - start


class MergeCallback(TrainerCallback):
    """Tries merged tokens while a language model learns sentences of codes, on a schedule.

    Every process tries alike, and the first one decides. Attempts are kept in the Trainer's log, by step: what was
    tried, accepted or rejected, held-out bits and tokens a step with and without, and how many windows a second either
    read.

    Args:
        model ([`PanModel`]): attached to its processor.
        windows ([`SentenceWindows`]): of training.
        candidates, held_out (`list[int]`): indices of windows to learn from, and to decide by.
        args ([`SentenceArguments`]): schedule, and how the trial's sides are trained.
    """

    def __init__(
        self,
        model: PanModel,
        windows: SentenceWindows,
        candidates: np.ndarray,
        held_out: np.ndarray,
        args: SentenceArguments,
    ):
        self.model, self.windows, self.candidates, self.held_out = model, windows, candidates, held_out
        self.args = args

    def on_step_end(self, args, state, control, **kwargs):
        if self.args.merge_count and (state.global_step - 1) % self.args.merge_every == 0:
            for part in self.windows.parts:
                self.attempt(part, state)

    def on_train_end(self, args, state, control, **kwargs):
        merges = self.model.processor.tokenizer.merges
        arm = held_out_bits(self.model, self.windows, self.held_out, merges)
        state.log_history.append({"held_out": {"bits": arm.bits, "tokens": arm.tokens}, "step": state.global_step})

    def attempt(self, part: str, state) -> None:
        """One trial for one part, unless it was built without room for merges."""
        segment, ledger = f"{part}.{MERGES}", self.model.ledger()
        if segment not in ledger.segments:
            return
        free = ledger.capacity(segment) - ledger.born(segment)
        # counted in the log, which outlives a kill
        tried = [entry["growth"] for entry in state.log_history if "growth" in entry]
        rejections = sum(not growth["accepted"] for growth in tried if growth["segment"] == segment)
        count = min(free, self.args.merge_count >> rejections)
        if not free:
            logger.warning(f"{segment} is full. {ledger.full_help(segment)}")
        if count < 1:
            return
        old = self.model.processor.tokenizer.merges
        chosen = np.random.default_rng(self.args.seed).permutation(self.candidates)[:FIND_IN]
        ids = TokenMerging(self.model).free_ids(part, count)
        pairs = broadcast_from_main(old.find(self.windows.seen(part, chosen), ids))
        if pairs:
            growth, arms = self._try(segment, pairs, old, state.global_step)
            logged(growth)
            entry = {"growth": asdict(growth), "gain": growth.gain, "step": state.global_step}
            state.log_history.append(entry | {name: asdict(arm) for name, arm in arms.items()})

    def _try(
        self, segment: str, pairs: list[tuple[int, int, int]], old: Merges, step: int
    ) -> tuple[Growth, dict[str, Arm]]:
        """With and without: the side with fewer held-out bits gives the model's weights, unless it is the one
        without, which leaves them as they are."""
        model, before = self.model, _copy(self.model)
        new = old.extended(pairs)
        per_window = self.windows.window * self.windows.tokens_per_step(self.candidates, old)
        tokens = int(self.args.trial_steps * self.args.per_device_train_batch_size * per_window)
        arms = {"without": self._arm(old, tokens, step)}
        _restore(model, before)
        TokenMerging(model).start_rows(pairs)
        arms["with"] = self._arm(new, tokens, step)
        bits = {name: broadcast_from_main(arm.bits) for name, arm in arms.items()}
        growth = Growth(segment, "merge", len(pairs), bits["with"] < bits["without"], bits["without"], bits["with"])
        after = _copy(model)
        _restore(model, before)
        if growth.accepted:
            growth.ids = TokenMerging(model).add(segment.rpartition(".")[0], pairs, step)
            _restore(model, [broadcast_from_main(tensor) for tensor in after])
        return growth, arms

    def _arm(self, merges: Merges, tokens: int, step: int) -> Arm:
        seen, seconds = train_arm(
            self.model, self.windows, self.candidates, merges, tokens, self.args, [self.args.seed, step]
        )
        arm = held_out_bits(self.model, self.windows, self.held_out, merges)
        arm.windows, arm.seconds = seen, seconds
        return arm


def _copy(model: PanModel) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]


@torch.no_grad()
def _restore(model: PanModel, kept: list[torch.Tensor]) -> None:
    for tensor, old in zip((*model.parameters(), *model.buffers()), kept, strict=True):
        tensor.copy_(old)
