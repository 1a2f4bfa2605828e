"""The noise of videos: stateless, one stream for each use, each video its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vader import randomness


@dataclass(frozen=True)
class Noise:
    """The noise of some videos of a global batch. `shape` is that of one video's latents, or a dictionary of shapes."""

    shape: Any
    seed: int
    purpose: str
    step: int
    indices: Sequence[int]
    device: torch.device | str = "cpu"

    def draw(self, use: str) -> Any:
        """Standard normal latents of the videos, `[len(indices), ...]`, the same for the same use."""
        if isinstance(self.shape, dict):
            return {name: self._normal(shape, f"{use}/{name}") for name, shape in self.shape.items()}
        return self._normal(self.shape, use)

    def shared(self, count: int) -> Noise:
        """The same noise for every `count` neighbours of the global batch: that of the first of them."""
        return replace(self, indices=[index - index % count for index in self.indices])

    def _normal(self, shape: Sequence[int], use: str) -> torch.Tensor:
        return randomness.normal(shape, self.seed, f"{self.purpose}/{use}", self.step, self.indices, self.device)
