"""The public classes, and what importing `pan_hf` does: Transformers' Auto classes and pipelines know them.

It downloads and prints nothing.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from pan_hf.custom_kinds import travel_with_checkpoints
from pan_hf.deprecated import forward_old_methods
from pan_hf.files import finish_writing, whole_folder
from pan_hf.modeling import (
    Belief,
    DiscreteAction,
    DiscreteSense,
    Effort,
    Futures,
    ImageSense,
    LogProb,
    PanConfig,
    PanModel,
    State,
    TextAction,
    TextSense,
    VectorAction,
    VectorSense,
    loading_pan,
)
from pan_hf.modeling.configuration_pan import VERSION
from pan_hf.pipelines import SimulationPipeline
from pan_hf.tokenization import PanProcessor, PanTokenizer, processing_pan

__version__ = VERSION
__all__ = [
    "Belief",
    "DiscreteAction",
    "DiscreteSense",
    "Effort",
    "Futures",
    "ImageSense",
    "LogProb",
    "PanConfig",
    "PanModel",
    "PanProcessor",
    "PanTokenizer",
    "SimulationPipeline",
    "State",
    "TextAction",
    "TextSense",
    "VectorAction",
    "VectorSense",
    "__version__",
]

AutoConfig.register(PanConfig.model_type, PanConfig)
AutoModel.register(PanConfig, PanModel)
AutoModelForCausalLM.register(PanConfig, PanModel)
AutoProcessor.register(PanConfig, PanProcessor)
AutoTokenizer.register(PanConfig, fast_tokenizer_class=PanTokenizer)

travel_with_checkpoints()
loading_pan.WHOLE_FOLDER = processing_pan.WHOLE_FOLDER = whole_folder
loading_pan.FINISH_WRITING = processing_pan.FINISH_WRITING = finish_writing
forward_old_methods(PanModel)
