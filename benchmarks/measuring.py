"""What the benchmarks share: a training step to run over and over, its seconds and peak memory by phase, result files.

In goes a recipe, out come numbers with the hardware and library versions that they were measured on.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers.utils.logging import set_verbosity_error
from rich.console import Console

from vader.algorithms import load_algorithm
from vader.algorithms.base import Algorithm
from vader.engine.batch import Batch
from vader.engine.build import build_engine
from vader.engine.device import synchronize
from vader.engine.engine import Clock, Engine
from vader.errors import RunError, UserError
from vader.prompts import load_prompts, with_negative
from vader.recipe import Recipe, library_versions

RESULTS = Path(__file__).parent / "results"
PHASES = ("sample", "gradient_forward", "decode_reward", "gradient_backward", "optimise")
GIB = 2**30

console = Console(highlight=False, soft_wrap=True)

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

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        phase = self._directed(name)
        reset_peak(self.device)
        yield
        self.peaks[phase] = max(self.peaks.get(phase, 0), peak_bytes(self.device))


# ---- memory ----


def reset_peak(device: torch.device) -> None:
    """Starts the search for a new peak: of tensors on a GPU, elsewhere of this process's resident set.

    Raises:
        UserError: neither a GPU nor Linux, whose kernel alone can forget a process's old peak.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # else memory that was freed counts as resident
        Path("/proc/self/clear_refs").write_text("5")
    else:
        raise UserError("the peak memory of a step can be measured on a GPU or on Linux only")


def peak_bytes(device: torch.device) -> int:
    """The peak since `reset_peak`. (A process's `ru_maxrss` would not do: it starts with what its parent had.)"""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status_bytes("VmHWM")


def present_bytes(device: torch.device) -> int:
    """What is taken now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status_bytes("VmRSS")


def _status_bytes(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


# ---- the step ----


@dataclass(frozen=True)
class TrainingStep:
    """One step of a recipe's training, built as the trainer builds it; the same prompts and noise each time."""

    engine: Engine
    algorithm: Algorithm
    batch: Batch

    @classmethod
    def of(cls, recipe: Recipe) -> TrainingStep:
        """Raises `UserError` if a part of the recipe cannot be loaded here."""
        algorithm, engine = load_algorithm(recipe), build_engine(recipe, Path("runs"))
        if engine.accelerator.num_processes > 1:
            raise UserError("benchmarks run in one process: start them with python")
        algorithm.check(engine)
        known, total = with_negative(load_prompts(recipe.prompts.train), recipe.sampling.negative), recipe.train.batch
        prompts = tuple(islice(cycle(known), total))
        engine.model.prepare(prompts)
        return cls(engine, algorithm, Batch(1, prompts, tuple(range(total)), total))

    @property
    def device(self) -> torch.device:
        return self.engine.accelerator.device

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
        """Runs the step: peak memory in bytes by phase, and the highest as `total`."""
        clock = self.engine.clock = PeakClock(self.device)
        self.run()
        return {**clock.peaks, "total": max(clock.peaks.values())}


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes, to the end of its GPU kernels."""
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def medians(records: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(record[name] for record in records) for name in records[0]}


# ---- results ----


def write_result(
    path: Path, benchmark: str, device: torch.device, settings: Recipe | dict[str, Any], content: dict[str, Any]
) -> None:
    """Writes a result as JSON, under what it was measured on, when and with which settings."""
    head = {
        "benchmark": benchmark,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(device),
        "versions": library_versions() | {name: version(name) for name in ("transformers", "accelerate")},
        "settings": settings.model_dump(mode="json") if isinstance(settings, Recipe) else settings,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head | content, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {path}")


def hardware(device: torch.device) -> dict[str, Any]:
    """CPU, cores that this process may use, threads that torch uses, and the GPU if it is one that computes."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    found: dict[str, Any] = {"cpu": _cpu_model(), "cores": cores, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {"gpu": gpu.name, "gpu_memory": gpu.total_memory}
    return found


def _cpu_model() -> str:
    if sys.platform != "linux":
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def parser(about: str, recipe: str = "tiny") -> argparse.ArgumentParser:
    """A command line that takes a recipe (one by default) with overrides, and where the result goes."""
    line = argparse.ArgumentParser(description=about)
    about_it = f"a built-in recipe or a YAML file; default: {recipe}"
    line.add_argument("recipe", nargs="?", default=recipe, help=about_it)
    line.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the recipe, by dotted path")
    line.add_argument("--out", type=Path, metavar="FILE", help="default: in benchmarks/results/")
    return line


def sees_overrides(recipe: Recipe, sees: int | str) -> list[str]:
    """What lets every reward of a recipe see these frames."""
    return [f"rewards.{number}.sees={sees}" for number in range(len(recipe.rewards))]


def run_script(main: Callable[[], None]) -> None:
    """Runs a benchmark; a user's mistake is one line and exit status 2, a failed run one line and 1."""
    set_verbosity_error()  # diffusers' warnings speak of its own insides
    try:
        main()
    except (UserError, RunError) as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
