"""Whole or not at all: what is written appears under its name when it is finished, and leaves nothing when it fails.

In goes the path that a file or folder is to have, out comes a temporary path beside it to write to. Names that begin
with a dot and end in `.part` are of writers that still run or were killed; nobody reads them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError

from vader.errors import UserError


@contextmanager
def atomic_write(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """A temporary path that becomes the file `path` when the block ends well, and goes when it does not.

    Folders are made where they are missing, an existing file is replaced. Several processes may write one path at a
    time: each has a temporary path of its own, and the last one to finish stays.

    Args:
        sync: waits until the content is on the disk, so that even a power failure leaves no half of it.

    Raises:
        UserError: the place cannot be written, or the disk is full.
    """
    path = Path(path)
    with _explained(path):
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}: it is no file but a folder, a pipe or a device")
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.part")
    with _explained(path), _removed(temporary, lambda file: file.unlink(missing_ok=True)):
        path.parent.mkdir(parents=True, exist_ok=True)
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
        UserError: the place cannot be written, or the disk is full.
    """
    path = Path(path).absolute()
    if path.is_mount():
        raise UserError(f"the folder {path} is a disk of its own and cannot be replaced: name a new folder in it")
    temporary = path.with_name(f".{path.name}.part")
    with _explained(path), _removed(temporary, lambda folder: shutil.rmtree(folder, ignore_errors=True)):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            _share(file)
            if sync:
                _sync(file)
        shutil.rmtree(path, ignore_errors=True)
        os.rename(temporary, path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter: a full disk, as safetensors says it
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def _removed(temporary: Path, remove: Callable[[Path], object]) -> Iterator[None]:
    """Removes what a block that fails has begun."""
    try:
        yield
    except BaseException:
        remove(temporary)
        raise


def _share(file: Path) -> None:
    """Gives a file the permissions that the process's umask leaves new files; safetensors makes them for one user."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def _sync(file: Path) -> None:
    with file.open("r+b") as stream:
        os.fsync(stream.fileno())
