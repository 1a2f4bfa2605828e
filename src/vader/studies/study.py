"""What all studies share: named recipes times seeds become runs, and runs become numbers.

A run's identity is its recipe but for its name: a finished run of the same recipe is found and reused, whichever study
asked for it, and one that was stopped goes on. Runs and evaluations are `vader` commands in processes of their own, so
that several work side by side and the peak memory of each is its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Literal

from vader.algorithms import resolved
from vader.errors import UserError
from vader.recipe import Recipe, dump_recipe, first_difference, library_versions, load_recipe
from vader.runs.folder import ADAPTER, RunFolder
from vader.runs.reader import Evaluation, Run, read_run
from vader.studies.processes import Job

Scale = Literal["tiny", "full"]


@dataclass(frozen=True)
class Options:
    """What the user asked for: at which scale, one task only (None: all), how many seeds."""

    scale: Scale = "tiny"
    only: str | None = None
    seeds: int = 3


@dataclass(frozen=True)
class Arm:
    """One line of a study: what it is called, its recipe for any seed, and the figure that is compared.

    `measure` is None for the trained reward, or the name of a metric's figure.
    """

    labels: Mapping[str, str]
    recipe: Recipe
    measure: str | None = None

    def seeded(self, seeds: int) -> list[Recipe]:
        """A recipe a seed: the recipe's own and those after it."""
        return [with_seed(self.recipe, self.recipe.train.seed + number) for number in range(seeds)]


@dataclass(frozen=True)
class Trained:
    """An arm with its runs, one a seed."""

    arm: Arm
    runs: Sequence[Run]


@dataclass(frozen=True)
class Study:
    """A figure or table of the paper.

    Attributes:
        arms: what is trained.
        jobs: further commands that the trained runs need, as evaluations on other prompts.
        summarise: all numbers, as JSON can hold them, beside what `summary_of` gives of each arm.
        table: these numbers as Markdown.
        draw: these numbers as a plot.
        most_seeds: how many runs of each kind it takes at most; None: as many as are asked for.
    """

    name: str
    title: str
    arms: Callable[[Options], list[Arm]]
    summarise: Callable[[Sequence[Trained]], dict[str, Any]]
    table: Callable[[dict[str, Any]], str]
    draw: Callable[[dict[str, Any], Path], Path]
    jobs: Callable[[Sequence[Trained]], list[Job]] = lambda trained: []
    most_seeds: int | None = None

    def limited(self, options: Options) -> Options:
        """The options with no more seeds than it takes."""
        return replace(options, seeds=min(options.seeds, self.most_seeds or options.seeds))


# ---- recipes ----


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe under another seed, which its name then tells."""
    return changed(recipe, name=f"{recipe.name}-seed{seed}", train={"seed": seed})


def changed(
    recipe: Recipe, name: str | None = None, **sections: Mapping[str, Any] | Sequence[Mapping[str, Any]]
) -> Recipe:
    """The recipe with keys of its sections replaced, or whole lists of parts, and checked again as a whole."""
    data = recipe.model_dump(mode="json")
    for section, new in sections.items():
        data[section] = {**data[section], **new} if isinstance(new, Mapping) else new
    return Recipe.model_validate({**data, "name": name or recipe.name})


def same_run(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes say the same run, whatever they are called."""
    return first_difference(resolved(one.model_copy(update={"name": other.name})), resolved(other)) is None


# ---- runs ----


class RunStore:
    """The folder of runs that studies share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = (RunFolder(path) for path in sorted(folder.glob("*")))
        self.known = {run.path: load_recipe(str(run.recipe), trust_code=True) for run in found if run.recipe.is_file()}

    def place(self, recipe: Recipe) -> Recipe:
        """The recipe under the name of the folder where its run is or will be."""
        found = next((path for path, known in self.known.items() if same_run(known, recipe)), None)
        if found is None:
            found = next(path for path in self._names(recipe.name) if path not in self.known)
        placed = recipe.model_copy(update={"name": found.name})
        self.known[found] = placed
        return placed

    def _names(self, name: str) -> Iterator[Path]:
        yield self.folder / name
        number = 2
        while True:
            yield self.folder / f"{name}-{number}"
            number += 1

    def job(self, recipe: Recipe, recipes: Path) -> Job:
        """The command that trains a placed recipe, which is written to the folder `recipes` first."""
        file = recipes / f"{recipe.name}.yaml"
        dump_recipe(recipe, file, library_versions())
        result = self.folder / recipe.name / ADAPTER  # what a run writes last
        return Job(recipe.name, ("train", str(file), "--runs", str(self.folder)), result)

    def run(self, recipe: Recipe) -> Run:
        return read_run(self.folder / recipe.name)


# ---- numbers ----


def value(evaluation: Evaluation, measure: str | None) -> float:
    """The figure that an arm compares. Raises `UserError` if the run did not measure it."""
    if measure is None:
        return evaluation.reward
    if measure not in evaluation.figures:
        raise UserError(f"a run has no figure {measure!r}: remove it, so that it is trained again")
    return evaluation.figures[measure]


def summary_of(trained: Trained) -> dict[str, Any]:
    """An arm in numbers: labels, runs, cost, and its curve over the evaluations, which all seeds share."""
    runs = trained.runs
    steps = [step for run in runs for step in run.train]
    return {
        "labels": dict(trained.arm.labels),
        "measure": trained.arm.measure or "reward",
        "rewards": [reward.name for reward in trained.arm.recipe.rewards],
        "runs": [run.path.name for run in runs],
        "seeds": [run.recipe.train.seed for run in runs],
        "step_seconds": median(step.cost for step in steps),
        "peak_memory": max(step.peak_memory for step in steps),
        "curve": [_point(runs, place, trained.arm.measure) for place in range(len(runs[0].evaluations))],
    }


def _point(runs: Sequence[Run], place: int, measure: str | None) -> dict[str, Any]:
    """One evaluation over all seeds."""
    evaluations = [run.evaluations[place] for run in runs]
    values = [value(evaluation, measure) for evaluation in evaluations]
    first = evaluations[0]
    return {
        "step": first.step,
        "queries": first.queries,
        "seconds": fmean(run.compute_seconds(first.step) for run in runs),
        **over_seeds(values),
        "figures": {name: fmean(one.figures[name] for one in evaluations) for name in first.figures},
    }


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Values of one figure, one a seed: their mean and spread (standard deviation)."""
    return {"mean": fmean(values), "spread": stdev(values) if len(values) > 1 else 0.0, "values": list(values)}


def reaches(curve: Sequence[Mapping[str, Any]], level: float, axis: str) -> float:
    """Where on an axis ("queries", "seconds") a curve first is at a level, between two points on the straight line.

    Infinite where it never is.
    """
    before: Mapping[str, Any] | None = None
    for point in curve:
        if point["mean"] >= level:
            if before is None:
                return float(point[axis])
            share = (level - before["mean"]) / (point["mean"] - before["mean"])
            return before[axis] + share * (point[axis] - before[axis])
        before = point
    return math.inf


def best(curve: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The point of the highest mean."""
    return max(curve, key=lambda point: point["mean"])


def arm_of(result: Mapping[str, Any], **labels: str) -> dict[str, Any] | None:
    """The arm of a result with these labels."""
    found = (arm for arm in result["arms"] if labels.items() <= arm["labels"].items())
    return next(found, None)
