"""Solvers turn a denoiser's prediction at step i into the latents of the next step.

A solver makes a `Schedule` once (tables in float64; `vader.scheduler_config` builds it from a checkpoint's settings),
and then `step` is a pure function of tensors: no hidden index, no host synchronisation, gradient flows.

All of them walk a path `x = alpha * clean + sigma * noise`, so they share one step rule (`PathSolver`): split
the prediction into its clean and noise estimates, and put these together again at the next level. DDIM, Euler
for EDM and Euler for rectified flow differ in nothing but the levels they visit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vader.errors import UserError

# ---------------------------------------------------------------------------------------------- the contract


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
    @property
    def stochastic(self) -> bool:
        """Whether `step` needs noise."""
        return False

    @abstractmethod
    def schedule(self, steps: int, size: Any = None) -> Schedule:
        """The tables for `steps` steps; `size` (a VideoSize) matters where the times depend on resolution.

        Raises:
            UserError: there is no schedule of so many steps, or none for this size.
        """

    @abstractmethod
    def step(
        self,
        schedule: Schedule,
        i: int,
        latents: Tensor,
        prediction: Tensor,
        noise: Tensor | None = None,
        state: Any = None,
    ) -> Step:
        """One step. `noise` (standard normal, like latents) is needed where the solver is stochastic.

        Raises:
            ValueError: this step adds noise and was given none.
        """

    @abstractmethod
    def renoise(self, schedule: Schedule, i: int, clean: Tensor, noise: Tensor) -> Tensor:
        """Clean latents brought to the noise level at which step i starts (forward process)."""


# ------------------------------------------------------------------------------ what a prediction stands for

# Each gives the estimates (clean, noise), knowing that latents = alpha * clean + sigma * noise.
Split = Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]


def split_epsilon(latents: Tensor, epsilon: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """The prediction is the noise."""
    return (latents - sigma * epsilon) / alpha, epsilon


def split_sample(latents: Tensor, clean: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """The prediction is the clean sample."""
    return clean, (latents - alpha * clean) / sigma


def split_v(latents: Tensor, v: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """v = (alpha * noise - sigma * clean) / norm (Salimans and Ho 2022, arXiv 2202.00512, appendix D).

    The norm `sqrt(alpha^2 + sigma^2)` is 1 for DDIM; for EDM, where alpha is 1, it is that of the scaled input.
    """
    square = alpha**2 + sigma**2
    scaled = square**0.5 * v
    return (alpha * latents - sigma * scaled) / square, (sigma * latents + alpha * scaled) / square


def split_velocity(latents: Tensor, velocity: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """velocity = noise - clean, on a straight path: alpha + sigma = 1 (rectified flow, arXiv 2209.03003, eq. 1)."""
    return latents - sigma * velocity, latents + alpha * velocity


SPLITS: dict[str, Split] = {"epsilon": split_epsilon, "sample": split_sample, "v_prediction": split_v}


# ---------------------------------------------------------------------------------------------- the step rule


def path_tables(alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor, std: Tensor) -> dict[str, Tensor]:
    """Coefficients `[S]` of steps from (alpha, sigma) to (alpha_next, sigma_next); of that noise, `std` is fresh."""
    direction = (sigma_next**2 - std**2).clamp(min=0).sqrt()
    return {"alpha": alpha, "sigma": sigma, "alpha_next": alpha_next, "direction": direction, "std": std}


class PathSolver(Solver):
    """The step that all solvers share; a subclass makes the schedule and reads the prediction.

    `next = alpha_next * clean + sqrt(sigma_next^2 - std^2) * noise_estimate + std * fresh_noise` is DDIM's
    eq. 12 (arXiv 2010.02502). With std = 0 it is, term by term, the Euler step of EDM (arXiv 2206.00364,
    algorithm 1 without churn, alpha = 1) and of rectified flow (arXiv 2209.03003, alpha = 1 - sigma).
    """

    @abstractmethod
    def estimates(self, latents: Tensor, prediction: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise in `latents = alpha * clean + sigma * noise`, by this prediction."""

    def step(
        self,
        schedule: Schedule,
        i: int,
        latents: Tensor,
        prediction: Tensor,
        noise: Tensor | None = None,
        state: Any = None,
    ) -> Step:
        at = _row(schedule, i)
        clean, noise_estimate = self.estimates(latents, prediction.to(latents.dtype), at["alpha"], at["sigma"])
        mean = at["alpha_next"] * clean + at["direction"] * noise_estimate
        return Step(_add_noise(mean, at["std"], noise, i), clean, mean, at["std"], state)

    def renoise(self, schedule: Schedule, i: int, clean: Tensor, noise: Tensor) -> Tensor:
        at = _row(schedule, i)
        return at["alpha"] * clean + at["sigma"] * noise


