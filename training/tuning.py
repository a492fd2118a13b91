"""How a stage trains a backbone that was loaded: its words must not be lost to a world that it has yet to see.

    lora      LoRA on every linear layer of the backbone, at a share of the learning rate; the default
    freeze    nothing of the backbone
    full      the whole backbone, at a smaller share of the learning rate

With `lora` and `freeze` the backbone keeps every weight to the bit, and its table the rows of its words. Rows of codes
are new to it, and are trained like the rest of the world model. In a stage that trains no backbone an adapter of the
stages before takes part as it is. Where there is one, a stage leaves the adapter, and in `base` the model it goes on:

    final/adapter_config.json, adapter_model.safetensors, ...    see `pan_hf.adapters`
    final/base/                                                  a checkpoint; its unchanged files are links

A backbone with random weights has nothing to lose: it is trained whole, at the learning rate of the stage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from pan_hf.adapters import BASE, load_adapter, lora_config, save_adapter
from pan_hf.checkpoints import save_checkpoint
from pan_hf.files import whole_folder
from pan_hf.modeling import PanConfig, PanModel
from pan_hf.tokenization import PanProcessor

LORA, FREEZE, FULL = TUNINGS = ("lora", "freeze", "full")
RATES = {LORA: 0.04, FULL: 0.01}  # shares of a stage's learning rate that keep words, see docs/guide/backbone.md
RANK = 8


@dataclass
class Tuning:
    """What a stage trains of a model, chosen by [`tune`].

    Args:
        kind (`str`): one of `TUNINGS`.
        adapted ([`PeftModel`], *optional*): around the model, where an adapter is on it.
        slow (`dict[str, float]`): shares of the learning rate by the beginning of a parameter's name.
        tables (`set[str]`): names of the tables of which only the rows of codes are trained; they may not decay.
    """

    kind: str
    adapted: PeftModel | None = None
    slow: dict[str, float] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)


def kind_of(config: PanConfig, given: str | None) -> str:
    """How a model's backbone is trained. Args: given, one of `TUNINGS`; None for what suits the backbone."""
    return given or (LORA if config.training.backbone_is_pretrained else FULL)


def base_folder(folder: str | Path) -> Path:
    """The whole checkpoint in what a stage has left: `folder` itself, or the base of the adapter in it."""
    below = Path(folder) / BASE
    return below if (below / "config.json").is_file() else Path(folder)


def tune(
    model: PanModel, processor: PanProcessor, folder: str | Path, trains: str, given: str | None, lora: dict
) -> Tuning:
    """Decides which parameters have a gradient, and puts an adapter on the model where one is trained or was.

    Args:
        model, processor: from `base_folder(folder)`.
        folder: the checkpoint that a stage starts from.
        trains (`str`): pattern of the names of parameters that the stage trains.
        given: see [`kind_of`].
        lora (`dict`): fields of a new adapter's `LoraConfig`.

    Raises:
        ValueError: the adapter in the folder is damaged.
    """
    tuning = Tuning(kind_of(model.config, given))
    trains_backbone = re.match(trains, "language_model.") is not None
    if base_folder(folder) != Path(folder):
        processor.attach(model)
        tuning.adapted = load_adapter(model, folder, is_trainable=tuning.kind == LORA)
        if tuning.kind == FULL:
            tuning.adapted.merge_and_unload()
            tuning.adapted = None
    elif tuning.kind == LORA and trains_backbone:
        tuning.adapted = get_peft_model(model, lora_config(model, **({"r": RANK, "head": None} | lora)))
    tables = {id(table) for table in model.table.weights()}
    for name, parameter in model.named_parameters():
        is_trained, in_backbone = re.match(trains, name) is not None, name.startswith("language_model.")
        if is_trained and in_backbone and tuning.kind != FULL:
            is_trained = id(parameter) in tables or (tuning.kind == LORA and ".lora_" in name)
            if id(parameter) in tables:
                tuning.tables.add(name)
                _keep_words(parameter, model.config.text_size)
        parameter.requires_grad_(is_trained)
    if model.config.training.backbone_is_pretrained:
        tuning.slow = dict.fromkeys(tuning.tables, 1.0) | {"language_model.": RATES.get(tuning.kind, 1.0)}
    return tuning


