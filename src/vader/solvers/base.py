"""The contract of a solver, and the step that those without a memory share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

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

    @abstractmethod
    def noise_estimate(self, schedule: Schedule, i: int, latents: Tensor, prediction: Tensor) -> Tensor:
        """The noise in the latents at which step i starts, by this prediction; whatever it is a prediction of."""


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


def posterior_std(alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor) -> Tensor:
    """Standard deviation `[S]` of the less noisy latents given the noisier ones and the clean ones.

    It is that of a forward process in which noise is added from level to level: DDPM's (arXiv 2006.11239, eq. 7)
    where alpha^2 + sigma^2 = 1, ancestral Euler sampling where alpha = 1.
    """
    kept = alpha / alpha_next
    return sigma_next / sigma * (sigma**2 - (kept * sigma_next) ** 2).clamp(min=0).sqrt()


class PathSolver(Solver):
    """The step that all solvers share; a subclass makes the schedule and reads the prediction.

    `next = alpha_next * clean + sqrt(sigma_next^2 - std^2) * noise_estimate + std * fresh_noise` is DDIM's
    eq. 12 (arXiv 2010.02502). With std = 0 it is, term by term, the Euler step of EDM (arXiv 2206.00364,
    algorithm 1 without churn, alpha = 1) and of rectified flow (arXiv 2209.03003, alpha = 1 - sigma). Any std up to
    sigma_next leaves the distribution at every level as it is, so each of them has an `eta` as DDIM has.
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
        at = row(schedule, i)
        clean, noise_estimate = self.estimates(latents, prediction.to(latents.dtype), at["alpha"], at["sigma"])
        mean = at["alpha_next"] * clean + at["direction"] * noise_estimate
        return Step(_add_noise(mean, at["std"], noise, i), clean, mean, at["std"], state)

    def renoise(self, schedule: Schedule, i: int, clean: Tensor, noise: Tensor) -> Tensor:
        at = row(schedule, i)
        return at["alpha"] * clean + at["sigma"] * noise

    def noise_estimate(self, schedule: Schedule, i: int, latents: Tensor, prediction: Tensor) -> Tensor:
        at = row(schedule, i)
        return self.estimates(latents, prediction.to(latents.dtype), at["alpha"], at["sigma"])[1]


def row(schedule: Schedule, i: int) -> dict[str, float]:
    """The coefficients of step i as plain numbers, which change neither dtype nor device of latents."""
    return {name: float(table[i]) for name, table in schedule.tables.items()}


def _add_noise(mean: Tensor, std: float, noise: Tensor | None, i: int) -> Tensor:
    if std == 0.0:
        return mean
    if noise is None:
        raise ValueError(f"step {i} adds noise of standard deviation {std:.3g}: pass `noise`")
    return mean + std * noise
