"""`pan vocabulary`: what a checkpoint's one vocabulary holds, how it came to be, and how a full part of it gets room.

Counts and births come from the ledger, usage from the codebooks' running averages of training, and the picture of an
image code is what the decoder makes of it alone: every cell of the frame holds it, and one cell is cut out. Codes of
finer levels stand on the most used code of the level before.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pan_hf.arguments import checked
from pan_hf.checkpoints import find_checkpoint, load, results_folder
from pan_hf.console import without_bars
from pan_hf.extras import extra
from pan_hf.features import feature_of
from pan_hf.files import whole_file, whole_folder
from pan_hf.hub import hub_id
from pan_hf.modeling import PanModel
from pan_hf.modeling.growth_pan import set_part
from pan_hf.modeling.learning_pan import UNUSED
from pan_hf.modeling.sense_configuration_pan import MERGES
from pan_hf.tokenization import PanProcessor, Vocabulary

with extra("cli", "A table of the vocabulary"):
    from rich.table import Table

NEWEST = 12  # births in the list
_log = logging.getLogger(__name__)
TILE, COLUMNS = 36, 16  # of the picture: pixels of a tile, tiles a row


def tables(model: PanModel, processor: PanProcessor) -> list[Table]:
    """How many tokens live, by segment, with their usage; and the newest births."""
    ledger, merges = processor.vocabulary, processor.tokenizer.merges
    assert ledger is not None  # or there are no merges to ask for
    counts = Table("segment", "rows", "born", "retired", "live", "used", title=f"Vocabulary {ledger.digest()}")
    for segment in ["text", *ledger.segments]:
        born, live = ledger.born(segment), ledger.live(segment)
        usage = _usage(model, segment)
        used = "" if usage is None else str(int((usage >= UNUSED).sum()))
        counts.add_row(*map(_shown, (segment, ledger.capacity(segment), born, born - live, live, used)))
    newest = Table("step", "segment", "count", "reason", "names or ids", title="Newest tokens")
    for birth in [birth for birth in ledger.births if birth["reason"] != "start"][: -NEWEST - 1 : -1]:
        first, *others = ledger.ids_of(birth)
        ids = f"{first}" + (f" to {others[-1]}" if others else "")
        spelled = [" ".join(map(str, merges.split([item]))) for item in ledger.ids_of(birth)[:NEWEST]]
        names = ", ".join(birth.get("names", [])) or ids
        names += f" = {'; '.join(spelled)}" if birth["reason"] == "merge" else ""
        about = (birth[key] for key in ("step", "segment", "count", "reason"))
        newest.add_row(*map(_shown, (*about, names)))
    return [counts, newest] if newest.row_count else [counts]


def _shown(value: object) -> str:
    """A value in one line; what would steer the terminal is left out."""
    return "".join(letter if letter.isprintable() else " " for letter in str(value))


def _usage(model: PanModel, segment: str) -> torch.Tensor | None:
    part, _, level = segment.rpartition(".")
    if part not in model.senses or not model.senses[part].can_grow or level == MERGES:
        return None
    book = model.senses[part].codebooks[int(level)]
    return book.usage.masked_fill(~book.describes(), 0.0)


@torch.no_grad()
def code_pictures(model: PanModel, sense: str, level: int) -> np.ndarray:
    """What each code that describes something decodes to, in their order: uint8 `(codes, height, width, 3)`.

    Raises:
        ValueError: no such level, or a sense without pictures.
    """
    if sense not in _pictured(model) or not 0 <= level < len(model.senses[sense].codebooks):
        raise ValueError(f"No codes {sense}.{level} with pictures; senses with pictures are {_pictured(model)}.")
    codec = model.senses[sense]
    codes = codec.codebooks[level].describes().nonzero().squeeze(1)
    usages = (_usage(model, f"{sense}.{coarser}") for coarser in range(level))
    prefix = [int(usage.argmax()) for usage in usages if usage is not None]
    rows, columns = codec.sense.level_grid(level)
    pictures = []
    for chunk in codes.split(64):
        grids = [torch.full((len(chunk), _num_codes(codec.sense, at)), code) for at, code in enumerate(prefix)]
        grids.append(chunk.unsqueeze(1).expand(-1, _num_codes(codec.sense, level)))
        decoded = codec.as_output(codec.decode([grid.to(model.device) for grid in grids]))
        frames = feature_of(codec.sense).to_frames(decoded)
        height, width = frames.shape[1] // rows, frames.shape[2] // columns  # of the part that one code describes
        top, left = rows // 2 * height, columns // 2 * width
        pictures.append(frames[:, top : top + height, left : left + width])
    return np.concatenate(pictures)


def _num_codes(sense, level: int) -> int:
    return sense.num_state_tokens * sense.codes_per_token[level]


def _pictured(model: PanModel) -> list[str]:
    """The senses whose learned codes can be looked at."""
    return [name for name, codec in model.senses.items() if codec.can_grow and feature_of(codec.sense).is_picture]


def picture(model: PanModel) -> Image.Image | None:
    """All codes of all senses with pictures, level by level, 16 a row; None where no sense has pictures."""
    rows = []
    for sense in _pictured(model):
        for level in range(model.config.senses[sense].num_levels):
            rows += _rows_of(code_pictures(model, sense, level))
            rows.append(np.full((TILE // 3, COLUMNS * TILE, 3), 255, np.uint8))
    return Image.fromarray(np.concatenate(rows[:-1])) if rows else None


def _rows_of(pictures: np.ndarray) -> list[np.ndarray]:
    tiles = []
    for code in pictures:
        tile = Image.fromarray(code).resize((TILE - 2, TILE - 2), Image.Resampling.NEAREST)
        tiles.append(np.pad(np.asarray(tile), ((1, 1), (1, 1), (0, 0)), constant_values=255))
    tiles += [np.full((TILE, TILE, 3), 255, np.uint8)] * (-len(tiles) % COLUMNS)
    return [np.concatenate(tiles[start : start + COLUMNS], 1) for start in range(0, len(tiles), COLUMNS)]


def show(path: str | Path, output: str | Path | None = None) -> tuple[list[Table], Path | None]:
    """Tables of a run's or checkpoint's vocabulary, and where the picture of its image codes was written
    (`vocabulary.png` in `output`, or beside the checkpoint), if there are any."""
    folder = results_folder(path, output) if hub_id(path) else Path(output or path)
    model, processor = load(path)
    image = picture(model)
    if image is None:
        return tables(model, processor), None
    target = folder / "vocabulary.png"
    with whole_file(target) as temporary:
        image.save(temporary, format="PNG")
    return tables(model, processor), target


@checked()
@without_bars()
def double(path: str | Path, segments: Sequence[str], output: str | Path | None = None) -> Path:
    """Doubles the rows of segments in a checkpoint; its tokens keep their ids, its predictions stay as they were.

    A segment that has not used any of the rows it was last given stays as it is. So a command that was killed while it
    replaced the old checkpoint can be run again, whether or not it had come to its end. Without an end `output` is
    not there.

    Args:
        path: a run or a checkpoint.
        segments: levels of image senses ("camera.0"), discrete actions ("action.0"), merged tokens ("camera.merges"),
            words ("text"), or those of a part of the action ("action.legs.0").
        output: where the larger checkpoint goes; in place of the old one by default.

    Returns:
        the folder of the larger checkpoint.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: no segment, one that is none or cannot be extended, or an output that exists. Nothing has been
            written then.
    """
    if not segments:
        raise ValueError("`segments` names none to double; give some, as camera.0.")
    if output is None and hub_id(path):
        raise ValueError(f"{path} is on a Hub; name a folder for the larger checkpoint (`output`).")
    source = find_checkpoint(path)
    target = source if output is None else Path(output)
    if target != source and target.exists():
        raise ValueError(f"{target} exists already; name a new folder for the larger checkpoint.")
    model, _ = load(source)
    ledger = model.ledger()
    for segment in dict.fromkeys(segments):
        if _is_spare(ledger, segment):
            _log.warning("%s has been doubled, and none of its new rows is used; it stays as it is.", segment)
        else:
            extend(model, segment, ledger.capacity(segment))
    with whole_folder(target) as temporary:
        ledger.check_replaces(target)
        if target != source:
            ignored = shutil.ignore_patterns("*.safetensors*", ".*")
            shutil.copytree(source, temporary, dirs_exist_ok=True, ignore=ignored)
        model.save_pretrained(temporary)
    return target


def _is_spare(ledger: Vocabulary, segment: str) -> bool:
    """Whether a segment was extended, and has used none of the new rows."""
    *_, (_, rows) = ledger.runs(segment)
    return len(ledger.runs(segment)) > 1 and ledger.capacity(segment) - ledger.born(segment) >= rows


@torch.no_grad()
def extend(model: PanModel, segment: str, rows: int) -> None:
    """Gives a segment more rows, behind all others. Unlike growth this changes shapes: no optimizer state, adapter or
    compiled graph of before fits any more.

    Args:
        model: attached to its processor.
        segment (`str`): as for `double`.
        rows (`int`): how many more.

    Raises:
        ValueError: no such segment, or one that cannot be extended.
    """
    ledger, (part, _, level) = model.processor.vocabulary, segment.rpartition(".")
    ledger.capacity(segment)
    try:
        larger = model.config.coded_parts()[part].with_rows(level, rows) if part else None
    except ValueError as error:
        raise ValueError(f"Segment {segment!r}: {error}") from error
    offset, _ = ledger.extend(segment, rows)
    config = model.config
    model.table.resize(max(config.vocab_size, -(-ledger.size // 64) * 64))
    config.extensions = config.extensions | {segment: [*config.extensions.get(segment, []), [offset, rows]]}
    config.code_capacity = ledger.code_capacity
    if larger is not None:
        set_part(model, part, larger)
    if part in model.senses and level != MERGES:
        model.senses[part].codebooks[int(level)].reserve(rows)
    config.vocabulary_digest = ledger.digest()
