"""The levels that a chain of S steps visits, path by path: variance preserving, EDM, rectified flow.

In come a model's trained noise levels or its sigmas, out goes a `Schedule` of plain numbers, computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vader.errors import UserError
from vader.nouns import VideoSize
from vader.solvers.levels import SPACINGS, ending_at, interpolate, karras_sigmas, require_steps, shifted
from vader.solvers.solver import Level, Schedule


def as_levels(alpha: Tensor, sigma: Tensor, time: Tensor, *scales: Tensor) -> tuple[Level, ...]:
    """Levels from columns `[S]`; `scales` are `input_scale` and `signal_scale`."""
    return tuple(
        Level(*row) for row in zip(*(column.tolist() for column in (alpha, sigma, time, *scales)), strict=True)
    )


def chained(starts: tuple[Level, ...], final: Level, init_scale: float = 1.0) -> Schedule:
    """Every step ends where the next one starts."""
    return Schedule(starts, (*starts[1:], final), init_scale)


def _integer_times(spacing: str, count: int, points: int, offset: int, steps: int) -> Tensor:
    """The first S of spaced times, `[S]` integers."""
    times = SPACINGS[spacing](count, points, offset)[:steps].round().long()
    if times[0] >= count:
        raise UserError(f"{steps} steps with steps_offset {offset} start beyond timestep {count - 1}: use fewer")
    return times


# ---- variance preserving: alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar) ----


@dataclass(frozen=True, eq=False)
class DDIMLevels:
    """Trained levels as DDIM visits them (arXiv 2010.02502).

    As in diffusers, a step from t leads to the level of `t - T // S`, which under linspace and trailing spacing
    need not be exactly the next step's t.
    """

    alpha_bar: Tensor  # [T] float64
    spacing: str = "leading"
    offset: int = 0  # added to leading times
    final_alpha_bar: float = 1.0  # the level at which the last step ends
    scale: Tensor | None = None  # [T] factor on the clean signal; None: 1

    def __call__(self, steps: int, size: VideoSize | None = None) -> Schedule:
        count = len(self.alpha_bar)
        require_steps(steps, count)
        times = _integer_times(self.spacing, count, steps, self.offset, steps)
        return Schedule(self.at(times), self.at(times - count // steps))

    def at(self, times: Tensor) -> tuple[Level, ...]:
        """Levels at integer times `[S]`; what comes before time 0 is the final level."""
        scale = torch.ones_like(self.alpha_bar) if self.scale is None else self.scale
        before = self.alpha_bar.new_tensor([self.final_alpha_bar])
        places = (times + 1).clamp(min=0)
        alpha_bar, scale = torch.cat([before, self.alpha_bar])[places], torch.cat([scale[:1], scale])[places]
        told, one = times.clamp(min=0).double(), torch.ones_like(scale)
        return as_levels(scale * alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), told, one, scale)


@dataclass(frozen=True, eq=False)
class MultistepLevels:
    """Trained levels as DPM-Solver and UniPC visit them: the first S of S + 1 spaced ones, and then the clean end.

    The last of the S + 1 is near 0; trailing ones end there anyway.
    """

    alpha_bar: Tensor  # [T] float64
    spacing: str = "linspace"
    offset: int = 0  # added to leading times

    def __call__(self, steps: int, size: VideoSize | None = None) -> Schedule:
        count = len(self.alpha_bar)
        if not 1 <= steps < count:
            raise UserError(
                f"sampling.steps must be between 1 and {count - 1} for the solvers dpm and unipc, got {steps}"
            )
        points = steps if self.spacing == "trailing" else steps + 1
        times = _integer_times(self.spacing, count, points, self.offset, steps)
        alpha_bar = self.alpha_bar[times]
        return chained(as_levels(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), times.double()), Level(1.0, 0.0, 0.0))


# ---- EDM: alpha = 1 ----


@dataclass(frozen=True, eq=False)
class EDMLevels:
    """Noise levels sigma, with latents `clean + sigma * noise` (EDM, arXiv 2206.00364).

    They are those of spaced timesteps of a DDPM-trained model, or Karras's; the denoiser is told a timestep or, if
    `continuous`, `log(sigma) / 4` (EDM, table 1).
    """

    alpha_bar: Tensor  # [T] float64
    spacing: str = "linspace"
    offset: int = 0
    karras: bool = False
    sigma_min: float | None = None  # of Karras's levels; None: those of the spaced timesteps
    sigma_max: float | None = None
    continuous: bool = False

    def __call__(self, steps: int, size: VideoSize | None = None) -> Schedule:
        sigma, times = self._sigmas(steps)
        norm = (1 + sigma**2).sqrt()
        # Diffusers' rule: times that start at the very end of training take the noise alone for the latents.
        init_scale = sigma[0] if self.spacing in ("linspace", "trailing") else norm[0]
        return chained(
            as_levels(torch.ones_like(sigma), sigma, times, 1 / norm), Level(1.0, 0.0, 0.0), float(init_scale)
        )

    def _sigmas(self, steps: int) -> tuple[Tensor, Tensor]:
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


# ---- rectified flow: alpha = 1 - sigma ----


@dataclass(frozen=True, eq=False)
class FlowLevels:
    """Levels of the straight path `(1 - sigma) * clean + sigma * noise` (rectified flow, arXiv 2209.03003).

    A shift moves them towards noise, where larger videos need them: a number, or a function of the video's size.
    """

    sigmas: Callable[[int], Tensor]  # steps -> [S] before the shift
    shift: float | Callable[[VideoSize | None], float] = 1.0
    train_steps: int = 1000  # the denoiser is told sigma * train_steps
    terminal: float | None = None  # the last sigma before 0; None: as it comes
    ascending: bool = False  # the denoiser is told (1 - sigma) * train_steps

    def __call__(self, steps: int, size: VideoSize | None = None) -> Schedule:
        require_steps(steps, self.train_steps)
        sigma = self.visited(steps, size)
        told = (1 - sigma if self.ascending else sigma) * self.train_steps
        return _flow(sigma, told, self.train_steps if self.ascending else 0)

    def visited(self, steps: int, size: VideoSize | None) -> Tensor:
        """Descending sigmas `[S]`, shifted."""
        shift = self.shift(size) if callable(self.shift) else self.shift
        sigma = shifted(self.sigmas(steps), shift)
        return sigma if self.terminal is None else ending_at(sigma, self.terminal)


@dataclass(frozen=True, eq=False)
class UniPCFlowLevels(FlowLevels):
    """Flow levels as diffusers' UniPC has them: a millionth below 1, in float32; times are cut to integers.

    A millionth below 1, the step of float32 numbers is 6 % of `1 - sigma`, so it matters to log-SNR.
    """

    def __call__(self, steps: int, size: VideoSize | None = None) -> Schedule:
        require_steps(steps, self.train_steps)
        sigma = self.visited(steps, size)
        sigma = torch.cat([sigma[:1] - 1e-6 * (sigma[:1] > 1 - 1e-6), sigma[1:]])
        return _flow(sigma.float().double(), (sigma * self.train_steps).trunc(), 0)


def _flow(sigma: Tensor, told: Tensor, told_at_end: float) -> Schedule:
    return chained(as_levels(1 - sigma, sigma, told), Level(1.0, 0.0, float(told_at_end)))
