"""What a compiled step saves: `simulate` after `model.compile_step()` against the same model as it is.

The quickstart's model with random weights; its glance is set so that it picks as few places as a trained one does (0.6
of 16 by default), since what is not looked at costs nothing. Both ways are timed in turn, and must imagine the same
codes.

    python benchmarks/compiled.py            # some ten minutes on one quiet thread, most of them the compiler's
    python benchmarks/compiled.py --quick    # the debug backbone, uncompiled graphs: the same path in miniature
"""

import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch._inductor.utils import fresh_cache

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from benchmarks import common  # noqa: E402
from pan_hf import PanModel  # noqa: E402
from pan_hf.modeling.backbone_pan import embed_step  # noqa: E402
from pan_hf.modeling.effort_pan import LEAST_CHANGE  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.tables import table  # noqa: E402

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "compiled"  # the guide shows them
EFFORTS = {"coarsest": "coarsest", "focused": "focused", "no effort": None}
BATCHES = (1, 64)


def main(
    effort: Annotated[list[str] | None, typer.Option(help="coarsest, focused, 'no effort'; all by default.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Futures in one call; 1 and 64 by default.")] = None,
    places: Annotated[float, typer.Option(help="Places looked at in a step, on average.")] = 0.6,
    backbone: Annotated[str, typer.Option(help="See `common.language_model`.")] = "tiny",
    backend: Annotated[str, typer.Option(help="Of torch.compile, if not as `compile_step` has it.")] = "",
    horizon: Annotated[int, typer.Option(help="Steps imagined in one call of `simulate`.")] = 8,
    seconds: Annotated[float, typer.Option(help="Time for each measurement, at the least.")] = 6.0,
    threads: Annotated[int, typer.Option(help="OpenMP threads.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="The debug backbone, graphs only captured.")] = False,
    output: Annotated[Path, typer.Option(help="Where the records go.")] = RESULTS / "compiled.json",
) -> list[Record]:
    """Measures, writes the records and prints them as a table."""
    torch.set_num_threads(threads)
    efforts, batches = effort or list(EFFORTS), batch or list(BATCHES)
    if quick:
        efforts, batches, backbone, backend, seconds = ["coarsest"], [1], "debug", "eager", 0.0
    model = glancing_at(places, common.world_model(backbone))
    records = [
        entry
        for count in batches
        for name in efforts
        for entry in compare(model, name, count, horizon, seconds, {"backend": backend} if backend else {})
    ]
    write_records(output, records)
    print(table(records, "model", ["split", "metric"]))
    return records


@torch.no_grad()
def glancing_at(places: float, model: PanModel) -> PanModel:
    """The model, with a glance that picks so many places of a random state on average, more in some states than in
    others."""
    (glance,) = model.glances.values()
    glance.change.weight.mul_(10)  # random weights tell places apart too little
    state = model.perceive(common.observe(64)).state
    _, change = embed_step(model, state, model.embed_state(state), model.embed_action(torch.arange(64) % 7))
    (logits,) = change.values()
    edge = logits.flatten().quantile(1 - places / logits.shape[1])
    glance.change.bias += torch.tensor(LEAST_CHANGE).logit() - edge
    return model


def compare(model: PanModel, name: str, batch: int, horizon: int, seconds: float, options: dict) -> list[Record]:
    """Steps a second with and without compiled pieces, in turn, how much faster they are, and what compiling took."""
    belief = model.perceive(common.observe(batch))
    actions = torch.randint(0, 7, (batch, horizon), generator=torch.Generator().manual_seed(common.SEED))
    torch.compiler.reset()
    model.compile_step(**options)
    compiled = model.compiled_step

    def imagine(is_compiled: bool):
        if is_compiled:
            model.compiled_step = compiled
        else:
            model.compile_step(disable=True)
        return model.simulate(belief, actions, seed=common.SEED, effort=EFFORTS[name])

    with fresh_cache():  # what the compiler kept of earlier graphs would be found again
        started = time.perf_counter()
        found = imagine(True)
        compiling = time.perf_counter() - started
    if not all(map(torch.equal, found.state.tensors(), imagine(False).state.tensors())):
        raise RuntimeError(f"Compiled, {name} at batch {batch} imagined other codes.")
    times = common.side_by_side({"compiled": lambda: imagine(True), "as it is": lambda: imagine(False)}, seconds, 4)
    steps = batch * horizon
    ratios = [slow / fast for slow, fast in zip(times["as it is"], times["compiled"], strict=True)]
    rates = [
        _record("steps_per_second", [steps / each for each in taken], f"{name}, {way}", batch)
        for way, taken in times.items()
    ]
    return [
        *rates,
        _record("speedup", ratios, f"{name}, compiled", batch),
        _record("seconds_compiling", [compiling], f"{name}, compiled", batch),
    ]


def _record(metric: str, values: list[float], model: str, batch: int) -> Record:
    value, stderr = common.median_stderr(values)
    where = {"environment": common.ENVIRONMENT, "split": f"batch {batch}", "seeds": [common.SEED]}
    return record(metric, value, stderr=stderr, model=model, **where)


if __name__ == "__main__":
    typer.run(main)
