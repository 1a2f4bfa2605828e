"""What a solver is: levels to visit, what the denoiser predicts, and a rule that steps from one level to another.

Everything walks a path `latents = alpha * clean + sigma * noise`; a `Level` is one place on it. In come latents and
the denoiser's prediction at one level, out go latents at another, any other. `step` is a pure function of tensors
and levels: no hidden index, no host synchronisation, gradient flows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from vader.errors import UserError
from vader.nouns import VideoSize
from vader.solvers.prediction import PREDICTIONS, TARGETS


@dataclass(frozen=True)
class Level:
    """One noise level: latents there are `alpha * clean + sigma * noise`.

    Attributes:
        alpha: of the clean latents, with `signal_scale` in it.
        sigma: of standard normal noise.
        time: what the denoiser is told.
        input_scale: factor on the latents before they go into the denoiser.
        signal_scale: VideoCrafter2's factor on the clean signal, of which its sampler's noise knows nothing.
    """

    alpha: float
    sigma: float
    time: float
    input_scale: float = 1.0
    signal_scale: float = 1.0

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma): minus infinity in pure noise, infinity at the clean end."""
        if self.alpha == 0 or self.sigma == 0:
            return math.inf if self.sigma == 0 else -math.inf
        return math.log(self.alpha / self.sigma)

    @property
    def noise_share(self) -> float:
        """The sigma, in [0, 1], that a flow has at this signal-to-noise ratio: one measure for all paths."""
        return self.sigma / (self.alpha + self.sigma)


@dataclass(frozen=True)
class Schedule:
    """The steps of one chain: step i goes from `starts[i]` to `ends[i]`, where as a rule the next one starts.

    The exception is DDIM under linspace and trailing spacing, see `DDIMLevels`. `ends[-1]` is where the chain ends;
    it starts at standard normal noise times `init_scale`.
    """

    starts: tuple[Level, ...]
    ends: tuple[Level, ...]
    init_scale: float = 1.0

    def __len__(self) -> int:
        return len(self.starts)


class Step(NamedTuple):
    """The next latents, the clean estimate, mean and std of the next latents, and what the next step has to know."""

    next: Tensor
    clean: Tensor
    mean: Tensor
    std: float
    memory: Any = None


class Levels(Protocol):
    def __call__(self, steps: int, size: VideoSize | None = None) -> Schedule:
        """The levels of `steps` steps; `size` matters where they depend on resolution.

        Raises:
            UserError: there is no chain of so many steps, or none for this size.
        """


class Rule(Protocol):
    @property
    def stochastic(self) -> bool:
        """Whether steps may add noise."""

    @property
    def ode(self) -> Rule:
        """The same rule without fresh noise."""

    def std(self, here: Level, there: Level) -> float:
        """Standard deviation of the noise that a step from here to there adds."""

    def __call__(
        self,
        latents: Tensor,
        clean: Tensor,
        epsilon: Tensor,
        here: Level,
        there: Level,
        noise: Tensor | None,
        memory: Any,
    ) -> Step:
        """One step from estimates of the clean latents and of the noise in `latents`; see `Solver.step`."""


@dataclass(frozen=True)
class Solver:
    """A way to sample, put together from parts that know nothing of each other.

    Attributes:
        levels: which levels a chain visits, and so the path it is on.
        prediction: what the denoiser's output stands for, one of `PREDICTIONS`.
        rule: how a step is made from the estimates.
        clip: bound on the clean estimate's absolute value; the noise estimate stays, as in diffusers.
    """

    levels: Levels
    prediction: str
    rule: Rule
    clip: float | None = None

    @property
    def stochastic(self) -> bool:
        """Whether `step` needs noise."""
        return self.rule.stochastic

    @property
    def ode(self) -> Solver:
        """The same solver without fresh noise: its steps follow the probability flow's ODE (arXiv 2011.13456, 4.3)."""
        return replace(self, rule=self.rule.ode)

    def std(self, here: Level, there: Level) -> float:
        """Standard deviation of the noise that a step from here to there adds: `Step.std`, known beforehand."""
        return self.rule.std(here, there)

    def schedule(self, steps: int, size: VideoSize | None = None) -> Schedule:
        """The levels of a chain of `steps` steps, float64 numbers; `size` matters where they depend on resolution.

        Raises:
            UserError: there is no chain of so many steps, or none for this size or this prediction.
        """
        schedule = self.levels(steps, size)
        if self.prediction == "epsilon" and schedule.starts[0].alpha == 0:
            raise UserError("epsilon prediction says nothing at zero SNR: set sampling.spacing to leading")
        return schedule

    def estimates(self, latents: Tensor, prediction: Tensor, here: Level) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise in latents at this level, by this prediction."""
        split = PREDICTIONS[self.prediction]
        clean, epsilon = split(latents, prediction.to(latents.dtype), here.alpha, here.sigma)
        return clean if self.clip is None else clean.clamp(-self.clip, self.clip), epsilon

    def step(
        self,
        latents: Tensor,
        prediction: Tensor,
        here: Level,
        there: Level,
        noise: Tensor | None = None,
        memory: Any = None,
    ) -> Step:
        """From latents at one level to latents at another, neighbours in a schedule or not.

        Args:
            latents: at `here`.
            prediction: the denoiser's, of these latents.
            here: where the latents are; not the clean end.
            there: where they are to be.
            noise: standard normal, like latents; needed where the rule adds noise.
            memory: `Step.memory` of the step that ended here, with whatever graph it has; None: there was none.

        Raises:
            ValueError: this step adds noise and was given none.
        """
        clean, epsilon = self.estimates(latents, prediction, here)
        return self.rule(latents, clean, epsilon, here, there, noise, memory)

    def renoise(self, clean: Tensor, noise: Tensor, level: Level) -> Tensor:
        """Clean latents brought to a level (forward process)."""
        return level.alpha * clean + level.sigma * noise

    def target(self, clean: Tensor, noise: Tensor, level: Level) -> Tensor:
        """What the denoiser should say of clean latents brought to a level by this noise: what it is trained for."""
        return TARGETS[self.prediction](clean, noise, level.alpha, level.sigma)
