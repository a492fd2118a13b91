"""Adapters of a world model that may have grown: what PEFT saves, and beside it rows that were born and the ledger.

    adapter_config.json, adapter_model.safetensors    PEFT's own
    grown.safetensors                                 rows of both tables and of codebooks, of every token born since;
                                                      and a fingerprint of the base's weights
    vocabulary.json                                   the ledger; the base's must be its ancestor

PEFT saves what it wraps, and the vocabulary is not wrapped: growth changes no shape, so the tables stay the base's,
and all adapters of a base share the rows that were born. Any adapter of PEFT's can be saved; `lora_config` and
`ia3_config` choose layers that fit.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as IA3_FEEDFORWARD,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_LAYERS,
)
from peft.utils.hotswap import check_hotswap_configs_compatible, hotswap_adapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from pan_hf.files import finish_writing, whole_folder
from pan_hf.hub import on_disk
from pan_hf.modeling import PanConfig, PanModel
from pan_hf.modeling.growth_pan import VocabularyGrowth
from pan_hf.modeling.merging_pan import TokenMerging
from pan_hf.modeling.sense_configuration_pan import MERGES
from pan_hf.tokenization.vocabulary_pan import FILE_NAME, TEXT, Vocabulary

__all__ = ["base_of", "ia3_config", "load_adapter", "lora_config", "save_adapter", "targets", "train_grown_rows"]

CONFIG, WEIGHTS, GROWN = "adapter_config.json", "adapter_model.safetensors", "grown.safetensors"
BASE = "base"  # below an adapter, the model that it was trained together with
_BOOK = ("vectors", "sums", "usage", "corrections", "refinements")
_MARKED = 256  # numbers of a tensor in the fingerprint of a base
_CLOSE = 2**-6  # of their size: a base may be loaded in half precision
_MANY = 4  # names shown of a long list


def train_grown_rows(model: PanModel) -> list:
    """Lets the rows of tokens born since `processor.attach` be trained, and no other row. Call it after wrapping.

    Gradients of all other rows are set to zero. Give the optimizer no weight decay, which would shrink them without.

    Returns:
        the gradient hooks, each with `remove()`.
    """

    def only_grown(gradient: torch.Tensor) -> torch.Tensor:
        ids = _grown_ids(model)  # anew at each step, since tokens may be born while the adapter is trained
        kept = torch.zeros_like(gradient)
        kept[ids] = gradient[ids]
        return kept

    return [table.requires_grad_(True).register_hook(only_grown) for table in model.table.weights()]


# saving


def save_adapter(
    adapted: PeftModel, folder: str | Path, adapter_name: str | None = None, files: dict[str, str] | None = None
) -> None:
    """Saves an adapter, the rows that were born since the base was attached to its processor, and the ledger.

    Args:
        adapted: around a [`PanModel`] attached to its processor.
        folder: changes whole or not at all; an adapter in it is replaced, and files of a user's own stay.
        adapter_name (`str`, *optional*): which one; the active one by default.
        files (`dict[str, str]`, *optional*): name -> text, saved with it.

    Raises:
        ValueError: no processor attached, no such adapter or several active ones, or a folder that holds other things.
    """
    model, folder = adapted.get_base_model(), Path(folder)
    ledger, names = model.ledger(), [adapter_name] if adapter_name is not None else list(adapted.active_adapters)
    if len(names) != 1 or names[0] not in adapted.peft_config:
        raise ValueError(f"Name one adapter to save; got {names}, the model has {list(adapted.peft_config)}.")
    finish_writing(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).exists():
        raise ValueError(f"{folder} holds other things than an adapter; name a new folder for it.")
    with whole_folder(folder) as temporary:
        adapted.save_pretrained(temporary, selected_adapters=names, save_embedding_layers=False)
        if names != ["default"]:  # PEFT puts any other into a folder of its own
            for path in (temporary / names[0]).iterdir():
                path.rename(temporary / path.name)
            (temporary / names[0]).rmdir()
        _save_grown(model, temporary / GROWN)
        ledger.save(temporary)
        for file, text in (files or {}).items():
            (temporary / file).write_text(text)


def _save_grown(model: PanModel, path: Path) -> None:
    ledger, ids = model.ledger(), _grown_ids(model)
    tensors = {f"table.{n}": table.detach()[ids].contiguous() for n, table in enumerate(model.table.weights())}
    for segment in ledger.segments:
        codes = torch.tensor([code for name, code in map(ledger.segment_of, ids) if name == segment], dtype=torch.long)
        for name, buffer in _book_of(model, segment).items() if len(codes) else ():
            tensors[f"{segment}.{name}"] = buffer[codes].contiguous()
    tensors |= {f"base.{name}": numbers for name, numbers in _fingerprint(model).items()}
    about = {"ids": json.dumps(ids), "base_events": str(model.base_events), "base_digest": model.base_digest}
    save_file(tensors, path, metadata=about)  # type: ignore[arg-type]  # attached, or there is no ledger


def _fingerprint(model: PanModel) -> dict[str, torch.Tensor]:
    """Weights of a base that no adapter and no growth changes, and in which two bases of one shape differ."""
    marked = dict(model.queries.items()) if model.is_world_model else {}
    for name, table in {"in": model.get_input_embeddings(), "out": model.get_output_embeddings()}.items():
        marked[f"words_{name}"] = getattr(table, "original_module", table).weight[:_MARKED]  # type: ignore[index]  # a matrix
    return {name: tensor.detach().flatten()[:_MARKED].float().cpu().clone() for name, tensor in marked.items()}


# loading


@dataclass
class _Saved:
    """An adapter's folder, read and found whole."""

    folder: Path
    config: PeftConfig
    shapes: dict[str, tuple[int, ...]]  # of PEFT's tensors
    tensors: dict[str, torch.Tensor]  # of the rows that were born, and the fingerprint of the base
    ids: list[int]
    about: dict[str, str]
    ledger: Vocabulary


