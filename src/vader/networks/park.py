"""Parking: text and image encoders and rewards leave the device while the denoiser works, and its backward pass runs.

Their weights are frozen, so that leaving costs nothing: the copy on the device is dropped, and the one in CPU
memory (pinned, where there is a GPU) is copied again when it is needed. A training step then needs at once the denoiser
with its graph, or the rewards with theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from vader.errors import UserError
from vader.networks.techniques import Role, Stage, Technique

PARKED = ("text", "reward")  # kinds of networks


class Park(Technique):
    """Encoders and rewards wait in CPU memory between their uses."""

    stage: ClassVar[Stage] = Stage.PARK
    exact: ClassVar[bool] = True

    def __init__(self) -> None:
        self.places: dict[nn.Module, Place] = {}

    def prepare(self, network: nn.Module, role: Role) -> None:
        if role.kind in PARKED:
            self.places[network] = Place(network)
        elif role.kind == "denoiser":
            network.register_forward_pre_hook(lambda module, inputs: self.leave())
            network.register_forward_hook(lambda module, inputs, output: self._leave_before_backward(output))

    def leave(self) -> None:
        """Every network that is on the device leaves it."""
        for place in self.places.values():
            place.leave()

    def _leave_before_backward(self, output: Any) -> None:
        """By the time that the gradient reaches the denoiser, rewards have been there again."""
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(lambda gradient: self.leave())


class Place:
    """Where a network's weights are: on its device, or waiting."""

    def __init__(self, network: nn.Module) -> None:
        if any(isinstance(parameter, DTensor) for parameter in network.parameters()):
            raise UserError("memory techniques 'park' and 'shard' with rewards cannot go together: leave out one")
        self.network = network
        self.tensors: list[Tensor] = []  # known from the first time on: to be moved may have made others of them
        self.copies: list[Tensor] = []
        self.waiting: list[tuple[Tensor, torch.device]] | None = None  # a copy of each tensor, and its device
        for module in network.modules():
            module.register_forward_pre_hook(lambda module, inputs: self.come())
        reward: Any = network
        if hasattr(reward, "score"):  # it is not called as other modules are
            reward.score = self._coming_first(reward.score)

    def _coming_first(self, score: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(score)
        def scored(*args: Any, **kwargs: Any) -> Any:
            self.come()
            return score(*args, **kwargs)

        return scored

    def leave(self) -> None:
        if self.waiting is None:
            if not self.copies:
                self.tensors = [*self.network.parameters(), *self.network.buffers()]
                self.copies = [_in_cpu_memory(tensor.data) for tensor in self.tensors]
            self.waiting = [(copy, tensor.device) for copy, tensor in zip(self.copies, self.tensors, strict=True)]
            for tensor, copy in zip(self.tensors, self.copies, strict=True):
                tensor.data = copy

    def come(self) -> None:
        if self.waiting is not None:
            for tensor, (copy, device) in zip(self.tensors, self.waiting, strict=True):
                tensor.data = copy.to(device, non_blocking=True, copy=True)
            self.waiting = None


def _in_cpu_memory(tensor: Tensor) -> Tensor:
    """A copy in memory from which a GPU fetches fast; without a GPU the tensor itself."""
    if tensor.device.type in ("cpu", "meta"):
        return tensor
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return copy.copy_(tensor)
