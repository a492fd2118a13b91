"""The language model alone, on sentences of codes, whose pairs may become one token (section 5.2 of "Critiques of
World Models").

A window is `[goal] S_0 A_0 S_1 A_1 ...` in one run of ids: words of the goal, then step by step a sentence of each
part (`modeling/merging_pan.py`). Every so many steps merges are tried for each part (`training/merge.py`): the model
goes on twice from the same weights, with the merges and without, and reads equally many tokens. The merges stay, with
the weights that learned them, if held-out windows then take fewer bits; if not, the model is bit for bit what it was.

    python -m pan_hf.training.merge --model DIR --data DIR --output_dir DIR --seconds 60 --parts camera

The backbone's weights are moved: a world model's dynamics are trained after this stage, not before it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from pan_hf.data.trajectories import Trajectories
from pan_hf.data.windows import read_rows
from pan_hf.modeling import PanModel
from pan_hf.modeling.distributed_pan import told_by_first, value_from_main
from pan_hf.modeling.learning_pan import Growth, logged
from pan_hf.modeling.merging_pan import TokenMerging
from pan_hf.modeling.sense_configuration_pan import MERGES
from pan_hf.tokenization import PanProcessor
from pan_hf.tokenization.merges_pan import Merges
from pan_hf.training.arguments import Stage, StageArguments
from pan_hf.training.datasets import candidates_and_held_out, in_last_episodes
from pan_hf.training.optimizers import build_optimizer
from pan_hf.training.run_folder import run_growing_stage
from pan_hf.training.stage import main

ENCODED = 256  # rows that are written as sentences at once


@dataclass
class SentenceArguments(StageArguments):
    """What the sentence stage takes beside what every stage takes."""

    parts: list[str] | None = field(
        default=None, metadata={"help": "Senses, or `action`, that are written out; all that have codes by default."}
    )
    chunk: int = field(default=1, metadata={"help": "Steps of vectors and actions in a sentence."})
    window: int = field(default=2, metadata={"help": "Sentences of each part in a window; at least 2."})
    merge_every: int = field(default=200, metadata={"help": "Steps between attempts to merge; the first at step 1."})
    merge_count: int = field(
        default=16, metadata={"help": "Merged tokens of a part in an attempt, half after each rejection; 0: none."}
    )
    trial_steps: int = field(default=50, metadata={"help": "Length of a trial, in steps without the new merges."})

    def __post_init__(self):
        super().__post_init__()
        least = {"chunk": 1, "window": 2, "merge_every": 1, "merge_count": 0, "trial_steps": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"`{name}` must be at least {smallest}, got {getattr(self, name)}.")


class SentenceWindows(Dataset):
    """Windows of sentences as batches of ids, merged by what the model's vocabulary holds at the time.

    Args:
        model ([`PanModel`]), processor ([`PanProcessor`]): what writes them, attached to one another by the time that
            batches are drawn.
        trajectories: a split.
        parts (`list[str]`, *optional*), chunk (`int`), window (`int`): see [`SentenceArguments`].

    Raises:
        ValueError: a part that is not written in codes, no episode that is long enough, or windows with more ids than
            the backbone has positions.
    """

    def __init__(
        self,
        model: PanModel,
        processor: PanProcessor,
        trajectories: Trajectories,
        parts: Sequence[str] | None = None,
        chunk: int = 1,
        window: int = 2,
    ):
        self.model, self.chunk, self.window = model, chunk, window
        known = model.config.coded_parts()
        self.parts = list(known if parts is None else parts)
        if not self.parts or set(self.parts) - set(known):
            raise ValueError(f"Sentences of {self.parts}: expected parts that have codes, {', '.join(known)}.")
        self.rows = trajectories.windows(window * chunk)
        tensors, actions = read_rows(trajectories, processor)
        tensors["action"] = actions
        self.pad = pad = processor.tokenizer.pad_token_id
        self.goals = [
            [word for name in model.config.prefix_senses for word in tensors[name][row].tolist() if word != pad]
            for row in self.rows
        ]
        # by part: different sentences, and which of them begins at each row
        self.sentences, self.number = {}, {}
        for part in self.parts:
            written = _write_all(model, part, tensors[part], chunk)
            different, number = written.unique(dim=0, return_inverse=True)
            self.sentences[part], self.number[part] = different.tolist(), number.numpy()
        self._merged = (None, {})
        longest = max(map(len, self.goals)) + window * sum(len(found[0]) for found in self.sentences.values())
        positions = getattr(model.config.text_config, "max_position_embeddings", longest)
        if longest > positions:
            raise ValueError(
                f"Windows of {window} steps are {longest} ids long, the backbone has {positions} positions; give a "
                "smaller `window` or `chunk`, or fewer `parts`."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict:
        return self.batch(indices, self.model.processor.tokenizer.merges)

    def batch(self, indices: Sequence[int], merges: Merges, scored_only: bool = False) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels` `(B, L)`, padded. Args: merges, a [`Merges`]; scored_only, labels
        are given from the second step of a window on."""
        merged, rows, starts = self.merged(merges), [], []
        for index in indices:
            goal, first = self.goals[index], int(self.rows[index])
            steps = [[] for _ in range(self.window)]
            for step, ids in enumerate(steps):
                for part in self.parts:
                    ids += merged[part][self.number[part][first + step * self.chunk]]
            rows.append([*goal, *(item for ids in steps for item in ids)])
            starts.append(len(goal) + len(steps[0]))
        length = torch.tensor([len(row) for row in rows])
        place = torch.arange(int(length.max()))
        mask = place < length.unsqueeze(1)
        input_ids = torch.tensor([row + [self.pad] * (len(place) - len(row)) for row in rows])
        scored = mask & (place >= torch.tensor(starts).unsqueeze(1)) if scored_only else mask
        return {"input_ids": input_ids, "attention_mask": mask.long(), "labels": input_ids.masked_fill(~scored, -100)}

    def merged(self, merges: Merges) -> dict[str, list[list[int]]]:
        """By part, its different sentences as `merges` shortens them."""
        if self._merged[0] != merges.pairs:
            self._merged = (merges.pairs, {part: merges.merge(found) for part, found in self.sentences.items()})
        return self._merged[1]

    def seen(self, part: str, indices: Sequence[int]) -> list[list[int]]:
        """The sentences of a part that windows begin with."""
        return [self.sentences[part][number] for number in self.number[part][self.rows[indices]]]

    def tokens_per_step(self, indices: Sequence[int], merges: Merges) -> float:
        """Tokens of a step, all parts together, on average."""
        merged, starts = self.merged(merges), self.rows[indices]
        lengths = [np.array([len(ids) for ids in merged[part]])[self.number[part][starts]] for part in self.parts]
        return float(sum(found.mean() for found in lengths))


