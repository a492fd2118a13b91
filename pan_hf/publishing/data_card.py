"""The card of a recording, as a Hub shows it: what was recorded, how, and how much, all read off the files.

The metadata on top says which files are which split and what their columns are (`configs`, `dataset_info`), so that
`datasets.load_dataset` and the Hub's viewer need no code.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from pan_hf.data.episodes import SPLITS, episode_files, episode_schema, read_columns, read_info, read_summary
from pan_hf.features import feature_of
from pan_hf.reporting.tables import markdown_table
from pan_hf.reporting.templates import Markdown, code, escaped, template

MAX_FILES = 10_000  # a Hub takes no more of them in one folder
TAGS = ("world-model", "pan", "trajectories")
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")  # as the Hub names them


def recording_card(root: str | Path, repo_id: str, license: str | None = None) -> str:
    """The data set card of a recording, metadata included.

    Args:
        root: the folder that `pan record` wrote.
        repo_id (`str`): where it is published, "user/name".
        license (`str`, *optional*): as the Hub names it; that of an environment is not known here.

    Raises:
        FileNotFoundError: `root` holds no recording.
        ValueError: a file of it is damaged.
    """
    root = Path(root)
    info = read_info(root)
    episodes, frames, sizes = _counts(root)
    total = {"episodes": episodes.total(), "frames": frames.total()}
    name = repo_id.rpartition("/")[2]
    content = template("dataset_card.md.jinja").render(
        version=info["version"],
        card_data=Markdown(_card_data(info, name, frames, sizes, "*/" if has_many(root) else "", license).to_yaml()),
        name=name,
        repo_id=repo_id,
        license=license,
        total=total,
        counts=_count_table(episodes, frames),
        features=_feature_table(info["features"]),
        origin=_origin(info),
    )
    DatasetCard(content)  # raises if the metadata on top cannot be read back
    return content


def has_many(root: Path) -> bool:
    """Whether a split has more episodes than a Hub takes in one folder."""
    return any(len(episode_files(root, split)) > MAX_FILES for split in SPLITS)


def _counts(root: Path) -> tuple[Counter, Counter, Counter]:
    """Episodes and frames by (environment, split), bytes by split."""
    episodes: Counter[tuple[str, str]] = Counter()
    frames: Counter[tuple[str, str]] = Counter()
    sizes: Counter[str] = Counter()
    for split in SPLITS:
        for path in episode_files(root, split).values():
            rows, _ = read_summary(path)
            environment = read_columns(path, ["environment"])["environment"][0].as_py()
            episodes[environment, split] += 1
            frames[environment, split] += rows
            sizes[split] += path.stat().st_size
    return episodes, frames, sizes


def _card_data(
    info: dict, name: str, frames: Counter, sizes: Counter, below: str, license: str | None
) -> DatasetCardData:
    import datasets
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs

    rows = {split: sum(count for (_, where), count in frames.items() if where == split) for split in SPLITS}
    splits = [split for split in SPLITS if rows[split]]
    data = DatasetCardData(
        license=license,
        pretty_name=name,
        size_categories=[size_category(sum(rows.values()))],
        task_categories=["reinforcement-learning"],
        tags=list(TAGS),
    )
    counted = [datasets.SplitInfo(split, num_bytes=sizes[split], num_examples=rows[split]) for split in splits]
    about = datasets.DatasetInfo(
        features=datasets.Features.from_arrow_schema(episode_schema(info["features"], info.get("actors", ()))),
        splits=datasets.SplitDict({split.name: split for split in counted}),
    )
    DatasetInfosDict({"default": about}).to_dataset_card_data(data)
    files = [{"split": split, "path": f"data/{split}/{below}*.parquet"} for split in splits]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    return data


def size_category(rows: int) -> str:
    """How the Hub names the size of a data set."""
    return next((text for power, text in enumerate(_SIZES, start=3) if rows < 10**power), "n>100M")


def _count_table(episodes: Counter, frames: Counter) -> str:
    rows = [[name, split, str(count), str(frames[name, split])] for (name, split), count in sorted(episodes.items())]
    return markdown_table(["environment", "split", "episodes", "frames"], rows, lead=2)


def _feature_table(features: dict[str, dict]) -> str:
    rows = [[code(name), feature_of(one).words()] for name, one in features.items()]
    return markdown_table(["column", "what"], rows, lead=2)


def _origin(info: dict[str, Any]) -> list[Markdown]:
    """How it came to be, a line each; what was not set is left out."""
    recording, source = info.get("recording") or {}, info.get("source") or {}
    lines = [f"Environment: {_settings(code(entry['id']), entry)}" for entry in info["environments"]]
    if source.get("kind") == "mirrored":
        flips = ", ".join(map(escaped, source["flips"]))
        lines.append(f"Beside each training episode stand {escaped(source['copies'])} mirror images of it ({flips})")
    elif source:
        lines.append(f"Imported from {_settings(Markdown('other data'), source)}")
    if policies := recording.get("policy"):
        drawn = ", one of them drawn for each episode" if len(policies) > 1 else ""
        lines.append(f"Policy: {', '.join(map(code, policies))}{drawn}")
    if steps := recording.get("explore_steps"):
        lines.append(f"Before each episode: up to {escaped(steps)} random steps that are not recorded")
    if start := recording.get("start"):
        lines.append(f"Starting states: set by {code(start)}")
    if limit := recording.get("max_episode_steps"):
        lines.append(f"Episodes are cut after {escaped(limit)} steps")
    lines += [f"Seed: {escaped(info['seed'])}"] if info.get("seed") is not None else []
    return [Markdown(line) for line in (*lines, f"Frames a second: {info['fps']:g}")]


def _settings(what: Markdown, entry: dict[str, Any]) -> str:
    """What was set, in words; nothing where nothing was."""
    settings = [f"{escaped(name)} {code(value)}" for name, value in entry.items() if name != "id" and value]
    return f"{what} with {', '.join(settings)}" if settings else what
