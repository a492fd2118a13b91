"""Adapters of a world model that has grown: LoRA weights by peft, and beside them rows that were born and the ledger.

    adapter_config.json, adapter_model.safetensors    peft's own
    grown.safetensors                                 rows of both tables, codebook rows, of every token born since
    vocabulary.json                                   the ledger; the base's must be its ancestor

peft saves what it wraps, and the vocabulary is not wrapped: growth changes no shape, so the tables stay the base's.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pan_hf.modeling import PanModel
from pan_hf.modeling.sense_configuration_pan import MERGES
from pan_hf.tokenization.vocabulary_pan import FILE_NAME, TEXT, Vocabulary

GROWN = "grown.safetensors"
_BOOK = ("vectors", "sums", "usage", "corrections")


def train_grown_rows(model: PanModel) -> list:
    """Lets the rows of tokens born since `processor.attach` be trained, and no other row. Call it after wrapping.

    Gradients of all other rows are set to zero. Give the optimizer no weight decay, which would shrink them without.

    Returns:
        the gradient hooks, each with `remove()`.
    """

    def only_grown(gradient: torch.Tensor) -> torch.Tensor:
        ids = _grown_ids(model)  # anew at each step, since tokens may be born while the adapter is trained
        kept = torch.zeros_like(gradient)
        kept[ids] = gradient[ids]
        return kept

    handles = []
    for table in model.embedding_tables():
        table.requires_grad_(True)
        handles.append(table.register_hook(only_grown))
    return handles


def save_adapter(adapted: PeftModel, folder: str | Path) -> None:
    """Saves an adapter, the rows that were born since the base was attached to its processor, and the ledger.

    Args:
        adapted: around a [`PanModel`] attached to its processor.
        folder: made if absent.

    Raises:
        ValueError: no processor attached.
    """
    model, folder = adapted.get_base_model(), Path(folder)
    ledger, ids = model.ledger(), _grown_ids(model)
    adapted.save_pretrained(folder)
    tensors = {f"table.{n}": table.detach()[ids].contiguous() for n, table in enumerate(model.embedding_tables())}
    for segment in ledger.segments:
        codes = torch.tensor([code for name, code in map(ledger.segment_of, ids) if name == segment], dtype=torch.long)
        for name, buffer in _book_of(model, segment).items() if len(codes) else ():
            tensors[f"{segment}.{name}"] = buffer[codes].contiguous()
    about = {"ids": json.dumps(ids), "base_events": str(model.base_events), "base_digest": model.base_digest}
    save_file(tensors, folder / GROWN, metadata=about)
    ledger.save(folder)


def load_adapter(model: PanModel, folder: str | Path, is_trainable: bool = False) -> PeftModel:
    """Puts a saved adapter on a base: its tokens are born, their rows written, its LoRA weights loaded.

    Args:
        model: the base, attached to its processor.
        folder: what `save_adapter` wrote.
        is_trainable (`bool`): go on training.

    Raises:
        FileNotFoundError: `folder` holds no adapter.
        ValueError: the base's ledger is not the ancestor of the adapter's. Nothing has changed then.
    """
    folder = Path(folder)
    if not (folder / GROWN).exists():
        raise FileNotFoundError(f"No adapter at {folder}: expected {GROWN}, which `save_adapter` writes.")
    theirs, mine = Vocabulary.load(folder / FILE_NAME), model.ledger()
    with safe_open(folder / GROWN, "pt") as file:
        about = file.metadata()
    _check_ancestor(mine, theirs, about, folder)
    events = theirs.events[len(mine.events) :]
    for event in events:
        if event["event"] == "extension":
            raise ValueError(
                f"The adapter's {event['segment']} has {event['capacity']} rows more than the base's; run "
                f"`pan vocabulary --double {event['segment']}` on the base first."
            )
    tensors, ids = load_file(folder / GROWN, device=str(model.device)), json.loads(about["ids"])
    tables = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("table.")}
    expected = {f"table.{n}": (len(ids), table.shape[1]) for n, table in enumerate(model.embedding_tables())}
    if tables != expected:
        raise ValueError(f"{folder / GROWN} holds rows {tables}, this base needs {expected}; it is of another model.")
    PeftConfig.from_pretrained(str(folder))
    for event in events:
        _replay(model, event)
    with torch.no_grad():
        for number, table in enumerate(model.embedding_tables()):
            table[ids] = tensors[f"table.{number}"].to(table.dtype)
        for segment in mine.segments:
            codes = [code for name, code in map(mine.segment_of, ids) if name == segment]
            for name, buffer in _book_of(model, segment).items() if codes else ():
                buffer[codes] = tensors[f"{segment}.{name}"]
    return PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)


def _check_ancestor(mine: Vocabulary, theirs: Vocabulary, about: dict, folder: Path) -> None:
    if mine.is_ancestor_of(theirs) and len(mine.events) >= int(about["base_events"]):
        return
    raise ValueError(
        f"The adapter at {folder} does not belong to this base: the base's vocabulary has digest {mine.digest()}, the "
        f"adapter was made on {about['base_digest']} and has {theirs.digest()}, which the base is no ancestor of.\n"
        + mine.difference(theirs, "in the base", "in the adapter")
    )


def _grown_ids(model: PanModel) -> list[int]:
    """Ids of the tokens born since the model was attached to its processor."""
    ledger = model.ledger()
    births = [event for event in ledger.events[model.base_events :] if event["event"] == "birth"]
    return [item for birth in births for item in ledger.ids_of(birth)]


def _book_of(model: PanModel, segment: str) -> dict[str, torch.Tensor]:
    part, _, level = segment.rpartition(".")
    codec = model.senses[part] if part in model.senses else None
    if not hasattr(codec, "codebooks") or level == MERGES:
        return {}
    return {name: getattr(codec.codebooks[int(level)], name) for name in _BOOK}


def _replay(model: PanModel, event: dict) -> None:
    """Lets what happened to the adapter's vocabulary happen to the base's; rows are written afterwards."""
    ledger = model.ledger()
    if event["event"] == "retirement":
        codes = [ledger.segment_of(item) for item in event["ids"]]
        into = ledger.segment_of(event["into"])[1] if "into" in event else None
        model.retire(codes[0][0], [code for _, code in codes], event["reason"], into, event["step"])
    elif event["segment"] == TEXT:
        model.grow(TEXT, names=event["names"])
    elif event["segment"] == "action.0":
        model.grow("action.0", names=event["names"], step=event["step"])
    elif event["reason"] == "merge":
        pairs = [(*parents, item) for parents, item in zip(event["parents"], ledger.ids_of(event), strict=True)]
        model.add_merges(event["segment"].rpartition(".")[0], pairs, event["step"])
    else:
        part, _, level = event["segment"].rpartition(".")
        vectors = torch.zeros(event["count"], model.config.senses[part].code_dim)
        model.grow_codes(part, int(level), vectors, event.get("names"), event["reason"], event["step"])
