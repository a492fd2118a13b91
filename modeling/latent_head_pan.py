"""The diffusion head: the next continuous latents, given the backbone's hidden states and the codes already chosen.

Flow matching along the straight path x_t = (1 - t) x + t noise, with the network predicting the clean latents x
(x-prediction): the levels leave little to say, so one step is enough (`docs/results/latents`). The denoiser is any of
diffusers, the scheduler one of its flow matching ones, both named in the configuration; `TokenDenoiser`, the default,
is our own small denoiser with the same interface.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import diffusers
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .embedding_pan import CodeTables, Float32Module, ZeroInitLinear, module_list
from .image_codec_pan import LATENT_BLUR
from .layout_pan import group_by_token, ungroup_tokens

if TYPE_CHECKING:
    from .configuration_pan import PanConfig
    from .modeling_pan import PanModel
    from .state_pan import State

NUM_TRAIN_TIMESTEPS = 1000
WIDTH = 128  # of the condition, unless the denoiser's configuration says otherwise


class TokenDenoiser(ModelMixin, ConfigMixin):
    """An MLP a state token, modulated by the time and by the condition of that token (AdaLN, as in DiT).

    Args:
        in_channels (`int`): latents a state token.
        cross_attention_dim (`int`): width of the condition.
        hidden_size (`int`), num_layers (`int`): of the network.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 16, cross_attention_dim: int = 256, hidden_size: int = 128, num_layers: int = 3
    ):
        super().__init__()
        self.time_features = Timesteps(64, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(64, hidden_size)
        self.condition = nn.Linear(cross_attention_dim, hidden_size)
        self.inputs = nn.Linear(in_channels, hidden_size)
        self.layers = module_list(_ModulatedLayer(hidden_size) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.out = ZeroInitLinear(hidden_size, in_channels)  # as in DiT; so a head never trained changes nothing

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> ModelOutput:
        """Args: sample `(B, P, in_channels)`; timestep `(B,)` in [0, 1000]; encoder_hidden_states
        `(B, P, cross_attention_dim)`. Returns: `.sample`, the clean latents `(B, P, in_channels)`."""
        time = self.time_embedding(self.time_features(timestep).to(sample.dtype)).unsqueeze(1)
        condition = nn.functional.silu(self.condition(encoder_hidden_states) + time)
        x = self.inputs(sample)
        for layer in self.layers:
            x = layer(x, condition)
        return ModelOutput(sample=self.out(self.norm(x)))


class _ModulatedLayer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(condition).chunk(3, -1)
        hidden = self.norm(x) * (1 + scale) + shift
        return x + gate * self.contract(nn.functional.silu(self.expand(hidden)))


class LatentHead(Float32Module):
    """Trains and samples the latents of one sense.

    Args:
        sense: an image or vector sense with `latent_dim` > 0.
        condition_size (`int`): width of what `condition` gets a state token.
        settings (`dict`): `config.latent_head`.

    Raises:
        ValueError: diffusers has no such denoiser.
    """

    def __init__(self, sense, condition_size: int, settings: dict):
        super().__init__()
        self.sense, self.settings = sense, settings
        options = dict(settings["denoiser"])
        name = options.pop("_class_name")
        self.takes_tokens = name in ("TokenDenoiser", "PlaceDenoiser")  # the latter in configurations before 0.2
        kind = TokenDenoiser if self.takes_tokens else getattr(diffusers, name, None)
        if kind is None:
            raise ValueError(f"`latent_head.denoiser` names {name!r}; diffusers {diffusers.__version__} has none.")
        parameters = inspect.signature(kind.__init__).parameters
        # diffusers' transformers and UNets call the width of the condition differently
        width = "caption_channels" if "caption_channels" in parameters else "cross_attention_dim"
        rows, columns = sense.token_grid
        shape = {"in_channels": sense.latent_dim, "out_channels": sense.latent_dim, width: options.get(width, WIDTH)}
        shape["sample_size"] = rows if rows == columns else [rows, columns]
        self.condition = nn.Linear(condition_size + sense.latent_dim, shape[width])
        self.denoiser = kind(**({key: value for key, value in shape.items() if key in parameters} | options))

    @functools.cached_property
    def num_calls(self) -> int:
        """How often the denoiser is called for one draw."""
        return len(make_scheduler(self.settings["scheduler"], self.settings["num_inference_steps"]).timesteps)

    def predict(self, noisy: Tensor, time: Tensor, condition: Tensor, start: Tensor) -> Tensor:
        """Clean latents `(B, P, D)` from noisy ones at `time` `(B,)` in (0, 1], given condition `(B, P, C)` and what
        they are before the head corrects them, `(B, P, D)`, see `SenseLatents.start`."""
        hidden = self.condition(torch.cat([condition.to(start.dtype), start], -1))
        timestep = time * NUM_TRAIN_TIMESTEPS
        if self.takes_tokens:
            return start + self.denoiser(noisy, timestep, hidden).sample
        grid = noisy.transpose(1, 2).unflatten(2, self.sense.token_grid)
        correction = self.denoiser(grid, timestep=timestep, encoder_hidden_states=hidden).sample
        return start + correction.flatten(2).transpose(1, 2)

    def loss(self, latents: Tensor, condition: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Flow matching. Args: clean latents `(B, P, D)`; condition and start as for `predict`. Returns: the scalar
        loss, and the latents that one step of diffusion draws, `(B, P, D)`, for losses on what they decode to."""
        noise = torch.randn_like(latents)
        time = torch.rand(len(latents), device=latents.device).clamp(min=0.02)
        at = time.view(-1, 1, 1)
        clean = self.predict((1 - at) * latents + at * noise, time, condition, start)
        drawn = self.predict(torch.randn_like(latents), torch.ones_like(time), condition, start)
        return nn.functional.mse_loss(clean, latents), drawn

    def sample(self, condition: Tensor, start: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws latents `(B, P, D)`, condition and start as for `predict`, by `num_inference_steps` steps of the
        scheduler."""
        shape = (len(condition), self.sense.num_state_tokens, self.sense.latent_dim)
        noise = torch.randn(shape, generator=generator, device=condition.device)
        # built here: some schedulers keep plain tensors, which would die on the meta device
        scheduler = make_scheduler(self.settings["scheduler"], self.settings["num_inference_steps"], condition.device)

        def clean_at(noisy: Tensor, time: Tensor) -> Tensor:
            return self.predict(noisy, time, condition, start)

        return denoise(scheduler, noise, clean_at)

    @torch.no_grad()
    def log_prob_bound(self, latents: Tensor, condition: Tensor, start: Tensor, num_samples: int = 8) -> Tensor:
        """What the latents cost, as a lower bound in nats `(B,)`: minus the KL divergence between the path that blurs
        the true latents and the path the head generates, from noise down to latents blurred by `LATENT_BLUR` (Kingma
        et al. 2021, "Variational Diffusion Models", eq. 17: half the loss of SNR times the squared error). The blurred
        latents are what the decoder is then given. Estimated at `num_samples` stratified times with a fixed seed."""
        generator = torch.Generator(device=latents.device).manual_seed(0)
        low, high = math.log(LATENT_BLUR), 4.0  # of log(noise / signal)
        total = 0.5 * math.exp(-2 * high) * latents.square().flatten(1).sum(-1)
        for index in range(num_samples):
            log_ratio = low + (index + 0.5) / num_samples * (high - low)
            time = 1 / (1 + math.exp(-log_ratio))
            noise = torch.randn(latents.shape, generator=generator, device=latents.device)
            at = torch.full((len(latents),), time, device=latents.device)
            clean = self.predict((1 - time) * latents + time * noise, at, condition, start)
            error = (clean - latents).square().flatten(1).sum(-1)
            total = total + error * math.exp(-2 * log_ratio) * (high - low) / num_samples
        return -total


# ---- The latents that go with chosen codes: what their head is told, where it starts from, and how they are drawn.
#
# Where a world is deterministic (level 0 is drawn in parallel) a code that is not the true one is a mistake, and
# latents make up for it: those of images start from the image that is expected, and the head corrects them. Where
# futures branch, a code that was drawn otherwise is another future, and latents must not pull it back: they start from
# nothing.
#
# Shapes: N = rows, P = state tokens of a sense, n = codes of a level, C = width of a condition.


def reconstructs_latents(config: PanConfig) -> bool:
    """Whether latents make up for codes that are not the true ones."""
    return config.level0_sampling == "parallel"


def hedged_senses(config: PanConfig) -> list[str]:
    """The senses whose latents hedge: in deterministic worlds those of learned codes start from what is expected."""
    senses = config.coded_senses.items() if reconstructs_latents(config) else ()
    return [name for name, sense in senses if sense.can_grow and sense.latent_dim]


def shift_size(config: PanConfig, name: str) -> int:
    """Numbers in the shifts of a sense, a state token, all levels together; 0 where nothing is hedged."""
    sense = config.senses[name]
    return sum(sense.codes_per_token) * sense.code_dim if name in hedged_senses(config) else 0


class SenseLatents:
    """Conditions, starts and draws of the latent head of one sense of a model.

    Args:
        model ([`PanModel`]): which is asked for its modules every time.
        name (`str`): of a sense with a latent head.
    """

    def __init__(self, model: PanModel, name: str):
        self.model, self.name, self.sense = model, name, model.config.senses[name]

    def start(self, condition: Tensor, codes: list[Tensor]) -> Tensor:
        """What latents are before the head corrects them, `(N, P, latent_dim)`: those with which codes `(N, n)` come
        to the expected image, and nothing where codes are not hedged."""
        sense = self.sense
        if self.name not in hedged_senses(self.model.config):
            return condition.new_zeros(*condition.shape[:2], sense.latent_dim)
        sizes = [count * sense.code_dim for count in sense.codes_per_token]
        parts = condition[..., -sum(sizes) :].split(sizes, -1)
        parts = [part.unflatten(2, (-1, sense.code_dim)) for part in parts]
        shifts = [ungroup_tokens(part, sense, level) for level, part in enumerate(parts)]
        return self.model.senses[self.name].latents_expected(codes, shifts)  # type: ignore[operator]  # of codecs with hedged codes

    def condition(
        self,
        hidden: dict[str, Tensor],
        trunk: Tensor,
        following: State,
        tables: CodeTables,
        shifts: list[Tensor] | None = None,
    ) -> Tensor:
        """What the head is told, `(N, P, 4 * hidden_size + shift_size)`: the hidden states of the sense's last pass,
        what its tokens hold now, and the next state's codes, so that latents are predicted *given the levels*; where
        codes are hedged, also the `shifts` of each level `(N, n, code_dim)` from the vectors of these codes to the
        expected ones."""
        model, name, sense = self.model, self.name, self.sense
        last = [each for each in model.layout.passes if each.levels and each.levels[0] < sense.num_levels][-1]
        tokens = model.layout.split_tokens(last, hidden[last.name], trunk)[name]
        codes = model.state_embeddings[name].codes(following.codes[name], tables.embeddings[name], tables.sizes[name])
        parts = [tokens, codes]
        if name in hedged_senses(model.config):
            assert shifts is not None
            parts += [group_by_token(shift, sense, level).flatten(2) for level, shift in enumerate(shifts)]
        return torch.cat([part.float() for part in parts], -1)

    @torch.no_grad()
    def sample(self, condition: Tensor, state: State, seed: int | None = None) -> Tensor:
        """Latents `(..., P, latent_dim)` from conditions `(..., P, C)` and states `(...,)` as `simulate` gives
        them."""
        leading = condition.shape[:-2]
        generator = None if seed is None else torch.Generator(device=condition.device).manual_seed(seed)
        codes = [level.flatten(0, len(leading) - 1) for level in state.codes[self.name]]
        return self.draw(condition.flatten(0, len(leading) - 1), codes, generator).unflatten(0, leading)

    def draw(self, condition: Tensor, codes: list[Tensor], generator: torch.Generator | None) -> Tensor:
        """Latents `(N, P, latent_dim)` that go with codes, `(N, n)` a level, given conditions `(N, P, C)`."""
        head = self.model.latent_heads[self.name]
        return head.sample(condition, self.start(condition, codes), generator)


def draw_latents(
    model: PanModel, conditions: dict[str, Tensor], state: State, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Latents `(N, P, latent_dim)` that go with the codes of a state `(N,)`, of each sense that has a condition."""
    return {
        name: SenseLatents(model, name).draw(condition, state.codes[name], generator)
        for name, condition in conditions.items()
    }


# ---- Schedulers of diffusers whose own path is the one that the head is trained on, x_t = (1 - t) x + t noise.


# `FlowMatchLCMScheduler` wants a head that draws clean latents: from one that expects them it makes them too alike
SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


def make_scheduler(settings: dict, num_steps: int, device: torch.device | str = "cpu"):
    """A fresh scheduler from a diffusers configuration with `_class_name`, its steps set; it calls the denoiser once
    for each of `.timesteps`, which are more than `num_steps` for schedulers of second order.

    Raises:
        ValueError: it is none of `SCHEDULERS`.
    """
    options = dict(settings)
    name = options.pop("_class_name")
    if name not in SCHEDULERS:
        raise ValueError(
            f"`latent_head.scheduler` names {name!r}; expected a diffusers scheduler of flow matching, "
            f"{' or '.join(SCHEDULERS)}. Name one of these in the configuration; nothing has to be trained again."
        )
    try:
        scheduler = getattr(diffusers, name)(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`latent_head.scheduler`: {name} does not take {options}: {error}") from error
    if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        # `set_timesteps(n)` would spend its last step at a noise level of almost nothing
        scheduler.set_timesteps(sigmas=[1 - step / num_steps for step in range(num_steps)], device=device)
    else:
        scheduler.set_timesteps(num_steps, device=device)
    return scheduler


def denoise(scheduler, noise: Tensor, clean_at: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Walks a scheduler's path from noise to clean latents.

    Args:
        scheduler: see `make_scheduler`.
        noise: standard normal `(B, ...)`.
        clean_at: `(noisy (B, ...), time (B,)) -> (B, ...)`, the clean latents expected at a point of the path.

    Returns:
        clean latents, as `noise`.
    """
    latents = noise
    for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):  # the last sigma is the end
        velocity = (latents - clean_at(latents, sigma.expand(len(latents)))) / sigma
        latents = scheduler.step(velocity, timestep, latents).prev_sample
    return latents


def check_latent_head(settings: dict, senses: dict) -> None:
    """Refuses a scheduler or denoiser that could not work, before anything is built.

    Args:
        settings (`dict`): `config.latent_head`; senses: the configured senses by name.

    Raises:
        ValueError: see `make_scheduler`; an unknown setting; a part without `_class_name`; no steps, or more than
            there are time steps; or a denoiser whose channels are not a sense's latents.
    """
    if unknown := set(settings) - {"denoiser", "scheduler", "num_inference_steps"}:
        raise ValueError(f"`latent_head` has denoiser, scheduler and num_inference_steps, got {sorted(unknown)} too.")
    for part in ("denoiser", "scheduler"):
        if not isinstance(settings[part], dict) or not isinstance(settings[part].get("_class_name"), str):
            raise ValueError(
                f"`latent_head.{part}` is a diffusers configuration with `_class_name`, got {settings[part]!r}."
            )
    steps = settings["num_inference_steps"]
    if type(steps) is not int or not 1 <= steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(
            f"`latent_head.num_inference_steps` must be a whole number of at least 1 and at most "
            f"{NUM_TRAIN_TIMESTEPS}, got {steps!r}."
        )
    make_scheduler(settings["scheduler"], steps)
    for part in ("in_channels", "out_channels"):
        channels = settings["denoiser"].get(part)
        wrong = {
            name: sense.latent_dim
            for name, sense in senses.items()
            if getattr(sense, "latent_dim", 0) and channels not in (None, sense.latent_dim)
        }
        if wrong:
            raise ValueError(
                f"`latent_head.denoiser` has {part}={channels}, and the latents of the senses are {wrong} wide; leave "
                f"{part} out, it follows from the sense."
            )
