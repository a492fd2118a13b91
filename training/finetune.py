"""Fine-tuning: the dynamics of a finished world model learn someone's own recording, through an adapter of PEFT.

Readouts, glances and agent heads are trained whole and saved with the adapter; senses, codes, the diffusion heads and
the switch stay as they were. With `--adapter none` everything that the dynamics stage trains is trained.

    python -m pan_hf.training.finetune --model DIR --data DIR --output_dir DIR --adapter lora --seconds 60
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model

from pan_hf.adapters import check_family, ia3_config, lora_config, save_adapter
from pan_hf.arguments import checked, least
from pan_hf.checkpoints import load, save_checkpoint
from pan_hf.data.episodes import recording_folder
from pan_hf.hub import address
from pan_hf.modeling import PanConfig, PanModel
from pan_hf.training.align import DYNAMICS
from pan_hf.training.arguments import Stage, StageArguments
from pan_hf.training.run_folder import TIME, find_start, publish, run_one_stage
from pan_hf.training.sampling import make_encoded
from pan_hf.training.stage import TRAINING_DATA, main
from pan_hf.training.tuning import FULL

ADAPTERS = {
    "lora": lambda model, rank: lora_config(model, r=rank),
    "dora": lambda model, rank: lora_config(model, r=rank, use_dora=True),
    "ia3": lambda model, rank: ia3_config(model),
    "none": None,
}


@dataclass
class FinetuneArguments(StageArguments):
    """What fine-tuning takes beside what every stage takes."""

    adapter: str = field(default="lora", metadata={"help": "lora, dora, ia3, or none to train the whole model."})
    rank: int = field(default=8, metadata={"help": "Rank of lora and dora."})
    base: str | None = field(default=None, metadata={"help": "What the adapter calls its base; the model by default."})

    def __post_init__(self):
        super().__post_init__()
        if self.adapter not in ADAPTERS:
            raise ValueError(f"`adapter` must be one of {[*ADAPTERS]}, got {self.adapter!r}.")
        self.check_least(rank=1)
        self.backbone = FULL  # the adapter is put on here


def wrap(model: PanModel, args: FinetuneArguments) -> torch.nn.Module:
    """The model with a new adapter on it, or as it is."""
    configure = ADAPTERS[args.adapter]
    if configure is None:
        return model
    adapted = get_peft_model(model, configure(model, args.rank))
    adapted.active_peft_config.base_model_name_or_path = args.base or args.model
    return adapted


def save(
    folder: Path, model: PanModel | PeftModel, processor, files: dict[str, str], before: Path | None = None
) -> None:
    """An adapter's folder, or a checkpoint's."""
    if isinstance(model, PeftModel):
        save_adapter(model, folder, files=files)
    else:
        save_checkpoint(folder, model, processor, files, before)


STAGE = Stage(
    name="finetune",
    objective=DYNAMICS.objective,
    trains=DYNAMICS.trains,
    half=DYNAMICS.half,
    make_data=make_encoded,
    wrap=wrap,
    save=save,
    arguments=FinetuneArguments,
    defaults={"learning_rate": 2e-3},
)


# ---- `pan finetune`: a finished world model, here or on the Hub, learns a recording of someone's own.
#
#     <run>/stages/finetune    the stage
#     <run>/adapter            what it learned, a few MB; `pan evaluate` and `pan plan` put it on its base
#     <run>/checkpoint         with `merge`, or without an adapter: a checkpoint like any other


@checked(**TIME, learning_rate=least(0, above=True))
def finetune(
    run: str | Path,
    start: str | Path,
    data: str | Path | None = None,
    *,
    adapter: str = "lora",
    rank: int = 8,
    seconds: float = 60.0,
    max_steps: int | None = None,
    learning_rate: float | None = None,
    merge: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Trains a finished world model on a recording of your own: writes an adapter of a few MB.

    Run again, it goes on after an interruption; run again with `merge` when it is done, it merges.

    Args:
        run: folder of the new run; holds everything afterwards.
        start: a run or checkpoint, or its Hub id; it is left as it is.
        data: a recording, a run with one, or a Hub id; `<run>/data` by default. Only its train split is read.
        adapter (`str`): "lora", "dora", "ia3", or "none" to train all that the dynamics stage trains.
        rank (`int`): of lora and dora.
        seconds (`float`): how long to train.
        max_steps (`int`, *optional*): how long to train, in steps; a run is then independent of the machine's speed.
        learning_rate (`float`, *optional*): its peak, in place of the stage's own.
        merge (`bool`): also write the model with the adapter merged into it, as `<run>/checkpoint`.
        seed (`int`): of everything random.
        progress (`bool`): show progress bars.

    Returns:
        `<run>/adapter`, or `<run>/checkpoint` where there is one.

    Raises:
        FileNotFoundError: there is no checkpoint, or no recording.
        HubError: the Hub did not give one of them.
        ValueError: the recording does not fit the model, an unknown adapter, a run that was begun with other settings
            or that would overwrite what it starts from. Nothing has been written then.
    """
    run = Path(run)
    source, recording = find_start(run, start), recording_folder(run / "data" if data is None else data)
    check_family(PanConfig.from_pretrained(source), adapter)
    settings = {"base": address(source) or str(source.resolve()), "adapter": adapter, "rank": rank, "seed": seed}
    settings |= {"seconds": seconds, "max_steps": max_steps, "learning_rate": learning_rate}
    final = run_one_stage(STAGE, run, source, recording, settings, progress, encoded=True)
    published = publish(final, run / ("checkpoint" if ADAPTERS[adapter] is None else "adapter"), recording)
    if not merge or ADAPTERS[adapter] is None:
        return published
    model, processor = load(published)  # the base, with the adapter on it
    training_data = (published / TRAINING_DATA).read_text()
    save_checkpoint(run / "checkpoint", model, processor, {TRAINING_DATA: training_data})
    return run / "checkpoint"


if __name__ == "__main__":
    main(STAGE)
