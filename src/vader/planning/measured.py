"""A recipe's training step run on a device, over and over: its seconds and its peak of memory, by phase.

In goes a recipe, out comes a `TrainingStep`: of the trainer's own engine (`of`), or with random weights of the same
shapes (`drawn`), which take as long and as much memory, and for which nothing is downloaded. `measured` is the one
step that `vader plan --measure` runs beside its forecast.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from vader.algorithms import load_algorithm
from vader.algorithms.base import Algorithm
from vader.engine.batch import Batch
from vader.engine.build import assemble, build_engine
from vader.engine.device import synchronize
from vader.engine.engine import Clock, Engine
from vader.errors import RunError, UserError, is_out_of_memory
from vader.networks.techniques import load_techniques
from vader.planning.step import drawn_setup, fill, planned_batch
from vader.prompts import load_prompts, with_negative
from vader.recipe import Recipe

PHASES = ("sample", "gradient_forward", "decode_reward", "gradient_backward", "optimise")
COUNTED = ("cuda", "xpu")  # devices that count what tensors take

# ---- clocks ----


class PhaseClock(Clock):
    """The engine's clock with the two directions of the gradient steps apart, as in `PHASES`."""

    previous = ""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with super().__call__(self._directed(name)):
            yield

    def _directed(self, name: str) -> str:
        """The gradient steps go backward once the reward is there, and forward before."""
        backward, self.previous = self.previous == "decode_reward", name
        return name if name != "gradient" else "gradient_backward" if backward else "gradient_forward"


class PeakClock(PhaseClock):
    """Notes each phase's peak memory in bytes, and no seconds: asking for it takes time of its own."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.peaks: dict[str, int] = {}
        reset_peak(device)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        phase = self._directed(name)
        self.note("other")
        yield
        self.note(phase)

    def note(self, phase: str) -> None:
        """What was reached since the last time was so in this phase."""
        self.peaks[phase] = max(self.peaks.get(phase, 0), peak_bytes(self.device))
        reset_peak(self.device)


# ---- memory ----


def reset_peak(device: torch.device) -> None:
    """Starts the search for a new peak: of tensors on a GPU, elsewhere of this process's resident set.

    Raises:
        UserError: neither a GPU nor Linux, whose kernel alone can forget a process's old peak.
    """
    if device.type in COUNTED:
        getattr(torch, device.type).reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # else memory that was freed counts as resident
        Path("/proc/self/clear_refs").write_text("5")
    else:
        raise UserError("the peak memory of a step can be measured on a GPU or on Linux only")


def peak_bytes(device: torch.device) -> int:
    """The peak since `reset_peak`. (A process's `ru_maxrss` would not do: it starts with what its parent had.)"""
    if device.type in COUNTED:
        return getattr(torch, device.type).max_memory_allocated(device)
    return _status_bytes("VmHWM")


def present_bytes(device: torch.device) -> int:
    """What is taken now."""
    return getattr(torch, device.type).memory_allocated(device) if device.type in COUNTED else _status_bytes("VmRSS")


def _status_bytes(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


# ---- the step ----


@dataclass(frozen=True)
class TrainingStep:
    """One step of a recipe's training; the same prompts and noise each time."""

    engine: Engine
    algorithm: Algorithm
    batch: Batch

    @classmethod
    def of(cls, recipe: Recipe) -> TrainingStep:
        """The trainer's own step. Raises `UserError` if a part of the recipe cannot be loaded here."""
        algorithm, engine = load_algorithm(recipe), build_engine(recipe, Path("runs"))
        known, total = with_negative(load_prompts(recipe.prompts.train), recipe.sampling.negative), recipe.train.batch
        prompts = tuple(islice(cycle(known), total))
        engine.model.prepare(prompts)
        return cls(engine, algorithm, Batch(1, prompts, tuple(range(total)), total))

    @classmethod
    def drawn(cls, recipe: Recipe, device: torch.device) -> TrainingStep:
        """The step that `forecast` walks through, on a device with data: releases have random weights of their shapes.

        It begins as a run's second step does, see `fill`, with as many of the batch's videos as show all there is to
        see, see `planned_batch`.

        Raises:
            UserError: a part of the recipe cannot be had.
        """
        algorithm = load_algorithm(recipe)
        setup = drawn_setup(recipe, device)
        batch = planned_batch(recipe, algorithm.videos_per_prompt, setup.model)
        setup.model.prepare(batch.prompts)
        engine = assemble(recipe, setup, load_techniques(recipe.memory), device)
        fill(engine)
        return cls(engine, algorithm, batch)

    def __post_init__(self) -> None:
        if self.engine.accelerator.num_processes > 1:
            raise UserError("a step is measured in one process: start it without a launcher")
        self.algorithm.check(self.engine)

    @property
    def device(self) -> torch.device:
        return self.engine.model.device

    def run(self) -> None:
        """Raises `RunError` if the optimiser did not step: half a step's time and memory would mislead."""
        if self.algorithm.step(self.engine, self.batch).skipped:
            raise RunError("the reward or its gradient is not finite, so the step was skipped and cannot be measured")

    def seconds(self) -> dict[str, float]:
        """Runs the step: seconds by phase, of all else (`other`: text encoding, noise, logging) and in `total`."""
        self.engine.clock = PhaseClock(self.device)
        total = timed(self.run, self.device)
        phases = {phase: self.engine.clock.seconds.get(phase, 0.0) for phase in PHASES}
        return {**phases, "other": total - sum(phases.values()), "total": total}

    def peaks(self) -> dict[str, int]:
        """Runs the step: peak memory in bytes by phase, of all else (`other`), and the highest as `total`."""
        clock = self.engine.clock = PeakClock(self.device)
        self.run()
        clock.note("other")
        return {**clock.peaks, "total": max(clock.peaks.values())}


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes, to the end of its GPU kernels."""
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


# ---- one step beside its forecast ----


@dataclass(frozen=True)
class Measured:
    """What one training step took.

    Attributes:
        peaks: bytes by the phases that a `Forecast` has, `peak` the highest.
        seconds: of a step with all of the batch's videos; `videos`, how many of them were run.
    """

    peak: int
    peaks: dict[str, int]
    seconds: float
    videos: int


def measured(recipe: Recipe, device: torch.device) -> Measured:
    """Runs the recipe's step: once for its peaks and to warm up, once for its seconds.

    Raises:
        UserError: a part of the recipe cannot be had, or the step does not fit the device.
        RunError: as `TrainingStep.run`.
    """
    try:
        step = TrainingStep.drawn(recipe, device)
        peaks, seconds = step.peaks(), step.seconds()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError("the step does not fit this GPU, so there is nothing to measure: ask for less") from error
    videos, peak = len(step.batch.prompts), peaks.pop("total")
    repeated = seconds["total"] - seconds["optimise"]  # the optimiser steps once, however many videos there are
    total = repeated * recipe.train.batch / videos + seconds["optimise"]
    return Measured(peak, _undirected(peaks), total, videos)


def _undirected(peaks: dict[str, int]) -> dict[str, int]:
    """By the engine's own phases: forward and backward of the gradient steps are one."""
    gradient = [peaks.pop(phase) for phase in ("gradient_forward", "gradient_backward") if phase in peaks]
    return peaks | ({"gradient": max(gradient)} if gradient else {})
