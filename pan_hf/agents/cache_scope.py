"""For which model entries of a cache hold: a digest of everything that a prediction depends on.

Weights and configuration go into it, and of the one vocabulary the rows that were tokens when the entries were made.
Ids never change meaning, so a model that has grown since has the same digest *over those rows*, and the entries of its
ancestor stay of use. A row that has changed, or has retired since, makes another digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pan_hf.arguments import as_type

# fields of a configuration that growth changes, or that say where a model is from
_GROWS = {"names", "num_actions", "capacity", "codebook_size", "codebook_capacity", "merge_capacity", "extensions"}
_GROWS |= {"vocabulary_digest", "text_size", "text_capacity", "code_capacity", "vocab_size", "segments"}
_FROM = {"transformers_version", "_name_or_path", "auto_map", "architectures", "dtype", "torch_dtype"}
# of a codebook, what only its training looks at
_LEARNING = ("usage", "sums")

Runs = list[list[int]]
"""Rows of a table, as [first, last + 1] of each run of neighbours."""


@dataclass(frozen=True)
class Scope:
    """What entries hold for.

    Args:
        digest (`str`): of weights, configuration and effort, over `rows`.
        rows: of the vocabulary that were tokens.
        ledger (`str`): digest of the vocabulary's ledger, for messages; "" without one.
        events (`int`): how many events that ledger had.

    Raises:
        ValueError: another type; a scope is read from files too.
    """

    digest: str
    rows: Runs
    ledger: str = ""
    events: int = 0

    def __post_init__(self):
        for name, kind in {"digest": str, "rows": Runs, "ledger": str, "events": int}.items():
            as_type(name, getattr(self, name), kind)
        if any(len(run) != 2 or not 0 <= run[0] <= run[1] for run in self.rows):
            raise ValueError(f"rows: expected [first, last + 1] of each run, got {str(self.rows):.80}")

    def holds_for(self, world: Any) -> bool:
        """Whether a model predicts as the one did that made the entries, as far as its vocabulary went then."""
        model = model_of(world)
        rows = _mask(self.rows, model) if hasattr(model, "born_rows") else None
        return (rows is not None or not self.rows) and digest_of(world, rows) == self.digest


def scope_of(world: Any, name: str | None = None) -> Scope:
    """The scope of a world as it is now.

    Args:
        world: a [`PanModel`], wrapped or not, or any other with `state_dict`.
        name (`str`, *optional*): in place of weights, of a world that has none.

    Raises:
        ValueError: neither weights nor a name.
    """
    if name is not None:
        return Scope(hashlib.sha256(name.encode()).hexdigest()[:32], [])
    model = model_of(world)
    if not hasattr(model, "state_dict"):
        raise ValueError(
            f"A cache holds for the weights of a model, and a {type(world).__name__} has none; give it a `scope`, a "
            "name that changes whenever this world does."
        )
    born = getattr(model, "born_rows", None)
    vocabulary = getattr(getattr(model, "processor", None), "vocabulary", None)
    return Scope(
        digest_of(world, born),
        [] if born is None else _runs(born),
        "" if vocabulary is None else vocabulary.digest(),
        0 if vocabulary is None else len(vocabulary.events),
    )


@torch.no_grad()
def digest_of(world: Any, rows: Tensor | None) -> str:
    """Digest of a world's predictions. Args: rows, bool `(vocab_size,)`, which of its vocabulary count."""
    model, digest = model_of(world), hashlib.blake2b(digest_size=16)
    settings = {"config": _settings(model), "effort": repr(getattr(world, "effort", None))}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in _counted(model, rows):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(numbers.data)
    return digest.hexdigest()


def tensors_of(world: Any) -> list[Tensor]:
    """Every weight and buffer of a world; none where it has none."""
    model = model_of(world)
    return [*model.parameters(), *model.buffers()] if hasattr(model, "state_dict") else []


