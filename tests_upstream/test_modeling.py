"""The common tests of models: of a world model, and of a model without senses, which is its backbone."""

import copy
import unittest

from tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from tests.test_training_mixin import TrainingTesterMixin
from tiny_worlds import BACKBONES, WORDS, language_model, world_model
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pan_hf import PanConfig, PanModel

# the mixins know by this which labels a model takes
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["pan"] = PanModel.__name__


class Tiny:
    """What the mixins ask of a tiny model: its configuration and what goes in."""

    batch_size, seq_length, is_training = 4, 7, True
    num_hidden_layers = BACKBONES["qwen3"]["num_hidden_layers"]
    num_attention_heads = BACKBONES["qwen3"]["num_attention_heads"]
    hidden_size = BACKBONES["qwen3"]["hidden_size"]
    vocab_size = WORDS
    causal_lm_class = PanModel

    def __init__(self, parent, model):
        self.parent, self._config = parent, model.config.to_dict()

    def get_config(self):
        return PanConfig(**copy.deepcopy(self._config))

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.seq_length)
        inputs = {"input_ids": ids_tensor(shape, WORDS), "attention_mask": random_attention_mask(shape)}
        return self.get_config(), inputs


class ModelTests(ModelTesterMixin, TrainingTesterMixin):
    all_model_classes = (PanModel,)
    test_can_init_all_missing_weights_before_2023 = True  # our files carry no year
    _is_composite = True


class LanguageModelTest(ModelTests, unittest.TestCase):
    """Without senses."""

    def setUp(self):
        self.model_tester = Tiny(self, PanModel.from_backbone(language_model()))


class WorldModelTest(ModelTests, unittest.TestCase):
    """With an image, a vector and texts. Its losses are those of objectives; words alone reach the backbone alone."""

    test_all_params_have_gradient = False

    def setUp(self):
        self.model_tester = Tiny(self, world_model(("camera", "touch", "mission", "heard")))
