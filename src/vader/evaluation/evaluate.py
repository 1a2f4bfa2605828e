"""What a run, or any adapter, is worth on held-out prompts: its reward, and the figures of every metric of the recipe.

In goes a recipe and where its adapters are; out comes one record for the base model, each checkpoint that was kept and
the final adapter, all on the same prompts and noise, as JSON, a table and a plot; and, if asked for, the first videos.
On the tiny world gold against the trained reward tells a real gain from reward hacking.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from accelerate import Accelerator
from matplotlib.axes import Axes

from vader.engine.build import attach_fresh, build_setup, check_guidance, video_size
from vader.engine.device import frozen_dtype
from vader.engine.engine import Setup
from vader.errors import UserError
from vader.evaluation.charts import Series
from vader.evaluation.formats import counted, decimals, fixed, with_error
from vader.evaluation.guards.base import Guards
from vader.evaluation.guards.registry import suited_guards, tried
from vader.evaluation.guards.verdicts import Measured, Verdict, judge
from vader.evaluation.guards.words import ENOUGH
from vader.evaluation.held_out import VideoScore, mean_of, score_videos, set_figures, write_samples, write_scores
from vader.evaluation.metrics.base import HeldOutMetrics
from vader.evaluation.metrics.registry import build_metrics
from vader.evaluation.metrics.trial import try_metrics
from vader.evaluation.plots import RUN_COLOURS, draw_lines, new_figure, save
from vader.files.atomic import atomic_write
from vader.models.base import VideoModel
from vader.models.registry import model_class
from vader.networks.adapter import adapters_disabled, has_adapter, load_adapters_state
from vader.networks.adapter_files import load_adapters
from vader.nouns import Prompt
from vader.plugins import Part
from vader.prompts import load_prompts, with_negative
from vader.recipe import GuardsSection, Recipe
from vader.runs.adapters import find_adapter
from vader.runs.checkpoints import Checkpoints, load_checkpoint
from vader.runs.folder import RunFolder, step_of
from vader.runs.log import finite
from vader.runs.reader import Run
from vader.scoring.trial import try_rewards

Attach = Callable[[VideoModel], object]  # puts adapters into a model
Videos = Sequence[VideoScore]

DIVERSITY = Part(name="diversity")
GOLD = "gold"  # the figure that is drawn against the reward


@dataclass(frozen=True)
class Source:
    """One set of weights to evaluate: its name, the step it was saved at, and what puts it into a model."""

    name: str
    step: int
    attach: Attach | None  # None: the base model
    path: Path | None = None  # of what a run that goes on may remove meanwhile


@dataclass(frozen=True)
class Point:
    """What one set of weights is worth. Means are over prompts and seeds.

    Attributes:
        stderr: of the reward, over prompts, each averaged over its seeds.
        by_seed: the mean reward under each seed's noise.
        figures: of every metric; those of a set of videos are over all prompts and seeds.
        verdict: of the guards, on the gain over the base and on those before; None without guards or base.
    """

    name: str
    step: int
    reward: float
    stderr: float
    by_seed: list[float]
    parts: dict[str, float]
    figures: dict[str, float]
    verdict: Verdict | None = None

    def record(self) -> dict[str, Any]:
        """As it stands in `evaluation.json`."""
        shown = {name: value for name, value in asdict(self).items() if name != "verdict"}
        return shown | ({"guards": finite(self.verdict.line())} if self.verdict else {})


@dataclass(frozen=True)
class Bench:
    """The loaded recipe, and what to evaluate on: prompts, each under every seed; a word on what is not measured.

    `shown` says of how many prompts the videos under the first seed are kept.
    """

    recipe: Recipe
    setup: Setup
    metrics: HeldOutMetrics
    guards: Guards
    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    words: Sequence[str] = ()
    shown: int = 0


# ---- what there is to evaluate ----


def sources_of_run(run: Run) -> list[Source]:
    """The base model, every checkpoint that the run has kept, and its final adapter if no checkpoint is the same.

    Checkpoints that cannot be used are added to what the run has left out.

    Raises:
        UserError: the run has saved nothing yet.
    """
    checkpoints = Checkpoints(run.folder.checkpoints, 1)
    paths = {step_of(path): path for path in checkpoints.steps()}
    run.left_out.extend(said for said in checkpoints.left_out if said not in run.left_out)
    found = [
        Source(f"step {step}", step, _checkpoint_loader(run.recipe, path), path)
        for step, path in paths.items()
        if step > 0
    ]
    last = run.recipe.train.steps
    if run.folder.trained and last not in paths:
        found.append(Source("final", last, _file_loader(run.folder.adapter)))
    if not found:
        raise UserError(f"{run.path} has nothing to evaluate: no checkpoint has been saved yet")
    return [BASE, *found]


def sources_of_adapter(adapter: Path | None) -> list[Source]:
    """The base model, and the adapter (`find_adapter`), called as it was given, if one is named.

    Raises:
        UserError: it does not exist.
    """
    return [BASE] if adapter is None else [BASE, Source(str(adapter), 0, _file_loader(find_adapter(adapter)))]


BASE = Source("base", 0, None)


def _checkpoint_loader(recipe: Recipe, checkpoint: Path) -> Attach:
    def attach(model: VideoModel) -> None:
        state = load_checkpoint(checkpoint)["adapter"]
        if not any(map(has_adapter, model.denoisers.values())):
            attach_fresh(recipe, model)
        load_adapters_state(model.denoisers, state)

    return attach


def _file_loader(path: Path) -> Attach:
    return lambda model: load_adapters(model.denoisers, path, model.family)


# ---- evaluating ----


def build_bench(recipe: Recipe, videos: int, seeds: int, first_seed: int | None = None, shown: int = 0) -> Bench:
    """Loads the recipe's model, rewards and metrics; with several seeds, diversity is measured too.

    Args:
        recipe: says all but how much: sizes, sampling, rewards, metrics, and the prompts under `prompts.test`.
        videos: how many of the prompts are taken, from the first; all, if there are fewer.
        seeds: how many videos of each, under as many seeds of the noise that follow each other.
        first_seed: the first of them; None is the recipe's, under which a run evaluates itself.
        shown: of how many prompts, from the first, the videos under the first seed are kept.

    Raises:
        UserError: a part of the recipe cannot be had here.
    """
    prompts = with_negative(load_prompts(recipe.prompts.test)[:videos], recipe.sampling.negative)
    model_class(recipe.model.family).check_prompts(prompts)
    check_guidance(recipe, prompts)
    metrics = build_metrics(_wanted_metrics(recipe, seeds), recipe.scoring.images)
    metrics, words = metrics.suited(prompts, video_size(recipe))
    watched = _wanted_guards(recipe, seeds)
    guards, guard_words = suited_guards(watched, recipe.scoring.images, prompts, video_size(recipe))
    model_class(recipe.model.family).check_sound(metrics.audio or guards.audio)
    setup = build_setup(recipe, Accelerator(cpu=not torch.accelerator.is_available()))
    setup.reward.check_prompts(prompts)
    try_rewards(setup.scorer, prompts, gradient=False)
    device = setup.accelerator.device
    for measures in (metrics, guards):
        measures.prepare(device, frozen_dtype(recipe.model.precision, device))
    try_metrics(metrics, setup.scorer, prompts, len(prompts) * seeds)
    guards, words = tried(guards, setup.scorer, prompts), words + guard_words
    setup.model.prepare(prompts)
    if len(prompts) < videos:
        words.append(f"of {videos} prompts there are {len(prompts)}: each is taken once a seed")
    if guards.guards and len(prompts) * seeds < ENOUGH:
        words.append(f"guards are asked of {counted(len(prompts) * seeds, 'video')}: with {ENOUGH} they see far more")
    first = recipe.train.seed if first_seed is None else first_seed
    return Bench(recipe, setup, metrics, guards, prompts, range(first, first + seeds), words, shown)


def _wanted_metrics(recipe: Recipe, seeds: int) -> list[Part]:
    asked = list(recipe.evaluation.metrics)
    return asked + ([DIVERSITY] if seeds > 1 and all(part.name != DIVERSITY.name for part in asked) else [])


def _wanted_guards(recipe: Recipe, seeds: int) -> GuardsSection:
    watch = recipe.guards.watch
    more = [DIVERSITY] if seeds > 1 and all(part.name != DIVERSITY.name for part in watch) else []
    return recipe.guards.model_copy(update={"watch": (*watch, *more)})


def evaluate_sources(
    bench: Bench,
    sources: Sequence[Source],
    on_point: Callable[[Point, Videos], object] = lambda point, videos: None,
    on_scored: Callable[[int], object] = lambda number: None,
) -> list[Point]:
    """One point a source that is still there, in order.

    Args:
        on_point: hears of each as it is done, and of its videos under the first seed.
        on_scored: hears of so many more videos that are scored.
    """
    points: list[Point] = []
    measured: list[Measured] = []
    for source in sources:  # an adapter that does not fit is told before the base is sampled
        if source.attach is not None and source.path is None:
            source.attach(bench.setup.model)
    for source in sources:
        try:
            by_seed = _sampled(bench, source, on_scored)
        except UserError:
            if source.path is None or source.path.exists():
                raise
            continue
        if bench.guards.guards and (source.attach is None or measured):
            measured.append(_guarded(step_shown(source, len(points)), by_seed))
        verdicts = judge(bench.guards, measured)
        points.append(replace(_measured(bench, source, by_seed), verdict=verdicts[-1] if verdicts else None))
        on_point(points[-1], by_seed[0])
    return points


def _sampled(bench: Bench, source: Source, on_scored: Callable[[int], object]) -> list[Videos]:
    """One video a prompt under each seed's noise."""
    if source.attach is None:
        with adapters_disabled(bench.setup.model.denoisers):  # there is none yet, or one of another source
            return [_videos(bench, seed, on_scored) for seed in bench.seeds]
    source.attach(bench.setup.model)
    return [_videos(bench, seed, on_scored) for seed in bench.seeds]