@torch.no_grad()
def _write_all(model: PanModel, part: str, values: torch.Tensor, chunk: int) -> torch.Tensor:
    """The sentence that begins at each row, `(N, length)`; the last row stands for those behind the end."""
    steps = torch.arange(chunk if model.config.coded_parts()[part].joins_steps else 1)
    rows = (torch.arange(len(values)).unsqueeze(1) + steps).clamp(max=len(values) - 1)
    chunks = [values[some].to(model.device) for some in rows.split(ENCODED)]
    return torch.cat([model.to_token_ids(part, some, len(steps))[:, 0].cpu() for some in chunks])


def make_data(model: PanModel, processor: PanProcessor, trajectories: Trajectories, args: SentenceArguments):
    """Windows of sentences, drawn alike; those of the last episodes decide on merges and are never drawn."""
    windows = SentenceWindows(model, processor, trajectories, args.parts, args.chunk, args.window)
    windows.is_held_out = in_last_episodes(trajectories, windows.rows)
    return windows, (~windows.is_held_out).double()


def callbacks(model: PanModel, windows: SentenceWindows, args: SentenceArguments) -> list[TrainerCallback]:
    """The one that merges."""
    return [MergeCallback(model, windows, *candidates_and_held_out(windows, args.seed), args)]


STAGE = Stage(
    name="sentences",
    objective="text",
    trains=r"language_model\.",
    make_data=make_data,
    callbacks=callbacks,
    arguments=SentenceArguments,
    defaults={"learning_rate": 1e-3, "per_device_train_batch_size": 32},
    averages=False,
)


