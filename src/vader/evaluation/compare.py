"""Several runs on one page: held-out reward over steps, reward queries and compute time, peak memory, a table.

In go the folders of runs, finished or not; out come `compare.html`, which is self-contained, and `compare.png` and
`compare.svg`, the same curves for papers and slides.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from vader.errors import UserError
from vader.evaluation.charts import (
    AXES,
    Axis,
    Series,
    chart_card,
    curve_names,
    figure_names,
    frame_chart,
    frame_series,
    held_out_series,
    is_share,
    legend,
    line_chart,
)
from vader.evaluation.formats import decimals, duration, fixed, signed, with_error
from vader.evaluation.pieces import BUTTONS, note, pixel_class, section, video_tile
from vader.evaluation.plots import RUN_COLOURS, draw_bars, draw_lines, new_figure, save
from vader.evaluation.report import html_page, rewards_in_words
from vader.files.atomic import atomic_write
from vader.files.paths import user_path
from vader.runs.reader import Evaluation, Run, Sample, read_run
from vader.version import __version__

GB = 1e9
COSTS = (
    "run", "algorithm", "before", "after", "change", "steps", "reward queries", "training time", "compute time",
    "peak memory",
)  # fmt: skip
PROMPTS = 4  # of which videos are shown, at most


@dataclass(frozen=True)
class Entry:
    """A run as it is named and coloured here."""

    label: str
    style: str
    run: Run


def compare_runs(folders: Sequence[Path], out: Path) -> list[Path]:
    """Writes the page and the plots into `out` and returns their paths.

    Raises:
        UserError: a folder is no run's or holds no evaluation yet, or there are not two to eight different ones.
    """
    entries = read_entries(folders)
    page = out / "compare.html"
    with atomic_write(page) as temporary:
        temporary.write_text(comparison_page(entries), encoding="utf-8")
    return [page, *draw_comparison(entries, [out / "compare.png", out / "compare.svg"])]


def read_entries(folders: Sequence[Path]) -> list[Entry]:
    """The runs with their labels: the recipe's name, or the folder where two have one name."""
    if len({user_path(folder, "run").resolve() for folder in folders}) < len(folders) or len(folders) < 2:
        raise UserError("nothing to compare: give two or more different run folders, as in runs/tiny runs/tiny-ddpo")
    if len(folders) > len(RUN_COLOURS):
        raise UserError(f"{len(folders)} runs are more than can be told apart: compare at most {len(RUN_COLOURS)}")
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if not run.evaluations:
            raise UserError(f"{run.path} has nothing to compare: no held-out evaluation has been made yet")
    names = [run.recipe.name for run in runs]
    labels = [name if names.count(name) == 1 else str(run.path) for name, run in zip(names, runs, strict=True)]
    return [Entry(label, f"run-{i}", run) for i, (label, run) in enumerate(zip(labels, runs, strict=True), start=1)]


def curves_over(entries: Sequence[Entry], axis: Axis) -> list[Series]:
    return [held_out_series(entry.run, axis, entry.label, entry.style, values=False) for entry in entries]


