"""Figure 7: held-out reward against reward queries and against compute time, for VADER, DDPO and Diffusion-DPO.

Two baselines that came after the paper stand beside them at scale `tiny`: Flow-GRPO and DiffusionNFT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vader.evaluation.charts import Series
from vader.evaluation.formats import decimals
from vader.evaluation.plots import draw_lines, new_figure, save
from vader.studies.formats import count, markdown, mean_and_spread, times
from vader.studies.study import Arm, Options, Study, Trained, arm_of, best, reaches, summary_of
from vader.studies.tasks import TASKS, arm, chosen_tasks, methods_at

STYLES = {"VADER": "run-1", "DDPO": "run-2", "DPO": "run-3", "GRPO": "run-4", "NFT": "run-5"}
AXES = {"queries": "reward queries", "seconds": "compute time, seconds"}


def arms(options: Options) -> list[Arm]:
    methods = methods_at(options.scale)
    return [arm(task, method, options.scale) for task in chosen_tasks(options.only) for method in methods]


def summarise(trained: Sequence[Trained]) -> dict[str, Any]:
    found: dict[str, Any] = {"arms": [summary_of(one) for one in trained]}
    others = [one["labels"] for one in found["arms"] if one["labels"]["method"] != "VADER"]
    found["efficiency"] = [_efficiency(found, labels["task"], labels["method"]) for labels in others]
    return found


def _efficiency(result: Mapping[str, Any], task: str, method: str) -> dict[str, Any]:
    """How soon VADER is as good as another method ever was, in queries and compute seconds; null where it never is."""
    vader, other = (_curve(result, task, name) for name in ("VADER", method))
    peak = best(other)
    reached = {axis: reaches(vader, peak["mean"], axis) for axis in AXES}
    return {
        "task": task,
        "method": method,
        "best": peak["mean"],
        "gain": peak["mean"] - other[0]["mean"],
        "total": {axis: other[-1][axis] for axis in AXES},
        "at": {axis: peak[axis] for axis in AXES},
        "vader_at": {axis: value if math.isfinite(value) else None for axis, value in reached.items()},
    }


def _curve(result: Mapping[str, Any], task: str, method: str) -> list[dict[str, Any]]:
    found = arm_of(result, task=task, method=method)
    assert found is not None  # every task is run by every method
    return found["curve"]


def table(result: dict[str, Any]) -> str:
    """A row an arm: where it started, where it ended, at what cost, and when VADER was as good."""
    head = ["reward", "method", "before", "after", "best", "queries", "compute, s"]
    head += ["VADER as good after queries", "share of its queries", "share of its time"]
    return markdown(head, [_row(result, found) for found in result["arms"]])


def _row(result: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    task, method, curve = found["labels"]["task"], found["labels"]["method"], found["curve"]
    peak, places = best(curve), decimals([point["mean"] for point in curve])
    cells = [TASKS[task].title, method, *(mean_and_spread(p, places) for p in (curve[0], curve[-1], peak))]
    cells += [count(curve[-1]["queries"]), count(curve[-1]["seconds"])]
    return cells + (["", "", ""] if method == "VADER" else _shares(result, task, method))


def _shares(result: Mapping[str, Any], task: str, method: str) -> list[str]:
    (found,) = [one for one in result["efficiency"] if (one["task"], one["method"]) == (task, method)]
    reached = {axis: math.inf if found["vader_at"][axis] is None else found["vader_at"][axis] for axis in AXES}
    return [count(reached["queries"]), *(times(share(found, axis)) for axis in AXES)]


def share(efficiency: Mapping[str, Any], axis: str) -> float:
    """What VADER needed to be as good, as a share of what the method had needed for its best; infinite if it never was.

    A method whose best is the base model has needed nothing: then it is the share of all that it spent.
    """
    spent = efficiency["at"][axis] or efficiency["total"][axis]
    reached = efficiency["vader_at"][axis]
    return math.inf if reached is None else reached / spent


def draw(result: dict[str, Any], path: Path) -> Path:
    """A column a reward; above over reward queries, below over compute time."""
    tasks = list(dict.fromkeys(found["labels"]["task"] for found in result["arms"]))
    figure = new_figure(4.6 * len(tasks) + 0.6, 7)
    panels = figure.subplots(2, len(tasks), squeeze=False)
    for column, task in enumerate(tasks):
        for row, (axis, label) in enumerate(AXES.items()):
            lines = [line(found, axis) for found in result["arms"] if found["labels"]["task"] == task]
            draw_lines(panels[row][column], lines, TASKS[task].title, label, "held-out prompts, mean ± sd of seeds")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return save(figure, path)


def line(found: Mapping[str, Any], axis: str) -> Series:
    curve = found["curve"]
    method = found["labels"]["method"]
    x, y, error = ([point[key] for point in curve] for key in (axis, "mean", "spread"))
    return Series(method, STYLES[method], x, y, error, points=True)


STUDY = Study("figure7", "Sample and compute efficiency", arms, summarise, table, draw)
