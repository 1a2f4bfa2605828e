"""Figure 4: the aesthetic reward after so many steps against resolution, by reward gradient and by policy gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vader.evaluation.charts import Series
from vader.evaluation.plots import draw_lines, new_figure, save
from vader.studies.formats import markdown, mean_and_spread
from vader.studies.study import Arm, Options, Scale, Study, Trained, arm_of, changed, over_seeds, summary_of
from vader.studies.tasks import task_recipe

SIZES: dict[Scale, tuple[int, ...]] = {"tiny": (24, 32, 48), "full": (128, 192, 256, 384)}
STEPS: dict[Scale, int] = {"tiny": 8, "full": 100}
TINY_CHECKPOINT = "tiny/modelscope-sizes"  # trained at all these sizes
METHODS = {"VADER": "reward gradient", "DDPO": "policy gradient"}


def arms(options: Options) -> list[Arm]:
    return [_arm(size, method, options.scale) for size in SIZES[options.scale] for method in METHODS]


def _arm(size: int, method: str, scale: Scale) -> Arm:
    recipe, steps = task_recipe("aesthetic", method, scale), STEPS[scale]
    if scale == "tiny":
        recipe = changed(recipe, model={"checkpoint": TINY_CHECKPOINT})
    recipe = changed(
        recipe,
        f"size{size}-{method.lower()}",
        video={"height": size, "width": size},
        train={"steps": steps},
        evaluation={"every": steps},
    )
    return Arm({"size": str(size), "method": method}, recipe)


def summarise(trained: Sequence[Trained]) -> dict[str, Any]:
    found: dict[str, Any] = {"arms": [summary_of(one) for one in trained]}
    sizes = list(dict.fromkeys(int(one["labels"]["size"]) for one in found["arms"]))
    gains = {method: [_gain(found, size, method) for size in sizes] for method in METHODS}
    gaps = [_difference(vader, ddpo) for vader, ddpo in zip(gains["VADER"], gains["DDPO"], strict=True)]
    return found | {"sizes": sizes, "gains": gains, "gaps": gaps}


def _gain(result: Mapping[str, Any], size: int, method: str) -> dict[str, Any]:
    first, last = _points(result, size, method)
    return _difference(last, first)


def _difference(more: Mapping[str, Any], less: Mapping[str, Any]) -> dict[str, Any]:
    """Seed by seed, so that what a seed's held-out videos are worth to begin with does not count as spread."""
    return over_seeds([a - b for a, b in zip(more["values"], less["values"], strict=True)])


def _points(result: Mapping[str, Any], size: int, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    found = arm_of(result, size=str(size), method=method)
    assert found is not None  # every size is run by every method
    return found["curve"][0], found["curve"][-1]


def table(result: dict[str, Any]) -> str:
    head = ["size, pixels", "base", *METHODS.values(), "gap of the gains"]
    return markdown(head, [_row(result, size, gap) for size, gap in zip(result["sizes"], result["gaps"], strict=True)])


def _row(result: Mapping[str, Any], size: int, gap: Mapping[str, Any]) -> list[str]:
    base = _points(result, size, "VADER")[0]
    after = [_points(result, size, method)[1] for method in METHODS]
    return [str(size), *(mean_and_spread(point, 2) for point in (base, *after, gap))]


def draw(result: dict[str, Any], path: Path) -> Path:
    """Three lines over resolution, as in the paper."""
    sizes = result["sizes"]
    ends = {method: [_points(result, size, method) for size in sizes] for method in METHODS}
    lines = [
        _line(METHODS["VADER"], "run-1", sizes, [after for _, after in ends["VADER"]]),
        _line(METHODS["DDPO"], "run-2", sizes, [after for _, after in ends["DDPO"]]),
        _line("base", "run-8", sizes, [before for before, _ in ends["VADER"]]),
    ]
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    steps = ends["VADER"][0][1]["step"]
    draw_lines(axes, lines, f"after {steps} optimisation steps", "resolution, pixels", "held-out aesthetic score")
    axes.set_xticks(sizes, [f"{size}x{size}" for size in sizes])
    axes.legend(frameon=False)
    return save(figure, path)


def _line(label: str, style: str, sizes: Sequence[int], points: Sequence[Mapping[str, Any]]) -> Series:
    return Series(label, style, sizes, [p["mean"] for p in points], [p["spread"] for p in points], points=True)


STUDY = Study("figure4", "Reward gradient and policy gradient as resolution grows", arms, summarise, table, draw)
