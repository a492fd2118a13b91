"""Loading with the backbone in 8 or 4 bits: its layers are quantised, and nothing else.

What we add to a language model is small and must stay as it is: codes are an argmin, digits are a mass, readouts share
rows with a table that grows. Quantisers convert whatever is linear, so they are told what to leave alone.
"""

import copy

from transformers.quantizers import AutoQuantizationConfig

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


def check_is_whole(backbone) -> None:
    """Raises ValueError for a backbone that is quantised already: weights in few bits cannot be cast, nor written by a
    model around it."""
    if getattr(backbone, "is_quantized", False):
        raise ValueError(
            f"The backbone {backbone.name_or_path!r} is quantised. Make the world model from its whole weights, train "
            "and save it, and pass `quantization_config` to PanModel.from_pretrained."
        )


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
