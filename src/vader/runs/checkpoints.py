"""Checkpoints of a run: what a killed run continues from.

A checkpoint appears whole, so that a crash never leaves half of one. Together with the stateless randomness it holds
all there is to know: adapter, optimiser, loss scale and counters.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vader.errors import RunError, UserError
from vader.files.atomic import atomic_folder
from vader.runs.folder import STEP, step_name, step_of


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
    """The folders `step-000050` of a run, of which the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob(f"{STEP}*"), key=step_of)

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
                torch.save({"progress": asdict(progress), **state}, temporary / "state.pt")
                beside(temporary)
        except (UserError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise RunError(f"no checkpoint could be written to {self.folder}: {error}; older ones are kept") from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(old)
        return final

    def load_latest(self) -> tuple[Progress, dict[str, Any]] | None:
        """The newest checkpoint, or None where there is none.

        Raises:
            UserError: its file is damaged.
        """
        if not self.steps():
            return None
        saved = load_checkpoint(self.steps()[-1])
        return Progress(**saved.pop("progress")), saved


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """What one checkpoint holds, on the CPU. Raises `UserError` if its file is damaged."""
    path = folder / "state.pt"
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged: remove {folder} to go on from the one before it") from error
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
