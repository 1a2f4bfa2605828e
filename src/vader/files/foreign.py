"""The boundary to files of strangers: whatever a library raises on one becomes one line that names file and part.

In goes a block that reads what a user gave, out comes its result, or a `UserError`. Pipes and devices, which could wait
for ever or never end, are refused before they are opened.
"""

from __future__ import annotations

import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vader.errors import RunError, UserError
from vader.plugins import one_line

WEIGHTS = (".safetensors", ".bin")
PANIC = "PanicException"  # what libraries in Rust raise beside every Exception
NOT_TENSORS = "it holds something else than tensors"


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Within, a library reads what a user gave: what it raises is a `UserError` that begins with `what`, and what it
    warns of is not said.

    Raises:
        UserError: the block raised anything but a `RunError`; a `UserError` passes as it is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (UserError, RunError):
            raise
        except BaseException as error:  # a file of strangers: every library fails on it in its own ways
            if not isinstance(error, Exception) and type(error).__name__ != PANIC:
                raise
            raise UserError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """One line on what a library says about a file, less its advice on how to read it all the same."""
    message = str(error)
    if "weights_only" in message:  # torch's restricted reader, and whoever quotes it
        code = re.search(r"GLOBAL (\S+)", message)
        return f"it holds code ({code[1]}), which is never run" if code else NOT_TENSORS
    if "tiktoken" in message:  # where transformers could not read a vocabulary, it tries that last, in vain
        return "its vocabulary cannot be read"
    if isinstance(error, SafetensorError):
        return f"it is not a safetensors file ({one_line(error)})"
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}" if error.args else "it has not all its parts"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def require_regular(path: Path, what: str) -> None:
    """Refuses to read what is no regular file; what does not exist is for its reader to say.

    Args:
        what: begins the error: "unet of checkpoint 'x'".

    Raises:
        UserError: it is a pipe, a device or a socket, or a link that leads nowhere.
    """
    with reading(f"{what}: {path.name!r} cannot be read"):
        if path.is_symlink() or path.exists():
            mode = path.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError(f"{what}: {path.name!r} is a pipe or a device, which is never read: give a file")


def require_regular_files(folder: Path, what: str) -> None:
    """`require_regular` of every file of a folder, for libraries that choose among them; weights may be no folders."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        require_regular(path, what)
        if path.suffix in WEIGHTS and path.is_dir():
            raise UserError(f"{what}: {path.name!r} is a folder: give a file")