def fingerprint(tensors: list[Tensor]) -> int:
    """Changes whenever one of the tensors is written in place, as training and growth do; microseconds, and valid in
    this process only."""
    return sum(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def model_of(world: Any) -> Any:
    """What wrappers of a world pass their questions on to."""
    while "_model" in vars(world):
        world = vars(world)["_model"]
    return world


def _settings(model: Any) -> Any:
    config = model.config.to_dict() if hasattr(model.config, "to_dict") else vars(model.config)

    def without(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): without(v) for k, v in value.items() if k not in _GROWS | _FROM}
        return [without(item) for item in value] if isinstance(value, list | tuple) else value

    return without(config)


def _counted(model: Any, rows: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a prediction depends on, by name; of those with a row a token, the rows that count."""
    tables = {id(table) for table in model.table.weights()} if rows is not None else set()
    books = _books(model, rows) if rows is not None else {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        book = next((prefix for prefix in books if name.startswith(prefix)), None)
        if rows is not None and (id(tensor) in tables or name in ("live_rows", "born_rows")):
            yield name, tensor[rows[: len(tensor)].nonzero().squeeze(1)]
        elif book is not None and name.removeprefix(book) != "started":
            if not name.endswith(_LEARNING):
                yield name, tensor[books[book]]
        else:
            yield name, tensor


def _books(model: Any, rows: Tensor) -> dict[str, Tensor]:
    """By the prefix of its tensors' names, which codes of a codebook count."""
    books = {}
    for part, codec in model.senses.items():
        for level in range(len(getattr(codec, "codebooks", ()) or ())):
            mask = rows[model.table.segment_rows(part, level)]
            books[f"senses.{part}.codebooks.{level}."] = mask.nonzero().squeeze(1)
    return books


def _runs(mask: Tensor) -> Runs:
    edges = torch.diff(mask.cpu().int(), prepend=torch.zeros(1).int(), append=torch.zeros(1).int())
    firsts, ends = (edges == 1).nonzero().squeeze(1), (edges == -1).nonzero().squeeze(1)
    return [list(run) for run in zip(firsts.tolist(), ends.tolist(), strict=True)]


def _mask(runs: Runs, model: Any) -> Tensor | None:
    """Rows as a mask of a model's table; None where it has not as many rows."""
    mask = torch.zeros_like(model.born_rows)
    for first, end in runs:
        if end > len(mask):
            return None
        mask[first:end] = True
    return mask


# ---- what values are kept by


def task_of(critic: Any, name: str | None = None) -> str:
    """A digest of what a critic wants: its class and its fields, tensors by their numbers.

    Args:
        name (`str`, *optional*): in its place.

    Raises:
        ValueError: it holds something that no digest tells apart, such as a lambda with a closure.
    """
    if name is not None:
        return hashlib.sha256(name.encode()).hexdigest()[:32]
    return hashlib.sha256(json.dumps(_described(critic), sort_keys=True).encode()).hexdigest()[:32]


def _described(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: _described(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", "fields": fields}
    if isinstance(value, Tensor):
        return {"numbers": value.detach().cpu().tolist(), "dtype": str(value.dtype)}
    if isinstance(value, Mapping):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, torch.nn.Module):
        return {name: _described(tensor) for name, tensor in value.state_dict().items()}
    if isinstance(value, types.FunctionType) and not value.__closure__:
        defaults = _described([value.__defaults__, value.__kwdefaults__])
        return [value.__module__, value.__qualname__, _code(value.__code__), defaults]
    raise ValueError(
        f"Values are kept by goal and critic, and nothing tells {value!r:.80} from another; give the cache a `task`, "
        "a name that changes whenever what is wanted does."
    )


def _code(code: types.CodeType) -> list:
    """What a function does: its instructions, and the constants, names and functions in them."""
    constants = [_code(item) if isinstance(item, types.CodeType) else repr(item) for item in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]
