"""`vader recipe`: look at a recipe, or begin one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vader.cli.parts import TrustCode, model_section, reward_section
from vader.cli.root import app
from vader.errors import UserError

if TYPE_CHECKING:
    from vader.recipe import ModelSection, Recipe

recipe_app = typer.Typer(help="Show a recipe with all its keys, or begin one of your own.")
app.add_typer(recipe_app, name="recipe")


@recipe_app.command("show", epilog="Example: vader recipe show tiny optimizer.lr=1e-4 > my.yaml")
def show(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe ('vader list recipes') or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe, by dotted path.")
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Print a recipe whole: every key, its value and what it means. What is printed is itself a recipe."""
    from vader.recipe import load_recipe

    print(_page(load_recipe(recipe, overrides or [], trust_code=trust_code)), end="")


@recipe_app.command("new", epilog="Example: vader recipe new my.yaml --model svd:tiny --reward aesthetic")
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The recipe to write; its name is the run's.")],
    model: Annotated[
        str,
        typer.Option("--model", metavar="FAMILY[:CHECKPOINT]", help="A family alone: the checkpoint it is made for."),
    ] = "modelscope:tiny",
    rewards: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="NAME[:KEY=VALUE,...]", help="A reward, with options; may be repeated."),
    ] = None,
) -> None:
    """Write a recipe to start from, with every key and a comment on each, for a model and a reward."""
    from vader.files.atomic import atomic_write
    from vader.recipe import starting_recipe
    from vader.rewards.registry import lonely

    sections = [reward_section(spec) for spec in rewards or []]
    begun = starting_recipe(file.stem, _model(model), sections)
    page = _page(begun, lonely(begun.rewards))
    if file.exists():
        raise UserError(f"{str(file)!r} is there already: name another file")
    with atomic_write(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"{file}: change it as you like, then vader train {file}")


def _model(spec: str) -> ModelSection:
    from vader.models.registry import model_names
    from vader.recipe import ModelSection

    return ModelSection(family=spec, checkpoint="") if spec in model_names() else model_section(spec)


def _page(recipe: Recipe, notes: Sequence[str] = ()) -> str:
    from vader.algorithms import resolved
    from vader.recipe import commented

    title = f"The recipe {recipe.name!r} with every key: docs/recipes.md says more of each."
    return commented(resolved(recipe), title, notes)