def _guarded(step: int, by_seed: Sequence[Videos]) -> Measured:
    """What guards have measured of the videos of all seeds, which are numbered through."""
    videos = [video for found in by_seed for video in found]
    return Measured.of(step, [replace(video, index=number).record() for number, video in enumerate(videos)])


def _measured(bench: Bench, source: Source, by_seed: Sequence[Videos]) -> Point:
    videos = [video for found in by_seed for video in found]
    rewards = [fmean(video.reward for video in found) for found in by_seed]
    over_set = set_figures(bench.setup.accelerator, bench.metrics, videos)
    return Point(
        name=source.name,
        step=source.step,
        reward=fmean(rewards),
        stderr=_stderr_over_prompts(by_seed),
        by_seed=rewards,
        parts=mean_of([video.parts for video in videos]),
        figures=mean_of([video.figures for video in videos]) | over_set,
    )


def _videos(bench: Bench, seed: int, on_scored: Callable[[int], object]) -> Videos:
    count, batch = len(bench.prompts), bench.recipe.evaluation.batch
    shown, before = bench.shown if seed == bench.seeds[0] else 0, 0

    def more(done: int) -> None:
        nonlocal before
        on_scored(done - before)
        before = done

    return score_videos(
        bench.setup, bench.prompts, count, seed=seed, metrics=bench.metrics, shown=shown, batch=batch,
        guards=bench.guards, on_scored=more,
    )  # fmt: skip


