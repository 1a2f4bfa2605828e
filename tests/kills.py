"""Kills a command with -9 before each of its file-system events in turn: the same command again ends as if nothing was.

`python tests/kills.py` (from anywhere; half an hour on two cores) does so for every command that writes, on the toy
recipe; `python tests/kills.py train compare --every 7` for some commands at each seventh event. What the command leaves
is compared with what it leaves undisturbed: the same files, byte for byte but for times. `test_kills.py` does a few.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from toy_runs import TOY, Command

CHANGING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink")
NEVER = 10**9
WHOLE = "is not empty: name a new one"  # a new folder was made, and what died had only to tidy up
# What differs between two runs of the same: how long everything took, and how much memory.
TIMES = re.compile(rb'"(seconds|total_seconds|compute_seconds|peak_memory|step_seconds)": (\{[^}]*\}|[-\d.e]+)')
UNLIKE = (".html", ".log", ".png", ".svg", ".md")  # pages and pictures of times


@dataclass(frozen=True)
class Killed:
    """A command to kill: what it is given, and which of its results are the same to the byte though most are not."""

    arguments: tuple[str, ...]
    needs_run: bool = True
    exact: tuple[str, ...] = ()


COMMANDS = {
    "train": Killed(("train", str(TOY), "--runs", "runs"), needs_run=False),
    "extend": Killed(("train", str(TOY), "train.steps=9", "--runs", "runs")),
    "report": Killed(("report", "runs/toy"), exact=("report.html",)),
    "evaluate": Killed(
        ("evaluate", "runs/toy", "--trust-code", "--videos", "2", "--seeds", "2"), exact=("evaluation.png",)
    ),
    "compare": Killed(("compare", "runs/toy", "runs/twin", "--out", "new/comparison"), exact=("compare.html",)),
    "export": Killed(("export", "runs/toy", "--adapter", "--out", "new/export")),
    "merge": Killed(("export", "runs/tiny", "--merged", "--out", "new/merged")),
    "reproduce": Killed(("reproduce", "toy", "--seeds", "1", "--out", "new/reproduction")),
}


# ---- in the process that dies ----


def die_at(number: int, root: str, counted: str) -> None:
    """Kills this process before the n-th event that changes something below a folder; counts them in a file."""
    events, log = count(1), os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def happen(what: str) -> None:
        place = next(events)
        os.write(log, f"{what}\n".encode())
        if place == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        changes = (event in CHANGING or writes) and not isinstance(arguments[0], int)
        if changes and os.path.abspath(str(arguments[0])).startswith(root):
            happen(f"{event} {arguments[0]}")

    sync = os.fsync

    def synced(file: int) -> None:
        happen("os.fsync")
        sync(file)

    os.fsync = synced
    sys.addaudithook(watch)


def prepare(number: int, root: str, counted: str) -> None:
    """What the command's process does first."""
    os.chdir(root)
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    add_toy_study()
    die_at(number, root, counted)


def add_toy_study() -> None:
    """A study of one run of the toy model, its further command an evaluation of the run."""
    from test_reproduce import toy_study
    from vader.studies import STUDIES
    from vader.studies.processes import Job
    from vader.studies.study import Trained

    def jobs(trained: list[Trained]) -> list[Job]:
        run = trained[0].runs[0].path
        arguments = ("evaluate", str(run), "--trust-code", "--videos", "1", "--seeds", "1")
        return [Job("evaluated", arguments, run / "evaluation" / "evaluation.json")]

    STUDIES["toy"] = replace(toy_study(), jobs=jobs)


# ---- around it ----


