"""How large a network is: its numbers, and the bytes of it that this process holds."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def count_parameters(network: nn.Module, trainable: bool = False) -> int:
    """How many numbers a network has, or only those that are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trainable)


def weight_bytes(network: nn.Module) -> int:
    """What its parameters take in this process's memory: of sharded ones, this process's part."""
    return sum(_local(parameter).nbytes for parameter in network.parameters())


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
