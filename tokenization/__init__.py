"""Vocabulary, tokenizer and processor: everything a processor needs. These files travel with it, so they are flat."""

from .processing_pan import PanProcessor
from .tokenization_pan import PanTokenizer
from .vocabulary_pan import Vocabulary

__all__ = ["PanProcessor", "PanTokenizer", "Vocabulary"]
