"""A gymnasium wrapper that writes what your own loop plays, episode by episode, as a recording.

    env = RecordTrajectories(gymnasium.make("CartPole-v1"), "runs/mine/data")
    # ... play as ever: reset, step, step, ...
    env.close()

Observations and actions pass through unchanged; what is written is what `pan record` would write of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from pan_hf.arguments import checked, least
from pan_hf.data.episodes import (
    SPLITS,
    UNKNOWN_SEED,
    Episode,
    episode_files,
    episode_path,
    episode_schema,
    episode_table,
    read_info,
    read_summary,
    write_info,
    write_table,
)
from pan_hf.data.info import (
    PICTURES,
    Extremes,
    begun_with,
    bounded,
    check_test_fraction,
    is_test_episode,
    joined,
    new_info,
    rare_options,
)
from pan_hf.data.recorder import follow, see
from pan_hf.envs.environment import SenseEnvironment, spec_entry
from pan_hf.extras import extra
from pan_hf.features import task_of
from pan_hf.files import holds_nothing

with extra("envs", "RecordTrajectories"):
    import gymnasium


class RecordTrajectories(gymnasium.Wrapper):
    """Writes each episode when it ends; one that is left by `reset` or `close` is written as cut short there.

    Every finished episode is whole on disk and counted in `meta/info.json`, so the recording can be used at any time,
    also after a crash, and a later run with the same settings adds to it. One process at a time may write a folder.

    Args:
        env: any gymnasium environment, not a vector of them. Where a wrapper in it begins the next episode by itself
            (`gymnasium.wrappers.Autoreset`), that episode is recorded too.
        folder: of the recording, new, empty or begun with the same settings.
        keep: the observations to keep, by their own names, and `camera` for the rendered frame; all when empty.
        rename: sense names by observation name.
        render: write the rendered frame as the sense `camera`, unless an image is among the observations already.
        image_size: side in pixels that images are averaged to.
        crop: cut images to their middle square before that.
        optional: observations that may be None or missing at some steps, by their own names.
        depth_scale, depth_unit: what numbers of a picture that are no colours, such as depth, are multiplied with to
            be whole, and the unit they have then.
        symbols: the observations that are taken as symbols, by the environment's names; those that seem to be when
            None. To tell a small grid of bytes from a picture, `env` is reset once.
        test_fraction: share of the episodes that is kept for testing, in [0, 0.5], or 1.
        fps: frames a second, for timestamps; what the environment says, or 10, when None.

    `features` says what its senses and its action are, as `meta/info.json` does.

    Raises:
        ValueError: an observation or action space that cannot be recorded, or the folder holds something else or
            cannot be made.
    """

    @checked(fps=least(0, above=True), **PICTURES)
    def __init__(
        self,
        env: Any,
        folder: str | Path,
        *,
        keep: Sequence[str] = (),
        rename: Mapping[str, str] | None = None,
        render: bool = False,
        image_size: int | None = None,
        crop: bool = False,
        optional: Sequence[str] = (),
        depth_scale: float | None = None,
        depth_unit: str = "",
        symbols: Sequence[str] | None = None,
        test_fraction: float = 0.1,
        fps: float | None = None,
    ):
        if not isinstance(env, gymnasium.Env):
            raise ValueError(
                f"env: expected one gymnasium environment, got {type(env).__name__}; of a vector wrap each: "
                "SyncVectorEnv([lambda: RecordTrajectories(gymnasium.make(ID), FOLDER_OF_ITS_OWN), ...])"
            )
        super().__init__(env)
        self._is_autoreset = any(isinstance(wrapper, gymnasium.wrappers.Autoreset) for wrapper in _wrappers(env))
        self._has_ended = False
        view: dict = {"keep": list(keep), "rename": dict(rename or {}), "render": render}
        view |= {"image_size": image_size, "crop": crop} | rare_options(optional, depth_scale, depth_unit)
        self._senses = SenseEnvironment(env, **view, symbols=begun_with(Path(folder), symbols))
        view |= rare_options((), None, "", self._senses.symbols)
        made = spec_entry(env.spec) if env.spec is not None else {"id": type(env.unwrapped).__name__}
        check_test_fraction(test_fraction)
        self._root, self.features = Path(folder), self._senses.features
        frames_a_second = float(fps or env.metadata.get("render_fps") or 10)
        about: dict = {"source": {"kind": "wrapper", "path": made["id"]}}
        if self._senses.actors:
            about["actors"] = self._senses.actors
        self._info = new_info(frames_a_second, self.features, [{**made, **view}], test_fraction, **about)
        self._info["complete"] = True  # at any time: nobody knows how many are to come
        self._number = 0
        self._extremes: Extremes | None = None
        self._go_on()
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"folder: {folder} cannot be made ({error})") from error
        self._episode: Episode | None = None
        self._is_looked_at = False

    def _go_on(self) -> None:
        """Counts what an earlier run left in the folder."""
        if holds_nothing(self._root):
            return
        before = read_info(self._root)
        for name in ("environments", "test_fraction", "fps", "source"):
            if before.get(name) != json.loads(json.dumps(self._info[name])):
                raise ValueError(
                    f"{self._root} was recorded with another {name}: {before.get(name)} there, {self._info[name]} "
                    "now. Use the same settings to go on, or another folder"
                )
        for split in SPLITS:
            for index, path in episode_files(self._root, split).items():
                self._count(split, *read_summary(path))
                self._number = max(self._number, index + 1)

    def _count(self, split: str, num_rows: int, extremes: Extremes) -> Extremes:
        """Counts an episode, and returns the extremes of all of them."""
        self._info["episodes"][split] += 1
        self._info["frames"] += num_rows
        self._extremes = joined(self.features, [extremes, self._extremes] if self._extremes else [extremes])
        return self._extremes

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self._write()
        observation, info = self.env.reset(seed=seed, options=options)
        self._begin(observation, info, UNKNOWN_SEED if seed is None else seed)
        return observation, info

    def _begin(self, observation: Any, info: dict, seed: int) -> None:
        """A new episode, from its first observation on."""
        if not self._is_looked_at:
            self._senses.check_senses(observation)
        self._episode = Episode(self._info["environments"][0]["id"], self._number, seed)
        self._has_ended = False
        see(self._episode, self._senses.observe(observation, info), self._senses)
        if not self._is_looked_at:
            self.features = self._senses.features  # which now know whether actions are masked
            self._is_looked_at = True

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict]:
        recorded = self._senses.recorded_action(action)
        if self._has_ended and not self._is_autoreset:
            raise ValueError(
                "This episode has ended, and what follows would not be recorded: call reset(). A wrapper of your own "
                "that resets by itself goes around RecordTrajectories, not into it"
            )
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._has_ended:  # this step was the reset: its action was not carried out
            self._begin(observation, info, UNKNOWN_SEED)
        elif self._episode is not None:
            self._append(self._episode, recorded, (reward, terminated, truncated), observation, info)
        return observation, reward, terminated, truncated, info

    def _append(self, episode: Episode, action: Any, outcome: tuple, observation: Any, info: dict) -> None:
        try:
            followed = self._senses.read_outcome(*outcome)
            seen = self._senses.observe(observation, info)
        except ValueError as error:
            self._episode = None  # what cannot be recorded whole is not recorded
            where = f"{episode.environment}, episode {episode.index} (seed {episode.seed})"
            raise ValueError(f"{where}, step {len(episode.actions)}: {error}") from error
        follow(episode, action, followed)
        see(episode, seen, self._senses)
        self._has_ended = followed.is_done or followed.is_truncated
        if self._has_ended:
            self._write()

    def close(self) -> None:
        self._write()
        super().close()

    def _write(self) -> None:
        """Writes the episode at hand, if anything was done in it."""
        episode, self._episode = self._episode, None
        if episode is None or not episode.actions:
            return
        episode.is_truncated |= not episode.is_done
        episode.task = task_of({sense: values[0] for sense, values in episode.observations.items()}, self.features)
        split = SPLITS[is_test_episode(self._number, self._info["test_fraction"])]
        path = episode_path(self._root, split, self._number)
        schema = episode_schema(self.features, self._senses.actors)
        if not self._number:  # the folder is a recording before there is an episode in it, wherever this ends
            write_info(self._root, {**self._info, "features": self.features})
        write_table(path, episode_table(episode, self.features, schema, self._info["fps"]))
        self._number += 1
        extremes = self._count(split, *read_summary(path))
        write_info(self._root, {**self._info, "features": bounded(self.features, [extremes])})


def _wrappers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    """The wrappers of an environment, outermost first, and the environment itself."""
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env
    yield env