def load_adapter(
    model: PanModel | PeftModel,
    folder: str | Path,
    is_trainable: bool = False,
    adapter_name: str = "default",
    hotswap: bool = False,
) -> PeftModel:
    """Puts a saved adapter on a base: its weights are loaded, its tokens are born and their rows written.

    Args:
        model: the base, attached to its processor, or one that carries other adapters already; those share the rows
            of tokens that were born.
        folder: what `save_adapter` wrote, or its Hub id.
        is_trainable (`bool`): go on training.
        adapter_name (`str`): what it is called from now on, for `set_adapter`.
        hotswap (`bool`): it takes the place of `adapter_name`, without a layer being made (LoRA on layers alone,
            `lora_config(..., head="lora")`).

    Returns:
        the model with the adapter on it; `set_adapter(adapter_name)` makes one of several the active one.

    Raises:
        FileNotFoundError: `folder` holds no adapter, or one that was not written to its end.
        ValueError: it is damaged or pickled, is of another base (another vocabulary, other layers, shapes or weights),
            a name is taken, or rows would be written that other adapters use. Nothing has changed then.
        HubError: the Hub did not give it.
    """
    base, folder = model.get_base_model() if isinstance(model, PeftModel) else model, on_disk(folder)
    saved = _read(folder)
    _check_name(model, saved, adapter_name, hotswap)
    events = _new_events(base, saved)
    _check_rows(base, saved)
    _check_base(base, saved)
    _check_layers(base, saved)
    _check_shared(model, saved, adapter_name)
    if hotswap:
        hotswap_adapter(model, str(folder), adapter_name, torch_device=str(base.device))
        adapted = model
    elif isinstance(model, PeftModel):
        adapted = model
        adapted.load_adapter(str(folder), adapter_name, is_trainable=is_trainable)
    else:
        adapted = PeftModel.from_pretrained(base, str(folder), adapter_name, is_trainable=is_trainable)
    for event in events:
        _replay(base, event)
    _write_rows(base, saved)
    return adapted


