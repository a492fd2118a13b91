"""Backbones, world models, observations and a recorded world, each small enough to make in a test.

The backbones cover what differs between language models: Qwen3 (tied table, grouped queries), Llama (untied), GPT-2
(learned positions); `FAMILIES` and `MORE_FAMILIES` have others. The recorded world is a bright cell on a 4x4 board,
seen by a camera, felt as a vector, under a constant text.
"""

from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from transformers import AutoConfig, AutoModelForCausalLM

from pan_hf import DiscreteAction, ImageSense, PanModel, TextAction, TextSense, VectorAction, VectorSense

BACKBONES = {
    "qwen3": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    },
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
}
ARCHITECTURES = tuple(BACKBONES)
_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_SMALL |= {"max_position_embeddings": 256}
_GROUPED = _SMALL | {"num_key_value_heads": 2, "head_dim": 8}
# further families, for what holds of any: scaled embeddings and two kinds of layers (Gemma 3), a head with a bias
# (Phi), a sliding window (Mistral), layers without positions (SmolLM3), attention beside the MLP (GPT-NeoX)
FAMILIES = BACKBONES | {
    "gemma3_text": _GROUPED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "phi": _SMALL,
    "mistral": _GROUPED | {"sliding_window": 4},
    "smollm3": _GROUPED | {"no_rope_layers": [1, 0]},
    "gpt_neox": _SMALL,
}
# and families that are only met briefly: other norms, experts, attention sinks, positions counted from 2 (OPT)
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MORE_FAMILIES = {
    "gemma2": _GROUPED | {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "qwen2": _GROUPED | {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
    "olmo2": _GROUPED,
    "granite": _GROUPED,
    "mixtral": _GROUPED | _EXPERTS,
    "gpt_oss": _GROUPED | _EXPERTS | {"sliding_window": 4},
    "ministral": _GROUPED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": _GROUPED,
    "cohere": _GROUPED,
    "stablelm": _GROUPED,
    "falcon": _SMALL,
    "opt": _SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
WORDS, PAD = 90, 0  # words of a tiny backbone, and the one that pads

CAMERA = {"size": 16, "patch_size": 4, "level_strides": [2, 1], "spatial_merge_size": 2}
CAMERA |= {"codebook_size": [6, 10], "codebook_capacity": [8, 12]}
CAMERA |= {"code_dim": 4, "hidden_size": 16, "num_blocks": 1, "latent_dim": 3}
SENSES = {
    "camera": ImageSense(**CAMERA),
    "touch": VectorSense(dim=3, low=-1, high=[1, 2, 3], base=5, num_levels=3),
    "heard": TextSense(max_length=4, every_step=True),
    "mission": TextSense(max_length=5),
}
ACTIONS = {
    "discrete": DiscreteAction(4),
    "vector": VectorAction(dim=2, low=[-1, 0], high=[1, 4], base=4, num_levels=2),
    "text": TextAction(max_length=3),
}


def language_model(architecture="qwen3", seed=0):
    """A random causal language model of `WORDS` words, spread out enough that logits differ."""
    torch.manual_seed(seed)
    special = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(
        architecture, vocab_size=WORDS, initializer_range=0.1, **special, **(FAMILIES | MORE_FAMILIES)[architecture]
    )
    return AutoModelForCausalLM.from_config(config).eval()


def world_model(senses=("camera", "mission"), action="discrete", architecture="qwen3", seed=0, **config):
    """A random world model in eval mode: names of `SENSES` (or senses by name), a name of `ACTIONS` (or an action)."""
    backbone = language_model(architecture, seed)
    chosen = senses if isinstance(senses, dict) else {name: SENSES[name] for name in senses}
    action = ACTIONS[action] if isinstance(action, str) else action
    model = PanModel.from_backbone(backbone, dict(chosen), action, text_reserve=10, adapter_dim=16, **config)
    with torch.no_grad():  # what begins at zero would hide mistakes
        for name, parameter in model.named_parameters():
            silent = name.endswith((".gist.weight", ".inventory.weight", ".denoiser.out.weight"))
            if silent or name.startswith(("queries.", "text_start")):
                parameter.normal_(std=0.3)
    return model.eval()


def observe(model, batch=2, steps=1, seed=0):
    """Random observations of every sense as the processor would give them; texts end in padding."""
    generator = torch.Generator().manual_seed(seed)
    observation = {}
    for name, sense in model.config.senses.items():
        if sense.kind == "image":
            shape = (batch, steps, sense.channels, sense.height, sense.width)
            observation[name] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        elif sense.kind == "vector":
            low, high = torch.tensor(sense.low), torch.tensor(sense.high)
            observation[name] = low + (high - low) * torch.rand(batch, steps, sense.dim, generator=generator)
        else:
            leading = (batch, steps) if sense.every_step else (batch,)
            observation[name] = _texts(leading, sense.max_length, generator)
    return observation


def acts(model, batch=2, steps=1, seed=0):
    """Random actions `(batch, steps, ...)`."""
    generator, action = torch.Generator().manual_seed(100 + seed), model.config.action
    if action.kind == "discrete":
        return torch.randint(0, action.num_actions, (batch, steps), generator=generator)
    if action.kind == "text":
        return _texts((batch, steps), action.max_length, generator)
    low, high = torch.tensor(action.low), torch.tensor(action.high)
    return low + (high - low) * torch.rand(batch, steps, action.dim, generator=generator)


def _texts(leading, length, generator):
    """Ids of one to `length` words, then padding."""
    ids = torch.randint(3, WORDS, (*leading, length), generator=generator)
    lengths = torch.randint(1, length + 1, (*leading, 1), generator=generator)
    return ids.masked_fill(torch.arange(length) >= lengths, PAD)


def outcomes(batch=2, steps=1, seed=0):
    """Random rewards and ends of transitions, each `(batch, steps)` float."""
    generator = torch.Generator().manual_seed(200 + seed)
    reward = torch.randn(batch, steps, generator=generator)
    return {"reward": reward, "done": (torch.rand(batch, steps, generator=generator) < 0.3).float()}


def differing(one, other):
    """Names of the entries in which two dicts of tensors differ, a bit counting."""
    names = set(one) ^ set(other)
    return sorted(names | {name for name in set(one) & set(other) if not torch.equal(one[name], other[name])})


def all_tensors(model):
    """Every parameter and buffer by name, also the buffers that a state dict leaves out."""
    return {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


class Board(gymnasium.Env):
    """A bright cell on a 4x4 board of 4x4 pixels; actions stay, right, left, down, up; the corner ends the episode."""

    metadata = {"render_modes": [], "render_fps": 4}
    SIDE = 4
    MOVES = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))

    def __init__(self):
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (16, 16, 3), np.uint8),
                "place": spaces.Box(0, self.SIDE - 1, (2,), np.float32),
                "mission": spaces.Text(30),
            }
        )
        self.action_space = spaces.Discrete(len(self.MOVES))

    def _look(self):
        camera = np.zeros((16, 16, 3), np.uint8)
        row, column = self.place
        camera[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = (250, 200, 30)
        return {"camera": camera, "place": np.array(self.place, np.float32), "mission": "go to the corner"}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = tuple(int(n) for n in self.np_random.integers(0, self.SIDE - 1, 2))
        return self._look(), {}

    def step(self, action):
        self.place = tuple(
            min(max(here + move, 0), self.SIDE - 1) for here, move in zip(self.place, self.MOVES[action], strict=True)
        )
        is_corner = self.place == (self.SIDE - 1, self.SIDE - 1)
        return self._look(), float(is_corner), is_corner, False, {}


gymnasium.register("TestPanBoard-v0", entry_point=Board, max_episode_steps=12)


def record_board(folder, episodes=10, seed=0):
    """Records random episodes of [`Board`] into `folder` and returns it."""
    from pan_hf.data.record import record

    record("TestPanBoard-v0", folder, episodes=episodes, seed=seed, test_fraction=0.2, progress=False)
    return Path(folder)


# what makes a model of the board small; the rest is read off the recording
BOARD_OPTIONS = {
    "camera": {**{key: CAMERA[key] for key in ("code_dim", "hidden_size", "num_blocks", "latent_dim")}},
    "place": {"base": 4, "num_levels": 2},
}
BOARD_OPTIONS["camera"] |= {"codebook_size": [8, 8], "codebook_capacity": [16, 16]}


def build_board(trajectories, **config):
    """An untrained model of the board and its processor."""
    from pan_hf.build import build

    return build(trajectories, "debug", sense_options=BOARD_OPTIONS, adapter_dim=16, **config)


def board_world(folder):
    """A recording of the board and an untrained model of it: `data` and `model`, folders, and `trajectories`, those to
    train on."""
    from pan_hf.checkpoints import save_checkpoint
    from pan_hf.data.trajectories import load_trajectories

    data = record_board(folder / "data", episodes=10)
    trajectories = load_trajectories(data, "train")
    model, processor = build_board(trajectories, context_steps=2)
    save_checkpoint(folder / "model", model, processor)
    return SimpleNamespace(data=data, model=folder / "model", trajectories=trajectories)
