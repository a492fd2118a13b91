"""How far the imagined world is from the real one, on episodes that no stage of training has seen.

From each of many *windows* (a start row and the true actions after it) the model predicts in two ways.
*Autoregressive*, metrics without prefix: it sees what led to the start and imagines on its own predictions; a metric
at horizon h is about the state h steps after the start. *Teacher-forced*, prefix `teacher_forced_`: it sees every true
frame and predicts one step; a metric at horizon h is about the same state, predicted from the true one before it.
Beside each stands `copy_last`: nothing changes from the last frame seen, no reward and no end, defined the same way.
`pan_expected` is the expected image of each autoregressive step (see `PanModel.simulate`) in place of the most likely.

| metric | what it is, over windows |
|---|---|
| `psnr`, `ssim` | whole frames; PSNR of the mean squared error, at most 58.9 dB |
| `psnr_inexact` | the same of the frames that are not exact |
| `psnr_moving` | the same over the patches that changed since the last frame seen, pixels pooled over windows |
| `exact_frame` | share of frames in which no pixel is off by more than 25 of 255 |
| `exact_state`, `exact_state_changed` | share in which every code of every sense is that of the true frame; the same \
where the observation changed since the last frame seen |
| `exact_state_after:<action>` | one step, discrete actions: `exact_state` after each of them |
| `exact_coarse_state` | share in which the coarsest codes of every sense, and texts, are those of the true frame |
| `code_accuracy`, `<sense>.<level>_code_accuracy` | share of right codes, of all levels and of one |
| `rmse`, `rmse_normalised` | vector senses, in their unit and in standard deviations of the held-out frames |
| `exact_observation`, `value_accuracy`, `value_accuracy_changed` | symbols: share of observations that are right \
whole, of values that are, and of values that changed since the last frame seen |
| `token_accuracy` | text senses that change with time |
| `reward_mae`, `reward_f1`, `done_f1` | the step's reward and end; an event is a reward beyond the threshold, and \
there is no F1 where every step is one |
| `entropy`, `entropy_auroc` | nats in all that was predicted up to the step, and whether they tell wrong states: \
the share of pairs of a wrong and a right one in which the wrong one has more |
| `reliability:<from>-<to>%`, `calibration_error` | one step from a true state: of next states that were given such a \
probability (model "predicted" has its mean), the share that came; and how far the two are apart on average |
| `<actor>_reward_mae` | the reward of each actor, where there are several; `reward_mae` is of their sum |
| `bits_per_observation`, `codes_bits`, `latents_bits`, `observation_bits` | minus log2-probability of the true \
observation and its parts (a bound for latents and decoder) |
| `action_sensitivity_exact_state`, `action_sensitivity_psnr_moving` | one step: with the true actions, minus with \
actions of other windows |
| `reconstruction_psnr`, `reconstruction_exact_frame` | true frames through all codes and back, no latents; with \
`levels_<k>_` before it: through the first k levels; with `latents_`: latents too |

Where a model has several senses of one kind, their names are put before the metric (`left_psnr`). Where a sense is
absent in a true frame, it counts for nothing. Standard errors are cluster bootstraps over episodes, see
[`MetricAccumulator`]. A metric with nothing to measure (no reward in any window) has no record.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pan_hf import metrics
from pan_hf.agents.actions import ActionParts
from pan_hf.agents.cautious import uncertainty_of
from pan_hf.agents.world import FixedEffort, at_effort
from pan_hf.arguments import a_seed, checked
from pan_hf.checkpoints import (
    find_checkpoint,
    find_recording,
    load,
    results_folder,
    trained_fingerprints,
    trained_seeds,
)
from pan_hf.console import track
from pan_hf.data.trajectories import Trajectories, load_trajectories
from pan_hf.data.windows import WindowReader, check_held_out, choose_windows
from pan_hf.evaluation.comparison import Comparison, Step
from pan_hf.features import feature_of
from pan_hf.metrics import MetricAccumulator
from pan_hf.modeling import PanModel
from pan_hf.modeling.state_pan import Actions, as_action
from pan_hf.modeling.validation_pan import PRESENT, real, strings, whole
from pan_hf.reporting.figures import curves, horizon_plot
from pan_hf.reporting.results import Record, mean_stderr, read_records, record, write_records
from pan_hf.reporting.strips import shown_senses, write_strips

HORIZONS = (1, 5, 10, 20)
PLOTTED = ("psnr", "psnr_moving", "exact_frame", "exact_state", "rmse_normalised", "value_accuracy", "token_accuracy")
UNPLOTTED = ("teacher_forced_", "action_sensitivity_")
REWARD_THRESHOLD = 0.05
"""A reward counts as an event when it is larger than this in size."""

Where = tuple[str, np.ndarray, int | None]
"""Environment, rows and horizon that measures belong to."""


class _Evaluation:
    """One pass over the windows of all environments; fills a tally for each environment, model and horizon."""

    def __init__(
        self, reader: WindowReader, seed: int, temperature: float, reward_threshold: float, reencode: int = 0
    ):
        self.reader, self.model, self.trajectories = reader, reader.model, reader.trajectories
        self.compare = Comparison(dict(self.model.config.senses), self._references(), reward_threshold)
        self.actors: list[str] = list(getattr(self.model.config, "actors", None) or ())
        self.seed, self.temperature, self.reencode = seed, temperature, reencode
        self.tallies: dict[tuple[str, str, int | None], MetricAccumulator] = defaultdict(
            lambda: MetricAccumulator(seed=seed)
        )
        self.errors: dict[str, dict[int, float]] = defaultdict(dict)

    def _references(self) -> dict[str, Any]:
        """By sense that changes with time, what its metrics need of the model, the recording and the words."""
        pad = getattr(getattr(self.reader.processor, "tokenizer", None), "pad_token_id", None) or 0
        senses = {name: sense for name, sense in self.model.config.senses.items() if self.reader.changes(name)}
        return {
            name: feature_of(sense).reference(sense, self.trajectories.observations[name], pad)
            for name, sense in senses.items()
        }

    def batch(self, environment: str, rows: np.ndarray, wanted: dict[int, np.ndarray]) -> None:
        """Measures windows from `rows`; `wanted` says for each horizon which of them (boolean) count."""
        batch = self.reader.batch(rows, max(wanted))
        actions = as_action(batch["action"])[:, self.reader.lead :]
        true = self._true_steps(rows, batch, wanted)
        belief = self.reader.perceive(batch)
        futures = self._simulate(belief, actions, wanted)
        imagined = self._steps(futures, wanted)
        for horizon, chosen in wanted.items():
            kept = torch.as_tensor(chosen, device=self.model.device)
            where: Where = (environment, rows[chosen], horizon)
            measures = self._compare(kept, imagined[horizon], true[horizon], true[0])
            self._add_all(where, measures)
            if futures.expected:
                index, facts = sorted(wanted).index(horizon), (true[horizon].where(kept), true[0].where(kept))
                images = {name: values[kept, index] for name, values in futures.expected.items()}
                self._add(*where, "pan_expected", self.compare.observed(images, *facts))
            self._add(*where, "pan", self._foretelling(futures, horizon, kept, imagined, true))
            seen, one_step, predicted = belief, futures, imagined[horizon]
            if horizon == 1:  # the first step is the same in both ways
                self._reconstruction(where, kept, batch)
                self._sensitivity(where, kept, belief, actions, imagined[1], true)
                self._by_action(where, kept, actions, imagined[1], true)
            else:
                seen = self.reader.perceive(batch, horizon - 1)
                one_step = self._simulate(seen, actions[:, horizon - 1 : horizon])
                predicted = self._steps(one_step, [1])[1]
                measures = self._compare(kept, predicted, true[horizon], true[horizon - 1])
            self._add_all(where, measures, "teacher_forced_")
            self._add(*where, "pan", self._bits(seen, batch, horizon, kept))
            self._add_reliability(where, kept, one_step, predicted, true[horizon])
        self._rank(environment, rows, imagined[max(wanted)], true[max(wanted)])

    def _simulate(self, belief, actions: Tensor | Actions, expected: Collection[int] = ()):
        """Futures. With horizons at which more is `expected` of them than their states: their entropy, of a whole
        step, and the expected images there where the most likely future is asked for."""
        settings: dict = {"temperature": self.temperature, "seed": self.seed}
        if self.reencode:
            settings["reencode"] = self.reencode
        if expected and isinstance(self.model, PanModel):
            settings["uncertainty"] = True
        if self.temperature == 0 and not isinstance(self.model, FixedEffort):
            settings["expected"] = [horizon - 1 for horizon in expected]
        return self.model.simulate(belief, actions, **settings)

    def _foretelling(self, futures, horizon: int, kept: Tensor, imagined, true) -> dict[str, tuple[str, Tensor]]:
        """Whether the entropy of all steps up to a horizon tells the windows in which the state there is wrong."""
        if not futures.entropy:
            return {}
        nats = uncertainty_of(futures)[:, :horizon].sum(1)
        exact = self.compare.exact(imagined[horizon].where(kept), true[horizon].where(kept))
        return {"entropy_auroc": metrics.auroc(nats[kept], ~exact), "entropy": metrics.mean_of(nats[kept])}

    def _add_reliability(self, where: Where, kept: Tensor, one_step, predicted: Step, true: Step) -> None:
        """Whether predicted states came as often as was said of them; where all of a state was predicted."""
        if not isinstance(self.model, PanModel):
            return
        came_true = self.compare.exact(predicted.where(kept), true.where(kept))
        environment, rows, _ = where
        for model, measures in metrics.reliability(one_step.log_prob[kept, 0].exp(), came_true).items():
            self._add(environment, rows, None, model, measures)

    def _one_step(self, belief, actions: Tensor | Actions) -> Step:
        """What is predicted after the actions `(n, 1, ...)`."""
        return self._steps(self._simulate(belief, actions), [1])[1]

    def _compare(self, kept: Tensor, predicted: Step, true: Step, last_seen: Step) -> dict[str, dict]:
        """Measures of the `kept` windows, by model."""
        predicted, true, last_seen = (step.where(kept) for step in (predicted, true, last_seen))
        claims = {"pan": predicted, "copy_last": last_seen.unrewarded()}
        return {model: self.compare(claim, true, last_seen) for model, claim in claims.items()}

    def _add_all(self, where: Where, measures: dict[str, dict], prefix: str = "") -> None:
        for model, measured in measures.items():
            self._add(*where, model, measured, prefix)

    def _add(self, environment: str, rows: np.ndarray, horizon: int | None, model: str, measures, prefix: str = ""):
        episodes = self.trajectories.episode[rows]
        for name in (environment, "all"):
            self.tallies[name, model, horizon].update(measures, episodes, prefix)

    def _frames(self, batch: Mapping, times: Sequence[int]) -> dict[str, Tensor]:
        """The true observations at steps after the start, of the senses that change with time, and in which of them a
        sense is there that may be absent."""
        shown = self.reader.part(batch["observation"], [self.reader.lead + time for time in times])
        return {name: values for name, values in shown.items() if name.removesuffix(PRESENT) in self.compare.predicted}

    def _true_steps(self, rows: np.ndarray, batch: Mapping, wanted) -> dict[int, Step]:
        times = sorted({0, *wanted, *(horizon - 1 for horizon in wanted)})
        shown = self._frames(batch, times)
        codes = self.model.encode(shown).codes
        steps = {}
        for index, time in enumerate(times):
            reward, done = self.reader.outcome(rows, max(time, 1))
            seen = {name: values[:, index] for name, values in shown.items()}
            steps[time] = Step(
                {name: seen[name] for name in self.compare.predicted},
                {name: [level[:, index] for level in levels] for name, levels in codes.items()},
                reward,
                done,
                self._actor_rewards(rows, max(time, 1)),
                {name: seen[name + PRESENT] for name in self.compare.predicted if name + PRESENT in seen},
            )
        return steps

    def _actor_rewards(self, rows: np.ndarray, step: int) -> dict[str, Tensor]:
        """By actor, the reward of the `step`-th action after `rows`."""
        rewards = {actor: self.trajectories.actor_rewards[actor][rows + step - 1] for actor in self.actors}
        return {actor: torch.as_tensor(each, device=self.model.device) for actor, each in rewards.items()}

    def _steps(self, futures, horizons: Iterable[int]) -> dict[int, Step]:
        """The futures at the horizons; only these are decoded."""
        horizons = list(horizons)
        times = [horizon - 1 for horizon in horizons]
        chosen = replace(
            futures,
            state=futures.state.map(lambda codes: codes[:, times]),
            conditions={name: condition[:, times] for name, condition in futures.conditions.items()},
        )
        decoded = {name: chosen.decode(name) for name in self.compare.predicted}
        rewards = futures.reward.float()
        by_actor = {actor: rewards[..., number] for number, actor in enumerate(self.actors)}
        rewards = rewards.sum(-1) if self.actors else rewards
        return {
            horizon: Step(
                {name: values[:, index] for name, values in decoded.items()},
                {name: [level[:, index] for level in levels] for name, levels in chosen.codes.items()},
                rewards[:, horizon - 1],
                futures.continue_prob[:, horizon - 1] < 0.5,
                {actor: reward[:, horizon - 1] for actor, reward in by_actor.items()},
            )
            for index, horizon in enumerate(horizons)
        }

    def _bits(self, belief, batch: Mapping, horizon: int, kept: Tensor) -> dict[str, tuple[str, Tensor]]:
        """Bits of the frame at `horizon`, given the true ones before it."""
        taken = self.reader.lead + horizon - 1
        future = self._frames(batch, [horizon])
        action = as_action(batch["action"])[:, taken : taken + 1]
        log_prob = self.model.log_prob(belief, action, observations=future)
        bits = {f"{part}_bits": -getattr(log_prob, part) / math.log(2) for part in ("codes", "latents", "observation")}
        bits["bits_per_observation"] = log_prob.bits_per_observation
        return {name: metrics.mean_of(values[:, 0][kept]) for name, values in bits.items()}

    def _sensitivity(self, where: Where, kept: Tensor, belief, actions, predicted: Step, true) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        others = torch.randperm(len(actions), generator=generator).to(actions.device)
        shuffled = self._one_step(belief, actions[others, :1])
        cases = [step.where(kept) for step in (predicted, shuffled)]
        target, start = true[1].where(kept), true[0].where(kept)
        for model, pair in {"pan": cases, "copy_last": [start, start]}.items():
            exact = [metrics.mean_of(self.compare.exact(case, target))[1] for case in pair]
            measures = {"action_sensitivity_exact_state": metrics.gain("mean", *exact)}
            moving = [self.compare.moving_error(case, target, start) for case in pair]
            if len(errors := [error for error in moving if error is not None]) == len(moving):
                measures["action_sensitivity_psnr_moving"] = metrics.gain("psnr", *errors)
            self._add(*where, model, measures)

    def _by_action(self, where: Where, kept: Tensor, actions, predicted: Step, true) -> None:
        """Exact states of the first step, by which of the discrete actions was taken; of several parts, by part."""
        target = true[1].where(kept)
        exact = {
            model: self.compare.exact(claim.where(kept), target)
            for model, claim in {"pan": predicted, "copy_last": true[0]}.items()
        }
        parts = ActionParts(self.model.config)
        for name, values in parts.split(actions).items():
            described, taken = feature_of(parts.parts[name]), values[kept, 0]
            before = "" if len(parts.parts) == 1 else f"{name}."
            for number in range(described.description["n"] if described.is_discrete else 0):
                metric = f"exact_state_after:{before}{described.label(number)}"
                for model, flags in exact.items():
                    self._add(*where, model, {metric: metrics.mean_where(flags, taken == number)})

    def _reconstruction(self, where: Where, kept: Tensor, batch: Mapping) -> None:
        """Frames through the codes and back; `where` and `kept` as in the other measures, without a horizon."""
        environment, rows, _ = where
        shown = {name: values[kept] for name, values in self._frames(batch, [1]).items()}
        state = self.model.encode(shown)
        for name, levels in state.codes.items():
            variants: dict[str, dict] = {
                f"levels_{k}_": {"num_levels": k, "latents": False} for k in range(1, len(levels) + 1)
            }
            variants |= {"": {"latents": False}} | ({"latents_": {"latents": True}} if name in state.latents else {})
            for prefix, options in variants.items():
                rebuilt = self.model.decode(state, name, **options)[:, 0]
                measures = self.compare.features[name].reconstruction(rebuilt, shown[name][:, 0])
                if name + PRESENT in shown:
                    present = shown[name + PRESENT][:, 0]
                    measures = {key: metrics.only_where(value, present) for key, value in measures.items()}
                measures = {self.compare.name(name, prefix + key): value for key, value in measures.items()}
                self._add(environment, rows, None, "pan", measures)

    def _rank(self, environment: str, rows: np.ndarray, predicted: Step, true: Step) -> None:
        """Keeps each window's error at its last step, of the sense that strips show, by which they are chosen."""
        for name in shown_senses(self.model.config)[:1]:
            errors = self.compare.features[name].error(predicted.observations[name], true.observations[name])
            self.errors[environment] |= dict(zip(rows.tolist(), errors.tolist(), strict=True))


