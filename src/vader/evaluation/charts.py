"""Line charts for the report: numbers in, HTML with inline SVG out, drawn without any library.

Lines live in an SVG that stretches with the page while strokes keep their width; labels are HTML, so
that they stay readable on a phone. Colours come from the page's style sheet through class names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate, groupby
from typing import Literal

from vader.evaluation.formats import decimals, fixed, plain
from vader.evaluation.overlap import Turn, turns
from vader.nouns import VideoSize
from vader.runs.reader import Evaluation, Run


@dataclass(frozen=True)
class Series:
    """One line: points in the order of x, breaks where y is not finite.

    `style` is the class the page colours it by; `error` draws a band of y ± error; `points` marks the points, of which
    the first and the last get their `values` written beside them.
    """

    label: str
    style: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = field(default=())
    points: bool = False
    values: bool = True


LOW = {"large": 0.08, "small": 0.16}  # shares of a plot's height: a value below a lower point lies on the axis' labels
# Frozen networks score in bf16, whose numbers are 2^-8 = 0.4 % apart: an axis spans more than twice that share of its
# values, so that no curve fills a plot with rounding.
LEAST_SPAN = 0.01
COLUMNS = 2000  # of a plot: more than a screen shows
Axis = Literal["step", "queries", "seconds"]
AXES: dict[Axis, str] = {"step": "optimiser steps", "queries": "reward queries", "seconds": "compute time, seconds"}


def held_out_series(run: Run, axis: Axis, label: str, style: str = "held-out", values: bool = True) -> Series:
    """The held-out reward of a run with its standard error, over what the axis counts."""
    held_out = run.evaluations
    if axis == "seconds":
        x = [run.compute_seconds(evaluation.step) for evaluation in held_out]
    else:
        x = [float(getattr(evaluation, axis)) for evaluation in held_out]
    rewards, errors = ([getattr(evaluation, of) for evaluation in held_out] for of in ("reward", "stderr"))
    return Series(label, style, x, rewards, errors, points=True, values=values)


def figure_names(evaluations: Iterable[Evaluation]) -> list[str]:
    """Every figure that any of them has, in the order in which they first appear."""
    return list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.figures))


def curve_names(evaluations: Iterable[Evaluation]) -> list[str]:
    """Every curve over a video's frames that any of them has, in the order in which they first appear."""
    return list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.curves))


def frame_chart(name: str, series: Sequence[Series], size: VideoSize) -> str:
    """A small chart of lines over a video's frames, in which seams are marked, on a card; empty without lines."""
    drawn = [one for one in series if any(map(math.isfinite, one.y))]
    if not drawn:
        return ""
    spans = (0.0, 1.0) if all(0 <= y <= 1 for one in drawn for y in one.y) and is_share(name.split("/")[-1]) else None
    return chart_card(name, line_chart(drawn, f"{name} over frames", "frame", "small", spans, size.seams))


def frame_series(evaluation: Evaluation, name: str, label: str, style: str) -> Series:
    """One curve of an evaluation, the mean over its videos."""
    curve = evaluation.curves.get(name, [])
    return Series(label, style, list(range(len(curve))), curve)


def is_share(name: str) -> bool:
    """Whether a figure is a share, drawn from 0 to 1: those of the tiny world's judge are."""
    return name.split("/")[0].split("_")[0] in ("judge", "gold")


def reward_series(run: Run, axis: Literal["step", "queries"] = "step") -> list[Series]:
    """The reward over a run: each training step, its moving average, and the held-out reward with standard error.

    Args:
        axis: "step" or "queries", what x counts.
    """
    x = [getattr(step, axis) for step in run.train]
    rewards = [step.reward for step in run.train]
    series = [
        Series("training batch", "faint", x, rewards),
        Series("training, moving average", "train", x, smoothed(rewards)),
        held_out_series(run, axis, "held-out prompts ± standard error"),
    ]
    return [one for one in series if any(map(math.isfinite, one.y))]


