"""The device and the data type of frozen weights, decided once for the whole program; and what a device can tell.

In goes what a recipe or a command line asks for, out come a `torch.device` and a `torch.dtype`. The rule of `auto`:
CUDA, then XPU, then MPS, then CPU; bf16 on GPUs that have it, fp16 on older ones, float32 on MPS and CPU.
"""

from __future__ import annotations

import sys
from typing import Any

import psutil
import torch

from vader.errors import UserError, nearest

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # beside "auto"
_GPUS = ("cuda", "xpu", "mps")  # in this order


def best_device() -> torch.device:
    """The first of CUDA, XPU and MPS that is there, else the CPU."""
    there = (torch.cuda.is_available(), torch.xpu.is_available(), torch.backends.mps.is_available())
    return torch.device(next((kind for kind, found in zip(_GPUS, there, strict=True) if found), "cpu"))


def is_gpu(device: torch.device) -> bool:
    return device.type in _GPUS


def card_bytes() -> int | None:
    """The memory of this machine's first CUDA or XPU device; None where there is none."""
    device = best_device()
    return _module(device).get_device_properties(device).total_memory if device.type in ("cuda", "xpu") else None


def frozen_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The data type of frozen weights on a device.

    Args:
        precision: "auto", or a name in `PRECISIONS`.

    Raises:
        UserError: there is no such precision.
    """
    if precision == "auto":
        return _best_dtype(device)
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}: {nearest(precision, ['auto', *PRECISIONS])}")
    return PRECISIONS[precision]


def _best_dtype(device: torch.device) -> torch.dtype:
    """XPUs all have bf16. MPS stays at float32: old systems lack bf16 there, and fp16 loses small gradients."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "xpu" else torch.float32


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given; a CPU always has."""
    if is_gpu(device):
        _module(device).synchronize()


def peak_memory_bytes(device: torch.device | str) -> int:
    """The most memory so far: what tensors took on a GPU that counts it; elsewhere the resident set of this process.

    On MPS, which keeps no peak, it is what tensors take now.
    """
    device = torch.device(device)
    if device.type in ("cuda", "xpu"):
        return _module(device).max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return _peak_on_windows() if sys.platform == "win32" else _peak_on_unix()


def _peak_on_unix() -> int:
    import resource  # which Windows has not

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _peak_on_windows() -> int:
    return psutil.Process().memory_info().peak_wset


def _module(device: torch.device) -> Any:
    """torch.cuda, torch.xpu or torch.mps."""
    return getattr(torch, device.type)
