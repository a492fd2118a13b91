"""Kinds of senses and actions on the side of the data: one file and one class each, looked up by name."""

# The last kind to be registered is asked first what a space or a value is; a vector takes what nobody else does, so it
# is registered before the others: `discrete` imports it. Symbols come after pictures, which some of them look like.
from pan_hf.features.base import (
    ACTION,
    ActionForm,
    Feature,
    Form,
    View,
    action_column,
    action_parts,
    check_sense_name,
    feature_class,
    feature_of,
    is_reserved,
    kinds,
    register_feature,
    task_of,
)
from pan_hf.features.discrete import DiscreteFeature
from pan_hf.features.image import ImageFeature
from pan_hf.features.symbols import SymbolsFeature
from pan_hf.features.text import TextFeature
from pan_hf.features.vector import VectorFeature

__all__ = [
    "ACTION",
    "ActionForm",
    "DiscreteFeature",
    "Feature",
    "Form",
    "ImageFeature",
    "SymbolsFeature",
    "TextFeature",
    "VectorFeature",
    "View",
    "action_column",
    "action_parts",
    "check_sense_name",
    "feature_class",
    "feature_of",
    "is_reserved",
    "kinds",
    "register_feature",
    "task_of",
]
