"""What processes do together: shares of equal length, so that all make the same number of network passes."""

from __future__ import annotations


def even_shares(count: int, rank: int, world: int, batch: int) -> list[list[int]]:
    """The indices of `range(count)` that fall to a process, in batches.

    Every process gets as many batches of the same sizes: where `count` does not divide, indices come again from the
    start. Who gathers drops what is there already.
    """
    share = -(-count // world)
    mine = [(rank + world * place) % count for place in range(share)]
    return [mine[start : start + batch] for start in range(0, share, batch)]
