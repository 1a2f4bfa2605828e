"""The rooms stand on floors: what a room imports stands below it, and no room goes through the package's face."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import vader

PACKAGE = Path(vader.__file__).parent
ROOMS = {path.stem for path in PACKAGE.iterdir() if path.name != "__init__.py"}


def _imported(file: Path) -> Iterator[str]:
    """The rooms that a file names; the face itself is `vader`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
        else:
            continue
        for first, *rest in (name.split(".") for name in names):
            if first == "vader":
                yield rest[0] if rest and rest[0] in ROOMS else "vader"


def test_rooms_stand_on_floors() -> None:
    below: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            below.setdefault(room, set()).update(set(_imported(file)) - {room})
    through_the_face = [room for room, rooms in below.items() if "vader" in rooms]
    assert not through_the_face
    assert len(list(TopologicalSorter(below).static_order())) == len(below) > 20  # raises CycleError on a circle
