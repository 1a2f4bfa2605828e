"""Runs one `vader` command on one malformed input in a child of this process, and says what was wrong with its answer.

The parent has imported the libraries once; every child is a fork in a folder of its own, with a time limit and a limit
on its memory. A right answer is exit status 0, or a refusal: exit status 2 and one line on stderr.
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import constants

from vader.cli import main

# What commands import as they run: a fork that finds it there need not.
for _module in (
    "evaluation.evaluate",
    "evaluation.report",
    "rewards.aesthetic",
    "scoring.files",
    "tools.check",
    "tools.export",
    "training.trainer",
):
    importlib.import_module(f"vader.{_module}")

LIMIT = 30.0  # seconds, of commands that take about one
MEMORY = 12 * 2**30  # bytes of address space
ANSWERS = (0, 2)
UNEXPECTED = "this is a fault of vader"  # how the command calls an error that no room has foreseen


def _nothing(folder: Path) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """An input and the command that is given it.

    Attributes:
        name: says what is malformed.
        argv: of `vader`, run in the case's own folder: relative paths are in there.
        make: writes the case's files into that folder.
        statuses: the right exit statuses.
        lines: how many lines may stand on stderr at most.
    """

    name: str
    argv: list[str]
    make: Callable[[Path], None] = _nothing
    statuses: Collection[int] = ANSWERS
    lines: int = 1


@dataclass(frozen=True)
class Answer:
    """What a command did with a case; `faults` is empty if all was right."""

    case: Case
    status: int | None
    stderr: str
    seconds: float
    faults: list[str] = field(default_factory=list)


def answers(cases: Iterable[Case], folder: Path, limit: float = LIMIT) -> Iterator[Answer]:
    """Each case's answer. The cases' folders are made below `folder` and removed again; whatever lies beside it is to
    stay as it is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork has no threads but its own
    gc.freeze()  # so that a child copies no pages only to look for garbage in them
    try:
        for number, case in enumerate(cases):
            place = folder / f"case-{number:05d}"
            place.mkdir(parents=True)
            case.make(place)
            yield answer(case, place, limit)
            shutil.rmtree(place, ignore_errors=True)
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)


def answer(case: Case, place: Path, limit: float = LIMIT) -> Answer:
    """Runs the command of a case whose files lie in `place`."""
    watched = place.parents[1]
    outside = _listing(watched, place)
    began = time.monotonic()
    status, stderr = _run(case.argv, place, limit)
    seconds = time.monotonic() - began
    faults = [*_faults(case, status, stderr)]
    if _listing(watched, place) != outside:
        faults.append("files outside its folder")
    return Answer(case, status, stderr, seconds, faults)


def _run(argv: list[str], place: Path, limit: float) -> tuple[int | None, str]:
    """The exit status (negative: a signal's number; None: the time was up) and what stands on stderr."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(reader)
        _be_the_command(argv, place, writer)
    os.close(writer)
    end = time.monotonic() + limit
    said = _read_until(reader, end)
    os.close(reader)
    return _ended(child, end), said.decode(errors="replace")


def _be_the_command(argv: list[str], place: Path, stderr: int) -> None:
    """The child: `vader argv`, and out."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.chdir(place)
        constants.HF_HUB_OFFLINE = True  # no case asks the network
        os.environ |= {"HOME": str(place), "VADER_CACHE": str(place / "cache"), "COLUMNS": "200"}
        os.environ |= {"TOKENIZERS_PARALLELISM": "false", "VADER_DEBUG": "0"}
        silence = os.open(os.devnull, os.O_RDWR)
        os.dup2(silence, 0)
        os.dup2(silence, 1)
        os.dup2(stderr, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        sys.argv = ["vader", *argv]
        status = main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _read_until(reader: int, end: float) -> bytes:
    """What the child writes before it closes the pipe, or before the time is up."""
    said = b""
    while (left := end - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            some = os.read(reader, 65536)
            if not some:
                break
            said += some
    return said


def _ended(child: int, end: float) -> int | None:
    """The child's exit status; None if it was alive still when the time was up, and had to be killed."""
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _faults(case: Case, status: int | None, stderr: str) -> Iterator[str]:
    lines = [line for line in stderr.splitlines() if line.strip()]
    if status is None:
        yield "hang"
        return
    if "Traceback (most recent call last)" in stderr or UNEXPECTED in stderr:
        yield "traceback"
    elif status < 0:
        yield f"killed by signal {-status}"
    elif status not in case.statuses:
        yield f"exit status {status}"
    if len(lines) > case.lines:
        yield f"{len(lines)} lines on stderr"
    if status and not any(line.startswith("vader: ") for line in lines):
        yield "no line that says why"


def _listing(folder: Path, place: Path) -> set[tuple[str, int, int]]:
    """Every file below a folder but those of one place, by name, size and time."""
    found = set()
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(root, name) != place]
        for name in files:
            stat = os.lstat(os.path.join(root, name))
            found.add((os.path.join(root, name), stat.st_size, stat.st_mtime_ns))
    return found