@torch.inference_mode()
def evaluate_model(
    model,
    processor,
    trajectories,
    *,
    horizons: Iterable[int] | int = HORIZONS,
    num_windows: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    environments: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    temperature: float = 0.0,
    context: int | None = None,
    reward_threshold: float = REWARD_THRESHOLD,
    skip: Iterable[int] = (),
    reencode: int = 0,
    strips: str | Path | None = None,
    progress: bool = True,
) -> list[Record]:
    """Measures a loaded model on recorded trajectories; arguments as for [`evaluate`], which also checks and writes.

    Args:
        model (`PanModel`), processor (`PanProcessor`): what is measured, in evaluation mode.
        trajectories (`Trajectories`): held-out episodes; nothing is refused here.
        skip (`Iterable[int]`): episodes of `trajectories` to leave out.
        strips (`Path`, *optional*): folder for strips of imagined against real frames.

    Returns:
        `list[Record]`: for each environment, and for "all" of them together where there are several.

    Raises:
        ValueError: an environment without episodes, episodes shorter than the shortest horizon, a missing sense.
    """
    if not isinstance(trajectories, Trajectories):
        raise ValueError(f"Expected Trajectories, see `load_trajectories`; got {type(trajectories).__name__}.")
    environments, skip = _choose_environments(trajectories, environments), list(skip)
    horizons = _check_horizons(horizons)
    num_windows, batch_size = whole("num_windows", num_windows, 1), whole("batch_size", batch_size, 1)
    seed, reencode = whole("seed", seed), whole("reencode", reencode)
    temperature = real("temperature", temperature, 0)
    reward_threshold = real("reward_threshold", reward_threshold, 0)
    context = None if context is None else whole("context", context, 1)
    reader = WindowReader(trajectories, processor, model, context)
    run = _Evaluation(reader, seed, temperature, reward_threshold, reencode)
    batches, windows = [], {}
    for environment in environments:
        chosen = choose_windows(trajectories, environment, horizons, num_windows, seed, skip, reader.lead)
        windows[environment] = chosen
        batches += [(environment, *batch) for batch in _batches(chosen, batch_size)]
    for environment, rows, wanted in track(batches, "evaluating", "batches", progress):
        run.batch(environment, rows, wanted)
    if strips is not None:
        for environment, errors in run.errors.items():
            longest = max(windows[environment])
            errors = {row: errors[row] for row in windows[environment][longest].tolist()}
            write_strips(reader, environment, longest, errors, strips, temperature=temperature, seed=seed)
    names = environments + ["all"] * (len(environments) > 1)
    prefix = "sampled_" if temperature > 0 else ""
    return _records(run.tallies, names, prefix, [seed] if seeds is None else list(seeds))


