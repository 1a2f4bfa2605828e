"""Gradient policies side by side: the same recipe trained under each, what it gained on unseen prompts, what it cost.

    python benchmarks/policies.py [RECIPE] [KEY=VALUE ...] [--only NAME ...] [--runs DIR] [--out FILE]

Every policy is a `vader train` of its own, in its own process and run folder; the same command again goes on where it
was stopped. The table is printed as Markdown for the docs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import GIB, RESULTS, console, hardware, parser, run_script, sees_overrides, write_result

from vader.algorithms import load_algorithm
from vader.errors import RunError
from vader.recipe import Recipe, load_recipe
from vader.runs.reader import Evaluation, Run, read_run

POLICIES: dict[str, tuple[dict[str, Any], int | str]] = {  # the policy, and what the rewards see
    "last-1": ({"name": "last", "k": 1}, 1),
    "last-1-all-frames": ({"name": "last", "k": 1}, "all"),
    "last-5": ({"name": "last", "k": 5}, 1),
    "last-5-all-frames": ({"name": "last", "k": 5}, "all"),
    "random-tail": ({"name": "random_tail"}, 1),
    "random-tail-all-frames": ({"name": "random_tail"}, "all"),
    "full": ({"name": "full"}, 1),
    "drtune-5": ({"name": "drtune", "k": 5, "stop": 0.0}, 1),
    "drtune-5-stop": ({"name": "drtune", "k": 5, "stop": 0.4}, "all"),
    "draft-lv-2": ({"name": "draft_lv", "k": 2}, 1),
    "refl": ({"name": "refl"}, 1),
    "leap": ({"name": "leap"}, "all"),
    "sparse-4": ({"name": "sparse", "k": 4}, "all"),
    "bridge-5": ({"name": "bridge", "k": 5}, "all"),
    "direct-align": ({"name": "direct_align"}, "all"),
}


def main() -> None:
    line = parser("The same recipe trained under several gradient policies.", "tiny-aesthetic")
    line.add_argument("--runs", type=Path, default=Path("runs/policies"), metavar="DIR", help="where the runs go")
    line.add_argument(
        "--only", choices=POLICIES, action="append", help="one of them; the file keeps the others' records"
    )
    asked = line.parse_args()
    recipe = load_recipe(asked.recipe, asked.overrides)
    settings = {name: policy_overrides(recipe, name) for name in asked.only or POLICIES}
    for overrides in settings.values():
        load_algorithm(load_recipe(asked.recipe, [*asked.overrides, *overrides]))  # what does not fit ends it here
    path, device = asked.out or RESULTS / "policies.json", torch.device("cuda" if torch.cuda.is_available() else "cpu")
    records = json.loads(path.read_text())["policies"] if asked.only and path.exists() else {}
    for name, overrides in settings.items():
        train_policy(asked.recipe, [*asked.overrides, *overrides], asked.runs)
        records[name] = record(read_run(asked.runs / f"{recipe.name}-{name}")) | {"hardware": hardware(device)}
    console.print(markdown(records))
    write_result(path, "policies", device, recipe, {"policies": records})


def policy_overrides(recipe: Recipe, name: str) -> list[str]:
    policy, sees = POLICIES[name]
    algorithm = json.dumps({"name": "reward_gradient", "policy": policy})
    return [f"name={recipe.name}-{name}", f"algorithm={algorithm}", *sees_overrides(recipe, sees)]


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
        "sees": run.recipe.rewards[0].sees,
        "precision": run.recipe.model.precision,
        "before": _held_out(first),
        "after": _held_out(last),
        "step_seconds": median(seconds),
        "step_compute_seconds": median(step.compute_seconds for step in run.train),  # whatever else ran beside it
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
    names = list(dict.fromkeys(name for one in records.values() for name in one["before"]["figures"]))
    head = ["policy", "held-out reward", *names, "s/step", "training, min", "peak, GiB"]
    rows = [["before training", *_figures(first["before"], names), "", "", ""]]
    for name, found in records.items():
        cost = (found["step_seconds"], found["train_seconds"] / 60, found["peak_memory"] / GIB)
        rows.append([name, *_figures(found["after"], names), *(f"{number:.2f}" for number in cost)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _figures(held_out: dict[str, Any], names: list[str]) -> list[str]:
    reward = f"{held_out['reward']:.3f} ± {held_out['stderr']:.3f}"
    return [reward, *(_shown(held_out["figures"].get(name)) for name in names)]


def _shown(figure: float | None) -> str:
    """Empty where a record has none."""
    return "" if figure is None else f"{figure:.2f}"


if __name__ == "__main__":
    run_script(main)
