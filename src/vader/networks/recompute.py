"""Recomputation (gradient checkpointing, arXiv:1604.06174): a part keeps its inputs, and runs again for backward.

In goes any network, it leaves with the same parts and numbers; only what a graph keeps alive is less. What a block is
(`network_blocks`) is also how a network is sharded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vader.networks.techniques import Role, Stage, Technique

Grain = Literal["blocks", "layers", "nested"]


class Recompute(Technique):
    """Every network is recomputed in the backward pass, part by part, or as its family knows better.

    Args:
        of: the parts, see `checkpoint_blocks`.
    """

    stage: ClassVar[Stage] = Stage.RECOMPUTE
    exact: ClassVar[bool] = True

    def __init__(self, of: Grain = "blocks") -> None:
        self.of = of

    def prepare(self, network: nn.Module, role: Role) -> None:
        (role.recompute or checkpoint_blocks)(network, self.of)


class Recomputed:
    """A forward that keeps only its inputs for the backward pass, and then runs again."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(_Repeatable(self.forward, args, kwargs), *args, use_reentrant=False, **kwargs)


class _Repeatable:
    """A forward that finds its lists as they were when it runs again: causal VAEs' blocks write frames into theirs."""

    def __init__(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.forward = forward
        self.lists = {key: list(value) for key, value in (*enumerate(args), *kwargs.items()) if isinstance(value, list)}
        self.again = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.again:
            args = tuple(self._as_it_was(place, value) for place, value in enumerate(args))
            kwargs = {name: self._as_it_was(name, value) for name, value in kwargs.items()}
        self.again = True
        return self.forward(*args, **kwargs)

    def _as_it_was(self, key: int | str, value: Any) -> Any:
        return list(self.lists[key]) if key in self.lists else value


def checkpoint_blocks(network: nn.Module, of: Grain = "blocks") -> int:
    """Gradient checkpointing from outside: every part of the network is recomputed in the backward pass.

    So this is right for UNets, transformers and VAEs alike, with adapters or without, and in eval mode. (diffusers'
    own switch is missing in UNet3D, and some of its versions ignore it outside training mode.)

    Args:
        network: changed in place.
        of: "blocks", whole levels of a UNet: keeps the fewest inputs, and a whole level's graph while it runs again.
            "layers", the residual, attention and temporal layers of each: the graph of one layer at a time, but every
            layer's input is kept. "nested", both: one level's inputs and one layer's graph, for a second forward of
            the layers, so a third in all. A block without layers, as a transformer's, is one itself.

    Returns:
        How many parts there are: 0 for a network without any, which is left as it is.
    """
    blocks = network_blocks(network)
    layers = [layer for block in blocks for layer in block_layers(block)]
    parts = {"blocks": blocks, "layers": layers, "nested": list(dict.fromkeys([*blocks, *layers]))}[of]
    checkpoint_parts(parts)
    return len(parts)


def checkpoint_parts(parts: Iterable[nn.Module]) -> None:
    """Has each of these parts of a network, in place, keep its inputs alone and run again in the backward pass."""
    for part in parts:
        if not isinstance(part.forward, Recomputed):
            part.forward = Recomputed(part.forward)


def block_layers(block: nn.Module) -> list[nn.Module]:
    """What a block's own module lists hold (`resnets`, `attentions`, `temp_convs` ...), or the block without any."""
    lists = [child for child in block.children() if isinstance(child, nn.ModuleList)]
    return [layer for layers in lists for layer in layers] or [block]


def network_blocks(network: nn.Module) -> list[nn.Module]:
    """The items of the module lists that a network holds (`down_blocks`, `transformer_blocks` ...) and its `mid_block`.

    Where it holds none itself, those of its parts: a VAE's encoder and decoder.
    """
    lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
    middle = [child for name, child in network.named_children() if name == "mid_block"]
    own = [block for blocks in lists for block in blocks] + middle
    return own or [block for child in network.children() for block in network_blocks(child)]