def _check_horizons(horizons: Iterable[int] | int) -> list[int]:
    """The horizons as a list. Raises ValueError where one is no number of steps."""
    given = horizons if isinstance(horizons, Iterable) else [horizons]
    steps = [whole("horizons", step, 1) for step in given]
    if not steps:
        raise ValueError("`horizons` names no step to compare at; give some of 1 or more.")
    return steps


def _choose_environments(trajectories, environments: Sequence[str] | None) -> list[str]:
    recorded = list(dict.fromkeys(trajectories.environments))
    chosen = strings("environments", environments or [])
    if unknown := sorted(set(chosen) - set(recorded)):
        raise ValueError(f"No held-out episode of {unknown}; the recording has {recorded}. Name one of those.")
    return chosen or recorded


def _batches(windows: dict[int, np.ndarray], batch_size: int) -> list[tuple[np.ndarray, dict[int, np.ndarray]]]:
    """Rows simulated together, all as far as the same horizon, and for each horizon which of them count for it."""
    furthest: dict[int, int] = {}
    for horizon in sorted(windows):
        furthest |= dict.fromkeys(windows[horizon].tolist(), horizon)
    batches = []
    for horizon in sorted(windows, reverse=True):
        rows = np.array([row for row, last in furthest.items() if last == horizon], dtype=np.int64)
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            wanted = {h: np.isin(part, windows[h]) for h in windows if h <= horizon}
            batches.append((part, {h: chosen for h, chosen in wanted.items() if chosen.any()}))
    return batches


