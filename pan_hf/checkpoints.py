"""Checkpoints and recordings of a run: how they are found, loaded and saved.

A model whose backbone was loaded is written in three files, of which the first two seldom change:

    model-00001-of-00003.safetensors    the backbone without its table
    model-00002-of-00003.safetensors    the table, words and codes
    model-00003-of-00003.safetensors    everything else
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pan_hf.console import without_bars
from pan_hf.files import finish_writing, read_json, whole_folder
from pan_hf.hub import hub_id, on_disk
from pan_hf.modeling import PanModel
from pan_hf.tokenization import PanProcessor

PARTS = tuple(f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3))


@without_bars()
def save_checkpoint(
    folder: str | Path,
    model: PanModel,
    processor: PanProcessor,
    files: dict[str, str] | None = None,
    before: str | Path | None = None,
) -> None:
    """Saves model and processor into a folder that changes whole or not at all; files of a user's own in it stay.

    Args:
        folder: where to.
        files (`dict[str, str]`, *optional*): name -> text, saved with them.
        before (*optional*): a checkpoint that the model was made from. What is the same in it is linked and not
            written again; either folder can be removed without the other.

    Raises:
        ValueError: another process has grown the vocabulary in the folder otherwise.
    """
    with whole_folder(folder) as temporary:
        if processor.vocabulary is not None:
            processor.vocabulary.check_replaces(folder)
        if model.is_world_model and model.config.training.backbone_is_pretrained:
            _save_in_parts(temporary, model, before)
        else:
            model.save_pretrained(temporary)
        if model.processor is not processor:  # an attached one has been saved with its model
            processor.save_pretrained(temporary)
        for name, text in (files or {}).items():
            (temporary / name).write_text(text)


def _save_in_parts(folder: Path, model: PanModel, before: str | Path | None) -> None:
    tables = {id(table) for table in model.table.weights()}
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in PARTS}
    for name, tensor in model.state_dict(keep_vars=True).items():
        number = 2 if not name.startswith("language_model.") else int(id(tensor) in tables)
        if name not in model.all_tied_weights_keys:
            parts[PARTS[number]][name] = tensor.detach().cpu().contiguous()
    index = {name: part for part, tensors in parts.items() for name in tensors}
    size = sum(tensor.nbytes for tensors in parts.values() for tensor in tensors.values())
    model.save_pretrained(folder, state_dict=parts[PARTS[-1]])
    (folder / "model.safetensors").rename(folder / PARTS[-1])
    for part in PARTS[:-1]:
        if before is not None and _holds(Path(before) / part, parts[part]):
            link(Path(before) / part, folder / part)
        else:
            save_file(parts[part], folder / part, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": index}, indent=1)
    )


def _holds(path: Path, tensors: dict[str, Tensor]) -> bool:
    """Whether a file holds these tensors and no others."""
    if not path.exists():
        return False
    with safe_open(path, "pt") as file:
        if {*file.keys()} != {*tensors}:
            return False
        held = ((file.get_tensor(name), tensor) for name, tensor in tensors.items())
        return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in held)


def link(source: str | Path, target: str | Path) -> None:
    """Another name for a file that is never written in place; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def find_checkpoint(path: str | Path, adapters: bool = False) -> Path:
    """The checkpoint folder that `path`, itself a checkpoint or a run folder with `checkpoint/` or a Hub id, names.

    Args:
        path: where to look.
        adapters (`bool`): where there is no checkpoint, an adapter's folder does, `path` itself or `adapter/` in it.

    Raises:
        FileNotFoundError: there is none.
        HubError: the Hub did not give it.
    """
    path = on_disk(path)
    for folder in (path / "checkpoint", path / "adapter", path):
        finish_writing(folder)
    for folder in (path / "checkpoint", path):
        if (folder / "config.json").exists():
            return folder
    for folder in (path / "adapter", path):
        if (folder / "adapter_config.json").exists():
            if adapters:
                return folder
            raise FileNotFoundError(
                f"No checkpoint at {path}, only an adapter: `pan finetune ... --merge`, run again, makes one; "
                "what a stage of `pan train` left is in the run's checkpoint/ once all are done."
            )
    raise FileNotFoundError(
        f"No checkpoint at {path}: expected config.json in it or in its folder checkpoint/. `pan train` makes one."
    )


def trained_seeds(run: str | Path) -> list[int]:
    """The seed that a run was trained with by `pan train`; none where the folder does not tell."""
    settings = Path(run) / "stages" / "settings.json"
    return [read_json(settings)["seed"]] if settings.is_file() else []


def results_folder(run: str | Path, output: str | Path | None) -> Path:
    """Where results go: `output` if given, else the run's own folder.

    Raises:
        ValueError: no `output`, and the checkpoint is on a Hub.
        FileNotFoundError: no `output`, and no checkpoint.
    """
    if output is not None:
        return Path(output)
    if hub_id(run) is not None:
        raise ValueError(f"{run} is on a Hub, so results need a folder; give `output` (`--run` of `pan`).")
    return find_checkpoint(run, adapters=True).parent


def find_recording(checkpoint: Path, given: str | Path | None) -> Path:
    """The folder of the recording: `given`, a folder or a Hub id, or else what training_data.json says, which is seen
    from here or from the run folder.

    Raises:
        FileNotFoundError: none is given and none is known, or it is no longer there.
        HubError: the Hub did not give it.
    """
    if given is not None:
        return on_disk(given, "dataset")
    about = checkpoint / "training_data.json"
    known = read_json(about, may_lack=True).get("root")
    if known is None:
        raise FileNotFoundError(f"{about} does not name a recording; pass `data_root` (`--data` of `pan`).")
    if hub_id(known, "dataset") is not None and known.startswith("hf://"):
        return on_disk(known, "dataset")
    for place in (Path(known), checkpoint / known, checkpoint.parent / known):
        if (place / "meta" / "info.json").exists():
            return place
    raise FileNotFoundError(
        f"{about} says that the recording lies in {known}, but it is not there; pass `data_root`, where it is now."
    )


def trained_fingerprints(checkpoint: Path) -> set[str]:
    """Fingerprints of all episodes that any stage trained on, from the checkpoint's training_data.json.

    Raises:
        ValueError: the file is absent or unreadable, so nothing shows which episodes are held out.
    """
    path = Path(checkpoint) / "training_data.json"
    try:
        return set(read_json(path)["fingerprints"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not say which episodes the checkpoint was trained on ({error!r}), so nothing shows that the "
            "episodes to evaluate on are held out. Use a checkpoint written by `pan train`."
        ) from error


@without_bars()
def load(path: str | Path) -> tuple[PanModel, PanProcessor]:
    """Model and processor of a run or checkpoint, or of its Hub id, attached to one another; an adapter is
    merged into its base.

    Raises:
        FileNotFoundError: there is no checkpoint, or an adapter's base is not where it was.
        ValueError: the two do not belong together.
    """
    folder = find_checkpoint(path, adapters=True)
    if not (folder / "config.json").exists():
        return _load_adapted(folder)
    model, processor = PanModel.from_pretrained(folder), PanProcessor.from_pretrained(folder)
    processor.attach(model)
    return model.eval(), processor


def _load_adapted(folder: Path) -> tuple[PanModel, PanProcessor]:
    from pan_hf.adapters import base_of, load_adapter

    model, processor = load(find_checkpoint(base_of(folder)))
    model = load_adapter(model, folder).merge_and_unload()
    return model.eval(), processor
