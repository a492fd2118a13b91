"""Configurations are checked by type and range, sizes before anything is allocated, rewards against their bound."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny_worlds import CAMERA, SENSES, language_model, observe, world_model

from pan_hf import DiscreteAction, ImageSense, PanConfig, PanModel, TextSense, VectorAction, VectorSense
from pan_hf.modeling.configuration_pan import TrainingConfig
from pan_hf.modeling.heads_pan import check_rewards, reward_bins, reward_bound, symexp, two_hot
from pan_hf.modeling.validation_pan import bounded, check_fields


def config(**fields):
    return PanConfig(**({"senses": {"camera": SENSES["camera"]}, "action": DiscreteAction(3)} | fields))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: VectorSense(kind="image"), "VectorSense: its `kind` is 'vector', got 'image'"),
        (lambda: VectorSense(dim=0), "`dim` must be at least 1 and at most 65536, got 0"),
        (lambda: VectorSense(dim=True), "`dim` must be int, got True"),
        (lambda: VectorSense(dim=2.0), "`dim` must be int, got 2.0"),
        (lambda: VectorSense(low=float("nan")), "`low` must be finite, got nan"),
        (lambda: VectorSense(high="1"), r"`high` must be int \| float .*, got '1'"),
        (lambda: VectorSense(dim=2**40), "`dim` must be at least 1 and at most"),
        (lambda: VectorSense(clip=1), "`clip` must be bool, got 1"),
        (lambda: VectorAction(base=1), "`base` must be at least 2"),
        (lambda: ImageSense(size=2**20), "`size` must be at least 1 and at most"),
        (lambda: ImageSense(size=[64, 64, 3]), r"`size` is one side or \[height, width\]"),
        (lambda: ImageSense(size=2**16, patch_size=64), "more than 268435456 numbers; resize"),
        (lambda: ImageSense(hidden_size=-4), "`hidden_size` must be at least 1"),
        (lambda: ImageSense(codebook_size=[8, "8"]), r"`codebook_size` must be list\[int\]"),
        (lambda: ImageSense(codebook_size=[1, 8]), "`codebook_size` must be at least 2"),
        (lambda: ImageSense(fps=0), "`fps` must be at least"),
        (lambda: ImageSense(low=3), "colours of 8 bits have no range; pass bits=16, or leave out low"),
        (lambda: ImageSense(bits=16), "numbers of 16 bits have channels=1, got 3"),
        (lambda: ImageSense(bits=16, channels=1, low=9, high=9), "expected 0 <= low < high < 65536"),
        (lambda: TextSense(max_length=0), "`max_length` must be at least 1"),
        (lambda: DiscreteAction(3, names="left"), "`names` must be .*got 'left'"),
        (lambda: DiscreteAction(-1), "`num_actions` must be at least 1"),
        (lambda: config(adapter_dim=-3), "PanConfig: `adapter_dim` must be at least 1 and at most 65536, got -3"),
        (lambda: config(context_steps=1.5), "`context_steps` must be int, got 1.5"),
        (lambda: config(fold_levels=1), "`fold_levels` must be bool"),
        (lambda: config(reward_bound=0), "`reward_bound` must be at least 1e-06"),
        (lambda: config(reward_bound=float("inf")), "`reward_bound` must be at least"),
        (lambda: config(actors="me"), "`actors` must be .*got 'me'"),
        (lambda: config(segments={"camera.0": [0]}), r"`\[offset, capacity\]`|is \[offset, capacity\]"),
        (lambda: config(senses={"camera": 3}), "Sense 'camera': expected one of the kinds .*got 3"),
        (lambda: config(senses={"camera": {"kind": ["image"]}}), r"unknown kind \['image'\]"),
        (lambda: config(senses=[1]), "`senses` must be"),
        (lambda: config(training={"focus_share": float("nan")}), "`focus_share` is a share, from 0 to 1; got nan"),
        (lambda: config(training={"change_weight": -1}), "`change_weight` must be at least 0"),
        (lambda: config(training={"loss_weights": {"codes": True}}), "`loss_weights` must be"),
        (lambda: config(training=3), "`training` takes settings by name"),
        (lambda: config(latent_head={"steps": 3}), r"got \['steps'\] too"),
        (lambda: config(latent_head={"num_inference_steps": True}), "`latent_head.num_inference_steps` must be"),
        (lambda: config(latent_head={"num_inference_steps": 10**9}), "at least 1 and at most 1000"),
        (lambda: config(latent_head={"denoiser": "UNet2DConditionModel"}), "`latent_head.denoiser` is a diffusers"),
        (lambda: config(latent_head={"scheduler": {}}), "`latent_head.scheduler` is a diffusers"),
        (
            lambda: config(text_config={"model_type": "qwen3", "num_hidden_layers": 2**40}),
            "`num_hidden_layers` must be",
        ),
    ],
)
def test_a_field_of_another_type_or_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_field_is_checked_when_it_is_set_and_a_refusal_changes_nothing():
    made = config()
    before = made.to_dict()
    for name, value in {"adapter_dim": -3, "context_steps": True, "focus_share": 2.0, "reward_bound": "10"}.items():
        with pytest.raises(ValueError, match=f"`{name}`"):
            setattr(made, name, value)
    assert made.to_dict() == before


def test_numbers_and_arrays_of_numpy_become_what_json_has():
    sense = VectorSense(dim=np.int64(2), low=np.zeros(2, np.float32), high=(1, 2.5))
    assert sense == VectorSense(dim=2, low=[0.0, 0.0], high=[1.0, 2.5]) and type(sense.dim) is int
    assert json.dumps(config(senses={"at": sense}, copy_bias=np.float32(1.5)).to_dict()["senses"])


def test_a_kind_of_a_user_is_checked_where_it_is_configured():
    @dataclass(frozen=True)
    class Loose:
        rate: int = bounded(4, 1, 8)
        kind: str = "loose"

    check_fields(Loose())
    with pytest.raises(ValueError, match="Loose: `rate` must be at least 1 and at most 8, got 9"):
        config(senses={"ear": Loose(rate=9)})


def test_a_configuration_is_checked_when_it_is_loaded(tmp_path):
    model = world_model(("camera",))
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    for change, message in (
        ({"adapter_dim": -3}, "`adapter_dim` must be at least 1"),
        ({"senses": {"camera": good["senses"]["camera"] | {"height": 2**20}}}, "`height` must be"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            PanModel.from_pretrained(tmp_path)


def test_the_old_name_of_a_setting_is_read():
    assert config(crop_places=2).training.crop_tokens == 2
    made = config(training={"crop_places": 2})
    assert made.training == TrainingConfig(crop_tokens=2) and made.crop_places == made.crop_tokens == 2
    made.crop_places = 1
    assert made.training.crop_tokens == 1 and "crop_places" not in made.to_dict()["training"]


# ---- sizes


def test_a_sense_that_would_take_billions_of_parameters_is_refused_before_it_is_built():
    backbone = language_model()
    rows = backbone.get_input_embeddings().weight.shape
    with pytest.raises(ValueError, match=r"billion parameters .* because of 'state': shape \(12288,\), .* ImageSense"):
        PanModel.from_backbone(backbone, {"state": VectorSense(dim=12288)}, DiscreteAction(2))
    assert backbone.get_input_embeddings().weight.shape == rows


# ---- rewards


@pytest.mark.parametrize("reward", [-1.0, -20.0, -100.0, -1000.0, 250_000.0, 0.25])
def test_a_reward_within_the_bound_of_its_recording_is_said_as_it_is(reward):
    bound = reward_bound(np.array([0.0, reward], np.float32))
    said = symexp(two_hot(torch.tensor([reward]), bound) @ reward_bins(bound))
    torch.testing.assert_close(said, torch.tensor([reward]), rtol=1e-4, atol=1e-5)


def test_rewards_beyond_the_bound_of_a_model_are_refused_with_the_bound_they_need():
    assert reward_bound([]) == reward_bound([3.0]) == 10.0 and reward_bound([-1000.0]) == pytest.approx(2000)
    check_rewards(np.array([-10.0, 10.0]), 10.0)
    check_rewards(torch.tensor([20.1]), 20.1)  # float32 of it is a little more
    with pytest.raises(ValueError, match="rewards as large as 20; .*within plus and minus 10.*reward_bound=40"):
        check_rewards(np.array([-20.0, 1.0]), 10.0)
    with pytest.raises(ValueError, match="must be finite, got 1 NaN"):
        reward_bound([1.0, float("nan")])


# ---- observations beyond their range


def test_observations_beyond_their_range_are_refused_and_not_clipped():
    model = world_model(("camera", "touch", "heard"))
    good = observe(model, 2)
    model.perceive(good)
    camera = good["camera"].float() / 127.5 - 1
    for name, values, message in (
        (
            "touch",
            torch.full_like(good["touch"], 9.0),
            "Sense 'touch': VectorSense: coordinate 0 goes from -1.0 to 1.0",
        ),
        ("touch", torch.full_like(good["touch"], torch.nan), "holds numbers that are not finite"),
        ("camera", torch.full_like(camera, torch.nan), "Sense 'camera' holds numbers that are not finite"),
        ("camera", 255 * camera, "Sense 'camera': expected floats within -1 to 1"),
        ("camera", good["camera"].int(), "expected uint8, got torch.int32"),
        ("heard", torch.full_like(good["heard"], 10**6), "Sense 'heard': expected ids of words"),
        ("camera", good["camera"].numpy(), "expected a tensor .*got ndarray; the processor makes one"),
        ("camera", good["camera"][:0], r"expected a tensor .*got \(0,"),
    ):
        with pytest.raises(ValueError, match=message):
            model.perceive(dict(good) | {name: values})


def test_frames_of_floats_are_seen_as_the_bytes_they_stand_for():
    model = world_model(("camera",))
    good = observe(model, 2)
    as_floats = {"camera": good["camera"].double() / 127.5 - 1}
    assert model.perceive(as_floats).keys() == model.perceive(good).keys()


# ---- depth, and pictures of any size that tiles

DEPTH = ImageSense(**(CAMERA | {"channels": 1, "bits": 16, "low": 400, "high": 4000, "unit": "mm"}))


def test_a_depth_image_is_encoded_decoded_and_scored_in_its_own_range():
    model = PanModel.from_backbone(language_model(), {"depth": DEPTH}, DiscreteAction(3)).eval()
    low, high = DEPTH.value_range
    frames = torch.randint(low, high + 1, (2, 1, *DEPTH.shape), dtype=torch.int32)
    belief = model.perceive({"depth": frames})
    decoded = belief.decode("depth")
    assert decoded.dtype == torch.int32 and decoded.shape == (2, *DEPTH.shape)
    assert low <= int(decoded.min()) and int(decoded.max()) <= high
    codec = model.senses["depth"]
    assert torch.equal(codec.as_output(codec.to_float(frames)), frames)
    assert codec.to_picture(frames).dtype == torch.uint8 and codec.num_values == high - low + 1
    actions = torch.zeros(2, 1, dtype=torch.long)
    assert torch.isfinite(model.log_prob(belief, actions, {"depth": frames}).total).all()
    assert "<img" in belief._repr_html_()
    with pytest.raises(ValueError, match="whole numbers from 400 to 4000 mm, got torch.int32 from 5 to 5"):
        model.perceive({"depth": torch.full_like(frames, 5)})
    with pytest.raises(ValueError, match="expected whole numbers|expected floats|uint8"):
        model.perceive({"depth": frames.float()})
    assert PanConfig.from_dict(model.config.to_dict()).senses["depth"] == DEPTH


def test_colours_leave_the_range_of_depth_out_of_their_configuration():
    assert not {"bits", "low", "high", "unit", "clip"} & set(SENSES["camera"].to_dict())
    assert ImageSense(**SENSES["camera"].to_dict()) == SENSES["camera"]


@pytest.mark.parametrize(
    "height, width, expected",
    [
        (56, 56, (8, 1)),  # BabyAI's own view: 7 by 7 tiles
        (40, 40, (8, 1)),
        (63, 63, (9, 1)),
        (64, 64, (8, 2)),
        (84, 84, (14, 2)),
        (96, 96, (12, 2)),
        (100, 100, (10, 2)),
        (160, 210, (10, 1)),
        (400, 600, (50, 2)),
    ],
)
def test_a_picture_of_any_size_that_tiles_is_encoded_and_learned_from(height, width, expected):
    from pan_hf.features import feature_of

    feature = feature_of({"kind": "image", "shape": [height, width, 3]})
    values = np.zeros((2, 3, height, width), np.uint8)
    small = {"hidden_size": 4, "num_blocks": 1, "code_dim": 2, "latent_dim": 2}
    sense = feature.make_sense("camera", values, np.zeros(2, int), None, small)
    assert (sense.patch_size, sense.spatial_merge_size) == expected
    _train_one_step(sense)


@pytest.mark.parametrize("patch_size", [1, 3, 7, 9])
def test_odd_patches_are_learned_from(patch_size):
    _train_one_step(ImageSense(size=4 * patch_size, patch_size=patch_size, hidden_size=4, num_blocks=1, latent_dim=2))


def _train_one_step(sense):
    from pan_hf.modeling.codecs_pan import build_codec

    codec = build_codec(sense).train()
    for module in codec.modules():
        if hasattr(module, "reset_pan_parameters"):
            module.reset_pan_parameters(0.02)
    frames = torch.randint(0, 256, (3, *sense.shape), dtype=torch.uint8)
    losses = codec.losses(frames, frames.flip(0), frames[:1], motion=15.0, rarity=9.0)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    codes, latents = codec.encode(frames)
    assert codec.as_output(codec.decode(codes, latents)).shape == frames.shape
    widened = codec.differing(frames, frames.flip(0))
    assert widened.shape == (3, 1, *sense.shape[1:])