def _stderr_over_prompts(by_seed: Sequence[Videos]) -> float:
    """Of the mean reward: prompts are what was drawn at random, and a prompt's videos are not independent."""
    means = [fmean(score.reward for score in scores) for scores in zip(*by_seed, strict=True)]
    return stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0


# ---- results ----


def write_evaluation(bench: Bench, points: Sequence[Point], out: Path) -> list[Path]:
    """Writes `evaluation.json` and `evaluation.png` into `out`."""
    content = {
        "recipe": bench.recipe.model_dump(mode="json"),
        "prompts": bench.recipe.prompts.test,
        "videos": len(bench.prompts),
        "seeds": list(bench.seeds),
        "points": [point.record() for point in points],
    }
    plot = draw_evaluation(points, out / "evaluation.png")
    with atomic_write(out / "evaluation.json") as temporary:  # last: where it is, all is there
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [out / "evaluation.json", plot]


def write_shown(bench: Bench, step: int, videos: Videos, out: Path) -> Path:
    """Writes the videos that are shown of one set of weights, and the scores of all, as a run leaves them.

    Returns:
        The folder of videos.
    """
    folder = RunFolder(out)
    write_scores(folder.evaluation(step), videos)
    write_samples(folder.samples(step), videos[: bench.shown], bench.recipe.video.size)
    return folder.samples(step)


