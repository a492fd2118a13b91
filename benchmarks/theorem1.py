"""Scale up against scale out at equal bits: how should the same lattice code be cut into tokens?

Theorem 1 gives two ways to tell inputs apart: a larger vocabulary, or longer sentences. Here every vector of an
environment (Pendulum, random torques) is the same 12 bits, 4 for each coordinate, coarse bits of all of them first.
They are cut into 1 token of 12 bits, 2 of 6, 3 of 4, 4 of 3, 6 of 2 or 12 of 1, each position of a vector with rows of
its own; nothing else differs, so distortion is equal by construction. The same small language model (Qwen3, 2 layers,
64 wide) learns each on the same vectors, with the same number of steps, and what it makes of held-out episodes is
counted in bits a vector. [`LatticeLanguage`] is the theorem itself, for whole sequences, with both constructions of
its proof (appendix A).

    python benchmarks/theorem1.py            # about a quarter of an hour on two threads
    python benchmarks/theorem1.py --quick    # seconds: the same path in miniature
"""

import math
import sys
import time
from pathlib import Path
from typing import Annotated

import gymnasium
import matplotlib
import numpy as np
import torch
import typer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf import VectorSense  # noqa: E402
from pan_hf.modeling.codecs_pan import VectorCodec  # noqa: E402
from pan_hf.modeling.sense_configuration_pan import cells_within, digits_for  # noqa: E402
from pan_hf.reporting.results import Record, mean_stderr, record, write_records  # noqa: E402
from pan_hf.reporting.tables import table  # noqa: E402

ENVIRONMENT = "Pendulum-v1, random torques"
BITS = 4  # a coordinate
SENSE = VectorSense(dim=3, low=[-1.0, -1.0, -8.0], high=[1.0, 1.0, 8.0], base=2, num_levels=BITS)
TOKENS = (1, 2, 3, 4, 6, 12)  # of a vector
RESULTS = common.VOCABULARY / "theorem1.json"
HELD_OUT = 5  # one episode in so many


def main(
    threads: Annotated[int, typer.Option(help="OpenMP threads.")] = 2,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each model.")] = 600,
    window: Annotated[int, typer.Option(help="Vectors of a sequence.")] = 8,
    batch: Annotated[int, typer.Option(help="Sequences of a step.")] = 32,
    episodes: Annotated[int, typer.Option(help="Recorded, of 200 vectors each.")] = 100,
    seeds: Annotated[int, typer.Option(help="Weights and order of each model.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds: the same path in miniature.")] = False,
    output: Annotated[Path, typer.Option(help="Where the records and the plot go.")] = RESULTS,
) -> list[Record]:
    """Measures, writes records and a plot, and prints a table."""
    torch.set_num_threads(threads)
    if quick:
        steps, episodes, seeds = 3, 5, 1
    vectors = simulate_pendulum(episodes)
    bits, distortion = encode(vectors)
    records = [_record("distortion_rmse", distortion, None, "lattice", [0])]
    for count in TOKENS:
        found = [learn(bits, count, steps, window, batch, seed) for seed in range(seeds)]
        for metric in found[0]:
            value, stderr = mean_stderr([result[metric] for result in found])
            name = f"{count} x {len(SENSE.low) * BITS // count} bits"
            records.append(_record(metric, value, stderr, name, range(seeds)))
        print(table(records[-len(found[0]) :], rows="metric", columns="model"), flush=True)
    write_records(output, records)
    plot(records, output.with_suffix(".png"))
    print(table(records, rows="model", columns="metric"))
    return records


def _record(metric: str, value: float, stderr: float | None, model: str, seeds) -> Record:
    where = {"environment": ENVIRONMENT, "split": "test", "seeds": list(seeds)}
    return record(metric, value, stderr=stderr, model=model, **where)


def simulate_pendulum(episodes: int) -> torch.Tensor:
    """Observations `(episodes, 200, 3)` under random torques that hold for a while."""
    env, found = gymnasium.make("Pendulum-v1"), []
    generator = np.random.default_rng(common.SEED)
    for episode in range(episodes):
        seen, _ = env.reset(seed=episode)
        rows = []
        for step in range(200):
            if step % 8 == 0:
                torque = generator.uniform(-2, 2, 1).astype(np.float32)
            rows.append(seen)
            seen, *_ = env.step(torque)
        found.append(rows)
    return torch.tensor(np.array(found), dtype=torch.float32)


