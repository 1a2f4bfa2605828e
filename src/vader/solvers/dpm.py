"""DPM-Solver++ 2M: the second-order multistep solver with which ModelScope is commonly sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vader.errors import UserError
from vader.solvers.base import SPLITS, PathSolver, Schedule, Step, row
from vader.solvers.levels import SPACINGS, then_zero


@dataclass(frozen=True, eq=False)
class DPMSolver2M(PathSolver):
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2), deterministic, on a variance-preserving path.

    With lambda = log(alpha / sigma), h the step in lambda and h' the one before, eq. 12 there is

        D    = clean + h / (2 h') * (clean - clean of the step before)
        next = sigma_next / sigma * latents + (alpha_next - alpha * sigma_next / sigma) * D

    which is DDIM's step with D for the clean estimate. Its memory is that earlier clean estimate: it comes in as
    `state` (None: this step is of first order) and goes out in `Step.state`, with whatever graph it has. The first
    step and the last, which ends at sigma 0, are of first order.
    """

    alpha_bar: Tensor  # [T] float64
    prediction: str = "epsilon"
    spacing: str = "linspace"
    offset: int = 0  # added to leading times

    def estimates(self, latents: Tensor, prediction: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        return SPLITS[self.prediction](latents, prediction, alpha, sigma)

    def schedule(self, steps: int, size: Any = None) -> Schedule:
        times = self._times(steps)
        alpha, sigma = self.alpha_bar[times].sqrt(), (1 - self.alpha_bar[times]).sqrt()
        alpha_next, sigma_next = torch.cat([alpha[1:], alpha.new_ones(1)]), then_zero(sigma)
        tables = {
            "alpha": alpha,
            "sigma": sigma,
            "keep": sigma_next / sigma,
            "gain": alpha_next - alpha * sigma_next / sigma,
            "look_back": _look_back((alpha / sigma).log()),
        }
        return Schedule(times.double(), torch.ones(steps, dtype=torch.float64), 1.0, tables)

    def _times(self, steps: int) -> Tensor:
        """Times `[S]`: the first S of S + 1 spaced ones, whose last is near 0; trailing ones end there anyway."""
        count = len(self.alpha_bar)
        if not 1 <= steps < count:
            raise UserError(f"sampling.steps must be between 1 and {count - 1} for the solver dpm, got {steps}")
        points = steps if self.spacing == "trailing" else steps + 1
        times = SPACINGS[self.spacing](count, points, self.offset)[:steps].round().long()
        if times[0] >= count:
            raise UserError(
                f"{steps} steps with steps_offset {self.offset} start beyond timestep {count - 1}: use fewer"
            )
        return times

    def step(
        self,
        schedule: Schedule,
        i: int,
        latents: Tensor,
        prediction: Tensor,
        noise: Tensor | None = None,
        state: Any = None,
    ) -> Step:
        at = row(schedule, i)
        clean, _ = self.estimates(latents, prediction.to(latents.dtype), at["alpha"], at["sigma"])
        towards = clean if state is None else clean + at["look_back"] * (clean - state)
        following = at["keep"] * latents + at["gain"] * towards
        return Step(following, clean, following, 0.0, clean)


def _look_back(log_snr: Tensor) -> Tensor:
    """h / (2 h') for every step `[S]`; 0 for the first and the last."""
    weights = torch.zeros_like(log_snr)
    h = log_snr.diff()
    weights[1:-1] = h[1:] / (2 * h[:-1])
    return weights
