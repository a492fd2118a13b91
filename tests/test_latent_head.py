"""The diffusion head: any denoiser and any scheduler of flow matching by name, around one way of training."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import concatenate
from tiny_worlds import ACTIONS, SENSES, acts, language_model, observe, outcomes, world_model

from pan_hf import PanConfig, PanModel
from pan_hf.modeling import imagination_pan as imagination_pan
from pan_hf.modeling.imagination_pan import latent_examples, update_latents_help
from pan_hf.modeling.latent_head_pan import SCHEDULERS, SenseLatents, denoise, make_scheduler
from pan_hf.modeling.step_pan import StepPredictor

UNET = {"_class_name": "UNet2DConditionModel", "block_out_channels": [16], "layers_per_block": 1}
UNET |= {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
UNET |= {"mid_block_type": None, "norm_num_groups": 4, "cross_attention_dim": 16, "attention_head_dim": 4}
SANA = {"_class_name": "SanaTransformer2DModel", "num_layers": 1, "patch_size": 1, "mlp_ratio": 2.0}
SANA |= {"num_attention_heads": 2, "attention_head_dim": 8, "caption_channels": 24}
SANA |= {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler_ends_where_a_head_that_knows_says(name):
    truth = torch.tensor([-2.5, -0.3, 0.0, 1.7]).expand(3, 4)
    seen = []

    def clean_at(noisy, time):
        seen.append((noisy, time))
        return truth

    scheduler = make_scheduler({"_class_name": name}, 12)
    found = denoise(scheduler, torch.randn(3, 4), clean_at)
    torch.testing.assert_close(found, truth, atol=0.1, rtol=0)
    times = torch.stack([time[0] for _, time in seen])
    assert times[0] > 0.9 and times[-1] < 0.3 and (times > 0).all() and (times <= 1).all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler_walks_the_path_that_the_head_was_trained_on(name):
    """A head that knows only a Gaussian of latents draws just that Gaussian, by whatever path."""
    mean, std = 1.5, 0.4

    def clean_at(noisy, time):  # the posterior mean of x from (1 - t) x + t noise
        time = time.view(-1, 1)
        weight = (1 - time) * std**2 / ((1 - time) ** 2 * std**2 + time**2)
        return mean + weight * (noisy - (1 - time) * mean)

    torch.manual_seed(0)
    found = denoise(make_scheduler({"_class_name": name}, 60), torch.randn(20_000, 1), clean_at)
    assert float(found.mean()) == pytest.approx(mean, abs=0.06)
    assert float(found.std()) == pytest.approx(std, rel=0.2)


@pytest.mark.parametrize("name, steps, calls", [(SCHEDULERS[0], 1, 1), (SCHEDULERS[0], 3, 3), (SCHEDULERS[1], 3, 5)])
def test_calls_of_the_denoiser_are_counted_as_they_are_made(name, steps, calls, monkeypatch):
    head = {"scheduler": {"_class_name": name}, "num_inference_steps": steps}
    head = world_model(("camera",), latent_head=head).latent_heads["camera"]
    made = []
    monkeypatch.setattr(head.denoiser, "forward", lambda sample, *_: made.append(1) or SimpleNamespace(sample=sample))
    start = torch.zeros(1, head.sense.num_state_tokens, head.sense.latent_dim)
    head.sample(torch.zeros(1, head.sense.num_state_tokens, head.condition.in_features - head.sense.latent_dim), start)
    assert len(made) == head.num_calls == calls


@pytest.mark.slow
@pytest.mark.parametrize("denoiser", [{"_class_name": "TokenDenoiser"}, UNET, SANA], ids=lambda d: d["_class_name"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_denoiser_and_scheduler_are_named_in_the_configuration(denoiser, scheduler):
    head = {"denoiser": denoiser, "scheduler": {"_class_name": scheduler}, "num_inference_steps": 3}
    model = world_model(("camera",), latent_head=head).train()
    given = {"observation": observe(model, 2, 2), "action": acts(model, 2, 1), **outcomes(2, 1)}
    model(objective="joint", **given).loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("latent_heads.camera.denoiser.") for name in reached)
    futures = model.eval().simulate(model.perceive(observe(model)), acts(model, 2, 2), seed=0)
    assert futures.decode("camera").shape == (2, 2, 3, 16, 16)
    assert type(model.latent_heads["camera"].denoiser).__name__ == denoiser["_class_name"]


def test_a_head_that_was_never_trained_mends_nothing():
    model = PanModel.from_backbone(language_model("qwen3", 0), {"camera": SENSES["camera"]}, ACTIONS["discrete"])
    head = model.latent_heads["camera"]
    start = torch.zeros(2, head.sense.num_state_tokens, head.sense.latent_dim)
    condition = torch.randn(2, head.sense.num_state_tokens, head.condition.in_features - head.sense.latent_dim)
    assert not head.sample(condition, start).any()


@pytest.mark.parametrize("part, name", [("denoiser", "NoSuchModel"), ("scheduler", "NoSuchScheduler")])
def test_a_denoiser_or_scheduler_that_diffusers_lacks_is_refused(part, name):
    with pytest.raises(ValueError, match=f"latent_head.{part}.*{name}"):
        world_model(("camera",), latent_head={part: {"_class_name": name}})


@pytest.mark.parametrize(
    "head, message",
    [
        (
            {"scheduler": {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "sample"}},
            "'DPMSolverMultistepScheduler'; expected a diffusers scheduler of flow matching, FlowMatchEuler",
        ),
        ({"denoiser": UNET | {"in_channels": 7}}, r"in_channels=7, .* \{'camera': 3\} wide"),
        ({"denoiser": UNET | {"out_channels": 7}}, "out_channels=7"),
        ({"num_inference_steps": 0}, "at least 1 .*got 0"),
    ],
)
def test_what_does_not_fit_the_head_is_refused_by_the_configuration(head, message):
    model = world_model(("camera",))
    with pytest.raises(ValueError, match=message):
        PanConfig(**model.config.to_diff_dict() | {"latent_head": head})


def by_step(tensor):
    """`(B, H, ...)` -> `(H * B, ...)`, as examples are kept."""
    return tensor.transpose(0, 1).flatten(0, 1)


def examples(model, steps=3):
    observation, action = observe(model, 4, steps + 1), acts(model, 4, steps)
    torch.manual_seed(0)
    return observation, action, concatenate(latent_examples(model, observation, action))


def test_latents_help_where_what_is_imagined_comes_closer_with_them():
    model = world_model(("camera", "mission"), context_steps=1)
    observation, action = observe(model, 4, 1), acts(model, 4, 1)
    futures = model.simulate(model.perceive(observation), action, temperature=0.0, seed=0)
    for latents in (False, True):
        seen = torch.cat([observation["camera"], futures.decode("camera", latents=latents)], 1)
        update_latents_help(model, observation | {"camera": seen}, action)
        assert bool(model.senses["camera"].latents_help) == latents


def test_latents_do_not_help_where_they_make_bad_frames_a_little_better_and_spoil_an_exact_one():
    model = world_model(("camera", "mission"), context_steps=1)
    observation, action = observe(model, 4, 1), acts(model, 4, 1)
    futures = model.simulate(model.perceive(observation), action, temperature=0.0, seed=0)
    by_codes, with_latents = (futures.decode("camera", latents=each) for each in (False, True))
    seen = torch.where(with_latents > by_codes, 255, 0).to(torch.uint8)  # far from both, nearer to those with latents
    seen[0] = by_codes[0]
    errors = [(frames.float() - seen.float()).square().mean() for frames in (by_codes, with_latents)]
    assert errors[1] < errors[0]  # by the mean they would help
    update_latents_help(model, observation | {"camera": torch.cat([observation["camera"], seen], 1)}, action)
    assert not model.senses["camera"].latents_help


@pytest.mark.slow
def test_where_a_world_is_deterministic_latents_are_given_the_codes_that_were_imagined(monkeypatch):
    monkeypatch.setattr(imagination_pan, "CARRIED", 0.0)
    model = world_model(("camera", "touch"))
    observation, action, found = examples(model)
    first = {name: values[:, :1] for name, values in observation.items()}
    futures = model.simulate(model.perceive(first), action, temperature=0.0)
    codes = [by_step(level) for level in futures.codes["camera"]]
    expected = model.senses["camera"].latents_given(by_step(observation["camera"][:, 1:]), codes)
    torch.testing.assert_close(found["state"]["latents"]["camera"], expected, atol=1e-4, rtol=1e-4)
    told = by_step(futures.conditions["camera"])
    torch.testing.assert_close(found["condition"]["camera"], told, atol=1e-4, rtol=1e-4)


def test_where_futures_branch_latents_are_given_the_true_codes():
    model = world_model(("camera", "touch"), level0_sampling="autoregressive")
    observation, _, found = examples(model)
    for name, expected in model.encode(observation).latents.items():
        torch.testing.assert_close(found["state"]["latents"][name], by_step(expected[:, 1:]), atol=1e-4, rtol=1e-4)


def test_latents_begin_as_those_that_lead_from_the_chosen_codes_to_what_is_expected():
    model = world_model(("camera", "touch"))
    belief, action = model.perceive(observe(model, 3, 1)), acts(model, 3, 1)[:, 0]
    predictor = StepPredictor(model, temperature=0.0)
    step = predictor.step(belief, action, keeps_logits=True)
    told = (step.hidden, step.trunk, step.state, predictor.tables, step.shifts["camera"])
    latents = SenseLatents(model, "camera")
    start = latents.start(latents.condition(*told), step.state.codes["camera"])
    codec, codes = model.senses["camera"], step.state.codes["camera"]
    frames = codec.decode_probabilities([level.softmax(-1) for level in step.logits["camera"]])
    torch.testing.assert_close(start, codec.latents_given(frames, codes), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(start, codec.latents_given(codec.decode(codes), codes), atol=1e-2)


def test_where_futures_branch_latents_begin_at_nothing():
    model = world_model(("camera", "touch"), level0_sampling="autoregressive")
    _, _, found = examples(model)
    assert not any(values.any() for values in found["state"]["start"].values())


def test_latents_are_started_alike_whether_everything_is_predicted_or_an_effort_says_so():
    model = world_model(("camera",))
    observation, action = observe(model, 3, 1), acts(model, 3, 1)
    given = {"temperature": 0.0, "seed": 0}
    whole = model.simulate(model.perceive(observation), action, **given)
    names = [block.name for block in model.blocks]
    spent = model.simulate(model.perceive(observation), action, effort=names, **given)
    apart = spent.decode("camera").int() - whole.decode("camera", latents=True).int()
    assert apart.abs().max() <= 1  # sums taken in another order may round to the next of 256 values


def test_in_some_examples_latents_alone_tell_what_happens(monkeypatch):
    monkeypatch.setattr(imagination_pan, "CARRIED", 1.0)
    model = world_model(("camera", "touch"))
    observation, _, found = examples(model, steps=1)
    held = [level[:, 0] for level in model.encode(observation).codes["camera"]]
    expected = model.senses["camera"].latents_given(observation["camera"][:, 1], held)
    torch.testing.assert_close(found["state"]["latents"]["camera"], expected, atol=1e-4, rtol=1e-4)
