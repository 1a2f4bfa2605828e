"""What processes do together: sums and gathered values, and shares that keep all of them in step.

In go this process's values or the size of the whole, out come everyone's values or this process's share. Every process
calls each function at the same point; where weights are sharded, even a network's pass is such a point, so that shares
are always even: the same number of batches of the same sizes everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

Item = TypeVar("Item")


def sum_over_processes(accelerator: Accelerator, value: Tensor) -> Tensor:
    """The sum of each process's value, on every process. `value` itself stays as it is."""
    return accelerator.reduce(value, reduction="sum")


def gather(accelerator: Accelerator, values: Tensor, indices: Sequence[int], total: int) -> Tensor:
    """What each process has of its own items, `[len(indices), ...]`, of all: `[total, ...]`, exact, in order.

    Args:
        indices: the items' places in the whole, each on one process alone; one may come twice there.
    """
    whole = torch.zeros(total, *values.shape[1:], dtype=values.dtype, device=accelerator.device)
    whole[list(indices)] = values.to(whole.device)
    return sum_over_processes(accelerator, whole)


def even_shares(count: int, rank: int, world: int, batch: int) -> list[list[int]]:
    """The indices of `range(count)` that fall to a process, in batches of at most `batch`.

    Every process gets as many batches of the same sizes: where `count` does not divide, the last shares go on with
    indices from the start again. Who gathers by index drops the repeats.
    """
    mine = [(rank + world * place) % count for place in range(-(-count // world))]
    return [mine[start : start + batch] for start in range(0, len(mine), batch)]


def even_items(items: Sequence[Item], rank: int, world: int) -> list[tuple[Item, float]]:
    """A process's items with their weights: as many on every process, where a repeat has weight 0, others 1."""
    mine = [(item, 1.0) for item in items[rank::world]]
    return mine if len(mine) == -(-len(items) // world) else [*mine, (items[0], 0.0)]
