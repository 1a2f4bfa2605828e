"""Numbers that levels are made of, float64: trained noise levels, spacings of times, sigmas of flows and of EDM."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vader.errors import UserError

# ---- trained levels ----


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


def shifted_snr(alpha_bar: Tensor, scale: float) -> Tensor:
    """CogVideoX's levels: signal-to-noise ratios divided by `scale` (arXiv 2408.06072, section 2.3)."""
    return alpha_bar / (scale + (1 - scale) * alpha_bar)


def videocrafter_scale(count: int) -> Tensor:
    """VideoCrafter2's factor on the clean signal, `[count]`: from 1 to 0.7 over 400 timesteps, then 0.7."""
    ramp = torch.linspace(1.0, 0.7, 400, dtype=torch.float64)
    return torch.cat([ramp, ramp.new_full((count,), 0.7)])[:count]


# ---- times of diffusion models ----

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


# ---- sigmas of EDM ----


def karras_sigmas(sigma_min: float, sigma_max: float, steps: int, rho: float = 7.0) -> Tensor:
    """Descending noise levels `[S]`, evenly spaced in sigma^(1/rho) (EDM, arXiv 2206.00364, eq. 5)."""
    return torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps, dtype=torch.float64) ** rho


def interpolate(x: Tensor, known_x: Tensor, known_y: Tensor) -> Tensor:
    """Piecewise linear interpolation over ascending `known_x`, constant beyond its ends."""
    return torch.from_numpy(np.interp(x.numpy(), known_x.numpy(), known_y.numpy()))


# ---- sigmas of flows ----

# Before any shift: (steps S, trained timesteps T, static shift) -> descending sigmas [S] in (0, 1], float64.


def even_sigmas(steps: int, count: int = 1000, shift: float = 1.0) -> Tensor:
    """1, 1 - 1/S, ..., 1/S: what the pipelines of LTX, HunyuanVideo and Open-Sora ask for."""
    return 1 - torch.arange(steps, dtype=torch.float64) / steps


def euler_sigmas(steps: int, count: int, shift: float) -> Tensor:
    """FlowMatchEulerDiscreteScheduler's own: even ones down to the lowest trained one, which so gets shifted twice."""
    return torch.linspace(1.0, shift / (count - 1 + shift), steps, dtype=torch.float64)


def unipc_sigmas(steps: int, count: int, shift: float) -> Tensor:
    """UniPCMultistepScheduler's own, Wan's: the first S of S + 1 even ones down to 1 / T."""
    return torch.from_numpy(np.linspace(1, 1 / count, steps + 1)[:-1])


def linear_quadratic_sigmas(steps: int, count: int = 1000, shift: float = 1.0) -> Tensor:
    """Of Mochi, and LTX-Video from 0.9.5 on: half of the steps fall evenly from 1 to 0.975, the others faster to 0."""
    if steps == 1:
        return torch.ones(1, dtype=torch.float64)
    flat, done = steps // 2, 0.025
    i = torch.arange(steps, dtype=torch.float64)
    curvature = (1 - done * steps / flat) / (steps - flat) ** 2
    return 1 - done * i / flat - curvature * (i - flat).clamp(min=0) ** 2


SIGMAS: dict[str, Callable[[int, int, float], Tensor]] = {
    "even": even_sigmas,
    "euler": euler_sigmas,
    "unipc": unipc_sigmas,
    "linear_quadratic": linear_quadratic_sigmas,
}


def fixed_sigmas(values: Sequence[float]) -> Callable[[int], Tensor]:
    """Sigmas of distilled models, for just as many steps.

    Raises:
        UserError: they do not fall, or do not lie in (0, 1]; and at once for any other number of steps.
    """
    sigmas = torch.tensor(values, dtype=torch.float64)
    if len(sigmas) == 0 or sigmas[0] > 1 or sigmas[-1] <= 0 or (sigmas.diff() >= 0).any():
        raise UserError(f"sampling.sigmas must fall, from at most 1 to above 0, got {list(values)}")

    def of(steps: int) -> Tensor:
        if steps != len(sigmas):
            raise UserError(f"sampling.sigmas has {len(sigmas)} numbers: set sampling.steps to that, not to {steps}")
        return sigmas

    return of


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Levels in [0, 1] moved towards 1 by a shift above 1; both ends stay (arXiv 2403.03206, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def ending_at(sigma: Tensor, terminal: float) -> Tensor:
    """LTX's levels: `1 - sigma` scaled so that the last sigma is `terminal`."""
    if len(sigma) < 2:
        raise UserError(
            "this checkpoint's last sigma is fixed (shift_terminal), for which sampling.steps must be over 1"
        )
    return 1 - (1 - sigma) / ((1 - sigma[-1]) / (1 - terminal))


def open_sora_shift(size: Any) -> float:
    """Open-Sora 1.2's shift for a video: the square root of its latent volume in units of one 512 x 512 frame.

    Its denoiser sees a latent clip of 5 frames for every 17 frames of pixels.

    Raises:
        UserError: 2 to 16 frames, for which the formula gives no volume.
    """
    latent_frames = 1 if size.frames == 1 else 5 * (size.frames // 17)
    if latent_frames == 0:
        raise UserError(
            f"Open-Sora's timesteps are defined for 1 or at least 17 frames, got {size.frames}: set video.frames"
        )
    return math.sqrt(size.height * size.width / 512**2 * latent_frames)