def _records(tallies: dict, environments: list[str], prefix: str, seeds: list[int]) -> list[Record]:
    records = []
    for environment in environments:
        for (name, model, horizon), tally in tallies.items():
            for metric in tally.metrics() if name == environment else ():
                result = tally.result(metric)
                if result is not None:
                    value, stderr = result
                    where = {"environment": environment, "split": "test", "seeds": seeds, "model": model}
                    records.append(record(prefix + metric, value, stderr=stderr, horizon=horizon, **where))
    return records


def load_for_evaluation(
    path: str | Path, data_root: str | Path | None = None, skip_trained: bool = False, device: str = "cpu"
) -> tuple:
    """Model, processor, the episodes recorded for testing, and which of them to skip because they were trained on.

    Returns:
        `(PanModel, PanProcessor, Trajectories, list[int])`, the model on `device` in evaluation mode.

    Raises:
        ValueError: an episode was trained on (with `skip_trained`, or of a world of symbols alone: all were), see
            [`check_held_out`]; the processor does not belong to the model; or there is no such device.
        FileNotFoundError: no checkpoint or no recording.
    """
    checkpoint = find_checkpoint(path, adapters=True)
    trained = trained_fingerprints(checkpoint)
    trajectories = load_trajectories(find_recording(checkpoint, data_root), "test")
    skipped = check_held_out(trajectories, trained, skip_trained or _repeats_itself(trajectories))
    model, processor = load(checkpoint)
    try:
        return model.to(device), processor, trajectories, skipped
    except (RuntimeError, AssertionError) as error:  # torch built without it asserts
        raise ValueError(f"The model cannot be put on the device {device!r}: {error}") from error


