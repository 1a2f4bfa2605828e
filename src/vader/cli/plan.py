"""`vader plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vader.cli.parts import TrustCode, print_wide
from vader.cli.root import app
from vader.errors import UserError

if TYPE_CHECKING:
    from vader.planning.search import Plan

LEAST, MOST = 1.0, 100_000.0  # GiB


@app.command(epilog="Example: vader plan svd-aesthetic --vram 16 --write my-svd.yaml")
def plan(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe ('vader list recipes') or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe, by dotted path.")
    ] = None,
    vram: Annotated[
        float | None,
        typer.Option(
            "--vram", metavar="GIB", min=LEAST, max=MOST, help="The GPU's memory; default: that of this one, or 16."
        ),
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Write the recipe with the settings that fit.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run the step on this GPU too, and tell what it really takes.")
    ] = False,
    trust_code: TrustCode = False,
) -> None:
    """Tell whether a recipe's training step fits a GPU, without one and without weights, and what makes it fit."""
    from vader.engine.device import card_bytes
    from vader.recipe import load_recipe

    here = card_bytes()
    if measure and here is None:
        raise UserError("--measure runs the step on a GPU, and there is none here: leave it out to count instead")

    if write is not None and write.exists():
        raise UserError(f"{str(write)!r} is there already: name another file")
    resolved = load_recipe(recipe, overrides or [], trust_code=trust_code)
    from vader.algorithms import resolved as with_settings
    from vader.cli.progress import told
    from vader.files.atomic import atomic_write
    from vader.planning.search import GIB
    from vader.planning.search import plan as find
    from vader.planning.words import counted_line, headline, table, verdict
    from vader.recipe import changed, commented

    card = int(vram * GIB) if vram is not None else here or 16 * GIB
    print(headline(resolved), flush=True)
    with told("counting the memory of a training step") as tell:
        found = find(resolved, card, lambda changes, needs: tell(counted_line(changes, needs)))
    print(verdict(found, card))
    if measure:
        _measure(found)
    else:
        print_wide(table(found.after))
    if write is not None and not found.fits:
        raise UserError(f"nothing fits {card / GIB:g} GiB, so {write} was not written: ask for smaller videos")
    if write is not None:
        named = changed(found.recipe, {"name": write.stem})
        page = commented(with_settings(named), f"The recipe {resolved.name!r} for a GPU of {card / GIB:g} GiB.")
        with atomic_write(write) as temporary:
            temporary.write_text(page, encoding="utf-8")
        print(f"{write}: vader train {write}")


def _measure(found: Plan) -> None:
    """Runs the planned step on this GPU and prints it beside its forecast."""
    from vader.engine.device import best_device
    from vader.planning.measured import measured
    from vader.planning.words import measured_line, table

    taken = measured(found.recipe, best_device())
    print_wide(table(found.after, taken))
    print(measured_line(found.after, taken))
