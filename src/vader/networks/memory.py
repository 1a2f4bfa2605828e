"""What lowers the memory of a gradient step: recomputed blocks, activations kept on the CPU. And how much was used.

None of it changes a number: the gradients are those of the plain step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputed:
    """A forward that keeps only its inputs for the backward pass, and then runs again (arXiv:1604.06174)."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)


def checkpoint_blocks(network: nn.Module) -> int:
    """Gradient checkpointing from outside: every block of the network is recomputed in the backward pass.

    So this is right for UNets, transformers and VAEs alike, with adapters or without, and in eval mode. (diffusers'
    own switch is missing in UNet3D, and some of its versions ignore it outside training mode.)

    Returns:
        How many blocks there are: 0 for a network without any, which is left as it is.
    """
    blocks = network_blocks(network)
    for block in blocks:
        if not isinstance(block.forward, Recomputed):
            block.forward = Recomputed(block.forward)
    return len(blocks)


def network_blocks(network: nn.Module) -> list[nn.Module]:
    """The items of the module lists that a network holds (`down_blocks`, `transformer_blocks` ...) and its `mid_block`.

    Where it holds none itself, those of its parts: a VAE's encoder and decoder.
    """
    lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
    middle = [child for name, child in network.named_children() if name == "mid_block"]
    own = [block for blocks in lists for block in blocks] + middle
    return own or [block for child in network.children() for block in network_blocks(child)]


def offload_activations(enabled: bool = True) -> AbstractContextManager:
    """Within, what the backward pass needs waits in CPU memory (pinned, where there is a GPU)."""
    if not enabled:
        return nullcontext()
    return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())


def peak_memory_bytes(device: torch.device | str) -> int:
    """The most memory so far: what tensors took on a GPU; elsewhere the resident set of this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def count_parameters(network: nn.Module, trainable: bool = False) -> int:
    """How many numbers a network has, or only those that are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trainable)
