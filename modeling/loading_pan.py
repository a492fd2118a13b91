"""Loading that never guesses: a checkpoint that is cut short, edited or of another model is one clear error.

Transformers warns about tensors that are missing and fills them with random numbers, which is what one wants when a
backbone gets a new head. A world model with a random decoder only looks broken, so here it is an error.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.quantizers import AutoQuantizationConfig

from .configuration_pan import VERSION, PanConfig, newer_version

# How a folder is written, and made whole after a kill: pan_hf puts the functions of `pan_hf.files` here. Code that
# travels alone writes one file after the other, as any model of Transformers.
WHOLE_FOLDER: Callable[[Any], contextlib.AbstractContextManager] = contextlib.nullcontext
FINISH_WRITING: Callable[[Any], object] = str

_OF_A_PUSH = {"repo_id", "commit_message", "private", "token", "revision", "create_pr"}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # as families of backbones call them
_LARGER, _SPARE = 4, 10**7  # how far a model may exceed its files: tied tables are in them once, 4 bits are packed
_MANY = 4  # names shown of a long list
_RESTORE = "Restore config.json and every safetensors file from the same checkpoint, or save the model again."


class PanPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by PAN models."""

    config: PanConfig
    config_class = PanConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict: Collection[str] = ["senses", "latent_heads"]
    processor: Any = None  # that `attach` was given

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """As in Transformers, except that tensors which are missing, left over or of another shape are an error, that
        pickles are not read, and that a `quantization_config` is for the backbone's layers alone.

        Raises:
            FileNotFoundError, ValueError: no checkpoint, a damaged file, another kind of model, tensors and
                configuration that do not fit one another (see `check_loaded`), or a quantiser that would convert more
                than layers (see `layers_alone`).
        """
        allowed = kwargs.pop("ignore_mismatched_sizes", False)
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError("`use_safetensors=False` would read a pickle; only safetensors are loaded. Leave it out.")
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = layers_alone(kwargs["quantization_config"])
        if pretrained_model_name_or_path is not None:  # None makes a model from `config` and `state_dict`
            FINISH_WRITING(pretrained_model_name_or_path)
            check_folder(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        with explained(pretrained_model_name_or_path):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *args,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                **kwargs,
            )
        if pretrained_model_name_or_path is not None:
            check_loaded(pretrained_model_name_or_path, info, allowed)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, is_main_process=True, *args, **kwargs):
        """As in Transformers, except that `save_directory` changes whole or not at all, and that the attached
        processor is saved with the model: the two grow together, and a kill between two calls would part them.

        Raises:
            ValueError: quantised by torchao, see `check_writable`; or another process has grown the vocabulary in
                `save_directory` otherwise than that of the attached processor. Nothing is written then.
        """
        check_writable(self)
        code = f"{type(self).__module__.rsplit('.', 1)[-1]}.{type(self).__name__}"
        self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | {"AutoModelForCausalLM": code}
        is_pushed = kwargs.pop("push_to_hub", False)
        push = {name: kwargs.pop(name) for name in _OF_A_PUSH & set(kwargs)} if is_pushed else {}
        # other processes of a training run write into the folder of the first
        with WHOLE_FOLDER(save_directory) if is_main_process else contextlib.nullcontext(save_directory) as folder:
            if self.processor is not None and self.processor.vocabulary is not None:
                self.processor.vocabulary.check_replaces(save_directory)
            super().save_pretrained(folder, is_main_process, *args, **kwargs)
            if self.processor is not None and is_main_process:
                self.processor.save_pretrained(folder)
                self.processor.note_model(folder, save_directory)
        if is_pushed and is_main_process:  # which saves both again, and uploads them as one commit
            self.push_to_hub(push.pop("repo_id", Path(save_directory).name), **push)

    def add_adapter(self, *args, **kwargs) -> None:
        """As in Transformers. Raises ValueError, with the other way, where Transformers wants a newer PEFT."""
        try:
            super().add_adapter(*args, **kwargs)  # type: ignore[misc]  # a mixin of Transformers has it
        except ValueError as error:
            if "version of PEFT" not in str(error):
                raise
            raise ValueError(f"{error}; `peft.get_peft_model(model, config)` works with the one installed.") from error

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs):
        """What `from_pretrained` does once a model stands on the meta device and its files are known."""
        check_size(model, checkpoint_files)
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict:
        """Masks stay masks and codes whole numbers: the parts kept in float32 would otherwise load the codebooks' bool
        and int buffers as floats."""
        whole = {name: buffer.dtype for name, buffer in self.named_buffers() if not buffer.is_floating_point()}
        return whole | super()._get_dtype_plan(dtype)

    def _init_weights(self, module: nn.Module) -> None:
        """Our own layers start at unit gain (a 0.02 normal, made for wide transformers, starves a 48-wide adapter)."""
        std = self.config.initializer_range
        if hasattr(module, "reset_pan_parameters"):
            module.reset_pan_parameters(std)  # type: ignore[operator]  # a method of ours
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.ParameterDict):  # queries
            for parameter in module.values():
                init.zeros_(parameter)
        else:
            super()._init_weights(module)


