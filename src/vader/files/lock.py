"""One writer at a time: a lock that the system lets go of when its holder dies, however it dies.

In goes the folder that a command is going to write; while it holds the folder, every other command is refused and told
who holds it. Whatever killed writers have left is then nobody's, and is removed.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from textwrap import shorten

from vader.errors import UserError
from vader.files.atomic import WriteError, atomic_folder, made_folder, remove_parts

LOCK, HOLDER = ".lock", ".holder"
PATIENCE = 2.0  # seconds: a holder that was killed with -9 may take a moment to be gone


def is_main_process() -> bool:
    """`accelerate launch` and `torchrun` number their processes in RANK; without them there is one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def held(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """While the block lasts, no other command may write to a folder, which is made if it is missing.

    What killed writers have left in it is removed first. A folder that was made for it and is still empty at the end
    goes again.

    Raises:
        UserError: another command holds it, which the message names.
        WriteError: the folder cannot be written.
    """
    with made_folder(folder), locked(folder / LOCK, str(folder), patience):
        remove_parts(folder)
        yield


@contextmanager
def held_beside(path: Path) -> Iterator[None]:
    """As `held`, of a file or folder that appears whole: what is beside it is not touched, but for its own remains."""
    path = path.absolute()
    with made_folder(path.parent), locked(path.with_name(f".{path.name}{LOCK}"), str(path)):
        remove_parts(path.parent, path.name)
        yield


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path`, missing or empty until then, when the block ends well.

    Raises:
        UserError: there is something already, or another command writes it.
        WriteError: it cannot be written, or the disk is full.
    """
    with held_beside(path):
        if path.is_dir() and any(path.iterdir()):
            raise UserError(f"folder {str(path)!r} is not empty: name a new one")
        if path.exists() and not path.is_dir():
            raise UserError(f"{str(path)!r} is a file: name a new folder")
        with atomic_folder(path) as temporary:
            yield temporary


@contextmanager
def locked(lock: Path, what: str, patience: float = PATIENCE) -> Iterator[None]:
    """Holds a lock's file, beside which stands who holds it; `what` says in errors what it is the lock of."""
    from filelock import FileLock, Timeout

    file, holder = FileLock(lock), lock.with_name(f"{lock.name}{HOLDER}")
    try:
        if not lock.exists():
            lock.touch()  # says why it cannot be made, where the library would wait for it
        file.acquire(timeout=patience, poll_interval=0.02)
    except Timeout as error:
        raise UserError(
            f"{what} is being written by another command{_named(holder)}: wait until it ends, or choose another folder"
        ) from error
    except OSError as error:
        raise WriteError(f"cannot write {what}: {error.strerror or error}") from error
    try:
        holder.write_text(json.dumps(_myself()), encoding="utf-8")
        yield
    finally:
        for path in (holder, lock):
            with suppress(OSError):  # another system may not remove what is open: then it stays, held by nobody
                path.unlink(missing_ok=True)
        file.release()


def _myself() -> dict[str, str | int]:
    program = Path(sys.argv[0]).name
    command = shlex.join(["vader" if program in ("__main__.py", "child.py") else program, *sys.argv[1:]])
    return {
        "pid": os.getpid(),
        "command": shorten(command, 200, placeholder=" ..."),
        "since": datetime.now().isoformat(" ", "seconds"),
    }


def _named(holder: Path) -> str:
    """Who holds a lock, as far as it has said so by now."""
    try:
        said = json.loads(holder.read_text(encoding="utf-8"))
        return f" ({said['command']}, process {said['pid']}, since {said['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
