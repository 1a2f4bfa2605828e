"""Euler's method for rectified flow, and the levels that Open-Sora 1.2 visits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vader.errors import UserError
from vader.solvers.base import PathSolver, Schedule, path_tables, posterior_std, split_velocity
from vader.solvers.levels import require_steps, then_zero


@dataclass(frozen=True, eq=False)
class EulerFlow(PathSolver):
    """Euler's method on the straight path `(1 - sigma) * clean + sigma * noise` (rectified flow, arXiv 2209.03003).

    A static shift moves the levels towards noise (arXiv 2403.03206, eq. 23), where larger videos need them. Eta is
    the share of fresh noise, as in DDIM: 0 is deterministic.
    """

    train_steps: int = 1000  # the denoiser is told sigma * train_steps
    shift: float = 1.0
    eta: float = 0.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def estimates(self, latents: Tensor, prediction: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        return split_velocity(latents, prediction, alpha, sigma)

    def schedule(self, steps: int, size: Any = None) -> Schedule:
        require_steps(steps, self.train_steps)
        sigma = self.sigmas(steps, size)
        sigma_next = then_zero(sigma)
        levels = (1 - sigma, sigma, 1 - sigma_next, sigma_next)
        tables = path_tables(*levels, std=self.eta * posterior_std(*levels))
        return Schedule(sigma * self.train_steps, torch.ones_like(sigma), 1.0, tables)

    def sigmas(self, steps: int, size: Any) -> Tensor:
        """Diffusers' levels: even ones down to the lowest trained one, 1 / T, which so gets shifted twice."""
        lowest = self.shift / (self.train_steps - 1 + self.shift)
        return shifted(torch.linspace(1.0, lowest, steps, dtype=torch.float64), self.shift)


@dataclass(frozen=True, eq=False)
class OpenSoraFlow(EulerFlow):
    """Rectified flow as Open-Sora 1.2 samples it: even levels, shifted by the size of the video.

    Its denoiser predicts clean minus noise, and sees a latent clip of 5 frames for every 17 frames of pixels. With
    `discrete`, even levels are rounded to whole times first.
    """

    transform: bool = True
    discrete: bool = False

    def estimates(self, latents: Tensor, prediction: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        return split_velocity(latents, -prediction, alpha, sigma)

    def sigmas(self, steps: int, size: Any) -> Tensor:
        even = 1 - torch.arange(steps, dtype=torch.float64) / steps
        if self.discrete:
            even = (even * self.train_steps).round() / self.train_steps
        return shifted(even, open_sora_shift(size)) if self.transform else even


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Levels in [0, 1] moved towards 1 by a shift above 1; both ends stay (arXiv 2403.03206, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def open_sora_shift(size: Any) -> float:
    """Open-Sora 1.2's shift for a video: the square root of its latent volume in units of one 512 x 512 frame.

    Raises:
        UserError: 2 to 16 frames, for which the formula gives no volume.
    """
    latent_frames = 1 if size.frames == 1 else 5 * (size.frames // 17)
    if latent_frames == 0:
        raise UserError(
            f"Open-Sora's timesteps are defined for 1 or at least 17 frames, got {size.frames}: set video.frames"
        )
    return math.sqrt(size.height * size.width / 512**2 * latent_frames)
