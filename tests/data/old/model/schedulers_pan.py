"""Any diffusers scheduler around one head that predicts clean latents.

The head is trained on straight paths, x_t = (1 - t) x + t noise. Schedulers walk other paths, x_s = signal x + sigma
noise, and ask for other predictions; but all Gaussian paths are one another rescaled: x_s / (signal + sigma) lies on
the straight path at t = sigma / (signal + sigma), and from a clean prediction any other follows. So a scheduler is
swapped in by its name, and nothing is trained again.
"""

import inspect
from collections.abc import Callable

import diffusers
import torch
from torch import Tensor

PREDICTIONS = ("sample", "original_sample", "epsilon", "v_prediction")
# what a head of unit-scale latents needs unless it is said otherwise, where a scheduler knows the setting
SETTINGS = {"clip_sample": False, "timestep_spacing": "trailing", "prediction_type": "sample"}
NO_SAMPLE_PREDICTION = ("Heun", "KDPM2", "LMS", "PNDM", "IPNDM", "DPMSolverSDE")  # these ask for epsilon


def make_scheduler(settings: dict):
    """A fresh scheduler from a diffusers configuration with `_class_name`.

    Raises:
        ValueError: diffusers has no such scheduler, or it does not walk a Gaussian path or asks for a prediction that
            does not follow from clean latents.
    """
    given = dict(settings)
    name = given.pop("_class_name")
    kind = getattr(diffusers, name, None)
    if kind is None or not hasattr(kind, "set_timesteps"):
        raise ValueError(f"`latent_head.scheduler` names {name!r}; diffusers {diffusers.__version__} has no such one.")
    known = inspect.signature(kind.__init__).parameters
    usual = {key: value for key, value in SETTINGS.items() if key in known}
    if name.startswith(NO_SAMPLE_PREDICTION) and "prediction_type" in usual:
        usual["prediction_type"] = "epsilon"
    scheduler = kind(**(usual | given))
    is_flow = name.startswith("FlowMatch")
    asked = getattr(scheduler.config, "prediction_type", None)
    if not is_flow and (asked not in PREDICTIONS or not hasattr(scheduler, "alphas_cumprod")):
        raise ValueError(
            f"`latent_head.scheduler` {name!r} with prediction_type={asked!r} does not fit a head that predicts clean "
            f"latents; use a FlowMatch scheduler, or one with alphas_cumprod and a prediction_type of {PREDICTIONS}."
        )
    return scheduler


def denoise(
    scheduler, num_steps: int, noise: Tensor, clean_at: Callable[[Tensor, Tensor], Tensor], generator=None
) -> Tensor:
    """Walks a scheduler's path from noise to clean latents.

    Args:
        scheduler: see `make_scheduler`.
        num_steps (`int`): of the scheduler; those of second order call the head nearly twice as often.
        noise: standard normal `(B, ...)`.
        clean_at: `(noisy (B, ...), time (B,)) -> (B, ...)`, the clean latents expected from a point on the straight
            path.
        generator (*optional*): of schedulers that draw.

    Returns:
        clean latents, as `noise`.
    """
    if type(scheduler).__name__.startswith("FlowMatch"):
        return _denoise_flow(scheduler, num_steps, noise, clean_at)
    scheduler.set_timesteps(num_steps, device=noise.device)
    x, explodes = noise * scheduler.init_noise_sigma, float(scheduler.init_noise_sigma) != 1.0
    for index, timestep in enumerate(scheduler.timesteps):
        if explodes:
            signal, sigma = torch.ones((), device=x.device), scheduler.sigmas[index].to(x.device)
            scheduler.scale_model_input(x, timestep)  # some insist on being asked
        else:
            share = scheduler.alphas_cumprod[int(timestep)].to(x.device)
            signal, sigma = share.sqrt(), (1 - share).sqrt()
        time = (sigma / (signal + sigma)).to(x.dtype)
        clean = clean_at(x / (signal + sigma), time.expand(len(x)))
        told = _as_asked(scheduler.config.prediction_type, clean, x, signal, sigma)
        x = scheduler.step(told, timestep, x, **_drawing(scheduler, generator)).prev_sample
    return x


def _denoise_flow(scheduler, num_steps: int, noise: Tensor, clean_at) -> Tensor:
    x = noise
    try:  # given as sigmas: `set_timesteps(n)` would spend its last step at a noise level of almost nothing
        scheduler.set_timesteps(sigmas=[1 - step / num_steps for step in range(num_steps)], device=x.device)
    except TypeError:
        scheduler.set_timesteps(num_steps, device=x.device)
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[index].to(x.device)
        clean = clean_at(x, sigma.expand(len(x)))
        x = scheduler.step((x - clean) / sigma, timestep, x).prev_sample
    return x


def count_calls(settings: dict, num_steps: int) -> int:
    """How often `denoise` asks for clean latents with a scheduler; see `make_scheduler`."""
    calls = []

    def clean_at(noisy: Tensor, _time: Tensor) -> Tensor:
        calls.append(1)
        return noisy

    denoise(make_scheduler(settings), num_steps, torch.zeros(1, 1), clean_at)
    return len(calls)


def _as_asked(kind: str, clean: Tensor, x: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """What a scheduler asks for, of a point x = signal clean + sigma noise."""
    if kind in ("sample", "original_sample"):
        return clean
    noise = (x - signal * clean) / sigma
    if kind == "epsilon":
        return noise
    return (signal * noise - sigma * clean) / (signal**2 + sigma**2).sqrt()


def _drawing(scheduler, generator) -> dict:
    takes = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": generator} if takes else {}


def check_latent_head(settings: dict, senses: dict) -> None:
    """Refuses a scheduler or denoiser that could not work, before anything is built.

    Args:
        settings (`dict`): `config.latent_head`; senses: the configured senses by name.

    Raises:
        ValueError: see `make_scheduler`; no steps; or a denoiser whose channels are not a sense's latents.
    """
    steps = settings["num_inference_steps"]
    if not (isinstance(steps, int) and steps >= 1):
        raise ValueError(f"`latent_head.num_inference_steps` must be a whole number of at least 1, got {steps!r}.")
    make_scheduler(settings["scheduler"])
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
