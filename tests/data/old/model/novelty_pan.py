"""What an image codec cannot say yet: pieces of pictures farther than a threshold from every code, and codes for them.

Nothing here takes a gradient. A new code's vector is where the encoder puts the new thing; since the decoder never
learned to paint from there, the code also keeps what the decoder's picture of it lacks (`Codebook.corrections`), the
mean over all places where it was seen.

Shapes: B = frames, n = codes of a level in a frame, D = `code_dim`, M = new codes.
"""

import torch
from torch import Tensor

from .image_codec_pan import fold_grid
from .quantizer_pan import LEAST_DISTANCE

UNUSED = 0.01  # times a batch, on average, below which a code counts as unused
MANY = 4096  # novel pieces that are compared with one another at most
COMMON = 0.1  # share of all places from which a code is no thing but what things stand on
PERSISTENT = 0.9  # share of places where a thing is still there a step later
ALIKE = 0.1  # pieces closer than this share of the threshold (squared distances) become one code


def find_novelties(codec, frames: Tensor, level: int, threshold: float, max_new: int) -> tuple[Tensor, float]:
    """Vectors for what no live code of a level describes, the most frequent first.

    Args:
        codec (`ImageCodec`): trained.
        frames `(B, C, height, width)`: what was observed.
        level (`int`): 0 is the coarsest; the levels before it are taken as they are now.
        threshold (`float`): squared distance to the nearest code from which a piece is novel, as a share of the
            squared spread of the codes in use.
        max_new (`int`): M at most.

    Returns:
        vectors `(M, D)`, and the share of all pieces that were novel.
    """
    book = codec.codebooks[level]
    inputs = codec.code_inputs(frames, level).flatten(0, -2)
    least = threshold * book.spread()
    if not least > 0:  # nothing is known yet, so nothing is new
        return inputs.new_zeros(0, inputs.shape[1]), 0.0
    novel = inputs[book.distances(inputs).amin(-1) > least]
    share = len(novel) / len(inputs)
    if len(novel) > MANY:
        novel = novel[:: -(-len(novel) // MANY)]
    found = []
    while len(novel) and len(found) < max_new:
        alike = torch.cdist(novel, novel).square() < ALIKE * least
        members = alike[alike.sum(1).argmax()]
        found.append(novel[members].mean(0))
        novel = novel[~members]
    return torch.stack(found) if found else inputs.new_zeros(0, inputs.shape[1]), share


def find_models(codec, frames: Tensor, level: int, codes: range, persistence: Tensor | None = None) -> Tensor:
    """Which older code each new one is taken to behave like, `(len(codes),)`: the nearest of those that the next level
    continues in the same way.

    Rows of the vocabulary are all that a backbone knows of a code. A new code gets those of its model, and with them
    the model's future. Where the finer codes under it are not those under its model, the model's future would be wrong
    in these; so they come first, as far as `frames` show them, and distance second.

    With `persistence`, codes are left out that stand nearly everywhere (what is left where something goes) or move
    away, if any others are known: a new thing then starts as a thing that stays, whatever is under it. That is the
    better start where a gradient follows: what it says of finer levels is soon unlearned, a floor's future is not.

    Args:
        frames `(B, C, height, width)`: what was observed, the new codes in it.
        level (`int`), codes: of the new codes, which are live already.
        persistence (`(capacity,)`, *optional*): share of places where a code is predicted to be still there one step
            later, 0 where it was not seen.
    """
    book = codec.codebooks[level]
    old = book.describes()
    old[codes.start :] = False
    new = book.vectors[codes.start : codes.stop]
    used, _ = codec.encode(frames)
    if persistence is not None:
        share = torch.bincount(used[level].flatten(), minlength=len(old)) / used[level].numel()
        things = old & (share < COMMON) & (persistence > PERSISTENT)
        old = things if bool(things.any()) else old
    distance = torch.cdist(new, book.vectors).masked_fill(~old, torch.inf)
    if level + 1 == len(codec.codebooks):
        return distance.argmin(1)
    usual = codec.commonest_refinements(used, level)[:, 0]
    alike = (usual[codes.start : codes.stop].unsqueeze(1) == usual) & (usual >= 0)
    return (distance + distance[:, old].max() * ~alike).argmin(1)


def find_idle(book, used: Tensor) -> list[tuple[str, list[int], int | None]]:
    """Codes to retire: (reason, codes, the code that stands for them) of each group.

    Args:
        book (`Codebook`): of one level.
        used: codes of some observations, any shape; what occurs there is not idle.
    """
    seen = torch.bincount(used.flatten(), minlength=len(book.live)) > 0
    unused = book.live & ~seen & (book.usage < UNUSED)
    found = [("unused", unused.nonzero().squeeze(1).tolist(), None)]
    rows = (book.describes() & ~unused).nonzero().squeeze(1)
    rows = rows[book.usage[rows].argsort(descending=True, stable=True)]
    twins = (torch.cdist(book.vectors[rows], book.vectors[rows]).square() < LEAST_DISTANCE * book.spread()).triu(1)
    gone: set[int] = set()
    for index, row in enumerate(rows.tolist()):
        group = [code for code in rows[twins[index]].tolist() if code not in gone]
        if row not in gone and group:
            found.append(("indistinguishable", group, row))
            gone.update(group)
    return [group for group in found if 0 < len(group[1]) < int(book.live.sum())]


def find_corrections(codec, frames: Tensor, level: int, codes: range) -> Tensor:
    """What the pictures of some codes of a level lack, `(len(codes), picture_dim)`: the mean of (frame - decoded) over
    where they are used in `frames`, zero where they are not."""
    used, _ = codec.encode(frames)
    error = codec.to_float(frames) - codec.decode(used)
    pieces = fold_grid(fold_grid(error.permute(0, 2, 3, 1), codec.sense.patch_size), codec.sense.level_strides[level])
    pieces, places = pieces.flatten(0, 2), used[level].flatten()
    is_new = (places >= codes.start) & (places < codes.stop)
    places = places[is_new] - codes.start
    total = pieces.new_zeros(len(codes), pieces.shape[1]).index_add_(0, places, pieces[is_new])
    return total / torch.bincount(places, minlength=len(codes)).clamp(min=1).unsqueeze(1)
