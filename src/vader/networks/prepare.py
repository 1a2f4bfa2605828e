"""What is done to every network before a run, in one written order: adapter, quantize, recompute,
compile, shard, park."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vader.networks.techniques import Role, Techniques


def prepare(networks: Sequence[tuple[nn.Module, Role]], techniques: Techniques) -> None:
    """Applies the techniques to every network, in place. Adapters are attached before.

    The order matters, and each step sees what the one before it left:

    1. The adapter, because it replaces layers: what comes later must find the final ones.
    2. Quantisation, of the layers that are then left frozen; it changes them, and no block.
    3. Recomputation, because it changes what a block's forward is: compilation and sharding wrap that forward.
    4. Compilation, of blocks that are then complete.
    5. Sharding, which replaces parameters by shards and gathers them around a whole block's forward. Within, a block
       that is recomputed in the backward pass finds its weights gathered already.
    6. Parking last: it keeps a copy of each weight as it is then, and exchanges the two.

    Raises:
        UserError: a technique cannot be applied here.
    """
    for technique in techniques:
        for network, role in networks:
            technique.prepare(network, role)