@contextlib.contextmanager
def in_float32():
    """Makes modules in float32, whatever the model around them is made in (`_keep_in_fp32_modules_strict`)."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_folder(folder: str | Path, subfolder: str = "") -> None:
    """Raises before anything is loaded where `folder` is a path to nothing, or to another kind of model.

    Raises:
        FileNotFoundError: it reads like a path and is not there.
        ValueError: its `config.json` describes another kind of model or one that its tensors cannot be of, its tensors
            are pickles, or lie elsewhere.
    """
    if folder is None:  # a configuration and a state dict instead
        return
    path = Path(folder) / subfolder
    if not path.exists() and (path.is_absolute() or str(folder).startswith((".", "~"))):
        raise FileNotFoundError(f"No checkpoint at {folder}; expected a folder with config.json, model.safetensors.")
    config = path / "config.json"
    if not config.is_file():
        return
    try:
        described = _read_object(config)
    except json.JSONDecodeError:  # Transformers says that well
        return
    kind = described.get("model_type")
    if kind != "pan":
        raise ValueError(
            f"{config}: expected a PAN world model (model_type 'pan'), got {kind!r}. To turn a language model "
            f"into one, use PanModel.from_backbone({str(folder)!r}, senses=..., action=...)."
        )
    if "transformers_weights" in described:
        raise ValueError(f"{config} names the file of its weights, which may lie anywhere; leave that out. {_RESTORE}")
    for index in path.glob("*.index*.json"):  # a variant of weights has its own
        _check_index(index)
    _check_depth(path, described)
    pickles = sorted(found.name for ending in _PICKLES for found in path.glob(f"*model*{ending}"))
    if pickles and not _tensor_files(path):
        raise ValueError(
            f"{folder} holds its tensors in {', '.join(pickles)}, a pickle, which can run any code when it is read. "
            "Only safetensors are loaded: have it saved again with save_pretrained, as model.safetensors."
        )


def _read_object(path: Path) -> dict:
    """A JSON object from a file. Raises JSONDecodeError as it comes, ValueError for what Transformers stumbles at."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"Cannot read {path}: {type(error).__name__}: {error}. {_RESTORE}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}. {_RESTORE}")
    return content


def _check_index(index: Path) -> None:
    """Raises ValueError where an index names anything but safetensors beside it: Transformers would unpickle a `.bin`,
    and read whatever path stands there."""
    files = None
    with contextlib.suppress(json.JSONDecodeError):
        files = _read_object(index).get("weight_map")
    names = {str(name) for name in (files.values() if isinstance(files, dict) else [files])}
    if wrong := [name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name)]:
        raise ValueError(f"{index} must name safetensors beside it, got {_names(wrong)}. {_RESTORE}")


