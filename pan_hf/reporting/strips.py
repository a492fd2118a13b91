"""Strips of imagined against real frames for the report, chosen by rank of error and never by eye."""

import json
import re
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from pan_hf.agents.actions import ActionParts
from pan_hf.data.trajectories import map_columns
from pan_hf.features import feature_of
from pan_hf.files import whole_file, write_file
from pan_hf.images import to_rgb
from pan_hf.modeling.effort_pan import Effort

MAPPED_TASKS = ("planning", "pixels")  # of which the report shows what the switch spends


def pick_by_rank(errors: dict[int, float]) -> dict[str, int]:
    """The windows with the median and with the largest error.

    Args:
        errors (`dict[int, float]`): row -> squared error; rows with the same error keep their order.

    Returns:
        `{"median": row, "worst": row}`, or only the worst of a single window.
    """
    ranked = sorted(errors, key=lambda row: (errors[row], row))
    if not ranked:
        return {}
    picked = {"median": ranked[len(ranked) // 2]} if len(ranked) > 1 else {}
    return picked | {"worst": ranked[-1]}


def shown_senses(config) -> list[str]:
    """The senses of a model that strips and films can show, the first one first."""
    return [name for name, sense in config.senses.items() if feature_of(sense).is_shown]


@torch.inference_mode()
def write_strips(
    reader,
    environment: str,
    horizon: int,
    errors: dict[int, float],
    folder: str | Path,
    *,
    temperature: float,
    seed: int,
) -> list[Path]:
    """Simulates the median and the worst window again and writes each as a strip.

    A strip is `<environment>-<rank>.npz` with `real`, `imagined`, `codes_only` (imagined, where latents were used,
    without them) and `spent_<task>` (see `spending_map`), uint8 `(horizon + 1, height, width, 3)`, each beginning with
    the true start frame, and a JSON of the same name: title, environment, actions, horizon, and by task the mean
    `compute` of a step.

    Args:
        reader (`WindowReader`): gives the batches; its model is the one shown.
        horizon (`int`): steps imagined.
        errors (`dict[int, float]`): start row -> mean squared error of the frame at `horizon`.
        folder (`str` or `Path`): made if absent.
        temperature (`float`), seed (`int`): as in the evaluation.

    Returns:
        `list[Path]`: the `.npz` files; empty for a model without a sense that can be shown.
    """
    if not (shown := shown_senses(reader.model.config)):
        return []
    parts, written = ActionParts(reader.model.config), []
    for rank, row in pick_by_rank(errors).items():
        pictures, compute = _imagined(reader, shown[0], row, horizon, temperature, seed)
        actions = [map_columns(reader.trajectories.actions, itemgetter(step)) for step in range(row, row + horizon)]
        about = {
            "title": f"{environment}: {_rank_words(rank, len(errors))} by squared error at step {horizon}",
            "environment": environment,
            "actions": [parts.label(action) for action in actions],
            "horizon": horizon,
            "compute": compute,
        }
        stem = Path(folder) / f"{re.sub(r'[^A-Za-z0-9.]+', '-', environment)}-{rank}"
        written.append(_write(stem, pictures, about))
    return written


def _imagined(reader, shown: str, row: int, horizon: int, temperature: float, seed: int) -> tuple[dict, dict]:
    """Pictures `(horizon + 1, height, width, 3)` of one sense by view, and the mean compute of a step by task."""
    model, feature = reader.model, feature_of(reader.model.config.senses[shown])
    batch = reader.batch(np.array([row]), horizon)
    actions = map_columns(batch["action"], lambda part: part[:, reader.lead :])
    belief = reader.perceive(batch)
    futures = model.simulate(belief, actions, temperature=temperature, seed=seed)
    real = batch["observation"][shown][0, reader.lead :]
    views = {"real": real[1:], "imagined": futures.decode(shown)[0]}
    if shown in futures.state.latents:  # else codes are all there is
        views |= {"codes_only": futures.decode(shown, latents=False)[0]}
    pictures = {name: feature.to_frames(torch.cat([real[:1], view])) for name, view in views.items()}
    compute = {}
    for task in MAPPED_TASKS if hasattr(model, "switch") else ():
        spent = model.simulate(belief, actions, temperature=0.0, seed=seed, effort=Effort(task=task))
        pictures[f"spent_{task}"] = np.concatenate([pictures["real"][:1], to_rgb(spending_map(model, spent, shown))])
        compute[task] = round(float(spent.cost.compute.mean()), 4)
    return pictures, compute


def spending_map(model, futures, shown: str) -> torch.Tensor:
    """Imagined frames of the first row as a map of what was spent where: `(H, 3, height, width)` uint8. Places that
    were not looked at are dark; latents that were drawn show as a lighter place."""
    sense = model.config.senses[shown]
    start, (rows, columns) = model.layout.token_starts[shown], sense.token_grid
    seen = futures.focus[0, :, start : start + sense.num_state_tokens].unflatten(1, (1, rows, columns)).float()
    frames = torch.from_numpy(feature_of(sense).to_frames(futures.decode(shown)[0])).to(seen)
    frames = frames.permute(0, 3, 1, 2)
    seen = torch.nn.functional.interpolate(seen, frames.shape[-2:])
    names = [block.name for block in model.blocks]
    has_latents = f"{shown}.latents" in names
    drawn = futures.switch[0, :, names.index(f"{shown}.latents")] if has_latents else torch.zeros(len(frames))
    light = seen * 0.35 * drawn.float().view(-1, 1, 1, 1)
    lit = frames * (0.25 + 0.75 * seen)
    return (lit + light * (255 - lit)).round().to(torch.uint8)


def _rank_words(rank: str, count: int) -> str:
    return f"the {rank} of {count} windows" if count > 1 else "the only window"


def _write(stem: Path, pictures: dict[str, np.ndarray], about: dict) -> Path:
    path = stem.with_name(stem.name + ".npz")
    with whole_file(path) as temporary, open(temporary, "wb") as file:  # savez adds a suffix to a name, not to a file
        np.savez_compressed(file, **pictures)  # type: ignore[arg-type]  # no sense is called allow_pickle
    write_file(stem.with_name(stem.name + ".json"), json.dumps(about, indent=2) + "\n")
    return path