def table_of(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the final table: rewards, costs, and every figure that any of the runs has."""
    figures = _figures(entries)
    return [*COSTS, *figures], [_row(entry, figures) for entry in entries]


def _figures(entries: Sequence[Entry]) -> list[str]:
    return figure_names(evaluation for entry in entries for evaluation in entry.run.evaluations)


def _row(entry: Entry, figures: Sequence[str]) -> list[str]:
    run = entry.run
    before, after = run.evaluations[0], run.evaluations[-1]
    places = decimals([before.reward, after.reward])
    return [
        entry.label,
        run.recipe.algorithm.name,
        with_error(before.reward, before.stderr, places),
        with_error(after.reward, after.stderr, places),
        signed(after.reward - before.reward, places),
        f"{after.step} of {run.recipe.train.steps}",
        f"{after.queries:,}",
        duration(sum(step.total_seconds for step in run.train if step.step <= after.step)),
        duration(run.compute_seconds(after.step)),
        f"{fixed(run.peak_memory / GB, 2)} GB",
        *(_figure(name, before, after) for name in figures),
    ]


def _figure(name: str, before: Evaluation, after: Evaluation) -> str:
    """ "0.41 → 0.78"; empty where the run has no such figure."""
    values = [evaluation.figures.get(name, math.nan) for evaluation in (before, after)]
    places = decimals([*values, 1.0 if is_share(name) else 0.0])
    return " → ".join(fixed(value, places) for value in values) if any(map(math.isfinite, values)) else ""


# ---- the page ----


def comparison_page(entries: Sequence[Entry]) -> str:
    """The whole page as HTML."""
    notes = "".join(map(note, _cautions(entries)))
    head = (
        '<header><p class="eyebrow">VADER · runs compared</p><h1>Held-out reward of '
        f'{len(entries)} runs</h1><p class="lead">Mean over videos of unseen prompts under fixed noise, ± its '
        "standard error. Training time is the clock's; compute time is the processor's, over all its threads, and on a "
        f"GPU the clock's again. Neither has evaluations in it.</p>{notes}</header>"
    )
    foot = f"<footer>Written by vader {__version__}.</footer>"
    parts = (_curves, _videos, _figure_curves, _along_the_video, _memory, _table)
    return html_page("Runs compared · VADER", head + "".join(part(entries) for part in parts) + foot)


def _cautions(entries: Sequence[Entry]) -> Iterator[str]:
    """Why the curves may not compare, in sentences."""
    recipes = [entry.run.recipe for entry in entries]
    if len(by_rewards(entries)) > 1:
        yield "These runs have different rewards, whose heights do not compare: each has charts of its own."
    if len({recipe.prompts.test for recipe in recipes}) > 1:
        yield "These runs were evaluated on different prompts."
    if len({evaluation.videos for entry in entries for evaluation in entry.run.evaluations}) > 1:
        yield "Not all evaluations are over the same number of videos: look at standard errors."
    if unfinished := [entry.label for entry in entries if not entry.run.finished]:
        yield f"Not finished yet: {', '.join(unfinished)}."


def by_rewards(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The runs in groups of one reward each, whose curves share an axis."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(_rewards(entry), []).append(entry)
    return list(groups.values())


def _rewards(entry: Entry) -> str:
    """What a run was trained on, as text."""
    return repr([(reward.name, reward.weight, reward.options) for reward in entry.run.recipe.rewards])


def _curves(entries: Sequence[Entry]) -> str:
    groups = by_rewards(entries)
    return "".join(_group(group, f"Reward: {_title(group)}" if len(groups) > 1 else "Reward") for group in groups)


def _title(entries: Sequence[Entry]) -> str:
    return rewards_in_words(entries[0].run.recipe)


def _group(entries: Sequence[Entry], title: str) -> str:
    cards = "".join(_chart(curves_over(entries, axis), label) for axis, label in AXES.items())
    keys = legend(curves_over(entries, "step"))
    return section(escape(title), f'<div class="columns-3">{cards}</div>', beside=keys)


def _chart(series: Sequence[Series], label: str) -> str:
    return chart_card(f"over {label}", line_chart(series, f"Reward over {label}", label))


def _videos(entries: Sequence[Entry]) -> str:
    """The same prompts before training and at the latest step of each run that shows them."""
    shown = {entry.label: _latest(entry.run) for entry in entries}
    common = [prompt for prompt in next(iter(shown.values())) if all(prompt in found for found in shown.values())]
    if not common:
        return section("Videos", note("There is no prompt of which every run has left a video."))
    figures = "".join(_video_row(prompt, entries, shown) for prompt in common[:PROMPTS])
    pixels = pixel_class([entry.run.recipe for entry in entries])
    lead = "The same held-out prompts at the latest step of each run; below each video, its reward in that run."
    page = f'<p class="soft">{lead}</p><div class="pairs across {pixels}">{figures}</div>'
    return section("Videos", page, beside=BUTTONS)


def _latest(run: Run) -> dict[str, Sample]:
    """A run's newest videos by prompt; the first one where a prompt comes twice."""
    samples = [found for found in run.samples.values() if found]
    return {sample.prompt: sample for sample in reversed(samples[-1])} if samples else {}


def _video_row(prompt: str, entries: Sequence[Entry], shown: Mapping[str, Mapping[str, Sample]]) -> str:
    tiles = "".join(_tile(entry, shown[entry.label][prompt]) for entry in entries)
    caption = f"<figcaption>{escape(prompt)}</figcaption>"
    return f'<figure class="card pair">{caption}<div class="videos">{tiles}</div></figure>'


def _tile(entry: Entry, sample: Sample) -> str:
    return video_tile(sample, escape(entry.label), fixed(sample.reward, decimals([sample.reward])))


def _figure_curves(entries: Sequence[Entry]) -> str:
    """A small chart a figure: every run that has it, over steps. The legend is that of the rewards."""
    cards = "".join(_figure_chart(name, entries) for name in _figures(entries))
    return section("Figures", f'<div class="smalls">{cards}</div>') if cards else ""


def _figure_chart(name: str, entries: Sequence[Entry]) -> str:
    lines = [_figure_line(name, entry) for entry in entries]
    drawn = [line for line in lines if any(map(math.isfinite, line.y))]
    if not drawn:
        return ""
    chart = line_chart(drawn, f"{name} over steps", "", "small", (0.0, 1.0) if is_share(name) else None)
    return chart_card(name, chart)


def _figure_line(name: str, entry: Entry) -> Series:
    found = [evaluation for evaluation in entry.run.evaluations if name in evaluation.figures]
    steps, values = [one.step for one in found], [one.figures[name] for one in found]
    return Series(entry.label, entry.style, steps, values, points=True, values=False)


def _along_the_video(entries: Sequence[Entry]) -> str:
    """Curves over the frames of held-out videos: every run's latest, which has them. The legend is that of rewards."""
    names = curve_names(entry.run.evaluations[-1] for entry in entries)
    longest = max((entry.run.recipe.video.size for entry in entries), key=lambda size: size.frames)
    lines = {
        name: [frame_series(entry.run.evaluations[-1], name, entry.label, entry.style) for entry in entries]
        for name in names
    }
    cards = "".join(frame_chart(name, series, longest) for name, series in lines.items())
    seams = "; dashed where one segment ends and the next begins" if longest.segments > 1 else ""
    lead = f'<p class="soft">Means over held-out videos, frame by frame, at each run\'s latest evaluation{seams}.</p>'
    return section("Along the video", f'{lead}<div class="smalls">{cards}</div>') if cards else ""


def _memory(entries: Sequence[Entry]) -> str:
    trained = [entry for entry in entries if entry.run.train]
    most = max((entry.run.peak_memory for entry in trained), default=0.0)
    meters = "".join(
        f"<div>{escape(entry.label)}: {fixed(entry.run.peak_memory / GB, 2)} GB"
        f'<span class="meter {entry.style}" style="width:{entry.run.peak_memory / most:.2%}"></span></div>'
        for entry in trained
    )
    return section("Peak memory", f'<div class="card">{meters}</div>')


def _table(entries: Sequence[Entry]) -> str:
    """A column a run, so that a page shows all of it; on a phone, a line a run below each figure's name."""
    (_, *names), rows = table_of(entries)
    head = "".join(f'<th><span class="key {entry.style}"></span>{escape(entry.label)}</th>' for entry in entries)
    figures = zip(names, *(row[1:] for row in rows), strict=True)
    body = "".join(
        _table_row(name, dict(zip([row[0] for row in rows], cells, strict=True))) for name, *cells in figures
    )
    table = f'<table class="across"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'
    return section("Table", f'<div class="card scroll">{table}</div>')


def _table_row(name: str, cells: Mapping[str, str]) -> str:
    """The figure of each run by its label."""
    values = "".join(f'<td data-run="{escape(label)}">{escape(cell)}</td>' for label, cell in cells.items())
    return f'<tr><th scope="row">{escape(name)}</th>{values}</tr>'


# ---- the plot ----


def draw_comparison(entries: Sequence[Entry], paths: Sequence[Path]) -> list[Path]:
    """Three panels of curves for each reward, and one of peak memory."""
    groups = by_rewards(entries)
    rows = -(-(len(AXES) * len(groups) + 1) // 2)
    figure = new_figure(11, 3.75 * rows)
    panels = iter(figure.subplots(rows, 2).flat)
    for group in groups:
        height = textwrap.fill(f"held-out {_title(group)}", 40) if len(groups) > 1 else "held-out reward"
        for axis, label in AXES.items():
            draw_lines(next(panels), curves_over(group, axis), f"over {label}", label, height)
    memory = {entry.label: entry.run.peak_memory / GB for entry in entries}
    draw_bars(next(panels), memory, RUN_COLOURS[: len(entries)], "peak memory", "GB")
    for left_over in panels:
        left_over.remove()
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    named = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    figure.legend([*named.values()], [*named], loc="outside upper center", ncols=4, frameon=False)
    return [save(figure, path) for path in paths]
