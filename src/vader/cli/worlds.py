"""`vader tinyworld`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vader.cli.root import app

tinyworld_app = typer.Typer(help="The tiny world: build its models anew, or look at it.")
app.add_typer(tinyworld_app, name="tinyworld")


@tinyworld_app.command("build", epilog="Example: vader tinyworld build vae --out weights")
def build(
    name: Annotated[str, typer.Argument(help="Which of the tiny world's models.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where its weights go.")] = Path(
        "tinyworld-weights"
    ),
) -> None:
    """Train one of the tiny world's own models from nothing, with its fixed seed."""
    from vader import pretrain
    from vader.files.paths import check_out

    check_out(out)
    pretrain.build(name, out)


@tinyworld_app.command("show", epilog="Example: vader tinyworld show --out tinyworld.png")
def show(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture to write.")] = Path("tinyworld.png"),
) -> None:
    """Draw some scenes of the tiny world, dull and vivid ones, with their captions."""
    import torch

    from vader.files.video import contact_sheet
    from vader.tinyworld.scenes import captions, render, sample_scenes

    scenes = sample_scenes(10, torch.Generator().manual_seed(3))
    print(contact_sheet(render(scenes), captions(scenes), out))
