"""Are sampled futures possible, and as frequent as they should be? For worlds with chance in them.

From held-out states the model samples many next frames under the recorded action. Each is read back into objects and
compared with what the true simulator does when it is put into the same state and steps as often as one likes.

*Coherent*: every tile is recognised, and there is as much of everything as in some true outcome: no split, doubled or
missing object, one agent. *Calibrated*: every outcome is as frequent among samples as in truth, within the standard
error of the difference. Outcomes are, over all states together, where each kind of moving object is relative to where
one was ("a blue ball one to the right of where one was"), where the agent is relative to where it was, by how much it
turned, and whether the episode ends; and, state by state, which moving object is in which cell.

| metric | what it is |
|---|---|
| `coherent_futures`, `recognised_futures` | share of samples that are coherent; that have no unrecognised tile |
| `outcome:<name>` | how frequent one outcome is; for "simulator" in all steps it took. The standard error is that of \
sampling, the states being given |
| `calibration_max_z`, `calibration_within_3se` | over these outcomes, the largest difference from truth in standard \
errors, and the share within three |
| `cell_calibration_max_z`, `cell_calibration_within_3se` | the same, state by state and cell by cell; of thousands \
of such outcomes, 99.7% lie within three even for the truth |
| `outcome_total_variation` | between the samples of a whole next state and true ones, mean over states. Finite \
samples differ by chance: what to compare with is model "simulator" |

Beside the model stand "simulator", as many fresh samples of the truth in the model's place, and "copy_last". Standard
errors of shares and distances are over episodes, see [`MetricAccumulator`].

MiniGrid is the ground truth: a frame is cut into tiles, and each is matched with the simulator's own drawing of every
object, with and without the agent on it, seen and unseen. The grid of objects is a state that the simulator can be put
into, which gives the true distribution of what an action does there.

    python benchmarks/moving_obstacles.py --run runs/dynamic_obstacles --seed 0 --seed 1 --seed 2
"""

import copy
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also from a checkout that is not installed
from pan_hf.checkpoints import find_checkpoint, find_recording, results_folder  # noqa: E402
from pan_hf.console import track  # noqa: E402
from pan_hf.data.episodes import read_info  # noqa: E402
from pan_hf.data.windows import WindowReader  # noqa: E402
from pan_hf.envs.environment import make_environment  # noqa: E402
from pan_hf.evaluation.evaluate import load_for_evaluation  # noqa: E402
from pan_hf.features import feature_class  # noqa: E402
from pan_hf.metrics import MetricAccumulator, mean_of  # noqa: E402
from pan_hf.reporting.results import Record, record, write_records  # noqa: E402
from pan_hf.reporting.strips import shown_senses  # noqa: E402

AGENT_VIEWS = 5  # no agent, or the agent looking right, down, left, up
UNRECOGNISED = -1

MIN_EXPECTED = 5
"""Outcomes expected less often than this among the model's samples are not tested: their error is not normal."""


@dataclass
class Outcomes:
    """What followed one action in one state, many times.

    Args:
        states (`np.ndarray` of shape `(count, rows, columns)`): see [`MinigridOracle`].
        ended (`np.ndarray` of shape `(count,)`): whether the episode ended, or how probable that is, 0 to 1.
    """

    states: np.ndarray
    ended: np.ndarray


@dataclass
class Start:
    """A held-out state, the action taken there, its episode, and what follows from it by model name."""

    row: int
    episode: int
    state: np.ndarray
    action: int
    true: Outcomes
    sampled: dict[str, Outcomes]


def is_coherent(states: np.ndarray, true: np.ndarray) -> np.ndarray:
    """`(n,)`: whether all of `states` is recognised, with as much of everything as in one of the states `true`."""
    num_kinds = int(things(true).max()) + 1
    possible = {counts.tobytes() for counts in _counts(true, num_kinds)}
    same = [counts.tobytes() in possible for counts in _counts(states, num_kinds)]
    return np.array(same) & is_recognised(states)


def is_recognised(states: np.ndarray) -> np.ndarray:
    """`(n,)`: whether every tile shows something that exists."""
    return (states != UNRECOGNISED).all((1, 2))


def _counts(states: np.ndarray, num_kinds: int) -> np.ndarray:
    """Tiles with each object, and with the agent, `(n, num_kinds + 1)`."""
    objects = [(things(states) == kind).sum((1, 2)) for kind in range(num_kinds)]
    return np.stack([*objects, (agents(states) > 0).sum((1, 2))], axis=1)


