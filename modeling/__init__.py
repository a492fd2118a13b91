"""The networks: everything a checkpoint needs to run. These files travel with it, so they import only one another."""

from .configuration_pan import PanConfig
from .effort_pan import Effort
from .modeling_pan import PanModel
from .sense_configuration_pan import DiscreteAction, ImageSense, TextAction, TextSense, VectorAction, VectorSense
from .state_pan import Belief, Futures, LogProb, State

__all__ = [
    "Belief",
    "DiscreteAction",
    "Effort",
    "Futures",
    "ImageSense",
    "LogProb",
    "PanConfig",
    "PanModel",
    "State",
    "TextAction",
    "TextSense",
    "VectorAction",
    "VectorSense",
]