def _repeats_itself(trajectories: Trajectories) -> bool:
    """Whether whole episodes equal one another by chance: nothing that is observed is anything but a name or words."""
    senses = (feature_of(trajectories.features[f"observation.{name}"]) for name in trajectories.observations)
    return all(sense.is_symbolic or sense.is_text for sense in senses)


@checked(seed=a_seed)
def evaluate(
    run: str | Path,
    data_root: str | Path | None = None,
    output: str | Path | None = None,
    *,
    horizons: Iterable[int] | int = HORIZONS,
    num_windows: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    environments: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    temperature: float = 0.0,
    context: int | None = None,
    reward_threshold: float = REWARD_THRESHOLD,
    skip_trained: bool = False,
    device: str = "cpu",
    effort=None,
    reencode: int = 0,
    progress: bool = True,
) -> list[Record]:
    """Measures a world model on held-out episodes: writes `evaluation.json` and `horizon.png`.

    Writes `evaluation.json`, `report/strips/` (for each environment the window of median and of largest error at the
    last horizon) and, with two horizons or more, the plot `horizon.png` into `output`.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, a checkpoint, or its Hub id.
        data_root (`str` or `Path`, *optional*): folder or Hub id of recorded trajectories; those the checkpoint was
            trained on by default.
        output (`str` or `Path`, *optional*): where to write; the run folder by default.
        horizons (`Iterable[int]`): steps after a window's start at which the two are compared.
        num_windows (`int`): windows for each environment and horizon, drawn uniformly; all where there are fewer.
        batch_size (`int`): windows simulated at once.
        seed (`int`): of the choice of windows, of shuffled actions and of sampled futures.
        environments (`Sequence[str]`, *optional*): which of the recorded environments; all by default.
        seeds (`Sequence[int]`, *optional*): seeds to write into the records; that of the run's training, or `[seed]`
            where the run does not tell.
        temperature (`float`): 0 for the most likely future; above 0 one sampled future a window, and then the metrics
            are named `sampled_...`.
        context (`int`, *optional*): true frames seen up to a window's start; as many as the model looks back on by
            default, so that windows start at least that far into an episode.
        reward_threshold (`float`): rewards larger than this in size are events for `reward_f1`.
        skip_trained (`bool`): leave out episodes that were trained on, with a warning, instead of refusing: in a small
            world an episode recorded for testing can happen to equal one recorded for training. In a world of symbols
            alone they are always left out.
        device (`str`): where the model runs, such as "cpu" or "cuda".
        effort (*optional*): what is spent on an imagined step, as [`PanModel.simulate`] takes it. A code that is not
            predicted and absent is not right; `compute_per_simulated_step` and the like say what a step cost.
        reencode (`int`): encode what was imagined anew after so many steps, as [`PanModel.simulate`] does; 0: never.
        progress (`bool`): show a progress bar.

    Returns:
        `list[Record]`: what was written.

    Raises:
        ValueError: an episode was trained on (the message names them), an environment has no episode, all episodes
            are shorter than the shortest horizon, or a sense of the model was not recorded.
        FileNotFoundError: there is no checkpoint or no recording.
    """
    output = results_folder(run, output)
    seeds = seeds or trained_seeds(run) or [seed]
    model, processor, trajectories, skipped = load_for_evaluation(run, data_root, skip_trained, device)
    world = at_effort(model, effort)
    records = evaluate_model(
        world,
        processor,
        trajectories,
        horizons=horizons,
        num_windows=num_windows,
        batch_size=batch_size,
        seed=seed,
        environments=environments,
        seeds=seeds,
        temperature=temperature,
        context=context,
        reward_threshold=reward_threshold,
        skip=skipped,
        reencode=reencode,
        strips=output / "report" / "strips",
        progress=progress,
    )
    if isinstance(world, FixedEffort):
        where: dict = {"environment": "all", "split": "test", "seeds": list(seeds)}
        records += [record(metric, value, model="pan", **where) for metric, value in world.spent().items()]
    write_records(output / "evaluation.json", records)
    plotted = [entry for entry in records if entry.metric.endswith(PLOTTED) and not entry.metric.startswith(UNPLOTTED)]
    if curves(plotted):
        horizon_plot(plotted, output / "horizon.png")
    return records