def _row(schedule: Schedule, i: int) -> dict[str, float]:
    """The coefficients of step i as plain numbers, which change neither dtype nor device of latents."""
    return {name: float(table[i]) for name, table in schedule.tables.items()}


def _add_noise(mean: Tensor, std: float, noise: Tensor | None, i: int) -> Tensor:
    if std == 0.0:
        return mean
    if noise is None:
        raise ValueError(f"step {i} adds noise of standard deviation {std:.3g}: pass `noise`")
    return mean + std * noise


# --------------------------------------------------------------------- noise levels and times of the DDPM family


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


def _require_steps(steps: int, count: int) -> None:
    if not 1 <= steps <= count:
        raise UserError(f"sampling.steps must be between 1 and the model's {count} trained timesteps, got {steps}")


# ---------------------------------------------------------------------------------------------- the solvers


@dataclass(frozen=True, eq=False)
class DDIM(PathSolver):
    """DDIM (arXiv 2010.02502, eq. 12 and 16): eta 0 is deterministic, eta 1 as noisy as DDPM.

    As in diffusers, a step from t leads to the level of `t - T // S`, which under linspace and trailing spacing
    need not be exactly the next step's t.
    """

    alpha_bar: Tensor  # [T] float64
    prediction: str = "epsilon"
    spacing: str = "leading"
    offset: int = 0  # added to leading times
    final_alpha_bar: float = 1.0  # the level at which the last step ends
    clip: float | None = None  # bound on the clean estimate's absolute value; the noise estimate stays, as in diffusers
    eta: float = 0.0
    scale: Tensor | None = None  # [T] factor on the clean signal; None: 1

    def __post_init__(self) -> None:
        if self.scale is not None and self.prediction != "epsilon":
            raise UserError(f"dynamic_rescale is defined for epsilon prediction alone, got {self.prediction!r}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def estimates(self, latents: Tensor, prediction: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        clean, noise = SPLITS[self.prediction](latents, prediction, alpha, sigma)
        return clean if self.clip is None else clean.clamp(-self.clip, self.clip), noise

    def schedule(self, steps: int, size: Any = None) -> Schedule:
        times = self._times(steps)
        alpha_bar, scale = self._levels(times)
        alpha_bar_next, scale_next = self._levels(times - len(self.alpha_bar) // steps)
        # Eq. 16: the variance of DDPM's posterior, times eta^2.
        variance = (1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)
        tables = path_tables(
            alpha=scale * alpha_bar.sqrt(),
            sigma=(1 - alpha_bar).sqrt(),
            alpha_next=scale_next * alpha_bar_next.sqrt(),
            sigma_next=(1 - alpha_bar_next).sqrt(),
            std=self.eta * variance.sqrt(),
        )
        return Schedule(times.double(), torch.ones(len(times), dtype=torch.float64), 1.0, tables)

    def _times(self, steps: int) -> Tensor:
        count = len(self.alpha_bar)
        _require_steps(steps, count)
        times = SPACINGS[self.spacing](count, steps, self.offset).round().long()
        if times[0] >= count:
            raise UserError(
                f"{steps} steps with steps_offset {self.offset} start beyond timestep {count - 1}: use fewer"
            )
        if self.prediction == "epsilon" and self.alpha_bar[times[0]] == 0:
            raise UserError("epsilon prediction says nothing at zero SNR: set sampling.spacing to leading")
        return times

    def _levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_bar and scale at integer times `[S]`; what comes before time 0 is the final level."""
        scale = torch.ones_like(self.alpha_bar) if self.scale is None else self.scale
        before = self.alpha_bar.new_tensor([self.final_alpha_bar])
        places = (times + 1).clamp(min=0)
        return torch.cat([before, self.alpha_bar])[places], torch.cat([scale[:1], scale])[places]


@dataclass(frozen=True, eq=False)
class EulerEDM(PathSolver):
    """Euler's method on noise levels sigma, with latents `clean + sigma * noise` (EDM, arXiv 2206.00364).

    The levels are those of spaced timesteps of a DDPM-trained model, or Karras's; the denoiser is told a timestep
    or, if `continuous`, `log(sigma) / 4` (EDM, table 1).
    """

    alpha_bar: Tensor  # [T] float64
    prediction: str = "epsilon"
    spacing: str = "linspace"
    offset: int = 0
    karras: bool = False
    sigma_min: float | None = None  # of Karras's levels; None: those of the spaced timesteps
    sigma_max: float | None = None
    continuous: bool = False

    def estimates(self, latents: Tensor, prediction: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        return SPLITS[self.prediction](latents, prediction, alpha, sigma)

    def schedule(self, steps: int, size: Any = None) -> Schedule:
        sigma, times = self._levels(steps)
        one = torch.ones_like(sigma)
        norm = (1 + sigma**2).sqrt()
        tables = path_tables(one, sigma, one, _then_zero(sigma), torch.zeros_like(sigma))
        # Diffusers' rule: times that start at the very end of training take the noise alone for the latents.
        init_scale = sigma[0] if self.spacing in ("linspace", "trailing") else norm[0]
        return Schedule(times, 1 / norm, float(init_scale), tables)

    def _levels(self, steps: int) -> tuple[Tensor, Tensor]:
        """The noise levels and what the denoiser is told of them, each `[S]`."""
        count = len(self.alpha_bar)
        _require_steps(steps, count)
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


def karras_sigmas(sigma_min: float, sigma_max: float, steps: int, rho: float = 7.0) -> Tensor:
    """Descending noise levels `[S]`, evenly spaced in sigma^(1/rho) (EDM, arXiv 2206.00364, eq. 5)."""
    return torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps, dtype=torch.float64) ** rho


def interpolate(x: Tensor, known_x: Tensor, known_y: Tensor) -> Tensor:
    """Piecewise linear interpolation over ascending `known_x`, constant beyond its ends."""
    return torch.from_numpy(np.interp(x.numpy(), known_x.numpy(), known_y.numpy()))


def _then_zero(levels: Tensor) -> Tensor:
    """Each step's end: the level at which the next one starts, and at last 0."""
    return torch.cat([levels[1:], levels.new_zeros(1)])


@dataclass(frozen=True, eq=False)
class EulerFlow(PathSolver):
    """Euler's method on the straight path `(1 - sigma) * clean + sigma * noise` (rectified flow, arXiv 2209.03003).

    A static shift moves the levels towards noise (arXiv 2403.03206, eq. 23), where larger videos need them.
    """

    train_steps: int = 1000  # the denoiser is told sigma * train_steps
    shift: float = 1.0

    def estimates(self, latents: Tensor, prediction: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        return split_velocity(latents, prediction, alpha, sigma)

    def schedule(self, steps: int, size: Any = None) -> Schedule:
        _require_steps(steps, self.train_steps)
        sigma = self._sigmas(steps, size)
        sigma_next = _then_zero(sigma)
        tables = path_tables(1 - sigma, sigma, 1 - sigma_next, sigma_next, torch.zeros_like(sigma))
        return Schedule(sigma * self.train_steps, torch.ones_like(sigma), 1.0, tables)

    def _sigmas(self, steps: int, size: Any) -> Tensor:
        """Diffusers' levels: even ones down to the lowest trained one, 1 / T, which so gets shifted twice."""
        lowest = self.shift / (self.train_steps - 1 + self.shift)
        return shifted(torch.linspace(1.0, lowest, steps, dtype=torch.float64), self.shift)


@dataclass(frozen=True, eq=False)
class OpenSoraFlow(EulerFlow):
    """Rectified flow as Open-Sora 1.2 samples it: even levels, shifted by the size of the video.

    Its denoiser predicts clean minus noise, and sees a latent clip of 5 frames for every 17 frames of pixels.
    """

    transform: bool = True

    def estimates(self, latents: Tensor, prediction: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        return split_velocity(latents, -prediction, alpha, sigma)

    def _sigmas(self, steps: int, size: Any) -> Tensor:
        even = 1 - torch.arange(steps, dtype=torch.float64) / steps
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
