"""The `vader` command: thin. Each command parses its arguments, calls one room and prints what it returns.

One module a group of commands. Exit status: 0, 2 with one line on stderr for a user's mistake, 1 for a run that
failed, 130 after Ctrl-C. Torch and everything that needs it is imported inside the commands, so that `--help` answers
at once.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

# Each module adds its commands, in the order in which help tells of them.
# isort: off
from vader.cli import train, plan, recipes, sample, score, runs, evaluation, reproduce, study, listing, checks, worlds  # noqa: F401

# isort: on
from vader.cli.root import app, debugging
from vader.errors import RunError, Stopped, UserError, closest, is_out_of_memory
from vader.files.lock import is_main_process

UsageError: Any = typer.BadParameter.__mro__[1]  # click's, which recent versions of typer carry inside themselves
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (the process's own by default) and returns its exit status."""
    _forgive_characters()
    try:
        status = get_command(app).main(arguments, prog_name="vader", standalone_mode=False)
    except UsageError as error:
        return _fail(_misused(error), 2)
    except UserError as error:
        return _fail(str(error), 2, error)
    except Stopped as error:
        return _fail(str(error), INTERRUPTED)
    except RunError as error:
        return _fail(str(error), 1, error)
    except Exception as error:
        return _fail(*_unforeseen(error), error)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    return _fail("stopped by the keyboard", status) if status == INTERRUPTED else status or 0


def _misused(error: Any) -> str:
    """What is said of a usage error: what is wrong, what was meant or how a recipe's keys are given, where help is."""
    context, said = error.ctx, error.format_message().rstrip()
    if context is not None and hasattr(error, "option_name") and hasattr(error, "possibilities"):
        said = f"No such option: {error.option_name}{_instead(error.option_name, context.command.params)}"
    stop = "" if said.endswith((".", "?")) else "."
    return f"{said}{stop} See '{context.command_path if context else 'vader'} --help'."


def _instead(option: str, parameters: Sequence[Any]) -> str:
    """A sentence on the option that may have been meant, or, for a command with a recipe, on how its keys are given."""
    known = [name[2:] for parameter in parameters for name in parameter.opts if name.startswith("--")]
    if close := closest(option.lstrip("-"), known):
        return f". Did you mean --{close}?"
    if any(parameter.name == "overrides" for parameter in parameters):
        return ". A recipe's keys are written KEY=VALUE, as in train.steps=80"
    return ""


def _forgive_characters() -> None:
    """What the console has no character for, as in a file's name that is no text, is written with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _unforeseen(error: Exception) -> tuple[str, int]:
    """What is said of an error that no room has foreseen, and the exit status: code of the user's own is theirs."""
    from vader.plugins import in_own_code, one_line

    if is_out_of_memory(error):
        return f"out of memory ({one_line(error)}): take a smaller video, batch or model", 1
    if said := in_own_code(error):
        return said, 2
    where = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {one_line(error)} ({Path(where.filename).name}, line {where.lineno})"
    return f"{what}: this is a fault of vader, please report it with what 'vader --debug ...' shows", 1


def _fail(message: str, status: int, error: Exception | None = None) -> int:
    """Says in one line on stderr why the command ends, and returns its status; when debugging, also where it arose."""
    if error is not None and debugging():
        traceback.print_exception(error)
    if is_main_process():
        print(f"vader: {' '.join(message.split())}", file=sys.stderr)
    return status
