"""Figure 4: the reward after so many steps against resolution, by reward gradient and by policy gradient.

The paper has the aesthetic score. The tiny world's is mostly one property of the whole picture, its vividness; text
match is a second reward, which asks something of more parts of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from vader.evaluation.charts import Series
from vader.evaluation.formats import decimals
from vader.evaluation.plots import draw_lines, new_figure, save
from vader.studies.formats import markdown, mean_and_spread
from vader.studies.study import Arm, Options, Scale, Study, Trained, arm_of, changed, over_seeds, summary_of
from vader.studies.tasks import TASKS, chosen_tasks, task_recipe

SIZES: dict[Scale, tuple[int, ...]] = {"tiny": (24, 32, 48), "full": (128, 192, 256, 384)}
STEPS: dict[Scale, int] = {"tiny": 8, "full": 100}
TINY_CHECKPOINT = "tiny/modelscope-sizes"  # trained at all these sizes
METHODS = {"VADER": "reward gradient", "DDPO": "policy gradient"}
REWARDS = ("aesthetic", "text")


def arms(options: Options) -> list[Arm]:
    tasks, sizes = chosen_tasks(options.only, REWARDS), SIZES[options.scale]
    return [_arm(task, size, method, options.scale) for task in tasks for size in sizes for method in METHODS]


def _arm(task: str, size: int, method: str, scale: Scale) -> Arm:
    recipe, steps = task_recipe(task, method, scale), STEPS[scale]
    if scale == "tiny":
        recipe = changed(recipe, model={"checkpoint": TINY_CHECKPOINT})
    recipe = changed(
        recipe,
        f"{task}-size{size}-{method.lower()}",
        video={"height": size, "width": size},
        train={"steps": steps},
        evaluation={"every": steps},
    )
    return Arm({"task": task, "size": str(size), "method": method}, recipe)


def summarise(trained: Sequence[Trained]) -> dict[str, Any]:
    found: dict[str, Any] = {"arms": [summary_of(one) for one in trained]}
    tasks = dict.fromkeys(one["labels"]["task"] for one in found["arms"])
    return found | {"tasks": {task: _gaps(found, task) for task in tasks}}


def _gaps(result: Mapping[str, Any], task: str) -> dict[str, Any]:
    """By size, the gains of both methods and by how much the reward gradient's is larger."""
    sizes = [int(one["labels"]["size"]) for one in result["arms"] if one["labels"]["task"] == task]
    sizes = list(dict.fromkeys(sizes))
    gains = {method: [_gain(result, task, size, method) for size in sizes] for method in METHODS}
    gaps = [_difference(vader, ddpo) for vader, ddpo in zip(gains["VADER"], gains["DDPO"], strict=True)]
    return {"sizes": sizes, "gains": gains, "gaps": gaps}


def _gain(result: Mapping[str, Any], task: str, size: int, method: str) -> dict[str, Any]:
    first, last = _points(result, task, size, method)
    return _difference(last, first)


def _difference(more: Mapping[str, Any], less: Mapping[str, Any]) -> dict[str, Any]:
    """Seed by seed, so that what a seed's held-out videos are worth to begin with does not count as spread."""
    return over_seeds([a - b for a, b in zip(more["values"], less["values"], strict=True)])


def _points(result: Mapping[str, Any], task: str, size: int, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    found = arm_of(result, task=task, size=str(size), method=method)
    assert found is not None  # every size is run by every method
    return found["curve"][0], found["curve"][-1]


def places(found: Mapping[str, Any]) -> int:
    """Decimals that tell the gaps of a task's reward from each other."""
    return max(2, min(4, decimals([gap["mean"] for gap in found["gaps"]])))


def table(result: dict[str, Any]) -> str:
    head = ["reward", "size, pixels", "base", *METHODS.values(), "gap of the gains"]
    return markdown(head, [row for task in result["tasks"] for row in _rows(result, task)])


def _rows(result: Mapping[str, Any], task: str) -> Iterator[list[str]]:
    found = result["tasks"][task]
    for size, gap in zip(found["sizes"], found["gaps"], strict=True):
        base = _points(result, task, size, "VADER")[0]
        after = [_points(result, task, size, method)[1] for method in METHODS]
        cells = [mean_and_spread(point, places(found)) for point in (base, *after, gap)]
        yield [TASKS[task].title, str(size), *cells]


def draw(result: dict[str, Any], path: Path) -> Path:
    """Three lines over resolution, as in the paper, for each reward."""
    tasks = list(result["tasks"])
    figure = new_figure(7 * len(tasks), 4.5)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        _draw_task(axes, result, task)
    return save(figure, path)


def _draw_task(axes: Axes, result: Mapping[str, Any], task: str) -> None:
    sizes = result["tasks"][task]["sizes"]
    ends = {method: [_points(result, task, size, method) for size in sizes] for method in METHODS}
    lines = [
        _line(METHODS["VADER"], "run-1", sizes, [after for _, after in ends["VADER"]]),
        _line(METHODS["DDPO"], "run-2", sizes, [after for _, after in ends["DDPO"]]),
        _line("base", "run-8", sizes, [before for before, _ in ends["VADER"]]),
    ]
    steps = ends["VADER"][0][1]["step"]
    label = f"held-out {TASKS[task].title}"
    draw_lines(axes, lines, f"after {steps} optimisation steps", "resolution, pixels", label)
    axes.set_xticks(sizes, [f"{size}x{size}" for size in sizes])
    axes.legend(frameon=False)


def _line(label: str, style: str, sizes: Sequence[int], points: Sequence[Mapping[str, Any]]) -> Series:
    return Series(label, style, sizes, [p["mean"] for p in points], [p["spread"] for p in points], points=True)


STUDY = Study("figure4", "Reward gradient and policy gradient as resolution grows", arms, summarise, table, draw)
