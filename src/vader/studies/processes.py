"""Runs `vader` commands side by side, each in a process of its own, and stops them all well when one has to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vader.errors import RunError, Stopped

INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """A `vader` command that leaves the file `result` when it is done; its output goes to a log of its name."""

    name: str
    arguments: tuple[str, ...]
    result: Path

    @property
    def done(self) -> bool:
        return self.result.exists()


class Process(Protocol):
    """What is asked of a command that runs (`subprocess.Popen` has it)."""

    def poll(self) -> int | None: ...
    def send_signal(self, sig: int) -> None: ...
    def wait(self) -> int: ...


Start = Callable[[Job, Path, int], Process]  # a job, its log, the threads that it may use


def start_process(job: Job, log: Path, threads: int) -> Process:
    """In a session of its own, so that Ctrl-C reaches it once, from here; it ends with this process in any case."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "vader.cli.child", *job.arguments]
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment, start_new_session=True
        )


def run_jobs(jobs: Sequence[Job], logs: Path, at_once: int = 1, start: Start = start_process) -> None:
    """Runs what is not done yet, at most `at_once` side by side, and says what was done.

    Raises:
        RunError: a command failed; what ran beside it was asked to stop, and everything that was saved stays.
        Stopped: it was asked to stop.
    """
    waiting = [job for job in jobs if not job.done]
    threads = max(1, _cores() // at_once)
    running: dict[str, tuple[Job, Process, float]] = {}
    count, done = len(waiting), 0
    with _terminated_as_interrupted():
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    running[job.name] = (job, start(job, _log(logs, job), threads), time.monotonic())
                for name in [name for name, (_, process, _) in running.items() if process.poll() is not None]:
                    job, process, began = running.pop(name)
                    _check(job, process.wait(), _log(logs, job))
                    done += 1
                    print(f"[{done}/{count}] {name}: {time.monotonic() - began:.0f} s", flush=True)
                if running:
                    time.sleep(0.1)
        except BaseException:
            _stop([process for _, process, _ in running.values()])
            raise


def _cores() -> int:
    """Those that this process may use, where the system tells (Linux); else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _log(logs: Path, job: Job) -> Path:
    return logs / f"{job.name}.log"


def _check(job: Job, status: int, log: Path) -> None:
    if status == INTERRUPTED:
        raise Stopped(f"{job.name} was asked to stop and is saved: the same command goes on")
    if status or not job.done:
        said = log.read_text(encoding="utf-8").strip().splitlines() if log.exists() else []
        raise RunError(f"{job.name} failed ({said[-1] if said else f'status {status}'}); its log is {log}")


def _stop(processes: Sequence[Process]) -> None:
    """Asks them to save and stop, and waits until they have. Not as Ctrl-C does: `nohup ... &` has them ignore it."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Within, SIGTERM is as Ctrl-C, so that the commands that run are stopped with this one."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
