"""Whole or not at all: what is written appears under its name when it is finished, and leaves nothing when it fails.

In goes the path that a file or folder is to have, out comes a temporary path beside it to write to. Names that begin
with a dot and end in `.part` are of writers that still run or were killed; nobody reads them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError

from vader.errors import UserError

PART = ".part"


class WriteError(UserError):
    """A place that cannot be written, or a disk that is full."""


@contextmanager
def atomic_write(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """A temporary path that becomes the file `path` when the block ends well, and goes when it does not.

    Folders are made where they are missing, an existing file is replaced. Several processes may write one path at a
    time: each has a temporary path of its own, and the last one to finish stays.

    Args:
        sync: waits until the content is on the disk, so that even a power failure leaves no half of it.

    Raises:
        WriteError: the place cannot be written, or the disk is full.
    """
    path = Path(path)
    with _explained(path):
        if path.exists() and not path.is_file():
            raise WriteError(f"cannot write {path}: it is no file but a folder, a pipe or a device")
    temporary = path.with_name(f".{path.name}.{token_hex(4)}{PART}")
    with _explained(path), made_folder(path.parent), _removed(temporary):
        yield temporary
        if sync:
            _sync(temporary)
        _share(temporary)
        os.replace(temporary, path)


@contextmanager
def atomic_folder(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """An empty temporary folder that becomes `path`, in place of what was there, when the block ends well.

    One process writes a folder at a time: what one that was killed has left is cleared away first.

    Args:
        sync: as in `atomic_write`, for every file.

    Raises:
        WriteError: the place cannot be written, or the disk is full.
    """
    path = Path(path).absolute()
    if path.is_mount():
        raise WriteError(f"the folder {path} is a disk of its own and cannot be replaced: name a new folder in it")
    temporary = path.with_name(f".{path.name}{PART}")
    with _explained(path), made_folder(path.parent), _removed(temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            _share(file)
            if sync:
                _sync(file)
        remove(path)
        os.rename(temporary, path)


def remove(path: Path) -> None:
    """Removes a file or folder, if there is one: at no moment is half of it left under its name.

    Of a link, the link goes and what it leads to stays.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    leaving = path.with_name(f".{path.name}.{token_hex(4)}{PART}")
    os.rename(path, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def remove_parts(folder: Path, name: str = "") -> None:
    """Removes what killed writers have left in a folder, all or that of one name; for whoever alone writes there."""
    for part in folder.glob(f".{escape(name)}*{PART}"):
        remove(part) if part.is_file() else shutil.rmtree(part, ignore_errors=True)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes a folder with those above it; what was missing goes again if the block leaves it empty.

    Raises:
        WriteError: it cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for place in missing:
            with suppress(OSError):  # it is not empty
                place.rmdir()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter: a full disk, as safetensors says it
        raise WriteError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def _removed(temporary: Path) -> Iterator[None]:
    """Removes what a block that fails has begun."""
    try:
        yield
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def _share(file: Path) -> None:
    """Gives a file the permissions that the process's umask leaves new files; safetensors makes them for one user."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def _sync(file: Path) -> None:
    with file.open("r+b") as stream:
        os.fsync(stream.fileno())