def pool(runs: Sequence[str | Path], output: str | Path) -> list[Record]:
    """Pools the `evaluation.json` of runs that differ in their seed, and writes that of all of them into `output`.

    Raises:
        FileNotFoundError: a run has not been evaluated.
        ValueError: fewer than two runs, or two of the same seed, whose difference would not be one of seeds.
    """
    found = [read_records(Path(run) / "evaluation.json") for run in runs]
    seeds = [sorted({seed for entry in entries for seed in entry.seeds}) for entries in found]
    if len({tuple(seed) for seed in seeds}) < max(2, len(runs)):
        told = ", ".join(f"{run}: {seed}" for run, seed in zip(runs, seeds, strict=True))
        raise ValueError(f"A spread over seeds needs different seeds, got {told}. Train with another `--seed`.")
    records = across_seeds(found)
    write_records(Path(output) / "evaluation.json", records)
    return records


def across_seeds(runs: Sequence[Sequence[Record]]) -> list[Record]:
    """Records of several training seeds as one: the mean, its standard error over seeds, and all seeds listed.

    Args:
        runs (`Sequence[Sequence[Record]]`): the evaluation of each seed; a metric missing in one is averaged over the
            others.
    """
    groups = defaultdict(list)
    for entry in (entry for run in runs for entry in run):
        groups[entry.metric, entry.horizon, entry.model, entry.environment, entry.split].append(entry)
    pooled = []
    for (metric, horizon, model, environment, split), entries in groups.items():
        value, stderr = mean_stderr([entry.value for entry in entries])
        seeds = sorted({seed for entry in entries for seed in entry.seeds})
        where: dict = {"model": model, "environment": environment, "split": split, "seeds": seeds}
        pooled.append(record(metric, value, stderr=stderr, horizon=horizon, **where))
    return pooled
