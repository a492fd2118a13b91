"""Tokens a second of a training step: the whole aligned step against the bare backbone on the same shapes.

Both run forward, backward and AdamW on the same number of positions of the same backbone. The aligned step
(objective "dynamics", stage 4) embeds states and actions, lays out trunk and queries, reads out every level and trains
the agent's heads; the bare one is a causal language model with its own full vocabulary. "joint" adds the encoder, the
diffusion head and the generative loss, from raw frames.

    python benchmarks/train.py            # about three minutes on one thread
    python benchmarks/train.py --quick    # seconds: the same path in miniature
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.tables import select, table  # noqa: E402

BATCHES = {"debug": 4, "tiny": 32, "small": 16, "llama-135m": 8}
TARGETS = {"tiny": 0.7, "llama-135m": 0.9}  # share of the bare backbone's rate
STEPS = ("bare", "dynamics", "joint")


def main(
    threads: Annotated[int, typer.Option(help="OpenMP threads.")] = 1,
    backbone: Annotated[list[str] | None, typer.Option(help="Which to measure: tiny and llama-135m.")] = None,
    context_steps: Annotated[int, typer.Option(help="Steps of a window.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time for each measurement, at the least.")] = 10.0,
    repeats: Annotated[int, typer.Option(help="Rounds of each measurement, at the least.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="The debug backbone, in seconds.")] = False,
    output: Annotated[Path, typer.Option(help="Where the records go.")] = common.RESULTS / "train.json",
) -> list[Record]:
    """Measures, writes the records and prints them as tables."""
    torch.set_num_threads(threads)
    names = backbone or (["debug"] if quick else list(TARGETS))
    records = []
    for name in names:
        records += measure_rates(name, context_steps, seconds, repeats)
        records += [measure_memory(name, step, context_steps, threads) for step in STEPS]
    write_records(output, records)
    show(records)
    return records


def _record(metric: str, value: float, stderr: float | None, step: str, name: str) -> Record:
    where = {"environment": common.ENVIRONMENT, "split": f"{name}, batch {BATCHES[name]}", "seeds": [common.SEED]}
    return record(metric, value, stderr=stderr, model=step, **where)


def measure_rates(name: str, context_steps: int, seconds: float, repeats: int) -> list[Record]:
    """Positions a second of every step in turn, and the share of the bare backbone's rate."""
    positions = BATCHES[name] * positions_of_a_window(context_steps)
    bare, records = make_step(name, "bare", context_steps), []
    for step in STEPS[1:]:
        times = common.side_by_side({"bare": bare, step: make_step(name, step, context_steps)}, seconds, repeats)
        for measured in times if not records else [step]:
            rates = [positions / each for each in times[measured]]
            records.append(_record("tokens_per_second", *common.median_stderr(rates), measured, name))
        shares = [one / other for one, other in zip(times["bare"], times[step], strict=True)]
        records.append(_record("bare_share", *common.median_stderr(shares), step, name))
    return [*records, _record("bare_share_target", TARGETS.get(name, float("nan")), None, "dynamics", name)]


def positions_of_a_window(context_steps: int) -> int:
    """What the backbone reads of one window: the mission, and a step's trunk and queries for each step."""
    layout = common.world_model("debug", context_steps=context_steps).layout
    return layout.prefix_length + context_steps * layout.step_length


def make_step(name: str, step: str, context_steps: int) -> Callable[[], None]:
    """One training step as a function: `step` of `STEPS`, on a batch that is made once."""
    batch = BATCHES[name]
    torch.manual_seed(common.SEED)
    if step == "bare":
        model = common.language_model(name).train()
        ids = torch.randint(0, common.NUM_WORDS, (batch, positions_of_a_window(context_steps)))
        given = {"input_ids": ids, "labels": ids, "use_cache": False}
    else:
        # every place is looked at, so that both sides have equally many positions
        model = common.world_model(name, context_steps=context_steps, focus_share=0.0).train()
        given = transitions(model, step, batch, context_steps)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        model(**given).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def transitions(model, objective: str, batch: int, steps: int) -> dict:
    """A batch for an objective; "dynamics" gets it encoded and leaves senses and latent heads alone, as in stage 4."""
    observation = common.observe(batch, steps + 1)
    given = {
        "objective": objective,
        "action": torch.randint(0, 7, (batch, steps)),
        "reward": torch.zeros(batch, steps),
        "done": torch.zeros(batch, steps),
    }
    if objective == "joint":
        return given | {"observation": observation}
    for part in (model.senses, model.latent_heads):
        part.requires_grad_(False)
    with torch.no_grad():
        state = model.encode(observation)
    encoded = {"codes": state.codes, "latents": state.latents, "prefix": model.prefix_ids(observation)}
    return given | {"state": encoded}


def measure_memory(name: str, step: str, context_steps: int, threads: int) -> Record:
    """Peak memory of a process of its own that takes two steps, the second with the optimizer's state in place."""
    peak = common.peak_memory_gib(train_twice, name, step, context_steps, threads=threads)
    return _record("peak_memory_gib", peak, None, step, name)


def train_twice(name: str, step: str, context_steps: int) -> None:
    run = make_step(name, step, context_steps)
    run()
    run()


def show(records: list[Record]) -> None:
    """Prints the records as Markdown tables."""
    speed = select(records, metric=["tokens_per_second", "bare_share", "bare_share_target"])
    memory = select(records, metric="peak_memory_gib")
    print("\nTokens a second of a training step, and share of the bare backbone's\n")
    print(table(speed, ["split", "model"], "metric"))
    print("\nPeak memory of a process that trains\n")
    print(table(memory, "split", "model"))


if __name__ == "__main__":
    typer.run(main)
