"""A run's logs: files of one JSON object a line, numbers that are not finite as null.

Metrics are appended line by line; on resuming, lines beyond the checkpoint are dropped, because they will be written
again. What belongs to one evaluation is written whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vader.files.atomic import atomic_write


class MetricsLog:
    """The file `metrics.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_json(line))

    def keep_until(self, step: int) -> None:
        """Drops what was logged after `step`, and a last line that was cut off."""
        if not self.path.exists():
            return
        whole = [json.loads(line) for line in self.path.read_text(encoding="utf-8").split("\n")[:-1]]
        write_lines(self.path, [line for line in whole if line["step"] <= step])


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines, whole or not at all. Raises `UserError` if it cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(map(_json, lines)), encoding="utf-8")


def _json(line: Mapping[str, Any]) -> str:
    return json.dumps(_finite(line), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
