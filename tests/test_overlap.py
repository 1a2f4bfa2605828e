"""Charts: lines that lie on each other take turns, and differences of rounding fill no plot."""

from __future__ import annotations

import re

import pytest

from vader.evaluation.charts import Series, line_chart, spanned
from vader.evaluation.overlap import DASH, Turn, turns
from vader.evaluation.plots import draw_lines, new_figure

STEPS = [0.0, 1.0, 2.0, 3.0]
RISING = [4.0, 5.0, 5.5, 6.0]


def test_lines_that_coincide_share_the_way():
    near = [4.0, 5.01, 5.49, 6.01]  # within 1 % of the height, 2
    found = turns([(STEPS, RISING), (STEPS, [4.0, 4.2, 4.4, 4.6]), (STEPS, near), (STEPS, RISING)], 2.0)
    assert found == [Turn(0, 3), Turn(0, 1), Turn(1, 3), Turn(2, 3)]
    assert [one.dashes for one in found] == [None, None, (-DASH, (DASH, 2 * DASH)), (-2 * DASH, (DASH, 2 * DASH))]
    assert [one.size for one in found] == pytest.approx([1, 1, 2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("other", "place"),
    [
        ((STEPS, [4.0, 5.5, 6.0, 6.5]), 0),  # runs begin alike
        ((STEPS, [4.0, 5.0, 6.0, 6.5]), 1),  # half of the way is the same
        ((STEPS, [4.5, 5.5, 5.5, 5.0]), 0),  # they cross
        ((STEPS, [4.0, float("nan"), 5.5, 7.0]), 1),
        (([0.0, 1.5, 2.5, 3.5], RISING), 0),  # other places
    ],
)
def test_lines_that_only_meet_do_not(other, place):
    assert turns([(STEPS, RISING), other], 2.0)[1].place == place


def test_a_chart_shows_both_of_two_equal_runs():
    chart = line_chart(
        [Series(name, f"run-{i}", STEPS, RISING, points=True) for i, name in ((1, "a"), (2, "b"))], "", ""
    )
    first, second = re.findall(r'<g class="run-\d"([^>]*)><path class="line"', chart)
    assert first == ""
    assert second == f' style="--dashes:{DASH:g} {DASH:g};--offset:{-DASH:g};--mark:4px"'
    apart = line_chart([Series("a", "run-1", STEPS, RISING), Series("b", "run-2", STEPS, RISING[::-1])], "", "")
    assert "--dashes" not in apart


def test_a_plot_shows_both_too_and_names_each_by_a_whole_line():
    axes = new_figure(4, 3).add_subplot()
    draw_lines(axes, [Series(name, f"run-{i}", STEPS, RISING) for i, name in ((1, "a"), (2, "b"))], "", "", "")
    drawn = [line.get_linestyle() for line in axes.get_lines() if len(line.get_xdata())]
    assert drawn == ["-", "--"]
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["a", "b"]
    assert [handle.get_linestyle() for handle in handles] == ["-", "-"]
    draw_lines(new_figure(4, 3).add_subplot(), [], "", "", "")  # nothing to show is no error


@pytest.mark.parametrize(
    ("values", "span"),
    [
        ([27.40, 27.41], (27.26795, 27.54205)),  # 1 % of 27.41, about the middle
        ([-0.2000, -0.2001], (-0.2010505, -0.1990495)),
        ([4.0, 5.0], (4.0, 5.0)),
        ([0.0, 1e-6], (0.0, 1e-6)),  # as large as its values
        ([0.0, 0.0], (0.0, 0.0)),
    ],
)
def test_rounding_fills_no_plot(values, span):
    assert spanned([Series("a", "train", [0, 1], values)]) == pytest.approx(span, rel=1e-9)


def test_values_within_a_thousandth_take_a_tenth_of_the_height_at_most():
    chart = line_chart([Series("a", "train", [0, 1], [27.400, 27.427])], "", "")
    heights = [float(y) for y in re.search(r'class="line" d="M\S+ (\S+)L\S+ ([^"]+)"', chart).groups()]
    assert 0 < abs(heights[0] - heights[1]) <= 100  # of 1000
    axes = new_figure(4, 3).add_subplot()
    draw_lines(axes, [Series("a", "train", [0, 1], [27.400, 27.427])], "", "", "")
    low, high = axes.get_ylim()
    assert 0.027 / (high - low) <= 0.1
