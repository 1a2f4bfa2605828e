"""Noise windows: fresh noise, and so training, in a few steps of the chain alone; all others are the ODE's.

Fewer steps to go through again make an update cheaper, and what differs between two videos is the doing of few steps
(MixGRPO, arXiv 2507.21802; Flow-GRPO-Fast, in the code of arXiv 2505.05470). In go a recipe's numbers, out come steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vader import randomness
from vader.algorithms.base import unreached
from vader.engine.engine import Engine
from vader.errors import UserError


@dataclass(frozen=True)
class NoiseWindow:
    """`size` consecutive steps, at a random place among those from `first` to before `end`.

    Raises `UserError` where the chain of `steps` steps has no such place.
    """

    first: int
    end: int
    size: int
    steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.end <= self.steps:
            raise UserError(
                f"algorithm.window is [{self.first}, {self.end}]: it begins at a step and ends before another, within "
                f"[0, {self.steps}] with sampling.steps {self.steps}"
            )
        if self.size > self.end - self.first:
            raise UserError(
                f"algorithm.window_size is {self.size}, but from step {self.first} to before {self.end} there are "
                f"{self.end - self.first}: lower it, or widen algorithm.window"
            )

    @property
    def places(self) -> list[range]:
        """Where it may be."""
        return [range(start, start + self.size) for start in range(self.first, self.end - self.size + 1)]

    def drawn(self, seed: int, step: int) -> range:
        """Where it is in a training step: one place for all videos, so that processes stay in step."""
        rng = randomness.generator(seed, "ddpo/window", step)
        return self.places[int(torch.randint(len(self.places), (), generator=rng))]

    def check(self, engine: Engine, min_std: float) -> None:
        """Raises `UserError` where it holds no step to train, or leaves out all of a denoiser that is trained."""
        if self.size == self.steps:  # no window at all
            return
        sampler = engine.sampler
        ends = zip(sampler.schedule.starts, sampler.schedule.ends, strict=True)
        stds = [sampler.solver.std(here, there) for here, there in ends]
        for place in self.places:
            if all(stds[i] == 0 or stds[i] < min_std for i in place):
                raise UserError(
                    f"algorithm.window may be steps {place.start} to {place.stop - 1}, which add noise of at most "
                    f"{max(stds[i] for i in place):.2g}, and algorithm.min_std is {min_std:g}: end it sooner"
                )
        if missed := unreached(engine, range(self.first, self.end)):
            raise UserError(
                f"algorithm.window never reaches {missed[0]!r}, which denoises other steps than {self.first} to "
                f"{self.end - 1}: widen it, or leave {missed[0]!r} out of adapter.denoisers"
            )


def noise_window(window: tuple[int, int] | None, size: int | None, steps: int) -> NoiseWindow:
    """The window of a recipe's two keys; without either, the whole chain of `steps` steps. Errors as `NoiseWindow`."""
    first, end = window or (0, steps)
    return NoiseWindow(first, end, end - first if size is None else size, steps)
