"""Noise levels that models were trained on, and the times at which a chain of S steps visits them; float64."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vader.errors import UserError


def linear_betas(start: float, end: float, count: int) -> Tensor:
    """Evenly rising betas (DDPM, arXiv 2006.11239, section 4)."""
    return torch.linspace(start, end, count, dtype=torch.float64)


def scaled_linear_betas(start: float, end: float, count: int) -> Tensor:
    """Betas whose square roots rise evenly, as latent diffusion has them (arXiv 2112.10752)."""
    return linear_betas(start**0.5, end**0.5, count) ** 2


def cosine_betas(start: float, end: float, count: int) -> Tensor:
    """Betas of a squared-cosine alpha_bar, capped at 0.999 (arXiv 2102.09672, eq. 17); the two ends play no part."""
    u = torch.arange(count + 1, dtype=torch.float64) / count
    alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "squaredcos_cap_v2": cosine_betas}


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Shifts and stretches sqrt(alpha_bar) so that it ends at exactly 0 (arXiv 2305.08891, algorithm 1)."""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def videocrafter_scale(count: int) -> Tensor:
    """VideoCrafter2's factor on the clean signal, `[count]`: from 1 to 0.7 over 400 timesteps, then 0.7."""
    ramp = torch.linspace(1.0, 0.7, 400, dtype=torch.float64)
    return torch.cat([ramp, ramp.new_full((count,), 0.7)])[:count]


# Spacings: (trained timesteps T, steps S, offset) -> descending times [S], float64; arXiv 2305.08891, table 2.


def leading_times(count: int, steps: int, offset: int) -> Tensor:
    return _descending(steps) * (count // steps) + offset


def trailing_times(count: int, steps: int, offset: int) -> Tensor:
    # NumPy's arange as diffusers calls it, for the same ties; its rounding can add one time too many.
    return torch.from_numpy(np.arange(count, 0, -count / steps)[:steps].round() - 1)


def linspace_times(count: int, steps: int, offset: int) -> Tensor:
    return torch.from_numpy(np.linspace(0, count - 1, steps)).flip(0)


def uniform_times(count: int, steps: int, offset: int) -> Tensor:
    """VideoCrafter2's multiples of T // S, plus one; elsewhere than at divisors of T these are not S times."""
    if count % steps:
        raise UserError(f"uniform spacing needs a step count that divides {count}, got {steps}: use e.g. 25 or 50")
    return leading_times(count, steps, 1)


def _descending(steps: int) -> Tensor:
    return torch.arange(steps - 1, -1, -1, dtype=torch.float64)


SPACINGS = {
    "leading": leading_times,
    "trailing": trailing_times,
    "linspace": linspace_times,
    "uniform": uniform_times,
}


def require_steps(steps: int, count: int) -> None:
    if not 1 <= steps <= count:
        raise UserError(f"sampling.steps must be between 1 and the model's {count} trained timesteps, got {steps}")


def karras_sigmas(sigma_min: float, sigma_max: float, steps: int, rho: float = 7.0) -> Tensor:
    """Descending noise levels `[S]`, evenly spaced in sigma^(1/rho) (EDM, arXiv 2206.00364, eq. 5)."""
    return torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps, dtype=torch.float64) ** rho


def interpolate(x: Tensor, known_x: Tensor, known_y: Tensor) -> Tensor:
    """Piecewise linear interpolation over ascending `known_x`, constant beyond its ends."""
    return torch.from_numpy(np.interp(x.numpy(), known_x.numpy(), known_y.numpy()))


def then_zero(levels: Tensor) -> Tensor:
    """Each step's end: the level at which the next one starts, and at last 0."""
    return torch.cat([levels[1:], levels.new_zeros(1)])
