"""Where everything of a run lies: every path in its folder, complete or not. Knows no file's content."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vader.errors import UserError
from vader.files.atomic import PART, WriteError, made_folder, remove, remove_parts
from vader.files.lock import HOLDER, LOCK, is_main_process, locked

ADAPTER = Path("adapter/pytorch_lora_weights.safetensors")  # of the first or only denoiser
STEP = "step-"
STRANGER = "it is not named after a step"
REPORT_PATIENCE = 60.0  # seconds that a report waits for another one of the same run


def step_name(step: int) -> str:
    return f"{STEP}{step:06d}"


def step_of(path: Path) -> int:
    """The step that a folder is named after."""
    return int(path.name.removeprefix(STEP))


def steps_in(folder: Path) -> dict[int, Path]:
    """What is named after a step in a folder, by step, ascending: `step-000050`, and no `step-000050.bak`."""
    found = {step_of(path): path for path in folder.glob(f"{STEP}*") if _is_step(path.name)}
    return dict(sorted(found.items()))


def strangers_in(folder: Path) -> list[Path]:
    """What only looks as if it were named after a step: copies that people or programs have put beside."""
    return sorted(path for path in folder.glob(f"{STEP}*") if not _is_step(path.name))


def _is_step(name: str) -> bool:
    found = re.fullmatch(rf"{STEP}([0-9]{{1,18}})", name)
    return found is not None and step_name(int(found[1])) == name


def _is_remains(name: str) -> bool:
    return name.startswith(".") and name.endswith((LOCK, HOLDER, PART))


@dataclass(frozen=True)
class RunFolder:
    """The folder `vader train` makes."""

    path: Path

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this run goes on, no other may write here; processes of one run share what their main one holds.

        What writers that were killed have left is removed; evaluations and reports, which may be written meanwhile,
        have locks of their own.

        Raises:
            UserError: another does already.
        """
        if not is_main_process():
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(made_folder(self.path))
                stack.enter_context(locked(self.path / LOCK, str(self.path)))
            except WriteError as error:
                raise self.unwritable() from error
            for own in (self.recipe, self.metrics, self.adapter, self.best, self.guards):
                remove_parts(self.path, own.name)
            for folder in (self.checkpoints, *self.evaluated):
                remove_parts(folder)
            yield

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """While the report is written, other reports of the run wait; the run itself may go on."""
        with locked(self.path / f".report{LOCK}", str(self.report), REPORT_PATIENCE):
            remove_parts(self.path, self.report.name)
            yield

    @property
    def empty(self) -> bool:
        """Whether it is not there, or holds only what a writer leaves that was killed at its start."""
        return not self.path.exists() or all(_is_remains(path.name) for path in self.path.iterdir())

    def forget(self) -> None:
        """Removes all that a run has made but its recipe, which another one is to replace."""
        for path in (
            self.adapter, self.best, self.guards, self.report, self.checkpoints, *self.evaluated, self.metrics
        ):  # fmt: skip
            remove(path)

    def unwritable(self) -> UserError:
        return UserError(f"cannot write the run's folder {self.path}: choose another one with --runs")

    @property
    def recipe(self) -> Path:
        """The resolved recipe: what makes a folder a run's."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON line a training step or evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def evaluated(self) -> tuple[Path, Path]:
        """The folders of what evaluations leave: of videos, and of scores."""
        return self.path / "samples", self.path / "evaluations"

    def samples(self, step: int) -> Path:
        """The folder of an evaluation's videos, with their `prompts.json`."""
        return self.evaluated[0] / step_name(step)

    @property
    def sampled(self) -> dict[int, Path]:
        """The folders of samples that are complete, by step, ascending."""
        found = steps_in(self.evaluated[0])
        return {step: path for step, path in found.items() if (path / "prompts.json").is_file()}

    def evaluation(self, step: int) -> Path:
        """What each video of an evaluation scored, one JSON line a video."""
        return self.evaluated[1] / f"{step_name(step)}.jsonl"

    def forget_evaluations(self, after: int) -> None:
        """Removes what evaluations after a step have left; all of them, after -1."""
        for folder in self.evaluated:
            for path in folder.glob(f"{STEP}*"):
                step = path.with_name(path.name.removesuffix(".jsonl"))
                if _is_step(step.name) and step_of(step) > after:
                    remove(path)

    @property
    def checkpoints(self) -> Path:
        """The folder of `step-000050` and so on."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The folder of what was trained; a file a denoiser."""
        return (self.path / ADAPTER).parent

    @property
    def adapter_files(self) -> list[Path]:
        """What lies in it: a run has them at its end."""
        return sorted(self.adapter.glob(f"{ADAPTER.stem}*{ADAPTER.suffix}"))

    @property
    def best(self) -> Path:
        """The folder of the adapter of the highest reward to which no guard objected."""
        return self.path / "best"

    @property
    def guards(self) -> Path:
        """What the guards say of each evaluation, one JSON line an evaluation."""
        return self.path / "guards.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def trained(self) -> bool:
        """Whether all steps are done that its recipe asks for: the adapter is what is written last."""
        return bool(self.adapter_files)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: all steps are done, and the report is there."""
        return self.trained and self.report.is_file()
