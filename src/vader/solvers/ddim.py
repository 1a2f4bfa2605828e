"""DDIM: noise levels of a DDPM-trained model, deterministic or with fresh noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vader.errors import UserError
from vader.solvers.base import SPLITS, PathSolver, Schedule, path_tables
from vader.solvers.levels import SPACINGS, require_steps


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
        require_steps(steps, count)
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
