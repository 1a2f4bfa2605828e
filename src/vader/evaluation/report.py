"""One self-contained HTML page that shows a run: headline numbers, before and after, curves, time, settings.

In goes a run's folder, finished or not; out comes `report.html` in it, which asks nothing of the network
and can be read without JavaScript. Each section is a function from a `Run` to HTML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import fmean, median
from string import Template
from typing import Literal

from vader.evaluation.charts import (
    AXES,
    Series,
    chart_card,
    curve_names,
    figure_names,
    frame_chart,
    frame_series,
    is_share,
    legend,
    line_chart,
    reward_series,
)
from vader.evaluation.formats import TIMES, counted, decimals, duration, fixed, signed
from vader.evaluation.pieces import BUTTONS, is_wide, note, pixel_class, section, video_tile
from vader.evaluation.trust import trust
from vader.files.atomic import atomic_write
from vader.recipe import Recipe, VideoSection
from vader.runs.reader import Evaluation, Run, Sample, TrainStep, read_run
from vader.version import __version__

PHASES = {
    "sample": "sampling",
    "gradient": "gradient steps",
    "decode_reward": "decode and reward",
    "optimise": "optimiser",
}
OTHER = "everything else"


def write_report(run_dir: str | Path) -> Path:
    """Writes `report.html` into a run's folder; what is not there yet is said so in the page.

    Raises:
        UserError: the folder is no run's, one of its files is damaged, or it cannot be written to.
    """
    run = read_run(run_dir)
    path = run.folder.report
    with run.folder.reporting(), atomic_write(path) as temporary:
        temporary.write_text(report_page(run), encoding="utf-8")
    return path


def report_page(run: Run) -> str:
    """The whole page."""
    sections = (header, headline, trust, videos, curves, times, settings, footer)
    return html_page(f"{run.recipe.name} · VADER", "\n".join(part(run) for part in sections))


def html_page(title: str, body: str) -> str:
    """A self-contained page in this project's style: `title` is text, `body` is HTML."""
    return Template(_page_file("html")).substitute(
        title=escape(title), style=page_style(), script=_page_file("js"), body=body
    )


def page_style() -> str:
    """The style sheet of this project's pages."""
    return _page_file("css")


def _page_file(kind: str) -> str:
    return (files("vader.evaluation") / "page" / f"page.{kind}").read_text(encoding="utf-8")


# ---------------------------------------------------------------- header and headline


def header(run: Run) -> str:
    return (
        f'<header><p class="eyebrow">VADER · run report</p><h1>{escape(run.recipe.name)}</h1>'
        f'<p class="lead">{escape(_described(run.recipe))}</p>{"".join(map(note, _missing(run)))}</header>'
    )


def headline(run: Run) -> str:
    """The held-out reward before and after and what it took, beside each reward of a mix and the metrics' figures."""
    first_card = (_hero(run.evaluations[0], run.evaluations[-1]) if run.evaluations else "") + _facts(run)
    second_card = _comparisons(run.evaluations[0], run.evaluations[-1]) if len(run.evaluations) > 1 else ""
    cards = f'<div class="card hero">{first_card}</div>' if first_card else ""
    cards += f'<div class="card">{second_card}</div>' if second_card else ""
    return f'<div class="headline">{cards}</div>'


def _comparisons(before: Evaluation, after: Evaluation) -> str:
    parts = _comparison("Rewards, unweighted", before.parts, after.parts, _change) if len(before.parts) > 1 else ""
    figures = "Figures<small>what was not trained on</small>"
    return parts + _comparison(figures, before.figures, after.figures, _difference)


def _described(recipe: Recipe) -> str:
    video = recipe.video
    return (
        f"{recipe.model.family} ({recipe.model.checkpoint}) aligned to {rewards_in_words(recipe)} "
        f"by {_method(recipe)}. "
        f"{_length(video)} of {video.width} {TIMES} {video.height} pixels, "
        f"LoRA of rank {recipe.adapter.rank}."
    )


def _length(video: VideoSection) -> str:
    """ "16 frames", and of several segments how these make it up."""
    segments = f" in {video.segments} segments of {video.frames}" if video.segments > 1 else ""
    return f"{counted(video.size.frames, 'frame')}{segments}"


def rewards_in_words(recipe: Recipe) -> str:
    """ "aesthetic + 0.5 × hps"."""
    return " + ".join(f"{_weight(reward.weight)}{reward.name}" for reward in recipe.rewards)


def _weight(weight: float) -> str:
    return "" if weight == 1 else f"{weight:g} {TIMES} "


