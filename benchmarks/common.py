"""What both benchmarks share: the models they time, timing side by side, the machine's own limit, and peak memory.

Weights are random and frames are noise. Two things that are compared are timed in turn, A B A B, so that whatever else
the machine does meets both alike.
"""

import multiprocessing
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pan_hf import DiscreteAction, ImageSense, PanModel, TextSense
from pan_hf.build import PRESETS
from pan_hf.quickstart import MINIATURE, quickstart

RESULTS = Path(__file__).resolve().parent / "results"
VOCABULARY = Path(__file__).resolve().parent.parent / "docs" / "results" / "vocabulary"  # quoted by docs/results
ENVIRONMENT = "random 64x64 frames, 14 words, 7 actions"
SEED = 0
MISSION_LENGTH = 14
NUM_WORDS = 512
# the shape of SmolLM2-135M
LLAMA_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
# on a finest grid of 8x8 cells: 64, 64 + 64, or 16 + 64 + 64 codes
LEVEL_STRIDES = {1: (1,), 2: (1, 1), 3: (2, 1, 1)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def miniature(folder: Path) -> Path:
    """A quickstart in miniature, made in a folder unless it is there already."""
    if not (folder / "checkpoint").exists():
        quickstart(folder, MINIATURE, backbone="debug", progress=False)
    return folder


def language_model(name: str) -> PreTrainedModel:
    """A random causal language model: a preset of `pan_hf.build` (Qwen3) or "llama-135m"."""
    torch.manual_seed(SEED)
    shared = {"max_position_embeddings": 4096, "tie_word_embeddings": True}
    if name == "llama-135m":
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA_135M, **shared))
    preset = PRESETS[name]
    heads = preset["num_attention_heads"]
    shape = {"num_key_value_heads": heads, "head_dim": preset["hidden_size"] // heads, "vocab_size": NUM_WORDS}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **shape, **preset, **shared))


def world_model(
    name: str = "tiny",
    level_strides: tuple[int, ...] = LEVEL_STRIDES[2],
    spatial_merge_size: int = 2,
    dtype: str = "float32",
    **config,
) -> PanModel:
    """The world model of the quickstart, untrained: a 64x64 camera, a mission of 14 words, 7 actions.

    Args:
        name (`str`): of the backbone, see `language_model`.
        level_strides, spatial_merge_size: of the camera, see `ImageSense`; a state has 16 tokens here.
        dtype (`str`): of the weights; senses and latent heads stay in float32, as after `from_pretrained`.
        config: any field of `PanConfig`.
    """
    levels = len(level_strides)
    camera = ImageSense(
        size=64,
        level_strides=list(level_strides),
        spatial_merge_size=spatial_merge_size,
        codebook_size=[128] * levels,
        codebook_capacity=[256] * levels,
    )
    senses = {"camera": camera, "mission": TextSense(max_length=MISSION_LENGTH)}
    model = PanModel.from_backbone(
        language_model(name), senses, DiscreteAction(7), text_reserve=256, pad_token_id=0, **config
    )
    model.to(DTYPES[dtype])
    for part in model._keep_in_fp32_modules_strict:
        getattr(model, part).float()
    return model.eval()


def observe(batch_size: int, num_frames: int = 1) -> dict[str, torch.Tensor]:
    """Noise as the processor would give it: camera uint8 `(B, T, 3, 64, 64)`, mission ids `(B, 14)`, not padded."""
    generator = torch.Generator().manual_seed(SEED)
    camera = torch.randint(0, 256, (batch_size, num_frames, 3, 64, 64), dtype=torch.uint8, generator=generator)
    mission = torch.randint(3, NUM_WORDS, (batch_size, MISSION_LENGTH), generator=generator)
    return {"camera": camera, "mission": mission}


# -------------------------------------------------------------------------------------------------------------- timing


def side_by_side(runs: dict[str, Callable[[], object]], seconds: float, repeats: int) -> dict[str, list[float]]:
    """Times several functions in turn, A B A B, each once untimed before.

    Args:
        runs: name -> function.
        seconds (`float`): rounds go on for this long,
        repeats (`int`): and at least this many times.

    Returns:
        name -> seconds of each round; entry `i` of every list was measured in the same round.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    begun = time.perf_counter()
    while len(next(iter(times.values()))) < repeats or time.perf_counter() - begun < seconds:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def median_stderr(values: Iterable[float]) -> tuple[float, float | None]:
    """Median and its standard error, from the quartiles so that one interrupted round does not count (None below four
    values): for a normal distribution the deviation is 0.741 quartile distances and the median's error 1.253 / root n
    of it."""
    values = list(values)
    if len(values) < 4:
        return statistics.median(values), None
    low, _, high = statistics.quantiles(values, n=4)
    return statistics.median(values), 1.253 * 0.741 * (high - low) / len(values) ** 0.5


def matmul(dtype: str, size: int = 1024) -> Callable[[], torch.Tensor]:
    """A large square product, `2 * size ** 3` operations: what the machine can do in this dtype with these threads."""
    left, right = (torch.randn(size, size, dtype=DTYPES[dtype]) for _ in range(2))
    return lambda: left @ right


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the products, convolutions and attention of one call."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        run()
    return counter.get_total_flops()


def _attention_flops(query, key, value, *_args, **_kwargs) -> int:
    return sdpa_flop_count(query, key, value)


# torch counts attention on accelerators only
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


# -------------------------------------------------------------------------------------------------------------- memory


def peak_memory_gib(function: Callable[..., None], *arguments, threads: int) -> float:
    """Highest resident memory of a fresh process that does nothing else than call a module-level function, in GiB."""
    return in_fresh_process(_peak_after, function, arguments, threads=threads)


def in_fresh_process(function: Callable, *arguments, threads: int):
    """What a module-level function returns, called in a process that does nothing else."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(sender, function, arguments, threads))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__}{arguments} failed in its own process; its error is above.") from None
    finally:
        process.join()


def _tell(sender, function: Callable, arguments: tuple, threads: int) -> None:
    torch.set_num_threads(threads)
    sender.send(function(*arguments))


def _peak_after(function: Callable[..., None], arguments: tuple) -> float:
    function(*arguments)
    return _peak_of_this_process()


def _peak_of_this_process() -> float:
    try:  # getrusage would count the parent's memory from before the exec
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found.group(1)) / 2**20
    except OSError:
        pass  # not Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
