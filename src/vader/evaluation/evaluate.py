"""What a run, or any adapter, is worth on held-out prompts: reward, monitors, the judge's gold, diversity over seeds.

In goes a recipe and where its adapters are; out comes one record for the base model, each checkpoint that was kept and
the final adapter, all on the same prompts and noise, as JSON, a table and a plot. On the tiny world gold against the
trained reward tells a real gain from reward hacking.

Shapes: B videos, F frames, D features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from matplotlib.axes import Axes
from torch import Tensor

from vader.algorithms.base import Setup
from vader.engine.build import attach_fresh, load_base, load_monitors
from vader.errors import UserError
from vader.evaluation.charts import Series
from vader.evaluation.formats import decimals, fixed
from vader.evaluation.held_out import VideoScore, evaluate, summary
from vader.evaluation.plots import RUN_COLOURS, draw_lines, new_figure, save
from vader.files.atomic import atomic_write
from vader.models.registry import frozen_dtype, model_class
from vader.networks.adapter import adapter_disabled, adapter_file, has_adapter, load_adapter, load_adapter_state
from vader.prompts import load_prompts
from vader.recipe import Recipe
from vader.rewards.base import RewardMix
from vader.rewards.clip import ImageTower
from vader.rewards.registry import build_mix
from vader.runs.checkpoints import Checkpoints
from vader.runs.reader import ADAPTER, Run
from vader.tinyworld.gold import gold

EYE = 64  # pixels: frames are reduced to at most this before their distance is taken


@dataclass(frozen=True)
class Source:
    """One set of weights to evaluate: its name, the step it was saved at, and what puts it into the denoiser."""

    name: str
    step: int
    attach: Callable[[Setup], object] | None  # None: the base model


@dataclass(frozen=True)
class Point:
    """What one set of weights is worth. Means are over prompts and seeds.

    Attributes:
        stderr: of the reward, over prompts, each averaged over its seeds.
        by_seed: the mean reward under each seed's noise.
        gold: see `vader.tinyworld.gold`; None where there is no judge.
        diversity: mean distance of two videos of one prompt, see `diversity`; empty with one seed.
    """

    name: str
    step: int
    reward: float
    stderr: float
    by_seed: list[float]
    parts: dict[str, float]
    monitors: dict[str, float]
    judge: dict[str, float]
    gold: float | None
    diversity: dict[str, float]


@dataclass
class Bench:
    """The loaded recipe, and what to evaluate on: prompts, each under every seed."""

    setup: Setup
    monitors: RewardMix
    prompts: Sequence[str]
    seeds: Sequence[int]
    tower: ImageTower | None = field(init=False)

    def __post_init__(self) -> None:
        modules = [*self.setup.reward.modules(), *self.monitors.modules()]
        self.tower = next((module for module in modules if isinstance(module, ImageTower)), None)


# ---- what there is to evaluate ----


def sources_of_run(run: Run) -> list[Source]:
    """The base model, every checkpoint that the run has kept, and its final adapter if no checkpoint is the same.

    Raises:
        UserError: the run has saved nothing yet.
    """
    paths = {int(path.name.removeprefix("step-")): path for path in Checkpoints(run.path / "checkpoints", 1).steps()}
    found = [Source(f"step {step}", step, _checkpoint_loader(path)) for step, path in paths.items() if step > 0]
    last = run.recipe.train.steps
    if run.finished and last not in paths:
        found.append(Source("final", last, _file_loader(run.path / ADAPTER)))
    if not found:
        raise UserError(f"{run.path} has nothing to evaluate: no checkpoint has been saved yet")
    return [BASE, *found]


def sources_of_adapter(adapter: Path | None) -> list[Source]:
    """The base model, and the adapter of a file or folder if there is one. Raises `UserError` if it does not exist."""
    return [BASE] if adapter is None else [BASE, Source("adapter", 0, _file_loader(adapter_file(adapter)))]


BASE = Source("base", 0, None)


def _checkpoint_loader(checkpoint: Path) -> Callable[[Setup], object]:
    def attach(setup: Setup) -> None:
        state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)["adapter"]
        if not has_adapter(setup.model.denoiser):
            attach_fresh(setup.recipe, setup.model)
        load_adapter_state(setup.model.denoiser, state)

    return attach


def _file_loader(file: Path) -> Callable[[Setup], object]:
    return lambda setup: load_adapter(setup.model.denoiser, file)


# ---- evaluating ----


def build_bench(recipe: Recipe, videos: int, seeds: int) -> Bench:
    """Loads the recipe's model and rewards.

    Args:
        recipe: says all but how much: sizes, sampling, rewards, monitors, judge, and the prompts under `prompts.test`.
        videos: how many of the prompts are taken, from the first; all, if there are fewer.
        seeds: how many videos of each; the first seed is the recipe's.

    Raises:
        UserError: a part of the recipe cannot be had here.
    """
    prompts = load_prompts(recipe.prompts.test)[:videos]
    model_class(recipe.model.family).check_prompts(prompts)
    monitors = load_monitors(recipe, prompts)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    dtype = frozen_dtype(recipe.model.precision, accelerator.device)
    reward, monitors = (mix.to(accelerator.device).to_precision(dtype) for mix in (build_mix(recipe.rewards), monitors))
    reward.check_prompts(prompts)
    model = load_base(recipe, accelerator.device)
    every_video = recipe.evaluation.model_copy(update={"shown": len(prompts)})  # so that pixels come back
    setup = Setup(recipe.model_copy(update={"evaluation": every_video}), model, reward, accelerator)
    return Bench(setup, monitors, prompts, range(recipe.train.seed, recipe.train.seed + seeds))


def evaluate_sources(
    bench: Bench, sources: Sequence[Source], on_point: Callable[[Point], object] = lambda point: None
) -> list[Point]:
    """One point a source, in order; `on_point` hears of each as it is done."""
    points: list[Point] = []
    for source in sources:
        points.append(_point(bench, source))
        on_point(points[-1])
    return points


def _point(bench: Bench, source: Source) -> Point:
    denoiser = bench.setup.model.denoiser
    if source.attach is None:
        with adapter_disabled(denoiser):  # there is none yet, or one of another source
            by_seed = [_scores(bench, seed) for seed in bench.seeds]
    else:
        source.attach(bench.setup)
        by_seed = [_scores(bench, seed) for seed in bench.seeds]
    found = [summary(scores) for scores in by_seed]
    figures = {name: _mean_figures([one.get(name, {}) for one in found]) for name in ("parts", "monitors", "judge")}
    names = [section.name for section in bench.setup.recipe.rewards]
    return Point(
        name=source.name,
        step=source.step,
        reward=fmean(one["reward"] for one in found),
        stderr=_stderr_over_prompts(by_seed),
        by_seed=[one["reward"] for one in found],
        **figures,
        gold=_gold(by_seed, names),
        diversity=diversity([_pixels(scores) for scores in by_seed], bench.tower),
    )


def _scores(bench: Bench, seed: int) -> list[VideoScore]:
    """The scores of one video a prompt under a seed's noise, pixels included."""
    recipe = bench.setup.recipe
    seeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
    return evaluate(replace(bench.setup, recipe=seeded), bench.prompts, len(bench.prompts), bench.monitors)


