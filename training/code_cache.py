"""What the senses make of a recording, kept for the stages that need it: encoding 20 000 frames takes up to a minute,
and three stages in a row ask for the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pan_hf.data.trajectories import Trajectories
from pan_hf.files import whole_file


def encode_once(model, tensors: dict[str, Tensor], trajectories: Trajectories, folder: str | Path | None) -> dict:
    """[`encode_all`] with latents, from a file in `folder` where the same senses have already seen the same recording.

    Args:
        model, tensors: see [`encode_all`].
        trajectories: what the tensors are of.
        folder: where the file is kept, as `encoded-<digest>.safetensors`; None keeps nothing.
    """
    if folder is None:
        return encode_all(model, tensors, latents=True)
    path = Path(folder) / f"encoded-{_digest(model, trajectories)}.safetensors"
    if not path.exists():
        with whole_file(path) as temporary:
            save_file(_pack(encode_all(model, tensors, latents=True)), temporary)
    return _unpack(load_file(path), model, tensors)  # mapped from the file: no copy in memory


def forget(folder: str | Path) -> None:
    """Removes what `encode_once` has kept in a folder."""
    for path in Path(folder).glob("encoded-*.safetensors"):
        path.unlink()


def _digest(model, trajectories: Trajectories) -> str:
    """Of what the senses encode by, and of the recording's episodes."""
    digest = hashlib.sha256(" ".join(trajectories.fingerprints).encode())
    for sense, codec in sorted(model.senses.items()):
        for name, tensor in sorted(codec.state_dict(prefix=f"{sense}.").items()):
            if name.rpartition(".")[2] not in codec.notes:
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _pack(encoded: dict) -> dict[str, Tensor]:
    packed = {f"codes.{n}.{level}": c for n, levels in encoded["codes"].items() for level, c in enumerate(levels)}
    return packed | {f"latents.{name}": values.contiguous() for name, values in encoded["latents"].items()}


def _unpack(packed: dict[str, Tensor], model, tensors: dict[str, Tensor]) -> dict:
    senses = model.config.coded_senses
    codes = {n: [packed[f"codes.{n}.{level}"] for level in range(s.num_levels)] for n, s in senses.items()}
    latents = {name: packed[f"latents.{name}"] for name in senses if f"latents.{name}" in packed}
    return {"codes": codes, "latents": latents} | words_of(model, tensors)


@torch.no_grad()
def encode_all(model, tensors: dict[str, Tensor], latents: bool, batch_size: int = 256) -> dict:
    """Every row's codes (int32), words and constant text, once and for all: what `Windows(is_encoded=True)`
    gathers."""
    config = model.config
    codes: dict[str, list[Tensor]] = {}
    all_latents: dict[str, Tensor] = {}
    was_training = model.training
    model.eval()
    for name in config.coded_senses:
        num_rows = len(tensors[name])
        for start in range(0, num_rows, batch_size):
            rows = slice(start, start + batch_size)
            levels, sense_latents = model.senses[name].encode(tensors[name][rows].to(model.device))
            if start == 0:  # whole at once: small parts would lie between what batches need and hold freed memory
                codes[name] = [torch.empty(num_rows, level.shape[1], dtype=torch.int32) for level in levels]
                if latents and sense_latents is not None:
                    all_latents[name] = torch.empty(num_rows, *sense_latents.shape[1:])
            for store, level in zip(codes[name], levels, strict=True):
                store[rows] = level
            if name in all_latents:
                all_latents[name][rows] = sense_latents
    model.train(was_training)
    return {"codes": codes, "latents": all_latents} | words_of(model, tensors)


def words_of(model, tensors: dict[str, Tensor]) -> dict:
    """The part of `encode_all` that is words already: changing texts, and the constant ones side by side."""
    prefix = [tensors[name] for name in model.config.prefix_senses]
    return {
        "text": {name: tensors[name] for name in model.config.text_senses},
        "prefix": torch.cat(prefix, 1) if prefix else None,
    }
