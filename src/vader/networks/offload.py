"""Offloading: what the backward pass of a denoising step needs waits in CPU memory until it is its turn."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar

import torch

from vader.networks.techniques import Technique


class OffloadActivations(Technique):
    """Steps with a graph keep their activations on the CPU."""

    exact: ClassVar[bool] = True

    def gradient_step(self) -> AbstractContextManager[None]:
        return offload_activations()


def offload_activations() -> AbstractContextManager[None]:
    """Within, what the backward pass needs waits in CPU memory (pinned, where there is a GPU)."""
    return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())
