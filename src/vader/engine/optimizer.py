"""The optimiser of the adapters: AdamW (arXiv 1711.05101), as a recipe's `optimizer` section sets it.

On CUDA it steps in one kernel. With `eight_bit` its moments are kept in 8 bits (arXiv 2110.02861, by bitsandbytes),
with a scale for each 256 numbers; tensors of fewer than 4096 numbers keep theirs in float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vader.errors import UserError
from vader.recipe.sections import OptimizerSection


def check_optimizer(section: OptimizerSection) -> None:
    """Raises `UserError` if it needs what is not installed."""
    if section.eight_bit and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("optimizer.eight_bit needs bitsandbytes: pip install bitsandbytes")


def build_optimizer(
    section: OptimizerSection, parameters: Sequence[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser of these parameters, which work on `device`. Raises `UserError` as `check_optimizer`."""
    check_optimizer(section)
    settings: dict[str, Any] = section.model_dump(include={"lr", "betas", "weight_decay", "eps"})
    if section.eight_bit:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings, fused=device.type == "cuda" or None)
