"""What the senses make of a recording, kept for the stages that need it: encoding 20 000 frames takes up to a minute,
and three stages in a row ask for the same."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from pan_hf.training.windows import encode_all, words_of
from pan_hf.trajectories import Trajectories


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
        _write(path, encode_all(model, tensors, latents=True))
    return _unpack(load_file(path), model, tensors)  # mapped from the file: no copy in memory


def _write(path: Path, encoded: dict) -> None:
    """Writes what was encoded whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(_pack(encoded), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def forget(folder: str | Path) -> None:
    """Removes what `encode_once` has kept in a folder."""
    for path in Path(folder).glob("encoded-*.safetensors"):
        path.unlink()


def _digest(model, trajectories: Trajectories) -> str:
    """Of the senses' weights and of the recording's episodes."""
    digest = hashlib.sha256(" ".join(trajectories.fingerprints).encode())
    for name, tensor in sorted(model.senses.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _pack(encoded: dict) -> dict[str, Tensor]:
    packed = {f"codes.{n}.{level}": c for n, levels in encoded["codes"].items() for level, c in enumerate(levels)}
    return packed | {f"latents.{name}": values.contiguous() for name, values in encoded["latents"].items()}


def _unpack(packed: dict[str, Tensor], model, tensors: dict[str, Tensor]) -> dict:
    senses = model.config.place_senses
    codes = {n: [packed[f"codes.{n}.{level}"] for level in range(s.num_levels)] for n, s in senses.items()}
    latents = {name: packed[f"latents.{name}"] for name in senses if f"latents.{name}" in packed}
    return {"codes": codes, "latents": latents} | words_of(model, tensors)
