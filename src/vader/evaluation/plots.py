"""Plots as PNG or SVG files, for papers, slides and READMEs: a run's folder or lines of numbers in, a picture out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vader.errors import UserError
from vader.evaluation.charts import Series, reward_series
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
    """Lines with their bands, in the colours of their styles."""
    for one in series:
        colour, width = COLOURS[one.style], 1.0 if one.style == "faint" else 2.0
        axes.plot(one.x, one.y, color=colour, lw=width, marker="o" if one.points else None, ms=4, label=one.label)
        if one.error:
            low = [y - e for y, e in zip(one.y, one.error, strict=True)]
            high = [y + e for y, e in zip(one.y, one.error, strict=True)]
            axes.fill_between(one.x, low, high, color=colour, alpha=0.15, lw=0)
    axes.set(xlabel=x_label, ylabel=y_label)
    tidy(axes, title)


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
