"""What an installation may lack: `pip install pan_hf` brings what a model needs, `pan_hf[extra]` the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Imports of an optional library stand below it: `with extra("report", "pan report"): import jinja2`.

    Args:
        name (`str`): the extra of pyproject.toml that has the library.
        purpose (`str`): what needs it.

    Raises:
        ImportError: a library is not installed; the message says how it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "pan_hf":
            raise
        raise ImportError(f"{purpose} needs {missing}: pip install 'pan_hf[{name}]'", name=missing) from error