def smoothed(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Centred moving average over about `share` of the values, narrower at the ends; ignores what is not finite."""
    reach = round(len(values) * share / 2)
    sums = list(accumulate((v if math.isfinite(v) else 0.0 for v in values), initial=0.0))
    counts = list(accumulate(map(math.isfinite, values), initial=0))
    windows = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [
        (sums[end] - sums[start]) / (counts[end] - counts[start]) if counts[end] > counts[start] else math.nan
        for start, end in windows
    ]


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    size: Literal["large", "small"] = "large",
    y_range: tuple[float, float] | None = None,
    marks: Sequence[float] = (),
) -> str:
    """An HTML figure of the lines.

    Args:
        series: at least one line with at least one finite point.
        title: what a screen reader says.
        x_label: what x counts, at the foot.
        size: the class that sets the height; a small chart has fewer labels.
        y_range: what the chart spans upwards; None fits the points.
        marks: places on the x axis through which a dashed line goes.
    """
    about = {"large": 5, "small": 3}[size]
    xs = [x for one in series for x in one.x]
    y_ticks = ticks(*(y_range or spanned(series)), about)
    x_ticks = [
        tick
        for tick in ticks(min(xs), max(xs), about, whole=all(float(x).is_integer() for x in xs))
        if min(xs) <= tick <= max(xs)
    ]
    frame = _Frame((min(xs), max(xs)), (y_ticks[0], y_ticks[-1]))
    shares = turns([(one.x, one.y) for one in series], y_ticks[-1] - y_ticks[0])
    bands = "".join(_band(one, frame) for one in series)  # below all lines, which they would tint
    lines = bands + "".join(_drawn(one, frame, turn) for one, turn in zip(series, shares, strict=True))
    values = [value for one in series for value in _end_values(one)]
    labels = _y_labels(y_ticks, frame) + _x_labels(x_ticks, frame) + "".join(one.label(frame) for one in values)
    deep = " deep" if any(one.below and frame.up(one.y) < LOW[size] for one in values) else ""
    return (
        f'<div class="chart {size}{deep}" style="--longest:{max(len(plain(y)) for y in y_ticks)}"><div class="plot">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f"{_grid(y_ticks, frame)}{_marked(marks, frame)}{lines}</svg>{labels}</div>"
        f'<div class="x-label">{escape(x_label)}</div></div>'
    )


def chart_card(title: str, chart: str) -> str:
    """A chart under its title, which may break behind a slash."""
    return f'<div class="card"><h4>{escape(title).replace("/", "/<wbr>")}</h4>{chart}</div>'


def legend(series: Sequence[Series]) -> str:
    keys = (f'<li><span class="key {one.style}"></span>{escape(one.label)}</li>' for one in series)
    return f'<ul class="legend">{"".join(keys)}</ul>'


def ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """About so many round numbers, evenly spaced, from at or below `low` to at or above `high`; integers if `whole`."""
    if high <= low:
        pad = 1.0 if whole else abs(low) * 0.05 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    if whole:
        step = max(1, math.ceil(step))
    return [i * step for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


@dataclass(frozen=True)
class _Frame:
    """Maps data to shares of the plot's width and height; y grows upwards."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, x: float) -> float:
        return (x - self.x[0]) / (self.x[1] - self.x[0]) if self.x[1] > self.x[0] else 0.5

    def up(self, y: float) -> float:
        return (y - self.y[0]) / (self.y[1] - self.y[0])

    def point(self, x: float, y: float) -> str:
        """In the SVG's units, where y grows downwards."""
        return f"{1000 * self.across(x):.1f} {1000 * (1 - self.up(y)):.1f}"


def spanned(series: Sequence[Series]) -> tuple[float, float]:
    """From the lowest to the highest point with its error, at the least `LEAST_SPAN` of these values."""
    values = [v for one in series for x, y, e in _stretch(one) for v in (y - e, y + e)]
    low, high = min(values), max(values)
    lacking = max(0.0, LEAST_SPAN * max(abs(low), abs(high)) - (high - low))
    return low - lacking / 2, high + lacking / 2


def _stretch(series: Series) -> list[tuple[float, float, float]]:
    """The finite points as (x, y, error)."""
    errors = series.error or [0.0] * len(series.y)
    return [point for point in zip(series.x, series.y, errors, strict=True) if all(map(math.isfinite, point))]


def _drawn(series: Series, frame: _Frame, turn: Turn) -> str:
    points = _stretch(series)
    marked = points if series.points or len(points) == 1 else []
    marks = "".join(_mark(x, y, frame) for x, y, _ in marked)
    return f'<g class="{series.style}"{_in_turn(turn)}>{_lines(series, frame)}{marks}</g>'


def _in_turn(turn: Turn) -> str:
    """What a group's lines and marks take from it, so that others below are seen."""
    if turn.dashes is None:
        return ""
    offset, lengths = turn.dashes
    dashes = " ".join(f"{length:g}" for length in lengths)
    return f' style="--dashes:{dashes};--offset:{offset:g};--mark:{8 * turn.size:.3g}px"'


def _lines(series: Series, frame: _Frame) -> str:
    runs = groupby(zip(series.x, series.y, strict=True), key=lambda point: math.isfinite(point[1]))
    paths = ("L".join(frame.point(x, y) for x, y in _thinned(points, frame)) for finite, points in runs if finite)
    return "".join(f'<path class="line" d="M{path}"/>' for path in paths)


def _thinned(points: Iterable[tuple[float, float]], frame: _Frame) -> Iterator[tuple[float, float]]:
    """The points that can be seen: of each of the plot's columns the first, the lowest, the highest and the last."""
    for _, column in groupby(points, key=lambda point: int(COLUMNS * frame.across(point[0]))):
        here = list(column)
        lowest, highest = min(here, key=lambda point: point[1]), max(here, key=lambda point: point[1])
        yield from sorted({here[0], lowest, highest, here[-1]})


def _band(series: Series, frame: _Frame) -> str:
    if not series.error:
        return ""
    points = _stretch(series)
    outline = [frame.point(x, y + e) for x, y, e in points] + [frame.point(x, y - e) for x, y, e in reversed(points)]
    return f'<g class="{series.style}"><path class="band" d="M{"L".join(outline)}Z"/></g>'


def _mark(x: float, y: float, frame: _Frame) -> str:
    """A dot: a line of no length with round ends, which stretching does not deform."""
    return f'<path class="mark" d="M{frame.point(x, y)}h.01"><title>{plain(x)}: {plain(y)}</title></path>'


def _grid(y_ticks: Sequence[float], frame: _Frame) -> str:
    return "".join(f'<path class="grid" d="M0 {1000 * (1 - frame.up(y)):.1f}H1000"/>' for y in y_ticks)


def _marked(marks: Sequence[float], frame: _Frame) -> str:
    return "".join(f'<path class="seam" d="M{1000 * frame.across(x):.1f} 0V1000"/>' for x in marks)


def _y_labels(y_ticks: Sequence[float], frame: _Frame) -> str:
    return "".join(f'<span class="y-tick" style="bottom:{frame.up(y):.2%}">{plain(y)}</span>' for y in y_ticks)


def _x_labels(x_ticks: Sequence[float], frame: _Frame) -> str:
    return "".join(f'<span class="x-tick" style="left:{frame.across(x):.2%}">{plain(x)}</span>' for x in x_ticks)


@dataclass(frozen=True)
class _Value:
    """A number beside a point: above or below it, reaching inwards from the left or the right."""

    style: str
    x: float
    y: float
    side: Literal["left", "right"]
    below: bool

    def label(self, frame: _Frame) -> str:
        place = f"left:{frame.across(self.x):.2%};bottom:{frame.up(self.y):.2%}"
        where = f"{self.style} {self.side} {'below' if self.below else 'above'}"
        return f'<span class="value {where}" style="{place}">{fixed(self.y, decimals(frame.y))}</span>'


def _end_values(series: Series) -> list[_Value]:
    """The first and the last value of a line of points, on the side that the line does not take."""
    points = _stretch(series) if series.points and series.values else []
    if len(points) < 2:
        return [_Value(series.style, x, y, "left", below=False) for x, y, _ in points]
    (x0, y0, _), (_, y1, _) = points[:2]
    (_, y2, _), (x3, y3, _) = points[-2:]
    return [
        _Value(series.style, x0, y0, "left", below=y1 > y0),
        _Value(series.style, x3, y3, "right", below=y2 > y3),
    ]
