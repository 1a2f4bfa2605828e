"""The peak of a training step of every full-size model under every switch, counted without a GPU and without data.

    python benchmarks/plans.py [MODEL ...] [--out FILE]

Writes the peaks as JSON, and prints the table that docs/memory.md has.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from measuring import GIB, RESULTS, console, run_script, write_result

from vader.errors import UserError, nearest
from vader.planning.step import forecast
from vader.recipe import Recipe, load_recipe

# By model: the recipe whose step it is, one video at once, and its size.
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ModelScope 16x256x256": ("modelscope-aesthetic", ("video.height=256", "video.width=256")),
    "ModelScope 16x384x384": ("modelscope-aesthetic", ()),
    "VideoCrafter2 12x320x512": ("videocrafter-hps-aesthetic", ()),
    "SVD 14x576x1024": ("svd-aesthetic", ()),
    "Open-Sora 51x276x368": ("opensora-hps", ("video.height=276", "video.width=368")),
}
ONE, TWO = "sampling.guidance_batched=true", "sampling.guidance_batched=false"
CASES: dict[str, tuple[str, ...]] = {
    "nothing recomputed, guidance in one call": (ONE, "memory=[]"),
    "`recompute`, one call": (ONE, "memory=[{name: recompute}]"),
    "`recompute`, two calls": (TWO, "memory=[{name: recompute}]"),
    "`of: layers`, one call": (ONE, "memory=[{name: recompute, of: layers}]"),
    "`of: layers`, two calls": (TWO, "memory=[{name: recompute, of: layers}]"),
    "`of: nested`, two calls": (TWO, "memory=[{name: recompute, of: nested}]"),
    "the same, offload": (TWO, "memory=[{name: recompute, of: nested}, {name: offload_activations}]"),
    "the same, park": (TWO, "memory=[{name: recompute, of: nested}, {name: offload_activations}, {name: park}]"),
    "as the recipe ships": (),
}


def recipe_of(model: str, case: str) -> Recipe:
    """A step's recipe: its model's own but for the case, one video."""
    name, size = MODELS[model]
    return load_recipe(name, ["train.batch=1", "train.micro_batch=1", *size, *CASES[case]])


def measure(models: list[str]) -> Iterator[dict[str, Any]]:
    """What is known after each forecast: by model and case."""
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        for case in CASES:
            found.setdefault(model, {})[case] = asdict(forecast(recipe_of(model, case)))
            console.print(f"{model}, {case}: {found[model][case]['peak'] / GIB:.1f} GiB")
            yield {"models": found}


def markdown(result: dict[str, Any]) -> str:
    """The peaks in GiB as a table."""
    models = result["models"]
    rows = [["one step, one video, GiB", *models], ["---"] * (len(models) + 1)]
    rows += [[case, *(f"{models[model][case]['peak'] / GIB:.1f}" for model in models)] for case in CASES]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    line = argparse.ArgumentParser(description="Peaks of full-size training steps by what lowers them.")
    line.add_argument("models", nargs="*", metavar="MODEL", help="default: all")
    line.add_argument("--out", type=Path, metavar="FILE", help="default: in benchmarks/results/")
    asked = line.parse_args()
    if unknown := [name for name in asked.models if name not in MODELS]:
        raise UserError(f"no model {unknown[0]!r} is planned here: {nearest(unknown[0], MODELS)}")
    for result in measure(asked.models or list(MODELS)):
        write_result(asked.out or RESULTS / "plans.json", "plans", torch.device("meta"), {}, result)
    print(markdown(result))


if __name__ == "__main__":
    run_script(main)
