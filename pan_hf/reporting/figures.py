"""Pictures of what a world model imagines: strips, films and curves against the horizon.

Frames stay at their own size and are enlarged by the viewer (`image-rendering: pixelated`), so that one pixel of the
model is one square on the screen and a wrong pixel can be seen.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pan_hf.extras import extra
from pan_hf.files import read_json, write_file
from pan_hf.metrics import EXACT_TOLERANCE
from pan_hf.modeling.effort_pan import TASKS
from pan_hf.reporting.results import Record
from pan_hf.reporting.tables import metric_label, select, unit_of

with extra("report", "A figure"):
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

GAP = 2  # transparent pixels between two frames of a row
_SERIES_NAMES = {"pan": "PAN", "pan_expected": "PAN, expected image", "copy_last": "copy last frame"}
TEACHER_FORCED = "teacher_forced_"  # a metric with this before its name is drawn beside the one without
CURVE_METRICS = (
    "exact_state",
    "psnr_moving",
    "exact_frame",
    "psnr",
    "ssim",
    "rmse_normalised",
    "bits_per_observation",
)
SERIES_COLOURS = {"pan": "#3b82f6", "pan_expected": "#8b5cf6", "copy_last": "#9a8c7c"}
AS_WRITTEN: Any = {"text.parse_math": False}  # a name with a dollar sign is no formula
OTHER_COLOURS = ("#e07b39", "#2f9e6e", "#b45fc4", "#c9a227")


def series_name(model: str) -> str:
    """A model or baseline as a person reads it: "copy_last" is "copy last frame"."""
    return _SERIES_NAMES.get(model, model.replace("_", " "))


# ------------------------------------------------------------------------------------------------------------- strips


@dataclass(frozen=True)
class Strip:
    """What the model imagined beside what happened, step by step.

    Args:
        real, imagined, codes_only (`np.ndarray` of shape `(T, H, W, 3)`, uint8): `codes_only` is what the discrete
            codes alone decode to, or None.
        spent (`dict[str, np.ndarray]`): by label, imagined frames as maps of what was spent on them.
        actions (`list[str]`): T names, one for the step into each frame, or T - 1 if the first frame was observed.
    """

    real: np.ndarray
    imagined: np.ndarray
    codes_only: np.ndarray | None = None
    actions: list[str] = field(default_factory=list)
    title: str = ""
    environment: str = ""
    labels: tuple[str, str] = ("real", "imagined")
    spent: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.real)

    def rows(self) -> list[tuple[str, np.ndarray]]:
        """Label and frames `(T, H, W, 3)` of each row. The difference is white where nothing differs, and left out
        where nothing differs anywhere."""
        rows = [(self.labels[0], self.real), (self.labels[1], self.imagined)]
        if self.codes_only is not None:
            rows.append(("codes only", self.codes_only))
        difference = np.abs(self.real.astype(np.int16) - self.imagined.astype(np.int16)).max(-1, keepdims=True)
        if difference.any():
            rows.append(("difference", (255 - difference).astype(np.uint8).repeat(3, -1)))
        return [*rows, *self.spent.items()]

    @property
    def starts_observed(self) -> bool:
        """Whether the first frame was given to the model and not imagined."""
        return len(self.actions) == len(self) - 1

    def steps(self) -> list[tuple[str, str]]:
        """(number, action into it) of each frame; "0" is the observed frame."""
        names = (["start"] if self.starts_observed else []) + list(self.actions)
        names += [""] * (len(self) - len(names))
        first = 0 if self.starts_observed else 1
        return [(str(first + index), name) for index, name in enumerate(names[: len(self)])]

    def verdicts(self) -> list[str]:
        """Of each imagined frame "exact", by the measure of `pan evaluate`, or else its PSNR; "" of an observed."""
        errors = np.abs(self.real.astype(np.float64) - self.imagined).reshape(len(self), -1)
        verdicts = [
            "exact" if error.max() <= EXACT_TOLERANCE else f"{10 * np.log10(255**2 / (error**2).mean()):.1f} dB"
            for error in errors
        ]
        return [""] + verdicts[1:] if self.starts_observed else verdicts


def load_strip(path: str | os.PathLike) -> Strip:
    """Reads `<name>.npz` (`real`, `imagined`, optional `codes_only` and `spent_<task>`) and its sidecar `<name>.json`.

    Raises:
        ValueError: an array is missing, is not uint8 `(T, H, W, 3)`, or the shapes differ.
    """
    arrays, about = _load(path, ("real", "imagined"), ("codes_only", *(f"spent_{task}" for task in TASKS)))
    if len({len(frames) for frames in arrays.values()}) > 1:
        lengths = {name: len(frames) for name, frames in arrays.items()}
        raise ValueError(f"{path}: the arrays have different lengths {lengths}, expected one.")
    compute = about.pop("compute", {})
    spent = {
        f"{task}: {100 * compute.get(task, float('nan')):.0f}%": arrays.pop(f"spent_{task}")
        for task in TASKS
        if f"spent_{task}" in arrays
    }
    return Strip(**arrays, **_known_fields(Strip, about), spent=spent)


def row_png(frames: np.ndarray) -> bytes:
    """Frames `(T, H, W, 3)` beside one another as a PNG of their own size, transparent gaps between them."""
    opaque = np.full((*frames.shape[:3], 1), 255, np.uint8)
    cells = np.concatenate([frames, opaque], -1)
    cells = np.pad(cells, ((0, 0), (0, 0), (GAP // 2, GAP - GAP // 2), (0, 0)))
    return _image_bytes(Image.fromarray(np.concatenate(list(cells), 1)), "PNG")


# -------------------------------------------------------------------------------------------------------------- films


@dataclass(frozen=True)
class Film:
    """A plan as the model imagined it and as it went when carried out.

    Args:
        imagined, carried_out (`np.ndarray` of shape `(T, H, W, 3)`, uint8): lengths may differ.
    """

    imagined: np.ndarray
    carried_out: np.ndarray
    actions: list[str] = field(default_factory=list)
    title: str = ""
    environment: str = ""
    success: bool | None = None

    def webp(self, frame_ms: int = 350, hold_ms: int = 1500) -> bytes:
        """Both side by side as a lossless, endless animated WebP; the shorter one waits on its last frame."""
        steps = max(len(self.imagined), len(self.carried_out))
        frames = [
            self._frame(min(t, len(self.imagined) - 1), min(t, len(self.carried_out) - 1), (t + 1) / steps)
            for t in range(steps)
        ]
        durations = [frame_ms] * (steps - 1) + [hold_ms]
        return _image_bytes(
            frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, lossless=True
        )

    def _frame(self, left: int, right: int, progress: float) -> Image.Image:
        """One frame of the film: imagined, gap, carried out, and below them a bar of how far the plan is."""
        pair = [self.imagined[left], self.carried_out[right]]
        height, width = pair[0].shape[:2]
        canvas = np.zeros((height + 3, 2 * width + GAP, 4), np.uint8)
        for x, frame in zip((0, width + GAP), pair, strict=True):
            canvas[:height, x : x + width, :3] = frame
            canvas[:height, x : x + width, 3] = 255
        canvas[height + 1 :, : round(progress * canvas.shape[1])] = (59, 130, 246, 255)
        return Image.fromarray(canvas)

    def strip(self) -> Strip:
        """The steps both have, one under the other."""
        steps = min(len(self.imagined), len(self.carried_out))
        actions = self.actions[:steps] if len(self.actions) >= steps else self.actions
        if len(self.actions) == max(len(self.imagined), len(self.carried_out)) - 1:
            actions = self.actions[: steps - 1]  # the first frame was observed
        return Strip(
            self.carried_out[:steps], self.imagined[:steps], actions=actions, labels=("carried out", "imagined")
        )


def load_film(path: str | os.PathLike) -> Film:
    """Reads `<name>.npz` (`imagined`, `carried_out`) and its sidecar `<name>.json`.

    Raises:
        ValueError: an array is missing or is not uint8 `(T, H, W, 3)`, or the frames differ in size.
    """
    arrays, about = _load(path, ("imagined", "carried_out"))
    return Film(**arrays, **_known_fields(Film, about))


def _known_fields(kind: type, about: dict[str, Any]) -> dict[str, Any]:
    """What a sidecar says that a strip or a film has a field for."""
    named = {name: value for name, value in about.items() if name in {field.name for field in fields(kind)}}
    return named | {"actions": list(map(str, about.get("actions", [])))}


def _load(path: str | os.PathLike, needed: Sequence[str], optional: Sequence[str] = ()) -> tuple[dict, dict]:
    """Arrays of an .npz (never pickled ones) with frames of one size, and what its sidecar says."""
    path = Path(path)
    arrays = load_frames(path, (*needed, *optional))
    if missing := set(needed) - set(arrays):
        raise ValueError(f"{path} has no {sorted(missing)}, expected the arrays {list(needed)}.")
    return arrays, {"title": path.stem} | read_json(path.with_suffix(".json"), may_lack=True)


def load_frames(path: Path, wanted: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an .npz (never pickled ones), those `wanted` or all: frames of one size.

    Raises:
        ValueError: the file is damaged, an array is not uint8 `(T, H, W, 3)`, or they differ in size.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in (stored.files if wanted is None else wanted) if name in stored}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no .npz of frames, or damaged: {error}") from error
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or len(array) == 0:
            raise ValueError(f"{path}: `{name}` is {array.dtype} {array.shape}, expected uint8 (T, H, W, 3), T > 0.")
    if len({array.shape[1:] for array in arrays.values()}) > 1:
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ValueError(f"{path}: frames of different sizes {shapes}, expected one (H, W, 3).")
    return arrays


# ------------------------------------------------------------------------------------------------------------- curves


def curves(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(metric, environment) of every curve worth drawing: of the `CURVE_METRICS`, or else of all metrics, those that
    were measured at two horizons or more."""
    horizons: dict[tuple[str, str], set[int]] = {}
    for entry in records:
        if entry.horizon is not None and not entry.metric.startswith((TEACHER_FORCED, "action_sensitivity_")):
            horizons.setdefault((entry.metric, entry.environment), set()).add(entry.horizon)
    drawable = [pair for pair, steps in horizons.items() if len(steps) > 1]
    key = [pair for name in CURVE_METRICS for pair in drawable if pair[0] == name or pair[0].endswith("_" + name)]
    return list(dict.fromkeys(key)) or drawable


