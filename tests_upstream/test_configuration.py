"""The common tests of configurations."""

import unittest

from tests.test_configuration_common import ConfigTester
from tiny_worlds import world_model

from pan_hf import PanConfig


class PanConfigTest(unittest.TestCase):
    def setUp(self):
        self.model_tester = self
        self.config_tester = ConfigTester(self, config_class=PanConfig, adapter_dim=24, context_steps=2)

    def get_config(self):
        return world_model(("camera", "touch")).config

    def test_config(self):
        self.config_tester.run_common_tests()
