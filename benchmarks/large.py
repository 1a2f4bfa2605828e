"""Whether time grows with the work and no faster: reports of long runs, and large prompt sets.

    python benchmarks/large.py [--most 1000000] [--out FILE]

Each task is done at an eighth, a quarter, a half and all of `--most` lines, by process time. What is linear takes twice
as long for twice the lines; what is quadratic, four times.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measuring import RESULTS, console, run_script, write_result
from rich.table import Table

from vader.evaluation.report import write_report
from vader.prompts import load_prompts
from vader.recipe import load_recipe
from vader.recipe.files import dump_recipe
from vader.runs.reader import read_run

SHARES = (8, 4, 2, 1)
PROMPTS = ("txt", "csv", "jsonl")


def write_run(folder: Path, count: int) -> None:
    """A run of so many steps, evaluated a thousand times."""
    folder.mkdir()
    dump_recipe(load_recipe("tiny", [f"train.steps={count}"]), folder / "recipe.yaml", {})
    phases = {"sample": 0.6, "gradient": 0.3, "decode_reward": 0.05, "optimise": 0.01}
    times = {"seconds": phases, "total_seconds": 1.0, "compute_seconds": 1.5, "peak_memory": 2e9}
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for step in range(count + 1):
            score = {"step": step, "queries": 4 * step, "reward": (37 * step % 101) / 50, "parts": {"aesthetic": 1.0}}
            line = score | times | {"kind": "train", "grad_norm": 1.0, "clamped": 0.1, "skipped": 0}
            log.write(json.dumps(line) + "\n" if step else "")
            if step % max(1, count // 1000) == 0:
                line = score | {"kind": "evaluation", "std": 1.0, "stderr": 0.1, "videos": 64, "seconds": 30.0}
                log.write(json.dumps(line) + "\n")


def write_prompts(file: Path, count: int) -> None:
    """Prompts that all differ, in the form that the file's name says."""
    texts = [f"a dog runs on beach number {number}" for number in range(count)]
    with file.open("w", encoding="utf-8", newline="") as out:
        if file.suffix == ".csv":
            csv.writer(out).writerows([["prompt"], *([text] for text in texts)])
        else:
            out.writelines((text if file.suffix == ".txt" else json.dumps({"prompt": text})) + "\n" for text in texts)


def compute_at_all(folder: Path) -> None:
    """What plots over compute time ask, for every evaluation."""
    run = read_run(folder)
    for evaluation in run.evaluations:
        run.compute_seconds(evaluation.step)


def seconds(call: Callable[[], object]) -> float:
    gc.collect()
    began = time.process_time()
    call()
    return time.process_time() - began


def measure(count: int, folder: Path) -> dict[str, float]:
    """Process seconds of each task at so many lines."""
    run = folder / f"run-{count}"
    write_run(run, count)
    found = {
        "a report": seconds(partial(write_report, run)),
        "compute time of all evaluations": seconds(partial(compute_at_all, run)),
    }
    for kind in PROMPTS:
        file = folder / f"prompts-{count}.{kind}"
        write_prompts(file, count)
        found[f"prompts from .{kind}"] = seconds(partial(load_prompts, str(file)))
    return found


def table(measured: dict[int, dict[str, float]]) -> Table:
    """Seconds by the number of lines, and what the last doubling multiplied them by."""
    counts = list(measured)
    found = Table("task", *(f"{count:,}" for count in counts), "last doubling", title="Process seconds by lines")
    for task, last in measured[counts[-1]].items():
        times = [f"{measured[count][task]:.2f}" for count in counts]
        found.add_row(task, *times, f"{last / measured[counts[-2]][task]:.2f} x")
    return found


def main() -> None:
    line = argparse.ArgumentParser(description="Whether time grows with the work and no faster.")
    line.add_argument("--most", type=int, default=1_000_000, metavar="N", help="lines at most; default: a million")
    line.add_argument("--out", type=Path, metavar="FILE", help="default: in benchmarks/results/")
    asked = line.parse_args()
    with tempfile.TemporaryDirectory(prefix="vader-large-") as folder:
        measured = {asked.most // share: measure(asked.most // share, Path(folder)) for share in SHARES}
    console.print(table(measured))
    write_result(asked.out or RESULTS / "large.json", "large", torch.device("cpu"), {}, {"seconds": measured})


if __name__ == "__main__":
    run_script(main)