def moving_kinds(starts: Sequence[Start]) -> list[int]:
    """Objects that are not always where they were, in truth; empty floor does not count."""
    kinds = sorted({kind for start in starts for kind in np.unique(things(start.true.states)).tolist()} - {0})
    return [
        kind
        for kind in kinds
        if any(((things(start.true.states) == kind) != (things(start.state) == kind)).any() for start in starts)
    ]


def named_outcomes(state: np.ndarray, outcomes: Outcomes, kinds: dict[int, str]) -> dict[str, np.ndarray]:
    """How often each outcome happened in each sample, `{name: (count,)}`; see the head of this file.

    Args:
        state (`np.ndarray` of shape `(rows, columns)`): where all samples started.
        kinds (`dict[int, str]`): index and name of the objects that move.
    """
    shown = things(outcomes.states)
    shares: dict = {}
    for kind, name in kinds.items():
        shares |= _neighbourhood(name, np.argwhere(things(state) == kind), shown == kind)
    agent = agents(outcomes.states)
    shares |= _neighbourhood("agent", np.argwhere(agents(state) > 0), agent > 0)
    before = int(agents(state).max())
    for turn in range(4):
        after = (before - 1 + turn) % 4 + 1
        shares[f"agent turned {turn}"] = (agent == after).any((1, 2)).astype(float)
    return shares | {"end": outcomes.ended.astype(float)}


