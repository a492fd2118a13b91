"""Loading that never guesses: a checkpoint that is cut short, edited or of another model is one clear error.

Transformers warns about tensors that are missing and fills them with random numbers, which is what one wants when a
backbone gets a new head. A world model with a random decoder only looks broken, so here it is an error.
"""

import contextlib
import json
import logging
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from .configuration_pan import VERSION, newer_version

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_MANY = 4  # names shown of a long list
_RESTORE = "Restore config.json and every safetensors file from the same checkpoint, or save the model again."


def check_folder(folder: str | Path) -> None:
    """Raises before anything is loaded where `folder` is a path to nothing, or to another kind of model.

    Raises:
        FileNotFoundError: it reads like a path and is not there.
        ValueError: its `config.json` describes another kind of model, or its tensors are pickles.
    """
    if folder is None:  # a configuration and a state dict instead
        return
    path = Path(folder)
    if not path.exists() and (path.is_absolute() or str(folder).startswith((".", "~"))):
        raise FileNotFoundError(f"No checkpoint at {folder}; expected a folder with config.json, model.safetensors.")
    config = path / "config.json"
    if not config.is_file():
        return
    with contextlib.suppress(json.JSONDecodeError):  # Transformers says that well
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        if kind != "pan":
            raise ValueError(
                f"{config}: expected a PAN world model (model_type 'pan'), got {kind!r}. To turn a language model "
                f"into one, use PanModel.from_backbone({str(folder)!r}, senses=..., action=...)."
            )
    pickles = sorted(found.name for ending in _PICKLES for found in path.glob(f"*model*{ending}"))
    if pickles and not _tensor_files(path):
        raise ValueError(
            f"{folder} holds its tensors in {', '.join(pickles)}, a pickle, which can run any code when it is read. "
            "Only safetensors are loaded: have it saved again with save_pretrained, as model.safetensors."
        )


@contextlib.contextmanager
def explained(folder: str | Path):
    """Names the file that cannot be read or the folder with the configuration that makes no sense, and keeps
    Transformers from reporting what `check_loaded` raises."""
    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(_is_no_report)
    try:
        yield
    except SafetensorError as error:
        damaged = [f"{path} ({reason})" for path in _tensor_files(folder) if (reason := _damage(path))]
        raise ValueError(
            f"Cannot read {', '.join(damaged) or folder}: {error}. The file was cut short or damaged. {_RESTORE}"
        ) from error
    except (StrictDataclassError, ValueError) as error:
        note = _newer(folder)
        raise ValueError(f"Cannot load {folder}: {error}{'' if note in str(error) else note}") from error
    finally:
        log.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def check_loaded(folder: str | Path, info: dict, allow_other_shapes: bool = False) -> None:
    """Raises ValueError unless the checkpoint held exactly the tensors that its configuration calls for.

    Args:
        folder: where it came from.
        info (`dict`): Transformers' loading info: missing, unexpected and mismatched keys.
        allow_other_shapes (`bool`): the user asked for `ignore_mismatched_sizes`.
    """
    found = []
    if info["missing_keys"]:
        found.append(f"missing: {_names(info['missing_keys'])}")
    if info["unexpected_keys"]:
        held = _files_of(folder, info["unexpected_keys"])
        found.append(f"not in the configuration: {_names(info['unexpected_keys'])}{held}")
    if info["mismatched_keys"] and not allow_other_shapes:
        shapes = [
            f"{name} is {tuple(there)} in the file and {tuple(here)} by config.json"
            for name, there, here in sorted(info["mismatched_keys"])
        ]
        found.append(f"of another shape: {_names(shapes)}")
    if found:
        remedy = _newer(folder) or f" {_RESTORE}"
        raise ValueError(f"{folder}: its tensors do not fit its config.json; {'; '.join(found)}.{remedy}")


def _newer(folder: str | Path) -> str:
    """What helps if a newer version wrote this folder; empty if none did."""
    try:
        return newer_version(json.loads((Path(folder) / "config.json").read_text("utf-8")).get("pan_version", VERSION))
    except (OSError, ValueError, TypeError):  # not here, or not readable: then another sentence says so
        return ""


def _names(names) -> str:
    names = sorted(names)
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more


def _tensor_files(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).glob("*.safetensors")) if Path(folder).is_dir() else []


def _damage(path: Path) -> str | None:
    try:
        with safe_open(path, "pt"):
            return None
    except (SafetensorError, OSError) as error:
        return f"{path.stat().st_size} bytes: {error}"


def _files_of(folder: str | Path, names) -> str:
    holding = set()
    for path in _tensor_files(folder):
        with safe_open(path, "pt") as tensors:
            if set(tensors.keys()) & set(names):
                holding.add(path.name)
    return f" (in {', '.join(sorted(holding))})" if holding else ""
