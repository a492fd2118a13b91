"""What growth costs: making 1000 tokens live on a 135M backbone, and reading a block out beside 50k or 150k words.

    python benchmarks/growth.py            # about two minutes on one thread
    python benchmarks/growth.py --quick    # seconds: the same path in miniature

Weights are random. *grow* is `model.grow("text", names=...)` of 1000 words, tokenizer, ledger and rows together, each
repeat on the next 1000 rows. *readout* is what a step pays for its codes at batch 1: `code_tables` and the logits of
one level, in the same backbone with a small and a large vocabulary of words, timed in turn.
"""

import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf import DiscreteAction, ImageSense, PanModel, PanTokenizer  # noqa: E402
from pan_hf.build import PRESETS, make_processor  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.tables import table  # noqa: E402

NUM_TOKENS = 1000
WORDS = {"50k": 49_152, "150k": 151_936}
MOST_MS = 50.0  # what the project asks for


def main(
    threads: Annotated[int, typer.Option(help="OpenMP threads.")] = 1,
    repeats: Annotated[int, typer.Option(help="Growths that are timed, 1000 tokens each.")] = 8,
    seconds: Annotated[float, typer.Option(help="Time for the readouts, at the least.")] = 20.0,
    quick: Annotated[bool, typer.Option("--quick", help="The debug backbone, in seconds.")] = False,
    output: Annotated[Path, typer.Option(help="Where the records go.")] = common.VOCABULARY / "growth.json",
) -> list[Record]:
    """Measures, writes the records and prints them as a table."""
    torch.set_num_threads(threads)
    repeats, seconds = (2, 0.2) if quick else (repeats, seconds)
    name = "debug" if quick else "llama-135m"
    records = [*measure_growth(name, repeats), *measure_readout(name, seconds)]
    write_records(output, records)
    print(table(records, rows="metric", columns="model"))
    return records


def _record(metric: str, value: float, stderr: float | None, model: str, name: str) -> Record:
    where = {"environment": common.ENVIRONMENT, "split": name, "seeds": [common.SEED]}
    return record(metric, value, stderr=stderr, model=model, **where)


def make_model(name: str, num_words: int, reserve: int = 256) -> PanModel:
    """A world model with a camera around a random backbone of so many words."""
    shape = common.LLAMA_135M if name == "llama-135m" else PRESETS[name] | {"num_key_value_heads": 2}
    torch.manual_seed(common.SEED)
    config = AutoConfig.for_model(
        "llama", **(shape | {"vocab_size": num_words}), max_position_embeddings=4096, tie_word_embeddings=True
    )
    backbone = AutoModelForCausalLM.from_config(config)
    senses = {"camera": ImageSense(size=64)}
    return PanModel.from_backbone(backbone, senses, DiscreteAction(7), text_reserve=reserve, pad_token_id=0).eval()


def attach(model: PanModel) -> None:
    """A tokenizer with a word for each row, and the ledger."""
    vocab = {f"w{index}": index for index in range(model.config.text_size)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    make_processor(model, PanTokenizer(tokenizer_object=backend, pad_token="w0")).attach(model)


def measure_growth(name: str, repeats: int) -> list[Record]:
    """Milliseconds of making 1000 words live, and whether the table stayed where it was."""
    words = 512 if name == "debug" else WORDS["50k"]
    model = make_model(name, words, reserve=NUM_TOKENS * (repeats + 1))
    attach(model)
    place, times = model.get_input_embeddings().weight.data_ptr(), []
    for repeat in range(repeats + 1):
        names = [f"new{repeat}_{index}" for index in range(NUM_TOKENS)]
        start = time.perf_counter()
        model.grow("text", names=names)
        times.append(1e3 * (time.perf_counter() - start))
    moved = float(model.get_input_embeddings().weight.data_ptr() != place)
    value, stderr = common.median_stderr(times[1:])
    return [
        _record("grow_1000_ms", value, stderr, "pan", name),
        _record("grow_1000_ms_target", MOST_MS, None, "pan", name),
        _record("reallocations", moved, None, "pan", name),
    ]


@torch.no_grad()
def measure_readout(name: str, seconds: float) -> list[Record]:
    """Milliseconds of a block's readout beside few and many words, and the median of their ratios."""
    words = {"50k": 512, "150k": 1536} if name == "debug" else WORDS
    runs = {}
    for label, count in words.items():
        model = make_model(name, count)
        belief = model.perceive({"camera": common.observe(1)["camera"]})
        runs[label] = _readout(model, belief)
    times = common.side_by_side(runs, seconds, repeats=5)
    records = []
    for label, found in times.items():
        value, stderr = common.median_stderr(1e3 * seconds for seconds in found)
        records.append(_record("readout_ms", value, stderr, f"{label} words", name))
    ratios = [large / small for small, large in zip(times["50k"], times["150k"], strict=True)]
    return [*records, _record("readout_ratio", *common.median_stderr(ratios), "150k over 50k words", name)]


def _readout(model: PanModel, belief):
    """Tables and logits of level 0, given the places' hidden states."""
    generator = torch.Generator().manual_seed(common.SEED)
    width, sense = 3 * model.config.text_config.hidden_size, model.config.senses["camera"]
    places = torch.randn(1, sense.num_state_tokens, width, generator=generator)
    current, readout = belief.codes["camera"], model.readouts["camera"][0]

    def run():
        tables = model.table.code_tables().levels["camera"][0]
        features = readout.features(places, current[0], [], tables, None)
        return readout.logits(features, tables, current, [], None)

    return run


if __name__ == "__main__":
    typer.run(main)
