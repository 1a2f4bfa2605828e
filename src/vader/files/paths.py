"""The door for paths and texts that people name: what cannot be one is one line, before anything is read or written.

In goes what the user wrote, out comes a path that the system takes, or the text of a regular file. A pipe or a device
is never opened: it could wait for ever, or never end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vader.errors import UserError

MOST_TEXT = 64 * 2**20  # bytes: prompts and recipes are far smaller, and what is larger is something else


def user_path(written: str | Path, what: str) -> Path:
    """The path that was written, `~` expanded; there need not be anything.

    Args:
        what: it is to be, for the error: "prompt file", "checkpoint", ...

    Raises:
        UserError: the system takes no such path: an unknown user's home, a name too long, a NUL in it.
    """
    try:
        path = Path(written).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except RuntimeError:
        raise UserError(f"{what} {short(written)}: there is no user of that name here; write the whole path") from None
    except ValueError:
        raise UserError(f"{what} {short(written)} is no path: it holds a NUL character") from None
    except OSError as error:
        raise UserError(f"{what} {short(written)} cannot be used: {error.strerror}") from None
    return path


def is_path(written: str) -> bool:
    """Whether this can only be meant as a path, and not as a built-in's name: it has a slash or a suffix."""
    return "/" in written or "\\" in written or Path(written).suffix[1:2].isalpha()


def read_text(path: Path, what: str) -> str:
    """The text of a regular UTF-8 file, lines ended by newlines.

    Raises:
        UserError: there is no such file, it is none, it cannot be read, or it is no UTF-8 text.
    """
    named = f"{what} {short(path)}"
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
            raise UserError(f"{named} is {kind}: give a file")
        if found.st_size > MOST_TEXT:
            raise UserError(f"{named} has {found.st_size / 2**20:.0f} MiB: a text has at most {MOST_TEXT >> 20}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{named} does not exist") from None
    except OSError as error:
        raise UserError(f"{named} cannot be read: {error.strerror}") from None
    return _decoded(content, named).replace("\r\n", "\n").replace("\r", "\n")


def _decoded(content: bytes, named: str) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        text, end = content.decode("utf-8-sig"), content.find(b"\0")
    except UnicodeDecodeError as error:
        text, end = "", error.start
    if end >= 0:
        line = content.count(b"\n", 0, end) + 1
        raise UserError(f"{named} is no UTF-8 text (line {line}): save it as UTF-8")
    return text


def is_writable(folder: Path, what: str) -> bool:
    """Whether a folder is there and can be written, or can be made; errors as `user_path`."""
    folder = user_path(folder, what).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def check_out(folder: Path) -> None:
    """Raises `UserError` if what a command makes cannot be written to the folder `--out`."""
    if not is_writable(folder, "--out"):
        raise UserError(f"cannot write the folder {short(folder)}: choose another --out")


def short(written: str | Path) -> str:
    """What was written in quotes, the middle left out of what is very long."""
    text = str(written)
    return repr(text if len(text) <= 200 else f"{text[:97]}...{text[-97:]}")