def _neighbourhood(name: str, origins: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    """For each step of at most one row and column: share of `origins` beside which, that way, the thing is present."""
    padded = np.pad(present, ((0, 0), (1, 1), (1, 1)))
    counts = {}
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            hits = [padded[:, row + 1 + down, column + 1 + right] for row, column in origins]
            share = np.mean(hits, axis=0) if hits else np.zeros(len(present))
            counts[f"{name} {down:+d}{right:+d}"] = share
    return counts


def z_score(sampled: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> float | None:
    """Difference of two frequencies, averaged over states, in standard errors of the difference.

    The variance in each state is that of samples and truth together, as if both were the same (the usual test of two
    frequencies): an outcome that is rare in truth and was never sampled then has no standard error of zero.

    Args:
        sampled, true (sequences over states of `(count,)`): how often the outcome happened in each sample.

    Returns:
        `None` where the outcome never varies, or is expected less than `MIN_EXPECTED` times.
    """
    difference, variance, expected = 0.0, 0.0, 0.0
    for one, other in zip(sampled, true, strict=True):
        together = np.concatenate([one, other])
        difference += one.mean() - other.mean()
        variance += together.var() * (1 / len(one) + 1 / len(other))
        expected += min(together.mean(), 1 - together.mean()) * len(one)
    if variance <= 1e-12 or expected < MIN_EXPECTED:
        return None
    return difference / variance**0.5


def total_variation(sampled: np.ndarray, true: np.ndarray) -> float:
    """Total variation between the frequencies of whole states `(count, rows, columns)`."""
    shares: dict[bytes, list[float]] = {}
    for side, states in enumerate((sampled, true)):
        for state in states:
            shares.setdefault(state.tobytes(), [0.0, 0.0])[side] += 1 / len(states)
    return sum(abs(one - other) for one, other in shares.values()) / 2


def compare_futures(
    starts: Sequence[Start], kinds: Sequence[str], seed: int = 0
) -> list[tuple[str, str, float, float | None]]:
    """All metrics of all models: `(model, metric, value, stderr)`.

    Args:
        starts (`Sequence[Start]`): all with the same models.
        kinds (`Sequence[str]`): names of objects, see [`MinigridOracle`].
        seed (`int`): of the bootstrap over episodes behind the standard errors.
    """
    moving = {kind: kinds[kind] for kind in moving_kinds(starts)}
    true = [named_outcomes(start.state, start.true, moving) for start in starts]
    results = []
    for model in starts[0].sampled:
        sampled = [named_outcomes(start.state, start.sampled[model], moving) for start in starts]
        results += [(model, *entry) for entry in _shares(starts, model, seed)]
        results += [(model, *entry) for entry in _frequencies(true if model == "simulator" else sampled)]
        results += [(model, *entry) for entry in _calibration("", _by_name(sampled, true))]
        results += [(model, *entry) for entry in _calibration("cell_", _by_cell(starts, model, moving))]
    return results


def _shares(starts: Sequence[Start], model: str, seed: int) -> list[tuple[str, float, float | None]]:
    tally = MetricAccumulator(seed=seed)
    for start in starts:
        states, true = start.sampled[model].states, start.true.states
        values = {
            "coherent_futures": is_coherent(states, true),
            "recognised_futures": is_recognised(states),
            "outcome_total_variation": np.array([total_variation(states, true)]),
        }
        for metric, counts in values.items():
            tally.add(metric, *mean_of(torch.as_tensor(counts)), np.full(len(counts), start.episode))
    results = {metric: tally.result(metric) for metric in tally.metrics()}
    return [(metric, *result) for metric, result in results.items() if result is not None]


def _frequencies(outcomes: list[dict[str, np.ndarray]]) -> list[tuple[str, float, float]]:
    results = []
    for name in outcomes[0]:
        counts = [one[name] for one in outcomes]
        variance = sum(count.var() / len(count) for count in counts) / len(counts) ** 2
        results.append((f"outcome:{name}", float(np.mean([count.mean() for count in counts])), float(variance**0.5)))
    return results


def _by_name(sampled: list[dict[str, np.ndarray]], true: list[dict[str, np.ndarray]]) -> list[float | None]:
    return [z_score([one[name] for one in sampled], [one[name] for one in true]) for name in true[0]]


def _by_cell(starts: Sequence[Start], model: str, moving: dict[int, str]) -> list[float | None]:
    scores = []
    for start in starts:
        for read, values in ((things, moving), (agents, range(1, 5))):
            shown, truth = read(start.sampled[model].states), read(start.true.states)
            for value in values:
                cells = np.argwhere((shown == value).any(0) | (truth == value).any(0))
                pairs = [((shown == value)[:, row, column], (truth == value)[:, row, column]) for row, column in cells]
                scores += [z_score([one.astype(float)], [other.astype(float)]) for one, other in pairs]
    return scores


def _calibration(prefix: str, scores: list[float | None]) -> list[tuple[str, float, None]]:
    tested = np.abs([score for score in scores if score is not None])
    if not len(tested):
        return []
    return [
        (f"{prefix}calibration_max_z", float(tested.max()), None),
        (f"{prefix}calibration_within_3se", float((tested <= 3).mean()), None),
        (f"{prefix}calibration_outcomes", float(len(tested)), None),
    ]


@torch.inference_mode()
def sample_futures(
    reader: WindowReader,
    world,
    rows: np.ndarray,
    *,
    num_samples: int,
    num_true: int,
    temperature: float = 1.0,
    batch_size: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> list[Start]:
    """Samples one step from each of `rows`, with the model and with the simulator.

    Args:
        reader (`WindowReader`): of the held-out episodes, with a context of one frame; its model samples.
        world (`MinigridOracle`): anything with its `parse` and `outcomes`.
        rows (`np.ndarray`): where to start.
        num_samples, num_true (`int`): futures of the model and of the simulator from each row.
        batch_size (`int`): futures simulated at once.

    Returns:
        `list[Start]`, one a row whose frame is wholly recognised and shows the agent.
    """
    image = _image_sense(reader.model)
    states = world.parse(reader.trajectories.observations[image][rows])
    readable = is_recognised(states) & ((agents(states) > 0).sum((1, 2)) == 1)
    rows, states = rows[readable], states[readable]
    starts, at_once = [], max(1, batch_size // num_samples)
    for first in track(range(0, len(rows), at_once), "sampling futures", "batches", progress):
        chosen = slice(first, first + at_once)
        imagined = _imagine(reader, world, image, rows[chosen], num_samples, temperature, seed + first)
        for row, state, sampled in zip(rows[chosen].tolist(), states[chosen], imagined, strict=True):
            action = int(reader.trajectories.actions[row])
            copied = Outcomes(np.repeat(state[None], num_samples, 0), np.zeros(num_samples))
            models = {"pan": sampled, "simulator": Outcomes(*world.outcomes(state, action, num_samples))}
            true = Outcomes(*world.outcomes(state, action, num_true))
            episode = int(reader.trajectories.episode[row])
            starts.append(Start(row, episode, state, action, true, models | {"copy_last": copied}))
    return starts


def _image_sense(model) -> str:
    names = shown_senses(model.config)
    if not names or not feature_class(model.config.action.kind).is_discrete:
        raise ValueError(
            f"Futures are checked on frames after discrete actions; this model's senses are "
            f"{sorted(model.config.senses)} and its action is {model.config.action.kind}."
        )
    return names[0]


def _imagine(reader, world, image: str, rows: np.ndarray, num_samples: int, temperature: float, seed: int):
    batch = reader.batch(rows, 1)
    settings = {"num_rollouts": num_samples, "temperature": temperature, "seed": seed}
    futures = reader.model.simulate(reader.perceive(batch), batch["action"], **settings)
    states = world.parse(futures.decode(image)[:, 0].cpu().numpy())
    ended = 1 - futures.continue_prob[:, 0].float().cpu().numpy()
    spans = [slice(start, start + num_samples) for start in range(0, len(states), num_samples)]
    return [Outcomes(states[span], ended[span]) for span in spans]


def evaluate_futures(
    run: str | Path,
    data_root: str | Path | None = None,
    output: str | Path | None = None,
    *,
    num_states: int = 64,
    num_samples: int = 128,
    num_true: int = 1000,
    temperature: float = 1.0,
    batch_size: int = 1024,
    seeds: Sequence[int] = (0,),
    environments: Sequence[str] | None = None,
    skip_trained: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> list[Record]:
    """Checks sampled futures of a stochastic MiniGrid world against its simulator: writes `futures.json`.

    Futures are of one step, and the world is seen in full.

    Which outcomes a model misses depends on the states that it is asked about, so several seeds say more than one:
    each draws its own states, and is tested by itself.

    Args:
        run (`str` or `Path`): a run folder with `checkpoint/`, a checkpoint, or its Hub id.
        data_root (`str` or `Path`, *optional*): folder or Hub id of recorded trajectories; those the checkpoint was
            trained on by default.
        output (`str` or `Path`, *optional*): where to write; the run folder by default.
        num_states (`int`): held-out states to start from, drawn uniformly by each seed.
        num_samples (`int`): futures the model samples from each.
        num_true (`int`): steps the simulator takes from each.
        temperature (`float`): of the model's sampling; 1 is the model's own distribution.
        batch_size (`int`): futures simulated at once.
        seeds (`Sequence[int]`): of the choice of states, the samples and the simulator; records tell them apart.
        environments (`Sequence[str]`, *optional*): which of the recorded environments; all by default.
        skip_trained (`bool`): leave out episodes that were trained on, with a warning, instead of refusing.
        device (`str`): where the model runs, such as "cpu" or "cuda".
        progress (`bool`): show a progress bar.

    Returns:
        `list[Record]`: what was written.

    Raises:
        ValueError: an episode was trained on, an environment is not a MiniGrid in full view or was not recorded, the
            model sees no frames or acts in numbers or words, or no start frame can be read.
        FileNotFoundError: there is no checkpoint or no recording.
    """
    output, root = results_folder(run, output), find_recording(find_checkpoint(run), data_root)
    model, processor, trajectories, skipped = load_for_evaluation(run, root, skip_trained, device)
    reader = WindowReader(trajectories, processor, model, context=1)  # the simulator knows one frame too
    height, width = trajectories.observations[_image_sense(model)].shape[-2:]
    records = []
    settings: dict = {"num_samples": num_samples, "num_true": num_true, "temperature": temperature}
    chosen = _entries(read_info(root)["environments"], environments)
    for seed, entry in itertools.product(seeds, chosen):
        world = MinigridOracle(make_environment(**entry), (height, width), seed)
        rows = trajectories.windows(1, entry["id"])
        rows = rows[~np.isin(trajectories.episode[rows], skipped)]
        rows = np.random.default_rng(seed).permutation(rows)[:num_states]
        starts = sample_futures(reader, world, rows, batch_size=batch_size, seed=seed, progress=progress, **settings)
        if not starts:
            raise ValueError(f"None of {len(rows)} start frames of {entry['id']} can be read as MiniGrid tiles.")
        where = {"environment": entry["id"], "split": "test", "seeds": [seed]}
        for name, metric, value, stderr in compare_futures(starts, world.kinds, seed):
            records.append(record(metric, value, stderr=stderr, horizon=1, model=name, **where))
    write_records(output / "futures.json", records)
    return records


def _entries(recorded: list[dict], environments: Sequence[str] | None) -> list[dict]:
    known = [entry["id"] for entry in recorded]
    unknown = sorted(set(environments or ()) - set(known))
    if unknown:
        raise ValueError(f"No recording of {unknown}; there are {known}. Name one of those.")
    return [entry for entry in recorded if not environments or entry["id"] in environments]


# ---- the simulator


class MinigridOracle:
    """A MiniGrid environment in full view.

    A state is an int array `(rows, columns)`: each tile is `object * 5 + agent`, with `object` an index into `kinds`
    (0 is empty) and `agent` 0 where the agent is not, else 1 + its direction.

    Args:
        environment (`gymnasium.Env`): a MiniGrid environment, with any wrappers.
        frame_size (`tuple[int, int]`): height and width of the frames to read, in pixels.
        seed (`int`): of the resets that show which objects there are, and of every step taken.

    Raises:
        ValueError: not a MiniGrid environment, or the frames are not a whole number of pixels a tile.
    """

    def __init__(self, environment, frame_size: tuple[int, int], seed: int = 0):
        self.env = environment.unwrapped
        if not hasattr(self.env, "grid") or not hasattr(self.env, "agent_dir"):
            raise ValueError(
                f"{environment} is not a MiniGrid environment, so its frames cannot be read tile by tile. Pass a "
                "`world` of your own with `parse` and `outcomes`."
            )
        self.objects = [None, *self._objects(seed)]
        self.kinds = ["empty"] + ["-".join([thing.color, thing.type]) for thing in self.objects[1:]]
        self._index = {thing.encode(): index for index, thing in enumerate(self.objects) if thing is not None}
        grid = self.env.grid
        self.tile_size = frame_size[0] // grid.height
        if frame_size != (grid.height * self.tile_size, grid.width * self.tile_size):
            raise ValueError(
                f"Frames of {frame_size[0]}x{frame_size[1]} pixels do not show a grid of {grid.height}x{grid.width} "
                "square tiles; record with minigrid.wrappers:RGBImgObsWrapper?tile_size=8."
            )
        self._tiles, self._templates = self._draw_templates()
        self._reach = self._distance_to_others() / 3
        self._rng = np.random.default_rng(seed)
        # the simulator's own partial view is not looked at, and costs most of a step
        self.env.gen_obs = lambda: None

    def _objects(self, seed: int, num_resets: int = 5) -> list:
        things_by_code: dict[tuple, object] = {}
        for number in range(num_resets):
            self.env.reset(seed=seed + number)
            things_by_code |= {thing.encode(): thing for thing in self.env.grid.grid if thing is not None}
        return [things_by_code[code] for code in sorted(things_by_code)]

    def _draw_templates(self) -> tuple[np.ndarray, np.ndarray]:
        """Tile numbers `(n,)` and drawings `(n, tile_size * tile_size * 3)`; a tile has several drawings."""
        tiles, drawings = [], []
        for index, thing in enumerate(self.objects):
            stands_on = thing is None or thing.can_overlap()
            for agent in range(AGENT_VIEWS if stands_on else 1):
                for highlight in (False, True):
                    direction = agent - 1 if agent else None
                    drawing = self.env.grid.render_tile(thing, direction, highlight, self.tile_size)
                    tiles.append(index * AGENT_VIEWS + agent)
                    drawings.append(drawing.reshape(-1))
        return np.array(tiles), np.array(drawings, dtype=np.float32)

    def _distance_to_others(self) -> np.ndarray:
        """For each drawing, the smallest root mean squared difference to one of another tile, `(n,)`."""
        distances = _distances(self._templates, self._templates)
        return np.where(self._tiles[:, None] != self._tiles[None], distances, np.inf).min(1)

    def parse(self, frames: np.ndarray) -> np.ndarray:
        """What uint8 frames `(N, 3, height, width)` show, as states `(N, rows, columns)`.

        A tile is what the nearest drawing shows (in root mean squared difference), if that is nearer than a third of
        the way to the nearest drawing of anything else; otherwise it is `UNRECOGNISED`: two objects that share a tile,
        a faint one, half of one.
        """
        parts = [self._parse(frames[start : start + 256]) for start in range(0, len(frames), 256)]
        return np.concatenate(parts)

    def _parse(self, frames: np.ndarray) -> np.ndarray:
        count, size = len(frames), self.tile_size
        rows, columns = self.env.grid.height, self.env.grid.width
        cells = frames.reshape(count, 3, rows, size, columns, size).transpose(0, 2, 4, 3, 5, 1)
        distances = _distances(cells.reshape(count * rows * columns, -1).astype(np.float32), self._templates)
        nearest = distances.argmin(1)
        known = distances[np.arange(len(nearest)), nearest] <= self._reach[nearest]
        return np.where(known, self._tiles[nearest], UNRECOGNISED).reshape(count, rows, columns)

    def outcomes(self, state: np.ndarray, action: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """What the simulator does after `action` in `state`, `count` times with fresh randomness.

        A frame does not show in which order obstacles move, so every step draws one.

        Returns:
            states `(count, rows, columns)`, and whether the episode ended `(count,)`.
        """
        after, ended = [], np.zeros(count, dtype=bool)
        for number in range(count):
            self._set_up(state)
            _, _, ended[number], _, _ = self.env.step(action)
            after.append(self._state())
        return np.array(after), ended

    def _set_up(self, state: np.ndarray) -> None:
        env, obstacles = self.env, []
        moving = {thing.type for thing in getattr(env, "obstacles", [])}
        env.grid.grid = [self.objects[tile // AGENT_VIEWS] for tile in state.flat]
        for cell, thing in enumerate(env.grid.grid):
            if thing is not None and thing.type in moving:
                env.grid.grid[cell] = thing = copy.copy(thing)
                thing.init_pos = thing.cur_pos = (cell % env.grid.width, cell // env.grid.width)
                obstacles.append(thing)
        ((row, column),) = np.argwhere(state % AGENT_VIEWS > 0)
        env.agent_pos, env.agent_dir = (int(column), int(row)), int(state[row, column] % AGENT_VIEWS) - 1
        env.carrying, env.step_count = None, 0
        if moving:
            env.obstacles = [obstacles[index] for index in self._rng.permutation(len(obstacles))]

    def _state(self) -> np.ndarray:
        grid = self.env.grid
        tiles = [0 if thing is None else self._index[thing.encode()] * AGENT_VIEWS for thing in grid.grid]
        state = np.array(tiles).reshape(grid.height, grid.width)
        column, row = self.env.agent_pos
        state[row, column] += self.env.agent_dir + 1
        return state


def agents(states: np.ndarray) -> np.ndarray:
    """0 where the agent is not, else 1 + its direction; the shape of `states`."""
    return np.where(states == UNRECOGNISED, 0, states % AGENT_VIEWS)


def things(states: np.ndarray) -> np.ndarray:
    """The object at each tile, under the agent too, as an index of `kinds`; `UNRECOGNISED` where nothing is known."""
    return np.where(states == UNRECOGNISED, UNRECOGNISED, states // AGENT_VIEWS)


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Root mean squared differences `(n, m)` of rows `(n, d)` and `(m, d)`."""
    squares = np.square(one).sum(1)[:, None] + np.square(other).sum(1)[None] - 2 * one @ other.T
    return np.sqrt(squares.clip(min=0) / one.shape[1])


def main(
    run: Annotated[str, typer.Option(help="Run folder, or a checkpoint or its Hub id.")] = "runs/default",
    model: Annotated[str | None, typer.Option(help="Checkpoint, if not `<run>/checkpoint`.")] = None,
    data: Annotated[str | None, typer.Option(help="Recording, a folder or a Hub id, if not the run's.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for futures.json, if not the run.")] = None,
    states: Annotated[int, typer.Option(help="Held-out states that each seed draws to start from.")] = 64,
    samples: Annotated[int, typer.Option(help="Futures the model samples from each.")] = 128,
    true: Annotated[int, typer.Option(help="Steps the simulator takes from each.")] = 1000,
    temperature: Annotated[float, typer.Option(help="Of the model's sampling; 1 is its own distribution.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Futures simulated at once.")] = 1024,
    seed: Annotated[list[int], typer.Option(help="Of states, samples and simulator; several say more.")] = [0],  # noqa: B006
    env: Annotated[list[str] | None, typer.Option(help="Which of the recorded environments; all by default.")] = None,
    skip_trained: Annotated[bool, typer.Option(help="Leave out episodes that were trained on.")] = False,
    device: Annotated[str, typer.Option(help="Where the model runs.")] = "cpu",
    progress: Annotated[bool, typer.Option(help="Show a line of progress.")] = True,
) -> None:
    """Writes `futures.json`."""
    own_data = Path(run) / "data"  # of a run; a model of elsewhere names its own
    settings = {"num_states": states, "num_samples": samples, "num_true": true, "batch_size": batch_size}
    evaluate_futures(
        model or run,
        data or (own_data if own_data.exists() else None),
        output or (None if model is None else Path(run)),
        temperature=temperature,
        seeds=seed,
        environments=env,
        skip_trained=skip_trained,
        device=device,
        progress=progress,
        **settings,
    )


if __name__ == "__main__":
    typer.run(main)
