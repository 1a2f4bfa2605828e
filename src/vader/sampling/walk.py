"""The walk: the sampling chain of some videos under their noise, as moves from place to place.

Plain sampling, the baselines' rollouts and every gradient policy are made of these moves, and there are two loops: all
steps (`Walk.places`), and those before any with gradient, which may be fewer (`Prefix.places`). A step without gradient
builds no graph, so that none is ever built and thrown away.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from vader.models.base import VideoModel
from vader.networks.adapter import adapters_merged
from vader.nouns import Condition, map_latents
from vader.sampling.guidance import Guidance, Passes
from vader.sampling.noise import Noise
from vader.solvers import Level, Schedule, Solver, Step

UNIT = 1e-3  # small: a solver that clips clean estimates is linear there


class Phases(Protocol):
    """Where time goes: `with phases("sample"): ...`."""

    def __call__(self, name: str) -> AbstractContextManager[None]: ...


def untimed(name: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Sampler:
    """How videos are sampled from a model: solver, number of steps, guidance, and how its branches are run.

    Raises `UserError` where the guidance cannot lead the model.
    """

    model: VideoModel
    solver: Solver
    schedule: Schedule
    guidance: Guidance
    batched: bool = True
    detach_uncond: bool = False

    def __post_init__(self) -> None:
        self.guidance.check(self.model, len(self.schedule))


@dataclass(frozen=True)
class Place:
    """Where a walk is: latents `[B, ...]` before step i (i = T: final), and how the last step came there.

    Attributes:
        memory: what the solver remembers.
        clean: the last step's clean estimate x0; None at the start.
        mean: the mean of these latents, given the place before.
        std: the standard deviation of the fresh noise in them.
    """

    i: int
    latents: Any
    memory: Any = None
    clean: Any = None
    mean: Any = None
    std: float = 0.0


@dataclass(frozen=True)
class Prefix:
    """How `Walk.frozen` gets to where gradient begins: most of a training step's work, and how to do with less.

    Attributes:
        every: one prediction leads over so many steps, the last one to exactly where gradient begins.
        guidance: shares of the whole chain, from 0 at its noise to 1 at its end, between whose steps there is
            guidance; elsewhere the conditional prediction does alone (as arXiv 2404.07724, in training).
    """

    every: int = 1
    guidance: tuple[float, float] = (0.0, 1.0)

    def places(self, walk: Walk, at: Place, end: int) -> Iterator[Place]:
        """Every place that is visited after `at`, the last being where step `end` starts; no step has gradient."""
        while at.i < end:
            guided = self.guidance[0] <= at.i / len(walk) < self.guidance[1]
            at = walk.advance(at, walk.predict(at.i, at.latents, guided), min(at.i + self.every, end))
            yield at


EXACT = Prefix()


@dataclass(frozen=True)
class Walk:
    """The chain of B videos: everything that fixes it, and the moves.

    Attributes:
        on_gradient: told of every prediction with graph: `(walk, step, latents, prediction)`.
        gradient_step: a context around every prediction with graph (activations that wait elsewhere).
        prefix: how `frozen` gets to where gradient begins.
        noisy: the steps that may add fresh noise, all others being the ODE's; None: all may.
    """

    sampler: Sampler
    condition: Condition
    noise: Noise
    phases: Phases = untimed
    on_gradient: Callable[[Walk, int, Any, Any], object] | None = None
    gradient_step: Callable[[], AbstractContextManager[Any]] = nullcontext
    prefix: Prefix = EXACT
    noisy: Container[int] | None = None

    def __len__(self) -> int:
        return len(self.sampler.schedule)

    def start(self) -> Place:
        scale = self.sampler.schedule.init_scale
        return Place(0, self.kept(map_latents(lambda x: x * scale, self.noise.draw("start"))))

    # ---- one prediction ----

    def predict(self, i: int, latents: Any, guided: bool = True) -> Any:
        """The prediction for (unscaled) latents at step i, with guidance or the conditional one alone."""
        sampler, here = self.sampler, self.start_of(i)
        scaled = map_latents(lambda x: x * here.input_scale, latents)
        time = _first(latents).new_full((), here.time)  # filled there: a copy would wait for the device
        share = i / len(self)
        branches = (sampler.batched, sampler.detach_uncond)
        passes = Passes(sampler.model, scaled, time, self.condition, share, *branches, steps=len(self))
        return sampler.guidance(passes) if guided else passes.cond()

    def step(self, at: Place, grad: bool = True, weight: float = 1.0, carry: float = 1.0) -> Place:
        """One denoising step.

        Args:
            grad: whether the prediction has a graph.
            weight: factor on the gradient of the prediction.
            carry: factor on the gradient that goes on through the denoiser's input; 0 stops it (DRTune).
        """
        with self.phases("gradient" if grad else "sample"):
            return self._move(at, grad, weight, carry)

    def leap(self, at: Place, end: int, grad: bool = True) -> Place:
        """By one prediction straight to where step `end` starts, however far: without fresh noise on the way."""
        solver, here, there = self.sampler.solver, self.start_of(at.i), self.level(end)
        with self.phases("gradient" if grad else "sample"):
            prediction = self._predicted(at, grad)
        clean, noise = (
            map_latents(lambda x, v, of=of: solver.estimates(x, v, here)[of], at.latents, prediction) for of in (0, 1)
        )
        latents = map_latents(lambda x, e: solver.renoise(x, e, there), clean, noise)
        return Place(end, self.kept(latents), clean=self.kept(clean))

    def _move(self, at: Place, grad: bool, weight: float, carry: float) -> Place:
        return self.advance(at, self._predicted(at, grad, weight, carry))

    def _predicted(self, at: Place, grad: bool, weight: float = 1.0, carry: float = 1.0) -> Any:
        """The prediction at a place, its gradient scaled."""
        with torch.set_grad_enabled(grad), self.gradient_step() if grad else nullcontext():
            seen = map_latents(lambda x: scale_gradient(x, carry), at.latents)
            prediction = self.predict(at.i, seen)
        if grad and self.on_gradient is not None:
            self.on_gradient(self, at.i, seen, prediction)
        return map_latents(lambda x: scale_gradient(x, weight), prediction)

    def advance(self, at: Place, prediction: Any, end: int | None = None) -> Place:
        """Where a prediction leads from a place, by the solver's rule: one step on, or to where step `end` starts."""
        solver, memory, end = self.solver_of(at.i), at.memory, at.i + 1 if end is None else end
        fresh = self.noise.draw(f"step{at.i}") if solver.stochastic else None
        here, there = self.start_of(at.i), self.sampler.schedule.ends[end - 1]
        if isinstance(at.latents, Tensor):
            return self._stepped(end, solver.step(at.latents, prediction, here, there, fresh, memory))
        steps = {
            name: solver.step(x, prediction[name], here, there, fresh and fresh[name], memory and memory[name])
            for name, x in at.latents.items()
        }
        return self._stepped(end, _joined(steps))

    def _stepped(self, end: int, done: Step) -> Place:
        """The place before step `end`; what is known is in its place in all latents that policies and rewards see."""
        following, clean, mean = map(self.kept, (done.next, done.clean, done.mean))
        return Place(end, following, done.memory, clean, mean, done.std)

    # ---- several ----

    def places(
        self, at: Place, end: int, active: Container[int] = (), weight: float = 1.0, carry: float = 1.0
    ) -> Iterator[Place]:
        """Every place after `at` until step `end` starts; steps that are not active have no graph of their own."""
        while at.i < end:
            at = self._move(at, at.i in active, weight, carry)
            yield at

    def to(self, end: int, at: Place, active: Container[int] = (), weight: float = 1.0, carry: float = 1.0) -> Place:
        """On from a place to where step `end` starts, as `step` in the active ones."""
        with self.phases("gradient"):
            return _last(at, self.places(at, end, active, weight, carry))

    def frozen(self, end: int) -> Place:
        """From the noise to where step `end` starts, without gradient, as the prefix says."""
        with self.phases("sample"), torch.no_grad(), adapters_merged(self.sampler.model.denoisers):
            start = self.start()
            return _last(start, self.prefix.places(self, start, end))

    def path(self, start: Place | None = None) -> list[Place]:
        """Every place from the noise, or from another start, to the end, without gradient."""
        with self.phases("sample"), torch.no_grad():
            start = start or self.start()
            return [start, *self.places(start, len(self))]

    def renoised(self, clean: Any, i: int, noise: Any) -> Place:
        """Clean latents brought to where step i starts, by this noise."""
        level = self.start_of(i)
        renoise = self.sampler.solver.renoise
        return Place(i, self.kept(map_latents(lambda x, e: renoise(x.detach(), e, level), clean, noise)))

    # ---- where things are ----

    def solver_of(self, i: int) -> Solver:
        """What makes step i: the sampler's solver, or its ODE where this step is to add no noise."""
        solver = self.sampler.solver
        return solver if self.noisy is None or i in self.noisy else solver.ode

    def start_of(self, i: int) -> Level:
        return self.sampler.schedule.starts[i]

    def level(self, i: int) -> Level:
        """The level at which step i starts; of i = T, the final one."""
        return self.start_of(i) if i < len(self) else self.sampler.schedule.ends[-1]

    def led(self, at: Place, clean: Any, end: int) -> Any:
        """Latents to which a clean estimate made at a place would lead, at the level where step `end` starts."""
        here, there = self.start_of(at.i), self.level(end)
        ratio = there.sigma / here.sigma
        led = map_latents(lambda x, x0: there.alpha * x0 + ratio * (x - here.alpha * x0), at.latents, clean)
        return self.kept(led)

    # ---- gradient by the linear part of the steps alone ----

    def linear(self, i: int, there: Level) -> tuple[float, float]:
        """How step i's move to a level depends on its latents, and on its prediction, as two factors."""
        unit, zero = torch.tensor(UNIT, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        return self._mean(i, there, unit, zero) / UNIT, self._mean(i, there, zero, unit) / UNIT

    def _mean(self, i: int, there: Level, latents: Tensor, prediction: Tensor) -> float:
        return float(
            self.sampler.solver.step(latents, prediction, self.start_of(i), there, torch.zeros_like(latents)).mean
        )

    def passed(self, i: int, end: int) -> float:
        """The factor on the gradient that passes from where step i starts to where step `end` does, past denoisers."""
        return math.prod(self.linear(j, self.sampler.schedule.ends[j])[0] for j in range(i, end))

    def reaches(self) -> list[float]:
        """How much each step's prediction counts in the final latents, by the linear part of the steps after it."""
        found, passed = list[float](), 1.0
        for i in reversed(range(len(self))):
            goes_on, counts = self.linear(i, self.sampler.schedule.ends[i])
            found.append(counts * passed)
            passed *= goes_on
        return found[::-1]

    def kept(self, latents: Any) -> Any:
        """Latents with what is known of them in its place: after every move, and before they are decoded."""
        return latents if self.condition.known is None else self.condition.known.keep(latents)


def _joined(steps: Mapping[str, Step]) -> Step:
    """Steps of latents by name as one step, whose parts are by name."""
    columns = [{name: step[field] for name, step in steps.items()} for field in range(len(Step._fields))]
    parts: dict[str, Any] = dict(zip(Step._fields, columns, strict=True))
    return Step(**{**parts, "std": next(iter(parts["std"].values()))})


def _last(start: Place, places: Iterator[Place]) -> Place:
    """Where the places end; no other is kept."""
    return deque(chain([start], places), maxlen=1).pop()


def scale_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """The same value, whose gradient is scaled; a factor of 1 changes nothing, and 0 leaves no graph."""
    if isinstance(factor, Tensor):
        return x.detach() + factor * (x - x.detach())
    if factor == 1.0:
        return x
    return x.detach() if factor == 0.0 else x.detach() + factor * (x - x.detach())


def _first(latents: Any) -> Tensor:
    return latents if isinstance(latents, Tensor) else next(iter(latents.values()))
