"""Old names of modules and methods, for one release: `from pan_hf.record import record` still works, and warns.

Modules were sorted into packages in 0.2. Users' scripts, and recordings that name a policy as
`pan_hf.policies:minigrid_expert`, may still ask for the old names. Nothing of ours does.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# old module -> where its public names are now; the first one that has a name gives it
MOVED: dict[str, tuple[str, ...]] = {
    "adapter_configs": ("adapters",),
    "agent": ("agents.agent",),
    "at_effort": ("agents.world",),
    "build": ("checkpoints", "files"),
    "card": ("publishing.card",),
    "critics": ("agents.critics",),
    "data_card": ("publishing.data_card",),
    "environments": ("envs.environment", "specs"),
    "evaluate": ("evaluation.evaluate", "checkpoints"),
    "figures": ("reporting.figures",),
    "finetune": ("training.finetune",),
    "fit": ("data.compat",),
    "four_rooms": ("envs.minigrid_rooms",),
    "frame_store": ("data.frame_store",),
    "grow": ("training.grow", "training.merge"),
    "importing": ("data.importing",),
    "judge": ("evaluation.comparison",),
    "metrics": ("metrics",),
    "mirror": ("data.mirror",),
    "pictures": ("images",),
    "plan": ("evaluation.control", "evaluation.trials", "evaluation.films", "agents.registry", "agents.world"),
    "planning": (
        "agents.shooting",
        "agents.graph_search",
        "agents.plan",
        "agents.world",
        "agents.critics",
    ),
    "policies": ("envs.policies", "envs.minigrid", "envs.pusht", "specs"),
    "push": ("publishing.push",),
    "record": ("data.record",),
    "record_wrapper": ("data.wrapper",),
    "recorder": ("data.recorder",),
    "recording_info": ("data.info",),
    "report": ("reporting.report",),
    "results": ("reporting.results", "reporting.tables", "reporting.timing", "files"),
    "scattered": ("envs.minigrid_rooms",),
    "spaces": ("envs.spaces", "features"),
    "strips": ("reporting.strips",),
    "tracking": ("reporting.tracking",),
    "train": ("training.pipeline", "training.run_folder"),
    "trajectories": ("data.trajectories", "data.episodes", "files", "images"),
    "whole_recording": ("data.whole",),
    "windows": ("data.windows",),
}

RENAMED = {"AtEffort": "FixedEffort", "Judge": "Comparison", "Refuted": "Contradicted", "Tally": "MetricAccumulator"}
RENAMED |= dict.fromkeys(("write_text", "write_bytes", "write_whole"), "write_file")
METHODS = {"write_sentences": "to_token_ids", "read_sentences": "from_token_ids"}  # of PanModel


# modules that the package has no longer, and where their content is
REMOVED = dict.fromkeys(
    ("evaluation.calibration", "envs.minigrid_oracle", "futures_check", "tile_world"),
    "benchmarks/moving_obstacles.py of the repository",
)
REMOVED |= dict.fromkeys(("reporting.readme", "readme"), "docs/measured.py of the repository")


def old_names(module_name: str) -> Callable[[str], Any]:
    """`__getattr__` of an old module, or of one that has lost names: looks them up where they are now."""
    places = MOVED[module_name.removeprefix("pan_hf.")]

    def look_up(name: str) -> Any:
        name = RENAMED.get(name, name)
        for place in () if name.startswith("__") else places:
            module = sys.modules.get(f"pan_hf.{place}") or importlib.import_module(f"pan_hf.{place}")
            if name in vars(module):
                return vars(module)[name]
        raise AttributeError(f"module {module_name!r} has no attribute {name!r}")

    return look_up


class _OldModules(MetaPathFinder, Loader):
    """Finds what no file is named after any more."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, old = name.rpartition(".")
        if (removed := name.removeprefix("pan_hf.")) in REMOVED and name != removed:
            raise ModuleNotFoundError(f"{name} is {REMOVED[removed]} now, and no part of the package.", name=name)
        return ModuleSpec(name, self) if package == "pan_hf" and old in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = old_names(spec.name)  # type: ignore[method-assign]  # a module's own, PEP 562
        return module

    def exec_module(self, module: ModuleType) -> None:
        now = MOVED[module.__name__.removeprefix("pan_hf.")][0]
        warnings.warn(
            f"{module.__name__} is pan_hf.{now} now; this name goes in 0.3.", DeprecationWarning, stacklevel=2
        )


def forward_old_modules() -> None:
    """Lets old module names be imported; those that are still files are found first."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.append(_OldModules())


def forward_old_methods(kind: type) -> None:
    """Gives [`PanModel`] its methods under their old names, too."""
    for old, new in METHODS.items():
        setattr(kind, old, _old_method(kind, old, new))


def _old_method(kind: type, old: str, new: str) -> Callable:
    def forward(self, *args, **kwargs):
        said = f"{kind.__name__}.{old} is {kind.__name__}.{new} now; {old} goes in 0.3."
        warnings.warn(said, DeprecationWarning, stacklevel=2)
        return getattr(self, new)(*args, **kwargs)

    return forward
