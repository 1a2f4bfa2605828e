"""Step rules: from the estimates at one level to the latents at another. Each is pure and works on any interval.

`FirstOrder` is DDIM and Euler's method in one; `Multistep` looks back at the clean estimate of the step before
(DPM-Solver++ 2M, deterministic or with noise); `UniPC` also corrects each step by hindsight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from vader.solvers.solver import Level, Step


@dataclass(frozen=True)
class _Noisy:
    """A rule that adds `eta` times the noise of DDPM: 0 is deterministic, 1 as noisy as that."""

    eta: float = 0.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def std(self, here: Level, there: Level) -> float:
        return self.eta * posterior_std(here, there)


@dataclass(frozen=True)
class FirstOrder(_Noisy):
    """`next = alpha' * clean + sqrt(sigma'^2 - std^2) * noise_estimate + std * fresh_noise`.

    This is DDIM's eq. 12 (arXiv 2010.02502). With std = 0 it is, term by term, the Euler step of EDM (arXiv
    2206.00364, algorithm 1 without churn, alpha = 1) and of rectified flow (arXiv 2209.03003, alpha = 1 - sigma).
    Any std up to sigma' leaves the distribution at every level as it is, so each of them has an eta as DDIM has:
    0 is deterministic, 1 as noisy as DDPM or ancestral sampling.
    """

    @property
    def ode(self) -> FirstOrder:
        return replace(self, eta=0.0)

    def __call__(
        self,
        latents: Tensor,
        clean: Tensor,
        epsilon: Tensor,
        here: Level,
        there: Level,
        noise: Tensor | None = None,
        memory: Any = None,
    ) -> Step:
        std = self.std(here, there)
        mean = there.alpha * clean + _direction(there, std) * epsilon
        return Step(_add_noise(mean, std, noise), clean, mean, std)


class Estimate(NamedTuple):
    """A clean estimate, and the level of the latents that it was made from."""

    clean: Tensor
    level: Level


@dataclass(frozen=True)
class Multistep(_Noisy):
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2): `FirstOrder` with a clean estimate that looks ahead.

    With eta 0 it is deterministic, with eta 1 it is SDE-DPM-Solver++ 2M, as CogVideoX is sampled. Its memory is the
    `Estimate` of the step before. A step without one, and a step to sigma 0, are of first order.
    """

    @property
    def ode(self) -> Multistep:
        return replace(self, eta=0.0)

    def __call__(
        self,
        latents: Tensor,
        clean: Tensor,
        epsilon: Tensor,
        here: Level,
        there: Level,
        noise: Tensor | None = None,
        memory: Estimate | None = None,
    ) -> Step:
        std = self.std(here, there)
        now = Estimate(clean, here)
        mean = _move(latents, _ahead(now, memory, there), here, there, std)
        return Step(_add_noise(mean, std, noise), clean, mean, std, now)


class UniPCMemory(NamedTuple):
    """Of the step before: its clean estimate and the one before that, its corrected sample, its order (1 or 2)."""

    now: Estimate
    earlier: Estimate | None
    sample: Tensor
    order: int


@dataclass(frozen=True)
class UniPC:
    """UniPC of order 2 on clean estimates, with B(h) = exp(h) - 1 (arXiv 2302.04867, section 3): Wan's solver.

    Its predictor is DPM-Solver++ 2M. Before it the sample is corrected: the last step is made again, now that the
    clean estimate at its end is known. The clean estimates are those of uncorrected samples, so a step to sigma 0
    gives just that.
    """

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def ode(self) -> UniPC:
        return self

    def std(self, here: Level, there: Level) -> float:
        return 0.0

    def __call__(
        self,
        latents: Tensor,
        clean: Tensor,
        epsilon: Tensor,
        here: Level,
        there: Level,
        noise: Tensor | None = None,
        memory: UniPCMemory | None = None,
    ) -> Step:
        now, before = Estimate(clean, here), None if memory is None else memory.now
        sample = latents if memory is None else _corrected(memory, now)
        mean = _move(sample, _ahead(now, before, there), here, there)
        order = 1 if before is None or there.sigma == 0 else 2
        return Step(mean, clean, mean, 0.0, UniPCMemory(now, before, sample, order))


