"""The networks: everything a checkpoint needs to run. These files travel with it, so they import only one another."""

from .configuration_pan import PanConfig, TrainingConfig
from .discrete_sense_pan import DiscreteSense
from .effort_pan import Effort
from .modeling_pan import PanModel
from .sense_configuration_pan import DiscreteAction, ImageSense, TextAction, TextSense, VectorAction, VectorSense
from .simulation_pan import Futures, LogProb
from .state_pan import Actions, Belief, Observation, State

__all__ = [
    "Actions",
    "Belief",
    "DiscreteAction",
    "DiscreteSense",
    "Effort",
    "Futures",
    "ImageSense",
    "LogProb",
    "Observation",
    "PanConfig",
    "PanModel",
    "State",
    "TextAction",
    "TextSense",
    "TrainingConfig",
    "VectorAction",
    "VectorSense",
]
