"""Run folders made of numbers, for tests of what reads them: no model is run."""

from __future__ import annotations

import json
from pathlib import Path

from vader.recipe import dump_recipe, load_recipe
from vader.runs.folder import ADAPTER


def train_line(step: int, **changes) -> dict:
    line = {
        "kind": "train",
        "step": step,
        "reward": 4.7 + 0.5 * step,
        "parts": {"aesthetic": 4.7 + 0.5 * step},
        "queries": 4 * step,
        "grad_norm": 0.12,
        "clamped": 0.01,
        "seconds": {"sample": 1.2, "gradient": 0.4, "decode_reward": 0.1, "optimise": 0.01},
        "total_seconds": 1.8,
        "peak_memory": 1.1e9,
        "skipped": 0,
    }
    return line | changes


def evaluation_line(step: int, reward: float, **changes) -> dict:
    line = {
        "kind": "evaluation",
        "step": step,
        "queries": 4 * step,
        "reward": reward,
        "std": 1.1,
        "stderr": 0.14,
        "videos": 64,
        "parts": {"aesthetic": reward},
        "seconds": 30.1,
    }
    return line | changes


def write_metrics(run: Path, *lines: dict) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(folder: Path, rewards: list[float], *overrides: str, seconds: float = 1.5) -> Path:
    """A finished run that evaluated every second step to these rewards; each step took so many compute seconds."""
    folder.mkdir(parents=True)
    dump_recipe(load_recipe("tiny", [f"name={folder.name}", *overrides]), folder / "recipe.yaml", {})
    last = 2 * (len(rewards) - 1)
    steps = [train_line(step, compute_seconds=seconds) for step in range(1, last + 1)]
    write_metrics(folder, *steps, *(evaluation_line(2 * i, reward) for i, reward in enumerate(rewards)))
    (folder / ADAPTER).parent.mkdir()
    (folder / ADAPTER).touch()
    return folder
