"""What a code's row of the vocabulary starts from: what the code stands for.

Rows drawn at random would make two codes that look alike as foreign to one another as any other two, and the backbone
would have to learn for each of them what it has learned for the other. So a row starts as a fixed random projection of
its code's description (the codebook vector of an image code, the neighbourhood of a lattice digit), plus a part of
chance that keeps codes of one meaning apart. Distances between descriptions survive the projection (Johnson and
Lindenstrauss 1984). From there on rows are trained like any other.
"""

import torch
from torch import Tensor

DESCRIBED = 0.8  # share of a row's variance that its description decides
DIGIT_WIDTH = 1.5  # digits this far apart are still alike


@torch.no_grad()
def start_rows(rows: Tensor, descriptions: Tensor, described: Tensor, std: float, seed: int) -> None:
    """Writes the rows of one segment in place.

    Args:
        rows `(K, H)`: a segment of an embedding table.
        descriptions `(K, D)`: what each code stands for, in any unit.
        described `(K,)` bool: codes that stand for something yet; the rows of the others stay as they are.
        std (`float`): of the entries of a row.
        seed (`int`): of projection and chance.
    """
    descriptions, described = descriptions.to(rows.device), described.to(rows.device)
    known = descriptions[described].float()
    if len(known) < 2:
        return
    generator = torch.Generator().manual_seed(seed)
    centred = known - known.mean(0)
    scale = centred.square().sum(-1).mean().sqrt().clamp(min=1e-12)
    projection = torch.randn(known.shape[1], rows.shape[1], generator=generator).to(known.device)
    chance = torch.randn(len(known), rows.shape[1], generator=generator).to(known.device)
    mixed = DESCRIBED**0.5 * (centred / scale) @ projection + (1 - DESCRIBED) ** 0.5 * chance
    rows[described] = (std * mixed).to(rows.dtype)


def describe_digits(base: int) -> Tensor:
    """`(base, base)`: each digit of a lattice as a bump over the digits around it."""
    digits = torch.arange(base, dtype=torch.float32)
    return torch.exp(-((digits - digits.unsqueeze(1)) / DIGIT_WIDTH).square() / 2)
