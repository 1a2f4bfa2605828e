"""Short runs of the toy model for tests of the trainer: their recipe, what they left, and processes to run them in."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from vader.recipe import Recipe, load_recipe
from vader.runs.folder import ADAPTER

TOY = Path(__file__).with_name("toy.yaml")
TIMINGS = ("seconds", "total_seconds", "compute_seconds", "peak_memory")  # may differ between two runs of a recipe

PATIENCE = 300  # seconds: for machines that are busy

# The server loads the libraries once and forks a process for each run, which is then a process like any other.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vader.cli", "vader.training.trainer"])


def toy_recipe(*overrides: str) -> Recipe:
    return load_recipe(str(TOY), overrides)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics file, without what depends on the machine's mood."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def assert_close_metrics(
    found: list[dict[str, Any]], expected: list[dict[str, Any]], absolute: float = 0.0, relative: float = 1e-4
) -> None:
    """The same lines, each number within `relative` of its own size or within `absolute`."""
    assert [(line["kind"], line["step"]) for line in found] == [(line["kind"], line["step"]) for line in expected]
    for line, other in zip(found, expected, strict=True):
        assert _numbers(line) == pytest.approx(_numbers(other), rel=relative, abs=absolute)


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    alone = {key: value for key, value in line.items() if key not in ("kind", "parts", "figures", "curves")}
    curves = {f"{name}[{i}]": y for name, curve in line.get("curves", {}).items() for i, y in enumerate(curve)}
    return alone | line["parts"] | line.get("figures", {}) | curves


def adapter(folder: Path) -> dict[str, bytes | dict[str, str]]:
    """The adapter's weights and header, to compare bit for bit; safetensors writes a header in no fixed order."""
    with safe_open(folder / ADAPTER, framework="np") as file:
        weights = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
        return weights | {"header": file.metadata()}


def lines_of(folder: Path) -> int:
    """How many lines of metrics there are by now."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(condition: Callable[[], bool]) -> None:
    """Looks again and again, so that what follows happens at once, and leaves the core to others meanwhile."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"nothing happened within {PATIENCE} seconds"
        time.sleep(0.001)


class Command:
    """A `vader` command in a process of its own; what it prints goes to files."""

    def __init__(
        self,
        arguments: Sequence[str],
        logs: Path,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = logs
        self.process = CONTEXT.Process(target=_run, args=(list(arguments), logs, dict(environment or {}), prepare))
        self.process.start()

    @property
    def running(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def status(self) -> int:
        """Waits for the exit status: negative after a signal that killed."""
        self.process.join(PATIENCE)
        return self.process.exitcode

    @property
    def errors(self) -> str:
        return (self.logs / "stderr").read_text()


def _run(arguments: list[str], logs: Path, environment: dict[str, str], prepare: Callable[[], None] | None) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if prepare:
        prepare()
    from vader.cli import main

    sys.exit(main(arguments))
