"""Which layers of a world model adapters go on, as fields of any PEFT config.

    backbone    every linear layer of the language model, whatever its family calls them; never its table of words
    head        what reads the next state, its reward and its end out of the backbone: trained whole and saved with the
                adapter (`head="full"`), adapted like the backbone (`"lora"`), or left alone (None)
    latents     the diffusion heads, only if asked for; PEFT's "all-linear" would hit them, and the senses
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from peft import IA3Config, LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as IA3_FEEDFORWARD,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_LAYERS
from torch import nn
from transformers.pytorch_utils import Conv1D

from pan_hf.modeling import PanConfig, PanModel

HEADS = ("full", "lora", None)
_HEAD = ("readouts", "glances", "outcome", "inverse_dynamics")
_LINEAR = (nn.Linear, nn.Conv2d, Conv1D, BaseTunerLayer)


def targets(model: PanModel, head: str | None = "full", latents: bool = False, *, by_layer: bool = False) -> dict:
    """`target_modules` and `modules_to_save` of a PEFT config, e.g. `LoHaConfig(**targets(model, by_layer=True))`.

    Args:
        model: with any backbone; may carry adapters already.
        head (`str`, *optional*): "full" trains readouts, glances, outcome and inverse dynamics whole, "lora" adapts
            their layers, which keeps the adapter smaller and can be hot-swapped; None leaves them as they are.
        latents (`bool`): the diffusion heads too, in the same way.
        by_layer (`bool`): with "full", name the layers that have a weight and not the modules they are in: PEFT merges
            over whole modules with LoRA and its kin alone. Single numbers outside of layers then stay as they are.

    Raises:
        ValueError: an unknown `head`, or a backbone without linear layers.
    """
    if head not in HEADS:
        raise ValueError(f"`head` must be one of {HEADS}, got {head!r}.")
    parts = [*(_HEAD if head else ()), *(["latent_heads"] if latents else [])]
    patterns = [_backbone_pattern(model)]
    if head == "lora":
        patterns += [re.escape(name) for part in parts if hasattr(model, part) for name in _layers(model, part)]
        parts = []
    saved = [name for part in parts if hasattr(model, part) for name in _modules(model, part, by_layer)]
    return {"target_modules": "|".join(patterns), "modules_to_save": saved or None}


def lora_config(model: PanModel, r: int = 8, *, head: str | None = "full", latents: bool = False, **given):
    """A `LoraConfig` for a world model; `lora_config(model, use_dora=True)` for DoRA.

    Args:
        model, head, latents: see [`targets`].
        r (`int`): rank; `lora_alpha` is twice as much.
        given: any field of `LoraConfig`, which comes before what is chosen here.
    """
    chosen = {"r": r, "lora_alpha": 2 * r, "fan_in_fan_out": _has_conv1d(model)} | targets(model, head, latents)
    return LoraConfig(**(chosen | given))


def ia3_config(model: PanModel, *, head: str | None = "full", latents: bool = False, **given):
    """An `IA3Config` for a world model: keys, values and feed-forward layers, as PEFT knows them by the backbone's
    family; arguments as for [`lora_config`].

    Raises:
        ValueError: PEFT does not know the family, and `target_modules` and `feedforward_modules` were not given.
    """
    family, chosen = model.config.text_config.model_type, targets(model, head, latents, by_layer=True)
    if {"target_modules", "feedforward_modules"} <= set(given):
        return IA3Config(**(chosen | given))
    check_family(model.config, "ia3")
    pattern = _in_language_model(IA3_LAYERS[family])
    rest = chosen["target_modules"].removeprefix(_backbone_pattern(model))
    chosen |= {"target_modules": pattern + rest, "feedforward_modules": _in_language_model(IA3_FEEDFORWARD[family])}
    return IA3Config(**(chosen | {"fan_in_fan_out": _has_conv1d(model)} | given))


def check_family(config: PanConfig, kind: str) -> None:
    """Raises ValueError where PEFT does not know which layers of a backbone's family an adapter of a kind goes on."""
    family = config.text_config.model_type
    if kind == "ia3" and family not in IA3_LAYERS:
        raise ValueError(
            f"PEFT names no IA3 layers for a backbone of family {family!r}; give `target_modules` and "
            "`feedforward_modules` to `ia3_config`, or use LoRA, which goes on any linear layer."
        )


def _backbone_pattern(model: PanModel) -> str:
    names = sorted(set(_backbone_layers(model)))
    if not names:
        raise ValueError(f"The backbone {type(model.language_model).__name__} has no linear layers to adapt.")
    return _in_language_model(names)


def _in_language_model(names) -> str:
    return rf"language_model\.(?:.+\.)?(?:{'|'.join(map(re.escape, names))})"


def _backbone_layers(model: PanModel) -> Iterator[str]:
    """Last names of the linear layers of the language model, one for each layer, without its output table."""
    table = model.get_output_embeddings()
    for path, layer in _linear(model.language_model):
        if layer is not table:
            yield path.rpartition(".")[2]


def _layers(model: PanModel, part: str) -> list[str]:
    return [f"{part}.{path}" for path, _ in _linear(getattr(model, part))]


def _linear(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Linear layers below a module by path, adapted or not; what an adapter put inside one is none of them."""
    for name, child in module.named_children():
        if isinstance(child, _LINEAR):
            yield prefix + name, child
        else:
            yield from _linear(child, f"{prefix}{name}.")


def _modules(model: PanModel, part: str, by_layer: bool) -> Iterator[str]:
    """What PEFT is to save whole of a part: containers it cannot."""
    found = [(part, getattr(model, part))]
    while found:
        name, module = found.pop(0)
        if hasattr(module, "weight") or not (by_layer or isinstance(module, (nn.ModuleDict, nn.ModuleList))):
            yield name
        else:
            found += [(f"{name}.{key}", child) for key, child in module.named_children()]


def _has_conv1d(model: PanModel) -> bool:
    return any(isinstance(module, Conv1D) for module in model.language_model.modules())
