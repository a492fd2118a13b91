"""The common tests of tokenizers: of words alone, and with the ledger of a vocabulary attached."""

import unittest

from tests.test_tokenization_common import TokenizerTesterMixin
from tests.test_tokenizers_backend_mixin import TokenizersBackendTesterMixin
from tiny_worlds import world_model

from pan_hf import PanTokenizer
from pan_hf.tokenization import Vocabulary

TEXTS = ["The keeper lit the lamp.", "This is a test of words", "Wonderful no inspiration example with subtoken"]


def words():
    """A small tokenizer without a ledger: the tokenizer of a backbone."""
    return PanTokenizer.train(TEXTS * 4, vocab_size=320)


def words_and_codes():
    """The same with a ledger: room for words to come, and the codes of two senses and an action."""
    made = words()
    parts = world_model(("camera", "touch")).config.coded_parts()
    segments = {f"{name}.{ending}": size for name, part in parts.items() for ending, size in part.segments.items()}
    made.attach(Vocabulary.build(len(made), 4096, segments))
    return made


class Saved:
    """Saves a tokenizer where the mixins look for one."""

    tokenizer_class = rust_tokenizer_class = PanTokenizer
    make = staticmethod(words)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.make().save_pretrained(cls.tmpdirname)
        cls.tokenizers_list = [(PanTokenizer, cls.tmpdirname, {})]


class TokenizerTest(Saved, TokenizerTesterMixin, unittest.TestCase):
    test_tokenizer_from_extractor = False


class TokenizerWithCodesTest(TokenizerTest):
    make = staticmethod(words_and_codes)


class TokenizerBackendTest(Saved, TokenizersBackendTesterMixin, unittest.TestCase):
    pass


class TokenizerBackendWithCodesTest(TokenizerBackendTest):
    make = staticmethod(words_and_codes)