@rc_context(AS_WRITTEN)
def horizon_plot(records: Sequence[Record], path: str | os.PathLike) -> Path:
    """Draws the metrics of `curves` (rows) in every environment (columns) against the horizon, one line a model with
    its standard error as a band, and writes it in the format of `path`'s ending (.png, .svg, .pdf).

    Raises:
        ValueError: no metric was measured at two horizons or more.
    """
    pairs = curves(records)
    if not pairs:
        raise ValueError(f"none of {len(records)} records lies on a curve; expected a metric at two horizons or more.")
    metrics = list(dict.fromkeys(metric for metric, _ in pairs))
    environments = list(dict.fromkeys(environment for _, environment in pairs))
    figure = Figure(figsize=(max(5.0, 3.4 * len(environments)), 2.4 * len(metrics)), layout="constrained")
    axes = figure.subplots(len(metrics), len(environments), squeeze=False)
    for row, metric in enumerate(metrics):
        for column, environment in enumerate(environments):
            if (metric, environment) not in pairs:
                axes[row][column].set_axis_off()
                continue
            _draw_curve(axes[row][column], records, metric, environment)
            axes[row][column].set_title(environment, fontsize=9)
    return write_figure(figure, path)


def write_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Writes a drawing with one legend, in the format of `path`'s ending."""
    _legend(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.lstrip(".") or "png", dpi=120)
    return write_file(path, buffer.getvalue())


