"""Compilation (torch.compile) of the denoisers' layers, one by one: fewer and larger kernels, the same numbers.

In goes a denoiser, it leaves with the same layers, whose forward is compiled when it is first called, and again for
other shapes, with a graph or without, and with the adapter on or off. Layers that are alike share what was compiled.
Whole networks would take far longer, and the hooks of sharding and parking lie between their blocks.
"""

from __future__ import annotations

import logging
from typing import ClassVar

import torch
from torch import nn

from vader.errors import UserError
from vader.networks.recompute import Recomputed, block_layers, network_blocks
from vader.networks.techniques import Role, Stage, Technique

VARIANTS = 256  # of one class's forward, until torch runs it uncompiled: a UNet's layers have many widths


class Compile(Technique):
    """The denoisers' layers are compiled when they are first called: that takes minutes, then they are faster."""

    stage: ClassVar[Stage] = Stage.COMPILE
    exact: ClassVar[bool] = True

    def prepare(self, network: nn.Module, role: Role) -> None:
        if role.kind == "denoiser":
            _try_out(role.device)
            compile_layers(network)


def compile_layers(network: nn.Module) -> int:
    """Compiles each layer of each block, within its recomputation where there is one.

    Returns:
        How many layers there are.
    """
    layers = dict.fromkeys(layer for block in network_blocks(network) for layer in block_layers(block))
    for layer in layers:
        holder = layer.forward if isinstance(layer.forward, Recomputed) else layer
        holder.forward = torch.compile(holder.forward)
    return len(layers)


def _try_out(device: torch.device) -> None:
    """Compiles a sum: what it takes, a C++ compiler or Triton, may be missing. What torch says of it is not shown.

    Raises:
        UserError: it fails.
    """
    from torch import _dynamo as dynamo  # takes seconds to load

    dynamo.config.cache_size_limit = max(VARIANTS, dynamo.config.cache_size_limit)
    for name in ("torch._dynamo", "torch._functorch", "torch._inductor"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        torch.compile(_twice)(torch.ones(2, device=device))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"memory technique 'compile' cannot compile here, so leave it out: {reason}") from error


def _twice(x: torch.Tensor) -> torch.Tensor:
    return x + x
