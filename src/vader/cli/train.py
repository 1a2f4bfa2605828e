"""`vader train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vader.cli.parts import TrustCode
from vader.cli.root import app
from vader.errors import UserError
from vader.files.lock import is_main_process

if TYPE_CHECKING:
    from vader.recipe import Recipe

Runs = Annotated[
    Path | None,
    typer.Option("--runs", metavar="DIR", help="The folder that holds the folders of runs.", show_default="runs"),
]


@app.command(epilog="Example: vader train tiny name=slower optimizer.lr=1e-4 train.steps=80")
def train(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe ('vader list recipes') or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe, by dotted path.")
    ] = None,
    runs: Runs = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, train nothing.")] = False,
    trust_code: TrustCode = False,
) -> None:
    """Align a model after a recipe. The same command again continues a run that was stopped, and more train.steps one
    that has finished; RUN/recipe.yaml as the recipe continues that run, wherever it lies."""
    from vader.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [], trust_code=trust_code)
    folder = _own_run(recipe, overrides or [], runs)
    from vader.training.trainer import train as run_training

    result = run_training(resolved, runs or Path("runs"), dry_run=dry_run, folder=folder)
    if is_main_process():
        print(*(result.lines() if result else _rehearsed(resolved)), sep="\n")


def _rehearsed(recipe: Recipe) -> list[str]:
    from vader.planning.words import peak_line

    return [peak_line(recipe), "dry run: everything is in place, nothing was trained"]


def _own_run(recipe: str, overrides: list[str], runs: Path | None) -> Path | None:
    """The run's folder that the recipe is the own one of: that run goes on there, whatever the folder is called now.

    None where there is none, and for a run with a name of its own: that is a new one.
    """
    from vader.files.paths import user_path
    from vader.plugins import run_around

    path = user_path(recipe, "recipe")
    folder = path.parent
    named = any(override.startswith("name=") for override in overrides)
    if path.name != "recipe.yaml" or named or run_around(folder.absolute()) != folder.absolute():
        return None
    if runs is not None and runs.resolve() != folder.resolve().parent:
        raise UserError(
            f"{folder} is a run, which goes on where it lies: leave out --runs, or give a new run of its recipe a "
            "name=..."
        )
    return folder
