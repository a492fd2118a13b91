"""Stage 2: the language model alone, on words: those of the recording, or any text. A pretrained backbone skips it.

    python -m pan_hf.training.pretrain_backbone --model DIR --data DIR --output_dir DIR --seconds 60
    python -m pan_hf.training.pretrain_backbone --text notes.txt --model DIR --data DIR --output_dir DIR --seconds 60

`--text` is a text file or a data set (a name or folder for `datasets.load_dataset`, its train split, its first column
of strings).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Dataset

from pan_hf.build import recorded_texts
from pan_hf.features import feature_class
from pan_hf.training.arguments import Stage, StageArguments
from pan_hf.training.stage import main

BLOCK = 128  # words of a training text


class TextBlocks(Dataset):
    """Texts one behind the other, an end-of-text token after each, cut into blocks of equal length.

    Args:
        texts: any number of strings.
        tokenizer: makes ids of them.
        block (`int`): ids of a block; the last one is filled up with padding that no loss looks at.

    Raises:
        ValueError: there are no words in the texts.
    """

    def __init__(self, texts: Iterable[str], tokenizer, block: int = BLOCK):
        end = tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        lines = tokenizer.text_ids([text for text in texts if text.strip()])
        ids = [token for line in lines for token in (*line, end)]
        if not ids:
            raise ValueError(
                "There is no text to train the backbone on; give one with `--text`, or leave this stage out."
            )
        block = min(block, len(ids))
        missing = -len(ids) % block
        self.ids = torch.tensor(ids + [tokenizer.pad_token_id] * missing).view(-1, block)
        self.labels = torch.tensor(ids + [-100] * missing).view(-1, block)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, indices: list[int]) -> dict:
        rows = torch.as_tensor(indices)
        return {"input_ids": self.ids[rows], "labels": self.labels[rows]}


def read_texts(source: str) -> list[str]:
    """Texts of a file, one a line, or of a data set's train split.

    Raises:
        ValueError: the data set has no column of strings.
    """
    if Path(source).is_file():
        return Path(source).read_text(encoding="utf-8").splitlines()
    import datasets

    rows = datasets.load_dataset(source, split="train")
    column = next((name for name, kind in rows.features.items() if getattr(kind, "dtype", None) == "string"), None)
    if column is None:
        raise ValueError(f"--text {source}: expected a column of strings, its columns are {list(rows.features)}.")
    return list(rows[column])


@dataclass
class TextArguments(StageArguments):
    """What the stage of the language model takes beside what every stage takes."""

    text: str | None = field(
        default=None,
        metadata={"help": "Text file, or data set for `datasets.load_dataset`; the recording's own texts by default."},
    )


def make_data(model, processor, trajectories, args):
    """The texts of the recording (or of `--text FILE_OR_DATASET`) as blocks of words."""
    texts = recorded_texts(trajectories) if args.text is None else read_texts(args.text)
    positions = getattr(model.config.text_config, "max_position_embeddings", BLOCK)
    blocks = TextBlocks(texts, processor.tokenizer, min(BLOCK, positions))
    return blocks, torch.ones(len(blocks))


def is_needed(model, args) -> bool:
    """Whether there is a language model to train, and text to train it on."""
    parts = [*model.config.senses.values(), *model.config.actions.values()]
    has_text = args.text is not None or any(feature_class(part.kind).is_text for part in parts)
    return has_text and not model.config.training.backbone_is_pretrained


STAGE = Stage(
    name="backbone",
    objective="text",
    trains=r"language_model\.",
    make_data=make_data,
    defaults={"learning_rate": 1e-3, "per_device_train_batch_size": 16},
    arguments=TextArguments,
    is_needed=is_needed,
)

if __name__ == "__main__":
    main(STAGE)
