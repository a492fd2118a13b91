"""Fine-tuning: the dynamics of a finished world model learn someone's own recording, through an adapter of PEFT.

Readouts, glances and agent heads are trained whole and saved with the adapter; senses, codes, the diffusion heads and
the switch stay as they were. With `--adapter none` everything that the dynamics stage trains is trained.

    python -m pan_hf.training.finetune --model DIR --data DIR --output_dir DIR --adapter lora --seconds 60
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model

from pan_hf.adapters import ia3_config, lora_config, save_adapter
from pan_hf.build import save_checkpoint
from pan_hf.modeling import PanModel
from pan_hf.training.align import DYNAMICS, make_encoded
from pan_hf.training.stage import Stage, StageArguments, main

ADAPTERS = {
    "lora": lambda model, rank: lora_config(model, r=rank),
    "dora": lambda model, rank: lora_config(model, r=rank, use_dora=True),
    "ia3": lambda model, rank: ia3_config(model),
}
NONE = "none"


@dataclass
class FinetuneArguments(StageArguments):
    """What fine-tuning takes beside what every stage takes."""

    adapter: str = field(default="lora", metadata={"help": "lora, dora, ia3, or none to train the whole model."})
    rank: int = field(default=8, metadata={"help": "Rank of lora and dora."})
    base: str | None = field(default=None, metadata={"help": "What the adapter calls its base; the model by default."})

    def __post_init__(self):
        super().__post_init__()
        if self.adapter not in (*ADAPTERS, NONE):
            raise ValueError(f"`adapter` must be one of {[*ADAPTERS, NONE]}, got {self.adapter!r}.")
        if self.rank < 1:
            raise ValueError(f"`rank` must be at least 1, got {self.rank}.")


def wrap(model: PanModel, args: FinetuneArguments) -> torch.nn.Module:
    """The model with a new adapter on it, or as it is."""
    if args.adapter == NONE:
        return model
    adapted = get_peft_model(model, ADAPTERS[args.adapter](model, args.rank))
    adapted.active_peft_config.base_model_name_or_path = args.base or args.model
    return adapted


def save(folder: Path, model: torch.nn.Module, processor, files: dict[str, str]) -> None:
    """An adapter's folder, or a checkpoint's."""
    if isinstance(model, PeftModel):
        save_adapter(model, folder, files=files)
    else:
        save_checkpoint(folder, model, processor, files)


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

if __name__ == "__main__":
    main(STAGE)