def _check_depth(folder: Path, described: dict) -> None:
    """Raises ValueError where a backbone has more layers than there are tensors: making them could take hours."""
    backbone = described.get("text_config")
    layers = [backbone.get(name) for name in _LAYERS] if isinstance(backbone, dict) else []
    deepest = max((number for number in layers if isinstance(number, int)), default=0)
    if deepest and (held := sum(len(shapes) for shapes in _shapes(folder).values())) and deepest > held:
        raise ValueError(
            f"{folder}: its config.json asks for {deepest} layers, and its files hold {held} tensors. {_RESTORE}"
        )


def _shapes(folder: Path) -> dict[Path, dict[str, list[int]]]:
    """Shapes of the tensors of each file in a folder, from the files' headers; a damaged file has none."""
    shapes: dict[Path, dict[str, list[int]]] = {}
    for path in _tensor_files(folder):
        with contextlib.suppress(SafetensorError), safe_open(path, "pt") as tensors:
            shapes[path] = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}
    return shapes


def check_size(model: nn.Module, files: Sequence[str] | None) -> None:
    """Raises ValueError, before a number is allocated, where a model is much larger than its files.

    Args:
        model: on the meta device.
        files: that it will be loaded from; None where it is not.
    """
    if pickled := [file for file in files or () if not file.endswith(".safetensors")]:
        raise ValueError(f"Only safetensors are loaded, got {_names(pickled)}. {_RESTORE}")
    if not files:
        return
    held = 0
    for file in files:
        with safe_open(file, "pt") as tensors:
            held += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
    asked = sum(tensor.numel() for tensor in model.state_dict().values())
    if asked > _LARGER * held + _SPARE:
        raise ValueError(f"config.json asks for a model of {asked} numbers, and its files hold {held}. {_RESTORE}")


@contextlib.contextmanager
def explained(folder: str | Path):
    """Names the file that cannot be read or the folder with the configuration that makes no sense, and keeps
    Transformers from reporting what `check_loaded` raises."""
    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(_is_no_report)
    try:
        yield
    except SafetensorError as error:
        damaged = [f"{path} ({reason})" for path in _tensor_files(folder) if (reason := _damage(path))]
        raise ValueError(
            f"Cannot read {', '.join(damaged) or folder}: {error}. The file was cut short or damaged. {_RESTORE}"
        ) from error
    except (StrictDataclassError, ValueError) as error:
        note = _newer(folder)
        raise ValueError(f"Cannot load {folder}: {error}{'' if note in str(error) else note}") from error
    finally:
        log.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def check_loaded(folder: str | Path, info: dict, allow_other_shapes: bool = False) -> None:
    """Raises ValueError unless the checkpoint held exactly the tensors that its configuration calls for.

    Args:
        folder: where it came from.
        info (`dict`): Transformers' loading info: missing, unexpected and mismatched keys.
        allow_other_shapes (`bool`): the user asked for `ignore_mismatched_sizes`.
    """
    found = []
    if info["missing_keys"]:
        found.append(f"missing: {_names(info['missing_keys'])}")
    if info["unexpected_keys"]:
        held = _files_of(folder, info["unexpected_keys"])
        found.append(f"not in the configuration: {_names(info['unexpected_keys'])}{held}")
    if info["mismatched_keys"] and not allow_other_shapes:
        shapes = [
            f"{name} is {tuple(there)} in the file and {tuple(here)} by config.json"
            for name, there, here in sorted(info["mismatched_keys"])
        ]
        found.append(f"of another shape: {_names(shapes)}")
    if found:
        remedy = _newer(folder) or f" {_RESTORE}"
        raise ValueError(f"{folder}: its tensors do not fit its config.json; {'; '.join(found)}.{remedy}")


def _newer(folder: str | Path) -> str:
    """What helps if a newer version wrote this folder; empty if none did."""
    try:
        return newer_version(json.loads((Path(folder) / "config.json").read_text("utf-8")).get("pan_version", VERSION))
    except (OSError, ValueError, TypeError):  # not here, or not readable: then another sentence says so
        return ""