def _method(recipe: Recipe) -> str:
    """The algorithm, and of one that has a policy this with its options, as far as the recipe says them."""
    algorithm = recipe.algorithm
    policy = algorithm.options.get("policy")
    if not isinstance(policy, Mapping):
        return algorithm.name
    options = "".join(f", {key} = {value}" for key, value in policy.items() if key != "name")
    return f"{algorithm.name} (policy {policy['name']}{options})"


def _missing(run: Run) -> Iterator[str]:
    """What the page cannot show, in sentences."""
    if not run.finished:
        done = run.train[-1].step if run.train else 0
        yield f"This run has not finished: {done} of {run.recipe.train.steps} steps are done."
    if run.left_out:
        yield f"Left out: {'; '.join(run.left_out)}."
    if not run.evaluations:
        yield "No held-out evaluation has been made yet."
    elif len(run.evaluations) == 1:
        yield "Only the base model has been evaluated on held-out prompts yet, so there is no “after”."
    elif run.evaluations[0].videos != run.evaluations[-1].videos:
        yield (
            f"The first evaluation is over {counted(run.evaluations[0].videos, 'video')} and the "
            f"latest over {run.evaluations[-1].videos}: compare them with care."
        )


def _hero(before: Evaluation, after: Evaluation) -> str:
    places = decimals([before.reward, after.reward])
    label = f"Held-out reward, mean over {counted(after.videos, 'video')} of unseen prompts"
    numbers = f'<span class="before">{fixed(before.reward, places)}</span>'
    if after is not before:
        numbers += '<span class="arrow" aria-label="to">→</span>'
        numbers += f'<span class="after">{fixed(after.reward, places)}</span>'
        numbers += _change(before.reward, after.reward, places)
    spread = _from_to("spread over videos", [before.std, after.std], places)
    error = _from_to("standard error", [before.stderr, after.stderr], places) if after.videos > 1 else ""
    return (
        f'<div><p class="label">{label}</p><p class="figures">{numbers}</p><p class="spread">{spread}{error}</p></div>'
    )


def _from_to(name: str, values: Sequence[float], places: int) -> str:
    """ "name 0.14 → 0.10", or the number alone if both are the same."""
    texts = dict.fromkeys(fixed(value, places) for value in values)
    return f"<span>{name} {' → '.join(texts)}</span>"


def _change(before: float, after: float, places: int) -> str:
    """Of a reward, of which more is better: the colour says so."""
    change = round(after - before, places)
    kind = "same" if change == 0 or math.isnan(change) else "rise" if change > 0 else "fall"
    return f'<span class="change {kind}">{signed(change, places)}</span>'


def _difference(before: float, after: float, places: int) -> str:
    """Of a figure, of which less may be better, as of damage: without a colour."""
    return signed(after - before, places)


def _comparison(
    title: str, before: Mapping[str, float], after: Mapping[str, float], change: Callable[[float, float, int], str]
) -> str:
    """A table of numbers before and after, with their change as it is to be shown; empty without numbers."""
    if not after:
        return ""
    rows = "".join(_comparison_row(name, before.get(name, math.nan), value, change) for name, value in after.items())
    head = "<thead><tr><th></th><th>before</th><th>after</th><th>change</th></tr></thead>"
    return f"<table><caption>{title}</caption>{head}<tbody>{rows}</tbody></table>"


def _comparison_row(name: str, before: float, after: float, change: Callable[[float, float, int], str]) -> str:
    places = decimals([before, after, 1.0 if is_share(name) else 0.0])
    return (
        f'<tr><th scope="row">{escape(name)}</th><td>{fixed(before, places)}</td>'
        f'<td class="strong">{fixed(after, places)}</td><td>{change(before, after, places)}</td></tr>'
    )


def _facts(run: Run) -> str:
    if not run.train:
        return ""
    last = run.train[-1]
    facts = {
        "steps": f"{last.step} of {run.recipe.train.steps}",
        "reward queries": f"{last.queries:,}",
        "training": duration(sum(step.total_seconds for step in run.train)),
        "time per step": duration(median(step.total_seconds for step in run.train)),
        "peak memory": f"{max(step.peak_memory for step in run.train) / 1e9:.1f} GB",
    }
    if last.skipped:
        facts["skipped steps"] = str(last.skipped)
    return f'<dl class="facts">{"".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts.items())}</dl>'


# ---------------------------------------------------------------- videos


