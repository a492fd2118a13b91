"""The configuration says what a checkpoint is; how it was trained is a part of its own."""

import copy

import pytest
from tiny_worlds import SENSES, language_model, world_model

from pan_hf import DiscreteAction, PanConfig, PanModel
from pan_hf.modeling.configuration_pan import LOSS_WEIGHTS, TrainingConfig

FLAT = {"change_weight": 1.5, "crop_tokens": 2, "focus_share": 0.25, "loss_weights": {"reward": 2.0}}


def config(**fields):
    return PanConfig(senses={"camera": SENSES["camera"]}, action=DiscreteAction(3), **fields)


def test_settings_of_training_are_a_part_of_their_own():
    made = config(**FLAT)
    assert made.training == TrainingConfig(**FLAT) == config(training=FLAT).training
    assert made.training.loss_weights == LOSS_WEIGHTS | {"reward": 2.0}
    assert not set(FLAT) & set(made.to_dict()) and made.to_dict()["training"]["crop_tokens"] == 2


def test_a_configuration_comes_back_from_what_it_was_written_as():
    made = config(**FLAT)
    again = PanConfig.from_dict(made.to_dict())
    assert again.training == made.training and again.to_dict() == made.to_dict()
    assert again.to_json_string() == made.to_json_string()
    assert copy.deepcopy(made).training == made.training


def test_a_configuration_of_before_with_its_flat_fields_means_the_same():
    written = config(**FLAT).to_dict()
    before = {name: value for name, value in written.items() if name != "training"} | written["training"]
    assert PanConfig.from_dict(before).to_dict() == written


def test_settings_of_training_are_still_read_and_written_by_themselves():
    made = config()
    made.focus_share = 0.75
    assert made.training.focus_share == made.focus_share == 0.75 and "focus_share" not in vars(made)


def test_a_model_is_made_with_settings_of_training_and_without_unknown_ones():
    assert world_model(("camera",), block_dropout=0.75).config.training.block_dropout == 0.75
    with pytest.raises(ValueError, match="'blok_dropout': perhaps 'block_dropout'"):
        world_model(("camera",), blok_dropout=0.75)
    with pytest.raises(ValueError, match=r"does not have \['wholly_unlike'\]"):
        PanModel.from_backbone(language_model(), {"camera": SENSES["camera"]}, DiscreteAction(3), wholly_unlike=1)


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"chnage_weight": 1.0}, "'chnage_weight': perhaps 'change_weight'"),
        ({"context_step": 2}, "perhaps 'context_steps'"),
        ({"training": {"motion_weigth": 1.0}}, "`training` does not have .*perhaps 'motion_weight'"),
        ({"training": {"focus_share": 2.0}}, "`focus_share` is a share"),
        ({"training": {"crop_tokens": 1}, "level0_sampling": "autoregressive"}, "`crop_tokens` must be 0"),
        ({"training": {"loss_weights": {"cods": 1.0}}}, "unknown names"),
    ],
)
def test_settings_that_nothing_has_are_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        config(**wrong)


def test_names_that_transformers_once_wrote_are_passed_over():
    assert PanConfig.from_dict(config().to_dict() | {"use_bfloat16": False, "pruned_heads": {}}).senses


def test_a_loss_s_old_name_is_read():
    made = PanConfig(training={"loss_weights": {"mended": 0.5}})
    assert made.training.loss_weights == LOSS_WEIGHTS | {"latent_reconstruction": 0.5}
    assert "mended" not in made.to_dict()["training"]["loss_weights"]
