"""`pan push`: a checkpoint, an adapter or a recording goes to a Hub, each to a repository of its own, with its card; a
simulation cache does by `pan_hf/publishing/push_cache.py`.

    a checkpoint    the model, its processor and code, README.md, results/*.json: one commit
    an adapter      peft's weights, the rows that were born, the ledger, README.md: one commit
    a recording     data/<split>/*.parquet by `upload_folder`; then meta/info.json and README.md in one commit

A repository never shows half of what was pushed: until its last commit it is what it was before (of a recording, until
then it is none). Everything is looked at before anything is sent, and nothing here is changed by it. What is no longer
part of a checkpoint or a recording is removed by the same commit; files of yours stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from pan_hf.arguments import checked, named
from pan_hf.data.episodes import SPLITS, episode_files, read_info
from pan_hf.files import read_json
from pan_hf.hub import address, hub_id, patiently
from pan_hf.publishing import data_card
from pan_hf.publishing.card import FACTS, card_text, checkpoint_facts
from pan_hf.reporting.report import RESULT_FILES
from pan_hf.reporting.templates import Markdown, template
from pan_hf.tokenization.vocabulary_pan import FILE_NAME as LEDGER
from pan_hf.tokenization.vocabulary_pan import Vocabulary

Contents = Mapping[str, "Path | bytes"]

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")  # never sent: whoever loads one runs what is in it
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*_pan.py")  # stale ones would be loaded in place of the new


@checked(license=named)
def push_checkpoint(
    run: str | Path,
    repo_id: str,
    *,
    dataset: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> CommitInfo:
    """Pushes the checkpoint of a run, with a card made of the run's result files, as one commit.

    Args:
        run: a run folder, or a checkpoint.
        repo_id (`str`): "user/name"; made if absent.
        dataset (`str`, *optional*): Hub id of the recording it was trained on; the card names it, and commands that
            are given the model alone find it.
        base_model (`str`, *optional*): Hub id of what it began as, if the run does not say.
        license (`str`, *optional*): as the Hub names it, see [`checkpoint_facts`].
        private (`bool`): whether a new repository is private.
        revision (`str`, *optional*): branch to push to, made if absent; the main one by default.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: a file of it is damaged or missing, or its processor belongs to another model. Nothing was sent.
        HubError: the Hub refused or failed. The repository is as it was.
    """
    from pan_hf.checkpoints import find_checkpoint

    run, folder = Path(run), find_checkpoint(Path(run))
    _check_checkpoint(folder)
    recording = _pinned(dataset) if dataset else None
    facts = checkpoint_facts(run, model_id=repo_id, dataset=dataset, base_model=base_model, license=license)
    contents: dict[str, Path | bytes] = {path.name: path for path in _files(folder)}
    contents["README.md"] = card_text(facts, run).encode()
    measured = [f"{name}.json" for name in RESULT_FILES if (run / f"{name}.json").exists()]
    contents |= {f"results/{name}": run / name for name in measured}
    contents[f"results/{FACTS}"] = _json(facts)
    if "training_data.json" in contents:
        contents["training_data.json"] = _portable(folder / "training_data.json", recording)
    stale = (*_WEIGHTS, "results/*.json")
    return commit(repo_id, "model", contents, stale, private, revision, f"{facts['name']}: model, processor and card")


@checked(license=named)
def push_adapter(
    folder: str | Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> CommitInfo:
    """Pushes what [`pan_hf.adapters.save_adapter`] wrote, with a card, as one commit.

    Args:
        folder: that folder, or a run with it as `adapter/`.
        base_model (`str`, *optional*): Hub id of its base; what peft noted by default.
        repo_id, license, private, revision: as for [`push_checkpoint`].

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: a file is damaged, or its base is not known by a Hub id. Nothing was sent.
        HubError: the Hub refused or failed. The repository is as it was.
    """
    from pan_hf.adapters import GROWN

    folder = Path(folder) / "adapter" if (Path(folder) / "adapter").is_dir() else Path(folder)
    names = ("adapter_config.json", "adapter_model.safetensors", GROWN, LEDGER)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(f"No adapter at {folder}: {missing} are missing, which `save_adapter` writes.")
    about = _tensors(folder / GROWN)
    _tensors(folder / "adapter_model.safetensors")
    settings = read_json(folder / "adapter_config.json")
    base = _base_of(settings, base_model)
    contents: dict[str, Path | bytes] = {name: folder / name for name in names}
    contents["adapter_config.json"] = _json(settings | {"base_model_name_or_path": base})
    contents["README.md"] = _adapter_card(repo_id, base, settings, about, folder, license).encode()
    return commit(repo_id, "model", contents, (), private, revision, f"Adapter of {base}, with its card")


@checked(license=named)
def push_recording(
    run: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> CommitInfo:
    """Pushes a recording as a data set with its card; `datasets.load_dataset` and [`load_trajectories`] read it.

    Episodes that the data set has already are not sent again, so the same call goes on after an interruption.

    Args:
        run: a run folder with `data/`, or the recording itself.
        repo_id, license, private, revision: as for [`push_checkpoint`].

    Returns:
        the last commit, which makes the data set whole.

    Raises:
        FileNotFoundError: there is no recording.
        ValueError: it was stopped before its end, or an episode is damaged. Nothing was sent.
        HubError: the Hub refused or failed.
    """
    root = Path(run) / "data" if (Path(run) / "data" / "meta").is_dir() else Path(run)
    if not read_info(root)["complete"]:
        raise ValueError(f"{root}: the recording was stopped before its end; run the same `pan record` again first.")
    card = data_card.recording_card(root, repo_id, license)  # reads every file's summary: a damaged one is found here
    patterns = [f"data/{split}/*.parquet" for split in SPLITS]  # of folders in it as well
    where = {"repo_id": repo_id, "repo_type": "dataset", "revision": revision}

    def upload():
        _prepare(repo_id, "dataset", private, revision)
        with _laid_out(root) as folder:
            return HfApi().upload_folder(
                folder_path=folder,
                allow_patterns=patterns,
                delete_patterns=patterns,
                commit_message="Episodes",
                **where,
            )

    patiently(f"push the data set {repo_id}", upload)
    contents: dict[str, Path | bytes] = {"meta/info.json": root / "meta" / "info.json", "README.md": card.encode()}
    return commit(repo_id, "dataset", contents, (), private, revision, "The recording is whole: its facts and card")


# What is looked at first


def _files(folder: Path) -> list[Path]:
    """The files of a checkpoint that travel: none that are hidden, half-written or pickled."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in files if not path.name.endswith(PICKLED)]