def base_of(folder: str | Path) -> str:
    """What an adapter was made on: the model in its folder's `base`, or the folder or the model of the Hub that it
    names.

    Raises:
        ValueError: it does not say, or is damaged.
    """
    if (Path(folder) / BASE / "config.json").is_file():
        return str(Path(folder) / BASE)
    name = _read(Path(folder)).config.base_model_name_or_path
    if not name:
        raise ValueError(f"The adapter at {folder} names no base; use `load_adapter(base, folder)`.")
    return name


def _read(folder: Path) -> _Saved:
    finish_writing(folder)
    missing = [name for name in (CONFIG, WEIGHTS, GROWN, FILE_NAME) if not (folder / name).is_file()]
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pkl") for path in folder.glob(pattern))
    if WEIGHTS in missing and pickled:
        raise ValueError(
            f"{folder} holds {pickled}, which are pickled: reading them could run any code. Save the adapter again "
            "with `save_adapter`, which writes safetensors."
        )
    if missing == [GROWN, FILE_NAME]:
        raise FileNotFoundError(
            f"{folder} holds an adapter that PEFT saved by itself, without what tells its base: {missing} are not "
            "there. `PeftModel.from_pretrained(model, folder)` loads it unchecked; `save_adapter` writes all of it."
        )
    if missing:
        raise FileNotFoundError(f"No adapter at {folder}: {missing} not there, which `save_adapter` writes.")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        with safe_open(folder / WEIGHTS, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            wrong = [name for name in file.keys() if not file.get_tensor(name).isfinite().all()]
        with safe_open(folder / GROWN, "pt") as file:
            about = file.metadata()
        ids = json.loads(about["ids"])
        tensors = load_file(folder / GROWN)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"The adapter at {folder} is damaged or cut short ({error}); save it again.") from error
    if wrong := [*wrong, *(name for name, tensor in tensors.items() if not tensor.isfinite().all())]:
        raise ValueError(f"The adapter at {folder} holds numbers that are not finite, in {wrong[:_MANY]}.")
    return _Saved(folder, config, shapes, tensors, ids, about, Vocabulary.load(folder / FILE_NAME))


def _check_name(model: PanModel | PeftModel, saved: _Saved, adapter_name: str, hotswap: bool) -> None:
    taken = model.peft_config if isinstance(model, PeftModel) else {}
    if not hotswap:
        if adapter_name in taken:
            raise ValueError(
                f"The model has an adapter {adapter_name!r} already; give another `adapter_name`, or `hotswap=True` "
                "to put this one in its place."
            )
        return
    if adapter_name not in taken:
        raise ValueError(f"No adapter {adapter_name!r} to take the place of; the model has {sorted(taken)}.")
    check_hotswap_configs_compatible(taken[adapter_name], saved.config)
    if saved.config.modules_to_save or taken[adapter_name].modules_to_save:
        raise ValueError(
            "Only LoRA layers can be hot-swapped, and one of the two adapters has whole modules "
            "(`modules_to_save`). Make both with lora_config(model, head='lora')."
        )


def _new_events(model: PanModel, saved: _Saved) -> tuple[dict, ...]:
    """What happened to the adapter's vocabulary and not yet to the base's."""
    mine, theirs = model.ledger(), saved.ledger
    if theirs.is_ancestor_of(mine):
        return ()  # another adapter's growth, or the base's own, came after
    if not mine.is_ancestor_of(theirs) or len(mine.events) < int(saved.about["base_events"]):
        raise ValueError(
            f"The adapter at {saved.folder} does not belong to this base: the base's vocabulary has digest "
            f"{mine.digest()}, the adapter was made on {saved.about['base_digest']} and has {theirs.digest()}, which "
            "the base is no ancestor of.\n" + mine.difference(theirs, "in the base", "in the adapter")
        )
    events = theirs.events[len(mine.events) :]
    for event in events:
        if event["event"] == "extension":
            raise ValueError(
                f"The adapter's {event['segment']} has {event['capacity']} rows more than the base's; run "
                f"`pan vocabulary --double {event['segment']}` on the base first."
            )
    return events


