"""PAN world models as a Transformers extension: turns any open causal language model into a world model.

Importing registers the classes with Transformers' Auto classes and pipelines; it downloads and prints nothing.
"""

from pathlib import Path

# In a checkout the sub-packages are folders of its root (see [tool.setuptools.package-dir]): it runs uninstalled.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").exists():
    __path__.append(str(_ROOT))

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer  # noqa: E402

from pan_hf.custom_kinds import travel_with_checkpoints  # noqa: E402
from pan_hf.deprecated import forward_old_methods, forward_old_modules  # noqa: E402
from pan_hf.modeling import (  # noqa: E402
    Belief,
    DiscreteAction,
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
)
from pan_hf.modeling.configuration_pan import VERSION  # noqa: E402
from pan_hf.pipelines import SimulationPipeline  # noqa: E402
from pan_hf.tokenization import PanProcessor, PanTokenizer  # noqa: E402

AutoConfig.register(PanConfig.model_type, PanConfig)
AutoModel.register(PanConfig, PanModel)
AutoModelForCausalLM.register(PanConfig, PanModel)
AutoProcessor.register(PanConfig, PanProcessor)
AutoTokenizer.register(PanConfig, fast_tokenizer_class=PanTokenizer)

travel_with_checkpoints()
forward_old_modules()
forward_old_methods(PanModel)

__version__ = VERSION

# imported when first asked for, with what they need; commands are in modules of their own
_LAZY = {
    "CEM": "pan_hf.agents.shooting",
    "Critic": "pan_hf.agents.critics",
    "FunctionCritic": "pan_hf.agents.critics",
    "GoalCritic": "pan_hf.agents.critics",
    "GraphSearch": "pan_hf.agents.graph_search",
    "PanAgent": "pan_hf.agents.agent",
    "Plan": "pan_hf.agents.plan",
    "RandomShooting": "pan_hf.agents.shooting",
    "RewardCritic": "pan_hf.agents.critics",
    "RecordTrajectories": "pan_hf.data.wrapper",
    "load_trajectories": "pan_hf.data.trajectories",
}
__all__ = [
    "CEM",
    "Belief",
    "Critic",
    "DiscreteAction",
    "Effort",
    "FunctionCritic",
    "Futures",
    "GoalCritic",
    "GraphSearch",
    "ImageSense",
    "LogProb",
    "PanAgent",
    "PanConfig",
    "PanModel",
    "PanProcessor",
    "PanTokenizer",
    "Plan",
    "RandomShooting",
    "RecordTrajectories",
    "RewardCritic",
    "SimulationPipeline",
    "State",
    "TextAction",
    "TextSense",
    "VectorAction",
    "VectorSense",
    "load_trajectories",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