def _check_checkpoint(folder: Path) -> None:
    names = {path.name for path in _files(folder)}
    weights = sorted(path for path in _files(folder) if path.suffix == ".safetensors")
    needed = {"processor_config.json", LEDGER} | ({"model.safetensors"} if not weights else set())
    if missing := sorted(needed - names):
        raise ValueError(f"{folder} is no whole checkpoint: {missing} are missing. Save model and processor into it.")
    for path in weights:
        _tensors(path)
    index = folder / "model.safetensors.index.json"
    shards = set(read_json(index, may_lack=True).get("weight_map", {}).values())
    if missing := sorted(shards - names):
        raise ValueError(f"{folder}: {index.name} names {missing}, which are missing. Save the model again.")
    belongs_to = read_json(folder / "config.json").get("vocabulary_digest")
    ledger = Vocabulary.load(folder).digest()
    if belongs_to != ledger:
        raise ValueError(
            f"{folder}: the model belongs to the vocabulary {belongs_to}, and its processor has {ledger}. Save both "
            "together, from one attached to the other."
        )


def _tensors(path: Path) -> dict[str, str]:
    """The metadata of a tensor file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with safe_open(path, "pt") as tensors:
            return tensors.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} was cut short or damaged ({error}). Save it again before it is pushed.") from error


def _portable(path: Path, recording: str | None) -> bytes:
    """training_data.json with a recording that others can find, and no path of this machine."""
    about = read_json(path)
    root = recording or about.pop("root", None)
    if root is not None and hub_id(root, "dataset") is not None:
        about["root"] = root
    return _json(about)


def _pinned(dataset: str) -> str:
    """`hf://datasets/user/name@commit` of a data set, so that the card's figures stay those of what was recorded."""
    published = hub_id(dataset, "dataset")
    if published is None:
        raise ValueError(f"`dataset` {dataset!r} is no Hub id; push the recording first (`pan push --data`).")
    about = patiently(
        f"look up the data set {published.id}", lambda: HfApi().dataset_info(published.id, revision=published.revision)
    )
    return f"hf://datasets/{published.id}@{about.sha}"


