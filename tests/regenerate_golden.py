"""Writes the golden curves anew: `python tests/regenerate_golden.py`, after a change that is meant to change numbers.

A golden curve is the metrics file of a short run with fixed seed, without timings, one line of JSON a step.
`test_trainer.py` makes the same runs and compares. A change that should not alter numbers must leave them alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from factories import make_tiny_modelscope
from toy_runs import metrics, toy_recipe
from vader.recipe import Recipe
from vader.training.trainer import train

GOLDEN = Path(__file__).with_name("golden")


def toy_run(folder: Path) -> Recipe:
    """The toy model with two rewards and a stochastic solver."""
    return toy_recipe("sampling.eta=0.5")


def modelscope_run(folder: Path, *overrides: str) -> Recipe:
    """A tiny ModelScope checkpoint of random weights, in whose file format the real one comes."""
    model = f"{{family: modelscope, checkpoint: {make_tiny_modelscope(folder / 'checkpoint')}}}"
    size, steps = "{frames: 3, height: 16, width: 16}", "{steps: 3, batch: 2, seed: 1}"
    return toy_recipe(
        f"model={model}", f"video={size}", "rewards=[{name: 'toys:Warmth', sees: 2}]", f"train={steps}",
        "evaluation.videos=2", *overrides,
    )  # fmt: skip


RUNS = {"toy_run": toy_run, "modelscope_run": modelscope_run}


def curve(name: str, folder: Path) -> list[dict[str, Any]]:
    """Makes a run in an empty folder and reads its metrics."""
    train(RUNS[name](folder), folder)
    return metrics(folder / "toy")


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name in RUNS:
        with TemporaryDirectory() as folder:
            lines = ",\n".join(json.dumps(line) for line in curve(name, Path(folder)))
        (GOLDEN / f"{name}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
