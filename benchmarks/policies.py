"""Gradient policies side by side: the same recipe trained under each, what it gained on unseen prompts, what it cost.

    python benchmarks/policies.py [RECIPE] [KEY=VALUE ...] [--runs DIR] [--out FILE]

Every policy is a `vader train` of its own, in its own process and run folder; the same command again goes on where it
was stopped. The table is printed as Markdown for the docs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import GIB, RESULTS, console, parser, run_script, write_result

from vader.errors import RunError
from vader.recipe import Recipe, load_recipe
from vader.runs.reader import Evaluation, Run, read_run

ONE, ALL = "algorithm.frames.sample=1", "algorithm.frames.sample=all"
POLICIES: dict[str, tuple[str, ...]] = {
    "last-1": ("algorithm.policy={name: last, k: 1}", ONE),
    "last-1-all-frames": ("algorithm.policy={name: last, k: 1}", ALL),
    "last-5": ("algorithm.policy={name: last, k: 5}", ONE),
    "last-5-all-frames": ("algorithm.policy={name: last, k: 5}", ALL),
    "random-tail": ("algorithm.policy={name: random_tail}", ONE),
    "random-tail-all-frames": ("algorithm.policy={name: random_tail}", ALL),
    "full": ("algorithm.policy={name: full}", ONE),
    "drtune-5": ("algorithm.policy={name: drtune, k: 5}", ONE),
    "draft-lv-2": ("algorithm.policy={name: draft_lv, k: 2}", ONE),
    "refl": ("algorithm.policy={name: refl}", ONE),
}


def main() -> None:
    line = parser("The same recipe trained under several gradient policies.")
    line.add_argument("--runs", type=Path, default=Path("runs/policies"), metavar="DIR", help="where the runs go")
    asked = line.parse_args()
    recipe = load_recipe(asked.recipe, asked.overrides)
    settings = {name: policy_overrides(recipe, name) for name in POLICIES}
    for overrides in settings.values():
        load_recipe(asked.recipe, [*asked.overrides, *overrides])  # a policy that does not fit ends it here, not later
    records = {}
    for name, overrides in settings.items():
        train_policy(asked.recipe, [*asked.overrides, *overrides], asked.runs)
        records[name] = record(read_run(asked.runs / f"{recipe.name}-{name}"))
    console.print(markdown(records))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    write_result(asked.out or RESULTS / "policies.json", "policies", device, recipe, {"policies": records})


def policy_overrides(recipe: Recipe, name: str) -> list[str]:
    return [f"name={recipe.name}-{name}", *POLICIES[name]]


def train_policy(source: str, overrides: list[str], runs: Path) -> None:
    """Trains in a process of its own, so that each run's peak memory is its own.

    Raises:
        RunError: the run failed.
    """
    command = [sys.executable, "-m", "vader", "train", source, *overrides, "--runs", str(runs)]
    if subprocess.run(command).returncode:
        raise RunError(f"{overrides[0]} failed, the lines above say why; the same command again goes on")


def record(run: Run) -> dict[str, Any]:
    """What a run gained and cost. Peak memory is that of the whole run, evaluations included, in bytes."""
    first, last = run.evaluations[0], run.evaluations[-1]
    seconds = [step.total_seconds for step in run.train]
    return {
        "algorithm": run.recipe.algorithm.model_dump(mode="json"),
        "before": _held_out(first),
        "after": _held_out(last),
        "step_seconds": median(seconds),
        "train_seconds": sum(seconds),
        "total_seconds": sum(seconds) + sum(evaluation.seconds for evaluation in run.evaluations),
        "peak_memory": max(step.peak_memory for step in run.train),
        "skipped": run.train[-1].skipped,
    }


def _held_out(evaluation: Evaluation) -> dict[str, Any]:
    kept = ("step", "queries", "reward", "stderr", "videos", "figures")
    return {name: getattr(evaluation, name) for name in kept}


def markdown(records: dict[str, dict[str, Any]]) -> str:
    """One row before training, as all runs start there, and one a policy."""
    first = next(iter(records.values()))
    names = list(first["before"]["figures"])
    head = ["policy", "held-out reward", *names, "s/step", "training, min", "peak, GiB"]
    rows = [["before training", *_figures(first["before"], names), "", "", ""]]
    for name, found in records.items():
        cost = (found["step_seconds"], found["train_seconds"] / 60, found["peak_memory"] / GIB)
        rows.append([name, *_figures(found["after"], names), *(f"{number:.2f}" for number in cost)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _figures(held_out: dict[str, Any], names: list[str]) -> list[str]:
    reward = f"{held_out['reward']:.3f} ± {held_out['stderr']:.3f}"
    return [reward, *(f"{held_out['figures'][name]:.2f}" for name in names)]


if __name__ == "__main__":
    run_script(main)