class World:
    """A folder with what a command needs, made once and copied for each death."""

    def __init__(self, folder: Path, killed: Killed) -> None:
        self.folder, self.killed = folder, killed
        self.start = folder / "start"
        self.start.mkdir(parents=True)
        if killed.needs_run:
            self._runs()
        self.expected, self.events = self._undisturbed()

    def _runs(self) -> None:
        name = "tiny" if "runs/tiny" in self.killed.arguments else "toy"
        recipe = str(TOY) if name == "toy" else name
        small = [] if name == "toy" else ["train.steps=1", "train.batch=1", "evaluation={videos: 1, shown: 1}"]
        _done(["train", recipe, *small, "--runs", "runs"], self.start, self.folder / "logs")
        if name == "toy":
            shutil.copytree(self.start / "runs/toy", self.start / "runs/twin")

    def _undisturbed(self) -> tuple[dict[str, bytes], list[str]]:
        whole = self.copy("whole")
        assert self.run(whole, NEVER) == 0, (self.folder / "logs" / "stderr").read_text()
        return left(whole, self.killed), (self.folder / "events").read_text().splitlines()

    def copy(self, name: str) -> Path:
        shutil.copytree(self.start, self.folder / name)
        return self.folder / name

    def run(self, place: Path, number: int) -> int:
        begin = partial(prepare, number, str(place), str(self.folder / "events"))
        return Command(self.killed.arguments, self.folder / "logs", prepare=begin).status()

    def die_and_go_on(self, number: int) -> str | None:
        """Kills the command at its n-th event and gives it again; returns what is not as it should be."""
        place = self.copy("killed")
        try:
            status = self.run(place, number)
            if status == 0:
                return None  # it took fewer events this time: what a run leaves to clear away differs
            if status != -signal.SIGKILL:
                return f"ended with {status}: {self.errors()}"
            if (status := self.run(place, NEVER)) and not (status == 2 and WHOLE in self.errors()):
                return f"the same command ended with {status}: {self.errors()}"
            return unlike(left(place, self.killed), self.expected)
        finally:
            shutil.rmtree(place)

    def errors(self) -> str:
        return (self.folder / "logs" / "stderr").read_text().strip()


def _done(arguments: list[str], place: Path, logs: Path) -> None:
    command = Command(arguments, logs, prepare=partial(os.chdir, place))
    assert command.status() == 0, command.errors


def left(place: Path, killed: Killed) -> dict[str, bytes]:
    """What lies in a folder, by name: content without times, or nothing where all of it depends on them."""
    files = {str(path.relative_to(place)): path for path in sorted(place.rglob("*")) if path.is_file()}
    found = {}
    for name, path in files.items():
        unlike_as_a_rule = path.suffix in UNLIKE and path.name not in killed.exact
        content = b"" if unlike_as_a_rule else TIMES.sub(b"", path.read_bytes())
        found[name.replace(str(place), "")] = content.replace(str(place).encode(), b"")
    return found


def unlike(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> str | None:
    """How the two differ, in words."""
    if more := sorted(found.keys() - expected.keys()):
        return f"left {', '.join(more)}"
    if fewer := sorted(expected.keys() - found.keys()):
        return f"lacks {', '.join(fewer)}"
    different = [name for name in expected if found[name] != expected[name]]
    return f"differs in {', '.join(different)}" if different else None


def kill_everywhere(name: str, folder: Path, chosen: Callable[[Sequence[str]], Iterator[int]]) -> list[str]:
    """Faults of a command at the chosen of its events."""
    world = World(folder / name, COMMANDS[name])
    faults = []
    for number in chosen(world.events):
        if fault := world.die_and_go_on(number):
            faults.append(f"{name}, killed before event {number} ({world.events[number - 1]}): {fault}")
            print(faults[-1], flush=True)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", help=f"of {', '.join(COMMANDS)}; default: all")
    parser.add_argument("--every", type=int, default=1, help="each n-th event")
    asked = parser.parse_args()
    faults = []
    for name in asked.commands or COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            world_events: list[int] = []

            def chosen(events: Sequence[str], seen: list[int] = world_events) -> Iterator[int]:
                seen.extend(range(1, len(events) + 1, asked.every))
                return iter(seen)

            found = kill_everywhere(name, Path(folder), chosen)
        print(f"{name}: {len(world_events)} kills, {len(found)} faults", flush=True)
        faults += found
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
