"""`vader report` and `vader export`: what a run has left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vader.cli.parts import TrustCode, print_figures, tell_left_out
from vader.cli.root import app
from vader.errors import UserError

if TYPE_CHECKING:
    from vader.models.base import VideoModel
    from vader.runs.folder import RunFolder


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, as in runs/tiny.")]


@app.command(epilog="Example: vader report runs/tiny")
def report(run: RunArgument) -> None:
    """Write a run's report.html anew: curves, videos before and after, settings; one self-contained page."""
    _require_run(run)
    from vader.evaluation.report import write_report
    from vader.runs.reader import read_run

    print(write_report(run))
    tell_left_out([read_run(run)])


@app.command(epilog="Example: vader export runs/tiny --merged --out exports/tiny")
def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="The run's folder, one of its checkpoints as in runs/tiny@20, or its best, runs/tiny@best.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A folder that is new or empty.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="The whole model in its own format, the adapter in its weights.")
    ] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapter alone, as a LoRA file.")] = False,
    form: Annotated[
        str, typer.Option("--format", help="Of the adapter: diffusers, or comfyui where its model's names are known.")
    ] = "diffusers",
    trust_code: TrustCode = False,
) -> None:
    """Export what a run has trained, for use without this package."""
    if merged == adapter:
        raise UserError("export what? give one of --merged and --adapter")
    if merged and form != "diffusers":
        raise UserError("--format is the adapter's, and a merged model has its own: leave it out")
    from vader.files.paths import check_out
    from vader.runs.adapters import find_adapter, run_of
    from vader.tools.export import export_adapter, export_merged, loading_lines

    check_out(out)
    folder = run_of(run)
    if folder is None:
        raise _no_run(run)
    trained = find_adapter(run)
    if merged:
        print(export_merged(_base_model(folder, trust_code), trained, out))
    else:
        written = export_adapter(trained, out, form)
        print(*written, *loading_lines(written), sep="\n")


def _require_run(run: Path) -> None:
    from vader.files.paths import user_path
    from vader.runs.folder import RunFolder

    if not RunFolder(user_path(run, "run")).recipe.is_file():
        raise _no_run(run)


def _no_run(run: Path) -> UserError:
    return UserError(f"{str(run)!r} is no run's folder: there is no recipe.yaml in it")


def _base_model(run: RunFolder, trust_code: bool) -> VideoModel:
    """The model that a run started from, on the CPU; in float32 unless its recipe wants otherwise."""
    import torch

    from vader.engine.build import load_base
    from vader.engine.device import frozen_dtype
    from vader.recipe import load_recipe

    recipe = load_recipe(str(run.recipe), trust_code=trust_code)
    return load_base(recipe, frozen_dtype(recipe.model.precision, torch.device("cpu")))


@app.command(epilog="Example: vader compare runs/tiny runs/tiny-ddpo runs/tiny-dpo --out comparison")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, two to eight.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the page and plots go.")] = Path(
        "comparison"
    ),
) -> None:
    """Compare runs on one page: reward over steps, reward queries and compute time, peak memory, a table."""
    from vader.evaluation.compare import compare_runs, read_entries, table_of
    from vader.files.lock import held
    from vader.files.paths import check_out

    check_out(out)
    entries = read_entries(runs)
    with held(out):
        written = compare_runs(runs, out)
    print_figures(*table_of(entries))
    print(*written, sep="\n")
    tell_left_out(entry.run for entry in entries)
