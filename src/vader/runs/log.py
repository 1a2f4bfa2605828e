"""A run's logs: files of one JSON object a line, numbers that are not finite as null.

Metrics are appended line by line; on resuming, lines beyond the checkpoint are dropped, because they will be written
again. What belongs to one evaluation is written whole.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vader.files.atomic import WriteError, atomic_write

Line = dict[str, Any]


class MetricsLog:
    """The file `metrics.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: Mapping[str, Any]) -> None:
        """Raises `WriteError` if the disk is full."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_json(line))
        except OSError as error:
            raise WriteError(f"cannot write {self.path}: {error.strerror}") from error

    def sync(self) -> None:
        """Waits until all lines are on the disk, so that a checkpoint never outlives the lines before it."""
        if self.path.exists():
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())

    def read(self) -> list[Line | None]:
        """The lines by place; None for one that is damaged, nothing for a last one that is still being written."""
        return read_lines(self.path)

    def keep(self, wanted: Callable[[Line], bool]) -> None:
        """Drops all lines but those wanted, with them what is damaged and a last line that was cut off."""
        if self.path.exists():
            write_lines(self.path, [line for line in self.read() if line is not None and wanted(line)])


def read_lines(path: Path) -> list[Line | None]:
    """A file's objects, None for each damaged line; a last line without its end is left out."""
    if not path.is_file():
        return []
    return [_line(text) for text in path.read_bytes().split(b"\n")[:-1]]


def _line(text: bytes) -> Line | None:
    """A line's object, if it is one that tells its step."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines, whole or not at all. Raises `WriteError` if it cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(map(_json, lines)), encoding="utf-8")


def _json(line: Mapping[str, Any]) -> str:
    return json.dumps(finite(line), allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """A value for JSON: what is not finite in it, however deep, is None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
