"""`vader evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vader.cli.parts import (
    AdapterOption,
    TrustCode,
    metric_part,
    model_section,
    print_figures,
    recipe_of,
    tell_left_out,
)
from vader.cli.progress import progress
from vader.cli.root import app
from vader.errors import UserError

if TYPE_CHECKING:
    from vader.evaluation.evaluate import Bench, Point, Source, Videos
    from vader.plugins import Part
    from vader.recipe import Recipe


@app.command(epilog="Example: vader evaluate runs/tiny --videos 32 --seeds 3 --metric hps:checkpoint=tiny")
def evaluate(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run's folder, as in runs/tiny.")] = None,
    adapter: AdapterOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", metavar="RECIPE", help="Of sizes, rewards, prompts; default: the adapter's run's, or tiny."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="FAMILY:CHECKPOINT", help="Another model than the recipe's.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", metavar="SET", help="Other prompts than the recipe's held-out ones.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME[:KEY=VALUE,...]", help="Beside the recipe's metrics; repeatable."),
    ] = None,
    videos: Annotated[int, typer.Option("--videos", min=1, help="How many prompts, from the first.")] = 16,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="Videos of each prompt.")] = 2,
    first_seed: Annotated[
        int | None,
        typer.Option("--first-seed", help="Of the noise; the others follow it. Default: the recipe's train.seed."),
    ] = None,
    shown: Annotated[
        int, typer.Option("--shown", min=0, help="Keep the videos of so many prompts, from the first, and all scores.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Default: RUN/evaluation, or evaluation without a run.")
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Evaluate a run's checkpoints against its base: reward, the figures of metrics, diversity over seeds."""
    further = [metric_part(spec) for spec in metrics or []]
    if run is not None and (adapter or recipe or model):
        raise UserError("a run has its own recipe, model and adapters: give RUN, or --adapter, --recipe and --model")
    if run is not None and "@" in run.name and not run.exists():
        raise UserError(f"{run} is one adapter of a run: write --adapter {run}")
    from vader.files.paths import check_out

    out = out or (run / "evaluation" if run else Path("evaluation"))
    check_out(out)
    resolved, sources = _of_run(run, trust_code) if run else _of_adapter(adapter, recipe, model, trust_code)
    resolved = _asked(resolved, prompts, further)
    from vader.evaluation.evaluate import build_bench, evaluate_sources, table, write_evaluation
    from vader.files.lock import held

    folder = out or (run / "evaluation" if run else Path("evaluation"))
    with held(folder):
        bench = build_bench(resolved, videos, seeds, first_seed, shown)
        print(*bench.words, sep="\n", end="\n" * bool(bench.words))
        with progress("scored", len(sources) * len(bench.seeds) * len(bench.prompts)) as advance:
            points = evaluate_sources(bench, sources, _teller(bench, folder), advance)
        written = write_evaluation(bench, points, folder)
    if gone := [one.name for one in sources if one.name not in {point.name for point in points}]:
        print(f"vader: the run has meanwhile removed, and so left out: {', '.join(gone)}", file=sys.stderr)
    print_figures(*table(points))
    print(*_verdicts(points), sep="\n", end="\n" * any(point.verdict for point in points))
    print(*written, sep="\n")


def _teller(bench: Bench, folder: Path) -> Callable[[Point, Videos], None]:
    """What is done with each set of weights as it is evaluated: its reward is printed, and what is to be shown kept."""
    from vader.evaluation.evaluate import step_shown, write_shown

    places = count()

    def tell(point: Point, videos: Videos) -> None:
        print(f"{point.name}: reward {point.reward:.3f}")
        step = step_shown(point, next(places))
        if bench.shown:
            print(write_shown(bench, step, videos, folder))

    return tell


def _verdicts(points: Sequence[Point]) -> Iterator[str]:
    """What the guards say of each set of weights but the base's."""
    from vader.evaluation.guards.words import sentence

    for point in points:
        if point.verdict is not None and (point.verdict.step or point.verdict.guard):
            yield f"guards, {point.name}: {sentence(point.verdict)}"


def _of_run(folder: Path, trust_code: bool) -> tuple[Recipe, list[Source]]:
    from vader.evaluation.evaluate import sources_of_run
    from vader.recipe import load_recipe
    from vader.runs.reader import read_run

    run = read_run(folder)
    sources = sources_of_run(run)
    tell_left_out([run])
    return load_recipe(str(run.folder.recipe), trust_code=trust_code), sources


def _of_adapter(
    adapter: Path | None, recipe: str | None, model: str | None, trust_code: bool
) -> tuple[Recipe, list[Source]]:
    from vader.evaluation.evaluate import sources_of_adapter
    from vader.recipe import load_recipe

    if adapter is None and model is None and recipe is None:
        raise UserError("nothing to evaluate: give a run's folder, --adapter, --model or --recipe")
    resolved = load_recipe(recipe or recipe_of(adapter) or "tiny", trust_code=trust_code)
    section = model_section(model) if model else resolved.model
    return resolved.model_copy(update={"model": section}), sources_of_adapter(adapter)


def _asked(recipe: Recipe, prompts: str | None, metrics: list[Part]) -> Recipe:
    """The recipe with the command line's prompts and further metrics."""
    held_out = recipe.prompts.model_copy(update={"test": prompts or recipe.prompts.test})
    evaluation = recipe.evaluation.model_copy(update={"metrics": (*recipe.evaluation.metrics, *metrics)})
    return recipe.model_copy(update={"prompts": held_out, "evaluation": evaluation})
