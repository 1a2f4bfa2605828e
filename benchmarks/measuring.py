"""What the benchmarks share: result files, with the hardware and library versions of their numbers, and command lines.

The training step that they run is `vader.planning.measured`'s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers.utils.logging import set_verbosity_error
from rich.console import Console

from vader.errors import RunError, UserError
from vader.recipe import Recipe, library_versions

RESULTS = Path(__file__).parent / "results"
GIB = 2**30

console = Console(highlight=False, soft_wrap=True)


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
