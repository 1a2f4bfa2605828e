"""Euler's method for models told of noise levels sigma (EDM), as Stable Video Diffusion is sampled; or ancestral."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vader.solvers.base import SPLITS, PathSolver, Schedule, path_tables, posterior_std
from vader.solvers.levels import SPACINGS, interpolate, karras_sigmas, require_steps, then_zero


@dataclass(frozen=True, eq=False)
class EulerEDM(PathSolver):
    """Euler's method on noise levels sigma, with latents `clean + sigma * noise` (EDM, arXiv 2206.00364).

    The levels are those of spaced timesteps of a DDPM-trained model, or Karras's; the denoiser is told a timestep
    or, if `continuous`, `log(sigma) / 4` (EDM, table 1). At eta 0 it is deterministic, at eta 1 ancestral sampling.
    """

    alpha_bar: Tensor  # [T] float64
    prediction: str = "epsilon"
    spacing: str = "linspace"
    offset: int = 0
    karras: bool = False
    sigma_min: float | None = None  # of Karras's levels; None: those of the spaced timesteps
    sigma_max: float | None = None
    continuous: bool = False
    eta: float = 0.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def estimates(self, latents: Tensor, prediction: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        return SPLITS[self.prediction](latents, prediction, alpha, sigma)

    def schedule(self, steps: int, size: Any = None) -> Schedule:
        sigma, times = self._levels(steps)
        one, sigma_next = torch.ones_like(sigma), then_zero(sigma)
        norm = (1 + sigma**2).sqrt()
        levels = (one, sigma, one, sigma_next)
        tables = path_tables(*levels, std=self.eta * posterior_std(*levels))
        # Diffusers' rule: times that start at the very end of training take the noise alone for the latents.
        init_scale = sigma[0] if self.spacing in ("linspace", "trailing") else norm[0]
        return Schedule(times, 1 / norm, float(init_scale), tables)

    def _levels(self, steps: int) -> tuple[Tensor, Tensor]:
        """The noise levels and what the denoiser is told of them, each `[S]`."""
        count = len(self.alpha_bar)
        require_steps(steps, count)
        times = SPACINGS[self.spacing](count, steps, self.offset)
        trained = (1 / self.alpha_bar - 1).sqrt()
        grid = torch.arange(count, dtype=torch.float64)
        sigma = interpolate(times, grid, trained)
        if self.karras:
            low = float(sigma[-1]) if self.sigma_min is None else self.sigma_min
            high = float(sigma[0]) if self.sigma_max is None else self.sigma_max
            sigma = karras_sigmas(low, high, steps)
            times = interpolate(sigma.log(), trained.log(), grid)
        return sigma, sigma.log() / 4 if self.continuous else times
