"""Where the time and the memory of a training step go, and how much of the time is overhead.

    python benchmarks/components.py [RECIPE] [KEY=VALUE ...] [--memory] [--out FILE]

The overhead ratio is the time of a whole training step over that of its necessary network passes, called bare in
the same process and in turn with whole steps, so that a machine whose speed drifts favours neither. With --memory:
the peak memory of a step by how many frames are scored, under split and plain backward, each in a fresh process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from typing import Any

import torch
from measuring import GIB, RESULTS, console, medians, parser, run_script, sees_overrides, write_result
from passes import Pass, necessary_passes
from rich.table import Table

from vader.algorithms.reward_gradient import RewardGradient
from vader.errors import UserError
from vader.planning.measured import TrainingStep, peak_bytes, present_bytes, reset_peak, timed
from vader.recipe import Recipe, load_recipe

ROUNDS = 5


def main() -> None:
    line = parser("Time and memory of a training step, phase by phase, and its overhead.")
    line.add_argument("--memory", action="store_true", help="peak memory by frames scored, split and plain backward")
    line.add_argument("--one-peak", action="store_true", help="print the peak memory of this recipe's step as JSON")
    asked = line.parse_args()
    recipe = load_recipe(asked.recipe, asked.overrides)
    if asked.one_peak:
        print(json.dumps(measure_peak(recipe)))
    elif asked.memory:
        device, result = measure_frames(recipe, asked.recipe, asked.overrides)
        console.print(memory_table(result))
        write_result(asked.out or RESULTS / "memory.json", "memory", device, recipe, result)
    else:
        device, result = measure(recipe)
        console.print(phase_table(result), ratio_line(result), sep="\n")
        write_result(asked.out or RESULTS / "components.json", "components", device, recipe, result)


# ---- time by phase, and the overhead ratio ----


def measure(recipe: Recipe, rounds: int = ROUNDS) -> tuple[torch.device, dict[str, Any]]:
    """Whole steps and their bare passes in turn: median seconds and peak bytes by phase, and the overhead ratio."""
    step = TrainingStep.of(recipe)
    if not isinstance(step.algorithm, RewardGradient):
        raise UserError(f"the overhead of algorithm {recipe.algorithm.name!r} cannot be measured: use reward_gradient")
    step.run()  # the optimiser's state, and whatever else a first time makes
    peaks = step.peaks()
    passes = necessary_passes(step.engine, step.algorithm, step.batch)
    time_passes(passes, step.device)
    whole, bare = [], []
    for _ in range(rounds):
        whole.append(step.seconds())
        bare.append(time_passes(passes, step.device))
    ratios = [w["total"] / sum(b.values()) for w, b in zip(whole, bare, strict=True)]
    return step.device, {
        "overhead_ratio": median(ratios),
        "overhead_ratios": ratios,
        "seconds": medians(whole),
        "peak_memory": peaks,
        "passes": {one.name: {"count": one.count, "seconds": medians(bare)[one.name]} for one in passes},
    }


def time_passes(passes: list[Pass], device: torch.device) -> dict[str, float]:
    """Seconds that all passes of each kind take together."""
    return {one.name: timed(one.run_all, device) for one in passes}


def phase_table(result: dict[str, Any]) -> Table:
    table = Table("phase", "seconds", "share", "peak memory, GiB", title="A training step")
    for phase, seconds in result["seconds"].items():
        peak = result["peak_memory"].get(phase)
        share = seconds / result["seconds"]["total"]
        table.add_row(phase, f"{seconds:.4f}", f"{share:.1%}", "" if peak is None else f"{peak / GIB:.3f}")
    table.add_section()
    for name, one in result["passes"].items():
        table.add_row(f"bare: {name} x {one['count']}", f"{one['seconds']:.4f}", "", "")
    return table


def ratio_line(result: dict[str, Any]) -> str:
    ratios = ", ".join(f"{ratio:.3f}" for ratio in result["overhead_ratios"])
    return f"overhead ratio {result['overhead_ratio']:.3f} (median of {ratios})"


# ---- memory by frames ----


def measure_frames(recipe: Recipe, source: str, overrides: list[str]) -> tuple[torch.device, dict[str, Any]]:
    """The peak of a step by how many frames are scored, under split and plain backward, as a ratio to one frame's."""
    cases: dict[str, dict[str, Any]] = {}
    for split in (True, False):
        found = {
            n: _peak_in_process(source, [*overrides, *case_overrides(recipe, n, split)]) for n in frame_counts(recipe)
        }
        for peak in found.values():
            peak["ratio"] = peak["peak"] / found[1]["peak"]
            peak["rise_ratio"] = (peak["peak"] - peak["before"]) / (found[1]["peak"] - found[1]["before"])
        cases["split" if split else "plain"] = {str(n): peak for n, peak in found.items()}
    device = torch.device(cases["split"]["1"]["device"])
    return device, {"backward": cases}


def frame_counts(recipe: Recipe) -> list[int]:
    """1, 4 and all, as far as there are so many."""
    return sorted({1, min(4, recipe.video.frames), recipe.video.frames})


def case_overrides(recipe: Recipe, frames: int, split: bool) -> list[str]:
    return [*sees_overrides(recipe, frames), f"algorithm.split_backward={str(split).lower()}"]


def measure_peak(recipe: Recipe) -> dict[str, Any]:
    """Memory before the first step, and the peak over two steps (the second has the optimiser's state), in bytes."""
    step = TrainingStep.of(recipe)
    reset_peak(step.device)
    before = present_bytes(step.device)
    step.run()
    step.run()
    return {"device": str(step.device), "before": before, "peak": peak_bytes(step.device)}


def _peak_in_process(source: str, overrides: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, source, *overrides, "--one-peak"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"the peak memory under {' '.join(overrides)} could not be measured: see the lines above")
    return json.loads(done.stdout.splitlines()[-1])


def memory_table(result: dict[str, Any]) -> Table:
    table = Table(
        "backward", "frames", "before, GiB", "peak, GiB", "to 1 frame", "of the step alone", title="Peak memory"
    )
    for backward, cases in result["backward"].items():
        for frames, found in cases.items():
            sizes = (f"{found[name] / GIB:.3f}" for name in ("before", "peak"))
            table.add_row(backward, frames, *sizes, f"{found['ratio']:.3f}", f"{found['rise_ratio']:.3f}")
    return table


if __name__ == "__main__":
    run_script(main)
