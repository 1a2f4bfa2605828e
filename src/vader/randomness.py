"""Stateless randomness: every random number is a function of (seed, purpose, step, index of the video).

So a run does not depend on how its batch is split over processes or micro-batches, nor on the device,
and resuming needs no generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, purpose: str, step: int = 0, index: int = 0) -> torch.Generator:
    """A CPU generator that is the same for the same key, on every machine."""
    key = f"{seed}/{purpose}/{step}/{index}".encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def normal(
    shape: Sequence[int], seed: int, purpose: str, step: int, indices: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal noise for the videos `indices` of the global batch: float32 `[len(indices), *shape]`."""
    draws = [torch.randn(*shape, generator=generator(seed, purpose, step, index)) for index in indices]
    noise = torch.stack(draws)
    if torch.device(device).type == "cuda":  # a plain copy would wait until the device has done all it was given
        return noise.pin_memory().to(device, non_blocking=True)
    return noise.to(device)
