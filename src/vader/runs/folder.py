"""Where everything of a run lies: every path in its folder, complete or not. Knows no file's content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from vader.errors import UserError

ADAPTER = Path("adapter/pytorch_lora_weights.safetensors")  # of the first or only denoiser
STEP = "step-"
LOCK = ".lock"


def step_name(step: int) -> str:
    return f"{STEP}{step:06d}"


def step_of(path: Path) -> int:
    """The step that a file or folder is named after."""
    return int(path.name.removeprefix(STEP).split(".")[0])


@dataclass(frozen=True)
class RunFolder:
    """The folder `vader train` makes."""

    path: Path

    @contextmanager
    def held(self, main: bool = True) -> Iterator[None]:
        """While this run goes on, no other may write here; processes of one run share what their main one holds.

        Raises:
            UserError: another does already.
        """
        if not main:
            yield
            return
        lock = FileLock(self.path / LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)  # the system lets go of it even after kill -9
        except Timeout as error:
            raise UserError(f"another process trains {self.path} now: wait for it, or choose another name") from error
        except OSError as error:
            raise self.unwritable() from error
        try:
            yield
        finally:
            lock.release()

    @property
    def fresh(self) -> bool:
        """Whether it is not there, or holds only what a run leaves that was killed at its start."""
        return not self.path.exists() or all(p.suffix == ".part" or p.name == LOCK for p in self.path.iterdir())

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

    def samples(self, step: int) -> Path:
        """The folder of an evaluation's videos, with their `prompts.json`."""
        return self.path / "samples" / step_name(step)

    @property
    def sampled(self) -> dict[int, Path]:
        """The folders of samples that are complete, by step, ascending."""
        found = {step_of(path.parent): path.parent for path in self.path.glob(f"samples/{STEP}*/prompts.json")}
        return dict(sorted(found.items()))

    def evaluation(self, step: int) -> Path:
        """What each video of an evaluation scored, one JSON line a video."""
        return self.path / "evaluations" / f"{step_name(step)}.jsonl"

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
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def trained(self) -> bool:
        """Whether all steps are done."""
        return bool(self.adapter_files)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: all steps are done, and the report is written."""
        return self.trained and self.report.is_file()