def encode(vectors: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Bits `(episodes, T, 12)`, coarse ones first, and the root mean squared error of decoding, as a share of the
    range."""
    lattice = VectorCodec(SENSE)
    digits, _ = lattice.encode(vectors)
    span = torch.tensor(SENSE.high) - torch.tensor(SENSE.low)
    error = (lattice.decode(digits) - vectors) / span
    return torch.cat(digits, -1), float(error.square().mean().sqrt())


def tokens_of(bits: torch.Tensor, count: int) -> torch.Tensor:
    """Bits `(..., 12)` cut into `count` tokens: ids `(..., count)`, those of each position behind one another."""
    parts = bits.unflatten(-1, (count, -1))
    size = 2 ** parts.shape[-1]
    return (parts * 2 ** torch.arange(parts.shape[-1]).flip(0)).sum(-1) + size * torch.arange(count)


def learn(bits: torch.Tensor, count: int, steps: int, window: int, batch: int, seed: int) -> dict[str, float]:
    """Trains one model; held-out bits a vector, parameters, and vectors a second of training and of writing."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    ids = tokens_of(bits, count).flatten(1)
    is_held_out = torch.arange(len(ids)) % HELD_OUT == HELD_OUT - 1
    size = count * 2 ** (bits.shape[-1] // count)
    model = make_model(size, window * count)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    start = time.perf_counter()
    for _ in range(steps):
        chosen = windows(ids[~is_held_out], window * count, count, batch, generator)
        optimizer.zero_grad()
        model(input_ids=chosen, labels=chosen, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    embedding = model.get_input_embeddings().weight.numel()
    return {
        "bits_per_vector": held_out_bits(model, ids[is_held_out], window, count),
        "embedding_parameters": float(embedding),
        "vectors_per_second": steps * batch * window / seconds,
        "written_per_second": writing_speed(model, count, window),
    }


def make_model(size: int, positions: int):
    """A small Qwen3 over an alphabet of `size`."""
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=size,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=positions + 32,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config)


def windows(ids: torch.Tensor, length: int, count: int, batch: int, generator) -> torch.Tensor:
    """Sequences `(batch, length)` that begin at the first token of a vector."""
    rows = torch.randint(len(ids), (batch,), generator=generator)
    first = torch.randint((ids.shape[1] - length) // count + 1, (batch,), generator=generator) * count
    return ids[rows.unsqueeze(1), first.unsqueeze(1) + torch.arange(length)]


@torch.no_grad()
def held_out_bits(model, ids: torch.Tensor, window: int, count: int) -> float:
    """Bits of the second half of each window, given the first: equally many vectors, however they are cut."""
    model.eval()
    length, bits, vectors = window * count, 0.0, 0
    for chunk in ids.unfold(1, length, length).flatten(0, 1).split(32):
        logits = model(input_ids=chunk, use_cache=False).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), chunk[:, 1:].flatten(), reduction="none")
        later = nll.unflatten(0, (len(chunk), -1))[:, window // 2 * count - 1 :]
        bits, vectors = bits + float(later.sum()) / math.log(2), vectors + len(chunk) * (window - window // 2)
    return bits / vectors


@torch.no_grad()
def writing_speed(model, count: int, window: int, rows: int = 32) -> float:
    """Vectors a second that `generate` writes, 32 at a time."""
    prompt = torch.ones(rows, count, dtype=torch.long)  # 0 would be taken for padding
    options = {"do_sample": True, "eos_token_id": None, "pad_token_id": 0}
    model.generate(prompt, max_new_tokens=count, **options)
    start = time.perf_counter()
    model.generate(prompt, max_new_tokens=count * (window - 1), **options)
    return rows * (window - 1) / (time.perf_counter() - start)


def plot(records: list[Record], path: Path) -> None:
    """Bits a vector, embedding parameters and speed over tokens a vector."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "bits_per_vector": "held-out bits a vector",
        "embedding_parameters": "embedding parameters",
        "vectors_per_second": "vectors a second, training",
        "written_per_second": "vectors a second, writing",
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(14, 3.2), constrained_layout=True)
    for axis, (metric, title) in zip(axes, panels.items(), strict=True):
        found = [entry for entry in records if entry.metric == metric]
        x = [int(entry.model.split(" ")[0]) for entry in found]
        values, errors = [entry.value for entry in found], [entry.stderr or 0 for entry in found]
        axis.errorbar(x, values, errors, fmt="o-", color="#3b82f6")
        axis.set(title=title, xlabel="tokens a vector (12 bits)", xscale="log", xticks=x)
        axis.set_xticks(x, [str(value) for value in x])
        axis.minorticks_off()
        if metric != "bits_per_vector":
            axis.set_yscale("log")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


class LatticeLanguage:
    """A language L_eps = (V, N, f) of Theorem 1: sequences farther apart than epsilon are different sentences.

    Every number in [-bound, bound] is one of `num_cells` equal cells, at most epsilon / sqrt(T * D) wide.

    Args:
        length (`int`): T, vectors of a sequence.
        dim (`int`): D, numbers of a vector.
        bound (`float`): no number is larger in size (a bound on the norm of a vector is one).
        epsilon (`float`): Euclidean distance, over the whole sequence, that must make a difference.
        base (`int`, *optional*): size of the vocabulary, of which sentences are as long as it takes (scale out).
            Without, sentences are T tokens long and the vocabulary is as large as it takes (scale up).

    Attributes:
        vocab_size (`int`): |V|, `num_cells ** D` or `base`.
        num_tokens (`int`): N, `T` or `T * D * ceil(log_base num_cells)`.

    Raises:
        ValueError: sizes below 1, a bound or epsilon that is not positive and finite, a base below 2, or a vocabulary
            whose ids do not fit 62 bits, or an epsilon finer than numbers are.
    """

    def __init__(self, length: int, dim: int, bound: float, epsilon: float, base: int | None = None):
        if length < 1 or dim < 1 or not (0 < bound < math.inf and 0 < epsilon < math.inf):
            raise ValueError(
                "A lattice needs length and dim of at least 1 and a positive, finite bound and epsilon; got "
                f"{length}, {dim}, {bound}, {epsilon}."
            )
        if base is not None and base < 2:
            raise ValueError(f"`base` must be at least 2, got {base}.")
        self.length, self.dim, self.bound, self.epsilon, self.base = length, dim, bound, epsilon, base
        self.num_cells = cells_within(2 * bound, epsilon / math.sqrt(length * dim))
        self.num_digits = 1 if base is None else digits_for(self.num_cells, base)
        self.vocab_size = self.num_cells**dim if base is None else base
        self.num_tokens = length if base is None else length * dim * self.num_digits
        if self.num_cells > 2**50:
            raise ValueError(f"An epsilon of {epsilon} is finer than float64 can tell within {bound}.")
        if self.vocab_size >= 2**62:
            raise ValueError(
                f"Scaling up takes {self.num_cells} ** {dim} tokens, more than ids can count; give a `base` to scale "
                "out."
            )

    def encode(self, x: Tensor) -> Tensor:
        """Sequences `(..., T, D)` -> sentences `(..., N)` int64. Raises ValueError beyond the bound."""
        x = x.double()
        if not bool((x.abs() <= self.bound).all()):
            raise ValueError(f"Numbers must be within {self.bound} in size, got up to {float(x.abs().max())}.")
        cells = ((x + self.bound) * (self.num_cells / (2 * self.bound))).floor().clamp(0, self.num_cells - 1).long()
        if self.base is None:
            return (cells * self._weights(self.num_cells, self.dim, x.device)).sum(-1)
        weights = self._weights(self.base, self.num_digits, x.device)
        return (cells.unsqueeze(-1) // weights % self.base).flatten(-3)

    def decode(self, sentences: Tensor) -> Tensor:
        """Sentences `(..., N)` -> the middles of their cells, `(..., T, D)` float64, at most epsilon / 2 away."""
        if self.base is None:
            weights = self._weights(self.num_cells, self.dim, sentences.device)
            cells = sentences.unsqueeze(-1) // weights % self.num_cells
        else:
            digits = sentences.unflatten(-1, (self.length, self.dim, self.num_digits))
            cells = (digits * self._weights(self.base, self.num_digits, sentences.device)).sum(-1)
        return (cells.double() + 0.5) * (2 * self.bound / self.num_cells) - self.bound

    @staticmethod
    def _weights(base: int, count: int, device) -> Tensor:
        return torch.tensor([base**power for power in reversed(range(count))], device=device)


if __name__ == "__main__":
    typer.run(main)
