"""Reads a run's folder: its recipe, its metrics and the videos it left, complete or still growing.

In goes the folder that `vader train` makes, out comes a typed `Run` for reports, plots and comparisons. What cannot be
used, and what does not lie in the folder itself, is left out, and the run says so.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, TypeVar

from vader.errors import UserError
from vader.files.paths import user_path
from vader.recipe import Recipe, load_recipe
from vader.runs.folder import STRANGER, RunFolder, step_name, steps_in, strangers_in
from vader.runs.log import Line, read_lines
from vader.runs.manifest import fault_of


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

    @property
    def cost(self) -> float:
        """Seconds of compute; wall time where the run noted no other."""
        return self.total_seconds if math.isnan(self.compute_seconds) else self.compute_seconds


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
    curves: dict[str, list[float]] = field(default_factory=dict)  # over the frames of a video, means over all


@dataclass(frozen=True)
class Sample:
    """One video on disk."""

    file: Path
    prompt: str
    reward: float


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it. `samples` are by step, ascending; `left_out` says what was not used and why."""

    folder: RunFolder
    recipe: Recipe
    recipe_text: str
    train: list[TrainStep]
    evaluations: list[Evaluation]
    samples: dict[int, list[Sample]]
    left_out: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether all steps that its recipe asks for are done, and evaluated."""
        last = self.evaluations[-1].step if self.evaluations else -1
        return self.folder.trained or last >= self.recipe.train.steps

    @property
    def path(self) -> Path:
        return self.folder.path

    def compute_seconds(self, step: int) -> float:
        """What training up to a step has cost, evaluations left out; wall time where the run noted no other."""
        return self._costs[bisect_right(self.train, step, key=lambda one: one.step)]

    @cached_property
    def _costs(self) -> list[float]:
        """The cost of the first 0, 1, 2 ... steps."""
        return list(accumulate((one.cost for one in self.train), initial=0.0))

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
        UserError: the folder is no run's, its recipe is damaged, or an earlier vader wrote it.
    """
    place = RunFolder(user_path(folder, "run"))
    if not place.recipe.is_file():
        raise UserError(f"{folder} is no run folder: it has no recipe.yaml, which `vader train` puts there")
    for path in (place.recipe, place.metrics):
        if not _inside(path, place.path):
            raise UserError(f"{path} leads out of the folder of the run: put the file itself there")
    left_out: list[str] = []
    records = _read_metrics(place.metrics, left_out)
    return Run(
        folder=place,
        recipe=load_recipe(str(place.recipe), trust_code=True),  # read it is, and nothing of it built
        recipe_text=place.recipe.read_text(encoding="utf-8"),
        train=sorted((one for one in records if isinstance(one, TrainStep)), key=lambda one: one.step),
        evaluations=[one for one in records if isinstance(one, Evaluation)],
        samples=_read_samples(place, left_out),
        left_out=[*left_out, *_faulty_checkpoints(place.checkpoints)],
    )


def _faulty_checkpoints(folder: Path) -> list[str]:
    """What looks like a checkpoint and is none; whether its files are damaged is seen by whoever loads one."""
    faults = {path: fault_of(path, sums=False) for path in steps_in(folder).values()}
    faults |= dict.fromkeys(strangers_in(folder), STRANGER)
    return [f"{folder.name}/{path.name} ({fault})" for path, fault in faults.items() if fault]


def _inside(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, once all links are followed."""
    return path.resolve().is_relative_to(folder.resolve())


# ---- metrics ----


def _read_metrics(path: Path, left_out: list[str]) -> list[TrainStep | Evaluation]:
    """One record a line; a last line without its end is still being written, and left out."""
    found = [(i, _record_of(line, f"line {i} of {path}")) for i, line in enumerate(read_lines(path), start=1)]
    if damaged := [str(i) for i, record in found if record is None]:
        shown = damaged if len(damaged) < 6 else [*damaged[:5], "..."]
        left_out.append(f"{path.name} (damaged in line {', '.join(shown)})")
    return [record for _, record in found if record is not None]


def _record_of(line: Line | None, where: str) -> TrainStep | Evaluation | None:
    """None for a line that is damaged."""
    if line is None:
        return None
    if old := {"judge", "monitors"} & set(line):
        raise UserError(f"{where} has {min(old)!r} where figures are expected: an earlier vader wrote it, train anew")
    try:
        return _record({"train": TrainStep, "evaluation": Evaluation}[line["kind"]], line)
    except (KeyError, TypeError):
        return None


Record = TypeVar("Record", TrainStep, Evaluation)


def _record(kind: type[Record], values: dict[str, Any]) -> Record:
    found = {f.name: _number(values[f.name]) for f in fields(kind) if f.name in values}
    if not all(isinstance(number, int | float) for value in found.values() for number in _leaves(value)):
        raise TypeError("not a number")
    return kind(**found)


def _leaves(value: Any) -> Iterator[Any]:
    """What is in mappings and lists, however deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        yield value
    else:
        yield from chain.from_iterable(map(_leaves, inner))


def _number(value: Any) -> Any:
    """JSON has no NaN: null stands for it, alone or among the values of a mapping or list."""
    if isinstance(value, dict):
        return {str(key): _number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_number(item) for item in value]
    return math.nan if value is None else value


# ---- samples ----


def _read_samples(place: RunFolder, left_out: list[str]) -> dict[int, list[Sample]]:
    home, _ = place.evaluated
    for folder in strangers_in(home):
        left_out.append(f"{home.name}/{folder.name} ({STRANGER})")
    listed = place.sampled
    for step in steps_in(home).keys() - listed.keys():
        left_out.append(f"{home.name}/{step_name(step)} (it has no prompts.json)")
    return {step: _read_sample_list(folder, place.path, left_out) for step, folder in listed.items()}


def _read_sample_list(folder: Path, run: Path, left_out: list[str]) -> list[Sample]:
    """The videos that are listed and there; a list or video that does not lie in the run's folder is left out."""
    path = folder / "prompts.json"
    if not _inside(path, run):
        left_out.append(f"{folder.parent.name}/{folder.name} (it leads out of the run)")
        return []
    try:
        items = json.loads(path.read_bytes())
        if not isinstance(items, list):
            raise TypeError("not a list")
        samples = [Sample(folder / i["file"], str(i["prompt"]), float(_number(i["reward"]))) for i in items]
        outside = [sample for sample in samples if not _inside(sample.file, run)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        left_out.append(f"{folder.parent.name}/{folder.name} (its {path.name} is damaged)")
        return []
    for sample in outside:
        left_out.append(f"{folder.parent.name}/{folder.name}: {sample.file.name} (it leads out of the run)")
    return [sample for sample in samples if sample not in outside and sample.file.is_file()]
