"""Digits as cells of a smooth density: how far a number moves is learned once, not once for each digit.

A vector's coordinate is written in digits, coarse first (`lattice_pan`). Read out against their rows alone, digits
know nothing of one another's order, and a fine digit, which repeats in every coarse cell, is close to noise. So the
readout of each level also says where the coordinate will be: a mixture of logistics around where it is now, integrated
over the cells of the level (a discretised mixture, as in PixelCNN++, Salimans et al. 2017, there over 8-bit pixels).
The log mass of each digit's cell is added to the logit of its row.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .lattice_pan import digits_to_unit

# unit of a displacement that features tell, as a share of the range: at 1, Adam's jitter alone is a hundredth
STEP = 0.1
WIDTH = 0.02  # initial width of a logistic, as a share of the range


class DigitDensity(nn.Module):
    """Log mass of each digit of one level.

    Args:
        sense (`VectorSense`): base and number of levels.
        level (`int`): 0 is the coarsest.
        width (`int`): A, of the features.
        num_numbers (`int`): V, see `numbers_pan`, which act on the displacement directly, since much of what
            numbers do is nearly linear.
        num_components (`int`): logistics in the mixture.
    """

    def __init__(self, sense, level: int, width: int, num_numbers: int, num_components: int = 3):
        super().__init__()
        self.base, self.level = sense.base, level
        self.narrowest = sense.base**-sense.num_levels / 8
        # parameters of this module, not layers: layers would be initialised at unit gain
        self.shape = nn.Parameter(torch.empty(3 * num_components, width))
        self.linear = nn.Parameter(torch.empty(sense.num_places * sense.group, num_numbers))

    def reset_pan_parameters(self, std: float) -> None:
        """Nothing is displaced yet; the components differ a little, or they would stay the same for ever."""
        init.normal_(self.shape, std=0.1 * std)
        init.zeros_(self.linear)

    def forward(self, features: Tensor, now: list[Tensor], coarser: list[Tensor], numbers: Tensor) -> Tensor:
        """Args: features `(B, n, A)`; now, the current digits of every level `(B, n)`; coarser, the new digits of the
        levels before this one; numbers `(B, V)`. Returns: `(B, n, base)` float32, log masses of the digits."""
        with torch.autocast(features.device.type, enabled=False):  # a fine cell is narrower than bfloat16 can tell
            return self._log_mass(features, now, coarser, numbers)

    def _log_mass(self, features: Tensor, now: list[Tensor], coarser: list[Tensor], numbers: Tensor) -> Tensor:
        shape = nn.functional.linear(features.float(), self.shape.float())
        share, displacement, width = shape.unsqueeze(-2).chunk(3, -1)  # (B, n, 1, M)
        expected = digits_to_unit(now, self.base) + nn.functional.linear(numbers.float(), self.linear.float())
        centre = expected.unsqueeze(-1).unsqueeze(-1) + STEP * displacement
        scale = WIDTH * width.clamp(-6, 6).exp() + self.narrowest
        cell = self.base ** -(self.level + 1)
        first = digits_to_unit(coarser, self.base, inside=0.0) if coarser else torch.zeros_like(expected)
        lower = (first.unsqueeze(-1) + cell * torch.arange(self.base, device=features.device)).unsqueeze(-1)
        # what would lie outside the bounds belongs to the outermost cells
        lowest, highest = lower < cell / 2, lower + cell > 1 - cell / 2
        below = ((lower - centre) / scale).masked_fill(lowest, -1e4)
        above = ((lower + cell - centre) / scale).masked_fill(highest, 1e4)
        gap = (cell / scale).masked_fill(lowest | highest, 1e4)
        # log(sigmoid(above) - sigmoid(below)), without cancellation
        inside = nn.functional.logsigmoid(above) + nn.functional.logsigmoid(-below) + torch.log(-torch.expm1(-gap))
        return (inside + share.log_softmax(-1)).logsumexp(-1)