def _pixels(scores: Sequence[VideoScore]) -> list[Tensor]:
    return [score.pixels for score in scores if score.pixels is not None]


def _stderr_over_prompts(by_seed: Sequence[Sequence[VideoScore]]) -> float:
    """Of the mean reward: prompts are what was drawn at random, and a prompt's videos are not independent."""
    means = [fmean(score.reward for score in scores) for scores in zip(*by_seed, strict=True)]
    return stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0


def _gold(by_seed: Sequence[Sequence[VideoScore]], rewards: Sequence[str]) -> float | None:
    judged = [score.judge for scores in by_seed for score in scores]
    return fmean(gold(one, rewards) for one in judged) if judged[0] else None


def _mean_figures(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(record[name] for record in records) for name in records[0]}


# ---- diversity ----


def diversity(by_seed: Sequence[Sequence[Tensor]], tower: ImageTower | None) -> dict[str, float]:
    """How much the videos of one prompt differ: the mean over prompts and pairs of seeds of two distances.

    - `pixels`: root mean square difference over frames, channels and pixels, values in [0, 1]; frames larger than 64
      pixels are first reduced to that by averaging.
    - `features`: 1 minus the cosine of two videos' mean CLIP image features over frames, where a reward has a CLIP.

    Args:
        by_seed: for each seed, a video `[F, 3, H, W]` in [0, 1] of each prompt.
        tower: gives the features.

    Returns:
        Empty with fewer than two seeds: there is no pair.
    """
    pairs = [pair for videos in zip(*by_seed, strict=True) for pair in combinations(videos, 2)]
    if not pairs:
        return {}
    found = {"pixels": fmean(pixel_distance(*pair) for pair in pairs)}
    if tower is not None:
        found["features"] = fmean(feature_distance(tower, *pair) for pair in pairs)
    return found