def videos(run: Run) -> str:
    """Samples of the first and the latest step side by side."""
    samples = {step: found for step, found in run.samples.items() if found}
    if not samples:
        return section("Videos", note("No sample videos have been written yet."))
    first, last = min(samples), max(samples)
    pairs = _pairs(samples[first], samples[last] if last > first else [])
    figures = "".join(_figure(before, after, wide=is_wide(run.recipe)) for before, after in pairs)
    pixels = pixel_class([run.recipe])
    lead = f"The same held-out prompts and the same noise, {_step_name(first)}"
    lead += f" and {_step_name(last)}; below each, its reward." if last > first else ". There are no later ones yet."
    return section("Videos", f'<p class="soft">{lead}</p><div class="pairs {pixels}">{figures}</div>', beside=BUTTONS)


def _step_name(step: int) -> str:
    return "before training" if step == 0 else f"after {counted(step, 'step')}"


def _pairs(before: Sequence[Sample], after: Sequence[Sample]) -> list[tuple[Sample, Sample | None]]:
    """Each sample with its later twin: same file name, same prompt."""
    twins = {(sample.file.name, sample.prompt): sample for sample in after}
    return [(sample, twins.get((sample.file.name, sample.prompt))) for sample in before]


def _figure(before: Sample, after: Sample | None, wide: bool) -> str:
    places = decimals([before.reward, after.reward if after else math.nan])
    shown = video_tile(before, "before", fixed(before.reward, places))
    if after is not None:
        change = _change(before.reward, after.reward, places)
        shown += video_tile(after, "after", f"{fixed(after.reward, places)} {change}")
    else:
        shown += '<div class="nothing">no “after” yet</div>'
    return (
        f'<figure class="card pair{" wide" if wide else ""}"><figcaption>{escape(before.prompt)}</figcaption>'
        f'<div class="videos">{shown}</div></figure>'
    )


# ---------------------------------------------------------------- curves


def curves(run: Run) -> str:
    """The reward over steps and over reward queries, then its parts, figures, and what tells of healthy training."""
    series = reward_series(run)
    if not series:
        return section("Reward", note("No step has been logged yet."))
    large = "".join(
        f'<div class="by-{axis}">{line_chart(reward_series(run, axis), f"Reward over {AXES[axis]}", AXES[axis])}</div>'
        for axis in _REPORT_AXES
    )
    smalls = _small_charts("Each reward", _part_series(run))
    smalls += _small_charts("Figures, on held-out prompts", _figure_series(run))
    smalls += _along_the_video(run)
    smalls += _small_charts("Health of the training", _health_series(run))
    table = _evaluation_table(run.evaluations) if run.evaluations else ""
    return section("Reward", f'<div class="card">{legend(series)}{large}</div>{table}{smalls}', beside=_AXIS)


_REPORT_AXES: tuple[Literal["step", "queries"], ...] = ("step", "queries")
_AXIS = (
    '<div class="axis">over<input type="radio" name="axis" id="axis-step" checked><label for="axis-step">steps</label>'
    '<input type="radio" name="axis" id="axis-queries"><label for="axis-queries">reward queries</label></div>'
)


def _part_series(run: Run) -> dict[str, list[Series]]:
    names = list((run.train or run.evaluations)[0].parts)
    if len(names) == 1:
        return {}
    return {
        name: [
            _over_steps("train", run.train, [step.parts.get(name, math.nan) for step in run.train]),
            _over_steps("held-out", run.evaluations, [e.parts.get(name, math.nan) for e in run.evaluations]),
        ]
        for name in names
    }


def _figure_series(run: Run) -> dict[str, list[Series]]:
    """What held-out videos were measured by without being trained on it."""
    measured = run.evaluations
    return {
        name: [_over_steps("held-out", measured, [one.figures.get(name, math.nan) for one in measured])]
        for name in figure_names(measured)
    }


def _along_the_video(run: Run) -> str:
    """Curves over the frames of held-out videos, before training and at the latest evaluation."""
    if not (names := curve_names(run.evaluations)):
        return ""
    first, last = run.evaluations[0], run.evaluations[-1]
    shown = [(first, _step_name(first.step), "before"), (last, _step_name(last.step), "held-out")]
    lines = {name: [frame_series(one, name, label, style) for one, label, style in shown] for name in names}
    cards = "".join(frame_chart(name, series, run.recipe.video.size) for name, series in lines.items())
    seams = "; dashed where one segment ends and the next begins" if run.recipe.video.segments > 1 else ""
    lead = f'<p class="soft">Means over held-out videos, frame by frame{seams}.</p>'
    return f'<h3>Along the video</h3>{lead}{legend(lines[names[0]])}<div class="smalls">{cards}</div>'