def _check_rows(model: PanModel, saved: _Saved) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.tensors.items() if name.startswith("table.")}
    expected = {f"table.{n}": (len(saved.ids), table.shape[1]) for n, table in enumerate(model.table.weights())}
    if shapes != expected:
        raise ValueError(f"{saved.folder / GROWN} has rows {shapes}, this base needs {expected}: of another model.")
    if saved.ids != _born_ids(saved.ledger, int(saved.about["base_events"])):
        raise ValueError(f"{saved.folder / GROWN} has rows of tokens that its {FILE_NAME} does not say were born.")
    owned = _owned(model, saved)
    for number, table in enumerate(model.table.weights()):
        mine, theirs = table.detach()[[saved.ids[n] for n in owned]].cpu(), saved.tensors[f"table.{number}"][owned]
        if not torch.equal(mine, theirs.to(mine.dtype)):
            raise ValueError(
                f"The adapter at {saved.folder} would change rows of tokens that are the base's own; it was made on "
                "another base, or by somebody who means harm."
            )


def _owned(model: PanModel, saved: _Saved) -> list[int]:
    """Which of an adapter's rows are of tokens that the base had when it was attached to its processor."""
    theirs = set(_born_ids(model.ledger(), 0)) - set(_grown_ids(model))
    return [number for number, item in enumerate(saved.ids) if item in theirs]


def _check_base(model: PanModel, saved: _Saved) -> None:
    for name, mine in _fingerprint(model).items():
        theirs = saved.tensors.get(f"base.{name}")
        if theirs is None or theirs.shape != mine.shape or not torch.allclose(mine, theirs, rtol=_CLOSE, atol=1e-6):
            made_on = saved.config.base_model_name_or_path or "another model"
            raise ValueError(
                f"The adapter at {saved.folder} was made on {made_on}, and this base has other weights ({name}). Load "
                "the base it was made on."
            )