def curve_svg(records: Sequence[Record], metric: str, environment: str) -> str:
    """One curve of `curves` as an inline SVG."""
    return _svg(f"{metric} {environment}", lambda axes: _draw_curve(axes, records, metric, environment))


def calibration_pairs(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """How frequent each outcome is in truth and among the model's futures, from the same states: of equal seeds."""
    outcomes = [entry for entry in records if entry.metric.startswith("outcome:")]
    true = {(entry.metric, *entry.seeds): entry for entry in select(outcomes, model="simulator")}
    ours = [(entry, (entry.metric, *entry.seeds)) for entry in select(outcomes, model="pan")]
    return [(true[which], entry) for entry, which in ours if which in true]


def calibration_svg(records: Sequence[Record], environment: str) -> str:
    """How frequent each outcome is among the model's futures against how frequent it truly is, as an inline SVG.

    Args:
        records: metrics "outcome:<name>" of models "pan" and "simulator"; bars are three standard errors.
    """
    pairs = calibration_pairs([entry for entry in records if entry.environment == environment])
    labels = "true frequency of an outcome (%)", "among imagined futures (%)"
    return _diagonal_svg(f"calibration {environment}", pairs, labels)


def reliability_pairs(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """What was said, on average, and how often it came true, of each bin of predicted probabilities."""
    told = [entry for entry in records if "reliability:" in entry.metric]
    came = {entry.metric: entry for entry in select(told, model="pan")}
    return [(said, came[said.metric]) for said in select(told, model="predicted") if said.metric in came]


def reliability_svg(records: Sequence[Record], environment: str) -> str:
    """How often predicted states came against the probability that the model had given them, as an inline SVG.

    Args:
        records: metrics "reliability:<from>-<to>%" of models "predicted" and "pan"; bars are three standard errors.
    """
    pairs = reliability_pairs([entry for entry in records if entry.environment == environment])
    labels = "probability given to the predicted state (%)", "it came (%)"
    return _diagonal_svg(f"reliability {environment}", pairs, labels)


def _diagonal_svg(name: str, pairs: Sequence[tuple[Record, Record]], labels: tuple[str, str]) -> str:
    """A point for each pair of shares, on the diagonal where both are the same, with bars of three standard errors."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=SERIES_COLOURS["copy_last"], linewidth=1)
        x, y = (np.array([100 * pair[side].value for pair in pairs]) for side in (0, 1))
        dx, dy = (np.array([300 * (pair[side].stderr or 0.0) for pair in pairs]) for side in (0, 1))
        axes.errorbar(x, y, dy, dx, "o", color=SERIES_COLOURS["pan"], markersize=3.5, elinewidth=1)
        axes.set(xlim=(-2, 104), ylim=(-2, 104))
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.spines[["top", "right"]].set_visible(False)

    return _svg(name, draw)


def _svg(name: str, draw: Callable[[Axes], None]) -> str:
    """A drawing as inline SVG whose text and axes take the colour of the page, light or dark; `name` is its own."""
    ink = "#010203"  # replaced below; no series has it
    style: Any = AS_WRITTEN | {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # ids stay apart within a page, and equal from run to run
        "font.family": "sans-serif",
        **{name: ink for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")},
    }
    with rc_context(style):
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        _legend(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(ink, "currentColor")


def _draw_curve(axes: Axes, records: Sequence[Record], metric: str, environment: str) -> None:
    """Lines of one metric in one environment, one for each model; dashed where every true frame was shown."""
    unit, factor, _ = unit_of(metric)
    ticks: set[int] = set()
    spare = iter(OTHER_COLOURS * 4)
    colours: dict[str, str] = {}
    for prefix, style in (("", "o-"), (TEACHER_FORCED, "o--")):
        drawn = select(records, metric=prefix + metric, environment=environment)
        drawn = [entry for entry in drawn if entry.horizon is not None and np.isfinite(entry.value)]
        splits = dict.fromkeys(entry.split for entry in drawn)
        for model, split in dict.fromkeys((entry.model, entry.split) for entry in drawn):
            line = sorted(select(drawn, model=model, split=split), key=lambda entry: entry.horizon or 0)
            label = "_" * bool(prefix) + series_name(model) + (f" ({split})" if len(splits) > 1 else "")
            name = model if split == next(iter(splits)) else f"{model} {split}"
            colour = colours.setdefault(name, SERIES_COLOURS.get(name) or next(spare))
            steps = [entry.horizon or 0 for entry in line]
            values = np.array([entry.value for entry in line]) * factor
            spread = np.array([entry.stderr or 0.0 for entry in line]) * factor
            axes.plot(steps, values, style, color=colour, label=label, markersize=3.5, linewidth=1.6)
            axes.fill_between(steps, values - spread, values + spread, color=colour, alpha=0.2, linewidth=0)
            ticks.update(steps)
    if unit == "%":
        axes.set_ylim(min(0, axes.get_ylim()[0]), 104)  # shares: all of it, and a line at 100 is not cut
    axes.set_xticks(sorted(ticks))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("steps ahead")
    axes.set_ylabel(metric_label(metric) + (f" ({unit.strip()})" if unit else ""))
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure) -> None:
    """One legend below all axes; a dashed line has the colour of the solid one and no entry of its own."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        entries |= {text: line for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    if not entries:
        return
    dashed = any(line.get_linestyle() == "--" for axes in figure.axes for line in axes.lines)
    title = "dashed: one step ahead, true frames shown" if dashed else None
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "title_fontsize": 8, "ncols": 2}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", title=title, **style)


def _image_bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
