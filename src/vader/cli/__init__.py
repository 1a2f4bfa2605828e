"""The `vader` command: thin. Each command parses its arguments, calls one room and prints what it returns.

One module a group of commands. Exit status: 0, 2 with one line on stderr for a user's mistake, 1 for a run that
failed, 130 after Ctrl-C. Torch and everything that needs it is imported inside the commands, so that `--help` answers
at once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.main import get_command

# Each module adds its commands, in the order in which help tells of them.
# isort: off
from vader.cli import train, recipes, sample, score, runs, evaluation, reproduce, listing, checks, worlds  # noqa: F401

# isort: on
from vader.cli.root import app
from vader.errors import RunError, Stopped, UserError
from vader.files.lock import is_main_process

UsageError: Any = typer.BadParameter.__mro__[1]  # click's, which recent versions of typer carry inside themselves
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (the process's own by default) and returns its exit status."""
    _print_whatever_comes()
    try:
        status = get_command(app).main(arguments, prog_name="vader", standalone_mode=False)
    except UsageError as error:
        where = error.ctx.command_path if error.ctx else "vader"
        return _fail(f"{error.format_message()} See '{where} --help'.", 2)
    except UserError as error:
        return _fail(str(error), 2)
    except Stopped as error:
        return _fail(str(error), INTERRUPTED)
    except RunError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    return _fail("stopped by the keyboard", status) if status == INTERRUPTED else status or 0


def _print_whatever_comes() -> None:
    """What a console or pipe has no letters for, as the code pages of Windows, becomes "?" and no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _fail(message: str, status: int) -> int:
    """Says in one line on stderr why the command ends, and returns its status."""
    if is_main_process():
        print(f"vader: {' '.join(message.split())}", file=sys.stderr)
    return status
