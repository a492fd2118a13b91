"""Layers that are read and not called: their weights with whatever an adapter (PEFT) adds to them.

Where one matrix serves all codes, or a part of it some inputs, the layer's weight is multiplied by hand. An adapter
wraps the layer and still shows the weight without itself, so it would be passed over in silence. What the wrapped
layer does to an identity matrix is its weight, whatever the kind of adapter. Nothing here imports PEFT.
"""

import torch
from torch import Tensor, nn


def affine(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight `(out, in)` and bias `(out,)`, or None without one, of a linear layer, its active adapters included."""
    plain = getattr(layer, "base_layer", None)
    if plain is None:
        return layer.weight, layer.bias
    if layer.disable_adapters or layer.merged:
        return plain.weight, plain.bias
    bias = layer(plain.weight.new_zeros(1, plain.in_features))
    weight = layer(torch.eye(plain.in_features, dtype=plain.weight.dtype, device=plain.weight.device)) - bias
    return weight.T, bias.squeeze(0)


def check_table(module: nn.Module) -> nn.Module:
    """The module of a vocabulary's rows, which are read by segment.

    Raises:
        ValueError: an adapter is on it, which reading rows would pass over.
    """
    if hasattr(module, "base_layer") or hasattr(module, "token_adapter"):
        raise ValueError(
            "An adapter is on the vocabulary's table (embed_tokens or lm_head), whose rows are read one segment at a "
            "time, past the adapter. Leave the table out of `target_modules` and `trainable_token_indices`; rows of "
            "new tokens are trained by pan_hf.adapters.train_grown_rows and saved with the adapter."
        )
    return module