def _base_of(settings: dict[str, Any], named: str | None) -> str:
    base = (settings.get("base_model_name_or_path") or "") if named is None else named
    published = hub_id(address(base) or base)
    if published is None:
        raise ValueError(
            f"The adapter's base is {base!r}, which is no Hub id. Push the base first, and name it as `base_model` "
            "(`--base-model`)."
        )
    return published.id


def _adapter_card(
    repo_id: str, base: str, settings: dict[str, Any], about: dict[str, str], folder: Path, license: str | None
) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    ledger = Vocabulary.load(folder)
    segments: dict[str, int] = {}
    for item in json.loads(about["ids"]):
        name = ledger.segment_of(item)[0]
        segments[name] = segments.get(name, 0) + 1
    modules = settings.get("target_modules")
    data = ModelCardData(
        license=license,
        library_name="peft",
        base_model=base,
        base_model_relation="adapter",
        tags=["world-model", "pan"],
    )
    content = template("adapter_card.md.jinja").render(
        card_data=Markdown(data.to_yaml()),
        name=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        base_model=base,
        base_digest=about["base_digest"],
        method=settings["peft_type"],
        rank=settings.get("r", "none"),
        modules=modules if isinstance(modules, str) else ", ".join(sorted(modules or [])),
        born=sum(segments.values()),
        segments=segments,
        license=license,
    )
    ModelCard(content)  # raises if the metadata on top cannot be read back
    return content


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


# What is sent


@contextmanager
def _laid_out(root: Path) -> Iterator[Path]:
    """The recording as a Hub takes it: itself, or links to many episodes from folders of as many as are allowed."""
    if not data_card.has_many(root):
        yield root
        return
    with TemporaryDirectory() as folder:
        for split in SPLITS:
            for number, path in enumerate(episode_files(root, split).values()):
                link = Path(folder) / "data" / split / f"{number // data_card.MAX_FILES:03d}" / path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
        yield Path(folder)


def commit(
    repo_id: str,
    kind: str,
    contents: Contents,
    stale: Sequence[str],
    private: bool,
    revision: str | None,
    message: str,
) -> CommitInfo:
    """One commit on the newest: `contents` by their name in the repository, and without what fits `stale` and is not
    in them. Where another commit came first, it is made again on top of that one."""

    def work() -> CommitInfo:
        about = _prepare(repo_id, kind, private, revision)
        there = {file.rfilename for file in about.siblings or ()} - set(contents)
        gone = sorted(name for name in there if any(fnmatch(name, pattern) for pattern in stale))
        operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(name) for name in gone]
        operations += [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
        return HfApi().create_commit(
            repo_id,
            operations,
            repo_type=kind,
            revision=revision,
            parent_commit=about.sha,
            commit_message=message,
        )

    return patiently(f"push the {'data set' if kind == 'dataset' else kind} {repo_id}", work)


def _prepare(repo_id: str, kind: str, private: bool, revision: str | None):
    """Makes the repository and the branch where they are absent; returns what the Hub knows of them.

    Raises:
        ValueError: a name that no repository can have, or what is to be private is public already.
    """
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(f"`repo_id` {repo_id!r} is no name of a repository, such as user/name: {error}") from error
    api = HfApi()
    api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, repo_type=kind, branch=revision, exist_ok=True)
    about = api.repo_info(repo_id, repo_type=kind, revision=revision)
    if private and not about.private:
        raise ValueError(
            f"{repo_id} is public already, so nothing was sent. Make it private in its settings, or name another one."
        )
    return about
