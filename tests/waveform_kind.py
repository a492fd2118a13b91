"""A kind of sense that pan_hf does not have, in one file: a waveform, a window of samples.

Configuration and codec, reader, and feature on the side of the data; importing this file makes the kind known. The
codec is a strided convolution over time with growable codes on two levels, and latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from pan_hf.features import Feature, Form, View, register_feature
from pan_hf.modeling.codecs_pan import register_sense
from pan_hf.modeling.image_codec_pan import CodebookCodec, PositionBlock
from pan_hf.modeling.sense_configuration_pan import CodedPart
from pan_hf.tokenization.processing_pan import Reader, as_numbers, register_reader, with_batch_and_time

# ---- the model's side


@dataclass(frozen=True)
class WaveformSense(CodedPart):
    """`samples` numbers in [-1, 1]; a fine code covers `stride` of them, a coarse code and a place two fine codes."""

    samples: int = 64
    stride: int = 8
    codebook_size: list[int] = field(default_factory=lambda: [8, 16])
    codebook_capacity: list[int] = field(default_factory=lambda: [16, 32])
    merge_capacity: int = 16
    code_dim: int = 4
    hidden_size: int = 16
    latent_dim: int = 2
    kind: str = "waveform"

    can_grow = True
    num_levels = 2

    def __post_init__(self):
        if self.samples % (2 * self.stride):
            raise ValueError(f"WaveformSense: samples must be a multiple of {2 * self.stride}, got {self.samples}.")

    @property
    def shape(self) -> tuple[int]:
        return (self.samples,)

    @property
    def num_state_tokens(self) -> int:
        return self.samples // (2 * self.stride)

    @property
    def codes_per_token(self) -> list[int]:
        return [1, 2]


class WaveformCodec(CodebookCodec):
    """Its map of features has one row, along time."""

    num_values = 65536

    def __init__(self, sense: WaveformSense):
        super().__init__(sense)
        width, stride = sense.hidden_size, sense.stride
        self.stem = nn.Conv1d(1, width, 2 * stride, stride=stride, padding=stride // 2)
        self.encoder = PositionBlock(width, 1)
        self.build_codes(width, stride)
        self.decoder = PositionBlock(width, 3)
        self.head = nn.Linear(width, stride)

    def features(self, values: Tensor) -> Tensor:
        x = self.stem(values.float().unsqueeze(1))  # (B, W, R)
        return self.encoder(x.transpose(1, 2).unsqueeze(1))  # (B, 1, R, W)

    def pieces(self, values: Tensor) -> Tensor:
        return values.unflatten(1, (1, -1, self.sense.stride))

    def render(self, x: Tensor, corrections: Tensor) -> Tensor:
        return (self.head(self.decoder(x)) + corrections).flatten(1)

    def as_output(self, decoded: Tensor) -> Tensor:
        return decoded.clamp(-1, 1)


register_sense(WaveformSense, WaveformCodec)

# ---- the processor's side


class WaveformReader(Reader):
    needs = ("samples",)

    def read(self, value) -> np.ndarray:
        array, samples = as_numbers(self.name, value), self.spec["samples"]
        if array.ndim not in (1, 2, 3) or array.shape[-1] != samples:
            raise ValueError(f"{self.name}: expected windows of {samples} samples, got shape {array.shape}.")
        if not (np.abs(array) <= 1).all():
            raise ValueError(f"{self.name}: expected samples in -1..1; divide them by the loudest there can be.")
        return with_batch_and_time(self.name, array.astype(np.float32), 1)

    def blank(self, leading: tuple[int, ...]) -> np.ndarray:
        return np.zeros((*leading, self.spec["samples"]), np.float32)


register_reader("waveform", WaveformReader)

# ---- the data's side


@register_feature
class WaveformFeature(Feature):
    """`{"kind": "waveform", "samples": N}`."""

    kind = "waveform"
    bare_name = "sound"
    card_fields = ("samples",)

    @classmethod
    def describe(cls, part: Any) -> dict[str, Any]:
        return {"kind": cls.kind, "samples": part.samples}

    @classmethod
    def from_space(cls, space: Any, view: View) -> Form | None:
        is_window = getattr(space, "shape", None) and len(space.shape) == 1 and space.shape[0] >= 32
        if not is_window or np.any(space.low != -1) or np.any(space.high != 1):
            return None
        return Form({"kind": cls.kind, "samples": space.shape[0]}, lambda value: np.asarray(value, np.float32))

    def space(self) -> Any:
        from gymnasium.spaces import Box

        return Box(-1, 1, (self.description["samples"],), np.float32)

    def column_type(self) -> Any:
        import datasets

        return datasets.Sequence(datasets.Value("float32"), length=self.description["samples"])

    def blank(self) -> np.ndarray:
        return np.zeros(self.description["samples"], np.float32)

    def read(self, column: pa.ChunkedArray) -> np.ndarray:
        samples = self.description["samples"]
        is_list = pa.types.is_fixed_size_list(column.type)
        self._check_type(column, is_list and column.type.list_size == samples)
        values = column.combine_chunks()
        return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), samples)

    def make_sense(self, name: str, values: np.ndarray, episode: np.ndarray, tokenizer: Any, options: dict) -> Any:
        return WaveformSense(**({"samples": self.description["samples"]} | options))

    def measures(self, predicted: Tensor, true: Tensor, last_seen: Tensor, reference: Any) -> dict:
        from pan_hf import metrics

        return {"rmse": metrics.rmse(predicted, true)}

    def reconstruction(self, rebuilt: Tensor, true: Tensor) -> dict:
        from pan_hf import metrics

        return {"reconstruction_rmse": metrics.rmse(rebuilt, true)}

    def words(self) -> str:
        return f"waveform of {self.description['samples']} samples"

    @classmethod
    def sense_words(cls, config: Mapping[str, Any]) -> str:
        return f"waveform of {config['samples']} samples"

    @classmethod
    def blank_sense(cls, config: Mapping[str, Any]) -> str:
        return f"np.zeros({config['samples']}, np.float32)"