def _names(names) -> str:
    names = sorted(names)
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more


def _tensor_files(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).glob("*.safetensors")) if Path(folder).is_dir() else []


def _damage(path: Path) -> str | None:
    try:
        with safe_open(path, "pt"):
            return None
    except (SafetensorError, OSError) as error:
        return f"{path.stat().st_size} bytes: {error}"


def _files_of(folder: str | Path, names) -> str:
    holding = {path.name for path, shapes in _shapes(Path(folder)).items() if shapes.keys() & set(names)}
    return f" (in {', '.join(sorted(holding))})" if holding else ""


# ---- Loading with the backbone in 8 or 4 bits: its layers are quantised, and nothing else.
#
# What we add to a language model is small and must stay as it is: codes are an argmin, digits are a mass, readouts
# share rows with a table that grows. Quantisers convert whatever is linear, so they are told what to leave alone.


# everything but the numbered layers of the backbone; its table and its output embeddings are the vocabulary
NOT_LAYERS = r"(?!language_model\.(.+\.)?\d+\.).*"
_SETTINGS = ("llm_int8_skip_modules", "modules_to_not_convert")  # bitsandbytes has the first, others the second


def layers_alone(quantization_config):
    """The same configuration, which leaves everything outside the backbone's layers as it is.

    Args:
        quantization_config: one of Transformers' quantisation configurations, as an object or a `dict`.

    Returns:
        A copy, as an object.

    Raises:
        ValueError: a method that cannot be told so.
    """
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    setting = next((name for name in _SETTINGS if hasattr(quantization_config, name)), None)
    if setting is None:
        raise ValueError(
            f"{type(quantization_config).__name__} has neither of {list(_SETTINGS)}, so it cannot be told to leave "
            "codes, digits and the vocabulary as they are. Use BitsAndBytesConfig or TorchAoConfig."
        )
    quantization_config = copy.deepcopy(quantization_config)
    spared = getattr(quantization_config, setting) or []
    setattr(quantization_config, setting, list(dict.fromkeys([*spared, NOT_LAYERS])))
    return quantization_config


def load_backbone(backbone, options: dict | None):
    """A causal language model, or the one of a name or folder.

    Raises:
        ValueError: it is none, none that can be loaded, or quantised already: weights in few bits cannot be cast, nor
            written by a model around it.
    """
    if isinstance(backbone, str | os.PathLike):
        try:
            backbone = AutoModelForCausalLM.from_pretrained(backbone, **(options or {}))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"`backbone` {str(backbone)!r} is no causal language model to load, in a folder or of a name on a Hub "
                f"that can be reached; check the name and the network. {error}"
            ) from error
    elif options:
        raise ValueError("`backbone_kwargs` are for a backbone that is loaded by name; this one is a model already.")
    config = getattr(backbone, "config", None)
    if not isinstance(backbone, PreTrainedModel) or hasattr(config, "senses"):
        raise ValueError(f"`backbone` must be a causal language model, its name or folder, got {backbone!r:.80}.")
    if getattr(backbone, "is_quantized", False):
        raise ValueError(
            f"The backbone {backbone.name_or_path!r} is quantised. Make the world model from its whole weights, train "
            "and save it, and pass `quantization_config` to PanModel.from_pretrained."
        )
    return backbone


def check_writable(model) -> None:
    """Raises ValueError before anything is written where a quantised model cannot be read back.

    torchao writes the names of all tensors beside its own and splits each at a dot; ours has masks at the top level,
    whose names have none.
    """
    method = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    if getattr(method, "quant_method", None) == "torchao":
        raise ValueError(
            "A model quantised by torchao cannot be read back from safetensors. Save the model it was loaded from, "
            "and pass `quantization_config` again when loading it; or use BitsAndBytesConfig, which can be saved."
        )