def _check_layers(model: PanModel, saved: _Saved) -> None:
    """Wraps a copy of the base without weights, and compares."""
    config = copy.deepcopy(saved.config)
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # other ways to begin look at the weights
    try:
        with torch.device("meta"), no_init_weights():
            blank = get_peft_model(type(model)(copy.deepcopy(model.config)), config)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"The adapter at {saved.folder} does not fit this base: {error}") from error
    expected = get_peft_model_state_dict(blank, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    differing = sorted(name for name in {*expected, *saved.shapes} if expected.get(name) != saved.shapes.get(name))
    if differing:
        shown = [f"{name} is {saved.shapes.get(name)}, here {expected.get(name)}" for name in differing[:_MANY]]
        raise ValueError(
            f"The adapter at {saved.folder} was made for other layers or another backbone: {'; '.join(shown)}"
            f"{f'; and {len(differing) - _MANY} more' if len(differing) > _MANY else ''}."
        )


def _check_shared(model: PanModel | PeftModel, saved: _Saved, adapter_name: str) -> None:
    """All adapters of a base share its rows, so those that others use must be as this adapter has them."""
    others = sorted(set(model.peft_config) - {adapter_name}) if isinstance(model, PeftModel) else []
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    kept = [n for n, row in enumerate(saved.ids) if base.table.ever_active[row]]
    for number, table in enumerate(base.table.weights() if others and kept else ()):
        mine, theirs = table.detach()[[saved.ids[n] for n in kept]].cpu(), saved.tensors[f"table.{number}"][kept]
        if not torch.equal(mine, theirs.to(mine.dtype)):
            raise ValueError(
                f"The adapter at {saved.folder} learned other rows for tokens that the model's adapters {others} use "
                "as well; put it on a base of its own."
            )


def _write_rows(model: PanModel, saved: _Saved) -> None:
    ledger = model.ledger()
    with torch.no_grad():
        for number, table in enumerate(model.table.weights()):
            table[saved.ids] = saved.tensors[f"table.{number}"].to(table)
        for segment in ledger.segments:
            codes = [code for name, code in map(ledger.segment_of, saved.ids) if name == segment]
            for name, buffer in _book_of(model, segment).items() if codes else ():
                buffer[codes] = saved.tensors[f"{segment}.{name}"].to(buffer)


def _grown_ids(model: PanModel) -> list[int]:
    """Ids of the tokens born since the model was attached to its processor."""
    return _born_ids(model.ledger(), model.base_events)


def _born_ids(ledger: Vocabulary, first_event: int) -> list[int]:
    births = [event for event in ledger.events[first_event:] if event["event"] == "birth"]
    return [item for birth in births for item in ledger.ids_of(birth)]


def _book_of(model: PanModel, segment: str) -> dict[str, torch.Tensor]:
    part, _, level = segment.rpartition(".")
    codec = model.senses[part] if part in model.senses else None
    if codec is None or not codec.can_grow or level == MERGES:
        return {}
    return {name: buffer for name, buffer in codec.codebooks[int(level)].named_buffers() if name in _BOOK}


def _replay(model: PanModel, event: dict) -> None:
    """Lets an event of the adapter's vocabulary happen to the base's; rows are written afterwards."""
    ledger, segment = model.ledger(), event.get("segment", "")
    part, _, level = segment.rpartition(".")
    if event["event"] == "retirement":
        codes = [ledger.segment_of(item) for item in event["ids"]]
        into = ledger.segment_of(event["into"])[1] if "into" in event else None
        model.retire(codes[0][0], [code for _, code in codes], event["reason"], into, event["step"])
    elif segment == TEXT or part in model.config.action_parts and level != MERGES:
        model.grow(segment, names=event["names"], step=event["step"])
    elif event["reason"] == "merge":
        pairs = [(*parents, item) for parents, item in zip(event["parents"], ledger.ids_of(event), strict=True)]
        TokenMerging(model).add(part, pairs, event["step"])
    else:
        vectors = torch.zeros(event["count"], model.config.senses[part].code_dim)
        VocabularyGrowth(model).grow_codes(
            part, int(level), vectors, event.get("names"), event["reason"], event["step"]
        )


# ---- Which layers of a world model adapters go on, as fields of any PEFT config.
#
#     backbone    every linear layer of the language model, whatever its family calls them; never its table of words
#     head        what reads the next state, its reward and its end out of the backbone: trained whole and saved with
#                 the adapter (`head="full"`), adapted like the backbone (`"lora"`), or left alone (None)
#     latents     the diffusion heads, only if asked for; PEFT's "all-linear" would hit them, and the senses


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
    parts = [part for part in parts if hasattr(model, part)]  # a model without senses has none
    patterns, saved = [_backbone_pattern(model)], []
    if head == "lora":
        patterns += [re.escape(path) for part in parts for path, _ in _linear(getattr(model, part), f"{part}.")]
    else:
        saved = [name for part in parts for name in _modules(model, part, by_layer)]
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
    table = model.get_output_embeddings()  # linear, but of words
    paths = [path for path, layer in _linear(model.language_model) if layer is not table]
    names = sorted({path.rpartition(".")[2] for path in paths})
    if not names:
        raise ValueError(f"The backbone {type(model.language_model).__name__} has no linear layers to adapt.")
    return _in_language_model(names)


def _in_language_model(names) -> str:
    return rf"language_model\.(?:.+\.)?(?:{'|'.join(map(re.escape, names))})"


def _linear(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Linear layers below a module by path, adapted or not; what an adapter put inside one is none of them."""
    for name, child in module.named_children():
        if isinstance(child, _LINEAR):
            yield prefix + name, child
        else:
            yield from _linear(child, f"{prefix}{name}.")


def _modules(model: PanModel, part: str, by_layer: bool) -> Iterator[str]:
    """What PEFT is to save whole of a part: containers it cannot."""
    queue = [(part, getattr(model, part))]
    while queue:
        name, module = queue.pop(0)
        if hasattr(module, "weight") or not (by_layer or isinstance(module, (nn.ModuleDict, nn.ModuleList))):
            yield name
        else:
            queue += [(f"{name}.{key}", child) for key, child in module.named_children()]


def _has_conv1d(model: PanModel) -> bool:
    return any(isinstance(module, Conv1D) for module in model.language_model.modules())
