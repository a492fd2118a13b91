"""Strips of imagined against real frames for the report, chosen by rank of error and never by eye."""

import json
import os
import re
from pathlib import Path

import numpy as np
import torch

from pan_hf.modeling.effort_pan import Effort
from pan_hf.reporting.results import write_text

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


def action_label(action, sense) -> str:
    """What a person reads for one action: its name if the model's `sense` has names, else its number(s) or words."""
    if isinstance(action, np.ndarray) and action.ndim:
        return "(" + ", ".join(f"{value:.3g}" for value in action.tolist()) + ")"
    names = getattr(sense, "names", None)
    return str(action) if names is None else names[int(action)]


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
        `list[Path]`: the `.npz` files; empty for a model without image senses.
    """
    senses = reader.model.config.senses
    image = next((name for name, sense in senses.items() if sense.kind == "image"), None)
    if image is None:
        return []
    written = []
    for rank, row in pick_by_rank(errors).items():
        batch = reader.batch(np.array([row]), horizon)
        actions = batch["action"][:, reader.lead :]
        belief = reader.perceive(batch)
        futures = reader.model.simulate(belief, actions, temperature=temperature, seed=seed)
        real = batch["observation"][image][0, reader.lead :]
        views = {"real": real[1:], "imagined": futures.decode(image)[0]}
        if image in futures.state.latents:  # else codes are all there is
            views |= {"codes_only": futures.decode(image, latents=False)[0]}
        compute = {}
        for task in MAPPED_TASKS if hasattr(reader.model, "switch") else ():
            spent = reader.model.simulate(belief, actions, temperature=0.0, seed=seed, effort=Effort(task=task))
            views[f"spent_{task}"], compute[task] = spending_map(reader.model, spent, image), spent.cost.compute.mean()
        frames = {name: torch.cat([real[:1], view]) for name, view in views.items()}
        taken = reader.trajectories.actions[row : row + horizon]
        labels = [action_label(action, reader.model.config.action) for action in taken]
        about = {
            "title": f"{environment}: {_rank_words(rank, len(errors))} by squared error at step {horizon}",
            "environment": environment,
            "actions": labels,
            "horizon": horizon,
            "compute": {task: round(float(share), 4) for task, share in compute.items()},
        }
        stem = Path(folder) / f"{re.sub(r'[^A-Za-z0-9.]+', '-', environment)}-{rank}"
        written.append(_write(stem, frames, about))
    return written


def spending_map(model, futures, image: str) -> torch.Tensor:
    """Imagined frames of the first row as a map of what was spent where: `(H, C, height, width)` uint8. Places that
    were not looked at are dark; latents that were drawn show as a lighter place."""
    sense = model.config.senses[image]
    start, (rows, columns) = model.place_starts[image], sense.place_grid
    seen = futures.focus[0, :, start : start + sense.num_places].unflatten(1, (1, rows, columns)).float()
    frames = futures.decode(image)[0].float()
    seen = torch.nn.functional.interpolate(seen, frames.shape[-2:])
    names = [block.name for block in model.blocks]
    has_latents = f"{image}.latents" in names
    drawn = futures.switch[0, :, names.index(f"{image}.latents")] if has_latents else torch.zeros(len(frames))
    light = seen * 0.35 * drawn.float().view(-1, 1, 1, 1)
    lit = frames * (0.25 + 0.75 * seen)
    return (lit + light * (255 - lit)).round().to(torch.uint8)


def _rank_words(rank: str, count: int) -> str:
    return f"the {rank} of {count} windows" if count > 1 else "the only window"


def pictures(frames: torch.Tensor) -> np.ndarray:
    """`(T, channels, H, W)` -> RGB `(T, H, W, 3)`; one channel is repeated, those past three left out."""
    rgb = frames.expand(-1, 3, -1, -1) if frames.shape[1] == 1 else frames[:, :3]
    return rgb.permute(0, 2, 3, 1).cpu().numpy()


def _write(stem: Path, frames: dict[str, torch.Tensor], about: dict) -> Path:
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = stem.with_name(stem.name + ".npz")
    temporary = stem.with_name(f".{stem.name}.{os.getpid()}.tmp.npz")
    try:
        np.savez_compressed(temporary, **{name: pictures(view) for name, view in frames.items()})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    write_text(stem.with_name(stem.name + ".json"), json.dumps(about, indent=2) + "\n")
    return path
