"""Reads a run's folder: its recipe, its metrics and the videos it left, complete or still growing.

In goes the folder that `vader train` makes, out comes a typed `Run` for reports, plots and comparisons.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from vader.errors import UserError
from vader.files.paths import user_path
from vader.recipe import Recipe, load_recipe
from vader.runs.folder import RunFolder


@dataclass(frozen=True)
class TrainStep:
    """One optimiser step. A number is NaN where the step was skipped."""

    step: int
    queries: int  # reward queries since the start of the run
    reward: float  # mean over the batch, of the frames that the step saw
    parts: dict[str, float]
    grad_norm: float
    clamped: float  # share of pixels that the decoder left outside [0, 1]
    seconds: dict[str, float]  # by phase
    total_seconds: float
    peak_memory: float  # bytes
    skipped: int  # steps since the start of the run whose gradient was not finite, or zero
    compute_seconds: float = math.nan  # processor time over all threads; on a GPU, wall time


@dataclass(frozen=True)
class Evaluation:
    """The reward of held-out prompts under fixed noise; `figures` are those of metrics, which nobody trained on."""

    step: int
    queries: int
    reward: float
    std: float  # over videos
    stderr: float
    videos: int
    parts: dict[str, float]
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One video on disk."""

    file: Path
    prompt: str
    reward: float


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it. `samples` are by step, ascending."""

    folder: RunFolder
    recipe: Recipe
    recipe_text: str
    train: list[TrainStep]
    evaluations: list[Evaluation]
    samples: dict[int, list[Sample]]
    finished: bool

    @property
    def path(self) -> Path:
        return self.folder.path

    def compute_seconds(self, step: int) -> float:
        """What training up to a step has cost, evaluations left out; wall time where the run noted no other."""
        done = [one for one in self.train if one.step <= step]
        return sum(one.total_seconds if math.isnan(one.compute_seconds) else one.compute_seconds for one in done)

    @property
    def peak_memory(self) -> float:
        """Bytes, evaluations included; NaN before the first step."""
        return max((step.peak_memory for step in self.train), default=math.nan)

    @property
    def versions(self) -> dict[str, str]:
        """What the run was made with, from the comment that heads its recipe."""
        found = re.search(r"^#.*\bMade with (.+)$", self.recipe_text, re.MULTILINE)
        return dict(item.rsplit(" ", 1) for item in found.group(1).split(", ")) if found else {}


def read_run(folder: str | Path) -> Run:
    """Reads a run.

    Raises:
        UserError: the folder is no run's, or one of its files is damaged.
    """
    place = RunFolder(user_path(folder, "run"))
    if not place.recipe.is_file():
        raise UserError(f"{folder} is no run folder: it has no recipe.yaml, which `vader train` puts there")
    lines = _read_metrics(place.metrics)
    return Run(
        folder=place,
        recipe=load_recipe(str(place.recipe), trust_code=True),  # read it is, and nothing of it built
        recipe_text=place.recipe.read_text(encoding="utf-8"),
        train=[record for record in lines if isinstance(record, TrainStep)],
        evaluations=[record for record in lines if isinstance(record, Evaluation)],
        samples={step: _read_sample_list(samples / "prompts.json") for step, samples in place.sampled.items()},
        finished=place.trained,
    )


def _read_metrics(path: Path) -> list[TrainStep | Evaluation]:
    """One record a line; a last line without its end is still being written, and left out."""
    if not path.is_file():
        return []
    complete = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [_parse_line(line, f"line {i} of {path}") for i, line in enumerate(complete, start=1)]


def _parse_line(line: str, where: str) -> TrainStep | Evaluation:
    try:
        values = json.loads(line)
        if old := {"judge", "monitors"} & set(values):
            raise UserError(
                f"{where} has {min(old)!r} where figures are expected: an earlier vader wrote it, train anew"
            )
        return _record({"train": TrainStep, "evaluation": Evaluation}[values["kind"]], values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} is damaged: remove it or restore the file ({error!r})") from error


Record = TypeVar("Record", TrainStep, Evaluation)


def _record(kind: type[Record], values: dict[str, Any]) -> Record:
    return kind(**{f.name: _number(values[f.name]) for f in fields(kind) if f.name in values})


def _number(value: Any) -> Any:
    """JSON has no NaN: null stands for it, alone or among the values of a mapping."""
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    return math.nan if value is None else value


def _read_sample_list(path: Path) -> list[Sample]:
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
        samples = [Sample(path.parent / i["file"], i["prompt"], _number(i["reward"])) for i in items]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: remove its folder ({error!r})") from error
    return [sample for sample in samples if sample.file.is_file()]
