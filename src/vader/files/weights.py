"""Weight files that strangers made: safetensors or torch checkpoints in, what they hold out.

Code in a pickle is never run: torch's restricted reader takes tensors and plain containers, and refuses all else.
"""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file

from vader.errors import UserError
from vader.plugins import one_line

ZIP_START = b"PK"  # of torch's checkpoints since 1.6


def read_weights(path: Path) -> dict[str, Any]:
    """What a safetensors file or a torch checkpoint holds, as it is; large tensors are mapped, not copied.

    Raises:
        UserError: the file is neither, is cut short, or holds code.
    """
    try:
        return dict(load_file(path) if path.suffix == ".safetensors" else _torch_load(path))
    except Exception as error:  # a foreign file: every format fails in its own way
        raise UserError(f"{str(path)!r} is no readable weight file: {_reason(path, error)}") from error


def _torch_load(path: Path) -> dict[str, Any]:
    mapped = is_zipfile(path)  # then only the tensors that are used are read: training checkpoints hold far more
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnpicklingError):
        code = re.search(r"GLOBAL (\S+)", str(error))
        return f"it holds code ({code[1]}), which is never run" if code else "it holds something else than tensors"
    if path.is_file() and not path.stat().st_size:
        return "it is empty"
    if path.is_file() and not is_zipfile(path) and _starts_with(path, ZIP_START):
        return "it is cut short"
    return one_line(error)


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(start)) == start
