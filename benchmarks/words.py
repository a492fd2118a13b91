"""Does a world model say what its backbone says?

Reads a thousand sentences of news (the Lee corpus that gensim carries for its tests; no model here was trained on it)
with a pretrained backbone alone, with a world model just made of it, and with the same where codes are possible as the
next token, which is what a softmax over the whole table would give. Nothing is trained.

    pip install --no-deps gensim
    python benchmarks/words.py --backbone DIR_OR_NAME

What training has done to the words, with the adapter on and off, is read with the stages of a run of `pan train`:

    python benchmarks/words.py --backbone DIR_OR_NAME --trained runs/mine/stages/4-dynamics/final --output FILE

A text of one's own, a sentence a line, is read with `--text FILE`.
"""

import importlib.util
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf import DiscreteAction, ImageSense, PanModel, PanTokenizer, TextSense  # noqa: E402
from pan_hf.checkpoints import load  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.tables import table  # noqa: E402
from pan_hf.training.tuning import base_folder  # noqa: E402

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "words" / "words.json"
LEAST_WORDS = 8  # of a sentence
PROMPT, CONTINUATION, PROMPTS = 8, 16, 50  # tokens of a prompt, tokens said behind it, and how many prompts


def main(
    backbone: Annotated[str, typer.Option(help="Folder or Hub id of a pretrained causal language model.")],
    text: Annotated[
        Path | None, typer.Option(help="A text, a sentence a line; gensim's Lee corpus by default.")
    ] = None,
    trained: Annotated[
        list[Path] | None, typer.Option(help="Checkpoint, or a stage's folder, of a world model made of it.")
    ] = None,
    sentences: Annotated[int, typer.Option(help="How many sentences are read.")] = 1000,
    batch: Annotated[int, typer.Option(help="Sentences that are read at once.")] = 16,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 1,
    output: Annotated[Path, typer.Option(help="Where the records go.")] = RESULTS,
) -> list[Record]:
    """Perplexity, and the share of prompts that are continued alike; writes records and prints a table."""
    torch.set_num_threads(threads)
    lines = text.read_text(encoding="utf-8").splitlines() if text else lee_corpus()
    lines = [line for line in lines if len(line.split()) >= LEAST_WORDS][:sentences]
    tokenizer = PanTokenizer.from_backbone(backbone)
    ids = sorted((torch.tensor(line) for line in tokenizer.text_ids(lines)), key=len)
    bare = AutoModelForCausalLM.from_pretrained(backbone, dtype=common.DTYPES[dtype]).eval()
    name = f"{len(lines)} sentences, {text.name if text else 'Lee corpus of gensim'}, {dtype}"

    found, said = {"backbone": perplexity(bare, ids, batch)}, continuations(bare, ids)
    senses = {"camera": ImageSense(size=64, patch_size=8), "mission": TextSense(max_length=16)}
    model = PanModel.from_backbone(bare, senses, DiscreteAction(7)).eval()
    found["world model"] = perplexity(model, ids, batch)
    found["world model, codes possible"] = perplexity(model, ids, batch, codes_in_text=True)
    spoken = {"world model": continuations(model, ids)}
    spoken["world model, codes possible"] = continuations(model, ids, codes_in_text=True)

    for folder in trained or []:
        found[f"{folder}"] = perplexity(load(folder)[0], ids, batch)
        if base_folder(folder) != folder:
            alone = PanModel.from_pretrained(base_folder(folder)).eval()
            found[f"{folder}, adapter off"] = perplexity(alone, ids, batch)

    records = [_record("perplexity", value, who, name) for who, value in found.items()]
    for who, rows in spoken.items():
        alike = sum(torch.equal(one, other) for one, other in zip(rows, said, strict=True))
        records.append(_record("continued_alike", alike / len(said), who, name))
    write_records(output, records)
    print(table(records, rows=["model"], columns=["metric"]))
    return records


def lee_corpus() -> list[str]:
    """Sentences of the news that gensim's tests read, without importing it."""
    found = importlib.util.find_spec("gensim")
    if found is None or found.origin is None:
        raise SystemExit("The Lee corpus comes with gensim: pip install --no-deps gensim, or give --text FILE.")
    path = Path(found.origin).parent / "test" / "test_data" / "lee_background.cor"
    return re.split(r"(?<=[.?!])\s+(?=[A-Z\"'])", path.read_text(encoding="utf-8"))


@torch.no_grad()
def perplexity(model: Callable, ids: list[torch.Tensor], batch: int, **options) -> float:
    """Of all tokens but the first of each sentence, by the model's own loss."""
    nats, count = 0.0, 0
    for start in range(0, len(ids), batch):
        rows = ids[start : start + batch]
        labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        mask, tokens = (labels >= 0).long(), int((labels[:, 1:] >= 0).sum())
        given = {"input_ids": labels.clamp(min=0), "attention_mask": mask, "labels": labels, "use_cache": False}
        nats, count = nats + tokens * float(model(**given, **options).loss), count + tokens
    return math.exp(nats / count)


def continuations(model, ids: list[torch.Tensor], **options) -> list[torch.Tensor]:
    """What is said greedily behind the first tokens of sentences that are spread over all lengths."""
    spread = ids[:: max(1, len(ids) // PROMPTS)][:PROMPTS]
    prompts = torch.stack([row[:PROMPT] for row in spread])
    settings = {"max_new_tokens": CONTINUATION, "min_new_tokens": CONTINUATION, "do_sample": False}
    return list(model.generate(prompts, attention_mask=torch.ones_like(prompts), **settings, **options))


def _record(metric: str, value: float, who: str, name: str) -> Record:
    return record(metric, value, stderr=None, model=who, environment=name, split="untrained", seeds=[common.SEED])


if __name__ == "__main__":
    typer.run(main)
