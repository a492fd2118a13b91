"""`pan push --cache`: a simulation cache goes to a Hub as a data set, with its card.

What is pushed are the entries that hold for one model, as `pan cache --export` writes them: `outcomes.parquet`,
`planned.parquet` and README.md, in one commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData

from pan_hf.arguments import checked, named
from pan_hf.checkpoints import results_folder
from pan_hf.evaluation.cache_dataset import CACHE, OUTCOMES, PLANNED, export_cache
from pan_hf.evaluation.cache_summary import describe_cache
from pan_hf.hub import hub_id
from pan_hf.modeling.effort_pan import Effort
from pan_hf.publishing.data_card import size_category
from pan_hf.publishing.push import commit
from pan_hf.reporting.templates import Markdown, template

TAGS = ("world-model", "pan", "simulation-cache")


@checked(license=named)
def push_cache(
    run: str | Path,
    repo_id: str,
    *,
    cache: str | Path | None = None,
    model: str | None = None,
    effort: Any = None,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> CommitInfo:
    """Pushes the entries of a simulation cache that hold for a model, with a card, as one commit.

    Args:
        run: a run folder with `cache/`, `checkpoint/` and, for the coverage that the card tells, `data/`.
        repo_id (`str`): "user/name"; made if absent.
        cache (`str` or `Path`, *optional*): folder of the cache, in place of the run's.
        model (`str`, *optional*): Hub id of the model, which the card names; entries have to hold for what is there.
        effort (*optional*): what the imagined steps may have spent, as of `precompute`.
        license, private, revision: as for [`~pan_hf.publishing.push.push_checkpoint`].

    Raises:
        FileNotFoundError: there is no cache, or no checkpoint.
        ValueError: nothing in it holds for the model, it is damaged, or `model` is no Hub id. Nothing was sent.
        HubError: the Hub refused or failed. The repository is as it was.
    """
    if model is not None and hub_id(model) is None:
        raise ValueError(f"`model` {model!r} is no Hub id; push the checkpoint first (`pan push`).")
    place = Path(cache) if cache is not None else results_folder(run, None) / CACHE
    with TemporaryDirectory() as temporary:
        folder = export_cache(model or run, Path(temporary) / CACHE, cache=place, effort=effort)
        contents: dict[str, Path | bytes] = {name: folder / name for name in (OUTCOMES, PLANNED)}
        told = _described(model or run, Path(run), place, effort)
        contents["README.md"] = cache_card(folder, told, repo_id, model, license, effort).encode()
        return commit(repo_id, "dataset", contents, (), private, revision, "Simulation cache, with its card")


def _described(of: str | Path, run: Path, place: Path, effort: Any) -> dict[str, Any]:
    """What `describe_cache` tells; without coverage where there is no recording."""
    data = run / "data" if (run / "data").exists() else None
    try:
        return describe_cache(of, data, cache=place, effort=effort)
    except FileNotFoundError:
        return describe_cache(of, cache=place, samples=0, effort=effort)


def cache_card(
    folder: Path, told: dict[str, Any], repo_id: str, model: str | None, license: str | None, effort: Any = None
) -> str:
    """The card of a cache. Args: folder, as `export_cache` wrote it; told, by `describe_cache`."""
    about = pq.read_metadata(folder / OUTCOMES)
    scope, entries = json.loads(about.metadata[b"pan"]), about.num_rows
    name = repo_id.rpartition("/")[2]
    files = [{"config_name": Path(file).stem, "data_files": file} for file in (OUTCOMES, PLANNED)]
    data = DatasetCardData(
        license=license,
        pretty_name=name,
        size_categories=[size_category(entries)],
        task_categories=["reinforcement-learning"],
        tags=list(TAGS),
        configs=files,
    )
    content = template("cache_card.md.jinja").render(
        card_data=Markdown(data.to_yaml()),
        name=name,
        repo_id=repo_id,
        model=model,
        entries=entries,
        states=told["states"],
        planned=pq.read_metadata(folder / PLANNED).num_rows,
        coverage=None if "coverage" not in told else f"{told['coverage']:.0%}",
        digest=scope["digest"],
        ledger=scope["ledger"],
        license=license,
        effort=effort_text(effort),
    )
    DatasetCard(content)  # raises if the metadata on top cannot be read back
    return content


def effort_text(effort: Any) -> str | None:
    """An effort as `pan --effort` takes it, see [`~pan_hf.agents.world.parse_effort`]."""
    if effort is None or isinstance(effort, str):
        return effort
    if not isinstance(effort, Effort):
        return ",".join(effort)
    usual = vars(Effort())
    given = {name: value for name, value in vars(effort).items() if value != usual[name]}
    blocks = given.pop("blocks", ())
    return ",".join([*blocks, *(f"{name}={value}" for name, value in given.items())]) or "auto"
