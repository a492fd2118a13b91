"""A Hub id wherever a folder may stand, and one clear sentence for whatever a Hub answers.

    user/name                              the newest commit
    user/name@revision                     a branch, a tag or a commit
    hf://user/name, hf://datasets/user/name@revision

A folder on this machine comes first: `runs/mine` is an id only where there is no folder `runs`, and a `Path`, unlike
a `str`, is always a folder. What is on a Hub is downloaded into huggingface_hub's cache as one commit; a download that
broke off goes on where it was. `HF_ENDPOINT` names another Hub, `HF_TOKEN` or `hf auth login` says who asks.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, HfUri, parse_hf_uri, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

Answer = TypeVar("Answer")
# what huggingface_hub's client raises, without naming which client that is
_HTTPError, _ = HfHubHTTPError.__bases__

WAITS = (1.0, 4.0)  # seconds before the second and the third attempt
_PASSING = (408, 409, 412, 425, 429, 500, 502, 503, 504)  # what another attempt can mend; 409, 412: another's commit
_PLAIN_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@\S+)?")
_CACHED = re.compile(r"/(?P<kind>models|datasets)--(?P<user>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<sha>[0-9a-f]{40})$")
_log = logging.getLogger(__name__)


class HubError(OSError):
    """A Hub did not do what it was asked; the message says what, of which repository, and what to do about it."""


def hub_id(path: str | Path, kind: str = "model") -> HfUri | None:
    """What `path` names on a Hub; None where it names, or can only be meant as, a folder. Asks nobody.

    Args:
        kind (`str`): "model" or "dataset".

    Raises:
        ValueError: it begins with `hf://` but is no address of such a repository.
    """
    if isinstance(path, Path):
        return None
    if not isinstance(path, str):
        raise ValueError(f"Expected a folder or the name of a {kind} on a Hub, got {path!r:.80}.")
    if "\0" in path:
        raise ValueError(f"No folder and no {kind} on a Hub has a null byte in its name, got {path!r:.80}.")
    text = path
    prefix = "datasets/" if kind == "dataset" else ""
    if not text.startswith("hf://"):
        if not _PLAIN_ID.fullmatch(text) or Path(path).exists() or Path(text.partition("/")[0]).exists():
            return None
        text = f"hf://{prefix}{text}"
    uri = parse_hf_uri(text)
    if uri.type != kind or uri.path_in_repo:
        raise ValueError(f"{path!r} is not the address of a {kind}; expected hf://{prefix}user/name@revision.")
    return uri


def on_disk(
    path: str | Path, kind: str = "model", revision: str | None = None, only: Sequence[str] | None = None
) -> Path:
    """The folder that `path` names: itself, or what a Hub holds under that id, downloaded.

    Args:
        path: a folder or a Hub id.
        kind (`str`): "model" or "dataset".
        revision (`str`, *optional*): a branch, tag or commit of the repository.
        only (`Sequence[str]`, *optional*): patterns of the files to download.

    Raises:
        ValueError: no name, a revision of a folder, or two that differ.
        HubError: the Hub did not give it; files that were there before are as they were.
    """
    if path == "":
        raise ValueError(f"Expected a folder or the name of a {kind} on a Hub, got {path!r}.")
    uri = hub_id(path, kind)
    if uri is None:
        if revision is not None:
            raise ValueError(f"{path} is a folder, which has no revision {revision!r}; leave `revision` out.")
        return Path(path)
    if revision is not None and uri.revision not in (None, revision):
        raise ValueError(f"{path} names the revision {uri.revision!r}, and `revision` is {revision!r}; give one.")
    at, patterns = revision or uri.revision, None if only is None else list(only)
    task = f"download the {kind} {uri.id}" + (f" at {at}" if at else "")
    return Path(
        patiently(task, lambda: snapshot_download(uri.id, repo_type=kind, revision=at, allow_patterns=patterns))
    )


def address(folder: str | Path) -> str | None:
    """`hf://...@commit` of a folder in huggingface_hub's cache, by which other machines find it; None of others."""
    found = _CACHED.search(Path(folder).absolute().as_posix())
    if found is None:
        return None
    prefix = "datasets/" if found["kind"] == "datasets" else ""
    return f"hf://{prefix}{found['user']}/{found['name']}@{found['sha']}"


def patiently(task: str, work: Callable[[], Answer]) -> Answer:
    """Does `work`, and again where a Hub stumbled: a server that failed, a connection that broke, another's commit.

    Args:
        task (`str`): what is done, as in "push the model user/name".
        work: asks a Hub; doing it twice has to be as good as doing it once.

    Raises:
        HubError: it failed, three times where that could help.
    """
    for wait in (*WAITS, None):
        try:
            return work()
        except Exception as error:
            reason = _reason(error)
            if reason is None:
                raise
            if wait is None or not _is_passing(reason):
                raise HubError(f"Could not {task} ({HfApi().endpoint}). {_advice(reason)}") from error
            _log.warning("%s; trying to %s again in %g s", _short(reason), task, wait)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _reason(error: Exception) -> Exception | None:
    """What went wrong between here and the Hub; None where something else did."""
    asking = (_HTTPError, OfflineModeIsEnabled, json.JSONDecodeError)
    cause: BaseException | None = error
    while cause is not None:  # huggingface_hub wraps some: in RuntimeError (uploads), FileNotFoundError (downloads)
        if isinstance(cause, asking):
            return cause  # type: ignore[return-value]  # all of them are
        cause = cause.__cause__
    is_other = isinstance(error, LocalEntryNotFoundError) or "Consistency check failed" in str(error)
    return error if is_other else None


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _is_passing(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return _status(error) in _PASSING
    return not isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)) and not _is_unreachable(error)


def _is_unreachable(error: Exception) -> bool:
    return type(error).__name__ == "ConnectError"


def _short(error: Exception) -> str:
    status = _status(error)
    said = getattr(error, "server_message", None) or str(error).strip().partition("\n")[0]
    return f"the Hub answered {status}: {said}" if status else f"{type(error).__name__}: {said}"


def _advice(error: Exception) -> str:
    """What happened, as the Hub said it, and what to do."""
    status, said = _status(error), _short(error)
    if isinstance(error, RevisionNotFoundError):
        return f"There is no such revision ({said}); name a branch, a tag or a commit that the repository has."
    if status in (401, 403):
        return (
            f"It is not open to you ({said}). Check the name; log in with `hf auth login`, or set HF_TOKEN to a token "
            "that may read it, or write to it for a push."
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"There is no such repository ({said}). Check the name; private ones are shown after `hf auth login`."
    if status in (409, 412):
        return f"Someone else was writing to it at the same time ({said}). Run the same again; nothing was mixed."
    if status in _PASSING:
        return f"It failed {len(WAITS) + 1} times ({said}). Nothing here was changed; run the same again later."
    if status:
        return f"It was refused ({said})."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to reach the Hub."
    if isinstance(error, json.JSONDecodeError):
        return "The answer is not a Hub's; check HF_ENDPOINT, and proxies on the way."
    if _is_unreachable(error):
        return f"It cannot be reached ({said}). Check the network and HF_ENDPOINT; nothing here was changed."
    return f"The connection broke off ({said}). Run the same again: what arrived is not sent twice."
