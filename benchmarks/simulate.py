"""Imagined steps a second: `simulate` against the token-by-token way of the same model, and how far from the machine.

The token-by-token way is what a language model over codes does: the current state and the action go in, and
`generate` writes the next state's codes (64 + 64 by default), one token a forward, with a cache. It gets the cheapest
prompt there is, the 17 positions of the trunk and no mission, and it is spared the reward and continuation heads.

    python benchmarks/simulate.py            # about eight minutes on one thread
    python benchmarks/simulate.py --quick    # seconds: the same path in miniature
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf import PanModel  # noqa: E402
from pan_hf.console import track  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.tables import select, table  # noqa: E402

# name -> what of `common.world_model` differs, and what the ratio to token by token must be, by batch
COHERENT = {"level0_sampling": "autoregressive"}
FOLDED_TARGETS, COHERENT_TARGETS = {1: 40.0, 64: 5.0}, {1: 12.0, 64: 3.0}
MODES = {
    "folded, 64 + 64 codes": ({}, FOLDED_TARGETS),
    "folded, 16 + 64 codes": ({"level_strides": (2, 1)}, FOLDED_TARGETS),
    "coherent, 64 + 64 codes": (COHERENT, COHERENT_TARGETS),
    "coherent, 16 + 64 codes": ({"level_strides": (2, 1)} | COHERENT, COHERENT_TARGETS),
    "coherent, 16 + 64 codes, a pass a level": (
        {"level_strides": (2, 1), "fold_levels": False} | COHERENT,
        COHERENT_TARGETS,
    ),
}


def main(
    threads: Annotated[int, typer.Option(help="OpenMP threads.")] = 1,
    horizon: Annotated[int, typer.Option(help="Steps imagined in one call of `simulate`.")] = 8,
    seconds: Annotated[float, typer.Option(help="Time for each measurement, at the least.")] = 2.0,
    repeats: Annotated[int, typer.Option(help="Rounds of each measurement, at the least.")] = 4,
    quick: Annotated[bool, typer.Option("--quick", help="The debug backbone and small batches, in seconds.")] = False,
    output: Annotated[Path, typer.Option(help="Where the records go.")] = common.RESULTS / "simulate.json",
) -> list[Record]:
    """Measures, writes the records and prints them as tables."""
    torch.set_num_threads(threads)
    measure = Measure(horizon, seconds, repeats)
    backbone, batches = ("debug", (1, 4)) if quick else ("tiny", (1, 64))
    pairs = [(mode, batch) for mode in MODES for batch in batches]
    compared = [
        entry
        for mode, batch in track(pairs, "comparing", "settings")
        for entry in compare(measure, backbone, mode, batch)
    ]
    swept = [
        entry
        for setting in track(sweep_settings(quick), "measuring", "settings")
        for entry in sweep(measure, *setting)
    ]
    peak = common.peak_memory_gib(imagine_once, backbone, batches[-1], horizon, threads=threads)
    memory = [_record("peak_memory_gib", peak, None, setting_name(backbone, 2, 16, "float32"), batches[-1])]
    write_records(output, compared + swept + memory)
    show(compared, swept, memory)
    return compared + swept + memory


class Measure:
    """How long and how often to measure, and how far to imagine in one call."""

    def __init__(self, horizon: int, seconds: float, repeats: int):
        self.horizon, self.seconds, self.repeats = horizon, seconds, repeats

    def time(self, runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        return common.side_by_side(runs, self.seconds, self.repeats)


def _record(metric: str, value: float, stderr: float | None, model: str, batch: int) -> Record:
    where = {"environment": common.ENVIRONMENT, "split": f"batch {batch}", "seeds": [common.SEED]}
    return record(metric, value, stderr=stderr, model=model, **where)


# ------------------------------------------------------------------------------------------- against token by token


def compare(measure: Measure, backbone: str, mode: str, batch: int) -> list[Record]:
    """Steps a second of both ways of one model, in turn, and their ratio with its target."""
    differences, targets = MODES[mode]
    model = common.world_model(backbone, **differences)
    runs = {"simulate": imagine(model, batch, measure.horizon), "generate": token_by_token(model, batch)}
    times = measure.time(runs)
    rates = {
        "simulate": [batch * measure.horizon / each for each in times["simulate"]],
        "generate": [batch / each for each in times["generate"]],
    }
    speedups = [fast / slow for fast, slow in zip(rates["simulate"], rates["generate"], strict=True)]
    return [
        _record("steps_per_second", *common.median_stderr(rates["simulate"]), mode, batch),
        _record("steps_per_second", *common.median_stderr(rates["generate"]), f"token by token, {mode}", batch),
        _record("speedup", *common.median_stderr(speedups), mode, batch),
        _record("speedup_target", targets.get(batch, float("nan")), None, mode, batch),
    ]


def imagine(model: PanModel, batch: int, horizon: int) -> Callable[[], object]:
    """`horizon` steps of `batch` futures in one call of `simulate`; nothing is decoded."""
    belief = model.perceive(common.observe(batch))
    actions = torch.randint(0, 7, (batch, horizon), generator=torch.Generator().manual_seed(common.SEED))
    return lambda: model.simulate(belief, actions, seed=common.SEED)


@torch.no_grad()
def token_by_token(model: PanModel, batch: int) -> Callable[[], object]:
    """One step the slow way: the trunk as a prompt, then as many tokens as a state has codes, greedily."""
    belief = model.perceive(common.observe(batch))
    action = torch.zeros(batch, dtype=torch.long)
    trunk = torch.cat([model.embed_state(belief.state), model.embed_action(action)], 1)
    num_codes = sum(codes.shape[1] for levels in belief.codes.values() for codes in levels)
    return lambda: model.generate(
        inputs_embeds=trunk,
        attention_mask=torch.ones(trunk.shape[:2], dtype=torch.long),
        min_new_tokens=num_codes,
        max_new_tokens=num_codes,
        do_sample=False,
        pad_token_id=0,
        codes_in_text=True,
    )


# ----------------------------------------------------------------------------------------------------------- the sweep


def sweep_settings(quick: bool) -> list[tuple[str, int, int, str, int]]:
    """(backbone, levels, spatial_merge_size, dtype, batch): one thing varied at a time around the default."""
    if quick:
        return [("debug", 2, 2, "float32", 1), ("debug", 3, 4, "float32", 1), ("debug", 1, 2, "bfloat16", 4)]
    chosen = [("tiny", 2, 2, batch) for batch in (1, 8, 64, 256)]
    chosen += [("tiny", levels, 2, batch) for levels in (1, 3) for batch in (1, 64)]
    chosen += [("tiny", 2, spatial_merge_size, batch) for spatial_merge_size in (1, 4) for batch in (1, 64)]
    chosen += [(backbone, 2, 2, batch) for backbone in ("debug", "small") for batch in (1, 64)]
    chosen += [("llama-135m", 2, 2, batch) for batch in (1, 8)]
    return [(*shape, dtype, batch) for *shape, batch in chosen for dtype in common.DTYPES]


def sweep(
    measure: Measure, backbone: str, num_levels: int, spatial_merge_size: int, dtype: str, batch: int
) -> list[Record]:
    """Steps a second of one setting, and the share of the matmul rate that its floating-point operations reach."""
    model = common.world_model(backbone, common.LEVEL_STRIDES[num_levels], spatial_merge_size, dtype)
    run, steps = imagine(model, batch, measure.horizon), batch * measure.horizon
    flops = common.count_flops(run)
    times = measure.time({"simulate": run, "matmul": common.matmul(dtype)})
    limit = [2 * 1024**3 / each for each in times["matmul"]]
    shares = [flops / each / rate for each, rate in zip(times["simulate"], limit, strict=True)]
    name = setting_name(backbone, num_levels, model.layout.num_state_tokens, dtype)
    return [
        _record("steps_per_second", *common.median_stderr([steps / each for each in times["simulate"]]), name, batch),
        _record("matmul_share", *common.median_stderr(shares), name, batch),
        _record("mflop_per_step", flops / steps / 1e6, None, name, batch),
        _record("matmul_gflop_per_second", statistics.median(limit) / 1e9, None, name, batch),
    ]


def setting_name(backbone: str, num_levels: int, num_state_tokens: int, dtype: str) -> str:
    return f"{backbone}, {num_levels} level{'s' * (num_levels > 1)}, {num_state_tokens} places, {dtype}"


def imagine_once(backbone: str, batch: int, horizon: int) -> None:
    """One call of `simulate` with one frame decoded, in a process whose memory is looked at."""
    futures = imagine(common.world_model(backbone), batch, horizon)()
    futures.belief.decode("camera")


# ------------------------------------------------------------------------------------------------------------- showing


def show(compared: list[Record], swept: list[Record], memory: list[Record]) -> None:
    """Prints the records as Markdown tables."""
    rates = [entry for entry in compared if entry.metric == "steps_per_second"]
    ratios = [entry for entry in compared if entry.metric != "steps_per_second"]
    speed = select(swept, metric=["steps_per_second", "matmul_share"])
    for title, shown, columns in (
        ("Imagined steps a second, both ways in turn", rates, "split"),
        ("Times faster than token by token", ratios, ["split", "metric"]),
        ("Steps a second, and their share of the matmul rate", speed, ["split", "metric"]),
        ("Peak memory of a process that imagines", memory, "split"),
    ):
        print(f"\n{title}\n\n{table(shown, 'model', columns)}")


if __name__ == "__main__":
    typer.run(main)