def table(points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table of points: a column a figure; the parts of a mix have theirs before these."""
    first = points[0]
    parts = list(first.parts) if len(first.parts) > 1 else []
    return ["weights", "reward", *parts, *first.figures], [_row(point, parts) for point in points]


def _row(point: Point, parts: Sequence[str]) -> list[str]:
    places = decimals([point.reward])
    return [
        point.name,
        with_error(point.reward, point.stderr, places),
        *(fixed(n, 3) for n in (*(point.parts[part] for part in parts), *point.figures.values())),
    ]


def draw_evaluation(points: Sequence[Point], path: Path) -> Path:
    """Gold against the trained reward (without gold: the reward alone), diversity, and the other figures."""
    figure = new_figure(14, 4)
    left, middle, right = figure.subplots(1, 3)
    if GOLD in points[0].figures:
        _draw_path(left, points)
    else:
        rewards = [point.reward for point in points]
        draw_lines(left, [_over_steps("reward", 1, points, rewards)], "reward", "step", "held-out reward")
    apart = [name for name in points[0].figures if name.startswith(f"{DIVERSITY.name}/")]
    beside = [name for name in points[0].figures if name not in apart]
    draw_lines(middle, _lines(points, beside), "not trained on", "step", "figures")
    draw_lines(right, _lines(points, apart), "diversity of a prompt's videos", "step", "mean distance of two videos")
    for axes, names in ((middle, beside), (right, apart)):
        if names:
            axes.legend(frameon=False, fontsize="small")
    return save(figure, path)


def _draw_path(axes: Axes, points: Sequence[Point]) -> None:
    """The way from the base model through the steps: to the right the proxy rises, upwards what it stands for."""
    rewards, gold = [point.reward for point in points], [point.figures[GOLD] for point in points]
    line = Series("", "held-out", rewards, gold, points=True)
    draw_lines(axes, [line], "gold against proxy", "trained reward, held-out prompts (proxy)", "gold")
    for point, reward, true in zip(points, rewards, gold, strict=True):
        axes.annotate(point.name, (reward, true), textcoords="offset points", xytext=(6, -10))


def _lines(points: Sequence[Point], names: Sequence[str]) -> list[Series]:
    """A line a figure."""
    return [
        _over_steps(name, number, points, [point.figures[name] for point in points])
        for number, name in enumerate(names)
    ]


def _over_steps(label: str, number: int, points: Sequence[Point], values: list[float]) -> Series:
    """A line over steps."""
    steps = [step_shown(point, place) for place, point in enumerate(points)]
    return Series(label, f"run-{number % len(RUN_COLOURS) + 1}", steps, values, points=True)


def step_shown(point: Point | Source, place: int) -> int:
    """A point's step; of an adapter without a run, its place after the base model."""
    return point.step or place
