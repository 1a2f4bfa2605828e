"""Table 1: rewards on training prompts and on prompts that were never trained on, for base, DDPO, DPO and VADER."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vader.evaluation.plots import draw_bars, new_figure, save
from vader.runs.reader import Run
from vader.studies import figure7
from vader.studies.formats import markdown, mean_and_spread
from vader.studies.processes import Job
from vader.studies.study import Arm, Options, Study, Trained, arm_of, over_seeds, summary_of
from vader.studies.tasks import METHODS, image_to_video_arm

TRAIN, TEST = "train", "test"
ROWS = ("Base", "DDPO", "DPO", "VADER")
TITLES = {"aesthetic": "Aesthetic (T2V)", "text": "HPS (T2V)", "action": "Action", "i2v": "Aesthetic (I2V)"}
COLOURS = {"Base": "#5d6470", "DDPO": "#c8553d", "DPO": "#3f6fb5", "VADER": "#0b7a6b"}


def arms(options: Options) -> list[Arm]:
    """Those of figure 7 by the paper's methods, and VADER on image-to-video if a recipe of it ships."""
    videos = image_to_video_arm(options.scale) if options.only is None else None
    return [one for one in figure7.arms(options) if one.labels["method"] in METHODS] + ([videos] if videos else [])


def jobs(trained: Sequence[Trained]) -> list[Job]:
    """Each run's adapter and base on as many training prompts as it was held out from."""
    return [_job(run) for one in trained for run in one.runs]


def _job(run: Run) -> Job:
    result = _evaluation_file(run)
    recipe = run.recipe
    arguments = ["evaluate", "--adapter", str(run.folder.adapter), "--recipe", str(run.folder.recipe)]
    arguments += ["--prompts", recipe.prompts.train, "--videos", str(run.evaluations[-1].videos), "--seeds", "1"]
    return Job(f"{run.path.name}-on-train", (*arguments, "--out", str(result.parent)), result)


def _evaluation_file(run: Run) -> Path:
    return run.path / "train-prompts" / "evaluation.json"


def summarise(trained: Sequence[Trained]) -> dict[str, Any]:
    found = []
    for one in trained:
        curve = summary_of(one)
        columns = {TEST: (curve["curve"][0], curve["curve"][-1]), TRAIN: _on_train(one)}
        after = {prompts: last for prompts, (_, last) in columns.items()}
        before = {prompts: first for prompts, (first, _) in columns.items()}
        found.append(curve | {"before": before, "after": after})
    return {"arms": found, "generalisation": [_generalisation(one) for one in found]}


def _on_train(trained: Trained) -> tuple[dict[str, Any], dict[str, Any]]:
    """Base and adapter on training prompts, each as mean and spread over seeds."""
    read = [json.loads(_evaluation_file(run).read_text(encoding="utf-8"))["points"] for run in trained.runs]
    before, after = ([_value(points[place], trained.arm.measure) for points in read] for place in (0, 1))
    return over_seeds(before), over_seeds(after)


def _value(point: dict[str, Any], measure: str | None) -> float:
    return point["reward"] if measure is None else point["figures"][measure]


def _generalisation(found: dict[str, Any]) -> dict[str, Any]:
    """The gain on unseen prompts as a share of that on training prompts."""
    gains = {prompts: found["after"][prompts]["mean"] - found["before"][prompts]["mean"] for prompts in (TRAIN, TEST)}
    return {**found["labels"], "gains": gains, "share": gains[TEST] / gains[TRAIN] if gains[TRAIN] else None}


def table(result: dict[str, Any]) -> str:
    """Methods as rows, rewards on training and unseen prompts as columns; the base is VADER's."""
    tasks = list(dict.fromkeys(found["labels"]["task"] for found in result["arms"]))
    head = ["method", *(f"{TITLES[task]}, {prompts}" for task in tasks for prompts in (TRAIN, TEST))]
    return markdown(head, [[row, *(_cells(result, row, tasks))] for row in ROWS])


def _cells(result: dict[str, Any], row: str, tasks: Sequence[str]) -> list[str]:
    return [_cell(result, row, task, prompts) for task in tasks for prompts in (TRAIN, TEST)]


def _cell(result: dict[str, Any], row: str, task: str, prompts: str) -> str:
    point = point_of(result, row, task, prompts)
    return "" if point is None else mean_and_spread(point)


def point_of(result: dict[str, Any], row: str, task: str, prompts: str) -> dict[str, Any] | None:
    """One cell of the table; None where there is no run of it."""
    found = arm_of(result, task=task, method="VADER" if row == "Base" else row)
    return None if found is None else found["before" if row == "Base" else "after"][prompts]


def draw(result: dict[str, Any], path: Path) -> Path:
    """Bars a task: methods on training and on unseen prompts."""
    tasks = list(dict.fromkeys(found["labels"]["task"] for found in result["arms"]))
    figure = new_figure(4 * len(tasks) + 0.5, 3.6)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        keys = [(row, prompts) for row in ROWS for prompts in (TRAIN, TEST)]
        points = {key: point_of(result, *_at(key, task)) for key in keys}
        bars = {f"{row}, {prompts}": point["mean"] for (row, prompts), point in points.items() if point}
        colours = [COLOURS[row] for (row, _), point in points.items() if point]
        draw_bars(axes, bars, colours, TITLES[task], "")
    return save(figure, path)


def _at(key: tuple[str, str], task: str) -> tuple[str, str, str]:
    return key[0], task, key[1]


STUDY = Study("table1", "Training prompts and unseen prompts", arms, summarise, table, draw, jobs)
