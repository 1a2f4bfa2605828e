"""Plots as PNG or SVG files, for papers, slides and READMEs: a run's folder or lines of numbers in, a picture out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vader.errors import UserError
from vader.evaluation.charts import Series, reward_series, spanned
from vader.evaluation.overlap import Turn, turns
from vader.files.atomic import atomic_write
from vader.runs.reader import read_run

COLOURS = {"faint": "#d5cfc4", "train": "#a08f74", "held-out": "#0b7a6b"}
RUN_COLOURS = ("#0b7a6b", "#c8553d", "#3f6fb5", "#b8860b", "#8a4f9e", "#5a6b2f", "#a83f6f", "#5d6470")  # as page.css
COLOURS |= {f"run-{number}": colour for number, colour in enumerate(RUN_COLOURS, start=1)}


def reward_curve(run_dir: str | Path, path: str | Path) -> Path:
    """Draws the training and held-out reward over optimiser steps as PNG.

    Raises:
        UserError: no run folder, or one without any metrics yet.
    """
    run = read_run(run_dir)
    series = reward_series(run)
    if not series:
        raise UserError(f"{run_dir} has no metrics yet: there is no curve to draw")
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    draw_lines(axes, series, title=run.recipe.name, x_label="optimiser step", y_label="reward")
    axes.legend(frameon=False, fontsize="small")
    return save(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; for no screen."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Writes it as what the path's suffix says, `.png` or `.svg`."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.lstrip("."))
    return Path(path)


def draw_lines(axes: Axes, series: Sequence[Series], title: str, x_label: str, y_label: str) -> None:
    """Lines with their bands, in the colours of their styles; those that lie on each other take turns."""
    if not any(math.isfinite(y) for one in series for y in one.y):
        series = ()
    low, high = spanned(series) if series else (0.0, 1.0)
    for one, turn in zip(series, turns([(one.x, one.y) for one in series], high - low), strict=True):
        axes.update_datalim([(x, y) for x in one.x for y in (low, high)], updatex=False)
        _draw_line(axes, one, turn)
        if one.error:
            below = [y - e for y, e in zip(one.y, one.error, strict=True)]
            above = [y + e for y, e in zip(one.y, one.error, strict=True)]
            axes.fill_between(one.x, below, above, color=COLOURS[one.style], alpha=0.15, lw=0)
    axes.set(xlabel=x_label, ylabel=y_label)
    tidy(axes, title)


def _draw_line(axes: Axes, series: Series, turn: Turn) -> None:
    """The line in its turn; the legend shows it whole."""
    width = 1.0 if series.style == "faint" else 2.0
    look: dict[str, Any] = {"color": COLOURS[series.style], "lw": width, "marker": "o" if series.points else None}
    if turn.dashes:
        offset, lengths = turn.dashes  # in points, where matplotlib counts in widths of the line
        look |= {"linestyle": (offset / width, [length / width for length in lengths]), "dash_capstyle": "butt"}
    axes.plot(series.x, series.y, ms=4 * turn.size, mew=0, **look)
    axes.plot([], [], ms=4, label=series.label, **look | {"linestyle": "-"})


def draw_bars(axes: Axes, values: dict[str, float], colours: Sequence[str], title: str, x_label: str) -> None:
    """A horizontal bar a name, the first on top."""
    axes.barh(list(values), list(values.values()), color=list(colours), height=0.6)
    axes.invert_yaxis()
    axes.set(xlabel=x_label)
    tidy(axes, title, grid="x")


def tidy(axes: Axes, title: str, grid: str = "y") -> None:
    """Title at the left, no frame at top and right, a faint grid."""
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color="#eeeae3")  # type: ignore[arg-type]
