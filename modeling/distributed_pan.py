"""Statistics of a batch that several processes share: each trains as one process with the whole batch would.

Averaging gradients over processes is right for plain means alone. What a loss divides by (a sum of weights, how much
stands still), what a codebook follows and what a scale tracks are those of the whole batch, so processes tell each
other their parts. In one process every function here gives back what it got.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def are_several() -> bool:
    """Whether more than one process trains."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over processes, without a gradient."""
    if not are_several():
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def shared_mean(tensor: Tensor) -> Tensor:
    """The mean over processes, without a gradient: what a part of a loss is divided by, so that the mean of the parts
    is the whole. Outside of training, where processes may look at different things, it is this process's own."""
    if not (are_several() and torch.is_grad_enabled()):
        return tensor.detach()
    return all_reduce_sum(tensor) / dist.get_world_size()


def log_of_mean(part: Tensor, least: float) -> Tensor:
    """`log(mean + least)` of the mean over processes of a scalar `part`, as a loss whose gradient, averaged over
    processes, is that of the whole."""
    whole = shared_mean(part) + least
    return whole.log() + (part + least) / whole - 1


def variance(rows: Tensor) -> Tensor:
    """Unbiased variance of each column of `rows` `(n, d)` over the rows of all processes, `(d,)`."""
    count = all_reduce_sum(torch.tensor(float(len(rows)), device=rows.device))
    mean = all_reduce_sum(rows.sum(0)) / count.clamp(min=1)
    return all_reduce_sum((rows.detach() - mean).square().sum(0)) / (count - 1).clamp(min=1)


def all_gather_rows(rows: Tensor) -> Tensor:
    """The rows `(n, ...)` of all processes, n of each, in order."""
    if not are_several():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def broadcast_from_main(value: Any) -> Any:
    """The first process's value, so that all processes go on alike: of a tensor, which has the same shape in each, a
    copy on its device; of anything else a copy in which tensors of a tuple are on the CPU."""
    if not are_several():
        return value
    if isinstance(value, Tensor):
        value = value.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(value, src=0)
        return value
    if isinstance(value, tuple):
        value = tuple(part.cpu() if isinstance(part, Tensor) else part for part in value)
    parts = [value]
    dist.broadcast_object_list(parts, src=0)
    return parts[0]
