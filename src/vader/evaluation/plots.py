"""Plots as PNG files, for papers, slides and READMEs: a run's folder in, a picture out."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vader.errors import UserError
from vader.evaluation.charts import Series, reward_series
from vader.evaluation.run_folder import read_run
from vader.evaluation.video_io import aside

COLOURS = {"faint": "#d5cfc4", "train": "#a08f74", "held-out": "#0b7a6b"}


def reward_curve(run_dir: str | Path, path: str | Path) -> Path:
    """Draws the training and held-out reward over optimiser steps as PNG.

    Raises:
        UserError: no run folder, or one without any metrics yet.
    """
    run = read_run(run_dir)
    series = reward_series(run)
    if not series:
        raise UserError(f"{run_dir} has no metrics yet: there is no curve to draw")
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure.add_subplot(), series, title=run.recipe.name)
    with aside(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)


def _draw(axes: Axes, series: list[Series], title: str) -> None:
    for one in series:
        colour, width = COLOURS[one.style], 1.0 if one.style == "faint" else 2.0
        axes.plot(one.x, one.y, color=colour, lw=width, marker="o" if one.points else None, ms=4, label=one.label)
        if one.error:
            low = [y - e for y, e in zip(one.y, one.error, strict=True)]
            high = [y + e for y, e in zip(one.y, one.error, strict=True)]
            axes.fill_between(one.x, low, high, color=colour, alpha=0.15, lw=0)
    axes.set(xlabel="optimiser step", ylabel="reward")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeae3")
    axes.legend(frameon=False, fontsize="small")
