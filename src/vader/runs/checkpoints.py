"""Checkpoints of a run: what a killed run continues from.

A checkpoint appears whole, so that a crash never leaves half of one. Together with the stateless randomness it holds
all there is to know: adapter, optimiser, loss scale and counters. What is not whole is left out, with a word, and an
older one stands in.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vader.errors import RunError, UserError
from vader.files.atomic import atomic_folder, remove
from vader.files.foreign import reading
from vader.runs.folder import STRANGER, step_name, step_of, steps_in, strangers_in
from vader.runs.manifest import EMPTY, STATE, fault_of, write_manifest


@dataclass
class Progress:
    """How far a run is: optimiser steps, reward queries, skipped steps in all and in a row up to now."""

    step: int = 0
    queries: int = 0
    skipped: int = 0
    skipped_in_row: int = 0

    def advance(self, queries: int, skipped: bool) -> None:
        self.step += 1
        self.queries += queries
        self.skipped += skipped
        self.skipped_in_row = self.skipped_in_row + 1 if skipped else 0


class Checkpoints:
    """The folders `step-000050` of a run, of which the newest `keep` stay.

    Args:
        every: at which steps a run is to leave one, but for its first and last; what was saved between, when it was
            asked to stop, goes with the next. Then a run that was stopped leaves the folders of one that was not.
    """

    def __init__(self, folder: Path, keep: int, every: int = 1) -> None:
        self.folder, self.keep, self.every = folder, keep, every
        self.left_out: list[str] = []  # what cannot be used, in words

    def steps(self) -> list[Path]:
        """Those that are whole, oldest first. What is not is told in `left_out`."""
        found = [path for path in steps_in(self.folder).values() if not self._leave_out(path, fault_of(path))]
        for path in strangers_in(self.folder):
            self._leave_out(path, STRANGER)
        return found

    def save(
        self, progress: Progress, state: Mapping[str, Any], beside: Callable[[Path], object] = lambda folder: None
    ) -> Path:
        """Writes one checkpoint and removes those beyond `keep`.

        Args:
            beside: writes further files into the checkpoint's folder.

        Raises:
            RunError: it cannot be written; older checkpoints stay.
        """
        final = self.folder / step_name(progress.step)
        try:
            with atomic_folder(final, sync=True) as temporary:
                torch.save(_interned({"progress": asdict(progress), **state}), temporary / STATE)
                beside(temporary)
                write_manifest(temporary)
        except (UserError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise RunError(f"no checkpoint could be written to {self.folder}: {error}; older ones are kept") from error
        self.prune(progress.step)
        return final

    def prune(self, newest: int) -> None:
        """Removes those beyond `keep`. What lies beyond the newest cannot be used: it counts for nothing, and stays."""
        found = {step: path for step, path in steps_in(self.folder).items() if step <= newest}
        between = [step for step in found if step % self.every and step != newest]
        kept = [step for step in found if step not in between][-self.keep :]
        for step in found.keys() - set(kept):
            remove(found[step])

    def forget(self, after: int) -> None:
        """Removes those that are whole and beyond a step, to which the run goes back."""
        for path in self.steps():
            if step_of(path) > after:
                remove(path)

    def load_latest(self, usable: Callable[[int], bool] = lambda step: True) -> tuple[Progress, dict[str, Any]] | None:
        """The newest whole checkpoint of a usable step, else the newest; None where nothing has been saved.

        Raises:
            UserError: there are checkpoints, and each is damaged or of another version.
        """
        found = list(reversed(steps_in(self.folder).values()))
        whole = (path for path in found if not self._leave_out(path, fault_of(path)))
        newest = next(whole, None)
        if newest is None:
            if lost := [path for path in found if fault_of(path) != EMPTY]:
                raise UserError(
                    f"no checkpoint in {self.folder} can be used ({lost[0].name}: {fault_of(lost[0])}): restore it, "
                    "choose another name=..., or remove that folder to start anew"
                )
            return None
        saved = load_checkpoint(next((path for path in (newest, *whole) if usable(step_of(path))), newest))
        return Progress(**saved.pop("progress")), saved

    def _leave_out(self, path: Path, fault: str | None) -> bool:
        if fault and (said := f"{path.parent.name}/{path.name} ({fault})") not in self.left_out:
            self.left_out.append(said)
        return fault is not None


def _interned(value: Any) -> Any:
    """The same state with one object for each text: a pickle tells which are the same object and which are equal alone,
    and a run that was continued is to leave the bytes of one that was not."""
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {_interned(key): _interned(item) for key, item in value.items()}
    return type(value)(map(_interned, value)) if type(value) in (list, tuple) else value


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """What one checkpoint holds, on the CPU. Raises `UserError` if its file is damaged."""
    path = folder / STATE
    with reading(f"{path} is damaged: remove {folder} to go on from the one before it"):
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def check_space(folder: Path, needed: int) -> None:
    """Raises `UserError` unless the disk of `folder` has `needed` bytes left."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"not enough disk for checkpoints in {folder}: {needed / 2**20:.0f} MiB are needed and "
            f"{free / 2**20:.0f} MiB are free: make room, or choose another disk with --runs"
        )
