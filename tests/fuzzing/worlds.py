"""Worlds to call with: small random models, their processors, and observations as a user has them."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tiny_worlds import CAMERA, FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM

from pan_hf import (
    DiscreteAction,
    ImageSense,
    PanConfig,
    PanModel,
    PanTokenizer,
    TextAction,
    TextSense,
    VectorAction,
    VectorSense,
)
from pan_hf.build import make_processor

TEXTS = ["go to key", "far", "near", "red"]
SENSES = {
    "camera": ImageSense(**CAMERA | {"merge_capacity": 4}),
    "touch": VectorSense(dim=3, low=-1, high=[1, 2, 3], base=5, num_levels=2, merge_capacity=4),
    "heard": TextSense(max_length=3, every_step=True),
    "mission": TextSense(max_length=3),
}
PLACE = DiscreteAction(4, names=["stay", "left", "right", "take"], merge_capacity=4)
MOVE = VectorAction(dim=2, low=[-1, 0], high=[1, 4], base=4, num_levels=2, merge_capacity=4)
# by name: senses, action, and other settings; together they reach every kind
WORLDS: dict[str, tuple] = {
    "discrete": (tuple(SENSES), PLACE, {"context_steps": 2}),
    "vector": (("camera", "touch"), MOVE, {"context_steps": 1, "level0_sampling": "autoregressive"}),
    "parts": (("touch", "mission"), {"move": MOVE, "pick": PLACE, "say": TextAction(max_length=3)}, {}),
}


@dataclass
class World:
    """A model attached to its processor, and observations that fit."""

    name: str
    model: PanModel
    processor: Any
    kept: dict = field(default_factory=dict)  # results of clean calls, by target and number

    @cached_property
    def actions(self) -> dict:
        return self.model.config.actions

    def raw(self, steps: int, number: int = 0) -> dict:
        """An observation of some steps, as an environment gives it."""
        rng, seen = np.random.default_rng([number, steps]), {}
        for name, sense in self.model.config.senses.items():
            if sense.kind == "image":
                seen[name] = rng.integers(0, 256, (steps, 16, 16, 3), dtype=np.uint8)
            elif sense.kind == "vector":
                low, high = np.array(sense.low), np.array(sense.high)
                seen[name] = (low + (high - low) * rng.random((steps, sense.dim))).astype(np.float32)
            elif sense.every_step:
                seen[name] = [TEXTS[int(index)] for index in rng.integers(0, len(TEXTS), steps)]
            else:
                seen[name] = TEXTS[number % 2]
        return seen

    def raw_actions(self, steps: int, number: int = 0) -> Any:
        """Actions of some steps: an array, or by name where there are several parts."""
        rng, parts = np.random.default_rng([7, number, steps]), {}
        for name, action in self.actions.items():
            if action.kind == "discrete":
                parts[name] = rng.integers(0, action.num_actions, steps)
            elif action.kind == "vector":
                low, high = np.array(action.low), np.array(action.high)
                parts[name] = (low + (high - low) * rng.random((steps, action.dim))).astype(np.float32)
            else:
                parts[name] = [TEXTS[int(index)] for index in rng.integers(0, len(TEXTS), steps)]
        return parts["action"] if set(parts) == {"action"} else parts

    def observation(self, steps: int = 1, number: int = 0, rows: int = 1) -> dict:
        """As the processor gives it, of some rows."""
        parts = [self.processor(observation=self.raw(steps, number + row))["observation"] for row in range(rows)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def action(self, steps: int = 1, number: int = 0, rows: int = 1) -> Any:
        """As the processor gives it, of some rows."""
        parts = [self.processor(action=self.raw_actions(steps, number + row))["action"] for row in range(rows)]
        if isinstance(parts[0], dict):
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return torch.cat(parts)

    def belief(self, rows: int = 1, number: int = 0):
        return self.kept_as(("belief", rows, number), lambda: self.model.perceive(self.observation(1, number, rows)))

    def kept_as(self, key: Any, make) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


def make_world(name: str) -> World:
    """A world of `WORLDS`, with codebooks that stand for something."""
    senses, action, settings = WORLDS[name]
    torch.manual_seed(0)
    tokenizer = PanTokenizer.train(TEXTS, vocab_size=280)
    config = AutoConfig.for_model("qwen3", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
                                  initializer_range=0.1, **FAMILIES["qwen3"] | {"num_hidden_layers": 1})  # fmt: skip
    small = {"denoiser": PanConfig().latent_head["denoiser"] | {"hidden_size": 16, "num_layers": 1}}
    backbone = AutoModelForCausalLM.from_config(config)
    chosen = {sense: SENSES[sense] for sense in senses}
    model = PanModel.from_backbone(
        backbone, chosen, action, text_reserve=10, adapter_dim=16, latent_head=small, **settings
    )
    if "camera" in senses:
        frames = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8)
        model.senses["camera"].train().losses(frames, frames.flip(0), None, 0.0, 0.0)
    processor = make_processor(model, tokenizer)
    processor.attach(model.eval())
    return World(name, model, processor)
