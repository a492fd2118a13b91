"""The common tests of processors."""

import unittest

from tests.test_processing_common import ProcessorTesterMixin
from tiny_worlds import world_model

from pan_hf import PanProcessor, PanTokenizer

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


class PanProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = PanProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return PanTokenizer.train(["the lamp of the keeper", "the fog came in"], vocab_size=300)

    @staticmethod
    def prepare_processor_dict():
        config = world_model(("camera", "touch")).config
        senses = {name: sense.to_dict() for name, sense in config.senses.items()}
        return {"senses": senses, "action": config.action.to_dict(), "chat_template": TEMPLATE}