def merge(
    run: str | Path,
    start: str | Path,
    data: str | Path | None = None,
    *,
    parts: list[str] | None = None,
    chunk: int = 1,
    window: int = 2,
    seconds: float = 60.0,
    max_steps: int | None = None,
    every: int = 200,
    count: int = 16,
    trial_steps: int = 50,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Trains the language model on sentences of codes, merging pairs where that saves bits: writes growth.json.

    This moves the backbone's weights: train the dynamics of a world model after it, not before.

    Args:
        run: folder of the new run; holds everything afterwards.
        start: the run or checkpoint to start from, or its Hub id; it is left as it is.
        data: the recording, a folder or a Hub id; `<run>/data` by default.
        parts (`list[str]`, *optional*): senses, or "action"; all that have codes by default.
        chunk (`int`): steps of vectors and actions in a sentence.
        window (`int`): sentences of each part that are read together.
        seconds (`float`): how long to train, trials included.
        max_steps (`int`, *optional*): how long to train, in steps; a run is then independent of the machine's speed.
        every (`int`): steps between attempts to merge.
        count (`int`): merged tokens of a part in an attempt; 0 for none.
        trial_steps (`int`): how long either side of a trial is trained, in steps of the side without new merges.
        seed (`int`): of everything random.
        progress (`bool`): show progress bars.

    Returns:
        the folder of the finished checkpoint.

    Raises:
        FileNotFoundError, ValueError: as for `grow`; or parts that have no codes, or windows that are too long.
    """
    settings = {"parts": parts, "chunk": chunk, "window": window, "merge_every": every, "merge_count": count}
    settings |= {"trial_steps": trial_steps, "seconds": seconds, "max_steps": max_steps, "seed": seed}
    return run_growing_stage(STAGE, Path(run), start, data, settings, progress)


# ---- The trial of merged tokens in training: with them and without them, from the same weights, reading equally much.


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
    model: PanModel, windows: SentenceWindows, indices: Sequence[int], merges: Merges, batch_size: int = 32
) -> Arm:
    """Bits and tokens of held-out windows as the model reads them now."""
    training, bits = model.training, 0.0
    model.eval()
    for some in np.array_split(indices, max(1, len(indices) // batch_size)):
        batch = {n: v.to(model.device) for n, v in windows.batch(some, merges, scored_only=True).items()}
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        labels = batch["labels"][:, 1:].flatten()
        nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels, reduction="sum")
        bits += float(nll) / math.log(2)
    model.train(training)
    return Arm(bits / len(indices) / (windows.window - 1), windows.tokens_per_step(indices, merges))


def train_arm(
    model: PanModel,
    windows: SentenceWindows,
    candidates: Sequence[int],
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
    training, start, done, seen = model.training, time.perf_counter(), 0, 0
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
            model(objective="text", **batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), args.max_grad_norm)
            optimizer.step()
            done, seen = done + int(batch["attention_mask"].sum()), seen + len(drawn)
    optimizer.zero_grad()
    model.train(training)
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
        candidates: Sequence[int],
        held_out: Sequence[int],
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
        count = min(free, self.args.merge_count >> self._rejections(segment, state))
        if not free:
            logger.warning(f"{segment} is full. {ledger.full_help(segment)}")
        if count < 1:
            return
        old = self.model.processor.tokenizer.merges
        chosen = np.random.default_rng(self.args.seed).permutation(self.candidates)[:FIND_IN]
        free = TokenMerging(self.model).free_ids(part, count)
        pairs = value_from_main(old.find(self.windows.seen(part, chosen), free))
        if pairs:
            growth, arms = self._try(segment, pairs, old, state.global_step)
            logged(growth)
            entry = {"growth": asdict(growth), "gain": growth.gain, "step": state.global_step}
            state.log_history.append(entry | {name: asdict(arm) for name, arm in arms.items()})

    def _rejections(self, segment: str, state) -> int:
        """Of this run so far; the log outlives a kill."""
        tried = [entry["growth"] for entry in state.log_history if "growth" in entry]
        return sum(not growth["accepted"] for growth in tried if growth["segment"] == segment)

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
        bits = {name: value_from_main(arm.bits) for name, arm in arms.items()}
        growth = Growth(segment, "merge", len(pairs), bits["with"] < bits["without"], bits["without"], bits["with"])
        after = _copy(model)
        _restore(model, before)
        if growth.accepted:
            growth.ids = TokenMerging(model).add(segment.rpartition(".")[0], pairs, step)
            _restore(model, after)
            _agree(model)
        return growth, arms

    def _arm(self, merges: Merges, tokens: int, step: int) -> Arm:
        seen, seconds = train_arm(
            self.model, self.windows, self.candidates, merges, tokens, self.args, [self.args.seed, step]
        )
        arm = held_out_bits(self.model, self.windows, self.held_out, merges)
        arm.windows, arm.seconds = seen, seconds
        return arm


def _copy(model: PanModel) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in _tensors(model)]


@torch.no_grad()
def _restore(model: PanModel, kept: list[torch.Tensor]) -> None:
    for tensor, old in zip(_tensors(model), kept, strict=True):
        tensor.copy_(old)


def _tensors(model: PanModel) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _agree(model: PanModel) -> None:
    """All processes take the first one's weights."""
    for tensor in _tensors(model):
        told_by_first(tensor.detach())


if __name__ == "__main__":
    main(STAGE)
