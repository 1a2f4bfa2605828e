"""`vader train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vader.cli.parts import TrustCode
from vader.cli.root import app
from vader.files.lock import is_main_process

if TYPE_CHECKING:
    from vader.recipe import Recipe

Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds the folders of runs.")]


@app.command(epilog="Example: vader train tiny name=slower optimizer.lr=1e-4 train.steps=80")
def train(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe ('vader list recipes') or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe, by dotted path.")
    ] = None,
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, train nothing.")] = False,
    trust_code: TrustCode = False,
) -> None:
    """Align a model after a recipe. The same command again continues a run that was stopped, and more train.steps one
    that has finished."""
    from vader.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [], trust_code=trust_code)
    from vader.training.trainer import train as run_training

    result = run_training(resolved, runs, dry_run=dry_run)
    if is_main_process():
        print(*(result.lines() if result else _rehearsed(resolved)), sep="\n")


def _rehearsed(recipe: Recipe) -> list[str]:
    from vader.planning.words import peak_line

    return [peak_line(recipe), "dry run: everything is in place, nothing was trained"]
