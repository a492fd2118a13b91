"""Films of episodes: what was imagined at each plan beside what was carried out."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import torch

from pan_hf.agents.actions import ActionParts
from pan_hf.agents.seen import perceive
from pan_hf.evaluation.trials import Trace, Trial
from pan_hf.features import feature_of
from pan_hf.files import write_file
from pan_hf.reporting.strips import shown_senses

_LONGEST_FILM = 100  # steps shown of an episode
_ENDINGS: dict[bool | None, str] = {True: "success", False: "failure", None: "episode"}


def write_films(trial: Trial, model, processor, folder: Path) -> list[Path]:
    """Writes the trial's first success and first failure as films (its first episode, where neither is defined), in
    place of those of an earlier run.

    A film is an `.npz` with `imagined` and `carried_out`, uint8 `(T, H, W, 3)`, and a JSON of the same name: title,
    environment, success, actions. Imagined frames are those of the plan that was in force; both begin with the start.
    """
    shown = shown_senses(model.config)
    if not shown or trial.agent is None or not trial.outcomes:
        return []
    parts, written = ActionParts(model.config), []
    for success, ending in _ENDINGS.items():
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{trial.environment}-{trial.label}-{ending}")
        path = folder / f"{name}.npz"
        if success not in trial.films:
            for stale in (path, path.with_suffix(".json")):
                stale.unlink(missing_ok=True)
            continue
        trace = trial.films[success]
        imagined, carried_out = imagine_episode(model, processor, trace, shown[0])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, imagined=imagined, carried_out=carried_out)
        write_file(path, buffer.getvalue())
        about = {
            "title": f"{trial.environment}: {trial.label.replace('_', ' ')}, first {ending}",
            "environment": trial.environment,
            "success": success,
            "actions": [parts.label(value) for value in trace.actions[: len(carried_out) - 1]],
        }
        write_file(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
        written.append(path)
    return written


@torch.no_grad()
def imagine_episode(model, processor, trace: Trace, sense: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames as imagined at each plan and frames as seen, both uint8 `(T + 1, H, W, 3)`; the first as perceived."""
    steps = min(len(trace.actions), _LONGEST_FILM)
    starts = [start for start in trace.plans if start < steps]
    imagined = []
    for start, end in zip(starts, [*starts[1:], steps], strict=True):
        first = max(0, start + 1 - model.config.context_steps)
        belief = perceive(model, processor, trace.observations[first : start + 1], trace.actions[first:start])
        if start == 0:
            imagined.append(belief.decode(sense))
        actions = ActionParts(model.config).stack(trace.actions[start:end], model.device)
        imagined.append(model.simulate(belief, actions, temperature=0.0, seed=0).decode(sense)[0])
    config = model.config.senses[sense]
    feature = feature_of(config)
    seen = feature.sequence(sense, config, [observation[sense] for observation in trace.observations[: steps + 1]])
    carried_out = processor(observation={sense: seen}, partial=True)["observation"][sense][0]
    return feature.to_frames(torch.cat(imagined)), feature.to_frames(carried_out)
