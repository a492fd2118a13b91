"""A layer that says nothing until it is trained."""

from torch import nn
from transformers import initialization as init


class SilentLinear(nn.Linear):
    """Begins at zero: what it adds is nothing at first, and grows as far as it helps."""

    def reset_pan_parameters(self, _std: float) -> None:
        init.zeros_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)