def posterior_std(here: Level, there: Level) -> float:
    """Standard deviation of latents `there`, given the noisier ones `here` and the clean ones; 0 on the way up.

    It is that of a forward process in which noise is added from level to level: DDPM's (arXiv 2006.11239, eq. 7)
    where alpha^2 + sigma^2 = 1, ancestral Euler sampling where alpha = 1.
    """
    signal, signal_there = here.alpha / here.signal_scale, there.alpha / there.signal_scale
    if signal * there.sigma >= signal_there * here.sigma:
        return 0.0
    kept = signal / signal_there * there.sigma
    return there.sigma / here.sigma * math.sqrt(max(here.sigma * here.sigma - kept * kept, 0.0))


def _direction(there: Level, std: float) -> float:
    """How much of the noise estimate is in the next latents, where `std` of their noise is fresh."""
    return math.sqrt(max(there.sigma * there.sigma - std * std, 0.0))


def _add_noise(mean: Tensor, std: float, noise: Tensor | None) -> Tensor:
    if std == 0.0:
        return mean
    if noise is None:
        raise ValueError(f"this step adds noise of standard deviation {std:.3g}: pass `noise`")
    return mean + std * noise


def _move(latents: Tensor, clean: Tensor, here: Level, there: Level, std: float = 0.0) -> Tensor:
    """The mean of `FirstOrder`, if `clean` were the clean latents: the noise is then `(latents - alpha clean) / sigma`.

    It is how an exponential integrator writes the step (arXiv 2211.01095, eq. 9 and 12).
    """
    direction = _direction(there, std)
    return direction / here.sigma * latents + (there.alpha - here.alpha * direction / here.sigma) * clean


def _ahead(now: Estimate, before: Estimate | None, there: Level) -> Tensor:
    """D of arXiv 2211.01095, eq. 12: the clean estimate half an interval of log-SNR ahead, on a line through two."""
    if before is None or before.level == now.level or there.sigma == 0:
        return now.clean
    h, h_before = there.log_snr - now.level.log_snr, now.level.log_snr - before.level.log_snr
    return now.clean + h / (2 * h_before) * (now.clean - before.clean)


def _corrected(memory: UniPCMemory, now: Estimate) -> Tensor:
    """The sample at which the last step would have ended, had it known the clean estimate there (UniC)."""
    start = memory.now
    change = now.clean - start.clean
    if memory.order == 1 or memory.earlier is None:
        return _move(memory.sample, start.clean + 0.5 * change, start.level, now.level)
    h = now.level.log_snr - start.level.log_snr
    place = (memory.earlier.level.log_snr - start.level.log_snr) / h
    weight_earlier, weight_now = _corrector_weights(h, place)
    slope = weight_earlier / place * (memory.earlier.clean - start.clean) + weight_now * change
    return _move(memory.sample, start.clean + slope, start.level, now.level)


def _corrector_weights(h: float, place: float) -> tuple[float, float]:
    """Weights of the differences at `place` and at 1, in units of the interval h of log-SNR (arXiv 2302.04867, eq. 5).

    They solve `w_place + w_1 = b_1, place w_place + w_1 = b_2` with `b_n = n! z phi_(n+1)(z) / B(z)` at `z = -h`.
    """
    z, grown = -h, math.expm1(-h)
    z_phi_2 = grown / z - 1
    z_phi_3 = z_phi_2 / z - 0.5
    b_1, b_2 = z_phi_2 / grown, 2 * z_phi_3 / grown
    weight = (b_1 - b_2) / (1 - place)
    return weight, b_1 - weight
