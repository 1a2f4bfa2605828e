"""Solvers turn a denoiser's prediction at step i into the latents of the next step.

A solver is built from a checkpoint's own scheduler settings, makes a `Schedule` once (tables in float64),
and then `step` is a pure function of tensors: no hidden index, no host synchronisation, gradient flows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """The tables of one sampling run of S steps, float64 on the CPU."""

    times: Tensor  # [S] what the denoiser is told
    input_scale: Tensor  # [S] factor on the latents before the denoiser
    init_scale: float  # factor on standard normal noise that gives the first latents
    tables: dict[str, Tensor]  # the solver's own coefficients, each [S]

    def __len__(self) -> int:
        return len(self.times)


class Step(NamedTuple):
    """What one step gives: the next latents, the clean estimate x0, mean and std of the next latents, solver memory."""

    next: Tensor
    clean: Tensor
    mean: Tensor
    std: float
    state: Any = None


class Solver(ABC):
    @abstractmethod
    def schedule(self, steps: int, size: Any = None) -> Schedule:
        """The tables for `steps` steps; `size` (a VideoSize) matters where the times depend on resolution."""

    @abstractmethod
    def step(
        self, schedule: Schedule, i: int, latents: Tensor, prediction: Tensor, noise: Tensor | None = None, state: Any = None
    ) -> Step:
        """One step. `noise` (standard normal, like latents) is needed where the solver is stochastic."""

    @abstractmethod
    def renoise(self, schedule: Schedule, i: int, clean: Tensor, noise: Tensor) -> Tensor:
        """Clean latents brought to the noise level at which step i starts (forward process)."""
