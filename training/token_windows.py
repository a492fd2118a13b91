"""Windows of sentences of codes as batches of ids, for the language model alone.

A window is `[goal] S_0 A_0 S_1 A_1 ...` in one run of ids: words of the goal, then step by step a sentence of each
part (`modeling/merging_pan.py`), merged by what the vocabulary holds at the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Dataset

from pan_hf.data.trajectories import Trajectories
from pan_hf.data.windows import read_rows
from pan_hf.features import ACTION, action_column
from pan_hf.modeling import PanConfig, PanModel
from pan_hf.tokenization import PanProcessor
from pan_hf.tokenization.tokenization_pan import Merges
from pan_hf.training.arguments import StageArguments

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
        self.check_least(chunk=1, window=2, merge_every=1, merge_count=0, trial_steps=1)


def coded_parts(config: PanConfig, parts: Sequence[str] | None) -> list[str]:
    """The parts that are written out, all that have codes where None are chosen. Raises ValueError for others."""
    coded = config.coded_parts()
    chosen = list(coded if parts is None else parts)
    if not chosen or set(chosen) - set(coded):
        raise ValueError(f"Sentences of {chosen}: expected parts that have codes, {', '.join(coded)}.")
    return chosen


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

    is_held_out: torch.Tensor  # by row, see `merge.py`

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
        self.parts = coded_parts(model.config, parts)
        self.rows = trajectories.windows(window * chunk)
        tensors, actions = read_rows(trajectories, processor)
        by_part = actions if isinstance(actions, dict) else {ACTION: actions}
        tensors |= {action_column(name): values for name, values in by_part.items()}
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
        self._merged: tuple[object, dict[str, list[list[int]]]] = (None, {})
        longest = max(map(len, self.goals)) + window * sum(len(sentences[0]) for sentences in self.sentences.values())
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

    def batch(
        self, indices: Sequence[int] | np.ndarray, merges: Merges, scored_only: bool = False
    ) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels` `(B, L)`, padded. Args: merges, a [`Merges`]; scored_only, labels
        are given from the second step of a window on."""
        merged, rows, starts = self.merged(merges), [], []
        for index in indices:
            goal, first = self.goals[index], int(self.rows[index])
            steps: list[list[int]] = [[] for _ in range(self.window)]
            for step, ids in enumerate(steps):
                for part in self.parts:
                    ids += merged[part][self.number[part][first + step * self.chunk]]
            rows.append([*goal, *(item for ids in steps for item in ids)])
            starts.append(len(goal) + len(steps[0]))
        length = torch.tensor([len(row) for row in rows])
        position = torch.arange(int(length.max()))
        mask = position < length.unsqueeze(1)
        input_ids = torch.tensor([row + [self.pad] * (len(position) - len(row)) for row in rows])
        scored = mask & (position >= torch.tensor(starts).unsqueeze(1)) if scored_only else mask
        return {"input_ids": input_ids, "attention_mask": mask.long(), "labels": input_ids.masked_fill(~scored, -100)}

    def merged(self, merges: Merges) -> dict[str, list[list[int]]]:
        """By part, its different sentences as `merges` shortens them."""
        if self._merged[0] != merges.pairs:
            self._merged = (merges.pairs, {part: merges.merge(each) for part, each in self.sentences.items()})
        return self._merged[1]

    def seen(self, part: str, indices: Sequence[int] | np.ndarray) -> list[list[int]]:
        """The sentences of a part that windows begin with."""
        return [self.sentences[part][number] for number in self.number[part][self.rows[indices]]]

    def tokens_per_step(self, indices: Sequence[int] | np.ndarray, merges: Merges) -> float:
        """Tokens of a step, all parts together, on average."""
        merged, starts = self.merged(merges), self.rows[indices]
        lengths = [np.array([len(ids) for ids in merged[part]])[self.number[part][starts]] for part in self.parts]
        return float(sum(each.mean() for each in lengths))


@torch.no_grad()
def _write_all(model: PanModel, part: str, values: torch.Tensor, chunk: int) -> torch.Tensor:
    """The sentence that begins at each row, `(N, length)`; the last row stands for those behind the end."""
    steps = torch.arange(chunk if model.config.coded_parts()[part].joins_steps else 1)
    rows = (torch.arange(len(values)).unsqueeze(1) + steps).clamp(max=len(values) - 1)
    chunks = [values[some].to(model.device) for some in rows.split(ENCODED)]
    return torch.cat([model.to_token_ids(part, some, len(steps))[:, 0].cpu() for some in chunks])
