"""The command's root, to which each group of commands adds its own."""

from __future__ import annotations

from typing import Annotated

import typer

from vader import __version__

app = typer.Typer(add_completion=False, rich_markup_mode="rich", no_args_is_help=False)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"vader {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Aligns video diffusion models with the gradients of reward models (VADER, arXiv 2407.08737)."""
    if context.invoked_subcommand is None:
        print(context.get_help())
