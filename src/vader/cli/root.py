"""The command's root, to which each group of commands adds its own."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from vader.version import __version__

DEBUG = "VADER_DEBUG"
app = typer.Typer(add_completion=False, rich_markup_mode="rich", no_args_is_help=False)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"vader {__version__}")
        raise typer.Exit


def debugging() -> bool:
    """Whether errors show where they arose, by `--debug` or in the environment."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show where an error arose, above its line; {DEBUG}=1 does the same.")
    ] = False,
) -> None:
    """Aligns video diffusion models with the gradients of reward models (VADER, arXiv 2407.08737)."""
    if debug:
        os.environ[DEBUG] = "1"  # for the processes that a command starts, too
    if context.invoked_subcommand is None:
        print(context.get_help())
