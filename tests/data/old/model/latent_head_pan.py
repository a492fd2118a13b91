"""The diffusion head: the next continuous latents, given the backbone's hidden states and the codes already chosen.

Flow matching along the straight path x_t = (1 - t) x + t noise, with the network predicting the clean latents x
(x-prediction): the levels leave little to say, so one step is enough. Denoiser and scheduler are diffusers classes
named in the configuration, see `schedulers_pan`; `PlaceDenoiser`, the default, is our own small one with the same
interface.
"""

import functools
import inspect
import math

import diffusers
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .schedulers_pan import count_calls, denoise, make_scheduler
from .silent_pan import SilentLinear

NUM_TRAIN_TIMESTEPS = 1000
WIDTH = 128  # of the condition, unless the denoiser's configuration says otherwise
LATENT_BLUR = 0.1  # noise on unit-scale latents that the decoder is trained to bear


class PlaceDenoiser(ModelMixin, ConfigMixin):
    """An MLP a place, modulated by the time and by the condition at that place (AdaLN, as in DiT).

    Args:
        in_channels (`int`): latents a place.
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
        self.layers = nn.ModuleList(_ModulatedLayer(hidden_size) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.out = SilentLinear(hidden_size, in_channels)  # as in DiT; a head never trained then mends nothing

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


def _denoiser_class(name: str):
    found = PlaceDenoiser if name == "PlaceDenoiser" else getattr(diffusers, name, None)
    if found is None:
        raise ValueError(f"`latent_head.denoiser` names {name!r}; diffusers {diffusers.__version__} has none.")
    return found


class LatentHead(nn.Module):
    """Trains and samples the latents of one sense.

    Args:
        sense: an image or vector sense with `latent_dim` > 0.
        condition_size (`int`): width of what `condition` gets a place.
        settings (`dict`): `config.latent_head`.

    Raises:
        ValueError: diffusers has no such denoiser.
    """

    def __init__(self, sense, condition_size: int, settings: dict):
        super().__init__()
        self.sense, self.settings = sense, settings
        given = dict(settings["denoiser"])
        name = given.pop("_class_name")
        self.takes_places, kind = name == "PlaceDenoiser", _denoiser_class(name)
        known = inspect.signature(kind.__init__).parameters
        told = "caption_channels" if "caption_channels" in known else "cross_attention_dim"  # width of the condition
        rows, columns = self._grid()
        shape = {"in_channels": sense.latent_dim, "out_channels": sense.latent_dim, told: given.get(told, WIDTH)}
        shape["sample_size"] = rows if rows == columns else [rows, columns]
        self.condition = nn.Linear(condition_size + sense.latent_dim, shape[told])
        self.denoiser = kind(**({key: value for key, value in shape.items() if key in known} | given))

    @functools.cached_property
    def num_calls(self) -> int:
        """How often the denoiser is called for one draw."""
        return count_calls(self.settings["scheduler"], self.settings["num_inference_steps"])

    def _grid(self) -> tuple[int, int]:
        return self.sense.place_grid if self.sense.kind == "image" else (1, self.sense.num_places)

    def predict(self, noisy: Tensor, time: Tensor, condition: Tensor, start: Tensor) -> Tensor:
        """Clean latents `(B, P, D)` from noisy ones at `time` `(B,)` in (0, 1], given condition `(B, P, C)` and what
        they are before the head corrects them, `(B, P, D)`, see `PanModel.latent_start`."""
        hidden = self.condition(torch.cat([condition.to(start.dtype), start], -1))
        timestep = time * NUM_TRAIN_TIMESTEPS
        if self.takes_places:
            return start + self.denoiser(noisy, timestep, hidden).sample
        grid = noisy.transpose(1, 2).unflatten(2, self._grid())
        found = self.denoiser(grid, timestep=timestep, encoder_hidden_states=hidden).sample
        return start + found.flatten(2).transpose(1, 2)

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
        shape = (len(condition), self.sense.num_places, self.sense.latent_dim)
        noise = torch.randn(shape, generator=generator, device=condition.device)
        # built here: some schedulers keep plain tensors, which would die on the meta device
        scheduler = make_scheduler(self.settings["scheduler"])

        def clean_at(noisy: Tensor, time: Tensor) -> Tensor:
            return self.predict(noisy, time, condition, start)

        return denoise(scheduler, self.settings["num_inference_steps"], noise, clean_at, generator)

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
