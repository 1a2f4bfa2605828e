"""Sharding (FSDP2): each process keeps a part of the frozen weights, and a block's are whole only while it works.

In goes a network with its adapter, which stays whole on each process; out comes the same object. Gathering a block's
weights takes all processes: they must make the same number of passes in the same order (`even_shares` sees to it).
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._pytree import tree_map

from vader.errors import UserError
from vader.networks.recompute import network_blocks
from vader.networks.techniques import Role, Stage, Technique


class Shard(Technique):
    """Denoisers' frozen weights are shared out over the processes, and with `rewards` also those of reward networks."""

    stage: ClassVar[Stage] = Stage.SHARD
    exact: ClassVar[bool] = True

    def __init__(self, rewards: bool = False) -> None:
        self.rewards = rewards

    def prepare(self, network: nn.Module, role: Role) -> None:
        if role.kind == "denoiser":
            shard(network, role.device)
        elif role.kind == "reward" and self.rewards:
            shard_blocks(network, role.device)


def shard(network: nn.Module, device: torch.device) -> None:
    """Shards the blocks one by one, then what lies outside them; parameters that are trained stay whole.

    Args:
        network: is only ever called as a whole (`network(...)`): that gathers what lies outside the blocks.
        device: where the shards are to be. Weights that are still on the CPU get there block by block, so that no
            device ever holds the whole network.

    Raises:
        UserError: there is one process alone, or this torch cannot leave the adapter whole.
    """
    shard_blocks(network, device)
    _shard_one(network, _settings(network, device))


def shard_blocks(network: nn.Module, device: torch.device) -> None:
    """Shards the blocks alone: right for a network whose methods are called by other names than its own.

    Raises:
        UserError: as `shard`.
    """
    settings = _settings(network, device)
    for block in network_blocks(network):
        _shard_one(block, settings)


def _shard_one(module: nn.Module, settings: dict[str, Any]) -> None:
    """FSDP2 finds the way back to a module by its outputs, and would lose it if one was a view, changed in place."""
    module.register_forward_hook(lambda module, inputs, output: tree_map(_no_view, output))
    fully_shard(module, **settings)


def _no_view(output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _settings(network: nn.Module, device: torch.device) -> dict[str, Any]:
    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise UserError(f"memory technique 'shard' needs torch 2.7 or later, and this is {torch.__version__}")
    trained = {parameter for parameter in network.parameters() if parameter.requires_grad}
    return {"mesh": _mesh(device), "reshard_after_forward": True, "ignored_params": trained}


def _mesh(device: torch.device) -> DeviceMesh:
    """All processes in a row."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        # Without a GPU, accelerate's launcher starts one process, whatever number it is told.
        launcher = "torchrun --nproc-per-node 2" if device.type == "cpu" else "accelerate launch --num_processes 2"
        raise UserError(
            "memory technique 'shard' shares weights out over several processes, and this is one alone: "
            f"start more ({launcher} -m vader train ...), or leave it out"
        )
    return init_device_mesh(device.type, (distributed.get_world_size(),))
