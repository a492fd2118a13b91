"""PAN world models as a Transformers extension: turns any open causal language model into a world model.

Importing registers the classes with Transformers' Auto classes and pipelines; it downloads and prints nothing.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

# In a checkout the sub-packages are folders of its root (see [tool.setuptools.package-dir]): it runs uninstalled.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").exists():
    __path__.append(str(_ROOT))

from pan_hf.deprecated import forward_old_modules  # noqa: E402

forward_old_modules()

# `pan --help` would take seconds with torch, so the command line registers when a command runs. `orig_argv` tells: the
# processes that a command starts do not inherit it, and need the classes from the start.
_STARTED_AS = [*sys.orig_argv[1:3], ""]
_IS_COMMAND_LINE = _STARTED_AS[:2] == ["-m", "pan_hf"] or Path(_STARTED_AS[0]).name in ("pan", "pan.exe")
if TYPE_CHECKING or not _IS_COMMAND_LINE:
    from pan_hf.registration import *  # noqa: F403
    from pan_hf.registration import __version__ as __version__

# imported when first asked for, with what they need; commands are in modules of their own
_LAZY = {
    "BeamSearch": "pan_hf.agents.beam_search",
    "CEM": "pan_hf.agents.shooting",
    "Critic": "pan_hf.agents.critics",
    "FunctionCritic": "pan_hf.agents.critics",
    "GoalCritic": "pan_hf.agents.critics",
    "GraphSearch": "pan_hf.agents.graph_search",
    "ICEM": "pan_hf.agents.icem",
    "MCTS": "pan_hf.agents.mcts",
    "MPPI": "pan_hf.agents.mppi",
    "PanAgent": "pan_hf.agents.agent",
    "Plan": "pan_hf.agents.plan",
    "RandomShooting": "pan_hf.agents.shooting",
    "ReasonersConfig": "pan_hf.agents.reasoners",
    "ReasonersSearch": "pan_hf.agents.reasoners",
    "ReasonersWorld": "pan_hf.agents.reasoners",
    "RewardCritic": "pan_hf.agents.critics",
    "RecordTrajectories": "pan_hf.data.wrapper",
    "SimulationCache": "pan_hf.agents.cache",
    "Strategy": "pan_hf.agents.strategy",
    "StrategySearch": "pan_hf.agents.strategy_search",
    "load_trajectories": "pan_hf.data.trajectories",
}
__all__ = [  # noqa: F405  # star imports
    "BeamSearch",
    "CEM",
    "Belief",
    "Critic",
    "DiscreteAction",
    "DiscreteSense",
    "Effort",
    "FunctionCritic",
    "Futures",
    "GoalCritic",
    "GraphSearch",
    "ICEM",
    "ImageSense",
    "LogProb",
    "MCTS",
    "MPPI",
    "PanAgent",
    "PanConfig",
    "PanModel",
    "PanProcessor",
    "PanTokenizer",
    "Plan",
    "RandomShooting",
    "ReasonersConfig",
    "ReasonersSearch",
    "ReasonersWorld",
    "RecordTrajectories",
    "RewardCritic",
    "SimulationCache",
    "SimulationPipeline",
    "State",
    "Strategy",
    "StrategySearch",
    "TextAction",
    "TextSense",
    "VectorAction",
    "VectorSense",
    "load_trajectories",
]


def __getattr__(name: str):
    if name not in (*__all__, "__version__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY.get(name, "pan_hf.registration")), name)