def pixel_distance(one: Tensor, other: Tensor) -> float:
    """Root mean square difference of two videos `[F, 3, H, W]`, seen at 64 pixels or less."""
    return (_reduced(one) - _reduced(other)).square().mean().sqrt().item()


def _reduced(video: Tensor) -> Tensor:
    height, width = video.shape[-2:]
    size = (min(height, EYE), min(width, EYE))
    return video if size == (height, width) else F.adaptive_avg_pool2d(video, size)


@torch.no_grad()
def feature_distance(tower: ImageTower, one: Tensor, other: Tensor) -> float:
    """1 minus the cosine of two videos' `[F, 3, H, W]` features, each the mean `[D]` of its frames'."""
    device = tower.projection.weight.device
    first, second = (tower(video.to(device)).mean(dim=0) for video in (one, other))
    return 1.0 - F.cosine_similarity(first, second, dim=0).item()


# ---- results ----


def write_evaluation(bench: Bench, points: Sequence[Point], out: Path) -> list[Path]:
    """Writes `evaluation.json` and `evaluation.png` into `out`."""
    content = {
        "recipe": bench.setup.recipe.model_dump(mode="json"),
        "prompts": bench.setup.recipe.prompts.test,
        "videos": len(bench.prompts),
        "seeds": list(bench.seeds),
        "points": [asdict(point) for point in points],
    }
    with atomic_write(out / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [out / "evaluation.json", draw_evaluation(points, out / "evaluation.png")]


def table(points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table of points; figures that there are none of have no column."""
    first = points[0]
    parts = first.parts if len(first.parts) > 1 else {}
    head = ["weights", "reward", *parts, *first.monitors, *first.judge]
    head += ["gold"] if first.gold is not None else []
    return head + [f"diversity, {name}" for name in first.diversity], [_row(point, bool(parts)) for point in points]


def _row(point: Point, parts: bool) -> list[str]:
    figures = [*(point.parts.values() if parts else ()), *point.monitors.values(), *point.judge.values()]
    figures += [] if point.gold is None else [point.gold]
    places = decimals([point.reward])
    reward = f"{fixed(point.reward, places)} ± {fixed(point.stderr, places)}"
    return [point.name, reward, *(fixed(figure, 3) for figure in [*figures, *point.diversity.values()])]


def draw_evaluation(points: Sequence[Point], path: Path) -> Path:
    """Gold against the trained reward (without a judge: the reward alone), the judge's figures, and diversity."""
    figure = new_figure(14, 4)
    left, middle, right = figure.subplots(1, 3)
    if points[0].gold is not None:
        _draw_path(left, points)
    else:
        rewards = [point.reward for point in points]
        draw_lines(left, [_over_steps("reward", 1, points, rewards)], "reward", "step", "held-out reward")
    beside = _lines(points, [{**point.judge, **point.monitors} for point in points])
    draw_lines(middle, beside, "not trained on", "step", "judge and monitors")
    spread = _lines(points, [point.diversity for point in points])
    draw_lines(right, spread, "diversity of a prompt's videos", "step", "mean distance of two videos")
    for axes, lines in ((middle, beside), (right, spread)):
        if lines:
            axes.legend(frameon=False, fontsize="small")
    return save(figure, path)


def _draw_path(axes: Axes, points: Sequence[Point]) -> None:
    """The way from the base model through the steps: to the right the proxy rises, upwards what it stands for."""
    line = Series("", "held-out", [point.reward for point in points], [point.gold or 0.0 for point in points], (), True)
    draw_lines(axes, [line], "gold against proxy", "trained reward, held-out prompts (proxy)", "judge's gold")
    for point in points:
        axes.annotate(point.name, (point.reward, point.gold or 0.0), textcoords="offset points", xytext=(6, -10))


def _lines(points: Sequence[Point], figures: Sequence[Mapping[str, float]]) -> list[Series]:
    """A line a figure, of each point's figures by name."""
    return [_over_steps(name, number, points, [one[name] for one in figures]) for number, name in enumerate(figures[0])]


def _over_steps(label: str, number: int, points: Sequence[Point], values: list[float]) -> Series:
    """A line over steps; of an adapter without a run, over its place after the base model."""
    steps = [place if point.step == 0 else point.step for place, point in enumerate(points)]
    return Series(label, f"run-{number % len(RUN_COLOURS) + 1}", steps, values, points=True)