def _health_series(run: Run) -> dict[str, list[Series]]:
    train = run.train
    return {
        "gradient norm": [_over_steps("train", train, [step.grad_norm for step in train])],
        "clamped pixels, %": [_over_steps("train", train, [100 * step.clamped for step in train])],
        "seconds a step": [_over_steps("train", train, [step.total_seconds for step in train])],
    }


def _over_steps(style: str, records: Sequence[TrainStep] | Sequence[Evaluation], values: list[float]) -> Series:
    return Series(style, style, [record.step for record in records], values, points=style == "held-out")


def _small_charts(title: str, charts: Mapping[str, list[Series]]) -> str:
    """A titled row of small charts; lines without a finite point are left out, and so is a row without lines."""
    cards = "".join(_small_chart(name, series) for name, series in charts.items())
    return f'<h3>{title}</h3><div class="smalls">{cards}</div>' if cards else ""


def _small_chart(name: str, series: list[Series]) -> str:
    drawn = [one for one in series if any(map(math.isfinite, one.y))]
    if not drawn:
        return ""
    chart = line_chart(drawn, f"{name} over steps", "", "small", (0.0, 1.0) if is_share(name) else None)
    return chart_card(name, chart)


def _evaluation_table(evaluations: Sequence[Evaluation]) -> str:
    rows = "".join(
        f"<tr><td>{e.step}</td><td>{e.queries:,}</td><td>{fixed(e.reward, 4)}</td><td>{fixed(e.stderr, 4)}</td>"
        f"<td>{fixed(e.std, 4)}</td><td>{e.videos}</td><td>{duration(e.seconds)}</td></tr>"
        for e in evaluations
    )
    heads = ("step", "queries", "reward", "std. error", "spread", "videos", "time")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        "<details><summary>Held-out evaluations as a table</summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


# ---------------------------------------------------------------- time, settings, footer


def times(run: Run) -> str:
    """Mean seconds of a step by phase, as a bar and a table."""
    if not run.train:
        return ""
    phases = phase_seconds(run.train)
    total = sum(phases.values())
    keys = [f"phase-{min(i, 4)}" if name != OTHER else "phase-5" for i, name in enumerate(phases, start=1)]
    bar = "".join(
        f'<span class="{key}" style="flex:{seconds:.6f}" title="{escape(name)}: {duration(seconds)}"></span>'
        for key, (name, seconds) in zip(keys, phases.items(), strict=True)
    )
    rows = "".join(
        f'<tr><td><span class="dot {key}"></span>{escape(name)}</td><td>{duration(seconds)}</td>'
        f"<td>{seconds / total:.0%}</td></tr>"
        for key, (name, seconds) in zip(keys, phases.items(), strict=True)
    )
    head = "<thead><tr><th>phase</th><th>a step, mean</th><th>share</th></tr></thead>"
    evaluating = sum(evaluation.seconds for evaluation in run.evaluations)
    lead = f"Training took {duration(total * len(run.train))}; evaluating on held-out prompts, {duration(evaluating)}."
    table = f'<div class="card"><div class="bar">{bar}</div><table>{head}<tbody>{rows}</tbody></table></div>'
    return section("Time", f'<p class="soft">{lead}</p>{table}')


def phase_seconds(train: Sequence[TrainStep]) -> dict[str, float]:
    """Mean seconds of a step by phase, in words; what no phase covers is last, so that they add up to the whole."""
    names = list(dict.fromkeys(name for step in train for name in step.seconds))
    phases = {PHASES.get(name, name): fmean(step.seconds.get(name, 0.0) for step in train) for name in names}
    rest = fmean(step.total_seconds for step in train) - sum(phases.values())
    return phases | {OTHER: max(0.0, rest)}


def settings(run: Run) -> str:
    """The resolved recipe as it lies in the folder, and the versions that made the run."""
    recipe = f'<div class="card"><pre class="columns">{escape(_body(run.recipe_text))}</pre></div>'
    made_with = ", ".join(f"{name} {number}" for name, number in run.versions.items())
    lead = f"Made with {escape(made_with)}." if made_with else "The recipe does not say which versions made this run."
    again = "The recipe is all it takes to run it again: <code>vader train recipe.yaml</code>"
    return section("Settings", f'<p class="soft">{lead} {again}</p>{recipe}')


def _body(recipe_text: str) -> str:
    """A recipe without the comment that heads it."""
    return re.sub(r"\A(#.*\n)+", "", recipe_text)


def footer(run: Run) -> str:
    return f"<footer>Written by vader {__version__} from the run folder {escape(run.path.resolve().name)}.</footer>"
