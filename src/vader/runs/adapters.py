"""Adapters as people name them: a file, a folder of files, a run, one of its checkpoints (`runs/x@300`), or its best.

In goes the name, out comes the file or folder in which `vader.networks.adapter_files` finds the adapter.
"""

from __future__ import annotations

from pathlib import Path

from vader.errors import UserError
from vader.files.paths import user_path
from vader.networks.adapter_files import adapter_files
from vader.runs.folder import ADAPTER, RunFolder, step_name, steps_in
from vader.runs.manifest import MANIFEST, STATE, fault_of

AT, BEST = "@", "best"


def find_adapter(name: Path | str) -> Path:
    """The file or folder of an adapter.

    Args:
        name: a file; the folder that holds it, as a run's `adapter` or one of its `checkpoints` (whose `state.pt` may
            stand for it); a run's folder, for what it had trained at its end; `RUN@STEP`, for what it had by then; or
            `RUN@best`, for the best to which no guard objected.

    Raises:
        UserError: there is none; of a run, names the steps of which there is one; or it is damaged.
    """
    path = user_path(name, "adapter")
    run = run_of(path)
    if run is None:
        found = path.parent if path.name == STATE else path
        adapter_files(found)
        return _whole(found)
    if path != run.path:
        return _whole(_of_step(run, path.name.rpartition(AT)[2]))
    if not run.trained:
        raise UserError(f"{run.path} has not finished, so it has no adapter yet: name {_named_steps(run)}")
    return run.adapter


def run_of(name: Path | str) -> RunFolder | None:
    """The run that an adapter's name names, whole or by step; None where it is that of a file or of another folder."""
    path = user_path(name, "adapter")
    before = path.name.rpartition(AT)[0]
    folders = [path] if path.exists() or not before else [path.with_name(before)]
    return next((RunFolder(folder) for folder in folders if RunFolder(folder).recipe.is_file()), None)


def _whole(path: Path) -> Path:
    """What it is given, unless that lies in a checkpoint that is damaged."""
    folder = path if path.is_dir() else path.parent
    if (folder / MANIFEST).is_file() and (fault := fault_of(folder)):
        raise UserError(f"checkpoint {folder} cannot be used: {fault}; name another")
    return path


def _of_step(run: RunFolder, step: str) -> Path:
    if step == BEST and not run.best.is_dir():
        raise UserError(
            f"{run.path} has no best adapter: no evaluation was above the base's without a guard's objection, or "
            "guards.mode is off"
        )
    if step == BEST:
        return run.best
    if step not in map(str, _steps(run)):
        raise UserError(f"{run.path} has no adapter of step {step!r}: name {_named_steps(run)}")
    return run.checkpoints / step_name(int(step))


def _named_steps(run: RunFolder) -> str:
    if found := [*map(str, _steps(run)), *([BEST] if run.best.is_dir() else [])]:
        return " or ".join(f"{run.path}{AT}{step}" for step in found)
    return "a run that has saved a checkpoint"


def _steps(run: RunFolder) -> list[int]:
    """The steps of whose checkpoints an adapter is kept, ascending."""
    return [
        step for step, path in steps_in(run.checkpoints).items() if any(path.glob(f"{ADAPTER.stem}*{ADAPTER.suffix}"))
    ]