def _keep_words(table: torch.nn.Parameter, count: int) -> None:
    """Lets only the rows behind the first `count` be trained."""

    def of_codes(gradient: torch.Tensor) -> torch.Tensor:
        kept = gradient.clone()
        kept[:count] = 0.0
        return kept

    table.requires_grad_(True).register_hook(of_codes)


def save_adapted(
    folder: Path, adapted: PeftModel, processor: PanProcessor, files: dict[str, str], before: str | Path
) -> None:
    """Saves an adapter together with the model that it is on, which it is taken off.

    Args: as for [`save_checkpoint`].
    """
    adapted.active_peft_config.base_model_name_or_path = str(folder.resolve() / BASE)
    with whole_folder(folder) as temporary:
        save_adapter(adapted, temporary, files=files)
        save_checkpoint(temporary / BASE, adapted.unload(), processor, files, before)


# ---- What a user chooses: `pan train --freeze`, `--lora r=16`, `--full`.


def chosen(freeze: bool, lora: dict[str, Any] | None, full: bool, is_pretrained: bool) -> dict[str, Any]:
    """The arguments of every stage, `backbone` and `lora`, by what was chosen; empty where nothing was.

    Args:
        is_pretrained (`bool`): whether the backbone has weights to keep.

    Raises:
        ValueError: more than one way, one that a random backbone does not have, or unknown fields of LoRA.
    """
    ways = [name for name, given in ((FREEZE, freeze), (LORA, lora is not None), (FULL, full)) if given]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(f'`{way}`' for way in ways)} exclude one another; choose one of them.")
    if ways and ways[0] != FULL and not is_pretrained:
        raise ValueError(
            f"`{ways[0]}` keeps a pretrained backbone, and this one has random weights, which have to be trained. "
            "Leave it out, or name a pretrained one as `backbone`."
        )
    check_lora(lora or {})
    return ({"backbone": ways[0]} if ways else {}) | ({"lora": lora} if lora else {})


def check_lora(given: dict[str, Any]) -> None:
    """Raises ValueError where these are not fields of `LoraConfig`, or their values cannot be."""
    known = [each.name for each in fields(LoraConfig) if each.init]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"`lora` takes fields of peft's LoraConfig, as `r=8`; it has no {unknown}.")
    rank = given.get("r", RANK)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"`lora`: `r`, its rank, must be a whole number of at least 1, got {rank!r}.")
    if given.get("modules_to_save") or given.get("trainable_token_indices"):
        raise ValueError("`lora`: a stage chooses `modules_to_save` and `trainable_token_indices`; leave them out.")
    try:
        LoraConfig(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`lora`: {error}") from error


def told(config: PanConfig, backbone: str, given: dict[str, Any]) -> str | None:
    """One line on how a pretrained backbone is trained and how to choose otherwise; None for a random one.

    Args:
        backbone: its name or folder.
        given: see [`chosen`].
    """
    if not config.training.backbone_is_pretrained:
        return None
    kind, layers = kind_of(config, given.get("backbone")), config.text_config.num_hidden_layers
    rate, rank = RATES.get(kind), given.get("lora", {}).get("r", RANK)
    how = {
        LORA: f"its weights stay, and LoRA of rank {rank} is trained on its {layers} layers, at {rate} of the "
        "learning rate",
        FREEZE: f"nothing of its {layers} layers is trained",
        FULL: f"all of its {layers} layers are trained, at {rate} of the learning rate, and its words may drift",
    }[kind]
    return f"{backbone} is pretrained: {how} (--freeze, --lora r=16, --full and --layers 8 choose otherwise)."
